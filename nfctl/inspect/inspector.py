"""What is done with each queued packet: read it, decide it, tell the kernel, then show it.

:meth:`Inspector.batch` takes the packets that wait, in their order. For most of them there is
nothing left to find out: the verdict of their flow cannot change any more, and is found by
the packet's place, mark, protocol, addresses and ports (:attr:`Inspector._known`). That works
without making an object of the packet, and is the reason why a hundred rules cost no more than
one. Anything unusual about a packet (options, fragments, lengths that disagree, a flag that
opens or ends a connection) sends it the long way, through :meth:`Inspector._inspect`.

The kernel is told before anybody is shown anything: a slow terminal delays no packet of a batch.
"""

from __future__ import annotations

import heapq
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nfctl.inspect.marks import DEFAULT_MASK, Marks
from nfctl.inspect.packet import PROTOCOLS, Packet
from nfctl.inspect.queue import NF_ACCEPT, NF_DROP, NF_REPEAT
from nfctl.inspect.text import address
from nfctl.inspect.verdict import Action, Verdict
from nfctl.ruleset.names import HOOKS

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.countdown import Countdown
    from nfctl.inspect.decider import Decider, Tally
    from nfctl.inspect.flows import Flow
    from nfctl.inspect.queue import Message, Queue

# IPv4 without options: total length, fragment, protocol, addresses and ports; then UDP's length,
# TCP's data offset and flags.
_IPV4 = struct.Struct(">xxHxxHxBxx12sHxxxxxxBB").unpack_from
# IPv6 without extension headers: payload length, protocol, addresses and ports; the same.
_IPV6 = struct.Struct(">xxxxHBx36sHxxxxxxBB").unpack_from
_MARK = struct.Struct(">I")
_STAMP = struct.Struct(">QQ")
_NONE4 = bytes(4)
_TCP, _UDP = 6, 17
_OPEN_OR_END, _SYN = 0x07, 0x02  # FIN, SYN, RST
_INITIAL = 1207  # UDP's length of a datagram that holds a client's QUIC Initial is more
_UNCHECKED = 0x01  # NFQA_SKB_CSUMNOTREADY
_MOST_KNOWN = 65536  # flows (a few hundred bytes each)
_MOST_REPEATED = 8192  # packets that were sent through mangle again; more than a queue's length
_FEW, _MANY = 8, 32  # times that a packet comes again before it is let go
_AT_ONCE = 0.5  # seconds between two of them
_MOST_HANDLED = 8  # packets at once for handlers, which may be slow
_LONG = 0.002  # seconds after which verdicts are sent although the batch goes on
_RECENT = 3.0  # seconds


_Key = tuple[int, bytes, bytes, bytes, int, bytes]


class Known:
    """The verdict of a flow, as the kernel is told it."""

    __slots__ = ("code", "flow", "mark", "tally")

    def __init__(self, code: int, mark: bytes | None, tally: Tally, flow: Flow | None) -> None:
        self.code = code
        self.mark = mark
        self.tally = tally
        self.flow = flow

    @property
    def unless_quic(self) -> Known | None:
        """This, for a datagram that may be QUIC's Initial: not if flows are looked at."""
        return self if self.flow is None else None


class Inspector:
    """Decides the packets of one queue.

    ``show(packet, verdict, hello)`` is called for each packet after its verdict was sent, where
    packets are shown or captured; ``hello`` is whether this packet completed its flow's
    ClientHello. ``logged(packet, verdict)`` is called for verdicts that say ``log``. ``limit``
    counts how many are shown, None for all. ``rejects`` is whether rules in filter reject what is
    marked so; else it is dropped.
    """

    def __init__(
        self,
        queue: Queue,
        decider: Decider,
        *,
        show: Callable[[Packet, Verdict, bool], None] | None = None,
        logged: Callable[[Packet, Verdict], None] | None = None,
        marks: Marks | None = None,
        limit: Countdown | None = None,
        rejects: bool = True,
    ) -> None:
        self.queue = queue
        self.decider = decider
        self.show = show
        self.logged = logged
        self.marks = marks or Marks.of(DEFAULT_MASK)
        self.limit = limit
        if decider.handlers is not None:
            queue.most = min(queue.most, _MOST_HANDLED)
        self.rejects = rejects
        self._shown: list[tuple[Packet, Verdict, bool]] = []
        self._known: dict[_Key, Known] = {}
        # What has to see every packet leaves nothing to be known beforehand.
        self._quick = show is None and decider.handlers is None
        self.seen = 0
        self.octets = 0
        self._repeated: dict[int, tuple[int, float]] = {}
        self.now = 0.0
        self._devices: dict[bytes, str] = {_NONE4: ""}
        self._devices_until = 0.0

    def batch(self) -> int:
        """Decide the packets that wait, at most a buffer full; return how many there were."""
        queue = self.queue
        offsets = queue.fill()
        if not offsets:
            return 0
        now = self.now = time.time()
        buffer, read, verdict, known = queue.buffer, queue.read, queue.verdict, self._known
        octets = others = 0
        for at in offsets:
            message = read(buffer, at)
            if message is None:
                others += 1
                continue
            ident, hook, indev, outdev, mark, _, length, _, start, end = message
            size = end - start
            if length != _NONE4:
                size = _MARK.unpack(length)[0]
            entry = None
            # said for both versions: one text for the two costs a tenth of the packets per second
            if buffer[start] == 0x45 and end - start >= 28:
                total, fragment, proto, key, udp, offset, flags = _IPV4(buffer, start)
                if total == size and not fragment & 0x3FFF:
                    if proto == _UDP:
                        if udp == total - 20:
                            entry = known.get((hook, indev, outdev, mark, proto, key))
                            if udp > _INITIAL and buffer[start + 28] > 0xBF and entry is not None:
                                entry = entry.unless_quic  # it may begin a connection
                    elif (
                        proto == _TCP
                        and not flags & _OPEN_OR_END
                        and offset >= 0x50
                        and 20 + (offset >> 4) * 4 <= end - start
                    ):
                        entry = known.get((hook, indev, outdev, mark, proto, key))
            elif buffer[start] >> 4 == 6 and end - start >= 48:
                total, proto, key, udp, offset, flags = _IPV6(buffer, start)
                if total == size - 40:
                    if proto == _UDP:
                        if udp == total:
                            entry = known.get((hook, indev, outdev, mark, proto, key))
                            if udp > _INITIAL and buffer[start + 48] > 0xBF and entry is not None:
                                entry = entry.unless_quic
                    elif (
                        proto == _TCP
                        and not flags & _OPEN_OR_END
                        and offset >= 0x50
                        and 40 + (offset >> 4) * 4 <= end - start
                    ):
                        entry = known.get((hook, indev, outdev, mark, proto, key))
            octets += size
            if entry is None:
                self._inspect(message, now)
                if time.time() > now + _LONG:
                    queue.send()  # the others need not wait
                    now = self.now = time.time()
                continue
            verdict(ident, entry.code, entry.mark)
            tally = entry.tally
            tally.packets += 1
            tally.octets += size
            flow = entry.flow
            if flow is not None:
                flow.packets += 1
                flow.octets += size
                flow.last = now
        queue.send()
        decided = len(offsets) - others
        self.seen += decided
        self.octets += octets
        wanted = decided if self.limit is None else self.limit.take(decided)
        if self._shown:
            self._show(wanted)
        return len(offsets)

    def dismiss(self) -> int:
        """Give the packets that wait the default verdict, uninspected; return how many."""
        offsets = self.queue.fill()
        default = self.decider.rules.default
        for at in offsets:
            message = self.queue.read(self.queue.buffer, at)
            if message is not None:
                ident, _, _, _, mark, *_ = message
                self.queue.verdict(ident, *self.code(default, _MARK.unpack(mark)[0], False))
                self.decider.tally(default).packets += 1
        self.queue.send()
        self.seen += len(offsets)
        return len(offsets)

    @property
    def enough(self) -> bool:
        """Whether as many packets were seen as there was a limit for."""
        return self.limit is not None and self.limit.over

    def _show(self, wanted: int) -> None:
        shown, self._shown = self._shown, []
        if self.logged is not None:
            for packet, verdict, _ in shown:
                if verdict.log:
                    self.logged(packet, verdict)
        if self.show is not None:
            for packet, verdict, hello in shown[:wanted]:
                self.show(packet, verdict, hello)

    # --- the long way -------------------------------------------------------------------------

    def _inspect(self, message: Message, now: float) -> None:
        ident, hook, indev, outdev, mark, info, length, stamp, start, end = message
        seconds = now
        if stamp:
            whole, micro = _STAMP.unpack(stamp)
            seconds = whole + micro / 1e6
        remembered = self.decider.rules.remembered
        packet = Packet(
            bytes(memoryview(self.queue.buffer)[start:end]),
            _MARK.unpack(length)[0],
            chain=HOOKS[hook] if hook < len(HOOKS) else str(hook),
            indev=self._device(indev),
            outdev=self._device(outdev),
            fwmark=_MARK.unpack(mark)[0],
            time=seconds,
            checked=not (info[3] & _UNCHECKED),
        )
        if packet.headers.flags & _SYN:
            # what was known is of the connection before; the same ports may serve again
            self._known.pop(_key(message, packet), None)
        lasting = remembered.changes
        verdict, hello = self.decider.decide(packet, now)
        if remembered.changes != lasting:
            self._known.clear()  # flows whose verdict was known may be among them
        flow = packet.flow
        offloading = self.decider.leaves(packet, verdict)
        repeating = offloading or verdict.action is Action.REPEAT
        if repeating and self._came_back(packet, _FEW if offloading else _MANY):
            offloading = repeating = False
            if verdict.action is Action.REPEAT:
                verdict = replace(verdict, action=Action.ACCEPT)
        code, new_mark = self.code(verdict, packet.fwmark, offloading)
        if packet.replacement is not None and code != NF_DROP:
            self.queue.replace(ident, code, new_mark, packet.replacement)
        else:
            self.queue.verdict(ident, code, new_mark)
        if self.show is not None or verdict.log:
            self._shown.append((packet, verdict, hello))
        elif self._quick and not repeating and (flow is None or flow.settled):
            tally = self.decider.tally(verdict)
            self._remember(message, packet, Known(code, new_mark, tally, flow), verdict)

    def _came_back(self, packet: Packet, rounds: int) -> bool:
        """Return whether a packet that is sent through mangle again keeps losing its mark there.

        A rule that sets the whole mark would have it queued again without end. Some packets are
        alike to the last byte, above all those of IPv6, which have no number: so many of them,
        in quick succession, may be different ones.
        """
        ours, repeated = hash(packet.data), self._repeated
        times, last = repeated.pop(ours, (0, 0.0))
        if self.now > last + _AT_ONCE:
            times = 0
        if times >= rounds:
            self.decider.failed("a packet came again: does a rule of mangle overwrite our mark?")
            return True
        if len(repeated) >= _MOST_REPEATED:
            del repeated[next(iter(repeated))]
        repeated[ours] = times + 1, self.now
        return False

    def _remember(self, message: Message, packet: Packet, entry: Known, verdict: Verdict) -> None:
        head = packet.headers
        if head.proto not in {_TCP, _UDP} or head.fragment or head.more or head.extensions:
            return
        if packet.malformed or verdict.rewrite is not None:
            return
        if self.decider.fixed(packet) is not verdict:
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[_key(message, packet)] = entry

    def code(self, verdict: Verdict, fwmark: int, offloading: bool) -> tuple[int, bytes | None]:
        """Return what the kernel is told for a verdict: its number, and the new mark if any."""
        marks, mark = self.marks, fwmark
        if verdict.mark is not None:
            value, mask = verdict.mark
            mark = mark & ~mask | value
        action, code = verdict.action, NF_ACCEPT
        if offloading:
            code = NF_REPEAT
            own = marks.accepted if action is Action.ACCEPT else marks.dropped
        elif action is Action.DROP:
            return NF_DROP, None
        elif action is Action.REJECT:
            if not self.rejects:
                return NF_DROP, None
            own = marks.dropped  # a rule in filter rejects what has this mark
        elif action is Action.REPEAT:
            code, own = NF_REPEAT, marks.seen
        else:
            own = 0
        mark = mark & ~marks.mask | own
        return code, None if mark == fwmark else _MARK.pack(mark)

    def _device(self, number: bytes) -> str:
        """Return an interface's name; asked of the kernel anew every few seconds."""
        if self.now > self._devices_until:
            self._devices = {_NONE4: ""}
            self._devices_until = self.now + 5.0
        name = self._devices.get(number)
        if name is None:
            index = int(_MARK.unpack(number)[0])
            try:
                name = socket.if_indextoname(index)
            except OSError:
                name = f"if{index}"
            self._devices[number] = name
        return name

    # --- figures ------------------------------------------------------------------------------

    def busiest(self, most: int = 200) -> list[list[Any]]:
        """Return the flows with the most bytes: see ``nfctl.cli.inspect_top``."""
        table = self.decider.flows
        if table is None:
            return []
        # half of them are the largest of those seen just now, so that a new one gets in
        flows = table.live()
        recent = self.now - _RECENT
        found = heapq.nlargest(
            most // 2, (flow for flow in flows if flow.last >= recent), key=_octets
        )
        found += heapq.nlargest(most - len(found), flows, key=_octets)
        return [_row(flow) for flow in dict.fromkeys(found)]

    def figures(self) -> dict[str, Any]:
        """Return what was counted, as a document: see ``nfctl.inspect.run.Report``."""
        return {
            "packets": self.seen,
            "octets": self.octets,
            **self.decider.figures(),
        }


def _octets(flow: Flow) -> int:
    return flow.octets


def _key(message: Message, packet: Packet) -> _Key:
    _, hook, indev, outdev, mark, *_ = message
    data, head = packet.data, packet.headers
    flow = data[12:24] if head.version == 4 else data[8:44]
    return hook, indev, outdev, mark, head.proto, flow


def _row(flow: Flow) -> list[Any]:
    proto, src, dst, sport, dport = flow.key
    verdict = flow.verdict
    return [
        address(src), sport, address(dst), dport, PROTOCOLS.get(proto) or str(proto),
        flow.packets, flow.octets, flow.hello.sni if flow.hello is not None else flow.http_host,
        str(verdict.action) if isinstance(verdict, Verdict) else "", flow.last,
    ]  # fmt: skip
