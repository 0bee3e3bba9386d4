"""What ``nfctl lab probe`` does: send one thing, and tell what came of it and why."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nfctl.cli.answer import colours, print_json
from nfctl.cli.lab_find import meant, the_host
from nfctl.errors import BadInput
from nfctl.lab.traffic import Verdict
from nfctl.testing import inside
from nfctl.testing.crew import dismiss
from nfctl.testing.expect import _unanswered
from nfctl.testing.sending import plan, reason
from nfctl.testing.survey import Survey
from nfctl.testing.trail import decide, tell

if TYPE_CHECKING:
    from typing import Literal

    from nfctl.lab.explain import Step
    from nfctl.lab.host import Host
    from nfctl.lab.standing import Standing
    from nfctl.lab.traffic import Answer
    from nfctl.testing.sending import Sending
    from nfctl.testing.trail import Decision, Hop

_COLOURS = {Verdict.ACCEPTED: "32", Verdict.REJECTED: "33", Verdict.DROPPED: "31"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a probe: the answer, the hosts on the way, and the rules that decided.

    ``addressee`` is the host whose own IP stack got the packet, "" if none did.
    """

    lab: str
    sending: Sending
    answer: Answer
    source: str
    target: str
    sender: str
    addressee: str
    hops: list[Hop]
    decisions: list[Decision]

    @property
    def accepted(self) -> bool:
        """Whether an answer came."""
        return self.answer.verdict is Verdict.ACCEPTED


def probe(
    host: str,
    to: str,
    what: str,
    *,
    lab: str = "",
    family: int | None = None,
    source: str = "",
    timeout: float,
    json: bool = False,
) -> bool:
    """Send one thing, print what came of it, and return whether it was accepted."""
    standing, sender = the_host(lab, host)
    target = _target(standing, to, family)
    try:
        version: Literal[4, 6] | None = None if family is None else 6 if family == 6 else 4
        sending = plan(sender, target, what, family=version, source=source, timeout=timeout)
        outcome = _send(standing.name, sending)
    finally:
        dismiss(standing.name)
    if json:
        print_json(document(outcome))
    else:
        print("\n".join(lines(outcome)))
    return outcome.accepted


def _target(lab: Standing, word: str, family: int | None) -> Host | str:
    """Return the host or the address that a word stands for; also by a name of the topology."""
    if word in lab.hosts:
        return lab.hosts[word]
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        names = lab.topology.addresses()
    if word not in names:
        msg = f'"{word}" is neither an address nor a host of the lab {lab.name}'
        known = [
            *lab.hosts,
            *(name for name in names if name.removesuffix(".lab") not in lab.hosts),
        ]
        raise BadInput(msg, hint=meant(word, known, "name"))
    wanted = {family} if family else {4, 6}
    for address in sorted(names[word], key=lambda address: ":" in address):
        if ipaddress.ip_address(address).version in wanted:
            return address
    raise BadInput(f"{word} has no address" + (f" of IPv{family}" if family else ""))


def _send(lab: str, sending: Sending) -> Outcome:
    crew = sending.crew
    for name in crew.names():
        crew.ask(name, inside.mark, sending.family)
    try:
        answer = sending.send()
    except OSError as error:
        why = reason(error, sending.address)
        raise BadInput(f"{sending.sender.name} cannot send {sending.text}: {why}") from None
    survey = Survey(sending)
    addressee = survey.delivered()
    hops = survey.hops()
    decisions = decide(answer.verdict, hops, delivered=bool(addressee))
    if not decisions and addressee and answer.verdict is not Verdict.ACCEPTED:
        note = _unanswered(sending, addressee, answer)
        hops = [replace(hop, note=note) if hop.host == addressee else hop for hop in hops]
    return Outcome(
        lab,
        sending,
        answer,
        survey.source(),
        survey.owner(sending.address),
        survey.owner(answer.sender),
        addressee,
        hops,
        decisions,
    )


# --- text ---------------------------------------------------------------------------------------


def lines(outcome: Outcome) -> list[str]:
    """Return the text: the verdict, and each rule that the packet met, host by host."""
    sending, answer = outcome.sending, outcome.answer
    sender = _with_address(sending.sender.name, outcome.source)
    target = _with_address(outcome.target, sending.address)
    first = f"{_verdict(answer.verdict)}: {sending.text} from {sender} to {target}{_how(outcome)}"
    told = tell(outcome.hops, outcome.decisions)
    if not outcome.decisions and not outcome.addressee and not any(h.note for h in outcome.hops):
        told.append("  no rule or policy of the legacy tables of these hosts decided it")
    return [first, *told]


def _how(outcome: Outcome) -> str:
    answer, timeout = outcome.answer, outcome.sending.timeout
    if answer.verdict is Verdict.ACCEPTED:
        return f", seen as {answer.seen_as}" if answer.seen_as not in {"", outcome.source} else ""
    if answer.verdict is Verdict.REJECTED:
        by = f" from {_with_address(outcome.sender, answer.sender)}" if answer.sender else ""
        return f"; {answer.reason}{by}"
    if answer.errno:  # EPERM: its own firewall told it
        return f"; {outcome.sending.sender.name} did not let it out"
    arrived = f"it arrived at {outcome.addressee}, but " if outcome.addressee else ""
    return f"; {arrived}no answer within {timeout:g} s"


def _with_address(name: str, address: str) -> str:
    return f"{name} ({address})" if name and address else name or address


def _verdict(verdict: Verdict) -> str:
    if colours():
        return f"\033[1;{_COLOURS[verdict]}m{verdict.value}\033[0m"
    return verdict.value


# --- document -----------------------------------------------------------------------------------


def document(outcome: Outcome) -> dict[str, object]:
    """Return the document of ``--json``: see ``nfctl.cli.lab`` for its keys."""
    sending, answer = outcome.sending, outcome.answer
    return {
        "lab": outcome.lab,
        "what": sending.text,
        "family": sending.family,
        "from": {"host": sending.sender.name, "address": outcome.source or None},
        "to": {"host": outcome.target or None, "address": sending.address},
        "verdict": answer.verdict.value,
        "reason": answer.reason or None,
        "refused_by": answer.sender or None,
        "seen_as": answer.seen_as or None,
        "seconds": round(answer.seconds, 6),
        "arrived_at": outcome.addressee or None,
        "decided_by": [
            {"host": outcome.hops[decision.hop].host, **_step_document(decision.step)}
            for decision in outcome.decisions
        ],
        "hops": [
            {
                "host": hop.host,
                "arrived": hop.arrived,
                "note": hop.note or None,
                "steps": [_step_document(step) for step in hop.steps],
            }
            for hop in outcome.hops
        ],
    }


def _step_document(step: Step) -> dict[str, object]:
    return {
        "table": step.table,
        "chain": step.chain,
        "rule": step.number or None,
        "text": step.text,
        "target": step.target,
        "packets": step.packets,
    }
