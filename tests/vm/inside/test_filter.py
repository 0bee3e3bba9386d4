"""Filtering between real NICs: what comes through, and which rule decided it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nfctl.lab import Verdict, traffic
from tests.vm.inside.network import NAMES, PREFIXES, fill, oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.lab import Answer
    from tests.vm.inside.network import Device, Network

ACCEPTED, REJECTED, DROPPED = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.DROPPED

# eth0 is how ssh comes in. Each rule's comment is its name in CASES.
RULES = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OUTSIDE - [0:0]
:WEB - [0:0]
:SSH - [0:0]
-A INPUT -i eth0 -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment back -j ACCEPT
-A INPUT -p {echo} -m comment --comment echo -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -i eth1 -p tcp -m tcp --dport 2222 -m comment --comment not-outside -j REJECT \
--reject-with tcp-reset
-A INPUT -i eth2 -p tcp -m tcp --dport 2222 -m comment --comment admin -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment back -j ACCEPT
-A FORWARD -i eth1 -o eth2 -m comment --comment to-outside -j OUTSIDE
-A FORWARD -i eth2 -m conntrack --ctstate NEW -m comment --comment inside -j ACCEPT
-A FORWARD -i eth1 -o eth3 -p tcp -m tcp --dport 25 -m comment --comment mail -j ACCEPT
-A FORWARD ! -i eth3 -p udp -m comment --comment no-udp -j REJECT
-A OUTSIDE -p tcp -m multiport --dports 80,443 -m comment --comment to-web -g WEB
-A OUTSIDE -p tcp -m tcp --dport 2222 -m comment --comment to-ssh -j SSH
-A OUTSIDE -p tcp -m tcp --dport 2222 -m comment --comment not-visitors -j REJECT \
--reject-with {prohibited}
-A OUTSIDE -p tcp -m tcp --dport 23 -m comment --comment telnet -j REJECT --reject-with tcp-reset
-A OUTSIDE -p udp -m udp --dport 53 -m comment --comment dns -j ACCEPT
-A OUTSIDE -p udp -m udp --dport 514 -m comment --comment syslog -j DROP
-A OUTSIDE -p {echo} -m comment --comment echo -j ACCEPT
-A WEB -p tcp -m tcp --dport 80 -m comment --comment web -j ACCEPT
-A SSH -s {visitor} -m comment --comment visitor -j RETURN
-A SSH -m comment --comment ssh -j ACCEPT
-A OUTPUT -o eth2 -p tcp -m tcp --dport 25 -m comment --comment no-mail -j DROP
-A OUTPUT -o eth2 -p udp -m udp --dport 514 -m comment --comment no-syslog -j REJECT
COMMIT
"""
NO_PORT = {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"}
PROHIBITED = {4: "icmp-admin-prohibited", 6: "icmp6-adm-prohibited"}
SENDERS: dict[str, Callable[..., Answer]] = {
    "tcp": traffic.tcp,
    "udp": traffic.udp,
    "icmp": traffic.ping,
}
RESET = {4: "tcp-reset", 6: "tcp-reset"}


class Case(NamedTuple):
    """What is sent, what has to come of it, and the rules and policies that count it."""

    title: str
    sender: str
    target: str
    what: str
    verdict: Verdict
    counted: str
    reason: dict[int, str] | None = None

    def __str__(self) -> str:
        return self.title.replace(" ", "-")


CASES = (
    Case("web by goto", "client", "server", "tcp/80", ACCEPTED, "to-outside to-web web back"),
    # a goto does not come back to OUTSIDE, but to the policy
    Case("end of a goto", "client", "server", "tcp/443", DROPPED, "to-outside to-web FORWARD"),
    Case("ssh by jump", "client", "server", "tcp/2222", ACCEPTED, "to-outside to-ssh ssh back"),
    Case(
        *("return from a jump", "visitor", "server", "tcp/2222", REJECTED),
        *("to-outside to-ssh visitor not-visitors", PROHIBITED),
    ),
    Case("reset", "client", "server", "tcp/23", REJECTED, "to-outside telnet", RESET),
    Case("datagram", "client", "server", "udp/53", ACCEPTED, "to-outside dns back"),
    Case("dropped datagram", "client", "server", "udp/514", DROPPED, "to-outside syslog"),
    Case("end of a chain", "client", "server", "tcp/25", DROPPED, "to-outside FORWARD"),
    Case("ping through", "client", "server", "icmp", ACCEPTED, "to-outside echo back"),
    Case("by interface", "client", "guest", "tcp/25", ACCEPTED, "mail back"),
    Case("by interface, not", "client", "guest", "tcp/80", DROPPED, "FORWARD"),
    Case("refused datagram", "client", "guest", "udp/53", REJECTED, "no-udp", NO_PORT),
    Case("from a third side", "guest", "server", "tcp/80", DROPPED, "FORWARD"),
    Case("by state", "server", "client", "tcp/80", ACCEPTED, "inside back"),
    Case("input by interface", "server", "device", "tcp/2222", ACCEPTED, "admin back"),
    Case("input refused", "client", "device", "tcp/2222", REJECTED, "not-outside", RESET),
    Case("input policy", "guest", "device", "tcp/2222", DROPPED, "INPUT"),
    Case("ping the device", "guest", "device", "icmp", ACCEPTED, "echo"),
    Case("output", "device", "server", "tcp/80", ACCEPTED, "back"),
    Case("output dropped", "device", "server", "tcp/25", DROPPED, "no-mail"),
    Case("output refused", "device", "server", "udp/514", REJECTED, "no-syslog", NO_PORT),
)  # fmt: skip


def visitor(version: int) -> str:
    """Return an address that is not the client's usual one."""
    return f"{PREFIXES['wan'][version]}66"


def text(version: int) -> str:
    """Return the ruleset of a family."""
    return fill(RULES.replace("{visitor}", visitor(version)), version)


@pytest.fixture(scope="module")
def guarded(whole: Network) -> Network:
    """Load the rules by the command, once for all cases."""
    whole.device.clear()
    for version in (4, 6):
        done = whole.device.nfctl("restore", f"-{version}", input=text(version))
        assert (done.returncode, done.stderr) == (0, "")
    return whole


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.nic
def test_each_way(guarded: Network, version: int, case: Case) -> None:
    """The sender sees the verdict, and just the rules and policies on the packet's way count."""
    before = guarded.device.packets(version, "filter")
    guarded.arrivals()
    options: dict[str, object] = (
        {"timeout": traffic.DROP_TIMEOUT} if case.verdict == DROPPED else {}
    )
    sender = case.sender
    if sender == "visitor":
        sender, options["source"] = "client", visitor(version)
    target = case.target
    if target == "device":
        target = {"client": "wan", "server": "lan", "guest": "dmz"}[sender]
    protocol, _, port = case.what.partition("/")
    function = SENDERS[protocol]
    ports = [int(port)] if port else []
    answer = guarded.ask(sender, function, NAMES[version][target], *ports, **options)
    assert answer.verdict is case.verdict
    if case.reason:
        assert answer.reason == case.reason[version]
    arrived = [(name, one.protocol, one.port) for name, one in guarded.arrivals()]
    expected = [(case.target, protocol, int(port))] if case.verdict == ACCEPTED and port else []
    assert arrived == expected
    after = guarded.device.packets(version, "filter")
    moved = {name.removeprefix("filter ") for name, n in after.items() if n != before[name]}
    # OUTPUT: ssh and the neighbours' own protocols go on meanwhile
    assert moved - {"OUTPUT"} == set(case.counted.split())


@pytest.mark.usefixtures("guarded")
def test_the_oracle_reads_the_same(version: int) -> None:
    """What nfctl restored is what iptables-legacy-restore makes of the same text."""

    def save() -> list[str]:
        done = subprocess.run(
            [oracle(version, "-save")], capture_output=True, text=True, check=True
        )
        lines = (line for line in done.stdout.splitlines() if line[:1] != "#")
        return [line.partition(" [")[0] if line[:1] == ":" else line for line in lines]

    ours = save()
    subprocess.run([oracle(version, "-restore")], input=text(version), text=True, check=True)
    assert save() == ours
    assert sum(line.startswith("-A") for line in ours) == text(version).count("\n-A ")


@pytest.mark.nic
@pytest.mark.parametrize("rule", ["ACCEPT", "DROP"])
def test_the_nics_count_what_passes(net: Network, version: int, rule: str) -> None:
    """Fifty datagrams and their answers move all four NICs by fifty; dropped ones the first two."""
    number, noise = 50, 12
    net.device.load(
        f"*filter\n-A FORWARD -i eth1 -p udp -m comment --comment seen -j {rule}\nCOMMIT\n", version
    )
    net.ask("client", traffic.ping, NAMES[version]["server"])  # neighbours are known from here on

    def counts() -> list[int]:
        ours = [net.device.counts(link) for link in ("wan", "lan")]
        return [
            *(net.client.counts()[1], ours[0][0], ours[1][1], net.server.counts()[0]),
            *(net.server.counts()[1], ours[1][0], ours[0][1], net.client.counts()[0]),
        ]

    before = counts()
    with net.client.datagrams(version) as sock:
        sock.connect((NAMES[version]["server"], 53))
        sock.settimeout(0.5 if rule == "ACCEPT" else 0.01)
        answers = 0
        for _ in range(number):
            sock.send(b"hello")
            try:
                answers += bool(sock.recv(1000))
            except TimeoutError:
                continue
    assert net.device.packets(version)["seen"] == number
    assert answers == (number if rule == "ACCEPT" else 0)
    moved = [after - then for after, then in zip(counts(), before, strict=True)]
    passing = 8 if rule == "ACCEPT" else 2
    # A few packets are the neighbours' own: ARP, neighbour discovery
    assert all(number <= one <= number + noise for one in moved[:passing]), moved
    assert all(one <= noise for one in moved[passing:]), moved


def test_established_survives_a_change(net: Network, version: int) -> None:
    """A connection goes on when new ones are dropped, and a new one is dropped."""
    server = NAMES[version]["server"]
    rules = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
{}COMMIT
"""
    net.device.load(rules.replace("{}", "-A FORWARD -p tcp -j ACCEPT\n"), version)
    with net.client.connected(net.server, version, 7000) as (client, there):
        for number in range(3):
            client.sendall(b"ping")
            assert there.recv(100) == b"ping"
            there.sendall(b"pong")
            assert client.recv(100) == b"pong"
            net.device.load(rules.replace("{}", ""), version)
            drop = net.ask("client", traffic.tcp, server, 80, timeout=traffic.DROP_TIMEOUT)
            assert drop.verdict is Verdict.DROPPED, number
    net.device.load(rules.replace("{}", "-A FORWARD -p tcp -j ACCEPT\n"), version)
    assert net.ask("client", traffic.tcp, server, 80).verdict is Verdict.ACCEPTED


def test_both_backends_decide(device: Device, net: Network, version: int) -> None:
    """What nfctl's rules accept is still dropped by rules of iptables-nft, and the other way."""
    tool = "iptables-nft" if version == 4 else "ip6tables-nft"
    server = NAMES[version]["server"]
    drop = ["FORWARD", "-p", "tcp", "--dport", "80", "-j", "DROP"]
    device.load("*filter\n-A FORWARD -p tcp --dport 80 -j ACCEPT\nCOMMIT\n", version)
    assert net.ask("client", traffic.tcp, server, 80).verdict is Verdict.ACCEPTED
    subprocess.run([tool, "-A", *drop], check=True)
    try:
        answer = net.ask("client", traffic.tcp, server, 80, timeout=traffic.DROP_TIMEOUT)
    finally:
        subprocess.run([tool, "-D", *drop], check=True)
    assert answer.verdict is Verdict.DROPPED
    device.load("*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n", version)
    answer = net.ask("client", traffic.tcp, server, 80, timeout=traffic.DROP_TIMEOUT)
    assert answer.verdict is Verdict.DROPPED
