"""``nfctl policy``: policies written, read and checked; what nfctl knows of those it applied.

The document of ``policy check --json``::

    {"name": "default", "files": [{"file": "policy.yaml", "sha256": "2c26..."}],
     "tables": [{"family": 4, "table": "filter", "chains": 3, "rules": 12}],
     "sets": [{"name": "blocked", "type": "hash:ip", "family": 4, "entries": 2}], "keep": 0}

``rules`` counts them with every variable and list expanded; ``entries`` is null for a set that
others fill.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.answer import print_json, write
from nfctl.cli.common import WAIT, Json, Netns, Wait

if TYPE_CHECKING:
    from nfctl.policy.wanted import Wanted

app = typer.Typer(
    help="Write, check and look after policies.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def new(
    ports: Annotated[
        list[int] | None,
        typer.Option("--ssh-port", metavar="PORT", min=1, max=65535, show_default=False,
                     help="A port of sshd; may be repeated. Otherwise the one of your own "
                     "connection, those of sshd_config, or 22."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", show_default=False,
                     help="A new file; standard output without it."),
    ] = None,
) -> None:  # fmt: skip
    """Write a starter policy for this host, with comments.

    SSH stays open, and so does what IPv4 and IPv6 need; whatever else comes in is dropped. Where
    the host seems to forward for containers or virtual machines, FORWARD is left alone.

    [bold]Example:[/bold] nfctl policy new --out policy.yaml && nfctl plan policy.yaml
    """
    from nfctl.control.surroundings import look
    from nfctl.policy.starter import starter

    text = starter(look(ports or ()))
    if out is None or out == "-":
        write(text)
        return
    _create(out, text)
    print(f"{out} is written; look at it, and then: nfctl plan {out}", file=sys.stderr)


def _create(path: str, text: str) -> None:
    """Write a new file; BadInput if it is there, or cannot be written."""
    from nfctl.document import shown
    from nfctl.errors import BadInput

    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        msg = f"{shown(path)} is there already, and is not overwritten"
        raise BadInput(msg, hint="give --out another name") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"cannot write {shown(path)}: {reason}"
        raise BadInput(msg) from None


@app.command("from-live")
def from_live(
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The policy's name.")
    ] = "default",
    ipv4: Annotated[
        bool, typer.Option("-4", "--ipv4", help="IPv4 alone.", show_default=False)
    ] = False,
    ipv6: Annotated[
        bool, typer.Option("-6", "--ipv6", help="IPv6 alone.", show_default=False)
    ] = False,
    netns: Netns = None,
) -> None:
    """Write the running rules of both families as a policy.

    Planned on the same host it comes to nothing. Rules and chains of other programs (Docker's,
    for example) are left out, as applying the policy leaves them where they are; so are those of
    other policies of nfctl.

    [bold]Example:[/bold] nfctl policy from-live > policy.yaml
    """
    from nfctl.control import fromlive
    from nfctl.control.journal.state import State
    from nfctl.kernel import netns as namespaces
    from nfctl.text import several

    families = [family for family, asked in ((4, ipv4), (6, ipv6)) if asked] or [4, 6]
    with namespaces.entered(netns):
        written = fromlive.policy(families, name=name, others=State().records())
    write(written.text)
    if written.others:
        print(
            f"nfctl: {several(len(written.others), 'rule')} would become another, since iptables "
            "prints them so; the first lines of the policy name them",
            file=sys.stderr,
        )


@app.command()
def check(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", show_default=False,
                       help="A policy; standard input if -."),
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
    as_json: Json = False,
) -> None:  # fmt: skip
    """Read a policy with all that it includes, and say what it comes to. Needs no root.

    What matches and targets mean, libxtables knows: nfctl plan asks it.

    [bold]Example:[/bold] nfctl policy check policy.yaml
    """
    from nfctl.policy.reading import read

    wanted = read(file, v4=ipv4, v6=ipv6)
    document = _document(wanted)
    if as_json:
        print_json(document)
    else:
        write(_text(document))


def _document(wanted: Wanted) -> dict[str, Any]:
    return {
        "name": wanted.name,
        "files": [{"file": file, "sha256": sha256} for file, sha256 in wanted.files],
        "tables": [
            {
                "family": family,
                "table": name,
                "chains": len(table.chains),
                "rules": sum(len(chain.rules) for chain in table.chains.values()),
            }
            for family, tables in wanted.tables.items()
            for name, table in tables.items()
        ],
        "sets": [
            {
                "name": one.name,
                "type": one.type,
                "family": one.family,
                "entries": None if one.entries is None else len(one.entries),
            }
            for one in wanted.sets
        ],
        "keep": len(wanted.keep),
    }


def _text(document: dict[str, Any]) -> str:
    from nfctl.text import several, visible

    lines = [f"policy {document['name']}: {several(len(document['files']), 'file')} read"]
    for table in document["tables"]:
        what = f"{several(table['rules'], 'rule')} in {several(table['chains'], 'chain')}"
        lines.append(f"  {table['table']} (IPv{table['family']}): {what}")
    for one in document["sets"]:
        count = one["entries"]
        entries = "others fill it" if count is None else several(count, "entry", "entries")
        lines.append(f"  set {visible(one['name'])} ({one['type']}): {entries}")
    return "\n".join(lines) + "\n"


@app.command()
def schema() -> None:
    """Print the JSON schema of policy files, for editors.

    [bold]Example:[/bold] nfctl policy schema > nfctl-policy.schema.json
    """
    from nfctl.policy.reading import schema as made

    print_json(made())


@app.command()
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")],
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:
    """Forget that a policy was applied: its rules stay in the kernel and are nobody's.

    Another policy can take over its chains then. To be rid of its rules, too, apply it with
    nothing in it first.

    [bold]Example:[/bold] nfctl policy forget web
    """
    from nfctl.control.journal.records import check_name
    from nfctl.control.journal.state import State
    from nfctl.errors import BadInput, Changed
    from nfctl.kernel import netns as namespaces

    check_name(name)
    with namespaces.entered(netns):
        state = State()
        names = state.policies()  # by name alone: one whose record is damaged can be forgotten
        if name not in names:
            msg = f"no policy called {name} was applied here"
            raise BadInput(msg, hint=f"there are {', '.join(names)}" if names else "")
        with state.locked(wait):
            pending = state.pending()
            if pending is not None and pending.policy == name:
                msg = f"change {pending.number}, of policy {name}, waits for its confirmation"
                raise Changed(msg, hint="nfctl confirm keeps it, nfctl rollback undoes it")
            state.drop_record(name)
