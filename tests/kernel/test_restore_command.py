"""Nfctl restore against iptables-restore: what it leaves, what it refuses, what it puts back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.kernel import play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

BEFORE = """\
*filter
:INPUT DROP [11:1100]
:FORWARD ACCEPT [22:2200]
:OUTPUT ACCEPT [33:3300]
:A - [0:0]
:B - [0:0]
:C - [0:0]
[1:100] -A INPUT -i lo -j A
[2:200] -A INPUT -g B
[3:300] -A FORWARD -p udp -j DROP
[4:400] -A A -j B
[5:500] -A B -j RETURN
COMMIT
"""
RAW = """\
*raw
:PREROUTING ACCEPT [7:700]
:OUTPUT DROP [8:800]
:MINE - [0:0]
[6:600] -A OUTPUT -p tcp -m tcp --dport 80 -j MINE
[9:900] -A MINE -m limit --limit 5/min -j ACCEPT
COMMIT
"""
NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [1:60]
:POSTROUTING ACCEPT [2:120]
[3:180] -A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""


def by_table(text: str) -> dict[str, str]:
    """Return iptables-save text by table: their order is that of their first use."""
    return {part.partition("\n")[0]: part for part in text.split("COMMIT\n") if part}


def table(*lines: str) -> str:
    return "".join(f"{line}\n" for line in ["*filter", *lines, "COMMIT"])


def restore(
    netns: Namespace, text: str, *options: str, before: str = BEFORE, family: int = 4
) -> play.Step:
    """Restore one text with nfctl in a namespace anew."""
    (step,) = netns.python(play.restores, "nfctl", [text], list(options), before, family)
    return step


def agree(
    netns: Namespace, texts: list[str], *options: str, before: str = BEFORE, family: int = 4
) -> list[int]:
    """Restore texts with both programs; both have to leave the same. Return nfctl's exit codes."""
    ours = netns.python(play.restores, "nfctl", texts, list(options), before, family)
    theirs = netns.python(play.restores, "oracle", texts, list(options), before, family)
    for text, mine, his in zip(texts, ours, theirs, strict=True):
        assert bool(mine.said.code) == bool(his.said.code), (text, mine.said, his.said)
        if mine.said.code:
            assert mine.saved == before, text
        else:
            # iptables begins the counters of policies anew with everything it writes
            assert play.policies_zeroed(mine.saved) == play.policies_zeroed(his.saved), text
        assert (mine.other, his.other) == ("", "")
        assert "Traceback" not in mine.said.err
    return [step.said.code for step in ours]


# --- what a file's lines do --------------------------------------------------------------------

#: Scripts with every command that may stand in a file, good and bad ones.
SCRIPTS = [
    table("-A INPUT -j LOG"),
    table("[9:9] -A INPUT -j LOG", "-A INPUT -c 1 2 -j LOG"),
    table("-I INPUT -j LOG", "[9:9] -I INPUT 2 -j LOG", "-I A 1 -f", "-I OUTPUT"),
    table("-I INPUT 9 -j LOG"),
    table("-A INPUT -j LOG", "-D INPUT -j LOG"),
    table("-A INPUT -f", "-D INPUT 1"),
    table("-D INPUT 3"),
    table("-D INPUT -j LOG"),
    table("-A INPUT -f", "-R INPUT 1 -j LOG"),
    table("-R INPUT 1 -c 7 8 -j LOG"),
    table("-R INPUT 9 -j LOG"),
    table("-N NEW", "-A NEW -j RETURN", "-A INPUT -j NEW"),
    table("-N A"),
    table("-N LOG"),
    table("-X C"),
    table("-X A"),
    table("-X"),
    table("-F", "-X"),
    table("-F INPUT", "-F A", "-X A"),
    table("-F NOWHERE"),
    table("-Z"),
    table("-Z INPUT"),
    table("-A INPUT -f", "-Z INPUT 1"),
    table("-Z INPUT 9"),
    table("-P INPUT ACCEPT", "-P FORWARD DROP"),
    table("-P C DROP"),
    table("-P INPUT REJECT"),
    table("-N NEW", "-E NEW OLD", "-A INPUT -j OLD"),
    table("-E C D", "-A INPUT -j D"),
    table("-E A B"),
    table("-C INPUT -g B"),
    table("-A INPUT -g B", "-C INPUT -g B"),
    table(":INPUT ACCEPT [5:5]", "-A INPUT -j LOG"),
    table(":INPUT DROP [5:5]", ":FORWARD - [0:0]", ":B - [0:0]", "-A B -j LOG"),
    table(":B - [0:0]"),
    table(":A - [0:0]", ":NEW - [0:0]", "-A A -j NEW", "[4:5] -A NEW -j B"),
    table(":A - [0:0]", ":A - [0:0]"),
    table(":NEW ACCEPT [0:0]"),
    table(":LOG - [0:0]", "-A LOG -j ACCEPT", "-A INPUT -j LOG"),
    table(":ACCEPT - [0:0]"),
    table(":INPUT DROP [1:1]", "COMMIT", "*filter", "-A INPUT -j LOG"),
    table("--append INPUT --jump LOG", "--insert INPUT 1 --fragment", "--policy OUTPUT DROP"),
    table("-AINPUT -j LOG", "-p tcp -A INPUT -j LOG", "-N NEW", "-j LOG -A NEW -f"),
    table("-A INPUT -s 10.0.0.1,10.0.0.2 -d 10.1.0.0/16 -j LOG"),
    table("[4:5] -I INPUT -s 10.0.0.1,10.0.0.2 -j LOG"),
    table("# comment", "", "-A INPUT -m comment --comment '#' -j LOG"),
    table("-A INPUT -j NOWHERE"),
    table("-A INPUT -g NOWHERE"),
    table("-A INPUT -j FORWARD"),
    table("-A NOWHERE -j LOG"),
    table("-A PREROUTING -j LOG"),
    table("-N X1", "-N X2", "-A INPUT -j X1", "-A X1 -j X2", "-A X2 -j X1"),
    table("-N X1", "-N X2", "-A X1 -j X2", "-A X2 -j X1"),
    table(),
]


@pytest.mark.parametrize("options", [(), ("-c",), ("-n",), ("-n", "-c")], ids=" ".join)
def test_every_command_in_a_file(netns: Namespace, options: tuple[str, ...]) -> None:
    """Whatever lines a file has, the table is as after iptables-restore, or as it was before."""
    codes = agree(netns, SCRIPTS, *options)
    assert codes.count(0) > len(SCRIPTS) / 3
    assert codes.count(2) > len(SCRIPTS) / 4
    assert set(codes) == {0, 2}


def test_every_command_in_a_file_of_ipv6(netns: Namespace) -> None:
    """The same holds for ip6tables-restore, with addresses of its family."""
    texts = [
        text.replace("10.0.0.1,10.0.0.2", "2001:db8::1,2001:db8::2")
        .replace("10.1.0.0/16", "2001:db8::/32")
        .replace("-f", "-m frag")
        .replace("--fragment", "-m frag")
        for text in SCRIPTS
    ]
    for options in [(), ("-n", "-c")]:
        agree(netns, texts, *options, family=6)


@pytest.mark.parametrize("line", ["[5:6] -R INPUT 1 -j LOG", "[5:6] -P FORWARD DROP"])
def test_counters_before_a_replacement_or_policy(netns: Namespace, line: str) -> None:
    """With -c, counters before -R and -P are taken as those before -A are."""
    (theirs,) = netns.python(play.restores, "oracle", [table(line)], ["-n", "-c"], BEFORE)
    assert "[5:6]" in theirs.saved
    assert "[5:6]" in restore(netns, table(line), "-n", "-c").saved


def test_a_chain_declared_twice_beside_a_command(netns: Namespace) -> None:
    """Without -n a second declaration is refused, whatever else is in the file."""
    assert agree(netns, [table(":A - [0:0]", "-P INPUT DROP", ":A - [0:0]")]) == [2]


QUOTED = [
    '"two words"', 'a"b c"', r'"a \"quoted\" word"', r'"back\\slash"', r"a\b", "it's", "'x", '"-6"',
    "-6", "-A", "--append", "x;y|z", "#", '"#"', '"tab\there"', "ä", "\udcff", '"trailing "', "!",
    r'"\a"', r'"a\tb"', "$HOME", "*", ":",
]  # fmt: skip


def test_words_are_split_as_iptables_restore_does(netns: Namespace) -> None:
    """Quotes, backslashes and what looks like a command: each comment is what iptables makes it."""
    texts = [table(f"-A INPUT -m comment --comment {word} -j ACCEPT") for word in QUOTED]
    texts += [table(f"-m comment --comment {word} -A INPUT -j ACCEPT") for word in QUOTED]
    texts += [table(f"\t-A  INPUT -m comment\t--comment {word}  ") for word in QUOTED]
    assert set(agree(netns, texts)) == {0}
    wrong = ['"a"b', '"a""b"', "a b", '""x', ""]
    assert agree(
        netns, [table(f"-A INPUT -m comment --comment {word} -j ACCEPT") for word in wrong]
    ) == [2] * len(wrong)


ADDRESSES = [
    "10", "10/8", "10.1/16", "10.1.2/24", "0x0a.010.1", "10.1.2.3/0x18", "10.1.2.3/010",
    "10.1.2.3/255.0.255.0", "10.1.2.3/0", "junk/0", "0/0", "1.1.1.1,2.2.2.2/8",
    '"1.1.1.1, 2.2.2.2"',
    "255.255.255.255", "010.0.0.1", "10.0.0.08", "10.0.0.256", "10.0.0.1.2", "10..1", "10.0.0.1/33",
    "10.0.0.1/", "10.0.0.1/255.255", "10.0.0.1,", ",10.0.0.1", "10.0.0.1/8/8", "10.0.0.1/-1",
    "::1",
]  # fmt: skip
ADDRESSES6 = [
    "::1", "2001:DB8::1/64", "2001:db8::1/ffff:0:ffff::", "::/0", "junk/0", "::ffff:10.0.0.1",
    "::1,::2",
    "::1/129", "::1/", "1::2::3", "12345::", "10.0.0.1", "::/::",
]  # fmt: skip


def test_addresses_are_read_as_iptables_does(netns: Namespace) -> None:
    """Short, octal, with masks of any shape, several, wrong: the same rules or the same refusal."""
    for family, spellings in ((4, ADDRESSES), (6, ADDRESSES6)):
        codes = agree(
            netns,
            [table(f"-A INPUT {sign}-s {word}") for word in spellings for sign in ("", "! ")],
            family=family,
        )
        assert set(codes) == {0, 2}


def test_lines_marked_for_one_family(netns: Namespace) -> None:
    """One file for both families: lines marked -4 and -6 count in their own only."""
    text = table(
        ":WEB - [0:0]",
        "-4 -A INPUT -s 10.0.0.1",
        "-6 -A INPUT -s 2001:db8::1",
        "-A INPUT --ipv4 -p icmp",
        "-A INPUT -p ipv6-icmp --ipv6",
        "-A INPUT -m comment --comment -6",
        "[1:2] -6 -A WEB",
        "-4 -P FORWARD DROP",
    )
    for family in (4, 6):
        assert agree(netns, [text], "-c", family=family, before=play.EMPTY) == [0]
        saved = restore(netns, text, "-c", family=family, before=play.EMPTY).saved
        assert ("10.0.0.1" in saved, "2001:db8::1" in saved) == (family == 4, family == 6)
        assert "--comment -6" in saved
        assert ("FORWARD DROP" in saved) == (family == 4)


# --- options -----------------------------------------------------------------------------------


def test_counters_are_restored_if_asked_for(netns: Namespace) -> None:
    """With -c the counters of the file, without it zeroes, for rules and policies."""
    assert restore(netns, BEFORE, "-c", before=play.EMPTY).saved == BEFORE
    without = restore(netns, BEFORE, before=play.EMPTY).saved
    assert without.count("[0:0]") == 11
    assert without == netns.python(
        play.restores, "oracle", [BEFORE], [], play.EMPTY
    )[0].saved  # fmt: skip


def test_only_the_table_named(netns: Namespace) -> None:
    """-t takes one table of a file, as iptables-restore -T does, and leaves the others alone."""
    text = RAW.replace("dport 80", "dport 81") + NAT + BEFORE.replace("-i lo", "-i eth0")
    step = restore(netns, text, "-c", "-t", "filter", before=RAW + BEFORE)
    assert step.said.code == 0
    assert by_table(step.saved) == by_table(RAW + BEFORE.replace("-i lo", "-i eth0"))
    (oracle,) = netns.python(
        play.restores, "oracle", [text], ["-c", "-T", "filter"], RAW + BEFORE
    )  # fmt: skip
    assert step.saved == oracle.saved
    assert restore(netns, text, "-t", "mangle").saved == BEFORE
    wrong = restore(netns, text.replace("*nat", "*bogus"), "-t", "filter")
    assert (wrong.said.code, wrong.saved) == (2, BEFORE)


def test_a_test_writes_nothing(netns: Namespace) -> None:
    """--test answers as the restore would and leaves tables and counters as they are."""
    text = table("-A INPUT -j LOG", "-P FORWARD DROP")
    for options in ((), ("-n",), ("-c",)):
        step = restore(netns, text, "--test", *options)
        assert (step.said.code, step.saved) == (0, BEFORE)
    assert restore(netns, table("-A INPUT -j NOWHERE"), "--test").said.code == 2
    step = restore(netns, RAW + BEFORE.replace("lo", "eth0"), "--test", "-v", before=RAW + BEFORE)
    assert "table raw: unchanged\n" in step.said.err
    assert "table filter: would be written\n" in step.said.err
    assert by_table(step.saved) == by_table(RAW + BEFORE)


# --- what is right already ---------------------------------------------------------------------


def test_what_is_right_already_is_not_written(netns: Namespace) -> None:
    """A table that is as the file says keeps its counters, which every write would zero."""
    plain = "".join(
        line.partition("] ")[2] if line[0] == "[" else line
        for line in (RAW + BEFORE).splitlines(keepends=True)
    )
    same = restore(netns, plain, "-v", before=RAW + BEFORE)
    assert same.said.code == 0
    assert by_table(same.saved) == by_table(RAW + BEFORE)
    assert "table raw: unchanged" in same.said.err
    assert "table filter: unchanged" in same.said.err
    other = plain.replace("-i lo", "-i eth0")
    changed = restore(netns, other, "-v", before=RAW + BEFORE)
    assert "table raw: unchanged" in changed.said.err
    assert "table filter: written" in changed.said.err
    assert RAW in changed.saved
    assert "[0:0] -A INPUT -g B" in changed.saved
    (oracle,) = netns.python(play.restores, "oracle", [plain], [], RAW + BEFORE)
    assert "[0:0] -A INPUT -g B" in oracle.saved


@pytest.mark.parametrize(
    ("changed", "written"),
    [
        (("[1:100]", "[1:101]"), True),
        (("[11:1100]", "[11:1101]"), True),
        ((":C - [0:0]", ":C - [5:5]"), False),
        (("-i lo ", "-i  lo "), False),
        (("-p udp", "-p 17"), False),
        (("[3:300] -A FORWARD -p udp", "[3:300] -A FORWARD ! -p udp"), True),
        (("-g B", "-j B"), True),
        (("-A B -j RETURN", "-A B"), True),
        ((":C - [0:0]\n", ""), True),
        ((":C - [0:0]\n", ":C - [0:0]\n:D - [0:0]\n"), True),
        (("FORWARD ACCEPT", "FORWARD DROP"), True),
        (("[5:500] -A B -j RETURN", "[5:500] -A C -j RETURN"), True),
    ],
)
def test_every_difference_is_seen(
    netns: Namespace, changed: tuple[str, str], written: bool
) -> None:
    """With -c a table is written if and only if something in it is to be different."""
    assert changed[0] in BEFORE
    text = BEFORE.replace(*changed, 1)
    step = restore(netns, text, "-c", "-v")
    assert step.said.code == 0
    assert f"table filter: {'written' if written else 'unchanged'}\n" in step.said.err
    assert (step.saved != BEFORE) == written
    (oracle,) = netns.python(play.restores, "oracle", [text], ["-c"], BEFORE)
    assert step.saved == oracle.saved


# --- all tables or none ------------------------------------------------------------------------

#: The kernel takes DNAT in table nat only, which libxtables cannot know.
REFUSED = table(":INPUT ACCEPT [0:0]", "-A INPUT -j DNAT --to-destination 192.0.2.1")


def test_a_second_table_that_the_kernel_refuses(netns: Namespace) -> None:
    """The first table, committed already, is put back whole, counters included; exit code 5."""
    before = RAW + BEFORE
    text = RAW.replace("-p tcp -m tcp --dport 80 -j MINE", "-j ACCEPT") + REFUSED
    step = restore(netns, text, "-c", before=before)
    assert step.said.code == 5
    assert by_table(step.saved) == by_table(before)
    assert "put back" in step.said.err
    assert "<stdin>:10:" in step.said.err
    assert "-A INPUT -j DNAT --to-destination 192.0.2.1" in step.said.err
    (oracle,) = netns.python(play.restores, "oracle", [text], ["-c"], before)
    assert oracle.said.code != 0
    assert "-A OUTPUT -j ACCEPT" in oracle.saved


def test_a_third_table_that_the_kernel_refuses(netns: Namespace) -> None:
    """Two tables are put back, one of which nobody used before; -n makes no difference."""
    text = RAW.replace("80", "81") + NAT + REFUSED
    for options in ((), ("-n",)):
        step = restore(netns, text, *options, before=RAW + BEFORE)
        assert step.said.code == 5
        tables = by_table(step.saved)
        assert tables.pop("*nat").splitlines()[1:] == [
            f":{chain} ACCEPT [0:0]" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")
        ]
        assert tables == by_table(RAW + BEFORE)


def test_a_first_table_that_the_kernel_refuses(netns: Namespace) -> None:
    """If nothing was committed yet, nothing is to be put back; it is bad input, exit code 2."""
    step = restore(netns, REFUSED + RAW.replace("80", "81"), before=RAW + BEFORE)
    assert step.said.code == 2
    assert by_table(step.saved) == by_table(RAW + BEFORE)
    assert "<stdin>:3:" in step.said.err


def test_several_tables_are_all_committed(netns: Namespace) -> None:
    """A file with several tables, in any order, is all in the kernel afterwards."""
    step = restore(netns, NAT + BEFORE + RAW, "-c", before=play.EMPTY)
    assert step.said.code == 0
    assert sorted(step.saved.splitlines()) == sorted((NAT + BEFORE + RAW).splitlines())


# --- where the text comes from -----------------------------------------------------------------


def test_a_file_standard_input_and_a_dash(netns: Namespace, tmp_path: Path) -> None:
    """The text may come from a file, from standard input without a name, or by the name -."""
    file = tmp_path / "rules.v4"
    file.write_text(BEFORE)
    for words, text in (([str(file)], ""), ([], BEFORE), (["-"], BEFORE), (["/dev/stdin"], BEFORE)):
        netns.python(play.load, play.EMPTY)
        done = netns.nfctl("restore", "-c", *words, input=text)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert netns.save(4, "-c") == BEFORE


@pytest.mark.parametrize(
    ("data", "place", "said"),
    [
        (b"", "", "no table"),
        (b"\n# nothing\n", "", "no table"),
        (b"\x7fELF\x02\x01\x01\0\0", ":1:8", "NUL"),
        (b"\xff\xfe*\xffilter\n", ":1:1", "outside a table"),
        (BEFORE.encode("utf-16"), ":1:4", "NUL"),
        (b"\xef\xbb\xbf" + BEFORE.encode(), ":1:1", "outside a table"),
        (BEFORE.replace("\n", "\r\n").encode(), ":1:8", "carriage return"),
        (BEFORE.replace("COMMIT", "").encode(), ":14:1", "COMMIT is missing"),
        (BEFORE.encode() + b"-A INPUT\n", ":14:1", "outside a table"),
        (BEFORE.replace("COMMIT", "-A INPUT -p tcp --dprot 1\nCOMMIT").encode(), ":13:17", "dprot"),
        (BEFORE.replace("COMMIT", "-A INPUT -j " + "x" * 100_000 + "\nCOMMIT").encode(),
         ":13:13", "too long"),
        (BEFORE.replace("COMMIT", "-A INPUT " + "x " * 50_000 + "\nCOMMIT").encode(),
         ":13:10", "Bad argument"),
        (BEFORE.replace("[1:100] -A", f"[{'1' * 5000}:0] -A -j").encode(), ":8:5009", "-A needs"),
        (BEFORE.replace("udp", "1" * 1000).encode(), ":10:23", "unknown protocol"),
        (BEFORE.replace("-i lo", f"-c {'1' * 1000} x").encode(), ":8:21", "must be numbers"),
    ],
    ids=["empty", "comment", "ELF", "binary", "UTF-16", "BOM", "CRLF", "no COMMIT", "after COMMIT",
         "last line", "long word", "many words", "long counter", "long number", "long -c"],
)  # fmt: skip
def test_a_file_that_is_wrong(
    netns: Namespace, tmp_path: Path, data: bytes, place: str, said: str
) -> None:
    """Whatever is wrong, in the last line even: exit code 2, its place, and nothing changed."""
    file = tmp_path / "rules"
    file.write_bytes(data)
    netns.python(play.load, BEFORE)
    done = netns.python(play.nfctl, ["restore", str(file)])
    assert done.code == 2
    assert done.err.startswith(f"nfctl: error: {file}{place}: "), done.err[:300]
    assert said in done.err
    assert len(done.err) < 2000
    assert "Traceback" not in done.err
    assert netns.save(4, "-c") == BEFORE


def test_what_is_no_file(netns: Namespace, tmp_path: Path) -> None:
    """A missing file and a directory are named, exit code 2."""
    for path, said in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        done = netns.python(play.nfctl, ["restore", str(path)])
        assert done.code == 2
        assert done.err == f"nfctl: {path}: {said}\n"


# --- what is refused, and how it is said ---------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        (["-A INPUT -j NOWHERE"], "2:13", "NOWHERE"),
        (["-A INPUT -p tcp -g NOWHERE"], "2:20", "goto 'NOWHERE' is not a chain"),
        ([":A - [0:0]", "-A NOWHERE -j A"], "3:", "no chain NOWHERE"),
        ([":A - [0:0]", ":A - [0:0]"], "3:2", "A is declared twice"),
        ([":INPUT RETURN [0:0]"], "2:8", "RETURN"),
        ([":A DROP [0:0]"], "2:2", "user-defined"),
        ([":aaaaaaaaaaaaaaaaaaaaaaaaaaaaa - [0:0]"], "2:2", "28"),
        (["-A PREROUTING -j ACCEPT"], "2:", "PREROUTING"),
        (["-A INPUT -s host.invalid"], "2:13", "--resolve"),
        (["-A INPUT -s ::1"], "2:13", "use -6"),
        (["-A INPUT -m nosuch"], "2:13", "nosuch"),
        (["-A INPUT -m limit --limit 5/eon"], "2:19", 'bad rate "5/eon"'),
        (["-A INPUT -p tcp --dport 80", "-A INPUT -p tcp --dport 80x"], "3:17", "80x"),
        (["-A OUTPUT -i lo"], "2:", "Can't use -i with OUTPUT"),
        (["-D INPUT -s 10.0.0.256"], "2:13", "10.0.0.256"),
        (["-C INPUT -p tcp --dport 80x"], "2:17", "80x"),
        (["-R INPUT 1 -p tcp --dport 80x"], "2:19", "80x"),
        (["-I INPUT 1 -p tcp --dport 80x"], "2:19", "80x"),
        (["-A INPUT -j ACCEPT", "-A INPUT -t nat -j ACCEPT"], "3:10", "-t"),
        (["-A INPUT -j ACCEPT -w"], "2:20", "-w"),
    ],
)
def test_errors_have_their_place(netns: Namespace, lines: list[str], place: str, said: str) -> None:
    """The message has file, line and column, the line itself, and a caret under the column."""
    text = table(*lines)
    step = restore(netns, text)
    assert (step.said.code, step.saved) == (2, BEFORE)
    assert step.said.err.startswith(f"nfctl: error: <stdin>:{place}")
    assert said in step.said.err
    line, column = map(int, step.said.err.split(":")[3:5])
    shown = step.said.err.splitlines()
    assert f"  {text.splitlines()[line - 1]}" in shown
    assert f"  {' ' * (column - 1)}^" in shown


@pytest.mark.parametrize(
    ("lines", "path", "line"),
    [
        (["-A INPUT -j A", "-A A -j A"], "A -> A", 6),
        (["-A INPUT -f", "-A INPUT -j A", "-A A -p tcp -j B", "-A B -j C", "-A C -g A"],
         "A -> B -> C -> A", 9),
        (["-A A -j B", "-A INPUT -j C", "-A B -j A", "-A C -j B"], "B -> A -> B", 5),
    ],
)  # fmt: skip
def test_a_loop_of_jumps_names_its_chains(
    netns: Namespace, lines: list[str], path: str, line: int
) -> None:
    """The kernel's ELOOP is explained: the chains in order, and the line that closes the loop."""
    declared = [":A - [0:0]", ":B - [0:0]", ":C - [0:0]"]
    step = restore(netns, table(*declared, *lines))
    assert (step.said.code, step.saved) == (2, BEFORE)
    assert path in step.said.err
    assert f"<stdin>:{line}:" in step.said.err
    noflush = restore(netns, table(*declared, *lines), "-n")
    assert (noflush.said.code, noflush.saved) == (2, BEFORE)
    assert "jump in a loop: " in noflush.said.err
    assert set(path.split(" -> ")) <= set(noflush.said.err.split())


def test_two_sections_of_one_table(netns: Namespace) -> None:
    """The second section begins anew, and what the kernel refuses in it has its line."""
    first = table(":A - [0:0]", "-A INPUT -j A", "-A A -j LOG")
    for second in (table("-A INPUT -f"), table("-N B", "-A B -f", "-A INPUT -j B")):
        assert agree(netns, [first + second]) == [0]
    for lines in (["-N B", "-A B -f"], [":B - [0:0]", "-A B -f"]):
        step = restore(netns, first + table(*lines, REFUSED.splitlines()[2], "-A INPUT -j B"))
        assert (step.said.code, step.saved) == (2, BEFORE)
        assert "<stdin>:9:" in step.said.err
        assert "Traceback" not in step.said.err


def test_a_host_name_is_looked_up_if_asked_for(netns: Namespace) -> None:
    """With --resolve a name is what iptables-restore finds; without it is refused."""
    text = table("-A INPUT -s localhost -j DROP")
    refused = restore(netns, text)
    assert refused.said.code == 2
    assert "localhost" in refused.said.err
    step = restore(netns, text, "--resolve")
    (oracle,) = netns.python(play.restores, "oracle", [text], [], BEFORE)
    assert step.saved == oracle.saved
    assert "-s 127.0.0.1/32" in step.saved
    unknown = restore(netns, table("-A INPUT -s host.invalid"), "--resolve")
    assert unknown.said.code == 2
    assert "host.invalid" in unknown.said.err


# --- there and back ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_save_piped_into_restore_changes_nothing(netns: Namespace, family: int) -> None:
    """What save -c prints restore -c finds there already, and puts into an empty kernel."""
    text = NAT + BEFORE + RAW
    netns.python(play.load, text, family)
    before = netns.save(family, "-c")
    ours = netns.nfctl("save", "-c", f"-{family}").stdout
    assert ours == before
    done = netns.nfctl("restore", "-v", "-c", f"-{family}", input=ours)
    assert done.returncode == 0
    assert done.stderr.count("unchanged") == 3
    assert netns.save(family, "-c") == before
    anew = restore(netns, ours, "-c", before=play.EMPTY, family=family)
    assert sorted(anew.saved.splitlines()) == sorted(before.splitlines())


def test_names_that_iptables_restore_takes(netns: Namespace) -> None:
    """Chains called like a target, with quotes, or with bytes that are not UTF-8 survive."""
    text = table(
        ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ':A"B - [0:0]',
        ":LOG - [0:0]", ":a\\b - [0:0]", ":\udcff - [0:0]",
        "-A INPUT -j LOG", "-A INPUT -j a\\b", "-A INPUT -j \udcff", "-A LOG -j RETURN",
    )  # fmt: skip
    assert agree(netns, [text], before=play.EMPTY) == [0]
    netns.python(play.load, text)
    assert netns.nfctl("save").stdout == netns.save() == text
    document = json.loads(netns.nfctl("rule", "list", "--json").stdout)
    assert [rule["target"]["name"] for rule in document["chains"][0]["rules"]] == [
        "LOG", "a\\b", "\udcff",
    ]  # fmt: skip
