"""Lines of styled text: colours on a terminal, plain text in a pipe, ASCII where it must be."""

from __future__ import annotations

import os
import sys

Segment = tuple[str, str]
"""A piece of text and its style in rich's words; an empty style is plain."""
Line = list[Segment]

_ASCII = str.maketrans(
    {
        "╭": "+", "╮": "+", "╰": "+", "╯": "+", "┬": "+", "─": "-", "│": "|",
        "▼": "v", "◀": "<", "→": ">", "·": "-",
    }
)  # fmt: skip


def speaks_utf8() -> bool:
    """Whether standard output can carry box characters."""
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def width(line: Line) -> int:
    """Return how many columns a line takes; every character used here takes one."""
    return sum(len(text) for text, _ in line)


def pad(line: Line, columns: int) -> Line:
    """Return the line filled up with blanks."""
    return [*line, (" " * max(0, columns - width(line)), "")]


def show(lines: list[Line]) -> None:
    """Print the lines; styles only on a terminal, and not if NO_COLOR is set."""
    if not speaks_utf8():
        lines = [[(text.translate(_ASCII), style) for text, style in line] for line in lines]
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        for line in lines:
            print("".join(text for text, _ in line).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
