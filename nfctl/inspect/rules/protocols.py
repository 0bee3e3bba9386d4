"""The conditions about DNS, HTTP and QUIC: what a packet carries, as its readers understand it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from nfctl.inspect import headers as at
from nfctl.inspect.packet import _DNS_PORTS
from nfctl.inspect.rules import values
from nfctl.inspect.rules.expression import OfPayload
from nfctl.inspect.rules.sets import Names, Ranges, Texts, quick

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.document import Node
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rules.expression import Facts, Leaf

DNS_RANGES: Final = Ranges(sorted(_DNS_PORTS), sorted(_DNS_PORTS))


def is_tcp(facts: Facts) -> bool:
    """Whether a flow is one of TCP."""
    return facts.proto == at.TCP


# --- of DNS ---------------------------------------------------------------------------------------


def _may_be_dns(facts: Facts) -> bool:
    return facts.proto in {at.TCP, at.UDP} and (
        facts.sport in _DNS_PORTS or facts.dport in _DNS_PORTS
    )


def _qname(key: str, node: Node) -> Leaf:
    names = Names(values.names(node))

    def test(packet: Packet) -> bool:
        dns = packet.dns
        if dns is not None:
            for name, _ in dns.questions:
                if name in names:
                    return True
        return False

    return OfPayload(key, names.words, test, _may_be_dns, 10)


def _type(key: str, node: Node) -> Leaf:
    from nfctl.inspect.payloads.dns import TYPES

    numbers = {name.lower(): number for number, name in TYPES.items()}
    own = frozenset(
        TYPES.get(number) or f"TYPE{number}"
        for number in values.words(node, numbers, 1, 65535, "type of DNS record")
    )

    def test(packet: Packet) -> bool:
        dns = packet.dns
        return dns is not None and any(kind in own for _, kind in dns.questions)

    return OfPayload(key, own, test, _may_be_dns, 10)


def _rcode(key: str, node: Node) -> Leaf:
    from nfctl.inspect.payloads.dns import RCODES

    numbers = {name.lower(): number for number, name in enumerate(RCODES)}
    own = values.words(node, numbers, 0, 15, "answer code of DNS")

    def test(packet: Packet) -> bool:
        dns = packet.dns
        return dns is not None and dns.response and dns.rcode in own

    return OfPayload(key, own, test, _may_be_dns, 10)


def _answer(key: str, node: Node) -> Leaf:
    addresses = values.addresses(node)
    families = {"A": socket.AF_INET, "AAAA": socket.AF_INET6}

    def is_here(kind: str, text: str) -> bool:
        family = families.get(kind)
        try:
            return family is not None and socket.inet_pton(family, text) in addresses
        except OSError:  # a record of a wrong length: shown otherwise
            return False

    def test(packet: Packet) -> bool:
        dns = packet.dns
        return dns is not None and any(is_here(kind, text) for _, kind, text in dns.answers)

    return OfPayload(key, addresses, test, _may_be_dns, 11)


# --- of HTTP and QUIC -----------------------------------------------------------------------------


def _method(key: str, node: Node) -> Leaf:
    own = frozenset(word.upper() for word in values.texts(node, "method", "[A-Za-z][A-Za-z0-9_-]*"))

    def test(packet: Packet) -> bool:
        http = packet.http
        return http is not None and http.method.upper() in own

    return OfPayload(key, own, test, is_tcp, 10)


def _host(key: str, node: Node) -> Leaf:
    names = Names(values.names(node, "host"))

    def test(packet: Packet) -> bool:
        http = packet.http
        return http is not None and http.host in names

    return OfPayload(key, names.words, test, is_tcp, 10)


def _path(key: str, node: Node) -> Leaf:
    texts = Texts(values.texts(node, "path", r"[*/][!-~]*", "a path begins with / or *"))

    def test(packet: Packet) -> bool:
        http = packet.http
        return http is not None and http.path in texts

    return OfPayload(key, texts.words, test, is_tcp, 10)


def _status(key: str, node: Node) -> Leaf:
    ranges = values.ranges(node, 100, 599, "status of HTTP")
    own = quick(ranges)

    def test(packet: Packet) -> bool:
        http = packet.http
        return http is not None and http.status in own

    return OfPayload(key, ranges, test, is_tcp, 10)


def _ambiguous(key: str, node: Node) -> Leaf:
    wanted = node.boolean()

    def test(packet: Packet) -> bool:
        http = packet.http
        return http is not None and http.ambiguous is wanted

    return OfPayload(key, frozenset({wanted}), test, is_tcp, 10)


def _is_udp(facts: Facts) -> bool:
    return facts.proto == at.UDP


def _quic(key: str, node: Node) -> Leaf:
    from nfctl.inspect.payloads.quic import V1, V2

    own = values.words(node, {"v1": V1, "v2": V2}, 0, 0xFFFFFFFF, "version of QUIC")

    def test(packet: Packet) -> bool:
        quic = packet.quic
        return quic is not None and quic.version in own

    return OfPayload(key, own, test, _is_udp, 12)


READ: Final[dict[str, Callable[[str, Node], Leaf]]] = {
    "dns.qname": _qname, "dns.type": _type, "dns.rcode": _rcode, "dns.answer": _answer,
    "http.method": _method, "http.host": _host, "http.path": _path, "http.status": _status,
    "http.ambiguous": _ambiguous, "quic.version": _quic,
}  # fmt: skip
