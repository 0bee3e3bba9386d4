"""Text from packets, made fit for a terminal.

Whatever a packet says may be written to attack whoever reads it: nothing of it reaches a terminal
but by :func:`safe`.
"""

from __future__ import annotations

import unicodedata
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

from nfctl.text import escaped

TEXT: Final = 60
"""How many characters of a text are shown, if nothing else is said."""

# letters that are drawn as nothing
_BLANK: Final = frozenset("\u115f\u1160\u3164\uffa0")
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})


def safe(text: str, limit: int = TEXT, *, word: bool = False) -> str:
    r"""Return text that a terminal only draws, from left to right, in at most ``limit`` characters.

    Control and formatting characters, line ends, letters that are written from right to left,
    marks that join the letter before them, and bytes that are no UTF-8 become ``\x1b`` or
    ``\u202e``. A ``word`` has no blanks either, so that no name looks like two columns.
    """
    if text.isascii() and text.isprintable() and len(text) <= limit and not (word and " " in text):
        return text
    shown = []
    room = limit
    for char in text[:limit]:
        piece = char if _harmless(char) and not (word and char == " ") else escaped(char)
        room -= len(piece)
        if room < 0:
            break
        shown.append(piece)
    if len(shown) == len(text):
        return "".join(shown)
    return "".join(shown)[: limit - 1] + "…"


def _harmless(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    return (
        char.isprintable()
        and not unicodedata.category(char).startswith("M")
        and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
        and char not in _BLANK
    )


def address(packed: bytes) -> str:
    """Return the text of an address of 4 or 16 bytes."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def ends(src: bytes, dst: bytes, sport: int = 0, dport: int = 0) -> str:
    """Return ``source > destination``; IPv6 addresses are in brackets if there are ports."""
    source, destination = address(src), address(dst)
    if not (sport or dport):
        return f"{source} > {destination}"
    if len(src) == 4:
        return f"{source}:{sport} > {destination}:{dport}"
    return f"[{source}]:{sport} > [{destination}]:{dport}"


def cells(text: str) -> int:
    """Return how many columns of a terminal a safe text takes."""
    if text.isascii():
        return len(text)
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def cut(text: str, width: int) -> str:
    """Return a safe text in at most ``width`` columns, with an ellipsis where some is missing."""
    if cells(text) <= width:
        return text
    if width < 1:
        return ""
    room = width - 1
    kept = []
    for char in text:
        room -= cells(char)
        if room < 0:
            break
        kept.append(char)
    return "".join(kept) + "…"
