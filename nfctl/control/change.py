"""What a change to the firewall is: edits by table and chain, as data; see ``control.planning``.

A chain's edits are runs over two sequences: the rules that the kernel has and the rules that are
wanted. In the order of the result, with what is deleted where it stood::

    same    the rule is in both and stays untouched, counters and all
    kept    the rule is another's: not wanted by the policy, and left where it is
    delete  the rule goes
    add     the rule comes

A rule that is wanted at another place is a delete and an add; ``moved`` says so, and the
counters go with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.errors import Where

SAME, KEPT, DELETE, ADD = "same", "kept", "delete", "add"


class Run(NamedTuple):
    """``length`` rules of one kind: from live rule ``live`` and wanted rule ``wanted``, from 0."""

    kind: str
    live: int  # where it begins, or would
    wanted: int
    length: int


class Line(NamedTuple):
    """One rule of a change, to be shown or written down.

    ``number`` is the rule's number from 1: before the change for ``delete``, after it for the
    others. ``spec`` is what iptables-save prints. ``counters`` are (packets, bytes) of a rule
    that the kernel has; ``owner`` says whose a kept one is; ``where`` is the place of an added
    one; ``moved`` marks both ends of a move.
    """

    kind: str
    number: int
    spec: str
    counters: tuple[int, int] | None = None
    owner: str = ""
    where: Where | None = None
    moved: bool = False


@dataclass(slots=True)
class ChainChange:
    """What happens to a chain. ``policy`` is (before, after) where that changes."""

    name: str
    created: bool = False
    deleted: bool = False
    policy: tuple[str, str] | None = None
    runs: list[Run] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)  # all that is no "same", and what is around
    before: int = 0  # rules
    after: int = 0
    note: str = ""  # why it could not be done as asked: a chain that others still jump to

    @property
    def changes(self) -> bool:
        """Whether anything happens."""
        return (
            self.created
            or self.deleted
            or self.policy is not None
            or any(run.kind in {DELETE, ADD} for run in self.runs)
        )

    def count(self, kind: str) -> int:
        """Return how many rules are of a kind."""
        return sum(run.length for run in self.runs if run.kind == kind)


@dataclass(slots=True)
class TableChange:
    """What happens to a table of a family; ``digest`` is of what the kernel has (no counters)."""

    family: int
    table: str
    chains: list[ChainChange] = field(default_factory=list)
    digest: str = ""

    @property
    def changes(self) -> bool:
        """Whether anything happens."""
        return any(chain.changes for chain in self.chains)


class SetChange(NamedTuple):
    """What happens to an ipset: "create", "swap" (new contents), "destroy", "same", "kept"."""

    action: str
    name: str
    type: str
    added: int = 0  # entries
    removed: int = 0
    entries: tuple[str, ...] = ()  # the first of them, "+ 10.0.0.1" and "- 10.0.0.2"
    note: str = ""


@dataclass(slots=True)
class Change:
    """The change of a whole firewall, from what it is to what a policy wants."""

    policy: str = ""
    tables: list[TableChange] = field(default_factory=list)
    sets: list[SetChange] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)  # (file, sha256)
    notes: list[str] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """Whether anything happens."""
        return any(table.changes for table in self.tables) or any(
            change.action in {"create", "swap", "destroy"} for change in self.sets
        )

    def chains(self) -> Iterator[tuple[TableChange, ChainChange]]:
        """Yield every chain that is looked at."""
        for table in self.tables:
            for chain in table.chains:
                yield table, chain

    def count(self, kind: str) -> int:
        """Return how many rules of all tables are of a kind."""
        return sum(chain.count(kind) for _, chain in self.chains())
