"""Packets of a capture, decided as the live ones: no kernel, no root.

    for packet, verdict in replay(capture.read("trace.pcap"), rules):
        ...

The clock is that of the packets: rates and verdicts that last go by when they were captured. A
flow that is left to the kernel gets its verdict for the rest of it. A rewritten packet has its new
bytes in ``replacement``. Chain, interfaces and mark are what the capture's reader says, which
knows little of them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nfctl.inspect.deadline import TooLate
from nfctl.inspect.flows import Flows
from nfctl.inspect.handlers import FAILED
from nfctl.inspect.rewrite import CannotRewrite
from nfctl.inspect.verdict import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nfctl.inspect.deadline import Deadline
    from nfctl.inspect.flows import Flow
    from nfctl.inspect.handlers import Handlers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rewrite import Rewrite
    from nfctl.inspect.rules import Rules
    from nfctl.inspect.verdict import Verdict

T = TypeVar("T")

_MOST_NAMES: Final = 4096
_SHOWN_NAMES: Final = 50
_OFFLOADED: Final = frozenset({Action.ACCEPT, Action.DROP})
_SENT_ON: Final = frozenset({Action.ACCEPT, Action.REPEAT})


def replay(
    packets: Iterable[Packet], rules: Rules, handlers: Handlers | None = None
) -> Iterator[tuple[Packet, Verdict]]:
    """Yield each packet with its verdict."""
    for packet, verdict, _ in Replay(rules, handlers).run(packets):
        yield packet, verdict


class Replay:
    """A run over a capture; ``deadline`` is for the rules' regular expressions, if they have any.

    Handlers are started before the first packet, and stopped behind the last.
    """

    def __init__(
        self, rules: Rules, handlers: Handlers | None = None, *, deadline: Deadline | None = None
    ) -> None:
        self.rules = rules
        self.handlers = handlers
        self.deadline = deadline if rules.regexes else None
        self.flows = Flows()
        self.packets = 0
        self.octets = 0
        self.offloaded = 0
        self.rewritten = 0
        self._verdicts: Counter[str] = Counter()
        self._rules: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._names: Counter[str] = Counter()

    def run(
        self, packets: Iterable[Packet], limit: int = 0
    ) -> Iterator[tuple[Packet, Verdict, bool]]:
        """Yield each packet, its verdict, and whether it ends its flow's ClientHello.

        ``limit`` is the number of packets, 0 for all.
        """
        try:
            if self.handlers is not None:
                self.handlers.start()
            for packet in packets:
                yield self._one(packet)
                if self.packets == limit:
                    break
        finally:
            if self.handlers is not None:
                self.handlers.stop()
            if self.deadline is not None:
                self.deadline.close()

    def _one(self, packet: Packet) -> tuple[Packet, Verdict, bool]:
        flow = self.flows.see(packet)
        verdict = self._decide(packet, flow)
        if verdict.rewrite is not None and packet.replacement is None:
            self._rewrite(packet, verdict.rewrite)
        hello = False
        if flow is not None:
            flow.packets += 1
            flow.octets += packet.length
            if flow.hello is not None and not flow.reported:
                flow.reported = hello = True
                if flow.hello.sni in self._names or len(self._names) < _MOST_NAMES:
                    self._names[flow.hello.sni] += 1
            if verdict.offload and flow.verdict is None and verdict.action in _OFFLOADED:
                self._leave(flow, verdict)
        self.packets += 1
        self.octets += packet.length
        self.rewritten += packet.replacement is not None and verdict.action in _SENT_ON
        self.rules.count(verdict)
        self._verdicts[str(verdict.action)] += 1
        self._rules[verdict.by] += 1
        return packet, verdict, hello

    def _leave(self, flow: Flow, verdict: Verdict) -> None:
        """Leave a flow to the kernel, once nothing more can be found out about it."""
        if flow.settled:
            flow.verdict = verdict
            self.offloaded += 1

    def _decide(self, packet: Packet, flow: Flow | None) -> Verdict:
        if flow is not None and flow.verdict is not None:
            kept: Verdict = flow.verdict
            return kept
        verdict = self._by_rules(packet)
        if self.handlers is not None and verdict is self.rules.default:
            decided = self.handlers.decide(packet)
            if decided is FAILED:
                packet.undecided()
            elif decided is not None:
                return decided
        return verdict

    def _by_rules(self, packet: Packet) -> Verdict:
        try:
            return self._guarded(self.rules.decide, packet, packet.time)
        except TooLate:
            self._errors["a regular expression took too long"] += 1
            return self.rules.default

    def _rewrite(self, packet: Packet, rewrite: Rewrite) -> None:
        try:
            packet.replacement = self._guarded(rewrite.apply, packet)
        except CannotRewrite as error:
            self._errors[f"cannot rewrite: {error}"] += 1
        except TooLate:
            self._errors["a regular expression took too long"] += 1

    def _guarded(self, function: Callable[..., T], *arguments: Any) -> T:
        if self.deadline is None:
            return function(*arguments)
        return self.deadline.guard(function, *arguments)

    def figures(self) -> dict[str, Any]:
        """Return what was counted, as the document of a live run has it."""
        errors = Counter(self._errors)
        if self.handlers is not None:
            for name, kinds in self.handlers.errors.items():
                errors.update({f"handler {name}: {kind}": n for kind, n in kinds.items()})
        return {
            "packets": self.packets,
            "octets": self.octets,
            "verdicts": dict(self._verdicts),
            "rules": dict(self._rules),
            "errors": dict(errors),
            "names": dict(self._names.most_common(_SHOWN_NAMES)),
            "offloaded": self.offloaded,
            "rewritten": self.rewritten,
        }
