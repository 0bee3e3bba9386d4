"""Nfctl map against real tables, in namespaces of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

RULES = """\
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [1234567:0]
:OUTPUT ACCEPT [0:0]
:USER - [0:0]
:OLD - [0:0]
-A INPUT -j ACCEPT -m comment --comment "not -j OLD"
-A FORWARD -j USER
-A USER -j RETURN
-A OLD -j RETURN
COMMIT
*nat
-A POSTROUTING -o eth9 -j MASQUERADE
COMMIT
"""


def draw(netns: Namespace, *options: str) -> list[str]:
    done = netns.run(["env", "PYTHONIOENCODING=utf-8", *NFCTL, "map", *options])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def document(netns: Namespace, *options: str) -> dict[str, Any]:
    done = netns.nfctl("map", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def fill(netns: Namespace, program: str = "iptables-legacy-restore") -> None:
    done = netns.run([program, "-c"], input=RULES)
    assert done.returncode == 0, done.stderr


def test_the_document_holds_what_the_kernel_has(netns: Namespace) -> None:
    """Policies, counters, rules and chains of the live tables stand at their hooks."""
    fill(netns)
    found = document(netns)
    hooks = {h["hook"]: {t["table"]: t for t in h["tables"]} for h in found["hooks"]}
    assert list(hooks) == ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]
    assert list(hooks["INPUT"]) == ["mangle", "filter", "security", "nat"]
    assert hooks["INPUT"]["filter"] == {
        "table": "filter",
        "priority": 0,
        "in_use": True,
        "policy": "DROP",
        "packets": 12,
        "bytes": 3456,
        "rules": 1,
        "chains": 0,
        "chain_rules": 0,
    }
    assert hooks["FORWARD"]["filter"]["chains"] == 1
    assert hooks["POSTROUTING"]["nat"]["rules"] == 1
    assert hooks["OUTPUT"]["raw"]["policy"] is None
    tables = {t["table"]: t for t in found["tables"]}
    assert tables["filter"]["unreachable"] == ["OLD"]
    assert tables["filter"]["rules"] == 4
    assert found["nft_rules"] == 0


def test_looking_brings_no_table_to_life(netns: Namespace) -> None:
    """In a fresh namespace every table is not in use, and stays so."""
    lines = draw(netns)
    assert sum(line.count("not in use") for line in lines) == 17 + 5
    assert netns.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""


def test_the_drawing_fits_a_terminal(netns: Namespace) -> None:
    """No line is wider than 80 columns, and every box closes under its own corners."""
    fill(netns)
    lines = draw(netns)
    assert max(map(len, lines)) <= 80
    for start, line in enumerate(lines):
        for corner in (i for i, letter in enumerate(line) if letter == "╭"):
            below = next(after for after in lines[start + 1 :] if after[corner] != "│")
            assert below[corner] == "╰"
            end, foot = line.index("╮", corner), below.index("╯", corner)
            assert end == foot


def test_the_drawing_shows_the_packets_order(netns: Namespace) -> None:
    """Hooks come in a packet's order, FORWARD beside INPUT, and counts stand in their rows."""
    fill(netns)
    lines = draw(netns)
    places = ["PREROUTING", "routing decision", "INPUT", "OUTPUT", "re-routing", "POSTROUTING"]
    rows = [next(i for i, line in enumerate(lines) if place in line) for place in places]
    assert rows == sorted(rows)
    both = next(line for line in lines if "INPUT" in line)
    assert "FORWARD" in both
    row = next(line for line in lines if "DROP" in line)
    left, right = (cell.split() for cell in row.split("│")[1::2])
    assert left == ["filter", "1", "0", "DROP", "12"]
    assert right == ["filter", "1", "1", "ACCEPT", "1.2M"]
    assert any("1 unreachable: OLD" in line for line in lines)


def test_ascii_and_no_colour_in_a_pipe(netns: Namespace) -> None:
    """An output that is not UTF-8 gets plain characters, and a pipe no escapes."""
    done = netns.run(["env", "PYTHONIOENCODING=ascii", *NFCTL, "map"])
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "+ INPUT" in done.stdout
    assert "\x1b" not in done.stdout


def test_ipv6_and_a_namespace_by_name(netns: Namespace) -> None:
    """-6 shows the other family, --netns another namespace than the caller's."""
    fill(netns, "ip6tables-legacy-restore")
    assert document(netns)["tables"][3]["in_use"] is False
    assert document(netns, "-6")["tables"][3]["rules"] == 4
    assert netns.run(["ip", "netns", "add", "blue"]).returncode == 0
    assert document(netns, "-6", "--netns", "blue")["tables"][3]["in_use"] is False
    assert draw(netns, "-6", "--netns", "blue")[0].startswith("IPv6 tables of network namespace b")


def test_rules_of_nf_tables_are_mentioned(netns: Namespace) -> None:
    """What packets meet besides the drawing is said under it."""
    if netns.run(["iptables-nft", "-A", "INPUT", "-j", "ACCEPT"]).returncode != 0:
        pytest.skip("needs iptables-nft")
    assert document(netns)["nft_rules"] == 1
    assert document(netns, "-6")["nft_rules"] == 0
    assert "nf_tables holds 1 rule that packets meet as well" in draw(netns)[-1]


def test_both_families_at_once_are_refused(netns: Namespace) -> None:
    """-4 and -6 together are bad usage."""
    done = netns.nfctl("map", "-4", "-6")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr
