"""Applying a policy: the one way by which rules of a file reach the kernel.

Under the lock of the journal, and then the xtables lock:

1. Read the tables, encode the policy, compare: the plan. Nothing to do ends here, nothing written.
2. Refuse what must not be: a saved plan of other tables (exit 4), a change that locks the operator
   out (``guard``, exit 1).
3. Write the journal's entry with what was before, fsynced, and the policy's record; arm the
   watchdog, if the change is to be confirmed.
4. Create and swap the ipsets; make the edits in libiptc's memory; commit the tables that differ,
   each read back and compared. If one fails, all is put back (exit 5).
5. Destroy what sets nobody wants any more; mark the entry.
6. With the locks released, delete the flows that are decided differently now (``flush``).

A process killed at any moment leaves whole tables and a journal that says how far it came; the
same apply, done again, goes on from there.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nfctl.control import known
from nfctl.control.committing import Writing
from nfctl.control.goal import explained
from nfctl.control.journal import entries
from nfctl.control.journal.records import Damaged, Record
from nfctl.control.journal.state import State
from nfctl.control.planner import FAMILIES, FamilySide, Planner, Plans
from nfctl.control.sets import Sets
from nfctl.control.snapshot import Snapshot
from nfctl.control.transaction import undisturbed
from nfctl.errors import AnswerNo, Changed, HalfApplied, NfctlError
from nfctl.kernel import lock
from nfctl.kernel.blob import Blob
from nfctl.kernel.process import since_boot
from nfctl.kernel.table import active_tables
from nfctl.policy.wanted import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nfctl.control.change import Change
    from nfctl.control.confirmation.watchdog import Armed
    from nfctl.control.flush import Flushed
    from nfctl.control.guard import Answer, Flow
    from nfctl.control.journal.entries import Entry
    from nfctl.control.savedplan import SavedPlan

UNCHANGED, APPLIED, UNCONFIRMED = "unchanged", entries.APPLIED, entries.UNCONFIRMED


@dataclass(slots=True)
class Options:
    """How to apply.

    ``confirm`` is in seconds, None for no confirmation. ``guard`` are flows as typed
    (:mod:`nfctl.control.guard`), ``guard_ssh`` whether the operator's own connection is looked
    after; ``force`` applies whatever the guard says. ``wait`` is for the locks, in seconds.
    ``action`` is what the journal calls it: "apply" or "repair".
    """

    exclusive: bool = False
    confirm: float | None = None
    guard: tuple[str, ...] = ()
    guard_ssh: bool = True
    force: bool = False
    flush_flows: bool = False
    wait: float = lock.DEFAULT_WAIT
    resolve: bool = False
    saved: SavedPlan | None = None
    action: str = "apply"


@dataclass(slots=True)
class Outcome:
    """What became of it. ``deadline`` is of CLOCK_BOOTTIME, in seconds, to confirm until."""

    change: Change
    status: str
    entry: Entry | None = None
    guarded: list[Answer] = field(default_factory=list)
    flushed: Flushed | None = None
    deadline: float | None = None


def plan(
    wanted: Wanted,
    *,
    state: State | None = None,
    exclusive: bool = False,
    wait: float = lock.DEFAULT_WAIT,
    resolve: bool = False,
    digests: bool = False,
) -> Change:
    """Return what applying the policy would change; nothing is written.

    ``state`` is the journal, that of this network namespace if None. ``digests`` has the change
    hold a digest of each table as it is. Raises BadInput with the place in the policy,
    NotPermitted, Unsupported.
    """
    del wait  # one getsockopt a table needs no lock
    try:
        planner = _planner(wanted, state or State(), exclusive, resolve)
        return planner.change(planner.plan(), digests=digests)
    except NfctlError as error:
        raise explained(error, wanted) from None


class Repeated:
    """Plans the same policy time and again: at little cost while nothing changes.

    The tables are compared anew only if the kernel holds something else than at the last time,
    or anything else that decides is another (:func:`nfctl.control.known.about`).
    """

    def __init__(self, state: State, *, exclusive: bool = False, resolve: bool = False) -> None:
        self._state = state
        self._exclusive = exclusive
        self._resolve = resolve
        self._seen: tuple[Wanted, object] | None = None
        self._plans: Plans | None = None

    def __call__(self, wanted: Wanted) -> Change:
        """Return what applying the policy would change; raises as :func:`plan` does."""
        planner = _planner(wanted, self._state, self._exclusive, self._resolve)
        about = known.about(self._state, wanted.name)
        record = self._state.record(wanted.name)
        seen = (about, record.digest if record is not None else "", _looks(wanted))
        missing = planner.sets is not None and planner.sets.missing
        if (
            self._plans is None
            or missing
            or self._seen is None
            or self._seen[0] is not wanted
            or self._seen[1] != seen
        ):
            self._plans = planner.plan()
            self._seen = None if missing else (wanted, seen)
        return planner.change(self._plans)


def _looks(wanted: Wanted) -> dict[tuple[int, str], str]:
    """Return the digest of each table that a policy names, if it is in use."""
    return {
        (family, table): Blob(family, table).digest()
        for family, tables in wanted.tables.items()
        for table in active_tables(family)
        if table in tables
    }


def apply_files(
    v4: str | None, v6: str | None, *, state: State, options: Options | None = None
) -> Outcome:
    """Apply iptables-save files of one or both families; see :func:`apply`.

    What little differs from the files that were applied last goes the quick way
    (:mod:`nfctl.control.known`).
    """
    options = options or Options()
    files = {family: file for family, file in ((4, v4), (6, v6)) if file is not None}
    if not options.resolve and options.saved is None:
        planner = None
        with contextlib.suppress(known.NotQuick, NfctlError, OSError):
            planner = known.QuickPlanner(files, state, exclusive=options.exclusive)
        if planner is not None:
            with contextlib.suppress(known.NotQuick):  # raised before anything is written
                return under_locks(Work(lambda: planner.wanted, state, options, planner))
    from nfctl.policy import saved

    return under_locks(Work(lambda: saved.read(v4, v6), state, options))


def apply(wanted: Wanted, *, state: State | None = None, options: Options | None = None) -> Outcome:
    """Make the kernel hold what the policy wants.

    Raises what :func:`plan` raises; Locked where a lock is not to be had; Changed (exit 4) where
    an apply waits for its confirmation, or a table is another than the saved plan says; AnswerNo
    where the guard refuses; Unsupported where the journal cannot be written. Nothing was changed
    then. RolledBack (exit 5) if a part failed and all was put back.
    """
    return under_locks(Work(lambda: wanted, state or State(), options or Options()))


def under_locks(work: Work) -> Outcome:
    """Do it; see :func:`apply`."""
    state = work.state
    with state.locked(work.options.wait):
        state.settle()
        refuse_pending(state)
        with lock.held(work.options.wait):
            try:
                work.run()
            except NfctlError as error:
                raise explained(error, work.wanted) from None
        state.prune()
    if work.options.flush_flows and work.texts is not None:
        from nfctl.control import flush

        work.outcome.flushed = flush.flush(
            *work.texts, work.wanted.sets, sets_before=work.sets_before
        )
    return work.outcome


def refuse_pending(state: State) -> None:
    """Raise Changed (exit 4) while a change waits for its confirmation."""
    pending = state.pending()
    if pending is not None:
        left = state.left(pending)
        until = f" within {left:.0f} s" if left else ""
        if pending.status == entries.PREPARED:  # nobody can confirm it
            msg = f"change {pending.number} was broken off, and will be undone{until}"
            raise Changed(msg, hint="nfctl rollback undoes it now")
        msg = f"change {pending.number} waits for its confirmation{until}"
        raise Changed(msg, hint="nfctl confirm keeps it, nfctl rollback undoes it")


def _planner(wanted: Wanted, state: State, exclusive: bool, resolve: bool) -> Planner:
    own, others = owned(state, wanted.name)
    if wanted.raw:  # a file of one family says nothing of the other
        own = [record.only(wanted.tables) for record in own]
    theirs = {each["name"] for record in others for each in record.sets}
    # a set that others fill is theirs, whoever made it
    mine = {each["name"] for record in own for each in record.sets if each["entries"] is not None}
    left = {name for record in own for name in record.left}
    sets = Sets(wanted.sets, mine - theirs, left - theirs)
    named = {each.name for each in wanted.sets}
    filled = {each["name"] for record in own for each in record.sets if each["entries"] is None}
    planner = Planner(
        wanted, own=own, others=others, exclusive=exclusive, resolve=resolve, sets=sets
    )
    planner.notes += [
        f"set {name} is no longer the policy's, and stays: others fill it"
        for name in sorted(filled - named - theirs)
    ]
    return planner


def owned(state: State, name: str) -> tuple[list[Record], list[Record]]:
    """Return the records of what a policy may own, and those of the other policies.

    Beside its record that is the one before, where an apply was interrupted: nobody knows how
    far that came. Its own record may be damaged: an apply writes it anew.
    """
    records = state.records(but_damaged=name)
    own = [record for record in records if record.name == name]
    known = {entry.number: entry for entry in state.entries()}
    for entry in reversed(known.values()):
        # a rollback that was interrupted leaves, in part, what was before the undone entries
        about = [entry, *(known[number] for number in entry.undoes if number in known)]
        if name not in {one.policy for one in about}:
            continue
        if entry.status not in {entries.INTERRUPTED, entries.FAILED, entries.PREPARED}:
            break
        for one in about:
            with contextlib.suppress(NfctlError):
                before = one.record_before(name)
                own += [before] if before is not None else []
    return own, [record for record in records if record.name != name]


def _flows(texts: Sequence[str]) -> list[Flow]:
    """Return the flows to guard; BadInput, before anything else is done, for what is none."""
    if not texts:
        return []
    from nfctl.control import guard

    return [guard.Flow.parse(text) for text in texts]


class Work:
    """One apply, under the locks."""

    def __init__(
        self,
        read: Callable[[], Wanted],
        state: State,
        options: Options,
        quick: known.QuickPlanner | Planner | None = None,
        kept: type[Snapshot] = Snapshot,
    ) -> None:
        self._flows = _flows(options.guard)
        self.wanted: Wanted = Wanted()
        self._read = read
        self._quick = quick
        self._kept = kept
        self.state = state
        self.options = options
        self.texts: tuple[dict[int, str], dict[int, str]] | None = None
        self.sets_before = ""
        self.outcome: Outcome
        self._armed: Armed | None = None

    def run(self) -> None:
        """Plan, refuse what must not be, and write."""
        options, state = self.options, self.state
        sides = {family: FamilySide(family, options.resolve) for family in FAMILIES}
        with self._kept(sides, state) as snapshot:
            self.wanted = self._read()
            planner: Planner | known.QuickPlanner = self._quick or _planner(
                self.wanted, state, options.exclusive, options.resolve
            )
            plans = planner.plan(sides)
            change = planner.change(plans)
            sets = planner.sets
            assert sets is not None  # noqa: S101 - the planners here have them
            if not change.changes:
                self._unchanged(change, plans, sets)
                return
            if options.saved is not None:
                _check_saved(plans, options.saved)
            if sets.obstacle is not None:
                raise sets.obstacle
            self.outcome = Outcome(change, options.action)
            self._change(plans, sets, snapshot)

    def _change(self, plans: Plans, sets: Sets, snapshot: Snapshot) -> None:
        options, state = self.options, self.state
        before = snapshot.texts(plans)
        self._guard(plans, before)
        if options.flush_flows:
            self.texts = (before, plans.texts_after())
        old: Record | Damaged | None
        try:
            old = state.record(self.wanted.name)
        except Damaged as damaged:  # it is written anew
            old = damaged
        record = Record.of(self.wanted, options.exclusive).beside(
            old if isinstance(old, Record) else None
        )
        record.left = sets.going
        state.ready(2 * sum(map(len, before.values())) + sum(map(len, record.text.values())))
        with state.spare(record.sets) as spare, contextlib.ExitStack() as calm:
            entry = self._begin(self.outcome.change, before, sets)
            self.outcome.entry = entry
            try:
                if options.confirm is not None:
                    from nfctl.control.confirmation import watchdog

                    self._armed = watchdog.arm(state, entry.number, options.confirm)
                # a Ctrl-C in the commit must not be taken for its failure: it comes after
                calm.enter_context(undisturbed())
                known.forget(state)
                state.put_record(record, confirmed=False)
                blobs = write(plans, sets)
            except BaseException as error:
                spare.release()
                self._failed(entry, old, error)
                raise
            spare.release()
            try:  # before it is marked: what is left by who is killed here is looked for later
                left = sets.finish()
                if record.left != sets.left:
                    record.left = sets.left
                    state.put_record(record, confirmed=False)
            finally:
                self._done(entry, record)
        self.outcome.change.notes += [f"set {each.name} stays: {each.note}" for each in left]
        snapshot.remember(state, plans, blobs)
        self._remember(plans, blobs)

    def _remember(self, plans: Plans, blobs: Mapping[tuple[int, str], Blob]) -> None:
        if self.wanted.services is not None:
            from nfctl.control.serving import quick as services

            record = self.state.record(self.wanted.name)
            if record is not None and record.services:
                services.remember(self.state, record, plans, blobs)
            return
        exclusive, quick = self.options.exclusive, self._quick is not None
        known.remember(self.state, self.wanted, plans, blobs, exclusive=exclusive, quick=quick)

    def _unchanged(self, change: Change, plans: Plans, sets: Sets) -> None:
        """Have the record say what the kernel holds already."""
        self.outcome = Outcome(change, UNCHANGED)
        sets.finish()  # what others that were killed have left
        record = Record.of(self.wanted, self.options.exclusive)
        record.left = sets.left
        old = confirmed = None
        with contextlib.suppress(NfctlError):
            old = self.state.record(record.name)
            record.beside(old)
            confirmed = self.state.record(record.name, confirmed=True)
        differs = (
            old is None
            or confirmed is None
            or not old.digest == confirmed.digest == record.digest
            or (old.files, old.left) != (record.files, record.left)
        )
        if differs:
            known.forget(self.state)
            self.state.put_record(record, confirmed=True)
        if differs or self._quick is None:
            self._remember(plans, {})

    def _begin(self, change: Change, before: dict[int, str], sets: Sets) -> Entry:
        from nfctl.control import show
        from nfctl.control.sets import saved

        document = show.document(change)
        self.sets_before = saved(sets.touched)
        return self.state.begin(
            policy=self.wanted.name,
            action=self.options.action,
            change=document,
            before=before,
            sets=self.sets_before,
            files=self.wanted.files,
            confirm=self.options.confirm,
            summary=counts(document),
        )

    def _guard(self, plans: Plans, before: dict[int, str]) -> None:
        options = self.options
        if not options.guard and not options.guard_ssh:
            return
        from nfctl.control import guard

        flows = list(self._flows)
        if options.guard_ssh:
            operator = guard.operator()
            flows += [operator] if operator is not None else []
            if operator is None and os.environ.get(guard.SSH):
                self.outcome.change.notes.append(
                    f"{guard.SSH} makes no sense, so your own connection was not guarded"
                )
        if not flows:
            return
        answers = guard.check(flows, before, plans.texts_after(), self.wanted.sets)
        self.outcome.guarded = answers
        refused = [answer for answer in answers if not answer.allowed]
        if refused and not options.force:
            first = refused[0]
            msg = f"this would cut off {first.flow}: {first.reason}"
            raise AnswerNo(msg, hint="nothing was changed; --force applies it all the same")

    def _failed(self, entry: Entry, old: Record | Damaged | None, error: BaseException) -> None:
        """Note that nothing came of it; what is half applied is left to the watchdog."""
        if isinstance(error, HalfApplied) and self._armed is not None:
            return
        with contextlib.suppress(NfctlError, OSError):
            if isinstance(old, Record):
                self.state.put_record(old, confirmed=False)
            elif old is None:
                self.state.drop_record(self.wanted.name)
        with contextlib.suppress(NfctlError, OSError):
            self.state.mark(entry.number, entries.FAILED, reason=str(error))
        if self._armed is not None:
            self._armed.disarm()

    def _done(self, entry: Entry, record: Record) -> None:
        state = self.state
        if self.options.confirm is None:
            state.put_record(record, confirmed=True)
            self.outcome.entry = state.mark(entry.number, APPLIED)
        else:
            # the time runs from now, not from when the watchdog was armed
            deadline = since_boot() + self.options.confirm
            self.outcome.entry = state.mark(entry.number, UNCONFIRMED, deadline=deadline)
            self.outcome.deadline = deadline
        self.outcome.status = self.outcome.entry.status


def counts(document: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of a change's summary, for the journal's list."""
    return {key: value for key, value in document["summary"].items() if isinstance(value, int)}


def write(plans: Plans, sets: Sets) -> dict[tuple[int, str], Blob]:
    """Swap the sets and write the tables; the sets go back if the tables fail.

    Returns the tables that were written, as they were read back, by family and name.
    """
    sets.prepare()
    try:
        plans.finish_pending()
        with Writing(plans) as writing:
            writing.make()
            writing.commit()
            return writing.blobs
    except BaseException as error:
        try:
            sets.revert()
        except NfctlError as left:
            if not isinstance(error, NfctlError):
                raise
            msg = f"{error.message}; AND {left.message}"
            raise HalfApplied(msg, hint=error.hint, where=error.where) from None
        raise


def _check_saved(plans: Plans, saved: SavedPlan) -> None:
    for plan_ in plans.tables:
        live = plan_.live
        digest = saved.digests.get((live.family, live.table))
        if digest is None and not plan_.changes:
            continue
        if digest != live.digest():  # also of a table that another apply has added to the policy
            msg = f"table {live.table} (IPv{live.family}) was changed since the plan was made"
            raise Changed(msg, hint="make the plan again: nfctl plan --out")
