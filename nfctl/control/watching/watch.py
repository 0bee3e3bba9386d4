"""Keeping a host at its policy: what ``nfctl watch`` does.

1. It compares the kernel's tables (and ipsets) with the policy: at the start, when there is a
   notice that another program had its hands on them (``nfctl.kernel.notices``), and every
   ``--interval`` seconds, since some changes come without a notice. After a notice it waits until
   there was none for a second, ten seconds at most: a program that writes ten rules is one drift.
2. Each drift is told once when it appears, again if it becomes another one, and once when it is
   gone. Rules of other programs that the policy leaves alone are none (``nfctl plan`` shows them
   as kept).
3. With ``--repair`` it is put back, by what ``nfctl apply`` does, with an entry in the journal.
   Where it does not last, the next repair waits 1, 2, 4 and so on up to 300 seconds, until there
   was quiet for a minute, or for twice the last wait.
4. nfctl does not fight itself: nothing is repaired while ``nfctl apply --confirm`` waits for its
   confirmation, nor what ``nfctl apply`` or ``nfctl rollback`` made of this policy meanwhile;
   SIGHUP takes the policy's files again and ends that.
5. SIGHUP reads the policy again (a wrong one is told, and the old one stays); SIGTERM and SIGINT
   end it, with exit code 0. No signal interrupts a change.

A unit for systemd from version 253 on (before that, ``Type=notify`` and ``ExecReload=kill -HUP
$MAINPID``); ``systemctl reload nfctl-watch`` reads the policy again::

    # /etc/systemd/system/nfctl-watch.service
    [Unit]
    Description=Keeps the firewall at its policy
    Documentation=man:iptables(8)
    After=network-pre.target

    [Service]
    Type=notify-reload
    ExecStart=/usr/bin/nfctl watch --repair /etc/nfctl/policy.yaml
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

``start``
    ``policy``, ``files``, ``rules``, ``repair``, ``interval`` (seconds), ``notices``: "lock" and
    "audit" as far as they are to be had, and ``missing``: why there is not more.
``drift``
    ``places``: for each chain ``family``, ``table``, ``chain`` (or ``set``), ``missing`` and
    ``extra`` (rules, or entries of a set) and ``text``; ``change``: what would put it back, as
    ``nfctl plan --json`` prints it; ``found_by``: "start", "notice", "interval" or "reload";
    ``who``: who may have done it, each with ``pid``, ``comm``, ``parent`` (its parent's name),
    ``times`` and ``by``: "audit" (it wrote that table) or "lock" (it had the xtables lock).
``gone``
    ``places``, without our doing.
``repaired``
    ``places`` and ``entry``, the entry's number in the journal, or null.
``repair-failed``
    ``places``, ``error``, ``code`` (the exit code it would be) and ``retry`` (seconds).
``backing-off``
    ``places``, ``seconds`` until the repair, ``times`` that it did not last, ``who``.
``reloaded``, ``reload-failed``
    ``policy``, ``files`` and ``rules``; or ``error``, ``code`` and ``retry`` (seconds, or null).
``note``
    ``text``, and ``entry`` where it is about one.
``end``
    ``ended_by`` (a signal's name), ``seconds``, and how many ``compares``, ``drifts``,
    ``repairs`` and ``failures`` there were.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from nfctl.control.watching import drift
from nfctl.control.watching.suspects import Suspects
from nfctl.errors import Changed, Locked, NfctlError
from nfctl.kernel.sdnotify import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

    from nfctl.control.change import Change
    from nfctl.control.journal.entries import Entry
    from nfctl.control.watching.drift import Drift, Place
    from nfctl.kernel.notices import Notice
    from nfctl.policy.wanted import Wanted

#: How long to wait for quiet after a notice, and how long at most, in seconds.
SETTLE, BOUND = 1.0, 10.0
#: How often to look whether a confirmation came, and after what else stood in the way.
AGAIN: Final = 5.0
_ENDS: Final = (signal.SIGTERM, signal.SIGINT)
_DONE: Final = frozenset({"applied", "confirmed"})


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for; ``interval`` is in seconds."""

    repair: bool = False
    interval: float = 30.0
    settle: float = SETTLE
    bound: float = BOUND


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell; ``facts`` are for JSON as they are, ``when`` is the epoch in seconds."""

    kind: str
    when: float
    facts: dict[str, Any]
    change: Change | None = None

    def time(self) -> str:
        """Return the time as it is in JSON."""
        text = datetime.fromtimestamp(self.when, UTC).isoformat(timespec="milliseconds")
        return text.replace("+00:00", "Z")


class Woken(NamedTuple):
    """Why a wait ended early: notices of other programs, and signals."""

    notices: Sequence[Notice] = ()
    signals: Sequence[int] = ()


class _Journal(Protocol):
    def locked(self) -> AbstractContextManager[None]: ...
    def pending(self) -> Entry | None: ...
    def entries(self) -> list[Entry]: ...


class _Outcome(Protocol):
    @property
    def change(self) -> Change: ...
    @property
    def status(self) -> str: ...
    @property
    def entry(self) -> Entry | None: ...


class Watch:
    """One watch. All that it knows of the world comes through its arguments.

    ``read`` returns the policy anew; ``plan`` and ``apply`` are those of ``control.apply``, and
    ``forget`` is called after each of them (``Notices.forget``); ``wait`` waits so many seconds
    at most, until there are notices or signals. ``clock`` must not jump; ``wall`` is the time.
    """

    def __init__(
        self,
        wanted: Wanted,
        options: Options,
        *,
        read: Callable[[], Wanted],
        plan: Callable[[Wanted], Change],
        apply: Callable[[Wanted], _Outcome],
        journal: _Journal,
        wait: Callable[[float], Woken],
        tell: Callable[[Event], None],
        forget: Callable[[], None] = lambda: None,
        notifier: Notifier | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._wanted = wanted
        self._options = options
        self._read, self._plan, self._apply, self._forget = read, plan, apply, forget
        self._journal, self._wait, self._tell = journal, wait, tell
        self._notifier = notifier or Notifier({})
        self._clock, self._wall = clock, wall
        self._drifts: dict[Place, Drift] = {}
        self._fights = drift.Fights()
        self._suspects = Suspects()
        self._known = 0  # the latest entry of the journal that this policy goes with
        self._said = ""  # what stands in the way, said once
        self._counts = dict.fromkeys(("compares", "drifts", "repairs", "failures"), 0)
        # when to do what is to be done next
        self._compare_at = 0.0
        self._noticed: float | None = None  # the first notice since the last compare
        self._settled = 0.0
        self._repair_at: float | None = None
        self._reload_at: float | None = None

    def run(self, sources: Sequence[str] = (), missing: Sequence[str] = ()) -> None:
        """Watch until a signal ends it; the arguments are told: see ``Notices``.

        Raises what the first compare raises, if that will not go away by itself.
        """
        started = self._clock()
        asked = {"repair": self._options.repair, "interval": self._options.interval}
        heard = {"notices": list(sources), "missing": list(missing)}
        self._event("start", self._policy() | asked | heard)
        self._known = self._latest()
        self._compare("start")
        self._notifier.ready(self._status())
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
        self._event("end", {"ended_by": ended_by, "seconds": seconds} | self._counts)

    def _pause(self) -> float:
        """Return how long there is nothing to do, in seconds."""
        times = [self._compare_at]
        if self._noticed is not None:
            times.append(self._settled)
        times += [at for at in (self._repair_at, self._reload_at) if at is not None]
        pause = max(0.0, min(times) - self._clock())
        return min(pause, self._notifier.watchdog / 2) if self._notifier.watchdog else pause

    def _go_on(self, woken: Woken) -> None:
        now = self._clock()
        if woken.notices:
            self._notice(woken.notices, now)
        again = self._reload_at is not None and self._reload_at <= now
        if signal.SIGHUP in woken.signals or again:
            self._reload()
        elif self._noticed is not None and self._settled <= now:
            self._compare("notice")
        elif self._compare_at <= now:
            self._compare("interval")
        elif self._repair_at is not None and self._repair_at <= now:
            self._repair()

    def _notice(self, notices: Sequence[Notice], now: float) -> None:
        if self._noticed is None:
            self._noticed = now
        self._settled = min(now + self._options.settle, self._noticed + self._options.bound)
        self._suspects.add(notices)

    # --- comparing ------------------------------------------------------------------------------

    def _compare(self, found_by: str) -> None:
        try:
            change = self._look(self._wanted)
        except NfctlError as error:
            if found_by == "start" and not isinstance(error, (Locked, Changed)):
                raise
            self._noticed = None
            self._compare_at = self._clock() + min(self._options.interval, AGAIN)
            self._say(f"the tables could not be compared: {error}")
            return
        self._judge(change, found_by)

    def _look(self, wanted: Wanted) -> Change:
        """Return what would take the host to a policy."""
        try:
            return self._plan(wanted)
        finally:
            self._forget()

    def _judge(self, change: Change, found_by: str) -> None:
        """Tell what is new, and what is to be done about it."""
        now = self._clock()
        self._counts["compares"] += 1
        self._noticed = None
        self._compare_at = now + self._options.interval
        before, self._drifts = self._drifts, drift.find(change)
        gone = [one for place, one in before.items() if place not in self._drifts]
        if gone:
            self._event("gone", {"places": _documents(gone)})
        new = {
            place: one
            for place, one in self._drifts.items()
            if place not in before or before[place].mark != one.mark
        }
        who = self._suspects.of(new)
        if new:
            self._counts["drifts"] += 1
            facts = {"places": _documents(new.values()), "found_by": found_by, "who": who}
            self._event("drift", facts, drift.part(change, new))
        self._suspects.clear()
        if not self._drifts:
            self._said = ""
        if self._options.repair:
            if not self._drifts:
                self._known = self._latest()
            fresh = [place for place in self._drifts if place not in before]
            self._reckon(fresh, who, now)
        self._notifier.send(STATUS=self._status())

    # --- repairing ------------------------------------------------------------------------------

    def _reckon(self, fresh: list[Place], who: list[dict[str, Any]], now: float) -> None:
        """Decide when to repair, and tell if that is to wait."""
        fights = [(place, self._fights.appeared(place, now)) for place in fresh]
        fought = [(place, fight) for place, fight in fights if fight.delay]
        self._schedule()
        # one repair is for all: another place's may take it along at once
        if fought and self._repair_at is not None and self._repair_at > now:
            facts = {
                "places": _documents(self._drifts[place] for place, _ in fought),
                "seconds": round(self._repair_at - now, 3),
                "times": max(fight.times for _, fight in fought),
                "who": who,
            }
            self._event("backing-off", facts)

    def _schedule(self) -> None:
        """Repair when the first place is due: one repair is for all."""
        self._repair_at = min((self._fights.due(place) for place in self._drifts), default=None)

    def _repair(self) -> None:
        now = self._clock()
        try:
            with self._journal.locked():
                if self._must_wait(now):
                    return
                outcome = self._apply(self._wanted)
        except NfctlError as error:
            self._failed(error)
            return
        finally:
            self._forget()
        repaired = drift.find(outcome.change) if outcome.status != "unchanged" else {}
        rest = [one for place, one in self._drifts.items() if place not in repaired]
        if rest:
            self._event("gone", {"places": _documents(rest)})
        if repaired:
            number = outcome.entry.number if outcome.entry is not None else None
            self._known = max(self._known, number or 0)
            self._counts["repairs"] += 1
            facts = {"places": _documents(repaired.values()), "entry": number}
            self._event("repaired", facts)
        now = self._clock()
        for place in repaired:
            self._fights.repaired(place, now)
        self._drifts, self._repair_at, self._said = {}, None, ""
        self._notifier.send(STATUS=self._status())

    def _must_wait(self, now: float) -> bool:
        """Whether nfctl itself is at work, or has been: that is not ours to undo."""
        pending = self._journal.pending()
        if pending is not None:
            self._repair_at = now + AGAIN
            self._say(f"entry {pending.number} waits for its confirmation: nothing is repaired "
                      "until then", pending.number)  # fmt: skip
            return True
        entry = self._overtaken()
        if entry is not None:
            self._repair_at = None
            by = f" by {entry.who.user}" if entry.who.user else ""
            self._say(f"nfctl {entry.action} (entry {entry.number}{by}) has changed this policy: "
                      "that is left as it is until SIGHUP takes the policy's files again",
                      entry.number)  # fmt: skip
            return True
        return False

    def _overtaken(self) -> Entry | None:
        """Return the entry that changed this policy since it was taken, and stands."""
        entries = self._journal.entries()
        ours = {entry.number for entry in entries if entry.policy == self._wanted.name}
        for entry in reversed(entries):
            if entry.number <= self._known or entry.status not in _DONE:
                continue
            if entry.action == "apply" and entry.number in ours:
                return entry
            undone = {number for number in entry.undoes if number <= self._known}
            if entry.action == "rollback" and undone and (entry.number in ours or undone & ours):
                return entry
        return None

    def _failed(self, error: NfctlError) -> None:
        now = self._clock()
        for place in self._drifts:
            self._fights.failed(place, now)
        self._schedule()
        self._counts["failures"] += 1
        retry = round((self._repair_at or now) - now, 3)
        facts = {"error": str(error), "code": error.exit_code, "retry": retry}
        self._event("repair-failed", {"places": _documents(self._drifts.values())} | facts)
        self._notifier.send(STATUS=f"the repair failed: {error}")

    # --- the policy and what is told ------------------------------------------------------------

    def _reload(self) -> None:
        self._notifier.reloading()
        self._reload_at = None
        try:
            wanted = self._read()
            change = self._look(wanted)
        except (NfctlError, OSError) as error:
            retry = AGAIN if isinstance(error, (Locked, Changed)) else None
            if retry is not None:
                self._reload_at = self._clock() + retry
            code = error.exit_code if isinstance(error, NfctlError) else 2
            self._event("reload-failed", {"error": str(error), "code": code, "retry": retry})
        else:
            self._wanted, self._fights, self._said = wanted, drift.Fights(), ""
            self._known = self._latest()
            self._event("reloaded", self._policy())
            # what drifts still is told once more: it may be another policy's drift now
            self._drifts = {}
            self._judge(change, "reload")
        self._notifier.ready(self._status())

    def _policy(self) -> dict[str, Any]:
        wanted = self._wanted
        return {
            "policy": wanted.name,
            "files": [{"file": file, "sha256": digest} for file, digest in wanted.files],
            "rules": wanted.rules,
        }

    def _latest(self) -> int:
        """Return the number of the journal's latest entry; 0 if it cannot be read."""
        try:
            return max((entry.number for entry in self._journal.entries()), default=0)
        except NfctlError:
            return self._known

    def _status(self) -> str:
        if not self._drifts:
            return f"at the policy {self._wanted.name}: {self._wanted.rules:,} rules"
        return f"drift: {'; '.join(str(one) for one in list(self._drifts.values())[:4])}"

    def _say(self, text: str, entry: int | None = None) -> None:
        """Tell once what stands in the way."""
        if text != self._said:
            self._said = text
            self._event("note", {"text": text} | ({} if entry is None else {"entry": entry}))
            self._notifier.send(STATUS=text)

    def _event(self, kind: str, facts: dict[str, Any], change: Change | None = None) -> None:
        self._tell(Event(kind, self._wall(), facts, change))


def _documents(drifts: Iterable[Drift]) -> list[dict[str, Any]]:
    return [one.document() for one in drifts]
