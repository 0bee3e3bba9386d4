"""TCP connections that stay open between two questions: for conntrack, and for draining.

In one process by a ``with`` block:

    with traffic.hold("10.0.0.10", 7) as connection:
        connection.say(b"before")
        ...
        answer = connection.say(b"after")

In a host's worker, which keeps them, by number:

    number = worker.run(traffic.open, "10.0.0.10", 7)
    answer = worker.run(traffic.say, number, b"after")
"""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
from collections import deque
from typing import TYPE_CHECKING

from nfctl.errors import AnswerNo, BadInput
from nfctl.lab.traffic.attempt import TIMEOUT, WHOAMI, Answer, Attempt, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

_held: dict[int, Held] = {}
_numbers = itertools.count(1)


class Held:
    """An established connection to one of a lab's echo or HTTP servers.

    AnswerNo if it is not accepted within ``timeout`` seconds; OSError as in ``traffic``.
    """

    def __init__(
        self, address: str, port: int, *, source: str = "", timeout: float = TIMEOUT
    ) -> None:
        self._attempt = Attempt(address, socket.SOCK_STREAM, 0, timeout)
        self._asked: deque[bytes] = deque()  # what has not been answered yet
        self._last = b""
        self._reset: Answer | None = None  # there is no connection any more
        try:
            self._attempt.bind(source)
            try:
                refused = self._attempt.connect(address, port)
            except OSError as error:
                refused = self._attempt.refusal(error.errno or 0)
            if refused is not None:
                why = f", {refused.reason}" if refused.reason else ""
                raise AnswerNo(f"the connection to {address} port {port} is {refused.verdict}{why}")
        except BaseException:
            self.close()
            raise

    @property
    def local(self) -> tuple[str, int]:
        """Our own address and port, as conntrack knows them."""
        address, port = self._attempt.socket.getsockname()[:2]
        return address, port

    def say(self, data: bytes, *, timeout: float = TIMEOUT) -> Answer:
        """Send ``data`` and wait until it has come back, or has been answered.

        ``whoami`` and a GET get an answer of their own, all else is echoed. What could not be
        sent or did not come back in time is dropped, but not forgotten: TCP still tries, so a
        later one may be accepted. Rejected for the reason ``closed`` is what the server ended.
        """
        if not data:
            raise BadInput("there is nothing to send")
        self._asked.append(data)
        attempt = self._attempt
        attempt.restart(timeout)
        try:
            refused = self._reset
            if refused is None and not self._has_ended():
                refused = attempt.exchange(data, self._complete)
        except OSError as error:
            refused = attempt.refusal(error.errno or 0)
        if refused is not None:
            self._reset = refused if refused.reason == "tcp-reset" else None
            return refused
        if self._asked:
            return attempt.answer(Verdict.REJECTED, reason="closed")
        return attempt.answer(Verdict.ACCEPTED, data=self._last, request=data)

    def close(self) -> None:
        """Close it in good order (FIN)."""
        self._attempt.socket.close()

    def _has_ended(self) -> bool:
        """Whether the server's FIN is here: what is sent after it gets a reset at best."""
        try:
            return not self._attempt.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False

    def _complete(self, received: bytearray) -> bool:
        """Take the answers that are complete; say whether there are all."""
        while self._asked and (length := _length(self._asked[0], received)):
            self._last = bytes(received[:length])
            del received[:length]
            self._asked.popleft()
        return not self._asked


def _length(request: bytes, received: bytearray) -> int:
    """Return how many of the received bytes answer a request, 0 if they are not all there."""
    if request.strip() == WHOAMI.strip():
        return received.find(b"\n") + 1
    if request.startswith(b"GET "):
        end = received.find(b"\r\n\r\n") + 4
        if end < 4:
            return 0
        found = _LENGTH.search(received, 0, end)
        size = end + (int(found[1]) if found else 0)
    else:
        size = len(request)
    return size if len(received) >= size else 0


@contextlib.contextmanager
def hold(address: str, port: int, *, source: str = "", timeout: float = TIMEOUT) -> Iterator[Held]:
    """Keep a connection open for the block; see :class:`Held`."""
    held = Held(address, port, source=source, timeout=timeout)
    try:
        yield held
    finally:
        held.close()


def open(  # noqa: A001 - traffic.open(...)
    address: str, port: int, *, source: str = "", timeout: float = TIMEOUT
) -> int:
    """Open a connection that this process keeps, and return its number; see :class:`Held`."""
    number = next(_numbers)
    _held[number] = Held(address, port, source=source, timeout=timeout)
    return number


def say(number: int, data: bytes, *, timeout: float = TIMEOUT) -> Answer:
    """Send ``data`` on a connection that is kept; see :meth:`Held.say`."""
    return _find(number).say(data, timeout=timeout)


def close(number: int) -> None:
    """Close a connection that is kept."""
    _find(number).close()
    del _held[number]


def _find(number: int) -> Held:
    try:
        return _held[number]
    except KeyError:
        raise BadInput(f"this process keeps no connection {number}") from None
