"""The health of a list's endpoints: who is out, and who comes back only later as it flaps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.text import at

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from nfctl.services.checks import Check
    from nfctl.services.health import Change
    from nfctl.services.model import ServiceList

    class Probing(Protocol):
        """What is asked of a Prober of ``nfctl.services.health``."""

        def keep(self, endpoints: Iterable[Place]) -> None:
            """Check these endpoints and no others."""

        def step(self) -> list[Change]:
            """Return the endpoints that changed, without waiting."""

        def timeout(self) -> float:
            """Return after how many seconds ``step`` is due at the latest."""


Place = tuple[str, int]

#: Seconds that an endpoint is kept out: 1, 2, 4 and so on up to this.
LONGEST: Final = 300.0
#: One that stayed healthy for so long (or twice as long as it was kept out) does not flap.
QUIET: Final = 60.0

_FEW: Final = 5  # services that are named


@dataclass(slots=True)
class _Flap:
    times: int = 0  # that its health did not last
    out: float = 0.0
    back: float = -math.inf  # when it was healthy again


class Told(NamedTuple):
    """What the checks have found: facts to tell, and whether other endpoints serve now."""

    facts: list[dict[str, Any]]
    changed: bool


class Health:
    """What is known of the endpoints. Times are in seconds, of a clock that does not jump.

    ``bad`` are those that are out, and ``spare`` those of them that are healthy and flap, each
    with the time until which it stays out. Without a prober all are what the list says.
    """

    def __init__(self, check: Check | None, prober: Probing | None, bad: Iterable[Place]) -> None:
        self._check = check
        self._prober = prober
        self._names: dict[Place, list[str]] = {}  # of services
        self._flaps: dict[Place, _Flap] = {}
        # a whole round, down and up, takes so long at least
        round_ = (check.rise + check.fall) * check.interval if check is not None else 0.0
        self._quiet = max(QUIET, 2 * round_)
        self.bad = set(bad)
        self.spare: dict[Place, float] = {}

    def keep(self, listed: ServiceList) -> list[str]:
        """Check the endpoints of a list and no others; say which services are not checked.

        A port of UDP or SCTP cannot be checked by TCP, unless the list has it as one of TCP, too,
        or the check names a port.
        """
        if self._prober is None:
            return []
        every = self._check is not None and bool(self._check.port)
        names: dict[Place, list[str]] = {}
        for service in listed.services:
            if every or service.protocol == "tcp":
                for one in service.endpoints:
                    if one.serves:
                        names.setdefault(one[:2], []).append(service.name)
        unchecked: dict[str, None] = {}
        for service in listed.services:
            if every or service.protocol == "tcp":
                continue
            for one in service.endpoints:
                if one[:2] in names:
                    if service.name not in names[one[:2]]:
                        names[one[:2]].append(service.name)
                elif one.serves:
                    unchecked[service.name] = None
        self._names = names
        self._prober.keep(names)
        self.bad &= names.keys()
        self.spare = {one: until for one, until in self.spare.items() if one in names}
        self._flaps = {one: flap for one, flap in self._flaps.items() if one in names}
        if not unchecked:
            return []
        which = ", ".join(list(unchecked)[:_FEW])
        more = f" and {len(unchecked) - _FEW} more" if len(unchecked) > _FEW else ""
        why = "they are not of TCP, and the check names no port"
        return [f"not checked are {which}{more}: {why}"]

    def timeout(self, now: float) -> float:
        """Return after how many seconds ``step`` is due at the latest."""
        if self._prober is None:
            return math.inf
        return min([self._prober.timeout(), *(until - now for until in self.spare.values())])

    def step(self, now: float) -> Told:
        """Take what the checks say, without waiting."""
        if self._prober is None:
            return Told([], False)
        facts = [self._take(change, now) for change in self._prober.step()]
        over = [one for one, until in self.spare.items() if until <= now]
        for one in over:
            del self.spare[one]
            self.bad.discard(one)
        return Told(facts, bool(facts or over))

    def _take(self, change: Change, now: float) -> dict[str, Any]:
        endpoint = change.endpoint
        flap = self._flaps.setdefault(endpoint, _Flap())
        out = 0.0
        if not change.healthy:
            if now - flap.back > max(self._quiet, 2 * flap.out):
                flap.times, flap.out = 0, 0.0
            else:
                flap.times += 1
                flap.out = min(LONGEST, 2.0 ** min(flap.times - 1, 30))
            self.bad.add(endpoint)
            self.spare.pop(endpoint, None)
        elif endpoint in self.bad:
            out, flap.back = flap.out, now + flap.out
            self.spare[endpoint] = now + out  # those of which that is over come back at once
        return {
            "endpoint": at(*endpoint),
            "healthy": change.healthy,
            "reason": change.reason,
            "services": self._names.get(endpoint, []),
            "out": out,
            "flaps": flap.times,
        }
