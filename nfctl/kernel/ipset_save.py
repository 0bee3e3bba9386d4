"""The text of ``ipset save``: ``create`` lines, and ``add`` lines of what is in the sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Where
from nfctl.kernel.ipset_types import FLAGS

if TYPE_CHECKING:
    from nfctl.kernel.ipset import Ipset

_FAMILIES = {"inet": 4, "inet6": 6}


class SavedSet(NamedTuple):
    """A set as text says it; ``family`` is 0 where that does not."""

    name: str
    type: str
    family: int
    options: dict[str, str]
    entries: list[str]


def save(kernel: Ipset, names: list[str]) -> str:
    """Return what ``ipset save`` prints of these sets, lists of sets last; none for one missing."""
    headers = kernel.headers()
    there = [name for name in dict.fromkeys(names) if name in headers]
    there.sort(key=lambda name: headers[name].type == "list:set")
    return "".join(map(kernel.save, there))


def parse(text: str, source: str = "") -> list[SavedSet]:
    """Read what ``ipset save`` printed; BadInput with the line for what that does not print."""
    found: dict[str, SavedSet] = {}
    adding, append = "", None
    for line, words in enumerate(text.split("\n"), 1):
        command, _, rest = words.partition(" ")
        name, _, rest = rest.partition(" ")
        if command == "add" and rest:
            if append is None or name != adding:
                if name not in found:
                    msg = f"an entry is added to the set {name}, which was not created"
                    raise BadInput(msg, where=Where(source, line))
                adding, append = name, found[name].entries.append
            append(rest)
        elif command == "create" and rest:
            found[name] = _created(name, rest.split(), Where(source, line))
            append = None
        elif words.strip() and words[:1] != "#":
            msg = f"ipset save does not print such a line: {words[:80]!r}"
            raise BadInput(msg, where=Where(source, line))
    return list(found.values())


def _created(name: str, words: list[str], where: Where) -> SavedSet:
    options: dict[str, str] = {}
    family = 0
    rest = iter(words[1:])
    for word in rest:
        if word in FLAGS:
            options[word] = ""
            continue
        value = next(rest, "")
        if word == "family" and value in _FAMILIES:
            family = _FAMILIES[value]
        elif value and word != "family":
            options[word] = value
        else:
            msg = f"option {word} of set {name} has no value that it can have"
            raise BadInput(msg, where=where)
    return SavedSet(name, words[0], family, options, [])
