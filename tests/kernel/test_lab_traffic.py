"""The lab's traffic: accepted, rejected and dropped are told apart, against known rules."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest

from nfctl.errors import AnswerNo, BadInput
from nfctl.lab import Answer, Host, Lab, Service, Verdict, traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.lab import Worker

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


@pytest.mark.parametrize("version", [4, 6])
class TestRawAnswers:
    """Every sender brings what came back, as it came."""

    def test_data(self, guarded: tuple[Host, Host], version: int) -> None:
        """What was sent comes back from TCP and UDP, a page from HTTP, a packet from a ping."""
        one, _ = guarded
        for function in (traffic.tcp, traffic.udp):
            answer = one.run(partial(function, ADDRESSES[version][1], 9, request=b"\0any\xff"))
            assert (answer.data, answer.seen_as, answer.seen_port) == (b"\0any\xff", "", 0)
        page = ask(one, version, traffic.http, 9)
        assert page.data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"nfctl lab" in ask(one, version, traffic.ping).data

    def test_an_answer_that_is_not_a_lab_s(self, guarded: tuple[Host, Host], version: int) -> None:
        """What looks like the answer of a server is not one if it was ourselves who said it."""
        said = b'{"peer": "1.2.3.4", "port": 5, "host": "x"}\n'
        for function in (traffic.tcp, traffic.udp):
            answer = guarded[0].run(partial(function, ADDRESSES[version][1], 9, request=said))
            assert (answer.data, answer.seen_as, answer.host) == (said, "", "")

    @pytest.mark.parametrize("tcp", [False, True])
    def test_dns(self, guarded: tuple[Host, Host], version: int, tcp: bool) -> None:
        """A DNS question meets the rules of its transport; an echo is no answer to it."""
        rejected = ask(guarded[0], version, partial(traffic.dns, port=3, tcp=tcp), "x")
        assert rejected.verdict is Verdict.REJECTED
        assert rejected.reason.endswith("port-unreachable")
        silent = partial(traffic.dns, port=1, tcp=tcp)
        dropped = ask(guarded[0], version, silent, "x", timeout=traffic.DROP_TIMEOUT)
        assert dropped.verdict is Verdict.DROPPED
        echo = partial(traffic.dns, port=9)
        assert ask(guarded[0], version, echo, "x", timeout=0.2).verdict is Verdict.DROPPED

    def test_an_endless_answer(self, guarded: tuple[Host, Host], version: int) -> None:
        """An answer that goes on and on ends with its time."""
        endless = partial(traffic.http, path=f"/bytes/{1 << 30}")
        answer = ask(guarded[0], version, endless, 9, timeout=0.2)
        assert answer.verdict is Verdict.DROPPED
        assert len(answer.data) > 1 << 20
        assert answer.seconds < 1


@pytest.mark.parametrize("version", [4, 6])
class TestHeld:
    """Connections that stay open, in a host's worker, while rules change around them."""

    @pytest.fixture
    def worker(self, hosts: tuple[Host, Host]) -> Iterator[Worker]:
        worker = hosts[0].worker()
        yield worker
        worker.close()

    @pytest.fixture
    def rule(self, hosts: tuple[Host, Host], version: int) -> Iterator[Callable[[str], None]]:
        """Give a function that makes a rule the only one of the client's OUTPUT."""
        tool = "iptables-legacy" if version == 4 else "ip6tables-legacy"

        def only(rule: str) -> None:
            hosts[0].call([tool, "-F", "OUTPUT"])
            if rule:
                hosts[0].call([tool, "-A", "OUTPUT", *rule.split()])

        yield only
        only("")

    def test_through_rules(
        self,
        hosts: tuple[Host, Host],
        worker: Worker,
        rule: Callable[[str], None],
        version: int,
    ) -> None:
        """What a rule drops is said to be; TCP brings it when the rule is gone."""
        service = hosts[1].serve(tcp=[30])
        number = worker.run(traffic.open, ADDRESSES[version][1], 30)
        assert worker.run(traffic.say, number, b"one").data == b"one"
        rule("-p tcp --dport 30 -j DROP")
        dropped = worker.run(partial(traffic.say, number, b"two", timeout=0.3))
        assert (dropped.verdict, dropped.data) == (Verdict.DROPPED, b"")
        rule("")
        after = worker.run(partial(traffic.say, number, b"three", timeout=10))
        assert (after.verdict, after.data) == (Verdict.ACCEPTED, b"three")
        assert len(service.arrivals()) == 1
        other = worker.run(traffic.open, ADDRESSES[version][1], 30)
        assert worker.run(traffic.say, other, b"whoami\n").seen_as == ADDRESSES[version][0]
        page = worker.run(traffic.say, other, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert page.seen_as == ADDRESSES[version][0]
        worker.run(traffic.close, number)
        with pytest.raises(BadInput, match=f"keeps no connection {number}"):
            worker.run(traffic.say, number, b"x")
        service.close()
        ended = worker.run(traffic.say, other, b"x")
        assert (ended.verdict, ended.reason) == (Verdict.REJECTED, "closed")

    def test_rejected(
        self,
        hosts: tuple[Host, Host],
        worker: Worker,
        version: int,
    ) -> None:
        """A reset in the middle is a rejection, and what comes after it is one, too."""
        service = hosts[1].serve(tcp=[31])
        number = worker.run(traffic.open, ADDRESSES[version][1], 31)
        tool = "iptables-legacy" if version == 4 else "ip6tables-legacy"
        rule = "INPUT -p tcp --dport 31 -j REJECT --reject-with tcp-reset"
        hosts[1].call([tool, "-I", *rule.split()])
        for _ in range(2):
            answer = worker.run(traffic.say, number, b"x")
            assert (answer.verdict, answer.reason) == (Verdict.REJECTED, "tcp-reset")
        with pytest.raises(AnswerNo, match="port 31 is rejected, tcp-reset"):
            worker.run(traffic.open, ADDRESSES[version][1], 31)
        hosts[1].call([tool, "-D", *rule.split()])
        service.close()

    def test_not_accepted(self, guarded: tuple[Host, Host], worker: Worker, version: int) -> None:
        """A connection that is not accepted is not held: the error says why."""
        assert guarded
        with pytest.raises(AnswerNo, match="port 1 is dropped"):
            worker.run(partial(traffic.open, ADDRESSES[version][1], 1, timeout=0.2))
        with pytest.raises(AnswerNo, match=r"port 3 is rejected, icmp6?-port-unreachable"):
            worker.run(traffic.open, ADDRESSES[version][1], 3)

    def test_in_a_block(self, guarded: tuple[Host, Host], version: int) -> None:
        """In one process a block holds the connection, and sends as much as is wanted."""

        def talk() -> tuple[tuple[str, int], bool, tuple[str, int]]:
            with traffic.hold(ADDRESSES[version][1], 9) as held:
                seen = held.say(b"whoami\n")
                data = bytes(range(256)) * 20_000
                same = held.say(data, timeout=10).data == data
                return held.local, same, (seen.seen_as, seen.seen_port)

        local, same, seen = guarded[0].run(talk)
        assert same
        assert local == seen
        with pytest.raises(BadInput, match="nothing to send"):
            guarded[0].run(_say_nothing, ADDRESSES[version][1])


def _say_nothing(address: str) -> None:
    with traffic.hold(address, 9) as held:
        held.say(b"")


@pytest.mark.parametrize("version", [4, 6])
class TestMany:
    """Many connections, counted."""

    @pytest.mark.parametrize(
        ("port", "verdict", "reason"),
        [
            (9, Verdict.ACCEPTED, ""),
            (2, Verdict.REJECTED, "tcp-reset"),
            (3, Verdict.REJECTED, "port-unreachable"),
            (1, Verdict.DROPPED, ""),
        ],
    )
    def test_verdicts(
        self, guarded: tuple[Host, Host], version: int, port: int, verdict: Verdict, reason: str
    ) -> None:
        """Each is counted by what became of it, in the time of a few."""
        timeout = 0.3 if verdict is Verdict.DROPPED else traffic.TIMEOUT
        many = partial(traffic.many, ADDRESSES[version][1], port, 40, 10, timeout=timeout)
        tally = guarded[0].run(many)
        assert tally.verdicts == {verdict: 40}
        assert [name.endswith(reason) for name in tally.reasons] == [True] * bool(reason)
        assert sum(tally.reasons.values()) == 40 * bool(reason)
        assert sum(tally.hosts.values()) == 40 * (verdict is Verdict.ACCEPTED)
        if verdict is Verdict.DROPPED:
            assert 1.2 <= tally.seconds < 6

    def test_spread(self, hosts: tuple[Host, Host], version: int) -> None:
        """Connections that the kernel spreads over two servers are counted for each."""
        tool = "iptables-legacy" if version == 4 else "ip6tables-legacy"
        address = ADDRESSES[version][1]
        half = "PREROUTING -p tcp --dport 40 -m statistic --mode nth --every 2 --packet 0"
        servers = [
            Service(hosts[1].enter, (port,), name=name) for port, name in ((40, "a"), (41, "b"))
        ]
        rule = ["-t", "nat", "-A", *half.split(), "-j", "REDIRECT", "--to-ports", "41"]
        hosts[1].call([tool, *rule])
        tally = hosts[0].run(traffic.many, address, 40, 1000)
        assert tally.verdicts == {Verdict.ACCEPTED: 1000}
        assert tally.hosts == {"a": 500, "b": 500}
        rule[2] = "-D"
        hosts[1].call([tool, *rule])
        for server in servers:
            server.close()

    def test_what_cannot_be(self, hosts: tuple[Host, Host], version: int) -> None:
        """A number that makes no sense is refused; an error that no packet caused is raised."""
        with pytest.raises(BadInput, match="0 at a time"):
            hosts[0].run(traffic.many, ADDRESSES[version][1], 9, 10, 0)
        nowhere = {4: "203.0.113.1", 6: "2001:db8:9::1"}[version]
        with pytest.raises(OSError, match="ENETUNREACH"):
            hosts[0].run(traffic.many, nowhere, 9, 10)
