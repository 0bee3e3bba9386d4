"""Circles of jumps, beside what the standard library's sorting of graphs says of them."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.ruleset.circles import circle

Jumps = dict[str, list[str]]  # by chain: where each of its rules leads


def found(jumps: Jumps, *starts: str) -> list[tuple[str, int]]:
    asked: list[str] = []

    def leads(chain: str) -> list[tuple[str, int]]:
        asked.append(chain)
        return [(to, number) for number, to in enumerate(jumps[chain], 1)]

    result = circle(starts, leads)
    assert len(asked) == len(set(asked))
    return result


@pytest.mark.parametrize(
    ("jumps", "expected"),
    [
        ({"IN": ["A"], "A": []}, []),
        ({"IN": ["A", "A"], "A": ["B", "B"], "B": []}, []),
        ({"IN": ["A", "B"], "A": ["B"], "B": []}, []),
        ({"IN": ["A"], "A": ["A"]}, [("A", 1)]),
        ({"IN": ["A"], "A": ["C", "B"], "B": ["C", "A"], "C": []}, [("A", 2), ("B", 2)]),
        ({"IN": [], "A": ["B"], "B": ["A"]}, []),
    ],
)
def test_the_circle_and_its_rules(jumps: Jumps, expected: list[tuple[str, int]]) -> None:
    """A circle is told by its chains and rules; twice is none, nor is what nothing leads to."""
    assert found(jumps, "IN") == expected


@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=10, max_size=10), st.integers())
def test_any_jumps(drawn: list[list[int]], more: int) -> None:
    """A circle is found exactly where there is one, it can be reached, and its rules make it."""
    starts = {"0", str(more % 10)}
    jumps = {str(at): list(map(str, to)) for at, to in enumerate(drawn)}
    met = set(starts)
    for _ in jumps:
        met.update(to for chain in [*met] for to in jumps[chain])
    result = found(jumps, *starts)
    try:
        TopologicalSorter({chain: jumps[chain] for chain in met}).prepare()
    except CycleError:
        assert result
    else:
        assert not result
    following = [*result[1:], *result[:1]]
    assert all(
        jumps[chain][n - 1] == to for (chain, n), (to, _) in zip(result, following, strict=True)
    )
    assert {chain for chain, _ in result} <= met
