"""Drift: where a host is not at its policy, and how long a repair waits where somebody fights.

A drift is a chain, or an ipset, that the change to the policy would touch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.control.change import ADD, DELETE, ChainChange, Change, SetChange

if TYPE_CHECKING:
    from collections.abc import Container

#: Seconds between repairs of what drifts again and again: 1, 2, 4 and so on up to this.
LONGEST: Final = 300.0
#: A chain that stayed as it is for so long (or twice its last delay) is fought over no more.
QUIET: Final = 60.0
_SETS: Final = {
    "create": "is missing",
    "swap": "has other entries",
    "destroy": "is there, and is wanted no more",
}
_MANY: Final = 1024  # places that are remembered


class Place(NamedTuple):
    """A chain; or an ipset, which has no family and no table."""

    family: int
    table: str
    name: str

    def __str__(self) -> str:
        """``IPv4 filter INPUT``, or ``set NAME``."""
        return f"IPv{self.family} {self.table} {self.name}" if self.table else f"set {self.name}"


@dataclass(frozen=True, slots=True)
class Drift:
    """What is wrong in a place, in words and numbers; ``mark`` differs where anything does."""

    place: Place
    texts: tuple[str, ...]
    mark: int
    missing: int = 0  # rules, or entries
    extra: int = 0

    def __str__(self) -> str:
        """One line."""
        return f"{self.place}: {', '.join(self.texts)}"

    def document(self) -> dict[str, Any]:
        """Return the JSON of this drift."""
        family, table, name = self.place
        where: dict[str, Any] = (
            {"family": family, "table": table, "chain": name} if table else {"set": name}
        )
        return where | {"missing": self.missing, "extra": self.extra, "text": ", ".join(self.texts)}


def find(change: Change) -> dict[Place, Drift]:
    """Return what drifts, where ``change`` is what would take the host to its policy."""
    found = {}
    for table, chain in change.chains():
        if chain.changes:
            place = Place(table.family, table.table, chain.name)
            found[place] = _of_chain(place, chain)
    for change_of_set in change.sets:
        if change_of_set.action in _SETS:
            place = Place(0, "", change_of_set.name)
            found[place] = _of_set(place, change_of_set)
    return found


def part(change: Change, places: Container[Place]) -> Change:
    """Return the part of a change that is about these places."""
    tables = [
        replace(
            table,
            chains=[c for c in table.chains if Place(table.family, table.table, c.name) in places],
        )
        for table in change.tables
    ]
    return replace(
        change,
        tables=[table for table in tables if table.chains],
        sets=[one for one in change.sets if Place(0, "", one.name) in places],
    )


def _of_chain(place: Place, chain: ChainChange) -> Drift:
    missing, extra = chain.count(ADD), chain.count(DELETE)
    texts = []
    if chain.created:
        texts.append("the chain is missing")
    if chain.deleted:
        texts.append("the chain is there, and is wanted no more")
    if chain.policy is not None:
        texts.append(f"its policy is {chain.policy[0]} and not {chain.policy[1]}")
    moved = min(missing, extra, sum(line.moved and line.kind == ADD for line in chain.lines))
    if moved:
        texts.append(f"{_rules(moved)} at another place")
    if missing > moved:
        texts.append(f"{_rules(missing - moved)} missing")
    if extra > moved:
        texts.append(f"{_rules(extra - moved)} too many")
    lines = tuple((ln.kind, ln.spec) for ln in chain.lines if ln.kind in {ADD, DELETE})
    mark = hash((chain.created, chain.deleted, chain.policy, missing, extra, lines))
    return Drift(place, tuple(texts), mark, missing, extra)


def _of_set(place: Place, change: SetChange) -> Drift:
    texts = []
    if change.action != "swap" or change.added or change.removed:
        texts.append(_SETS[change.action])
    if change.action == "swap" and change.note:  # its type, options, or the order of a list
        texts.append(f"is not as wanted ({change.note})")
    mark = hash((change.action, change.added, change.removed, change.entries, change.note))
    return Drift(place, tuple(texts), mark, change.added, change.removed)


def _rules(count: int) -> str:
    return f"{count:,} rule{'' if count == 1 else 's'}"


@dataclass(slots=True)
class Fight:
    """How a place's repairs went: how often in a row they did not last, and what that costs."""

    times: int = 0
    delay: float = 0.0
    due: float = 0.0
    repaired: float | None = None


@dataclass(slots=True)
class Fights:
    """When each place may be repaired. Times are in seconds, of any clock that does not jump."""

    _places: dict[Place, Fight] = field(default_factory=dict)

    def __getitem__(self, place: Place) -> Fight:
        return self._places[place]

    def appeared(self, place: Place, now: float) -> Fight:
        """Reckon with a drift that was not there before: at once, or later if it is not new."""
        fight = self._of(place)
        if fight.repaired is None or now - fight.repaired > max(QUIET, 2 * fight.delay):
            fight.times, fight.delay = 0, 0.0
        else:
            _lost(fight)
        fight.due = now + fight.delay
        return fight

    def failed(self, place: Place, now: float) -> Fight:
        """Put off a repair that was not possible."""
        fight = self._of(place)
        _lost(fight)
        fight.due = now + fight.delay
        return fight

    def repaired(self, place: Place, now: float) -> None:
        """Reckon with a repair."""
        self._of(place).repaired = now

    def due(self, place: Place) -> float:
        """Return when a place that drifts may be repaired."""
        return self._of(place).due

    def _of(self, place: Place) -> Fight:
        while len(self._places) >= _MANY and place not in self._places:
            del self._places[next(iter(self._places))]
        return self._places.setdefault(place, Fight())


def _lost(fight: Fight) -> None:
    fight.times += 1
    fight.delay = min(LONGEST, 2.0 ** min(fight.times - 1, 30))
