"""Services read back, shown: a line each, or a tree; and what does not add up."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from nfctl.services.observed import model, spread
from nfctl.services.observed.model import at
from nfctl.services.observed.shares import percent
from nfctl.text import human, several, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.services.observed.model import Cluster, Endpoint, Problem, Service

    Paint = Callable[[str, str], str]

_KINDS = {
    model.CLUSTER: "cluster IP",
    model.EXTERNAL: "external IP",
    model.BALANCER: "load balancer IP",
    model.NODE: "node port",
}
_MOST_PROBLEMS = 40
# columns of the table that may be cut, and how much of them stays
_NARROWEST = {2: 12, 0: 30, 1: 18}


def chosen(cluster: Cluster, words: str) -> list[Service]:
    """Return the services that are meant by a name, a part of it, a pattern or an address."""
    services = cluster.services
    whole = [s for s in services if s.name == words]  # a service may be called tcp
    if whole:
        return whole
    name, protocol = _split(words)
    if protocol:
        services = [s for s in services if s.protocol == protocol]
    if any(sign in name for sign in "*?["):
        return [s for s in services if fnmatch.fnmatchcase(s.name, name)]
    for fits in (_same, _same_service, _has_address, _contains):
        found = [s for s in services if fits(s, name)]
        if found:
            return found
    return []


def _split(words: str) -> tuple[str, str]:
    for protocol in ("tcp", "udp", "sctp"):
        if words.endswith(f"/{protocol}"):
            return words.removesuffix(f"/{protocol}"), protocol
    return words, ""


def _same(service: Service, words: str) -> bool:
    return service.name == words


def _same_service(service: Service, words: str) -> bool:
    whole = service.name.rpartition(":")[0] or service.name
    return words in {whole, whole.rpartition("/")[2], service.name.rpartition("/")[2]}


def _has_address(service: Service, words: str) -> bool:
    places = [(a.address, at(a.address, a.port)) for a in service.addresses if a.address]
    return any(words in place for place in places)


def _contains(service: Service, words: str) -> bool:
    return words in service.name


# --- a line each ----------------------------------------------------------------------------------


def table(
    clusters: Sequence[Cluster], services: Sequence[Service], width: int, paint: Paint
) -> str:
    """Return a heading and a line for each service; ``width`` 0 for as wide as it gets."""
    counted = any(cluster.counted for cluster in clusters)
    both = len({service.family for service in services}) > 1
    rows = [("SERVICE", "ADDRESS", "ENDPOINTS", *(["CONNECTIONS"] if counted else []), "MORE")]
    last = len(rows[0]) - 1
    for service in services:
        name = f"{service.name}/{service.protocol}"
        more = _more(service)
        if both:
            more.insert(0, f"IPv{service.family}")
        count = [_connections(service)] if counted else []
        row = (name, _first(service), _shares(service), *count, ", ".join(more))
        rows.append(tuple([visible(cell) for cell in row]))
    widths = [max(len(row[column]) for row in rows) for column in range(last)]
    if width:
        spare = sum(widths) + 2 * last + max(len(row[last]) for row in rows) - width
        for column, least in _NARROWEST.items():
            smaller = max(least, widths[column] - max(0, spare))
            spare -= max(0, widths[column] - smaller)
            widths[column] = min(widths[column], smaller)
    lines = []
    for number, row in enumerate(rows):
        cells = [_cut(row[c], widths[c]).ljust(widths[c]) for c in range(last)]
        text = "  ".join((*cells, row[last])).rstrip()
        text = text if not width else _cut(text, width)
        lines.append(paint(text, "1") if not number else _coloured(text, row[2], paint))
    return "\n".join(lines) + "\n"


def _coloured(text: str, endpoints: str, paint: Paint) -> str:
    return paint(text, "31") if endpoints.startswith("none") else text


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _first(service: Service) -> str:
    """Return the first address, and how many there are besides."""
    if not service.addresses:
        return "-"
    first = service.addresses[0]
    text = at(first.address, first.port) if first.address else f"node:{first.port}"
    others = len(service.addresses) - 1
    return f"{text} +{others}" if others else text


def _shares(service: Service) -> str:
    """Return endpoints and shares: "5 x 20 %", "2: 75 %, 25 %"."""
    found = [e.share if e.share is not None else e.local_share for e in service.endpoints]
    known = [share or 0.0 for share in found]
    if not known:
        refused = sorted({a.refused for a in service.addresses if a.refused})
        return f"none: {', '.join(refused)}" if refused else "none"
    if max(known) - min(known) < 0.0005:
        return f"{len(known)} x {percent(known[0])}" if len(known) > 1 else "1"
    listed = ", ".join(percent(share) for share in known[:4])
    return f"{len(known)}: {listed}{', ...' if len(known) > 4 else ''}"


def _connections(service: Service) -> str:
    counts = [e.connections for e in service.endpoints if e.connections is not None]
    return human(sum(counts)) if counts else "-"


def _more(service: Service) -> list[str]:
    """Return what is not the usual about a service, in few words."""
    found = []
    if service.affinity:
        found.append(f"affinity {service.affinity} s")
    if service.internal == "local":
        found.append("internal local")
    if service.external == "local":
        found.append("external local")
    if service.source_ranges:
        found.append(several(len(service.source_ranges), "source range"))
    if service.masquerade in {"always", "never"}:
        found.append(f"masquerade {service.masquerade}")
    if any(
        (found_spread := spread.of_service(service, local=local)) and found_spread.off
        for local in (False, True)
    ):
        found.append("spread is off")
    return found


# --- a tree ---------------------------------------------------------------------------------------


def tree(services: Sequence[Service], paint: Paint, *, ascii_only: bool = False) -> str:
    """Return every service with its addresses, settings and endpoints under it."""
    branch, end = ("|-", "`-") if ascii_only else ("├─", "└─")
    lines = []
    for service in services:
        head = f"{visible(service.name)}/{service.protocol}"
        lines.append(f"{paint(head, '1')} IPv{service.family}")
        below = [*_address_lines(service), *_setting_lines(service), *_endpoint_lines(service)]
        lines += [f"{branch} {visible(line)}" for line in below[:-1]]
        lines += [f"{end} {visible(line)}" for line in below[-1:]]
    return "\n".join(lines) + "\n" if lines else ""


def _address_lines(service: Service) -> list[str]:
    lines = []
    for address in service.addresses:
        place = at(address.address, address.port) if address.address else str(address.port)
        line = f"{_KINDS[address.kind]} {place}"
        if address.source_ranges:
            line += f" from {', '.join(address.source_ranges)}"
        if address.chain:
            line += f" -> {address.chain}"
        if address.refused:
            line += f": {address.refused}" if not address.chain else f", or {address.refused}"
        lines.append(line)
    return lines


def _setting_lines(service: Service) -> list[str]:
    lines = []
    if service.affinity:
        lines.append(f"affinity: a client keeps its endpoint for {service.affinity} s")
    policies = [("internal", service.internal), ("external", service.external)]
    if any(policy == "local" for _, policy in policies):
        lines.append("policy: " + ", ".join(f"{n} {p}" for n, p in policies if p))
    said = []
    if service.masquerade == "off-cluster":
        said.append(f"what is not from {', '.join(service.inside)}")
    elif service.masquerade:
        said.append(f"cluster IP {service.masquerade}")
    if service.external_masquerade == "local":
        said.append("from outside only what this node sends")
    elif service.external_masquerade:
        said.append(f"from outside {service.external_masquerade}")
    if said:
        lines.append(f"masquerade: {'; '.join(said)}")
    return lines


def _endpoint_lines(service: Service) -> list[str]:
    total = sum(e.connections or 0 for e in service.endpoints)
    lines = [_endpoint_line(service, endpoint, total) for endpoint in service.endpoints]
    for local in (False, True):
        found = spread.of_service(service, local=local)
        if found is not None and found.off:
            of = "local endpoints" if local else "endpoints"
            lines.append(
                f"the spread over {of} is far off the shares: {found.connections} connections "
                f"chosen by chance, p {found.probability:.1g}"
            )
    return lines or ["no endpoints"]


def _endpoint_line(service: Service, endpoint: Endpoint, total: int) -> str:
    parts = []
    if endpoint.share is not None:
        parts.append(percent(endpoint.share))
    if endpoint.local_share is not None:
        parts.append(f"{percent(endpoint.local_share)} of local")
    elif service.svl:
        parts.append("not local")
    if endpoint.connections is not None:
        really = f" ({percent(round(endpoint.connections / total, 4))})" if total else ""
        parts.append(several(endpoint.connections, "connection") + really)
    return f"{endpoint}  {', '.join(parts)}"


# --- problems -------------------------------------------------------------------------------------


def problems(found: Sequence[Problem], width: int, paint: Paint, most: int = _MOST_PROBLEMS) -> str:
    """Return what does not add up, each with its place and its rule."""
    lines = [paint(several(len(found), "problem") + ":", "1;31")]
    for problem in found[:most]:
        place = " ".join(filter(None, (problem.table, visible(problem.chain))))
        if problem.rule:
            place += f" rule {problem.rule}"
        about = f"{visible(problem.service)}/{problem.protocol}: " if problem.service else ""
        lines.append(f"  {paint(place, '33')}: {about}{visible(problem.message)}")
        if problem.text:
            text = visible(problem.text)
            lines.append("    " + (_cut(text, width - 4) if width else text))
    if len(found) > most:
        lines.append(f"  and {len(found) - most} more: --json has all")
    return "\n".join(lines) + "\n"


def summary(clusters: Sequence[Cluster]) -> str:
    """Return a line about each family."""
    lines = []
    for cluster in clusters:
        endpoints = sum(len(service.endpoints) for service in cluster.services)
        text = (
            f"{cluster.prefix}* IPv{cluster.family}: {several(len(cluster.services), 'service')}, "
            f"{several(endpoints, 'endpoint')}"
        )
        if cluster.mark:
            text += f"; mark to masquerade {cluster.mark:#x}/{cluster.mask:#x}"
        if cluster.node_addresses:
            text += f"; node ports at {', '.join(cluster.node_addresses)}"
        lines.append(text)
    return "\n".join(lines) + "\n"
