"""From what the kernel has and what is wanted to the edits of each table.

A :class:`TablePlan` holds the goal and the runs of every chain that is looked at. It shows itself
as a :class:`nfctl.control.change.TableChange`, writes itself into libiptc's memory, and knows
what the kernel has to hold afterwards, to be compared with what it does hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from nfctl.control.change import ADD, DELETE, KEPT, SAME, ChainChange, Line, Run, TableChange
from nfctl.control.goal import ChainGoal, is_stand_in
from nfctl.control.live import Live, parts_of
from nfctl.control.merging import Merge, merge, result
from nfctl.errors import BadInput
from nfctl.kernel import counter_maps
from nfctl.kernel.table import with_counters
from nfctl.ruleset import circles
from nfctl.ruleset.diff import Block
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nfctl.control.edit import TableEdit
    from nfctl.errors import Where
    from nfctl.kernel.blob import Blob

#: Rules that are shown around what changes.
CONTEXT = 3


@dataclass(slots=True)
class ChainPlan:
    """What becomes of a chain, by rules."""

    name: str
    goal: ChainGoal
    merge: Merge
    change: ChainChange

    @property
    def edits(self) -> bool:
        """Whether rules come or go."""
        return any(run.kind in {DELETE, ADD} for run in self.merge.runs)


@dataclass
class TablePlan:
    """What becomes of a table."""

    live: Live
    chains: dict[str, ChainPlan] = field(default_factory=dict)
    create: list[str] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """Whether anything happens to the table."""
        return any(plan.change.changes for plan in self.chains.values())

    # --- planning -----------------------------------------------------------------------------

    @classmethod
    def make(
        cls,
        live: Live,
        goals: dict[str, ChainGoal],
        remove: Sequence[str],
        owner: Callable[[str, int], str],
        *,
        known: bool = False,
    ) -> TablePlan:
        """Plan a table: ``goals`` by chain, and the user-defined chains that are to go.

        A chain that is to go and that a rule that stays still jumps to is emptied instead; one
        that holds rules of others keeps those. ``known``: the goals' jumps lead to no loop, and
        there is much that is not looked at.
        """
        plan = cls(live)
        for name, goal in goals.items():
            plan._chain(name, goal, owner)
        removed = [name for name in remove if name in live.chains and name not in goals]
        for name in removed:
            plan._chain(name, ChainGoal(), owner)
        plan._delete(removed, known)
        if not known:
            plan.check_loops()
        return plan

    def _chain(self, name: str, goal: ChainGoal, owner: Callable[[str, int], str]) -> None:
        live = self.live
        change = ChainChange(name, before=len(live.spans(name)))
        chain = live.chains.get(name)
        if chain is None:
            self.create.append(name)
            change.created = True
        elif goal.policy is not None and chain.policy != goal.policy:
            change.policy = (chain.policy or "", goal.policy)
        merged = self._merged(name, goal, owner)
        change.runs = merged.runs
        change.after = sum(run.length for run in merged.runs if run.kind != DELETE)
        self.chains[name] = ChainPlan(name, goal, merged, change)

    def _merged(self, name: str, goal: ChainGoal, owner: Callable[[str, int], str]) -> Merge:
        live, wanted = self.live, goal.entries
        unequal = live.same(name, wanted) if not goal.pending else None
        if unequal == []:
            return Merge([Run(SAME, 0, 0, len(wanted))] if wanted else [], {}, {})
        blocks = None
        if unequal is not None and len(unequal) == 1:  # a rule for another, the commonest change
            at, count = unequal[0], len(wanted)
            pairs = [Block(0, 0, at), Block(at + 1, at + 1, count - at - 1)]
            blocks = [block for block in pairs if block.length]
        return merge(
            live.canonical(name),
            wanted,
            lambda index: owner(name, index),
            blocks,
            front=goal.front,
        )

    def _delete(self, removed: list[str], known: bool) -> None:
        if not removed:
            return
        used = self._known_jumps(removed) if known else self._jumped_to()
        for name in removed:
            plan = self.chains[name]
            if plan.change.after:
                plan.change.note = "it holds rules of others, so it stays"
            elif name in used:
                plan.change.note = f"{used[name]} jumps to it, so it stays, empty"
            else:
                plan.change.deleted = True
                self.delete.append(name)

    def _known_jumps(self, removed: list[str]) -> dict[str, str]:
        """Return which chains other chains than those that are planned jump to."""
        blob = self.live.blob
        jumps = blob.jumps_to(removed) if blob is not None else []
        return {to: f"chain {chain}" for chain, to in jumps if chain not in self.chains}

    def _jumped_to(self) -> dict[str, str]:
        """Return the chains that rules which stay jump to, each with a chain that does."""
        used: dict[str, str] = {}
        live = self.live
        for chain in live.chains:
            jumps = live.jumps(chain)
            plan = self.chains.get(chain)
            if plan is None:
                used |= dict.fromkeys(filter(None, jumps), f"chain {chain}")
                continue
            for run in plan.merge.runs:
                if run.kind in {SAME, KEPT}:
                    here = jumps[run.live : run.live + run.length]
                    used |= dict.fromkeys(filter(None, here), f"a rule of chain {chain}")
        return used

    # --- loops ------------------------------------------------------------------------------

    def check_loops(self) -> None:
        """Raise BadInput if packets could go round in a circle: the kernel refuses that (ELOOP).

        It looks at what the built-in chains lead to, and so does this.
        """
        if not any(self._jumps_added(plan) for plan in self.chains.values()):
            return
        found = circles.circle(BUILTIN_CHAINS[self.live.table], self._leads)
        if found:
            names = [name for name, _ in found]
            path = " -> ".join([*names, names[0]])
            msg = f"chains of table {self.live.table} go round in a circle: {path}"
            raise BadInput(msg, where=self._locate(*found[-1]))

    def _leads(self, chain: str) -> list[tuple[str, int]]:
        """Return the chains that a chain leads to afterwards, with the rule's number."""
        live = self.live.jumps(chain)
        plan = self.chains.get(chain)
        if plan is None:
            found = live
        else:
            found = []
            for kind, at, beside, count in plan.merge.runs:
                if kind in {SAME, KEPT}:
                    found += live[at : at + count]
                elif kind == ADD:
                    found += self._jumps_of(plan.goal.entries[beside : beside + count])
        builtin = BUILTIN_CHAINS[self.live.table]
        return [
            (to, number)
            for number, to in enumerate(found, 1)
            if to in self._chain_names and to not in builtin
        ]

    def _jumps_added(self, plan: ChainPlan) -> bool:
        return any(
            to in self._chain_names
            for run in plan.merge.runs
            if run.kind == ADD
            for to in self._jumps_of(plan.goal.entries[run.wanted : run.wanted + run.length])
        )

    def _jumps_of(self, entries: Sequence[bytes]) -> list[str]:
        # a rule whose set is not there yet is looked at by the kernel itself
        real = [entry for entry in entries if not is_stand_in(entry)]
        parts = parts_of(real, self.live.family, self._chain_names)
        return [(one.jump or b"").decode("utf-8", "surrogateescape") for one in parts]

    # --- showing ------------------------------------------------------------------------------

    def change(self, *, digest: bool = False) -> TableChange:
        """Return the table's change with the lines that people see."""
        live = self.live
        for plan in self.chains.values():
            if not plan.change.lines and any(run.kind != SAME for run in plan.merge.runs):
                plan.change.lines = list(self._lines(plan))
        changes = [plan.change for plan in self.chains.values()]
        return TableChange(live.family, live.table, changes, live.digest() if digest else "")

    def _lines(self, plan: ChainPlan) -> Iterator[Line]:
        """Yield the lines of a chain: all but what stays, and of that what is around."""
        name, runs, moved = plan.name, plan.merge.runs, plan.merge.moved
        sources = set(moved.values())
        last = len(runs) - 1
        for position, (kind, at, beside, count) in enumerate(runs):
            number = self._number(runs, position)
            if kind == SAME:
                head = min(count, CONTEXT) if position else 0
                tail = max(head, count - CONTEXT) if position < last else count
                shown = [*range(head), *range(tail, count)]
                specs = self.live.specs(name, [at + index for index in shown])
                for index, spec in zip(shown, specs, strict=True):
                    yield Line(SAME, number + index, spec)
            elif kind == ADD:
                specs = self._wanted_specs(plan, range(beside, beside + count))
                for index, spec in enumerate(specs):
                    where = plan.goal.where(beside + index)
                    is_moved = beside + index in moved
                    yield Line(ADD, number + index, spec, where=where, moved=is_moved)
            else:
                specs = self.live.specs(name, range(at, at + count))
                for index, spec in enumerate(specs, at):
                    counters = self.live.counters(name, index)
                    if kind == KEPT:
                        owner = plan.merge.owners.get(index, "")
                        yield Line(KEPT, number + index - at, spec, counters, owner)
                    else:
                        yield Line(DELETE, index + 1, spec, counters, moved=index in sources)

    def _number(self, runs: Sequence[Run], position: int) -> int:
        """Return the number, from 1, that the first rule of a run has afterwards."""
        return 1 + sum(run.length for run in runs[:position] if run.kind != DELETE)

    def _wanted_specs(self, plan: ChainPlan, indices: range) -> list[str]:
        """Return the text of wanted rules as iptables-save would print them."""
        goal, live = plan.goal, self.live
        pending = set(goal.pending)
        real = [index for index in indices if index not in pending]
        entries = [goal.entries[index] for index in real]
        parts = parts_of(entries, live.family, self._chain_names)
        specs = dict(zip(real, live.decoder.specs(parts), strict=True))
        return [specs[i] if i in specs else goal.texts[i] for i in indices]

    @cached_property  # it is asked for by each chain, of which there may be thousands
    def _chain_names(self) -> set[str]:
        return {*self.live.chains, *self.chains}

    def specs_after(self, chain: str) -> list[str]:
        """Return the text of a chain's rules as they will be."""
        plan = self.chains.get(chain)
        if plan is None:
            return self.live.specs(chain)
        specs: list[str] = []
        for kind, at, beside, count in plan.merge.runs:
            if kind in {SAME, KEPT}:
                specs += self.live.specs(chain)[at : at + count]
            elif kind == ADD:
                specs += self._wanted_specs(plan, range(beside, beside + count))
        return specs

    def text_after(self) -> str:
        """Return the table as iptables-save will print it, counters at zero."""
        live = self.live
        gone = set(self.delete)
        names = [*(name for name in live.chains if name not in gone), *self.create]
        lines = [f"*{live.table}"]
        for name in names:
            chain = live.chains.get(name)
            policy = chain.policy if chain is not None else None
            plan = self.chains.get(name)
            if plan is not None and plan.change.policy is not None:
                policy = plan.change.policy[1]
            lines.append(f":{name} {policy or '-'} [0:0]")
        for name in names:
            plan = self.chains.get(name)
            if plan is None or not plan.edits:
                lines += live.lines(name)
            else:
                lines += [f"-A {name} {spec}".rstrip(" ") for spec in self.specs_after(name)]
        lines.append("COMMIT\n")
        return "\n".join(lines)

    # --- writing ------------------------------------------------------------------------------

    def write(self, edit: TableEdit) -> None:
        """Make the edits in libiptc's memory; the rules in ``goal.pending`` must be real now."""
        kernel = edit.kernel
        for name in self.create:
            kernel.create_chain(name)
            edit.user_chains.add(name)
        for name in self.delete:
            kernel.flush(name)
        for plan in self.chains.values():
            if plan.change.policy is not None:
                counters = plan.goal.policy_counters
                kernel.set_policy(plan.name, plan.change.policy[1], counters)
            if plan.change.changes and not plan.change.deleted:
                self._write_chain(edit, plan)
        for name in self.delete:
            kernel.delete_chain(name)
            edit.user_chains.discard(name)
        edit.edited = True
        edit.locate = self._locate

    def _locate(self, chain: str, number: int) -> Where | None:
        """Return where a rule came from, when the kernel refuses it."""
        plan = self.chains.get(chain)
        if plan is None:
            return None
        at = 1
        for run in plan.merge.runs:
            if run.kind == DELETE:
                continue
            if at <= number < at + run.length:
                if run.kind == KEPT:
                    return None
                return plan.goal.where(run.wanted + number - at)
            at += run.length
        return None

    def _write_chain(self, edit: TableEdit, plan: ChainPlan) -> None:
        kernel, name, goal = edit.kernel, plan.name, plan.goal
        runs, family = plan.merge.runs, self.live.family
        counters = dict(goal.counters)
        # what is moved goes on with what the old rule has counted when the table is swapped
        moved: dict[int, int] = plan.merge.moved
        carried: dict[int, int] = {}  # number: old place
        old = counter_maps.places(kernel, name) if moved else []
        for wanted, live in moved.items():
            counters[wanted] = self.live.counters(name, live)

        def entry(index: int) -> bytes:
            count = counters.get(index)
            return (
                with_counters(goal.entries[index], family, *count) if count else goal.entries[index]
            )

        encoded = name.encode("utf-8", "surrogateescape")
        if not any(run.kind in {SAME, KEPT} for run in runs):
            kernel.flush(name)
            runs = [run for run in runs if run.kind == ADD]
            at, length = 1, 0
        else:
            at, length = 1, plan.change.before
        # ``at`` is the number of the next rule, ``length`` how many there are
        for kind, _, beside, count in runs:
            if kind in {SAME, KEPT}:
                at += count
            elif kind == DELETE:
                for _ in range(count):
                    kernel.delete(name, at)
                length -= count
            else:
                for index in range(beside, beside + count):
                    if at > length:
                        kernel.append(encoded, entry(index))
                    else:
                        kernel.insert(name, entry(index), at)
                    if old and index in moved:
                        carried[at] = old[moved[index]]
                    at, length = at + 1, length + 1
        if carried:
            counter_maps.carry(kernel, name, carried)

    # --- reading back -------------------------------------------------------------------------

    def difference(self, blob: Blob) -> str:
        """Return where the kernel's table is not what it should be now; "" where it is."""
        live = self.live
        gone = set(self.delete)
        expected = {*(name for name in live.chains if name not in gone), *self.create}
        found = {chain.name for chain in blob.chains}
        if found != expected:
            return f"its chains are not those expected: {', '.join(sorted(found ^ expected)[:5])}"
        for name, policy, spans in blob.chains:
            plan = self.chains.get(name)
            wanted_policy = live.chains[name].policy if name in live.chains else None
            if plan is not None and plan.change.policy is not None:
                wanted_policy = plan.change.policy[1]
            if policy is not None and wanted_policy != policy.verdict:
                return f"the policy of {name} is {policy.verdict}"
            if (
                live.blob is not None
                and not (plan is not None and plan.edits)
                and blob.same_rules(spans, live.blob, live.spans(name))
            ):
                continue
            wanted = self._entries_after(name, plan)
            if len(spans) != len(wanted):
                return f"chain {name} has {len(spans)} rules, not {len(wanted)}"
            canonical = live.decoder.canonical
            for index in blob.unequal(spans, wanted):
                if canonical(blob.parts([spans[index]])[0]) != wanted[index]:
                    return f"rule {index + 1} of chain {name} is another"
        return ""

    def _entries_after(self, name: str, plan: ChainPlan | None) -> list[bytes]:
        if plan is None:
            return self.live.canonical(name)
        runs, wanted = plan.merge.runs, plan.goal.entries
        if not any(run.kind in {KEPT, DELETE} for run in runs) and plan.change.after == len(wanted):
            return wanted
        if any(run.kind == KEPT for run in runs):
            return result(runs, self.live.canonical(name), wanted)
        return wanted  # nothing is kept: what is there then is what is wanted
