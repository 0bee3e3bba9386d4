"""The way of one attempt over the hosts, and what there is to tell about it: pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from nfctl.lab.explain import Step, deciding
from nfctl.lab.traffic import Verdict

_DECIDED = "decided"
_NEIGHBOURS = "dropped neighbour discovery, without which nothing comes"
_QUEUES = frozenset({"NFQUEUE", "QUEUE"})


@dataclass(frozen=True, slots=True)
class Hop:
    """A host on the way and what moved there: ``steps`` on the way to it, ``back`` on that back.

    On a host between two others both are the same rules. ``arrived`` says whether a packet
    came in, ``note`` what its IP stack made of it if that went wrong. ``neighbours`` is where
    neighbour discovery goes, of which IPv4 has none: what is for the host itself.
    """

    host: str
    steps: list[Step]
    back: list[Step]
    arrived: bool = True
    has_rules: bool = True
    note: str = ""
    neighbours: list[Step] = field(default_factory=list)


class Decision(NamedTuple):
    """The step that decided, the index of its hop, and a word for the margin."""

    hop: int
    step: Step
    word: str


def decide(verdict: Verdict, hops: list[Hop], *, delivered: bool) -> list[Decision]:
    """Return the steps that decided: one refusal, or what accepted it on each host.

    ``delivered``: the addressee's own IP stack got the packet, so that no rule on the way to
    it refused it; what was refused then is the answer, on its way back.
    """
    if verdict is Verdict.ACCEPTED:
        last_words = [(number, deciding(hop.steps)) for number, hop in enumerate(hops)]
        return [Decision(number, step, _DECIDED) for number, step in last_words if step]
    if verdict is Verdict.REJECTED:
        met = [(number, step) for number, hop in enumerate(hops) for step in hop.steps]
        return [Decision(n, step, _DECIDED) for n, step in met if step.target == "REJECT"][:1]
    if delivered:
        return _answer_refused(hops)
    for number, hop in enumerate(hops):
        for step in hop.steps:
            if step.refuses:
                came = hop.arrived or number == 0
                found = [Decision(number, step, _DECIDED if came else _NEIGHBOURS)]
                # A REJECT had answered: so that answer was lost.
                return found + (_answer_refused(hops[:number]) if step.target == "REJECT" else [])
    return _queued(hops) or _neighbours_refused(hops)


def _answer_refused(hops: list[Hop]) -> list[Decision]:
    """Return where an answer that comes back from behind these hops is refused."""
    for number in range(len(hops) - 1, -1, -1):
        for step in hops[number].back:
            if step.refuses:
                word = "rejected" if step.target == "REJECT" else "dropped"
                return [Decision(number, step, f"{word} the answer")]
    return []


def _neighbours_refused(hops: list[Hop]) -> list[Decision]:
    """Return who refused neighbour discovery, so that the packet was not even sent."""
    for number, hop in enumerate(hops):
        for step in hop.neighbours:
            if step.refuses:
                return [Decision(number, step, _NEIGHBOURS)]
    return []


def _queued(hops: list[Hop]) -> list[Decision]:
    word = "queued, and no program let it go on"
    found = [(n, step) for n, hop in enumerate(hops) for step in hop.steps]
    return [Decision(n, step, word) for n, step in found if step.target in _QUEUES][-1:]


def tell(hops: list[Hop], decisions: list[Decision]) -> list[str]:
    """Return a line for each rule that a packet met, host by host."""
    lines: list[str] = []
    for number, hop in enumerate(hops):
        marks = {decision.step: decision.word for decision in decisions if decision.hop == number}
        told = [f"{_rule(step)}{_margin(marks.get(step))}" for step in _worth_telling(hop, marks)]
        if number and not told:
            told = [hop.note or _without_rules(hop)]
        elif hop.note:
            told.append(hop.note)
        start = f"  {hop.host}: "
        for text in told:
            lines.append(start + text)
            start = " " * len(start)
    return lines


def _without_rules(hop: Hop) -> str:
    if not hop.arrived:
        return "the packet did not arrive"
    return "the packet arrived" + (", no rule counted it" if hop.has_rules else "; no rules there")


def _worth_telling(hop: Hop, marks: dict[Step, str]) -> list[Step]:
    """Leave out jumps that the path of a later step shows; add what decided on the way back."""
    steps = hop.steps + [step for step in marks if step not in hop.steps]
    paths = [(step.table, chain) for step in steps for chain in step.path[1:]]
    return [step for step in steps if step in marks or (step.table, step.target) not in paths]


def _rule(step: Step) -> str:
    place = f"{step.table}:{' -> '.join(step.path)}"
    text = f"{place} rule {step.number}: {step.text}" if step.number else f"{place} {step.text}"
    return f"{text}   (+{step.packets} packet{'s' * (step.packets != 1)})"


def _margin(word: str | None) -> str:
    return f"   <- {word}" if word else ""
