"""A time that passes only while a watch waits, with what happens in it and what the watch tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.control.watching.watch import Woken

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.watching.watch import Event

    Step = Callable[[], Woken | None]

START = 1000.0


class Scripted:
    """What is in every world that a watch is tested in."""

    def __init__(self) -> None:
        self.now = START
        self.told: list[tuple[float, Event]] = []
        self.waits = 0
        self._script: list[tuple[float, Step]] = []

    def at(self, seconds: float, step: Step) -> None:
        """Have something done so many seconds after the start."""
        self._script.append((START + seconds, step))
        self._script.sort(key=lambda one: one[0])

    def signals(self, seconds: float, number: int) -> None:
        self.at(seconds, lambda: Woken(signals=[number]))

    def tell(self, event: Event) -> None:
        self.told.append((self.now - START, event))

    def kinds(self) -> list[str]:
        """Return the kinds of what was told, without the first and the last."""
        first, *kinds, last = [event.kind for _, event in self.told]
        assert (first, last) == ("start", "end")
        return kinds

    def facts(self, kind: str) -> list[dict[str, Any]]:
        return [event.facts for _, event in self.told if event.kind == kind]

    def times(self, kind: str) -> list[float]:
        return [round(at, 3) for at, event in self.told if event.kind == kind]

    def wait(self, seconds: float) -> Woken:
        self.waits += 1
        assert self.waits < 20_000, "it never waits"
        until = self.now + seconds
        while self._script[0][0] <= until:
            at, step = self._script.pop(0)
            self.now = max(self.now, at)
            woken = step()
            if woken is not None:
                return woken
        self.now = until
        return Woken()
