"""nfctl apply --confirm where systemd runs: the watchdog is a unit, and needs nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nfctl.control.confirmation import watchdog
from nfctl.control.journal.state import State
from tests.kernel.confirming import expire, until
from tests.vm import guard
from tests.vm.inside.network import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.inside.network import Device

RULE = "-A FORWARD -i eth3 -p udp -m udp --dport 9 -j DROP"
RULES = f"*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n{RULE}\nCOMMIT\n"


@pytest.fixture
def state(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """Give a state of the test's own; end the watchdogs that it has."""
    guard.require()
    (tmp_path / "rules").write_text(RULES)
    monkeypatch.setenv("NFCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    state = State()
    yield state
    for entry in state.entries():
        systemctl("stop", watchdog.unit_name(state.directory, entry.number))
    device.clear()


def systemctl(*words: str) -> str:
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def is_there() -> bool:
    words = [oracle(4, "-save"), "-t", "filter"]
    return RULE in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def apply(rules: Path) -> subprocess.Popen[bytes]:
    """Apply the rules from a shell in a session of its own, which then goes on."""
    words = [sys.executable, "-m", "nfctl", "apply", "-q", "--confirm", "600", "-4", str(rules)]
    return subprocess.Popen(
        ["bash", "-c", '"$@"; sleep 3600', "bash", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_the_watchdog_outlives_its_shell(state: State, tmp_path: Path) -> None:
    """With the shell and all that it started killed, the unit is active, and rolls back."""
    with apply(tmp_path / "rules") as shell:
        try:
            until(lambda: state.pending() is not None and state.entry(1).status == "unconfirmed")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert is_there()
    unit = watchdog.unit_name(state.directory, 1)
    assert systemctl("is-active", unit) == "active"
    assert systemctl("show", "--value", "-p", "Slice", unit) == "system.slice"
    expire(state, 1)
    until(lambda: systemctl("is-active", unit) != "active")
    assert not is_there()
    assert state.entry(1).status == "rolled back"
    # --collect: nothing is left of it
    assert systemctl("show", "--value", "-p", "LoadState", unit) == "not-found"


def test_a_confirmation_keeps_the_change(device: Device, state: State, tmp_path: Path) -> None:
    """After nfctl confirm the unit is gone and the rule stays."""
    done = device.nfctl("apply", "-q", "--confirm", "600", "-4", str(tmp_path / "rules"))
    assert (done.returncode, done.stderr) == (0, "")
    unit = watchdog.unit_name(state.directory, 1)
    assert systemctl("is-active", unit) == "active"
    done = device.nfctl("confirm")
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: systemctl("is-active", unit) != "active")
    assert is_there()
    assert state.entry(1).status == "confirmed"
