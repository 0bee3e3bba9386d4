"""What becomes of a packet: the answer of a verdict rule, of a handler, or of the default."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfctl.inspect.rewrite import Rewrite


class Action(StrEnum):
    """What the kernel is told.

    ACCEPT: the packet goes on to the next table, where every rule of the firewall still decides.
    REJECT: it is dropped and its sender told so, by TCP reset or ICMP error. REPEAT: it goes
    through the rules of mangle again, this time past the inspection.
    """

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    REPEAT = "repeat"


class Per(StrEnum):
    """Whose packets a verdict that lasts, or a rate, is about."""

    FLOW = "flow"
    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and what comes with it.

    ``by`` says who decided: the rule's name, ``handler NAME``, ``default``, ``malformed``.
    ``mark`` is (value, mask): the bits of mask in the packet's mark become those of value.
    ``lasts`` is for how many seconds the same is decided for all packets ``per`` flow, source or
    destination, without asking the rules again. ``offload`` leaves the rest of the flow to the
    kernel. ``log`` has the packet reported even where packets are not shown.
    """

    action: Action = Action.ACCEPT
    by: str = "default"
    mark: tuple[int, int] | None = None
    rewrite: Rewrite | None = None
    offload: bool = False
    log: bool = False
    lasts: float = 0.0
    per: Per = Per.FLOW


ACCEPT = Verdict()
