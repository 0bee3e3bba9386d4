"""The generated rulesets: exact sizes, the same text each time, and variants that differ.

That the text is what iptables-legacy-save prints is proved by each run of the bench.
"""

from __future__ import annotations

import hashlib

import pytest

from tests.bench import generate


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("rules", [0, 1, 2, 10, 99, 100, 101, 1_000, 10_000])
def test_size_is_exact(rules: int, spread: bool) -> None:
    """A ruleset has as many rules as were asked for, with and without counters."""
    text = generate.ruleset(rules, spread=spread)
    assert generate.rule_count(text) == rules
    assert generate.rule_count(generate.with_counters(text)) == rules


def test_same_text_each_time() -> None:
    """The text depends on the arguments alone, on every Python: figures can be compared."""
    text = generate.with_counters(generate.ruleset(1_000, spread=True))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ff090b814eeb33fa"


def test_variants_share_next_to_nothing() -> None:
    """Two variants have only the rules in common that every ruleset begins with."""
    one, other = (set(generate.ruleset(1_000, variant=name).splitlines()) for name in "ab")
    assert len(one & other) < 20


def test_chains_have_about_a_hundred_rules() -> None:
    """User-defined chains are declared, entered, and of about the size that was promised."""
    text = generate.ruleset(10_000)
    chains = generate.user_chains(text)
    for chain in chains:
        assert text.count(f" -j {chain}\n") + text.count(f" -g {chain}\n") >= 1
        if chain != "log-drop":
            assert 0.6 < text.count(f"\n-A {chain} ") / generate.CHAIN_RULES < 1.5


def test_two_fifths_carry_a_comment_of_their_own() -> None:
    """Comments are what keeps rules from being alike, so they are part of the promise."""
    lines = generate.ruleset(10_000).splitlines()
    comments = [line.split("--comment ")[1] for line in lines if "--comment" in line]
    assert 0.3 < len(comments) / 10_000 < 0.5
    assert len(set(comments)) == len(comments)
