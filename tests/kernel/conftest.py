"""A network namespace for each test, with tables and a lock that nobody else sees.

The namespaces belong to one process that does nothing but keep them; when it is gone, the kernel
removes them with their tables, sets and mounts. Commands enter them with nsenter(1), Python
functions in a forked child with setns(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Done = subprocess.CompletedProcess[str]

P = ParamSpec("P")
R = TypeVar("R")

# Far above what the slowest test needs: this is for what hangs.
PATIENCE = 120
NFCTL = (sys.executable, "-m", "nfctl")
_NEEDED = ("unshare", "nsenter", "iptables-legacy", "ip6tables-legacy")
_KEEPER = "mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && echo ready && exec cat"
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000


class Namespace:
    """A network namespace and a mount namespace with an empty /run of its own."""

    def __init__(self) -> None:
        # The keeper ends when its standard input does, however the tests end.
        command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _KEEPER]
        self._keeper = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C ends the tests, and they end the keeper
        )
        assert self._keeper.stdout
        assert self._keeper.stderr
        if self._keeper.stdout.readline() != "ready\n":
            said = self._keeper.stderr.read().strip()
            self.close()
            pytest.skip(f"needs CAP_SYS_ADMIN and CAP_NET_ADMIN, for private namespaces: {said}")
        self._enter = ("nsenter", "-t", str(self._keeper.pid), "--net", "--mount", "--wd")
        # A lock file named by the caller would be the host's.
        self._env = {key: value for key, value in os.environ.items() if key != "XTABLES_LOCKFILE"}

    def close(self) -> None:
        """End the process that keeps the namespaces."""
        self._keeper.kill()
        self._keeper.communicate()

    # --- commands -----------------------------------------------------------------------------

    def popen(self, argv: tuple[str, ...] | list[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command inside; its process id is that of the command itself."""
        found: subprocess.Popen[str] = subprocess.Popen(
            [*self._enter, *argv], env=self._env, **options
        )
        return found

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
        return subprocess.run(
            [*self._enter, *argv],
            input=b"" if input is None else input,
            capture_output=True,
            env=self._env,
            timeout=PATIENCE,
            check=False,
        )

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
        read_end, write_end = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python warns of fork in a process with threads; the child has but this one.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(read_end)
            self._answer(write_end, lambda: function(*args, **kwargs))
        os.close(write_end)
        answer = b""
        try:
            with os.fdopen(read_end, "rb") as pipe:
                if select.select([pipe], [], [], PATIENCE)[0]:
                    answer = pipe.read()
        finally:
            if not answer:
                os.kill(child, signal.SIGKILL)  # it hangs, or is a zombie already
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not answer:
            by = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
            pytest.fail(f"the child that ran {function.__qualname__} ended {by}")
        failed, value = pickle.loads(answer)  # noqa: S301 - from a child of ours
        if failed:
            raise value
        return cast("R", value)

    def _answer(self, write_end: int, call: Callable[[], object]) -> NoReturn:
        """Be the child: enter, call, tell, end."""
        code = 1
        try:
            try:
                self._enter_here()
                answer = pickle.dumps((False, call()))
            except BaseException as error:  # noqa: BLE001 - all are raised again in the parent
                answer = _pickled(error)
            with os.fdopen(write_end, "wb") as pipe:
                pipe.write(answer)
            code = 0
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _enter_here(self) -> None:
        os.environ.pop("XTABLES_LOCKFILE", None)
        here = Path.cwd()
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns() came with Python 3.12
        for name, kind in (("net", _CLONE_NEWNET), ("mnt", _CLONE_NEWNS)):
            fd = os.open(f"/proc/{self._keeper.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            if libc.setns(fd, kind):
                raise OSError(ctypes.get_errno(), f"cannot enter the {name} namespace")
            os.close(fd)
        os.chdir(here)


def _pickled(error: BaseException) -> bytes:
    """Pickle an error with its traceback as a note; as an AssertionError where it cannot be."""
    trace = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"In the child:\n{trace}")
        answer = pickle.dumps((True, error.with_traceback(None)))
        pickle.loads(answer)  # noqa: S301 - made the line before
    except Exception:  # noqa: BLE001 - whatever an exception's own pickling may raise
        answer = pickle.dumps((True, AssertionError(f"in the child:\n{trace}")))
    return answer


def legacy(family: int) -> str:
    """Return the name of the oracle's binary."""
    return "iptables-legacy" if family == 4 else "ip6tables-legacy"


def without_comments(saved: str) -> str:
    """Drop the lines of iptables-save that hold the version and the time."""
    return "".join(line for line in saved.splitlines(keepends=True) if line[:1] != "#")


@contextlib.contextmanager
def private() -> Iterator[Namespace]:
    """Make a namespace for the ``with`` block; skip the test where that is not possible."""
    if os.geteuid() != 0:
        pytest.skip("needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW)")
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    namespace = Namespace()
    try:
        yield namespace
    finally:
        namespace.close()


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """Give a network namespace with a private /run, and so with a private xtables lock."""
    with private() as namespace:
        yield namespace
