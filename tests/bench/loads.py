"""What is sent in a room, over its loopback interface: datagrams, strangers, a stream.

No packet is ever lost: at most :data:`ROUND` are on their way, fewer than a queue may hold.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

FLOWS: Final = 64
BURST: Final = 8  # packets of a flow in a row
ROUND: Final = 6 * FLOWS * BURST  # packets that wait together
FIRST_PORT: Final = 9000
STREAM_PORT: Final = 5201
SIZE: Final = 100  # bytes of a datagram, behind IPv4's and UDP's 28
LOOPBACK: Final = 0x7F000001
PATIENCE: Final = 10.0  # seconds until a packet comes
PAUSE: Final = 1e-4  # seconds between looks at what has come
_CHUNK: Final = 1 << 20


class Failed(Exception):
    """What was to be measured did not happen."""


# --- many packets a call --------------------------------------------------------------------------


class _IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vectors", ctypes.c_void_p),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int),
    )  # fmt: skip


class _MMsgHdr(ctypes.Structure):
    _fields_ = (("header", _MsgHdr), ("length", ctypes.c_uint))


class Batch:
    """A buffer of equal slots, each a packet of sendmmsg(2) or recvmmsg(2), behind one head."""

    def __init__(self, count: int, size: int, head: bytes = b"", name: bytes = b"") -> None:
        self.buffer = bytearray(count * size)
        self._pin = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self._head = ctypes.create_string_buffer(head, len(head))
        self._name = ctypes.create_string_buffer(name, len(name))  # a struct sockaddr
        self._vectors = (_IoVec * (2 * count))()
        self._headers = (_MMsgHdr * count)()
        for number in range(count):
            first, second = self._vectors[2 * number], self._vectors[2 * number + 1]
            first.base, first.length = ctypes.addressof(self._head), len(head)
            second.base, second.length = ctypes.addressof(self._pin) + number * size, size
            header = self._headers[number].header
            header.vectors, header.count = ctypes.addressof(first), 2
            if name:
                header.name, header.name_length = ctypes.addressof(self._name), len(name)
        self._at = ctypes.addressof(self._headers)

    def send(self, fd: int, count: int) -> None:
        """Send the first slots, all of them."""
        sent = 0
        while sent < count:  # the kernel takes 1,024 a call at most
            at = self._at + sent * ctypes.sizeof(_MMsgHdr)
            got = _libc.sendmmsg(fd, at, count - sent, 0)
            if got <= 0:
                raise Failed(f"cannot send: {os.strerror(ctypes.get_errno())}")
            sent += got

    def receive(self, fd: int, count: int) -> int:
        """Receive what is there, at most so many; return how many."""
        return max(0, int(_libc.recvmmsg(fd, self._at, count, socket.MSG_DONTWAIT, None)))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_libc.recvmmsg.argtypes = (*_libc.sendmmsg.argtypes, ctypes.c_void_p)


# --- the loads ------------------------------------------------------------------------------------


class _Flow:
    """One flow of UDP: what it sends goes on the loopback interface as it is (packet(7))."""

    __slots__ = ("_batch", "fd", "got", "sent")

    def __init__(self, receiver: int, source: int, port: int) -> None:
        self.fd = receiver
        self.sent = self.got = 0
        head = ipv4(socket.IPPROTO_UDP, 28 + SIZE, source)
        head += struct.pack(">4H", 40_000, port, 8 + SIZE, 0)
        self._batch = Batch(BURST, SIZE, bytes(12) + b"\x08\0" + head)

    def send(self, out: int) -> None:
        """Send a burst, whose packets have the next numbers."""
        _NUMBERS[BURST].pack_into(self._batch.buffer, 0, *range(self.sent, self.sent + BURST))
        self._batch.send(out, BURST)
        self.sent += BURST

    def receive(self, into: Batch) -> int:
        """Receive what has come, a burst at most; return how many packets."""
        got = into.receive(self.fd, BURST)
        if _NUMBERS[got].unpack_from(into.buffer) != tuple(range(self.got, self.got + got)):
            raise Failed("packets came in another order")
        self.got += got
        return got


_NUMBERS = [struct.Struct("=" + f"Q{SIZE - 8}x" * count) for count in range(BURST + 1)]


class Datagrams:
    """Flows of UDP over loopback, a round at a time.

    To put a packet into a queue costs the kernel as much as to take it out, and what finds its
    reader asleep far more: with both at once one would measure the load. So the holder is stopped
    while a round is sent, and timed from the moment it goes on to the last packet's arrival.
    """

    def __init__(
        self, stack: ExitStack, stop: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        self._stop, self._go_on = stop, go_on
        self._out = stack.enter_context(loopback()).fileno()
        self._flows = []
        for number in range(FLOWS):
            port = FIRST_PORT + number
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.bind(("127.0.0.1", port))
            self._flows.append(_Flow(receiver.fileno(), LOOPBACK + number, port))

    def send(self, rounds: int) -> float:
        """Send so many rounds; return the seconds that they waited for the holder.

        Each packet has its flow's number: one that is lost, doubled or overtaken fails.
        """
        into, seconds, delivered = Batch(BURST, SIZE), 0.0, Delivered()
        for _ in range(rounds):
            self._stop()
            until = delivered.count() + ROUND
            for _ in range(ROUND // FLOWS // BURST):
                for flow in self._flows:
                    flow.send(self._out)
            start = time.perf_counter()
            self._go_on()
            while delivered.count() < until:
                time.sleep(PAUSE)
                if time.perf_counter() > start + PATIENCE:
                    raise Failed(f"{until - delivered.count()} of {ROUND} packets did not come")
            seconds += time.perf_counter() - start
            for flow in self._flows:
                while flow.receive(into):
                    pass
                if flow.got != flow.sent:
                    raise Failed(f"{flow.sent - flow.got} packets of a flow did not come")
        return seconds


class Delivered:
    """How many IPv4 packets the namespace has handed to their sockets (RFC 4293)."""

    def __init__(self) -> None:
        self._path = Path("/proc/thread-self/net/snmp")
        self._column = self._path.read_text().split().index("InDelivers")

    def count(self) -> int:
        """Return how many there were so far."""
        return int(self._path.read_text().splitlines()[1].split()[self._column])


class Strangers:
    """Packets of ever new flows, from all of 127.0.0.0/8, to nobody.

    Of ten, seven are DNS queries, one a QUIC Initial that is cut short, one a TCP segment with a
    ClientHello, each with a name of its own, and one with half of one, whose rest never comes. So
    whatever is kept of flows, of sources and of names is soon full.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._out = stack.enter_context(loopback())
        hello = client_hello(_NAMELESS.decode() + ".test")
        dns = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x0c" + _NAMELESS + b"\4test\0\0\1\0\1"
        quic = b"\xc3\0\0\0\1\x08xxxxxxxx\0\0\x44\xd0" + bytes(SIZE)
        tcp = struct.pack(">IIBBHHH", 1, 1, 0x50, 0x18, 4096, 0, 0)
        kinds = [(socket.IPPROTO_UDP, 53, struct.pack(">HH", 8 + len(dns), 0) + dns)] * 7
        kinds.append((socket.IPPROTO_UDP, 443, struct.pack(">HH", 8 + len(quic), 0) + quic))
        kinds.append((socket.IPPROTO_TCP, 443, tcp + hello))
        kinds.append((socket.IPPROTO_TCP, 443, tcp + hello[: len(hello) // 2]))
        self._slot = 24 + max(len(body) for _, _, body in kinds)
        self._batch = Batch(ROUND, self._slot, bytes(12) + b"\x08\0")
        self._number = 0
        self._kinds = kinds

    def send(self, packets: int, waiting: Callable[[], bool]) -> float:
        """Send so many packets; return the seconds until none of them waits any more."""
        start, size, buffer = time.perf_counter(), self._slot, self._batch.buffer
        while packets:
            count = min(packets, ROUND)
            for slot in range(count):
                buffer[slot * size : (slot + 1) * size] = self._packet()
            self._batch.send(self._out.fileno(), count)
            packets -= count
            until = time.monotonic() + PATIENCE
            while waiting():
                if time.monotonic() > until:
                    raise Failed("the queue is not emptied")
                time.sleep(PAUSE)
        return time.perf_counter() - start

    def _packet(self) -> bytes:
        """Return the next packet, which has a source, a port and a name of its own."""
        number = self._number
        self._number += 1
        proto, port, body = self._kinds[number % 10]
        body = body.replace(_NAMELESS, b"%012x" % number)
        source = LOOPBACK + 0x10000 + number * 2654435761 % 0xFD0000
        ports = struct.pack(">HH", 1024 + number % 60_000, port)
        packet = ipv4(proto, 24 + len(body), source) + ports + body
        return packet.ljust(self._slot, b"\0")  # IP leaves out what is behind its length


_NAMELESS: Final = b"xxxx-no-name"


def loopback() -> socket.socket:
    """Return a socket whose packets arrive at the room's loopback interface, as from outside."""
    for setting in ("route_localnet", "accept_local"):
        Path(f"/proc/sys/net/ipv4/conf/lo/{setting}").write_text("1")
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind(("lo", 0))
    return opened


def ipv4(proto: int, length: int, source: int) -> bytes:
    """Return the header of a packet to 127.0.0.1."""
    head = [0x4500, length, 0, 0x4000, 64 << 8 | proto, 0, *divmod(source, 1 << 16), 0x7F00, 1]
    total = sum(head)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    head[5] = total ^ 0xFFFF
    return struct.pack(">10H", *head)


def client_hello(name: str) -> bytes:
    """Return what a real TLS client of this name says first."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(into, out, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


class Stream:
    """One TCP connection over loopback: this process sends, a child of it receives."""

    def __init__(self, stack: ExitStack, cpu: int) -> None:
        self._listener = stack.enter_context(
            socket.create_server(("127.0.0.1", STREAM_PORT), backlog=8)
        )
        self._receiver = cpu

    def send(self, octets: int) -> float:
        """Send so many bytes behind a ClientHello; return the seconds until all were received."""
        hello = client_hello("bulk.example")
        child = os.fork()
        if not child:
            try:
                os.sched_setaffinity(0, {self._receiver})
                self._receive(octets + len(hello))
            finally:
                os._exit(0)
        chunk, left = bytes(_CHUNK), octets
        try:
            with socket.create_connection(("127.0.0.1", STREAM_PORT), PATIENCE) as client:
                start = time.perf_counter()
                client.sendall(hello)
                while left:
                    client.sendall(chunk[:left] if left < _CHUNK else chunk)
                    left -= min(left, _CHUNK)
                answer = client.recv(1)
                seconds = time.perf_counter() - start
        finally:
            os.waitpid(child, 0)
        if answer != b"+":
            raise Failed("not all of the stream was received")
        return seconds

    def _receive(self, octets: int) -> None:
        server, _ = self._listener.accept()
        with server:
            server.settimeout(PATIENCE)
            buffer = bytearray(_CHUNK)
            while octets and (got := server.recv_into(buffer)):
                octets -= got
            server.sendall(b"-" if octets else b"+")

    def handshake(self, name: str, certificate: str) -> None:
        """Make a TLS connection to a server name, and see that both sides finish it."""
        child = os.fork()
        if not child:
            code = 1
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate)
                with context.wrap_socket(self._listener.accept()[0], server_side=True) as server:
                    server.sendall(b"+")
                code = 0
            finally:
                os._exit(code)
        context = ssl.create_default_context(cafile=certificate)
        context.check_hostname = False
        try:
            with (
                socket.create_connection(("127.0.0.1", STREAM_PORT), PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=name) as client,
            ):
                if client.recv(1) != b"+":
                    raise Failed(f"no TLS connection to {name}")
        finally:
            os.waitpid(child, 0)
