"""ipsets without a kernel: entries and options as attributes, ``ipset save`` text, errors."""

from __future__ import annotations

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput, Changed, NotPermitted, Unsupported
from nfctl.kernel import ipset, ipset_answers, ipset_save, netlink
from nfctl.kernel import ipset_types as t
from nfctl.kernel.ipset_entry import Entries, split_words


def entries(name: str, family: int = 4) -> Entries:
    kind = t.set_type(name)
    return Entries(kind, t.set_family(kind, family if 0 not in kind.families else 0))


def attributes(name: str, text: str, family: int = 4) -> dict[int, bytes]:
    """Return the attributes of an entry, without flags in their types and without the line."""
    raw = entries(name, family).encode(text, 1)
    (length,) = struct.unpack_from("=H", raw)
    found = netlink.values(raw[4:length])
    assert found.pop(t.LINENO) == struct.pack("=I", 1)
    return found


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("hash:ip", "", "an entry is empty"),
        ("hash:ip", "10.0.0.256", "'10.0.0.256' is no IPv4 address"),
        ("hash:ip", "10.0.0.1/33", "a prefix length 33 is out of range: it is 0 to 32"),
        ("hash:ip", "10.0.0.1/", "a prefix length is a number, and '' is none"),
        ("hash:ip", "::1", "'::1' is no IPv4 address"),
        ("hash:ip", "10.0.0.1,80", "an entry of hash:ip has one part, not 2"),
        ("hash:ip", "10.0.0.1 nomatch", "hash:ip has no option 'nomatch' of an entry"),
        ("hash:ip", "10.0.0.1 timeout", "timeout needs a value"),
        ("hash:ip", "10.0.0.1 timeout 1 timeout 2", "timeout is given twice"),
        (
            "hash:ip",
            "10.0.0.1 timeout 2147484",
            "a timeout 2147484 is out of range: it is 0 to 2147483",
        ),
        ("hash:ip", '10.0.0.1 comment "a', "a quote is not closed in '10.0.0.1 comment \"a'"),
        (
            "hash:ip",
            f'10.0.0.1 comment "{"é" * 128}"',
            "a comment has 255 bytes at most, and this one has 256",
        ),
        (
            "hash:ip",
            '10.0.0.1 comment "a\x07"',
            "a comment has no control characters, and 'a\\x07' has",
        ),
        ("hash:ip", "10.0.0.1 skbmark 7", "skbmark is 0xMARK or 0xMARK/0xMASK, and '7' is not"),
        (
            "hash:ip,port",
            "10.0.0.1",
            "an entry of hash:ip,port has 2 parts with commas between them, not 1",
        ),
        ("hash:ip,port", "10.0.0.1,vrrp:1", "protocol vrrp has no ports"),
        ("hash:ip,port", "10.0.0.1,nosuch:1", "there is no protocol 'nosuch'"),
        ("hash:ip,port", "10.0.0.1,tcp:nosuch", "there is no tcp port 'nosuch'"),
        ("hash:ip,port", "10.0.0.1,65536", "a port 65536 is out of range: it is 0 to 65535"),
        ("hash:ip,port", "10.0.0.1,icmp:8", "'8' is no type of ICMP messages"),
        ("hash:ip,port", "10.0.0.1,icmpv6:128/0", "protocol icmpv6 is not of IPv4"),
        (
            "hash:net,iface",
            "10.0.0.0/8,a234567890123456",
            "'a234567890123456' is no name of an interface",
        ),
        ("hash:mac", "02:00:00:00:00", "'02:00:00:00:00' is no MAC address"),
        ("hash:ip,mark", "10.0.0.1,x", "a mark is a number, and 'x' is none"),
        ("bitmap:port", "sctp:80", "protocol sctp cannot be here: tcp and udp say whose names"),
        ("list:set", "a b", "list:set has no option 'b' of an entry"),
        ("list:set", "a before b after c", "an entry is before another one or after it, not both"),
        ("list:set", "a" * 32, f"'{'a' * 32}' is no name of a set: it has 1 to 31 bytes"),
    ],
)
def test_wrong_entries_say_why(name: str, text: str, wrong: str) -> None:
    """What cannot be an entry of the type is BadInput, in words that name the wrong part."""
    with pytest.raises(BadInput) as caught:
        entries(name).encode(text, 1)
    assert caught.value.message.startswith(wrong)


def test_ipv6_addresses_are_single() -> None:
    """hash:ip takes no networks and no ranges in IPv6, where the kernel does not expand them."""
    with pytest.raises(BadInput, match="single addresses in IPv6"):
        entries("hash:ip", 6).encode("2001:db8::/64", 1)
    with pytest.raises(BadInput, match="IPv6 does not have in ipsets"):
        entries("hash:net", 6).encode("2001:db8::1-2001:db8::2", 1)


def test_names_of_hosts_are_not_looked_up() -> None:
    """A host's name is refused, and the hint says why: ipset(8) would ask the DNS."""
    with pytest.raises(BadInput) as caught:
        entries("hash:ip").encode("localhost", 1)
    assert caught.value.hint == "names of hosts are not looked up"


@pytest.mark.parametrize(
    ("name", "family", "text", "found"),
    [
        ("hash:mac", 0, "2:0:0:0:0:aB", {t.ETHER: b"\x02\0\0\0\0\xab"}),
        (
            "hash:ip,mac",
            6,
            "::1,02:00:00:00:00:01",
            {
                t.IP: struct.pack("=HH", 20, 2 | t.NET_ORDER) + bytes(15) + b"\1",
                t.ETHER: b"\2\0\0\0\0\1",
            },
        ),
        (
            "hash:ip,mark",
            4,
            "10.0.0.1,0x63",
            {t.IP: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\1", t.MARK: b"\0\0\0\x63"},
        ),
        (
            "hash:net,net",
            4,
            "10.0.0.0/8,10.0.0.1-10.0.0.2 nomatch",
            {
                t.IP: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\0",
                t.CIDR: b"\x08",
                t.IP2: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\1",
                t.IP2_TO: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\2",
                t.CADT_FLAGS: struct.pack(">I", t.NOMATCH),
            },
        ),
        (
            "hash:net,port,net",
            4,
            "10.0.0.0/8,udp:53-54,10.0.0.1/32",
            {
                t.IP: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\0",
                t.CIDR: b"\x08",
                t.PORT: b"\0\x35",
                t.PORT_TO: b"\0\x36",
                t.PROTO: b"\x11",
                t.IP2: struct.pack("=HH", 8, 1 | t.NET_ORDER) + b"\n\0\0\1",
                t.CIDR2: b"\x20",
            },
        ),
    ],
)
def test_types_that_few_kernels_have(
    name: str, family: int, text: str, found: dict[int, bytes]
) -> None:
    """Entries of types that the kernel of the tests may lack have the attributes of ip_set.h."""
    assert attributes(name, text, family) == found


@pytest.mark.parametrize(
    ("name", "family", "raw", "text"),
    [
        ("hash:mac", 0, netlink.attribute(t.ETHER, b"\2\0\0\0\0\xab"), "02:00:00:00:00:AB"),
        (
            "hash:ip,mark",
            4,
            t.address(t.IP, b"\n\0\0\1") + t.u32(t.MARK, 0x63),
            "10.0.0.1,0x00000063",
        ),
        (
            "hash:net,net",
            6,
            t.address(t.IP, bytes(16))
            + netlink.attribute(t.CIDR, b"\0")
            + t.address(t.IP2, bytes(15) + b"\1")
            + netlink.attribute(t.CIDR2, b"\x80")
            + t.u32(t.CADT_FLAGS, t.NOMATCH),
            "::/0,::1 nomatch",
        ),
    ],
)
def test_types_that_few_kernels_have_as_text(name: str, family: int, raw: bytes, text: str) -> None:
    """What a kernel lists of such types is written as ipset(8) writes it."""
    assert entries(name, family).text(raw) == text


@given(st.binary(max_size=80), st.sampled_from(sorted(t.TYPES)))
def test_any_bytes_are_text(raw: bytes, name: str) -> None:
    """Whatever an entry's attributes are, they have a text of one line."""
    assert "\n" not in entries(name).text(raw)


def test_identity_leaves_out_what_changes_by_itself() -> None:
    """Counters and time that is left are no part of an entry; its comment is, and no end is."""
    of = entries("hash:ip").identity
    address = t.address(t.IP, b"\n\0\0\1")
    comment = netlink.attribute(t.COMMENT, b"web\0")
    passing = t.u32(t.TIMEOUT, 7) + netlink.attribute(t.PACKETS | t.NET_ORDER, bytes(8))
    assert of(address + passing + comment) == address + comment
    assert of(address + t.u32(t.TIMEOUT, 0)) != of(address + t.u32(t.TIMEOUT, 9))
    assert of(address + t.u32(t.TIMEOUT, 0), permanence=False) == address


@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=6000))
def test_packed_entries_are_all_there(numbers: list[int]) -> None:
    """Many entries are cut into parts that fit an attribute, each with its number from 1."""
    texts = [".".join(map(str, number.to_bytes(4, "big"))) for number in numbers]
    packed = ipset.pack(ipset.Header("s", "hash:ip", 4, 0), texts)
    found = []
    for part in packed.parts:
        (length,) = struct.unpack_from("=H", part)
        assert length <= len(part) <= 0xFFFF
        for _, start, end in netlink.attributes(part, 4, length):
            values = netlink.values(part[start:end])
            found.append((struct.unpack("=I", values[t.LINENO])[0], values[t.IP][4:]))
    assert found == [(line, n.to_bytes(4, "big")) for line, n in enumerate(numbers, 1)]


def test_a_wrong_entry_is_named() -> None:
    """EntryError names the set and the entry and holds its place; it goes through pickle."""
    header = ipset.Header("web", "hash:ip,port", 4, 0)
    with pytest.raises(ipset_answers.EntryError) as caught:
        ipset.pack(header, ["10.0.0.1,80", "10.0.0.1,icmp:9999/1"])
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert error.index == 1
    assert error.message.startswith("set web: entry '10.0.0.1,icmp:9999/1': a type 9999 is out")
    assert error.of("db").message.startswith("set db: entry '10.0.0.1,icmp:9999/1': a type")
    refused = ipset_answers.Refused.with_answer(4101, "no")
    assert pickle.loads(pickle.dumps(refused)).number == 4101  # noqa: S301


def test_quotes() -> None:
    """Blanks part words but in quotes, which stand for a word of their own."""
    assert split_words('a  b "c d" ""') == ["a", "b", "c d", ""]
    assert split_words(" ") == []


@pytest.mark.parametrize(
    ("name", "family", "options", "wrong"),
    [
        ("hash:ip", 4, {"netmask": "33"}, "option netmask 33 is out of range: it is 1 to 32"),
        ("hash:ip", 4, {"netmask": "24", "bitmask": "255.0.0.0"}, "a netmask or a bitmask"),
        ("hash:net", 4, {"netmask": "24"}, "hash:net has no option 'netmask'"),
        ("hash:net", 4, {"counters": "yes"}, "option counters has no value"),
        ("hash:net", 4, {"timeout": ""}, "option timeout is a number, and '' is none"),
        ("hash:net", 4, {"timeout": "-1"}, "option timeout is a number, and '-1' is none"),
        ("hash:nets", 4, {}, "there is no ipset type 'hash:nets'"),
        ("hash:net", 5, {}, "hash:net has no family 5"),
        ("bitmap:ip", 6, {"range": "10.0.0.0/24"}, "bitmap:ip has no family 6"),
        ("list:set", 4, {}, "list:set has no family"),
        ("bitmap:ip", 4, {}, "bitmap:ip needs the option range"),
        ("bitmap:ip", 4, {"range": "10.0.0.0"}, "'10.0.0.0' is no range of addresses"),
        ("bitmap:port", 0, {"range": "80"}, "'80' is no range of ports"),
    ],
)
def test_wrong_sets_say_why(name: str, family: int, options: dict[str, str], wrong: str) -> None:
    """What cannot be a set is BadInput before a kernel is asked."""
    with pytest.raises(BadInput) as caught:
        ipset.check("s", name, family, options, [])
    assert wrong in caught.value.message


@pytest.mark.parametrize("name", ["", "a b", "a" * 32, "é" * 16, "a\n", 'a"b'])
def test_wrong_names(name: str) -> None:
    """A set's name has 1 to 31 bytes and nothing that parts words."""
    with pytest.raises(BadInput, match="is no name of a set"):
        ipset.check(name, "hash:ip", 4, {}, [])


def test_old_names_of_types() -> None:
    """The names of types of ipset 4 are those of today's."""
    assert t.set_type("ipporthash").name == "hash:ip,port"
    ipset.check("s", "iphash", 0, {"timeout": "300", "comment": ""}, ['10.0.0.1 comment "a b"'])


def test_types_have_the_names_of_modules() -> None:
    """The hint for a type that is missing names the kernel's module."""
    assert t.set_type("hash:ip,port,net").module == "ip_set_hash_ipportnet"
    error = ipset_answers.refused(ipset_answers.FIND_TYPE, "no", "hash:ip,mac")
    assert isinstance(error, Unsupported)
    assert "CONFIG_IP_SET_HASH_IPMAC" in error.hint


def test_answers_have_words() -> None:
    """The kernel's numbers become errors: not permitted, busy, or why it refuses."""
    assert isinstance(ipset_answers.refused(1, "no", ""), NotPermitted)
    assert isinstance(ipset_answers.refused(16, "no", ""), Changed)
    assert "maxelem" in ipset_answers.why(4352, "hash:ip")
    assert "range" in ipset_answers.why(4352, "bitmap:ip")
    assert ipset_answers.why(22, "hash:ip") == "Invalid argument"
    assert "5000" in ipset_answers.why(5000, "hash:ip")


SAVED = """\
create web hash:ip,port family inet6 hashsize 64 maxelem 10 timeout 60 counters comment
add web ::1,tcp:80 timeout 5 packets 0 bytes 0 comment "a  web add x y"
add web ::2,tcp:80
create all list:set size 8
add all web
add web ::3,tcp:80
"""


def test_saved_text_is_read() -> None:
    """``create`` and ``add`` lines become sets; entries are left as they stand."""
    web, both = ipset_save.parse(SAVED)
    options = {"hashsize": "64", "maxelem": "10", "timeout": "60", "counters": "", "comment": ""}
    assert web[:4] == ("web", "hash:ip,port", 6, options)
    assert web.entries == [
        '::1,tcp:80 timeout 5 packets 0 bytes 0 comment "a  web add x y"',
        "::2,tcp:80",
        "::3,tcp:80",
    ]
    assert both == ("all", "list:set", 0, {"size": "8"}, ["web"])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("add a 10.0.0.1\n", "file:1: an entry is added to the set a, which was not created"),
        ("create a hash:ip family inet5\n", "file:1: option family of set a"),
        ("create a hash:ip timeout\n", "file:1: option timeout of set a"),
        ("# x\n\nflush a\n", "file:3: ipset save does not print such a line: 'flush a'"),
        ("create a\n", "file:1: ipset save does not print such a line"),
    ],
)
def test_wrong_saved_text(text: str, wrong: str) -> None:
    """What ``ipset save`` does not print is refused with its line."""
    with pytest.raises(BadInput) as caught:
        ipset_save.parse(text, "file")
    assert str(caught.value).startswith(wrong)
