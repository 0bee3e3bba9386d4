"""The state of nfctl on this host: the journal of changes, and what each policy owns.

It lives in ``/var/lib/nfctl`` (``NFCTL_STATE_DIR`` names another directory, ``home`` says more)::

    lock         who changes something holds it: see ``place``
    history/N    an entry for each change: see ``entries``
    policies/    a record for each policy: see ``records``
    settings.json

Only root (or whoever runs this) may write here, or rename a directory above. Every change of the
state is one rename(2): whoever is killed leaves the state as it was before or as it is after.
Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

from nfctl.control.journal import durable, entries, home, records
from nfctl.control.journal.entries import Entry, Who
from nfctl.control.journal.place import FILES, UNTOUCHED, Place, listed
from nfctl.control.journal.records import Damaged, Record
from nfctl.errors import BadInput
from nfctl.kernel import process
from nfctl.kernel.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

#: What stays in the journal: entries, and bytes of them.
KEEP = 50
KEEP_BYTES = 256 << 20
#: The latest repairs, which do not make room for other entries.
KEEP_REPAIRS = 10
RESTARTED = "the machine was restarted before the confirmation"


class State(Place):
    """The state in a directory; that of this network namespace if none is given.

    ``now`` is the time (epoch, seconds), ``since_boot`` CLOCK_BOOTTIME and ``boot_id`` the name
    of this boot; tests set them.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        now: Callable[[], float] = time.time,
        since_boot: Callable[[], float] = process.since_boot,
        boot_id: str | None = None,
    ) -> None:
        super().__init__(directory or home.directory())
        self.boot_id = process.boot_id() if boot_id is None else boot_id
        self._now = now
        self._since_boot = since_boot
        self._settings = self.directory / "settings.json"

    # --- the journal --------------------------------------------------------------------------

    def begin(
        self,
        *,
        policy: str,
        action: str,
        change: Mapping[str, Any],
        before: Mapping[int, str],
        sets: str = "",
        files: Sequence[tuple[str, str]] = (),
        confirm: float | None = None,
        undoes: Sequence[int] = (),
        summary: Mapping[str, int] | None = None,
        **more: Any,
    ) -> Entry:
        """Write an entry, before anything is changed; its status is "prepared".

        Raises Unsupported (exit 3) where that cannot be done.
        """
        with self.locked(), durable.explained(self.directory, UNTOUCHED):
            numbers = self._numbers()
            number = max(numbers, default=0) + 1
            new = self._history / f"{durable.NEW}{number}"
            contents = {
                entries.BEFORE[family]: text.encode("utf-8", "surrogateescape")
                for family, text in before.items()
            }
            contents[entries.CHANGE] = json.dumps(change, separators=(",", ":")).encode()
            if sets:
                contents[entries.SETS] = sets.encode("utf-8", "surrogateescape")
            entry = Entry(
                number,
                self._history / str(number),
                entries.PREPARED,
                action,
                policy,
                records.now(self._now()),
                Who.me(),
                tuple(files),
                confirm,
                None if confirm is None else self._since_boot() + confirm,
                self.boot_id,
                Process.me(),
                tuple(undoes),
                summary=dict(summary or {}),
                more=more,
                digests=entries.digests(contents.items()),
            )
            try:
                new.mkdir(mode=0o700)
                durable.write_all(new, contents | {entries.FILE: entry.bytes()})
                self._keep_records(new / entries.POLICIES)
                durable.check_files(new, FILES)
                durable.sync_directory(new)
                os.rename(new, entry.path)  # noqa: PTH104 - as durable does
                durable.sync_directory(self._history)
            except OSError:
                durable.sweep(self._history)
                raise
            self.prune()
        return entry

    def _keep_records(self, to: Path) -> None:
        """Copy the records of all policies: a link a file."""
        names = self.policies()
        if not names:
            return
        to.mkdir(mode=0o700)
        for name in names:
            (to / name).mkdir(mode=0o700)
            for file in listed(self._policies / name):
                if file != records.CONFIRMED:
                    durable.link(self._policies / name / file, to / name / file)
            durable.sync_directory(to / name)
        durable.sync_directory(to)

    def mark(self, number: int, status: str, **more: Any) -> Entry:
        """Give an entry another status; ``reason``, ``undone_by`` and others go with it.

        What :class:`Entry` has no field for is noted under ``more``.
        """
        with self.locked():
            entry = self.entry(number)
            if entry.status == entries.DAMAGED:
                raise Damaged(entry.warning)
            entry = entry.with_(status, more)
            with durable.explained(self.directory):
                durable.write(entry.path / entries.FILE, entry.bytes())
        return entry

    def entries(self) -> list[Entry]:
        """Return all entries, the oldest first; damaged ones say so."""
        found = []
        for number in sorted(self._numbers()):
            with contextlib.suppress(FileNotFoundError):  # pruned just now
                found.append(entries.read(self._history / str(number)))
        return found

    def entry(self, number: int) -> Entry:
        """Return one entry; BadInput if there is none of that number."""
        with contextlib.suppress(FileNotFoundError):
            if self._there():
                return entries.read(self._history / str(number))
        numbers = sorted(self._numbers())
        there = f"there are {numbers[0]} to {numbers[-1]}" if numbers else "the journal is empty"
        msg = f"the journal has no entry {number}"
        raise BadInput(msg, hint=there)

    def _numbers(self) -> list[int]:
        if not self._there():
            return []
        with durable.explained(self.directory):
            return [int(name) for name in listed(self._history) if name.isdecimal()]

    def pending(self) -> Entry | None:
        """Return the entry that waits for its confirmation, or is about to."""
        for entry in reversed(self.entries()):
            if entry.status == entries.UNCONFIRMED and entry.boot_id == self.boot_id:
                return entry
            if entry.status == entries.PREPARED and self._is_under_way(entry):
                return entry
        return None

    def _is_under_way(self, entry: Entry) -> bool:
        """Whether a prepared entry is to be confirmed: the watchdog was armed before."""
        if entry.confirm is None or entry.boot_id != self.boot_id:
            return False
        left = self.left(entry)
        return entry.process.is_alive() is not False or (left is not None and left > 0)

    def left(self, entry: Entry) -> float | None:
        """Return how many seconds are left to confirm an entry; None if it need not be."""
        if entry.deadline is None or entry.status not in {entries.PREPARED, entries.UNCONFIRMED}:
            return None
        if entry.boot_id != self.boot_id:
            return 0.0
        return max(0.0, entry.deadline - self._since_boot())

    def as_settled(self, entry: Entry, *, unseen_are_gone: bool = False) -> Entry:
        """Return an entry as it should be marked if its process could not do that any more.

        ``unseen_are_gone``: also a process in another pid namespace, which cannot be seen.
        """
        earlier = entry.boot_id != self.boot_id
        if entry.status == entries.UNCONFIRMED and earlier:
            return entry.with_(entries.ROLLED_BACK, {"reason": RESTARTED})
        if entry.status != entries.PREPARED or self._is_under_way(entry):
            return entry
        alive = entry.process.is_alive()
        if earlier or alive is False or (alive is None and unseen_are_gone):
            return entry.with_(entries.INTERRUPTED, {})
        return entry

    def settle(self) -> list[Entry]:
        """Mark what other processes could not: those killed, and those of an earlier boot.

        Returns the entries that were marked. An entry that is to be confirmed stays what it is
        until its deadline, whoever was killed: its watchdog undoes it.
        """
        settled = []
        with self.locked():
            for entry in self.entries():
                # who prepared it held the lock that we hold now
                marked = self.as_settled(entry, unseen_are_gone=True)
                if marked is not entry:
                    settled.append(self.mark(entry.number, marked.status, reason=marked.reason))
        return settled

    def prune(self, keep: int = KEEP, size: int = KEEP_BYTES) -> list[int]:
        """Remove the oldest entries beyond a number, or beyond bytes; return their numbers.

        The latest stays in any case, and one that is to be confirmed. Repairs go first: a program
        that fights with ``nfctl watch`` must not take from people what they could go back to.
        """
        removed = []
        with self.locked():
            numbers = sorted(self._numbers(), reverse=True)
            pending = self.pending() if len(numbers) > 1 else None
            sizes = {number: _size(self._history / str(number)) for number in numbers}
            if len(numbers) > keep or sum(sizes.values()) > size:
                repairs = {one.number for one in self.entries() if one.action == "repair"}
                last = set([n for n in numbers if n in repairs][KEEP_REPAIRS:])
                numbers.sort(key=lambda number: (number not in last, number), reverse=True)
            taken = 0
            for position, number in enumerate(numbers):
                taken += sizes[number]
                stays = position == 0 or (pending is not None and number == pending.number)
                if stays or (position < keep and taken <= size):
                    continue
                with contextlib.suppress(OSError):
                    durable.remove(self._history / str(number))
                    removed.append(number)
        return removed

    # --- records ------------------------------------------------------------------------------

    def record(self, name: str, *, confirmed: bool = False) -> Record | None:
        """Return what a policy owns, or owned when it was confirmed last; Damaged if unreadable."""
        directory = self._policies / records.check_name(name)
        if not self._there():
            return None
        with durable.explained(self.directory):
            return records.read(directory, records.CONFIRMED if confirmed else records.CURRENT)

    def policies(self) -> list[str]:
        """Return the names of the policies that have a record, readable or not.

        What has a name that no policy can have was put there by another hand, and is passed over.
        """
        if not self._there():
            return []
        with durable.explained(self.directory):
            return sorted(name for name in listed(self._policies) if records.is_name(name))

    def records(self, *, confirmed: bool = False, but_damaged: str = "") -> list[Record]:
        """Return the records of all policies, sorted by name.

        That of the policy ``but_damaged`` is left out if it cannot be read.
        """
        found = []
        for name in self.policies():
            try:
                record = self.record(name, confirmed=confirmed)
            except Damaged:
                if name != but_damaged:
                    raise
            else:
                found += [record] if record is not None else []
        return found

    def prepare_record(self, record: Record) -> None:
        """Write what is long of a record, before anything is changed: put_record is short then."""
        with self.locked(), durable.explained(self.directory, UNTOUCHED):
            records.prepare(self._policies / records.check_name(record.name), record)

    def put_record(self, record: Record, *, confirmed: bool) -> None:
        """Replace the record of a policy; that of the last confirmed one, too, if it is."""
        files = [records.CURRENT, *([records.CONFIRMED] if confirmed else [])]
        # one that is not confirmed yet is written before the change is made
        with self.locked(), durable.explained(self.directory, "" if confirmed else UNTOUCHED):
            records.write(self._policies / records.check_name(record.name), record, files)

    def confirm_record(self, name: str) -> None:
        """Make the record of a policy the confirmed one."""
        with self.locked(), durable.explained(self.directory):
            records.confirm(self._policies / records.check_name(name))

    def drop_record(self, name: str) -> None:
        """Forget a policy."""
        directory = self._policies / records.check_name(name)
        with self.locked(), durable.explained(self.directory):
            if directory.exists():
                durable.remove(directory)

    # --- settings -----------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What was set (see ``nfctl persist``)."""
        if not self._there():
            return {}
        try:
            with durable.explained(self.directory):
                found = json.loads(self._settings.read_bytes()) if self._settings.exists() else {}
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            msg = f"{self._settings} was changed by another hand"
            raise Damaged(msg, hint="remove the file: nfctl persist writes it anew")
        return found

    def set_setting(self, name: str, value: Any) -> None:
        """Set one setting, for good."""
        with self.locked():
            found = self.settings | {name: value}
            with durable.explained(self.directory):
                durable.write(self._settings, json.dumps(found, indent=1).encode() + b"\n")


def _size(directory: Path) -> int:
    """Return the bytes in a directory; of what has several names, a part."""
    total = 0
    for path, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(path, name))  # noqa: PTH118 - quick
                total += status.st_size // max(1, status.st_nlink)
    return total
