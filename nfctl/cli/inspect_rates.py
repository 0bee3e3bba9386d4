"""The figures of ``nfctl inspect --top``: what workers count, summed up and as rates.

A worker reads hostile packets, so what it says is taken like a packet: numbers that are none
count as 0, lists are read up to a limit.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.inspect.packet import PROTOCOLS

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERS: Final = ("rate", "packets", "bytes", "name")
"""What flows can be sorted by."""
MOST_FLOWS: Final = 256
"""Flows of one worker that are looked at."""
_MOST_COUNTS: Final = 256
_LARGEST: Final = 1 << 63
_TEXT: Final = 256
_QUEUE: Final = ("waiting", "dropped", "user_dropped")

Key = tuple[str, int, str, int, str]


class Flow(NamedTuple):
    """A flow: what its packets have in common, what it has carried, and how fast it goes.

    ``bits`` is bits a second, ``last`` when its last packet came, in seconds since 1970.
    """

    source: str
    sport: int
    destination: str
    dport: int
    protocol: str
    packets: int
    octets: int
    bits: float
    name: str
    verdict: str
    last: float

    @property
    def ports(self) -> bool:
        """Whether it has ports: ICMP's echo has its identifier there."""
        return bool(self.sport or self.dport) and not self.protocol.startswith("icmp")

    def document(self) -> dict[str, Any]:
        """Return the flow as JSON; without ports, name or verdict if it has none."""
        found: dict[str, Any] = {"protocol": self.protocol, "source": self.source}
        if self.ports:
            found["sport"] = self.sport
        found["destination"] = self.destination
        if self.ports:
            found["dport"] = self.dport
        found |= {
            "packets": self.packets,
            "octets": self.octets,
            "bits_per_second": round(self.bits),
        }
        if self.name:
            found["name"] = self.name
        if self.verdict:
            found["verdict"] = self.verdict
        return found | {"last": self.last}


class Queue:
    """What one worker has counted, and how much of it in the last second."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.packets = self.octets = 0
        self.packet_rate = self.bit_rate = 0.0
        self.figures = dict.fromkeys(_QUEUE, 0)
        #: How many packets were lost since the figures before.
        self.losing = 0
        self.counts: dict[str, dict[str, int]] = {"verdicts": {}, "rules": {}, "errors": {}}
        self.flows: dict[Key, Flow] = {}
        self._heard: object = None
        self._time = 0.0
        self._lists = False

    def hear(self, document: dict[str, Any], now: float) -> None:
        """Take a worker's document; the same one again only makes rates go down at last."""
        if document is self._heard:
            if now - self._time > 3:
                self.packet_rate = self.bit_rate = 0.0
                self.losing = 0
                self.flows = {key: flow._replace(bits=0.0) for key, flow in self.flows.items()}
            return
        passed = now - self._time if self._heard is not None else 0.0
        self._heard, self._time = document, now
        packets, octets = number(document.get("packets")), number(document.get("octets"))
        if passed > 0:
            self.packet_rate = max(0, packets - self.packets) / passed
            self.bit_rate = max(0, octets - self.octets) * 8 / passed
        self.packets, self.octets = packets, octets
        figures = document.get("figures")
        if isinstance(figures, dict):
            before = self.lost
            self.figures = {name: number(figures.get(name)) for name in _QUEUE}
            self.losing = max(0, self.lost - before)
        for name in self.counts:
            self.counts[name] = _counts(document.get(name))
        self.flows = self._flows(document.get("flows"), passed)

    @property
    def lost(self) -> int:
        """How many packets found the queue, or its socket, full."""
        return self.figures["dropped"] + self.figures["user_dropped"]

    def _flows(self, rows: object, passed: float) -> dict[Key, Flow]:
        found: dict[Key, Flow] = {}
        if not isinstance(rows, list):
            return found
        for row in rows[:MOST_FLOWS]:
            if not isinstance(row, (list, tuple)) or len(row) != 10:
                continue
            source, sport, destination, dport, protocol, packets, octets, name, verdict, last = row
            if isinstance(protocol, int):
                protocol = PROTOCOLS.get(protocol, protocol)
            key = (_text(source), number(sport), _text(destination), number(dport), _text(protocol))
            octets = number(octets)
            before = self.flows.get(key)
            bits = 0.0
            if passed > 0 and before is not None:
                bits = max(0, octets - before.octets) * 8 / passed
            elif passed > 0 and self._lists and len(rows) < MOST_FLOWS // 2:
                bits = octets * 8 / passed  # all flows were listed, so this one is new
            found[key] = Flow(
                *key, number(packets), octets, bits, _text(name), _text(verdict), _time(last)
            )
        self._lists = True
        return found

    def document(self) -> dict[str, Any]:
        """Return the queue as JSON."""
        return {
            "queue": self.number,
            "packets": self.packets,
            "octets": self.octets,
            "packets_per_second": round(self.packet_rate, 1),
            "bits_per_second": round(self.bit_rate),
            **self.figures,
        }


class Rates:
    """The figures of all queues, as far as they were heard of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.queues: list[Queue] = []
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        """How long this goes on."""
        return self._clock() - self._started

    def hear(self, documents: list[dict[str, Any]]) -> None:
        """Take the documents of the workers, one each, in their order; {} of a silent one."""
        now = self._clock()
        for index, document in enumerate(documents):
            if index == len(self.queues):
                self.queues.append(Queue(index))
            if document:
                self.queues[index].number = number(document.get("queue", index))
                self.queues[index].hear(document, now)

    @property
    def packets(self) -> int:
        """Packets of all queues."""
        return sum(queue.packets for queue in self.queues)

    @property
    def octets(self) -> int:
        """Their bytes."""
        return sum(queue.octets for queue in self.queues)

    @property
    def packet_rate(self) -> float:
        """Packets a second."""
        return sum(queue.packet_rate for queue in self.queues)

    @property
    def bit_rate(self) -> float:
        """Bits a second."""
        return sum(queue.bit_rate for queue in self.queues)

    @property
    def losing(self) -> int:
        """Packets that were lost since the figures before."""
        return sum(queue.losing for queue in self.queues)

    def figure(self, name: str) -> int:
        """Return the sum of one of the kernel's figures over the queues."""
        return sum(queue.figures[name] for queue in self.queues)

    def counts(self, name: str) -> dict[str, int]:
        """Return ``verdicts``, ``rules`` or ``errors`` and their numbers, the largest first."""
        found: dict[str, int] = {}
        for queue in self.queues:
            for key, count in queue.counts[name].items():
                found[key] = found.get(key, 0) + count
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def flows(self, order: str = "rate") -> list[Flow]:
        """Return the flows, the busiest first, or by their names, those without one last."""
        merged: dict[Key, Flow] = {}
        for queue in self.queues:
            for key, flow in queue.flows.items():
                other = merged.get(key)
                merged[key] = flow if other is None else _sum(other, flow)
        if order == "name":
            return sorted(
                merged.values(), key=lambda flow: (not flow.name, flow.name, -flow.octets)
            )
        if order == "packets":
            return sorted(merged.values(), key=lambda flow: (-flow.packets, -flow.octets))
        if order == "bytes":
            return sorted(merged.values(), key=lambda flow: (-flow.octets, -flow.packets))
        return sorted(merged.values(), key=lambda flow: (-flow.bits, -flow.octets))

    def document(self, order: str = "rate") -> dict[str, Any]:
        """Return everything as JSON: the record of ``nfctl inspect --top --json``.

        Counts are since the start, rates of the last second: ``event`` "figures", ``time``,
        ``seconds`` since the start, ``packets``, ``octets``, ``packets_per_second``,
        ``bits_per_second``, ``verdicts``, ``rules`` and ``errors`` as {name: number}, the
        kernel's ``waiting``, ``dropped`` and ``user_dropped``, ``queues`` with the same for each
        of them, and ``flows``, the busiest first, 256 at most.
        """
        return {
            "event": "figures",
            "time": round(time.time(), 3),
            "seconds": round(self.seconds, 3),
            "packets": self.packets,
            "octets": self.octets,
            "packets_per_second": round(self.packet_rate, 1),
            "bits_per_second": round(self.bit_rate),
            "verdicts": self.counts("verdicts"),
            "rules": self.counts("rules"),
            "errors": self.counts("errors"),
            **{name: self.figure(name) for name in _QUEUE},
            "queues": [queue.document() for queue in self.queues],
            "flows": [flow.document() for flow in self.flows(order)[:MOST_FLOWS]],
        }


def _sum(one: Flow, other: Flow) -> Flow:
    return one._replace(
        packets=one.packets + other.packets,
        octets=one.octets + other.octets,
        bits=one.bits + other.bits,
        name=one.name or other.name,
        verdict=one.verdict or other.verdict,
        last=max(one.last, other.last),
    )


def number(value: object) -> int:
    """Return a count; 0 for what is none."""
    return value if type(value) is int and 0 <= value < _LARGEST else 0


def _time(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e11 else 0.0


def _text(value: object) -> str:
    if value is None:
        return ""
    return (value if isinstance(value, str) else str(value)[:_TEXT])[:_TEXT]


def _counts(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {_text(name): number(count) for name, count in list(value.items())[:_MOST_COUNTS]}
