"""YAML policies: their shape, what they include, and what is said about mistakes."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

import nfctl.policy
from nfctl.errors import BadInput, Where
from nfctl.policy import model, reading
from nfctl.policy.mistakes import SET_FLAGS, SET_NUMBERS, SET_TEXTS, TOP
from nfctl.policy.wanted import Keep, Wanted, WantedChain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write files of the current directory: names (without .yaml) and contents."""
    monkeypatch.chdir(tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))

    return write


def refused(file: str = "policy.yaml") -> BadInput:
    with pytest.raises(BadInput) as caught:
        reading.read(file)
    return caught.value


def specs(wanted: Wanted, chain: str = "INPUT", family: int = 4) -> list[str]:
    return [rule.spec for rule in wanted.tables[family]["filter"].chains[chain].rules]


# --- what is there --------------------------------------------------------------------------------


def test_the_example_of_the_reference_is_a_policy(folder: Callable[..., None]) -> None:
    """What `python -m pydoc nfctl.policy` shows is read, and comes to what it says."""
    text = inspect.getdoc(nfctl.policy) or ""
    example = text.partition("everything::\n")[2].partition("\nKeys of a file")[0]
    folder(policy=example)
    wanted = reading.read("policy.yaml")
    assert wanted.name == "gateway"
    assert "-s 192.0.2.0/24 -p tcp --dport 22" in specs(wanted)[4]
    assert "-s 2001:db8:1::/64 -p tcp --dport 22" in specs(wanted, family=6)[4]
    assert specs(wanted)[5] == "-p tcp -m multiport --dports 80,443,8000:8010 -j web"
    assert "nat" not in wanted.tables[6]
    assert [(one.name, one.entries) for one in wanted.sets] == [
        ("blocked", ["198.51.100.0/24", '203.0.113.7 timeout 0 comment "the printer"']),
        ("blocked-6", ["2001:db8:bad::/48"]),
    ]
    assert wanted.keep == [Keep(chain="MY-VPN-*"), Keep(comment="by hand*")]


def test_every_key_is_in_the_reference_and_the_schema() -> None:
    """Nothing can be written in a policy that neither pydoc nor the schema tells about."""
    text = nfctl.policy.__doc__ or ""
    documented = set(re.findall(r"``(\w+)``", text))
    chain = ("policy", "rules", "family", "rule")
    keys = {*TOP, *SET_NUMBERS, *SET_TEXTS, *SET_FLAGS, *chain, "entries"}
    assert keys - documented == set()
    schema = reading.schema()
    assert set(schema["properties"]) == set(TOP)
    assert schema["required"] == ["version"]
    fields = schema["$defs"]["SetItem"]["properties"]
    assert set(fields) == {*SET_NUMBERS, *SET_TEXTS, *SET_FLAGS, "type", "family", "entries"}
    assert set(model.RuleItem.model_fields) == {"rule", "family"}
    for item in (schema, *schema["$defs"].values()):
        assert item.get("description")
        assert all("description" in field for field in item["properties"].values())


def test_chains_of_all_forms(folder: Callable[..., None]) -> None:
    """A chain is a mapping, a list, or nothing; policies are of any case or left alone."""
    folder(
        policy="""
        version: 1
        tables:
          filter:
            INPUT: {policy: Drop, rules: [-i lo -j ACCEPT]}
            FORWARD: {rules: }
            OUTPUT: {policy: ACCEPT}
            web: ["-j ACCEPT", ""]
            none:
          raw:
        """
    )
    wanted = reading.read("policy.yaml")
    for family in (4, 6):
        chains = wanted.tables[family]["filter"].chains
        assert [(name, chain.policy, len(chain.rules)) for name, chain in chains.items()] == [
            ("INPUT", "DROP", 1),
            ("FORWARD", None, 0),
            ("OUTPUT", "ACCEPT", 0),
            ("web", None, 2),
            ("none", None, 0),
        ]
        assert not wanted.tables[family]["filter"].whole
        assert wanted.tables[family]["raw"].chains == {}
    assert chains["web"].where == Where("policy.yaml", 8, 5)
    assert chains["web"].rules[0].where == Where("policy.yaml", 8, 12)
    assert wanted.name == "default"
    assert wanted.rules == 6


def test_files_are_summed_up(folder: Callable[..., None], tmp_path: Path) -> None:
    """Every file that was read is there with the SHA-256 of its bytes, in order."""
    folder(policy="version: 1\ninclude: [b.yaml, a.yaml]\n", a="", b="{}")
    digest = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("policy.yaml", "b.yaml", "a.yaml")
    }
    assert reading.read("policy.yaml").files == [*digest.items()]


def test_standard_input(folder: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is "-", and what that includes is of the current directory."""
    folder(a="tables: {filter: {INPUT: [-j ACCEPT]}}")
    text = b"version: 1\ninclude: a.yaml\ntables: {filter: {INPUT: [-j DROP]}}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    wanted = reading.read("-")
    assert specs(wanted) == ["-j ACCEPT", "-j DROP"]
    assert [name for name, _ in wanted.files] == ["<stdin>", "a.yaml"]


def test_a_pipe_is_a_policy(folder: Callable[..., None]) -> None:
    """The file that a user names may be a pipe, as <(make-policy) makes one."""
    folder()
    reader, writer = os.pipe()
    os.write(writer, b"version: 1\ntables: {filter: {INPUT: [-j DROP]}}\n")
    os.close(writer)
    assert specs(reading.read(f"/dev/fd/{reader}")) == ["-j DROP"]
    os.close(reader)


# --- includes -------------------------------------------------------------------------------------


def test_rules_come_in_the_order_of_the_files(folder: Callable[..., None]) -> None:
    """What is included comes first, globs sorted; a file that is named twice counts once."""
    folder(
        policy="""
        version: 1
        include: ["d/*.yaml", d/a.yaml, "none-*.yaml"]
        tables: {filter: {INPUT: [--own]}}
        """,
        d__b="tables: {filter: {INPUT: {policy: drop, rules: [--b]}}}",
        d__a="include: c.yaml\ntables: {filter: {INPUT: [--a]}}",
        d__c="version: 1\ntables: {filter: {INPUT: {policy: DROP, rules: [--c]}}}",
    )
    wanted = reading.read("policy.yaml")
    assert specs(wanted) == ["--c", "--a", "--b", "--own"]
    assert wanted.tables[4]["filter"].chains["INPUT"].policy == "DROP"
    assert [name for name, _ in wanted.files] == [
        "policy.yaml",
        "d/a.yaml",
        "d/c.yaml",
        "d/b.yaml",
    ]


def test_files_that_include_themselves(folder: Callable[..., None], tmp_path: Path) -> None:
    """A circle is refused by the way round, be it through a link."""
    folder(policy="version: 1\ninclude: a.yaml", a="include: b.yaml", b="include: link.yaml")
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    error = refused()
    assert error.where == Where("b.yaml", 1, 10)
    assert error.message == '"link.yaml" includes itself'
    assert error.hint == "a.yaml -> b.yaml -> a.yaml"
    folder(policy="version: 1\ninclude: policy.yaml")
    assert refused().hint == "policy.yaml -> policy.yaml"


def test_a_long_row_of_includes(folder: Callable[..., None]) -> None:
    """How deep files include each other is bounded."""
    files = {f"f{index}": f"include: f{index + 1}.yaml" for index in range(30)}
    folder(policy="version: 1\ninclude: f0.yaml", **files)
    assert refused().message == "more than 16 files include each other in a row"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.yaml", 'cannot read "none.yaml": No such file or directory'),
        ("pipe", '"pipe" is no regular file'),
        (".", '"." is no regular file'),
        ("/dev/zero", '"/dev/zero" is no regular file'),
        ('""', "the path of a file is expected here"),
        ("saved", '"saved" is iptables-save text'),
    ],
)
def test_no_file_to_include(
    folder: Callable[..., None], tmp_path: Path, path: str, message: str
) -> None:
    """What cannot be included is refused where it is named; a FIFO does not stop the reader."""
    folder(policy=f"version: 1\ninclude: {path}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "saved").write_text("# made by iptables-save\n\n*filter\nCOMMIT\n")
    error = refused()
    assert (error.message, error.where) == (message, Where("policy.yaml", 2, 10))


def test_variables_of_several_files(folder: Callable[..., None]) -> None:
    """The including file's value wins; files that do not include each other must agree."""
    folder(
        policy="""
        version: 1
        include: [a.yaml, b.yaml]
        variables: {x: top}
        tables: {filter: {INPUT: ["-i ${x} -o ${y}"]}}
        """,
        a="variables: {x: a, y: same}\ntables: {filter: {INPUT: ['-i ${x}']}}",
        b="variables: {x: b, y: same}",
    )
    assert specs(reading.read("policy.yaml")) == ["-i top", "-i top -o same"]
    folder(b="variables: {y: other}")
    error = refused()
    assert error.where == Where("b.yaml", 1, 16)
    assert "a.yaml:1:22" in error.hint


@pytest.mark.parametrize(
    ("own", "message", "place"),
    [
        ("tables: {filter: {INPUT: {policy: accept}}}", "two policies", (2, 35)),
        ("tables: {filter: {web: {family: ipv6}}}", "of another family already", (2, 33)),
        ("sets: {s: {type: hash:ip}}", 'there is a set "s" already', (2, 8)),
    ],
)
def test_files_that_disagree(
    folder: Callable[..., None], own: str, message: str, place: tuple[int, int]
) -> None:
    """Two values where there can be one are refused, and both places are told."""
    folder(
        policy=f"{{include: a.yaml, version: 1,\n{own}}}",
        a="""
        tables: {filter: {INPUT: {policy: drop}, web: {family: ipv4}}}
        sets: {s: {type: hash:net}}
        """,
    )
    error = refused()
    assert message in error.message
    assert error.where == Where("policy.yaml", *place)
    assert re.search(r"at a\.yaml:[23]:\d+$", error.hint)


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    ("", 1, 1, "a policy is a mapping, not nothing", 'it begins with "version: 1"'),
    ("[1]", 1, 1, "a policy is a mapping, not a list", "version"),
    ("tables: {}", 1, 1, 'the key "version" is missing', "version: 1"),
    ('version: "1"', 1, 10, 'version "1" is not known', "without quotes"),
    ("version: 2", 1, 10, 'version "2" is not known', "version 1"),
    ("version: true", 1, 10, 'version "true" is not known', ""),
    ("version:", 1, 9, "1 is expected here, not nothing", ""),
    ("version: 1\ntabels: {}", 2, 1, 'there is no key "tabels" here', '"tables"'),
    ("version: 1\nname: -x", 2, 7, '"-x" is no name of a policy', "letters"),
    ("version: 1\nname: 5", 2, 7, "text is expected here, not 5", 'quote it: "5"'),
    ("version: 1\nfamilies: [ipv4, inet6]", 2, 18, '"inet6" is no family', '"ipv6"'),
    ("version: 1\nfamilies: []", 2, 11, "the list is empty", ""),
    ("version: 1\nfamilies: 4", 2, 11, '"4" is no family', '"ipv4"'),
    ("version: 1\nvariables: [a]", 2, 12, "a mapping is expected here, not a list", ""),
    ("version: 1\nvariables: {1x: 1}", 2, 13, '"1x" is no name of a variable', "letters"),
    ("version: 1\nvariables: {a: {}}", 2, 16, "one value or a list of them is", ""),
    ("version: 1\nvariables: {a: [{}]}", 2, 17, "one value is expected here, not", ""),
    ("version: 1\nvariables: {a: }", 2, 16, "one value or a list of them is", ""),
    ("version: 1\ninclude: {a: b}", 2, 10, "the path of a file, or a list of them,", ""),
    ("version: 1\ninclude: [[]]", 2, 11, "the path of a file is expected here", ""),
    ("version: 1\nkeep: {chain: x}", 2, 7, "a list is expected here, not a mapping", ""),
    ("version: 1\nkeep: [7]", 2, 8, "a glob of chains' names, or a mapping,", "quote"),
    ("version: 1\nkeep: [{chian: x}]", 2, 9, 'there is no key "chian"', '"chain"'),
    ("version: 1\nkeep: [{chain: x, rule: y}]", 2, 8, "one of the keys chain", "several"),
    ("version: 1\nkeep: [{}]", 2, 8, "one of the keys chain", ""),
    ('version: 1\nkeep: [""]', 2, 8, "a glob is expected here", ""),
    ("version: 1\ntables: {fliter: }", 2, 10, 'there is no key "fliter"', '"filter"'),
    ("version: 1\ntables: {filter: []}", 2, 18, "a mapping is expected here", ""),
    ("version: 1\ntables: {nat: {FORWARD: }}", 2, 16, "table nat has no chain FORWARD", "mangle"),
    ("version: 1\ntables: {nat: {-x: }}", 2, 16, "must not begin with", ""),
    ("version: 1\ntables: {nat: {a b: }}", 2, 16, "white space", ""),
    ("version: 1\ntables: {nat: {INPUT: {policy: Drop}}}", 2, 32, "inhibited", ""),
    ("version: 1\ntables: {raw: {OUTPUT: {policy: no}}}", 2, 33, "accept or drop", ""),
    ("version: 1\ntables: {raw: {OUTPUT: {policy: 1}}}", 2, 33, "accept or drop", ""),
    ("version: 1\ntables: {raw: {output: {policy: drop}}}", 2, 33, "no policy", '"OUTPUT"'),
    ("version: 1\ntables: {raw: {web: {policy: drop}}}", 2, 30, "no policy", "built-in"),
    ("version: 1\ntables: {raw: {web: x}}", 2, 21, "a list of rules, or a mapping,", ""),
    ("version: 1\ntables: {raw: {web: {rules: x}}}", 2, 29, "a list of rules is", ""),
    ("version: 1\ntables: {raw: {web: {rule: [x]}}}", 2, 22, 'no key "rule"', '"rules"'),
    ("version: 1\ntables: {raw: {web: [1]}}", 2, 22, "a rule, or a mapping with the key", ""),
    ("version: 1\ntables: {raw: {web: [[]]}}", 2, 22, "a rule, or a mapping with the key", ""),
    ("version: 1\ntables: {raw: {web: [{}]}}", 2, 22, 'the key "rule" is missing', ""),
    (
        'version: 1\ntables: {raw: {web: [-m comment --comment "a: b" -j DROP]}}',
        2,
        22,
        'the key "rule" is missing',
        "a rule with a colon and a blank in it is put in single quotes",
    ),
    (
        'version: 1\ntables:\n  raw:\n    web:\n      - -m comment --comment "a # b" -j DROP',
        5,
        30,
        "a double quote is opened and never closed",
        'in YAML " #" begins a comment: put the rule in single quotes',
    ),
    (
        "version: 1\nvariables: {a: 1}\ntables: {raw: {web: [-s ${a} -j DROP]}}",
        3,
        26,
        "while parsing a flow sequence",
        'is not quoted: "${name}"',
    ),
    ("version: 1\ntables: {raw: {web: [{rule: 1}]}}", 2, 29, "the text of a rule is", "quote"),
    ("version: 1\ntables: {raw: {web: [{rule: x, comment: y}]}}", 2, 32, 'no key "comment"', ""),
    ("version: 1\ntables: {raw: {web: [{rule: x, family: 6}]}}", 2, 40, "is no family", '"ipv6"'),
    (
        "version: 1\ntables: {raw: {web: {family: ipv4, rules: [{rule: x, family: ipv6}]}}}",
        *(2, 62, "chain web is of ipv4 alone", "2:30"),
    ),
]


@pytest.mark.parametrize(("text", "line", "column", "message", "hint"), MISTAKES)
def test_mistakes_are_told_with_their_place(
    folder: Callable[..., None], text: str, line: int, column: int, message: str, hint: str
) -> None:
    """Whatever is no policy is refused at its line and column, with the line and a hint."""
    folder(policy=text)
    error = refused()
    assert message in error.message
    assert hint in error.hint
    assert error.where == Where("policy.yaml", line, column)
    assert error.excerpt.split("\n")[1] == " " * (column + 1) + "^"


def test_the_first_mistake_tells_of_the_others(folder: Callable[..., None]) -> None:
    """Of several mistakes the first is told, and where the others are."""
    folder(policy="version: 1\nkeep: {}\ntables: {nat: 5, x: 6}\nfoo: 7\n")
    error = refused()
    assert error.where == Where("policy.yaml", 2, 7)
    assert error.hint.endswith("3 more mistakes, in lines 3, 4")
    folder(policy="version: 1\ntables:\n  raw:\n    web:\n    - -A\n    - -j ${x}\n    - -I x")
    error = refused()
    assert error.where == Where("policy.yaml", 5, 7)
    assert error.hint.endswith("2 more mistakes, in lines 6, 7")


@pytest.mark.parametrize("key", ["name: x", "families: [ipv4]"])
def test_what_only_the_top_file_says(folder: Callable[..., None], key: str) -> None:
    """An included file is no policy of its own."""
    folder(policy="version: 1\ninclude: a.yaml", a=key)
    error = refused()
    assert error.where == Where("a.yaml", 1, 1)
    assert "includes this one" in error.hint


def test_iptables_save_text_is_no_yaml(folder: Callable[..., None], tmp_path: Path) -> None:
    """A file of iptables-save is known as such, and how to have it read is told."""
    folder(policy="# Generated\r\n\r\n*filter\nCOMMIT\n")
    error = refused()
    assert "iptables-save text" in error.message
    assert "nfctl plan -4 policy.yaml" in error.hint
    (tmp_path / "policy.yaml").write_text("# c\r\n" * 100_000)
    assert "a policy is a mapping" in refused().message  # and that in no time


def test_what_cannot_be_read() -> None:
    """No file, a directory, and calls that make no sense are refused."""
    for arguments, named in (
        (("/nonexistent/x",), {}),
        (("/",), {}),
        (("a\0b",), {}),
        ((None,), {}),
        (("x",), {"v4": "y"}),
        ((None,), {"v4": "-", "v6": "-"}),
    ):
        with pytest.raises(BadInput):
            reading.read(*arguments, **named)


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the bound."""
    monkeypatch.setattr("nfctl.policy.source.MAX_SIZE", 1 << 20)
    with pytest.raises(BadInput, match="too large"):
        reading.read("/dev/zero")


def test_pydantic_is_imported_only_for_yaml() -> None:
    """Other commands do not pay for pydantic."""
    import subprocess

    code = (
        "import sys, nfctl.policy.reading; print('pydantic' in sys.modules, 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_an_empty_chain_is_still_the_policys(folder: Callable[..., None]) -> None:
    """A chain of which no rule fits a family is there all the same, unless it has a family."""
    folder(
        policy="""
        version: 1
        tables:
          filter: {INPUT: [-s 10.0.0.1 -j DROP]}
          nat: {PREROUTING: {family: ipv4, rules: [-j one]}, one: {family: ipv4}}
        """
    )
    wanted = reading.read("policy.yaml")
    assert wanted.tables[6]["filter"].chains["INPUT"] == WantedChain(
        [], None, Where("policy.yaml", 4, 12)
    )
    assert "nat" not in wanted.tables[6]
    assert [*wanted.tables[4]["nat"].chains] == ["PREROUTING", "one"]
