"""The bench's packets, its reading of counters, and how a side that measures by itself is judged.

That packets arrive, and what a program makes of them, is proved by each run of the bench.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from scapy.layers.inet import IP

from nfctl.inspect.rules import load
from tests.bench import inspection, loads, queueing, report
from tests.bench.harness import Bound, Samples, Side, Work, judge, race
from tests.bench.room import Run, Wrong

if TYPE_CHECKING:
    from tests.bench.room import Room

NO_ROOM = cast("Room", None)


@pytest.mark.parametrize("source", [loads.LOOPBACK, 0x7FFFFFFF, 0xFFFFFFFF])
def test_header_is_what_scapy_makes(source: int) -> None:
    """The header that is put on the wire, its checksum too, is the one that scapy builds."""
    head = loads.ipv4(17, 128, source)
    assert head == bytes(
        IP(src=IP(head).src, dst="127.0.0.1", len=128, id=0, flags="DF", ttl=64, proto=17)
    )
    assert int.from_bytes(head[12:16]) == source


def test_counted_takes_the_queue_rules_alone() -> None:
    """The packets and bytes of all rules that queue are summed, of no other rule."""
    table = (
        "*mangle\n:INPUT ACCEPT [9:900]\n[1:60] -A INPUT -p tcp -j ACCEPT\n"
        "[2:256] -A INPUT -p udp -j NFQUEUE --queue-num 5 --queue-bypass\n"
        "[3:384] -A FORWARD -p udp -j NFQUEUE --queue-balance 5:6\nCOMMIT\n"
    )
    assert queueing.counted(table) == (5, 640)


def test_a_hundred_rules_that_are_about_other_packets() -> None:
    """The bench's rules are read as a hundred, none with a port of the bench's flows."""
    rules = load("\n".join(inspection.verdict_rules()), "bench.yaml")
    assert len(rules.rules) == 100
    ports = range(loads.FIRST_PORT, loads.FIRST_PORT + loads.FLOWS)
    assert not any(f"dport: {port}" in "\n".join(inspection.verdict_rules()) for port in ports)


def test_race_keeps_what_sides_measure_themselves() -> None:
    """Each round's own measurement is kept, the warm-up is not, and Wrong refuses the side."""

    def refuse(turn: int) -> Run:
        raise Wrong(f"round {turn}")

    sides = [
        Side("nfctl", NO_ROOM, measure=lambda turn: Run(2.0 + turn, 1.0, 30.0)),
        Side("other", NO_ROOM, measure=lambda _: Run(4.0, 1.0, 10.0)),
        Side("broken", NO_ROOM, measure=refuse),
    ]
    bounds = [Bound("other", 1.0), Bound("broken", 1.0)]
    result = race("x", 0, sides, bounds, 3, Work(100, "packets/s"))
    assert [run.wall for run in result.sides["nfctl"].runs] == [2.0, 3.0, 4.0]
    assert result.sides["broken"].refused == "round -1"
    assert [verdict.value for verdict in result.verdicts] == [0.75, None]
    assert [verdict.passes for verdict in result.verdicts] == [True, False]
    assert list(report.rates([result])) == ["x: packets/s: nfctl 33, other 25"]


@pytest.mark.parametrize(("after", "holds"), [(109.0, True), (111.0, False)])
def test_growth_of_memory_is_judged(after: float, holds: bool) -> None:
    """A bound of memory compares the peaks of two sides, and not their times."""
    samples = {
        "nfctl": Samples([Run(50.0, 1.0, after)]),
        "first tenth": Samples([Run(1.0, 1.0, 100.0)]),
    }
    verdict = judge(Bound("first tenth", 1.1, of_memory=True), samples["nfctl"], samples)
    assert verdict.value == pytest.approx(after / 100)
    assert verdict.holds is holds
