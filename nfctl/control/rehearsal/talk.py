"""A connection in a copy of the firewall: real sockets at both ends, and whether data arrives."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.control.rehearsal.namespace import Namespace

    _Name = tuple[str, int] | tuple[str, int, int, int]

REQUEST, REPLY = "request", "reply"

_TYPES = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, 132),  # IPPROTO_SCTP: not in every socket module
}
_RESET = struct.pack("=ii", 1, 0)  # SO_LINGER: closing sends a reset
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78
_READ: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class End:
    """Where a socket is: the namespace, the address and the port, 0 for any.

    ``scope`` is the interface of a link-local address.
    """

    place: Namespace
    address: str
    port: int
    scope: int = 0

    @property
    def name(self) -> _Name:
        """What bind(2) and connect(2) want."""
        if ":" in self.address:
            return (self.address, self.port, 0, self.scope)
        return (self.address, self.port)

    def open(self, protocol: str) -> socket.socket:
        """Return a socket that is bound here. It has its port also after one that was closed."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        kind, number = _TYPES[protocol]
        with self.place.entered():
            opened = socket.socket(family, kind, number)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                opened.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            opened.setblocking(False)
            opened.bind(self.name)
        except BaseException:
            opened.close()
            raise
        return opened


class Servers:
    """Sockets that wait for what comes to any of these ends."""

    def __init__(self, protocol: str, ends: Sequence[End]) -> None:
        self.protocol = protocol
        self.sockets: list[socket.socket] = []
        for end in ends:
            opened = end.open(protocol)
            if protocol != "udp":
                opened.listen(16)
            self.sockets.append(opened)

    def connect(self, client: End, to: End, patience: float) -> Talk | None:
        """Connect from ``client`` to ``to``, wherever that leads; None if it fails.

        ``patience`` is in seconds; a refusal needs less.
        """
        self._forget()
        opened = client.open(self.protocol)
        try:
            number = opened.connect_ex(to.name)
            if number not in {0, errno.EINPROGRESS}:
                opened.close()
                return None
            if self.protocol == "udp":
                talk = self._datagram(opened, patience)
            else:
                talk = self._stream(opened, patience)
        except OSError:
            talk = None
        if talk is None:
            _drop(opened)
        return talk

    def _stream(self, opened: socket.socket, patience: float) -> Talk | None:
        deadline = time.monotonic() + patience
        if not _ready(opened, select.POLLOUT, deadline):
            return None
        if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return None
        called = self._called(deadline)
        if called is None:
            return None
        index, server = called
        accepted, _ = server.accept()
        accepted.setblocking(False)
        for end in (opened, accepted):
            with contextlib.suppress(OSError):  # SCTP has another
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Talk(opened, accepted, None, index)

    def _datagram(self, opened: socket.socket, patience: float) -> Talk | None:
        opened.send(b"hello")
        deadline = time.monotonic() + patience
        called = self._called(deadline)
        if called is None:
            return None
        index, server = called
        _, peer = server.recvfrom(_READ)
        server.sendto(b"hello", peer)
        if not _ready(opened, select.POLLIN, deadline):
            return None
        opened.recv(_READ)
        return Talk(opened, server, peer, index)

    def _called(self, deadline: float) -> tuple[int, socket.socket] | None:
        """Wait for whatever comes to one of the sockets; return which, None if nothing does."""
        poll = select.poll()
        for each in self.sockets:
            poll.register(each, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_left(deadline))}
        called = ((at, each) for at, each in enumerate(self.sockets) if each.fileno() in ready)
        return next(called, None)

    def _forget(self) -> None:
        """Take what an earlier attempt left behind."""
        for each in self.sockets:
            with contextlib.suppress(OSError):
                while True:
                    if self.protocol == "udp":
                        each.recv(_READ)
                    else:
                        _drop(each.accept()[0])

    def close(self) -> None:
        """Stop waiting."""
        for each in self.sockets:
            each.close()


class Talk:
    """A connection; ``peer`` is whom a server's datagrams go to, ``landed`` which server it has."""

    def __init__(
        self, client: socket.socket, server: socket.socket, peer: _Name | None, landed: int
    ) -> None:
        self.client = client
        self.server = server
        self.peer = peer
        self.landed = landed
        self._said = 0

    def exchange(self, patience: float, times: int = 1, *, server_first: bool = False) -> str:
        """Send data both ways; return which did not arrive: REQUEST, REPLY or "" for neither.

        ``server_first``: the first to speak is the server.
        """
        if server_first and not self._answer(patience):
            return REPLY
        for _ in range(times):
            if not self._say(self.client, self.server, None, patience):
                return REQUEST
            if not self._answer(patience):
                return REPLY
        return ""

    def _answer(self, patience: float) -> bool:
        return self._say(self.server, self.client, self.peer, patience)

    def _say(
        self, sender: socket.socket, receiver: socket.socket, to: _Name | None, patience: float
    ) -> bool:
        self._said += 1
        token = b"<%d>" % self._said
        heard = b""
        deadline = time.monotonic() + patience
        try:
            if to is None:
                sender.send(token)
            else:
                sender.sendto(token, to)
            while token not in heard:
                if not _ready(receiver, select.POLLIN, deadline):
                    return False
                part = receiver.recv(_READ)
                if not part:
                    return False
                heard += part
            # Acknowledged now, or it would be sent again, and so begin the connection anew for
            # conntrack, from the other side.
            with contextlib.suppress(OSError):  # no TCP
                receiver.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except BlockingIOError:
            return False
        except OSError:  # a reset, an ICMP error, or EPERM: dropped where it was sent
            return False
        return True

    def close(self) -> None:
        """End it at once, without a word that would be waited for."""
        _drop(self.client)
        if self.peer is None:
            _drop(self.server)


def _drop(closing: socket.socket) -> None:
    with contextlib.suppress(OSError):
        closing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    closing.close()


def _ready(waiting: socket.socket, events: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(waiting, events)
    return bool(poll.poll(_left(deadline)))


def _left(deadline: float) -> float:
    """Return the time until then, in milliseconds, as poll(2) wants it."""
    return max(0.0, deadline - time.monotonic()) * 1000
