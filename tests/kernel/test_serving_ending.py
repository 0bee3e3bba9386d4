"""What becomes of flows when endpoints go and come; conntrack(8) is the oracle.

The flows are real: sockets of a client, through a node that translates, to two endpoints.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.control.serving.ending import Drain, Flows, end, flows_to, wait_drained
from nfctl.errors import BadInput, NfctlError, NotPermitted
from nfctl.kernel import flow_filter, netlink
from nfctl.kernel.flow_events import Events
from nfctl.lab import Lab, traffic
from nfctl.lab.traffic import held
from nfctl.text import at
from tests.kernel.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.kernel.flows import Entry
    from nfctl.lab import Host, Worker

_NEEDED = ("iptables-legacy-restore", "ip6tables-legacy-restore", "conntrack")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    *(pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}") for name in _NEEDED),
]

NODE: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
ONE: Final = {4: "10.0.1.10", 6: "2001:db8:2::10"}
TWO: Final = {4: "10.0.2.10", 6: "2001:db8:3::10"}
WEB: Final = {4: "10.96.0.10", 6: "2001:db8:96::10"}
DNS: Final = {4: "10.96.0.53", 6: "2001:db8:96::53"}
FAMILIES: Final = pytest.mark.parametrize("family", [4, 6])
NODE_PORT: Final = 30053


def dnat(protocol: str, address: str, port: int, endpoint: str, endpoint_port: int) -> str:
    return (
        f"-A PREROUTING -d {address} -p {protocol} -m {protocol} --dport {port} "
        f"-j DNAT --to-destination {at(endpoint, endpoint_port)}"
    )


class Net:
    """A client, a node and two endpoints, and what goes on between them."""

    def __init__(self, lab: Lab) -> None:
        self.client = lab.host("client")
        self.node = lab.host("node", forward=True)
        self.endpoints = [lab.host("one"), lab.host("two")]
        lab.link(
            self.client.port("eth0", "192.0.2.10/24", "2001:db8:1::10/64"),
            self.node.port("wan0", f"{NODE[4]}/24", f"{NODE[6]}/64"),
        )
        for number, host in enumerate(self.endpoints, 1):
            ours = (f"10.0.{number}.1", f"2001:db8:{number + 1}::1")
            lab.link(
                self.node.port(f"lan{number}", f"{ours[0]}/24", f"{ours[1]}/64"),
                host.port("eth0", f"10.0.{number}.10/24", f"2001:db8:{number + 1}::10/64"),
            )
            for via in ours:
                host.route("default", via=via)
            host.serve(tcp=[80, 81], udp=[53, NODE_PORT])
        for family, via in NODE.items():
            self.client.route("default", via=via)
            # where the node's own default route would lead, as on a real one
            self.node.route("default", via=TWO[family])
        self.node.serve(udp=[NODE_PORT])
        self._workers: dict[str, Worker] = {}

    def load(self, family: int, *rules: str) -> None:
        """Have the node's nat table be these rules, and one that has it track connections."""
        binary = "iptables-legacy" if family == 4 else "ip6tables-legacy"
        other = dnat("tcp", TWO[family], 9, ONE[family], 9)
        text = "\n".join(("*nat", *rules, other, "COMMIT", ""))
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.node.popen([f"{binary}-restore"], text=True, **pipes) as process:
            _, errors = process.communicate(text)
        assert process.returncode == 0, errors

    def worker(self, host: Host) -> Worker:
        if host.name not in self._workers:
            self._workers[host.name] = host.worker()
        return self._workers[host.name]

    def ask(self, address: str, port: int, source: int, wait: float = 30) -> str:
        """Ask by UDP who answers, from a port of the client; "" if nobody does."""
        return str(self.worker(self.client).run(_udp, address, port, source, wait))

    def open(self, address: str, port: int) -> int:
        """Open a connection from the client that stays."""
        return int(self.worker(self.client).run(traffic.open, address, port))

    def host_of(self, number: int) -> str:
        """Return who answers on a connection."""
        answer: traffic.Answer = self.worker(self.client).run(traffic.say, number, b"whoami\n")
        return answer.host

    def close(self, number: int) -> None:
        self.worker(self.client).run(traffic.close, number)

    def end(self, *which: Flows) -> int:
        return self.node.run(end, which)

    def entries(self) -> dict[str, str]:
        """Return conntrack's entries as conntrack(8) prints them, by their ids."""
        return listed(self.node)


def listed(host: Host) -> dict[str, str]:
    found = {}
    for family in ("ipv4", "ipv6"):
        for line in host.call(["conntrack", "-L", "-f", family, "-o", "id"]).split("\n"):
            if number := re.search(r" id=(\d+)$", line):
                found[number[1]] = line
    return found


def gone(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [line for number, line in before.items() if number not in after]


def _udp(address: str, port: int, source: int, wait: float) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", source))
        sock.settimeout(wait)
        sock.connect((address, port))
        try:
            sock.send(b"whoami\n")
            found = re.search(rb'"host": *"(\w+)"', sock.recv(512))
        except OSError:
            return ""
    assert found
    return found[1].decode()


@pytest.fixture
def net() -> Iterator[Net]:
    with Lab("tests") as lab:
        yield Net(lab)


@FAMILIES
def test_udp_of_an_endpoint_that_is_gone(net: Net, family: int) -> None:
    """The service's flows to it are deleted and go elsewhere; all others keep their entries."""
    other = dnat("udp", WEB[family], 53, ONE[family], 53)
    net.load(family, dnat("udp", DNS[family], 53, ONE[family], 53), other)
    assert [net.ask(DNS[family], 53, source) for source in (40001, 40002)] == ["one", "one"]
    assert net.ask(WEB[family], 53, 40003) == "one"
    assert net.ask(ONE[family], 53, 40004) == "one"
    assert net.ask(TWO[family], 53, 40005) == "two"
    net.load(family, dnat("udp", DNS[family], 53, TWO[family], 53), other)
    assert net.ask(DNS[family], 53, 40001) == "one", "conntrack was to keep it there"
    before = net.entries()
    assert len(before) == 5
    gone_one = Flows("udp", ((DNS[family], 53),), (ONE[family], 53))
    assert net.end(gone_one) == 2
    vanished = gone(before, net.entries())
    assert sorted(re.findall(r"sport=(4000\d)", " ".join(vanished))) == ["40001", "40002"]
    assert net.ask(DNS[family], 53, 40001) == "two"
    assert net.ask(WEB[family], 53, 40003) == "one"
    assert net.end(gone_one) == 0


@FAMILIES
def test_udp_of_a_service_without_endpoints(net: Net, family: int) -> None:
    """What was not translated is stuck on its way, until it is deleted when an endpoint comes."""
    net.load(family)
    assert net.ask(DNS[family], 53, 40001, 0.1) == ""
    assert net.ask(WEB[family], 53, 40002, 0.1) == ""
    net.load(family, dnat("udp", DNS[family], 53, ONE[family], 53))
    assert net.ask(DNS[family], 53, 40003) == "one"
    assert net.ask(DNS[family], 53, 40001, 0.1) == "", "conntrack was to keep it as it is"
    before = net.entries()
    assert net.end(Flows("udp", ((DNS[family], 53),))) == 1
    (line,) = gone(before, net.entries())
    assert "sport=40001 " in line
    assert net.ask(DNS[family], 53, 40001) == "one"


@FAMILIES
def test_node_ports(net: Net, family: int) -> None:
    """A node port is on each local address; other hosts' ports of that number are others'."""
    net.load(family, dnat("udp", NODE[family], NODE_PORT, ONE[family], 53))
    assert net.ask(NODE[family], NODE_PORT, 40001) == "one"
    assert net.ask(ONE[family], NODE_PORT, 40002) == "one"
    before = net.entries()
    port = ((None, NODE_PORT),)
    assert net.end(Flows("udp", port, (TWO[family], 53))) == 0
    assert net.end(Flows("udp", port, (ONE[family], NODE_PORT))) == 0
    assert net.end(Flows("udp", port, (ONE[family], 53))) == 1
    (line,) = gone(before, net.entries())
    assert "sport=40001 " in line
    net.load(family)
    assert net.ask(NODE[family], NODE_PORT, 40003) == "node"
    before = net.entries()
    assert net.end(Flows("udp", port, family=10 - family)) == 0
    assert net.end(Flows("udp", port)) == 1
    (line,) = gone(before, net.entries())
    assert "sport=40003 " in line


@FAMILIES
def test_tcp_by_choice(net: Net, family: int) -> None:
    """A connection ends when its flow is deleted; the same endpoint's other service keeps its."""
    net.load(
        family,
        dnat("tcp", WEB[family], 80, ONE[family], 80),
        dnat("tcp", WEB[family], 81, ONE[family], 80),
    )
    doomed, stays, direct = (
        net.open(WEB[family], 80), net.open(WEB[family], 81), net.open(ONE[family], 80)
    )  # fmt: skip
    assert net.host_of(doomed) == "one"
    net.load(family, dnat("tcp", WEB[family], 80, TWO[family], 80))
    assert net.host_of(doomed) == "one", "established connections were to live"
    before = net.entries()
    assert net.end(Flows("udp", ((WEB[family], 80),), (ONE[family], 80))) == 0
    assert net.end(Flows("tcp", ((WEB[family], 80),), (ONE[family], 80))) == 1
    (line,) = gone(before, net.entries())
    assert f"dst={WEB[family]} " in line
    # its next packet is a stranger to the endpoint that gets it
    answer: traffic.Answer = net.worker(net.client).run(traffic.say, doomed, b"whoami\n")
    assert answer.reason == "tcp-reset"
    assert net.host_of(stays) == net.host_of(direct) == "one"


# --- against conntrack(8), by chance --------------------------------------------------------------


def test_the_right_ones_of_many(net: Net) -> None:
    """Whatever is asked for, of few endpoints or many: what conntrack(8) prints says the same."""
    chance = random.Random(6)
    flows = [_some_flow(chance) for _ in range(400)]
    net.node.run(_insert, flows)
    net.node.call(["ip", "address", "add", "10.96.0.1/32", "dev", "lo"])
    lines = list(listed(net.node).values())
    assert len(lines) > 300
    met = 0
    for _ in range(60):
        which = [_some_question(chance) for _ in range(chance.choice((1, 2, 5, 30)))]
        found = {_key(*_facts(entry)) for entry in net.node.run(flows_to, which)}
        wanted = {
            _key(*facts)
            for facts in map(_facts_of_line, lines)
            if any(_meant(one, *facts) for one in which)
        }
        assert found == wanted, which
        met += len(wanted)
    assert met > 300


@pytest.mark.parametrize("old", [False, True])
def test_what_the_kernel_picks(netns: Any, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Its filter leaves out nothing that the whole list has; a kernel without one lists all."""
    if old:  # then no flag is refused, and all is listed
        monkeypatch.setattr(flow_filter, "_NO_FLAG", 0)
    chance = random.Random(7)
    some = [_some_flow(chance) for _ in range(300)]
    some += [("tcp", "192.0.2.5", n, 0, "10.96.0.9", 443, "10.0.9.9", 443) for n in range(500)]
    questions = [
        which
        for protocol in _PROTOCOLS
        for port in _PORTS
        for address in (*_ENDPOINTS, *_SERVICES, "2001:db8:2::2")
        for which in (
            [Flows(protocol, None, (address, port)), Flows(protocol, ((address, port),))],
            [Flows(protocol, ((None, port),), family=6 if ":" in address else 4)],
        )
    ]

    def answers(walks: int) -> tuple[list[set[bytes]], int]:
        """Return the answers, and how many flows the kernel listed."""
        monkeypatch.setattr(flow_filter, "WALKS", walks)
        listed = [0]
        monkeypatch.setattr(netlink, "messages", lambda part: _counted(listed, part))
        found = [{entry.number for entry in flows_to(which)} for which in questions]
        return found, listed[0]

    def inside() -> tuple[bool, int, float]:
        _insert(some)
        (found, few), (expected, many) = answers(6), answers(0)
        return found == expected, sum(map(len, found)), few / many

    same, met, share = netns.python(inside)
    assert same
    assert met == 300, "each flow of ours, and no other"
    assert (share > 0.9) if old else (share < 0.2)


def _counted(number: list[int], part: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    for message in _messages(part):
        number[0] += 1
        yield message


_messages: Final = netlink.messages
Facts = tuple[str, str, int, int, str, int, str, int]
_SERVICES: Final = ("10.96.0.1", "10.96.0.2", "2001:db8:96::1")
_ENDPOINTS: Final = ("10.0.1.1", "10.0.1.2", "2001:db8:2::1")
_PORTS: Final = (53, 80)
_PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}


def _some_flow(chance: random.Random) -> Facts:
    """Return protocol, client, its port, the service's port and address, and the endpoint."""
    protocol = chance.choice(list(_PROTOCOLS))
    service = chance.choice(_SERVICES)
    endpoint = chance.choice([one for one in _ENDPOINTS if (":" in one) == (":" in service)])
    client = "2001:db8:1::5" if ":" in service else "192.0.2.5"
    port, endpoint_port = chance.choice(_PORTS), chance.choice(_PORTS)
    if chance.random() < 0.3:
        endpoint, endpoint_port = service, port
    source, zone = chance.randrange(20000, 60000), chance.choice((0, 0, 9))
    return protocol, client, source, zone, service, port, endpoint, endpoint_port


def _insert(flows: Sequence[Facts]) -> None:
    """Add entries to conntrack's table."""
    from nfctl.kernel import flows as kernel
    from nfctl.kernel import netlink as nl

    with kernel.open_socket() as sock:
        for protocol, client, source, zone, service, port, endpoint, endpoint_port in flows:
            number = _PROTOCOLS[protocol]
            original = _tuple(client, source, service, port, number)
            reply = _tuple(endpoint, endpoint_port, client, source, number)
            body = nl.attribute(0x8001, original) + nl.attribute(0x8002, reply)
            body += nl.attribute(3, struct.pack(">I", 0x18E)) + nl.attribute(
                7, struct.pack(">I", 600)
            )
            if number == 6:
                body += nl.attribute(0x8004, nl.attribute(0x8001, nl.attribute(1, b"\3")))
            elif number == 132:
                tags = nl.attribute(2, bytes(4)) + nl.attribute(3, bytes(4))
                body += nl.attribute(0x8004, nl.attribute(0x8003, nl.attribute(1, b"\4") + tags))
            body += nl.attribute(18, struct.pack(">H", zone)) if zone else b""
            family = 10 if ":" in client else 2
            head = struct.pack("=IHHIIBBH", 20 + len(body), 1 << 8, 0x605, 1, 0, family, 0, 0)
            sock.send(head + body)
            answer = sock.recv(4096)
            assert nl.error(answer, 16) in {0, 17}, os.strerror(nl.error(answer, 16))


def _tuple(source: str, sport: int, destination: str, dport: int, protocol: int) -> bytes:
    from nfctl.kernel.netlink import attribute

    kinds = (3, 4) if ":" in source else (1, 2)
    ends = (ipaddress.ip_address(one).packed for one in (source, destination))
    addresses = b"".join(itertools.starmap(attribute, zip(kinds, ends, strict=True)))
    ports = attribute(1, bytes([protocol]))
    ports += b"".join(
        attribute(2 + at, struct.pack(">H", p)) for at, p in enumerate((sport, dport))
    )
    return attribute(0x8001, addresses) + attribute(0x8002, ports)


def _some_question(chance: random.Random) -> Flows:
    services: list[tuple[str | None, int]] = [
        (chance.choice([*_SERVICES, None]), chance.choice(_PORTS))
        for _ in range(chance.choice((1, 1, 2)))
    ]
    endpoint = chance.choice([*_ENDPOINTS, *_ENDPOINTS, *_SERVICES])
    protocol = chance.choice(list(_PROTOCOLS))
    kind = chance.random()
    if kind < 0.4:
        return Flows(protocol, tuple(services), family=chance.choice((0, 4, 6)))
    place = (endpoint, chance.choice(_PORTS))
    return Flows(protocol, None if kind < 0.5 else tuple(services), place)


def _meant(one: Flows, protocol: str, client: str, _source: int, _zone: int,
           service: str, port: int, endpoint: str, endpoint_port: int) -> bool:  # fmt: skip
    """Say the same from the documentation of Flows, in the plainest words."""
    if one.protocol != protocol:
        return False
    translated = (service, port) != (endpoint, endpoint_port)
    family = 6 if ":" in client else 4
    if one.endpoint is None:
        for address, number in one.services or ():
            if translated or number != port:
                continue
            local = address is None and service == "10.96.0.1" and one.family in {0, family}
            if local or address == service:
                return True
        return False
    if one.endpoint != (endpoint, endpoint_port):
        return False
    if one.services is None:
        return translated
    for address, number in one.services:
        if number == port and (address == service or (address is None and translated)):
            return True
    return False


def _facts_of_line(line: str) -> Facts:
    """Read a line of conntrack(8): what is there twice is the original's, then the reply's."""
    clients, services = (
        [str(ipaddress.ip_address(one)) for one in re.findall(rf"\b{name}=(\S+)", line)]
        for name in ("src", "dst")
    )
    sources, ports, zone = (
        [int(number) for number in re.findall(rf"\b{name}=(\d+)", line)]
        for name in ("sport", "dport", "zone")
    )
    return (line.partition(" ")[0], clients[0], sources[0], sum(zone), services[0], ports[0],
            clients[1], sources[1])  # fmt: skip


def _facts(entry: Entry) -> Facts:
    from nfctl.kernel.flows import NAMES, parse

    original, reply = parse(entry.original), parse(entry.reply)
    zone = int.from_bytes(entry.zones[4:6], "big") if entry.zones else 0
    source, destination, endpoint = (
        str(ipaddress.ip_address(one))
        for one in (original.source, original.destination, reply.source)
    )
    return (NAMES[original.protocol], source, original.sport, zone, destination, original.dport,
            endpoint, reply.sport)  # fmt: skip


def _key(*facts: object) -> str:
    return " ".join(map(str, facts))


# --- waiting --------------------------------------------------------------------------------------

_WAITS: Final = """\
import sys, time
from nfctl.control.serving.ending import Flows, wait_drained
calls = 0
def clock():
    global calls
    calls += 1
    if calls == 5:
        print("waits", flush=True)
    return time.monotonic()
print(wait_drained([Flows("tcp", None, (sys.argv[1], 80))], float(sys.argv[2]), clock=clock))
"""


@FAMILIES
@pytest.mark.parametrize("events", ["1", "2"])
def test_waiting_ends_when_the_client_closes(net: Net, family: int, events: str) -> None:
    """It waits for the last connection, which began before; with events of those and without."""
    net.node.call(["sysctl", "-qw", f"net.netfilter.nf_conntrack_events={events}"])
    net.load(family, dnat("tcp", WEB[family], 80, ONE[family], 80))
    numbers = [net.open(WEB[family], 80) for _ in range(3)]
    direct = net.open(ONE[family], 80)
    argv = [sys.executable, "-c", _WAITS, ONE[family], str(PATIENCE)]
    with net.node.popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        for number in numbers[:2]:
            net.close(number)
        assert process.poll() is None
        assert net.host_of(numbers[2]) == "one"
        closed = time.monotonic()
        net.close(numbers[2])
        assert process.stdout.readline() == "0\n"
        assert time.monotonic() - closed < PATIENCE / 2, "it was to end by itself"
    # the kernel remembers them longer than that
    assert sum(f"dst={WEB[family]} " in line for line in net.entries().values()) == 3
    assert net.host_of(direct) == "one"


def test_waiting_no_longer_than_asked(net: Net) -> None:
    """At the deadline it says how many are left; with none it does not wait at all."""
    net.load(4, dnat("tcp", WEB[4], 80, ONE[4], 80))
    for _ in range(2):
        net.open(WEB[4], 80)
    to_one = [Flows("tcp", ((WEB[4], 80),), (ONE[4], 80))]
    assert net.node.run(wait_drained, to_one, 0.3) == 2
    assert net.node.run(wait_drained, to_one, 0) == 2
    assert net.node.run(wait_drained, [Flows("tcp", None, (TWO[4], 80))], 1000) == 0


@FAMILIES
def test_what_was_reset_is_not_waited_for(net: Net, family: int) -> None:
    """A reset ends a connection at once, though conntrack shows it some seconds more."""
    net.load(family, dnat("tcp", WEB[family], 80, ONE[family], 80))
    number = net.open(WEB[family], 80)
    which = [Flows("tcp", None, (ONE[family], 80))]
    assert net.node.run(wait_drained, which, 0) == 1
    net.worker(net.client).run(_reset, number)
    assert net.node.run(wait_drained, which, PATIENCE) == 0
    (line,) = net.entries().values()
    assert " CLOSE " in line


def _reset(number: int) -> None:
    """Have a connection of this process end with a reset, as one whose process is killed does."""
    sock = held._held[number]._attempt.socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    traffic.close(number)


_drains: list[Drain] = []


def _begin(which: list[Flows]) -> int:
    """Watch flows with a clock that stands still: nothing but events tells it anything."""
    _drains.append(Drain(which, clock=lambda: 0.0))
    return _drains[-1].step()


def _until(number: int) -> int:
    drain, poll = _drains[-1], select.poll()
    poll.register(drain.fileno(), select.POLLIN)
    while (left := drain.step()) != number:
        assert poll.poll(PATIENCE * 1000), left
    return left


def test_events_alone(net: Net) -> None:
    """Events say what becomes of flows: of those that begin, and where all have them of all."""
    net.node.call(["sysctl", "-qw", "net.netfilter.nf_conntrack_events=1"])
    net.load(4, dnat("tcp", WEB[4], 80, ONE[4], 80), dnat("udp", DNS[4], 53, ONE[4], 53))
    node = net.worker(net.node)
    which = [Flows("tcp", ((WEB[4], 80),), (ONE[4], 80)), Flows("udp", None, (ONE[4], 53))]
    first = net.open(WEB[4], 80)
    assert node.run(_begin, which) == 1
    second = net.open(WEB[4], 80)
    net.open(ONE[4], 80)
    assert node.run(_until, 2) == 2
    assert net.ask(DNS[4], 53, 40001) == "one"
    assert node.run(_until, 3) == 3
    net.close(first)
    assert node.run(_until, 2) == 2
    net.node.call(["conntrack", "-D", "-p", "udp"])
    assert node.run(_until, 1) == 1
    net.close(second)
    assert node.run(_until, 0) == 0


def test_lost_events(net: Net) -> None:
    """Where the kernel had to drop events, the list is read instead."""
    node = net.worker(net.node)
    assert node.run(_begin, [Flows("udp", None, ("10.0.1.1", 53))]) == 0
    node.run(_deaf)
    flows: list[Facts] = [
        ("udp", "192.0.2.5", 20000 + number, 0, "10.96.0.1", 53, "10.0.1.1", 53)
        for number in range(200)
    ]
    net.node.run(_insert, flows)
    assert len(net.entries()) == 200
    assert node.run(_until, 200) == 200


def _deaf() -> None:
    _drains[-1]._events._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def test_what_counts_as_open(net: Net) -> None:
    """SCTP counts like TCP; what has only begun, or is remembered, is not waited for."""
    ends = ["-s", "192.0.2.5", "-d", "10.96.0.1", "--dport", "80", "-r", "10.0.1.1", "-q",
            "192.0.2.5", "--reply-port-src", "80", "-t", "600"]  # fmt: skip
    source = itertools.count(20000)

    def insert(protocol: str, state: str) -> None:
        port = str(next(source))
        tags = ["--orig-vtag", "1", "--reply-vtag", "1"] if protocol == "sctp" else []
        net.node.call(["conntrack", "-I", "-p", protocol, "--state", state, "--sport", port,
                       "--reply-port-dst", port, *ends, *tags])  # fmt: skip

    states = {
        "tcp": ("SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK",
                "TIME_WAIT", "CLOSE"),
        "sctp": ("CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT",
                 "SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT"),
    }  # fmt: skip
    for protocol, names in states.items():
        for state in names:
            insert(protocol, state)
    assert len(net.entries()) == 15
    for protocol, names in states.items():
        which = [Flows(protocol, None, ("10.0.1.1", 80))]
        assert net.node.run(wait_drained, which, 0) == 4
        assert net.end(*which) == len(names)
    assert net.entries() == {}


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Flows("icmp", None, ("10.0.0.1", 80)), "'icmp' is no protocol"),
        (Flows("tcp", None, ("web", 80)), "'web' is no address"),
        (Flows("tcp", (("10.0.0.256", 80),)), "'10.0.0.256' is no address"),
        (Flows("tcp"), "here is neither"),
    ],
)
def test_bad_input(wrong: Flows, says: str) -> None:
    """What is no description of flows is refused, before anything is read."""
    for function in (flows_to, end, Drain):
        with pytest.raises(BadInput, match=says):
            function([wrong])


def test_without_privileges(netns: Any) -> None:
    """NotPermitted says what is missing."""

    def inside() -> list[str]:
        os.setgid(65534)
        os.setuid(65534)
        found = []
        for attempt in (lambda: flows_to([Flows("udp", None, ("10.0.0.1", 53))]), Events):
            with pytest.raises(NotPermitted) as caught:
                attempt()
            found.append(caught.value.hint)
        return found

    assert netns.python(inside) == ["CAP_NET_ADMIN is needed: run as root"] * 2


def test_what_the_kernel_keeps(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does not give up is named, with how many are gone; what has ended is not."""
    flows: list[Facts] = [
        ("udp", "192.0.2.5", 20000 + number, 0, "10.96.0.1", 53, "10.0.1.1", 53)
        for number in range(3)
    ]
    monkeypatch.setattr("nfctl.kernel.flows.delete", lambda *_, **__: [0, 16, 2])

    def inside() -> int:
        _insert(flows)
        return end([Flows("udp", None, ("10.0.1.1", 53))])

    with pytest.raises(NfctlError, match="1 flow cannot be deleted: Device or resource busy") as no:
        netns.python(inside)
    assert "1 were deleted" in no.value.hint
