"""The xtables lock: nfctl and iptables wait for each other, and lose nothing of each other's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import nfctl
from nfctl.errors import Locked, NotPermitted, Unsupported
from nfctl.kernel import lock
from tests.kernel import play
from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

LOCK = "/run/xtables.lock"
# Takes the lock as iptables does, says so, and holds it until it gets a line.
HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDONLY, 0o600)
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""
# Holds the lock by an open transaction of nfctl.
EDITOR = """
import sys, nfctl
with nfctl.edit() as tables:
    print("held", flush=True)
    sys.stdin.readline()
    tables["filter"].append("OUTPUT", "-m comment --comment by-nfctl")
"""
# Adds 25 rules, one transaction each.
ADDER = """
import sys, nfctl
for number in range(25):
    with nfctl.edit() as tables:
        tables["filter"].append("INPUT", f"-s 10.{sys.argv[1]}.0.{number}")
"""


@contextlib.contextmanager
def holding(netns: Namespace, code: str = HOLDER, path: str = LOCK) -> Iterator[Holder]:
    """Have another process hold the lock."""
    child = netns.popen(
        [sys.executable, "-c", code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield Holder(child)
    finally:
        child.kill()
        child.communicate()


class Holder:
    """A process that holds the lock."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.pid = child.pid

    def let_go(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        assert self.child.wait(30) == 0


# --- waiting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "rule add -w {} INPUT -j ACCEPT",
        "rule delete --wait {} INPUT 1",
        "rule check -w {} INPUT",
        "chain create -w {} WEB",
        "chain policy -w {} INPUT DROP",
        "restore -w {}",
    ],
)
@pytest.mark.parametrize("wait", ["0", "0.3"])
def test_a_deadline_passes(netns: Namespace, words: str, wait: str) -> None:
    """Exit code 4 after the deadline, not much later, naming the program that holds the lock."""
    with holding(netns) as holder:
        start = time.monotonic()
        said = netns.python(play.nfctl, words.format(wait).split(), play.EMPTY)
        took = time.monotonic() - start
        assert said.code == 4
        assert f"{LOCK} is still held by python" in said.err
        assert f"(process {holder.pid})" in said.err
        assert ("after 0.3 s" in said.err) == (wait == "0.3")
        assert "-w SECONDS" in said.err
        assert float(wait) <= took < lock.DEFAULT_WAIT
    assert netns.save() == ""


def test_the_lock_is_waited_for(netns: Namespace) -> None:
    """A command that finds the lock held does its work as soon as it is free."""
    with holding(netns) as holder:
        child = netns.popen([*NFCTL, "rule", "add", "INPUT", "-j", "ACCEPT"])
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        assert netns.save() == ""
        holder.let_go()
        assert child.wait(30) == 0
    assert "-A INPUT -j ACCEPT" in netns.save()


@pytest.mark.parametrize("wait", ["inf", "1e300"])
def test_waiting_without_an_end(netns: Namespace, wait: str) -> None:
    """-w inf, and any number that no timer takes, wait for as long as it lasts."""
    with holding(netns) as holder:
        words = ["chain", "create", "-w", wait, "WEB"]
        child = netns.popen([*NFCTL, *words], stderr=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        holder.let_go()
        assert child.communicate(timeout=30)[1] == ""
        assert child.returncode == 0


def test_ctrl_c_ends_the_waiting(netns: Namespace) -> None:
    """SIGINT while waiting ends the command at once, with nothing done and no traceback."""
    with holding(netns):
        child = netns.popen(
            [*NFCTL, "rule", "add", "INPUT", "-j", "ACCEPT"], stderr=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=30)
        assert child.returncode == 130
        assert "Traceback" not in err
    assert netns.save() == ""


def test_reading_needs_no_lock(netns: Namespace) -> None:
    """Lists and save are there at once while another program holds the lock."""
    with holding(netns):
        for words in ("rule list", "chain list", "save", "rule list --json"):
            assert netns.python(play.nfctl, words.split()).code == 0


# --- the lock file -----------------------------------------------------------------------------


def test_another_lock_file(netns: Namespace, tmp_path: Path) -> None:
    """XTABLES_LOCKFILE names another lock, as for iptables; the usual one does not matter then."""
    other = str(tmp_path / "lock")
    setting = ["env", f"XTABLES_LOCKFILE={other}"]
    command = [*NFCTL, "rule", "add", "-w", "0", "INPUT", "-j", "ACCEPT"]
    with holding(netns):
        assert netns.run(command).returncode == 4
        assert netns.run([*setting, *command]).returncode == 0
    with holding(netns, path=other):
        done = netns.run([*setting, *command])
        assert done.returncode == 4
        assert other in done.stderr
        oracle = netns.run([*setting, "iptables-legacy", "-w", "1", "-A", "INPUT"])
        assert oracle.returncode == 4
        assert netns.run(command).returncode == 0


def test_the_file_is_iptables_own(netns: Namespace) -> None:
    """The file that nfctl makes has the mode of the one that iptables makes."""
    assert netns.nfctl("chain", "create", "WEB").returncode == 0
    ours = netns.run(["stat", "-c", "%a %U %F", LOCK]).stdout
    netns.run(["rm", LOCK])
    assert netns.legacy("-X", "WEB").returncode == 0
    assert netns.run(["stat", "-c", "%a %U %F", LOCK]).stdout == ours


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (f"mkdir {LOCK}", "Is a directory"),
        (f"ln -s /tmp/elsewhere {LOCK}", "symbolic links"),
        ("mount -o remount,ro /run", "Read-only"),
    ],
)
def test_a_lock_that_cannot_be_had(netns: Namespace, setup: str, said: str) -> None:
    """Where the lock file cannot be opened the error names it, and nothing is changed."""
    assert netns.run(setup.split()).returncode == 0
    done = netns.python(play.nfctl, ["rule", "add", "INPUT", "-j", "ACCEPT"])
    assert done.code == 3
    assert LOCK in done.err
    assert said in done.err
    assert "XTABLES_LOCKFILE" in done.err
    assert netns.save() == ""


# --- nfctl and iptables ------------------------------------------------------------------------


def test_iptables_waits_for_nfctl(netns: Namespace) -> None:
    """While a transaction is open iptables -w 1 gives up and iptables -w waits until its end."""
    with holding(netns, EDITOR) as editor:
        assert netns.legacy("-w", "1", "-A", "OUTPUT").returncode == 4
        waiting = netns.popen(
            ["iptables-legacy", "-w", "-A", "OUTPUT", "-m", "comment", "--comment", "by-iptables"],
            stderr=subprocess.DEVNULL,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        assert netns.save() == ""
        editor.let_go()
        assert waiting.wait(30) == 0
    lines = [line for line in netns.save().splitlines() if line[:2] == "-A"]
    assert lines == [
        "-A OUTPUT -m comment --comment by-nfctl",
        "-A OUTPUT -m comment --comment by-iptables",
    ]


def test_the_lock_is_held_by_no_child(netns: Namespace) -> None:
    """A program started inside a transaction does not inherit the lock and outlive it with it."""
    code = """
import subprocess, nfctl
with nfctl.edit():
    null = subprocess.DEVNULL
    child = subprocess.Popen(["sleep", "30"], stdout=null, stderr=null, close_fds=False)
print("held", child.pid, flush=True)
"""
    done = netns.run([sys.executable, "-c", code])
    pid = int(done.stdout.split()[1])
    try:
        assert netns.legacy("-w", "1", "-A", "INPUT").returncode == 0
    finally:
        os.kill(pid, signal.SIGKILL)


def test_nobody_loses_a_rule(netns: Namespace) -> None:
    """Two iptables and two nfctl that add 25 rules each at the same time add 100 rules."""
    netns.python(play.load, play.EMPTY)

    script = "for i in $(seq 0 24); do iptables-legacy -w -A INPUT -s 10.$0.0.$i || exit 1; done"
    children = [netns.popen(["sh", "-c", script, str(who)]) for who in (1, 2)]
    children += [netns.popen([sys.executable, "-c", ADDER, str(who)]) for who in (3, 4)]
    assert [child.wait(60) for child in children] == [0] * 4
    lines = [line for line in netns.save().splitlines() if line[:2] == "-A"]
    assert sorted(lines) == sorted(
        f"-A INPUT -s 10.{who}.0.{number}/32" for who in (1, 2, 3, 4) for number in range(25)
    )


def test_commands_that_run_at_once(netns: Namespace) -> None:
    """Ten processes of nfctl and ten of iptables started together leave twenty rules."""
    netns.python(play.load, play.EMPTY)
    children = [
        netns.popen([*NFCTL, "rule", "add", "INPUT", "-s", f"10.0.0.{number}"])
        for number in range(10)
    ]
    children += [
        netns.popen(["iptables-legacy", "-w", "-A", "INPUT", "-s", f"10.0.1.{number}"])
        for number in range(10)
    ]
    assert [child.wait(60) for child in children] == [0] * 20
    assert netns.save().count("-A INPUT -s 10.0.") == 20


# --- from Python -------------------------------------------------------------------------------


def raised(wait: float) -> tuple[str, float, bool]:
    """Try an edit; return the error's text, how long it took, and whether a timer is left."""
    before = signal.getsignal(signal.SIGALRM)
    start = time.monotonic()
    try:
        with nfctl.edit(wait=wait):
            return "", 0.0, False
    except Locked as error:
        left = signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0)
        changed = signal.getsignal(signal.SIGALRM) is not before
        return str(error), time.monotonic() - start, left or changed


@pytest.mark.parametrize("wait", [0, 0.2, -1, float("nan")])
def test_a_transaction_raises_locked(netns: Namespace, wait: float) -> None:
    """nfctl.edit raises Locked after its deadline, and leaves no timer or signal handler."""
    with holding(netns) as holder:
        text, took, left = netns.python(raised, wait)
        assert f"(process {holder.pid})" in text
        assert took < lock.DEFAULT_WAIT
        assert took >= (wait if wait > 0 else 0)
        assert not left
    assert netns.python(raised, wait) == ("", 0.0, False)


def from_a_thread(wait: float) -> list[str]:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(raised(wait)[0]))
    thread.start()
    thread.join()
    return found


def test_a_thread_waits_as_well(netns: Namespace) -> None:
    """Outside the main thread, where no signal comes, the deadline holds just the same."""
    with holding(netns) as holder:
        (text,) = netns.python(from_a_thread, 0.3)
        assert f"(process {holder.pid}) after 0.3 s" in text
        threading.Timer(0.5, holder.let_go).start()
        assert netns.python(from_a_thread, 10) == [""]


def with_an_alarm_of_its_own() -> tuple[list[int], str]:
    """Wait for the lock while the program's own timer runs; return what that did."""
    rung: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, _frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    text = raised(0.5)[0]
    return rung, text


def test_a_program_s_own_alarm_still_rings(netns: Namespace) -> None:
    """A timer that the program set itself is neither lost nor taken for the deadline."""
    with holding(netns):
        rung, text = netns.python(with_an_alarm_of_its_own)
        assert rung == [signal.SIGALRM]
        assert "after 0.5 s" in text


def test_no_one_holds_it(netns: Namespace, tmp_path: Path) -> None:
    """holder() names a process that holds the lock, and nobody where nobody does."""
    path = tmp_path / "lock"

    def holders() -> list[object]:
        os.environ["XTABLES_LOCKFILE"] = str(path)
        found: list[object] = [lock.holder()]
        with path.open("w") as file:
            found.append(lock.holder())
            fcntl.flock(file, fcntl.LOCK_EX)
            found.append((lock.holder() or (0,))[0] == os.getpid())
        return found

    assert netns.python(holders) == [None, None, True]


def test_errors_of_the_lock_file() -> None:
    """What keeps the file from being opened is not permitted or unsupported, both exit code 3."""
    assert (NotPermitted.exit_code, Unsupported.exit_code, Locked.exit_code) == (3, 3, 4)
