"""Classes of flows that no rule can tell apart, so that they share what was worked out for them.

The addresses of all rules cut the address space into pieces; two sources in one piece are the
same to every rule, and so are two pieces that the same conditions hold for. A flow's class is
found by one binary search for each of its two addresses and two ports, whatever the number of
rules, and however many addresses somebody makes up.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Generic

from nfctl.inspect.rules.sets import Addresses, Ranges, Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nfctl.inspect.rules.expression import Facts, OfFacts


class Pieces(Generic[Value]):
    """The pieces that ranges cut a field into, and the class of each."""

    __slots__ = ("_bounds", "_classes")

    def __init__(
        self, sets: Iterable[Ranges[Value]], after: Callable[[Value], Value | None]
    ) -> None:
        changes: dict[Value, int] = {}  # where the conditions of which bits begin or end
        for number, ranges in enumerate(sets):
            for low, high in zip(ranges.lows, ranges.highs, strict=True):
                changes[low] = changes.get(low, 0) ^ 1 << number
                behind = after(high)
                if behind is not None:
                    changes[behind] = changes.get(behind, 0) ^ 1 << number
        self._bounds: list[Value] = sorted(changes)
        found: dict[int, int] = {0: 0}
        self._classes = [0]
        holds = 0
        for bound in self._bounds:
            holds ^= changes[bound]
            self._classes.append(found.setdefault(holds, len(found)))

    def __call__(self, value: Value) -> int:
        """Return the class of a value."""
        return self._classes[bisect_right(self._bounds, value)]


class Classes:
    """The classes of flows that a set of conditions tells apart."""

    def __init__(self, conditions: Iterable[OfFacts], extra_ports: Iterable[Ranges[int]]) -> None:
        addresses: dict[str, list[Addresses]] = {"src": [], "dst": []}
        # "No ports at all" is a class of its own, as no condition about ports holds there.
        ports: list[Ranges[int]] = list(extra_ports)
        for leaf in conditions:
            for field in leaf.fields:
                if field in addresses:
                    addresses[field].append(leaf.values)
            if "dport" in leaf.fields:
                ports.append(leaf.values)
        self._ports = Pieces([Ranges([0], [0]), *ports], _next_port) if ports else None
        self._src = self._pieces(addresses["src"])
        self._dst = self._pieces(addresses["dst"])

    @staticmethod
    def _pieces(sets: list[Addresses]) -> dict[int, Pieces[bytes]]:
        return {
            length: Pieces(
                [s.families[length] for s in sets if length in s.families], _next_address
            )
            for length in (4, 16)
            if any(length in one.families for one in sets)
        }

    def of(self, facts: Facts) -> tuple[object, ...]:
        """Return the class of a flow's direction, as a key."""
        chain, indev, outdev, version, src, dst, proto, sport, dport = facts
        pieces = self._src.get(len(src))
        source = pieces(src) if pieces is not None else 0
        pieces = self._dst.get(len(dst))
        target = pieces(dst) if pieces is not None else 0
        ports = self._ports
        if ports is None:
            return chain, indev, outdev, version, proto, source, target
        return chain, indev, outdev, version, proto, source, target, ports(sport), ports(dport)


def _next_port(port: int) -> int | None:
    return port + 1 if port < 65535 else None


def _next_address(address: bytes) -> bytes | None:
    number = int.from_bytes(address) + 1
    return number.to_bytes(len(address)) if number >> 8 * len(address) == 0 else None
