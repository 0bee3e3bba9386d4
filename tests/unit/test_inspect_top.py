"""The live view of ``nfctl inspect --top``: rates, the screen, the keys, and what pipes get."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nfctl.cli import inspect_top
from nfctl.cli.inspect_rates import ORDERS, Rates
from nfctl.cli.inspect_top import Top
from nfctl.inspect.text import cells

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = ["192.0.2.1", 4242, "198.51.100.7", 443, "tcp"]
DNS = ["192.0.2.1", 4000, "198.51.100.53", 53, "udp"]
SIX = ["2001:db8:1:2:3:4:5:6", 4242, "2001:db8:6:5:4:3:2:1", 443, "tcp"]


def flow(ends: list[Any], packets: int, octets: int, name: str = "", verdict: str = "") -> Any:
    return [*ends, packets, octets, name, verdict or "accept", 1_700_000_000.0]


def document(packets: int = 0, octets: int = 0, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "queue": 0, "packets": packets, "octets": octets, "verdicts": {"accept": packets},
        "rules": {"default": packets}, "errors": {}, "flows": [],
        "figures": {"waiting": 0, "dropped": 0, "user_dropped": 0},
    }  # fmt: skip
    return found | more


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(clock: Clock) -> Rates:
    return Rates(clock)


def shown(rates: Rates, width: int = 80, height: int = 24, order: str = "rate") -> list[str]:
    """Return the screen as rich prints it, which has to be as wide as it was told at most."""
    console = Console(width=500, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file:
        for line in inspect_top.screen(rates, width, height, order):
            console.print(line, highlight=False)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert all(cells(line) <= max(width, 20) for line in lines)
    assert len(lines) <= height
    return lines


# --- rates --------------------------------------------------------------------------------------


def test_rates_are_since_the_last_figures(rates: Rates, clock: Clock) -> None:
    """Rates are what came in a second; the first figures have none."""
    rates.hear([document(100, 10_000, flows=[flow(WEB, 5, 500)])])
    assert rates.packet_rate == 0
    clock.now += 2
    rates.hear([document(300, 30_000, flows=[flow(WEB, 25, 2500)])])
    assert rates.packet_rate == 100
    assert rates.bit_rate == 80_000
    assert rates.flows()[0].bits == 8_000
    assert rates.packets == 300


def test_the_same_figures_again(rates: Rates, clock: Clock) -> None:
    """A worker that is late keeps its rates for a while; one that is silent has none."""
    said = document(100, 10_000)
    rates.hear([document()])
    clock.now += 1
    rates.hear([said])
    clock.now += 1
    rates.hear([said])
    assert rates.packet_rate == 100
    clock.now += 3
    rates.hear([said])
    assert rates.packet_rate == 0


def test_losses(rates: Rates, clock: Clock) -> None:
    """Losing is what was lost since the figures before, of queue and socket."""
    rates.hear([document(figures={"waiting": 1, "dropped": 5, "user_dropped": 0})])
    clock.now += 1
    rates.hear([document(figures={"waiting": 9, "dropped": 7, "user_dropped": 1})])
    assert rates.losing == 3
    assert rates.figure("dropped") == 7
    clock.now += 1
    rates.hear([document(figures={"waiting": 9, "dropped": 7, "user_dropped": 1})])
    assert rates.losing == 0


def test_several_queues(rates: Rates) -> None:
    """Sums are over all queues; one that was not heard of counts nothing."""
    first = document(10, 1000, flows=[flow(WEB, 1, 100)], rules={"ads": 1, "default": 9})
    second = document(5, 500, queue=1, flows=[flow(WEB, 2, 50, "x.example")], rules={"ads": 2})
    rates.hear([first, {}, second])
    assert (rates.packets, rates.octets) == (15, 1500)
    assert rates.counts("rules") == {"default": 9, "ads": 3}
    (found,) = rates.flows()
    assert (found.packets, found.octets, found.name) == (3, 150, "x.example")


def test_orders(rates: Rates, clock: Clock) -> None:
    """Flows are sorted by what was asked for."""
    rates.hear([document(flows=[flow(WEB, 9, 100), flow(DNS, 1, 5000, "b"), flow(SIX, 2, 1, "a")])])
    clock.now += 1
    rates.hear(
        [document(flows=[flow(WEB, 9, 100), flow(DNS, 2, 5100, "b"), flow(SIX, 3, 999, "a")])]
    )
    found = {order: [one.dport for one in rates.flows(order)] for order in ORDERS}
    assert found["rate"] == [443, 53, 443]
    assert found["bytes"] == [53, 443, 443]
    assert found["packets"] == [443, 443, 53]
    assert [one.name for one in rates.flows("name")] == ["a", "b", ""]
    assert rates.flows("rate")[0].source == SIX[0]


def test_document(rates: Rates, clock: Clock) -> None:
    """The record of --json, field by field: programs rely on it."""
    rates.hear([document()])
    clock.now += 1
    flows = [flow(WEB, 5, 500, "x.example", "drop"), flow(["a", 77, "b", 77, 1], 1, 2)]
    figures = {"waiting": 1, "dropped": 2, "user_dropped": 3}
    rates.hear([document(10, 1000, errors={"x": 1}, flows=flows, figures=figures)])
    found = rates.document()
    assert found.pop("time") > 1.6e9
    shared = {
        "packets": 10, "octets": 1000, "packets_per_second": 10.0, "bits_per_second": 8000,
        "waiting": 1, "dropped": 2, "user_dropped": 3,
    }  # fmt: skip
    assert found == {
        "event": "figures", "seconds": 1.0, **shared, "verdicts": {"accept": 10},
        "rules": {"default": 10}, "errors": {"x": 1}, "queues": [{"queue": 0, **shared}],
        "flows": [
            {"protocol": "tcp", "source": "192.0.2.1", "sport": 4242,
             "destination": "198.51.100.7", "dport": 443, "packets": 5, "octets": 500,
             "bits_per_second": 4000, "name": "x.example", "verdict": "drop", "last": 1.7e9},
            {"protocol": "icmp", "source": "a", "destination": "b", "packets": 1, "octets": 2,
             "bits_per_second": 16, "verdict": "accept", "last": 1.7e9},
        ],
    }  # fmt: skip


# --- the screen ---------------------------------------------------------------------------------


def test_screen(rates: Rates, clock: Clock) -> None:
    """A terminal of 80 columns, exactly."""
    rates.hear([document()])
    clock.now += 61
    flows = [flow(WEB, 5, 500_000, "www.example.com", "drop"), flow(DNS, 1, 90)]
    said = document(1500, 2_000_000, flows=flows, verdicts={"accept": 1495, "drop": 5})
    rates.hear([said | {"rules": {"default": 1495, "ads": 5}}])
    assert shown(rates) == [
        "nfctl inspect                                                            0:01:01",
        "25 packets/s  262kbit/s  in all 1.5k packets, 2.0MB",
        "verdicts accept 1.5k  drop 5",
        "rules    ads 5",
        "queue    waiting 0  full 0  buffer full 0",
        "",
        "PROTO FLOW                                       NAME            VERDICT   BIT/S",
        "tcp   192.0.2.1:4242 > 198.51.100.7:443          www.example.com drop        66k",
        "udp   192.0.2.1:4000 > 198.51.100.53:53                          accept       12",
    ]


def test_wide_screen_has_all_columns(rates: Rates) -> None:
    """A wide terminal shows bytes and packets, and whole IPv6 addresses."""
    rates.hear([document(flows=[flow(SIX, 7, 1234, "www.example.com")])])
    lines = shown(rates, width=140)
    row = "tcp   [2001:db8:1:2:3:4:5:6]:4242 > [2001:db8:6:5:4:3:2:1]:443 "
    assert lines[-2].split() == ["PROTO", "FLOW", "NAME", "VERDICT", "BIT/S", "BYTES", "PACKETS"]
    assert lines[-1].startswith(row)
    assert lines[-1].split()[-4:] == ["accept", "0", "1.2k", "7"]


def test_sorted_column_is_always_there(rates: Rates) -> None:
    """A narrow terminal leaves out numbers, but not the one that flows are sorted by."""
    rates.hear([document(flows=[flow(WEB, 7, 1234)])])
    assert "PACKETS" in shown(rates, width=50, order="packets")[-2]
    assert "PACKETS" not in shown(rates, width=50, order="bytes")[-2]


def test_names_keep_their_end(rates: Rates) -> None:
    """A name that is too long shows whose it is, not what it pretends to be."""
    name = "www.bank.example.login.secure.account.evil.example"
    rates.hear([document(flows=[flow(SIX, 7, 1234, name)])])
    row = shown(rates)[-1]
    assert "evil.example " in row
    assert "www.bank" not in row


def test_losing_is_loud(rates: Rates, clock: Clock) -> None:
    """A queue that loses packets is red; one that lost some is told of."""
    rates.hear([document()])
    clock.now += 1
    rates.hear([document(figures={"waiting": 9, "dropped": 3, "user_dropped": 0})])
    lines = inspect_top.screen(rates, 80, 24)
    (line,) = [line for line in lines if line.plain.startswith("queue")]
    assert line.plain == "queue    waiting 9  full 3  buffer full 0  losing 3/s"
    assert any("red" in str(span.style) for span in line.spans)


def test_workers_have_rows(rates: Rates) -> None:
    """Several workers have a row each, as far as there is room."""
    rates.hear([document(queue=number) for number in range(3, 7)])
    lines = shown(rates, height=30)
    assert [line.split()[0] for line in lines if line[:6].strip().isdigit()] == ["3", "4", "5", "6"]
    rates.hear([document(queue=number) for number in range(60)])
    assert any(line.strip() == "and 56 more queues" for line in shown(rates, height=24))


@pytest.mark.parametrize("height", [1, 2, 5, 8, 24])
@pytest.mark.parametrize("width", [1, 20, 39, 59, 80, 200])
def test_any_size(rates: Rates, width: int, height: int) -> None:
    """No terminal is too small, or too large."""
    flows = [
        flow(SIX, 7, 1234, "a" * 300, "drop"),
        flow(WEB, 1, 1),
        flow(["日" * 40, 1] * 2 + ["x"], 1, 1),
    ]
    rates.hear([document(flows=flows, rules={"r" * 90: 1, "s" * 90: 2}, errors={"e" * 300: 1})] * 3)
    shown(rates, width, height)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
rows = st.tuples(*[anything] * 10).map(list) | anything
documents = st.fixed_dictionaries(
    {},
    optional={
        "queue": anything, "packets": anything, "octets": anything, "figures": anything,
        "verdicts": st.dictionaries(st.text(st.characters()), anything) | anything,
        "rules": anything, "errors": anything, "flows": st.lists(rows, max_size=5) | anything,
    },
)  # fmt: skip


@settings(max_examples=40)
@given(st.lists(st.lists(documents, min_size=1, max_size=3), max_size=3), st.sampled_from(ORDERS))
def test_whatever_a_worker_says(said: list[list[Any]], order: str) -> None:
    """A worker that was taken over breaks neither the screen nor the JSON."""
    clock = Clock()
    rates = Rates(clock)
    for each in said:
        rates.hear(each)
        clock.now += 1
        assert all(line.isprintable() for line in shown(rates, order=order))
        plain = inspect_top.plain(rates, order)
        assert plain.replace("\n", "").isprintable()
        plain.encode()
        json.loads(json.dumps(rates.document(order), allow_nan=False))


# --- pipes --------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_json_lines(pipe: tuple[int, int], clock: Clock) -> None:
    """With --json each second is a line, and so is what happened."""
    with Top(json=True, stream=pipe[1], clock=clock) as top:
        assert not top.interactive
        top.feed([document(3, 4)])
        top.event("the queue was full")
    first, second = [json.loads(line) for line in os.read(pipe[0], 65536).splitlines()]
    assert (first["event"], first["packets"]) == ("figures", 3)
    assert (second["event"], second["text"]) == ("note", "the queue was full")


def test_plain_lines(pipe: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets plain lines, without a single escape sequence."""
    with Top(stream=pipe[1]) as top:
        flows = [flow(WEB, 2, 300, "evil\x1b[2J.example", "drop")]
        top.feed([document(2, 300, flows=flows, rules={"ads": 2}, verdicts={"drop": 2})])
        top.event("it \x1b[2J happened")
    first, rules, second = os.read(pipe[0], 65536).decode().splitlines()
    assert first[8:] == (
        " 0 packets/s 0bit/s, 2 packets 300 bytes: drop 2; waiting 0, full 0, buffer full 0"
    )
    assert rules == "  rules: ads 2"
    assert second == (
        "  tcp 192.0.2.1:4242 > 198.51.100.7:443 evil\\x1b[2J.example drop "
        "2 packets 300 bytes 0bit/s"
    )
    assert capsys.readouterr().err == "nfctl: it \\x1b[2J happened\n"


# --- a terminal ---------------------------------------------------------------------------------

SCRIPT = """
import fcntl, json, os, select, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from nfctl.cli.inspect_top import Top
flow = ["192.0.2.1", 4242, "198.51.100.7", 443, "tcp", 1, 2, "www.example.com", "accept", 3.0]
document = {"packets": 7, "octets": 9, "flows": [flow]}
with Top() as top:
    assert top.interactive
    top.feed([document])
    while not top.key():
        top.event("pressed, sorting by " + top.order)
"""


class Terminal:
    """A program on a terminal of its own, and what it draws."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(80, 24)
        self.before = termios.tcgetattr(self.slave)
        environment = os.environ | {"TERM": "xterm-256color"}
        environment.pop("NO_COLOR", None)
        self.program = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdin=self.slave, stdout=self.slave,
            stderr=subprocess.PIPE, start_new_session=True, env=environment,
        )  # fmt: skip
        self.seen = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def until(self, text: str) -> str:
        """Read what is drawn until there is a text; return all since the last call."""
        while text not in self.seen:
            assert select.select([self.master], [], [], 20)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.master, 65536).decode()
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> tuple[int, str]:
        _, errors = self.program.communicate(timeout=20)
        return self.program.returncode, errors.decode()

    def close(self) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.communicate()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_keys_and_the_way_back(terminal: Terminal) -> None:
    """Key s sorts, p pauses, q ends, other keys do nothing; then the terminal is as it was."""
    first = terminal.until("www.example.com")
    assert "\x1b[?1049h" in first
    assert not termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ICANON)
    terminal.press("s")
    terminal.until("pressed, sorting by packets")
    terminal.press("\x1b[A\x1bOS")  # an arrow, and F4, whose name ends in S
    terminal.until("pressed, sorting by packets")
    terminal.press("p")
    terminal.until("PAUSED")
    terminal.press("\x1a")  # Ctrl-Z stops nothing
    terminal.press("q")
    terminal.until("\x1b[?25h\x1b[?1049l")
    assert terminal.end() == (0, "")
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_interrupted(terminal: Terminal) -> None:
    """Ctrl-C, too, gives the terminal back."""
    terminal.until("www.example.com")
    terminal.press("\x03")
    terminal.until("\x1b[?1049l")
    code, errors = terminal.end()
    assert code == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_resized(terminal: Terminal) -> None:
    """A terminal that becomes smaller is drawn anew at once."""
    terminal.until("pause")
    terminal.resize(40, 10)
    os.kill(terminal.program.pid, signal.SIGWINCH)
    terminal.until("\x1b[H")
    drawn = terminal.until("pause")
    assert len(drawn.split("\n")) <= 10
    terminal.press("q")
    assert terminal.end() == (0, "")
