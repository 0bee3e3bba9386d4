"""How commands answer: documents, bytes, errors and exit codes; without typer, which is slow."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING

from nfctl.errors import NfctlError, excerpt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.control.change import Change

_LARGEST = 64 << 20  # bytes of a file that is read for a line of it


def print_json(document: object) -> None:
    """Print one document, readable on a terminal and compact in a pipe."""
    import json

    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a name that is not UTF-8; JSON has to be
            text = json.dumps(document, indent=indent)
    write(text + "\n")


def write(text: str) -> None:
    """Write to standard output the bytes that were read: names need not be UTF-8."""
    sys.stdout.flush()
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(1, data) :]


@contextlib.contextmanager
def heard(what: str) -> Iterator[None]:
    """Print in the ``with`` block what is done: that nobody can hear it makes it no failure."""
    try:
        yield
    except OSError as error:
        print(f"nfctl: it is {what}, and cannot be told: {error}", file=sys.stderr)


def colours() -> bool:
    """Whether standard output takes colours: a terminal, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width() -> int:
    """Return how many characters a line of the terminal has; 0 where standard output is none."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 0


def change_text(change: Change, *, full: bool = False) -> str:
    """Return the text of a change, fit for where standard output goes."""
    from nfctl.control.show import text

    return text(change, colour=colours(), width=width(), full=full)


def run(action: Callable[[], int]) -> int:
    """Run a command; return the exit code. Errors go to standard error, never as a traceback."""
    try:
        code = action()
        sys.stdout.flush()
    except NfctlError as error:
        show(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("nfctl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has seen enough; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"nfctl: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    return code


def show(error: NfctlError) -> None:
    """Print an error: what is wrong, where, and what would be right."""
    where = f"{error.where}: " if error.where and error.where.source else ""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    word = "\033[1;31merror:\033[0m" if colour else "error:"
    text = f"nfctl: {word} {where}{error.message}"
    line = error.excerpt or _line(error)
    if line:
        text += f"\n{line}"
    if error.hint:
        text += f"\n  hint: {error.hint}"
    print(text.encode("utf-8", "replace").decode("utf-8", "replace"), file=sys.stderr)


def _line(error: NfctlError) -> str:
    """Return the line of a file that an error is about; "" where there is none to be read."""
    where = error.where
    if where is None or not where.line:
        return ""
    try:
        status = os.stat(where.source)  # noqa: PTH116 - a path as typed
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            return ""
        with open(where.source, encoding="utf-8", errors="replace", newline="\n") as file:  # noqa: PTH123
            return excerpt(file.read(), where)
    except (OSError, ValueError):
        return ""
