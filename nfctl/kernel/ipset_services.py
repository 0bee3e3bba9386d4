"""Protocols, ports and ICMP types in entries of ipsets: ``tcp:80``, ``icmp:echo-request``.

The kernel has a protocol's number and a "port", which for ICMP is the type and the code.
See protocols(5) and services(5) for names.
"""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from typing import Final

from nfctl.errors import BadInput
from nfctl.kernel import ipset_types as t
from nfctl.kernel.netlink import attribute

_PORTS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", 132: "sctp", 136: "udplite"}
_ICMP, _ICMPV6 = 1, 58

# In the order in which they are looked up: the first name of a number is the one printed.
_ICMP_NAMES: Final = {
    "echo-reply": (0, 0),
    "pong": (0, 0),
    "network-unreachable": (3, 0),
    "host-unreachable": (3, 1),
    "protocol-unreachable": (3, 2),
    "port-unreachable": (3, 3),
    "fragmentation-needed": (3, 4),
    "source-route-failed": (3, 5),
    "network-unknown": (3, 6),
    "host-unknown": (3, 7),
    "network-prohibited": (3, 9),
    "host-prohibited": (3, 10),
    "TOS-network-unreachable": (3, 11),
    "TOS-host-unreachable": (3, 12),
    "communication-prohibited": (3, 13),
    "host-precedence-violation": (3, 14),
    "precedence-cutoff": (3, 15),
    "source-quench": (4, 0),
    "network-redirect": (5, 0),
    "host-redirect": (5, 1),
    "TOS-network-redirect": (5, 2),
    "TOS-host-redirect": (5, 3),
    "echo-request": (8, 0),
    "ping": (8, 0),
    "router-advertisement": (9, 0),
    "router-solicitation": (10, 0),
    "ttl-zero-during-transit": (11, 0),
    "ttl-zero-during-reassembly": (11, 1),
    "ip-header-bad": (12, 0),
    "required-option-missing": (12, 1),
    "timestamp-request": (13, 0),
    "timestamp-reply": (14, 0),
    "address-mask-request": (17, 0),
    "address-mask-reply": (18, 0),
}
_ICMPV6_NAMES: Final = {
    "no-route": (1, 0),
    "communication-prohibited": (1, 1),
    "address-unreachable": (1, 3),
    "port-unreachable": (1, 4),
    "packet-too-big": (2, 0),
    "ttl-zero-during-transit": (3, 0),
    "ttl-zero-during-reassembly": (3, 1),
    "bad-header": (4, 0),
    "unknown-header-type": (4, 1),
    "unknown-option": (4, 2),
    "echo-request": (128, 0),
    "ping": (128, 0),
    "echo-reply": (129, 0),
    "pong": (129, 0),
    "router-solicitation": (133, 0),
    "router-advertisement": (134, 0),
    "neighbour-solicitation": (135, 0),
    "neigbour-solicitation": (135, 0),
    "neighbour-advertisement": (136, 0),
    "neigbour-advertisement": (136, 0),
    "redirect": (137, 0),
}
_NAMES: Final = {_ICMP: _ICMP_NAMES, _ICMPV6: _ICMPV6_NAMES}


def encode(text: str, family: int) -> list[bytes]:
    """Read ``PORT``, ``PROTO:PORT``, ``PROTO:FROM-TO``, ``icmp:TYPE`` or ``PROTO:0``; BadInput."""
    before, colon, after = text.partition(":")
    protocol, ports = (_protocol(before), after) if colon else (socket.IPPROTO_TCP, text)
    if protocol in _PORTS:
        found = encode_ports(ports, _PORTS[protocol])
    elif protocol in _NAMES:
        if (protocol == _ICMP) != (family == 4):
            msg = f"protocol {before} is not of IPv{family}"
            raise BadInput(msg)
        found = [t.u16(t.PORT, _message(ports, protocol))]
    elif ports == "0":
        found = [t.u16(t.PORT, 0)]
    else:
        msg = f"protocol {before} has no ports"
        raise BadInput(msg, hint=f"{before}:0 is what ipset(8) has for it")
    return [*found, attribute(t.PROTO, bytes([protocol]))]


def encode_port(text: str) -> list[bytes]:
    """Read ``PORT`` or ``FROM-TO``, of TCP as far as names go, or behind ``udp:``; BadInput."""
    before, colon, ports = text.partition(":")
    protocol = _protocol(before) if colon else socket.IPPROTO_TCP
    if protocol not in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}:
        msg = f"protocol {before} cannot be here: tcp and udp say whose names of ports are meant"
        raise BadInput(msg)
    return encode_ports(ports if colon else text, _PORTS[protocol])


def encode_ports(text: str, protocol: str) -> list[bytes]:
    """Read ``PORT`` or ``FROM-TO``, numbers or names of a protocol's services; BadInput."""
    named = re.fullmatch(r"(\[[^]]*\]|[^-]*)(?:-(\[[^]]*\]|[^-]*))?", text)
    if named is None:
        msg = f"{text!r} is no port and no range of ports"
        raise BadInput(msg, hint="a service's name with a dash in it stands in []")
    first = _one_port(named[1], protocol)
    if named[2] is None:
        return [t.u16(t.PORT, first)]
    return [t.u16(t.PORT, first), t.u16(t.PORT_TO, _one_port(named[2], protocol))]


def shown(protocol: int, port: int) -> str:
    """Return the text of a protocol and port, as ``ipset save`` prints it."""
    name = _protocol_name(protocol)
    if protocol not in _NAMES:
        return f"{name}:{port}"
    kind = port >> 8, port & 255
    for known, numbers in _NAMES[protocol].items():
        if numbers == kind:
            return f"{name}:{known}"
    return f"{name}:{kind[0]}/{kind[1]}"


@lru_cache(maxsize=512)
def _protocol(name: str) -> int:
    if name.isdigit():
        return t.number(name, 255, "a protocol")
    try:
        return socket.getprotobyname("ipv6-icmp" if name.lower() == "icmpv6" else name)
    except (OSError, ValueError):
        pass
    # for where there is no /etc/protocols
    known = {shown: number for number, shown in _PORTS.items()}
    known |= {"icmp": _ICMP, "icmpv6": _ICMPV6, "ipv6-icmp": _ICMPV6}
    if name.lower() in known:
        return known[name.lower()]
    msg = f"there is no protocol {name!r}"
    raise BadInput(msg)


@lru_cache(maxsize=512)
def _protocol_name(number: int) -> str:
    """Return the name in protocols(5), or the number."""
    import ctypes as ct

    class Entry(ct.Structure):
        _fields_ = [("name", ct.c_char_p)]

    # Python has getprotobyname(3) only
    libc = ct.CDLL(None)
    libc.getprotobynumber.restype = ct.POINTER(Entry)
    found = libc.getprotobynumber(number)
    if found and found.contents.name:
        return str(found.contents.name.decode("ascii", "replace"))
    return str(number)


def _one_port(text: str, protocol: str) -> int:
    name = text[1:-1] if text[:1] == "[" else text
    if name[:1].isdigit():
        return t.number(name, 0xFFFF, "a port")
    return _named_port(name, protocol)


@lru_cache(maxsize=512)
def _named_port(name: str, protocol: str) -> int:
    try:
        return socket.getservbyname(name, protocol)
    except (OSError, ValueError):
        msg = f"there is no {protocol} port {name!r}"
        raise BadInput(msg) from None


def _message(text: str, protocol: int) -> int:
    """Read a type of ICMP messages, by its name or as TYPE/CODE: the "port" of the kernel."""
    named = _NAMES[protocol].get(text)
    if named is None:
        kind, slash, code = text.partition("/")
        if not slash or not kind.isdigit():
            msg = f"{text!r} is no type of ICMP messages"
            raise BadInput(msg, hint="its name or TYPE/CODE, such as echo-request or 8/0")
        named = (t.number(kind, 255, "a type"), t.number(code, 255, "a code"))
    return named[0] << 8 | named[1]
