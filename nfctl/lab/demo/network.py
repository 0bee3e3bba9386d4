"""The demo's network: a client outside, a server inside, and the router between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

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
INSIDE_ROUTER = {4: "10.77.0.1", 6: "fd77::1"}


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
    """Make the hosts, connect them, and start the servers."""
    client, server = lab.host("client"), lab.host("server")
    router = lab.host("router", forward=True)
    lab.link(
        client.port("eth0", "192.0.2.10/24", "192.0.2.66/24", "2001:db8:1::10/64"),
        router.port("wan0", "192.0.2.1/24", "2001:db8:1::1/64"),
    )
    lab.link(
        server.port("eth0", "10.77.0.10/24", "fd77::10/64"),
        router.port("lan0", "10.77.0.1/24", "fd77::1/64"),
    )
    for version in (4, 6):
        client.route("default", via=ADDRESSES["router"][version])
        server.route("default", via=INSIDE_ROUTER[version])
    # Something listens wherever the firewall refuses, so that the firewall has refused.
    services = {
        "client": client.serve(tcp=[80]),
        "router": router.serve(tcp=[22]),
        "server": server.serve(tcp=[22, 23, 25, 80, 443, 9200], udp=[53, 514]),
    }
    return Network(client, router, server, services)
