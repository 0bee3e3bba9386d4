"""The ipsets of a policy: types, options, entries, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nfctl.errors import BadInput, Where
from nfctl.kernel.ipset_types import TYPES
from nfctl.policy import reading
from nfctl.policy.sets import OPTIONS_OF, OPTIONS_OF_ALL
from nfctl.policy.wanted import WantedSet


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


VARIABLES = {
    "mixed": ["192.0.2.1", "2001:db8::1", "192.0.2.0/25"],
    "ports": [80, 443],
    "empty": [],
    "host": "192.0.2.9",
}


def sets(**declared: Any) -> list[WantedSet]:
    policy = {"version": 1, "variables": VARIABLES, "sets": declared}
    Path("policy.yaml").write_text(json.dumps(policy))
    return reading.read("policy.yaml").sets


def test_types_and_options_are_ipsets() -> None:
    """Every type takes what the kernel's type takes, and the kernel knows no other type."""
    ours = {name: {*options, *OPTIONS_OF_ALL} for name, options in OPTIONS_OF.items()}
    assert ours == {name: set(known.options) for name, known in TYPES.items()}


def test_a_set_with_everything() -> None:
    """Options become text, flags that are true become "", and what is not said is not there."""
    [made] = sets(
        s={
            "type": "hash:ip",
            "family": "ipv6",
            "timeout": 300,
            "hashsize": 0x400,
            "maxelem": 10,
            "bucketsize": 4,
            "initval": "0xff",
            "netmask": 64,
            "counters": True,
            "comment": True,
            "skbinfo": False,
            "forceadd": True,
            "entries": ['2001:db8::1 timeout 30 comment "a b"', "host.example", "::2"],
        }
    )
    assert made == WantedSet(
        "s",
        "hash:ip",
        6,
        {
            "timeout": "300",
            "hashsize": "1024",
            "maxelem": "10",
            "bucketsize": "4",
            "netmask": "64",
            "initval": "0xff",
            "counters": "",
            "comment": "",
            "forceadd": "",
        },
        ['2001:db8::1 timeout 30 comment "a b"', "host.example", "::2"],
        Where("policy.yaml", 1, made.where.column if made.where else 0),
    )


@pytest.mark.parametrize(
    ("declared", "family", "entries"),
    [
        ({"type": "hash:net"}, 4, None),
        ({"type": "hash:net", "entries": None}, 4, None),
        ({"type": "hash:net", "entries": []}, 4, []),
        ({"type": "hash:mac", "entries": ["01:23:45:67:89:ab"]}, 0, ["01:23:45:67:89:ab"]),
        ({"type": "bitmap:port", "range": "0-99", "entries": [80, "90-91"]}, 0, ["80", "90-91"]),
        ({"type": "bitmap:ip", "range": "10.0.0.0/24", "family": "ipv4"}, 0, None),
        ({"type": "hash:ip", "entries": ["${host}", "10.0.0.1"]}, 4, ["192.0.2.9", "10.0.0.1"]),
        (
            {"type": "hash:ip,port", "entries": ["${host},tcp:${ports}", "10.0.0.1,53"]},
            4,
            ["192.0.2.9,tcp:80", "192.0.2.9,tcp:443", "10.0.0.1,53"],
        ),
        ({"type": "hash:ip", "entries": ["${empty}"]}, 4, []),
        (
            {"type": "hash:net,iface", "entries": ["10/8,eth0", "10/8,ETH0"]},
            4,
            ["10/8,eth0", "10/8,ETH0"],
        ),
        ({"type": "list:set", "size": 4, "entries": ["a", "A"]}, 0, ["a", "A"]),
    ],
)
def test_families_and_entries(
    declared: dict[str, Any], family: int, entries: list[str] | None
) -> None:
    """Types that have a family are of IPv4 unless the file says otherwise; lists are spread out."""
    [made] = sets(s=declared)
    assert (made.family, made.entries) == (family, entries)


def test_a_set_of_each_family() -> None:
    """Each of two sets gets the entries of its family; what tells no family is in both."""
    four, six = sets(
        s={
            "type": "hash:net",
            "family": ["ipv6", "ipv4"],
            "timeout": 5,
            "entries": ["${mixed} timeout 9", "host.example", "::/1 nomatch"],
        }
    )
    assert (four.name, four.family, four.options) == ("s", 4, {"timeout": "5"})
    assert (six.name, six.family, six.options) == ("s-6", 6, {"timeout": "5"})
    assert four.entries == ["192.0.2.1 timeout 9", "192.0.2.0/25 timeout 9", "host.example"]
    assert six.entries == ["2001:db8::1 timeout 9", "host.example", "::/1 nomatch"]
    [alone] = sets(s={"type": "hash:net", "family": ["ipv6"]})
    assert (alone.name, alone.family) == ("s", 6)


def test_sets_of_sets_come_last() -> None:
    """A list of sets can be filled only when its members are there."""
    made = sets(all={"type": "list:set", "entries": ["a"]}, a={"type": "hash:ip"})
    assert [one.name for one in made] == ["a", "all"]


@pytest.mark.parametrize(
    ("declared", "at", "message", "hint"),
    [
        ({"type": "hash:nett"}, '"hash:nett"', 'no type "hash:nett"', '"hash:net"'),
        ({"type": 5}, "5", "text is expected here, not 5", "quote"),
        ({}, "{}", 'the key "type" is missing', ""),
        (None, "null", "a mapping is expected", ""),
        ({"type": "hash:ip", "familiy": "ipv4"}, '"familiy"', "no key", '"family"'),
        ({"type": "hash:ip", "family": "inet6"}, '"inet6"', "no family", '"ipv6"'),
        ({"type": "hash:ip", "family": []}, "[]", "the list is empty", ""),
        ({"type": "hash:ip", "family": 6}, "6}", '"6" is no family', '"ipv6"'),
        ({"type": "list:set", "family": "ipv4"}, '"ipv4"', "has no family", ""),
        (
            {"type": "bitmap:ip", "family": "ipv6", "range": "10/8"},
            *('"ipv6"', "has no family", "IPv4"),
        ),
        ({"type": "bitmap:ip"}, "{", 'the key "range" is missing', ""),
        ({"type": "hash:ip", "range": "1-2"}, '"range"', "has no option range", "netmask"),
        ({"type": "hash:ip", "markmask": 5}, '"markmask"', "has no option markmask", ""),
        ({"type": "hash:ip", "size": 5}, '"size"', "has no option size", ""),
        ({"type": "bitmap:port", "range": "a b"}, '"a b"', "is no range", ""),
        ({"type": "hash:ip", "initval": ""}, '""', "is no initval", ""),
        ({"type": "hash:ip", "timeout": "5"}, '"5"', "an integer is expected", "quotes"),
        ({"type": "hash:ip", "timeout": -1}, "-1", "out of range", "0 at least"),
        ({"type": "hash:ip", "timeout": 2147484}, "2147484", "out of range", "2147483 at most"),
        ({"type": "hash:ip", "maxelem": 1.5}, "1.5", "an integer is expected", ""),
        ({"type": "hash:ip", "comment": 1}, "1}", "true or false is expected", ""),
        ({"type": "hash:ip", "entries": "x"}, '"x"', "a list is expected", ""),
        ({"type": "hash:ip", "entries": [{}]}, "{}", "an entry is expected", ""),
        ({"type": "hash:ip", "entries": [""]}, '""', "an entry is empty", ""),
        ({"type": "hash:ip", "entries": ["a\nb"]}, "\\nb", "control character U+000A", ""),
        ({"type": "hash:ip", "entries": ["a", "a comment x"]}, '"a comment', "already", ":1:"),
        ({"type": "hash:ip", "entries": ["::A", "::a"]}, '"::A"', "of IPv6, and the set of", ""),
        (
            {"type": "hash:ip", "family": "ipv6", "entries": ["::A", "::a"]},
            *('"::a"', "is there already", ""),
        ),
        ({"type": "hash:ip", "entries": ["${mixed}"]}, '"${mixed}"', "of IPv6", "[ipv4, ipv6]"),
        ({"type": "bitmap:ip", "range": "10/8", "entries": ["::1"]}, '"::1"', "of IPv6", ""),
        (
            {"type": "hash:net,net", "family": ["ipv4", "ipv6"], "entries": ["10/8,::/8"]},
            *('"10/8', "both families", ""),
        ),
        ({"type": "hash:ip", "entries": ["a${hots}"]}, "${hots}", 'no variable "hots"', '"host"'),
        ({"type": "hash:ip", "entries": ["${"]}, "${", "has no }", ""),
    ],
)
def test_what_a_set_must_not_be(declared: object, at: str, message: str, hint: str) -> None:
    """A mistake in a set is told at its place."""
    with pytest.raises(BadInput) as caught:
        sets(s=declared)
    error = caught.value
    assert message in error.message
    assert hint in error.hint
    assert error.where is not None
    assert Path("policy.yaml").read_text()[error.where.column - 1 :].startswith(at)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is no name of a set"),
        ("a b", "is no name of a set"),
        ('a"b', "is no name of a set"),
        ("a\u200bb", "is no name of a set"),
        ("a" * 32, "too long"),
        ("ä" * 16, "too long"),
    ],
)
def test_names_of_sets(name: str, message: str) -> None:
    """A name has at most 31 bytes and nothing that a rule would have to quote."""
    with pytest.raises(BadInput, match=message):
        sets(**{name: {"type": "hash:ip"}})
    assert [one.name for one in sets(**{"ä" * 15: {"type": "hash:ip"}})] == ["ä" * 15]


def test_the_second_name_of_a_set_of_both_families() -> None:
    """The name of IPv6's set has to fit and to be free, too."""
    twice = {"type": "hash:ip", "family": ["ipv4", "ipv6"]}
    with pytest.raises(BadInput, match="too long"):
        sets(**{"a" * 30: twice})
    with pytest.raises(BadInput, match='there is a set "s-6" already'):
        sets(**{"s": twice, "s-6": {"type": "hash:ip"}})


def test_entries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists in an entry cannot take the memory."""
    monkeypatch.setattr("nfctl.policy.sets._MOST", 20)
    with pytest.raises(BadInput, match="too many entries"):
        sets(s={"type": "hash:ip,port", "entries": ["${mixed},${mixed},${mixed}"]})
    with pytest.raises(BadInput, match="too many entries"):
        sets(s={"type": "bitmap:port", "range": "0-99", "entries": [*range(21)]})
