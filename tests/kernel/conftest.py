"""A network namespace for each test, with tables and a lock that nobody else sees.

They are the hosts of nfctl's own labs (the plugin's ``netns``), and like them gone when the test
ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pytest

from nfctl.lab import Host, Lab, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Done = subprocess.CompletedProcess[str]

P = ParamSpec("P")
R = TypeVar("R")

# A virtual machine (vagrant/vm test) may be emulated, which runs Python ten times slower.
SLOWNESS = 10 if os.environ.get("NFCTL_IN_VM") == "1" else 1
# Far above what the slowest test needs: this is for what hangs.
PATIENCE = 120 * SLOWNESS
NFCTL = (sys.executable, "-m", "nfctl")
_NEEDED = ("iptables-legacy", "ip6tables-legacy")


class Namespace:
    """A network namespace and a mount namespace with an empty /run of its own."""

    def __init__(self, host: Host) -> None:
        self._machine = host

    def close(self) -> None:
        """End what runs inside."""
        self._machine.forget()

    # --- commands -----------------------------------------------------------------------------

    def popen(self, argv: tuple[str, ...] | list[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command inside; its process id is that of the command itself."""
        return self._machine.popen(argv, **options)

    def run(
        self,
        argv: tuple[str, ...] | list[str],
        input: str | None = None,  # noqa: A002 - called as in subprocess.run
    ) -> Done:
        """Run a command inside to its end; what is not UTF-8 goes through as it is."""
        data = None if input is None else input.encode("utf-8", "surrogateescape")
        done = self.run_bytes(argv, data)
        out, err = (part.decode("utf-8", "surrogateescape") for part in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def run_bytes(
        self,
        argv: tuple[str, ...] | list[str],
        input: bytes | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command inside to its end, bytes in and out."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self._machine.popen(argv, **pipes) as process:
            try:
                out, err = process.communicate(input, timeout=PATIENCE)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def nfctl(self, *words: str, input: str | None = None) -> Done:  # noqa: A002
        """Run nfctl."""
        return self.run([*NFCTL, *words], input)

    def legacy(self, *words: str, family: int = 4) -> Done:
        """Run iptables-legacy, or ip6tables-legacy."""
        return self.run([legacy(family), *words])

    def save(self, family: int = 4, *options: str) -> str:
        """Return what iptables-legacy-save prints, without its comments that hold the time."""
        done = self.run([f"{legacy(family)}-save", *options])
        assert done.returncode == 0, done.stderr
        return without_comments(done.stdout)

    # --- Python -------------------------------------------------------------------------------

    def python(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function in a forked child inside; return its result, or raise what it raised.

        libxtables and what a process remembers of a namespace are new in each child. The result
        has to be something that pickle takes; the function need not be.
        """
        __tracebackhide__ = True
        try:
            return self._machine.run(partial(function, *args, **kwargs), timeout=PATIENCE)
        except ChildProcessError as error:
            status = re.search(r"ended with status (-?\d+)$", str(error))
            if status is None:
                raise
            code = int(status[1])
        by = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
        pytest.fail(f"the child that ran {function.__qualname__} ended {by}")


def legacy(family: int) -> str:
    """Return the name of the oracle's binary."""
    return "iptables-legacy" if family == 4 else "ip6tables-legacy"


def without_comments(saved: str) -> str:
    """Drop the lines of iptables-save that hold the version and the time."""
    return "".join(line for line in saved.splitlines(keepends=True) if line[:1] != "#")


@contextlib.contextmanager
def private() -> Iterator[Namespace]:
    """Make a namespace for the ``with`` block; skip the test where that is not possible."""
    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        pytest.skip("needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root")
    with Lab("tests") as lab, _inside(lab.host("netns")) as namespace:
        yield namespace


@contextlib.contextmanager
def _inside(host: Host) -> Iterator[Namespace]:
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    namespace = Namespace(host)
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture
def netns(netns: Host) -> Iterator[Namespace]:
    """Give a network namespace with a private /run, and so with a private xtables lock."""
    with _inside(netns) as namespace:
        yield namespace
