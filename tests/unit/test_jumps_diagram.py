"""The jump graph in DOT and Mermaid."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings

from nfctl.errors import Unsupported
from nfctl.jumps.dot import dot, svg
from nfctl.jumps.fold import View, view
from nfctl.jumps.graph import read
from nfctl.jumps.mermaid import mermaid
from tests.unit.jumping import cluster, tables

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NASTY = r'"&lt;|<b>\N{}`#;\l'
COMMENT = r'say "no"\; &amp; <i> end'
RULES = f"""\
*filter
:INPUT DROP [1:2]
:{NASTY} - [0:0]
:A - [0:0]
[7:900] -A INPUT -p tcp -m comment --comment "say \\"no\\"\\\\; &amp; <i> end" -g A
[1:60] -A A -j "\\"&lt;|<b>\\\\N{{}}`#;\\\\l"
[0:0] -A A -i eth0 -j "\\"&lt;|<b>\\\\N{{}}`#;\\\\l"
[0:0] -A A -j GONE
[0:0] -A A -j DROP
COMMIT
"""


def views(text: str) -> list[View]:
    return [view(graph) for graph in read(text, source="x").values()]


def graphviz() -> str:
    if shutil.which("dot") is None:
        pytest.skip("there is no dot(1) here: package graphviz")
    return "dot"


# --- DOT ---------------------------------------------------------------------------------------

_STRING = r'"((?:[^"\\]|\\.)*)"'


def dot_lines(text: str) -> list[str]:
    """Return the lines of a string of the language as Graphviz shows them."""
    shown = re.sub(r"\\(.)", lambda found: "\n" if found[1] == "l" else found[1], text)
    return html.unescape(shown).rstrip("\n").split("\n")


def dot_parts(text: str) -> tuple[dict[str, list[str]], list[tuple[str, str, list[str]]]]:
    """Return the labels of the nodes, and the edges with theirs; every line has to be known."""
    nodes: dict[str, list[str]] = {}
    edges = []
    for line in text.split("\n"):
        node = re.match(rf"    (\w+) \[label={_STRING}[^\"]*(?:\"[a-z,]+\"[^\"]*)?\];$", line)
        edge = re.match(rf"  (\w+) -> (\w+)(?: \[(?:label={_STRING})?[a-z=, ]*\])?;$", line)
        if node:
            nodes[node[1]] = dot_lines(node[2])
        elif edge:
            edges.append((edge[1], edge[2], dot_lines(edge[3] or "")))
        else:
            assert re.match(r"digraph|  (rankdir|node|edge|subgraph|})|    label=|}|$", line), line
    return nodes, edges


def test_dot_has_the_chains_and_the_jumps() -> None:
    """Names and comments are shown as they are; jumps to one chain are one arrow."""
    text = dot(views(RULES))
    nodes, edges = dot_parts(text)
    ids = {label[0]: name for name, label in nodes.items()}
    assert ids.keys() == {"INPUT", "FORWARD", "OUTPUT", NASTY, "A", "GONE"}
    assert nodes[ids["INPUT"]] == ["INPUT", "policy DROP", "1 packet, 2 bytes"]
    assert nodes[ids["A"]] == ["A", "DROP"]
    assert nodes[ids["GONE"]] == ["GONE", "no such chain"]
    assert edges == [
        (ids["INPUT"], ids["A"], ["goto", f"tcp /* {COMMENT} */", "7 packets, 900 bytes"]),
        (ids["A"], ids[NASTY], ["-i eth0", "1 packet, 60 bytes"]),
        (ids["A"], ids["GONE"], ["0 packets, 0 bytes"]),
    ]
    assert re.search(rf"{ids['INPUT']} -> {ids['A']} \[.*style=dashed\]", text)


@given(tables())
def test_dot_is_well_formed_whatever_there_is(text: str) -> None:
    """Every line is one of a few kinds, and edges are between nodes that are there."""
    found = views(text)
    nodes, edges = dot_parts(dot(found))
    assert len(nodes) == sum(len(one.nodes) for one in found)
    assert {end for edge in edges for end in edge[:2]} <= nodes.keys()
    jumps = [(node, edge) for one in found for node in one.nodes for edge in node.edges]
    assert len(edges) == len({(id(node), id(edge.to), edge.goto) for node, edge in jumps})


@settings(max_examples=15)
@given(tables())
def test_graphviz_reads_what_is_written(text: str) -> None:
    """dot(1) takes the graph without a word, and finds as many nodes and edges."""
    program = graphviz()
    drawn = dot(views(text))
    done = subprocess.run(
        [program, "-Tplain"], input=drawn, text=True, capture_output=True, check=True
    )
    assert "rror" not in done.stderr
    nodes, edges = dot_parts(drawn)
    kinds = [line.split(" ")[0] for line in done.stdout.split("\n")]
    assert (kinds.count("node"), kinds.count("edge")) == (len(nodes), len(edges))


def test_a_picture_shows_names_as_they_are() -> None:
    """The SVG of dot(1) has every name and comment as text, markup and all."""
    graphviz()
    picture = svg(dot(views(RULES))).decode()
    texts = [html.unescape(part) for part in re.findall(r"<text[^>]*>([^<]*)</text>", picture)]
    texts = [text.replace("\xa0", " ") for text in texts]
    assert NASTY in texts
    assert any(COMMENT in text for text in texts)


def test_without_graphviz_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3, the package to install, and what can be had without it."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unsupported) as caught:
        svg("digraph x {}")
    assert caught.value.exit_code == 3
    assert "graphviz" in caught.value.hint
    assert "--mermaid" in caught.value.hint


@pytest.mark.parametrize(("script", "said"), [
    ("cat >/dev/null; echo 'Error: <stdin>: syntax error' >&2; exit 1", "<stdin>: syntax error"),
    ("cat >/dev/null; exit 7", "it ended with 7"),
])  # fmt: skip
def test_what_graphviz_complains_of_is_said(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A dot(1) that fails is an error with its own words, never half a picture."""
    program = tmp_path / "dot"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Unsupported, match=re.escape(said)):
        svg("digraph x {}")


# --- Mermaid -----------------------------------------------------------------------------------

_NODE = re.compile(r'    (\w+)(?:\["([^"]*)"\]|\[\["([^"]*)"\]\])')
_EDGE = re.compile(r'  (\w+) (-->|-\.->)(?:\|"([^"]*)"\|)? (\w+)')
_REST = re.compile(r'flowchart LR|  subgraph t\d+ \["[^"]*"\]|  end|  class(Def)? [\w:,# -]+')


def mermaid_lines(text: str) -> list[str]:
    """Return a label's lines as Mermaid shows them."""
    return [html.unescape(re.sub(r"#(\d+);", r"&#\1;", part)) for part in text.split("<br/>")]


def mermaid_parts(
    text: str,
) -> tuple[dict[str, list[str]], list[tuple[str, str, list[str], str]]]:
    nodes: dict[str, list[str]] = {}
    edges = []
    for line in text.rstrip("\n").split("\n"):
        node, edge = _NODE.fullmatch(line), _EDGE.fullmatch(line)
        if node:
            nodes[node[1]] = mermaid_lines(node[2] or node[3])
        elif edge:
            edges.append((edge[1], edge[2], mermaid_lines(edge[3] or ""), edge[4]))
        else:
            assert _REST.fullmatch(line), line
    return nodes, edges


def test_mermaid_has_the_chains_and_the_jumps() -> None:
    """Boxes and arrows with labels that mean nothing but what they say."""
    nodes, edges = mermaid_parts(mermaid(views(RULES)))
    ids = {label[0]: name for name, label in nodes.items()}
    assert ids.keys() == {"INPUT", "FORWARD", "OUTPUT", NASTY, "A", "GONE"}
    assert edges == [
        (ids["INPUT"], "-.->", ["goto", f"tcp /* {COMMENT} */", "7 packets, 900 bytes"], ids["A"]),
        (ids["A"], "-->", ["-i eth0", "1 packet, 60 bytes"], ids[NASTY]),
        (ids["A"], "-->", ["0 packets, 0 bytes"], ids["GONE"]),
    ]


@given(tables())
def test_mermaid_is_well_formed_whatever_there_is(text: str) -> None:
    """Every line is one of a few kinds, and edges are between nodes that are there."""
    found = views(text)
    nodes, edges = mermaid_parts(mermaid(found))
    assert len(nodes) == sum(len(one.nodes) for one in found)
    assert {edge[0] for edge in edges} | {edge[3] for edge in edges} <= nodes.keys()


@pytest.mark.parametrize("draw", [dot, mermaid])
def test_a_cluster_is_a_small_diagram(draw: Callable[[list[View]], str]) -> None:
    """What is folded in the tree is folded here."""
    text = draw(views(cluster([5] * 200)))
    assert len(text.split("\n")) < 40
    assert "1,000 chains alike" in text


@pytest.mark.parametrize("draw", [dot, mermaid])
def test_names_that_are_no_utf8_are_spelled_out(draw: Callable[[list[View]], str]) -> None:
    """A diagram is UTF-8, whatever bytes a chain's name has."""
    text = draw(views("*filter\n:A\udcff\x1b - [0:0]\nCOMMIT\n"))
    text.encode()
    assert "xff" in text
    assert "\x1b" not in text
