"""What is worked out beforehand is what asking every condition of every rule would answer."""

from __future__ import annotations

import fnmatch
import ipaddress
import json
import re
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from nfctl.inspect.flows import Flow
from nfctl.inspect.packet import Packet
from nfctl.inspect.payloads.tls import ClientHello
from nfctl.inspect.rules import UNKNOWN, Facts, load

ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.1.1", "192.0.2.1", "2001:db8::1", "2001:db8:1::1"]
SETS = [*ADDRESSES, "10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/64", "::/0"]
PORTS = [0, 22, 53, 80, 8000, 8001, 65535]
PORT_SETS: list[Any] = [22, 53, "0-79", "80-8000", "8001-", "1-65535", [22, 80]]
NAMES = ["a.example", "b.a.example", "example", "b.org"]
GLOBS = ["*.example", "a.*", "*", "*.a.example", *NAMES]
PAYLOADS = [b"", b"ab", b"GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n", b"GET /y HTTP/1.1\r\n\r\n"]

leaf = st.one_of(
    st.fixed_dictionaries({"src": st.sampled_from(SETS)}),
    st.fixed_dictionaries({"dst": st.lists(st.sampled_from(SETS), min_size=1, max_size=3)}),
    st.fixed_dictionaries({"sport": st.sampled_from(PORT_SETS)}),
    st.fixed_dictionaries({"dport": st.sampled_from(PORT_SETS)}),
    st.fixed_dictionaries({"port": st.sampled_from(PORT_SETS)}),
    st.fixed_dictionaries({"proto": st.sampled_from(["tcp", "udp", "icmp", ["tcp", "udp"]])}),
    st.fixed_dictionaries({"family": st.sampled_from(["ipv4", "ipv6"])}),
    st.fixed_dictionaries({"chain": st.sampled_from(["INPUT", "OUTPUT"])}),
    st.fixed_dictionaries({"ttl": st.sampled_from([64, "< 64", "1-64"])}),
    st.fixed_dictionaries({"tcp.flags": st.sampled_from(["syn", "syn,ack", "ack/ack"])}),
    st.fixed_dictionaries({"fragment": st.booleans()}),
    st.fixed_dictionaries({"malformed": st.booleans()}),
    st.fixed_dictionaries({"tls.sni": st.lists(st.sampled_from(GLOBS), min_size=1, max_size=2)}),
    st.fixed_dictionaries({"tls.alpn": st.sampled_from(["h2", "h*"])}),
    st.fixed_dictionaries({"dns.qname": st.sampled_from(GLOBS)}),
    st.fixed_dictionaries({"http.host": st.sampled_from(GLOBS)}),
    st.fixed_dictionaries({"payload": st.sampled_from(["a", "^G", {"hex": "6162"}])}),
)


def groups(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.fixed_dictionaries({"all": several}),
        st.fixed_dictionaries({"any": several}),
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"not": several}),
    )


trees = st.recursive(leaf, groups, max_leaves=6)
rules: st.SearchStrategy[list[Any]] = st.lists(trees | st.just({}), max_size=5)


@cache
def build(
    proto: str, src: str, dst: str, sport: int, dport: int, data: bytes, ttl: int, flags: str
) -> bytes:
    layers: Any = IPv6(src=src, dst=dst, hlim=ttl) if ":" in src else IP(src=src, dst=dst, ttl=ttl)
    if proto == "tcp":
        layers /= TCP(sport=sport, dport=dport, flags=flags)
    elif proto == "udp":
        layers /= UDP(sport=sport, dport=dport)
    else:
        layers /= ICMP()
    if proto == "udp" and data.startswith(b"GET"):
        return bytes(layers / DNS(qd=DNSQR(qname="b.a.example")))
    return bytes(layers / data)


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    src = draw(st.sampled_from(ADDRESSES))
    family = [address for address in ADDRESSES if (":" in address) is (":" in src)]
    proto = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    data = build(
        proto, src, draw(st.sampled_from(family)), draw(st.sampled_from(PORTS)),
        draw(st.sampled_from(PORTS)), draw(st.sampled_from(PAYLOADS)),
        draw(st.sampled_from([63, 64])), draw(st.sampled_from(["S", "SA", "A"])),
    )  # fmt: skip
    shape = draw(st.sampled_from(["whole", "whole", "whole", "first", "later", "malformed"]))
    if data[0] == 0x45 and shape in {"first", "later"}:
        data = data[:6] + (b"\x20\x00" if shape == "first" else b"\x00\x10") + data[8:]
    elif shape == "malformed":
        data = data[:24]
    made = Packet(data, chain=draw(st.sampled_from(["INPUT", "OUTPUT"])))
    head = made.headers
    if not head.malformed and not head.fragment and draw(st.booleans()):
        flow = Flow((head.proto, head.src, head.dst, head.sport, head.dport), 0.0)
        flow.settled = head.proto not in {6, 17} or draw(st.booleans())
        if flow.settled and head.proto in {6, 17} and draw(st.booleans()):
            name = draw(st.sampled_from([*NAMES, ""]))
            flow.hello = ClientHello(name, draw(st.sampled_from([(), ("h2",), ("x", "h3")])))
        made.flow = flow
    return made


# --- the naive way --------------------------------------------------------------------------------


def name_is(name: str, wanted: Any) -> bool:
    words = wanted if isinstance(wanted, list) else [wanted]
    return bool(name) and any(fnmatch.fnmatchcase(name.lower(), word) for word in words)


def number_is(number: int, wanted: Any, least: int) -> bool:
    for word in wanted if isinstance(wanted, list) else [wanted]:
        text = str(word)
        if text.startswith("<"):
            low, high = least, int(text[1:]) - 1
        else:
            first, dash, last = text.partition("-")
            low, high = int(first), int(last) if last else 65535 if dash else int(first)
        if low <= number <= high:
            return True
    return False


def address_is(packed: bytes, wanted: Any) -> bool:
    if not packed:
        return False
    address = ipaddress.ip_address(packed)
    words = wanted if isinstance(wanted, list) else [wanted]
    return any(address in ipaddress.ip_network(word) for word in words)


def holds(key: str, wanted: Any, packet: Packet) -> bool | None:
    """One condition: true, false, or None if it is undecided."""
    head = packet.headers
    carried = packet.payload
    ported = head.proto in {6, 17} and (head.sport, head.dport) != (0, 0)
    hello = packet.flow.hello if packet.flow is not None else None
    if key.startswith("tls."):
        settled = packet.flow.settled if packet.flow is not None else head.proto not in {6, 17}
        if (hello is None and not settled) or packet.malformed:
            return None
        if hello is None:
            return False
        if key == "tls.sni":
            return name_is(hello.sni, wanted)
        return any(fnmatch.fnmatchcase(one, wanted) for one in hello.alpn)
    if key == "payload":
        pattern = b"ab" if isinstance(wanted, dict) else wanted.encode()
        return bool(carried) and re.search(pattern, carried, re.DOTALL) is not None
    if key == "dns.qname":
        return packet.dns is not None and any(name_is(n, wanted) for n, _ in packet.dns.questions)
    if key == "http.host":
        return packet.http is not None and name_is(packet.http.host, wanted)
    if key == "tcp.flags":
        masks = {"syn": (63, 2), "syn,ack": (63, 18), "ack/ack": (16, 16)}
        mask, value = masks[wanted]
        return head.proto == 6 and not head.fragment and head.flags & mask == value
    protos = [wanted] if isinstance(wanted, str) else wanted
    if key in {"src", "dst"}:
        return address_is(head.src if key == "src" else head.dst, wanted)
    if key in {"sport", "dport", "port"}:
        asked = {"sport": [head.sport], "dport": [head.dport]}.get(key, [head.sport, head.dport])
        return ported and any(number_is(number, wanted, 0) for number in asked)
    if key == "proto":
        return {6: "tcp", 17: "udp", 1: "icmp"}.get(head.proto) in protos
    if key == "family":
        return bool(wanted == f"ipv{head.version}")
    if key == "chain":
        return bool(packet.chain == wanted)
    if key == "ttl":
        return number_is(head.ttl, wanted, 0)
    if key == "fragment":
        return bool((head.more or head.fragment > 0) == wanted)
    assert key == "malformed"
    return bool(head.malformed) is wanted


def truth(when: Any, packet: Packet) -> bool | None:
    found: list[bool | None] = []
    for key, value in when.items():
        parts = value if isinstance(value, list) else [value]
        if key == "all":
            found += [truth(part, packet) for part in parts]
        elif key == "any":
            found.append(either([truth(part, packet) for part in parts]))
        elif key == "not":
            inner = either([truth(part, packet) for part in parts])
            found.append(None if inner is None else not inner)
        else:
            found.append(holds(key, value, packet))
    return False if False in found else None if None in found else True


def either(found: list[bool | None]) -> bool | None:
    return True if True in found else None if None in found else False


def for_malformed(when: Any, positive: bool = True) -> bool:
    for key, value in when.items():
        parts = value if isinstance(value, list) else [value]
        if key == "malformed" and value is positive:
            return True
        if key in {"all", "any", "not"} and any(
            for_malformed(part, positive is not (key == "not")) for part in parts
        ):
            return True
    return False


def naive(whens: list[Any], packet: Packet) -> str:
    for number, when in enumerate(whens, 1):
        if packet.malformed and not for_malformed(when):
            continue
        if truth(when, packet) is True:
            return f"rule {number}"
    return "malformed" if packet.malformed else "default"


@settings(max_examples=400, deadline=None)
@given(rules, st.lists(packets(), min_size=1, max_size=6))
def test_plans_answer_as_the_rules_say(whens: list[Any], asked: list[Packet]) -> None:
    """Plan and decide, for packets that share plans, answer what a naive reading does."""
    text = {"default": "drop", "rules": [{"when": when, "verdict": "drop"} for when in whens]}
    own = load(json.dumps(text), "f")
    for packet in asked:
        expected = naive(whens, packet)
        assert own.decide(packet, 0.0).by == expected
        if packet.malformed:
            continue
        flow = packet.flow
        settled = flow is not None and flow.settled
        hello = flow.hello if flow is not None and settled else UNKNOWN
        plan = own.plan(Facts.of(packet), hello)
        assert plan.decide(packet, 0.0).by == expected
        # A plan made before the ClientHello was there gives the same answer.
        assert own.plan(Facts.of(packet), UNKNOWN).decide(packet, 0.0).by == expected
        if plan.fixed is not None and not packet.headers.more and not packet.headers.fragment:
            assert plan.fixed.by == expected


@settings(max_examples=200, deadline=None)
@given(rules, packets(), st.sampled_from(PAYLOADS), st.sampled_from(NAMES))
def test_what_is_fixed_stays(whens: list[Any], first: Packet, data: bytes, name: str) -> None:
    """A fixed verdict is that of every packet of the flow, also once its ClientHello is known."""
    text = {"rules": [{"when": when, "verdict": "drop"} for when in whens]}
    own = load(json.dumps(text), "f")
    head = first.headers
    if first.malformed or head.fragment or head.more or head.proto not in {6, 17}:
        return
    flow = first.flow
    hello = flow.hello if flow is not None and flow.settled else UNKNOWN
    fixed = own.plan(Facts.of(first), hello).fixed
    if fixed is None:
        return
    proto = "tcp" if head.proto == 6 else "udp"
    later = build(
        proto, str(first.source), str(first.destination), head.sport, head.dport, data, 3, "A"
    )
    packet = Packet(later, chain=first.chain)
    packet.flow = Flow((head.proto, head.src, head.dst, head.sport, head.dport), 0.0, settled=True)
    packet.flow.hello = ClientHello(name) if flow is None or not flow.settled else flow.hello
    assert own.decide(packet, 0.0) is fixed
    assert naive(whens, packet) == fixed.by
