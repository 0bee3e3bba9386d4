"""What is left of an apply that is interrupted, undone or redone, and of rules that it let go."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from nfctl.control import apply as applying
from nfctl.control import committing, undo
from nfctl.control.journal import entries
from nfctl.errors import NfctlError, RolledBack, Unsupported
from nfctl.policy import reading
from tests.kernel import play
from tests.kernel.applying import OPTIONS, apply_text, state

if TYPE_CHECKING:
    from nfctl.control.journal.state import State
    from nfctl.policy.wanted import Wanted
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

RULES = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
MORE = RULES.replace("COMMIT", "-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT")
POLICY = b"""
version: 1
families: ipv4
tables:
  filter:
    INPUT: ["-i lo -j ACCEPT"]
"""


def statuses(of: State) -> list[str]:
    """Return the status of each entry, the oldest first."""
    return [entry.status for entry in of.entries()]


def ctrl_c_at_the_commit() -> None:
    """Have Ctrl-C come when a table was just written."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settle = committing._settle

    def interrupted(*args: object) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return settle(*args)  # type: ignore[arg-type]

    committing._settle = interrupted  # type: ignore[assignment]


def test_ctrl_c_in_the_commit(netns: Namespace) -> None:
    """Ctrl-C while tables are written ends nfctl, but the journal says what was written."""

    def apply() -> list[str]:
        ctrl_c_at_the_commit()
        with pytest.raises(KeyboardInterrupt):
            apply_text(RULES)
        assert state().record("default") is not None
        return statuses(state())

    assert netns.python(apply) == [entries.APPLIED]
    assert "-A INPUT -i lo -j ACCEPT" in netns.save()
    assert netns.python(play.nfctl, ["rollback"]).code == 1  # of the namespace's own journal
    netns.python(lambda: undo.rollback(state()).status)
    assert netns.save() == play.EMPTY


def test_ctrl_c_leaves_the_watchdog(netns: Namespace) -> None:
    """After Ctrl-C in the commit an unconfirmed change still waits, and is still undone."""

    def apply() -> tuple[list[str], str]:
        ctrl_c_at_the_commit()
        with pytest.raises(KeyboardInterrupt):
            apply_text(RULES, confirm=600)
        from nfctl.control.confirmation import watchdog

        before = statuses(state())
        assert watchdog.hurry(state(), 1)  # it is there
        log = state().entry(1).path / "watchdog.log"
        with subprocess.Popen(["tail", "-f", "-n", "+1", log], stdout=subprocess.PIPE) as tail:
            assert tail.stdout is not None
            next(line for line in tail.stdout if line.endswith(b": rolled back\n"))
            tail.kill()
        return before, state().entry(1).status

    assert netns.python(apply) == ([entries.UNCONFIRMED], entries.ROLLED_BACK)
    assert netns.save() == play.EMPTY


def test_ctrl_c_in_a_rollback(netns: Namespace) -> None:
    """Ctrl-C while a rollback writes: it is done, and noted."""

    def apply() -> list[str]:
        apply_text(RULES)
        ctrl_c_at_the_commit()
        with pytest.raises(KeyboardInterrupt):
            undo.rollback(state())
        return statuses(state())

    assert netns.python(apply) == [entries.ROLLED_BACK, entries.APPLIED]
    assert netns.save() == play.EMPTY


def test_a_table_that_cannot_be_read_back(netns: Namespace) -> None:
    """A table that the kernel took but does not give back is put back, as one that is wrong."""

    def apply() -> list[str]:
        def unreadable(*_args: object) -> str:
            msg = "no memory"
            raise NfctlError(msg)

        committing._settle = unreadable  # type: ignore[assignment]
        with pytest.raises(RolledBack, match="no memory"):
            apply_text(RULES)
        return statuses(state())

    assert netns.python(apply) == [entries.FAILED]
    assert netns.save() == play.EMPTY


def test_an_undone_rollback(netns: Namespace) -> None:
    """After a rollback of a rollback the change holds again, and can be undone again."""

    def play_back() -> list[list[str]]:
        apply_text(RULES)
        apply_text(MORE)
        said = []
        for number in (1, 3, 4, 5):  # undo both; redo; undo the redoing; redo
            undo.rollback(state(), number)
            said.append(statuses(state()))
        undo.rollback(state())
        said.append(statuses(state()))
        return said

    done, gone = entries.APPLIED, entries.ROLLED_BACK
    assert netns.python(play_back) == [
        [gone, gone, done],
        [done, done, gone, done],
        [gone, gone, done, gone, done],
        [done, done, gone, done, gone, done],
        [done, gone, gone, done, gone, done, done],
    ]
    saved = netns.save()
    assert "-i lo" in saved
    assert "192.0.2.1" not in saved


def test_a_repair_of_another_policy_stays(netns: Namespace) -> None:
    """Undoing the latest apply leaves what nfctl watch repaired for another policy."""

    def policy(name: str, interface: str) -> Wanted:
        text = POLICY.replace(b"lo", interface.encode()) + b"name: " + name.encode()
        return reading.parse(text)

    def play_back() -> list[str]:
        one, two = policy("one", "lo"), policy("two", "eth9")
        applying.apply(one, state=state(), options=OPTIONS)
        applying.apply(two, state=state(), options=OPTIONS)
        play.oracle(["iptables-legacy", "-D", "INPUT", "-i", "lo", "-j", "ACCEPT"])
        repair = applying.Options(guard_ssh=False, action="repair")
        assert applying.apply(one, state=state(), options=repair).status == "applied"
        undo.rollback(state())
        return statuses(state())

    assert netns.python(play_back) == [
        entries.APPLIED,
        entries.ROLLED_BACK,
        entries.APPLIED,
        entries.APPLIED,
    ]
    saved = netns.save()
    assert "-i lo" in saved
    assert "eth9" not in saved


def test_a_chain_of_others_is_let_go(netns: Namespace) -> None:
    """Rules that a policy had in DOCKER-USER go when it names the chain no more; Docker's stay."""
    netns.legacy("-N", "DOCKER-USER")
    with_chain = POLICY + b'    DOCKER-USER: ["-s 192.0.2.1 -j DROP"]\n'

    def apply(text: bytes) -> str:
        return applying.apply(reading.parse(text), state=state(), options=OPTIONS).status

    assert netns.python(apply, with_chain) == "applied"
    netns.legacy("-A", "DOCKER-USER", "-j", "RETURN")
    assert "-A DOCKER-USER -s 192.0.2.1/32 -j DROP" in netns.save()
    assert netns.python(apply, POLICY) == "applied"
    saved = netns.save()
    assert "192.0.2.1" not in saved
    assert "-A DOCKER-USER -j RETURN" in saved
    assert netns.python(apply, POLICY) == "unchanged"


def test_a_disk_that_fills(netns: Namespace) -> None:
    """However little room there is: an apply fails with nothing done, or all of it is noted."""

    def apply() -> set[bool]:
        seen = set()
        for size in range(16, 100, 4):  # KiB
            mount = f"mount -t tmpfs -o mode=700,size={size}k none /run/state"
            for command in ("mkdir -p /run/state", mount):
                subprocess.run(command.split(), check=True)
            before, done = play.saved(), True
            try:
                apply_text(RULES if size % 8 else MORE)
            except Unsupported:
                done = False
            assert (play.saved() != before) == done, size
            assert (statuses(state())[-1:] == [entries.APPLIED]) == done, size
            seen.add(done)
            subprocess.run(["umount", "/run/state"], check=True)
        return seen

    assert netns.python(apply) == {True, False}
