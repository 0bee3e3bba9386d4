"""``nfctl chain``: list, create, delete, rename, flush, zero, policy."""

from __future__ import annotations

from typing import Annotated

import typer

from nfctl.cli import complete
from nfctl.cli.answer import print_json, write
from nfctl.cli.common import (
    WAIT,
    Ipv4,
    Ipv6,
    Json,
    Netns,
    TableOption,
    Wait,
    family,
)
from nfctl.cli.rule import Chain  # noqa: TC001 - typer reads the annotation

app = typer.Typer(
    help="Chains: list, create, delete, rename, flush, zero, policy.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

UserChain = Annotated[
    str, typer.Argument(metavar="CHAIN", autocompletion=complete.user_chains, help="The chain.")
]
MaybeChain = Annotated[
    str | None,
    typer.Argument(metavar="[CHAIN]", autocompletion=complete.chains, show_default=False,
                   help="The chain; all chains of the table without it."),
]  # fmt: skip


@app.command("list")
def list_(
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    exact: Annotated[
        bool, typer.Option("-x", "--exact", help="Do not round counters.", show_default=False)
    ] = False,
    json: Json = False,
    netns: Netns = None,
) -> None:
    """Show the chains of a table: policies, rules, who jumps to them.

    [bold]Example:[/bold] nfctl chain list -t nat
    """
    from nfctl.control.listing import listing

    document = listing(family(ipv4, ipv6), table, network=netns, rules=False)
    if json:
        print_json(document)
        return
    from nfctl.cli.output import show_chains

    write(show_chains(document, exact=exact))


@app.command()
def create(
    chain: Annotated[str, typer.Argument(metavar="CHAIN", help="Its name, 28 bytes at most.")],
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Create a user-defined chain.

    [bold]Example:[/bold] nfctl chain create WEB && nfctl rule add INPUT -p tcp -j WEB
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        tables[table].create_chain(chain)


@app.command()
def delete(
    chain: UserChain,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    flush: Annotated[
        bool, typer.Option("--flush", help="Delete its rules too.", show_default=False)
    ] = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Delete a user-defined chain that is empty and that no rule jumps to.

    [bold]Example:[/bold] nfctl chain delete --flush WEB
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        edit = tables[table]
        if flush:
            edit.flush(chain)
        edit.delete_chain(chain)


@app.command()
def rename(
    chain: UserChain,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Rename a user-defined chain; the jumps to it follow.

    [bold]Example:[/bold] nfctl chain rename WEB HTTP
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        tables[table].rename_chain(chain, new)


@app.command()
def flush(
    chain: MaybeChain = None,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Delete all rules of a chain, or of all chains of a table; policies stay.

    [bold]Example:[/bold] nfctl chain flush -t nat PREROUTING
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        tables[table].flush(chain)


@app.command()
def zero(
    chain: MaybeChain = None,
    number: Annotated[
        int | None,
        typer.Argument(metavar="[NUMBER]", min=1, show_default=False, help="Only this rule."),
    ] = None,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Set counters to zero: of a rule, a chain, or all chains of a table.

    [bold]Example:[/bold] nfctl chain zero INPUT 3
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        tables[table].zero(chain, number)


@app.command()
def policy(
    chain: Chain,
    policy: Annotated[
        str,
        typer.Argument(metavar="ACCEPT|DROP", autocompletion=complete.policies,
                       help="What happens to packets that no rule decides."),
    ],
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Set the policy of a built-in chain.

    [bold]Example:[/bold] nfctl chain policy FORWARD DROP
    """
    from nfctl.control.transaction import Transaction

    with Transaction(family(ipv4, ipv6), wait=wait, network=netns) as tables:
        tables[table].set_policy(chain, policy)
