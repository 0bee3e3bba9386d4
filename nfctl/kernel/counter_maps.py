"""Counters that go with a rule to its new place: what libiptc knows and has no function for.

At a commit the kernel hands the old table's counters back, and libiptc adds them to the rules of
the new one by a map from each rule to its old place. A rule that is deleted here and inserted
there has none: it begins with the counters of when the table was read, and what was counted until
the commit is lost. So the new rule gets the map of the old one.

The map stands in ``struct rule_head`` of libiptc/libiptc.c, right before the entry that the
library hands out, and has stood there since 2006. Each head is checked before it is believed; where
one is not as expected nothing is done, and the caller's counters stay what they are.
"""

from __future__ import annotations

import ctypes as ct
from typing import TYPE_CHECKING

from nfctl.kernel.layout import OFFSETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nfctl.kernel.table import Table

_NORMAL, _SET = 1, 3  # COUNTER_MAP_NORMAL_MAP, COUNTER_MAP_SET


class _RuleHead(ct.Structure):
    """struct rule_head, without the entry behind it."""

    _fields_ = (
        ("next", ct.c_void_p),
        ("previous", ct.c_void_p),
        ("chain", ct.c_void_p),
        ("kind", ct.c_int),  # struct counter_map
        ("place", ct.c_uint),
        ("index", ct.c_uint),
        ("offset", ct.c_uint),
        ("type", ct.c_int),
        ("jump", ct.c_void_p),
        ("size", ct.c_uint),
    )


_ALIGNMENT = ct.alignment(ct.c_uint64)
_HEAD = -(-(_RuleHead.size.offset + _RuleHead.size.size) // _ALIGNMENT) * _ALIGNMENT


def _heads(table: Table, chain: str) -> list[_RuleHead]:
    """Return the head of each rule of a chain; none where they are not what they should be."""
    heads = []
    offsets_at = table.layout.offsets_at
    for pointer in table.pointers(chain):
        head = _RuleHead.from_address(pointer - _HEAD)
        _, length = OFFSETS.unpack(ct.string_at(pointer + offsets_at, OFFSETS.size))
        if head.size != length or head.kind not in {_NORMAL, _SET}:
            return []
        heads.append(head)
    return heads


def places(table: Table, chain: str) -> list[int]:
    """Return the old place of each rule of a chain that was not edited yet; none if unknown."""
    heads = _heads(table, chain)
    if any(head.kind != _NORMAL or head.place != head.index for head in heads):
        return []
    return [head.place for head in heads]


def carry(table: Table, chain: str, moved: Mapping[int, int]) -> None:
    """Have rules that were inserted (by number, from 1) go on with the counters of old places."""
    heads = _heads(table, chain)
    for number, place in moved.items():
        if number <= len(heads) and heads[number - 1].kind == _SET:
            heads[number - 1].kind, heads[number - 1].place = _NORMAL, place
