"""Text for people: counts that are short, and names and comments that are harmless.

For every room that shows something; of what packets say takes care :mod:`nfctl.inspect.text`.
"""

from __future__ import annotations

_UNITS = "kMGTPE"


def human(number: int) -> str:
    """Return a count in at most four digits and a unit of thousands: 999, 1.2k, 34M."""
    if number < 1000:
        return str(number)
    value = float(number)
    unit = ""
    for unit in _UNITS:  # noqa: B007 - the last one stays for numbers past it
        value /= 1000
        if value < 999.5:
            break
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"


def visible(text: str) -> str:
    r"""Return text fit for a terminal: names and comments may hold escape sequences.

    Control characters, and those that are not to be seen or turn the direction of writing,
    become ``\x1b`` or ``\u202e``. Bytes that were no UTF-8 stay, but for those that are control
    characters of Latin-1.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or "\udca0" <= char <= "\udcff" else escaped(char)
        for char in text
    )


def escaped(char: str) -> str:
    r"""Return a character as \xNN, \uNNNN or \UNNNNNNNN; a byte that was no UTF-8 as the byte."""
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that was no UTF-8
        number -= 0xDC00
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def at(address: str, port: int) -> str:
    """Return ``address:port``, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def several(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: "1 rule", "2 rules"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
