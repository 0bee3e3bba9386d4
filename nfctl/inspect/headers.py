"""The headers of a packet, decoded by hand: IPv4, IPv6 with its extension headers, TCP, UDP, ICMP.

RFC 791, 8200, 9293, 768, 792, 4443, 4302. :func:`decode` never raises, whatever the bytes: what
cannot be is said in ``malformed``.
"""

from __future__ import annotations

import struct

TCP, UDP, ICMP, ICMPV6, SCTP, UDPLITE, DCCP, ESP, AH = 6, 17, 1, 58, 132, 136, 33, 50, 51

WITH_PORTS = frozenset({TCP, UDP, UDPLITE, SCTP, DCCP})

#: Hop-by-hop and destination options, routing, fragment, AH, mobility, HIP, shim6. ESP hides
#: what follows, and behind "no next header" (59) nothing does: those two are protocols here.
EXTENSIONS = frozenset({0, 43, 44, AH, 60, 135, 139, 140})
MAX_EXTENSIONS = 16
_HOP_BY_HOP, _FRAGMENT = 0, 44
_JUMBO = 0xC2  # RFC 2675: the length of a packet of more than 65,575 bytes
_LARGEST = 0xFFFF  # bytes, what the length fields of IP hold
_IPV6_HEADER = 40  # bytes

_IPV4 = struct.Struct("!BBHHHBB2x4s4s").unpack_from
_IPV6 = struct.Struct("!IHBB16s16s").unpack_from
_TCP = struct.Struct("!HHIIBBH").unpack_from
_UDP = struct.Struct("!HHH").unpack_from
_PORTS = struct.Struct("!HH").unpack_from
_FRAGMENT_HEADER = struct.Struct("!2xHI").unpack_from
_WORD = struct.Struct("!I").unpack_from

#: Protocols of which no more than this is decoded: their names, and their headers' least bytes.
_OTHERS = {
    ICMP: ("ICMP", 8),
    ICMPV6: ("ICMPv6", 8),
    SCTP: ("SCTP", 12),
    UDPLITE: ("UDP-Lite", 8),
    DCCP: ("DCCP", 12),
}


class Headers:
    """What the headers of one packet say; numbers in host order, offsets in bytes from its start.

    ``version`` is 4 or 6, 0 if it is neither. ``src`` and ``dst`` are packed addresses (4 or 16
    bytes, empty if there are none). ``proto`` is the protocol behind all extension headers, -1 if
    unknown. ``transport`` is where its header begins, ``data`` where the data it carries begins
    (behind the headers of TCP, UDP and UDP-Lite; of other protocols the same as ``transport``)
    and ``end`` where that ends (what IP's and UDP's length say, never beyond the bytes there
    are). ``sport`` and ``dport`` are 0 for protocols without ports, and in fragments but the
    first. ``flags`` are TCP's (FIN 1 ... CWR 128). ``fragment`` is the fragment's offset in
    bytes, ``more`` whether more follow, ``ident`` whose fragment it is (IPv6: 0 in what is no
    fragment). ``icmp`` is (type, code), else None. ``extensions`` are the numbers of IPv6
    extension headers, in their order. ``length`` is the packet's own, in bytes, where
    ``truncated`` says that fewer are at hand. ``malformed`` is a reason in a few words, "" if
    nothing is wrong; then 0 <= transport <= data <= end <= len(packet) holds all the same.
    """

    __slots__ = (
        "ack", "data", "dport", "dst", "end", "extensions", "flags", "fragment", "icmp", "ident",
        "length", "malformed", "more", "proto", "seq", "sport", "src", "tos", "transport",
        "truncated", "ttl", "version", "window",
    )  # fmt: skip

    ack: int
    data: int
    dst: bytes
    dport: int
    end: int
    extensions: tuple[int, ...]
    flags: int
    fragment: int
    icmp: tuple[int, int] | None
    ident: int
    length: int
    malformed: str
    more: bool
    proto: int
    seq: int
    sport: int
    src: bytes
    tos: int
    transport: int
    truncated: bool
    ttl: int
    version: int
    window: int


def decode(packet: bytes, length: int) -> Headers:
    """Decode a packet from its IP header on; ``length`` is its own, of which some may be cut."""
    head = Headers()
    size = len(packet)
    head.truncated = length > size
    head.length = length = length if length > size else size
    head.sport = head.dport = head.seq = head.ack = head.flags = head.window = head.fragment = 0
    head.icmp = None
    head.more = False
    head.malformed = ""
    head.extensions = ()
    version = packet[0] >> 4 if size else 0
    if version == 4 and size >= 20:
        first, head.tos, total, head.ident, fragment, head.ttl, proto, head.src, head.dst = _IPV4(
            packet
        )
        head.version = 4
        head.proto = proto
        start = (first & 15) << 2
        if not total and length > _LARGEST:
            total = length  # BIG TCP: the kernel's own, not yet cut into segments
        if start < 20 or start > length:
            return _broken(head, "IPv4 header length", size)
        if total < start or total > length:
            return _broken(head, "total length", start if start < size else size)
        if start > size:
            return _broken(head, "cut inside the IPv4 header", size)
        if fragment & 0x3FFF:
            head.more = fragment & 0x2000 != 0
            head.fragment = offset = (fragment & 0x1FFF) << 3
            if offset + total > _LARGEST:
                return _broken(head, "fragment beyond 65535", start)
            if offset:
                return _later_fragment(head, start, total if total < size else size)
        return _transport(head, packet, proto, start, total, size)
    head.version = head.tos = head.ident = head.ttl = 0
    head.proto = -1
    head.src = head.dst = b""
    if version == 6 and size >= _IPV6_HEADER:
        return _ipv6(head, packet, size)
    if version in {4, 6} and length > size:
        head.version = version
        return _broken(head, f"cut inside the IPv{version} header", size)
    if version in {4, 6}:
        head.version = version
        return _broken(head, f"IPv{version} header length", size)
    return _broken(head, f"IP version {version}" if size else "empty", 0)


def _broken(head: Headers, reason: str, at: int) -> Headers:
    """Say what is wrong; nothing is carried behind ``at``, the end of what could be decoded."""
    head.malformed = reason
    head.transport = head.data = head.end = at
    return head


def _later_fragment(head: Headers, start: int, end: int) -> Headers:
    """Decode a fragment but the first: it has no transport header, only data."""
    head.transport = head.data = start
    head.end = end
    # Such fragments exist only where the first one ends inside TCP's header (RFC 1858).
    if head.proto == TCP and head.fragment < 20:
        head.malformed = "tiny fragment"
    return head


def _transport(
    head: Headers, packet: bytes, proto: int, start: int, stop: int, size: int
) -> Headers:
    """Decode a transport header at ``start``; IP's data ends at ``stop``, the copy at ``size``."""
    end = stop if stop < size else size
    head.transport = start
    head.end = end
    if proto == TCP:
        if start + 20 > end:
            return _short(head, packet, "TCP", start + 20, stop)
        head.sport, head.dport, head.seq, head.ack, offset, head.flags, head.window = _TCP(
            packet, start
        )
        data = start + (offset >> 4 << 2)
        if offset < 0x50:
            return _no_data(head, "TCP data offset")
        if data > end:
            if data > stop and not head.more:
                return _no_data(head, "TCP data offset")
            return _short(head, packet, "TCP", data, stop)
        head.data = data
        return head
    if proto == UDP:
        if start + 8 > end:
            return _short(head, packet, "UDP", start + 8, stop)
        head.sport, head.dport, length = _UDP(packet, start)
        head.data = start + 8
        # A first fragment has the length of the whole datagram; what is longer than 65,535
        # bytes cannot say so.
        if length < 8:
            if length or head.length <= _LARGEST:
                return _no_data(head, "UDP length")
        elif start + length < end:
            head.end = start + length
        elif start + length > stop and not head.more:
            return _no_data(head, "UDP length")
        return head
    head.data = start
    if proto in _OTHERS:
        _other(head, packet, proto, stop)
    return head


def _other(head: Headers, packet: bytes, proto: int, stop: int) -> None:
    """Decode ports, or ICMP's type and code."""
    start, end = head.transport, head.end
    name, least = _OTHERS[proto]
    if start + least > end:
        _short(head, packet, name, start + least, stop)
    elif proto in {ICMP, ICMPV6}:
        if (proto == ICMP) == (head.version == 4):
            head.icmp = packet[start], packet[start + 1]
    else:
        head.sport, head.dport = _PORTS(packet, start)
        if proto == UDPLITE:
            head.data = start + 8
            covered = _UDP(packet, start)[2]
            # 0 is all of it; a checksum covers the header at least (RFC 3828).
            if 0 < covered < 8 or (start + covered > stop and not head.more):
                _no_data(head, "UDP-Lite coverage")


def _short(head: Headers, packet: bytes, name: str, needed: int, stop: int) -> Headers:
    """Say why a transport header is not all there; it would reach to ``needed``."""
    if name not in {"ICMP", "ICMPv6"} and head.transport + 4 <= head.end:
        head.sport, head.dport = _PORTS(packet, head.transport)
    if needed <= stop:
        reason = f"cut inside the {name} header"
    else:
        reason = "tiny fragment" if head.more else f"short {name} header"
    return _no_data(head, reason)


def _no_data(head: Headers, reason: str) -> Headers:
    """Say what is wrong with a transport header: where its data begin is not known."""
    head.malformed = reason
    head.data = head.end
    return head


def _ipv6(head: Headers, packet: bytes, size: int) -> Headers:
    """Decode an IPv6 header of which all 40 bytes are there, and what follows."""
    word, payload, proto, head.ttl, head.src, head.dst = _IPV6(packet)
    head.version = 6
    head.tos = word >> 20 & 0xFF
    stop = _IPV6_HEADER + payload
    if not payload:
        if proto == _HOP_BY_HOP:
            stop += _jumbo(packet, size)
        if stop == _IPV6_HEADER and head.length > _IPV6_HEADER + _LARGEST:
            stop = head.length  # BIG TCP
    if stop > head.length:
        return _broken(head, "total length", _IPV6_HEADER)
    if proto in EXTENSIONS:
        return _extensions(head, packet, proto, stop, size)
    head.proto = proto
    return _transport(head, packet, proto, _IPV6_HEADER, stop, size)


def _jumbo(packet: bytes, size: int) -> int:
    """Return the length in a jumbo payload option of the hop-by-hop header, 0 without one."""
    if size < _IPV6_HEADER + 8:
        return 0
    at, end = _IPV6_HEADER + 2, min(size, _IPV6_HEADER + 8 + 8 * packet[_IPV6_HEADER + 1])
    while at + 6 <= end:  # at most 2,048 bytes
        if packet[at] == _JUMBO:
            length: int = _WORD(packet, at + 2)[0]
            return length if packet[at + 1] == 4 and length > _LARGEST else 0
        at += 1 if packet[at] == 0 else 2 + packet[at + 1]
    return 0


def _extensions(head: Headers, packet: bytes, proto: int, stop: int, size: int) -> Headers:
    """Walk IPv6's extension headers, then decode what is behind them."""
    at = _IPV6_HEADER
    end = stop if stop < size else size
    seen: list[int] = []
    while proto in EXTENSIONS:
        # Hop-by-hop options have one place, the first (RFC 8200).
        if len(seen) == MAX_EXTENSIONS or (proto == _HOP_BY_HOP and seen):
            return _broken(head, "extension headers", at)
        behind = at + 8
        if behind <= end and proto != _FRAGMENT:
            words = packet[at + 1]
            behind = at + ((words + 2) << 2 if proto == AH else (words + 1) << 3)
        if behind > end:
            if behind <= stop:
                return _broken(head, "cut inside the extension headers", at)
            return _broken(head, "tiny fragment" if head.more else "extension headers", at)
        seen.append(proto)
        head.extensions = tuple(seen)
        following = packet[at]
        if proto == _FRAGMENT:
            offset, head.ident = _FRAGMENT_HEADER(packet, at)
            head.fragment = offset & 0xFFF8
            head.more = offset & 1 != 0
            # What the packet's length would be when put together, this header left out.
            if head.fragment + stop - _IPV6_HEADER - 8 > _LARGEST:
                return _broken(head, "fragment beyond 65535", behind)
            if head.more and (stop - behind) & 7:
                return _broken(head, "fragment length", behind)
            if head.fragment:
                if following not in EXTENSIONS:
                    head.proto = following
                return _later_fragment(head, behind, end)
        at, proto = behind, following
    head.proto = proto
    return _transport(head, packet, proto, at, stop, size)
