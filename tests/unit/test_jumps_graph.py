"""Reading the jump graph: where rules are cut, what is missing, which ways lead where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.jumps.graph import TARGETS, Graph, Rule, of_table, read
from nfctl.kernel.extensions import installed
from nfctl.ruleset import Ruleset, Spec, Use
from nfctl.ruleset.words import join
from tests.unit import strategies
from tests.unit.jumping import cluster, tables


def table(*lines: str, name: str = "filter") -> Graph:
    text = "\n".join([f"*{name}", *lines, "COMMIT", ""])
    return read(text, source="rules.v4")[name]


def one(spec: str) -> Rule:
    """Return the only rule of a table that has two chains."""
    (rule,) = table(":A - [0:0]", ":B - [0:0]", f"-A A {spec}").chains["A"].rules
    return rule


def failure(*lines: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        table(*lines)
    return caught.value


# --- one rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "condition", "target", "options", "goto"),
    [
        ("-j B", "", "B", "", False),
        ("-g B", "", "B", "", True),
        ("-p tcp -m tcp --dport 22 -j B", "-p tcp -m tcp --dport 22", "B", "", False),
        ("-s 10.0.0.1/32 -g B", "-s 10.0.0.1/32", "B", "", True),
        ("-p tcp", "-p tcp", "", "", False),
        ("", "", "", "", False),
        ("-j DNAT --to-destination 10.0.0.1:80", "", "DNAT", "--to-destination 10.0.0.1:80", False),
        ('-j LOG --log-prefix "x -j B "', "", "LOG", '--log-prefix "x -j B "', False),
        ('-m comment --comment "x -j B" -j A', '-m comment --comment "x -j B"', "A", "", False),
        ('-m comment --comment "x -j B"', '-m comment --comment "x -j B"', "", "", False),
        ("-m comment --comment -j -j B", "-m comment --comment -j", "B", "", False),
        ("-m comment --comment -j", "-m comment --comment -j", "", "", False),
        ("-m comment --comment -g -g B", "-m comment --comment -g", "B", "", True),
        ("-j B -m comment --comment x", "-m comment --comment x", "B", "", False),
        ("-j B -s 10.0.0.1", "-s 10.0.0.1", "B", "", False),
        ("-j B ! -s 10.0.0.1", "! -s 10.0.0.1", "B", "", False),
        ("--jump B --protocol udp", "--protocol udp", "B", "", False),
        ("-p udp --goto B", "-p udp", "B", "", True),
        ('-i "e 0" -j "B"', '-i "e 0"', "B", "", False),
    ],
)  # fmt: skip
def test_a_rule_is_cut_where_it_jumps(
    spec: str, condition: str, target: str, options: str, goto: bool
) -> None:
    """Condition, target and the target's options, whatever comments and prefixes say."""
    assert one(spec) == Rule(1, condition, target, options, goto, None)


@given(strategies.specs(4), st.sampled_from(["", "B"]), st.booleans(), st.booleans())
def test_the_quick_way_agrees_with_the_grammar(
    spec: Spec, jump: str, goto: bool, first: bool
) -> None:
    """Any rule: what is read off its text is what the parser of specifications finds in it."""
    if jump:
        spec = spec._replace(target=Use(jump), goto=goto)
    text = spec.text()
    if first and spec.target:  # the target may stand first, in files that people write
        words = ["-g" if spec.goto else "-j", spec.target.name, *spec.target.options]
        text = f"{join(words)} {spec._replace(target=None, goto=False).text()}".rstrip()
    if "\r" in text or "\n" in text:
        return
    rule = one(text)
    assert rule.target == (spec.target.name if spec.target else "")
    assert rule.goto == spec.goto
    assert Spec.parse(rule.condition) == spec._replace(target=None, goto=False)
    if spec.target:
        again = Spec.parse(f"-j {spec.target.name} {rule.options}")
        assert again.target == spec.target


@given(strategies.rulesets())
def test_what_a_table_has_is_in_its_graph(ruleset: Ruleset) -> None:
    """From objects and from their text comes the same graph, with all chains and rules."""
    graphs = read(ruleset.render(counters=True), source="x", family=ruleset.family)
    for found in ruleset:
        graph = of_table(found, ruleset.family)
        assert graphs[found.name].chains == graph.chains
        assert graph.rules == found.rules
        assert [chain.name for chain in graph.chains.values() if chain.present] == [*found.chains]


# --- a file -------------------------------------------------------------------------------------


def test_counters_and_policies_are_read() -> None:
    """They are those of the file; without them there are none."""
    graph = table(":INPUT DROP [12:345]", ":A - [0:0]", "[7:420] -A INPUT -j A")
    assert graph.counted
    assert graph.chains["INPUT"].policy == "DROP"
    assert graph.chains["INPUT"].counters == (12, 345)
    assert graph.chains["INPUT"].rules[0].counters == (7, 420)
    assert graph.chains["A"].policy is None
    assert not table("-A INPUT -j DROP").counted


def test_a_chain_that_is_not_there_is_a_part_of_the_graph() -> None:
    """What is jumped to and no target's name is a missing chain; extensions are none."""
    graph = table("-A INPUT -j GONE", "-A INPUT -g AWAY", "-A INPUT -j REJECT", "-A INPUT -j DROP",
                  "-A INPUT -j NEWEXT --option 1", "-A INPUT")  # fmt: skip
    missing = [name for name, chain in graph.chains.items() if not chain.present]
    assert missing == ["GONE", "AWAY"]
    assert graph.own == 0


def test_every_target_that_is_installed_is_known() -> None:
    """No extension of this machine's iptables is taken for a chain that is gone."""
    names = {name for family in (4, 6) for name in installed(family) if name.isupper()}
    if not names:
        pytest.skip("there are no extensions here: package iptables")
    assert names <= TARGETS


def test_all_that_restore_reads_is_read() -> None:
    """Inserted, replaced, deleted rules and renamed chains leave what iptables-restore leaves."""
    graph = table("-N A", "-A INPUT -j DROP", "-I INPUT -p tcp -j A", "-A INPUT -j A",
                  "-D INPUT 3", "-N B", "-E A C", "-X B")  # fmt: skip
    assert [rule.target for rule in graph.chains["INPUT"].rules] == ["C", "DROP"]
    assert [*graph.chains] == ["INPUT", "FORWARD", "OUTPUT", "C"]


def test_the_last_of_two_sections_stays() -> None:
    """As with iptables-restore, which flushes a table that it meets again; policies stay."""
    text = "*filter\n:INPUT DROP [0:0]\n:A - [0:0]\nCOMMIT\n*filter\n:B - [0:0]\nCOMMIT\n"
    graph = read(text, source="x")["filter"]
    assert [*graph.chains] == ["INPUT", "FORWARD", "OUTPUT", "B"]
    assert graph.chains["INPUT"].policy == "DROP"


def test_a_wrong_file_says_where() -> None:
    """Line and column of what is wrong are those that an editor shows."""
    error = failure(":A - [0:0]", "-A B -j A")
    assert str(error.where) == "rules.v4:3:1"
    assert error.message == "table filter has no chain B"
    error = failure("-A INPUT -p tcp -j")
    assert str(error.where).startswith("rules.v4:2:")
    error = failure('-A INPUT -m comment --comment "open -j DROP')
    assert str(error.where) == "rules.v4:2:31"
    assert str(failure(":A - [0:0]", ":A - [0:0]").where) == "rules.v4:3:2"
    assert str(failure(":A DROP [0:0]").where) == "rules.v4:2:2"


@given(st.text(st.sampled_from('-AgjsINPUT "!\\\t[0:1] --jump'), max_size=30))
def test_no_line_is_too_odd(line: str) -> None:
    """A line is read, or refused with its place."""
    text = f"*filter\n:A - [0:0]\n-A INPUT {line}\nCOMMIT\n"
    error = strategies.refusal(lambda: read(text, source="x"))
    assert error is None or str(error.where).startswith("x:")


# --- parts of a graph -----------------------------------------------------------------------------

LINES = (
    ":A - [0:0]", ":B - [0:0]", ":C - [0:0]", ":D - [0:0]", ":E - [0:0]",
    "-A INPUT -j A", "-A INPUT -j D", "-A INPUT -j DROP", "-A A -j B", "-A A -j C", "-A B -j C",
    "-A B -j LOG", "-A C -j D", "-A C -j RETURN", "-A FORWARD -j D", "-A E -j C",
)  # fmt: skip


def test_from_a_chain() -> None:
    """What is kept is the chain and all it leads to, with all rules."""
    part = table(*LINES).leading("B")
    assert [*part.chains] == ["B", "C", "D"]
    assert part.roots == ["B"]
    assert [rule.target for rule in part.chains["B"].rules] == ["C", "LOG"]


def test_to_a_chain() -> None:
    """What is kept is every jump of every way there, and what becomes of packets there."""
    part = table(*LINES).leading(None, "C")
    assert [*part.chains] == ["INPUT", "A", "B", "C", "E"]
    assert part.roots == ["INPUT"]
    jumps = {(name, r.target) for name, chain in part.chains.items() for r in chain.rules}
    assert jumps == {("INPUT", "A"), ("A", "B"), ("A", "C"), ("B", "C"), ("E", "C"),
                     ("C", "RETURN")}  # fmt: skip
    assert part.chains["INPUT"].size == 3


def test_from_a_chain_to_a_chain() -> None:
    """Only what is between them; nothing, where no way leads."""
    graph = table(*LINES)
    assert [*graph.leading("A", "D").chains] == ["A", "B", "C", "D"]
    assert graph.leading("D", "A").chains == {}


@given(tables(), st.data())
def test_ways_are_what_paths_are_made_of(text: str, data: st.DataObject) -> None:
    """A jump is kept if, and only if, it is on a path to the chain: found by trying each."""
    graph = read(text, source="x")["filter"]
    to = data.draw(st.sampled_from([*graph.chains]))
    ways = graph.ways()

    def leads(name: str) -> bool:
        seen, waiting = {name}, [name]
        while waiting:
            for target in ways[waiting.pop()]:
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return to in seen

    part = graph.leading(None, to)
    assert {*part.chains} == {name for name in graph.chains if leads(name)}
    for name, chain in part.chains.items():
        kept = [rule for rule in graph.chains[name].rules if rule.target in part.chains]
        assert name == to or chain.rules == kept


def test_a_path_longer_than_pythons_stack() -> None:
    """Ten thousand chains in a row, and their last one."""
    names = [f"C{number}" for number in range(10_000)]
    lines = [f":{name} - [0:0]" for name in names]
    lines += [f"-A {one} -j {two}" for one, two in zip(["INPUT", *names], names, strict=False)]
    part = table(*lines).leading(None, names[-1])
    assert len(part.chains) == 10_001


def test_the_numbers_of_a_cluster() -> None:
    """Every declared chain and every rule is there."""
    graph = read(cluster([4] * 30), source="x")["nat"]
    assert graph.own == 2 + 30 + 120
    assert graph.rules == 2 + 30 * (1 + 1 + 4 * 3)
