from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nfctl.document import Kind, Node, contents, known, load, shown, standard_input
from nfctl.errors import BadInput, Where, excerpt
from tests.unit.strategies import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PARSERS = ("libyaml", "python")


@contextlib.contextmanager
def parser(name: str) -> Iterator[None]:
    """Read with libyaml, or as on a machine where PyYAML was built without it."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "python":
            patch.delattr(yaml, "CSafeLoader")
        yield


def read(text: str | bytes) -> Node:
    return load(text, "f")


def failure(call: Callable[[], object]) -> BadInput:
    error = refusal(call)
    assert error is not None
    return error


def place(error: BadInput) -> str:
    return str(error.where)


# --- scalars -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("on", Kind.TEXT, "on"),
        ("No", Kind.TEXT, "No"),
        ("off", Kind.TEXT, "off"),
        ("y", Kind.TEXT, "y"),
        ("80:90", Kind.TEXT, "80:90"),
        ("00:11:22:33:44:55", Kind.TEXT, "00:11:22:33:44:55"),
        ("2001-01-01", Kind.TEXT, "2001-01-01"),
        ("1_000", Kind.TEXT, "1_000"),
        ("0b1", Kind.TEXT, "0b1"),
        ("192.0.2.1", Kind.TEXT, "192.0.2.1"),
        ("fd77::1", Kind.TEXT, "fd77::1"),
        ("=", Kind.TEXT, "="),
        ("nULL", Kind.TEXT, "nULL"),
        ("0X10", Kind.TEXT, "0X10"),
        ("1e", Kind.TEXT, "1e"),
        (".", Kind.TEXT, "."),
        ("'80'", Kind.TEXT, "80"),
        ('"true"', Kind.TEXT, "true"),
        ("|\n  80\n", Kind.TEXT, "80\n"),
        ("! 80", Kind.TEXT, "80"),
        ("!!str 80", Kind.TEXT, "80"),
        ("true", Kind.BOOLEAN, True),
        ("FALSE", Kind.BOOLEAN, False),
        ("010", Kind.INTEGER, 10),
        ("-7", Kind.INTEGER, -7),
        ("+7", Kind.INTEGER, 7),
        ("0o17", Kind.INTEGER, 15),
        ("0xfF", Kind.INTEGER, 255),
        ('!!int "7"', Kind.INTEGER, 7),
        ("1.5", Kind.FLOAT, 1.5),
        ("1e3", Kind.FLOAT, 1000.0),
        ("-.Inf", Kind.FLOAT, -math.inf),
        ("", Kind.NULL, None),
        ("~", Kind.NULL, None),
        ("Null", Kind.NULL, None),
        ("# nothing\n", Kind.NULL, None),
    ],
)
def test_scalars_are_those_of_the_core_schema(
    name: str, text: str, kind: Kind, value: object
) -> None:
    """YAML 1.2's: few booleans, decimal integers, no sexagesimal, no dates; quoted is text."""
    with parser(name):
        node = read(text)
    assert node.kind is kind
    assert node.plain() == value
    assert type(node.plain()) is type(value)


def test_a_whole_document() -> None:
    """Mappings, lists, block scalars, anchors: plain() gives what a YAML reader would."""
    text = (
        "a: {b: [1, two, null]}\n"
        "c:\n- |\n  x\n   y\n- >-\n  one\n  line\n"
        "d: &d {e: .nan}\nf: *d\n? g\n: h\n"
    )
    found = read(text).plain()
    assert isinstance(found, dict)
    assert math.isnan(found["d"].pop("e"))
    assert found["f"].keys() == {"e"}
    del found["d"], found["f"]
    assert found == {"a": {"b": [1, "two", None]}, "c": ["x\n y\n", "one line"], "g": "h"}


def test_a_byte_order_mark_and_crlf_count_nothing() -> None:
    """Bytes with a BOM and line ends of two characters: the same values, at the same places."""
    node = read(b"\xef\xbb\xbfa: 1\r\nb: \xc3\xa4 c\r\n")
    assert node.plain() == {"a": 1, "b": "ä c"}
    assert str(node.at(["a"])) == "f:1:4"
    assert str(node.at(["b"])) == "f:2:4"


# What JSON lets stand as it is and YAML does not has to be escaped in both.
json_texts = st.text(
    st.characters(
        exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029\ufeff\ufffe\uffff"
    )
    | st.sampled_from("\n\t\r\x01")
)


@settings(deadline=None)  # a busy machine takes its time
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**60), 10**60)
        | st.floats(allow_nan=False, allow_infinity=False)
        | json_texts,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(json_texts.map(lambda key: f"{key[:99]}>"), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
@example({"null": "on", "1": ["~", "0o7", ".5", "=", "\n", "<<"]})
def test_json_is_read_as_json(value: object) -> None:
    """JSON is YAML: what json writes is read as the same values, whatever is in its strings."""
    text = json.dumps(value, ensure_ascii=False)
    assert json.dumps(read(text).plain(), ensure_ascii=False) == text


# --- what is no document -----------------------------------------------------------------------

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join(f'*{old}' for _ in range(10))}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: 1\n\tb: 2\n", "f:2:1", "nothing begins with|tab"),
        ("a:\n\tb: 2\n", "f:2:1", r"nothing begins with \"\\t\" here \(indent with blanks"),
        ("a: @b", "f:1:4", 'nothing begins with "@" here .quote'),
        ("a: 'b\nc: d\n", "f:1:4", "quoted scalar"),
        ("a: b: c", "f:1:5", "mapping values are not allowed .*quote a text"),
        ("- a\nb\nc", "f:2:1", "could not find expected ':' .a key is followed"),
        ("- a\n b: c\nd", "f:2:3", "mapping values"),
        ("a: [1, 2\n", "f:1:4", "while parsing a flow sequence"),
        ("a: {b: [fd77::1, ::1]}", "f:1:18", "quote a word that begins with"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1", 'the key "a" is there already, in line 1'),
        ("x:\n- {b: 1, 'b': 2}\n", "f:2:10", 'the key "b" is there already, in line 2'),
        ("a: {<<: {}, <<: {}}", "f:1:13", 'the key "<<" is there already'),
        ("a: !!foo b", "f:1:4", r'there is no tag "!!foo" here \(leave'),
        ("a: !local b", "f:1:4", 'there is no tag "!local" here'),
        ("a: !!python/name:os.system x", "f:1:4", "there is no tag"),
        ("a: !!timestamp 2001-01-01", "f:1:4", "there is no tag"),
        ("a: !!int b", "f:1:4", 'the tag "!!int" does not fit text'),
        ("a: !!seq {}", "f:1:4", 'the tag "!!seq" does not fit a mapping'),
        ("a: !foo []", "f:1:4", "there is no tag"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "here begins a second document .one document a file"),
        ("%YAML 1.1\n---\na: on\n", "f:1:1", "this is no YAML 1.1"),
        ("%YAML 2.0\n---\na: on\n", "f:1:1", "incompatible YAML document"),
        ("a: *b", "f:1:4", "there is no anchor &b before this"),
        ("x: &abc 1\na: *abd", "f:2:4", 'did you mean "abc"'),
        ("a: &a [1, *a]", "f:1:11", "the anchor &a holds itself"),
        ("&a {b: {c: *a}}", "f:1:12", "the anchor &a holds itself"),
        (BOMB, "f:5:29", "aliases make more than 100000 values"),
        ("80: x", "f:1:1", 'a key is text, not 80 .quote it: "80"'),
        ("a:\n  true: x", "f:2:3", "a key is text, not true"),
        ("~: x", "f:1:1", "a key is text, not ~"),
        ("?\n: x", "f:1:2", "a key is text, not nothing"),
        ("? [a]\n: b", "f:1:3", "a key is text, not a list"),
        ("{{a: b}: c}", "f:1:2", "a key is text, not a mapping"),
        ("a: &b 1\n*b : c", "f:1:4", "a key is text, not 1"),
        ("a\0b", "f:1:2", "there is a NUL byte"),
        ('a: ["\\0"]', "f:1:5", "no character of a text"),
        ("a: 1\nb: \udcff", "f:2:4", "no UTF-8"),
        (b"a: 1\nb: \xff", "f:2:4", "this byte is no UTF-8 .save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "f:1:1", "no UTF-8"),
        ("a: \ud800", "f:1:4", "half of a surrogate pair"),
        ("a: \x1b[31m", "f:1:4", r"U\+001B must not stand in YAML .in double quotes"),
        ("a: 'b\u2028c'", "f:1:6", r"U\+2028"),
        ("a: b\rc: d", "f:1:5", "carriage return without a line feed"),
        ("- x\n- " + "[" * 100, "f:2:66", "more than 64 levels are too deep"),
        ("[" * 100, "f:1:65", "more than 64 levels are too deep"),
        ("".join(" " * n + "a:\n" for n in range(100)), "f:65:65", "more than 64 levels"),
        ("- &a " + "[" * 40 + "]" * 40 + "\n- " + "[" * 40 + "*a", "f:2:43", "64 levels"),
        ("a: " + "9" * 5000, "f:1:4", "a number of 5000 characters is too long"),
        ("a: b\n<<: c\n", "f:2:5", "<< takes a mapping or a list of them, not text"),
        ("<<: [{}, 1]\n", "f:1:10", "<< takes a mapping or a list of them, not an integer"),
    ],
)
def test_what_is_no_document_is_refused_at_its_place(
    name: str, text: str | bytes, where: str, message: str
) -> None:
    """Syntax, keys, tags, anchors, characters and depth: BadInput, its place and the line there."""
    with parser(name):
        error = failure(lambda: read(text))
    assert place(error) == where, error
    assert re.search(message, f"{error.message} ({error.hint})"), error
    assert error.excerpt.split("\n")[1].index("^") == error.where.column + 1  # type: ignore[union-attr]


def test_a_deep_bomb_takes_no_time() -> None:
    """What is nested or aliased without measure is refused when it begins, not when it is built."""
    start = time.monotonic()
    for text in (BOMB * 100, "[" * 1_000_000, "{a: " * 300_000, "- " * 500_000):
        failure(lambda text=text: read(text))  # type: ignore[misc]
    assert time.monotonic() - start < 5  # seconds; it takes a tenth


def test_the_excerpt_shows_nothing_that_a_terminal_obeys() -> None:
    """The line of an error is printable whatever is in it, and the caret still fits."""
    error = failure(lambda: read("a:\x1b[31m \0"))
    assert error.excerpt == "  a:?[31m ?\n    ^"


def test_of_a_long_line_the_excerpt_shows_what_is_around_the_place() -> None:
    """A line of thousands of characters is cut to some, and the caret is under the right one."""
    text = "a: [" + "x, " * 1000 + "*y, " + "x, " * 1000 + "]"
    error = failure(lambda: read(text))
    line, caret = error.excerpt.split("\n")
    assert len(line) < 130
    assert line[caret.index("^") :].startswith("*y, ")


def test_an_excerpt_of_a_place_without_a_line_is_empty() -> None:
    """No place, no line in it, or one behind the end: there is nothing to show."""
    for where in (None, Where("f"), Where("f", 3, 1)):
        assert excerpt("a\nb", where) == ""
    assert excerpt("a\tb\r\nc", Where("f", 1, 3)) == "  a b\n    ^"


PIECES = (
    *("a", "b: ", "- ", "? ", ": ", "{", "}", "[", "]", ", ", "\n", "  ", "\t", "'", '"', "|\n"),
    *(">-\n ", "&x ", "*x", "!!str ", "!t ", "<<: ", "#", "---\n", "...\n", "%YAML 1.2\n"),
    *("\\", "\\x41", "\\ud800", "\\UFFFFFFFF", "~", "0", "1e9", "\r\n", "\r", "ä", "\0"),
    *("\ufeff", "\u2028", "\udc80", "@", "`", "%", "!", "&", "*", "!<", ">", "!%ff ", "|2\n"),
)
yamlish = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@pytest.mark.parametrize("name", PARSERS)
@settings(deadline=None)  # a busy machine takes its time
@given(text=st.text() | yamlish)
@example(text='"\\UFFFFFFFF"')
@example(text='"\\ud800"')
def test_any_text_is_a_document_or_bad_input(name: str, text: str) -> None:
    """Whatever is read, and by either parser: nodes whose places are in the text, or BadInput."""

    def check(node: Node) -> None:
        where = node.where
        assert 1 <= where.line <= text.count("\n") + 1
        for line in (1, 2, 9):
            inner = node.inner(line, 2)
            assert 1 <= inner.line <= text.count("\n") + 2
        for child in [*node.children, *(part for pair in node.pairs.values() for part in pair)]:
            check(child)

    with parser(name):
        error = refusal(lambda: read(text))
        if error is None:
            node = read(text)
            check(node)
            node.plain()
        else:
            assert error.where is not None
            assert error.where.line <= text.count("\n") + 1


@settings(deadline=None)  # a busy machine takes its time
@given(st.binary())
def test_any_bytes_are_a_document_or_bad_input(data: bytes) -> None:
    """No bytes make another exception than BadInput."""
    with contextlib.suppress(BadInput):
        read(data).plain()


# --- merge keys --------------------------------------------------------------------------------


def test_merge_keys() -> None:
    """A mapping's own keys win, then the first of those merged; merges go through several."""
    text = (
        "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\n"
        "c: &c {<<: *a, y: 3}\nd: {<<: [*b, *a], w: 4}\ne: {<<: *c}\nf: {'<<': 1}\n"
    )
    found = read(text).plain()
    assert isinstance(found, dict)
    assert found["c"] == {"x": 1, "y": 3}
    assert found["d"] == {"x": 1, "y": 2, "z": 2, "w": 4}
    assert found["e"] == {"x": 1, "y": 3}
    assert found["f"] == {"<<": 1}


# --- what a node should be ---------------------------------------------------------------------


DOCUMENT = "name: router\nport: 80\nhosts:\n  - a\n  - {b: no}\nnone:\nquoted: '80'\nratio: 0.5\n"


@pytest.mark.parametrize(
    ("call", "where", "message", "hint"),
    [
        (
            lambda n: n.mapping(required=("name",), optional=("ports", "hosts")),
            *("f:2:1", 'there is no key "port" here'),
            'did you mean "ports"? known are name, ports, hosts',
        ),
        (
            lambda n: n.mapping(required=("x",), optional=n.pairs),
            *("f:1:1", 'the key "x" is missing', ""),
        ),
        (lambda n: n.list(), "f:1:1", "a list is expected here, not a mapping", ""),
        (
            lambda n: value(n, "name").mapping(),
            *("f:1:7", 'a mapping is expected here, not "router"', ""),
        ),
        (
            lambda n: value(n, "port").items(),
            *("f:2:7", "a mapping is expected here, not 80", ""),
        ),
        (
            lambda n: value(n, "port").text(),
            *("f:2:7", "text is expected here, not 80", 'quote it: "80"'),
        ),
        (
            lambda n: value(n, "none").text(what="host name"),
            *("f:6:6", "a host name is expected here, not nothing", ""),
        ),
        (
            lambda n: value(n, "name").text("[A-Z]+", "chain", "big letters"),
            *("f:1:7", '"router" is no chain', "big letters"),
        ),
        (
            lambda n: value(n, "hosts").scalar(),
            *("f:4:3", "one value is expected here, not a list", ""),
        ),
        (
            lambda n: value(n, "quoted").integer(),
            *("f:7:9", 'an integer is expected here, not "80"', "write it without quotes"),
        ),
        (
            lambda n: value(n, "ratio").integer(),
            *("f:8:8", "an integer is expected here, not 0.5", ""),
        ),
        (
            lambda n: value(n, "port").integer(1, 79),
            *("f:2:7", "80 is out of range", "1 at least, 79 at most"),
        ),
        (lambda n: value(n, "port").integer(81), "f:2:7", "80 is out of range", "81 at least"),
        (
            lambda n: n.pairs["hosts"][1].children[1].pairs["b"][1].boolean(),
            *("f:5:9", 'true or false is expected here, not "no"', "write false"),
        ),
        (
            lambda n: value(n, "name").choice("route", "bridge"),
            *("f:1:7", '"router" is not possible here'),
            'did you mean "route"? it is route, bridge',
        ),
    ],
)
def test_a_node_that_is_not_what_it_should_be(
    call: Callable[[Node], object], where: str, message: str, hint: str
) -> None:
    """Each check says what was expected, what is there, and where."""
    error = failure(lambda: call(read(DOCUMENT)))
    assert (place(error), error.message, error.hint) == (where, message, hint)
    line = DOCUMENT.split("\n")[error.where.line - 1]  # type: ignore[union-attr]
    assert error.excerpt.startswith(f"  {line}\n")


def value(node: Node, name: str) -> Node:
    return node.pairs[name][1]


def test_a_node_that_is_what_it_should_be() -> None:
    """The checks return Python values."""
    node = read("{a: b, c: [1, 2], d: 3, e: true, f: , g: 0x10}")
    found = node.mapping(required="ac", optional="defghi")
    assert list(found) == list("acdefg")
    assert found["a"].text("[a-z]", "letter") == "b"
    assert found["a"].choice("a", "b") == "b"
    assert [child.integer(1, 2) for child in found["c"].list()] == [1, 2]
    assert found["d"].one_or_many() == [found["d"]]
    assert len(found["c"].one_or_many()) == 2
    assert found["e"].boolean() is True
    assert [found["d"].scalar(), found["e"].scalar(), found["a"].scalar()] == ["3", "true", "b"]
    assert not found["f"].list()
    assert not found["f"].one_or_many()
    assert not found["f"].items()
    assert found["f"].mapping(optional="a") == {}
    assert found["g"].integer() == 16
    assert [key.text() for key, _ in node.items()] == list("abcdefg".replace("b", ""))


def test_places_by_keys_and_indices() -> None:
    """at() follows a row of keys and indices as far as there is one, to a value or to its key."""
    node = read("a:\n- b: 1\n  c: {d: 2}\n- x\n")
    assert node.at(()) == Where("f", 1, 1)
    assert node.at(("a", 0, "c", "d")) == Where("f", 3, 10)
    assert node.at(("a", 0, "c", "d"), key=True) == Where("f", 3, 7)
    assert node.at(("a", "list[Rule]", 0, "Rule", "b")) == Where("f", 2, 6)
    assert node.at(("a", 1, "y")) == Where("f", 4, 3)
    assert node.at(("a", 7)) == Where("f", 2, 1)
    assert node.key("a").where == Where("f", 1, 1)


# --- places inside of a text -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column", "at"),
    [
        ("k: |\n  one\n  two\n", 1, 1, "2:3"),
        ("k: |\n  one\n  two\n", 2, 2, "3:4"),
        ("k: |\n  one\n\n  two\n", 3, 1, "4:3"),
        ("k: |\n  one\n  two\n", 2, 4, "3:6"),
        ("k: |\n  one\n  two\n", 9, 9, "3:6"),
        ("k: !!str &x |2- # why\n    one\n   two\n", 1, 3, "2:5"),
        ("k: !!str &x |2- # why\n    one\n   two\n", 2, 2, "3:4"),
        ("k: |\n\n\n     one\n", 3, 2, "4:7"),
        ("k: |\r\n  one\r\n  two\r\n", 2, 1, "3:3"),
        ("k: |\r\n  one\r\n  two\r\n", 2, 4, "3:6"),
        ("k: >\n  one\n  two\n\n  three\n", 1, 5, "3:3"),
        ("k: >\n  one\n  two\n\n  three\n", 2, 2, "5:4"),
        ("k: one two", 1, 5, "1:8"),
        ("k: one\n   two", 1, 5, "2:4"),
        ("k: 'it''s so'", 1, 6, "1:11"),
        ('k: "a\\tb\\x41 c"', 1, 3, "1:8"),
        ('k: "a\\tb\\x41 c"', 1, 4, "1:9"),
        ('k: "a\\tb\\x41 c"', 1, 6, "1:14"),
        ('k: "*filter\\n:X y"', 2, 1, "1:14"),
        ('k: "one\\\n   \\  two"', 1, 6, "2:7"),
        ("k: one two", 1, 4, "1:7"),
        ("k: one two", 1, 8, "1:11"),
    ],
)
def test_places_inside_of_a_text(text: str, line: int, column: int, at: str) -> None:
    """A line and a column of a scalar's text are found in the file, past folds and escapes."""
    node = read(text).pairs["k"][1]
    assert str(node.inner(line, column)) == f"f:{at}"


@settings(deadline=None)  # a busy machine takes its time
@given(
    st.lists(st.text("ab \t:#\\\"'ä", max_size=8), min_size=1, max_size=6),
    st.sampled_from(["|", '"', "'"]),
    st.data(),
)
def test_the_character_at_an_inner_place_is_the_one_of_the_text(
    lines: list[str], style: str, data: st.DataObject
) -> None:
    """Wherever a text has a character that is no blank, the file has it at the inner place."""
    raw = "\n".join(lines)
    if style == "|":
        text = "k:\n  - |2\n" + "".join(f"    {line}\n" for line in lines)
    elif style == '"':
        text = f"k:\n  - {json.dumps(raw)}\n"
    else:
        raw = raw.replace("\n", "x").replace("\t", "x")
        text = f"k:\n  - '{raw.replace(chr(39), chr(39) * 2)}'\n"
    (node,) = read(text).pairs["k"][1].children
    found = [(i, char) for i, char in enumerate(raw) if not char.isspace()]
    if style == "|":
        assert node.raw.rstrip("\n") == raw.rstrip("\n")
    else:
        assert node.raw == raw
    if not found:
        return
    index, char = data.draw(st.sampled_from(found))
    line, column = raw.count("\n", 0, index) + 1, index - raw.rfind("\n", 0, index)
    where = node.inner(line, column)
    there = text.split("\n")[where.line - 1][where.column - 1 :]
    assert there.startswith((char, "\\" if style == '"' else char))
    if char == "ä" and style == '"':
        assert there.startswith("\\u00e4")


# --- the rest ----------------------------------------------------------------------------------


def test_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be read is returned as bytes; what cannot says why, in one error."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"a\xff")
    assert contents(str(file)) == b"a\xff"
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (file / "x", "Not a directory"),
        ("a\0b", "null byte"),
    ):
        assert why in failure(lambda path=path: contents(str(path))).message  # type: ignore[misc]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"b\xff")))
    assert standard_input() == b"b\xff"
    monkeypatch.setattr(sys, "stdin", None)
    assert failure(standard_input).message == "cannot read standard input: it is closed"


def test_words_in_messages() -> None:
    """A word is quoted on one line and cut short; a hint names the nearest word and all of them."""
    assert shown("a\nb\x1b") == '"a\\nb\\x1b"'
    assert len(shown("x" * 1000)) == 62
    assert known("hots", ["hosts", "links"]) == 'did you mean "hosts"? known are hosts, links'
    assert known("zzz", ["hosts"], "there are") == "there are hosts"
    assert known("x", []) == ""


def test_reading_the_module_does_not_import_yaml() -> None:
    """PyYAML takes 20 ms to import, which commands that read no document do not pay."""
    import subprocess

    code = "import sys, nfctl.document; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
