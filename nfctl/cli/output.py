"""Rules and chains as people like to read them.

A table of fifty thousand rules has to be printed in a second, so the columns are laid out here
and not by rich. Colour only on a terminal, and not where NO_COLOR is set.
"""

from __future__ import annotations

import sys
import textwrap
from typing import Any

from nfctl.cli.answer import colours, width
from nfctl.text import human, visible

_COLOURS = {
    "ACCEPT": "32",
    "DROP": "31",
    "REJECT": "31",
    "RETURN": "33",
    "LOG": "36",
    "NFLOG": "36",
}
_MINIMUM_REST = 24


class _Paint:
    def __init__(self) -> None:
        self.on = colours()
        # a pipe gets whole lines: whoever reads them can cut them
        self.width = width()

    def __call__(self, text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self.on and text.strip() else text


def show_table(document: dict[str, Any], *, exact: bool = False) -> str:
    """Return the text of ``nfctl rule list``: a heading and columns for each chain."""
    paint = _Paint()
    number = str if exact else human
    parts = [f"table {paint(document['table'], '1')}, IPv{document['family']}\n"]
    for chain in document["chains"]:
        parts.append("\n" + _heading(chain, number, paint))
        if chain["rules"]:
            parts.append(_rules(chain["rules"], number, paint))
    return "".join(parts)


def _heading(chain: dict[str, Any], number: Any, paint: _Paint) -> str:
    name = paint(visible(chain["name"]), "1")
    if chain["builtin"]:
        policy = paint(chain["policy"], _COLOURS.get(chain["policy"], "0"))
        count = f"{number(chain['packets'])} packets, {number(chain['bytes'])} bytes"
        return f"chain {name}, policy {policy} ({count})\n"
    return f"chain {name} ({_jumps(chain)})\n"


def _jumps(chain: dict[str, Any]) -> str:
    jumps = chain["references"]
    return f"{jumps} {'jump' if jumps == 1 else 'jumps'} to it"


def _rules(rules: list[dict[str, Any]], number: Any, paint: _Paint) -> str:
    from nfctl.ruleset.words import join

    arrow = "→" if _unicode() else "->"
    rows = []
    for rule in rules:
        target = rule["target"]
        name = ("goto " if rule["goto"] else "") + target["name"] if target else "-"
        conditions = [
            f"{match['name']} {join(match['options'])}".rstrip()
            if match["name"] not in _PLAIN
            else join(match["options"])
            for match in rule["matches"]
        ]
        if not (target or any(rule[key] for key in _FIELDS)):
            conditions = [rule["spec"]]
        if rule["fragment"] is not None:
            conditions.insert(0, "-f" if rule["fragment"] else "! -f")
        if target and target["options"]:
            conditions.append(f"{arrow} {join(target['options'])}")
        rows.append(
            [
                str(rule["number"]),
                number(rule["packets"]),
                number(rule["bytes"]),
                visible(name),
                _setting(rule["protocol"]),
                visible(_setting(rule["in_interface"])),
                visible(_setting(rule["out_interface"])),
                _setting(rule["source"]),
                _setting(rule["destination"]),
                visible("  ".join(filter(None, conditions))),
            ]
        )
    titles = [
        "#",
        "pkts",
        "bytes",
        "target",
        "prot",
        "in",
        "out",
        "source",
        "destination",
        "conditions",
    ]
    return _columns(titles, rows, paint)


#: Matches whose options say what they are: --dport needs no "tcp" before it.
_PLAIN = frozenset({"tcp", "udp", "comment", "conntrack", "multiport", "limit", "mark", "state"})


_FIELDS = ("source", "destination", "in_interface", "out_interface", "protocol", "matches")


def _setting(setting: dict[str, Any] | None) -> str:
    if setting is None:
        return ""
    value: str = setting["value"]
    for everything in ("/32", "/128"):
        if value.endswith(everything) and (everything == "/128") == (":" in value):
            value = value[: -len(everything)]
    return f"!{value}" if setting["inverted"] else value


def _columns(titles: list[str], rows: list[list[str]], paint: _Paint) -> str:
    """Lay out rows under titles: numbers to the right, empty columns left out, the last wrapped."""
    shown = [index for index in range(len(titles)) if index < 4 or any(row[index] for row in rows)]
    widths = {index: max(len(titles[index]), *(len(row[index]) for row in rows)) for index in shown}
    last = shown[-1]
    fixed = sum(widths[index] + 2 for index in shown if index != last) + 2
    room = max(paint.width - fixed, _MINIMUM_REST) if paint.width else 0
    lines = ["  " + "  ".join(_cell(titles[i], widths[i], i, last) for i in shown).rstrip()]
    lines[0] = paint(lines[0], "2")
    for row in rows:
        rest = (
            textwrap.wrap(row[last], room, break_on_hyphens=False)
            if room and row[last]
            else [row[last]]
        )
        cells = []
        for index in shown:
            text = rest[0] if index == last else row[index]
            cell = _cell(text, widths[index], index, last)
            if index == 3:
                cell = paint(cell, _COLOURS.get(row[3], "35" if row[3] != "-" else "2"))
            cells.append(cell)
        lines.append(("  " + "  ".join(cells)).rstrip())
        lines += [" " * fixed + more for more in rest[1:]]
    return "\n".join(lines) + "\n"


def _cell(text: str, width: int, index: int, last: int) -> str:
    if index == last:
        return text
    return text.rjust(width) if index < 3 else text.ljust(width)


def _unicode() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


def show_chains(document: dict[str, Any], *, exact: bool = False) -> str:
    """Return the text of ``nfctl chain list``."""
    paint = _Paint()
    number = str if exact else human
    rows = [
        [
            str(chain["rules"]),
            number(chain["packets"]) if chain["builtin"] else "",
            number(chain["bytes"]) if chain["builtin"] else "",
            chain["policy"] or "-",
            visible(chain["name"]),
            "" if chain["builtin"] else _jumps(chain),
        ]
        for chain in document["chains"]
    ]
    heading = f"table {paint(document['table'], '1')}, IPv{document['family']}\n\n"
    return heading + _columns(["rules", "pkts", "bytes", "policy", "chain", "used"], rows, paint)
