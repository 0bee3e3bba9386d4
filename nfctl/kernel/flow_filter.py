"""Flows picked by the kernel, by where their replies come from, or by what their clients meant.

That is CTA_FILTER, since Linux 5.8.

A dump that is filtered still walks the whole table, which is most of what it costs where little
is found: several filters are worth it only as long as they are few.

Addresses of IPv6 are left to the caller: the kernel's comparison of them is the wrong way round,
it passes all but the one that was asked for (``ctnetlink_filter_match_tuple``; seen in 6.18).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.kernel import flows, netlink

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Iterator, Sequence

#: How many filters, each of which walks the whole table: more take longer than its whole list.
WALKS: Final = 6

_NESTED: Final = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25  # enum ctattr_type
_ORIG_FLAGS, _REPLY_FLAGS = 1, 2  # enum ctattr_filter
_TUPLE_IP, _TUPLE_PROTO = 1, 2  # enum ctattr_tuple
_IP_V4_SRC, _PROTO_NUM, _PROTO_SRC_PORT, _PROTO_DST_PORT = 1, 1, 2, 3
# CTA_FILTER_F_CTA_*: which parts of the tuple are compared
_BY_SOURCE, _BY_PROTOCOL, _BY_PORT, _BY_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 4, 1 << 5
_NO_FLAG: Final = 1 << 31
_FLAGS: Final = struct.Struct("=I")
_PORT: Final = struct.Struct(">H")


class Replier(NamedTuple):
    """Where replies come from: ``family`` is 4 or 6, ``address`` packed IPv4, b"" for any."""

    family: int
    protocol: int
    port: int
    address: bytes = b""

    def filter(self) -> bytes:
        """Return the attributes by which a dump is of these flows alone."""
        flags, ends = _BY_PROTOCOL | _BY_PORT, b""
        if self.address:
            flags |= _BY_SOURCE
            ends = _nested(_TUPLE_IP, netlink.attribute(_IP_V4_SRC, self.address))
        number = netlink.attribute(_PROTO_NUM, bytes([self.protocol]))
        port = netlink.attribute(_PROTO_SRC_PORT, _PORT.pack(self.port))
        wanted = netlink.attribute(_REPLY_FLAGS, _FLAGS.pack(flags))
        return _nested(_TUPLE_REPLY, ends + _nested(_TUPLE_PROTO, number + port)) + _nested(
            _FILTER, wanted
        )


class Meant(NamedTuple):
    """What clients meant: ``family`` is 4 or 6, ``port`` 0 for any."""

    family: int
    protocol: int
    port: int = 0

    def filter(self) -> bytes:
        """Return the attributes by which a dump is of these flows alone."""
        flags, ends = _BY_PROTOCOL, netlink.attribute(_PROTO_NUM, bytes([self.protocol]))
        if self.port:
            flags |= _BY_DESTINATION_PORT
            ends += netlink.attribute(_PROTO_DST_PORT, _PORT.pack(self.port))
        wanted = netlink.attribute(_ORIG_FLAGS, _FLAGS.pack(flags))
        return _nested(_TUPLE_ORIG, _nested(_TUPLE_PROTO, ends)) + _nested(_FILTER, wanted)


def picked(
    filters: Collection[Replier] | Collection[Meant], families: set[int], about: Sequence[bytes]
) -> Iterator[list[flows.Entry]]:
    """Yield what passes one of some filters, at least; without any all of the families.

    A kernel that does not filter lists all, too. ``about`` and errors are those of
    :func:`nfctl.kernel.flows.listed`.
    """
    if filters:
        with flows.open_socket() as sock:
            known = is_known(sock)
        if not known:
            filters = ()
    with flows.open_socket() as sock:
        for one in filters:
            yield from flows.listed(sock, one.family, about, one.filter())
        if not filters:
            yield from flows.listed(sock, families.pop() if len(families) == 1 else 0, about)


def is_known(sock: socket.socket) -> bool:
    """Whether this kernel filters: one that does refuses a flag that there is not.

    An older one knows nothing of the attribute, and begins to list all there is: close the socket
    then. Raises as :func:`nfctl.kernel.flows.listed`.
    """
    flag = netlink.attribute(_ORIG_FLAGS, _FLAGS.pack(_NO_FLAG))
    return flows.refuses(sock, _nested(_FILTER, flag))


def repliers(
    places: Iterable[tuple[int, bytes, int]], ports: Iterable[tuple[int, int, int]]
) -> list[Replier]:
    """Return the fewest filters through which all flows of these pass; [] for more than WALKS.

    ``places`` are protocol, packed address and port, ``ports`` protocol, family and port of any
    address.
    """
    groups: dict[tuple[int, int, int], set[bytes]] = {}
    for protocol, address, port in places:
        family = 4 if len(address) == 4 else 6
        groups.setdefault((family, protocol, port), set()).add(address if family == 4 else b"")
    for protocol, family, port in ports:
        groups[family, protocol, port] = {b""}
    # several addresses at one port are found by the port, in one walk
    found = [Replier(*key, *one) for key, one in groups.items() if len(one) == 1]
    found += [Replier(*key) for key, several in groups.items() if len(several) > 1]
    return found if len(found) <= WALKS else []


def _nested(kind: int, value: bytes) -> bytes:
    return netlink.attribute(kind | _NESTED, value)
