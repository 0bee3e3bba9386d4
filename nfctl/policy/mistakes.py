"""What is wrong with a policy file's shape: pydantic's findings in our words, with places."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind, known, shown
from nfctl.ruleset.names import TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nfctl.document import Node
    from nfctl.errors import BadInput

Finding = tuple["tuple[int | str, ...]", str, "Mapping[str, object]"]  # loc, type, context

TOP: Final = ("version", "name", "families", "variables", "include", "sets", "keep", "tables")
SET_NUMBERS: Final = (
    "timeout",
    "hashsize",
    "maxelem",
    "bucketsize",
    "netmask",
    "size",
)
SET_FLAGS: Final = ("counters", "comment", "skbinfo", "forceadd")
SET_TEXTS: Final = ("range", "markmask", "bitmask", "initval")
_ONLY_TOP: Final = ("name", "families")
_FAMILIES: Final = ("ipv4", "ipv6")
_OTHER_FAMILIES: Final = {"inet": "ipv4", "inet6": "ipv6", "4": "ipv4", "6": "ipv6"}
_LISTED: Final = 10  # lines of further mistakes


def first(root: Node, findings: Sequence[Finding]) -> BadInput:
    """Return the error that comes first in the file; it says how many others there are."""
    return earliest([_told(root, *finding) for finding in findings])


def earliest(errors: Sequence[BadInput]) -> BadInput:
    """Return the error of the first place, with what it is to say about the others.

    All are of one file. Several about one place are one mistake.
    """
    by_place: dict[tuple[int, int], BadInput] = {}
    for error in errors:
        place = (error.where.line, error.where.column) if error.where else (0, 0)
        by_place.setdefault(place, error)
    places = sorted(by_place)
    error = by_place[places[0]]
    if len(places) > 1:
        rows = [str(line) for line in dict.fromkeys(line for line, _ in places[1:])]
        listed = ", ".join(rows[:_LISTED]) + (", ..." if len(rows) > _LISTED else "")
        count, plural = len(places) - 1, "s" * (len(rows) > 1)
        more = f"{count} more mistake{'s' * (count > 1)}, in line{plural} {listed}"
        error.hint = f"{error.hint}; {more}" if error.hint else more
    return error


def _told(
    root: Node, loc: tuple[int | str, ...], kind: str, context: Mapping[str, object]
) -> BadInput:
    if kind == "extra_forbidden":
        node, path = _follow(root, loc[:-1])
        key = node.key(str(loc[-1]))
        hint = known(key.raw, _names(path))
        if not path and key.raw in _ONLY_TOP:
            hint = "it stands in the file that includes this one"
        return key.error(f"there is no key {shown(key.raw)} here", hint)
    if kind == "missing":
        node, path = _follow(root, loc)
        hint = "a policy begins with: version: 1" if loc == ("version",) else ""
        if loc[-1] == "rule" and any(" " in key for key in node.pairs):
            hint = "a rule with a colon and a blank in it is put in single quotes: '...'"
        return node.error(f'the key "{loc[-1]}" is missing', hint)
    if loc[-1:] == ("[key]",):
        name = str(loc[-2])
        key = _follow(root, loc[:-2])[0].key(name)
        hint = "letters, digits, _ and -, 64 at most, beginning with a letter or _"
        return key.error(f"{shown(name)} is no name of a variable", hint)
    node, path = _follow(root, loc)
    if kind == "string_pattern_mismatch":
        hint = "letters, digits, . _ and -, 64 at most, beginning with a letter or digit"
        return node.error(f"{shown(node.raw)} is no name of a policy", hint)
    if path == ("version",) and node.raw:
        hint = "write it without quotes" if node.raw == "1" else "there is version 1"
        return node.error(f"version {shown(node.raw)} is not known", hint)
    if kind == "literal_error" and node.kind is not Kind.NULL:
        near = _OTHER_FAMILIES.get(node.raw, "")
        hint = f'write "{near}"' if near else known(node.raw, _FAMILIES, "it is")
        return node.error(f"{shown(node.raw)} is no family", hint)
    if kind in {"greater_than_equal", "less_than_equal"}:
        low, high = context.get("ge"), context.get("le")
        hint = f"{low} at least" if low is not None else f"{high} at most"
        return node.error(f"{node.raw} is out of range", hint)
    if kind == "too_short":
        return node.error("the list is empty", "ipv4, ipv6, or both")
    return _unexpected(node, path)


def _unexpected(node: Node, path: tuple[int | str, ...]) -> BadInput:
    wanted, hint = _wanted(path), ""
    what = str(node.kind)
    if node.kind not in {Kind.MAPPING, Kind.LIST, Kind.NULL}:
        what = shown(node.raw) if node.kind is Kind.TEXT else node.raw
        if node.style and re.fullmatch(r"[0-9]{1,20}|true|false", node.raw):
            hint = "write it without quotes"
        elif node.kind is not Kind.TEXT:
            hint = f'if it is one, quote it: "{node.raw}"'
    return node.error(f"{wanted} is expected here, not {what}", hint)


def _follow(root: Node, loc: tuple[int | str, ...]) -> tuple[Node, tuple[int | str, ...]]:
    """Return the node that pydantic's ``loc`` leads to, and the way there in the file.

    What leads nowhere is passed over: the tags of what may be of several shapes.
    """
    node = root
    way: list[int | str] = []
    for part in loc:
        if isinstance(part, int) and -1 < part < len(node.children):
            node = node.children[part]
            way.append(part)
        elif isinstance(part, str) and part in node.pairs:
            node = node.pairs[part][1]
            way.append(part)
    return node, tuple(way)


def _names(path: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the keys that a mapping may have."""
    match path:
        case ():
            return TOP
        case ("tables",):
            return TABLES
        case ("sets", _):
            return ("type", "family", "entries", *SET_NUMBERS, *SET_TEXTS, *SET_FLAGS)
        case ("keep", _):
            return ("chain", "comment", "interface", "rule")
        case ("tables", _, _):
            return ("policy", "family", "rules")
        case ("tables", _, _, "policy"):
            return _FAMILIES
        case _:
            return ("rule", "family")


def _wanted(path: tuple[int | str, ...]) -> str:
    """Say what should stand in a place."""
    match path:
        case ("version",):
            return "1"
        case ("families",) | ("sets", _, "family"):
            return "ipv4, ipv6, or a list of both"
        case ("families", _) | ("tables", _, _, "family"):
            return "ipv4 or ipv6"
        case ("tables", _, _, "rules", _, "family") | ("tables", _, _, _, "family"):
            return "ipv4 or ipv6"
        case ("sets", _, "family", _):
            return "ipv4 or ipv6"
        case ("variables", _):
            return "one value or a list of them"
        case ("variables", _, _):
            return "one value"
        case ("include",):
            return "the path of a file, or a list of them,"
        case ("include", _):
            return "the path of a file"
        case ("sets", _, "entries", _):
            return "an entry"
        case ("sets", _, "entries") | ("keep",):
            return "a list"
        case ("sets", _, name) if name in SET_NUMBERS:
            return "an integer"
        case ("sets", _, name) if name in SET_FLAGS:
            return "true or false"
        case ("keep", _):
            return "a glob of chains' names, or a mapping,"
        case ("name",) | ("sets", _, _) | ("keep", _, _):
            return "text"
        case ("tables", _, _):
            return "a list of rules, or a mapping,"
        case ("tables", _, _, "policy") | ("tables", _, _, "policy", _):
            return "accept or drop"
        case ("tables", _, _, "rules"):
            return "a list of rules"
        case ("tables", _, _, "rules", _, "rule") | ("tables", _, _, _, "rule"):
            return "the text of a rule"
        case ("tables", _, _, "rules", _) | ("tables", _, _, _):
            return 'a rule, or a mapping with the key "rule",'
        case _:
            return "a mapping"
