"""``nfctl service watch``: services stay at their file, and at their endpoints' health."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.common import WAIT, Netns, Wait
from nfctl.cli.service_common import Adopt, EndTcp, Prefix  # noqa: TC001 - typer reads annotations
from nfctl.cli.watch import SOURCES, Teller, by_whom, refuse_interval, where
from nfctl.errors import BadInput, Locked
from nfctl.text import several, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.journal.state import State
    from nfctl.control.watching.watch import Event
    from nfctl.services.checks import Check


def watch(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A list of services.")],
    check_health: Annotated[
        str | None,
        typer.Option("--check-health", metavar="CHECK", show_default=False,
                     help="tcp, or http://:8080/healthz: whether endpoints answer."),
    ] = None,
    check_interval: Annotated[
        float | None,
        typer.Option("--check-interval", metavar="SECONDS", show_default=False,
                     help="From one check of an endpoint to the next: 5."),
    ] = None,
    check_timeout: Annotated[
        float | None,
        typer.Option("--check-timeout", metavar="SECONDS", show_default=False,
                     help="How long an answer may take: 2."),
    ] = None,
    rise: Annotated[
        int | None,
        typer.Option("--rise", metavar="N", show_default=False,
                     help="Checks in a row that make an endpoint healthy: 2."),
    ] = None,
    fall: Annotated[
        int | None,
        typer.Option("--fall", metavar="N", show_default=False,
                     help="Failures in a row that make it unhealthy: 3."),
    ] = None,
    interval: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", help="How often to compare the chains "
                     "without a notice that something changed."),
    ] = 30.0,
    prefix: Prefix = None,
    end_tcp: EndTcp = False,
    adopt: Adopt = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, an event a line: python -m pydoc "
                           "nfctl.control.serving.watch", show_default=False)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Tell only what goes wrong, and health.",
                           show_default=False)
    ] = False,
    netns: Netns = None,
    wait: Wait = WAIT,
) -> None:  # fmt: skip
    """Keep services at their file and at their endpoints' health, until a signal ends it.

    The list is applied at the start and when the file changes; one that is wrong is told, and the
    old one stays. With --check-health an endpoint that does not answer gets nothing new until it
    does. What other programs change in the chains is put back.

    SIGHUP reads the file at once; SIGTERM and Ctrl-C end it, with exit code 0: the chains stay.
    For systemd: python -m pydoc nfctl.control.serving.watch

    [bold]Example:[/bold] echo '{services: [{name: web, port: 80, cluster-ips: 10.96.0.10,
    endpoints: ["10.0.0.5:8080"]}]}' > web.yaml; nfctl service watch web.yaml --check-health tcp
    """
    refuse_interval(interval)
    if file == "-":
        msg = "a list on standard input cannot be read again"
        raise BadInput(msg, hint="nfctl service watch needs a file")
    given = {"interval": check_interval, "timeout": check_timeout, "rise": rise, "fall": fall}
    check = _check(check_health, {key: value for key, value in given.items() if value is not None})

    from nfctl.control.journal.state import State
    from nfctl.control.serving.keeping import Host, ListFile
    from nfctl.control.serving.watch import Options, ServiceWatch
    from nfctl.control.watching.waiting import Waiter
    from nfctl.kernel import netns as namespaces
    from nfctl.kernel.notices import Notices
    from nfctl.kernel.sdnotify import Notifier
    from nfctl.services.health import Prober

    source = ListFile(file, prefix)
    first = source.read()
    gc.enable()  # commands do without; this one stays
    notifier = Notifier()
    with contextlib.ExitStack() as stack:
        # the audit log and the manager's abstract socket are not to be had from another namespace
        notices = stack.enter_context(Notices())
        stack.enter_context(namespaces.entered(netns))
        prober = stack.enter_context(Prober(check)) if check is not None else None
        waiter = stack.enter_context(Waiter(notices, *([prober] if prober is not None else [])))
        state = State()
        stack.enter_context(_alone(state, first.listed.prefix))
        ServiceWatch(
            first,
            Options(interval=interval, check=check),
            read=source.read,
            stamp=source.stamp,
            host=Host(first.listed.prefix, state, wait=wait, adopt=adopt, end_tcp=end_tcp),
            prober=prober,
            wait=waiter,
            forget=notices.forget,
            tell=ServiceTeller(json=as_json, quiet=quiet),
            notifier=notifier,
        ).run(notices.sources, notices.missing)
    notifier.close()


def _check(text: str | None, given: dict[str, Any]) -> Check | None:
    if text is None:
        if given:
            words = {"interval": "--check-interval", "timeout": "--check-timeout"}
            option = next(words.get(key, f"--{key}") for key in given)
            msg = f"{option} says how to check, and nothing is checked"
            raise BadInput(msg, hint="--check-health tcp, or http://:8080/healthz")
        return None
    from nfctl.services.checks import Check

    return Check.parse(text, **given)


@contextlib.contextmanager
def _alone(state: State, prefix: str) -> Iterator[None]:
    """Make sure that nobody else watches these services here: two would never agree on health."""
    from nfctl.kernel import lock

    state.ready()
    file = state.directory / f"watch-{prefix.rstrip('-')}.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.held(0, file, "the lock of the watch"))
        except Locked:
            who = lock.holder(file)
            by = f" by {who[1]} (process {who[0]})" if who else ""
            msg = f"the services of prefix {prefix} are watched already{by}"
            raise Locked(msg, hint="end that one first, or give another --prefix") from None
        yield


class ServiceTeller(Teller):
    """Tells what becomes of services."""

    unexciting = frozenset({"start", "reloaded", "taken", "applied", "stale", "gone", "end"})

    def text(self, event: Event) -> list[str]:
        """Return an event for people."""
        return lines(event)


def lines(event: Event) -> list[str]:
    """Return the text of an event for people, without the time."""
    facts = event.facts
    more = facts.get("text", ()) if event.kind in {"applied", "taken"} else ()
    if event.kind in {"unserved", "served"}:
        return [visible(f"{s['name']} ({s['protocol']}) {s['what']}") for s in facts["services"]]
    return [visible(_text(event.kind, facts)), *map(visible, more)]


def _text(kind: str, facts: dict[str, Any]) -> str:
    match kind:
        case "start":
            check = f"; health by {facts['check']}" if facts["check"] else ""
            bad = f", {facts['unhealthy']} unhealthy" if facts["unhealthy"] else ""
            sources = " and ".join(SOURCES[name] for name in facts["notices"]) or "nobody"
            lacks = f" (no {'; no '.join(facts['missing'])})" if facts["missing"] else ""
            return f"keeping {_sizes(facts)}{bad}{check}; notices by {sources}{lacks}"
        case "reloaded":
            return f"reloaded: {_sizes(facts)}"
        case "reload-failed":
            retry = f", next in {facts['retry']:.0f} s" if facts["retry"] is not None else ""
            return f"not reloaded{retry}, the list stays as it was: {facts['error']}"
        case "health":
            word = "healthy" if facts["healthy"] else "UNHEALTHY"
            out = f"; as it flaps, it stays out for {facts['out']:.0f} s" if facts["out"] else ""
            return f"{word}: {facts['endpoint']} of {_names(facts)}: {facts['reason']}{out}"
        case "taken":
            return "taken, until the file changes or SIGHUP: what nfctl made of the list"
        case "drift" | "gone":
            return _drift(kind, facts)
        case "applied":
            added, deleted = facts["rules"]
            entry = f"entry {facts['entry']}, " if facts["entry"] else ""
            ended = f", {several(facts['ended'], 'flow')} ended" if facts["ended"] else ""
            rules = f"{several(added, 'rule')} added, {deleted} deleted"
            return f"applied ({', '.join(facts['why'])}): {entry}{rules}{ended}"
        case "stale":
            return f"{several(facts['ended'], 'UDP flow')} ended, left by who was there before"
        case "apply-failed":
            return f"not applied, next in {facts['retry']:.0f} s: {facts['error']}"
        case "end":
            return f"ended by {facts['ended_by']}: the chains stay"
        case _:
            return str(facts["text"])


_FEW = 5


def _drift(kind: str, facts: dict[str, Any]) -> str:
    places = [f"{where(place)}: {place['text']}" for place in facts["places"]]
    more = f" and {len(places) - _FEW} places more" if len(places) > _FEW else ""
    text = f"{'; '.join(places[:_FEW])}{more}"
    if kind == "gone":
        return f"gone: the drift of {text}"
    repair = f"; the repair is in {facts['repair']:.0f} s" if facts["repair"] >= 1 else ""
    return f"drift: {text}{by_whom(facts)}{repair}"


def _sizes(facts: dict[str, Any]) -> str:
    services, endpoints = several(facts["services"], "service"), facts["endpoints"]
    return f"{services} ({facts['prefix']}) with {several(endpoints, 'endpoint')}"


def _names(facts: dict[str, Any]) -> str:
    names = facts["services"]
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return f"{', '.join(names[:_FEW])}{more}"
