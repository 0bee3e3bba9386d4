"""The question behind ``nfctl apply --confirm``: keep it? One line on the terminal, counting down.

Only a key that is struck after the change counts: one that was typed ahead says nothing about
whether the terminal still works. So does a letter in a word that was meant for somebody else: what
follows a key without a meaning is passed over, up to a pause.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import termios
import tty
from typing import TYPE_CHECKING, Final

from nfctl.kernel.process import since_boot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

YES, NO, LATE = "yes", "no", "late"

_LOOK = 0.25  # seconds between looks at the entry: somebody else may confirm it
_PAUSE = 1.0  # seconds without a key end what was typed
_KEYS: Final = {b"y": YES, b"Y": YES, b"n": NO, b"N": NO, b"q": NO, b"\r": NO, b"\n": NO,
                b"\x04": NO}  # fmt: skip


def can_ask(keys: int = 0, screen: int = 2) -> bool:
    """Whether there is a terminal to ask on, and it is ours: the background may not read it."""
    try:
        return os.isatty(keys) and os.isatty(screen) and os.tcgetpgrp(keys) == os.getpgrp()
    except OSError:
        return False


def ask(
    deadline: float,
    decided: Callable[[], bool],
    *,
    keys: int = 0,
    screen: int = 2,
    clock: Callable[[], float] = since_boot,
    patience: float = 0.0,
) -> str:
    """Ask until a key answers, or ``decided`` says that it was decided elsewhere.

    ``deadline`` is of ``clock``, in seconds. Ctrl-C is a no. When the time is over the watchdog
    decides; ``patience`` seconds later the answer is LATE. It is LATE, too, when somebody else
    decided.
    """
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_single_keys(keys))
            except termios.error:  # the terminal went away
                keys = -1
            stack.callback(_write, screen, "\r\033[K")
            shown, word = -1, -math.inf  # when the last key of a word was struck
            while not decided():
                left = deadline - clock()
                if left <= -patience:
                    break
                seconds = max(0, math.ceil(left))
                if seconds != shown:
                    shown = seconds
                    _write(screen, f"\r\033[Kkeep it? [y/N] {seconds} s ")
                key = _key(keys, min(_LOOK, left + patience))
                if key is None:  # hung up: the watchdog has the last word
                    keys = -1
                elif key and (key not in _KEYS or clock() - word <= _PAUSE):
                    word = clock()
                elif key:
                    return _KEYS[key]
    except KeyboardInterrupt:
        return NO
    return LATE


def _key(keys: int, seconds: float) -> bytes | None:
    """Return a key, b"" if none was struck, None if there is no terminal any more."""
    poll = select.poll()
    if keys >= 0:
        poll.register(keys, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return b""
    try:
        return os.read(keys, 1) or None
    except OSError:
        return None


@contextlib.contextmanager
def _single_keys(keys: int) -> Iterator[None]:
    """Give single keys, without echo, and none that was typed before: termios(3)."""
    before = termios.tcgetattr(keys)
    tty.setcbreak(keys, termios.TCSAFLUSH)
    try:
        yield
    finally:
        # what follows the key, a line feed as a rule, is not for the shell
        with contextlib.suppress(termios.error):
            termios.tcsetattr(keys, termios.TCSAFLUSH, before)


def _write(screen: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(screen, text.encode())
