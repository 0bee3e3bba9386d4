"""``nfctl rule``: list, add, insert, replace, delete, check."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from nfctl.cli import complete
from nfctl.cli.answer import print_json, write
from nfctl.cli.common import (
    VERBATIM,
    WAIT,
    Ipv4,
    Ipv6,
    Json,
    Netns,
    Resolve,
    TableOption,
    Wait,
    family,
)
from nfctl.errors import AnswerNo, BadInput, NfctlError, Where
from nfctl.ruleset.fields import c_integer
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import Word, join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.transaction import Transaction


class WithRule(TyperCommand):
    """A command that ends in a rule: behind the chain, dashes begin the rule's options."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete an option of iptables or of an extension named in the rule."""
        if not ctx.params.get("chain"):
            return super().shell_complete(ctx, incomplete)
        # Where typer has the class of an item from depends on its version: ask one of its own.
        kind = type(super().shell_complete(ctx, "--")[0])
        return [kind(word) for word in complete.rule(ctx, [], incomplete)]


app = typer.Typer(
    help="Rules: list, add, insert, replace, delete, check.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _no_option(word: str) -> str:
    """Refuse a chain that looks like an option: where rules follow, no other check is made."""
    if word[:1] == "-":
        msg = f"No such option: {word}"
        raise BadInput(msg, hint="-h shows the options, which stand before the chain")
    return word


Chain = Annotated[
    str,
    typer.Argument(
        metavar="CHAIN", autocompletion=complete.chains, callback=_no_option, help="The chain."
    ),
]
SpecWords = Annotated[
    list[str],
    typer.Argument(metavar="RULE...", autocompletion=complete.rule, show_default=False,
                   help="The rule as iptables takes it; -h among it shows an extension's help."),
]  # fmt: skip


def _transaction(
    ipv4: bool, ipv6: bool, wait: float, netns: str | None, resolve: bool
) -> Transaction:
    from nfctl.control.transaction import Transaction

    return Transaction(family(ipv4, ipv6), wait=wait, network=netns, resolve=resolve)


def _helped(spec: list[str], number: int) -> bool:
    """Print the help of the extensions named, if -h stands among the words."""
    if not any(spec[place] in {"-h", "--help"} for place in option_places(spec)):
        return False
    from nfctl.kernel.encode import print_help

    sys.stdout.flush()
    if not print_help(spec, number):
        write("Name an extension to see its options: nfctl rule add INPUT -m limit -h\n")
    return True


_HERE = Where("")  # a rule on the command line has no source; its words have columns


@contextlib.contextmanager
def _pointed_at(spec: list[str]) -> Iterator[list[Word]]:
    """Give the rule's words columns, and show an error under the word it is about."""
    words, column, text = [], 1, []
    for word in spec:
        shown = join([word])
        words.append(Word(word, column))
        text.append(shown)
        column += len(shown) + 1
    try:
        yield words
    except NfctlError as error:
        if error.where and error.where.column and not error.where.source:
            error.excerpt = f"  {' '.join(text)}\n  {' ' * (error.where.column - 1)}^"
        raise


def _number(word: str, what: str) -> int:
    number = c_integer(word)
    if number is None or not 0 < number < 1 << 31:
        msg = f"Invalid rule number `{word}'"
        raise BadInput(msg, hint=what)
    return number


@app.command("list")
def list_(
    chain: Annotated[
        str | None,
        typer.Argument(metavar="[CHAIN]", autocompletion=complete.chains, show_default=False,
                       help="Only this chain."),
    ] = None,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    specs: Annotated[
        bool, typer.Option("-S", "--specs", help="Print specifications, as iptables -S does.",
                           show_default=False)
    ] = False,
    counters: Annotated[
        bool, typer.Option("-c", "--counters", help="With -S: counters too.", show_default=False)
    ] = False,
    exact: Annotated[
        bool, typer.Option("-x", "--exact", help="Do not round counters.", show_default=False)
    ] = False,
    json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Show the rules of a table or chain, with their counters.

    [bold]Example:[/bold] nfctl rule list -t nat PREROUTING
    """
    from nfctl.control import listing

    number = family(ipv4, ipv6)
    if specs and not json:
        lines = listing.specifications(number, table, chain, counters=counters, network=netns)
        write("".join(f"{line}\n" for line in lines))
        return
    document = listing.listing(number, table, chain, network=netns)
    if json:
        print_json(document)
        return
    from nfctl.cli.output import show_table

    write(show_table(document, exact=exact))


@app.command(cls=WithRule, context_settings=VERBATIM)
def add(
    chain: Chain,
    spec: SpecWords = [],  # noqa: B006 - typer makes a new one
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    unique: Annotated[
        bool, typer.Option("--unique", help="Do nothing if the rule is there already.",
                           show_default=False)
    ] = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Append a rule to a chain; nfctl's own options stand before the chain.

    [bold]Example:[/bold] nfctl rule add --unique INPUT -p tcp --dport 22 -j ACCEPT
    """
    if _helped(spec, family(ipv4, ipv6)):
        return
    with (
        _pointed_at(spec) as words,
        _transaction(ipv4, ipv6, wait, netns, resolve) as tables,
    ):
        edit = tables[table]
        if unique and edit.check(chain, words, _HERE):
            return
        edit.append(chain, words, None, _HERE)


@app.command(cls=WithRule, context_settings=VERBATIM)
def insert(
    chain: Chain,
    spec: Annotated[
        list[str],
        typer.Argument(metavar="[NUMBER] RULE...", autocompletion=complete.rule, show_default=False,
                       help="The number the rule is to have (1), and the rule."),
    ] = [],  # noqa: B006
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    unique: Annotated[
        bool, typer.Option("--unique", help="Do nothing if the rule is there already.",
                           show_default=False)
    ] = False,
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Insert a rule: at the head of a chain, or so that it gets a number.

    [bold]Example:[/bold] nfctl rule insert INPUT 3 -s 10.0.0.0/8 -j DROP
    """
    if _helped(spec, family(ipv4, ipv6)):
        return
    number = 1
    if spec and spec[0][:1] not in {"-", "!"}:
        number = _number(spec[0], "nfctl rule insert CHAIN [NUMBER] RULE...")
        spec = spec[1:]
    with (
        _pointed_at(spec) as words,
        _transaction(ipv4, ipv6, wait, netns, resolve) as tables,
    ):
        edit = tables[table]
        if unique and edit.check(chain, words, _HERE):
            return
        edit.insert(chain, words, number, None, _HERE)


@app.command(cls=WithRule, context_settings=VERBATIM)
def replace(
    chain: Chain,
    number: Annotated[str, typer.Argument(metavar="NUMBER", help="The rule's number.")],
    spec: SpecWords = [],  # noqa: B006
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Replace a rule; the new one counts from zero.

    [bold]Example:[/bold] nfctl rule replace INPUT 3 -s 10.0.0.0/8 -j ACCEPT
    """
    if _helped(spec, family(ipv4, ipv6)):
        return
    at = _number(number, "nfctl rule replace CHAIN NUMBER RULE...")
    with (
        _pointed_at(spec) as words,
        _transaction(ipv4, ipv6, wait, netns, resolve) as tables,
    ):
        tables[table].replace(chain, at, words, None, _HERE)


@app.command(cls=WithRule, context_settings=VERBATIM)
def delete(
    chain: Chain,
    spec: Annotated[
        list[str],
        typer.Argument(metavar="NUMBER|RULE...", autocompletion=complete.rule, show_default=False,
                       help="The rule's number, or the rule."),
    ] = [],  # noqa: B006
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Delete a rule, by number or by what it says (exit code 1: there is no such rule).

    [bold]Example:[/bold] nfctl rule delete INPUT -p tcp --dport 22 -j ACCEPT
    """
    number = None
    if len(spec) == 1 and spec[0][:1] not in {"-", "!"}:
        number = _number(spec[0], "nfctl rule delete CHAIN NUMBER|RULE...")
    with (
        _pointed_at(spec) as words,
        _transaction(ipv4, ipv6, wait, netns, resolve) as tables,
    ):
        if number is not None:
            tables[table].delete(chain, number)
        else:
            tables[table].delete(chain, words, _HERE)


@app.command(cls=WithRule, context_settings=VERBATIM)
def check(
    chain: Chain,
    spec: SpecWords = [],  # noqa: B006
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: TableOption = "filter",
    resolve: Resolve = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Ask whether a rule is there: exit code 0 yes, 1 no.

    [bold]Example:[/bold] nfctl rule check INPUT -p tcp --dport 22 -j ACCEPT
    """
    with (
        _pointed_at(spec) as words,
        _transaction(ipv4, ipv6, wait, netns, resolve) as tables,
    ):
        if not tables[table].check(chain, words, _HERE):
            msg = f"chain {chain} of table {table} has no such rule"
            raise AnswerNo(msg)
