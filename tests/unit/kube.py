"""Rules of services for tests: saved ones of several kube-proxies, and random ones.

The random ones are written here, in the shape of kube-proxy 1.30, by nothing of nfctl's own.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import strategies as st

from nfctl.services.observed import cluster, rules
from nfctl.services.observed.prefix import the_prefix

if TYPE_CHECKING:
    from nfctl.services.observed.model import Cluster, Service

DATA = Path(__file__).parent / "data" / "kube"
MODERN = (DATA / "v1.30.rules").read_text()
PODS = {4: "10.244.0.0/16", 6: "fd00:10::/48"}


def read(text: str, prefix: str | None = None) -> Cluster:
    """Return the services in the text of one family."""
    (dump,) = rules.parse(text)
    return cluster.read(dump, the_prefix([dump], prefix))


def service(text: str, name: str) -> Service:
    """Return one of the services."""
    (found,) = [service for service in read(text).services if service.name == name]
    return found


class Pod(NamedTuple):
    """An endpoint."""

    address: str
    port: int
    local: bool


class Plan(NamedTuple):
    """A service as it is wanted."""

    name: str
    protocol: str
    port: int
    cluster_ip: str
    external_ips: list[str]
    balancer_ips: list[str]
    node_port: int
    pods: list[Pod]
    affinity: int
    internal_local: bool
    external_local: bool
    ranges: list[str]


def _address(family: int, block: int, number: int) -> str:
    if family == 4:
        return f"10.{block}.{number // 250}.{number % 250 + 1}"
    return f"fd00:{block}::{number + 1:x}"


@st.composite
def plans(draw: st.DrawFn, family: int = 4, most: int = 6) -> list[Plan]:
    """Services with names, addresses and ports of their own."""
    found = []
    for index in range(draw(st.integers(1, most))):
        pods = [
            Pod(_address(family, 244, index * 20 + n), draw(st.integers(1, 65535)), local)
            for n, local in enumerate(draw(st.lists(st.booleans(), max_size=7)))
        ]
        balancers = [_address(family, 98, index)] * draw(st.integers(0, 1))
        networks = ["203.0.113.0/24", "198.51.100.7/32"] if family == 4 else ["2001:db8::/32"]
        found.append(
            Plan(
                name=f"ns{index}/{draw(st.sampled_from(['web', 'a-b', 'db']))}-{index}"
                + draw(st.sampled_from(["", ":http", ":p80"])),
                protocol=draw(st.sampled_from(["tcp", "udp", "sctp"])),
                port=draw(st.integers(1, 65535)),
                cluster_ip=_address(family, 96, index),
                external_ips=[_address(family, 97, index)] * draw(st.integers(0, 1)),
                balancer_ips=balancers,
                node_port=draw(st.sampled_from([0, 30000 + index])),
                pods=pods,
                affinity=draw(st.sampled_from([0, 0, 60, 10800])),
                internal_local=draw(st.booleans()),
                external_local=draw(st.booleans()),
                ranges=draw(st.lists(st.sampled_from(networks), unique=True)) if balancers else [],
            )
        )
    return found


class _Writer:
    """Writes what kube-proxy would make of services."""

    def __init__(self, family: int, counters: bool) -> None:
        self.family, self.counters = family, counters
        self.nat: dict[str, list[str]] = {
            "PREROUTING": ["-j KUBE-SERVICES"],
            "INPUT": [],
            "OUTPUT": ["-j KUBE-SERVICES"],
            "POSTROUTING": ["-j KUBE-POSTROUTING"],
            "KUBE-SERVICES": [],
            "KUBE-NODEPORTS": [],
            "KUBE-MARK-MASQ": ["-j MARK --set-xmark 0x4000/0x4000"],
            "KUBE-POSTROUTING": [
                "-m mark ! --mark 0x4000/0x4000 -j RETURN",
                "-j MARK --set-xmark 0x4000/0x0",
                "-j MASQUERADE --random-fully",
            ],
        }
        new = "-m conntrack --ctstate NEW"
        jumps = [f"{new} -j KUBE-{n}" for n in ("PROXY-FIREWALL", "EXTERNAL-SERVICES", "SERVICES")]
        self.filter: dict[str, list[str]] = {
            "INPUT": list(jumps),
            "FORWARD": list(jumps),
            "OUTPUT": list(jumps),
            "KUBE-SERVICES": [],
            "KUBE-EXTERNAL-SERVICES": [],
            "KUBE-PROXY-FIREWALL": [],
        }

    def text(self) -> str:
        self.nat["KUBE-SERVICES"].append("-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
        lines = []
        for table, chains in (("filter", self.filter), ("nat", self.nat)):
            lines.append(f"*{table}")
            lines += [f":{chain} {'-' if '-' in chain else 'ACCEPT'} [0:0]" for chain in chains]
            count = "[0:0] " if self.counters else ""
            for chain, specs in chains.items():
                lines += [f"{count}-A {chain} {spec}" for spec in specs]
            lines.append("COMMIT")
        return "\n".join(lines) + "\n"

    def add(self, plan: Plan) -> None:
        mask = 32 if self.family == 4 else 128
        protocol, name = plan.protocol, plan.name

        def to(address: str, port: int, why: str) -> str:
            comment = f'-m comment --comment "{name}{why}"'
            there = f"-d {address}/{mask} " if address else ""
            return f"{there}-p {protocol} {comment} -m {protocol} --dport {port}"

        digest = base64.b32encode(f"{name}{protocol}{'*' * 12}".encode())[:40].decode()
        digest = (digest + "A" * 16)[4:20].replace("=", "A")
        svc, svl, ext, firewall = (f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT", "FW"))
        local = [pod for pod in plan.pods if pod.local]
        inside = local if plan.internal_local else plan.pods
        outside = local if plan.external_local else plan.pods
        external = [*plan.external_ips, *plan.balancer_ips]
        reject = f"-j REJECT --reject-with icmp{'6' if self.family == 6 else ''}-port-unreachable"
        why = " has no local endpoints" if plan.pods else " has no endpoints"
        refuse = "-j DROP" if plan.pods else reject
        if inside:
            rule = f"{to(plan.cluster_ip, plan.port, ' cluster IP')} -j "
            self.nat["KUBE-SERVICES"].append(rule + (svl if plan.internal_local else svc))
        else:
            rule = f"{to(plan.cluster_ip, plan.port, why)} {refuse}"
            self.filter["KUBE-SERVICES"].append(rule)
        if plan.pods:
            for ip in plan.external_ips:
                self.nat["KUBE-SERVICES"].append(f"{to(ip, plan.port, ' external IP')} -j {ext}")
            for ip in plan.balancer_ips:
                entrance = firewall if plan.ranges else ext
                rule = f"{to(ip, plan.port, ' loadbalancer IP')} -j {entrance}"
                self.nat["KUBE-SERVICES"].append(rule)
                if plan.ranges:
                    rule = f"{to(ip, plan.port, f' traffic not accepted by {firewall}')} -j DROP"
                    self.filter["KUBE-PROXY-FIREWALL"].append(rule)
            if plan.node_port:
                self.nat["KUBE-NODEPORTS"].append(f"{to('', plan.node_port, '')} -j {ext}")
        if not outside:
            chain = self.filter["KUBE-EXTERNAL-SERVICES"]
            chain += [f"{to(ip, plan.port, why)} {refuse}" for ip in external]
            if plan.node_port:
                rule = to("", plan.node_port, why)
                at = rule.index(" -m " + protocol)
                chain.append(f"{rule[:at]} -m addrtype --dst-type LOCAL{rule[at:]} {refuse}")
        if not plan.pods:
            return
        reached = bool(external or plan.node_port)
        pods = f"-s {PODS[self.family]}"
        if reached:
            masquerade = "-m addrtype --src-type LOCAL " if plan.external_local else ""
            self.nat[ext] = [f"{masquerade}-j KUBE-MARK-MASQ"]
            if plan.external_local:
                self.nat[ext].insert(0, f"{pods} -j {svc}")
                self.nat[ext].append(f"-m addrtype --src-type LOCAL -j {svc}")
            if outside:
                self.nat[ext].append(f"-j {svl if plan.external_local else svc}")
            if plan.ranges:
                self.nat[firewall] = [f"-s {net} -j {ext}" for net in plan.ranges]
        seps = {pod: f"KUBE-SEP-{digest[:-1]}{'ABCDEFGH'[n]}" for n, pod in enumerate(plan.pods)}
        used = []
        marks = f"! {pods} {to(plan.cluster_ip, plan.port, ' cluster IP')} -j KUBE-MARK-MASQ"
        if reached or not plan.internal_local:
            used = plan.pods
            self.nat[svc] = [] if plan.internal_local else [marks]
            self.nat[svc] += self._balanced(plan, plan.pods, seps)
        if local and (plan.internal_local or (reached and plan.external_local)):
            used = used or local
            self.nat[svl] = [marks] if plan.internal_local else []
            self.nat[svl] += self._balanced(plan, local, seps)
        for pod in used:
            sticks = f" -m recent --set --name {seps[pod]} --rsource" if plan.affinity else ""
            host = f"[{pod.address}]" if self.family == 6 else pod.address
            self.nat[seps[pod]] = [
                f"-s {pod.address}/{mask} -j KUBE-MARK-MASQ",
                f"-p {protocol}{sticks} -m {protocol} -j DNAT --to-destination {host}:{pod.port}",
            ]

    def _balanced(self, plan: Plan, pods: list[Pod], seps: dict[Pod, str]) -> list[str]:
        found = []
        if plan.affinity:
            for pod in pods:
                check = f"-m recent --rcheck --seconds {plan.affinity} --reap --name {seps[pod]}"
                found.append(f"{check} --rsource -j {seps[pod]}")
        for place, pod in enumerate(pods):
            left = len(pods) - place
            kept = round(2**31 / left) / 2**31  # what the kernel has of it
            chance = f"-m statistic --mode random --probability {kept:.11f} " if left > 1 else ""
            found.append(f"{chance}-j {seps[pod]}")
        return found


def written(wanted: list[Plan], family: int = 4, *, counters: bool = False) -> str:
    """Return services as iptables-save text."""
    writer = _Writer(family, counters)
    for plan in wanted:
        writer.add(plan)
    return writer.text()
