"""The live tables, laid out along the way of a packet: the facts behind `nfctl map`.

A pure function of a ruleset. A chain is reachable from a built-in chain if a row of jumps or
gotos (``-j CHAIN``, ``-g CHAIN``) leads there; others are dead weight, or in the making.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfctl.traversal.hooks import TABLES, Hook, Landmark, Station, steps

if TYPE_CHECKING:
    from nfctl.ruleset import Ruleset, Table

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_TARGET = re.compile(r"(?:^|\s)-[jg] (\S+)")


@dataclass(frozen=True, slots=True)
class Stop:
    """A station with what its chain holds; ``in_use`` is false if the table is not active.

    ``chains`` and ``chain_rules`` count the user-defined chains reachable from this one, and
    the rules in them; ``packets`` and ``octets`` what the policy decided.
    """

    station: Station
    in_use: bool = False
    policy: str = ""
    packets: int = 0
    octets: int = 0
    rules: int = 0
    chains: int = 0
    chain_rules: int = 0


@dataclass(frozen=True, slots=True)
class TableSummary:
    """A table as a whole: its rules, its user-defined chains, and those nothing leads to."""

    name: str
    in_use: bool = False
    rules: int = 0
    chains: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """What every hook holds, in the order in which a packet meets it, and every table."""

    family: int
    hooks: dict[Hook, tuple[Stop | Landmark, ...]]
    tables: tuple[TableSummary, ...]


def picture(ruleset: Ruleset) -> Picture:
    """Lay a ruleset out along the hooks; a table that it lacks counts as not in use."""
    jumps = {name: _jumps(table) for name, table in ruleset.tables.items()}
    hooks: dict[Hook, tuple[Stop | Landmark, ...]] = {
        hook: tuple(
            _stop(step, ruleset.tables.get(step.table), jumps.get(step.table, {}))
            if isinstance(step, Station)
            else step
            for step in steps(hook)
        )
        for hook in Hook
    }
    tables = tuple(_summary(name, ruleset.tables.get(name), jumps.get(name, {})) for name in TABLES)
    return Picture(ruleset.family, hooks, tables)


def jump_target(spec: str) -> str:
    """Return the target of a rule's text: the word behind ``-j`` or ``-g``, or nothing.

    Words inside quotes (a comment) are no options. This is read for every rule of a table, so
    the rest of the text is not taken apart.
    """
    found = _TARGET.search(_QUOTED.sub('""', spec) if '"' in spec else spec)
    return found[1] if found else ""


def reachable(jumps: dict[str, frozenset[str]], start: str) -> frozenset[str]:
    """Return the chains that jumps lead to from ``start``, which is not counted itself."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = jumps.get(waiting.pop(), frozenset()) - found
        found |= new
        waiting.extend(new)
    return frozenset(found)


def _jumps(table: Table) -> dict[str, frozenset[str]]:
    return {
        name: frozenset(jump_target(rule.spec) for rule in chain.rules) & table.chains.keys()
        for name, chain in table.chains.items()
    }


def _stop(station: Station, table: Table | None, jumps: dict[str, frozenset[str]]) -> Stop:
    if table is None or station.chain not in table.chains:
        return Stop(station)
    chain = table.chains[station.chain]
    beyond = reachable(jumps, station.chain)
    return Stop(
        station,
        in_use=True,
        policy=chain.policy or "",
        packets=chain.counters.packets,
        octets=chain.counters.bytes,
        rules=len(chain.rules),
        chains=len(beyond),
        chain_rules=sum(len(table.chains[name].rules) for name in beyond),
    )


def _summary(name: str, table: Table | None, jumps: dict[str, frozenset[str]]) -> TableSummary:
    if table is None:
        return TableSummary(name)
    own = tuple(chain.name for chain in table.chains.values() if chain.policy is None)
    starts = [chain.name for chain in table.chains.values() if chain.policy is not None]
    met = frozenset().union(*(reachable(jumps, start) for start in starts))
    return TableSummary(
        name,
        in_use=True,
        rules=sum(len(chain.rules) for chain in table.chains.values()),
        chains=own,
        unreachable=tuple(chain for chain in own if chain not in met),
    )
