"""The process that holds a queue: it opens it, gives up its privileges, and inspects.

It is forked by ``run``, which keeps root's privileges and never looks into a packet. The two
talk over a socket pair of JSON messages, at most one a second each way but for events:

    worker: {"ready": {}}, {"failed": {...}}, {"figures": {...}}, {"event": "..."},
            {"capture": N}, {"enough": {}}, {"done": {...}}
    run:    {"capture": N} with a descriptor, {"end": {}}

At the end ``run`` first takes out the rules; then the worker decides what still waits and leaves
the queue, so that no packet is lost. When ``run`` is gone, the worker goes, too.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nfctl.errors import NfctlError
from nfctl.inspect import figures as queue_figures
from nfctl.inspect import privileges
from nfctl.inspect.deadline import Deadline
from nfctl.inspect.decider import Decider
from nfctl.inspect.inspector import Inspector
from nfctl.inspect.marks import DEFAULT_MASK, Marks
from nfctl.inspect.queue import MOST_COPIED, Queue
from nfctl.kernel import netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.capture import Writer
    from nfctl.inspect.countdown import Countdown
    from nfctl.inspect.figures import Figures
    from nfctl.inspect.handlers import Handlers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rules import Rules
    from nfctl.inspect.show import Show
    from nfctl.inspect.verdict import Verdict

_INTERVAL: Final = 1.0  # seconds between figures
_FLUSH: Final = 0.05  # seconds that a line may wait to be written
_MOST_MESSAGE: Final = 1 << 18
_PATIENCE: Final = 5.0  # seconds for run to open a file, and for what waits at the end
_ENOUGH_TO_READ: Final = 4096  # bytes of a packet, where only names are read


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker does; the same for all workers of a run but ``queue`` and ``number``."""

    queue: int
    rules: Rules
    number: int = 0
    network: str | None = None
    handlers: tuple[str, ...] = ()
    deadline: float = 0.1
    offload: bool = False
    mask: int = DEFAULT_MASK
    fail_open: bool = True
    length: int = 4096
    buffer: int = 16 << 20
    copy: int = 0
    user: str = "nobody"
    show: str = ""
    colour: bool = False
    capture: bool = False
    rotate: int = 0
    follow: bool = False
    limit: int = 0
    rejects: bool = True

    @property
    def rewriting(self) -> bool:
        """Whether packets may be changed, so that the kernel has to cut segments first."""
        return self.rules.rewrites or bool(self.handlers)

    @property
    def copied(self) -> int:
        """How many bytes of each packet are asked for."""
        if self.copy:
            return min(self.copy, MOST_COPIED)
        whole = self.rewriting or self.capture or self.rules.reads_payload
        return MOST_COPIED if whole or self.show in {"detail", "hex"} else _ENOUGH_TO_READ


def serve(job: Job, control: socket.socket, limit: Countdown | None = None) -> None:
    """Work until ``run`` says it is enough; to be called in a process of its own."""
    # What is typed is for run, which tells us: a worker that Ctrl-Z stops would stop traffic.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # run may have been stopped, by Ctrl-Z: then it is not told, and traffic goes on
    control.setblocking(False)
    worker = None
    try:
        worker = Worker(job, control, limit)
        worker.run()
    except NfctlError as error:
        _send_error(control, error)
    except OSError as error:
        if worker is None:
            _send_error(control, NfctlError(f"a worker cannot start: {error}"))
            return
        # nobody reads any more, or a full disk behind standard output
        if not isinstance(error, BrokenPipeError):
            send(control, {"event": f"packets are no longer shown: {error.strerror or error}"})
        worker.finish_quietly()


def _send_error(control: socket.socket, error: NfctlError) -> None:
    control.settimeout(_PATIENCE)
    send(control, {"failed": {
        "kind": type(error).__name__, "message": error.message, "hint": error.hint,
        "where": list(error.where) if error.where else None,
    }})  # fmt: skip


class Worker:
    """A queue, an inspector, and who is told of what they see."""

    def __init__(self, job: Job, control: socket.socket, limit: Countdown | None) -> None:
        self.job = job
        self.control = control
        self._show: Show | None = None
        self._writer: Writer | None = None
        self._handlers: Handlers | None = None
        self._ending = False
        self._orphan = False
        self._fds: list[int] = []
        self._refused = False
        with netns.entered(job.network):
            self.queue = Queue(
                job.queue,
                copy=job.copied,
                length=job.length,
                buffer=job.buffer,
                fail_open=job.fail_open,
                gso=not job.rewriting,
            )
            self.figures = queue_figures.Reader()
        deadline = Deadline(job.deadline)
        if job.handlers:
            from nfctl.inspect import handlers

            gc.enable()  # nfctl does without; what handlers make may be in cycles
            self._handlers = handlers.load(
                job.handlers, trusted=os.geteuid() == 0, deadline=deadline, report=self.event
            )
        _prepare(job)
        if job.show:
            from nfctl.inspect.show import Show

            self._show = Show(job.show, colour=job.colour)
        self._notes = privileges.drop(job.user).notes
        if job.capture:
            from nfctl.inspect.capture import Writer

            self._writer = Writer(self._next_file, job.rotate)
        decider = Decider(
            job.rules,
            self._handlers,
            deadline=deadline,
            report=self.event,
            follow=job.follow or bool(job.show),
            offload=job.offload,
        )
        self.inspector = Inspector(
            self.queue,
            decider,
            show=self._see if job.show or job.capture else None,
            logged=self._log,
            marks=Marks.of(job.mask),
            limit=limit,
            rejects=job.rejects,
        )

    # --- the loop -----------------------------------------------------------------------------

    def run(self) -> None:
        """Inspect until told to end; then decide what still waits and leave the queue."""
        if self._handlers is not None:
            self._handlers.start()
        ready = {"queue": self.queue.number, "port": self.queue.port, "notes": self._notes}
        send(self.control, {"ready": ready})
        poll = select.poll()
        poll.register(self.queue, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        batch, tick = self.inspector.batch, 0.0
        told = False
        while not self._ending:
            got = batch()
            now = time.monotonic()
            if now >= tick:
                tick = now + _INTERVAL
                self._tell()
                self._listen(0)
            if got:
                if not told and self.inspector.enough:
                    told = send(self.control, {"enough": {}})
                if got < len(self.queue.offsets):
                    self._listen(0)
                continue
            self._flush()
            idle = max(0.0, tick - now)
            if self._show is not None and self._show.waiting:
                idle = min(idle, _FLUSH)
            for fd, _ in poll.poll(idle * 1000):
                if fd == self.control.fileno():
                    self._listen(0)
        self._finish()

    def _finish(self) -> None:
        """Decide what waits, and leave; the rules are out, so that nothing more comes."""
        if self._orphan:  # the rules are still there, and pass what finds no listener
            self.queue.let_pass()
            until = time.monotonic() + _PATIENCE
            while self.inspector.dismiss() and time.monotonic() < until:
                pass
            self.queue.close()
            return
        until = time.monotonic() + _PATIENCE
        last = until + _PATIENCE
        while (now := time.monotonic()) < last:
            if not (self.inspector.batch() if now < until else self.inspector.dismiss()):
                figures = self.figures.read(self.queue.number)
                if figures is None or not figures.waiting:
                    break
                select.select([self.queue], [], [], _FLUSH)
        figures = self.figures.read(self.queue.number)
        document = self._document(figures)
        self.queue.close()
        if self._handlers is not None:
            self._handlers.stop()
        if self._show is not None:
            self._show.close()
        if self._writer is not None:
            self._capture(self._writer.close)
        self.control.settimeout(_PATIENCE)  # run listens, unless it was stopped
        send(self.control, {"done": document})

    def finish_quietly(self) -> None:
        """Go on deciding, without showing anything, until the rules are out."""
        self._show = None
        self.inspector.show = None
        told = False
        while not self._ending:
            told = told or send(self.control, {"enough": {"pipe": True}})
            if not self.inspector.batch():
                self._listen(_FLUSH)
        self._finish()

    def _listen(self, seconds: float) -> None:
        """Take what ``run`` says; its end is ours."""
        ready, _, _ = select.select([self.control], [], [], seconds)
        if ready:
            message, fds = receive(self.control)
            self._fds += fds
            if message is None:
                self._orphan = self._ending = True
            elif "end" in message:
                self._ending = True
            elif not fds:
                self._refused = True

    def _next_file(self, number: int) -> int:
        """Have ``run``, which may, open the next capture file."""
        self._refused = not send(self.control, {"capture": number})
        until = time.monotonic() + _PATIENCE
        while not (self._fds or self._refused or self._ending) and time.monotonic() < until:
            self._listen(_PATIENCE)
        if not self._fds:
            raise OSError(0, "no further file could be opened")
        return self._fds.pop(0)

    # --- telling ------------------------------------------------------------------------------

    def _see(self, packet: Packet, verdict: Verdict, hello: bool) -> None:
        writer = self._writer
        if writer is not None:
            self._capture(lambda: writer.write(packet, verdict))
        if self._show is not None:
            self._show.packet(packet, verdict, hello=hello)

    def _capture(self, action: Callable[[], None]) -> None:
        """Write to the capture; a full disk ends it, and nothing else."""
        try:
            action()
        except (OSError, NfctlError) as error:
            self._writer = None
            self.event(f"the capture ends here: {error}")

    def _log(self, packet: Packet, verdict: Verdict) -> None:
        """Report a packet whose rule says ``log``, where packets are not shown."""
        if self._show is not None:
            return
        from nfctl.inspect.summary import line

        self.event(line(packet, verdict))

    def event(self, text: str) -> None:
        """Have something reported now."""
        send(self.control, {"event": text})

    def _flush(self) -> None:
        if self._show is not None:
            self._show.flush()
        if self._writer is not None:
            self._capture(self._writer.flush)

    def _tell(self) -> None:
        self._flush()
        send(self.control, {"figures": self._document(self.figures.read(self.queue.number))})

    def _document(self, figures: Figures | None) -> dict[str, Any]:
        document = self.inspector.figures()
        document["queue"] = self.queue.number
        document["overruns"] = self.queue.overruns
        if figures is not None:
            document["figures"] = {
                "waiting": figures.waiting,
                "dropped": figures.dropped,
                "user_dropped": figures.user_dropped,
            }
        if self.job.follow:
            document["flows"] = self.inspector.busiest()
        return document


def _prepare(job: Job) -> None:
    """Import what is imported late: without privileges its files may be out of reach."""
    for name in ("dns", "http", "icmp", "quic", "tls"):
        importlib.import_module(f"nfctl.inspect.payloads.{name}")
    importlib.import_module("nfctl.inspect.summary")
    importlib.import_module("encodings.idna")
    from nfctl.inspect.payloads import quic

    quic.able()
    if job.capture or job.handlers or job.show == "detail":
        from nfctl.inspect import dissect

        dissect.load()
    if job.capture:
        importlib.import_module("scapy.utils")


def send(control: socket.socket, message: dict[str, Any], *fds: int) -> bool:
    """Send a message; return whether there was room for it, and somebody to read it."""
    data = json.dumps(message, ensure_ascii=True).encode()
    try:
        if fds:
            socket.send_fds(control, [data], list(fds))
        else:
            control.send(data)
    except OSError:
        return False
    return True


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a message and the descriptors that came with it; None at the end."""
    try:
        data, fds, _, _ = socket.recv_fds(control, _MOST_MESSAGE, 4)
    except OSError:
        return None, []
    if not data:
        return None, list(fds)
    for fd in fds:
        os.set_inheritable(fd, False)
    return json.loads(data), list(fds)
