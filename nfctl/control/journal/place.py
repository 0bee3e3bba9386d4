"""The directory of the state: safe, writable, and locked by who changes what is in it.

The lock is a file that is locked with flock(2), as the xtables lock is; it is taken before that.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfctl.control.journal import durable
from nfctl.kernel import lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: Files that come once the entry is written: records, statuses, the watchdog's.
FILES = 8
#: What is said of every failure before anything was changed.
UNTOUCHED = "nothing was touched"

_STATUSES = 32 << 10  # bytes: a few small files, each of a page at least


class Place:
    """A directory with ``history``, ``policies`` and a lock; made when it is used first."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - no links are followed
        self._history = self.directory / "history"
        self._policies = self.directory / "policies"
        self._locked_by: tuple[int, int] | None = None

    @contextlib.contextmanager
    def locked(self, wait: float = lock.DEFAULT_WAIT) -> Iterator[None]:
        """Hold the lock for the ``with`` block; the same thread may do so again inside.

        Raises Locked (exit 4) after ``wait`` seconds, with the process that holds it.
        """
        me = (os.getpid(), threading.get_ident())
        if self._locked_by == me:
            yield
            return
        self._make()
        file = self.directory / "lock"
        with durable.explained(self.directory, UNTOUCHED):
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(file, flags, 0o600))
        with lock.held(wait, file, "the lock of the journal"):
            self._locked_by = me
            try:
                self._sweep()
                yield
            finally:
                self._locked_by = None

    def ready(self, size: int = 0) -> None:
        """Make sure that ``size`` bytes can be written; called before anything is changed.

        Raises Unsupported or NotPermitted (exit 3) where the disk is full or read-only, or the
        directory is not safe.
        """
        self._make()
        with durable.explained(self.directory, UNTOUCHED):
            durable.probe(self._history, size)

    def spare(self, sets: Sequence[Mapping[str, Any]] = ()) -> durable.Spare:
        """Hold room for what is written when the tables are: statuses, and a record's ``sets``.

        Raises what :meth:`ready` raises; a change of which that could not be noted is not made.
        """
        self._make()
        size = _STATUSES + 2 * len(json.dumps(sets))
        with durable.explained(self.directory, UNTOUCHED):
            return durable.Spare(self._history, size)

    def _make(self) -> None:
        with durable.explained(self.directory, UNTOUCHED):
            for directory in (self.directory, self._history, self._policies):
                durable.make_directory(directory)

    def _there(self) -> bool:
        """Whether there is any state to read; nothing is made."""
        with durable.explained(self.directory):
            return durable.check_directory(self.directory)

    def _sweep(self) -> None:
        durable.sweep(self.directory)
        durable.sweep(self._history)
        durable.sweep(self._policies)
        for directory in (self._history, self._policies):
            for name in listed(directory):
                durable.sweep(directory / name)


def listed(directory: Path) -> list[str]:
    """Return the names in a directory but the temporary ones; none if it is not there."""
    try:
        return [name for name in os.listdir(directory) if not name.startswith(".")]
    except FileNotFoundError:
        return []
