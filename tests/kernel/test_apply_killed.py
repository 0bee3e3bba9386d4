"""SIGKILL in the middle of an apply: tables stay whole, and the next apply goes on from there."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from nfctl.control import apply as control
from nfctl.control import committing
from nfctl.control.journal import durable, entries
from nfctl.control.journal.state import State
from nfctl.control.sets import Sets
from nfctl.control.undo import rollback
from nfctl.errors import AnswerNo
from nfctl.kernel.ipset import Ipset
from nfctl.kernel.table import Table
from nfctl.lab.fork import Child, fork_is_safe
from nfctl.policy import reading
from tests.kernel import applying, play
from tests.kernel.applying import OPTIONS, state, tables_of
from tests.kernel.conftest import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.policy.wanted import Wanted
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

KILLS: Final = 30
VARIANTS: Final = 3
FAMILIES: Final = (4, 6)

Tables = dict[tuple[int, str], str]

# What was there before: others' chains, a rule that the policy does away with, counters.
START: Final = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
[3:180] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[7:700] -A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
:OLD - [0:0]
[5:500] -A INPUT -p tcp -m tcp --dport 23 -j OLD
[9:900] -A FORWARD -j DOCKER-USER
[2:200] -A OLD -j DROP
COMMIT
"""


def policy(variant: int) -> Wanted:
    """Return a policy of both families, with a set; each variant has something of each kind."""
    many = "\n".join(f"        - -p udp --dport {1000 * variant + port}" for port in range(40))
    return reading.parse(
        f"""
version: 1
name: web
sets:
  blocked:
    type: hash:ip
    family: [ipv4, ipv6]
    entries: [192.0.2.{variant + 1}, 192.0.2.77, "2001:db8::{variant + 1}"]
  only-{variant}: {{type: "hash:net", entries: [10.{variant}.0.0/16]}}
tables:
  raw:
    PREROUTING: ["-p tcp --dport {variant + 1} -j ACCEPT"]
  nat:
    POSTROUTING: ["-p tcp --dport {variant + 1} -j ACCEPT"]
  filter:
    INPUT:
      policy: {"accept" if variant == 1 else "drop"}
      rules:
        - -i lo -j ACCEPT
        - -m set --match-set blocked src -j DROP
        - -m set --match-set only-{variant} src -j own-{variant}
        - -p tcp --dport {22 + variant} -j ACCEPT
{many}
    FORWARD: []
    own-{variant}: ["-p tcp -j REJECT", "-j web"]
    web: ["-p tcp --dport {8000 + variant} -j ACCEPT"]
""".encode()
    )


def tables() -> Tables:
    """Return each table's text as the oracle prints it, with its rules' counters."""
    return {
        (family, name): play.policies_zeroed(text)
        for family in FAMILIES
        if (saved := play.saved(family))
        for name, text in tables_of(saved).items()
    }


def sets() -> list[str]:
    done = play.oracle(["ipset", "list", "-n"])
    assert done.code == 0, done.err
    return sorted(done.out.split())


def apply(variant: int) -> None:
    control.apply(policy(variant), state=state(), options=OPTIONS)


def undo(number: int) -> None:
    """Undo all from an entry on, if who was killed before was not through with it."""
    with contextlib.suppress(AnswerNo):
        rollback(state(), number)


# --- where to be killed -------------------------------------------------------------------------


class Spot(NamedTuple):
    """A call at which the process dies: of what, before or after it, and the how manieth."""

    where: Any
    name: str
    after: bool
    number: int

    def arm(self) -> None:
        """Have this process die there."""
        called, calls = getattr(self.where, self.name), 0

        def fatal(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.number and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = called(*args, **kwargs)
            if calls == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(self.where, self.name, fatal)


# the most calls of each in one apply, or nearly
_CALLS: Final[tuple[tuple[Any, str, int], ...]] = (
    (State, "begin", 1),
    (State, "put_record", 2),
    (State, "mark", 1),
    (State, "prune", 1),
    (Table, "commit", 6),
    (Table, "commit", 6),
    (committing, "add_counters", 6),
    (Sets, "prepare", 1),
    (Sets, "finish", 1),
    (Ipset, "create", 3),
    (Ipset, "swap", 2),
    (Ipset, "rename", 2),
    (Ipset, "destroy", 3),
    (durable, "write", 6),
    (durable, "write_all", 1),
    (durable, "sync_directory", 8),
    (os, "rename", 6),
)


def spot(rng: random.Random) -> Spot:
    where, name, most = rng.choice(_CALLS)
    return Spot(where, name, rng.random() < 0.5, rng.randint(1, most))


def killed(act: Callable[[], object], rng: random.Random, seconds: float) -> bool:
    """Do something in a child that is killed somewhere; return whether it came to its end."""
    delay = rng.random() * seconds * 1.2 if rng.random() < 0.4 else None
    fatal = spot(rng) if delay is None else None

    def doomed() -> None:
        if fatal is not None:
            fatal.arm()
        act()

    with fork_is_safe():
        child = os.fork()
    if child == 0:
        try:
            doomed()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the parent asserts that there was none
            traceback.print_exc()
        finally:
            os._exit(1)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, -signal.SIGKILL}, (code, fatal)
    return code == 0


# --- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_killed_anywhere(seed: int, netns: Namespace) -> None:
    """After each of 30 kills every table is old or new; apply and rollback go on from there."""

    def inside() -> tuple[int, int]:
        rng = random.Random(seed)
        for family in FAMILIES:
            applying.restored(START, family, "-c")
        start, results, seconds = tables(), [], 0.0
        for variant in range(VARIANTS):
            begin = time.monotonic()
            Child(apply, variant).result(60)
            seconds = time.monotonic() - begin
            results.append(tables())
        rollback(state(), 1)
        first = len(state().entries()) + 1
        assert {key: tables()[key] for key in start} == start
        ended = 0
        for _ in range(KILLS):
            before = tables()
            variant = rng.choice([one for one, result in enumerate(results) if result != before])
            ended += killed(lambda: apply(variant), rng, seconds)  # noqa: B023 - called at once
            now = tables()
            torn = [key for key in now if now[key] not in (before[key], results[variant][key])]
            assert not torn
            assert all(not entry.warning for entry in state().entries())
            assert len(state().records()) <= 1
            if rng.random() < 0.4:
                other = variant if rng.random() < 0.5 else rng.randrange(VARIANTS)
                Child(apply, other).result(60)
                assert tables() == results[other]
                prove_finished(other)
        known = [entry.status for entry in state().entries()]
        assert known.count(entries.INTERRUPTED) > 3
        while not killed(lambda: undo(first), rng, seconds):
            assert all(not entry.warning for entry in state().entries())
            if rng.random() < 0.3:
                Child(undo, first).result(60)
                break
        now = tables()
        assert {key: now[key] for key in start} == start
        assert not any("-A" in text for key, text in now.items() if key not in start)
        assert state().records() == []
        Child(apply, 0).result(60)
        assert tables() == results[0]
        prove_finished(0)
        return ended, known.count(entries.INTERRUPTED)

    begin = time.monotonic()
    ended, interrupted = netns.python(inside)
    assert ended < KILLS - 3, interrupted
    assert time.monotonic() - begin < 60 * SLOWNESS


def prove_finished(variant: int) -> None:
    """Assert that an apply is over: its sets and no others, nothing left to do, no interruption."""
    assert sets() == ["blocked", "blocked-6", f"only-{variant}"]
    assert not control.plan(policy(variant), state=state()).changes
    assert state().entries()[-1].status in {entries.APPLIED, entries.INTERRUPTED}
    assert not [e for e in state().entries() if e.status == entries.PREPARED]
