"""The chains of a table and where their rules lead: from iptables-save text, or from the kernel.

A rule leads to a chain by ``-j CHAIN`` (and may come back) or by ``-g CHAIN``, goto. In a file, a
rule may jump to a chain that is not there: such a chain is part of the graph too, as a missing
one. Loops cannot be in a kernel, but can be in a file.

The document of ``nfctl graph --json`` is a contract; keys are only ever added::

    {"family": 4, "source": null, "tables": [
      {"table": "nat", "counters": true, "roots": ["PREROUTING", "OUTPUT"],
       "unreferenced": ["OLD"], "looping": [],
       "groups": [{"name": "KUBE-SEP-*", "chains": 50000}],
       "chains": [
         {"name": "KUBE-SVC-XPGD46QRK7WJZT7O", "policy": null, "packets": null, "bytes": null,
          "present": true, "group": null, "rules": 3,
          "ends": [{"target": "MARK", "options": "--set-xmark 0x4000/0x4000", "rules": 1,
                    "packets": 0, "bytes": 0}],
          "jumps": [
            {"rule": 2, "to": "KUBE-SEP-IT2ZTR26TO4XFPTO", "goto": false,
             "condition": "-m statistic --mode random --probability 0.50000000000",
             "probability": 0.5, "packets": 7, "bytes": 420}]}]}]}

``source`` is the file's name, null for the kernel. ``roots`` are where the graph begins: the
built-in chains, or the chain that was asked for. ``unreferenced`` are the chains that no rule
jumps to; ``looping`` are the first ones met of those that only a loop leads to. ``policy`` is null
for a user-defined chain, ``present`` false for one that is not there, ``group`` the name of the
group of alike chains that the chain is folded into (null with ``--all``, or if it is shown on its
own). ``rules`` counts the rules of the chain, all of them; of the ways to a chain (``--to``),
``jumps`` and ``ends`` are only what belongs to one. ``ends`` counts the rules that jump nowhere,
by their target ("" for none) and its options; ``rule`` is a rule's number in its chain, from 1.
``probability`` is null where chance plays no part; ``packets`` and ``bytes`` are null in a file
without counters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Where
from nfctl.jumps.families import of_family
from nfctl.jumps.layers import turned
from nfctl.ruleset.model import Ruleset
from nfctl.ruleset.names import BUILTIN_CHAINS, VERDICTS
from nfctl.ruleset.script import Append, Command, Script, Section, parse
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import join, split
from nfctl.traversal.picture import jump_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.ruleset.model import Table

Pair = tuple[int, int]  # packets, bytes

#: Target extensions, by iptables-extensions(8) and xtables-addons(8): what no chain is called.
TARGETS = frozenset(
    """
    ACCOUNT AUDIT CHAOS CHECKSUM CLASSIFY CLUSTERIP CONNMARK CONNSECMARK CT DELUDE DHCPMAC DNAT
    DNETMAP DNPT DSCP ECHO ECN HL HMARK IDLETIMER IPMARK LED LOG LOGMARK MARK MASQUERADE MIRROR
    NETMAP NFLOG NFQUEUE NOTRACK PROTO RATEEST REDIRECT REJECT RTPENGINE SAME SECMARK SET SNAT SNPT
    SYNPROXY SYSRQ TARPIT TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL ULOG
    """.split()
).union(VERDICTS)

_JUMPS = {"-j": False, "--jump": False, "-g": True, "--goto": True}
_CONDITIONS = frozenset(
    """
    -s --source --src -d --destination --dst -i --in-interface -o --out-interface -p --protocol
    -m --match -f --fragment --fragments
    """.split()
)
# conditions may stand behind a target, too
_BEHIND = re.compile(
    r"(?:^| )(?:!|-[a-z]|--(?:match|protocol|source|src|destination|dst|in-interface"
    r"|out-interface|fragments?))(?: |$)"
)
_LONG_JUMP = re.compile(r"(?:^| )-(?:[jg]|-j|-go)")


class Rule(NamedTuple):
    """A rule, cut where it jumps. ``target`` is a chain, a verdict, an extension, or ""."""

    number: int  # in its chain, from 1
    condition: str  # the words before the target, as iptables-save prints them
    target: str
    options: str  # the target's
    goto: bool
    counters: Pair | None


@dataclass(slots=True)
class Chain:
    """A chain: ``policy`` is None for a user-defined one; a missing one is not ``present``."""

    name: str
    policy: str | None = None
    counters: Pair | None = None
    rules: list[Rule] = field(default_factory=list)
    present: bool = True
    left_out: int = 0  # rules that are no part of the graph: of ways to a chain

    @property
    def size(self) -> int:
        """How many rules the chain has."""
        return len(self.rules) + self.left_out


@dataclass(slots=True)
class Graph:
    """The chains of a table, and those where one should begin to look."""

    table: str
    family: int
    chains: dict[str, Chain]
    roots: list[str] = field(default_factory=list)
    start: str = ""  # the chain that was asked for
    to: str = ""  # the chain that ways lead to

    @property
    def counted(self) -> bool:
        """Whether rules have counters; where there are no rules, whether policies counted."""
        chains = self.chains.values()
        first = [rule.counters for chain in chains for rule in chain.rules[:1]]
        if not first:
            return any(chain.counters not in {None, (0, 0)} for chain in chains)
        return any(counters is not None for counters in first)

    @property
    def own(self) -> int:
        """How many user-defined chains there are."""
        return sum(chain.policy is None and chain.present for chain in self.chains.values())

    @property
    def rules(self) -> int:
        """How many rules there are in all chains."""
        return sum(chain.size for chain in self.chains.values())

    def ways(self) -> dict[str, list[str]]:
        """Return the chains that each chain leads to, each once, in the order of its rules."""
        chains = self.chains
        ways = {}
        for name, chain in chains.items():
            targets = [rule.target for rule in chain.rules if rule.target in chains]
            ways[name] = targets if len(targets) < 2 else list(dict.fromkeys(targets))
        return ways

    def leading(self, start: str | None, to: str | None = None) -> Graph:
        """Return the part that begins at one chain, or the ways that lead to one, or both.

        Of ways to a chain, only the jumps that are part of one are kept.
        """
        ways = self.ways()
        kept = set(self.chains) if start is None else reached(ways, [start])
        if to is None:
            chains = {name: self.chains[name] for name in self.chains if name in kept}
            roots = [start] if start else self.roots
            return Graph(self.table, self.family, chains, roots, start or "")
        kept &= reached(turned(ways), [to])
        chains = {}
        for name, chain in self.chains.items():
            if name in kept:
                # the last chain of all ways keeps what becomes of packets there
                rules = [
                    rule
                    for rule in chain.rules
                    if (rule.target not in self.chains if name == to else rule.target in kept)
                ]
                chains[name] = Chain(
                    name, chain.policy, chain.counters, rules, chain.present,
                    len(chain.rules) - len(rules),
                )  # fmt: skip
        roots = [start] if start else [name for name in self.roots if name in kept]
        return Graph(self.table, self.family, chains, roots, start or "", to)


def reached(ways: dict[str, list[str]], starts: Iterable[str]) -> set[str]:
    """Return the chains that can be reached from others, those included."""
    waiting = list(starts)
    found = set(waiting)
    while waiting:
        for name in ways[waiting.pop()]:
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


# --- reading ------------------------------------------------------------------------------------


def read(text: str, *, source: str, family: int = 0) -> dict[str, Graph]:
    """Return the tables of iptables-save text, as iptables-restore would leave them.

    ``family`` 0 is that of the text; of a text of both, the tables of one are read. Raises
    BadInput with file, line and column.
    """
    script = parse(text, source=source, family=family or 4)
    sections, family = of_family(script, text, family)
    items = (item for section in sections for item in section.items)
    if any(type(item) is Command and item.verb != ":" for item in items):
        found = Ruleset.of(script._replace(sections=sections), family=family)
        return {table.name: of_table(table, family, counted="[" in text) for table in found}
    graphs: dict[str, Graph] = {}
    for section in sections:
        graphs[section.table] = _of_section(section, script, family, graphs.get(section.table))
    return graphs


def of_table(table: Table, family: int, *, counted: bool = True) -> Graph:
    """Return the graph of a table that was read from the kernel."""
    chains = {}
    for chain in table.chains.values():
        count: Pair | None = (chain.counters.packets, chain.counters.bytes)
        found = Chain(chain.name, chain.policy, count if chain.builtin else None)
        for number, rule in enumerate(chain.rules, 1):
            try:
                cut = _cut(rule.spec)
            except BadInput:  # an interface's name may hold a quote, which iptables-save leaves
                cut = rule.spec, jump_target(rule.spec), "", False
            count = (rule.counters.packets, rule.counters.bytes) if counted else None
            found.rules.append(Rule(number, *cut, count))
        chains[chain.name] = found
    return _finished(Graph(table.name, family, chains))


def _of_section(section: Section, script: Script, family: int, before: Graph | None) -> Graph:
    chains = {name: Chain(name, "ACCEPT") for name in BUILTIN_CHAINS[section.table]}
    if before is not None:
        for name, chain in chains.items():
            chain.policy = before.chains[name].policy
    new, behind = tuple.__new__, _BEHIND.search  # a NamedTuple's own constructor is slow
    current = ""
    rules: list[Rule] = []
    for item in section.items:
        if isinstance(item, Command):
            _declare(section, chains, item, script.source)
            continue
        chain_name, spec, counters, line, column, words = item
        if chain_name != current:
            if chain_name not in chains:
                msg = f"table {section.table} has no chain {chain_name}"
                hint = f"a line :{chain_name} - [0:0] must come before"
                raise BadInput(msg, hint=hint, where=Where(script.source, line, 1))
            current, rules = chain_name, chains[chain_name].rules
        # what nearly every line is: "... -j TARGET --options"
        at = spec.rfind(" -j ")
        target, more, options = spec[at + 4 :].partition(" ")
        if (
            at <= 0
            or words is not None
            or '"' in target
            or target[:1] == "-"
            or spec.count('"') & 1  # one is never closed, or protected by a backslash
            or "\\" in spec
            or (more and ('"' in options or behind(options)))
        ):
            cut = _cut_item(item, script.source, column)
            rules.append(new(Rule, (len(rules) + 1, *cut, counters)))
            continue
        rules.append(new(Rule, (len(rules) + 1, spec[:at], target, options, False, counters)))
    return _finished(Graph(section.table, family, chains))


def _declare(section: Section, chains: dict[str, Chain], item: Command, source: str) -> None:
    where = Where(source, item.line, item.column)
    chain = chains.get(item.chain)
    if chain is None:
        chain = chains[item.chain] = Chain(item.chain)
    elif item.chain not in BUILTIN_CHAINS[section.table]:
        msg = f"chain {item.chain} is declared twice"
        raise BadInput(msg, where=where)
    else:
        chain.counters = item.counters
    if item.argument != "-":
        if chain.policy is None:
            msg = f"chain {item.chain} is user-defined and has no policy"
            raise BadInput(msg, hint="write - instead", where=where)
        chain.policy = item.argument


def _finished(graph: Graph) -> Graph:
    """Add the chains that are jumped to and not there."""
    chains = graph.chains
    graph.roots = [name for name, chain in chains.items() if chain.policy is not None]
    targets = {rule.target for chain in chains.values() for rule in chain.rules}
    odd = targets.difference(chains, TARGETS, [""])
    missing = {
        rule.target: None
        for chain in chains.values()
        if odd
        for rule in chain.rules
        if rule.target in odd and (rule.goto or not rule.options)
    }
    for name in missing:
        chains[name] = Chain(name, present=False)
    return graph


# --- one rule -----------------------------------------------------------------------------------


def _cut_item(item: Append, source: str, column: int) -> tuple[str, str, str, bool]:
    try:
        return _cut(item.spec, None if item.words is None else [w.text for w in item.words])
    except BadInput as error:
        at = column + error.where.column - 1 if error.where else column
        error.where = Where(source, item.line, at)
        raise


def _cut(spec: str, words: Sequence[str] | None = None) -> tuple[str, str, str, bool]:
    """Cut a specification: condition, target, the target's options, and whether it is a goto.

    Quickly where it is as iptables-save prints it; ``words`` are the specification's where it
    is not.
    """
    if words is None and "\\" not in spec and not spec.count('"') & 1:
        for letter, goto in ((" -j ", False), (" -g ", True)):
            at = f" {spec}".rfind(letter)
            if at >= 0:
                target, _, options = spec[at + 3 :].partition(" ")
                plain = target[:1] not in {"", "-"} and '"' not in target + options
                if plain and not _BEHIND.search(options):
                    return spec[: max(at - 1, 0)], target, options, goto
                break
        else:
            if not _LONG_JUMP.search(spec):
                return spec, "", "", False
    if words is None:
        words = [word.text for word in split(spec, source="<rule>", number=1)]
    return _cut_words(words)


def _cut_words(words: Sequence[str]) -> tuple[str, str, str, bool]:
    target, goto = "", False
    condition: list[str] = []
    options: list[str] = []
    into = condition
    places = set(option_places(words))
    at = 0
    while at < len(words):
        word = words[at]
        if at in places:
            if word in _JUMPS:
                if at + 1 == len(words):
                    msg = f'option "{word}" requires an argument'
                    raise BadInput(msg)
                target, goto = words[at + 1], _JUMPS[word]
                into, at = options, at + 2
                continue
            after = words[at + 1 : at + 2]
            if word in _CONDITIONS or (word == "!" and after and after[0] in _CONDITIONS):
                into = condition
        into.append(word)
        at += 1
    return join(condition), target, join(options), goto
