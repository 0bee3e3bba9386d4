"""The first packet of a flow, made anew from what conntrack remembers of it: its tuple.

What else there was about it is not known, so it gets what is usual: a TCP SYN as Linux sends it,
a UDP datagram of one byte, an SCTP INIT, an ICMP query, TTL 64. Rules that look at such things
are dealt with in :mod:`nfctl.control.flush.worlds`.

Checksums of TCP, UDP and IPv4's ICMP are wrong on purpose. Conntrack is told not to look at
them (nf_conntrack_checksum), NAT keeps them wrong, and the copy's own TCP, UDP and ICMP throw
the packet away without an answer: a RST would make conntrack forget the flow at once.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nfctl.kernel.flows import ICMP, ICMPV6, TCP, UDP, WITH_PORTS

if TYPE_CHECKING:
    from nfctl.kernel.flows import Tuple

DCCP, GRE, SCTP, UDPLITE = 33, 47, 132, 136

_TTL = 64
_DONT_FRAGMENT = 0x4000
_IPV4 = struct.Struct(">BBHHHBBH4s4s")
_IPV6 = struct.Struct(">IHBB16s16s")
_TCP = struct.Struct(">HHIIBBHHH")
_UDP = struct.Struct(">HHHH")
_ICMP = struct.Struct(">BBHHH")
_INIT = struct.Struct(">HHIIBBHIIHHI")
_REQUEST = struct.Struct(">HHBBHBBHII")  # DCCP, RFC 4340, section 5
# MSS 1460, SACK permitted, a timestamp, no-operation, window scale 7
_OPTIONS = bytes.fromhex("020405b4 0402 080a 00000001 00000000 01 030307")
_WRONG = 0x5555

#: The types of ICMP messages that begin a flow: echo, timestamp, information, address mask.
_QUERIES: Final = {ICMP: {8, 13, 15, 17}, ICMPV6: {128, 139}}


def first(flow: Tuple) -> bytes | None:
    """Return the flow's first packet, from the IP header on; None for what begins no flow."""
    protocol = flow.protocol
    if protocol == TCP:
        body = _TCP.pack(flow.sport, flow.dport, 1, 0, 10 << 4, 2, 64240, 0, 0) + _OPTIONS
        body = _mark(body, 16, _sum(body, flow) ^ _WRONG)
    elif protocol in {UDP, UDPLITE}:
        covered = 9 if protocol == UDP else 8
        body = _UDP.pack(flow.sport, flow.dport, covered, 0) + b"\0"
        body = _mark(body, 6, (_sum(body, flow) ^ _WRONG) or 1)
    elif protocol in _QUERIES:
        if flow.kind not in _QUERIES[protocol] or (protocol == ICMPV6) == (flow.family == 4):
            return None
        body = _ICMP.pack(flow.kind, flow.code, 0, flow.identifier, 1) + bytes(56)
        # ICMPv6's raw sockets, which see what arrives, want a good one.
        good = _sum(body, flow if protocol == ICMPV6 else None)
        body = _mark(body, 2, good if protocol == ICMPV6 else good ^ _WRONG)
    elif protocol == SCTP:  # an INIT chunk, RFC 9260, section 3.3.2
        body = _INIT.pack(flow.sport, flow.dport, 0, 0, 1, 0, 20, 1, 65536, 10, 10, 1)
    elif protocol == DCCP:
        body = _REQUEST.pack(flow.sport, flow.dport, 5, 0, 0, 1, 0, 0, 1, 0)
    elif protocol == GRE:
        if flow.sport or flow.dport:  # of PPTP, which its helper expects
            return None
        body = struct.pack(">HH", 0, 0x0800) + bytes(20)
    else:
        body = bytes(40)
    return _header(flow, len(body)) + body


def _header(flow: Tuple, length: int) -> bytes:
    source, destination, protocol = flow.source, flow.destination, flow.protocol
    if len(source) == 16:
        return _IPV6.pack(6 << 28, length, protocol, _TTL, source, destination)
    parts = (0x45, 0, 20 + length, 0, _DONT_FRAGMENT, _TTL, protocol)
    bare = _IPV4.pack(*parts, 0, source, destination)
    return _IPV4.pack(*parts, _checksum(bare), source, destination)


def _sum(body: bytes, flow: Tuple | None) -> int:
    """Return the right checksum of a packet whose checksum field is 0."""
    if flow is None:
        return _checksum(body)
    pseudo = flow.source + flow.destination + struct.pack(">II", len(body), flow.protocol)
    return _checksum(pseudo + body)


def _checksum(data: bytes) -> int:
    """Return the checksum of RFC 1071."""
    # 65536 is 1 modulo 65535, so the sum of the halves is the number itself.
    total = int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF
    return ~total & 0xFFFF


def _mark(body: bytes, at: int, checksum: int) -> bytes:
    return body[:at] + checksum.to_bytes(2, "big") + body[at + 2 :]


def seen(packet: bytes) -> bytes:
    """Return what tells a packet's flow: protocol, addresses, and ports or ICMP's id.

    Of an IPv4 packet with its header, or an IPv6 one; b"" for what is no such packet.
    """
    version = packet[0] >> 4 if len(packet) >= 20 else 0
    if version == 4:
        at = (packet[0] & 15) * 4
        protocol, addresses = packet[9], packet[12:20]
    elif version == 6 and len(packet) >= 40:
        at, protocol, addresses = 40, packet[6], packet[8:40]
    else:
        return b""
    return mark(protocol, addresses, packet[at : at + 8])


def mark(protocol: int, addresses: bytes, body: bytes) -> bytes:
    """Return the same of a packet in parts: both addresses, and what follows the IP header."""
    if protocol in WITH_PORTS:
        return bytes([protocol]) + addresses + body[:4]
    if protocol in {ICMP, ICMPV6}:
        return bytes([protocol]) + addresses + body[4:6]
    return bytes([protocol]) + addresses


def expected(flow: Tuple) -> bytes:
    """Return what :func:`seen` says of the packets of a direction, as they are on the wire."""
    ports = struct.pack(">HH", flow.sport, flow.dport)
    identifier = bytes(4) + struct.pack(">H", flow.identifier)
    body = identifier if flow.protocol in {ICMP, ICMPV6} else ports
    return mark(flow.protocol, flow.source + flow.destination, body)
