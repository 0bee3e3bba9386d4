"""What the demo found out: outcomes, and the report as one JSON document."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nfctl.lab.traffic import Verdict

if TYPE_CHECKING:
    from nfctl.lab.demo.probes import Probe
    from nfctl.lab.explain import Step
    from nfctl.lab.traffic import Answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one probe: the sender's answer, the rules it met, where it arrived.

    ``arrived`` is ``host:port`` and ``seen_as`` the source address it had there; both are
    empty if no server saw it (an echo request reaches none).
    """

    probe: Probe
    answer: Answer
    steps: list[Step]
    decided_by: Step | None
    arrived: str = ""
    seen_as: str = ""

    @property
    def translated_by(self) -> list[Step]:
        """The rules of nat that changed an address or a port."""
        return [step for step in self.steps if step.translates]

    @property
    def problems(self) -> list[str]:
        """Say what is not as expected, in words; nothing if all is well."""
        probe, answer = self.probe, self.answer
        found = []
        if answer.verdict is not probe.expected:
            found.append(f"expected {probe.expected}, got {answer.verdict}")
        elif answer.reason != probe.reason:
            found.append(f"expected {probe.reason}, got {answer.reason}")
        if self.arrived and probe.expected is not Verdict.ACCEPTED:
            found.append(f"it arrived at {self.arrived}, from {self.seen_as}")
        decided = self.decided_by.place if self.decided_by else "no rule"
        if decided != probe.decided_by:
            found.append(f"expected {probe.decided_by} to decide, but {decided} did")
        translated = ", ".join(step.place for step in self.translated_by)
        if translated != probe.translated_by:
            found.append(f"expected nat by {probe.translated_by or 'none'}, got {translated}")
        if probe.arrives and self.arrived != probe.arrives:
            found.append(f"expected at {probe.arrives}, arrived at {self.arrived or 'none'}")
        if probe.seen_as and self.seen_as != probe.address(probe.seen_as):
            found.append(f"expected from {probe.address(probe.seen_as)}, seen as {self.seen_as}")
        return found


@dataclass(slots=True)
class Report:
    """The whole demo. ``rules`` counts them by family and table; ``seconds`` is wall time."""

    lab: str = ""
    rules: dict[int, dict[str, int]] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything came as expected and nothing was left behind."""
        return not self.left_behind and not any(one.problems for one in self.outcomes)

    def count(self) -> dict[str, int]:
        """Return how many probes were accepted, rejected, dropped and translated."""
        counts = {
            verdict.value: sum(one.answer.verdict is verdict for one in self.outcomes)
            for verdict in Verdict
        }
        counts["translated"] = sum(bool(one.translated_by) for one in self.outcomes)
        return counts

    def document(self) -> dict[str, Any]:
        """Return all of it as one JSON document."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "rules": {
                f"ipv{family}": {**tables, "total": sum(tables.values())}
                for family, tables in self.rules.items()
            },
            "counts": self.count(),
            "probes": [_outcome(one) for one in self.outcomes],
            "left_behind": self.left_behind,
        }


def _outcome(one: Outcome) -> dict[str, Any]:
    probe, answer = one.probe, one.answer
    return {
        "title": probe.title,
        "family": probe.family,
        "from": {"name": probe.source, "address": probe.address(probe.source)},
        "to": {"name": probe.target, "address": probe.address(probe.target)},
        "protocol": probe.protocol,
        "port": probe.port or None,
        "expected": probe.expected.value,
        "outcome": answer.verdict.value,
        "reason": answer.reason or None,
        "rejected_by": answer.sender or None,
        "arrived": one.arrived or None,
        "seen_as": one.seen_as or None,
        "decided_by": _step(one.decided_by) if one.decided_by else None,
        "translated_by": [_step(step) for step in one.translated_by],
        "steps": [_step(step) for step in one.steps],
        "milliseconds": round(answer.seconds * 1000, 2),
        "ok": not one.problems,
        "problems": one.problems,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "table": step.table,
        "chain": step.chain,
        "path": list(step.path),
        "rule": step.number or None,
        "text": step.text,
        "target": step.target,
        "packets": step.packets,
    }
