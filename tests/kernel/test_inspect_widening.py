"""Inspection never lets in what would not get in without it.

Random rules of somebody else decide about real packets, first without ``nfctl inspect``, then with
it, in every way in which it may accept: what arrives, and what senders hear, has to be the same.
The rules stand on the router, in the tables before, beside and behind the inspection.
"""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.kernel import inspecting
from tests.kernel.inspecting import CLIENT, FAMILIES, OTHER, ROUTER, SERVER, SHORT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Inspection, Net

pytestmark = pytest.mark.kernel

PORTS: Final = (4000, 4001, 4002)
ALL: Final = "PREROUTING,INPUT,FORWARD,OUTPUT,POSTROUTING"
INSIDE: Final = {4: "10.77.0.1", 6: "fd77::1"}  # the router's address before the server


@pytest.fixture
def net() -> Iterator[Net]:
    """Give the hosts, with nothing in their tables."""
    with inspecting.network() as made:
        yield made


# --- rules of somebody else -----------------------------------------------------------------------


class Foreign:
    """Random rules, as text for iptables-restore; the same for both families but for addresses."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = dict.fromkeys(FAMILIES, "")
        self._table("mangle", ALL.split(","), ("DROP", "ACCEPT", "RETURN", "mark", "own", ""))
        self._table("filter", ["INPUT", "FORWARD", "OUTPUT"], ("DROP", "ACCEPT", "REJECT", "own"))
        self._nat()
        self._table("security", ["INPUT", "FORWARD", "OUTPUT"], ("DROP", "ACCEPT", ""))

    def _table(self, name: str, chains: list[str], targets: tuple[str, ...]) -> None:
        choose = self.random.choice
        policies = ("ACCEPT", "ACCEPT", "DROP") if name == "filter" else ("ACCEPT",)
        self._add(f"*{name}")
        for chain in chains:
            self._add(f":{chain} {choose(policies)}")
        self._add(":OWN -")
        for chain in [*chains, "OWN", "OWN"]:
            for _ in range(self.random.randrange(4)):
                target = choose([one for one in targets if one != "own" or chain != "OWN"])
                self._rule(chain, target)
        self._add("COMMIT")

    def _nat(self) -> None:
        """Sometimes translate addresses and ports."""
        self._add("*nat")
        for rule in (
            "-A PREROUTING -p udp -m udp --dport 4001 -j DNAT --to-destination :4000",
            "-A PREROUTING -p tcp -m tcp --dport 4002 -j REDIRECT --to-ports 4001",
            "-A OUTPUT -p tcp -m tcp --dport 4001 -j DNAT --to-destination :4002",
            "-A POSTROUTING -o lan0 -j MASQUERADE",
        ):
            if self.random.random() < 0.3:
                self._add(rule)
        self._add("COMMIT")

    def _rule(self, chain: str, target: str) -> None:
        how = {
            "mark": f"-j MARK --set-xmark {self.random.randrange(4)}/0xff",
            "own": "-j OWN", "REJECT": "-j REJECT", "": "",
        }.get(target, f"-j {target}")  # fmt: skip
        choose = self.random.choice
        ending = target in {"DROP", "REJECT"}
        matches = [
            choose(["-p udp -m udp --dport 4001", "-p tcp -m tcp --dport 4002", "-p udp",
                    "-p tcp -m multiport --ports 4000,4002", "-p tcp", ""][: 4 if ending else 6]),
            choose(["-s {source}", "-s {other}", "-d {server}", "", "", ""]),
            choose(["-m mark --mark 1/0xff", "-m conntrack --ctstate NEW",
                    "-m conntrack --ctstate ESTABLISHED", "-m length --length 0:70", "", "", ""]),
        ]  # fmt: skip
        words = " ".join(word for word in (f"-A {chain}", *matches, how) if word)
        self._add(words)

    def _add(self, line: str) -> None:
        for family in FAMILIES:
            names = {"source": CLIENT[family], "other": OTHER[family], "server": SERVER[family]}
            self.text[family] += line.format(**names) + "\n"


# --- what gets through ----------------------------------------------------------------------------


class Probe(NamedTuple):
    """A packet, or a connection: through the router, to it, or from it."""

    way: str
    family: int
    protocol: str
    source: str
    port: int


class Probes:
    """Sockets that listen, in the server and in the router, and what is sent to them."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self._listening: dict[tuple[str, int, int], socket.socket] = {}
        self._bound: dict[tuple[str, int, int], socket.socket] = {}
        for family in FAMILIES:
            for port in PORTS:
                for host in (net.server, net.router):
                    key = (host.name, family, port)
                    self._listening[key] = net.listen(host, family, port)
                    self._listening[key].setblocking(False)
                    self._bound[key] = net.udp(host, family, "", port)

    def outcomes(self) -> dict[Probe, str]:
        """Send everything; return what became of each."""
        found: dict[Probe, str] = {}
        streams: dict[Probe, socket.socket] = {}
        datagrams: dict[Probe, socket.socket] = {}
        for probe, host, target in self._all():
            if probe.protocol == "udp":
                sock = datagrams[probe] = self.net.udp(host, probe.family, probe.source)
                sock.setblocking(False)
                try:
                    sock.connect((target, probe.port))
                    sock.send(repr(tuple(probe)).encode())
                except OSError as error:
                    found[probe] = errno.errorcode[error.errno or 0]
            else:
                kind = socket.AF_INET if probe.family == 4 else socket.AF_INET6
                sock = streams[probe] = self.net.socket(host, kind, socket.SOCK_STREAM)
                sock.setblocking(False)
                sock.bind((probe.source, 0))
                number = sock.connect_ex((target, probe.port))
                if number not in {0, errno.EINPROGRESS}:
                    found[probe] = errno.errorcode[number]
        # nothing tells of what never comes; all the rest takes a few milliseconds
        select.select([], [], [], SHORT)
        for probe, sock in streams.items():
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if probe not in found:
                try:
                    sock.getpeername()
                    found[probe] = "connected"
                except OSError:
                    found[probe] = errno.errorcode.get(number, "nothing")
        arrived = {data for sock in self._bound.values() for data in inspecting.receive(sock, 0)}
        for probe, sock in datagrams.items():
            said = found.get(probe) or errno.errorcode.get(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "nothing"
            )
            came = "arrived" if repr(tuple(probe)).encode() in arrived else "lost"
            found[probe] = f"{came}, {said}"
            if probe.way == "from":
                # its sender is told at once, while send(2) has the socket, unless it is queued:
                # by another error, or by one that comes too soon to be heard of
                found[probe] = f"{came}, nothing"
        for sock in (*streams.values(), *datagrams.values()):
            sock.close()
        for sock in self._listening.values():
            while select.select([sock], [], [], 0)[0]:
                try:
                    sock.accept()[0].close()
                except OSError:
                    break
        return found

    def _all(self) -> Iterator[tuple[Probe, Host, str]]:
        net = self.net
        for family in FAMILIES:
            for protocol in ("udp", "tcp"):
                for port in PORTS:
                    for source in (CLIENT[family], OTHER[family]):
                        probe = Probe("through", family, protocol, source, port)
                        yield probe, net.client, SERVER[family]
                        yield probe._replace(way="to"), net.client, ROUTER[family]
                    probe = Probe("from", family, protocol, INSIDE[family], port)
                    yield probe, net.router, SERVER[family]


def load(net: Net, foreign: Foreign) -> None:
    for family in FAMILIES:
        net.rules(net.router, foreign.text[family], [family])
        if family == 6:  # without neighbour discovery nothing of IPv6 can be told
            for table in ("mangle", "filter", "security"):
                chains = ALL.split(",") if table == "mangle" else ["INPUT", "FORWARD", "OUTPUT"]
                for chain in chains:
                    net.legacy(
                        net.router, "-t", table, "-I", chain, "-p", "icmpv6", "-j", "ACCEPT",
                        family=6,
                    )  # fmt: skip


def differing(one: dict[Probe, str], other: dict[Probe, str]) -> dict[Probe, tuple[str, str]]:
    return {probe: (one[probe], other[probe]) for probe in one if one[probe] != other[probe]}


ACCEPTING: Final = {
    "nothing": ((), ""),
    "quiet": (("--quiet",), ""),
    "offload": (("--offload",), ""),
    "offload quiet": (("--offload", "--quiet"), ""),
    "accept": ((), "rules: [{when: {proto: [udp, tcp]}, verdict: accept}]"),
    "accept and offload": ((), "rules: [{verdict: accept, offload: flow}]"),
    "repeat": ((), "rules: [{when: {dport: [4000, 4001]}, verdict: repeat}]"),
    "mark": ((), "rules: [{verdict: mark, mark: 0x50000/0xf0000}]"),
    "remembered": ((), "rules: [{verdict: accept, for: 10m, per: source}]"),
    "no change": ((), "rules: [{verdict: set, set: {ttl: +1}}]"),
    "a reject elsewhere": ((), "rules: [{when: {dport: 9}, verdict: reject}]"),
}


@pytest.mark.parametrize("seed", range(10))
def test_random_rules(seed: int, net: Net) -> None:
    """Through random rules of others comes what came without inspection, however it accepts."""
    chooser = random.Random(seed)
    foreign = Foreign(seed)
    load(net, foreign)
    probes = Probes(net)
    without = probes.outcomes()
    assert not differing(without, probes.outcomes()), "it varies by itself"
    packets = 0
    for name in chooser.sample(sorted(ACCEPTING), 3):
        words, rules = ACCEPTING[name]
        chains = ALL.split(",")
        chosen = chooser.choice([chains, chains[2:], chooser.sample(chains, 2), ["FORWARD"]])
        if "reject" in name:  # not in POSTROUTING, and no packet twice
            chosen = ["INPUT", "FORWARD", "OUTPUT"]
        with net.inspect(net.router, *words, rules=rules, chains=",".join(chosen)) as inspection:
            what = f"{name}, {chosen}\n{foreign.text[4]}"
            found = differing(without, probes.outcomes())
            # connections that the kernel has been left to decide, and new ones between the same
            again = differing(without, probes.outcomes())
            packets += inspection.end()["packets"]
        assert not found, what
        assert not again, what
    assert packets


def test_the_probes_can_tell(net: Net) -> None:
    """The random rules let something through and stop something, in each way and family."""
    probes = Probes(net)
    open_ = probes.outcomes()
    assert set(open_.values()) == {"connected", "arrived, nothing"}
    seen: set[tuple[str, int, str]] = set()
    for seed in range(8):
        load(net, Foreign(seed))
        seen |= {(p.way, p.family, said) for p, said in probes.outcomes().items()}
    for family in FAMILIES:
        for way in ("through", "to", "from"):
            said = {what for one, kind, what in seen if (one, kind) == (way, family)}
            assert {"connected", "nothing", "arrived, nothing", "lost, nothing"} <= said, way


# --- while it runs --------------------------------------------------------------------------------

MASQUERADE: Final = """\
*nat
-A POSTROUTING -o lan0 -p udp -j MASQUERADE --random-fully
-A PREROUTING -p udp -m udp --dport 4001 -j DNAT --to-destination :4000
COMMIT
"""


@pytest.mark.parametrize("words", [(), ("--offload", "--quiet")], ids=["asked", "offload"])
@pytest.mark.parametrize("chains", ["FORWARD", ALL])
def test_the_first_packets_of_a_flow(chains: str, words: tuple[str, ...], net: Net) -> None:
    """Packets of a new flow that wait together, none of them tracked yet, all get through NAT."""
    net.rules(net.router, MASQUERADE)
    with net.inspect(net.router, *words, chains=chains):
        for family in FAMILIES:
            there = net.udp(net.server, family, SERVER[family], 4000)
            for _ in range(3):
                here = net.udp(net.client, family, CLIENT[family])
                for number in range(20):
                    here.sendto(b"%d" % number, (SERVER[family], 4001))
            assert len(inspecting.receive(there)) == 60


DROPPING: Final = "-p udp --dport 4001 -j DROP"


def last(net: Net, chain: str, family: int) -> bool:
    """Whether the inspection's jump is the last rule of its chain of mangle."""
    listed = net.legacy(net.router, "-t", "mangle", "-S", chain, family=family)
    return "NFCTL-INSPECT" in listed.splitlines()[-1]


@pytest.mark.parametrize("words", [(), ("--offload",)], ids=["asked", "offload"])
def test_a_rule_that_comes_behind_ours(words: tuple[str, ...], net: Net) -> None:
    """The inspection moves behind a rule that somebody appends to mangle, and that one decides."""
    inspection = net.inspect(net.router, *words)
    flows = {family: net.pair(family, 4001) for family in FAMILIES}
    for here, there in flows.values():
        for _ in range(3):
            here.send(b"before")
            assert there.recv(100) == b"before"
    for family in FAMILIES:
        net.legacy(net.router, "-t", "mangle", "-A", "FORWARD", *DROPPING.split(), family=family)
        inspection.until(partial(last, net, "FORWARD", family))
    for here, there in flows.values():
        here.send(b"behind")
        assert inspecting.receive(there) == []
    inspection.end()
    assert len(inspection.notes) == 2
    for family in FAMILIES:
        assert [count for count, rule in net.counters(net.router, "mangle", family)] == [1]


def test_a_rule_that_comes_into_filter(net: Net) -> None:
    """A flow whose accepting was left to the kernel is still dropped by a new rule of filter."""
    with net.inspect(net.router, "--offload"):
        flows = {family: net.pair(family, 4001) for family in FAMILIES}
        for here, there in flows.values():
            for _ in range(3):
                here.send(b"before")
                assert there.recv(100) == b"before"
        for family, (here, there) in flows.items():
            net.legacy(net.router, "-I", "FORWARD", *DROPPING.split(), family=family)
            here.send(b"behind")
            assert inspecting.receive(there) == []


def _kill_the_run(inspection: Inspection) -> None:
    inspection.process.kill()
    inspection.process.wait()


def _kill_the_worker(inspection: Inspection) -> None:
    for pid in inspection.workers():
        os.kill(pid, signal.SIGKILL)
    inspection.wait(code=1)


@pytest.mark.parametrize("kill", [_kill_the_run, _kill_the_worker], ids=["run", "worker"])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_killed(kill: Callable[[Inspection], None], seed: int, net: Net) -> None:
    """When a process is killed, the same gets through as ever."""
    load(net, Foreign(seed))
    probes = Probes(net)
    without = probes.outcomes()
    inspection = net.inspect(net.router, chains=ALL)
    kill(inspection)
    while net.figures(net.router) is not None:
        select.select([], [], [], 0.002)
    assert not differing(without, probes.outcomes())


@pytest.mark.parametrize("seed", [3, 4])
def test_a_full_queue(seed: int, net: Net) -> None:
    """Packets that find the queue full go on uninspected, and the firewall still decides them."""
    load(net, Foreign(seed))
    probes = Probes(net)
    without = probes.outcomes()
    handler = "import time\ndef handler(packet): time.sleep(0.001)\n"
    inspection = net.inspect(
        net.router, "--queue-length", "2", handler=handler, chains="INPUT,FORWARD,OUTPUT"
    )
    found = differing(without, probes.outcomes())
    end = inspection.end()
    assert not found
    assert 0 < end["packets"] < len(without) * 3
