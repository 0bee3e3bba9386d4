"""How the rules of a chain become the wanted ones, around those that are others'.

Rules are canonical bytes, or text. What both sequences have stays untouched. A rule that only
the kernel has goes, unless it is another's: then it stays, behind the rule before it that stays
(or the one that takes its place), or at the front. So rules of others keep their order among
themselves, and their place as near as that can be said.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nfctl.control.change import ADD, DELETE, KEPT, SAME, Run
from nfctl.ruleset.diff import Block, common

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

Rule = TypeVar("Rule", bound="Hashable")


class Merge(NamedTuple):
    """The runs in order, whose the kept rules are, and from where moved rules come.

    ``owners`` is by the live rule's index; ``moved`` leads from a wanted rule's index to the
    live one's. All count from 0.
    """

    runs: list[Run]
    owners: dict[int, str]
    moved: dict[int, int]


def merge(
    live: Sequence[Rule],
    wanted: Sequence[Rule],
    owner: Callable[[int], str],
    blocks: Sequence[Block] | None = None,
    *,
    front: bool = False,
) -> Merge:
    """Plan how ``live`` becomes ``wanted``; ``owner`` names whose a live rule is, or "".

    It is asked for rules that are not wanted alone. ``blocks`` are what both have, if known.
    ``front``: what comes before all that both have comes before the rules of others, too.
    """
    if blocks is None:
        blocks = common(live, wanted)
    runs: list[Run] = []
    owners: dict[int, str] = {}
    moves: dict[Rule, list[int]] = {}
    if sum(block.length for block in blocks) < len(wanted):
        moves = _unmatched(live, wanted, blocks)
    at = beside = 0
    for first, second, count in [*blocks, Block(len(live), len(wanted), 0)]:
        _between(runs, owners, moves, live, (at, first), (beside, second), owner)
        if front and not at and not beside:
            runs.sort(key=lambda run: run.kind != ADD)
        if count:
            runs.append(Run(SAME, first, second, count))
        at, beside = first + count, second + count
    return Merge(runs, owners, _moved(runs, live, wanted) if moves else {})


def _unmatched(
    live: Sequence[Rule], wanted: Sequence[Rule], blocks: Sequence[Block]
) -> dict[Rule, list[int]]:
    """Return the wanted rules that stand in no block, with the number of each, as [number]."""
    missing: Counter[Rule] = Counter()
    at = 0
    for block in [*blocks, Block(len(live), len(wanted), 0)]:
        missing.update(wanted[at : block.second])
        at = block.second + block.length
    return {rule: [number] for rule, number in missing.items()}


def _between(
    runs: list[Run],
    owners: dict[int, str],
    moves: dict[Rule, list[int]],
    live: Sequence[Rule],
    gap: tuple[int, int],
    wanted_gap: tuple[int, int],
    owner: Callable[[int], str],
) -> None:
    """Add the runs between two blocks.

    A rule that comes takes the place of one that goes, in order; more of them follow the last
    that goes. Where none goes, they come behind the rules of others, which hang on what is before.
    """
    (at, first), (beside, second) = gap, wanted_gap
    places = []  # runs of what goes for good
    start = len(runs)
    for index in range(at, first):
        wanted_elsewhere = moves.get(live[index])
        moved, whose = False, ""
        if wanted_elsewhere and wanted_elsewhere[0]:
            wanted_elsewhere[0] -= 1
            moved = True
        else:
            whose = owner(index)
        kind = KEPT if whose else DELETE
        if whose:
            owners[index] = whose
        last = runs[-1] if len(runs) > start else None
        if last is not None and last.kind == kind:
            runs[-1] = last._replace(length=last.length + 1)
        else:
            runs.append(Run(kind, index, beside, 1))
        if kind == DELETE and not moved:
            places.append(len(runs) - 1)
    if second == beside:
        return
    if places and any(run.kind == KEPT for run in runs[places[0] :]):
        runs[start:] = _in_place(runs[start:], [place - start for place in places], beside, second)
    else:
        runs.append(Run(ADD, first, beside, second - beside))


def _in_place(runs: list[Run], places: list[int], beside: int, second: int) -> list[Run]:
    """Put wanted rules behind the runs whose rules they take the place of."""
    found: list[Run] = []
    for number, run in enumerate(runs):
        found.append(run._replace(wanted=beside))
        count = min(places.count(number), second - beside)
        if number == places[-1]:
            count = second - beside
        if count:
            found.append(Run(ADD, run.live + run.length, beside, count))
            beside += count
    return found


def _moved(runs: list[Run], live: Sequence[Rule], wanted: Sequence[Rule]) -> dict[int, int]:
    gone: dict[Rule, list[int]] = {}
    for run in reversed(runs):
        if run.kind == DELETE:
            for index in range(run.live + run.length - 1, run.live - 1, -1):
                gone.setdefault(live[index], []).append(index)
    if not gone:
        return {}
    moved: dict[int, int] = {}
    for run in runs:
        if run.kind == ADD:
            for index in range(run.wanted, run.wanted + run.length):
                found = gone.get(wanted[index])
                if found:
                    moved[index] = found.pop()
    return moved


def result(runs: Sequence[Run], live: Sequence[Rule], wanted: Sequence[Rule]) -> list[Rule]:
    """Return the rules that a chain has after these runs."""
    rules: list[Rule] = []
    for kind, at, beside, count in runs:
        if kind in {SAME, KEPT}:
            rules += live[at : at + count]
        elif kind == ADD:
            rules += wanted[beside : beside + count]
    return rules


def undone(now: Sequence[Rule], before: Sequence[Rule], after: Sequence[Rule]) -> list[Rule]:
    """Return ``now`` without the change from ``before`` to ``after``, and with all others.

    What the change deleted comes back, what it added goes; what came since stays, and what went
    since does not come back.
    """
    there, left = Counter(now), Counter(after)
    wanted: list[Rule] = []
    for rule in before:
        if there[rule] > 0:
            there[rule] -= 1
            left[rule] -= 1
            wanted.append(rule)
        elif left[rule] > 0:  # the change let it be, and somebody deleted it since
            left[rule] -= 1
        else:
            wanted.append(rule)
    added = Counter(after)

    def owner(index: int) -> str:
        rule = now[index]
        if added[rule] > 0:
            added[rule] -= 1
            return ""
        return "another"

    blocks = common(now, wanted)
    for block in blocks:
        added.subtract(now[block.first : block.first + block.length])
    return result(merge(now, wanted, owner, blocks).runs, now, wanted)
