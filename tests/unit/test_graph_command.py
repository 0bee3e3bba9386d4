"""The command line of nfctl graph, on files: what it prints, refuses, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import nfctl
from nfctl import cli
from nfctl.cli.answer import run
from nfctl.jumps import graph
from tests.unit.jumping import cluster
from tests.unit.test_cli import unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable

RULES = """\
*filter
:INPUT DROP [12:3456]
:WEB - [0:0]
:LOGGED - [0:0]
:OLD - [0:0]
[5:300] -A INPUT -i lo -j ACCEPT
[7:900] -A INPUT -p tcp -m tcp --dport 80 -j WEB
[2:60] -A INPUT -m statistic --mode random --probability 0.25 -g LOGGED
[4:70] -A WEB -s 10.0.0.0/8 -j LOGGED
[3:30] -A LOGGED -j LOG --log-prefix "x "
[3:30] -A LOGGED -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:REDIRECTS - [0:0]
[1:60] -A PREROUTING -j REDIRECTS
COMMIT
*mangle
COMMIT
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.v4"
    path.write_text(RULES)
    return path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: exit code, standard output, standard error."""

    def called(*words: str) -> tuple[int, str, str]:
        shown: list[str] = []

        def action() -> int:
            done = CliRunner().invoke(cli.application(["graph"]), words, prog_name="nfctl")
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            shown.append(done.output)
            return done.exit_code

        return run(action), "".join(shown), capsys.readouterr().err

    return called


def start(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(nfctl.__file__).parents[1])}
    environment["PYTHONIOENCODING"] = "utf-8"
    return subprocess.run(
        [sys.executable, "-m", "nfctl", "graph", *words],
        capture_output=True, text=True, timeout=120, check=False, env=environment, **options,
    )  # fmt: skip


# --- what is printed -----------------------------------------------------------------------------


def test_the_tables_with_chains_of_their_own_are_drawn(rules: Path) -> None:
    """Those that have none are left out, unless they are asked for; a pipe gets no colours."""
    done = start("--rules", str(rules))
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == """\
 pkts bytes  filter (IPv4): 3 chains, 6 rules

   12  3.5k  INPUT  policy DROP → ACCEPT
    7   900  ├─ WEB  if tcp dport 80
    4    70  │  └─ LOGGED  if -s 10.0.0.0/8 → LOG, DROP
    2    60  └─ LOGGED (goto) (above)  if 25%
             FORWARD  policy ACCEPT
             OUTPUT  policy ACCEPT

             nobody jumps to:
             OLD (empty)

 pkts bytes  nat (IPv4): 1 chain, 1 rule

    0     0  PREROUTING  policy ACCEPT
    1    60  └─ REDIRECTS (empty)
             INPUT  policy ACCEPT
             OUTPUT  policy ACCEPT
             POSTROUTING  policy ACCEPT
"""
    )
    done = start("--rules", str(rules), "-t", "mangle")
    assert done.stdout.startswith("mangle (IPv4): 0 chains, 0 rules\n")


def test_from_and_to(rules: Path) -> None:
    """A chain to begin at, one to end at, and both; in the tables that have them."""
    assert start("--rules", str(rules), "WEB").stdout.split("\n")[2:] == [
        "             WEB",
        "    4    70  └─ LOGGED  if -s 10.0.0.0/8 → LOG, DROP",
        "",
    ]
    ways = start("--rules", str(rules), "--to", "REDIRECTS").stdout
    assert ways.startswith(" pkts bytes  nat (IPv4), ways to REDIRECTS\n")
    # a table without chains of its own is looked at where no other has the chain
    assert "FORWARD" in start("--rules", str(rules), "-t", "mangle", "FORWARD").stdout

    text = "*mangle\nCOMMIT\n*nat\n:A - [0:0]\nCOMMIT\n"
    found = start("--rules", "-", "FORWARD", input=text).stdout
    assert found.startswith("mangle (IPv4), from FORWARD")
    both = start("--rules", str(rules), "INPUT", "--to", "WEB").stdout
    assert both.split("\n")[2:] == [
        "   12  3.5k  INPUT  policy DROP",
        "    7   900  └─ WEB  if tcp dport 80",
        "",
    ]


def test_standard_input_and_the_other_family() -> None:
    """`-` is standard input; lines that are marked are for their family alone."""
    text = "*filter\n:A - [0:0]\n-4 -A INPUT -j DROP\n-6 -A INPUT -j A\nCOMMIT\n"
    assert "INPUT  policy ACCEPT → DROP" in start("--rules", "-", input=text).stdout
    six = start("-6", "--rules", "-", input=text).stdout
    assert six.startswith("filter (IPv6)")
    assert "└─ A (empty)" in six


def test_the_family_of_a_file() -> None:
    """What ip6tables-save printed is drawn as IPv6 without -6, and refused with -4."""
    text = "*filter\n:A - [0:0]\n-A INPUT -s fd00::/8 -j A\nCOMMIT\n"
    assert start("--rules", "-", input=text).stdout.startswith("filter (IPv6)")
    assert json.loads(start("--json", "--rules", "-", input=text).stdout)["family"] == 6
    saved = "# Generated by ip6tables-save v1.8.9 on Mon Nov 23 17:26:59 2026\n"
    refused = start("-4", "--rules", "-", input=saved + text)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "<stdin>: there are no tables of IPv4 in this input" in refused.stderr


def test_the_document(rules: Path) -> None:
    """--json has the keys that the docstring shows, every chain, every jump, all numbers."""
    document = json.loads(start("--rules", str(rules), "--json").stdout)
    assert (document["family"], document["source"]) == (4, str(rules))
    filter_, nat = document["tables"]
    assert (filter_["table"], nat["table"]) == ("filter", "nat")
    assert filter_["counters"] is True
    assert filter_["roots"] == ["INPUT", "FORWARD", "OUTPUT"]
    assert filter_["unreferenced"] == ["OLD"]
    assert filter_["looping"] == filter_["groups"] == []
    chains = {chain["name"]: chain for chain in filter_["chains"]}
    assert chains["INPUT"] == {
        "name": "INPUT", "policy": "DROP", "packets": 12, "bytes": 3456, "present": True,
        "group": None, "rules": 3,
        "ends": [{"target": "ACCEPT", "options": "", "rules": 1, "packets": 5, "bytes": 300}],
        "jumps": [
            {"rule": 2, "to": "WEB", "goto": False, "condition": "-p tcp -m tcp --dport 80",
             "probability": None, "packets": 7, "bytes": 900},
            {"rule": 3, "to": "LOGGED", "goto": True,
             "condition": "-m statistic --mode random --probability 0.25",
             "probability": 0.25, "packets": 2, "bytes": 60},
        ],
    }  # fmt: skip
    assert chains["LOGGED"]["ends"][0]["options"] == '--log-prefix "x "'
    assert chains["OLD"]["policy"] is None


def test_the_document_is_the_described_one() -> None:
    """Every key of a real document stands in the module's docstring, and the other way round."""
    text = graph.__doc__ or ""
    example = json.loads(text[text.index("{") : text.index("\n\n``source``")])
    done = start("--rules", "-", "--json", input=cluster([2] * 30, counted=True))
    found = json.loads(done.stdout)

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert keys(found) == keys(example)
    (table,) = found["tables"]
    assert [group["chains"] for group in table["groups"]] == [30, 60]
    assert len(table["chains"]) == 4 + 2 + 90
    chains = {chain["group"] for chain in table["chains"]}
    assert chains == {None, "KUBE-SVC-*", "KUBE-SEP-*"}


def test_diagrams_are_printed(rules: Path) -> None:
    """--dot and --mermaid print text for programs, of the tables that the tree would show."""
    dot = start("--rules", str(rules), "--dot").stdout
    assert dot.startswith("digraph")
    assert dot.count("subgraph") == 2
    assert start("--rules", str(rules), "--mermaid").stdout.startswith("flowchart LR\n")


def test_a_picture_is_written(rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--svg gives dot(1) what --dot prints, and writes what it draws where it is told to."""
    fake = tmp_path / "dot"
    fake.write_text('#!/bin/sh\n[ "$*" = -Tsvg ] && exec cat\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    wanted = start("--rules", str(rules), "--dot").stdout
    file = tmp_path / "it.svg"
    done = start("--rules", str(rules), "--svg", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text() == wanted
    assert start("--rules", str(rules), "--svg", "-").stdout == wanted


def test_nothing_is_written_where_no_picture_can_be_drawn(rules: Path, tmp_path: Path) -> None:
    """Without dot(1), a file that is there stays; the exit code is 3."""
    file = tmp_path / "it.svg"
    file.write_text("old")
    environment = {**os.environ, "PATH": "/nonexistent"}
    environment["PYTHONPATH"] = str(Path(nfctl.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "nfctl", "graph", "--rules", str(rules), "--svg", str(file)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 3
    assert "hint: install graphviz" in done.stderr
    assert file.read_text() == "old"


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("-4 -6", 2, "exclude each other"),
        ("--dot --json", 2, "--dot and --json exclude each other"),
        ("--netns blue", 2, "--rules is a file"),
        ("-t none", 2, "there is no table 'none'"),
        ("-t raw", 2, "has no table raw"),
        ("WBE", 2, "there is no chain WBE"),
        ("web", 2, "did you mean WEB?"),
        ("WBE", 2, "did you mean WEB?"),
        ("--to NOWHERE", 2, "tables filter, nat, mangle: there is no chain NOWHERE"),
        ("-t nat WEB", 2, "table nat: there is no chain WEB"),
        ("WEB --to REDIRECTS", 2, "WEB is in filter, REDIRECTS is in nat"),
        ("LOGGED --to WEB", 1, "no way leads from LOGGED to WEB"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    words: str, code: int, said: str, rules: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """Bad usage ends with 2, the answer "no" with 1; what was meant is guessed."""
    found, out, err = call("graph", "--rules", str(rules), *words.split())
    assert (found, out) == (code, "")
    assert said in err


def test_a_file_that_is_wrong(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    """File, line and column, the line itself, and a caret under what is wrong."""
    file = tmp_path / "rules"
    file.write_text('*filter\n-A INPUT -m comment --comment "open\nCOMMIT\n')
    code, _, err = call("graph", "--rules", str(file))
    assert code == 2
    assert f"{file}:2:31: a double quote is opened and never closed" in err
    assert '"open\n                                ^' in err
    code, _, err = call("graph", "--rules", str(tmp_path / "none"))
    assert code == 2
    assert "No such file" in err
    file.write_bytes(b"*filter\n\0COMMIT\n")
    assert call("graph", "--rules", str(file))[0] == 2


def test_without_privileges() -> None:
    """The live tables are for root, a file is for everybody."""
    done = unprivileged("graph")
    assert done.returncode == 3
    assert "run as root" in done.stderr
    done = unprivileged("graph", "--rules", "-", text=RULES)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """They come out as the bytes they are, and in JSON as Python's surrogates."""
    file = tmp_path / "rules"
    file.write_bytes(b"*filter\n:A\xff - [0:0]\n-A INPUT -j A\xff\nCOMMIT\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(nfctl.__file__).parents[1])}
    command = [sys.executable, "-m", "nfctl", "graph", "--rules", str(file)]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert b"A\xff (empty)" in done.stdout
    done = subprocess.run([*command, "--json"], capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout)["tables"][0]["chains"][-1]["name"] == "A\udcff"


def test_a_large_cluster_is_quick(tmp_path: Path) -> None:
    """2,000 services with 5 endpoints each: a screenful, without recursion, in seconds."""
    file = tmp_path / "rules"
    file.write_text(cluster([5] * 2000))
    done = start("--rules", str(file))
    assert done.returncode == 0
    assert len(done.stdout.split("\n")) <= 24
