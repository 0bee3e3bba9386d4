"""Labs that stay up after the program that made them: ``nfctl lab up`` and ``down``.

A standing lab is known by its name alone. Its record's owner is ``0.0.0`` (see ``records``), so
no sweep takes it for a dead one's; inside, ``lab.json`` says who makes or made it, from which
topology, and whether it is complete. mkdir(2) of the record is the claim to the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nfctl.lab.host import Host
    from nfctl.lab.topology import Topology


class State(StrEnum):
    """``up``; ``making`` while its maker lives; ``broken`` if that died before it was done."""

    UP = "up"
    MAKING = "making"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Standing:
    """A lab that stands: its name, state, topology, the hosts by name, and since when (epoch)."""

    name: str
    state: State
    topology: Topology
    hosts: dict[str, Host]
    since: float


def up(topology: Topology, name: str = "", *, services: bool = True) -> Standing:
    """Make a lab that stays; its name is the topology's unless given.

    BadInput if a lab of that name is up already (one that is broken is removed first). Whatever
    fails, also by a signal, nothing stays behind.
    """
    raise NotImplementedError


def down(name: str) -> None:
    """Remove a lab entirely: processes, namespaces, files; also one that is half made.

    AnswerNo if nothing of that name is left.
    """
    raise NotImplementedError


def labs() -> list[Standing]:
    """Return all labs that stand, sorted by name; also those found by their namespaces only."""
    raise NotImplementedError


def find(name: str = "") -> Standing:
    """Return the lab called ``name``, or the only one; AnswerNo where there is none.

    BadInput if no name is given and several are up, with their names.
    """
    raise NotImplementedError
