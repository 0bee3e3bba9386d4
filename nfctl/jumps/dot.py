"""A view of the jump graph in the language of Graphviz, and as an SVG picture by dot(1)."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from nfctl.diagram import dot_quote
from nfctl.errors import Unsupported
from nfctl.jumps.boxes import arrows, box, title

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.jumps.fold import Node, View

_HEAD: Final = """\
digraph nfctl {
  rankdir=LR; labelloc=t; fontname="sans-serif";
  node [shape=box, style=rounded, fontname="sans-serif"];
  edge [fontname="sans-serif", fontsize=10];
"""


def dot(views: Iterable[View]) -> str:
    """Return views as one graph, each table in a frame of its own."""
    lines = [_HEAD]
    for number, view in enumerate(views):
        names = {id(node): f"t{number}n{place}" for place, node in enumerate(view.nodes)}
        lines.append(f"  subgraph cluster_{number} {{\n    label={dot_quote([title(view)])};")
        unreferenced = set(map(id, [*view.unreferenced, *view.looping]))
        for node in view.nodes:
            style = _style(node, id(node) in unreferenced)
            lines.append(f"    {names[id(node)]} [label={dot_quote(box(node))}{style}];")
        lines.append("  }")
        for node in view.nodes:
            for arrow in arrows(node):
                label = f"label={dot_quote(arrow.label)}" if arrow.label else ""
                style = f"{', ' if label else ''}style=dashed" if arrow.goto else ""
                more = f" [{label}{style}]" if label or style else ""
                lines.append(f"  {names[id(node)]} -> {names[id(arrow.to)]}{more};")
    return "\n".join([*lines, "}"]) + "\n"


def _style(node: Node, unreferenced: bool) -> str:
    if not node.chain.present:
        return ', style="rounded,dashed", color=red, fontcolor=red'
    if node.builtin:
        return ", style=bold"
    if unreferenced:
        return ", color=grey, fontcolor=grey40"
    return ", peripheries=2" if node.alike > 1 else ""


def svg(text: str) -> bytes:
    """Have dot(1) draw a graph; Unsupported where there is no dot, or where it fails."""
    program = shutil.which("dot")
    if program is None:
        msg = "there is no dot(1) here, which draws the picture"
        hint = "install graphviz, or take --dot or --mermaid to where a picture can be drawn"
        raise Unsupported(msg, hint=hint)
    done = subprocess.run(
        [program, "-Tsvg"], input=text.encode("utf-8", "replace"), capture_output=True, check=False
    )
    if done.returncode or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().split("\n")[0]
        msg = f"dot(1) drew nothing: {said or f'it ended with {done.returncode}'}"
        raise Unsupported(msg, hint="--dot prints what it was given")
    return done.stdout
