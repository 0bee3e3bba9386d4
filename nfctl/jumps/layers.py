"""Chains in an order in which those that a chain leads to come before it, loops apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


def turned(ways: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the chains that lead to each chain, by those that each leads to."""
    back: dict[str, list[str]] = {name: [] for name in ways}
    for name, targets in ways.items():
        for target in targets:
            back[target].append(name)
    return back


def layers(ways: dict[str, list[str]]) -> Iterator[tuple[list[str], bool]]:
    """Yield chains, those that they lead to before them; with whether they are in a loop."""
    back = turned(ways)
    waiting = {name: len(targets) for name, targets in ways.items()}
    layer = [name for name, left in waiting.items() if not left]
    while True:
        while layer:
            yield layer, False
            layer = _next(layer, back, waiting)
        rest = {name: waiting[name] for name in ways if waiting[name] > 0}
        if not rest:
            return
        core = _core(rest, ways)
        yield core, True
        for name in core:
            waiting[name] = 0
        layer = _next(core, back, waiting)


def _next(layer: list[str], ways: dict[str, list[str]], waiting: dict[str, int]) -> list[str]:
    """Return those who waited for the last one of a layer."""
    found = []
    for name in layer:
        for other in ways[name]:
            waiting[other] -= 1
            if not waiting[other]:
                found.append(other)
    return found


def _core(rest: Collection[str], ways: dict[str, list[str]]) -> list[str]:
    """Return the loops, and what is between them: what remains if one begins from above."""
    waiting = dict.fromkeys(rest, 0)
    inside = {name: [target for target in ways[name] if target in waiting] for name in rest}
    for targets in inside.values():
        for target in targets:
            waiting[target] += 1
    layer = [name for name, left in waiting.items() if not left]
    gone: set[str] = set()
    while layer:
        gone.update(layer)
        layer = _next(layer, inside, waiting)
    return [name for name in rest if name not in gone]
