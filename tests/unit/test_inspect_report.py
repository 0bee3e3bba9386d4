"""What ``nfctl inspect`` says at its end, and beside the packets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.cli.inspect_report import Teller, lines
from nfctl.inspect.countdown import Countdown
from nfctl.inspect.run import Report

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY: Final = {"packets": 0, "octets": 0, "verdicts": {}, "rules": {}, "errors": {}}


def report(**more: Any) -> dict[str, Any]:
    return EMPTY | more


def first(**more: Any) -> str:
    return next(lines(report(**more)))


# --- the report ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (report(), "0 packets"),
        (report(seconds=1.26), "0 packets in 1.3 s"),
        (report(packets=1, octets=29, verdicts={"drop": 1}), "1 packet, 29 bytes: 1 dropped"),
        (report(packets=1234567, octets=1 << 20), "1,234,567 packets, 1.0 MiB"),
        (
            report(packets=4, octets=1023, verdicts={"accept": 2, "reject": 1, "repeat": 1}),
            "4 packets, 1,023 bytes: 2 accepted, 1 rejected, 1 repeated",
        ),
    ],
)
def test_the_first_line(document: dict[str, Any], text: str) -> None:
    """How many packets and bytes, in which time, and what became of them."""
    assert list(lines(document)) == [text]


@pytest.mark.parametrize(
    ("octets", "text"),
    [(1, "1 byte"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), ((1 << 20) - 1, "1,024.0 KiB"),
     (5 << 30, "5.0 GiB"), (5 << 50, "5,242,880.0 GiB")],
)  # fmt: skip
def test_bytes(octets: int, text: str) -> None:
    """Bytes have a unit of which there are less than 1,024, up to GiB."""
    assert first(packets=1, octets=octets) == f"1 packet, {text}"


def test_what_decided() -> None:
    """Rules with their hits, ten at most; the default is nobody's decision."""
    document = report(rules={"default": 100, "ads": 3, "handler x:f": 1234})
    assert list(lines(document))[1:] == ["decided by ads 3, handler x:f 1,234"]
    many = {f"rule {number}": number for number in range(1, 14)}
    assert list(lines(report(rules=many)))[1].endswith(", rule 10 10 and 3 more")
    assert list(lines(report(rules={"default": 7}))) == ["0 packets"]


def test_names_flows_and_losses() -> None:
    """Names with their flows, what was left to the kernel, what the queue lost, and errors."""
    document = report(
        names={"www.example.com": 2, "": 1, "one.example": 1},
        offloaded=1,
        queue={"waiting": 3, "dropped": 1000, "user_dropped": 2},
        errors={"handler x:f: raised": 2},
    )
    assert list(lines(document))[1:] == [
        "server names: www.example.com 2 flows, (none) 1 flow, one.example 1 flow",
        "1 flow left to the kernel",
        "lost by the queue: 1,000 (it was full), 2 (the socket's buffer was, ENOBUFS)",
        "errors: handler x:f: raised 2",
    ]


def test_what_is_not_there_is_not_said() -> None:
    """Nothing lost, nothing named: no line."""
    document = report(names={}, offloaded=0, queue={"dropped": 0, "user_dropped": 0, "waiting": 9})
    assert list(lines(document)) == ["0 packets"]


def test_names_are_harmless() -> None:
    """What clients call their servers cannot do anything to a terminal."""
    text = "\n".join(lines(report(names={"\x1b]0;evil\x07\u202e\n.example" + "x" * 500: 1})))
    assert text.splitlines()[1].startswith("server names: \\x1b]0;evil\\x07\\u202e\\x0a.example")
    assert len(text) < 200


COUNTS = st.dictionaries(st.text(max_size=100), st.integers(0, 1 << 60), max_size=40)


@given(COUNTS, COUNTS, COUNTS, st.integers(0, 1 << 70), st.floats(0, 1e9))
def test_any_report(
    rules: dict[str, int],
    names: dict[str, int],
    errors: dict[str, int],
    octets: int,
    seconds: float,
) -> None:
    """Whatever was counted, each line is one line that a terminal only draws, and not too long."""
    document = report(
        packets=1, octets=octets, rules=rules, names=names, errors=errors, seconds=seconds
    )
    for text in lines(document):
        assert text.isprintable()
        assert len(text) < 1300


def test_the_sum_of_several_workers() -> None:
    """The document of a run has the sums over its workers, the most frequent first."""
    made = Report(seconds=1.23456, ended_by="count")
    made.queues = [
        {"packets": 3, "octets": 30, "verdicts": {"accept": 2, "drop": 1}, "offloaded": 1,
         "names": {"a": 1}, "figures": {"waiting": 1, "dropped": 2, "user_dropped": 0}},
        {},  # a worker that ended before it said anything
        {"packets": 5, "octets": 50, "verdicts": {"drop": 5}, "names": {"a": 1, "b": 3},
         "figures": {"waiting": 0, "dropped": 1, "user_dropped": 4}},
    ]  # fmt: skip
    document = made.document()
    assert document == {
        "event": "end", "seconds": 1.235, "ended_by": "count", "packets": 8, "octets": 80,
        "verdicts": {"drop": 6, "accept": 2}, "rules": {}, "errors": {},
        "names": {"b": 3, "a": 2}, "offloaded": 1, "rewritten": 0, "uninspected": 0,
        "queue": {"user_dropped": 4, "dropped": 3, "waiting": 1},
    }  # fmt: skip
    assert list(document["names"]) == ["b", "a"]
    assert next(lines(document)) == "8 packets, 80 bytes in 1.2 s: 6 dropped, 2 accepted"


# --- beside the packets -------------------------------------------------------------------------


@contextlib.contextmanager
def streams() -> Iterator[tuple[int, int]]:
    """Have standard output and standard error be pipes for the block; give their other ends."""
    saved = os.dup(1), os.dup(2)
    ends = os.pipe(), os.pipe()
    for number, (_, writing) in enumerate(ends, 1):
        os.dup2(writing, number)
        os.close(writing)
    try:
        yield ends[0][0], ends[1][0]
    finally:
        for number, old in enumerate(saved, 1):
            os.dup2(old, number)
            os.close(old)
        for reading, _ in ends:
            os.close(reading)


def read(descriptor: int) -> str:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 20).decode()
    except BlockingIOError:
        return ""


def test_people_are_told_on_standard_error() -> None:
    """A note and the report are lines of standard error, fit for a terminal."""
    with streams() as (out, err):
        tell = Teller()
        tell("queue 0 was full\x1b[2J")
        tell.finish(report(packets=2, octets=60, verdicts={"accept": 2}))
        found = read(out), read(err)
    said = "nfctl: queue 0 was full\\x1b[2J\nnfctl: 2 packets, 60 bytes: 2 accepted\n"
    assert found == ("", said)


def test_programs_are_told_on_standard_output() -> None:
    """A note and the report are records of standard output."""
    with streams() as (out, err):
        tell = Teller(json=True)
        tell("queue 0 was full\n")
        tell.finish(report(event="end", packets=2))
        found = read(out), read(err)
    note, end = map(json.loads, found[0].splitlines())
    assert abs(note.pop("time") - time.time()) < 60
    assert note == {"event": "note", "text": "queue 0 was full\n"}
    assert end == report(event="end", packets=2)
    assert found[1] == ""


@pytest.mark.parametrize("as_json", [True, False])
def test_a_slow_reader_is_not_waited_for(as_json: bool) -> None:
    """Notes wait for their reader, and nfctl does not; at the end they all come, and the report."""
    with streams() as both:
        reading = both[0 if as_json else 1]
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
        tell = Teller(json=as_json)
        for number in range(200):
            tell(f"note {number} {'x' * 100}")
        ending = threading.Thread(target=tell.finish, args=(report(event="end", packets=77),))
        ending.start()
        found = b""
        while ending.is_alive():
            if select.select([reading], [], [], 0.01)[0]:
                found += os.read(reading, 500)
        ending.join()
        found += read(reading).encode()
    rows = found.decode().splitlines()
    assert len(rows) == 201
    assert "note 199 x" in rows[-2]
    assert "77" in rows[-1]


@pytest.mark.parametrize("as_json", [True, False])
def test_nobody_reads(as_json: bool) -> None:
    """Where nobody reads any more, or the stream is closed, nothing is raised."""
    saved = os.dup(1), os.dup(2)
    reading, writing = os.pipe()
    os.close(reading)
    try:
        for number in (1, 2):
            os.dup2(writing, number)
        tell = Teller(json=as_json)
        tell("note")
        tell.finish(report())
        for number in (1, 2):
            os.close(number)
        tell = Teller(json=as_json)
        tell("note")
        tell.finish(report())
    finally:
        for number, old in enumerate(saved, 1):
            os.dup2(old, number)
            os.close(old)
        os.close(writing)


# --- a count for several workers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "asked", "taken"),
    [(5, [3, 3, 1], [3, 2, 0]), (5, [5], [5]), (1, [100], [1]), (0, [1], [0]), (7, [0, 7], [0, 7])],
)
def test_a_countdown(count: int, asked: list[int], taken: list[int]) -> None:
    """So many are given out and not one more; it is over when the last one is."""
    countdown = Countdown(count)
    assert [countdown.take(number) for number in asked] == taken
    assert countdown.over == (sum(taken) == count)
    countdown.close()


def test_a_countdown_of_several_processes() -> None:
    """Processes that count down at the same time get so many between them, and one sees the end."""
    countdown = Countdown(10_000)
    children = []
    for _ in range(4):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            got = 0
            while taken := countdown.take(7):
                got += taken
            os.write(writing, got.to_bytes(4))
            os._exit(0)
        os.close(writing)
        children.append((pid, reading))
    found = []
    for pid, reading in children:
        found.append(int.from_bytes(os.read(reading, 4)))
        os.close(reading)
        assert os.waitpid(pid, 0)[1] == 0
    assert sum(found) == 10_000
    assert countdown.take(1) == 0
    countdown.close()
