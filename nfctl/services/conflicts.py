"""What does not go together in a list of services, though each value may stand by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.services.difference import places
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
    taken: dict[tuple[str | None, int, str], str] = {}
    for index, service in enumerate(made.services):
        if names.setdefault(service.key, index) != index:
            yield index, f"there are two services {service.name} ({service.protocol})", _TOLD_BY
        where = places(service)
        if not where:
            hint = "cluster-ips, external-ips or node-port"
            yield index, f"service {service.name} has no address", hint
        if len(set(where)) != len(where):
            twice = next(place for place in where if where.count(place) > 1)
            yield index, f"service {service.name} has {twice[0]} twice", ""
        if len({one[:2] for one in service.endpoints}) != len(service.endpoints):
            yield index, f"service {service.name} has an endpoint twice", ""
        for address, port in where:
            other = taken.setdefault((address, port, service.protocol), service.name)
            if other != service.name:
                what = f"node-port {port}" if address is None else f"{address}:{port}"
                msg = f"service {service.name} has {what}/{service.protocol} as {other} has"
                yield index, msg, ""
