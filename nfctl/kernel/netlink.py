"""netlink(7): what everybody who speaks it shares, whichever family: messages and attributes.

A message is a ``struct nlmsghdr`` and a payload, which in nfnetlink begins with a ``struct
nfgenmsg``; an attribute is a ``struct nlattr`` and a value. Both are padded to four bytes.
Places are in bytes from the start of the data at hand, so that nothing is copied to be looked at.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from nfctl.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE: Final = struct.Struct("=HH")  # nlattr: length, type
ERRNO: Final = struct.Struct("=i")

NETFILTER: Final = 12  # NETLINK_NETFILTER
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK: Final = 270
CAP_ACK: Final = 10  # errors come without a copy of the request
TYPE: Final = 0x3FFF  # of an attribute; above are flags
#: The longest value of an attribute, in bytes.
MOST_VALUE: Final = 0xFFFF - 4

_SO_RCVBUFFORCE = 33
_LARGEST = 1 << 17  # bytes that recv(2) may return


def messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Split what recv(2) returned: type, flags, sequence, start and end of each one's payload."""
    at, size = 0, len(data)
    while at + HEADER.size <= size:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, at + HEADER.size, min(at + length, size)
        at += length + 3 & ~3


def attributes(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk the attributes from ``at`` to ``end``: the type, start and end of each one's value."""
    while at + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size:
            return
        yield kind & TYPE, at + ATTRIBUTE.size, min(at + length, end)
        at += length + 3 & ~3


def values(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Return the values of the attributes from ``at`` on, by their types."""
    return {kind: data[start:end] for kind, start, end in attributes(data, at, len(data))}


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def error(data: bytes, start: int) -> int:
    """Return the errno in the payload of NLMSG_ERROR or NLMSG_DONE; 0 for none."""
    number: int = ERRNO.unpack_from(data, start)[0]
    return -number


def ask(sock: socket.socket, kind: int, request: bytes, *, dump: bool = False) -> Iterator[bytes]:
    """Send one request; yield the payload of each answer. OSError where the kernel says no.

    With ``dump`` all that there is of a kind; a socket where that is not read to its end is of
    no use any more.
    """
    flags = REQUEST | (DUMP if dump else 0)
    sock.send(HEADER.pack(HEADER.size + len(request), kind, flags, 1, 0) + request)
    while True:
        data = sock.recv(_LARGEST)
        for answer, _, _, start, end in messages(data):
            if answer == NLMSG_ERROR:
                number = error(data, start)
                raise OSError(number, os.strerror(number))
            if answer == NLMSG_DONE:
                return
            yield data[start:end]
        if not dump:
            return


def netfilter() -> socket.socket:
    """Return a socket of nfnetlink in the calling thread's namespace; Unsupported without it."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
    except OSError as wrong:
        msg = f"the kernel has no nfnetlink: {wrong.strerror}"
        raise Unsupported(msg, hint="CONFIG_NETFILTER_NETLINK is needed") from None


def size_buffer(sock: socket.socket, size: int) -> None:
    """Give a socket a receive buffer of so many bytes, as far as it may have that."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
    except OSError:  # in a user namespace
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
