from __future__ import annotations

import time
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from nfctl.inspect.flows import Flow
from nfctl.inspect.packet import Packet
from nfctl.inspect.payloads.tls import ClientHello
from nfctl.inspect.rules import UNKNOWN, Facts, load
from nfctl.inspect.rules.sets import Addresses, Names, Texts

V4 = IP(src="192.0.2.1", dst="198.51.100.2")
V6 = IPv6(src="2001:db8::1", dst="2001:db8:1::2")
SYN = V4 / TCP(sport=40000, dport=80, flags="S")
QUERY = V4 / UDP(sport=5000, dport=53) / DNS(rd=1, qd=DNSQR(qname="www.Example.com", qtype="A"))
GET = b"GET /old/a?b=1 HTTP/1.1\r\nHost: www.example.com:8080\r\n\r\n"
FOUND = b"HTTP/1.1 404 Not Found\r\n\r\n"
LONG_HEADER = bytes.fromhex("c0 00000001 08 0102030405060708 00 00 4050") + bytes(80)


def packet(built: Any, **more: Any) -> Packet:
    return Packet(bytes(built), **more)


def answer(code: int, address: str = "203.0.113.9") -> Any:
    kind = "AAAA" if ":" in address else "A"
    record = DNSRR(rrname="www.example.com", type=kind, rdata=address)
    question = DNSQR(qname="www.example.com", qtype=kind)
    return V4 / UDP(sport=53, dport=5000) / DNS(qr=1, rcode=code, qd=question, an=record)


def fragment(offset: int, more: bool, payload: Any = b"x" * 64) -> Any:
    return IP(src="192.0.2.1", dst="198.51.100.2", proto=17, frag=offset, flags=int(more)) / payload


def tcp(flags: str = "PA", data: bytes = b"", **fields: Any) -> Any:
    return V4 / TCP(sport=40000, dport=80, flags=flags, **fields) / data


def matches(when: str, asked: Packet) -> bool:
    rules = load(f"rules: [{{name: it, when: {when}, verdict: drop}}]", "f")
    decided = rules.decide(asked, 0.0)
    # What was worked out beforehand agrees, and so does a packet decided again.
    if not asked.malformed:
        flow = asked.flow
        hello = flow.hello if flow is not None and flow.settled else UNKNOWN
        plan = rules.plan(Facts.of(asked), hello)
        assert plan.decide(asked, 0.0) is decided
        if not asked.headers.more and not asked.headers.fragment:
            assert plan.fixed in {None, decided}
    assert rules.decide(asked, 0.0) is decided
    return decided.by == "it"


CONDITIONS: list[tuple[str, Any, Any]] = [
    ("{proto: tcp}", SYN, QUERY),
    ("{proto: [udp, 132]}", V4 / SCTP(), SYN),
    ("{proto: icmpv6}", V6 / ICMPv6EchoRequest(), V4 / ICMP()),
    ("{family: ipv6}", V6 / UDP(), V4 / UDP()),
    ("{family: [ipv4, ipv6]}", V6 / UDP(), b"\x00" * 40),
    ("{src: 192.0.2.1}", SYN, IP(src="192.0.2.2") / UDP()),
    ("{src: 192.0.2.0/24}", SYN, IP(src="192.0.3.0") / UDP()),
    ("{src: 192.0.2.0-192.0.2.1}", SYN, IP(src="192.0.2.2") / UDP()),
    ("{src: [10.0.0.0/8, '2001:db8::/64']}", V6 / UDP(), SYN),
    ("{src: '::/0'}", V6 / UDP(), SYN),
    ("{dst: 0.0.0.0/0}", SYN, V6 / UDP()),
    ("{dst: 198.51.100.2}", SYN, V6 / UDP()),
    ("{not: {dst: 198.51.100.2}}", V6 / UDP(), SYN),
    ("{sport: 40000}", SYN, QUERY),
    ("{dport: 80}", SYN, QUERY),
    ("{dport: [22, 50-60]}", QUERY, SYN),
    ("{dport: 50-}", SYN, V4 / UDP(dport=49)),
    ("{dport: 0}", V4 / UDP(sport=5, dport=0), V4 / ICMP()),
    ("{port: 5000}", QUERY, SYN),
    ("{port: 53}", QUERY, SYN),
    ("{port: 53}", answer(0), fragment(8, False)),
    ("{port: 0-65535}", V4 / SCTP(sport=1, dport=2), V4 / ICMP()),
    ("{icmp: echo-request}", V4 / ICMP(type=8), V4 / ICMP(type=0)),
    ("{icmp: echo-request}", V6 / ICMPv6EchoRequest(), V6 / UDP()),
    ("{icmp: port-unreachable}", V4 / ICMP(type=3, code=3) / SYN, V4 / ICMP(type=3, code=4) / SYN),
    ("{icmp: destination-unreachable}", V4 / ICMP(type=3, code=4) / SYN, V4 / ICMP(type=5) / SYN),
    ("{icmp: 3/4}", V4 / ICMP(type=3, code=4) / SYN, V4 / ICMP(type=3, code=3) / SYN),
    ("{icmp: [8, 0]}", V4 / ICMP(type=0), V4 / ICMP(type=13)),
    ("{ttl: 64}", IP(ttl=64) / UDP(), IP(ttl=63) / UDP()),
    ("{ttl: '< 10'}", IPv6(hlim=9) / UDP(), IPv6(hlim=10) / UDP()),
    ("{dscp: ef}", IP(tos=46 << 2) / UDP(), IP(tos=46) / UDP()),
    ("{dscp: [CS1, 0]}", IPv6(tc=8 << 2) / UDP(), IP(tos=46 << 2) / UDP()),
    ("{len: 29}", V4 / UDP() / b"x", V4 / UDP()),
    ("{len: '> 28'}", V4 / UDP() / b"x", V4 / UDP()),
    ("{len: '<= 28'}", V4 / UDP(), V4 / UDP() / b"x"),
    ("{len: 100-4294967295}", V4 / UDP() / bytes(72), V4 / UDP() / bytes(71)),
    ("{tcp.flags: syn}", SYN, tcp("SA")),
    ("{tcp.flags: syn}", tcp("SEC"), tcp("A")),
    ("{tcp.flags: 'syn,ack'}", tcp("SA"), SYN),
    ("{tcp.flags: [syn, ack]}", tcp("A"), tcp("SA")),
    ("{tcp.flags: 'syn,ack,fin,rst/syn'}", tcp("SU"), tcp("SA")),
    ("{tcp.flags: rst/rst}", tcp("RA"), tcp("A")),
    ("{tcp.flags: all/none}", tcp(""), tcp("A")),
    ("{tcp.flags: 'ack,ece'}", tcp("AE"), tcp("A")),
    ("{fragment: true}", fragment(0, True), V4 / UDP()),
    ("{fragment: true}", fragment(8, False), V6 / UDP()),
    ("{fragment: false}", V4 / UDP(), fragment(8, True)),
    ("{malformed: true}", b"\x45" + bytes(10), SYN),
    ("{malformed: false}", SYN, b"\x45" + bytes(10)),
    ("{dns.qname: www.example.com}", QUERY, SYN),
    ("{dns.qname: '*.EXAMPLE.com.'}", QUERY, V4 / UDP(dport=53) / DNS(qd=DNSQR(qname="a.com"))),
    ("{dns.qname: 'w*.ex*.com'}", answer(0), V4 / UDP(dport=53) / DNS(qd=DNSQR(qname="a.b.com"))),
    ("{dns.qname: '*'}", QUERY, V4 / UDP(sport=1, dport=2) / bytes(QUERY[UDP].payload)),
    ("{dns.type: A}", QUERY, answer(0, "2001:db8::9")),
    ("{dns.type: [aaaa, 255]}", answer(0, "2001:db8::9"), QUERY),
    ("{dns.type: 61000}", V4 / UDP(dport=53) / DNS(qd=DNSQR(qtype=61000)), QUERY),
    ("{dns.rcode: nxdomain}", answer(3), answer(0)),
    ("{dns.rcode: 0}", answer(0), QUERY),
    ("{dns.answer: 203.0.113.0/24}", answer(0), QUERY),
    ("{dns.answer: 203.0.113.0/24}", answer(0), answer(0, "192.0.2.1")),
    ("{dns.answer: '2001:db8::/32'}", answer(0, "2001:db8::9"), answer(0)),
    ("{http.method: get}", tcp(data=GET), tcp(data=FOUND)),
    ("{http.host: '*.example.com'}", tcp(data=GET), tcp(data=GET.replace(b"www.", b""))),
    ("{http.path: /old/*}", tcp(data=GET), tcp(data=GET.replace(b"old", b"OLD"))),
    ("{http.path: /old/a}", tcp(data=GET), tcp(data=GET.replace(b"/a", b"/b"))),
    ("{http.path: '/*/a'}", tcp(data=GET), tcp(data=GET.replace(b"/a", b"/ab"))),
    ("{http.status: 400-499}", tcp(data=FOUND), tcp(data=GET)),
    ("{http.ambiguous: true}", tcp(data=GET[:-2] + b"Host: b\r\n\r\n"), tcp(data=GET)),
    ("{quic.version: v1}", V4 / UDP() / LONG_HEADER, V4 / UDP() / b"hello"),
    ("{quic.version: 0x1}", V4 / UDP() / LONG_HEADER, tcp(data=LONG_HEADER)),
    ("{payload: 'S.H'}", tcp(data=b"xS\nHx"), tcp(data=b"SH")),
    ('{payload: "^\\\\xff\\\\x00$"}', V4 / UDP() / b"\xff\0", V4 / UDP() / b"\xff\0\0"),
    ("{payload: '[[a]'}", tcp(data=b"["), tcp(data=b"x")),
    ("{payload: '^$'}", tcp(data=b"\n"), SYN),
    ("{payload: {hex: 'DE ad'}}", tcp(data=b"1\xde\xad2"), tcp(data=b"\xde\0\xad")),
    ("{payload: {hex: 20}}", tcp(data=b"a b"), tcp(data=b"20")),
    ('{payload: {bytes: "\\xe9."}}', tcp(data=b"\xe9."), tcp(data=b"\xe9a")),
    ("{payload: [abc, {bytes: xyz}]}", tcp(data=b"xyz"), tcp(data=b"ab")),
    ("{payload: [abc, {bytes: xyz}]}", V4 / ICMP() / b"abc", V4 / ICMP() / b"ab"),
    ("{proto: tcp, dport: 80}", SYN, V4 / TCP(dport=81)),
    ("{any: [{dport: 80}, {proto: udp}]}", QUERY, V4 / TCP(dport=81)),
    ("{all: [{dport: 80}, {ttl: 64}], family: ipv4}", SYN, V4 / UDP()),
    ("{not: {any: [{dport: 81}, {ttl: 1}]}}", SYN, IP(ttl=1) / UDP()),
    ("{not: [{dport: 81}, {ttl: 1}]}", SYN, IP(ttl=1) / UDP()),
    ("{not: {not: {not: {payload: b}}}}", SYN, tcp(data=b"abc")),
    ("{all: {dport: 80}, not: {all: [{ttl: 64}, {len: 41}]}}", SYN, tcp(data=b"x")),
]  # fmt: skip


@pytest.mark.parametrize(("when", "yes", "no"), CONDITIONS)
def test_condition(when: str, yes: Any, no: Any) -> None:
    """Each condition holds for one packet and does not for another."""
    assert matches(when, packet(yes))
    assert not matches(when, packet(no))


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("{chain: INPUT}", {"chain": "INPUT"}, {"chain": "FORWARD"}),
        ("{chain: [INPUT, OUTPUT]}", {"chain": "OUTPUT"}, {"chain": "POSTROUTING"}),
        ("{in: eth0}", {"indev": "eth0"}, {"indev": "eth01"}),
        ("{in: eth*}", {"indev": "eth0"}, {"indev": "wlan0"}),
        ("{in: [lo, wg+]}", {"indev": "wg12"}, {"outdev": "wg12"}),
        ("{out: '*'}", {"outdev": "x"}, {"indev": "x"}),
        ("{out: 7}", {"outdev": "7"}, {"outdev": ""}),
        ("{mark: 0x10}", {"fwmark": 16}, {"fwmark": 17}),
        ("{mark: 0x10/0xf0}", {"fwmark": 0xF1F}, {"fwmark": 0x30}),
        ("{mark: [1, 2/2]}", {"fwmark": 6}, {"fwmark": 5}),
        ("{truncated: true}", {"length": 2000}, {}),
        ("{truncated: false}", {}, {"length": 2000}),
    ],
)
def test_condition_about_the_queue(when: str, yes: Any, no: Any) -> None:
    """What the kernel says of a packet, beside its bytes, decides too."""
    data = bytes(V4 / UDP() / (b"x" * 100))
    long = data[:2] + (2000).to_bytes(2, "big") + data[4:]
    for expected, more in ((True, yes), (False, no)):
        asked = Packet(long if more.get("length") else data, **more)
        assert not asked.malformed
        assert matches(when, asked) is expected


def in_flow(hello: ClientHello | None, *, settled: bool = True, proto: int = 6) -> Packet:
    made = packet(tcp() if proto == 6 else V4 / UDP())
    head = made.headers
    made.flow = Flow((proto, head.src, head.dst, head.sport, head.dport), 0.0, settled=settled)
    made.flow.hello = hello
    return made


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("{tls.sni: www.example.com}", ClientHello("www.example.com"), ClientHello("example.com")),
        ("{tls.sni: '*.example.com'}", ClientHello("a.b.example.com"), ClientHello("example.com")),
        ("{tls.sni: [a.b, '*.C']}", ClientHello("x.c"), ClientHello("x.cc")),
        ("{tls.sni: '*'}", ClientHello("x"), ClientHello("")),
        ("{not: {tls.sni: x}}", ClientHello("y"), ClientHello("x")),
        ("{not: {tls.sni: x}}", None, ClientHello("x")),
        ("{tls.alpn: h2}", ClientHello("x", ("http/1.1", "h2")), ClientHello("x", ("H2",))),
        ("{tls.alpn: 'http/*'}", ClientHello("x", ("http/1.1",)), ClientHello("x")),
        ("{tls.sni: a, tls.alpn: h2}", ClientHello("a", ("h2",)), ClientHello("a", ("h3",))),
    ],
)
@pytest.mark.parametrize("proto", [6, 17])
def test_condition_about_the_client_hello(when: str, yes: Any, no: Any, proto: int) -> None:
    """The ClientHello of a flow decides for each of its packets, whatever that carries."""
    assert matches(when, in_flow(yes, proto=proto))
    assert not matches(when, in_flow(no, proto=proto))


@pytest.mark.parametrize(
    "when", ["{tls.sni: x}", "{not: {tls.sni: x}}", "{not: {not: {tls.alpn: x}}}"]
)
def test_what_is_undecided_matches_nothing(when: str) -> None:
    """Until a flow has shown its ClientHello, conditions about it do not match, nor their not."""
    assert not matches(when, in_flow(None, settled=False))
    assert not matches(when, packet(SYN))


def test_what_is_undecided_does_not_hide_the_rest() -> None:
    """Beside an undecided condition, another one of any or all decides as ever."""
    assert matches("{any: [{tls.sni: x}, {dport: 80}]}", packet(SYN))
    assert matches("{not: {tls.sni: x, dport: 81}}", packet(SYN))
    assert not matches("{not: {any: [{tls.sni: x}, {dport: 80}]}}", packet(SYN))


def test_fragments_have_no_ports() -> None:
    """No condition about ports holds for a fragment but the first, be it IPv4's or IPv6's."""
    later = V6 / IPv6ExtHdrFragment(nh=17, offset=4, m=0) / Raw(b"x" * 40)
    of_tcp = IP(proto=6, frag=8) / Raw(bytes(40))
    for built in (fragment(8, False), later, of_tcp):
        asked = packet(built)
        assert not asked.malformed
        assert not matches("{dport: 0-65535}", asked)
        assert not matches("{tcp.flags: all/none}", asked)
        assert matches("{not: {port: 0-65535}}", asked)


def test_names_in_any_number_cost_the_same() -> None:
    """A list of 10,000 names and globs is asked by look-ups in sets, none of it one by one."""
    names = Names(
        [f"h{n}.example.com" for n in range(10000)] + [f"*.z{n}.org" for n in range(10000)]
    )
    for name in ("h77.example.com", "a.z9999.org", "b.a.z0.org"):
        assert name in names
    for name in ("h10000.example.com", "z1.org", ".".join("a" * 30000), "", "."):
        assert name not in names
    assert not names._globs


@pytest.mark.parametrize(
    ("word", "yes", "no"),
    [
        ("ab*ba", "abba", "aba"),
        ("a*b*c", "axbxbc", "axc"),
        ("*a*", "xax", "xx"),
        ("a*a*a", "aaa", "aa"),
        ("*.a*b", "x.a.b", "xa.b"),
        ("**", "x", ""),
    ],
)
def test_globs(word: str, yes: str, no: str) -> None:
    """A star stands for any characters, none of which is counted twice."""
    for kind in (Names, Texts):
        assert yes in kind([word])
        assert no not in kind([word])


def test_a_glob_is_quick_on_any_text() -> None:
    """No text makes a glob try again and again, as a regular expression would."""
    start = time.perf_counter()
    assert "a" * 65000 not in Texts(["*" + "a*" * 50 + "b"])
    assert "a" * 65000 not in Names(["*" + "a*" * 50 + "b"])
    assert time.perf_counter() - start < 1


def test_ranges_of_addresses_are_put_together() -> None:
    """Ranges of many addresses, touching and overlapping, hold what one by one would."""
    base = int.from_bytes(bytes([10, 0, 0, 0]))
    pairs = [(5, 9), (0, 4), (20, 30), (22, 25), (32, 32)]
    own = Addresses((4, base + low, base + high) for low, high in pairs)
    held = [n for n in range(40) if (base + n).to_bytes(4) in own]
    assert held == [n for n in range(40) if any(low <= n <= high for low, high in pairs)]
    assert len(own.families[4].lows) == 3
