"""Tables, chains and rules as objects, and iptables-save text from and to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Where
from nfctl.ruleset.names import BUILTIN_CHAINS, check_new_chain, check_policy
from nfctl.ruleset.script import Append, Command, Script, Section
from nfctl.ruleset.script import parse as parse_script
from nfctl.ruleset.spec import Spec, Use
from nfctl.ruleset.words import join, split

if TYPE_CHECKING:
    from collections.abc import Iterator


class Counters(NamedTuple):
    """How many packets and bytes matched; both wrap at 2**64, as in ``struct xt_counters``."""

    packets: int = 0
    bytes: int = 0


_ZERO = Counters()


@dataclass(slots=True)
class Rule:
    """A rule: its specification (iptables' own text, after ``-A CHAIN``) and its counters."""

    spec: str
    counters: Counters = _ZERO

    def parsed(self, family: int = 4) -> Spec:
        """Return the specification taken apart."""
        return Spec.parse(self.spec, family=family)


@dataclass(slots=True)
class Chain:
    """A chain. ``policy`` is None for a user-defined one, whose counters stay zero."""

    name: str
    policy: str | None = None
    counters: Counters = _ZERO
    rules: list[Rule] = field(default_factory=list)

    @property
    def builtin(self) -> bool:
        """Whether the chain is one of the kernel's own."""
        return self.policy is not None


@dataclass(slots=True)
class Table:
    """A table: its chains by name, the built-in ones first, then the others sorted."""

    name: str
    chains: dict[str, Chain] = field(default_factory=dict)

    @classmethod
    def empty(cls, name: str) -> Table:
        """Return a table as the kernel makes it: built-in chains that accept."""
        return cls(name, {chain: Chain(chain, "ACCEPT") for chain in BUILTIN_CHAINS[name]})

    @property
    def rules(self) -> int:
        """How many rules there are in all chains."""
        return sum(len(chain.rules) for chain in self.chains.values())

    def render(self, *, counters: bool = False) -> str:
        """Return the table as iptables-save prints it, without the two comment lines."""
        lines = [f"*{self.name}"]
        for chain in self.chains.values():
            count = chain.counters
            policy = chain.policy or "-"
            lines.append(f":{chain.name} {policy} [{count.packets}:{count.bytes}]")
        for chain in self.chains.values():
            start = f"-A {chain.name}"
            for rule in chain.rules:
                line = f"{start} {rule.spec}" if rule.spec else start
                if counters:
                    line = f"[{rule.counters.packets}:{rule.counters.bytes}] {line}"
                lines.append(line)
        lines.append("COMMIT\n")
        return "\n".join(lines)


@dataclass(slots=True)
class Ruleset:
    """The tables of one family, by name."""

    family: int = 4
    tables: dict[str, Table] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, *, source: str = "<text>", family: int = 4) -> Ruleset:
        """Read iptables-save text (or anything iptables-restore reads) into a ruleset.

        Specifications are checked as far as that goes without libxtables: addresses,
        interfaces, protocols, and that a chain declared nowhere is not appended to. Raises
        BadInput with file, line and column.
        """
        return cls.of(parse_script(text, source=source, family=family), family=family)

    @classmethod
    def of(cls, script: Script, *, family: int = 4) -> Ruleset:
        """Return what iptables-restore leaves of a script in tables that were empty before."""
        ruleset = cls(family)
        for section in script.sections:
            table = ruleset.tables.get(section.table)
            replay = _Replay(table or Table.empty(section.table), family, script.source)
            if table is not None:
                replay.clear()
            ruleset.tables[section.table] = replay.table
            replay.run(section)
        return ruleset

    def render(self, *, counters: bool = False) -> str:
        """Return the ruleset as iptables-save text."""
        return "".join(table.render(counters=counters) for table in self.tables.values())

    def __iter__(self) -> Iterator[Table]:
        """Iterate over the tables, in order."""
        return iter(self.tables.values())


class _Replay:
    """Does to a table what the lines of a section say."""

    def __init__(self, table: Table, family: int, source: str) -> None:
        self.table = table
        self.family = family
        self.source = source

    def run(self, section: Section) -> None:
        for item in section.items:
            where = Where(self.source, item.line, item.column)
            try:
                if isinstance(item, Append):
                    self._chain(item.chain).rules.append(self._rule(item))
                else:
                    self._command(item)
            except BadInput as error:
                raise error.at(where) from None
        builtin = [chain for chain in self.table.chains.values() if chain.builtin]
        self.table.chains = {chain.name: chain for chain in [*builtin, *self._user_chains()]}

    def clear(self) -> None:
        """Leave nothing but the policies, as every further section of a table begins."""
        self.table.chains = {c.name: c for c in self.table.chains.values() if c.builtin}
        for chain in self.table.chains.values():
            chain.rules.clear()
            chain.counters = Counters()

    def _chain(self, name: str) -> Chain:
        if name not in self.table.chains:
            msg = f"table {self.table.name} has no chain {name}"
            raise BadInput(msg, hint=f"a line :{name} - must come before")
        return self.table.chains[name]

    def _user_chain(self, name: str) -> Chain:
        chain = self._chain(name)
        if chain.builtin:
            msg = f"chain {name} is built-in"
            raise BadInput(msg)
        return chain

    def _user_chains(self) -> list[Chain]:
        return sorted((c for c in self.table.chains.values() if not c.builtin), key=_by_name)

    def _rule(self, item: Append | Command) -> Rule:
        if item.words is not None:
            text, words = join([word.text for word in item.words]), list(item.words)
        else:
            assert isinstance(item, Append)  # noqa: S101 - a Command always has its words
            text = item.spec
            words = split(text, source=self.source, number=item.line, column=item.column)
        spec = Spec.of(words, self.family, Where(self.source, item.line))
        if spec.goto and spec.target and spec.target.name not in self.table.chains:
            msg = f"goto '{spec.target.name}' is not a chain"
            raise BadInput(msg)
        return Rule(text, Counters(*(item.counters or (0, 0))))

    def _command(self, item: Command) -> None:
        chains = self.table.chains
        verb = item.verb
        if verb == ":":
            self._declare(item)
        elif verb == "N":
            self._new(item.chain)
        elif verb == "P":
            self._set_policy(item, check_policy(item.argument))
        elif verb == "E":
            self._rename(self._user_chain(item.chain), item.argument)
        elif verb == "X":
            for chain in [self._user_chain(item.chain)] if item.chain else self._user_chains():
                self._delete_chain(chain)
        elif verb in "FZ":
            for chain in [self._chain(item.chain)] if item.chain else chains.values():
                if verb == "F":
                    chain.rules.clear()
                elif item.number is None:
                    chain.counters = Counters()
                    for rule in chain.rules:
                        rule.counters = Counters()
                else:
                    self._numbered(chain, item.number).counters = Counters()
        else:
            self._rule_command(item)

    def _declare(self, item: Command) -> None:
        chain = self.table.chains.get(item.chain)
        if chain is not None and not chain.builtin:
            msg = f"chain {item.chain} is declared twice"
            raise BadInput(msg)
        if chain is None:
            self._new(item.chain)
        if item.argument != "-":
            self._set_policy(item, item.argument)

    def _set_policy(self, item: Command, policy: str) -> None:
        chain = self._chain(item.chain)
        if not chain.builtin:
            msg = f"chain {item.chain} is user-defined and has no policy"
            raise BadInput(msg, hint="write - instead" if item.verb == ":" else "")
        chain.policy = policy
        chain.counters = Counters(*(item.counters or (0, 0)))

    def _new(self, name: str) -> Chain:
        if name in self.table.chains:
            msg = f"chain {name} exists already"
            raise BadInput(msg)
        chain = self.table.chains[check_new_chain(name)] = Chain(name)
        return chain

    def _rename(self, chain: Chain, name: str) -> None:
        self._new(name).rules = chain.rules
        del self.table.chains[chain.name]
        for rule, spec, target in self._jumps(chain.name):
            rule.spec = spec._replace(target=target._replace(name=name)).text()

    def _delete_chain(self, chain: Chain) -> None:
        if chain.rules:
            msg = f"chain {chain.name} is not empty"
            raise BadInput(msg)
        if any(self._jumps(chain.name)):
            msg = f"chain {chain.name} is in use: a rule jumps to it"
            raise BadInput(msg)
        del self.table.chains[chain.name]

    def _jumps(self, name: str) -> Iterator[tuple[Rule, Spec, Use]]:
        for chain in self.table.chains.values():
            for rule in chain.rules:
                spec = rule.parsed(self.family)
                if spec.target is not None and spec.target.name == name:
                    yield rule, spec, spec.target

    def _numbered(self, chain: Chain, number: int) -> Rule:
        if not 0 < number <= len(chain.rules):
            msg = f"chain {chain.name} has no such rule"
            raise BadInput(msg)
        return chain.rules[number - 1]

    def _rule_command(self, item: Command) -> None:
        chain, number = self._chain(item.chain), item.number
        rules = chain.rules
        if item.verb == "I":
            place = (number or 1) - 1
            if place > 0:
                self._numbered(chain, place)  # the rule before it
            rules.insert(place, self._rule(item))
            return
        if number is None:
            wanted = self._rule(item).parsed(self.family)
            same = (i for i, rule in enumerate(rules, 1) if rule.parsed(self.family) == wanted)
            number = next(same, 0)
        self._numbered(chain, number)
        if item.verb == "R":
            rules[number - 1] = self._rule(item)
        elif item.verb == "D":
            del rules[number - 1]


def _by_name(chain: Chain) -> bytes:
    return chain.name.encode("utf-8", "surrogateescape")
