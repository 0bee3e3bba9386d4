"""What does not go together in a list of services, though each value may stand by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.services.model import family_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.services.model import ServiceList

_TOLD_BY = "name and protocol tell services apart"


def of(made: ServiceList) -> Iterator[tuple[int | None, str, str]]:
    """Yield what is wrong between services: index of the service, message, hint."""
    for family in (4, 6):
        if sum(family_of(net) == family for net in made.cluster) > 1:
            yield None, f"there is more than one cluster range of IPv{family}", "take one for both"
    if made.mark & ~made.mask:
        yield None, "the mark has bits that are not in the mask", ""
    names: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, int, str], str] = {}
    for index, service in enumerate(made.services):
        if names.setdefault(service.key, index) != index:
            yield index, f"there are two services {service.name} ({service.protocol})", _TOLD_BY
        if not (service.cluster_ips or service.external_ips or service.node_port):
            hint = "cluster-ips, external-ips or node-port"
            yield index, f"service {service.name} has no address", hint
        places = [(ip, service.port) for ip in (*service.cluster_ips, *service.external_ips)]
        if service.node_port:
            places.append(("node-port", service.node_port))
        if len(set(places)) != len(places):
            twice = next(place for place in places if places.count(place) > 1)
            yield index, f"service {service.name} has {twice[0]} twice", ""
        if len({one[:2] for one in service.endpoints}) != len(service.endpoints):
            yield index, f"service {service.name} has an endpoint twice", ""
        for address, port in places:
            other = taken.setdefault((address, port, service.protocol), service.name)
            if other != service.name:
                where = f"{address} {port}" if address == "node-port" else f"{address}:{port}"
                msg = f"service {service.name} has {where}/{service.protocol} as {other} has"
                yield index, msg, ""
