"""The rules that are running, as a policy file for both families.

The policy is what its owner would have written: rules and chains of other programs
(:mod:`nfctl.control.ownership`) stay out of it, as applying it leaves them where they are. A rule
that both families have stands there once; the order of each family's rules is kept. Planned on
the same host the text comes to nothing. That is tried before it is given away: a few extensions
of iptables print what they do not read as the same again.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.control import sets
from nfctl.control.change import DELETE, KEPT
from nfctl.control.journal.records import check_name
from nfctl.control.ownership import Ownership
from nfctl.control.planner import FamilySide, Planner
from nfctl.errors import Unsupported
from nfctl.kernel import ipset_save
from nfctl.kernel.ipset_types import TYPES
from nfctl.policy import reading
from nfctl.policy.families import BOTH, SETS, Names, told
from nfctl.policy.wanted import DEFAULT_NAME, Wanted, WantedChain, WantedTable
from nfctl.policy.yamltext import key, quoted, scalar
from nfctl.ruleset.diff import Block, common
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import split
from nfctl.services.names import Names as ServiceNames
from nfctl.text import several, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nfctl.control.change import Change
    from nfctl.control.journal.records import Record
    from nfctl.control.live import Live
    from nfctl.control.planning import TablePlan
    from nfctl.kernel.ipset_save import SavedSet

_FAMILY: Final = {4: "ipv4", 6: "ipv6"}
# what a policy's rules must not hold: bytes that are no UTF-8, control characters but the tab
_UNFIT: Final = re.compile("[\0-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_PROTOCOL: Final = re.compile(r"(^|! )-p (icmp|ipv6-icmp)(?= |$)")
_NUMBERS: Final = {"icmp": "0x01", "ipv6-icmp": "0x3a"}
_FILLING: Final = frozenset({"--add-set", "--del-set"})
_OF_IPV4: Final = frozenset({"bitmap:ip", "bitmap:ip,mac"})
_WITHOUT_FAMILY: Final = _OF_IPV4 | {"bitmap:port", "hash:mac", "list:set"}
#: Options of sets that the kernel chooses, or that everybody has.
_USUAL: Final = {"maxelem": "65536", "bucketsize": "12"}
_CHOSEN: Final = frozenset({"hashsize", "initval"})
_OPTIONS: Final = frozenset(
    """
    timeout maxelem bucketsize netmask bitmask markmask size range counters comment skbinfo
    forceadd
    """.split()
)
_COUNTED: Final = re.compile(r" (?:packets|bytes) [0-9]+")
_TIMED: Final = re.compile(r" timeout [1-9]")
_LISTED: Final = 4
_ATTEMPTS: Final = 3


@dataclass(slots=True)
class _Chain:
    """A chain as each family has it that has one."""

    name: str
    rules: dict[int, list[str]] = field(default_factory=dict)
    policies: dict[int, str] = field(default_factory=dict)
    kept: Counter[str] = field(default_factory=Counter)


class Written(NamedTuple):
    """The text of a policy, and the rules that it does not say as the kernel has them."""

    text: str
    others: list[str]


def policy(
    families: Sequence[int] = BOTH, *, name: str = DEFAULT_NAME, others: Sequence[Record] = ()
) -> Written:
    """Write the running rules of these families as a YAML policy.

    ``others`` are the records of other policies on this host, whose rules stay out. Raises
    Unsupported for what no policy file can say.
    """
    check_name(name)
    others = [record for record in others if record.name != name]
    text, differing = "", [""]
    for _ in range(_ATTEMPTS):  # the rules may be changed meanwhile
        text = _Writer(families, name, _Live(families, others)).text()
        wanted = reading.parse(text.encode(), "<from-live>")
        planner = Planner(wanted, others=others)
        differing = list(_differing(planner.change(planner.plan())))
        if not differing:
            break
    if differing:
        warning = "# iptables prints these rules as others than they are, which they would become:"
        rules = "\n".join(f"#   {rule}" for rule in differing)
        text = f"{warning}\n{rules}\n{text}"
    return Written(text, differing)


def _differing(change: Change) -> Iterator[str]:
    """Yield the rules that are not the same when they are read again."""
    for table, chain in change.chains():
        for line in chain.lines:
            if line.kind == DELETE:
                rule = visible(f"-A {chain.name} {line.spec}")
                yield f"{table.table} (IPv{table.family}): {rule}"


class _Live:
    """What is running, without what is others'."""

    def __init__(self, families: Sequence[int], others: Sequence[Record]) -> None:
        self.families = families
        self.tables: dict[str, dict[str, _Chain]] = {}
        self.left: dict[str, list[str]] = {}  # chains of others, by owner
        self._owned, self._policies = _claims(others)
        self._ownership = Ownership()
        self._ownership.services += [
            (ServiceNames(record.prefix), f"policy {record.name}")
            for record in others
            if record.prefix
        ]
        # planned to be empty, all that is not others' would go
        sides = {family: FamilySide(family) for family in families}
        nothing = Wanted(tables={family: self._emptied(side) for family, side in sides.items()})
        for plan in Planner(nothing, others=others).plan(sides).tables:
            self._take(plan)

    def _emptied(self, side: FamilySide) -> dict[str, WantedTable]:
        return {
            live.table: WantedTable(
                {
                    name: WantedChain()
                    for name in live.chains
                    if name in BUILTIN_CHAINS[live.table] or not self._is_of_others(live, name)
                }
            )
            for live in side.read_all()
        }

    def _is_of_others(self, live: Live, chain: str) -> bool:
        owner = self._ownership.chain_owner(chain)
        owner = owner or self._owned.get((live.family, live.table, chain), "")
        if owner and chain not in self.left.setdefault(owner, []):
            self.left[owner].append(chain)
        return bool(owner)

    def _take(self, plan: TablePlan) -> None:
        live, family = plan.live, plan.live.family
        chains: dict[str, _Chain] = {}
        used = False
        for name, chain_plan in plan.chains.items():
            chain = chains[name] = _Chain(name)
            rules = chain.rules[family] = []
            specs = live.specs(name)
            for kind, at, _, count in chain_plan.merge.runs:
                if kind == KEPT:
                    chain.kept.update(
                        chain_plan.merge.owners[index] for index in range(at, at + count)
                    )
                else:
                    rules += specs[at : at + count]
            self._check(live, name, rules)
            verdict = live.chains[name].policy
            used = used or bool(rules) or verdict != "ACCEPT"
            settled = (family, live.table, name) in self._policies
            if verdict is not None and not settled and (live.table, verdict) != ("nat", "DROP"):
                chain.policies[family] = verdict
        if not used:
            return
        table = self.tables.setdefault(live.table, {})
        for name, chain in chains.items():
            known = table.setdefault(name, chain)
            known.rules |= chain.rules
            known.policies |= chain.policies
            if known is not chain:
                known.kept += chain.kept

    def _check(self, live: Live, chain: str, rules: Iterable[str]) -> None:
        for text in (chain, *rules):
            if _UNFIT.search(text):
                msg = f"chain {visible(chain)} of table {live.table} (IPv{live.family}) holds what"
                msg = f"{msg} is no text: {visible(text)}"
                raise Unsupported(msg, hint="a policy file cannot; nfctl save can")


def _claims(
    others: Sequence[Record],
) -> tuple[dict[tuple[int, str, str], str], set[tuple[int, str, str]]]:
    """Return the user-defined chains of other policies, and the chains whose policy they set."""
    owned: dict[tuple[int, str, str], str] = {}
    policies: set[tuple[int, str, str]] = set()
    for record in others:
        for family, tables in record.wanted().tables.items():
            for table, what in tables.items():
                for name, chain in what.chains.items():
                    if name not in BUILTIN_CHAINS[table]:
                        owned[family, table, name] = f"policy {record.name}"
                    elif chain.policy is not None:
                        policies.add((family, table, name))
    return owned, policies


# --- text ---------------------------------------------------------------------------------------


class _Writer:
    """Writes YAML, in the order of tables, chains and rules."""

    def __init__(self, families: Sequence[int], name: str, live: _Live) -> None:
        self.families = families
        self.name = name
        self.live = live
        self.lines: list[str] = []
        self._sets: dict[str, SavedSet] = {}
        self._names = Names((), {}, {})

    def text(self) -> str:
        """Return the whole policy."""
        add = self.lines.append
        add("# What was running when nfctl policy from-live wrote this.")
        for owner, chains in sorted(self.live.left.items()):
            listed = ", ".join(sorted(chains)[:_LISTED]) + ", ..." * (len(chains) > _LISTED)
            add(f"# {visible(owner)}: {several(len(chains), 'chain')} left out, {visible(listed)}")
        if self.live.left:
            add("# Applying this policy leaves those as they are.")
        add("version: 1")
        if self.name != DEFAULT_NAME:
            add(f"name: {key(self.name)}")
        if len(self.families) == 1:
            add(f"families: [{_FAMILY[self.families[0]]}]")
        self._find_sets()
        if self._sets:
            add("")
            add("sets:")
            for one in self._sets.values():
                self._set(one)
        if self.live.tables:
            add("")
            add("tables:")
            for table in TABLES:
                if table in self.live.tables:
                    self._table(table, self.live.tables[table])
        return "\n".join(self.lines) + "\n"

    # --- sets ---------------------------------------------------------------------------------

    def _find_sets(self) -> None:
        """Find the sets that the rules name, and those that are in them."""
        named: set[str] = set()
        self._filled: set[str] = set()
        for chain in (chain for table in self.live.tables.values() for chain in table.values()):
            for spec in (spec for rules in chain.rules.values() for spec in rules):
                if "-set " not in spec:
                    continue
                words = [word.text for word in split(spec)]
                for index in option_places(words):
                    if words[index] in SETS and index + 1 < len(words):
                        named.add(words[index + 1])
                        if words[index] in _FILLING:
                            self._filled.add(words[index + 1])
        while missing := named - self._sets.keys():
            found = {one.name: one for one in ipset_save.parse(sets.saved(sorted(missing)))}
            self._sets |= found
            named = {entry.split(" ")[0] for one in found.values() for entry in _members(one)}
        self._sets = dict(sorted(self._sets.items()))

    def _set(self, one: SavedSet) -> None:
        add = self.lines.append
        entries = [_COUNTED.sub("", entry) for entry in one.entries]
        if not _is_sayable(one):
            add(f"  # {visible(one.name)}: what it is cannot be said here, so it stays as it is")
            return
        add(f"  {key(one.name)}:")
        add(f"    type: {one.type}")
        if one.family and one.type not in _WITHOUT_FAMILY:
            add(f"    family: {_FAMILY[one.family]}")
        for name, value in _options(one).items():
            add(f"    {name}: {value or 'true'}")
        if one.name in self._filled or any(map(_TIMED.search, entries)):
            add("    # its entries come and go, so they are not written down")
        elif not entries:
            add("    entries: []")
        else:
            add("    entries:")
            self.lines += [f"      - {scalar(entry)}" for entry in entries]

    # --- rules --------------------------------------------------------------------------------

    def _table(self, table: str, chains: dict[str, _Chain]) -> None:
        self.lines.append(f"  {table}:")
        of_chain = {
            name: tuple(sorted(chain.rules))
            for name, chain in chains.items()
            if len(chain.rules) < len(self.families)
        }
        families = {
            one.name: {one.family or 4: one.name}
            for one in self._sets.values()
            if _is_sayable(one) and (one.type not in _WITHOUT_FAMILY or one.type in _OF_IPV4)
        }
        self._names = Names(chains, of_chain, families)
        for name, chain in chains.items():
            self.lines.append(f"    {key(name)}:")
            self._chain(chain)

    def _chain(self, chain: _Chain) -> None:
        add = self.lines.append
        own = [*chain.rules]
        if len(own) < len(self.families):
            add(f"      family: {_FAMILY[own[0]]}")
        verdicts = {family: verdict.lower() for family, verdict in chain.policies.items()}
        if len(set(verdicts.values())) == 1 and len(verdicts) == len(own):
            add(f"      policy: {next(iter(verdicts.values()))}")
        elif verdicts:
            each = ", ".join(f"{_FAMILY[family]}: {word}" for family, word in verdicts.items())
            add(f"      policy: {{{each}}}")
        for owner, count in sorted(chain.kept.items()):
            add(f"      # {several(count, 'rule')} of {visible(owner)} left out, which stay")
        rules = list(self._merged(chain))
        if rules:
            add("      rules:")
            self.lines += [f"        - {rule}" for rule in rules]
        elif not verdicts:
            add("      rules: []")

    def _merged(self, chain: _Chain) -> Iterator[str]:
        """Yield the items of a chain's list: what both families have in common once."""
        if len(chain.rules) < 2:
            for family, specs in chain.rules.items():
                for spec in specs:
                    yield self._item(spec, [family], chain)
            return
        one, other = chain.rules[4], chain.rules[6]
        # a rule that the words bind to a family is another one in the other
        pairs = [[(spec, self._told(spec)) for spec in specs] for specs in (one, other)]
        keys = [
            [spec if not bound else (family, spec) for spec, bound in found]
            for family, found in zip(BOTH, pairs, strict=True)
        ]
        at = beside = 0
        for first, second, count in [*common(*keys), Block(len(one), len(other), 0)]:
            for spec in one[at:first]:
                yield self._item(spec, [4], chain)
            for spec in other[beside:second]:
                yield self._item(spec, [6], chain)
            for spec in one[first : first + count]:
                yield self._item(spec, BOTH, chain)
            at, beside = first + count, second + count

    def _told(self, spec: str) -> set[int]:
        """Return the families that a rule's own words say."""
        return {sign.family for sign in told(spec, [w.text for w in split(spec)], self._names)}

    def _item(self, spec: str, families: Sequence[int], chain: _Chain) -> str:
        """Return a rule as an item of a list, with its family if it does not say it itself."""
        if self._told(spec) - set(families):
            # ICMP's number in IPv6, or the other way round, is a protocol as any other
            spec = _PROTOCOL.sub(lambda found: f"{found[1]}-p {_NUMBERS[found[2]]}", spec)
        bound = self._told(spec)
        text = spec.replace("${", "$${")
        if len(families) == len(chain.rules) or bound == set(families):
            return scalar(text)
        return f"{{family: {_FAMILY[families[0]]}, rule: {quoted(text)}}}"


def _options(one: SavedSet) -> dict[str, str]:
    return {
        name: value
        for name, value in one.options.items()
        if name not in _CHOSEN and _USUAL.get(name) != value
    }


def _is_sayable(one: SavedSet) -> bool:
    """Whether a policy file can say all about a set."""
    texts = [one.name, *one.options.values(), *one.entries]
    return (
        one.type in TYPES and set(_options(one)) <= _OPTIONS and not any(map(_UNFIT.search, texts))
    )


def _members(one: SavedSet) -> list[str]:
    return one.entries if one.type == "list:set" else []
