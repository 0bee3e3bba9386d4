"""The question that counts down: on a terminal of the test's, with a clock of the test's."""

from __future__ import annotations

import os
import pty
import select
import termios
from typing import TYPE_CHECKING

import pytest

from nfctl.cli import keep

if TYPE_CHECKING:
    from collections.abc import Iterator


class Screen:
    """A pseudo-terminal, and a clock that each look at the entry makes go on."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.now = 0.0
        self.step = 0.5
        self.decided_at = 1e9
        self.keys: list[tuple[float, bytes]] = []

    def decided(self) -> bool:
        self.now += self.step
        while self.keys and self.keys[0][0] <= self.now:
            os.write(self.master, self.keys.pop(0)[1])
        return self.now >= self.decided_at

    def ask(self, deadline: float, patience: float = 0.0) -> str:
        return keep.ask(
            deadline, self.decided, keys=self.slave, screen=self.slave, clock=lambda: self.now,
            patience=patience,
        )  # fmt: skip

    def shown(self) -> str:
        """Return what was written, to its end: the line is cleared then."""
        text = ""
        while not text.endswith(" s \r\033[K"):
            assert select.select([self.master], [], [], 30)[0], text
            text += os.read(self.master, 1 << 16).decode()
        return text


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Screen]:
    made = Screen()
    monkeypatch.setattr(keep, "_LOOK", 0.02)
    yield made
    for end in (made.master, made.slave):
        if end >= 0:
            os.close(end)


def test_it_counts_down(screen: Screen) -> None:
    """Every second is shown once, in the same line, which is gone in the end; no answer is late."""
    assert screen.ask(3.0) == keep.LATE
    shown = screen.shown()
    lines = shown.split("\r\033[K")[1:]
    assert lines == ["keep it? [y/N] 3 s ", "keep it? [y/N] 2 s ", "keep it? [y/N] 1 s ", ""]
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("keys", "answer"),
    [(b"y", "yes"), (b"Y", "yes"), (b"n", "no"), (b"\r", "no"), (b"\x04", "no"), (b"yes", "yes")],
)
def test_a_key_answers(screen: Screen, keys: bytes, answer: str) -> None:
    """The first key that means something is the answer, and the terminal is as it was."""
    before = termios.tcgetattr(screen.slave)
    screen.keys = [(2.0, keys)]
    assert screen.ask(60.0) == answer
    assert screen.now < 5
    assert termios.tcgetattr(screen.slave) == before


def test_a_letter_in_a_word_is_no_answer(screen: Screen) -> None:
    """What was typed for the shell neither keeps the change nor undoes it, up to a pause."""
    screen.keys = [(2.0, b"systemctl stop any\n"), (20.0, b"y")]
    assert screen.ask(60.0) == keep.YES
    assert 20 <= screen.now < 25


def test_others_decide(screen: Screen) -> None:
    """A confirmation from elsewhere ends the question."""
    screen.decided_at = 10.0
    assert screen.ask(60.0) == keep.LATE
    assert screen.now == 10.0


def test_the_watchdog_is_given_time(screen: Screen) -> None:
    """Past the deadline it shows 0 s and waits a while for what the watchdog does."""
    screen.decided_at = 5.0
    assert screen.ask(3.0, patience=10.0) == keep.LATE
    assert screen.now == 5.0
    assert "0 s" in screen.shown()


def test_a_terminal_that_is_gone(screen: Screen) -> None:
    """Once the terminal has hung up there is no answer, and no busy loop: the watchdog decides."""
    os.close(screen.master)
    screen.master = -1
    screen.step = 0.5
    assert screen.ask(3.0) == keep.LATE
    assert screen.now >= 3.0


def test_no_terminal() -> None:
    """Nobody is asked in a pipe, nor on a terminal that is another session's."""
    read, write = os.pipe()
    master, slave = pty.openpty()
    try:
        assert not keep.can_ask(read, write)
        assert not keep.can_ask(slave, slave)
    finally:
        for end in (read, write, master, slave):
            os.close(end)
