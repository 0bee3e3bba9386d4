"""The conditions that stand under ``when``: how each is read, and what it asks of a packet."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from nfctl.document import Kind, known, shown
from nfctl.inspect import headers as at
from nfctl.inspect.rules import protocols, values
from nfctl.inspect.rules.expression import (
    All,
    Any_,
    Leaf,
    Not,
    OfFacts,
    OfHello,
    OfPacket,
    OfShape,
)
from nfctl.inspect.rules.payload import payload
from nfctl.inspect.rules.sets import Names, Texts, quick
from nfctl.ruleset.names import HOOKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.document import Node
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rules.expression import Facts, Tree

    Get = Callable[[Packet], Any]

_LARGEST: Final = 0xFFFFFFFF  # bytes: jumbograms too
_ICMP: Final = frozenset({at.ICMP, at.ICMPV6})
_TCP: Final = frozenset({at.TCP})
_UDP: Final = frozenset({at.UDP})
_BOTH: Final = frozenset({at.TCP, at.UDP})
#: The protocols that a condition's packets have; others have nothing it could be about.
PROTOCOLS_OF: Final = {
    "sport": at.WITH_PORTS, "dport": at.WITH_PORTS, "port": at.WITH_PORTS, "icmp": _ICMP,
    "tcp.flags": _TCP,
    "dns.qname": _BOTH, "dns.type": _BOTH, "dns.rcode": _BOTH, "dns.answer": _BOTH,
    "tls.sni": _BOTH, "tls.alpn": _BOTH, "quic.version": _UDP, "http.method": _TCP,
    "http.host": _TCP, "http.path": _TCP, "http.status": _TCP, "http.ambiguous": _TCP,
}  # fmt: skip

# --- of all packets of a direction ----------------------------------------------------------------


def _chain(key: str, node: Node) -> Leaf:
    chains = frozenset(part.choice(*HOOKS) for part in values.some(node, "chain"))
    return OfFacts(key, chains, lambda facts: facts.chain in chains)


def _interface(key: str, node: Node) -> Leaf:
    found = values.interfaces(node)
    exact = frozenset(name for name in found if not name.endswith("*"))
    begins = tuple(name[:-1] for name in found if name.endswith("*"))
    place = 1 if key == "in" else 2

    def of(facts: Facts) -> bool:
        name: str = facts[place]  # type: ignore[assignment]
        return bool(name) and (name in exact or name.startswith(begins))

    return OfFacts(key, found, of)


def _family(key: str, node: Node) -> Leaf:
    parts = values.some(node, "family")
    versions = frozenset(4 if part.choice("ipv4", "ipv6") == "ipv4" else 6 for part in parts)
    return OfFacts(key, versions, lambda facts: facts.version in versions)


def _address(key: str, node: Node) -> Leaf:
    addresses = values.addresses(node)
    own = attrgetter(key)
    return OfFacts(key, addresses, lambda facts: own(facts) in addresses, (key,))


def _proto(key: str, node: Node) -> Leaf:
    protos = values.words(node, values.PROTOCOL_NUMBERS, 0, 255, "protocol")
    return OfFacts(key, protos, lambda facts: facts.proto in protos)


def _ports(key: str, node: Node) -> Leaf:
    ranges = values.ports(node)
    own = quick(ranges)
    either, source = key == "port", key == "sport"

    def of(facts: Facts) -> bool:
        sport, dport = facts.sport, facts.dport
        found = sport in own or dport in own if either else (sport if source else dport) in own
        # where both are 0 there are none: a later fragment, or a protocol without ports
        return found and facts.proto in at.WITH_PORTS and (sport or dport) != 0

    return OfFacts(key, ranges, of, ("sport", "dport"))


# --- of the headers -------------------------------------------------------------------------------


def _is_icmp(facts: Facts) -> bool:
    return facts.proto in _ICMP


def _icmp(key: str, node: Node) -> Leaf:
    types = values.icmp(node)

    def test(packet: Packet) -> bool:
        head = packet.headers
        return head.icmp is not None and (head.version, *head.icmp) in types

    return OfPacket(key, types, test, _is_icmp)


def _ttl(key: str, node: Node) -> Leaf:
    ranges = values.ranges(node, 0, 255, "ttl")
    own = quick(ranges)
    return OfPacket(key, ranges, lambda packet: packet.headers.ttl in own)


def _dscp(key: str, node: Node) -> Leaf:
    from nfctl.inspect.rewrite import DSCP

    own = values.words(node, DSCP, 0, 63, "DSCP")
    return OfPacket(key, own, lambda packet: packet.headers.tos >> 2 in own)


def _len(key: str, node: Node) -> Leaf:
    ranges = values.ranges(node, 0, _LARGEST, "length in bytes")
    own = quick(ranges)
    return OfPacket(key, ranges, lambda packet: packet.length in own)


def _mark(key: str, node: Node) -> Leaf:
    marks = frozenset(values.mark(part) for part in values.some(node, "mark"))
    if len(marks) == 1:
        ((value, mask),) = marks
        return OfPacket(key, marks, lambda packet: packet.fwmark & mask == value)
    return OfPacket(key, marks, lambda packet: any(packet.fwmark & m == v for v, m in marks))


def _flags(key: str, node: Node) -> Leaf:
    pairs = values.flags(node)
    own = frozenset(flags for flags in range(256) for mask, on in pairs if flags & mask == on)

    def test(packet: Packet) -> bool:
        head = packet.headers
        # A later fragment has no flags, as it has no ports.
        return head.flags in own and not head.fragment and head.proto == at.TCP

    return OfPacket(key, own, test, protocols.is_tcp)


def _fragment(key: str, node: Node) -> Leaf:
    wanted = node.boolean()

    def test(packet: Packet) -> bool:
        head = packet.headers
        return (head.more or head.fragment > 0) is wanted

    return OfShape(key, wanted, test)


def _truncated(key: str, node: Node) -> Leaf:
    wanted = node.boolean()
    return OfPacket(key, frozenset({wanted}), lambda packet: packet.headers.truncated is wanted)


def _malformed(key: str, node: Node) -> Leaf:
    wanted = node.boolean()
    return OfShape(key, wanted, lambda packet: bool(packet.headers.malformed) is wanted)


# --- of the ClientHello ---------------------------------------------------------------------------


def _sni(key: str, node: Node) -> Leaf:
    names = Names(values.names(node))
    return OfHello(key, names.words, lambda hello: hello.sni in names)


def _alpn(key: str, node: Node) -> Leaf:
    texts = Texts(values.texts(node, "protocol of ALPN"))
    return OfHello(key, texts.words, lambda hello: any(name in texts for name in hello.alpn))


CONDITIONS: Final[dict[str, Callable[[str, Node], Leaf]]] = {
    "chain": _chain, "in": _interface, "out": _interface, "family": _family, "src": _address,
    "dst": _address, "proto": _proto, "sport": _ports, "dport": _ports, "port": _ports,
    "icmp": _icmp, "tcp.flags": _flags, "ttl": _ttl, "dscp": _dscp, "len": _len, "mark": _mark,
    "fragment": _fragment, "truncated": _truncated, "malformed": _malformed,
    "tls.sni": _sni, "tls.alpn": _alpn, **protocols.READ, "payload": payload,
}  # fmt: skip
_GROUPS: Final = ("all", "any", "not")


def read(node: Node, *, top: bool = False) -> Tree:
    """Read a mapping of conditions, all of which must hold; ``rate`` is left to the caller."""
    if node.kind not in {Kind.MAPPING, Kind.NULL}:
        msg = f"{Kind.MAPPING} of conditions is expected here, not {node.kind}"
        raise node.error(msg, "such as {proto: tcp, dport: 22}")
    parts: list[Tree] = []
    keys: list[Node] = []
    for key, value in node.items():
        name = key.raw
        if name == "rate":
            if top:
                continue
            msg = '"rate" stands in "when" itself'
            raise key.error(msg, "it counts the packets that fulfil all other conditions there")
        if name in CONDITIONS:
            leaf = CONDITIONS[name](name, value)
            _agree(leaf, key, parts)
            parts.append(leaf)
            keys.append(key)
        elif name in _GROUPS:
            parts.append(_group(name, value))
        else:
            msg = f"there is no condition {shown(name)}"
            raise key.error(msg, known(name, [*CONDITIONS, *_GROUPS, *(["rate"] if top else [])]))
    return parts[0] if len(parts) == 1 else All(parts)


def _group(name: str, node: Node) -> Tree:
    nodes = node.one_or_many()
    if not nodes:
        msg = f'"{name}" holds no conditions'
        raise node.error(msg, "a list of mappings, such as [{dport: 22}, {sport: 22}]")
    parts = [read(part) for part in nodes]
    if name == "all":
        return All(parts)
    return Any_(parts) if name == "any" else Not(Any_(parts))


def _agree(leaf: Leaf, key: Node, others: list[Tree]) -> None:
    """Raise BadInput where one mapping holds two conditions that no packet can fulfil."""
    for other in others:
        if not isinstance(other, Leaf):
            continue
        first, second = _protocols(leaf), _protocols(other)
        if first is not None and second is not None and not first & second:
            msg = f'"{leaf.key}" and "{other.key}" contradict each other: no packet has both'
            raise key.error(msg, "conditions of one mapping must all hold; see any")
        families = _families(leaf), _families(other)
        if families[0] and families[1] and not families[0] & families[1]:
            msg = f'"{leaf.key}" and "{other.key}" are of different IP versions'
            raise key.error(msg, "conditions of one mapping must all hold; see any")


def _protocols(leaf: Leaf) -> frozenset[int] | None:
    if leaf.key == "proto":
        own: frozenset[int] = leaf.values
        return own
    return PROTOCOLS_OF.get(leaf.key)


def _families(leaf: Leaf) -> frozenset[int]:
    if leaf.key == "family":
        own: frozenset[int] = leaf.values
        return own
    if leaf.key in {"src", "dst"}:
        return frozenset(4 if length == 4 else 6 for length in leaf.values.families)
    return frozenset()
