"""``nfctl apply`` and ``nfctl confirm``: make the firewall what a policy says, with a way back.

``nfctl apply --json`` prints one document::

    {"status": "unconfirmed", "policy": "default", "entry": 7,
     "confirm": {"seconds": 60.0, "deadline": "2026-02-03T12:34:56Z"},
     "change": {...},
     "guard": [{"flow": "tcp 192.0.2.7:51234 > 192.0.2.1:22", "allowed": true,
                "how": "...", "direction": "", "reason": "", "rule": null}],
     "flushed": {"examined": 12, "deleted": ["tcp 192.0.2.7:4711 > ..."], "skipped": []}}

``status`` is "unchanged" (nothing was written; ``entry`` is null), "applied" or "unconfirmed";
``entry`` is the number in ``nfctl history``; ``confirm`` is null unless the change waits for
``nfctl confirm``; ``change`` is what ``nfctl plan --json`` prints; ``guard`` says of each flow
that was tried whether the new rules let it through, as :class:`nfctl.control.guard.Answer` has
it; ``flushed`` is null without --flush-flows.

``nfctl confirm --json`` prints the entry, as ``nfctl history show --json`` does.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.answer import change_text, heard, print_json, write
from nfctl.cli.common import WAIT, Json, Netns, Resolve, Wait
from nfctl.cli.reading import wanted_of
from nfctl.errors import BadInput, Locked, NfctlError, RolledBack

if TYPE_CHECKING:
    from nfctl.control.apply import Options, Outcome
    from nfctl.control.journal.entries import Entry
    from nfctl.control.journal.state import State
    from nfctl.policy.wanted import Wanted

_LONGEST = 24 * 3600.0
_PATIENCE = 10.0  # seconds for the watchdog's work

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Do not print the change.", show_default=False)
]


def apply(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|PLAN]", show_default=False,
                       help="A policy, or what nfctl plan --out saved; standard input if -."),
    ] = None,
    ipv4: Annotated[
        str | None,
        typer.Option("-4", "--ipv4", metavar="FILE", show_default=False,
                     help="An iptables-save file for IPv4, instead of a policy."),
    ] = None,
    ipv6: Annotated[
        str | None,
        typer.Option("-6", "--ipv6", metavar="FILE", show_default=False,
                     help="An ip6tables-save file for IPv6."),
    ] = None,
    confirm: Annotated[
        float | None,
        typer.Option("--confirm", metavar="SECONDS", show_default=False, help="Roll back unless "
                     "it is confirmed in time: y at the prompt, or nfctl confirm."),
    ] = None,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", show_default=False,
                           help="Take whole tables, also what is other programs'.")
    ] = False,
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", metavar="FLOW", show_default=False, help="Refuse a change that "
                     "would drop this flow; may be repeated: 'tcp 192.0.2.7 > 192.0.2.1:22'. Your "
                     "own SSH connection is guarded in any case."),
    ] = None,
    guard_ssh: Annotated[
        bool, typer.Option("--guard-ssh/--no-guard", show_default=False,
                           help="Guard your own SSH connection (SSH_CONNECTION), or do not.")
    ] = True,
    force: Annotated[
        bool, typer.Option("--force", show_default=False,
                           help="Apply also what would drop a guarded flow.")
    ] = False,
    flush_flows: Annotated[
        bool, typer.Option("--flush-flows", show_default=False, help="Delete the connections that "
                           "the new rules decide differently, and no others.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Make the firewall what a policy says; nfctl rollback undoes it.

    Everything is encoded before the first write. Only what differs is written, so that the
    counters of all other rules go on; what other programs put there stays where it is. What was
    committed is put back if any table of either family is refused (exit code 5).

    With --confirm the change is undone when the time is over, by a process that outlives this
    one, its terminal and your connection. On a terminal y keeps it and n undoes it at once.

    [bold]Example:[/bold] nfctl apply --confirm 60 policy.yaml
    """
    from nfctl.control.apply import Options, apply_files
    from nfctl.control.apply import apply as apply_policy
    from nfctl.control.guard import SSH
    from nfctl.control.journal.state import State
    from nfctl.kernel import netns as namespaces

    options = Options(
        exclusive=exclusive, confirm=seconds_of(confirm), guard=tuple(guard or ()),
        guard_ssh=guard_ssh, force=force, flush_flows=flush_flows, wait=wait, resolve=resolve,
    )  # fmt: skip
    with namespaces.entered(netns):
        state = State()
        if file is None and (ipv4 or ipv6):
            outcome = apply_files(ipv4, ipv6, state=state, options=options)
        else:
            wanted = _read(file, ipv4, ipv6, options)
            outcome = apply_policy(wanted, state=state, options=options)
        with heard(outcome.status):
            if as_json:
                print_json(_document(outcome))
                return
            if quiet:
                notes = [note for note in outcome.change.notes if note.startswith(SSH)]
                for line in notes + _unguarded(outcome):
                    print(f"nfctl: warning: {line}", file=sys.stderr)
            else:
                write(_text(outcome))
        if outcome.status == "unconfirmed":
            wait_for_word(state, outcome, options, netns)


def seconds_of(confirm: float | None) -> float | None:
    """Return the time of --confirm; BadInput for one that makes no sense."""
    if confirm is not None and not (math.isfinite(confirm) and 1 <= confirm <= _LONGEST):
        msg = f"--confirm {confirm:g}: it takes between 1 and {_LONGEST:g} seconds"
        raise BadInput(msg, hint="60 is time enough to log in once more")
    return confirm


def _read(file: str | None, ipv4: str | None, ipv6: str | None, options: Options) -> Wanted:
    """Read what is wanted; a saved plan goes into the options."""
    wanted, saved = wanted_of(file, ipv4, ipv6)
    if saved is None:
        return wanted
    if options.exclusive and not saved.exclusive:
        msg = f"{file} was planned without --exclusive"
        raise BadInput(msg, hint=f"nfctl plan --exclusive --out {file} ...")
    options.saved = saved
    options.exclusive = saved.exclusive
    return wanted


# --- what is printed ----------------------------------------------------------------------------


def _document(outcome: Outcome) -> dict[str, Any]:
    from nfctl.control import show

    entry, flushed = outcome.entry, outcome.flushed
    return {
        "status": outcome.status,
        "policy": outcome.change.policy,
        "entry": entry.number if entry else None,
        "confirm": confirmation(outcome),
        "change": show.document(outcome.change),
        "guard": [asdict(answer) for answer in outcome.guarded],
        "flushed": flushed
        and {
            "examined": flushed.examined,
            "deleted": flushed.deleted,
            "skipped": flushed.skipped,
        },
    }


def confirmation(outcome: Outcome) -> dict[str, Any] | None:
    """Return until when it is to be confirmed; None where it is not."""
    entry, deadline = outcome.entry, outcome.deadline
    if outcome.status != "unconfirmed" or deadline is None or entry is None:
        return None
    return {"seconds": entry.confirm, "deadline": _moment(deadline)}


def _moment(deadline: float) -> str:
    """Return a moment of CLOCK_BOOTTIME in ISO 8601, UTC."""
    from nfctl.kernel.process import since_boot

    when = time.time() + deadline - since_boot()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def _text(outcome: Outcome) -> str:
    from nfctl.text import several

    if outcome.status == "unchanged":
        return "nothing to change\n"
    lines = [change_text(outcome.change).rstrip("\n"), ""]
    lines += _unguarded(outcome)
    if outcome.flushed is not None:
        flushed = outcome.flushed
        lines.append(
            f"{len(flushed.deleted)} of {several(flushed.examined, 'connection')} deleted: "
            "the new rules decide them differently"
        )
        lines += [f"  {flow}" for flow in flushed.deleted]
        lines += [f"  not decided: {flow}" for flow in flushed.skipped]
    if outcome.status == "applied":
        number = f"history entry {outcome.entry.number}; " if outcome.entry else ""
        lines.append(f"applied: {number}nfctl rollback undoes it")
    return "\n".join(lines) + "\n"


def _unguarded(outcome: Outcome) -> list[str]:
    """Say which guarded flows may not live through the change."""
    cut = [
        f"{answer.flow} is cut off, as --force allows: {answer.reason}"
        for answer in outcome.guarded
        if not answer.allowed
    ]
    return cut + [
        f"{answer.flow} could not be tried: {answer.reason}"
        for answer in outcome.guarded
        if answer.how in {"unknown", "skipped"}
    ]


# --- the confirmation ---------------------------------------------------------------------------


def wait_for_word(state: State, outcome: Outcome, options: Options, netns: str | None) -> None:
    """Ask on a terminal; elsewhere say how it is confirmed."""
    from nfctl.cli import keep

    entry, deadline = outcome.entry, outcome.deadline
    if entry is None or deadline is None:
        return
    there = f" --netns {netns}" if netns else ""
    with heard(outcome.status):
        write(
            f"applied for {options.confirm:g} s: history entry {entry.number}; "
            f"confirm with: nfctl confirm{there}\n"
        )
    if not keep.can_ask():
        return

    def decided() -> bool:
        return state.entry(entry.number).status in {"confirmed", "rolled back"}

    answer = keep.ask(deadline, decided, patience=_PATIENCE)
    if answer == keep.YES:
        _confirmed(_confirm(state, entry.number))
    elif answer == keep.NO:
        _roll_back(state, entry.number, "it was not kept")
        raise typer.Exit(_say_rolled_back(state, entry.number))
    else:
        _late(state, entry.number)


def _confirm(state: State, number: int | None) -> Entry:
    from nfctl.control.confirmation import watchdog

    return watchdog.confirm(state, number)


def _confirmed(entry: Entry) -> None:
    with heard("confirmed"):
        write(f"confirmed: history entry {entry.number}; nfctl rollback undoes it\n")


def _roll_back(state: State, number: int, why: str) -> None:
    """Undo the change, unless that was decided already."""
    from nfctl.control import undo
    from nfctl.control.confirmation import watchdog

    try:
        with state.locked():
            if state.entry(number).status in {"prepared", "unconfirmed"}:
                undo.rollback(state, number, why=why)
    except NfctlError as error:
        if watchdog.hurry(state, number):
            error.hint = "the watchdog goes on trying: nfctl history says when it is done"
        raise
    watchdog.wake(state, number)


def _say_rolled_back(state: State, number: int) -> int:
    entry = state.entry(number)
    if entry.status == "confirmed":
        print(f"history entry {number} was confirmed elsewhere; nfctl rollback undoes it")
        return 0
    print("rolled back: everything is as it was before")
    return RolledBack.exit_code


def _late(state: State, number: int) -> None:
    """Say what became of a change that nobody decided here; do it where nobody does."""
    from nfctl.control.confirmation import watchdog

    entry = state.entry(number)
    if entry.status not in {"confirmed", "rolled back"}:
        if watchdog.wake(state, number):
            msg = f"history entry {number} is not rolled back yet"
            raise Locked(msg, hint=f"the watchdog goes on trying; {entry.path}/watchdog.log")
        _roll_back(state, number, f"not confirmed in {entry.confirm or 0:g} s")
        entry = state.entry(number)
    if entry.status == "confirmed":
        _confirmed(entry)
        return
    msg = f"{entry.reason or 'not confirmed'}: everything is as it was before"
    raise RolledBack(msg, hint=f"nfctl history show {number}")


def confirm(
    number: Annotated[
        int | None,
        typer.Argument(metavar="[N]", min=1, show_default=False,
                       help="The history entry; the one that waits, if none is named."),
    ] = None,
    as_json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Keep what nfctl apply --confirm changed; best said from a new login, which proves it works.

    Exit code 1 if no change waits for a confirmation, 5 if it comes too late.

    [bold]Example:[/bold] nfctl confirm && nfctl history
    """
    from nfctl.control.journal.state import State
    from nfctl.kernel import netns as namespaces

    with namespaces.entered(netns):
        entry = _confirm(State(), number)
    if as_json:
        with heard("confirmed"):
            print_json(entry.document())
    else:
        _confirmed(entry)
