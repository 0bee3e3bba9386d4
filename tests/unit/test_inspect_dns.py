"""DNS messages as scapy writes them, and such as nobody should."""

from __future__ import annotations

import random
import socket
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRROPT, DNSRRSOA, DNSRRSRV
from scapy.packet import raw

from nfctl.inspect.payloads import dns
from tests.fuzz.seeds import DNS_MESSAGES

labels = st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)
v4 = st.ip_addresses(v=4).map(str)
#: As the C library writes them, ::ffff:192.0.2.1 among them; Python's own way has changed.
v6 = st.ip_addresses(v=6).map(lambda one: socket.inet_ntop(socket.AF_INET6, one.packed))


def records() -> st.SearchStrategy[tuple[Any, tuple[str, str, str]]]:
    """Draw records in scapy's form, and what should be read of them."""

    def of(kind: str, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
        return st.builds(
            lambda name, text: (
                DNSRR(rrname=name, type=kind, rdata=text, ttl=60),
                (name.lower(), kind, text.lower()),
            ),
            names,
            texts,
        )

    return st.one_of(
        of("A", v4),
        of("AAAA", v6),
        of("CNAME", names),
        of("NS", names),
        of("PTR", names),
        st.builds(
            lambda name, to, number: (
                DNSRRMX(rrname=name, preference=number, exchange=to),
                (name.lower(), "MX", f"{number} {to.lower()}"),
            ),
            names, names, st.integers(0, 65535),
        ),
        st.builds(
            lambda name, to, number: (
                DNSRRSRV(rrname=name, priority=number, weight=1, port=2, target=to),
                (name.lower(), "SRV", f"{number} 1 2 {to.lower()}"),
            ),
            names, names, st.integers(0, 65535),
        ),
        st.builds(
            lambda name, to: (
                DNSRRSOA(rrname=name, mname=to, rname=name),
                (name.lower(), "SOA", f"{to.lower()} {name.lower()}"),
            ),
            names, names,
        ),
        st.builds(
            lambda name, text: (
                DNSRR(rrname=name, type="TXT", rdata=[text.encode()]),
                (name.lower(), "TXT", f'"{text}"'),
            ),
            names, st.from_regex(r"[a-z =:;-]{1,100}", fullmatch=True),
        ),
    )  # fmt: skip


def cut(text: str) -> str:
    return text if len(text) <= dns.MAX_TEXT else text[: dns.MAX_TEXT - 3] + "..."


@given(
    st.integers(0, 65535),
    st.integers(0, 11),
    st.booleans(),
    names,
    st.sampled_from(["A", "AAAA", "MX", "TXT", "PTR", "HTTPS", "ALL"]),
    st.lists(records(), max_size=8),
    st.booleans(),
    st.booleans(),
)
@settings(deadline=None)
def test_what_scapy_writes(
    ident: int,
    rcode: int,
    truncated: bool,
    name: str,
    kind: str,
    answers: list[tuple[Any, tuple[str, str, str]]],
    compress: bool,
    edns: bool,
) -> None:
    """Questions and answers are read as they were written, compressed or not, with EDNS or not."""
    message = DNS(
        id=ident, qr=1, rcode=rcode, tc=truncated, qd=DNSQR(qname=name, qtype=kind),
        an=[record for record, _ in answers], ar=[DNSRROPT(rclass=4096)] if edns else [],
    )  # fmt: skip
    found = dns.read(raw(message.compress() if compress else message))
    assert found is not None
    assert (found.ident, found.response, found.opcode) == (ident, True, 0)
    assert (found.rcode, found.truncated, found.cut) == (rcode, truncated, False)
    qtype = "ANY" if kind == "ALL" else kind  # scapy has a name of its own
    assert found.questions == ((name.lower(), qtype),)
    expected = [(name, kind, cut(text)) for _, (name, kind, text) in answers]
    assert list(found.answers) == expected


def question(*parts: bytes, kind: int = 1, of_class: int = 1, tail: bytes = b"\0") -> bytes:
    """Return a query whose name has these labels."""
    name = b"".join(bytes([len(part)]) + part for part in parts) + tail
    return struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, of_class)


def answer(kind: int, data: bytes, *, name: bytes = b"\0") -> bytes:
    """Return a response of one record."""
    head = struct.pack("!6H", 1, 0x8000, 0, 1, 0, 0)
    return head + name + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (question(), (".", "A")),
        (question(b"WWW", b"Example", kind=28), ("www.example", "AAAA")),
        (question(b"a.b", b"c\\d", b"e f\x00\xff"), (r"a\.b.c\\d.e\032f\000\255", "A")),
        (question(b"x", kind=65280), ("x", "TYPE65280")),
        (question(b"x", kind=0), ("x", "TYPE0")),
        (question(b"x", of_class=0x8001), ("x", "A")),  # mDNS: an answer to me alone, please
        (question(b"\x1b[31m"), (r"\027[31m", "A")),
    ],
)
def test_names(message: bytes, expected: tuple[str, str]) -> None:
    """Names are shown as RFC 1035's master files have them, in lower case."""
    found = dns.read(message)
    assert found is not None
    assert found.questions == (expected,)
    assert found.rcode_name == "NOERROR"


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (16, b"\x03one\x04t\"o\\", r'"one" "t\"o\\"'),
        (16, b"\x09cut", '"cut"'),
        (16, b"", r"\# 0"),
        (1, b"\1\2\3", r"\# 3 010203"),
        (99, b"\x01\n", r'"\010"'),
        (257, b"\x00\x05issueca.example", '0 issue "ca.example"'),
        (65, b"\x00\x01\x00\x00\x01\x00\x03\x02h2", "1 ."),
        (15, b"\x00\x05\x02mx\x00", "5 mx"),
        (65280, b"abc", r"\# 3 616263"),
        (65280, bytes(500), r"\# 500 " + "00" * 55),
    ],
)  # fmt: skip
def test_data_of_records(kind: int, data: bytes, expected: str) -> None:
    """Records are shown as text, unknown ones as RFC 3597 has it, and none is long."""
    found = dns.read(answer(kind, data))
    assert found is not None
    [(name, _, text)] = found.answers
    assert name == "."
    if len(expected) > 100:
        assert text.startswith(expected)
        assert text.endswith("...")
        assert len(text) == dns.MAX_TEXT
    else:
        assert text == expected


LONGEST = [b"x" * 63] * 3 + [b"y" * 61]


def test_the_longest_name() -> None:
    """255 bytes are a name, 256 are none."""
    found = dns.read(question(*LONGEST))
    assert found is not None
    assert len(found.questions[0][0]) == 253
    assert dns.read(question(*LONGEST[:3], b"y" * 62)) is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        bytes(11),
        bytes(12),  # asks nothing, answers nothing
        question(b"x")[:-1],
        question(b"x", of_class=77),
        question(b"x", tail=b"\xc0\x0c"),  # points at itself
        question(tail=b"\xc0\x12") + b"\x01x\0",  # forwards, to a name
        question(b"x", tail=b"\xc0\x00"),  # at the header
        question(b"x", tail=b"\x40\0"),
        question(b"x", tail=b"\x80\0"),
        question(tail=b"\xc0\x0c"),
        question(b"x" * 64),
        b"\0\1\x18\0" + question(b"x")[4:],  # opcode 3
        b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"\x80" * 600,
        b"\xff" * 600,
    ],
)
def test_what_is_no_message(message: bytes) -> None:
    """Bytes that no resolver would read as DNS are none."""
    assert dns.read(message) is None


def test_random_bytes_are_no_message() -> None:
    """Of 20,000 random datagrams hardly one is taken for DNS."""
    chance = random.Random(1)
    taken = sum(dns.read(chance.randbytes(chance.randrange(12, 200))) is not None
                for _ in range(20_000))  # fmt: skip
    assert taken < 20


def test_messages_without_questions() -> None:
    """Answers without a question are mDNS, empty responses and DSO exist, and so do cookies."""
    found = dns.read(DNS_MESSAGES[4])
    assert found is not None
    assert (found.questions, found.answers) == ((), (("p.local", "A", "192.0.2.9"),))
    assert dns.read(struct.pack("!6H", 9, 0x8005, 0, 0, 0, 0)) is not None
    assert dns.read(struct.pack("!6H", 9, 0x3000, 0, 0, 0, 0)) is not None
    assert dns.read(raw(DNS(qd=[], ar=DNSRROPT()))) is not None
    assert dns.read(struct.pack("!6H", 9, 0, 0, 0, 0, 1)) is None


def test_every_cut() -> None:
    """Of a cut message all that is whole is read, and it is said that more should be there."""
    message = DNS_MESSAGES[2]
    full = dns.read(message)
    assert full is not None
    assert not full.cut
    counts = set()
    for size in range(len(message)):
        found = dns.read(message[:size])
        if size < 12 + 17 + 4:
            assert found is None
            continue
        assert found is not None
        assert found.questions == full.questions
        assert found.answers == full.answers[: len(found.answers)]
        assert found.cut == (len(found.answers) < len(full.answers))
        counts.add(len(found.answers))
    assert counts == set(range(7))


def test_no_more_than_anyone_reads() -> None:
    """Questions and answers beyond a bound are left out, and that is said."""
    many = DNS(qr=1, qd=DNSQR(qname="a"), an=[DNSRR(rrname="a", rdata="192.0.2.1")] * 100)
    found = dns.read(raw(many))
    assert found is not None
    assert (len(found.answers), found.cut) == (dns.MAX_ANSWERS, True)
    asked = dns.read(raw(DNS(qd=[DNSQR(qname="a")] * 30)))
    assert asked is not None
    assert (len(asked.questions), asked.cut) == (dns.MAX_QUESTIONS, True)


def test_pointers_cost_little() -> None:
    """Records whose names run through 7,000 pointers, or 126 labels, cost within 50 ms of CPU."""
    head = struct.pack("!6H", 1, 0x8000, 1, 60_000, 0, 0)
    # A question for the root, whose name is at 12, then a record of type NULL with the chain.
    first = head + b"\0\0\1\0\1" + b"\0" + struct.pack("!HHIH", 10, 1, 0, 14_000)
    begin = len(first)
    chain = b"".join(
        struct.pack("!H", 0xC000 | (begin + 2 * number - 2 if number else 12))
        for number in range(7000)
    )
    last = struct.pack("!H", 0xC000 | (begin + len(chain) - 2))
    pointers = first + chain + (last + struct.pack("!HHIH", 5, 1, 0, 2) + last) * 3000
    long = b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 0, 2) + b"\xc0\x0c"
    labels = head + b"\1a" * 126 + b"\0\0\1\0\1" + long * 4000
    for message, least in ((pointers, 1), (labels, 5)):
        start = time.thread_time()
        found = dns.read(message)
        assert time.thread_time() - start < 0.05
        assert found is not None
        assert found.cut
        assert least <= len(found.answers) < dns.MAX_ANSWERS
