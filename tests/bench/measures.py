"""What is measured: each command of nfctl against what a user would run instead.

The floor is what has to hold, the aim what is worked towards. Both are stated for large
rulesets, where reading and writing rules is what costs: at smaller sizes nearly all of the
time is Python's start, and the ratio there is shown but not judged.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench import applying, generate, inspection, labs, serving
from tests.bench.harness import Bound, Result, Side, race
from tests.bench.room import Room, Wrong

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

# The floors of the ratios hold from this size on.
JUDGED_FROM = 50_000
MEMORY_FLOOR_MB = 250.0

NFCTL = "nfctl"
LEGACY = "iptables-legacy"
NFT = "iptables-nft"
TYPER = "typer"

_PROBE = "192.0.2.77/32"
_NEW_RULE = ["-p", "tcp", "--dport", "22", "-j", "ACCEPT"]
_NEW_RULE_SAVED = "-p tcp -m tcp --dport 22 -j ACCEPT"

# The least program that a user of typer writes: two commands, called as pip's scripts call.
_TYPER_PROGRAM = '''\
"""A typer program with two commands."""

import typer

app = typer.Typer()


@app.command()
def hello(name: str) -> None:
    """Greet somebody."""
    typer.echo(f"Hello {name}")


@app.command()
def goodbye(name: str, formal: bool = False) -> None:
    """Say goodbye."""
    typer.echo(f"Goodbye {name}." if formal else f"Bye {name}!")


def main() -> None:
    app()
'''
_TYPER_SCRIPT = """\
#!{python}
import sys
from bench_two_commands import main
if __name__ == '__main__':
    sys.argv[0] = sys.argv[0].removesuffix('.exe')
    sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Texts:
    """The two rulesets of one size, as texts, and as files for the sides to read."""

    rules: int
    a: str
    b: str
    a_counted: str
    file_a: Path
    file_b: Path
    file_a_counted: Path

    def file(self, turn: int) -> Path:
        """Return the ruleset of a round: b, a, b, a and so on from round -1, the warm-up."""
        return self.file_b if turn % 2 else self.file_a

    def chain(self) -> str:
        """Pick a chain in the middle, where one rule is added."""
        chains = generate.user_chains(self.a)
        return chains[len(chains) // 2] if chains else "INPUT"


@dataclass(slots=True)
class Bench:
    """The rooms, the scratch directory and the programs of one run."""

    scratch: Path
    stack: ExitStack
    rounds: int
    nfctl: str
    packets: int = inspection.STRANGERS
    _rooms: dict[str, Room] = field(default_factory=dict)

    def room(self, name: str) -> Room:
        """Return the room of one side, with the sets that the rules name."""
        if name not in self._rooms:
            room = self.stack.enter_context(Room(name, self.scratch))
            sets = self.scratch / "sets"
            sets.write_text(generate.ipsets())
            room.run(["ipset", "restore"], stdin=sets)
            self._rooms[name] = room
        return self._rooms[name]

    def texts(self, rules: int) -> Texts:
        a = generate.ruleset(rules, variant="a")
        b = generate.ruleset(rules, variant="b")
        counted = generate.with_counters(a)
        files = [self.scratch / f"{rules}.{name}" for name in ("a", "b", "a-counted")]
        for file, text in zip(files, (a, b, counted), strict=True):
            file.write_text(text)
        return Texts(rules, a, b, counted, *files)

    def load(self, side: str, file: Path, *, counters: bool = False) -> None:
        """Put a ruleset into a side's room with the iptables tools, whichever side it is."""
        flags = ["-c"] if counters else []
        self.room(side).run([f"{_oracle(side)}-restore", *flags, file])

    def expect(self, side: str, text: str, *, counters: bool = False) -> None:
        """Raise unless the side's room holds exactly this ruleset, as the oracle prints it."""
        words = [f"{_oracle(side)}-save", *(["-c"] if counters else []), "-t", "filter"]
        same("the kernel's rules", self.room(side).output(words), text)

    def typer_program(self) -> Path:
        """Write the two-command program and its script; return the script."""
        (self.scratch / "bench_two_commands.py").write_text(_TYPER_PROGRAM)
        script = self.scratch / "two-commands"
        script.write_text(_TYPER_SCRIPT.format(python=sys.executable))
        script.chmod(0o755)
        return script


def bare(text: str) -> list[str]:
    """Return the lines of iptables-save text without its comments, which carry the time."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def same(what: str, got: str, want: str) -> None:
    """Raise with the first line that differs."""
    one, other = bare(got), bare(want)
    if one == other:
        return
    for i, line in enumerate(one):
        if i >= len(other) or line != other[i]:
            raise Wrong(f"{what} are wrong at line {i + 1}: {line[:90]!r}")
    raise Wrong(f"{what} are wrong: {len(one)} lines instead of {len(other)}")


def _oracle(side: str) -> str:
    """Name the tools that say what a side's room holds: nfctl writes the legacy tables."""
    return NFT if side == NFT else LEGACY


def _ratio(rules: int, against: str, floor: float, aim: float | None = None) -> Bound:
    if rules < JUDGED_FROM:
        return Bound(against)
    return Bound(against, floor, aim)


def restore(bench: Bench, texts: Texts) -> Result:
    """Restore N rules onto another N."""

    def side(name: str, *command: str) -> Side:
        def prove() -> None:
            bench.load(name, texts.file_a)
            for turn, text in ((1, texts.b), (2, texts.a)):
                bench.room(name).run([*command, texts.file(turn)])
                bench.expect(name, text)

        return Side(
            name=name,
            room=bench.room(name),
            argv=lambda turn: [*command, texts.file(turn)],
            prove=prove,
            still=lambda: bench.expect(name, texts.a if bench.rounds % 2 else texts.b),
        )

    sides = [
        side(NFCTL, bench.nfctl, "restore"),
        side(LEGACY, f"{LEGACY}-restore"),
        *([side(NFT, f"{NFT}-restore")] if shutil.which(f"{NFT}-restore") else []),
    ]
    bounds = [_ratio(texts.rules, LEGACY, 2.0, 1.0), _ratio(texts.rules, NFT, 1.0)]
    return race("restore", texts.rules, sides, bounds, bench.rounds)


def restore_same(bench: Bench, texts: Texts) -> Result:
    """Restore what is already there: nfctl writes nothing, and so no counter changes."""

    def untouched() -> None:
        try:
            bench.expect(NFCTL, texts.a_counted, counters=True)
        except Wrong as wrong:
            raise Wrong(f"it wrote what was already there: {wrong}") from wrong

    def prove() -> None:
        bench.room(NFCTL).run([bench.nfctl, "restore", texts.file_a])
        untouched()

    sides = [
        Side(
            name=NFCTL,
            room=bench.room(NFCTL),
            argv=lambda _: [bench.nfctl, "restore", texts.file_a],
            prepare=lambda: bench.load(NFCTL, texts.file_a_counted, counters=True),
            prove=prove,
            still=untouched,
        ),
        Side(
            name=LEGACY,
            room=bench.room(LEGACY),
            argv=lambda _: [f"{LEGACY}-restore", texts.file_a],
            prepare=lambda: bench.load(LEGACY, texts.file_a),
            still=lambda: bench.expect(LEGACY, texts.a),
        ),
    ]
    bounds = [_ratio(texts.rules, LEGACY, 1.5, 0.7)]
    return race("restore-same", texts.rules, sides, bounds, bench.rounds)


def save(bench: Bench, texts: Texts) -> Result:
    """Print all rules with their counters."""

    def side(name: str, *command: str) -> Side:
        def prove() -> None:
            printed = bench.room(name).output(command)
            same("the printed rules", printed, texts.a_counted)

        return Side(
            name=name,
            room=bench.room(name),
            argv=lambda _: command,
            prepare=lambda: bench.load(name, texts.file_a_counted, counters=True),
            prove=prove,
            still=prove,
        )

    sides = [side(NFCTL, bench.nfctl, "save", "-c"), side(LEGACY, f"{LEGACY}-save", "-c")]
    bounds = [_ratio(texts.rules, LEGACY, 6.0, 3.0)]
    return race("save", texts.rules, sides, bounds, bench.rounds)


def add(bench: Bench, texts: Texts) -> Result:
    """Add one rule into N; it is deleted again outside the measured time."""
    chain = texts.chain()
    lines = texts.a.splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith((f"-A {chain} ", ":")))
    with_rule = "\n".join([*lines[: last + 1], f"-A {chain} {_NEW_RULE_SAVED}", *lines[last + 1 :]])

    def side(name: str, *command: str) -> Side:
        def take_back(_turn: int = 0) -> None:
            # Fails, and so refuses the side, when the rule is not there.
            bench.room(name).run([LEGACY, "-D", chain, *_NEW_RULE])

        def prove() -> None:
            bench.room(name).run(command)
            bench.expect(name, with_rule)
            take_back()
            bench.expect(name, texts.a)

        return Side(
            name=name,
            room=bench.room(name),
            argv=lambda _: command,
            prepare=lambda: bench.load(name, texts.file_a),
            prove=prove,
            after=take_back,
            still=lambda: bench.expect(name, texts.a),
        )

    sides = [
        side(NFCTL, bench.nfctl, "rule", "add", "-t", "filter", chain, *_NEW_RULE),
        side(LEGACY, LEGACY, "-A", chain, *_NEW_RULE),
    ]
    bounds = [_ratio(texts.rules, LEGACY, 2.5, 1.2)]
    return race("add", texts.rules, sides, bounds, bench.rounds)


def memory(bench: Bench, texts: Texts) -> Iterator[Result]:
    """Take the peak memory of a restore onto other rules, and of a save."""
    bounds = [Bound(None, MEMORY_FLOOR_MB)]
    rounds = min(2, bench.rounds)  # it hardly differs from run to run

    def side(name: str, argv: Callable[[int], list[str | Path]], save_it: bool) -> Side:
        def prove() -> None:
            bench.room(name).run(argv(0))
            if save_it:
                same("the printed rules", bench.room(name).stdout(), texts.a_counted)
            else:
                bench.expect(name, texts.a)

        file = texts.file_a_counted if save_it else texts.file_b
        return Side(
            name=name,
            room=bench.room(name),
            argv=argv,
            prepare=lambda: bench.load(name, file, counters=save_it),
            prove=prove,
        )

    sides = [
        side(NFCTL, lambda turn: [bench.nfctl, "restore", texts.file(turn)], False),
        side(LEGACY, lambda turn: [f"{LEGACY}-restore", texts.file(turn)], False),
    ]
    yield race("memory-restore", texts.rules, sides, bounds, rounds)
    sides = [
        side(NFCTL, lambda _: [bench.nfctl, "save", "-c"], True),
        side(LEGACY, lambda _: [f"{LEGACY}-save", "-c"], True),
    ]
    yield race("memory-save", texts.rules, sides, bounds, rounds)


def help_(bench: Bench) -> Result:
    """Print the help: what a start without any work costs."""

    def side(name: str, program: str | Path) -> Side:
        def prove() -> None:
            if "usage" not in bench.room(name).output([program, "--help"]).lower():
                raise Wrong("it prints no usage")

        return Side(name, bench.room(name), lambda _: [program, "--help"], prove=prove)

    sides = [side(NFCTL, bench.nfctl), side(TYPER, bench.typer_program())]
    return race("help", 0, sides, [Bound(TYPER, 1.3)], bench.rounds)


def list_empty(bench: Bench) -> Result:
    """List an empty table: what a start with the least work costs."""
    command = [bench.nfctl, "rule", "list"]
    probe = ["INPUT", "-s", _PROBE, "-j", "ACCEPT"]
    empty = bench.scratch / "empty"
    empty.write_text(generate.ruleset(0))

    def prove() -> None:
        room = bench.room(NFCTL)
        room.run([LEGACY, "-A", *probe])
        if _PROBE.split("/", maxsplit=1)[0] not in room.output(command):
            raise Wrong("it does not list a rule that is there")
        room.run([LEGACY, "-D", *probe])
        if _PROBE.split("/", maxsplit=1)[0] in room.output(command):
            raise Wrong("it lists a rule that is not there")

    program = bench.typer_program()
    sides = [
        Side(
            name=NFCTL,
            room=bench.room(NFCTL),
            argv=lambda _: command,
            prepare=lambda: bench.load(NFCTL, empty),
            prove=prove,
        ),
        Side(TYPER, bench.room(TYPER), lambda _: [program, "hello", "world"]),
    ]
    return race("list-empty", 0, sides, [Bound(TYPER, 2.0)], bench.rounds)


BY_SIZE: dict[str, Callable[[Bench, Texts], Result]] = {
    "restore": restore,
    "restore-same": restore_same,
    "save": save,
    "add": add,
    "apply-one": applying.apply_one,
    "apply-first": applying.apply_first,
    "apply-same": applying.apply_same,
}
ALONE: dict[str, Callable[[Bench], Result]] = {
    "help": help_,
    "list-empty": list_empty,
    "plan-yaml": applying.plan_yaml,
    "lab": labs.lab,
    "labs": labs.lab_python,
    "inspect": inspection.inspect,
    "inspect-offload": inspection.offload,
    "inspect-workers": inspection.workers,
    "inspect-memory": inspection.memory,
}
NAMES = (*BY_SIZE, "memory", *ALONE, *serving.BY_SERVICES)


def measure(
    bench: Bench, sizes: list[int], services: list[int], names: Sequence[str]
) -> Iterator[Result]:
    """Take the named measurements, size by size."""
    for name, alone in ALONE.items():
        if name in names:
            yield alone(bench)
    for count in services:
        for name, by_services in serving.BY_SERVICES.items():
            if name in names:
                yield by_services(bench, count)
    if not set(names) - ALONE.keys() - serving.BY_SERVICES.keys():
        return
    for rules in sizes:
        texts = bench.texts(rules)
        for name, by_size in BY_SIZE.items():
            if name in names:
                yield by_size(bench, texts)
        if "memory" in names:
            yield from memory(bench, texts)
