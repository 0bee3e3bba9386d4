"""The headers of packets against scapy, which builds and dissects them by itself."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.layers.ipsec import AH
from scapy.layers.sctp import SCTP
from scapy.packet import Raw, raw

from nfctl.inspect.headers import Headers, decode
from tests.fuzz.seeds import CHAIN, FOUR, PACKETS, SIX

bytes_ = st.integers(0, 255)
words = st.integers(0, 0xFFFF)
longs = st.integers(0, 0xFFFFFFFF)
payloads = st.binary(max_size=60)
option_bytes = st.integers(0, 10).map(lambda count: b"\x01" * (4 * count))
v4_addresses = longs.map(lambda number: socket.inet_ntoa(struct.pack("!I", number)))
v6_addresses = st.binary(min_size=16, max_size=16).map(
    lambda packed: socket.inet_ntop(socket.AF_INET6, packed)
)


def tcp(sport: int, dport: int, seq: int, ack: int, flags: int, window: int, options: bytes) -> Any:
    # scapy takes options as they are only behind a header that says how long they are
    head = TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window)
    head.dataofs = 5 + len(options) // 4
    head.options = [("NOP", None)] * len(options)
    return head


transports: st.SearchStrategy[Any] = st.one_of(
    st.builds(tcp, words, words, longs, longs, st.integers(0, 255), words, option_bytes),
    st.builds(lambda sport, dport: UDP(sport=sport, dport=dport), words, words),
    st.builds(lambda sport, dport: SCTP(sport=sport, dport=dport), words, words),
)
v4_packets = st.builds(
    lambda src, dst, tos, ident, ttl, df, options, transport, data: (
        IP(src=src, dst=dst, tos=tos, id=ident, ttl=ttl, flags="DF" if df else 0, options=options)
        / transport
        / Raw(data)
    ),
    v4_addresses, v4_addresses, bytes_, words, bytes_, st.booleans(), option_bytes,
    transports | st.builds(lambda kind, code: ICMP(type=kind, code=code), st.just(8), bytes_),
    payloads,
)  # fmt: skip
extensions = st.lists(
    st.one_of(
        st.builds(
            lambda count: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * count)]),
            st.integers(0, 40),
        ),
        st.builds(
            lambda count: IPv6ExtHdrRouting(addresses=["2001:db8::9"] * count), st.integers(0, 3)
        ),
        st.builds(lambda ident: IPv6ExtHdrFragment(id=ident), longs),
    ),
    max_size=6,
)


def chained(base: Any, first: bool, extensions: list[Any], transport: Any, data: bytes) -> Any:
    packet = base / IPv6ExtHdrHopByHop() if first else base
    for extension in extensions:
        packet = packet / extension
    return packet / transport / Raw(data)


v6_packets = st.builds(
    chained,
    st.builds(
        lambda src, dst, tc, flow, hops: IPv6(src=src, dst=dst, tc=tc, fl=flow, hlim=hops),
        v6_addresses, v6_addresses, bytes_, st.integers(0, 0xFFFFF), bytes_,
    ),
    st.booleans(),
    extensions,
    transports | st.builds(ICMPv6EchoRequest),
    payloads,
)  # fmt: skip


def whole(packet: Any) -> tuple[Headers, bytes]:
    data = packet if isinstance(packet, bytes) else raw(packet)
    return decode(data, len(data)), data


def same_transport(head: Headers, read: Any, data: bytes) -> None:
    """Hold the transport header against scapy's reading of the same bytes."""
    assert head.malformed == ""
    for kind, number in ((TCP, 6), (UDP, 17), (SCTP, 132), (ICMP, 1), (ICMPv6EchoRequest, 58)):
        if kind in read:
            layer = read[kind]
            assert head.proto == number
            assert data[head.transport :].startswith(raw(layer)[:4])
            assert head.transport == len(data) - len(layer.original)
            break
    else:
        pytest.fail(f"scapy sees no transport header in {read!r}")
    assert (head.sport, head.dport) == (
        (layer.sport, layer.dport) if number in {6, 17, 132} else (0, 0)
    )
    if number == 6:
        assert (head.seq, head.ack, head.window) == (layer.seq, layer.ack, layer.window)
        assert head.flags == int(layer.flags) & 0xFF
        assert head.data == head.transport + 4 * layer.dataofs
    else:
        assert (head.seq, head.ack, head.window, head.flags) == (0, 0, 0, 0)
    if number in {6, 17}:
        assert data[head.data : head.end] == raw(layer.payload)
    else:
        assert head.data == head.transport
    assert head.icmp == ((layer.type, layer.code) if number in {1, 58} else None)


@given(v4_packets, st.binary(max_size=20))
@settings(deadline=None)
def test_ipv4(packet: Any, padding: bytes) -> None:
    """Every field of an IPv4 packet is what scapy reads, options or not, and padding is no data."""
    data = raw(packet)
    read = IP(data)
    head = decode(data + padding, len(data) + len(padding))
    assert (head.version, head.tos, head.ttl, head.ident) == (4, read.tos, read.ttl, read.id)
    assert head.src == socket.inet_aton(read.src)
    assert head.dst == socket.inet_aton(read.dst)
    assert (head.fragment, head.more, head.extensions) == (0, False, ())
    assert (head.length, head.truncated) == (len(data + padding), False)
    assert head.end == len(data)
    same_transport(head, read, data)


@given(v6_packets, st.binary(max_size=20))
@settings(deadline=None)
def test_ipv6(packet: Any, padding: bytes) -> None:
    """Every field of an IPv6 packet is what scapy reads, behind up to seven extension headers."""
    data = raw(packet)
    read = IPv6(data)
    head = decode(data + padding, len(data) + len(padding))
    assert (head.version, head.tos, head.ttl) == (6, read.tc, read.hlim)
    assert head.src == socket.inet_pton(socket.AF_INET6, read.src)
    assert head.dst == socket.inet_pton(socket.AF_INET6, read.dst)
    numbers = {
        IPv6ExtHdrHopByHop: 0, IPv6ExtHdrRouting: 43, IPv6ExtHdrFragment: 44,
        IPv6ExtHdrDestOpt: 60,
    }  # fmt: skip
    seen = [numbers[type(layer)] for layer in read.iterpayloads() if type(layer) in numbers]
    assert list(head.extensions) == seen
    idents = [layer.id for layer in read.iterpayloads() if isinstance(layer, IPv6ExtHdrFragment)]
    assert head.ident == (idents[-1] if idents else 0)
    assert head.end == len(data)
    same_transport(head, read, data)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", [UDP(sport=7, dport=8), TCP(sport=7, dport=8)])
@given(st.binary(min_size=1, max_size=4000), st.sampled_from([576, 1280, 1500]))
@settings(deadline=None, max_examples=30)
def test_fragments(version: int, transport: Any, data: bytes, size: int) -> None:
    """The fragments that scapy makes lie side by side, and only the first of them has ports."""
    if version == 4:
        pieces = fragment(IP(id=5) / transport / Raw(data), size // 8 * 8)
        sent = raw(IP() / transport / Raw(data))[20:]
    else:
        size = max(size, 1280)
        pieces = fragment6(SIX / IPv6ExtHdrFragment(id=5) / transport / Raw(data), size)
        sent = raw(SIX / transport / Raw(data))[40:]
    at = 0
    for number, piece in enumerate(pieces):
        head, packet = whole(piece)
        assert (head.malformed, head.proto) == ("", transport.fields.get("proto", head.proto))
        assert head.fragment == at
        assert head.more == (number < len(pieces) - 1)
        assert (head.sport, head.dport) == ((0, 0) if number else (7, 8))
        if len(pieces) > 1:
            assert head.ident == 5
        carried = packet[head.transport : head.end]
        if version == 4:  # scapy computes a checksum for what it cuts, with other addresses
            assert len(carried) == len(sent[at : at + len(carried)])
        else:
            assert carried == sent[at : at + len(carried)]
        if number:
            assert head.data == head.transport
        at += len(carried)
    assert at == len(sent)


@pytest.mark.parametrize("packet", PACKETS)
def test_every_cut(packet: bytes) -> None:
    """A cut copy is truncated; it is malformed only where its headers are cut, and says that."""
    full = decode(packet, len(packet))
    assert (full.malformed, full.truncated) == ("", False)
    # ICMP, SCTP and DCCP have headers, too, which are not left out of the data.
    least = {1: 8, 58: 8, 132: 12, 33: 12}.get(full.proto, 0)
    needed = full.data + (0 if full.fragment else least)
    for size in range(len(packet)):
        cut = decode(packet[:size], len(packet))
        assert (cut.truncated, cut.length) == (True, len(packet))
        if size >= needed:
            assert cut.malformed == ""
            assert cut.end == min(full.end, size)
            for name in set(Headers.__slots__) - {"end", "truncated"}:
                assert getattr(cut, name) == getattr(full, name), name
        elif size:
            assert cut.malformed.startswith("cut inside the "), size
        if size >= full.transport + 4:
            assert (cut.sport, cut.dport) == (full.sport, full.dport)


def ipv4(body: bytes, *, proto: int = 6, total: int | None = None, **fields: Any) -> bytes:
    """Return an IPv4 packet whose length may be a lie."""
    length = 20 + len(body) if total is None else total
    header: bytes = raw(IP(proto=proto, len=length, **fields))
    return header + body


def ipv6(body: bytes, *, following: int = 6, payload: int | None = None) -> bytes:
    length = len(body) if payload is None else payload
    header: bytes = raw(IPv6(nh=following, plen=length))
    return header + body


TCP_HEADER = raw(TCP(sport=1, dport=2, chksum=0))
UDP_HEADER = raw(UDP(sport=1, dport=2, chksum=0, len=8))
DEST = b"\x3c\0\1\4\0\0\0\0"  # destination options, then more of them
FIRST: dict[str, Any] = {"flags": "MF", "frag": 0}


def fragment_header(following: int, offset: int, more: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset | more, 5)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "empty"),
        (b"\x50" + bytes(60), "IP version 5"),
        (b"\x00", "IP version 0"),
        (b"\x45", "IPv4 header length"),
        (b"\x60" + bytes(38), "IPv6 header length"),
        (b"\x44" + ipv4(TCP_HEADER)[1:], "IPv4 header length"),
        (b"\x4f" + ipv4(TCP_HEADER)[1:], "IPv4 header length"),
        (ipv4(TCP_HEADER, total=19), "total length"),
        (ipv4(TCP_HEADER, total=0), "total length"),
        (ipv4(TCP_HEADER, total=41), "total length"),
        (ipv6(TCP_HEADER, payload=21), "total length"),
        (ipv4(TCP_HEADER, total=39), "short TCP header"),
        (ipv6(TCP_HEADER, payload=0), "short TCP header"),
        (ipv4(b"", proto=17), "short UDP header"),
        (ipv4(b"1234567", proto=1), "short ICMP header"),
        (ipv6(b"1234567", following=58), "short ICMPv6 header"),
        (ipv4(b"12345678901", proto=132), "short SCTP header"),
        (ipv4(b"12345678901", proto=33), "short DCCP header"),
        (ipv4(b"1234567", proto=136), "short UDP-Lite header"),
        (ipv4(raw(TCP(dataofs=4))), "TCP data offset"),
        (ipv4(raw(TCP(dataofs=6))), "TCP data offset"),
        (ipv6(raw(TCP(dataofs=0))), "TCP data offset"),
        (ipv4(raw(UDP(len=7)), proto=17), "UDP length"),
        (ipv4(raw(UDP(len=9)), proto=17), "UDP length"),
        (ipv4(raw(UDP(len=0)), proto=17), "UDP length"),
        (ipv6(raw(UDP(len=0)), following=17), "UDP length"),
        (ipv4(b"\0\1\0\2\0\x07\0\0", proto=136), "UDP-Lite coverage"),
        (ipv4(b"\0\1\0\2\0\x09\0\0", proto=136), "UDP-Lite coverage"),
        (ipv6(DEST * 16 + TCP_HEADER, following=60), "extension headers"),
        (ipv6(DEST, following=60), "extension headers"),
        (ipv6(b"\x06\x01" + TCP_HEADER[:6], following=60), "extension headers"),
        (  # hop-by-hop options, but not first
            ipv6(b"\0" + DEST[1:] + b"\x06" + DEST[1:] + TCP_HEADER, following=60),
            "extension headers",
        ),
        (  # RFC 2675: a jumbo payload that is none
            ipv6(b"\x06\0\xc2\4" + struct.pack("!I", 28) + TCP_HEADER, following=0, payload=0),
            "extension headers",
        ),
        (ipv6(b"\x06\0\1\4\0\0\0\0" + TCP_HEADER, following=0, payload=0), "extension headers"),
        (ipv4(TCP_HEADER[:16], **FIRST), "tiny fragment"),
        (ipv4(raw(TCP(dataofs=10)), **FIRST), "tiny fragment"),
        (ipv4(TCP_HEADER[:4], proto=17, **FIRST), "tiny fragment"),
        (ipv4(TCP_HEADER, frag=1), "tiny fragment"),
        (ipv6(fragment_header(6, 0, 1) + TCP_HEADER[:16], following=44), "tiny fragment"),
        (ipv6(fragment_header(60, 0, 1), following=44), "tiny fragment"),
        (ipv6(fragment_header(6, 8, 0) + TCP_HEADER, following=44), "tiny fragment"),
        (ipv6(fragment_header(17, 0, 1) + UDP_HEADER + b"1", following=44), "fragment length"),
        (ipv4(b"x" * 9, proto=17, frag=8189), "fragment beyond 65535"),
        (ipv6(fragment_header(17, 65528, 0) + b"x" * 8, following=44), "fragment beyond 65535"),
    ],
)  # fmt: skip
def test_what_cannot_be(packet: bytes, reason: str) -> None:
    """Each structure that is impossible is named, and offsets stay inside the packet."""
    head = decode(packet, len(packet))
    assert head.malformed == reason
    assert 0 <= head.transport <= head.data <= head.end <= len(packet)


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(b"x" * 3, proto=17, frag=8189),
        ipv6(fragment_header(17, 65528, 0) + b"x" * 7, following=44),
        ipv6(DEST * 15 + b"\x06" + DEST[1:] + TCP_HEADER, following=60),
        ipv4(TCP_HEADER + b"1234", **FIRST),
        ipv4(raw(UDP(len=4000)), proto=17, **FIRST),
        ipv4(b"\0\1\0\2\0\0\0\0", proto=136),
        ipv6(b"", following=59),
        ipv4(b"", proto=50),
    ],
)
def test_what_just_can_be(packet: bytes) -> None:
    """What lies just inside the bounds is in order."""
    assert decode(packet, len(packet)).malformed == ""


def test_udp_ends_before_ip_does() -> None:
    """Bytes behind UDP's own length are no data of the datagram."""
    head, packet = whole(ipv4(raw(UDP(sport=1, dport=2, len=10)) + b"datasurplus", proto=17))
    assert (head.malformed, packet[head.data : head.end]) == ("", b"da")


@pytest.mark.parametrize("number", [43, 60, 135, 139, 140])
def test_extension_headers_that_scapy_does_not_know(number: int) -> None:
    """Routing, destination options, mobility, HIP and shim6 are walked by their length."""
    body = bytes([6, 1]) + bytes(14) + TCP_HEADER
    head, _ = whole(ipv6(body, following=number))
    assert (head.malformed, head.extensions, head.proto) == ("", (number,), 6)
    assert (head.sport, head.dport, head.transport) == (1, 2, 56)


@pytest.mark.parametrize("icv", [b"", b"i" * 12, b"i" * 20, b"i" * 1000])
def test_authentication_header(icv: bytes) -> None:
    """AH counts its length in 4 bytes; behind IPv4 it is the protocol, as it is for iptables."""
    header = AH(nh=17, payloadlen=1 + len(icv) // 4, icv=icv)
    head, packet = whole(SIX / header / UDP(sport=1, dport=2) / Raw(b"data"))
    assert (head.malformed, head.extensions, head.proto) == ("", (51,), 17)
    assert (head.sport, head.dport, packet[head.data : head.end]) == (1, 2, b"data")
    head, packet = whole(FOUR / header / UDP(sport=1, dport=2) / Raw(b"data"))
    assert (head.malformed, head.extensions, head.proto) == ("", (), 51)
    assert (head.sport, head.data, head.end) == (0, 20, len(packet))


@pytest.mark.parametrize("last", [50, 59, 47, 255])
def test_what_ends_the_walk(last: int) -> None:
    """ESP, no next header and unknown protocols hide what follows; it counts as data."""
    head, packet = whole(ipv6(bytes([last]) + DEST[1:] + b"hidden", following=60))
    assert (head.malformed, head.proto, head.extensions) == ("", last, (60,))
    assert packet[head.data : head.end] == b"hidden"


def test_a_later_fragment_hides_its_headers() -> None:
    """What is behind an extension header in a later fragment is not known."""
    head, _ = whole(ipv6(fragment_header(60, 64, 0) + DEST, following=44))
    assert (head.malformed, head.proto, head.fragment, head.ident) == ("", -1, 64, 5)
    assert (head.transport, head.data, head.end) == (48, 48, 56)


def test_larger_than_65535() -> None:
    """BIG TCP says no length; what is decoded is the packet's own. A copy of it is cut as usual."""
    big = TCP_HEADER + b"x" * 100_000
    for packet in (ipv4(big, total=0), ipv6(big, payload=0)):
        for size in (len(packet), 4016):
            head = decode(packet[:size], len(packet))
            assert (head.malformed, head.sport, head.end) == ("", 1, size)
            assert head.truncated == (size < len(packet))


def test_jumbograms() -> None:
    """RFC 2675: the length is an option; UDP's own is 0; one that is a lie is an error."""
    for padding in (b"", b"\1\2\0\0\1\0\0\0"):
        for body, following in ((TCP_HEADER, 6), (raw(UDP(sport=1, dport=2, len=0)), 17)):
            options = b"\xc2\4" if not padding else padding + b"\xc2\4"
            hop = bytes([following, (len(options) + 6) // 8 - 1]) + options
            jumbo = len(hop) + 4 + len(body) + 70_000
            packet = ipv6(
                hop + struct.pack("!I", jumbo) + body + b"x" * 70_000, following=0, payload=0
            )
            head, _ = whole(packet + b"padding")
            assert (head.malformed, head.sport, head.dport) == ("", 1, 2)
            assert (head.extensions, head.end) == ((0,), len(packet))
            assert decode(packet[:-1], len(packet) - 1).malformed == "total length"


def test_length_is_never_less_than_the_bytes_there_are() -> None:
    """A length that is too short, as captures may hold, counts for nothing."""
    packet = raw(FOUR / TCP() / Raw(b"data"))
    head = decode(packet, 3)
    assert (head.length, head.truncated, head.malformed) == (len(packet), False, "")


def test_icmp_of_the_other_version() -> None:
    """ICMP's type and code are told only for the version it belongs to."""
    assert whole(ipv4(bytes(8), proto=58))[0].icmp is None
    assert whole(ipv6(bytes(8), following=1))[0].icmp is None


def test_a_chain_of_all_headers() -> None:
    """The seeds' longest chain is decoded to its end."""
    head, packet = whole(CHAIN / TCP(sport=3, dport=4) / Raw(b"end"))
    assert head.extensions == (0, 43, 44, 51, 60)
    assert (head.malformed, head.ident, packet[head.data : head.end]) == ("", 7, b"end")
