"""``nfctl plan``: what a policy would change, without changing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli.answer import change_text, print_json, write
from nfctl.cli.common import WAIT, Json, Netns, Resolve, Wait
from nfctl.cli.reading import wanted_of

if TYPE_CHECKING:
    from nfctl.control.change import Change
    from nfctl.control.savedplan import SavedPlan


def plan(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", show_default=False,
                       help="A policy, or a saved plan; standard input if -."),
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
    exclusive: Annotated[
        bool, typer.Option("--exclusive", show_default=False,
                           help="Take whole tables, also what is other programs'.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="PLAN", show_default=False, help="Save the plan too: "
                     "nfctl apply PLAN does this and nothing else, or refuses."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", show_default=False, help="Show also what is kept where "
                           "nothing changes, where rules come from, and exact counters.")
    ] = False,
    as_json: Json = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Show what a policy would change: "-" goes, "+" comes, "~" is another program's and stays.

    Rules are compared by what the kernel would hold, not by their text. Nothing is written, not
    even a lock taken. The exit code is 0 if there is nothing to change, 1 if there is, and 2 if
    the policy is wrong. The document of --json: python -m pydoc nfctl.control.show

    [bold]Example:[/bold] nfctl plan policy.yaml --out policy.plan
    """
    from nfctl.control import apply as applying
    from nfctl.control import savedplan, show
    from nfctl.control.journal.state import State
    from nfctl.kernel import netns as namespaces

    if out is not None:
        savedplan.check_replaceable(out)  # before anything is worked out
    wanted, saved = wanted_of(file, ipv4, ipv6)
    exclusive = exclusive or (saved is not None and saved.exclusive)
    with namespaces.entered(netns):
        change = applying.plan(
            wanted, state=State(), exclusive=exclusive, wait=wait, resolve=resolve, digests=True
        )
    if saved is not None:
        change.notes += _outdated(change, saved)
    change.notes += _mistaken(change)
    if out is not None:
        savedplan.write(out, change, wanted, exclusive=exclusive)
    if as_json:
        print_json(show.document(change))
    else:
        write(change_text(change, full=full))
    if change.changes:
        raise typer.Exit(1)


def _mistaken(change: Change) -> list[str]:
    """Say which new chains are called as a built-in one, but for case: no packet meets them."""
    from nfctl.ruleset.names import BUILTIN_CHAINS

    wrong = {
        (table.table, chain.name): chain.name.upper()
        for table in change.tables
        for chain in table.chains
        if chain.created and chain.name.upper() in BUILTIN_CHAINS[table.table]
    }
    return [
        f"chain {name} of table {table} is a new one: the built-in one is {builtin}"
        for (table, name), builtin in wrong.items()
    ]


def _outdated(change: Change, saved: SavedPlan) -> list[str]:
    """Say which tables are others than they were when the plan was saved."""
    return [
        f"table {table.table} (IPv{table.family}) was changed since the plan was saved: "
        "nfctl apply will refuse it"
        for table in change.tables
        if saved.digests.get((table.family, table.table), table.digest) != table.digest
    ]
