"""One place to wait at: for notices of other programs, signals, health checks, and a time."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from typing import TYPE_CHECKING, Final

from nfctl.control.watching.watch import Woken

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Protocol, Self

    from nfctl.kernel.notices import Notices

    class _Readable(Protocol):
        def fileno(self) -> int: ...


_HEEDED: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_LONGEST: Final = 86400.0  # seconds; poll(2) counts milliseconds in an int


class Waiter:
    """Waits by poll(2); signals come through a pipe, and interrupt nothing but the wait.

    Signals are heeded from the beginning of the ``with`` block on, but those that were to be
    ignored (nohup(1)). A wait ends, too, when one of the ``others`` is readable: a prober of
    health checks, which reads itself.
    """

    def __init__(self, notices: Notices, *others: _Readable) -> None:
        self._notices = notices
        self._others = others
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._woken = -1

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._woken = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in _HEEDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda _number, _frame: None)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken)
        self._read.close()
        self._write.close()

    def __call__(self, seconds: float) -> Woken:
        """Wait so many seconds at most; return what has come."""
        poll = select.poll()
        sources = self._notices.fds  # one of them may fail and be gone
        others = [other.fileno() for other in self._others]
        for fd in (self._read.fileno(), *sources, *others):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(min(seconds, _LONGEST) * 1000)}
        numbers: list[int] = []
        if self._read.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                while data := self._read.recv(64):
                    numbers += data
        notices = self._notices.take() if ready.intersection(sources) else []
        return Woken(notices, numbers)
