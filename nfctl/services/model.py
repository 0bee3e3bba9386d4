"""A list of services: what is to be reached where, and by which endpoints it is served.

The terms are those of Kubernetes' Service. A list is read by ``nfctl.services.reading``, kept in
the journal as :meth:`ServiceList.document` says, and becomes chains in ``nfctl.services.chains``.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any, Final, NamedTuple

from nfctl.services.names import PREFIX
from nfctl.text import at

VERSION: Final = 1
PROTOCOLS: Final = ("tcp", "udp", "sctp")
ALWAYS, OFF_CLUSTER, NEVER = "always", "off-cluster", "never"
MASQUERADE: Final = (ALWAYS, OFF_CLUSTER, NEVER)
CLUSTER, LOCAL = "cluster", "local"  # traffic policies
MARK: Final = 0x4000  # kube-proxy's: bit 14


def family_of(address: str) -> int:
    """Return 4 or 6."""
    return 6 if ":" in address else 4


class Endpoint(NamedTuple):
    """A server. ``weight`` is its share beside the others' weights, 1 to 65535.

    One that is not ready, or draining, gets no new connections. ``local``: it runs on this node,
    which is what traffic policies of "local" ask for.
    """

    address: str
    port: int
    weight: int = 1
    ready: bool = True
    local: bool = False
    draining: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return family_of(self.address)

    @property
    def serves(self) -> bool:
        """Whether it gets new connections."""
        return self.ready and not self.draining

    def __str__(self) -> str:
        return at(self.address, self.port)

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        return self._asdict()


class Service(NamedTuple):
    """A service: one port of one protocol.

    ``affinity`` is in seconds: a client stays with its endpoint as long as it comes back within
    that time; 0 for none. ``source_ranges`` are who may come in by external addresses and the
    node port; () for all. ``internal_local`` and ``external_local``: only endpoints of this node
    serve what comes by the cluster IPs, and by the others. ``masquerade`` is "" where the list's
    holds.
    """

    name: str
    port: int
    protocol: str = "tcp"
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    node_port: int = 0
    endpoints: tuple[Endpoint, ...] = ()
    affinity: int = 0
    source_ranges: tuple[str, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    masquerade: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells services apart: name and protocol."""
        return self.name, self.protocol

    def families(self) -> list[int]:
        """Return the families in which there is something of it."""
        addresses = {family_of(address) for address in (*self.cluster_ips, *self.external_ips)}
        if self.node_port:
            addresses |= {endpoint.family for endpoint in self.endpoints} or {4, 6}
        return sorted(addresses)

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document; what is not said there holds by default."""
        said = {
            "cluster-ips": list(self.cluster_ips),
            "external-ips": list(self.external_ips),
            "node-port": self.node_port,
            "affinity": self.affinity,
            "source-ranges": list(self.source_ranges),
            "internal-traffic": LOCAL if self.internal_local else "",
            "external-traffic": LOCAL if self.external_local else "",
            "masquerade": self.masquerade,
        }
        found: dict[str, Any] = {"name": self.name, "port": self.port, "protocol": self.protocol}
        found |= {key: value for key, value in said.items() if value}
        found["endpoints"] = [endpoint.document() for endpoint in self.endpoints]
        return found


class Listed(NamedTuple):
    """A list as the journal keeps it: the JSON text of its document."""

    prefix: str
    text: str


class ServiceList(NamedTuple):
    """All services that share a prefix. ``cluster`` are the ranges that are not masqueraded.

    ``mark`` of ``mask`` is the packet mark that asks for masquerading. ``node_addresses`` are
    those on which node ports are served, () for all local ones but loopback.
    """

    services: tuple[Service, ...] = ()
    prefix: str = PREFIX
    cluster: tuple[str, ...] = ()
    masquerade: str = OFF_CLUSTER
    mark: int = MARK
    mask: int = MARK
    node_addresses: tuple[str, ...] = ()

    def has_node_ports_at(self, address: str) -> bool:
        """Whether node ports are served at an address, if it is one of this node's."""
        found = ipaddress.ip_address(address)
        if not self.node_addresses:
            return not found.is_loopback
        return any(found in ipaddress.ip_network(net) for net in self.node_addresses)

    def listed(self) -> Listed:
        """Return it as the journal keeps it."""
        return Listed(self.prefix, json.dumps(self.document()))

    def document(self) -> dict[str, Any]:
        """Return it as a JSON document, which is a list's file, too."""
        return {
            "version": VERSION,
            "prefix": self.prefix,
            "cluster": list(self.cluster),
            "masquerade": {"mode": self.masquerade, "mark": self.mark, "mask": self.mask},
            "node-addresses": list(self.node_addresses),
            "services": [service.document() for service in self.services],
        }
