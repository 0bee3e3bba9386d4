"""The router's firewall through nfctl's own API; both functions run inside the router."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nfctl
from nfctl.lab.demo.explain import ChainCount, RuleCount

if TYPE_CHECKING:
    from nfctl.lab.demo.explain import Snapshot


def load(text: str, family: int) -> None:
    """Load iptables-save text into the kernel; the tables it names are replaced."""
    nfctl.restore(text, family=family, source="the demo's firewall")


def counters(family: int) -> Snapshot:
    """Read every packet counter of every table: one getsockopt a table."""
    return {
        table.name: {
            chain.name: ChainCount(
                chain.policy,
                chain.counters.packets,
                tuple(RuleCount(rule.spec, rule.counters.packets) for rule in chain.rules),
            )
            for chain in table.chains.values()
        }
        for table in nfctl.read(family=family)
    }
