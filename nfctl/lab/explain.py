"""Which rules a packet met, told from two readings of the counters: pure, no I/O.

The way of the packet through the tables is known (``nfctl.traversal``); on it, a rule whose
counter moved was matched. Following the moved jumps and gotos from each built-in chain gives
the rules in the order in which the packet met them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nfctl.traversal import Station, Way, path

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERDICTS = frozenset({"ACCEPT", "DROP", "REJECT"})
_REFUSALS = frozenset({"DROP", "REJECT"})
_NOTES = frozenset({"CT", "NOTRACK", "MARK", "CONNMARK", "RETURN"})
_TRANSLATIONS = frozenset({"DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"})


class RuleCount(NamedTuple):
    """A rule's text behind ``-A CHAIN`` and its packet counter."""

    text: str
    packets: int


class ChainCount(NamedTuple):
    """A chain: its policy (None if it is user-defined), the policy's counter, the rules."""

    policy: str | None
    packets: int
    rules: tuple[RuleCount, ...]


Snapshot = dict[str, dict[str, ChainCount]]  # table, chain


@dataclass(frozen=True, slots=True)
class Step:
    """A rule, or a policy (``number`` 0), that counted packets.

    ``path`` is how the packet came to it: chains from the built-in one on, the rule's own
    ``chain`` last. ``target`` is the target or the policy; ``number`` counts from 1.
    """

    table: str
    chain: str
    number: int
    text: str
    target: str
    packets: int
    path: tuple[str, ...]

    @property
    def place(self) -> str:
        """``table:CHAIN``."""
        return f"{self.table}:{self.chain}"

    @property
    def decides(self) -> bool:
        """Whether the packet's fate is sealed here, as far as this table goes."""
        return self.target in _VERDICTS

    @property
    def refuses(self) -> bool:
        """Whether the packet goes no further."""
        return self.target in _REFUSALS

    @property
    def translates(self) -> bool:
        """Whether it changes an address or a port."""
        return self.target in _TRANSLATIONS

    @property
    def notes(self) -> bool:
        """Whether it tells later rules something, or sends the packet back to them."""
        return self.target in _NOTES

    @property
    def follows(self) -> bool:
        """Whether it only lets pass what belongs to a connection decided before."""
        words = shlex.split(self.text)
        for option in ("--ctstate", "--state"):
            if option in words:
                states = set(words[words.index(option) + 1].split(","))
                return states <= {"ESTABLISHED", "RELATED"}
        return False


def moved(before: Snapshot, after: Snapshot, way: Way) -> list[Step]:
    """Return everything on a way that counted packets, in the order of the way.

    Both readings must be of the same rules. The policies of chains that merely let everything
    pass are left out, except filter's. An answer takes the way too, and later.
    """
    found: dict[tuple[str, str, int], Step] = {}
    for station in path(way):
        if isinstance(station, Station) and station.table in before and station.table in after:
            table = station.table
            for step in _walk(table, before[table], after[table], (station.chain,)):
                # Two jumps may lead to one chain; its counters do not tell which was taken.
                found.setdefault((step.table, step.chain, step.number), step)
    return list(found.values())


def explain(before: Snapshot, after: Snapshot, way: Way) -> list[Step]:
    """Return the steps of a packet that went ``way``, in order: what moved, to a refusal."""
    steps = moved(before, after, way)
    # What counts behind a refusal is the answer: a RST that REJECT sends meets nat.
    end = next((number for number, step in enumerate(steps, start=1) if step.refuses), len(steps))
    return steps[:end]


def _walk(
    table: str, before: dict[str, ChainCount], after: dict[str, ChainCount], path: tuple[str, ...]
) -> Iterator[Step]:
    chain = path[-1]
    old, new = before[chain], after[chain]
    for number, (was, rule) in enumerate(zip(old.rules, new.rules, strict=True), start=1):
        packets = rule.packets - was.packets
        if packets:
            target = _target(rule.text)
            yield Step(table, chain, number, rule.text, target, packets, path)
            if target in after and target not in path:
                yield from _walk(table, before, after, (*path, target))
    packets = new.packets - old.packets
    if packets and new.policy and (table == "filter" or new.policy != "ACCEPT"):
        text = f"policy {new.policy}"
        yield Step(table, chain, 0, text, new.policy, packets, path)


def _target(text: str) -> str:
    words = shlex.split(text)
    for option in ("-j", "-g"):
        if option in words:
            return words[words.index(option) + 1]
    return ""


def deciding(steps: list[Step]) -> Step | None:
    """Return the step that decided: the last verdict on the packet that began it all.

    A refusal ends the way. Rules that let replies pass decide only where nothing else does.
    """
    verdicts = [step for step in steps if step.decides]
    for choice in (
        [step for step in verdicts if step.refuses],
        [step for step in verdicts if not step.follows and step.table == "filter"],
        verdicts,
    ):
        if choice:
            return choice[-1]
    return None


def story(steps: list[Step]) -> list[Step]:
    """Return the steps worth telling: what marked, translated, sent back and decided."""
    decider = deciding(steps)
    refused = decider is not None and decider.refuses
    return [
        step
        for step in steps
        if step is decider
        or step.translates
        or step.notes
        or (refused and step.decides and step.number)  # accepted here, and refused later
    ]
