"""The VM as somebody who administers it sees it: by ssh, through the management card."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_CONFIG, _HOST = "NFCTL_VM_SSH_CONFIG", "NFCTL_VM_HOST"
_PATIENCE = 60.0  # seconds, for a command
Done = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)
            if not os.environ.get(_CONFIG):
                item.add_marker(pytest.mark.skip(reason="runs beside the VM: vagrant/vm test"))


class Guest:
    """The VM, by ssh."""

    def __init__(self) -> None:
        self._ssh = [
            *("ssh", "-F", os.environ[_CONFIG], "-o", "ConnectTimeout=5", "-o", "BatchMode=yes"),
            *("-o", "ControlPath=none", os.environ.get(_HOST, "dut")),
        ]

    def run(self, command: str, text: str = "", timeout: float = _PATIENCE) -> Done:
        """Run a command of the shell in a session of its own; 255 is ssh's own failure."""
        return subprocess.run(
            [*self._ssh, command],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def call(self, command: str, text: str = "") -> str:
        """Run a command that has to succeed, and return what it prints."""
        done = self.run(command, text)
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout

    def popen(self, command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a session that stays."""
        found: subprocess.Popen[str] = subprocess.Popen([*self._ssh, command], text=True, **options)
        return found

    def wait(self, command: str, wanted: str, seconds: float) -> None:
        """Wait until a command can be run and prints what is wanted."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                done = self.run(command, timeout=20.0)
                said = done.stdout if done.returncode == 0 else done.stderr
            except subprocess.TimeoutExpired:
                said = "no answer"
            if wanted in said:
                return
            assert time.monotonic() < deadline, f"{command}: {said}"
            time.sleep(0.5)


@pytest.fixture(scope="session")
def guest() -> Guest:
    """Give the VM."""
    return Guest()
