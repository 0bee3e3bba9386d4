"""What the shell completes: tables, chains, extensions, interfaces, namespaces, labs, services."""

from __future__ import annotations

import contextlib
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nfctl.errors import NfctlError

if TYPE_CHECKING:
    from nfctl.lab.standing import Standing
    from nfctl.services.model import Service

_CHAIN_COMMANDS = ("-j", "--jump", "-g", "--goto")
_HEADER_OPTIONS = ("-p", "-s", "-d", "-i", "-o", "-m", "-j", "-g")
_PROTOCOLS = ("tcp", "udp", "icmp", "ipv6-icmp", "sctp", "udplite", "esp", "ah", "all")


def tables(incomplete: str) -> list[str]:
    """Complete a table's name."""
    from nfctl.ruleset.names import TABLES

    return _beginning(TABLES, incomplete)


def namespaces(incomplete: str) -> list[str]:
    """Complete a network namespace's name."""
    from nfctl.kernel.netns import names_list

    return _beginning(names_list(), incomplete)


def chains(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Complete a chain's name in the table given by -t."""
    return _beginning(_chain_names(ctx, args), incomplete)


def user_chains(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Complete a user-defined chain's name."""
    from nfctl.ruleset.names import BUILTIN_CHAINS

    builtin = BUILTIN_CHAINS.get(_table(ctx, args), ())
    return _beginning([n for n in _chain_names(ctx, args) if n not in builtin], incomplete)


def rule(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Complete the next word of a rule specification."""
    words = list(ctx.params.get("spec") or [])
    before = args[-1] if args else (words[-1] if words else "")
    family = 6 if ctx.params.get("ipv6") else 4
    if before in {"-m", "--match"}:
        from nfctl.kernel.extensions import installed

        return _beginning([n for n in installed(family) if not n.isupper()], incomplete)
    if before in _CHAIN_COMMANDS:
        from nfctl.kernel.extensions import installed
        from nfctl.ruleset.names import BUILTIN_CHAINS, VERDICTS

        builtin = BUILTIN_CHAINS.get(_table(ctx, args), ())
        own = [name for name in _chain_names(ctx, args) if name not in builtin]
        if before in {"-g", "--goto"}:
            return _beginning(own, incomplete)
        targets = [name for name in installed(family) if name.isupper()]
        return _beginning([*own, *VERDICTS, *targets], incomplete)
    if before in {"-i", "-o", "--in-interface", "--out-interface"}:
        return _beginning(_interfaces(ctx), incomplete)
    if before in {"-p", "--protocol"}:
        return _beginning(_PROTOCOLS, incomplete)
    if incomplete.startswith("--"):
        return _beginning(_extension_options([*words, *args], family), incomplete)
    return _beginning(_HEADER_OPTIONS, incomplete)


def policies(incomplete: str) -> list[str]:
    """Complete a policy."""
    return _beginning(("ACCEPT", "DROP"), incomplete)


def labs(incomplete: str) -> list[str]:
    """Complete the name of a lab that stands."""
    return _beginning([lab.name for lab in _labs()], incomplete)


def lab_hosts(ctx: Any, args: list[str], incomplete: str) -> list[str]:
    """Complete a host of the lab given by -l, or of all."""
    wanted = ctx.params.get("lab")
    for option, value in pairwise(args):
        if option in {"-l", "--lab"}:
            wanted = value
    names = [name for lab in _labs() if wanted in {None, "", lab.name} for name in lab.hosts]
    return _beginning(dict.fromkeys(names), incomplete)


def topologies(incomplete: str) -> list[str]:
    """Complete a topology that comes with nfctl, or a YAML file here.

    A path is left to the shell, which completes files where it is offered nothing.
    """
    if "/" in incomplete:
        return []
    from nfctl.lab.topology import shipped

    files = [name for name in os.listdir() if name.endswith((".yaml", ".yml"))]
    return _beginning([*sorted(shipped()), *sorted(files)], incomplete)


def labs_and_topologies(incomplete: str) -> list[str]:
    """Complete what can be drawn."""
    return list(dict.fromkeys([*labs(incomplete), *topologies(incomplete)]))


def probes(incomplete: str) -> list[str]:
    """Complete what can be sent."""
    return _beginning(("tcp/", "udp/", "http", "dns", "icmp"), incomplete)


def programs(ctx: Any, incomplete: str) -> list[str]:
    """Complete the name of a program; paths and a program's own words are left to the shell."""
    if ctx.params.get("command") or not incomplete or "/" in incomplete:
        return []
    found = set()
    for directory in os.get_exec_path():
        with contextlib.suppress(OSError):
            found.update(_beginning(os.listdir(directory), incomplete))
    return sorted(found)


def services(ctx: Any, incomplete: str) -> list[str]:
    """Complete the name of an applied service; NAME/udp where there are two of it."""
    listed = _services(ctx)
    names = [service.name for service in listed]
    taken = set(ctx.params.get("names") or ())
    words = [s.name if names.count(s.name) == 1 else f"{s.name}/{s.protocol}" for s in listed]
    return [word for word in _beginning(words, incomplete) if word not in taken]


def service_endpoints(ctx: Any, incomplete: str) -> list[str]:
    """Complete an endpoint of the service that was named before."""
    from nfctl.services import editing
    from nfctl.services.model import ServiceList

    try:
        service = editing.find(ServiceList(tuple(_services(ctx))), str(ctx.params.get("name")))
    except NfctlError:
        return []
    taken = set(ctx.params.get("endpoints") or ())
    return [
        word for word in _beginning(map(str, service.endpoints), incomplete) if word not in taken
    ]


def _services(ctx: Any) -> list[Service]:
    from nfctl.control.journal.state import State
    from nfctl.control.serving import changing
    from nfctl.kernel import netns

    try:
        with netns.entered(ctx.params.get("netns")):
            state = State()
            prefix = changing.the_prefix(state, ctx.params.get("prefix"))
            return list(changing.current(state, prefix).services)
    except (NfctlError, OSError):
        return []  # there are none, or only root sees them


def _labs() -> list[Standing]:
    from nfctl.lab import standing

    try:
        return standing.labs()
    except (NfctlError, OSError):
        return []  # only root sees them


def _beginning(names: Any, incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _table(ctx: Any, args: list[str]) -> str:
    for option, value in pairwise(args):
        if option in {"-t", "--table"}:
            return value
    return str(ctx.params.get("table") or "filter")


def _chain_names(ctx: Any, args: list[str]) -> list[str]:
    from nfctl.ruleset.names import BUILTIN_CHAINS

    table = _table(ctx, args)
    family = 6 if ctx.params.get("ipv6") else 4
    try:
        from nfctl.kernel import netns
        from nfctl.kernel.table import Table, active_tables

        with netns.entered(ctx.params.get("netns")):
            if table in active_tables(family):
                with Table(family, table) as kernel:
                    return kernel.chains()
    except (NfctlError, OSError):
        pass  # without root there are still the built-in ones
    return list(BUILTIN_CHAINS.get(table, ()))


def _interfaces(ctx: Any) -> list[str]:
    import socket

    from nfctl.kernel import netns

    try:
        with netns.entered(ctx.params.get("netns")):
            return sorted(name for _, name in socket.if_nameindex())
    except (NfctlError, OSError):
        return []


def _extension_options(words: list[str], family: int) -> list[str]:
    from nfctl.kernel.extensions import find
    from nfctl.kernel.layout import layout

    names = ["--source", "--destination", "--in-interface", "--out-interface", "--protocol",
             "--match", "--jump", "--goto", "--fragment"]  # fmt: skip
    for option, value in pairwise(words):
        kind = {
            "-m": "match",
            "--match": "match",
            "-p": "match",
            "-j": "target",
            "--jump": "target",
        }
        if option in kind:
            try:
                extension = find(kind[option], value, layout(family))
            except NfctlError:
                continue
            if extension is not None:
                names += [f"--{name}" for name in extension.options]
    return list(dict.fromkeys(names))
