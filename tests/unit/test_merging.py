"""How a chain becomes what is wanted around the rules of others, and how a change is undone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from nfctl.control.change import ADD, DELETE, KEPT, SAME
from nfctl.control.merging import merge, result, undone

# capital letters are others' rules
_live = st.lists(st.sampled_from("abcdeXYZ"), max_size=12)
_wanted = st.lists(st.sampled_from("abcdef"), max_size=12)


def _merged(live: list[str], wanted: list[str]) -> list[str]:
    found = merge(live, wanted, lambda index: "another" if live[index].isupper() else "")
    return result(found.runs, live, wanted)


@given(_live, _wanted)
def test_what_is_wanted_is_there_in_order(live: list[str], wanted: list[str]) -> None:
    """Without the rules of others, the result is what is wanted, and theirs are as they were."""
    after = _merged(live, wanted)
    assert [rule for rule in after if rule.islower()] == wanted
    assert [rule for rule in after if rule.isupper()] == [r for r in live if r.isupper()]


@given(_live, _wanted)
def test_twice_is_nothing(live: list[str], wanted: list[str]) -> None:
    """What came of a merge merges to itself, with nothing to add or to delete."""
    after = _merged(live, wanted)
    runs = merge(after, wanted, lambda index: "another" if after[index].isupper() else "").runs
    assert {run.kind for run in runs} <= {SAME, KEPT}


@given(_live, _wanted)
def test_runs_cover_both_sequences(live: list[str], wanted: list[str]) -> None:
    """Every rule of both is in exactly one run, and deletes and adds of a move are paired."""
    found = merge(live, wanted, lambda index: "another" if live[index].isupper() else "")
    at = beside = 0
    for kind, first, second, length in found.runs:
        if kind in {SAME, KEPT, DELETE}:
            assert first == at
            at += length
        if kind in {SAME, ADD}:
            assert second == beside
            beside += length
    assert (at, beside) == (len(live), len(wanted))
    for to, start in found.moved.items():
        assert live[start] == wanted[to]


def test_a_kept_rule_stays_behind_its_neighbour() -> None:
    """A rule of others follows the rule before it that stays, or stands at the front."""
    assert _merged(list("XaYbZ"), list("apb")) == list("XaYpbZ")
    assert _merged(list("aXb"), list("b")) == list("Xb")
    # and behind what takes the place of that neighbour
    assert _merged(list("aX"), list("p")) == list("pX")
    assert _merged(list("XaY"), list("pq")) == list("XpqY")
    assert _merged(list("aXbYc"), list("pqc")) == list("pXqYc")
    assert _merged(list("abXcY"), list("p")) == list("pXY")
    assert _merged(list("Xab"), list("bpa")) == list("Xbpa")


def test_a_rule_of_others_that_is_wanted_is_ones_own() -> None:
    """A rule that looks like others' and is wanted elsewhere moves; it is not there twice."""
    assert Counter(_merged(list("Xab"), list("aXb"))) == Counter("aXb")


@given(_live, _wanted)
def test_undoing_at_once_is_what_was(before: list[str], after: list[str]) -> None:
    """If nobody changed anything since, undoing a change gives the chain of before."""
    assert undone(after, before, after) == before


@given(_live, _wanted, st.lists(st.sampled_from("PQR"), max_size=3), st.data())
def test_undoing_keeps_what_came_since(
    before: list[str], after: list[str], new: list[str], data: st.DataObject
) -> None:
    """Rules that others inserted since stay, in order; all else is as before."""
    now = list(after)
    at = 0
    for rule in new:
        at = data.draw(st.integers(at, len(now)))
        now.insert(at, rule)
        at += 1
    found = undone(now, before, after)
    assert [rule for rule in found if rule not in "PQR"] == before
    assert [rule for rule in found if rule in "PQR"] == new


def test_undoing_leaves_gone_what_others_deleted() -> None:
    """A rule that the change let be, and that somebody deleted since, does not come back."""
    assert undone(list("bn"), list("ab"), list("abn")) == list("b")


@given(_live, _live)
def test_undoing_what_never_happened_changes_nothing(before: list[str], after: list[str]) -> None:
    """A change that was interrupted before it reached the kernel is undone to what is there."""
    assert undone(before, before, after) == before
