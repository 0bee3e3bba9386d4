"""``nfctl service set-endpoints``, ``drain`` and ``delete``: a change without the file."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nfctl.cli import complete
from nfctl.cli.answer import heard, print_json
from nfctl.cli.common import WAIT, Json, Netns, Wait
from nfctl.cli.service_common import (  # noqa: TC001 - typer reads annotations
    EndTcp,
    Name,
    Prefix,
    Quiet,
    ShowRules,
)
from nfctl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.serving.draining import Drained
    from nfctl.services.model import ServiceList

_FORM = "10.0.0.5:80, [fd00::5]:80"
_HELP = _FORM.replace("[", "\\[")  # for rich


def set_endpoints(
    name: Name,
    endpoints: Annotated[
        list[str] | None,
        typer.Argument(metavar="ENDPOINT...", show_default=False,
                       autocompletion=complete.service_endpoints,
                       help=f"{_HELP}; *3 behind it is its weight."),
    ] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Add these; the others stay.", show_default=False)
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove these; the others stay.", show_default=False)
    ] = False,
    none: Annotated[
        bool, typer.Option("--none", help="Leave it without any.", show_default=False)
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="These run on this node.", show_default=False)
    ] = False,
    prefix: Prefix = None,
    end_tcp: EndTcp = False,
    rules: ShowRules = False,
    quiet: Quiet = False,
    as_json: Json = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Have these endpoints serve a service, and no others; or add some, or remove some.

    An endpoint that stays keeps its weight, if none is said, and all else that the list said of
    it. The list's file is not changed.

    [bold]Example:[/bold] nfctl service set-endpoints web 10.0.0.5:80 10.0.0.6:80*2

    [bold]Example:[/bold] nfctl service set-endpoints web --add 10.0.0.7:80
    """
    from nfctl.services import editing

    if add + remove + none > 1:
        msg = "--add, --remove and --none exclude each other"
        raise BadInput(msg)
    if none == bool(endpoints):
        msg = "--none leaves no endpoints" if none else "which endpoints?"
        hint = "without --none, these alone serve it" if none else f"{_FORM}; or --none"
        raise BadInput(msg, hint=hint)
    if local and (remove or none):
        msg = "--local is about endpoints that serve"
        raise BadInput(msg, hint="leave it out with --remove and --none")
    typed = editing.endpoints(endpoints or ())
    how = editing.ADD if add else editing.REMOVE if remove else editing.SET

    def edit(settings: ServiceList) -> ServiceList:
        return editing.with_endpoints(settings, name, typed, how, local=local)

    _change(edit, prefix, netns, wait, end_tcp=end_tcp, rules=rules, quiet=quiet, as_json=as_json)


def delete(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", show_default=False, autocompletion=complete.services,
                       help="Services; NAME/udp where there are two of that name."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All services, and all chains.", show_default=False)
    ] = False,
    prefix: Prefix = None,
    end_tcp: EndTcp = False,
    rules: ShowRules = False,
    quiet: Quiet = False,
    as_json: Json = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Delete services; nfctl rollback brings them back. The list's file is not changed.

    [bold]Example:[/bold] nfctl service delete web dns/udp
    """
    from nfctl.services import editing

    if everything == bool(names):
        msg = "--all means all services" if everything else "which services?"
        raise BadInput(msg, hint="give names, or --all")
    words = names or []

    def edit(settings: ServiceList) -> ServiceList:
        if everything:
            return settings._replace(services=())
        return editing.without(settings, words)

    _change(edit, prefix, netns, wait, end_tcp=end_tcp, rules=rules, quiet=quiet, as_json=as_json)


def _change(
    edit: Callable[[ServiceList], ServiceList],
    prefix: str | None,
    netns: str | None,
    wait: float,
    *,
    end_tcp: bool,
    rules: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from nfctl.cli.service_common import document, say
    from nfctl.control.apply import Options
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing
    from nfctl.kernel import netns as namespaces

    with namespaces.entered(netns):
        state = State()
        done = changing.change(
            changing.the_prefix(state, prefix),
            edit,
            state=state,
            options=Options(wait=wait),
            end_tcp=end_tcp,
        )
    with heard(done.status):
        if as_json:
            print_json(document(done, rules=rules))
        else:
            say([done], rules=rules, quiet=quiet)


def drain(
    name: Name,
    endpoints: Annotated[
        list[str],
        typer.Argument(metavar="ENDPOINT...", autocompletion=complete.service_endpoints,
                       help=f"{_HELP}"),
    ],
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, show_default=False,
                     help="How long to wait; otherwise as long as it takes."),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", show_default=False,
                           help="Only begin: they get nothing new, and stay in the list.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Have them serve again.", show_default=False)
    ] = False,
    end_tcp: Annotated[
        bool, typer.Option("--end-tcp", show_default=False,
                           help="End what is open after the timeout, and remove them.")
    ] = False,
    prefix: Prefix = None,
    quiet: Quiet = False,
    as_json: Json = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Give endpoints nothing new, wait until their connections have ended, then remove them.

    Exit code 1 if connections are open still after the timeout: the endpoints stay, and get
    nothing new; so they do if the command is interrupted. The same command goes on waiting.

    [bold]Example:[/bold] nfctl service drain web 10.0.0.5:80 --timeout 300
    """
    from nfctl.control.apply import Options
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing, draining
    from nfctl.kernel import netns as namespaces
    from nfctl.services import editing
    from nfctl.text import several

    if undo and (no_wait or end_tcp or timeout is not None):
        msg = "--undo waits for nothing"
        raise BadInput(msg, hint="leave out --timeout, --no-wait and --end-tcp")
    if end_tcp and (no_wait or timeout is None):
        msg = "--end-tcp ends what is open after a timeout"
        raise BadInput(msg, hint="--timeout 60 --end-tcp")
    if timeout is not None and (no_wait or math.isnan(timeout)):
        msg = "--no-wait does not wait" if no_wait else "--timeout nan: it takes seconds"
        raise BadInput(msg, hint="leave out --timeout" if no_wait else "0 or more")
    wanted = [endpoint for endpoint, _ in editing.endpoints(endpoints)]
    seconds = 0.0 if no_wait else draining.FOREVER if timeout is None else timeout

    waiting: list[int] = []

    def told(left: int) -> None:
        waiting.append(left)
        if not quiet:
            print(f"draining; {several(left, 'connection')} open", file=sys.stderr, flush=True)

    with namespaces.entered(netns):
        state, options = State(), Options(wait=wait)
        chains = changing.the_prefix(state, prefix)
        if undo:
            drained = draining.undo(chains, name, wanted, state=state, options=options)
        else:
            try:
                drained = draining.drain(
                    chains, name, wanted, state=state, options=options, seconds=seconds,
                    end_tcp=end_tcp, told=told,
                )  # fmt: skip
            except KeyboardInterrupt:
                if not waiting:
                    raise
                what = "the endpoints go on draining: --undo has them serve again"
                print(f"nfctl: interrupted; {what}", file=sys.stderr)
                raise typer.Exit(130) from None
    with heard(drained.status):
        _say_drained(drained, quiet, as_json)
    if drained.status == draining.OPEN:
        raise typer.Exit(1)


def _say_drained(drained: Drained, quiet: bool, as_json: bool) -> None:
    from nfctl.cli.service_common import document, say
    from nfctl.control.serving import draining
    from nfctl.text import several

    if as_json:
        print_json(
            {
                "status": drained.status,
                "service": drained.service.name,
                "protocol": drained.service.protocol,
                "endpoints": [str(endpoint) for endpoint in drained.endpoints],
                "open": drained.left,
                "applied": [document(done) for done in drained.done],
            }
        )
        return
    which = ", ".join(map(str, drained.endpoints))
    open_ = several(drained.left, "connection")
    more = {
        draining.DRAINED: f"drained: {which}",
        draining.DRAINING: f"draining: {which}; {open_} open",
        draining.OPEN: f"draining still: {which}; {open_} open; they get nothing new",
        draining.UNDONE: f"serving again: {which}",
    }[drained.status]
    say(drained.done, quiet=quiet, more=more)
