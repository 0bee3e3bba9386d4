"""The flows before two copies of the firewall: which of them the change decides differently."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from nfctl.control.flush.copy import UNSENT, UNTRACKED, batch
from nfctl.control.flush.fates import Ports
from nfctl.control.flush.worlds import Worlds, changed_lines
from nfctl.errors import NfctlError
from nfctl.kernel import flows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nfctl.control.flush.copy import Fate, Opening, Rehearsal

#: Lines of rules that are loaded for all worlds together, at most.
_MOST_LINES: Final = 2_000_000
#: What is added to a text's lines: loading one costs that much, however short it is.
_LINES_AT_LEAST: Final = 2000
#: Matches of which every outcome comes true for some connections.
_CHANCE: Final = frozenset({"statistic"})


@dataclass(slots=True)
class Case:
    """A flow on trial. ``tuple`` is its original one; ``possible`` and so on fill by and by."""

    entry: flows.Entry
    tuple: flows.Tuple
    opening: Opening
    explained: bool = False  # the old rules may have made it what it is
    differs: bool = False  # old and new rules decide differently
    possible: bool = False  # the new rules may make it what it is
    trouble: str = ""  # why it cannot be judged

    @property
    def has(self) -> bytes:
        """What it is: its reply tuple and zones."""
        return self.entry.reply + self.entry.zones


class Trial:
    """The flows of one family before two copies, the one with the old rules and the other.

    ``doubtful`` are ipsets whose contents are not known.
    """

    def __init__(
        self,
        family: int,
        before: str,
        after: str,
        copies: Sequence[Rehearsal],
        doubtful: Iterable[str] = (),
    ) -> None:
        doubtful = frozenset(doubtful)
        self._family = family
        self._copies = copies
        self._rules = [Worlds(text, family, doubtful) for text in (before, after)]
        lines = before.count("\n") + after.count("\n") + _LINES_AT_LEAST
        self._count = max(rules.count for rules in self._rules)
        self._most = max(2, _MOST_LINES // lines)
        uncertain: set[str] = set()
        if self._count > 1:
            lines_changed = changed_lines(before, after)
            for rules in self._rules:
                uncertain |= rules.uncertain(lines_changed)
        #: What the change asks for that nobody can tell.
        self._uncertain = uncertain - _CHANCE
        self._left: list[Case] = []

    def run(self, cases: Iterator[Case]) -> None:
        """Rehearse the flows in all worlds."""
        for world in range(min(self._count, self._most)):
            for copy, rules in zip(self._copies, self._rules, strict=True):
                copy.ask("load", {self._family: rules.text(min(world, rules.count - 1))})
            for copy in self._copies:
                copy.answer()
            self._left = list(self._rehearse(cases))
            cases = iter(self._left)

    def sentence(self) -> Iterator[tuple[flows.Entry, str]]:
        """Yield the flows that are to be deleted, and, with the reason, those not to be judged."""
        others: bool | None = None
        for case in self._left:
            entry, why = case.entry, case.trouble
            if not why and (not case.differs or (case.possible and not self._uncertain)):
                continue
            if not why and case.possible:
                names = ", ".join(f"-m {name}" for name in sorted(self._uncertain))
                why = f"what is decided depends on {names}"
            elif not why and not case.explained and entry.zones:
                why = "the rules before do not explain its zone"
            elif not why and not case.explained:
                others = _other_rules() if others is None else others
                why = "nf_tables may have a hand in it" if others else ""
            if not why and self._count > self._most:
                why = "the rules leave too many choices"
            yield entry, why

    def _rehearse(self, cases: Iterator[Case]) -> Iterator[Case]:
        """Rehearse flows in one world; yield those of which more is to be known, or told."""
        ports = Ports()
        size = batch()
        later: list[Case] = []
        while True:
            some: dict[bytes, Case] = {}
            queue, later = later, []
            for case in [*queue, *islice(cases, size - len(queue))]:
                # The same tuple in another zone waits for its turn.
                if some.setdefault(case.entry.original, case) is not case:
                    later.append(case)
            if not some:
                return
            yield from self._judge(list(some.values()), ports)

    def _judge(self, cases: list[Case], ports: Ports) -> Iterator[Case]:
        again = []
        for case, old, new in self._ask("together", cases):
            if old == new or _fits(case, new):
                self._note(case, old, new)
            else:
                again.append(case)
        if again:
            self._judge_again(again, ports)
        for case in cases:
            settled = self._count == 1 or (case.possible and not self._uncertain)
            if case.trouble or case.differs or not settled:
                yield case

    def _judge_again(self, cases: list[Case], ports: Ports) -> None:
        """Judge flows each for itself, and as often as their ports need it."""
        left = cases
        for attempt in range(1, ports.MOST + 1):
            asked = list(self._ask("alone", left))
            for case, old, new in asked:
                ports.note(case.tuple, old, new)
            left = []
            for case, old, new in asked:
                if not ports.known(case.tuple, case.has, old, new) and attempt < ports.MOST:
                    left.append(case)
                    continue
                choice = ports.possible(case.tuple, case.has, old, new)
                self._note(case, old, new, choice)
            if not left:
                return

    def _ask(self, how: str, cases: Sequence[Case]) -> Iterator[tuple[Case, Fate, Fate]]:
        openings = [case.opening for case in cases]
        for copy in self._copies:
            copy.ask(how, self._family, openings)
        answers = [copy.answer() for copy in self._copies]
        for case, old, new in zip(cases, *answers, strict=True):
            if _unsent(old) == _unsent(new):
                yield case, old, new
            else:
                # It is the rules that the one cannot be sent with: to no place that there is.
                yield case, None if _unsent(old) else old, None if _unsent(new) else new

    def _note(self, case: Case, old: Fate, new: Fate, choice: bool = False) -> None:
        if new is not None and _unsent(new):
            case.trouble = f"its first packet cannot be sent in a copy: {new[1:].decode()}"
            return
        case.explained = case.explained or _fits(case, old) or _is_like(case, old)
        if choice or _fits(case, new):
            case.possible = True
        if old != new and not choice and not _fits(case, new):
            case.differs = True


def _unsent(fate: Fate) -> bool:
    """Whether it is no fate, but why the packet was not sent."""
    return fate is not None and fate[:1] == UNSENT


def _fits(case: Case, fate: Fate) -> bool:
    """Whether a fate is what the flow has."""
    if fate == UNTRACKED:
        ends, reply = case.tuple, flows.parse(case.entry.reply)
        return (
            not case.entry.zones
            and (reply.source, reply.sport) == (ends.destination, ends.dport)
            and (reply.destination, reply.dport) == (ends.source, ends.sport)
        )
    return fate == case.has


def _is_like(case: Case, fate: Fate) -> bool:
    """Whether a fate is what the flow has but for its ports."""
    if fate is None or fate == UNTRACKED:
        return False
    one, other = flows.parse(fate), flows.parse(case.entry.reply)
    zones = fate[len(case.entry.reply) :]
    return zones == case.entry.zones and (one.source, one.destination) == (
        other.source, other.destination
    )  # fmt: skip


def _other_rules() -> bool:
    """Whether nf_tables has rules here that may have a hand in what becomes of packets."""
    from nfctl.kernel.nftdump import nft_tables

    try:
        return any(table.acts for table in nft_tables())
    except NfctlError:  # the kernel has none
        return False
