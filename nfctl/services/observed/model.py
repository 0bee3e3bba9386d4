"""What is read back from the chains: services, their addresses and endpoints, and problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

#: The prefix of kube-proxy, which knows no weights and leaves unused chains for a while.
KUBE = "KUBE-"

#: Kinds of addresses; a node port is served on the node's own addresses.
CLUSTER, EXTERNAL, BALANCER, NODE = "cluster", "external", "load-balancer", "node"


class Address(NamedTuple):
    """Where a service is to be reached."""

    kind: str
    address: str  # "" for a node port
    port: int
    chain: str = ""  # where nat's rule leads to; "" without one
    refused: str = ""  # REJECT or DROP by a rule of filter
    source_ranges: tuple[str, ...] = ()  # who may come in; () for all


class Endpoint(NamedTuple):
    """Who serves it. Counters are of connections; None where the rules have no counters."""

    address: str  # "" where no rule says it
    port: int  # 0 where no rule says it
    chain: str
    share: float | None = None  # of what the SVC chain gets; None for one that is not there
    local_share: float | None = None  # of what the chain of local endpoints gets
    chosen: int | None = None  # by chance, in SVC
    local_chosen: int | None = None  # by chance, in the chain of local endpoints
    connections: int | None = None  # translated, by affinity too
    hairpin: bool = False  # whether its connections to itself are masqueraded

    def __str__(self) -> str:
        return at(self.address or "?", self.port)


class Problem(NamedTuple):
    """What does not add up, and where; ``rule`` is 0 for a whole chain, ``chain`` "" for none."""

    kind: str
    message: str
    table: str
    chain: str
    rule: int = 0
    text: str = ""  # the rule's, as iptables-save prints it
    service: str = ""
    protocol: str = ""


@dataclass(slots=True)
class Service:
    """A service of one family."""

    name: str
    protocol: str
    family: int
    port: int = 0  # 0 where only a node port is known
    addresses: list[Address] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    affinity: int = 0  # seconds
    internal: str = ""  # traffic policy: cluster or local; "" without cluster IP
    external: str = ""  # the same; "" where nothing comes from outside
    masquerade: str = ""  # of cluster IPs: always, off-cluster, never; "" without cluster IP
    inside: tuple[str, ...] = ()  # off-cluster: what is not masqueraded, "10.0.0.0/8", "-i cni+"
    external_masquerade: str = ""  # always, local (what the node itself sends), never; ""
    svc: str = ""  # the chain of all endpoints
    svl: str = ""  # the chain of local ones

    @property
    def source_ranges(self) -> tuple[str, ...]:
        """Who may come in from outside; () for all."""
        return tuple(dict.fromkeys(net for a in self.addresses for net in a.source_ranges))

    @property
    def refused(self) -> bool:
        """Whether none of its addresses is served."""
        return not self.endpoints and any(address.refused for address in self.addresses)


@dataclass(slots=True)
class Cluster:
    """The services of one family, of one prefix."""

    prefix: str
    family: int
    source: str = ""  # the file's name; "" for the kernel's tables
    services: list[Service] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    mark: int = 0
    mask: int = 0
    node_addresses: tuple[str, ...] = ()  # for node ports; () for all local ones
    counted: bool = False


def at(address: str, port: int) -> str:
    """Return ``address:port``, an IPv6 address in brackets."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" if port else host


def bare(network: str) -> str:
    """Return an address without the mask of a single host."""
    if network.endswith(("/32", "/128")):
        host, _, length = network.rpartition("/")
        return host if (":" in host) == (length == "128") else network
    return network
