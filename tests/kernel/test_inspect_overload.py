"""More packets than can be inspected, packets that are cut, broken or wedge what looks at them.

The oracle are the sequence numbers that arrive and the kernel's own figures of its queue.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.kernel import inspecting
from tests.kernel.inspecting import CLIENT, FAMILIES, SERVER, SHORT, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

MANY: Final = 300
SLOW: Final = "import time\ndef handler(packet): time.sleep(0.003)\n"
_SEQUENCE: Final = struct.Struct(">Q")
_SO_RCVBUFFORCE: Final = 33


@pytest.fixture
def net() -> Iterator[Net]:
    """Give the hosts, with nothing in their tables."""
    with inspecting.network() as made:
        yield made


def burst(net: Net, family: int, size: int = 8) -> tuple[socket.socket, socket.socket]:
    """Send many datagrams at once; return both sockets."""
    here, there = net.pair(family)
    there.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
    for number in range(MANY):
        here.send(_SEQUENCE.pack(number).ljust(size, b"."))
    return here, there


def numbers(datagrams: list[bytes]) -> list[int]:
    return [_SEQUENCE.unpack_from(data)[0] for data in datagrams]


# --- overload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_queue_accepts(family: int, net: Net) -> None:
    """Packets that find the queue full go on, uninspected and at once: none is lost."""
    words = ("--queue-length", "16", "--on-overload", "accept")
    inspection = net.inspect(net.router, *words, handler=SLOW)
    _, there = burst(net, family)
    arrived = numbers(receive(there, 4 * SHORT))
    end = inspection.end()
    assert sorted(arrived) == list(range(MANY))
    assert arrived != sorted(arrived)  # those that did not wait came first
    assert 16 <= end["packets"] == MANY - end["uninspected"] < MANY
    assert end["queue"] == {"waiting": 0, "dropped": 0, "user_dropped": 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_queue_drops(family: int, net: Net) -> None:
    """With --on-overload drop some are lost; the figures say how many, exactly, and are shown."""
    words = ("--queue-length", "16", "--on-overload", "drop")
    inspection = net.inspect(net.router, *words, handler=SLOW)
    _, there = burst(net, family)
    arrived = numbers(receive(there, 4 * SHORT))
    inspection.until(lambda: any("full" in one.get("text", "") for one in inspection.seen()))
    end = inspection.end()
    assert arrived == sorted(arrived)
    assert 16 <= len(arrived) == end["packets"] < MANY
    lost = MANY - len(arrived)
    assert end["queue"] == {"waiting": 0, "dropped": lost, "user_dropped": 0}
    assert inspection.notes == [f"queue 0 was full: {lost} packets dropped"]


@pytest.mark.parametrize("overload", ["accept", "drop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_buffer(family: int, overload: str, net: Net) -> None:
    """What does not fit the socket's buffer is counted by itself; the inspection goes on."""
    words = ("--buffer", "8K", "--on-overload", overload)
    inspection = net.inspect(net.router, *words, handler=SLOW)
    here, there = burst(net, family, 1000)
    arrived = numbers(receive(there, 4 * SHORT))
    here.send(_SEQUENCE.pack(MANY))
    assert numbers(receive(there)) == [MANY]
    end = inspection.end()
    lost = MANY - len(arrived)
    assert end["packets"] < MANY
    assert end["queue"] == {"waiting": 0, "dropped": 0, "user_dropped": lost}
    assert (lost > 0) == (overload == "drop")
    assert end["packets"] + lost + end["uninspected"] == MANY + 1
    assert (end["uninspected"] > 0) == (overload == "accept")


def test_two_queues_that_are_full(net: Net) -> None:
    """The figures of several workers are added up; what each has lost is told by its number."""
    words = ("--workers", "2", "--queue-length", "4", "--on-overload", "drop")
    inspection = net.inspect(net.router, *words, handler=SLOW)
    arrived = 0
    for family in FAMILIES:
        _, there = burst(net, family)
        arrived += len(receive(there, 4 * SHORT))
    end = inspection.end()
    assert end["packets"] == arrived
    assert end["queue"]["dropped"] == 2 * MANY - arrived > 0


# --- what wedges ----------------------------------------------------------------------------------

WEDGED: Final = {
    "a loop": "while True: pass",
    "a sleep": "time.sleep(60)",
    "a loop that catches": """
        try:
            while True: pass
        except BaseException:
            while time.monotonic() < until: pass""",
    "an exception": "raise SystemExit(3)",
}


@pytest.mark.parametrize("way", WEDGED)
def test_a_handler_that_hangs(way: str, net: Net) -> None:
    """A handler that does not come back is cut off: its packet gets the default, others go on."""
    handler = f"""\
import time
def handler(packet):
    until = time.monotonic() + 0.2
    if packet.dport == 4001:
        {WEDGED[way]}
"""
    words = ("--deadline", "50", "--quiet")
    with net.inspect(net.router, *words, handler=handler, rules="default: accept") as inspection:
        for family in FAMILIES:
            began = time.monotonic()
            one, other = net.pair(family, 4001), net.pair(family, 4002)
            for here, _ in (one, other):
                here.send(b"x")
            for _, there in (one, other):
                assert there.recv(100) == b"x"
            assert time.monotonic() - began < 2
        end = inspection.end()
    kind = "raised" if way == "an exception" else "late"
    assert end["errors"] == {f"handler /run/handler.py:handler: {kind}": 2}
    assert inspection.notes


def test_an_expression_that_takes_for_ever(net: Net) -> None:
    """A regular expression that backtracks without end costs its packet no more than a deadline."""
    rules = "default: accept\nrules: [{when: {payload: '(a+)+$'}, verdict: drop}]"
    with net.inspect(net.router, "--deadline", "50", rules=rules) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            here.send(b"a" * 40 + b"!")
            here.send(b"b")
            here.send(b"a")
            assert there.recv(100) == b"a" * 40 + b"!"
            assert there.recv(100) == b"b"
            assert receive(there) == []
        assert inspection.end()["errors"] == {"a regular expression took too long": 2}


# --- packets that are cut, or unusual -------------------------------------------------------------


def test_a_copy_that_is_cut(net: Net) -> None:
    """A packet of which only a part is known is never rewritten, and arrives whole."""
    rules = "rules: [{when: {dport: 4000}, verdict: set, set: {dport: 4001, ttl: 9}}]"
    wrong = net.checksum_errors(net.server)
    with net.inspect(net.router, "--copy", "100", rules=rules) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            elsewhere = net.udp(net.server, family, SERVER[family], 4001)
            payload = random.randbytes(1000)
            here.send(payload)
            assert there.recv(1 << 16) == payload
            here.send(b"short")
            assert elsewhere.recv(1 << 16) == b"short"
        end = inspection.end()
    assert end["rewritten"] == 2
    assert end["errors"] == {"cannot rewrite: only a part of it is known": 2}
    cut = [one for one in inspection.records if one.get("truncated")]
    assert [(one["captured"], one["length"]) for one in cut] == [(100, 1028), (100, 1048)]
    assert net.checksum_errors(net.server) == wrong


@pytest.mark.parametrize("verdict", ["accept", "drop"])
def test_fragments(verdict: str, net: Net) -> None:
    """Fragments are shown as such, pass, and can be refused as such."""
    rules = f"rules: [{{name: parts, when: {{fragment: true}}, verdict: {verdict}}}]"
    with net.inspect(net.router, rules=rules) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            payload = random.randbytes(4000)
            here.send(payload)
            here.send(b"whole")
            assert receive(there) == [payload] * (verdict == "accept") + [b"whole"]
        assert inspection.end()["rules"] == {"parts": 6, "default": 2}
    for family in FAMILIES:
        parts = [one["fragment"] for one in inspection.records
                 if one["family"] == family and "fragment" in one]  # fmt: skip
        assert [one["more"] for one in parts] == [True, True, False]
        assert parts[0]["offset"] == 0 < parts[1]["offset"] < parts[2]["offset"]
        assert len({one["id"] for one in parts}) == 1


def test_extension_headers(net: Net) -> None:
    """Ports behind IPv6's options are found: by rules, in what is shown and for what is set."""
    options = struct.pack("=BBBBI", 0, 0, 1, 4, 0)  # eight bytes, PadN
    rules = """\
rules:
- {name: no, when: {dport: 4001}, verdict: drop}
- {name: other, when: {dport: 4002}, verdict: set, set: {dport: 4003}}
"""
    wrong = net.checksum_errors(net.server)
    with net.inspect(net.router, rules=rules) as inspection:
        there = {port: net.udp(net.server, 6, SERVER[6], port) for port in (4000, 4001, 4003)}
        here = net.udp(net.client, 6, CLIENT[6])
        for option in (socket.IPV6_HOPOPTS, socket.IPV6_DSTOPTS):
            here.setsockopt(socket.IPPROTO_IPV6, option, options)
            for port in (4000, 4001, 4002):
                here.sendto(b"behind", (SERVER[6], port))
        assert [len(receive(sock)) for sock in there.values()] == [2, 0, 2]
        end = inspection.end()
    assert end["rules"] == {"default": 2, "no": 2, "other": 2}
    assert {one["protocol"] for one in inspection.records} == {"udp"}
    assert net.checksum_errors(net.server) == wrong


BROKEN: Final = {
    "TCP data offset": (6, struct.pack(">HHIIBBHHH", 1, 4000, 0, 0, 0x30, 2, 0, 0, 0)),
    "short TCP header": (6, struct.pack(">HHI", 1, 4000, 0)),
    "UDP length": (17, struct.pack(">HHHH", 1, 4000, 7, 0)),
    "short UDP header": (17, struct.pack(">HH", 1, 4000)),
    "short SCTP header": (132, b"\1"),
}


@pytest.mark.parametrize("default", ["accept", "drop"])
def test_malformed_packets(default: str, net: Net) -> None:
    """What cannot be is said to be so, gets the default verdict, and no rule for its ports."""
    rules = f"default: {default}\nrules: [{{when: {{dport: 4000}}, verdict: accept}}]"
    if default == "accept":
        rules = rules.replace("verdict: accept", "verdict: drop")
    captured = net.capture(net.server, "eth0")
    with net.inspect(net.router, rules=rules) as inspection:
        for family in FAMILIES:
            for proto, data in BROKEN.values():
                send_raw(net, family, proto, data)
        end = inspection.end()
    ours = [one for one in inspection.records if "malformed" in one]
    assert [one["malformed"] for one in ours] == list(BROKEN) * 2
    assert {(one["verdict"], one["by"]) for one in ours} == {(default, "malformed")}
    assert end["rules"]["malformed"] == 10
    assert len(inspecting.frames(captured)) == (8 if default == "accept" else 0)


def test_random_packets(net: Net) -> None:
    """Whatever is behind an IP header, each packet gets its verdict and the next one, too."""
    chooser = random.Random(7)
    with net.inspect(net.router, rules=RANDOM) as inspection:
        for family in FAMILIES:
            for _ in range(200):
                proto = chooser.choice([1, 6, 6, 17, 17, 43, 44, 50, 51, 58, 60, 132, 255])
                data = chooser.randbytes(chooser.randrange(120))
                if chooser.random() < 0.5 and len(data) > 4:
                    data = chooser.randbytes(2) + struct.pack(">H", 53) + data[4:]
                send_raw(net, family, proto, data)
            here, there = net.pair(family)
            here.send(b"still there")
            assert there.recv(100) == b"still there"
        end = inspection.end()
    mine = [one for one in inspection.records if one["source"] in CLIENT.values()]
    assert len(mine) == 402  # the server answers some of them
    assert end["packets"] == sum(end["verdicts"].values()) == len(inspection.records)
    assert end["rules"]["malformed"] > 50
    assert not [name for name in end["errors"] if "rewrite" not in name]


RANDOM: Final = """\
rules:
- {when: {dns.qname: "*.example"}, verdict: drop}
- {when: {tls.sni: "*.example"}, verdict: drop}
- {when: {http.host: "*.example"}, verdict: drop}
- {when: {payload: "exa(m|n)ple"}, verdict: drop}
- {when: {ttl: 1}, verdict: set, set: {ttl: 2, dport: 9, payload: {text: x}}}
"""


def send_raw(net: Net, family: int, proto: int, data: bytes) -> None:
    """Send a packet with any bytes behind its IP header, to be forwarded."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with net.socket(net.client, kind, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        ends = [socket.inet_pton(kind, one) for one in (CLIENT[family], SERVER[family])]
        if family == 4:  # the kernel makes this header's checksum
            head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, proto, 0)
        else:
            head = struct.pack(">IHBB", 6 << 28, len(data), proto, 64)
        raw.sendto(head + b"".join(ends) + data, (SERVER[family], 0))


# --- many -----------------------------------------------------------------------------------------

MILLION: Final = 1_000_000
WINDOW: Final = 1024  # packets on their way


def test_a_million_packets(net: Net) -> None:
    """A million packets get their verdicts, and arrive in their order with none missing."""
    inspection = net.inspect(net.router, "--quiet", "--on-overload", "drop")
    here, there = net.pair(4)
    there.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
    (worker,) = inspection.workers()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(worker, {cpus[-1]})  # two of them may put packets in another order
    pack, unpack, sent, got = _SEQUENCE.pack, _SEQUENCE.unpack, 0, 0
    buffer = bytearray(8)
    while got < MILLION:
        for _ in range(min(WINDOW // 2, MILLION - sent)):
            here.send(pack(sent))
            sent += 1
        while sent - got > (WINDOW // 2 if sent < MILLION else 0):
            there.recv_into(buffer)
            (number,) = unpack(buffer)
            assert number == got
            got += 1
    end = inspection.end()
    assert end["packets"] == end["verdicts"]["accept"] == MILLION
    assert end["octets"] == MILLION * 36
    assert end["queue"] == {"waiting": 0, "dropped": 0, "user_dropped": 0}
