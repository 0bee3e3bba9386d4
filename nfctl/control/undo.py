"""Undoing changes: what they deleted comes back, what they added goes, what came since stays.

Of each chain that an entry of the journal changed there are three versions: as it was before, as
the change left it, and as it is now. What differs between the last two others did since, and that
is kept (:func:`nfctl.control.merging.undone`). Several entries are undone one after the other in
memory, the latest first, and the result is written in one go, as apply does it: under the same
locks, all tables or none, with an entry of its own. Rules that come back have the counters they
had when they went.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nfctl.control.apply import APPLIED, UNCHANGED, Outcome, counts, write
from nfctl.control.goal import Coder
from nfctl.control.journal import entries
from nfctl.control.journal.records import Damaged
from nfctl.control.journal.state import State
from nfctl.control.merging import undone
from nfctl.control.planner import FAMILIES, FamilySide, Plans
from nfctl.control.planning import TablePlan
from nfctl.control.sets import Sets, of_saved
from nfctl.control.snapshot import Snapshot
from nfctl.control.transaction import undisturbed
from nfctl.errors import AnswerNo, BadInput, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import lock
from nfctl.policy.wanted import WantedChain, WantedRule, WantedTable
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from nfctl.control.change import Change
    from nfctl.control.goal import ChainGoal
    from nfctl.control.journal.entries import Entry
    from nfctl.control.live import Live

_UNDOABLE = {
    entries.APPLIED,
    entries.UNCONFIRMED,
    entries.CONFIRMED,
    entries.PREPARED,
    entries.INTERRUPTED,
}

# a rule with its quotes closed; in them a backslash protects what follows
_CLOSED = re.compile(r'[^"]*(?:"(?:[^"\\]|\\.)*"[^"]*)*', re.DOTALL)

Key = tuple[int, str, str]  # family, table, chain


def rollback(
    state: State | None = None,
    number: int | None = None,
    *,
    wait: float = lock.DEFAULT_WAIT,
    why: str = "rollback",
) -> Outcome:
    """Undo the journal's entries from the latest down to ``number`` (None: the latest apply).

    An entry that was undone already, and the rollback that did it, are passed over. ``why``
    becomes the reason in the undone entries. Raises AnswerNo (exit 1) where there is nothing to
    undo, BadInput where there is no such entry, and what applying raises.
    """
    state = state or State()
    with state.locked(wait):
        state.settle()
        chosen = choose(state.entries(), number)
        names = sorted({entry.policy for entry in chosen})
        before = [_list(state, name) for name in names]
        with lock.held(wait):
            outcome = _Undo(state, chosen, why).run()
        state.prune()
        after = [_list(state, name) for name in names]
    for pair in zip(before, after, strict=True):
        if pair != ("", ""):
            from nfctl.control.serving import gone

            outcome.change.notes += gone.end_between(*pair)
    return outcome


def _list(state: State, name: str) -> str:
    """Return the list of services that a policy was made from, as recorded; "" if from none."""
    with contextlib.suppress(NfctlError):
        record = state.record(name)
        return record.services if record is not None else ""
    return ""


def _latest(known: Sequence[Entry]) -> int:
    """Return the number of the latest apply that can be undone, or else of the latest entry."""
    for entry in reversed(known):
        if entry.action == "apply" and entry.status in _UNDOABLE and entry.undone_by is None:
            return entry.number
    return known[-1].number if known else 0


def choose(known: Sequence[Entry], number: int | None) -> list[Entry]:
    """Return the entries to undo, the latest first; Damaged where one of them cannot be read."""
    for entry in known:
        if entry.status == entries.DAMAGED and entry.number >= (number or _latest(known)):
            msg = f"entry {entry.number} cannot be undone: {entry.warning}"
            hint = f"nfctl rollback {entry.number + 1} undoes what came after it"
            if entry is known[-1]:
                hint = "apply the policy that is to hold"
            raise Damaged(msg, hint=hint)
    undoable = [entry for entry in known if entry.status in _UNDOABLE and entry.undone_by is None]
    if number is None:
        # a repair only did again what an apply had done: it goes with that one
        applied = [entry for entry in undoable if entry.action == "apply"][-1:]
        found = [
            entry
            for entry in undoable
            for latest in applied
            if entry.number >= latest.number
            and entry.action != "rollback"
            and entry.policy == latest.policy
        ]
    else:
        if number not in {entry.number for entry in known}:
            msg = f"the journal has no entry {number}"
            raise BadInput(msg, hint="nfctl history lists them")
        found = [entry for entry in undoable if entry.number >= number]
        # a rollback of what is undone here anyway undoes nothing more
        found = [entry for entry in found if not _is_within(entry, number)]
        found = _with_redone(found, known, number)
    if not found:
        which = f"entry {number} and what came after it" if number is not None else "the journal"
        msg = f"there is nothing to undo in {which}"
        raise AnswerNo(msg, hint="nfctl history shows what was done and undone")
    return found[::-1]


def _with_redone(found: Sequence[Entry], known: Sequence[Entry], number: int) -> list[Entry]:
    """Add what holds again once a rollback is undone, and is to be undone as well."""
    by_number = {entry.number: entry for entry in known}
    chosen = {entry.number: entry for entry in found}
    waiting = [entry for entry in found if entry.action == "rollback"]
    while waiting:
        rollback_ = waiting.pop()
        for each in rollback_.undoes:
            entry = by_number.get(each)
            if number <= each < rollback_.number and each not in chosen and entry is not None:
                chosen[each] = entry
                if entry.action == "rollback":
                    waiting.append(entry)
    return [chosen[each] for each in sorted(chosen)]


def _is_within(entry: Entry, number: int) -> bool:
    return entry.action == "rollback" and all(each >= number for each in entry.undoes)


@dataclass
class _Chain:
    """A chain in memory: its policy and the text of its rules; None where there is no chain."""

    rules: list[str] | None
    policy: str | None
    counters: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    policy_counters: tuple[int, int] = (0, 0)


class _Undo:
    """One rollback, under the locks."""

    def __init__(self, state: State, chosen: list[Entry], why: str) -> None:
        self.state = state
        self.chosen = chosen
        self.why = why
        self._sides = {family: FamilySide(family) for family in FAMILIES}
        self._chains: dict[Key, _Chain] = {}
        self._spare = contextlib.ExitStack()  # room on the disk for what is noted at the end

    def run(self) -> Outcome:
        with Snapshot(self._sides, self.state) as snapshot:
            for entry in self.chosen:
                self._undo(entry)
            sets = self._sets()
            plans = self._plans(sets)
            change = plans.change(self.chosen[0].policy)
            change.sets = list(sets.changes)
            if not change.changes:
                self._settle(None)
                return Outcome(change, UNCHANGED)
            if sets.obstacle is not None and _waiting(plans):
                raise sets.obstacle
            new = self._begin(change, snapshot.texts(plans), sets)
        with undisturbed():  # a Ctrl-C must not be taken for a failure: it comes after
            return self._write(plans, sets, new, change)

    def _write(self, plans: Plans, sets: Sets, new: Entry | None, change: Change) -> Outcome:
        late = sets.obstacle is not None
        try:
            with self._spare:  # given back in any case: a failure is noted, too
                write(plans, Sets(()) if late else sets)
        except BaseException as error:
            if new is not None:
                self.state.mark(new.number, entries.FAILED, reason=str(error))
            raise
        if late:
            sets = self._afterwards(change)
        left = sets.finish()
        change.notes += [f"set {each.name} stays: {each.note}" for each in left]
        if new is None:
            with contextlib.suppress(NfctlError):
                self._settle(None)
            return Outcome(change, APPLIED)
        new = self.state.mark(new.number, entries.APPLIED)
        self._settle(new)
        return Outcome(change, APPLIED, new)

    def _afterwards(self, change: Change) -> Sets:
        """Change sets that could not be replaced before the rules that used them were gone.

        The tables are put back by now, and do not need them: what fails is only told.
        """
        try:
            sets = self._sets()
            sets.prepare()
        except NfctlError as error:
            change.notes.append(f"the sets stay as they are: {error.message}")
            return Sets(())
        return sets

    # --- in memory ----------------------------------------------------------------------------

    def _undo(self, entry: Entry) -> None:
        texts = {family: entry.before_text(family) for family in FAMILIES}
        try:
            before = {family: Before(text) for family, text in texts.items()}
            for table in entry.change["tables"]:
                family, name = table["family"], table["table"]
                for chain in table["chains"]:
                    self._undo_chain((family, name, chain["name"]), chain, before[family])
        except (LookupError, TypeError, ValueError) as error:
            msg = f"the change of entry {entry.number} makes no sense: {error!r}"
            hint = f"its tables from before can be put back by hand: {entry.path}"
            raise Damaged(msg, hint=hint) from None

    def _undo_chain(self, key: Key, change: dict[str, Any], texts: Before) -> None:
        if not (change["created"] or change["deleted"] or change["policy"] or change["lines"]):
            return
        now = self._now(key)
        old = texts.rules(key[1], key[2])
        before = [spec for spec, _ in old]
        after = [] if change["deleted"] else after_of(before, change)
        for spec, counters in old:
            now.counters.setdefault(spec, []).append(counters)
        policy = change["policy"]
        if policy and now.policy == policy["after"]:
            now.policy = policy["before"]
            now.policy_counters = texts.policy_counters(key[1], key[2])
        rules = undone(now.rules or [], before, after)
        now.rules = rules if rules or not change["created"] else None

    def _now(self, key: Key) -> _Chain:
        family, table, chain = key
        if key not in self._chains:
            live = self._sides[family].live(table)
            there = live.chains.get(chain)
            rules = list(live.specs(chain)) if there is not None else None
            self._chains[key] = _Chain(rules, there.policy if there is not None else None)
        return self._chains[key]

    def _sets(self) -> Sets:
        """Return the sets as they were before the earliest of the entries."""
        text: dict[str, list[str]] = {}
        gone: set[str] = set()
        for entry in self.chosen:
            for change in entry.change.get("sets", ()):
                if change["action"] == "create":
                    gone.add(change["name"])
                    text.pop(change["name"], None)
            for line in filter(None, entry.sets.split("\n")):
                command, _, rest = line.partition(" ")
                name = rest.partition(" ")[0]
                if command == "create":
                    text[name] = []
                    gone.discard(name)
                text.setdefault(name, []).append(line)
        return of_saved("\n".join(line for lines in text.values() for line in lines), gone)

    # --- to the kernel --------------------------------------------------------------------------

    def _plans(self, sets: Sets) -> Plans:
        plans = Plans(self._sides)
        tables: dict[tuple[int, str], dict[str, _Chain]] = {}
        for (family, table, name), chain in self._chains.items():
            tables.setdefault((family, table), {})[name] = chain
        for family, side in self._sides.items():
            coder = Coder(family, side.encoder, sets.missing, sets.wanted)
            plans.coders[family] = coder
            goals: dict[str, dict[str, ChainGoal]] = {}
            removals: dict[str, list[str]] = {}
            for (of, table), chains in tables.items():
                if of == family:
                    live = side.live(table)
                    goals[table], removals[table] = self._goals(live, coder, chains)
            flat = {(table, c): goal for table, of in goals.items() for c, goal in of.items()}
            coder.resolve_pending(flat)
            for table, found in goals.items():
                live = side.live(table)
                plan = TablePlan.make(live, found, removals[table], lambda _chain, _index: "")
                plans.tables.append(plan)
        return plans

    def _goals(
        self, live: Live, coder: Coder, chains: dict[str, _Chain]
    ) -> tuple[dict[str, ChainGoal], list[str]]:
        removed = [name for name, chain in chains.items() if chain.rules is None]
        wanted = WantedTable()
        for name, chain in chains.items():
            if chain.rules is not None:
                rules = [WantedRule(spec, f"{live.table} {name}") for spec in chain.rules]
                wanted.chains[name] = WantedChain(rules, chain.policy)
        names = {*live.user_chains, *chains} - set(removed) - set(BUILTIN_CHAINS[live.table])
        goals = coder.table(live.table, wanted, names)
        for name, goal in goals.items():
            goal.policy_counters = chains[name].policy_counters
            known = {spec: list(found) for spec, found in chains[name].counters.items()}
            for index, rule in enumerate(goal.origins):
                if known.get(rule.spec):
                    goal.counters[index] = known[rule.spec].pop(0)
        return goals, removed

    # --- the journal ----------------------------------------------------------------------------

    def _begin(self, change: Change, before: dict[int, str], sets: Sets) -> Entry | None:
        """Write the rollback's own entry; None where the disk takes none.

        A firewall that has to be put back is put back all the same.
        """
        from nfctl.control import show
        from nfctl.control.sets import saved

        document = show.document(change)
        try:
            self.state.ready(2 * sum(map(len, before.values())))
            self._spare.enter_context(self.state.spare())
            return self.state.begin(
                policy=self.chosen[0].policy,
                action="rollback",
                change=document,
                before=before,
                sets=saved(sets.touched),
                undoes=[entry.number for entry in self.chosen],
                summary=counts(document),
            )
        except (NotPermitted, Unsupported) as error:
            self._spare.close()
            change.notes.append(f"the journal has no entry of this: {error.message}")
            return None

    def _settle(self, new: Entry | None) -> None:
        """Mark the undone entries; the policies' records are what they were before them."""
        state = self.state
        number = new.number if new is not None else None
        for entry in self.chosen:
            state.mark(entry.number, entries.ROLLED_BACK, undone_by=number, reason=self.why)
            self._revive(entry, {each.number for each in self.chosen})
            self._put_record(entry)

    def _revive(self, entry: Entry, gone: Collection[int]) -> None:
        """Mark what a rollback undid that is undone itself: that holds again, but for ``gone``."""
        for number in entry.undoes:
            if number in gone or number >= entry.number:
                continue
            with contextlib.suppress(BadInput, Damaged):  # pruned, or damaged
                again = self.state.mark(number, entries.APPLIED, undone_by=None, reason="")
                for undone_again in again.undoes if again.action == "rollback" else ():
                    if undone_again not in gone and undone_again < number:
                        self._bury(undone_again, number, gone)

    def _bury(self, number: int, by: int, gone: Collection[int]) -> None:
        """Mark what a rollback that holds again undoes."""
        with contextlib.suppress(BadInput, Damaged):
            entry = self.state.mark(number, entries.ROLLED_BACK, undone_by=by, reason=self.why)
            self._revive(entry, gone)

    def _put_record(self, entry: Entry) -> None:
        state = self.state
        names = {entry.policy}
        for number in entry.undoes:
            with contextlib.suppress(NfctlError):  # pruned, or damaged
                names.add(state.entry(number).policy)
        for name in sorted(names):
            with contextlib.suppress(Damaged):
                record = entry.record_before(name)
                if record is not None:
                    state.put_record(record, confirmed=True)
                else:
                    state.drop_record(name)


def _waiting(plans: Plans) -> bool:
    """Whether rules come back that name sets which are yet to be made."""
    return any(chain.goal.pending for plan in plans.tables for chain in plan.chains.values())


class Before:
    """The rules of an entry's text from before, with their counters.

    It is what we printed, by lines: ``script.parse`` gives words where a text is out of the
    ordinary, and the kernel's rules are compared by their text here.
    """

    def __init__(self, text: str) -> None:
        self._rules: dict[tuple[str, str], list[tuple[str, tuple[int, int]]]] = {}
        self._policies: dict[tuple[str, str], tuple[int, int]] = {}
        table = ""
        for line in _lines(text):
            if line[:1] == "[":
                counters, _, rule = line[1:].partition("] -A ")
                chain, _, spec = rule.partition(" ")
                self._rules.setdefault((table, chain), []).append((spec, _pair(counters)))
            elif line[:1] == ":":
                chain, _, counters = line[1:].split(" ")
                self._policies[table, chain] = _pair(counters[1:-1])
            elif line[:1] == "*":
                table = line[1:]

    def rules(self, table: str, chain: str) -> list[tuple[str, tuple[int, int]]]:
        """Return (text, counters) of a chain's rules."""
        return self._rules.get((table, chain), [])

    def policy_counters(self, table: str, chain: str) -> tuple[int, int]:
        """Return (packets, bytes) of a built-in chain's policy."""
        return self._policies.get((table, chain), (0, 0))


def _lines(text: str) -> Iterator[str]:
    """Yield lines; a rule with a line end in its comment is one."""
    begun = ""
    for piece in text.split("\n"):
        line, begun = f"{begun}\n{piece}" if begun else piece, ""
        spec = line.partition("] -A ")[2].partition(" ")[2] if line[:1] == "[" else ""
        if '"' in spec and _CLOSED.fullmatch(spec) is None:
            begun = line
        else:
            yield line


def _pair(counters: str) -> tuple[int, int]:
    packets, _, octets = counters.partition(":")
    return int(packets), int(octets)


def after_of(before: list[str], change: dict[str, Any]) -> list[str]:
    """Return a chain's rules as the change left them, from its runs and the lines it added."""
    added = iter([line["rule"] for line in change["lines"] if line["op"] == "add"])
    after: list[str] = []
    for kind, live, _, length in change["runs"]:
        if kind in {"same", "kept"}:
            after += before[live : live + length]
        elif kind == "add":
            after += [next(added) for _ in range(length)]
    return after
