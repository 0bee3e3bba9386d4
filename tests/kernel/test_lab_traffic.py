"""The lab's traffic: accepted, rejected and dropped are told apart, against known rules."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest

from nfctl.lab import Answer, Host, Lab, Verdict, traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(
        shutil.which("iptables-legacy") is None, reason="needs iptables-legacy, to make the rules"
    ),
]

ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}


def pair(lab: Lab) -> tuple[Host, Host]:
    """Make two hosts with a link between them."""
    one, two = lab.host("one"), lab.host("two")
    lab.link(
        one.port("eth0", "192.0.2.1/24", "2001:db8::1/64"),
        two.port("eth0", "192.0.2.2/24", "2001:db8::2/64"),
    )
    return one, two


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with Lab("tests") as lab:
        yield pair(lab)


RULES = {
    "-p tcp --dport 1 -j DROP": (traffic.tcp, 1, Verdict.DROPPED, {4: "", 6: ""}),
    "-p udp --dport 1 -j DROP": (traffic.udp, 1, Verdict.DROPPED, {4: "", 6: ""}),
    "-p tcp --dport 2 -j REJECT --reject-with tcp-reset": (
        traffic.tcp,
        2,
        Verdict.REJECTED,
        {4: "tcp-reset", 6: "tcp-reset"},
    ),
    "-p tcp --dport 3 -j REJECT": (
        traffic.tcp,
        3,
        Verdict.REJECTED,
        {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"},
    ),
    "-p udp --dport 3 -j REJECT": (
        traffic.udp,
        3,
        Verdict.REJECTED,
        {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"},
    ),
}
PROHIBITED = {
    4: ("icmp-admin-prohibited", errno.EHOSTUNREACH),
    6: ("icmp6-adm-prohibited", errno.EACCES),
}


@pytest.fixture(scope="module")
def guarded(hosts: tuple[Host, Host]) -> tuple[Host, Host]:
    """Two hosts; the second serves the ports 1 to 9 behind rules that refuse some of them."""
    _, two = hosts
    two.serve(tcp=range(1, 10), udp=range(1, 10))
    for version, tool in ((4, "iptables-legacy"), (6, "ip6tables-legacy")):
        reason = PROHIBITED[version][0]
        icmp = {4: "icmp", 6: "ipv6-icmp"}[version]
        for rule in [
            *RULES,
            f"-p tcp --dport 4 -j REJECT --reject-with {reason}",
            f"-p udp --dport 4 -j REJECT --reject-with {reason}",
            f"-p {icmp} -m length --length 1000: -j DROP",
        ]:
            two.call([tool, "-A", "INPUT", *rule.split()])
    return hosts


def ask(host: Host, version: int, function: object, *args: object, timeout: float = 2.0) -> Answer:
    assert callable(function)
    answer = host.run(partial(function, ADDRESSES[version][1], *args, timeout=timeout))
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize("version", [4, 6])
class TestTraffic:
    """Each helper, in each family, against rules that are known."""

    def test_accepted(self, guarded: tuple[Host, Host], version: int) -> None:
        """What no rule refuses is accepted, and the server says whom it saw."""
        one, _ = guarded
        for function in (traffic.tcp, traffic.udp, traffic.http):
            answer = ask(one, version, function, 9)
            assert answer.verdict is Verdict.ACCEPTED
            assert answer.seen_as == ADDRESSES[version][0]
            assert answer.seen_port > 0
        assert ask(one, version, traffic.ping).verdict is Verdict.ACCEPTED

    @pytest.mark.parametrize("rule", RULES)
    def test_rules(self, guarded: tuple[Host, Host], version: int, rule: str) -> None:
        """A DROP is told from a REJECT, and each kind of REJECT by its own name."""
        function, port, verdict, reasons = RULES[rule]
        timeout = traffic.DROP_TIMEOUT if verdict is Verdict.DROPPED else 2.0
        answer = ask(guarded[0], version, function, port, timeout=timeout)
        assert (answer.verdict, answer.reason) == (verdict, reasons[version])
        assert answer.errno == (0 if verdict is Verdict.DROPPED else errno.ECONNREFUSED)
        if answer.reason not in {"", "tcp-reset"}:
            assert answer.sender == ADDRESSES[version][1]
        if verdict is Verdict.REJECTED:
            assert answer.seconds < 0.5

    @pytest.mark.parametrize("function", [traffic.tcp, traffic.udp])
    def test_prohibited(self, guarded: tuple[Host, Host], version: int, function: object) -> None:
        """An administrative prohibition carries its own error number, for TCP and UDP."""
        answer = ask(guarded[0], version, function, 4)
        assert answer.verdict is Verdict.REJECTED
        assert (answer.reason, answer.errno) == PROHIBITED[version]

    def test_closed_ports(self, guarded: tuple[Host, Host], version: int) -> None:
        """A port where nobody listens is rejected: by a reset for TCP, by ICMP for UDP."""
        assert ask(guarded[0], version, traffic.tcp, 10).reason == "tcp-reset"
        assert ask(guarded[0], version, traffic.udp, 10).reason.endswith("port-unreachable")

    def test_nobody_there(self, guarded: tuple[Host, Host], version: int) -> None:
        """A ping to an address that nobody has is dropped, within its time."""
        address = ADDRESSES[version][1] + "9"
        answer = guarded[0].run(partial(traffic.ping, address, timeout=0.2))
        assert answer.verdict is Verdict.DROPPED
        assert 0.2 <= answer.seconds < 1

    def test_no_route(self, guarded: tuple[Host, Host], version: int) -> None:
        """An error that no packet caused is no verdict: it is raised."""
        address = {4: "203.0.113.1", 6: "2001:db8:9::1"}[version]
        for function in (
            traffic.ping,
            partial(traffic.tcp, port=80),
            partial(traffic.udp, port=80),
        ):
            with pytest.raises(OSError, match="ENETUNREACH"):
                guarded[0].run(function, address)

    def test_forged_source(self, guarded: tuple[Host, Host], version: int) -> None:
        """A datagram from a forged address arrives, and the lab hears of it without an answer."""
        one, two = guarded
        service = two.serve(udp=[20])
        forged = ADDRESSES[version][0] + "7"
        send = partial(traffic.udp, ADDRESSES[version][1], 20, source=forged, timeout=0.2)
        assert one.run(send).verdict is Verdict.DROPPED
        arrivals = service.arrivals()
        assert [(one.port, one.peer) for one in arrivals] == [(20, forged)]
        assert service.arrivals() == []
        service.close()


def test_dropped_on_this_host() -> None:
    """What the sender's own OUTPUT chain drops is dropped, not an error."""
    with Lab("tests") as lab:
        one, two = pair(lab)
        two.serve(udp=[53])
        one.call(["iptables-legacy", "-A", "OUTPUT", "-j", "DROP"])
        answer = one.run(partial(traffic.udp, "192.0.2.2", 53, timeout=0.2))
        assert (answer.verdict, answer.errno) == (Verdict.DROPPED, errno.EPERM)


def test_translation_is_seen() -> None:
    """Behind MASQUERADE the server sees the router's address instead of the client's."""
    with Lab("tests") as lab:
        client, router, server = lab.host("a"), lab.host("b", forward=True), lab.host("c")
        lab.link(client.port("eth0", "10.0.0.2/24"), router.port("eth0", "10.0.0.1/24"))
        lab.link(router.port("eth1", "192.0.2.1/24"), server.port("eth0", "192.0.2.2/24"))
        client.route("default", via="10.0.0.1")
        service = server.serve(tcp=[80])
        masquerade = "-t nat -A POSTROUTING -o eth1 -j MASQUERADE"
        router.call(["iptables-legacy", *masquerade.split()])
        assert client.run(traffic.http, "192.0.2.2").seen_as == "192.0.2.1"
        assert [arrival.peer for arrival in service.arrivals()] == ["192.0.2.1"]
