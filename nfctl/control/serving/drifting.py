"""What drifts of the chains of services, who may have done it, and when it is to be repaired."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.control.watching.drift import Fights
from nfctl.control.watching.suspects import Suspects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.control.watching.drift import Drift, Place
    from nfctl.kernel.notices import Notice

_SETTLE: Final = 1.0  # seconds after a notice: what follows is one edit
_SHARE: Final = 4  # times as long as a compare takes, until the next for a notice


class Judged(NamedTuple):
    """Events to tell, each with its facts; and when to repair what drifts, None if nothing does."""

    events: list[tuple[str, dict[str, Any]]]
    repair_at: float | None


class Drifting:
    """What drifted at the last compare, and when (``compare_at``) the next one is due.

    It is every ``interval`` seconds, and soon after a notice. Times are in seconds, of a clock
    that does not jump.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._drifts: dict[Place, Drift] = {}
        self._fights, self._suspects = Fights(), Suspects()
        self.compare_at = 0.0
        self._not_before = 0.0  # for what a compare costs

    def noticed(self, notices: Sequence[Notice], now: float) -> None:
        """Reckon with who had their hands on the tables."""
        self._suspects.add(notices)
        self.compare_at = min(self.compare_at, max(now + _SETTLE, self._not_before))

    def compared(self, began: float, now: float) -> None:
        """Reckon with a compare, which took that time."""
        self.compare_at = now + self._interval
        self._not_before = now + _SHARE * (now - began)

    def failed(self, now: float, soon: float) -> None:
        """Compare again after so many seconds at most, as it was not possible."""
        self.compare_at = now + min(self._interval, soon)

    def judge(self, found: dict[Place, Drift], now: float, settle: float) -> Judged:
        """Compare with the last time; a repair waits ``settle`` seconds at least."""
        before, self._drifts = self._drifts, found
        events: list[tuple[str, dict[str, Any]]] = []
        gone = [one.document() for place, one in before.items() if place not in found]
        if gone:
            events.append(("gone", {"places": gone}))
        fresh = [place for place in found if place not in before]
        for place in fresh:
            self._fights.appeared(place, now)
        # one repair is for all
        due = min((self._fights.due(place) for place in found), default=None)
        repair_at = max(due, now + settle) if due is not None else None
        if fresh and repair_at is not None:
            places = [found[place].document() for place in fresh]
            who, repair = self._suspects.of(fresh), round(repair_at - now, 3)
            events.append(("drift", {"places": places, "who": who, "repair": repair}))
        self._suspects.clear()
        return Judged(events, repair_at)

    def repaired(self, now: float) -> None:
        """Reckon with an apply: it repaired all there was."""
        self.compare_at = now + self._interval
        for place in self._drifts:
            self._fights.repaired(place, now)
        self._drifts = {}

    def forgive(self) -> None:
        """Forget who fought."""
        self._fights = Fights()
