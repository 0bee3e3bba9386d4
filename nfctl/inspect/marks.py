"""The bits of marks that inspection uses, in packets and in connections.

Two adjacent bits, by default 0x3000, which none of kube-proxy, Docker, Tailscale, wg-quick and
Istio uses. In a packet's mark they are the verdict that comes back from the queue, in a
connection's (connmark) the verdict of the whole flow.
"""

from __future__ import annotations

from typing import Final, NamedTuple

DEFAULT_MASK: Final = 0x3000


def is_mask(mask: int) -> bool:
    """Whether a number is two adjacent bits of a mark."""
    return 0 < mask <= 0xFFFFFFFF and mask == 3 * (mask & -mask)


class Marks(NamedTuple):
    """The values that the bits of ``mask`` have in a packet's and in a connection's mark.

    ``accepted`` and ``dropped`` are verdicts for the whole flow: with offload they are saved
    to the connection. ``seen`` is for this packet alone.
    """

    mask: int
    accepted: int
    dropped: int
    seen: int

    @classmethod
    def of(cls, mask: int) -> Marks:
        """Return the values within a mask of two adjacent bits."""
        lowest = mask & -mask
        return cls(mask, lowest, 2 * lowest, 3 * lowest)
