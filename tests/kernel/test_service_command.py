"""``nfctl service``: what it does to the tables, what it says, what it answers.

What the tables hold is what iptables-legacy-save prints of them.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given

from nfctl.cli import service as commands
from nfctl.cli import service_edit
from nfctl.control.journal.state import State
from nfctl.services import chains
from tests.kernel import play
from tests.kernel.applying import chains_of, tables_of
from tests.kernel.confirming import Guardian, expire, find_guardian
from tests.kernel.test_completion import complete
from tests.kernel.test_properties import examples
from tests.unit import serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nfctl.services.model import ServiceList
    from tests.kernel.conftest import Namespace
    from tests.kernel.play import Said

pytestmark = pytest.mark.kernel

LIST = """\
cluster: 10.0.0.0/9
services:
- name: shop/web:http
  port: 80
  cluster-ips: 10.96.0.10
  node-port: 30080
  endpoints: ["10.0.0.5:8080", "10.0.0.6:8080*2"]
- {name: dns, protocol: udp, port: 53, cluster-ips: [10.96.0.53, "fd00::53"], endpoints: ["10.0.0.9:53"]}
- {name: dns, protocol: tcp, port: 53, cluster-ips: 10.96.0.53, endpoints: ["10.0.0.9:53"]}
"""  # noqa: E501 - as one writes it
OTHERS = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
[7:700] -A INPUT -i lo -j ACCEPT
[5:500] -A FORWARD -j DOCKER
[2:200] -A DOCKER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
[3:300] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
"""
WEB = "NFCTL-SVC-67NZLRHBNDSAWJRO"
FIVE, SIX = "NFCTL-SEP-XTJ7SYISEBUMBAR4", "NFCTL-SEP-VQZCG22YXUSWM77M"
NAT = {
    "PREROUTING": ['-m comment --comment "service portals" -j NFCTL-SERVICES'],
    "INPUT": [],
    "OUTPUT": ['-m comment --comment "service portals" -j NFCTL-SERVICES'],
    "POSTROUTING": [
        '-m comment --comment "service postrouting rules" -j NFCTL-POSTROUTING',
        "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    ],
    "NFCTL-EXT-67NZLRHBNDSAWJRO": [
        '-m comment --comment "masquerade traffic for shop/web:http external destinations" '
        "-j NFCTL-MARK-MASQ",
        f"-j {WEB}",
    ],
    "NFCTL-MARK-MASQ": ["-j MARK --set-xmark 0x4000/0x4000"],
    "NFCTL-NODEPORTS": [
        '-p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 '
        "-j NFCTL-EXT-67NZLRHBNDSAWJRO"
    ],
    "NFCTL-POSTROUTING": [
        "-m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-j MARK --set-xmark 0x4000/0x0",
        '-m comment --comment "service traffic requiring SNAT" -j MASQUERADE --random-fully',
    ],
    "NFCTL-PROXY-CANARY": [],
    FIVE: [
        '-s 10.0.0.5/32 -m comment --comment "shop/web:http" -j NFCTL-MARK-MASQ',
        '-p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.0.0.5:8080',
    ],
    SIX: [
        '-s 10.0.0.6/32 -m comment --comment "shop/web:http" -j NFCTL-MARK-MASQ',
        '-p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.0.0.6:8080',
    ],
    WEB: [
        '! -s 10.0.0.0/9 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" '
        "-m tcp --dport 80 -j NFCTL-MARK-MASQ",
        '-m comment --comment "shop/web:http -> 10.0.0.5:8080" -m statistic --mode random '
        f"--probability 0.33333333349 -j {FIVE}",
        f'-m comment --comment "shop/web:http -> 10.0.0.6:8080" -j {SIX}',
    ],
}
STATE = "/run/state"  # the namespace has a /run of its own


class Node:
    """A namespace with rules of others, a list, and a journal of its own."""

    def __init__(self, netns: Namespace, directory: Path) -> None:
        self.netns = netns
        self.file = directory / "list.yaml"
        self.file.write_text(LIST)
        self.directory = directory / "state"
        self.state = State(self.directory)
        netns.python(play.load, OTHERS)

    def nfctl(self, *words: str, text: str = "", **environment: str) -> Said:
        environment["NFCTL_STATE_DIR"] = str(self.directory)
        said = self.netns.python(play.nfctl, words, text, **environment)
        assert "Traceback" not in said.err
        return said

    def service(self, *words: str, text: str = "", **environment: str) -> Said:
        return self.nfctl("service", *words, text=text, **environment)

    def apply(self, *words: str, text: str = "", **environment: str) -> Said:
        return self.service("apply", "-" if text else str(self.file), *words, text=text,
                            **environment)  # fmt: skip

    def done(self, *words: str, text: str = "") -> str:
        """Run a command that has to go well; return what it printed."""
        said = self.service(*words, text=text)
        assert (said.code, said.err) == (0, "")
        return said.out

    def document(self, *words: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.done(*words, "--json"))
        return document

    def chains(self, table: str = "nat", family: int = 4) -> dict[str, list[str]]:
        return chains_of(tables_of(self.netns.save(family))[table])

    def count(self, chain: str, number: int, connections: int) -> None:
        """Have the oracle set a rule's counters."""
        options = ["-t", "nat", "-R", chain, str(number), "-c", str(connections), "60"]
        spec = shlex.split(self.chains()[chain][number - 1])
        done = self.netns.legacy(*options, *spec)
        assert done.returncode == 0, done.stderr

    def counters(self, chain: str) -> list[int]:
        lines = self.netns.save(4, "-c").splitlines()
        return [int(line[1:].split(":")[0]) for line in lines if f"] -A {chain} " in line]


@pytest.fixture
def node(netns: Namespace, tmp_path: Path) -> Node:
    return Node(netns, tmp_path)


# --- apply and plan -------------------------------------------------------------------------------


def test_the_chains_that_iptables_save_prints(node: Node) -> None:
    """A list becomes kube-proxy's chains, before the rules of others, which stay as they are."""
    said = node.apply()
    assert (said.code, said.err) == (0, "")
    found = node.chains()
    assert {chain: rules for chain, rules in found.items() if chain in NAT} == NAT
    assert len(found) == len(NAT) + 5  # the entrance, and two services called dns
    assert node.chains("filter")["FORWARD"][-1] == "-j DOCKER"
    assert len(node.chains("filter")["FORWARD"]) == 5
    for line in OTHERS.splitlines():
        assert line in node.netns.save(4, "-c").splitlines()
    assert "10.96.0.53" not in node.netns.save(6)
    assert "fd00::53/128 -p udp" in node.netns.save(6)


def test_what_apply_says(node: Node) -> None:
    """Services that come, rules in numbers, who is not served, and how it is undone."""
    said = node.apply()
    lines = said.out.splitlines()
    assert lines[0] == "+ shop/web:http (tcp): 10.96.0.10:80, node port 30080; 2 endpoints"
    assert lines[1] == "+ dns (udp): 10.96.0.53:53, [fd00::53]:53; 1 endpoint"
    assert re.fullmatch(r"\d+ rules to add, \d+ chains to create", lines[3])
    assert "# dns (udp) has no endpoint of IPv6 that serves: connections are rejected" in lines
    assert lines[-1] == "applied: history entry 1; nfctl rollback undoes it"


def test_twice_is_once(node: Node) -> None:
    """What is there already is not written again, and needs no entry."""
    node.apply()
    before = node.netns.save(4, "-c")
    said = node.apply()
    assert said.out.splitlines()[-1] == "nothing to change"
    assert node.netns.save(4, "-c") == before
    assert len(node.state.entries()) == 1


def test_quiet_and_rules(node: Node) -> None:
    """--quiet says nothing, --rules every rule as nfctl apply does."""
    assert node.apply("--quiet") == (0, "", "")
    out = node.done("set-endpoints", "shop/web:http", "--remove", "10.0.0.6:8080", "--rules")
    assert f"- -A {SIX} -s 10.0.0.6/32" in out
    assert f"@@ {SIX}, deleted @@" in out


def test_a_plan_says_what_apply_will_and_writes_nothing(node: Node) -> None:
    """Exit 1 where something would change, 0 where nothing would, 2 for a wrong list."""
    before = node.netns.save(4, "-c")
    planned = node.service("plan", str(node.file))
    assert planned.code == 1
    assert node.netns.save(4, "-c") == before
    assert not node.directory.exists()
    assert node.apply().out.startswith(planned.out)
    assert node.service("plan", str(node.file)).code == 0
    assert node.service("plan", "-", text=node.done("list", "--json")).code == 0
    wrong = node.service("plan", "-", text=LIST.replace("30080", "many"))
    assert wrong.code == 2
    assert wrong.err.startswith("nfctl: error: <stdin>:6:14: an integer is expected")


def test_a_wrong_list_changes_nothing(node: Node) -> None:
    """A mistake in the last service leaves the tables, and what was applied, as they are."""
    node.apply()
    before = node.netns.save(4, "-c")
    said = node.apply(text=LIST + "- {name: web2, port: 80, cluster-ips: 10.96.0.10}\n")
    assert said.code == 2
    assert "has 10.96.0.10:80/tcp as shop/web:http has" in said.err
    assert node.netns.save(4, "-c") == before


def test_what_somebody_else_changed_is_put_right(node: Node) -> None:
    """The same list again repairs its chains, and says that it was they that differed."""
    node.apply()
    before = node.chains()
    assert node.netns.legacy("-t", "nat", "-F", SIX).returncode == 0
    said = node.apply()
    assert said.out.startswith("2 rules to add: the list is the same, the kernel's chains were not")
    assert node.chains() == before


def test_the_document_of_apply(node: Node) -> None:
    """--json has what the docstring shows, and the services that come, go and differ."""
    doc = commands.__doc__ or ""
    found = node.document("apply", str(node.file))
    for key in (*found, *found["services"], *found["flows"]):
        assert f'"{key}"' in doc, key
    assert found["status"] == "applied"
    assert found["entry"] == 1
    assert [one["name"] for one in found["services"]["added"]] == ["shop/web:http", "dns", "dns"]
    assert found["unserved"][0]["name"] == "dns"
    found = node.document("set-endpoints", "dns/udp", "10.0.0.8:53", "[fd00::9]:53")
    (changed,) = found["services"]["changed"]
    assert changed["endpoints"] == {
        "added": ["10.0.0.8:53", "[fd00::9]:53"], "removed": ["10.0.0.9:53"], "changed": [],
    }  # fmt: skip
    assert found["unserved"] == []
    assert found["flows"] == {"udp": 0, "streams": None, "left": 0, "problem": None}
    assert "tables" in node.document("apply", str(node.file), "--rules")["change"]


@given(settings=serving.lists())
@examples(12)
def test_any_list_is_what_the_oracle_would_have_loaded(
    netns: Namespace, settings: ServiceList
) -> None:
    """The tables are those that iptables-legacy-restore makes of the same rules, chain by chain."""

    def ours() -> dict[int, str]:
        play.fresh()
        shutil.rmtree(STATE, ignore_errors=True)
        listed = json.dumps(settings.document())
        done = play.nfctl(["service", "apply", "-", "-q"], listed, NFCTL_STATE_DIR=STATE)
        assert (done.code, done.err) == (0, "")
        return {family: play.saved(family) for family in (4, 6)}

    def theirs() -> dict[int, str]:
        play.fresh()
        for family in chains.families(settings):
            play.load(text(settings, family), family)
        return {family: play.saved(family) for family in (4, 6)}

    mine, his = netns.python(ours), netns.python(theirs)
    for family in (4, 6):
        assert {name: chains_of(table) for name, table in tables_of(mine[family]).items()} == {
            name: chains_of(table) for name, table in tables_of(his[family]).items()
        }


def text(settings: ServiceList, family: int) -> str:
    """Return a list's rules for iptables-restore."""
    found, jumps = chains.compiled(settings, family)
    lines = []
    for table in ("nat", "filter", "mangle"):
        mine = {chain: rules for (t, chain), rules in {**jumps, **found}.items() if t == table}
        lines.append(f"*{table}")
        lines += [f":{chain} - [0:0]" for chain in mine if (table, chain) in found]
        lines += [f"-A {chain} {rule}" for chain, rules in mine.items() for rule in rules]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


# --- prefixes and whose chains they are -----------------------------------------------------------


def test_two_prefixes_beside_each_other(node: Node) -> None:
    """--prefix overrides the file's; each has its chains, its list and its deletion."""
    node.apply()
    other = LIST.replace("30080", "30081").replace("10.96.", "10.97.").replace("::53", "::54")
    assert node.apply("--prefix", "LB", text=other).code == 0
    assert {chain[:3] for chain in node.chains() if "-SVC-" in chain} == {"NFC", "LB-"}
    assert "10.97.0.10:80" in node.done("list", "--prefix", "LB-")
    assert "10.96.0.10:80" in node.done("list")
    node.done("delete", "--all", "--prefix", "LB")
    assert {chain[:3] for chain in node.chains() if "-SVC-" in chain} == {"NFC"}
    assert node.service("list", "--prefix", "XY").err.splitlines()[1] == (
        "  hint: there are those of LB-, NFCTL-: --prefix"
    )


def test_the_only_prefix_need_not_be_said(node: Node) -> None:
    """Where services of one prefix alone were applied, it is that one."""
    node.apply("--prefix", "LB")
    assert "dns" in node.done("list")
    assert node.service("apply", "-", "--prefix", "toolong-9", text=LIST).code == 2


def test_chains_of_a_running_kube_proxy_are_refused(node: Node) -> None:
    """They are another program's; --adopt takes them over, and what leads to them."""
    kube = LIST.replace("cluster:", "prefix: KUBE-\ncluster:")
    done = node.netns.run(
        ["iptables-legacy-restore", "--noflush"],
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n"
        "-A PREROUTING -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.1.1.1/32 "
        "-j KUBE-SVC-AAAAAAAAAAAAAAAA\nCOMMIT\n",
    )
    assert done.returncode == 0, done.stderr
    before = node.netns.save(4, "-c")
    said = node.apply(text=kube)
    assert said.code == 2
    assert "there are 2 chains KUBE-* already" in said.err
    assert "--adopt" in said.err
    assert node.netns.save(4, "-c") == before
    assert "apply will refuse this" in node.service("plan", "-", text=kube).out
    assert (
        "2 chains KUBE-* that nfctl did not know are taken over"
        in node.apply("--adopt", text=kube).out
    )
    found = node.chains()
    assert "KUBE-SVC-AAAAAAAAAAAAAAAA" not in found
    assert found["PREROUTING"] == ['-m comment --comment "service portals" -j KUBE-SERVICES']


def test_own_chains_without_a_record_are_taken_over(node: Node) -> None:
    """Where the state was lost, the same list finds its chains and repairs what is another."""
    node.apply()
    before = node.chains()
    node.nfctl("policy", "forget", "services-NFCTL")
    assert node.service("list").code == 1
    assert node.apply().code == 0
    assert node.chains() == before
    node.nfctl("policy", "forget", "services-NFCTL")
    node.apply(text="services:\n- {name: one, port: 1, node-port: 1}\n")
    assert not [chain for chain in node.chains() if "-SVC-" in chain]


def test_a_policy_of_that_name(node: Node) -> None:
    """A policy that is called as the services' would be is not overwritten."""
    policy = "version: 1\nname: services-NFCTL\ntables: {filter: {INPUT: {policy: accept}}}\n"
    assert node.nfctl("apply", "-q", "-", text=policy).code == 0
    said = node.apply()
    assert said.code == 2
    assert "services-NFCTL is the name of another policy" in said.err


# --- safety ---------------------------------------------------------------------------------------

SSH = "192.0.2.7 50000 198.51.100.1 22"


@pytest.mark.parametrize(
    ("place", "connection"),
    [
        ("external-ips: 198.51.100.1", SSH),
        ("cluster-ips: 198.51.100.1", SSH),
        ("node-port: 22", SSH),
        ('external-ips: "2001:db8::1"', "2001:db8::7 50000 2001:db8::1 22"),
    ],
)
def test_the_operators_own_connection(node: Node, place: str, connection: str) -> None:
    """A service at the address and port of the operator's SSH needs --force."""
    text = f"services: [{{name: web, port: 22, {place}, endpoints: ['10.0.0.5:22']}}]\n"
    said = node.apply(text=text, SSH_CONNECTION=connection)
    assert said.code == 1
    assert "this would cut off tcp" in said.err
    assert "NFCTL" not in node.netns.save(4)
    planned = node.service("plan", "-", text=text, SSH_CONNECTION=connection)
    assert "apply will refuse this: this would cut off" in planned.out
    assert "as --force allows" in node.apply("--force", text=text, SSH_CONNECTION=connection).out
    # what was taken before is not refused again
    assert node.service("set-endpoints", "web", "10.0.0.6:22", SSH_CONNECTION=connection).code == 0


@pytest.mark.parametrize(
    "service",
    [
        "port: 23, external-ips: 198.51.100.1",
        "port: 22, external-ips: 198.51.100.2",
        "port: 22, protocol: udp, external-ips: 198.51.100.1, node-port: 22",
        "port: 22, node-port: 2222",
    ],
)
def test_who_is_not_cut_off(node: Node, service: str) -> None:
    """Another port, address or protocol takes nothing away."""
    text = f"services: [{{name: web, {service}}}]\n"
    assert node.apply(text=text, SSH_CONNECTION=SSH).code == 0


def test_node_ports_elsewhere_than_the_operators_address(node: Node) -> None:
    """Node ports on some of the node's addresses alone do not take the others'."""
    text = "node-addresses: 10.0.0.0/8\nservices: [{name: web, port: 22, node-port: 22}]\n"
    assert node.apply(text=text, SSH_CONNECTION=SSH).code == 0


def test_forwarding_that_is_off_is_told(node: Node) -> None:
    """A namespace forwards nothing at first: endpoints elsewhere are not reached by others."""
    assert "# net.ipv4.ip_forward is 0" in node.apply().out
    here = "services: [{name: web, port: 1, node-port: 1, endpoints: ['127.0.0.1:80']}]\n"
    out = node.apply(text=here).out
    assert "ip_forward" not in out
    assert "loopback" in out
    assert node.netns.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"]).returncode == 0
    assert "ip_forward" not in node.apply().out


def test_ranges_of_one_family_are_told(node: Node) -> None:
    """Where endpoints are not reached for want of ranges of their family, a note says so."""
    text = """\
    node-addresses: [192.0.2.0/24]
    services:
    - {name: web, port: 80, node-port: 30080, endpoints: ["10.0.0.5:80", "[fd00::5]:80"]}
    - name: api
      port: 80
      cluster-ips: 10.96.0.10
      external-ips: ["2001:db8::7", 198.51.100.7]
      endpoints: ["10.0.0.5:80", "[fd00::5]:80"]
      source-ranges: 198.51.100.0/24
    """
    text = textwrap.dedent(text)
    notes = [line for line in node.apply(text=text).out.splitlines() if "IPv6" in line]
    assert notes == [
        "# node ports are served by IPv4 alone, as node-addresses has no range of IPv6 "
        "(::/0 is all): 30080 of web (tcp)",
        "# nobody may come in by IPv6, as source-ranges has none of IPv6: api (tcp)",
    ]
    assert not [rule for rule in node.chains(family=6).values() if "30080" in str(rule)]
    said = node.nfctl("kube", "show")
    assert said.code == 0, "what is not served is no problem"
    both = text.replace("[192.0.2.0/24]", "[192.0.2.0/24, '::/0']")
    both = both.replace("198.51.100.0/24", "[198.51.100.0/24, '::/0']")
    assert "IPv6 alone" not in node.apply(text=both).out
    assert "30080" in str(node.chains(family=6)["NFCTL-NODEPORTS"])
    assert "nobody may come" not in node.apply(text=both).out


def test_an_endpoint_that_is_a_cluster_ip(node: Node) -> None:
    """Nothing is translated twice: an endpoint that is a service's own address is told."""
    node.apply()
    said = node.done("set-endpoints", "dns/tcp", "10.96.0.10:80")
    assert "this is a cluster IP: 10.96.0.10:80 of dns (tcp)" in said
    assert "cluster IP" not in node.done("set-endpoints", "dns/udp", "10.96.0.10:80")


def test_an_address_of_two_prefixes(node: Node) -> None:
    """Services that get an address which those of another prefix have are told, once."""
    node.apply()
    taken = "# services of prefix NFCTL- have these, too"
    dns = "services: [{name: dns, port: 53, cluster-ips: [10.96.0.53, 10.96.0.54]}]\n"
    for command in ("plan", "apply"):
        out = node.service(command, "-", "--prefix", "LB", text=dns).out
        assert [line for line in out.splitlines() if line.startswith("# services")] == [
            f"{taken}, and whose chains are jumped to first gets them: 10.96.0.53:53 of dns (tcp)"
        ]
    assert "these, too" not in node.done("set-endpoints", "dns", "10.0.0.1:53", "--prefix", "LB")
    other = dns.replace("10.96.0.53, ", "").replace("}]", ", protocol: udp}]")
    assert "these, too" not in node.apply("--prefix", "LB", text=other).out


def test_one_chain_of_somebody_else(node: Node) -> None:
    """A single chain of a prefix is named, be it refused or taken over."""
    for chain in ("LB-SERVICES", "NFCTL-FORWARD"):
        assert node.netns.legacy("-N", chain).returncode == 0
    assert "there is a chain LB-SERVICES already" in node.apply("--prefix", "LB").err
    taken = "a chain NFCTL-* that nfctl did not know is taken over: NFCTL-FORWARD"
    assert taken in node.apply().out


# --- list and show --------------------------------------------------------------------------------


def test_the_table_of_services(node: Node) -> None:
    """A line each, with what serves of what there is; as JSON it is a list to apply."""
    node.apply(text=LIST.replace("node-port: 30080", "node-port: 30080\n  affinity: 3h"))
    node.done("drain", "--no-wait", "shop/web:http", "10.0.0.6:8080")
    lines = [line.split() for line in node.done("list").splitlines()]
    assert lines[0] == ["SERVICE", "PROTOCOL", "ENDPOINTS", "AFFINITY", "POLICIES", "ADDRESSES"]
    assert lines[1][:6] == ["shop/web:http", "tcp", "1/2,", "1", "drains", "3h"]
    assert lines[2][:3] == ["dns", "udp", "1/1"]
    document = node.document("list")
    assert document["services"][0]["affinity"] == 10800
    assert node.service("plan", "-", text=json.dumps(document)).code == 0


def test_a_service_with_its_shares_and_counters(node: Node) -> None:
    """Shares follow from the weights; connections are what the rules that translate counted."""
    node.apply()
    node.count(FIVE, 2, 7)
    node.count(SIX, 2, 12345)
    found = node.document("show", "shop/web:http")
    assert [one["connections"] for one in found["endpoints"]] == [7, 12345]
    assert [one["chain"] for one in found["endpoints"]] == [FIVE, SIX]
    assert [one["share"] for one in found["endpoints"]] == pytest.approx([1 / 3, 2 / 3])
    assert found["chains"] == {"4": ["NFCTL-EXT-67NZLRHBNDSAWJRO", WEB]}
    out = node.done("show", "shop/web:http")
    row = next(line.split() for line in out.splitlines() if line.startswith("10.0.0.6:8080"))
    assert row == ["10.0.0.6:8080", "2", "66.7", "%", "-", "12345", SIX]


def test_a_service_whose_chains_are_gone(node: Node) -> None:
    """What the kernel does not have is told, and counts nothing."""
    node.apply()
    for words in (["-F", WEB], ["-F", SIX], ["-X", SIX]):
        assert node.netns.legacy("-t", "nat", *words).returncode == 0
    found = node.document("show", "shop/web:http")
    assert found["missing"] == [SIX]
    assert [one["connections"] for one in found["endpoints"]] == [0, None]
    assert f"chain {SIX} is not in the kernel" in node.done("show", "shop/web:http")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "web"], 1, "did you mean shop/web:http?"),
        (["show", "dns"], 2, "say which: dns/udp or dns/tcp"),
        (["delete", "nobody"], 1, "there are shop/web:http"),
        (["delete"], 2, "give names, or --all"),
        (["delete", "--all", "dns/udp"], 2, "--all means all services"),
        (["set-endpoints", "dns/udp"], 2, "or --none"),
        (["set-endpoints", "dns/udp", "10.0.0.1"], 2, "is no endpoint"),
        (["set-endpoints", "dns/udp", "--add", "--remove", "10.0.0.1:53"], 2, "exclude each other"),
        (["set-endpoints", "dns/udp", "--remove", "10.0.0.1:53"], 1, "it has 10.0.0.9:53"),
        (["drain", "dns/udp", "10.0.0.1:53"], 1, "it has 10.0.0.9:53"),
        (["drain", "dns/udp", "10.0.0.9:53", "--undo", "--no-wait"], 2, "waits for nothing"),
        (["drain", "dns/udp", "10.0.0.9:53", "--end-tcp"], 2, "--timeout 60 --end-tcp"),
        (["drain", "dns/udp", "10.0.0.9:53", "--timeout", "nan"], 2, "it takes seconds"),
        (["drain", "dns/udp", "10.0.0.9:53", "--timeout", "9", "--no-wait"], 2, "leave out"),
        (["set-endpoints", "dns/udp", "10.0.0.9:53", "--remove", "--local"], 2, "that serve"),
        (["set-endpoints", "dns/udp", "--none", "--local"], 2, "that serve"),
    ],
)
def test_mistakes(node: Node, words: list[str], code: int, said: str) -> None:
    """What is meant is not guessed: nothing changes, and the error says what would be right."""
    node.apply("-q")
    before = node.netns.save(4, "-c")
    found = node.service(*words)
    assert found.code == code
    assert said in found.err
    assert node.netns.save(4, "-c") == before
    assert len(node.state.entries()) == 1


def test_without_a_list(node: Node) -> None:
    """Before the first apply every command says how there is one."""
    for words in (["list"], ["show", "web"], ["delete", "--all"], ["drain", "web", "10.0.0.1:1"]):
        said = node.service(*words)
        assert said.code == 1
        assert "nfctl service apply FILE" in said.err


# --- changes --------------------------------------------------------------------------------------


def test_endpoints_change_and_all_else_goes_on(node: Node) -> None:
    """Only chains of this service differ; counters of those that stay are what they were."""
    node.apply()
    node.count(FIVE, 2, 7)
    before = node.chains()
    node.done("set-endpoints", "shop/web:http", "10.0.0.5:8080", "10.0.0.7:8080*3")
    after = node.chains()
    assert node.counters(FIVE) == [0, 7]
    changed = {chain for chain in before | after if before.get(chain) != after.get(chain)}
    seven = next(chain for chain in after if "10.0.0.7:8080" in str(after[chain]) and chain != WEB)
    assert changed == {WEB, SIX, seven}
    assert "0.25000000000" in after[WEB][1]
    node.done("set-endpoints", "shop/web:http", "--add", "10.0.0.6:8080")
    assert len(node.chains()[WEB]) == 4
    node.done("set-endpoints", "shop/web:http", "--none")
    assert WEB not in node.chains()
    assert "REJECT" in node.chains("filter")["NFCTL-SERVICES"][0]


def test_deleting(node: Node) -> None:
    """A service goes with its chains; with all of them the tables are as they were before."""
    empty = node.netns.save(4, "-c")
    node.apply()
    node.done("delete", "dns/udp", "shop/web:http")
    assert len([chain for chain in node.chains() if "-SVC-" in chain]) == 1
    assert "fd00::53" not in node.netns.save(6)
    node.done("delete", "--all")
    tables = tables_of(node.netns.save(4, "-c"))
    assert {name: tables[name] for name in ("filter", "nat")} == tables_of(empty)
    assert "NFCTL" not in node.netns.save(4) + node.netns.save(6)
    assert node.done("list") == "there are no services of prefix NFCTL-\n"


def test_rollback_brings_the_list_back_too(node: Node) -> None:
    """Chains, list and endpoints are those from before, and history says what was done."""
    node.apply()
    first, listed = node.chains(), node.document("list")
    node.done("set-endpoints", "shop/web:http", "10.0.0.7:8080")
    node.done("delete", "dns/tcp")
    assert node.nfctl("rollback").code == 0
    assert "dns            tcp" in node.done("list")
    assert node.nfctl("rollback").code == 0
    assert node.chains() == first
    assert node.document("list") == listed
    history = node.nfctl("history").out.splitlines()
    assert sum("services-NFCTL" in line for line in history) == 5
    # and it goes on from there: what is applied next is compared with what came back
    assert node.service("plan", str(node.file)).code == 0
    assert node.nfctl("rollback", "1").code == 0
    assert "NFCTL" not in node.netns.save(4) + node.netns.save(6)
    assert node.service("list").code == 1


def test_a_confirmation(node: Node) -> None:
    """--confirm waits for nfctl confirm, and what is not confirmed is undone, the list too."""
    node.apply("-q")
    first, listed = node.chains(), node.document("list")
    less = LIST[: LIST.index("- {name: dns, protocol: tcp")]
    said = node.apply("--confirm", "600", text=less)
    assert "confirm with: nfctl confirm" in said.out
    assert node.chains() != first
    assert node.service("delete", "--all").code == 4
    guardian = Guardian(find_guardian(node.directory))
    expire(node.state, 2)
    guardian.wait()
    assert node.chains() == first
    assert node.document("list") == listed
    found = json.loads(node.apply("--confirm", "600", "--json", text=less).out)
    assert (found["status"], found["confirm"]["seconds"]) == ("unconfirmed", 600)
    assert node.nfctl("confirm").code == 0
    assert node.apply("--confirm", "0").code == 2


def test_services_come_back_at_boot(node: Node) -> None:
    """A restore makes the chains of the confirmed list, beside those of a policy."""
    policy = (
        "version: 1\nname: host\nfamilies: [ipv4]\ntables: {filter: {FORWARD: {rules: "
        "[-i eth0 -j ACCEPT]}, INPUT: {rules: [-i lo -j ACCEPT]}}}\n"
    )
    assert node.nfctl("apply", "-q", "-", text=policy).code == 0
    node.apply("-q")
    node.done("set-endpoints", "shop/web:http", "--add", "10.0.0.7:8080")
    before = [node.netns.save(family) for family in (4, 6)]
    for family in (4, 6):
        for table in ("nat", "filter", "mangle"):
            for word in ("-F", "-X"):
                assert node.netns.legacy("-t", table, word, family=family).returncode == 0
    assert node.nfctl("persist", "status").code == 1
    said = node.nfctl("persist", "restore")
    assert (said.code, said.err) == (0, "")
    assert "policy services-NFCTL: " in said.out
    after = [node.netns.save(family) for family in (4, 6)]
    kept = ("docker", "DOCKER")  # others' rules were flushed, too

    def ours(text: str) -> str:
        return "".join(line for line in text.splitlines(True) if not any(k in line for k in kept))

    assert [ours(text) for text in after] == [ours(text) for text in before]
    assert node.service("plan", "-", text=node.done("list", "--json")).code == 0


def test_policies_come_back_in_their_order_whatever_services_did_since(node: Node) -> None:
    """A change of endpoints says nothing of INPUT: an earlier entry knows who comes first."""

    def policy(name: str, *ports: int) -> str:
        rules = ", ".join(f"-p tcp --dport {port} -j ACCEPT" for port in ports)
        return (
            f"version: 1\nname: {name}\nfamilies: [ipv4]\n"
            f'tables: {{filter: {{INPUT: {{rules: ["{rules}"]}}}}}}\n'.replace(", -p", '", "-p')
        )

    for text in (policy("a", 1), policy("b", 2), policy("a", 1, 3)):
        assert node.nfctl("apply", "-q", "-", text=text).code == 0
    node.apply("-q")
    node.done("set-endpoints", "dns/udp", "10.0.0.8:53")
    before = node.chains("filter")["INPUT"]
    ports = [rule.partition(" --dport ")[2][:1] for rule in before]
    assert "".join(ports) == "123"
    for word in ("-F", "-X"):
        assert node.netns.legacy(word).returncode == 0
    assert node.nfctl("persist", "restore").code == 0
    assert node.chains("filter")["INPUT"] == [r for r in before if "-i lo" not in r]


def test_from_live_leaves_services_out(node: Node) -> None:
    """What a list makes is not written into a policy, whatever its prefix is."""
    assert node.apply("-q", "--prefix", "LB").code == 0
    said = node.nfctl("policy", "from-live")
    assert (said.code, said.err) == (0, "")
    assert "LB-" not in "".join(line for line in said.out.splitlines() if line[:1] != "#")
    made = set(re.findall(r"^:(LB-\S+)", node.netns.save(4) + node.netns.save(6), re.MULTILINE))
    assert f"policy services-LB: {len(made)} chains left out" in said.out


# --- drain ----------------------------------------------------------------------------------------


def test_a_drain_in_parts(node: Node) -> None:
    """--no-wait begins and --undo takes it back; without flows it ends at once."""
    node.apply("-q")
    whole = node.chains()
    found = node.document("drain", "shop/web:http", "10.0.0.6:8080", "--no-wait")
    assert (found["status"], found["open"]) == ("draining", 0)
    assert SIX not in node.chains()
    assert node.document("list")["services"][0]["endpoints"][1]["draining"] is True
    assert "serving again" in node.done("drain", "shop/web:http", "10.0.0.6:8080", "--undo")
    assert node.chains() == whole
    out = node.done("drain", "shop/web:http", "10.0.0.6:8080")
    assert out.endswith("drained: 10.0.0.6:8080\n")
    assert [e["port"] for e in node.document("list")["services"][0]["endpoints"]] == [8080]


# --- the command line -----------------------------------------------------------------------------


def test_services_and_endpoints_are_completed(node: Node) -> None:
    """Names after show and delete, with the protocol where that is needed; endpoints after them."""
    node.apply("-q")

    def offers() -> list[list[str]]:
        return [
            complete(f"nfctl service {line}")
            for line in ("show ", "show s", "delete dns/udp ", "drain dns/udp ", "se")
        ]

    found = node.netns.python(partial(_with_state, str(node.directory), offers))
    assert found == [
        ["shop/web:http", "dns/udp", "dns/tcp"],
        ["shop/web:http"],
        ["shop/web:http", "dns/tcp"],
        ["10.0.0.9:53"],
        ["set-endpoints"],
    ]


def _with_state(directory: str, call: Callable[[], Any]) -> Any:
    os.environ["NFCTL_STATE_DIR"] = directory
    return call()


COMMANDS: dict[str, Callable[..., None]] = {
    "apply": commands.apply,
    "plan": commands.plan,
    "list": commands.list_services,
    "show": commands.show,
    "set-endpoints": service_edit.set_endpoints,
    "drain": service_edit.drain,
    "delete": service_edit.delete,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_help_work(node: Node, name: str, tmp_path: Path) -> None:
    """Every line after Example: does what it says, as it stands there."""
    node.apply("-q", text=LIST.replace("shop/web:http", "web").replace("8080", "80"))
    found = re.findall(
        r"\[bold\]Example:\[/bold\] (.+?)(?:\n\n|$)",
        inspect.getdoc(COMMANDS[name]) or "",
        re.DOTALL,
    )
    assert found
    (tmp_path / "services.json").write_text(node.done("list", "--json"))
    for example in found:
        line = " ".join(example.split())
        script = f'cd {tmp_path}; nfctl() {{ "{sys.executable}" -m nfctl "$@"; }}; {line}'
        done = node.netns.run(["env", f"NFCTL_STATE_DIR={node.directory}", "sh", "-ec", script])
        assert (done.returncode, done.stderr) == (0, ""), line
