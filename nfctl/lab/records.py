"""Who owns which lab: one directory a lab under ``/run/nfctl/labs``, and sweeping the dead.

A record is a directory whose name says everything, because mkdir(2) is atomic and a file's
content is not: ``<lab>.<pid>.<start>.<pid namespace>``. The process id alone may be reused,
so its start time (proc_pid_stat(5), field 22, in clock ticks) goes with it; and whoever
lives in another pid namespace cannot tell whether the owner lives, and leaves it alone. (For
the same reason a lab that is to outlive its maker can be given the owner 0.0.0.)
The directory also holds each host's private ``/run``. The record is made before the first
namespace and goes after the last, so a lab is found by name whenever its owner died.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from nfctl.errors import NotPermitted
from nfctl.lab import namespaces

DIRECTORY = Path("/run/nfctl/labs")


class Owner(NamedTuple):
    """A process, once and for all: id, start time and the pid namespace these are counted in."""

    pid: int
    start: int
    pid_namespace: int

    @classmethod
    def me(cls) -> Owner:
        """Return the calling process."""
        pid = os.getpid()
        return cls(pid, _start_time(pid), _pid_namespace())

    def is_alive(self) -> bool | None:
        """Whether the process still runs; None if that cannot be seen from here."""
        if self.pid_namespace != _pid_namespace():
            return None
        try:
            return _start_time(self.pid) == self.start
        except OSError:
            return False


class Record(NamedTuple):
    """A lab's id and its owner."""

    lab: str
    owner: Owner

    @property
    def path(self) -> Path:
        """The lab's directory."""
        return DIRECTORY / ".".join([self.lab, *map(str, self.owner)])

    def create(self) -> None:
        """Write the record, or raise NotPermitted.

        The mode is 0700, because whoever can write here can have things removed.
        """
        try:
            DIRECTORY.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            DIRECTORY.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(mode=0o700)
        except PermissionError:
            raise NotPermitted(f"cannot write to {DIRECTORY}", hint=namespaces.AS_ROOT) from None

    def remove(self) -> None:
        """Kill what runs in the lab's namespaces, and remove them, the files and the record.

        It may be called again at any time, also while another process does the same.
        """
        hosts = namespaces.names(f"{namespaces.PREFIX}{self.lab}-")
        for host in hosts:
            namespaces.kill_processes(host)
        for host in hosts:
            namespaces.remove(host)
        shutil.rmtree(self.path, ignore_errors=True)


def records() -> list[Record]:
    """Return all labs that have a record here."""
    try:
        entries = sorted(path.name for path in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []
    found = []
    for entry in entries:
        lab, *numbers = entry.split(".")
        if len(numbers) == 3 and all(number.isdigit() for number in numbers):
            found.append(Record(lab, Owner(*map(int, numbers))))
    return found


def sweep(prefix: str = "") -> list[str]:
    """Remove the labs whose owner was killed and whose id begins with ``prefix``.

    Labs of living processes are not touched. Returns the ids of the removed ones.
    """
    removed = []
    for record in records():
        if record.lab.startswith(prefix) and record.owner.is_alive() is False:
            record.remove()
            removed.append(record.lab)
    return removed


def _start_time(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_text()
    # The command's name, in parentheses, may itself hold blanks and parentheses.
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:  # dead, and only not waited for
        raise ProcessLookupError(pid)
    return int(fields[19])


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino
