"""Heads of HTTP/1 messages against Python's own server and client, and what tries to hide."""

from __future__ import annotations

import io
import time
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfctl.inspect.payloads import http

if TYPE_CHECKING:
    import socket

    from nfctl.inspect.payloads.http import Http


class Server(BaseHTTPRequestHandler):
    """Python's reading of a request, without a connection."""

    def __init__(self, data: bytes) -> None:
        self.rfile = io.BytesIO(data)
        self.wfile = io.BytesIO()
        self.raw_requestline = self.rfile.readline()
        self.client_address = ("192.0.2.1", 1)
        assert self.parse_request(), self.wfile.getvalue()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def one(data: bytes) -> Http:
    found = http.read(data)
    assert found is not None
    return found


tokens = st.from_regex(r"[A-Z][A-Z-]{0,15}", fullmatch=True)
paths = st.from_regex(r"(/[a-zA-Z0-9._~%:@!$&'()*+,;=-]{0,20}){1,4}", fullmatch=True)
queries = st.from_regex(r"(\?[a-z0-9=&/?%]{0,30})?", fullmatch=True)
hosts = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,30}[A-Za-z0-9])?(:[0-9]{1,5})?", fullmatch=True)
values = st.from_regex(r"[!-~]([ -~]{0,40}[!-~])?", fullmatch=True)
fields = st.lists(
    st.tuples(st.from_regex(r"X-[A-Za-z-]{1,10}", fullmatch=True), values), max_size=6
)


@given(tokens, paths, queries, hosts, values, fields, st.sampled_from(["1.0", "1.1"]))
@settings(deadline=None)
def test_requests_as_python_reads_them(
    method: str,
    path: str,
    query: str,
    host: str,
    agent: str,
    more: list[tuple[str, str]],
    version: str,
) -> None:
    """Method, target, version, host and user agent are what http.server reads."""
    lines = [f"{method} {path}{query} HTTP/{version}", f"hOsT: {host}", f"User-Agent:{agent}"]
    lines[1:1] = [f"{name}: {value}" for name, value in more]
    data = "\r\n".join([*lines, "", "body"]).encode()
    server = Server(data)
    found = one(data)
    assert (found.method, found.version) == (server.command, server.request_version[5:])
    assert found.target == path + query
    # Python makes one slash of several, so that nobody is led to //host/
    assert found.path.lstrip("/") == server.path.partition("?")[0].lstrip("/")
    assert found.user_agent == server.headers["User-Agent"]
    assert found.host == server.headers["Host"].partition(":")[0].lower()
    assert (found.complete, found.ambiguous, found.status) == (True, False, 0)


@given(st.integers(100, 599), values | st.just(""), fields)
@settings(deadline=None)
def test_responses_as_python_reads_them(
    status: int, reason: str, more: list[tuple[str, str]]
) -> None:
    """Status and reason are what http.client reads."""
    head = "".join(f"{name}: {value}\r\n" for name, value in more)
    data = f"HTTP/1.1 {status} {reason}\r\n{head}\r\nbody".encode()
    found = one(data)
    assert (found.method, found.version, found.complete) == ("", "1.1", True)
    assert (found.status, found.reason) == (status, reason)
    if status != 100:  # http.client reads on, to what follows 100 Continue
        fake = type("Socket", (), {"makefile": lambda *_: io.BytesIO(data)})()
        with HTTPResponse(cast("socket.socket", fake)) as response:
            response.begin()
            assert (response.status, response.reason) == (found.status, found.reason)


@pytest.mark.parametrize(
    ("data", "host", "path", "ambiguous"),
    [
        (b"GET / HTTP/1.1\r\nHost: A.example.:80\r\n\r\n", "a.example", "/", False),
        (b"GET / HTTP/1.1\nhost:a\n\n", "a", "/", False),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/", False),
        (b"GET  \t/  HTTP/1.1 \r\nHost : a \r\n\r\n", "a", "/", False),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/", False),
        (b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", "a", "/", False),
        (b"GET / HTTP/1.1\r\n folded: x\r\nHost: a\r\n\r\n", "a", "/", False),
        (b"GET / HTTP/1.1\r\nHost: [2001:DB8::1]:8080\r\n\r\n", "2001:db8::1", "/", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "a", "/", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "a", "/", True),
        (b"GET http://U:p@A.org:8/x?q HTTP/1.1\r\nHost: a.org\r\n\r\n", "a.org", "/x", False),
        (b"GET http://a.org HTTP/1.1\r\n\r\n", "a.org", "/", False),
        (b"GET http://a.org?q HTTP/1.1\r\n\r\n", "a.org", "/", False),
        (b"GET http://a.org/ HTTP/1.1\r\nHost: b.org\r\n\r\n", "a.org", "/", True),
        (b"GET /http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", "b", "/http://a/", False),
        (b"CONNECT a.org:443 HTTP/1.1\r\nHost: a.org:443\r\n\r\n", "a.org", "", False),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "a", "*", False),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "a", "/a b", False),
        (b"GET / HTTP/1.0\r\n\r\n", "", "/", False),
        (b"GET / HTTP/1.1\r\nX: a\r\n\r\nHost: b\r\n\r\n", "", "/", False),
    ],
)
def test_hosts(data: bytes, host: str, path: str, ambiguous: bool) -> None:
    """The host is found however the request names it, and two of them are told."""
    found = one(data)
    assert (found.host, found.path, found.ambiguous) == (host, path, ambiguous)
    assert found.complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        b"GET ",
        b"GET /\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.12\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS rtsp://a/ RTSP/1.0\r\n\r\n",
        b"INVITE sip:a@b SIP/2.0\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 2000 High\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"MAIL FROM:<a@b> HTTP\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b" GET / HTTP/1.1\r\n\r\n",
        b"<html>",
        b"\r\n" * 5000,
        b"A" * 9000,
    ],
)
def test_what_is_no_head(data: bytes) -> None:
    """Other protocols, other versions and bodies are not taken for HTTP/1."""
    assert http.read(data) is None


def test_every_cut() -> None:
    """A cut head says so; a host is told once its line is whole, and never half of it."""
    data = b"GET http://first.example/x?y HTTP/1.1\r\nHost: first.example\r\nA: b\r\n\r\n"
    for size in range(len(data)):
        found = http.read(data[:size])
        if found is None:
            assert size < len("GET http://")
            continue
        assert found.method == "GET"
        assert not found.complete
        assert found.host in {"", "first.example"}
        assert found.host or size <= data.index(b"/x")
    plain = b"GET / HTTP/1.1\r\nHost: first.example\r\nA: b\r\n\r\n"
    for size in range(len(b"GET /"), len(plain)):
        assert one(plain[:size]).host == ("first.example" if size > plain.index(b"\nA") else "")


def test_a_request_line_that_goes_on() -> None:
    """A target longer than a packet is known as far as it goes."""
    found = one(b"GET /" + b"a" * 1400)
    assert (found.method, found.version, found.complete) == ("GET", "", False)
    assert found.path == "/" + "a" * 1400


def test_what_a_terminal_must_not_see() -> None:
    """Control characters and bytes beyond ASCII come back escaped."""
    found = one(b"GET /\x1b[2J\xe9 HTTP/1.1\r\nHost: a\x07\x00\r\nUser-Agent: \x9b\r\n\r\n")
    assert (found.target, found.host, found.user_agent) == (r"/\x1b[2J\xe9", r"a\x07\x00", r"\x9b")


@pytest.mark.parametrize(
    "data",
    [
        b"GET " + b" " * 60_000,
        b"GET / HTTP/1.1\r\nA: b\r\n" + b" c\n" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"Host:a\n" * 9_000,
        b"GET / HTTP/1.1\r\n" + b"\r" * 60_000,
        b"GET http://" + b"@:[" * 20_000 + b" HTTP/1.1\n\n",
        b"\r\n" * 30_000,
        b"A-" * 30_000,
    ],
)
def test_hostile_heads_cost_little(data: bytes) -> None:
    """64 KB of the worst are looked at within 50 ms of CPU."""
    begin = time.thread_time()
    http.read(data)
    assert time.thread_time() - begin < 0.05
