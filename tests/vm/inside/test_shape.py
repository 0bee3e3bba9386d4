"""The shapes of a lab's links, which need sch_netem: every stock kernel has it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nfctl.lab import Lab, Topology, Verdict, traffic
from nfctl.lab.build import build
from tests.vm.inside import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Host

    Pair = Callable[[str], tuple[Host, Host]]

TOPOLOGY = """\
name: shaped
hosts:
  one:
    interfaces: {{eth0: {{link: wire, addresses: [192.0.2.1/24, "2001:db8::1/64"]}}}}
  two:
    interfaces: {{eth0: {{link: wire, addresses: [192.0.2.2/24, "2001:db8::2/64"]}}}}
links:
  wire: {{{shape}}}
"""
TWO = {4: "192.0.2.2", 6: "2001:db8::2"}
LATE = 0.06  # seconds that an emulated machine may add


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a function that makes two hosts with a link of a shape between them."""
    labs = []

    def make(shape: str) -> tuple[Host, Host]:
        lab = Lab("shaped").__enter__()
        labs.append(lab)
        build(lab, Topology.parse(TOPOLOGY.format(shape=shape)))
        return lab.hosts["one"], lab.hosts["two"]

    yield make
    for lab in labs:
        lab.close()


def round_trip(host: Host, version: int) -> float:
    """Return the shortest of five round trips in seconds; the first one asks for the neighbour."""
    answers = [host.run(traffic.ping, TWO[version]) for _ in range(5)]
    assert {answer.verdict for answer in answers} == {Verdict.ACCEPTED}
    return min(answer.seconds for answer in answers)


def test_delay(pair: Pair, version: int) -> None:
    """A link of 50 ms makes a round trip of 100 ms: each direction is delayed."""
    one, _ = pair("delay: 50ms")
    assert 0.1 <= round_trip(one, version) < 0.1 + LATE


def test_no_delay(pair: Pair, version: int) -> None:
    """A link without a shape has no such round trip: what the test above measures is the shape."""
    one, _ = pair("")
    assert round_trip(one, version) < 0.05


def test_all_is_lost(pair: Pair, version: int) -> None:
    """A link that loses everything lets nothing through."""
    one, _ = pair("loss: 100%")
    for _ in range(3):
        answer = one.run(lambda: traffic.ping(TWO[version], timeout=traffic.DROP_TIMEOUT))
        assert answer.verdict is Verdict.DROPPED


def test_some_is_lost(pair: Pair) -> None:
    """A link that loses a fifth in each direction lets two thirds of the pings come back."""
    one, _ = pair("loss: 20%")
    number = 60

    def pings() -> int:
        deadline = time.monotonic() + 25
        while traffic.ping(TWO[4], timeout=0.5).verdict is not Verdict.ACCEPTED:
            assert time.monotonic() < deadline, "the neighbour was not found"
        answers = [traffic.ping(TWO[4], timeout=0.05) for _ in range(number)]
        return sum(answer.verdict is Verdict.ACCEPTED for answer in answers)

    # 38 of them, give or take 4: beyond these bounds it is one time in ten thousand
    assert 23 <= one.run(pings) <= 53


def test_rate(pair: Pair, version: int) -> None:
    """A link of 8 Mbit/s carries a megabyte in a second, not in less."""
    one, two = pair("rate: 8mbit")
    data = bytes(1_000_000)
    with wire.connected(one, two, version, (TWO[version], 7000)) as (sender, receiver):
        started = time.monotonic()
        assert wire.send_all(sender, receiver, data) == data
        seconds = time.monotonic() - started
    assert 0.9 < seconds < 2.5
