"""Connection marks: bits of them set to zero (linux/netfilter/nfnetlink_conntrack.h).

A verdict that an inspection leaves with a flow stands in the connection's mark (connmark), which
lives as long as the connection does. An inspection with other rules must not find it there.

The few messages are written here and not by pyroute2, for three reasons: its conntrack classes
come with its sockets and with asyncio (0.1 s to import), they take every address apart and put
it together again, at a hundred times the cost, and they do not know the zone inside a tuple
(CTA_TUPLE_ZONE), without which an entry of ``-j CT --zone-orig`` is not found. Here an entry is
named by the bytes by which the kernel named it.
"""

from __future__ import annotations

import errno as errnos
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from nfctl.errors import BadInput, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import netlink, netns

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUBSYS = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET = 0, 1
_TUPLE, _MARK, _ZONE, _MASK = 1, 8, 18, 21  # CTA_TUPLE_ORIG and so on

_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr and nfgenmsg
_NFGEN = 4  # bytes of the latter
_MARKS = struct.Struct(">I")
_VALUES = struct.Struct("=HH4sHH4s")  # CTA_MARK and CTA_MARK_MASK

_PART = 1 << 16  # bytes; the kernel sends a dump in parts of at most half of it
_AT_ONCE = 64  # requests in one send; their errors have to fit the receive buffer
_BUFFER: Final = 1 << 20  # bytes


def clear_marks(mask: int, *, network: str | None = None) -> int:
    """Set the bits of ``mask`` to zero in the marks of all connections, IPv4's and IPv6's.

    The other bits stay. Returns how many entries of the namespace had one of the bits set, and
    were changed. An entry that ends meanwhile does not count. A packet that is still on its
    way through the rules, the first of its connection, has no entry yet and keeps its mark:
    take away first what sets it.

    Raises NotPermitted without CAP_NET_ADMIN, Unsupported where the kernel has no ctnetlink.
    """
    if not 0 <= mask < 1 << 32:
        msg = f"{mask:#x} is no mask of a connection's mark: it has 32 bits"
        raise BadInput(msg)
    changed = 0
    # An entry is changed while the list of them is being read, which a socket of its own is for:
    # so there are never more of them in memory than one part of the list.
    with netns.entered(network):
        reading = _open()
        try:
            writing = _open()
        except BaseException:
            reading.close()
            raise
    with reading, writing:
        # The kernel compares with one value under a mask, so it is asked bit by bit. Whatever
        # had several of them was cleared by the first.
        for bit in range(32):
            if mask >> bit & 1:
                for requests in _requests(reading, 1 << bit, mask):
                    for start in range(0, len(requests), _AT_ONCE):
                        changed += _update(writing, requests[start : start + _AT_ONCE])
    return changed


def _open() -> socket.socket:
    opened = netlink.netfilter()
    opened.setsockopt(netlink.SOL_NETLINK, netlink.CAP_ACK, 1)
    netlink.size_buffer(opened, _BUFFER)
    # The kernel has answered when send(2) returns, and made the next part when recv(2) does.
    opened.setblocking(False)
    return opened


def _requests(reading: socket.socket, bit: int, mask: int) -> Iterator[list[bytes]]:
    """Ask for the entries with a bit set; give the requests that clear the mask, by parts."""
    packed = _MARKS.pack(bit)
    filtered = _VALUES.pack(8, _MARK, packed, 8, _MASK, packed)
    _send(reading, _message(_GET, netlink.REQUEST | netlink.DUMP, socket.AF_UNSPEC, filtered))
    clearing = _VALUES.pack(8, _MARK, bytes(4), 8, _MASK, _MARKS.pack(mask))
    while True:
        try:
            part = reading.recv(_PART)
        except OSError as error:
            raise _refusal(error.errno or errnos.EIO) from None
        found, ended = [], False
        for kind, _, _, start, end in netlink.messages(part):
            if kind in {netlink.NLMSG_ERROR, netlink.NLMSG_DONE}:
                if number := netlink.error(part, start):
                    raise _refusal(number)
                ended = True
            elif named := _named(part, start + _NFGEN, end, bit):
                family = part[start]
                found.append(_message(_NEW, netlink.REQUEST, family, named + clearing))
        yield found
        if ended:
            return


def _named(part: bytes, at: int, end: int, bit: int) -> bytes:
    """Return the attributes that name an entry, its tuple and zone; none if it lacks the bit."""
    named, mark = b"", 0
    for kind, start, stop in netlink.attributes(part, at, end):
        if kind in {_TUPLE, _ZONE}:
            named += part[start - 4 : stop + -(stop - start) % 4]
        elif kind == _MARK:
            (mark,) = _MARKS.unpack_from(part, start)
    return named if mark & bit else b""


def _update(writing: socket.socket, requests: list[bytes]) -> int:
    """Send requests; return how many entries they changed. The kernel answers errors alone."""
    _send(writing, b"".join(requests))
    changed = len(requests)
    refused = 0
    while True:
        try:
            answers = writing.recv(_PART)
        except BlockingIOError:
            break
        except OSError as error:
            raise _refusal(error.errno or errnos.EIO) from None
        for kind, _, _, start, _ in netlink.messages(answers):
            if kind == netlink.NLMSG_ERROR and (number := netlink.error(answers, start)):
                changed -= 1
                if number != errnos.ENOENT:  # it has ended since it was read
                    refused = refused or number
    if refused:
        raise _refusal(refused)
    return changed


def _send(sending: socket.socket, data: bytes) -> None:
    try:
        sending.send(data)
    except OSError as error:
        raise _refusal(error.errno or errnos.EIO) from None


def _message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    # the version (NFNETLINK_V0) and the resource are 0, and so are sequence number and port
    return _HEADER.pack(20 + len(body), _SUBSYS | kind, flags, 0, 0, family, 0, 0) + body


def _refusal(number: int) -> NfctlError:
    """Return the error for what the kernel answers."""
    if number in {errnos.EPERM, errnos.EACCES}:
        msg = "the marks of connections cannot be changed"
        return NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root")
    if number in {errnos.EINVAL, errnos.EOPNOTSUPP}:
        msg = "this kernel cannot list connections by their mark"
        hint = "CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_MARK are needed"
        return Unsupported(msg, hint=hint)
    return NfctlError(f"the marks of connections cannot be cleared: {os.strerror(number)}")
