"""A list changed by hand: one service's endpoints, or services that go.

A service is named by its name, or by ``NAME/udp`` where there are two of it.
"""

from __future__ import annotations

import difflib
from collections import Counter
from typing import TYPE_CHECKING, Final

from nfctl.document import shown
from nfctl.errors import AnswerNo, BadInput
from nfctl.services import values
from nfctl.services.model import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nfctl.services.model import Endpoint, Service, ServiceList

SET, ADD, REMOVE = "set", "add", "remove"
_LISTED: Final = 10
Typed = tuple["Endpoint", bool]  # and whether its weight was said


def find(settings: ServiceList, word: str) -> Service:
    """Return the service of a name; AnswerNo with the nearest, BadInput where there are two."""
    found = [service for service in settings.services if service.name == word]
    if not found:
        name, slash, protocol = word.rpartition("/")
        if slash and protocol in PROTOCOLS:
            found = [s for s in settings.services if s.key == (name, protocol)]
    if len(found) > 1:
        words = " or ".join(f"{s.name}/{s.protocol}" for s in found)
        msg = f"there are {len(found)} services called {word}"
        raise BadInput(msg, hint=f"say which: {words}")
    if not found:
        msg = f"there is no service {shown(word)}"
        raise AnswerNo(msg, hint=_nearest(word, settings.services))
    return found[0]


def _nearest(word: str, services: Sequence[Service]) -> str:
    """Return a hint with the names that were probably meant, whatever their case, or with all."""
    if not services:
        return "there are no services: nfctl service apply FILE"
    often = Counter(service.name for service in services)
    words: dict[str, list[str]] = {}  # by which services are found
    for name, protocol in (service.key for service in services):
        found = name if often[name] == 1 else f"{name}/{protocol}"
        words.setdefault(name.lower(), []).append(found)
    low = word.lower()
    near = [name for name in words if low and (low in name or low.rpartition("/")[0] == name)]
    near = near or difflib.get_close_matches(low, words, n=1)
    if near:
        return f"did you mean {' or '.join([one for name in near for one in words[name]][:3])}?"
    listed = [one for found in words.values() for one in found]
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return f"there are {', '.join(listed[:_LISTED])}{more}"


def replaced(settings: ServiceList, service: Service) -> ServiceList:
    """Return the list with another service in the place of the one of the same key."""
    services = tuple(service if s.key == service.key else s for s in settings.services)
    return settings._replace(services=services)


def without(settings: ServiceList, words: Iterable[str]) -> ServiceList:
    """Return the list without some services."""
    gone = {find(settings, word).key for word in words}
    return settings._replace(services=tuple(s for s in settings.services if s.key not in gone))


# --- endpoints ------------------------------------------------------------------------------------


def endpoints(words: Iterable[str]) -> list[Typed]:
    """Read endpoints as typed; BadInput for what is none, or is there twice."""
    found: dict[tuple[str, int], Typed] = {}
    for word in words:
        endpoint = values.endpoint(word)
        if endpoint[:2] in found:
            msg = f"endpoint {endpoint} is there twice"
            raise BadInput(msg)
        found[endpoint[:2]] = (endpoint, "*" in word)
    return list(found.values())


def with_endpoints(
    settings: ServiceList, word: str, typed: Sequence[Typed], how: str = SET, *, local: bool = False
) -> ServiceList:
    """Return the list with other endpoints of a service.

    SET: those typed and no others; ADD: those besides; REMOVE: without them. One that stays
    stays what it is, but for a weight that is said, and for ``local``. AnswerNo for one that is
    to be removed and is not there.
    """
    service = find(settings, word)
    old = {endpoint[:2]: endpoint for endpoint in service.endpoints}
    if how == REMOVE:
        gone = {one[:2] for one in known(service, [endpoint for endpoint, _ in typed])}
        kept = [endpoint for key, endpoint in old.items() if key not in gone]
        return replaced(settings, service._replace(endpoints=tuple(kept)))
    new = dict(old) if how == ADD else {}
    wanted = {endpoint[:2]: (endpoint, weighed) for endpoint, weighed in typed}
    # in the order there was: chains whose endpoints stay are left alone
    for key in [*(key for key in old if key in wanted), *(key for key in wanted if key not in old)]:
        endpoint, weighed = wanted[key]
        one = old.get(key, endpoint)
        if weighed:
            one = one._replace(weight=endpoint.weight)
        new[key] = one._replace(local=True) if local else one
    return replaced(settings, service._replace(endpoints=tuple(new.values())))


def known(service: Service, wanted: Iterable[Endpoint]) -> list[Endpoint]:
    """Return the service's own endpoints of those addresses and ports; AnswerNo without one."""
    there = {endpoint[:2]: endpoint for endpoint in service.endpoints}
    found = []
    for endpoint in wanted:
        if endpoint[:2] not in there:
            listed = ", ".join(map(str, service.endpoints[:_LISTED]))
            msg = f"service {service.name} has no endpoint {endpoint}"
            raise AnswerNo(msg, hint=f"it has {listed}" if listed else "it has none")
        found.append(there[endpoint[:2]])
    return found


def changed(service: Service, which: Iterable[Endpoint], **values: bool) -> Service:
    """Return a service some of whose endpoints have other settings."""
    keys = {endpoint[:2] for endpoint in which}
    return service._replace(
        endpoints=tuple(
            e._replace(**values) if e[:2] in keys else e  # type: ignore[arg-type]
            for e in service.endpoints
        )
    )


def edit(word: str, change: Callable[[Service], Service]) -> Callable[[ServiceList], ServiceList]:
    """Return an edit of a list that changes one service."""
    return lambda settings: replaced(settings, change(find(settings, word)))
