"""All policies of a host as one, with the rules that share a chain in their order.

A record says what a policy wants, and not where its rules stand among those of another policy in
a built-in chain that both use. The latest entry of the journal knows: it has the tables from
before a change, and the change. Where it does not (it is damaged, or the chain was another
then), the policy that was applied first comes first.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from nfctl.control.goal import Coder
from nfctl.control.journal.entries import APPLIED, CONFIRMED
from nfctl.control.undo import Before, after_of
from nfctl.errors import BadInput, NfctlError
from nfctl.kernel.encode import Context
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedSet, WantedTable
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.planner import FamilySide

_DONE = {APPLIED, CONFIRMED}
Owned = tuple[str, WantedChain]  # by the name of a policy


class Remembered:
    """What the journal's latest entry says about chains; nothing, where it cannot be read."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._texts: dict[int, Before] | None = None
        self._changes: dict[tuple[int, str, str], dict[str, object]] = {}

    def rules(self, family: int, table: str, chain: str) -> list[str]:
        """Return a chain's rules as they were confirmed last, as iptables-save prints them."""
        if self._texts is None:
            self._texts = {}
            try:
                self._read()
            except (NfctlError, OSError, ValueError, LookupError, TypeError, AttributeError):
                self._texts = {}
        if family not in self._texts:
            return []
        before = [spec for spec, _ in self._texts[family].rules(table, chain)]
        change = self._changes.get((family, table, chain))
        if change is None:
            return before
        try:
            return [] if change["deleted"] else after_of(before, change)
        except (LookupError, TypeError, ValueError, StopIteration):
            return []

    def _read(self) -> None:
        latest = self._state.entries()[-1]
        if latest.status in _DONE:
            for table in latest.change["tables"]:
                for chain in table["chains"]:
                    key = (int(table["family"]), str(table["table"]), str(chain["name"]))
                    self._changes[key] = chain
        self._texts = {family: Before(latest.before_text(family)) for family in latest.families}


def merged(
    records: Sequence[Record], sides: dict[int, FamilySide], remembered: Remembered
) -> Wanted:
    """Return what all these policies want together, without the sets.

    Raises BadInput where two of them want the same chain for themselves.
    """
    records = sorted(records, key=lambda record: (record.when, record.name))
    policies = [record.wanted() for record in records]
    whole = Wanted(", ".join(policy.name for policy in policies))
    for policy in policies:
        whole.keep += [keep for keep in policy.keep if keep not in whole.keep]
    for family, side in sides.items():
        names = {name: None for policy in policies for name in policy.tables.get(family, {})}
        for name in names:
            owned = [
                (policy.name, policy.tables[family][name])
                for policy in policies
                if name in policy.tables.get(family, {})
            ]
            joined = _Join(side, name, remembered).table(owned)
            whole.tables.setdefault(family, {})[name] = joined
    return whole


def all_sets(records: Sequence[Record]) -> list[WantedSet]:
    """Return the sets of all policies: of those with one name the latest that says what is in."""
    found: dict[str, WantedSet] = {}
    for record in sorted(records, key=lambda record: (record.when, record.name)):
        for about in record.sets:
            one = WantedSet(**about)
            if one.entries is not None or one.name not in found:
                found[one.name] = one
    return list(found.values())


class _Join:
    """Joins one table of several policies."""

    def __init__(self, side: FamilySide, table: str, remembered: Remembered) -> None:
        self._side = side
        self._table = table
        self._remembered = remembered
        self._users: frozenset[str] = frozenset()

    def table(self, owned: Sequence[tuple[str, WantedTable]]) -> WantedTable:
        joined = WantedTable(whole=any(what.whole for _, what in owned), where=owned[0][1].where)
        chains: dict[str, list[Owned]] = {}
        for name, what in owned:
            for chain, wanted in what.chains.items():
                chains.setdefault(chain, []).append((name, wanted))
        self._users = frozenset(chains) - frozenset(BUILTIN_CHAINS[self._table])
        for chain, parts in chains.items():
            if len(parts) > 1 and chain in self._users:
                names = " and ".join(name for name, _ in parts)
                msg = f"chain {chain} of table {self._table} belongs to the policies {names}"
                raise BadInput(msg, hint="apply one of them anew", where=parts[0][1].where)
            joined.chains[chain] = self._chain(chain, parts)
        return joined

    def _chain(self, chain: str, parts: Sequence[Owned]) -> WantedChain:
        policy = next((part.policy for _, part in reversed(parts) if part.policy is not None), None)
        busy = [part.rules for _, part in parts if part.rules]
        rules = self._in_order(chain, busy) if len(busy) > 1 else [r for part in busy for r in part]
        return WantedChain(rules, policy, parts[0][1].where)

    def _in_order(self, chain: str, parts: Sequence[list[WantedRule]]) -> list[WantedRule]:
        """Put the rules where the journal has them; a rule that two policies want is there once."""
        one_after_the_other = [rule for rules in parts for rule in rules]
        specs = self._remembered.rules(self._side.family, self._table, chain)
        if not specs:
            return one_after_the_other
        coder = Coder(self._side.family, self._side.encoder)
        context = Context(self._table, chain, self._users)
        needed: Counter[bytes] = Counter()
        rule_of: dict[bytes, tuple[WantedRule, list[bytes]]] = {}
        known: list[bytes] = []
        try:
            for rules in parts:
                encoded = [(rule, coder.encode(rule, context)) for rule in rules]
                needed |= Counter(entry for _, entries in encoded for entry in entries)
                rule_of |= {entry: one for one in encoded for entry in one[1]}
        except NfctlError:  # the planner says what is wrong
            return one_after_the_other
        for spec in specs:
            with contextlib.suppress(NfctlError):  # another program's, which is not there yet
                known += coder.encode(WantedRule(spec, "the journal"), context)
        found = []
        for entry in known:
            if needed[entry] > 0:
                rule, entries = rule_of[entry]
                found.append(rule)
                needed.subtract(entries)
        return one_after_the_other if any(number > 0 for number in needed.values()) else found
