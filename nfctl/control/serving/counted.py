"""What the kernel has of a service: its chains, and what their rules counted.

The rule that translates sees the first packet of a connection alone, so it counts connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nfctl.kernel.blob import Blob
from nfctl.kernel.table import active_tables
from nfctl.services.chains import Compiler
from nfctl.services.names import Names

if TYPE_CHECKING:
    from nfctl.services.model import Endpoint, Service, ServiceList

_SEP_RULES = 2  # the mark for what an endpoint sends to itself, and the translation


class Seen(NamedTuple):
    """An endpoint: its chain, its shares (0 to 1, None without one), and what came to it.

    ``connections`` is None where the kernel does not have its chain as it should be.
    """

    endpoint: Endpoint
    chain: str
    share: float | None = None
    local_share: float | None = None
    connections: int | None = None


class ServiceSeen(NamedTuple):
    """A service: its chains in nat, by family, those of them that are not there, its endpoints."""

    chains: dict[int, list[str]]
    missing: list[str]
    endpoints: list[Seen]


def look(settings: ServiceList, service: Service) -> ServiceSeen:
    """Read the kernel's tables; NotPermitted without root."""
    names = Names(settings.prefix)
    chains: dict[int, list[str]] = {}
    missing = []
    counted: dict[str, int] = {}
    for family in service.families():
        own = Compiler(settings, family).service(service).own
        found = {chain for _, chain in own}
        chains[family] = sorted(c for c in found if not c.startswith(names.fixed("SEP-")))
        there = set()
        blob = Blob(family, "nat") if "nat" in active_tables(family) else None
        for chain in blob.chains if blob is not None else ():
            if chain.name not in found:
                continue
            there.add(chain.name)
            if chain.name.startswith(names.fixed("SEP-")) and len(chain.rules) == _SEP_RULES:
                assert blob is not None  # noqa: S101 - it has chains
                counted[chain.name] = blob.counters(chain.rules[-1])[0]
        missing += sorted(found - there)
    seen = []
    for endpoint in service.endpoints:
        chain_name = names.endpoint(service.name, service.protocol, str(endpoint))
        share, local_share = _shares(service, endpoint)
        seen.append(Seen(endpoint, chain_name, share, local_share, counted.get(chain_name)))
    return ServiceSeen(chains, missing, seen)


def _shares(service: Service, one: Endpoint) -> tuple[float | None, float | None]:
    if not one.serves or one.family not in service.families():
        return None, None
    weights = [e.weight for e in service.endpoints if e.family == one.family and e.serves]
    local = [e.weight for e in service.endpoints if e.family == one.family and e.serves and e.local]
    return one.weight / sum(weights), one.weight / sum(local) if one.local else None
