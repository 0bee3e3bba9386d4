"""Health checks: real sockets on the loopback, and a clock that the tests turn."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import select
import socket
import time
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.services import health
from nfctl.services.checks import MOST, Check, Told
from nfctl.services.health import Change, Prober, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.services.health import Endpoint

PATIENCE: Final = 30.0  # seconds until something hangs
HOSTS: Final = {4: "127.0.0.1", 6: "::1"}
FAMILIES: Final = pytest.mark.parametrize("family", [4, 6])
OK: Final = b"HTTP/1.1 200 OK\r\n"
TCP: Final = Check(rise=1, fall=1, timeout=2, interval=5)
HTTP: Final = Check("http", path="/", rise=1, fall=1, timeout=2, interval=5)


# --- what is to be checked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("tcp", Check()),
        ("TCP", Check()),
        ("tcp://:8081", Check(port=8081)),
        ("http", Check("http", path="/")),
        ("http://:8080/healthz", Check("http", 8080, "/healthz")),
        ("http:///healthz?full=1", Check("http", 0, "/healthz?full=1")),
        ("http://?full=1", Check("http", 0, "/?full=1")),
        ("http://shop.example:8080/x", Check("http", 8080, "/x", "shop.example")),
        ("http://[2001:db8::1]:80/", Check("http", 80, "/", "[2001:db8::1]")),
    ],
)
def test_parse(text: str, check: Check) -> None:
    """A check is read, and what is written of it is read as the same."""
    assert Check.parse(text) == check
    assert Check.parse(str(check)) == check


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://:443/", "no health check by https"),
        ("udp", "'udp' is no health check"),
        ("", "'' is no health check"),
        ("8080", "'8080' is no health check"),
        ("http:/x", "'http:/x' is no health check"),
        ("tcp://:0", "0 is no port"),
        ("tcp://:65536", "65536 is no port"),
        ("tcp://:99999999999999999999999", "99999999999999999999 is no port"),
        ("tcp://:", "the port is missing"),
        ("tcp://:http", "':http' is no port"),
        ("tcp://:80/x", "a port and no path"),
        ("tcp://web:80", "a port and no name"),
        ("http://a b/", "'a b' is no port"),
        ("http://:80/a b", "'/a b' is no path"),
        ("http://:80/a\r\nHost: evil", "is no path"),
        ("http://:80/#part", "'/#part' is no path"),
        ("http://:80/ä", "'/ä' is no path"),
    ],
)
def test_parse_what_is_none(text: str, says: str) -> None:
    """What is no check is refused, with what would be right."""
    with pytest.raises(BadInput) as caught:
        Check.parse(text)
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "options",
    [{"interval": 0.0}, {"interval": float("nan")}, {"timeout": -1.0}, {"timeout": float("inf")},
     {"rise": 0}, {"fall": 0}, {"fall": 1001}],
)  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    """Seconds that are no time, and counts that are none, are refused."""
    with pytest.raises(BadInput) as caught:
        Check.parse("tcp", **options)  # type: ignore[arg-type]
    assert "from" in caught.value.hint


@given(st.text(st.characters(max_codepoint=0x17F), max_size=30), st.sampled_from(["http://", ""]))
def test_any_text(text: str, before: str) -> None:
    """Any text is a check whose request is of four lines of ASCII, or bad input."""
    with contextlib.suppress(BadInput):
        check = Check.parse(before + text)
        assert Check.parse(str(check)) == check
        request = check.request("10.0.0.1", 80)
        assert len(request.split()) in {0, 11}
        assert request.count(b"\r\n") == request.count(b"\n") in {0, 6}


@given(
    st.sampled_from([200, 204, 301, 399, 400, 404, 500, 503, 599, 101]),
    st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
                     b"HTTP/1.1 100 Continue\n\n"]),
    st.sampled_from([b" OK\r\nServer: x\r\n\r\nbody", b"\n", b" \r\n"]),
    st.data(),
)  # fmt: skip
def test_statuses_in_pieces(status: int, before: bytes, after: bytes, data: st.DataObject) -> None:
    """200 to 399 is healthy, and it makes no difference in which pieces an answer comes."""
    answer = before + b"HTTP/1.1 %d" % status + after
    wanted = (200 <= status < 400, f"HTTP {status}")
    assert HTTP.judge(answer, ended=False) == wanted
    part = answer[: data.draw(st.integers(0, len(answer)))]
    assert HTTP.judge(part, ended=False) in {None, wanted}


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda tail: b"HTTP/1." + tail))
def test_any_answer(answer: bytes) -> None:
    """Any bytes are an answer, or one that is not complete, or garbage; an end ends it."""
    told = HTTP.judge(answer, ended=False)
    last = HTTP.judge(answer, ended=True)
    assert last is not None
    assert told in {None, last}
    assert HTTP.judge(answer + b"x" * MOST, ended=False) is not None


# --- thresholds -----------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_thresholds(results: list[bool], rise: int, fall: int) -> None:
    """A state changes when the last ``rise`` results were good, or the last ``fall`` bad."""
    probed = health._Probed(("10.0.0.1", 80), Check(rise=rise, fall=fall), socket.AF_INET)
    state = State.UNKNOWN
    for number, good in enumerate(results, 1):
        before = state
        if number >= rise and all(results[number - rise : number]):
            state = State.HEALTHY
        elif number >= fall and not any(results[number - fall : number]):
            state = State.UNHEALTHY
        change = probed.ended(Told(good, f"result {number}"))
        assert probed.state is state
        expected = Change(("10.0.0.1", 80), good, f"result {number}")
        assert change == (None if state is before else expected)


# --- a world of servers ---------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A prober with a clock of ours, and servers that do what the test says."""

    def __init__(self, check: Check = TCP, chance: float = 0.0, most: int = 0) -> None:
        self.clock = Clock()
        self.prober = Prober(check, clock=self.clock, chance=lambda: chance, most=most)
        self._open: list[socket.socket] = []

    def server(self, family: int = 4) -> socket.socket:
        sock = socket.create_server((HOSTS[family], 0), family=_af(family), backlog=512)
        sock.settimeout(PATIENCE)
        self._open.append(sock)
        return sock

    def accept(self, server: socket.socket, asked: bool = False) -> socket.socket:
        """Take a connection; with the whole request if it is to be ``asked``."""
        self.prober.step()  # it connects
        connection = server.accept()[0]
        connection.settimeout(PATIENCE)
        self._open.append(connection)
        if asked:
            while not select.select([connection], [], [], 0)[0]:
                assert self.turn() == []  # it is connected, and sends
            assert connection.recv(4096).endswith(b"\r\n\r\n")
        return connection

    def turn(self) -> list[Change]:
        """Wait until there is something to do, and do it."""
        poll = select.poll()
        poll.register(self.prober.fileno(), select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
        return self.prober.step()

    def until(self) -> list[Change]:
        """Go on until something changes."""
        changes = self.prober.step()
        while not changes:
            changes = self.turn()
        return changes

    def later(self, seconds: float) -> list[Change]:
        self.clock.now += seconds
        return self.prober.step()

    def close(self) -> None:
        self.prober.close()
        for sock in self._open:
            sock.close()


@pytest.fixture
def tcp() -> Iterator[World]:
    with contextlib.closing(World(TCP)) as world:
        yield world


@pytest.fixture
def http() -> Iterator[World]:
    with contextlib.closing(World(HTTP)) as world:
        yield world


def _af(family: int) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def place(server: socket.socket) -> Endpoint:
    address, port = server.getsockname()[:2]
    return address, port


@FAMILIES
def test_tcp(tcp: World, family: int) -> None:
    """A server that accepts is healthy, once it is gone connections are refused; and back."""
    server = tcp.server(family)
    endpoint = place(server)
    tcp.prober.add(endpoint)
    assert tcp.prober.state(endpoint) is State.UNKNOWN
    assert tcp.until() == [(endpoint, True, "connected")]
    server.close()
    assert tcp.prober.timeout() == pytest.approx(2.5)  # the second one is early
    assert tcp.later(2) == []
    tcp.clock.now += 1
    assert tcp.until() == [(endpoint, False, "connection refused")]
    assert tcp.prober.timeout() == pytest.approx(4.5)
    assert tcp.prober.state(endpoint) is State.UNHEALTHY
    with socket.create_server(endpoint, family=_af(family)):
        tcp.clock.now += 5
        assert tcp.until() == [(endpoint, True, "connected")]
    assert tcp.prober.reason(endpoint) == "connected"
    assert tcp.prober.states() == {endpoint: State.HEALTHY}


def test_another_port(tcp: World) -> None:
    """A check's own port is the one that is looked at, whatever the endpoint's is."""
    server = tcp.server()
    endpoint = (HOSTS[4], 9)
    tcp.prober.add(endpoint, Check(port=place(server)[1], rise=1))
    assert tcp.until() == [(endpoint, True, "connected")]


@FAMILIES
def test_request(http: World, family: int) -> None:
    """HTTP is asked for the path, at the endpoint's address or under the name that was given."""
    server = http.server(family)
    address, port = place(server)
    shown = f"[{address}]" if family == 6 else address
    for text, host in (
        ("http:///live?x=1", f"{shown}:{port}"),
        ("http://shop.example/live?x=1", f"shop.example:{port}"),
    ):
        http.prober.add((address, port), Check.parse(text, rise=1))
        connection = http.accept(server)
        http.turn()
        lines = connection.recv(4096).decode().split("\r\n")
        assert lines[0] == "GET /live?x=1 HTTP/1.1"
        assert f"Host: {host}" in lines
        assert "Connection: close" in lines
        connection.sendall(OK + b"\r\n")
        assert http.until() == [((address, port), True, "HTTP 200")]


@pytest.mark.parametrize(
    ("answer", "healthy", "reason"),
    [
        (OK + b"\r\n", True, "HTTP 200"),
        (b"HTTP/1.0 204\r\n", True, "HTTP 204"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n", True, "HTTP 302"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 503 No\r\n", False, "HTTP 503"),
        (b"HTTP/1.1 404 Not Found\r\n", False, "HTTP 404"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "the answer is not HTTP"),
        (b"HTTP/1.1 999 Odd\r\n", False, "the answer is not HTTP"),
        (b"\x16\x03\x01\x00\xff\x00", False, "the answer is not HTTP"),
        (b"HTTP/1.1 200" + b"x" * 10000, False, f"no HTTP status in {MOST} bytes"),
        (b"HTTP/1.1 103 Hints\r\n" + b"A: b\r\n" * 1000, False, f"no HTTP status in {MOST} bytes"),
        (b"", False, "closed without an answer"),
        (b"HTTP/1.1 20", False, "closed too early"),
    ],
)
def test_answers(http: World, answer: bytes, healthy: bool, reason: str) -> None:
    """The status decides; what is no HTTP, or not all of it, is said to be that."""
    server = http.server()
    http.prober.add(place(server))
    connection = http.accept(server, asked=True)
    connection.sendall(answer)
    connection.shutdown(socket.SHUT_WR)
    assert http.until() == [(place(server), healthy, reason)]


def test_huge_answer(http: World) -> None:
    """Of an answer without an end the status is read, and then the connection is cut."""
    server = http.server()
    http.prober.add(place(server))
    connection = http.accept(server, asked=True)
    connection.sendall(OK + b"\r\n")
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(bytes(1 << 16))
    assert http.until() == [(place(server), True, "HTTP 200")]
    connection.settimeout(PATIENCE)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        connection.sendall(bytes(1 << 26))


def test_answer_before_a_reset(http: World) -> None:
    """A server that answers without reading, and so resets the connection, has answered."""
    server = http.server()
    http.prober.add(place(server))
    http.prober.step()
    connection = server.accept()[0]
    http.turn()  # the request is there, and nobody reads it
    connection.sendall(OK)
    connection.close()
    assert http.until() == [(place(server), True, "HTTP 200")]


def test_reset(http: World) -> None:
    """A connection that is reset without an answer is said to be that."""
    server = http.server()
    http.prober.add(place(server))
    http.accept(server, asked=True).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, health._RESET)
    http._open.pop().close()
    assert http.until() == [(place(server), False, "connection reset")]


def test_no_route(tcp: World) -> None:
    """An address that nothing leads to fails at once, with the reason."""
    endpoint = ("240.0.0.1", 80)  # reserved: no host has it
    tcp.prober.add(endpoint, Check(rise=1, fall=1, timeout=0.5))
    changes = tcp.prober.step() or tcp.later(1)
    assert [change[:2] for change in changes] == [(endpoint, False)]
    assert changes[0].reason.startswith(("no route to the", "no answer within 0.5 s"))


# --- time -----------------------------------------------------------------------------------------


def test_silent(http: World) -> None:
    """Who accepts and says nothing has so many seconds, by the clock."""
    server = http.server()
    http.prober.add(place(server))
    http.accept(server, asked=True)
    assert http.prober.timeout() == pytest.approx(2)
    assert http.later(1.99) == []
    assert http.later(0.02) == [(place(server), False, "no answer within 2 s")]


def test_drip(http: World) -> None:
    """A byte now and then is no answer in time, unless it is complete by then."""
    for pause, wanted in ((0.3, (False, "no answer within 2 s")), (0.05, (True, "HTTP 200"))):
        server = http.server()
        http.prober.add(place(server))
        connection = http.accept(server, asked=True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        changes: list[Change] = []
        left = OK
        while not changes:
            connection.send(left[:1])
            left = left[1:]
            changes = http.turn() or http.later(pause)
        assert changes == [(place(server), *wanted)]
        assert (left == b"") is wanted[0]
        http.prober.remove(place(server))


def test_busy_loop(http: World) -> None:
    """Who answers while we do something else for long is healthy; who is silent is not."""
    servers = [http.server(), http.server()]
    for server in servers:
        http.prober.add(place(server))
    http.prober.step()
    connections = [server.accept()[0] for server in servers]
    http._open += connections
    assert http.later(60) == []  # both are connected since long
    assert http.prober.timeout() == pytest.approx(2)
    connections[0].sendall(OK)
    assert http.until() == [(place(servers[0]), True, "HTTP 200")]
    assert http.later(60) == [(place(servers[1]), False, "no answer within 2 s")]


def test_late_answer_is_read_first(http: World) -> None:
    """What came while nobody looked counts, however late it is read."""
    server = http.server()
    http.prober.add(place(server))
    http.accept(server, asked=True).sendall(OK)
    poll = select.poll()
    poll.register(http.prober.fileno(), select.POLLIN)
    assert poll.poll(PATIENCE * 1000)
    assert http.later(60) == [(place(server), True, "HTTP 200")]


def test_a_long_check_and_a_short_interval(http: World) -> None:
    """Checks of one endpoint never overlap: the next begins when the last one has ended."""
    server = http.server()
    endpoint = place(server)
    http.prober.add(endpoint, Check("http", path="/", interval=0.1, timeout=2, fall=2))
    for wanted in ([], [(endpoint, False, "no answer within 2 s")]):
        http.accept(server, asked=True)
        assert http.later(1.9) == []
        assert http.later(0.2) == wanted
    server.settimeout(0)
    http.prober.step()
    http.accept(server)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_no_common_rhythm() -> None:
    """First checks are spread over a second, pauses vary by a tenth, and nobody is left out."""
    chance = random.Random(5)
    clock = Clock()
    begun = clock.now
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as server,
        Prober(Check(interval=5), clock=clock, chance=chance.random) as prober,
    ):
        server.setblocking(False)
        prober.add(place(server))
        times: list[float] = []
        while len(times) < 40:
            clock.now += prober.timeout()
            prober.step()
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
                times.append(clock.now)
        gaps = [after - before for before, after in itertools.pairwise(times)]
    assert begun <= times[0] <= begun + 1
    assert 2.5 <= gaps[0] <= 5
    assert all(4.5 <= gap <= 5.5 for gap in gaps[1:])
    assert max(gaps[1:]) - min(gaps[1:]) > 0.5
    with Prober(TCP, clock=clock, chance=chance.random) as prober:
        prober.keep((f"127.0.{number}.1", 1) for number in range(200))
        ticks = []
        for _ in range(100):
            clock.now += 0.01
            before = len(prober._by_fd)
            prober.step()
            ticks.append(len(prober._by_fd) - before)
            while prober._by_fd:
                prober.step()
        assert max(ticks) < 20
        assert set(prober.states().values()) == {State.UNHEALTHY}


# --- endpoints that come and go -------------------------------------------------------------------


def test_removed_in_the_middle(http: World) -> None:
    """An endpoint that is removed is told nothing of any more, and its connection is closed."""
    server = http.server()
    http.prober.add(place(server))
    connection = http.accept(server, asked=True)
    http.prober.remove(place(server))
    assert place(server) not in http.prober
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert http.later(60) == []
    assert http.prober.timeout() == 60
    http.prober.add(place(server))
    assert http.prober.state(place(server)) is State.UNKNOWN
    http.accept(server, asked=True).sendall(OK)
    assert http.until() == [(place(server), True, "HTTP 200")]


def test_keep(tcp: World) -> None:
    """Those that stay keep what is known of them, even while others come and go."""
    servers = [place(tcp.server()) for _ in range(3)]
    tcp.prober.keep(servers[:2])
    found: list[Change] = []
    while len(found) < 2:
        found += tcp.until()
    tcp.prober.keep([servers[2], servers[1], servers[1]])
    assert len(tcp.prober) == 2
    states = tcp.prober.states()
    assert states == {servers[1]: State.HEALTHY, servers[2]: State.UNKNOWN}
    assert tcp.until() == [(servers[2], True, "connected")]


def test_another_check(tcp: World) -> None:
    """The same check again changes nothing, another one begins anew."""
    endpoint = place(tcp.server())
    tcp.prober.add(endpoint)
    tcp.until()
    tcp.prober.add(endpoint)
    assert tcp.prober.state(endpoint) is State.HEALTHY
    tcp.prober.add(endpoint, Check(rise=3))
    assert tcp.prober.state(endpoint) is State.UNKNOWN


@pytest.mark.parametrize(
    "endpoint",
    [("localhost", 80), ("127.1", 80), ("", 80), ("fe80::1%lo", 80), ("10.0.0.1", 0),
     ("10.0.0.1", 65536)],
)  # fmt: skip
def test_no_endpoint(tcp: World, endpoint: Endpoint) -> None:
    """A name would have to be looked up, which blocks: numbers alone are addresses."""
    with pytest.raises(BadInput):
        tcp.prober.add(endpoint)
    assert len(tcp.prober) == 0


# --- bounds ---------------------------------------------------------------------------------------


def test_no_more_at_once() -> None:
    """There are never more checks at once than allowed, and each endpoint has its turn."""
    with contextlib.closing(World(HTTP, most=2)) as world:
        servers = [world.server() for _ in range(5)]
        world.prober.keep(map(place, servers))
        found: list[Change] = []
        while len(found) < 5:
            found += world.prober.step()
            assert len(world.prober._by_fd) <= 2
            found += world.later(2.01)
        assert {change.endpoint for change in found} == set(map(place, servers))


def test_no_descriptors_left(tcp: World) -> None:
    """That this process has no file left is no fault of an endpoint's: it is tried again."""
    endpoint = place(tcp.server())
    tcp.prober.add(endpoint)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        assert tcp.prober.step() == []
        assert tcp.prober.timeout() == pytest.approx(0.1)
        assert tcp.later(0.2) == []
        assert tcp.prober.state(endpoint) is State.UNKNOWN
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    tcp.clock.now += 0.2
    assert tcp.until() == [(endpoint, True, "connected")]


def test_thousands() -> None:
    """Two thousand endpoints, of which one half lives, are told apart in one thread."""
    with (
        socket.create_server(("", 0), backlog=4096) as server,
        Prober(Check(rise=1, fall=1, interval=60, timeout=20)) as prober,
    ):
        with socket.create_server(("", 0)) as other:
            port = place(other)[1]  # nobody is there any more
        addresses = [f"127.{number >> 8}.{number & 255}.9" for number in range(256, 1256)]
        alive = {(address, place(server)[1]) for address in addresses}
        dead = {(address, port) for address in addresses}
        prober.keep(dead | alive)
        until = time.monotonic() + PATIENCE
        found: dict[Endpoint, Change] = {}
        while len(found) < len(dead | alive):
            assert time.monotonic() < until
            found.update((change.endpoint, change) for change in prober.wait(1))
        assert {endpoint for endpoint, change in found.items() if change.healthy} == alive
        assert {found[endpoint].reason for endpoint in dead} == {"connection refused"}


def test_wait_is_as_long_as_asked() -> None:
    """It returns after so many seconds without a change, and sleeps until then."""
    with Prober() as prober:
        began, busy = time.monotonic(), time.process_time()
        assert prober.wait(0.2) == []
        assert time.monotonic() - began >= 0.2
        assert time.process_time() - busy < 0.1
        assert prober.timeout() == 60


def test_closed(http: World) -> None:
    """What is closed has no connection any more, and may be closed again."""
    server = http.server()
    http.prober.add(place(server))
    connection = http.accept(server, asked=True)
    http.prober.close()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    http.prober.close()
