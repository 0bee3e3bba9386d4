"""The guard against being locked out, beside what really happens to a connection.

The oracle is a network of real hosts: the same rules, loaded by iptables-legacy-restore, really
break or keep a connection between a client behind a router and the firewall.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfctl.control import guard
from nfctl.control.guard import Answer, Flow
from nfctl.errors import AnswerNo, BadInput
from nfctl.kernel import lock
from nfctl.lab import Host, Lab, Verdict, syscalls, traffic
from nfctl.policy.wanted import WantedSet
from nfctl.ruleset.names import BUILTIN_CHAINS
from tests.kernel.conftest import SLOWNESS, legacy
from tests.kernel.test_properties import examples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nfctl.lab import Worker

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(
        not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN),
        reason="needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root",
    ),
]

CLIENT: Final = {4: "192.0.2.9", 6: "2001:db8:9::9"}
FIREWALL: Final = {4: "10.0.0.1", 6: "2001:db8::1"}
INNER: Final = {4: "10.0.1.9", 6: "2001:db8:1::9"}
OTHER: Final = {4: "198.51.100.0/24", 6: "2001:db8:ff::/48"}
ICMP: Final = {4: "icmp", 6: "ipv6-icmp"}
WAIT: Final = 0.5 * SLOWNESS  # seconds for what does not come: one retransmission

families = pytest.mark.parametrize("family", [4, 6])


class Stage:
    """A client, a router, the firewall, and a host behind it."""

    def __init__(self, lab: Lab) -> None:
        self.client = lab.host("client")
        self.router = lab.host("router", forward=True)
        self.firewall = lab.host("firewall", forward=True)
        self.inner = lab.host("inner")
        lab.link(
            self.client.port("eth0", "192.0.2.9/24", "2001:db8:9::9/64"),
            self.router.port("eth0", "192.0.2.1/24", "2001:db8:9::1/64"),
        )
        lab.link(
            self.router.port("eth1", "10.0.0.254/24", "2001:db8::fe/64"),
            self.firewall.port("eth0", "10.0.0.1/24", "2001:db8::1/64"),
        )
        lab.link(
            self.firewall.port("eth1", "10.0.1.1/24", "2001:db8:1::1/64"),
            self.inner.port("eth0", "10.0.1.9/24", "2001:db8:1::9/64"),
        )
        for host, vias in (
            (self.client, ("192.0.2.1", "2001:db8:9::1")),
            (self.firewall, ("10.0.0.254", "2001:db8::fe")),
            (self.inner, ("10.0.1.1", "2001:db8:1::1")),
        ):
            for via in vias:
                host.route("default", via=via)
        self.router.route("10.0.1.0/24", via="10.0.0.1")
        self.router.route("2001:db8:1::/64", via="2001:db8::1")
        self.firewall.serve(tcp=[22, 23], udp=[53])
        self.inner.serve(tcp=[443, 8443], udp=[53])
        self.talker: Worker = self.client.worker()

    def check(
        self,
        flow: str | Flow,
        before: str | Mapping[int, str],
        after: str | Mapping[int, str],
        sets: Sequence[WantedSet] = (),
    ) -> Answer:
        """Ask the guard, on the firewall."""
        asked = Flow.parse(flow) if isinstance(flow, str) else flow
        old, new = (
            {asked.version: text} if isinstance(text, str) else dict(text)
            for text in (before, after)
        )
        (answer,) = self.firewall.run(guard.check, [asked], old, new, sets)
        return answer

    # --- what really happens ------------------------------------------------------------------

    def load(self, text: str, family: int) -> None:
        """Load rules on the firewall, with the oracle."""
        done = self.firewall.popen(
            [f"{legacy(family)}-restore"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        _, errors = done.communicate(text, timeout=30)
        assert done.returncode == 0, f"{errors}\n{text}"

    def clear(self, family: int) -> None:
        """Have no rules and no memory on the firewall."""
        self.load(full({}), family)
        self.forget()

    def forget(self) -> None:
        """Forget connections and neighbours."""
        self.firewall.call(["conntrack", "-F"])
        for host in (self.router, self.firewall, self.inner):
            host.call(["ip", "neigh", "flush", "all"])

    def open(self, address: str, port: int) -> int | None:
        """Connect, really; None if that fails."""
        try:
            return self.talker.run(partial(traffic.open, address, port, timeout=WAIT))
        except AnswerNo:
            return None

    def says(self, number: int) -> bool:
        """Whether an answer comes on a real connection."""
        answer = self.talker.run(partial(traffic.say, number, b"hello", timeout=WAIT))
        return answer.verdict is Verdict.ACCEPTED

    def close(self, number: int | None) -> None:
        if number is not None:
            self.talker.run(traffic.close, number)

    def outcome(self, before: str, after: str, address: str, port: int) -> tuple[bool, bool, bool]:
        """Return whether a real connection is made before, lives through, and comes again."""
        family = 6 if ":" in address else 4
        self.clear(family)
        self.load(before, family)
        number = self.open(address, port)
        try:
            self.load(after, family)
            lives = number is not None and self.says(number)
        finally:
            self.close(number)
        self.forget()
        again = self.open(address, port)
        comes = again is not None and self.says(again)
        self.close(again)
        return number is not None, lives, comes


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Lab("tests") as lab:
        yield Stage(lab)


def full(rules: Mapping[str, Sequence[str]], **policies: str) -> str:
    """Write iptables-save text of all tables: rules by ``table CHAIN``, policies of filter."""
    lines = []
    for table, chains in BUILTIN_CHAINS.items():
        lines.append(f"*{table}")
        for chain in chains:
            policy = policies.get(chain, "ACCEPT") if table == "filter" else "ACCEPT"
            lines.append(f":{chain} {policy} [0:0]")
        named = [key.split()[1] for key in rules if key.split()[0] == table]
        lines += [f":{chain} - [0:0]" for chain in named if chain not in chains]
        for key, specs in rules.items():
            if key.split()[0] == table:
                lines += [f"-A {key.split()[1]} {spec}".rstrip() for spec in specs]
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


def icmp(family: int) -> str:
    return f"-p {ICMP[family]} -j ACCEPT"


OPEN: Final = full({})
SSH: Final = "-p tcp -m tcp --dport 22 -j ACCEPT"
FOLLOWS: Final = "-m conntrack --ctstate ESTABLISHED -j ACCEPT"
NEW_SSH: Final = "-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -j ACCEPT"
TRACKED: Final = full({"filter INPUT": [FOLLOWS]})


def lockouts(family: int) -> dict[str, tuple[str, str, str, str, str]]:
    """Return changes that lock out: before, after, how, direction, and the rule's place."""
    client, ping = CLIENT[family], icmp(family)

    def one(key: str, *specs: str, **policies: str) -> str:
        return full({key: specs}, **policies)

    return {
        "policy": (OPEN, one("filter INPUT", ping, INPUT="DROP"), "established", "request",
                   "filter INPUT 0"),
        "other port": (OPEN, one("filter INPUT", ping, SSH.replace("22", "2222"), INPUT="DROP"),
                       "established", "request", "filter INPUT 0"),
        "address": (OPEN, one("filter INPUT", f"-s {client} -j DROP"), "established", "request",
                    "filter INPUT 1"),
        "behind": (OPEN, one("filter INPUT", "-p udp -j DROP", f"-s {client} -j DROP", SSH),
                   "established", "request", "filter INPUT 2"),
        "reject": (OPEN, one("filter INPUT", "-p tcp -j REJECT"), "established", "request",
                   "filter INPUT 1"),
        "reset": (OPEN, one("filter INPUT", "-p tcp -j REJECT --reject-with tcp-reset"),
                  "established", "request", "filter INPUT 1"),
        "raw": (OPEN, one("raw PREROUTING", f"-s {client} -j DROP"), "established", "request",
                "raw PREROUTING 1"),
        "mangle": (OPEN, one("mangle PREROUTING", f"-s {client} -j DROP"), "established",
                   "request", "mangle PREROUTING 1"),
        "mangle input": (OPEN, one("mangle INPUT", "-p tcp -j DROP"), "established", "request",
                         "mangle INPUT 1"),
        "security": (OPEN, one("security INPUT", "-p tcp -j DROP"), "established", "request",
                     "security INPUT 1"),
        "output": (OPEN, one("filter OUTPUT", ping, OUTPUT="DROP"), "established", "reply",
                   "filter OUTPUT 0"),
        "postrouting": (OPEN, one("mangle POSTROUTING", f"-d {client} -j DROP"), "established",
                        "reply", "mangle POSTROUTING 1"),
        "interface": (OPEN, one("filter INPUT", ping, f"-i eth1 {SSH}", INPUT="DROP"),
                      "established", "request", "filter INPUT 0"),
        "user chain": (OPEN, full({"filter INPUT": ["-p tcp -j GUESTS"],
                                   "filter GUESTS": ["-p udp -j RETURN", "-j DROP"]}),
                       "established", "request", "filter GUESTS 2"),
        "only new": (TRACKED, one("filter INPUT", ping, NEW_SSH, INPUT="DROP"), "established",
                     "request", "filter INPUT 0"),
        "only established": (TRACKED, one("filter INPUT", ping, FOLLOWS, INPUT="DROP"), "new",
                             "request", "filter INPUT 0"),
        "untracked": (OPEN, one("filter INPUT", ping, FOLLOWS, INPUT="DROP"), "established",
                      "request", "filter INPUT 0"),
        "no syn": (TRACKED, one("filter INPUT", FOLLOWS, "-p tcp -m tcp --syn -j DROP"), "new",
                   "request", "filter INPUT 2"),
        "redirect": (TRACKED, full({"filter INPUT": [FOLLOWS],
                                    "nat PREROUTING": ["-p tcp --dport 22 -j REDIRECT "
                                                       "--to-ports 24"]}),
                     "new", "request", "nat PREROUTING 1"),
        "invalid": (TRACKED, full({"filter INPUT": ["-m conntrack --ctstate UNTRACKED -j DROP"],
                                   "raw PREROUTING": ["-p tcp -j CT --notrack"]}),
                    "established", "request", "filter INPUT 1"),
    }  # fmt: skip


@families
@pytest.mark.parametrize("case", lockouts(4))
def test_a_lockout_is_refused(stage: Stage, family: int, case: str) -> None:
    """What really breaks the connection is refused, and the rule that does it is named."""
    before, after, how, direction, place = lockouts(family)[case]
    made, lives, comes = stage.outcome(before, after, FIREWALL[family], 22)
    assert made
    assert (lives, comes) == (how == "new", False)
    answer = stage.check(f"{CLIENT[family]} > [{FIREWALL[family]}]:22", before, after)
    assert not answer.allowed, answer
    assert (answer.how, answer.direction) == (how, direction), answer
    assert answer.rule is not None, answer
    assert "{table} {chain} {number}".format(**answer.rule) == place
    assert answer.rule["family"] == family
    table, chain, number = place.split()
    assert f"{table} {chain} " + (f"rule {number}" if number != "0" else "policy") in answer.reason


def harmless(family: int) -> dict[str, tuple[str, str]]:
    """Return changes that keep the connection: before and after."""
    client, ping = CLIENT[family], icmp(family)
    strict = full(
        {"filter INPUT": [ping, "-i lo -j ACCEPT", FOLLOWS, NEW_SSH]}, INPUT="DROP", FORWARD="DROP"
    )
    return {
        "first rules": (OPEN, strict),
        "another rule": (
            strict,
            strict.replace(NEW_SSH, f"-p tcp -m tcp --dport 80 -j ACCEPT\n-A INPUT {NEW_SSH}"),
        ),
        "no rules": (strict, OPEN),
        "the right interface": (
            OPEN,
            full({"filter INPUT": [ping, f"-i eth0 {SSH}"]}, INPUT="DROP"),
        ),
        "the client's address": (
            OPEN,
            full({"filter INPUT": [ping, f"-s {client} -j ACCEPT", "-j DROP"]}),
        ),
        "others": (OPEN, full({"filter INPUT": [f"-s {OTHER[family]} -j DROP"]})),
        "answers only": (OPEN, full({"filter OUTPUT": [ping, FOLLOWS]}, OUTPUT="DROP")),
        "logged": (
            OPEN,
            full({"filter INPUT": ["-j LOG --log-prefix x", "-p tcp -j NFLOG", SSH]}),
        ),
        "marked": (
            OPEN,
            full(
                {
                    "mangle PREROUTING": ["-i eth0 -j MARK --set-mark 7"],
                    "filter INPUT": ["-m mark --mark 7 -j ACCEPT", "-p tcp -j DROP"],
                }
            ),
        ),
    }


@families
@pytest.mark.parametrize("case", harmless(4))
def test_a_harmless_change_is_allowed(stage: Stage, family: int, case: str) -> None:
    """What really keeps the connection is allowed."""
    before, after = harmless(family)[case]
    assert stage.outcome(before, after, FIREWALL[family], 22) == (True, True, True)
    answer = stage.check(f"{CLIENT[family]} > [{FIREWALL[family]}]:22", before, after)
    assert (answer.allowed, answer.how, answer.rule) == (True, "new", None), answer


def test_neighbour_discovery_matters(stage: Stage) -> None:
    """Rules that drop ICMPv6 are refused: a connection ends when the router asks where we are."""
    after = full({"filter INPUT": [SSH]}, INPUT="DROP")
    assert stage.outcome(OPEN, after, FIREWALL[6], 22) == (True, True, False)
    answer = stage.check(f"{CLIENT[6]} > [{FIREWALL[6]}]:22", OPEN, after)
    assert (answer.allowed, answer.how) == (False, "new")
    assert "neighbour discovery" in answer.reason
    assert "filter INPUT policy DROP" in answer.reason


@families
def test_a_rule_of_the_other_family_does_not_matter(stage: Stage, family: int) -> None:
    """Only the rules of the connection's own family can end it."""
    closed = full({}, INPUT="DROP")
    other = {4: 6, 6: 4}[family]
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"
    assert stage.check(flow, {4: OPEN, 6: OPEN}, {family: OPEN, other: closed}).allowed
    assert not stage.check(flow, {4: OPEN, 6: OPEN}, {family: closed, other: OPEN}).allowed


@families
def test_forwarded(stage: Stage, family: int) -> None:
    """A flow through this host is tried from one interface to the other."""
    flow = f"{CLIENT[family]} > [{INNER[family]}]:443"
    good = full(
        {"filter FORWARD": [FOLLOWS, "-i eth0 -o eth1 -p tcp -m tcp --dport 443 -j ACCEPT"]},
        FORWARD="DROP",
    )
    wrong = good.replace("-i eth0 -o eth1", "-i eth1 -o eth0")
    local = full({"filter INPUT": [icmp(family)], "filter OUTPUT": [icmp(family)]},
                 INPUT="DROP", OUTPUT="DROP")  # fmt: skip
    for after, expected in (
        (good, (True, True, True)),
        (local, (True, True, True)),
        # What answers is taken for a new connection's, the other way round.
        (wrong, (True, False, False)),
    ):
        made = stage.outcome(good if after is wrong else OPEN, after, INNER[family], 443)
        if after is wrong:
            made = (made[0], made[1] and made[2], made[2])
        assert made == expected
        before = good if after is wrong else OPEN
        answer = stage.check(flow, before, after)
        assert answer.allowed is expected[2], answer
    assert answer.rule is not None
    assert (answer.rule["chain"], answer.rule["number"]) == ("FORWARD", 0)


@families
def test_translated(stage: Stage, family: int) -> None:
    """A flow to an address of this host that DNAT sends on is tried at its new destination."""
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:443"
    inner = f"[{INNER[family]}]" if family == 6 else INNER[family]
    rule = f"-p tcp -m tcp --dport 443 -j DNAT --to-destination {inner}:8443"
    before = full({"nat PREROUTING": [rule]})
    stays = full({"nat PREROUTING": [rule], "filter FORWARD": [SSH.replace("22", "8443"), FOLLOWS]},
                 FORWARD="DROP")  # fmt: skip
    ends = full({"nat PREROUTING": [rule]}, FORWARD="DROP")
    elsewhere = full({"nat PREROUTING": [rule.replace("8443", "8444")]})
    assert stage.outcome(before, stays, FIREWALL[family], 443) == (True, True, True)
    assert stage.check(flow, before, stays).allowed
    assert stage.outcome(before, ends, FIREWALL[family], 443) == (True, False, False)
    answer = stage.check(flow, before, ends)
    assert (answer.allowed, answer.how) == (False, "established")
    assert "filter FORWARD policy DROP" in answer.reason
    assert stage.outcome(before, elsewhere, FIREWALL[family], 443) == (True, True, False)
    answer = stage.check(flow, before, elsewhere)
    assert (answer.allowed, answer.how) == (False, "new")
    assert answer.rule is not None
    assert answer.rule["table"] == "nat"


@families
def test_the_operator_behind_a_redirect(stage: Stage, family: int) -> None:
    """What sshd says is the port after NAT; conntrack knows what the client connected to."""
    redirect = {"nat PREROUTING": ["-p tcp -m tcp --dport 2222 -j REDIRECT --to-ports 22"]}
    only_redirected = (
        "-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW ! --ctorigdstport 2222 -j DROP"
    )
    before = full({**redirect, "filter INPUT": [only_redirected]})
    after = full({**redirect, "filter INPUT": [only_redirected, SSH]})
    stage.clear(family)
    stage.load(before, family)
    number = stage.open(FIREWALL[family], 2222)
    assert number is not None
    try:
        address, port = stage.talker.run(_local, number)
        flow = guard.operator({"SSH_CONNECTION": f"{address} {port} {FIREWALL[family]} 22"})
        assert flow is not None
        assert stage.check(flow, before, after).how == "new"
        gone = stage.check(flow, before, full({"filter INPUT": [only_redirected]}))
        assert (gone.allowed, gone.how) == (False, "new")
        stage.load(full({"filter INPUT": [only_redirected]}), family)
        assert stage.says(number)
    finally:
        stage.close(number)
        stage.clear(family)
    assert stage.open(FIREWALL[family], 2222) is None


def _local(number: int) -> tuple[str, int]:
    from nfctl.lab.traffic import held

    return held._held[number].local


@families
def test_the_operator_speaks_last(stage: Stage, family: int) -> None:
    """Rules that take only SYNs for new keep an untracked connection: the shell answers first."""
    syn = "-p tcp -m tcp --syn --dport 22 -j ACCEPT"
    after = full({"filter INPUT": [icmp(family), FOLLOWS, syn]}, INPUT="DROP")
    flow = guard.operator({"SSH_CONNECTION": f"{CLIENT[family]} 50000 {FIREWALL[family]} 22"})
    assert flow is not None
    assert stage.check(flow, OPEN, after).how == "new"


@families
def test_datagrams(stage: Stage, family: int) -> None:
    """UDP is tried with datagrams both ways."""
    flow = f"udp {CLIENT[family]} > [{FIREWALL[family]}]:53"
    allow = "-p udp -m udp --dport 53 -j ACCEPT"
    good = full({"filter INPUT": [icmp(family), allow]}, INPUT="DROP")
    assert stage.check(flow, OPEN, good).how == "new"
    answer = stage.check(flow, OPEN, good.replace(" --dport 53", " --dport 54"))
    assert (answer.allowed, answer.how, answer.direction) == (False, "established", "request")
    answer = stage.check(flow, OPEN, full({"filter OUTPUT": ["-p udp -j DROP"]}))
    assert (answer.allowed, answer.how, answer.direction) == (False, "established", "reply")


@families
def test_from_here(stage: Stage, family: int) -> None:
    """A flow that begins on this host is tried, and one that stays on it."""
    out = f"{FIREWALL[family]} > [{INNER[family]}]:443"
    assert stage.check(out, OPEN, full({}, INPUT="DROP", FORWARD="DROP")).allowed is False
    follows = full({"filter INPUT": [icmp(family), FOLLOWS]}, INPUT="DROP")
    assert stage.check(out, OPEN, follows).how == "new"
    here = f"{FIREWALL[family]} > [{FIREWALL[family]}]:22"
    assert stage.check(
        here, OPEN, full({"filter INPUT": ["-i lo -j ACCEPT"]}, INPUT="DROP")
    ).allowed
    assert not stage.check(here, OPEN, full({"filter INPUT": ["-i lo -j DROP"]})).allowed
    assert stage.check(here, OPEN, full({"filter INPUT": ["-i eth0 -j DROP"]})).allowed


@families
def test_sets(stage: Stage, family: int) -> None:
    """A set decides by what it will hold, whether its contents or the rules change."""
    kind = f"guard{family}"
    stage.firewall.call(
        ["ipset", "create", kind, "hash:net", "family", "inet" if family == 4 else "inet6"]
    )
    stage.firewall.call(["ipset", "add", kind, CLIENT[family]])
    rules = full(
        {"filter INPUT": [icmp(family), f"-m set --match-set {kind} src -j ACCEPT"]}, INPUT="DROP"
    )
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"

    def wanted(name: str, entry: str) -> list[WantedSet]:
        return [WantedSet(name, "hash:net", family, {}, [entry])]

    assert stage.check(flow, OPEN, rules).allowed
    assert stage.check(flow, rules, rules, wanted(kind, CLIENT[family])).allowed
    answer = stage.check(flow, rules, rules, wanted(kind, OTHER[family]))
    assert (answer.allowed, answer.how) == (False, "established")
    other = rules.replace(kind, "other")
    assert stage.check(flow, rules, other, wanted("other", CLIENT[family])).allowed
    assert not stage.check(flow, rules, other, wanted("other", OTHER[family])).allowed
    saved = stage.firewall.call(["ipset", "save", kind])
    assert f"add {kind} {CLIENT[family]}" in saved
    assert "other" not in stage.firewall.call(["ipset", "list", "-n"])
    stage.firewall.call(["ipset", "destroy", kind])


@families
def test_what_is_not_allowed_now(stage: Stage, family: int) -> None:
    """Where new connections are not allowed now either, only the old one counts."""
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"
    before = full({"filter INPUT": [icmp(family), FOLLOWS]}, INPUT="DROP")
    after = full({"filter INPUT": [icmp(family), FOLLOWS, "-p udp -j DROP"]}, INPUT="DROP")
    answer = stage.check(flow, before, after)
    assert (answer.allowed, answer.how) == (True, "established")
    answer = stage.check(flow, before, full({"filter INPUT": [icmp(family)]}, INPUT="DROP"))
    assert (answer.allowed, answer.how) == (False, "established")


@families
def test_what_cannot_be_told(stage: Stage, family: int) -> None:
    """What does not pass now either, in a copy, is not refused, and the reason says so."""
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"
    closed = full({"filter INPUT": [icmp(family)]}, INPUT="DROP")
    answer = stage.check(flow, closed, full({}, INPUT="DROP"))
    assert (answer.allowed, answer.how) == (True, "unknown")
    assert "either" in answer.reason


@families
@pytest.mark.parametrize(
    "rules",
    [
        ["-p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -m limit --limit 1/hour "
         "--limit-burst 1 -j ACCEPT", "-p tcp -m conntrack --ctstate NEW -j DROP"],
        ["-p tcp -m conntrack --ctstate NEW -m recent --name guard --set",
         "-p tcp -m conntrack --ctstate NEW -m recent --name guard --update --seconds 60 "
         "--hitcount 2 -j DROP"],
        ["-p tcp -m conntrack --ctstate NEW -m hashlimit --hashlimit-upto 1/hour "
         "--hashlimit-burst 1 --hashlimit-mode srcip --hashlimit-name guard -j ACCEPT",
         "-p tcp -m conntrack --ctstate NEW -j DROP"],
        ["-p tcp -m tcp --syn -m connlimit --connlimit-above 1 -j DROP"],
        ["-p tcp -m statistic --mode nth --every 10 --packet 4 -j DROP"],
    ],
    ids=["limit", "recent", "hashlimit", "connlimit", "statistic"],
)  # fmt: skip
def test_the_trial_does_not_use_up_what_rules_allow(
    stage: Stage, family: int, rules: list[str]
) -> None:
    """Rules that count connections or packets refuse no change because of what was tried."""
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"
    before = full({"filter INPUT": rules})
    after = full({"filter INPUT": [*rules, "-p udp -j DROP"]})
    answer = stage.check(flow, before, after)
    assert (answer.allowed, answer.how) == (True, "new"), answer


@families
def test_a_queue_without_a_program(stage: Stage, family: int) -> None:
    """What a program on this host accepts from a queue is accepted in the copy, too."""
    before = full({"mangle INPUT": ["-p tcp -j NFQUEUE --queue-num 7"]})
    after = full({"mangle INPUT": ["-p tcp -j NFQUEUE --queue-num 7", "-p udp -j DROP"]})
    flow = f"{CLIENT[family]} > [{FIREWALL[family]}]:22"
    assert stage.check(flow, before, after).how == "new"


def test_an_operator_of_another_namespace(stage: Stage) -> None:
    """Where the server's address is not of this namespace, there is nothing to try."""
    flow = guard.operator({"SSH_CONNECTION": "192.0.2.9 50000 203.0.113.77 22"})
    assert flow is not None
    answer = stage.check(flow, OPEN, full({}, INPUT="DROP"))
    assert (answer.allowed, answer.how) == (True, "skipped")
    assert "203.0.113.77" in answer.reason


def test_a_flow_that_cannot_be(stage: Stage) -> None:
    """An option's flow without a route, or to and fro by one interface, is an error."""
    stage.firewall.call(["ip", "route", "add", "unreachable", "203.0.113.0/24"])
    try:
        with pytest.raises(BadInput, match=r"--guard: .*there is no route to 203.0.113.7"):
            stage.check("203.0.113.7 > 10.0.0.1:22", OPEN, full({}, INPUT="DROP"))
    finally:
        stage.firewall.call(["ip", "route", "del", "unreachable", "203.0.113.0/24"])
    with pytest.raises(BadInput, match="both ends are behind eth0"):
        stage.check("192.0.2.9 > 192.0.2.10:22", OPEN, full({}, INPUT="DROP"))


@families
def test_a_link_local_client(stage: Stage, family: int) -> None:
    """A client on the link itself, in IPv6 by its link-local address, is tried."""
    if family == 4:
        flow = guard.operator({"SSH_CONNECTION": "10.0.0.254 50000 10.0.0.1 22"})
    else:
        out = stage.firewall.call(["ip", "-6", "-o", "addr", "show", "dev", "eth0"])
        ours = next(word.split("/")[0] for word in out.split() if word.startswith("fe80"))
        text = f"fe80::77%eth0 50000 {ours}%eth0 22"
        flow = guard.operator({"SSH_CONNECTION": text})
    assert flow is not None
    good = full({"filter INPUT": [icmp(family), f"-i eth0 {SSH}"]}, INPUT="DROP")
    assert stage.check(flow, OPEN, good).how == "new"
    assert not stage.check(flow, OPEN, good.replace("eth0", "eth1")).allowed


def test_several_flows(stage: Stage) -> None:
    """Several flows have their answers in their order."""
    flows = [
        Flow.parse(f"{CLIENT[family]} > [{FIREWALL[family]}]:{port}")
        for port in (22, 23, 25) for family in (4, 6)
    ]  # fmt: skip
    after = {
        family: full({"filter INPUT": [icmp(family), SSH, SSH.replace("22", "25")]}, INPUT="DROP")
        for family in (4, 6)
    }
    answers = stage.firewall.run(guard.check, flows, {4: OPEN, 6: OPEN}, after)
    assert [answer.flow for answer in answers] == [str(flow) for flow in flows]
    assert [answer.allowed for answer in answers] == [True, True, False, False, True, True]


# --- what it leaves, and what it takes --------------------------------------------------------

STATE: Final = (
    "ip -o link; ip -o addr; ip route show table all; ip -6 route show table all; ip rule;"
    "iptables-legacy-save -c; ip6tables-legacy-save -c; ipset save; sysctl -a 2>/dev/null"
    " | grep -E '^net.ipv[46].conf|ip_forward'; ls /run"
)


def state_of(host: Host) -> str:
    lines = host.call(["sh", "-c", STATE]).splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@families
def test_the_host_is_not_touched(stage: Stage, family: int) -> None:
    """The host is as it was, and the xtables lock may be held meanwhile."""
    stage.clear(family)
    before = state_of(stage.firewall)
    flow = Flow.parse(f"{CLIENT[family]} > [{FIREWALL[family]}]:22")

    def check() -> list[Answer]:
        with lock.held():
            return guard.check([flow], {family: OPEN}, {family: full({}, INPUT="DROP")})

    assert not stage.firewall.run(check)[0].allowed
    assert state_of(stage.firewall).replace("xtables.lock\n", "") == before.replace(
        "xtables.lock\n", ""
    )


SCRIPT: Final = """
import sys
from nfctl.control import guard
flow = guard.Flow.parse("192.0.2.9 > 10.0.0.1:22")
print("ready", flush=True)
while True:
    guard.check([flow], {4: "*filter\\nCOMMIT\\n"}, {4: "*filter\\n:INPUT DROP [0:0]\\nCOMMIT\\n"})
"""


def marked(mark: str) -> list[int]:
    """Return the processes whose environment has a word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("moment", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.21, 0.34])
def test_nothing_is_left_after_a_kill(stage: Stage, moment: float) -> None:
    """When the process is killed, whenever it is, its trials and their namespaces end, too."""
    before = state_of(stage.firewall)
    mark = f"NFCTL_TEST={uuid.uuid4()}"
    process = stage.firewall.popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        env=os.environ | dict([mark.split("=")]),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment * SLOWNESS)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    deadline = time.monotonic() + 20
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing tells of a grandchild's end
    assert marked(mark) == []
    assert state_of(stage.firewall) == before


def test_it_takes_little_time(stage: Stage) -> None:
    """The guard of an ordinary change takes a fraction of a second, with 2,000 rules, too."""
    many = [f"-s 203.0.113.{n % 256}/32 -p tcp -m tcp --dport {n} -j DROP" for n in range(1, 2000)]
    flow = Flow.parse(f"{CLIENT[4]} > {FIREWALL[4]}:22")

    def check() -> float:
        start = time.monotonic()
        old, new = (full({"filter INPUT": rules}) for rules in (many, many[1:]))
        assert guard.check([flow], {4: old}, {4: new})[0].how == "new"
        return time.monotonic() - start

    assert min(stage.firewall.run(check) for _ in range(3)) < 0.5 * SLOWNESS


# --- any rules --------------------------------------------------------------------------------


def pool(family: int) -> list[tuple[str, str]]:
    """Return rules that may matter to a connection to port 22 here, or to 443 behind."""
    client = CLIENT[family]
    inputs = [
        SSH, FOLLOWS, NEW_SSH, icmp(family), "-i lo -j ACCEPT", "-i eth0 -j ACCEPT",
        "-i eth1 -j DROP", f"-s {client} -j DROP", f"-s {client} -j ACCEPT",
        f"-s {OTHER[family]} -j DROP", "-m conntrack --ctstate INVALID -j DROP",
        "-p tcp -j REJECT", "-p tcp -j REJECT --reject-with tcp-reset",
        "-p tcp -m tcp --syn --dport 22 -j ACCEPT", "-p tcp -m tcp ! --syn -j ACCEPT",
        "-p tcp -m tcp --syn -j DROP", "-m mark --mark 1 -j DROP", "-m mark --mark 1 -j ACCEPT",
        "-m conntrack --ctstate NEW -j DROP", "-p tcp -j LOG", "-j EXTRA", "-p udp -j DROP",
    ]  # fmt: skip
    outputs = [
        FOLLOWS, icmp(family), "-p tcp -m tcp --sport 22 -j ACCEPT", f"-d {client} -j DROP",
        "-o eth1 -j DROP", "-o eth0 -j ACCEPT", "-m conntrack --ctstate NEW -j DROP",
    ]  # fmt: skip
    forwards = [
        FOLLOWS, "-i eth0 -o eth1 -j ACCEPT", "-i eth1 -o eth0 -j ACCEPT",
        "-p tcp -m tcp --dport 443 -j ACCEPT", f"-s {client} -j DROP", "-p tcp -j REJECT",
        "-p tcp -m tcp --syn -j DROP",
    ]  # fmt: skip
    return [
        *(("filter INPUT", spec) for spec in inputs),
        *(("filter OUTPUT", spec) for spec in outputs),
        *(("filter FORWARD", spec) for spec in forwards),
        ("filter EXTRA", "-p tcp -j DROP"),
        ("filter EXTRA", "-p tcp -j ACCEPT"),
        ("filter EXTRA", f"-s {client} -j RETURN"),
        ("raw PREROUTING", "-p tcp -j CT --notrack"),
        ("raw PREROUTING", f"-s {client} -j DROP"),
        ("raw OUTPUT", "-p tcp -j CT --notrack"),
        ("mangle PREROUTING", "-p tcp -j MARK --set-mark 1"),
        ("mangle FORWARD", "-p tcp -j DROP"),
        ("security INPUT", "-p tcp -m tcp --syn -j DROP"),
        ("nat PREROUTING", "-p tcp -m tcp --dport 22 -j REDIRECT --to-ports 24"),
        ("nat PREROUTING", "-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 24"),
    ]


@st.composite
def rulesets(draw: st.DrawFn, family: int) -> str:
    rules: dict[str, list[str]] = {"filter EXTRA": []}
    for key, spec in draw(st.lists(st.sampled_from(pool(family)), max_size=6)):
        rules.setdefault(key, []).append(spec)
    policies = draw(
        st.fixed_dictionaries(
            {chain: st.sampled_from(["ACCEPT", "DROP"]) for chain in ("INPUT", "OUTPUT", "FORWARD")}
        )
    )
    # Or nearly nothing would ever work.
    first = draw(
        st.sampled_from([[FOLLOWS, icmp(family)], [FOLLOWS, icmp(family)], [icmp(family)], []])
    )
    for chain in ("filter INPUT", "filter OUTPUT", "filter FORWARD"):
        rules[chain] = [*first, *rules.get(chain, [])]
    return full(rules, **policies)


@families
def test_any_rules(stage: Stage, family: int) -> None:
    """For any two rulesets, the guard says what really becomes of a real connection."""
    told: dict[str, int] = {}

    @examples(8)
    @given(
        before=st.sampled_from([TRACKED, TRACKED, OPEN]) | rulesets(family),
        after=rulesets(family),
        local=st.booleans(),
    )
    def agrees(before: str, after: str, local: bool) -> None:
        assume(before != after)
        address, port = (FIREWALL[family], 22) if local else (INNER[family], 443)
        answer = stage.check(f"{CLIENT[family]} > [{address}]:{port}", before, after)
        made, lives, comes = stage.outcome(before, after, address, port)
        word = f"{answer.how} {answer.allowed}"
        told[word] = told.get(word, 0) + 1
        if not made:
            # In the copy neighbours may know each other, as they do on a host that works.
            silent = family == 6 and icmp(6) not in before
            assert silent or answer.how in {"established", "unknown"}
        elif not lives:
            assert (answer.allowed, answer.how) == (False, "established")
        elif not comes:
            assert (answer.allowed, answer.how) == (False, "new")
        else:
            assert (answer.allowed, answer.how) == (True, "new")

    agrees()
    assert {"established False", "new False", "new True"} <= told.keys(), told


# --- through the command ----------------------------------------------------------------------

POLICY: Final = """
version: 1
tables:
  filter:
    INPUT:
      policy: drop
      rules:
        - -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
        - {family: ipv6, rule: -p ipv6-icmp -j ACCEPT}
        - -p tcp --dport PORT -j ACCEPT
"""


@families
def test_apply_asks_the_guard(family: int, tmp_path: Path) -> None:
    """The first apply on a host without any table refuses to lock its operator out."""
    environ = os.environ | {
        "SSH_CONNECTION": f"{CLIENT[family]} 50000 {FIREWALL[family]} 22",
        "NFCTL_STATE_DIR": str(tmp_path / "state"),
    }
    file = tmp_path / "policy.yaml"
    with Lab("tests") as lab:
        host = lab.host("fresh")
        lab.link(
            host.port("eth0", "10.0.0.1/24", "2001:db8::1/64"),
            lab.host("gateway").port("eth0", "10.0.0.254/24", "2001:db8::fe/64"),
        )
        for via in ("10.0.0.254", "2001:db8::fe"):
            host.route("default", via=via)

        def apply(port: int, *options: str) -> tuple[int, str]:
            file.write_text(POLICY.replace("PORT", str(port)))
            process = host.popen(
                [sys.executable, "-m", "nfctl", "apply", str(file), *options],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, text=True,
            )  # fmt: skip
            out, _ = process.communicate(timeout=60)
            return process.returncode, out

        code, out = apply(80)
        assert code == 1, out
        assert f"tcp {CLIENT[family]}:50000 >".replace(CLIENT[6], f"[{CLIENT[6]}]") in out
        assert "filter INPUT policy DROP" in out
        assert host.call(["iptables-legacy-save"]) == ""
        code, out = apply(22)
        assert code == 0, out
        code, out = apply(80)
        assert code == 1, out
        assert "--dport 22 -j ACCEPT" in host.call([f"{legacy(family)}-save"])
        code, out = apply(80, "--force")
        assert code == 0, out
