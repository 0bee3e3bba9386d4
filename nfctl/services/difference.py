"""What differs between two lists of services, and how it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.services.model import LOCAL
from nfctl.text import at, several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nfctl.services.model import Endpoint, Service, ServiceList

_MOST: Final = 50  # services of a kind that are told one by one
_MOST_ENDPOINTS: Final = 12
_DEFAULTS: Final = {
    "node-port": 0,
    "affinity": 0,
    "internal-traffic": "cluster",
    "external-traffic": "cluster",
    "masquerade": "the list's",
}


class EndpointChange(NamedTuple):
    """An endpoint that is in both lists, with other settings."""

    before: Endpoint
    after: Endpoint

    def __str__(self) -> str:
        changes = [
            f"{key} {_word(old)} -> {_word(new)}"
            for key, old, new in zip(self.after._fields, self.before, self.after, strict=True)
            if old != new
        ]
        return f"{self.after} {', '.join(changes)}"


class ServiceChange(NamedTuple):
    """A service that is in both lists, and differs."""

    before: Service
    after: Service

    def endpoints(self) -> tuple[list[Endpoint], list[Endpoint], list[EndpointChange]]:
        """Return endpoints that come, those that go, and those that differ."""
        old = {endpoint[:2]: endpoint for endpoint in self.before.endpoints}
        new = {endpoint[:2]: endpoint for endpoint in self.after.endpoints}
        return (
            [endpoint for key, endpoint in new.items() if key not in old],
            [endpoint for key, endpoint in old.items() if key not in new],
            [
                EndpointChange(old[key], new[key])
                for key in new
                if old.get(key, new[key]) != new[key]
            ],
        )

    def settings(self) -> dict[str, tuple[Any, Any]]:
        """Return what else differs: key of the file, before, after."""
        old, new = self.before.document(), self.after.document()
        return {
            key: (old.get(key, _DEFAULTS.get(key, [])), new.get(key, _DEFAULTS.get(key, [])))
            for key in dict.fromkeys([*old, *new])
            if key != "endpoints" and old.get(key) != new.get(key)
        }


class Difference(NamedTuple):
    """Services that come, those that go, those that differ; and what the lists say for all.

    ``moved``: those that stay are in another order.
    """

    come: list[Service]
    gone: list[Service]
    differ: list[ServiceChange]
    settings: dict[str, tuple[Any, Any]]
    moved: bool = False

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.come or self.gone or self.differ or self.settings or self.moved)

    def document(self) -> dict[str, Any]:
        """Return it as JSON: ``services`` of ``nfctl service apply --json``."""
        changed = []
        for one in self.differ:
            come, gone, differ = one.endpoints()
            changed.append(
                {
                    "name": one.after.name,
                    "protocol": one.after.protocol,
                    "settings": _pairs(one.settings()),
                    "endpoints": {
                        "added": [str(endpoint) for endpoint in come],
                        "removed": [str(endpoint) for endpoint in gone],
                        "changed": [str(each.after) for each in differ],
                    },
                }
            )
        return {
            "added": [_key(service) for service in self.come],
            "removed": [_key(service) for service in self.gone],
            "changed": changed,
            "settings": _pairs(self.settings),
            "moved": self.moved,
        }


def compare(before: ServiceList | None, after: ServiceList) -> Difference:
    """Return what differs; before is None where there was no list."""
    if before is None:
        return Difference([*after.services], [], [], {})
    old = {service.key: service for service in before.services}
    new = {service.key: service for service in after.services}
    settings = {
        field: (getattr(before, field), getattr(after, field))
        for field in before._fields
        if field != "services" and getattr(before, field) != getattr(after, field)
    }
    return Difference(
        [service for key, service in new.items() if key not in old],
        [service for key, service in old.items() if key not in new],
        [ServiceChange(old[key], new[key]) for key in new if old.get(key, new[key]) != new[key]],
        settings,
        [key for key in old if key in new] != [key for key in new if key in old],
    )


# --- services in words ----------------------------------------------------------------------------


def places(service: Service) -> list[tuple[str | None, int]]:
    """Return the addresses and ports that clients connect to; None is any address of the node."""
    found: list[tuple[str | None, int]] = [
        (ip, service.port) for ip in (*service.cluster_ips, *service.external_ips)
    ]
    return found + ([(None, service.node_port)] if service.node_port else [])


def title(service: Service) -> str:
    """Return a service's name and protocol: "web (tcp)"."""
    return f"{service.name} ({service.protocol})"


def addresses(service: Service) -> list[str]:
    """Return where a service is reached, in words."""
    return [f"node port {port}" if ip is None else at(ip, port) for ip, port in places(service)]


def unserved(settings: ServiceList) -> Iterator[tuple[Service, str]]:
    """Yield services that refuse some connections for want of endpoints, and which."""
    for service in settings.services:
        families = service.families()
        serving = {
            family: [e for e in service.endpoints if e.family == family and e.serves]
            for family in families
        }
        none = [family for family in families if not serving[family]]
        if none:
            where = "" if len(none) == len(families) else f" of IPv{none[0]}"
            yield service, f"has no endpoint{where} that serves: connections are rejected"
        missing = [f for f in families if f not in none and not any(e.local for e in serving[f])]
        kinds = [
            name
            for name, local, there in (
                ("internal", service.internal_local, bool(service.cluster_ips)),
                (
                    "external",
                    service.external_local,
                    len(places(service)) > len(service.cluster_ips),
                ),
            )
            if local and there
        ]
        if missing and kinds:
            where = "" if len(missing) == len(families) else f" of IPv{missing[0]}"
            what = " and ".join(kinds)
            yield service, f"has no local endpoint{where}: {what} connections are dropped"


def lines(difference: Difference) -> list[tuple[str, str]]:
    """Return lines for people: a mark ("+" comes, "-" goes, "*" differs), and the text."""
    found = [
        ("*", f"{key.replace('_', '-')}: {_value(old)} -> {_value(new)}")
        for key, (old, new) in difference.settings.items()
    ]
    found += _some("+", difference.come, _introduced)
    found += _some("-", difference.gone, lambda s: f"{title(s)}: {_number(s)}")
    found += _some("*", difference.differ, _differing)
    if difference.moved:
        found.append(("*", "services in another order"))
    return found


def _some(mark: str, items: Sequence[Any], text: Callable[[Any], str]) -> Iterator[tuple[str, str]]:
    for item in items[:_MOST]:
        yield mark, text(item)
    if len(items) > _MOST:
        yield mark, f"... and {several(len(items) - _MOST, 'more service')}"


def _introduced(service: Service) -> str:
    return f"{title(service)}: {', '.join(addresses(service))}; {_number(service)}"


def _number(service: Service) -> str:
    ready = sum(endpoint.serves for endpoint in service.endpoints)
    count = len(service.endpoints)
    if ready == count:
        return several(count, "endpoint") if count else "no endpoints"
    return f"{several(count, 'endpoint')}, of which {ready} serve{'s' if ready == 1 else ''}"


def _differing(change: ServiceChange) -> str:
    come, gone, differ = change.endpoints()
    parts = [f"+ {_weighted(endpoint)}" for endpoint in come]
    parts += [f"- {endpoint}" for endpoint in gone]
    parts += [f"* {each}" for each in differ]
    if len(parts) > _MOST_ENDPOINTS:
        more = len(parts) - _MOST_ENDPOINTS
        parts[_MOST_ENDPOINTS:] = [f"... and {several(more, 'more endpoint')}"]
    settings = [
        f"{k} {_value(old)} -> {_value(new)}" for k, (old, new) in change.settings().items()
    ]
    if not parts and not settings:
        settings = ["endpoints in another order"]
    return f"{title(change.after)}: {'; '.join([*settings, *parts])}"


def _weighted(endpoint: Endpoint) -> str:
    more = [f"weight {endpoint.weight}"] if endpoint.weight != 1 else []
    more += [LOCAL] if endpoint.local else []
    more += ["not ready"] if not endpoint.ready else []
    more += ["draining"] if endpoint.draining else []
    return f"{endpoint} ({', '.join(more)})" if more else str(endpoint)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _pairs(settings: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {
        key.replace("_", "-"): {"before": old, "after": new} for key, (old, new) in settings.items()
    }


def _key(service: Service) -> dict[str, Any]:
    return {
        "name": service.name,
        "protocol": service.protocol,
        "endpoints": len(service.endpoints),
        "serving": sum(endpoint.serves for endpoint in service.endpoints),
    }
