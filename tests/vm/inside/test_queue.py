"""Packets handed to a program and rewritten on their way between real NICs."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from nfctl.lab import Verdict, traffic
from tests.vm.inside import wire
from tests.vm.inside.network import NAMES
from tests.vm.inside.rewriter import COPIED, rewriting

if TYPE_CHECKING:
    from tests.vm.inside.network import Network

QUEUE = 5
PORT = 7100
# In mangle, before filter; what the queue accepts goes on behind the table that queued it.
STREAMS, DATAGRAMS = (
    f"*mangle\n-A FORWARD -i eth1 -p {protocol} -m {protocol} --dport {PORT} "
    f"-j NFQUEUE --queue-num {QUEUE}\nCOMMIT\n"
    for protocol in ("tcp", "udp")
)
_LETTERS = bytes(ord("a") + number % 26 for number in range(256))
ETHERNET = 1500  # bytes: the longest packet that one frame holds


def letters(number: int) -> bytes:
    """Return lower-case letters, the same each time."""
    return random.Random(number).randbytes(number).translate(_LETTERS)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.nic
@pytest.mark.usefixtures("offloads")
def test_a_stream_is_rewritten(net: Network, version: int) -> None:
    """Two million bytes of TCP arrive rewritten, every one; no packet had a wrong checksum."""
    net.device.load(STREAMS, version)
    sent = letters(2_000_000)
    with (
        rewriting(QUEUE) as rewriter,
        net.client.connected(net.server, version, PORT) as (client, server),
    ):
        got = wire.send_all(client, server, sent)
    assert (len(got), digest(got)) == (len(sent), digest(sent.upper()))
    tally = rewriter.tally
    assert (tally.truncated, tally.wrong_checksums) == (0, 0)
    assert tally.longest <= ETHERNET
    assert tally.rewritten >= len(sent) / ETHERNET


@pytest.mark.nic
@pytest.mark.usefixtures("offloads")
def test_datagrams_are_rewritten(net: Network, version: int) -> None:
    """Datagrams of many lengths arrive rewritten, and the answers come back as they were."""
    net.device.load(DATAGRAMS, version)
    lengths = [1, 2, 3, 100, 101, 777, 1024, 1399, 1400]
    with (
        rewriting(QUEUE) as rewriter,
        net.server.datagrams(version) as server,
        net.client.datagrams(version) as client,
    ):
        server.bind((NAMES[version]["server"], PORT))
        client.connect((NAMES[version]["server"], PORT))
        for length in lengths:
            client.send(letters(length))
            got, peer = server.recvfrom(2000)
            assert got == letters(length).upper()
            server.sendto(letters(length), peer)
            assert client.recv(2000) == letters(length)
    tally = rewriter.tally
    assert (tally.packets, tally.rewritten) == (len(lengths), len(lengths))
    assert tally.wrong_checksums == 0


@pytest.mark.nic
def test_truncated_packets_are_left_alone(net: Network, version: int, offloads: bool) -> None:
    """A queue that takes segments together sees large ones; cut ones go on as they were.

    Without offloads there is none, and everything is rewritten.
    """
    net.device.load(STREAMS, version)
    sent = letters(2_000_000)
    with rewriting(QUEUE, gso=True) as rewriter:
        for _ in range(10 if offloads else 1):  # a slow machine takes fewer segments together
            with net.client.connected(net.server, version, PORT) as (client, server):
                for length in (5, 2500):  # two segments are one packet here, and short enough
                    client.sendall(letters(length))
                    assert wire.receive(server, length) == letters(length).upper()
                got = wire.send_all(client, server, sent)
            assert (len(got), digest(got.lower())) == (len(sent), digest(sent))
            if got != sent.upper():
                break
    tally = rewriter.tally
    assert tally.rewritten >= 2
    if offloads:
        assert tally.longest > COPIED
        assert tally.truncated > 0
        assert got != sent.upper()
    else:
        assert tally.longest <= ETHERNET
        assert tally.truncated == 0
        assert got == sent.upper()


@pytest.mark.nic
def test_a_wrong_checksum_is_noticed(net: Network, version: int) -> None:
    """A payload rewritten without its checksum never arrives: these tests would see a wrong one."""
    net.device.load(DATAGRAMS, version)
    with (
        rewriting(QUEUE, fix=False) as rewriter,
        net.server.datagrams(version) as server,
        net.client.datagrams(version) as client,
    ):
        server.bind((NAMES[version]["server"], PORT))
        client.connect((NAMES[version]["server"], PORT))
        client.send(b"hello")
        server.settimeout(traffic.DROP_TIMEOUT)
        with pytest.raises(TimeoutError):
            server.recv(100)
    assert rewriter.tally.rewritten == 1


@pytest.mark.parametrize("bypass", [True, False])
def test_nobody_listens(net: Network, version: int, bypass: bool) -> None:
    """Without a program behind the queue its packets are dropped; with --queue-bypass they pass."""
    option = " --queue-bypass" if bypass else ""
    rules = (
        f"*mangle\n-A FORWARD -p tcp --dport 80 -j NFQUEUE --queue-num {QUEUE}{option}\nCOMMIT\n"
    )
    net.device.load(rules, version)
    timeout = traffic.TIMEOUT if bypass else traffic.DROP_TIMEOUT
    answer = net.ask("client", traffic.tcp, NAMES[version]["server"], 80, timeout=timeout)
    assert answer.verdict is (Verdict.ACCEPTED if bypass else Verdict.DROPPED)


def test_a_program_that_ends_lets_nothing_through(net: Network, version: int) -> None:
    """A queue whose program has ended drops again; one that comes back takes packets again."""
    net.device.load(DATAGRAMS.replace(f"--dport {PORT}", "--dport 53"), version)
    server = NAMES[version]["server"]
    for _ in range(2):
        with rewriting(QUEUE):
            assert net.ask("client", traffic.udp, server, 53).verdict is Verdict.ACCEPTED
        answer = net.ask("client", traffic.udp, server, 53, timeout=traffic.DROP_TIMEOUT)
        assert answer.verdict is Verdict.DROPPED


def test_filter_has_the_last_word(net: Network, version: int) -> None:
    """What the queue in mangle accepted is still dropped by filter."""
    drop = f"*filter\n-A FORWARD -p udp --dport {PORT} -m comment --comment last -j DROP\nCOMMIT\n"
    net.device.load(DATAGRAMS + drop, version)
    with rewriting(QUEUE) as rewriter:
        answer = net.ask(
            "client", traffic.udp, NAMES[version]["server"], PORT, timeout=traffic.DROP_TIMEOUT
        )
    assert answer.verdict is Verdict.DROPPED
    assert rewriter.tally.packets == 1
    assert net.device.packets(version)["last"] == 1
