"""What ``nfctl lab up``, ``down``, ``list`` and ``graph`` do and print; without typer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nfctl.cli.answer import print_json, write
from nfctl.cli.lab_find import names_in_errors, none_up, require_root, the_lab
from nfctl.errors import BadInput, NfctlError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.lab.standing import Standing
    from nfctl.lab.topology import HostPlan, ServicesPlan, Topology

_ASCII = str.maketrans({"├": "+", "└": "+", "─": "-", "│": "|"})


def up(
    topology: str = "",
    *,
    name: str = "",
    services: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Make a lab that stays, and say what it is."""
    from nfctl.lab import standing
    from nfctl.lab.topology import Topology

    if not topology:
        raise _which_topology()
    lab = standing.up(Topology.load(topology), name, services=services)
    if json:
        print_json(document(lab))
    elif not quiet:
        named = f"-l {lab.name} " if len(standing.labs()) > 1 else ""
        write(shown(lab, named=named))


def down(name: str = "", *, every: bool = False, quiet: bool = False) -> None:
    """Remove a lab, or all, and say which hosts are gone."""
    from nfctl.lab import standing

    if name and every:
        msg = "--all and a lab's name exclude each other"
        raise BadInput(msg, hint="nfctl lab down --all removes all of them")
    require_root()
    if name and quiet:  # what it is made of is nobody's concern, and takes time to read
        with names_in_errors(name):
            standing.down(name)
        return
    labs = standing.labs() if every else [the_lab(name)]
    if not labs and not quiet:
        none_up()
    refused = None
    for lab in labs:
        try:
            standing.down(lab.name)
        except NfctlError as error:  # somebody else makes or removes it: the others can go
            refused = refused or error
            continue
        if not quiet:
            print(f"removed {_lab_and_hosts(lab)}", flush=True)
    if refused is not None:
        raise refused


def list_labs(*, json: bool = False) -> None:
    """Print the labs that stand."""
    from nfctl.lab import standing

    require_root()
    labs = standing.labs()
    if json:
        print_json({"labs": [document(lab) for lab in labs]})
    elif labs:
        write(table(labs, time.time()))
    else:
        none_up()


def graph(word: str = "", form: str = "tree") -> None:
    """Print the picture of a topology, or of a lab that stands.

    ``form`` is the name of a function of ``nfctl.lab.topology.graph``: tree, dot or mermaid.
    """
    from nfctl.cli.paint import speaks_utf8
    from nfctl.lab.topology import graph as forms

    text: str = getattr(forms, form)(_topology(word))
    if not speaks_utf8():
        text = text.translate(_ASCII)
    write(text if text.endswith("\n") else f"{text}\n")


def _topology(word: str) -> Topology:
    """Find what to draw: a file, a lab that stands, or a topology that comes with nfctl."""
    from nfctl.lab import standing
    from nfctl.lab.topology import Topology

    if not word:
        require_root(" to see which labs are up; a topology's name needs none")
        return the_lab("").topology
    if not {"/", "."}.intersection(word) and word != "-":
        try:
            for lab in standing.labs():
                if lab.name == word and lab.topology.hosts:
                    return lab.topology
        except (NfctlError, PermissionError):
            pass  # only root sees them, and need not for a topology
    return Topology.load(word)


def _which_topology() -> BadInput:
    from nfctl.lab.topology import shipped

    rows = [[name, description] for name, description in sorted(shipped().items())]
    hint = "one of these, or a YAML file (pydoc nfctl.lab.topology shows one; - is standard input)"
    return BadInput("which topology?", hint=f"{hint}\n{columns(rows, '    ')}".rstrip("\n"))


# --- documents ----------------------------------------------------------------------------------


def document(lab: Standing) -> dict[str, object]:
    """Return the document of a lab: see ``nfctl.cli.lab`` for its keys."""
    plans = lab.topology.hosts
    return {
        "name": lab.name,
        "state": lab.state.value,
        "topology": lab.topology.name or None,
        "description": lab.topology.description,
        "since": round(lab.since, 3),
        "hosts": [
            {
                "name": name,
                "namespace": host.namespace,
                **_plan_document(plans.get(name)),
            }
            for name, host in lab.hosts.items()
        ],
    }


def _plan_document(plan: HostPlan | None) -> dict[str, object]:
    """Return what the topology says of a host; nothing of one that no topology knows."""
    services = plan.services if plan else None
    return {
        "forward": bool(plan and plan.forward),
        "interfaces": [
            {"name": part.name, "link": part.link, "addresses": list(part.addresses)}
            for part in (plan.interfaces if plan else ())
        ],
        "services": {kind: list(getattr(services, kind) if services else ()) for kind in _SERVICES},
    }


# --- text ---------------------------------------------------------------------------------------

_SERVICES = ("tcp", "http", "udp", "dns")


def shown(lab: Standing, *, named: str = "") -> str:
    """Return the text of ``up``: the hosts, and what to type next.

    ``named`` are the words that name the lab to the next commands, where they need that.
    """
    description = lab.topology.description
    rows = [["HOST", "INTERFACE", "ADDRESSES", "SERVICES"]]
    for name, plan in lab.topology.hosts.items():
        first = [name, "", "", _services(plan.services)]
        for part in plan.interfaces:
            rows.append([first[0], part.name, "  ".join(part.addresses), first[3]])
            first = ["", "", "", ""]
        if not plan.interfaces:
            rows.append(first)
    hosts = list(lab.topology.hosts)
    name = f" {lab.name}" if named else ""
    steps = [
        [f"nfctl lab exec {named}{hosts[0]} ip route", "run a command on a host"],
        [f"nfctl lab shell {named}{hosts[-1]}", "look around in one"],
        [f"nfctl lab down{name}", "remove all of it"],
    ]
    heading = f"lab {lab.name} is up" + (f": {description}" if description else "")
    return f"{heading}\n\n{columns(rows, '  ')}\n{columns(steps, '  ')}"


def table(labs: Iterable[Standing], now: float) -> str:
    """Return the text of ``list``: a line a lab."""
    lines = [
        [
            lab.name,
            lab.state.value,
            lab.topology.name or "-",
            age(now - lab.since) if lab.since else "-",
            ", ".join(lab.hosts) or "-",
        ]
        for lab in labs
    ]
    return columns([["LAB", "STATE", "TOPOLOGY", "AGE", "HOSTS"], *lines])


def columns(rows: Sequence[Sequence[str]], before: str = "") -> str:
    """Lay out rows with two blanks between the columns; one that is empty is left out."""
    heads = rows[1:] if rows[0][0].isupper() else rows
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in heads)]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    return "".join(
        before + "  ".join(row[i].ljust(widths[i]) for i in kept).rstrip() + "\n" for row in rows
    )


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit: 5 s, 12 min, 3 h, 2 d."""
    number = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if number >= size:
            return f"{number // size} {unit}"
    return f"{number} s"


def _services(plan: ServicesPlan) -> str:
    """Return ``tcp 7,22  udp 53``."""
    kinds = [(kind, getattr(plan, kind)) for kind in _SERVICES]
    return "  ".join(f"{kind} {','.join(map(str, ports))}" for kind, ports in kinds if ports)


def _lab_and_hosts(lab: Standing) -> str:
    unit = "host" if len(lab.hosts) == 1 else "hosts"
    return f"lab {lab.name}: {len(lab.hosts)} {unit} ({', '.join(lab.hosts) or 'none'})"
