"""Variables: ``${name}`` in rules and entries of sets, and what their values come to.

A variable stands for one word or a part of one, or for a list of such; ``$${`` is ``${`` itself.
Values may refer to other variables. How a list is used where it stands: ``expand``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.document import Kind, known, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nfctl.document import Node
    from nfctl.errors import BadInput, Where

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_CONTROL: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")  # all but the tab
_DEEPEST: Final = 64  # variables that refer to each other in a row
_LONGEST: Final = 1023  # characters of a value: iptables takes no longer word
_MOST: Final = 1_000_000  # values of all variables together
_MOST_TEXT: Final = 64 << 20  # characters of them


class Reference(NamedTuple):
    """``${name}``, and where it begins in the text, from 0."""

    name: str
    at: int


class Variable(NamedTuple):
    """What a variable comes to; ``listed`` where it is a list, be it of one or none."""

    name: str
    values: tuple[str, ...]
    listed: bool
    node: Node

    @property
    def where(self) -> Where:
        """The place of its value."""
        return self.node.where


def place(node: Node, offset: int) -> Where:
    """Return the place of a character of a scalar's text, counted from 0."""
    line = node.raw.count("\n", 0, offset) + 1
    return node.inner(line, offset - node.raw.rfind("\n", 0, offset))


def pieces(text: str, fail: Callable[[int, str, str], BadInput]) -> list[str | Reference]:
    """Take a text apart: what stands there itself, and references.

    ``fail`` makes the error about a character (from 0) from a message and a hint.
    """
    found: list[str | Reference] = []
    end = 0
    for match in _REFERENCE.finditer(text):
        start, name = match.start(), match[1]
        if start > end:
            found.append(text[end:start])
        end = match.end()
        if match[0] == "$${":
            found.append("${")
        elif name is None:
            raise fail(start, "${ has no }", "a variable is ${name}; write $${ for ${ itself")
        elif not _NAME.fullmatch(name):
            raise fail(start, f"{shown(name)} is no name of a variable", "${name}")
        else:
            found.append(Reference(name, start))
    if end < len(text):
        found.append(text[end:])
    return found


class Variables:
    """All variables of a policy, with their values worked out."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._values: dict[str, Variable] = {}
        self._count = self._size = 0
        for name in nodes:
            self._resolve(name, [])

    def find(self, name: str, fail: Callable[[str, str], BadInput]) -> Variable:
        """Return a variable; ``fail`` makes the error if there is none."""
        variable = self._values.get(name)
        if variable is None:
            raise fail(*self._missing(name))
        return variable

    def _missing(self, name: str) -> tuple[str, str]:
        hint = known(name, self._nodes, "there are") if self._nodes else "variables: defines them"
        return f"there is no variable {shown(name)}", hint

    def _resolve(self, name: str, way: Sequence[str]) -> Variable:
        done = self._values.get(name)
        if done is not None:
            return done
        node = self._nodes[name]
        inside = [*way, name]
        if len(inside) > _DEEPEST:
            msg = f"more than {_DEEPEST} variables refer to each other in a row"
            raise node.error(msg)
        listed = node.kind is Kind.LIST
        values: list[str] = []
        for element in node.children if listed else [node]:
            found = self._element(element, inside)
            if isinstance(found, Variable):
                listed = listed or found.listed
                new: Sequence[str] = found.values
            else:
                new = [found]
            self._count += len(new)
            self._size += sum(map(len, new))
            if self._count > _MOST or self._size > _MOST_TEXT:
                raise element.error("the variables come to too many values", f"{_MOST} at most")
            values += new
        made = self._values[name] = Variable(name, tuple(values), listed, node)
        return made

    def _element(self, node: Node, way: Sequence[str]) -> str | Variable:
        """Return what one value comes to: text, or the whole variable that it names."""
        text = node.raw.removesuffix("\n")
        if "${" not in text:
            return _checked(text, node)

        def fail(at: int, message: str, hint: str) -> BadInput:
            return node.error(message, hint, where=place(node, at))

        parts = pieces(text, fail)
        made = []
        for part in parts:
            if isinstance(part, str):
                made.append(part)
                continue
            name = part.name
            if name not in self._nodes:
                raise fail(part.at, *self._missing(name))
            if name in way:
                around = " -> ".join([*way[way.index(name) :], name])
                raise fail(part.at, f"the variable {shown(name)} refers to itself", around)
            variable = self._resolve(name, way)
            if len(parts) == 1:
                return variable
            if variable.listed:
                hint = f"a list can only be a whole value: ${{{name}}}"
                raise fail(part.at, f"{shown(name)} is a list, and here is more beside it", hint)
            made.append(variable.values[0])
        return _checked("".join(made), node)


def _checked(text: str, node: Node) -> str:
    bad = _CONTROL.search(text)
    if bad is not None:
        msg = f"a value must not hold the control character U+{ord(bad[0]):04X}"
        raise node.error(msg, "a value is a word of a rule")
    if len(text) > _LONGEST:
        msg = f"a value of {len(text)} characters is too long"
        raise node.error(msg, f"{_LONGEST} at most: it is a word of a rule")
    return text
