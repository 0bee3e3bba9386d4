"""Run a Python function in a forked child, and bring back what it returned or raised.

A namespace is entered by a whole process and left only by its end (one process a
namespace: libiptc and netlink sockets keep the namespace they were opened in), so
everything a lab does inside a host is done by a child of its own.

The rules:
1. A signal cannot fall between the fork and the moment the parent knows the child: SIGINT,
   SIGTERM and SIGHUP are blocked meanwhile.
2. The child dies of these signals at once; only the parent cleans up.
3. The child leaves by ``os._exit``: none of the parent's exit handlers run twice.
4. The child closes the lab's netlink sockets: they would keep other hosts' namespaces alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class _Closeable(Protocol):
    def close(self) -> None: ...


_not_for_children: weakref.WeakSet[_Closeable] = weakref.WeakSet()

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold back the signals that end a program until the block is done."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_signals() -> None:
    """In a new child: let the signals that end a program end it, and unblock them."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def close_in_children(what: _Closeable) -> None:
    """Have ``what`` closed in every child that is forked from now on."""
    _not_for_children.add(what)


@contextlib.contextmanager
def fork_is_safe() -> Iterator[None]:
    """Silence 3.12's warning about forking beside threads.

    The children here run plain functions and leave by ``os._exit``; pytest-xdist and others
    keep a thread that touches nothing of ours.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        yield


class Child(Generic[T]):
    """A forked child that runs ``function(*args)``; create, then :meth:`result` or :meth:`kill`."""

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        self.pid = 0
        self._status: int | None = None
        _flush()  # or the child would print the parent's unwritten text again
        try:
            with fork_is_safe(), signals_blocked():
                self._reader, writer = os.pipe()
                self.pid = os.fork()
                if self.pid == 0:
                    _be_child(function, args, writer)
                os.close(writer)
        except BaseException:  # a signal that was held back until now
            if self.pid:
                self.kill()
            raise

    def result(self, timeout: float) -> T:
        """Wait for the child and return what its function returned, or raise what it raised.

        ``timeout`` is in seconds; then the child is killed and :class:`TimeoutError` raised.
        A child that died without an answer raises :class:`ChildProcessError`.
        """
        try:
            data = self._read(time.monotonic() + timeout)
            self.wait()
        except BaseException:
            self.kill()
            raise
        if not data:
            raise ChildProcessError(f"the child process ended with status {self._status}")
        import pickle

        # The bytes come from our own child over a private pipe.
        good, value = pickle.loads(data)  # noqa: S301
        if not good:
            raise value
        return cast("T", value)

    def wait(self) -> None:
        """Wait for the child's end (unbounded) and free what belongs to it."""
        if self._status is None:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(self.pid, 0)
                self._status = os.waitstatus_to_exitcode(status)
            os.close(self._reader)
        if self._status is None:  # somebody else reaped it
            self._status = 0

    def kill(self) -> None:
        """End the child at once (SIGKILL), if it is still there."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def _read(self, deadline: float) -> bytes:
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        parts: list[bytes] = []
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise TimeoutError(f"the child process {self.pid} gave no answer in time")
            part = os.read(self._reader, 1 << 16)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a program may be started without them
            stream.flush()


def _be_child(function: Callable[..., object], args: tuple[Any, ...], writer: int) -> NoReturn:
    try:
        import pickle

        default_signals()
        for inherited in list(_not_for_children):
            inherited.close()
        try:
            data = pickle.dumps((True, function(*args)))
        except BaseException as error:  # noqa: BLE001 - the parent raises it again
            data = pickle.dumps((False, portable(error)))
        _flush()
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view) :]
    finally:
        os._exit(0)


def portable(error: BaseException) -> BaseException:
    """Return ``error`` if it survives pickling, or else a RuntimeError that says the same."""
    import pickle
    import traceback

    text = "".join(traceback.format_exception(error)).rstrip()
    error.add_note(f"In the child process:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:  # noqa: BLE001 - whatever it is, it does not pickle
        return RuntimeError(text)
    return error


def call(function: Callable[..., T], *args: Any, timeout: float = 30.0) -> T:
    """Run ``function(*args)`` in a forked child; return or raise what it did.

    ``timeout`` is in seconds. The arguments may be anything; the result has to pickle.
    """
    return Child(function, *args).result(timeout)
