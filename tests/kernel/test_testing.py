"""The pytest plugin: labs and rules in tests, and what it says when the firewall is not right."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nfctl.errors import BadInput
from nfctl.lab import Host, Lab, namespaces
from nfctl.lab.traffic import Verdict
from nfctl.testing import (
    connect,
    expect_accepted,
    expect_dropped,
    expect_rejected,
    receive,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.testing import LabMaker, RulesetLoader

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.kernel

SHORT = 0.2  # seconds; an answer takes one millisecond

RULES = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OUTSIDE - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i wan0 -j OUTSIDE
-A OUTSIDE -p tcp -m multiport --dports 80,8888 -j ACCEPT
-A OUTSIDE -p tcp -m tcp --dport 22 -j DROP
-A OUTSIDE -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
-A OUTSIDE -p udp -m udp --dport 514 -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


class Net(NamedTuple):
    """The hosts of the topology that the tests use."""

    client: Host
    router: Host
    server: Host


@pytest.fixture
def net(lab: LabMaker) -> Net:
    """Give a client, a router without rules, and a server."""
    made = lab("router")
    return Net(made["client"], made["router"], made["server"])


@pytest.fixture
def guarded(net: Net, ruleset: RulesetLoader) -> Net:
    """Give the same with the rules above on the router."""
    ruleset(net.router, RULES)
    return net


def complaint(expect: Callable[..., object], *args: object, **options: object) -> str:
    """Return what an expectation that is not met says; numbers of packets that vary as +N."""
    __tracebackhide__ = True
    with pytest.raises(AssertionError) as error:
        expect(*args, **options)
    return re.sub(r"\(\+([2-9]|\d\d+) packets\)", "(+N packets)", str(error.value))


# --- what it says ------------------------------------------------------------------------------


def test_a_drop_by_a_rule(guarded: Net) -> None:
    """The rule that dropped is named, with the chains that led to it."""
    client, _, server = guarded
    assert complaint(expect_accepted, client, server, "tcp/22", timeout=SHORT) == (
        "expected tcp/22 from client (192.0.2.10) to server (10.77.0.10) to be accepted, "
        "but it was dropped (no answer within 0.2 s)\n"
        "  router: filter:FORWARD -> OUTSIDE rule 2: -p tcp -m tcp --dport 22 -j DROP"
        "   (+1 packet)   <- decided\n"
        "  server: the packet did not arrive"
    )


def test_a_drop_by_a_policy(guarded: Net) -> None:
    """Where no rule decided, the policy that did is named; the address may be given as such."""
    said = complaint(expect_accepted, guarded.client, "10.77.0.10", "udp/53", timeout=SHORT)
    assert said == (
        "expected udp/53 from client (192.0.2.10) to server (10.77.0.10) to be accepted, "
        "but it was dropped (no answer within 0.2 s)\n"
        "  router: filter:FORWARD rule 2: -i wan0 -j OUTSIDE   (+1 packet)\n"
        "          filter:FORWARD policy DROP   (+1 packet)   <- decided\n"
        "  server: the packet did not arrive"
    )


def test_a_rejection(guarded: Net) -> None:
    """A rejection names its kind, who sent it where that can be told, and the rule."""
    client, _, server = guarded
    assert complaint(expect_accepted, client, server, "tcp/25") == (
        "expected tcp/25 from client (192.0.2.10) to server (10.77.0.10) to be accepted, "
        "but it was rejected (tcp-reset)\n"
        "  router: filter:FORWARD -> OUTSIDE rule 3: -p tcp -m tcp --dport 25"
        " -j REJECT --reject-with tcp-reset   (+1 packet)   <- decided\n"
        "  server: the packet did not arrive"
    )
    said = complaint(expect_dropped, client, server, "udp/514", source="192.0.2.66")
    assert said == (
        "expected udp/514 from client (192.0.2.66) to server (10.77.0.10) to be dropped, "
        "but it was rejected (icmp-port-unreachable from router (192.0.2.1))\n"
        "  router: filter:FORWARD -> OUTSIDE rule 4: -p udp -m udp --dport 514"
        " -j REJECT --reject-with icmp-port-unreachable   (+1 packet)   <- decided\n"
        "  server: the packet did not arrive"
    )


def test_another_rejection_than_expected(guarded: Net) -> None:
    """The right verdict for the wrong reason is not what was expected."""
    said = complaint(
        expect_rejected, guarded.client, guarded.server, "tcp/25", reason="icmp-host-prohibited"
    )
    assert said.splitlines()[0] == (
        "expected tcp/25 from client (192.0.2.10) to server (10.77.0.10) to be rejected with "
        "icmp-host-prohibited, but it was rejected (tcp-reset)"
    )


def test_a_hole(guarded: Net, ruleset: RulesetLoader) -> None:
    """What got through where a drop was expected: the rule that let it, on every host."""
    client, _, server = guarded
    ruleset(server, "*filter\n:INPUT DROP\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n")
    assert complaint(expect_dropped, client, server, "http") == (
        "expected http from client (192.0.2.10) to server (10.77.0.10) to be dropped, "
        "but it was accepted\n"
        "  router: filter:FORWARD rule 1: -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        "   (+N packets)\n"
        "          filter:FORWARD -> OUTSIDE rule 1: -p tcp -m multiport --dports 80,8888"
        " -j ACCEPT   (+1 packet)   <- decided\n"
        "  server: filter:INPUT rule 1: -p tcp -j ACCEPT   (+N packets)   <- decided"
    )


def test_a_drop_on_the_sender(net: Net, ruleset: RulesetLoader) -> None:
    """A drop in OUTPUT is told as such: the application gets EPERM, or TCP no answer."""
    client, _, server = net
    ruleset(client, "*filter\n-A OUTPUT -p udp -j DROP\n-A OUTPUT -p tcp -j DROP\nCOMMIT\n")
    start = "expected {} from client (192.0.2.10) to server (10.77.0.10) to be accepted, but "
    silence = "\n  router: the packet did not arrive\n  server: the packet did not arrive"
    assert complaint(expect_accepted, client, server, "udp/53") == (
        start.format("udp/53") + "it was dropped (client did not let it out: EPERM)\n"
        "  client: filter:OUTPUT rule 1: -p udp -j DROP   (+1 packet)   <- decided" + silence
    )
    assert complaint(expect_accepted, client, server, "tcp/22", timeout=SHORT) == (
        start.format("tcp/22") + "it was dropped (no answer within 0.2 s)\n"
        "  client: filter:OUTPUT rule 2: -p tcp -j DROP   (+1 packet)   <- decided" + silence
    )


def test_nothing_listens(guarded: Net) -> None:
    """A reset of the addressee's own is told from a firewall's, and rejects nothing."""
    client, _, server = guarded
    told = (
        "but server itself refused it (tcp-reset)\n"
        "  router: filter:FORWARD rule 1: -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        "   (+1 packet)\n"
        "          filter:FORWARD -> OUTSIDE rule 1: -p tcp -m multiport --dports 80,8888"
        " -j ACCEPT   (+1 packet)\n"
        "  server: the packet arrived, and nothing listens on tcp/8888; no firewall refused it"
    )
    for expect in (expect_accepted, expect_rejected, expect_dropped):
        said = complaint(expect, client, server, "tcp/8888")
        assert said.partition(", ")[2] == told


def test_the_answer_is_dropped(net: Net, ruleset: RulesetLoader) -> None:
    """Without a rule for replies: the packet got there, and its answer met the policy."""
    client, router, server = net
    ruleset(router, "*filter\n:FORWARD DROP\n-A FORWARD -i wan0 -j ACCEPT\nCOMMIT\n")
    trail = (
        "\n  router: filter:FORWARD rule 1: -i wan0 -j ACCEPT   (+1 packet)\n"
        "          filter:FORWARD policy DROP   (+1 packet)   <- dropped the answer\n"
        "  server: the packet arrived; no rules there"
    )
    for what in ("icmp", "udp/53", "tcp/22"):
        start = f"expected {what} from client (192.0.2.10) to server (10.77.0.10) to be "
        said = complaint(expect_accepted, client, server, what, timeout=SHORT)
        late = "(+N packets)"  # the server tries again to answer the attempt before
        assert said.replace(late, "(+1 packet)") == (
            f"{start}accepted, but it was dropped (no answer within 0.2 s){trail}"
        )
        # To its sender this is a drop, and yet the firewall has a hole.
        said = complaint(expect_dropped, client, server, what, timeout=SHORT)
        assert said.replace(late, "(+1 packet)") == (
            f"{start}dropped, but it arrived at server (no answer within 0.2 s){trail}"
        )


@pytest.mark.parametrize("host", ["client", "router", "server"])
def test_ipv6_without_neighbour_discovery(host: str, net: Net, ruleset: RulesetLoader) -> None:
    """Whoever drops neighbour discovery is named: nothing else is seen of the packet."""
    ruleset(getattr(net, host), "*filter\n:INPUT DROP\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n", 6)
    said = complaint(expect_accepted, net.client, net.server, "tcp/22", family=6, timeout=SHORT)
    before, policy, after = said.partition("filter:INPUT policy DROP   (+1 packet)   <- ")
    assert policy
    assert after.startswith("dropped neighbour discovery, without which nothing comes")
    assert re.findall(r"^  (\w+): ", before, re.MULTILINE)[-1] == host


def test_a_forwarded_port(net: Net, ruleset: RulesetLoader) -> None:
    """A packet to the router that nat sends on is followed to where it goes, in both families."""
    client, router, _ = net
    for family, inside in ((4, "10.77.0.10"), (6, "[fd77::10]")):
        text = (
            f"*nat\n-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination {inside}:80\n"
            "COMMIT\n*filter\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n"
        )
        ruleset(router, text, 4 if family == 4 else 6)
        said = complaint(expect_accepted, client, router, "tcp/8080", family=family, timeout=SHORT)
        assert said.splitlines()[1:] == [
            "  router: nat:PREROUTING rule 1: -p tcp -m tcp --dport 8080"
            f" -j DNAT --to-destination {inside}:80   (+1 packet)",
            "          filter:FORWARD rule 1: -p tcp -m tcp --dport 80 -j DROP"
            "   (+1 packet)   <- decided",
            "  server: the packet did not arrive",
        ]


def test_who_the_server_saw(net: Net, ruleset: RulesetLoader) -> None:
    """An answer that came through source nat says so."""
    text = "*nat\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n"
    ruleset(net.router, text)
    said = complaint(expect_dropped, net.server, net.client, "http")
    assert "but it was accepted, seen as 192.0.2.1\n" in said
    assert "nat:POSTROUTING rule 1: -o wan0 -j MASQUERADE   (+1 packet)\n" in said


def test_a_queue_without_a_program(net: Net, ruleset: RulesetLoader) -> None:
    """What a queue swallowed is told where no rule dropped it."""
    ruleset(net.router, "*mangle\n-A FORWARD -p udp -j NFQUEUE --queue-num 7\nCOMMIT\n")
    said = complaint(expect_accepted, net.client, net.server, "dns", timeout=SHORT)
    assert said.splitlines()[1:] == [
        "  router: mangle:FORWARD rule 1: -p udp -j NFQUEUE --queue-num 7   (+1 packet)"
        "   <- queued, and no program let it go on",
        "  server: the packet did not arrive",
    ]


def test_no_route(lab: LabMaker) -> None:
    """No firewall is to blame where the sender or the router has no route, or does not forward."""
    made = lab()
    client, router = made.host("client"), made.host("router", forward=True)
    stub = made.host("stub")
    made.link(client.port("eth0", "192.0.2.10/24"), router.port("wan0", "192.0.2.1/24"))
    made.link(client.port("eth1", "198.51.100.10/24"), stub.port("eth0", "198.51.100.1/24"))
    client.route("203.0.113.0/25", via="192.0.2.1")
    client.route("203.0.113.128/25", via="198.51.100.1")
    start = "expected tcp/22 from client{} to be dropped, but "
    assert complaint(expect_dropped, client, "10.1.1.1", "tcp/22") == (
        start.format(" to 10.1.1.1")
        + "client cannot send it: there is no route to 10.1.1.1 (ENETUNREACH)"
    )
    assert complaint(expect_dropped, client, "203.0.113.1", "tcp/22") == (
        start.format(" (192.0.2.10) to 203.0.113.1")
        + "it was rejected (icmp-net-unreachable from router (192.0.2.1))\n"
        "  router: the packet arrived, but router has no route for it"
    )
    said = complaint(expect_accepted, client, "203.0.113.129", "tcp/22", timeout=SHORT)
    assert said.splitlines()[1:] == [
        "  stub: the packet arrived, but stub does not forward (sysctl net.ipv4.ip_forward)"
    ]


def test_a_forged_source_and_the_reverse_path_filter(net: Net) -> None:
    """What the kernel's own filter dropped before any rule is told."""
    net.router.run(Path("/proc/sys/net/ipv4/conf/wan0/rp_filter").write_text, "1")
    said = complaint(
        expect_accepted, net.client, net.server, "udp/53", source="10.77.0.66", timeout=SHORT
    )
    assert said.splitlines() == [
        "expected udp/53 from client (10.77.0.66) to server (10.77.0.10) to be accepted, "
        "but it was dropped (no answer within 0.2 s)",
        "  router: dropped by the reverse path filter (sysctl rp_filter)",
        "  server: the packet did not arrive",
    ]


def test_a_host_with_itself(lab: LabMaker, ruleset: RulesetLoader) -> None:
    """Loopback traffic leaves by OUTPUT and comes back by INPUT of one host."""
    host = lab().host("host")
    host.serve(tcp=[80, 81])
    ruleset(host, "*filter\n-A INPUT -p tcp --dport 81 -j DROP\nCOMMIT\n")
    expect_accepted(host, host, "tcp/80")
    expect_accepted(host, host, "icmp", family=6)
    expect_dropped(host, host, "tcp/81")
    assert complaint(expect_accepted, host, host, "tcp/81", timeout=SHORT) == (
        "expected tcp/81 from host (127.0.0.1) to host (127.0.0.1) to be accepted, "
        "but it was dropped (no answer within 0.2 s)\n"
        "  host: filter:OUTPUT policy ACCEPT   (+1 packet)\n"
        "  host: filter:INPUT rule 1: -p tcp -m tcp --dport 81 -j DROP   (+1 packet)   <- decided"
    )
    said = complaint(expect_rejected, host, host, "udp/82", family=6)
    assert said.splitlines()[1:] == [
        "  host: the packet arrived, and nothing listens on udp/82; no firewall refused it"
    ]


# --- what comes as expected --------------------------------------------------------------------


def test_what_comes_as_expected(guarded: Net, ruleset: RulesetLoader) -> None:
    """Expectations that are met return the answer, in both families and directions."""
    client, router, server = guarded
    assert expect_accepted(client, server, "tcp/80").verdict is Verdict.ACCEPTED
    assert expect_dropped(client, server, "tcp/22").verdict is Verdict.DROPPED
    assert expect_rejected(client, server, "tcp/25").reason == "tcp-reset"
    answer = expect_rejected(client, server, "udp/514", reason="icmp-port-unreachable")
    assert answer.sender == "192.0.2.1"
    expect_accepted(client, router, "icmp")
    expect_accepted(server, router, "dns")
    inside = "-A INPUT -i lan0 -j ACCEPT\n-A INPUT -p ipv6-icmp --icmpv6-type 135 -j ACCEPT\n"
    ruleset(router, f"*filter\n:INPUT DROP\n{inside}COMMIT\n", 6)
    expect_accepted(client, server, "icmp", family=6)
    expect_accepted(server, router, "tcp/22", family=6)
    expect_dropped(client, router, "icmp", family=6)
    expect_dropped(client, "fd77::1", "tcp/22")


def test_it_takes_milliseconds(guarded: Net) -> None:
    """An expectation that is met costs no fork and no start of anything."""
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        expect_accepted(guarded.client, guarded.server, "tcp/80")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.010


def test_connect_expects_nothing(guarded: Net) -> None:
    """Connect returns whatever came; what cannot be sent at all is bad input."""
    client, router, server = guarded
    assert connect(client, server, "tcp/22", timeout=SHORT).verdict is Verdict.DROPPED
    assert connect(client, server, "tcp/25").reason == "tcp-reset"
    assert connect(client, server, "http", source="192.0.2.66").seen_as == "192.0.2.66"
    with pytest.raises(BadInput, match="router cannot send icmp: there is no route"):
        connect(router, "10.1.1.1", "icmp")
    with pytest.raises(BadInput, match='"server" is no address'):
        connect(client, "server", "icmp")
    with pytest.raises(BadInput, match="fd77::10 is no address of IPv4"):
        connect(client, "fd77::10", "icmp", family=4)
    with pytest.raises(BadInput, match="not of one family"):
        connect(client, "fd77::10", "icmp", source="192.0.2.66")


def test_what_is_sent_is_received(net: Net, ruleset: RulesetLoader) -> None:
    """A listener sees payload and addresses as they arrive, behind source nat too."""
    client, router, server = net
    with receive(server, "udp/9999") as inbox:
        send(client, server, "udp/9999", b"one")
        (first,) = inbox.wait()
        assert (first.payload, first.source) == (b"one", "192.0.2.10")
        assert (first.destination, first.destination_port) == ("10.77.0.10", 9999)
        send(client, server, "udp/9999", b"two", family=6)
        assert inbox.wait(2)[1][:2] == (b"two", "2001:db8:1::10")
        assert inbox.wait(3, timeout=0.05) == inbox.messages
    ruleset(router, "*nat\n-A POSTROUTING -o wan0 -j MASQUERADE\nCOMMIT\n")
    with receive(client, "tcp/9999") as inbox:
        send(server, client, "tcp/9999", b"x" * 100_000)
        (message,) = inbox.wait()
        assert (len(message.payload), message.source) == (100_000, "192.0.2.1")
    with pytest.raises(BadInput, match=r"cannot receive udp/53 in server: Address already in use"):
        receive(server, "udp/53").__enter__()


def test_a_dropped_payload_is_no_error(net: Net, ruleset: RulesetLoader) -> None:
    """Send does not tell what became of it; the listener does."""
    client, router, server = net
    ruleset(router, "*filter\n:FORWARD DROP\nCOMMIT\n")
    ruleset(client, "*filter\n-A OUTPUT -p udp --dport 9998 -j DROP\nCOMMIT\n")
    with receive(server, "udp/9999") as inbox:
        send(client, server, "udp/9999")
        send(client, server, "udp/9998")
        send(client, server, "tcp/9999", timeout=0.1)
        assert inbox.wait(timeout=0.05) == []


def test_labs_that_others_made(ruleset: RulesetLoader) -> None:
    """The helpers work with any lab, and leave nothing behind when it is gone."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text().split()
    with Lab("mine") as made:
        host = made.host("host")
        ruleset(host, "*filter\n-A INPUT -p icmp -j DROP\nCOMMIT\n")
        expect_dropped(host, "127.0.0.1", "icmp")
        assert len(children.read_text().split()) == len(before) + 1
    with Lab("other") as made:
        host = made.host("host")
        expect_accepted(host, "127.0.0.1", "icmp")
        assert len(children.read_text().split()) == len(before) + 1
    assert namespaces.names(f"nfctl-{made.id}-") == []


# --- rules -------------------------------------------------------------------------------------


def test_rules_come_back_as_the_kernel_has_them(
    net: Net, ruleset: RulesetLoader, tmp_path: Path
) -> None:
    """Ruleset returns what was loaded, from text and from files of either family."""
    loaded = ruleset(net.router, RULES)
    assert loaded.tables["filter"].chains["OUTSIDE"].rules[1].spec.endswith("--dport 22 -j DROP")
    place = tmp_path / "rules.v6"
    place.write_text("*filter\n-A INPUT -s fd77::/64 -j DROP\nCOMMIT\n")
    assert ruleset(net.router, place).family == 6
    oracle = net.router.call(["ip6tables-legacy", "-S", "INPUT"])
    assert oracle == "-P INPUT ACCEPT\n-A INPUT -s fd77::/64 -j DROP\n"


def test_a_mistake_changes_nothing(net: Net, ruleset: RulesetLoader, tmp_path: Path) -> None:
    """A mistake fails with file, line and column and a caret; the rules stay what they were."""
    ruleset(net.router, RULES)
    place = tmp_path / "rules"
    place.write_text(RULES.replace("--dport 25", "--dport smpt"))
    with pytest.raises(pytest.fail.Exception) as error:
        ruleset(net.router, place)
    assert str(error.value).splitlines() == [
        f"{place}:10:26: invalid port/service `smpt' specified",
        "  -A OUTSIDE -p tcp -m tcp --dport smpt -j REJECT --reject-with tcp-reset",
        "                           ^",
    ]
    assert "--dport 25 " in net.router.call(["iptables-legacy", "-S"])
    with pytest.raises(pytest.fail.Exception, match=r"nowhere cannot be read: No such file"):
        ruleset(net.router, Path("nowhere"))


# --- whole tests -------------------------------------------------------------------------------


def test_the_readmes_example(pytester: pytest.Pytester) -> None:
    """The example passes as it is; with a hole in its rules it fails, at the test's own line."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from nfctl.testing .*?)```", readme, re.DOTALL)
    pytester.makepyfile(example)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pytester.makepyfile(example.replace("--dport 80", "--dport 22"))
    done = pytester.runpytest_subprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            '>       expect_accepted(net["client"], net["server"], "tcp/80")',
            "E       AssertionError: expected tcp/80 from client (192.0.2.10) to server"
            " (10.77.0.10) to be accepted, but it was dropped (no answer within 2 s)",
            "E         router: filter:FORWARD policy DROP   (+2 packets)   <- decided",
            "E         server: the packet did not arrive",
        ]
    )
    assert "nfctl/testing/" not in done.stdout.str()


def test_every_test_has_its_own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules, files below /run and the lock of a test are not there in the next; nothing stays."""
    lock = pytester.path / "lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    pytester.makepyfile(
        """
        import os
        from pathlib import Path
        import pytest

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it(netns, lab, ruleset, turn):
            other = lab().host("netns")
            assert netns.run(os.listdir, "/run") == other.run(os.listdir, "/run") == []
            for host in (netns, other):
                with Path("names").open("a") as file:
                    print(host.namespace, file=file)
                before = host.call(["iptables-legacy-save"])
                assert before == ""
                ruleset(host, "*filter\\n-A INPUT -j DROP\\nCOMMIT\\n")
                assert "-A INPUT -j DROP" in host.call(["iptables-legacy-save"])
                assert host.run(os.listdir, "/run") == ["xtables.lock"]
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=2)
    used = (pytester.path / "names").read_text().split()
    assert len(set(used)) == 4
    assert set(used).isdisjoint(namespaces.names())
    assert not lock.exists()


def test_topologies(pytester: pytest.Pytester) -> None:
    """A topology is one of nfctl's own, a file or an object; mistakes fail, with their place."""
    good = """
        version: 1
        name: small
        hosts:
          one:
            interfaces: {eth0: {link: l, addresses: [192.0.2.1/24]}}
          two:
            interfaces: {eth0: {link: l, addresses: [192.0.2.2/24]}}
            services: {tcp: 80}
            rules: {ipv4: {file: two.v4}}
        links: {l: {}}
    """
    (pytester.path / "two.v4").write_text("*filter\n-A INPUT -p tcp --dport 81 -j DROP\nCOMMIT\n")
    (pytester.path / "good.yaml").write_text(textwrap.dedent(good))
    (pytester.path / "bad.yaml").write_text(textwrap.dedent(good).replace("192.0.2.2/24", "x"))
    pytester.makepyfile(
        """
        from pathlib import Path
        from nfctl.lab.topology import Topology
        from nfctl.testing import expect_accepted, expect_dropped

        def test_several(lab):
            for word in ("./good.yaml", Path("good.yaml"), Topology.load("./good.yaml")):
                net = lab(word)
                expect_accepted(net["one"], net["two"], "tcp/80")
                expect_dropped(net["one"], net["two"], "tcp/81")

        def test_mistake(lab):
            lab("./bad.yaml")

        def test_unknown(lab):
            lab("nosuchtopology")
        """
    )
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(["E *Failed: *bad.yaml:8:*", "E *Failed: *nosuchtopology*"])


def test_a_mistake_in_a_tests_own_text(pytester: pytest.Pytester) -> None:
    """Of rules that stand in the test itself, the line in the test is told."""
    pytester.makepyfile(
        test_mine='''
        RULES = """*filter
        -A INPUT -p tcp --dport 80x -j DROP
        COMMIT
        """

        def test_it(netns, ruleset):
            ruleset(netns, RULES)

        def test_one_line(netns, ruleset):
            ruleset(netns, "*filter\\n-A INPUT -j NOWHERE\\nCOMMIT\\n")
        '''
    )
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(failed=2)
    done.stdout.fnmatch_lines(
        [
            ">       ruleset(netns, RULES)",
            "E       Failed: test_mine.py:2:17: invalid port/service `80x' specified",
            "E         -A INPUT -p tcp --dport 80x -j DROP",
            "E       Failed: <rules>:2:*NOWHERE*",
        ]
    )
    assert "In the child" not in done.stdout.str()


# --- skips -------------------------------------------------------------------------------------

USERS = """
    def test_netns(netns):
        pass

    def test_lab(lab):
        lab()

    def test_neither():
        pass
"""
AS_ROOT = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root"


def test_without_privileges_tests_are_skipped(pytester: pytest.Pytester) -> None:
    """Without the capabilities the fixtures skip and say what is needed, or fail if told so."""
    drop = shutil.which("setpriv")
    if drop is None:
        pytest.skip("needs setpriv (util-linux), to drop capabilities")
    pytester.makepyfile(USERS)
    without = [drop, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-m", "pytest"]
    done = pytester.run(*without, "-rs")
    done.assert_outcomes(passed=1, skipped=2)
    done.stdout.fnmatch_lines(["SKIPPED*", f"SKIPPED*: {AS_ROOT}"])
    done = pytester.run(*without, "--nfctl-no-skip")
    done.assert_outcomes(passed=1, failed=1, errors=1)
    done.stdout.fnmatch_lines([f"*{AS_ROOT} (and --nfctl-no-skip was given)"])


def test_a_table_that_the_kernel_lacks(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules for a table that cannot be opened skip the test, naming the kernel's option."""
    from nfctl.kernel.config import KernelConfig
    from nfctl.testing import labs, needs

    options = dict.fromkeys(
        ["NETFILTER", "NETFILTER_XTABLES", "NETFILTER_XTABLES_LEGACY", "IP_NF_IPTABLES_LEGACY"], "y"
    )
    monkeypatch.setattr(needs, "config", lambda: KernelConfig("6.18", "test", options))
    monkeypatch.setattr(labs, "_load", refuse)
    pytester.makepyfile(
        r"""
        def test_it(netns, ruleset):
            ruleset(netns, "*security\nCOMMIT\n")
        """
    )
    done = pytester.runpytest_inprocess("-rs")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["SKIPPED*: needs CONFIG_IP_NF_SECURITY"])
    done = pytester.runpytest_inprocess("--nfctl-no-skip")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["needs CONFIG_IP_NF_SECURITY (and --nfctl-no-skip was given)"])


def refuse(_text: str, _family: int, _source: str) -> None:
    """Answer as nfctl.restore does on a kernel without the table."""
    from nfctl.kernel.blob import cannot_open

    raise cannot_open(4, "security", 2, "Table does not exist (do you need to insmod?)")
