"""What ``nfctl inspect`` prints: the kinds, the colours, and readers that are slow, or gone."""

from __future__ import annotations

import array
import fcntl
import json
import os
import pty
import re
import select
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw, raw

from nfctl.inspect import show as module
from nfctl.inspect import summary
from nfctl.inspect.packet import Packet
from nfctl.inspect.show import KEPT, Output, Show, hexdump
from nfctl.inspect.verdict import ACCEPT, Action, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = IP(src="192.0.2.1", dst="198.51.100.7")
REQUEST = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"
SYN = raw(HERE / TCP(sport=4242, dport=80, flags="S"))
GET = raw(HERE / TCP(sport=4242, dport=80, flags="PA") / Raw(REQUEST))
DROP = Verdict(Action.DROP, "ads")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Pipe:
    """A pipe of 4,096 bytes, unless more is said."""

    def __init__(self, size: int = 4096) -> None:
        self.read, self.write = os.pipe()
        fcntl.fcntl(self.write, fcntl.F_SETPIPE_SZ, size)

    def text(self) -> str:
        """Return what is in the pipe now."""
        found = b""
        while select.select([self.read], [], [], 0)[0] and (piece := os.read(self.read, 1 << 16)):
            found += piece
        return found.decode()

    def close(self) -> None:
        for fd in (self.read, self.write):
            try:
                os.close(fd)
            except OSError:
                continue


@pytest.fixture
def out() -> Iterator[Pipe]:
    pipe = Pipe(1 << 16)
    yield pipe
    pipe.close()


@pytest.fixture
def err() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAST", 0.05)


def packet(data: bytes = SYN, **more: Any) -> Packet:
    settings: dict[str, Any] = {"indev": "eth0", "time": 1_700_000_000.25} | more
    return Packet(data, **settings)


# --- kinds --------------------------------------------------------------------------------------


def test_summary(out: Pipe) -> None:
    """One line a packet, the one that summary makes, without colours in a pipe."""
    show = Show("summary", None, out.write)
    show.packet(packet(), ACCEPT)
    show.packet(packet(GET), DROP)
    show.close()
    lines = [summary.line(packet(), ACCEPT), summary.line(packet(GET), DROP)]
    assert out.text() == "".join(f"{line}\n" for line in lines)


def test_json(out: Pipe, err: Pipe) -> None:
    """Records and events are lines of one stream, in their order."""
    show = Show("json", None, out.write, events=err.write)
    show.packet(packet(), ACCEPT)
    show.event("the queue was full", packets=3)
    show.packet(packet(GET), DROP)
    show.close()
    first, event, second = [json.loads(line) for line in out.text().splitlines()]
    assert first == summary.record(packet(), ACCEPT)
    assert second == summary.record(packet(GET), DROP)
    assert event.pop("time") == pytest.approx(time.time(), abs=60)
    assert event == {"event": "note", "text": "the queue was full", "packets": 3}
    assert err.text() == ""


def test_events_of_people(out: Pipe, err: Pipe) -> None:
    """Events go to standard error, and a terminal obeys nothing in them."""
    show = Show("summary", None, out.write, events=err.write)
    show.event("handler x: \x1b[2J\nboom")
    show.close()
    assert out.text() == ""
    assert err.text() == "nfctl: handler x: \\x1b[2J\\x0aboom\n"


def test_hex(out: Pipe) -> None:
    """The bytes of a packet stand under its line, and are the packet's."""
    show = Show("hex", colour=False, stream=out.write)
    show.packet(packet(GET), ACCEPT)
    show.close()
    line, *rows = out.text().splitlines()
    assert line == summary.line(packet(GET), ACCEPT)
    assert rows[0].startswith("  0000  45 00 ")
    assert rows[3].endswith("  TP/1.1..Host: ww")
    assert bytes.fromhex("".join(row[8:56] for row in rows)) == GET


@given(st.binary(max_size=100))
def test_hexdump(data: bytes) -> None:
    """A dump can be read back, and holds printable ASCII only."""
    text = hexdump(data)
    assert bytes.fromhex("".join(row[8:56] for row in text.splitlines())) == data
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_detail(out: Pipe) -> None:
    """The dissection of scapy stands under the line, indented."""
    show = Show("detail", colour=False, stream=out.write)
    show.packet(packet(), ACCEPT)
    show.close()
    line, *rest = out.text().splitlines()
    assert line == summary.line(packet(), ACCEPT)
    assert any("[ TCP ]" in row for row in rest)
    assert any(re.fullmatch(r" +dport += .*(80|http)", row) for row in rest)
    assert all(row.startswith("  ") or not row for row in rest)


def test_flows(out: Pipe) -> None:
    """Of kind flows, only packets that name their flow are shown."""
    show = Show("flows", colour=False, stream=out.write)
    show.packet(packet(), ACCEPT)
    show.packet(packet(GET), ACCEPT)
    show.packet(packet(), DROP, hello=True)
    show.close()
    lines = [summary.line(packet(GET), ACCEPT), summary.line(packet(), DROP)]
    assert out.text().splitlines() == lines


def test_colours_change_no_text(out: Pipe) -> None:
    """A coloured line is the plain one with colours: what is dropped is red, names are bold."""
    show = Show("summary", colour=True, stream=out.write)
    show.packet(packet(GET), DROP)
    show.packet(packet(), ACCEPT)
    show.packet(packet(), Verdict(Action.REJECT, "r"))
    show.close()
    text = out.text()
    verdicts = [DROP, ACCEPT, Verdict(Action.REJECT, "r")]
    packets = [packet(GET), packet(), packet()]
    plain = [summary.line(one, verdict) for one, verdict in zip(packets, verdicts, strict=True)]
    assert COLOURS.sub("", text).splitlines() == plain
    assert "\x1b[31mdrop by ads\x1b[0m" in text
    assert "\x1b[33mreject by r\x1b[0m" in text
    assert "\x1b[1mwww.example.com\x1b[0m" in text


def test_colours_are_of_terminals(monkeypatch: pytest.MonkeyPatch, out: Pipe) -> None:
    """A terminal has colours, unless NO_COLOR is set; a pipe never has."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    try:
        assert Show(stream=slave).colour
        assert not Show(stream=out.write).colour
        monkeypatch.setenv("NO_COLOR", "1")
        assert not Show(stream=slave).colour
    finally:
        os.close(master)
        os.close(slave)


# --- when it is written -------------------------------------------------------------------------


def test_lines_are_gathered(out: Pipe) -> None:
    """Lines are written when flushed, or 50 ms after those before."""
    now = [0.0]
    show = Show("summary", None, out.write, clock=lambda: now[0])
    show.packet(packet(), ACCEPT)
    assert out.text() == ""
    assert show.waiting
    show.flush()
    assert not show.waiting
    assert out.text().count("\n") == 1
    show.packet(packet(), ACCEPT)
    now[0] += module.EVERY
    show.packet(packet(), ACCEPT)
    assert out.text().count("\n") == 2
    show.close()


def test_a_slow_reader_holds_up_nothing(err: Pipe) -> None:
    """What a full pipe has no room for is left out, counted, and spoken of once it has room."""
    pipe = Pipe()
    show = Show("json", None, pipe.write)
    line = json.dumps(summary.record(packet(), ACCEPT), separators=(",", ":")) + "\n"
    sent = 2 * KEPT // len(line)
    started = time.monotonic()
    for _ in range(sent):
        show.packet(packet(), ACCEPT)
    show.flush()
    assert time.monotonic() - started < 30  # it does not wait; making so many lines takes a while
    assert show.missed
    found = ""
    while show.waiting or "missed" not in found:
        found += pipe.text()
        show.flush()
    show.close()
    found += pipe.text()
    pipe.close()
    records = [json.loads(text) for text in found.splitlines()]
    (event,) = [record for record in records if "event" in record]
    assert event["packets"] == show.missed
    assert event["text"].startswith(f"{show.missed} packets were not shown")
    assert len(records) - 1 + show.missed == sent
    assert err.text() == ""


def test_a_stopped_reader_does_not_hold_up_the_end() -> None:
    """The end of a run waits a moment for a full pipe, and not longer."""
    pipe = Pipe()
    show = Show("hex", None, pipe.write)
    for _ in range(100):
        show.packet(packet(GET), ACCEPT)
    show.close()
    assert len(pipe.text()) == pytest.approx(4096, abs=600)
    pipe.close()


def test_a_stopped_terminal_holds_up_nothing() -> None:
    """Where Ctrl-S stopped the terminal, packets go on."""
    master, slave = pty.openpty()
    try:
        show = Show("summary", None, slave)
        termios.tcflow(slave, termios.TCOOFF)
        for _ in range(2 * KEPT // 60):
            show.packet(packet(), ACCEPT)
        show.flush()
        assert show.missed
        termios.tcflow(slave, termios.TCOON)
        show.flush()
        assert select.select([master], [], [], 5)[0]
        show.close()
    finally:
        os.close(master)
        os.close(slave)


def test_shared_flags_stay(out: Pipe) -> None:
    """The pipe that is shared with others is not made non-blocking for them."""
    show = Show("summary", None, out.write)
    show.packet(packet(), ACCEPT)
    show.flush()
    assert not fcntl.fcntl(out.write, fcntl.F_GETFL) & os.O_NONBLOCK
    show.close()


def test_captures_wait_for_their_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``waits`` nothing is left out, though the pipe was full and much less is kept."""
    monkeypatch.setattr(module, "KEPT", 1000)
    pipe = Pipe()
    lines: list[str] = []

    def read() -> None:
        held = array.array("i", [0])
        while held[0] < 3900:  # until there is no room for another line
            fcntl.ioctl(pipe.read, termios.FIONREAD, held)
        with os.fdopen(os.dup(pipe.read)) as stream:
            lines.extend(stream)

    reader = threading.Thread(target=read)
    reader.start()
    show = Show("summary", None, pipe.write, waits=True)
    for _ in range(1000):
        show.packet(packet(), ACCEPT)
    show.close()
    os.close(pipe.write)
    reader.join()
    pipe.close()
    assert lines == [summary.line(packet(), ACCEPT) + "\n"] * 1000
    assert show.missed == 0


def test_nobody_reads(out: Pipe) -> None:
    """A reader that is gone ends the run."""
    os.close(out.read)
    show = Show("summary", None, out.write)
    show.packet(packet(), ACCEPT)
    with pytest.raises(BrokenPipeError):
        show.flush()
    show.close()


def test_a_terminal_that_is_gone() -> None:
    """So does a terminal that was hung up."""
    master, slave = pty.openpty()
    show = Show("summary", None, slave)
    os.close(master)
    show.packet(packet(), ACCEPT)
    with pytest.raises(BrokenPipeError):
        show.flush()
    os.close(slave)


def test_nobody_reads_events(out: Pipe, err: Pipe) -> None:
    """A standard error that nobody reads, or that is closed, does not end the run."""
    os.close(err.read)
    show = Show("summary", None, out.write, events=err.write)
    show.event("something")
    show.packet(packet(), ACCEPT)
    show.close()
    assert out.text().count("\n") == 1


def test_file(tmp_path: Path) -> None:
    """A file gets everything behind what it holds already."""
    path = tmp_path / "lines"
    path.write_text("before\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    show = Show("summary", None, fd)
    for _ in range(3000):
        show.packet(packet(), ACCEPT)
    show.close()
    os.close(fd)
    lines = path.read_text().splitlines()
    assert lines == ["before", *[summary.line(packet(), ACCEPT)] * 3000]


@pytest.mark.parametrize("waits", [False, True])
def test_processes_share_a_pipe(waits: bool) -> None:
    """What several workers write to one pipe does not mix within a packet's text."""
    pipe = Pipe(1 << 16)
    outputs = [Output(pipe.write, waits=waits) for _ in range(2)]
    texts = [(letter * 700 + "\n").encode() for letter in "ab"]
    found = ""
    for _ in range(100):
        for output, text in zip(outputs, texts, strict=True):
            assert output.write(text, text, text)
        found += pipe.text()
    for output in outputs:
        output.close()
    found += pipe.text()
    assert set(found.splitlines()) == {"a" * 700, "b" * 700}
    assert len(found.splitlines()) == 600
    pipe.close()


def test_udp_of_every_kind(out: Pipe) -> None:
    """Each kind shows a packet without a payload, too."""
    for kind in module.KINDS:
        show = Show(kind, colour=True, stream=out.write)
        show.packet(packet(raw(HERE / UDP())), DROP, hello=True)
        show.close()
        assert out.text().endswith("\n")
