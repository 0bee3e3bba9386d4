"""What stands in the boxes and at the arrows of a diagram, in whichever language it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.jumps.tree import ends_text, jumps_text
from nfctl.jumps.tree import title as tree_title
from nfctl.text import escaped, human

if TYPE_CHECKING:
    from nfctl.jumps.fold import Edge, Node, View
    from nfctl.jumps.graph import Pair

_LONGEST: Final = 60  # characters of a line at an arrow
_MOST: Final = 4  # lines at an arrow


class Arrow(NamedTuple):
    """All jumps (or all gotos) from one node to another."""

    to: Node
    goto: bool
    label: list[str]  # lines


def title(view: View) -> str:
    """Return what a diagram is of."""
    return _plain(tree_title(view))


def box(node: Node) -> list[str]:
    """Return the lines of a chain's box."""
    lines = [_plain(node.name)]
    if node.alike > 1:
        lines.append(f"{node.alike:,} chains alike")
    if not node.chain.present:
        lines.append("no such chain")
    if node.chain.policy is not None:
        lines.append(f"policy {node.chain.policy}")
        lines += _counted(node.counters)
    ends = "".join(text for text, _ in ends_text(node.ends))
    return [*lines, _short(_plain(ends))] if ends else lines


def arrows(node: Node) -> list[Arrow]:
    """Return the arrows from a node: jumps to the same chain are one."""
    found: dict[tuple[int, bool], list[Edge]] = {}
    for edge in node.edges:
        found.setdefault((id(edge.to), edge.goto), []).append(edge)
    return [Arrow(edges[0].to, edges[0].goto, _label(edges, node)) for edges in found.values()]


def _label(edges: list[Edge], node: Node) -> list[str]:
    lines = []
    for edge in edges:
        parts = [part for part in (jumps_text(edge, node), edge.label) if part]
        if parts:
            lines.append(_short(_plain(": ".join(parts))))
    if len(lines) > _MOST:
        lines = [*lines[: _MOST - 1], f"and {len(lines) - _MOST + 1:,} more"]
    counters = [edge.counters for edge in edges if edge.counters is not None]
    if counters:
        lines += _counted((sum(one for one, _ in counters), sum(two for _, two in counters)))
    return ["goto", *lines] if edges[0].goto else lines


def _counted(counters: Pair | None) -> list[str]:
    if counters is None:
        return []
    packets, octets = counters
    unit = "packet" if packets == 1 else "packets"
    return [f"{human(packets)} {unit}, {human(octets)} bytes"]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _plain(text: str) -> str:
    """Return text that can be UTF-8: bytes that are none are spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else escaped(char) for char in text)
