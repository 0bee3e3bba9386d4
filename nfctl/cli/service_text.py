"""How ``nfctl service list`` and ``show`` show services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nfctl.cli.answer import colours, width
from nfctl.services.difference import addresses, unserved
from nfctl.services.observed.shares import percent
from nfctl.text import several

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.control.serving.counted import Seen, ServiceSeen
    from nfctl.services.model import Endpoint, Service, ServiceList

_TITLES: Final = ("service", "protocol", "endpoints", "affinity", "policies", "addresses")
_ENDPOINTS: Final = ("endpoint", "weight", "share", "local share", "connections", "", "chain")
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def table(settings: ServiceList) -> str:
    """Return the services, a line each."""
    if not settings.services:
        return f"there are no services of prefix {settings.prefix}\n"
    rows = [
        (
            service.name,
            service.protocol,
            _ready(service),
            seconds(service.affinity),
            _policies(service) or "-",
            ", ".join(addresses(service)),
        )
        for service in settings.services
    ]
    return _columns(_TITLES, rows, width())


def seconds(number: int) -> str:
    """Return a time in the largest unit in which it is whole; "-" for none."""
    return next((f"{number // n}{unit}" for n, unit in _UNITS if number and not number % n), "-")


def _ready(service: Service) -> str:
    ready = sum(endpoint.serves for endpoint in service.endpoints)
    drains = sum(endpoint.draining for endpoint in service.endpoints)
    more = f", {drains} drain{'s' if drains == 1 else ''}" if drains else ""
    return f"{ready}/{len(service.endpoints)}{more}"


def _policies(service: Service) -> str:
    found = ["internal local"] if service.internal_local else []
    found += ["external local"] if service.external_local else []
    found += [f"masquerade {service.masquerade}"] if service.masquerade else []
    found += [several(len(service.source_ranges), "source range")] if service.source_ranges else []
    return ", ".join(found)


def _columns(titles: Sequence[str], rows: Iterable[Sequence[str]], longest: int = 0) -> str:
    rows = list(rows)
    titles = [name.upper() for name in titles]
    used = [i for i, name in enumerate(titles) if name or any(row[i] for row in rows)]
    widths = {i: max(len(titles[i]), *(len(row[i]) for row in rows)) for i in used}
    lines = []
    for number, row in enumerate([titles, *rows]):
        line = "  ".join(row[i].ljust(widths[i]) for i in used).rstrip()
        if longest and len(line) > longest:
            line = line[: longest - 3] + "..."
        lines.append(f"\033[2m{line}\033[0m" if not number and colours() else line)
    return "\n".join(lines) + "\n"


# --- one service ----------------------------------------------------------------------------------


def service_text(settings: ServiceList, service: Service, seen: ServiceSeen) -> str:
    """Return all there is to know of a service."""
    bold = ("\033[1m", "\033[0m") if colours() else ("", "")
    lines = [f"{bold[0]}{service.name}{bold[1]} ({service.protocol})"]
    facts = [
        ("cluster IPs", [f"{ip}, port {service.port}" for ip in service.cluster_ips]),
        ("external IPs", [f"{ip}, port {service.port}" for ip in service.external_ips]),
        ("node port", [str(service.node_port)] if service.node_port else []),
        ("affinity", [f"{seconds(service.affinity)} by client"] if service.affinity else []),
        ("let in from", list(service.source_ranges)),
        ("policies", [_traffic(service)]),
        ("masquerade", [_masquerade(settings, service)]),
        *((f"chains, IPv{family}", chains) for family, chains in seen.chains.items()),
    ]
    for name, values in facts:
        for index, value in enumerate(values):
            lines.append(f"  {'' if index else name:<14}{value}")
    mine = settings._replace(services=(service,))
    lines += [f"  ! it {what}" for _, what in unserved(mine)]
    lines += [f"  ! chain {chain} is not in the kernel" for chain in seen.missing]
    if seen.missing:
        lines.append("    what was applied is put back by nfctl service apply of its list")
    text = "\n".join(lines) + "\n"
    if seen.endpoints:
        text += "\n" + _columns(_ENDPOINTS, [_row(each) for each in seen.endpoints])
    return text


def _row(seen: Seen) -> tuple[str, ...]:
    count = "-" if seen.connections is None else str(seen.connections)
    return (
        str(seen.endpoint),
        str(seen.endpoint.weight),
        "-" if seen.share is None else percent(seen.share),
        "-" if seen.local_share is None else percent(seen.local_share),
        count,
        _state(seen.endpoint),
        seen.chain if seen.endpoint.serves else "-",
    )


def _state(endpoint: Endpoint) -> str:
    found = ["draining"] if endpoint.draining else []
    found += ["not ready"] if not endpoint.ready else []
    return ", ".join(found + (["local"] if endpoint.local else []))


def _traffic(service: Service) -> str:
    return ", ".join(
        f"{what} traffic to {'local' if local else 'all'} endpoints"
        for what, local in (
            ("internal", service.internal_local),
            ("external", service.external_local),
        )
    )


def _masquerade(settings: ServiceList, service: Service) -> str:
    mode = service.masquerade or settings.masquerade
    cluster = ", ".join(settings.cluster)
    more = f", which is {cluster}" if mode == "off-cluster" and cluster else ""
    return f"{mode}{more}; mark {settings.mark:#x}/{settings.mask:#x}"


def service_document(settings: ServiceList, service: Service, seen: ServiceSeen) -> dict[str, Any]:
    """Return a service as JSON, as the docstring of ``nfctl.cli.service`` says."""
    return {
        "prefix": settings.prefix,
        **service.document(),
        "endpoints": [
            {
                **each.endpoint.document(),
                "serves": each.share is not None,
                "chain": each.chain,
                "share": each.share,
                "local_share": each.local_share,
                "connections": each.connections,
            }
            for each in seen.endpoints
        ],
        "chains": {str(family): chains for family, chains in seen.chains.items()},
        "missing": seen.missing,
    }
