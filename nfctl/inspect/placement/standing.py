"""The inspections whose rules are there: finding them, and taking them out."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.edit import TableEdit
from nfctl.control.transaction import Transaction
from nfctl.inspect import figures
from nfctl.inspect.placement import tables
from nfctl.kernel import lock, netns
from nfctl.kernel.decode import Decoder
from nfctl.kernel.encode import Encoder
from nfctl.kernel.table import active_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.inspect.placement.tables import Part, Removed

_TABLES = ("mangle", "filter")


class Found(NamedTuple):
    """An inspection whose rules are there, at least in part.

    ``queues`` are its queues, ``families`` where it has rules, ``mask`` the bits of the mark that
    it uses (0 if the rule that tells is gone). Without a ``listener`` it is a leftover.
    """

    queue: int
    queues: range
    families: tuple[int, ...]
    mask: int
    listener: figures.Figures | None


def found(*, network: str | None = None) -> list[Found]:
    """Return the inspections whose rules are there, by their queues; takes no lock."""
    with netns.entered(network):
        return standing(figures.bound())


def standing(bound: dict[int, figures.Figures]) -> list[Found]:
    """Return the inspections whose rules are there; ``bound`` are the queues with a listener."""
    merged: dict[int, Found] = {}
    for family in (4, 6):
        for table in active(family):
            for part in _look(family, table).values():
                old = merged.get(part.queue)
                merged[part.queue] = _merge(old, part, family, bound)
    return [merged[queue] for queue in sorted(merged)]


def _merge(old: Found | None, part: Part, family: int, bound: dict[int, figures.Figures]) -> Found:
    listener = next((bound[queue] for queue in part.queues if queue in bound), None)
    if old is None:
        return Found(part.queue, part.queues, (family,), part.mask, listener)
    return Found(
        part.queue,
        max(old.queues, part.queues, key=len),
        tuple(dict.fromkeys((*old.families, family))),
        old.mask | part.mask,
        old.listener or listener,
    )


def active(family: int) -> list[str]:
    """Return which of our tables exist: looking into one would make it exist."""
    exist = active_tables(family)
    return [table for table in _TABLES if table in exist]


def _look(family: int, table: str) -> dict[int, Part]:
    with opened(family, table) as edit:
        return tables.parts(edit)


@contextlib.contextmanager
def opened(family: int, table: str) -> Iterator[TableEdit]:
    """Open a table for reading alone, without the lock."""
    edit = TableEdit(family, table, Encoder(family), Decoder(family))
    try:
        yield edit
    finally:
        edit.close()


def remove(
    queue: int | None = None,
    *,
    wait: float = lock.DEFAULT_WAIT,
    network: str | None = None,
    force: bool = False,
) -> list[Removed]:
    """Take out what an inspection put in, or is left of it; return what was there.

    Without a queue, all inspections to whose queues no program is bound; with ``force``, all.
    What others put into the tables stays as it is, and so do its counters. ``wait`` is how many
    seconds to wait for the xtables lock, which is taken only where there is something.
    """
    with netns.entered(network):
        if queue is not None:
            return remove_here(queue, wait)
        removed = []
        for one in standing(figures.bound()):
            if force or one.listener is None:
                removed += remove_here(one.queue, wait)
        return removed


def remove_here(queue: int, wait: float) -> list[Removed]:
    """Take out an inspection in the namespace of the calling thread."""
    return [removed for family in (4, 6) for removed in take_out(queue, family, wait)]


def take_out(queue: int, family: int, wait: float) -> list[Removed]:
    """Take an inspection out of one family: mangle first, so that no mark goes unheeded."""
    exist = active(family)
    if not any(queue in _look(family, table) for table in exist):
        return []
    removed = []
    with Transaction(family, wait=wait) as transaction:
        for table in exist:
            edit = transaction[table]
            if part := tables.parts(edit).get(queue):
                removed.append(tables.take_out(edit, part))
    return removed
