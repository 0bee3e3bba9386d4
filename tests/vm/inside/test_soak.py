"""Steady traffic through translations while the rules change in place all the time.

Only with ``--soak MINUTES``: 30 before a release, 1 to see that it works.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nfctl
from nfctl.lab import Verdict, fork, traffic
from tests.vm.inside import wire
from tests.vm.inside.network import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Answer
    from tests.vm.inside.network import Far, Network

pytestmark = pytest.mark.soak

RULES = """\
*nat
-A PREROUTING -d {wan} -p tcp -m tcp --dport 8080 -m comment --comment dnat \
-j DNAT --to-destination {server_}:80
-A POSTROUTING -s {wan_net} -o eth3 -p udp -m comment --comment snat -j SNAT --to-source {dmz}
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED -m comment --comment established -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 80 -m comment --comment web -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 7400 -m comment --comment long -j ACCEPT
-A FORWARD -p udp -m udp --dport 53 -m comment --comment dns -j ACCEPT
COMMIT
"""
PORT = 7400
PAUSE = 0.005  # seconds between two connections of one flow
TIMEOUT = 10.0  # seconds: on a busy machine an answer is late, but it comes
REPORTS = 12  # lines that a soak prints
# How long the kernel remembers what has ended, in seconds; it would be minutes.
LIFETIMES = {
    "nf_conntrack_tcp_timeout_time_wait": 10,
    "nf_conntrack_udp_timeout": 10,
    "nf_conntrack_udp_timeout_stream": 10,
}
MEMORY = 16_000  # KiB that the kernel and this process may grow by after the first third


@dataclass
class Flow:
    """What became of the connections of one flow."""

    accepted: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0


@dataclass(frozen=True)
class Sample:
    """What is to stay bounded: connections, and memory in KiB."""

    connections: int
    kernel: int
    mine: int

    @classmethod
    def take(cls) -> Sample:
        """Read the figures of this moment."""
        count = Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text()
        meminfo = _kilobytes("/proc/meminfo")
        kernel = meminfo["SUnreclaim"] + meminfo.get("Percpu", 0) + meminfo["VmallocUsed"]
        return cls(int(count), kernel, _kilobytes("/proc/self/status")["VmRSS"])


def _kilobytes(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0][:-1]: int(words[1]) for words in lines if words[-1] == "kB"}


def flow(far: Far, ours: socket.socket, theirs: socket.socket, send: Callable[[], Answer]) -> Flow:
    """Be a process in a host that connects, again and again, until told to stop."""
    ours.close()
    far.host.enter()
    found = Flow()
    theirs.settimeout(PAUSE)
    while True:
        answer = send()
        found.slowest = max(found.slowest, answer.seconds)
        if answer.verdict is Verdict.ACCEPTED:
            found.accepted += 1
        else:
            found.failures.append(f"{time.strftime('%X')} {answer}")
        with contextlib.suppress(TimeoutError):
            if not theirs.recv(1):
                return found


@contextlib.contextmanager
def flows(net: Network) -> Iterator[dict[str, Flow]]:
    """Run four flows during the ``with`` block; what became of them is there after it."""
    found: dict[str, Flow] = {}
    with contextlib.ExitStack() as stack:
        children = {}
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        for version in (4, 6):
            names = NAMES[version]
            for name, send in (
                ("tcp through DNAT", partial(traffic.tcp, names["wan"], 8080, timeout=TIMEOUT)),
                ("udp through SNAT", partial(traffic.udp, names["guest"], 53, timeout=TIMEOUT)),
            ):
                child = fork.Child(flow, net.client, ours, theirs, send)
                stack.callback(child.kill)
                children[f"{name}, IPv{version}"] = child
        theirs.close()
        yield found
        ours.close()
        found |= {name: child.result(3 * TIMEOUT) for name, child in children.items()}


@pytest.fixture
def lifetimes(net: Network) -> Iterator[None]:
    """Have the kernel forget ended connections sooner, so that their number settles."""
    net.device.load(RULES, 4)  # the settings are there when the module is
    room = Path("/proc/sys/net/netfilter")
    before = {name: (room / name).read_text() for name in LIFETIMES}
    for name, seconds in LIFETIMES.items():
        (room / name).write_text(str(seconds))
    yield
    for name, text in before.items():
        (room / name).write_text(text)


def change(version: int, number: int) -> None:
    """Edit both tables in place: insert, append, replace, delete; what is accepted stays so."""
    with nfctl.edit(version) as tables:
        rules = tables["filter"]
        port = 20_000 + number % 1000
        rules.insert("FORWARD", f"-p tcp -m tcp --dport {port} -j DROP", 1 + number % 5)
        rules.append("FORWARD", f"-p udp -m udp --dport {port} -j REJECT")
        rules.create_chain(f"SOAK{number}")
        rules.append(f"SOAK{number}", "-m limit --limit 5/min -j LOG")
        tables["nat"].append("PREROUTING", f"-p tcp -m tcp --dport {port} -j REDIRECT")
    with nfctl.edit(version) as tables:
        rules = tables["filter"]
        rules.delete("FORWARD", f"-p tcp -m tcp --dport {port} -j DROP")
        rules.replace("FORWARD", rules.length("FORWARD"), f"-p udp -m udp --dport {port} -j DROP")
        rules.delete("FORWARD", rules.length("FORWARD"))
        rules.flush(f"SOAK{number}")
        rules.delete_chain(f"SOAK{number}")
        tables["nat"].delete("PREROUTING", 2)


@pytest.mark.usefixtures("lifetimes")
def test_soak(
    net: Network, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """No accepted connection fails, a standing one goes on, no counter goes back, nothing grows."""
    minutes = pytestconfig.getoption("--soak", default=0.0)
    if not minutes:
        pytest.skip("takes long: --soak MINUTES (30 before a release)")
    for version in (4, 6):
        net.device.load(RULES, version)
    started = time.monotonic()
    end = started + minutes * 60
    reports = iter(started + minutes * 60 * part / REPORTS for part in range(1, REPORTS + 1))
    report = next(reports)
    samples: list[Sample] = []
    counters = {version: net.device.packets(version) for version in (4, 6)}
    changes = 0
    with contextlib.ExitStack() as stack:
        standing = {
            version: stack.enter_context(net.client.connected(net.server, version, PORT))
            for version in (4, 6)
        }
        found = stack.enter_context(flows(net))
        while time.monotonic() < end:
            for version, (here, there) in standing.items():
                change(version, changes)
                changes += 1
                for sender, receiver in ((here, there), (there, here)):
                    sender.sendall(b"still there?")
                    assert wire.receive(receiver, 12) == b"still there?"
                after = net.device.packets(version)
                back = {name: n for name, n in after.items() if n < counters[version].get(name, 0)}
                assert not back, f"counters went back: {back} of {counters[version]}"
                counters[version] = after
            net.arrivals()  # the servers report them; unread, they would be what grows
            if time.monotonic() >= report:
                report = next(reports, end)
                samples.append(Sample.take())
                with capsys.disabled():
                    seconds = time.monotonic() - started
                    print(f"\n    {seconds:6.0f} s  {changes} changes, {samples[-1]}", end="")
    counters = {version: net.device.packets(version) for version in (4, 6)}
    with capsys.disabled():
        for name, one in found.items():
            print(f"\n    {name}: {one.accepted}, slowest {one.slowest:.3f} s", end="")
        for version, counted in counters.items():
            named = {name: n for name, n in counted.items() if " " not in name}
            print(f"\n    packets, IPv{version}: {named}", end="")
    assert not [failure for one in found.values() for failure in one.failures]
    assert all(one.accepted > 10 * minutes for one in found.values())
    for version in (4, 6):
        for rule, name in (("web", "tcp through DNAT"), ("dns", "udp through SNAT")):
            # a port may be used again before the kernel has forgotten it: that one is not new
            assert counters[version][rule] >= 0.9 * found[f"{name}, IPv{version}"].accepted
    # What never ended would be twice as much in the second half.
    half = len(samples) // 2
    first, second = (
        max(one.connections for one in part) for part in (samples[:half], samples[half:])
    )
    assert second < 1.5 * first + 500
    settled = samples[REPORTS // 3 :]
    assert settled[-1].kernel - settled[0].kernel < MEMORY
    assert settled[-1].mine - settled[0].mine < MEMORY
