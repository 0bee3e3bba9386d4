"""Hypothesis strategies for jump graphs, and a cluster's rules as kube-proxy writes them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONDITIONS = (
    "",
    "-p tcp -m tcp --dport 22",
    "-p tcp -m tcp --dport 80",
    "-s 10.0.0.0/8",
    '-m comment --comment "a -j B, and \\"quoted\\"" -i eth0',
    "-m statistic --mode random --probability 0.50000000000",
)
_ENDS = (
    "-j ACCEPT",
    "-j DROP",
    "-j DNAT --to-destination 10.0.0.1:80",
    "",
    '-j LOG --log-prefix "-j A "',
)


@st.composite
def tables(draw: st.DrawFn, *, most: int = 9, loops: bool = True) -> str:
    """Make a filter table: chains that jump anywhere, also to what is not there, and in loops."""
    count = draw(st.integers(0, most))
    stems = draw(st.sampled_from([("C",), ("A-", "B-"), ("X-Y-",)]))
    own = [f"{stems[number % len(stems)]}{number}" for number in range(count)]
    places = {name: number for number, name in enumerate(own)}
    chains = ["INPUT", "FORWARD", "OUTPUT", *own]
    counted = draw(st.booleans())
    declared = [f":{name} {'-' if name in own else 'DROP'} [0:0]" for name in chains]
    rules = []
    for name in chains:
        later = own if loops else own[places.get(name, -1) + 1 :]
        for _ in range(draw(st.integers(0, 4))):
            condition = draw(st.sampled_from(_CONDITIONS))
            targets = [f"-j {to}" for to in [*later, "GONE"]] + [f"-g {to}" for to in later]
            target = draw(st.sampled_from([*targets, *_ENDS]))
            counts = f"[{draw(st.integers(0, 9))}:{draw(st.integers(0, 999))}] " if counted else ""
            rules.append(f"{counts}{' '.join(filter(None, ['-A', name, condition, target]))}")
    return "\n".join(["*filter", *declared, *rules, "COMMIT", ""])


def cluster(sizes: Sequence[int], *, counted: bool = False) -> str:
    """Return the nat table of a cluster: services with so many endpoints each."""

    def hashed(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:16].upper()

    count = "[1:60] " if counted else ""
    chains = ["KUBE-SERVICES", "KUBE-MARK-MASQ"]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    ]
    for service, endpoints in enumerate(sizes):
        address = f"10.96.{service // 250}.{service % 250 + 1}"
        name = f"KUBE-SVC-{hashed(address)}"
        chains.append(name)
        rules.append(
            f'-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment "ns/s{service}" '
            f"-m tcp --dport 80 -j {name}"
        )
        rules.append(f"-A {name} ! -s 10.0.0.0/9 -d {address}/32 -p tcp -j KUBE-MARK-MASQ")
        for number in range(endpoints):
            chance = f"-m statistic --mode random --probability {1 / (endpoints - number):.11f} "
            if number == endpoints - 1:
                chance = ""
            there = f"10.1.{service}.{number + 1}"
            endpoint = f"KUBE-SEP-{hashed(there)}"
            chains.append(endpoint)
            rules.append(f'-A {name} -m comment --comment "s{service}" {chance}-j {endpoint}')
            rules.append(f"-A {endpoint} -s {there}/32 -j KUBE-MARK-MASQ")
            rules.append(f"-A {endpoint} -p tcp -j DNAT --to-destination {there}:8080")
    lines = ["*nat", ":PREROUTING ACCEPT [7:420]", *(f":{name} - [0:0]" for name in chains)]
    return "\n".join([*lines, *(count + rule for rule in rules), "COMMIT", ""])
