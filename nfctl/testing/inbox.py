"""Listen in a host, and see what arrives with which addresses."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput
from nfctl.lab import namespaces
from nfctl.testing.sending import What

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host

_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50  # linux/in.h, linux/in6.h
_LARGEST = 1 << 16  # bytes


class Message(NamedTuple):
    """A datagram, or all that came over a TCP connection; both ends as the receiver sees them."""

    payload: bytes
    source: str
    source_port: int
    destination: str
    destination_port: int


class Inbox:
    """What arrives at a port while :func:`receive` listens. It answers nothing."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._messages: list[Message] = []

    def wait(self, count: int = 1, *, timeout: float = 2.0) -> list[Message]:
        """Return all that has arrived, once it is ``count`` messages or ``timeout`` s are over."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic()) if len(self._messages) < count else 0
            ready = select.select(self._sockets, [], [], left)[0]
            if not ready:
                return list(self._messages)
            self._messages += [_take(sock, deadline) for sock in ready]

    @property
    def messages(self) -> list[Message]:
        """What has arrived by now; never waits for more."""
        return self.wait(0)


def _take(sock: socket.socket, deadline: float) -> Message:
    if sock.type == socket.SOCK_STREAM:
        connection, peer = sock.accept()
        with connection:
            own = connection.getsockname()
            parts = []
            with contextlib.suppress(OSError):  # a client that goes away ends its own message
                while True:
                    connection.settimeout(max(0.001, deadline - time.monotonic()))
                    part = connection.recv(_LARGEST)
                    if not part:
                        break
                    parts.append(part)
        return Message(b"".join(parts), peer[0], peer[1], own[0], own[1])
    data, extra, _, peer = sock.recvmsg(_LARGEST, 128)
    own = ""
    for level, kind, value in extra:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            own = socket.inet_ntop(socket.AF_INET, value[8:12])  # struct in_pktinfo, ipi_addr
        elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            own = socket.inet_ntop(socket.AF_INET6, value[:16])
    return Message(data, peer[0], peer[1], own, sock.getsockname()[1])


@contextlib.contextmanager
def receive(host: Host, what: str) -> Iterator[Inbox]:
    """Listen on ``udp/PORT`` or ``tcp/PORT`` of a host, in both families, for the ``with`` block.

        with receive(server, "udp/514") as inbox:
            send(client, server, "udp/514", b"<13>hello")
            assert inbox.wait()[0].source == "192.0.2.10"

    BadInput if the port is taken there.
    """
    wanted = What.parse(what)
    if wanted.protocol not in {"tcp", "udp"}:
        raise BadInput(f"{what} cannot be received", hint="udp/514 or tcp/22")
    kind = socket.SOCK_STREAM if wanted.protocol == "tcp" else socket.SOCK_DGRAM
    families = [socket.AF_INET] + [socket.AF_INET6] * namespaces.has_ipv6()
    sockets = [_opened(host, family, kind, wanted) for family in families]
    try:
        yield Inbox(sockets)
    finally:
        for sock in sockets:
            sock.close()


def _opened(host: Host, family: int, kind: int, what: What) -> socket.socket:
    """Open a socket inside the host; a socket stays in the namespace where it was made."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def inside() -> str:
            try:
                with socket.socket(family, kind) as sock:
                    _listen(sock, what.port)
                    socket.send_fds(theirs, [b"+"], [sock.fileno()])
            except OSError as error:
                return error.strerror or str(error)
            return ""

        failed = host.run(inside)
        if failed:
            raise BadInput(f"cannot receive {what.protocol}/{what.port} in {host.name}: {failed}")
        descriptors = socket.recv_fds(ours, 1, 1)[1]
    return socket.socket(fileno=descriptors[0])


def _listen(sock: socket.socket, port: int) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    if sock.type == socket.SOCK_STREAM:
        sock.listen(64)
