"""Packets in a line and in a record: real ones made by scapy, and whatever bytes may come."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.packet import Raw, raw

from nfctl.inspect import summary, text
from nfctl.inspect.flows import Flow
from nfctl.inspect.packet import Packet
from nfctl.inspect.payloads import dns, http
from nfctl.inspect.payloads.tls import ClientHello
from nfctl.inspect.payloads.tls import hello as read_hello
from nfctl.inspect.verdict import ACCEPT, Action, Per, Verdict
from tests.fuzz.seeds import PACKETS
from tests.unit.hello import client_hello
from tests.unit.test_inspect_fuzz import broken

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = 1_700_000_000.25  # 2023-11-14 22:13:20.250 UTC
HERE = IP(src="192.0.2.1", dst="198.51.100.7")
HERE6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
DROP = Verdict(Action.DROP, "no telnet")


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setattr(summary, "_second", (-1, ""))
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def packet(layers: Any, **more: Any) -> Packet:
    data = layers if isinstance(layers, bytes) else raw(layers)
    settings: dict[str, Any] = {"indev": "eth0", "time": NOON} | more
    return Packet(data, **settings)


def with_hello(sent: Packet, hello: ClientHello) -> Packet:
    sent.flow = Flow((6, b"", b"", 0, 0), NOON)
    sent.flow.hello = hello
    return sent


def drawn_as_written(shown: str) -> bool:
    """Whether a terminal draws each character, in its place, and obeys none."""
    return shown.isprintable() and not any(
        unicodedata.bidirectional(char) in {"R", "AL", "AN"} or unicodedata.combining(char)
        for char in shown
    )


# --- lines --------------------------------------------------------------------------------------

ANSWER = DNS(
    id=7, qr=1, qd=DNSQR(qname="www.example.com"),
    an=[
        DNSRR(rrname="www.example.com", type="CNAME", rdata="web.example.net"),
        DNSRR(rrname="web.example.net", type="A", rdata="192.0.2.80"),
    ],
)  # fmt: skip
REQUEST = b"GET /a?b=c HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
INNER = IP(src="198.51.100.7", dst="192.0.2.1") / UDP(sport=53, dport=4242) / Raw(b"question")

ENDS = "192.0.2.1 > 198.51.100.7"


def ends(sport: int, dport: int) -> str:
    return f"192.0.2.1:{sport} > 198.51.100.7:{dport}"


def tcp(flags: str | int, data: bytes = b"", sport: int = 4242, dport: int = 80) -> Any:
    return HERE / TCP(sport=sport, dport=dport, flags=flags) / Raw(data)


def udp(data: Any, sport: int = 4242, dport: int = 53) -> Any:
    return HERE / UDP(sport=sport, dport=dport) / data


def missing(rcode: int) -> Any:
    return DNS(qr=1, rcode=rcode, qd=DNSQR(qname="no.example"))


LINES = [
    (tcp("S"), f"{ends(4242, 80)} tcp 40B [SYN]"),
    (tcp("FPU"), f"{ends(4242, 80)} tcp 40B [FIN PSH URG]"),
    (tcp(0), f"{ends(4242, 80)} tcp 40B [no flags]"),
    (tcp("PA", b"\xff\xfe"), f"{ends(4242, 80)} tcp 42B [PSH ACK]"),
    (
        HERE6 / TCP(sport=4242, dport=443, flags="SA"),
        "[2001:db8::1]:4242 > [2001:db8::2]:443 tcp 60B [SYN ACK]",
    ),
    (udp(Raw(b"x"), dport=9), f"{ends(4242, 9)} udp 29B"),
    (HERE / ICMP(type=8, id=9, seq=2), f"{ENDS} icmp 28B echo request id 9 seq 2"),
    (
        HERE6 / ICMPv6EchoRequest(id=9, seq=3),
        "2001:db8::1 > 2001:db8::2 icmpv6 48B echo request id 9 seq 3",
    ),
    (
        HERE / ICMP(type=3, code=3) / INNER,
        f"{ENDS} icmp 64B port unreachable for udp 198.51.100.7:53 > 192.0.2.1:4242",
    ),
    (
        udp(DNS(qd=DNSQR(qname="WWW.example.com", qtype="AAAA"))),
        f"{ends(4242, 53)} udp 61B DNS query AAAA www.example.com",
    ),
    (
        udp(ANSWER, 53, 4242),
        f"{ends(53, 4242)} udp {{}}B DNS answer A www.example.com: CNAME web.example.net, "
        "192.0.2.80",
    ),
    (udp(missing(3), 53, 4242), f"{ends(53, 4242)} udp 56B DNS answer A no.example: NXDOMAIN"),
    (udp(missing(0), 53, 4242), f"{ends(53, 4242)} udp 56B DNS answer A no.example: no answer"),
    (tcp("PA", REQUEST), f"{ends(4242, 80)} tcp 86B HTTP GET /a?b=c www.example.com"),
    (
        tcp("PA", b"HTTP/1.1 404 Not Found\r\n\r\n", 80, 4242),
        f"{ends(80, 4242)} tcp 66B HTTP 404 Not Found",
    ),
    (
        tcp("FPA", b"HTTP/1.1 200 OK\r\n\r\n", 80, 4242),
        f"{ends(80, 4242)} tcp 59B [FIN PSH ACK] HTTP 200 OK",
    ),
    (IP(src="192.0.2.1", dst="198.51.100.7", proto=47) / Raw(b"1234"), f"{ENDS} gre 24B"),
    (IP(src="192.0.2.1", dst="198.51.100.7", proto=200) / Raw(b"1234"), f"{ENDS} 200 24B"),
    (b"\x95\x00", "no address ip 2B malformed: IP version 9"),
    (raw(HERE / UDP())[:24], f"{ENDS} udp 24B malformed: total length"),
]


@pytest.mark.parametrize(("layers", "expected"), LINES, ids=[line[1][-24:] for line in LINES])
def test_line(layers: Any, expected: str) -> None:
    """Each real packet gives exactly this line."""
    sent = packet(layers)
    expected = expected.replace("{}", str(len(sent.data)))
    assert summary.line(sent, ACCEPT) == f"22:13:20.250 eth0> {expected}"


def test_fragments() -> None:
    """The first fragment shows its ports, the others where they belong."""
    pieces = fragment(HERE / UDP(sport=4242, dport=9) / Raw(bytes(100)), 48)
    for piece in pieces:
        piece.id = 0xBEEF
    lines = [summary.line(packet(piece), ACCEPT).partition("> ")[2] for piece in pieces]
    assert lines == [
        "192.0.2.1:4242 > 198.51.100.7:9 udp 68B fragment 0xbeef at 0",
        "192.0.2.1 > 198.51.100.7 udp 68B fragment 0xbeef at 48",
        "192.0.2.1 > 198.51.100.7 udp 32B fragment 0xbeef at 96, the last",
    ]


def test_hello_is_shown_when_told() -> None:
    """A ClientHello of OpenSSL is shown with the packet that completes it, and no other."""
    data = client_hello("www.example.com", "h2", "http/1.1")
    hello = read_hello(data)
    assert isinstance(hello, ClientHello)
    sent = with_hello(packet(HERE / TCP(sport=4242, dport=443, flags="PA") / Raw(data)), hello)
    line = summary.line(sent, ACCEPT, hello=True)
    assert line.endswith(f" {len(sent.data)}B TLS ClientHello www.example.com h2,http/1.1")
    assert summary.line(sent, ACCEPT).endswith(f" {len(sent.data)}B [PSH ACK]")


def test_hello_without_a_name() -> None:
    """A ClientHello that names nobody says so."""
    sent = with_hello(packet(HERE / TCP(flags="PA") / Raw(b"x")), ClientHello(ech=True))
    assert summary.line(sent, ACCEPT, hello=True).endswith("TLS ClientHello (no name) ECH")


def test_quic() -> None:
    """A QUIC Initial shows its version and, from its flow, the name."""
    data = b"\xc0\0\0\0\1\x08" + bytes(8) + b"\0\0\x41\x00" + bytes(1200)
    sent = with_hello(packet(HERE / UDP(dport=443) / Raw(data)), ClientHello("q.example", ("h3",)))
    assert summary.line(sent, ACCEPT, hello=True).endswith("QUIC v1 Initial q.example h3")
    assert summary.line(sent, ACCEPT).endswith("QUIC v1 Initial")
    found = summary.record(sent, ACCEPT, hello=True)
    assert found["quic"] == {"version": "v1", "kind": "Initial"}
    assert found["tls"] == {"sni": "q.example", "alpn": ["h3"]}


@pytest.mark.parametrize(
    ("indev", "outdev", "expected"),
    [
        ("eth0", "", "eth0>"),
        ("", "eth1", ">eth1"),
        ("eth0", "eth1", "eth0>eth1"),
        ("", "", "FORWARD"),
        ("e\x1b[m h", "", r"e\x1b[m\x20h>"),
    ],
)
def test_where(indev: str, outdev: str, expected: str) -> None:
    """Interfaces stand for the way of a packet, the chain where there are none."""
    sent = packet(HERE / UDP(), chain="FORWARD", indev=indev, outdev=outdev)
    assert summary.parts(sent, ACCEPT).where == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict(), ""),
        (DROP, "drop by no telnet"),
        (Verdict(Action.DROP), "drop by default"),
        (Verdict(Action.ACCEPT, "dns"), "accept by dns"),
        (Verdict(mark=(1, 0xFFFFFFFF)), "accept mark 0x1"),
        (Verdict(Action.REPEAT, "r", mark=(2, 0xF)), "repeat by r mark 0x2/0xf"),
        (Verdict(Action.DROP, "r", lasts=60, per=Per.SOURCE), "drop by r for 60s per source"),
        (Verdict(Action.REJECT, "a\x1b]0;b\x07", offload=True), r"reject by a\x1b]0;b\x07 offload"),
    ],
)
def test_verdict(verdict: Verdict, expected: str) -> None:
    """A verdict is named with its rule, unless the default just accepts."""
    sent = packet(HERE / UDP())
    assert summary.parts(sent, verdict).verdict == expected
    assert summary.line(sent, verdict).endswith(f" => {expected}" if expected else " udp 28B")


def test_rewritten() -> None:
    """A packet that a handler replaced is called rewritten."""
    sent = packet(HERE / UDP())
    sent.replace(raw(HERE / UDP(dport=9)))
    assert summary.parts(sent, ACCEPT).verdict == "accept rewritten"
    assert summary.record(sent, ACCEPT)["rewritten"] is True


def test_cut_copy() -> None:
    """Of a cut copy both lengths are told."""
    data = raw(IP(src="192.0.2.1", dst="198.51.100.7", len=9000) / TCP(flags="A") / Raw(bytes(60)))
    sent = packet(data, length=9000)
    assert summary.line(sent, ACCEPT).endswith(" tcp (100 of 9000 bytes) [ACK]")
    found = summary.record(sent, ACCEPT)
    assert (found["length"], found["truncated"], found["captured"]) == (9000, True, 100)


@pytest.mark.parametrize("moment", [-1e300, 1e300, float("nan"), float("inf"), -5.5, 0.0])
def test_any_time(moment: float) -> None:
    """The clock of a capture may say anything; a line and valid JSON come out."""
    sent = packet(HERE / UDP(), time=moment)
    assert re.match(r"(\d\d:\d\d:\d\d|--:--:--)\.(\d{3}|---) ", summary.line(sent, ACCEPT))
    json.dumps(summary.record(sent, ACCEPT), allow_nan=False)


def test_ambiguous_request() -> None:
    """A request for several hosts is called ambiguous."""
    data = b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"
    sent = packet(HERE / TCP(dport=80, flags="PA") / Raw(data))
    assert summary.line(sent, ACCEPT).endswith(" (ambiguous)")
    assert summary.record(sent, ACCEPT)["http"]["ambiguous"] is True


# --- hostile text -------------------------------------------------------------------------------


def test_safe() -> None:
    """What a terminal would obey, or draw elsewhere, is written out."""
    assert text.safe("\x1b[2Ja\r\nb\x7f\x9b") == r"\x1b[2Ja\x0d\x0ab\x7f\x9b"
    assert text.safe("a\u202eb\u200b\u2066") == r"a\u202eb\u200b\u2066"
    assert text.safe("\u05d0a\u0301\u3164") == r"\u05d0a\u0301\u3164"
    assert text.safe(b"\xe4".decode("utf-8", "surrogateescape")) == r"\xe4"
    assert text.safe("bücher.日本") == "bücher.日本"
    assert text.safe("a b") == "a b"
    assert text.safe("a b", word=True) == r"a\x20b"
    assert text.safe("abcdef", 4) == "abc…"


@given(st.text(st.characters(), max_size=80), st.integers(1, 100), st.booleans())
@example("\x1b" * 60, 60, False)
@example("日" * 60, 60, True)
def test_safe_is_bounded(content: str, limit: int, word: bool) -> None:
    """Whatever the text, no more characters than the limit, all of them harmless."""
    shown = text.safe(content, limit, word=word)
    assert len(shown) <= limit
    assert drawn_as_written(shown)
    assert not (word and " " in shown)
    shown.encode()


names = st.text(st.characters(), max_size=300)
hostile = st.builds(
    lambda name, protocols, ech: ClientHello(name, tuple(protocols), name[:20], ech),
    names, st.lists(names, max_size=20), st.booleans(),
)  # fmt: skip
verdicts = st.builds(
    Verdict, st.sampled_from(Action), names, st.none() | st.just((1, 3)), offload=st.booleans()
)


def nulls(value: Any) -> bool:
    """Whether a null is anywhere in a document."""
    if isinstance(value, dict):
        return any(nulls(item) for item in value.values())
    if isinstance(value, list):
        return any(nulls(item) for item in value)
    return value is None


def check(sent: Packet, verdict: Verdict, hello: bool) -> None:
    line = summary.line(sent, verdict, hello=hello)
    assert drawn_as_written(line)
    assert text.cells(line) <= summary.LONGEST
    line.encode()
    found = summary.record(sent, verdict, hello=hello)
    written = json.dumps(found, allow_nan=False)
    assert json.loads(written) == found
    assert not nulls(found)
    json.dumps(found, ensure_ascii=False).encode()  # no surrogates


@given(st.binary(max_size=120) | broken(PACKETS), st.integers(0, 70000), verdicts, hostile, names)
def test_any_packet(
    data: bytes, length: int, verdict: Verdict, hello: ClientHello, name: str
) -> None:
    """Whatever bytes are queued, from whatever interface, there is a harmless line and JSON."""
    sent = Packet(data, max(length, len(data)) if length else 0, indev=name, chain=name[:9])
    check(with_hello(sent, hello), verdict, hello=True)
    check(sent, ACCEPT, hello=False)


@given(st.data(), names, st.text(st.characters(), max_size=9))
def test_any_payload(data: st.DataObject, name: str, word: str) -> None:
    """Even if the readers let everything through, nothing of it reaches the terminal."""
    sent = packet(HERE / TCP(dport=80, flags="PA") / Raw(b"x"))
    found = http.Http(method=word, target=name, path=name, host=name, reason=name, status=200)
    sent._http = dataclasses.replace(found, method=data.draw(st.sampled_from(["", word])))
    check(sent, ACCEPT, hello=False)
    sent = packet(HERE / UDP(dport=53) / Raw(b"x" * 12))
    response = data.draw(st.booleans())
    questions = tuple([(name, word)] * data.draw(st.integers(0, 3)))
    answers = tuple([(name, word, name)] * data.draw(st.integers(0, 6)))
    sent._dns = dns.Dns(1, response, 0, 3, False, questions, answers, False)
    check(sent, ACCEPT, hello=False)


@given(st.integers(0, 200), broken(PACKETS), verdicts)
def test_width(width: int, data: bytes, verdict: Verdict) -> None:
    """A line is never wider than it may be, and whole if it fits."""
    sent = packet(data)
    whole = summary.line(sent, verdict)
    line = summary.line(sent, verdict, width=width)
    assert text.cells(line) <= max(width, 12)  # blanks and the arrow stay
    if text.cells(whole) <= width:
        assert line == whole


def test_narrow_lines_keep_the_verdict() -> None:
    """What a packet carries is cut before its addresses and its verdict are."""
    sent = packet(HERE / TCP(sport=4242, dport=80, flags="PA") / Raw(REQUEST))
    line = summary.line(sent, DROP, width=90)
    assert text.cells(line) <= 90
    assert line.startswith("22:13:20.250 eth0> 192.0.2.1:4242 > 198.51.100.7:80 tcp 86B HTTP")
    assert line.endswith("… => drop by no telnet")


# --- records ------------------------------------------------------------------------------------


def test_record_of_tcp() -> None:
    """The fields of a TCP packet, all of them, none more: programs rely on it."""
    layers = IP(src="192.0.2.1", dst="198.51.100.7", ttl=61) / TCP(
        sport=4242, dport=80, flags="PA", seq=7, ack=8, window=512
    ) / Raw(REQUEST)  # fmt: skip
    sent = packet(layers, fwmark=5, chain="FORWARD", outdev="eth1")
    verdict = Verdict(Action.DROP, "ads", mark=(1, 3), offload=True, lasts=9, per=Per.SOURCE)
    assert summary.record(sent, verdict) == {
        "time": NOON, "chain": "FORWARD", "in": "eth0", "out": "eth1", "family": 4,
        "protocol": "tcp", "source": "192.0.2.1", "sport": 4242, "destination": "198.51.100.7",
        "dport": 80, "length": 86, "ttl": 61, "mark": 5,
        "tcp": {"flags": ["PSH", "ACK"], "seq": 7, "ack": 8, "window": 512},
        "http": {"method": "GET", "target": "/a?b=c", "path": "/a", "host": "www.example.com",
                 "version": "1.1"},
        "verdict": "drop", "by": "ads", "set_mark": {"value": 1, "mask": 3}, "offload": True,
        "lasts": 9, "per": "source",
    }  # fmt: skip


def test_record_of_dns() -> None:
    """Questions and answers of DNS, with what each record holds."""
    found = summary.record(packet(HERE / UDP(sport=53, dport=4242) / ANSWER), ACCEPT)
    assert found["dns"] == {
        "kind": "answer", "rcode": "NOERROR",
        "questions": [{"name": "www.example.com", "type": "A"}],
        "answers": [
            {"name": "www.example.com", "type": "CNAME", "data": "web.example.net"},
            {"name": "web.example.net", "type": "A", "data": "192.0.2.80"},
        ],
    }  # fmt: skip
    assert "tcp" not in found
    query = DNS(qd=DNSQR(qname="www.example.com"))
    found = summary.record(packet(HERE / UDP(dport=53) / query), ACCEPT)
    assert found["dns"] == {
        "kind": "query", "questions": [{"name": "www.example.com", "type": "A"}]
    }  # fmt: skip


def test_record_of_icmp_and_ipv6() -> None:
    """ICMP has type, code and name; there are no ports where there are none."""
    found = summary.record(packet(HERE6 / ICMPv6EchoRequest()), ACCEPT)
    assert found["icmp"] == {"type": 128, "code": 0, "name": "echo request"}
    assert (found["family"], found["source"], found["ttl"]) == (6, "2001:db8::1", 64)
    assert not {"sport", "dport", "mark", "malformed", "fragment", "truncated"} & set(found)


def test_record_of_a_hello() -> None:
    """A ClientHello has what the client said, and only that."""
    sent = with_hello(
        packet(HERE / TCP(flags="PA") / Raw(b"x")),
        ClientHello("www.example.com", ("h2",), "TLS 1.3", ech=True),
    )
    found = summary.record(sent, ACCEPT, hello=True)
    assert found["tls"] == {
        "sni": "www.example.com", "alpn": ["h2"], "version": "TLS 1.3", "ech": True
    }  # fmt: skip
    assert "tls" not in summary.record(sent, ACCEPT)


def test_record_of_a_fragment() -> None:
    """A later fragment has its place instead of ports and a payload."""
    pieces = fragment(HERE / UDP(sport=53, dport=4242) / Raw(bytes(100)), 48)
    found = summary.record(packet(pieces[1]), ACCEPT)
    assert found["fragment"] == {"id": pieces[1].id, "offset": 48, "more": True}
    assert not {"sport", "dport", "dns"} & set(found)


def test_record_of_nothing() -> None:
    """What is no IP packet has a reason, and neither family nor addresses."""
    assert summary.record(Packet(b"\xff", time=NOON), ACCEPT) == {
        "time": NOON, "chain": "INPUT", "length": 1, "malformed": "IP version 15",
        "verdict": "accept", "by": "default",
    }  # fmt: skip
