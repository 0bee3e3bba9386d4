"""What is drawn of a graph: a node for a chain, or one for many chains that are alike.

Chains are alike if their names begin alike, and if they have the same kinds of rules: the same
matches and options (with any values), the same targets, and jumps to the same chain or to chains
that are alike themselves. So the ten thousand KUBE-SVC-... of a cluster are one node, with jumps
to the node that their endpoints' chains are. How many rules there are of each kind may differ.

A group is made from :data:`ALIKE` chains on, and only in a graph that is more than a screenful
(:data:`SCREENFUL` jumps and roots): what is small is shown as it is. Counters are summed. Chains
that are reached, chains that nobody jumps to, and chains that only those lead to are never mixed.
Chains in a loop stay on their own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.jumps import condition as conditions
from nfctl.jumps.condition import beginning, without_chance, without_comment
from nfctl.jumps.graph import reached
from nfctl.jumps.layers import layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from nfctl.jumps.graph import Chain, Graph, Pair, Rule

ALIKE: Final = 4
SCREENFUL: Final = 50

_COMPONENT = re.compile(r"[^-_.:/]*[-_.:/]+")
# targets whose options say where a packet goes
_TELLING: Final = {"DNAT": "to", "SNAT": "to", "NETMAP": "to", "REDIRECT": "to ports"}
_WHERE = re.compile(r"--to(?:-destination|-source|-ports)? ([^ ]+)")


class Edge(NamedTuple):
    """Jumps from a node to another: one rule's, or those of many that are of one kind."""

    to: Node
    goto: bool
    label: str  # the condition in few words, "" for none
    rules: int  # how many rules this is
    least: int  # in a chain of the node
    most: int
    chance: bool  # several, one of which is taken by chance
    counters: Pair | None


class End(NamedTuple):
    """Rules that jump to no chain: ``target`` is "" where they only count."""

    target: str
    where: str  # where packets are sent to
    rules: int
    counters: Pair | None


@dataclass(slots=True, eq=False)
class Node:
    """A chain, or chains that are alike; ``chain`` is the first of them."""

    name: str
    chain: Chain
    names: list[str]
    counters: Pair | None = None  # of the policy
    edges: list[Edge] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    size: int = 0  # rules in all of its chains

    @property
    def builtin(self) -> bool:
        """Whether this is a built-in chain."""
        return self.chain.policy is not None

    @property
    def alike(self) -> int:
        """How many chains this stands for."""
        return len(self.names)


@dataclass(slots=True)
class View:
    """The nodes of a graph in the order of its chains, and where to begin drawing."""

    graph: Graph
    nodes: list[Node]
    roots: list[Node]
    unreferenced: list[Node]  # that nobody jumps to, and that are no roots
    looping: list[Node]  # the first ones of those that only a loop leads to
    folded: bool  # whether there is a group


def view(graph: Graph, *, fold: bool = True, keep: Collection[str] = ()) -> View:
    """Work out the nodes. ``keep`` names chains that are to have a node each; roots have one."""
    ways = graph.ways()
    standing = _Standing(graph, ways)
    fold = fold and len(standing.starts) + _jumps(graph, ways) > SCREENFUL
    folder = _Folder(graph, {*keep, *graph.roots}, standing.of)
    groups = folder.groups(ways) if fold else [[name] for name in graph.chains]
    place = {name: number for number, name in enumerate(graph.chains)}
    groups.sort(key=lambda names: place[names[0]])
    nodes = []
    for names in groups:
        shown = names[0] if len(names) == 1 else _pattern(names)
        nodes.append(Node(shown, graph.chains[names[0]], names))
    _tell_apart([node for node in nodes if node.alike > 1])
    node_of = {name: node for node in nodes for name in node.names}
    counted = graph.counted
    for node in nodes:
        node.counters = node.chain.counters if counted else None
        _fill(node, graph, node_of, folder if fold else None)

    def of(names: Collection[str]) -> list[Node]:
        return list(dict.fromkeys(node_of[name] for name in names))

    return View(graph, nodes, of(graph.roots), of(standing.unreferenced), of(standing.looping),
                len(nodes) < len(graph.chains))  # fmt: skip


def _jumps(graph: Graph, ways: dict[str, list[str]]) -> int:
    """Return how many rules lead to a chain, or as many as are more than enough."""
    least = sum(map(len, ways.values()))
    if least > SCREENFUL:
        return least
    return sum(rule.target in ways for chain in graph.chains.values() for rule in chain.rules)


class _Standing:
    """Which chains are reached from the roots, which nobody jumps to, and the rest."""

    def __init__(self, graph: Graph, ways: dict[str, list[str]]) -> None:
        jumped_to = {target for targets in ways.values() for target in targets}
        roots = set(graph.roots)
        found = reached(ways, roots)
        self.unreferenced = [n for n in ways if n not in jumped_to and n not in roots]
        led = reached(ways, self.unreferenced)
        self.looping = []
        seen = found | led
        for name in ways:
            if name not in seen:
                self.looping.append(name)
                seen |= reached(ways, [name])
        apart = set(self.unreferenced)
        self.of = {n: 0 if n in found else 1 if n in apart else 2 for n in ways}
        self.starts = [*graph.roots, *self.unreferenced, *self.looping]


# --- which chains are alike -----------------------------------------------------------------------


#: What is alike in rules: what they look at, the target (a group's number, or a verdict's name),
#: and whether it is a goto.
_Kind = tuple[str, int | str, bool]


class _Folder:
    def __init__(self, graph: Graph, keep: set[str], standing: dict[str, int]) -> None:
        self.graph = graph
        self.keep = keep
        self.standing = standing
        self.group_of: dict[str, int] = {}
        self.found: list[list[str]] = []
        self._looks: dict[str, str] = {}
        self._kinds: dict[str, list[_Kind]] = {}

    def groups(self, ways: dict[str, list[str]]) -> list[list[str]]:
        """Return the chains in groups, those they lead to first."""
        place = {name: number for number, name in enumerate(self.graph.chains)}
        for layer, loops in layers(ways):
            alike: dict[object, list[str]] = {}
            for name in sorted(layer, key=place.__getitem__):
                key = name if loops or name in self.keep else self._shape(name)
                alike.setdefault(key, []).append(name)
            for names in alike.values():
                if len(names) >= ALIKE:
                    self._add(names)
                else:
                    for name in names:
                        self._add([name])
        return self.found

    def _add(self, names: list[str]) -> None:
        number = len(self.found)
        self.found.append(names)
        for name in names:
            self.group_of[name] = number

    def _shape(self, name: str) -> tuple[object, ...]:
        chain = self.graph.chains[name]
        return (_stem(name), chain.present, self.standing[name], *dict.fromkeys(self.kinds(name)))

    def kinds(self, name: str) -> list[_Kind]:
        """Return the kinds of a chain's rules, once what they lead to is in groups.

        Dice make no kind of their own: the last of several taken by chance has none.
        """
        kinds = self._kinds.get(name)
        if kinds is None:
            group, looks = self.group_of.get, self._looks
            kinds = self._kinds[name] = []
            for rule in self.graph.chains[name].rules:
                text = without_comment(rule.condition)
                found = looks.get(text)
                if found is None:
                    found = looks[text] = conditions.kinds(without_chance(text))
                kinds.append((found, group(rule.target, rule.target), rule.goto))
        return kinds


# --- names ----------------------------------------------------------------------------------------


def _stem(name: str) -> str:
    """Return how a chain's name begins: KUBE-SVC- of KUBE-SVC-XPGD46QRK7WJZT7O, web of web12."""
    first = _COMPONENT.match(name)
    if first is None:
        return name.rstrip("0123456789")
    second = _COMPONENT.match(name, first.end())
    return name[: (second or first).end()]


def _pattern(names: list[str]) -> str:
    """Return what names have in common, whole words of it, and an asterisk."""
    start = beginning(names)
    stem = _stem(names[0])
    end = max((found.end() for found in _COMPONENT.finditer(start)), default=0)
    return (start[:end] if end >= len(stem) else stem) + "*"


def _tell_apart(nodes: list[Node]) -> None:
    """Give groups of one name a number."""
    met: Counter[str] = Counter()
    for node in nodes:
        name = node.name
        met[name] += 1
        if met[name] > 1:
            node.name = f"{name}#{met[name]}"


# --- edges and ends -------------------------------------------------------------------------------


class _Sum(NamedTuple):
    """Rules of one kind, and how many of them there are in each chain."""

    rules: list[Rule]
    counts: list[int]


def _fill(node: Node, graph: Graph, node_of: dict[str, Node], folder: _Folder | None) -> None:
    """Work out the edges and ends of a node."""
    ends: dict[str, list[Rule]] = {}
    sums: dict[_Kind, _Sum] = {}
    for name in node.names:
        rules = graph.chains[name].rules
        node.size += graph.chains[name].size
        here: dict[_Kind, list[Rule]] = {}
        kinds = folder.kinds(name) if folder is not None else None
        for number, rule in enumerate(rules):
            if rule.target not in node_of:
                ends.setdefault(rule.target, []).append(rule)
            elif kinds is None:
                node.edges.append(_one(rule, node_of[rule.target]))
            else:
                here.setdefault(kinds[number], []).append(rule)
        for kind, alike in here.items():
            found = sums.get(kind)
            if found is None:
                found = sums[kind] = _Sum([], [])
            found.rules.extend(alike)
            found.counts.append(len(alike))
    node.ends = [_end(target, rules) for target, rules in ends.items()]
    edges: list[tuple[int, Edge]] = []
    for found in sums.values():
        to = node_of[found.rules[0].target]
        if len(found.rules) < ALIKE and to.alike == node.alike == 1:
            edges += [(rule.number, _one(rule, to)) for rule in found.rules]
        else:
            edges.append((found.rules[0].number, _many(found, to)))
    edges.sort(key=lambda one: one[0])
    node.edges += [edge for _, edge in edges]


def _one(rule: Rule, to: Node) -> Edge:
    label = conditions.label(rule.condition)
    return Edge(to, rule.goto, label, 1, 1, 1, False, rule.counters)


def _many(found: _Sum, to: Node) -> Edge:
    rules = found.rules
    if len(rules) == 1:
        return _one(rules[0], to)
    said = {without_comment(rule.condition) for rule in rules}
    label = conditions.label(conditions.common(set(map(without_chance, said))))
    most = max(found.counts)
    dice = any(conditions.probability(text) is not None for text in said)
    chance = dice and most > 1
    if dice and not chance:
        label = f"{label} by chance".lstrip()
    return Edge(to, rules[0].goto, label, len(rules), min(found.counts), most, chance,
                _total(rules))  # fmt: skip


def _end(target: str, rules: list[Rule]) -> End:
    where = ""
    if target in _TELLING:
        places = {match[1] for rule in rules if (match := _WHERE.search(rule.options))}
        if places:
            where = f"{_TELLING[target]} {conditions.common(places)}"
    return End(target, where, len(rules), _total(rules))


def _total(rules: list[Rule]) -> Pair | None:
    counters = [rule.counters for rule in rules if rule.counters is not None]
    if not counters:
        return None
    if len(counters) == 1:
        return counters[0]
    return sum(packets for packets, _ in counters), sum(octets for _, octets in counters)
