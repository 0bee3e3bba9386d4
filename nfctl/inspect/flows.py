"""What is known of each flow, the name it asks for above all, with a ClientHello in pieces too.

A flow is both directions of a connection. How the table stays small, whatever comes:

1. It has a limit of flows; the one not seen for longest makes room for a new one.
2. Only a flow whose ClientHello has begun and not ended keeps bytes, ``most`` of them; so many
   flows may wait like that, and the one that began first makes room. Both are counted in
   :attr:`Flows.given_up`, and have no name.
3. A flow that has a name, or can have none any more, is settled and keeps no bytes.

Nothing here is locked: one thread, or process, has its own table.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect.headers import ICMP, ICMPV6, TCP, UDP
from nfctl.inspect.payloads import quic, tls

if TYPE_CHECKING:
    from nfctl.inspect.headers import Headers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.payloads.tls import ClientHello

Key = tuple[int, bytes, bytes, int, int]

PIECES: Final = 1024  # TCP segments of one ClientHello that are looked at
DATAGRAMS: Final = 64  # the same, of QUIC
INITIAL: Final = 1200  # bytes, at least, of a datagram with a client's Initial
ENDED: Final = 1024  # flows that have ended and are still found by their last packets
ENDED_FOR: Final = 60.0  # seconds

_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_LONG_HEADER = 0xC0
_BOTH = 3  # FIN of the one direction is 1, of the other 2
_ROUND = 1 << 32  # sequence numbers
_RECORD = b"\x16\3"  # how a TLS stream begins
# Echo, timestamp, information, address mask; IPv6's echo: those have an identifier.
_WITH_IDENT = {ICMP: frozenset({0, 8, 13, 14, 15, 16, 17, 18}), ICMPV6: frozenset({128, 129})}


class Flow:
    """One flow, and what was found out about it.

    ``key`` is (protocol, source, destination, source port, destination port), from the client
    to the server if its beginning was seen, else as its first packet went; ICMP's echo has its
    identifier for ports. ``hello`` is its ClientHello, ``settled`` whether none can come any
    more. ``first`` and ``last`` are when it was seen, in seconds since 1970.

    Others keep here what is theirs: ``packets`` and ``octets``, ``http_host``, ``reported``, the
    last ``verdict``, and ``left``, the verdict with which the flow was left to the kernel.
    """

    __slots__ = (
        "_base", "_dcid", "_fins", "_forth", "_looked", "_reader", "_spoken", "_sure", "first",
        "hello", "http_host", "key", "last", "left", "octets", "packets", "reported", "settled",
        "verdict",
    )  # fmt: skip

    def __init__(self, key: Key, now: float, *, settled: bool = False) -> None:
        self.key = key
        self.hello: ClientHello | None = None
        self.settled = settled
        self.http_host = ""
        self.first = self.last = now
        self.packets = 0
        self.octets = 0
        self.reported = False
        self.verdict: Any = None
        self.left: Any = None
        self._base = -1  # the sequence number of the client's first byte; -1: not known
        self._sure = False  # whether the server has said so
        self._forth = True  # whether the client is the source of the key
        self._spoken = False  # whether either of them has sent data
        self._fins = 0
        self._looked = 0  # segments or datagrams that were searched for a ClientHello
        self._dcid = b""  # of QUIC: where its keys stem from
        self._reader: tls.Reader | None = None


class Flows:
    """The flows that are known: ``limit`` of them, ``waiting`` with half a ClientHello.

    ``most`` is in bytes, of each ClientHello. ``given_up`` counts flows without a name because
    one of these bounds was passed, ``evicted`` flows that made room for others.
    """

    def __init__(self, limit: int = 65536, waiting: int = 4096, most: int = tls.MOST) -> None:
        self.limit = limit
        self.waiting = waiting
        self.most = most
        self.given_up = 0
        self.evicted = 0
        self._flows: OrderedDict[Key, Flow] = OrderedDict()
        self._waiting: dict[Key, Flow] = {}
        self._ended: dict[Key, Flow] = {}

    def __len__(self) -> int:
        return len(self._flows)

    def live(self) -> list[Flow]:
        """Return the flows, the one seen last at the end."""
        return list(self._flows.values())

    def see(self, packet: Packet) -> Flow | None:
        """Find or make the flow of a packet, and read its ClientHello on.

        None for what has no flow: fragments but the first, what is malformed or no IP.
        """
        head = packet.headers
        proto = head.proto
        if head.malformed or head.fragment or proto < 0:
            return None
        if head.icmp is None:
            key = (proto, head.src, head.dst, head.sport, head.dport)
        else:
            key = _icmp_key(packet, head)
        flow = self._flows.get(key)
        forth = True
        if flow is None:
            flow = self._flows.get((proto, key[2], key[1], key[4], key[3]))
            forth = False
        if flow is not None:
            if proto == TCP:
                anew = head.flags & _SYN and self._anew(flow, head, forth)
            else:
                anew = flow.settled and proto == UDP and self._initial(flow, packet, head)
            if not anew:
                self._flows.move_to_end(flow.key)
                flow.last = packet.time
                packet.flow = flow
                if flow.settled and not (proto == TCP and head.flags & (_FIN | _RST)):
                    return flow
                return self._follow(flow, packet, head, forth)
            self.forget(flow)
        return self._begin(key, packet, head)

    def forget(self, flow: Flow) -> None:
        """Drop a flow from the table; its next packet begins another."""
        self._settle(flow)
        if self._flows.get(flow.key) is flow:
            del self._flows[flow.key]

    # --- flows that begin and end -------------------------------------------------------------

    def _anew(self, flow: Flow, head: Headers, forth: bool) -> bool:
        """Return whether a SYN opens another connection between the same ports."""
        if head.flags & _ACK:
            return False
        return flow._spoken or flow._fins != 0 or not forth

    def _initial(self, flow: Flow, packet: Packet, head: Headers) -> bool:
        """Return whether a datagram opens another QUIC connection between the same ports.

        Or the first, behind something else. A client's Initial fills 1,200 bytes (RFC 9000, 14.1).
        """
        if head.end - head.data < INITIAL or packet.data[head.data] < _LONG_HEADER:
            return False
        found = quic.read(packet.data[head.data : head.end])
        packet._quic = found
        return found is not None and bool(found.crypto) and found.original != flow._dcid

    def _begin(self, key: Key, packet: Packet, head: Headers) -> Flow:
        """Make a flow of its first packet; find one that has ended just now."""
        proto = key[0]
        forth = True
        if proto == TCP:
            ended = self._end_of(key, packet, head)
            if ended is not None:
                packet.flow = ended
                return ended
            forth = head.flags & (_SYN | _ACK) != _SYN | _ACK
            if not forth:
                key = (proto, key[2], key[1], key[4], key[3])
        flow = Flow(key, packet.time, settled=proto not in {TCP, UDP})
        flows = self._flows
        if len(flows) >= self.limit:
            _, oldest = flows.popitem(last=False)
            self.evicted += 1
            if oldest._reader is not None:
                self.given_up += 1
            self._settle(oldest)
        flows[key] = packet.flow = flow
        return flow if flow.settled else self._follow(flow, packet, head, forth)

    def _end_of(self, key: Key, packet: Packet, head: Headers) -> Flow | None:
        """Return the flow that a packet is the last acknowledgement of, or the like."""
        ended = self._ended
        if not ended:
            return None
        flow = ended.get(key) or ended.get((TCP, key[2], key[1], key[4], key[3]))
        if flow is None:
            return None
        # Data is looked at again: it is not the end, if what went before was no real reset.
        if head.flags & _SYN or head.end > head.data or packet.time > flow.last + ENDED_FOR:
            ended.pop(flow.key, None)
            return None
        flow.last = packet.time
        return flow

    def _end(self, flow: Flow) -> None:
        """Forget a connection that was closed; what still comes of it without data finds it."""
        self.forget(flow)
        ended = self._ended
        ended.pop(flow.key, None)
        if len(ended) >= ENDED:
            del ended[next(iter(ended))]
        ended[flow.key] = flow

    # --- the ClientHello ----------------------------------------------------------------------

    def _follow(self, flow: Flow, packet: Packet, head: Headers, forth: bool) -> Flow:
        """Read on in a flow that is not settled, or ends."""
        if flow.key[0] == UDP:
            if head.end > head.data:
                self._datagram(flow, packet, head, forth)
            return flow
        flags = head.flags
        if flags & _SYN and not flow._spoken:
            self._opened(flow, head, forth)
        if head.end > head.data:
            if not flow.settled:
                self._segment(flow, packet, head, forth)
            flow._spoken = True
        if flags & _FIN:
            flow._fins |= 1 if forth else 2
        if flags & _RST or flow._fins == _BOTH:
            self._end(flow)
        return flow

    def _opened(self, flow: Flow, head: Headers, forth: bool) -> None:
        """Note the number of the client's first byte; what the server says of it counts more."""
        if not head.flags & _ACK:
            if not flow._sure:
                flow._base = (head.seq + 1) % _ROUND
        elif not forth:
            flow._base = head.ack
            flow._sure = True

    def _segment(self, flow: Flow, packet: Packet, head: Headers, forth: bool) -> None:
        """Read the data of a TCP segment."""
        data = packet.data[head.data : head.end]
        place = head.seq + 1 if head.flags & _SYN else head.seq
        if flow._base < 0:
            flow._base = place  # seen from the middle on: this is a ClientHello's start, or none
            flow._forth = forth
        elif forth is not flow._forth:
            self._settle(flow)  # the server speaks first, or has seen enough
            return
        offset = (place - flow._base) % _ROUND
        far = self.most < offset < _ROUND - self.most
        if far and not flow._sure and flow._reader is None and data[:2] == _RECORD:
            flow._base = place  # that SYN was not what opened the connection
            offset = 0
        if offset >= _ROUND // 2:
            data = data[_ROUND - offset :]
            offset = 0
            if not data:
                return
        self._read(flow, offset, data, PIECES)
        if head.truncated and not flow.settled:
            self._give_up(flow)  # the rest of this segment will not come again

    def _datagram(self, flow: Flow, packet: Packet, head: Headers, forth: bool) -> None:
        """Read the data of a UDP datagram: QUIC, or nothing that has a name."""
        found = quic.read(packet.data[head.data : head.end], flow._dcid)
        packet._quic = found
        if found is None:
            self._settle(flow)
            return
        if found.kind == "Initial" and not quic.able():
            self._settle(flow)
            return
        if found.kind in {"Retry", "Version negotiation"} and not forth:
            # The client begins once more, with keys from another connection ID.
            self._drop(flow)
            flow._dcid = found.scid if found.kind == "Retry" else b""
        if found.crypto and found.original != flow._dcid:
            self._drop(flow)
            flow._dcid = found.original
        for offset, data in found.crypto:
            if not flow.settled:
                self._read(flow, offset, data, DATAGRAMS, bare=True)
        if not flow.settled:
            self._count(flow, DATAGRAMS)

    def _read(
        self, flow: Flow, offset: int, data: bytes, bound: int, *, bare: bool = False
    ) -> None:
        """Add a piece to a flow's ClientHello; settle the flow if that was the last, or none."""
        reader = flow._reader or tls.Reader(self.most, bare=bare)
        found = reader.add(offset, data)
        if found is not tls.MORE:
            flow.hello = found
            if reader.over:
                self.given_up += 1
            self._settle(flow)
            return
        if flow._reader is None:
            self._wait(flow, reader)
        if not bare:
            self._count(flow, bound)

    def _count(self, flow: Flow, bound: int) -> None:
        """Count a segment or datagram that was no end of the ClientHello."""
        flow._looked += 1
        if flow._looked >= bound:
            self._give_up(flow)

    def _wait(self, flow: Flow, reader: tls.Reader) -> None:
        """Keep what is there of a ClientHello until the rest comes."""
        waiting = self._waiting
        if len(waiting) >= self.waiting:
            self._give_up(waiting[next(iter(waiting))])
        flow._reader = reader
        waiting[flow.key] = flow

    def _give_up(self, flow: Flow) -> None:
        self.given_up += 1
        self._settle(flow)

    def _settle(self, flow: Flow) -> None:
        flow.settled = True
        self._drop(flow)

    def _drop(self, flow: Flow) -> None:
        """Free the bytes that a flow keeps."""
        if flow._reader is not None:
            flow._reader = None
            self._waiting.pop(flow.key, None)


def _icmp_key(packet: Packet, head: Headers) -> Key:
    """Return the key of an ICMP message: one for each identifier of those that have one."""
    proto, at = head.proto, head.transport
    ident = 0
    if head.icmp is not None and head.icmp[0] in _WITH_IDENT[proto]:
        ident = int.from_bytes(packet.data[at + 4 : at + 6])
    return proto, head.src, head.dst, ident, ident
