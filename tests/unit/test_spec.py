from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset import Setting, Spec, Use
from tests.unit.strategies import refusal, specs


@given(st.sampled_from([4, 6]).flatmap(lambda family: st.tuples(st.just(family), specs(family))))
def test_a_specification_printed_and_read_is_the_same(made: tuple[int, Spec]) -> None:
    """parse(text(x)) is x, for header, matches, options of every shape, target and goto."""
    family, spec = made
    assert Spec.parse(spec.text(), family=family) == spec


def test_a_rule_taken_apart() -> None:
    """Every part of a rule as iptables-save prints it is found under its name."""
    spec = Spec.parse(
        "! -s 10.0.0.0/8 -d 192.0.2.1/32 -i eth0 ! -o wg+ -p tcp -f -m tcp --dport 80:90 "
        "--tcp-flags FIN,SYN SYN -m set ! --match-set bad src,dst "
        '-m comment --comment "web -j DROP" -j LOG --log-prefix "x: " --log-level 4'
    )
    assert spec == Spec(
        source=Setting("10.0.0.0/8", inverted=True),
        destination=Setting("192.0.2.1/32"),
        in_interface=Setting("eth0"),
        out_interface=Setting("wg+", inverted=True),
        protocol=Setting("tcp"),
        fragment=Setting(""),
        matches=(
            Use("tcp", ("--dport", "80:90", "--tcp-flags", "FIN,SYN", "SYN")),
            Use("set", ("!", "--match-set", "bad", "src,dst")),
            Use("comment", ("--comment", "web -j DROP")),
        ),
        target=Use("LOG", ("--log-prefix", "x: ", "--log-level", "4")),
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("--source 10.0.0.1 --protocol tcp --jump ACCEPT", "-s 10.0.0.1 -p tcp -j ACCEPT"),
        ("--src 10.0.0.1 --dst 10.0.0.2", "-s 10.0.0.1 -d 10.0.0.2"),
        ("--in-interface a --out-interface b --fragment", "-i a -o b -f"),
        ("--match tcp --dport 1 --goto CHAIN", "-m tcp --dport 1 -g CHAIN"),
        ("-j ACCEPT -s 10.0.0.1", "-s 10.0.0.1 -j ACCEPT"),
        ("-p tcp --dport 80", "-p tcp -m tcp --dport 80"),
        ("-p UDP --sport 80", "-p UDP -m udp --sport 80"),
    ],
)
def test_spellings_of_the_same(text: str, same: str) -> None:
    """Long and short options, any order, and a match implied by the protocol are one thing."""
    assert Spec.parse(text) == Spec.parse(same)
    assert Spec.parse(text).text() == same


def test_options_without_a_value_take_none() -> None:
    """What follows --syn is another option and what follows --comment a value, dash or not."""
    assert Spec.parse("-p tcp --syn -j ACCEPT").target == Use("ACCEPT")
    assert Spec.parse("-m comment --comment -j").matches == (Use("comment", ("--comment", "-j")),)
    ecn = Spec.parse("-p tcp -m ecn --ecn-tcp-cwr -j ECN --ecn-tcp-remove")
    assert ecn.matches == (Use("ecn", ("--ecn-tcp-cwr",)),)
    assert Spec.parse("-m connlabel --label x --set").matches[0].options == (
        "--label",
        "x",
        "--set",
    )
    assert Spec.parse("-j MARK --set-mark=0x1 -s 10.0.0.1").source == Setting("10.0.0.1")


@pytest.mark.parametrize(
    ("marked", "message"),
    [
        ("¶-s", "requires an argument"),
        ("-p tcp ¶-j", "requires an argument"),
        ("-s ¶10.0.0.256", "10.0.0.256"),
        ("-s ¶::1", "::1"),
        ("-d ¶10.0.0.0/40", "invalid mask"),
        ("-s 10.0.0.1 ¶-s 10.0.0.2", "multiple -s"),
        ("-s 10.0.0.1 ¶--source 10.0.0.2", "multiple --source"),
        ("-p ¶bogus", "unknown protocol"),
        ("-i ¶abcdefghijklmnop", "shorter than"),
        ("! ¶! -s 10.0.0.1", "consecutive !"),
        ("-j ACCEPT ¶!", "nothing appropriate following !"),
        ("! ¶-j ACCEPT", "cannot have !"),
        ("-j ACCEPT ¶-j DROP", "multiple -j"),
        ("-j ACCEPT ¶-g X", "multiple -j"),
        ("¶ACCEPT", "Bad argument"),
        ("-p tcp ¶80", "Bad argument"),
        ("¶--dport 80", "unknown option"),
        ("-p tcp ¶-x 1", "Bad argument"),
        ("-p tcp ¶-- -j ACCEPT", "Bad argument"),
        ('-m comment --comment ¶"x', "never closed"),
    ],
)
def test_errors_say_where(marked: str, message: str) -> None:
    """Each error names the source, the line, and the column of the word that is wrong."""
    column = marked.index("¶") + 1
    with pytest.raises(BadInput) as caught:
        Spec.parse(marked.replace("¶", ""), source="rules", line=3)
    assert message in caught.value.message
    assert str(caught.value.where) == f"rules:3:{column}"


def test_fragments_are_of_ipv4_only() -> None:
    """-f is refused for IPv6, with what to use instead."""
    with pytest.raises(BadInput, match="-m frag"):
        Spec.parse("-f -j DROP", family=6)


@given(st.text(max_size=60))
def test_any_text_is_a_specification_or_bad_input(text: str) -> None:
    """No text makes any exception but BadInput, whose column is inside the text or just after."""
    error = refusal(lambda: Spec.parse(text, source="s"))
    if error is not None:
        assert error.where is not None
        assert 1 <= error.where.column <= len(text) + 1


_PIECES = ["-s", "-p", "tcp", "!", "-j", "-m", "--dport", "80", "10.0.0.1", "-f", "--", "-", '""']


@given(st.lists(st.sampled_from(_PIECES), max_size=9))
def test_any_words_are_a_specification_or_bad_input(words: list[str]) -> None:
    """Options in any senseless order end in a specification that prints itself, or BadInput."""
    text = " ".join(words)
    if refusal(lambda: Spec.parse(text)) is None:
        spec = Spec.parse(text)
        assert Spec.parse(spec.text()) == spec


def test_settings_and_uses_print_as_typed() -> None:
    """str() of the parts is what a person would type."""
    assert str(Setting("10.0.0.1", inverted=True)) == "!10.0.0.1"
    assert str(Setting("tcp")) == "tcp"
    assert str(Use("comment", ("--comment", "a b"))) == '--comment "a b"'
