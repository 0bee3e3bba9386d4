from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfctl.errors import NfctlError
from nfctl.services.observed import cluster, document, explain, rules
from nfctl.services.observed.prefix import the_prefix
from tests.unit.kube import MODERN, Plan, plans, read, written

if TYPE_CHECKING:
    from nfctl.services.observed.model import Cluster


def shown(found: Cluster) -> dict[str, Any]:
    return document.document([found], found.services, found.problems)


def expected(plan: Plan) -> dict[str, Any]:
    """Return what is to be read back of a service: what its rules can tell."""
    local = [pod for pod in plan.pods if pod.local]
    reached = bool(plan.external_ips or plan.balancer_ips or plan.node_port)
    everyone = plan.pods if reached or not plan.internal_local else local
    inside = local if plan.internal_local else plan.pods
    outside = local if plan.external_local else plan.pods
    refused = "DROP" if plan.pods else "REJECT"
    addresses: set[tuple[object, ...]] = set()
    addresses.add(("cluster", plan.cluster_ip, plan.port, None if inside else refused, ()))
    for ip in plan.external_ips:
        addresses.add(("external", ip, plan.port, None if outside else refused, ()))
    for ip in plan.balancer_ips:
        kind = "load-balancer" if plan.pods else "external"  # filter's rules do not tell
        ranges = tuple(plan.ranges) if plan.pods else ()
        addresses.add((kind, ip, plan.port, None if outside else refused, ranges))
    if plan.node_port:
        addresses.add(("node", None, plan.node_port, None if outside else refused, ()))
    return {
        "name": plan.name,
        "protocol": plan.protocol,
        "port": plan.port,
        "addresses": addresses,
        "endpoints": {(pod.address, pod.port) for pod in everyone},
        "affinity": plan.affinity if everyone else 0,
    }


def summary(service: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": service["name"],
        "protocol": service["protocol"],
        "port": service["port"],
        "addresses": {
            (a["kind"], a["address"], a["port"], a["refused"], tuple(a["source_ranges"]))
            for a in service["addresses"]
        },
        "endpoints": {(e["address"], e["port"]) for e in service["endpoints"]},
        "affinity": service["affinity"],
    }


@given(st.sampled_from([4, 6]).flatmap(lambda f: st.tuples(st.just(f), plans(f))), st.booleans())
def test_services_come_back(drawn: tuple[int, list[Plan]], counters: bool) -> None:
    """Random services, written as kube-proxy writes them, are read back, and nothing is wrong."""
    family, wanted = drawn
    found = read(written(wanted, family, counters=counters))
    assert found.family == family
    assert found.problems == []
    assert (found.mark, found.mask, found.counted) == (0x4000, 0x4000, counters)
    services = shown(found)["services"]
    assert [summary(s) for s in services] == [
        expected(plan) for plan in sorted(wanted, key=lambda p: (p.name, p.protocol))
    ]


@given(plans(4))
def test_shares_and_policies_come_back(wanted: list[Plan]) -> None:
    """Every endpoint has an equal share, of all and of the local ones; policies are as wanted."""
    services = {s["name"]: s for s in shown(read(written(wanted)))["services"]}
    for plan in wanted:
        service = services[plan.name]
        reached = bool(plan.external_ips or plan.balancer_ips or plan.node_port)
        local = [pod.address for pod in plan.pods if pod.local]
        for endpoint in service["endpoints"]:
            if reached or not plan.internal_local:
                assert endpoint["share"] == pytest.approx(1 / len(plan.pods), abs=1e-7)
            assert endpoint["weight"] == 1
            if endpoint["local_share"] is not None:
                assert endpoint["local_share"] == pytest.approx(1 / len(local), abs=1e-7)
                assert endpoint["address"] in local
        if plan.pods and (local or not plan.internal_local):
            assert service["internal_policy"] == ("local" if plan.internal_local else "cluster")
            assert service["masquerade"]["cluster"] == "off-cluster"
        if plan.pods and reached:
            assert service["external_policy"] == ("local" if plan.external_local else "cluster")


@given(plans(4), st.data())
def test_a_missing_rule_is_found(wanted: list[Plan], data: st.DataObject) -> None:
    """Without a DNAT, or a jump of a service to an endpoint, something does not add up."""
    lines = written(wanted).split("\n")
    needed = [line for line in lines if "-j DNAT" in line or line.startswith("-A KUBE-SVC-")]
    needed = [line for line in needed if "MARK-MASQ" not in line]
    assume(needed)
    lines.remove(data.draw(st.sampled_from(needed)))
    assert read("\n".join(lines)).problems


@given(plans(4), st.data())
def test_a_missing_chain_is_found(wanted: list[Plan], data: st.DataObject) -> None:
    """Jumps to a chain that is gone are found, each with its number and its text."""
    text = written(wanted)
    (dump,) = rules.parse(text)
    chains = [name for name in dump.chains("nat") if name[5:9] in {"SVC-", "SVL-", "SEP-", "EXT-"}]
    assume(chains)
    gone = data.draw(st.sampled_from(chains))
    kept = [x for x in text.split("\n") if not x.startswith((f":{gone} ", f"-A {gone} "))]
    problems = [p for p in read("\n".join(kept)).problems if p.kind == "gone"]
    jumps = [line for line in kept if line.endswith(f"-j {gone}")]
    assert sorted(f"-A {p.chain} {p.text}" for p in problems) == sorted(jumps)
    for problem in problems:
        nat = kept[kept.index("*nat") :]
        there = [line for line in nat if line.startswith(f"-A {problem.chain} ")]
        assert there[problem.rule - 1] == f"-A {problem.chain} {problem.text}"


def _all(text: str) -> None:
    """Do with a text what the commands do."""
    dumps = rules.parse(text)
    prefix = the_prefix(dumps, None)
    for dump in dumps:
        found = cluster.read(dump, prefix)
        shown(found)
        for service in found.services:
            for address in service.addresses:
                host = f"[{address.address}]" if ":" in address.address else address.address
                place = f"{host or 'node'}:{address.port}/{service.protocol}"
                try:
                    asked = explain.connection(place, None)
                except NfctlError:
                    continue
                explain.text(explain.explain(dump, found, asked._replace(family=dump.family)))


@given(st.data())
def test_damaged_rules_end_in_no_traceback(data: st.DataObject) -> None:
    """Lines that are lost, doubled, cut or mixed up are read, or refused with an NfctlError."""
    lines = MODERN.split("\n")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["drop", "double", "cut", "words", "swap", "junk"]))
        if change == "drop":
            del lines[at]
        elif change == "double":
            lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines[at])
        elif change == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
        elif change == "words":
            words = lines[at].split(" ")
            place = data.draw(st.integers(0, len(words) - 1))
            words[place] = data.draw(
                st.sampled_from(["!", "-j", "KUBE-SERVICES", "99999", "0x", '"', "--mark", "-m"])
            )
            lines[at] = " ".join(words)
        elif change == "swap":
            other = data.draw(st.integers(0, len(lines) - 1))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] += data.draw(st.text(max_size=8))
    with contextlib.suppress(NfctlError):
        _all("\n".join(lines))


@given(st.text(max_size=200))
def test_any_text_ends_in_no_traceback(text: str) -> None:
    """What is no iptables-save text at all is refused with an NfctlError."""
    with pytest.raises(NfctlError):
        _all(text)
