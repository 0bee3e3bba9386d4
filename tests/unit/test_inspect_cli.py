"""``nfctl inspect`` without root: wrong words, files of rules that are checked, captures."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from scapy.utils import PcapNgReader, wrpcap
from typer.testing import CliRunner

from nfctl import cli
from nfctl.cli.answer import run
from nfctl.inspect.run import Run

HERE: Final = IP(src="192.0.2.1", dst="198.51.100.7")
GET: Final = b"GET /x HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
PACKETS: Final = [
    HERE / TCP(sport=4242, dport=80, flags="S", seq=1),
    HERE / TCP(sport=4242, dport=80, flags="PA", seq=2, ack=1) / Raw(GET),
    HERE / UDP(sport=4000, dport=53) / DNS(rd=1, qd=DNSQR(qname="ads.example.net")),
    IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2) / Raw(b"six"),
]
LENGTHS: Final = [len(bytes(packet)) for packet in PACKETS]
TIME: Final = 1_700_000_000
SEEN: Final = f"nfctl: 4 packets, {sum(LENGTHS)} bytes: 4 accepted\n"
RULES: Final = """\
rules:
- {name: ads, when: {dns.qname: ads.example.net}, verdict: drop}
- {name: web, when: {proto: tcp, dport: 80}, verdict: accept, log: true}
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Call:
    """Runs ``nfctl inspect`` in this process; never as far as the kernel."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *words: str, text: str | None = None) -> Said:
        written = ""

        def action() -> int:
            nonlocal written
            application = cli.application(["inspect"])
            done = CliRunner().invoke(application, ["inspect", *words], text, prog_name="nfctl")
            written = done.output
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done.exit_code

        self._capfd.readouterr()
        code = run(action)
        out, err = self._capfd.readouterr()
        return Said(code, out + written, err)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    def reached(*_args: object, **_options: object) -> None:
        pytest.fail("this would have reached the kernel")

    monkeypatch.setattr(Run, "run", reached)
    monkeypatch.setattr("nfctl.inspect.placement.remove", reached)
    monkeypatch.setenv("COLUMNS", "200")
    return Call(capfd)


@pytest.fixture
def capture(tmp_path: Path) -> str:
    """Make a capture of raw IP packets, one second apart."""
    packets = [Raw(bytes(packet)) for packet in PACKETS]
    for number, packet in enumerate(packets):
        packet.time = TIME + number
    file = str(tmp_path / "x.pcap")
    wrpcap(file, packets, linktype=101)
    return file


# --- wrong words --------------------------------------------------------------------------------

WRONG: Final = {
    "--show bogus": "--show bogus: known are summary, detail, hex, json, flows",
    "--queue 65536": "65536 is not in the range 0<=x<=65535",
    "--queue -1": "-1 is not in the range",
    "--queue x": "'x' is not a valid int",
    "--workers 0": "0 is not in the range 1<=x<=64",
    "--workers 65": "65 is not in the range",
    "--count -1": "-1 is not in the range",
    "--queue-length 0": "0 is not in the range",
    "--copy 65532": "65532 is not in the range",
    "--deadline -1": "-1.0 is not in the range",
    "--deadline nan": "--deadline nan: it is 60,000 milliseconds at most",
    "--deadline inf": "--deadline inf: it is 60,000 milliseconds at most",
    "--deadline 60001": "--deadline 60001: it is 60,000 milliseconds at most",
    "--on-overload maybe": "--on-overload maybe: it is accept or drop",
    "--duration never": '--duration:1:1: "never" is no time',
    "--duration 0": "--duration:1:1: 0 is no time that something can last",
    "--duration -1": "--duration:1:1:",
    "--mark-mask 0": "--mark-mask 0: it is two adjacent bits, as 0x3000",
    "--mark-mask 7": "--mark-mask 7: it is two adjacent bits",
    "--mark-mask 0x180000000": "it is two adjacent bits",
    "--mark-mask -3": "it is two adjacent bits",
    "--mark-mask bits": "--mark-mask bits: it is two adjacent bits",
    "--buffer lots": "--buffer lots: it is a size in bytes below 2G, as 64K or 100M",
    "--buffer 2G": "--buffer 2G: it is a size",
    "--buffer 0": "--buffer 0: it is a size",
    "--buffer 1T": "--buffer 1T: it is a size",
    "--buffer 1.5M": "--buffer 1.5M: it is a size",
    "--buffer ²": "it is a size in bytes",
    "--rotate 100M": "--rotate is for the file of --write",
    "--write x.pcap": '"x.pcap" is no name for a capture',
    "--write .pcapng": '".pcapng" is no name for a capture',
    "--write /nowhere/x.pcapng": 'cannot write to "/nowhere": No such file or directory',
    "--rules /nowhere.yaml": 'cannot read "/nowhere.yaml": No such file or directory',
    "--check /nowhere.yaml": 'cannot read "/nowhere.yaml": No such file or directory',
    "--read /nowhere.pcap": 'cannot read "/nowhere.pcap": No such file or directory',
    "--read /dev/null": 'cannot read "/dev/null": it is no pcap or pcapng file',
    "--read x --match -i_lo": "--match is for live packets, and does nothing with --read",
    "--read x --chain INPUT": "--chain is for live packets, and does nothing with --read",
    "--read x --top": "--top is for live packets, and does nothing with --read",
    "--read x --duration 3": "--duration is for live packets, and does nothing with --read",
    "--read x --clean": "--clean is for live packets, and does nothing with --read",
    "--nonsense": "No such option: --nonsense",
    "tcp port 80": "packets are chosen by --match, in iptables' words, and not by 'tcp'",
    "--json --show hex": "--json and --show hex exclude each other",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_word(call: Call, words: str) -> None:
    """Exit code 2, and what is wrong, before anything is done."""
    said = call(*words.split())
    assert said.code == 2
    assert WRONG[words] in said.err + said.out
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "size"),
    [("65536", 65536), ("64K", 65536), ("64k", 65536), ("64KiB", 65536), ("1m", 1 << 20),
     ("1MB", 1 << 20), ("1G", 1 << 30), ("2147483647", (1 << 31) - 1)],
)  # fmt: skip
def test_sizes(call: Call, monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    """A size is in bytes, or has a unit, a power of two."""
    found: list[Any] = []
    monkeypatch.setattr("nfctl.cli.inspect._run", lambda options, _json: found.append(options))
    with pytest.raises(AttributeError):
        call("--buffer", text)  # nothing reports
    assert found[0].job.buffer == size


def options_of(call: Call, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """Return the options that a command line makes."""
    found: list[Any] = []
    monkeypatch.setattr("nfctl.cli.inspect._run", lambda options, _json: found.append(options))
    monkeypatch.setattr("nfctl.cli.inspect._top", lambda options, _json: found.append(options))
    with pytest.raises(AttributeError):
        call(*words)
    return found[0]


def test_what_is_asked_for(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words become options: chains one by one, times in seconds, the mask as a number."""
    words = ["-c", "INPUT,OUTPUT", "-c", "FORWARD", "--duration", "1m30s", "--mark-mask", "0x30000",
             "--deadline", "250", "--on-overload", "drop", "-n", "5"]  # fmt: skip
    options = options_of(call, monkeypatch, *words)
    assert options.chains == ("INPUT", "OUTPUT", "FORWARD")
    assert options.duration == 90
    assert (options.job.mask, options.job.deadline, options.job.limit) == (0x30000, 0.25, 5)
    assert options.job.fail_open is False
    assert options.job.show == "summary"


@pytest.mark.parametrize(
    ("words", "shown"),
    [([], "summary"), (["--json"], "json"), (["--show", "hex"], "hex"), (["--quiet"], ""),
     (["--top"], ""), (["--json", "--quiet"], ""), (["--json", "--show", "json"], "json")],
)  # fmt: skip
def test_what_is_shown(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: list[str], shown: str
) -> None:
    """--json is a kind to show; --quiet and --top show no packets."""
    assert options_of(call, monkeypatch, *words).job.show == shown


# --- --check ------------------------------------------------------------------------------------


def test_check(call: Call, tmp_path: Path) -> None:
    """A file of rules that is right: what it has, exit code 0."""
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    said = call("--check", str(file))
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0].startswith("2 rules, default accept")
    said = call("--check", str(file), "--json")
    found = json.loads(said.out)
    assert (found["file"], found["rules"]) == (str(file), ["ads", "web"])
    assert found["default"] == "accept"
    assert found["remarks"]


def test_check_says_where(call: Call, tmp_path: Path) -> None:
    """A file of rules that is wrong: the place, the line and what would be right."""
    file = tmp_path / "rules.yaml"
    file.write_text("rules:\n- {when: {dport: 70000}, verdict: drop}\n")
    said = call("--check", str(file))
    assert said.code == 2
    assert f"{file}:2:18: " in said.err
    assert "  - {when: {dport: 70000}, verdict: drop}\n" in said.err
    assert said.out == ""


def test_check_reads_standard_input() -> None:
    """A dash is standard input, named so in errors."""
    done = subprocess.run(
        [sys.executable, "-m", "nfctl", "inspect", "--check", "-"],
        input="rules: [{verdict: no}]", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "<stdin>:1:" in done.stderr


# --- --read -------------------------------------------------------------------------------------


def test_read(call: Call, capture: str) -> None:
    """A capture's packets in lines, with what they carry, and a report."""
    said = call("--read", capture)
    assert said.code == 0
    lines = said.out.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("INPUT 192.0.2.1:4242 > 198.51.100.7:80 tcp 40B [SYN]")
    assert lines[1].endswith("HTTP GET /x www.example.com")
    assert lines[2].endswith("DNS query A ads.example.net")
    assert lines[3].endswith("[2001:db8::1]:1 > [2001:db8::2]:2 udp 51B")
    assert said.err == SEEN


def test_read_with_rules(call: Call, capture: str, tmp_path: Path) -> None:
    """The verdicts of rules, and how many packets each of them decided."""
    file = tmp_path / "rules.yaml"
    file.write_text(RULES)
    said = call("--read", capture, "--rules", str(file))
    lines = said.out.splitlines()
    assert [line.partition(" => ")[2] for line in lines] == [
        "accept by web", "accept by web", "drop by ads", "",
    ]  # fmt: skip
    assert said.err.splitlines() == [
        SEEN.replace("4 accepted", "3 accepted, 1 dropped").rstrip(),
        "nfctl: decided by web 2, ads 1",
    ]


@pytest.mark.parametrize("words", [["--json"], ["--show", "json"]], ids=" ".join)
def test_read_in_json(call: Call, capture: str, words: list[str]) -> None:
    """One document a line, and the last one is the end; nothing on standard error."""
    said = call("--read", capture, *words)
    assert (said.code, said.err) == (0, "")
    *packets, end = map(json.loads, said.out.splitlines())
    assert [one["length"] for one in packets] == LENGTHS
    assert [one["time"] for one in packets] == [TIME, TIME + 1, TIME + 2, TIME + 3]
    assert packets[2]["dns"]["questions"] == [{"name": "ads.example.net", "type": "A"}]
    assert end == {
        "event": "end", "packets": 4, "octets": sum(LENGTHS), "verdicts": {"accept": 4},
        "rules": {"default": 4}, "errors": {}, "names": {}, "offloaded": 0, "rewritten": 0,
    }  # fmt: skip


def test_read_quietly(call: Call, capture: str) -> None:
    """--quiet leaves the report alone, in JSON too."""
    said = call("--read", capture, "--quiet")
    assert (said.out, said.err) == ("", SEEN)
    said = call("--read", capture, "--quiet", "--json")
    assert said.err == ""
    assert json.loads(said.out)["packets"] == 4


def test_read_so_many(call: Call, capture: str) -> None:
    """--count ends it after so many packets."""
    said = call("--read", capture, "--count", "2")
    assert len(said.out.splitlines()) == 2
    assert said.err.startswith("nfctl: 2 packets, ")


def test_read_and_write(call: Call, capture: str, tmp_path: Path) -> None:
    """--write makes a capture out of another, with verdicts as comments, for its owner alone."""
    rules, file = tmp_path / "rules.yaml", tmp_path / "new.pcapng"
    rules.write_text(RULES)
    said = call("--read", capture, "--rules", str(rules), "--write", str(file), "--quiet")
    assert said.code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with PcapNgReader(str(file)) as reader:
        packets = list(reader)
    assert [bytes(packet) for packet in packets] == [bytes(packet) for packet in PACKETS]
    assert [packet.comment for packet in packets] == [
        b"INPUT: accept (web)", b"INPUT: accept (web)", b"INPUT: drop (ads)",
        b"INPUT: accept (default)",
    ]  # fmt: skip
    assert [float(packet.time) for packet in packets] == [TIME, TIME + 1, TIME + 2, TIME + 3]


def test_read_what_is_cut(call: Call, capture: str, tmp_path: Path) -> None:
    """Of a capture that ends in the middle of a packet, those before it, and then an error."""
    file = tmp_path / "cut.pcap"
    file.write_bytes(Path(capture).read_bytes()[:-10])
    said = call("--read", str(file))
    assert said.code == 2
    assert len(said.out.splitlines()) == 3
    assert "packet 4: the file ends in the middle of it" in said.err


def test_read_standard_input(capture: str) -> None:
    """A dash is standard input: what tcpdump -w - writes."""
    with Path(capture).open("rb") as whole:
        done = subprocess.run(
            [sys.executable, "-m", "nfctl", "inspect", "--read", "-", "--json"],
            stdin=whole, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    assert len(done.stdout.splitlines()) == 5


def test_read_for_somebody_who_leaves(tmp_path: Path) -> None:
    """A reader that has seen enough (| head -1) costs no error and no traceback."""
    many = tmp_path / "many.pcap"
    wrpcap(str(many), [Raw(bytes(PACKETS[1]))] * 20_000, linktype=101)
    shell = f"{sys.executable} -m nfctl inspect --read {many} | head -1"
    done = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, check=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_read_by_a_handler(call: Call, capture: str, tmp_path: Path) -> None:
    """Handlers decide a capture's packets, too; as root only those that root trusts."""
    file = tmp_path / "h.py"
    file.write_text("def f(packet):\n    if packet.dport == 53: packet.drop()\n")
    said = call("--read", capture, "--handler", f"{file}:f", "--json")
    if os.geteuid() == 0:
        assert said.code == 2
        assert "a handler's code is not trusted" in said.err
        return
    *packets, end = map(json.loads, said.out.splitlines())
    assert [one["verdict"] for one in packets] == ["accept", "accept", "drop", "accept"]
    assert end["rules"] == {"default": 3, f"handler {file}:f": 1}


def test_what_needs_root_says_so() -> None:
    """Without privileges the command ends with exit code 3 and says what it needs."""
    done = subprocess.run(
        [sys.executable, "-m", "nfctl", "inspect", "--count", "1"],
        capture_output=True, text=True, check=False, timeout=60, preexec_fn=_without_net_admin,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout == ""
    assert "run as root" in done.stderr


def _without_net_admin() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(24, 12, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_ADMIN
