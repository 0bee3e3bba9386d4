"""Nfctl graph on live tables, against iptables-legacy-save."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.conftest import NFCTL
from tests.unit.jumping import cluster

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

RULES = """\
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [5:6]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
:LOGGED - [0:0]
:OLD - [0:0]
[5:300] -A INPUT -i lo -j ACCEPT
[7:900] -A INPUT -p tcp -m tcp --dport 80 -m comment --comment "not -j OLD" -j WEB
[8:80] -A INPUT -p udp -g WEB
[2:60] -A INPUT -m statistic --mode random --probability 0.25 -g LOGGED
[4:70] -A WEB -s {host} -j LOGGED
[1:10] -A WEB -m comment --comment -j -j LOGGED
[0:0] -A WEB -m comment --comment "counts \\"only\\""
[3:30] -A LOGGED -j LOG --log-prefix "x -j OLD "
[3:30] -A LOGGED -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [7:8]
:DOOR - [0:0]
[1:60] -A PREROUTING -p tcp -j DOOR
[1:60] -A DOOR -p tcp -j DNAT --to-destination {to}
COMMIT
*mangle
COMMIT
"""
HOSTS = {4: ("10.0.0.1", "10.0.0.2:8080"), 6: ("fd00::1", "[fd00::2]:8080")}


def fill(netns: Namespace, family: int = 4, text: str = "") -> None:
    host, to = HOSTS[family]
    text = text or RULES.format(host=host, to=to)
    program = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
    done = netns.run([program, "-c"], input=text)
    assert done.returncode == 0, done.stderr


def document(netns: Namespace, *options: str) -> dict[str, Any]:
    done = netns.nfctl("graph", "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def told(saved: str) -> dict[str, dict[str, Any]]:
    """Return what iptables-save tells: for each table its policies, jumps and ends."""
    tables: dict[str, dict[str, Any]] = {}
    for line in saved.splitlines():
        if line[0] == "*":
            table = tables[line[1:]] = {"chains": {}, "jumps": [], "ends": []}
            numbers: dict[str, int] = {}
        elif line[0] == ":":
            name, policy, counters = line[1:].split(" ")
            packets, octets = map(int, counters[1:-1].split(":"))
            table["chains"][name] = (policy, packets, octets)
        elif line[0] == "[":
            counters, _, name, *words = shlex.split(line)
            packets, octets = map(int, counters[1:-1].split(":"))
            numbers[name] = numbers.get(name, 0) + 1
            at = max((i for i in range(len(words) - 1) if words[i] in {"-j", "-g"}), default=None)
            target = words[at + 1] if at is not None else ""
            if target in table["chains"]:
                goto = at is not None and words[at] == "-g"
                table["jumps"].append((name, numbers[name], target, goto, packets, octets))
            else:
                table["ends"].append((name, target, packets, octets))
    return tables


@pytest.mark.parametrize("family", [4, 6])
def test_the_live_tables_are_what_iptables_save_tells(netns: Namespace, family: int) -> None:
    """Chains, policies, jumps, gotos, verdicts and counters of every table with own chains."""
    fill(netns, family)
    wanted = told(netns.save(family, "-c"))
    found = document(netns, f"-{family}")
    assert found["family"] == family
    assert found["source"] is None
    assert {table["table"] for table in found["tables"]} == {"filter", "nat"}
    for table in found["tables"]:
        oracle = wanted[table["table"]]
        chains = {
            chain["name"]: (chain["policy"] or "-", chain["packets"] or 0, chain["bytes"] or 0)
            for chain in table["chains"]
        }
        assert chains == oracle["chains"]
        jumps = [
            (chain["name"], jump["rule"], jump["to"], jump["goto"], jump["packets"], jump["bytes"])
            for chain in table["chains"]
            for jump in chain["jumps"]
        ]
        assert sorted(jumps) == sorted(oracle["jumps"])
        ends = [
            (chain["name"], end["target"], end["packets"], end["bytes"])
            for chain in table["chains"]
            for end in chain["ends"]
        ]
        assert sorted(ends) == sorted(oracle["ends"])
    (filter_,) = (table for table in found["tables"] if table["table"] == "filter")
    assert filter_["unreferenced"] == ["OLD"]


@pytest.mark.parametrize("options", [(), ("--all",), ("WEB",), ("--to", "LOGGED"), ("--dot",)])
def test_the_kernel_and_its_dump_look_alike(netns: Namespace, options: tuple[str, ...]) -> None:
    """Live, and from what iptables-legacy-save -c printed, the same is drawn."""
    fill(netns)
    saved = netns.run(["iptables-legacy-save", "-c"]).stdout
    environment = ["env", "PYTHONIOENCODING=utf-8"]
    live = netns.run([*environment, *NFCTL, "graph", *options])
    dump = netns.run([*environment, *NFCTL, "graph", "--rules", "-", *options], input=saved)
    assert live.returncode == dump.returncode == 0
    assert live.stdout == dump.stdout
    assert "LOGGED" in live.stdout


def test_looking_brings_no_table_to_life(netns: Namespace) -> None:
    """A table that is not in use is drawn empty, and stays unused."""
    assert [table["table"] for table in document(netns)["tables"]] == ["filter"]
    (nat,) = document(netns, "-t", "nat")["tables"]
    assert [chain["name"] for chain in nat["chains"]] == nat["roots"]
    assert netns.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""


def test_a_namespace_by_name(netns: Namespace) -> None:
    """--netns looks into another namespace than the caller's."""
    fill(netns)
    assert netns.run(["ip", "netns", "add", "blue"]).returncode == 0
    (filter_,) = document(netns, "--netns", "blue")["tables"]
    assert len(filter_["chains"]) == 3


def test_a_live_cluster_is_a_screenful(netns: Namespace) -> None:
    """Hundreds of services in the kernel are folded, and their counters summed."""
    fill(netns, text=cluster([3] * 200, counted=True))
    lines = netns.run(["env", "PYTHONIOENCODING=utf-8", *NFCTL, "graph"]).stdout.splitlines()
    assert len(lines) <= 24
    (line,) = (line for line in lines if "KUBE-SEP-*" in line)
    assert line.split()[:2] == ["600", "36k"]
    assert "600 chains alike, 3 jumps each by chance" in line


def test_a_terminal_gets_colours_and_its_width(netns: Namespace) -> None:
    """On a terminal of 80 columns lines are cut and coloured; NO_COLOR leaves the colours out."""
    fill(netns, text=cluster([3] * 20))

    def drawn(*environment: str) -> str:
        ours, theirs = pty.openpty()
        words = ["env", "PYTHONIOENCODING=utf-8", *environment, *NFCTL, "graph"]
        process = netns.popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 1 << 16):
                parts.append(part)
        except OSError:  # the terminal's other end is closed
            pass
        os.close(ours)
        assert process.wait() == 0
        return b"".join(parts).decode().replace("\r", "")

    coloured = drawn("COLUMNS=80", "TERM=xterm")
    plain = drawn("COLUMNS=80", "NO_COLOR=1")
    assert "\x1b[36mKUBE-SERVICES" in coloured
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[\d+m", "", coloured).split() == plain.split()
    assert max(map(len, plain.splitlines())) <= 80
