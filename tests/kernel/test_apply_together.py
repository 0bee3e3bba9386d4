"""Two policies and iptables at once, on the same chains: nobody loses a rule.

For some seconds; for minutes with ``pytest -p tests.vm.conftest --soak MINUTES`` and this file.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from nfctl.control import apply as control
from nfctl.control.journal import entries
from nfctl.errors import Changed, Locked, NfctlError
from nfctl.lab.fork import Child
from nfctl.policy import reading
from tests.kernel import applying, play
from tests.kernel.applying import chains_of, state, tables_of
from tests.kernel.conftest import SLOWNESS, legacy

if TYPE_CHECKING:
    from nfctl.policy.wanted import Wanted
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

SECONDS: Final = 6.0 * SLOWNESS
FAMILIES: Final = (4, 6)
NAMES: Final = ("web", "dns")
FOREIGN: Final = {"f2b-sshd": "REJECT", "KUBE-SERVICES": "RETURN"}
START: Final = "*filter\n:f2b-sshd - [0:0]\n:KUBE-SERVICES - [0:0]\nCOMMIT\n*nat\nCOMMIT\n"


class Did(NamedTuple):
    """What one of those at work has done: exit codes, and the rules that are to be there now."""

    codes: dict[int, int]
    rules: dict[int, list[tuple[str, str]]]  # chain and text, by family


def policy(name: str, rng: random.Random) -> tuple[Wanted, list[str]]:
    """Return any version of a policy for both families, and its rules in INPUT."""
    port = NAMES.index(name) + 1
    rules = [
        f"-p tcp -m tcp --dport {port}{rng.randrange(1000):03} -j {name}"
        for _ in range(rng.randint(0, 9))
    ]
    text = f"""
version: 1
name: {name}
keep: [comment: by-hand*]
sets: {{{name}: {{type: "hash:ip", entries: [192.0.2.{rng.randrange(250)}]}}}}
tables:
  filter:
    INPUT: {["-m set --match-set " + name + " src -j DROP", *rules]}
    {name}: ["-p udp --dport {rng.randrange(1000)} -j ACCEPT"]
  nat:
    PREROUTING: ["-p tcp --dport {port}{rng.randrange(1000):03} -j ACCEPT"]
"""
    return reading.parse(text.encode()), rules


def applies(name: str, seconds: float) -> Did:
    """Apply one version of a policy after the other; return what the last one has in INPUT."""
    rng, end, codes = random.Random(name), time.monotonic() + seconds, Counter[int]()
    last: list[str] = []
    while time.monotonic() < end or not codes[0]:
        wanted, rules = policy(name, rng)
        # some are soon tired of waiting
        wait = rng.choice((0.0, 0.05, 60.0))
        options = control.Options(guard_ssh=False, wait=wait)
        try:
            control.apply(wanted, state=state(), options=options)
            codes[0] += 1
            last = rules
        except (Locked, Changed) as error:
            codes[error.exit_code] += 1
        except NfctlError as error:
            error.add_note(f"policy {name}, after {codes}")
            raise
    return Did(dict(codes), {family: [("INPUT", rule) for rule in last] for family in FAMILIES})


def edits(number: int, seconds: float) -> Did:
    """Add rules with iptables and delete some of them; return those that have to be there."""
    rng, end, codes, fresh = (
        random.Random(number),
        time.monotonic() + seconds,
        Counter[int](),
        count(),
    )
    there: dict[int, list[tuple[str, str]]] = {family: [] for family in FAMILIES}
    while time.monotonic() < end:
        family = rng.choice(FAMILIES)
        mine = there[family]
        if mine and rng.random() < 0.4:
            chain, rule = mine.pop(rng.randrange(len(mine)))
            verb = "-D"
        else:
            comment = f"by-hand-{number}-{next(fresh)}"
            chain, rule = rng.choice((
                ("INPUT", f"-m comment --comment {comment}"),
                ("INPUT", f"-p tcp -m comment --comment {comment} -j f2b-sshd"),
                ("OUTPUT", f"-m comment --comment {comment} -j KUBE-SERVICES"),
                ("f2b-sshd", f"-m comment --comment {comment} -j RETURN"),
            ))  # fmt: skip
            verb = rng.choice(("-A", "-I"))
            mine.append((chain, rule))
        done = play.oracle([legacy(family), "-w", verb, chain, *rule.split()])
        codes[done.code] += 1
        assert done.code == 0, done.err
    return Did(dict(codes), there)


def test_nobody_loses_a_rule(netns: Namespace, pytestconfig: pytest.Config) -> None:
    """In the end each policy's last version is in place, and every rule that iptables added."""
    seconds = 60.0 * pytestconfig.getoption("--soak", default=0.0) or SECONDS

    def inside() -> tuple[list[Did], list[str]]:
        for family in FAMILIES:
            applying.restored(START, family)
        children = [Child(applies, name, seconds) for name in NAMES]
        children += [Child(edits, number, seconds) for number in range(2)]
        did = [child.result(seconds + 60 * SLOWNESS) for child in children]
        return did, [play.saved(family) for family in FAMILIES]

    os.environ.pop("SSH_CONNECTION", None)
    children = Child(lambda: netns.python(inside)) if seconds > 60 * SLOWNESS else None
    did, saved = children.result(seconds + 120) if children else netns.python(inside)
    for family, text in zip(FAMILIES, saved, strict=True):
        found = chains_of(tables_of(text)["filter"])
        for who in did:
            for chain, rule in who.rules[family]:
                assert found[chain].count(rule) == 1, (family, chain, rule)
        by_hand = {rule for who in did[2:] for _, rule in who.rules[family]}
        there = [rule for rules in found.values() for rule in rules if "by-hand" in rule]
        assert sorted(there) == sorted(by_hand)
        # each policy's own are in its order, and there are no more of them
        for name, who in zip(NAMES, did, strict=False):
            mine = [rule for rule in found["INPUT"] if rule.endswith(f"-j {name}")]
            assert mine == [rule for _, rule in who.rules[family]]
    for who in did[:2]:
        assert who.codes.keys() <= {0, 4}
        assert who.codes[0] > 3
    assert all(who.codes[0] > 10 for who in did[2:])


def test_the_journal_of_both(netns: Namespace) -> None:
    """Each apply of either has an entry of its own, whole, and both records are there."""

    def inside() -> None:
        children = [Child(applies, name, 2.0) for name in NAMES]
        done = sum(child.result(60 * SLOWNESS).codes[0] for child in children)
        known = state().entries()
        assert {entry.status for entry in known} <= {entries.APPLIED}
        assert {entry.policy for entry in known} == set(NAMES)
        assert len(known) == min(done, 50) or done > len(known) > 10
        assert [entry.number for entry in known] == sorted(entry.number for entry in known)
        assert [record.name for record in state().records()] == sorted(NAMES)
        for name in NAMES:
            rng = random.Random(name)
            wanted, _ = policy(name, rng)
            record = state().record(name)
            assert record is not None
            assert record.wanted().tables.keys() == wanted.tables.keys()

    netns.python(inside)
