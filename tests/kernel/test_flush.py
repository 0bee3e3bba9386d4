"""Flows that a change decides differently are deleted, and no others; conntrack(8) is the oracle.

The flows are real: sockets of a client, through a router, to two servers.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.control import flush
from nfctl.control.flush import Flushed
from nfctl.control.flush import copy as flush_copy
from nfctl.control.flush import packets as flush_packets
from nfctl.kernel.flows import ICMP, WITH_PORTS, Tuple
from nfctl.lab import Lab, Verdict, fork, traffic
from tests.kernel.conftest import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host, Worker

_NEEDED = ("iptables-legacy-restore", "ip6tables-legacy-restore", "conntrack")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    *(pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}") for name in _NEEDED),
]

CLIENT: Final = {4: "192.0.2.10", 6: "2001:db8:1::10"}
ROUTER: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
ONE: Final = {4: "10.0.1.10", 6: "2001:db8:2::10"}
TWO: Final = {4: "10.0.2.10", 6: "2001:db8:3::10"}
FAMILIES: Final = pytest.mark.parametrize("family", [4, 6])
RAW: Final = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i wan0 -j CT {}\nCOMMIT\n"
QUIET: Final = 0.3  # seconds of silence, of which much is in vain


def to(addresses: dict[int, str], family: int, port: int) -> str:
    return f"[{addresses[family]}]:{port}" if family == 6 else f"{addresses[family]}:{port}"


class Net:
    """A client, a router and two servers, and what goes on between them."""

    def __init__(self, lab: Lab) -> None:
        self.client = lab.host("client")
        self.router = lab.host("router", forward=True)
        self.servers = [lab.host("one"), lab.host("two")]
        lab.link(
            self.client.port("eth0", f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"),
            self.router.port("wan0", f"{ROUTER[4]}/24", f"{ROUTER[6]}/64"),
        )
        for number, server in enumerate(self.servers, 1):
            ours = (f"10.0.{number}.1", f"2001:db8:{number + 1}::1")
            lab.link(
                self.router.port(f"lan{number}", f"{ours[0]}/24", f"{ours[1]}/64"),
                server.port("eth0", f"10.0.{number}.10/24", f"2001:db8:{number + 1}::10/64"),
            )
            for via in ours:
                server.route("default", via=via)
            server.serve(tcp=[22, 80, 81], udp=[53, 54])
        for via in ROUTER.values():
            self.client.route("default", via=via)
        self.router.serve(tcp=[22, 25], udp=[53])
        self._workers: dict[str, Worker] = {}
        self._text = {4: "", 6: ""}

    # --- rules --------------------------------------------------------------------------------

    def load(self, text: str, family: int = 4) -> dict[int, str]:
        """Have the router's rules be these; return what iptables-save says of both families."""
        binary = "iptables-legacy" if family == 4 else "ip6tables-legacy"
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.router.popen([f"{binary}-restore"], text=True, **pipes) as process:
            _, errors = process.communicate(text)
        assert process.returncode == 0, errors
        # with counters, and comments: nothing that is a change
        self._text[family] = self.router.call([f"{binary}-save", "-c"])
        return dict(self._text)

    def flush(self, before: dict[int, str], after: dict[int, str], **more: Any) -> Flushed:
        return self.router.run(partial(flush.flush, before, after, [], **more), timeout=120)

    def change(self, text: str, family: int = 4) -> Flushed:
        """Have these rules now, and flush."""
        before = dict(self._text)
        return self.flush(before, self.load(text, family))

    # --- flows --------------------------------------------------------------------------------

    def worker(self, host: Host) -> Worker:
        if host.name not in self._workers:
            self._workers[host.name] = host.worker()
        return self._workers[host.name]

    def open(self, address: str, port: int, host: Host | None = None) -> int:
        """Open a connection from the client, or another host, that stays."""
        worker = self.worker(host or self.client)
        number = worker.run(traffic.open, address, port)
        assert self.alive(number, host)
        return int(number)

    def say(
        self, number: int, host: Host | None = None, timeout: float = traffic.TIMEOUT
    ) -> traffic.Answer:
        say = partial(traffic.say, timeout=timeout)
        answer: traffic.Answer = self.worker(host or self.client).run(say, number, b"whoami\n")
        return answer

    def alive(self, number: int, host: Host | None = None) -> bool:
        return self.say(number, host).verdict is Verdict.ACCEPTED

    def dead(self, number: int, host: Host | None = None) -> bool:
        return self.say(number, host, QUIET).verdict is not Verdict.ACCEPTED

    def whoami(self, address: str, port: int) -> str:
        answer: traffic.Answer = self.client.run(traffic.tcp, address, port)
        assert answer.verdict is Verdict.ACCEPTED
        return answer.host

    def entries(self) -> dict[str, str]:
        """Return conntrack's entries: what identifies them, by their ids."""
        found = {}
        for family in ("ipv4", "ipv6"):
            for line in self.router.call(["conntrack", "-L", "-f", family, "-o", "id"]).split("\n"):
                if number := re.search(r" id=(\d+)$", line):
                    found[number[1]] = " ".join(
                        re.findall(r"(?:^\w+|(?:src|dst|[sd]port|id)=\S+)", line)
                    )
        return found

    def insert(self, *words: str) -> None:
        """Add an entry by hand."""
        self.router.call(["conntrack", "-I", "-t", "600", *words])


@pytest.fixture
def net() -> Iterator[Net]:
    with Lab("tests") as lab:
        yield Net(lab)


def nat(rules: str, filtering: str = "") -> str:
    """Return text of two tables, of which filter lets established connections pass."""
    return f"""\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
{rules}
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{filtering}
COMMIT
"""


def dnat(port: int, target: str) -> str:
    return f"-A PREROUTING -i wan0 -p tcp -m tcp --dport {port} -j DNAT --to-destination {target}"


def gone(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what was there before and is not any more, by ids."""
    return sorted(text for number, text in before.items() if number not in after)


@FAMILIES
def test_another_destination(net: Net, family: int) -> None:
    """A DNAT's flows vanish when its target changes; those of other rules keep their entries."""
    router = ROUTER[family]
    other = dnat(81, to(ONE, family, 81))
    net.load(nat(dnat(80, to(ONE, family, 80)) + "\n" + other), family)
    moved = [net.open(router, 80) for _ in range(3)]
    stays = [net.open(router, 81), net.open(router, 22), net.open(TWO[family], 22)]
    local = net.open(router, 25, net.router)
    before = net.entries()
    done = net.change(nat(dnat(80, to(TWO, family, 80)) + "\n" + other), family)
    after = net.entries()
    assert len(done.deleted) == len(gone(before, after)) == 3
    assert all(" dport=80 " in text for text in gone(before, after))
    assert done.skipped == []
    assert done.examined == len(before)
    assert all(net.alive(number) for number in stays)
    assert net.alive(local, net.router)
    assert all(net.dead(number) for number in moved)
    assert net.whoami(router, 80) == "two"
    assert after.keys() == before.keys() - (before.keys() - after.keys())


@FAMILIES
def test_a_drop(net: Net, family: int) -> None:
    """What a new rule drops is dead, though established; what it does not match goes on."""
    net.load(nat(""), family)
    doomed = [net.open(TWO[family], 80), net.open(TWO[family], 80)]
    stays = [net.open(ONE[family], 80), net.open(TWO[family], 22)]
    before = net.entries()
    rule = f"-A FORWARD -d {TWO[family]} -p tcp -m tcp --dport 80 -j DROP"
    done = net.change(nat("", rule), family)
    assert len(done.deleted) == len(gone(before, net.entries())) == 2
    assert all(f"-> {to(TWO, family, 80)}" in text for text in done.deleted)
    assert all(net.dead(number) for number in doomed)
    assert all(net.alive(number) for number in stays)


def test_a_policy(net: Net) -> None:
    """A chain's policy decides, too; and back again nothing is deleted."""
    net.load(nat(""))
    doomed, stays = net.open(TWO[4], 80), net.open(ROUTER[4], 22)
    text = nat("").replace(":FORWARD ACCEPT", ":FORWARD DROP")
    assert len(net.change(text).deleted) == 1
    assert net.dead(doomed)
    assert net.alive(stays)
    assert net.change(nat("")).deleted == []
    assert net.alive(stays)


def test_no_effect(net: Net) -> None:
    """Rules in another order, split, or of no consequence delete nothing."""
    accept = "-A FORWARD -p tcp -m tcp --dport {} -j ACCEPT"
    drop = "-A FORWARD -p tcp -m tcp --dport 9 -j DROP"
    first = [accept.format(80), accept.format(81), drop]
    one = dnat(80, "10.0.1.10:80")
    net.load(nat(one, "\n".join(first)))
    numbers = [net.open(ROUTER[4], 80), net.open(TWO[4], 81), net.open(ROUTER[4], 22)]
    before = net.entries()
    second = [drop, "-A FORWARD -p tcp -m multiport --dports 80:81 -j ACCEPT", accept.format(7)]
    done = net.change(nat(dnat(9, "10.0.2.10") + "\n" + one, "\n".join(second)))
    assert (done.deleted, done.skipped) == ([], [])
    assert done.examined >= 3
    assert before.keys() <= net.entries().keys()
    assert all(net.alive(number) for number in numbers)


def test_dropped_before_and_after(net: Net) -> None:
    """A flow that only ESTABLISHED lets pass stays: the change is none of its business."""
    net.load(nat(""))
    number = net.open(TWO[4], 80)
    strict = nat("", "-A FORWARD -p tcp -m tcp --dport 80 -j DROP")
    net.load(strict)
    before = net.entries()
    done = net.change(nat("", "-A FORWARD -p tcp -m tcp --dport 79:80 -j DROP"))
    assert (done.deleted, done.skipped) == ([], [])
    assert before == net.entries()
    assert net.alive(number)
    # ... and dropped before, accepted after: it has what it would get
    assert net.change(nat("")).deleted == []
    assert net.alive(number)


@FAMILIES
def test_udp(net: Net, family: int) -> None:
    """UDP flows are told apart by ports, and the next datagram is decided anew."""
    net.load(nat(""), family)
    sources = {53: 40053, 54: 40054}
    for port, source in sources.items():
        net.worker(net.client).run(_udp, TWO[family], port, source)
    before = net.entries()
    rule = f"-A PREROUTING -p udp -m udp --dport 53 -j DNAT --to-destination {to(ONE, family, 53)}"
    done = net.change(nat(rule), family)
    assert len(done.deleted) == 1
    assert "sport=40053" in "".join(gone(before, net.entries()))
    assert net.worker(net.client).run(_udp, TWO[family], 53, 40053) == "one"
    assert net.worker(net.client).run(_udp, TWO[family], 54, 40054) == "two"


def _udp(address: str, port: int, source: int) -> str:
    """Ask a server who it is, from a port of ours."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", source))
        sock.settimeout(30)
        sock.sendto(b"whoami\n", (address, port))
        return str(json.loads(sock.recv(512))["host"])


def test_other_protocols(net: Net) -> None:
    """ICMP, SCTP, UDP-Lite, GRE and a protocol without ports are rehearsed as what they are."""
    net.load(nat(""))
    # our packets' checksums are not right
    net.router.call(["sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=0"])
    names = {1: "icmp", 47: "gre", 50: "esp", 132: "sctp", 136: "udplite"}
    for address in (ONE[4], TWO[4]):
        net.client.run(_first_packets, address, list(names))
    before = net.entries()
    assert len(before) == 2 * len(names)
    rules = [f"-A FORWARD -d {TWO[4]} -p {name} -j DROP" for name in names.values()]
    done = net.change(nat("", "\n".join(rules)))
    assert len(done.deleted) == len(names)
    assert done.skipped == []
    assert gone(before, net.entries()) == sorted(
        text for text in before.values() if f" dst={TWO[4]} " in text
    )


def _first_packets(address: str, protocols: list[int]) -> None:
    """Send what begins a flow of each protocol."""
    ends = socket.inet_aton(CLIENT[4]), socket.inet_aton(address)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for protocol in protocols:
            ports = (5000, 80) if protocol in WITH_PORTS else (0, 0)
            kind, number = (8, 77) if protocol == ICMP else (0, 0)
            packet = flush_packets.first(Tuple(*ends, protocol, *ports, kind, 0, number))
            assert packet is not None
            raw.sendto(packet, (address, 0))


def test_masquerade(net: Net) -> None:
    """Flows change their source when its rule changes; where only its kind does, they stay."""
    masquerade = "-A POSTROUTING -o lan1 -j MASQUERADE\n-A POSTROUTING -o lan2 -j MASQUERADE"
    net.load(nat(masquerade))
    numbers = [net.open(ONE[4], 80), net.open(TWO[4], 80)]
    before = net.entries()
    same = masquerade.replace("lan1 -j MASQUERADE", "lan1 -j SNAT --to-source 10.0.1.1")
    assert net.change(nat(same)).deleted == []
    assert before == net.entries()
    other = masquerade.replace("lan1 -j MASQUERADE", "lan1 -j SNAT --to-source 10.0.1.77")
    done = net.change(nat(other))
    assert len(done.deleted) == 1
    assert " dst=10.0.1.10 " in gone(before, net.entries())[0]
    assert net.alive(numbers[1])
    assert net.dead(numbers[0])


def test_random_ports_stay(net: Net) -> None:
    """What the kernel chose from many ports is right as long as the new rules leave it those."""
    snat = "-A POSTROUTING -o lan1 -p tcp -j SNAT --to-source 10.0.1.1{}"
    before = snat.format(":20000-30000 --random-fully")
    net.load(nat(before))
    numbers = [net.open(ONE[4], 80) for _ in range(5)]
    entries = net.entries()
    done = net.change(nat(dnat(9, "10.0.2.10") + "\n" + before))
    assert (done.deleted, done.skipped) == ([], [])
    wider = nat(snat.format(":10000-60000 --random"))
    assert net.change(wider).deleted == []
    assert entries.keys() <= net.entries().keys()
    assert all(net.alive(number) for number in numbers)
    elsewhere = nat(snat.format(":2000-2099 --random-fully"))
    assert len(net.change(elsewhere).deleted) == 5
    assert all(net.dead(number) for number in numbers)


def test_taken_ports_stay(net: Net) -> None:
    """Two flows of one port behind one address: the port that the second got is right."""
    net.load(nat("-A POSTROUTING -o lan1 -j MASQUERADE"))
    for source in ("192.0.2.10", "192.0.2.11"):
        net.client.call(["ip", "address", "replace", f"{source}/24", "dev", "eth0"])
        net.worker(net.client).run(_bound, source, 45000, ONE[4])
    before = net.entries()
    assert len(before) == 2
    replies = {re.findall(r"dport=(\d+)", text)[1] for text in before.values()}
    assert len(replies) == 2, "the second one's port was to be taken"
    done = net.change(nat(dnat(9, "10.0.2.10") + "\n-A POSTROUTING -o lan1 -j MASQUERADE"))
    assert (done.deleted, done.skipped) == ([], [])
    assert before == net.entries()


_kept: list[socket.socket] = []


def _bound(source: str, port: int, address: str) -> None:
    _kept.append(socket.create_connection((address, 80), 30, source_address=(source, port)))


def spread(*targets: str) -> str:
    """Return DNAT rules that spread connections over servers at random."""
    lines = []
    for number, target in enumerate(targets):
        chance = (
            ""
            if number == len(targets) - 1
            else (f" -m statistic --mode random --probability {1 / (len(targets) - number):.10f}")
        )
        lines.append(dnat(80, target).replace(" -j ", f"{chance} -j "))
    return "\n".join(lines)


def test_random_servers_stay(net: Net) -> None:
    """Of connections spread at random, those to a server that is taken out vanish, no others."""
    net.load(nat(spread("10.0.1.10:80", "10.0.2.10:80", "10.0.2.10:81")))
    numbers = {
        number: net.say(number).host for number in (net.open(ROUTER[4], 80) for _ in range(24))
    }
    before = net.entries()
    count = {
        name: sum(f"src=10.0.{name} " in text for text in before.values())
        for name in ("1.10", "2.10")
    }
    assert all(count.values())
    done = net.change(
        nat(spread("10.0.2.10:81", "10.0.1.10:80", "10.0.2.10:80"), "-A FORWARD -p udp -j DROP")
    )
    assert (done.deleted, done.skipped) == ([], [])
    done = net.change(nat(spread("10.0.2.10:80", "10.0.2.10:81")))
    assert len(done.deleted) == count["1.10"]
    assert all(" src=10.0.1.10 " in text for text in gone(before, net.entries()))
    assert {number for number in numbers if net.dead(number)} == {
        number for number, server in numbers.items() if server == "one"
    }
    assert done.skipped == []


def test_the_host_itself(net: Net) -> None:
    """Connections of the host to itself, from it and to it are decided by INPUT and OUTPUT."""
    net.load(nat(""))
    local = net.open("127.0.0.1", 25, net.router)
    doomed = net.open("127.0.0.1", 22, net.router)
    outgoing = net.open(ONE[4], 22, net.router)
    doomed_outgoing = net.open(ONE[4], 80, net.router)
    incoming = net.open(ROUTER[4], 22)
    before = net.entries()
    rules = [
        "-A INPUT -i lo -p tcp -m tcp --dport 22 -j DROP",
        "-A OUTPUT -o lan1 -p tcp -m tcp --dport 80 -j REJECT",
    ]
    text = nat("", "\n".join(rules))
    done = net.change(text)
    assert len(done.deleted) == len(gone(before, net.entries())) == 2
    assert net.alive(local, net.router)
    assert net.alive(outgoing, net.router)
    assert net.alive(incoming)
    assert net.dead(doomed, net.router)
    assert doomed_outgoing
    redirect = "-A OUTPUT -p tcp -m tcp --dport 25 -j REDIRECT --to-ports 22"
    done = net.change(
        text.replace(":POSTROUTING ACCEPT [0:0]\n", f":POSTROUTING ACCEPT [0:0]\n{redirect}\n")
    )
    assert len(done.deleted) == 1
    assert "127.0.0.1:25" in done.deleted[0]


def test_zones(net: Net) -> None:
    """A flow in a zone that the rules give is judged; in another one it is left alone."""
    raw = RAW.format("--zone 5")
    net.load(raw + nat(""))
    net.open(TWO[4], 80)
    net.open(ONE[4], 80)
    ends = ["-s", CLIENT[4], "-d", TWO[4], "-p", "tcp", "--sport", "4000", "--dport", "80"]
    net.insert(*ends, "--state", "ESTABLISHED", "-w", "9")
    before = net.entries()
    done = net.change(raw + nat("", f"-A FORWARD -d {TWO[4]} -p tcp -m tcp --dport 80 -j DROP"))
    vanished = gone(before, net.entries())
    assert len(done.deleted) == len(vanished) == 1
    assert TWO[4] in vanished[0]
    assert "sport=4000" not in vanished[0]
    assert len(done.skipped) == 1
    assert "4000" in done.skipped[0]
    assert "zone" in done.skipped[0]


def test_what_is_not_rehearsed(net: Net) -> None:
    """Flows from nowhere are skipped, with the reason, and stay."""
    net.load(nat(""))
    for source in ("198.51.100.1", "0.0.0.0"):  # noqa: S104 - no socket's
        ends = ["-s", source, "-d", TWO[4], "-p", "udp", "--sport", "68", "--dport", "67"]
        net.insert(*ends)
    before = net.entries()
    done = net.change(nat("", "-A FORWARD -j DROP\n-A INPUT -j DROP"))
    assert done.deleted == []
    assert len(done.skipped) == 2
    assert any("no interface leads to 198.51.100.1" in text for text in done.skipped)
    assert before == net.entries()


def test_what_a_helper_expected(net: Net) -> None:
    """FTP's data connection began because another one said so: it is skipped, and stays."""
    net.load(nat(""))
    net.open(ONE[4], 80)
    (control,) = net.entries().values()
    port = int(re.findall(r" sport=(\d+)", control)[0])
    net.router.run(_expected_by, port)
    before = net.entries()
    assert len(before) == 2
    done = net.change(nat("", "-A FORWARD -p tcp -j DROP"))
    assert len(done.deleted) == len(done.skipped) == 1
    assert ":20 " in done.skipped[0]
    assert "expected it" in done.skipped[0]
    assert [text for text in before.values() if "sport=20 " in text] == list(net.entries().values())


def _expected_by(port: int) -> None:
    """Add an entry whose master is the connection from a port of the client."""
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    master = NFCTAttrTuple(saddr=CLIENT[4], daddr=ONE[4], proto=6, sport=port, dport=80)
    data = NFCTAttrTuple(saddr=ONE[4], daddr=CLIENT[4], proto=6, sport=20, dport=2000)
    with NFCTSocket() as sock:
        sock.entry(
            "add", timeout=600, tuple_orig=data, tuple_reply=data.reverse(), tuple_master=master
        )


def test_link_local(net: Net) -> None:
    """Of several links, nobody knows which one a link-local address is on: skipped."""
    net.load(nat(""), 6)
    for host, address, name in ((net.client, "fe80::5", "eth0"), (net.router, "fe80::1", "wan0")):
        host.call(["ip", "address", "add", f"{address}/64", "dev", name, "nodad"])
    net.worker(net.client).run(_connected, "fe80::5%eth0", "fe80::1%eth0")
    before = net.entries()
    done = net.change(nat("", "-A INPUT -p tcp -m tcp --dport 22 -j DROP"), 6)
    assert done.deleted == []
    assert len(done.skipped) == 1
    assert "may be on any of the links" in done.skipped[0]
    assert before.keys() <= net.entries().keys()


def _connected(source: str, address: str) -> None:
    ends = [socket.getaddrinfo(*each)[0][4] for each in ((source, 0), (address, 22))]
    connection = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    connection.bind(ends[0])
    connection.connect(ends[1])
    _kept.append(connection)


def test_what_nobody_knows(net: Net) -> None:
    """Where the new rules ask who sent a packet, flows that may be meant are named, and stay."""
    net.load(nat(""))
    number = net.open(ONE[4], 80, net.router)
    certain = net.open(TWO[4], 80, net.router)
    owner = "-A OUTPUT -p tcp -m tcp --dport 80 -m owner --uid-owner 12345 -j DROP"
    before = net.entries()
    done = net.change(nat("", f"{owner}\n-A OUTPUT -d {TWO[4]} -p tcp -j DROP"))
    assert len(done.deleted) == len(gone(before, net.entries())) == 1
    assert f"-> {TWO[4]}:80" in done.deleted[0]
    assert len(done.skipped) == 1
    assert "depends on -m owner" in done.skipped[0]
    assert net.alive(number, net.router)
    assert net.dead(certain, net.router)


def test_limits_are_no_differences(net: Net) -> None:
    """A rule that accepts a few a minute is no reason to delete what is more than that."""
    text = nat(
        "",
        "-A FORWARD -p tcp -m limit --limit 1/hour --limit-burst 3 -j ACCEPT\n"
        "{}-A FORWARD -p tcp -j DROP",
    )
    net.load(nat(""))
    numbers = [net.open(ONE[4], 80) for _ in range(8)]
    net.load(text.format(""))
    done = net.change(text.format("-A FORWARD -p udp -j DROP\n"))
    assert (done.deleted, done.skipped) == ([], [])
    assert all(net.alive(number) for number in numbers)


def test_untracked(net: Net) -> None:
    """What is not tracked any more but passes stays; what is dropped then does not."""
    net.load(nat(""))
    stays, doomed = net.open(ROUTER[4], 22), net.open(TWO[4], 80)
    raw = RAW.format("--notrack")
    done = net.change(raw + nat("", "-A FORWARD -m conntrack --ctstate UNTRACKED -j DROP"))
    assert len(done.deleted) == 1
    assert f"-> {TWO[4]}:80" in done.deleted[0]
    assert net.alive(stays)
    assert net.dead(doomed)


def test_a_set_that_changed(net: Net) -> None:
    """Where a set is otherwise than before, the same rules decide differently."""
    if shutil.which("ipset") is None:
        pytest.skip("needs ipset")
    net.router.call(["ipset", "create", "servers", "hash:ip"])
    net.router.call(["ipset", "add", "servers", ONE[4]])
    rules = net.load(
        nat("", "-A FORWARD -m set --match-set servers dst -j ACCEPT\n-A FORWARD -j DROP")
    )
    number = net.open(ONE[4], 80)
    assert net.flush(rules, rules).examined == 0
    was = net.router.call(["ipset", "save"])
    assert net.flush(rules, rules, sets_before=was).examined == 0
    net.router.call(["ipset", "del", "servers", ONE[4]])
    net.router.call(["ipset", "add", "servers", TWO[4]])
    done = net.flush(rules, rules, sets_before=was)
    assert len(done.deleted) == 1
    assert net.dead(number)


def test_rules_that_cannot_be_loaded(net: Net) -> None:
    """It says so, and deletes nothing: the change is made already, this is no reason to fail."""
    before = net.load(nat(""))
    number = net.open(ONE[4], 80)
    after = {4: before[4].replace("-A INPUT", "-A INPUT -m nosuchmatch"), 6: before[6]}
    done = net.flush(before, after)
    assert done.deleted == []
    assert len(done.skipped) == 1
    assert "nosuchmatch" in done.skipped[0]
    assert net.alive(number)


def test_nothing_changed(net: Net) -> None:
    """Counters and comments are no change: no flow is looked at, and no copy is made."""
    before = net.load(nat(""))
    net.open(ONE[4], 80)
    after = {
        family: text.replace("[0:0]", "[1:60]") + "# later\n" for family, text in before.items()
    }

    def inside() -> Flushed:
        pytest.MonkeyPatch().setattr(flush_copy, "Rehearsal", None)
        return flush.flush(before, after, [])

    assert net.router.run(inside) == Flushed()


def test_no_packet_leaves(net: Net) -> None:
    """The host's own chains see nothing of what is rehearsed, and the servers get nothing."""
    text = nat("", "-A FORWARD -p tcp -j ACCEPT\n-A OUTPUT -p tcp -j ACCEPT")
    net.load(text)
    for host in (net.client, net.router):
        net.open(ONE[4], 80, host)
    after = net.load(nat("", "-A FORWARD -p tcp -j ACCEPT\n-A OUTPUT -p tcp -j DROP"))
    counted = _counters(net)
    done = net.flush({4: text, 6: ""}, after)
    assert len(done.deleted) == 1
    assert _counters(net) == counted


def _counters(net: Net) -> list[str]:
    saved = net.router.call(["iptables-legacy-save", "-c", "-t", "filter"])
    return re.findall(r"^(?:\[\d+:\d+\] -A|:).*", saved, re.MULTILINE)


def test_killed(net: Net) -> None:
    """SIGKILL in the middle leaves no process and no namespace, and has deleted nothing."""
    before = net.load(nat(""))
    net.open(ONE[4], 80)
    entries = net.entries()
    after = net.load(nat("", "-A FORWARD -p tcp -j DROP"))
    reader, writer = os.pipe()

    def inside() -> None:
        ask = flush_copy.Rehearsal.ask

        def stopped(copy: flush_copy.Rehearsal, what: str, *arguments: Any) -> None:
            ask(copy, what, *arguments)
            os.write(writer, b" ".join(b"%d" % pid for pid in _children()) + b"\n")
            signal.pause()

        pytest.MonkeyPatch().setattr(flush_copy.Rehearsal, "ask", stopped)
        flush.flush(before, after, [])

    def enter() -> None:
        net.router.enter()
        inside()

    child = fork.Child(enter)
    copies = [int(word) for word in os.read(reader, 100).split()]
    assert len(copies) == 2
    inodes = {Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in copies}
    ended = [os.pidfd_open(pid) for pid in copies]
    child.kill()
    for descriptor in ended:
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
        _await(descriptor)
        os.close(descriptor)
    os.close(reader)
    os.close(writer)
    assert not inodes & set(_namespaces())
    assert net.entries() == entries


def _children() -> list[int]:
    text = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [int(word) for word in text.split()]


def _await(descriptor: int) -> None:
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(30_000)


def _namespaces() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                yield (entry / "ns/net").stat().st_ino


_SOURCES: Final = ("192.0.2.10", "192.0.2.11", "192.0.2.12")
_VERDICTS: Final = ("ACCEPT", "DROP", "REJECT", "RETURN")


def random_rules(chance: random.Random) -> str:
    """Return rules that match and translate a good part of what :func:`_datagrams` sends."""

    def match(*, into: bool, out: bool) -> str:
        words = ["-p udp"]
        if chance.random() < 0.4:
            words.append(f"-s {chance.choice([*_SOURCES, '192.0.2.10/31', ONE[4], '10.0.1.1'])}")
        if chance.random() < 0.4:
            words.append(f"-d {chance.choice([ONE[4], TWO[4], ROUTER[4], '10.0.0.0/8'])}")
        if into and chance.random() < 0.3:
            words.append(f"-i {chance.choice(['wan0', 'lan1', 'lo'])}")
        if out and chance.random() < 0.3:
            words.append(f"-o {chance.choice(['wan0', 'lan1', 'lan2'])}")
        if chance.random() < 0.6:
            first = chance.randrange(1000, 1005)
            words.append(f"-m udp --dport {first}:{first + chance.randrange(3)}")
        if chance.random() < 0.2:
            words.append(f"-m conntrack --ctstate {chance.choice(['NEW', 'ESTABLISHED', 'DNAT'])}")
        return " ".join(words)

    def target(chain: str) -> str:
        address = chance.choice([ONE[4], TWO[4], ROUTER[4]])
        if chain == "POSTROUTING":
            return chance.choice(["MASQUERADE", f"SNAT --to-source 10.0.{chance.choice('19')}.1"])
        if chance.random() < 0.3:
            return f"REDIRECT --to-ports {chance.randrange(1000, 1005)}"
        return f"DNAT --to-destination {address}:{chance.randrange(1000, 1005)}"

    translating = [
        f"-A {chain} {match(into=chain == 'PREROUTING', out=chain == 'POSTROUTING')} "
        f"-j {target(chain)}"
        for chain in chance.choices(("PREROUTING", "POSTROUTING", "OUTPUT"), k=chance.randrange(4))
    ]
    filtering = [
        f"-A {chain} {match(into=chain != 'OUTPUT', out=chain != 'INPUT')} "
        f"-j {chance.choice(_VERDICTS)}"
        for chain in chance.choices(("INPUT", "FORWARD", "OUTPUT"), k=chance.randrange(5))
    ]
    text = nat("\n".join(translating), "\n".join(filtering))
    return text.replace("INPUT ACCEPT", f"INPUT {chance.choice(['ACCEPT', 'DROP'])}").replace(
        ":INPUT DROP [0:0]\n:OUTPUT",
        ":INPUT ACCEPT [0:0]\n:OUTPUT",  # nat's have none
    )


def _datagrams(host: str) -> None:
    """Send a datagram of each flow, whether it arrives or not.

    No two of them have one source port, so none is taken where NAT would keep it.
    """
    sources = {"client": _SOURCES, "router": ("", "127.0.0.1"), "one": (ONE[4],)}[host]
    ports = itertools.count({"client": 40000, "router": 41000, "one": 42000}[host])
    for source in sources:
        places = ["127.0.0.1"] if source == "127.0.0.1" else [ONE[4], TWO[4], ROUTER[4]]
        for place, port in itertools.product(places, range(1000, 1005)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((source, next(ports)))
                with suppress(OSError):  # OUTPUT drops it
                    sock.sendto(b"x", (place, port))


def flows_of(net: Net) -> dict[str, str]:
    """Begin all flows anew; return their reply tuples by the original ones."""
    net.router.call(["conntrack", "-F"])
    for host in (net.client, net.router, net.servers[0]):
        host.run(_datagrams, host.name)
    return tuples(net)


def tuples(net: Net) -> dict[str, str]:
    found = {}
    for text in net.entries().values():
        if text.startswith("udp"):
            ends = re.findall(r"\w+=[^ ]+", text)
            found[" ".join(ends[:4])] = " ".join(ends[4:8])
    return found


@pytest.mark.parametrize("seed", range(12))
def test_random_rules(net: Net, seed: int) -> None:
    """For random rules A and B, what goes is what the kernel itself decides otherwise under B."""
    chance = random.Random(seed)
    for address in _SOURCES[1:]:
        net.client.call(["ip", "address", "add", f"{address}/24", "dev", "eth0"])
    old, new = random_rules(chance), random_rules(chance)
    net.load(new)
    wanted = flows_of(net)
    net.load(old)
    has = flows_of(net)
    done = net.change(new)
    left = tuples(net)
    assert done.skipped == []
    # From the router to itself, an entry is there before INPUT has its say: it tells nothing.
    ours = {key for key in has if "127.0.0.1" not in key and not _to_itself(has[key])}
    doomed = {key for key in ours if has[key] != wanted.get(key)}
    assert ours - left.keys() == doomed
    assert all(left[key] == has[key] for key in ours - doomed)


def _to_itself(reply: str) -> bool:
    """Whether a flow of the router ends in the router."""
    own = {"127.0.0.1", ROUTER[4], "10.0.1.1", "10.0.2.1"}
    source, destination, *_ = re.findall(r"=([^ ]+)", reply)
    return source in own and destination in own


def test_many(net: Net) -> None:
    """Of 5,000 flows, every second is deleted; that takes seconds at most."""
    net.load(nat(""))
    lines = []
    for number, port in itertools.product(range(2), range(2500)):
        address = (ONE, TWO)[number][4]
        lines.append(
            f"-I -t 600 -p tcp -s 192.0.2.{port % 200 + 20} -d {address} --sport {port + 1024}"
            f" --dport 80 --state ESTABLISHED -u SEEN_REPLY,ASSURED"
        )
    file = net.router.directory / "flows"
    file.write_text("\n".join(lines) + "\n")
    net.router.call(["conntrack", "-R", "/run/flows"])
    assert len(net.entries()) == 5000
    before = dict(net._text)
    after = net.load(nat("", f"-A FORWARD -d {TWO[4]} -p tcp -m tcp --dport 80 -j DROP"))
    started = time.monotonic()
    done = net.flush(before, after)
    took = time.monotonic() - started
    assert (done.examined, len(done.deleted), done.skipped) == (5000, 2500, [])
    left = net.entries()
    assert len(left) == 2500
    assert all(f"dst={ONE[4]} " in text for text in left.values())
    assert took < 10 * SLOWNESS
