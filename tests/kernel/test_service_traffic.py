"""What becomes of connections to services: real TCP and UDP, through the chains of nfctl.

The oracles are the servers, which say who came to them and by which address, iptables-legacy-save
and its counters. The network is that of ``tests.kernel.serving``.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import socket
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest

from nfctl.control import apply as applying
from nfctl.control.apply import Options
from nfctl.control.journal.state import State
from nfctl.lab import Lab
from nfctl.policy import reading
from nfctl.services.model import ALWAYS, NEVER, OFF_CLUSTER, Service
from nfctl.services.names import Names
from tests.kernel import serving
from tests.kernel.serving import (
    ENDPOINTS,
    EXTERNAL,
    NODE,
    NODE_LAN,
    NODE_LAN1,
    NODE_PORT,
    PEER,
    PORT,
    QUIET,
    REFUSED,
    VIP,
    Net,
    client,
    endpoint,
    endpoints,
    pod,
)
from tests.kernel.talking import RESET, SERVED, SILENCE, Answer, Ask, Hammer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nfctl.services.model import Endpoint

_NEEDED = ("iptables-legacy-restore", "ip6tables-legacy-restore")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    *(pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}") for name in _NEEDED),
]

FAMILIES: Final = pytest.mark.parametrize("family", [4, 6])
PROTOCOLS: Final = pytest.mark.parametrize("protocol", ["tcp", "udp"])

CONNECTIONS: Final = 10_000
#: Chi-square with 9 degrees of freedom is above it by chance once in a thousand times:
#: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4, upper-tail critical values.
CRITICAL: Final = 27.877


@pytest.fixture
def net() -> Iterator[Net]:
    with Lab("tests") as lab:
        net = Net(lab)
        try:
            yield net
        finally:
            net.close()


def web(family: int, protocol: str = "tcp", to: Sequence[Endpoint] | None = None) -> Service:
    """Return a service with all three kinds of addresses, of all ten endpoints."""
    to = endpoints(family) if to is None else tuple(to)
    return Service("web", PORT, protocol, (VIP[family],), (EXTERNAL[family],), NODE_PORT, to)


def ways(family: int) -> list[tuple[str, int]]:
    """Return where such a service is to be reached."""
    return [(VIP[family], PORT), *outside(family)]


def outside(family: int) -> list[tuple[str, int]]:
    """Return where it is to be reached from outside: external address, node port."""
    return [(EXTERNAL[family], PORT), (NODE[family], NODE_PORT)]


def servers(answers: Iterable[Answer]) -> set[str]:
    """Return who served; fails where nobody did."""
    answers = list(answers)
    assert not [answer for answer in answers if answer.failure]
    return {answer.server for answer in answers}


def seen(answers: Iterable[Answer]) -> set[str]:
    """Return which addresses of clients the endpoints saw; fails where nobody served."""
    answers = list(answers)
    assert not [answer for answer in answers if answer.failure]
    return {answer.client for answer in answers}


def failures(answers: Iterable[Answer]) -> set[str]:
    """Return why nobody served; "" where somebody did."""
    return {answer.failure for answer in answers}


# --- shares ---------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_spread(net: Net, family: int, protocol: str) -> None:
    """10,000 connections spread evenly over ten endpoints, and the DNAT rules counted each one."""
    check_shares(net, family, protocol, [1] * ENDPOINTS)


@FAMILIES
@PROTOCOLS
def test_weights(net: Net, family: int, protocol: str) -> None:
    """10,000 connections spread as the weights say, and the DNAT rules counted each one."""
    check_shares(net, family, protocol, [3, 1, 10, 2, 5, 1, 7, 4, 6, 2])


def check_shares(net: Net, family: int, protocol: str, weights: Sequence[int]) -> None:
    to = [endpoint(family, n, weight=weight) for n, weight in enumerate(weights)]
    net.apply(web(family, protocol, to))
    # A fair spread is above the critical value once in a thousand times, twice once in a million;
    # an unfair one is above it every time.
    for attempt in range(2):
        # each from a place of its own: a UDP flow that conntrack knows would not be spread again
        asks = [
            Ask(VIP[family], PORT, client(family, n % 10), 20_000 + attempt * 1000 + n // 10)
            for n in range(CONNECTIONS)
        ]
        before = net.translated(family)
        answers = net.all(asks, protocol)
        assert failures(answers) == {""}
        found = net.server.served(protocol)
        assert found.total() == CONNECTIONS
        assert found == Counter(answer.server for answer in answers)
        assert net.translated(family) - before == found
        value = chi_square([found[pod(family, n)] for n in range(ENDPOINTS)], weights)
        if value <= CRITICAL:
            return
    pytest.fail(f"chi-square is {value:.1f}, twice: {found}")


def chi_square(found: Sequence[int], weights: Sequence[int]) -> float:
    wanted = [weight / sum(weights) * sum(found) for weight in weights]
    return sum((have - want) ** 2 / want for have, want in zip(found, wanted, strict=True))


# --- affinity -------------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
def test_affinity(net: Net, family: int, protocol: str) -> None:
    """A client keeps its endpoint, by whatever address it comes; different clients spread."""
    net.apply(web(family, protocol)._replace(affinity=600))
    everybody = range(serving.CLIENTS)
    asks = [Ask(VIP[family], PORT, client(family, n)) for n in everybody]
    first = net.all(asks, protocol)
    # of 50 clients less than five would see one endpoint in ten by chance alone, not in 10^-13
    assert len(servers(first)) >= 5
    home = dict(zip(everybody, (answer.server for answer in first), strict=True))
    for to, port in ways(family) * 2:
        again = net.all([Ask(to, port, client(family, n)) for n in everybody], protocol)
        assert [answer.server for answer in again] == list(home.values())


@FAMILIES
@PROTOCOLS
def test_affinity_to_what_is_gone(net: Net, family: int, protocol: str) -> None:
    """Clients of a removed endpoint go to another one and stay there; all others stay."""
    net.apply(web(family, protocol)._replace(affinity=600))
    asks = [Ask(VIP[family], PORT, client(family, n)) for n in range(serving.CLIENTS)]
    before = [answer.server for answer in net.all(asks, protocol)]
    lost = before[0]
    left = [one for one in endpoints(family) if one.address != lost]
    assert net.change("web", left) == "applied"
    after = [answer.server for answer in net.all(asks, protocol)]
    assert lost not in after
    assert {was for was, now in zip(before, after, strict=True) if was != now} == {lost}
    assert [answer.server for answer in net.all(asks, protocol)] == after
    net.change("web", endpoints(family))  # who comes back gets none of those that left
    assert [answer.server for answer in net.all(asks, protocol)] == after


@FAMILIES
def test_affinity_ends(net: Net, family: int) -> None:
    """The kernel is told how long a client is remembered, and that it may forget then."""
    net.apply(web(family)._replace(affinity=1))
    rules = re.findall(r"-m recent --rcheck (.*?) --name (\S+) .* -j (\S+)", net.rules(family))
    assert len(rules) == ENDPOINTS
    assert {told for told, _, _ in rules} == {"--seconds 1 --reap"}
    assert all(name == chain for _, name, chain in rules)


# --- source ranges --------------------------------------------------------------------------------

ALLOWED: Final = ("192.0.2.10/31", "2001:db8:1::10/127")


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("local", [False, True])
def test_source_ranges(net: Net, family: int, protocol: str, local: bool) -> None:
    """By external address and node port only allowed clients come in, by the cluster IP all."""
    to = [endpoint(family, n, local=n < 2) for n in range(ENDPOINTS)]
    limited = web(family, protocol, to)._replace(source_ranges=ALLOWED, external_local=local)
    net.apply(limited)
    for address, port in outside(family):
        for n in range(2):
            found = servers(net.ask(protocol, address, port, client(family, n), times=40))
            assert found == {pod(family, n) for n in range(2)} if local else len(found) > 2
    net.server.served(protocol)
    asks = [Ask(*way, client(family, n)) for way in outside(family) for n in range(2, 20)]
    assert failures(net.all(asks, protocol, wait=QUIET)) == {SILENCE}
    assert not net.server.served(protocol)
    assert net.counted(family, "not accepted by .*-j DROP") >= 2 * 18
    servers(net.all([Ask(VIP[family], PORT, client(family, n)) for n in range(20)], protocol))


@FAMILIES
def test_source_ranges_of_the_other_family(net: Net, family: int) -> None:
    """Ranges of one family alone let nobody of the other one come in."""
    net.apply(web(family)._replace(source_ranges=(ALLOWED[family == 4],)))
    for address, port in outside(family):
        assert net.one("tcp", address, port, wait=QUIET).failure == SILENCE
    assert net.one("tcp", VIP[family]).server


# --- traffic policies -----------------------------------------------------------------------------


def some_local(family: int) -> list[Endpoint]:
    """Return endpoints of which three are on this node."""
    return [endpoint(family, n, local=n in {1, 4, 8}) for n in range(ENDPOINTS)]


def here(family: int) -> set[str]:
    return {pod(family, n) for n in (1, 4, 8)}


@FAMILIES
@PROTOCOLS
def test_external_local(net: Net, family: int, protocol: str) -> None:
    """From outside only the node's own endpoints serve, and see who the client is.

    What the cluster and the node itself send goes to any endpoint.
    """
    net.apply(web(family, protocol, some_local(family))._replace(external_local=True))
    for address, port in outside(family):
        answers = net.ask(protocol, address, port, client(family, 7), times=200)
        assert servers(answers) == here(family)
        assert seen(answers) == {client(family, 7)}
        answers = net.ask(protocol, address, port, by=net.peer, times=200)
        assert len(servers(answers)) > 3
        assert seen(answers) == {PEER[family]}
        answers = net.ask(protocol, address, port, by=net.node, times=200)
        assert len(servers(answers)) > 3
        assert seen(answers) == {NODE_LAN[family]}
    answers = net.ask(protocol, VIP[family], times=200)
    assert len(servers(answers)) > 3
    assert seen(answers) == {NODE_LAN[family]}


@FAMILIES
@PROTOCOLS
def test_internal_local(net: Net, family: int, protocol: str) -> None:
    """By the cluster IP only the node's own endpoints serve, whoever asks; others serve outside."""
    net.apply(web(family, protocol, some_local(family))._replace(internal_local=True))
    for host in (net.client, net.peer, net.node):
        assert servers(net.ask(protocol, VIP[family], by=host, times=200)) == here(family)
    assert seen(net.ask(protocol, VIP[family])) == {NODE_LAN[family]}
    assert seen(net.ask(protocol, VIP[family], by=net.peer)) == {PEER[family]}
    for address, port in outside(family):
        answers = net.ask(protocol, address, port, times=200)
        assert len(servers(answers)) > 3
        assert seen(answers) == {NODE_LAN[family]}


@FAMILIES
@PROTOCOLS
def test_both_local(net: Net, family: int, protocol: str) -> None:
    """Where both policies are local, only the node's own endpoints serve by any address."""
    local = web(family, protocol, some_local(family))
    net.apply(local._replace(internal_local=True, external_local=True))
    for address, port in ways(family):
        assert servers(net.ask(protocol, address, port, times=200)) == here(family)
    assert seen(net.ask(protocol, EXTERNAL[family], PORT, client(family, 3))) == {client(family, 3)}
    assert seen(net.ask(protocol, VIP[family], PORT, client(family, 3))) == {NODE_LAN[family]}


@FAMILIES
@PROTOCOLS
def test_no_local_endpoints(net: Net, family: int, protocol: str) -> None:
    """Without endpoints on this node it is silent where the policy is local, and only there."""
    net.apply(web(family, protocol)._replace(external_local=True))
    asks = [Ask(*way) for way in outside(family)] * 5
    assert failures(net.all(asks, protocol, wait=QUIET)) == {SILENCE}
    for address, port in outside(family):
        assert len(servers(net.ask(protocol, address, port, by=net.peer, times=100))) > 3
        assert len(servers(net.ask(protocol, address, port, by=net.node, times=100))) > 3
    assert len(servers(net.ask(protocol, VIP[family], times=100))) > 3
    assert net.counted(family, "has no local endpoints.*-j DROP") >= 10

    net.apply(web(family, protocol)._replace(internal_local=True))
    net.server.served(protocol)
    dropped = SILENCE if protocol == "tcp" else "EPERM"  # what sendto(2) says of OUTPUT's drop
    for host, failure in ((net.client, SILENCE), (net.peer, SILENCE), (net.node, dropped)):
        answers = net.ask(protocol, VIP[family], by=host, times=5, wait=QUIET)
        assert failures(answers) == {failure}
    assert not net.server.served(protocol)
    for address, port in outside(family):
        assert len(servers(net.ask(protocol, address, port, times=100))) > 3


# --- masquerade -----------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("mode", [ALWAYS, OFF_CLUSTER, NEVER])
def test_masquerade(net: Net, family: int, protocol: str, mode: str) -> None:
    """Endpoints see the node's address or the client's, as the mode says."""
    net.apply(web(family, protocol), masquerade=mode)
    mine, node = client(family, 5), NODE_LAN[family]
    inside = {ALWAYS: (node, node), OFF_CLUSTER: (node, PEER[family]), NEVER: (mine, PEER[family])}
    wanted = {VIP[family]: inside[mode]}
    for address, port in ways(family):
        out, peer = wanted.get(address, inside[NEVER if mode == NEVER else ALWAYS])
        assert seen(net.ask(protocol, address, port, mine, times=20)) == {out}
        assert seen(net.ask(protocol, address, port, by=net.peer, times=20)) == {peer}


@FAMILIES
def test_masquerade_of_a_service(net: Net, family: int) -> None:
    """What a service says of masquerading holds against what the list says."""
    other = Service("raw", 81, "tcp", (VIP[family],), endpoints=endpoints(family), masquerade=NEVER)
    net.apply(web(family), other)
    assert seen(net.ask("tcp", VIP[family], 80)) == {NODE_LAN[family]}
    assert seen(net.ask("tcp", VIP[family], 81, client(family, 9))) == {client(family, 9)}


@FAMILIES
def test_the_mark_of_masquerade(net: Net, family: int) -> None:
    """Another mark and mask do it, too, and bits outside of the mask stay what others made them."""
    net.load(
        family,
        "*mangle\n-A PREROUTING -j MARK --set-xmark 0x1301/0xffffffff\n"
        "-A POSTROUTING -m mark --mark 0x1321\nCOMMIT\n",
    )
    net.apply(web(family), mark=0x20, mask=0xF0)
    assert seen(net.ask("tcp", VIP[family], times=10)) == {NODE_LAN[family]}
    assert seen(net.ask("tcp", VIP[family], by=net.peer, times=10)) == {PEER[family]}
    # the first packet of each connection of the client: others do not come to nat
    assert net.counted(family, "-A POSTROUTING -m mark --mark 0x1321") == 10
    assert net.counted(family, r"service forwarding rules.* --mark 0x20/0xf0 .*-j ACCEPT") == 10


# --- hairpin, and the node itself -----------------------------------------------------------------


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("mode", [ALWAYS, OFF_CLUSTER, NEVER])
def test_hairpin(net: Net, family: int, protocol: str, mode: str) -> None:
    """An endpoint reaches itself by its own service, and sees the node's address."""
    net.apply(web(family, protocol, endpoints(family, [3])), masquerade=mode)
    own = pod(family, 3)
    for address, port in ways(family):
        answers = net.ask(protocol, address, port, own, by=net.pods, times=5)
        assert set(answers) == {Answer(own, NODE_LAN[family])}


@FAMILIES
@PROTOCOLS
def test_hairpin_local(net: Net, family: int, protocol: str) -> None:
    """An endpoint reaches itself where both policies are local, and where it has affinity."""
    local = web(family, protocol, [endpoint(family, 3, local=True)])
    net.apply(local._replace(external_local=True, internal_local=True, affinity=60))
    own = pod(family, 3)
    for address, port in ways(family) * 2:
        answer = net.one(protocol, address, port, own, by=net.pods)
        assert answer == Answer(own, NODE_LAN[family])


@FAMILIES
@PROTOCOLS
def test_from_the_node(net: Net, family: int, protocol: str) -> None:
    """The node itself reaches its services by all their addresses, from any of its own."""
    net.apply(web(family, protocol))
    places = [*ways(family), (NODE_LAN[family], NODE_PORT), (NODE_LAN1[family], NODE_PORT)]
    for address, port in places:
        for source in ("", NODE[family], NODE_LAN1[family]):
            answers = net.ask(protocol, address, port, source, by=net.node, times=60)
            assert len(servers(answers)) > 3
            is_inside = source == NODE_LAN1[family] and address == VIP[family]
            assert seen(answers) == {source if is_inside else NODE_LAN[family]}


@FAMILIES
@PROTOCOLS
def test_node_port(net: Net, family: int, protocol: str) -> None:
    """The node port is there on every address of the node, new ones too, but not on loopback."""
    net.apply(web(family, protocol))
    another = {4: "203.0.113.1/32", 6: "2001:db8:200::1/128"}[family]
    net.node.call(["ip", "address", "add", another, "dev", "lo"])
    for address in (NODE[family], NODE_LAN[family], NODE_LAN1[family], another.split("/")[0]):
        for host in (net.client, net.node):
            assert len(servers(net.ask(protocol, address, NODE_PORT, by=host, times=60))) > 3
    before = net.translated(family)
    loopback = ["127.0.0.1", "127.1.2.3"] if family == 4 else ["::1"]
    for address in loopback:
        failure = net.one(protocol, address, NODE_PORT, by=net.node).failure
        assert failure == closed(family, protocol)
    assert net.translated(family) == before


@FAMILIES
@PROTOCOLS
def test_node_addresses(net: Net, family: int, protocol: str) -> None:
    """Where addresses are given, the node port is there on them, and on no others."""
    given = (f"{NODE_LAN[4]}/32", f"{NODE_LAN[6]}/128")
    net.apply(web(family, protocol), node_addresses=given)
    for host in (net.client, net.node):
        assert net.one(protocol, NODE_LAN[family], NODE_PORT, by=host).server
        assert net.one(protocol, NODE[family], NODE_PORT, by=host).failure == closed(
            family, protocol
        )


@FAMILIES
def test_a_range_of_node_addresses(net: Net, family: int) -> None:
    """Of a range of addresses only the node's own have the node port, not other hosts in it."""
    net.apply(web(family), node_addresses=("192.0.2.0/24", "2001:db8:1::/64"))
    assert net.one("tcp", NODE[family], NODE_PORT).server
    assert net.one("tcp", client(family), NODE_PORT, by=net.peer).failure == RESET
    assert net.one("tcp", NODE_LAN[family], NODE_PORT).failure == RESET


@FAMILIES
@pytest.mark.parametrize("how", ["source ranges", "no endpoints", "no local endpoints"])
def test_others_at_the_port(net: Net, family: int, how: str) -> None:
    """Where the node port is not, on loopback or other addresses, others may listen on it."""
    service = {
        "source ranges": web(family)._replace(source_ranges=ALLOWED),
        "no endpoints": web(family, to=()),
        "no local endpoints": web(family)._replace(external_local=True),
    }[how]
    net.node.serve(tcp=[NODE_PORT])
    loopback = {4: "127.0.0.1", 6: "::1"}[family]
    stranger = partial(net.worker(net.client).run, _connects, client(family, 7))
    itself = partial(net.worker(net.node).run, _connects, loopback, loopback)
    net.apply(service)
    assert itself()
    assert not stranger(NODE[family])
    net.apply(service, node_addresses=(f"{NODE_LAN[4]}/32", f"{NODE_LAN[6]}/128"))
    assert itself()
    assert stranger(NODE[family])
    assert not stranger(NODE_LAN[family])


def _connects(source: str, address: str) -> bool:
    where = address, NODE_PORT
    try:
        with socket.create_connection(where, timeout=QUIET, source_address=(source, 0)):
            return True
    except OSError:
        return False


def closed(family: int, protocol: str) -> str:
    """Return what comes of a port that nobody listens on."""
    return RESET if protocol == "tcp" else REFUSED[family]


# --- no endpoints ---------------------------------------------------------------------------------


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("how", ["none", "not ready", "draining"])
def test_without_endpoints(net: Net, family: int, protocol: str, how: str) -> None:
    """Without an endpoint that serves a connection is refused at once; with one it is served."""
    to = {
        "none": [],
        "not ready": [one._replace(ready=False) for one in endpoints(family)],
        "draining": [one._replace(draining=True) for one in endpoints(family)],
    }[how]
    net.apply(web(family, protocol, to), web(family, "udp" if protocol == "tcp" else "tcp"))
    asked = 0
    for host in (net.client, net.peer, net.node):
        for address, port in ways(family):
            if host is net.node and address == EXTERNAL[family]:
                continue  # as kube-proxy: another one may serve it
            answers = net.ask(protocol, address, port, by=host, times=3)
            assert failures(answers) == {REFUSED[family]}
            asked += 3
    assert net.counted(family, "has no endpoints.*-j REJECT") >= asked
    assert not net.server.served(protocol)
    net.change("web", [endpoint(family, 2)])
    for address, port in ways(family):
        assert net.one(protocol, address, port).server == pod(family, 2)


# --- endpoints come and go ------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("how", ["removed", "not ready", "draining"])
def test_removed(net: Net, family: int, how: str) -> None:
    """An endpoint that is taken away gets nothing new, while its open connections live on."""
    net.apply(web(family))
    opened: dict[int, str] = {}
    for address, port in ways(family):
        for _ in range(1000):
            number, answer = net.open(address, port)
            opened[number] = answer.server
            if answer.server == pod(family, 4):
                break
    old = endpoint(family, 4)
    others = endpoints(family, [n for n in range(ENDPOINTS) if n != 4])
    stays = {
        "removed": [],
        "not ready": [old._replace(ready=False)],
        "draining": [old._replace(draining=True)],
    }[how]
    assert net.change("web", [*others, *stays]) == "applied"
    for protocol_way in ways(family):
        assert servers(net.ask("tcp", *protocol_way, times=300)) == {one.address for one in others}
    assert list(opened.values()).count(pod(family, 4)) == 3
    assert {number: net.say(number).server for number in opened} == opened


KEPT: Final = (0, 1, 2)


@PROTOCOLS
def test_hammered(net: Net, protocol: str) -> None:
    """While endpoints change a hundred times no connection fails, and no counter goes back.

    The endpoints that stay have counted every connection that came to them; a service that
    nobody changed has the counters that it had. A datagram may be lost that is on its way to an
    endpoint as that is taken away, with its flow: none to an endpoint that stays.
    """
    both = (4, 6)
    kept = [pod(family, n) for family in both for n in KEPT]
    untouched = [pod(family, 9) for family in both]
    vips, externals = tuple(VIP.values()), tuple(EXTERNAL.values())
    to = [one for family in both for one in endpoints(family, range(9))]
    web = Service("web", PORT, protocol, vips, externals, NODE_PORT, tuple(to))
    other = Service("other", 81, protocol, vips, endpoints=(*endpoints(4, [9]), *endpoints(6, [9])))
    net.apply(web, other)
    net.forget_soon()
    for family in both:
        net.ask(protocol, VIP[family], 81, times=7)
    # from few ports, or conntrack would know a million flows
    asks = [
        Ask(*way, client(family, n), 10_000 * number)
        for n in range(10)
        for family in both
        for number, way in enumerate(ways(family), 1)
    ]
    net.server.served(protocol)
    chance = random.Random(0)
    hammer = Hammer(net.client, protocol, asks)
    try:
        counted = _translated(net)
        for _ in range(100):
            numbers = [*KEPT, *chance.sample(range(3, 9), chance.randrange(1, 6))]
            chance.shuffle(numbers)
            net.change("web", [*endpoints(4, numbers), *endpoints(6, numbers[::-1])])
            now = _translated(net)
            assert all(now[one] >= counted[one] for one in kept)
            assert [now[one] for one in untouched] == [7, 7]
            counted = now
        found = hammer.stop()
    finally:
        hammer.close()
    by_server: Counter[str] = Counter()
    for answer, count in found.items():
        by_server[answer.server] += count
    assert len(by_server.keys() - {""}) == 2 * 9
    assert by_server.total() > 1000
    served = net.server.served(protocol)
    assert [served[one] for one in kept] == [by_server[one] for one in kept]
    if protocol == "tcp":
        assert {answer.failure for answer in found} == {""}
        final = _translated(net)
        assert [served[one] for one in kept] == [final[one] for one in kept]
    else:
        assert {answer.failure for answer in found} <= {"", SILENCE}
        assert by_server[""] == (served - by_server).total()


def _translated(net: Net) -> Counter[str]:
    return net.translated(4) + net.translated(6)


# --- beside others --------------------------------------------------------------------------------


def docker(family: int) -> str:
    """Return rules as Docker writes them, which publish port 8088 of a container."""
    loopback = "127.0.0.0/8" if family == 4 else "::1/128"
    bridge = "172.17.0.0/16" if family == 4 else "fd00:172::/64"
    container = pod(family, 9)
    to = f"[{container}]:{SERVED}" if family == 6 else f"{container}:{SERVED}"
    return f"""\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {bridge} ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination {to}
COMMIT
*filter
:DOCKER - [0:0]
-A FORWARD -j DOCKER
-A DOCKER -d {container} ! -i docker0 -o lan0 -p tcp -m tcp --dport {SERVED} -j ACCEPT
COMMIT
"""


POLICY: Final = b"""\
version: 1
tables:
  filter:
    FORWARD:
      policy: drop
      rules:
        - -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        - -i lan1 -j ACCEPT
"""


def _apply_policy(text: bytes) -> str:
    state = State(serving.STATE)
    options = Options(guard_ssh=False)
    return applying.apply(reading.parse(text), state=state, options=options).status


def lines(net: Net, family: int, table: str) -> list[str]:
    """Return a table's rules without counters and comments."""
    text = net.rules(family, "-t", table)
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in text.splitlines() if line[:1] != "#"]


def own(text: Iterable[str], is_own: bool = True) -> list[str]:
    """Return the lines that speak of the services' chains, or all others."""
    return [line for line in text if (Names().prefix in line) is is_own]


@FAMILIES
def test_beside_others(net: Net, family: int) -> None:
    """Docker's rules and a policy that denies forwarding stay and hold; services serve."""
    net.load(family, docker(family))
    node = net.worker(net.node)
    node.run(_apply_policy, POLICY)
    before = {table: lines(net, family, table) for table in ("nat", "filter")}
    net.apply(web(family))
    check_beside(net, family)
    served = {table: lines(net, family, table) for table in before}
    assert all(own(served[table]) for table in before)
    assert {table: own(served[table], False) for table in before} == before

    # the policy again, and changed: services stay
    assert node.run(_apply_policy, POLICY) == "unchanged"
    node.run(_apply_policy, POLICY + b"        - -p udp -j ACCEPT\n")
    assert own(lines(net, family, "filter")) == own(served["filter"])
    assert lines(net, family, "filter") != served["filter"]
    check_beside(net, family)
    node.run(_apply_policy, POLICY)
    assert {table: lines(net, family, table) for table in before} == served

    net.apply()
    assert {table: lines(net, family, table) for table in before} == before


def check_beside(net: Net, family: int) -> None:
    """Check that everybody's rules do what they are for."""
    for address in (NODE[family], NODE_LAN[family]):
        found = net.one("tcp", address, 8088, client(family))
        assert found == Answer(pod(family, 9), client(family))
        assert net.one("tcp", address, 8088, by=net.node).server == pod(family, 9)
    direct = net.one("tcp", pod(family, 0), SERVED, wait=QUIET)
    assert direct.failure == SILENCE
    for host in (net.client, net.peer, net.node):
        for address, port in ways(family):
            assert len(servers(net.ask("tcp", address, port, by=host, times=60))) > 3


@FAMILIES
def test_refusing_beside_others(net: Net, family: int) -> None:
    """A service without endpoints refuses also where a policy denies forwarding."""
    net.worker(net.node).run(_apply_policy, POLICY)
    net.apply(web(family, to=()))
    for address, port in ways(family):
        assert net.one("tcp", address, port).failure == REFUSED[family]


def test_both_families(net: Net) -> None:
    """One service of both families serves each by the endpoints of that family."""
    both = Service(
        "web",
        PORT,
        "tcp",
        tuple(VIP.values()),
        tuple(EXTERNAL.values()),
        NODE_PORT,
        (*endpoints(4, range(3)), *endpoints(6, range(3, 7))),
    )
    net.apply(both)
    for family, numbers in ((4, range(3)), (6, range(3, 7))):
        for address, port in ways(family):
            found = servers(net.ask("tcp", address, port, times=120))
            assert found == {pod(family, n) for n in numbers}
    # without endpoints of one family, that one refuses, and the other serves
    net.change("web", endpoints(6, [5]))
    assert net.one("tcp", VIP[6]).server == pod(6, 5)
    assert net.one("tcp", VIP[4]).failure == REFUSED[4]
    assert net.one("tcp", EXTERNAL[4]).failure == REFUSED[4]
