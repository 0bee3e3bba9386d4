"""Words: how a line of iptables-save text is split, and how a word is quoted.

The splitting is the one of ``add_param_to_argv()`` in iptables/xshared.c: blanks and tabs
separate; a double quote opens a stretch in which a backslash protects the next character; the
closing quote ends the word there and then. Outside quotes a backslash is a character as any
other, and single quotes mean nothing.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from nfctl.errors import BadInput, Where

_PIECE = re.compile(r'([ \t]+)|([^ \t"]+)|"((?:[^"\\]|\\.)*)(")?', re.DOTALL)
# a word alone, and the blank behind it: what nearly all of every line is made of
_SIMPLE = re.compile(r'(?:([^ \t"]+)|"([^"\\]*)")(?: |$)')
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PLAIN = re.compile(r"[-_0-9A-Za-z]+")
_BARE = re.compile(r'[^ \t"\r\n]+')
_DANGEROUS = re.compile(r"([\"\\'])")


class Word(NamedTuple):
    """One word, unquoted, with the column (from 1) where it begins."""

    text: str
    column: int = 0


def split(line: str, *, source: str = "", number: int = 0, column: int = 1) -> list[Word]:
    """Split ``line`` into words.

    ``column`` is the column of the line's first character. Raises BadInput with the place when
    a quote is never closed (iptables-restore would silently take the rest of the line).
    """
    words: list[Word] = []
    if '"' not in line and "\t" not in line:
        at = column
        for text in line.split(" "):
            if text:
                words.append(Word(text, at))
            at += len(text) + 1
        return words
    at = 0
    for simple in _SIMPLE.finditer(line):
        if simple.start() != at:
            break
        bare, quoted = simple.groups()
        words.append(Word(quoted if bare is None else bare, column + at))
        at = simple.end()
    if at == len(line):
        return words
    words.clear()
    start: int | None = None
    text = ""
    at = 0
    while at < len(line):
        piece = _PIECE.match(line, at)
        assert piece is not None  # noqa: S101 - the three branches cover every character
        blank, plain, quoted, closed = piece.groups()
        if blank is not None:
            if start is not None:
                words.append(Word(text, column + start))
            start, text = None, ""
        elif plain is not None:
            start = at if start is None else start
            text += plain
        else:
            start = at if start is None else start
            if closed is None:
                msg = "a double quote is opened and never closed"
                raise BadInput(msg, where=Where(source, number, column + at) if source else None)
            words.append(Word(text + _ESCAPED.sub(r"\1", quoted), column + start))
            start, text = None, ""
        at = piece.end()
    if start is not None:
        words.append(Word(text, column + start))
    return words


def quote(word: str) -> str:
    """Quote ``word`` as ``xtables_save_string()`` in libxtables/xtables.c does, if it must be."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + _DANGEROUS.sub(r"\\\1", word) + '"'


def join(words: list[str] | tuple[str, ...]) -> str:
    """Join words to a line that :func:`split` takes apart into the same words.

    Only words that need it are quoted, so that ``10.0.0.0/8`` and ``--dport`` stay as they are.
    """
    return " ".join(word if _BARE.fullmatch(word) else quote(word) for word in words)
