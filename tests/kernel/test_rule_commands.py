"""Nfctl rule against iptables: the same edits, counters that survive, and what a list shows."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import socket
import struct
import subprocess
import sys
import termios
import threading
from typing import TYPE_CHECKING, Any

import pytest

import nfctl
from tests.kernel import play
from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

COUNTED = """\
*filter
:INPUT DROP [11:1100]
:FORWARD ACCEPT [22:2200]
:OUTPUT ACCEPT [33:3300]
:WEB - [0:0]
[1:100] -A INPUT -i lo -j ACCEPT
[2:200] -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
[3:300] -A INPUT -j WEB
[4:400] -A FORWARD -s 10.0.0.0/8 -j DROP
[5:500] -A WEB -p udp -j DROP
[6:600] -A WEB -j RETURN
COMMIT
"""
SHOWN = """\
*filter
:INPUT DROP [12:3456]
:FORWARD ACCEPT [1234567:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
[7:420] -A INPUT ! -s 10.0.0.0/8 -d 192.0.2.1/32 -i eth0 -p tcp -f -m multiport --dports 80,443 \
-m comment --comment "say -j DROP and -g X" -j WEB
[1:2] -A INPUT ! -o wg+ -m comment --comment "no target -j ACCEPT"
[18446744073709551615:3] -A INPUT ! -f -j LOG --log-prefix "x -j y" --log-tcp-options
[0:0] -A INPUT
[0:0] -A FORWARD -p tcp -m ecn --ecn-tcp-cwr -g WEB
[0:0] -A FORWARD -m comment --comment -j -j WEB
[9:90] -A WEB -m comment --comment -g
COMMIT
""".replace("! -o wg+ ", "! -i wg+ ")


def listed(netns: Namespace, *words: str) -> str:
    said = netns.python(play.nfctl, ["rule", "list", *words])
    assert said.code == 0, said.err
    return said.out


# --- the same edits as iptables ----------------------------------------------------------------


def test_edits_one_by_one(netns: Namespace) -> None:
    """After each edit by number, by position or by specification the tables are iptables'."""
    a, web = "-s 10.0.0.1 -p tcp --dport 80", "-p tcp --dport 22 -m comment --comment 'x y'"
    pairs = [
        (f"rule add INPUT {a} -j ACCEPT", f"-A INPUT {a} -j ACCEPT"),
        (f"rule insert INPUT {web} -j DROP", f"-I INPUT {web} -j DROP"),
        ("rule insert INPUT 2 -i lo -j ACCEPT", "-I INPUT 2 -i lo -j ACCEPT"),
        ("rule insert INPUT 4 -j LOG", "-I INPUT 4 -j LOG"),
        ("rule insert INPUT 0x2 -f", "-I INPUT 0x2 -f"),
        ("rule add INPUT", "-A INPUT"),
        ("rule add OUTPUT ! -o lo -j ACCEPT", "-A OUTPUT ! -o lo -j ACCEPT"),
        ("rule replace INPUT 2 -i eth0 -j RETURN", "-R INPUT 2 -i eth0 -j RETURN"),
        ("chain create WEB", "-N WEB"),
        ("rule add INPUT -g WEB", "-A INPUT -g WEB"),
        ("rule add WEB -c 5 6 -j RETURN", "-A WEB -c 5 6 -j RETURN"),
        ("rule replace WEB 1 -c 7 8 -j DROP", "-R WEB 1 -c 7 8 -j DROP"),
        ("rule insert WEB -c 7,8 -j LOG", "-I WEB -c 7,8 -j LOG"),
        ("rule delete INPUT 1", "-D INPUT 1"),
        ("rule delete INPUT -g WEB", "-D INPUT -g WEB"),
        (f"rule delete INPUT {a} -j ACCEPT", f"-D INPUT {a} -j ACCEPT"),
        ("rule delete INPUT", "-D INPUT"),
        ("rule delete INPUT 010", "-D INPUT 010"),
        ("rule delete INPUT 9", "-D INPUT 9"),
        ("rule replace INPUT 9 -j DROP", "-R INPUT 9 -j DROP"),
        ("rule insert INPUT 9 -j DROP", "-I INPUT 9 -j DROP"),
        ("rule add NOWHERE -j DROP", "-A NOWHERE -j DROP"),
        ("rule add INPUT -j NOWHERE", "-A INPUT -j NOWHERE"),
        ("rule delete NOWHERE 1", "-D NOWHERE 1"),
        ("rule add INPUT -p tcp --dport http -j ACCEPT", "-A INPUT -p tcp --dport http -j ACCEPT"),
        ("rule add INPUT -p udp --dport", "-A INPUT -p udp --dport"),
        ("rule check INPUT -i eth0 -j RETURN", "-C INPUT -i eth0 -j RETURN"),
        ("rule check INPUT -i eth1 -j RETURN", "-C INPUT -i eth1 -j RETURN"),
    ]
    said = play.compare(netns, pairs)
    assert [step.code for step in said[:17]] == [0] * 17
    assert [step.code for step in said[17:]] == [2, 2, 2, 2, 2, 2, 2, 0, 2, 0, 1]
    assert all(not step.out for step in said)


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("-p tcp --dport 80 -j ACCEPT", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        ("-p tcp -m tcp --dport 80 -j ACCEPT", "-p 6 --destination-port http -j ACCEPT"),
        ("-s 10.0.0.1 -j DROP", "--source 10.0.0.1/32 --jump DROP"),
        ("-s 10.0.0.7/8 -j DROP", "-s 10/255.0.0.0 -j DROP"),
        ("-p udp -m udp --dport 53:53", "--proto UDP --dport 53"),
        ("-m mark --mark 0x10", "-m mark --mark 16/0xffffffff"),
        ("-m limit --limit 60/minute", "-m limit --limit 1/second --limit-burst 5"),
        ("-p icmp --icmp-type echo-request", "-p icmp -m icmp --icmp-type 8"),
        ("-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
    ],
)
def test_one_rule_in_two_spellings(netns: Namespace, there: str, asked: str) -> None:
    """A rule is found, and deleted, by any words that mean it; --unique adds it in none."""
    pairs = [
        (f"rule add INPUT {there}", f"-A INPUT {there}"),
        (f"rule check INPUT {asked}", f"-C INPUT {asked}"),
        (f"rule add --unique INPUT {asked}", f"-C INPUT {there}"),
        (f"rule insert --unique INPUT {asked}", f"-C INPUT {there}"),
        (f"rule check INPUT {asked} -f", f"-C INPUT {asked} -f"),
        (f"rule delete INPUT {asked}", f"-D INPUT {asked}"),
        (f"rule delete INPUT {asked}", f"-D INPUT {asked}"),
        (f"rule add --unique INPUT {asked}", f"-A INPUT {asked}"),
    ]
    assert [said.code for said in play.compare(netns, pairs)] == [0, 0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("family", [4, 6])
def test_several_addresses_at_once(netns: Namespace, family: int) -> None:
    """Lists of addresses make, find and remove the rules iptables makes of them, in its order."""
    a, b, c = ("10.0.0.1", "10.0.0.2", "10.1.0.0/16")
    if family == 6:
        a, b, c = ("2001:db8::1", "2001:db8::2", "2001:db8:1::/48")
    six = "-6 " if family == 6 else ""
    many = f"-s {a},{b} -d {c},{a} -j DROP"
    pairs = [
        (f"rule add {six}INPUT {many}", f"-A INPUT {many}"),
        (f"rule insert {six}INPUT 2 -s {a},{b},{c}", f"-I INPUT 2 -s {a},{b},{c}"),
        (f"rule check {six}INPUT {many}", f"-C INPUT {many}"),
        (f"rule check {six}INPUT -s {b},{c}", f"-C INPUT -s {b},{c}"),
        (f"rule add {six}--unique INPUT {many}", f"-C INPUT {many}"),
        (f"rule replace {six}INPUT 1 {many}", f"-R INPUT 1 {many}"),
        (f"rule replace {six}INPUT 1 -s {c}", f"-R INPUT 1 -s {c}"),
        (f"rule delete {six}INPUT -s {a},{b}", f"-D INPUT -s {a},{b}"),
        (f"rule add {six}INPUT ! -s {a},{b}", f"-A INPUT ! -s {a},{b}"),
        (f"rule add {six}INPUT -s {a},", f"-A INPUT -s {a},"),
    ]
    codes = [said.code for said in play.compare(netns, pairs, family=family)]
    assert codes == [0, 0, 0, 0, 0, 2, 0, 0, 2, 2]


def test_a_list_is_deleted_all_or_not(netns: Namespace) -> None:
    """If one of several rules is missing, none is deleted, and --unique has something to add."""
    before = play.EMPTY.replace("COMMIT", "-A INPUT -s 10.0.0.1\nCOMMIT")
    lines = [
        "rule delete INPUT -s 10.0.0.1,10.0.0.2",
        "rule check INPUT -s 10.0.0.1,10.0.0.2",
        "rule add --unique INPUT -s 10.0.0.1,10.0.0.2",
    ]
    first, second, third = netns.python(play.by_nfctl, lines, before)
    assert (first.said.code, second.said.code, third.said.code) == (1, 1, 0)
    assert first.saved == second.saved
    assert first.saved.count("-A INPUT -s 10.0.0.1/32") == 1
    assert third.saved.count("-A INPUT -s 10.0.0.2/32") == 1


@pytest.mark.parametrize(
    ("table", "chain", "spec"),
    [
        ("nat", "POSTROUTING", "-o eth0 -j MASQUERADE"),
        ("nat", "PREROUTING", "-p tcp --dport 80 -j DNAT --to-destination {a}:8080"),
        ("mangle", "FORWARD", "-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"),
        ("raw", "PREROUTING", "-p udp --dport 53 -j CT --notrack"),
        ("security", "INPUT", "-m conntrack --ctstate NEW -j ACCEPT"),
    ],
)
@pytest.mark.parametrize("family", [4, 6])
def test_every_table_of_both_families(
    netns: Namespace, table: str, chain: str, spec: str, family: int
) -> None:
    """-t and -6 reach each table; the other family stays as it was."""
    address = "192.0.2.1" if family == 4 else "[2001:db8::1]"
    rule = f"{chain} {spec.format(a=address)}"
    pairs = [
        (f"rule add -{family} -t {table} {rule}", f"-t {table} -A {rule}"),
        (f"rule insert --table {table} -{family} {rule} -m comment --comment x",
         f"-t {table} -I {rule} -m comment --comment x"),
        (f"rule check -{family} -t {table} {rule}", f"-t {table} -C {rule}"),
        (f"rule delete -{family} -t {table} {rule}", f"-t {table} -D {rule}"),
    ]  # fmt: skip
    assert {said.code for said in play.compare(netns, pairs, family=family)} == {0}


def test_what_is_refused_says_where(netns: Namespace) -> None:
    """A wrong rule is exit code 2 and one change less: the word is underlined, nothing written."""
    wrong = {
        "rule add INPUT -p tcp --dport 80x -j ACCEPT": "         ^",
        "rule add INPUT -s 10.0.0.256": "     ^",
        "rule add INPUT -j NOWHERE": "     ^",
        "rule add INPUT -m nosuch": "     ^",
        "rule insert INPUT 1 -p tcp --nosuch": "         ^",
        "rule replace INPUT 1 -m comment --comment 'a b' -x": "                             ^",
        "rule delete INPUT -s 10.0.0.0/33": "     ^",
    }
    steps = netns.python(play.by_nfctl, list(wrong))
    for (line, caret), step in zip(wrong.items(), steps, strict=True):
        assert step.said.code == 2, line
        assert caret in step.said.err.splitlines(), (line, step.said.err)
        assert step.saved == play.EMPTY


def test_help_of_an_extension(netns: Namespace) -> None:
    """-h among a rule's words prints the extension's help, as iptables does, and adds nothing."""
    lines = [
        "rule add INPUT -m limit -h",
        "rule add INPUT -p udp -j REJECT --help",
        "rule add INPUT -h",
        "rule add INPUT -m comment --comment -h -j ACCEPT",
    ]
    limit, reject, none, comment = netns.python(play.by_nfctl, lines)
    assert "--limit-burst number" in limit.said.out
    assert "icmp-port-unreachable" in reject.said.out
    assert "-m limit -h" in none.said.out
    assert none.saved == play.EMPTY
    assert [step.said.code for step in (limit, reject, none, comment)] == [0] * 4
    assert "-A INPUT -m comment --comment -h -j ACCEPT" in comment.saved


# --- counters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("rule add INPUT -p udp -j DROP", "-A INPUT -p udp -j DROP"),
        ("rule insert INPUT 2 -p udp -j DROP", "-I INPUT 2 -p udp -j DROP"),
        ("rule replace INPUT 1 -p udp -j DROP", "-R INPUT 1 -p udp -j DROP"),
        ("rule delete INPUT 2", "-D INPUT 2"),
        ("rule delete WEB -p udp -j DROP", "-D WEB -p udp -j DROP"),
        ("rule add WEB -s 10.0.0.1,10.0.0.2", "-A WEB -s 10.0.0.1,10.0.0.2"),
        ("chain create NEW", "-N NEW"),
        ("chain rename WEB HTTP", "-E WEB HTTP"),
        ("chain flush WEB", "-F WEB"),
        ("chain zero INPUT 1", "-Z INPUT 1"),
    ],
)
def test_counters_of_untouched_rules_survive(netns: Namespace, ours: str, theirs: str) -> None:
    """Rules keep their counters as with iptables, and policies keep theirs, unlike with it."""
    (edited,) = netns.python(play.by_nfctl, [ours], COUNTED)
    (oracle,) = netns.python(play.by_oracle, [theirs], COUNTED)
    assert (edited.said.code, oracle.said.code) == (0, 0)
    expected = oracle.saved
    for policy in (line for line in COUNTED.splitlines() if line[:1] == ":"):
        name = policy.partition("[")[0]
        expected = re.sub(rf"^{name}.*$", policy, expected, flags=re.MULTILINE)
    assert edited.saved == expected
    assert edited.saved != COUNTED


def test_what_changes_nothing_writes_nothing(netns: Namespace) -> None:
    """--unique on a rule that is there and check leave every counter alone."""
    lines = [
        "rule add --unique INPUT -i lo -j ACCEPT",
        "rule insert --unique WEB -p udp -j DROP",
        "rule check WEB -j RETURN",
    ]
    for step in netns.python(play.by_nfctl, lines, COUNTED):
        assert (step.said.code, step.saved) == (0, COUNTED)


def edit_under_traffic(packets: int) -> tuple[int, int, str]:
    """Send packets through the tables while they are edited; return how many, and the tables."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    port = receiver.getsockname()[1]
    with nfctl.edit() as tables:
        tables["filter"].append("OUTPUT", f"-p udp --dport {port}")
        tables["filter"].append("OUTPUT", "-p udp -j ACCEPT")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(packets):
                sender.sendto(b"x", ("127.0.0.1", port))

    thread = threading.Thread(target=send)
    thread.start()
    edits = 0
    while thread.is_alive() or edits < 3:
        with nfctl.edit() as tables:
            tables["filter"].insert("OUTPUT", f"-p tcp --dport {edits + 1}", 1 + edits % 2)
        with nfctl.edit() as tables:
            tables["filter"].delete("OUTPUT", f"-p tcp --dport {edits + 1}")
        edits += 1
    thread.join()
    receiver.close()
    return edits, port, play.saved()


def test_packets_counted_during_an_edit_are_not_lost(netns: Namespace) -> None:
    """Every packet sent while rules come and go is in the counters of the rules that stay."""
    packets = 30_000
    edits, port, saved = netns.python(edit_under_traffic, packets)
    assert edits >= 3
    assert f"[{packets}:{29 * packets}] -A OUTPUT -p udp -m udp --dport {port}\n" in saved
    assert f"[{packets}:{29 * packets}] -A OUTPUT -p udp -j ACCEPT\n" in saved


# --- what a list shows -------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("INPUT",), ("WEB",)])
def test_specifications_are_those_of_iptables(netns: Namespace, words: tuple[str, ...]) -> None:
    """-S prints what iptables -S prints, with -c what it prints with -v."""
    netns.python(play.load, SHOWN)
    assert listed(netns, "-S", *words) == netns.legacy("-S", *words).stdout
    counted = netns.legacy("-v", "-S", *words).stdout
    assert listed(netns, "-S", "-c", *words) == counted
    assert "-c 9 90" in counted or words == ("INPUT",)


def test_specifications_of_the_other_family_and_table(netns: Namespace) -> None:
    """-6 and -t choose what -S prints, as they do for iptables."""
    netns.python(play.load, "*nat\n-A OUTPUT -d 2001:db8::/32 -j REDIRECT\nCOMMIT\n", 6)
    shown = listed(netns, "-6", "-t", "nat", "-S")
    assert shown == netns.legacy("-t", "nat", "-S", family=6).stdout
    assert "-A OUTPUT -d 2001:db8::/32 -j REDIRECT\n" in shown


def test_the_document(netns: Namespace) -> None:
    """--json holds exactly the documented keys, with what the oracle put there."""
    netns.python(play.load, SHOWN)
    document = json.loads(listed(netns, "--json"))
    assert {key: document[key] for key in document if key != "chains"} == {
        "family": 4,
        "table": "filter",
    }
    chains: list[dict[str, Any]] = document["chains"]
    assert [{key: value for key, value in c.items() if key != "rules"} for c in chains] == [
        {"name": "INPUT", "builtin": True, "policy": "DROP", "packets": 12, "bytes": 3456,
         "references": 0},
        {"name": "FORWARD", "builtin": True, "policy": "ACCEPT", "packets": 1234567, "bytes": 0,
         "references": 0},
        {"name": "OUTPUT", "builtin": True, "policy": "ACCEPT", "packets": 0, "bytes": 0,
         "references": 0},
        {"name": "WEB", "builtin": False, "policy": None, "packets": 0, "bytes": 0,
         "references": 3},
    ]  # fmt: skip
    assert "Chain WEB (3 references)" in netns.legacy("-nL").stdout
    nothing: dict[str, Any] = {
        "source": None, "destination": None, "in_interface": None, "out_interface": None,
        "protocol": None, "fragment": None, "matches": [], "target": None, "goto": False,
    }  # fmt: skip
    rules = [rule for chain in chains for rule in chain["rules"]]
    specs = [line.partition(" ")[2].partition(" ")[2] for line in netns.legacy("-S").stdout.split(
        "\n") if line[:2] == "-A"]  # fmt: skip
    assert [rule.pop("spec") for rule in rules] == specs
    assert rules == [
        {"number": 1, "packets": 7, "bytes": 420,
         "source": {"value": "10.0.0.0/8", "inverted": True},
         "destination": {"value": "192.0.2.1/32", "inverted": False},
         "in_interface": {"value": "eth0", "inverted": False}, "out_interface": None,
         "protocol": {"value": "tcp", "inverted": False}, "fragment": True,
         "matches": [
             {"name": "multiport", "options": ["--dports", "80,443"]},
             {"name": "comment", "options": ["--comment", "say -j DROP and -g X"]},
         ],
         "target": {"name": "WEB", "options": []}, "goto": False},
        {**nothing, "number": 2, "packets": 1, "bytes": 2,
         "in_interface": {"value": "wg+", "inverted": True},
         "matches": [{"name": "comment", "options": ["--comment", "no target -j ACCEPT"]}]},
        {**nothing, "number": 3, "packets": 2**64 - 1, "bytes": 3, "fragment": False,
         "target": {"name": "LOG",
                    "options": ["--log-prefix", "x -j y", "--log-tcp-options"]}},
        {**nothing, "number": 4, "packets": 0, "bytes": 0},
        {**nothing, "number": 1, "packets": 0, "bytes": 0,
         "protocol": {"value": "tcp", "inverted": False},
         "matches": [{"name": "ecn", "options": ["--ecn-tcp-cwr"]}],
         "target": {"name": "WEB", "options": []}, "goto": True},
        {**nothing, "number": 2, "packets": 0, "bytes": 0,
         "matches": [{"name": "comment", "options": ["--comment", "-j"]}],
         "target": {"name": "WEB", "options": []}},
        {**nothing, "number": 1, "packets": 9, "bytes": 90,
         "matches": [{"name": "comment", "options": ["--comment", "-g"]}]},
    ]  # fmt: skip
    assert [c["name"] for c in json.loads(listed(netns, "--json", "WEB"))["chains"]] == ["WEB"]


def test_the_document_of_ipv6_and_of_names_that_are_not_utf8(netns: Namespace) -> None:
    """The document says its family, and stays JSON whatever bytes a chain is called by."""
    text = "*raw\n:\udcff\udc9b - [0:0]\n-A OUTPUT -s 2001:db8::1 -j \udcff\udc9b\nCOMMIT\n"
    netns.python(play.load, text, 6)
    done = netns.run([*NFCTL, "rule", "list", "-6", "-t", "raw", "--json"])
    assert done.stdout.encode().decode("ascii")
    document = json.loads(done.stdout)
    assert (document["family"], document["table"]) == (6, "raw")
    assert [chain["name"] for chain in document["chains"]][2:] == ["\udcff\udc9b"]
    assert document["chains"][1]["rules"][0]["source"]["value"] == "2001:db8::1/128"


def test_a_pipe_gets_no_colour_and_whole_lines(netns: Namespace) -> None:
    """In a pipe each rule is one line without escape sequences, counters in full with -x."""
    netns.python(play.load, SHOWN)
    shown = listed(netns)
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0] == "table filter, IPv4"
    assert sum(line[:2] == "  " and line.split()[0].isdecimal() for line in lines) == 7
    assert "chain FORWARD, policy ACCEPT (1.2M packets, 0 bytes)" in lines
    assert "chain WEB (3 jumps to it)" in lines
    assert "18E" in shown
    assert "18446744073709551615" in listed(netns, "-x")
    assert "FORWARD" not in listed(netns, "INPUT")


def on_a_terminal(
    netns: Namespace, words: str, columns: int, **environment: str
) -> tuple[str, int]:
    """Run nfctl with its output on a terminal; return what that got, and the exit code."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("=4H", 24, columns, 0, 0))
    settings = [f"{name}={value}" for name, value in environment.items()]
    unset = ["-u", "NO_COLOR", "-u", "COLUMNS", "-u", "LINES"]
    argv = ["env", *unset, *settings, *NFCTL, *shlex.split(words)]
    child = netns.popen(argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    got = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # EIO: the other end is closed
            break
        if not part:
            break
        got += part
    os.close(ours)
    return got.decode().replace("\r\n", "\n"), child.wait(60)


def test_a_terminal_gets_colour_and_wrapped_lines(netns: Namespace) -> None:
    """On a terminal of 100 columns no line is wider, nothing is lost, and verdicts have colours."""
    netns.python(play.load, SHOWN)
    shown, code = on_a_terminal(netns, "rule list", 100, PYTHONIOENCODING="utf-8")
    assert code == 0
    assert "\x1b[31mDROP\x1b[0m" in shown
    plain = re.sub(r"\x1b\[\d+m", "", shown)
    assert max(map(len, plain.splitlines())) <= 100
    wide = listed(netns)
    assert max(map(len, wide.splitlines())) > 100
    assert sorted("".join(plain.split())) == sorted("".join(wide.split()))


def test_no_color(netns: Namespace) -> None:
    """NO_COLOR leaves a terminal its width and takes the colours."""
    netns.python(play.load, SHOWN)
    shown, _ = on_a_terminal(netns, "rule list", 100, NO_COLOR="1")
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_a_comment_cannot_write_to_the_terminal(netns: Namespace) -> None:
    """Escape sequences that somebody put into a comment are spelled out in the list."""
    netns.python(play.load, "*filter\n-A INPUT -m comment --comment \x1b]0;owned\x07\nCOMMIT\n")
    shown, _ = on_a_terminal(netns, "rule list", 100)
    assert r"\x1b]0;owned\x07" in shown
    assert "\x1b]" not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rule list NOWHERE", "no chain NOWHERE"),
        ("rule list -t nat FORWARD", "no chain FORWARD"),
        ("rule list -t bogus", "no table 'bogus'"),
        ("rule add -t bogus INPUT", "no table 'bogus'"),
        ("rule add input -j DROP", "did you mean INPUT"),
        ("rule add PREROUTING -j DROP", "use -t"),
        ("rule add INPUT -j FORWARD", "built-in"),
        ("rule add -t nat OUTPUT -j DROP", "not intended for filtering"),
        ("rule add INPUT --unique -j DROP", "--unique"),
        ("rule add INPUT -t nat -j DROP", "before the chain"),
        ("rule add INPUT -s localhost -j DROP", "--resolve"),
    ],
)
def test_what_cannot_be_is_exit_code_2(netns: Namespace, words: str, said: str) -> None:
    """An unknown table, chain or option is said with what would be right."""
    done = netns.python(play.nfctl, words.split())
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_a_host_name_is_looked_up_if_asked_for(netns: Namespace) -> None:
    """With --resolve a name is the addresses that iptables finds for it."""
    pairs = [("rule add --resolve INPUT -s localhost -j DROP", "-A INPUT -s localhost -j DROP")]
    assert play.compare(netns, pairs)[0].code == 0


def test_the_command_itself(netns: Namespace) -> None:
    """What a new process of nfctl does is what the tests above saw in a forked one."""
    assert netns.nfctl("rule", "add", "INPUT", "-p", "tcp", "--dport", "22").returncode == 0
    assert netns.nfctl("rule", "check", "INPUT", "-p", "tcp", "--dport", "23").returncode == 1
    done = netns.nfctl("rule", "add", "INPUT", "-p", "tcp", "--dport", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("nfctl: error: ")
    assert netns.save() == play.EMPTY.replace("COMMIT", "-A INPUT -p tcp -m tcp --dport 22\nCOMMIT")
    assert sys.executable in NFCTL
