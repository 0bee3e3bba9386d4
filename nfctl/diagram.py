"""Strings in the languages of diagrams: DOT (Graphviz) and Mermaid."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def dot_quote(lines: Sequence[str]) -> str:
    """Quote lines as one string of the DOT language, several of them flush left.

    A backslash, a double quote, and the ampersand of an HTML entity mean something there.
    """
    quoted = [
        line.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines
    ]
    text = quoted[0] if len(lines) == 1 else "".join(f"{line}\\l" for line in quoted)
    return f'"{text}"'


def mermaid_quote(lines: Sequence[str]) -> str:
    """Quote lines as one label; what Mermaid, Markdown or HTML would read is an entity code."""
    text = "<br/>".join(
        "".join(char if char.isalnum() or char in " .,:/-=" else f"#{ord(char)};" for char in line)
        for line in lines
    )
    return f'"{text}"'
