"""The few things of connection tracking that a rehearsal asks: one entry, its mark, none at all.

In the network namespace of the calling process; linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

from nfctl.errors import Unsupported
from nfctl.kernel import netlink

_SUBSYS = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = 0, 1, 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _MARK = 1, 2, 8  # CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_MARK
_IP, _PROTO = 1, 2
_ADDRESSES = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC, CTA_IP_V4_DST and so on
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr and nfgenmsg
_NFGEN = 4
_U32 = struct.Struct(">I")


class Tuple(NamedTuple):
    """The ends of a connection, as its first packet or the answer to that has them."""

    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int


class Entry(NamedTuple):
    """A tracked connection: the first packet's ends before any NAT, and the mark."""

    original: Tuple
    mark: int


def find(answer: Tuple) -> Entry | None:
    """Return the entry of the connection whose answers have these ends; None if there is none."""
    version = ipaddress.ip_address(answer.source).version
    found = _ask(_GET, 0, version, _tuple(_REPLY, answer))
    if not found:
        return None
    known = netlink.values(found)
    original = _ends(known.get(_ORIGINAL, b""), version)
    mark = known.get(_MARK)
    return Entry(original, _U32.unpack(mark)[0] if mark else 0) if original else None


def set_mark(original: Tuple, mark: int) -> None:
    """Give the connection that began so a mark; nothing where there is none."""
    version = ipaddress.ip_address(original.source).version
    value = netlink.attribute(_MARK, _U32.pack(mark))
    _ask(_NEW, netlink.ACK, version, _tuple(_ORIGINAL, original) + value)


def flush(version: int) -> None:
    """Forget all connections of IPv4 or IPv6."""
    _ask(_DELETE, netlink.ACK, version, b"")


def _ask(kind: int, flags: int, version: int, body: bytes) -> bytes:
    """Ask one thing; return the attributes of the answer, none where the kernel has none."""
    try:
        asking = netlink.netfilter()
    except Unsupported:  # then nothing is tracked
        return b""
    with asking:
        head = _HEADER.pack(
            20 + len(body), _SUBSYS | kind, flags | netlink.REQUEST, 0, 0, _FAMILIES[version], 0, 0
        )
        asking.send(head + body)
        data = asking.recv(1 << 16)
    for answer, _, _, start, end in netlink.messages(data):
        if answer not in {netlink.NLMSG_ERROR, netlink.NLMSG_DONE}:
            return data[start + _NFGEN : end]
    return b""


def _tuple(kind: int, ends: Tuple) -> bytes:
    attribute = netlink.attribute
    source, destination = (ipaddress.ip_address(text) for text in (ends.source, ends.destination))
    first, second = _ADDRESSES[source.version]
    addresses = attribute(first, source.packed) + attribute(second, destination.packed)
    ports = attribute(_NUMBER, bytes([ends.protocol]))
    ports += attribute(_SOURCE_PORT, struct.pack(">H", ends.source_port))
    ports += attribute(_DESTINATION_PORT, struct.pack(">H", ends.destination_port))
    parts = attribute(_IP | _NESTED, addresses) + attribute(_PROTO | _NESTED, ports)
    return attribute(kind | _NESTED, parts)


def _ends(data: bytes, version: int) -> Tuple | None:
    parts = netlink.values(data)
    addresses, ports = netlink.values(parts.get(_IP, b"")), netlink.values(parts.get(_PROTO, b""))
    first, second = _ADDRESSES[version]
    try:
        return Tuple(
            ports[_NUMBER][0],
            str(ipaddress.ip_address(addresses[first])),
            int.from_bytes(ports[_SOURCE_PORT], "big"),
            str(ipaddress.ip_address(addresses[second])),
            int.from_bytes(ports[_DESTINATION_PORT], "big"),
        )
    except (KeyError, ValueError, IndexError):
        return None
