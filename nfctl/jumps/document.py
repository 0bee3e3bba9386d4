"""The document of ``nfctl graph --json``, which :mod:`nfctl.jumps.graph` describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.jumps.condition import probability

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.jumps.fold import View
    from nfctl.jumps.graph import Chain, Graph, Pair


def document(views: Iterable[View], *, family: int, source: str | None) -> dict[str, Any]:
    """Return views as one plain document: every chain, whether it is drawn folded or not."""
    return {"family": family, "source": source, "tables": [_table(view) for view in views]}


def _table(view: View) -> dict[str, Any]:
    graph = view.graph
    group = {name: node.name for node in view.nodes if node.alike > 1 for name in node.names}
    return {
        "table": graph.table,
        "counters": graph.counted,
        "roots": [node.name for node in view.roots],
        "unreferenced": [name for node in view.unreferenced for name in node.names],
        "looping": [name for node in view.looping for name in node.names],
        "groups": [
            {"name": node.name, "chains": node.alike} for node in view.nodes if node.alike > 1
        ],
        "chains": [_chain(graph, chain, group.get(name)) for name, chain in graph.chains.items()],
    }


def _chain(graph: Graph, chain: Chain, group: str | None) -> dict[str, Any]:
    jumps = []
    ends: dict[tuple[str, str], list[Pair | None]] = {}
    for rule in chain.rules:
        if rule.target not in graph.chains:
            ends.setdefault((rule.target, rule.options), []).append(rule.counters)
            continue
        jumps.append(
            {
                "rule": rule.number,
                "to": rule.target,
                "goto": rule.goto,
                "condition": rule.condition,
                "probability": probability(rule.condition),
                **_counters(rule.counters),
            }
        )
    return {
        "name": chain.name,
        "policy": chain.policy,
        **_counters(chain.counters),
        "present": chain.present,
        "group": group,
        "rules": chain.size,
        "ends": [
            {"target": target, "options": options, "rules": len(found), **_counters(*found)}
            for (target, options), found in ends.items()
        ],
        "jumps": jumps,
    }


def _counters(*counters: Pair | None) -> dict[str, int | None]:
    found = [one for one in counters if one is not None]
    if not found:
        return {"packets": None, "bytes": None}
    return {"packets": sum(p for p, _ in found), "bytes": sum(o for _, o in found)}
