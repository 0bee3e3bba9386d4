"""Services as a watch keeps them: by their file, their health, and what others do to them.

What is to be done at which time is here, in the steps of one loop; when to wait, and the end of
it, are in :mod:`nfctl.control.serving.watch`, which says what all this is to come to.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nfctl.control.journal.records import Damaged
from nfctl.control.serving.drifting import Drifting
from nfctl.control.serving.following import Following
from nfctl.control.serving.health import Health
from nfctl.control.serving.intent import Intent
from nfctl.control.serving.pending import LONGEST_RETRY, Pending
from nfctl.control.serving.telling import lines, sizes_of
from nfctl.control.watching.watch import AGAIN
from nfctl.errors import AnswerNo, BadInput, Changed, Locked, NfctlError
from nfctl.services import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from nfctl.control.serving.gone import Ended
    from nfctl.control.serving.health import Probing
    from nfctl.control.serving.keeping import Applied, Read
    from nfctl.control.serving.telling import Telling
    from nfctl.control.watching.drift import Drift, Place
    from nfctl.kernel.notices import Notice
    from nfctl.kernel.sdnotify import Notifier
    from nfctl.services.checks import Check
    from nfctl.services.model import ServiceList

    Make = Callable[[ServiceList | None], ServiceList]
    Files = Sequence[tuple[str, str]]

    class Serving(Protocol):
        """What is asked of the host: ``nfctl.control.serving.keeping.Host``."""

        def recorded(self) -> ServiceList | None:
            """Return the list that was applied last."""

        def apply(self, make: Make, files: Files, *, repair: bool) -> Applied:
            """Write the chains of a list that is made under the lock."""

        def end_stale(self, held: ServiceList) -> Ended:
            """End UDP flows that nobody ended."""

        def drifts(self, held: ServiceList) -> dict[Place, Drift]:
            """Compare the kernel with the list that was applied last."""


_OWN: Final = frozenset({"start", "file"})  # what an administrator wants; the rest are repairs


@dataclass(frozen=True, slots=True)
class Options:
    """``interval`` between compares, ``look`` at the file, ``settle`` of a change, in seconds."""

    interval: float = 30.0
    look: float = 1.0
    settle: float = 0.2
    check: Check | None = None


class Kept:
    """The services; the arguments are those of ``ServiceWatch``. ``count`` is of the applies."""

    def __init__(
        self,
        first: Read,
        options: Options,
        *,
        read: Callable[[], Read],
        stamp: Callable[[], object],
        host: Serving,
        telling: Telling,
        notifier: Notifier,
        prober: Probing | None,
        forget: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._options, self._host = options, host
        self._telling, self._notifier = telling, notifier
        self._forget, self._clock = forget, clock
        try:
            recorded = host.recorded()
        except Damaged:  # the first apply writes it anew
            recorded = None
        self._intent = Intent(first.listed, recorded, checked=prober is not None)
        self._health = Health(options.check, prober, self._intent.left_unhealthy())
        self._file = Following(first, options.look, read, stamp)
        self._files = first.files
        self._former: tuple[Intent, Files] | None = None  # until a new file was applied
        self._drifting = Drifting(options.interval)
        self._pending = Pending()
        self._applied_until = 0.0  # and not before, for what an apply costs
        self.count = 0

    def start(self, heard: dict[str, Any]) -> None:
        """Apply the list; ``heard`` is told. Raises what will not go away by itself."""
        self._telling.event("start", self._facts() | {"interval": self._options.interval} | heard)
        self._checks()
        self._remind()
        self._pending.due("start", self._clock())
        try:
            self._do()
        except (Locked, Changed) as error:
            self._failed(error)
        self._file.look_later(self._clock())
        self._notifier.ready(self._status())

    def next_at(self, now: float) -> float:
        """Return when there is something to do at the latest."""
        times = [self._file.next_at(), self._drifting.compare_at, now + self._health.timeout(now)]
        return min(times if self._pending.at is None else [*times, self._pending.at])

    def go_on(self, notices: Sequence[Notice], *, reload: bool) -> None:
        """Do what is to be done now; ``reload``: the file is to be read whatever it is."""
        self._heard(self._clock())
        now = self._clock()
        if reload:
            self._reload()
        elif self._file.is_again(now):
            self._reload(again=True)
        elif self._file.look(now):
            self._reload()
        if notices:
            self._drifting.noticed(notices, now)
        if self._pending.is_due(now):
            self._try()
        elif self._drifting.compare_at <= now:
            self._compare()

    # --- the file -------------------------------------------------------------------------------

    def _reload(self, *, again: bool = False) -> None:
        """Take the file; ``again`` after a failure that was told."""
        self._notifier.reloading()
        try:
            listed, files, _ = self._file.read()
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
                self._file.settled()
                self._drifting.forgive()
            self._pending.hurry("file", self._clock())
        self._notifier.ready(self._status())

    def _refused(self, error: Exception, retry: float | None) -> None:
        facts = {"error": str(error), "code": _code(error), "retry": retry}
        self._telling.event("reload-failed", facts)

    def _remind(self) -> None:
        """Say what drains though the file says nothing of it."""
        for text in self._intent.reminders():
            self._telling.note(text)

    # --- health ---------------------------------------------------------------------------------

    def _checks(self) -> None:
        """Check the endpoints of the list that is to hold."""
        for text in self._health.keep(self._intent.listed):
            self._telling.note(text)

    def _heard(self, now: float) -> None:
        told = self._health.step(now)
        for facts in told.facts:
            self._telling.event("health", facts)
        if told.changed:
            at = max(now + self._options.settle, self._applied_until)
            self._pending.due("health", at)

    def _effective(self) -> ServiceList:
        return self._intent.effective(self._health.bad, self._health.spare)

    # --- the kernel -----------------------------------------------------------------------------

    def _heed(self, recorded: ServiceList | None) -> bool:
        """Take what another nfctl made of the list, if anything; return whether it was that."""
        if self._pending.why.keys() & _OWN:  # a file that is about to be applied says more
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
            self._drifting.compared(began, began)
            self._pending.due("drift", began)
            return
        except (NfctlError, OSError) as error:
            self._telling.note(f"the tables could not be compared: {error}")
            self._drifting.failed(self._clock(), AGAIN)
            return
        finally:
            self._forget()
        now = self._clock()
        self._drifting.compared(began, now)
        self._judge(found, now)
        if taken and held is not None:
            if self._effective() != held:
                self._pending.due("taken", now + self._options.settle)
            else:
                self._telling.serving(held)

    def _judge(self, found: dict[Place, Drift], now: float) -> None:
        judged = self._drifting.judge(found, now, self._options.settle)
        for kind, facts in judged.events:
            self._telling.event(kind, facts)
        if judged.repair_at is not None:
            self._pending.due("drift", judged.repair_at)
        else:
            self._pending.drop("drift")

    def _try(self) -> None:
        if self._pending.why.keys() <= {"health"} and self._effective() == self._intent.held:
            self._pending.done()  # it was so for a moment only, or was taken for what it is
            return
        try:
            self._do()
        except (NfctlError, OSError) as error:
            self._failed(error)
        else:
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

        repair = not self._pending.why.keys() & _OWN
        try:
            applied = self._host.apply(make, self._files, repair=repair)
        finally:
            self._forget()
        self._intent.held = made[-1]
        if self._former is not None:
            self._former = None
            self._file.settled()
        why = self._pending.done()
        now = self._clock()
        self._applied_until = now + (now - began)
        self._drifting.repaired(now)
        if applied.changed:
            self.count += 1
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
        if "start" in why:
            self._end_stale(made[-1])
        self._telling.serving(made[-1])

    def _end_stale(self, held: ServiceList) -> None:
        """End what a watch, or an apply, left behind that did not come to its end."""
        ended = self._host.end_stale(held)
        if ended.number:
            self._telling.event("stale", {"ended": ended.number})
        if ended.problem:
            self._telling.note(ended.problem)

    def _failed(self, error: Exception) -> None:
        now = self._clock()
        busy = isinstance(error, (Locked, Changed))
        if self._former is not None and not busy:
            # the list that was applied holds, and its health is heeded
            held = self._intent.held
            self._intent, self._files = self._former
            self._intent.held, self._former = held, None
            self._checks()
            final = isinstance(error, (BadInput, AnswerNo))
            self._refused(error, None if final else self._file.again(now))
            self._pending.back_out("file", now)
        else:
            pause = self._pending.failed(now, AGAIN if busy else LONGEST_RETRY)
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
