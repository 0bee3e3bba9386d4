from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset.words import Word, join, quote, split
from tests.unit.strategies import characters

texts = st.text(characters)
words = st.lists(texts, max_size=6)


def plain(line: str) -> list[str]:
    return [word.text for word in split(line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        (" \t ", []),
        ("-p tcp\t--dport  80 ", ["-p", "tcp", "--dport", "80"]),
        ('--comment "two words" -j X', ["--comment", "two words", "-j", "X"]),
        ('--comment ""', ["--comment", ""]),
        (r'"a \"b\" \\ c"', [r'a "b" \ c']),
        (r'"it\'s"', ["it's"]),
        (r"a\ b", ["a\\", "b"]),
        ("it's 'so so'", ["it's", "'so", "so'"]),
        ('ab"c d"', ["abc d"]),
        ('"a b"cd', ["a b", "cd"]),
        ('"a""b"', ["a", "b"]),
        ('a"b c"d e', ["ab c", "d", "e"]),
        ("a\rb\vc", ["a\rb\vc"]),
    ],
)
def test_a_line_is_split_as_iptables_restore_does(line: str, expected: list[str]) -> None:
    """Blanks and tabs part words, quotes hold them together and end them, nothing else counts."""
    assert plain(line) == expected


@pytest.mark.parametrize(
    ("line", "at"), [('-m comment --comment "x', 22), ('"', 1), ('a"b', 2), ('"a" "b\\"', 5)]
)
def test_an_open_quote_is_refused_where_it_opens(line: str, at: int) -> None:
    """A quote that is never closed is an error whose column is the quote's."""
    with pytest.raises(BadInput, match="never closed") as caught:
        split(line, source="file", number=7)
    assert str(caught.value.where) == f"file:7:{at}"
    assert line[at - 1] == '"'


def test_columns_count_from_the_line_s_first_character() -> None:
    """The column given for the first character is added to every word's, and to the error's."""
    assert split('a "b c"', column=5) == [Word("a", 5), Word("b c", 7)]
    with pytest.raises(BadInput) as caught:
        split('a "b', source="f", number=1, column=10)
    assert caught.value.where is not None
    assert caught.value.where.column == 12


@given(words)
@example(["", "-", "!", "a\\", '"', "\\", "'", "a\tb"])
def test_joined_words_are_split_into_the_same(listed: list[str]) -> None:
    """What join() puts together, split() takes apart, whatever the words are."""
    assert plain(join(listed)) == listed


@given(texts)
def test_a_quoted_word_is_one_word(word: str) -> None:
    """quote() makes any text one word that split() gives back unchanged."""
    assert plain(quote(word)) == [word]


@given(st.lists(st.tuples(st.text(" \t", min_size=1), texts), max_size=6))
def test_every_word_knows_its_column(parts: list[tuple[str, str]]) -> None:
    """At a word's column there stands its first character, or the quote before it."""
    line = "".join(blank + join([word]) for blank, word in parts)
    at = 0
    for (blank, text), word in zip(parts, split(line), strict=True):
        at += len(blank)
        assert word == (text, at + 1)
        at += len(join([text]))


@given(st.text(' \t"\\ab!-'))
def test_no_line_is_split_into_words_with_what_was_not_there(line: str) -> None:
    """Splitting only ever leaves out blanks, quotes and backslashes; the rest stays in order."""
    try:
        found = "".join(plain(line))
    except BadInput:
        return
    assert [c for c in found if c in "ab!-"] == [c for c in line if c in "ab!-"]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("INPUT-1_x", "INPUT-1_x"),
        ("a b", '"a b"'),
        ("a.b", '"a.b"'),
        ("", '""'),
        ('"', r'"\""'),
        ("\\", r'"\\"'),
        ("'", r'"\'"'),
        ("ä", '"ä"'),
    ],
)
def test_quoting_is_that_of_libxtables(word: str, quoted: str) -> None:
    """Only letters, digits, - and _ go without quotes, and three characters get a backslash."""
    assert quote(word) == quoted


def test_joining_quotes_only_what_has_to_be() -> None:
    """Words without blanks and quotes are left as they are, addresses and options among them."""
    assert join(["-s", "10.0.0.0/8", "--comment", "a b"]) == '-s 10.0.0.0/8 --comment "a b"'
    assert join(["x\r"]) == '"x\r"'  # or the line would look as if it ended in CRLF
