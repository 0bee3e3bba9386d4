"""Send something and fail the test, with the reasons, unless what has to come of it came.

1. Before: every host of the sender's lab remembers its counters (of the family in question).
2. What is sent is sent.
3. If it came as expected, that is all. A packet that was to be refused and yet reached the
   addressee, whose answer alone was lost, did not come as expected.
4. Otherwise every host tells what its counters counted since, and the message says which rule
   or policy decided, or how far the packet got.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from nfctl.lab.traffic import DROP_TIMEOUT, TIMEOUT, Verdict
from nfctl.testing import inside
from nfctl.testing.sending import plan, reason
from nfctl.testing.survey import Survey, delivered
from nfctl.testing.trail import decide, tell

if TYPE_CHECKING:
    from typing import Literal

    from nfctl.lab import Host
    from nfctl.lab.traffic import Answer
    from nfctl.testing.sending import Sending


def expect_accepted(
    sender: Host,
    to: Host | str,
    what: str,
    *,
    family: Literal[4, 6] | None = None,
    source: str = "",
    timeout: float = TIMEOUT,
) -> Answer:
    """Send ``what`` and return the answer; AssertionError if it was not answered.

    The arguments are those of :func:`nfctl.testing.connect`.
    """
    __tracebackhide__ = True
    sending = plan(sender, to, what, family=family, source=source, timeout=timeout)
    return _try(sending, Verdict.ACCEPTED)


def expect_dropped(
    sender: Host,
    to: Host | str,
    what: str,
    *,
    family: Literal[4, 6] | None = None,
    source: str = "",
    timeout: float = DROP_TIMEOUT,
) -> Answer:
    """Send ``what``; AssertionError if an answer came, or if it arrived and only that was lost.

    The arguments are those of :func:`nfctl.testing.connect`.
    """
    __tracebackhide__ = True
    sending = plan(sender, to, what, family=family, source=source, timeout=timeout)
    return _try(sending, Verdict.DROPPED)


def expect_rejected(
    sender: Host,
    to: Host | str,
    what: str,
    *,
    reason: str = "",
    family: Literal[4, 6] | None = None,
    source: str = "",
    timeout: float = TIMEOUT,
) -> Answer:
    """Send ``what``; AssertionError unless it was refused on the way, and said so.

    ``reason`` is the one it must have, as ``-j REJECT --reject-with`` calls it. A host on which
    nothing listens rejects nothing: the packet arrived there. The other arguments are those of
    :func:`nfctl.testing.connect`.
    """
    __tracebackhide__ = True
    sending = plan(sender, to, what, family=family, source=source, timeout=timeout)
    return _try(sending, Verdict.REJECTED, reason)


def _try(sending: Sending, expected: Verdict, why: str = "") -> Answer:
    __tracebackhide__ = True
    crew = sending.crew
    names = crew.names()
    for name in names:
        crew.ask(name, inside.mark, sending.family)
    try:
        answer = sending.send()
    except OSError as error:
        raise AssertionError(_not_sent(sending, expected, why, error)) from None
    as_expected = answer.verdict is expected and why in {"", answer.reason}
    if as_expected and (expected is Verdict.ACCEPTED or not delivered(sending, names)):
        return answer
    raise AssertionError(_report(sending, expected, why, answer))


# --- the message ---------------------------------------------------------------------------------


def _report(sending: Sending, expected: Verdict, why: str, answer: Answer) -> str:
    survey = Survey(sending)
    addressee = survey.delivered()
    hops = survey.hops()
    decisions = decide(answer.verdict, hops, delivered=bool(addressee))
    came = _came(survey, expected, answer, addressee)
    lines = [f"{_expected(survey, expected, why)}, but {came}"]
    if not decisions and addressee and answer.verdict is not Verdict.ACCEPTED:
        note = _unanswered(sending, addressee, answer)
        last = [number for number, hop in enumerate(hops) if hop.host == addressee][-1:]
        hops = [replace(hop, note=note) if n in last else hop for n, hop in enumerate(hops)]
    lines += tell(hops, decisions)
    if not decisions and not any(hop.note for hop in hops):
        lines.append("  no rule or policy of the legacy tables of these hosts decided it")
    return "\n".join(lines)


def _expected(survey: Survey, expected: Verdict, why: str) -> str:
    sending = survey.sending
    source = survey.source()
    sender = sending.sender.name + (f" ({source})" if source else "")
    owner = survey.owner(sending.address)
    to = f"{owner} ({sending.address})" if owner else sending.address
    fate = f"{expected} with {why}" if why else f"{expected}"
    return f"expected {sending.text} from {sender} to {to} to be {fate}"


def _came(survey: Survey, expected: Verdict, answer: Answer, addressee: str) -> str:
    if answer.verdict is Verdict.ACCEPTED:
        translated = answer.seen_as not in {"", survey.source()}
        return "it was accepted" + (f", seen as {answer.seen_as}" if translated else "")
    if answer.verdict is Verdict.REJECTED:
        who = survey.owner(answer.sender)
        by = f" from {who} ({answer.sender})" if who else ""
        if addressee:
            return f"{addressee} itself refused it ({answer.reason}{by})"
        return f"it was rejected ({answer.reason}{by})"
    if answer.errno == errno.EPERM:
        return f"it was dropped ({survey.sending.sender.name} did not let it out: EPERM)"
    waited = f"no answer within {survey.sending.timeout:g} s"
    if addressee and expected is Verdict.DROPPED:
        return f"it arrived at {addressee} ({waited})"
    return f"it was dropped ({waited})"


def _unanswered(sending: Sending, addressee: str, answer: Answer) -> str:
    """Say why the addressee, which got the packet, did not answer it as wished."""
    transport, port = sending.what.transport, sending.what.port
    if transport != "icmp" and not sending.crew.ask(
        addressee, inside.listens, transport, port, sending.family
    ):
        nothing = f"nothing listens on {transport}/{port}"
        return f"the packet arrived, and {nothing}; no firewall refused it"
    if answer.verdict is Verdict.DROPPED:
        return "the packet arrived, and no rule counted an answer to it"
    return "the packet arrived; no firewall refused it"


def _not_sent(sending: Sending, expected: Verdict, why: str, error: OSError) -> str:
    survey = Survey(sending)
    cause = reason(error, sending.address)
    return f"{_expected(survey, expected, why)}, but {sending.sender.name} cannot send it: {cause}"
