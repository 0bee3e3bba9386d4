"""Folding: which chains are alike, and that nothing is lost."""

from __future__ import annotations

from itertools import chain as chained

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfctl.jumps import fold
from nfctl.jumps.fold import Node, View, view
from nfctl.jumps.graph import read
from tests.unit.jumping import cluster, tables


def one(text: str, *, folded: bool = True, keep: tuple[str, ...] = ()) -> View:
    (graph,) = read(text, source="x").values()
    return view(graph, fold=folded, keep=keep)


def by_name(found: View) -> dict[str, Node]:
    return {node.name: node for node in found.nodes}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small graphs are folded too, and pairs are groups."""
    monkeypatch.setattr(fold, "SCREENFUL", 0)
    monkeypatch.setattr(fold, "ALIKE", 2)


# --- what is alike --------------------------------------------------------------------------------


def test_a_cluster_is_one_node_a_kind() -> None:
    """Services are one node, endpoints another; their jumps are counted, their counters summed."""
    found = by_name(one(cluster([3] * 40, counted=True)))
    assert len(found) == 4 + 2 + 2
    assert found["KUBE-SVC-*"].alike == 40
    assert found["KUBE-SEP-*"].alike == 120
    (to_services,) = found["KUBE-SERVICES"].edges
    assert to_services.to is found["KUBE-SVC-*"]
    assert to_services[2:] == ("-d 10.96.0.* tcp dport 80", 40, 40, 40, False, (40, 2400))
    masquerade, endpoints = found["KUBE-SVC-*"].edges
    assert masquerade.label == "! -s 10.0.0.0/9 -d 10.96.0.* tcp"
    assert endpoints[1:] == (False, "", 120, 3, 3, True, (120, 7200))
    assert found["KUBE-SEP-*"].ends == [("DNAT", "to 10.1.*", 120, (120, 7200))]


def test_services_of_any_size_are_alike() -> None:
    """One endpoint or nine: it is the same kind of chain, and the range is said."""
    found = by_name(one(cluster([9, 1, 2, 5] * 10)))
    edge = found["KUBE-SVC-*"].edges[-1]
    assert (edge.least, edge.most, edge.rules, edge.chance) == (1, 9, 170, True)


def test_what_is_unlike_stays_apart() -> None:
    """Another match, target, or a chain that it leads to: a group of its own, or a chain alone."""
    lines = cluster([2] * 30).split("\n")
    services = [line[1:].split(" ")[0] for line in lines if line.startswith(":KUBE-SVC")]
    rules = [f"-A {name} -i eth0 -j DROP" for name in services[:5]]
    rules += [f"-A {services[9]} -j KUBE-SERVICES-GONE"]
    found = by_name(one("\n".join([*lines[:-2], *rules, "COMMIT", ""])))
    assert found["KUBE-SVC-*"].alike + found["KUBE-SVC-*#2"].alike == 29
    assert {found["KUBE-SVC-*"].alike, found["KUBE-SVC-*#2"].alike} == {5, 24}
    assert found[services[9]].alike == 1


def test_what_nobody_jumps_to_is_not_hidden_in_a_group() -> None:
    """An endpoint's chain that no service jumps to is shown, among hundreds like it."""
    text = cluster([2] * 30).replace("*nat\n", "*nat\n:KUBE-SEP-LOST - [0:0]\n")
    lost = "-A KUBE-SEP-LOST -s 10.0.0.1/32 -j KUBE-MARK-MASQ\n"
    lost += "-A KUBE-SEP-LOST -p tcp -j DNAT --to-destination 10.0.0.1:80\nCOMMIT"
    found = one(text.replace("COMMIT", lost))
    assert [node.name for node in found.unreferenced] == ["KUBE-SEP-LOST"]


def test_chains_that_are_gone_are_folded_too() -> None:
    """Jumps of hundreds of services to endpoints' chains that are missing are one line."""
    lines = [line for line in cluster([2] * 30).split("\n") if "-A KUBE-SEP" not in line]
    found = by_name(one("\n".join(line for line in lines if ":KUBE-SEP" not in line)))
    assert found["KUBE-SEP-*"].alike == 60
    assert not found["KUBE-SEP-*"].chain.present


def test_what_is_small_is_shown_as_it_is() -> None:
    """A cluster of two services fits a screen, and nothing is folded."""
    found = one(cluster([4, 4]))
    assert not found.folded
    assert all(edge.rules == 1 for node in found.nodes for edge in node.edges)


def test_chains_that_were_asked_for_stay() -> None:
    """A chain that is named is a node, however many are like it."""
    text = cluster([2] * 30)
    name = next(line[1:].split(" ")[0] for line in text.split("\n") if ":KUBE-SEP" in line)
    assert by_name(one(text, keep=(name,)))[name].alike == 1


def test_many_rules_to_one_chain_are_one_line() -> None:
    """A thousand addresses to block are not a thousand lines; what is between them stays."""
    rules = [f"-A INPUT -s 192.0.2.{number}/32 -j BLOCK" for number in range(100)]
    rules[50:50] = ["-A INPUT -p tcp -j BLOCK"]
    (edge, other) = (
        one("\n".join(["*filter", ":BLOCK - [0:0]", *rules, "COMMIT", ""])).nodes[0].edges
    )
    assert (edge.label, edge.rules) == ("-s 192.0.2.*", 100)
    assert (other.label, other.rules) == ("tcp", 1)


def test_loops_stay_apart() -> None:
    """Chains in a loop are nodes of their own; those that lead to it are folded."""
    own = [f"A-{number}" for number in range(60)]
    rules = [f"-A INPUT -j {name}" for name in own] + [f"-A {name} -j L-1" for name in own]
    rules += ["-A L-1 -j L-2", "-A L-2 -j L-1", "-A M -j M"]
    chains = [f":{name} - [0:0]" for name in [*own, "L-1", "L-2", "M"]]
    found = one("\n".join(["*filter", *chains, *rules, "COMMIT", ""]))
    assert {"A-*", "L-1", "L-2", "M"} <= by_name(found).keys()
    assert [node.name for node in found.looping] == ["M"]


# --- nothing is lost ------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(), st.booleans())
def test_nothing_is_lost(eager: None, text: str, folded: bool) -> None:  # noqa: ARG001
    """Every chain is in one node; rules and counters of edges and ends add up to all there are."""
    (graph,) = read(text, source="x").values()
    found = view(graph, fold=folded)
    assert sorted(chained.from_iterable(node.names for node in found.nodes)) == sorted(graph.chains)
    assert folded or not found.folded
    place = {name: node for node in found.nodes for name in node.names}
    for node in found.nodes:
        rules = [rule for name in node.names for rule in graph.chains[name].rules]
        parts = [(edge.rules, edge.counters) for edge in node.edges]
        parts += [(end.rules, end.counters) for end in node.ends]
        assert sum(count for count, _ in parts) == len(rules) == node.size
        counted = [counters for _, counters in parts if counters]
        for at in (0, 1):
            assert sum(c[at] for c in counted) == sum(r.counters[at] for r in rules if r.counters)
        jumps = {(id(place[r.target]), r.goto) for r in rules if r.target in place}
        assert {(id(edge.to), edge.goto) for edge in node.edges} == jumps
        for edge in node.edges:
            assert edge.least * node.alike <= edge.rules <= edge.most * node.alike


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables())
def test_alike_is_alike(eager: None, text: str) -> None:  # noqa: ARG001
    """Chains in one node lead to the same nodes, and their names begin with the node's."""
    (graph,) = read(text, source="x").values()
    found = view(graph)
    place = {name: node for node in found.nodes for name in node.names}
    for node in found.nodes:
        led = {
            frozenset((id(place.get(r.target)), r.goto) for r in graph.chains[name].rules)
            for name in node.names
        }
        assert len(led) == 1
        if node.alike > 1:
            start = node.name.partition("*")[0]
            assert all(name.startswith(start) for name in node.names)


@given(tables())
def test_every_chain_belongs_to_a_beginning(text: str) -> None:
    """From the roots, the chains nobody jumps to, and one of each loop, all chains are reached."""
    found = one(text, folded=False)
    waiting = [*found.roots, *found.unreferenced, *found.looping]
    assert len(set(map(id, waiting))) == len(waiting)
    seen = set(map(id, waiting))
    while waiting:
        for edge in waiting.pop().edges:
            if id(edge.to) not in seen:
                seen.add(id(edge.to))
                waiting.append(edge.to)
    assert seen == set(map(id, found.nodes))
    jumped_to = {id(edge.to) for node in found.nodes for edge in node.edges}
    assert not jumped_to & set(map(id, found.unreferenced))
