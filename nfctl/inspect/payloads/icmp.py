"""ICMP: names of its types and codes (RFC 792, RFC 4443, RFC 4861), and what errors quote."""

from __future__ import annotations

from nfctl.inspect import headers as at
from nfctl.inspect.packet import PROTOCOLS
from nfctl.inspect.text import ends

_V4 = {
    0: "echo reply",
    3: "destination unreachable",
    4: "source quench",
    5: "redirect",
    8: "echo request",
    9: "router advertisement",
    10: "router solicitation",
    11: "time exceeded",
    12: "parameter problem",
    13: "timestamp request",
    14: "timestamp reply",
    15: "information request",
    16: "information reply",
    17: "address mask request",
    18: "address mask reply",
    42: "extended echo request",
    43: "extended echo reply",
}
_V4_CODES = {
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (3, 5): "source route failed",
    (3, 6): "network unknown",
    (3, 7): "host unknown",
    (3, 8): "source host isolated",
    (3, 9): "network prohibited",
    (3, 10): "host prohibited",
    (3, 11): "network unreachable for this service",
    (3, 12): "host unreachable for this service",
    (3, 13): "administratively prohibited",
    (3, 14): "host precedence violation",
    (3, 15): "precedence cutoff",
    (5, 0): "network redirect",
    (5, 1): "host redirect",
    (5, 2): "network redirect for this service",
    (5, 3): "host redirect for this service",
    (11, 0): "TTL exceeded in transit",
    (11, 1): "reassembly time exceeded",
    (12, 1): "option missing",
    (12, 2): "bad length",
}
_V6 = {
    1: "destination unreachable",
    2: "packet too big",
    3: "time exceeded",
    4: "parameter problem",
    128: "echo request",
    129: "echo reply",
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
    137: "redirect",
    138: "router renumbering",
    139: "node information query",
    140: "node information response",
    141: "inverse neighbour solicitation",
    142: "inverse neighbour advertisement",
    143: "multicast listener report v2",
    148: "certification path solicitation",
    149: "certification path advertisement",
    151: "multicast router advertisement",
    152: "multicast router solicitation",
    153: "multicast router termination",
    155: "RPL control",
    160: "extended echo request",
    161: "extended echo reply",
}
_V6_CODES = {
    (1, 0): "no route",
    (1, 1): "administratively prohibited",
    (1, 2): "beyond scope of source address",
    (1, 3): "address unreachable",
    (1, 4): "port unreachable",
    (1, 5): "source address failed policy",
    (1, 6): "reject route",
    (1, 7): "source routing header error",
    (3, 0): "hop limit exceeded in transit",
    (3, 1): "reassembly time exceeded",
    (4, 0): "bad header field",
    (4, 1): "unknown next header",
    (4, 2): "unknown option",
    (4, 3): "incomplete header chain",
}
#: The types that quote the packet they are about.
_ERRORS = {4: frozenset({3, 4, 5, 11, 12}), 6: frozenset({1, 2, 3, 4})}


def name(version: int, type_: int, code: int) -> str:
    """Return what a type and code are called; ``type N code N`` if they have no name."""
    codes, types = (_V4_CODES, _V4) if version == 4 else (_V6_CODES, _V6)
    found = codes.get((type_, code))
    if found is not None:
        return found
    found = types.get(type_)
    if found is None:
        return f"type {type_} code {code}"
    return f"{found} code {code}" if code else found


def inner(version: int, message: bytes) -> str:
    """Return the flow whose packet an ICMP error quotes, such as ``tcp 192.0.2.1:80 > ...``.

    ``message`` is the ICMP message from its type on; "" for what is no error, or quotes nothing.
    """
    if len(message) < 28 or message[0] not in _ERRORS.get(version, ()):
        return ""
    quoted = message[8:]
    # As the quoted packet is mostly cut, its own length is what its header says.
    if version == 4:
        length = int.from_bytes(quoted[2:4], "big")
    else:
        length = 40 + int.from_bytes(quoted[4:6], "big")
    head = at.decode(quoted, length)
    if head.version != version or not head.src:
        return ""
    flow = ends(head.src, head.dst, head.sport, head.dport)
    if head.icmp is not None:
        return f"{name(version, *head.icmp)} {flow}"
    if head.proto in at.WITH_PORTS:
        protocol = PROTOCOLS[head.proto]
    else:
        protocol = "icmp" if head.proto in {at.ICMP, at.ICMPV6} else f"protocol {head.proto}"
    return f"{protocol} {flow}"
