"""``nfctl kube``: kube-proxy's rules, or those of the same shape, as services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli.answer import colours, print_json, width, write
from nfctl.cli.common import Json, Netns  # noqa: TC001 - typer reads annotations

if TYPE_CHECKING:
    from nfctl.services.observed.model import Cluster
    from nfctl.services.observed.rules import Dump
    from nfctl.services.observed.show import Paint

app = typer.Typer(
    help="Look at services in the rules that kube-proxy made, or nfctl.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Rules = Annotated[
    list[str] | None,
    typer.Option("--rules", metavar="DUMP", show_default=False,
                 help="Text of iptables-save instead of the kernel's rules; - for standard "
                 "input. More than one for both families."),
]  # fmt: skip
Only4 = Annotated[bool, typer.Option("-4", "--ipv4", help="Only IPv4.", show_default=False)]
Only6 = Annotated[bool, typer.Option("-6", "--ipv6", help="Only IPv6.", show_default=False)]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="PREFIX", show_default=False,
                 help="How the chains begin: KUBE, NFCTL; found out where there is only one."),
]  # fmt: skip


@app.command("show")
def show(
    service: Annotated[
        str | None,
        typer.Argument(metavar="[SERVICE]", show_default=False,
                       help="A name, a part of one, a pattern or an address; otherwise all."),
    ] = None,
    rules: Rules = None,
    ipv4: Only4 = False,
    ipv6: Only6 = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="Addresses and endpoints too.", show_default=False)
    ] = False,
    prefix: Prefix = None,
    as_json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Show services: addresses, endpoints with their shares, policies, and what does not add up.

    Live rules of both families, or saved ones: iptables-save -c | nfctl kube show --rules -
    (rules of iptables-nft have to be saved). With counters also how the connections spread. The
    exit code is 1 if something does not add up. The document of --json: python -m pydoc
    nfctl.services.observed.document

    [bold]Example:[/bold] nfctl kube show --tree
    """
    from nfctl.cli.paint import speaks_utf8
    from nfctl.errors import AnswerNo
    from nfctl.services.observed import document
    from nfctl.services.observed import show as showing

    clusters = [cluster for _, cluster in _clusters(rules, ipv4, ipv6, prefix, netns)]
    services = [
        s for c in clusters for s in (showing.chosen(c, service) if service else c.services)
    ]
    if service and not services:
        msg = f"there is no service {service!r}"
        raise AnswerNo(msg, hint="nfctl kube show lists them all")
    services.sort(key=lambda s: (s.name, s.protocol, s.family))
    problems = [problem for cluster in clusters for problem in cluster.problems]
    if service:
        keys = {("", ""), *((s.name, s.protocol) for s in services)}
        problems = [p for p in problems if (p.service, p.protocol) in keys]
    if as_json:
        print_json(document.document(clusters, services, problems))
    else:
        parts = [] if service else [showing.summary(clusters)]
        if tree or service:
            parts.append(showing.tree(services, _paint(), ascii_only=not speaks_utf8()))
        elif services:
            parts.append(showing.table(clusters, services, width(), _paint()))
        if problems:
            parts.append(showing.problems(problems, width(), _paint()))
        write("".join(parts))
    if problems:
        raise typer.Exit(1)


@app.command("explain")
def explain(
    destination: Annotated[
        str,
        typer.Argument(metavar="ADDRESS:PORT[/PROTOCOL]",
                       help="10.96.0.10:53/udp, [fd00::1]:80, or node:30080/tcp for a node port."),
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="ADDRESS", show_default=False,
                     help="Who connects: an address, or node for this host itself."),
    ] = None,
    rules: Rules = None,
    prefix: Prefix = None,
    as_json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Show the way of a new connection through the chains to each endpoint, rule by rule.

    Where the source decides and is not said, every case is shown. The exit code is 1 if nobody
    serves the address. The document of --json: python -m pydoc nfctl.services.observed.explain

    [bold]Example:[/bold] nfctl kube explain 10.96.0.10:53/udp --from 10.244.0.7
    """
    from nfctl.errors import AnswerNo
    from nfctl.services.observed import explain as explaining

    wanted = explaining.connection(destination, source)
    clusters = _clusters(rules, wanted.family == 4, wanted.family == 6, prefix, netns)
    if not rules and wanted.host:
        wanted = wanted._replace(local=_is_local(wanted.host, netns))
    if not rules and wanted.source:
        wanted = wanted._replace(here=_is_local(wanted.source, netns))
    found = [
        explaining.explain(dump, cluster, wanted._replace(family=dump.family))
        for dump, cluster in clusters
    ]
    served = [answer for answer in found if answer.served]
    if as_json:
        print_json(explaining.document(wanted, served or found))
    elif served:
        write("\n".join(explaining.text(answer) for answer in served))
    if not served:
        msg = f"nobody serves {wanted}"
        raise AnswerNo(msg, hint="; ".join(filter(None, (a.hint for a in found))))


def _clusters(
    files: list[str] | None, ipv4: bool, ipv6: bool, prefix: str | None, netns: str | None
) -> list[tuple[Dump, Cluster]]:
    """Return the rules and the services of each family that was asked for."""
    from nfctl.errors import AnswerNo
    from nfctl.services.observed import cluster
    from nfctl.services.observed.prefix import the_prefix

    families = [n for n, asked in ((4, ipv4), (6, ipv6)) if asked or ipv4 == ipv6]
    dumps = _saved(files, families) if files else _live(families, netns)
    try:
        chains = the_prefix(dumps, prefix)
    except AnswerNo as error:
        if not files:
            more = "rules of iptables-nft: iptables-nft-save | nfctl kube show --rules -"
            error.hint = f"{error.hint}; {more}" if error.hint else more
        raise
    return [(dump, cluster.read(dump, chains)) for dump in dumps if _has(dump, chains)]


def _has(dump: Dump, prefix: str) -> bool:
    return any(chain.startswith(prefix) for table in dump.tables for chain in dump.chains(table))


def _saved(files: list[str], families: list[int]) -> list[Dump]:
    from nfctl.errors import AnswerNo
    from nfctl.ruleset.script import decode
    from nfctl.services.observed import rules

    dumps = []
    for file in files:
        source = "<stdin>" if file == "-" else file
        dumps += rules.parse(decode(_bytes(file), source), source)
    found = [dump for dump in dumps if dump.family in families]
    if not found:
        msg = f"{', '.join(files)}: there are no rules of IPv{families[0]}"
        raise AnswerNo(msg)
    return found


def _bytes(file: str) -> bytes:
    if file == "-":
        from nfctl.document import standard_input

        return standard_input()
    with open(file, "rb") as stream:  # noqa: PTH123 - a path as typed, for the error message
        return stream.read()


def _live(families: list[int], netns: str | None) -> list[Dump]:
    from nfctl.control.save import save
    from nfctl.kernel import netns as namespaces
    from nfctl.kernel.table import active_tables
    from nfctl.services.observed import rules

    dumps = []
    for family in families:
        with namespaces.entered(netns):
            tables = [name for name in active_tables(family) if name in rules.TABLES]
        if tables:
            text = "".join(save(family, tables=tables, counters=True, network=netns))
            dumps += rules.parse(text, "", family)
    return dumps


def _is_local(address: str, netns: str | None) -> bool:
    """Whether an address is one of this host's: only such a one can be bound."""
    import socket

    from nfctl.kernel import netns as namespaces

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespaces.entered(netns):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.bind((address, 0))
        except OSError:
            return False
    return True


def _coloured(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m"


def _plain(text: str, code: str) -> str:  # noqa: ARG001 - called as the other
    return text


def _paint() -> Paint:
    return _coloured if colours() else _plain
