"""What a packet's verdict is, and what was counted on the way; the same for live ones and captures.

A packet gets its flow, then the verdict of the first rule that matches, else that of a handler,
else the default; then it is rewritten, if the verdict says so. Nothing here knows of the kernel.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nfctl.inspect.deadline import Deadline, TooLate
from nfctl.inspect.flows import Flows
from nfctl.inspect.handlers import FAILED
from nfctl.inspect.rewrite import CannotRewrite
from nfctl.inspect.rules import UNKNOWN, Facts
from nfctl.inspect.verdict import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.handlers import Handlers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rewrite import Rewrite
    from nfctl.inspect.rules import Rules
    from nfctl.inspect.verdict import Verdict

T = TypeVar("T")

_MOST_NAMES: Final = 4096  # that are counted
_SHOWN_NAMES: Final = 50
_OFFLOADED: Final = frozenset({Action.ACCEPT, Action.DROP})
_SENT_ON: Final = frozenset({Action.ACCEPT, Action.REPEAT})
_SLOW: Final = "a regular expression took too long"


class Tally:
    """Packets and bytes that one verdict of one rule was for."""

    __slots__ = ("octets", "packets")

    def __init__(self) -> None:
        self.packets = 0
        self.octets = 0


class Decider:
    """Rules and handlers, the flows they ask for, and what was decided.

    ``deadline`` is for the rules' regular expressions; handlers have their own. ``report(text)``
    is called for the first error of each kind. ``follow`` keeps flows even if no rule asks for
    names. ``offload`` leaves flows to the kernel whose verdict cannot change any more.
    """

    def __init__(
        self,
        rules: Rules,
        handlers: Handlers | None = None,
        *,
        deadline: Deadline | None = None,
        report: Callable[[str], None] | None = None,
        follow: bool = True,
        offload: bool = False,
    ) -> None:
        self.rules = rules
        self.handlers = handlers
        self.offload = offload
        self.report = report or (lambda _text: None)
        self.deadline = deadline if rules.regexes else None
        tracked = follow or offload or rules.offloads or rules.wants_names or handlers is not None
        self.flows: Flows | None = Flows() if tracked else None
        self.rewritten = 0
        self.offloaded = 0
        self.tallies: dict[tuple[str, Action], Tally] = {}
        self.errors: Counter[str] = Counter()
        self.names: Counter[str] = Counter()

    def decide(self, packet: Packet, now: float) -> tuple[Verdict, bool]:
        """Return a packet's verdict, and whether it is the one that ends a ClientHello.

        ``now`` is the clock, in seconds, of rates and of verdicts that last. Afterwards the packet
        has its flow, and its replacement if it is rewritten.
        """
        flow = self.flows.see(packet) if self.flows is not None else None
        if flow is not None and flow.left is not None:
            verdict: Verdict = flow.left
        else:
            verdict = self._by_rules(packet, now)
            if self.handlers is not None and verdict is self.rules.default:
                decided = self.handlers.decide(packet)
                if decided is FAILED:
                    packet.undecided()
                elif decided is not None:
                    verdict = decided
                    if verdict.lasts:
                        self.rules.remembered.add(packet, verdict, now)
        if verdict.rewrite is not None:
            self._rewrite(packet, verdict.rewrite)
        self.rewritten += packet.replacement is not None and verdict.action in _SENT_ON
        tally = self.tally(verdict)
        tally.packets += 1
        tally.octets += packet.length
        if flow is None:
            return verdict, False
        flow.packets += 1
        flow.octets += packet.length
        flow.verdict = verdict
        if flow.hello is None or flow.reported:
            return verdict, False
        flow.reported = True
        name = flow.hello.sni
        if name in self.names or len(self.names) < _MOST_NAMES:
            self.names[name] += 1
        return verdict, True

    def _by_rules(self, packet: Packet, now: float) -> Verdict:
        try:
            return self._guarded(self.rules.decide, packet, now)
        except TooLate:
            self.failed(_SLOW)
            return self.rules.default

    def _rewrite(self, packet: Packet, rewrite: Rewrite) -> None:
        try:
            packet.replacement = self._guarded(rewrite.apply, packet)
        except CannotRewrite as error:
            self.failed(f"cannot rewrite: {error}")
        except TooLate:
            self.failed(_SLOW)

    def _guarded(self, function: Callable[..., T], *arguments: Any) -> T:
        if self.deadline is None:
            return function(*arguments)
        return self.deadline.guard(function, *arguments)

    def fixed(self, packet: Packet) -> Verdict | None:
        """Return the verdict of all packets of this one's flow, if it cannot change any more."""
        if self.rules.remembered and self.rules.remembers(packet):
            return None
        flow = packet.flow
        hello = flow.hello if flow is not None and flow.settled else UNKNOWN
        return self.rules.plan(Facts.of(packet), hello).fixed

    def leaves(self, packet: Packet, verdict: Verdict) -> bool:
        """Return whether the rest of a packet's flow is left to the kernel from now on.

        Not before nothing more can be found out about it: a name that is still to come is
        waited for, since it will be reported.
        """
        flow = packet.flow
        if flow is None or not flow.settled or verdict.action not in _OFFLOADED:
            return False
        if flow.left is None:
            fixed = self.offload and self.handlers is None and self.fixed(packet) is verdict
            if not (verdict.offload or fixed):
                return False
            flow.left = verdict
            self.offloaded += 1
        return True

    def tally(self, verdict: Verdict) -> Tally:
        """Return where packets of a verdict are counted."""
        key = (verdict.by, verdict.action)
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = Tally()
        return tally

    def failed(self, what: str) -> None:
        """Count an error, and report the first of its kind."""
        self.errors[what] += 1
        if self.errors[what] == 1:
            self.report(what)

    def figures(self) -> dict[str, Any]:
        """Return what was counted: a part of the document that ends ``--json``."""
        verdicts: Counter[str] = Counter()
        rules: Counter[str] = Counter()
        for (by, action), tally in self.tallies.items():
            verdicts[str(action)] += tally.packets
            rules[by] += tally.packets
        errors = Counter(self.errors)
        if self.handlers is not None:
            for name, kinds in self.handlers.errors.items():
                errors.update({f"handler {name}: {kind}": n for kind, n in kinds.items()})
        return {
            "verdicts": dict(verdicts),
            "rules": dict(rules),
            "errors": dict(errors),
            "names": dict(self.names.most_common(_SHOWN_NAMES)),
            "offloaded": self.offloaded,
            "rewritten": self.rewritten,
        }
