"""ipsets as the kernel has them; the oracle is the ``ipset`` binary, which adds and lists, too."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import Changed, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import ipset, ipset_save, netlink
from nfctl.kernel import ipset_types as t
from nfctl.kernel.ipset import Header, Ipset
from nfctl.kernel.ipset_answers import EntryError
from tests.kernel.test_properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("ipset") is None, reason="needs ipset"),
]

EXTENSIONS: Final = {"timeout": "900", "counters": "", "comment": "", "skbinfo": ""}
RANGES: Final = {
    "bitmap:port": "0-1024",
    "bitmap:ip": "10.0.0.0/23",
    "bitmap:ip,mac": "10.0.0.0/23",
}
FAMILIES: Final = [(name, family) for name, kind in t.TYPES.items() for family in kind.families]

OPTIONS: Final = """
timeout 5
timeout 0
timeout 0x10
timeout 010
timeout 2147483
timeout 2147484
timeout -1
timeout
packets 5
bytes 7
packets 5 bytes 18446744073709551614
bytes 18446744073709551615
comment "a b"
comment ab
comment "it's; a #comment"
comment "ünï"
comment
skbmark 0x1
skbmark 0x1/0xff
skbmark 0xffffffff/0x0
skbmark 1
skbprio 1:10
skbprio 1
skbprio ffff:ffff
skbqueue 3
skbqueue 65536
nomatch
wildcard
nomatch wildcard timeout 7 packets 1
bogus
timeout 5 comment x skbqueue 1 skbmark 0x7 bytes 3
before other
comment "a" b
""".strip().split("\n")
ADDRESSES: Final = {
    4: """10.0.0.4 10.0.0.0/30 10.0.0.1-10.0.0.6 10.0.0.6-10.0.0.1 0.0.0.0 0.0.0.0/0 10.0.0.3/32
    10.0.0.3/33 10.0.0.77/26 10.0.0.3/0 10.0.0.0/255.255.255.252 256.1.1.1 ::1 255.255.255.255
    10.0.0.3/ 10.0.0.0/24-10.0.1.0/24 10.0.1.255 10.0.2.0 10.0.1.250-10.0.2.3 x 10.0.0.0/028
    10.0.0.0/0x1c -10.0.0.1 10.0.0.1-""".split(),
    6: """2001:db8::1 2001:db8::/64 2001:db8::1/128 2001:db8::1-2001:db8::3 :: ::/0
    ::ffff:1.2.3.4 1.2.3.4 2001:db8::/129 2001:DB8::ff/32 fe80::1%lo 2001:db8::/""".split(),
}
SERVICES: Final = """80 tcp:80 udp:53 80-82 tcp:80-82 udp:82-80 http tcp:http udp:domain [ftp-data]
tcp:[ftp-data] ftp-data domain-http icmp:8 icmp:8/0 icmp:3/1 icmp:300/1 icmp:3/ icmp:any
icmp:77/5 icmpv6:1/0 icmpv6:1/2 ICMP:ping TCP:80 6:80 17:53 1:8/0 58:128/0 vrrp:0 vrrp:1 gre:0 47:0
253:0 sctp:80 dccp:80 dccp:0 udplite:4 0:0 256:0 tcp:65536 tcp:0 65535 -1 tcp: 0x50 080 1020-1030
all:0 ip:0 tcp:80- tcp:-80 nosuch:1 tcp:nosuch""".split()
MACS: Final = """00:11:22:33:44:55 0:1:2:3:4:5 00-11-22-33-44-55 00:11:22:33:44 GG:11:22:33:44:55
aa:BB:cc:DD:ee:FF""".split()
INTERFACES: Final = "eth0 physdev:eth0 lo a23456789012345 a234567890123456 eth+".split()
MARKS: Final = "0x63 7 0xffffffff 0x100000000 x".split()
MEMBERS: Final = [
    *("set", "other", "empty", "empty before other", "empty after other"),
    *("other before empty", "empty before nosuch", "nosuch", "other,empty"),
]


def options_of(name: str) -> dict[str, str]:
    """Return create options for a set that has everything; its seed is always the same."""
    known = t.TYPES[name].options
    found = {option: value for option, value in EXTENSIONS.items() if option in known}
    if name in RANGES:
        found["range"] = RANGES[name]
    if "initval" in known:
        found |= {"initval": "0x0badcafe", "maxelem": "1000"}
    return found


def parts_of(name: str, family: int) -> list[list[str]]:
    """Return what each part of an entry may be, right and wrong; the first is right."""
    addresses = ADDRESSES[family or 4]
    by_part = {
        "ip": addresses,
        "one": addresses,
        "net": addresses,
        "one2": [one for one in addresses if "/" not in one],  # ipset says it is a bug of its own
        "net2": addresses,
        "service": SERVICES,
        "port": SERVICES,
        "iface": INTERFACES,
        "mac": MACS,
        "mac?": MACS,
        "mark": MARKS,
        "name": ["other"],
    }
    return [by_part[part] for part in t.TYPES[name].parts]


def corpus(name: str, family: int) -> list[str]:
    """Return entries, right and wrong: every part and every option beside right ones."""
    parts = parts_of(name, family)
    right = [one[0] for one in parts]
    found = []
    for index, part in enumerate(parts):
        found += [",".join([*right[:index], one, *right[index + 1 :]]) for one in part]
    whole = ",".join(right)
    found += [f"{whole} {option}" for option in OPTIONS]
    if name == "list:set":
        return [*found, *MEMBERS]
    found.append(whole + ",80,80,80")
    return [*found, right[0]] if len(parts) > 1 else found


def comparable(saved: str) -> list[str]:
    """Return the lines of ``ipset save``, in an order, without what time changes."""
    saved = re.sub(r"timeout [1-9]\d*", "timeout N", saved)
    saved = re.sub(r"hashsize \d+", "hashsize N", saved)  # grows, and stays
    head, *lines = saved.splitlines() or [""]
    return [head, *lines] if "list:set" in head else [head, *sorted(lines)]


def oracle(*words: str, text: str | None = None) -> str:
    """Run ipset in the namespace that this process is in; NfctlError where it refuses."""
    done = subprocess.run(["ipset", *words], input=text, capture_output=True, text=True)  # noqa: PLW1510
    if done.returncode:
        raise NfctlError(done.stderr)
    return done.stdout


def made(kernel: Ipset, name: str, family: int = 0, **options: str) -> Header:
    """Make a set "set" of a type, with sets that lists can have."""
    kernel.create("other", "hash:ip")
    kernel.create("empty", "hash:ip")
    kernel.create("set", name, family, options or options_of(name))
    header = kernel.header("set")
    assert header is not None
    return header


def lacking(call: Callable[[], Any]) -> Any:
    """Return what a call does, or "lacking" where the kernel has no such type."""
    try:
        return call()
    except Unsupported as error:
        return f"lacking: {error.hint}"


def add_both(name: str, family: int) -> list[tuple[str, object, object]]:
    """Add each entry of the corpus twice, by us and by ipset; return what differs."""
    found: list[tuple[str, object, object]] = []
    with Ipset() as kernel:
        header = made(kernel, name, family)
        for entry in corpus(name, family):
            results: list[object] = []
            for ours in (True, False):
                kernel.flush("set")
                if name == "list:set" and " " in entry:
                    kernel.add(header, ["other"])
                try:
                    if ours:
                        kernel.add(header, [entry])
                    else:
                        oracle("-exist", "restore", text=f"add set {entry}\n")
                except NfctlError:
                    results.append("refused")
                else:
                    results.append(comparable(oracle("save", "set")))
                mine, theirs = comparable(kernel.save("set")), comparable(oracle("save", "set"))
                if mine != theirs:
                    found.append((f"listing {entry}", mine, theirs))
            if results[0] != results[1]:
                found.append((entry, results[0], results[1]))
    return found


@pytest.mark.parametrize(("name", "family"), FAMILIES)
def test_entries_are_what_ipset_makes_of_them(netns: Namespace, name: str, family: int) -> None:
    """Each entry of a corpus, right or wrong, comes to the same set as by ipset, or is refused.

    And each set is printed as ``ipset save`` prints it.
    """
    found = netns.python(lacking, lambda: add_both(name, family))
    if isinstance(found, str):
        pytest.skip(found)
    assert found == []


CREATE: Final = {
    "hash:ip": "netmask 24|netmask 33|netmask 0|bitmask 255.0.255.0|hashsize 100|hashsize 0"
    "|maxelem 7|bucketsize 4|bucketsize 1|initval 0x1|forceadd|timeout 0|timeout 2147484"
    "|netmask 24 bitmask 255.0.0.0|counters comment skbinfo|markmask 0xff|size 3|range 1-2|bogus",
    "hash:net": "netmask 24|forceadd counters|maxelem x",
    "hash:ip,port": "netmask 24|bitmask 255.255.0.0",
    "hash:net,iface": "skbinfo timeout 5",
    "bitmap:ip": "range 10.0.0.0/16|range 10.0.0.0-10.0.0.9|range 10.0.0.9-10.0.0.0"
    "|range 10.0.0.0/15|range 10.0.0.0|range 10.0.0.0/24 netmask 28|range 10.0.0.0/8 netmask 24"
    "|range 10.0.0.0/24 timeout 5 counters|range ::/120|maxelem 3",
    "bitmap:ip,mac": "range 10.0.0.0/24 comment|range 10.0.0.0/24 netmask 28",
    "bitmap:port": "range 0-65535|range 9-3|range 80|range 1-65536|range 0-9 skbinfo",
    "list:set": "size 3|size 0|timeout 9 comment|maxelem 4",
}


def create_both(name: str, words: str) -> list[object]:
    options: dict[str, str] = {}
    rest = iter(words.split())
    for word in rest:
        options[word] = "" if word in t.FLAGS or word == "bogus" else next(rest)
    if "initval" in t.TYPES[name].options:
        options.setdefault("initval", "0x7")
        words += "" if "initval" in words else " initval 0x7"
    results: list[object] = []
    with Ipset() as kernel:
        for ours in (True, False):
            try:
                if ours:
                    kernel.create("set", name, 0, options)
                else:
                    oracle("create", "set", name, *words.split())
            except NfctlError:
                results.append("refused")
                continue
            results.append(oracle("save", "set"))
            # ipset 7.17 does not print the option forceadd
            assert kernel.save("set").replace(" forceadd", "") == results[-1]
            header = kernel.header("set")
            assert header is not None
            assert ("forceadd" in header.options) is ("forceadd" in words)
            kernel.destroy("set")
    return results


@pytest.mark.parametrize(
    ("name", "words"), [(name, one) for name, all_ in CREATE.items() for one in all_.split("|")]
)
def test_options_are_what_ipset_makes_of_them(netns: Namespace, name: str, words: str) -> None:
    """Each create option, right or wrong, makes the same set as with ipset, or none."""
    ours, theirs = netns.python(create_both, name, words)
    assert ours == theirs


SETS: Final = [
    ("hash:ip", 4),
    ("hash:ip", 6),
    ("hash:net", 4),
    ("hash:net", 6),
    ("hash:ip,port", 4),
    ("hash:net,port", 4),
    ("hash:ip,port,ip", 6),
    ("hash:ip,port,net", 4),
    ("hash:net,iface", 4),
    ("bitmap:ip", 4),
    ("bitmap:ip,mac", 4),
    ("bitmap:port", 0),
]

octet = st.integers(0, 255)
v4 = st.builds("10.0.{}.{}".format, st.integers(0, 1), octet)
v6 = st.builds("2001:db8:{:x}::{:x}".format, st.integers(0, 3), st.integers(1, 0xFFFF))
drawn_range = st.builds("10.0.1.{}-10.0.1.{}".format, st.integers(0, 30), st.integers(0, 30))
port = st.integers(0, 1016)
ports = port.map(str) | port.map(lambda first: f"{first}-{first + 7}")
protocols = st.sampled_from(["tcp:", "udp:", "sctp:", "udplite:", ""])
words_ = st.text("abc xyz0.;#'\\", min_size=1, max_size=12).map(lambda text: f'comment "{text}"')
extras = st.lists(
    st.one_of(
        st.integers(100, 2147483).map("timeout {}".format),
        st.integers(0, (1 << 64) - 2).map("packets {}".format),
        st.integers(0, (1 << 64) - 2).map("bytes {}".format),
        words_,
        st.builds("skbmark 0x{:x}/0x{:x}".format, st.integers(0, 9), st.integers(1, 0xFFFFFFFF)),
        st.integers(0, 65535).map("skbqueue {}".format),
    ),
    max_size=4,
    unique_by=lambda text: text.split()[0],
).map(" ".join)


def drawn_part(part: str, family: int) -> st.SearchStrategy[str]:
    single = v4 if family == 4 else v6
    lengths = st.integers(27, 32) if family == 4 else st.integers(32, 128)
    network = st.builds("{}/{}".format, single, lengths)
    some = single | network | drawn_range if family == 4 else single
    icmp = st.builds("icmp:{}/{}".format, octet, octet) if family == 4 else st.just("icmpv6:ping")
    return {
        "ip": some,
        "one": single,
        "one2": single,
        "net": st.one_of(single, network),
        "net2": st.one_of(single, network),
        "service": st.one_of(st.builds("{}{}".format, protocols, ports), icmp),
        "port": ports,
        "iface": st.sampled_from(["eth0", "physdev:eth1", "wg-0", "a.b"]),
        "mac?": st.binary(min_size=6, max_size=6).filter(any).map(lambda data: data.hex(":")),
    }[part]


def drawn_entries(name: str, family: int) -> st.SearchStrategy[list[str]]:
    parts = [drawn_part(part, family) for part in t.TYPES[name].parts]
    element = st.tuples(*parts).map(",".join)
    return st.lists(st.builds("{} {}".format, element, extras), max_size=12)


def check_random(name: str, family: int) -> None:
    with Ipset() as kernel:
        options = {**options_of(name)}
        if "maxelem" in t.TYPES[name].options:
            options["maxelem"] = "1000000"
        header = made(kernel, name, family, **options)

        @examples(40)
        @given(drawn_entries(name, family))
        def check(entries: list[str]) -> None:
            kernel.flush("set")
            oracle("-exist", "restore", text="".join(f"add set {one}\n" for one in entries))
            theirs = comparable(oracle("save", "set"))
            kernel.flush("set")
            kernel.add(header, entries)
            mine = oracle("save", "set")
            assert comparable(mine) == theirs
            assert comparable(kernel.save("set")) == theirs
            # and the text that was saved makes the same set again
            kernel.flush("set")
            (saved,) = ipset_save.parse(mine)
            kernel.add(header, saved.entries)
            assert comparable(oracle("save", "set")) == theirs

        check()


@pytest.mark.parametrize(("name", "family"), SETS)
def test_random_entries(netns: Namespace, name: str, family: int) -> None:
    """Any entries, with any options, make the set that ``ipset restore`` makes of them."""
    found = netns.python(lacking, lambda: check_random(name, family))
    if found:
        pytest.skip(found)


def many(count: int) -> tuple[str, str, int]:
    entries = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count)]
    with Ipset() as kernel:
        header = made(kernel, "hash:ip", 4, maxelem="200000", initval="0x1")
        kernel.add(header, entries)
        ours = kernel.save("set")
        theirs = oracle("save", "set")
        kernel.delete(header, entries[:-1])
        left = kernel.header("set")
        assert left is not None
        assert left.entries is not None
        return ours, theirs, left.entries


def test_many_entries(netns: Namespace) -> None:
    """More entries than one message holds come, are listed in the same order, and go."""
    ours, theirs, left = netns.python(many, 20_000)
    assert ours == theirs
    assert ours.count("\nadd ") == 20_000
    assert left == 1


def refuse_one() -> tuple[int, str, int]:
    entries = [f"10.0.{n >> 8}.{n & 255}" for n in range(5000)]
    entries[3456] = "0.0.0.0/32"
    with Ipset() as kernel:
        header = made(kernel, "hash:ip", 4)
        kernel.create("wide", "hash:ip")
        try:
            kernel.add(Header("wide", "hash:ip", 4, 0), entries)
        except EntryError as error:
            listed = kernel.read("wide")
            assert listed is not None
            assert header.options["maxelem"] == "1000"
            return error.index, error.message, len(listed[1])
    raise AssertionError


def test_the_entry_that_the_kernel_refuses_is_named(netns: Namespace) -> None:
    """Of thousands of entries the one that the kernel does not take is told, and why."""
    index, message, there = netns.python(refuse_one)
    assert index == 3456
    assert message == (
        "set wide: entry '0.0.0.0/32': the null address, and a network of prefix length 0, "
        "cannot be in such a set"
    )
    assert there == 3456


def answers() -> list[str]:
    found = []
    with Ipset() as kernel:
        header = made(kernel, "list:set")
        kernel.create("ports", "bitmap:port", 0, {"range": "1-9"})
        ports = Header("ports", "bitmap:port", 0, 0)
        kernel.create("small", "hash:net", 0, {"maxelem": "1"})
        small = Header("small", "hash:net", 4, 0)
        kernel.add(header, ["other"])
        for call in (
            lambda: kernel.add(header, ["nosuch"]),
            lambda: kernel.add(header, ["set"]),
            lambda: kernel.add(ports, ["5", "10"]),
            lambda: kernel.add(small, ["10.0.0.1", "10.0.0.2"]),
            lambda: kernel.add(small, ["0.0.0.0/0"]),
            lambda: kernel.add(small, ["10.0.0.1 timeout 1"]),
            lambda: kernel.add(small, ["10.0.0.1 packets 1"]),
            lambda: kernel.add(small, ["10.0.0.1 comment a"]),
            lambda: kernel.add(small, ["10.0.0.1 skbqueue 1"]),
            lambda: kernel.add(Header("nosuch", "hash:ip", 4, 0), ["10.0.0.1"]),
            lambda: kernel.create("small", "hash:net"),
            lambda: kernel.create("small", "hash:ip", exist=True),
            lambda: kernel.create("big", "bitmap:ip", 0, {"range": "10.0.0.0/8"}),
            lambda: kernel.destroy("nosuch"),
            lambda: kernel.destroy("other"),
            lambda: kernel.rename("other", "new"),
            lambda: kernel.rename("small", "ports"),
            lambda: kernel.swap("small", "ports"),
            lambda: kernel.swap("small", "nosuch"),
            lambda: kernel.flush("nosuch"),
            lambda: kernel.entries("nosuch"),
        ):
            try:
                call()
            except NfctlError as error:
                found.append(f"{type(error).__name__} {error}")
    return found


def test_what_the_kernel_refuses_has_words(netns: Namespace) -> None:
    """Each refusal is an error that says which set or entry, and why."""
    assert netns.python(answers) == [
        "EntryError set set: entry 'nosuch': there is no set of this name",
        "EntryError set set: entry 'set': a list of sets cannot be in a list",
        "EntryError set ports: entry '10': it is outside of the set's range",
        "EntryError set small: entry '10.0.0.2': the set is full: its option maxelem is the most "
        "it takes",
        "EntryError set small: entry '0.0.0.0/0': the prefix length does not fit the type of "
        "the set",
        "EntryError set small: entry '10.0.0.1 timeout 1': the set was created without the "
        "option timeout",
        "EntryError set small: entry '10.0.0.1 packets 1': the set was created without the "
        "option counters",
        "EntryError set small: entry '10.0.0.1 comment a': the set was created without the "
        "option comment",
        "EntryError set small: entry '10.0.0.1 skbqueue 1': the set was created without the "
        "option skbinfo",
        "Refused the entries of set nosuch cannot be changed: there is no set of this name",
        "Refused set small cannot be created: there is a set of this name",
        "Refused set small cannot be created: there is a set of this name",
        "Refused set big cannot be created: the range is too large: a bitmap has at most 65536 "
        "elements",
        "Refused set nosuch cannot be destroyed: there is no set of this name",
        "Refused set other cannot be destroyed: it is in use by a rule or another set",
        "Refused set other cannot be renamed to new: it is in use by a rule or another set",
        "Refused set small cannot be renamed to ports: there is a set of the new name",
        "Refused sets small and ports cannot be swapped: sets of different types do not take "
        "each other's place",
        "Refused sets small and nosuch cannot be swapped: nosuch: there is no set of this name",
        "Refused set nosuch cannot be emptied: there is no set of this name",
        "Refused set nosuch cannot be listed: there is no set of this name",
    ]


def handle() -> tuple[list[str], dict[str, Header], list[bool], str]:
    with Ipset() as kernel:
        kernel.create("a", "hash:ip", 6, {"comment": ""})
        kernel.create("b", "hash:ip", 6)
        kernel.create("c", "list:set")
        kernel.add(Header("a", "hash:ip", 6, 0), ['::1 comment "x"'])
        kernel.add(Header("c", "list:set", 0, 0), ["b", "a"])
        kernel.swap("a", "b")
        kernel.create("d", "hash:net")
        kernel.rename("d", "e")
        kernel.create("a", "hash:ip", 6, {}, exist=True)
        there = [kernel.exists(name) for name in ("a", "d", "e")]
        return sorted(kernel.names()), kernel.headers(), there, ipset_save.save(kernel, ["c", "b"])


def test_sets_are_handled(netns: Namespace) -> None:
    """Sets are created, swapped, renamed and listed, with what they hold and who uses them."""
    names, headers, there, saved = netns.python(handle)
    assert names == ["a", "b", "c", "e"]
    assert there == [True, False, True]
    assert [headers[name].references for name in names] == [1, 1, 0, 0]
    assert [headers[name].entries for name in names] == [0, 1, 2, 0]
    assert "comment" in headers["b"].options
    theirs = [netns.run(["ipset", "save", name]).stdout for name in ("b", "c")]
    assert saved == "".join(theirs)
    assert '::1 comment "x"' in theirs[0]


def missing_type() -> str:
    """Return a type that this kernel does not have, or ""."""
    with Ipset() as kernel:
        for name, family in FAMILIES:
            try:
                kernel.revision(t.TYPES[name], family)
            except Unsupported:
                return name
    return ""


def test_a_type_that_the_kernel_lacks(netns: Namespace) -> None:
    """Unsupported, exit code 3, names the kernel's option and its module."""
    name = netns.python(missing_type)
    if not name:
        pytest.skip("needs a kernel without one of the types")
    with pytest.raises(Unsupported) as caught:
        netns.python(make_one, name)
    assert caught.value.exit_code == 3
    assert f"the kernel has no ipset type {name}" in caught.value.message
    assert f"module {t.TYPES[name].module}" in caught.value.hint


def make_one(name: str) -> None:
    with Ipset() as kernel:
        kernel.create("one", name)


def test_without_privileges(netns: Namespace) -> None:
    """NotPermitted, exit code 3, without CAP_NET_ADMIN."""
    code = """
from nfctl.errors import NfctlError
from nfctl.kernel.ipset import Ipset
try:
    Ipset()
except NfctlError as error:
    print(type(error).__name__, error.exit_code)
"""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = netns.run([*drop, sys.executable, "-c", code])
    assert done.stdout == f"NotPermitted {NotPermitted.exit_code}\n", done.stderr


def look_elsewhere() -> tuple[list[str], list[str], list[str]]:
    with Ipset() as kernel, ipset.scratch() as scratch:
        kernel.create("here", "hash:ip")
        scratch.create("there", "hash:ip")
        with Ipset() as again:
            return kernel.names(), scratch.names(), again.names()


def test_scratch_is_elsewhere(netns: Namespace) -> None:
    """What is made in the scratch namespace is in no other, and the thread stays where it is."""
    assert netns.python(look_elsewhere) == (["here"], ["there"], ["here"])


def busy(command: str) -> tuple[int, str]:
    """Change a set while another program lists it, which ends when we have waited three times."""
    waits = 0
    with Ipset() as other:
        header = made(other, "hash:ip", 4, maxelem="100000")
        other.add(header, [f"10.0.{n >> 8}.{n & 255}" for n in range(60_000)])
        # the kernel has begun to list, and holds the set until all of it is taken
        other._send(7, netlink.REQUEST | netlink.DUMP, ipset._setname("set"))
        answers = other._answers()

        def pause(_seconds: float) -> None:
            nonlocal waits
            waits += 1
            if waits == 3:
                for _, kind, _, _ in answers:
                    if kind == netlink.NLMSG_DONE:
                        break

        with Ipset(pause=pause) as kernel:
            if command == "swap":
                kernel.swap("set", "other")
            elif command == "rename":
                kernel.rename("set", "new")
            else:
                kernel.destroy("set")
            return waits, " ".join(sorted(kernel.names()))


@pytest.mark.parametrize(
    ("command", "left"),
    [("swap", "empty other set"), ("rename", "empty new other"), ("destroy", "empty other")],
)
def test_a_set_that_is_being_listed(netns: Namespace, command: str, left: str) -> None:
    """Who changes a set while another program lists it waits until that is done."""
    assert netns.python(busy, command) == (3, left)


def always_busy() -> tuple[str, int]:
    waits: list[float] = []
    with Ipset() as other:
        header = made(other, "hash:ip", 4, maxelem="100000")
        other.add(header, [f"10.0.{n >> 8}.{n & 255}" for n in range(60_000)])
        other._send(7, netlink.REQUEST | netlink.DUMP, ipset._setname("set"))
        with Ipset(pause=waits.append) as kernel:
            try:
                kernel.swap("set", "other")
            except Changed as error:
                return error.message, len(waits)
    raise AssertionError


def test_a_set_that_stays_busy(netns: Namespace) -> None:
    """Who waits for ever gets an error with exit code 4."""
    message, waits = netns.python(always_busy)
    assert message == "sets set and other cannot be swapped: another program is busy with it"
    assert waits == 200
