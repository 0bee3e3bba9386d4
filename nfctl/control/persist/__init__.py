"""Restoring what was confirmed last, at boot, before the network comes up: ``persist restore``.

1. The records of all policies are read as they were confirmed last; each is verified by its
   digest. What was applied since and never confirmed is forgotten: the machine comes up without.
2. Under the locks, the ipsets are made and filled, the rules of all policies are planned into
   the tables as they are (what others put there before stays), and written: all of it or nothing.
3. What was written is read back and compared, and then planned once more: nothing may be left
   to do.
4. If any of that fails, everything is put back, and the machine fails closed or open, as it was
   configured: closed, the chains INPUT and FORWARD let nothing in (``persist.closed``); open, the
   tables stay as they were, which at boot is empty.

It writes no entry into the journal, asks no guard and waits for no confirmation: nothing changes
that an administrator has not confirmed. Host names in rules are never looked up, as there is no
network yet. Where the state cannot be written to (a read-only root) it is read all the same.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.apply import refuse_pending
from nfctl.control.committing import Writing
from nfctl.control.persist import closed as persist_closed
from nfctl.control.persist.order import Remembered, all_sets, merged
from nfctl.control.planner import FAMILIES, FamilySide, Planner
from nfctl.control.sets import Sets
from nfctl.control.transaction import Before
from nfctl.errors import NfctlError, NotPermitted, Unsupported
from nfctl.kernel import lock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.control.change import Change
    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.policy.wanted import Wanted

#: How it fails; the name of the setting; what holds where nothing was set.
CLOSED, OPEN = "closed", "open"
SETTING = "persist_fail"
DEFAULT = CLOSED
_LEFT = {
    CLOSED: "INPUT and FORWARD are closed until a restore succeeds",
    OPEN: "the tables were left as they were",
}


class Restored(NamedTuple):
    """What was restored: the policies, and what had to be changed for them.

    ``notes`` say what could not be done beside it, and endangers nothing.
    """

    records: list[Record]
    change: Change | None
    reopened: list[int]
    notes: list[str]


def fail_mode(state: State) -> str:
    """Return CLOSED or OPEN, as it was set; CLOSED where the settings cannot be read."""
    with contextlib.suppress(NfctlError):
        if state.settings.get(SETTING) == OPEN:
            return OPEN
    return DEFAULT


def restore_or_fail(
    state: State, mode: str, *, needed: bool = False, wait: float = lock.DEFAULT_WAIT
) -> Restored:
    """Restore; whatever goes wrong, leave the machine closed or open.

    ``needed``: that there is no state at all is a failure, too. Raises the error, whose message
    says how the machine was left. Nothing is closed for a change that waits for its confirmation
    (Changed): that one is in the kernel, and has its watchdog.
    """
    try:
        if needed and not state.directory.is_dir():
            msg = f"{state.directory} is not there: it is not known what was confirmed last"
            raise Unsupported(msg, hint="nfctl persist disable, if nothing is to be restored")
        return restore(state, wait=wait)
    except BaseException as error:
        if _is_waiting(state):
            raise
        if not isinstance(error, NfctlError):
            error = NfctlError(f"{type(error).__name__}: {error}")
        problems = persist_closed.close(wait) if mode == CLOSED else []
        if problems:
            msg = f"not restored: {error.message}; AND NOT CLOSED: {'; '.join(problems)}"
            raise Unsupported(msg, hint=error.hint) from None
        error.message = f"not restored: {error.message}; {_LEFT[mode]}"
        error.hint = error.hint or "nfctl persist status"
        raise error from None


def _is_waiting(state: State) -> bool:
    with contextlib.suppress(NfctlError):
        return state.pending() is not None
    return False


def restore(state: State, *, wait: float = lock.DEFAULT_WAIT) -> Restored:
    """Make the kernel hold what was confirmed last; all of it, or nothing is changed.

    Raises Damaged for a record that is not what nfctl wrote, BadInput for a rule that cannot be
    encoded any more, Changed where a change waits for its confirmation, and what applying raises.
    """
    notes: list[str] = []
    with _locked(state, wait, notes):
        refuse_pending(state)
        records = state.records(confirmed=True)
        current = _readable(state, [record.name for record in records])
        closed: list[int] = []
        change = None
        with lock.held(wait):
            closed = persist_closed.marked()
            if records:
                change = _write(state, records, _changed(current, records))
        if closed:
            # both were closed; an apply since may have taken the mark away in one
            persist_closed.reopen(FAMILIES, _policies(records), wait)
        try:
            _settle(state, records, current)
        except (NfctlError, OSError) as error:
            notes.append(f"the state could not be brought up to date: {error}")
    return Restored(records, change, closed, notes)


@contextlib.contextmanager
def _locked(state: State, wait: float, notes: list[str]) -> Iterator[None]:
    """Hold the lock of the state, unless it cannot be written to; mark what was left over."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(state.locked(wait))
            state.settle()
        except (Unsupported, NotPermitted) as error:
            notes.append(f"the journal cannot be written: {error.message}")
        yield


def _readable(state: State, confirmed: Sequence[str]) -> dict[str, Record | None]:
    """Return the current records of all policies; None for a damaged one that is confirmed, too."""
    found: dict[str, Record | None] = {}
    for name in state.policies():
        try:
            found[name] = state.record(name)
        except NfctlError:
            if name in confirmed:
                found[name] = None
    return found


def _changed(current: dict[str, Record | None], records: Sequence[Record]) -> list[Record]:
    """Return the current records that are others than the confirmed: their chains may be there."""
    digests = {record.name: record.digest for record in records}
    return [
        record
        for name, record in current.items()
        if record is not None and digests.get(name) != record.digest
    ]


def _policies(records: Sequence[Record]) -> set[tuple[int, str]]:
    """Return the chains of filter whose policies are set by somebody, with their families."""
    return {
        (family, name)
        for record in records
        for family, tables in record.wanted().tables.items()
        if "filter" in tables
        for name, chain in tables["filter"].chains.items()
        if chain.policy is not None
    }


def _settle(state: State, records: Sequence[Record], current: dict[str, Record | None]) -> None:
    """Have the records say what the kernel holds now."""
    for record in records:
        now = current.get(record.name)
        if now is None or now.digest != record.digest:
            state.put_record(record, confirmed=True)
    for name in current.keys() - {record.name for record in records}:
        state.drop_record(name)


# --- to the kernel ------------------------------------------------------------------------------


def _write(state: State, records: Sequence[Record], own: Sequence[Record]) -> Change:
    """Write the policies, sets first; on any error all is as it was before."""
    sets = Sets(all_sets(records))
    sets.prepare()
    try:
        remembered = Remembered(state)
        sides = {family: FamilySide(family) for family in FAMILIES}
        wanted = merged(records, sides, remembered)
        planner = _planner(wanted, records, own)
        plans = planner.plan(sides)
        change = planner.change(plans)
        change.sets = list(sets.changes)
        before = [Before.of(plan.live) for plan in plans.changed]
        with Writing(plans) as writing:
            writing.make()
            writing.commit()
        try:
            _verify(wanted, records)
        except BaseException as error:
            failures = [text for old in reversed(before) if (text := old.put_back())]
            if failures and isinstance(error, NfctlError):
                error.message += f"; AND NOT PUT BACK: {'; '.join(failures)}"
            raise
    except BaseException:
        sets.revert()
        raise
    sets.finish()
    return change


def _planner(
    wanted: Wanted, records: Sequence[Record], own: Sequence[Record], sets: Sets | None = None
) -> Planner:
    # with several policies, one's exclusive table may hold rules of another
    exclusive = all(record.exclusive for record in records)
    prefixes = {record.prefix for record in (*records, *own) if record.prefix}
    return Planner(wanted, own=own, exclusive=exclusive, sets=sets, prefixes=sorted(prefixes))


def _verify(wanted: Wanted, records: Sequence[Record]) -> None:
    """Read everything again and plan once more: there must be nothing to do."""
    from nfctl.control.watching import drift

    left = _left(wanted, records)
    if left.changes:
        places = "; ".join(str(one) for one in drift.find(left).values())
        msg = f"what was written is not what was confirmed: {places}"
        raise NfctlError(msg, hint="another program may have changed it meanwhile: try again")


def _left(wanted: Wanted, records: Sequence[Record]) -> Change:
    sets = Sets(all_sets(records))
    planner = _planner(wanted, records, (), sets)
    return planner.change(planner.plan())


def compare(state: State, records: Sequence[Record]) -> Change:
    """Return what a restore would change now, whatever was confirmed; nothing is written.

    Raises what :func:`restore` raises for rules that cannot be restored.
    """
    sides = {family: FamilySide(family) for family in FAMILIES}
    return _left(merged(records, sides, Remembered(state)), records)
