"""libxtables' own words for what is wrong with an option.

``exit_err`` is a C function with a format and arguments that must not return. On the quick path
it is a longjmp, which loses the words. So, on the error path only, a child process parses the
same thing again with an ``exit_err`` that formats the message with ``snprintf``, sends it through
a pipe and ends the child.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import sys
import warnings
from typing import TYPE_CHECKING

from nfctl.kernel.libraries import libraries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ARGUMENTS = 8
_EXIT_ERR = ct.CFUNCTYPE(None, ct.c_int, ct.c_void_p, *[ct.c_void_p] * _ARGUMENTS)


def _formatted(text: int, arguments: tuple[int | None, ...]) -> bytes:
    buffer = ct.create_string_buffer(1024)
    # The arguments are integers and pointers in libxtables' messages; doubles, which travel in
    # other registers, occur in none of them.
    libraries().libc.snprintf(
        buffer, ct.c_size_t(len(buffer)), ct.c_void_p(text), *map(ct.c_void_p, arguments)
    )
    return buffer.value


def explain(action: Callable[[], object]) -> str:
    """Return the words with which libxtables refuses ``action``; "" if it does not."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # Python warns of fork in a process with threads; this child only parses and ends.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _speak(action, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    return " ".join(words.decode("utf-8", "replace").split())


def _speak(action: Callable[[], object], write_end: int) -> None:
    def exit_err(_status: int, text: int, *arguments: int | None) -> None:
        os.write(write_end, _formatted(text, arguments))
        os._exit(0)

    callback = _EXIT_ERR(exit_err)
    try:
        # warnings that were printed the first time need not be printed again
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        os.dup2(quiet, 1)
        libraries().set_exit_err(ct.cast(callback, ct.c_void_p).value)
        with contextlib.suppress(BaseException):
            action()
    finally:
        os._exit(0)


@contextlib.contextmanager
def deadly() -> Iterator[None]:
    """While bytes are printed there is no way back from ``exit_err``: say its words and end.

    No extension that prints a rule the kernel accepted is known to call it; without this the
    call would jump into a stack frame that is gone.
    """

    def exit_err(_status: int, text: int, *arguments: int | None) -> None:
        os.write(2, b"nfctl: libxtables: " + _formatted(text, arguments).strip() + b"\n")
        os._exit(3)

    callback = _EXIT_ERR(exit_err)
    sys.stderr.flush()
    lib = libraries()
    lib.set_exit_err(ct.cast(callback, ct.c_void_p).value)
    try:
        yield
    finally:
        lib.set_exit_err(None)
