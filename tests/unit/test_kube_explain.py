from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.services.observed import cluster, explain, rules
from nfctl.services.observed.prefix import the_prefix
from tests.unit.kube import DATA, MODERN, Plan, plans, written

if TYPE_CHECKING:
    from nfctl.services.observed.explain import Answer
    from nfctl.services.observed.walk import Case, End

V1_22 = (DATA / "v1.22.rules").read_text()
V1_18 = (DATA / "v1.18.rules").read_text()
V1_9 = (DATA / "v1.9.rules").read_text()


def asked(
    destination: str, source: str | None = None, text: str = MODERN, local: bool | None = None
) -> Answer:
    (dump,) = rules.parse(text)
    found = cluster.read(dump, the_prefix([dump], None))
    wanted = explain.connection(destination, source)._replace(family=dump.family, local=local)
    return explain.explain(dump, found, wanted)


def only(
    destination: str, source: str | None = None, text: str = MODERN, local: bool | None = None
) -> Case:
    """Return the one case there is."""
    cases = asked(destination, source, text, local).cases
    assert len(cases) == 1, cases
    return cases[0]


def steps(case: Case) -> list[tuple[str, str, int]]:
    return [(step.table, step.chain, step.rule) for step in case.steps]


def ends(case: Case) -> list[End]:
    return list(case.ends)


def test_a_cluster_ip_from_a_pod() -> None:
    """Rule by rule to each endpoint, with its chance, and masqueraded only to oneself."""
    case = only("10.96.0.10:53/udp", "10.244.0.2")
    assert steps(case) == [
        ("nat", "PREROUTING", 1),
        ("nat", "KUBE-SERVICES", 1),
        ("nat", "KUBE-SVC-TCOU7JCQXEZGVUNU", 2),
        ("nat", "KUBE-SEP-SXIVWICOYRO3J4NJ", 1),
        ("nat", "KUBE-SEP-SXIVWICOYRO3J4NJ", 2),
        ("nat", "KUBE-SVC-TCOU7JCQXEZGVUNU", 3),
        ("nat", "KUBE-SEP-UKSFD7AGPMPPLUHC", 2),
        ("nat", "POSTROUTING", 1),
        ("nat", "KUBE-POSTROUTING", 3),
    ]
    assert [(end.to, end.chance, end.masquerade, end.hairpin) for end in case.ends] == [
        ("10.244.0.2:53", 0.5, True, False),
        ("10.244.1.2:53", 0.5, False, False),
    ]


def test_a_cluster_ip_from_anywhere() -> None:
    """Where the source decides, there is a case for pods and one for others, by either hook."""
    cases = asked("10.96.0.10:53/udp").cases
    assert [(case.entrance, case.when) for case in cases] == [
        ("PREROUTING", ("the source is in 10.244.0.0/16",)),
        ("PREROUTING", ("the source is not in 10.244.0.0/16",)),
        ("OUTPUT", ("the source is in 10.244.0.0/16",)),
        ("OUTPUT", ("the source is not in 10.244.0.0/16",)),
    ]
    assert [[end.masquerade for end in case.ends] for case in cases] == [
        [False, False],
        [True, True],
    ] * 2
    assert all(end.hairpin for end in cases[0].ends)


def test_the_text_puts_alike_cases_together() -> None:
    """What differs in the hook alone is shown once, with the first rule of both."""
    text = explain.text(asked("10.96.0.10:53/udp"))
    assert text.startswith("10.96.0.10:53/udp (IPv4) is kube-system/kube-dns:dns, cluster IP\n")
    assert text.count("from the network or from this host, the source is") == 2
    assert text.count("nat PREROUTING 1") == text.count("nat OUTPUT 1") == 2
    assert "  => 50 %  10.244.0.2:53, masqueraded\n" in text
    assert "(50 % of what is left)" in text
    assert "comment" not in text


def test_a_load_balancer_with_source_ranges() -> None:
    """An allowed source comes to the endpoint, masqueraded; another is dropped in filter."""
    allowed = only("192.0.2.50:443", "203.0.113.9")
    assert [(end.to, end.masquerade) for end in allowed.ends] == [("10.244.0.5:8443", True)]
    assert ("nat", "KUBE-FW-NUKIZ6OKUXPJNT4C", 1) in steps(allowed)
    for local, hook in ((True, "INPUT"), (False, "FORWARD")):
        refused = only("192.0.2.50:443", "9.9.9.9", local=local)
        assert steps(refused)[-2:] == [
            ("filter", hook, 1),
            ("filter", "KUBE-PROXY-FIREWALL", 1),
        ]
        assert [end.kind for end in refused.ends] == ["refused"]
        assert refused.ends[0].to == "DROP in filter KUBE-PROXY-FIREWALL rule 1"
    assert asked("192.0.2.50:443", "9.9.9.9").served


def test_ranges_that_are_not_said() -> None:
    """To be in one of the source ranges is a case, and to be in none of them is the other."""
    allowed, refused = asked("192.0.2.50:443", local=False).cases[:2]
    ranges = "in 203.0.113.0/25 or 198.51.100.7/32"
    assert allowed.when == (f"the source is {ranges}",)
    assert refused.when == (f"the source is not {ranges}",)
    assert [end.kind for case in (allowed, refused) for end in case.ends] == ["endpoint", "refused"]
    (step,) = [step for step in allowed.steps if step.chain.startswith("KUBE-FW-")]
    assert (step.rule, step.note) == (1, "or the rule behind it")


def test_hundreds_of_ranges() -> None:
    """Each range is a rule: these are two cases and no more, none is lost, and both are short."""
    line = next(line for line in MODERN.splitlines() if "-A KUBE-FW-" in line and "-s " in line)
    rules_of = [
        line.replace("-s 203.0.113.0/25", f"-s 100.{n}.0.0/16").replace(
            "-s 198.51.100.7/32", f"-s 100.{n}.0.0/16"
        )
        for n in range(200)
    ]
    answer = asked("192.0.2.50:443", text=MODERN.replace(line, "\n".join(rules_of)), local=False)
    assert answer.complete
    kinds = [[end.kind for end in case.ends] for case in answer.cases]
    assert kinds == [["endpoint"], ["refused"]] * 2
    assert max(map(len, explain.text(answer).splitlines())) < 200
    assert answer.cases[0].when[0].count("100.") >= 200
    assert "(or one of the 200 rules behind it)" in explain.text(answer)


def test_cases_that_are_too_many() -> None:
    """Where every rule asks something else, it is said that there are more cases than shown."""
    head, line, rest = MODERN.partition("-A KUBE-SERVICES -d 10.96.0.10/32 -p udp")
    asks = "".join(f"-A KUBE-SERVICES -i eth{n} -j ACCEPT\n" for n in range(100))
    answer = asked("10.96.0.10:53/udp", "10.244.0.7", head + asks + line + rest)
    assert not answer.complete
    assert not explain.document(answer.connection, [answer])["families"][0]["complete"]
    assert "There are more cases than these" in explain.text(answer)


def test_a_service_without_endpoints() -> None:
    """It is rejected, and the rule that rejects is named: for the cluster IP and the node port."""
    case = only("10.96.0.66:80", "10.244.0.7")
    assert [end.to for end in case.ends] == ["REJECT in filter KUBE-SERVICES rule 1"]
    assert steps(case)[-2:] == [("filter", "FORWARD", 3), ("filter", "KUBE-SERVICES", 1)]
    case = only("10.96.0.66:80", "node")
    assert steps(case)[-2:] == [("filter", "OUTPUT", 2), ("filter", "KUBE-SERVICES", 1)]
    case = only("node:30066", "9.9.9.9")
    assert steps(case)[-2:] == [("filter", "INPUT", 3), ("filter", "KUBE-EXTERNAL-SERVICES", 3)]


def test_node_ports() -> None:
    """By the node's own name, or an address of which it is or is not known to be local."""
    case = only("node:30443", "9.9.9.9")
    assert ("nat", "KUBE-NODEPORTS", 2) in steps(case)
    assert [(end.to, end.masquerade) for end in case.ends] == [("10.244.0.5:8443", True)]
    known = only("192.168.1.1:30443", "9.9.9.9", local=True)
    assert ends(known) == ends(case)
    not_local, local = asked("192.168.1.1:30443", "9.9.9.9").cases[::-1]
    assert local.when == ("192.168.1.1 is an address of this node",)
    assert ends(local) == ends(case)
    assert [end.kind for end in not_local.ends] == ["untouched"]
    assert not asked("192.168.1.1:30443", "9.9.9.9", local=False).served


def test_node_ports_of_some_addresses() -> None:
    """Where node ports are served on one address alone, another address has none."""
    text = MODERN.replace(
        '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be '
        'the last rule in this chain" -m addrtype --dst-type LOCAL',
        "-A KUBE-SERVICES -d 192.168.1.1/32",
    )
    assert text != MODERN
    assert asked("192.168.1.1:30443", "9.9.9.9", text).served
    assert asked("node:30443", "9.9.9.9", text).served
    assert not asked("192.168.1.2:30443", "9.9.9.9", text).served


def test_an_external_policy_of_local() -> None:
    """Strangers get local endpoints unmasqueraded, pods and the node itself any; or none."""
    stranger = only("192.0.2.80:80", "9.9.9.9")
    assert [(end.to, end.masquerade) for end in stranger.ends] == [("10.244.0.3:8080", False)]
    pod = only("192.0.2.80:80", "10.244.5.5")
    assert [(end.chance, end.masquerade) for end in pod.ends] == [(0.5, False), (0.5, False)]
    node = asked("192.0.2.80:80", "node").cases[-1]
    assert [(end.chance, end.masquerade) for end in node.ends] == [(0.5, True), (0.5, True)]
    refused = only("192.0.2.77:80", "9.9.9.9", local=False)
    assert refused.ends[0].to == "DROP in filter KUBE-EXTERNAL-SERVICES rule 1"


def test_affinity_is_told() -> None:
    """The way is that of a new client; that it comes back is said."""
    answer = asked("10.96.0.80:80", "10.244.5.5")
    assert answer.affinity == 10800
    assert "a client that comes back within 10800 s keeps its endpoint" in explain.text(answer)
    assert all("rcheck" not in step.text for case in answer.cases for step in case.steps)


def test_kube_proxy_1_22() -> None:
    """What is not allowed, or has no local endpoint, is dropped by a mark."""
    assert only("192.0.2.24:80", "9.9.9.9", V1_22).ends[0].kind == "refused"
    assert only("192.0.2.24:80", "203.0.113.1", V1_22).ends[0].to == "10.244.1.2:80"
    assert "mark" in only("node:30688", "9.9.9.9", V1_22).ends[0].to
    assert only("node:30688", "10.244.0.9", V1_22).ends[0].to == "10.244.1.2:80"
    assert [end.to for end in only("node:30687", "9.9.9.9", V1_22).ends] == [
        "10.244.3.4:80",
        "10.244.2.4:80",
    ]


def test_kube_proxy_1_18() -> None:
    """External IPs serve what comes from elsewhere, masqueraded by a mark in SERVICES."""
    case = only("192.0.2.9:80", "9.9.9.9", V1_18)
    assert [end.masquerade for end in case.ends] == [True] * 3
    assert sum(end.chance for end in case.ends) == pytest.approx(1)
    assert [end.kind for end in only("192.0.2.9:80", "node", V1_18, local=False).ends] == [
        "untouched"
    ]


def test_kube_proxy_1_9() -> None:
    """FORWARD does not refuse what has no endpoints there, so it matters whose the address is."""
    assert [end.to for end in only("node:30080", "9.9.9.9", V1_9).ends] == ["10.244.1.3:8080"]
    assert len(only("192.0.2.5:80", "10.244.1.9", V1_9).ends) == 3
    assert "mark" in only("192.0.2.6:53/udp", "9.9.9.9", V1_9).ends[0].to
    assert only("192.0.2.6:53/udp", "203.0.113.9", V1_9).ends[0].to == "10.244.1.5:53"
    local, other = asked("10.96.0.99:80", "10.244.1.9", V1_9).cases
    assert [case.ends[0].kind for case in (local, other)] == ["refused", "untouched"]


def test_an_address_nobody_serves() -> None:
    """It is not served, and the hint has the ports that are."""
    answer = asked("10.96.0.10:54/udp")
    assert not answer.served
    assert answer.hint == "10.96.0.10 is served at 53/udp"
    assert not asked("10.96.0.10:53/tcp").served
    assert asked("10.1.1.1:80").hint == ""


def test_other_programs_chains_are_named() -> None:
    """A jump of PREROUTING to somebody else's chain is shown, and nothing is asked about it."""
    case = only("node:8443", "9.9.9.9")
    (step,) = [step for step in case.steps if "CNI-HOSTPORT" in step.text]
    assert step.note == "another program's chain, not followed"
    assert not asked("node:8443", "9.9.9.9").served


def test_conditions_that_are_not_known() -> None:
    """A match that is none of those read here makes two cases."""
    line = "-d 10.96.0.10/32 -p udp -m comment"
    text = MODERN.replace(f"-A KUBE-SERVICES {line}", f"-A KUBE-SERVICES -i eth0 {line}", 1)
    with_it, without = asked("10.96.0.10:53/udp", "10.244.0.7", text).cases
    assert (with_it.when, without.when) == (("-i eth0",), ("not -i eth0",))
    assert [end.kind for end in with_it.ends] == ["endpoint", "endpoint"]
    assert [end.kind for end in without.ends] == ["untouched"]


def test_a_mark_of_before() -> None:
    """A rule for a mark that another program sets is asked about, and not taken as met."""
    line = "-A PREROUTING -m mark --mark 0x1/0x1 -j ACCEPT\n"
    text = MODERN.replace("-A PREROUTING", line + "-A PREROUTING", 1)
    marked, plain = asked("10.96.0.10:53/udp", "10.244.0.7", text).cases
    assert (marked.when, plain.when) == (
        ("-m mark --mark 0x1/0x1",),
        ("not -m mark --mark 0x1/0x1",),
    )
    assert [end.kind for end in marked.ends] == ["untouched"]
    assert [end.kind for end in plain.ends] == ["endpoint", "endpoint"]


def test_interfaces_of_pods() -> None:
    """What this host sends came in by no interface, so it is masqueraded: nothing is asked."""
    head, line, rest = MODERN.partition("! -s 10.244.0.0/16 -d 10.96.0.10/32 -p udp")
    text = f"{head}-d 10.96.0.10/32 ! -i cni+ -p udp{rest}"
    assert line
    case = only("10.96.0.10:53/udp", "node", text)
    assert [end.masquerade for end in case.ends] == [True, True]
    cases = asked("10.96.0.10:53/udp", "10.244.0.7", text).cases
    assert [case.when for case in cases] == [("! -i cni+",), ("not ! -i cni+",)]


def test_rules_that_only_input_has() -> None:
    """Where FORWARD does not refuse (kube-proxy 1.9), it is so only at an address of the node."""
    jump = next(
        line
        for line in MODERN.splitlines()
        if line.startswith("-A FORWARD") and line.endswith("-j KUBE-SERVICES")
    )
    text = MODERN.replace(jump, jump.replace("FORWARD", "INPUT", 1))
    local, other = asked("10.96.0.66:80", "10.244.0.7", text).cases
    assert local.when == ("10.96.0.66 is an address of this node",)
    assert steps(local)[-2][:2] == ("filter", "INPUT")
    assert [end.kind for end in local.ends] == ["refused"]
    assert [end.kind for end in other.ends] == ["untouched"]


def test_node_ports_of_a_range() -> None:
    """Where node ports are at a range of addresses, what refuses them there is found, too."""
    text = MODERN.replace(
        "-A KUBE-EXTERNAL-SERVICES -p tcp", "-A KUBE-EXTERNAL-SERVICES -d 192.168.1.0/24 -p tcp"
    )
    assert text != MODERN
    (end,) = only("node:30066", "9.9.9.9", text).ends
    assert end.to.startswith("REJECT in filter KUBE-EXTERNAL-SERVICES")


def test_chains_that_fan_out() -> None:
    """Chains that jump a thousand times to the next are refused before they take hours."""
    names = [f"KUBE-EXT-AAAAAAAAAAAAAAA{letter}" for letter in "ABCDEF"]
    lines = ["*nat", ":PREROUTING ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]"]
    lines += [":KUBE-MARK-MASQ - [0:0]", *(f":{name} - [0:0]" for name in names)]
    lines += ["-A PREROUTING -j KUBE-SERVICES", f"-A KUBE-SERVICES -j {names[0]}"]
    for one, other in itertools.pairwise(names):
        lines += [f"-A {one} -j {other}"] * 60
    with pytest.raises(BadInput, match="more than 200,000 rules are met"):
        asked("10.0.0.1:80", "9.9.9.9", "\n".join([*lines, "COMMIT", ""]))


def test_ipv6() -> None:
    """Brackets around addresses, in the question and in the endpoints."""
    text = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d fd00:96::1/128 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination [fd00::5]:8080
COMMIT
"""
    answer = asked("[fd00:96:0::1]:80", "fd00::9", text)
    assert answer.cases[0].ends[0].to == "[fd00::5]:8080"
    assert explain.text(answer).startswith("[fd00:96::1]:80/tcp (IPv6) is ")


def test_the_document() -> None:
    """The JSON document has every field that its docstring tells."""
    answer = asked("10.96.0.40:9000", "9.9.9.9")
    made = explain.document(answer.connection, [answer])
    assert json.loads(json.dumps(made)) == made
    assert made["destination"] == "10.96.0.40:9000/tcp"
    (family,) = made["families"]
    (case,) = family.pop("cases")
    assert family == {
        "family": 4,
        "service": "shop/node-agent",
        "kind": "cluster",
        "affinity": 0,
        "complete": True,
    }
    assert (case["entrance"], case["when"]) == ("PREROUTING", [])
    assert case["steps"][2] == {
        "depth": 2,
        "table": "nat",
        "chain": "KUBE-SVL-4SW47YFZTEDKD3PK",
        "rule": 1,
        "text": "! -s 10.244.0.0/16 -d 10.96.0.40/32 -p tcp -m tcp --dport 9000 -j KUBE-MARK-MASQ",
        "note": "to be masqueraded",
    }
    assert case["ends"] == [
        {
            "kind": "endpoint",
            "to": "10.244.0.8:9000",
            "chance": 1.0,
            "masquerade": True,
            "hairpin": False,
        }
    ]


@pytest.mark.parametrize(
    ("destination", "source", "words"),
    [
        ("10.0.0.1", None, "no ADDRESS:PORT"),
        ("10.0.0.1:http", None, "no ADDRESS:PORT"),
        ("10.0.0.1:80/icmp", None, "no ADDRESS:PORT"),
        ("10.0.0.1:80/", None, "no ADDRESS:PORT"),
        ("10.0.0.1:0", None, "a port is from 1 to 65535"),
        ("10.0.0.1:" + "9" * 5000, None, "a port is from 1 to 65535"),
        ("10.0.0.1:٣", None, "no ADDRESS:PORT"),
        ("web:80", None, "'web' is no address"),
        (":80", None, "'' is no address"),
        ("fd00::1:80", None, "in brackets"),
        ("[fe80::1%eth0]:80", None, "no zones"),
        ("10.0.0.1:80", "pod", "'pod' is no address"),
        ("10.0.0.1:80", "fd00::1", "no address of IPv4"),
    ],
)
def test_bad_questions(destination: str, source: str | None, words: str) -> None:
    """What is no question is refused, and the message says why."""
    with pytest.raises(BadInput) as found:
        explain.connection(destination, source)
    assert words in found.value.message


def test_a_name_is_no_question() -> None:
    """Who asks for a service by name is told where its addresses are shown."""
    with pytest.raises(BadInput) as found:
        explain.connection("shop/web:http", None)
    assert "kube show NAME" in found.value.hint
    assert explain.connection("10.0.0.1:53/UDP", None).protocol == "udp"


def test_a_loop_ends() -> None:
    """Chains that jump to each other, which the kernel would refuse, do not hang."""
    text = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-FW-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-FW-AAAAAAAAAAAAAAAA
-A KUBE-FW-AAAAAAAAAAAAAAAA -j KUBE-EXT-AAAAAAAAAAAAAAAA
-A KUBE-FW-AAAAAAAAAAAAAAAA -j KUBE-EXT-AAAAAAAAAAAAAAAA
COMMIT
"""
    assert not asked("10.0.0.1:80", "9.9.9.9", text).served


@given(plans(4))
def test_every_endpoint_is_reached_by_its_share(wanted: list[Plan]) -> None:
    """From a pod, every cluster IP leads to each endpoint with the same chance; or is refused."""
    text = written(wanted)
    (dump,) = rules.parse(text)
    found = cluster.read(dump, "KUBE-")
    for plan in wanted:
        inside = [pod for pod in plan.pods if pod.local] if plan.internal_local else plan.pods
        asking = explain.connection(
            f"{plan.cluster_ip}:{plan.port}/{plan.protocol}", "10.244.200.200"
        )
        answer = explain.explain(dump, found, asking)
        (case,) = answer.cases
        assert answer.service == plan.name
        if inside:
            assert [(e.to, round(e.chance * len(inside), 6), e.masquerade) for e in case.ends] == [
                (f"{pod.address}:{pod.port}", 1, False) for pod in inside
            ]
        else:
            assert [e.kind for e in case.ends] == ["refused"]


@given(plans(6), st.booleans())
def test_strangers_meet_ranges_and_policies(wanted: list[Plan], allowed: bool) -> None:
    """A stranger comes in by the load balancer if its range does, to local endpoints if so set."""
    text = written(wanted, 6)
    (dump,) = rules.parse(text)
    found = cluster.read(dump, "KUBE-")
    source = "2001:db8::77" if allowed else "2a00::1"
    for plan in wanted:
        outside = [pod for pod in plan.pods if pod.local] if plan.external_local else plan.pods
        for ip in plan.balancer_ips:
            asking = explain.connection(f"[{ip}]:{plan.port}/{plan.protocol}", source)
            answer = explain.explain(dump, found, asking._replace(local=False))
            (case,) = answer.cases
            if outside and (allowed or not plan.ranges):
                assert [e.to for e in case.ends] == [f"[{p.address}]:{p.port}" for p in outside]
                assert {e.masquerade for e in case.ends} == {not plan.external_local}
            else:
                assert [e.kind for e in case.ends] == ["refused"]
