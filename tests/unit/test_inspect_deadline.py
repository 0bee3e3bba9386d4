from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.inspect import deadline as module
from nfctl.inspect.deadline import Deadline, TooLate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

LONG = 60.0  # seconds that nothing here takes
PATIENCE = 20.0  # far above what the machine needs, far below LONG


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """No test leaves a handler or a timer behind."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    assert module._ALARM.until == 0.0
    assert module._ALARM.users == 0


def took(seconds: float, function: Callable[[Any], object]) -> float:
    """Return after how long a function was ended."""
    begin = time.monotonic()
    with Deadline(seconds) as deadline, pytest.raises(TooLate):
        deadline.run(function, None)
    return time.monotonic() - begin


def loop(_: object) -> None:
    while True:
        pass


def read(_: object) -> None:
    one, other = socket.socketpair()
    with one, other:
        one.recv(1)


def spin(count: int) -> int:
    for _ in range(count):
        pass
    return count


# --- what is ended -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(loop, id="loop"),
        pytest.param(lambda _: time.sleep(LONG), id="sleep"),
        pytest.param(read, id="socket"),
        pytest.param(lambda _: re.match(r"(a+)+$", "a" * 60 + "b"), id="regular expression"),
        pytest.param(lambda _: threading.Event().wait(LONG), id="lock"),
    ],
)
def test_what_lets_signals_in_is_ended(function: Callable[[Any], object]) -> None:
    """Loops, sleeps, reads, locks and regular expressions that backtrack end at the deadline."""
    assert 0.02 <= took(0.02, function) < PATIENCE


def test_c_code_is_called_without_a_frame_of_its_own() -> None:
    """A pattern's own method is ended too, though Python sees no frame of it."""
    with Deadline(0.02) as deadline, pytest.raises(TooLate):
        deadline.guard(re.compile(r"(a+)+$").match, "a" * 60 + "b", 0)


def test_c_code_that_lets_no_signal_in_is_late_when_it_returns() -> None:
    """The clock decides where no exception could be raised."""
    done = []
    assert took(0.001, lambda _: done.append(sum(range(2_000_000)))) >= 0.001
    with Deadline(0.001) as deadline, pytest.raises(TooLate):
        deadline.run(sum, range(2_000_000))


def test_results_and_exceptions_pass() -> None:
    """What ends in time returns and raises as if it had been called."""
    with Deadline(LONG) as deadline:
        assert deadline.run(spin, 5) == 5
        assert deadline.guard(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            deadline.guard(divmod, 7, 0)


@pytest.mark.parametrize("seconds", [0, 0.0, None])
def test_without_a_deadline_nothing_is_touched(seconds: float | None) -> None:
    """0 and None are no deadline, and take no signal."""
    before = signal.getsignal(signal.SIGALRM)
    deadline = Deadline(seconds)
    assert deadline.run(spin, 5) == 5
    assert signal.getsignal(signal.SIGALRM) == before


# --- what is never hit -------------------------------------------------------------------------


def test_nothing_is_raised_outside() -> None:
    """Thousands of alarms around the end of a function are its own, or nobody's."""
    rng = random.Random(7)
    begin = time.perf_counter()
    spin(20_000)
    step = (time.perf_counter() - begin) / 20_000
    late = done = outside = 0
    deadline = Deadline(LONG)
    with deadline:
        try:
            for _ in range(30_000):
                count = rng.randrange(400)
                deadline.seconds = max(1e-6, count * step * rng.uniform(0.5, 2.0))
                try:
                    deadline.run(spin, count)
                    done += 1
                except TooLate:
                    late += 1
                outside += 1
        except TooLate:
            pytest.fail("an alarm came out after the function had ended")
    assert outside == done + late == 30_000
    assert done > 100
    assert late > 100


def test_an_exception_of_the_function_is_the_one_that_comes_out() -> None:
    """A function that raises just when the alarm comes: its exception or TooLate, once."""
    rng = random.Random(8)

    def failing(count: int) -> None:
        spin(count)
        raise ValueError

    seen = {ValueError: 0, TooLate: 0}
    with Deadline(LONG) as deadline:
        for _ in range(10_000):
            deadline.seconds = rng.choice((3e-6, 1e-5, 3e-5))
            try:
                deadline.run(failing, rng.randrange(800))
            except (ValueError, TooLate) as error:
                seen[type(error)] += 1
    assert sum(seen.values()) == 10_000
    assert all(seen.values())


def test_an_alarm_in_run_itself_raises_nothing() -> None:
    """A signal that Python handles in the frame of run(), or in one of its helpers, is let be."""
    with Deadline(LONG) as deadline:

        def overdue(_: object) -> None:
            module._ALARM.until = time.monotonic() - 1
            frame = sys._getframe(1)
            while frame.f_code is not Deadline.run.__code__:
                assert frame.f_back is not None
                frame = frame.f_back
            module._ALARM.strike(signal.SIGALRM, frame)
            with pytest.raises(TooLate):
                module._ALARM.strike(signal.SIGALRM, sys._getframe())
            module._ALARM.until = time.monotonic() + LONG

        deadline.run(overdue, None)


def test_another_signal_ends_run_and_its_alarm() -> None:
    """Where another handler's exception ends run() half-way, the alarm later raises nothing."""
    with Deadline(0.01) as deadline:
        module._ALARM.until = time.monotonic() - 1  # as it would have been left
        signal.raise_signal(signal.SIGALRM)
        assert module._ALARM.until == 0.0
        module._ALARM.until = time.monotonic() - 1
        with pytest.raises(TooLate):  # of one packet, not of all that follow
            deadline.run(spin, 1)
        deadline.seconds = LONG
        assert deadline.run(spin, 1) == 1


# --- who catches it ----------------------------------------------------------------------------


def catching_at_once(_: object) -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(LONG)


def catching_in_a_loop(_: object) -> None:
    while True:
        try:
            while True:
                time.monotonic()
        except BaseException:  # noqa: BLE001
            caught = True
            assert caught


@pytest.mark.parametrize("function", [catching_at_once, catching_in_a_loop])
def test_who_catches_it_is_reported_and_ended(function: Callable[[Any], None]) -> None:
    """What catches BaseException gets it again until it comes outside of its try."""
    told: list[str] = []
    begin = time.monotonic()
    for _ in range(5):
        told.clear()
        with (
            Deadline(0.005, lambda: told.append("stubborn")) as deadline,
            pytest.raises(TooLate),
        ):
            deadline.run(function, None)
        assert told in ([], ["stubborn"])
    assert time.monotonic() - begin < PATIENCE


def test_who_catches_it_a_few_times_is_late() -> None:
    """A function that swallows it and returns is late all the same; the report comes once."""
    told: list[str] = []
    caught: list[float] = []

    def swallowing(times: int) -> str:
        while len(caught) < times:
            try:
                time.sleep(LONG)
            except TooLate:
                caught.append(time.monotonic())
        return "done"

    with Deadline(0.005, lambda: told.append("stubborn")) as deadline:
        with pytest.raises(TooLate):
            deadline.run(swallowing, 3)
        assert (len(caught), told) == (3, [])
        with pytest.raises(TooLate):
            deadline.run(swallowing, module.STUBBORN + 5)
    assert told == ["stubborn"]


# --- one timer for all -------------------------------------------------------------------------


def test_a_deadline_in_another_ends_with_it() -> None:
    """The inner one is ended at the time of the outer, and then the outer one."""

    def outer(deadline: Deadline) -> None:
        with pytest.raises(TooLate):
            deadline.run(loop, None)
        loop(None)

    begin = time.monotonic()
    with Deadline(0.02) as short, Deadline(LONG) as long, pytest.raises(TooLate):
        short.run(outer, long)
    assert time.monotonic() - begin < PATIENCE


def test_the_outer_goes_on_when_the_inner_is_late() -> None:
    """The outer deadline still holds after an inner one that C code has overrun."""

    def outer(deadline: Deadline) -> None:
        with pytest.raises(TooLate):
            deadline.run(sum, range(1_000_000))
        loop(None)

    with Deadline(0.2) as long, Deadline(0.001) as short, pytest.raises(TooLate):
        long.run(outer, short)


def test_a_short_one_after_a_long_one_is_in_time() -> None:
    """The timer that still runs for a long deadline is no reason to end a short one late."""
    with Deadline(LONG) as long, Deadline(0.01) as short:
        long.run(spin, 1)
        begin = time.monotonic()
        with pytest.raises(TooLate):
            short.run(loop, None)
        assert time.monotonic() - begin < PATIENCE


def test_the_timer_is_not_set_for_each_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand packets in a deadline's time cost one system call, not twenty thousand."""
    calls = []

    def counted(which: int, seconds: float, interval: float = 0.0) -> None:
        calls.append(seconds)
        signal.setitimer(which, seconds, interval)

    monkeypatch.setattr(module, "_setitimer", counted)
    with Deadline(LONG) as deadline:
        for _ in range(10_000):
            deadline.run(spin, 1)
    assert len(calls) == 1


def test_packets_of_which_each_is_quick_are_never_late() -> None:
    """A timer set for an earlier packet does not end a later one before its time."""
    with Deadline(0.05) as deadline:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            begin = time.monotonic()
            try:
                deadline.run(spin, 100)
            except TooLate:  # on a machine that was away for so long
                assert time.monotonic() - begin >= 0.05


# --- whose signal it is ------------------------------------------------------------------------


def test_the_former_handler_and_timer_come_back() -> None:
    """Who had SIGALRM before gets it back, with the rest of the time he had set."""

    def mine(_number: int, _frame: FrameType | None) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGALRM, mine)
    try:
        signal.setitimer(signal.ITIMER_REAL, LONG, 7.0)
        with Deadline(0.01) as deadline, pytest.raises(TooLate):
            deadline.run(loop, None)
        assert signal.getsignal(signal.SIGALRM) is mine
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        assert LONG - PATIENCE < left < LONG
        assert interval == 7.0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_function_that_takes_the_signal_keeps_it_for_one_packet() -> None:
    """What uses SIGALRM itself is late by the clock; the next packet has its deadline again."""

    def taking(_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sum(range(500_000))

    with Deadline(0.002) as deadline:
        for _ in range(3):
            with pytest.raises(TooLate):
                deadline.run(taking, None)
            with pytest.raises(TooLate):
                deadline.run(loop, None)


def test_what_an_inner_one_stopped_runs_again_for_the_outer() -> None:
    """The timer that a function under an inner deadline stops is set again for the outer one."""

    def stopping(_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sum(range(500_000))

    def outer(deadline: Deadline) -> None:
        with pytest.raises(TooLate):
            deadline.run(stopping, None)
        loop(None)

    with Deadline(0.2) as long, Deadline(0.001) as short, pytest.raises(TooLate):
        long.run(outer, short)


def test_a_child_process_has_its_own_timer() -> None:
    """A worker that was forked while the timer ran ends what is late (fork(2))."""
    with Deadline(1.0) as deadline:
        deadline.run(spin, 1)
        child = os.fork()
        if not child:  # pragma: no cover - in the child
            code = 1
            try:
                deadline.run(loop, None)
            except TooLate:
                code = 42
            finally:
                os._exit(code)
        guard = threading.Timer(PATIENCE, os.kill, (child, signal.SIGKILL))
        guard.start()
        _, status = os.waitpid(child, 0)
        guard.cancel()
    assert os.waitstatus_to_exitcode(status) == 42


def test_in_another_thread_the_clock_decides() -> None:
    """Outside of the main thread no signal is taken, and what was late is so afterwards."""
    before = signal.getsignal(signal.SIGALRM)
    seen: list[object] = []

    def work() -> None:
        deadline = Deadline(0.005)
        seen.append(Deadline(LONG).run(spin, 5))
        try:
            deadline.run(lambda _: time.sleep(0.01), None)
        except TooLate:
            seen.append("late")
        seen.append(signal.getsignal(signal.SIGALRM) == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(PATIENCE)
    assert seen == [5, "late", True]
