"""A list of services as a policy: what the engine of ``nfctl apply`` makes of it.

The policy's name is ``services-PREFIX``. It owns all chains whose names :mod:`nfctl.services.names`
makes with that prefix, and shares the built-in ones: of those, its jumps alone are its own. So it
lives beside other policies, and beside Docker, Kubernetes and the like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedTable
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.services import chains

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nfctl.services.chains import Key
    from nfctl.services.model import ServiceList

FAMILIES = (4, 6)


def policy_name(prefix: str) -> str:
    """Return the name of the policy that has the services of a prefix."""
    return f"services-{prefix.rstrip('-')}"


def wanted(settings: ServiceList, files: Sequence[tuple[str, str]] = ()) -> Wanted:
    """Return the policy: chains in each family in which there is a service, none in others."""
    found = _empty(settings, files)
    for family in chains.families(settings):
        made, jumps = chains.compiled(settings, family)
        found.tables[family] = tables(made, jumps, _source(files))
    return found


def light(settings: ServiceList, files: Sequence[tuple[str, str]] = ()) -> Wanted:
    """Return the policy with the chains alone that any list has: enough for its record."""
    found = _empty(settings, files)
    for family in chains.families(settings):
        made, jumps = chains.Compiler(settings, family).frame()
        found.tables[family] = tables(made, jumps, _source(files))
    return found


def tables(
    made: Mapping[Key, list[str]], jumps: Mapping[Key, list[str]], source: str = ""
) -> dict[str, WantedTable]:
    """Return chains as the tables of a policy."""
    found: dict[str, WantedTable] = {}
    new = tuple.__new__  # a NamedTuple's own constructor is slow, and there may be 200,000 rules
    for shared, part in ((True, jumps), (False, made)):
        for (table, chain), specs in part.items():
            what = found.setdefault(table, WantedTable())
            rules = [new(WantedRule, (spec, source, 0, 0, None, None)) for spec in specs]
            what.chains[chain] = WantedChain(
                rules, shared=shared and chain in BUILTIN_CHAINS[table]
            )
    return found


def _empty(settings: ServiceList, files: Sequence[tuple[str, str]]) -> Wanted:
    return Wanted(policy_name(settings.prefix), files=list(files), services=settings.listed())


def _source(files: Sequence[tuple[str, str]]) -> str:
    return files[0][0] if files else "services"
