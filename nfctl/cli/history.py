"""``nfctl history``, ``nfctl history show`` and ``nfctl rollback``: what was changed, and back.

The document of ``history --json`` has ``directory``, where the journal lies, and ``entries``, the
newest first. An entry has a ``number``; ``when``, ISO 8601 in UTC; an ``action``: ``apply``,
``rollback`` or ``repair``; the ``policy``'s name; a ``status``: ``prepared`` (under way),
``applied``, ``unconfirmed``, ``confirmed``, ``rolled back``, ``interrupted`` (its process was
killed), ``failed`` or ``damaged`` (its files were changed by another hand: ``warning`` says which,
and the rest is not known); a ``reason`` for that, or ""; ``who``: ``user``, ``uid``, ``login``
(who logged in, before sudo or su), ``sudo_user``, ``tty``, ``ssh`` (SSH_CONNECTION), ``pid`` and
``command``, "" where it is not known; ``files``, each with ``file`` and ``sha256``; a ``summary``
of numbers by name; ``confirm``, in seconds, ``deadline``, in seconds of CLOCK_BOOTTIME in the boot
``boot_id``, and ``left``, in seconds, null where it is not to be confirmed; ``undoes``, the
numbers of the entries that a rollback undid, and ``undone_by``, the number of the rollback that
undid this one, or null; and ``more``, what else was noted.

The document of ``history show --json`` is one entry and ``change``, the plan as
``nfctl plan --json`` prints it, and ``before``: by ``ipv4`` and ``ipv6``, the file with what
iptables-save -c printed before, null where there is none. ``rollback --json`` prints the
``status`` (``applied``, or ``unchanged`` where all was undone already), the ``entry`` that the
rollback left (null for none) and the ``change`` that it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.answer import change_text, heard, print_json, width, write
from nfctl.cli.common import WAIT, Ipv4, Ipv6, Json, Netns, Wait, family
from nfctl.errors import AnswerNo, BadInput

if TYPE_CHECKING:
    from nfctl.control.apply import Outcome
    from nfctl.control.journal.entries import Entry
    from nfctl.control.journal.state import State

Number = Annotated[
    int, typer.Argument(metavar="NUMBER", min=1, help="The entry's number.", show_default=False)
]

app = typer.Typer(
    help="What was changed, by whom and when; what became of it.\n\n"
    "[bold]Example:[/bold] nfctl history -n 5, and nfctl history show 12",
    invoke_without_command=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def history(
    context: typer.Context,
    number: Annotated[
        int | None,
        typer.Option("-n", "--number", metavar="N", min=0, show_default=False,
                     help="Only the latest N entries."),
    ] = None,
    json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """List what was changed, the newest first."""
    if context.invoked_subcommand is not None:
        if number is not None or json or netns:
            msg = "these options are those of the list"
            raise BadInput(msg, hint="write them behind show: nfctl history show 3 --json")
        return
    from nfctl.control.journal.state import State
    from nfctl.kernel.netns import entered

    with entered(netns):
        state = State()
        entries = [state.as_settled(entry) for entry in state.entries()[::-1][:number]]
        if json:
            listed = [_document(entry, state) for entry in entries]
            print_json({"directory": str(state.directory), "entries": listed})
        elif entries:
            write(_table(entries, state))
        else:
            write(f"nothing was changed so far: {state.directory} has no entry\n")


@app.command()
def show(
    number: Number,
    before: Annotated[
        bool,
        typer.Option("--before", show_default=False,
                     help="Print what was there before, for iptables-restore -c."),
    ] = False,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Show one change: who, when, from which files, and what it did to the tables.

    --before prints the tables of a family as they were, as iptables-save -c does.

    [bold]Example:[/bold] nfctl history show 3 --before -6 | ip6tables-legacy-restore -c
    """
    from nfctl.control.journal.state import State
    from nfctl.kernel.netns import entered

    if (ipv4 or ipv6) and not before:
        msg = "-4 and -6 say whose text --before prints"
        raise BadInput(msg, hint="an entry is shown with both families")
    if before and json:
        msg = "--before prints iptables-save text, and no document"
        raise BadInput(msg, hint="--json alone names the files")
    with entered(netns):
        state = State()
        entry = state.as_settled(state.entry(number))
        if before:
            write(_before(entry, family(ipv4, ipv6)))
        elif json:
            print_json(_whole_document(entry, state))
        else:
            write(_shown(entry, state))


def rollback(
    number: Annotated[
        int | None,
        typer.Argument(metavar="[NUMBER]", min=1, show_default=False,
                       help="The entry to undo, with all that came after it; the latest if none "
                            "is given."),
    ] = None,
    json: Json = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Undo the latest change, or all down to the one of a number.

    What others changed since stays. A change that waits for its confirmation is undone, too.

    [bold]Example:[/bold] nfctl rollback 12
    """
    from nfctl.control import undo
    from nfctl.control.journal.state import State
    from nfctl.kernel.netns import entered

    with entered(netns):
        state = State()
        outcome = undo.rollback(state, number, wait=wait, why="nfctl rollback")
        if json:
            from nfctl.control.show import document

            entry = _document(outcome.entry, state) if outcome.entry else None
            made = document(outcome.change)
            with heard("undone"):
                print_json({"status": outcome.status, "entry": entry, "change": made})
            return
        text = _undone(outcome, state)
        with heard("undone"):
            write(text)


# --- documents ----------------------------------------------------------------------------------


def _document(entry: Entry, state: State) -> dict[str, Any]:
    left = state.left(entry)
    return entry.document() | {"left": None if left is None else round(left, 1)}


def _whole_document(entry: Entry, state: State) -> dict[str, Any]:
    from nfctl.control.journal.entries import BEFORE

    files = {
        f"ipv{number}": str(entry.path / name) if number in entry.families else None
        for number, name in BEFORE.items()
    }
    return _document(entry, state) | {"change": entry.change, "before": files}


def _before(entry: Entry, number: int) -> str:
    """Return what puts a family's tables back: also those that were not in use before."""
    from nfctl.ruleset.names import BUILTIN_CHAINS

    text = entry.before_text(number)
    there = {line[1:] for line in text.splitlines() if line[:1] == "*"}
    for table in entry.change.get("tables", ()):
        name = table["table"]
        if table["family"] == number and table["chains"] and name not in there:
            chains = "".join(f":{chain} ACCEPT [0:0]\n" for chain in BUILTIN_CHAINS[name])
            text += f"*{name}\n{chains}COMMIT\n"
    if not text:
        msg = f"entry {entry.number} is not about IPv{number}"
        raise AnswerNo(msg, hint="no table of that family was in use, before or after")
    return text


# --- text ---------------------------------------------------------------------------------------

#: What the list says of a summary besides the rules that were added and deleted.
_THINGS = (
    ("rule moved", "rules moved", ("move",)),
    ("policy", "policies", ("policies",)),
    ("chain", "chains", ("chains_created", "chains_deleted")),
    ("set", "sets", ("sets_created", "sets_swapped", "sets_destroyed")),
)


def _table(entries: list[Entry], state: State) -> str:
    from nfctl.cli.lab_standing import columns
    from nfctl.text import visible

    rows = [["NUMBER", "WHEN", "ACTION", "POLICY", "STATUS", "BY", "CHANGES"]]
    rows += [
        [
            str(entry.number),
            _local(entry.when),
            entry.action,
            entry.policy,
            _status(entry, state),
            entry.who.login or entry.who.sudo_user or entry.who.user,
            _summary(entry),
        ]
        for entry in entries
    ]
    rows = [[visible(cell) for cell in row] for row in rows]
    limit = width()
    lines = columns(rows).splitlines(keepends=True)
    if limit and max(map(len, lines)) > limit + 1:  # the line's end among them
        heads = columns([row[:-1] for row in rows]).splitlines(keepends=True)
        below = ["", *(f"        {row[-1]}\n" if row[-1] else "" for row in rows[1:])]
        lines = [line for pair in zip(heads, below, strict=True) for line in pair]
    return "".join(lines)


def _status(entry: Entry, state: State) -> str:
    left = state.left(entry)
    if left is not None:
        return f"{entry.status}, {left:.0f} s left"
    return f"{entry.status} by {entry.undone_by}" if entry.undone_by is not None else entry.status


def _summary(entry: Entry) -> str:
    from nfctl.text import several

    if not entry.summary:
        return ""
    count = entry.summary.get
    parts = [f"+{count('add', 0)} -{count('delete', 0)}"]
    for noun, plural, keys in _THINGS:
        number = sum(count(key, 0) for key in keys)
        parts += [several(number, noun, plural)] if number else []
    if entry.undoes:
        parts.append(f"undoes {', '.join(map(str, entry.undoes))}")
    return ", ".join(parts)


def _local(when: str) -> str:
    """Return a time of the journal in the zone of this machine."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(when).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return when


def _shown(entry: Entry, state: State) -> str:
    from nfctl.cli.lab_standing import columns
    from nfctl.control.journal.entries import BEFORE, DAMAGED
    from nfctl.control.journal.records import Damaged
    from nfctl.control.journal.remembered import change_of
    from nfctl.text import visible

    if entry.status == DAMAGED:
        msg = f"entry {entry.number} is damaged: {visible(entry.warning)}"
        raise AnswerNo(msg, hint="what it did is not known any more, and cannot be undone")
    rows = [["when", _local(entry.when)], ["by", _who(entry)], ["command", entry.who.command]]
    rows += [["why", entry.reason]] if entry.reason else []
    rows += [["undoes", f"entry {number}"] for number in entry.undoes]
    rows += [["file", f"{file}  sha256 {sha}"] for file, sha in entry.files]
    rows += [["before", str(entry.path / BEFORE[number])] for number in entry.families]
    lines = columns([[visible(cell) for cell in row] for row in rows], "  ")
    heading = visible(f"{_name(entry)}: {_status(entry, state)}")
    try:
        plan = change_text(change_of(entry.change))
    except Damaged as error:
        plan = f"{visible(str(error))}\n"
    return f"{heading}\n{lines}\n{plan}"


def _name(entry: Entry) -> str:
    of = f" of policy {entry.policy}" if entry.policy else ""
    return f"entry {entry.number}, {entry.action}{of}"


def _who(entry: Entry) -> str:
    who = entry.who
    parts = [who.user or "?"]
    if who.login not in {"", who.user}:
        parts.append(f"logged in as {who.login}")
    elif who.sudo_user:
        parts.append(f"by sudo from {who.sudo_user}")
    parts += [f"on {who.tty}"] if who.tty else []
    parts += [f"from {who.ssh.split()[0]}"] if who.ssh.strip() else []
    return ", ".join(parts)


def _undone(outcome: Outcome, state: State) -> str:
    from nfctl.text import visible

    if outcome.status == "unchanged":
        return "nothing had to be changed: all of it was undone already\n"
    if outcome.entry is None:  # the journal took none; a note says why
        return f"{change_text(outcome.change)}\nundone\n"
    number = outcome.entry.number
    undone = [state.entry(each) for each in outcome.entry.undoes]
    lines = [f"undone: {_name(entry)}, {_local(entry.when)}" for entry in undone]
    lines.append(f"history entry {number}; nfctl rollback {number} undoes the rollback")
    return change_text(outcome.change) + "\n" + "".join(f"{visible(line)}\n" for line in lines)
