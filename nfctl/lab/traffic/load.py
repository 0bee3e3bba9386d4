"""Many connections at once, counted: by what became of them, and by who answered."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfctl.errors import BadInput
from nfctl.lab.traffic.attempt import TIMEOUT, Answer, Attempt, Verdict

if TYPE_CHECKING:
    from collections.abc import Generator

# In HTTP/1.0 the server closes first. The end that does keeps the connection for a minute
# (TIME_WAIT): ours would soon be out of ports.
_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of many connections.

    ``verdicts`` and ``reasons`` are those of the answers, ``hosts`` the names of the lab hosts
    that answered (``""`` where the answer does not say); ``seconds`` is how long all took.
    """

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def many(
    address: str,
    port: int,
    count: int,
    concurrency: int = 100,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    request: bytes = _REQUEST,
) -> Tally:
    """Make ``count`` connections, ``concurrency`` at a time, to a ``tcp`` or ``http`` server.

    Each sends ``request`` (as much as a socket takes at once) and reads until the server
    closes, within ``timeout`` seconds. OSError for an error that no packet caused.
    """
    if count < 0 or concurrency < 1:
        raise BadInput(f"{count} connections, {concurrency} at a time, cannot be made")
    tally = Tally()
    start = time.monotonic()
    running: dict[int, _Connection] = {}  # the oldest first
    begun = 0
    with select.epoll() as poll:
        try:
            while begun < count or running:
                while begun < count and len(running) < concurrency:
                    begun += 1
                    connection = _Connection(address, port, source, timeout, request)
                    if connection.result is None:
                        running[connection.number] = connection
                        poll.register(connection.number, connection.events)
                    else:
                        connection.finish(tally)
                if not running:
                    continue
                deadline = next(iter(running.values())).attempt.deadline
                ready = poll.poll(max(0.0, deadline - time.monotonic()))
                for number, events in ready:
                    connection = running[number]
                    before = connection.events
                    connection.go_on(events)
                    if connection.result is not None:
                        del running[number]
                        connection.finish(tally)  # closing it takes it from the poll, too
                    elif connection.events != before:
                        poll.modify(number, connection.events)
                if deadline <= time.monotonic():
                    _expire(running, tally)
        finally:
            for connection in running.values():
                connection.attempt.socket.close()
    return Tally(tally.verdicts, tally.reasons, tally.hosts, time.monotonic() - start)


class _Connection:
    """One of many: what it waits for (``events``), and in the end its ``result``."""

    def __init__(
        self, address: str, port: int, source: str, timeout: float, request: bytes
    ) -> None:
        self.attempt = Attempt(address, socket.SOCK_STREAM, 0, timeout)
        self.number = self.attempt.socket.fileno()
        self.result: Answer | None = None
        self.events = 0
        self._steps = _steps(self.attempt, address, port, request)
        try:
            self.attempt.bind(source)
            self.go_on(None)
        except BaseException:
            self.attempt.socket.close()
            raise

    def go_on(self, events: int | None) -> None:
        """Go as far as can be without waiting."""
        try:
            self.events = self._steps.send(events)
        except StopIteration as end:
            self.result = end.value
        except OSError as error:
            self.result = self.attempt.refusal(error.errno or 0)

    def finish(self, tally: Tally) -> None:
        """Count the result and close the socket."""
        self.attempt.socket.close()
        answer = self.result or self.attempt.answer(Verdict.DROPPED)
        tally.verdicts[answer.verdict] += 1
        if answer.reason:
            tally.reasons[answer.reason] += 1
        if answer.verdict is Verdict.ACCEPTED:
            tally.hosts[answer.host] += 1


def _steps(
    attempt: Attempt, address: str, port: int, request: bytes
) -> Generator[int, int | None, Answer]:
    """Connect, ask, read to the end; yields the events to wait for and is sent those that came."""
    number = attempt.socket.connect_ex((address, port))
    if number not in {0, errno.EINPROGRESS}:
        return attempt.refusal(number)
    events = yield select.EPOLLOUT
    if (events or 0) & select.EPOLLERR:
        return attempt.refusal()
    attempt.socket.send(request)
    while True:
        events = yield select.EPOLLIN
        if (events or 0) & select.EPOLLERR:
            return attempt.refusal()
        part = attempt.socket.recv(1 << 16)
        if not part:
            return attempt.answer(Verdict.ACCEPTED, request=request)
        attempt.received += part


def _expire(running: dict[int, _Connection], tally: Tally) -> None:
    now = time.monotonic()
    late = [number for number, one in running.items() if one.attempt.deadline <= now]
    for number in late:
        running.pop(number).finish(tally)
