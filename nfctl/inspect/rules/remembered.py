"""Verdicts that last: what ``for`` has decided for a flow, a source or a destination."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect.verdict import Action, Per

if TYPE_CHECKING:
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.verdict import Verdict

MOST: Final = 65536
_LASTS: Final = (Per.FLOW, Per.SOURCE, Per.DESTINATION)
_REFUSED: Final = frozenset({Action.DROP, Action.REJECT})
_LEAST: Final = 1.0  # seconds between two searches for what has ended

Key = tuple[Any, ...] | bytes


def key_of(packet: Packet, per: Per) -> Key:
    """Return whose packet it is; b"" if that is not known. Both directions are one flow."""
    head = packet.headers
    if per is Per.SOURCE:
        return head.src
    if per is Per.DESTINATION:
        return head.dst
    if not head.src:
        return b""
    flow = packet.flow
    if flow is not None and head.icmp is not None:  # its identifier, for ports
        proto, src, dst, sport, dport = flow.key
    else:
        proto, src, dst, sport, dport = head.proto, head.src, head.dst, head.sport, head.dport
    if (src, sport) <= (dst, dport):
        return proto, src, dst, sport, dport
    return proto, dst, src, dport, sport


class Remembered:
    """What was decided for some time: ``most`` verdicts of each of the three kinds.

    Where more come, the one that was asked for longest ago makes room. Empty, it is false, so
    that a packet's way need not pass here. ``changes`` grows with each verdict that is new: who
    keeps verdicts of flows forgets them then. Times are seconds of the clock that is passed in.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.changes = 0
        self._kinds: dict[Per, OrderedDict[Key, tuple[Verdict, float]]] = {}
        self._next = 0.0  # when the first of them may have ended
        self._seen = 0.0  # the latest time that was passed in

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._kinds)

    def add(self, packet: Packet, verdict: Verdict, now: float) -> None:
        """Decide packets like this one the same way for as long as the verdict lasts."""
        key = key_of(packet, verdict.per)
        if not key:
            return
        kind = self._kinds.get(verdict.per)
        if kind is None:
            # In the order in which they are asked, whatever came first.
            kinds = {**self._kinds, verdict.per: OrderedDict()}
            self._kinds = {per: kinds[per] for per in _LASTS if per in kinds}
            kind = self._kinds[verdict.per]
        elif key not in kind and len(kind) >= self.most:
            kind.popitem(last=False)
        end = now + verdict.lasts
        kind[key] = (verdict, end)
        kind.move_to_end(key)
        self._next = min(self._next, end) if self._next else end
        self.changes += 1

    def find(self, packet: Packet, now: float) -> Verdict | None:
        """Return what was decided for a packet's flow, else its source, else its destination.

        A malformed packet is never accepted by it: what it says of itself may be wrong.
        """
        if now >= self._next:
            self._forget(now)
        for per, kind in self._kinds.items():
            key = key_of(packet, per)
            found = kind.get(key)
            if found is None:
                continue
            verdict, end = found
            if now >= end:
                del kind[key]
                continue
            if packet.headers.malformed and verdict.action not in _REFUSED:
                continue
            kind.move_to_end(key)
            return verdict
        return None

    def holds(self, packet: Packet) -> bool:
        """Whether something is remembered for a packet, ended or not."""
        return any(key_of(packet, per) in kind for per, kind in self._kinds.items())

    def _forget(self, now: float) -> None:
        ends = []
        kept: dict[Per, OrderedDict[Key, tuple[Verdict, float]]] = {}
        for per, kind in self._kinds.items():
            left = OrderedDict((key, value) for key, value in kind.items() if value[1] > now)
            if left:
                kept[per] = left
                ends.append(min(end for _, end in left.values()))
        self._kinds = kept
        self._next = max(min(ends), now + _LEAST) if ends else 0.0
