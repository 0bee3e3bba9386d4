"""The xtables lock: the one iptables takes, around every read-change-write.

iptables(8) locks ``/run/xtables.lock`` (``XTABLES_LOCKFILE`` if that is set) with flock(2)
before it reads a table and until it has written it. libiptc itself takes no lock, and the kernel
notices a lost update only when the number of entries changed.

Other locks of nfctl are files that are locked in the same way: ``held`` takes their path.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.errors import Locked, NotPermitted, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How long to wait for the lock unless told otherwise, in seconds.
DEFAULT_WAIT = 10.0

XTABLES = "the xtables lock"

_POLL = 0.01
_FOREVER = 1e8  # seconds; a timer takes no infinite ones


def path() -> str:
    """Return the lock file's path."""
    return os.environ.get("XTABLES_LOCKFILE") or "/run/xtables.lock"


@contextlib.contextmanager
def held(
    wait: float = DEFAULT_WAIT, file: str | Path | None = None, name: str = XTABLES
) -> Iterator[None]:
    """Hold the lock for the ``with`` block; ``file`` and ``name`` are those of another lock.

    Waits at most ``wait`` seconds (0: not at all). Raises Locked (exit 4) after that, saying who
    holds it where the kernel tells; NotPermitted or Unsupported where there is no lock to be had.
    """
    file = str(file or path())
    fd = _open(file, name)
    owner = os.getpid()
    try:
        if not _acquire(fd, wait):
            raise _busy(wait, file, name)
        yield
    finally:
        if os.getpid() == owner:  # also the copies that children have of it are no locks any more
            fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _open(file: str, name: str) -> int:
    try:
        # the mode and the flags of iptables, and no symbolic link
        return os.open(file, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except PermissionError as error:
        msg = f"{name} {file} cannot be opened: {error.strerror}"
        raise NotPermitted(msg, hint="run as root") from None
    except OSError as error:
        msg = f"{name} {file} cannot be opened: {error.strerror}"
        hint = "XTABLES_LOCKFILE names another file" if name == XTABLES else ""
        raise Unsupported(msg, hint=hint) from None


def _acquire(fd: int, wait: float) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    if not wait > 0:  # nor if it is no number
        return False
    wait = min(wait, _FOREVER)
    if threading.current_thread() is threading.main_thread() and not any(
        signal.getitimer(signal.ITIMER_REAL)
    ):
        return _acquire_in_line(fd, wait)
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL)
    return False


class _Timeout(Exception):
    pass


def _acquire_in_line(fd: int, wait: float) -> bool:
    """Queue for the lock as iptables -w does, instead of asking for it again and again."""

    def expired(_number: int, _frame: object) -> None:
        raise _Timeout

    before = signal.signal(signal.SIGALRM, expired)
    try:
        signal.setitimer(signal.ITIMER_REAL, wait)
        fcntl.flock(fd, fcntl.LOCK_EX)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except _Timeout:
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return True


def _busy(wait: float, file: str, name: str) -> Locked:
    who = holder(file)
    by = f"{who[1]} (process {who[0]})" if who else "another program"
    waited = f" after {wait:g} s" if wait > 0 else ""
    msg = f"{name} {file} is still held by {by}{waited}"
    return Locked(msg, hint="-w SECONDS waits longer")


def holder(file: str | Path | None = None) -> tuple[int, str] | None:
    """Return (process id, command name) of who holds the lock, or None if no one or unknown.

    From /proc/locks (proc_locks(5)); a holder in another PID namespace is not shown there.
    """
    try:
        status = Path(file or path()).stat()
        wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
                pid = int(fields[4])
                if pid > 0:
                    return pid, Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return None
