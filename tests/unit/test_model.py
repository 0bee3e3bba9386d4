from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset import Chain, Counters, Rule, Ruleset, Spec, Table
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES, VERDICTS, check_new_chain, check_policy
from tests.unit.strategies import refusal, rulesets


def one(lines: str, family: int = 4) -> Table:
    """Return what lines make of an empty filter table."""
    return Ruleset.parse(f"*filter\n{lines}\nCOMMIT\n", family=family).tables["filter"]


def specs(table: Table, chain: str = "INPUT") -> list[str]:
    return [rule.spec for rule in table.chains[chain].rules]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rulesets())
def test_a_ruleset_printed_with_counters_and_read_is_the_same(ruleset: Ruleset) -> None:
    """parse(render(x)) is x: chains in order, policies, rules, and every counter."""
    text = ruleset.render(counters=True)
    assert Ruleset.parse(text, family=ruleset.family) == ruleset
    assert Ruleset.parse(text, family=ruleset.family).render(counters=True) == text


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rulesets())
def test_without_counters_only_the_rules_counters_are_lost(ruleset: Ruleset) -> None:
    """render() without counters differs from render() with them by the rules' counters only."""
    for table in ruleset:
        for chain in table.chains.values():
            for rule in chain.rules:
                rule.counters = Counters()
    assert Ruleset.parse(ruleset.render(), family=ruleset.family) == ruleset


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rulesets())
def test_every_rule_of_a_ruleset_can_be_taken_apart(ruleset: Ruleset) -> None:
    """A rule's text is a specification that prints as that text again."""
    for table in ruleset:
        for chain in table.chains.values():
            for rule in chain.rules:
                assert rule.parsed(ruleset.family).text() == rule.spec


def test_rendered_text_is_iptables_save_s() -> None:
    """Built-in chains first, user-defined ones with - and zero counters, rules, COMMIT."""
    table = Table.empty("raw")
    table.chains["WEB"] = Chain("WEB", rules=[Rule("", Counters(3, 4))])
    table.chains["OUTPUT"] = Chain("OUTPUT", "DROP", Counters(1, 2), [Rule("-j WEB")])
    assert table.rules == 2
    assert table.render(counters=True) == (
        "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT DROP [1:2]\n:WEB - [0:0]\n"
        "[0:0] -A OUTPUT -j WEB\n[3:4] -A WEB\nCOMMIT\n"
    )
    assert table.render().count("[") == 3
    assert [chain.builtin for chain in table.chains.values()] == [True, True, False]


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_has_its_built_in_chains(name: str) -> None:
    """A table as the kernel makes it accepts in each built-in chain and has no rule."""
    table = Table.empty(name)
    assert tuple(table.chains) == BUILTIN_CHAINS[name]
    assert {chain.policy for chain in table.chains.values()} == {"ACCEPT"}
    assert table.rules == 0


def test_user_defined_chains_are_sorted_by_bytes() -> None:
    """Chains are in the order of iptables-save, in whatever order they are declared."""
    table = one(":b - [0:0]\n:ä - [0:0]\n:B - [0:0]\n:a-1 - [0:0]\n:a - [0:0]")
    assert list(table.chains) == ["INPUT", "FORWARD", "OUTPUT", "B", "a", "a-1", "b", "ä"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("-A INPUT -s 1.1.1.1\n-A INPUT -f", ["-s 1.1.1.1", "-f"]),
        ("-A INPUT -s 1.1.1.1\n-I INPUT -f", ["-f", "-s 1.1.1.1"]),
        ("-A INPUT -s 1.1.1.1\n-I INPUT 2 -f", ["-s 1.1.1.1", "-f"]),
        ("-A INPUT -s 1.1.1.1\n-A INPUT -f\n-D INPUT 1", ["-f"]),
        ("-A INPUT -s 1.1.1.1\n-A INPUT -f\n-D INPUT -f", ["-s 1.1.1.1"]),
        ("-A INPUT -p tcp --dport 1\n-D INPUT -m tcp --dport 1 -p tcp", []),
        ("-A INPUT -s 1.1.1.1\n-A INPUT -f\n-R INPUT 1 -j DROP", ["-j DROP", "-f"]),
        ("-A INPUT -s 1.1.1.1\n-F", []),
        ("-A INPUT -s 1.1.1.1\n-F INPUT", []),
        ("-A INPUT -s 1.1.1.1\n-F OUTPUT", ["-s 1.1.1.1"]),
        ("-A INPUT -f\n-C INPUT -f", ["-f"]),
        ('-A INPUT -m comment --comment \'x"y z"', ['-m comment --comment \'x"y z"']),
    ],
)
def test_commands_on_rules(lines: str, expected: list[str]) -> None:
    """-A -I -D -R -F -C in a file leave the rules that iptables-restore would leave."""
    assert specs(one(lines)) == expected


def test_commands_on_chains() -> None:
    """-N -X -E -P -Z in a file make, remove and rename chains, set policies, zero counters."""
    table = one("-N A\n-N B\n-A A -f\n-X B\n-E A C\n-P INPUT DROP\n[1:2] -A C\n-A OUTPUT -j C")
    assert list(table.chains) == ["INPUT", "FORWARD", "OUTPUT", "C"]
    assert specs(table, "C") == ["-f", ""]
    assert table.chains["C"].rules[1].counters == (1, 2)
    assert table.chains["INPUT"].policy == "DROP"
    zeroed = one("[1:2] -A INPUT -f\n[3:4] -A INPUT\n-Z INPUT 2")
    assert [rule.counters for rule in zeroed.chains["INPUT"].rules] == [(1, 2), (0, 0)]
    both = one("[1:2] -A INPUT -f\n[3:4] -A INPUT\n-Z")
    assert [rule.counters for rule in both.chains["INPUT"].rules] == [(0, 0), (0, 0)]
    assert list(one("-N A\n-X").chains) == ["INPUT", "FORWARD", "OUTPUT"]


def test_renaming_and_zeroing_reach_everything() -> None:
    """Jumps follow a renamed chain, and -Z zeroes a policy's counters as well."""
    table = one(":INPUT DROP [1:2]\n-N A\n-A INPUT -s 1.1.1.1 -g A\n-A A -j RETURN\n-E A B\n-Z")
    assert specs(table) == ["-s 1.1.1.1 -g B"]
    assert table.chains["INPUT"].counters == (0, 0)


def test_a_second_section_of_a_table_begins_anew() -> None:
    """As with iptables-restore, only the policies of a table's earlier section are left."""
    text = "*raw\n:OUTPUT DROP [1:2]\n:A -\n-A OUTPUT -f\nCOMMIT\n*raw\n-A OUTPUT\nCOMMIT\n"
    table = Ruleset.parse(text).tables["raw"]
    assert list(table.chains) == ["PREROUTING", "OUTPUT"]
    assert table.chains["OUTPUT"] == Chain("OUTPUT", "DROP", rules=[Rule("")])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-A WEB", "no chain WEB"),
        ("-A PREROUTING", "no chain PREROUTING"),
        ("-A INPUT -s ¶10.0.0.256", "10.0.0.256"),
        ('-A INPUT -m comment --comment ¶"x', "never closed"),
        ("-A INPUT ¶--dport 80", "unknown option"),
        ("--append INPUT -s ¶10.0.0.256", "10.0.0.256"),
        ("-g WEB -A INPUT", "is not a chain"),
        ("-A INPUT -g WEB", "is not a chain"),
        (":WEB ACCEPT [0:0]", "user-defined"),
        ("-N ACCEPT", "verdict"),
        ("-N abcdefghijklmnopqrstuvwxyz012", "too long"),
        ("-N INPUT", "exists already"),
        ("-P INPUT REJECT", "REJECT"),
        ("-P WEB DROP", "no chain WEB"),
        ("-E WEB X", "no chain WEB"),
        ("-E INPUT X", "built-in"),
        ("-X WEB", "no chain WEB"),
        ("-F WEB", "no chain WEB"),
        ("-D INPUT 1", "no such rule"),
        ("-D INPUT -f", "no such rule"),
        ("-R INPUT 1 -f", "no such rule"),
        ("-I INPUT 2 -f", "no such rule"),
        ("-Z INPUT 1", "no such rule"),
        ("-X INPUT", "built-in"),
        ("-N A\n-P A DROP", "user-defined"),
        ("-N A\n-A A\n-X A", "not empty"),
        ("-N A\n-A INPUT -j A\n-X A", "in use"),
        ("-N A\n-A INPUT -j A\n-X", "in use"),
        (":A -\n:A -", "declared twice"),
        ("-N A\n-E A A", "exists already"),
        ("-C INPUT -f", "no such rule"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_line(line: str, message: str) -> None:
    """Each line that iptables-restore would refuse is BadInput at that line, after good ones."""
    with pytest.raises(BadInput) as caught:
        one(f":INPUT ACCEPT [0:0]\n{line.replace('¶', '')}")
    assert message in str(caught.value)
    where = caught.value.where
    assert where is not None
    assert where.line == 3 + line.count("\n")
    if "¶" in line:
        assert where.column == line.index("¶") + 1


@pytest.mark.parametrize("family", [4, 6])
def test_addresses_are_of_the_ruleset_s_family(family: int) -> None:
    """A ruleset takes addresses of its own family only, and gives its rules apart in it."""
    own, other = ("192.0.2.1", "2001:db8::1") if family == 4 else ("2001:db8::1", "192.0.2.1")
    rule = one(f"-A INPUT -s {own}", family).chains["INPUT"].rules[0]
    assert rule.parsed(family) == Spec.parse(f"-s {own}", family=family)
    with pytest.raises(BadInput):
        one(f"-A INPUT -s {other}", family)


@pytest.mark.parametrize("name", ["a" * 28, "ä" * 14, "a.b:c", "INPUT2", "a-b", "日本"])
def test_names_a_chain_may_have(name: str) -> None:
    """28 bytes of anything but blanks."""
    assert check_new_chain(name) == name


@pytest.mark.parametrize(
    "name", ["", "a" * 29, "ä" * 15, "-a", "!a", "a b", "a\tb", "a\nb", "a\0", *VERDICTS]
)
def test_names_a_chain_may_not_have(name: str) -> None:
    """Nothing, too long, an option's or a negation's look, white space, a verdict's name."""
    with pytest.raises(BadInput):
        check_new_chain(name)


def test_policies() -> None:
    """A policy is ACCEPT or DROP, spelled so."""
    assert [check_policy(policy) for policy in ("ACCEPT", "DROP")] == ["ACCEPT", "DROP"]
    for policy in ("accept", "RETURN", "QUEUE", "-", ""):
        with pytest.raises(BadInput):
            check_policy(policy)


_WITHOUT_C = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ctypes", "_ctypes", "iptc", "netfilterqueue", "pyroute2"}:
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import nfctl
import nfctl.ruleset
import nfctl.traversal
from nfctl.ruleset import Ruleset

text = "*filter\\n-A INPUT -s 10.0.0.0/8 -i eth0 -p tcp --dport 80 -j ACCEPT\\nCOMMIT\\n"
print(Ruleset.parse(text).tables["filter"].chains["INPUT"].rules[0].parsed().target.name)
try:
    import nfctl.kernel.table
except ImportError as error:
    print("without", error)
print(sorted(name for name in sys.modules if name.startswith("nfctl.kernel.")))
"""


def test_the_ruleset_needs_no_c_library() -> None:
    """nfctl.ruleset and nfctl.traversal import and work where ctypes and libiptc do not exist."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_C], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["ACCEPT", "without ctypes", "[]"]


@given(st.text(st.sampled_from("*:-ANIXPfilterINPUT [1:2]\n"), max_size=80))
def test_any_text_is_a_ruleset_or_bad_input(text: str) -> None:
    """No text makes any other exception than BadInput, which has its place."""
    error = refusal(lambda: Ruleset.parse(text, source="f"))
    assert error is None or (error.where is not None and error.where.source == "f")


_COMMANDS = st.sampled_from(
    [
        ":INPUT DROP [1:2]", ":A - [0:0]", ":B -", "-A INPUT -f", "-A A -j B", "-A INPUT -g A",
        "-N A", "-N B", "-X", "-X A", "-F", "-F A", "-Z", "-Z INPUT 1", "-P INPUT DROP",
        "-P A DROP", "-E A B", "-E B INPUT", "-E INPUT A", "-D INPUT 1", "-D INPUT -f", "-D A 2",
        "-R INPUT 1", "-I INPUT", "-I INPUT 3 -f", "-I A 1 -s 10.0.0.1", "-C INPUT -f",
        "COMMIT\n*filter",
    ]
)  # fmt: skip


@given(st.lists(_COMMANDS, max_size=8))
def test_any_commands_leave_a_ruleset_that_prints_itself(lines: list[str]) -> None:
    """Whatever commands run in whatever order, the result is BadInput or reads back the same."""
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    if error := refusal(lambda: Ruleset.parse(text)):
        assert error.where is not None
    else:
        ruleset = Ruleset.parse(text)
        assert Ruleset.parse(ruleset.render(counters=True)) == ruleset
