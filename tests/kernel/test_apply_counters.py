"""Counters under a flood: whatever is edited around a rule, it counts every packet once."""

from __future__ import annotations

import random
import socket
import time
from itertools import count
from typing import TYPE_CHECKING, Final

import pytest

from nfctl.lab import fork
from tests.kernel import applying, play
from tests.kernel.conftest import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

PORT: Final = 9
ADDRESSES: Final = {4: "127.0.0.1", 6: "::1"}
APPLIES: Final = 200
CHUNK: Final = 16  # datagrams between two looks at the pipe


def flood(stop: socket.socket) -> dict[int, int]:
    """Send UDP datagrams to loopback in both families until told to stop; return how many."""
    sent = dict.fromkeys(ADDRESSES, 0)
    senders = {family: socket.socket(_domain(family), socket.SOCK_DGRAM) for family in ADDRESSES}
    stop.setblocking(False)
    while True:
        for family, sender in senders.items():
            for _ in range(CHUNK):
                sender.sendto(b"", (ADDRESSES[family], PORT))
            sent[family] += CHUNK
        try:
            stop.recv(1)
        except BlockingIOError:
            time.sleep(0.0005)  # two processors for both of us may be one
            continue
        return sent


def _domain(family: int) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


class Flood:
    """A sender for as long as the ``with`` block lasts; then ``sent`` says how much it was."""

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}

    def __enter__(self) -> Flood:
        # whoever listens keeps ICMP errors from being sent; what it gets is thrown away
        self._sinks = [socket.socket(_domain(family), socket.SOCK_DGRAM) for family in ADDRESSES]
        for sink, address in zip(self._sinks, ADDRESSES.values(), strict=True):
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sink.bind((address, PORT))
        self._stop, other = socket.socketpair()
        self._child = fork.Child(flood, other)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._child.kill()
            return
        self._stop.send(b"x")
        self.sent = self._child.result(60)
        for one in (*self._sinks, self._stop):
            one.close()


def counted(family: int) -> dict[str, int]:
    """Return the packets of each policy and each constant rule, as the oracle prints them."""
    found = {}
    for line in play.saved(family).splitlines():
        if line[0] == ":" and not line.startswith(":K"):
            name, _, counters = line[1:].split(" ")
            found[name] = int(counters[1:].split(":")[0])
        elif "constant" in line:
            counters, _, rule = line.partition(" -A ")
            found[rule] = int(counters[1:].split(":")[0])
    return found


def prefix(family: int) -> str:
    return "" if family == 4 else "6"


CONSTANT: Final = {
    "INPUT": [
        "-p udp -m udp --dport 9 -m comment --comment constant-1",
        "-m comment --comment constant-2 -j KONST",
        "-p udp -m comment --comment constant-3",
    ],
    "KONST": [
        "-m comment --comment constant-4",
        "-p udp -m udp --dport 9 -m comment --comment constant-5 -j RETURN",
    ],
    "OUTPUT": [
        "-o lo -m comment --comment constant-6",
        "-m udp -p udp -m comment --comment constant-7",
    ],
}


def texts(rng: random.Random) -> Iterator[dict[int, str]]:
    """Yield a policy for both families and another, and so on: constant rules amid others."""
    others = {chain: [f"-s {number}.0.0.0/8" for number in range(20, 28)] for chain in CONSTANT}
    fresh = count()
    while True:
        for chain, rules in CONSTANT.items():
            specs = others[chain]
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(specs)) if specs else 0
                what = rng.choice(("insert", "delete", "replace", "move"))
                verdict = rng.choice(("DROP", "ACCEPT"))
                new = f"-p tcp -m tcp --dport {1000 + next(fresh)} -j {verdict}"
                if what == "insert" or not specs:
                    specs.insert(at, new)
                elif what == "delete":
                    del specs[at]
                elif what == "replace":
                    specs[at] = new
                else:
                    specs.insert(rng.randrange(len(specs)), specs.pop(at))
            others[chain] = specs[:12]
            del rules
        yield {family: _text(others, rng, family) for family in ADDRESSES}


def _text(others: dict[str, list[str]], rng: random.Random, family: int) -> str:
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    lines += [":KONST - [0:0]"]
    for chain, constant in CONSTANT.items():
        rules = [one for one in others[chain] if family == 4 or not one.startswith("-s")]
        places = sorted(rng.randint(0, len(rules)) for _ in constant)
        for place, rule in reversed(list(zip(places, constant, strict=True))):
            rules.insert(place, rule)
        lines += [f"-A {chain} {rule}" for rule in rules]
    return "\n".join((*lines, "COMMIT\n"))


@pytest.mark.parametrize("quick", [False, True], ids=["ordinary", "quick"])
def test_no_packet_is_lost(quick: bool, netns: Namespace) -> None:
    """After 200 applies under a flood each constant rule, and each policy, counted every packet."""
    assert netns.run(["ip", "link", "set", "lo", "up"]).returncode == 0

    def inside() -> float:
        apply = applying.apply_files if quick else applying.apply_text
        policies = texts(random.Random(1))
        first = next(policies)
        apply(first)
        before = {family: counted(family) for family in ADDRESSES}
        start = time.monotonic()
        with Flood() as flood:
            for _ in range(APPLIES):
                assert apply(next(policies)).status in {"applied", "unchanged"}
        took = time.monotonic() - start
        for family, sent in flood.sent.items():
            assert sent > 1000
            after = counted(family)
            got = {what: number - before[family][what] for what, number in after.items()}
            assert got.pop("FORWARD") == 0
            assert got == dict.fromkeys(got, sent)
            assert len(got) == 2 + 7
        return took

    assert netns.python(inside) < 90 * SLOWNESS
