"""Tables, chains and rules as objects, and iptables-save text from and to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Where
from nfctl.ruleset.names import BUILTIN_CHAINS, check_new_chain, check_policy
from nfctl.ruleset.script import Append, Command, Script, Section
from nfctl.ruleset.script import parse as parse_script
from nfctl.ruleset.spec import Spec
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
        """Return what a script leaves in tables that were empty before."""
        ruleset = cls(family)
        for section in script.sections:
            table = ruleset.tables.setdefault(section.table, Table.empty(section.table))
            _Replay(table, family, script.source).run(section)
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
        others = sorted((c for c in self.table.chains.values() if not c.builtin), key=_by_name)
        self.table.chains = {chain.name: chain for chain in [*builtin, *others]}

    def _chain(self, name: str) -> Chain:
        if name not in self.table.chains:
            msg = f"table {self.table.name} has no chain {name}"
            raise BadInput(msg, hint=f"a line :{name} - must come before")
        return self.table.chains[name]

    def _rule(self, item: Append | Command) -> Rule:
        if item.words is not None and not (isinstance(item, Append) and item.spec):
            text = join([word.text for word in item.words])
            column = 1
        else:
            assert isinstance(item, Append)  # noqa: S101 - a Command always has its words
            text, column = item.spec, item.column
        words = split(text, source=self.source, number=item.line, column=column)
        spec = Spec.of(words, self.family, Where(self.source, item.line))
        self._check_target(spec)
        return Rule(text, Counters(*(item.counters or (0, 0))))

    def _check_target(self, spec: Spec) -> None:
        if spec.goto and spec.target and spec.target.name not in self.table.chains:
            msg = f"goto '{spec.target.name}' is not a chain"
            raise BadInput(msg)

    def _command(self, item: Command) -> None:
        chains = self.table.chains
        verb = item.verb
        if verb == ":":
            self._declare(item)
        elif verb == "N":
            self._new(item.chain)
        elif verb == "P":
            self._chain(item.chain).policy = check_policy(item.argument)
        elif verb == "E":
            chain = self._chain(item.chain)
            self._new(item.argument).rules = chain.rules
            del chains[item.chain]
        elif verb in "FXZ":
            names = [item.chain] if item.chain else list(chains)
            for name in names:
                self._sweep(verb, self._chain(name), item)
        else:
            self._rule_command(item)

    def _declare(self, item: Command) -> None:
        chain = self.table.chains.get(item.chain)
        if chain is None:
            chain = self._new(item.chain)
        elif not chain.builtin:
            chain.rules.clear()
        if item.argument != "-":
            if not chain.builtin:
                msg = f"chain {item.chain} is user-defined and has no policy"
                raise BadInput(msg, hint="write - instead")
            chain.policy = item.argument
            chain.counters = Counters(*(item.counters or (0, 0)))

    def _new(self, name: str) -> Chain:
        if name in self.table.chains:
            msg = f"chain {name} exists already"
            raise BadInput(msg)
        chain = self.table.chains[check_new_chain(name)] = Chain(name)
        return chain

    def _sweep(self, verb: str, chain: Chain, item: Command) -> None:
        if verb == "F":
            chain.rules.clear()
        elif verb == "X":
            if not chain.builtin:
                del self.table.chains[chain.name]
        else:
            for number, rule in enumerate(chain.rules, 1):
                if item.number in {None, number}:
                    rule.counters = Counters()

    def _rule_command(self, item: Command) -> None:
        rules = self._chain(item.chain).rules
        number = item.number
        if item.verb == "I":
            rules.insert((number or 1) - 1, self._rule(item))
            return
        if number is None:
            wanted = self._rule(item).spec
            number = next((i for i, rule in enumerate(rules, 1) if rule.spec == wanted), 0)
        if not 0 < number <= len(rules):
            msg = f"chain {item.chain} has no such rule"
            raise BadInput(msg)
        if item.verb == "R":
            rules[number - 1] = self._rule(item)
        elif item.verb == "D":
            del rules[number - 1]


def _by_name(chain: Chain) -> bytes:
    return chain.name.encode("utf-8", "surrogateescape")
