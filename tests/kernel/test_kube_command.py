"""Nfctl kube against rules that iptables put into the kernel, in namespaces of its own."""

from __future__ import annotations

import json
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.kube import DATA, MODERN, Plan, Pod, written

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

CONNECTIONS = 300
PORT = 8080


def load(netns: Namespace, text: str, family: int = 4) -> None:
    program = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
    done = netns.run([program, "-c"], input=text)
    assert done.returncode == 0, done.stderr


def show(netns: Namespace, *options: str, code: int = 0) -> dict[str, Any]:
    done = netns.nfctl("kube", "show", "--json", *options)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def plan(name: str, family: int, pods: int, **settings: Any) -> Plan:
    address = "10.{}.0.{}" if family == 4 else "fd00:{}::{}"
    defaults: dict[str, Any] = {
        "protocol": "tcp",
        "port": 80,
        "cluster_ip": address.format(96, 1),
        "external_ips": [],
        "balancer_ips": [],
        "node_port": 0,
        "affinity": 0,
        "internal_local": False,
        "external_local": False,
        "ranges": [],
    }
    made = [Pod(address.format(244, n), PORT, False) for n in range(1, pods + 1)]
    return Plan(name=name, pods=made, **(defaults | settings))


@pytest.mark.parametrize("version", ["v1.30", "v1.22", "v1.18", "v1.9"])
def test_live_rules_are_what_the_file_says(netns: Namespace, version: str) -> None:
    """Rules of each kube-proxy, loaded by iptables, are shown as the file of them is."""
    text = (DATA / f"{version}.rules").read_text()
    load(netns, text)
    live = show(netns)
    assert live["problems"] == []
    saved = netns.save(4, "-c")
    done = netns.nfctl("kube", "show", "--json", "--rules", "-", input=saved)
    assert json.loads(done.stdout) == live
    done = netns.nfctl("kube", "show", "--json", "--rules", str(DATA / f"{version}.rules"))
    file = json.loads(done.stdout)
    plain = {"connections": None, "chosen": None, "local_chosen": None}
    for service in live["services"]:
        service["endpoints"] = [endpoint | plain for endpoint in service["endpoints"]]
        service |= {"spread": None, "local_spread": None}
    assert live["services"] == file["services"]


def test_both_families_live(netns: Namespace) -> None:
    """Without -4 and -6 both families are shown, with either only that one."""
    load(netns, written([plan("shop/web", 4, 2)]))
    load(netns, written([plan("shop/web", 6, 3)], 6), 6)
    families = [(s["family"], len(s["endpoints"])) for s in show(netns)["services"]]
    assert families == [(4, 2), (6, 3)]
    assert [s["family"] for s in show(netns, "-4")["services"]] == [4]
    assert [s["family"] for s in show(netns, "-6")["services"]] == [6]


def test_looking_brings_no_table_to_life(netns: Namespace) -> None:
    """Where there are no rules, that is said, and no table comes to life."""
    done = netns.nfctl("kube", "show")
    assert done.returncode == 1
    assert "there are no chains of services" in done.stderr
    assert "iptables-nft-save" in done.stderr
    for names in ("ip_tables_names", "ip6_tables_names"):
        assert netns.run(["cat", f"/proc/net/{names}"]).stdout == ""


def test_a_namespace_by_name(netns: Namespace) -> None:
    """--netns looks into another namespace than the caller's."""
    assert netns.run(["ip", "netns", "add", "blue"]).returncode == 0
    text = written([plan("shop/web", 4, 2)])
    done = netns.run(["ip", "netns", "exec", "blue", "iptables-legacy-restore"], input=text)
    assert done.returncode == 0, done.stderr
    assert len(show(netns, "--netns", "blue")["services"]) == 1
    done = netns.nfctl("kube", "explain", "10.96.0.1:80", "--from", "node", "--netns", "blue")
    assert done.returncode == 0, done.stderr
    assert netns.nfctl("kube", "show").returncode == 1


def test_a_broken_table_is_a_no(netns: Namespace) -> None:
    """What an administrator damaged by hand is found live, at the number iptables gives it."""
    load(netns, MODERN)
    chain = "KUBE-SVC-TCOU7JCQXEZGVUNU"
    assert netns.legacy("-t", "nat", "-D", chain, "3").returncode == 0
    problems = show(netns, code=1)["problems"]
    assert [(p["kind"], p["chain"], p["rule"]) for p in problems] == [
        ("shares", chain, 2),
        ("unused", "KUBE-SEP-UKSFD7AGPMPPLUHC", None),
    ]
    listed = netns.legacy("-t", "nat", "-S", chain, "2").stdout
    assert listed == f"-A {chain} {problems[0]['text']}\n"


def connect(address: str, family: int, times: int) -> Counter[str]:
    """Connect to a service, whose endpoints are this host's; return who was connected to."""
    found: Counter[str] = Counter()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", PORT))
        server.listen(times)
        for _ in range(times):
            with socket.create_connection((address, 80), timeout=20):
                accepted, _peer = server.accept()
                found[accepted.getsockname()[0]] += 1
                accepted.close()
    return found


def knock(address: str) -> None:
    """Send the first packet of a connection."""
    with socket.socket() as client:
        client.setblocking(False)
        client.connect_ex((address, 80))


def route(netns: Namespace, family: int) -> None:
    """Have the endpoints' addresses on lo, and the services routed there."""
    option = f"-{family}"
    pods, services = ("10.244.0.{}/32", "10.96.0.0/16") if family == 4 else (
        "fd00:244::{}/128", "fd00:96::/64")  # fmt: skip
    lines = [["link", "set", "lo", "up"], [option, "route", "add", services, "dev", "lo"]]
    lines += [["addr", "add", pods.format(n), "dev", "lo"] for n in range(1, 6)]
    for line in lines:
        done = netns.run(["ip", *line])
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", [4, 6])
def test_counters_are_connections(netns: Namespace, family: int) -> None:
    """The connections shown of each endpoint are those that came to its address."""
    load(netns, written([plan("shop/web", family, 5)], family), family)
    route(netns, family)
    (before,) = show(netns)["services"]
    assert {e["connections"] for e in before["endpoints"]} == {0}
    address = "10.96.0.1" if family == 4 else "fd00:96::1"
    came = netns.python(connect, address, family, CONNECTIONS)
    (web,) = show(netns)["services"]
    assert {e["address"]: e["connections"] for e in web["endpoints"]} == came
    assert [e["chosen"] for e in web["endpoints"]] == [e["connections"] for e in web["endpoints"]]
    assert web["spread"]["connections"] == CONNECTIONS
    assert web["spread"]["probability"] > 1e-9  # the kernel's dice, five endpoints


def test_a_spread_far_off(netns: Namespace) -> None:
    """Rules that give one endpoint nearly everything are seen by the counters, too."""
    text = written([plan("shop/web", 4, 2)])
    # the counters of a chain that gave all to the first, as it was before
    load(netns, text)
    route(netns, 4)
    netns.python(connect, "10.96.0.1", 4, 20)
    chain = next(name for name in text.split() if name.startswith("KUBE-SVC-"))
    sep = next(name for name in text.split() if name.startswith("KUBE-SEP-"))
    assert netns.legacy("-t", "nat", "-I", chain, "2", "-j", sep).returncode == 0
    netns.python(connect, "10.96.0.1", 4, 200)
    found = show(netns, code=1)
    (web,) = found["services"]
    assert web["endpoints"][0]["connections"] >= 200
    assert sum(e["chosen"] for e in web["endpoints"]) == 220
    assert web["endpoints"][0]["share"] == 1
    assert {p["kind"] for p in found["problems"]} >= {"unreached"}


def test_affinity_is_not_chance(netns: Namespace) -> None:
    """Connections of a client that comes back count as connections, not as choices."""
    load(netns, written([plan("shop/web", 4, 3, affinity=3600)]))
    route(netns, 4)
    came = netns.python(connect, "10.96.0.1", 4, 50)
    assert len(came) == 1
    (web,) = show(netns)["services"]
    assert sorted(e["connections"] for e in web["endpoints"]) == [0, 0, 50]
    assert sum(e["chosen"] for e in web["endpoints"]) == 1
    assert web["spread"]["off"] is False


def test_explain_says_where_packets_go(netns: Namespace) -> None:
    """What explain says of this host's own connections is what its packets meet."""
    rejected = plan("shop/empty", 4, 0, cluster_ip="10.96.0.2")
    load(netns, written([plan("shop/web", 4, 2, node_port=30080), rejected]))
    route(netns, 4)
    done = netns.nfctl("kube", "explain", "10.96.0.1:80", "--from", "node", "--json")
    (family,) = json.loads(done.stdout)["families"]
    said = {end["to"].rpartition(":")[0] for case in family["cases"] for end in case["ends"]}
    assert set(netns.python(connect, "10.96.0.1", 4, 40)) == said
    done = netns.nfctl("kube", "explain", "10.96.0.2:80", "--from", "node")
    assert "refused: REJECT in filter KUBE-SERVICES rule 1" in done.stdout
    netns.python(knock, "10.96.0.2")
    counted = netns.run(["iptables-legacy-save", "-c", "-t", "filter"]).stdout
    (rule,) = [line for line in counted.splitlines() if "-A KUBE-SERVICES" in line]
    assert rule.startswith("[1:")
    # 10.244.0.5 is an address of this host, which its rules do not say
    done = netns.nfctl("kube", "explain", "10.244.0.5:30080", "--from", "node", "--json")
    (family,) = json.loads(done.stdout)["families"]
    assert all(case["ends"][0]["kind"] == "endpoint" for case in family["cases"])
    done = netns.nfctl("kube", "explain", "192.0.2.1:30080", "--from", "node")
    assert done.returncode == 1


def test_an_address_of_this_host_is_this_host(netns: Namespace) -> None:
    """What comes from an address that the host has goes by OUTPUT; from another by PREROUTING."""
    assert netns.run(["ip", "addr", "add", "198.51.100.77/32", "dev", "lo"]).returncode == 0
    load(netns, MODERN)
    entrances = []
    for source in ("198.51.100.77", "198.51.100.78"):
        done = netns.nfctl("kube", "explain", "10.96.0.10:53/udp", "--from", source, "--json")
        assert done.returncode == 0, done.stderr
        (family,) = json.loads(done.stdout)["families"]
        entrances.append([case["entrance"] for case in family["cases"]])
    assert entrances == [["OUTPUT"], ["PREROUTING"]]


def test_a_dump_of_the_other_backend(netns: Namespace) -> None:
    """Rules of iptables-nft, saved by it, are the same services as those of iptables-legacy."""
    restored = netns.run(["iptables-nft-restore"], input=MODERN)
    if restored.returncode:
        pytest.skip(f"iptables-nft cannot load the rules: {restored.stderr.strip()}")
    saved = netns.run(["iptables-nft-save", "-c"])
    assert "iptables-nft-save" in saved.stdout
    load(netns, MODERN)
    done = netns.nfctl("kube", "show", "--json", "--rules", "-", input=saved.stdout)
    assert json.loads(done.stdout) == show(netns)
