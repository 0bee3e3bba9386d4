"""Where a packet goes: hooks, the tables in each, and the landmarks between them.

Pure data, no I/O. A hook is one of netfilter's five places in the IP stack; a table is a
function that hangs in some of them with a priority, lowest first. The order comes from
``enum nf_ip_hook_priorities`` in ``include/uapi/linux/netfilter_ipv4.h`` (IPv6 has the same
numbers in ``netfilter_ipv6.h``), the hooks of each table from its module:
``net/ipv4/netfilter/iptable_{raw,mangle,nat,filter,security}.c`` and the ``ip6table_*``
twins (see ``valid_hooks`` there, and ``nf_nat_ipv4_ops`` for nat's two priorities).

The picture in full, for both families::

    PREROUTING   raw, (conntrack), mangle, nat            then the routing decision:
      INPUT        mangle, filter, security, nat            for this host
      FORWARD      mangle, filter, security                 for another host
    OUTPUT       raw, (conntrack), mangle, nat, filter, security
    POSTROUTING  mangle, nat

Two things surprise people: nat has an INPUT chain (source NAT of what this host receives),
and it comes after filter and security there, because source NAT has priority 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Literal

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)

TABLES: tuple[str, ...] = ("raw", "mangle", "nat", "filter", "security")
"""Every table, in the order in which a packet that this host sends meets them."""


class Hook(StrEnum):
    """The five hooks, named as the built-in chains that hang in them."""

    PREROUTING = "PREROUTING"
    INPUT = "INPUT"
    FORWARD = "FORWARD"
    OUTPUT = "OUTPUT"
    POSTROUTING = "POSTROUTING"

    @property
    def number(self) -> int:
        """The kernel's number of the hook (``enum nf_inet_hooks``)."""
        return _NUMBERS[self]


_NUMBERS = {hook: number for number, hook in enumerate(Hook)}


class Priority(IntEnum):
    """The part of ``enum nf_ip_hook_priorities`` that a ruleset's reader needs."""

    CONNTRACK_DEFRAG = -400
    RAW = -300
    CONNTRACK = -200
    MANGLE = -150
    NAT_DST = -100
    FILTER = 0
    SECURITY = 50
    NAT_SRC = 100


class Landmark(Enum):
    """What happens to a packet between the tables; the value is how people call it."""

    CONNTRACK = "conntrack"
    """The packet gets its connection and its state (``nf_conntrack_in``). Only raw comes
    before, which is why ``CT --notrack`` works there and nowhere else."""

    ROUTING = "routing decision"
    """Behind PREROUTING: for this host (INPUT) or another (FORWARD). Before OUTPUT: which
    interface and source address a local packet gets. ``ip_route_input``, ``ip_route_output``."""

    REROUTING = "re-routing check"
    """mangle and nat OUTPUT route again a packet whose destination, mark or TOS they changed
    (``ip_route_me_harder``). The rest of OUTPUT still sees the first interface with ``-o``;
    POSTROUTING sees the new one."""

    LOCAL_PROCESS = "local process"
    NETWORK = "network"


class Way(Enum):
    """The three ways of a packet. Loopback traffic takes ``LOCAL_OUT``, then ``LOCAL_IN``."""

    LOCAL_IN = "to a local process"
    FORWARDED = "forwarded"
    LOCAL_OUT = "from a local process"


@dataclass(frozen=True, slots=True)
class Station:
    """One table's built-in chain in one hook: the place where its rules meet the packet."""

    hook: Hook
    table: str
    priority: int

    @property
    def chain(self) -> str:
        """The name of the built-in chain, which is the hook's."""
        return self.hook.value

    def __str__(self) -> str:
        """``table:CHAIN``, as the kernel's TRACE writes it."""
        return f"{self.table}:{self.hook.value}"


Step = Station | Landmark

_FILTER_HOOKS = (Hook.INPUT, Hook.FORWARD, Hook.OUTPUT)

# One entry a table: the hooks it hangs in, each with its priority.
_PRIORITIES: dict[str, dict[Hook, Priority]] = {
    "raw": dict.fromkeys((Hook.PREROUTING, Hook.OUTPUT), Priority.RAW),
    "mangle": dict.fromkeys(Hook, Priority.MANGLE),
    "nat": {
        Hook.PREROUTING: Priority.NAT_DST,
        Hook.INPUT: Priority.NAT_SRC,
        Hook.OUTPUT: Priority.NAT_DST,
        Hook.POSTROUTING: Priority.NAT_SRC,
    },
    "filter": dict.fromkeys(_FILTER_HOOKS, Priority.FILTER),
    "security": dict.fromkeys(_FILTER_HOOKS, Priority.SECURITY),
}

_ROUTES: dict[Way, tuple[Hook | Landmark, ...]] = {
    Way.LOCAL_IN: (
        Landmark.NETWORK,
        Hook.PREROUTING,
        Landmark.ROUTING,
        Hook.INPUT,
        Landmark.LOCAL_PROCESS,
    ),
    Way.FORWARDED: (
        Landmark.NETWORK,
        Hook.PREROUTING,
        Landmark.ROUTING,
        Hook.FORWARD,
        Hook.POSTROUTING,
        Landmark.NETWORK,
    ),
    Way.LOCAL_OUT: (
        Landmark.LOCAL_PROCESS,
        Landmark.ROUTING,
        Hook.OUTPUT,
        Landmark.REROUTING,
        Hook.POSTROUTING,
        Landmark.NETWORK,
    ),
}

# conntrack looks connections up where packets enter netfilter: from outside and from here.
_CONNTRACK_HOOKS = frozenset({Hook.PREROUTING, Hook.OUTPUT})


def builtin_chains(table: str) -> tuple[Hook, ...]:
    """Return the built-in chains of a table in hook order, the same for both families.

    Raises KeyError for a name that is no table.
    """
    hooks = _PRIORITIES[table]
    return tuple(hook for hook in Hook if hook in hooks)


def is_builtin(table: str, chain: str) -> bool:
    """Tell whether a chain's name is one of the table's built-in chains."""
    return any(hook.value == chain for hook in _PRIORITIES.get(table, ()))


def priority(table: str, hook: Hook) -> int:
    """Return the priority with which a table hangs in a hook; KeyError if it does not."""
    return int(_PRIORITIES[table][hook])


def stations(hook: Hook) -> tuple[Station, ...]:
    """Return the tables in one hook, in the order in which a packet meets them."""
    found = [
        Station(hook, table, int(hooks[hook]))
        for table, hooks in _PRIORITIES.items()
        if hook in hooks
    ]
    return tuple(sorted(found, key=lambda station: station.priority))


def steps(hook: Hook) -> tuple[Step, ...]:
    """Return :func:`stations` with the conntrack lookup put between them where there is one."""
    found: list[Step] = list(stations(hook))
    if hook in _CONNTRACK_HOOKS:
        after = [s for s in stations(hook) if s.priority > Priority.CONNTRACK]
        found.insert(found.index(after[0]), Landmark.CONNTRACK)
    return tuple(found)


def route(way: Way) -> tuple[Hook | Landmark, ...]:
    """Return a way as hooks and the landmarks between them."""
    return _ROUTES[way]


def path(way: Way) -> tuple[Step, ...]:
    """Return every station and landmark of a way, in the order a packet meets them."""
    found: list[Step] = []
    for part in _ROUTES[way]:
        if isinstance(part, Hook):
            found.extend(steps(part))
        else:
            found.append(part)
    return tuple(found)


def nat_kind(hook: Hook) -> Literal["dst", "src"]:
    """Return which address nat's chain in a hook may change: destination or source."""
    return "dst" if _PRIORITIES["nat"][hook] == Priority.NAT_DST else "src"
