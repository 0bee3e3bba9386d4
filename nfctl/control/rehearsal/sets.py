"""The ipsets of a copy: those of the host that rules name, and what a policy makes of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.kernel.ipset import Header
    from nfctl.policy.wanted import WantedSet

_NAMED = re.compile(r' --(?:match|add|del|map)-set (?:"((?:[^"\\]|\\.)*)"|(\S+))')


class Kept(NamedTuple):
    """A set and its entries, as ipset(8) writes them."""

    header: Header
    entries: list[str]


def named(texts: Iterable[str]) -> set[str]:
    """Return the names of the sets that rules in iptables-save text name."""
    found = (match for text in texts for match in _NAMED.finditer(text))
    return {(match[1] or match[2]).replace("\\", "") for match in found}


def read(names: Iterable[str]) -> list[Kept]:
    """Read sets of the calling process' namespace, and the sets in those that are lists.

    In the order in which they can be made. Names that there are no sets of are left out.
    """
    left = sorted(set(names))
    if not left:
        return []
    from nfctl.kernel.ipset import Ipset

    found: dict[str, Kept] = {}
    with Ipset() as kernel:
        there = set(kernel.names())
        while left:
            name = left.pop()
            listed = kernel.read(name) if name in there - found.keys() else None
            if listed is None:
                continue
            header, entries = listed
            kept = found[name] = Kept(header, list(map(header.codec.text, entries)))
            if header.type.startswith("list:"):
                left += (entry.split(" ")[0] for entry in kept.entries)  # "NAME timeout 5"
    return sorted(found.values(), key=lambda kept: kept.header.type.startswith("list:"))


def make(sets: Iterable[Kept]) -> None:
    """Make sets that were read elsewhere."""
    sets = list(sets)
    if not sets:
        return
    from nfctl.kernel.ipset import Ipset

    with Ipset() as kernel:
        for header, entries in sets:
            kernel.create(header.name, header.type, header.family, header.options, exist=True)
            kernel.add(header, entries)


def want(sets: Sequence[WantedSet]) -> None:
    """Have the sets of a policy, as applying it makes them."""
    from nfctl.control.sets import Sets

    Sets(sets).prepare()


def needed(texts: Iterable[str], wanted: Iterable[WantedSet]) -> set[str]:
    """Return the names of the sets that a copy needs for these rules and wanted sets."""
    names = named(texts)
    for each in wanted:
        names.add(each.name)
        if each.type.startswith("list:"):
            names.update(entry.split(" ")[0] for entry in each.entries or ())
    return names
