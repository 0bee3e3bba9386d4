"""The safety net: an unconfirmed change is undone, whatever happens to who made it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.control.confirmation import watchdog
from nfctl.control.journal.state import State
from nfctl.kernel import lock
from nfctl.kernel.process import since_boot
from tests.kernel.confirming import AFTER, BEFORE, Change, Terminal, until
from tests.kernel.conftest import SLOWNESS
from tests.kernel.test_lock import LOCK, holding

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel


@pytest.fixture
def change(netns: Namespace, tmp_path: Path) -> Change:
    return Change(netns, tmp_path)


# --- the process ----------------------------------------------------------------------------------


def test_the_timer_fires_after_its_parent_and_its_terminal_are_gone(change: Change) -> None:
    """The apply's process group is killed and its terminal closed; the timer rolls back in time."""
    seconds = 2 * SLOWNESS
    with change.terminal(confirm=str(seconds)) as terminal:
        terminal.until("keep it?")
        with change.guardian() as guardian:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()
            terminal.hang_up()
            if change.state.left(change.state.entry(1)):  # on a machine that is quick enough
                assert change.is_after()
            guardian.wait()
    assert since_boot() >= (change.state.entry(1).deadline or 0)
    assert change.status() == "rolled back"
    assert change.state.entry(1).reason == f"not confirmed in {seconds} s"
    assert change.saved() == BEFORE


def test_it_has_nothing_of_its_parent(change: Change) -> None:
    """It shares no session, process group, terminal, file, lock or command line with the apply."""
    with change.terminal() as terminal:
        terminal.until("keep it?")
        with change.guardian() as guardian:
            _, parent, group, session, tty = guardian.stat()[:5]
            assert int(parent) != terminal.process.pid
            assert int(session) not in {terminal.process.pid, os.getsid(0)}
            assert int(group) == int(session) != guardian.pid
            assert tty == "0"
            files = guardian.files()
            assert {files.pop(number) for number in range(3)} == {"/dev/null"}
            own = {str(change.directory / "history/1" / name) for name in ("watchdog.log", "wake")}
            assert own <= set(files.values()) <= own | {f for f in files.values() if "socket" in f}
            assert Path(f"/proc/{guardian.pid}/cwd").readlink() == Path("/")
            assert b"apply" not in Path(f"/proc/{guardian.pid}/cmdline").read_bytes()
            assert int(guardian.status("SigIgn"), 16) & 1 << signal.SIGHUP - 1
            assert int(guardian.status("SigBlk"), 16) == 0
            # the applying process waits for a key: nobody has a lock
            with change.state.locked(0):
                pass
            assert change.netns.legacy("-w", "1", "-L", "-n").returncode == 0
            # what a terminal sends when it is closed
            guardian.send(signal.SIGHUP)
            change.expire()
            guardian.wait()
    assert change.saved() == BEFORE


def test_nobody_waits_for_it(change: Change) -> None:
    """A pipe is closed when the apply ends, though the watchdog goes on; the exit code is 0."""
    done = change.apply("--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "confirm with: nfctl confirm\n" in done.stdout
    assert change.status() == "unconfirmed"
    assert change.is_after()
    with change.guardian() as guardian:
        change.expire()
        guardian.wait()
    assert change.saved() == BEFORE
    assert not (change.directory / "history/1/wake").exists()


def test_sigterm_rolls_back_at_once(change: Change) -> None:
    """A watchdog that is told to end leaves no unconfirmed change behind."""
    change.apply()
    with change.guardian() as guardian:
        guardian.send(signal.SIGTERM)
        guardian.wait()
    assert change.saved() == BEFORE
    assert change.status() == "rolled back"
    assert "SIGTERM" in change.state.entry(1).reason


def test_what_was_counted_since_stays(change: Change) -> None:
    """Of a rule that stays, the rollback keeps what was counted between apply and rollback."""
    change.apply()
    assert change.netns.run(["ip", "link", "set", "lo", "up"]).returncode == 0
    ping = (
        "import socket; s = socket.socket(2, 2); [s.sendto(b'', ('127.0.0.1', 9)) for _ in '1234']"
    )
    assert change.netns.run(["python3", "-c", ping]).returncode == 0
    counted = re.search(r"\[(\d+):\d+\] -A INPUT -i lo", change.saved())
    assert counted is not None
    assert int(counted[1]) >= 7 + 4
    with change.guardian() as guardian:
        change.expire()
        guardian.wait()
    saved = change.saved()
    assert counted[0] in saved
    assert "[3:300] -A INPUT -p tcp -m tcp --dport 23" in saved


def test_an_apply_that_is_killed_in_the_middle(change: Change) -> None:
    """An apply killed between commit and journal is undone at the deadline by its watchdog."""
    code = """
import os, signal, sys
from nfctl.control.journal import state
from nfctl.cli import main
mark = state.State.mark
def fatal(self, number, status, **more):
    if status == "unconfirmed":
        os.kill(os.getpid(), signal.SIGKILL)
    return mark(self, number, status, **more)
state.State.mark = fatal
main()
"""
    words = change.words("apply", "-4", str(change.file), "--confirm", "600")
    line = [*words[: words.index("-m")], "-c", code, *words[words.index("-m") + 2 :]]
    assert change.netns.run(line).returncode == -signal.SIGKILL
    assert change.is_after()
    assert change.status() == "prepared"
    assert change.nfctl("confirm").returncode == 1
    assert change.nfctl("apply", "-4", str(change.file)).returncode == 4
    with change.guardian() as guardian:
        change.state.mark(1, "prepared", deadline=since_boot())
        guardian.wait()
    assert change.saved() == BEFORE
    assert change.status() == "rolled back"


# --- what is in its way ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tables", "journal"])
def test_a_lock_is_waited_for(change: Change, which: str) -> None:
    """While another program holds a lock nothing is undone; when it lets go all is."""
    change.apply()
    path = LOCK if which == "tables" else str(change.directory / "lock")
    with change.guardian() as guardian:
        if which == "tables":
            with holding(change.netns) as holder:
                change.expire()
                until(lambda: is_waiting(guardian.pid))
                assert change.is_after()
                holder.let_go()
        else:
            change.state.mark(1, "unconfirmed", deadline=since_boot() + 0.2)
            with holding(change.netns, path=path) as holder:
                until(lambda: is_waiting(guardian.pid))
                assert change.is_after()
                holder.let_go()
        guardian.wait()
    assert change.saved() == BEFORE
    assert change.status() == "rolled back"


def is_waiting(pid: int) -> bool:
    """Whether a process waits for a lock: proc_locks(5)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any(words[1:3] == ["->", "FLOCK"] and words[5] == str(pid)
               for words in map(str.split, lines) if len(words) > 5)  # fmt: skip


def test_a_journal_that_is_gone(change: Change) -> None:
    """Where somebody removed the journal the whole tables of before are restored, counters too.

    A table that was brought to life since is empty then.
    """
    change.apply()
    assert change.netns.legacy("-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE").returncode == 0
    shutil.rmtree(change.directory)
    with change.guardian() as guardian:
        guardian.send(signal.SIGTERM)
        guardian.wait()
    assert change.netns.save(4, "-c", "-t", "filter") == BEFORE
    assert "MASQUERADE" not in change.saved()


def test_a_full_disk(netns: Namespace, tmp_path: Path) -> None:
    """Where the journal has no room any more the change is undone all the same."""
    assert netns.run(["mkdir", "/run/state"]).returncode == 0
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", "/run/state"]
    assert netns.run(mount).returncode == 0
    change = Change(netns, tmp_path)
    change.directory = Path("/run/state")
    assert change.apply().returncode == 0
    netns.run(["dd", "if=/dev/zero", "of=/run/state/full", "bs=4k"])
    with change.guardian() as guardian:
        guardian.send(signal.SIGTERM)
        until(lambda: change.saved() == BEFORE)
        # a state in another mount namespace, as its processes see it
        state = State(Path(f"/proc/{guardian.pid}/root/run/state"))
        assert state.entry(1).status == "unconfirmed"
        assert netns.run(["rm", "/run/state/full"]).returncode == 0
        assert watchdog.wake(state, 1)
        guardian.wait()
    assert change.nfctl("confirm").returncode == 5


# --- the prompt -----------------------------------------------------------------------------------


def test_yes(change: Change) -> None:
    """The key y keeps the change, ends the watchdog, and leaves the terminal as it was."""
    with change.terminal() as terminal:
        assert re.search(r"keep it\? \[y/N\] (600|59\d) s", terminal.until("keep it?") + " 600 s")
        with change.guardian() as guardian:
            terminal.type("y")
            assert terminal.wait() == 0
            guardian.wait()
        assert "confirmed: history entry 1" in terminal.seen
        import termios

        assert termios.tcgetattr(terminal.slave) == terminal.before
    assert change.status() == "confirmed"
    assert change.is_after()
    assert change.state.record("default") == change.state.record("default", confirmed=True)


@pytest.mark.parametrize("key", ["n", "N", "\r", "\x03", "\x04"], ids=repr)
def test_no(change: Change, key: str) -> None:
    """n, return, Ctrl-C and Ctrl-D undo the change at once, with exit code 5."""
    with change.terminal() as terminal:
        terminal.until("keep it?")
        with change.guardian() as guardian:
            terminal.type(key)
            assert terminal.wait() == 5
            guardian.wait()
        assert "rolled back" in terminal.seen
        assert "Traceback" not in terminal.seen
    assert change.saved() == BEFORE
    assert change.status() == "rolled back"


def test_no_answer(change: Change) -> None:
    """When the time is over the watchdog undoes the change; the apply says so: exit code 5."""
    with change.terminal(confirm="1") as terminal:
        assert terminal.wait() == 5
        assert "not confirmed in 1 s" in terminal.seen
    assert change.saved() == BEFORE
    assert change.status() == "rolled back"


def test_what_was_typed_before_is_no_answer(change: Change) -> None:
    """A y from before the change says nothing about it."""
    with change.terminal() as terminal:
        terminal.type("yyy\n")
        terminal.until("keep it?")
        assert change.status() == "unconfirmed"
        terminal.type("n")
        assert terminal.wait() == 5
    assert change.saved() == BEFORE


def test_a_prompt_in_the_background(change: Change) -> None:
    """An apply that may not read the terminal does not stop, but says how it is confirmed."""
    line = " ".join(change.words("apply", "-4", str(change.file), "--confirm", "600"))
    with Terminal(change.netns, ["bash", "-c", f"set -m; {line} & wait $!"]) as terminal:
        terminal.until("confirm with: nfctl confirm")
        assert terminal.wait() == 0
        assert "keep it?" not in terminal.seen
    assert change.nfctl("confirm").returncode == 0


# --- nfctl confirm --------------------------------------------------------------------------------


def test_confirmed_by_another_process(change: Change) -> None:
    """The command keeps the change, also of an apply that still asks; a second one has none."""
    with change.terminal() as terminal:
        terminal.until("keep it?")
        with change.guardian() as guardian:
            done = change.nfctl("confirm")
            assert (done.returncode, done.stderr) == (0, "")
            assert "confirmed: history entry 1" in done.stdout
            guardian.wait()
        assert terminal.wait() == 0
    assert change.is_after()
    again = change.nfctl("confirm")
    assert again.returncode == 1
    assert "no change waits" in again.stderr
    assert change.nfctl("confirm", "1").returncode == 0
    assert change.nfctl("confirm", "9").returncode == 2


def test_rolled_back_by_another_process(change: Change) -> None:
    """A rollback while the apply asks ends its watchdog, and the apply with exit code 5."""
    with change.terminal() as terminal:
        terminal.until("keep it?")
        with change.guardian() as guardian:
            assert change.nfctl("rollback").returncode == 0
            guardian.wait()
        assert terminal.wait() == 5
    assert change.saved() == BEFORE
    assert len(change.state.entries()) == 2


def test_confirmed_too_late(change: Change) -> None:
    """After the rollback, nfctl confirm says why it is too late: exit code 5."""
    change.apply()
    with change.guardian() as guardian:
        change.expire()
        guardian.wait()
    for words in (["confirm"], ["confirm", "1"]):
        done = change.nfctl(*words)
        assert done.returncode == 5
        assert "too late: history entry 1 was rolled back: not confirmed in 600 s" in done.stderr
    assert change.saved() == BEFORE


def test_the_document(change: Change) -> None:
    """--json prints the entry that was confirmed."""
    change.apply()
    done = change.nfctl("confirm", "--json")
    document = json.loads(done.stdout)
    assert (document["number"], document["status"], document["confirm"]) == (1, "confirmed", 600)


def test_nothing_else_while_one_waits(change: Change) -> None:
    """Another apply is refused with exit code 4 until the first is confirmed or undone."""
    change.apply()
    change.file.write_text(AFTER.replace("--dport 22", "--dport 2222"))
    refused = change.nfctl("apply", "-4", str(change.file))
    assert refused.returncode == 4
    assert "nfctl confirm keeps it, nfctl rollback undoes it" in refused.stderr
    assert change.is_after()
    assert change.nfctl("confirm").returncode == 0
    assert change.nfctl("apply", "-4", str(change.file)).returncode == 0
    assert "--dport 2222" in change.netns.save()


# --- where it cannot stand ------------------------------------------------------------------------


def test_without_a_watchdog_nothing_is_changed(change: Change) -> None:
    """Where no watchdog can be started the apply is refused (exit 3), before anything is done."""
    code = "import sys; sys.executable = '/bin/false'; from nfctl.cli import main; main()"
    words = change.words("apply", "-4", str(change.file), "--confirm", "600")
    at = words.index("-m")
    done = change.netns.run([*words[:at], "-c", code, *words[at + 2 :]])
    assert done.returncode == 3
    assert "the watchdog could not be started, so nothing was changed" in done.stderr
    assert change.saved() == BEFORE
    assert change.status() == "failed"
    assert change.state.record("default") is None


def test_an_output_that_is_full(change: Change) -> None:
    """What is done is no failure, with an exit code that says so, where nobody can be told."""
    for words in (
        ("apply", "-4", str(change.file), "--confirm", "600"),
        ("confirm",),
        ("rollback",),
    ):
        line = shlex.join(change.words(*words))
        done = change.netns.run(["sh", "-c", f"{line} > /dev/full"])
        assert done.returncode == 0, (words, done.stderr)
        assert "cannot be told" in done.stderr
    assert change.status() == "rolled back"


# --- systemd --------------------------------------------------------------------------------------


# Does what systemd-run does for a unit of Type=notify: another network namespace, no environment
# but what it is told, and an end when the unit has said that it is ready.
SYSTEMD_RUN = """\
#!{python}
import os, socket, subprocess, sys
words = sys.argv[1 : sys.argv.index("--")]
command = sys.argv[sys.argv.index("--") + 1 :]
settings = [word.removeprefix("--setenv=") for word in words if word.startswith("--setenv=")]
environment = dict(setting.split("=", 1) for setting in settings)
ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
ready.bind("/run/notify")
environment["NOTIFY_SOCKET"] = "/run/notify"
null = subprocess.DEVNULL
subprocess.Popen(["unshare", "--net", "--", *command], env=environment, cwd="/", stdin=null,
                 stdout=null, stderr=null, start_new_session=True)
ready.settimeout(60)
assert "READY=1" in ready.recv(4096).decode().splitlines()
open("/run/words", "w").write("\\n".join(words))
"""


def test_a_service_manager_starts_it(change: Change, tmp_path: Path) -> None:
    """A watchdog that systemd-run starts finds the network namespace, and says when it stands."""
    fake = tmp_path / "bin" / "systemd-run"
    fake.parent.mkdir()
    fake.write_text(SYSTEMD_RUN.format(python=sys.executable))
    fake.chmod(0o755)
    assert change.netns.run(["mkdir", "-p", "/run/systemd/system"]).returncode == 0
    words = change.words("apply", "-4", str(change.file), "--confirm", "600")
    done = change.netns.run(["env", f"PATH={fake.parent}:{os.environ['PATH']}", *words])
    assert (done.returncode, done.stderr) == (0, "")
    assert "--unit=nfctl-confirm-1-" in change.netns.run(["cat", "/run/words"]).stdout
    assert change.is_after()
    with change.guardian() as guardian:
        assert "--detach" not in Path(f"/proc/{guardian.pid}/cmdline").read_text()
        change.expire()
        guardian.wait()
    assert change.saved() == BEFORE


def test_a_unit_of_systemd(netns: Namespace, tmp_path: Path) -> None:
    """Under systemd it is a transient unit, which comes back when it is killed, and rolls back."""
    if not Path("/run/systemd/system").is_dir():
        pytest.skip("needs systemd as the init process: vagrant/vm test has it")
    change = Change(netns, tmp_path)
    lock_file = str(tmp_path / "lock")
    Path(lock_file).touch(0o600)

    def unit(*words: str) -> str:
        import subprocess

        name = watchdog.unit_name(change.directory, 1)
        command = ["systemctl", *words, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def apply() -> str:
        from nfctl.control.apply import Options
        from nfctl.control.apply import apply as apply_policy
        from nfctl.policy import reading

        os.environ |= {"NFCTL_STATE_DIR": str(change.directory), "XTABLES_LOCKFILE": lock_file}
        assert lock.path() == lock_file
        wanted = reading.read(None, v4=str(change.file))
        options = Options(confirm=600, guard_ssh=False)
        how: list[str] = []
        arm = watchdog.arm

        def noted(*words: Any) -> watchdog.Armed:
            armed = arm(*words)
            how.append(armed.how)
            return armed

        watchdog.arm = noted  # type: ignore[assignment]
        apply_policy(wanted, state=change.state, options=options)
        return how[0]

    assert netns._machine.wire(apply) == "systemd"
    assert change.is_after()
    assert unit("is-active") == "active"
    first = unit("show", "--value", "-p", "MainPID")
    os.kill(int(first), signal.SIGKILL)
    until(lambda: unit("is-active") == "active"
          and unit("show", "--value", "-p", "MainPID") not in {first, "0"})  # fmt: skip
    with change.guardian() as guardian:
        change.expire()
        guardian.wait()
    assert change.saved() == BEFORE
