"""What is measured of apply and plan: against loading the whole file with iptables-restore.

``apply-one`` is a file of which one rule changed since it was applied last, ``apply-first`` the
same change where nobody applied anything before, ``apply-same`` a file that is in force already.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.bench.harness import Bound, Result, Side, race
from tests.bench.room import Wrong

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.measures import Bench, Texts

NFCTL, LEGACY = "nfctl", "iptables-legacy"
_CHANGED = "-s 192.0.2.77/32 -m comment --comment changed -j ACCEPT"
_JUDGED_FROM = 50_000
YAML_RULES = 5_000
YAML_SECONDS = 1.5


class Job:
    """A ruleset, the same with one rule changed in the middle, and a state to apply them with."""

    def __init__(self, bench: Bench, texts: Texts) -> None:
        self.bench = bench
        self.rules = texts.rules
        lines = texts.a.splitlines()
        places = [i for i, line in enumerate(lines) if line.startswith("-A ")]
        middle = places[len(places) // 2]
        lines[middle] = f"-A {lines[middle].split()[1]} {_CHANGED}"
        self.texts = (texts.a, "\n".join(lines) + "\n")
        changed = bench.scratch / f"{texts.rules}.changed"
        changed.write_text(self.texts[1])
        self.files = (texts.file_a, changed)
        self.state = bench.scratch / f"state-{texts.rules}"

    def argv(self, number: int) -> list[str | Path]:
        """Return the command that applies text 0 or 1."""
        words = ["env", f"NFCTL_STATE_DIR={self.state}", self.bench.nfctl]
        return [*words, "apply", "--quiet", "-4", self.files[number]]

    def forget(self) -> None:
        """Remove the journal and all that was remembered."""
        shutil.rmtree(self.state, ignore_errors=True)

    def apply(self, number: int) -> None:
        self.bench.room(NFCTL).run(self.argv(number))

    def legacy(self) -> Side:
        """Return the other side: it loads the two texts in turn, whole."""

        def prove() -> None:
            for number in (1, 0):
                self.bench.room(LEGACY).run([f"{LEGACY}-restore", self.files[number]])
                self.bench.expect(LEGACY, self.texts[number])

        return Side(
            name=LEGACY,
            room=self.bench.room(LEGACY),
            argv=lambda turn: [f"{LEGACY}-restore", self.files[turn % 2]],
            prove=prove,
        )

    def race(self, name: str, side: Side, floor: float, aim: float) -> Result:
        bound = Bound(LEGACY)
        if self.rules >= _JUDGED_FROM:
            bound = Bound(LEGACY, floor, aim)
        return race(name, self.rules, [side, self.legacy()], [bound], self.bench.rounds)


def apply_one(bench: Bench, texts: Texts) -> Result:
    """Apply a file with one rule changed, in turn this way and that."""
    job = Job(bench, texts)

    def prove() -> None:
        job.forget()
        for number in (0, 1, 0):
            job.apply(number)
            bench.expect(NFCTL, job.texts[number])

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda turn: job.argv(turn % 2),
        prove=prove,
        still=lambda: bench.expect(NFCTL, job.texts[(bench.rounds - 1) % 2]),
    )
    return job.race("apply-one", side, 2.0, 1.0)


def apply_first(bench: Bench, texts: Texts) -> Result:
    """Apply it where iptables-restore loaded the rules, and nothing is remembered."""
    job = Job(bench, texts)

    def anew(_turn: int = 0) -> None:
        job.forget()
        bench.load(NFCTL, job.files[0])

    def prove() -> None:
        anew()
        job.apply(1)
        bench.expect(NFCTL, job.texts[1])
        anew()

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda _: job.argv(1),
        prove=prove,
        after=anew,
    )
    return job.race("apply-first", side, 2.0, 1.0)


def apply_same(bench: Bench, texts: Texts) -> Result:
    """Apply what is in force: nothing is written, and so no counter changes."""
    job = Job(bench, texts)

    def prepare() -> None:
        job.forget()
        job.apply(0)
        bench.load(NFCTL, texts.file_a_counted, counters=True)

    def untouched() -> None:
        try:
            bench.expect(NFCTL, texts.a_counted, counters=True)
        except Wrong as wrong:
            raise Wrong(f"it wrote what was already there: {wrong}") from wrong

    def prove() -> None:
        job.apply(0)
        untouched()

    side = Side(
        name=NFCTL,
        room=bench.room(NFCTL),
        argv=lambda _: job.argv(0),
        prepare=prepare,
        prove=prove,
        still=untouched,
    )
    return job.race("apply-same", side, 1.5, 0.7)


def plan_yaml(bench: Bench) -> Result:
    """Plan a YAML policy of 5,000 rules, against iptables-restore --test of the same rules."""
    texts = bench.texts(YAML_RULES)
    policy = bench.scratch / "policy.yaml"
    policy.write_text(to_yaml(texts.a))
    command = ["env", f"NFCTL_STATE_DIR={bench.scratch / 'state-yaml'}", bench.nfctl, "plan"]

    def empty() -> None:
        for words in (["-F"], ["-X"]):
            bench.room(NFCTL).run([LEGACY, *words])

    def prove() -> None:
        script = '"$@" --json; test $? -eq 1'
        found = json.loads(bench.room(NFCTL).output(["sh", "-c", script, "sh", *command, policy]))
        if found["summary"]["add"] != YAML_RULES:
            raise Wrong(f"the plan has {found['summary']['add']} rules, not {YAML_RULES}")

    script = '"$@" >/dev/null; test $? -eq 1'
    sides = [
        Side(
            name=NFCTL,
            room=bench.room(NFCTL),
            argv=lambda _: ["sh", "-c", script, "sh", *command, policy],
            prepare=empty,
            prove=prove,
        ),
        Side(
            name=LEGACY,
            room=bench.room(LEGACY),
            argv=lambda _: [f"{LEGACY}-restore", "--test", texts.file_a],
        ),
    ]
    bounds = [Bound(LEGACY, YAML_SECONDS, in_seconds=True)]
    return race("plan-yaml", YAML_RULES, sides, bounds, bench.rounds)


def to_yaml(saved: str) -> str:
    """Return iptables-save text of table filter as a YAML policy for IPv4."""
    rules: dict[str, list[str]] = {}
    policies: dict[str, str] = {}
    for line in saved.splitlines():
        if line.startswith(":"):
            chain, policy, _ = line[1:].split()
            rules[chain] = []
            policies[chain] = policy
        elif line.startswith("-A "):
            _, chain, spec = line.split(" ", 2)
            rules[chain].append(spec)
    lines = ["version: 1", "families: [ipv4]", "tables:", "  filter:"]
    for chain, specs in rules.items():
        lines.append(f"    {chain}:")
        if policies[chain] != "-":
            lines.append(f"      policy: {policies[chain].lower()}")
        lines.append("      rules:")
        lines += [f"        - {json.dumps(spec)}" for spec in specs]
    return "\n".join(lines) + "\n"
