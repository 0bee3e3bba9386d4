"""Of which family the tables in a file are: a file may hold those of both."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nfctl.errors import BadInput, Where
from nfctl.ruleset.script import Append, family_said

if TYPE_CHECKING:
    from nfctl.ruleset.script import Script, Section

_ADDRESS = re.compile(
    r"(?:^| )(?:-[sd]|--source|--src|--destination|--dst) ([0-9a-fA-F]*[.:])"
    r"|--to-(?:destination|source) \[?([0-9a-fA-F]*[.:])"
    r"|--reject-with icmp6-"
)


def of_family(script: Script, text: str, family: int) -> tuple[list[Section], int]:
    """Return the tables of one family, and which it is; BadInput where there are none of it.

    ``family`` is 4, 6, or 0 for the one that the file is of, IPv4 if it is of both. It is told by
    the line that iptables-save prints above a table, or else guessed by the first address in its
    rules. A guess alone leaves out no table but of a file in which a table comes again, as in one
    that two calls of iptables-save wrote.
    """
    lines = text.split("\n")
    groups: list[list[Section]] = [[]]
    for section in script.sections:
        if any(section.table == before.table for before in groups[-1]):
            groups.append([])
        groups[-1].append(section)
    found: list[tuple[Section, int, int]] = []
    for group in groups:
        told = [family_said(lines[max(section.line - 2, 0)]) for section in group]
        guessed = [one or _guessed(section) for section, one in zip(group, told, strict=True)]
        rest = next(filter(None, guessed), 0)
        for section, sure, guess in zip(group, told, guessed, strict=True):
            found.append((section, sure, guess or rest))
    known = {guess for _, _, guess in found if guess}
    wanted = family or (6 if known == {6} else 4)
    fits = {0, wanted}
    kept = [
        section for section, sure, guess in found if (guess if len(groups) > 1 else sure) in fits
    ]
    if not kept:
        msg = f"there are no tables of IPv{wanted} in this input"
        hint = f"-{10 - wanted} draws those of IPv{10 - wanted}"
        raise BadInput(msg, hint=hint, where=Where(script.source))
    return kept, wanted


def _guessed(section: Section) -> int:
    """Return 4 or 6 by the first address in a table's rules, 0 without any."""
    for item in section.items:
        if isinstance(item, Append):
            spec = item.spec or " ".join(word.text for word in item.words or ())
            address = _ADDRESS.search(spec)
            if address is not None:
                return 4 if "." in (address[1] or address[2] or "") else 6
    return 0
