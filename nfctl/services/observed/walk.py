"""The way of one new connection through nat: which rules it meets, and where it ends by chance.

Where it depends on what is not known of the packet, each way through is one case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import BadInput
from nfctl.services.observed.packet import Packet, Unknown, words
from nfctl.services.observed.shares import number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.observed.packet import Connection
    from nfctl.services.observed.rules import Dump, Rule

# kube-proxy's chains jump four times at most
_DEEPEST: Final = 8
# a service of 10,000 endpoints has some 40,000; chains that fan out eight times are no services
_MOST_STEPS: Final = 200_000

#: Ways are not split any further than this.
MOST_CASES: Final = 64

_TO = re.compile(r"--to-destination (\S+)")
_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+) ?')


class Step(NamedTuple):
    """A rule that the packet meets."""

    depth: int
    table: str
    chain: str
    rule: int
    text: str  # without its comment
    note: str = ""


class End(NamedTuple):
    """Where it ends: translated to an endpoint, refused, or nothing of that."""

    kind: str  # endpoint, refused, untouched
    to: str  # address:port; REJECT or DROP and where; ""
    chance: float
    masquerade: bool = False
    hairpin: bool = False  # masqueraded if the endpoint itself is the client


class Case(NamedTuple):
    """One way: what has to hold for it, the rules met, and where it ends."""

    entrance: str  # PREROUTING, OUTPUT
    when: tuple[str, ...]
    steps: tuple[Step, ...]
    ends: tuple[End, ...]


def cases(dump: Dump, prefix: str, connection: Connection) -> tuple[list[Case], bool]:
    """Return the ways that the connection may go, and whether these are all of them."""
    found: list[Case] = []
    entrances = {True: ("OUTPUT",), False: ("PREROUTING",), None: ("PREROUTING", "OUTPUT")}
    complete = True
    for entrance in entrances[connection.here]:
        open_ways: list[dict[str, bool]] = [{}]
        here: list[Case] = []
        while open_ways and len(here) < MOST_CASES:
            known = open_ways.pop()
            walk = _Walk(dump, prefix, connection, entrance, known)
            try:
                here.append(walk.case())
            except Unknown as question:
                open_ways += [known | {question.key: False}, known | {question.key: True}]
        complete = complete and not open_ways
        found += here
    return found, complete


class _Walk:
    """One walk, with what is taken as known."""

    def __init__(
        self, dump: Dump, prefix: str, connection: Connection, entrance: str, known: dict[str, bool]
    ) -> None:
        self.dump, self.prefix, self.entrance = dump, prefix, entrance
        self.packet = Packet(dump, prefix, connection, entrance, known)
        self.nat = dump.chains("nat")
        self.steps: list[Step] = []
        self.ends: list[End] = []
        self.path: list[str] = []  # the chains it is in

    def case(self) -> Case:
        """Walk from the entrance to the end."""
        left, _, dropped = self._chain(self.entrance, 1.0, False, False)
        if left > 0:
            self._untranslated(left, dropped)
        elif any(end.masquerade for end in self.ends):
            self._postrouting()
        host = self.packet.connection.host
        when = tuple(words(key, holds, host) for key, holds in self.packet.known.items())
        return Case(self.entrance, when, tuple(self.steps), tuple(self.ends))

    # --- chains ---------------------------------------------------------------------------------

    def _chain(
        self, name: str, chance: float, marked: bool, dropped: bool
    ) -> tuple[float, bool, bool]:
        """Go through a chain; return what chance is left behind it, and the marks."""
        depth = len(self.path)
        self.path.append(name)
        rules = self.nat.get(name, [])
        passed = 0
        for place, rule in enumerate(rules, 1):
            target = rule.target
            if target is None or place <= passed:
                continue
            if target in self.nat and not target.startswith(self.prefix):
                if self.packet.may_meet(rule, name):
                    note = "another program's chain, not followed"
                    self._step(depth, "nat", name, place, rule, note)
                continue
            alike = self._alike(rules, place - 1, name)
            passed = place + len(alike) - 1
            if not self._meets(alike, name):
                continue
            note = _others(len(alike) - 1)
            if target == "DNAT":
                self._step(depth, "nat", name, place, rule, note)
                to = _TO.search(rule.argument or "")
                hairpin = not marked and self._is_hairpin(name)
                self.ends.append(End("endpoint", to[1] if to else "?", chance, marked, hairpin))
                chance = 0.0
                break
            if target in {"ACCEPT", "REDIRECT", "NETMAP"}:
                self._step(depth, "nat", name, place, rule, "ends here")
                self.ends.append(End("untouched", target, chance, marked))
                chance = 0.0
                break
            if target == "RETURN":
                self._step(depth, "nat", name, place, rule, note)
                break
            if target == f"{self.prefix}MARK-MASQ":
                self._step(depth, "nat", name, place, rule, "to be masqueraded")
                marked = True
            elif target == f"{self.prefix}MARK-DROP":
                self._step(depth, "nat", name, place, rule, "to be dropped")
                dropped = True
            elif target not in self.nat:
                continue  # LOG, MARK and others that decide nothing
            elif target in self.path or depth >= _DEEPEST:
                self._step(depth, "nat", name, place, rule, "a loop, not followed")
            else:
                share = 1.0 if rule.probability is None else number(rule.probability)
                note = f"{percent(share)} of what is left" if share < 1 else note
                self._step(depth, "nat", name, place, rule, note)
                left, marked_there, dropped = self._chain(target, chance * share, marked, dropped)
                marked = marked_there if share == 1 else marked
                chance = chance * (1 - share) + left
                if chance <= 0 or rule.verb == "g":
                    break
        self.path.pop()
        return chance, marked, dropped

    def _alike(self, rules: Sequence[Rule], at: int, chain: str) -> Sequence[Rule]:
        """Return a rule, and those behind it that only the source tells from it."""
        first, end = rules[at], at + 1
        if self.packet.source is None and first.source and not first.not_source:
            if "SEP-" in chain:
                return rules[at:end]
            while end < len(rules) and _but_source(rules[end]) == _but_source(first):
                end += 1
        return rules[at:end]

    def _meets(self, alike: Sequence[Rule], chain: str) -> bool:
        """Whether the packet meets one of some rules that only the source tells apart."""
        if len(alike) == 1:
            return self.packet.meets(alike[0], chain)
        if not self.packet.meets(alike[0]._replace(source=None), chain):
            return False
        return self.packet.comes_from_one(alike)

    def _is_hairpin(self, chain: str) -> bool:
        """Whether this endpoint's chain marks what the endpoint itself sends."""
        mark = f"{self.prefix}MARK-MASQ"
        return self.packet.source is None and any(
            rule.target == mark for rule in self.nat.get(chain, [])
        )

    def _step(
        self, depth: int, table: str, chain: str, place: int, rule: Rule, note: str = ""
    ) -> None:
        if len(self.steps) >= _MOST_STEPS:
            msg = f"more than {_MOST_STEPS:,} rules are met: these are no chains of services"
            raise BadInput(msg)
        text = _COMMENT.sub("", self.dump.text(rule))
        self.steps.append(Step(depth, table, chain, place, text, note))

    # --- behind nat's destinations --------------------------------------------------------------

    def _untranslated(self, left: float, dropped: bool) -> None:
        """Look whether filter refuses what nat did not translate."""
        if dropped:
            self.ends.append(End("refused", "DROP by the mark of MARK-DROP", left))
            return
        for hook, asked in self._hooks():
            refusing = self._refusing(hook)
            if refusing is None or (asked and not self.packet.ask_at_home()):
                continue
            place, chain, there = refusing
            rules = self.dump.chains("filter")
            rule = rules[chain][there - 1]
            self._step(0, "filter", hook, place, rules[hook][place - 1])
            self._step(1, "filter", chain, there, rule)
            self.ends.append(End("refused", f"{rule.target} in filter {chain} rule {there}", left))
            return
        self.ends.append(End("untouched", "", left))

    def _hooks(self) -> list[tuple[str, bool]]:
        """Return the hooks of filter on its way, and whether it is unsure that they are.

        Where nothing is known of the destination, it is an address of another host, as those of
        services mostly are; only if that is not refused, it matters.
        """
        home = self.packet.at_home()
        to_itself = [] if home is False else [("INPUT", home is None)]
        if self.entrance == "OUTPUT":
            return [("OUTPUT", False), *to_itself]
        return to_itself if home else [("FORWARD", False), *to_itself]

    def _refusing(self, hook: str) -> tuple[int, str, int] | None:
        """Return the rule of a hook, the chain it jumps to, and the rule there that refuses."""
        chains = self.dump.chains("filter")
        for place, jump in enumerate(chains.get(hook, []), 1):
            target = jump.target or ""
            if not target.startswith(self.prefix):
                continue
            for there, rule in enumerate(chains.get(target, []), 1):
                if rule.target not in {"REJECT", "DROP"} or rule.port is None:
                    continue
                if self.packet.meets(rule, target):
                    return place, target, there
        return None

    def _postrouting(self) -> None:
        """Show the rules that masquerade what is marked."""
        chain = f"{self.prefix}POSTROUTING"
        for place, rule in enumerate(self.nat.get("POSTROUTING", []), 1):
            if rule.target == chain:
                self._step(0, "nat", "POSTROUTING", place, rule)
        for place, rule in enumerate(self.nat.get(chain, []), 1):
            if rule.target in {"MASQUERADE", "SNAT"}:
                self._step(1, "nat", chain, place, rule, "what is marked")


def _but_source(rule: Rule) -> Rule:
    return rule._replace(source=None, packets=None, comment=None, line=0)


def _others(number: int) -> str:
    if number < 2:
        return "or the rule behind it" if number else ""
    return f"or one of the {number:,} rules behind it"
