"""Rules of a policy: what variables make of them, and to which families they go."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.errors import BadInput, Where
from nfctl.policy import families, places, reading
from nfctl.policy.families import address_family
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from nfctl.policy.wanted import Wanted, WantedRule

HOSTS = ["192.0.2.1", "2001:db8::1", "198.51.100.0/24"]
VALUES = {
    "hosts": HOSTS,
    "host": "192.0.2.9",
    "four": ["192.0.2.1"],
    "ports": [80, "443", "8000:8010"],
    "many": [*range(1, 21)],
    "states": ["NEW", "ESTABLISHED"],
    "none": [],
    "one": ["x"],
    "text": 'two "words" \\ here',
    "number": 0x10,
    "yes": True,
    "nested": ["${hosts}", "${host}"],
    "alias": "${hosts}",
    "address": "${host}/32",
    "protocols": ["tcp", "udp"],
    "odd": ["a,b", "c"],
    "macro": "-p tcp",
}


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> Wanted:
    Path("policy.yaml").write_text(text)
    return reading.read("policy.yaml")


def policy(*rules: object, **keys: Any) -> Wanted:
    """Read a policy of these rules in INPUT. JSON is YAML, too."""
    tables = {"filter": {"INPUT": list(rules), "six": {"family": "ipv6"}}}
    return read(json.dumps({"version": 1, "variables": VALUES, "tables": tables} | keys))


def rules(wanted: Wanted, family: int) -> list[WantedRule]:
    return wanted.tables[family]["filter"].chains["INPUT"].rules


def both(*given: object, **keys: Any) -> tuple[list[str], list[str]]:
    wanted = policy(*given, **keys)
    four, six = ([rule.spec for rule in rules(wanted, family)] for family in (4, 6))
    return four, six


def refused(rule: object, **keys: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        policy(rule, **keys)
    return caught.value


# --- variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "four", "six"),
    [
        ("-i lo -j ACCEPT", ["-i lo -j ACCEPT"], ["-i lo -j ACCEPT"]),
        ("-s ${host}", ["-s 192.0.2.9"], []),
        ("-s ${address}", ["-s 192.0.2.9/32"], []),
        ("-s ${hosts}", ["-s 192.0.2.1", "-s 198.51.100.0/24"], ["-s 2001:db8::1"]),
        ("--source=${four}", ["--source=192.0.2.1"], []),
        ("-s${four}", ["-s192.0.2.1"], []),
        ("-s ${alias} -d ${host}", [f"-s {a} -d 192.0.2.9" for a in HOSTS[::2]], []),
        (
            "-d ${nested}",
            ["-d 192.0.2.1", "-d 198.51.100.0/24", "-d 192.0.2.9"],
            ["-d 2001:db8::1"],
        ),
        (
            "-s ${hosts} -d ${hosts} -m mark",
            [f"-s {a} -d {b} -m mark" for a in HOSTS[::2] for b in HOSTS[::2]],
            ["-s 2001:db8::1 -d 2001:db8::1 -m mark"],
        ),
        ("-p ${protocols}", ["-p tcp", "-p udp"], ["-p tcp", "-p udp"]),
        ("--dport ${ports}", *[["--dport 80", "--dport 443", "--dport 8000:8010"]] * 2),
        ("--dports ${ports}", *[["--dports 80,443,8000:8010"]] * 2),
        ("--dports=22,${ports},${number}", *[["--dports=22,80,443,8000:8010,16"]] * 2),
        ("! --sports ${ports},22", *[["! --sports 80,443,8000:8010,22"]] * 2),
        (
            "--ports ${many}",
            *[["--ports " + ",".join(map(str, range(1, 16))), "--ports 16,17,18,19,20"]] * 2,
        ),
        (
            "--dports ${many},${ports} -j X",
            *[
                [
                    "--dports " + ",".join(map(str, range(1, 16))) + " -j X",
                    "--dports 16,17,18,19,20,80,443,8000:8010 -j X",
                ]
            ]
            * 2,
        ),
        ("--ctstate ${states}", *[["--ctstate NEW,ESTABLISHED"]] * 2),
        ("! --ctstate ${states},INVALID", *[["! --ctstate NEW,ESTABLISHED,INVALID"]] * 2),
        ("--ctstate ${states}X", *[["--ctstate NEWX", "--ctstate ESTABLISHEDX"]] * 2),
        ("-i eth${number}.${ports}", *[[f"-i eth16.{p}" for p in ("80", "443", "8000:8010")]] * 2),
        ("-j A -s ${none}", [], []),
        ("--dports 22,${none}", [], []),
        ("-i ${one} -o ${none}", [], []),
        ("--comment ${text}", *[['--comment "two \\"words\\" \\\\ here"']] * 2),
        ('--comment "a ${text}"', *[['--comment "a two \\"words\\" \\\\ here"']] * 2),
        ("--comment $${host}", *[["--comment ${host}"]] * 2),
        ("--comment $$$${host}", *[["--comment $$${host}"]] * 2),
        ("--comment $host", *[["--comment $host"]] * 2),
        ("--comment ${yes}", *[["--comment true"]] * 2),
        ("--string ${odd} -j A", *[["--string a,b -j A", "--string c -j A"]] * 2),
        ("-A${number}", None, None),
        ("! -s ${four} -j DROP", ["! -s 192.0.2.1 -j DROP"], []),
        ("-m a\n -j \nB\n", *[["-m a  -j  B"]] * 2),
        (" \t ", [""], [""]),
    ],
)
def test_what_a_rule_comes_to(rule: str, four: list[str] | None, six: list[str] | None) -> None:
    """Values stand where their names stood; lists are joined, split or multiplied."""
    if four is None:
        assert refused(rule).message == "the table and chain are the mapping's"
    else:
        assert both(rule) == (four, six)


def test_ports_of_ranges_count_two() -> None:
    """Multiport takes 15 ports a rule, of which a range is two."""
    ranges = [f"{n}:{n + 1}" for n in range(10, 100, 10)]
    four, _ = both("--dports ${r}", variables={"r": ranges})
    assert four == ["--dports " + ",".join(ranges[:7]), "--dports " + ",".join(ranges[7:])]


@pytest.mark.parametrize(
    ("rule", "at", "message", "hint"),
    [
        ("-s ${hots}", "${hots}", 'there is no variable "hots"', '"hosts"'),
        ('-m x --c "in ${host} ${nil}"', "${nil}", 'there is no variable "nil"', ""),
        ("-s ${host -j A", "${host", "${ has no }", "$${"),
        ("-s ${ho st}", "${ho st}", "${ has no }", ""),
        ("-s ${}", "${}", '"" is no name', ""),
        ("--x=$${a}${1}", "${1}", '"1" is no name', ""),
        ("-j A ! -s ${hosts}", "${hosts}", "a list behind !", "--match-set"),
        ("! --dports ${many}", "${many}", "multiport takes 15 ports", "all others"),
        ("--a ${many} --b ${many} --c ${many} --d ${many}", "--a", "160000 rules", "10000"),
        ("--a ${many}${many}${many}${many}", "${many}${many}${many}", "160000 rules", "10000"),
        ("-j A -m set --match-set ${ports} src", "${ports}", '"80", of the list "ports"', ""),
        ("-j A ${macro}", "${macro}", "stands for one word", "never taken apart"),
        ('-j A "-p', '"-p', "a double quote is opened", ""),
        ("-s 10.0.0.1 -d ::1", "::1", '"::1" is of IPv6', '"10.0.0.1" of IPv4'),
        ("-s 10.0.0.1,::1", "10.0.0.1,::1", "both families", "variable"),
        ("-s ${host} -d ::1", "::1", '"::1" is of IPv6', '"192.0.2.9" of IPv4'),
        ("-s ${hosts} -p icmp -m icmp6", "icmp6", '"icmp6" is of IPv6', '"icmp" of IPv4'),
        ("-4 -j A -6", "-6", '"-6" is of IPv6', ""),
        ("-j six -s 10.0.0.1", "10.0.0.1", '"10.0.0.1" is of IPv4', '"six" of IPv6'),
        ("-t nat -j A", "-t", "the table and chain are the mapping's", "-A CHAIN"),
        ("--append INPUT", "--append", "the table and chain are the mapping's", ""),
        ("-j A\r", "\r", "the control character U+000D", ""),
    ],
)
def test_what_a_rule_must_not_be(rule: str, at: str, message: str, hint: str) -> None:
    """A mistake in a rule is told at the word, or at the variable inside of it."""
    error = refused(rule)
    assert message in error.message
    assert hint in error.hint
    assert error.where is not None
    text = json.dumps({"rule": at})[10:-2]
    column = error.where.column - 1
    assert error.where.line == 1
    assert Path("policy.yaml").read_text()[column:].startswith(text)


@pytest.mark.parametrize(
    ("values", "column", "message", "hint"),
    [
        ('{a: "${b}", b: [1, "${a}"]}', 21, 'the variable "a" refers to itself', "a -> b -> a"),
        ('{a: "${a}"}', 6, 'the variable "a" refers to itself', "a -> a"),
        ('{a: "x${c}", c: []}', 7, '"c" is a list', "${c}"),
        ('{abc: 1, c: "- ${abd}"}', 16, 'there is no variable "abd"', '"abc"'),
        ('{a: "${"}', 6, "${ has no }", ""),
        ('{a: "a\\tb\\n\\x1f"}', 5, "the control character U+000A", ""),
        ('{a: "' + "x" * 1024 + '"}', 5, "1024 characters", "1023"),
    ],
)
def test_what_variables_must_not_be(values: str, column: int, message: str, hint: str) -> None:
    """A mistake in a value is told at its place, be the variable used or not."""
    with pytest.raises(BadInput) as caught:
        read(f"version: 1\nvariables:\n  {values}")
    assert caught.value.where == Where("policy.yaml", 3, column + 2)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_variables_that_grow_are_bounded() -> None:
    """Neither rows of references nor lists of lists can take the memory."""
    row = {f"v{index}": f"${{v{index + 1}}}" for index in range(1000)} | {"v1000": 1}
    assert "more than 64 variables" in refused("", variables=row).message
    lists = {"a0": [1, 2, 3, 4, 5, 6, 7, 8, 9]} | {
        f"a{index}": [f"${{a{index - 1}}}"] * 9 for index in range(1, 10)
    }
    assert "too many values" in refused("", variables=lists).message
    texts = {"a0": "xxxxxxxx"} | {f"a{i}": f"${{a{i - 1}}}" * 8 for i in range(1, 10)}
    assert "is too long" in refused("", variables=texts).message


# --- families -------------------------------------------------------------------------------------

OF_IPV4 = """
-s 10.0.0.1|-d 10/8|! -s 10.0.0.0/255.0.0.0|--src=10.0.0.1|-d10.0.0.1|-s a.example,10.0.0.1
-p icmp|-p 1|! -p ICMP|-picmp|--protocol=icmp|-m icmp|-m ttl --ttl-eq 64|-j TTL --ttl-set 3
-m realm --realm 1|-f|! -f|--fragment|-p tcp --icmp-type 8
-j REJECT --reject-with icmp-net-unreachable
-j REJECT --reject-with host-prohib|-j DNAT --to-destination 10.0.0.1:80-90/80
-j SNAT --to-source 10.0.0.1-10.0.0.9:1-2|-m iprange --src-range 10.0.0.1-10.0.0.9
-m conntrack --ctorigdst 10.0.0.1|-j NETMAP --to 10.0.0.0/8|-j TEE --gateway 10.0.0.1
-m recent --mask 255.255.0.0|-j ECN --ecn-tcp-remove|-m ipvs --vaddr 10.0.0.1
-m set --match-set s4 src|-j SET --add-set s4 src|-j four|-g four
""".replace("\n", "|").strip("|")
OF_IPV6 = """
-s ::1|-d 2001:db8::/32|! -s ::/0|-d ::ffff:10.0.0.1|-s fe80::1,fe80::2|--destination=::1
-p ipv6-icmp|-p icmpv6|-p 58|-m icmp6|-m icmpv6|-m hl --hl-eq 64|-j HL --hl-set 3|-m rt
-m frag --fragfirst|-m hbh|-m dst|-m eui64|-m ipv6header|-m mh|-m srh|--icmpv6-type 1
-j REJECT --reject-with icmp6-no-route|-j REJECT --reject-with adm-prohibited
-j DNAT --to-destination [2001:db8::1]:80|-j SNAT --to-source 2001:db8::1-2001:db8::9
-m iprange ! --dst-range ::1-::9|-j DNPT --src-pfx ::/64|-j SNPT|-m conntrack --ctreplsrc ::1
-j TPROXY --on-ip ::1|-m recent --mask ffff::|-m set ! --match-set s6 src|-j SET --del-set s6 src
-j six|-g six
""".replace("\n", "|").strip("|")
OF_BOTH = """
-i lo|-s a.example|-s 10.example.com|-s 0/0|-p tcp|-p ah -m ah|-m comment --comment 10.0.0.1
-m comment --comment "-s 10.0.0.1"|-m string --to 100|-j DNAT --to-destination :80|-j ACCEPT
-j REJECT --reject-with tcp-reset|-j REJECT --reject-with port-unreach|-m comment --comment -6
-m set --match-set unknown src|-j SET --add-set ports src|-j LOG --log-prefix icmp
-m string --string ::1|-j both|-m connlimit --connlimit-mask 32|-m u32 --u32 6&0xFF=1
""".replace("\n", "|").strip("|")
SETS = {
    "s4": {"type": "hash:ip"},
    "s6": {"type": "hash:ip", "family": "ipv6"},
    "ports": {"type": "bitmap:port", "range": "0-10"},
    "twice": {"type": "hash:net", "family": ["ipv4", "ipv6"]},
}
CHAINS = {"four": {"family": "ipv4"}, "six": {"family": "ipv6"}, "both": None}


def spread(rule: object, **keys: Any) -> dict[int, list[str]]:
    """Return by family what a rule comes to beside chains and sets of families."""
    tables = {"filter": {"INPUT": [rule], **CHAINS}}
    wanted = policy(sets=SETS, tables=tables, **keys)
    return {family: [one.spec for one in rules(wanted, family)] for family in wanted.tables}


@pytest.mark.parametrize("rule", OF_IPV4.split("|"))
def test_rules_of_ipv4(rule: str) -> None:
    """A word of IPv4 makes a rule of IPv4 alone."""
    assert spread(rule) == {4: [rule], 6: []}


@pytest.mark.parametrize("rule", OF_IPV6.split("|"))
def test_rules_of_ipv6(rule: str) -> None:
    """A word of IPv6 makes a rule of IPv6 alone."""
    assert spread(rule) == {4: [], 6: [rule]}


@pytest.mark.parametrize("rule", OF_BOTH.split("|"))
def test_rules_of_both(rule: str) -> None:
    """What fits both families goes to both; values of options that tell nothing do not tell."""
    assert spread(rule) == {4: [rule], 6: [rule]}


@pytest.mark.parametrize("mark", ["-4", "--ipv4", '"-4"', "-6", "--ipv6"])
def test_marks_select_the_family_and_go(mark: str) -> None:
    """-4 and its like are no part of a rule, as in iptables-restore."""
    family = 6 if "6" in mark else 4
    other = 10 - family
    assert spread(f"-p tcp {mark} -j ACCEPT") == {family: ["-p tcp -j ACCEPT"], other: []}
    assert spread(f"{mark} -i ${{one}}") == {family: ["-i x"], other: []}


def test_a_target_that_is_a_chain_is_of_no_family() -> None:
    """A chain of the policy may be called as a target of one family is."""
    tables = {"filter": {"INPUT": ["-j TTL"], "TTL": None}}
    four, six = both(tables=tables)
    assert four == six == ["-j TTL"]


def test_sets_of_two_families() -> None:
    """A set of both families is two, and each family's rules name their own."""
    rule = "-m set ! --match-set twice src -j SET --add-set twice dst -m comment --comment twice"
    four, six = spread(rule).values()
    assert four == [rule]
    assert six == [rule.replace("-set twice", "-set twice-6")]
    assert spread("-m set --match-set twice-6 src") == {
        4: [],
        6: ["-m set --match-set twice-6 src"],
    }
    wanted = policy(sets=SETS)
    assert [(one.name, one.family) for one in wanted.sets] == [
        ("s4", 4),
        ("s6", 6),
        ("ports", 0),
        ("twice", 4),
        ("twice-6", 6),
    ]
    assert [one.name for one in policy(sets=SETS, families="ipv4").sets] == [
        "s4",
        "s6",
        "ports",
        "twice",
    ]


def test_a_family_that_is_asked_for() -> None:
    """`family` of a rule or a chain is obeyed; a word of the other family contradicts it."""
    assert both({"rule": "-j A", "family": "ipv6"}) == ([], ["-j A"])
    assert both({"rule": "-s ${hosts}", "family": "ipv6"}) == ([], ["-s 2001:db8::1"])
    error = refused({"rule": "-s 10.0.0.1", "family": "ipv6"})
    assert error.message == '"10.0.0.1" is of IPv4'
    tables = {"filter": {"x": {"family": "ipv4", "rules": ["-s ::1"]}}}
    assert refused("", tables=tables).message == '"::1" is of IPv6'


def test_a_policy_of_one_family() -> None:
    """What is of the other family is left out of a policy that has not got it."""
    keys: dict[str, Any] = {"families": ["ipv6"]}
    given = ["-s ${hosts}", "-p icmp", {"rule": "-j A", "family": "ipv4"}, "-j B"]
    wanted = policy(*given, **keys)
    assert [*wanted.tables] == [6]
    assert [rule.spec for rule in rules(wanted, 6)] == ["-s 2001:db8::1", "-j B"]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("10.0.0.1", 4),
        ("10.0.0.1/8", 4),
        ("10.0.0.1:80", 4),
        ("10.0.0.1-10.0.0.2", 4),
        ("10.0.0.1.example", None),
        ("10.0.0.1x", None),
        ("::", 6),
        ("[::1]:80", 6),
        ("[::1]", 6),
        (":80", None),
        ("host:80", None),
        ("", None),
        ("300", None),
    ],
)
def test_addresses_are_known_by_their_look(text: str, family: int | None) -> None:
    """Nothing is looked up: what looks like no address is none."""
    assert address_family(text) == family


def test_every_option_that_tells_is_tried() -> None:
    """The lists above have every option and word that tells a family."""
    tried = " ".join([*OF_IPV4.split("|"), *OF_IPV6.split("|"), *OF_BOTH.split("|")])
    words = set(re.split(r"[ =]", tried))
    skipped = {"--dst", "--source", "--tunnel-src", "--tunnel-dst", "--map-set"}
    options = families._ADDRESSES | families.SETS | families._FIXED.keys()
    long_forms = {"--src", "--destination", "--ctorigsrc", "--ctrepldst", "--fragments"}
    assert options - words - skipped <= long_forms


# --- lists as sets --------------------------------------------------------------------------------


def test_a_list_becomes_a_set() -> None:
    """Behind --match-set a list is an ipset of its addresses, one of each family, made once."""
    rule = "-m set --match-set ${hosts} src -j A"
    wanted = policy(rule, "-m set ! --match-set ${hosts} src", name="web")
    assert [rule.spec for rule in rules(wanted, 4)] == [
        "-m set --match-set nfctl-web-hosts-4 src -j A",
        "-m set ! --match-set nfctl-web-hosts-4 src",
    ]
    assert rules(wanted, 6)[0].spec.split()[3] == "nfctl-web-hosts-6"
    found = [(one.name, one.type, one.family, one.entries) for one in wanted.sets]
    assert found == [
        ("nfctl-web-hosts-4", "hash:net", 4, ["192.0.2.1", "198.51.100.0/24"]),
        ("nfctl-web-hosts-6", "hash:net", 6, ["2001:db8::1"]),
    ]


def test_a_list_of_one_family_as_a_set() -> None:
    """Where a family has no address of the list, it has neither rule nor set."""
    wanted = policy("-m set --match-set ${four} src")
    assert len(rules(wanted, 4)) == 1
    assert rules(wanted, 6) == []
    assert [one.name for one in wanted.sets] == ["nfctl-default-four-4"]


def test_sets_that_no_rule_names_are_not_made() -> None:
    """A rule of IPv6 needs no set of IPv4."""
    wanted = policy({"rule": "-m set --match-set ${hosts} src", "family": "ipv6"})
    assert [one.name for one in wanted.sets] == ["nfctl-default-hosts-6"]


def test_what_is_in_a_set_of_a_list() -> None:
    """Entries come once, and a prefix of length 0, which ipset does not take, in two halves."""
    values = {"all": ["0.0.0.0/0", "10.0.0.1", "10.0.0.1", "::/0"]}
    wanted = policy("-m set --match-set ${all} src", variables=values)
    assert [one.entries for one in wanted.sets] == [
        ["0.0.0.0/1", "128.0.0.0/1", "10.0.0.1"],
        ["::/1", "8000::/1"],
    ]


def test_names_of_such_sets_fit() -> None:
    """A name is at most 31 bytes long, and differs where policy or variable differ."""
    names = set()
    for policy_name in ("a" * 64, "a" * 63 + "b", "a" * 60):
        for variable in ("v" * 64, "v" * 63 + "w", "x"):
            wanted = policy(
                f"-m set --match-set ${{{variable}}} src",
                name=policy_name,
                variables={variable: ["10.0.0.1", "::1"]},
            )
            names |= {one.name for one in wanted.sets}
    assert len(names) == 18
    assert max(map(len, names)) == 31
    error = refused(
        "-m set --match-set ${hosts} src",
        sets={"nfctl-default-hosts-4": {"type": "hash:ip"}},
    )
    assert "there is a set" in error.message


# --- places ---------------------------------------------------------------------------------------

STYLES = r"""
version: 1
variables: {long: some-long-value, x: y}
tables:
  filter:
    INPUT:
      - -i ${long} -j BAD
      - '-i ${x} -m it''s -j BAD'
      - "-i \x65th0 -j BAD"
      - |
        -i lo
        -j BAD
      - >-
        -i ${long}
          -j    BAD -m x
      - !!str -j BAD
      - {rule: '-4 -i "${long}" -j BAD'}
      - -p tcp
        -j BAD
      - "    -j BAD"
"""


def test_the_place_of_every_word_is_known() -> None:
    """Of an expanded rule, the word that libxtables refuses is found in the file again."""
    wanted = read(STYLES)
    lines = STYLES.split("\n")
    found = []
    for rule in rules(wanted, 4):
        words = split(rule.spec, column=rule.column)
        [bad] = [word for word in words if word.text == "BAD"]
        where = Where(rule.source, rule.line, bad.column + 1)
        error = places.exact(BadInput("Bad argument", where=where), rule)
        assert error.where is not None
        assert error.where.source == "policy.yaml"
        assert lines[error.where.line - 1][error.where.column - 1 :].startswith("AD")
        assert error.excerpt.split("\n")[0] == f"  {lines[error.where.line - 1]}"
        found.append(error.where.line)
        first = lines[rule.line - 1][rule.column - 1 :]
        assert first.startswith(("-i", "-j", "-4", "-p"))
    assert found == [7, 8, 9, 12, 15, 16, 17, 19, 20]


def test_errors_about_no_word_keep_their_place() -> None:
    """What is about another place, or a rule of no YAML file, is left as it is."""
    [rule] = rules(policy("-j A"), 4)
    for where in (None, Where("other", 1, 1), Where("policy.yaml", 99, 1)):
        assert places.exact(BadInput("x", where=where), rule).where == where
    where = rule.where
    assert places.exact(BadInput("x", where=where), rule._replace(origin=None)).where == where
    assert places.exact(BadInput("x", where=where), rule._replace(spec='"')).where == where
    assert places.exact(BadInput("x", where=where), rule._replace(spec="a b c")).where == where
