"""A TCP connection of a server: what goes out waits in a buffer that cannot grow.

While that is full nothing more is read, so whoever sends and never reads waits for itself, by
TCP's own window, and takes at most 128 KiB here. What the bytes mean is for ``talks``.
"""

from __future__ import annotations

import selectors
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 16  # bytes: read at once
_FULL = 1 << 16  # bytes that wait: read no more
_LINGER = 1 << 20  # bytes: taken from a client that has its last answer and goes on talking


class Talk(Protocol):
    """What is said on a connection."""

    def feed(self, data: bytes) -> None:
        """Take what came, and go on with what came before: also called with nothing at all."""

    def end(self) -> None:
        """Take note that the client says no more (its FIN)."""


class Stream:
    """One connection; a server calls :meth:`ready` when it is, and watches for :attr:`events`.

    It is over when ``events`` is 0, or :meth:`ready` raises OSError. Set ``talk`` before.
    """

    talk: Talk

    def __init__(self, sock: socket.socket, peer: tuple[str, int], host: str) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.peer = peer
        self.host = host
        self._waiting = bytearray()
        self._source: Iterator[bytes] | None = None
        self._closing = False  # after what waits
        self._shut = False  # our end is closed
        self._ended = False  # the client's is
        self._lingered = 0

    @property
    def busy(self) -> bool:
        """Whether the talk should wait before it says more."""
        return self._closing or self._source is not None or len(self._waiting) >= _FULL

    @property
    def events(self) -> int:
        """What to wait for: ``EVENT_READ`` and ``EVENT_WRITE``, or 0 at the end."""
        if self._shut:
            return 0 if self._ended else selectors.EVENT_READ
        events = selectors.EVENT_WRITE if self._waiting or self._source is not None else 0
        return events if self.busy else events | selectors.EVENT_READ

    def send(self, data: bytes) -> None:
        """Send what can be sent now, and keep the rest for later."""
        if not self._waiting:
            data = data[self._send(data) :]
        self._waiting += data

    def send_all(self, source: Iterator[bytes]) -> None:
        """Send all that ``source`` gives, as fast as the client takes it."""
        self._source = source

    def close(self) -> None:
        """Close the connection after what still waits to be sent."""
        self._closing = True

    def ready(self, events: int) -> None:
        """Read and write what can be without waiting."""
        if events & selectors.EVENT_WRITE:
            self._flush()
            if not self.busy:
                self.talk.feed(b"")
        if events & selectors.EVENT_READ and (self._shut or not self.busy):
            data = self.socket.recv(CHUNK)
            if not data:
                self._ended = True
            if self._shut:
                self._lingered += len(data)
                self._ended |= self._lingered > _LINGER
            elif data:
                self.talk.feed(data)
            else:
                self.talk.end()
        if self._closing and not self._shut and not self._waiting and self._source is None:
            # With bytes of the client's unread, close(2) would send a reset, which may overtake
            # our last ones; so the end of its own stream is awaited.
            self._shut = True
            self.socket.shutdown(socket.SHUT_WR)

    def _flush(self) -> None:
        """Write what waits, and from the source once as much as may wait."""
        if self._source is not None and len(self._waiting) < _FULL:
            data = next(self._source, None)
            if data is None:
                self._source = None
            else:
                self._waiting += data
        del self._waiting[: self._send(self._waiting)]

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self.socket.send(data) if data else 0
        except BlockingIOError:
            return 0
