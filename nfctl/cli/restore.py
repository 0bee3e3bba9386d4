"""``nfctl restore``: iptables-save text into the kernel."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nfctl.cli import complete
from nfctl.cli.common import WAIT, Ipv4, Ipv6, Netns, Resolve, Wait, family


def restore(
    file: Annotated[
        str, typer.Argument(metavar="[FILE]", help="The text; standard input if - or missing.",
                            show_default=False)
    ] = "-",
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    counters: Annotated[
        bool, typer.Option("-c", "--counters", help="Restore the counters too.", show_default=False)
    ] = False,
    noflush: Annotated[
        bool, typer.Option("-n", "--noflush", help="Add to what is there.", show_default=False)
    ] = False,
    table: Annotated[
        str | None,
        typer.Option("-t", "--table", metavar="TABLE", autocompletion=complete.tables,
                     show_default=False, help="Take only this table from the text."),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Do everything but the writing.", show_default=False)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Say what was written.", show_default=False)
    ] = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Put iptables-save text into the kernel: all its tables, or none.

    Every line is read and every rule encoded before anything is written. A table that is already
    what the text says is left alone, counters included; of several tables either all are
    committed or those already committed are put back (exit code 5).

    [bold]Example:[/bold] nfctl restore --test rules.v4 && nfctl restore rules.v4
    """
    from nfctl.control.restore import explain_line
    from nfctl.control.restore import restore as restore_text
    from nfctl.errors import NfctlError
    from nfctl.ruleset.script import decode

    number = family(ipv4, ipv6)
    source = "<stdin>" if file == "-" else file
    text = decode(_read(file), source)
    try:
        report = restore_text(
            text, family=number, counters=counters, noflush=noflush, table=table, test=test,
            source=source, wait=wait, network=netns, resolve=resolve,
        )  # fmt: skip
    except NfctlError as error:
        error.excerpt = explain_line(error, text)
        raise
    if verbose:
        done = "would be written" if test else "written"
        for name in report.written:
            print(f"table {name}: {done}", file=sys.stderr)
        for name in report.unchanged:
            print(f"table {name}: unchanged", file=sys.stderr)


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    with open(file, "rb") as stream:  # noqa: PTH123 - a path as typed, for the error message
        return stream.read()
