"""What ``set:`` changes in real packets: it arrives as it was set, with checksums that are right.

Receivers verify checksums themselves (the kernel counts wrong ones), and what a packet(7) socket
sees on the receiver's interface is compared with what scapy makes of it. The veths compute
checksums and cut segments late, or the sender does so at once: both have to work.
"""

from __future__ import annotations

import random
import socket
import struct
from typing import TYPE_CHECKING, Final

import pytest

from nfctl.lab import Verdict, traffic
from tests.kernel import inspecting
from tests.kernel.inspecting import CLIENT, FAMILIES, SERVER, frames, receive, sound, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

NOBODY: Final = {4: "10.77.0.99", 6: "fd77::99"}  # an address of the server's network
CHAINS = pytest.mark.parametrize("chain", ["PREROUTING", "INPUT", "FORWARD", "OUTPUT"])
_RECEIVE: Final = {4: (socket.IPPROTO_IP, 12, 13), 6: (socket.IPPROTO_IPV6, 51, 66)}  # TTL, TOS


@pytest.fixture(params=["late", "early"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    """Give the hosts, with checksums and segments made late or early."""
    with inspecting.network() as made:
        made.offload(on=request.param == "late")
        # before it is asked for, so that no test waits for it
        for family in FAMILIES:
            here, there = made.pair(family)
            here.send(b"hello")
            there.recv(100)
            here.close()
            there.close()
        yield made


def where(net: Net, chain: str) -> Host:
    """Return the host on which a packet from the client to the server passes a chain."""
    return {"INPUT": net.server, "OUTPUT": net.client}.get(chain, net.router)


def ttl_and_tos(sock: socket.socket) -> tuple[bytes, int, int]:
    """Receive a datagram, its TTL or hop limit, and its TOS or traffic class."""
    data, extra, _, _ = sock.recvmsg(1 << 16, 200)
    values = [struct.unpack("=i", value.ljust(4, b"\0"))[0] for _, _, value in sorted(extra)]
    ours = {kind: value for (_, kind, _), value in zip(sorted(extra), values, strict=True)}
    ttl = ours.get(2, ours.get(52))
    tos = ours.get(1, ours.get(67))
    assert ttl is not None
    assert tos is not None
    return data, ttl, tos


# --- fields ---------------------------------------------------------------------------------------


@CHAINS
def test_fields_of_ip(chain: str, net: Net) -> None:
    """TTL, DSCP and ECN arrive as they were set, those of IPv6 too, and nothing else changes."""
    rules = """\
rules:
- {when: {dport: 4000}, verdict: set, set: {ttl: 77, dscp: af31, ecn: ect0}}
- {when: {dport: 4001}, verdict: set, set: {ttl: +10}}
"""
    wrong = net.checksum_errors(net.server)
    captured = net.capture(net.server, "eth0")
    with net.inspect(where(net, chain), rules=rules, chains=chain) as inspection:
        for family in FAMILIES:
            before = {"PREROUTING": 1, "OUTPUT": 1}.get(chain, 0)  # the router still takes one
            for port, expected in ((4000, (77 - before, 26 << 2 | 2)), (4001, (73, 0))):
                here, there = net.pair(family, port)
                level, *options = _RECEIVE[family]
                for option in options:
                    there.setsockopt(level, option, 1)
                here.send(b"payload")
                data, ttl, tos = ttl_and_tos(there)
                assert (data, ttl, tos) == (b"payload", *expected)
        end = inspection.end()
    assert (end["rules"]["rule 1"], end["rules"]["rule 2"]) == (2, 2)
    assert end["errors"] == {}
    assert net.checksum_errors(net.server) == wrong
    if chain != "INPUT":  # whose packets are captured before they are changed
        assert [packet[8 if packet[0] >> 4 == 4 else 7] for packet in frames(captured)] == [
            77 - before, 73, 77 - before, 73
        ]  # fmt: skip


@CHAINS
def test_ports(chain: str, net: Net) -> None:
    """A datagram arrives at another port; its answer finds back, whose port is set as well."""
    chains = {"INPUT": "INPUT,OUTPUT", "OUTPUT": "OUTPUT,INPUT"}.get(chain, chain)
    wrong = net.checksum_errors(net.server) + net.checksum_errors(net.client)
    captured = net.capture(net.server, "eth0")
    with net.inspect(where(net, chain), rules=OTHER_PORT, chains=chains) as inspection:
        for family in FAMILIES:
            for size in (0, 1, 7, 1400):
                there_and_back(net, family, size)
        assert inspection.end()["errors"] == {}
    assert net.checksum_errors(net.server) + net.checksum_errors(net.client) == wrong
    arrived = [packet for packet in frames(captured) if dport(packet) in {4000, 4001}]
    assert len(arrived) == 8
    if chain != "INPUT":  # whose packets are captured before they are changed
        assert all(sound(packet) for packet in arrived)


def dport(packet: bytes) -> int:
    """Return the destination port of a packet without options or extension headers."""
    at = 42 if packet[0] >> 4 == 6 else 22
    return int.from_bytes(packet[at : at + 2])


OTHER_PORT: Final = """\
rules:
- {when: {proto: udp, dport: 4000}, verdict: set, set: {dport: 4001}}
- {when: {proto: udp, sport: 4001}, verdict: set, set: {sport: 4000}}
"""


def there_and_back(net: Net, family: int, size: int) -> None:
    """Send a datagram to port 4000, receive it at 4001, and its answer from 4000."""
    there = net.udp(net.server, family, SERVER[family], 4001)
    here = net.udp(net.client, family, CLIENT[family])
    here.connect((SERVER[family], 4000))
    payload = random.randbytes(size)
    here.send(payload)
    data, back = there.recvfrom(1 << 16)
    assert data == payload
    there.sendto(payload[::-1], back)
    assert here.recv(1 << 16) == payload[::-1]
    there.close()


def test_fragments(net: Net) -> None:
    """Where connection tracking puts fragments together they are changed, elsewhere they pass."""
    wrong = net.checksum_errors(net.server) + net.checksum_errors(net.client)
    with net.inspect(net.router, rules=OTHER_PORT) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            payload = random.randbytes(4000)
            here.send(payload)
            assert there.recv(1 << 16) == payload
            there.close()
        end = inspection.end()
    assert end["errors"] == {"cannot rewrite: a fragment": 2}
    assert end["rewritten"] == 0
    net.rules(net.router, "*filter\n-A FORWARD -m conntrack --ctstate NEW\nCOMMIT\n")
    with net.inspect(net.router, rules=OTHER_PORT) as inspection:
        for family in FAMILIES:
            there_and_back(net, family, 4000)
        end = inspection.end()
    assert end["errors"] == {}
    assert end["rewritten"] == 4
    assert net.checksum_errors(net.server) + net.checksum_errors(net.client) == wrong


def test_addresses(net: Net) -> None:
    """What is sent to nobody reaches the server, is answered, and is so in TCP, UDP and ICMP."""
    rules = f"""\
rules:
- when: {{dst: [{NOBODY[4]}, "{NOBODY[6]}"]}}
  verdict: set
  set: {{dst: [{SERVER[4]}, "{SERVER[6]}"]}}
- when: {{src: [{SERVER[4]}, "{SERVER[6]}"], not: {{icmp: [135, 136]}}}}
  verdict: set
  set: {{src: [{NOBODY[4]}, "{NOBODY[6]}"]}}
"""
    wrong = net.checksum_errors(net.server) + net.checksum_errors(net.client)
    captured = net.capture(net.server, "eth0")
    with net.inspect(net.router, rules=rules, chains="PREROUTING") as inspection:
        for family in FAMILIES:
            there = net.udp(net.server, family, SERVER[family], 4000)
            here = net.udp(net.client, family, CLIENT[family])
            here.connect((NOBODY[family], 4000))
            here.send(b"ping")
            data, back = there.recvfrom(100)
            there.sendto(data + b" pong", back)
            assert here.recv(100) == b"ping pong"
            assert net.client.run(traffic.ping, NOBODY[family]).verdict is Verdict.ACCEPTED
            listening = net.listen(net.server, family, 4002)
            stream = net.socket(net.client, here.family, socket.SOCK_STREAM)
            stream.connect((NOBODY[family], 4002))
            accepted, _ = listening.accept()
            with accepted:
                data = random.randbytes(100_000)
                assert transfer(stream, accepted, data) == data
                assert transfer(accepted, stream, data) == data
        assert inspection.end()["errors"] == {}
    assert net.checksum_errors(net.server) + net.checksum_errors(net.client) == wrong
    end = socket.inet_pton(socket.AF_INET6, SERVER[6])
    arrived = [one for one in frames(captured) if one[24:40] == end or one[16:20] == b"\x0aM\0\x0a"]
    assert len(arrived) > 20
    assert all(sound(packet) for packet in arrived)


def test_an_address_in_output(net: Net) -> None:
    """A new destination that is set in OUTPUT has the packet routed there."""
    net.client.call(["ip", "route", "add", "blackhole", "203.0.113.0/24"])
    net.client.call(["ip", "-6", "route", "add", "2001:db8:99::/64", "via", "2001:db8:1::77"])
    net.client.call(["ip", "route", "del", "blackhole", "203.0.113.0/24"])
    net.client.call(["ip", "route", "add", "203.0.113.0/24", "via", "192.0.2.77"])
    rules = f"""\
rules:
- when: {{dst: [203.0.113.1, "2001:db8:99::1"]}}
  verdict: set
  set: {{dst: [{SERVER[4]}, "{SERVER[6]}"]}}
"""
    with net.inspect(net.client, rules=rules, chains="OUTPUT") as inspection:
        for family, target in ((4, "203.0.113.1"), (6, "2001:db8:99::1")):
            there = net.udp(net.server, family, SERVER[family], 4000)
            here = net.udp(net.client, family, CLIENT[family])
            here.sendto(b"elsewhere", (target, 4000))
            assert there.recv(100) == b"elsewhere"
        assert inspection.end()["errors"] == {}


# --- payloads -------------------------------------------------------------------------------------


@CHAINS
def test_a_payload_of_udp(chain: str, net: Net) -> None:
    """All of a datagram's payload may be another, of any length."""
    texts = ["", "x", "short", "as long as this", "y" * 1200]
    rules = "rules:\n" + "".join(
        f"- {{when: {{dport: {4000 + n}}}, verdict: set, set: {{payload: {{text: '{text}'}}}}}}\n"
        for n, text in enumerate(texts)
    )
    wrong = net.checksum_errors(net.server)
    captured = net.capture(net.server, "eth0")
    with net.inspect(where(net, chain), rules=rules, chains=chain) as inspection:
        for family in FAMILIES:
            for number, text in enumerate(texts):
                here, there = net.pair(family, 4000 + number)
                for payload in (b"", b"what it was", random.randbytes(1400)):
                    here.send(payload)
                    assert there.recv(1 << 16) == text.encode()
        assert inspection.end()["errors"] == {}
    assert net.checksum_errors(net.server) == wrong
    if chain in {"PREROUTING", "FORWARD"}:
        found = frames(captured)
        assert len(found) == 30
        assert all(sound(packet) for packet in found)


@CHAINS
def test_a_stream(chain: str, net: Net) -> None:
    """A megabyte of TCP arrives whole and rewritten, wherever its segments begin and end."""
    rules = "rules: [{when: {dport: 4000}, verdict: set, set: {payload: {replace: a, with: b}}}]"
    wrong = net.checksum_errors(net.server)
    captured = net.capture(net.server, "eth0")
    with net.inspect(where(net, chain), "--quiet", rules=rules, chains=chain) as inspection:
        for family in FAMILIES:
            here, there = net.stream(family)
            data = bytes(random.choices(b"abcdefgh", k=1 << 20))
            assert transfer(here, there, data) == data.replace(b"a", b"b")
            # the other direction is not changed
            assert transfer(there, here, data[:100_000]) == data[:100_000]
        end = inspection.end()
    assert end["errors"] == {}
    assert end["rewritten"] >= 2 * (1 << 20) // 1500
    assert net.checksum_errors(net.server) == wrong
    if chain in {"PREROUTING", "FORWARD"}:
        arrived = [one for one in frames(captured) if dport(one) == 4000]
        assert len(arrived) > 200
        assert all(sound(packet) for packet in arrived[-200:])


def test_what_cannot_be_changed(net: Net) -> None:
    """A TCP payload of another length is not sent; the segment goes on as it is, and is counted."""
    rules = "rules: [{when: {dport: 4000}, verdict: set, set: {payload: {replace: a, with: bc}}}]"
    with net.inspect(net.router, rules=rules) as inspection:
        for family in FAMILIES:
            here, there = net.stream(family)
            assert transfer(here, there, b"a banana") == b"a banana"
        end = inspection.end()
    assert end["errors"] == {"cannot rewrite: a TCP payload of another length": 2}


HANDLER: Final = """\
def handler(packet):
    if packet.dport == 4000:
        made = packet.scapy.copy()
        from scapy.layers.inet import IP, UDP
        made[UDP].payload.load = made[UDP].payload.load.upper() + b"!"
        for layer in (IP, UDP):
            if layer in made:
                del made[layer].len, made[layer].chksum
        if made.version == 6:
            del made.plen
        packet.replace(bytes(made))
"""


def test_a_handler_that_replaces(net: Net) -> None:
    """A handler sends a packet of scapy's on in place of the one it got."""
    wrong = net.checksum_errors(net.server)
    with net.inspect(net.router, handler=HANDLER) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            here.send(b"quiet")
            assert there.recv(100) == b"QUIET!"
        end = inspection.end()
    assert end["rewritten"] == 2
    assert end["errors"] == {}
    assert net.checksum_errors(net.server) == wrong
    assert [one["rewritten"] for one in inspection.records if one["dport"] == 4000] == [True] * 2


def test_what_is_accepted_stays_as_it_is(net: Net) -> None:
    """Where others are rewritten a packet that is not arrives bit by bit as it was sent."""
    rules = "rules: [{when: {dport: 4009}, verdict: set, set: {ttl: 1}}]"
    sent, arrived = net.capture(net.client, "eth0"), net.capture(net.server, "eth0")
    with net.inspect(net.router, rules=rules):
        for family in FAMILIES:
            here, there = net.pair(family)
            here.send(random.randbytes(1000))
            there.recv(1 << 16)
    one, other = ([bytes(_bare(packet)) for packet in frames(sock)] for sock in (sent, arrived))
    assert len(one) == 2
    assert one == other


def _bare(packet: bytes) -> bytearray:
    """Return a packet without what a router changes, and without the checksum of UDP."""
    bare = bytearray(packet)
    six = packet[0] >> 4 == 6
    for at in (7, 46, 47) if six else (8, 10, 11, 26, 27):
        bare[at] = 0
    return bare


def test_receive_hears_of_wrong_checksums(net: Net) -> None:
    """The kernel's counter, the oracle here, counts a datagram whose checksum is wrong."""
    before = net.checksum_errors(net.server)
    there = net.udp(net.server, 4, SERVER[4], 4000)
    raw = net.socket(net.client, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    raw.sendto(struct.pack(">HHHH", 9, 4000, 9, 0xDEAD) + b"x", (SERVER[4], 0))
    assert receive(there) == []
    assert net.checksum_errors(net.server) > before
