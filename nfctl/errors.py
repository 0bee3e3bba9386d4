"""The errors of nfctl: what is wrong, where, what would be right, and the exit code.

Every error that a user can cause is an :class:`NfctlError`. The command line prints
``message``, ``where`` and ``hint`` on standard error and ends with ``exit_code``; the
Python API raises the same objects. This module imports nothing of the project.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class Where(NamedTuple):
    """A place in an input: a file's name (or ``<stdin>``), a line and a column, both from 1.

    ``line`` is 0 where the input has none; words on the command line have no source either, and
    are counted from the first word of the rule.
    """

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """``source:line:column``, without the parts that are not known."""
        parts = [self.source]
        if self.line:
            parts.append(str(self.line))
            if self.column:
                parts.append(str(self.column))
        return ":".join(parts)


class NfctlError(Exception):
    """The base of all errors: ``message``, an optional ``hint`` and an optional ``where``."""

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "", where: Where | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where
        #: The line the error is about and a caret under the column, where there is a line.
        self.excerpt = ""

    def __str__(self) -> str:
        """One line: the place, the message and the hint."""
        text = f"{self.where}: {self.message}" if self.where and self.where.source else self.message
        return f"{text} ({self.hint})" if self.hint else text

    def at(self, where: Where) -> NfctlError:
        """Return this error with its place filled in, if it had none."""
        if self.where is None:
            self.where = where
        return self


class AnswerNo(NfctlError):
    """The question was understood and the answer is no: a rule that is not there (exit 1)."""

    exit_code = 1


class BadInput(NfctlError):
    """Bad usage or bad input; nothing was changed (exit 2)."""

    exit_code = 2


class NotPermitted(NfctlError):
    """The caller lacks a privilege, CAP_NET_ADMIN as a rule (exit 3)."""

    exit_code = 3


class Unsupported(NfctlError):
    """The kernel or a library lacks what was asked for (exit 3)."""

    exit_code = 3


class Locked(NfctlError):
    """Another program holds the xtables lock (exit 4)."""

    exit_code = 4


class Changed(NfctlError):
    """The kernel's table changed between reading and writing it (exit 4)."""

    exit_code = 4


class RolledBack(NfctlError):
    """A part of the change failed after others were committed; those were put back (exit 5)."""

    exit_code = 5


class HalfApplied(RolledBack):
    """A part of the change failed, and not everything could be put back (exit 5)."""


def excerpt(text: str, where: Where | None) -> str:
    """Return the line of ``text`` at a place, and a caret under its column; "" without a line.

    Of a long line, what is around the column. Whatever a terminal would obey is a "?".
    """
    if where is None or not where.line:
        return ""
    lines = text.split("\n")
    if where.line > len(lines):
        return ""
    line = lines[where.line - 1].removesuffix("\r").replace("\t", " ")
    column = where.column
    if len(line) > 160:
        start = max(0, column - 60)
        line, column = line[start : start + 120], column - start
    line = "".join(char if char.isprintable() else "?" for char in line)
    return f"  {line}\n  {' ' * max(0, column - 1)}^"
