"""The watchdog's decisions, its command lines, and the confirmation; with a clock of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nfctl
from nfctl.control.confirmation import vigil, watchdog
from nfctl.control.confirmation.vigil import Vigil
from nfctl.control.journal import home
from nfctl.control.journal.records import Record
from nfctl.control.journal.state import State
from nfctl.errors import AnswerNo, BadInput, Locked, RolledBack, Unsupported
from nfctl.kernel import process
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.journal.entries import Entry

SECONDS = 60.0
RULES = WantedTable({"INPUT": WantedChain([WantedRule("-i lo -j ACCEPT")], "DROP")})
RECORD = Record.of(Wanted("host", {4: {"filter": RULES}}), exclusive=False)


class World:
    """A state with an entry that waits, a clock, and what happens at which time.

    Waiting makes the clock go on; ``at`` has a function called when it comes to a time, or past.
    """

    def __init__(self, directory: Path) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.plan: list[tuple[float, Callable[[], object]]] = []
        self.undone: list[tuple[int, str, float]] = []
        self.restored: list[float] = []
        self.said: list[str] = []
        self.problems: list[Exception] = []
        self.state = State(directory, since_boot=lambda: self.now)
        self.entry = self.begin()
        self.vigil = Vigil(
            self.state, self.entry.number, self.now + SECONDS, undo=self.undo,
            restore=lambda: self.restored.append(self.now), clock=lambda: self.now,
            wait=self.wait, log=self.said.append,
        )  # fmt: skip

    def begin(self, status: str = "unconfirmed") -> Entry:
        with self.state.locked():
            self.state.put_record(RECORD, confirmed=False)
            entry = self.state.begin(
                policy=RECORD.name, action="apply", change={}, before={4: ""}, confirm=SECONDS
            )
            return entry if status == "prepared" else self.state.mark(entry.number, status)

    def at(self, seconds: float, action: Callable[[], object]) -> None:
        self.plan.append((1000 + seconds, action))

    def wait(self, _descriptor: int, seconds: float) -> None:
        assert seconds > 0
        self.waits.append(seconds)
        self.now += seconds
        due = [action for when, action in self.plan if when <= self.now]
        self.plan = [(when, action) for when, action in self.plan if when > self.now]
        for action in due:
            action()

    def undo(self, state: State, number: int, *, wait: float, why: str) -> None:
        assert wait > 0
        assert state is self.state
        if self.problems:
            raise self.problems.pop(0)
        self.undone.append((number, why, self.now - 1000))
        state.mark(number, "rolled back", reason=why)

    def status(self) -> str:
        return self.state.entry(self.entry.number).status

    def confirm(self) -> Entry:
        # another process: its State is another one
        return watchdog.confirm(State(self.state.directory, since_boot=lambda: self.now))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "state")


@pytest.fixture
def _full_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the journal take no mark before the clock says 1500."""
    mark = world.state.mark

    def full(number: int, status: str, **more: Any) -> Entry:
        if world.now < 1500:
            msg = "the disk is full"
            raise Unsupported(msg)
        return mark(number, status, **more)

    monkeypatch.setattr(world.state, "mark", full)


# --- deciding -----------------------------------------------------------------------------------


def test_it_rolls_back_at_the_deadline(world: World) -> None:
    """At the deadline, neither earlier nor later, the change is undone once, and says why."""
    assert world.vigil.keep() == "rolled back"
    assert world.undone == [(world.entry.number, "not confirmed in 60 s", SECONDS)]
    assert world.status() == "rolled back"


def test_a_confirmation_ends_it(world: World) -> None:
    """What is confirmed in time is left alone, and the policy's record is the confirmed one."""
    world.at(59.5, world.confirm)
    assert world.vigil.keep() == "confirmed"
    assert world.undone == []
    assert world.status() == "confirmed"
    assert world.state.record(RECORD.name, confirmed=True) == world.state.record(RECORD.name)


@pytest.mark.parametrize("status", ["confirmed", "rolled back", "failed"])
def test_it_ends_when_others_decide(world: World, status: str) -> None:
    """Whoever decides otherwise ends the waiting within a second, and nothing is undone."""
    world.at(7, lambda: world.state.mark(world.entry.number, status))
    world.vigil.keep()
    assert world.undone == []
    assert world.now - 1000 <= 8


def test_it_may_be_disarmed(world: World) -> None:
    """An apply that failed ends its watchdog at once; nothing is undone."""
    world.at(7, watchdog.Armed("process", world.state, world.entry.number).disarm)
    assert world.vigil.keep() == "ended"
    assert world.undone == []
    assert world.now - 1000 <= 8


def test_a_word_wakes_it(world: World) -> None:
    """With the real waiting, a confirmation ends a long wait through the FIFO."""
    waited: list[bool] = []

    def wait(descriptor: int, _seconds: float) -> None:
        waited.append(True)
        world.confirm()
        vigil._wait(descriptor, 3600)  # it would hang if nothing were to be read

    watching = Vigil(
        world.state, world.entry.number, world.now + SECONDS, undo=world.undo,
        restore=pytest.fail, clock=lambda: world.now, wait=wait,
    )  # fmt: skip
    assert watching.keep() == "confirmed"
    assert waited == [True]
    world.vigil.close()
    watching.close()
    assert not watchdog.wake(world.state, world.entry.number)


def test_the_entry_has_the_deadline(world: World) -> None:
    """A deadline that the entry is given later is the one that counts."""
    world.at(5, lambda: world.state.mark(world.entry.number, "unconfirmed", deadline=1070.0))
    assert world.vigil.keep() == "rolled back"
    assert world.undone[0][2] == pytest.approx(70)


def test_all_modules_are_loaded_beforehand() -> None:
    """What undoes the change depends on no file once it waits: modules in packages, too."""
    code = (
        "import sys; from nfctl.control.confirmation.lastresort import preload; "
        "preload(lambda line: None); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    top = Path(nfctl.__file__).parent
    files = [
        file for room in ("ruleset", "kernel", "control") for file in (top / room).rglob("*.py")
    ]
    names = {".".join(file.relative_to(top.parent).with_suffix("").parts) for file in files}
    needed = {name.removesuffix(".__init__") for name in names}
    assert needed - set(done.stdout.split()) == set()


def test_a_suspend_counts(world: World) -> None:
    """A machine that sleeps past the deadline rolls back within a second of its waking."""
    world.at(10, lambda: setattr(world, "now", 1000 + 3600))
    assert world.vigil.keep() == "rolled back"
    assert world.undone[0][2] <= 3601


def test_an_apply_that_was_killed(tmp_path: Path) -> None:
    """An entry that is only prepared at the deadline is undone: something may be committed."""
    world = World(tmp_path / "state")
    world.state.mark(world.entry.number, "prepared")
    assert world.vigil.keep() == "rolled back"
    assert len(world.undone) == 1


@pytest.mark.parametrize("followed", [False, True])
def test_an_apply_that_was_interrupted(world: World, followed: bool) -> None:
    """What was settled as interrupted is undone, unless somebody applied something since."""
    world.state.mark(world.entry.number, "interrupted")
    if followed:
        world.begin("applied")
    assert world.vigil.keep() == ("ended" if followed else "rolled back")
    assert len(world.undone) == (not followed)


def test_sigterm_makes_it_roll_back_at_once(world: World) -> None:
    """A watchdog that is told to end undoes the change first."""
    world.at(3, lambda: setattr(world.vigil, "hurried", "told to end"))
    assert world.vigil.keep() == "rolled back"
    assert world.undone == [(world.entry.number, "told to end", 3.0)]


def test_it_may_be_hurried(world: World) -> None:
    """An apply that could not roll back itself has its watchdog do so, before the deadline."""
    world.at(3, lambda: watchdog.hurry(world.state, world.entry.number))
    assert world.vigil.keep() == "rolled back"
    assert world.undone[0][2] <= 4


# --- the last moment ------------------------------------------------------------------------------


def test_a_confirmation_at_the_last_moment(world: World) -> None:
    """A confirmation at the very deadline has one outcome, which all agree on."""
    for _ in range(40):
        number = world.begin().number
        barrier = threading.Barrier(2)
        said: list[str] = []

        def wait(_descriptor: int, seconds: float, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(30)
            world.now += seconds

        def confirm(
            number: int = number,
            barrier: threading.Barrier = barrier,
            said: list[str] = said,
        ) -> None:
            other = State(world.state.directory, since_boot=lambda: world.now)
            barrier.wait(30)
            try:
                said.append(watchdog.confirm(other, number).status)
            except RolledBack:
                said.append("rolled back")

        world.state.mark(number, "unconfirmed", deadline=world.now + 0.1)
        watching = Vigil(
            world.state, number, world.now, undo=world.undo, restore=pytest.fail,
            clock=lambda: world.now, wait=wait,
        )  # fmt: skip
        thread = threading.Thread(target=confirm)
        thread.start()
        outcome = watching.keep()
        thread.join(30)
        watching.close()
        assert said == [outcome] == [world.state.entry(number).status]
        assert (number in [done[0] for done in world.undone]) == (outcome == "rolled back")


def test_confirmed_while_it_waits_for_a_lock(world: World) -> None:
    """Past the deadline, as long as nothing is undone, a confirmation is still good."""
    world.problems = [Locked("the xtables lock is held")] * 5
    world.at(61, world.confirm)
    assert world.vigil.keep() == "confirmed"
    assert world.undone == []


# --- not giving up ------------------------------------------------------------------------------


def test_locks_are_waited_for(world: World) -> None:
    """However often a lock is not to be had, the change is undone in the end, by the journal."""
    world.problems = [Locked("the xtables lock is held")] * 200
    assert world.vigil.keep() == "rolled back"
    assert len(world.undone) == 1
    assert world.restored == []
    assert max(world.waits) <= 30
    assert sum("the xtables lock is held" in line for line in world.said) == 1


@pytest.mark.parametrize(
    "problem", [Unsupported("the disk is full"), OSError("input/output error"), KeyError("bug")]
)
def test_without_a_journal_the_snapshot_is_restored(world: World, problem: Exception) -> None:
    """Where the undoing fails for another reason than a lock, the tables are restored whole."""
    world.problems = [problem] * 10
    assert world.vigil.keep() == "rolled back"
    assert world.undone == []
    assert len(world.restored) == 1
    assert world.restored[0] - 1000 - SECONDS < 5
    assert world.status() == "rolled back"
    assert any(str(problem) in line for line in world.said)


@pytest.mark.usefixtures("_full_disk")
def test_the_journal_is_told_later(world: World) -> None:
    """What was restored without the journal is noted there as soon as that has room again."""
    world.problems = [Unsupported("the disk is full")] * 10
    assert world.vigil.keep() == "rolled back"
    assert len(world.restored) == 1
    assert 1500 <= world.now < 1550
    with pytest.raises(RolledBack, match="without the journal"):
        world.confirm()


@pytest.mark.usefixtures("_full_disk")
def test_what_is_undone_is_undone_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when all is put back costs the journal, and not what others do since."""

    def undo(_state: State, number: int, *, wait: float, why: str) -> None:
        world.undone.append((number, why, wait))

    monkeypatch.setattr(world.vigil, "_undo", undo)
    assert world.vigil.keep() == "rolled back"
    assert len(world.undone) == 1
    assert world.restored == []
    assert 1500 <= world.now < 1550
    assert world.state.entry(world.entry.number).reason == "not confirmed in 60 s"


def test_a_state_that_is_gone(world: World, tmp_path: Path) -> None:
    """Where the whole journal is removed meanwhile, the snapshot is restored all the same."""
    world.at(5, lambda: world.state.directory.rename(tmp_path / "elsewhere"))
    assert world.vigil.keep() == "rolled back"
    assert len(world.restored) == 1


def test_it_says_when_it_gives_up(world: World) -> None:
    """It tries for a day, and then says so."""

    def restore() -> None:
        raise Locked("held")

    world.problems = [Unsupported("no")] * 10000
    world.vigil._restore = restore
    assert world.vigil.keep() == "gave up"
    assert world.now - 1000 > 24 * 3600
    assert "gave up" in world.said[-1]


def test_a_stopped_apply_is_made_to_go_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apply that was stopped (Ctrl-Z) with the locks in its hands is continued."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *words: sent.append(words))
    world.problems = [Locked("held")]
    world.vigil.keep()
    assert sent == [(os.getpid(), signal.SIGCONT)]


# --- confirming -----------------------------------------------------------------------------------


def test_nothing_to_confirm(tmp_path: Path) -> None:
    """Where no change waits the answer is no, in a state that is empty and in one that is not."""
    state = State(tmp_path / "state")
    with pytest.raises(AnswerNo, match="no change waits"):
        watchdog.confirm(state)
    with pytest.raises(BadInput):
        watchdog.confirm(state, 7)
    with state.locked():
        entry = state.begin(policy=RECORD.name, action="apply", change={}, before={})
        state.mark(entry.number, "applied")
    with pytest.raises(AnswerNo, match="no change waits"):
        watchdog.confirm(state)
    with pytest.raises(AnswerNo, match="it is applied"):
        watchdog.confirm(state, entry.number)


def test_too_late(world: World) -> None:
    """After the rollback the answer is exit code 5, by number, and without one too."""
    number = world.entry.number
    world.vigil.keep()
    for asked in (None, number):
        with pytest.raises(RolledBack, match=r"too late.*not confirmed in 60 s") as caught:
            watchdog.confirm(world.state, asked)
        assert caught.value.exit_code == 5
    # the rollback's own entry is the latest one then
    with world.state.locked():
        entry = world.state.begin(
            policy=RECORD.name, action="rollback", change={}, before={}, undoes=[number]
        )
        world.state.mark(entry.number, "applied")
    with pytest.raises(RolledBack, match=f"too late: history entry {number} "):
        watchdog.confirm(world.state)


def test_confirmed_twice(world: World) -> None:
    """Who confirms an entry that is confirmed has nothing to do."""
    assert world.confirm().status == "confirmed"
    assert watchdog.confirm(world.state, world.entry.number).status == "confirmed"


def test_a_confirmation_that_cannot_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the record cannot become the confirmed one, nothing is confirmed: it is undone."""

    def full(_state: State, _name: str) -> None:
        msg = "the disk is full"
        raise Unsupported(msg)

    monkeypatch.setattr(State, "confirm_record", full)
    with pytest.raises(Unsupported):
        world.confirm()
    assert world.status() == "unconfirmed"
    assert world.vigil.keep() == "rolled back"


def test_after_a_restart_nothing_waits(world: World) -> None:
    """What an earlier boot left unconfirmed is not pending and cannot be confirmed."""
    after = State(world.state.directory, boot_id="another", since_boot=lambda: 5.0)
    assert after.pending() is None
    with pytest.raises(AnswerNo, match="started anew"):
        watchdog.confirm(after, world.entry.number)
    with pytest.raises(AnswerNo, match="started anew"):
        watchdog.confirm(after)
    after.settle()
    with pytest.raises(RolledBack, match="restarted"):
        watchdog.confirm(after)


# --- how it is started ----------------------------------------------------------------------------


def test_what_systemd_is_told() -> None:
    """The unit's name, its type, where it ends up, its environment, and a command kept verbatim."""
    command = [
        "/opt/py $thon",
        "-P",
        "-m",
        "nfctl.control.confirmation.watchdog",
        "/var/lib/nfctl",
        "7",
    ]
    words = watchdog.systemd_command(
        Path("/var/lib/nfctl"), 7, command, [("LANG", "C"), ("A", "b c")]
    )
    options, separator = words[: words.index("--")], words.index("--")
    assert words[separator + 1 :] == ["/opt/py $$thon", *command[1:]]
    assert {"--collect", "--unit=nfctl-confirm-7", "--service-type=notify"} <= set(options)
    assert [word for word in options if word.startswith("--setenv")] == [
        "--setenv=LANG=C",
        "--setenv=A=b c",
    ]
    assert "--property=Restart=on-abnormal" in options  # killed, it comes back
    assert not {"--scope", "--no-block", "--user", "--pty", "--wait"} & set(options)


def test_units_of_other_states_have_other_names() -> None:
    """Entries of several states have the same numbers; their units do not have the same name."""
    names = {
        watchdog.unit_name(directory, 7)
        for directory in (home.HOME, home.HOME / "netns/blue", home.HOME / "netns/red")
    }
    assert len(names) == 3
    assert "nfctl-confirm-7" in names
    assert all(name.startswith("nfctl-confirm-7") for name in names)


def fake_systemd_run(directory: Path, script: str) -> None:
    (directory / "systemd-run").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "systemd-run").chmod(0o755)


def test_systemd_starts_it(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd runs its unit is all that is started; it is told where it has to be."""
    fake_systemd_run(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/words')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(watchdog, "_by_process", pytest.fail)
    armed = watchdog.arm(world.state, world.entry.number, 60, runtime=tmp_path)
    assert armed.how == "systemd"
    words = (tmp_path / "words").read_text().splitlines()
    command = words[words.index("--") + 1 :]
    assert command[1:4] == ["-P", "-m", "nfctl.control.confirmation.watchdog"]
    assert command[4:6] == [str(world.state.directory), str(world.entry.number)]
    assert float(command[6]) == pytest.approx(process.since_boot() + 60, abs=30)
    state = world.state.directory
    status = state.stat()
    assert f"{status.st_dev}:{status.st_ino}:{state}" in command


def test_a_systemd_run_that_others_may_write(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others may put into a directory of PATH is not started: a process it is then."""
    started: list[list[str]] = []
    monkeypatch.setattr(watchdog, "_by_process", started.append)
    fake_systemd_run(tmp_path, f": > {tmp_path}/started")
    tmp_path.chmod(0o777)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert watchdog.arm(world.state, world.entry.number, 60, runtime=tmp_path).how == "process"
    assert len(started) == 1
    assert not (tmp_path / "started").exists()


def test_a_systemd_run_that_starts_nothing(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the unit is said to stand, and does not, a process it is."""
    started: list[list[str]] = []
    monkeypatch.setattr(watchdog, "_by_process", started.append)
    fake_systemd_run(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    world.vigil.close()
    assert watchdog.arm(world.state, world.entry.number, 60, runtime=tmp_path).how == "process"
    assert len(started) == 1


def test_where_modules_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog finds nfctl where it is, and looks into no directory that others may write."""
    closed, opened = tmp_path / "closed", tmp_path / "open"
    closed.mkdir(0o755)
    opened.mkdir()
    opened.chmod(0o1777)
    monkeypatch.setattr("sys.path", [str(opened), str(closed), "", str(tmp_path / "missing")])
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    environment = dict(watchdog._environment())
    home_of_nfctl = str(Path(nfctl.__file__).parents[1])
    assert environment["PYTHONPATH"].split(":") == [str(closed), home_of_nfctl]
    assert "LD_PRELOAD" not in environment


def test_without_systemd_a_process_is_started(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where systemd does not run, or cannot start a unit, it is a process."""
    started: list[list[str]] = []
    monkeypatch.setattr(watchdog, "_by_process", started.append)
    fake_systemd_run(tmp_path, "echo no bus >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for runtime in (tmp_path, tmp_path / "missing"):
        armed = watchdog.arm(world.state, world.entry.number, 60, runtime=runtime)
        assert armed.how == "process"
    assert len(started) == 2


@pytest.mark.parametrize(
    ("python", "said"), [("/bin/false", "it gave no answer"), ("", "no interpreter")]
)
def test_a_watchdog_that_cannot_be_started(
    world: World, monkeypatch: pytest.MonkeyPatch, python: str, said: str, tmp_path: Path
) -> None:
    """An interpreter that does not work is known while nothing was changed: exit code 3."""
    monkeypatch.setattr("sys.executable", python)
    with pytest.raises(Unsupported, match=said):
        watchdog.arm(world.state, world.entry.number, 60, runtime=tmp_path / "missing")


def test_it_says_why_it_cannot_stand(world: World, tmp_path: Path) -> None:
    """An entry that is not there is named by who wanted to start its watchdog."""
    with pytest.raises(Unsupported, match="the journal has no entry 99"):
        watchdog.arm(world.state, 99, 60, runtime=tmp_path / "missing")


def test_another_mount_namespace_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that sees another file under a name than its starter did does not stand."""
    monkeypatch.setattr(os, "chdir", lambda _path: None)
    monkeypatch.setattr(os, "umask", lambda _mask: None)
    file = world.state.directory / "lock"
    words = [str(world.state.directory), "1", "1", "--same", f"0:0:{file}"]
    with pytest.raises(SystemExit, match="another file here"):
        vigil.main(words)
