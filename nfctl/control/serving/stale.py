"""UDP flows that nobody ended: to services of a list, by endpoints that none of them has.

Flows to endpoints that are gone are ended when the chains were written
(:mod:`nfctl.control.serving.gone`). Whoever is killed in between leaves them, and since UDP has no
end they stay for as long as their clients go on. So they are looked for by what holds now, as
kube-proxy does: a flow whose client meant a service of the list, and whose replies come from
somewhere else than the service's endpoints, is stale. One that passed untranslated is, too, where
the service is served. An endpoint that drains keeps its own; flows of TCP and SCTP, and of
services that are not in the list, are left alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from typing import TYPE_CHECKING, Final

from nfctl.control.serving.ending import Flows, end
from nfctl.control.serving.gone import Ended
from nfctl.errors import NfctlError
from nfctl.kernel import flow_filter, flows, netlink
from nfctl.kernel.flow_filter import Meant
from nfctl.kernel.flows import ADDRESS_FAMILY
from nfctl.services.difference import places
from nfctl.services.model import family_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.rehearsal.host import Host
    from nfctl.services.model import Endpoint, Service, ServiceList

_UDP: Final = "udp"
#: What every entry of UDP has in it, and hardly another: CTA_PROTO_NUM.
_NUMBER: Final = netlink.attribute(1, bytes([flows.UDP]))


def end_stale(settings: ServiceList, so_far: Ended | None = None) -> Ended:
    """Delete the stale UDP flows of a list, and add their number to what was ended ``so_far``.

    In the network namespace of the calling thread. It never fails, as nothing depends on it: see
    ``problem``.
    """
    so_far = so_far or Ended()
    try:
        found = stale(settings)
        number = end(found) if found else 0
    except (NfctlError, OSError) as error:
        problem = so_far.problem or f"stale flows of UDP services were not all ended: {error}"
        return so_far._replace(problem=problem)
    return so_far._replace(udp=so_far.udp + number)


def stale(settings: ServiceList) -> list[Flows]:
    """Return which UDP flows are stale; the kernel picks those of the services' ports.

    Where there are UDP services the kernel walks its table: 30 ms for 100,000 flows, and once for
    each port, or once for all. Raises NotPermitted without CAP_NET_ADMIN, Unsupported without
    ctnetlink.
    """
    found: dict[Flows, None] = {}
    with contextlib.closing(_Known(settings)) as known:
        ports = known.ports()
        for part in _listed(ports) if ports else ():
            for entry in part:
                if (one := known.stale(entry)) is not None:
                    found[one] = None
    return list(found)


def _listed(ports: set[Meant]) -> Iterator[list[flows.Entry]]:
    """Return the UDP flows to some ports, at least."""
    if len(ports) > flow_filter.WALKS:  # one for all ports
        ports = {one._replace(port=0) for one in ports}
    return flow_filter.picked(ports, {one.family for one in ports}, (_NUMBER,))


class _Served:
    """Who may answer for a service's address: ``fresh`` says whether anybody gets new flows."""

    def __init__(self) -> None:
        self.endpoints: set[tuple[bytes, int]] = set()
        self.fresh = False

    def add(self, endpoint: Endpoint) -> None:
        if endpoint.ready or endpoint.draining:
            self.endpoints.add((_packed(endpoint.address), endpoint.port))
        self.fresh = self.fresh or endpoint.serves


class _Known:
    """The UDP services of a list, by what their clients mean."""

    def __init__(self, settings: ServiceList) -> None:
        self._places: dict[tuple[bytes, int], _Served] = {}
        self._node_ports: dict[tuple[int, int], _Served] = {}  # by family and port
        self._settings = settings
        self._node: dict[bytes, bool] = {}
        self._host: Host | None = None
        for service in settings.services:
            if service.protocol == _UDP:
                self._add(service)

    def close(self) -> None:
        if self._host is not None:
            self._host.close()

    def _add(self, service: Service) -> None:
        for address, port in places(service):
            families = [family_of(address)] if address is not None else service.families()
            for family in families:
                if address is not None:
                    served = self._places.setdefault((_packed(address), port), _Served())
                else:
                    served = self._node_ports.setdefault((family, port), _Served())
                for endpoint in service.endpoints:
                    if endpoint.family == family:
                        served.add(endpoint)

    def ports(self) -> set[Meant]:
        """Return the ports that clients mean."""
        ports = {(4 if len(address) == 4 else 6, port) for address, port in self._places}
        return {Meant(family, flows.UDP, port) for family, port in ports | self._node_ports.keys()}

    def stale(self, entry: flows.Entry) -> Flows | None:
        """Return which flows are stale if this one is."""
        original = flows.parse(entry.original)
        if original.protocol != flows.UDP:
            return None
        meant = original.destination, original.dport
        served = self._places.get(meant)
        if served is None:
            served = self._node_ports.get((entry.family, original.dport))
            if served is None or not self._is_node(original.destination):
                return None
        reply = flows.parse(entry.reply)
        replier = reply.source, reply.sport
        if replier in served.endpoints:
            return None
        service = ((_text(meant[0]), meant[1]),)
        if replier != meant:
            return Flows(_UDP, service, (_text(replier[0]), replier[1]))
        return Flows(_UDP, service, None) if served.fresh else None

    def _is_node(self, address: bytes) -> bool:
        """Whether node ports are served at an address."""
        if address not in self._node:
            self._node[address] = self._look(address)
        return self._node[address]

    def _look(self, address: bytes) -> bool:
        text = _text(address)
        if not self._settings.has_node_ports_at(text):
            return False
        if self._host is None:
            from nfctl.control.rehearsal.host import Host

            self._host = Host()
        return self._host.is_local(text)


def _packed(address: str) -> bytes:
    # ipaddress takes ten times as long, which 50,000 endpoints would make a fifth of a second
    return socket.inet_pton(ADDRESS_FAMILY[family_of(address)], address)


def _text(address: bytes) -> str:
    return str(ipaddress.ip_address(address))
