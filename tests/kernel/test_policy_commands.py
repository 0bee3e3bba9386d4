"""``nfctl policy``: the starter in a network, and the running rules as a policy and back."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfctl.control import apply as applying
from nfctl.control import fromlive
from nfctl.control.state import State
from nfctl.errors import Unsupported
from nfctl.lab import Lab, Verdict, traffic
from nfctl.policy import reading
from nfctl.policy.starter import Surroundings, starter
from nfctl.ruleset.names import TABLES
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
    policy = tmp_path_factory.mktemp("starter") / "policy.yaml"
    policy.write_text(starter(Surroundings(ssh=[SSH])))
    with Lab("starter") as lab:
        client, server = lab.host("client"), lab.host("server")
        lab.link(
            client.port("eth0", f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"),
            server.port("eth0", f"{SERVER[4]}/24", f"{SERVER[6]}/64"),
        )
        needed = ("hl", "icmp6", "conntrack", "limit")
        if lacking := [name for name in needed if server.run(corpus.kernel_lacks, name, 6)]:
            pytest.skip(f"needs {', '.join(lacking)} in the kernel")
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
    """The port of sshd and ping are answered in both families, another port that is served is not."""
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
        (137, 255, "local", True),  # a redirect
        (137, 64, "local", False),
        (132, 1, "local", True),  # a listener of multicasts leaves
        (132, 64, "local", False),
    ],
)
def test_messages_of_icmpv6(
    network: tuple[Host, Host], kind: int, hops: int, source: str, comes_in: bool
) -> None:
    """What RFC 4890 wants comes in, if its hop limit and source are those of the link."""
    client, server = network
    pattern = f"--icmpv6-type {kind} .*ACCEPT"
    before = accepted(server, pattern)
    client.run(send_icmp6, kind, hops, source)
    # what was sent before has been looked at when this is answered
    assert client.run(traffic.ping, SERVER[6]).verdict is Verdict.ACCEPTED
    assert accepted(server, pattern) - before == comes_in


# --- the running rules ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_running_ruleset_is_a_policy_and_comes_back(family: int, netns: Namespace) -> None:
    """The policy of any rules plans to nothing; applied to empty tables it brings them back."""

    def inside() -> None:
        rules = pool(family)
        wipe(family, TABLES)

        @examples(40)
        @given(rulesets(rules, family))
        def prove(drawn: Drawn) -> None:
            text = "".join(map(without_counters, drawn.tables.values()))
            assert oracle(family, "restore", text=text) is not None
            try:
                policy, others = fromlive.policy()
            except Unsupported:
                assert re.search("[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]", text)
                return
            assert others == []
            wanted = reading.parse(policy.encode(), "policy")
            state = State(Path("/run/state"))
            assert not applying.plan(wanted, state=state).changes
            wipe(family, drawn.tables)
            options = applying.Options(guard_ssh=False)
            applying.apply(wanted, state=state, options=options)
            for table in drawn.tables:
                assert zeroed(saved(family, table)) == drawn_text(drawn, table)
            wipe(family, drawn.tables)
            state.drop_record("default")

        prove()

    netns.python(inside)


def drawn_text(drawn: Drawn, table: str) -> str:
    return without_counters(drawn.tables[table])


def zeroed(text: str) -> str:
    return re.sub(r"^(:\S+ \S+) .*$", r"\1 [0:0]", text, flags=re.MULTILINE)


@pytest.mark.parametrize("same", [True, False])
def test_both_families_in_one_file(netns: Namespace, same: bool) -> None:
    """Rules of both families together come back in the order that each of them had."""

    def inside() -> None:
        pools = {family: pool(family) for family in (4, 6)}
        if same:  # what both take
            pools[4] = pools[6] = {
                table: [rule for rule in rules if rule in pools[6][table]]
                for table, rules in pools[4].items()
            }

        @examples(20)
        @given(rulesets(pools[4], 4), rulesets(pools[6], 6), st.booleans())
        def prove(four: Drawn, six: Drawn, equal: bool) -> None:
            if same and equal:
                six = four
            for family, drawn in ((4, four), (6, six)):
                wipe(family, TABLES)
                assume(oracle(family, "restore", text=without_counters(drawn.text)) is not None)
            before = {family: saved_all(family) for family in (4, 6)}
            try:
                policy, others = fromlive.policy()
            except Unsupported:
                assume(False)
            assert others == []
            if same and equal and "icmp" not in policy:
                assert "family: " not in policy
            for family in (4, 6):
                wipe(family, TABLES)
            wanted = reading.parse(policy.encode(), "policy")
            state = State(Path("/run/state"))
            options = applying.Options(guard_ssh=False)
            applying.apply(wanted, state=state, options=options)
            assert {family: saved_all(family) for family in (4, 6)} == before
            state.drop_record("default")

        prove()

    netns.python(inside)


def saved_all(family: int) -> dict[str, str]:
    """Return the tables by name, counters apart: their order is that of their first use."""
    return {table: zeroed(saved(family, table)) for table in TABLES}
