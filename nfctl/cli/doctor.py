"""``nfctl doctor``: is everything there, who else writes rules, and what to do about it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from nfctl.cli.answer import print_json
from nfctl.cli.common import Json, Netns  # noqa: TC001 - typer reads the annotations
from nfctl.cli.paint import Line, show
from nfctl.control.findings import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nfctl.control.findings import Finding, Report

_STYLES = {"ok": "green", "note": "cyan", "warn": "bold yellow", "missing": "bold red"}
_STATE = 9  # the column of the state, with two blanks before it and one behind
_TITLES = {
    "kernel": "kernel",
    "tables": "legacy tables",
    "installed": "libraries and programs",
    "rules": "rules in this network namespace",
    "writers": "who else writes rules here",
    "lock": "the xtables lock",
    "privileges": "this process",
}


def doctor(as_json: Json = False, netns: Netns = None) -> None:
    """Say what nfctl needs and has, who else holds rules, and what to do.

    Ends with 0 if all that nfctl needs is there, with 1 if something is
    missing or if rules stand in both backends, the legacy tables and nf_tables.
    Works without root, and then says what it could not look at. Looking changes
    nothing.

    [bold]Example:[/bold] nfctl doctor --netns blue
    """
    from nfctl.control.doctor import gather
    from nfctl.kernel import netns as namespaces

    with namespaces.entered(netns):
        report = gather()
    if as_json:
        print_json(report.document())
    else:
        show(lines(report, _columns()))
    sys.exit(report.exit_code)


def _columns() -> int:
    """Return the width to wrap at; a pipe gets whole lines, which are easier to search."""
    return max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 0


def lines(report: Report, columns: int = 0) -> list[Line]:
    """Lay the findings out in sections, wrapped to ``columns`` unless that is 0."""
    names = max((len(finding.name) for finding in report.findings), default=0)
    shown: list[Line] = []
    section = ""
    for finding in report.findings:
        if finding.section != section:
            section = finding.section
            shown += [[], [(_TITLES.get(section, section), "bold")]]
        shown += _finding(finding, names, columns)
    return [*shown[1:], [], _verdict(report)]


def _finding(finding: Finding, names: int, columns: int) -> list[Line]:
    indent = 2 + _STATE + names + 2
    state = finding.state.value
    fact, *more = _wrap(finding.fact, columns - indent if columns else 0)
    shown: list[Line] = [
        [("  ", ""), (f"{state:<{_STATE}}", _STYLES[state]), (f"{finding.name:<{names}}  ", "")]
    ]
    shown[0].append((fact, ""))
    shown += [[(" " * indent + text, "")] for text in more]
    for hook, met in _order(finding.data):
        shown += _indented(f"{hook}: {met}", indent, columns, "", "dim")
    if finding.advice:
        shown += _indented(finding.advice, indent, columns, "→ ", _STYLES[state])
    return shown


def _indented(text: str, indent: int, columns: int, mark: str, style: str) -> list[Line]:
    start = " " * indent
    room = columns - indent - len(mark) if columns else 0
    first, *more = _wrap(text, room)
    rest = start + " " * len(mark)
    return [[(start + mark + first, style)], *([(rest + line, style)] for line in more)]


def _wrap(text: str, room: int) -> list[str]:
    if not room:
        return [text]
    return textwrap.wrap(text, max(room, 24), break_on_hyphens=False) or [""]


def _order(data: Mapping[str, object]) -> list[tuple[str, str]]:
    """Write for each hook who comes first: ``legacy filter (0), then nft inet fw in (10)``."""
    order = data.get("order")
    if not isinstance(order, dict):
        return []
    found = []
    for hook, entries in order.items():
        ties: dict[int, list[str]] = {}
        for entry in entries:
            ties.setdefault(entry["priority"], []).append(_met(entry))
        found.append((hook, ", then ".join(" and ".join(names) for names in ties.values())))
    return found


def _met(entry: Mapping[str, object]) -> str:
    where = f"legacy {entry['table']}"
    if entry["backend"] == "nft":
        where = f"nft {entry['family']} {entry['table']} {entry['chain']}"
    return f"{where} ({entry['priority']})"


def _verdict(report: Report) -> Line:
    missing = [finding.name for finding in report.findings if finding.state is State.MISSING]
    other = [finding.name for finding in report.findings if finding.fails]
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts += [f"to be settled: {', '.join(other)}"] if other else []
    if parts:
        return [("; ".join(parts), "bold red")]
    return [("nfctl has what it needs here", "bold green")]
