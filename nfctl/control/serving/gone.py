"""The flows that a change of services leaves behind: which they are, and their end.

UDP flows to an endpoint that is gone, or not ready any more, are deleted at once; so are those to
a service that nobody served and that have passed untranslated. TCP and SCTP flows to endpoints
that are gone are deleted only where that is asked for. A draining endpoint keeps all of its own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.serving.ending import Flows, count_open, end
from nfctl.errors import NfctlError
from nfctl.services.difference import compare, places
from nfctl.services.model import ServiceList, family_of
from nfctl.services.reading import recorded
from nfctl.text import several

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nfctl.services.difference import Difference
    from nfctl.services.model import Endpoint, Service

_UDP = "udp"


class Ended(NamedTuple):
    """How many flows were deleted, and how many of TCP and SCTP go on to endpoints that are gone.

    ``streams`` is None where it was not asked for; ``problem`` is why not all could be.
    """

    udp: int = 0
    streams: int | None = None
    left: int = 0
    problem: str = ""

    @property
    def number(self) -> int:
        """All that were deleted."""
        return self.udp + (self.streams or 0)


def end_left(difference: Difference, *, end_tcp: bool = False, count: bool = True) -> Ended:
    """Delete what is to be deleted; ``count`` what goes on.

    It never fails, as the chains are written already: see ``problem``.
    """
    which = list(left_behind(difference))
    udp = [one for one in which if one.protocol == _UDP]
    streams = [one for one in which if one.protocol != _UDP]
    deleted = left = 0
    ended = 0 if end_tcp else None
    problem = ""
    try:
        if udp:
            deleted = end(udp)
        if streams and end_tcp:
            ended = end(streams)
        elif streams and count:
            left = count_open(streams)
    except (NfctlError, OSError) as error:
        problem = f"flows to endpoints that are gone were not all ended: {error}"
    return Ended(deleted, ended, left, problem)


def end_between(before: str, after: str) -> list[str]:
    """Delete what a rollback leaves behind, by the recorded lists ("" for none); return notes."""
    try:
        one, other = (recorded(json.loads(text)) if text else None for text in (before, after))
    except (ValueError, TypeError, LookupError, AttributeError):
        return ["flows to endpoints that are gone were not ended: a list is another version's"]
    if other is None:
        other = one._replace(services=()) if one is not None else ServiceList()
    ended = end_left(compare(one, other))
    notes = (
        [f"{several(ended.udp, 'UDP flow')} ended, to endpoints that are gone"] if ended.udp else []
    )
    return [*notes, *([ended.problem] if ended.problem else [])]


def left_behind(difference: Difference) -> Iterator[Flows]:
    """Yield the flows that a change leaves behind."""
    for service in difference.gone:
        yield from _to_gone(service, None)
    for before, after in difference.differ:
        yield from _to_gone(before, after)
        yield from _untranslated(before, after)
    for service in difference.come:
        yield from _untranslated(None, service)


def to_endpoints(service: Service, endpoints: Iterable[Endpoint]) -> list[Flows]:
    """Return the flows of a service to some endpoints."""
    where = tuple(places(service))
    return [Flows(service.protocol, where, endpoint[:2]) for endpoint in endpoints]


def _to_gone(before: Service, after: Service | None) -> Iterator[Flows]:
    everywhere = places(before)
    still = set(places(after)) if after is not None else set()
    lost = tuple(place for place in everywhere if place not in still)
    now = {endpoint[:2]: endpoint for endpoint in after.endpoints} if after is not None else {}
    for endpoint in before.endpoints:
        other = now.get(endpoint[:2])
        if other is None or (before.protocol == _UDP and endpoint.serves and not other.ready):
            yield Flows(before.protocol, tuple(everywhere), endpoint[:2])
        elif lost:
            yield Flows(before.protocol, lost, endpoint[:2])


def _untranslated(before: Service | None, after: Service) -> Iterator[Flows]:
    if after.protocol != _UDP:
        return
    known = set(places(before)) if before is not None else set()
    for family in after.families():
        if not _served(after, family):
            continue
        fresh = before is None or not _served(before, family)
        where = tuple(
            place
            for place in places(after)
            if (place[0] is None or family_of(place[0]) == family) and (fresh or place not in known)
        )
        if where:
            yield Flows(_UDP, where, None, family)


def _served(service: Service, family: int) -> bool:
    return any(endpoint.serves and endpoint.family == family for endpoint in service.endpoints)
