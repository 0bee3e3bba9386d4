"""Which hook, table and chain a packet meets, and why: pure, no C library, no root.

Read :mod:`nfctl.traversal.hooks` first; it holds the order of everything.
"""

from nfctl.traversal.hooks import (
    FAMILIES,
    TABLES,
    Family,
    Hook,
    Landmark,
    Priority,
    Station,
    Step,
    Way,
    builtin_chains,
    is_builtin,
    nat_kind,
    path,
    priority,
    route,
    stations,
    steps,
)

__all__ = [
    "FAMILIES",
    "TABLES",
    "Family",
    "Hook",
    "Landmark",
    "Priority",
    "Station",
    "Step",
    "Way",
    "builtin_chains",
    "is_builtin",
    "nat_kind",
    "path",
    "priority",
    "route",
    "stations",
    "steps",
]
