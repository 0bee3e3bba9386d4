"""From a policy to the plan of every table: who owns what, what goes, what stays.

What the policy decides about:

- chains that it names are its own, but for the rules of others in them (``ownership``);
- a table of an iptables-save file is its own as a whole, but for the chains of others;
- chains that it named when it was applied last, by its record, and names no more: they go,
  and of a built-in chain the rules that it put there;
- with ``exclusive``, each table that it names, whoever made what is in there.

All else stays as it is. Two policies share the rules of a built-in chain, but neither its policy
nor a chain of their own; what one keeps as another's, the other did not put there and keeps, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from nfctl.control.change import Change
from nfctl.control.goal import ChainGoal, Coder
from nfctl.control.live import Live
from nfctl.control.ownership import Ownership
from nfctl.control.planning import TablePlan
from nfctl.errors import BadInput, NfctlError
from nfctl.kernel.decode import Decoder
from nfctl.kernel.encode import Context, Encoder
from nfctl.kernel.table import active_tables
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES
from nfctl.services.names import Names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from nfctl.control.journal.records import Record
    from nfctl.control.sets import Sets
    from nfctl.policy.wanted import Wanted, WantedTable

FAMILIES = (4, 6)


@dataclass
class FamilySide:
    """What is needed to read and to write the tables of one family, in one namespace."""

    family: int
    resolve: bool = False
    encoder: Encoder = field(init=False)
    decoder: Decoder = field(init=False)
    lives: dict[str, Live] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.encoder = Encoder(self.family, resolve=self.resolve)
        self.decoder = Decoder(self.family)

    def live(self, table: str) -> Live:
        """Return a table as it was when it was looked at first."""
        if table not in self.lives:
            self.lives[table] = Live(self.family, table, self.decoder)
        return self.lives[table]

    def read_all(self) -> list[Live]:
        """Return all tables that are in use."""
        return [self.live(table) for table in active_tables(self.family)]


class Plans:
    """The plans of all tables, with their sides; what undoing and applying have in common."""

    def __init__(self, sides: dict[int, FamilySide]) -> None:
        self.sides = sides
        self.tables: list[TablePlan] = []
        self.coders: dict[int, Coder] = {}
        self.notes: list[str] = []

    @property
    def changed(self) -> list[TablePlan]:
        """The tables that differ."""
        return [plan for plan in self.tables if plan.changes]

    def change(self, wanted_name: str, *, digests: bool = False) -> Change:
        """Return the change of the tables, to be shown or written down."""
        change = Change(wanted_name, notes=list(self.notes))
        change.tables = [plan.change(digest=digests) for plan in self.tables]
        return change

    def texts_after(self) -> dict[int, str]:
        """Return the iptables-save text of all tables as they will be, by family."""
        found = {}
        for family, side in self.sides.items():
            plans = {plan.live.table: plan for plan in self.tables if plan.live.family == family}
            names = dict.fromkeys([*active_tables(family), *plans])
            found[family] = "".join(
                plans[name].text_after() if name in plans else side.live(name).text()
                for name in names
            )
        return found

    def finish_pending(self) -> None:
        """Encode the rules that had to wait for their sets."""
        for plan in self.tables:
            names = {*plan.live.chains, *plan.chains}
            for chain in plan.chains.values():
                if chain.goal.pending:
                    coder = self.coders[plan.live.family]
                    coder.finish(plan.live.table, chain.name, chain.goal, names)


class Planner:
    """Plans a policy; ``own`` is what it may own, ``others`` the records of the other policies.

    ``prefixes`` are those of services that it has, besides those of its list.
    """

    def __init__(
        self,
        wanted: Wanted,
        *,
        own: Sequence[Record] = (),
        others: Sequence[Record] = (),
        exclusive: bool = False,
        resolve: bool = False,
        sets: Sets | None = None,
        prefixes: Collection[str] = (),
    ) -> None:
        self.wanted = wanted
        self.exclusive = exclusive
        self.sets = sets
        #: What the change has to say beside its lines.
        self.notes: list[str] = []
        self._resolve = resolve
        self._ownership = Ownership(wanted.keep)
        self._own = [_Own(record) for record in own]
        self._others = [(record.name, record.wanted()) for record in others]
        # what another policy keeps is not this one's either, if that did not put it there
        self._keeps = [(name, Ownership(p.keep)) for name, p in self._others if p.keep]
        if wanted.services is not None:
            prefixes = (wanted.services.prefix, *prefixes)
        self._names = [Names(prefix) for prefix in prefixes]
        self._ownership.services += [(names, "") for names in self._names]
        self._ownership.services += [
            (Names(record.prefix), f"policy {record.name}") for record in others if record.prefix
        ]
        for name, policy in self._others:
            for family, tables in policy.tables.items():
                for table, what in tables.items():
                    known = self._ownership.others.setdefault((family, table), {})
                    users = _user_chains(table, what)
                    known.update(dict.fromkeys(users, f"policy {name}"))

    def plan(self, sides: dict[int, FamilySide] | None = None) -> Plans:
        """Read the kernel, encode the policy, and compare; ``sides`` may have tables already."""
        self._check_others()
        families = self._families()
        if sides is None:
            sides = {family: FamilySide(family, self._resolve) for family in families}
        plans = Plans(sides)
        for family in families:
            self._plan_family(plans, family)
        return plans

    def change(self, plans: Plans, *, digests: bool = False) -> Change:
        """Return the whole change."""
        change = plans.change(self.wanted.name, digests=digests)
        change.files = list(self.wanted.files)
        change.notes += self.notes
        if self.sets is not None:
            change.sets = [*self.sets.changes]
            if self.sets.obstacle is not None:
                change.notes.append(f"apply will refuse this: {self.sets.obstacle.message}")
        return change

    def _families(self) -> list[int]:
        named = set(self.wanted.tables).union(*(own.chains for own in self._own))
        return [family for family in FAMILIES if family in named]

    # --- two policies on one host ---------------------------------------------------------------

    def _check_others(self) -> None:
        for name, policy in self._others:
            for family, tables in self.wanted.tables.items():
                for table, what in tables.items():
                    other = policy.tables.get(family, {}).get(table)
                    if other is not None:
                        self._check_table(table, what, name, other)

    def _check_table(self, table: str, what: WantedTable, name: str, other: WantedTable) -> None:
        hint = f"rename it, or have nfctl forget that one: nfctl policy forget {name}"
        if self.exclusive:
            msg = f"table {table} also belongs to policy {name}, so it cannot be taken whole"
            raise BadInput(msg, hint="leave out --exclusive", where=what.where)
        for chain, wanted in what.chains.items():
            theirs = other.chains.get(chain)
            if theirs is None:
                continue
            if chain not in BUILTIN_CHAINS[table]:
                msg = f"chain {chain} of table {table} belongs to policy {name}"
                raise BadInput(msg, hint=hint, where=wanted.where)
            if wanted.policy is not None and theirs.policy is not None:
                msg = f"the policy of chain {chain} of table {table} is set by policy {name}"
                hint = "leave it out here, or there"
                raise BadInput(msg, hint=hint, where=wanted.where)

    # --- a family -------------------------------------------------------------------------------

    def _plan_family(self, plans: Plans, family: int) -> None:
        side = plans.sides[family]
        tables = self.wanted.tables.get(family, {})
        coder = self._coder(plans, family)
        own = [each.chains.get(family, {}) for each in self._own]
        names = [name for name in TABLES if name in tables or any(name in each for each in own)]
        goals: dict[str, dict[str, ChainGoal]] = {}
        removals: dict[str, list[str]] = {}
        for name in names:
            live, what = side.live(name), tables.get(name)
            skip = self._others_chains(live, what, plans) if what is not None else set()
            named = {*(what.chains if what is not None else ()), *skip}
            mine = {chain for each in own for chain in each.get(name, ())}
            removals[name] = self._removed(live, what, named, mine)
            chains = {*live.user_chains, *named} - set(removals[name])
            chains -= set(BUILTIN_CHAINS[name])
            goals[name] = coder.table(name, what, chains, skip) if what is not None else {}
        flat = {(name, chain): goal for name in names for chain, goal in goals[name].items()}
        coder.resolve_pending(flat)
        for name in names:
            live = side.live(name)
            asked = tables[name].chains if name in tables else {}
            released = self._released(live, {*goals[name], *removals[name], *asked}, coder)
            for chain in released:
                goals[name][chain] = ChainGoal()
            owner = self._owner(live, released, coder)
            plans.tables.append(TablePlan.make(live, goals[name], removals[name], owner))

    def _coder(self, plans: Plans, family: int) -> Coder:
        missing = self.sets.missing if self.sets is not None else set()
        coder = Coder(family, plans.sides[family].encoder, missing, self.wanted.sets)
        plans.coders[family] = coder
        return coder

    def _others_chains(self, live: Live, what: WantedTable, plans: Plans) -> set[str]:
        """Return chains of others that a save file has, too: what is in the kernel stays."""
        if self.exclusive or not what.whole:
            return set()
        found = {}
        for chain in what.chains:
            if chain in live.chains and chain not in BUILTIN_CHAINS[live.table]:
                owner = self._ownership.chain_owner(chain)
                if owner:
                    found[chain] = owner
        if found:
            owners = ", ".join(sorted(set(found.values())))
            plans.notes.append(
                f"table {live.table} (IPv{live.family}): {len(found)} of the file's chains stay as "
                f"the kernel has them, as they are {owners}'s: {', '.join(sorted(found)[:5])}"
            )
        return set(found)

    def _removed(
        self,
        live: Live,
        what: WantedTable | None,
        named: set[str],
        mine: set[str],
    ) -> list[str]:
        """Return the user-defined chains that are to go."""
        free = [chain for chain in live.user_chains if chain not in named]
        if what is not None and self.exclusive:
            return free
        others = self._ownership.others.get((live.family, live.table), {})
        free = [c for c in free if c not in others and not self._ownership.chain_owner(c)]
        if what is not None and what.whole:
            keeps = [keep for _, keep in self._keeps]
            return [c for c in free if c in mine or not any(k.chain_owner(c) for k in keeps)]
        return [c for c in free if c in mine or self._is_of_services(c)]

    def _is_of_services(self, chain: str) -> bool:
        return any(names.is_own(chain) for names in self._names)

    def _released(
        self, live: Live, settled: Collection[str], coder: Coder
    ) -> dict[str, Counter[bytes]]:
        """Return chains that stay and that the policy named before, with the rules it put there.

        They are built-in ones, and those of others such as DOCKER-USER.
        """
        released: dict[str, Counter[bytes]] = {}
        for own in self._own:
            for chain in own.chains.get(live.family, {}).get(live.table, ()):
                if chain not in settled and chain in live.chains:
                    table = own.policy.tables[live.family][live.table]
                    if chain in BUILTIN_CHAINS[live.table] or (
                        not table.whole  # a save file of the host has the rules of others, too
                        and self._ownership.is_foreign(chain)
                    ):
                        found = released.setdefault(chain, Counter())
                        found |= self._encoded(live, chain, table, coder)
        return {chain: rules for chain, rules in released.items() if rules}

    def _encoded(
        self, live: Live, chain: str, table: WantedTable | None, coder: Coder
    ) -> Counter[bytes]:
        """Return the rules of a recorded chain; those that cannot be encoded now are left out."""
        rules: Counter[bytes] = Counter()
        if table is None or chain not in table.chains:
            return rules
        context = Context(live.table, chain, {*live.user_chains, *_user_chains(live.table, table)})
        for rule in table.chains[chain].rules:
            try:
                rules.update(coder.encode(rule, context))
            except NfctlError:  # a set or an extension that is gone: no such rule is left either
                continue
        return rules

    def _owner(
        self, live: Live, released: dict[str, Counter[bytes]], coder: Coder
    ) -> Callable[[str, int], str]:
        """Return who owns the rules of a table that the policy does not want."""
        family, table = live.family, live.table
        if self.exclusive and table in self.wanted.tables.get(family, {}):
            return lambda _chain, _index: ""
        theirs: dict[str, dict[bytes, str]] = {}
        mine: dict[str, Counter[bytes]] = {}
        named = self.wanted.tables.get(family, {}).get(table)
        shared = {
            name
            for name, what in (named.chains if named is not None else {}).items()
            if what.shared
        }

        def owner(chain: str, index: int) -> str:
            rule = live.canonical(chain)[index]
            if chain in shared:
                return self._owner_of_shared(live, chain, index, mine, coder)
            if chain in released:
                return "" if released[chain][rule] else "another program"
            if chain not in theirs:
                theirs[chain] = self._rules_of_others(live, chain, coder)
            if rule in theirs[chain]:
                return theirs[chain][rule]
            spec = live.spec(chain, index)
            found = self._ownership.owner(family, table, spec)
            if found or not self._keeps:
                return found
            if chain not in mine:
                mine[chain] = self._rules_of_mine(live, chain, coder)
            if rule in mine[chain]:
                return ""
            keeps = self._keeps
            return next((f"policy {n}" for n, k in keeps if k.owner(family, table, spec)), "")

        return owner

    def _owner_of_shared(
        self, live: Live, chain: str, index: int, mine: dict[str, Counter[bytes]], coder: Coder
    ) -> str:
        if chain not in mine:
            mine[chain] = self._rules_of_mine(live, chain, coder)
        if mine[chain][live.canonical(chain)[index]]:
            return ""
        # without a record: what leads to chains of that name is nobody else's
        if self._is_of_services(_jump_of(live.spec(chain, index))):
            return ""
        found = self._ownership.owner(live.family, live.table, live.spec(chain, index))
        return found or "another program"

    def _rules_of_mine(self, live: Live, chain: str, coder: Coder) -> Counter[bytes]:
        found: Counter[bytes] = Counter()
        for own in self._own:
            table = own.policy.tables.get(live.family, {}).get(live.table)
            found |= self._encoded(live, chain, table, coder)
        return found

    def _rules_of_others(self, live: Live, chain: str, coder: Coder) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for name, policy in self._others:
            table = policy.tables.get(live.family, {}).get(live.table)
            for rule in self._encoded(live, chain, table, coder):
                found.setdefault(rule, f"policy {name}")
        return found


class _Own:
    """What a record says; its rules are read only if they are asked for."""

    def __init__(self, record: Record) -> None:
        self._record = record
        #: The chains that the record's text declares, by family and table.
        self.chains: dict[int, dict[str, list[str]]] = {}
        for family, text in record.text.items():
            tables = self.chains.setdefault(family, {})
            chains: list[str] = []
            for line in text.split("\n"):
                if line[:1] == ":":
                    chains.append(line[1:].split(" ", 1)[0])
                elif line[:1] == "*":
                    chains = tables.setdefault(line[1:].strip(), [])

    @cached_property
    def policy(self) -> Wanted:
        return self._record.wanted()


def _jump_of(spec: str) -> str:
    """Return where a rule goes, by its text."""
    _, _, to = spec.rpartition(" -j ") if " -j " in spec else spec.rpartition("-j ")
    return to.partition(" ")[0]


def _user_chains(table: str, what: WantedTable) -> Iterable[str]:
    return [chain for chain in what.chains if chain not in BUILTIN_CHAINS[table]]
