"""What a lab's servers say over TCP: an echo, who the client is, DNS; for HTTP see ``httpd``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from nfctl.lab import dns
from nfctl.lab.services.httpd import Http

if TYPE_CHECKING:
    from nfctl.lab.services.streams import Stream

WHOAMI = re.compile(rb"whoami\r?\n")
_BEGINNINGS = (b"whoami\n", b"whoami\r\n", b"GET ")


def whoami(peer: tuple[str, int], host: str) -> bytes:
    """Return the line of JSON that says which lab host answers, and whom it sees."""
    fields = {"peer": peer[0], "port": peer[1], "host": host}
    return json.dumps(fields).encode() + b"\n"


class Greeting:
    """The beginning of a connection to a plain port: what comes first says what it is to be.

    A line ``whoami`` is answered, and what comes after it begins anew; ``GET `` makes it HTTP,
    and all else makes it an echo for good. What may yet become one of the two is held back.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Decide as soon as it can be."""
        self._held += data
        while not self._stream.busy and (asked := WHOAMI.match(self._held)):
            self._held = self._held[asked.end() :]
            self._stream.send(whoami(self._stream.peer, self._stream.host))
        if self._stream.busy or any(word.startswith(self._held) for word in _BEGINNINGS):
            return
        self._go_on(Http(self._stream) if self._held.startswith(b"GET ") else Echo(self._stream))

    def end(self) -> None:
        """Echo what was held back: it is nothing but text, then."""
        echo = Echo(self._stream)
        self._go_on(echo)
        echo.end()

    def _go_on(self, talk: Echo | Http) -> None:
        self._stream.talk = talk
        talk.feed(self._held)


class Echo:
    """All comes back as it is (RFC 862)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def feed(self, data: bytes) -> None:
        """Send it back."""
        self._stream.send(data)

    def end(self) -> None:
        """Close, after all has gone back."""
        self._stream.close()


class Queries:
    """DNS over TCP: messages, each after its length in two bytes (RFC 7766)."""

    def __init__(self, stream: Stream, zone: dns.Zone) -> None:
        self._stream = stream
        self._zone = zone
        self._inbox = bytearray()

    def feed(self, data: bytes) -> None:
        """Answer the queries that are complete, in their order; what is none ends it."""
        self._inbox += data
        while not self._stream.busy:
            end = 2 + int.from_bytes(self._inbox[:2])
            if len(self._inbox) < max(end, 2):
                return
            answer = self._zone.answer(bytes(self._inbox[2:end]), limit=dns.TCP_LIMIT)
            del self._inbox[:end]
            if answer is None:
                self._stream.close()
                return
            self._stream.send(len(answer).to_bytes(2) + answer)

    def end(self) -> None:
        """Close; a query that is not complete gets no answer."""
        self._stream.close()
