"""What flushing flows is made of: first packets, worlds of rules, choices of ports."""

from __future__ import annotations

import socket
import struct

import pytest

from nfctl.control.flush import packets
from nfctl.control.flush.fates import Ports
from nfctl.control.flush.worlds import Worlds, bare, changed_lines, zones
from nfctl.kernel import flows, netlink
from nfctl.kernel.flows import Tuple

HERE, THERE = socket.inet_aton("192.0.2.1"), socket.inet_aton("198.51.100.2")
HERE6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
THERE6 = socket.inet_pton(socket.AF_INET6, "2001:db8::2")

ENDS = pytest.mark.parametrize(("source", "destination"), [(HERE, THERE), (HERE6, THERE6)])


def raw(one: Tuple, zone: int = 0) -> bytes:
    """Write a tuple as the kernel does."""
    four = one.family == 4
    addresses = netlink.attribute(1 if four else 3, one.source)
    addresses += netlink.attribute(2 if four else 4, one.destination)
    rest = netlink.attribute(1, bytes([one.protocol]))
    if one.protocol in {1, 58}:
        first = 4 if one.protocol == 1 else 7
        rest += netlink.attribute(first, one.identifier.to_bytes(2, "big"))
        rest += netlink.attribute(first + 1, bytes([one.kind]))
        rest += netlink.attribute(first + 2, bytes([one.code]))
    elif one.sport:
        rest += netlink.attribute(2, one.sport.to_bytes(2, "big"))
        rest += netlink.attribute(3, one.dport.to_bytes(2, "big"))
    data = netlink.attribute(0x8001, addresses) + netlink.attribute(0x8002, rest)
    return data + (netlink.attribute(3, zone.to_bytes(2, "big")) if zone else b"")


def ones(data: bytes) -> int:
    """Return the sum of RFC 1071, 0xFFFF where a checksum is right."""
    total = 0
    for (word,) in struct.iter_unpack(">H", data + bytes(len(data) % 2)):
        total += word
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# --- tuples ---------------------------------------------------------------------------------------


@ENDS
@pytest.mark.parametrize("protocol", [6, 17, 132, 50, 1, 58])
def test_tuples(source: bytes, destination: bytes, protocol: int) -> None:
    """A tuple is taken apart as it was put together, with the zone or without it."""
    one = Tuple(source, destination, protocol, 40000, 80)
    if protocol in {1, 58}:
        one = Tuple(source, destination, protocol, kind=8, code=1, identifier=77)
    elif protocol == 50:
        one = Tuple(source, destination, protocol)
    assert flows.parse(raw(one)) == one
    assert flows.parse(raw(one, zone=9)) == one
    assert flows._without_zone(raw(one, zone=9)) == (raw(one), b"\0\x09")
    assert flows._without_zone(raw(one)) == (raw(one), b"")


def test_what_flows_are_called() -> None:
    """People read protocols by name, IPv6 in brackets, and where a flow is translated to."""
    one = Tuple(HERE6, THERE6, 6, 40000, 80)
    assert str(one) == "tcp [2001:db8::1]:40000 -> [2001:db8::2]:80"
    assert str(Tuple(HERE, THERE, 50)) == "protocol 50 192.0.2.1 -> 198.51.100.2"
    echo = Tuple(HERE, THERE, 1, kind=8, identifier=7)
    assert str(echo) == "icmp 192.0.2.1 -> 198.51.100.2 type 8 code 0 id 7"
    reply = Tuple(bytes([10, 0, 0, 9]), bytes([10, 0, 0, 1]), 6, 8080, 50000)
    entry = flows.Entry(
        4, raw(Tuple(HERE, THERE, 6, 40000, 80)), raw(reply), b"", b"", b"", 0, False
    )
    assert str(entry) == (
        "tcp 192.0.2.1:40000 -> 198.51.100.2:80, to 10.0.0.9:8080, from 10.0.0.1:50000"
    )


# --- first packets --------------------------------------------------------------------------------


@ENDS
@pytest.mark.parametrize("protocol", [6, 17, 136, 132, 33, 47, 50, 89])
def test_first_packets(source: bytes, destination: bytes, protocol: int) -> None:
    """A packet has its flow's addresses, protocol and ports, and the right lengths."""
    ports = (40000, 80) if protocol in flows.WITH_PORTS else (0, 0)
    one = Tuple(source, destination, protocol, *ports)
    packet = packets.first(one)
    assert packet is not None
    if len(source) == 4:
        assert ones(packet[:20]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert (packet[9], packet[12:16], packet[16:20]) == (protocol, source, destination)
        body = packet[20:]
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        assert (packet[6], packet[8:24], packet[24:40]) == (protocol, source, destination)
        body = packet[40:]
    if ports != (0, 0):
        assert struct.unpack_from(">HH", body) == ports
    assert packets.seen(packet) == packets.expected(one)


@ENDS
@pytest.mark.parametrize("protocol", [6, 17])
def test_checksums_are_wrong(source: bytes, destination: bytes, protocol: int) -> None:
    """No port makes TCP's or UDP's checksum right: the copy is never to answer."""
    header = 20 if len(source) == 4 else 40
    for port in range(1, 65536, 7):
        packet = packets.first(Tuple(source, destination, protocol, port, 80))
        assert packet is not None
        body = packet[header:]
        pseudo = source + destination + struct.pack(">II", len(body), protocol)
        assert ones(pseudo + body) not in {0, 0xFFFF}
        if protocol == 17:
            assert body[6:8] != b"\0\0", "UDP without a checksum is not looked at"


@pytest.mark.parametrize(("protocol", "kind"), [(1, 8), (1, 13), (58, 128)])
def test_queries(protocol: int, kind: int) -> None:
    """ICMP's is wrong, too; ICMPv6's is right, as its raw sockets want it."""
    ends = (HERE, THERE) if protocol == 1 else (HERE6, THERE6)
    one = Tuple(*ends, protocol, kind=kind, identifier=77)
    packet = packets.first(one)
    assert packet is not None
    body = packet[20 if protocol == 1 else 40 :]
    assert (body[0], body[4:6]) == (kind, b"\0\x4d")
    pseudo = b"" if protocol == 1 else ends[0] + ends[1] + struct.pack(">II", len(body), 58)
    assert (ones(pseudo + body) == 0xFFFF) == (protocol == 58)
    assert packets.seen(packet) == packets.expected(one)


def test_what_begins_nothing() -> None:
    """Answers, errors and what a helper expects have no first packet."""
    assert packets.first(Tuple(HERE, THERE, 1, kind=0)) is None
    assert packets.first(Tuple(HERE, THERE, 1, kind=3)) is None
    assert packets.first(Tuple(HERE6, THERE6, 58, kind=135)) is None
    assert packets.first(Tuple(HERE, THERE, 58, kind=128)) is None
    assert packets.first(Tuple(HERE, THERE, 47, 1, 2)) is None


@pytest.mark.parametrize("packet", [b"", b"\x45", b"\x60", bytes(40), b"\x4f" + bytes(19)])
def test_no_packet(packet: bytes) -> None:
    """What arrives may be anything; it is no packet of ours then."""
    assert packets.seen(packet) not in {
        packets.expected(Tuple(HERE, THERE, 6, 1, 2)),
        packets.expected(Tuple(HERE6, THERE6, 17, 1, 2)),
    }


# --- worlds ---------------------------------------------------------------------------------------


RULES = """\
# made by somebody
*nat
:PREROUTING ACCEPT [12:720]
[3:4] -A PREROUTING -p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.33 -j DNAT --to-destination 10.0.0.1
-A PREROUTING -p tcp -m tcp --dport 80 -m statistic --mode random --probability 0.5 -j DNAT --to-destination 10.0.0.2
-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.3
COMMIT
*filter
:INPUT DROP [0:0]
-A INPUT -m limit --limit 5/min -j LOG --log-prefix "a -j b"
-A INPUT -m comment --comment "not -m limit" -j ACCEPT
COMMIT
"""  # noqa: E501 - as iptables-save writes it


def targets(text: str) -> list[str]:
    return [line.split("--to-destination ")[1] for line in text.split("\n") if " -j DNAT" in line]


def test_worlds() -> None:
    """In some world each of the rules that are left to chance decides, in one none of them."""
    worlds = Worlds(RULES, 4)
    assert worlds.count == 4
    assert worlds.reasons == {"statistic"}
    assert [targets(worlds.text(world))[0] for world in range(4)] == [
        "10.0.0.3", "10.0.0.1", "10.0.0.1", "10.0.0.2",
    ]  # fmt: skip
    for world in range(4):
        text = worlds.text(world)
        assert "statistic" not in text
        assert "LOG" not in text
        assert "--probability" not in text
        assert text.count('-m comment --comment "not -m limit" -j ACCEPT') == 1
        assert text.count("-m conntrack --ctstate NEW") == 1


def test_one_world() -> None:
    """Where nothing is left to chance there is one world, and rules stay as they are."""
    rules = "*filter\n:INPUT DROP [0:0]\n:LOG - [0:0]\n-A INPUT -j LOG\n-A LOG -j DROP\nCOMMIT\n"
    worlds = Worlds(rules, 4)
    assert worlds.count == 1
    assert "-A INPUT -j LOG\n" in worlds.text(0), "that is a chain"
    assert Worlds("", 6).text(0).startswith("*filter\n:NFCTL-REHEARSAL - [0:0]\n")


@pytest.mark.parametrize(
    ("rule", "becomes"),
    [
        ("-j NFQUEUE --queue-num 3", "-j ACCEPT"),
        ("-m nfacct --nfacct-name x -j ACCEPT", "-j ACCEPT"),
        ("-j SET --add-set seen src", None),
        ("-j CT --timeout long --zone 3", "-j CT --zone 3"),
        ("-m set --match-set known src -j DROP", "-m set --match-set known src -j DROP"),
        ("-g LOG", "-g LOG"),
    ],
)
def test_what_rules_become(rule: str, becomes: str | None) -> None:
    """What the copy has no program, object or memory for is taken as said."""
    text = Worlds(f"*raw\n-A PREROUTING {rule}\nCOMMIT\n", 4).text(0)
    lines = [line for line in text.split("\n") if line.startswith("-A PREROUTING")]
    assert lines == ([] if becomes is None else [f"-A PREROUTING {becomes}"])


def test_sets_that_nobody_knows() -> None:
    """A rule with a set whose contents are not known may match or not."""
    rule = "*filter\n-A INPUT -m set ! --match-set gone src -p tcp -j DROP\nCOMMIT\n"
    worlds = Worlds(rule, 4, {"gone"})
    assert worlds.count == 2
    assert worlds.reasons == {"set"}
    assert "-A INPUT" not in worlds.text(0)
    assert "-A INPUT -p tcp -j DROP" in worlds.text(1)


def test_changes() -> None:
    """Counters and comments are no change; what a changed line is uncertain about is told."""
    later = RULES.replace("[3:4] ", "[5:6] ").replace("[12:720]", "[99:0]").replace("some", "any")
    assert bare(later) == bare(RULES)
    assert changed_lines(RULES, later) == set()
    owner = "-A INPUT -m owner --uid-owner 5 -j DROP"
    changed = later.replace("COMMIT\n*filter", f"COMMIT\n{owner}\n*filter")
    assert changed_lines(RULES, changed) == {owner}
    assert Worlds(changed, 4).uncertain({owner}) == {"owner"}
    assert Worlds(changed, 4).uncertain({"-A INPUT -j ACCEPT"}) == set()
    assert zones(["-A X -j CT --zone 5\n-A X -j CT --zone-orig 7", ""]) == {5, 7}


# --- ports ----------------------------------------------------------------------------------------


ORIGINAL = Tuple(HERE, THERE, 6, 40000, 80)


def reply(port: int = 40000, *, to: int = 80, source: bytes = THERE, back: bytes = HERE) -> bytes:
    return raw(Tuple(source, back, 6, to, port))


def judged(has: bytes, pairs: list[tuple[bytes | None, bytes | None]]) -> bool:
    """Note fates of the old and new rules; say whether the last ones leave it what it has."""
    ports = Ports()
    for old, new in pairs:
        ports.note(ORIGINAL, old, new)
        known = ports.known(ORIGINAL, has, old, new)
    assert known
    return ports.possible(ORIGINAL, has, *pairs[-1])


def test_ports_of_a_range() -> None:
    """A port among those that the new rules give is right, one beyond them is not."""
    new: list[tuple[bytes | None, bytes | None]] = [(None, reply(2000)), (None, reply(2100))]
    assert judged(reply(2050), new)
    assert not judged(reply(3000), new)
    # of the same range as before
    assert judged(reply(2150), [(reply(2020), reply(2000)), (reply(2200), reply(2100))])
    assert not judged(reply(2350), [(reply(2320), reply(2000)), (reply(2400), reply(2100))])


def test_one_port() -> None:
    """A port that is always the same is no choice: after enough looks it is wrong."""
    ports = Ports()
    for times in range(1, Ports.MOST + 1):
        ports.note(ORIGINAL, reply(5000), reply(6000))
        assert ports.known(ORIGINAL, reply(5000), reply(5000), reply(6000)) == (times == Ports.MOST)
    assert not ports.possible(ORIGINAL, reply(5000), reply(5000), reply(6000))


def test_a_taken_port() -> None:
    """A source port that NAT would keep was taken; a destination port is never taken."""
    assert judged(reply(7), [(reply(), reply())])
    assert judged(reply(7), [(None, reply())])
    assert not judged(reply(to=8080), [(None, reply())])
    fixed: list[tuple[bytes | None, bytes | None]] = [(reply(5000), reply())] * Ports.MOST
    assert not judged(reply(5000), fixed)


def test_other_addresses() -> None:
    """Where addresses differ or nothing passes, ports are not looked at."""
    assert not judged(reply(), [(None, None)])
    assert not judged(reply(), [(reply(), reply(back=bytes([10, 0, 0, 1])))])
