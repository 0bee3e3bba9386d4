"""Texts as YAML scalars: plain where YAML reads them as they stand, quoted elsewhere."""

from __future__ import annotations

import re
from typing import Final

from nfctl.text import escaped

# Rules and addresses as they mostly are; no ": " and " #", which mean something.
_PLAIN: Final = re.compile(
    r"(?:--?(?=[A-Za-z])|[A-Za-z/(]|[0-9]+(?:\.[0-9]+){3}|[0-9a-f]+:(?=\S))"
    r"(?!.*(?::(?:\s|$)|\s#|\s$))[^\t]*"
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_MEANING: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def scalar(text: str) -> str:
    """Return a text as an item of a block's list, or as a value in a block."""
    if text.isprintable() and text.lower() not in _MEANING and _PLAIN.fullmatch(text):
        return text
    return text if _NUMBER.fullmatch(text) and text[0] != "0" else quoted(text)


def key(text: str) -> str:
    """Return a text as a key, or as a value in ``{}``."""
    plain = _NAME.fullmatch(text) and text.lower() not in _MEANING
    return text if plain else quoted(text)


def quoted(text: str) -> str:
    """Return a text in quotes, in double ones if it holds what has to be escaped."""
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    escapes = (escaped(char) if char in '"\\' or not char.isprintable() else char for char in text)
    return '"' + "".join(escapes) + '"'
