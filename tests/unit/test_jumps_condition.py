"""Conditions in few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from nfctl.jumps.condition import (
    common,
    kinds,
    label,
    probability,
    without_chance,
    without_comment,
)
from tests.unit import strategies

if TYPE_CHECKING:
    from nfctl.ruleset import Spec

RANDOM = "-m statistic --mode random --probability 0.33333333349"


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ("", ""),
        ("-p tcp -m tcp --dport 80", "tcp dport 80"),
        ("-s 10.0.0.0/8 ! -d 192.0.2.1/32", "-s 10.0.0.0/8 ! -d 192.0.2.1"),
        ("-d 2001:db8::1/128 -s 2001:db8::/32", "-d 2001:db8::1 -s 2001:db8::/32"),
        ("! -p tcp -i eth0", "! tcp -i eth0"),
        ("-m conntrack --ctstate NEW -m socket", "ctstate NEW socket"),
        ("-m mark ! --mark 0x1/0xff", "! mark 0x1/0xff"),
        (RANDOM, "33.33%"),
        ("-m statistic --mode random ! --probability 0.2", "! 20%"),
        ("-m statistic --mode nth --every 3 --packet 0", "mode nth every 3 packet 0"),
        ('-m comment --comment "a \\"b\\"" -p udp', 'udp /* a "b" */'),
        ("-m comment --comment -j", "/* -j */"),
        ('-m comment --comment "\x1b[2J"', "/* \\x1b[2J */"),
        ("-f", "-f"),
    ],
)
def test_a_condition_is_said_in_few_words(condition: str, text: str) -> None:
    """Without what goes without saying; a probability is a percentage; comments come last."""
    assert label(condition) == text


@given(strategies.specs(4))
def test_comments_are_no_part_of_what_is_looked_at(spec: Spec) -> None:
    """Without its comments, a condition is what it would be had they never been there."""
    condition = spec._replace(target=None).text()
    plain = tuple(use for use in spec.matches if use.name != "comment")
    if all(use.name != "string" for use in plain):  # which may hold what looks like a comment
        assert without_comment(condition) == spec._replace(target=None, matches=plain).text()
    assert label(condition).isprintable() or "\udc80" <= max(label(condition)) <= "\udcff"


@pytest.mark.parametrize(
    "comments",
    [
        '-m comment --comment "" -m comment --comment 0',
        '-m comment --comment 0 -m comment --comment "a b"',
        '-m comment --comment "a" -m comment --comment "b \\" c"',
    ],
)
def test_several_comments(comments: str) -> None:
    """A rule may have more than one comment, in quotes or not: all of them go."""
    assert without_comment(comments) == ""
    assert without_comment(f"-p tcp {comments} -m tcp --syn") == "-p tcp -m tcp --syn"


def test_chance() -> None:
    """The probability of a rule, and its condition without dice."""
    condition = f'-s 10.0.0.1/32 -m comment --comment "{RANDOM}" {RANDOM} -p tcp'
    assert probability(condition) == pytest.approx(1 / 3, abs=1e-9)
    assert without_chance(without_comment(condition)) == "-s 10.0.0.1/32 -p tcp"
    assert probability(RANDOM.replace("--prob", "! --prob")) == pytest.approx(2 / 3, abs=1e-9)
    assert probability(f'-m comment --comment "{RANDOM}"') is None
    assert probability("-p tcp") is None


def test_kinds_are_conditions_without_values() -> None:
    """Matches, protocol and options stay; addresses, ports and texts go."""
    text = "! -s 10.0.0.1/32 -p tcp -m tcp --dport 80 "
    text += '-m string --string "-x -y" -m set ! --match-set a src'
    assert kinds(text) == "! -s -p tcp -m tcp --dport -m string --string -m set ! --match-set"


@pytest.mark.parametrize(
    ("texts", "text"),
    [
        (["-d 10.96.0.1/32 -p tcp", "-d 10.96.12.1/32 -p tcp"], "-d 10.96.* -p tcp"),
        (["-d 10.96.0.1/32"], "-d 10.96.0.1/32"),
        (["-s 2001:db8::1/128", "-s 2001:db8::12/128"], "-s 2001:db8::*"),
        (["--dport 80", "--dport 8080"], "--dport *"),
        (["-i eth1", "-i eth12"], "-i eth*"),
        (["-p tcp --syn", "-p tcp"], None),
    ],
)
def test_what_conditions_have_in_common(texts: list[str], text: str | None) -> None:
    """Words that are the same stay; of others, whole parts that they begin with."""
    assert common(texts) == (text if text is not None else kinds(texts[0]))
