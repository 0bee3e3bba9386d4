"""Who may have changed the tables, from the notices since the last compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.control.watching.drift import Place
    from nfctl.kernel.notices import Notice

_MOST: Final = 8


@dataclass(slots=True)
class _Suspect:
    pid: int
    comm: str
    parent: str
    by: str
    times: int = 0
    tables: set[tuple[int, str]] = field(default_factory=set)

    def document(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "comm": self.comm,
            "parent": self.parent,
            "by": self.by,
            "times": self.times,
        }


class Suspects:
    """The last few programs that had their hands on the tables, each with its last process."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], _Suspect] = {}

    def add(self, notices: Sequence[Notice]) -> None:
        """Reckon with notices."""
        for source, actor, family, table in notices:
            if actor is None:
                continue
            key = (source, actor.comm, actor.parent)
            if key not in self._found:
                while len(self._found) >= _MOST:
                    del self._found[next(iter(self._found))]
                self._found[key] = _Suspect(*actor, by=source)
            suspect = self._found[key]
            suspect.pid = actor.pid
            suspect.times += 1
            suspect.tables.add((family, table))

    def of(self, places: Iterable[Place]) -> list[dict[str, Any]]:
        """Return who wrote the tables of these places, by audit; or else who had the lock."""
        tables = {(place.family, place.table) for place in places if place.table}
        found = [one for one in self._found.values() if one.by == "audit" and one.tables & tables]
        found = found or [one for one in self._found.values() if one.by == "lock"]
        return [one.document() for one in sorted(found, key=lambda one: -one.times)]

    def clear(self) -> None:
        """Forget them."""
        self._found.clear()
