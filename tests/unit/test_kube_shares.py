from __future__ import annotations

import random
from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.services.observed.shares import percent, shares, weights
from nfctl.services.observed.spread import SIGNIFICANT, spread, tail


def probabilities(weighted: list[int]) -> tuple[str | None, ...]:
    """Return what the kernel would print for endpoints of these weights."""
    left, found = sum(weighted), []
    for weight in weighted[:-1]:
        found.append(f"{round(2**31 * round(weight / left, 10)) / 2**31:.11f}")
        left -= weight
    return (*found, None)


@given(st.integers(1, 3000))
def test_equal_shares(number: int) -> None:
    """However many endpoints: equal ones are equal, and nothing is wrong with them."""
    found = shares(probabilities([1] * number), equal=True)
    assert found.flaws == ()
    assert sum(found.shares) == pytest.approx(1)
    assert found.shares == pytest.approx([1 / number] * number, abs=1e-8)
    assert weights(found.shares) == (1,) * number


@given(st.lists(st.integers(1, 100), min_size=1, max_size=12))
def test_weights_come_back(weighted: list[int]) -> None:
    """From the probabilities of weighted endpoints their weights follow, in lowest terms."""
    found = shares(probabilities(weighted), equal=False)
    assert found.flaws == ()
    back = weights(found.shares)
    assert back is not None
    whole = lcm(sum(back), sum(weighted))
    assert [w * whole // sum(back) for w in back] == [w * whole // sum(weighted) for w in weighted]


def test_shares_that_no_weights_give() -> None:
    """A share of nothing, or one that is no ratio of whole numbers, has no weights."""
    assert weights(()) is None
    assert weights((1.0, 0.0)) is None
    assert weights((1 / 2**0.5, 1 - 1 / 2**0.5)) is None


def test_what_is_no_probability() -> None:
    """A damaged text is no share."""
    for text in ("1.2.3", ".", "nan", "-1"):
        assert shares((text, None), equal=False).shares == (0.0, 1.0)
    assert shares(("7", None), equal=False).shares == (1.0, 0.0)


def test_percent() -> None:
    """One digit behind the point, more where it would be nothing or all."""
    assert [percent(share) for share in (0.2, 1 / 3, 1, 0, 0.0001, 0.99999)] == [
        "20 %",
        "33.3 %",
        "100 %",
        "0 %",
        "0.01 %",
        "99.999 %",
    ]


@pytest.mark.parametrize(
    ("value", "freedom", "chance"),
    # the upper 5 % and 0.1 % points of chi-square, as printed in any table of it
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (10.828, 1, 0.001), (13.816, 2, 0.001),
     (16.919, 9, 0.05), (27.877, 9, 0.001), (149.449, 100, 0.001), (124.342, 100, 0.05),
     (1143.917, 1000, 0.001)],
)  # fmt: skip
def test_the_tail_of_chi_square(value: float, freedom: int, chance: float) -> None:
    """The chance agrees with printed tables."""
    assert tail(value, freedom) == pytest.approx(chance, rel=0.01)


def test_a_fair_spread_is_not_off() -> None:
    """Of 1,000 fair spreads over ten endpoints about one in a thousand is called far off."""
    dice = random.Random(6)
    off = 0
    for _ in range(1000):
        counts = [0] * 10
        for _ in range(500):
            counts[dice.randrange(10)] += 1
        off += spread(counts, [0.1] * 10).off
    assert off <= 6  # a Poisson of mean 1 is above with 0.01 %


def test_an_unfair_spread_is_off() -> None:
    """One endpoint with twice its share is seen; so is one that gets nothing."""
    assert spread([200, 100, 100, 100], [0.25] * 4).off
    assert spread([0, 100, 100, 100], [0.25] * 4).off
    assert not spread([75, 25], [0.75, 0.25]).off
    assert spread([50, 50], [0.75, 0.25]).probability < SIGNIFICANT  # type: ignore[operator]


def test_too_few_connections_to_tell() -> None:
    """Without counts enough there is no verdict; small endpoints are counted together."""
    assert spread([0, 0], [0.5, 0.5]) == (0, None, None)
    assert spread([3, 1], [0.5, 0.5]).probability is None
    assert spread([9], [1.0]).probability is None
    assert spread([970, 10, 10, 10], [0.97, 0.01, 0.01, 0.01]).chi_square == pytest.approx(0)
    assert spread([90, 10], [1.0, 0.0]).off
