"""The demo's network: a client outside, a server inside, and the router between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nfctl.lab.topology import Topology

if TYPE_CHECKING:
    from nfctl.lab import Arrival, Host, Lab, Service

# The outside has documentation addresses (RFC 5737, RFC 3849), the inside private ones.
ADDRESSES = {
    "client": {4: "192.0.2.10", 6: "2001:db8:1::10"},
    "visitor": {4: "192.0.2.66"},  # a second address of the client
    "router": {4: "192.0.2.1", 6: "2001:db8:1::1"},
    "server": {4: "10.77.0.10", 6: "fd77::10"},
    "spoofed": {4: "10.77.0.66", 6: "fd77::66"},  # the client pretends to be inside
}


class Network(NamedTuple):
    """The three hosts, and the servers on two of them."""

    client: Host
    router: Host
    server: Host
    services: dict[str, Service]

    def host(self, name: str) -> Host:
        """Return the host that has the address called ``name``."""
        return {"server": self.server, "router": self.router}.get(name, self.client)

    def arrivals(self) -> list[tuple[str, Arrival]]:
        """Return what reached a server since the last call: the host's name and the arrival."""
        return [
            (name, arrival)
            for name, service in self.services.items()
            for arrival in service.arrivals()
        ]


def build(lab: Lab) -> Network:
    """Make the hosts of the topology ``router``, and start servers that report who comes."""
    topology = Topology.load("router")
    lab.build(topology, services=False)
    names = topology.addresses()
    services = {}
    for name, host in topology.hosts.items():
        plan = host.services
        services[name] = lab[name].serve(
            tcp=plan.tcp, udp=plan.udp, http=plan.http, dns=plan.dns, names=names
        )
    return Network(lab["client"], lab["router"], lab["server"], services)
