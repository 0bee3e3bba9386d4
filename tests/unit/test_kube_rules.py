from __future__ import annotations

import pytest

from nfctl.errors import AnswerNo, BadInput
from nfctl.services.observed import rules
from nfctl.services.observed.prefix import prefixes, the_prefix
from nfctl.services.observed.rules import Rule, parse, said
from tests.unit.kube import DATA, MODERN

FRAME = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{}COMMIT\n"
SIX = "-A KUBE-SERVICES -d fd00::1/128 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA\n"


def only(line: str) -> Rule:
    """Read one rule of a service's chain."""
    chain = line.partition("-A ")[2].partition(" ")[0]
    (dump,) = parse(FRAME.format(f":{chain} - [0:0]\n{line}\n"))
    (rule,) = dump.chains("nat")[chain]
    return rule


@pytest.mark.parametrize(
    ("usual", "unusual"),
    [
        (
            '-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment "a/b:c cluster IP" '
            "-m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA",
            '-A KUBE-SERVICES -m comment --comment "a/b:c cluster IP" -m tcp -p tcp '
            "-d 10.0.0.1/32 --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA",
        ),
        (
            "-A KUBE-SERVICES ! -s 10.0.0.0/8 -d 10.0.0.1/32 -p udp -m udp --dport 53 "
            "-j KUBE-MARK-MASQ",
            "-A KUBE-SERVICES -p udp --dport 53 -d 10.0.0.1/32 ! -s 10.0.0.0/8 -j KUBE-MARK-MASQ",
        ),
        (
            "[7:420] -A KUBE-SERVICES -m statistic --mode random --probability 0.5 -g X",
            "[7:420] -A KUBE-SERVICES  -m statistic --mode random --probability 0.5 -g X",
        ),
        (
            "-A KUBE-SERVICES -m recent --rcheck --seconds 60 --reap --name L --mask "
            "255.255.255.255 --rsource -j X",
            "-A KUBE-SERVICES -m recent --name L --rcheck --seconds 60 --reap -j X",
        ),
        (
            "-A KUBE-SERVICES -p tcp -m recent --set --name L --rsource -m tcp -j DNAT "
            "--to-destination 10.0.0.1:80",
            "-A KUBE-SERVICES -m recent --name L --set -m tcp -p tcp -j DNAT "
            "--to-destination 10.0.0.1:80",
        ),
        (
            "-A KUBE-SERVICES -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 8 -j DROP",
            "-A KUBE-SERVICES -p tcp -m tcp --dport 8 -m addrtype --dst-type LOCAL -j DROP",
        ),
        (
            "-A KUBE-SERVICES -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A KUBE-SERVICES -m mark  --mark 0x4000/0x4000 -j ACCEPT",
        ),
    ],
)
def test_the_quick_way_reads_what_the_thorough_one_reads(usual: str, unusual: str) -> None:
    """A rule as iptables-save prints it, and the same one in another order, are one tuple."""
    first, second = only(usual), only(unusual)
    assert rules._USUAL.fullmatch(usual)
    assert not rules._USUAL.fullmatch(unusual)
    assert said(first) == said(second)
    assert first._replace(comment=None) == second._replace(comment=None)


def test_what_is_not_known_is_kept() -> None:
    """Conditions that are none of kube-proxy's stand in ``other``, counting matches do not."""
    rule = only("-A KUBE-SERVICES ! -i cni0 -p tcp -m physdev ! --physdev-is-in -j KUBE-MARK-MASQ")
    assert rule.other == "! -i cni0 -m physdev ! --physdev-is-in"
    rule = only("-A KUBE-SERVICES -p tcp -m nfacct --nfacct-name  ct -m tcp --dport 80 -j X")
    assert (rule.other, rule.port) == ("", "80")
    rule = only("-A KUBE-SERVICES -m mark ! --mark 0x4000/0x4000 -j RETURN")
    assert rule.mark == "! 0x4000/0x4000"
    assert only("-A KUBE-SERVICES -p tcp -m tcp ! --dport 80 -j X").port is None


def test_rules_of_other_programs_are_read_for_their_target() -> None:
    """In a foreign chain a comment that looks like a jump is none."""
    line = '-A OTHER -i lo -m comment --comment "x -j WRONG \\" -j WRONG" -j RIGHT --to 1'
    (dump,) = parse(FRAME.format(f":OTHER - [0:0]\n{line}\n-A OTHER\n"))
    rule, empty = dump.chains("nat")["OTHER"]
    assert (rule.target, rule.argument, empty.target) == ("RIGHT", " --to 1", None)


def test_the_family_is_known_by_the_addresses() -> None:
    """The first address in a rule tells the family, whatever it stands in."""
    assert parse(MODERN)[0].family == 4
    for line in (
        SIX,
        "-A X -s fd00::/64 -j Y\n",
        "-A X -p tcp -j DNAT --to-destination [fd00::1]:80\n",
        "-A X -j REJECT --reject-with icmp6-port-unreachable\n",
    ):
        assert parse(FRAME.format(":X - [0:0]\n" + line))[0].family == 6
    assert parse(FRAME.format(""))[0].family == 4
    assert parse(FRAME.format(""), family=6)[0].family == 6


def test_a_text_of_both_families() -> None:
    """What two calls of iptables-save left in one file is one dump a family."""
    four, six = parse(MODERN + FRAME.format(SIX), "dump")
    assert (four.family, six.family) == (4, 6)
    assert set(four.tables) == {"mangle", "filter", "nat"}
    assert set(six.tables) == {"nat"}
    (rule,) = six.chains("nat")["KUBE-SERVICES"]
    assert six.text(rule) == SIX.partition("KUBE-SERVICES ")[2].strip()


def test_line_ends_of_another_system() -> None:
    """A file that went through Windows is read as it was."""
    (dump,) = parse(MODERN.replace("\n", "\r\n"))
    assert dump.tables == parse(MODERN)[0].tables


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", "f", "no table"),
        ("# nothing\n", "f", "no table"),
        ("-A X -j Y\n", "f:1:1", "outside a table"),
        ("*nat\n-A X -j Y\n", "f:1:1", "COMMIT is missing"),
        ("*nut\nCOMMIT\n", "f:1:1", "no table 'nut'"),
        ("*nat\n:X - [0:0]\n-I X -j Y\nCOMMIT\n", "f:3:1", "no line of iptables-save"),
        ('*nat\n:INPUT - [0:0]\n-A INPUT --foo "x\nCOMMIT\n', "f:3:", "never closed"),
    ],
)
def test_what_is_no_dump_is_refused(text: str, place: str, message: str) -> None:
    """The error says what is wrong, and where."""
    with pytest.raises(BadInput) as found:
        parse(text, "f")
    assert message in found.value.message
    assert str(found.value.where).startswith(place)


def test_the_prefix_is_found() -> None:
    """One prefix is found by itself; of two one has to be said; a lone chain is nobody's."""
    assert prefixes(parse(MODERN)) == ["KUBE-"]
    mine = MODERN.replace("KUBE-", "NFCTL-")
    assert the_prefix(parse(mine), None) == "NFCTL-"
    both = parse(MODERN) + parse(mine)
    assert prefixes(both) == ["KUBE-", "NFCTL-"]
    with pytest.raises(BadInput, match="several: KUBE-, NFCTL-"):
        the_prefix(both, None)
    assert the_prefix(both, "NFCTL") == the_prefix(both, "NFCTL-") == "NFCTL-"
    lone = MODERN.replace("*nat\n", "*nat\n:MY-SERVICES - [0:0]\n")
    assert the_prefix(parse(lone), None) == "KUBE-"
    with pytest.raises(AnswerNo, match=r"begin with LB-.*KUBE-"):
        the_prefix(both, "LB")
    with pytest.raises(AnswerNo, match="no chains of services"):
        the_prefix(parse("*nat\nCOMMIT\n"), None)


def test_what_is_left_of_chains_has_a_prefix_too() -> None:
    """Without its entrance the chains of endpoints tell the prefix."""
    kept = ("*", "COMMIT", ":KUBE-SEP-", "-A KUBE-SEP-")
    text = "\n".join(line for line in MODERN.split("\n") if line.startswith(kept))
    assert prefixes(parse(text)) == ["KUBE-"]


def test_saved_rules_of_every_version_are_of_the_quick_form() -> None:
    """Nearly every rule of every kube-proxy is read by the one regular expression."""
    for file in DATA.glob("*.rules"):
        lines = [line for line in file.read_text().split("\n") if line.startswith("-A KUBE-")]
        slow = [line for line in lines if not rules._USUAL.fullmatch(line)]
        assert len(slow) <= 6, slow
