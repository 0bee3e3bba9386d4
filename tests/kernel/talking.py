"""Clients that make very many connections, and a server for all endpoints of a service.

TCP's server speaks first. Each answer says by which address a client came, and from which.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.lab import fork
from tests.kernel.conftest import PATIENCE, SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection

    from nfctl.lab import Host

SERVED: Final = 8080  # the port
WAIT: Final = 20.0 * SLOWNESS  # seconds for what is sure to come
LOST: Final = 2.0 * SLOWNESS  # seconds after which a datagram is lost
RESET: Final = "RST"
SILENCE: Final = "silence"

_GOODBYE: Final = b"!"
_SHIFTS: Final = 20  # a second
_AT_ONCE: Final = 256
_BACKLOG: Final = 4096


class Answer(NamedTuple):
    """Who served whom, as the server said; or why nobody did.

    That is "silence", "ICMP 3/3" (type and code), "RST", or a name of errno(3).
    """

    server: str = ""
    client: str = ""
    failure: str = ""


class Ask(NamedTuple):
    """A connection to be made. ``source`` may be "", and ``port`` of it 0."""

    to: str
    port: int
    source: str = ""
    source_port: int = 0


# --- clients --------------------------------------------------------------------------------------

_kept: dict[int, socket.socket] = {}


def connect(protocol: str, asks: Sequence[Ask], wait: float) -> list[tuple[str, ...]]:
    """Make connections, many at once; those count as silent which are left when nothing moves.

    ``wait`` is in seconds. Of TCP, the server ends them first, so that the client has no TIME_WAIT
    and can use the port again. Without resets: after one conntrack does not take the next SYN from
    the same port for a new connection's, and it goes where the last one went.
    """
    found: list[tuple[str, ...]] = [("", "", SILENCE)] * len(asks)
    under_way: dict[int, tuple[int, socket.socket]] = {}
    todo = iter(enumerate(asks))

    def end(descriptor: int) -> None:
        under_way.pop(descriptor)[1].close()

    with select.epoll() as epoll:
        while True:
            while len(under_way) < _AT_ONCE and (item := next(todo, None)) is not None:
                index, ask = item
                sock, failure = _begun(protocol, ask)
                under_way[sock.fileno()] = index, sock
                epoll.register(sock, select.EPOLLIN)
                if failure:
                    found[index] = ("", "", failure)
                    end(sock.fileno())
            if not under_way:
                return found
            events = epoll.poll(wait)
            for descriptor, _ in events:
                index, sock = under_way[descriptor]
                try:
                    answer = sock.recv(256)
                    if answer:
                        found[index] = (*answer.decode().split(), "")
                        if protocol == "tcp":
                            sock.send(_GOODBYE)
                            continue
                except OSError as error:
                    if not found[index][0]:
                        found[index] = ("", "", _why(sock, error))
                end(descriptor)
            if not events:
                for descriptor in list(under_way):
                    end(descriptor)


def _socket(protocol: str, ask: Ask) -> socket.socket:
    """Return a socket that is bound as asked."""
    is_6 = ":" in ask.to
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET6 if is_6 else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    sock.setsockopt(*(_IPV6_RECVERR if is_6 else _IP_RECVERR), 1)  # keep what ICMP says
    if ask.source or ask.source_port:
        if protocol == "tcp" and not ask.source_port:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind((ask.source, ask.source_port))
        except BaseException:
            sock.close()
            raise
    return sock


def _begun(protocol: str, ask: Ask) -> tuple[socket.socket, str]:
    """Begin a connection; return its socket, and why it has failed already."""
    while True:
        try:
            sock = _socket(protocol, ask)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not ask.source_port:
                raise
            ask = ask._replace(source_port=ask.source_port + 1000)  # the last one is still closing
            continue
        try:
            _begin(sock, protocol, ask)
        except OSError as error:
            return sock, _why(sock, error)
        return sock, ""


def _begin(sock: socket.socket, protocol: str, ask: Ask) -> None:
    """Begin a connection, without waiting for anything."""
    if protocol == "udp":
        sock.connect((ask.to, ask.port))
        sock.send(b"?")
    else:
        number = sock.connect_ex((ask.to, ask.port))
        if number not in {0, errno.EINPROGRESS}:
            raise OSError(number, os.strerror(number))


_IP_BIND_ADDRESS_NO_PORT: Final = 24
_IP_RECVERR: Final = (socket.IPPROTO_IP, 11)
_IPV6_RECVERR: Final = (socket.IPPROTO_IPV6, 25)
_ERROR: Final = struct.Struct("=IBBBxII")  # struct sock_extended_err: number, origin, type, code


def _why(sock: socket.socket, error: OSError) -> str:
    """Return what ICMP said of a connection, or else what the error is."""
    with suppress(BlockingIOError):
        _, ancillary, _, _ = sock.recvmsg(256, 256, socket.MSG_ERRQUEUE)
        for level, kind, data in ancillary:
            if (level, kind) in {_IP_RECVERR, _IPV6_RECVERR}:
                _, _, icmp_type, code, _, _ = _ERROR.unpack_from(data)
                return f"ICMP {icmp_type}/{code}"
    if error.errno == errno.ECONNREFUSED:
        return RESET
    return errno.errorcode.get(error.errno or 0, str(error))


def open_one(to: str, port: int, source: str) -> tuple[int, tuple[str, ...]]:
    sock = _socket("tcp", Ask(to, port, source))
    sock.settimeout(WAIT)
    sock.connect((to, port))
    _kept[sock.fileno()] = sock
    return sock.fileno(), _heard(sock)


def say(number: int) -> tuple[str, ...]:
    with suppress(OSError):  # recv says it
        _kept[number].send(b"?")
    return _heard(_kept[number])


def _heard(sock: socket.socket) -> tuple[str, ...]:
    try:
        answer = sock.recv(256)
    except OSError as error:
        return "", "", _why(sock, error)
    return (*answer.decode().split(), "") if answer else ("", "", "closed")


class Hammer:
    """A client that connects as fast as it can until it is told to stop."""

    def __init__(self, host: Host, protocol: str, asks: Sequence[Ask]) -> None:
        self._pipe, theirs = Pipe()
        self._child = fork.Child(_hammer, host.enter, protocol, list(asks), theirs)
        theirs.close()
        with suppress(EOFError):  # what ended it, stop() raises
            self._pipe.recv()  # it is at work

    def stop(self) -> Counter[Answer]:
        """Stop, and return how often which answer came; every connection begun has ended."""
        with suppress(BrokenPipeError):
            self._pipe.send(None)
        found = self._child.result(PATIENCE)
        self._pipe.close()
        return Counter({Answer(*answer): count for answer, count in found.items()})

    def close(self) -> None:
        """End it, whatever it does."""
        self._pipe.close()
        self._child.kill()


def _hammer(
    enter: Callable[[], None], protocol: str, asks: Sequence[Ask], pipe: Connection
) -> Counter[tuple[str, ...]]:
    enter()
    found: Counter[tuple[str, ...]] = Counter()
    began = time.monotonic()
    told = False
    while not pipe.poll():
        if protocol == "tcp":
            found.update(connect(protocol, asks, WAIT))
        else:  # now and then from other ports: a flow keeps its endpoint
            shift = int((time.monotonic() - began) * _SHIFTS)
            moved = [ask._replace(source_port=ask.source_port + shift) for ask in asks]
            found.update(connect(protocol, moved, LOST))
        if not told:
            pipe.send(None)
            told = True
    return found


# --- the endpoints --------------------------------------------------------------------------------


class Server:
    """The endpoints: TCP and UDP on every address, in one process."""

    def __init__(self, host: Host, addresses: Sequence[str]) -> None:
        self._pipe, theirs = Pipe()
        self._child = fork.Child(_serve, host.enter, addresses, theirs, self._pipe)
        theirs.close()
        self._receive()  # it is ready

    def served(self, protocol: str) -> Counter[str]:
        """Return how many connections or datagrams came to each address since it was asked last."""
        self._pipe.send(protocol)
        found = self._receive()
        assert isinstance(found, Counter)
        return found

    def _receive(self) -> object:
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError("the endpoints do not answer")
        return self._pipe.recv()

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._child.kill()


def _serve(
    enter: Callable[[], None], addresses: Sequence[str], pipe: Connection, theirs: Connection
) -> None:
    theirs.close()
    enter()
    _Endpoints(addresses, pipe).run()


class _Endpoints:
    def __init__(self, addresses: Sequence[str], pipe: Connection) -> None:
        self._pipe = pipe
        self._epoll = select.epoll()
        self._served: dict[str, Counter[str]] = {"tcp": Counter(), "udp": Counter()}
        self._acts: dict[int, Callable[[], None]] = {}
        self._add(pipe.fileno(), self._ask)
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind, act in ((socket.SOCK_STREAM, self._accept), (socket.SOCK_DGRAM, self._reply)):
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, SERVED))
                if kind == socket.SOCK_STREAM:
                    sock.listen(_BACKLOG)
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                self._add(sock.fileno(), partial(act, sock, address))
        pipe.send(None)

    def run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                self._acts[descriptor]()

    def _add(self, descriptor: int, act: Callable[[], None]) -> None:
        self._acts[descriptor] = act
        self._epoll.register(descriptor, select.EPOLLIN)

    def _ask(self) -> None:
        protocol = self._pipe.recv()  # ends by EOFError with the test
        self._pipe.send(self._served[protocol])
        self._served[protocol] = Counter()

    def _accept(self, listener: socket.socket, address: str) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    sock, source = listener.accept()
                except ConnectionError:
                    continue
                self._served["tcp"][address] += 1
                sock.setblocking(False)
                self._add(sock.fileno(), partial(self._go_on, sock, address, source[0]))
                self._say(sock, address, source[0])

    def _go_on(self, sock: socket.socket, address: str, source: str) -> None:
        data = b""
        with suppress(OSError):
            data = sock.recv(256)
        if data and data != _GOODBYE:
            self._say(sock, address, source)
            return
        self._epoll.unregister(sock)
        del self._acts[sock.fileno()]
        sock.close()

    def _say(self, sock: socket.socket, address: str, source: str) -> None:
        with suppress(OSError):
            sock.send(f"{address} {source}\n".encode())

    def _reply(self, sock: socket.socket, address: str) -> None:
        with suppress(BlockingIOError):
            while True:
                try:
                    _, source = sock.recvfrom(256)
                except ConnectionError:  # a client is gone, which is no matter
                    continue
                self._served["udp"][address] += 1
                with suppress(OSError):
                    sock.sendto(f"{address} {source[0]}\n".encode(), source)
