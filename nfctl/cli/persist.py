"""``nfctl persist``: what was confirmed last is there again after a boot, before the network is.

The document of ``status --json``: ``ok``; ``directory``, where the state lies; ``enabled``;
``fail``, "closed" or "open"; ``unit``, with its ``name`` and what systemd says of it (``load``,
``active``, ``result``, ``since``; null where it says nothing); ``policies``, each with a ``name``,
a ``state`` ("ok", "damaged", or "unconfirmed": never confirmed yet, and so not restored), ``when``
it was applied, the number of its ``rules``, its ``digest``, and its ``problem`` or null;
``waiting``, the history entry that waits for its confirmation, or null; ``closed``, the families
that a failed restore left closed; ``differs``, the chains and sets that are not what was confirmed,
as ``nfctl watch --json`` has them; ``others``, services that load rules of their own at boot, each
with a ``hint``; ``problems``, in words, which are what makes ``ok`` false and the exit code 1; and
``hints``, what to do about them.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli.answer import print_json, write
from nfctl.cli.common import WAIT, Json, Netns, Wait

if TYPE_CHECKING:
    from nfctl.control.journal.state import State
    from nfctl.control.persist import Restored
    from nfctl.control.persist.status import Status


class Fail(StrEnum):
    """What becomes of the machine when a restore fails."""

    CLOSED = "closed"
    OPEN = "open"


_MEANS = {
    "closed": "if that fails, INPUT and FORWARD are closed in both families: only lo and answers "
    "come in, and the machine is reached by its console alone (--fail open leaves it open)",
    "open": "if that fails, the machine comes up without rules (--fail closed closes it)",
}

app = typer.Typer(
    help="Have the rules back after a boot, before the network is up.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def enable(
    fail: Annotated[
        Fail | None,
        typer.Option("--fail", help="What to do if the rules cannot be restored: let nothing in, "
                     "or leave the tables empty. As set before, or closed.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Restore what was confirmed last at every boot, by a unit of systemd.

    All policies and their ipsets are restored before any interface is configured, verified by
    their digests and read back. A change that waits for its confirmation is not among them:
    a reboot undoes it.

    If that fails, the machine comes up closed: INPUT and FORWARD of both families let in only
    what comes over lo and what answers. Where nobody gets at the console, think of --fail open.

    [bold]Example:[/bold] nfctl persist enable --fail closed
    """
    from nfctl.control import persist
    from nfctl.control.journal.state import State
    from nfctl.control.persist import status as persist_status
    from nfctl.control.persist import unit as persist_unit

    state, systemd = State(), persist_unit.Systemd()
    systemd.systemctl("--version")
    persist_unit.check_namespace()
    mode = str(fail.value if fail is not None else persist.fail_mode(state))
    setup = persist_unit.setup(state.directory)
    state.set_setting(persist.SETTING, mode)
    systemd.enable(persist_unit.text(setup, mode))
    status = persist_status.Status(str(state.directory), mode)
    persist_status.look_at_policies(status, state)
    persist_status.look_at_rivals(status, systemd)
    names = ", ".join(one.name for one in status.policies if one.state == persist_status.OK)
    what = f"policy {names}" if names else "nothing yet"
    write(f"enabled: {persist_unit.UNIT} restores at every boot: {what}\n{_MEANS[mode]}\n")
    _warn(status)
    if mode == persist.CLOSED and not setup.closers:
        text = "without iptables-legacy a restore that is killed leaves the machine open"
        print(f"nfctl: warning: {text}", file=sys.stderr)


def _warn(status: Status) -> None:
    from nfctl.text import visible

    for problem in status.problems:
        print(f"nfctl: warning: {visible(problem)}", file=sys.stderr)
    for hint in status.hints if status.problems else ():
        print(f"  hint: {visible(hint)}", file=sys.stderr)


@app.command()
def disable() -> None:
    """Restore nothing at boot any more; the rules that are in the kernel stay.

    [bold]Example:[/bold] nfctl persist disable
    """
    from nfctl.control.persist import unit as persist_unit

    if persist_unit.Systemd().disable():
        write("disabled: after the next boot there are no rules\n")
    else:
        write("nothing to do: it was not enabled\n")


@app.command()
def status(json: Json = False) -> None:
    """Tell what the next boot restores, and whether the tables are the same now.

    Exit code 1 if something is wrong: not enabled, a damaged policy, tables that differ, a
    failed restore, another service that loads rules at boot.

    [bold]Example:[/bold] nfctl persist status
    """
    from nfctl.control.journal.state import State
    from nfctl.control.persist import status as persist_status
    from nfctl.control.persist import unit as persist_unit

    found = persist_status.look(State(), persist_unit.Systemd())
    if json:
        print_json(found.document())
    else:
        write(_text(found))
    if not found.ok:
        raise typer.Exit(1)


def _text(found: Status) -> str:
    from nfctl.cli.lab_standing import columns
    from nfctl.text import several, visible

    unit = found.unit
    active = unit.get("ActiveState", "")
    since = unit.get("ActiveEnterTimestamp", "")
    rows = [
        ["at boot", "restored" if found.enabled else "not restored"],
        ["if it fails", found.fail],
        ["last restore", (f"{active} since {since}" if since else active) or "none"],
        ["state", found.directory],
    ]
    for one in found.policies:
        about = f"{one.state}, {several(one.rules, 'rule')}, of {one.when}" if one.when else ""
        rows.append(["policy", f"{one.name}: {about or one.problem or one.state}"])
    if found.waiting is not None:
        rows.append(["waiting", f"history entry {found.waiting}, which a boot would undo"])
    rows += [["differs", str(one)] for one in found.differs]
    rows += [["beside it", name] for name in found.rivals]
    lines = [columns([[visible(cell) for cell in row] for row in rows])]
    lines += [f"problem: {visible(problem)}\n" for problem in found.problems]
    lines += [f"  hint: {visible(hint)}\n" for hint in found.hints]
    return "".join(lines)


@app.command()
def restore(
    fail: Annotated[
        Fail | None,
        typer.Option("--fail", help="What to do if it fails, instead of what was set; a state "
                     "directory that is gone is a failure then, too.", show_default=False),
    ] = None,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Restore what was confirmed last, now: it is what the unit does at boot.

    All policies or nothing. Rules that other programs have put into the tables meanwhile stay.
    If it fails, INPUT and FORWARD are closed, or the tables left as they were, as was set by
    nfctl persist enable; your own connection is established, but have a way back, or use
    --fail open. A later restore that succeeds opens again what was closed.

    [bold]Example:[/bold] nfctl persist restore --fail open
    """
    from nfctl.control import persist
    from nfctl.control.journal.state import State
    from nfctl.kernel import netns as namespaces

    with namespaces.entered(netns):
        state = State()
        mode = str(fail.value if fail is not None else persist.fail_mode(state))
        done = persist.restore_or_fail(state, mode, needed=fail is not None, wait=wait)
    write(_restored(done, state))


def _restored(done: Restored, state: State) -> str:
    from nfctl.control.persist.order import policy_of
    from nfctl.text import several, visible

    lines = []
    if not done.records:
        lines.append(f"nothing is confirmed in {state.directory}: nothing to restore")
    for record in done.records:
        rules = several(policy_of(record).rules, "rule")
        lines.append(f"policy {record.name}: {rules}, of {record.when}")
    if done.records:
        changed = done.change is not None and done.change.changes
        lines.append("restored and verified" if changed else "all of it was there: nothing written")
    if done.reopened:
        lines.append("INPUT and FORWARD are open again as far as the policies let them")
    lines += done.notes
    return "".join(f"{visible(line)}\n" for line in lines)
