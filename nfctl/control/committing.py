"""Writing planned tables: one commit a table, read back, and put back if one fails.

Counters survive exactly. Those of rules that stay are libiptc's doing (``nfctl.kernel.table``);
it begins the policies' at what was counted since it read the table, so what it read is added
after the commit: nothing is lost in between. Only a table that has to be put back has the
counters of when it was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.control.edit import TableEdit
from nfctl.control.transaction import Before, explained, undisturbed
from nfctl.errors import HalfApplied, NfctlError, RolledBack
from nfctl.kernel.blob import Blob
from nfctl.kernel.table import add_counters
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.control.planner import Plans
    from nfctl.control.planning import TablePlan


class Writing:
    """The edits of all tables that differ, in libiptc's memory; then the commit."""

    def __init__(self, plans: Plans) -> None:
        self._pairs: list[tuple[TablePlan, TableEdit]] = []
        #: The tables as they were read back, by family and name.
        self.blobs: dict[tuple[int, str], Blob] = {}
        for plan in plans.changed:
            side = plans.sides[plan.live.family]
            edit = TableEdit(side.family, plan.live.table, side.encoder, side.decoder)
            self._pairs.append((plan, edit))

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_exc: object) -> None:
        for _, edit in self._pairs:
            edit.close()

    def make(self) -> None:
        """Make the edits; nothing reaches the kernel yet."""
        for plan, edit in self._pairs:
            plan.write(edit)

    def commit(self, written: Callable[[str], None] = lambda _name: None) -> None:
        """Commit the tables in turn; ``written`` is called after each, for tests.

        If the kernel refuses the first, its error is raised and nothing has changed. If it
        refuses a later one, or holds something else afterwards, RolledBack (exit 5).
        """
        done: list[Before] = []
        culprit: TableEdit | None = None
        with undisturbed():
            for plan, edit in self._pairs:
                # before it is put back, a refused table has to be explained
                before = Before.of(plan.live)
                try:
                    policies = _policies(edit)
                    edit.kernel.commit()
                except NfctlError as error:
                    trouble, culprit = error, edit
                    break
                done.append(before)
                try:
                    written(edit.name)
                    blob = self.blobs[edit.family, edit.name] = Blob(edit.family, edit.name)
                    problem = _settle(plan, blob, policies)
                except NfctlError as error:  # it could not be read back, for example
                    problem = error.message
                if problem:
                    name = f"table {edit.name} (IPv{edit.family})"
                    trouble, culprit = (
                        NfctlError(f"{name} is not what it should be: {problem}"),
                        None,
                    )
                    break
            else:
                return
            failures = [text for before in reversed(done) if (text := before.put_back())]
        if culprit is not None:
            trouble = explained(culprit, trouble)
        if not done:
            raise trouble from None
        raise _rolled_back(trouble, done, failures) from None


def _policies(edit: TableEdit) -> dict[str, tuple[int, int]]:
    """Return the counters of policies that libiptc is about to take off."""
    found = {}
    for chain in BUILTIN_CHAINS[edit.name]:
        policy = edit.kernel.policy(chain)
        if policy is not None:
            found[chain] = (policy.packets, policy.octets)
    return found


def _settle(plan: TablePlan, blob: Blob, policies: dict[str, tuple[int, int]]) -> str:
    """Check a table that was read back, return the policies' counters; say what is wrong, or ""."""
    live = plan.live
    problem = plan.difference(blob)
    if problem:
        return problem
    additions, index = {}, 0
    for name, policy, spans in blob.chains:
        if policy is None:
            break
        index += len(spans)
        chain = plan.chains.get(name)
        if chain is None or chain.change.policy is None:
            counters = policies.get(name, (0, 0))
            if any(counters):
                additions[index] = counters
        index += 1
    if additions:
        add_counters(live.family, live.table, blob.info.entries, additions)
    return ""


def _rolled_back(
    trouble: NfctlError, done: Sequence[Before], failures: Sequence[str]
) -> RolledBack:
    if failures:
        msg = f"{trouble.message}; AND NOT PUT BACK: {'; '.join(failures)}"
        return HalfApplied(msg, hint=trouble.hint, where=trouble.where)
    names = ", ".join(f"{before.table} (IPv{before.family})" for before in done)
    msg = f"{trouble.message}; what was committed was put back: {names}"
    return RolledBack(msg, hint=trouble.hint, where=trouble.where)
