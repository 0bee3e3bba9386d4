"""Deadlines for code that looks at packets: handlers, and regular expressions on payloads.

    with Deadline(0.05) as deadline:
        deadline.run(handler, packet)  # TooLate after 50 ms
        deadline.guard(pattern.search, payload, 20)

ITIMER_REAL (setitimer(2)) sends SIGALRM, whose handler raises :class:`TooLate` in what is run:
Python code, a sleep, a read, a regular expression that backtracks. Code in C that lets no signal
in is judged by the clock when it returns. How that is made safe and cheap:

- The exception is raised only in a frame below the one of ``run``, never in that itself or in its
  caller: an alarm just before or after the function's end finds ``run`` and leaves it to
  the clock. So nothing is raised outside, however late Python gets to a signal.
- The timer is not set and stopped for each packet. It is left running when a packet is done; when
  it ends, its handler sets it again for what is running by then, if anything is. At a hundred
  thousand packets per second that is one system call per ``seconds``, instead of 200,000.
- What catches TooLate gets it again, every 10 ms, then in quick succession: with some luck
  outside of its ``try``. The kernel repeats the alarm by itself: one that comes just before a
  system call does not end that.

A process has one SIGALRM and one ITIMER_REAL; all deadlines share them. They work in the main
thread; elsewhere the clock alone is looked at, afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

T = TypeVar("T")
A = TypeVar("A")

AGAIN: Final = 0.01
"""Seconds until what has caught TooLate gets it again."""

STUBBORN: Final = 8
"""How often, before that is reported and it comes in quick succession."""

_QUICK: Final = (2e-6, 5e-6, 3e-6, 12e-6, 8e-6, 50e-6, 20e-6)  # seconds
_HOPELESS: Final = 5000  # from then on as at first: it is not worth the processor
_NESTED: Final = 3  # handlers that are interrupted by the next alarm
_NEVER: Final = float("inf")
_AT_ONCE: Final = 0.000001  # 0 would stop the timer


class TooLate(BaseException):
    """What was run has taken longer than it may. No Exception, so that few catch it."""


class Deadline:
    """How long a function may take, in seconds; 0 or None is without end.

    ``stubborn`` is called, from a signal handler, when a function has caught TooLate
    ``STUBBORN`` times and still runs. A deadline that runs in another one ends no later than that.
    """

    __slots__ = ("_open", "seconds", "stubborn")

    def __init__(self, seconds: float | None, stubborn: Callable[[], object] | None = None) -> None:
        self.seconds = seconds or 0.0
        self.stubborn = stubborn
        self._open = False

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> bool:
        """Take SIGALRM, which ``run`` does at first; False in other threads than the main one."""
        if not self._open and threading.current_thread() is threading.main_thread():
            self._open = True
            _ALARM.open()
        return self._open

    def close(self) -> None:
        """Give SIGALRM back to whom it was taken from, with what his timer had left."""
        if self._open:
            self._open = False
            _ALARM.close()

    def run(self, function: Callable[[A], T], argument: A) -> T:
        """Return what the function returns; TooLate if that comes too late, or not at all."""
        seconds = self.seconds
        if not seconds:
            return function(argument)
        alarm = _ALARM
        now = monotonic()
        until = now + seconds
        if not self._open and not self.open():
            result = function(argument)
        else:
            outer, outer_running = alarm.until, alarm.running
            if outer and outer < until:
                until, seconds = outer, max(outer - now, _AT_ONCE)
            try:
                alarm.running = self
                alarm.until = until
                if until < alarm.due:
                    alarm.due = until
                    _setitimer(_ITIMER_REAL, seconds, AGAIN)
                result = _call(function, argument)
            finally:
                alarm.until = outer
                alarm.running = outer_running
        if monotonic() >= until:
            if self._open:
                alarm.repair(sys._getframe(1))
            raise TooLate
        return result

    def guard(self, function: Callable[..., T], *arguments: Any) -> T:
        """As ``run``, with any number of arguments; TooLate is for the caller to catch."""
        return self.run(_spread, (function, arguments))


_setitimer = signal.setitimer
_ITIMER_REAL: Final = signal.ITIMER_REAL


def _call(function: Callable[[A], T], argument: A) -> T:
    """Call; the frame in which TooLate may be raised even if the function is written in C."""
    return function(argument)


def _spread(call: tuple[Callable[..., T], tuple[Any, ...]]) -> T:
    return call[0](*call[1])


class _Alarm:
    """The process's SIGALRM and ITIMER_REAL.

    ``until`` is when what is running has to have ended (0: nothing runs) and ``running`` the
    deadline that says so; ``due`` is when the timer ends at the latest, ``_NEVER`` while it
    stands still. Times are those of CLOCK_MONOTONIC, in seconds.
    """

    __slots__ = ("due", "former", "former_timer", "running", "since", "tries", "tries_of",
                 "until", "users")  # fmt: skip

    def __init__(self) -> None:
        self.until = 0.0
        self.due = _NEVER
        self.running: Deadline | None = None
        self.tries = 0
        self.tries_of = 0.0
        self.users = 0
        self.former: Any = None
        self.former_timer = (0.0, 0.0)
        self.since = 0.0

    def open(self) -> None:
        if not self.users:
            self.former_timer = signal.setitimer(_ITIMER_REAL, 0)
            self.since = monotonic()
            self.due = _NEVER
            # Without SA_RESTART, as Python has it: a read that waits comes back at an alarm.
            self.former = signal.signal(signal.SIGALRM, self.strike)
        self.users += 1

    def close(self) -> None:
        self.users -= 1
        if self.users:
            return
        signal.setitimer(_ITIMER_REAL, 0)
        self.due = _NEVER
        # None: it was set by C code, and cannot be set again from here
        signal.signal(signal.SIGALRM, signal.SIG_IGN if self.former is None else self.former)
        self.former = None
        left, interval = self.former_timer
        if left:
            left = max(left - (monotonic() - self.since), _AT_ONCE)
            signal.setitimer(_ITIMER_REAL, left, interval)

    def repair(self, caller: FrameType | None) -> None:
        """Take SIGALRM again: what came so late may have taken or stopped it."""
        if signal.getsignal(signal.SIGALRM) != self.strike:
            signal.signal(signal.SIGALRM, self.strike)
        while caller is not None and caller.f_code is not _RUN:
            caller = caller.f_back
        if caller is None:
            self.until = 0.0  # also of a run() that another signal's exception had ended
            self.due = _NEVER
        else:
            self.set(max(self.until - monotonic(), _AT_ONCE))

    def set(self, seconds: float) -> None:
        self.due = monotonic() + seconds
        _setitimer(_ITIMER_REAL, seconds, AGAIN)

    def strike(self, _signal: int, frame: FrameType | None) -> None:
        """Handle SIGALRM, which may have been sent for what is long done."""
        until = self.until
        if not until:
            _setitimer(_ITIMER_REAL, 0)
            self.due = _NEVER
            return
        left = until - monotonic()
        if left > 0:
            self.set(left)
            return
        while frame is not None and frame.f_code is _STRIKE:  # a second one came meanwhile
            frame = frame.f_back
        inside, ours, strikes = False, False, 0
        while frame is not None and frame.f_code is not _RUN:
            inside = True
            ours = ours or (frame.f_globals is _OURS and frame.f_code not in _THEIRS)
            strikes += frame.f_code is _STRIKE
            frame = frame.f_back
        if frame is None:  # another signal's exception has ended run() before its end
            self.until = 0.0
            return
        if strikes > _NESTED:
            return
        if self.tries_of != until:
            self.tries, self.tries_of = 0, until
        self.tries = tries = self.tries + 1
        if STUBBORN <= tries < _HOPELESS:
            self.set(_QUICK[tries % len(_QUICK)])
        if tries == STUBBORN and self.running is not None and self.running.stubborn:
            self.running.stubborn()
        if inside and not ours:
            raise TooLate


_ALARM: Final = _Alarm()
_RUN: Final = Deadline.run.__code__
_STRIKE: Final = _Alarm.strike.__code__
_OURS: Final = globals()  # of functions that must not be left half done
_THEIRS: Final = frozenset({_call.__code__, _spread.__code__})  # but for these


def _in_child() -> None:
    """Forget the timer, which a child process does not inherit (fork(2))."""
    _ALARM.due = _NEVER
    _ALARM.until = 0.0
    _ALARM.former_timer = (0.0, 0.0)


os.register_at_fork(after_in_child=_in_child)
