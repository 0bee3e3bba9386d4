"""A document: YAML in which everything knows its place, so that every complaint can point at it.

    root = load(text, "policy.yaml")
    fields = root.mapping(required=("name",), optional=("ports",))
    name = fields["name"].text(r"[a-z]+", "name of a policy")
    ports = [node.integer(1, 65535) for node in fields["ports"].one_or_many()]

:func:`load` reads, and raises BadInput for all that is no document; the methods of a
:class:`Node` check, and raise BadInput at the node's place, with its line. Scalars follow the
core schema of YAML 1.2: ``no`` and ``on`` are words, ``80:90`` and ``2001-01-01`` too, ``010`` is
ten. Merge keys (``<<``) are taken from YAML 1.1. How it is read: ``nfctl.compose``.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from nfctl.errors import BadInput, Where, excerpt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Kind(StrEnum):
    """What a node is, in the words of an error."""

    MAPPING = "a mapping"
    LIST = "a list"
    TEXT = "text"
    INTEGER = "an integer"
    FLOAT = "a decimal number"
    BOOLEAN = "true or false"
    NULL = "nothing"


_LONGEST_SHOWN: Final = 60  # characters of a wrong word that an error repeats
_TRUE: Final = frozenset({"true", "yes", "on", "y", "1", "enabled"})
_FALSE: Final = frozenset({"false", "no", "off", "n", "0", "disabled"})
_PROPERTIES: Final = re.compile(r"(?:[!&]\S*\s+)*")  # a tag and an anchor, before a scalar
_BLOCKS: Final = frozenset("|>")
# What stands for one character of a scalar's text, by its style.
_PIECES: Final = {
    '"': re.compile(r"\\(?:x..|u.{4}|U.{8}|.)|.", re.DOTALL),
    "'": re.compile(r"''|.", re.DOTALL),
}
_LINE_END: Final = re.compile(r"\n")
_ANY: Final = re.compile(r".", re.DOTALL)
_BLANK_ESCAPES: Final = frozenset("ntrvf N_LP\t\n\r")
_RADIX: Final = {"0x": 16, "0o": 8}


def load(text: str | bytes, source: str) -> Node:
    """Read one YAML document; ``source`` names it in errors. An empty one is a null node.

    BadInput with the place for bad syntax, characters that are no text, duplicate keys and
    those that are no text, unknown tags, several documents, anchors that hold themselves or
    make too much of it, and nesting that is too deep.
    """
    from nfctl.compose import compose

    return compose(text, source)


def contents(file: str) -> bytes:
    """Return what is in a file; BadInput if it cannot be read."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 - a path as typed, for the error message
            return stream.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"cannot read {shown(file)}: {reason}"
        raise BadInput(msg) from None


def standard_input() -> bytes:
    """Return what comes on standard input, to its end; BadInput if it cannot be read."""
    try:
        return sys.stdin.buffer.read()
    except (OSError, AttributeError) as error:  # closed: there is no sys.stdin then
        reason = error.strerror if isinstance(error, OSError) else "it is closed"
        msg = f"cannot read standard input: {reason}"
        raise BadInput(msg) from None


def shown(text: str) -> str:
    """Quote a word for a message: on one line, without control characters, not too long."""
    if len(text) > _LONGEST_SHOWN:
        text = text[: _LONGEST_SHOWN - 3] + "..."
    quoted = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f'"{quoted}"'


def known(word: str, names: Iterable[str], what: str = "known are") -> str:
    """Return a hint for a word that is none of ``names``: the nearest of them, and all."""
    import difflib

    names = list(names)
    if not names:
        return ""
    near = difflib.get_close_matches(word.lower(), names, n=1)
    listed = f"{what} {', '.join(names)}"
    return f'did you mean "{near[0]}"? {listed}' if near else listed


class Origin:
    """The text of a document and its name; turns offsets into places."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self._lines: list[int] = []  # where each begins, as soon as one place is asked for

    def where(self, index: int) -> Where:
        """Return the place of the character at ``index``; a line ends with a line feed."""
        if not self._lines:
            self._lines = [0, *(end.end() for end in _LINE_END.finditer(self.text))]
        line = bisect_right(self._lines, index)
        return Where(self.name, line, index - self._lines[line - 1] + 1)

    def error(self, message: str, where: Where | int, hint: str = "") -> BadInput:
        """Return an error about a place, with the line there."""
        place = self.where(where) if isinstance(where, int) else where
        error = BadInput(message, hint=hint, where=place)
        error.excerpt = excerpt(self.text, place)
        return error


class Node:
    """A mapping, a list or a scalar of a document, and its place.

    ``kind`` says which; ``raw`` is a scalar's text, whatever its kind, and ``style`` how that is
    written: plain (""), quoted ("'" or '"'), or a block ("|" or ">").
    """

    __slots__ = ("_index", "_origin", "children", "height", "kind", "pairs", "raw", "size", "style")

    def __init__(
        self, origin: Origin, index: int, kind: Kind, raw: str = "", style: str = ""
    ) -> None:
        self._origin = origin
        self._index = index
        self.kind = kind
        self.raw = raw
        self.style = style
        self.children: list[Node] = []  # of a list
        self.pairs: dict[str, tuple[Node, Node]] = {}  # of a mapping: key and value by key
        self.size = 1  # nodes in it, itself counted, aliases written out
        self.height = 1  # levels

    def __repr__(self) -> str:
        """Say what it is and where."""
        return f"<{self.kind} at {self.where}>"

    # --- places ---------------------------------------------------------------------------------

    @property
    def where(self) -> Where:
        """Where it begins."""
        return self._origin.where(self._index)

    def error(self, message: str, hint: str = "", *, where: Where | None = None) -> BadInput:
        """Return an error at this node's place, or another of its document, to be raised."""
        return self._origin.error(message, where or self._index, hint)

    def key(self, name: str) -> Node:
        """Return the key called ``name`` of a mapping, as a node."""
        return self.pairs[name][0]

    def at(self, loc: Sequence[str | int], *, key: bool = False) -> Where:
        """Return the place that a row of keys and indices leads to, or its last key's.

        What leads nowhere is passed over: pydantic puts the names of types into its ``loc``.
        """
        node: Node = self
        place = node
        for part in loc:
            if isinstance(part, int) and -1 < part < len(node.children):
                node = place = node.children[part]
            elif isinstance(part, str) and part in node.pairs:
                place, node = node.pairs[part]
                place = place if key else node
        return place.where

    def inner(self, line: int, column: int) -> Where:
        """Return the place of a character of a scalar's text, by its line and column from 1.

        Exact in a text of any style, also past folds and escapes, for all that is no blank. What
        is behind the last line's end counts as that end.
        """
        lines = self.raw.removesuffix("\n").split("\n")
        if line > len(lines):
            line, column = len(lines), len(lines[-1]) + 1
        text = self._origin.text
        start = self._index + len(_PROPERTIES.match(text, self._index)[0])  # type: ignore[index]
        if self.style in _BLOCKS:
            start = text.find("\n", start) + 1 or len(text)
        if self.style == "|":
            rows = text[start:].split("\n", len(lines))
            pairs = zip(rows, lines, strict=False)
            indent = next((len(row.rstrip("\r")) - len(own) for row, own in pairs if own), 0)
            first = self._origin.where(start).line
            return Where(self._origin.name, first + line - 1, indent + column)
        offset = sum(len(own) + 1 for own in lines[: line - 1]) + column - 1
        return self._origin.where(self._walk(start + (self.style in _PIECES), offset))

    def _walk(self, start: int, offset: int) -> int:
        """Find the source of a character: as many characters that are no blanks come before."""
        before, here = self.raw[:offset], self.raw[offset : offset + 1].strip()
        wanted = sum(not char.isspace() for char in before)
        blanks = len(before) - len(before.rstrip())
        end = start
        for piece in _PIECES.get(self.style, _ANY).finditer(self._origin.text, start):
            if not wanted and not here:
                break
            if not _is_blank(piece[0]):
                if not wanted:
                    return piece.start()
                wanted -= 1
                end = piece.end()
        return end + blanks

    # --- what it should be ----------------------------------------------------------------------

    def mapping(
        self, *, required: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> dict[str, Node]:
        """Return the values by key; BadInput for a key that is missing or not known.

        Nothing at all is a mapping without keys.
        """
        self._expect(Kind.MAPPING)
        required = list(required)
        names = [*required, *optional]
        for name, (key, _) in self.pairs.items():
            if name not in names:
                raise key.error(f"there is no key {shown(name)} here", known(name, names))
        for name in required:
            if name not in self.pairs:
                raise self.error(f'the key "{name}" is missing')
        return {name: value for name, (_, value) in self.pairs.items()}

    def items(self) -> Sequence[tuple[Node, Node]]:
        """Return the keys and values of a mapping that may have any keys."""
        self._expect(Kind.MAPPING)
        return [*self.pairs.values()]

    def list(self) -> Sequence[Node]:
        """Return the elements of a list; nothing at all is an empty one."""
        self._expect(Kind.LIST)
        return self.children

    def one_or_many(self) -> Sequence[Node]:
        """Return the elements of a list, or the one value that stands there instead."""
        return self.children if self.kind in {Kind.LIST, Kind.NULL} else [self]

    def text(self, pattern: str = "", what: str = "", hint: str = "") -> str:
        """Return a text, all of which must match ``pattern`` if given, as a "host name" would.

        A number is no text unless it is quoted.
        """
        if self.kind is not Kind.TEXT:
            quoted = f'quote it: "{self.raw}"' if self.raw else ""
            article = "an" if what[:1] in tuple("aeiou") else "a"
            raise self._wrong(f"{article} {what}" if what else Kind.TEXT, quoted)
        if pattern and not re.fullmatch(pattern, self.raw):
            raise self.error(f"{shown(self.raw)} is no {what or 'such word'}", hint)
        return self.raw

    def scalar(self) -> str:
        """Return a scalar as it is written, be it text, a number, or true or false."""
        if self.kind in {Kind.MAPPING, Kind.LIST, Kind.NULL}:
            raise self._wrong("one value")
        return self.raw

    def integer(self, low: int | None = None, high: int | None = None) -> int:
        """Return an integer from ``low`` to ``high``."""
        if self.kind is not Kind.INTEGER:
            unquoted = self.style and re.fullmatch(r"[0-9]{1,20}", self.raw)
            raise self._wrong(Kind.INTEGER, "write it without quotes" if unquoted else "")
        number = _number(self.raw)
        if (low is not None and number < low) or (high is not None and number > high):
            limits = [f"{low} at least" if low is not None else "", f"{high} at most"]
            hint = ", ".join(filter(None, limits if high is not None else limits[:1]))
            raise self.error(f"{self.raw} is out of range", hint)
        return number

    def boolean(self) -> bool:
        """Return true or false."""
        if self.kind is not Kind.BOOLEAN:
            word = self.raw.lower()
            hint = "write true" if word in _TRUE else "write false" if word in _FALSE else ""
            raise self._wrong(Kind.BOOLEAN, hint)
        return self.raw.lower() == "true"

    def choice(self, *choices: str) -> str:
        """Return a text that is one of ``choices``."""
        word = self.text()
        if word not in choices:
            raise self.error(f"{shown(word)} is not possible here", known(word, choices, "it is"))
        return word

    def plain(self) -> object:
        """Return it all as dicts, lists, str, int, float, bool and None."""
        if self.kind is Kind.MAPPING:
            return {name: value.plain() for name, (_, value) in self.pairs.items()}
        if self.kind is Kind.LIST:
            return [child.plain() for child in self.children]
        if self.kind is Kind.INTEGER:
            return _number(self.raw)
        if self.kind is Kind.FLOAT:
            return float(self.raw.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if self.kind is Kind.BOOLEAN:
            return self.boolean()
        return None if self.kind is Kind.NULL else self.raw

    def _expect(self, kind: Kind) -> None:
        if self.kind not in {kind, Kind.NULL}:
            raise self._wrong(kind)

    def _wrong(self, wanted: str, hint: str = "") -> BadInput:
        what = str(self.kind)
        if self.kind not in {Kind.MAPPING, Kind.LIST, Kind.NULL}:
            what = shown(self.raw) if self.kind is Kind.TEXT else self.raw
        return self.error(f"{wanted} is expected here, not {what}", hint)


def _number(raw: str) -> int:
    return int(raw, _RADIX.get(raw[:2], 10))


def _is_blank(piece: str) -> bool:
    """Whether a character of a scalar is a blank, be it written as an escape."""
    if len(piece) < 2 or piece[0] != "\\":
        return piece.isspace()
    if piece[1] in "xuU":
        return chr(int(piece[2:], 16)).isspace()
    return piece[1] in _BLANK_ESCAPES
