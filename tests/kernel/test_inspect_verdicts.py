"""Verdicts of ``nfctl inspect``: what becomes of real packets, as their receivers and senders see.

The client sends, the server receives, the router between them inspects, unless a test says
otherwise. The oracle are sockets, and the counters of iptables-save.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from nfctl.lab import Verdict, traffic
from tests.kernel import inspecting
from tests.kernel.inspecting import CLIENT, FAMILIES, OTHER, ROUTER, SERVER, SHORT, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

SOURCE = {4: "192.0.2.1{:02}", 6: "2001:db8:1::1{:02}"}  # addresses that nobody has
# With output every packet goes the long way; without, flows whose verdict is known a short one.
SHOWN = pytest.mark.parametrize("shown", [(), ("--quiet",)], ids=["shown", "quiet"])


@pytest.fixture
def net() -> Iterator[Net]:
    """Give the hosts, with nothing in their tables."""
    with inspecting.network() as made:
        yield made


def where(net: Net, chain: str) -> Host:
    """Return the host on which a packet from the client to the server passes a chain."""
    return {"INPUT": net.server, "OUTPUT": net.client}.get(chain, net.router)


def sent(net: Net, family: int, ports: list[int], *, times: int = 1, source: str = "") -> list[int]:
    """Send datagrams from the client to ports of the server; return to which ports they came."""
    there = {port: net.udp(net.server, family, SERVER[family], port) for port in ports}
    here = net.udp(net.client, family, source or CLIENT[family])
    for _ in range(times):  # over IPv6 these are the same bytes each time
        for port in ports:
            here.sendto(b"x", (SERVER[family], port))
    found = [port for port, sock in there.items() for _ in receive(sock)]
    for sock in (here, *there.values()):
        sock.close()
    return found


# --- drop -----------------------------------------------------------------------------------------


@SHOWN
@pytest.mark.parametrize("chain", ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"])
def test_a_drop(chain: str, shown: tuple[str, ...], net: Net) -> None:
    """What a rule drops arrives nowhere, everything else does, in every chain and family."""
    rules = "rules: [{name: no, when: {proto: udp, dport: 4001}, verdict: drop}]"
    inspection = net.inspect(where(net, chain), *shown, rules=rules, chains=chain)
    for family in FAMILIES:
        assert sent(net, family, [4000, 4001, 4002], times=3) == [4000] * 3 + [4002] * 3
    end = inspection.end()
    assert end["verdicts"]["drop"] == end["rules"]["no"] == 6
    assert end["verdicts"]["accept"] >= 12
    if not shown:
        ours = [one for one in inspection.records if one.get("dport") == 4001]
        said = {(one["chain"], one["verdict"], one["by"]) for one in ours}
        assert said == {(chain, "drop", "no")}
        assert [one["family"] for one in ours] == [4] * 3 + [6] * 3
        assert [one["length"] for one in ours] == [29] * 3 + [49] * 3


@SHOWN
def test_the_default(shown: tuple[str, ...], net: Net) -> None:
    """With the default drop only what a rule accepts arrives."""
    rules = "default: drop\nrules: [{when: {proto: udp, dport: 4001}, verdict: accept}]"
    with net.inspect(net.router, *shown, rules=rules) as inspection:
        for family in FAMILIES:
            assert sent(net, family, [4000, 4001], times=2) == [4001] * 2
            answer = net.client.run(_ping, SERVER[family])
            assert answer is Verdict.DROPPED
        assert inspection.end()["rules"] == {"default": 6, "rule 1": 4}


def _ping(address: str) -> Verdict:
    return traffic.ping(address, timeout=SHORT).verdict


def test_a_drop_in_a_stream(net: Net) -> None:
    """A segment whose payload is refused never arrives, however often TCP sends it again."""
    rules = "rules: [{when: {payload: {bytes: secret}}, verdict: drop}]"
    with net.inspect(net.router, rules=rules):
        for family in FAMILIES:
            here, there = net.stream(family)
            here.send(b"first ")
            assert there.recv(100) == b"first "
            here.send(b"a secret")
            assert receive(there, 0.5) == []


# --- reject ---------------------------------------------------------------------------------------


OTHERS = """\
*filter
-A FORWARD -p udp --dport 4001 -m conntrack --ctstate NEW -j REJECT
-A FORWARD -p tcp --dport 4001 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset
COMMIT
"""
TRACKING = "*filter\n-A OUTPUT -m conntrack --ctstate INVALID\nCOMMIT\n"


@SHOWN
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
@pytest.mark.parametrize(
    "chains", ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "OUTPUT,FORWARD", "OUTPUT,PREROUTING"]
)
def test_a_reject(chains: str, tracked: bool, shown: tuple[str, ...], net: Net) -> None:
    """The sender hears of it at once: TCP by a reset, UDP by ICMP's port unreachable.

    That the answer is inspected as well does not swallow it.
    """
    chain = chains.rpartition(",")[2]
    host = where(net, chain)
    if tracked:
        net.rules(host, TRACKING)
        for family in FAMILIES:
            assert sent(net, family, [4000]) == [4000]
    rules = "rules: [{name: no, when: {dport: [4001, 4002]}, verdict: reject}]"
    inspection = net.inspect(host, *shown, rules=rules, chains=chains)
    for family in FAMILIES:
        there = net.udp(net.server, family, SERVER[family], 4001)
        net.listen(net.server, family, 4002)
        here = net.udp(net.client, family, CLIENT[family])
        here.connect((SERVER[family], 4001))
        here.send(b"refused")
        with pytest.raises(ConnectionRefusedError):
            here.recv(100)
        udp = net.client.run(traffic.udp, SERVER[family], 4001)
        tcp = net.client.run(traffic.tcp, SERVER[family], 4002)
        assert udp.reason == ("icmp-port-unreachable", "icmp6-port-unreachable")[family == 6]
        if chain in {"PREROUTING", "FORWARD"} and family == 4:
            assert udp.sender == ROUTER[4]
        assert tcp.reason == "tcp-reset"
        assert receive(there, 0) == []
        assert sent(net, family, [4000]) == [4000]
    assert inspection.end()["rules"]["no"] == 6


@pytest.mark.parametrize("chains", ["OUTPUT", "POSTROUTING", "INPUT,OUTPUT,FORWARD,POSTROUTING"])
def test_a_reject_of_others(chains: str, net: Net) -> None:
    """What the firewall answers to a packet that it rejects gets out of inspected chains."""
    net.rules(net.router, OTHERS)
    for family in FAMILIES:
        net.listen(net.server, family, 4001)
        net.udp(net.server, family, SERVER[family], 4001)
        assert sent(net, family, [4000]) == [4000]
    with net.inspect(net.router, chains=chains):
        for family in FAMILIES:
            answer = net.client.run(traffic.udp, SERVER[family], 4001)
            assert answer.reason == ("icmp-port-unreachable", "icmp6-port-unreachable")[family == 6]
            assert answer.sender == ROUTER[family]
            answer = net.client.run(traffic.tcp, SERVER[family], 4001)
            assert answer.reason == "tcp-reset"


def test_a_reject_leaves_no_mark(net: Net) -> None:
    """What answers a rejected packet, and packets that are accepted, bear none of our bits."""
    net.rules(net.router, "*security\n-A FORWARD -m mark ! --mark 0\nCOMMIT\n")
    rules = "rules: [{when: {dport: 4001}, verdict: reject}]"
    with net.inspect(net.router, rules=rules):
        for family in FAMILIES:
            assert sent(net, family, [4000, 4001]) == [4000]
    for family in FAMILIES:
        assert [count for count, _ in net.counters(net.router, "security", family)] == [0]


# --- marks ----------------------------------------------------------------------------------------


@SHOWN
def test_a_mark(shown: tuple[str, ...], net: Net) -> None:
    """A later table sees the mark; bits outside of the mask are as somebody else has set them."""
    net.rules(net.router, """\
*mangle
-A PREROUTING -j MARK --set-xmark 0xab00cc42/0xffffffff
COMMIT
*filter
-A FORWARD -p udp -m udp --dport 4001 -m mark --mark 0xab00cc15
-A FORWARD -p udp -m udp --dport 4002 -m mark --mark 0xab00cc72
-A FORWARD -p udp -m udp --dport 4003 -m mark --mark 0xab00cc42
-A FORWARD -p udp -m mark ! --mark 0xab000000/0xff000000
COMMIT
""")  # fmt: skip
    rules = """\
rules:
- {when: {dport: 4001}, verdict: mark, mark: 0x15/0xff}
- {when: {dport: 4002}, verdict: mark, mark: 0x30/0x30}
"""
    with net.inspect(net.router, *shown, rules=rules) as inspection:
        for family in FAMILIES:
            arrived = sent(net, family, [4001, 4002, 4003], times=2)
            assert arrived == [4001] * 2 + [4002] * 2 + [4003] * 2
            counts = [count for count, _ in net.counters(net.router, "filter", family)]
            assert counts == [2, 2, 2, 0]
        inspection.end()
    if not shown:
        marks = {one["dport"]: one.get("set_mark") for one in inspection.records}
        assert marks[4002] == {"value": 0x30, "mask": 0x30}
        assert {one["mark"] for one in inspection.records} == {0xAB00CC42}


def test_a_mark_chooses_a_route(net: Net) -> None:
    """A mark that is set in OUTPUT has the packet routed again, as one of iptables would."""
    net.client.call(["ip", "rule", "add", "fwmark", "7", "blackhole"])
    net.client.call(["ip", "-6", "rule", "add", "fwmark", "7", "blackhole"])
    rules = "rules: [{when: {dport: 4001}, verdict: mark, mark: 7}]"
    with net.inspect(net.client, rules=rules, chains="OUTPUT"):
        for family in FAMILIES:
            assert sent(net, family, [4000, 4001], times=2) == [4000] * 2


# --- repeat ---------------------------------------------------------------------------------------


@SHOWN
def test_a_repeat(shown: tuple[str, ...], net: Net) -> None:
    """The packet meets the rules of mangle once more, with its new mark, and is seen once."""
    net.rules(net.router, """\
*mangle
-A FORWARD -p udp -m udp --dport 4001
-A FORWARD -p udp -m udp --dport 4002 -m mark --mark 0x5/0xff -j DROP
-A FORWARD -p udp -m udp --dport 4003
COMMIT
*filter
-A FORWARD -m mark ! --mark 0/0xffffff00
COMMIT
""")  # fmt: skip
    rules = """\
rules:
- {when: {dport: 4001}, verdict: repeat}
- {when: {dport: 4002}, verdict: repeat, mark: 5/0xff}
"""
    with net.inspect(net.router, *shown, rules=rules) as inspection:
        for family in FAMILIES:
            arrived = sent(net, family, [4001, 4002, 4003], times=2)
            assert arrived == [4001] * 2 + [4003] * 2
            counts = [count for count, rule in net.counters(net.router, "mangle", family)]
            assert counts[:3] == [4, 2, 2]
            assert [count for count, _ in net.counters(net.router, "filter", family)] == [0]
        assert inspection.end()["rules"] == {"rule 1": 4, "rule 2": 4, "default": 4}


@pytest.mark.parametrize("verdict", ["repeat", "accept, offload: flow", "drop, offload: flow"])
def test_a_rule_that_overwrites_the_mark(verdict: str, net: Net) -> None:
    """A rule of mangle that sets all of the mark does not have a packet queued without end."""
    net.rules(net.router, "*mangle\n-A FORWARD -j MARK --set-mark 1\nCOMMIT\n")
    rules = f"rules: [{{when: {{dport: 4001}}, verdict: {verdict}}}]"
    inspection = net.inspect(net.router, rules=rules)
    for family in FAMILIES:
        allowed = [4000] * 2 + [4001] * 2 * ("drop" not in verdict)
        assert sent(net, family, [4000, 4001], times=2) == allowed
    end = inspection.end()
    assert end["packets"] <= 2 * 2 * 2 * 34, end
    assert sum(end["errors"].values()) > 0
    assert "overwrite" in "".join(inspection.notes)


# --- verdicts that last, and rates ----------------------------------------------------------------


@SHOWN
def test_a_verdict_for_a_source(shown: tuple[str, ...], net: Net) -> None:
    """One packet costs its source everything, of that family, and nobody else anything."""
    rules = "rules: [{when: {dport: 4001}, verdict: drop, for: 10m, per: source}]"
    with net.inspect(net.router, *shown, rules=rules):
        for family in FAMILIES:
            # the flow to 4000 is known by then: that must not help it
            assert sent(net, family, [4000], times=3) == [4000] * 3
            here, there = net.pair(family, 4002)
            here.send(b"before")
            assert there.recv(100) == b"before"
            assert sent(net, family, [4001]) == []
            here.send(b"behind")
            assert receive(there) == []
            assert sent(net, family, [4000, 4002][:1], times=3) == []
            assert sent(net, family, [4000], source=OTHER[family]) == [4000]


def test_a_verdict_for_a_flow_ends(net: Net) -> None:
    """It is for both directions of one flow, and for no longer than it says."""
    rules = "rules: [{when: {payload: {bytes: bad}}, verdict: drop, for: 1s}]"
    with net.inspect(net.router, rules=rules):
        ends = []
        for family in FAMILIES:
            here, there = net.pair(family)
            here.send(b"good")
            _, back = there.recvfrom(100)
            ends.append((here, there, back))
        began = time.monotonic()
        for here, there, back in ends:
            here.send(b"bad")
            here.send(b"good")
            there.sendto(b"answer", back)
        assert [receive(sock, SHORT / 2) for pair in ends for sock in pair[:2]] == [[]] * 4
        assert sent(net, 4, [4001]) == [4001]
        time.sleep(max(0.0, began + 1.1 - time.monotonic()))
        for here, there, back in ends:
            here.send(b"good")
            assert there.recv(100) == b"good"
            there.sendto(b"answer", back)
            assert here.recv(100) == b"answer"


@SHOWN
def test_a_rate(shown: tuple[str, ...], net: Net) -> None:
    """So many packets of each source as are allowed arrive, exactly."""
    rules = "rules: [{when: {proto: udp, rate: {over: 1/min, burst: 7}}, verdict: drop}]"
    with net.inspect(net.router, *shown, rules=rules):
        for family in FAMILIES:
            assert sent(net, family, [4000, 4001], times=10) == [4000] * 4 + [4001] * 3
            assert sent(net, family, [4000], times=10, source=OTHER[family]) == [4000] * 7


def test_the_log(net: Net) -> None:
    """A rule that says log tells of its packets where none is shown, and others do not."""
    rules = "rules: [{name: watch, when: {dport: 4001}, verdict: drop, log: true}]"
    inspection = net.inspect(net.router, "--quiet", rules=rules)
    for family in FAMILIES:
        assert sent(net, family, [4000, 4001], times=3) == [4000] * 3
    inspection.end()
    assert inspection.records == []
    assert len(inspection.notes) == 6
    assert all(f"{CLIENT[4]}:" in text for text in inspection.notes[:3])
    assert all("drop" in text and "watch" in text and "4001" in text for text in inspection.notes)


# --- handlers -------------------------------------------------------------------------------------

HANDLER = """\
def handler(packet):
    {
        4001: packet.drop, 4002: packet.reject, 4003: lambda: packet.mark(5, 0xff),
        4004: lambda: 1 / 0,
    }.get(packet.dport, lambda: None)()
"""


def test_a_handler(net: Net) -> None:
    """A handler in Python decides, by drop, reject and mark; one that raises costs nothing."""
    net.rules(net.router, "*filter\n-A FORWARD -m mark --mark 5/0xff\nCOMMIT\n")
    inspection = net.inspect(net.router, handler=HANDLER)
    for family in FAMILIES:
        arrived = sent(net, family, [4000, 4001, 4003, 4004], times=2)
        assert arrived == [4000] * 2 + [4003] * 2 + [4004] * 2
        there = net.udp(net.server, family, SERVER[family], 4002)
        answer = net.client.run(traffic.udp, SERVER[family], 4002)
        assert answer.reason.endswith("port-unreachable")
        assert receive(there, 0) == []
        (counted,) = (count for count, rule in net.counters(net.router, "filter", family)
                      if "NFCTL" not in rule)  # fmt: skip
        assert counted == 2
    end = inspection.end()
    assert end["verdicts"] == {"accept": 12, "drop": 4, "reject": 2}
    assert end["errors"] == {"handler /run/handler.py:handler: raised": 4}


def test_a_handler_that_rejects_where_nothing_can(net: Net) -> None:
    """In POSTROUTING, behind table filter, a handler's reject is a drop."""
    handler = "def handler(packet):\n    packet.dport == 4001 and packet.reject()\n"
    handler += "    packet.dport == 4002 and packet.accept()\n"
    with net.inspect(net.router, handler=handler, chains="POSTROUTING"):
        for family in FAMILIES:
            assert sent(net, family, [4000, 4001, 4002]) == [4000, 4002]


# --- workers, and the end -------------------------------------------------------------------------


def test_several_workers(net: Net) -> None:
    """Flows are spread over the queues; each keeps its order, and all get the same verdicts."""
    rules = "rules: [{name: no, when: {dport: 4001}, verdict: drop}]"
    inspection = net.inspect(net.router, "--workers", "3", rules=rules)
    for family in FAMILIES:
        there = net.udp(net.server, family, SERVER[family], 4000)
        # the kernel looks at addresses alone, not at ports, to choose a queue
        flows = [net.udp(net.client, family, SOURCE[family].format(n)) for n in range(20)]
        for number in range(10):
            for here in flows:
                here.sendto(b"%d" % number, (SERVER[family], 4000))
                here.sendto(b"%d" % number, (SERVER[family], 4001))
        found: dict[int, list[bytes]] = {}
        for _ in range(200):
            data, (_, port, *_) = there.recvfrom(100)
            found.setdefault(port, []).append(data)
        order = [b"%d" % number for number in range(10)]
        assert list(found.values()) == [order] * 20
        there.close()
    used = [net.figures(net.router, queue) for queue in range(3)]
    assert sum(one is not None and one.last_id > 0 for one in used) == 3
    assert inspection.end()["rules"] == {"default": 400, "no": 400}


def test_a_number_of_packets(net: Net) -> None:
    """It ends by itself after so many packets; what comes behind them passes."""
    inspection = net.inspect(net.router, "--count", "3")
    assert sent(net, 4, [4000], times=10) == [4000] * 10
    assert inspection.wait()["ended_by"] == "count"
    assert len(inspection.records) == 3
    assert "NFCTL" not in net.legacy(net.router, "-t", "mangle", "-S")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_packet_is_lost_at_the_end(number: signal.Signals, net: Net) -> None:
    """Packets that wait when it is told to end get their verdict, and the tables are as before."""
    rules = "rules: [{when: {dport: 4001}, verdict: drop}]"
    before = net.router.call(["iptables-legacy-save", "-t", "mangle"])
    handler = "import time\ndef handler(packet): time.sleep(0.02)\n"
    inspection = net.inspect(net.router, rules=rules, handler=handler)
    there = {port: net.udp(net.server, 4, SERVER[4], port) for port in (4000, 4001)}
    here = net.udp(net.client, 4, CLIENT[4])
    for _ in range(20):
        for port in there:
            here.sendto(b"waits", (SERVER[4], port))
    end = inspection.end(number)
    assert end["ended_by"] == number.name
    assert end["packets"] == 40
    assert (len(receive(there[4000])), receive(there[4001], 0)) == (20, [])
    after = net.router.call(["iptables-legacy-save", "-t", "mangle"])
    assert _rules(after) == _rules(before)


def _rules(saved: str) -> list[str]:
    return [line.partition(" [")[0] for line in saved.splitlines() if line[:1] != "#"]


def test_a_worker_that_is_killed(net: Net) -> None:
    """The run ends, says so, and leaves neither rules nor packets behind."""
    inspection = net.inspect(net.router)
    assert sent(net, 4, [4000]) == [4000]
    for pid in inspection.workers():
        os.kill(pid, signal.SIGKILL)
    inspection.wait(code=1)
    assert "NFCTL" not in net.legacy(net.router, "-t", "mangle", "-S")
    assert sent(net, 4, [4000]) == [4000]


def test_a_run_that_is_killed(net: Net) -> None:
    """Its workers go, too; traffic passes its rules, and the next run takes these out."""
    inspection = net.inspect(net.router, rules="default: drop")
    assert sent(net, 4, [4000]) == []
    inspection.process.kill()
    inspection.process.wait()
    while net.figures(net.router) is not None:
        socket.socket().close()
    assert "NFCTL" in net.legacy(net.router, "-t", "mangle", "-S")
    for family in FAMILIES:
        assert sent(net, family, [4000]) == [4000]
    second = net.inspect(net.router, leftover=True)
    assert sent(net, 4, [4000]) == [4000]
    assert second.end()["packets"] == 1
    assert "NFCTL" not in net.legacy(net.router, "-t", "mangle", "-S")
