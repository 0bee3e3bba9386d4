"""``nfctl graph``: the jump graph of chains, as a tree, DOT, Mermaid, SVG or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli import complete
from nfctl.cli.answer import colours, print_json, width, write
from nfctl.cli.common import Ipv4, Ipv6, Json, Netns, family
from nfctl.errors import AnswerNo, BadInput
from nfctl.text import visible

if TYPE_CHECKING:
    from nfctl.jumps.fold import View
    from nfctl.jumps.graph import Graph


def graph(
    chain: Annotated[
        str | None,
        typer.Argument(metavar="[CHAIN]", autocompletion=complete.chains, show_default=False,
                       help="Begin at this chain; at the built-in ones without it."),
    ] = None,
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    table: Annotated[
        str | None,
        typer.Option("-t", "--table", metavar="TABLE", autocompletion=complete.tables,
                     show_default=False, help="Only this table; otherwise all that have chains "
                     "of their own, or filter."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="CHAIN", autocompletion=complete.chains, show_default=False,
                     help="Only the ways that lead to this chain."),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option("--rules", metavar="FILE", show_default=False,
                     help="iptables-save text instead of the live tables; standard input if -."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every chain, however many are alike.",
                           show_default=False)
    ] = False,
    dot: Annotated[
        bool, typer.Option("--dot", help="Print a graph for Graphviz.", show_default=False)
    ] = False,
    mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print a flowchart for Markdown.", show_default=False)
    ] = False,
    svg: Annotated[
        str | None,
        typer.Option("--svg", metavar="FILE", show_default=False,
                     help="Have Graphviz draw a picture; to standard output if -."),
    ] = None,
    as_json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Draw which chain jumps to which: on what condition, and how many packets went that way.

    A line is a jump: the chain it leads to, the condition, and behind the arrow what becomes of
    packets there. In a large table, chains that are alike (the thousands of services and endpoints
    of a kube-proxy) are one line. A chain is written out once, and chains that nobody jumps to
    stand apart. The document of --json: python -m pydoc nfctl.jumps.graph

    [bold]Example:[/bold] nfctl graph -t nat POSTROUTING
    """
    number = family(ipv4, ipv6)
    forms = {"--dot": dot, "--mermaid": mermaid, "--svg": svg is not None, "--json": as_json}
    asked = [name for name, given in forms.items() if given]
    if len(asked) > 1:
        msg = f"{asked[0]} and {asked[1]} exclude each other"
        raise BadInput(msg, hint="ask for one form at a time")
    if rules is not None and netns is not None:
        msg = "--rules is a file, and --netns is about live tables"
        raise BadInput(msg, hint="leave one of them out")
    if rules is not None:
        graphs, source = _of_file(rules, number if ipv4 or ipv6 else 0, table)
        number = next(one.family for one in graphs.values())
    else:
        graphs, source = _live(number, table, netns), None
    if table is not None:
        graphs = {table: graphs[table]}
    views = _views(graphs, chain, to, fold=not everything)
    if as_json:
        from nfctl.jumps.document import document

        print_json(document(views, family=number, source=source))
    elif mermaid:
        from nfctl.jumps.mermaid import mermaid as drawn

        write(drawn(views))
    elif dot or svg is not None:
        _graphviz(views, svg)
    else:
        from nfctl.cli.paint import speaks_utf8
        from nfctl.jumps.tree import tree

        write(tree(views, width=width(), colour=colours(), unicode=speaks_utf8()))


def _graphviz(views: list[View], file: str | None) -> None:
    from nfctl.jumps.dot import dot, svg

    text = dot(views)
    if file is None:
        write(text)
        return
    picture = svg(text)
    if file == "-":
        write(picture.decode("utf-8", "surrogateescape"))
        return
    with open(file, "wb") as stream:  # noqa: PTH123 - a path as typed, for the error message
        stream.write(picture)


# --- what is drawn --------------------------------------------------------------------------------


def _of_file(file: str, number: int, table: str | None) -> tuple[dict[str, Graph], str]:
    from nfctl.document import standard_input
    from nfctl.errors import excerpt
    from nfctl.jumps.graph import read
    from nfctl.ruleset.names import check_table
    from nfctl.ruleset.script import decode

    if table is not None:
        check_table(table)
    source = "<stdin>" if file == "-" else file
    if file == "-":
        data = standard_input()
    else:
        with open(file, "rb") as stream:  # noqa: PTH123 - a path as typed, for the error message
            data = stream.read()
    text = decode(data, source)
    try:
        graphs = read(text, source=source, family=number)
    except BadInput as error:
        error.excerpt = error.excerpt or excerpt(text, error.where)
        raise
    if table is not None and table not in graphs:
        msg = f"{source} has no table {table}"
        raise BadInput(msg, hint=f"its tables are {', '.join(graphs)}")
    return graphs, source


def _live(number: int, table: str | None, netns: str | None) -> dict[str, Graph]:
    from nfctl.control.save import read
    from nfctl.jumps.graph import of_table
    from nfctl.kernel import netns as namespaces
    from nfctl.kernel.table import active_tables
    from nfctl.ruleset.model import Table
    from nfctl.ruleset.names import check_table

    if table is not None:
        check_table(table)
    with namespaces.entered(netns):
        # a table that is not in use is empty, and is not read: the kernel would make it
        names = [name for name in active_tables(number) if table in {None, name}]
        found = read(number, tables=names).tables
    if not found:
        name = table or "filter"
        found = {name: Table.empty(name)}
    return {name: of_table(one, number) for name, one in found.items()}


def _chosen(graphs: dict[str, Graph], wanted: set[str]) -> list[Graph]:
    """Return the tables that are drawn: those that have what is wanted, and chains of their own."""
    having = [one for one in graphs.values() if wanted <= one.chains.keys()]
    chosen = [one for one in having if one.own]
    if not chosen and not wanted and "filter" in graphs:
        return [graphs["filter"]]
    return chosen or having


def _views(
    graphs: dict[str, Graph], chain: str | None, to: str | None, *, fold: bool
) -> list[View]:
    from nfctl.jumps.fold import view

    wanted = {name for name in (chain, to) if name is not None}
    chosen = _chosen(graphs, wanted)
    if not chosen:
        raise _no_chain(graphs, [name for name in (chain, to) if name is not None])
    if wanted:
        chosen = [one.leading(chain, to) for one in chosen]
    if chain is not None and to is not None:
        chosen = [one for one in chosen if one.chains]
        if not chosen:
            msg = f"no way leads from {chain} to {to}"
            raise AnswerNo(msg)
    return [view(one, fold=fold, keep=wanted) for one in chosen]


def _no_chain(graphs: dict[str, Graph], wanted: list[str]) -> BadInput:
    import difflib

    tables = ", ".join(graphs)
    noun = "table" if len(graphs) == 1 else "tables"
    places = {name: [t for t, one in graphs.items() if name in one.chains] for name in wanted}
    for name, found in places.items():
        if found:
            continue
        known = {chain for one in graphs.values() for chain in one.chains}
        # nobody types the names of thousands of chains that are alike but for a hash
        alike = [chain for chain in known if chain[:1].lower() == name[:1].lower()][:5000]
        close = difflib.get_close_matches(name, sorted(alike), n=3, cutoff=0.5)
        if name.upper() in known:
            close = [name.upper()]
        hint = f"did you mean {visible(' or '.join(close))}?" if close else ""
        return BadInput(f"{noun} {tables}: there is no chain {name}", hint=hint)
    said = ", ".join(f"{name} is in {', '.join(found)}" for name, found in places.items())
    return BadInput(f"no table has both {' and '.join(wanted)}", hint=said)
