"""What the tests of ``nfctl apply --confirm`` share: a change, a terminal, and its watchdog."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nfctl.control.confirmation import watchdog
from nfctl.control.journal.state import State
from nfctl.kernel.process import since_boot
from tests.kernel.conftest import NFCTL, PATIENCE

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.kernel.conftest import Done, Namespace

#: The table before, with counters, and the one that is applied: a rule stays, goes, comes.
BEFORE: Final = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[7:700] -A INPUT -i lo -j ACCEPT
[3:300] -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT
COMMIT
"""
AFTER: Final = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
_CONFIRM: Final = "600"  # seconds; whatever is to happen at the deadline has it moved


class Change:
    """A namespace with rules, a policy to be applied to them, and a state of its own."""

    def __init__(self, netns: Namespace, directory: Path) -> None:
        self.netns = netns
        self.file = directory / "rules.v4"
        self.file.write_text(AFTER)
        self.directory = directory / "state"
        self.state = State(self.directory)
        assert netns.run(["iptables-legacy-restore", "-c"], BEFORE).returncode == 0
        assert self.saved() == BEFORE

    def words(self, *words: str) -> list[str]:
        """Return the command line of nfctl with this state, and no operator to be guarded."""
        settings = ["env", "-u", "SSH_CONNECTION", f"NFCTL_STATE_DIR={self.directory}"]
        return [*settings, *NFCTL, *words]

    def nfctl(self, *words: str, input: str | None = None) -> Done:  # noqa: A002
        return self.netns.run(self.words(*words), input)

    def apply(self, *words: str, confirm: str = _CONFIRM) -> Done:
        """Apply it from a pipe, to be confirmed."""
        return self.nfctl("apply", "-4", str(self.file), "--confirm", confirm, *words)

    def terminal(self, *words: str, confirm: str = _CONFIRM) -> Terminal:
        """Apply it on a terminal, to be confirmed."""
        line = self.words("apply", "-4", str(self.file), "--confirm", confirm, *words)
        return Terminal(self.netns, line)

    def saved(self) -> str:
        return self.netns.save(4, "-c")

    def is_after(self) -> bool:
        saved = self.netns.save()
        return "--dport 22" in saved and "--dport 23" not in saved and ":INPUT DROP" in saved

    def status(self, number: int = 1) -> str:
        return self.state.entry(number).status

    def expire(self, number: int = 1) -> None:
        """Have the deadline be now."""
        expire(self.state, number)

    def guardian(self) -> Guardian:
        """Find the watchdog."""
        return Guardian(find_guardian(self.directory))


def expire(state: State, number: int) -> None:
    """Have the deadline of an entry be now."""
    with state.locked():
        state.mark(number, "unconfirmed", deadline=since_boot())
    assert watchdog.wake(state, number)


def find_guardian(directory: Path) -> int:
    """Return the process id of the watchdog of a state."""
    word = os.fsencode(directory)
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"nfctl.control.confirmation.watchdog" in line and word in line:
                found.append(int(name))
    assert len(found) == 1, found
    return found[0]


class Guardian:
    """A watchdog's process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def __enter__(self) -> Guardian:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait(self) -> None:
        """Wait for its end."""
        assert select.select([self._descriptor], [], [], PATIENCE)[0]

    def send(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._descriptor, number)

    def status(self, field: str) -> str:
        """Return a field of proc_pid_status(5)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        raise KeyError(field)

    def stat(self) -> list[str]:
        """Return the fields of proc_pid_stat(5) from the state on: state, ppid, pgrp, session."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()

    def files(self) -> dict[int, str]:
        """Return its open files."""
        directory = Path(f"/proc/{self.pid}/fd")
        return {int(entry.name): str(entry.readlink()) for entry in directory.iterdir()}


class Terminal:
    """A terminal, and a program of a namespace that has it as its controlling one."""

    def __init__(self, netns: Namespace, words: list[str]) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process: subprocess.Popen[str] = netns.popen(["setsid", "--ctty", *words], **streams)
        self.seen = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the terminal: whoever has it gets SIGHUP."""
        for end in (self.master, self.slave):
            if end >= 0:
                os.close(end)
        self.master = self.slave = -1

    def until(self, text: str) -> str:
        """Read until a text has come; return all that came."""
        __tracebackhide__ = True
        while text not in self.seen:
            alive = os.pidfd_open(self.process.pid)
            try:
                ready, *_ = select.select([self.master, alive], [], [], PATIENCE)
            finally:
                os.close(alive)
            assert self.master in ready, self.seen  # it has ended, or hangs
            self.seen += os.read(self.master, 1 << 16).decode()
        return self.seen

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait(self) -> int:
        """Wait for the program's end; return its exit code."""
        code = self.process.wait(PATIENCE)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 1 << 16).decode()
        return code


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nobody sends a word of."""
    __tracebackhide__ = True
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
