"""What two sequences of rules have in common."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from nfctl.ruleset.diff import Block, common

_rules = st.lists(st.integers(0, 6), max_size=14)


def _longest(one: list[int], other: list[int]) -> int:
    row = [0] * (len(other) + 1)
    for first in one:
        before = row[:]
        for at, second in enumerate(other):
            row[at + 1] = before[at] + 1 if first == second else max(before[at + 1], row[at])
    return row[-1]


@given(_rules, _rules)
def test_blocks_are_common_and_ascend(one: list[int], other: list[int]) -> None:
    """Every block stands in both sequences, behind the block before it."""
    at = beside = 0
    for first, second, length in common(one, other):
        assert length > 0
        assert first >= at
        assert second >= beside
        assert one[first : first + length] == other[second : second + length]
        at, beside = first + length, second + length


@given(st.lists(st.integers(), unique=True, max_size=14), st.data())
def test_unique_rules_share_the_longest(one: list[int], data: st.DataObject) -> None:
    """Of rules that stand once in each, as many stay as a table of all lengths says."""
    other = data.draw(st.permutations(one + data.draw(st.lists(st.integers(), max_size=3))))
    other = list(dict.fromkeys(other))
    assert sum(block.length for block in common(one, other)) == _longest(one, other)


@given(_rules, st.integers(0, 6), st.data())
def test_a_rule_inserted_is_all_that_differs(
    one: list[int], rule: int, data: st.DataObject
) -> None:
    """A rule put anywhere, be it there already or not, leaves all others untouched."""
    at = data.draw(st.integers(0, len(one)))
    other = [*one[:at], rule, *one[at:]]
    assert sum(block.length for block in common(one, other)) == len(one)
    assert sum(block.length for block in common(other, one)) == len(one)


def test_blocks_are_joined() -> None:
    """Neighbours make one block."""
    assert common("abcd", "xabcdy") == [Block(0, 1, 4)]


def test_a_reversed_chain_is_no_catastrophe() -> None:
    """50,000 rules in reverse, or all the same, take about as long as in order."""
    one = list(range(50_000))
    start = time.process_time()
    assert sum(block.length for block in common(one, one[::-1])) == 1
    assert sum(block.length for block in common([1] * 50_000, [1] * 40_000)) == 40_000
    assert time.process_time() - start < 5
