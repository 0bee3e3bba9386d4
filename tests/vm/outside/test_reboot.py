"""A real reboot: what was confirmed is there before the network is, and nothing else."""

from __future__ import annotations

import contextlib
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.vm.outside.test_ssh import BOOT_ID, KEEPING, OPEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.outside.conftest import Guest

REBOOT = 200.0  # seconds; an emulated machine takes about 40
ANOTHER = "-A INPUT -i eth3 -p udp -m udp --dport 9 -j ACCEPT"
BEFORE = f"""\
set -e
cd "$(mktemp -d)"
cat >confirmed <<'E'
{KEEPING}E
cat >tried <<'E'
{KEEPING.replace("COMMIT", f"{ANOTHER}{chr(10)}COMMIT")}E
nfctl apply -q --no-guard -4 confirmed
nfctl persist enable >&2
nfctl apply -q --no-guard -4 tried --confirm 600 >&2
iptables-legacy-save >&2
cat {BOOT_ID}
"""
UNITS = ("nfctl-restore.service", "network-pre.target", "networking.service")
AFTER = f"""\
cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null
echo %%
iptables-legacy-save
echo %%
nfctl persist status --json
echo %%
systemctl show -p InactiveExitTimestampMonotonic -p ActiveEnterTimestampMonotonic {" ".join(UNITS)}
echo %%
nfctl history --json
echo %%
ls /sys/class/net
nfctl persist disable
"""


@pytest.fixture
def _disabled(guest: Guest) -> Iterator[None]:
    """Leave the machine open, without state and unit."""
    yield
    undo = "nfctl persist disable; rm -rf /var/lib/nfctl; nfctl restore && echo open"
    guest.wait(f"echo '{OPEN}' | sudo sh -c '{undo}'", "open", 60)


@pytest.mark.usefixtures("_disabled")
def test_a_reboot_restores_what_was_confirmed(guest: Guest) -> None:
    """The confirmed rules are in the kernel before network-pre.target, those on trial are not.

    No other table is in use, the NICs are there, and ssh gets in by the rules.
    """
    before = guest.run("sudo bash", BEFORE, timeout=120.0)
    assert before.returncode == 0, before.stderr
    assert ANOTHER in before.stderr
    with contextlib.suppress(subprocess.TimeoutExpired):
        guest.run("sudo systemctl reboot", timeout=20.0)
    # It may answer for a moment still.
    guest.wait(f"grep -v {before.stdout.strip()} {BOOT_ID}", "-", REBOOT)
    said = guest.run("sudo bash", AFTER, timeout=120.0)
    tables, saved, status, times, history, links = said.stdout.split("%%\n")
    assert tables == "filter\n"
    rules = [line for line in saved.splitlines() if line[:2] == "-A"]
    assert rules == [line for line in KEEPING.splitlines() if line[:2] == "-A"]
    assert ":INPUT DROP" in saved
    found = json.loads(status)
    assert (found["ok"], found["problems"], found["unit"]["active"]) == (True, [], "active")
    latest = json.loads(history)["entries"]
    assert {one["status"] for one in latest} <= {"applied", "rolled back"}
    assert latest[0]["status"] == "rolled back" or latest[0]["action"] == "rollback"
    began, stood = ({}, {})  # by unit, in microseconds since the boot
    for unit, block in zip(UNITS, times.strip().split("\n\n"), strict=True):
        values = dict(line.split("=") for line in block.splitlines())
        began[unit] = int(values["InactiveExitTimestampMonotonic"])
        stood[unit] = int(values["ActiveEnterTimestampMonotonic"])
    restore, pre, networking = UNITS
    assert 0 < stood[restore] <= stood[pre] <= began[networking]
    assert {f"eth{number}" for number in range(7)} <= set(links.split())
    assert "disabled: after the next boot there are no rules" in links
