"""``nfctl service``: virtual services, and the endpoints that serve them, as chains.

``apply --json`` prints one document::

    {"status": "applied", "entry": 7, "changes": true, "policy": "services-NFCTL",
     "prefix": "NFCTL-",
     "services": {
       "added": [{"name": "dns", "protocol": "udp", "endpoints": 2, "serving": 2}],
       "removed": [],
       "changed": [{"name": "web", "protocol": "tcp",
                    "settings": {"affinity": {"before": 0, "after": 3600}},
                    "endpoints": {"added": ["10.0.0.7:80"], "removed": [], "changed": []}}],
       "settings": {}, "moved": false},
     "unserved": [{"name": "api", "protocol": "tcp", "what": "has no endpoint ..."}],
     "notes": [], "summary": {...},
     "flows": {"udp": 2, "streams": null, "left": 1, "problem": null},
     "confirm": null}

``status`` is "unchanged", "applied" or "unconfirmed"; ``entry`` is the number in ``nfctl
history``. ``changes`` says whether rules differ, ``services`` how the lists do: ``settings`` are
what a list says for all. ``unserved`` refuse connections. ``summary`` is that of ``nfctl plan
--json``, whose whole document is ``change`` with --rules. ``flows`` were deleted: of UDP, and of
TCP and SCTP (null without --end-tcp); ``left`` are those that go on to endpoints that are gone.
``confirm`` is as ``nfctl apply --json`` has it.

``plan --json`` has no ``status``, ``entry``, ``flows`` and ``confirm``; ``set-endpoints`` and
``delete`` print what ``apply`` does, without ``confirm``. ``drain --json`` has ``status``
("drained", "draining": nobody waited, "open": some flows did not end in time, "undone"),
``service``, ``protocol``, ``endpoints``, ``open`` (flows) and ``applied``, a list of documents as
above.

``list --json`` prints a list that ``apply`` takes (``python -m pydoc nfctl.services``). ``show
--json`` prints the service as it stands there, with ``prefix``, ``chains`` of nat by family
("4", "6"), ``missing`` ones, and for each endpoint also ``serves``, ``chain``, ``share`` and
``local_share`` (0 to 1, or null), and ``connections`` that it got (null without its chain).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli import service_edit, service_watch
from nfctl.cli.answer import heard, print_json, write
from nfctl.cli.common import WAIT, Json, Netns, Wait
from nfctl.cli.service_common import (  # noqa: TC001 - typer reads annotations
    Adopt,
    EndTcp,
    Name,
    Prefix,
    Quiet,
    ShowRules,
)

if TYPE_CHECKING:
    from nfctl.services.model import ServiceList

app = typer.Typer(
    help="Have virtual services, and keep the endpoints that serve them.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ListFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A list of services; standard input if -.")
]


@app.command()
def apply(
    file: ListFile,
    confirm: Annotated[
        float | None,
        typer.Option("--confirm", metavar="SECONDS", show_default=False, help="Roll back unless "
                     "it is confirmed in time: y at the prompt, or nfctl confirm."),
    ] = None,
    prefix: Prefix = None,
    end_tcp: EndTcp = False,
    adopt: Adopt = False,
    force: Annotated[
        bool, typer.Option("--force", show_default=False,
                           help="Apply also what takes your own SSH connection's address.")
    ] = False,
    rules: ShowRules = False,
    quiet: Quiet = False,
    as_json: Json = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Make the services those of a list, and no others of its prefix; nfctl rollback undoes it.

    The chains are of kube-proxy's shape and stand beside all else. Only what differs is written:
    counters and connections of all that stays go on. What a list holds:
    python -m pydoc nfctl.services

    [bold]Example:[/bold] echo '{services: [{name: web, port: 80, cluster-ips: 10.96.0.10,
    endpoints: ["10.0.0.5:8080", "10.0.0.6:8080"]}]}' | nfctl service apply -
    """
    from nfctl.cli.apply import confirmation, seconds_of, wait_for_word
    from nfctl.cli.service_common import document, say
    from nfctl.control.apply import Options
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing
    from nfctl.kernel import netns as namespaces

    options = Options(confirm=seconds_of(confirm), force=force, wait=wait)
    settings, files = _read(file, prefix)
    with namespaces.entered(netns):
        state = State()
        done = changing.apply(
            settings, state=state, options=options, files=files, adopt=adopt, end_tcp=end_tcp
        )
        with heard(done.status):
            if as_json:
                print_json({**document(done, rules=rules), "confirm": confirmation(done.outcome)})
                return
            say([done], rules=rules, quiet=quiet, whole=True)
        if done.status == "unconfirmed":
            wait_for_word(state, done.outcome, options, netns)


def _read(file: str, prefix: str | None) -> tuple[ServiceList, list[tuple[str, str]]]:
    from nfctl.control.serving.changing import full_prefix
    from nfctl.services import reading

    settings, files = reading.load(file)
    return settings._replace(prefix=full_prefix(prefix)) if prefix else settings, files


@app.command()
def plan(
    file: ListFile,
    prefix: Prefix = None,
    adopt: Adopt = False,
    rules: ShowRules = False,
    as_json: Json = False,
    netns: Netns = None,
) -> None:  # fmt: skip
    """Show which services and endpoints would come (+), go (-) or differ (*).

    The exit code is 0 if there is nothing to change, 1 if there is, and 2 if the list is wrong.

    [bold]Example:[/bold] nfctl service plan services.json
    """
    from nfctl.cli.service_common import change_lines, planned, remarks
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing
    from nfctl.kernel import netns as namespaces

    settings, files = _read(file, prefix)
    with namespaces.entered(netns):
        found = changing.plan(settings, state=State(), files=files, adopt=adopt)
    if as_json:
        print_json(planned(settings, found.difference, found.change, found.notes, rules=rules))
    else:
        lines = change_lines(found.difference, found.change, rules=rules)
        if not lines:
            lines = ["nothing to change"]
        lines += remarks(settings, found.notes, found.change if not rules else None)
        write("".join(f"{line}\n" for line in lines))
    if found.change.changes or found.difference:
        raise typer.Exit(1)


@app.command("list")
def list_services(prefix: Prefix = None, as_json: Json = False, netns: Netns = None) -> None:
    """List the services: addresses, endpoints that serve of all there are, affinity, policies.

    [bold]Example:[/bold] nfctl service list --json > services.json
    """
    from nfctl.cli.service_text import table

    settings = _applied(prefix, netns)
    if as_json:
        print_json(settings.document())
    else:
        write(table(settings))


@app.command()
def show(name: Name, prefix: Prefix = None, as_json: Json = False, netns: Netns = None) -> None:
    """Show a service: its endpoints, with their shares and what came to them, and its chains.

    [bold]Example:[/bold] nfctl service show web
    """
    from nfctl.cli.service_text import service_document, service_text
    from nfctl.control.serving import counted
    from nfctl.kernel import netns as namespaces
    from nfctl.services import editing

    settings = _applied(prefix, netns)
    service = editing.find(settings, name)
    with namespaces.entered(netns):
        seen = counted.look(settings, service)
    if as_json:
        print_json(service_document(settings, service, seen))
    else:
        write(service_text(settings, service, seen))


def _applied(prefix: str | None, netns: str | None) -> ServiceList:
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing
    from nfctl.kernel import netns as namespaces

    with namespaces.entered(netns):
        state = State()
        return changing.current(state, changing.the_prefix(state, prefix))


app.command("set-endpoints")(service_edit.set_endpoints)
app.command("drain")(service_edit.drain)
app.command("delete")(service_edit.delete)
app.command("watch")(service_watch.watch)
