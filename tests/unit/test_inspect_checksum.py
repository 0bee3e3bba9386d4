"""Checksums against scapy's, on packets of all kinds and on any bytes at all."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, in4_pseudoheader
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, in6_pseudoheader
from scapy.packet import raw
from scapy.utils import checksum as scapy_checksum

from nfctl.inspect import checksum
from nfctl.inspect.packet import Packet

words = st.integers(0, 0xFFFF)
contents = st.binary(max_size=80)
fours = st.ip_addresses(v=4).map(str)
sixes = st.ip_addresses(v=6).map(str)


@st.composite
def packets(draw: Any) -> Any:
    """Draw a packet of scapy's: IPv4 or IPv6; TCP, UDP or ICMP."""
    version = draw(st.sampled_from([4, 6]))
    if version == 4:
        head = IP(src=draw(fours), dst=draw(fours), ttl=draw(st.integers(0, 255)))
    else:
        head = IPv6(src=draw(sixes), dst=draw(sixes), fl=draw(st.integers(0, 0xFFFFF)))
    transport = draw(
        st.sampled_from(
            [
                TCP(sport=draw(words), dport=draw(words), seq=draw(words), options=[("MSS", 1460)]),
                UDP(sport=draw(words), dport=draw(words)),
                ICMP(id=draw(words)) if version == 4 else ICMPv6EchoRequest(id=draw(words)),
            ]
        )
    )
    return head / transport / draw(contents)


def partial(built: Any) -> bytes:
    """Return a packet as a kernel that leaves the checksum to the NIC has it."""
    data = bytearray(raw(built))
    head = built.__class__(raw(built))
    segment = raw(head.payload)
    if head.version == 4:
        pseudo = in4_pseudoheader(head.proto, head, len(segment))
    else:
        pseudo = in6_pseudoheader(head.nh, head, len(segment))
    at = len(data) - len(segment) + (16 if head.haslayer(TCP) else 6)
    struct.pack_into("!H", data, at, 0xFFFF - scapy_checksum(raw(pseudo)))
    return bytes(data)


@given(st.binary(max_size=200))
def test_the_internet_checksum_of_any_bytes_is_scapys(data: bytes) -> None:
    """Bytes of any length, odd ones too, have the checksum that scapy computes."""
    assert checksum.internet(data) == scapy_checksum(data)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\0" * 20, b"\xff\xff", b"\xff" * 20, b"\0\1\xff\xfe"]
)
def test_both_zeros_are_told_apart(data: bytes) -> None:
    """Only a sum over nothing but zeros is 0; any other that is a zero is 0xffff."""
    assert checksum.internet(data) == scapy_checksum(data) == (0 if any(data) else 0xFFFF)


@given(packets())
def test_a_packet_that_scapy_made_is_right(built: Any) -> None:
    """Each of its checksums is found, and found to be right."""
    data = raw(built)
    packet = Packet(data)
    assert checksum.state(packet) == checksum.WHOLE
    assert checksum.verify(packet)
    assert checksum.complete(packet) == data
    if packet.version == 4:
        assert checksum.ipv4(b"%b\xab\xcd%b" % (data[:10], data[12:20])) == IP(data).chksum


@given(packets(), st.data())
def test_a_damaged_packet_is_wrong_and_stays_so(built: Any, data: st.DataObject) -> None:
    """Another byte behind the addresses is noticed, and not made to look right."""
    packet = Packet(raw(built))
    # What follows what the packet is read by: ports, lengths.
    start = packet.headers.transport + {"tcp": 13, "udp": 8}.get(packet.protocol, 0)
    assume(start < len(packet.data))
    at = data.draw(st.integers(start, len(packet.data) - 1))
    changed = bytearray(packet.data)
    changed[at] ^= data.draw(st.integers(1, 255))
    damaged = Packet(bytes(changed))
    assert checksum.state(damaged) == checksum.WRONG
    assert not checksum.verify(damaged)
    assert checksum.complete(damaged) == damaged.data


@given(packets().filter(lambda built: built.haslayer(TCP) or built.haslayer(UDP)))
def test_what_is_left_to_the_nic_is_made(built: Any) -> None:
    """The sum of the pseudo header is known as such and becomes scapy's checksum."""
    packet = Packet(partial(built), checked=False)
    assert checksum.state(packet) == checksum.PARTIAL
    assert not checksum.verify(packet)
    assert checksum.complete(packet) == raw(built)


@pytest.mark.parametrize("family", [IP, IPv6])
def test_a_udp_checksum_of_zero_is_written_as_ones(family: Any) -> None:
    """A sum that would come out as 0, which means none, is sent as 0xffff (RFC 768)."""
    head = family() / UDP(sport=1, dport=2)
    zeros = Packet(raw(head / b"\0\0"))
    own = zeros.data[zeros.headers.transport + 6 : zeros.headers.data]
    built = raw(head / own)  # whose sum is now that of a zero
    packet = Packet(built)
    segment = built[packet.headers.transport :]
    assert family(built)[UDP].chksum == 0xFFFF
    assert checksum.transport(packet.headers.src, packet.headers.dst, 17, segment) == 0xFFFF
    assert checksum.state(packet) == checksum.WHOLE


def test_udp_over_ipv4_may_have_none() -> None:
    """0 means that the sender made none: there is nothing to be wrong."""
    packet = Packet(raw(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(chksum=0) / b"data"))
    assert checksum.state(packet) == checksum.NONE
    assert checksum.verify(packet)
    assert checksum.complete(packet) == packet.data


def test_a_wrong_ipv4_header_is_seen() -> None:
    """The IPv4 header's own checksum counts as well."""
    packet = Packet(raw(IP(src="192.0.2.1", dst="192.0.2.2", chksum=1) / UDP() / b"data"))
    assert checksum.state(packet) == checksum.WHOLE
    assert not checksum.verify(packet)


@pytest.mark.parametrize(
    "data",
    [
        raw(IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / UDP(chksum=7) / b"data"),
        raw(IP(src="192.0.2.1", dst="192.0.2.2", frag=9) / b"data"),
        raw(IP(src="192.0.2.1", dst="192.0.2.2", proto=47) / b"data"),
    ],
    ids=["first fragment", "last fragment", "GRE"],
)
def test_what_cannot_be_told_is_not_touched(data: bytes) -> None:
    """Of a fragment or another protocol nothing is said and nothing changed."""
    packet = Packet(data, checked=False)
    assert checksum.state(packet) == checksum.UNKNOWN
    assert checksum.verify(packet)
    assert checksum.complete(packet) == data


def test_a_checksum_that_is_missing_within_a_tunnel_is_not_ours() -> None:
    """A packet that is not checked, but whose UDP is whole, is left as it is."""
    data = raw(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(dport=4789) / b"tunnelled")
    packet = Packet(data, checked=False)
    assert checksum.state(packet) == checksum.UNKNOWN
    assert checksum.complete(packet) == data


@given(st.binary(max_size=80), st.sampled_from([0x45, 0x4F, 0x60, 0x00]), st.booleans())
def test_no_bytes_make_it_raise(data: bytes, first: int, checked: bool) -> None:
    """Whatever comes, there is an answer, and the packet's length stays."""
    packet = Packet(bytes([first]) + data, checked=checked)
    assert isinstance(checksum.verify(packet), bool)
    assert len(checksum.complete(packet)) == len(packet.data)
