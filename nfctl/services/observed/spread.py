"""How connections really spread over the endpoints, beside the shares they should have.

A rule of nat sees the first packet of a connection alone, so its counter counts connections. Those
that came by affinity were not chosen by chance, and are left out of the comparison.
"""

from __future__ import annotations

from math import erfc, exp, lgamma, log, sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.observed.model import Service

#: Below this chance that shares as they should be give such a spread, it is called far off.
SIGNIFICANT = 0.001
# a chi-square test needs some connections for every endpoint
_FEWEST = 5


class Spread(NamedTuple):
    """Connections chosen by chance, against the shares."""

    connections: int
    chi_square: float | None  # None where there are too few connections to tell
    probability: float | None  # that the shares give a spread as far off as this one, or farther

    @property
    def off(self) -> bool:
        """Whether the spread is far off the shares."""
        return self.probability is not None and self.probability < SIGNIFICANT


def of_service(service: Service, local: bool = False) -> Spread | None:
    """Return the spread over a service's endpoints, or its local ones; None without counters."""
    pairs = [
        (e.local_chosen, e.local_share) if local else (e.chosen, e.share) for e in service.endpoints
    ]
    known = [(count, share) for count, share in pairs if count is not None and share is not None]
    if not known:
        return None
    return spread([count for count, _ in known], [share for _, share in known])


def spread(counts: Sequence[int], shares: Sequence[float]) -> Spread:
    """Compare counts with shares by Pearson's chi-square test.

    Endpoints that cannot expect five connections are counted together.
    """
    total = sum(counts)
    whole = sum(shares) or 1.0
    cells: list[tuple[float, float]] = []
    rest_count = rest_expected = 0.0
    for count, share in zip(counts, shares, strict=True):
        expected = total * share / whole
        if expected < _FEWEST:
            rest_count, rest_expected = rest_count + count, rest_expected + expected
        else:
            cells.append((count, expected))
    if rest_expected >= _FEWEST:
        cells.append((rest_count, rest_expected))
    elif rest_count > _FEWEST and not rest_expected:
        return Spread(total, None, 0.0)  # connections to endpoints that have no share
    if len(cells) < 2:
        return Spread(total, None, None)
    value = sum((count - expected) ** 2 / expected for count, expected in cells)
    return Spread(total, value, tail(value, len(cells) - 1))


def tail(value: float, freedom: int) -> float:
    """Return the chance that chi-square with so many degrees of freedom is above a value.

    The closed sums for even and odd degrees (Abramowitz and Stegun, 26.4.4 and 26.4.5).
    """
    if value <= 0:
        return 1.0
    half = value / 2
    odd = freedom % 2
    found = erfc(sqrt(half)) if odd else 0.0
    for step in range(freedom // 2):
        order = step + odd / 2
        found += exp(order * log(half) - half - lgamma(order + 1))
    return min(1.0, found)
