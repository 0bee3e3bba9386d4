"""The chances of a chain of jumps as shares, and the weights that give such shares.

Each rule takes its probability of what the rules before it left: of five endpoints the first has
0.2, the second 0.25, and the last takes what is left. The kernel keeps a probability as a multiple
of 2^-31 (xt_statistic), kube-proxy writes ten digits; up to 1.17 it wrote five.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import gcd
from typing import NamedTuple

#: What rounding may add up to: ten digits, and 31 bits.
ROUNDING = 2**-31

_HEAVIEST = 65535


class Flaw(NamedTuple):
    """What does not add up about a rule, by its place among the jumps, from 0."""

    place: int
    kind: str  # shares, unreached, probability
    message: str


class Shares(NamedTuple):
    """What each jump gets of all connections, from 0 to 1."""

    shares: tuple[float, ...]
    flaws: tuple[Flaw, ...]


@lru_cache(maxsize=4096)
def shares(chances: tuple[str | None, ...], equal: bool) -> Shares:
    """Return the shares of jumps with these probabilities; None is a jump without a condition.

    ``equal``: whether every endpoint is to get the same, as kube-proxy has it.
    """
    found: list[float] = []
    flaws: list[Flaw] = []
    left, count = 1.0, len(chances)
    for place, text in enumerate(chances):
        chance = 1.0 if text is None else number(text)
        found.append(left * chance)
        if not left:
            flaws.append(Flaw(place, "unreached", "no packet comes to it: a rule before takes all"))
            continue
        wanted = 1 / (count - place)
        if equal and text is not None and place < count - 1 and not _near(chance, wanted):
            message = f"the probability is {text}, equal shares need {wanted:.10f}"
            flaws.append(Flaw(place, "probability", message))
        left *= 1 - chance
    if left:
        message = f"the last jump is conditional: shares sum to {percent(1 - left)}"
        message += ", the rest goes nowhere"
        flaws.append(Flaw(count - 1, "shares", message))
    return Shares(tuple(found), tuple(flaws))


def number(text: str) -> float:
    """Return a probability as a number from 0 to 1; 0 where the text is none."""
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return min(1.0, found) if found > 0 else 0.0


def _near(chance: float, wanted: float) -> bool:
    five = round(wanted, 5)
    return abs(chance - wanted) <= ROUNDING or abs(chance - five) <= ROUNDING


@lru_cache(maxsize=4096)
def weights(found: tuple[float, ...]) -> tuple[int, ...] | None:
    """Return the smallest whole weights that give these shares; None where there are none."""
    if not found or min(found) <= 0:
        return None
    if max(found) - min(found) < len(found) * ROUNDING * 4:
        return (1,) * len(found)
    least = min(found)
    for largest in (100, 1000, _HEAVIEST):
        ratios = [Fraction(share / least).limit_denominator(largest) for share in found]
        unit = 1
        for ratio in ratios:
            unit = unit * ratio.denominator // gcd(unit, ratio.denominator)
        if unit > _HEAVIEST:
            continue
        whole = tuple(int(ratio * unit) for ratio in ratios)
        total = sum(whole)
        tolerance = len(found) * ROUNDING * 4
        fits = all(abs(w / total - s) <= tolerance for w, s in zip(whole, found, strict=True))
        if fits and max(whole) <= _HEAVIEST:
            return whole
    return None


def percent(share: float) -> str:
    """Return a share in per cent, with as many digits as it takes: "20 %", "33.3 %"."""
    text = f"{share * 100:.1f}"
    return f"{text.removesuffix('.0')} %" if text not in {"0.0", "100.0"} else _extreme(share)


def _extreme(share: float) -> str:
    if share in {0, 1}:
        return f"{int(share * 100)} %"
    return f"{share * 100:.6g} %"
