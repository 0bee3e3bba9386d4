"""What a policy wants, encoded: the canonical bytes of every rule, chain by chain.

All of it is encoded before anything is written. A rule that names an ipset which is not there
yet has no bytes here, as they hold the number that the kernel gives the set. It is encoded in a
throw-away network namespace with such sets (that is where mistakes in it show), stands in the
plan by a stand-in that equals no rule, and gets its bytes when the sets exist.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfctl.control.live import parts_of
from nfctl.errors import NfctlError, NotPermitted, Where, excerpt
from nfctl.kernel import netns
from nfctl.kernel.decode import Decoder
from nfctl.kernel.encode import Context, Encoder
from nfctl.kernel.libraries import libraries
from nfctl.policy import places
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence

    from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedSet, WantedTable
    from nfctl.ruleset.words import Word

_STAND_IN = b"no set yet\0"
_PATIENCE = 60.0  # seconds for a child that encodes


@dataclass(slots=True)
class ChainGoal:
    """A chain as it is wanted. ``origins`` has the rule of the policy behind each entry.

    ``pending`` are the indices of stand-ins, ``texts`` what iptables-save will print for them.
    ``counters`` are (packets, bytes) that rules begin with, by index; the others begin at zero.
    ``policy_counters`` are those of a policy that is set to another. ``front``: new rules come
    before those of others.
    """

    entries: list[bytes] = field(default_factory=list)
    origins: list[WantedRule] = field(default_factory=list)
    policy: str | None = None
    policy_counters: tuple[int, int] = (0, 0)
    pending: list[int] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    counters: dict[int, tuple[int, int]] = field(default_factory=dict)
    front: bool = False

    def where(self, index: int) -> Where | None:
        """Return where a rule came from, if that is known."""
        return self.origins[index].where if index < len(self.origins) else None


def is_stand_in(entry: bytes) -> bool:
    """Whether an entry only stands for a rule whose set is yet to be made."""
    return entry.startswith(_STAND_IN)


class Coder:
    """Encodes the rules of one family. ``missing`` are the sets that are yet to be made."""

    def __init__(
        self,
        family: int,
        encoder: Encoder,
        missing: Collection[str] = (),
        sets: Sequence[WantedSet] = (),
    ) -> None:
        self.family = family
        self.encoder = encoder
        self._missing = frozenset(missing)
        self._sets = sets
        self._pending: list[tuple[str, str, frozenset[str], WantedRule]] = []

    def table(
        self, name: str, wanted: WantedTable, chains: Collection[str], skip: Container[str] = ()
    ) -> dict[str, ChainGoal]:
        """Encode a table's chains, but for those in ``skip``; BadInput with the place."""
        return {
            chain: self.chain(name, chain, what, chains)
            for chain, what in wanted.chains.items()
            if chain not in skip
        }

    def chain(
        self, table: str, chain: str, wanted: WantedChain, chains: Collection[str]
    ) -> ChainGoal:
        """Encode one chain."""
        goal = ChainGoal(policy=wanted.policy if chain in BUILTIN_CHAINS[table] else None)
        goal.front = wanted.shared
        context = Context(table, chain, chains)
        quick, missing = self.encoder.quick, self._missing
        entries, origins = goal.entries, goal.origins
        for rule in wanted.rules:
            if missing and self._names_missing(rule):
                goal.pending.append(len(entries))
                entries.append(_STAND_IN + rule.spec.encode("utf-8", "surrogateescape"))
                origins.append(rule)
                self._pending.append((table, chain, frozenset(chains), rule))
                continue
            entry = quick(rule.spec, context) if rule.words is None else None
            if entry is not None:
                entries.append(entry)
                origins.append(rule)
            else:
                encoded = self.encode(rule, context)
                entries += encoded
                origins += [rule] * len(encoded)
        return goal

    def encode(self, rule: WantedRule, context: Context) -> list[bytes]:
        """Encode a rule in any of iptables' spellings; it may stand for several."""
        try:
            return self.encoder.encode(_words(rule), context, rule.where).rules
        except NfctlError as error:
            if not error.hint and any(word.text.startswith("'") for word in _words(rule)):
                error.hint = "as in iptables-save, double quotes make one word; single ones do not"
            raise places.exact(error.at(rule.where), rule) from None

    def resolve_pending(self, goals: Mapping[tuple[str, str], ChainGoal]) -> None:
        """Encode what has stand-ins where such sets are: that finds the mistakes in it.

        Afterwards there are as many stand-ins as there will be rules, with their text.
        ``goals`` are those of the family, by (table, chain).
        """
        if not self._pending:
            return
        from nfctl.lab.fork import Child

        found = Child(self._encode_elsewhere).result(_PATIENCE)
        if isinstance(found, tuple):
            error, number = found
            rule = self._pending[number][3]
            raise places.exact(error.at(rule.where), rule)
        specs = iter(found)
        for (table, chain), goal in goals.items():
            if goal.pending:
                of_chain = [next(specs) for _ in goal.pending]
                _spread(goal, of_chain, f"{table} {chain}")

    def _encode_elsewhere(self) -> list[list[str]] | tuple[NfctlError, int]:
        """Return the rules' text; or the error and the number of the rule it is about."""
        from nfctl.control.sets import make_shells

        if libraries().libc.unshare(netns.CLONE_NEWNET):
            msg = "a network namespace cannot be made"
            return NotPermitted(msg, hint="CAP_SYS_ADMIN is needed: run as root"), 0
        found: list[list[str]] = []
        try:
            make_shells(self._sets)
            encoder = Encoder(self.family, resolve=self.encoder.resolve)
            decoder = Decoder(self.family)
            for table, chain, chains, rule in self._pending:
                context = Context(table, chain, chains)
                encoded = encoder.encode(_words(rule), context, rule.where).rules
                found.append(decoder.specs(parts_of(encoded, self.family, chains)))
        except NfctlError as error:
            return error, len(found)
        return found

    def finish(self, table: str, chain: str, goal: ChainGoal, chains: Container[str]) -> None:
        """Put the bytes of rules in the place of stand-ins: the sets are there now."""
        context = Context(table, chain, chains)
        at = 0
        while at < len(goal.pending):
            index = goal.pending[at]
            for entry in self.encode(goal.origins[index], context):
                goal.entries[goal.pending[at]] = entry
                at += 1
        goal.pending.clear()

    def _names_missing(self, rule: WantedRule) -> bool:
        missing = self._missing
        if rule.words is not None:
            return any(word.text in missing for word in rule.words)
        if not any(name in rule.spec for name in missing):
            return False
        return any(word.text in missing for word in _words(rule))


def _spread(goal: ChainGoal, specs: list[list[str]], place: str) -> None:
    """Have a stand-in for each rule that a specification came to."""
    entries: list[bytes] = []
    origins: list[WantedRule] = []
    pending: list[int] = []
    waiting = dict(zip(goal.pending, specs, strict=True))
    for index, (entry, rule) in enumerate(zip(goal.entries, goal.origins, strict=True)):
        for number, spec in enumerate(waiting.get(index, [""])):
            if index in waiting:
                pending.append(len(entries))
                goal.texts[len(entries)] = spec
                stand_in = f"{place}\0{index}\0{number}".encode("utf-8", "surrogateescape")
                entries.append(_STAND_IN + stand_in)
            else:
                entries.append(entry)
            origins.append(rule)
    goal.entries, goal.origins, goal.pending = entries, origins, pending


def _words(rule: WantedRule) -> list[Word]:
    if rule.words is not None:
        return list(rule.words)
    return split(rule.spec, source=rule.source, number=rule.line, column=rule.column or 1)


def explained(error: NfctlError, wanted: Wanted | None) -> NfctlError:
    """Return the error with the line that it is about, if that can be had again."""
    where = error.where
    if error.excerpt or where is None or not where.line:
        return error
    raw = list(wanted.raw.values()) if wanted is not None else []
    names = [name for name, _ in wanted.files] if wanted is not None else []
    if len(raw) == len(names) and where.source in names:
        error.excerpt = excerpt(raw[names.index(where.source)], where)
    elif where.source in names and os.path.isfile(where.source):  # noqa: PTH113 - as it was typed
        with contextlib.suppress(OSError), open(where.source, "rb") as file:  # noqa: PTH123
            error.excerpt = excerpt(file.read().decode("utf-8", "surrogateescape"), where)
    return error
