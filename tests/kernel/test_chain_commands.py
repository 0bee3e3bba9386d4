"""Nfctl chain against iptables: the same chains, policies and zeroes, and what is refused."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.kernel import play

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

CHAINS = """\
*filter
:INPUT DROP [11:1100]
:FORWARD ACCEPT [22:2200]
:OUTPUT ACCEPT [33:3300]
:A - [0:0]
:B - [0:0]
:C - [0:0]
[1:100] -A INPUT -i lo -j A
[2:200] -A INPUT -g B
[3:300] -A FORWARD -p udp -j DROP
[4:400] -A A -j B
[5:500] -A B -j RETURN
COMMIT
"""
# iptables -E takes any name, even one that the kernel cannot hold; nfctl does not.
_REFUSED = "-E NOWHERE X"


def policies(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[:1] == ":" and " - " not in line]


def test_chains_come_and_go_as_with_iptables(netns: Namespace) -> None:
    """Creating, renaming, flushing, deleting: each step leaves what iptables' own leaves."""
    pairs = [
        ("chain create WEB", "-N WEB"),
        ("chain create web-2.x:y", "-N web-2.x:y"),
        ("chain create WEB", "-N WEB"),
        ("rule add INPUT -j WEB", "-A INPUT -j WEB"),
        ("rule add web-2.x:y -g WEB", "-A web-2.x:y -g WEB"),
        ("rule add WEB -j DROP", "-A WEB -j DROP"),
        ("chain rename WEB HTTP", "-E WEB HTTP"),
        ("chain rename WEB HTTP", "-E WEB HTTP"),
        ("chain rename HTTP web-2.x:y", "-E HTTP web-2.x:y"),
        ("chain rename HTTP HTTP", "-E HTTP HTTP"),
        ("chain rename INPUT IN", "-E INPUT IN"),
        ("chain delete HTTP", "-X HTTP"),
        ("chain flush HTTP", "-F HTTP"),
        ("chain delete HTTP", "-X HTTP"),
        ("rule delete INPUT -j HTTP", "-D INPUT -j HTTP"),
        ("chain delete HTTP", "-X HTTP"),
        ("chain flush web-2.x:y", "-F web-2.x:y"),
        ("chain delete HTTP", "-X HTTP"),
        ("chain delete HTTP", "-X HTTP"),
        ("chain delete INPUT", "-X INPUT"),
        ("chain flush NOWHERE", "-F NOWHERE"),
        ("rule add INPUT -j LOG", "-A INPUT -j LOG"),
        ("rule add FORWARD -j LOG", "-A FORWARD -j LOG"),
        ("chain flush FORWARD", "-F FORWARD"),
        ("chain flush", "-F"),
    ]
    said = play.compare(netns, pairs)
    refused = [line for (line, _), step in zip(pairs, said, strict=True) if step.code]
    assert {step.code for step in said} == {0, 2}
    assert refused == [
        "chain create WEB", "chain rename WEB HTTP", "chain rename HTTP web-2.x:y",
        "chain rename HTTP HTTP", "chain rename INPUT IN", "chain delete HTTP", "chain delete HTTP",
        "chain delete HTTP", "chain delete HTTP", "chain delete INPUT", "chain flush NOWHERE",
    ]  # fmt: skip


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("table", ["raw", "mangle", "nat", "security"])
def test_other_tables_and_ipv6(netns: Namespace, family: int, table: str) -> None:
    """-t and -6 choose the table for every verb of chain."""
    ours, theirs = f"-{family} -t {table}", f"-t {table}"
    pairs = [
        (f"chain create {ours} WEB", f"{theirs} -N WEB"),
        (f"chain rename {ours} WEB HTTP", f"{theirs} -E WEB HTTP"),
        (f"rule add {ours} OUTPUT -j HTTP", f"{theirs} -A OUTPUT -j HTTP"),
        (f"chain policy {ours} OUTPUT DROP", f"{theirs} -P OUTPUT DROP"),
        (f"chain zero {ours} OUTPUT 1", f"{theirs} -Z OUTPUT 1"),
        (f"chain zero {ours}", f"{theirs} -Z"),
        (f"chain flush {ours} OUTPUT", f"{theirs} -F OUTPUT"),
        (f"chain delete {ours} HTTP", f"{theirs} -X HTTP"),
    ]
    codes = [said.code for said in play.compare(netns, pairs, family=family)]
    assert codes == [0, 0, 0, 2 if table == "nat" else 0, 0, 0, 0, 0]


def test_policies(netns: Namespace) -> None:
    """A policy is set as by iptables, its counters begin anew, and other chains keep theirs."""
    (ours,) = netns.python(play.by_nfctl, ["chain policy FORWARD DROP"], CHAINS)
    (theirs,) = netns.python(play.by_oracle, ["-P FORWARD DROP"], CHAINS)
    assert play.policies_zeroed(ours.saved) == play.policies_zeroed(theirs.saved)
    assert policies(ours.saved) == [
        ":INPUT DROP [11:1100]",
        ":FORWARD DROP [0:0]",
        ":OUTPUT ACCEPT [33:3300]",
    ]
    assert ":FORWARD DROP [0:0]" in theirs.saved


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("chain zero", "-Z"),
        ("chain zero INPUT", "-Z INPUT"),
        ("chain zero INPUT 2", "-Z INPUT 2"),
        ("chain zero B", "-Z B"),
        ("chain zero C", "-Z C"),
        ("chain zero INPUT 3", "-Z INPUT 3"),
        ("chain zero NOWHERE", "-Z NOWHERE"),
    ],
)
def test_zeroing(netns: Namespace, ours: str, theirs: str) -> None:
    """Zeroing a rule, a chain or the table zeroes what iptables zeroes, and no more policies."""
    (step,) = netns.python(play.by_nfctl, [ours], CHAINS)
    (oracle,) = netns.python(play.by_oracle, [theirs], CHAINS)
    assert bool(step.said.code) == bool(oracle.said.code)
    assert play.policies_zeroed(step.saved) == play.policies_zeroed(oracle.saved)
    kept = {"chain zero": 0, "chain zero INPUT": 2}.get(ours, 3)
    assert len([line for line in policies(step.saved) if "[0:0]" not in line]) == kept


@pytest.mark.parametrize(
    ("name", "byte"),
    [("a" * 28, "a"), ("ä" * 14, "ä"), ("日" * 9 + "x", "y"), ("\udcff" * 28, "z")],
)
def test_names_of_28_bytes_and_of_29(netns: Namespace, name: str, byte: str) -> None:
    """28 bytes are taken whatever they are, and everything works with them; one more is refused."""
    pairs = [
        (f"chain create {name}", f"-N {name}"),
        (f"rule add INPUT -j {name}", f"-A INPUT -j {name}"),
        (f"rule add {name} -j RETURN", f"-A {name} -j RETURN"),
        (f"chain create {name}{byte}", f"-N {name}{byte}"),
        (f"chain rename {name} {name}{byte}", _REFUSED),
        (f"rule add INPUT -j {name}{byte}", f"-A INPUT -j {name}{byte}"),
        (f"rule add {name}{byte} -j RETURN", f"-A {name}{byte} -j RETURN"),
    ]
    said = play.compare(netns, pairs)
    assert [step.code for step in said] == [0, 0, 0, 2, 2, 2, 2]
    assert "too long" in said[3].err
    assert "28 bytes" in said[3].err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ACCEPT", "verdict"),
        ("QUEUE", "verdict"),
        ("RETURN", "verdict"),
        ("LOG", "target extension"),
        ("DNAT", "target extension"),
        ("SNAT", "target extension"),
        ("INPUT", "already"),
        ("-x", "-x"),
        ("!x", "!"),
        ("a b", "white space"),
        ("", "a name"),
    ],
)
def test_names_that_are_not_allowed(netns: Namespace, name: str, said: str) -> None:
    """Names of verdicts, of targets, of built-in chains, and ones that look like options."""
    pairs = [
        ("chain create OLD", "-N OLD"),
        (f"chain create '{name}'", f"-N '{name}'"),
        (f"chain rename OLD '{name}'", _REFUSED),
    ]
    _, created, renamed = play.compare(netns, pairs)
    assert (created.code, renamed.code) == (2, 2)
    assert said in created.err
    assert said in renamed.err


def test_a_chain_in_use_names_who_jumps(netns: Namespace) -> None:
    """Deleting a chain that rules jump or go to says which rules, by chain and number."""
    lines = ["chain delete B", "chain delete --flush B", "chain delete A"]
    for step in netns.python(play.by_nfctl, lines, CHAINS):
        assert step.said.code == 2
        assert "in use" in step.said.err
        assert step.saved == CHAINS
        expected = "INPUT rule 1" if "chain A" in step.said.err else "INPUT rule 2, A rule 1"
        assert f"the jumps: {expected}" in step.said.err
    many = CHAINS.replace("COMMIT", "-A OUTPUT -j C\n" * 9 + "COMMIT")
    (step,) = netns.python(play.by_nfctl, ["chain delete C"], many)
    assert "9 jumps to it" in step.said.err
    assert "OUTPUT rule 5 and 4 more" in step.said.err


def test_deleting_with_what_is_in_it(netns: Namespace) -> None:
    """--flush deletes a chain that nobody jumps to together with its rules, even to itself."""
    text = CHAINS.replace("COMMIT", "-A C -p tcp -j DROP\n-A C -j C\nCOMMIT")
    refused, done = netns.python(play.by_nfctl, ["chain delete C", "chain delete --flush C"], text)
    assert refused.said.code == 2
    assert done.said.code == 0, done.said.err
    assert done.saved == CHAINS.replace(":C - [0:0]\n", "")
    full = CHAINS.replace("COMMIT", "-A C -p tcp -j DROP\nCOMMIT")
    (refused,) = netns.python(play.by_nfctl, ["chain delete C"], full)
    assert "it has 1 rule" in refused.said.err
    assert "--flush" in refused.said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("chain delete INPUT", "built-in"),
        ("chain delete --flush INPUT", "built-in"),
        ("chain rename INPUT IN", "built-in"),
        ("chain policy A DROP", "user-defined"),
        ("chain policy INPUT REJECT", "ACCEPT or DROP"),
        ("chain policy INPUT drop", "ACCEPT or DROP"),
        ("chain policy NOWHERE DROP", "no chain NOWHERE"),
        ("chain policy -t nat OUTPUT DROP", "not intended for filtering"),
        ("chain policy -t nat FORWARD ACCEPT", "use -t"),
        ("chain create -t bogus X", "no table 'bogus'"),
        ("chain list -t bogus", "no table 'bogus'"),
        ("chain zero INPUT 9", "no number 9"),
        ("chain zero INPUT x", "x"),
    ],
)
def test_what_is_refused_changes_nothing(netns: Namespace, words: str, said: str) -> None:
    """Each is exit code 2, says why, and leaves every rule and counter of the table."""
    (step,) = netns.python(play.by_nfctl, [words], CHAINS)
    assert step.said.code == 2
    assert said in step.said.err
    assert CHAINS in step.saved
    assert "Traceback" not in step.said.err


def test_the_list(netns: Namespace) -> None:
    """The list holds policies, counters and jumps of each chain, as the oracle counts them."""
    netns.python(play.load, CHAINS)
    said = netns.python(play.nfctl, ["chain", "list"])
    assert said.out == (
        "table filter, IPv4\n\n"
        "  rules  pkts  bytes  policy  chain    used\n"
        "      2    11   1.1k  DROP    INPUT\n"
        "      1    22   2.2k  ACCEPT  FORWARD\n"
        "      0    33   3.3k  ACCEPT  OUTPUT\n"
        "      1               -       A        1 jump to it\n"
        "      1               -       B        2 jumps to it\n"
        "      0               -       C        0 jumps to it\n"
    )
    shown = netns.legacy("-nL").stdout
    assert re.findall(r"Chain (\w+) \((\d+) references\)", shown) == [
        ("A", "1"),
        ("B", "2"),
        ("C", "0"),
    ]
    assert " 1100 " in netns.python(play.nfctl, ["chain", "list", "-x"]).out


@pytest.mark.parametrize("family", [4, 6])
def test_the_document(netns: Namespace, family: int) -> None:
    """--json holds for each chain the documented keys, with the rules counted."""
    netns.python(play.load, CHAINS, family)
    said = netns.python(play.nfctl, ["chain", "list", f"-{family}", "--json"])
    document = json.loads(said.out)
    assert sorted(document) == ["chains", "family", "table"]
    assert (document["family"], document["table"]) == (family, "filter")
    keys = ["name", "builtin", "policy", "packets", "bytes", "references", "rules"]
    assert [[chain[key] for key in keys] for chain in document["chains"]] == [
        ["INPUT", True, "DROP", 11, 1100, 0, 2],
        ["FORWARD", True, "ACCEPT", 22, 2200, 0, 1],
        ["OUTPUT", True, "ACCEPT", 33, 3300, 0, 0],
        ["A", False, None, 0, 0, 1, 1],
        ["B", False, None, 0, 0, 2, 1],
        ["C", False, None, 0, 0, 0, 0],
    ]
    assert {len(chain) for chain in document["chains"]} == {len(keys)}


def test_the_command_itself(netns: Namespace) -> None:
    """New processes of nfctl make, use and remove a chain, and nothing is left of it."""
    for words in (
        "chain create WEB",
        "rule add INPUT -j WEB",
        "chain list",
        "chain policy FORWARD DROP",
        "rule delete INPUT -j WEB",
        "chain delete WEB",
        "chain policy FORWARD ACCEPT",
    ):
        done = netns.nfctl(*words.split())
        assert (done.returncode, done.stderr) == (0, "")
    assert netns.save() == play.EMPTY
