"""Link layers in capture files: where the IP packet begins behind their headers.

The numbers are those of https://www.tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import struct
from typing import Final

NULL, ETHERNET, RAW, LOOP, SLL, IPV4, IPV6, NFLOG, SLL2 = 0, 1, 101, 108, 113, 228, 229, 239, 276
_RAW_TOO: Final = frozenset({RAW, 12, 14, IPV4, IPV6})  # BSDs write DLT_RAW as 12 or 14

LINKS: Final = frozenset({NULL, ETHERNET, LOOP, SLL, NFLOG, SLL2}) | _RAW_TOO
"""What is known here; everything else cannot be read."""

_IP: Final = frozenset({0x0800, 0x86DD})
_VLAN: Final = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})
_MOST_TAGS: Final = 8
_NFULA_PAYLOAD: Final = 9


def cut(data: bytes, kind: int, endian: str) -> tuple[int, int] | None:
    """Return where an IP packet begins and ends in a captured one; None if there is none.

    ``kind`` is one of ``LINKS``; ``endian``, "<" or ">", the byte order of the file.
    """
    size = len(data)
    if kind in _RAW_TOO:
        start = 0
    elif kind in {NULL, LOOP}:
        start = 4  # an address family, of some BSD's numbering: IP itself says it better
    elif kind == NFLOG:
        return _nflog(data, endian)
    else:
        return _typed(data, kind)
    return (start, size) if size > start and data[start] >> 4 in {4, 6} else None


def sent(data: bytes, kind: int) -> bool:
    """Whether the link layer says that the packet was sent by the machine that captured it."""
    if kind == SLL:
        return data[:2] == b"\0\4"  # PACKET_OUTGOING, see packet(7)
    return kind == SLL2 and data[10:11] == b"\4"


def _typed(data: bytes, kind: int) -> tuple[int, int] | None:
    """Read those that have an Ethernet type in their header, and VLAN tags behind it."""
    at, start = {ETHERNET: (12, 14), SLL: (14, 16), SLL2: (0, 20)}[kind]
    size = len(data)
    for _ in range(_MOST_TAGS + 1):
        if start > size:
            return None
        protocol = data[at] << 8 | data[at + 1]
        if protocol in _IP:
            return start, size
        if protocol not in _VLAN:
            return None
        at, start = start + 2, start + 4
    return None


def _nflog(data: bytes, endian: str) -> tuple[int, int] | None:
    """Find the packet among the attributes that nfnetlink_log has sent."""
    attribute = struct.Struct(endian + "HH")
    at = 4  # address family, version, resource
    while at + 4 <= len(data):
        length, kind = attribute.unpack_from(data, at)
        if length < 4:
            return None
        if kind == _NFULA_PAYLOAD:
            start, end = at + 4, min(at + length, len(data))
            return (start, end) if start < end and data[start] >> 4 in {4, 6} else None
        at += length + 3 & ~3
    return None
