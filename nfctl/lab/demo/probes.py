"""What the demo sends, and what has to come of it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from nfctl.lab.demo.network import ADDRESSES
from nfctl.lab.traffic import Verdict
from nfctl.traversal import Way

ACCEPTED, REJECTED, DROPPED = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.DROPPED


class Probe(NamedTuple):
    """One attempt, its outcome and the chain whose rule or policy has to decide it.

    ``source``, ``target`` and ``seen_as`` are names in ``network.ADDRESSES``. ``what`` is a
    protocol and its port: ``tcp/22``, ``http/80``, ``udp/53`` or ``icmp``. ``reason`` is what
    a rejection has to look like. Where nat has a part in it, ``translated_by`` is its chain,
    ``arrives`` where the packet has to come out and ``seen_as`` whose address it then has.
    ``table`` is one that not every kernel has.
    """

    title: str
    family: Literal[4, 6]
    source: str
    target: str
    what: str
    expected: Verdict
    decided_by: str
    reason: str = ""
    translated_by: str = ""
    arrives: str = ""
    seen_as: str = ""
    table: str = ""

    @property
    def protocol(self) -> str:
        """The part of ``what`` before the port."""
        return self.what.partition("/")[0]

    @property
    def port(self) -> int:
        """The port, or 0 for ICMP."""
        return int(self.what.partition("/")[2] or 0)

    @property
    def way(self) -> Way:
        """Which hooks of the router the packet meets."""
        forwarded = self.target != "router" or self.arrives
        return Way.FORWARDED if forwarded else Way.LOCAL_IN

    def address(self, name: str) -> str:
        """Return the address of the probe's family that goes by ``name``."""
        return ADDRESSES[name][self.family]


PROBES = (
    Probe("ssh", 4, "client", "server", "tcp/22", ACCEPTED, "filter:SSH"),
    Probe(
        *("ssh for a visitor", 4, "visitor", "server", "tcp/22", REJECTED, "filter:OUTSIDE"),
        reason="icmp-host-prohibited",
    ),
    Probe("web", 4, "client", "server", "http/80", ACCEPTED, "filter:WEB"),
    Probe("web without a rule", 4, "client", "server", "tcp/443", DROPPED, "filter:FORWARD"),
    Probe(
        *("telnet, marked", 4, "client", "server", "tcp/23", REJECTED, "filter:OUTSIDE"),
        reason="tcp-reset",
    ),
    Probe(
        *("mail", 4, "client", "server", "tcp/25", REJECTED, "filter:OUTSIDE"),
        reason="icmp-admin-prohibited",
    ),
    Probe("dns", 4, "client", "server", "udp/53", ACCEPTED, "filter:OUTSIDE"),
    Probe("syslog, untracked", 4, "client", "server", "udp/514", ACCEPTED, "filter:OUTSIDE"),
    Probe("dns, forged source", 4, "spoofed", "server", "udp/53", DROPPED, "raw:PREROUTING"),
    Probe(
        *("search, confined", 4, "client", "server", "tcp/9200", DROPPED, "security:FORWARD"),
        table="security",
    ),
    Probe(
        *("port forward", 4, "client", "router", "http/8080", ACCEPTED, "filter:WEB"),
        translated_by="nat:PORTS",
        arrives="server:80",
        seen_as="client",
    ),
    Probe(
        *("masquerade", 4, "server", "client", "http/80", ACCEPTED, "filter:FORWARD"),
        translated_by="nat:POSTROUTING",
        arrives="client:80",
        seen_as="router",
    ),
    Probe("ping through", 4, "client", "server", "icmp", ACCEPTED, "filter:OUTSIDE"),
    Probe("ping the router", 4, "client", "router", "icmp", ACCEPTED, "filter:INPUT"),
    Probe("ssh to the router", 4, "client", "router", "tcp/22", DROPPED, "filter:INPUT"),
    Probe("ssh", 6, "client", "server", "tcp/22", ACCEPTED, "filter:OUTSIDE"),
    Probe("web", 6, "client", "server", "http/80", ACCEPTED, "filter:WEB"),
    Probe(
        *("telnet, marked", 6, "client", "server", "tcp/23", REJECTED, "filter:OUTSIDE"),
        reason="tcp-reset",
    ),
    Probe(
        *("dns", 6, "client", "server", "udp/53", REJECTED, "filter:OUTSIDE"),
        reason="icmp6-adm-prohibited",
    ),
    Probe("mail", 6, "client", "server", "tcp/25", DROPPED, "filter:FORWARD"),
    Probe("dns, forged source", 6, "spoofed", "server", "udp/53", DROPPED, "raw:PREROUTING"),
    Probe(
        *("port forward", 6, "client", "router", "http/8080", ACCEPTED, "filter:WEB"),
        translated_by="nat:PORTS",
        arrives="server:80",
        seen_as="client",
    ),
    Probe(
        *("masquerade", 6, "server", "client", "http/80", ACCEPTED, "filter:FORWARD"),
        translated_by="nat:POSTROUTING",
        arrives="client:80",
        seen_as="router",
    ),
    Probe("ping through", 6, "client", "server", "icmp", ACCEPTED, "filter:OUTSIDE"),
    Probe("ping the router", 6, "client", "router", "icmp", ACCEPTED, "filter:INPUT"),
)
