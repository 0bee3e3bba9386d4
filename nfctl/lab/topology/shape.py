"""Delay, jitter, loss and rate of a link, in the units of tc(8)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind, shown
from nfctl.lab.topology import Shape

if TYPE_CHECKING:
    from nfctl.document import Node

# tc(8), UNITS: in seconds, in bits a second
_TIMES: Final = {
    **dict.fromkeys(("s", "sec", "secs"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs"), 1e-3),
    **dict.fromkeys(("us", "usec", "usecs"), 1e-6),
}
_RATES: Final[dict[str, int]] = {
    "bit": 1,
    **{f"{prefix}bit": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ibit": 1024**power for power, prefix in enumerate("kmgt", 1)},
    "bps": 8,
    **{f"{prefix}bps": 8 * 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ibps": 8 * 1024**power for power, prefix in enumerate("kmgt", 1)},
}
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([a-z%]*)", re.IGNORECASE)
_LONGEST: Final = 274.0  # seconds: 2**32 ticks of 64 ns are what netem counts to


def read_shape(node: Node) -> Shape:
    """Read what stands under a link's name; BadInput for a quantity that cannot be."""
    fields = node.mapping(optional=("delay", "jitter", "loss", "rate"))
    delay = _time(fields["delay"]) if "delay" in fields else 0.0
    jitter = _time(fields["jitter"]) if "jitter" in fields else 0.0
    if jitter and not delay:
        raise node.key("jitter").error("jitter needs a delay to vary", "delay: 10ms")
    loss = _loss(fields["loss"]) if "loss" in fields else 0.0
    return Shape(delay, jitter, loss, _rate(fields["rate"]) if "rate" in fields else 0)


def _time(node: Node) -> float:
    number, unit = _quantity(node, "time", "10ms, 2s or 500us")
    if unit not in _TIMES:
        raise node.error(f"{shown(node.raw)} is no time", "such as 10ms, 2s or 500us")
    seconds = number * _TIMES[unit]
    if seconds > _LONGEST:
        raise node.error(f"{node.raw} is too long", f"{_LONGEST:g}s at most")
    return seconds


def _loss(node: Node) -> float:
    number, unit = _quantity(node, "loss", "0.5%")
    if unit != "%":
        raise node.error(f"{shown(node.raw)} is no loss", "such as 0.5%")
    if number > 100:
        raise node.error(f"{node.raw} is more than everything", "100% at most")
    return number / 100


def _rate(node: Node) -> int:
    number, unit = _quantity(node, "rate", "10mbit, 1gbit or 512kbit")
    if unit not in _RATES:
        raise node.error(f"{shown(node.raw)} is no rate", "such as 10mbit, 1gbit or 512kbit")
    rate = round(number * _RATES[unit])
    if not 8 <= rate < 1 << 63:
        raise node.error(f"{node.raw} is out of range", "8bit at least; no rate is no limit")
    return rate


def _quantity(node: Node, what: str, example: str) -> tuple[float, str]:
    """Read a number and its unit, in lower case."""
    if node.kind in {Kind.INTEGER, Kind.FLOAT}:
        raise node.error(f"{node.raw} has no unit", f"such as {example}")
    found = _QUANTITY.fullmatch(node.text(what=what))
    if found is None:
        raise node.error(f"{shown(node.raw)} is no {what}", f"such as {example}")
    return float(found[1]), found[2].lower()
