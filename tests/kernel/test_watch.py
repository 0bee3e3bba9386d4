"""``nfctl watch`` on the real kernel: what iptables-legacy changes is noticed, told and put back.

The interval is an hour, so that only notices can tell.
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.control.apply import Options, apply
from nfctl.control.confirmation.watchdog import confirm
from nfctl.control.journal.state import State
from nfctl.policy.reading import read
from tests.kernel.conftest import NFCTL, SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

AWAITED = 15 * SLOWNESS
POLICY = """\
version: 1
tables:
  filter:
    INPUT:
      rules:
        - -s 10.0.0.1 -j DROP
        - -s 10.0.0.2 -j DROP
    FORWARD:
      rules:
        - -d 10.0.0.3 -j DROP
"""
RULES = ["-A INPUT -s 10.0.0.1/32 -j DROP", "-A INPUT -s 10.0.0.2/32 -j DROP",
         "-A FORWARD -d 10.0.0.3/32 -j DROP"]  # fmt: skip
# Deletes the second rule whenever it is there, until it gets a line. Only the deed takes the lock.
FIGHTER = """
import select, sys, nfctl
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.02)[0]:
    if len(nfctl.read().tables["filter"].chains["INPUT"].rules) > 1:
        with nfctl.edit() as tables:
            tables["filter"].delete("INPUT", 2)
"""


class Session:
    """A watch that runs, and what it tells."""

    def __init__(self, process: subprocess.Popen[bytes], manager: socket.socket) -> None:
        self.process = process
        self.manager = manager
        self.told: list[dict[str, Any]] = []
        self._rest = b""

    def next(self) -> dict[str, Any]:
        """Return the next event."""
        assert self.process.stdout is not None
        until = time.monotonic() + AWAITED
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            assert left > 0, f"no event within {AWAITED} s after {self.told}"
            if select.select([self.process.stdout], [], [], left)[0]:
                data = self.process.stdout.read1(65536)  # type: ignore[attr-defined]
                assert data, f"it ended after {self.told}: {self.errors()}"
                self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        self.told.append(event)
        return event

    def expect(self, kind: str) -> dict[str, Any]:
        """Return the next event, which has to be of this kind."""
        event = self.next()
        assert event["event"] == kind, event
        return event

    def heard(self, key: str) -> dict[str, str]:
        """Return the next message to the service manager that has a variable."""
        while True:
            lines = self.manager.recv(4096).decode().splitlines()
            said = dict(line.split("=", 1) for line in lines)
            if key in said:
                return said

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def end(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """End it by a signal; it has to end well, and to say so."""
        self.process.send_signal(number)
        event = self.next()
        while event["event"] != "end":
            event = self.next()
        assert self.process.wait(AWAITED) == 0
        assert self.errors() == ""
        return event


@contextlib.contextmanager
def watching(
    netns: Namespace, policy: Path, *options: str, **environment: str
) -> Iterator[Session]:
    """Run ``nfctl watch`` for the block, past its first compare."""
    address = policy.with_name("notify")
    environment["NOTIFY_SOCKET"] = str(address)
    words = [*NFCTL, "watch", str(policy), "--json", "--interval", "3600", *options]
    argv = ["env", *(f"{name}={value}" for name, value in environment.items()), *words]
    pipe = subprocess.PIPE
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(AWAITED)
        with netns.popen(argv, stdout=pipe, stderr=pipe) as process:
            session = Session(process, manager)  # type: ignore[arg-type]
            try:
                session.expect("start")
                session.heard("READY")
                yield session
            finally:
                process.kill()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY, encoding="utf-8")
    return file


def applied(netns: Namespace, policy: Path) -> None:
    """Apply a policy as nfctl apply does."""

    def run() -> str:
        return apply(read(str(policy)), state=State(), options=Options()).status

    assert netns.python(run) == "applied"


def rules(netns: Namespace) -> list[str]:
    return [line for line in netns.save().splitlines() if line.startswith("-A ")]


def place(chain: str, missing: int = 0, extra: int = 0) -> dict[str, Any]:
    return {"family": 4, "table": "filter", "chain": chain, "missing": missing, "extra": extra}


def places(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: one[key] for key in one if key != "text"} for one in event["places"]]


def test_a_flush_is_noticed(netns: Namespace, policy: Path) -> None:
    """iptables-legacy -F is told as one drift, with what is missing, and its end once."""
    applied(netns, policy)
    with watching(netns, policy) as watch:
        netns.legacy("-F")
        event = watch.expect("drift")
        assert places(event) == [place("INPUT", 2), place("FORWARD", 1)]
        assert event["found_by"] == "notice"
        added = [
            f"-A {chain['name']} {line['rule']}"
            for table in event["change"]["tables"]
            for chain in table["chains"]
            for line in chain["lines"]
            if line["op"] == "add"
        ]
        assert added == RULES
        assert rules(netns) == []  # it only watches
        for rule in RULES:
            netns.legacy(*rule.split())
        assert places(watch.expect("gone")) == [place("INPUT", 2), place("FORWARD", 1)]
        end = watch.end()
    assert (end["ended_by"], end["drifts"], end["repairs"]) == ("SIGTERM", 1, 0)


def test_what_it_finds_at_the_start(netns: Namespace, policy: Path) -> None:
    """Drift from before the start is told at once, and with --repair put back at once."""
    with watching(netns, policy, "--repair") as watch:
        assert watch.expect("drift")["found_by"] == "start"
        watch.expect("repaired")
        assert rules(netns) == RULES
        watch.end(signal.SIGINT)


def test_a_repair_keeps_counters(netns: Namespace, policy: Path) -> None:
    """--repair puts back what is missing, takes what is too much, and touches nothing else."""
    applied(netns, policy)
    text = netns.save(4, "-c").replace("[0:0] -A INPUT -s 10.0.0.1", "[7:700] -A INPUT -s 10.0.0.1")
    assert netns.run(["iptables-legacy-restore", "-c"], text).returncode == 0
    with watching(netns, policy, "--repair") as watch:
        netns.run(["sh", "-c", "iptables-legacy -D INPUT 2; iptables-legacy -I INPUT -j ACCEPT"])
        assert places(watch.expect("drift")) == [place("INPUT", 1, 1)]
        event = watch.expect("repaired")
        assert rules(netns) == RULES
        assert "[7:700] -A INPUT -s 10.0.0.1/32 -j DROP" in netns.save(4, "-c").splitlines()
        end = watch.end()
    assert (end["drifts"], end["repairs"]) == (1, 1)  # its own repair is no drift
    entry = netns.python(lambda: State().entry(event["entry"]))
    assert (entry.action, entry.status) == ("repair", "applied")


def test_somebody_fights(netns: Namespace, policy: Path) -> None:
    """Against a program that undoes each repair, repairs wait longer and longer; it is named."""
    applied(netns, policy)
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", FIGHTER]
    with (
        watching(netns, policy, "--repair") as watch,
        netns.popen(argv, stdin=pipe, stdout=pipe, text=True) as fighter,
    ):
        assert fighter.stdout is not None
        fighter.stdout.readline()
        told: list[dict[str, Any]] = []
        while len(told) < 2:
            event = watch.next()
            if event["event"] == "backing-off":
                told.append(event)
        fighter.communicate("\n", timeout=AWAITED)
        assert [event["times"] for event in told] == [1, 2]
        assert [event["seconds"] for event in told] == [1, 2]
        assert {one["pid"] for event in told for one in event["who"]} == {fighter.pid}
        assert places(watch.expect("repaired")) == [place("INPUT", 1)]
        assert rules(netns) == RULES
        watch.end()


def test_sighup_reads_the_policy_again(netns: Namespace, policy: Path) -> None:
    """A wrong file keeps the old policy; the right one is taken, and the host brought to it."""
    applied(netns, policy)
    with watching(netns, policy, "--repair") as watch:
        policy.write_text(POLICY.replace("-j DROP", "-j NOWHERE-AT-ALL", 1), encoding="utf-8")
        watch.process.send_signal(signal.SIGHUP)
        assert watch.expect("reload-failed")["code"] == 2
        assert rules(netns) == RULES
        policy.write_text(POLICY.replace("10.0.0.2", "10.0.0.4"), encoding="utf-8")
        watch.process.send_signal(signal.SIGHUP)
        watch.expect("reloaded")
        assert watch.expect("drift")["found_by"] == "reload"
        watch.expect("repaired")
        assert rules(netns) == [rule.replace("10.0.0.2", "10.0.0.4") for rule in RULES]
        watch.end()


def test_what_nfctl_apply_did_stays(netns: Namespace, policy: Path) -> None:
    """A new version that nfctl apply brings is not undone, and SIGHUP goes along with it."""
    applied(netns, policy)
    with watching(netns, policy, "--repair") as watch:
        policy.write_text(POLICY.replace("10.0.0.2", "10.0.0.4"), encoding="utf-8")
        applied(netns, policy)
        watch.expect("drift")
        assert watch.expect("note")["entry"] == 2
        assert rules(netns) == [rule.replace("10.0.0.2", "10.0.0.4") for rule in RULES]
        watch.process.send_signal(signal.SIGHUP)
        watch.expect("reloaded")
        netns.legacy("-F", "FORWARD")
        assert places(watch.expect("drift")) == [place("FORWARD", 1)]
        watch.expect("repaired")
        watch.end()


def test_an_unconfirmed_change_is_left_alone(netns: Namespace, policy: Path) -> None:
    """While nfctl apply --confirm waits, --repair does not take its change back, and says so."""
    applied(netns, policy)

    def unconfirmed() -> str:
        options = Options(confirm=600.0)
        return apply(read(str(policy)), state=State(), options=options).status

    with watching(netns, policy, "--repair") as watch:
        policy.write_text(POLICY.replace("10.0.0.2", "10.0.0.4"), encoding="utf-8")
        assert netns.python(unconfirmed) == "unconfirmed"
        watch.expect("drift")
        note = watch.expect("note")
        assert note["entry"] == 2
        assert "waits for its confirmation" in note["text"]
        netns.python(lambda: confirm(State()).status)
        assert rules(netns) == [rule.replace("10.0.0.2", "10.0.0.4") for rule in RULES]
        watch.end()


def test_in_a_namespace_with_a_name(netns: Namespace, policy: Path, tmp_path: Path) -> None:
    """--netns brings another namespace to the policy, and notices there; ours stays as it is."""
    if netns.run(["ip", "netns", "add", "other"]).returncode:
        pytest.skip("needs ip netns add")
    options = ("--repair", "--netns", "other")
    inside = ["ip", "netns", "exec", "other", "iptables-legacy"]
    with watching(netns, policy, *options, NFCTL_STATE_DIR=str(tmp_path / "state")) as watch:
        watch.expect("drift")
        watch.expect("repaired")
        assert netns.run([*inside, "-S", "INPUT"]).stdout.splitlines()[1:] == RULES[:2]
        assert rules(netns) == []
        assert netns.run([*inside, "-F", "INPUT"]).returncode == 0
        assert places(watch.expect("drift")) == [place("INPUT", 2)]
        watch.end()


def test_docker_is_no_drift(netns: Namespace, policy: Path) -> None:
    """Rules as Docker's come and go beside the policy's without a word, and survive repairs."""
    applied(netns, policy)
    docker = ["-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
              "-N DOCKER-USER", "-I FORWARD -j DOCKER-USER",
              "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT"]  # fmt: skip
    with watching(netns, policy, "--repair") as watch:
        for words in docker:
            assert netns.legacy(*words.split()).returncode == 0
        before = netns.save().splitlines()
        netns.legacy("-D", "FORWARD", "-d", "10.0.0.3", "-j", "DROP")
        assert places(watch.expect("drift")) == [place("FORWARD", 1)]
        watch.expect("repaired")
        after = netns.save().splitlines()
        assert sorted(after) == sorted(before)
        ours = RULES[2]
        assert [one for one in after if one != ours] == [one for one in before if one != ours]
        assert watch.end()["drifts"] == 1


def test_exclusive_takes_docker_for_drift(netns: Namespace, policy: Path) -> None:
    """With --exclusive the same rules are drift."""
    applied(netns, policy)
    with watching(netns, policy, "--exclusive") as watch:
        netns.legacy("-N", "DOCKER-USER")
        netns.legacy("-I", "FORWARD", "-j", "DOCKER-USER")
        assert place("FORWARD", 0, 1) in places(watch.expect("drift"))
        watch.end()


def test_the_service_manager_is_told(netns: Namespace, policy: Path) -> None:
    """READY when the first compare is done, RELOADING and READY at SIGHUP, STOPPING at the end."""
    applied(netns, policy)
    with watching(netns, policy, WATCHDOG_USEC="200000") as watch:
        before = time.monotonic()
        watch.process.send_signal(signal.SIGHUP)
        said = watch.heard("RELOADING")
        assert before <= int(said["MONOTONIC_USEC"]) / 1e6 <= time.monotonic()
        assert watch.heard("READY")["STATUS"] == "at the policy default: 3 rules"
        watch.heard("WATCHDOG")
        watch.process.terminate()
        watch.heard("STOPPING")
        assert watch.expect("reloaded")["rules"] == 3
        assert watch.expect("end")["ended_by"] == "SIGTERM"
        assert watch.process.wait(AWAITED) == 0


def test_text_for_people(netns: Namespace, policy: Path) -> None:
    """Without --json it says the same in words, with the change as nfctl plan shows it."""
    pipe = subprocess.PIPE
    argv = [*NFCTL, "watch", "--repair", str(policy)]
    with netns.popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "repaired" in line:
                process.terminate()
        assert process.wait(AWAITED) == 0
    text = "".join(lines)
    assert "keeping the host at the policy default (3 rules)" in text
    assert "IPv4 filter INPUT: 2 rules missing" in text
    assert "-s 10.0.0.1" in text
    assert "ended by SIGTERM: 1 drift, 1 repair, 0 failures" in text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-"], "standard input"),
        (["/nowhere.yaml"], "/nowhere.yaml"),
        (["--interval", "nan", "policy.yaml"], "--interval"),
        (["--interval", "0", "policy.yaml"], "--interval"),
    ],
)
def test_wrong_usage(netns: Namespace, words: list[str], error: str) -> None:
    """What cannot be watched is refused at once, with exit code 2."""
    done = netns.nfctl("watch", *words)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
