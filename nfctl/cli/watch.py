"""``nfctl watch``: the host stays at its policy, or somebody is told."""

from __future__ import annotations

import gc
import json as jsonlib
import os
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.answer import write
from nfctl.cli.common import WAIT, Netns, Resolve, Wait
from nfctl.errors import BadInput
from nfctl.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.change import Change
    from nfctl.control.watching.watch import Event
    from nfctl.policy.wanted import Wanted

_MOST = 365 * 86400.0  # seconds
_LINES = 40  # of a change in a message for people
_UNEXCITING = frozenset({"start", "gone", "repaired", "reloaded", "end"})
SOURCES = {"lock": "the xtables lock", "audit": "the audit log"}


def watch(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="The policy.", show_default=False)
    ] = None,
    v4: Annotated[
        str | None,
        typer.Option("-4", "--ipv4", metavar="FILE", help="iptables-save text for IPv4.",
                     show_default=False),
    ] = None,
    v6: Annotated[
        str | None,
        typer.Option("-6", "--ipv6", metavar="FILE", help="ip6tables-save text for IPv6.",
                     show_default=False),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put back what others changed.", show_default=False)
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", help="How often to compare without a notice "
                     "that something changed."),
    ] = 30.0,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="The policy has its tables for itself: rules of "
                           "other programs are drift.", show_default=False)
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, an event a line: python -m pydoc "
                           "nfctl.control.watching.watch", show_default=False)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Tell only drifts and what goes wrong, in a line "
                           "each.", show_default=False)
    ] = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Keep the host at a policy: tell what other programs change, and put it back.

    It compares at the start, when another program has used the xtables lock or is in the audit
    log, and every --interval seconds. Rules of other programs that the policy leaves alone
    (Docker's, for example) are no drift. With --repair a drift is put back at once; where another
    program fights, later and later (300 seconds at most).

    SIGHUP reads the policy again; SIGTERM and Ctrl-C end it, with exit code 0. For systemd:
    python -m pydoc nfctl.control.watching.watch

    [bold]Example:[/bold] sudo nfctl watch --repair /etc/nfctl/policy.yaml
    """
    refuse_interval(interval)
    if "-" in {file, v4, v6}:
        msg = "a policy on standard input cannot be read again"
        raise BadInput(msg, hint="nfctl watch needs a file")

    from nfctl.control import apply as applying
    from nfctl.control.journal.state import State
    from nfctl.control.watching.waiting import Waiter
    from nfctl.control.watching.watch import Options, Watch
    from nfctl.kernel import netns as namespaces
    from nfctl.kernel.notices import Notices
    from nfctl.kernel.sdnotify import Notifier
    from nfctl.policy.reading import read

    def again() -> Wanted:
        return read(file, v4=v4, v6=v6)

    wanted = again()
    gc.enable()  # commands do without; this one stays
    notifier = Notifier()
    # the audit log and the manager's abstract socket are not to be had from another namespace
    with Notices() as notices, namespaces.entered(netns), Waiter(notices) as waiter:
        state = State()
        options = applying.Options(
            action="repair", exclusive=exclusive, guard_ssh=False, wait=wait, resolve=resolve
        )
        Watch(
            wanted,
            Options(repair=repair, interval=interval),
            read=again,
            plan=applying.Repeated(state, exclusive=exclusive, resolve=resolve),
            apply=lambda policy: applying.apply(policy, state=state, options=options),
            journal=state,
            wait=waiter,
            forget=notices.forget,
            tell=Teller(json=json, quiet=quiet),
            notifier=notifier,
        ).run(notices.sources, notices.missing)
    notifier.close()


def refuse_interval(seconds: float) -> None:
    """Raise BadInput for an --interval that makes no sense."""
    if not 0.1 <= seconds <= _MOST:  # nor nan
        msg = f"--interval {seconds:g}: it is 0.1 seconds at least, and a year at most"
        raise BadInput(msg)


class Teller:
    """Tells events on standard output: a document a line, or lines for people.

    With ``quiet`` those are left out whose kinds are ``unexciting``.
    """

    unexciting = _UNEXCITING

    def __init__(self, *, json: bool, quiet: bool = False) -> None:
        self._json, self._quiet = json, quiet
        # the journal of systemd has the time already
        self._dated = "JOURNAL_STREAM" not in os.environ

    def __call__(self, event: Event) -> None:
        """Tell it now."""
        if self._json:
            if not self._quiet or event.kind not in self.unexciting:
                write(jsonlib.dumps(self._document(event)) + "\n")
            return
        if not self._quiet or event.kind not in self.unexciting:
            write("".join(f"{line}\n" for line in self._lines(event)))

    def text(self, event: Event) -> list[str]:
        """Return an event for people."""
        return lines(event)

    def _document(self, event: Event) -> dict[str, Any]:
        document = {"event": event.kind, "time": event.time(), **event.facts}
        if event.change is not None:
            from nfctl.control import show

            document["change"] = show.document(event.change)
        return document

    def _lines(self, event: Event) -> Iterator[str]:
        first, *more = self.text(event)
        at = time.strftime("%H:%M:%S ", time.localtime(event.when)) if self._dated else ""
        yield at + first
        yield from (f"  {line}" for line in more)
        if event.change is not None and not self._quiet:
            yield "  what puts it back:"
            yield from (f"    {line}" for line in _shown(event.change))


def lines(event: Event) -> list[str]:
    """Return the text of an event for people, without the time and the change."""
    facts = event.facts
    if event.kind == "drift":
        drifts = [visible(f"{where(place)}: {place['text']}") for place in facts["places"]]
        if len(drifts) > 1:
            return [f"drift in {len(drifts)} places{by_whom(facts)}", *drifts]
        return [f"drift: {drifts[0]}{by_whom(facts)}"]
    return [visible(_text(event.kind, facts))]


def _text(kind: str, facts: dict[str, Any]) -> str:
    places = ", ".join(where(place) for place in facts.get("places", ()))
    match kind:
        case "start":
            does = "keeping the host at" if facts["repair"] else "watching over"
            sources = " and ".join(SOURCES[name] for name in facts["notices"])
            lacks = f" (no {'; no '.join(facts['missing'])})" if facts["missing"] else ""
            return f"{does} {_policy(facts)}; notices by {sources or 'nobody'}{lacks}"
        case "gone":
            return f"gone: the drift of {places}"
        case "repaired":
            return f"repaired: {places}" + (f" (entry {facts['entry']})" if facts["entry"] else "")
        case "repair-failed":
            return f"the repair failed, next in {facts['retry']:.0f} s: {facts['error']}"
        case "backing-off":
            times = facts["times"]
            repairs = "a repair" if times == 1 else f"each of {times} repairs"
            wait = f"the next repair is in {facts['seconds']:.0f} s"
            return f"backing off: {places} changed again after {repairs}{by_whom(facts)}; {wait}"
        case "reloaded":
            return f"reloaded: {_policy(facts)}"
        case "reload-failed":
            return f"not reloaded, the policy stays as it was: {facts['error']}"
        case "end":
            counts = (_count(facts[f"{noun}s"], noun) for noun in ("drift", "repair", "failure"))
            return f"ended by {facts['ended_by']}: {', '.join(counts)}"
        case _:
            return str(facts["text"])


def _policy(facts: dict[str, Any]) -> str:
    return f"the policy {facts['policy']} ({_count(facts['rules'], 'rule')})"


def where(place: dict[str, Any]) -> str:
    """Return a place of an event in words."""
    if "set" in place:
        return f"set {place['set']}"
    return f"IPv{place['family']} {place['table']} {place['chain']}"


def by_whom(facts: dict[str, Any]) -> str:
    """Return who it was, or may have been."""
    who = facts["who"]
    if not who:
        return ""
    names = visible(", ".join(_name(one) for one in who[:3]))
    return f"; by {names}" if who[0]["by"] == "audit" else f"; {names} had the lock"


def _name(one: dict[str, Any]) -> str:
    of = f", of {one['parent']}" if one["parent"] else ""
    return f"{one['comm']} (process {one['pid']}{of})"


def _shown(change: Change) -> Iterator[str]:
    from nfctl.control import show

    text = show.text(change).splitlines()
    yield from text[:_LINES]
    if len(text) > _LINES:
        yield f"and {len(text) - _LINES:,} lines more"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
