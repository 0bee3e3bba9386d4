"""``nfctl policy``: the starter in a network, and the running rules as a policy and back."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from nfctl.control import apply as applying
from nfctl.control import fromlive
from nfctl.control.state import State
from nfctl.lab import Lab, Verdict, traffic
from nfctl.policy import reading
from nfctl.policy.starter import Surroundings, starter
from tests.kernel import corpus
from tests.kernel.conftest import NFCTL
from tests.kernel.test_properties import (
    examples,
    oracle,
    pool,
    rulesets,
    saved,
    wipe,
    without_counters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host
    from tests.kernel.conftest import Namespace
    from tests.kernel.test_properties import Drawn

pytestmark = pytest.mark.kernel

SERVER = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
SSH, OTHER = 2222, 8080


# --- the starter -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """Two hosts; on the second one the starter policy is applied, and two ports are served."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    if any(corpus.kernel_lacks(name, 6) for name in ("hl", "icmp6", "conntrack", "limit")):
        pytest.skip("needs the matches hl, icmp6, conntrack and limit in the kernel")
    policy = tmp_path_factory.mktemp("starter") / "policy.yaml"
    policy.write_text(starter(Surroundings(ssh=[SSH])))
    with Lab("starter") as lab:
        client, server = lab.host("client"), lab.host("server")
        lab.link(
            client.port("eth0", f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"),
            server.port("eth0", f"{SERVER[4]}/24", f"{SERVER[6]}/64"),
        )
        server.serve(tcp=[SSH, OTHER])
        server.call([*NFCTL, "apply", str(policy)])
        yield client, server


def accepted(server: Host, pattern: str) -> int:
    """Return how many packets the rules of INPUT counted that match, as the oracle says."""
    text = server.call(["ip6tables-legacy-save", "-c", "-t", "filter"])
    lines = [line for line in text.splitlines() if re.search(pattern, line)]
    assert lines
    return sum(int(line[1:].split(":")[0]) for line in lines)


@pytest.mark.parametrize("family", [4, 6])
def test_a_host_with_the_starter_is_reachable_by_ssh_alone(
    network: tuple[Host, Host], family: int
) -> None:
    """sshd's port and ping are answered in both families, another port that is served is not."""
    client, server = network
    answers = {
        port: client.run(lambda port=port: traffic.tcp(SERVER[family], port, timeout=1.5))
        for port in (SSH, OTHER)
    }
    assert answers[SSH].verdict is Verdict.ACCEPTED
    assert answers[OTHER].verdict is Verdict.DROPPED
    assert client.run(traffic.ping, SERVER[family]).verdict is Verdict.ACCEPTED
    outgoing = server.run(traffic.ping, CLIENT[family])
    assert outgoing.verdict is Verdict.ACCEPTED


def test_neighbours_are_found_again(network: tuple[Host, Host]) -> None:
    """With the neighbour tables of both hosts emptied, IPv6 goes on: solicitations come in."""
    client, server = network
    solicitations = "--icmpv6-type 135 .*ACCEPT"
    before = accepted(server, solicitations)
    for host in network:
        host.call(["ip", "-6", "neigh", "flush", "dev", "eth0"])
    assert client.run(traffic.tcp, SERVER[6], SSH).verdict is Verdict.ACCEPTED
    assert accepted(server, solicitations) > before
    advertisements = accepted(server, "--icmpv6-type 136 .*ACCEPT")
    server.call(["ip", "-6", "neigh", "flush", "dev", "eth0"])
    assert server.run(traffic.ping, CLIENT[6]).verdict is Verdict.ACCEPTED
    assert accepted(server, "--icmpv6-type 136 .*ACCEPT") > advertisements


def send_icmp6(kind: int, hops: int, source: str) -> None:
    """Send a message of ICMPv6 to the server, from the global or the link-local address."""
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        if source == "global":
            sock.bind((CLIENT[6], 0))
        else:
            index = socket.if_nametoindex("eth0")
            addresses = Path("/proc/net/if_inet6").read_text(encoding="ascii").split("\n")
            (own,) = [line[:32] for line in addresses if line.startswith("fe80") and "eth0" in line]
            local = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(own))
            sock.bind((local, 0, 0, index))
        sock.sendto(struct.pack(">BBHII", kind, 0, 0, 0, 0), (SERVER[6], 0))


@pytest.mark.parametrize(
    ("kind", "hops", "source", "comes_in"),
    [
        (2, 64, "global", True),  # packet too big, of which connection tracking knows nothing
        (1, 64, "global", True),
        (134, 255, "local", True),  # a router's advertisement
        (134, 255, "global", False),  # not from a router of this link
        (134, 64, "local", False),  # forwarded
        (135, 255, "global", True),
        (135, 64, "global", False),
        (143, 1, "local", True),  # multicast listeners
        (143, 64, "local", False),
        (139, 64, "global", False),  # node information, which RFC 4890 leaves to the policy
    ],
)
def test_messages_of_icmpv6(
    network: tuple[Host, Host], kind: int, hops: int, source: str, comes_in: bool
) -> None:
    """What RFC 4890 wants comes in, if its hop limit and source are those of the link."""
    client, server = network
    pattern = f"--icmpv6-type {kind} .*ACCEPT" if kind != 139 else "icmpv6-type .*ACCEPT"
    before = accepted(server, pattern)
    client.run(send_icmp6, kind, hops, source)
    # what was sent before has been looked at when this is answered
    assert client.run(traffic.ping, SERVER[6]).verdict is Verdict.ACCEPTED
    after = accepted(server, pattern)
    if kind == 139:
        assert after <= before + 3  # the ping, and neighbours
    elif kind == 135:
        assert (after > before) or not comes_in
    else:
        assert after - before == comes_in
