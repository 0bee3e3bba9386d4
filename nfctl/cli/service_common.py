"""What the commands of ``nfctl service`` share: options, and how they say what was done."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli import complete
from nfctl.cli.answer import change_text, colours, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.control.change import Change
    from nfctl.control.serving.changing import Done
    from nfctl.control.serving.gone import Ended
    from nfctl.services.difference import Difference
    from nfctl.services.model import ServiceList

Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="PREFIX", show_default=False,
                 help="How the chains begin: NFCTL- if nothing else is said or applied."),
]  # fmt: skip
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", autocompletion=complete.services,
                   help="A service, or NAME/udp where there are two of that name."),
]  # fmt: skip
EndTcp = Annotated[
    bool,
    typer.Option("--end-tcp", show_default=False, help="End TCP connections to endpoints that "
                 "are gone; otherwise they go on. Of UDP all flows are ended."),
]  # fmt: skip
ShowRules = Annotated[
    bool, typer.Option("--rules", show_default=False, help="Show what becomes of the rules, too.")
]
Adopt = Annotated[
    bool,
    typer.Option("--adopt", show_default=False, help="Take over chains of this prefix that "
                 "somebody else made."),
]  # fmt: skip
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Do not print the change.", show_default=False)
]

_COLOURS = {"+": "32", "-": "31", "*": "36", "#": "33"}


def say(
    done: Sequence[Done],
    *,
    rules: bool = False,
    quiet: bool = False,
    whole: bool = False,
    more: str = "",
) -> None:
    """Print what was done; with ``quiet`` only what went wrong, on standard error.

    ``whole``: of all services is told what they lack, not of those alone that are others now.
    """
    last = done[-1]
    problems = [one.ended.problem for one in done if one.ended.problem]
    if quiet:
        for problem in problems:
            print(f"nfctl: warning: {problem}", file=sys.stderr)
        return
    lines = []
    for one in done:
        if one.status != "unchanged" or rules or one.difference:
            lines += change_lines(one.difference, one.change, rules=rules)
    about = last.services if whole else last.differing
    lines += remarks(about, last.notes + problems, last.change)
    lines += flow_lines([one.ended for one in done])
    if all(one.status == "unchanged" for one in done):
        lines.append("nothing to change")
    elif last.status != "unconfirmed":
        numbers = [str(one.outcome.entry.number) for one in done if one.outcome.entry is not None]
        word = "entries" if len(numbers) > 1 else "entry"
        lines.append(f"applied: history {word} {', '.join(numbers)}; nfctl rollback undoes it")
    lines += [more] if more else []
    write("".join(f"{line}\n" for line in lines))


def change_lines(difference: Difference, change: Change, *, rules: bool) -> list[str]:
    """Return what changes: services a line each, the rules summed up or a line each."""
    from nfctl.services import difference as differences

    found = [marked(mark, text) for mark, text in differences.lines(difference)]
    if not rules:
        if not change.changes:
            return found
        why = "" if difference else ": the list is the same, the kernel's chains were not"
        return [*found, f"{_summary(change)}{why}"]
    return [*found, *([""] if found else []), *change_text(change).rstrip("\n").split("\n")]


def _summary(change: Change) -> str:
    """Return what a change comes to: what others have there as well is of no interest here."""
    from nfctl.control import show
    from nfctl.text import several

    counts = show.counts(change)
    parts = [
        f"{several(counts[key], noun)} to {verb}"
        for key, noun, verb in (
            ("add", "rule", "add"),
            ("delete", "rule", "delete"),
            ("move", "rule", "move"),
            ("chains_created", "chain", "create"),
            ("chains_deleted", "chain", "delete"),
        )
        if counts[key]
    ]
    return ", ".join(parts)


def remarks(settings: ServiceList, notes: Sequence[str], change: Change | None) -> list[str]:
    """Return what is not as it should be: services without endpoints, and notes."""
    from nfctl.services.difference import title, unserved
    from nfctl.text import visible

    found = [f"{title(service)} {what}" for service, what in unserved(settings)]
    if len(found) > _MOST:
        found[_MOST:] = [f"... and {len(found) - _MOST} more"]
    more = change.notes if change is not None else []
    return [marked("#", visible(text)) for text in [*found, *notes, *more]]


_MOST = 20  # services without endpoints that are named


def flow_lines(ended: Sequence[Ended]) -> list[str]:
    """Return what became of flows to endpoints that are gone."""
    from nfctl.text import several

    udp = sum(one.udp for one in ended)
    streams = sum(one.streams or 0 for one in ended)
    left = ended[-1].left
    found = []
    if udp:
        found.append(f"{several(udp, 'UDP flow')} deleted, which nobody would answer")
    if streams:
        found.append(f"{several(streams, 'connection')} to endpoints that are gone ended")
    if left:
        what = several(left, "connection")
        found.append(f"{what} to endpoints that are gone may go on (--end-tcp ends such)")
    return found


def marked(mark: str, text: str) -> str:
    """Return a line with a mark, coloured on a terminal."""
    line = f"{mark} {text}"
    return f"\033[{_COLOURS[mark]}m{line}\033[0m" if colours() else line


# --- JSON -----------------------------------------------------------------------------------------


def document(done: Done, *, rules: bool = False) -> dict[str, Any]:
    """Return what was done, as the docstring of ``nfctl.cli.service`` says."""
    outcome, ended = done.outcome, done.ended
    return {
        "status": outcome.status,
        "entry": outcome.entry.number if outcome.entry else None,
        **planned(done.services, done.difference, done.change, done.notes, rules=rules),
        "flows": {
            "udp": ended.udp,
            "streams": ended.streams,
            "left": ended.left,
            "problem": ended.problem or None,
        },
    }


def planned(
    settings: ServiceList,
    difference: Difference,
    change: Change,
    notes: Sequence[str],
    *,
    rules: bool = False,
) -> dict[str, Any]:
    """Return what is to change."""
    from nfctl.control import show
    from nfctl.services.difference import unserved

    found: dict[str, Any] = {
        "changes": change.changes,
        "policy": change.policy,
        "prefix": settings.prefix,
        "services": difference.document(),
        "unserved": [
            {"name": service.name, "protocol": service.protocol, "what": what}
            for service, what in unserved(settings)
        ],
        "notes": [*notes, *change.notes],
        "summary": show.counts(change),
    }
    if rules:
        found["change"] = show.document(change)
    return found
