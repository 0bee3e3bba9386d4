"""The unit that restores at boot, what is asked of systemd, and whose code it may start."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.control import persist
from nfctl.control.change import Change
from nfctl.control.journal.state import State
from nfctl.control.persist import closed as persist_closed
from nfctl.control.persist import status as persist_status
from nfctl.control.persist import unit as persist_unit
from nfctl.control.persist.unit import Setup, Systemd
from nfctl.errors import AnswerNo, NotPermitted, Unsupported
from nfctl.inspect import trust
from nfctl.ruleset import script
from tests.unit.journals import a_record

if TYPE_CHECKING:
    from collections.abc import Sequence

SETUP = Setup(
    "/opt/nfctl/venv/bin/python",
    ("/usr/lib/python3.11", "/opt/nfctl/venv/lib/python3.11/site-packages"),
    "/var/lib/nfctl",
    (),
    ("/usr/sbin/iptables-legacy", "/usr/sbin/ip6tables-legacy"),
)


def settings(text: str) -> dict[str, dict[str, list[str]]]:
    """Read a unit as far as systemd.syntax(7) is simple."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line[:1] == "[":
            section = found.setdefault(line.strip("[]"), {})
        elif line and line[:1] != "#":
            name, _, value = line.partition("=")
            section.setdefault(name, []).append(value)
    return found


# --- the unit -------------------------------------------------------------------------------------


def test_the_unit_comes_before_the_network() -> None:
    """It is ordered before network-pre.target and pulls it in, after what it reads is mounted."""
    unit = settings(persist_unit.text(SETUP, "closed"))
    assert unit["Unit"]["Before"] == ["network-pre.target shutdown.target"]
    assert unit["Unit"]["Wants"] == ["network-pre.target"]
    assert unit["Unit"]["Conflicts"] == ["shutdown.target"]
    assert unit["Unit"]["DefaultDependencies"] == ["no"]
    assert unit["Unit"]["After"] == ["local-fs.target systemd-modules-load.service"]
    mounts = unit["Unit"]["RequiresMountsFor"][0].split()
    assert {SETUP.state, SETUP.interpreter, *SETUP.places} == set(mounts)
    service = unit["Service"]
    assert (service["Type"], service["RemainAfterExit"]) == (["oneshot"], ["yes"])
    assert service["ExecStart"] == [
        "/opt/nfctl/venv/bin/python -P -m nfctl persist restore --fail closed --wait 60"
    ]
    assert service["Environment"] == ["NFCTL_STATE_DIR=/var/lib/nfctl"]
    assert unit["Install"] == {"WantedBy": ["sysinit.target"]}


def test_hardening_hides_nothing_that_is_needed() -> None:
    """Homes are hidden, unless something that it reads lies there."""
    service = settings(persist_unit.text(SETUP, "open"))["Service"]
    assert service["ProtectHome"] == ["yes"]
    assert service["NoNewPrivileges"] == ["yes"]
    assert "CAP_NET_ADMIN" in service["CapabilityBoundingSet"][0].split()
    in_home = SETUP._replace(interpreter="/root/venv/bin/python")
    assert "ProtectHome" not in settings(persist_unit.text(in_home, "open"))["Service"]


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_systemd_takes_the_unit(tmp_path: Path, fail: str) -> None:
    """systemd-analyze has nothing to say about it."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / persist_unit.UNIT
    odd = SETUP._replace(interpreter="/bin/sh", state="/var/lib/a b%c$d", places=("/usr",))
    file.write_text(persist_unit.text(odd, fail))
    words = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if persist_unit.UNIT in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("/a b", '"/a b"'),
        ("100%", "100%%"),
        ("a$b", "a$$b"),
        ('say "a\\b"', '"say \\"a\\\\b\\""'),
        ("two\nlines", '"two\\nlines"'),
        ("", '""'),
        ("ä", '"ä"'),
    ],
)
def test_words_for_systemd(word: str, written: str) -> None:
    """Blanks, quotes, specifiers and variables reach the command as they are."""
    assert persist_unit._word(word, exec_line=True) == written


def test_a_dollar_outside_of_a_command_is_one() -> None:
    """In Environment= there are no variables to be doubled."""
    unit = settings(persist_unit.text(SETUP._replace(state="/a$b"), "open"))
    assert unit["Service"]["Environment"] == ["NFCTL_STATE_DIR=/a$b"]


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("established", [True, False])
def test_what_closes_is_a_ruleset(established: bool) -> None:
    """INPUT and FORWARD drop, and begin with the chain that lets only lo and answers in."""
    text = persist_closed.text(established=established)
    (section,) = script.parse(text, source="closed", family=4).sections
    assert section.table == "filter"
    assert ":INPUT DROP" in text
    assert ":FORWARD DROP" in text
    assert ":OUTPUT" not in text
    rules = [line for line in text.splitlines() if line.startswith("-A")]
    assert rules[0] == "-A RESTORE-FAILED -i lo -j ACCEPT"
    assert rules[-1] == "-A RESTORE-FAILED -j DROP"
    assert len(rules) == 2 + established


@pytest.fixture
def tools(tmp_path: Path) -> list[str]:
    """Give programs in the place of iptables-legacy that write down what they are told."""
    found = []
    for name in ("iptables-legacy", "ip6tables-legacy"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/log\ntest -e {tmp_path}/closed\n')
        restore = tmp_path / f"{name}-restore"
        restore.write_text(
            f'#!/bin/sh\necho "$0 $*" >>{tmp_path}/log\ncat >{tmp_path}/in\n'
            f"if grep -q conntrack {tmp_path}/in; then test ! -e {tmp_path}/poor; fi || exit 2\n"
            f"cp {tmp_path}/in {tmp_path}/{name}.done\n"
        )
        for file in (program, restore):
            file.chmod(0o755)
        found.append(str(program))
    return found


def last_resort(tools: list[str], result: str, status: str) -> list[str]:
    """Run what ExecStopPost= runs, as /bin/sh; return the rules that were loaded."""
    environment = {"PATH": os.environ["PATH"], "SERVICE_RESULT": result, "EXIT_STATUS": status}
    words = ["/bin/sh", "-c", persist_unit._closing(tools)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = Path(tools[0]).parent
    return [file.read_text() for file in sorted(folder.glob("*.done"))]


@pytest.mark.parametrize("how", [("exit-code", "1"), ("exit-code", "203"), ("timeout", "TERM")])
def test_the_last_resort_closes(tools: list[str], how: tuple[str, str]) -> None:
    """Whatever became of Python, both families get what nfctl itself would have loaded."""
    assert last_resort(tools, *how) == [persist_closed.text()] * 2


def test_the_last_resort_without_connection_tracking(tools: list[str]) -> None:
    """Where that is refused, the rest is loaded without."""
    (Path(tools[0]).parent / "poor").touch()
    text = persist_closed.text(established=False)
    assert last_resort(tools, "exit-code", "1") == [text] * 2


def test_the_last_resort_is_the_last(tools: list[str]) -> None:
    """It does nothing after success, where a change waits, and where nfctl closed already."""
    assert last_resort(tools, "success", "0") == []
    assert last_resort(tools, "exit-code", "4") == []
    assert not (Path(tools[0]).parent / "log").exists()
    (Path(tools[0]).parent / "closed").touch()
    assert last_resort(tools, "exit-code", "1") == []


def test_only_what_fails_closed_has_a_last_resort() -> None:
    """A unit that fails open closes nothing."""
    closed = settings(persist_unit.text(SETUP, "closed"))["Service"]["ExecStopPost"][0]
    assert closed.startswith('/bin/sh -c "case $$SERVICE_RESULT:$$EXIT_STATUS in ')
    assert "ExecStopPost" not in settings(persist_unit.text(SETUP, "open"))["Service"]
    without = SETUP._replace(closers=())
    assert "ExecStopPost" not in settings(persist_unit.text(without, "closed"))["Service"]


# --- systemd --------------------------------------------------------------------------------------


class Manager:
    """A systemd that does what it is told: ``refuses`` are verbs that fail."""

    def __init__(self, directory: Path) -> None:
        self.units = directory / "units"
        self.units.mkdir()
        self.runtime = directory / "runtime"
        self.runtime.mkdir()
        self.called: list[list[str]] = []
        self.refuses: set[str] = set()
        self.shows: dict[str, dict[str, str]] = {}
        self.systemd = Systemd(run=self.run, units=self.units, runtime=self.runtime)
        self.systemd._program = "/usr/bin/systemctl"

    @property
    def file(self) -> Path:
        return self.units / persist_unit.UNIT

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert list(words[:3]) == ["/usr/bin/systemctl", "--no-pager", "--no-ask-password"]
        verb = words[3]
        self.called.append(list(words[3:]))
        if verb in self.refuses:
            return subprocess.CompletedProcess(words, 1, "", "it does\nnot want\n")
        link = self.units / "sysinit.target.wants" / persist_unit.UNIT
        if verb == "enable":
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(self.file)
        out = "\n".join(map(self._show, words[words.index("--") + 1 :])) if verb == "show" else ""
        return subprocess.CompletedProcess(words, 0, out, "")

    def _show(self, unit: str) -> str:
        known = {"Id": unit, "LoadState": "not-found", "UnitFileState": ""}
        if unit == persist_unit.UNIT and self.file.exists():
            enabled = (self.units / "sysinit.target.wants" / unit).is_symlink()
            known |= {"LoadState": "loaded", "UnitFileState": "enabled" if enabled else "disabled"}
        known |= self.shows.get(unit, {})
        return "".join(f"{name}={value}\n" for name, value in known.items())

    def verbs(self) -> list[str]:
        return [words[0] for words in self.called]


@pytest.fixture
def manager(tmp_path: Path) -> Manager:
    return Manager(tmp_path)


def test_enabling(manager: Manager) -> None:
    """The file is there whole, for all to read, and then systemd is told, by argument lists."""
    before = os.umask(0o077)
    try:
        manager.systemd.enable("[Unit]\n")
    finally:
        os.umask(before)
    assert manager.file.read_text() == "[Unit]\n"
    assert stat.S_IMODE(manager.file.stat().st_mode) == 0o644
    assert ["daemon-reload"] in manager.called
    assert ["enable", persist_unit.UNIT] in manager.called
    assert manager.verbs().index("daemon-reload") < manager.verbs().index("enable")
    assert [file.name for file in manager.units.iterdir() if file.is_file()] == [persist_unit.UNIT]
    manager.systemd.enable("[Unit]\n# again\n")
    assert manager.file.read_text() == "[Unit]\n# again\n"


@pytest.mark.parametrize("verb", ["daemon-reload", "enable"])
def test_enabling_that_fails_leaves_what_was(manager: Manager, verb: str) -> None:
    """Where systemd refuses, the unit is as it was before: not there, or the old one."""
    manager.refuses = {verb}
    with pytest.raises(Unsupported, match="it does not want"):
        manager.systemd.enable("[Unit]\n")
    assert not manager.file.exists()
    manager.refuses = set()
    manager.systemd.enable("old")
    manager.refuses = {verb}
    with pytest.raises(Unsupported):
        manager.systemd.enable("new")
    assert manager.file.read_text() == "old"


def test_a_unit_that_systemd_does_not_understand(manager: Manager) -> None:
    """It is not enough that systemctl says nothing: the unit has to be loaded and enabled."""
    manager.shows[persist_unit.UNIT] = {"LoadState": "bad-setting"}
    with pytest.raises(Unsupported, match="bad-setting") as caught:
        manager.systemd.enable("[Unit]\n")
    assert "systemd-analyze verify" in caught.value.hint
    assert not manager.file.exists()


def test_a_masked_unit_stays_masked(manager: Manager) -> None:
    """Somebody said that it must not run; that is not undone in passing."""
    manager.file.symlink_to("/dev/null")
    with pytest.raises(AnswerNo, match="masked") as caught:
        manager.systemd.enable("[Unit]\n")
    assert caught.value.hint == "systemctl unmask nfctl-restore.service"
    assert manager.file.is_symlink()


def test_disabling(manager: Manager) -> None:
    """The unit and its link go, systemd is told, and a second time there is nothing to do."""
    assert manager.systemd.disable() is False
    assert manager.called == []
    manager.systemd.enable("[Unit]\n")
    manager.called.clear()
    assert manager.systemd.disable() is True
    assert not list(manager.units.rglob(persist_unit.UNIT))
    assert manager.called == [
        ["disable", "--now", persist_unit.UNIT],
        ["daemon-reload"],
        ["reset-failed", persist_unit.UNIT],
    ]
    assert manager.systemd.disable() is False


def test_without_systemd(manager: Manager) -> None:
    """Where systemd does not run nothing is enabled, and what was left behind can be removed."""
    manager.runtime.rmdir()
    with pytest.raises(Unsupported, match="systemd does not run here") as caught:
        manager.systemd.enable("[Unit]\n")
    assert "nfctl persist restore" in caught.value.hint
    assert not manager.file.exists()
    manager.file.write_text("[Unit]\n")
    assert manager.systemd.disable() is True
    assert not manager.file.exists()
    assert manager.called == []


# --- whose code -----------------------------------------------------------------------------------


def test_what_others_may_write_is_not_started(tmp_path: Path) -> None:
    """A directory above that others may write to is enough, and so is a file far inside."""
    with pytest.raises(NotPermitted, match="nfctl cannot be started as root at boot") as caught:
        persist_unit.check_trusted([str(tmp_path)])  # in /tmp
    assert "vagrant/provision.sh install" in caught.value.hint


def test_every_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One module of a package that somebody else may write is found, also behind a link."""
    asked: list[str] = []
    monkeypatch.setattr(trust, "fault", lambda path, **_: asked.append(path))
    package = tmp_path / "site-packages" / "package"
    package.mkdir(parents=True)
    other = tmp_path / "elsewhere"
    other.mkdir()
    for file in (package / "good.py", package / "poor.py", other / "poor.py"):
        file.write_text("")
        file.chmod(0o644)
    for file in (package / "poor.py", other / "poor.py"):
        file.chmod(0o666)
    (package / "linked").symlink_to(other)
    (other / "round").symlink_to(package)  # it has to end
    persist_unit.check_trusted([str(tmp_path / "site-packages")])
    assert str(package / "poor.py") in asked
    assert str(other / "poor.py") in asked
    if os.getuid() == 0:  # else all of it is somebody else's
        assert str(package / "good.py") not in asked


def test_libraries_are_no_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The interpreter's own library, which handlers may come from, has to be root's as well."""
    library = tmp_path / "library"
    library.mkdir(mode=0o777)
    monkeypatch.setattr(trust, "_libraries", lambda: (f"{library}/",))
    assert trust.fault(f"{library}/module.py") is None
    assert trust.fault(f"{library}/module.py", libraries=False) is not None


def test_an_interpreter_that_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the caller's environment makes nfctl importable, systemd would not find it."""
    monkeypatch.setattr(persist_unit, "check_trusted", lambda _places: None)

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert list(words[:3]) == ["/usr/bin/python3", "-P", "-c"]
        said = "Traceback:\nModuleNotFoundError: No module named 'nfctl'\n"
        return subprocess.CompletedProcess(words, 1, "", said)

    with pytest.raises(Unsupported, match="No module named 'nfctl'"):
        persist_unit.setup(Path("/var/lib/nfctl"), interpreter="/usr/bin/python3", run=run)


def test_what_the_unit_needs_of_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place that the interpreter imports from is checked, and named once in the unit."""
    checked: list[str] = []
    monkeypatch.setattr(persist_unit, "check_trusted", checked.extend)
    monkeypatch.setenv("XTABLES_LOCKFILE", "/run/other.lock")
    monkeypatch.setenv("XTABLES_LIBDIR", "/opt/x:/opt/y")

    def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        out = 'noise\n["/usr", "/usr/lib", "/no/such/python.zip", "/usr/lib/nfctl/__init__.py"]\n'
        return subprocess.CompletedProcess(words, 0, out, "")

    found = persist_unit.setup(Path("/state"), interpreter="/usr/bin/python3", run=run)
    assert found.places == ("/usr",)
    assert found.environment == (
        ("XTABLES_LOCKFILE", "/run/other.lock"),
        ("XTABLES_LIBDIR", "/opt/x:/opt/y"),
    )
    assert {"/usr/bin/python3", "/usr/lib", "/no/such/python.zip", "/opt/x", "/opt/y"} <= set(
        checked
    )
    unit = persist_unit.text(found, "open")
    assert "Environment=XTABLES_LOCKFILE=/run/other.lock\n" in unit


# --- status ---------------------------------------------------------------------------------------


@pytest.fixture
def _no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no kernel to look at."""
    monkeypatch.setattr(persist_closed, "closed", list)
    monkeypatch.setattr(persist, "compare", lambda *_: Change())


def look(manager: Manager, state: State) -> persist_status.Status:
    ufw = state.directory.parent / "ufw.conf"
    return persist_status.look(state, manager.systemd, ufw=ufw)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


@pytest.mark.usefixtures("_no_tables")
def test_all_well(manager: Manager, state: State) -> None:
    """Enabled, with a policy that is confirmed and in the kernel: nothing is wrong."""
    state.put_record(a_record(), confirmed=True)
    manager.systemd.enable(persist_unit.text(SETUP._replace(interpreter="/bin/sh"), "closed"))
    status = look(manager, state)
    assert status.problems == []
    document = status.document()
    assert (document["ok"], document["enabled"], document["fail"]) == (True, True, "closed")
    assert [one["state"] for one in document["policies"]] == ["ok"]


@pytest.mark.usefixtures("_no_tables")
@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"LoadState": "not-found"}, "not enabled"),
        ({"UnitFileState": "disabled"}, "is there, but disabled"),
        ({"LoadState": "error"}, "systemd does not take"),
        ({"ActiveState": "failed", "Result": "exit-code"}, "the last restore failed (exit-code)"),
        ({"NeedDaemonReload": "yes"}, "was changed since systemd read it"),
    ],
)
def test_what_is_wrong_with_the_unit(
    manager: Manager, state: State, shown: dict[str, str], said: str
) -> None:
    """Whatever keeps the unit from doing its work is a problem, with what to do about it."""
    state.put_record(a_record(), confirmed=True)
    manager.systemd.enable(persist_unit.text(SETUP._replace(interpreter="/bin/sh"), "closed"))
    manager.shows[persist_unit.UNIT] = shown
    status = look(manager, state)
    assert [said in problem for problem in status.problems] == [True]
    assert status.hints


@pytest.mark.usefixtures("_no_tables")
def test_a_systemd_that_does_not_answer(manager: Manager, state: State) -> None:
    """Where systemctl fails status says so, and not that nothing was enabled."""
    state.put_record(a_record(), confirmed=True)
    manager.refuses = {"show"}
    status = look(manager, state)
    assert status.problems == ["systemd does not answer: it does not want"]
    assert status.hints
    assert [one.name for one in status.policies] == ["web"]


@pytest.mark.usefixtures("_no_tables")
def test_an_interpreter_that_is_gone(manager: Manager, state: State) -> None:
    """After an upgrade of Python the unit may start nothing: that is told before the boot."""
    state.put_record(a_record(), confirmed=True)
    setup = SETUP._replace(interpreter="/no/such 100%/python")
    manager.systemd.enable(persist_unit.text(setup, "closed"))
    status = look(manager, state)
    assert status.problems == ["/no/such 100%/python, which nfctl-restore.service starts, is gone"]


@pytest.mark.usefixtures("_no_tables")
@pytest.mark.parametrize("service", persist_status.RIVALS)
def test_other_services_that_load_rules(manager: Manager, state: State, service: str) -> None:
    """A service that is enabled, too, is named; nftables has tables of its own."""
    state.put_record(a_record(), confirmed=True)
    manager.systemd.enable(persist_unit.text(SETUP._replace(interpreter="/bin/sh"), "closed"))
    manager.shows[service] = {"LoadState": "loaded", "UnitFileState": "enabled"}
    ufw = state.directory.parent / "ufw.conf"
    ufw.write_text("# ufw\nENABLED=yes\n")
    status = look(manager, state)
    assert list(status.rivals) == [service]
    assert status.ok is (service == "nftables.service")
    ufw.write_text("ENABLED=no\n")
    assert (service in look(manager, state).rivals) is (service != "ufw.service")


@pytest.mark.usefixtures("_no_tables")
def test_policies_that_are_damaged_or_unconfirmed(manager: Manager, state: State) -> None:
    """A damaged record is a problem; one that was never confirmed is no more than named."""
    state.put_record(a_record(), confirmed=True)
    state.put_record(a_record(name="new"), confirmed=False)
    manager.systemd.enable(persist_unit.text(SETUP._replace(interpreter="/bin/sh"), "closed"))
    status = look(manager, state)
    assert [(one.name, one.state) for one in status.policies] == [
        ("new", "unconfirmed"),
        ("web", "ok"),
    ]
    assert status.ok
    (state.directory / "policies/web/confirmed.json").write_text("{}")
    status = look(manager, state)
    assert [one.state for one in status.policies] == ["unconfirmed", "damaged"]
    assert not status.ok


@pytest.mark.usefixtures("_no_tables")
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-m set --match-set bad src -j DROP", "the set bad,"),
        ("-j SET --add-set seen src", "the set seen,"),
        ('-m set --match-set "my set" src -j DROP', "the set my set,"),
        ("-m cgroup --path system.slice/x -j ACCEPT", "the control group system.slice/x,"),
        ("-m bpf --object-pinned /sys/fs/bpf/x -j ACCEPT", "the BPF program /sys/fs/bpf/x,"),
    ],
)
def test_what_may_not_be_there_at_boot(
    manager: Manager, state: State, rule: str, said: str
) -> None:
    """A rule that needs what nobody restores is told before a boot fails for it."""
    record = a_record(rule)
    state.put_record(record, confirmed=True)
    manager.systemd.enable(persist_unit.text(SETUP._replace(interpreter="/bin/sh"), "closed"))
    status = look(manager, state)
    assert [said in problem for problem in status.problems] == [True]
    bad = {"name": "bad", "type": "hash:ip", "family": 4, "options": {}, "entries": []}
    record.sets = [bad]
    state.put_record(record, confirmed=True)
    assert look(manager, state).ok is ("bad" in said)


def test_how_it_fails_is_a_setting(state: State) -> None:
    """Closed where nothing was set, and where the settings make no sense."""
    assert persist.fail_mode(state) == "closed"
    for value, mode in (("open", "open"), ("closed", "closed"), (3, "closed"), ([], "closed")):
        state.set_setting(persist.SETTING, value)
        assert persist.fail_mode(state) == mode
    (state.directory / "settings.json").write_text("[")
    assert persist.fail_mode(state) == "closed"


def test_the_start_can_be_read_back(tmp_path: Path) -> None:
    """The interpreter of a unit is found again, whatever its path looks like."""
    file = tmp_path / persist_unit.UNIT
    for path in ("/usr/bin/python3", "/a b/python", "/100%/$x/python"):
        file.write_text(persist_unit.text(SETUP._replace(interpreter=path), "open"))
        assert persist_status._interpreter(file) == path
        assert shlex.split(file.read_text().partition("ExecStart=")[2])[0]
