"""HTTP for a lab's servers: enough of RFC 9112 for curl, browsers and load generators.

Every path answers with what the server knows of the request, in JSON: ``peer`` and ``port``
(the client as the server sees it), ``host`` (the lab host that answers), ``method``, ``path``,
``headers``, and ``length``, the bytes of the body that came. Two paths do more:

    /status/404    answers with that status (200 to 599)
    /bytes/1000    so many bytes (1 GiB at most); byte i is i modulo 256

A connection stays open as long as the client wants, requests may come in one go (pipelining),
bodies may be chunked, and nothing is held in memory but a line and the headers. A request that
is none gets its 400, or a status that says more, and the connection ends.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab.services.streams import Stream

MAX_BYTES = 1 << 30
_MAX_LINE = 1 << 13  # bytes; of the request line and of one header
_MAX_HEAD = 1 << 16  # bytes; of all headers together
_BLOCK = bytes(range(256)) * 256

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a word of the grammar
_REQUEST = re.compile(rf"({_TOKEN}) ([!-~\x80-\xff]+) HTTP/(\d)\.(\d)")
_HEADER = re.compile(rf"({_TOKEN}):[ \t]*([^\0-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_CHUNK = re.compile(r"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_ABSOLUTE = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_STATUS = re.compile(r"/status/([2-5]\d\d)")
_BYTES = re.compile(r"/bytes/(\d{1,10})")


class _Refused(Exception):
    """The request cannot be served; the connection ends with this status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Request(NamedTuple):
    method: str
    target: str
    version: tuple[int, int]


class Http:
    """The talk on one connection; see ``streams.Talk``.

    Every step takes what it needs from the inbox, and says whether there was enough of it.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._inbox = bytearray()
        self._head = 0  # bytes of it so far
        self._expect_request()

    def feed(self, data: bytes) -> None:
        """Go on until something is missing, or the client has to take answers first."""
        self._inbox += data
        try:
            while not self._stream.busy and self._step():
                pass
        except _Refused as refused:
            self._keep = False
            body = json.dumps({"error": str(refused)}).encode() + b"\n"
            self._answer(refused.status, body)

    def end(self) -> None:
        """Close, after all that was asked has been answered."""
        self._stream.close()

    def _expect_request(self) -> None:
        self._step: Callable[[], bool] = self._request_line
        self._request = _Request("", "", (1, 1))
        self._headers: list[tuple[str, str]] = []
        self._length = 0  # bytes of the body so far
        self._left = 0  # bytes to come, of the body or of a chunk
        self._keep = True

    # --- the head -----------------------------------------------------------------------------

    def _line(self) -> str | None:
        """Take a line from the inbox, without its end; None if it is not all there."""
        end = self._inbox.find(b"\n", 0, _MAX_LINE)
        if end < 0:
            if len(self._inbox) >= _MAX_LINE:
                raise _Refused(
                    414 if self._step == self._request_line else 431, "the line is too long"
                )
            return None
        line = self._inbox[:end].removesuffix(b"\r").decode("latin-1")
        del self._inbox[: end + 1]
        self._head += end + 1
        if self._head > _MAX_HEAD:
            raise _Refused(431, "the headers are too long")
        return line

    def _request_line(self) -> bool:
        line = self._line()
        if not line:  # an empty one may come first (RFC 9112, 2.2)
            return line is not None
        found = _REQUEST.fullmatch(line)
        if not found:
            raise _Refused(400, "this is no request line of HTTP/1.1")
        method, target, major, minor = found.groups()
        if major != "1":
            raise _Refused(505, "only HTTP/1.1 is spoken here")
        if method == "CONNECT":
            raise _Refused(501, "this is no proxy")
        path = _ABSOLUTE.sub("", target, count=1)
        if path != target and not path.startswith("/"):
            path = "/" + path
        if not path.startswith("/") and (method, path) != ("OPTIONS", "*"):
            raise _Refused(400, "a request's target begins with /")
        self._request = _Request(method, path, (1, int(minor)))
        self._step = self._header
        return True

    def _header(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self._begin_body()
            return True
        found = _HEADER.fullmatch(line)
        if not found:
            raise _Refused(400, "this is no header")
        self._headers.append((found[1], found[2]))
        return True

    def _values(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key.lower() == name]

    def _words(self, name: str) -> list[str]:
        """Return the elements of a header that is a list, in lower case."""
        return [word.strip().lower() for word in ",".join(self._values(name)).split(",")]

    def _begin_body(self) -> None:
        modern = self._request.version >= (1, 1)
        if len(self._values("host")) > 1 or (modern and not self._values("host")):
            raise _Refused(400, "a request names one host")
        wish = self._words("connection")
        self._keep = "close" not in wish if modern else "keep-alive" in wish
        lengths = set(self._values("content-length"))
        if self._values("transfer-encoding"):
            if self._words("transfer-encoding") != ["chunked"]:
                raise _Refused(501, "the only transfer encoding spoken here is chunked")
            if lengths or not modern:
                raise _Refused(400, "the length of the body is not clear")
            self._step = self._chunk
        else:
            length = lengths.pop() if lengths else "0"
            if lengths or not re.fullmatch(r"[0-9]{1,18}", length):
                raise _Refused(400, "the length of the body is not clear")
            self._left = int(length)
            self._step = self._body
        if "100-continue" in self._words("expect") and modern and not self._inbox:
            self._stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- the body -----------------------------------------------------------------------------

    def _skip(self) -> bool:
        """Take what there is of the body or chunk; say whether that was all."""
        taken = min(self._left, len(self._inbox))
        del self._inbox[:taken]
        self._left -= taken
        self._length += taken
        return self._left == 0

    def _body(self) -> bool:
        if not self._skip():
            return False
        self._serve()
        return True

    def _chunk(self) -> bool:
        self._head = 0
        line = self._line()
        if line is None:
            return False
        found = _CHUNK.fullmatch(line)
        if not found:
            raise _Refused(400, "this is no chunk")
        self._left = int(found[1], 16)
        self._step = self._chunk_data if self._left else self._trailer
        return True

    def _chunk_data(self) -> bool:
        if not self._skip():
            return False
        self._step = self._chunk_end
        return True

    def _chunk_end(self) -> bool:
        line = self._line()
        if line:
            raise _Refused(400, "a chunk is longer than it says")
        self._step = self._chunk if line is not None else self._step
        return line is not None

    def _trailer(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            self._serve()
        return True

    # --- the answer ---------------------------------------------------------------------------

    def _serve(self) -> None:
        path = self._request.target.partition("?")[0]
        if found := _BYTES.fullmatch(path):
            size = int(found[1])
            if size > MAX_BYTES:
                raise _Refused(400, f"{MAX_BYTES} bytes are the most")
            self._answer(200, b"", size=size)
            return
        if path.startswith("/bytes/"):
            raise _Refused(400, "how many bytes?")
        status = _STATUS.fullmatch(path)
        if path.startswith("/status/") and not status:
            raise _Refused(400, "a status is a number from 200 to 599")
        headers: dict[str, str] = {}
        for name, value in self._headers:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        peer, port = self._stream.peer
        fields = {
            "peer": peer,
            "port": port,
            "host": self._stream.host,
            "method": self._request.method,
            "path": self._request.target,
            "headers": headers,
            "length": self._length,
        }
        self._answer(int(status[1]) if status else 200, json.dumps(fields).encode() + b"\n")

    def _answer(self, status: int, body: bytes, *, size: int | None = None) -> None:
        """Answer with ``body``, or with ``size`` bytes, and be ready for the next request."""
        from email.utils import formatdate  # not loaded by a lab without HTTP
        from http import HTTPStatus

        body = b"" if status == 205 else body  # RFC 9110, 15.3.6
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""  # it may be empty
        kind = "application/json" if size is None else "application/octet-stream"
        length = len(body) if size is None else size
        lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
        if status not in {204, 304}:  # these have no body, and so no length of it
            lines += [f"Content-Type: {kind}", f"Content-Length: {length}"]
        lines.append(f"Connection: {'keep-alive' if self._keep else 'close'}")
        head = "\r\n".join([*lines, "", ""]).encode()
        bodiless = self._request.method == "HEAD" or status in {204, 304}
        self._stream.send(head if bodiless else head + body)
        if size and not bodiless:
            self._stream.send_all(_blocks(size))
        if not self._keep:
            self._stream.close()
        self._head = 0
        self._expect_request()


def _blocks(size: int) -> Iterator[bytes]:
    for left in range(size, 0, -len(_BLOCK)):
        yield _BLOCK[:left]
