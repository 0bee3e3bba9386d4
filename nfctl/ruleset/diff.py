"""What two sequences of rules have in common, and how one becomes the other.

Rules are anything that can be compared and hashed: canonical bytes as a rule. A common
subsequence is found by pairing the occurrences of each rule in order and taking the longest
increasing subsequence of the pairs (patience sorting), then the same between what was found. For
rules that stand once in each sequence, as nearly all do, that is the longest there is; it takes
O(n log n), so 50,000 rules in reverse are no catastrophe.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


class Block(NamedTuple):
    """``length`` rules from ``first`` of the one and ``second`` of the other, which are equal."""

    first: int
    second: int
    length: int


def common(one: Sequence[Hashable], other: Sequence[Hashable]) -> list[Block]:
    """Return blocks that stand in both sequences, in order, none of them touching the next."""
    blocks: list[Block] = []
    pending = [(0, len(one), 0, len(other))]
    while pending:
        low, high, from_, to = pending.pop()
        start = low
        while low < high and from_ < to and one[low] == other[from_]:
            low, from_ = low + 1, from_ + 1
        if low > start:
            blocks.append(Block(start, from_ - (low - start), low - start))
        end = high
        while low < high and from_ < to and one[high - 1] == other[to - 1]:
            high, to = high - 1, to - 1
        if end > high:
            blocks.append(Block(high, to, end - high))
        if low == high or from_ == to:
            continue
        at, beside = low, from_
        for first, second in _chain(one, other, (low, high, from_, to)):
            pending.append((at, first, beside, second))
            blocks.append(Block(first, second, 1))
            at, beside = first + 1, second + 1
        if at > low:  # something was found; what is left may hold more
            pending.append((at, high, beside, to))
    return _joined(blocks)


def _chain(
    one: Sequence[Hashable], other: Sequence[Hashable], part: tuple[int, int, int, int]
) -> list[tuple[int, int]]:
    """Pair the occurrences of each rule in order; return the longest row of pairs that ascends."""
    low, high, from_, to = part
    places: dict[Hashable, list[int]] = {}
    for second in range(to - 1, from_ - 1, -1):
        places.setdefault(other[second], []).append(second)
    ends: list[int] = []  # of rows of each length, the lowest place of the other at their end
    heads: list[tuple[int, int, int]] = []  # (first, second, index of the pair before)
    tops: list[int] = []  # index into heads for each length
    for first in range(low, high):
        found = places.get(one[first])
        if not found:
            continue
        second = found.pop()
        length = bisect_left(ends, second)
        heads.append((first, second, tops[length - 1] if length else -1))
        if length == len(ends):
            ends.append(second)
            tops.append(len(heads) - 1)
        else:
            ends[length] = second
            tops[length] = len(heads) - 1
    row: list[tuple[int, int]] = []
    at = tops[-1] if tops else -1
    while at >= 0:
        first, second, at = heads[at]
        row.append((first, second))
    row.reverse()
    return row


def _joined(blocks: list[Block]) -> list[Block]:
    blocks.sort()
    joined: list[Block] = []
    for block in blocks:
        if joined:
            last = joined[-1]
            if (
                last.first + last.length == block.first
                and last.second + last.length == block.second
            ):
                joined[-1] = Block(last.first, last.second, last.length + block.length)
                continue
        joined.append(block)
    return joined
