"""``python -m tests.bench``: nfctl side by side with what a user would run instead.

Needs root: each side gets network and mount namespaces of its own, with a /run of its own,
so that the host's tables and its xtables lock are never touched. All of it is gone when the
bench ends, however it ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import inspection, measures, report, serving
from tests.bench.room import Wrong

if TYPE_CHECKING:
    from tests.bench.harness import Result

SIZES = (1_000, 10_000, 50_000)
ROUNDS = 7
_TOOLS = (
    "unshare", "mount", "ip", "sysctl", "ipset",
    "iptables-legacy", "iptables-legacy-restore", "iptables-legacy-save",
)  # fmt: skip


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=_positive, default=ROUNDS, help="timed rounds (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes",
        type=_sizes,
        default=list(SIZES),
        metavar="N,N",
        help="numbers of rules (default: 1000,10000,50000); floors are judged from "
        f"{measures.JUDGED_FROM:,} on",
    )
    parser.add_argument(
        "--services",
        type=_sizes,
        default=list(serving.SIZES),
        metavar="N,N",
        help="numbers of services (default: 1000,5000,10000)",
    )
    parser.add_argument(
        "--only", action="append", choices=measures.NAMES, help="one measurement (repeatable)"
    )
    parser.add_argument(
        "--packets",
        type=_positive,
        default=inspection.STRANGERS,
        metavar="N",
        help="packets of inspect-memory (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when a floor is missed or a side was refused"
    )
    parser.add_argument(
        "--nfctl",
        default=str(Path(sys.executable).parent / "nfctl"),
        metavar="PROGRAM",
        help="the nfctl to measure (default: the one of this Python)",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _sizes(text: str) -> list[int]:
    return [_positive(word.replace("_", "")) for word in text.split(",")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _end(signum: int, _frame: object) -> None:
    """End as Ctrl-C does: through the exits that close the rooms."""
    raise SystemExit(128 + signum)


def _run(options: argparse.Namespace) -> tuple[report.Machine, list[Result]]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nfctl-bench-")))
        bench = measures.Bench(scratch, stack, options.rounds, options.nfctl, options.packets)
        room = bench.room(measures.LEGACY)
        # Loads the filter table, and so tells at once a kernel that has none.
        room.run(["iptables-legacy", "-S"])
        version = room.output(["iptables-legacy", "-V"]).split("(")[0].strip()
        machine = report.Machine.here(version, _version(bench))
        results = []
        for result in measures.measure(
            bench, options.sizes, options.services, options.only or measures.NAMES
        ):
            results.append(result)
            _progress(result)
        return machine, results


def _version(bench: measures.Bench) -> str:
    try:
        return bench.room(measures.NFCTL).output([bench.nfctl, "--version"]).strip()
    except Wrong:
        return Path(bench.nfctl).name


def _progress(result: Result) -> None:
    at = f" at {result.rules:,}" if result.rules else ""
    sides = (
        f"{name} {f'refused: {side.refused}' if side.refused else f'{side.wall():.3f} s'}"
        for name, side in result.sides.items()
    )
    _say(f"{result.name}{at}: {', '.join(sides)}")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and with ``--check`` answer."""
    options = _options(argv)
    if os.geteuid():
        _say("the bench needs root: it makes network namespaces")
        return 3
    missing = [tool for tool in _TOOLS if not shutil.which(tool)]
    if missing:
        _say(f"not installed: {', '.join(missing)}")
        return 3
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        machine, results = _run(options)
    except Wrong as wrong:
        _say(f"cannot measure: {wrong}")
        return 3
    except KeyboardInterrupt:
        _say("interrupted; all namespaces are gone")
        return 130
    if options.json:
        print(report.document(machine, options.rounds, results))
    elif options.markdown:
        print("\n".join(report.markdown(machine, options.rounds, results)))
    else:
        print(machine.line())
        print(f"{options.rounds} rounds; medians in seconds, a ratio is nfctl / other")
        print("\n".join(report.lines(results)))
    if not options.check:
        return 0
    bad = [(one, verdict) for one in results for verdict in one.verdicts if not verdict.passes]
    for one, verdict in bad:
        at = f" at {one.rules:,}" if one.rules else ""
        floor = f" (floor {verdict.bound.floor})" if verdict.bound.floor else ""
        _say(f"{one.name}{at}: {report.word(verdict)}{floor}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
