"""A view of the jump graph as a flowchart for Mermaid, as Markdown pages show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.diagram import mermaid_quote
from nfctl.jumps.boxes import arrows, box, title

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.jumps.fold import View


def mermaid(views: Iterable[View]) -> str:
    """Return views as one flowchart, each table a subgraph."""
    lines = ["flowchart LR"]
    missing: list[str] = []
    builtin: list[str] = []
    for number, view in enumerate(views):
        names = {id(node): f"t{number}n{place}" for place, node in enumerate(view.nodes)}
        lines.append(f"  subgraph t{number} [{mermaid_quote([title(view)])}]")
        for node in view.nodes:
            name = names[id(node)]
            label = mermaid_quote(box(node))
            lines.append(f"    {name}[[{label}]]" if node.alike > 1 else f"    {name}[{label}]")
            if not node.chain.present:
                missing.append(name)
            elif node.builtin:
                builtin.append(name)
        lines.append("  end")
        for node in view.nodes:
            for arrow in arrows(node):
                label = f"|{mermaid_quote(arrow.label)}|" if arrow.label else ""
                line = "-.->" if arrow.goto else "-->"
                lines.append(f"  {names[id(node)]} {line}{label} {names[id(arrow.to)]}")
    if builtin:
        lines += ["  classDef builtin stroke-width:3px", f"  class {','.join(builtin)} builtin"]
    if missing:
        lines.append("  classDef missing stroke:#c00,color:#c00,stroke-dasharray:5")
        lines.append(f"  class {','.join(missing)} missing")
    return "\n".join(lines) + "\n"
