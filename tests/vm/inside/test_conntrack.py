"""Connections across real NICs: tracked, untracked, in zones, and the errors about them."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nfctl.lab import Verdict, traffic
from tests.vm.inside import conntrack, wire
from tests.vm.inside.network import NAMES

if TYPE_CHECKING:
    from tests.vm.inside.network import Device, Network

TRACK = "*filter\n-A FORWARD -m conntrack --ctstate NEW -m comment --comment new\nCOMMIT\n"


@pytest.mark.nic
def test_untracked_leaves_no_entry(device: Device, net: Network, version: int) -> None:
    """A notrack rule keeps its port out of the table, and only that; rules see it as UNTRACKED."""
    rules = """\
*raw
-A PREROUTING -p udp -m udp --dport 5300 -j CT --notrack
-A PREROUTING -p udp -m udp --sport 5300 -j CT --notrack
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate UNTRACKED -p udp -m comment --comment untracked -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -m comment --comment tracked -j ACCEPT
COMMIT
"""
    device.load(rules, version)
    for port in (5300, 53):
        answer = net.ask("client", traffic.udp, NAMES[version]["server"], port)
        assert answer.verdict is Verdict.ACCEPTED
    assert conntrack.flows(version, "-p", "udp", "--orig-port-dst", "5300") == []
    assert len(conntrack.flows(version, "-p", "udp", "--orig-port-dst", "53")) == 1
    counted = device.packets(version)
    assert (counted["untracked"], counted["tracked"]) == (2, 2)


def test_a_zone_is_kept_apart(device: Device, net: Network, version: int) -> None:
    """Connections through two NICs in two zones are listed with their zones."""
    rules = """\
*raw
-A PREROUTING -i eth3 -j CT --zone 7
-A PREROUTING -i eth2 -p tcp -m tcp --sport 443 -j CT --zone 7
COMMIT
"""
    device.load(rules + TRACK, version)
    server = NAMES[version]["server"]
    assert net.ask("guest", traffic.tcp, server, 443).verdict is Verdict.ACCEPTED
    assert net.ask("client", traffic.tcp, server, 80).verdict is Verdict.ACCEPTED
    found = {
        flow.original.dport: (flow.fields.get("zone", "0"), "ASSURED" in flow.words)
        for flow in conntrack.flows(version, "-p", "tcp", "--orig-dst", server)
    }
    assert found == {443: ("7", True), 80: ("0", True)}


def test_a_mark_stays_with_the_connection(device: Device, net: Network, version: int) -> None:
    """CONNMARK's mark is in the table, and comes back to the packets of the other direction."""
    rules = """\
*mangle
-A FORWARD -i eth1 -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x2a/0xffffffff
-A FORWARD -i eth2 -m connmark --mark 0x2a -m comment --comment answers
COMMIT
"""
    device.load(rules, version)
    server = NAMES[version]["server"]
    assert net.ask("client", traffic.udp, server, 53).verdict is Verdict.ACCEPTED
    (flow,) = conntrack.flows(version, "-p", "udp", "--orig-dst", server)
    assert flow.fields["mark"] == "42"
    assert device.packets(version)["answers"] == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_an_error_is_related(device: Device, net: Network, version: int, accepted: bool) -> None:
    """The ICMP error about a datagram is RELATED, and comes if such a rule accepts it."""
    rules = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -m comment --comment there -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED -p {icmp} -m comment --comment related -j TARGET
COMMIT
"""
    device.load(rules.replace("TARGET", "ACCEPT" if accepted else "DROP"), version)
    timeout = traffic.TIMEOUT if accepted else traffic.DROP_TIMEOUT
    server = NAMES[version]["server"]
    answer = net.ask("client", traffic.udp, server, 9, timeout=timeout)  # nobody listens there
    counted = device.packets(version)
    assert (counted["there"], counted["related"]) == (1, 1)
    if accepted:
        assert (answer.verdict, answer.sender) == (Verdict.REJECTED, server)
        assert answer.reason.endswith("port-unreachable")
    else:
        assert answer.verdict is Verdict.DROPPED


def test_an_error_of_a_translated_connection(net: Network, version: int) -> None:
    """The ICMP error about a translated datagram is translated back, inside and out."""
    rules = "*nat\n-A PREROUTING -d {wan} -p udp -j DNAT --to-destination {server_}:9\nCOMMIT\n"
    net.device.load(rules, version)
    answer = net.ask("client", traffic.udp, NAMES[version]["wan"], 5353)
    assert answer.reason.endswith("port-unreachable")
    assert answer.sender == NAMES[version]["wan"]


def test_without_its_entry_a_connection_is_new(net: Network, version: int) -> None:
    """A forgotten connection does not match ESTABLISHED until its other side has spoken too."""
    rules = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -i eth2 -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -p tcp --dport 7001 -m comment --comment new -j TARGET
COMMIT
"""
    net.device.load(rules.replace("TARGET", "ACCEPT"), version)
    with net.client.connected(net.server, version, 7001) as (client, server):
        net.device.load(rules.replace("TARGET", "DROP"), version)
        conntrack.forget(version)
        client.sendall(b"ping")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.recv(100)
        server.settimeout(wire.TIMEOUT)
        server.sendall(b"pong")  # from inside: it makes the entry anew
        assert client.recv(100) == b"pong"
        assert server.recv(100) == b"ping"
    assert net.device.packets(version)["new"] > 0


def test_the_limit_of_connections(device: Device, net: Network, version: int) -> None:
    """Connlimit lets two connections of one client stand, and resets the third."""
    rules = """\
*filter
-A FORWARD -p tcp -m tcp --dport 7002 --tcp-flags FIN,SYN,RST,ACK SYN \
-m connlimit --connlimit-above 2 -j REJECT --reject-with tcp-reset
COMMIT
"""
    device.load(rules, version)
    with wire.listening(net.server.host, version, NAMES[version]["server"], 7002):
        socks = [wire.open_socket(net.client.host, version, socket.SOCK_STREAM) for _ in range(3)]
        try:
            for sock in socks[:2]:
                sock.connect((NAMES[version]["server"], 7002))
            with pytest.raises(ConnectionRefusedError):
                socks[2].connect((NAMES[version]["server"], 7002))
        finally:
            for sock in socks:
                sock.close()
