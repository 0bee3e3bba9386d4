"""Rates: whether a source, a destination or a flow sends more packets than it may."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind
from nfctl.inspect.rules import values
from nfctl.inspect.rules.remembered import key_of
from nfctl.inspect.verdict import Per

if TYPE_CHECKING:
    from nfctl.document import Node
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rules.remembered import Key

MOST: Final = 65536


class Rate:
    """A token bucket for each source, destination or flow.

    ``number`` packets in ``seconds`` are allowed, ``burst`` of them at once. A bucket is one
    number: the time at which it will be full again, had nothing else come (the "theoretical
    arrival time" of ITU-T I.371). There are ``most`` buckets at most; the one that was asked for
    longest ago makes room.
    """

    __slots__ = ("_buckets", "burst", "most", "number", "per", "seconds")

    def __init__(self, number: int, seconds: float, burst: int, per: Per, most: int = MOST) -> None:
        self.number = number
        self.seconds = seconds
        self.burst = burst
        self.per = per
        self.most = most
        self._buckets: OrderedDict[Key, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def __str__(self) -> str:
        """Write it as a rule has it."""
        unit = {1.0: "s", 60.0: "min", 3600.0: "h"}.get(self.seconds, "d")
        return f"over {self.number}/{unit} per {self.per}, burst {self.burst}"

    def over(self, packet: Packet, now: float) -> bool:
        """Count a packet, and return whether it is more than allowed; such a one takes nothing."""
        buckets = self._buckets
        key = key_of(packet, self.per)
        each = self.seconds / self.number
        full = buckets.get(key)
        if full is None:
            if len(buckets) >= self.most:
                buckets.popitem(last=False)
            buckets[key] = now + each
            return False
        buckets.move_to_end(key)
        missing = full - now  # seconds until it is full
        depth = each * self.burst
        # Further ahead than the deepest bucket: the clock was set back.
        if missing <= 0 or missing > depth * (1 + 1e-9) + 1e-6:
            buckets[key] = now + each
            return False
        if missing + each > depth * (1 + 1e-9):
            return True
        buckets[key] = full + each
        return False


def read(node: Node) -> Rate:
    """Read ``100/s``, or a mapping of ``over``, ``per`` and ``burst``."""
    per = Per.SOURCE
    over = node
    fields: dict[str, Node] = {}
    if node.kind in {Kind.MAPPING, Kind.NULL}:
        fields = node.mapping(required=("over",), optional=("per", "burst"))
        over = fields["over"]
    number, seconds = values.rate(over)
    burst = number
    if "per" in fields:
        per = Per(fields["per"].choice(*Per))
    if "burst" in fields:
        burst = fields["burst"].integer(1, 1_000_000_000)
    return Rate(number, seconds, burst, per)
