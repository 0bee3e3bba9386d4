"""Keeping the rules of an inspection where they belong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.control.transaction import Transaction
from nfctl.errors import BadInput, Changed
from nfctl.inspect.placement import plan as plans
from nfctl.inspect.placement import standing, tables
from nfctl.inspect.placement.tables import Wanted
from nfctl.kernel import blob, netns
from nfctl.kernel.table import counters_of

if TYPE_CHECKING:
    from nfctl.control.edit import TableEdit
    from nfctl.inspect.placement.plan import Plan
    from nfctl.inspect.placement.tables import Removed
    from nfctl.kernel.blob import Info
    from nfctl.ruleset.words import Word

_LOOK_ANYWAY = 30  # calls: what left a table's size as it was is found then


class Placed:
    """An inspection whose rules are in place.

    ``plan`` is what was asked for, with the ``families`` that took it; ``notes`` say in a line
    each what the user should know. Belongs to a process that may edit the tables.
    """

    def __init__(
        self,
        plan: Plan,
        words: list[Word],
        jumps: dict[int, int],
        notes: list[str],
        wait: float,
        network: str | None,
    ) -> None:
        self.plan = plan
        self.families = plan.families
        self.notes = notes
        self._words = words
        self._jumps = jumps
        self._wait = wait
        self._network = network
        self._calls = 0
        self._known: dict[tuple[int, str], Info] = {}

    def last(self) -> bool:
        """Whether the rules are where they were put, behind all others (in filter: before them).

        Quick: the kernel is asked for the tables' sizes, and only where these have changed, or at
        every thirtieth call, for the rules.
        """
        self._calls += 1
        anyway = self._calls % _LOOK_ANYWAY == 0
        with netns.entered(self._network):
            return all(
                self._is_last(family, table, wanted, anyway=anyway)
                for family in self.families
                for table, wanted in self._wanted(family).items()
            )

    def _is_last(self, family: int, table: str, wanted: Wanted, *, anyway: bool) -> bool:
        info = blob.info(family, table)
        if not anyway and self._known.get((family, table)) == info:
            return True
        self._known.pop((family, table), None)
        with standing.opened(family, table) as edit:
            if not tables.whole(edit, wanted) or tables.displaced(edit, wanted):
                return False
            try:
                self._check_policies(edit)
            except Changed:
                return False
        self._known[family, table] = info
        return True

    def _wanted(self, family: int) -> dict[str, Wanted]:
        plan = self.plan
        mangle, rejecting = plans.mangle_chains(plan), plans.filter_chains(plan)
        found = {}
        if plan.rejects:
            found["filter"] = Wanted(plan.queue, plan.reject_chains, 1, rejecting, at_end=False)
        jumps = self._jumps[family]
        found["mangle"] = Wanted(plan.queue, plan.chains, jumps, mangle, at_end=True)
        return found

    def _check_policies(self, edit: TableEdit) -> None:
        if edit.name != "mangle":
            return
        try:
            tables.check_policies(edit, self.plan)
        except BadInput as error:
            raise Changed(error.message, hint="the inspection has to end") from None

    def mend(self) -> list[str]:
        """Put the rules back where they belong; return what was wrong, in a line each.

        They are moved in place, with their counters; in a table where some are gone (another
        program has restored it) all are put in anew. Raises Changed (exit 4) where a policy has
        become DROP, so that the inspection has to end, and Locked where the lock cannot be had.
        """
        said: list[str] = []
        self._known.clear()
        with netns.entered(self._network):
            for family in self.families:
                with Transaction(family, wait=self._wait) as transaction:
                    # filter first, as when they were put in
                    for table, wanted in self._wanted(family).items():
                        self._check_policies(transaction[table])
                        said += self._mend(transaction[table], wanted)
        return said

    def _mend(self, edit: TableEdit, wanted: Wanted) -> list[str]:
        where = f"table {edit.name} (IPv{edit.family})"
        if not tables.whole(edit, wanted):
            tables.put_in(edit, self.plan, self._words)
            return [f"{where}: rules of the inspection were gone; they were put back"]
        chains = tables.displaced(edit, wanted)
        if not chains:
            return []
        tables.move(edit, wanted, chains)
        side = "behind" if wanted.at_end else "before"
        return [
            f"{where}: other rules came {side} those of the inspection in {', '.join(chains)}; "
            f"these were moved {side} them"
        ]

    def queued(self) -> int:
        """Return how many packets the rules have handed to the queues.

        With fail-open the kernel does not count those that it accepted because a queue was full;
        they are among these. Segments that were sent together are one here.
        """
        chain = plans.inspect_chain(self.plan.queue)
        packets = 0
        with netns.entered(self._network):
            for family in self.families:
                with standing.opened(family, "mangle") as edit:
                    if edit.kernel.has_chain(chain):
                        rules = [head for head, _ in edit.kernel.entries(chain)]
                        packets += counters_of(rules[-1], family)[0] if rules else 0
        return packets

    def remove(self) -> list[Removed]:
        """Take the rules out again; return what was there."""
        return standing.remove(self.plan.queue, wait=self._wait, network=self._network)
