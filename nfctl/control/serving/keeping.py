"""The host as a watch over services sees it: the record, the chains in the kernel, and an apply."""

from __future__ import annotations

import json
import os
import shlex
import stat
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control import known
from nfctl.control.apply import Options
from nfctl.control.change import ADD, DELETE
from nfctl.control.journal.records import Damaged
from nfctl.control.serving import changing, stale
from nfctl.control.serving.desired import policy_name
from nfctl.control.watching import drift
from nfctl.errors import AnswerNo, BadInput, Locked
from nfctl.kernel.blob import Blob
from nfctl.kernel.lock import DEFAULT_WAIT
from nfctl.kernel.table import active_tables
from nfctl.services import reading
from nfctl.services.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.control.journal.state import State
    from nfctl.control.serving.gone import Ended
    from nfctl.control.watching.drift import Drift, Place
    from nfctl.services.difference import Difference
    from nfctl.services.model import ServiceList

_TABLES = ("nat", "filter", "mangle")


class Read(NamedTuple):
    """A list of a file, the file's name and digest, and its stamp from before it was read."""

    listed: ServiceList
    files: Sequence[tuple[str, str]] = ()
    stamp: object = None


class ListFile:
    """A file with a list; its prefix is another one where that is asked for."""

    def __init__(self, file: str, prefix: str | None = None) -> None:
        self._file, self._prefix = file, prefix

    def stamp(self) -> object:
        """Return something that differs when the file does; None if it is not to be seen."""
        found = self._stat()
        if found is None:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def read(self) -> Read:
        """Read it; BadInput with the place of what is wrong."""
        found, stamp = self._stat(), self.stamp()
        if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            # whoever opens a FIFO waits for its writer, and what came by a pipe is gone
            msg = f"{self._file} is not a file that can be read again"
            raise BadInput(msg, hint="nfctl service watch needs a regular file")
        listed, files = reading.load(self._file)
        if self._prefix is not None:
            listed = listed._replace(prefix=changing.full_prefix(self._prefix))
        return Read(listed, files, stamp)

    def _stat(self) -> os.stat_result | None:
        try:
            return os.stat(self._file)  # noqa: PTH116 - a path as typed
        except (OSError, ValueError):
            return None


class Applied(NamedTuple):
    """What an apply came to: ``rules`` are added and deleted ones, ``ended`` flows."""

    changed: bool
    difference: Difference
    entry: int | None = None
    rules: tuple[int, int] = (0, 0)
    ended: int = 0
    notes: Sequence[str] = ()


class Host:
    """This network namespace. ``wait`` is for the locks, in seconds: up to 10 of them.

    Whoever watches tries again, and is to hear a signal before long.
    """

    def __init__(
        self, prefix: str, state: State, *, wait: float, adopt: bool = False, end_tcp: bool = False
    ) -> None:
        self._prefix, self._state = prefix, state
        self._wait = min(wait, DEFAULT_WAIT)
        self._adopt, self._end_tcp = adopt, end_tcp
        self._text = ""  # of the record's list, when it was read last
        self._list: ServiceList | None = None
        self._agreed: object = None  # the record and the tables, when they agreed last

    def recorded(self) -> ServiceList | None:
        """Return the list that was applied last, by whom it may be; None if there is none.

        Damaged where it cannot be read.
        """
        record = self._state.record(policy_name(self._prefix))
        if record is None or not record.services:
            return None
        if self._list is None or record.services != self._text:
            try:
                self._list = reading.recorded(json.loads(record.services))
            except reading.UNUSUAL:
                msg = "the record of the services was written by another version of nfctl"
                raise Damaged(msg, hint="it is written anew by the next apply") from None
            self._text = record.services
        return self._list

    def apply(
        self,
        make: Callable[[ServiceList | None], ServiceList],
        files: Sequence[tuple[str, str]],
        *,
        repair: bool,
    ) -> Applied:
        """Make the kernel hold the list that ``make`` makes of the recorded one, under the lock.

        It raises what :func:`nfctl.control.serving.changing.apply` raises. A ``repair`` goes from
        the journal before other entries do.
        """
        self._agreed = None
        options = Options(action="repair" if repair else "apply", wait=self._wait)
        try:
            done = changing.keep(
                self._prefix,
                make,
                state=self._state,
                options=options,
                files=files,
                adopt=self._adopt,
                end_tcp=self._end_tcp,
            )
        except AnswerNo as error:  # the operator would be cut off
            raise AnswerNo(error.message, hint=self._by_force(files)) from None
        except Locked as error:
            raise Locked(error.message) from None  # no need to ask for a longer wait
        change, entry = done.change, done.outcome.entry
        notes = [*done.notes, *change.notes]
        notes += [done.ended.problem] if done.ended.problem else []
        return Applied(
            done.status != "unchanged",
            done.difference,
            entry.number if entry is not None else None,
            (change.count(ADD), change.count(DELETE)),
            done.ended.number,
            notes,
        )

    def _by_force(self, files: Sequence[tuple[str, str]]) -> str:
        file = shlex.quote(files[0][0]) if files else "FILE"
        more = f" --prefix {self._prefix}" if self._prefix != PREFIX else ""
        return f"nothing was changed; nfctl service apply {file} --force{more} does it all the same"

    def end_stale(self, held: ServiceList) -> Ended:
        """End UDP flows to services of the list that nobody ended."""
        return stale.end_stale(held)

    def drifts(self, held: ServiceList) -> dict[Place, Drift]:
        """Return where the kernel's chains are not those of the list that is recorded.

        At little cost while the tables are as they were at the last time.
        """
        record = self._state.record(policy_name(self._prefix))
        seen = (
            known.about(self._state, policy_name(self._prefix)),
            record.digest if record is not None else "",
            {
                (family, table): Blob(family, table).digest()
                for family in (4, 6)
                for table in active_tables(family)
                if table in _TABLES
            },
        )
        if seen == self._agreed:
            return {}
        found = drift.find(changing.plan(held, state=self._state, adopt=self._adopt).change)
        self._agreed = None if found else seen
        return found
