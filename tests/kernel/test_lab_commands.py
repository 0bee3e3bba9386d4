"""Nfctl lab as somebody types it: labs that stay, and programs that run inside them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernel.conftest import NFCTL, PATIENCE, private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.conftest import Done, Namespace

pytestmark = pytest.mark.kernel

PAIR = """\
name: pair
hosts:
  alice: {interfaces: {eth0: {link: wire, addresses: [10.1.0.1/24]}}}
  bob: {interfaces: {eth0: {link: wire, addresses: [10.1.0.2/24]}}}
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def namespaces(netns: Namespace) -> list[str]:
    """Return the names that ip(8) sees."""
    return sorted(line.split()[0] for line in netns.run(["ip", "netns"]).stdout.splitlines())


def left_behind(netns: Namespace) -> list[str]:
    """Return what is there of labs: namespaces and files."""
    files = netns.run(["find", "/run/nfctl/labs", "-mindepth", "1"]).stdout.split()
    return namespaces(netns) + files


def make(netns: Namespace, *words: str, text: str = "") -> Done:
    """Make a lab without servers."""
    done = netns.nfctl("lab", "up", "--no-services", *words, input=text)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done


def listed(netns: Namespace) -> list[dict[str, Any]]:
    done = netns.nfctl("lab", "list", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)["labs"]
    return found


def inside(netns: Namespace, *words: str, text: str = "") -> Done:
    return netns.nfctl("lab", "exec", *words, input=text)


@pytest.fixture(scope="module")
def standing() -> Iterator[Namespace]:
    """Give a namespace where the lab ``pair`` stands, for tests that leave it as it is."""
    with private() as netns:
        make(netns, "-", text=PAIR)
        yield netns
        done = netns.nfctl("lab", "down", "pair")
        assert (done.returncode, done.stderr) == (0, "")
        assert left_behind(netns) == []


# --- up, list, down ------------------------------------------------------------------------------


def test_a_life(netns: Namespace) -> None:
    """A lab is made, found by ip(8), listed, and removed so that nothing of it stays."""
    assert netns.nfctl("lab", "list").stderr == "no lab is up; nfctl lab up makes one\n"
    done = netns.nfctl("lab", "up", "router")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lab router is up")
    assert "192.0.2.10/24" in done.stdout
    assert "nfctl lab exec client ip route " in done.stdout
    hosts = ["client", "router", "server"]
    assert namespaces(netns) == [f"nfctl-router-{host}" for host in hosts]
    addresses = netns.run(["ip", "-n", "nfctl-router-server", "-br", "addr", "show", "eth0"])
    assert "10.77.0.10/24" in addresses.stdout
    table = netns.nfctl("lab", "list").stdout.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["router", "up", "router"]]
    assert table[1].endswith("client, router, server")
    talk = inside(netns, "client", sys.executable, "-c", CONNECT, "10.77.0.10", "80")
    assert talk.returncode == 0, talk.stderr
    done = netns.nfctl("lab", "down")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "removed lab router: 3 hosts (client, router, server)\n"
    assert left_behind(netns) == []
    assert netns.nfctl("lab", "list", "--json").stdout == '{"labs": []}\n'


def test_no_services(netns: Namespace) -> None:
    """--no-services starts no server and says nothing of any; no process stays in the hosts."""
    done = make(netns, "router")
    assert "SERVICES" not in done.stdout
    (document,) = listed(netns)
    assert not any(ports for host in document["hosts"] for ports in host["services"].values())
    talk = inside(netns, "client", sys.executable, "-c", CONNECT, "10.77.0.10", "80")
    assert "ConnectionRefusedError" in talk.stderr
    for host in namespaces(netns):
        assert netns.run(["ip", "netns", "pids", host]).stdout == ""
    assert netns.nfctl("lab", "down", "-q").stdout == ""


def test_the_documents_agree_with_ip(netns: Namespace) -> None:
    """Up and list print the same document, whose addresses are the kernel's."""
    made = json.loads(make(netns, "router", "--json", "--name", "test").stdout)
    assert listed(netns) == [made]
    assert (made["name"], made["topology"], made["state"]) == ("test", "router", "up")
    assert [host["name"] for host in made["hosts"]] == ["client", "router", "server"]
    for host in made["hosts"]:
        shown = netns.run(["ip", "-n", host["namespace"], "-j", "addr"])
        seen = {
            link["ifname"]: {
                f"{found['local']}/{found['prefixlen']}"
                for found in link["addr_info"]
                if found["scope"] == "global"
            }
            for link in json.loads(shown.stdout)
            if link["ifname"] != "lo"
        }
        assert seen == {part["name"]: set(part["addresses"]) for part in host["interfaces"]}
        forwards = netns.run(
            ["ip", "netns", "exec", host["namespace"], "cat", "/proc/sys/net/ipv4/ip_forward"]
        )
        assert forwards.stdout == f"{host['forward']:d}\n"


def test_two_labs_at_once(netns: Namespace) -> None:
    """Labs do not see each other; a command that does not say which is told their names."""
    make(netns, "-", text=PAIR)
    done = make(netns, "-", "-n", "other", text=PAIR)
    assert "nfctl lab exec -l other alice ip route" in done.stdout
    assert "nfctl lab down other" in done.stdout
    assert [lab["name"] for lab in listed(netns)] == ["other", "pair"]
    assert inside(netns, "-l", "other", "alice", "ip", "link", "set", "lo", "down").returncode == 0
    for lab, state in (("pair", "UNKNOWN"), ("other", "DOWN")):
        seen = inside(netns, "--lab", lab, "alice", "ip", "-br", "link", "show", "lo")
        assert seen.stdout.split()[1] == state
    for words in ("down", "exec alice true", "shell alice", "graph"):
        done = netns.nfctl("lab", *words.split())
        assert done.returncode == 2, words
        assert "other" in done.stderr
        assert "pair" in done.stderr
    done = netns.nfctl("lab", "down", "other")
    assert done.stdout == "removed lab other: 2 hosts (alice, bob)\n"
    assert inside(netns, "alice", "true").returncode == 0
    make(netns, "-", "-n", "third", text=PAIR)
    done = netns.nfctl("lab", "down", "--all")
    assert done.stdout.splitlines() == [
        "removed lab pair: 2 hosts (alice, bob)",
        "removed lab third: 2 hosts (alice, bob)",
    ]
    assert left_behind(netns) == []
    assert netns.nfctl("lab", "down", "--all").returncode == 0


def test_the_same_name_twice(netns: Namespace) -> None:
    """A second lab of a name is refused, and the first one stays as it is."""
    make(netns, "-", text=PAIR)
    before = left_behind(netns)
    done = netns.nfctl("lab", "up", "-", input=PAIR)
    assert done.returncode == 2
    assert "pair" in done.stderr
    assert left_behind(netns) == before
    assert inside(netns, "bob", "true").returncode == 0
    assert netns.nfctl("lab", "down").returncode == 0


def test_a_file_by_its_name(netns: Namespace, tmp_path: Path) -> None:
    """A YAML file makes a lab; one that is wrong makes nothing, and its place is named."""
    file = tmp_path / "mine.yaml"
    file.write_text(PAIR)
    make(netns, str(file), "-q")
    assert [lab["topology"] for lab in listed(netns)] == ["pair"]
    assert netns.nfctl("lab", "down").returncode == 0
    file.write_text(PAIR.replace("10.1.0.2/24", "10.1.0.2/99"))
    done = netns.nfctl("lab", "up", str(file))
    assert done.returncode == 2
    assert f"{file}:4:" in done.stderr
    assert "10.1.0.2/99" in done.stderr
    assert "Traceback" not in done.stderr
    assert left_behind(netns) == []


def test_names_that_are_wrong(standing: Namespace) -> None:
    """Wrong labs, hosts and topologies: an error with those there are and the one meant."""
    for words, code, said in (
        ("down piar", 1, 'did you mean "pair"'),
        ("exec -l piar alice true", 1, 'did you mean "pair"'),
        ("shell -l x alice", 1, "the only lab is pair"),
        ("exec alcie true", 2, 'did you mean "alice"'),
        ("exec x true", 2, "hosts: alice, bob"),
        ("shell bbo", 2, 'did you mean "bob"'),
        ("graph piar", 2, "router"),
        ("up ruoter", 2, "router"),
        ("up /no/such/file.yaml", 2, "/no/such/file.yaml"),
        ("up router -n Not/A/Name", 2, "Not/A/Name"),
    ):
        done = standing.nfctl("lab", *words.split())
        assert (done.returncode, done.stdout) == (code, ""), words
        assert done.stderr.startswith("nfctl: error: "), words
        assert said in done.stderr, words
        assert "Traceback" not in done.stderr
    assert [lab["name"] for lab in listed(standing)] == ["pair"]


def test_nothing_to_remove(netns: Namespace) -> None:
    """Without a lab, down and exec answer no, and --all is content."""
    for words in ("down", "down pair", "exec alice true", "graph"):
        done = netns.nfctl("lab", *words.split())
        assert done.returncode == 1, words
        assert "nfctl lab up" in done.stderr, words
    assert netns.nfctl("lab", "down", "--all").returncode == 0


# --- exec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 7, 126, 127, 255])
def test_exit_codes_pass_through(standing: Namespace, code: int) -> None:
    """The exit code is the command's own."""
    done = inside(standing, "alice", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_commands_that_do_not_start(standing: Namespace, tmp_path: Path) -> None:
    """127 for what is not there and 126 for what cannot be run, as a shell has it."""
    plain = tmp_path / "plain"
    plain.touch()
    for word, code, said in (
        ("no-such-command", 127, "no-such-command: no such program"),
        (str(plain), 126, "Permission denied"),
    ):
        shell = standing.run(["sh", "-c", word])
        done = inside(standing, "alice", word)
        assert done.returncode == shell.returncode == code
        assert done.stderr.startswith("nfctl: error: ")
        assert said in done.stderr


def test_words_are_verbatim(standing: Namespace) -> None:
    """Options, blanks, empty words and what is not UTF-8 reach the command as they were typed."""
    words = ["-n", "--lab", "x y", "", "--", "-h", "*", "\udcff"]
    code = "import os, sys; print([os.fsencode(word) for word in sys.argv[1:]])"
    done = inside(standing, "alice", sys.executable, "-c", code, *words)
    assert done.stdout == f"{[os.fsencode(word) for word in words]}\n"
    assert inside(standing, "alice", "--", "echo", "-n", "x").stdout == "x"


def test_where_a_command_runs(standing: Namespace) -> None:
    """It sees its host's network, knows where it is, and is in the directory of the caller."""
    done = inside(standing, "bob", "sh", "-c", "echo $NFCTL_LAB $NFCTL_HOST; pwd; ip -br addr")
    names, directory, *addresses = done.stdout.splitlines()
    assert (names, directory) == ("pair bob", os.getcwd())  # noqa: PTH109 - as pwd(1) says it
    seen = standing.run(["ip", "-n", "nfctl-pair-bob", "-br", "addr"])
    assert addresses == seen.stdout.splitlines()
    assert "10.1.0.2/24" in done.stdout


def test_rules_are_the_hosts_own(standing: Namespace) -> None:
    """Rules of a host, and its lock, are not those of the machine or of another host."""
    rule = "INPUT -p tcp --dport 22 -j DROP"
    done = inside(standing, "alice", "iptables-legacy", "-A", *rule.split())
    assert done.returncode == 0, done.stderr
    assert "--dport 22" in inside(standing, "alice", "iptables-legacy", "-S").stdout
    assert "--dport 22" not in inside(standing, "bob", "iptables-legacy", "-S").stdout
    assert standing.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""
    lock = standing.popen(
        ["flock", "/run/xtables.lock", "sh", "-c", "echo held; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert lock.stdout
    assert lock.stdout.readline() == b"held\n"  # type: ignore[comparison-overlap]
    done = inside(standing, "alice", "iptables-legacy", "-w", "0", "-F")
    lock.communicate()
    assert done.returncode == 0, done.stderr


def test_standard_input_passes_through(standing: Namespace) -> None:
    """A megabyte of all bytes goes in and comes out as it was."""
    data = bytes(range(256)) * 4096
    done = standing.run_bytes([*NFCTL, "lab", "exec", "alice", "cat"], data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def start(netns: Namespace, *words: str, **options: Any) -> subprocess.Popen[str]:
    return netns.popen(
        [*NFCTL, "lab", "exec", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_command_takes_the_place_of_nfctl(standing: Namespace) -> None:
    """It has nfctl's own process id, no descriptor but the three, and no signal ignored."""
    script = "echo $$; ls -l /proc/self/fd | grep -c -- '->'; grep SigIgn /proc/$$/status"
    process = start(standing, "alice", "sh", "-c", script)
    out, err = process.communicate(timeout=PATIENCE)
    pid, descriptors, _, ignored = out.split()
    assert (int(pid), err) == (process.pid, "")
    assert int(descriptors) == 4  # the directory that ls reads
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1)) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_the_commands_own(standing: Namespace, number: signal.Signals) -> None:
    """Ctrl-C and its kin reach the command, once; nfctl adds nothing and the lab stays."""
    script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo ready; while :; do read x; done"
    for command, code, said in (
        (["sh", "-c", "echo ready; exec sleep 1000"], -number, ""),
        (["sh", "-c", script], 9, "caught\n"),
    ):
        process = start(standing, "alice", *command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (code, said, "")
    assert inside(standing, "alice", "true").returncode == 0


def test_a_pipe_closed_early(standing: Namespace) -> None:
    """Who stops reading ends the command by SIGPIPE, without a word on standard error."""
    process = start(standing, "alice", "yes")
    assert process.stdout
    assert process.stdout.readline() == "y\n"
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(PATIENCE) == -signal.SIGPIPE


def test_a_list_that_nobody_reads(standing: Namespace) -> None:
    """Output into a pipe without a reader ends quietly."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = standing.popen(
        [*NFCTL, "lab", "list"], stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert process.communicate(timeout=PATIENCE)[1] == ""
    assert process.returncode == 141


# --- shell ---------------------------------------------------------------------------------------


class Terminal:
    """A terminal of 100 columns, with a program of a namespace at its other end."""

    def __init__(self, netns: Namespace, words: list[str], **environment: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        settings = [f"{name}={value}" for name, value in environment.items()]
        self.process = netns.popen(
            ["setsid", "--ctty", "env", *settings, *words], stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.seen = b""

    def until(self, text: str) -> str:
        """Read until a text has come; return what came before it, and what is after it stays."""
        while text.encode() not in self.seen:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self.master, 4096)
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> int:
        code = self.process.wait(PATIENCE)
        os.close(self.master)
        return code


@pytest.mark.parametrize(
    ("program", "prompt"), [("/bin/bash", "(pair/bob) mine "), ("/bin/sh", "(pair/bob) # ")]
)
def test_a_shell_on_a_terminal(
    standing: Namespace, tmp_path: Path, program: str, prompt: str
) -> None:
    """The prompt names lab and host; Ctrl-C is the shell's; its exit code is passed through."""
    (tmp_path / ".bashrc").write_text("PS1='mine '; echo .bashrc was read\n")
    words = [*NFCTL, "lab", "shell", "bob"]
    terminal = Terminal(standing, words, SHELL=program, HOME=str(tmp_path), TERM="dumb", ENV="")
    assert (".bashrc was read" in terminal.until(prompt)) == (program == "/bin/bash")
    terminal.type("echo $NFCTL_HOST-$(stty size)-$(ls /proc/$$/fd | wc -l)\n")
    terminal.until("bob-30 100-")
    assert int(terminal.until("\r\n")) <= 5  # the three, and what the shell itself has open
    terminal.until(prompt)
    terminal.type("sh -c 'echo slee''ping; exec sleep 1000'\n")
    terminal.until("sleeping\r\n")
    terminal.type("\x03")
    terminal.until(prompt)
    terminal.type("exit 6\n")
    assert terminal.close() == 6


def test_a_shell_in_a_pipe(standing: Namespace) -> None:
    """Commands on standard input are run, by another shell where $SHELL is none."""
    for program in ("/bin/sh", "/bin/bash", "/no/such/shell", ""):
        words = ["env", f"SHELL={program}", *NFCTL, "lab", "shell", "-l", "pair", "alice"]
        done = standing.run(words, "echo $NFCTL_HOST $SHELL; ip -br addr; exit 3\n")
        assert (done.returncode, done.stderr) == (3, ""), program
        assert "10.1.0.1/24" in done.stdout
        name, shell = done.stdout.splitlines()[0].split()
        assert name == "alice"
        assert shell == (program if program in {"/bin/sh", "/bin/bash"} else "/bin/bash")


def test_a_lab_is_not_seen_from_inside(standing: Namespace) -> None:
    """Commands for labs that are typed inside a host say that one is inside."""
    done = inside(standing, "alice", *NFCTL, "lab", "down")
    assert done.returncode == 1
    assert "this is alice, a host of the lab pair: leave it first" in done.stderr
    assert [lab["name"] for lab in listed(standing)] == ["pair"]


# --- probe ---------------------------------------------------------------------------------------

FIREWALL = """\
*filter
:FORWARD DROP [0:0]
:SSH - [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -p tcp --dport 80 -j ACCEPT
-A FORWARD -p tcp --dport 22 -j SSH
-A SSH -p tcp -j REJECT --reject-with tcp-reset
COMMIT
*nat
-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 10.77.0.10:80
-A POSTROUTING -o lan0 -p tcp --dport 80 -j MASQUERADE
COMMIT
"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[Namespace]:
    """Give a namespace where the lab ``router`` stands, with servers and a firewall."""
    with private() as netns:
        assert netns.nfctl("lab", "up", "router").returncode == 0
        done = inside(netns, "router", "iptables-legacy-restore", text=FIREWALL)
        assert done.returncode == 0, done.stderr
        yield netns
        assert netns.nfctl("lab", "down").returncode == 0
        assert left_behind(netns) == []


@pytest.mark.parametrize(
    ("words", "code", "first", "decided"),
    [
        (
            "client server http",
            0,
            "accepted: http from client (192.0.2.10) to server (10.77.0.10), seen as 10.77.0.1",
            "filter:FORWARD rule 2: -p tcp -m tcp --dport 80 -j ACCEPT",
        ),
        (
            "client 192.0.2.1 http/8080",
            0,
            "accepted: http/8080 from client (192.0.2.10) to router (192.0.2.1), seen as 10.77.0.1",
            "filter:FORWARD rule 2",
        ),
        (
            "client server tcp/22",
            1,
            "rejected: tcp/22 from client (192.0.2.10) to server (10.77.0.10); tcp-reset",
            "filter:FORWARD -> SSH rule 1: -p tcp -j REJECT --reject-with tcp-reset",
        ),
        (
            "client server udp/53 -W 0.3",
            1,
            "dropped: udp/53 from client (192.0.2.10) to server (10.77.0.10); "
            "no answer within 0.3 s",
            "filter:FORWARD policy DROP",
        ),
        (
            "client server icmp -6",
            0,
            "accepted: icmp from client (2001:db8:1::10) to server (fd77::10)",
            "",
        ),
        (
            "client router.lab tcp/81",
            1,
            "rejected: tcp/81 from client (192.0.2.10) to router (192.0.2.1); tcp-reset",
            "",
        ),
        (
            "client server http/80 -s 192.0.2.66",
            0,
            "accepted: http/80 from client (192.0.2.66) to server (10.77.0.10), seen as 10.77.0.1",
            "filter:FORWARD rule 2",
        ),
    ],
)
def test_probes(guarded: Namespace, words: str, code: int, first: str, decided: str) -> None:
    """A real packet's fate, how it was translated, and the rule that decided."""
    done = guarded.nfctl("lab", "probe", *words.split())
    assert (done.returncode, done.stderr) == (code, "")
    line, *rules = done.stdout.splitlines()
    assert line.startswith(first)
    marked = [rule for rule in rules if rule.endswith("<- decided")]
    assert bool(marked) == bool(decided)
    assert decided in "".join(marked)


def test_the_document_of_a_probe(guarded: Namespace) -> None:
    """The keys of probe --json are a contract; the deciding rule is one of the steps."""
    done = guarded.nfctl("lab", "probe", "-l", "router", "client", "server", "tcp/22", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    assert document.pop("seconds") < 1
    hops = document.pop("hops")
    (decided,) = document.pop("decided_by")
    assert document == {
        "lab": "router",
        "what": "tcp/22",
        "family": 4,
        "from": {"host": "client", "address": "192.0.2.10"},
        "to": {"host": "server", "address": "10.77.0.10"},
        "verdict": "rejected",
        "reason": "tcp-reset",
        "refused_by": None,
        "seen_as": None,
        "arrived_at": None,
    }
    assert decided.pop("host") == "router"
    assert decided == {
        "table": "filter",
        "chain": "SSH",
        "rule": 1,
        "text": "-p tcp -j REJECT --reject-with tcp-reset",
        "target": "REJECT",
        "packets": 1,
    }
    assert [sorted(hop) for hop in hops] == [["arrived", "host", "note", "steps"]] * len(hops)
    assert [hop["host"] for hop in hops][:2] == ["client", "router"]
    assert decided in hops[1]["steps"]


def test_probes_that_cannot_be_sent(guarded: Namespace) -> None:
    """What is no host, address or protocol, and what has no route, is bad input."""
    for words, said in {
        "client servr icmp": 'did you mean "server"',
        "clint server icmp": 'did you mean "client"',
        "client server bla/1": "bla/1",
        "client server tcp/0": "tcp/0",
        "client 10.0.0.1 icmp -6": "IPv6",
        "client server icmp -4 -6": "exclude each other",
        "client server icmp -W 0": "0",
        "client server": "WHAT",
        "server 192.0.2.10 icmp -s fd77::10": "family",
    }.items():
        done = guarded.nfctl("lab", "probe", *words.split())
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr, words
        assert "Traceback" not in done.stderr
    inside(guarded, "server", "ip", "route", "del", "default")
    done = guarded.nfctl("lab", "probe", "server", "client", "icmp")
    inside(guarded, "server", "ip", "route", "add", "default", "via", "10.77.0.1")
    assert done.returncode == 2
    assert "server cannot send icmp: there is no route to 192.0.2.10" in done.stderr


# --- graph and completion ------------------------------------------------------------------------


def test_the_picture_of_a_lab(standing: Namespace) -> None:
    """Without a word the only lab is drawn, from what it was made of; by name too."""
    drawn = standing.nfctl("lab", "graph")
    assert (drawn.returncode, drawn.stderr) == (0, "")
    assert drawn.stdout == standing.nfctl("lab", "graph", "pair").stdout
    assert drawn.stdout == standing.nfctl("lab", "graph", "-", input=PAIR).stdout
    assert "10.1.0.1/24" in drawn.stdout
    assert "client" in standing.nfctl("lab", "graph", "router").stdout


def test_what_is_completed(standing: Namespace) -> None:
    """The shell is offered hosts, labs, and topologies with the YAML files here."""
    for line, offered in {
        "nfctl lab exec ": ["alice", "bob"],
        "nfctl lab exec -l pair b": ["bob"],
        "nfctl lab exec -l ": ["pair"],
        "nfctl lab shell a": ["alice"],
        "nfctl lab down ": ["pair"],
        "nfctl lab up rou": ["router"],
        "nfctl lab graph p": ["pair"],
        "nfctl lab exec alice iptables-legacy-sa": ["iptables-legacy-save"],
        "nfctl lab exec alice ip --j": [],
        "nfctl lab probe alice b": ["bob"],
        "nfctl lab probe alice bob t": ["tcp/"],
    }.items():
        word = len(line.split()) - (line[-1] != " ")
        settings = ("_NFCTL_COMPLETE=complete_bash", f"COMP_WORDS={line}", f"COMP_CWORD={word}")
        done = standing.run(["env", *settings, *NFCTL])
        assert (done.stdout.split(), done.stderr) == (offered, ""), line
