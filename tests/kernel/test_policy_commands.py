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

from nfctl import cli
from nfctl.control import apply as applying
from nfctl.control import fromlive
from nfctl.control.journal.state import State
from nfctl.errors import Unsupported
from nfctl.kernel.blob import Blob
from nfctl.lab import Lab, Verdict, traffic
from nfctl.policy import reading
from nfctl.policy.starter import Surroundings, starter
from nfctl.ruleset.names import TABLES
from tests.kernel import corpus, play
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
    """SSH and ping are answered in both families, another port that is served is not."""
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

        @examples(30)
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

        @examples(12)
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


LIVE = {
    4: """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:WEB - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -s 10.0.0.0/8 -j DROP
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -j DOCKER
-A FORWARD ! -i lo -m comment --comment "a: b ${x} # it's" -j ACCEPT
-A DOCKER -j RETURN
-A WEB -j ACCEPT
COMMIT
""",
    6: """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p udp -j ACCEPT
-A FORWARD ! -i lo -m comment --comment "a: b ${x} # it's" -j ACCEPT
COMMIT
""",
}
POLICY = """\
# What was running when nfctl policy from-live wrote this.
# Docker: 2 chains left out, DOCKER, DOCKER-USER
# Applying this policy leaves those as they are.
version: 1
name: mine

tables:
  filter:
    INPUT:
      policy: {ipv4: drop, ipv6: accept}
      rules:
        - -i lo -j ACCEPT
        - -s 10.0.0.0/8 -j DROP
        - -p tcp -m tcp --dport 22 -j ACCEPT
        - -p icmp -j ACCEPT
        - {family: ipv6, rule: '-p 0x01 -j ACCEPT'}
        - {family: ipv6, rule: '-p udp -j ACCEPT'}
    FORWARD:
      policy: accept
      # 2 rules of Docker left out, which stay
      rules:
        - '! -i lo -m comment --comment "a: b $${x} # it\\''s" -j ACCEPT'
    OUTPUT:
      policy: accept
    WEB:
      family: ipv4
      rules:
        - -j ACCEPT
"""


@pytest.fixture
def live(netns: Namespace) -> Namespace:
    """Give a namespace with rules of both families, some of them Docker's."""
    for family, text in LIVE.items():
        program = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
        assert netns.run([program], text).returncode == 0
    return netns


def test_the_policy_of_both_families(live: Namespace, tmp_path: Path) -> None:
    """What is equal stands there once, Docker's is left out, and the plan is empty."""
    done = live.nfctl("policy", "from-live", "--name", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == POLICY
    file = tmp_path / "mine.yaml"
    file.write_text(done.stdout)
    planned = live.nfctl("plan", str(file))
    assert planned.returncode == 0
    assert planned.stdout == "nothing to change (2 rules kept of Docker)\n"


@pytest.mark.parametrize("family", [4, 6])
def test_one_family_alone(live: Namespace, family: int) -> None:
    """With -4 or -6 the policy is of that family, and plans to nothing."""
    done = live.nfctl("policy", "from-live", f"-{family}")
    assert f"families: [ipv{family}]\n" in done.stdout
    assert "{" not in done.stdout.replace("${x}", "")
    planned = live.nfctl("plan", "-", "--json", input=done.stdout)
    assert planned.returncode == 0
    assert {table["family"] for table in json.loads(planned.stdout)["tables"]} == {family}


def test_what_another_policy_owns_is_left_out(live: Namespace, tmp_path: Path) -> None:
    """Rules, chains and policies that policy "a" put there are not written into policy "b"."""
    file = tmp_path / "a.yaml"
    file.write_text(
        "version: 1\nname: a\nfamilies: [ipv4]\ntables: {filter: {MINE: [-j DROP], "
        "OUTPUT: {policy: drop, rules: [-o lo -j ACCEPT]}}}\n"
    )
    assert live.nfctl("apply", str(file)).returncode == 0
    done = live.nfctl("policy", "from-live", "--name", "b")
    assert "MINE" not in done.stdout.replace("left out, MINE", "")
    assert "-o lo" not in done.stdout
    assert "policy: {ipv6: accept}" in done.stdout
    assert live.nfctl("plan", "-", input=done.stdout).returncode == 0
    again = live.nfctl("policy", "from-live", "--name", "a")
    assert "-o lo -j ACCEPT" in again.stdout


SETS = """\
create bad hash:net family inet hashsize 64 maxelem 500 timeout 0 comment
create six hash:ip family inet6 counters
create ports bitmap:port range 0-1024
create full hash:ip maxelem 65536
create both list:set size 8
create unused hash:ip
add bad 10.0.0.0/24 comment "the # \\"x\\": y"
add six 2001:db8::1 packets 5 bytes 300
add ports 80
add full 192.0.2.1
add both bad
add both full
"""


def test_sets_are_written_with_their_entries(netns: Namespace) -> None:
    """Sets that rules name, and their members, are in the policy, and come back as they were."""
    script = SETS.replace('\\"x\\"', "x")
    made = netns.run(["ipset", "restore"], script)
    if made.returncode:
        pytest.skip(f"needs ipset in the kernel: {made.stderr.strip()}")
    v4 = (
        "*filter\n-A INPUT -m set --match-set both src -j DROP\n"
        "-A INPUT -m set --match-set ports dst -j ACCEPT\n"
        "-A INPUT -j SET --add-set filled src\nCOMMIT\n"
    )
    v6 = "*filter\n-A INPUT -m set ! --match-set six src -j DROP\nCOMMIT\n"
    assert netns.run(["ipset", "create", "filled", "hash:ip", "timeout", "60"]).returncode == 0
    assert netns.run(["ipset", "add", "filled", "192.0.2.9"]).returncode == 0
    assert netns.run(["iptables-legacy-restore"], v4).returncode == 0
    assert netns.run(["ip6tables-legacy-restore"], v6).returncode == 0
    rules = {family: netns.save(family) for family in (4, 6)}
    done = netns.nfctl("policy", "from-live")
    assert (done.returncode, done.stderr) == (0, "")
    assert "unused" not in done.stdout
    assert "192.0.2.9" not in done.stdout
    planned = netns.nfctl("plan", "-", input=done.stdout)
    assert (planned.returncode, planned.stdout) == (0, "nothing to change\n")
    contents = set_contents(netns)
    for family in (4, 6):
        legacy = "iptables-legacy" if family == 4 else "ip6tables-legacy"
        assert netns.run([legacy, "-F"]).returncode == 0
    for words in (["both"], []):  # a list before its members
        assert netns.run(["ipset", "destroy", *words]).returncode == 0
    applied = netns.nfctl("apply", "-", input=done.stdout)
    assert applied.returncode == 0, applied.stderr
    assert {family: netns.save(family) for family in (4, 6)} == rules
    assert set_contents(netns) == contents - {line for line in contents if " filled 1" in line
                                              or " unused " in line}  # fmt: skip


def set_contents(netns: Namespace) -> set[str]:
    """Return what ipset saves, without what the kernel chooses, counts, or lets pass."""
    text = netns.run(["ipset", "save"]).stdout
    text = re.sub(r" (?:hashsize|initval|bucketsize|packets|bytes) \S+", "", text)
    return set(re.sub(r"(add filled \S+).*", r"\1", text).splitlines())


def test_what_iptables_does_not_read_as_it_prints_it(netns: Namespace) -> None:
    """A rule that would become another is written all the same, and named."""
    rule = (
        "-A PREROUTING -t mangle -p tcp -j HMARK --hmark-tuple src,dst --hmark-mod 10 --hmark-rnd 1"
    )
    if netns.legacy(*rule.split()).returncode:
        pytest.skip("needs the target HMARK in the kernel")
    text = netns.save().replace("*mangle", "*mangle\n-F")
    kernel = netns.python(lambda: bytes(Blob(4, "mangle").data[:]))
    assert netns.run(["iptables-legacy-restore"], text).returncode == 0
    if netns.python(lambda: bytes(Blob(4, "mangle").data[:])) == kernel:
        pytest.skip("this iptables reads what it prints")
    netns.legacy("-t", "mangle", "-F")
    netns.legacy(*rule.split())
    done = netns.nfctl("policy", "from-live")
    assert done.returncode == 0
    assert "1 rule would become another" in done.stderr
    assert "#   mangle (IPv4): -A PREROUTING -p tcp -j HMARK" in done.stdout


def test_what_no_policy_file_can_say(netns: Namespace) -> None:
    """Bytes that are no text are refused, with the rule and what can keep it."""
    text = "*filter\n-A INPUT -m comment --comment \udcff\033[2J -j ACCEPT\nCOMMIT\n"
    assert netns.run(["iptables-legacy-restore"], text).returncode == 0
    done = netns.nfctl("policy", "from-live")
    assert (done.returncode, done.stdout) == (3, "")
    assert "chain INPUT of table filter (IPv4) holds what is no text" in done.stderr
    assert "nfctl save" in done.stderr
    assert "\033" not in done.stderr


def test_nothing_is_running(netns: Namespace) -> None:
    """An empty host has a policy that says nothing, and no table comes to life."""
    done = netns.nfctl("policy", "from-live")
    assert done.stdout.splitlines()[1:] == ["version: 1"]
    assert netns.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""
    assert netns.nfctl("plan", "-", input=done.stdout).returncode == 0


# --- the others ----------------------------------------------------------------------------------


def test_new_writes_a_new_file_alone(netns: Namespace, tmp_path: Path) -> None:
    """The starter for this host is written, checked and planned; a file that is there stays."""
    file = tmp_path / "new.yaml"
    done = netns.nfctl("policy", "new", "--ssh-port", "22", "--ssh-port", "2222", "-o", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert "  ssh: [22, 2222]\n" in file.read_text()
    assert netns.nfctl("plan", str(file)).returncode == 1
    again = netns.nfctl("policy", "new", "--out", str(file))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert netns.nfctl("policy", "new", "--out", "/no/such/dir/x").returncode == 2


def test_new_leaves_forward_alone_beside_docker(live: Namespace) -> None:
    """Docker's chains are seen in the kernel, and said in the file."""
    done = live.nfctl("policy", "new")
    assert "    # - there are chains of Docker, such as DOCKER\n" in done.stdout
    assert "\n    FORWARD:" not in done.stdout
    planned = live.nfctl("plan", "-", input=done.stdout)
    assert "FORWARD" not in planned.stdout


def test_check_needs_no_root(netns: Namespace) -> None:
    """A policy is read and counted by anybody; what is wrong has its place."""
    policy = starter(Surroundings())

    def check(*words: str, text: str) -> play.Said:
        from nfctl.policy import model

        assert model.VERSION  # Python itself may be root's: all is imported before
        cli.application(["policy"])
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        return play.nfctl(["policy", "check", *words], text)

    done = netns.python(check, "-", text=policy)
    assert done == play.Said(
        0,
        "policy default: 1 file read\n"
        "  filter (IPv4): 5 rules in 3 chains\n  filter (IPv6): 20 rules in 3 chains\n",
        "",
    )
    document = json.loads(netns.python(check, "--json", "-", text=policy).out)
    assert document["tables"][0] == {"family": 4, "table": "filter", "chains": 3, "rules": 5}
    bad = "version: 1\ntables: {filter: {INPUT: {polcy: drop}}}\n"
    wrong = netns.python(check, "-", text=bad)
    assert (wrong.code, wrong.out) == (2, "")
    assert "<stdin>:2:27" in wrong.err
    assert 'did you mean "policy"' in wrong.err


def test_schema_is_the_one_that_a_starter_keeps(netns: Namespace) -> None:
    """The schema is printed as JSON, and knows the keys that the starter uses."""
    schema = json.loads(netns.nfctl("policy", "schema").stdout)
    assert {"version", "variables", "tables"} <= set(schema["properties"])


def test_a_policy_is_forgotten(live: Namespace) -> None:
    """After forget its chains are free for another; a name that is not known is refused."""
    one, two = (
        f"version: 1\nname: {name}\nfamilies: [ipv4]\ntables: {{filter: {{MINE: [-j DROP]}}}}\n"
        for name in "ab"
    )
    assert live.nfctl("apply", "-", input=one).returncode == 0
    refused = live.nfctl("plan", "-", input=two)
    assert refused.returncode == 2
    assert "nfctl policy forget a" in refused.stderr
    unknown = live.nfctl("policy", "forget", "c")
    assert unknown.returncode == 2
    assert "there are a" in unknown.stderr
    assert live.nfctl("policy", "forget", "a").returncode == 0
    assert "-A MINE -j DROP\n" in live.save()
    assert live.nfctl("plan", "-", input=two).returncode == 0


def test_a_damaged_policy_is_forgotten(live: Namespace) -> None:
    """A record that somebody edited stands in the way of others, until it is forgotten."""
    one, two = (
        f"version: 1\nname: {name}\nfamilies: [ipv4]\ntables: {{filter: {{MINE: [-j DROP]}}}}\n"
        for name in "ab"
    )
    assert live.nfctl("apply", "-", input=one).returncode == 0

    def damage() -> None:
        (record,) = State().directory.glob("policies/a/record.json")
        record.write_text("{}")

    live.python(damage)
    refused = live.nfctl("plan", "-", input=two)
    assert refused.returncode == 1
    assert "was changed by another hand" in refused.stderr
    assert live.nfctl("policy", "forget", "a").returncode == 0
    assert live.nfctl("plan", "-", input=two).returncode == 0
