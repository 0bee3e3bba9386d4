"""A file of iptables-save text, read: sections of a table each, and in them what is to be done.

Everything iptables-restore(8) reads is read: ``*table``, ``:CHAIN POLICY [packets:bytes]``,
rules with and without counters, every command of iptables(8) that may stand in a line
(-A -I -D -R -N -X -F -Z -P -E -C, long or short, first or not), lines marked ``-4`` or ``-6``,
comments, ``COMMIT``. What is wrong is said with file, line and column.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from nfctl.errors import BadInput, Where
from nfctl.ruleset.fields import c_integer
from nfctl.ruleset.names import MAX_NAME, POLICIES, check_table
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import Word, split

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[int, int]


class Append(NamedTuple):
    """``-A CHAIN SPEC``: nearly every line of nearly every file."""

    chain: str
    spec: str  # the text after the chain
    counters: Pair | None  # (packets, bytes)
    line: int
    column: int  # where spec begins
    words: tuple[Word, ...] | None = None  # instead of spec, where the line is not in that form


class Command(NamedTuple):
    """Any other line. ``verb`` is the command's letter, ``:`` for the declaration of a chain."""

    verb: str
    chain: str  # "" for all chains
    line: int
    column: int
    number: int | None = None  # a rule's number, from 1
    argument: str = ""  # a policy ("-" for none), or a new name
    counters: Pair | None = None
    words: tuple[Word, ...] = ()  # a rule's specification


class Section(NamedTuple):
    """One table's part of a file, from ``*table`` to ``COMMIT``."""

    table: str
    line: int
    items: list[Append | Command]


class Script(NamedTuple):
    """A whole file."""

    source: str  # the file's name, for messages
    sections: list[Section]


_COMMANDS = {
    "A": "append",
    "I": "insert",
    "D": "delete",
    "R": "replace",
    "N": "new-chain",
    "X": "delete-chain",
    "F": "flush",
    "Z": "zero",
    "P": "policy",
    "E": "rename-chain",
    "C": "check",
}
_VERBS = {f"-{letter}": letter for letter in _COMMANDS}
_VERBS |= {f"--{name}": letter for letter, name in _COMMANDS.items()}
_COUNTED = re.compile(r"\[([0-9]{1,19}):([0-9]{1,19})\] -A ")  # fewer digits than 2**64 has
_PLAIN_CHAIN = re.compile(r'[^-!"\t][^"\t]*')
_BLANK = {"", " ", "\t"}
_COUNTERS = re.compile(r"\[([0-9]+):([0-9]+)\][ \t]*")
_NO_BLANKS = re.compile(r"[^ \t]+")
_U64 = (1 << 64) - 1
# a word -4, -6, --ipv4 or --ipv6 has one of these, however it is quoted; of rare characters one
# is looked for alone, which is quicker
_MARKS = (" -4", " -6", "--ipv", '"-', '-"', "\t", "\\")


def parse(
    text: str, *, source: str = "<stdin>", family: int = 4, only: str | None = None
) -> Script:
    """Read iptables-save text.

    ``only`` names the one table to keep (``-t``); the others are read over as iptables-restore
    does. ``family`` decides about lines marked -4 or -6. Raises BadInput with the place.
    """
    _check_bytes(text, source)
    return Script(source, list(_Reader(text, source, family, only).sections()))


def _may_be_marked(text: str) -> bool:
    """Whether a line of the text may be for one family alone; exact where it says no."""
    return any(mark in text for mark in _MARKS)


def decode(data: bytes, source: str) -> str:
    """Return a file's bytes as text; BadInput with the place where it is no text."""
    text = data.decode("utf-8", "surrogateescape")
    _check_bytes(text, source)
    return text


def _check_bytes(text: str, source: str) -> None:
    """Raise BadInput for what is not the text of any bytes that C takes to the end."""
    at, message = text.find("\0"), "this is no text: there is a NUL byte"
    try:
        if not text.isascii():
            text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        if not 0 <= at < error.start:
            at, message = error.start, "half of a surrogate pair is no character"
    if at >= 0:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        raise BadInput(message, where=Where(source, line, column))


class _Reader:
    def __init__(self, text: str, source: str, family: int, only: str | None) -> None:
        self.lines = text.split("\n")
        self.marked = _may_be_marked(text)
        self.carriage = "\r\n" in text or text.endswith("\r")
        self.source = source
        self.family = family
        self.only = only
        self.number = 0

    def fail(self, message: str, column: int = 1, hint: str = "") -> NoReturn:
        raise BadInput(message, hint=hint, where=Where(self.source, self.number, column))

    def sections(self) -> Iterator[Section]:
        section: Section | None = None
        found = False
        if self.lines and not self.lines[-1]:
            self.lines.pop()
        match_counted = _COUNTED.match
        new = tuple.__new__  # a NamedTuple's own constructor is slow
        plain = ""  # the chain of the line before
        marked = self.marked
        items: list[Append | Command] = []
        for number, line in enumerate(self.lines, 1):
            self.number = number
            if section is not None and not self.carriage:
                # The quick way is for what iptables-save prints; lines marked for one family,
                # quoted names and needless blanks are for _command().
                counters, start = None, 3
                if line[:1] == "[":
                    counted = match_counted(line)
                    if counted is not None:
                        counters = (int(counted[1]), int(counted[2]))
                        start = counted.end()
                if counters is not None or line[:3] == "-A ":
                    end = line.find(" ", start)
                    chain = line[start:end]
                    if (
                        end > start
                        and (chain == plain or _PLAIN_CHAIN.fullmatch(chain))
                        and line[end + 1 : end + 2] not in _BLANK
                        and not (marked and _may_be_marked(line))
                    ):
                        plain = chain
                        fields = (chain, line[end + 1 :], counters, number, end + 2, None)
                        items.append(new(Append, fields))
                        continue
            if not line or line[0] == "#":
                continue
            if line[-1] == "\r":
                self.fail(
                    "the line ends with a carriage return", len(line), "convert the file: dos2unix"
                )
            if section is None:
                if line[0] != "*":
                    self.fail("this stands outside a table", 1, "a table begins with *NAME")
                section = self._begin(line)
                items = section.items
                found = True
            elif line.rstrip(" \t") == "COMMIT":
                if self.only is None or section.table == self.only:
                    yield section
                section = None
            elif line[0] == ":":
                items.append(self._declaration(line))
            elif line[0] == "*":
                self.fail(f"table {section.table} has no COMMIT before this", 1)
            else:
                items.extend(self._command(line))
        self.number = len(self.lines) + 1
        if section is not None:
            self.fail(f"COMMIT is missing: table {section.table} begins in line {section.line}")
        if not found:
            self.number = 0
            self.fail(
                "there is no table in this input",
                0,
                "a table begins with *filter and ends with COMMIT",
            )

    def _begin(self, line: str) -> Section:
        words = line[1:].split()
        if not words:
            self.fail("the name of a table must follow *", 2)
        try:
            check_table(words[0])
        except BadInput as error:
            raise error.at(Where(self.source, self.number, 2)) from None
        return Section(words[0], self.number, [])

    def _declaration(self, line: str) -> Command:
        if line.endswith(" - [0:0]"):  # of thousands, as iptables-save writes them
            plain, blank, _ = line[1:-8].partition(" ")
            if plain.isascii() and plain.isprintable() and not blank and 0 < len(plain) <= MAX_NAME:
                return Command(":", plain, self.number, 2, None, "-", (0, 0))
        # iptables-restore knows no quotes here
        words = [Word(found[0], found.start() + 1) for found in _NO_BLANKS.finditer(line, 1)]
        if not words:
            self.fail("the name of a chain must follow :", 2)
        name = words[0]
        if len(name.text.encode("utf-8", "surrogateescape")) > MAX_NAME:
            self.fail(f"Invalid chain name `{name.text}' ({MAX_NAME} chars max)", name.column)
        if len(words) < 2:
            self.fail(
                f"chain {name.text} has no policy",
                len(line) + 1,
                "ACCEPT, DROP, or - for a chain of yours",
            )
        policy = words[1].text
        if policy not in (*POLICIES, "-"):
            self.fail(
                f"a policy is ACCEPT or DROP (- for a chain of yours), not {policy!r}",
                words[1].column,
            )
        counters = None
        if len(words) > 2:
            found = _COUNTERS.fullmatch(words[2].text)
            if found is None:
                self.fail(
                    f"invalid policy counters for chain '{name.text}'",
                    words[2].column,
                    "[packets:bytes]",
                )
            counters = (_count(found[1]), _count(found[2]))
        return Command(":", name.text, self.number, name.column, argument=policy, counters=counters)

    # --- a line with a command ----------------------------------------------------------------

    def _command(self, line: str) -> list[Append | Command]:
        column, counters = 1, None
        if line[0] == "[":
            found = _COUNTERS.match(line)
            if found is None:
                self.fail("the counters before a rule are not [packets:bytes]")
            counters = (_count(found[1]), _count(found[2]))
            column += found.end()
        words = split(line[column - 1 :], source=self.source, number=self.number, column=column)
        words, ours = self._family(words)
        if not ours:
            return []
        at = next(
            (i for i in _places(words) if words[i].text in _VERBS or _attached(words[i].text)),
            None,
        )
        if at is None:
            column = words[0].column if words else column
            self.fail("there is no command in this line", column, "a rule begins with -A CHAIN")
        verb = words[at]
        attached = _attached(verb.text)
        letter = attached[0] if attached else _VERBS[verb.text]
        rest = list(words[at + 1 :])
        if attached:
            rest.insert(0, Word(attached[1], verb.column + 2))
        return [self._made(letter, verb.column, words[:at], rest, counters)]

    def _family(self, words: list[Word]) -> tuple[list[Word], bool]:
        marks = [i for i in _places(words) if words[i].text in {"-4", "--ipv4", "-6", "--ipv6"}]
        if any(not words[i].text.endswith(str(self.family)) for i in marks):
            return [], False
        return [word for i, word in enumerate(words) if i not in marks], True

    def _made(
        self, letter: str, column: int, before: list[Word], rest: list[Word], counters: Pair | None
    ) -> Append | Command:
        def operand(what: str) -> Word:
            if not rest or rest[0].text[:1] in {"-", "!"}:
                at = rest[0].column if rest else len(self.lines[self.number - 1]) + 1
                self.fail(f"-{letter} needs {what}", at)
            return rest.pop(0)

        def rule_number(word: Word) -> int:
            found = c_integer(word.text)
            if found is None or not 0 < found < 1 << 31:
                self.fail(f"Invalid rule number `{word.text}'", word.column)
            return found

        chain = ""
        if letter not in "FXZ" or (rest and rest[0].text[:1] != "-"):
            chain = operand("a chain").text
        number: int | None = None
        argument = ""
        if letter in "PE":
            argument = operand("a policy" if letter == "P" else "a new name").text
        elif letter == "R":
            number = rule_number(operand("a rule number"))
        elif letter in "IDZ" and rest and rest[0].text[:1] not in {"-", "!"}:
            number = rule_number(rest.pop(0))
        words = (*before, *rest)
        if letter == "A":
            return Append(chain, "", counters, self.number, column, words)
        takes_rule = letter in "IRC" or (letter == "D" and number is None)
        if words and not takes_rule:
            self.fail(f"-{letter} takes nothing more", words[0].column)
        return Command(letter, chain, self.number, column, number, argument, counters, words)


def _places(words: list[Word]) -> Iterator[int]:
    return option_places([word.text for word in words])


def _count(digits: str) -> int:
    """Read a counter as scanf's ``%llu`` does: past the end it is the largest there is."""
    return min(int(digits.lstrip("0")[:21] or "0"), _U64)


def _attached(text: str) -> tuple[str, str] | None:
    """Split ``-AINPUT`` as getopt does; None if the word is not of that form."""
    if len(text) > 2 and text[0] == "-" and text[1] in _COMMANDS:
        return text[1], text[2:]
    return None
