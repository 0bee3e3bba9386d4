"""Flows that conntrack knows: listed, found and deleted (linux/netfilter/nfnetlink_conntrack.h).

An entry is kept as the bytes by which the kernel named it, so that two of them are compared
without being taken apart, and an entry is found again whatever its zone and protocol. Deleting
goes through pyroute2, whose socket is loaded when there is something to delete; it gets the
kernel's own bytes, too, since its tuples have ports for TCP and UDP alone and know no zone. Where
thousands are to go, it is passed by: it takes ten times as long as all else.
"""

from __future__ import annotations

import errno as errnos
import os
import socket
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.errors import NfctlError, NotPermitted, Unsupported
from nfctl.kernel import netlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ADDRESS_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
FAMILIES: Final = {2: 4, 10: 6}

#: The connection was expected by the helper of another one, as FTP's data is (IPS_EXPECTED).
EXPECTED: Final = 1

_SUBSYS = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = 1, 2
# enum ctattr_type
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _ID, _MASTER, _ZONE = 1, 2, 3, 4, 12, 14, 18
_TUPLE_IP, _TUPLE_PROTO, _TUPLE_ZONE = 1, 2, 3  # enum ctattr_tuple
_STATE = 1  # CTA_PROTOINFO_TCP_STATE, and SCTP's and DCCP's
_NESTED = 0x8000
_ONE_WAY = 0x100  # our own: the zone of one direction

_NAMES: Final = {_ORIGINAL: "CTA_TUPLE_ORIG", _ZONE: "CTA_ZONE"}
_RAW: Final = {*_NAMES.values(), "CTA_ID"}

_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr and nfgenmsg
_NFGEN = 4  # bytes of the latter
_U32 = struct.Struct(">I")
_PORT = struct.Struct(">H")

_PART = 1 << 16  # bytes; the kernel sends a dump in parts of at most half of it
_BUFFER: Final = 1 << 20  # bytes
_AT_ONCE = 32  # questions in one send; the answers have to fit the receive buffer
_NO_ZONE = 40  # bytes; a tuple with a zone is longer

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
#: Protocols whose packets begin with two ports.
WITH_PORTS: Final = frozenset({TCP, UDP, 33, 132, 136})
NAMES: Final = {
    TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6",
    33: "dccp", 47: "gre", 132: "sctp", 136: "udplite",
}  # fmt: skip


class Tuple(NamedTuple):
    """One direction of a flow, taken apart. Of ICMP the ports are 0, of others the id.

    Addresses are packed. GRE has its keys as ports (PPTP's call ids), 0 where it has none.
    """

    source: bytes
    destination: bytes
    protocol: int
    sport: int = 0
    dport: int = 0
    kind: int = 0  # ICMP's type, code and id
    code: int = 0
    identifier: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return 4 if len(self.source) == 4 else 6

    def __str__(self) -> str:
        """``tcp 192.0.2.1:40000 -> 192.0.2.2:80``."""
        name = NAMES.get(self.protocol, f"protocol {self.protocol}")
        if self.protocol in {ICMP, ICMPV6}:
            more = f" type {self.kind} code {self.code} id {self.identifier}"
            return f"{name} {_host(self.source)} -> {_host(self.destination)}{more}"
        return f"{name} {_end(self.source, self.sport)} -> {_end(self.destination, self.dport)}"


def _host(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def _end(address: bytes, port: int) -> str:
    """Write an address with its port, in brackets where it has colons itself."""
    if not port:
        return _host(address)
    return f"{_host(address)}:{port}" if len(address) == 4 else f"[{_host(address)}]:{port}"


class Entry(NamedTuple):
    """An entry: its tuples without zones, as the kernel wrote them, and what names it.

    ``zones`` is whatever says in which zones it is, b"" for the default one. ``number`` is the
    entry's own (CTA_ID), by which another one with the same tuples is told from it.
    """

    family: int
    original: bytes
    reply: bytes
    zones: bytes
    name: bytes
    number: bytes
    status: int
    master: bool
    progress: bytes = b""  # CTA_PROTOINFO, as the kernel wrote it

    @property
    def state(self) -> int:
        """The state of a connection of TCP, SCTP or DCCP, by the kernel's number; -1 of others.

        For TCP see TCP_CONNTRACK_* (linux/netfilter/nf_conntrack_tcp.h), for SCTP its neighbour.
        """
        for _, start, end in netlink.attributes(self.progress, 0, len(self.progress)):
            for kind, at, _ in netlink.attributes(self.progress, start, end):
                if kind == _STATE:
                    return self.progress[at]
        return -1

    def __str__(self) -> str:
        """Say the original tuple, and where the reply's are if it is translated."""
        original, reply = parse(self.original), parse(self.reply)
        text = str(original)
        if (reply.source, reply.sport) != (original.destination, original.dport):
            text += f", to {_end(reply.source, reply.sport)}"
        if (reply.destination, reply.dport) != (original.source, original.sport):
            text += f", from {_end(reply.destination, reply.dport)}"
        return text


def _usual(address: int, source: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Return the layout of a tuple with ports, whose addresses have so many bytes, and its headers.

    So the kernel writes nearly all there are; taken apart at once they cost a tenth. No tuple with
    a zone has that length.
    """
    fields = struct.Struct(f">8s{address}s4s{address}s8sB3x4sH2x4sH2x")
    head = netlink.ATTRIBUTE.pack
    return fields, (
        head(12 + 2 * address, _TUPLE_IP | _NESTED) + head(4 + address, source),
        head(4 + address, source + 1),
        head(28, _TUPLE_PROTO | _NESTED) + head(5, 1),
        head(6, 2),
        head(6, 3),
    )


_USUAL: Final = {48: _usual(4, 1), 72: _usual(16, 3)}


def parse(data: bytes) -> Tuple:
    """Take a tuple's attribute apart."""
    usual = _USUAL.get(len(data))
    if usual is not None:
        ip, source, first, target, proto, number, second, sport, third, dport = usual[0].unpack(
            data
        )
        if (ip, first, proto, second, third) == usual[1]:
            return Tuple(source, target, number, sport, dport)
    parts = netlink.values(data)
    addresses = netlink.values(parts.get(_TUPLE_IP, b""))
    source = addresses.get(1) or addresses.get(3) or bytes(4)
    destination = addresses.get(2) or addresses.get(4) or bytes(4)
    values = netlink.values(parts.get(_TUPLE_PROTO, b""))
    numbers = [int.from_bytes(values.get(kind, b""), "big") for kind in range(10)]
    icmp = 7 if numbers[1] == ICMPV6 else 4  # CTA_PROTO_ICMPV6_ID, CTA_PROTO_ICMP_ID
    identifier, kind, code = numbers[icmp : icmp + 3]
    return Tuple(source, destination, numbers[1], numbers[2], numbers[3], kind, code, identifier)


def open_socket() -> socket.socket:
    """Return a socket for the functions below, of the calling thread's namespace."""
    opened = netlink.netfilter()
    opened.setsockopt(netlink.SOL_NETLINK, netlink.CAP_ACK, 1)
    netlink.size_buffer(opened, _BUFFER)
    # The kernel has answered when send(2) returns, and made the next part when recv(2) does.
    opened.setblocking(False)
    return opened


def listed(
    sock: socket.socket, family: int = 0, about: Sequence[bytes] = (), wanted: bytes = b""
) -> Iterator[list[Entry]]:
    """Yield the entries of a family (0: of both) by parts of the kernel's list.

    ``about`` are packed addresses: what has none of them is left out, and costs a tenth.
    ``wanted`` are attributes that have the kernel leave something out
    (:mod:`nfctl.kernel.flow_filter`), which costs a quarter of that again.

    It is not a snapshot: what begins or ends meanwhile may be in it or not. The socket is busy
    until the list has ended. Raises NotPermitted without CAP_NET_ADMIN, Unsupported without
    ctnetlink.
    """
    address_family = ADDRESS_FAMILY.get(family, socket.AF_UNSPEC)
    send(sock, _message(_GET, netlink.REQUEST | netlink.DUMP, address_family, wanted))
    while True:
        try:
            part = sock.recv(_PART)
        except OSError as error:
            raise _refusal(error.errno or errnos.EIO) from None
        found, ended = [], False
        for kind, _, _, start, end in netlink.messages(part):
            if kind in {netlink.NLMSG_ERROR, netlink.NLMSG_DONE}:
                if number := netlink.error(part, start):
                    raise _refusal(number)
                ended = True
            elif part[start] in FAMILIES and (not about or has(part[start:end], about)):
                found.append(entry_of(part, start, end))
        yield found
        if ended:
            return


def refuses(sock: socket.socket, wanted: bytes) -> bool:
    """Whether the kernel refuses to list what is wanted; the socket is busy if it does not."""
    flags = netlink.REQUEST | netlink.DUMP
    send(sock, _message(_GET, flags, socket.AF_INET, wanted))
    try:
        part = sock.recv(_PART)
    except OSError as error:
        raise _refusal(error.errno or errnos.EIO) from None
    for kind, _, _, start, _ in netlink.messages(part):
        number = netlink.error(part, start) if kind == netlink.NLMSG_ERROR else 0
        if number in {errnos.EINVAL, errnos.EOPNOTSUPP, errnos.ERANGE}:
            return True
        if number:
            raise _refusal(number)
    return False


def has(message: bytes, about: Sequence[bytes]) -> bool:
    """Whether one of some packed addresses may be in a message; surely not if it says no."""
    for address in about:  # noqa: SIM110 - any() takes twice the time
        if address in message:
            return True
    return False


def get(sock: socket.socket, family: int, name: bytes) -> Entry | None:
    """Return the entry of a name, or None if there is none."""
    send(sock, _message(_GET, netlink.REQUEST, ADDRESS_FAMILY[family], name))
    found = None
    while True:
        try:
            part = sock.recv(_PART)
        except BlockingIOError:
            return found
        except OSError as error:
            raise _refusal(error.errno or errnos.EIO) from None
        for kind, _, _, start, end in netlink.messages(part):
            if kind != netlink.NLMSG_ERROR:
                found = entry_of(part, start, end)


def clear(sock: socket.socket) -> None:
    """Delete all entries of the namespace: of a copy, never of a machine."""
    send(sock, _message(_DELETE, netlink.REQUEST, socket.AF_UNSPEC, b""))


def send(sock: socket.socket, data: bytes) -> None:
    """Send a message, or say what it means that it cannot be sent."""
    try:
        sock.send(data)
    except OSError as error:
        raise _refusal(error.errno or errnos.EIO) from None


def forget(sock: socket.socket, family: int, name: bytes) -> None:
    """Delete one entry of a copy; harmless if there is none."""
    send(sock, _message(_DELETE, netlink.REQUEST, ADDRESS_FAMILY[family], name))
    try:
        while sock.recv(_PART):
            pass
    except OSError:
        return


def delete(sock: socket.socket, entries: Sequence[Entry], *, many: bool = False) -> list[int]:
    """Delete entries, by their own numbers; return an errno for each: 0, or why it is there still.

    ENOENT is for one that has ended already, whatever flow of the same tuple there may be now.
    ``many`` does without pyroute2, for thousands: 7 microseconds an entry instead of 67.
    """
    encode = _quick_deletion if many else _deletion
    answers: list[int] = []
    for start in range(0, len(entries), _AT_ONCE):
        some = entries[start : start + _AT_ONCE]
        send(sock, b"".join(encode(entry, number) for number, entry in enumerate(some)))
        found = dict.fromkeys(range(len(some)), errnos.EIO)
        while True:
            try:
                part = sock.recv(_PART)
            except BlockingIOError:
                break
            except OSError as error:
                raise _refusal(error.errno or errnos.EIO) from None
            for kind, _, sequence, at, _ in netlink.messages(part):
                if kind == netlink.NLMSG_ERROR:
                    found[sequence] = netlink.error(part, at)
        answers += found.values()
    return answers


def _deletion(entry: Entry, sequence: int) -> bytes:
    """Return the request that deletes an entry, encoded by pyroute2."""
    message = _message_class()()
    message["nfgen_family"] = ADDRESS_FAMILY[entry.family]
    message["attrs"] = [("CTA_ID", entry.number)] + [
        (_NAMES[kind], entry.name[start:end])
        for kind, start, end in netlink.attributes(entry.name, 0, len(entry.name))
    ]
    message["header"] = {
        "type": _SUBSYS | _DELETE,
        "flags": netlink.REQUEST | netlink.ACK,
        "sequence_number": sequence,
        "pid": 0,
    }
    message.encode()
    return bytes(message.data)


def _quick_deletion(entry: Entry, sequence: int) -> bytes:
    body = entry.name + netlink.attribute(_ID, entry.number)
    flags = netlink.REQUEST | netlink.ACK
    family = ADDRESS_FAMILY[entry.family]
    kind = _SUBSYS | _DELETE
    return _HEADER.pack(20 + len(body), kind, flags, sequence, 0, family, 0, 0) + body


@cache
def _message_class() -> Any:
    """Return pyroute2's message of an entry, for which what names it are bytes."""
    try:
        from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg
    except ImportError:
        raise Unsupported(
            "the Python package pyroute2 is not installed", hint="pip install pyroute2"
        ) from None

    class Message(nfct_msg):  # type: ignore[misc]
        nla_map = tuple(
            (name, "cdata" if name in _RAW else kind) for name, kind in nfct_msg.nla_map
        )

    return Message


def name_of(original: bytes, zone: bytes = b"") -> bytes:
    """Return the name of an entry by its original tuple, and its zone's attributes."""
    return netlink.attribute(_ORIGINAL | _NESTED, original) + zone


def entry_of(part: bytes, start: int, end: int) -> Entry:
    """Return the entry that a message is about; ``start`` is where its ``nfgenmsg`` is."""
    original = reply = zones = name = number = progress = b""
    status, master = 0, False
    for kind, at, stop in netlink.attributes(part, start + _NFGEN, end):
        if kind == _ORIGINAL:
            original = part[at:stop]
            name += part[at - 4 : stop + -(stop - at) % 4]
        elif kind == _REPLY:
            reply = part[at:stop]
        elif kind == _ID:
            number = part[at:stop]
        elif kind == _STATUS:
            (status,) = _U32.unpack_from(part, at)
        elif kind == _PROTOINFO:
            progress = part[at:stop]
        elif kind == _MASTER:
            master = True
        elif kind == _ZONE:
            zones = part[at - 4 : stop + -(stop - at) % 4]
            name += zones
    # A zone of one direction alone stands in its tuple, behind all else.
    original, first = _without_zone(original)
    reply, second = _without_zone(reply)
    for one, zone in ((_ORIGINAL, first), (_REPLY, second)):
        zones += netlink.attribute(_ONE_WAY + one, zone) if zone else b""
    family = FAMILIES.get(part[start], 0)
    return Entry(family, original, reply, zones, name, number, status, master, progress)


def _without_zone(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < _NO_ZONE or len(data) in _USUAL:
        return data, b""
    for kind, at, stop in netlink.attributes(data, 0, len(data)):
        if kind == _TUPLE_ZONE:
            return data[: at - 4], data[at:stop]
    return data, b""


def _message(kind: int, flags: int, family: int, body: bytes) -> bytes:
    return _HEADER.pack(20 + len(body), _SUBSYS | kind, flags, 0, 0, family, 0, 0) + body


def _refusal(number: int) -> NfctlError:
    if number in {errnos.EPERM, errnos.EACCES}:
        msg = "conntrack's flows cannot be read"
        return NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root")
    if number in {errnos.EINVAL, errnos.EOPNOTSUPP}:
        msg = "this kernel does not list connections"
        return Unsupported(msg, hint="CONFIG_NF_CT_NETLINK is needed")
    return NfctlError(f"conntrack's flows cannot be read: {os.strerror(number)}")
