"""Which list is to hold: the file's, what nfctl made of it since, and the endpoints' health.

Three lists are told apart: the file's; the list that is to hold as long as all its endpoints are
healthy (``listed``); and the one that was applied last (``held``), in which endpoints that are not
healthy are not ready. Where the record holds something else than ``held``, another nfctl did that
(``set-endpoints``, ``drain``, ``delete``, ``apply``, ``rollback``): then its list is ``listed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.services.names import PREFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterator

    from nfctl.services.model import Endpoint, Service, ServiceList

    Place = tuple[str, int]
    Key = tuple[tuple[str, str], Place]  # of a service, and an endpoint of it


class Intent:
    """What is to hold. ``checked``: endpoints are not ready for their health, too."""

    def __init__(self, file: ServiceList, recorded: ServiceList | None, *, checked: bool) -> None:
        self.file = file
        self.held = recorded
        self._checked = checked
        self._put_out: set[Key] = set()  # not ready for their health, in some list or other
        self._drained = _draining(recorded) - _draining(file)
        self.listed = self._with_drained(file)

    def left_unhealthy(self) -> set[Place]:
        """Return endpoints that the watch before this one left as unhealthy."""
        if not self._checked or self.held is None:
            return set()
        ready = _ready(self.file)
        left = {key for key, one in _endpoints(self.held) if not one.ready and key in ready}
        self._put_out |= left
        return {place for _, place in left}

    def reminders(self) -> list[str]:
        """Say which endpoints drain, though not by the file, and how to end that."""
        if not self._drained:
            return []
        prefix = self.file.prefix
        more = f" --prefix {prefix}" if prefix != PREFIX else ""
        return [
            f"{one} of {key[0][0]} ({key[0][1]}) goes on draining: "
            f"nfctl service drain {key[0][0]} {one} --undo{more} ends that"
            for key, one in _endpoints(self.listed)
            if key in self._drained
        ]

    def take(self, file: ServiceList) -> None:
        """Have a file hold from now on; what ``nfctl service drain`` drains goes on draining."""
        self.file = file
        self.listed = self._with_drained(file)

    def heed_drains(self, recorded: ServiceList | None) -> None:
        """Take of what the record holds only what ``nfctl service drain`` made of it."""
        if recorded is None or recorded == self.held:
            return
        now = _draining(recorded)
        drained = (self._drained & now) | (now - _draining(self.held)) - _draining(self.file)
        if drained != self._drained:
            self._drained = drained
            self.listed = self._with_drained(self.file)

    def heed(self, recorded: ServiceList | None) -> bool:
        """Take what the record holds, if it is not what was applied; return whether it was that."""
        if recorded == self.held:
            return False
        self.held = recorded
        if recorded is None:  # all was rolled back
            self.listed = self.file._replace(services=())
            self._drained = set()
            return True
        if self._checked:
            # not ready by health, now or in the list that a rollback brought back
            left = {key for key, one in _endpoints(self.file) if not one.ready}
            ready = _ready(self.listed) | _ready(self.file) | (self._put_out - left)
            services = tuple(_revived(service, ready) for service in recorded.services)
            recorded = recorded._replace(services=services)
        self.listed = recorded
        self._drained = _draining(recorded) - _draining(self.file)
        return True

    def effective(self, bad: Collection[Place], spare: Container[Place] = ()) -> ServiceList:
        """Return the list with endpoints that are not healthy (``bad``) as not ready.

        Those of them that are healthy, and kept out as they flap (``spare``), serve where nobody
        else would.
        """
        if not bad:
            return self.listed
        services = []
        for service in self.listed.services:
            sick = _sick(service, bad, spare)
            if sick is not service:
                pairs = zip(service.endpoints, sick.endpoints, strict=True)
                self._put_out |= {(service.key, one[:2]) for one, now in pairs if one != now}
            services.append(sick)
        return self.listed._replace(services=tuple(services))

    def _with_drained(self, file: ServiceList) -> ServiceList:
        if not self._drained:
            return file
        services = []
        for service in file.services:
            endpoints = tuple(
                one._replace(draining=True) if (service.key, one[:2]) in self._drained else one
                for one in service.endpoints
            )
            services.append(service._replace(endpoints=endpoints))
        return file._replace(services=tuple(services))


def _endpoints(listed: ServiceList | None) -> Iterator[tuple[Key, Endpoint]]:
    for service in listed.services if listed is not None else ():
        key = service.key
        for one in service.endpoints:
            yield (key, one[:2]), one


def _draining(listed: ServiceList | None) -> set[Key]:
    return {key for key, one in _endpoints(listed) if one.draining}


def _ready(listed: ServiceList) -> set[Key]:
    return {key for key, one in _endpoints(listed) if one.ready}


def _revived(service: Service, ready: set[Key]) -> Service:
    key = service.key
    if not any(not one.ready and (key, one[:2]) in ready for one in service.endpoints):
        return service
    endpoints = tuple(
        one._replace(ready=one.ready or (key, one[:2]) in ready) for one in service.endpoints
    )
    return service._replace(endpoints=endpoints)


def _sick(service: Service, bad: Container[Place], spare: Container[Place]) -> Service:
    if not any(one[:2] in bad for one in service.endpoints):
        return service
    served = {one.family for one in service.endpoints if one.serves and one[:2] not in bad}
    endpoints = tuple(
        one._replace(ready=False)
        if one[:2] in bad and (one.family in served or one[:2] not in spare)
        else one
        for one in service.endpoints
    )
    return service._replace(endpoints=endpoints)
