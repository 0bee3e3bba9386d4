"""Who owns which lab: one directory a lab under ``/run/nfctl/labs``, and sweeping the dead.

A record is a directory whose name says everything, because mkdir(2) is atomic and a file's
content is not: ``<lab>.<pid>.<start>.<pid namespace>``. The process id alone may be reused,
so its start time (proc_pid_stat(5), field 22, in clock ticks) goes with it; and whoever
lives in another pid namespace cannot tell whether the owner lives, and leaves it alone.
The directory also holds each host's private ``/run``, and the files that its hosts see in /etc.
The record is made before the first namespace and goes after the last, so a lab is found by name
whenever its owner died.

A lab that is to outlive its maker has the owner 0.0.0, which nobody takes for a dead one. Its
record holds a note, ``lab.json``: who makes or made it, and whether it is complete. These labs
have no random part in their names, so whoever claims such a name, or removes what has one,
holds the lock of the directory of records.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl.errors import NotPermitted
from nfctl.lab import namespaces, syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

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


#: The owner of a lab that stands by itself.
STANDING = Owner(0, 0, 0)
_NOTE = "lab.json"


class Record(NamedTuple):
    """A lab's id and its owner."""

    lab: str
    owner: Owner

    @property
    def path(self) -> Path:
        """The lab's directory."""
        return DIRECTORY / ".".join([self.lab, *map(str, self.owner)])

    def create(self) -> None:
        """Write the record: FileExistsError if it is there, or NotPermitted.

        The mode is 0700, because whoever can write here can have things removed.
        """
        try:
            _make_directory()
            self.path.mkdir(mode=0o700)
        except PermissionError:
            raise NotPermitted(f"cannot write to {DIRECTORY}", hint=namespaces.AS_ROOT) from None

    def remove(self) -> None:
        """Kill what runs in the lab's namespaces, and remove them, the files and the record.

        It may be called again at any time, also while another process does the same.
        """
        with locked() if self.owner == STANDING else contextlib.nullcontext():
            self.erase()

    def erase(self) -> None:
        """Do what :meth:`remove` does, for whoever holds the lock if the lab stands."""
        namespaces.remove(namespaces.names(f"{namespaces.PREFIX}{self.lab}-"))
        _unmount(self.path)
        _remove_tree(self.path)

    def note(self) -> dict[str, Any]:
        """Return what the record of a standing lab says; nothing if its maker got no further."""
        import json

        try:
            found = json.loads((self.path / _NOTE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_note(self, note: dict[str, Any]) -> None:
        """Replace what the record says, at once and for good."""
        import json

        new = self.path / f"{_NOTE}.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123 - a descriptor, for its mode
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / _NOTE)

    def is_abandoned(self) -> bool:
        """Whether nobody can want this lab any more: its owner died, or who was making it."""
        if self.owner != STANDING:
            return self.owner.is_alive() is False
        note = self.note()
        return not note.get("complete") and maker(note).is_alive() is False


def maker(note: dict[str, Any]) -> Owner:
    """Return who made a standing lab; one that never lived where its note does not say."""
    try:
        pid, start, pid_namespace = map(int, note["maker"])
    except (KeyError, TypeError, ValueError):
        return Owner(0, -1, _pid_namespace())
    return Owner(pid, start, pid_namespace)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock under which names of standing labs are claimed and given back."""
    try:
        _make_directory()
    except PermissionError:
        raise NotPermitted(f"cannot write to {DIRECTORY}", hint=namespaces.AS_ROOT) from None
    with namespaces.locked(DIRECTORY):
        yield


def _make_directory() -> None:
    DIRECTORY.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)


def _unmount(top: Path) -> None:
    """Take away the hosts' own ``/run``, with all that is mounted there."""
    with contextlib.suppress(FileNotFoundError):
        for entry in top.iterdir():
            if entry.is_dir():
                while entry.is_mount():
                    syscalls.detach(entry)


def _remove_tree(top: Path) -> None:
    """Remove a directory and what is in it, following no links; what is gone is gone."""
    with contextlib.suppress(OSError):
        for _, directories, files, descriptor in os.fwalk(top, topdown=False):
            for name in files:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=descriptor)
            for name in directories:
                with contextlib.suppress(NotADirectoryError):
                    os.rmdir(name, dir_fd=descriptor)
                    continue
                os.unlink(name, dir_fd=descriptor)  # a link to a directory
        top.rmdir()


def records() -> list[Record]:
    """Return all labs that have a record here."""
    try:
        entries = sorted(path.name for path in DIRECTORY.iterdir())
    except FileNotFoundError:
        return []
    except PermissionError:
        raise NotPermitted(f"cannot read {DIRECTORY}", hint=namespaces.AS_ROOT) from None
    found = []
    for entry in entries:
        lab, *numbers = entry.split(".")
        if len(numbers) == 3 and all(number.isdigit() for number in numbers):
            found.append(Record(lab, Owner(*map(int, numbers))))
    return found


def sweep(prefix: str = "") -> list[str]:
    """Remove the labs whose owner was killed and whose id begins with ``prefix``.

    Also those that were to stand, if their maker was killed before they did. Labs of living
    processes are not touched. Returns the ids of the removed ones.
    """
    removed = []
    for record in records():
        if record.lab.startswith(prefix) and record.is_abandoned():
            with locked() if record.owner == STANDING else contextlib.nullcontext():
                if record.is_abandoned():  # still: another program may have made it anew
                    record.erase()
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
