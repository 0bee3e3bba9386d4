"""A run of ``nfctl inspect``: queues, workers and rules, from the first to the last packet.

In this order: verdict rules and all options are read; a worker a queue is forked, opens its queue
and gives up its privileges; when all are ready, the rules that queue packets are placed. So no
packet is queued to nobody. At the end (a signal, ``count``, ``duration``, a worker that died) the
rules go first, then the workers decide what still waits.

This process keeps the privileges that placing and removing rules need, and never looks into a
packet. Whatever happens to it, SIGKILL but the last: the rules pass what no worker waits for
(``--queue-bypass``), and the next run, or ``nfctl inspect --clean``, removes them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from nfctl import errors
from nfctl.errors import BadInput, NfctlError, Where
from nfctl.inspect import figures, placement
from nfctl.inspect.countdown import Countdown
from nfctl.inspect.worker import Job, receive, send, serve
from nfctl.kernel import conntrack, netns
from nfctl.kernel.lock import DEFAULT_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from nfctl.inspect.capture import Files

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOOK: Final = 1.0  # seconds between looks at the rules
_TRACKED: Final = "/proc/sys/net/netfilter/nf_conntrack_count"
_HANDLER_START: Final = 30.0  # seconds that one may take
_SELDOM: Final = 100  # how much longer than looking at a table takes it is left alone
_PATIENCE: Final = 10.0  # seconds for workers to start, and to end


class WorkerLost(NfctlError):
    """A worker ended by itself; the rules were taken out (exit 1)."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for. ``job`` is the part that its workers do."""

    job: Job
    chains: tuple[str, ...] = ("INPUT",)
    match: str = ""
    workers: int = 1
    fanout: bool = False
    duration: float = 0.0
    wait: float = DEFAULT_WAIT
    files: Files | None = None


@dataclass(slots=True)
class Report:
    """What a run has seen: the sums of its workers' figures, and one document a queue.

    ``failed`` is what ended it, or went wrong at its end.
    """

    seconds: float = 0.0
    ended_by: str = ""
    uninspected: int = 0
    queues: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failed: NfctlError | None = None

    def total(self, name: str) -> int:
        """Return the sum over the queues of a number."""
        return sum(int(queue.get(name, 0)) for queue in self.queues)

    def sums(self, name: str) -> dict[str, int]:
        """Return the sums over the queues of a document's numbers."""
        found: Counter[str] = Counter()
        for queue in self.queues:
            found.update(queue.get(name, {}))
        return dict(found.most_common())

    def document(self) -> dict[str, Any]:
        """Return the JSON document that ends the output of ``--json``."""
        return {
            "event": "end",
            "seconds": round(self.seconds, 3),
            "ended_by": self.ended_by,
            "packets": self.total("packets"),
            "octets": self.total("octets"),
            "verdicts": self.sums("verdicts"),
            "rules": self.sums("rules"),
            "errors": self.sums("errors"),
            "names": self.sums("names"),
            "offloaded": self.total("offloaded"),
            "rewritten": self.total("rewritten"),
            "uninspected": self.uninspected,
            "queue": self.sums("figures"),
        }


@dataclass(slots=True)
class _Child:
    pid: int
    control: socket.socket
    number: int
    port: int = 0
    ready: bool = False
    done: bool = False
    last: dict[str, Any] = field(default_factory=dict)


class Run:
    """One run; ``event`` is told what happens, ``figures`` the workers' figures each second."""

    def __init__(
        self,
        options: Options,
        *,
        event: Callable[[str], None],
        figures: Callable[[list[dict[str, Any]]], None] | None = None,
        keys: Callable[[], bool] | None = None,
        begun: Callable[[placement.Placed], None] | None = None,
    ) -> None:
        self.options = options
        self.event = event
        self.figures = figures
        #: Reads the terminal when there is something to read; True ends the run.
        self.keys = keys
        #: Called when the rules are in place.
        self.begun = begun
        self.report = Report()
        self._children: list[_Child] = []
        self._ended_by = ""
        self._placed: placement.Placed | None = None
        self._lost_before: dict[int, int] = {}
        self._count_at = 0.0

    def run(self) -> Report:
        """Inspect until the end; return what was seen.

        Raises what starting can raise; what goes wrong later is in the report.
        """
        plan = self._plan()
        wake, waker = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        # what was to be ignored is: nohup(1), a shell's jobs in the background
        heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._signal) for number in heeded}
        woken = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        started = time.monotonic()
        try:
            placement.check_free(plan, network=self.options.job.network)
            self._start(plan.rejects)
            patience = _PATIENCE + _HANDLER_START * len(self.options.job.handlers)
            self._await(wake, lambda child: child.ready, patience, "did not start")
            if not self._ended_by:
                if plan.offload:
                    self._clear_marks()
                self._placed = placement.place(
                    plan,
                    wait=self.options.wait,
                    network=self.options.job.network,
                    listeners=frozenset(child.port for child in self._children),
                )
                for note in self._placed.notes:
                    self.event(note)
                if self.begun is not None:
                    self.begun(self._placed)
                started = time.monotonic()
                self._watch(wake, started)
        except NfctlError as error:
            if self._placed is None:
                raise
            self.report.failed = error
            self._ended_by = "error"
        except BrokenPipeError:  # nobody reads what is told
            self._ended_by = "pipe"
        finally:
            try:
                self._end(wake)
            finally:
                signal.set_wakeup_fd(woken)
                for number, handler in before.items():
                    signal.signal(number, handler)
                wake.close()
                waker.close()
        self.report.seconds = time.monotonic() - started
        self.report.ended_by = self._ended_by
        self.report.queues = [child.last for child in self._children]
        return self.report

    def _plan(self) -> placement.Plan:
        """Return what is to be placed, checked."""
        options, job = self.options, self.options.job
        plan = placement.Plan(
            queue=job.queue,
            workers=options.workers,
            chains=options.chains,
            match=options.match,
            offload=job.offload or job.rules.offloads,
            rejects=job.rules.rejects,
            fanout=options.fanout,
            mask=job.mask,
            tracked=job.offload or job.rules.offloads or _tracked(job.network),
        )
        placement.check(plan)
        if job.handlers and not plan.rejects:
            # A handler may reject, too. Where that is impossible it drops.
            with contextlib.suppress(BadInput):
                rejecting = replace(plan, rejects=True)
                placement.check(rejecting)
                return rejecting
        return plan

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        self._ended_by = signal.Signals(number).name

    # --- workers ------------------------------------------------------------------------------

    def _start(self, rejects: bool) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        limit = Countdown(self.options.job.limit) if self.options.job.limit else None
        for number in range(self.options.workers):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            first = self.options.job
            job = replace(first, queue=first.queue + number, number=number, rejects=rejects)
            pid = os.fork()
            if not pid:
                code = 1
                try:
                    for sibling in self._children:
                        sibling.control.close()
                    ours.close()
                    signal.set_wakeup_fd(-1)
                    serve(job, theirs, limit)
                    code = 0
                except BaseException as error:  # noqa: BLE001 - told to run, which reports it
                    import traceback

                    where = traceback.extract_tb(error.__traceback__)[-1]
                    text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
                    send(theirs, {"event": f"worker {number} failed: {text}"})
                finally:
                    os._exit(code)
            theirs.close()
            self._children.append(_Child(pid, ours, number))
        if limit is not None:
            limit.close()

    def _await(
        self, wake: socket.socket, done: Callable[[_Child], bool], patience: float, what: str
    ) -> None:
        until = time.monotonic() + patience
        while not all(done(child) for child in self._children) and not self._ended_by:
            left = until - time.monotonic()
            if left <= 0:
                msg = f"a worker {what} within {patience:g} seconds"
                raise WorkerLost(msg)
            self._poll(wake, left)

    def _watch(self, wake: socket.socket, started: float) -> None:
        options = self.options
        until = started + options.duration if options.duration else float("inf")
        look = started + _LOOK
        while not self._ended_by:
            now = time.monotonic()
            if now >= until:
                self._ended_by = "duration"
                return
            if now >= look:
                look = now + _LOOK
                self._look()
            self._poll(wake, min(until, look) - now)

    def _look(self) -> None:
        """See to it that our rules are the last of their chains, and report what was lost."""
        if self._placed is not None and not self._placed.last():
            for text in self._placed.mend():
                self.event(text)
        for child in self._children:
            figures = child.last.get("figures", {})
            lost = figures.get("dropped", 0) + figures.get("user_dropped", 0)
            more = lost - self._lost_before.get(child.number, 0)
            if more:
                self._lost_before[child.number] = lost
                number = self.options.job.queue + child.number
                self.event(f"queue {number} was full: {more:,} packets dropped")
        self._look_past()
        if self.figures is not None:
            self.figures([child.last for child in self._children])

    def _look_past(self) -> None:
        """Report packets that were accepted uninspected, since a queue was full.

        The kernel does not count them. The rules count all packets, and a queue numbers those
        that it takes. Large tables are looked at less often.
        """
        job, started = self.options.job, time.monotonic()
        if self._placed is None or not job.fail_open or started < self._count_at:
            return
        packets = self._placed.queued()
        with netns.entered(job.network):
            bound = figures.bound()
        self._count_at = time.monotonic() + _SELDOM * (time.monotonic() - started)
        numbers = range(job.queue, job.queue + self.options.workers)
        past = packets - sum(bound[number].last_id for number in numbers if number in bound)
        more = past - self.report.uninspected
        if more > 0:
            self.event(f"a queue was full: {more:,} packets went by uninspected")
            self.report.uninspected = past

    def _poll(self, wake: socket.socket, seconds: float) -> None:
        """Wait for workers, keys and signals, and take what they say."""
        watched: list[Any] = [wake, *(c.control for c in self._children if not c.done)]
        if self.keys is not None:
            watched.append(0)
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if wake in ready:
            wake.recv(64)
        if 0 in ready and self.keys is not None and self.keys():
            self._ended_by = self._ended_by or "q"
        for child in self._children:
            if child.control in ready:
                self._hear(child)

    def _hear(self, child: _Child) -> None:
        message, _ = receive(child.control)
        if message is None:
            child.done = True
            self._gone(child)
            return
        for kind, content in message.items():
            if kind == "ready":
                child.ready = True
                child.port = content["port"]
                for note in content["notes"]:
                    self.event(note)
            elif kind == "figures":
                child.last = content
            elif kind == "event":
                self.event(content)
            elif kind == "enough":
                self._ended_by = self._ended_by or ("pipe" if content else "count")
            elif kind == "capture":
                self._open(child, content)
            elif kind == "failed":
                child.done = True
                raise _error(content)
            elif kind == "done":
                child.last, child.done = content, True

    def _gone(self, child: _Child) -> None:
        """End the run: a worker ended without a word."""
        if self._ended_by and self._placed is None:
            return
        _, status = os.waitpid(child.pid, 0)
        child.pid = 0
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "itself"
        number = self.options.job.queue + child.number
        msg = f"the worker of queue {number} was ended by {how}"
        self.report.failed = WorkerLost(msg, hint="the rules were taken out; traffic passes")
        self._ended_by = self._ended_by or "worker"

    def _open(self, child: _Child, number: int) -> None:
        files = self.options.files
        if files is None:
            return
        try:
            fd = files.open(number, child.number if self.options.workers > 1 else None)
        except (OSError, NfctlError) as error:
            if not child.ready:  # nothing was begun yet
                raise
            self.event(f"no capture file: {error}")
            send(child.control, {"capture": number})
            return
        send(child.control, {"capture": number}, fd)
        os.close(fd)

    def _clear_marks(self) -> None:
        """Take back what this run, or one before it, has left to the kernel."""
        try:
            conntrack.clear_marks(self.options.job.mask, network=self.options.job.network)
        except NfctlError as error:
            self.event(f"flows that a run has left to the kernel keep their verdict: {error}")

    # --- the end ------------------------------------------------------------------------------

    def _end(self, wake: socket.socket) -> None:
        """Take the rules out, have the workers decide what waits, and see them off."""
        queued = 0
        if self._placed is not None:
            try:
                if self.options.job.fail_open:
                    queued = self._placed.queued()
                self.report.removed = [str(part) for part in self._placed.remove()]
            except NfctlError as error:
                error.message = f"the rules of the inspection are still there: {error.message}"
                error.hint = "traffic passes; nfctl inspect --clean removes them"
                self.report.failed = error
            else:
                if self._placed.plan.offload:
                    self._clear_marks()
        for child in self._children:
            send(child.control, {"end": {}})
        ended, self._ended_by = self._ended_by, ""
        with contextlib.suppress(NfctlError):
            patience = _PATIENCE + 20 * self.options.job.deadline  # for handlers to stop
            self._await(wake, lambda child: child.done, patience, "did not end")
        self._ended_by = ended
        seen = sum(child.last.get("packets", 0) for child in self._children)
        self.report.uninspected = max(self.report.uninspected, queued - seen)
        for child in self._children:
            child.control.close()
            if child.pid:
                _see_off(child)


def _tracked(network: str | None) -> bool:
    """Return whether the kernel tracks connections here, as far as there are any."""
    try:
        with netns.entered(network), open(_TRACKED, encoding="ascii") as file:  # noqa: PTH123
            return int(file.read()) > 0
    except (OSError, ValueError):
        return False


def _see_off(child: _Child) -> None:
    """Wait for a worker's end, not for ever."""
    until = time.monotonic() + 1.0
    while os.waitpid(child.pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > until:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            return
        time.sleep(0.005)


def _error(content: dict[str, Any]) -> NfctlError:
    """Return the error that a worker met, to be raised here."""
    kind = getattr(errors, content["kind"], NfctlError)
    where = Where(*content["where"]) if content.get("where") else None
    made: NfctlError = kind(content["message"], hint=content["hint"], where=where)
    return made
