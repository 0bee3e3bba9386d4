from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset.script import Append, Command, Section, decode, parse
from nfctl.ruleset.words import Word, split
from tests.unit.strategies import refusal


def one(line: str, family: int = 4) -> Append | Command | None:
    """Read one line in a table; None if it is for the other family."""
    (section,) = parse(f"*filter\n{line}\nCOMMIT\n", family=family).sections
    assert len(section.items) <= 1
    return section.items[0] if section.items else None


def command(line: str) -> Command:
    found = one(line)
    assert isinstance(found, Command)
    return found


def rule(line: str) -> tuple[str, list[str], tuple[int, int] | None]:
    """Return an appended rule's chain, words and counters, in whichever form it was read."""
    found = one(line)
    assert isinstance(found, Append)
    words = found.words if found.words is not None else split(found.spec)
    return found.chain, [word.text for word in words], found.counters


def failure(text: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(text, source="rules.v4")
    return caught.value


# --- what is read ------------------------------------------------------------------------------


def test_a_saved_table() -> None:
    """Tables, declarations, rules with and without counters, comments and empty lines."""
    script = parse(
        "# saved\n*nat\n:PREROUTING ACCEPT [1:2]\n:WEB - [0:0]\n\n"
        '-A PREROUTING -p tcp -j WEB\n[3:4] -A WEB -m comment --comment "a b"\n-A WEB\n'
        "COMMIT\n# done\n*raw\nCOMMIT\n",
        source="x",
    )
    assert script.source == "x"
    assert script.sections == [
        Section(
            "nat",
            2,
            [
                Command(":", "PREROUTING", 3, 2, argument="ACCEPT", counters=(1, 2)),
                Command(":", "WEB", 4, 2, argument="-", counters=(0, 0)),
                Append("PREROUTING", "-p tcp -j WEB", None, 6, 15),
                Append("WEB", '-m comment --comment "a b"', (3, 4), 7, 14),
                Append("WEB", "", None, 8, 1, ()),
            ],
        ),
        Section("raw", 11, []),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "-A INPUT -p tcp -j ACCEPT",
        "  -A   INPUT\t-p tcp  -j ACCEPT ",
        "--append INPUT -p tcp -j ACCEPT",
        "-AINPUT -p tcp -j ACCEPT",
        "-p tcp -A INPUT -j ACCEPT",
        "-p tcp -j ACCEPT -A INPUT",
        '"-A" "INPUT" -p "tcp" -j ACCEPT',
        "-A INPUT -4 -p tcp -j ACCEPT",
        "--ipv4 -A INPUT -p tcp -j ACCEPT",
    ],
)
def test_a_rule_in_many_spellings(line: str) -> None:
    """The command may stand anywhere, long, short or with its chain attached, quoted or not."""
    assert rule(line) == ("INPUT", ["-p", "tcp", "-j", "ACCEPT"], None)
    assert rule(f"[5:6] {line}") == ("INPUT", ["-p", "tcp", "-j", "ACCEPT"], (5, 6))
    assert rule(f"[5:6]{line}")[2] == (5, 6)


@pytest.mark.parametrize("mark", ["-4", "--ipv4", "-6", "--ipv6"])
@pytest.mark.parametrize("place", ["{} -A INPUT -j DROP", "-A INPUT {} -j DROP"])
@pytest.mark.parametrize("family", [4, 6])
def test_lines_marked_for_a_family(mark: str, place: str, family: int) -> None:
    """A line marked -4 or -6 counts in that family only, wherever the mark stands."""
    found = one(place.format(mark), family)
    assert (found is not None) == mark.endswith(str(family))


@pytest.mark.parametrize("value", ["-6", '"-6"', '"not -6"', "--ipv6", "-N", "--append"])
def test_an_option_s_value_is_no_mark_and_no_command(value: str) -> None:
    """A comment that says -6, as iptables-save prints it without quotes, keeps its rule."""
    expected = ["-m", "comment", "--comment", value.strip('"'), "-j", "DROP"]
    assert rule(f"-A INPUT -m comment --comment {value} -j DROP") == ("INPUT", expected, None)
    assert rule(f"-m comment --comment {value} -A INPUT -j DROP") == ("INPUT", expected, None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-N WEB", Command("N", "WEB", 2, 1)),
        ("--new-chain WEB", Command("N", "WEB", 2, 1)),
        ("-X", Command("X", "", 2, 1)),
        ("-X WEB", Command("X", "WEB", 2, 1)),
        ("-F", Command("F", "", 2, 1)),
        ("--flush WEB", Command("F", "WEB", 2, 1)),
        ("-Z", Command("Z", "", 2, 1)),
        ("-Z INPUT", Command("Z", "INPUT", 2, 1)),
        ("-Z INPUT 3", Command("Z", "INPUT", 2, 1, 3)),
        ("-P INPUT DROP", Command("P", "INPUT", 2, 1, argument="DROP")),
        ("-E WEB HTTP", Command("E", "WEB", 2, 1, argument="HTTP")),
        ("-D INPUT 2", Command("D", "INPUT", 2, 1, 2)),
        ("-D INPUT -j X", Command("D", "INPUT", 2, 1, words=(Word("-j", 10), Word("X", 13)))),
        ("-I INPUT -f", Command("I", "INPUT", 2, 1, words=(Word("-f", 10),))),
        ("-I INPUT 2 -f", Command("I", "INPUT", 2, 1, 2, words=(Word("-f", 12),))),
        ("-I INPUT", Command("I", "INPUT", 2, 1)),
        (
            "[1:2] -I INPUT ! -f",
            Command("I", "INPUT", 2, 7, None, "", (1, 2), (Word("!", 16), Word("-f", 18))),
        ),
        ("-R INPUT 1 -f", Command("R", "INPUT", 2, 1, 1, words=(Word("-f", 12),))),
        ("-C INPUT -f", Command("C", "INPUT", 2, 1, words=(Word("-f", 10),))),
        ("-f -C INPUT", Command("C", "INPUT", 2, 4, words=(Word("-f", 1),))),
    ],
)
def test_every_command(line: str, expected: Command) -> None:
    """Each command of iptables(8) that may stand in a file, with its operands and columns."""
    assert command(line) == expected


@pytest.mark.parametrize(
    ("line", "argument", "counters"),
    [
        (":INPUT DROP", "DROP", None),
        (":INPUT DROP [1:2]", "DROP", (1, 2)),
        (": INPUT\tACCEPT   [18446744073709551615:0]", "ACCEPT", (2**64 - 1, 0)),
        (":INPUT - [0:0]", "-", (0, 0)),
        (":INPUT DROP [1:2] more", "DROP", (1, 2)),
        (':IN"PUT DROP', "DROP", None),
    ],
)
def test_declarations(line: str, argument: str, counters: tuple[int, int] | None) -> None:
    """A chain's declaration with and without counters, and with blanks wherever they may be."""
    found = command(line)
    assert (found.verb, found.chain.replace('"', "")) == (":", "INPUT")
    assert ('"' in found.chain) == ('"' in line)
    assert (found.argument, found.counters) == (argument, counters)


@pytest.mark.parametrize(
    ("digits", "number"),
    [("18446744073709551615", 2**64 - 1), ("18446744073709551616", 2**64 - 1),
     ("9" * 5000, 2**64 - 1), ("0" * 30 + "7", 7), ("9" * 19, int("9" * 19))],
)  # fmt: skip
def test_counters_stop_at_the_largest(digits: str, number: int) -> None:
    """A counter past 64 bits is the largest one, as scanf reads it, however long it is."""
    assert rule(f"[{digits}:1] -A INPUT -f")[2] == (number, 1)
    assert rule(f"[1:{digits}]  -A INPUT -f")[2] == (1, number)
    assert command(f":INPUT DROP [{digits}:{digits}]").counters == (number, number)


def test_rule_numbers_are_c_s() -> None:
    """Numbers of rules are read in any C base, as iptables reads them."""
    assert command("-D INPUT 0x10").number == 16
    assert command("-D INPUT 010").number == 8


def test_only_one_table_is_kept() -> None:
    """With a table named, the others are read over, and all tables are still checked."""
    text = "*raw\n-A OUTPUT -f\nCOMMIT\n*filter\n-A INPUT -f\nCOMMIT\n"
    (section,) = parse(text, only="filter").sections
    assert (section.table, section.line) == ("filter", 4)
    assert parse(text, only="nat").sections == []


def test_the_last_line_needs_no_newline() -> None:
    """A file may end with COMMIT itself, or with blanks behind it."""
    assert len(parse("*raw\nCOMMIT").sections) == 1
    assert len(parse("*raw\nCOMMIT \t").sections) == 1


# --- what is refused, and where ----------------------------------------------------------------

BAD = [
    ("*filter\n¶COMIT\n", "no command"),
    ("*filter\n-A INPUT\n¶", "COMMIT is missing"),
    ("*filter\n-A INPUT¶", "COMMIT is missing"),
    ("*filter\n¶*nat\nCOMMIT\n", "no COMMIT before"),
    ("*filter\n-A INPUT -j LOG --log-prefix a¶\0b\nCOMMIT\n", "NUL"),
    ("*filter\n-A INPUT -j ¶\ud800\nCOMMIT\n", "surrogate"),
    ("*filter\n¶\0 \ud800\nCOMMIT\n", "NUL"),
    ("¶COMMIT\n", "outside a table"),
    ("*raw\nCOMMIT\n¶-A OUTPUT\n", "outside a table"),
    ("¶:INPUT ACCEPT\n", "outside a table"),
    ("¶ *filter\nCOMMIT\n", "outside a table"),
    ("*¶bogus\nCOMMIT\n", "bogus"),
    ("*¶\nCOMMIT\n", "name of a table"),
    ("*¶Filter\nCOMMIT\n", "Filter"),
    ("*filter\r¶\nCOMMIT\r\n", "carriage return"),
    ("*filter\n-A INPUT -j ACCEPT\r¶\nCOMMIT\n", "carriage return"),
    ("*filter\n:¶\nCOMMIT\n", "name of a chain"),
    ("*filter\n:INPUT¶\nCOMMIT\n", "no policy"),
    ("*filter\n:INPUT ¶accept\nCOMMIT\n", "accept"),
    ("*filter\n:INPUT ¶QUEUE\nCOMMIT\n", "QUEUE"),
    ("*filter\n:INPUT DROP ¶[1:x]\nCOMMIT\n", "counters"),
    ("*filter\n:INPUT DROP ¶1:2\nCOMMIT\n", "counters"),
    ("*filter\n:¶abcdefghijklmnopqrstuvwxyz012 - [0:0]\nCOMMIT\n", "28"),
    ("*filter\n¶[1:x] -A INPUT\nCOMMIT\n", "counters"),
    ("*filter\n¶[-1:0] -A INPUT\nCOMMIT\n", "counters"),
    ("*filter\n¶[1:2 -A INPUT\nCOMMIT\n", "counters"),
    ("*filter\n[1:2] ¶INPUT\nCOMMIT\n", "no command"),
    ("*filter\n-A¶\nCOMMIT\n", "-A needs a chain"),
    ("*filter\n-A ¶-j ACCEPT\nCOMMIT\n", "-A needs a chain"),
    ('*filter\n-I INPUT -m comment --comment ¶"x\nCOMMIT\n', "never closed"),
    ('*filter\n[1:2]  -A INPUT -m comment --comment ¶"x\nCOMMIT\n', "never closed"),
    ("*filter\n-I¶\nCOMMIT\n", "-I needs a chain"),
    ("*filter\n-I INPUT ¶0 -j ACCEPT\nCOMMIT\n", "rule number"),
    ("*filter\n-I INPUT ¶x -j ACCEPT\nCOMMIT\n", "rule number"),
    ("*filter\n-D INPUT ¶2147483648\nCOMMIT\n", "rule number"),
    ("*filter\n-D INPUT ¶٣\nCOMMIT\n", "rule number"),
    ("*filter\n-D INPUT ¶²\nCOMMIT\n", "rule number"),
    ("*filter\n-D INPUT ¶08\nCOMMIT\n", "rule number"),
    ("*filter\n-D INPUT ¶" + "1" * 5000 + "\nCOMMIT\n", "rule number"),
    ("*filter\n# one\r\n-A INPUT -j LOG --log-prefix x\r¶\nCOMMIT\n", "carriage return"),
    ("*filter\n-D INPUT 1 ¶-j\nCOMMIT\n", "nothing more"),
    ("*filter\n-R INPUT¶\nCOMMIT\n", "-R needs a rule number"),
    ("*filter\n-R INPUT ¶-j ACCEPT\nCOMMIT\n", "-R needs a rule number"),
    ("*filter\n-P INPUT¶\nCOMMIT\n", "-P needs a policy"),
    ("*filter\n-P INPUT DROP ¶ACCEPT\nCOMMIT\n", "nothing more"),
    ("*filter\n-E WEB¶\nCOMMIT\n", "-E needs a new name"),
    ("*filter\n-N¶\nCOMMIT\n", "-N needs a chain"),
    ("*filter\n-N WEB ¶WEB2\nCOMMIT\n", "nothing more"),
    ("*filter\n-F INPUT ¶1\nCOMMIT\n", "nothing more"),
    ("*filter\n-X ¶-j\nCOMMIT\n", "nothing more"),
    ("*filter\n¶-p tcp -j ACCEPT\nCOMMIT\n", "no command"),
    ("*filter\n  ¶INPUT\nCOMMIT\n", "no command"),
    ("*filter\n ¶*nat\nCOMMIT\n", "no command"),
]


@pytest.mark.parametrize(("marked", "message"), BAD, ids=[message for _, message in BAD])
def test_errors_point_at_what_is_wrong(marked: str, message: str) -> None:
    """Each error names the file, the line and the very column of the word that is wrong."""
    before, _, _ = marked.partition("¶")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    if marked.endswith("¶") and not marked.endswith("\n¶"):
        line, column = line + 1, 1
    elif "carriage" in message:
        column -= 1
    error = failure(marked.replace("¶", ""))
    assert message in error.message
    assert str(error.where) == f"rules.v4:{line}:{column}"


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n\n", "#"])
def test_an_input_without_a_table_is_refused(text: str) -> None:
    """An empty file or one of comments is an error that names the file, which has no such line."""
    error = failure(text)
    assert "no table" in error.message
    assert str(error.where) == "rules.v4"


def test_a_missing_commit_names_where_its_table_begins() -> None:
    """Whoever forgot COMMIT is told of which table, and in which line that began."""
    error = failure("*raw\nCOMMIT\n\n*nat\n-A OUTPUT\n")
    assert "table nat begins in line 4" in error.message


_LINES = st.sampled_from(
    [
        "*filter", "*nat", "COMMIT", ":INPUT DROP [1:2]", ":WEB - [0:0]", "-A INPUT -j ACCEPT",
        "[1:2] -A WEB", "-N X", "-P INPUT DROP", "-D INPUT 1", "# x", "", "-4 -A INPUT", "-E A B",
        '-A X -m comment --comment "a', "-Z", "!", "[", ":", "*", "-", "--", "-I INPUT 99999999999",
    ]
)  # fmt: skip


@given(st.text() | st.lists(_LINES, max_size=8).map("\n".join), st.sampled_from([4, 6]))
def test_any_text_is_a_script_or_bad_input_with_its_place(text: str, family: int) -> None:
    """Whatever the text, there is a script, or BadInput with a place that the text has."""
    if error := refusal(lambda: parse(text, source="f", family=family)):
        where = error.where
        assert where is not None
        assert where.source == "f"
        lines = [*text.split("\n"), ""]
        if where.line:
            assert where.line <= len(lines)
            assert 1 <= where.column <= len(lines[where.line - 1]) + 1
        else:
            assert "no table" in error.message


@given(st.text(st.sampled_from('-A6 4"\\[:]!jx\t'), max_size=14))
def test_quick_and_slow_reading_agree(spec: str) -> None:
    """A rule in iptables-save's own form is read like the same rule with a blank before it."""
    refused = refusal(lambda: one(f" -A INPUT {spec}"))
    if refused is not None:
        # the quick way leaves words to who needs them, so it may take what cannot be split
        open_quote = "never closed" in refused.message
        assert open_quote or refusal(lambda: one(f"-A INPUT {spec}")) is not None
        return
    slow, quick = one(f" -A INPUT {spec}"), one(f"-A INPUT {spec}")
    assert (slow is None) == (quick is None)
    if isinstance(slow, Append) and isinstance(quick, Append):
        words = quick.words if quick.words is not None else split(quick.spec)
        assert slow.words is not None
        assert [w.text for w in words] == [w.text for w in slow.words]


# --- bytes -------------------------------------------------------------------------------------


def test_a_nul_byte_is_refused_where_it_is() -> None:
    """A binary file is refused by the place of its first NUL."""
    with pytest.raises(BadInput, match="NUL") as caught:
        decode(b"*raw\nCOM\0MIT\n", "f.bin")
    assert str(caught.value.where) == "f.bin:2:4"
    with pytest.raises(BadInput, match="NUL") as caught:
        decode("*raw\nä\0".encode(), "f.bin")
    assert str(caught.value.where) == "f.bin:2:2"


@given(st.binary().filter(lambda data: b"\0" not in data))
def test_other_bytes_are_kept(data: bytes) -> None:
    """Bytes that are not UTF-8 become text that turns into the same bytes again."""
    assert decode(data, "f").encode("utf-8", "surrogateescape") == data
