"""The quick way for services: only what changed in the list is compiled, encoded and written.

After an apply the state remembers a digest of the services' own chains as the kernel holds them.
If it still holds those, what is to be done follows from the two lists, the applied one and the
new one: the chains of services that differ, and the chains that all services share, if their part
in those differs. The jumps from built-in chains are planned each time, as others live there.

In doubt :class:`nfctl.control.known.NotQuick` sends the caller the ordinary way.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from nfctl.control import known, printed
from nfctl.control.known import NotQuick
from nfctl.control.planner import Planner
from nfctl.control.planning import TablePlan
from nfctl.control.serving import desired
from nfctl.control.sets import Sets
from nfctl.ruleset.names import TABLES
from nfctl.services.chains import Compiler, Fragment, add
from nfctl.services.names import Names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nfctl.control.goal import Coder
    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.planner import FamilySide, Plans
    from nfctl.kernel.blob import Blob
    from nfctl.services.chains import Chains
    from nfctl.services.difference import Difference
    from nfctl.services.model import ServiceList

_VERSION = 1
_KEYS = {"version", "about", "record", "digests"}


class QuickServices(Planner):
    """Plans services by what is known of the last apply; raises NotQuick where it cannot.

    ``own`` is the record of that apply, and ``difference`` how its list and the new one differ.
    """

    def __init__(
        self,
        settings: ServiceList,
        files: Sequence[tuple[str, str]],
        state: State,
        own: Record | None,
        difference: Difference,
    ) -> None:
        wanted = desired.light(settings, files)
        if own is None or not own.services or own.prefix != settings.prefix or difference.settings:
            raise NotQuick
        others = [record for record in state.records() if record.name != wanted.name]
        super().__init__(wanted, own=[own], others=others, sets=Sets(()))
        self._known = _read(state, settings.prefix)
        if self._known["about"] != _about(state, wanted.name):
            raise NotQuick
        if self._known["record"] != own.digest or own.text.keys() != wanted.tables.keys():
            raise NotQuick
        self._chains = _Chains(settings, difference)
        self._own_names = Names(settings.prefix)

    def _plan_family(self, plans: Plans, family: int) -> None:
        side = plans.sides[family]
        coder = self._coder(plans, family)
        if self._known["digests"].get(str(family)) != digests(side, self._own_names):
            raise NotQuick
        come, gone = self._chains.of(family)
        tables = self.wanted.tables[family]
        for name in TABLES:
            if name in tables:
                plans.tables.append(self._plan_table(name, side, coder, (come, gone)))

    def _plan_table(
        self, name: str, side: FamilySide, coder: Coder, change: tuple[Chains, set[tuple[str, str]]]
    ) -> TablePlan:
        come, gone = change
        live = side.live(name)
        what = self.wanted.tables[side.family][name]
        # of the frame, the built-in chains; and what the lists say to be another
        made = {key: specs for key, specs in come.items() if key[0] == name}
        for chain in [chain for chain, each in what.chains.items() if not each.shared]:
            del what.chains[chain]
        part = desired.tables(made, {}).get(name)
        if part is not None:
            what.chains.update(part.chains)
        removed = [chain for table, chain in gone if table == name]
        names = {*live.user_chains, *what.chains} - set(removed)
        goals = coder.table(name, what, names)
        return TablePlan.make(live, goals, removed, self._owner(live, {}, coder), known=True)

    def _check_others(self) -> None:
        """Do nothing: the frame is the one that was checked when it was applied first."""


class _Chains:
    """The chains in which two lists differ."""

    def __init__(self, new: ServiceList, difference: Difference) -> None:
        self._new = new
        both = difference.differ
        self._gone = [*difference.gone, *(one.before for one in both)]
        self._come = [*difference.come, *(one.after for one in both)]
        self._moved = difference.moved

    def of(self, family: int) -> tuple[Chains, set[tuple[str, str]]]:
        """Return chains that come or are other ones, and those that go."""
        compiler = Compiler(self._new, family)
        old, new = (
            [compiler.service(service) for service in services if family in service.families()]
            for services in (self._gone, self._come)
        )
        come: Chains = {key: rules for one in new for key, rules in one.own.items()}
        gone = {key for one in old for key in one.own} - come.keys()
        if self._moved or _shares(old) != _shares(new):
            come |= self._shared(compiler, family)
        return come, gone

    def _shared(self, compiler: Compiler, family: int) -> Chains:
        """Return the chains that all services share, as they are to be."""
        chains, _ = compiler.frame()
        for service in self._new.services:
            if family in service.families():
                add(chains, Fragment({}, compiler.service(service).shared))
        for key, rules in compiler.last().items():
            chains[key] += rules
        return chains


def _shares(fragments: Sequence[Fragment]) -> list[Any]:
    return [one.shared for one in fragments]


# --- what is remembered -------------------------------------------------------------------------


def digests(
    side: FamilySide, names: Names, blobs: Mapping[str, Blob] | None = None
) -> dict[str, str]:
    """Return a digest of the services' own chains in each table, wherever they stand."""
    found = {}
    for table in ("nat", "filter", "mangle"):
        blob = (blobs or {}).get(table) or side.live(table).blob
        if blob is None:
            continue
        digest = hashlib.sha256()
        masked = memoryview(blob.masked())
        for chain in blob.chains:
            if chain.policy is not None or not names.is_own(chain.name):
                continue
            digest.update(f"{chain.name}\n{len(chain.rules)}\n".encode())
            if chain.rules:
                digest.update(masked[chain.rules[0].start : chain.rules[-1].end])
        found[table] = digest.hexdigest()
    return found


def remember(
    state: State, record: Record, plans: Plans, blobs: Mapping[tuple[int, str], Blob]
) -> None:
    """Write down what the kernel holds now, for the next time."""
    names = Names(record.prefix)
    found = {}
    for family, side in plans.sides.items():
        if family in record.text:
            mine = {table: blob for (number, table), blob in blobs.items() if number == family}
            found[str(family)] = digests(side, names, mine)
    document = {
        "version": _VERSION,
        "about": _about(state, record.name),
        "record": record.digest,
        "digests": found,
    }
    printed.write(_file(state, record.prefix), json.dumps(document).encode())


def _about(state: State, name: str) -> dict[str, Any]:
    """Return what else decides: not the other policies, whose rules are looked at each time."""
    return {key: value for key, value in known.about(state, name).items() if key != "others"}


def _read(state: State, prefix: str) -> dict[str, Any]:
    try:
        found = json.loads(_file(state, prefix).read_bytes())
        if found.keys() >= _KEYS and found["version"] == _VERSION:
            return dict(found)
    except (OSError, ValueError, AttributeError):
        pass
    raise NotQuick


def _file(state: State, prefix: str) -> Path:
    return state.directory / "known" / f"{desired.policy_name(prefix)}.json"
