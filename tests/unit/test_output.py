from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.cli import answer, output
from nfctl.cli.output import show_chains, show_table
from nfctl.text import human, visible


class Stream(io.StringIO):
    """A standard output that is a terminal or a pipe, UTF-8 or not."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def print_to(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> None:
    # pytest exchanges sys.stdout itself between a fixture and its test
    for module in (answer, output):
        monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=stream))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard output be a terminal of 80 columns."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    print_to(monkeypatch, Stream(terminal=True, encoding="utf-8"))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard output be a pipe."""
    print_to(monkeypatch, Stream(terminal=False, encoding="utf-8"))


def rule(number: int = 1, **changed: Any) -> dict[str, Any]:
    return {
        "number": number,
        "packets": 0,
        "bytes": 0,
        "spec": "",
        "source": None,
        "destination": None,
        "in_interface": None,
        "out_interface": None,
        "protocol": None,
        "fragment": None,
        "matches": [],
        "target": None,
        "goto": False,
        **changed,
    }


def setting(value: str, *, inverted: bool = False) -> dict[str, Any]:
    return {"value": value, "inverted": inverted}


def use(name: str, *options: str) -> dict[str, Any]:
    return {"name": name, "options": list(options)}


def chain(name: str = "INPUT", *rules: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "name": name,
        "builtin": True,
        "policy": "ACCEPT",
        "packets": 0,
        "bytes": 0,
        "references": 0,
        "rules": list(rules),
        **changed,
    }


def document(*chains: dict[str, Any]) -> dict[str, Any]:
    return {"family": 4, "table": "filter", "chains": list(chains)}


WIDE = rule(
    target=use("DROP"),
    protocol=setting("tcp"),
    source=setting("192.168.100.0/24"),
    matches=[
        use("conntrack", "--ctstate", "NEW,RELATED,ESTABLISHED"),
        use("comment", "--comment", "administrators come in here, and nobody else does"),
        use("string", "--string", "x" * 100, "--algo", "bm"),
    ],
)


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (1234, "1.2k"),
        (9949, "9.9k"),
        (9950, "10k"),
        (999_499, "999k"),
        (999_500, "1.0M"),
        (34_000_000, "34M"),
        (2**64 - 1, "18E"),
    ],
)
def test_counts_for_people(number: int, text: str) -> None:
    """A count is at most three digits and a unit of thousands."""
    assert human(number) == text


@given(st.integers(0, 2**64 - 1))
def test_a_humanised_count_is_near_the_true_one(number: int) -> None:
    """What is shown is short, and off by a twentieth at most."""
    text = human(number)
    assert len(text) <= 4
    factor = 1000 ** (" kMGTPE".index(text[-1])) if not text[-1].isdigit() else 1
    assert abs(float(text.rstrip("kMGTPE")) * factor - number) <= number / 20


@pytest.mark.usefixtures("pipe")
def test_exact_counts() -> None:
    """With exact, counters are printed to the last packet."""
    shown = document(chain("INPUT", rule(packets=1_234_567, bytes=2**64 - 1), packets=7654321))
    assert "1.2M" in show_table(shown)
    assert "18E" in show_table(shown)
    assert "1234567  18446744073709551615" in show_table(shown, exact=True)
    assert "7654321 packets" in show_table(shown, exact=True)


# --- layout ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("pipe")
def test_a_table_in_a_pipe() -> None:
    """Headings, numbers to the right, columns nobody fills left out, no colour, no padding."""
    shown = show_table(
        document(
            chain("INPUT", rule(1, target=use("ACCEPT"), packets=12345), rule(2), policy="DROP"),
            chain("WEB", builtin=False, policy=None, references=1),
            chain("OLD", builtin=False, policy=None, references=2),
        )
    )
    assert shown == (
        "table filter, IPv4\n\n"
        "chain INPUT, policy DROP (0 packets, 0 bytes)\n"
        "  #  pkts  bytes  target\n"
        "  1   12k      0  ACCEPT\n"
        "  2     0      0  -\n\n"
        "chain WEB (1 jump to it)\n\n"
        "chain OLD (2 jumps to it)\n"
    )


@pytest.mark.usefixtures("pipe")
def test_every_part_of_a_rule_is_shown() -> None:
    """Header, conditions, target and its options each stand in the column of their title."""
    full = rule(
        target=use("DNAT", "--to-destination", "192.0.2.1"),
        protocol=setting("tcp"),
        in_interface=setting("eth0"),
        out_interface=setting("eth1", inverted=True),
        source=setting("10.0.0.1/32"),
        destination=setting("10.0.0.0/24", inverted=True),
        fragment=True,
        matches=[use("tcp", "--dport", "80"), use("set", "--match-set", "a b", "src"), use("udp")],
    )
    lines = show_table(document(chain("INPUT", full))).splitlines()
    title, row = lines[-2:]
    for name, cell in [
        ("target", "DNAT"),
        ("prot", "tcp"),
        ("in", "eth0"),
        ("out", "!eth1"),
        ("source", "10.0.0.1 "),
        ("destination", "!10.0.0.0/24"),
    ]:
        assert row[title.index(f" {name}") + 1 :].startswith(cell)
    conditions = '-f  --dport 80  set --match-set "a b" src  → --to-destination 192.0.2.1'
    assert row.endswith(f"  {conditions}")
    assert title.index("conditions") == row.index(conditions)
    unfragmented = show_table(document(chain("INPUT", rule(fragment=False))))
    assert unfragmented.endswith("  ! -f\n")
    assert "goto WEB" in show_table(document(chain("INPUT", rule(target=use("WEB"), goto=True))))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("10.0.0.1/32", "10.0.0.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:db8::1/128", "2001:db8::1"),
        ("2001:db8::/32", "2001:db8::/32"),
    ],
)
@pytest.mark.usefixtures("pipe")
def test_a_host_is_shown_without_its_prefix_length(value: str, shown: str) -> None:
    """Only the length that says one address, of that family, is left out."""
    row = show_table(document(chain("INPUT", rule(source=setting(value))))).splitlines()[-1]
    assert row.split()[-1] == shown


@pytest.mark.usefixtures("terminal")
def test_wide_rules_are_wrapped_on_a_terminal() -> None:
    """No line is wider than the terminal, and nothing is lost or torn at a hyphen."""
    lines = show_table(document(chain("INPUT", WIDE))).splitlines()
    plain = [line.replace("\033[31m", "").replace("\033[2m", "") for line in lines]
    plain = [line.replace("\033[1m", "").replace("\033[0m", "") for line in plain]
    assert max(map(len, plain)) <= 80
    start = next(line for line in plain if "conditions" in line).index("conditions")
    rows = plain[plain.index(next(line for line in plain if " DROP " in line)) :]
    assert len(rows) > 3
    assert all(not line[:start].strip() for line in rows[1:])
    text = " ".join(line[start:] for line in rows)
    assert "--ctstate NEW,RELATED,ESTABLISHED" in text
    assert '"administrators come in here, and nobody else does"' in text
    assert text.count("x") == 100
    reject = rule(matches=[], target=use("REJECT", "--reject-with", "icmp-port-unreachable"))
    narrow = show_table(document(chain("INPUT", rule(source=setting("192.0.2.128/25")), reject)))
    assert "icmp-port-unreachable" in narrow


@pytest.mark.usefixtures("pipe")
def test_a_pipe_gets_whole_lines() -> None:
    """In a pipe a rule is one line, however long."""
    lines = show_table(document(chain("INPUT", WIDE, rule(2)))).splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) > 200


@pytest.mark.usefixtures("terminal")
def test_colour_on_a_terminal() -> None:
    """A terminal gets colours by verdict, and without them the text is what a pipe gets."""
    rules = rule(target=use("DROP"), protocol=setting("tcp")), rule(target=use("X"))
    shown = show_table(document(chain("INPUT", *rules)))
    assert "\033[31mDROP  \033[0m  tcp" in shown
    assert "\033[35mX     \033[0m" in shown
    assert re.sub(r"\033\[\d+m", "", shown) == (
        "table filter, IPv4\n\nchain INPUT, policy ACCEPT (0 packets, 0 bytes)\n"
        "  #  pkts  bytes  target  prot\n  1     0      0  DROP    tcp\n  1     0      0  X     \n"
    )


@pytest.mark.usefixtures("terminal")
def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes the colours of a terminal and leaves it its width."""
    monkeypatch.setenv("NO_COLOR", "1")
    shown = show_table(document(chain("INPUT", WIDE)))
    assert "\033" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_an_output_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where characters have to be ASCII the arrow is, too."""
    print_to(monkeypatch, Stream(terminal=False, encoding="ascii"))
    shown = show_table(document(chain("INPUT", rule(target=use("LOG", "--log-prefix", "x")))))
    assert "-> --log-prefix x" in shown
    assert shown.isascii()


@pytest.mark.usefixtures("terminal")
def test_a_very_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty columns are too few for the table; the conditions still get their due."""
    monkeypatch.setenv("COLUMNS", "20")
    assert show_table(document(chain("INPUT", WIDE))).count("x") == 100


# --- what rules may hold -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 日本", "plain ä 日本"),
        ("\033[2J", r"\x1b[2J"),
        ("a\nb\rc\td", r"a\x0ab\x0dc\x09d"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\udc9b2J", r"\x9b2J"),
        ("\udcff", "\udcff"),
        ("a\u202eb\u200bc", r"a\u202eb\u200bc"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    """A comment cannot move the cursor: control characters are shown by their number."""
    assert visible(text) == shown


@pytest.mark.usefixtures("terminal")
def test_names_and_comments_cannot_write_to_the_terminal() -> None:
    """Escape sequences in chain names, jumps, interfaces and comments come out harmless."""
    evil = "\033]0;x\007"
    rules = [
        rule(target=use(evil), in_interface=setting(evil), out_interface=setting(evil)),
        rule(matches=[use("comment", "--comment", f"{evil}\n")], target=use("LOG", evil)),
    ]
    shown = show_table(document(chain(evil, *rules)))
    shown += show_chains(document(chain(evil, rules=1)))
    assert "\033]" not in shown
    assert "\007" not in shown
    assert r"\x0a" in shown


@pytest.mark.usefixtures("pipe")
def test_chains() -> None:
    """The list of chains shows rules, policies with their counters, and who jumps."""
    shown = show_chains(
        document(
            chain("INPUT", rules=3, policy="DROP", packets=1500, bytes=2_000_000),
            chain("WEB", rules=12, builtin=False, policy=None, references=1),
        )
    )
    assert shown == (
        "table filter, IPv4\n\n"
        "  rules  pkts  bytes  policy  chain  used\n"
        "      3  1.5k   2.0M  DROP    INPUT\n"
        "     12               -       WEB    1 jump to it\n"
    )
    assert "2000000" in show_chains(document(chain("INPUT", rules=3, bytes=2_000_000)), exact=True)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_s_width_is_asked_for() -> None:
    """The width is the terminal's; a pipe has none."""
    assert output._Paint().width == 80
