"""A process, once and for all; and the clocks and boots that deadlines are counted in."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process id, the start time that tells it from a later one, and its pid namespace.

    The start time is field 22 of proc_pid_stat(5), in clock ticks since the boot.
    """

    pid: int
    start: int
    namespace: int

    @classmethod
    def me(cls) -> Process:
        """Return the calling process."""
        pid = os.getpid()
        return cls(pid, start_time(pid), _namespace())

    def is_alive(self) -> bool | None:
        """Whether the process still runs; None if that cannot be seen from here."""
        if self.namespace != _namespace():
            return None
        try:
            return start_time(self.pid) == self.start
        except OSError:
            return False


def start_time(pid: int) -> int:
    """Return when a process began; ProcessLookupError if it has ended."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # the command's name, in parentheses, may itself hold blanks and parentheses
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:  # dead, and only not waited for
        raise ProcessLookupError(pid)
    return int(fields[19])


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def boot_id() -> str:
    """Return what names this boot of the machine (random(4)); "" if the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def since_boot() -> float:
    """Return the seconds since the boot, those in suspend included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
