"""The queue's own netlink messages against the kernel, with NetfilterQueue as the oracle."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from nfctl.errors import BadInput, Locked, NfctlError, NotPermitted
from nfctl.inspect.privileges import drop
from nfctl.inspect.queue import NF_ACCEPT, NF_DROP, NF_REPEAT, Message, Queue
from nfctl.kernel import netns
from nfctl.ruleset.names import HOOKS
from tests.kernel.conftest import SLOWNESS
from tests.kernel.inspecting import (
    FAMILIES,
    PORT,
    SERVER,
    SHORT,
    network,
    receive,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel
netfilterqueue = pytest.importorskip("netfilterqueue", reason="NetfilterQueue is missing")

OURS, THEIRS = 5, 6
PATIENCE: Final = 10 * SLOWNESS  # seconds for what is sure to come


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as made:
        yield made


class Seen(NamedTuple):
    """A packet as either program tells of it."""

    hook: int
    mark: int
    indev: int
    outdev: int
    packet: bytes


class Oracle:
    """NetfilterQueue on a queue of a host; every packet is accepted."""

    def __init__(self, host: Host, queue: int = THEIRS) -> None:
        self.seen: list[Seen] = []
        self.times: list[float] = []
        self.addresses: list[bytes | None] = []
        with netns.entered(host.namespace):
            self._queue = netfilterqueue.NetfilterQueue()
            self._queue.bind(queue, self._take)

    def _take(self, packet: Any) -> None:
        found = Seen(
            packet.hook, packet.mark, packet.indev, packet.outdev, bytes(packet.get_payload())
        )
        self.seen.append(found)
        self.times.append(packet.get_timestamp())
        self.addresses.append(packet.get_hw())
        packet.accept()

    def look(self) -> None:
        """Take what waits."""
        self._queue.run(block=False)

    def fileno(self) -> int:
        return int(self._queue.get_fd())

    def close(self) -> None:
        self._queue.unbind()


class Ours:
    """Our queue in a host, whose packets ``decide`` decides; all are accepted without."""

    def __init__(self, host: Host, number: int = OURS, **options: Any) -> None:
        self.seen: list[Seen] = []
        self.messages: list[Message] = []
        self.sizes: list[int] = []
        self.decide: Callable[[Queue, bytes, int], None] = accept
        with netns.entered(host.namespace):
            self.queue = Queue(number, **options)

    def look(self) -> None:
        """Decide what waits, a batch at a time."""
        queue = self.queue
        while offsets := queue.fill():
            self.sizes.append(len(offsets))
            for at in offsets:
                found = queue.read(queue.buffer, at)
                if found is None:
                    continue
                message = Message(*found)
                data = bytes(queue.buffer[message.start : message.end])
                indev, outdev, mark = (int.from_bytes(word) for word in message[2:5])
                self.messages.append(message)
                self.seen.append(Seen(message.hook, mark, indev, outdev, data))
                self.decide(queue, message.ident, len(self.seen) - 1)
            queue.send()

    def fileno(self) -> int:
        return self.queue.fileno()

    def close(self) -> None:
        self.queue.close()


def accept(queue: Queue, ident: bytes, _number: int) -> None:
    queue.verdict(ident, NF_ACCEPT)


def until(number: int, *queues: Ours | Oracle) -> None:
    """Let queues work until each has seen so many packets."""
    __tracebackhide__ = True
    give_up = time.monotonic() + PATIENCE
    while any(len(queue.seen) < number for queue in queues):
        assert time.monotonic() < give_up, [len(queue.seen) for queue in queues]
        for queue in select.select(queues, [], [], 0.1)[0]:
            queue.look()


@contextlib.contextmanager
def both(host: Host, **options: Any) -> Iterator[tuple[Ours, Oracle]]:
    closing = contextlib.closing
    with closing(Ours(host, **options)) as ours, closing(Oracle(host)) as theirs:
        yield ours, theirs


def table(name: str, *rules: str) -> str:
    return "\n".join([f"*{name}", *(f"-A {rule}" for rule in rules), "COMMIT\n"])


def queued(chain: str, number: int = OURS, match: str = "-p udp") -> str:
    return f"{chain} {match} -j NFQUEUE --queue-num {number}"


def payloads(seen: list[Seen]) -> list[bytes]:
    """Return what UDP datagrams of IPv4 carry."""
    return [packet.packet[28:] for packet in seen]


# --- packets in ---------------------------------------------------------------------------------

# our table and chain, and where the same packets meet the oracle
PLACES: Final = {
    "PREROUTING": ("mangle PREROUTING", "raw PREROUTING"),
    "INPUT": ("mangle INPUT", "filter INPUT"),
    "FORWARD": ("mangle FORWARD", "filter FORWARD"),
    "OUTPUT": ("mangle OUTPUT", "filter OUTPUT"),
    "POSTROUTING": ("mangle POSTROUTING", "nat POSTROUTING"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", HOOKS)
def test_what_the_oracle_sees(net: Net, chain: str, family: int) -> None:
    """From each hook: the oracle's hooks, marks, interfaces and bytes, in its order."""
    host = {"INPUT": net.server, "OUTPUT": net.client}.get(chain, net.router)
    rules: dict[str, list[str]] = {}
    for place, number in zip(PLACES[chain], (OURS, THEIRS), strict=True):
        where, _, builtin = place.partition(" ")
        # nat has packets only where something needs conntrack
        match = "-p udp -m conntrack --ctstate NEW" if where == "nat" else "-p udp"
        rules.setdefault(where, []).append(queued(builtin, number, match))
    marked = "OUTPUT" if chain == "OUTPUT" else "PREROUTING"
    if chain != "PREROUTING":  # the oracle is before any rule that marks
        mark = f"{marked} -p udp --dport {{}} -j MARK --set-mark {{}}"
        rules["mangle"][:0] = [mark.format(4001, "0x80000001"), mark.format(4002, "0x17")]
    net.rules(host, "".join(table(name, *lines) for name, lines in rules.items()), [family])
    # with gso the kernel leaves checksums to whoever sends; for NetfilterQueue it makes them
    with both(host, gso=False) as (ours, theirs):
        for number in range(12):
            # a socket each: nat sees only the first packet of a connection
            here = net.udp(net.client, family)
            data = bytes([number]) * (number * 120)
            here.sendto(data, (SERVER[family], 4000 + number % 4))
        until(12, ours, theirs)
    assert ours.seen == theirs.seen
    assert {HOOKS[seen.hook] for seen in ours.seen} == {chain}
    marks = set() if chain == "PREROUTING" else {0x80000001, 0x17}
    assert {seen.mark for seen in ours.seen} == {0, *marks}
    assert ours.queue.errors == 0


def test_the_kernels_own_times(net: Net) -> None:
    """The kernel's time of a packet is the oracle's; only packets that have one bring it."""
    rules = table("mangle", queued("INPUT")) + table("filter", queued("INPUT", THEIRS))
    net.rules(net.server, rules, [4])
    here, there = net.pair(4)
    with both(net.server) as (ours, theirs):
        here.send(b"before")
        until(1, ours, theirs)
        there.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP: packets are stamped from now on
        give_up = time.monotonic() + PATIENCE
        while not ours.messages[-1].time:  # as soon as the kernel has patched its code
            assert time.monotonic() < give_up
            here.send(b"after")
            until(len(ours.seen) + 1, ours, theirs)
    for message, stamp in zip(ours.messages, theirs.times, strict=True):
        whole, micro = struct.unpack(">QQ", message.time) if message.time else (0, 0)
        assert whole + micro / 1e6 == pytest.approx(stamp, abs=2e-6)
    assert abs(struct.unpack(">QQ", ours.messages[-1].time)[0] - time.time()) < PATIENCE


def test_with_and_without_a_link_layer(net: Net) -> None:
    """Messages with a hardware address (of a veth) and without (of lo) are both understood."""
    rules = table("mangle", queued("INPUT")) + table("filter", queued("INPUT", THEIRS))
    net.rules(net.server, rules, [4])
    here, _ = net.pair(4)
    local = net.udp(net.server, 4)
    with both(net.server, gso=False) as (ours, theirs):
        for number in range(6):
            sender = (here, local)[number % 2]
            sender.sendto(bytes([number]), (SERVER[4], PORT))
        until(6, ours, theirs)
    assert ours.seen == theirs.seen
    # NetfilterQueue gives zeros where lo's header says nothing
    assert len({address for address in theirs.addresses if address}) >= 1
    assert {seen.indev for seen in ours.seen} == {1, theirs.seen[0].indev}
    assert len(set(theirs.seen)) == 6


def test_batches(net: Net) -> None:
    """What waits comes many packets a call, in its order, and goes on complete."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sent = [b"%d" % number for number in range(500)]
    with contextlib.closing(Ours(net.server, copy=1000)) as ours:
        for data in sent:
            here.send(data)
        until(500, ours)
        assert receive(there) == sent
        assert payloads(ours.seen) == sent
        most = len(ours.queue.offsets)
        assert ours.sizes == [most] * (500 // most) + [500 % most]


def test_a_packet_of_64_kib(net: Net) -> None:
    """The longest packet there is comes whole up to 65,531 bytes, and goes on whole."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    local, there = net.udp(net.server, 4), net.udp(net.server, 4, "127.0.0.1", PORT)
    data = random.Random(1).randbytes(65507)
    with contextlib.closing(Ours(net.server)) as ours:
        local.sendto(data, ("127.0.0.1", PORT))
        until(1, ours)
        (seen,), (message,) = ours.seen, ours.messages
    assert seen.packet[28:] == data[: 65531 - 28]
    assert int.from_bytes(message.length) == 65535
    assert receive(there) == [data]


@pytest.mark.parametrize("copy", [1, 20, 33, 60])
def test_truncated_copies(net: Net, copy: int) -> None:
    """Of longer packets the first bytes come, with the length; what goes on is whole."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    sent = [bytes(range(size)) for size in (0, 5, 32, 200)]
    with contextlib.closing(Ours(net.server, copy=copy)) as ours:
        for data in sent:
            here.send(data)
        until(4, ours)
        assert receive(there) == sent
    for seen, message, data in zip(ours.seen, ours.messages, sent, strict=True):
        whole = len(data) + 28
        assert len(seen.packet) == min(whole, copy)
        # the kernel tells the length only where it differs
        assert int.from_bytes(message.length) == (whole if whole > copy else 0)
        assert int.from_bytes(seen.packet[2:4]) == (whole if copy >= 20 else 0)


@pytest.mark.parametrize("gso", [True, False])
def test_checksums_that_are_still_to_be_made(net: Net, gso: bool) -> None:
    """With ``gso`` a packet may come without its checksum, and says so; else it has the right one.

    The packet is the oracle's but for these two bytes.
    """
    rules = table("mangle", queued("INPUT")) + table("filter", queued("INPUT", THEIRS))
    net.rules(net.server, rules, [4])
    here, there = net.pair(4)
    with both(net.server, gso=gso) as (ours, theirs):
        here.send(b"data")
        until(1, ours, theirs)
        assert receive(there) == [b"data"]
    (mine,), (wanted,), (message,) = ours.seen, theirs.seen, ours.messages
    unmade = bool(int.from_bytes(message.info) & 1)  # NFQA_SKB_CSUMNOTREADY
    assert unmade == gso
    assert (mine == wanted) == (not gso)
    assert mine.packet[:26] + mine.packet[28:] == wanted.packet[:26] + wanted.packet[28:]


@pytest.mark.parametrize("gso", [True, False])
def test_segments_together_or_apart(net: Net, gso: bool) -> None:
    """With ``gso`` a stream's segments come as they left the sender, else the kernel cuts them."""
    net.rules(net.server, table("mangle", queued("INPUT", match="-p tcp")), [4])
    data = random.Random(2).randbytes(1 << 18)
    with contextlib.closing(Ours(net.server, gso=gso)) as ours:
        listening = net.listen(net.server, 4)
        here = net.socket(net.client, socket.AF_INET, socket.SOCK_STREAM)
        here.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            here.connect((SERVER[4], PORT))
        until(2, ours)
        there, _ = listening.accept()
        with there:
            there.setblocking(False)
            left, got = memoryview(data), bytearray()
            give_up = time.monotonic() + PATIENCE
            while len(got) < len(data):
                assert time.monotonic() < give_up
                wanted = [here] if left else []
                both: list[Any] = [there, ours]
                readable, writable, _ = select.select(both, wanted, [], PATIENCE)
                if writable:
                    left = left[here.send(left) :]
                if ours in readable:
                    ours.look()
                if there in readable:
                    got += there.recv(1 << 20)
    assert got == data
    longest = max(len(seen.packet) for seen in ours.seen)
    assert longest > 3000 if gso else longest <= 1500


# --- verdicts out -------------------------------------------------------------------------------


def test_runs_of_verdicts(net: Net) -> None:
    """Verdicts in runs of any length, each code and mark for its packets alone, in their order."""
    rng = random.Random(3)
    choices = [
        (NF_ACCEPT, None), (NF_ACCEPT, b"\0\0\0\x01"), (NF_ACCEPT, b"\x80\0\0\x02"),
        (NF_DROP, None), (NF_DROP, b"\0\0\0\x01"), (NF_REPEAT, b"\0\0\0\x04"),
    ]  # fmt: skip
    wanted: list[tuple[int, bytes | None]] = []
    while len(wanted) < 400:
        wanted += [rng.choice(choices)] * rng.choice([1, 1, 1, 2, 3, 40])
    wanted = wanted[:400]
    # what is repeated has a mark, and is not queued again
    rules = table("mangle", queued("INPUT", match="-p udp -m mark --mark 0"))
    net.rules(net.server, rules + table("filter", queued("INPUT", THEIRS)), [4])
    here, there = net.pair(4)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    with both(net.server) as (ours, theirs):
        ours.decide = lambda queue, ident, number: queue.verdict(ident, *wanted[number])
        for number in range(400):
            here.send(b"%d" % number)
        until(400, ours)
        kept = [number for number, (code, _) in enumerate(wanted) if code != NF_DROP]
        until(len(kept), theirs)
        assert ours.queue.errors == 0
    marks = [int.from_bytes(wanted[number][1] or b"") for number in kept]
    found = list(zip(payloads(theirs.seen), (seen.mark for seen in theirs.seen), strict=True))
    assert sorted(found) == sorted(zip((b"%d" % number for number in kept), marks, strict=True))
    assert found == list(zip((b"%d" % number for number in kept), marks, strict=True))
    assert receive(there) == [b"%d" % number for number in kept]


def test_packets_replaced(net: Net) -> None:
    """Among runs of others: shorter and longer packets in a packet's place, with a mark or not."""
    rules = table("mangle", queued("INPUT")) + table("filter", queued("INPUT", THEIRS))
    net.rules(net.server, rules, [4])
    here, there = net.pair(4)
    new = {3: b"", 4: b"longer " * 100, 7: b"\0", 11: bytes(1400)}
    marks = {4: b"\0\0\0\x09", 11: b"\0\0\1\0"}

    def decide(queue: Queue, ident: bytes, number: int) -> None:
        if number not in new:
            queue.verdict(ident, NF_ACCEPT, marks.get(number))
            return
        old = ours.seen[number].packet
        size = 28 + len(new[number])
        header = bytearray(old[:20])
        header[2:4] = size.to_bytes(2)
        header[10:12] = bytes(2)
        header[10:12] = (~(sum(struct.unpack(">10H", header)) % 0xFFFF) & 0xFFFF).to_bytes(2)
        udp = old[20:24] + (size - 20).to_bytes(2) + bytes(2)  # 0: no checksum
        queue.replace(ident, NF_ACCEPT, marks.get(number), bytes(header) + udp + new[number])

    with both(net.server) as (ours, theirs):
        ours.decide = decide
        for number in range(14):
            here.send(b"%d" % number)
        until(14, ours, theirs)
        assert ours.queue.errors == 0
    wanted = [new.get(number, b"%d" % number) for number in range(14)]
    assert payloads(theirs.seen) == wanted
    assert [seen.mark for seen in theirs.seen] == [
        int.from_bytes(marks.get(number, b"")) for number in range(14)
    ]
    assert receive(there) == wanted
    assert net.checksum_errors(net.server) == 0


def test_verdicts_for_packets_that_are_gone(net: Net) -> None:
    """The kernel's ENOENT for a packet it does not have is counted, and nobody else suffers."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)

    def decide(queue: Queue, ident: bytes, number: int) -> None:
        queue.verdict(ident, NF_ACCEPT)
        if number == 1:
            queue.send()
            queue.verdict(ident, NF_DROP)  # gone: it was accepted just now
            queue.replace(b"\0\1\0\0", NF_DROP, None, b"never was")

    with contextlib.closing(Ours(net.server)) as ours:
        ours.decide = decide
        for number in range(5):
            here.send(b"%d" % number)
        until(5, ours)
        assert receive(there) == [b"0", b"1", b"2", b"3", b"4"]
        while ours.queue.errors < 2:
            assert select.select([ours], [], [], PATIENCE)[0]
            ours.look()
        assert ours.queue.errors == 2
        assert len(ours.seen) == 5


def test_an_interface_that_goes(net: Net) -> None:
    """Packets that the kernel drops with their interface are not there any more to decide."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    local = net.udp(net.server, 4)
    with contextlib.closing(Ours(net.server)) as ours:
        for _ in range(3):
            here.send(b"gone")
        local.sendto(b"stays", (SERVER[4], PORT))
        net.server.call(["ip", "link", "set", "eth0", "down"])
        until(4, ours)
        # one verdict for all four: the last of them is there
        assert receive(there) == [b"stays"]
        figures = net.figures(net.server, OURS)
    assert figures is not None
    assert figures.waiting == 0


def test_many_verdicts_at_once(net: Net) -> None:
    """More verdicts than fit into one message to the kernel arrive all."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    with contextlib.closing(Ours(net.server)) as ours:
        big = ours.queue
        idents: list[bytes] = []
        ours.decide = lambda _queue, ident, _number: idents.append(ident)
        for _ in range(3000):
            here.send(b"x")
        until(3000, ours)
        for number, ident in enumerate(idents):
            big.verdict(ident, NF_ACCEPT, bytes([0, 0, 0, 1 + number % 2]))  # 36 bytes each
        big.send()
        assert len(receive(there)) == 3000
        assert big.errors == 0


# --- queues -------------------------------------------------------------------------------------


def test_a_queue_has_one_program(net: Net) -> None:
    """What belongs to the oracle is refused to us, and the other way; it is free when left."""
    with contextlib.closing(Oracle(net.server, OURS)):
        with pytest.raises(Locked, match="queue 5 belongs to another program") as caught:
            Ours(net.server)
        assert caught.value.exit_code == 4
        Ours(net.server, OURS + 1).close()
        Ours(net.client).close()  # another namespace has its own
    with contextlib.closing(Ours(net.server)):
        with pytest.raises(OSError, match="Failed to create queue 5"):
            Oracle(net.server, OURS)
        with pytest.raises(Locked):
            Ours(net.server)
    Ours(net.server).close()
    Oracle(net.server, OURS).close()


@pytest.mark.parametrize("number", [-1, 65536])
def test_numbers_that_are_none(number: int) -> None:
    """A queue's number has 16 bits."""
    with pytest.raises(BadInput, match=f"{number} is no queue"):
        Queue(number)


def test_the_largest_number(net: Net) -> None:
    """Queue 65535 is one like all others."""
    net.rules(net.server, table("mangle", queued("INPUT", 65535)), [4])
    here, there = net.pair(4)
    with contextlib.closing(Ours(net.server, 65535)) as ours:
        here.send(b"there")
        until(1, ours)
        assert receive(there) == [b"there"]


def test_without_privileges(net: Net) -> None:
    """A user without CAP_NET_ADMIN is told to be root; one with it alone has a queue."""

    def attempt(*capabilities: int) -> str:
        drop("nobody", capabilities)
        try:
            Queue(OURS).close()
        except NfctlError as error:
            return f"{type(error).__name__} {error}"
        return "a queue"

    assert net.server.run(attempt) == (
        f"{NotPermitted.__name__} packets cannot be queued to this program "
        "(CAP_NET_ADMIN is needed: run as root)"
    )
    assert net.server.run(attempt, 12) == "a queue"


@pytest.mark.parametrize("fail_open", [True, False])
def test_a_full_queue(net: Net, fail_open: bool) -> None:
    """What finds no room goes on uninspected, or is dropped and counted."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    with contextlib.closing(Ours(net.server, length=3, fail_open=fail_open)) as ours:
        for number in range(8):
            here.send(b"%d" % number)
        assert receive(there) == [b"%d" % number for number in range(3, 8) if fail_open]
        figures = net.figures(net.server, OURS)
        assert figures is not None
        assert figures.portid == ours.queue.port
        until(3, ours)
        assert receive(there) == [b"0", b"1", b"2"]
    assert (figures.waiting, figures.dropped) == (3, 0 if fail_open else 5)


@pytest.mark.parametrize("fail_open", [True, False])
def test_leaving_without_a_loss(net: Net, fail_open: bool) -> None:
    """After let_pass what comes goes on by itself, what waited is decided, and nothing is lost."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    ours = Ours(net.server, fail_open=fail_open)
    here.send(b"waits")
    assert select.select([ours], [], [], PATIENCE)[0]
    ours.queue.let_pass()
    for number in range(20):
        here.send(b"%d" % number)
    assert receive(there) == [b"%d" % number for number in range(20)]
    ours.look()
    assert receive(there) == [b"waits"]
    assert ours.queue.errors == 0
    assert len(ours.seen) == 1
    ours.close()


def test_a_queue_that_is_left(net: Net) -> None:
    """The kernel drops what waits for a verdict when the queue is left."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    ours = Ours(net.server)
    here.send(b"waits")
    assert select.select([ours], [], [], PATIENCE)[0]
    ours.close()
    assert receive(there) == []
    here.send(b"nobody listens")
    assert receive(there) == []


# --- what is no packet --------------------------------------------------------------------------

HEAD = struct.Struct("=IHHII").pack
PACKET, ERROR = 3 << 8, 2
HDR = struct.pack("=HH", 11, 1) + bytes(8)  # NFQA_PACKET_HDR


def forged(body: bytes, kind: int = PACKET) -> bytes:
    return HEAD(20 + len(body), kind, 0, 0, 0) + bytes(4) + body


ODD: Final = {
    "nothing but a length": b"\xff\xff\0\0",
    "a header alone": HEAD(16, PACKET, 0, 0, 0),
    "done": HEAD(16, 3, 0, 0, 0),
    "of another subsystem": forged(bytes(100), 1 << 8),
    "an error that is cut": HEAD(36, ERROR, 0, 0, 0),
    "longer than it is": HEAD(0xFFFFFFFF, PACKET, 0, 0, 0) + bytes(40),
    "an attribute without length": forged(HDR + struct.pack("=HH", 0, 3)),
    "an attribute of 64 KiB": forged(HDR + struct.pack("=HH", 0xFFFF, 3) + bytes(30)),
    "a payload that is longer": forged(HDR + struct.pack("=HH", 5000, 10) + bytes(30)),
    "a payload that is shorter": forged(HDR + struct.pack("=HH", 6, 10) + bytes(30)),
    "a nested payload": forged(HDR + struct.pack("=HH", 24, 10 | 0x8000) + bytes(20)),
    "no packet header": forged(struct.pack("=HH", 8, 3) + bytes(4)),
    "a short packet header": forged(struct.pack("=HH", 6, 1) + bytes(4)),
    "many attributes": forged(HDR + struct.pack("=HH", 4, 99) * 100),
}


def test_messages_of_others(net: Net) -> None:
    """Whatever root sends to the socket, in whatever order, nothing is raised, packets go on."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    sender = net.socket(net.server, socket.AF_NETLINK, socket.SOCK_RAW, 12)
    rng = random.Random(4)
    with contextlib.closing(Ours(net.server, copy=2000)) as ours:
        port = ours.queue.port
        real = 0
        for data in (*ODD.values(), *ODD.values()):
            sender.sendto(data, (port, 0))
            here.send(b"real")
            real += 1
            sender.sendto(rng.randbytes(rng.randrange(1, 3000)), (port, 0))
        received: list[bytes] = []
        give_up = time.monotonic() + PATIENCE
        while len(received) < real:
            assert time.monotonic() < give_up
            ours.look()
            received += receive(there, SHORT / 10)
        assert received == [b"real"] * real
        assert ours.queue.errors > 0
        figures = net.figures(net.server, OURS)
    assert figures is not None
    assert figures.waiting == 0


def test_many_layouts(net: Net) -> None:
    """However many kinds of messages came, the readers kept are bounded, and packets go on."""
    net.rules(net.server, table("mangle", queued("INPUT")), [4])
    here, there = net.pair(4)
    sender = net.socket(net.server, socket.AF_NETLINK, socket.SOCK_RAW, 12)
    with contextlib.closing(Ours(net.server)) as ours:
        for number in range(600):
            odd = struct.pack("=HH", 4, 100 + number)
            payload = struct.pack("=HH", 5, 10) + b"x"
            sender.sendto(forged(HDR + odd + payload), (ours.queue.port, 0))
            if number % 50 == 0:
                ours.look()
        ours.look()
        readers = len(ours.queue._readers)
        here.send(b"real")
        until(601, ours)
        assert receive(there) == [b"real"]
    assert readers == 256
