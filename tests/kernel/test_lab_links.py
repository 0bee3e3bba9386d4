"""Labs from topologies: links, bridges, shapes, routes, sysctls, names, rules and servers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.errors import BadInput, NfctlError, Unsupported, Where
from nfctl.lab import Host, Lab, Verdict, fork, namespaces, records, traffic
from nfctl.lab.topology import (
    HostPlan,
    InterfacePlan,
    LinkPlan,
    RulesPlan,
    ServicesPlan,
    Shape,
    Topology,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
]


def host(name: str, *interfaces: InterfacePlan, **settings: Any) -> HostPlan:
    return HostPlan(name, interfaces, **settings)


def port(name: str, link: str, *addresses: str, bridge: bool = False) -> InterfacePlan:
    return InterfacePlan(name, link, addresses, bridge)


def topology(name: str, *hosts: HostPlan, shape: Shape | None = None, **names: Any) -> Topology:
    """Make a topology of hosts, with the links that their interfaces name."""
    ends: dict[str, list[tuple[str, str]]] = {}
    bridges: dict[str, str] = {}
    for each in hosts:
        for interface in each.interfaces:
            ends.setdefault(interface.link, []).append((each.name, interface.name))
            if interface.bridge:
                bridges[interface.link] = each.name
    links = {
        link: LinkPlan(
            link,
            tuple(found),
            bridges.get(link, None if len(found) == 2 else ""),
            shape or Shape(),
        )
        for link, found in ends.items()
    }
    return Topology(name, {each.name: each for each in hosts}, links, names=names)


def router(name: str = "router", **settings: Any) -> Topology:
    """Make a client, a router and a server; ``settings`` are the server's."""
    return topology(
        name,
        host(
            "client",
            port("eth0", "wan", "192.0.2.10/24", "2001:db8:1::10/64"),
            routes=(("default", "192.0.2.1"), ("default", "2001:db8:1::1")),
        ),
        host(
            "router",
            port("wan0", "wan", "192.0.2.1/24", "2001:db8:1::1/64"),
            port("lan0", "lan", "10.77.0.1/24", "fd77::1/64"),
            forward=True,
        ),
        host(
            "server",
            port("eth0", "lan", "10.77.0.10/24", "fd77::10/64"),
            **{"routes": (("default", "10.77.0.1"), ("default", "fd77::1"))} | settings,
        ),
    )


def switched(*names: str, bridge: str = "") -> Topology:
    """Make hosts on one bridge, which is one of them or a switch."""
    hosts = [
        host(
            name,
            port(
                "br0" if name == bridge else "eth0",
                "lan",
                f"192.0.2.{number}/24",
                f"2001:db8::{number}/64",
                bridge=name == bridge,
            ),
        )
        for number, name in enumerate(names, 1)
    ]
    return topology("switched", *hosts)


def links(host: Host) -> dict[str, dict[str, Any]]:
    """Return a host's interfaces, as ip(8) sees them."""
    found = json.loads(host.call(["ip", "-d", "-j", "link"]))
    return {link["ifname"]: link for link in found}


def answers(host: Host, address: str) -> bool:
    """Whether the very first packet is answered, that is: none was lost while links came up."""
    return host.run(traffic.ping, address).verdict is Verdict.ACCEPTED


def both(number: int) -> list[str]:
    return [f"192.0.2.{number}", *([f"2001:db8::{number}"] if namespaces.has_ipv6() else [])]


# --- routers and bridges --------------------------------------------------------------------------


def test_a_router_forwards_in_both_families() -> None:
    """The first packet of each family reaches the server; ip(8) sees the routes as planned."""
    with Lab("tests") as lab:
        lab.build(router())
        for address in ["10.77.0.10", *(["fd77::10"] if namespaces.has_ipv6() else [])]:
            assert answers(lab["client"], address)
        assert "default via 192.0.2.1 dev eth0" in lab["client"].call(["ip", "route"])
        assert lab["router"].call(["ip", "route", "show", "default"]) == ""
        if namespaces.has_ipv6():
            assert "default via fd77::1 dev eth0" in lab["server"].call(["ip", "-6", "route"])


def test_a_switch_joins_three_hosts() -> None:
    """Every host behind a switch reaches every other at once, in both families."""
    names = ("one", "two", "three")
    with Lab("tests") as lab:
        lab.build(switched(*names))
        (switch,) = set(namespaces.names(f"nfctl-{lab.id}-")) - {
            each.namespace for each in lab.hosts.values()
        }
        for name in names:
            for number, other in enumerate(names, 1):
                if other != name:
                    assert all(answers(lab[name], address) for address in both(number))
        inside = subprocess.run(
            ["ip", "-n", switch, "-d", "-j", "link"], capture_output=True, text=True, check=True
        )
        found = {link["ifname"]: link for link in json.loads(inside.stdout)}
        assert set(found) == {"lo", "lan", *names}
        bridge = found["lan"]["linkinfo"]["info_data"]
        assert (bridge["stp_state"], bridge["forward_delay"], bridge["mcast_snooping"]) == (0, 0, 0)
        assert all(found[name]["master"] == "lan" for name in names)
        assert found["lan"]["operstate"] == "UP"
    assert namespaces.names(f"nfctl-{lab.id}-") == []


def test_a_bridge_in_a_host() -> None:
    """Two hosts talk through a third that is their bridge, and with its own address."""
    with Lab("tests") as lab:
        lab.build(switched("wall", "one", "two", bridge="wall"))
        assert len(namespaces.names(f"nfctl-{lab.id}-")) == 3
        for address in [*both(1), *both(3)]:
            assert answers(lab["one"], address)
        assert answers(lab["wall"], "192.0.2.2")
        found = links(lab["wall"])
        assert found["one"]["master"] == found["two"]["master"] == "br0"


def test_ports_of_a_bridge_have_names_of_their_own() -> None:
    """Ports are named after their hosts, in 15 bytes, and no two are the same, nor reserved."""
    long = ("averylonghostname1", "averylonghostname2", "br0", "lo", "all")
    with Lab("tests") as lab:
        lab.build(switched("wall", *long, bridge="wall"))
        ports = {name for name, link in links(lab["wall"]).items() if link.get("master") == "br0"}
        assert ports == {"averylonghostna", "averylonghostn1", "br01", "lo1", "all1"}


def test_an_interface_comes_up_at_once() -> None:
    """Ten links in a row are up in less time than the kernel takes for one carrier seen late."""
    with Lab("tests") as lab:
        one, two = lab.host("one"), lab.host("two")
        started = time.monotonic()
        for number in range(10):
            lab.link(one.port(f"eth{number}"), two.port(f"eth{number}"))
        assert time.monotonic() - started < 0.9


def test_the_machine_is_not_touched(netns: Namespace) -> None:
    """Interfaces, routes and sysctls of the machine are the same with a lab and after it."""

    def look() -> list[str]:
        every = [
            ["ip", "-j", "addr"],
            ["ip", "-j", "route", "show", "table", "all"],
            ["ip", "-6", "-j", "route", "show", "table", "all"],
            ["sysctl", "-a", "-e", "--pattern", r"^net\."],
        ]
        found = [
            subprocess.run(argv, capture_output=True, text=True, check=False) for argv in every
        ]
        # Counters and caches go up and down by themselves.
        return [
            "\n".join(line for line in done.stdout.splitlines() if "count" not in line)
            for done in found
        ]

    def inside() -> tuple[list[str], list[str], list[str]]:
        before = look()
        with Lab("tests") as lab:
            lab.build(router(sysctls={"net.ipv4.ip_default_ttl": "77"}))
            answers(lab["client"], "10.77.0.10")
            during = look()
        return before, during, look()

    before, during, after = netns.python(inside)
    assert before == during == after
    assert "ip_default_ttl = 64" in before[3]


# --- shapes ---------------------------------------------------------------------------------------


def has_netem() -> bool:
    """Whether tc(8) can add a netem qdisc, in a namespace of its own."""
    argv = ["unshare", "-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def qdisc(host: Host, interface: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(
        host.call(["tc", "-s", "-j", "qdisc", "show", "dev", interface, "root"])
    )
    return found[0]


def transfer(sender: Host, receiver: Host, address: str, size: int) -> float:
    """Send ``size`` bytes over TCP and return the seconds until all have arrived."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def listen() -> None:
        with socket.create_server((address, 5000)) as listener:
            socket.send_fds(theirs, [b"+"], [listener.fileno()])

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 16):
                pass

    def send() -> float:
        with socket.create_connection((address, 5000), timeout=20) as connection:
            started = time.monotonic()
            connection.sendall(bytes(size))
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
            return time.monotonic() - started

    with ours, theirs:
        receiver.run(listen)
        listener = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
    with listener:
        child = fork.Child(receive)
    try:
        return sender.run(send)
    finally:
        child.kill()


def pair(shape: Shape) -> Topology:
    return topology(
        "shaped",
        host("one", port("eth0", "wan", "192.0.2.1/24")),
        host("two", port("eth0", "wan", "192.0.2.2/24")),
        shape=shape,
    )


def test_a_rate_limits_both_directions() -> None:
    """8 Mbit/s carry 400 kB in some 0.4 s each way, and never in half of that."""
    rate, size = 8_000_000, 400_000
    with Lab("tests") as lab:
        lab.build(pair(Shape(rate=rate)))
        one, two = lab["one"], lab["two"]
        for sender, receiver, address in ((one, two, "192.0.2.2"), (two, one, "192.0.2.1")):
            assert f"rate {rate // 1_000_000}Mbit" in sender.call(["tc", "qdisc", "show"])
            assert qdisc(sender, "eth0")["kind"] in {"netem", "tbf"}
            seconds = transfer(sender, receiver, address, size)
            # What may be sent at once takes no time; a busy machine takes more.
            assert 0.5 < seconds / (size * 8 / rate) < 10


def test_a_link_without_a_shape_has_no_queue() -> None:
    """A link that is not shaped keeps what veth has, and is much quicker than the one above."""
    with Lab("tests") as lab:
        lab.build(pair(Shape()))
        assert qdisc(lab["one"], "eth0")["kind"] == "noqueue"
        assert transfer(lab["one"], lab["two"], "192.0.2.2", 400_000) < 0.15


@pytest.mark.skipif("not has_netem()", reason="needs netem (CONFIG_NET_SCH_NETEM)")
def test_delay_jitter_and_loss() -> None:
    """tc(8) reads back delay, jitter, loss and rate as planned; an answer takes two delays."""
    shape = Shape(delay=0.05, jitter=0.002, loss=0.005, rate=10_000_000)
    with Lab("tests") as lab:
        lab.build(pair(shape))
        for each in lab.hosts.values():
            seen = qdisc(each, "eth0")
            assert seen["kind"] == "netem"
            options = seen["options"]
            assert options["delay"]["delay"] == pytest.approx(0.05, abs=1e-6)
            assert options["delay"]["jitter"] == pytest.approx(0.002, abs=1e-6)
            assert options["loss-random"]["loss"] == pytest.approx(0.005, abs=1e-6)
            assert options["rate"]["rate"] == 10_000_000 // 8
    with Lab("tests") as lab:
        lab.build(pair(Shape(delay=0.05)))
        lab["one"].run(traffic.ping, "192.0.2.2")  # and the neighbour is known
        answer = lab["one"].run(traffic.ping, "192.0.2.2")
        assert 0.1 <= answer.seconds < 1


@pytest.mark.skipif("not has_netem()", reason="needs netem (CONFIG_NET_SCH_NETEM)")
def test_loss_loses() -> None:
    """With a loss of everything nothing arrives."""
    with Lab("tests") as lab:
        lab.build(pair(Shape(loss=1.0)))
        assert not answers(lab["one"], "192.0.2.2")


@pytest.mark.skipif("has_netem()", reason="needs a kernel without netem")
def test_a_missing_netem_is_named() -> None:
    """Where the kernel has no netem the error says which module, and no link stays."""
    with Lab("tests") as lab:
        one, two = lab.host("one"), lab.host("two")
        with pytest.raises(Unsupported, match="CONFIG_NET_SCH_NETEM"):
            lab.link(one.port("eth0"), two.port("eth0"), Shape(delay=0.01))
        assert set(links(one)) == set(links(two)) == {"lo"}
        lab.link(one.port("eth0"), two.port("eth0"))


# --- what is wrong --------------------------------------------------------------------------------


def test_a_failed_link_leaves_none() -> None:
    """An interface that exists already, or a wrong address: the other end is not there either."""
    with Lab("tests") as lab:
        one, two = lab.host("one"), lab.host("two")
        lab.link(one.port("eth0"), two.port("eth0"))
        with pytest.raises(BadInput, match="making the link one:eth1 - two:eth0: File exists"):
            lab.link(one.port("eth1"), two.port("eth0"))
        with pytest.raises(BadInput, match=r"one:eth1: adding the address 192\.0\.2\.1/24"):
            lab.link(one.port("eth1", *["192.0.2.1/24"] * 2), two.port("eth1"))
        assert set(links(one)) == set(links(two)) == {"lo", "eth0"}
        lab.link(one.port("eth1", "192.0.2.1/24"), two.port("eth1", "192.0.2.2/24"))
        assert answers(one, "192.0.2.2")


RULES = Where("policy.yaml", 10, 9)
WRONG: dict[str, tuple[Topology, str]] = {
    "an address that is none": (
        topology("wrong", host("one", port("eth0", "lan", "x"), port("eth1", "lan"))),
        "one:eth0: 'x' does not appear to be",
    ),
    "an interface twice": (
        topology("wrong", host("one", port("eth0", "lan"), port("lo", "lan"))),
        "making the link one:eth0 - one:lo: File exists",
    ),
    "a gateway that nobody can reach": (
        router(routes=(("192.0.2.0/24", "203.0.113.1"),)),
        "server: adding the route to 192.0.2.0/24 via 203.0.113.1: Nexthop has invalid gateway",
    ),
    "a prefix with bits of a host": (
        router(routes=(("198.51.100.1/24", "10.77.0.1"),)),
        "server: adding the route to 198.51.100.1/24 via 10.77.0.1: 198.51.100.1/24 has host bits",
    ),
    "a gateway of the other family": (
        router(routes=(("198.51.100.0/24", "fd77::1"),)),
        "of different families",
    ),
    "a sysctl that is none": (
        router(sysctls={"net.ipv4.conf.eth9.forwarding": "1"}),
        "server: there is no sysctl net.ipv4.conf.eth9.forwarding",
    ),
    "a value that is none": (
        router(sysctls={"net.ipv4.ip_forward": "x"}),
        'server: the kernel does not take "x" for the sysctl net.ipv4.ip_forward',
    ),
    "a sysctl of the machine": (router(sysctls={"kernel.panic": "1"}), "no sysctl of a host"),
    "a way out of the host's sysctls": (
        router(sysctls={"net/../kernel/panic": "1"}),
        "no sysctl of a host",
    ),
    "a rule that is none": (
        router(rules=(RulesPlan(4, "*filter\n-A INPUT -j NOWHERE\nCOMMIT\n", RULES),)),
        "policy.yaml:11",
    ),
    "a port twice": (router(services=ServicesPlan(tcp=(7,), http=(7,))), "7"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_topology_leaves_nothing(case: str) -> None:
    """What cannot be made is refused in words, and its lab is gone: namespaces, files, children."""
    plan, words = WRONG[case]
    with Lab("tests") as lab:
        with pytest.raises(NfctlError, match=re.escape(words)) as caught:
            lab.build(plan)
        assert caught.value.exit_code in {2, 3}
        assert namespaces.names(f"nfctl-{lab.id}-") == []
        assert [each for each in records.records() if each.lab == lab.id] == []
        with pytest.raises(BadInput, match="is not up"):
            lab.host("late")


def test_a_wrong_rule_is_found_in_its_file() -> None:
    """The place of an error is the topology's for rules that stand in it, or that of their file."""
    text = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport high -j ACCEPT\nCOMMIT\n"
    places = {
        RulesPlan(4, text, Where("net.yaml", 20, 9)): Where("net.yaml", 22),
        RulesPlan(4, text, Where("router.rules", 1, 1)): Where("router.rules", 3),
    }
    columns = []
    for plan, place in places.items():
        with Lab("tests") as lab, pytest.raises(NfctlError) as caught:
            lab.build(router(rules=(plan,)))
        where = caught.value.where
        assert where is not None
        assert where[:2] == place[:2]
        columns.append(where.column)
        line, caret = caught.value.excerpt.splitlines()
        assert line.strip() == text.splitlines()[2]
        assert line[caret.index("^") :] == line.strip()[where.column - plan.where.column :]
    assert columns[0] == columns[1] + 8


def test_a_host_is_found_by_name() -> None:
    """lab["name"] is the host, and a name that is none is refused with those that are."""
    with Lab("tests") as lab:
        one = lab.host("one")
        lab.host("two")
        assert lab["one"] is one
        with pytest.raises(BadInput, match=r'no host "three" \(there are one, two\)'):
            lab["three"]


# --- hosts ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("iptables-legacy-save") is None, reason="needs iptables-legacy")
def test_rules_are_loaded() -> None:
    """iptables-legacy-save finds the rules of both families in their host, and in no other."""
    text = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
    where = Where("net.yaml", 20, 9)
    rules = (RulesPlan(4, text, where), RulesPlan(6, text, where))
    with Lab("tests") as lab:
        lab.build(router(rules=rules))
        for save in ["iptables-legacy-save", "ip6tables-legacy-save"]:
            if "6" in save and not namespaces.has_ipv6():
                continue
            assert "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT" in lab["server"].call([save])
            assert "--dport 22" not in lab["client"].call([save])


@pytest.mark.skipif(shutil.which("iptables-legacy-save") is None, reason="needs iptables-legacy")
def test_a_policy_is_applied(tmp_path: Path) -> None:
    """A host's policy is in force in its host alone, and its history there knows it."""
    (tmp_path / "fw.yaml").write_text(
        "version: 1\ntables:\n  filter:\n    INPUT: {policy: drop, rules: [-i lo -j ACCEPT]}\n"
    )
    text = "name: x\nhosts:\n  one: {policy: fw.yaml}\n  two: {}\n"
    with Lab("tests") as lab:
        lab.build(Topology.parse(text, str(tmp_path / "x.yaml")))
        saved = lab["one"].call(["iptables-legacy-save"])
        assert ":INPUT DROP" in saved
        assert "-A INPUT -i lo -j ACCEPT" in saved
        assert "DROP" not in lab["two"].call(["iptables-legacy-save"])
        history = lab["one"].call([sys.executable, "-m", "nfctl", "history", "--json"])
        assert [entry["action"] for entry in json.loads(history)["entries"]] == ["apply"]


MISTAKEN = """\
name: one
hosts:
  one:
    interfaces: {eth0: {link: a}}
  two:
    interfaces: {eth0: {link: a}}
    rules:
"""
BLOCK = """\
      ipv4: |
        *filter
        -A INPUT -p tcp --dport smpt
        COMMIT
"""
QUOTED = r"""
      ipv4: "*filter\n-A INPUT -p tcp --dport smpt\nCOMMIT"
"""


@pytest.mark.parametrize(("rules", "place"), [(BLOCK, "10:25"), (QUOTED, "9:14")])
def test_a_mistake_in_rules_has_its_place(rules: str, place: str) -> None:
    """What only libxtables sees as wrong has its line, and its column, in the topology's file."""
    with Lab("tests") as lab, pytest.raises(BadInput, match="smpt") as caught:
        lab.build(Topology.parse(MISTAKEN + rules, "net.yaml"))
    assert str(caught.value.where) == f"net.yaml:{place}"
    assert "-A INPUT -p tcp --dport smpt" in caught.value.excerpt


def test_services_answer() -> None:
    """Servers of a topology answer to their host's name, until the lab is gone."""
    with Lab("tests") as lab:
        lab.build(router(services=ServicesPlan(tcp=(7,), http=(80,), udp=(53,))))
        for probe, number in ((traffic.tcp, 7), (traffic.http, 80), (traffic.udp, 53)):
            assert lab["client"].run(probe, "10.77.0.10", number).verdict is Verdict.ACCEPTED
    with Lab("tests") as lab:
        lab.build(router(services=ServicesPlan(tcp=(7,))), services=False)
        answer = lab["client"].run(traffic.tcp, "10.77.0.10", 7)
        assert answer.reason == "tcp-reset"


def test_sysctls_are_set() -> None:
    """Sysctls hold in their host alone, also those of an interface; a plan's wins over ours."""
    plan = {"net.ipv4.ip_default_ttl": "77", "net.ipv4.conf.eth0.forwarding": "1"}
    with Lab("tests") as lab:
        lab.build(router(sysctls=plan | {"net.ipv4.conf.all.rp_filter": "2"}))
        for name, value in (plan | {"net.ipv4.conf.all.rp_filter": "2"}).items():
            assert lab["server"].call(["sysctl", "-n", name]) == f"{value}\n"
        assert lab["client"].call(["sysctl", "-n", "net.ipv4.ip_default_ttl"]) == "64\n"
        assert lab["router"].call(["sysctl", "-n", "net.ipv4.conf.all.rp_filter"]) == "0\n"
        assert lab["router"].call(["sysctl", "-n", "net.ipv4.ip_forward"]) == "1\n"


def test_hosts_know_each_other_by_name() -> None:
    """Programs in a host find the lab's names in /etc/hosts; the machine's file is as it was."""
    before = Path("/etc/hosts").read_text()
    plan = router(resolver="10.77.0.10")
    plan = dataclasses.replace(plan, names={"www.example.test": ("10.77.0.10",)})
    with Lab("tests") as lab:
        lab.build(plan)
        client, server = lab["client"], lab["server"]
        assert client.run(socket.gethostbyname, "server") == "10.77.0.10"
        assert client.run(socket.gethostbyname, "server.lab") == "10.77.0.10"
        assert client.run(socket.gethostbyname, "www.example.test") == "10.77.0.10"
        assert client.run(socket.gethostbyname, "localhost") == "127.0.0.1"
        assert "fd77::10 server" in client.call(["cat", "/etc/hosts"]).splitlines()
        assert server.call(["cat", "/etc/resolv.conf"]) == "nameserver 10.77.0.10\n"
        assert client.call(["cat", "/etc/resolv.conf"]) == Path("/etc/resolv.conf").read_text()
        mode = "import os; os.setuid(65534); print(len(open('/etc/hosts').read()) > 0)"
        assert client.call([sys.executable, "-c", mode]) == "True\n"
    assert Path("/etc/hosts").read_text() == before


def test_a_resolver_where_the_file_is_a_link_into_run(netns: Namespace) -> None:
    """Where /etc/resolv.conf points into /run, as with systemd, a host sees its own there."""

    def inside() -> tuple[str, str]:
        directory = Path("/run/etc")
        shutil.copytree("/etc", directory, symlinks=True, ignore=_only("hosts", "nsswitch.conf"))
        (directory / "resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
        subprocess.run(["mount", "--bind", directory, "/etc"], check=True)
        with Lab("tests") as lab:
            lab.build(router(resolver="10.77.0.10"))
            return lab["server"].call(["cat", "/etc/resolv.conf"]), str(
                lab["client"].run(os.path.exists, "/etc/resolv.conf")
            )

    assert netns.python(inside) == ("nameserver 10.77.0.10\n", "False")


def _only(*names: str) -> Callable[[str, list[str]], list[str]]:
    return lambda _, found: [name for name in found if name not in names]


# --- pyroute2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "from pyroute2 import IPRoute; IPRoute().close()",
        "import pyroute2; pyroute2.netns.listnetns; pyroute2.NDB; pyroute2.__version__",
        "import pyroute2.ndb.main; pyroute2.IPRoute().close()",
        "from pyroute2.netlink.rtnl.tcmsg import tcmsg; from pyroute2.iproute import IPRoute",
        "import pyroute2; assert not hasattr(pyroute2, 'nowhere'); pyroute2.IPSet",
    ],
)
def test_pyroute2_is_whole_for_others(code: str) -> None:
    """Whoever imports pyroute2 after a lab used its messages gets all of it, and not before."""
    script = f"""
        import sys
        from nfctl.lab import netlink
        def route():
            return netlink.encode("rtmsg", 24, 0, {{"family": 2}}, [("RTA_GATEWAY", "192.0.2.1")])
        before = route()
        netlink.messages("ifinfmsg")
        assert "asyncio" not in sys.modules
        {code}
        assert "asyncio" in sys.modules
        import pyroute2
        assert all(hasattr(pyroute2, name) for name in ("config", "netlink", "NDB", "IPRoute"))
        assert sys.modules["pyroute2.netlink"] is pyroute2.netlink
        assert before == route()
        assert netlink.messages("tcmsg") is pyroute2.netlink.rtnl.tcmsg
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_messages_are_imported_one_after_the_other() -> None:
    """What is imported later joins what was there: no class is there twice."""
    script = """
        import sys
        from nfctl.lab import netlink
        one, two = netlink.messages("ifinfmsg"), netlink.messages("tcmsg")
        assert one.nlmsg is two.nlmsg
        assert not [name for name in sys.modules if name.startswith("pyroute2")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_pyroute2_that_is_there_already_is_used() -> None:
    """Where the caller has imported pyroute2 its modules are the ones."""
    script = """
        import pyroute2
        from nfctl.lab import netlink
        assert netlink.messages("rtmsg") is pyroute2.netlink.rtnl.rtmsg
        assert type(pyroute2).__name__ == "module"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
