from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nfctl.traversal
from nfctl.ruleset import Ruleset, names
from nfctl.traversal import (
    TABLES,
    Hook,
    Landmark,
    Station,
    Way,
    builtin_chains,
    is_builtin,
    nat_kind,
    path,
    priority,
    route,
    stations,
    steps,
)
from nfctl.traversal.picture import Stop, jump_target, picture, reachable

RULES = """\
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [7:700]
:A - [0:0]
:B - [0:0]
:OLD - [0:0]
:OLDER - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "say -j OLD" -j ACCEPT
-A INPUT -j A
-A A -s 10.0.0.0/8 -g B
-A A -j RETURN
-A B -j A
-A B -j LOG --log-prefix "x -j OLD "
-A OLD -j OLDER
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""


@pytest.mark.parametrize(
    ("hook", "tables"),
    [
        (Hook.PREROUTING, ["raw", "mangle", "nat"]),
        (Hook.INPUT, ["mangle", "filter", "security", "nat"]),
        (Hook.FORWARD, ["mangle", "filter", "security"]),
        (Hook.OUTPUT, ["raw", "mangle", "nat", "filter", "security"]),
        (Hook.POSTROUTING, ["mangle", "nat"]),
    ],
)
def test_tables_stand_in_each_hook_in_priority_order(hook: Hook, tables: list[str]) -> None:
    """Each hook lists its tables as the kernel's priorities order them, nat last in INPUT."""
    assert [station.table for station in stations(hook)] == tables


def test_priorities_are_the_kernels() -> None:
    """The numbers are those of enum nf_ip_hook_priorities."""
    assert [priority(table, Hook.OUTPUT) for table in TABLES] == [-300, -150, -100, 0, 50]
    assert priority("nat", Hook.INPUT) == priority("nat", Hook.POSTROUTING) == 100
    assert priority("nat", Hook.PREROUTING) == -100


def test_builtin_chains_agree_with_the_rulesets_names() -> None:
    """The traversal and the parser know the same tables and the same built-in chains."""
    assert TABLES == names.TABLES
    for table, chains in names.BUILTIN_CHAINS.items():
        assert tuple(hook.value for hook in builtin_chains(table)) == chains


def test_a_table_has_no_chain_in_a_hook_where_it_does_not_hang() -> None:
    """Table raw does not hang in INPUT, nat not in FORWARD, and neither has a chain there."""
    assert not is_builtin("raw", "INPUT")
    assert not is_builtin("nat", "FORWARD")
    assert is_builtin("nat", "INPUT")
    with pytest.raises(KeyError):
        priority("raw", Hook.INPUT)


def test_hook_numbers_are_the_kernels() -> None:
    """Hooks number as enum nf_inet_hooks does."""
    assert [hook.number for hook in Hook] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("hook", [Hook.PREROUTING, Hook.OUTPUT])
def test_conntrack_comes_between_raw_and_mangle(hook: Hook) -> None:
    """Where packets enter netfilter, raw is the only table before connection tracking."""
    assert steps(hook)[:3] == (
        Station(hook, "raw", -300),
        Landmark.CONNTRACK,
        Station(hook, "mangle", -150),
    )


def test_no_other_hook_has_a_conntrack_lookup() -> None:
    """INPUT, FORWARD and POSTROUTING see packets whose connection is known already."""
    for hook in (Hook.INPUT, Hook.FORWARD, Hook.POSTROUTING):
        assert steps(hook) == stations(hook)


def test_the_three_ways_pass_their_hooks() -> None:
    """A packet to this host, through it and from it passes two hooks each, and a routing."""
    passed = {way: [part for part in route(way) if isinstance(part, Hook)] for way in Way}
    assert passed == {
        Way.LOCAL_IN: [Hook.PREROUTING, Hook.INPUT],
        Way.FORWARDED: [Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING],
        Way.LOCAL_OUT: [Hook.OUTPUT, Hook.POSTROUTING],
    }
    assert all(Landmark.ROUTING in route(way) for way in Way)


def test_a_local_packet_is_routed_before_output_and_checked_after_it() -> None:
    """The routing decision precedes OUTPUT; the re-routing check stands before POSTROUTING."""
    found = path(Way.LOCAL_OUT)
    output = [i for i, s in enumerate(found) if isinstance(s, Station) and s.hook is Hook.OUTPUT]
    assert found.index(Landmark.ROUTING) < output[0]
    assert output[-1] < found.index(Landmark.REROUTING)
    assert str(found[-2]) == "nat:POSTROUTING"


def test_a_whole_path_reads_like_a_trace() -> None:
    """The stations of a forwarded packet, named as the kernel's TRACE names them, in order."""
    assert [str(step) for step in path(Way.FORWARDED) if isinstance(step, Station)] == [
        "raw:PREROUTING",
        "mangle:PREROUTING",
        "nat:PREROUTING",
        "mangle:FORWARD",
        "filter:FORWARD",
        "security:FORWARD",
        "mangle:POSTROUTING",
        "nat:POSTROUTING",
    ]


def test_nat_changes_destinations_early_and_sources_late() -> None:
    """The four chains of nat change the destination before routing, the source after it."""
    assert {hook.value: nat_kind(hook) for hook in builtin_chains("nat")} == {
        "PREROUTING": "dst",
        "OUTPUT": "dst",
        "INPUT": "src",
        "POSTROUTING": "src",
    }


def test_traversal_imports_nothing_that_needs_c_or_root() -> None:
    """The room holds only the standard library, the ruleset's model and itself."""
    allowed = {"__future__", "dataclasses", "enum", "re", "typing", "collections", "nfctl"}
    for file in Path(nfctl.traversal.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                parts = module.split(".")
                assert parts[0] in allowed, f"{file.name} imports {module}"
                if parts[0] == "nfctl":
                    assert parts[1] in {"ruleset", "traversal", "errors"}, file.name


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("-p tcp -j ACCEPT", "ACCEPT"),
        ("-g CHAIN", "CHAIN"),
        ('-m comment --comment "say -j OLD" -j NEW', "NEW"),
        (r'-m comment --comment "a \" -j OLD" -j NEW', "NEW"),
        ('-j LOG --log-prefix "x -j OLD "', "LOG"),
        ("-i eth0-j", ""),
        ("", ""),
    ],
)
def test_the_target_of_a_rules_text(spec: str, target: str) -> None:
    """A target is the word behind -j or -g; words inside quotes are none."""
    assert jump_target(spec) == target


def test_reachable_follows_loops_and_ends() -> None:
    """Chains that jump to each other, which iptables-restore may pass on, do not hang it."""
    jumps = {"IN": frozenset({"A"}), "A": frozenset({"B"}), "B": frozenset({"A"})}
    assert reachable(jumps, "IN") == {"A", "B"}


def stop(hook: Hook, table: str) -> Stop:
    found = picture(Ruleset.parse(RULES)).hooks[hook]
    (wanted,) = [s for s in found if isinstance(s, Stop) and s.station.table == table]
    return wanted


def test_a_stop_shows_what_the_builtin_chain_holds() -> None:
    """Rules, policy and its counters are the chain's own; chains are those that jumps reach."""
    held = stop(Hook.INPUT, "filter")
    assert (held.in_use, held.policy, held.packets, held.octets) == (True, "DROP", 12, 3456)
    assert (held.rules, held.chains, held.chain_rules) == (2, 2, 4)


def test_a_table_that_is_not_in_the_ruleset_is_not_in_use() -> None:
    """A stop of a table that the ruleset lacks says so, and counts nothing."""
    held = stop(Hook.INPUT, "mangle")
    assert not held.in_use
    assert (held.policy, held.rules, held.chains) == ("", 0, 0)


def test_unreachable_chains_are_named() -> None:
    """A chain that no jump from a built-in chain leads to is unreachable, as are its own."""
    tables = {table.name: table for table in picture(Ruleset.parse(RULES)).tables}
    assert tables["filter"].chains == ("A", "B", "OLD", "OLDER")
    assert tables["filter"].unreachable == ("OLD", "OLDER")
    assert tables["filter"].rules == 7
    assert not tables["raw"].in_use
    assert list(tables) == list(TABLES)
