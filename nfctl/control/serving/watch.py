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
   another nfctl waits for a confirmation, or somebody holds a lock.
8. In the journal, changes for health and repairs are of the kind that goes first when there is no
   room (``nfctl.control.journal.state``): the administrator's own entries stay.
9. SIGTERM and SIGINT end it with exit code 0; the chains stay as they are.

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

import contextlib
import copy
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nfctl.control.journal.records import Damaged
from nfctl.control.serving.drifting import Drifting
from nfctl.control.serving.health import Health
from nfctl.control.serving.intent import Intent
from nfctl.control.serving.telling import Telling, lines, sizes_of
from nfctl.control.watching.watch import AGAIN, Woken
from nfctl.errors import AnswerNo, BadInput, Changed, Locked, NfctlError
from nfctl.kernel.sdnotify import Notifier
from nfctl.services import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from nfctl.control.serving.health import Probing
    from nfctl.control.serving.keeping import Applied, Read
    from nfctl.control.watching.drift import Drift, Place
    from nfctl.control.watching.watch import Event
    from nfctl.services.checks import Check
    from nfctl.services.model import ServiceList

    Make = Callable[[ServiceList | None], ServiceList]
    Files = Sequence[tuple[str, str]]

    class _Host(Protocol):
        def recorded(self) -> ServiceList | None: ...
        def apply(self, make: Make, files: Files, *, repair: bool) -> Applied: ...
        def drifts(self, held: ServiceList) -> dict[Place, Drift]: ...


_ENDS: Final = (signal.SIGTERM, signal.SIGINT)
_LONGEST_RETRY: Final = 60.0  # seconds
_SETTLE: Final = 1.0  # seconds after a notice: what follows is one edit
_SHARE: Final = 4  # times as long as a compare takes, until the next for a notice
_FEW: Final = 5  # services that a note names
_OWN: Final = frozenset({"start", "file"})  # what an administrator wants; the rest are repairs


@dataclass(frozen=True, slots=True)
class Options:
    """``interval`` between compares, ``look`` at the file, ``settle`` of a change, in seconds."""

    interval: float = 30.0
    look: float = 1.0
    settle: float = 0.2
    check: Check | None = None


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
        host: _Host,
        wait: Callable[[float], Woken],
        tell: Callable[[Event], None],
        prober: Probing | None = None,
        forget: Callable[[], None] = lambda: None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._options = options
        self._read, self._stamp, self._host = read, stamp, host
        self._wait, self._forget = wait, forget
        self._telling = Telling(tell, wall)
        self._notifier = notifier or Notifier({})
        self._clock = clock
        try:
            recorded = host.recorded()
        except Damaged:  # the first apply writes it anew
            recorded = None
        self._intent = Intent(first.listed, recorded, checked=prober is not None)
        self._health = Health(options.check, prober, self._intent.left_unhealthy())
        self._files = first.files
        self._former: tuple[Intent, Files] | None = None  # until a new file was applied
        self._drifting = Drifting()
        self._why: dict[str, None] = {}  # what an apply is due for
        self._count = 0
        self._retry = 0.0
        # when to do what is to be done next
        self._apply_at: float | None = None
        self._reload_at: float | None = None
        self._look_at = self._compare_at = 0.0
        self._applied_until = self._compared_until = 0.0  # ... and not before, for what it costs
        self._seen = first.stamp
        self._changed = False  # the file, at the last look

    def run(self, sources: Sequence[str] = (), missing: Sequence[str] = ()) -> None:
        """Watch until a signal ends it; the arguments are told: see ``Notices``.

        Raises what the first apply raises, if that will not go away by itself.
        """
        started = self._clock()
        heard = {"notices": list(sources), "missing": list(missing)}
        self._telling.event("start", self._facts() | {"interval": self._options.interval} | heard)
        self._checks()
        self._remind()
        self._why = {"start": None}
        try:
            self._do()
        except (Locked, Changed) as error:
            self._failed(error)
        self._notifier.ready(self._status())
        self._look_at = self._clock() + self._options.look
        ended_by = ""
        while not ended_by:
            woken = self._wait(self._pause())
            ends = [number for number in woken.signals if number in _ENDS]
            if ends:
                ended_by = signal.Signals(ends[0]).name
            else:
                self._go_on(woken)
                self._notifier.alive()
        self._notifier.send(STOPPING=1, STATUS=f"ended by {ended_by}")
        seconds = round(self._clock() - started, 3)
        self._telling.event(
            "end", {"ended_by": ended_by, "seconds": seconds, "applied": self._count}
        )

    def _pause(self) -> float:
        now = self._clock()
        times = [self._look_at, self._compare_at, now + self._health.timeout(now)]
        times += [at for at in (self._apply_at, self._reload_at) if at is not None]
        pause = max(0.0, min(times) - now)
        return min(pause, self._notifier.watchdog / 2) if self._notifier.watchdog else pause

    def _go_on(self, woken: Woken) -> None:
        self._heard(self._clock())
        now = self._clock()
        if signal.SIGHUP in woken.signals:
            self._reload()
        elif self._reload_at is not None and self._reload_at <= now:
            self._reload(again=True)
        elif self._look_at <= now:
            self._look(now)
        if woken.notices:
            self._drifting.noticed(woken.notices)
            soon = max(now + _SETTLE, self._compared_until)
            self._compare_at = min(self._compare_at, soon)
        if self._apply_at is not None and self._apply_at <= now:
            self._try()
        elif self._compare_at <= now:
            self._compare()

    def _due(self, why: str, at: float) -> None:
        self._why[why] = None
        # while it is retried, nothing comes sooner than that
        if self._apply_at is None or (at < self._apply_at and not self._retry):
            self._apply_at = at

    # --- the file -------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        self._look_at = now + self._options.look
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen, self._changed = stamp, True  # whoever writes it may not be done
        elif self._changed:
            self._reload()

    def _reload(self, *, again: bool = False) -> None:
        """Take the file; ``again`` after a failure that was told."""
        self._changed, self._reload_at = False, None
        self._seen = self._stamp()
        self._notifier.reloading()
        try:
            listed, files, _ = self._read()
            prefix = self._intent.listed.prefix
            if listed.prefix != prefix:
                msg = f"the prefix is {listed.prefix} now, and was {prefix}"
                raise BadInput(msg, hint="start the watch anew")
        except (NfctlError, OSError) as error:
            self._refused(error, None)
        else:
            if self._former is None:
                self._former = copy.copy(self._intent), self._files
            self._files = files
            self._intent.take(listed)
            self._checks()
            if not again:
                self._telling.event("reloaded", self._facts())
                self._remind()
                self._retry = 0.0
                self._drifting.forgive()
            self._why["file"] = None
            self._apply_at = self._clock()
        self._notifier.ready(self._status())

    def _refused(self, error: Exception, retry: float | None) -> None:
        facts = {"error": str(error), "code": _code(error), "retry": retry}
        self._telling.event("reload-failed", facts)

    def _remind(self) -> None:
        """Say what drains though the file says nothing of it."""
        for name, protocol, endpoint in self._intent.drained():
            self._telling.note(
                f"{endpoint} of {name} ({protocol}) goes on draining: "
                f"nfctl service drain {name} {endpoint} --undo ends that"
            )

    # --- health ---------------------------------------------------------------------------------

    def _checks(self) -> None:
        """Check the endpoints of the list that is to hold."""
        left = self._health.keep(self._intent.listed)
        if left:
            more = f" and {len(left) - _FEW} more" if len(left) > _FEW else ""
            which = f"{', '.join(left[:_FEW])}{more}"
            why = "they are not of TCP, and the check names no port"
            self._telling.note(f"not checked are {which}: {why}")

    def _heard(self, now: float) -> None:
        told = self._health.step(now)
        for facts in told.facts:
            self._telling.event("health", facts)
        if told.changed:
            self._due("health", max(now + self._options.settle, self._applied_until))

    def _effective(self) -> ServiceList:
        return self._intent.effective(self._health.bad, self._health.spare)

    # --- the kernel -----------------------------------------------------------------------------

    def _heed(self, recorded: ServiceList | None) -> bool:
        """Take what another nfctl made of the list, if anything; return whether it was that."""
        if self._why.keys() & _OWN:  # a file that is about to be applied says more
            self._intent.heed_drains(recorded)
            return False
        before = self._intent.held
        if not self._intent.heed(recorded):
            return False
        if before is not None and recorded is not None:
            text = lines(difference.compare(before, recorded))
        else:
            text = ["- all services" if recorded is None else "+ all services"]
        self._telling.event("taken", {"text": text} | sizes_of(self._intent.listed))
        self._checks()
        return True

    def _compare(self) -> None:
        began = self._clock()
        try:
            taken = self._heed(self._host.recorded())
            held = self._intent.held
            found = self._host.drifts(held) if held is not None else {}
        except Damaged as error:
            self._telling.note(f"it is written anew: {error}")
            self._compare_at = began + self._options.interval
            self._due("drift", began)
            return
        except (NfctlError, OSError) as error:
            self._telling.note(f"the tables could not be compared: {error}")
            self._compare_at = self._clock() + min(self._options.interval, AGAIN)
            return
        finally:
            self._forget()
        now = self._clock()
        self._compare_at = now + self._options.interval
        self._compared_until = now + _SHARE * (now - began)
        self._judge(found, now)
        if taken and held is not None:
            if self._effective() != held:
                self._due("taken", now + self._options.settle)
            else:
                self._telling.serving(held)

    def _judge(self, found: dict[Place, Drift], now: float) -> None:
        judged = self._drifting.judge(found, now, self._options.settle)
        for kind, facts in judged.events:
            self._telling.event(kind, facts)
        if judged.repair_at is not None:
            self._due("drift", judged.repair_at)
        elif "drift" in self._why:
            del self._why["drift"]
            self._apply_at = self._apply_at if self._why else None

    def _try(self) -> None:
        if self._why.keys() <= {"health"} and self._effective() == self._intent.held:
            # healthy as it was taken for, or unhealthy for a moment only
            self._why, self._apply_at, self._retry = {}, None, 0.0
            return
        try:
            self._do()
        except (NfctlError, OSError) as error:
            self._failed(error)
        else:
            self._retry = 0.0
            self._notifier.send(STATUS=self._status())

    def _do(self) -> None:
        """Apply."""
        began = self._clock()
        made: list[ServiceList] = []

        def make(_before: ServiceList | None) -> ServiceList:
            # under the lock: nobody comes between this and the apply
            with contextlib.suppress(Damaged):
                self._heed(self._host.recorded())
            made.append(self._effective())
            return made[-1]

        try:
            applied = self._host.apply(make, self._files, repair=not self._why.keys() & _OWN)
        finally:
            self._forget()
        self._intent.held = made[-1]
        self._former = None
        why, self._why, self._apply_at = list(self._why), {}, None
        now = self._clock()
        self._compare_at = now + self._options.interval
        self._applied_until = now + (now - began)
        self._drifting.repaired(now)
        if applied.changed:
            self._count += 1
            facts = {
                "why": why,
                "entry": applied.entry,
                "rules": list(applied.rules),
                "ended": applied.ended,
                "seconds": round(now - began, 3),
                "text": lines(applied.difference),
            }
            self._telling.event("applied", facts)
        for note in applied.notes:
            self._telling.note(note)
        self._telling.serving(made[-1])

    def _failed(self, error: Exception) -> None:
        now = self._clock()
        self._retry = min(2 * self._retry or 1.0, _LONGEST_RETRY)
        busy = isinstance(error, (Locked, Changed))
        if self._former is not None and not busy:
            # the list that was applied holds, and its health is heeded
            held = self._intent.held
            self._intent, self._files = self._former
            self._intent.held, self._former = held, None
            self._checks()
            retry = None if isinstance(error, (BadInput, AnswerNo)) else self._retry
            self._reload_at = now + retry if retry is not None else None
            self._refused(error, retry)
            self._why.pop("file", None)
            self._apply_at = now if self._why else None
        else:
            pause = min(self._retry, AGAIN) if busy else self._retry
            self._apply_at = now + pause
            facts = {"error": str(error), "code": _code(error), "retry": pause}
            self._telling.event("apply-failed", facts)
        self._notifier.send(STATUS=f"failed: {error}")

    def _facts(self) -> dict[str, Any]:
        check, listed = self._options.check, self._intent.listed
        facts = {"prefix": listed.prefix, **sizes_of(listed), "unhealthy": len(self._health.bad)}
        return facts | {"check": str(check) if check is not None else None}

    def _status(self) -> str:
        return self._telling.status(self._intent.listed, len(self._health.bad))


def _code(error: Exception) -> int:
    return error.exit_code if isinstance(error, NfctlError) else 2
