"""The rules, and for each class of flows what is left of them: its plan.

How a packet is decided without asking every condition of every rule:

1. Most conditions are about what all packets of a flow's direction have in common: chain,
   interfaces, addresses, protocol, ports, the ClientHello. A :class:`Plan` is what is left when
   those are known: rules that cannot match are gone, the first that surely matches ends it.
2. Flows that no rule can tell apart share a plan (``classes``), so that nearly every new flow
   finds one ready. Plans are kept up to a limit, then all are dropped and made again.
3. A packet that carries nothing has no DNS, HTTP or text in it; such packets, one direction of
   each download, have a list of their own, and so have those that carry only text.
4. Where nothing is left to ask, the plan's verdict is :attr:`Plan.fixed`: neither Python nor the
   kernel's queue need see the rest of the flow.

Nothing here is locked: one thread, or process, has its own rules.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from nfctl.inspect.rules.classes import Classes
from nfctl.inspect.rules.expression import (
    UNKNOWN,
    Facts,
    Known,
    Leaf,
    OfFacts,
    OfHello,
    OfPayload,
    Tree,
    Unknown,
    leaves,
    simplify,
)
from nfctl.inspect.rules.payload import REGEX
from nfctl.inspect.rules.protocols import DNS_RANGES
from nfctl.inspect.rules.remembered import Remembered
from nfctl.inspect.verdict import Action, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from nfctl.errors import Where
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.payloads.tls import ClientHello
    from nfctl.inspect.rules.expression import Test
    from nfctl.inspect.rules.rate import Rate

    Row = tuple[Test, Verdict, "Rule | None"]
    Rows = tuple[tuple[Row, ...], Verdict]

_MOST_PLANS: Final = 4096
_MOST_HELLOS: Final = 1024
_WITH_HELLO: Final = frozenset({6, 17})  # TCP, UDP


class Rule:
    """One rule: ``when`` it matches, and its ``verdict``.

    ``name`` is unique, ``where`` its place in the file, ``text`` what it says, on one line.
    ``rate`` is asked last. ``malformed`` is whether it is there for malformed packets too,
    ``hello`` whether it asks for a ClientHello.
    """

    __slots__ = ("hello", "malformed", "name", "rate", "text", "verdict", "when", "where")

    def __init__(
        self,
        name: str,
        when: Tree,
        verdict: Verdict,
        *,
        rate: Rate | None = None,
        where: Where | None = None,
        text: str = "",
    ) -> None:
        self.name = name
        self.when = when
        self.verdict = verdict
        self.rate = rate
        self.where = where
        self.text = text
        found = leaves(when)
        self.hello = any(isinstance(leaf, OfHello) for leaf, _ in found)
        self.malformed = any(
            leaf.key == "malformed" and (True in leaf.values) is positive
            for leaf, positive in found
        )

    @property
    def leaves(self) -> list[Leaf]:
        """All its conditions."""
        return [leaf for leaf, _ in leaves(self.when)]

    @property
    def stateful(self) -> bool:
        """Whether it depends on, or leaves behind, more than the packet at hand."""
        return self.rate is not None or self.verdict.lasts > 0


class Plan:
    """What is left of the rules for the packets of one class; see the module."""

    __slots__ = ("_bare", "_full", "_known", "_plain", "_readers", "_rules", "_waits", "fixed")

    def __init__(self, rules: Rules, known: Known) -> None:
        self._rules = rules
        self._known = known
        self._full: Rows | None = None  # of packets that carry DNS, HTTP or QUIC
        self._plain: Rows | None = None  # that carry something else
        self._bare: Rows | None = None  # that carry nothing
        self._readers = rules.readers(known)
        #: Whether a ClientHello, once it is seen, may change something.
        self._waits = known.hello is UNKNOWN and not known.malformed
        #: The verdict of every packet, well-formed and no fragment, that needs no state; or None.
        self.fixed: Verdict | None = self._find_fixed()

    def decide(self, packet: Packet, now: float) -> Verdict:
        """Return the verdict of a packet of this plan's class; ``now`` is in seconds."""
        if self._waits and packet.flow is not None:
            flow = packet.flow
            if flow.settled or flow.hello is not None:  # this plan is no longer its flow's
                return self._rules.plan(Facts.of(packet), flow.hello).decide(packet, now)
        head = packet.headers
        if head.end > head.data:
            for read in self._readers:
                if read(packet) is not None:
                    rows, last = self._full or self._make_full()
                    break
            else:
                rows, last = self._plain or self._make_plain()
        else:
            rows, last = self._bare or self._make_bare()
        for test, verdict, special in rows:
            if test(packet):
                if special is None:
                    return verdict
                if special.rate is not None and not special.rate.over(packet, now):
                    continue
                if verdict.lasts:
                    self._rules.remembered.add(packet, verdict, now)
                return verdict
        return last

    def _make_full(self) -> Rows:
        self._full = self._rows(self._known)
        return self._full

    def _make_plain(self) -> Rows:
        self._plain = self._rows(self._known._replace(plain=True))
        return self._plain

    def _make_bare(self) -> Rows:
        self._bare = self._rows(self._known._replace(payload=False))
        return self._bare

    def _rows(self, known: Known) -> Rows:
        rules = self._rules
        rows: list[Row] = []
        for rule in rules.rules:
            if known.malformed and not rule.malformed:
                continue
            left = simplify(rule.when, known)
            if left is True and not rule.stateful:
                return tuple(rows), rule.verdict
            if left is not False:
                test = _always if left is True else left
                rows.append((test, rule.verdict, rule if rule.stateful else None))
                if left is True and rule.rate is None:
                    break
        return tuple(rows), rules.malformed if known.malformed else rules.default

    def _find_fixed(self) -> Verdict | None:
        if self._known.malformed:
            return None
        known = self._known._replace(fragment=False)
        for rule in self._rules.rules:
            surely = simplify(rule.when, known)
            if surely is True:
                return None if rule.stateful else rule.verdict
            if surely is not False:
                return None
            # It may match once the flow has shown its ClientHello.
            later = known._replace(unknown=True)
            if self._waits and rule.hello and simplify(rule.when, later) is not False:
                return None
        return self._rules.default


def _always(_packet: Packet) -> bool:
    return True


class Rules:
    """The verdict rules of a file, the first that matches decides; see the package.

    ``default`` is the verdict where none does, ``malformed`` that of malformed packets.
    ``remembered`` are the verdicts that last. What the rules need is known beforehand:
    ``wants_names`` a flow's ClientHello, ``reads_payload`` what packets carry, ``regexes`` a
    deadline, ``stateful`` a memory from packet to packet (rates, verdicts that last); what they
    answer too: ``rejects``, ``rewrites``, ``offloads``.
    """

    def __init__(
        self, rules: Sequence[Rule] = (), default: Action | Verdict = Action.ACCEPT
    ) -> None:
        self.rules = tuple(rules)
        self.default = default if isinstance(default, Verdict) else Verdict(default)
        self.malformed = Verdict(self.default.action, "malformed")
        self.remembered = Remembered()
        found = [leaf for rule in self.rules for leaf in rule.leaves]
        self._hello = [leaf for leaf in found if isinstance(leaf, OfHello)]
        self._payload = [leaf for leaf in found if isinstance(leaf, OfPayload)]
        verdicts = [rule.verdict for rule in self.rules]
        self.wants_names = bool(self._hello)
        self.rewrites = any(verdict.rewrite is not None for verdict in verdicts)
        self.reads_payload = bool(self._payload)
        self.regexes = any(
            leaf.key == "payload" and any(kind == REGEX for kind, _ in leaf.values)
            for leaf in found
        ) or any(verdict.rewrite is not None and verdict.rewrite.regex for verdict in verdicts)
        self.stateful = any(rule.stateful for rule in self.rules)
        self.offloads = any(verdict.offload for verdict in verdicts)
        self.rejects = any(v.action is Action.REJECT for v in (*verdicts, self.default))
        self._malformed = any(rule.malformed for rule in self.rules)
        dns = any(leaf.key.startswith("dns.") for leaf in found)
        self._classes = Classes(
            (leaf for leaf in found if isinstance(leaf, OfFacts)), [DNS_RANGES] if dns else []
        )
        self._plans: dict[Hashable, Plan] = {}
        self._hellos: dict[ClientHello, int] = {}

    def plan(self, facts: Facts, hello: ClientHello | Unknown | None) -> Plan:
        """Return what is left for well-formed packets with these facts.

        ``hello`` is the ClientHello of their flow, None if it has none for sure, UNKNOWN if one
        may still come.
        """
        if not self.wants_names or (hello is UNKNOWN and facts.proto not in _WITH_HELLO):
            hello = None
        return self._plan(facts, hello, malformed=False)

    def _plan(self, facts: Facts, hello: ClientHello | Unknown | None, *, malformed: bool) -> Plan:
        shown: Hashable = hello
        if hello is not None and not isinstance(hello, Unknown):
            shown = self._hellos.get(hello)
            if shown is None:
                shown = self._number(hello)
        key = (self._classes.of(facts), shown, malformed)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(self, Known(facts, hello, malformed))
        return plan

    def readers(self, known: Known) -> tuple[Callable[[Packet], object], ...]:
        """Return what reads the protocols of payloads that some condition may ask for."""
        wanted = {leaf.carried for leaf in self._payload if leaf.value(known) is None}
        return tuple(attrgetter(name) for name in sorted(wanted) if name)

    def _number(self, hello: ClientHello) -> int:
        """Return which conditions a ClientHello fulfils, as the bits of a number."""
        if len(self._hellos) >= _MOST_HELLOS:
            self._hellos.clear()
        bits = sum(1 << number for number, leaf in enumerate(self._hello) if leaf.of(hello))
        self._hellos[hello] = bits
        return bits

    def decide(self, packet: Packet, now: float) -> Verdict:
        """Return the verdict of any packet; ``now`` is in seconds, by one and the same clock."""
        if self.remembered:
            found = self.remembered.find(packet, now)
            if found is not None:
                return found
        if packet.headers.malformed:
            if not self._malformed:
                return self.malformed
            return self._plan(Facts.of(packet), UNKNOWN, malformed=True).decide(packet, now)
        flow = packet.flow
        if flow is None:
            hello: ClientHello | Unknown | None = UNKNOWN
        else:
            hello = flow.hello if flow.settled or flow.hello is not None else UNKNOWN
        return self.plan(Facts.of(packet), hello).decide(packet, now)

    def remembers(self, packet: Packet) -> bool:
        """Whether a verdict that lasts may be remembered for a packet."""
        return self.remembered.holds(packet)


#: No rules at all: every packet is accepted.
EMPTY: Final = Rules()
