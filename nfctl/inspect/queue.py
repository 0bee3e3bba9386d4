"""One queue of the kernel: packets in, verdicts out (NFQUEUE, linux/netfilter/nfnetlink_queue.h).

The netlink messages are read and written here and not by a library, for what a library leaves
out: many packets a system call (recvmmsg(2)), one verdict message for a run of packets that
get the same one (NFQNL_MSG_VERDICT_BATCH), packets of up to 64 KiB, segments together as they
came (NFQA_CFG_F_GSO), and accepting when the queue is full (NFQA_CFG_F_FAIL_OPEN).

A message is an nlmsghdr, an nfgenmsg and attributes, the packet last. Which attributes there are
depends on where the packet came from, so that nearly all messages look alike: a reader is made
for each such layout, which takes a message apart by one ``struct`` and checks that it is of
that layout. Numbers of packets and marks stay the four bytes that they are.
"""

from __future__ import annotations

import ctypes as ct
import errno as errnos
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.errors import BadInput, Locked, NotPermitted, Unsupported
from nfctl.kernel import netlink
from nfctl.kernel.netlink import attribute

if TYPE_CHECKING:
    from collections.abc import Callable

#: Verdicts (linux/netfilter.h).
NF_DROP, NF_ACCEPT, NF_REPEAT = 0, 1, 4
#: The longest part of a packet that fits into an attribute, in bytes.
MOST_COPIED: Final = netlink.MOST_VALUE

_NO_ENOBUFS = 5  # of SOL_NETLINK
_SUBSYS = 3 << 8
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = 0, 1, 2, 3
_BIND, _UNBIND = 1, 2
_COPY_PACKET = 2
_CFG_CMD, _CFG_PARAMS, _CFG_LENGTH, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_FAIL_OPEN, _GSO = 1, 4
_A_HDR, _A_VERDICT, _A_MARK, _A_TIMESTAMP, _A_INDEV, _A_OUTDEV = 1, 2, 3, 4, 5, 6
_A_PAYLOAD, _A_LENGTH, _A_INFO = 10, 13, 14
_HEADERS = 20  # nlmsghdr and nfgenmsg
_ROOM = 512  # bytes for everything in a message but the packet
_MOST_ROOM = 2 << 20  # bytes for the messages of one call
_MOST_LAYOUTS = 256
_MOST_PREFIXES = 1024
_LARGEST_SEND = 64 << 10  # bytes of verdicts a call
_MSG_DONTWAIT, _MSG_TRUNC = 0x40, 0x20
_NONE4 = bytes(4)


class Message(NamedTuple):
    """A queued packet as the kernel tells of it; its bytes are ``[start:end]`` of the buffer.

    It names what the readers' plain tuples hold.

    ``ident``, ``mark``, ``indev`` and ``outdev`` are the kernel's four bytes (big endian),
    ``info`` its NFQA_SKB_INFO flags, ``length`` the packet's own length where the copy was cut.
    """

    ident: bytes
    hook: int
    indev: bytes
    outdev: bytes
    mark: bytes
    info: bytes
    length: bytes
    time: bytes
    start: int
    end: int


class Queue:
    """A queue this process is bound to; its :attr:`buffer` holds what :meth:`fill` received.

    ``copy`` is how many bytes of each packet are handed over, ``length`` how many packets may
    wait, ``buffer`` the socket's size in bytes. ``fail_open`` has the kernel accept what finds
    the queue full, and drop it otherwise. ``gso`` takes segments together as the NIC or the
    sender left them; without it the kernel cuts them into packets first.

    Raises Locked (exit 4) where another program is bound to the queue, NotPermitted,
    Unsupported.
    """

    def __init__(
        self,
        number: int,
        *,
        copy: int = MOST_COPIED,
        length: int = 4096,
        buffer: int = 16 << 20,
        fail_open: bool = False,
        gso: bool = True,
    ) -> None:
        if not 0 <= number < 1 << 16:
            msg = f"{number} is no queue: they are numbered from 0 to 65535"
            raise BadInput(msg)
        self.number = number
        self.copy = max(1, min(copy, MOST_COPIED))
        #: How often the socket was full (ENOBUFS), where the kernel says so.
        self.overruns = 0
        #: Messages that the kernel sent and that were not understood, verdicts it refused.
        self.errors = 0
        self._socket = self._open()
        try:
            self._configure(length, fail_open, gso)
            self._size(buffer)
        except BaseException:
            self._socket.close()
            raise
        self._slots()
        self._unsent: list[bytes] = []
        self._unsent_size = 0
        # the run of packets that get the same verdict: which, and up to which packet
        self._run: tuple[int, bytes | None] | None = None
        self._last = _NONE4
        self._alone = True
        self._prefixes: dict[tuple[int, bytes | None, bool], bytes] = {}

    # --- setting up ---------------------------------------------------------------------------

    @staticmethod
    def _open() -> socket.socket:
        opened = netlink.netfilter()
        opened.bind((0, 0))
        return opened

    def _configure(self, length: int, fail_open: bool, gso: bool) -> None:
        answer = self._ask(attribute(_CFG_CMD, struct.pack(">BxH", _BIND, 0)))
        if answer in {errnos.EPERM, errnos.EACCES}:
            # the kernel's answer for a queue that is taken, too
            if _may_administer():
                msg = f"queue {self.number} belongs to another program"
                raise Locked(msg, hint="name another one with --queue")
            msg = "packets cannot be queued to this program"
            raise NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root")
        if answer == errnos.EBUSY:
            msg = f"queue {self.number} belongs to another program"
            raise Locked(msg, hint="name another one with --queue")
        if answer in {errnos.EINVAL, errnos.EOPNOTSUPP, errnos.EPROTONOSUPPORT}:
            msg = "this kernel has no NFQUEUE"
            raise Unsupported(msg, hint="CONFIG_NETFILTER_NETLINK_QUEUE is needed")
        self._refused(answer, "be bound")
        params = struct.pack(">IB", self.copy, _COPY_PACKET)
        self._refused(self._ask(attribute(_CFG_PARAMS, params)), "copy packets")
        packed = struct.pack(">I", max(1, length))
        self._refused(self._ask(attribute(_CFG_LENGTH, packed)), "take this length")
        flags = _FAIL_OPEN * fail_open | _GSO * gso
        body = attribute(_CFG_MASK, struct.pack(">I", _FAIL_OPEN | _GSO))
        body += attribute(_CFG_FLAGS, struct.pack(">I", flags))
        self._refused(self._ask(body), "take its flags")

    def _refused(self, answer: int, what: str) -> None:
        if answer:
            msg = f"queue {self.number} cannot {what}: {os.strerror(answer)}"
            raise Unsupported(msg)

    def _ask(self, body: bytes) -> int:
        """Send a configuration message; return the errno that the kernel answers, 0 for none."""
        body = struct.pack("=BBH", 0, 0, socket.htons(self.number)) + body
        flags = netlink.REQUEST | netlink.ACK
        head = netlink.HEADER.pack(16 + len(body), _SUBSYS | _CONFIG, flags, 1, 0)
        self._socket.send(head + body)
        while True:
            answer = self._socket.recv(1 << 17)
            if netlink.HEADER.unpack_from(answer)[1] == netlink.NLMSG_ERROR:
                return netlink.error(answer, netlink.HEADER.size)

    def _size(self, buffer: int) -> None:
        """Size the socket's buffer; its owner is told of lost packets by the queue's figures."""
        netlink.size_buffer(self._socket, buffer)
        # After one ENOBUFS the kernel would drop everything until the socket is empty.
        self._socket.setsockopt(netlink.SOL_NETLINK, _NO_ENOBUFS, 1)
        self._socket.setblocking(False)

    def _slots(self) -> None:
        """Lay out the buffer: a slot a message, and what recvmmsg(2) is told of them."""
        self.slot = (self.copy + _ROOM + 15) & ~15
        count = max(8, min(128, _MOST_ROOM // self.slot))
        self.buffer = bytearray(count * self.slot)
        self.offsets = range(0, count * self.slot, self.slot)
        self._pin = (ct.c_char * len(self.buffer)).from_buffer(self.buffer)
        base = ct.addressof(self._pin)
        self._vectors = (_IoVec * count)()
        self._headers = (_MMsgHdr * count)()
        for number in range(count):
            vector, header = self._vectors[number], self._headers[number].header
            vector.base, vector.length = base + number * self.slot, self.slot
            header.vectors, header.count = ct.addressof(vector), 1
        self._descriptor, self._first = self._socket.fileno(), ct.addressof(self._headers)
        self._fill = ct.CDLL(None, use_errno=True).recvmmsg
        self._fill.argtypes = (ct.c_int, ct.c_void_p, ct.c_uint, ct.c_int, ct.c_void_p)
        #: How many packets are received at once, at most.
        self.most = count
        self._readers: list[Callable[[bytearray, int], Message | None]] = []

    @property
    def port(self) -> int:
        """The socket's netlink port, by which /proc names who is bound to a queue."""
        number: int = self._socket.getsockname()[0]
        return number

    def fileno(self) -> int:
        """Return the descriptor, which is readable when packets wait."""
        return self._socket.fileno()

    def let_pass(self) -> None:
        """Have the kernel accept what comes from now on; what waits is still to be decided.

        So nothing is lost when the queue is left while rules still queue packets to it.
        """
        flags = struct.pack(">I", _FAIL_OPEN)
        body = attribute(_CFG_LENGTH, _NONE4)
        body += attribute(_CFG_MASK, flags) + attribute(_CFG_FLAGS, flags)
        # without an answer, which would be among the packets
        self._put(self._message(_CONFIG, body))
        self.send()

    def close(self) -> None:
        """Leave the queue. The kernel drops what still waits for a verdict."""
        self._socket.close()

    # --- packets in ---------------------------------------------------------------------------

    def fill(self) -> range:
        """Receive what waits, :attr:`most` at most; return the offsets of the messages."""
        got = self._fill(self._descriptor, self._first, self.most, _MSG_DONTWAIT, None)
        if got > 0:
            return self.offsets[:got]
        number = ct.get_errno()
        if number == errnos.ENOBUFS:
            self.overruns += 1
        elif got < 0 and number not in {errnos.EAGAIN, errnos.EINTR}:
            raise OSError(number, os.strerror(number), f"queue {self.number}")
        return self.offsets[:0]

    def read(self, buffer: bytearray, at: int) -> Message | None:
        """Take the message at an offset of the buffer apart; None for what is no packet."""
        for reader in self._readers:
            found = reader(buffer, at)
            if found is not None:
                return found
        return self._learn(at)

    def _learn(self, at: int) -> Message | None:
        """Read a message of a layout that was not seen before, and make a reader for it."""
        size, kind, _, _, _ = netlink.HEADER.unpack_from(self.buffer, at)
        if kind != _SUBSYS | _PACKET or size > self.slot:
            # an error: a verdict for a packet that is gone, as a rule
            self.errors += 1
            return None
        layout: list[tuple[int, int]] = []
        place, end = at + _HEADERS, at + size
        while place + 4 <= end:
            length, kind = netlink.ATTRIBUTE.unpack_from(self.buffer, place)
            layout.append((kind, length))
            if length < 4 or kind & netlink.TYPE == _A_PAYLOAD:
                break
            place += length + 3 & ~3
        if not layout or layout[0] != (_A_HDR, 11):
            self.errors += 1
            return None
        if layout[-1][0] & netlink.TYPE != _A_PAYLOAD:  # an empty packet; it has to be decided, too
            ident = bytes(self.buffer[at + _HEADERS + 4 : at + _HEADERS + 8])
            hook = self.buffer[at + _HEADERS + 10]
            none = _NONE4
            return Message(ident, hook, none, none, none, none, none, b"", at + size, at + size)
        reader = make_reader(tuple(layout[:-1]))
        if len(self._readers) < _MOST_LAYOUTS:
            self._readers.append(reader)
        return reader(self.buffer, at)

    # --- verdicts out -------------------------------------------------------------------------

    def verdict(self, ident: bytes, code: int, mark: bytes | None = None) -> None:
        """Decide a packet: NF_DROP, NF_ACCEPT or NF_REPEAT, and its new mark if it gets one.

        Packets have to be decided in the order in which they came. Nothing is sent before
        :meth:`send`.
        """
        run = (code, mark)
        if run == self._run:
            self._alone = False
        else:
            if self._run is not None:
                self._end_run()
            self._run = run
            self._alone = True
        self._last = ident

    def replace(self, ident: bytes, code: int, mark: bytes | None, packet: bytes) -> None:
        """Decide a packet and send other bytes on in its place: IP header, checksums and all."""
        if self._run is not None:
            self._end_run()
        body = attribute(_A_VERDICT, struct.pack(">I", code) + ident)
        if mark is not None:
            body += attribute(_A_MARK, mark)
        self._put(self._message(_VERDICT, body + attribute(_A_PAYLOAD, packet)))

    def _end_run(self) -> None:
        if self._run is None:
            return
        code, mark = self._run
        prefix = self._prefixes.get((code, mark, self._alone))
        if prefix is None:
            prefix = self._prefix(code, mark, self._alone)
        self._run = None
        # the packet's number is the last thing of the prefix, and the mark goes behind it
        message = prefix + self._last
        self._put(message if mark is None else message + attribute(_A_MARK, mark))

    def _prefix(self, code: int, mark: bytes | None, alone: bool) -> bytes:
        """Return a verdict message up to the packet's number: for it, or for all up to it."""
        body = attribute(_A_VERDICT, struct.pack(">I", code) + _NONE4)
        if mark is not None:
            body += attribute(_A_MARK, mark)
        prefix = self._message(_VERDICT if alone else _VERDICT_BATCH, body)[: _HEADERS + 8]
        if len(self._prefixes) < _MOST_PREFIXES:
            self._prefixes[code, mark, alone] = prefix
        return prefix

    def _message(self, kind: int, body: bytes) -> bytes:
        body = struct.pack("=BBH", 0, 0, socket.htons(self.number)) + body
        return netlink.HEADER.pack(16 + len(body), _SUBSYS | kind, netlink.REQUEST, 0, 0) + body

    def _put(self, message: bytes) -> None:
        message += bytes(-len(message) % 4)
        if self._unsent_size + len(message) > _LARGEST_SEND:
            self._write()
        self._unsent.append(message)
        self._unsent_size += len(message)

    def send(self) -> None:
        """Tell the kernel all verdicts given so far."""
        if self._run is not None:
            self._end_run()
        if self._unsent:
            self._write()

    def _write(self) -> None:
        messages = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_size = 0
        if messages:
            try:
                # the kernel takes them all, whatever it finds in one of them
                self._socket.send(messages)
            except OSError as error:
                if error.errno not in {errnos.ENOBUFS, errnos.EAGAIN}:
                    raise
                self.errors += 1


class _IoVec(ct.Structure):
    _fields_ = (("base", ct.c_void_p), ("length", ct.c_size_t))


class _MsgHdr(ct.Structure):
    _fields_ = (
        ("name", ct.c_void_p), ("name_length", ct.c_uint32), ("vectors", ct.c_void_p),
        ("count", ct.c_size_t), ("control", ct.c_void_p), ("control_length", ct.c_size_t),
        ("flags", ct.c_int),
    )  # fmt: skip


class _MMsgHdr(ct.Structure):
    _fields_ = (("header", _MsgHdr), ("length", ct.c_uint))


def _may_administer() -> bool:
    from nfctl.kernel.privileges import read_privileges

    try:
        return read_privileges().net_admin
    except (OSError, ValueError):
        return False


_FIELDS: Final = {
    _A_MARK: ("mark", 8), _A_INDEV: ("indev", 8), _A_OUTDEV: ("outdev", 8),
    _A_INFO: ("info", 8), _A_LENGTH: ("length", 8), _A_TIMESTAMP: ("time", 20),
}  # fmt: skip


def make_reader(layout: tuple[tuple[int, int], ...]) -> Callable[[bytearray, int], Message | None]:
    """Return a reader for messages with these (type, length) of attributes before the packet.

    The reader gives None for a message of another layout. It is a function written for the
    purpose, because walking the attributes one by one costs more than all the rest.
    """
    formats, names, checks = ["=IHxx8x4x"], ["size", "kind"], [f"kind == {_SUBSYS | _PACKET}"]
    values = {name: repr(_NONE4) for name in ("mark", "indev", "outdev", "info", "length")}
    values["time"] = repr(b"")
    place = _HEADERS
    for number, (kind, length) in enumerate(layout):
        formats.append("I")
        names.append(f"a{number}")
        checks.append(f"a{number} == {_word(length, kind)}")
        rest = (length + 3 & ~3) - 4
        if kind == _A_HDR:
            formats.append("4s2xBx")
            names += ["ident", "hook"]
        elif _FIELDS.get(kind, ("", 0))[1] == length:
            field = _FIELDS[kind][0]
            formats.append(f"{rest}s")
            names.append(field)
            values[field] = field
        else:
            formats.append(f"{rest}x")
        place += 4 + rest
    formats.append("I")
    names.append("payload")
    start = place + 4
    # a little-endian word holds the length below, a big-endian one above
    packet = f"{_A_PAYLOAD << 16} + " if sys.byteorder == "little" else f"{_A_PAYLOAD} + 65536 * "
    checks.append(f"payload == {packet}(size - {place})")
    order = ("indev", "outdev", "mark", "info", "length", "time")
    source = (
        "def read(buffer, at):\n"
        f"    {', '.join(names)} = unpack(buffer, at)\n"
        f"    if {' and '.join(checks)}:\n"
        f"        return ident, hook, {', '.join(values[name] for name in order)}, "
        f"at + {start}, at + size\n"
        "    return None\n"
    )
    space: dict[str, Any] = {"unpack": struct.Struct("".join(formats)).unpack_from}
    exec(source, space)  # noqa: S102 - made of numbers only
    made: Callable[[bytearray, int], Message | None] = space["read"]
    return made


def _word(length: int, kind: int) -> int:
    word: int = struct.unpack("=I", netlink.ATTRIBUTE.pack(length, kind))[0]
    return word
