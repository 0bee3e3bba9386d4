"""The demo itself: build, load, send, read the counters, explain, remove.

Nothing here prints; ``nfctl.cli.demo`` does. The machine's own tables are never touched:
whatever speaks to netfilter runs in a process inside the router.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

from nfctl.errors import Unsupported
from nfctl.lab import namespaces, traffic
from nfctl.lab.counters import counters
from nfctl.lab.demo import engine, firewall
from nfctl.lab.demo.network import build
from nfctl.lab.demo.probes import PROBES
from nfctl.lab.demo.report import Outcome, Report
from nfctl.lab.explain import deciding, explain
from nfctl.lab.lab import Lab
from nfctl.traversal import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.lab.demo.network import Network
    from nfctl.lab.demo.probes import Probe
    from nfctl.lab.explain import Snapshot
    from nfctl.lab.worker import Worker

_DROP_TIMEOUT = 0.2  # seconds; an answer would take one millisecond


def run(
    on_rules: Callable[[int, dict[str, int]], None] = lambda _family, _rules: None,
    on_outcome: Callable[[Outcome], None] = lambda _outcome: None,
) -> Report:
    """Run the demo and return what came of it.

    ``on_rules`` is called when a family's firewall is loaded, with the number of rules by
    table, and ``on_outcome`` with each probe's outcome as it is known. NotPermitted without
    root, Unsupported where the kernel lacks what the firewall needs.
    """
    start = time.monotonic()
    report = Report()
    with Lab("demo") as lab:
        report.lab = lab.id
        network = build(lab)
        for family, text in _firewalls():
            router = network.router.worker()
            router.run(engine.load, text, family)
            # Many kernels are built without this one table.
            with contextlib.suppress(Unsupported):
                router.run(engine.load, firewall.SECURITY, family)
            before = router.run(counters, family)
            report.rules[family] = {
                table: sum(len(chain.rules) for chain in before[table].values())
                for table in TABLES
                if table in before
            }
            on_rules(family, report.rules[family])
            for probe in PROBES:
                if probe.family == family and (not probe.table or probe.table in before):
                    outcome, before = _try(network, router, probe, before)
                    report.outcomes.append(outcome)
                    on_outcome(outcome)
    report.left_behind = namespaces.names(f"{namespaces.PREFIX}{report.lab}-")
    report.seconds = time.monotonic() - start
    return report


def _firewalls() -> list[tuple[int, str]]:
    both = [(4, firewall.IPV4), (6, firewall.IPV6)]
    return both if namespaces.has_ipv6() else both[:1]


def _try(
    network: Network, router: Worker, probe: Probe, before: Snapshot
) -> tuple[Outcome, Snapshot]:
    """Send one probe; return its outcome and the counters after it."""
    network.arrivals()  # what came since the last probe is not this one's
    answer = network.host(probe.source).run(_sender(probe))
    after = router.run(counters, probe.family)
    steps = explain(before, after, probe.way)
    arrived = seen_as = ""
    for host, arrival in network.arrivals():
        arrived, seen_as = f"{host}:{arrival.port}", arrival.peer
    return Outcome(probe, answer, steps, deciding(steps), arrived, seen_as), after


def _sender(probe: Probe) -> Callable[[], traffic.Answer]:
    timeout = _DROP_TIMEOUT if probe.expected is traffic.Verdict.DROPPED else traffic.TIMEOUT
    target = probe.address(probe.target)
    source = probe.address(probe.source)
    if probe.protocol == "icmp":
        return partial(traffic.ping, target, source=source, timeout=timeout)
    senders: dict[str, Callable[..., traffic.Answer]] = {
        "tcp": traffic.tcp,
        "udp": traffic.udp,
        "http": traffic.http,
    }
    send = senders[probe.protocol]
    return partial(send, target, probe.port, source=source, timeout=timeout)
