"""The internet checksum (RFC 1071) of IPv4 headers, TCP, UDP, ICMP and ICMPv6.

A packet that this machine made, or that the kernel has put together from several, may carry
only half a checksum: that of the pseudo header, to which the NIC adds the rest (CHECKSUM_PARTIAL
in the kernel). :func:`state` tells it from a whole one and from a wrong one; :func:`complete`
makes it whole. No function here raises, whatever the packet.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from nfctl.inspect.headers import ICMP, ICMPV6, TCP, UDP

if TYPE_CHECKING:
    from nfctl.inspect.headers import Headers
    from nfctl.inspect.packet import Packet

#: What :func:`state` answers: no checksum was made (UDP), it is right, it is the pseudo header's
#: alone, it is none of these, it cannot be told (other protocols, fragments, packets cut short).
NONE, WHOLE, PARTIAL, WRONG, UNKNOWN = range(5)

#: Where the checksum is, in bytes from the start of its header.
FIELD: Final = {TCP: 16, UDP: 6, ICMPV6: 2, ICMP: 2}
_WORD: Final = struct.Struct("!H")
_VERSIONS: Final = {ICMP: 4, ICMPV6: 6}  # those that belong to one version of IP


def _fold(number: int) -> int:
    """Return the ones' complement sum of the 16-bit words that make up ``number``.

    2**16 is 1 modulo 2**16 - 1, so that the remainder is the sum; only 0xffff, which is a zero
    too, has to be told from a sum of zeros.
    """
    return number % 0xFFFF or (0xFFFF if number else 0)


def internet(data: bytes | bytearray | memoryview) -> int:
    """Return the checksum of ``data``; 0 if the right one is already in it (RFC 1071)."""
    number = int.from_bytes(data, "big")
    return 0xFFFF - _fold(number << 8 if len(data) % 2 else number)


def ipv4(header: bytes | bytearray) -> int:
    """Return the checksum of an IPv4 header, whatever its field says now (RFC 791)."""
    return _without(header, 10, 0)


def pseudo(src: bytes, dst: bytes, proto: int, length: int) -> int:
    """Return the sum over the pseudo header (RFC 9293, RFC 8200), not complemented.

    That is what the field holds until somebody makes the checksum whole. ICMP has none: 0.
    """
    if proto == ICMP:
        return 0
    return _fold(int.from_bytes(src, "big") + int.from_bytes(dst, "big") + proto + length)


def transport(src: bytes, dst: bytes, proto: int, segment: bytes | bytearray) -> int:
    """Return the checksum of a TCP or UDP segment or an ICMP message, whatever its field says.

    ``src`` and ``dst`` are packed addresses. UDP's is never 0, which would mean none (RFC 768).
    """
    value = _without(segment, FIELD[proto], pseudo(src, dst, proto, len(segment)))
    return 0xFFFF if value == 0 and proto == UDP else value


def _without(data: bytes | bytearray, field: int, more: int) -> int:
    """Return the checksum of ``data`` and the sum ``more``, the two bytes at ``field`` as zero."""
    size = len(data)
    number = int.from_bytes(data, "big")
    if size % 2:
        number <<= 8
        size += 1
    own = data[field] << 8 | data[field + 1]
    return 0xFFFF - _fold(number - (own << 8 * (size - field - 2)) + more)


def state(packet: Packet) -> int:
    """Return what the transport header's checksum is: NONE, WHOLE, PARTIAL, WRONG or UNKNOWN.

    Of a packet that is not ``checked`` it is PARTIAL, or the missing one is not this header's
    but one of what it carries (a tunnel), or of another protocol: UNKNOWN.
    """
    head = packet.headers
    proto = head.proto
    field = FIELD.get(proto)
    if field is None or head.fragment or head.more or head.truncated or head.malformed:
        return UNKNOWN
    start, end, data = head.transport, head.end, packet.data
    if _VERSIONS.get(proto, head.version) != head.version or start + field + 2 > end:
        return UNKNOWN
    own = data[start + field] << 8 | data[start + field + 1]
    if proto == UDP and own == 0:
        return NONE
    ahead = pseudo(head.src, head.dst, proto, end - start)
    if not packet.checked:
        return PARTIAL if own == ahead and proto in {TCP, UDP} else UNKNOWN
    # The sum over everything, the right checksum included, is 0xffff, a zero.
    number = int.from_bytes(data[start:end], "big") << (8 if (end - start) % 2 else 0)
    if (number + ahead) % 0xFFFF == 0:
        return WHOLE
    return PARTIAL if own == ahead and proto in {TCP, UDP} else WRONG


def verify(packet: Packet) -> bool:
    """Whether the packet's checksums are right; one that cannot be told, or is not there, is."""
    head = packet.headers
    if head.version == 4 and not head.malformed:
        size = (packet.data[0] & 15) * 4
        if internet(packet.data[:size]):
            return False
    return state(packet) not in {PARTIAL, WRONG}


def complete(packet: Packet) -> bytes:
    """Return the packet with a partial checksum made whole, as the NIC would have done.

    A wrong one stays as it is: what was damaged must not look sound.
    """
    if state(packet) != PARTIAL:
        return packet.data
    data = bytearray(packet.data)
    fill(data, packet.headers, packet.headers.end)
    return bytes(data)


def fill(data: bytearray, head: Headers, end: int) -> None:
    """Put the right checksum into a packet, whose transport header and data now end at ``end``.

    ``head`` is where things are in it; addresses are taken from the packet.
    """
    start, proto = head.transport, head.proto
    src, dst, stop = (8, 24, 40) if head.version == 6 else (12, 16, 20)
    value = transport(bytes(data[src:dst]), bytes(data[dst:stop]), proto, data[start:end])
    _WORD.pack_into(data, start + FIELD[proto], value)
