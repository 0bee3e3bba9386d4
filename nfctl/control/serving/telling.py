"""What a watch over services tells, so that nothing is told twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.control.watching.watch import Event
from nfctl.services import difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.services.difference import Difference
    from nfctl.services.model import ServiceList


class Telling:
    """Tells events; ``wall`` is the time (epoch, seconds)."""

    def __init__(self, tell: Callable[[Event], None], wall: Callable[[], float]) -> None:
        self._tell, self._wall = tell, wall
        self._noted: set[str] = set()
        self._unserved: dict[tuple[str, str], str] = {}

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        """Tell something now."""
        self._tell(Event(kind, self._wall(), facts))

    def note(self, text: str) -> None:
        """Tell something once."""
        if text not in self._noted:
            self._noted.add(text)
            self.event("note", {"text": text})

    def serving(self, listed: ServiceList) -> None:
        """Tell which services have ceased to be served by a list that holds, or are again."""
        before = self._unserved
        self._unserved = now = {s.key: what for s, what in difference.unserved(listed)}
        there = {service.key for service in listed.services}
        new = {key: what for key, what in now.items() if before.get(key) != what}
        again = dict.fromkeys(
            (key for key in before if key not in now and key in there), "is served again"
        )
        for kind, which in (("unserved", new), ("served", again)):
            if which:
                services = [{"name": n, "protocol": p, "what": w} for (n, p), w in which.items()]
                self.event(kind, {"services": services})

    def status(self, listed: ServiceList, unhealthy: int) -> str:
        """Return how it is, in a line for the service manager."""
        sizes = sizes_of(listed)
        bad = f", {unhealthy:,} unhealthy" if unhealthy else ""
        none = f"; {len(self._unserved):,} unserved" if self._unserved else ""
        return f"{sizes['services']:,} services, {sizes['endpoints']:,} endpoints{bad}{none}"


def sizes_of(listed: ServiceList) -> dict[str, Any]:
    """Return how many services and endpoints there are."""
    endpoints = sum(len(service.endpoints) for service in listed.services)
    return {"services": len(listed.services), "endpoints": endpoints}


def lines(differs: Difference) -> list[str]:
    """Return what differs between two lists, a line each, bounded."""
    return [f"{mark} {line}" for mark, line in difference.lines(differs)]
