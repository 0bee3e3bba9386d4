"""A topology as a picture: a tree for a terminal, and graphs for Graphviz and Mermaid.

The tree has all there is: every host with its interfaces, routes and services, then every link
with its ends and its shape. The graphs have the hosts as boxes and the links as lines; a link
that is a bridge is a node of its own, since it has more than two ends.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from nfctl.diagram import dot_quote, mermaid_quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.lab.topology import HostPlan, InterfacePlan, LinkPlan, ServicesPlan, Shape, Topology

_WIDTH: Final = 80  # columns of the tree, where words allow
_RATES: Final = (("gbit", 1000**3), ("mbit", 1000**2), ("kbit", 1000), ("bit", 1))
_TIMES: Final = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def tree(topology: Topology) -> str:
    """Draw the hosts and the links as a tree, about 80 columns wide."""
    title = topology.name
    if topology.description:
        title += f": {topology.description}"
    lines = textwrap.wrap(title, _WIDTH, break_long_words=False, subsequent_indent="  ")
    for host in topology.hosts.values():
        lines += ["", f"{host.name}  {_marks(host)}".rstrip(), *_branches(_host_facts(host))]
    if topology.links:
        lines += ["", "links", *_branches(list(map(_link_facts, topology.links.values())))]
    if topology.names:
        names = [(name, list(addresses)) for name, addresses in topology.names.items()]
        lines += ["", "names", *_branches(names)]
    return "\n".join(lines) + "\n"


def _branches(facts: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Draw a head and its words on a line each, the words under each other if they are many."""
    lines = []
    room = max((len(head) for head, _ in facts), default=0) + 2
    for number, (head, words) in enumerate(facts, 1):
        last = number == len(facts)
        start = f"{'└─' if last else '├─'} {head:<{room}}"
        for row in _rows(words, _WIDTH - len(start)):
            lines.append(f"{start}{row}".rstrip())
            start = f"{' ' if last else '│'}{' ' * (room + 2)}"
    return lines


def _rows(words: Iterable[str], width: int) -> list[str]:
    """Fill rows of ``width`` columns with words, two blanks apart; a word is never broken."""
    rows = [""]
    for word in words:
        longer = f"{rows[-1]}  {word}" if rows[-1] else word
        if rows[-1] and len(longer) > width:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows


def _marks(host: HostPlan) -> str:
    """Say what a host is beside its interfaces."""
    marks = ["forwards"] if host.forward else []
    marks += [f"IPv{plan.family} rules" for plan in host.rules]
    return f"({', '.join(marks)})" if marks else ""


def _host_facts(host: HostPlan) -> list[tuple[str, list[str]]]:
    facts = [(plan.name, _interface_words(plan)) for plan in host.interfaces]
    routes: dict[str, list[str]] = {}
    for destination, gateway in host.routes:
        routes.setdefault(destination, []).append(gateway)
    if routes:
        facts.append(("routes", [f"{to} via {', '.join(via)}" for to, via in routes.items()]))
    if host.services:
        facts.append(("serves", _services(host.services)))
    if host.resolver:
        facts.append(("resolver", [host.resolver]))
    if host.sysctls:
        facts.append(("sysctls", [f"{name}={value}" for name, value in host.sysctls.items()]))
    return facts


def _interface_words(plan: InterfacePlan) -> list[str]:
    return [f"{'bridge of' if plan.bridge else 'on'} {plan.link}", *plan.addresses]


def _services(services: ServicesPlan) -> list[str]:
    found = {
        "tcp": services.tcp,
        "http": services.http,
        "udp": services.udp,
        "dns": services.dns,
    }
    return [f"{kind} {','.join(map(str, ports))}" for kind, ports in found.items() if ports]


def _link_facts(link: LinkPlan) -> tuple[str, list[str]]:
    words = [f"{_kind(link)}:", *(f"{host}:{interface}" for host, interface in link.ends)]
    return link.name, words + ([f"[{shape_text(link.shape)}]"] if link.shape else [])


def _kind(link: LinkPlan) -> str:
    if link.bridge is None:
        return "veth"
    return f"bridge in {link.bridge}" if link.bridge else "switch"


def shape_text(shape: Shape) -> str:
    """Return a shape in the units of a topology's file: ``delay 10ms, loss 0.5%``."""
    parts = []
    if shape.delay:
        parts.append(f"delay {_time(shape.delay)}")
    if shape.jitter:
        parts.append(f"jitter {_time(shape.jitter)}")
    if shape.loss:
        parts.append(f"loss {shape.loss * 100:.6g}%")
    if shape.rate:
        unit, size = next(found for found in _RATES if not shape.rate % found[1])
        parts.append(f"rate {shape.rate // size}{unit}")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    unit, size = next((found for found in _TIMES if seconds >= found[1]), _TIMES[-1])
    return f"{seconds / size:.6g}{unit}"


# --- graphs ---------------------------------------------------------------------------------------


def dot(topology: Topology) -> str:
    """Return the topology as a graph in the language of Graphviz (dot(1))."""
    lines = [
        f"graph {dot_quote([topology.name])} {{",
        f"  label={dot_quote([topology.description or topology.name])}; labelloc=t;",
        '  rankdir=LR; node [fontname="sans-serif"]; edge [fontname="sans-serif", fontsize=10];',
    ]
    for host in topology.hosts.values():
        label = dot_quote(_box(host))
        lines.append(f"  {dot_quote([f'host {host.name}'])} [shape=box, label={label}];")
    for link in topology.links.values():
        ends = [(dot_quote([f"host {host}"]), interface) for host, interface in link.ends]
        label = dot_quote(_line(link))
        if link.bridge is None:
            (one, tail), (other, head) = ends
            lines.append(
                f"  {one} -- {other} [label={label}, taillabel={dot_quote([tail])}, "
                f"headlabel={dot_quote([head])}];"
            )
            continue
        node = dot_quote([f"link {link.name}"])
        lines.append(f"  {node} [shape=ellipse, label={label}];")
        for (owner, _), (end, interface) in zip(link.ends, ends, strict=True):
            bold = ", style=bold" if owner == link.bridge else ""
            lines.append(f"  {node} -- {end} [headlabel={dot_quote([interface])}{bold}];")
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(topology: Topology) -> str:
    """Return the topology as a flowchart for Mermaid, as Markdown pages show it."""
    boxes = {host.name: mermaid_quote(_box(host)) for host in topology.hosts.values()}
    lines = ["flowchart LR", *(f"  host_{name}[{box}]" for name, box in boxes.items())]
    for link in topology.links.values():
        label = mermaid_quote(_line(link))
        if link.bridge is None:
            (one, _), (other, _) = link.ends
            lines.append(f"  host_{one} ---|{label}| host_{other}")
            continue
        lines.append(f"  link_{link.name}([{label}])")
        for owner, interface in link.ends:
            line = "===" if owner == link.bridge else "---"
            lines.append(f"  link_{link.name} {line}|{mermaid_quote([interface])}| host_{owner}")
    return "\n".join(lines) + "\n"


def _box(host: HostPlan) -> list[str]:
    """Return what stands in a host's box."""
    interfaces = [
        f"{plan.name}: {', '.join(plan.addresses)}" if plan.addresses else plan.name
        for plan in host.interfaces
    ]
    return [f"{host.name} {_marks(host)}".rstrip(), *interfaces, *_services(host.services)]


def _line(link: LinkPlan) -> list[str]:
    """Return what stands at a link."""
    return [link.name, shape_text(link.shape)] if link.shape else [link.name]
