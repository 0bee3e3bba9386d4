"""``nfctl lab``: up, down, list, exec, shell, graph, probe.

The document of ``up --json`` describes one lab; that of ``list --json`` is ``labs``, a list of
such documents sorted by name. A lab has a ``name``; a ``state``: ``up``, ``making`` or
``broken``; a ``topology``: the name of what it was made from, null where that is not known any
more, and its ``description``; ``since``, in seconds since the epoch; and ``hosts``, in the
topology's order. A host has a ``name``; a ``namespace``, as ``ip netns`` calls it; ``forward``:
whether it is a router; ``interfaces``, each with ``name``, ``link`` and ``addresses``
(``address/length``); and ``services``: those of the topology, ports by kind, ``tcp``, ``http``,
``udp`` and ``dns``.

The document of ``probe --json``: ``lab``, ``what``, ``family``; ``from`` and ``to``, each with
``host`` and ``address``; ``verdict``: ``accepted``, ``rejected`` or ``dropped``; ``reason``: how
it was refused, as ``-j REJECT --reject-with`` calls it; ``refused_by``: the address that said so;
``seen_as``: the sender's address as the server saw it; ``seconds``; ``arrived_at``: the host whose
IP stack got the packet; ``decided_by``: the rules that decided, each with ``host``, ``table``,
``chain``, ``rule`` (its number, null for a policy), ``text``, ``target`` and ``packets``; and
``hops``: the hosts on the way, each with ``host``, ``arrived``, ``note`` and ``steps``: the rules
that counted there, as in ``decided_by``. What is not known or not the case is null.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from nfctl.cli import complete
from nfctl.cli.common import VERBATIM, Ipv4, Ipv6, Json, family
from nfctl.errors import BadInput


class WithCommand(TyperCommand):
    """A command that ends in another program's: behind the host, dashes are that program's."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete an option, but none behind the host."""
        return [] if ctx.params.get("host") else super().shell_complete(ctx, incomplete)


class Form(StrEnum):
    """The forms of ``graph``."""

    tree = "tree"
    dot = "dot"
    mermaid = "mermaid"


app = typer.Typer(
    help="Networks of namespaces that stay up: up, down, list, exec, shell, graph, probe.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _no_option(word: str) -> str:
    """Refuse a host that looks like an option: where a command follows, nobody else does."""
    if word[:1] == "-":
        msg = f"No such option: {word}"
        raise BadInput(msg, hint="-h shows the options, which stand before the host")
    return word


Lab = Annotated[
    str,
    typer.Option("-l", "--lab", metavar="NAME", autocompletion=complete.labs, show_default=False,
                 help="The lab; not needed where only one is up."),
]  # fmt: skip
InHost = Annotated[
    str,
    typer.Argument(metavar="HOST", autocompletion=complete.lab_hosts, callback=_no_option,
                   show_default=False, help="The host."),
]  # fmt: skip
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print nothing.", show_default=False)
]  # fmt: skip


@app.command()
def up(
    topology: Annotated[
        str,
        typer.Argument(metavar="TOPOLOGY", autocompletion=complete.topologies, show_default=False,
                       help="One that comes with nfctl, a YAML file, or - for standard input."),
    ] = "",
    name: Annotated[
        str,
        typer.Option("-n", "--name", metavar="NAME", show_default=False,
                     help="The lab's name, if it is not to be the topology's."),
    ] = "",
    no_services: Annotated[
        bool, typer.Option("--no-services", help="Start no servers.", show_default=False)
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Make a lab out of a topology; it stays up until nfctl lab down.

    Hosts are network namespaces with links, addresses, routes, rules and servers. The network of
    this machine is not touched. Without a topology it says which ones there are.

    [bold]Example:[/bold] sudo nfctl lab up router --name test
    """
    from nfctl.cli.lab_standing import up as lab_up

    lab_up(topology, name=name, services=not no_services, json=json, quiet=quiet)


@app.command()
def down(
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", autocompletion=complete.labs, show_default=False,
                       help="The lab; not needed where only one is up."),
    ] = "",
    every: Annotated[
        bool, typer.Option("-a", "--all", help="Remove all labs.", show_default=False)
    ] = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Remove a lab: its processes, namespaces and files (exit code 1: there is no such lab).

    [bold]Example:[/bold] sudo nfctl lab down test
    """
    from nfctl.cli.lab_standing import down as lab_down

    lab_down(name, every=every, quiet=quiet)


@app.command("list")
def list_(json: Json = False) -> None:
    """Show the labs that are up, being made, or broken.

    A broken one is what a nfctl lab up that was killed has left; nfctl lab down removes it too.

    [bold]Example:[/bold] sudo nfctl lab list --json
    """
    from nfctl.cli.lab_standing import list_labs

    list_labs(json=json)


@app.command("exec", cls=WithCommand, context_settings=VERBATIM)
def exec_(
    host: InHost,
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", autocompletion=complete.programs, show_default=False,
                       help="The command and its own options, as they are."),
    ] = [],  # noqa: B006 - typer makes a new one
    lab: Lab = "",
) -> None:  # fmt: skip
    """Run a command on a host of a lab; nfctl's own options stand before the host.

    The command gets this terminal and these standard streams, its exit code is the exit code, and
    NFCTL_LAB and NFCTL_HOST say where it runs. 127: there is no such command; 126: it cannot be
    run.

    [bold]Example:[/bold] sudo nfctl lab exec -l test client ip -6 route
    """
    from nfctl.cli.lab_inside import execute

    execute(host, command, lab=lab)


@app.command()
def shell(host: InHost, lab: Lab = "") -> None:
    """Open a shell on a host of a lab, with a prompt that says where one is.

    [bold]Example:[/bold] sudo nfctl lab shell router
    """
    from nfctl.cli.lab_inside import shell as lab_shell

    lab_shell(host, lab=lab)


@app.command()
def graph(
    what: Annotated[
        str,
        typer.Argument(metavar="[TOPOLOGY|NAME]", autocompletion=complete.labs_and_topologies,
                       show_default=False,
                       help="A topology, a YAML file, or a lab that is up; not needed where "
                       "only one is."),
    ] = "",
    form: Annotated[
        Form, typer.Option("-f", "--format", help="For people, Graphviz, or Markdown.")
    ] = Form.tree,
) -> None:  # fmt: skip
    """Draw a topology: its hosts, links and addresses. A topology needs no root.

    [bold]Example:[/bold] nfctl lab graph router --format dot > router.dot
    """
    from nfctl.cli.lab_standing import graph as lab_graph

    lab_graph(what, form.value)


@app.command()
def probe(
    host: InHost,
    to: Annotated[
        str,
        typer.Argument(metavar="TO", autocompletion=complete.lab_hosts, show_default=False,
                       help="An address, another host, or a name of the topology."),
    ],
    what: Annotated[
        str,
        typer.Argument(metavar="WHAT", autocompletion=complete.probes, show_default=False,
                       help="tcp/PORT, udp/PORT, http or http/PORT, dns or dns/PORT, or icmp."),
    ],
    lab: Lab = "",
    ipv4: Ipv4 = False,
    ipv6: Ipv6 = False,
    source: Annotated[
        str,
        typer.Option("-s", "--source", metavar="ADDRESS", show_default=False,
                     help="Another source address, the host's own or not."),
    ] = "",
    timeout: Annotated[
        float,
        typer.Option("-W", "--timeout", metavar="SECONDS", min=0.001, max=60,
                     help="How long to wait for an answer."),
    ] = 1.0,
    json: Json = False,
) -> None:  # fmt: skip
    """Send one real packet or connection from a host, and say which rule decided what came of it.

    Exit code 0: it was answered; 1: it was dropped or rejected. The rules that it met are those
    whose counters moved meanwhile, so nothing else should be sent in the lab.

    [bold]Example:[/bold] sudo nfctl lab probe client server tcp/80
    """
    from nfctl.cli.lab_find import require_root

    number = family(ipv4, ipv6) if ipv4 or ipv6 else None
    require_root()
    from nfctl.cli.lab_probe import probe as lab_probe

    if not lab_probe(
        host, to, what, lab=lab, family=number, source=source, timeout=timeout, json=json
    ):
        raise typer.Exit(1)
