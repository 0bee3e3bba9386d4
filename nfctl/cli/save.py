"""``nfctl save``: the tables as iptables-save text."""

from __future__ import annotations

from typing import Annotated

import typer

from nfctl.cli import complete
from nfctl.cli.answer import write
from nfctl.cli.common import Ipv4, Ipv6, Netns, family


def save(
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: Annotated[
        str | None,
        typer.Option("-t", "--table", metavar="TABLE", autocompletion=complete.tables,
                     show_default=False, help="Only this table; otherwise all that are in use."),
    ] = None,
    counters: Annotated[
        bool, typer.Option("-c", "--counters", help="Counters too.", show_default=False)
    ] = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Print tables as iptables-save does.

    The text is what iptables-legacy-save prints, byte for byte, without its two comment lines
    that hold the time. Tables that nobody uses are not brought to life by looking.

    [bold]Example:[/bold] nfctl save -c -t nat > nat.rules
    """
    from nfctl.control.save import save as save_tables

    wanted = [table] if table else None
    for text in save_tables(family(ipv4, ipv6), tables=wanted, counters=counters, network=netns):
        write(text)
