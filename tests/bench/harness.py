"""How sides are measured against each other: prove, warm up, alternate, compare.

A side is first proved: what it leaves behind or prints must be what the oracle (the iptables
tools of its own room) says is right, or it is refused and not timed. Then the sides run in
turn, one process of each a round, the first of a round changing from round to round, so that
whatever disturbs the machine for a while disturbs all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.bench.room import Room, Run, Wrong

Argv = Sequence[str | Path]


def _nothing(_round: int = 0) -> None:
    """Stand in for a step that a side has no need of."""


def _no_command(_round: int) -> Argv:
    """Stand in for the command of a side that measures by itself."""
    return ()


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do the thing: what is run in round n, and how its result is proved.

    ``prepare`` and ``prove`` run before the timing, ``after`` behind every run and outside
    its measured time, ``still`` at the end: each raises :class:`Wrong` to refuse the side.
    Where a part of a process is what matters, ``measure`` takes the place of ``argv``.
    """

    name: str
    room: Room
    argv: Callable[[int], Argv] = _no_command
    prepare: Callable[[], None] = _nothing
    prove: Callable[[], None] = _nothing
    after: Callable[[int], None] = _nothing
    still: Callable[[], None] = _nothing
    measure: Callable[[int], Run] | None = None

    def run(self, turn: int) -> Run:
        """Do it once."""
        return self.measure(turn) if self.measure else self.room.run(self.argv(turn))


@dataclass(frozen=True, slots=True)
class Bound:
    """What a measurement is held to: a ratio to another side, or megabytes when it is None.

    The ratio is of times, or with ``of_memory`` of peak memory. ``in_seconds`` holds the time
    itself; the other side then only tells what kind of machine it was.
    """

    against: str | None
    floor: float | None = None
    aim: float | None = None
    of_memory: bool = False
    in_seconds: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What is done in the measured time, so that a time can be told as a rate: 5 packets/s."""

    amount: float
    unit: str
    digits: int = 0  # behind the point

    def rate(self, wall: float) -> float:
        return self.amount / wall


@dataclass(slots=True)
class Samples:
    """The runs of one side, or why it was refused."""

    runs: list[Run] = field(default_factory=list)
    refused: str = ""

    def wall(self) -> float:
        return median(run.wall for run in self.runs)

    def least_wall(self) -> float:
        return min(run.wall for run in self.runs)

    def cpu(self) -> float:
        return median(run.cpu for run in self.runs)

    def rss_mb(self) -> float:
        return max(run.rss_mb for run in self.runs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bound, and what was measured for it; ``value`` is None when a side was refused.

    ``value`` is the ratio of the median wall times, or of memory, or megabytes, or seconds. The
    ratios of the minima and of the median CPU times show beside it whether a busy machine had a
    part in that.
    """

    bound: Bound
    value: float | None = None
    of_minima: float | None = None
    of_cpu: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the floor holds; None when there is none. What was not measured does not."""
        if self.bound.floor is None:
            return None
        return self.value is not None and self.value < self.bound.floor

    @property
    def passes(self) -> bool:
        """Whether it was measured, and no floor was missed: what was refused never passes."""
        return self.value is not None and self.holds is not False

    @property
    def meets_aim(self) -> bool | None:
        if self.bound.aim is None:
            return None
        return self.value is not None and self.value <= self.bound.aim


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement at one size: ``rules`` is 0 where the size does not matter.

    ``work`` is there where a rate says more than a time.
    """

    name: str
    rules: int
    sides: dict[str, Samples]
    verdicts: list[Verdict]
    work: Work | None = None


def race(
    name: str,
    rules: int,
    sides: Sequence[Side],
    bounds: Sequence[Bound],
    rounds: int,
    work: Work | None = None,
) -> Result:
    """Measure the sides against each other; the first of them is the one that is judged."""
    samples = {side.name: Samples() for side in sides}
    for side in sides:
        _guard(samples[side.name], side.prepare, side.prove)
    # Round -1 warms up and is not kept.
    for turn in range(-1, rounds):
        # What is run may alternate with the round, so the order changes every other one.
        first = (turn // 2) % len(sides)
        for side in (*sides[first:], *sides[:first]):
            mine = samples[side.name]
            if mine.refused:
                continue
            try:
                run = side.run(turn)
                side.after(turn)
            except Wrong as wrong:
                mine.refused = str(wrong)
            else:
                if turn >= 0:
                    mine.runs.append(run)
    for side in sides:
        _guard(samples[side.name], side.still)
    judged = samples[sides[0].name]
    verdicts = [judge(bound, judged, samples) for bound in bounds]
    return Result(name, rules, samples, verdicts, work)


def _guard(samples: Samples, *steps: Callable[[], None]) -> None:
    """Take the steps unless the side was refused, and refuse it when one raises Wrong."""
    if not samples.refused:
        try:
            for step in steps:
                step()
        except Wrong as wrong:
            samples.refused = str(wrong)


def judge(bound: Bound, judged: Samples, samples: dict[str, Samples]) -> Verdict:
    """Hold what was measured against a bound."""
    if judged.refused:
        return Verdict(bound)
    if bound.against is None:
        return Verdict(bound, judged.rss_mb())
    if bound.in_seconds:
        return Verdict(bound, judged.wall())
    other = samples.get(bound.against)
    if other is None or other.refused:
        return Verdict(bound)
    if bound.of_memory:
        return Verdict(bound, judged.rss_mb() / other.rss_mb())
    return Verdict(
        bound,
        judged.wall() / other.wall(),
        judged.least_wall() / other.least_wall(),
        judged.cpu() / other.cpu(),
    )
