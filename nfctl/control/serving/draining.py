"""Draining endpoints: nothing new comes, what is established goes on to its end, then they go.

1. The endpoints are marked as draining: their chains go, so that no connection is sent there, and
   conntrack goes on translating those that are.
2. Their flows are awaited (:func:`nfctl.control.serving.ending.wait_drained`), without any lock.
3. Those that are draining still are taken out of the list.

Whoever is killed or interrupted meanwhile leaves them draining; draining them again goes on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.control.serving import changing, gone
from nfctl.control.serving.ending import count_open, wait_drained
from nfctl.services import editing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.control.apply import Options
    from nfctl.control.journal.state import State
    from nfctl.control.serving.changing import Done
    from nfctl.services.model import Endpoint, Service, ServiceList

DRAINED, DRAINING, OPEN, UNDONE = "drained", "draining", "open", "undone"
FOREVER: Final = math.inf


class Drained(NamedTuple):
    """What became of it: "drained", "draining" (nobody waited), "open" (some are still), "undone".

    ``left`` are the flows that are still open; ``done`` what was applied, in order.
    """

    status: str
    service: Service
    endpoints: list[Endpoint]
    left: int
    done: list[Done]


def drain(
    prefix: str,
    word: str,
    wanted: Sequence[Endpoint],
    *,
    state: State,
    options: Options,
    seconds: float = FOREVER,
    end_tcp: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> Drained:
    """Drain endpoints of a service, and wait so many seconds at most; 0 only begins.

    What is open after that time stays as it is, and the endpoints go on draining; with ``end_tcp``
    the flows are ended, and the endpoints go. ``told`` is called with the number of flows that
    are awaited.
    """
    begun = _mark(prefix, word, wanted, state, options, draining=True)
    service = editing.find(begun.services, word)
    which = editing.known(service, wanted)
    flows = gone.to_endpoints(service, which)
    left = count_open(flows)
    if not seconds:
        return Drained(DRAINING, service, which, left, [begun])
    if left:
        told(left)
        left = wait_drained(flows, seconds)
    if left and not end_tcp:
        return Drained(OPEN, service, which, left, [begun])

    def removed(settings: ServiceList) -> ServiceList:
        now = editing.find(settings, word)
        keys = {endpoint[:2] for endpoint in which}
        kept = [e for e in now.endpoints if not (e.draining and e[:2] in keys)]
        return editing.replaced(settings, now._replace(endpoints=tuple(kept)))

    ended = changing.change(prefix, removed, state=state, options=options, end_tcp=end_tcp)
    service = editing.find(ended.services, word)
    stayed = {endpoint[:2] for endpoint in service.endpoints}
    status = UNDONE if any(endpoint[:2] in stayed for endpoint in which) else DRAINED
    return Drained(status, service, which, 0, [begun, ended])


def undo(
    prefix: str, word: str, wanted: Sequence[Endpoint], *, state: State, options: Options
) -> Drained:
    """Have draining endpoints serve again."""
    done = _mark(prefix, word, wanted, state, options, draining=False)
    service = editing.find(done.services, word)
    return Drained(UNDONE, service, editing.known(service, wanted), 0, [done])


def _mark(
    prefix: str,
    word: str,
    wanted: Sequence[Endpoint],
    state: State,
    options: Options,
    *,
    draining: bool,
) -> Done:
    def marked(service: Service) -> Service:
        return editing.changed(service, editing.known(service, wanted), draining=draining)

    return changing.change(prefix, editing.edit(word, marked), state=state, options=options)
