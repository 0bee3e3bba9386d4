"""What the watchdog does: wait for the confirmation of a change, and undo the change without it.

1. It is told by a FIFO in the entry's directory that something happened, looks at the entry once
   a second besides, and counts in CLOCK_BOOTTIME: time in suspend counts.
2. It decides under the state's lock, by the entry's status; a confirmation at the last moment
   comes either before that or too late.
3. It does not give up. Whoever holds a lock is waited for; an undoing that fails otherwise (a full
   disk, a journal that is gone) is repeated, and at last the whole tables of the snapshot, which
   it has had in memory since before the change, are restored without the journal.
4. SIGTERM (systemctl stop, a shutdown) makes it roll back at once: without a watchdog no
   unconfirmed change stands. SIGHUP is ignored.

It writes to syslog (LOG_AUTHPRIV) and to ``watchdog.log`` in the entry's directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import syslog
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from nfctl.control.confirmation import watchdog
from nfctl.control.confirmation.lastresort import LastResort, preload
from nfctl.control.journal.entries import INTERRUPTED, PREPARED, UNCONFIRMED
from nfctl.control.journal.records import Damaged
from nfctl.control.journal.state import State
from nfctl.errors import BadInput, Locked, NfctlError
from nfctl.kernel import netns, process
from nfctl.kernel.sdnotify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.journal.entries import Entry

LOG = "watchdog.log"

_LOOK = 1.0  # seconds between looks at the entry
_TRY = 10.0  # seconds to wait for a lock at a time
_PATIENCE = 24 * 3600.0  # seconds after the deadline until it gives up
_PAUSES = (0.1, 0.5, 1.0, 5.0, 30.0)  # seconds after the first, the second ... failure
_TRIES = 3  # failures for other reasons than a lock, until the snapshot is restored whole
_LOCK_MEMORY = 1 | 2 | 4  # MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT: mlockall(2)

CONFIRMED, ROLLED_BACK, ENDED, GAVE_UP = "confirmed", "rolled back", "ended", "gave up"


class Vigil:
    """Waits for one entry. ``deadline`` is of CLOCK_BOOTTIME, in seconds; the entry's own wins.

    ``undo`` is :func:`nfctl.control.undo.rollback` and ``restore`` puts the snapshot back;
    ``clock`` tells the time, ``wait`` sleeps so many seconds or until the descriptor has
    something to read, and ``log`` takes a line. Tests give their own.
    """

    def __init__(
        self,
        state: State,
        number: int,
        deadline: float,
        *,
        undo: Callable[..., object],
        restore: Callable[[], None],
        clock: Callable[[], float] = process.since_boot,
        wait: Callable[[int, float], None] | None = None,
        log: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.hurried = ""  # why it must not wait any longer
        self._state = state
        self._number = number
        self._deadline = deadline
        self._undo = undo
        self._restore = restore
        self._clock = clock
        self._wait = wait or _wait
        self._log = log
        self._fifo = _open_fifo(watchdog.fifo(state, number))
        self._seen: tuple[int, int] | None = None
        self._wanted = True
        self._undone = ""  # why, once the kernel has it back; the journal may not know yet

    def close(self) -> None:
        """Take the FIFO away."""
        if self._fifo >= 0:
            os.close(self._fifo)
            with contextlib.suppress(OSError):
                watchdog.fifo(self._state, self._number).unlink()

    def keep(self) -> str:
        """Wait, decide, act; return what became of the change: one of the four words above."""
        while True:
            outcome = self._wait_for_word()
            outcome = outcome or self._act()
            if outcome:
                self._log(f"history entry {self._number}: {outcome}")
                return outcome

    # --- waiting ------------------------------------------------------------------------------

    def _wait_for_word(self) -> str:
        """Return what somebody else decided, or "" at the deadline."""
        while not self.hurried:
            entry = self._look()
            if entry is not None:
                self._take_deadline(entry)
                outcome = _decided(entry)
                if outcome:
                    return outcome
            if not self._wanted:
                return ENDED
            left = self._deadline - self._clock()
            if left <= 0:
                break
            self._pause(min(left, _LOOK))
        return ""

    def _look(self) -> Entry | None:
        """Read the entry if it was written since; None if not, or if it cannot be read."""
        file = watchdog.fifo(self._state, self._number).with_name("entry.json")
        try:
            status = file.stat()
            found = (status.st_ino, status.st_mtime_ns)
            if found == self._seen:
                return None
            entry = self._state.entry(self._number)
        except (OSError, NfctlError):
            return None  # whatever it is, it is no confirmation
        self._seen = found
        return entry

    def _take_deadline(self, entry: Entry) -> None:
        if entry.deadline is not None:
            self._deadline = entry.deadline

    def _pause(self, seconds: float) -> None:
        self._wait(self._fifo, seconds)
        if self._fifo >= 0:
            with contextlib.suppress(BlockingIOError):
                words = os.read(self._fifo, 4096)
                if watchdog.END in words:
                    self._wanted = False
                if watchdog.NOW in words:
                    self.hurried = "it was not kept"

    # --- undoing ------------------------------------------------------------------------------

    def _act(self) -> str:
        """Undo the change, however long it takes; "" if there is more time than was thought."""
        failures = 0
        until = self._clock() + _PATIENCE
        said = ""
        for attempt in range(1 << 30):
            try:
                return self._decide()
            except Locked as error:
                problem = str(error)
                self._go_on()
            except Exception as error:  # noqa: BLE001 - whatever it is, the change has to go
                problem = f"{type(error).__name__}: {error}"
                failures += 1
            if problem != said:
                said = problem
                self._log(f"history entry {self._number} is not rolled back yet: {problem}")
            if not self._undone and failures >= _TRIES and self._last_resort():
                self._undone = "restored without the journal"
            if self._undone:  # once, and not over what others do since
                self._note(self._undone)
                return ROLLED_BACK
            if self._clock() >= until:
                break
            self._pause(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        return GAVE_UP

    def _decide(self) -> str:
        state, number = self._state, self._number
        with state.locked(_TRY):
            entry = state.entry(number)
            outcome = _decided(entry)
            if outcome:
                return outcome
            self._take_deadline(entry)
            if not self.hurried and self._deadline > self._clock():
                return ""
            if entry.status == INTERRUPTED and self._is_followed():
                return ENDED  # somebody has applied something else since
            if entry.status not in {PREPARED, UNCONFIRMED, INTERRUPTED}:
                raise ValueError(entry.warning or entry.status)
            why = self.hurried or f"not confirmed in {entry.confirm or 0:g} s"
            self._log(f"history entry {number}: {why}; rolling back")
            self._undo(state, number, wait=_TRY, why=why)
            self._undone = why
            if not _decided(state.entry(number)):
                state.mark(number, ROLLED_BACK, reason=why)
        return ROLLED_BACK

    def _go_on(self) -> None:
        """Have the apply go on that may have been stopped (Ctrl-Z) while it holds the locks."""
        with contextlib.suppress(NfctlError, OSError):
            applier = self._state.entry(self._number).process
            if applier.is_alive():
                os.kill(applier.pid, signal.SIGCONT)

    def _is_followed(self) -> bool:
        later = (entry for entry in self._state.entries() if entry.number > self._number)
        return any(entry.status not in {INTERRUPTED, "failed", "damaged"} for entry in later)

    def _last_resort(self) -> bool:
        """Put the snapshot back without the journal; under its lock, if that can be had."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._state.locked(0))
            except Locked:
                return False
            except NfctlError as error:
                self._log(f"there is no journal any more: {error}")
            else:
                with contextlib.suppress(NfctlError):
                    if _decided(self._state.entry(self._number)):
                        return False  # the next look at it finds out what
            try:
                self._restore()
            except Exception as error:  # noqa: BLE001 - it is tried again
                self._log(f"nor can the snapshot be restored: {type(error).__name__}: {error}")
                return False
            self._log("the tables are restored whole, as they were before the change")
        return True

    def _note(self, why: str) -> None:
        """Have the journal say so, as soon as it can; nobody may confirm what is not there."""
        until = self._clock() + _PATIENCE
        for attempt in range(1 << 30):
            try:
                self._state.mark(self._number, ROLLED_BACK, reason=why)
            except (BadInput, Damaged):  # the entry is gone
                return
            except (NfctlError, OSError) as error:
                if attempt == 0:
                    self._log(f"the journal cannot be told yet: {error}")
            else:
                return
            if self._clock() >= until:
                return
            self._pause(_PAUSES[min(attempt, len(_PAUSES) - 1)])


def _decided(entry: Entry) -> str:
    """Return what somebody decided about an entry, or ""."""
    if entry.status in {CONFIRMED, ROLLED_BACK}:
        return entry.status
    return ENDED if entry.status in {"failed", "applied"} else ""


def _wait(descriptor: int, seconds: float) -> None:
    poll = select.poll()
    if descriptor >= 0:
        poll.register(descriptor, select.POLLIN)
    poll.poll(max(0.0, seconds) * 1000)


def _open_fifo(path: Path) -> int:
    """Make and open the FIFO; -1 where the file system has none: the entry is enough."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        # also for writing: a FIFO without a writer would be readable, at its end, all the time
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    return -1


# --- the process --------------------------------------------------------------------------------


class Log:
    """Takes lines; to syslog(3) and to a file, none of which it needs."""

    def __init__(self, path: Path) -> None:
        self._file = -1
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            self._file = os.open(path, flags, 0o600)
        syslog.openlog("nfctl", syslog.LOG_PID, syslog.LOG_AUTHPRIV)

    def __call__(self, line: str) -> None:
        """Write a line."""
        line = "".join(char if char.isprintable() else "?" for char in line)[:2000]
        with contextlib.suppress(OSError):
            syslog.syslog(syslog.LOG_NOTICE, line)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):
            if self._file >= 0:
                os.write(self._file, f"{when} {line}\n".encode("utf-8", "backslashreplace"))


def main(words: list[str]) -> NoReturn:
    """``python -m nfctl.control.confirmation.watchdog DIRECTORY NUMBER DEADLINE [OPTION ...]``.

    ``--detach`` leaves the process that was started; ``--netns FILE`` is a network namespace to
    enter, and ``--same DEVICE:INODE:FILE`` says what a file has to be.
    """
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m nfctl.control.confirmation.watchdog", add_help=False
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("number", type=int)
    parser.add_argument("deadline", type=float)
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--netns")
    parser.add_argument("--same", action="append", default=[])
    asked = parser.parse_args(words)
    if asked.detach and os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o077)
    notifier = Notifier()
    for same in asked.same:
        device, inode, file = same.split(":", 2)
        if watchdog.identity(file) != f"{device}:{inode}":
            sys.exit(f"{file} is another file here")
    try:
        if asked.netns:
            netns.enter(asked.netns)
        vigil = _stand(State(asked.directory), asked.number, asked.deadline)
    except NfctlError as error:
        sys.exit(str(error))
    notifier.ready(f"waiting for the confirmation of history entry {asked.number}")
    if asked.detach:
        os.write(1, b"ready\n")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        os.closerange(null, null + 1)
    outcome = vigil.keep()
    vigil.close()
    os._exit(outcome == GAVE_UP)


def _stand(state: State, number: int, deadline: float) -> Vigil:
    """Get everything ready for an entry."""
    for each in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(each, signal.SIG_DFL)
    for ignored in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    entry = state.entry(number)
    log = Log(entry.path / LOG)
    preload(log)
    from nfctl.control import undo

    last = LastResort(entry, log)
    vigil = Vigil(state, number, deadline, undo=undo.rollback, restore=last.restore, log=log)

    def hurry(number: int, _frame: object) -> None:
        vigil.hurried = f"the watchdog was told to end ({signal.Signals(number).name})"

    for asking in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asking, hurry)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _hold_on()
    log(
        f"history entry {number}: waiting {deadline - process.since_boot():.1f} s for nfctl confirm"
    )
    return vigil


def _hold_on() -> None:
    """Keep memory from being taken away: by the kernel's OOM killer, or with a disk that fails."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    ctypes.CDLL(None).mlockall(_LOCK_MEMORY)
