"""The journal: what it says, what waits in it, its bounds, its lock and its directory."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nfctl.control.journal import entries, home
from nfctl.control.journal.entries import Who
from nfctl.control.journal.state import RESTARTED, State
from nfctl.errors import BadInput, Locked, NotPermitted, Unsupported
from nfctl.kernel.process import Process
from tests.unit.journals import BOOT, FILES, TEXT, Clock, a_record, begin, dead, of_a_dead_one


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path, clock: Clock) -> State:
    return State(tmp_path / "state", now=lambda: 0.0, since_boot=clock, boot_id=BOOT)


# --- entries -----------------------------------------------------------------------------------


def test_an_entry_says_all_that_was_said(state: State) -> None:
    """What begin is told is what is read back, by another State, without a lock."""
    made = begin(state, sets="create a hash:ip\n", confirm=60, summary={"added": 1})
    entry = State(state.directory).entry(1)
    assert entry == made
    assert (entry.status, entry.action, entry.policy) == ("prepared", "apply", "web")
    assert entry.when == "1970-01-01T00:00:00Z"
    assert (entry.before_text(4), entry.before_text(6), entry.families) == (TEXT, "", [4, 6])
    assert (entry.sets, entry.change) == ("create a hash:ip\n", {"tables": []})
    assert (entry.confirm, entry.deadline, entry.boot_id) == (60, 1060.0, BOOT)
    assert (entry.files, entry.summary) == (FILES, {"added": 1})
    assert entry.who.uid == os.getuid()
    assert entry.who.pid == os.getpid() == entry.process.pid


def test_bytes_that_are_no_utf8_survive(state: State) -> None:
    """Names and comments in iptables-save text are bytes."""
    text = TEXT.replace("lo", "\udcff")
    begin(state, before={4: text}, policy="\udc80", sets="\udc81")
    entry = state.entry(1)
    assert (entry.before_text(4), entry.policy, entry.sets) == (text, "\udc80", "\udc81")


def test_an_entry_that_confirms_nothing_has_no_deadline(state: State) -> None:
    """Without a confirmation there is no deadline and nothing is pending."""
    entry = begin(state)
    assert (entry.confirm, entry.deadline, state.left(entry)) == (None, None, None)
    assert state.pending() is None


def test_numbers_go_on(state: State) -> None:
    """Numbers count up, and go on after the oldest entries are gone."""
    assert [begin(state).number for _ in range(12)] == list(range(1, 13))
    assert state.prune(keep=1) == list(range(11, 0, -1))
    assert begin(state).number == 13
    assert [entry.number for entry in state.entries()] == [12, 13]


def test_marks_add_up(state: State) -> None:
    """A mark changes the status and what it names; the rest stays, unknown facts are noted."""
    begun = begin(state)
    state.mark(1, "applied", guarded=["ssh"])
    state.mark(1, "rolled back", undone_by=2, reason="asked for", undoes=[7])
    entry = state.entry(1)
    assert (entry.status, entry.undone_by, entry.reason) == ("rolled back", 2, "asked for")
    assert (entry.undoes, entry.more) == ((7,), {"guarded": ["ssh"]})
    assert replace(entry, status="prepared", undone_by=None, reason="", undoes=(), more={}) == begun


def test_no_such_entry(state: State) -> None:
    """A number that is not there is bad input, and the hint names those that are."""
    with pytest.raises(BadInput) as error:
        state.entry(1)
    assert "empty" in error.value.hint
    begin(state)
    begin(state)
    with pytest.raises(BadInput) as error:
        state.mark(3, "applied")
    assert error.value.hint == "there are 1 to 2"


def test_reading_makes_nothing(state: State) -> None:
    """To look at a state that is not there is no reason to make one."""
    assert state.entries() == []
    assert state.pending() is None
    assert state.records() == []
    assert state.record("web") is None
    assert state.settings == {}
    assert not state.directory.exists()


def test_modes(state: State) -> None:
    """Everything is for its owner only, whatever the umask."""
    before = os.umask(0)
    try:
        state.put_record(a_record(), confirmed=True)
        begin(state)
        state.mark(1, "applied")
        state.set_setting("fail", "open")
    finally:
        os.umask(before)
    paths = [state.directory, *state.directory.rglob("*")]
    assert len(paths) > 12
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_who(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sudo's user and the SSH client are taken from the environment."""
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    who = Who.me()
    assert (who.sudo_user, who.ssh) == ("alice", "192.0.2.1 50000 192.0.2.2 22")
    assert Path(sys.argv[0]).name in who.command or "pytest" in who.command


# --- what waits for a confirmation ---------------------------------------------------------------


def test_unconfirmed_is_pending(state: State, clock: Clock) -> None:
    """An unconfirmed entry is pending until it is marked otherwise; its seconds run."""
    begin(state, confirm=60)
    state.mark(1, "unconfirmed")
    clock.now += 20
    pending = state.pending()
    assert pending is not None
    assert pending.number == 1
    assert state.left(pending) == 40
    clock.now += 100
    assert state.left(pending) == 0
    assert state.pending() is not None
    state.mark(1, "confirmed")
    assert state.pending() is None
    assert state.left(state.entry(1)) is None


def test_a_restart_ends_the_waiting(state: State, clock: Clock) -> None:
    """What was unconfirmed at a restart is gone with it, since nothing was persisted."""
    begin(state)
    state.mark(1, "applied")
    begin(state, confirm=60)
    state.mark(2, "unconfirmed")
    later = State(state.directory, since_boot=clock, boot_id="another")
    assert later.pending() is None
    assert [entry.number for entry in later.settle()] == [2]
    entry = later.entry(2)
    assert (entry.status, entry.reason) == ("rolled back", RESTARTED)
    assert later.entry(1).status == "applied"
    assert later.settle() == []


def test_killed_before_the_end(state: State) -> None:
    """A prepared entry of a process that is no more was interrupted; ours is not."""
    of_a_dead_one(state, begin(state))
    begin(state)
    assert [entry.number for entry in state.settle()] == [1]
    assert [entry.status for entry in state.entries()] == ["interrupted", "prepared"]


def test_a_process_id_that_was_used_again() -> None:
    """A process with the same id that began at another time is another one."""
    assert Process.me().is_alive()
    assert not dead().is_alive()
    assert Process.me()._replace(namespace=1).is_alive() is None


def test_killed_with_a_watchdog(state: State, clock: Clock) -> None:
    """What is to be confirmed stays pending until its deadline: the watchdog will undo it."""
    of_a_dead_one(state, begin(state, confirm=60))
    assert state.settle() == []
    assert state.pending() is not None
    clock.now += 61
    assert state.pending() is None
    assert [entry.status for entry in state.settle()] == ["interrupted"]


def test_prepared_at_a_restart(state: State, clock: Clock) -> None:
    """An entry prepared in an earlier boot was interrupted, whoever has its process id now."""
    begin(state, confirm=60)
    later = State(state.directory, since_boot=clock, boot_id="another")
    assert later.pending() is None
    # our own process would be taken for its own otherwise
    of_a_dead_one(later, later.entry(1))
    assert [entry.status for entry in later.settle()] == ["interrupted"]


# --- pruning -----------------------------------------------------------------------------------


def test_pruned_by_bytes(state: State) -> None:
    """The oldest go until the bytes fit; the latest stays even if it alone is too large."""
    for _ in range(4):
        begin(state, before={4: "x" * 10_000})
    assert state.prune(size=25_000) == [2, 1]
    assert state.prune(size=1) == [3]
    assert [entry.number for entry in state.entries()] == [4]


def test_what_waits_is_not_pruned(state: State) -> None:
    """The entry that is to be confirmed stays, because the watchdog will need it."""
    begin(state)
    begin(state, confirm=60)
    state.mark(2, "unconfirmed")
    begin(state)
    begin(state)
    assert state.prune(keep=1) == [3, 1]
    assert [entry.number for entry in state.entries()] == [2, 4]


def test_repairs_go_first(state: State) -> None:
    """What nfctl watch repairs all night takes no apply from the journal; it is bounded still."""
    begin(state)
    for _ in range(14):
        begin(state, action="repair")
    assert state.prune(keep=12) == [4, 3, 2]
    state.prune(keep=4)
    assert [entry.number for entry in state.entries()] == [12, 13, 14, 15]


def test_repairs_go_first_where_bytes_are_short(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repairs of a large policy, each with much to go back to, take no apply from the journal."""
    monkeypatch.setattr(entries, "_command", lambda: "pytest")  # its length counts, too
    begin(state)
    for _ in range(14):
        begin(state, action="repair", before={4: "x" * 10_000})
    assert state.prune(size=125_000) == [4, 3, 2]
    assert [entry.number for entry in state.entries()][:2] == [1, 5]


def test_beginning_prunes(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is bounded without anybody's asking."""
    monkeypatch.setattr(State.prune, "__defaults__", (3, 1 << 20))
    for _ in range(6):
        begin(state)
    assert [entry.number for entry in state.entries()] == [4, 5, 6]


# --- the lock ----------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from nfctl.control.journal.state import State
with State(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_lock_names_its_holder(state: State) -> None:
    """Who does not get the lock is told who holds it, and by what the lock goes."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, state.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Locked) as error, state.locked(0):
            pass
        holder.stdin.write("\n")
    assert error.value.exit_code == 4
    assert f"the lock of the journal {state.directory}/lock is still held by" in str(error.value)
    assert f"(process {holder.pid})" in str(error.value)
    with state.locked(0):
        pass


def test_the_lock_is_one_for_a_thread(state: State) -> None:
    """The thread that holds the lock may take it again; another thread may not."""
    said: list[BaseException | None] = []

    def other() -> None:
        try:
            with state.locked(0):
                said.append(None)
        except Locked as error:
            said.append(error)

    with state.locked(), state.locked():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [type(one) for one in said] == [Locked]
    with state.locked(0):
        pass


def test_the_lock_is_not_inherited(state: State) -> None:
    """A program that is started under the lock, or a child that is forked, does not keep it."""
    with state.locked():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)  # until the parent is done
            os._exit(0)
        fds = subprocess.run(
            [sys.executable, "-c", "import os; print(os.listdir('/proc/self/fd'))"],
            capture_output=True,
            text=True,
            check=True,
            close_fds=False,
        ).stdout
        lock = (state.directory / "lock").stat()
        held = [
            fd
            for fd in os.listdir("/proc/self/fd")
            if Path(f"/proc/self/fd/{fd}").exists()
            and os.path.samestat(lock, Path(f"/proc/self/fd/{fd}").stat())
        ]
        assert len(held) == 1
        assert f"'{held[0]}'" not in fds
    with state.locked(0):
        pass
    os.close(write)
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0


# --- directories -------------------------------------------------------------------------------


def test_a_directory_that_others_can_write_to(state: State) -> None:
    """Write bits for others are refused for every use, and the hint says what to do."""
    begin(state)
    for mode in (0o770, 0o702):
        state.directory.chmod(mode)
        for use in (state.ready, state.entries, state.records, lambda: begin(state)):
            with pytest.raises(Unsupported, match="can be written to by others") as error:
                use()
            assert error.value.hint == f"chmod 0700 {state.directory}"
    state.directory.chmod(0o700)
    (state.directory / "history").chmod(0o777)
    with pytest.raises(Unsupported, match="history can be written to by others"):
        state.ready()


def test_a_directory_that_is_a_link(tmp_path: Path) -> None:
    """A symbolic link in the directory's place is refused; one above it is followed."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Unsupported, match="is a symbolic link"):
        State(tmp_path / "link").ready()
    State(tmp_path / "link" / "state").ready()
    assert (tmp_path / "real" / "state" / "history").is_dir()


def test_a_directory_below_one_that_others_can_write_to(tmp_path: Path) -> None:
    """Who can write to a directory above could put another in its place; not if it is sticky."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    (tmp_path / "link").symlink_to(above)
    for directory in (above / "state", above / "deep" / "er", tmp_path / "link" / "state"):
        with pytest.raises(Unsupported, match="above, which others can write to"):
            State(directory).ready()
    assert list(above.iterdir()) == []
    above.chmod(0o1777)
    State(above / "state").ready()


def test_what_is_no_directory(tmp_path: Path) -> None:
    """A file where the directory should be, or above it, is an error and no traceback."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "file/state", "loop/state", "x" * 300):
        with pytest.raises(Unsupported):
            State(tmp_path / name).ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    """A directory of another user is refused, and so is one below another user's."""
    directory = tmp_path / "state"
    State(directory).ready()
    os.chown(directory, 1234, 1234)
    with pytest.raises(Unsupported, match="belongs to user 1234") as error:
        State(directory).entries()
    assert error.value.hint == f"chown root {directory}"
    with pytest.raises(Unsupported, match="which belongs to user 1234"):
        State(directory / "state").ready()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_the_privilege(tmp_path: Path) -> None:
    """Who is not root is told to be, and nothing else."""
    directory = tmp_path / "state"
    begin(State(directory))
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        os.setresgid(1234, 1234, 1234)
        os.setresuid(1234, 1234, 1234)
        try:
            State(directory).entries()
        except NotPermitted as error:
            os._exit(0 if error.hint == "run as root" else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


# --- which directory ---------------------------------------------------------------------------


def test_the_variable_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFCTL_STATE_DIR is taken wherever one is; a relative one is from here."""
    monkeypatch.setenv("NFCTL_STATE_DIR", "here")
    monkeypatch.chdir(tmp_path)
    assert State().directory == tmp_path / "here"


@pytest.mark.parametrize(
    ("first", "names", "expected"),
    [
        (True, ["ours"], "home"),
        (False, ["other", "ours"], "home/netns/ours"),
        (False, ["other"], "run/"),
        (False, None, "run/"),
    ],
)
def test_each_namespace_has_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: bool,
    names: list[str] | None,
    expected: str,
) -> None:
    """The machine's state, a named namespace's and a nameless one's are three directories."""
    monkeypatch.delenv("NFCTL_STATE_DIR", raising=False)
    monkeypatch.setattr(home, "HOME", Path("home"))
    monkeypatch.setattr(home, "PASSING", Path("run"))
    monkeypatch.setattr(home, "NAMED", tmp_path / "netns")
    monkeypatch.setattr(home, "_FIRST", tmp_path if first else tmp_path / "none")
    real = home._namespace

    def namespace(file: Path | str) -> tuple[int, int] | None:
        if file == "/proc/1/ns/net":
            return (0, 0)
        return real("/proc/self/ns/net") if Path(file).name == "ours" else real(file)

    monkeypatch.setattr(home, "_namespace", namespace)
    if names is not None:
        (tmp_path / "netns").mkdir()
        for name in names:
            (tmp_path / "netns" / name).touch()
    found = str(home.directory())
    if expected.endswith("/"):
        assert found.startswith(expected)
        assert found.removeprefix(expected).isdecimal()  # Linux 5.14 gives each a number
    else:
        assert found == expected
