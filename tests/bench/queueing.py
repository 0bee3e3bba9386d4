"""Packets through a queue of the kernel, and what the program that holds the queue costs.

Run as a program in a room by :mod:`tests.bench.inspection`, with one JSON object as its argument:
what to send, and the command that holds the queue. It starts the command, waits for its queue and
its rules, sends, reads the rules' counters and the command's CPU time, ends it, and prints one
JSON object. It needs nothing but Python and iptables-legacy-save.

The load is never lost: at most :data:`WINDOW` packets are on their way, fewer than any queue holds.
Where there are two CPUs, the load has the first and the command the others.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

FLOWS: Final = 64
BURST: Final = 8  # packets of a flow that are sent, and waited for, together
WINDOW: Final = FLOWS * BURST
FIRST_PORT: Final = 9000
SIZE: Final = 100  # bytes of a datagram, behind IPv4's and UDP's 28
LOOPBACK: Final = 0x7F000001
STREAM_PORT: Final = 5201
_PATIENCE: Final = 10.0  # seconds until a queue is there, and until a packet comes out of it
_FIGURES: Final = "/proc/thread-self/net/netfilter/nfnetlink_queue"
_CHUNK: Final = 1 << 20
_PAUSE: Final = 1e-4  # seconds between looks at what has come
_TICK: Final = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """What was to be measured did not happen."""


# --- who holds the queue --------------------------------------------------------------------------


@dataclass(slots=True)
class Holder:
    """The command that holds the queues, from its start to its end; no command is no queue."""

    argv: list[str]
    queues: list[int]
    rules: bool  # whether the command places rules, too
    cpus: set[int]
    _process: subprocess.Popen[bytes] | None = None
    _out: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _err: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __enter__(self) -> Holder:
        if not self.argv:
            return self
        self._process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err
        )
        try:
            self._await()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await(self) -> None:
        """Wait until the command holds its queues, and its rules are there."""
        assert self._process
        os.sched_setaffinity(self._process.pid, self.cpus)
        until = time.monotonic() + _PATIENCE
        while not self._ready():
            if self._process.poll() is not None:
                raise Failed(f"{Path(self.argv[0]).name} ended by itself: {self._last_words()}")
            if time.monotonic() > until:
                raise Failed(f"no queue and rules within {_PATIENCE:.0f} s: {self._last_words()}")
            time.sleep(0.01)

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._err.close()

    def _ready(self) -> bool:
        if not set(self.queues) <= waiting().keys():
            return False
        return not self.rules or "-j NFQUEUE" in mangle()

    def end(self) -> dict[str, Any]:
        """End the command; return the last line it printed if that is JSON, else nothing."""
        if self._process is None:
            return {}
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"it does not end: {self._last_words()}") from None
        if code and self.rules:
            raise Failed(f"it ended with {code}: {self._last_words()}")
        self._out.seek(0)
        lines = self._out.read().decode(errors="replace").splitlines()
        found = json.loads(lines[-1]) if lines else {}
        return found if isinstance(found, dict) else {}

    def _last_words(self) -> str:
        self._err.seek(0)
        lines = self._err.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def _processes(self) -> list[Path]:
        """Return the /proc directories of the command and of what it started."""
        found = []
        pids = [self._process.pid] if self._process is not None else []
        while pids:
            process = Path(f"/proc/{pids.pop()}")
            found.append(process)
            for children in process.glob("task/*/children"):
                pids += map(int, children.read_text().split())
        return found

    def cpu(self) -> float:
        """Return the CPU seconds of the command and of what it started, its ended threads too."""
        ticks = 0
        for process in self._processes():
            user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
            ticks += int(user) + int(system)
        return ticks / _TICK

    def peak(self) -> float:
        """Return the peak memory of the largest of its processes, in MB."""
        sizes = [0]
        for process in self._processes():
            match = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
            sizes.append(int(match[1]) if match else 0)
        return max(sizes) * 1024 / 1e6


def waiting() -> dict[int, int]:
    """Return how many packets wait in each queue that somebody holds."""
    try:
        lines = Path(_FIGURES).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(words[0]): int(words[2]) for words in map(str.split, lines)}


def mangle() -> str:
    """Return the mangle table with its counters, as iptables-legacy-save prints it."""
    command = ["iptables-legacy-save", "-c", "-t", "mangle"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def counted(table: str) -> tuple[int, int]:
    """Return the packets and bytes that the rules of a table with counters have queued."""
    found = re.findall(r"^\[(\d+):(\d+)\] -A .* -j NFQUEUE ", table, re.MULTILINE)
    return sum(int(packets) for packets, _ in found), sum(int(octets) for _, octets in found)


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
        sent = _libc.sendmmsg(fd, self._at, count, 0)
        if sent != count:
            raise Failed(f"sent {sent} of {count}: {os.strerror(ctypes.get_errno())}")

    def receive(self, fd: int, count: int) -> int:
        """Receive what is there, at most so many; return how many."""
        return max(0, int(_libc.recvmmsg(fd, self._at, count, socket.MSG_DONTWAIT, None)))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_libc.recvmmsg.argtypes = (*_libc.sendmmsg.argtypes, ctypes.c_void_p)


# --- the loads ------------------------------------------------------------------------------------


class _Flow:
    """One flow of UDP: what it sends goes on the loopback interface as it is (packet(7))."""

    __slots__ = ("_batch", "coming", "fd", "number")

    def __init__(self, receiver: int, source: int, port: int) -> None:
        self.fd = receiver
        self.number = 0  # of the next packet
        self.coming = 0  # packets that are under way
        head = ipv4(socket.IPPROTO_UDP, 28 + SIZE, LOOPBACK)
        head += struct.pack(">4H", source, port, 8 + SIZE, 0)
        self._batch = Batch(BURST, SIZE, bytes(12) + b"\x08\0" + head)

    def send(self, out: int) -> None:
        """Send a burst."""
        number = self.number
        _NUMBERS[BURST].pack_into(self._batch.buffer, 0, *range(number, number + BURST))
        self.coming = BURST
        self._batch.send(out, BURST)

    def receive(self, into: Batch) -> int:
        """Receive what has come; return how many packets."""
        got, number = into.receive(self.fd, self.coming), self.number
        if _NUMBERS[got].unpack_from(into.buffer) != tuple(range(number, number + got)):
            raise Failed("packets came in another order")
        self.number += got
        self.coming -= got
        return got


_NUMBERS = [struct.Struct("=" + f"Q{SIZE - 8}x" * count) for count in range(BURST + 1)]


class Datagrams:
    """Flows of UDP over loopback: each sends its next burst when its last one has come.

    What sends must cost less than what is measured. So packets are sent ready-made, eight a call,
    and whoever lets one through wakes nobody: the load looks for itself, every now and then.
    """

    def __init__(self, stack: ExitStack, flows: int = FLOWS) -> None:
        self._out = stack.enter_context(loopback())
        self._flows = []
        for number in range(flows):
            port = FIRST_PORT + number
            receiver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            receiver.bind(("127.0.0.1", port))
            self._flows.append(_Flow(receiver.fileno(), 40_000 + number, port))

    def send(self, packets: int) -> float:
        """Send so many packets, a multiple of a burst; return the seconds until all have come.

        Each has its flow's number: one that is lost, doubled or overtaken fails.
        """
        into, out = Batch(BURST, SIZE), self._out.fileno()
        left, under_way = packets // BURST, deque[_Flow]()
        start = heard = time.perf_counter()
        for flow in self._flows[:left]:
            flow.send(out)
            under_way.append(flow)
        left -= len(under_way)
        while under_way:
            came = 0
            for _ in range(len(under_way)):
                flow = under_way.popleft()
                came += flow.receive(into)
                if not flow.coming:
                    if not left:
                        continue
                    left -= 1
                    flow.send(out)
                under_way.append(flow)
            now = time.perf_counter()
            if came:
                heard = now
            elif now > heard + _PATIENCE:
                raise Failed(f"{sum(flow.coming for flow in under_way)} packets did not come")
            time.sleep(_PAUSE)
        return time.perf_counter() - start


class Strangers:
    """Packets of ever new flows, from all of 127.0.0.0/8: a raw socket, answered by nobody.

    One in four each: a datagram of nothing, a DNS query, a QUIC Initial that is cut short, and a
    TCP segment with the beginning of a ClientHello, whose rest never comes.
    """

    def __init__(self, stack: ExitStack, hello: bytes) -> None:
        self._out = stack.enter_context(loopback())
        self._batch = Batch(WINDOW, 28 + SIZE, bytes(12) + b"\x08\0")
        self._number = 0
        udp = struct.pack(">HH", 8 + SIZE, 0)
        dns = struct.pack(">6H", 1, 0x100, 1, 0, 0, 0) + b"\x0cxxxxxxxxxxxx\x04test\0\0\1\0\1"
        quic = b"\xc3\0\0\0\1\x08xxxxxxxx\0\0\x44\xd0"
        tcp = struct.pack(">IIBBHHH", 1, 1, 0x50, 0x18, 4096, 0, 0)
        self._kinds = [
            (proto, port, body.ljust(SIZE + 4, b"\0")[: SIZE + 4])
            for proto, port, body in (
                (socket.IPPROTO_UDP, FIRST_PORT, udp),
                (socket.IPPROTO_UDP, 53, udp + dns),
                (socket.IPPROTO_UDP, 443, udp + quic),
                (socket.IPPROTO_TCP, 443, tcp + hello),
            )
        ]

    def send(self, packets: int) -> float:
        """Send so many packets; return the seconds until none of them waits any more."""
        start, size, buffer = time.perf_counter(), 28 + SIZE, self._batch.buffer
        while packets:
            count = min(packets, WINDOW)
            for slot in range(count):
                buffer[slot * size : (slot + 1) * size] = self._packet()
            self._batch.send(self._out.fileno(), count)
            packets -= count
            until = time.monotonic() + _PATIENCE
            while sum(waiting().values()):
                if time.monotonic() > until:
                    raise Failed("the queue is not emptied")
                time.sleep(_PAUSE)
        return time.perf_counter() - start

    def _packet(self) -> bytes:
        number = self._number
        self._number += 1
        proto, port, body = self._kinds[number % 4]
        source = LOOPBACK + 0x10000 + number * 2654435761 % 0xFD0000
        if port == 53:  # a name of its own
            name = b"%012x" % number
            body = body[:17] + name + body[29:]
        ports = struct.pack(">HH", 1024 + number % 60_000, port)
        return ipv4(proto, 28 + SIZE, source) + ports + body


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
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


class Stream:
    """One TCP connection over loopback: this process sends, a child of it receives."""

    def __init__(self, stack: ExitStack, cpus: list[int]) -> None:
        self._listener = stack.enter_context(
            socket.create_server(("127.0.0.1", STREAM_PORT), backlog=8)
        )
        self._receiver = cpus[-1]

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
            with socket.create_connection(("127.0.0.1", STREAM_PORT), _PATIENCE) as client:
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
            server.settimeout(_PATIENCE)
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
                socket.create_connection(("127.0.0.1", STREAM_PORT), _PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=name) as client,
            ):
                if client.recv(1) != b"+":
                    raise Failed(f"no TLS connection to {name}")
        finally:
            os.waitpid(child, 0)


# --- the program ----------------------------------------------------------------------------------


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task; return seconds, CPU seconds, memory, counters and the command's report."""
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        queues = list(range(task["queue"], task["queue"] + task.get("workers", 1)))
        others = set(cpus[1:]) or set(cpus)
        holder = stack.enter_context(Holder(task["argv"], queues, task.get("places", False), others))
        os.sched_setaffinity(0, {cpus[0]})
        before, own = counted(mangle()), os.times()
        used, marks = holder.cpu(), []
        if task["load"] == "stream":
            stream = Stream(stack, cpus)
            seconds = stream.send(task["amount"])
            now = os.times()
            used -= sum(now[:4]) - sum(own[:4])  # the load's own, which inspection may raise, too
        elif task["load"] == "strangers":
            strangers = Strangers(stack, client_hello("half.example"))
            seconds = 0.0
            for _ in range(task["steps"]):
                seconds += strangers.send(task["amount"] // task["steps"])
                marks.append(holder.peak())
        else:
            datagrams = Datagrams(stack, task.get("flows", FLOWS))
            seconds = datagrams.send(task["amount"])
        cpu, rss = holder.cpu() - used, holder.peak()
        for name in task.get("names", ()):
            stream.handshake(name, task["certificate"])
        table = mangle()
        after = counted(table)
        return {
            "seconds": seconds,
            "cpu": cpu,
            "rss_mb": rss,
            "packets": after[0] - before[0],
            "octets": after[1] - before[1],
            "marks": marks,
            "table": table,
            "report": holder.end(),
        }


def main() -> None:
    """Do the task of the first argument."""
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
