from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control import show
from nfctl.control.change import (
    ADD,
    DELETE,
    KEPT,
    SAME,
    ChainChange,
    Change,
    Line,
    Run,
    SetChange,
    TableChange,
)
from nfctl.control.merging import merge, result
from nfctl.errors import Where

NEVER_WRITTEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def of(*chains: ChainChange, table: str = "filter", **more: Any) -> Change:
    return Change("web", [TableChange(4, table, list(chains), digest="d" * 64)], **more)


def chain(name: str, *lines: Line, runs: list[Run] | None = None, **more: Any) -> ChainChange:
    """Make the change of a chain, with runs of one rule unless told otherwise."""
    if runs is None:
        runs = [Run(line.kind, line.number - 1, line.number - 1, 1) for line in lines]
    return ChainChange(name, runs=runs, lines=list(lines), **more)


EXAMPLE = of(
    chain(
        "INPUT",
        Line(SAME, 1, "-i lo -j ACCEPT"),
        Line(KEPT, 2, "-j ts-input", (5, 500), owner="Tailscale"),
        Line(DELETE, 3, "-p tcp -m tcp --dport 23 -j ACCEPT", (1234, 56789)),
        Line(ADD, 3, "-p tcp -m tcp --dport 22 -j ACCEPT", where=Where("web.yaml", 7, 5)),
        policy=("ACCEPT", "DROP"),
        before=3,
        after=3,
    ),
    chain("FORWARD", Line(KEPT, 1, "-j DOCKER-USER", (1, 60), owner="Docker")),
    files=[("web.yaml", "0" * 64)],
)


def test_it_reads_like_git_diff() -> None:
    """Tables, chains and rules, what is kept and whose, what is lost, and what it comes to."""
    assert (
        show.text(EXAMPLE)
        == """\
filter (IPv4)
@@ INPUT, policy ACCEPT -> DROP @@
  -A INPUT -i lo -j ACCEPT
~ -A INPUT -j ts-input  # kept: Tailscale
- -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT  # 1.2k packets
+ -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT

1 rule to add, 1 to delete, 1 kept of Docker, 1 kept of Tailscale; 1 policy to change
"""
    )


def test_the_full_text() -> None:
    """--full shows what else is kept, where rules come from, and exact counters."""
    text = show.text(EXAMPLE, full=True)
    assert "@@ FORWARD @@\n~ -A FORWARD -j DOCKER-USER  # kept: Docker\n" in text
    assert "--dport 23 -j ACCEPT  # 1234 packets, 56789 bytes\n" in text
    assert "--dport 22 -j ACCEPT  # web.yaml:7:5\n" in text


@pytest.mark.parametrize("full", [False, True])
def test_nothing_to_change(full: bool) -> None:
    """Where nothing changes one line says so, and what was left to others."""
    assert show.text(of(chain("INPUT")), full=full) == "nothing to change\n"
    kept = show.text(of(EXAMPLE.tables[0].chains[1]), full=full)
    assert kept.splitlines()[-1] == "nothing to change (1 rule kept of Docker)"


def test_chains_come_and_go() -> None:
    """Created and deleted chains are titled so, and counted."""
    change = of(
        chain("WEB", Line(ADD, 1, "-j ACCEPT"), Line(ADD, 2, "-j LOG"), created=True),
        chain("OLD", Line(DELETE, 1, "", (1, 40)), deleted=True),
        chain("BUSY", note="chain INPUT jumps to it, so it stays, empty"),
    )
    assert (
        show.text(change)
        == """\
filter (IPv4)
@@ WEB, created @@
+ -A WEB -j ACCEPT
+ -A WEB -j LOG
@@ OLD, deleted @@
- -A OLD  # 1 packet
@@ BUSY @@
# chain INPUT jumps to it, so it stays, empty

2 rules to add, 1 to delete; 1 chain to create; 1 chain to delete
"""
    )


def test_a_move_is_no_loss() -> None:
    """Both ends of a move are marked, its counters are not lost, and it is counted once."""
    rule = "-p tcp -j ACCEPT"
    change = of(
        chain(
            "INPUT",
            Line(DELETE, 1, rule, (9, 360), moved=True),
            Line(SAME, 1, "-j A"),
            Line(ADD, 2, rule, moved=True),
        )
    )
    text = show.text(change)
    assert f"- -A INPUT {rule}  # moved\n" in text
    assert f"+ -A INPUT {rule}  # moved\n" in text
    assert text.endswith("\n\n1 rule to move\n")
    assert (
        show.document(change)["summary"] | {"add": 0, "delete": 0, "move": 1}
        == (show.document(change)["summary"])
    )


def test_sets_are_shown_with_their_entries() -> None:
    """Sets that come, change or go are listed first, with entries; others only on demand."""
    change = of(
        sets=[
            SetChange("create", "new", "hash:ip", 1, 0, ("+ 192.0.2.1",)),
            SetChange("swap", "bad", "hash:net", 3, 1, ("+ 10.0.0.0/8", "- 11.0.0.0/8")),
            SetChange("destroy", "old", "hash:ip"),
            SetChange("same", "quiet", "hash:ip"),
        ]
    )
    assert (
        show.text(change)
        == """\
sets
@@ new, hash:ip, created, 1 in, 0 out @@
+ 192.0.2.1
@@ bad, hash:net, swapped, 3 in, 1 out @@
+ 10.0.0.0/8
- 11.0.0.0/8
  ... and 2 more entries
@@ old, hash:ip, destroyed @@

1 set to create; 1 set swapped; 1 set to destroy
"""
    )
    assert "@@ quiet, hash:ip, unchanged @@" in show.text(change, full=True)


def test_notes_are_shown() -> None:
    """What could not be done as asked is said before the last line."""
    text = show.text(of(notes=["chain \033[2J stays"]))
    assert text == "# chain \\x1b[2J stays\nnothing to change\n"


def test_what_is_left_out_is_a_gap() -> None:
    """A new heading with a rule's number stands where rules that stay are left out."""
    change = of(
        chain(
            "INPUT",
            Line(SAME, 4, "-j S4"),
            Line(DELETE, 5, "-j D5", (0, 0)),
            Line(SAME, 5, "-j S5"),
            Line(SAME, 40, "-j S40"),
            Line(ADD, 41, "-j A41"),
            Line(DELETE, 42, "-j D42", (0, 0)),
            Line(SAME, 42, "-j S42"),
        )
    )
    heads = [line for line in show.text(change).splitlines() if line[:2] == "@@"]
    assert heads == ["@@ INPUT, from rule 4 @@", "@@ INPUT, from rule 40 @@"]


rules = st.lists(st.integers(0, 6).map(lambda number: b"%d" % number), max_size=12)


@given(rules, rules, st.sets(st.integers(0, 6)))
def test_the_document_is_enough_to_redo_the_change(
    live: list[bytes], wanted: list[bytes], foreign: set[int]
) -> None:
    """Runs and added lines make the sequence after from the one before; no gap is seen there."""
    merged = merge(live, wanted, lambda index: "x" if int(live[index]) in foreign else "")
    after = result(merged.runs, live, wanted)
    lines, number = [], 0
    for run in merged.runs:
        for step in range(run.length):
            if run.kind == DELETE:
                lines.append(Line(DELETE, run.live + step + 1, live[run.live + step].decode()))
                continue
            number += 1
            source = wanted if run.kind == ADD else live
            at = (run.wanted if run.kind == ADD else run.live) + step
            lines.append(Line(run.kind, number, source[at].decode()))
    change = of(chain("INPUT", *lines, runs=merged.runs, before=len(live), after=len(after)))
    document = json.loads(json.dumps(show.document(change)))
    for found in document["tables"][0]["chains"]:
        added = iter([line["rule"] for line in found["lines"] if line["op"] == ADD])
        redone: list[str] = []
        for kind, at, _, length in found["runs"]:
            if kind == ADD:
                redone += [next(added) for _ in range(length)]
            elif kind != DELETE:
                redone += [rule.decode() for rule in live[at : at + length]]
        assert redone == [rule.decode() for rule in after]
        assert found["rules"]["after"] == len(after)
    assert len([line for line in show.text(change).splitlines() if "@@" in line]) <= 1


def test_the_document_is_as_documented() -> None:
    """The keys and values are those that the module's docstring promises."""
    document = show.document(EXAMPLE)
    assert document["changes"] is True
    assert document["policy"] == "web"
    assert document["files"] == [{"file": "web.yaml", "sha256": "0" * 64}]
    (table,) = document["tables"]
    assert (table["family"], table["table"], table["digest"]) == (4, "filter", "d" * 64)
    first, second = table["chains"]
    assert {key: first[key] for key in first if key not in {"lines", "runs"}} == {
        "name": "INPUT",
        "created": False,
        "deleted": False,
        "policy": {"before": "ACCEPT", "after": "DROP"},
        "rules": {"before": 3, "after": 3, "same": 1, "kept": 1, "add": 1, "delete": 1},
        "note": None,
    }
    assert first["lines"][2:] == [
        {
            "op": "delete",
            "number": 3,
            "rule": "-p tcp -m tcp --dport 23 -j ACCEPT",
            "packets": 1234,
            "bytes": 56789,
            "owner": None,
            "where": None,
            "moved": False,
        },
        {
            "op": "add",
            "number": 3,
            "rule": "-p tcp -m tcp --dport 22 -j ACCEPT",
            "packets": None,
            "bytes": None,
            "owner": None,
            "where": "web.yaml:7:5",
            "moved": False,
        },
    ]
    assert first["runs"][0] == ["same", 0, 0, 1]
    assert second["policy"] is None
    assert document["sets"] == []
    assert document["notes"] == []
    assert document["summary"] == {
        "add": 1,
        "delete": 1,
        "move": 0,
        "kept": 2,
        "kept_of": {"Docker": 1, "Tailscale": 1},
        "policies": 1,
        "chains_created": 0,
        "chains_deleted": 0,
        "sets_created": 0,
        "sets_swapped": 0,
        "sets_destroyed": 0,
    }


def test_the_docstring_names_every_key() -> None:
    """No key of the document is missing in what the docstring says of it."""
    change = of(
        *EXAMPLE.tables[0].chains, sets=[SetChange("same", "a", "hash:ip")], files=[("f", "0")]
    )

    def keys(found: object) -> set[str]:
        if isinstance(found, list):
            return {key for each in found for key in keys(each)}
        if not isinstance(found, dict):
            return set()
        return {*found, *keys(list(found.values()))}

    for key in keys(show.document(change)) - {"Docker"}:
        assert f'"{key}":' in (show.__doc__ or ""), key


def test_unchanged_chains_are_not_in_the_document() -> None:
    """Of a policy of thousands of chains only those that say something are written down."""
    change = of(chain("A"), chain("B", note="n"), chain("C", Line(ADD, 1, "-j D")))
    names = [found["name"] for found in show.document(change)["tables"][0]["chains"]]
    assert names == ["B", "C"]


anything = st.text(st.characters(exclude_characters="\n"), max_size=30)


@given(anything, anything, st.sampled_from([0, 40, 41, 80]), st.booleans())
def test_nothing_escapes_to_the_terminal(name: str, spec: str, width: int, full: bool) -> None:
    """Whatever names, rules, entries and notes hold: only nfctl's own sequences come out."""
    change = of(
        chain(
            name,
            Line(ADD, 1, spec, where=Where(name, 1, 1)),
            Line(KEPT, 2, spec, (1, 1), owner=name),
            policy=("ACCEPT", "DROP"),
            note=spec,
        ),
        notes=[spec],
        sets=[SetChange("swap", name, name, 1, 0, (f"+ {spec}",), note=spec)],
    )
    for colour in (False, True):
        text = show.text(change, colour=colour, width=width, full=full)
        plain = re.sub(r"\033\[[0-9;]*m", "", text) if colour else text
        assert not NEVER_WRITTEN.search(plain)
        if width:
            assert all(len(row) <= width for row in plain.split("\n") if row[:2] in {"+ ", "~ "})


def test_long_rules_are_broken_on_a_terminal_alone() -> None:
    """A pipe gets whole lines; a terminal gets the same words, indented."""
    spec = " ".join(f"--word{number}" for number in range(30))
    change = of(chain("INPUT", Line(ADD, 1, spec, where=Where("web.yaml", 1, 1))))
    piped = show.text(change, full=True)
    assert f"+ -A INPUT {spec}  # web.yaml:1:1\n" in piped
    for colour in (False, True):
        shown = re.sub(r"\033\[[0-9;]*m", "", show.text(change, colour, 60, full=True))
        rows = shown.splitlines()
        assert max(map(len, rows)) <= 60
        assert all(row.startswith("      --word") for row in rows[3:5])
        assert " ".join(shown.split()) == " ".join(piped.split())


def test_colours_only_add_to_the_text() -> None:
    """With colour the text is the same one; without it there is none."""
    coloured = show.text(EXAMPLE, colour=True)
    assert "\033[32m+ -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\033[0m\n" in coloured
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == show.text(EXAMPLE)
    assert "\033" not in show.text(EXAMPLE)
