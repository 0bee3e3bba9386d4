"""The tree: what a terminal shows of a jump graph."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.inspect.text import cells
from nfctl.jumps.fold import view
from nfctl.jumps.graph import read
from nfctl.jumps.tree import tree
from tests.unit.jumping import cluster, tables

RULES = """\
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [1234567:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
:EMPTY - [0:0]
:OLD - [0:0]
:LOOP - [0:0]
[5:300] -A INPUT -i lo -j ACCEPT
[7:900] -A INPUT -p tcp -m tcp --dport 80 -m comment --comment "web \\x1b" -j WEB
[1:60] -A INPUT -m statistic --mode random --probability 0.33333333349 -g WEB
[3:9] -A FORWARD -j GONE
[0:0] -A WEB -s 10.0.0.0/8 -j DROP
[0:0] -A WEB -s 10.1.0.0/16 -j DROP
[0:0] -A WEB -m comment --comment "nothing \\"in\\" it" -j EMPTY
[0:0] -A WEB -j DNAT --to-destination 10.0.0.1:80
[0:0] -A OLD
[0:0] -A LOOP -j LOOP
COMMIT
""".replace("\\x1b", "\x1b")
TREE = """\
 pkts bytes  filter (IPv4): 4 chains, 10 rules

   12  3.5k  INPUT  policy DROP → ACCEPT
    7   900  ├─ WEB  if tcp dport 80 /* web \\x1b */ → 2 DROP, DNAT to 10.0.0.1:80
    0     0  │  └─ EMPTY (empty)  /* nothing "in" it */
    1    60  └─ WEB (goto) (above)  if 33.33%
 1.2M     0  FORWARD  policy ACCEPT
    3     9  └─ GONE (no such chain)
    0     0  OUTPUT  policy ACCEPT

             nobody jumps to:
             OLD → no target

             only a loop leads to:
             LOOP
    0     0  └─ LOOP (loop)
"""
# a chain's name behind the branches of a line, and what is said of it
_LINE = re.compile(r"(?P<bars>[│├└─ ]*)(?P<name>[A-Z][-A-Z0-9]*)(?P<rest>.*)")
_ELSEWHERE = re.compile(r" \((above|below|loop)\)")


def drawn(text: str, *, fold: bool = True, width: int = 0, **options: bool) -> list[str]:
    views = [view(graph, fold=fold) for graph in read(text, source="x").values()]
    return tree(views, width=width, **options).rstrip("\n").split("\n")


def test_the_tree_says_what_there_is() -> None:
    """Policies, conditions, verdicts, counters, gotos, what is gone, unused, or a loop."""
    assert "\n".join(drawn(RULES)) + "\n" == TREE


def test_without_counters_there_are_no_columns() -> None:
    """A file that was saved without -c has none to show."""
    lines = drawn(re.sub(r"(?m)^\[.*?\] ", "", RULES))
    assert lines[0] == "filter (IPv4): 4 chains, 10 rules"
    assert lines[2] == "INPUT  policy DROP → ACCEPT"


def test_thousands_of_chains_are_a_screenful() -> None:
    """A cluster of 500 services fits a terminal of 24 lines; --all shows every chain."""
    text = cluster([5] * 500)
    lines = drawn(text, width=80)
    assert len(lines) <= 24
    assert any("KUBE-SVC-* (500 chains alike, 500 jumps)" in line for line in lines)
    assert any("KUBE-SEP-* (2,500 chains alike, 5 jumps each by chance)" in line for line in lines)
    assert sum("KUBE-SEP" in line for line in drawn(text, fold=False)) == 2500


@given(tables(), st.booleans())
def test_every_chain_is_written_once_and_every_jump_is_a_line(text: str, narrow: bool) -> None:
    """With nothing folded; what is written elsewhere is there, above or below as it says."""
    (graph,) = read(text, source="x").values()
    lines = drawn(text, fold=False, width=60 if narrow else 0)
    start = 13 if graph.counted else 0
    written: dict[str, int] = {}
    jumps: Counter[str] = Counter()
    elsewhere = []
    for number, line in enumerate(lines[2:]):
        found = _LINE.fullmatch(line[start:])
        if found is None:
            continue
        if found["bars"].endswith("─ "):
            jumps[found["name"]] += 1
        where = _ELSEWHERE.match(found["rest"].replace(" (goto)", "").replace(" (empty)", "")
                                 .replace(" (no such chain)", ""))  # fmt: skip
        if where is None:
            assert found["name"] not in written
            written[found["name"]] = number
        else:
            elsewhere.append((found["name"], where[1], number))
    assert written.keys() == graph.chains.keys()
    for name, mark, number in elsewhere:
        assert (written[name] < number) == (mark != "below")
    targets = Counter(r.target for c in graph.chains.values() for r in c.rules)
    assert jumps == {name: count for name, count in targets.items() if name in graph.chains}


@given(tables(), st.integers(60, 120))
def test_the_tree_fits(text: str, width: int) -> None:
    """No line is wider than the terminal."""
    assert max(cells(line) for line in drawn(text, width=width)) <= width


def test_a_path_of_thousands_of_chains() -> None:
    """Deeper than Python's stack: what would be too far to the right is written out below."""
    names = [f"C{number}" for number in range(3000)]
    rules = [f"-A {one} -j {two}" for one, two in zip(["INPUT", *names], names, strict=False)]
    chains = [f":{name} - [0:0]" for name in names]
    lines = drawn("\n".join(["*filter", *chains, *rules, "COMMIT", ""]), width=80)
    assert max(map(len, lines)) <= 80
    assert sum("(from above)" in line for line in lines) > 100
    assert sum("C2999" in line for line in lines) == 1


def test_ascii_and_colour() -> None:
    """Where there is no UTF-8, no box characters; colours only where they are asked for."""
    lines = drawn(RULES, unicode=False)
    assert "\n".join(lines).isascii()
    assert "\x1b" not in "\n".join(drawn(RULES))
    coloured = drawn(RULES, colour=True)
    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured] == drawn(RULES)
    assert "\x1b[31mDROP\x1b[0m" in coloured[2]


@pytest.mark.parametrize("width", [60, 80])
def test_what_is_too_long_is_cut_or_wrapped(width: int) -> None:
    """A long condition ends in an ellipsis; verdicts stand in a line of their own."""
    comment = "x" * 100
    text = f'*filter\n:A - [0:0]\n-A INPUT -m comment --comment "{comment}" -j A\n'
    text += "-A A -j DROP\nCOMMIT\n"
    assert drawn(text, width=width)[3:5] == [f"└─ A  /* {'x' * (width - 10)}…", "      → DROP"]
