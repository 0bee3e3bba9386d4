"""Copies of a host's firewall: what they have of the host, by ip(8) and the oracle's binaries."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.control import rehearsal
from nfctl.control.rehearsal import Copy
from nfctl.control.rehearsal import host as rehearsal_host
from nfctl.control.rehearsal import sets as rehearsal_sets
from nfctl.control.rehearsal.host import Host, Way
from nfctl.errors import NotPermitted
from nfctl.lab import sysctls
from nfctl.policy.wanted import WantedSet
from tests.kernel.conftest import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

HOST: Final = """
set -e
ip link add eth0 address 02:00:00:00:00:01 type veth peer name far0
ip link add eth1 type veth peer name far1
ip link add tunnel type veth peer name far2
ip link set tunnel arp off
for each in eth0 eth1 tunnel far0 far1 far2; do ip link set $each up; done
ip link set eth0 mtu 1400 group 5
ip addr add 10.0.0.1/24 dev eth0
ip addr add 10.0.0.2/24 dev eth0
ip addr add 10.9.0.1 peer 10.9.0.2 dev tunnel
ip addr add 2001:db8::1/64 dev eth0 nodad
ip addr add 10.0.1.1/24 dev eth1
ip addr add 2001:db8:1::1/64 dev eth1 nodad
ip addr add 192.0.2.1/32 dev lo
ip route add default via 10.0.0.254 src 10.0.0.2
ip -6 route add default via fe80::fe dev eth0 metric 50
ip route add 198.51.100.0/24 nexthop via 10.0.0.253 nexthop via 10.0.0.252
ip route add blackhole 203.0.113.0/24
ip route add 203.0.113.0/25 via 10.0.1.254
ip route add default via 10.0.0.77 table 100
ip -6 route add 2001:db8:77::/48 via 2001:db8::77 table 100
ip rule add fwmark 1 lookup 100 priority 500
ip -6 rule add iif eth0 from 2001:db8:5::/48 lookup 100 priority 600
ip rule del priority 32767
"""
SYSCTLS: Final = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.conf.eth0.rp_filter": "1",
    "net.ipv4.conf.all.src_valid_mark": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.eth1.forwarding": "0",
    "net.netfilter.nf_conntrack_tcp_loose": "0",
}


def sh(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def host(netns: Namespace) -> Namespace:
    """Give a host with several interfaces, routes, and a policy of routing."""
    done = netns.run(["sh", "-c", HOST])
    assert done.returncode == 0, done.stderr
    for name, value in SYSCTLS.items():
        path = "/proc/sys/" + name.replace(".", "/")
        done = netns.run(["sh", "-c", f"echo {value} > {path}"])
        assert done.returncode == 0, done.stderr
    return netns


def rehearse(host: Namespace, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a child that may make copies, on the host."""
    return host.python(rehearsal.call, function, *args)


def both(host: Namespace, command: str, *interfaces: str) -> tuple[str, str]:
    """Return what a command prints on the host, and in a copy with some interfaces."""

    def inside() -> str:
        Copy(interfaces)
        return sh(command)

    return host.python(sh, command), rehearse(host, inside)


def test_links(host: Namespace) -> None:
    """The interfaces have the host's names, indexes, Ethernet addresses, MTU, group and ARP."""

    def links(text: str) -> dict[str, tuple[object, ...]]:
        return {
            link["ifname"]: (
                link["ifindex"], link["address"], link["mtu"], link["group"],
                "NOARP" in link["flags"], "LOWER_UP" in link["flags"],
            )
            for link in json.loads(text)
        }  # fmt: skip

    here, there = map(links, both(host, "ip -j link", "eth0", "tunnel", "lo"))
    assert there.keys() == {"lo", "eth0", "tunnel"}
    assert there == {name: here[name] for name in there}


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_addresses(host: Namespace, family: str) -> None:
    """Addresses are the host's; those of interfaces that are left out are on lo."""

    def addresses(text: str) -> dict[str, set[tuple[str, int, str]]]:
        return {
            link["ifname"]: {
                (each["local"], each["prefixlen"], each["scope"])
                for each in link.get("addr_info", ())
            }
            for link in json.loads(text)
        }

    here, there = map(addresses, both(host, f"ip -j {family} addr", "eth0", "tunnel"))
    for name in ("eth0", "tunnel"):
        assert there.get(name) == here.get(name)
    length = 32 if family == "-4" else 128
    left_out = {(text, length, scope) for text, _, scope in here["eth1"] if scope == "global"}
    assert left_out
    assert there["lo"] == here["lo"] | left_out


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_routes(host: Namespace, family: str) -> None:
    """Routes of all tables are the host's, but for what goes through other interfaces."""
    command = f"ip {family} route show table all | grep -v 'table local\\|multicast\\|^local '"
    here, there = both(host, command, "eth0", "tunnel")
    kept = {line.strip() for line in here.splitlines() if not set(line.split()) & OTHERS}
    assert {line.strip() for line in there.splitlines()} == kept
    assert any("table 100" in line for line in kept)


OTHERS: Final = {"eth1", "far0", "far1", "far2"}


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_rules_of_routing(host: Namespace, family: str) -> None:
    """The rules of policy routing are the host's, also where one of the usual is gone."""
    here, there = both(host, f"ip {family} rule", "eth0")
    assert there == here
    assert "lookup 100" in here
    assert "lookup default" not in here


def test_sysctls(host: Namespace) -> None:
    """What decides about forwarding, filtering and tracking is as on the host."""
    names = " ".join(SYSCTLS)
    here, there = both(host, f"sysctl {names}", "eth0", "eth1")
    assert there == here
    assert [line.split(" = ")[1] for line in here.splitlines()] == list(SYSCTLS.values())


def test_many_interfaces(host: Namespace) -> None:
    """Of many interfaces only those that are asked for are made, and quickly."""
    command = "for i in $(seq 1 100); do echo link add v$i type veth peer name w$i; done | ip -b -"
    host.python(sh, command)

    def inside() -> tuple[set[str], float]:
        import time

        start = time.monotonic()
        copy = Copy(["eth0"])
        return set(copy.links), time.monotonic() - start

    found = [rehearse(host, inside) for _ in range(3)]
    assert found[0][0] == {"eth0"}
    assert min(took for _, took in found) < 0.2 * SLOWNESS


def test_too_many_routes(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a host with too many routes none is copied; the ways that matter are looked up."""
    monkeypatch.setattr(rehearsal_host, "MOST_ROUTES", 3)

    def inside() -> list[Way]:
        copy = Copy(["eth0"])
        wanted = [Way(False, copy.links["eth0"].ifindex, via, "") for via in ("10.0.0.99", "")]
        for address, way in zip(("198.51.100.1", "10.0.0.5"), wanted, strict=True):
            copy.reach(address, way)
        return [Host().way(address)._replace(source="") for address in ("198.51.100.1", "10.0.0.5")]

    index = int(json.loads(host.python(sh, "ip -j link show eth0"))[0]["ifindex"])
    assert rehearse(host, inside) == [Way(False, index, "10.0.0.99", ""), Way(False, index, "", "")]


def test_sets(host: Namespace) -> None:
    """The ipsets that are needed are copied with their contents, and lists with their members."""
    sets = (
        "create nets hash:net family inet6 timeout 600 counters comment\n"
        'add nets 2001:db8::/32 packets 5 bytes 400 comment "two words"\n'
        "create ports hash:ip,port\nadd ports 192.0.2.1,tcp:22\nadd ports 192.0.2.1,udp:53\n"
        "create list list:set\nadd list ports\n"
        "create bits bitmap:port range 1-1024\nadd bits 22\n"
        "create unrelated hash:ip\n"
    )
    done = host.run(["ipset", "restore"], sets)
    assert done.returncode == 0, done.stderr

    def saved() -> set[str]:
        lines = sh("ipset save").splitlines()
        dropped = ("initval", "timeout")
        return {
            " ".join(
                word
                for at, word in enumerate(words)
                if word not in dropped and words[at - 1] not in dropped
            )
            for words in (line.split() for line in lines)
        }

    def inside() -> set[str]:
        Copy(["eth0"], sets={"nets", "list", "bits", "missing"})
        return saved()

    there = rehearse(host, inside)
    assert there == {line for line in host.python(saved) if "unrelated" not in line}
    assert 'add nets 2001:db8::/32 packets 5 bytes 400 comment "two words"' in there


def test_wanted_sets_and_rules(host: Namespace) -> None:
    """Rules are loaded with the sets that a policy wants, and the host has neither."""
    text = (
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -j LOG --log-prefix x\n"
        "-A INPUT -m set --match-set wanted src -j ACCEPT\nCOMMIT\n"
    )

    def inside() -> tuple[str, str, str]:
        copy = Copy(["eth0"])
        copy.want_sets([WantedSet("wanted", "hash:ip", 4, {}, ["192.0.2.7"])])
        copy.load({4: text, 6: "*raw\n:OUTPUT DROP [0:0]\nCOMMIT\n"})
        return sh("iptables-legacy-save"), sh("ip6tables-legacy-save"), sh("ipset save")

    four, six, sets = rehearse(host, inside)
    assert "-A INPUT\n-A INPUT -m set --match-set wanted src -j ACCEPT\n" in four
    assert ":OUTPUT DROP" in six
    assert "add wanted 192.0.2.7" in sets
    assert host.python(sh, "ipset save; iptables-legacy-save; ip6tables-legacy-save") == ""


def test_packets_reach_the_other_ends(host: Namespace) -> None:
    """What the copy sends through an interface comes out at its other end, together or not."""

    def inside(together: bool) -> list[int]:
        import socket

        copy = Copy(["eth0", "tunnel"], together=together)
        counts = []
        for name, address in (("eth0", "10.0.0.7"), ("tunnel", "10.9.0.2")):
            outside = copy.outside[name]
            outside.add_address(address, copy.links[name].ifindex)
            with outside.entered():
                there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                there.bind((address, 9))
                there.settimeout(5)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
                here.sendto(name.encode(), (address, 9))
            counts.append(len(there.recv(100)))
            there.close()
        return [*counts, len(set(map(id, copy.outside.values())))]

    assert rehearse(host, inside, False) == [4, 6, 2]
    assert rehearse(host, inside, True) == [4, 6, 1]


def test_the_neighbour_has_its_own_address(host: Namespace) -> None:
    """The other end has the Ethernet address of the host's real neighbour, for ``-m mac``."""
    host.python(sh, "ip neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev eth0")

    def inside() -> tuple[str, str]:
        asked = Host()
        near = asked.neighbour("10.0.0.254", asked.link("eth0").ifindex)
        copy = Copy(["eth0"], host=asked, near={"eth0": near})
        with copy.outside["eth0"].entered():
            return near.hex(":"), sh("cat /proc/self/net/arp; ip -o link show eth0")

    mac, shown = rehearse(host, inside)
    assert mac == "02:00:00:00:00:fe"
    assert "link/ether 02:00:00:00:00:fe" in shown


def test_without_ipv6(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a kernel without IPv6 a copy has IPv4."""
    monkeypatch.setattr(sysctls, "has_ipv6", lambda: False)

    def inside() -> str:
        Copy(["eth0"]).load({4: "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"})
        return sh("iptables-legacy-save; ip route")

    shown = rehearse(host, inside)
    assert ":INPUT DROP" in shown
    assert "default via 10.0.0.254" in shown


def test_without_privileges(host: Namespace) -> None:
    """Who may not make namespaces is told so."""

    def inside() -> None:
        os.setuid(65534)
        rehearsal.call(Copy)

    with pytest.raises(NotPermitted, match="no network namespace can be made"):
        host.python(inside)


SCRIPT: Final = """
import os, sys, time
from nfctl.control import rehearsal
def inside():
    copy = rehearsal.Copy(["eth0"])
    copy.load({4: "*filter\\n:INPUT DROP [0:0]\\nCOMMIT\\n"})
    print(os.getpid(), os.readlink("/proc/self/ns/net"), flush=True)
    time.sleep(1000)
rehearsal.call(inside, timeout=1000)
"""


def test_nothing_is_left_after_a_kill(host: Namespace) -> None:
    """When who made a copy is killed, the copy's process ends, and so do its namespaces."""
    links = host.python(sh, "ip -o link")
    process = host.popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid, namespace = process.stdout.readline().split()
    child = os.pidfd_open(int(pid))
    try:
        process.send_signal(signal.SIGKILL)
        poll = select.poll()
        poll.register(child, select.POLLIN)
        assert poll.poll(20_000), "the child lives on"
    finally:
        os.close(child)
    process.wait(20)
    assert namespace not in list(_namespaces())
    assert host.python(sh, "ip -o link") == links


def _namespaces() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append(str((entry / "ns/net").readlink()))
            except OSError:
                continue
    return found


def test_needed_sets_are_found(host: Namespace) -> None:
    """Sets that rules name, in matches and targets, are found in what the oracle prints."""
    done = host.run(["ipset", "restore"], "create one hash:ip\ncreate two hash:ip\n")
    assert done.returncode == 0, done.stderr
    for rule in ("-m set ! --match-set one src", "-j SET --add-set two src --timeout 5 --exist"):
        done = host.legacy("-A", "INPUT", *rule.split())
        assert done.returncode == 0, done.stderr
    assert rehearsal_sets.named([host.save()]) == {"one", "two"}
