"""All tables that are in use, as iptables-save text with counters, as they are before a change.

Printing a large table takes as long as encoding another, so it is done meanwhile by a child: a
fork has the tables that were read, and libxtables, as they are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nfctl.control import printed
from nfctl.lab.fork import Child

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nfctl.control.journal.state import State
    from nfctl.control.planner import FamilySide, Plans
    from nfctl.kernel.blob import Blob

_PATIENCE = 120.0  # seconds


class Snapshot:
    """Reads all tables of both families at once; :meth:`texts` has what they were."""

    def __init__(self, sides: dict[int, FamilySide], state: State) -> None:
        self._sides = sides
        self._texts: dict[int, str] | None = None
        lives = [live for side in sides.values() for live in side.read_all()]
        self._large = [live for live in lives if printed.is_large(live)]
        unknown = [live for live in self._large if not printed.recall(state, live)]
        forked = unknown and len(os.sched_getaffinity(0)) > 1
        self._child = Child(self._print) if forked else None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._child is not None:
            self._child.kill()

    def texts(self, _plans: Plans) -> dict[int, str]:
        """Return the text of each family; of one without tables in use, ""."""
        if self._texts is None:
            self._texts = self._print() if self._child is None else self._child.result(_PATIENCE)
            for live in self._large if self._child is not None else ():
                head = f"*{live.table}\n"
                start = f"\n{self._texts[live.family]}".index(f"\n{head}")
                text = self._texts[live.family][start:]
                live.print_as(text[: text.index("\nCOMMIT\n") + len("\nCOMMIT\n")])
        return self._texts

    def remember(self, state: State, plans: Plans, blobs: Mapping[tuple[int, str], Blob]) -> None:
        """Have the next snapshot of large tables that were written print itself."""
        for plan in plans.changed:
            blob = blobs.get((plan.live.family, plan.live.table))
            if blob is not None and blob.info.size > printed.LARGE:
                printed.remember(state, blob, plan.text_after())

    def _print(self) -> dict[int, str]:
        return {
            family: "".join(live.text(counters=True) for live in side.read_all())
            for family, side in self._sides.items()
        }


class Parts(Snapshot):
    """Of the chains alone that change: enough to undo it, where the tables are large."""

    def __init__(self, sides: dict[int, FamilySide], state: State) -> None:
        del state
        self._sides = sides
        self._child = None

    def texts(self, plans: Plans) -> dict[int, str]:
        """Return the chains that change, as they are, with counters, by family."""
        found = dict.fromkeys(self._sides, "")
        for plan in plans.changed:
            chains = [name for name, chain in plan.chains.items() if chain.change.changes]
            found[plan.live.family] += plan.live.part(chains)
        return found

    def remember(self, state: State, plans: Plans, blobs: Mapping[tuple[int, str], Blob]) -> None:
        """Do nothing: nothing was printed that would have to be again."""
