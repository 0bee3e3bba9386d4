"""Whatever stands in a policy file, reading it ends in a policy or in an error with its place."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from nfctl.policy import reading, saved
from nfctl.policy.mistakes import SET_FLAGS, SET_NUMBERS, SET_TEXTS
from nfctl.policy.sets import OPTIONS_OF
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES
from nfctl.ruleset.words import split
from tests.unit.strategies import refusal
from tests.unit.test_policy_rules import OF_BOTH, OF_IPV4, OF_IPV6
from tests.unit.test_policy_saved import check_round_trip

if TYPE_CHECKING:
    from pathlib import Path

    from nfctl.policy.wanted import Wanted

odd = st.text(max_size=12) | st.sampled_from(
    ["", "${a}", "${", "$${", "!", "-", '"', "-s", "--dports", "--match-set", "10.0.0.1", "::1"]
)
variables = st.sampled_from(["${a}", "${b}", "${c}", "${d}", "x${a},", "${a}${c}", "${none}"])
words = st.one_of(
    st.sampled_from(f"{OF_IPV4}|{OF_IPV6}|{OF_BOTH}".split("|")),
    st.sampled_from("-s -d ! -p -j -m --dports --dport --ctstate --match-set src -4 -6 ,".split()),
    variables,
    odd,
)
rules = st.lists(words, max_size=5).map(" ".join)
scalars = st.one_of(odd, st.integers(), st.booleans(), st.none(), st.floats(), variables)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=20),
    st.lists(st.sampled_from(["10.0.0.1", "::1", "80", "1:2", "${d}"]), max_size=40),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd, inner, max_size=3),
    max_leaves=8,
)


def some(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Make mappings of these keys, mostly; now and then what should not be there."""
    right = st.fixed_dictionaries({}, optional=known)
    wrong = st.fixed_dictionaries({}, optional=dict.fromkeys(known, anything))
    return st.integers(0, 9).flatmap(lambda n: wrong if n == 0 else anything if n == 1 else right)


families = st.sampled_from(["ipv4", "ipv6", ["ipv4"], ["ipv6", "ipv4"]])
items = rules | some(rule=rules, family=st.sampled_from(["ipv4", "ipv6"]))
verdicts = st.sampled_from(["accept", "DROP"])
chains = st.lists(items, max_size=4) | some(
    policy=verdicts | some(ipv4=verdicts, ipv6=verdicts),
    family=st.sampled_from(["ipv4", "ipv6"]),
    rules=st.lists(items, max_size=4),
)
names = st.sampled_from([*{c for of in BUILTIN_CHAINS.values() for c in of}, "six", "web"]) | odd
options: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(SET_NUMBERS, st.integers(-1, 70)),
    **dict.fromkeys(SET_FLAGS, st.booleans()),
    **dict.fromkeys(SET_TEXTS, odd),
}
sets = some(
    type=st.sampled_from([*OPTIONS_OF]) | odd,
    family=families,
    entries=st.lists(st.sampled_from(["10.0.0.1", "::1", "${a}", "${b},${c} x"]) | odd),
    **options,
)
documents = some(
    name=st.sampled_from(["x", "a-b"]) | odd,
    families=families,
    variables=st.dictionaries(st.sampled_from("abcd"), values, max_size=4),
    include=st.sampled_from(["other.yaml", "*.yaml", ["x*"], "pipe", "/dev/null", ".", ""]) | odd,
    sets=st.dictionaries(st.sampled_from(["s4", "s6", "ports"]) | odd, sets, max_size=3),
    keep=st.lists(some(chain=odd, comment=odd, interface=odd, rule=odd) | odd, max_size=2),
    tables=st.dictionaries(
        st.sampled_from(TABLES), st.dictionaries(names, chains, max_size=3), max_size=2
    ),
).map(lambda made: {"version": 1} | made if isinstance(made, dict) else made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    os.mkfifo(folder / "pipe")
    return folder


def attempt(folder: Path, data: bytes, other: bytes = b"") -> None:
    """Read a policy; whatever is wrong with it has to be an NfctlError of a place in a file."""
    (folder / "policy.yaml").write_bytes(data)
    (folder / "other.yaml").write_bytes(other)
    found: list[Wanted] = []
    error = refusal(lambda: found.append(reading.read(str(folder / "policy.yaml"))))
    event("refused" if error else "read")
    if error is not None:
        assert error.message
        assert error.where is not None
        assert error.where.source.startswith(str(folder))
        assert error.where.line or "iptables-save" in error.message or "no YAML" in error.message
    for wanted in found:
        check(wanted)


def check(wanted: Wanted) -> None:
    """Make sure that it can be written, read again, and taken apart."""
    check_round_trip(wanted)
    for tables in wanted.tables.values():
        for table in tables.values():
            for chain in table.chains.values():
                for rule in chain.rules:
                    assert "\n" not in rule.spec
                    assert rule.line
                    assert rule.column
                    split(rule.spec)
    found = [one.name for one in wanted.sets]
    assert len(found) == len(set(found))
    assert all(len(name.encode()) <= 31 for name in found)
    for one in wanted.sets:
        assert one.family in {0, 4, 6}
        assert all(entry.strip() == entry != "" for entry in one.entries or [])


quick = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@quick
@given(document=documents, other=documents)
def test_any_structure(folder: Path, document: object, other: object) -> None:
    """Right and wrong structures of a policy, and of what it includes."""
    attempt(folder, json.dumps(document).encode(), json.dumps(other).encode())


@quick
@given(document=anything)
def test_no_structure(folder: Path, document: object) -> None:
    """Anything that YAML can hold."""
    attempt(folder, json.dumps(document).encode())
    attempt(folder, json.dumps({"version": 1, "tables": document}).encode())


@quick
@given(
    rows=st.lists(rules, min_size=1, max_size=4),
    bound=st.dictionaries(st.sampled_from("abc"), values, max_size=3),
)
def test_any_rule(folder: Path, rows: list[str], bound: dict[str, Any]) -> None:
    """Rules of words that mean something, with variables of all kinds."""
    tables = {"filter": {"INPUT": rows, "six": {"family": "ipv6"}}}
    bound = {"d": "10.0.0.9"} | bound
    attempt(folder, json.dumps({"version": 1, "variables": bound, "tables": tables}).encode())


@quick
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(data=b"*x")
@example(data=b"version: 1\n---\n")
@example(data=b"a: &a [*a]")
def test_any_bytes(folder: Path, data: bytes) -> None:
    """Any bytes, as YAML and as iptables-save text."""
    attempt(folder, data)
    for family in (4, 6):
        text = b"*filter\n" + data + b"\nCOMMIT\n"
        error = refusal(lambda: saved.parse(text, "x", family))  # noqa: B023 - called at once
        assert error is None or error.where is not None
