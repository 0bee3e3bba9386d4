"""What was measured, for a terminal, for a README and for machines."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.harness import Bound, Result, Samples, Verdict
from tests.bench.measures import NFCTL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured: a ratio carries over to another machine, milliseconds do not."""

    cpu: str
    cpus: int
    kernel: str
    python: str
    iptables: str
    nfctl: str

    @classmethod
    def here(cls, iptables: str, nfctl: str) -> Machine:
        return cls(
            cpu=_cpu_model(),
            cpus=len(os.sched_getaffinity(0)),
            kernel=platform.release(),
            python=platform.python_version(),
            iptables=iptables,
            nfctl=nfctl,
        )

    def line(self) -> str:
        return (
            f"{self.cpus} x {self.cpu}, Linux {self.kernel}, Python {self.python}, "
            f"{self.iptables}, {self.nfctl}"
        )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


_HEAD = (
    "what", "rules", "against", "nfctl", "other", "ratio", "of minima", "of CPU", "floor", "aim",
    "", "CPU s", "other", "MB", "other",
)  # fmt: skip


def _cells(result: Result, verdict: Verdict) -> list[str]:
    bound = verdict.bound
    mine = result.sides[NFCTL]
    # Memory is judged by itself, and the runs for it are too few for a time.
    timed = bound.against is not None and not bound.of_memory
    other_name = bound.against or next(name for name in result.sides if name != NFCTL)
    other = result.sides.get(other_name, Samples(refused="not installed"))
    return [
        result.name,
        f"{result.rules:,}" if result.rules else "-",
        other_name,
        _number(mine, "wall") if timed else "-",
        _number(other, "wall") if timed else "-",
        _ratio(verdict.value if bound.against and not bound.in_seconds else None),
        _ratio(verdict.of_minima),
        _ratio(verdict.of_cpu),
        _bound(bound, bound.floor),
        _bound(bound, bound.aim),
        word(verdict),
        _number(mine, "cpu") if timed else "-",
        _number(other, "cpu") if timed else "-",
        _number(mine, "rss"),
        _number(other, "rss"),
    ]


def word(verdict: Verdict) -> str:
    """Put the verdict in a word."""
    if verdict.holds is None:
        return "-" if verdict.value is not None else "not measured"
    if verdict.value is None:
        return "NOT MEASURED"
    if not verdict.holds:
        return "MISSED"
    return "aim met" if verdict.meets_aim else "holds"


def _number(samples: Samples, what: str) -> str:
    if samples.refused:
        return "-"
    if what == "rss":
        return f"{samples.rss_mb():.0f}"
    seconds = samples.wall() if what == "wall" else samples.cpu()
    return f"{seconds:.3f}"


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value > 0.2 else f"{value:.3f}"


def _bound(bound: Bound, value: float | None) -> str:
    if value is None:
        return "-"
    if not bound.against:
        return f"{value:.0f} MB"
    if bound.in_seconds:
        return f"{value:g} s"
    text = f"{value:.3f}".rstrip("0")
    return text + "0" if text.endswith(".") else text


def lines(results: Sequence[Result]) -> Iterator[str]:
    """Lay out the table for a terminal, and below it why a side was refused."""
    rows = [list(_HEAD), *(_cells(one, verdict) for one in results for verdict in one.verdicts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, 2, 10) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    yield from rates(results)
    yield from refusals(results)


def rates(results: Sequence[Result]) -> Iterator[str]:
    """One line for each measurement that has rates: packets or bits a second."""
    for result in results:
        if result.work:
            sides = (
                f"{name} {result.work.rate(samples.wall()):,.{result.work.digits}f}"
                for name, samples in result.sides.items()
                if not samples.refused
            )
            yield f"{result.name}: {result.work.unit}: {', '.join(sides)}"


def refusals(results: Sequence[Result]) -> Iterator[str]:
    """One line for each side that was not timed, and why."""
    for result in results:
        at = f" at {result.rules:,}" if result.rules else ""
        for name, samples in result.sides.items():
            if samples.refused:
                yield f"{result.name}{at}: {name} was not timed: {samples.refused}"
        for verdict in result.verdicts:
            against = verdict.bound.against
            if against and against not in result.sides:
                yield f"{result.name}{at}: {against} was not timed: it is not installed"


def markdown(machine: Machine, rounds: int, results: Sequence[Result]) -> Iterator[str]:
    """Lay out the table for a README: seconds of whole processes, medians."""
    yield "| | rules | nfctl | the other | ratio | floor | aim | peak memory |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for result in results:
        for verdict in result.verdicts:
            cells = _cells(result, verdict)
            what, rules, against, mine, other, ratio, _, _, floor, aim, *_, rss, _ = cells
            unit = "" if mine == "-" else " s"
            cells = [
                f"`{what}`",
                rules,
                f"{mine}{unit}",
                "-" if other == "-" else f"{against} {other} s",
                f"**{ratio}**" if ratio != "-" else "-",
                floor,
                aim,
                f"{rss}{'' if rss == '-' else ' MB'}",
            ]
            yield f"| {' | '.join(cells)} |"
    for text in rates(results):
        yield ""
        yield text
    yield ""
    yield f"Medians of {rounds} alternating rounds, whole processes: {machine.line()}."


def document(machine: Machine, rounds: int, results: Sequence[Result]) -> str:
    """One JSON document: seconds, megabytes (10^6 bytes), and ratios of nfctl to the other."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "machine": {
                "cpu": machine.cpu,
                "cpus": machine.cpus,
                "kernel": machine.kernel,
                "python": machine.python,
                "iptables": machine.iptables,
                "nfctl": machine.nfctl,
            },
            "rounds": rounds,
            "results": [
                {
                    "name": result.name,
                    "rules": result.rules,
                    "sides": {name: _side(side) for name, side in result.sides.items()},
                    "rates": _rates(result),
                    "verdicts": [_verdict(verdict) for verdict in result.verdicts],
                }
                for result in results
            ],
        },
        indent=2,
    )


def _rates(result: Result) -> dict[str, object] | None:
    work = result.work
    if work is None:
        return None
    sides = result.sides.items()
    return {
        "unit": work.unit,
        "sides": {name: work.rate(one.wall()) for name, one in sides if not one.refused},
    }


def _side(samples: Samples) -> dict[str, object]:
    if samples.refused:
        return {"refused": samples.refused}
    return {
        "refused": None,
        "wall_s": {"median": samples.wall(), "min": samples.least_wall()},
        "cpu_s": {"median": samples.cpu(), "min": min(run.cpu for run in samples.runs)},
        "rss_mb": {"max": samples.rss_mb()},
        "runs": [[run.wall, run.cpu, run.rss_mb] for run in samples.runs],
    }


def _verdict(verdict: Verdict) -> dict[str, object]:
    return {
        "measure": _measure(verdict.bound),
        "against": verdict.bound.against,
        "value": verdict.value,
        "of_minima": verdict.of_minima,
        "of_cpu": verdict.of_cpu,
        "floor": verdict.bound.floor,
        "aim": verdict.bound.aim,
        "floor_holds": verdict.holds,
        "aim_met": verdict.meets_aim,
    }


def _measure(bound: Bound) -> str:
    if bound.against is None:
        return "rss_mb"
    if bound.in_seconds:
        return "wall_s"
    return "rss_ratio" if bound.of_memory else "wall_ratio"
