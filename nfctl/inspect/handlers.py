'''Handlers: functions and classes in Python that look at packets and decide them.

    nfctl inspect --handler /etc/nfctl/sites.py:Sites

A handler is named as ``package.module:attribute``, as ``/path/file.py:attribute`` or by its entry
point in the group ``nfctl.handlers``. It is a function that takes the packet (see
:class:`nfctl.inspect.packet.Packet`); or a class, which is made without arguments, or an object,
with a method ``packet(packet)`` or ``__call__(packet)`` and, if it likes, ``start()`` and
``stop()``. A file /etc/nfctl/sites.py that counts bytes by server name and drops one:

    """Counts what goes to each TLS server, and keeps everybody from one of them."""

    from collections import Counter

    class Sites:
        def start(self):
            self.bytes = Counter()

        def packet(self, packet):
            if packet.hello is None:
                return
            self.bytes[packet.hello.sni] += packet.length
            if packet.hello.sni == "ads.example.net":
                packet.reject()

        def stop(self):
            for name, count in self.bytes.most_common(10):
                print(f"{count:>12} {name}")

It decides with the packet's own methods; or it returns an Action, its name ("drop") or a Verdict.
If it does neither, the next handler is asked, and behind the last the default decides. A packet
may be kept, to be looked at later; what is done to it then has no effect.

One that raises, whatever it raises, that takes longer than the deadline or returns anything else
costs that packet the default verdict, and no other handler sees it. That is counted and reported;
the run goes on. The code runs as nfctl does: for what root runs, see ``nfctl.inspect.trust``.
'''

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from nfctl.errors import BadInput
from nfctl.inspect.deadline import Deadline, TooLate
from nfctl.inspect.text import safe
from nfctl.inspect.verdict import Action, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    from nfctl.inspect.packet import Packet
    from nfctl.inspect.trust import Guard

GROUP: Final = "nfctl.handlers"

FAILED: Final = Verdict(Action.DROP, "handler that failed")
"""What ``decide`` returns where a handler failed; compare with ``is``: the default decides then."""

_FIRST: Final = 10  # errors of a handler that are reported one by one
_EVERY: Final = 1.0  # seconds between reports after that
_START: Final = 30.0  # seconds for a handler's start
_STOP: Final = 2.0  # seconds for all stops together, or twenty packets' time if that is more
_LEAST: Final = 0.1  # seconds for a stop behind one that took all of that
_TEXT: Final = 200  # characters of an exception that are shown
_PATH: Final = 400  # characters of a file's name
_DEEPEST: Final = 20_000  # frames; a handler may raise the recursion limit
_CALLERS: Final = frozenset({
    __name__, "nfctl.inspect.loading", "nfctl.inspect.deadline", "nfctl.inspect.trust", "importlib"
})  # fmt: skip
_NAMED: Final = {str(action): action for action in Action}


def load(
    names: Sequence[str],
    *,
    trusted: bool,
    deadline: Deadline | None = None,
    report: Callable[[str], None] | None = None,
    owner_ok: int | None = None,
) -> Handlers:
    """Return the handlers of these names, made but not started (see the module for names).

    With ``trusted`` only code that nobody else may have written is run, from here to the
    handlers' end: nobody but root and the user ``owner_ok`` (the one who runs this, if None).
    BadInput for what is not there, cannot be imported, is not trusted or is no handler.
    """
    from nfctl.inspect.loading import Loading
    from nfctl.inspect.trust import Guard

    guard = Guard(os.geteuid() if owner_ok is None else owner_ok) if trusted else None
    loading = Loading(guard)
    try:
        if guard is not None:
            guard.install()
        handlers = [loading.handler(name) for name in names]
    except BaseException:
        if guard is not None:
            guard.remove()
        raise
    return Handlers(handlers, deadline, report, guard)


class Handler:
    """One handler: its ``name`` as given, what to ``call`` for a packet, and at the two ends.

    ``homes`` are the packages of its code, to which errors are traced.
    """

    __slots__ = ("by", "call", "errors", "homes", "name", "next", "reported", "start", "stop")

    def __init__(
        self,
        name: str,
        call: Callable[[Packet], Any],
        start: Callable[[], Any] | None = None,
        stop: Callable[[], Any] | None = None,
        homes: Collection[str] = (),
    ) -> None:
        self.name = name
        self.by = f"handler {name}"
        self.call = call
        self.start = start
        self.stop = stop
        self.homes = frozenset(homes)
        self.errors: Counter[str] = Counter()
        self.reported: Counter[str] = Counter()  # of them, those that a report has told
        self.next = 0.0  # when the next may be, once there were _FIRST; of the monotonic clock


class Handlers:
    """Handlers in their order, as one.

    ``deadline`` is for each packet and each handler. ``report`` gets a line of text for errors:
    each of the first ten of a handler, then one per second. ``guard`` is taken out at the end.
    Start, decide and stop in the main thread; ^C while a handler runs is no error of its.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        deadline: Deadline | None = None,
        report: Callable[[str], None] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.handlers = tuple(handlers)
        self.deadline = deadline or Deadline(None)
        self.report = report or _to_stderr
        self._guard = guard
        self._running: Handler | None = None
        self._started: list[Handler] = []

    @property
    def names(self) -> tuple[str, ...]:
        """What the handlers are called, in their order."""
        return tuple(handler.name for handler in self.handlers)

    @property
    def errors(self) -> dict[str, Counter[str]]:
        """How often each handler has "raised", was "late" or "returned" what is no decision."""
        return {handler.name: handler.errors for handler in self.handlers}

    # --- the two ends -------------------------------------------------------------------------

    def start(self) -> None:
        """Start all handlers; BadInput if one cannot, and those before it are stopped again."""
        if self.deadline.seconds:
            self.deadline.stubborn = self._stubborn
            self.deadline.open()
        for handler in self.handlers:
            wrong = self._end(handler, handler.start, _START)
            if wrong:
                self.stop()
                msg = f"{handler.by} does not start: {wrong}"
                raise BadInput(msg)
            self._started.append(handler)

    def stop(self) -> None:
        """Stop those that were started, the last one first; what goes wrong is reported."""
        until = time.monotonic() + max(_STOP, 20 * self.deadline.seconds)
        while self._started:
            handler = self._started.pop()
            seconds = max(_LEAST, until - time.monotonic())
            wrong = self._end(handler, handler.stop, seconds)
            if wrong:
                self.report(f"{handler.by} does not stop: {wrong}")
        for handler in self.handlers:
            self._summarize(handler)
        self.deadline.close()
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def _end(self, handler: Handler, function: Callable[[], Any] | None, seconds: float) -> str:
        """Call a handler's start or stop; return what went wrong with it."""
        if function is None:
            return ""
        self._running = handler
        try:
            with Deadline(seconds, self._stubborn) as patience:
                patience.guard(function)
        except TooLate as error:
            return f"it takes too long{self._place(handler, error, ' ({})')}"
        except BaseException as error:
            if _is_user(error):
                raise
            return self._described(handler, error)
        return ""

    # --- packets ------------------------------------------------------------------------------

    def decide(self, packet: Packet) -> Verdict | None:
        """Return what the first handler that decides has decided; None if none does.

        FAILED if one failed before that. Never raises for what a handler does.
        """
        run = self.deadline.run
        for handler in self.handlers:
            self._running = handler
            try:
                answer = run(handler.call, packet)
            except TooLate as error:
                packet.undecided()
                self._failed(handler, "late", error)
                return FAILED
            except BaseException as error:
                packet.undecided()
                if _is_user(error):
                    raise
                self._failed(handler, "raised", error)
                return FAILED
            if answer is not None:
                return self._returned(handler, packet, answer)
            verdict = packet.decision(handler.by)
            if verdict is not None:
                return verdict
        return None

    def _returned(self, handler: Handler, packet: Packet, answer: object) -> Verdict | None:
        """Return the verdict that a handler returned, by name or itself."""
        if type(answer) is Verdict:
            return Verdict(
                answer.action, handler.by, answer.mark, answer.rewrite, answer.offload, answer.log,
                answer.lasts, answer.per,
            )  # fmt: skip
        action = _NAMED.get(answer) if isinstance(answer, str) else None
        if action is None:
            packet.undecided()
            self._failed(handler, "returned", answer)
            return FAILED
        getattr(packet, action.value)()
        return packet.decision(handler.by)

    # --- what goes wrong ----------------------------------------------------------------------

    def _failed(self, handler: Handler, kind: str, what: object) -> None:
        handler.errors[kind] += 1
        if handler.errors.total() > _FIRST:
            now = time.monotonic()
            if now < handler.next:
                return
            handler.next = now + _EVERY
        if isinstance(what, TooLate):
            place = self._place(handler, what, " ({})")
            text = f"took longer than {self.deadline.seconds * 1000:g} ms{place}"
        elif isinstance(what, BaseException):
            text = self._described(handler, what)
        else:
            text = f"returned {self._shown(repr, what)}, which is no decision"
        if handler.errors.total() > _FIRST:
            self._summarize(handler, text)
        else:
            handler.reported[kind] += 1
            self.report(f"{handler.by}: {text}; the packet gets the default verdict")

    def _summarize(self, handler: Handler, last: str = "") -> None:
        """Report the errors that no report has told yet, as numbers."""
        news = handler.errors - handler.reported
        if not news:
            return
        handler.reported = handler.errors.copy()
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(news.items()))
        packets = "packet" if news.total() == 1 else "packets"
        text = f"{handler.by}: {news.total()} more {packets} got the default verdict ({counts})"
        self.report(f"{text}; the last: {last}" if last else text)

    def _stubborn(self) -> None:
        """Say who will not be ended. Called by a signal handler: nothing may come out of here."""
        name = self._running.by if self._running is not None else "a handler"
        try:
            self.report(f"{name} is too late and catches what would end it (BaseException)")
        except BaseException:  # noqa: BLE001
            return

    def _described(self, handler: Handler, error: BaseException) -> str:
        """Return where an exception came from, its kind and its text, in one line."""
        text = self._shown(str, error)
        kind = type(error).__name__
        place = self._place(handler, error, "{}: ")
        return f"{place}{kind}: {text}" if text else f"{place}{kind}"

    def _place(self, handler: Handler, error: BaseException, form: str) -> str:
        """Return where in the handler's code an exception came from; "" if that is not known."""
        file, line = blamed(error.__traceback__, handler.homes)
        return form.format(f"{safe(file, _PATH)}:{line}") if file else ""

    def _shown(self, how: Callable[[Any], str], what: object) -> str:
        """Return a text that a handler's own code may make, in its time, fit for a terminal."""
        try:
            text = self.deadline.run(how, what)
            return safe(text, _TEXT) if type(text) is str else ""
        except BaseException as error:
            if _is_user(error):
                raise
            return f"an object of {type(what).__name__}" if how is repr else ""


def _to_stderr(text: str) -> None:
    print(f"nfctl: {text}", file=sys.stderr)


def blamed(trace: TracebackType | None, homes: Collection[str]) -> tuple[str, int]:
    """Return file and line of an exception's innermost frame, ("", 0) if it has none.

    Of the frames in modules of the packages ``homes``, if it has any: a library that they have
    called tells its caller less.
    """
    innermost = own = ("", 0)
    for _ in range(_DEEPEST):
        if trace is None:
            break
        frame = trace.tb_frame
        place = (frame.f_code.co_filename, trace.tb_lineno)
        module = frame.f_globals.get("__name__")
        module = module if type(module) is str else ""
        if module not in _CALLERS and not place[0].startswith("<"):
            innermost = place
            if module.partition(".")[0] in homes:
                own = place
        trace = trace.tb_next
    return own if own[0] else innermost


def _is_user(error: BaseException) -> bool:
    """Return whether this is ^C, and not an exception that a handler raised by itself.

    Where SIGINT raises no KeyboardInterrupt, each is the handler's own.
    """
    if (
        not isinstance(error, KeyboardInterrupt)
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return False
    import dis

    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[code] not in {"RAISE_VARARGS", "RERAISE"}
