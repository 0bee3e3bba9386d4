"""``nfctl inspect`` as a person runs it: its own words, exit code and terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.lab import Lab, syscalls
from tests.kernel.conftest import NFCTL, PATIENCE, SLOWNESS, without_comments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Host

# takes standard input as its controlling terminal
_LEADER: Final = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
AWAITED: Final = 10 * SLOWNESS  # seconds for what is sure to come


def wait_for(true: Callable[[], object], why: Callable[[], str] = str) -> None:
    """Wait until something is so, that only a look tells."""
    __tracebackhide__ = True
    give_up = time.monotonic() + AWAITED
    while not true():
        assert time.monotonic() < give_up, why()
        select.select([], [], [], 0.002)


def saved(host: Host, *options: str) -> str:
    """Return all tables of both families as the oracle prints them."""
    binaries = "iptables-legacy-save", "ip6tables-legacy-save"
    return "".join(without_comments(host.call([name, *options])) for name in binaries)


def a_lab() -> Lab:
    """Return a lab to be made; skip the test where that is not possible."""
    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        pytest.skip("needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root")
    return Lab("inspect")


@contextlib.contextmanager
def alone() -> Iterator[Host]:
    """Make one host for the block, in which nothing sends anything by itself."""
    with a_lab() as lab:
        yield lab.host("alone")


def load(host: Host, text: str, *binaries: str) -> None:
    """Load iptables-save text, with its counters, by the oracle's own binaries."""
    for binary in binaries or ("iptables-legacy-restore", "ip6tables-legacy-restore"):
        with host.popen([binary, "-c"], stdin=subprocess.PIPE, text=True) as process:
            process.communicate(text, timeout=PATIENCE)
        assert process.returncode == 0, binary


def leftovers(host: Host) -> list[str]:
    """Return the lines of the tables that are an inspection's."""
    return [line for line in saved(host).splitlines() if "NFCTL-" in line]


class Session:
    """A command in a host, in a process group of its own; use it in a ``with`` block.

    ``words`` follow ``nfctl inspect``. Standard output and standard error are files, unless
    ``options`` say what else they are. ``before`` is a command that starts it.
    """

    def __init__(self, host: Host, *words: str, text: str = "", **options: Any) -> None:
        self.host = host
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        streams: dict[str, Any] = {
            "stdout": self._out, "stderr": self._err, "start_new_session": True,
            "stdin": subprocess.PIPE if text else subprocess.DEVNULL,
        }  # fmt: skip
        options = streams | options
        leader: list[str] = options.pop("before", [])
        if options.pop("terminal", False):
            leader = [sys.executable, "-c", _LEADER]
        self.process = host.popen([*leader, *NFCTL, "inspect", *words], **options)
        if text:
            assert self.process.stdin is not None
            with self.process.stdin as standard_input:
                standard_input.write(text.encode())

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._out.close()
        self._err.close()

    def placed(self, queue: int = 0, family: int = 6) -> Session:
        """Wait until its rules are there; those of IPv6 come last."""
        wait_for(lambda: self.over or self.rules(queue, family), self.errors)
        assert not self.over, self.errors()
        return self

    def rules(self, queue: int = 0, family: int = 6) -> bool:
        """Whether the rules are there."""
        binary = "iptables-legacy-save" if family == 4 else "ip6tables-legacy-save"
        return f"-j NFCTL-INSPECT-{queue}\n" in self.host.call([binary, "-t", "mangle"])

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def output(self) -> str:
        """Return what it has written to standard output so far."""
        return os.pread(self._out.fileno(), 1 << 28, 0).decode()

    def errors(self) -> str:
        """Return what it has written to standard error so far."""
        return os.pread(self._err.fileno(), 1 << 28, 0).decode()

    def lines(self) -> list[str]:
        """Return the lines of standard output so far."""
        return self.output().splitlines()

    def shown(self, count: int) -> list[str]:
        """Wait for so many lines, and return all."""
        __tracebackhide__ = True
        wait_for(lambda: len(self.lines()) >= count or self.over, self._all)
        assert len(self.lines()) >= count, self._all()
        return self.lines()

    def _all(self) -> str:
        return f"{self.output()}\n{self.errors()}"

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, as a terminal does, to the process group; return the exit code."""
        os.killpg(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        return int(self.process.wait(timeout=PATIENCE))

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(word) for word in file.read().split()]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody waited for counts, too."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(") ")[2][0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def once(host: Host, *words: str, text: str = "", **options: Any) -> tuple[int, str, str]:
    """Run a command to its end; return exit code, standard output and standard error."""
    with Session(host, *words, text=text, **options) as session:
        code = session.wait()
        return code, session.output(), session.errors()


class Terminal:
    """A pseudo-terminal of 80 columns and 24 lines, and what a program wrote to it."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.master, self.slave = pty.openpty()
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)
        self.before = termios.tcgetattr(self.slave)
        self._written = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.master)
        os.close(self.slave)

    def options(self) -> dict[str, Any]:
        """Return what makes it the controlling terminal of a :class:`Session`."""
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        return {**streams, "terminal": True}

    def written(self, seconds: float = 0.0) -> str:
        """Return what was written so far."""
        while select.select([self.master], [], [], seconds)[0]:
            self._written += os.read(self.master, 1 << 16)
        return self._written.decode()

    def until(self, text: str) -> str:
        """Wait until a text was written."""
        __tracebackhide__ = True
        give_up = time.monotonic() + AWAITED
        while text not in self.written(0.01):
            assert time.monotonic() < give_up, self.written()
        return self.written()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.master, keys.encode())

    @property
    def mode(self) -> list[Any]:
        """Return the terminal's settings, as termios(3) has them."""
        return termios.tcgetattr(self.slave)
