"""Bits of connection marks are cleared, and nothing else; /proc/net/nf_conntrack is the oracle."""

from __future__ import annotations

import os
import re
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from nfctl.errors import BadInput, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import conntrack
from nfctl.kernel.conntrack import clear_marks
from nfctl.lab import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

TABLE: Final = Path("/proc/net/nf_conntrack")
MASK: Final = 0x3000
LOCAL: Final = {4: "127.0.0.1", 6: "::1"}
FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
# Marks by what is sent: UDP ports 1000 to 1005, TCP port 1006, echo requests.
MARKS: Final = {
    "-p udp --dport 1000": 0x1000,
    "-p udp --dport 1001": 0x2000,
    "-p udp --dport 1002": 0xFFFFFFFF,
    "-p udp --dport 1003": 0xFFFFCFFF,
    "-p udp --dport 1004": 0xDEAD3EEF,
    "-p tcp --dport 1006": 0x80001001,
    "-p icmp --icmp-type echo-request": 0x00C02070,
    "-p icmpv6 --icmpv6-type echo-request": 0x00C01070,
}

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not TABLE.exists(), reason="needs /proc/net/nf_conntrack (CONFIG_NF_CONNTRACK_PROCFS)"
    ),
]


def entries() -> dict[str, int]:
    """Return the marks as the kernel tells them, by what else identifies an entry."""
    found = {}
    for line in TABLE.read_text().splitlines():
        mark = re.search(r" mark=(\d+)", line)
        assert mark is not None, "needs CONFIG_NF_CONNTRACK_MARK"
        # without what changes by itself: the time left, the state, and references
        name = re.sub(r" +\d+ (?=[A-Z_]* ?src=)| mark=\d+| use=\d+|\b[A-Z]+(_[A-Z]+)* ", "", line)
        assert name not in found
        found[name] = int(mark[1])
    return found


def rule(netns: Namespace, family: int, text: str) -> None:
    done = netns.legacy(*text.split(), family=family)
    assert done.returncode == 0, done.stderr


def mark(netns: Namespace, marks: dict[str, int] = MARKS) -> None:
    """Have what is sent marked, in both families."""
    for family in LOCAL:
        for match, value in marks.items():
            if not match.startswith("-p icmpv6 " if family == 4 else "-p icmp "):
                rule(netns, family, f"-t mangle -A OUTPUT {match} -j CONNMARK --set-mark {value}")


def connect() -> list[socket.socket]:
    """Make connections of both families: UDP, TCP that stays open, and echo requests."""
    kept = []
    for family, address in LOCAL.items():
        for port in range(1000, 1006):
            udp(address, port)
        server = socket.create_server((address, 1006), family=FAMILY[family])
        client = socket.create_connection((address, 1006))
        kept += [server, client, server.accept()[0]]
    echo = struct.pack(">BBHHH", 8, 0, 0xF7FF - 77, 77, 0)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(echo, (LOCAL[4], 0))
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(struct.pack(">BBHHH", 128, 0, 0, 78, 0), (LOCAL[6], 0))
    return kept


def udp(address: str, port: int, source: int = 0, tos: int = 0) -> None:
    six = ":" in address
    with socket.socket(FAMILY[6 if six else 4], socket.SOCK_DGRAM) as sock:
        if six:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        else:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.bind((address, source))
        with suppress(ConnectionRefusedError):
            sock.sendto(b"x", (address, port))


@pytest.mark.parametrize("mask", [MASK, 0xC0000000, 1, 0xFFFFFFFF])
def test_these_bits_and_no_others(netns: Namespace, mask: int) -> None:
    """UDP, TCP, ICMP of both families lose these bits, all others stay; the count is right."""

    def inside() -> tuple[dict[str, int], int, dict[str, int], int]:
        kept = connect()
        before = entries()
        changed = clear_marks(mask)
        after = entries()
        again = clear_marks(mask)
        del kept
        return before, changed, after, again

    mark(netns)
    before, changed, after, again = netns.python(inside)
    assert sorted(before.values()) == sorted(
        [value for match, value in MARKS.items() for _ in range(1 if "icmp" in match else 2)]
        + [0, 0]
    )
    assert after == {name: value & ~mask for name, value in before.items()}
    assert changed == sum(1 for value in before.values() if value & mask)
    assert again == 0


def test_nothing_matches(netns: Namespace) -> None:
    """Without entries, without such bits, and without a mask nothing is changed."""

    def inside() -> tuple[int, int, int, bool]:
        none = clear_marks(MASK)
        kept = connect()
        before = entries()
        other, empty = clear_marks(MASK), clear_marks(0)
        same = entries() == before and set(before.values()) == {0, 0xFFFFCFFF}
        del kept
        return none, other, empty, same

    mark(netns, {"-p udp --dport 1003": 0xFFFFCFFF})
    assert netns.python(inside) == (0, 0, 0, True)


@pytest.mark.parametrize("option", ["--zone", "--zone-orig", "--zone-reply"])
def test_zones(netns: Namespace, option: str) -> None:
    """Entries that differ in their zone alone, or in that of one direction, are told apart."""
    for family in LOCAL:
        # The zone follows the packet's TOS, of which the tuple knows nothing.
        for zone in (5, 7):
            tos = f"-m tos --tos {zone << 2:#x}/0xff"
            for chain in ("OUTPUT", "PREROUTING") if option == "--zone" else ("OUTPUT",):
                rule(netns, family, f"-t raw -A {chain} {tos} -j CT {option} {zone}")
        zones = "-p udp -m tos --tos {:#x}/0xff -j CONNMARK --set-mark {:#x}"
        rule(netns, family, "-t mangle -A OUTPUT " + zones.format(5 << 2, 0x10001005))
        rule(netns, family, "-t mangle -A OUTPUT " + zones.format(7 << 2, 0x10002007))
        rule(netns, family, "-t mangle -A OUTPUT " + zones.format(0, 0x10000FFF))

    def inside() -> tuple[dict[str, int], int, dict[str, int]]:
        for address in LOCAL.values():
            for zone in (0, 5, 7):
                # in one direction alone a zone does not make room for the same ports again
                source = 2000 if option == "--zone" else 2000 + zone
                udp(address, 1000, source, zone << 2)
        before = entries()
        changed = clear_marks(MASK)
        return before, changed, entries()

    before, changed, after = netns.python(inside)
    assert sum("zone" in name for name in before) >= 4
    assert sum(1 for value in before.values() if value & MASK) == changed == 4
    assert after == {name: value & ~MASK for name, value in before.items()}


def test_many(netns: Namespace) -> None:
    """Thousands of entries, more than a part of the list and a send hold, are all changed."""

    def inside() -> tuple[int, int, set[int]]:
        for source in range(10000, 13000):
            udp(LOCAL[4], 1000, source)
        before = list(entries().values())
        return clear_marks(MASK), before.count(0x3001), set(entries().values())

    mark(netns, {"-p udp --sport 10000:12999": 0x3001})
    assert netns.python(inside) == (3000, 3000, {1})


def test_few_of_many(netns: Namespace) -> None:
    """The kernel hands over what has one of the bits; other entries cost Python nothing."""

    def inside() -> tuple[int, int, int]:
        for source in range(10000, 12000):
            udp(LOCAL[4], 1000, source)
        seen = 0
        named = conntrack._named

        def counted(part: bytes, at: int, end: int, bit: int) -> bytes:
            nonlocal seen
            seen += 1
            return named(part, at, end, bit)

        pytest.MonkeyPatch().setattr(conntrack, "_named", counted)
        return clear_marks(MASK), seen, len(entries())

    mark(netns, {"-p udp": 0xC001, "-p udp --sport 11000:11002": 0x2001})
    assert netns.python(inside) == (3, 3, 2000)


def test_a_kernel_that_does_not_filter(netns: Namespace) -> None:
    """Where all entries are handed over, as old kernels do, those with the bits are changed."""

    def inside() -> tuple[int, list[int]]:
        send = conntrack._send

        def unfiltered(sending: socket.socket, data: bytes) -> None:
            asks = data[4:6] == struct.pack("=H", 1 << 8 | 1)  # IPCTNL_MSG_CT_GET
            send(sending, struct.pack("=I", 20) + data[4:20] if asks else data)

        pytest.MonkeyPatch().setattr(conntrack, "_send", unfiltered)
        for port in (1000, 1002, 1003, 1005):
            udp(LOCAL[6], port)
        return clear_marks(MASK), sorted(entries().values())

    mark(netns)
    assert netns.python(inside) == (2, [0, 0, 0xFFFFCFFF, 0xFFFFCFFF])


def test_the_verdict_is_gone(netns: Namespace) -> None:
    """A connection that its mark had dropped goes on, and a rule sees its other bits."""

    def inside() -> tuple[int, bytes]:
        with socket.create_server(("127.0.0.1", 1006)) as server:
            client = socket.create_connection(("127.0.0.1", 1006))
            accepted, _ = server.accept()
            with client, accepted:
                client.send(b"hello")  # marked by this, and dropped
                assert 0x2070 in entries().values()
                accepted.setblocking(False)
                with pytest.raises(BlockingIOError):
                    accepted.recv(100)
                changed = clear_marks(MASK)
                accepted.settimeout(30)
                return changed, accepted.recv(100)

    mangle = "-t mangle -A OUTPUT -p tcp --dport 1006"
    # marked once; when TCP sends it again, the other bits still tell that it was
    rule(netns, 4, f"{mangle} -m connmark --mark 0x70/0xfff -m comment --comment later -j ACCEPT")
    rule(netns, 4, f"{mangle} --tcp-flags PSH PSH -j CONNMARK --set-mark 0x2070")
    rule(netns, 4, "-t filter -A OUTPUT -m connmark --mark 0x2000/0x3000 -j DROP")
    assert netns.python(inside) == (1, b"hello")
    counted = netns.run(["iptables-legacy-save", "-c", "-t", "mangle"]).stdout
    later = re.search(r"\[(\d+):\d+\] -A OUTPUT .*later", counted)
    assert later is not None
    assert int(later[1]) >= 1


def test_entries_that_vanish(netns: Namespace) -> None:
    """What ends between the list and the change is no error, and is not counted."""

    def inside() -> tuple[int, int]:
        kept = connect()
        update = conntrack._update

        def flushed(writing: socket.socket, requests: list[bytes]) -> int:
            # IPCTNL_MSG_CT_DELETE without a tuple: all entries
            writing.send(struct.pack("=IHHIIBBH", 20, 1 << 8 | 2, 1, 0, 0, 0, 0, 0))
            return update(writing, requests)

        pytest.MonkeyPatch().setattr(conntrack, "_update", flushed)
        changed, left = clear_marks(MASK), len(entries())
        del kept  # their FINs are tracked anew
        return changed, left

    mark(netns)
    assert netns.python(inside) == (0, 0)


def test_another_namespace(netns: Namespace) -> None:
    """Of the named namespace alone; afterwards one is where one was."""

    def inside() -> tuple[int, int, dict[str, int], bool]:
        udp(LOCAL[4], 1000)
        udp(LOCAL[6], 1000)
        there = os.open("/proc/self/ns/net", os.O_RDONLY)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        here = Path("/proc/self/ns/net").readlink()
        none, changed = clear_marks(MASK), clear_marks(MASK, network=f"/proc/self/fd/{there}")
        same = Path("/proc/self/ns/net").readlink() == here
        return none, changed, entries(), same

    mark(netns, {"-p udp": 0x1005})
    assert netns.python(inside) == (0, 2, {}, True)
    assert set(netns.python(entries).values()) == {5}


def refused(function: Callable[[], object]) -> tuple[type, str]:
    try:
        function()
    except NfctlError as error:
        return type(error), str(error)
    raise AssertionError


def test_without_ctnetlink(netns: Namespace) -> None:
    """What a kernel answers for a subsystem it lacks names the option that is missing."""

    def inside() -> tuple[type, str]:
        pytest.MonkeyPatch().setattr(conntrack, "_SUBSYS", 99 << 8)
        return refused(lambda: clear_marks(MASK))

    kind, said = netns.python(inside)
    assert kind is Unsupported
    assert "CONFIG_NF_CT_NETLINK" in said


def test_without_the_privilege(netns: Namespace) -> None:
    """Without CAP_NET_ADMIN it says so, and nothing is changed."""

    def inside() -> tuple[type, str]:
        udp(LOCAL[4], 1000)
        os.setuid(65534)
        return refused(lambda: clear_marks(MASK))

    mark(netns, {"-p udp": 0x1005})
    kind, said = netns.python(inside)
    assert kind is NotPermitted
    assert "CAP_NET_ADMIN" in said
    assert set(netns.python(entries).values()) == {0x1005}


@pytest.mark.parametrize("mask", [-1, 1 << 32])
def test_no_mask(mask: int) -> None:
    """A mask of more than 32 bits is refused."""
    assert refused(lambda: clear_marks(mask))[0] is BadInput
