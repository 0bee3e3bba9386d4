"""Keeping services at their file and at their endpoints' health: what ``nfctl service watch`` does.

1. The list is applied at the start, when its file changes (it is looked at every second, and taken
   when two looks agree), when SIGHUP says so, and when health checks find that an endpoint became
   healthy or unhealthy. What happens within a fifth of a second is one change: only what differs
   is written. A list that is wrong, or cannot be applied, is told, and the old one stays.
2. An unhealthy endpoint is taken as one that is not ready: it gets nothing new, its UDP flows are
   ended, and its connections go on. Before its first checks are over an endpoint is what the file
   says; one that the watch before this one left unhealthy is that until its checks say otherwise.
   Endpoints of UDP and SCTP services are checked where the check names a port, or a TCP service
   has the same ones.
3. A service of which no endpoint is healthy rejects connections, and that is told.
4. An endpoint that becomes unhealthy within a minute of being healthy again flaps: it is taken
   back after 1, 2, 4 and so on up to 300 seconds; sooner where nobody else serves its service.
5. What other programs change in the chains of the services is put back: after a notice
   (``nfctl.kernel.notices``), or within ``--interval`` seconds. Where it does not last, the next
   repair waits 1, 2, 4 and so on up to 300 seconds.
6. nfctl does not fight itself: what ``nfctl service set-endpoints``, ``drain``, ``delete`` and
   ``apply``, or ``nfctl rollback``, make of the list meanwhile holds until the file changes or
   SIGHUP takes it again; health is heeded all the same. What ``nfctl service drain`` drains goes
   on draining even then, and after a restart, until ``--undo``.
7. What fails is tried again after 1, 2, 4 and so on up to 60 seconds; after 5 at most where
   another nfctl waits for a confirmation, or somebody holds a lock, for which 10 seconds at most
   are waited at a time. What would cut the operator's own SSH session off is refused, as
   ``nfctl service apply`` does.
8. In the journal, changes for health and repairs are of the kind that goes first when there is no
   room (``nfctl.control.journal.state``): the administrator's own entries stay.
9. UDP flows that whoever was there before was to end, and did not, are ended at the start
   (``nfctl.control.serving.stale``).
10. SIGTERM and SIGINT end it with exit code 0; the chains stay as they are.

A unit for systemd from version 253 on (before that, ``Type=notify`` and ``ExecReload=kill -HUP
$MAINPID``); ``systemctl reload nfctl-services`` reads the file again::

    # /etc/systemd/system/nfctl-services.service
    [Unit]
    Description=Keeps virtual services at their list and their endpoints' health
    Documentation=man:iptables(8)
    Wants=network.target
    After=network.target

    [Service]
    Type=notify-reload
    ExecStart=/usr/bin/nfctl service watch /etc/nfctl/services.yaml --check-health tcp
    Restart=on-failure
    WatchdogSec=120
    StateDirectory=nfctl
    StateDirectoryMode=0700
    CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_AUDIT_READ CAP_AUDIT_CONTROL
    ProtectHome=yes
    ProtectSystem=full

    [Install]
    WantedBy=multi-user.target

``--json`` prints a document a line. Each has ``event`` and ``time`` (ISO 8601, UTC), and:

``start``, ``reloaded``
    ``prefix``, ``services``, ``endpoints`` and ``unhealthy`` (numbers), ``check`` (text, or null);
    ``start`` also ``interval`` (seconds), ``notices`` and ``missing``, as ``nfctl watch`` has them.
``reload-failed``
    ``error``, ``code`` (the exit code it would be), ``retry`` (seconds, or null).
``health``
    ``endpoint``, ``healthy``, ``reason``, ``services`` (names), ``out`` (seconds that it is kept
    out, as it flaps), ``flaps`` (how often its health did not last).
``taken``
    ``text``: lines that say what another nfctl made of the list; ``services``, ``endpoints``.
``drift``, ``gone``
    ``places``, as ``nfctl watch`` has them; ``drift`` also ``who``, and ``repair`` (seconds).
``applied``
    ``why`` (a list of "start", "file", "taken", "health", "drift"), ``entry`` (of the journal, or
    null), ``rules`` (added and deleted), ``ended`` (flows), ``seconds``, and ``text``: lines that
    say how the list differs from the one before.
``stale``
    ``ended``: UDP flows to endpoints that were gone before the start, and that nobody had ended.
``unserved``, ``served``
    ``services``: those that began, or ceased, to refuse connections for want of endpoints, each
    with ``name``, ``protocol``, and ``what``.
``apply-failed``
    ``error``, ``code``, ``retry`` (seconds).
``note``
    ``text``.
``end``
    ``ended_by`` (a signal's name), ``seconds``, ``applied`` (how often).
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from nfctl.control.serving.kept import Kept, Options
from nfctl.control.serving.telling import Telling
from nfctl.kernel.sdnotify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.control.serving.health import Probing
    from nfctl.control.serving.keeping import Read
    from nfctl.control.serving.kept import Serving
    from nfctl.control.watching.watch import Event, Woken

__all__ = ["Options", "ServiceWatch"]

_ENDS: Final = (signal.SIGTERM, signal.SIGINT)


class ServiceWatch:
    """One watch. All that it knows of the world comes through its arguments.

    ``first`` is the list as it was read, ``read`` reads it anew, ``stamp`` returns something that
    differs when the file does. ``host`` is :class:`nfctl.control.serving.keeping.Host`, or like it.
    ``wait`` waits so many seconds at most, until there are notices, signals, or the prober has
    something to do; ``forget`` is called when the host was used. ``clock`` must not jump; ``wall``
    is the time.
    """

    def __init__(
        self,
        first: Read,
        options: Options,
        *,
        read: Callable[[], Read],
        stamp: Callable[[], object],
        host: Serving,
        wait: Callable[[float], Woken],
        tell: Callable[[Event], None],
        prober: Probing | None = None,
        forget: Callable[[], None] = lambda: None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wait, self._clock = wait, clock
        self._telling = Telling(tell, wall)
        self._notifier = notifier or Notifier({})
        self._kept = Kept(
            first,
            options,
            read=read,
            stamp=stamp,
            host=host,
            telling=self._telling,
            notifier=self._notifier,
            prober=prober,
            forget=forget,
            clock=clock,
        )

    def run(self, sources: Sequence[str] = (), missing: Sequence[str] = ()) -> None:
        """Watch until a signal ends it; the arguments are told: see ``Notices``.

        Raises what the first apply raises, if that will not go away by itself.
        """
        started = self._clock()
        self._kept.start({"notices": list(sources), "missing": list(missing)})
        ended_by = ""
        while not ended_by:
            woken = self._wait(self._pause())
            ends = [number for number in woken.signals if number in _ENDS]
            if ends:
                ended_by = signal.Signals(ends[0]).name
            else:
                self._kept.go_on(woken.notices, reload=signal.SIGHUP in woken.signals)
                self._notifier.alive()
        self._notifier.send(STOPPING=1, STATUS=f"ended by {ended_by}")
        seconds = round(self._clock() - started, 3)
        facts = {"ended_by": ended_by, "seconds": seconds, "applied": self._kept.count}
        self._telling.event("end", facts)

    def _pause(self) -> float:
        now = self._clock()
        pause = max(0.0, self._kept.next_at(now) - now)
        return min(pause, self._notifier.watchdog / 2) if self._notifier.watchdog else pause
