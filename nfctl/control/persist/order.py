"""All policies of a host as one, with the rules that share a chain in their order.

A record says what a policy wants, and not where its rules stand among those of another policy in
a built-in chain that both use. The latest entry of the journal knows: it has the tables from
before a change, and the change. One about services has those chains alone that it changed; what
the others were, an earlier entry knows. Where it does not (it is damaged, or the chain was another
then), services come first, and then the policy that was applied first.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from nfctl.control.goal import Coder
from nfctl.control.journal.entries import APPLIED, CONFIRMED
from nfctl.control.undo import Before, after_of
from nfctl.errors import BadInput, NfctlError
from nfctl.kernel.encode import Context
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedSet, WantedTable
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.control.journal.entries import Entry
    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.planner import FamilySide

_DONE = {APPLIED, CONFIRMED}
_SERVICES = "services-"
Owned = tuple[str, WantedChain]  # by the name of a policy


class Remembered:
    """What the journal's latest entry says about chains; nothing, where it cannot be read."""

    def __init__(self, state: State) -> None:
        self._entries: Iterator[Entry] = iter(())
        self._read: list[_Then] = []
        with contextlib.suppress(NfctlError, OSError):
            self._entries = reversed(state.entries())

    def rules(self, family: int, table: str, chain: str) -> list[str]:
        """Return a chain's rules as they were confirmed last, as iptables-save prints them."""
        for then in self._latest():
            try:
                found = then.rules((family, table, chain))
            except (LookupError, TypeError, ValueError, StopIteration):
                break
            if found is not None:
                return found
        return []

    def _latest(self) -> Iterator[_Then]:
        """Yield what entries say, the latest first; each is read once."""
        yield from self._read
        for entry in self._entries:
            try:
                then = _Then(entry)
            except (NfctlError, OSError, ValueError, LookupError, TypeError, AttributeError):
                self._entries = iter(())
                return
            self._read.append(then)
            yield then


class _Then:
    """What an entry says about chains."""

    def __init__(self, entry: Entry) -> None:
        texts = {family: entry.before_text(family) for family in entry.families}
        self._before = {family: Before(text) for family, text in texts.items()}
        self._chains = {(family, line) for family, text in texts.items() for line in _chains(text)}
        #: Whether it has all chains, and not those alone that it changed.
        self.is_whole = not entry.policy.startswith(_SERVICES) or entry.action == "rollback"
        self._changes: dict[tuple[int, str, str], dict[str, Any]] = {}
        for table in entry.change["tables"] if entry.status in _DONE else ():
            for chain in table["chains"]:
                self._changes[int(table["family"]), str(table["table"]), str(chain["name"])] = chain

    def rules(self, key: tuple[int, str, str]) -> list[str] | None:
        """Return a chain's rules after the change; None where it says nothing of it."""
        family, table, name = key
        change = self._changes.get(key)
        is_new = self.is_whole or (change is not None and change["created"])
        if (family, (table, name)) not in self._chains and not is_new:
            return None
        before = self._before.get(family)
        specs = [spec for spec, _ in before.rules(table, name)] if before is not None else []
        if change is None:
            return specs
        return [] if change["deleted"] else after_of(specs, change)


def _chains(text: str) -> Iterator[tuple[str, str]]:
    """Yield table and chain of each chain that a text declares."""
    table = ""
    for line in text.split("\n"):
        if line[:1] == "*":
            table = line[1:]
        elif line[:1] == ":":
            yield table, line[1:].split(" ", 1)[0]


def policy_of(record: Record) -> Wanted:
    """Return all that a policy wants; of services, the chains that their list comes to.

    BadInput for a list that another version of nfctl wrote.
    """
    if not record.services:
        return record.wanted()
    from nfctl.control.serving import desired
    from nfctl.services import reading

    try:
        settings = reading.of_document(json.loads(record.services))
    except (*reading.UNUSUAL, BadInput):
        msg = f"the services of policy {record.name} were written by another version of nfctl"
        raise BadInput(msg, hint="apply their file again") from None
    return desired.wanted(settings, record.files)


def merged(
    records: Sequence[Record], sides: dict[int, FamilySide], remembered: Remembered
) -> Wanted:
    """Return what all these policies want together, without the sets.

    Raises BadInput where two of them want the same chain for themselves.
    """
    records = sorted(records, key=lambda record: (record.when, record.name))
    policies = [policy_of(record) for record in records]
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
        # as where they are applied, the jumps to services come before what others have there
        first = sorted(parts, key=lambda part: not part[1].shared)
        busy = [part.rules for _, part in first if part.rules]
        rules = self._in_order(chain, busy) if len(busy) > 1 else [r for part in busy for r in part]
        shared = all(part.shared for _, part in parts)
        return WantedChain(rules, policy, parts[0][1].where, shared)

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
