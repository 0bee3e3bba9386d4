"""Packets of a capture, decided as the live ones: no kernel, no root.

    for packet, verdict in replay(capture.read("trace.pcap"), rules):
        ...

The clock is that of the packets: rates and verdicts that last go by when they were captured. A
flow that is left to the kernel gets its verdict for the rest of it. A rewritten packet has its new
bytes in ``replacement``. Chain, interfaces and mark are what the capture's reader says, which
knows little of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.inspect.decider import Decider

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nfctl.inspect.deadline import Deadline
    from nfctl.inspect.handlers import Handlers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.rules import Rules
    from nfctl.inspect.verdict import Verdict


def replay(
    packets: Iterable[Packet], rules: Rules, handlers: Handlers | None = None
) -> Iterator[tuple[Packet, Verdict]]:
    """Yield each packet with its verdict."""
    for packet, verdict, _ in Replay(rules, handlers).run(packets):
        yield packet, verdict


class Replay:
    """A run over a capture; ``deadline`` is for the rules' regular expressions, if they have any.

    ``offload`` leaves flows to the kernel, which here means that their verdict is kept. Handlers
    are started before the first packet, and stopped behind the last.
    """

    def __init__(
        self,
        rules: Rules,
        handlers: Handlers | None = None,
        *,
        deadline: Deadline | None = None,
        offload: bool = False,
    ) -> None:
        self.decider = Decider(rules, handlers, deadline=deadline, offload=offload)
        self.packets = 0
        self.octets = 0

    def run(
        self, packets: Iterable[Packet], limit: int = 0
    ) -> Iterator[tuple[Packet, Verdict, bool]]:
        """Yield each packet, its verdict, and whether it ends its flow's ClientHello.

        ``limit`` is the number of packets, 0 for all.
        """
        decider = self.decider
        try:
            if decider.handlers is not None:
                decider.handlers.start()
            for packet in packets:
                yield self._one(packet)
                if self.packets == limit:
                    break
        finally:
            if decider.handlers is not None:
                decider.handlers.stop()
            if decider.deadline is not None:
                decider.deadline.close()

    def _one(self, packet: Packet) -> tuple[Packet, Verdict, bool]:
        verdict, hello = self.decider.decide(packet, packet.time)
        self.decider.leaves(packet, verdict)
        self.packets += 1
        self.octets += packet.length
        return packet, verdict, hello

    def figures(self) -> dict[str, Any]:
        """Return what was counted, as the document that ends ``--json`` has it."""
        return {"packets": self.packets, "octets": self.octets, **self.decider.figures()}
