"""Nfctl doctor against real tables, in namespaces of its own."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.kernel import backends
from tests.kernel.conftest import NFCTL, SLOWNESS

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

needs = pytest.mark.skipif(
    not all(map(shutil.which, ("iptables-nft", "nft"))), reason="needs iptables-nft and nft"
)


def rules(netns: Namespace, *lines: str) -> None:
    for line in lines:
        done = netns.run(line.split())
        assert done.returncode == 0, f"{line}: {done.stderr}"


def doctor(netns: Namespace, *options: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run nfctl doctor --json; return its exit code and the findings by section and name."""
    done = netns.nfctl("doctor", "--json", *options)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    return done.returncode, {(f["section"], f["name"]): f for f in document["findings"]}


def active(netns: Namespace) -> list[str]:
    files = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]
    return sorted(netns.run(["cat", *files]).stdout.split())


@needs
def test_both_backends_are_counted_and_fail(netns: Namespace) -> None:
    """Rules put by both iptables are counted apart, and the answer is no."""
    rules(
        netns,
        "iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT",
        "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE",
        "ip6tables-legacy -P FORWARD DROP",
        "iptables-nft -N MINE",
        "iptables-nft -A INPUT -j MINE",
        "iptables-nft -A MINE -p udp -j DROP",
        "iptables-nft -A MINE -j ACCEPT",
        "nft add table inet own",
        "nft add chain inet own in { type filter hook input priority 10 ; policy drop ; }",
        "nft add rule inet own in accept",
    )
    code, found = doctor(netns)
    assert code == 1
    assert found["rules", "legacy"]["data"]["rules"] == 2
    assert found["rules", "iptables-nft"]["data"]["rules"] == 3
    assert found["rules", "native-nft"]["data"]["rules"] == 1
    tables = {t["family"] + t["table"]: t for t in found["rules", "legacy"]["data"]["tables"]}
    assert tables["ip6filter"]["drop_policies"] == ["FORWARD"]
    both = found["rules", "backends"]["data"]
    assert (both["legacy_rules"], both["nft_rules"]) == (2, 4)
    assert [(m["priority"], m["table"]) for m in both["order"]["INPUT"]][-2:] == [
        (10, "own"),
        (100, "nat"),
    ]


@needs
def test_the_counts_are_those_of_the_save_programs(netns: Namespace) -> None:
    """Two thousand rules in twenty chains are counted as iptables-save shows them."""
    chains = [f"C{number}" for number in range(20)]
    lines = ["*filter", *(f":{chain} - [0:0]" for chain in chains)]
    lines += [f"-A C{n % 20} -p tcp -m tcp --dport {n + 1} -j ACCEPT" for n in range(2000)]
    lines += [f"-A INPUT -j {chain}" for chain in chains]
    text = "\n".join([*lines, "COMMIT\n"])
    for program in ("iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft"):
        assert netns.run([f"{program}-restore"], input=text).returncode == 0
    _, found = doctor(netns)
    assert found["rules", "legacy"]["data"]["rules"] == 4040
    assert found["rules", "iptables-nft"]["data"]["rules"] == 4040
    # iptables-nft makes only the built-in chains that it needs
    for backend, builtin in (("legacy", 3), ("iptables-nft", 1)):
        for table in found["rules", backend]["data"]["tables"]:
            assert (table["rules"], table["chains"]) == (2020, 20 + builtin)


@needs
def test_the_table_registered_last_is_met_first(netns: Namespace) -> None:
    """Of two tables with one priority the later one comes first, as doctor says."""
    rules(
        netns,
        "ip link set lo up",
        "iptables-legacy -A OUTPUT -p udp -j ACCEPT",
        "iptables-nft -A OUTPUT -p udp -j DROP",
    )
    send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    netns.run([sys.executable, "-c", send + ".sendto(b'x', ('127.0.0.1', 9))"])
    saved = netns.run(["iptables-legacy-save", "-c", "-t", "filter"]).stdout
    assert "[0:0] -A OUTPUT -p udp -j ACCEPT" in saved


@needs
def test_writers_are_seen_in_both_backends(netns: Namespace) -> None:
    """Chains of Docker in one backend and of Kubernetes in the other are counted."""
    rules(
        netns,
        "iptables-legacy -t nat -N DOCKER",
        "iptables-legacy -t nat -A DOCKER -j RETURN",
        "iptables-nft -t nat -N KUBE-SERVICES",
        "iptables-nft -t nat -N KUBE-MARK-MASQ",
        "nft add table inet firewalld",
        "nft add chain inet firewalld filter_INPUT",
    )
    _, found = doctor(netns)
    assert found["writers", "Docker"]["data"] == {"legacy": {"chains": 1, "rules": 1}}
    assert found["writers", "Kubernetes"]["data"] == {"nft": {"chains": 2, "rules": 0}}
    assert found["writers", "firewalld"]["data"] == {"nft": {"chains": 1, "rules": 0}}


def test_a_held_lock_and_its_holder_are_seen(netns: Namespace) -> None:
    """While another program holds the lock, doctor names it and goes on."""
    done = netns.run(["flock", "/run/xtables.lock", *NFCTL, "doctor", "--json"])
    findings = {f["section"]: f for f in json.loads(done.stdout)["findings"]}
    assert findings["lock"]["data"]["holder"]["command"] == "flock"
    assert "held by flock" in findings["lock"]["fact"]


def test_looking_registers_no_table(netns: Namespace) -> None:
    """A fresh namespace has no legacy tables, and none after doctor has looked."""
    assert active(netns) == []
    code, found = doctor(netns)
    assert code == 0
    assert active(netns) == []
    assert found["tables", "ipv4"]["data"]["tables"]["filter"] == "available"


@needs
def test_active_tables_are_named(netns: Namespace) -> None:
    """Only the table that somebody used is in use."""
    rules(netns, "iptables-legacy -t mangle -S")
    _, found = doctor(netns)
    states = found["tables", "ipv4"]["data"]["tables"]
    assert (states["mangle"], states["raw"]) == ("active", "available")


def test_a_namespace_by_name(netns: Namespace) -> None:
    """With --netns the rules of that namespace are counted, not the caller's."""
    rules(netns, "ip netns add blue", "ip netns exec blue iptables-legacy -A INPUT -j ACCEPT")
    _, here = doctor(netns)
    _, there = doctor(netns, "--netns", "blue")
    assert here["rules", "legacy"]["data"]["rules"] == 0
    assert there["rules", "legacy"]["data"]["rules"] == 1
    assert there["privileges", "netns"]["data"]["name"] == "blue"


@needs
def test_without_privileges_it_says_what_it_could_not_see(netns: Namespace) -> None:
    """Without capabilities there is an answer that names them, and no traceback."""
    rules(netns, "iptables-legacy -A INPUT -j ACCEPT")
    # root's id stays, so that the interpreter can be read wherever it is installed
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = netns.run([*drop, *NFCTL, "doctor"])
    assert done.returncode == 1
    assert "CAP_NET_ADMIN" in done.stdout
    assert done.stdout.count("could not be looked at") == 3
    assert done.stderr == ""


@needs
def test_rules_are_counted_although_libraries_are_missing(netns: Namespace) -> None:
    """A machine without libxtables gets the lack named, and the counts all the same."""
    rules(netns, "iptables-legacy -A INPUT -j ACCEPT")
    code = """
import nfctl.kernel.libraries as libraries
libraries.find = lambda name: None
from nfctl.cli.doctor import doctor
doctor(as_json=True)
"""
    done = netns.run([sys.executable, "-c", code])
    found = {f["name"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1
    assert found["libxtables"]["state"] == "missing"
    assert found["legacy"]["data"]["rules"] == 1


def test_tables_are_probed_in_a_namespace_that_is_thrown_away(netns: Namespace) -> None:
    """The probe tells tables that exist from others, and registers none where one stands."""
    code = "from nfctl.kernel.backends import probe_tables as p; print(p(4, ['raw', 'nothing']))"
    assert netns.run([sys.executable, "-c", code]).stdout.strip() == str(
        {"raw": True, "nothing": False}
    )
    assert active(netns) == []


def test_a_pipe_is_not_coloured_and_ascii_is_kept(netns: Namespace) -> None:
    """Without a terminal there are no escapes; without UTF-8 no other characters."""
    done = netns.run(["env", "PYTHONIOENCODING=ascii", *NFCTL, "doctor"])
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout


@needs
def test_it_is_quick_with_ten_thousand_rules(netns: Namespace) -> None:
    """A large table is counted and not decoded: the whole command stays under a second."""
    lines = [f"-A INPUT -s 10.0.{n >> 8}.{n & 255}/32 -j ACCEPT" for n in range(10_000)]
    text = "\n".join(["*filter", *lines, "COMMIT\n"])
    assert netns.run(["iptables-legacy-restore"], input=text).returncode == 0
    doctor(netns)
    start = time.monotonic()
    _, found = doctor(netns)
    assert time.monotonic() - start < 1 * SLOWNESS
    assert found["rules", "legacy"]["data"]["rules"] == 10_000


def test_the_reader_of_a_table_says_what_lacks() -> None:
    """A table that the kernel does not know is reported as such."""
    from nfctl.errors import Unsupported

    with pytest.raises(Unsupported, match="nothing"):
        backends.read_legacy(4, "nothing")
