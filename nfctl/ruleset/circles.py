"""Circles of jumps: the kernel refuses a table whose packets could go round in one (ELOOP).

It follows the jumps and gotos from the built-in chains (mark_source_chains() in ip_tables.c); a
circle that none of these leads to is no fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def circle(
    starts: Iterable[str], leads: Callable[[str], Iterable[tuple[str, int]]]
) -> list[tuple[str, int]]:
    """Return the first circle that is met from ``starts``, [] if there is none.

    ``leads`` says where a chain leads to: chains, each with the number of the rule that jumps
    there; it is asked once for each chain that is reached. The circle is its chains, each with
    the rule that leads to the next one; that of the last one leads to the first again.
    """
    done: set[str] = set()
    for start in starts:
        if start in done:
            continue
        numbers: dict[str, int] = {start: 0}  # the way here: by chain, the rule that it goes on by
        ways: list[tuple[str, Iterator[tuple[str, int]]]] = [(start, iter(leads(start)))]
        while ways:
            chain, jumps = ways[-1]
            step = next(jumps, None)
            if step is None:
                ways.pop()
                del numbers[chain]
                done.add(chain)
                continue
            to, numbers[chain] = step
            if to in numbers:
                way = list(numbers.items())
                return way[list(numbers).index(to) :]
            if to not in done:
                numbers[to] = 0
                ways.append((to, iter(leads(to))))
    return []
