"""The lab's HTTP server without a network: Python's own client reads what it answers."""

from __future__ import annotations

import io
import json
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.lab.services.httpd import MAX_BYTES, Http

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from nfctl.lab.services.streams import Stream


class Wire:
    """A stream that keeps what is sent, and whether it was closed."""

    peer = ("192.0.2.1", 1234)
    host = "server"

    def __init__(self) -> None:
        self.sent = b""
        self.busy = False

    def send(self, data: bytes) -> None:
        assert not self.busy, "nothing is said on a connection that is closed"
        self.sent += data

    def send_all(self, source: Iterator[bytes]) -> None:
        for block in source:
            self.send(block)

    def close(self) -> None:
        self.busy = True


def talk(*parts: bytes) -> Wire:
    """Return what came of these bytes, in these pieces."""
    wire = Wire()
    http = Http(cast("Stream", wire))
    for part in parts:
        http.feed(part)
    return wire


def read(sent: bytes, *methods: str) -> list[tuple[HTTPResponse, bytes]]:
    """Read the answers as http.client does, one for each method, and find no byte more."""
    file = io.BytesIO(sent)
    file.close = lambda: None  # type: ignore[method-assign] # the next answer is in it, too
    answers = []
    for method in methods:
        fake = type("Socket", (), {"makefile": lambda *_: file})()
        response = HTTPResponse(cast("socket.socket", fake), method=method)
        response.begin()
        answers.append((response, response.read()))
    assert file.read() == b""
    return answers


def one(request: bytes, method: str = "GET") -> tuple[int, dict[str, Any], Wire]:
    wire = talk(request)
    [(response, body)] = read(wire.sent, method)
    return response.status, json.loads(body) if body else {}, wire


GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"


class TestAnswers:
    """What is asked well is answered well."""

    def test_get(self) -> None:
        """A GET is answered by who asks, who answers, and what was asked."""
        status, found, wire = one(GET[:-2] + b"X-A: 1\r\nx-b:\t\xe9 \r\nX-A: 2\r\n\r\n")
        assert status == 200
        assert found == {
            "peer": "192.0.2.1",
            "port": 1234,
            "host": "server",
            "method": "GET",
            "path": "/a?b=c",
            "headers": {"Host": "x", "X-A": "1, 2", "x-b": "\xe9"},
            "length": 0,
        }
        assert not wire.busy

    def test_head(self) -> None:
        """HEAD is answered by the length of what GET would bring, and no more."""
        wire = talk(GET.replace(b"GET", b"HEAD"))
        [(head, body)] = read(wire.sent, "HEAD")
        assert (head.status, body) == (200, b"")
        [(_, body)] = read(talk(GET).sent, "GET")
        assert int(head.getheader("Content-Length", "")) == len(body) + len("HEAD") - len("GET")

    @pytest.mark.parametrize("status", [200, 204, 205, 299, 304, 404, 500, 599])
    def test_status(self, status: int) -> None:
        """A status is answered as asked for, also those without a body or a name."""
        wire = talk(f"GET /status/{status} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), GET)
        (first, body), (second, _) = read(wire.sent, "GET", "GET")
        assert first.status == status
        assert bool(body) == (status not in {204, 205, 304})
        assert second.status == 200

    @pytest.mark.parametrize("size", [0, 1, 255, 65536, 65537, 200_000])
    def test_bytes(self, size: int) -> None:
        """As many bytes come as were asked for, and byte i is i modulo 256."""
        wire = talk(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), GET)
        (_, body), (second, _) = read(wire.sent, "GET", "GET")
        assert body == bytes(index % 256 for index in range(size))
        assert second.status == 200

    @pytest.mark.parametrize(
        ("version", "connection", "stays"),
        [
            ("1.1", "", True),
            ("1.1", "close", False),
            ("1.1", "x, CLOSE", False),
            ("1.0", "", False),
            ("1.0", "Keep-Alive", True),
        ],
    )
    def test_keep_alive(self, version: str, connection: str, stays: bool) -> None:
        """The connection stays open as RFC 9112, 9.3 says, and the answer says so, too."""
        request = f"GET / HTTP/{version}\r\nHost: x\r\nConnection: {connection}\r\n\r\n"
        wire = talk(request.encode())
        [(response, _)] = read(wire.sent, "GET")
        assert wire.busy is not stays
        assert response.will_close is not stays

    def test_body(self) -> None:
        """The body of other methods is read and counted, and the next request is the next."""
        body = GET * 10_000  # what looks like a request within a body is none
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        wire = talk(head + body[:9], body[9:100_000], body[100_000:] + GET)
        (_, posted), (_, got) = read(wire.sent, "POST", "GET")
        assert json.loads(posted)["length"] == len(body)
        assert json.loads(got)["length"] == 0

    def test_chunks(self) -> None:
        """A chunked body is read with its extensions and trailers."""
        head = b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"5\r\nhello\r\nA;name=value\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n"
        wire = talk(head + chunks + GET)
        (put, body), (get, _) = read(wire.sent, "PUT", "GET")
        assert (put.status, get.status) == (200, 200)
        assert json.loads(body)["length"] == 15

    def test_continue(self) -> None:
        """A client that waits for it is told to go on, before its body and not after."""
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        assert talk(head).sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert talk(head + b"ab").sent.startswith(b"HTTP/1.1 200")

    def test_targets(self) -> None:
        """A target may name its server, and a line may end without CR; blank lines may lead."""
        assert one(b"\r\n\nGET http://x:80?q HTTP/1.1\nHost: x\n\n")[1]["path"] == "/?q"
        assert one(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")[1]["path"] == "*"


REFUSED = {
    b"GET /\r\n\r\n": 400,
    b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"hello\r\n": 400,
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\n": 400,
    b"GET x HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\0\r\n\r\n": 400,
    b"GET /bytes/ HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"GET /bytes/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (MAX_BYTES + 1): 400,
    b"GET /status/100 HTTP/1.1\r\nHost: x\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n": 400,
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n": 501,
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n": 501,
    b"GET / HTTP/2.0\r\n\r\n": 505,
    b"GET /" + b"x" * 9000: 414,
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 9000: 431,
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: 1234567890\r\n" * 5000: 431,
}


@pytest.mark.parametrize(("request_", "status"), REFUSED.items(), ids=lambda one: repr(one)[:40])
def test_refusals(request_: bytes, status: int) -> None:
    """A request that is none, or not clear, or too long, is refused and ends the connection."""
    found, body, wire = one(request_)
    assert found == status
    assert wire.busy
    assert set(body) == {"error"}
    assert b"Connection: close" in wire.sent


PIECES = st.sampled_from(
    [GET, *REFUSED, b"\r\n", b"GET ", b"POST / HTTP/1.1\r\nHost: x\r\n", b"Content-Length: 5\r\n",
     b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n", b"hello"]
)  # fmt: skip


class TestAnyBytes:
    """Parsing is total, and does not depend on how TCP cuts it."""

    @given(st.lists(st.one_of(st.binary(max_size=50), PIECES), max_size=8))
    def test_total(self, parts: list[bytes]) -> None:
        """Any bytes get answers or none, and no exception."""
        wire = talk(*parts)
        rest = wire.sent.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
        assert rest == b"" or rest.startswith(b"HTTP/1.1 ")

    @given(st.lists(PIECES, max_size=5).map(b"".join), st.integers(1, 40))
    def test_cuts(self, data: bytes, size: int) -> None:
        """The answers are the same in whatever pieces the requests come."""
        pieces = [data[start : start + size] for start in range(0, min(len(data), 4000), size)]
        whole, cut = talk(data[:4000]), talk(*pieces)
        assert without_dates(cut.sent) == without_dates(whole.sent)
        assert cut.busy == whole.busy


def without_dates(sent: bytes) -> list[bytes]:
    return [line for line in sent.split(b"\r\n") if not line.startswith(b"Date: ")]
