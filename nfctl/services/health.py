"""Active health checks: many endpoints looked at again and again, in one thread that never waits.

    with Prober(Check.parse("http://:8080/healthz", interval=2)) as prober:
        prober.keep([("10.0.0.5", 80), ("10.0.0.6", 80)])
        while True:
            poll.poll(prober.timeout() * 1000)  # prober.fileno() is registered for POLLIN
            for change in prober.step():
                print(change.endpoint, change.healthy, change.reason)

The goals, and how each is met:
1. Nothing blocks. Sockets are non-blocking and in one epoll(7), whose descriptor another loop may
   poll; addresses are numbers, so that no name is looked up; an answer is read to its status, and
   never further than ``checks.MOST`` bytes.
2. A busy host is no dead endpoint. What has come is read before anybody is said to be late; a
   check that was answered while the loop did something else is given its time anew; descriptors
   that run out (``most`` of them are used at once) delay a check, and fail none.
3. No common rhythm. The first checks are spread over a second, and every pause is up to a tenth
   shorter or longer than the interval.
4. Nothing piles up. A check ends with a reset (SO_LINGER), as HAProxy's do: thousands of them
   leave no TIME_WAIT, neither here nor in conntrack.
"""

from __future__ import annotations

import contextlib
import errno as errnos
import heapq
import ipaddress
import itertools
import os
import random
import resource
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import BadInput
from nfctl.services.checks import MOST, Check, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

#: An endpoint: its address as text, IPv4 or IPv6, and its port.
Endpoint = tuple[str, int]

_RESET: Final = struct.pack("ii", 1, 0)  # struct linger
_SPREAD: Final = 1.0  # seconds, over which first checks are spread
_JITTER: Final = 0.1  # of an interval
_LATE: Final = 0.1  # seconds after a deadline from which it was us who were late
_PAUSE: Final = 0.1  # seconds until it is tried again, when the host has no socket left
_MOST: Final = 1024  # checks at once
_LONGEST: Final = 60.0  # seconds between two steps
# What is no fault of the endpoint's.
_OURS: Final = frozenset(
    {errnos.EMFILE, errnos.ENFILE, errnos.ENOBUFS, errnos.ENOMEM, errnos.EAGAIN}
)


class State(StrEnum):
    """What is known of an endpoint."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Change(NamedTuple):
    """An endpoint became healthy or unhealthy, and why: "HTTP 503", "connection refused"."""

    endpoint: Endpoint
    healthy: bool
    reason: str


@dataclass(slots=True, eq=False)
class _Probed:
    """One endpoint: what is known of it, and its check as far as it has come."""

    endpoint: Endpoint
    check: Check
    family: socket.AddressFamily
    state: State = State.UNKNOWN
    reason: str = ""
    good: bool = False  # how the last check ended,
    count: int = 0  # ... how many so in a row,
    ends: int = 0  # ... and how many at all
    number: int = 0  # of its entry among the times; others of it are void
    sock: socket.socket | None = None
    fd: int = -1
    rest: bytes = b""  # what is still to be sent
    answer: bytes = b""
    began: float = 0.0
    until: float = 0.0
    grace: bool = False  # it has been given its time anew

    def ended(self, told: Told) -> Change | None:
        """Count a result; return the change that it makes."""
        self.count = self.count + 1 if told.healthy == self.good else 1
        self.good, self.reason = told.healthy, told.reason
        self.ends += 1
        to = State.HEALTHY if told.healthy else State.UNHEALTHY
        if self.state is to or self.count < (self.check.rise if told.healthy else self.check.fall):
            return None
        self.state = to
        return Change(self.endpoint, told.healthy, told.reason)


class Prober:
    """Checks endpoints. In a loop of one's own: ``fileno``, ``timeout``, ``step``; or ``wait``.

    ``check`` is for all endpoints that are added without one. An endpoint is unknown until
    ``rise`` checks in a row succeeded or ``fall`` failed. ``most`` is how many checks may be
    under way at once, 0 for what the limit of open files leaves. ``clock`` must not jump;
    ``chance`` returns numbers from 0 to 1. Sockets are of the network namespace in which
    ``step`` is called.
    """

    def __init__(
        self,
        check: Check | None = None,
        *,
        most: int = 0,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._check = check or Check()
        self._clock, self._chance = clock, chance
        self._most = most or _room()
        self._probed: dict[Endpoint, _Probed] = {}
        self._by_fd: dict[int, _Probed] = {}
        self._times: list[tuple[float, int, _Probed]] = []
        self._numbers = itertools.count(1)
        self._waiting: deque[tuple[int, _Probed]] = deque()  # due, but there are ``most`` already
        self._short = 0.0  # until when no socket is tried, there being none left
        self._epoll = select.epoll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._probed)

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._probed

    def close(self) -> None:
        """End all checks; harmless when done before."""
        for probed in list(self._by_fd.values()):
            self._drop(probed)
        self._probed.clear()
        self._times.clear()
        self._waiting.clear()
        self._epoll.close()

    # --- endpoints ------------------------------------------------------------------------------

    def add(self, endpoint: Endpoint, check: Check | None = None) -> None:
        """Check an endpoint from now on; one that is checked so already goes on as it is.

        BadInput if the address is no IPv4 or IPv6 address (a name, or one with a zone).
        """
        check = check or self._check
        known = self._probed.get(endpoint)
        if known is not None and known.check == check:
            return
        probed = _Probed(endpoint, check, _family(endpoint))
        self.remove(endpoint)
        self._probed[endpoint] = probed
        self._at(probed, self._clock() + self._chance() * min(check.interval, _SPREAD))

    def remove(self, endpoint: Endpoint) -> None:
        """Check an endpoint no more; harmless if it is not checked."""
        probed = self._probed.pop(endpoint, None)
        if probed is not None:
            self._drop(probed)
            probed.number = 0

    def keep(self, endpoints: Iterable[Endpoint]) -> None:
        """Check these endpoints and no others; those that stay keep what is known of them."""
        wanted = dict.fromkeys(endpoints)
        for endpoint in [one for one in self._probed if one not in wanted]:
            self.remove(endpoint)
        for endpoint in wanted:
            if endpoint not in self._probed:
                self.add(endpoint)

    def state(self, endpoint: Endpoint) -> State:
        """Return what is known of an endpoint, unknown if it is not checked."""
        probed = self._probed.get(endpoint)
        return probed.state if probed else State.UNKNOWN

    def reason(self, endpoint: Endpoint) -> str:
        """Return what its last check said, "" before there was one."""
        probed = self._probed.get(endpoint)
        return probed.reason if probed else ""

    def states(self) -> dict[Endpoint, State]:
        """Return what is known of all endpoints."""
        return {endpoint: probed.state for endpoint, probed in self._probed.items()}

    # --- the loop -------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return a descriptor that is readable when ``step`` has something to do."""
        return self._epoll.fileno()

    def timeout(self) -> float:
        """Return after how many seconds ``step`` is due at the latest, 60 at most."""
        now = self._clock()
        times = self._times
        while times and times[0][1] != times[0][2].number:
            heapq.heappop(times)
        next_at = times[0][0] if times else now + _LONGEST
        if self._waiting and len(self._by_fd) < self._most:
            next_at = min(next_at, self._short)
        return min(max(next_at - now, 0.0), _LONGEST)

    def step(self) -> list[Change]:
        """Do what is to be done now, without waiting; return the endpoints that changed."""
        changes: list[Change] = []
        now = self._clock()
        with contextlib.suppress(InterruptedError):
            # all that has come, before anybody is late
            for fd, _ in self._epoll.poll(0, max(len(self._by_fd), 1)):
                self._go_on(self._by_fd[fd], now, changes)
        times = self._times
        while times and times[0][0] <= now:
            _, number, probed = heapq.heappop(times)
            if number != probed.number:
                continue
            if probed.sock is None:
                self._waiting.append((number, probed))
            else:
                reason = f"no answer within {probed.check.timeout:g} s"
                self._end(probed, Told(False, reason), now, changes)
        while self._waiting and len(self._by_fd) < self._most and self._short <= now:
            number, probed = self._waiting.popleft()
            if number == probed.number:
                self._begin(probed, now, changes)
        return changes

    def wait(self, seconds: float) -> list[Change]:
        """Run for so many seconds, until something changes at most; return what did.

        For programs without a loop of their own, with the time of the machine.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        end = self._clock() + seconds
        while not (changes := self.step()) and (left := end - self._clock()) > 0:
            poll.poll(min(left, self.timeout()) * 1000)
        return changes

    # --- one check ------------------------------------------------------------------------------

    def _at(self, probed: _Probed, when: float) -> None:
        """Have something done about an endpoint at a time, and not what was planned before."""
        probed.number = next(self._numbers)
        heapq.heappush(self._times, (when, probed.number, probed))

    def _begin(self, probed: _Probed, now: float, changes: list[Change]) -> None:
        address, port = probed.endpoint[0], probed.check.port or probed.endpoint[1]
        probed.began = now
        try:
            sock = socket.socket(
                probed.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as error:
            self._failed(probed, error.errno or errnos.EIO, now, changes)
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        number = sock.connect_ex((address, port))
        if number not in {0, errnos.EINPROGRESS}:
            sock.close()
            self._failed(probed, number, now, changes)
            return
        probed.sock, probed.fd = sock, sock.fileno()
        probed.rest = probed.check.request(address, port)
        probed.answer, probed.grace = b"", False
        self._by_fd[probed.fd] = probed
        self._epoll.register(probed.fd, select.EPOLLOUT)
        self._limit(probed, now)

    def _limit(self, probed: _Probed, now: float) -> None:
        probed.until = now + probed.check.timeout
        self._at(probed, probed.until)

    def _go_on(self, probed: _Probed, now: float, changes: list[Change]) -> None:
        """Go on with a check whose socket is ready."""
        sock = probed.sock
        assert sock is not None  # noqa: S101 - it is in the epoll
        try:
            told = self._talk(probed, sock)
        except BlockingIOError:
            told = None
        except OSError as error:
            self._drop(probed)
            self._failed(probed, error.errno or errnos.EIO, now, changes)
            return
        if told is not None:
            self._end(probed, told, now, changes)
        elif now > probed.until + _LATE and not probed.grace:
            # It went on while nobody looked: what we had to do ourselves is late, not the endpoint.
            probed.grace = True
            self._limit(probed, now)

    def _talk(self, probed: _Probed, sock: socket.socket) -> Told | None:
        check = probed.check
        if check.kind == "tcp" or probed.rest:
            if number := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(number, os.strerror(number))
            # A port of this very host that the kernel has just given to us has nobody behind it,
            # and still connects: to itself (RFC 9293, simultaneous open).
            if sock.getsockname() == sock.getpeername():
                raise ConnectionRefusedError(errnos.ECONNREFUSED, "")
            if check.kind == "tcp":
                return Told(True, "connected")
            probed.rest = probed.rest[sock.send(probed.rest) :]
            if not probed.rest:
                self._epoll.modify(probed.fd, select.EPOLLIN)
            return None
        # An answer that a reset follows, of a server that did not read all, is one.
        data = sock.recv(MOST - len(probed.answer))
        probed.answer += data
        return check.judge(probed.answer, ended=not data)

    def _failed(self, probed: _Probed, number: int, now: float, changes: list[Change]) -> None:
        """Say that a check failed by an errno, unless that is about this host."""
        if number in _OURS:
            self._short = now + _PAUSE
            probed.number = next(self._numbers)
            self._waiting.append((probed.number, probed))
        else:
            self._end(probed, Told(False, _reason(number)), now, changes)

    def _end(self, probed: _Probed, told: Told, now: float, changes: list[Change]) -> None:
        self._drop(probed)
        change = probed.ended(told)
        if change is not None:
            changes.append(change)
        # the second check comes early, too, as the first ones are close to each other
        low, high = (0.5, 1.0) if probed.ends == 1 else (1 - _JITTER, 1 + _JITTER)
        pause = probed.check.interval * (low + (high - low) * self._chance())
        self._at(probed, max(probed.began + pause, now))

    def _drop(self, probed: _Probed) -> None:
        """Close the socket of a check."""
        if probed.sock is not None:
            # A child that was forked meanwhile may have it open, then epoll would keep it.
            with contextlib.suppress(OSError):
                self._epoll.unregister(probed.fd)
            del self._by_fd[probed.fd]
            probed.sock.close()
            probed.sock = None


def _family(endpoint: Endpoint) -> socket.AddressFamily:
    """Return the family of an endpoint's address; BadInput for what is no endpoint."""
    address, port = endpoint
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise BadInput(f"{address!r} is no address of an endpoint", hint="names are not") from None
    if "%" in address:
        raise BadInput(f"{address!r} has a zone", hint="an endpoint's address is one on all links")
    if not 1 <= port <= 65535:
        raise BadInput(f"{port} is no port of an endpoint", hint="from 1 to 65535")
    return socket.AF_INET if parsed.version == 4 else socket.AF_INET6


def _room() -> int:
    """Return how many checks may be under way at once: half of the files that may be open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    unlimited = soft == resource.RLIM_INFINITY
    return _MOST if unlimited else max(1, min(_MOST, soft // 2))


_REASONS: Final = {
    errnos.ECONNREFUSED: "connection refused",
    errnos.ECONNRESET: "connection reset",
    errnos.EPIPE: "connection reset",
    errnos.EHOSTUNREACH: "no route to the host",
    errnos.ENETUNREACH: "no route to the network",
    errnos.EADDRNOTAVAIL: "this host has no address or port to connect from",
    errnos.EAFNOSUPPORT: "this kernel does not know the family",
    errnos.ETIMEDOUT: "no answer",
}


def _reason(number: int) -> str:
    return _REASONS.get(number) or os.strerror(number).lower()
