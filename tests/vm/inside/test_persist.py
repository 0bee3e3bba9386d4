"""The unit that restores, run by systemd itself; what a boot does is in tests/vm/outside."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.control.persist import closed as persist_closed
from nfctl.control.persist import unit as persist_unit
from tests.vm import guard
from tests.vm.inside.network import oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.network import Device

STATE = Path("/var/lib/nfctl-persist-test")
OVERRIDE = Path("/run/systemd/system") / f"{persist_unit.UNIT}.d" / "gone.conf"
RULES = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 80,443 -j WEB
-A WEB -s 198.51.100.0/24 -m comment --comment "not these" -j DROP
-A WEB -j ACCEPT
COMMIT
"""


@pytest.fixture
def enabled(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Apply rules, enable the unit, and give the rules; take both away."""
    guard.require()
    monkeypatch.setenv("NFCTL_STATE_DIR", str(STATE))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    try:
        file = tmp_path / "rules"
        file.write_text(RULES)
        done = device.nfctl("apply", "-q", "-4", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        done = device.nfctl("persist", "enable", "--fail", "closed")
        assert (done.returncode, done.stderr) == (0, "")
        yield saved()
    finally:
        shutil.rmtree(OVERRIDE.parent, ignore_errors=True)
        device.nfctl("persist", "disable")
        shutil.rmtree(STATE, ignore_errors=True)
        device.clear()


def saved(version: int = 4) -> list[str]:
    """Return chains and rules of filter, without counters."""
    words = [oracle(version, "-save"), "-t", "filter"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.partition(" [")[0] for line in done.stdout.splitlines() if line[0] in ":-"]


def systemctl(*words: str) -> int:
    return subprocess.run(["systemctl", *words], capture_output=True, check=False).returncode


def test_systemd_runs_the_unit(device: Device, enabled: list[str]) -> None:
    """It restores into empty tables with what hardening leaves it, and is closed where it fails.

    Closed by nfctl where a record is damaged, and by the shell where there is no Python.
    """
    closed = [line.partition(" [")[0] for line in persist_closed.text().splitlines()]
    file = f"/etc/systemd/system/{persist_unit.UNIT}"
    verify = ["systemd-analyze", "verify", "--man=no", file]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert persist_unit.UNIT not in done.stderr
    device.clear()
    assert systemctl("start", persist_unit.UNIT) == 0
    assert saved() == enabled
    done = device.nfctl("persist", "status", "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])

    (record,) = (STATE / "policies/default").glob("*.v4")
    before = record.read_bytes()
    record.write_bytes(before.replace(b"DROP", b"ACCEPT"))
    device.clear()
    assert systemctl("restart", persist_unit.UNIT) != 0
    assert is_closed(closed)
    assert device.nfctl("persist", "status").returncode == 1
    record.write_bytes(before)
    assert systemctl("restart", persist_unit.UNIT) == 0
    assert saved() == enabled

    OVERRIDE.parent.mkdir(parents=True)
    OVERRIDE.write_text("[Service]\nExecStart=\nExecStart=/no/such/python\n")
    device.clear()
    assert systemctl("daemon-reload") == 0
    assert systemctl("restart", persist_unit.UNIT) != 0
    assert is_closed(closed)
    OVERRIDE.unlink()
    assert systemctl("daemon-reload") == 0
    assert systemctl("restart", persist_unit.UNIT) == 0
    assert saved() == enabled

    assert device.nfctl("persist", "disable").returncode == 0
    assert not Path(file).exists()
    assert systemctl("is-enabled", persist_unit.UNIT) != 0
    assert saved() == enabled


def is_closed(closed: list[str]) -> bool:
    """Whether both families have what closes them."""
    wanted = {line.replace("-I INPUT 1", "-A INPUT").replace("-I FORWARD 1", "-A FORWARD")
              for line in closed if line[0] in ":-"}  # fmt: skip
    return all(wanted <= set(saved(version)) for version in (4, 6))
