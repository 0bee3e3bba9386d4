"""A small server inside a host: it answers TCP, HTTP and UDP, and reports who came.

Every answer is one line of JSON: the address and port that the server saw as its client's
(that is what NAT changes), and what the client sent. A TCP client that begins with ``GET ``
is answered in HTTP. Each arrival is also reported to the lab's process, so that a packet
which got through is noticed even when its answer does not come back.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput
from nfctl.lab import fork, namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

_READY_TIMEOUT = 10.0  # seconds
_MAX_REQUEST = 4096  # bytes


class Arrival(NamedTuple):
    """A connection or datagram that reached the server: on which port, and from where."""

    protocol: str
    port: int
    peer: str
    peer_port: int


class Service:
    """A running server; made by :meth:`nfctl.lab.Host.serve`, ends with the lab."""

    def __init__(
        self, enter: Callable[[], None], tcp: tuple[int, ...], udp: tuple[int, ...]
    ) -> None:
        self.tcp = tcp
        self.udp = udp
        # Messages in one direction; and when this end closes, also by SIGKILL, the server ends.
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = fork.Child(_serve, enter, tcp, udp, theirs, self._reports)
        theirs.close()
        self._reports.settimeout(_READY_TIMEOUT)
        try:
            ready = self._reports.recv(1)
            if not ready:
                self._child.result(_READY_TIMEOUT)  # raises what went wrong
        except BaseException:
            self.close()
            raise
        self._reports.setblocking(False)

    def arrivals(self) -> list[Arrival]:
        """Return what has arrived since the last call, oldest first; never waits."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while report := self._reports.recv(1024):
                found.append(Arrival(*json.loads(report)))
        return found

    def close(self) -> None:
        """End the server."""
        self._reports.close()
        self._child.kill()


def _serve(
    enter: Callable[[], None],
    tcp: tuple[int, ...],
    udp: tuple[int, ...],
    reports: socket.socket,
    theirs: socket.socket,
) -> None:
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab to answer
    enter()
    try:
        _Server(tcp, udp, reports).run()
    except OSError as error:
        raise BadInput(f"cannot serve: {error}") from None


class _Server:
    """One selector loop over all sockets; its methods are the callbacks."""

    def __init__(self, tcp: tuple[int, ...], udp: tuple[int, ...], reports: socket.socket) -> None:
        self._reports = reports
        self._selector = selectors.DefaultSelector()
        families = [socket.AF_INET]
        if namespaces.has_ipv6():
            families.append(socket.AF_INET6)
        for family in families:
            for port in tcp:
                listener = _bind(family, socket.SOCK_STREAM, port)
                listener.listen(64)
                self._watch(listener, self._accept)
            for port in udp:
                self._watch(_bind(family, socket.SOCK_DGRAM, port), self._datagram)
        self._requests: dict[socket.socket, bytes] = {}

    def run(self) -> None:
        """Say that it is ready, and answer until the lab's end of the reports closes."""
        self._reports.send(b"+")
        self._reports.setblocking(False)
        self._selector.register(self._reports, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                # A client may go away at any moment; that ends its connection only.
                with contextlib.suppress(OSError):
                    key.data(key.fileobj)

    def _watch(self, sock: socket.socket, callback: Callable[[socket.socket], None]) -> None:
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, callback)

    def _report(self, protocol: str, port: int, peer: tuple[str, int]) -> None:
        with contextlib.suppress(BlockingIOError):  # nobody reads them: never wait for that
            self._reports.send(json.dumps([protocol, port, *peer]).encode())

    def _accept(self, listener: socket.socket) -> None:
        connection, peer = listener.accept()
        self._report("tcp", listener.getsockname()[1], peer[:2])
        self._requests[connection] = b""
        self._watch(connection, self._receive)

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(_MAX_REQUEST)
            if data:
                data = self._requests[connection] + data
                self._requests[connection] = data[:_MAX_REQUEST]
                if data.startswith(b"GET "):
                    if b"\r\n\r\n" not in data:
                        return
                    body = _answer(connection.getpeername(), data.partition(b"\r\n")[0])
                    head = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
                    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                elif data.endswith(b"\n"):
                    connection.sendall(_answer(connection.getpeername(), data.rstrip(b"\n")))
                    self._requests[connection] = b""
                    return
                else:
                    return
        except OSError:
            self._drop(connection)
            raise
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._requests.pop(connection, None)
        connection.close()

    def _datagram(self, sock: socket.socket) -> None:
        data, peer = sock.recvfrom(_MAX_REQUEST)
        self._report("udp", sock.getsockname()[1], peer[:2])
        sock.sendto(_answer(peer, data), peer)


def _bind(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("", port))
    except OSError as error:
        sock.close()
        raise BadInput(f"cannot serve port {port}: {error}") from None
    return sock


def _answer(peer: tuple[str, int], data: bytes) -> bytes:
    fields = {"peer": peer[0], "port": peer[1], "data": data.decode(errors="replace")}
    return json.dumps(fields).encode() + b"\n"
