"""Rollback over real tables: what a change did is undone, and nothing that came since."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control.journal import entries
from nfctl.control.journal.records import Damaged
from nfctl.control.undo import rollback
from nfctl.errors import AnswerNo
from tests.kernel import applying, play
from tests.kernel.applying import (
    apply_text,
    chains_of,
    policies_of,
    rulesets,
    state,
    tables_of,
    with_foreign,
)
from tests.kernel.test_properties import Drawn, examples, pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace
    from tests.kernel.test_properties import Pool

pytestmark = pytest.mark.kernel

ONE: Final = """\
*filter
:INPUT DROP [0:0]
:WEB - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -j WEB
-A WEB -s 192.0.2.0/24 -j ACCEPT
COMMIT
"""
TWO: Final = ONE.replace("192.0.2.0", "198.51.100.0").replace("--dport 80", "--dport 8080")
THREE: Final = TWO.replace("WEB", "HTTP").replace("INPUT DROP", "INPUT ACCEPT")


def chains(family: int = 4) -> dict[str, list[str]]:
    return chains_of(tables_of(play.saved(family))["filter"])


def statuses() -> list[tuple[str, str]]:
    return [(entry.action, entry.status) for entry in state().entries()]


def by_hand(*commands: str) -> None:
    for command in commands:
        done = play.oracle(f"iptables-legacy {command}".split())
        assert done.code == 0, done.err


def all_of_it() -> tuple[str, str, list[tuple[str, dict[int, str]]]]:
    """Return the tables with counters, and the records."""
    return play.saved(4), play.saved(6), [(one.name, one.text) for one in state().records()]


# --- others' edits ------------------------------------------------------------------------------


def test_what_others_did_since_stays(netns: Namespace) -> None:
    """Rules that others inserted stay, what they deleted stays gone; the change's own is undone."""

    def inside() -> None:
        apply_text(ONE)
        apply_text(TWO)
        by_hand(
            "-I INPUT 2 -s 203.0.113.1 -j DROP",
            "-A WEB -s 203.0.113.2 -j DROP",
            "-D INPUT -i lo -j ACCEPT",
            "-A OUTPUT -d 203.0.113.3 -j DROP",
            "-N THEIRS",
        )
        rollback(state())
        assert chains() == {
            "INPUT": ["-s 203.0.113.1/32 -j DROP", "-p tcp -m tcp --dport 80 -j WEB"],
            "FORWARD": [],
            "OUTPUT": ["-d 203.0.113.3/32 -j DROP"],
            "THEIRS": [],
            "WEB": ["-s 192.0.2.0/24 -j ACCEPT", "-s 203.0.113.2/32 -j DROP"],
        }

    netns.python(inside)


def test_a_comment_of_two_lines(netns: Namespace) -> None:
    """A rule with a line end in its comment, which iptables takes, comes back like any other."""
    comment = 'a\n[0:0] -A INPUT -j DROP\n*nat \\ "b'

    def inside() -> None:
        command = ["iptables-legacy", "-A", "INPUT", "-m", "comment", "--comment", comment]
        assert play.oracle([*command, "-j", "ACCEPT"]).code == 0
        by_hand("-A OUTPUT -j LOG")
        before = play.saved()
        apply_text(ONE)
        rollback(state())
        assert play.saved() == before

    netns.python(inside)


def test_a_created_chain_that_others_use(netns: Namespace) -> None:
    """A chain that the change made goes; if somebody jumps to it since, it stays without rules."""

    def inside() -> None:
        apply_text("*filter\nCOMMIT\n")
        apply_text(ONE)
        rollback(state())
        assert "WEB" not in chains()
        apply_text(ONE)
        by_hand("-A OUTPUT -j WEB", "-A WEB -s 203.0.113.2 -j DROP")
        rollback(state())
        assert chains()["WEB"] == ["-s 203.0.113.2/32 -j DROP"]
        assert chains()["OUTPUT"] == ["-j WEB"]
        assert chains()["INPUT"] == []

    netns.python(inside)


def test_a_deleted_chain_that_somebody_made_again(netns: Namespace) -> None:
    """A chain that came back by another hand gets the old rules beside the new ones."""

    def inside() -> None:
        apply_text(ONE)
        apply_text("*filter\nCOMMIT\n")
        assert "WEB" not in chains()
        by_hand("-N WEB", "-A WEB -j RETURN")
        rollback(state())
        assert sorted(chains()["WEB"]) == ["-j RETURN", "-s 192.0.2.0/24 -j ACCEPT"]
        assert chains()["INPUT"][1].endswith("-j WEB")

    netns.python(inside)


def test_a_policy_that_others_set_since(netns: Namespace) -> None:
    """A policy goes back, but not if somebody set it to something else after the change."""

    def inside() -> None:
        by_hand("-P FORWARD DROP")
        apply_text(ONE.replace(":WEB", ":FORWARD ACCEPT [0:0]\n:WEB"))
        rollback(state())
        assert policies_of(play.saved())["FORWARD"] == "DROP"
        assert policies_of(play.saved())["INPUT"] == "ACCEPT"
        apply_text(ONE)
        by_hand("-P INPUT ACCEPT", "-P FORWARD ACCEPT")
        rollback(state())
        assert policies_of(play.saved())["INPUT"] == "ACCEPT"
        assert policies_of(play.saved())["FORWARD"] == "ACCEPT"

    netns.python(inside)


# --- counters -----------------------------------------------------------------------------------


def test_counters_come_back(netns: Namespace) -> None:
    """Deleted rules and chains come back with the counters they had; what stayed counts on."""
    before = """\
*filter
:INPUT DROP [5:500]
:FORWARD ACCEPT [6:600]
:OUTPUT ACCEPT [7:700]
:OLD - [0:0]
[1:100] -A INPUT -i lo -j ACCEPT
[2:200] -A INPUT -p tcp -m tcp --dport 23 -j OLD
[3:300] -A INPUT -p tcp -m tcp --dport 23 -j OLD
[4:400] -A OLD -m comment --comment "quoted \\"text\\", -6 and --ipv4 \\\\" -j DROP
[18446744073709551615:18446744073709551615] -A OLD -j DROP
COMMIT
"""
    after = (
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p udp -j DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
    )

    def inside() -> None:
        for family in (4, 6):
            applying.restored(before, family, "-c")
        start = all_of_it()
        apply_text({4: after, 6: after})
        assert "[1:100] -A INPUT -i lo" in play.saved(4)
        rollback(state())
        assert all_of_it() == start
        assert start[0] == before

    netns.python(inside)


# --- several entries ----------------------------------------------------------------------------


def test_further_and_further_back(netns: Namespace) -> None:
    """Each rollback undoes one change more, with its record; then there is nothing to undo."""

    def inside() -> None:
        states = [all_of_it()]
        for text in (ONE, TWO, THREE):
            apply_text(text)
            states.append(all_of_it())
        for earlier in states[-2:0:-1]:
            rollback(state())
            assert all_of_it() == earlier
        rollback(state())
        assert state().records() == []
        assert not any(chains().values())
        with pytest.raises(AnswerNo):
            rollback(state())
        assert statuses() == [("apply", "rolled back")] * 3 + [("rollback", "applied")] * 3

    netns.python(inside)


def test_a_number_undoes_all_from_there(netns: Namespace) -> None:
    """Rollback N leads to what was before entry N, in one commit with one entry."""

    def inside() -> None:
        states = [all_of_it()]
        for text in (ONE, TWO, THREE, "*filter\nCOMMIT\n"):
            apply_text(text)
            states.append(all_of_it())
        outcome = rollback(state(), 2)
        assert outcome.entry is not None
        assert outcome.entry.undoes == (4, 3, 2)
        assert all_of_it() == states[1]
        assert len(state().entries()) == 5

    netns.python(inside)


def test_a_rollback_is_undone(netns: Namespace) -> None:
    """Rollback of a rollback does the change again, which can be undone again, and so on."""

    def inside() -> None:
        apply_text(ONE)
        one = all_of_it()
        apply_text(TWO)
        two = all_of_it()
        rollback(state())  # entry 3 undoes 2
        assert all_of_it() == one
        rollback(state(), 3)
        assert all_of_it() == two
        assert state().entry(2).status == entries.APPLIED
        rollback(state())
        assert all_of_it() == one
        rollback(state())
        assert not any(chains().values())
        assert state().records() == []

    netns.python(inside)


def test_a_rollback_is_undone_in_part(netns: Namespace) -> None:
    """What was before entry N is found again, though a rollback of N and more came after it."""

    def inside() -> None:
        apply_text(ONE)
        one = all_of_it()
        apply_text(TWO)
        rollback(state(), 1)
        assert state().records() == []
        rollback(state(), 2)
        assert all_of_it() == one
        assert [entry.status for entry in state().entries()[:3]] == [
            entries.APPLIED,
            entries.ROLLED_BACK,
            entries.ROLLED_BACK,
        ]

    netns.python(inside)


def test_nothing_is_undone_past_what_cannot_be_read(netns: Namespace) -> None:
    """A damaged entry stands in the way of those before it, and not of those after it."""

    def inside() -> None:
        apply_text(ONE)
        apply_text(TWO)
        (state().entry(2).path / "entry.json").write_text("{}")
        before = all_of_it()
        for number in (None, 1, 2):
            with pytest.raises(Damaged, match="entry 2 cannot be undone"):
                rollback(state(), number)
        apply_text(THREE)
        for number in (1, 2):
            with pytest.raises(Damaged) as refused:
                rollback(state(), number)
            assert "nfctl rollback 3" in refused.value.hint
        outcome = rollback(state())
        assert outcome.entry is not None
        assert outcome.entry.undoes == (3,)
        assert all_of_it() == before
        with pytest.raises(Damaged):
            rollback(state())

    netns.python(inside)


def test_policies_of_two_names(netns: Namespace) -> None:
    """A rollback puts back the records of all policies whose changes it undoes, and no others."""
    dns = (
        ONE.replace("filter", "mangle").replace("WEB", "DNS").replace("INPUT DROP", "INPUT ACCEPT")
    )

    def inside() -> None:
        apply_text(ONE, name="web")
        apply_text(dns, name="dns")
        both = all_of_it()
        apply_text(TWO, name="web")
        apply_text(dns.replace("192.0.2", "192.0.9"), name="dns")
        changed = all_of_it()
        rollback(state(), 3)
        assert all_of_it() == both
        rollback(state(), 5)
        assert all_of_it() == changed
        rollback(state(), 1)
        assert state().records() == []

    netns.python(inside)


@pytest.mark.parametrize("seed", range(4))
def test_any_history(seed: int, netns: Namespace) -> None:
    """After any applies and rollbacks, rollback N leads to what was before entry N."""
    texts = [ONE, TWO, THREE, ONE.replace("tcp", "udp"), "*filter\nCOMMIT\n"]

    def text(number: int, rng: random.Random) -> str:
        mine = f"-A OUTPUT -m comment --comment {number}\nCOMMIT"  # no two states are equal
        return rng.choice(texts).replace("COMMIT", mine)

    def inside() -> list[int]:
        rng = random.Random(seed)
        before: dict[int, tuple[str, str, object]] = {}
        applying.restored("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", 4)
        apply_text("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")  # a record, and no entry
        undone = []
        for _ in range(30):
            number = len(state().entries()) + 1
            now = all_of_it()
            if rng.random() < 0.5 or number < 3:
                if apply_text(text(number, rng)).entry is not None:
                    before[number] = now
                continue
            goal = rng.randint(max(1, number - 6), number - 1)
            try:
                outcome = rollback(state(), goal)
            except AnswerNo:
                outcome = None
            assert all_of_it()[:2] == before[goal][:2], (goal, statuses())
            assert all_of_it()[2] == before[goal][2], (goal, statuses())
            if outcome is not None and outcome.entry is not None:
                before[number] = now
                undone.append(goal)
        return undone

    assert len(netns.python(inside)) > 4


# --- any rulesets -------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn, rules: Pool) -> tuple[list[Drawn], int]:
    first = draw(with_foreign(draw(rulesets(rules)), rules))
    later = draw(st.lists(rulesets(rules), min_size=1, max_size=3))
    return [first, *later], draw(st.integers(1, len(later)))


@pytest.mark.parametrize("family", [4, 6])
def test_any_rulesets(family: int, netns: Namespace) -> None:
    """Several rulesets applied one over the other; rollback N finds each as it was before N."""

    def rules_of() -> dict[str, object]:
        return {
            table: (chains_of(text), policies_of(text))
            for table, text in tables_of(play.saved(family)).items()
        }

    def inside() -> None:
        rules = pool(family)

        @examples(50)
        @given(histories(rules))
        def prove(drawn: tuple[list[Drawn], int]) -> None:
            (first, *later), number = drawn
            applying.wipe()
            applying.forget()
            applying.restored(first.text, family, "-c")
            before: dict[int, dict[str, object]] = {}
            for each in later:
                now = rules_of()
                outcome = apply_text({family: each.text})
                if outcome.entry is not None:
                    before[outcome.entry.number] = now
            if number not in before:
                return
            rollback(state(), number)
            now = rules_of()
            assert {table: now[table] for table in before[number]} == before[number]

        prove()

    netns.python(inside)


def test_of_an_interrupted_change(netns: Namespace) -> None:
    """What was interrupted between two tables is undone as far as it came."""
    from nfctl.control.committing import Writing

    text = f"*raw\n:PREROUTING DROP [0:0]\n-A PREROUTING -j ACCEPT\nCOMMIT\n{ONE}"

    def doomed() -> None:
        import os
        import signal

        commit: Callable[..., None] = Writing.commit

        def fatal(writing: Writing) -> None:
            commit(writing, lambda _name: os.kill(os.getpid(), signal.SIGKILL))

        pytest.MonkeyPatch().setattr(Writing, "commit", fatal)
        apply_text(text)

    def inside() -> None:
        from nfctl.lab.fork import Child

        applying.restored("*raw\nCOMMIT\n*filter\n-A INPUT -j LOG\nCOMMIT\n", 4)
        start = all_of_it()
        with pytest.raises(ChildProcessError):
            Child(doomed).result(60)
        assert "-A PREROUTING -j ACCEPT" in play.saved()
        assert "WEB" not in play.saved()
        rollback(state())
        assert all_of_it() == start
        assert statuses()[0] == ("apply", "rolled back")

    netns.python(inside)
