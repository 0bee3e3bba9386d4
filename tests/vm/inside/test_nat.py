"""Translations between real NICs: where a connection arrives, and as whose."""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nfctl.lab import Verdict, traffic
from tests.vm.inside import conntrack
from tests.vm.inside.network import NAMES, fill

if TYPE_CHECKING:
    from tests.vm.inside.network import Network

RULES = """\
*nat
-A PREROUTING -d {wan} -p tcp -m tcp --dport 8080 -m comment --comment dnat \
-j DNAT --to-destination {server_}:80
-A PREROUTING -d {wan} -p udp -m udp --dport 5353 -m comment --comment dnat-udp \
-j DNAT --to-destination {server_}:53
-A PREROUTING -i eth1 -p tcp -m tcp --dport 8022 -m comment --comment redirect \
-j REDIRECT --to-ports 2222
-A PREROUTING -i eth1 -d {elsewhere_net} -m comment --comment netmap -j NETMAP --to {lan_net}
-A OUTPUT -d {guest} -p tcp -m tcp --dport 81 -m comment --comment output \
-j DNAT --to-destination {guest_}:80
-A POSTROUTING -s {lan_net} -d {lan_net} -m comment --comment hairpin -j MASQUERADE
-A POSTROUTING -s {lan_net} -o eth1 -m comment --comment masquerade -j MASQUERADE
-A POSTROUTING -s {wan_net} -o eth3 -p tcp -m comment --comment snat \
-j SNAT --to-source {dmz_}:40000-40009
-A POSTROUTING -s {wan_net} -o eth3 -p udp -m comment --comment snat-udp \
-j SNAT --to-source {dmz}
COMMIT
"""


class Case(NamedTuple):
    """Who asks what, where it has to arrive, as whose, and the rule that translated it."""

    rule: str
    sender: str
    target: str
    what: str
    arrives: str
    seen_as: str

    def __str__(self) -> str:
        return f"{self.rule}-{self.sender}"


CASES = (
    Case("dnat", "client", "wan", "tcp/8080", "server:80", "client"),
    Case("dnat", "guest", "wan", "tcp/8080", "server:80", "guest"),
    Case("dnat hairpin", "server", "wan", "tcp/8080", "server:80", "lan"),
    Case("dnat-udp", "client", "wan", "udp/5353", "server:53", "client"),
    Case("redirect", "client", "wan", "tcp/8022", "device:2222", "client"),
    Case("redirect", "client", "server", "tcp/8022", "device:2222", "client"),
    Case("netmap", "client", "elsewhere", "tcp/443", "server:443", "client"),
    Case("netmap", "client", "elsewhere", "udp/514", "server:514", "client"),
    Case("output", "device", "guest", "tcp/81", "guest:80", "dmz"),
    Case("masquerade", "server", "client", "tcp/80", "client:80", "wan"),
    Case("masquerade", "server", "client", "udp/53", "client:53", "wan"),
    Case("snat", "client", "guest", "tcp/25", "guest:25", "dmz"),
    Case("snat-udp", "client", "guest", "udp/53", "guest:53", "dmz"),
)


@pytest.fixture(scope="module")
def translating(whole: Network) -> Network:
    """Load the rules once for all cases."""
    whole.device.clear()
    for version in (4, 6):
        whole.device.load(RULES, version)
    return whole


@pytest.mark.nic
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_translation(translating: Network, version: int, case: Case) -> None:
    """The connection arrives where the rule says, as whom it says; the answer finds its way back.

    Nobody else has anything arrive, and just the rules named counted it, once.
    """
    net = translating
    names = NAMES[version]
    before = net.device.packets(version)
    net.arrivals()
    protocol, port = case.what.split("/")
    function = {"tcp": traffic.tcp, "udp": traffic.udp}[protocol]
    answer = net.ask(case.sender, function, names[case.target], int(port))
    assert answer.verdict is Verdict.ACCEPTED
    assert answer.seen_as == names[case.seen_as]
    if case.rule == "snat":
        assert 40000 <= answer.seen_port <= 40009
    arrivals = [(f"{name}:{one.port}", one.peer) for name, one in net.arrivals()]
    assert arrivals == [(case.arrives, names[case.seen_as])]
    after = net.device.packets(version)
    moved = {
        name: number - before[name]
        for name, number in after.items()
        if number != before[name] and " " not in name
    }
    assert moved == dict.fromkeys(case.rule.split(), 1)


@pytest.mark.nic
def test_the_connection_table_has_both_directions(translating: Network, version: int) -> None:
    """Conntrack lists a translated connection with the addresses before and after."""
    names = NAMES[version]
    conntrack.forget(version)
    translating.ask("client", traffic.tcp, names["wan"], 8080)
    (flow,) = conntrack.flows(version, "-p", "tcp", "--orig-port-dst", "8080")
    assert (flow.original.source, flow.original.target) == (names["client"], names["wan"])
    assert (flow.original.dport, flow.reply.sport) == (8080, 80)
    assert (flow.reply.source, flow.reply.target) == (names["server"], names["client"])
    assert {"ASSURED", "TIME_WAIT"} <= flow.words


def test_source_ports_run_out(net: Network, version: int) -> None:
    """With two ports to translate to, two flows get through and the third is dropped."""
    rules = """\
*nat
-A POSTROUTING -o eth3 -p udp -j SNAT --to-source {dmz_}:40000-40001
COMMIT
"""
    net.device.load(rules, version)

    def three() -> list[bool]:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        socks = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(3)]
        for sock in socks:
            sock.connect((NAMES[version]["guest"], 53))
            sock.send(b"hello")
        return [bool(select.select([sock], [], [], traffic.DROP_TIMEOUT)[0]) for sock in socks]

    assert net.client.host.run(three) == [True, True, False]
    ports = {
        flow.reply.dport for flow in conntrack.flows(version, "-p", "udp", "--orig-port-dst", "53")
    }
    assert ports == {40000, 40001}


def test_a_refused_text_changes_no_translation(net: Network, version: int) -> None:
    """A ruleset whose last rule is wrong leaves the translation in force, by the command too."""
    net.device.load(RULES, version)
    wrong = fill(RULES, version).replace("COMMIT", "-A PREROUTING -p tcp -j DNAT\nCOMMIT")
    done = net.device.nfctl("restore", f"-{version}", input=wrong)
    assert done.returncode == 2
    answer = net.ask("client", traffic.tcp, NAMES[version]["wan"], 8080)
    assert (answer.verdict, answer.seen_as) == (Verdict.ACCEPTED, NAMES[version]["client"])
