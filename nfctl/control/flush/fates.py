"""Whether a flow's ports may come from rules that leave the kernel a choice of ports.

``--random``, ``--random-fully`` and ranges of ports give each connection some port; so does any
source NAT whose port is taken. What one rehearsal gives then says little. The ports that many
give do: those of other flows that go the same way, or of the same flow, rehearsed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.control.flush.copy import UNSENT, UNTRACKED
from nfctl.kernel import flows

if TYPE_CHECKING:
    from collections.abc import Hashable

    from nfctl.control.flush.copy import Fate
    from nfctl.kernel.flows import Tuple


class _Seen:
    """The ports that one choice has given."""

    __slots__ = ("first", "last", "times")

    def __init__(self) -> None:
        self.first, self.last, self.times = 0x10000, -1, 0

    def add(self, port: int) -> None:
        self.first, self.last = min(self.first, port), max(self.last, port)
        self.times += 1

    @property
    def varies(self) -> bool:
        return self.first < self.last


class _Choice(NamedTuple):
    """One of a reply's ports: whose choice it is, and the port. ``kept`` if it is the original."""

    key: Hashable
    port: int
    kept: bool


class Ports:
    """The ports that the old rules and the new ones gave to flows, in one world."""

    #: How often a way is looked at before its port is taken to be no choice.
    MOST: Final = 16

    def __init__(self) -> None:
        self._seen: dict[Hashable, _Seen] = {}

    def note(self, original: Tuple, old: Fate, new: Fate) -> None:
        """Note what one rehearsal of a flow gave."""
        for side, fate in enumerate((old, new)):
            if reply := _reply(fate):
                for choice in _choices(original, reply, side):
                    if not choice.kept:
                        self._seen.setdefault(choice.key, _Seen()).add(choice.port)

    def known(self, original: Tuple, has: bytes, old: Fate, new: Fate) -> bool:
        """Whether enough was seen of a flow's way to say whether it may have the ports it has."""
        reply, now = _reply(new), flows.parse(has)
        if old == new or reply is None or not _same_way(reply, now):
            return True
        before = _reply(old)
        wanted = [*_choices(original, reply, 1), *(_choices(original, before, 0) if before else ())]
        return all(
            choice.kept or (seen := self._seen[choice.key]).varies or seen.times >= self.MOST
            for choice in wanted
        )

    def possible(self, original: Tuple, has: bytes, old: Fate, new: Fate) -> bool:
        """Whether the new rules may give a flow the ports that it ``has``, by their choice.

        ``old`` and ``new`` are the fates of its first packet alone.
        """
        reply, now, before = _reply(new), flows.parse(has), _reply(old)
        if reply is None or not _same_way(reply, now):
            return False
        pairs = zip(
            _choices(original, reply, 1),
            _choices(original, now, 1),
            _choices(original, before, 0) if before else (None, None),
            (False, True),
            strict=True,
        )
        return all(self._may_be(*pair) for pair in pairs)

    def _may_be(self, new: _Choice, now: _Choice, old: _Choice | None, source: bool) -> bool:
        if new.port == now.port:
            return True
        before = self._seen.get(old.key) if old is not None and not old.kept else None
        if new.kept:
            # A source port is changed where another flow has it; not so where a rule said one.
            return source and (before is None or before.varies)
        after = self._seen[new.key]
        if not after.varies:
            return False
        if after.first <= now.port <= after.last:
            return True
        # Of the same range, some ports are likely to be beyond those that were seen.
        return before is not None and before.varies and (
            before.first <= after.last and after.first <= before.last
        )  # fmt: skip


def _reply(fate: Fate) -> Tuple | None:
    if fate is None or fate[:1] in {UNTRACKED, UNSENT}:
        return None
    return flows.parse(fate)


def _same_way(one: Tuple, other: Tuple) -> bool:
    """Whether two replies are between the same addresses."""
    return (one.source, one.destination) == (other.source, other.destination)


def _choices(original: Tuple, reply: Tuple, side: int) -> tuple[_Choice, _Choice]:
    """Return what DNAT chose, and what SNAT did."""
    icmp = original.protocol in {flows.ICMP, flows.ICMPV6}
    port, was = (reply.identifier, original.identifier) if icmp else (reply.dport, original.sport)
    to = (side, "to", original.protocol, original.destination, original.dport, reply.source)
    kept = reply.sport == original.dport
    return (
        _Choice(to, reply.sport, kept),
        _Choice((side, "from", original.protocol, reply.destination), port, port == was),
    )
