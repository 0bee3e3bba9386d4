"""Which options of the kernel each part of nfctl needs, and what to call the lack of one.

Names are those of ``net/netfilter/Kconfig``, ``net/ipv4/netfilter/Kconfig`` and
``net/ipv6/netfilter/Kconfig``, without ``CONFIG_``; beside each stands the module that it
builds. Matches that are part of x_tables itself (tcp, udp, icmp) need no option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nfctl.kernel.config import Built

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nfctl.kernel.config import KernelConfig


@dataclass(frozen=True, slots=True)
class Need:
    """Options that belong together: a key, what lacks without them, and option -> module."""

    name: str
    without: str
    options: Mapping[str, str]


def _xt(kind: str, names: str) -> dict[str, str]:
    """Options of matches and targets, whose module is ``xt_`` and the name."""
    return {f"NETFILTER_XT_{kind}_{name.upper()}": f"xt_{name}" for name in names.split()}


NEEDS: tuple[Need, ...] = (
    Need(
        "conntrack",
        "rules cannot ask for the state or the mark of a connection, and `nfctl` cannot list them",
        {
            "NF_CONNTRACK": "nf_conntrack",
            "NF_CT_NETLINK": "nf_conntrack_netlink",
            "NETFILTER_XT_CONNMARK": "xt_connmark",
            "NETFILTER_XT_MARK": "xt_mark",
        }
        | _xt("MATCH", "conntrack")
        | _xt("TARGET", "CT"),
    ),
    Need(
        "nat",
        "addresses cannot be translated; virtual services need this",
        {"NF_NAT": "nf_nat", "NETFILTER_XT_NAT": "xt_nat"} | _xt("TARGET", "MASQUERADE REDIRECT"),
    ),
    Need(
        "queue",
        "packets cannot be handed to a program: no inspection (NFQUEUE)",
        {"NETFILTER_NETLINK_QUEUE": "nfnetlink_queue"} | _xt("TARGET", "NFQUEUE"),
    ),
    Need(
        "log",
        "packets cannot be logged or traced (NFLOG, LOG, TRACE)",
        {"NETFILTER_NETLINK_LOG": "nfnetlink_log"} | _xt("TARGET", "NFLOG LOG TRACE"),
    ),
    Need(
        "ipset",
        "rules cannot match a set of addresses",
        {
            "IP_SET": "ip_set",
            "NETFILTER_XT_SET": "xt_set",
            "IP_SET_HASH_IP": "ip_set_hash_ip",
            "IP_SET_HASH_NET": "ip_set_hash_net",
        },
    ),
    Need(
        "matches",
        "rules with these matches are refused",
        _xt(
            "MATCH",
            "addrtype comment connlimit hashlimit iprange limit mac multiport owner recent "
            "statistic string tcpmss",
        ),
    ),
    Need(
        "targets",
        "rules with these targets are refused",
        {"IP_NF_TARGET_REJECT": "ipt_REJECT", "IP6_NF_TARGET_REJECT": "ip6t_REJECT"}
        | _xt("TARGET", "CLASSIFY TCPMSS"),
    ),
    Need(
        "lab",
        "no network labs, and no tests in private namespaces",
        {"NET_NS": "", "VETH": "veth", "BRIDGE": "bridge"},
    ),
)

_PREFIX = {4: "IP", 6: "IP6"}
_ENGINE = {4: "ip_tables", 6: "ip6_tables"}


def table_option(family: Literal[4, 6], table: str) -> tuple[str, str]:
    """Return the option and the module of a legacy table: IP_NF_RAW and iptable_raw."""
    module = f"ip{'6' if family == 6 else ''}table_{table}"
    return f"{_PREFIX[family]}_NF_{table.upper()}", module


def lacking_option(config: KernelConfig, family: Literal[4, 6], table: str) -> str:
    """Name the first option, from the root of Kconfig's tree, that keeps a table away.

    From 6.17 on the tables hang under NETFILTER_XTABLES_LEGACY; before, selecting a table was
    enough. Empty if the configuration is unknown or nothing in it is to blame.
    """
    if config.options is None:
        return ""
    prefix = _PREFIX[family]
    above = [("NETFILTER", ""), ("NETFILTER_XTABLES", "x_tables")]
    if config.version >= (6, 17):
        above.append(("NETFILTER_XTABLES_LEGACY", ""))
        above.append((f"{prefix}_NF_IPTABLES_LEGACY", _ENGINE[family]))
    if family == 6:
        above.insert(0, ("IPV6", "ipv6"))
    for option, module in (*above, table_option(family, table)):
        if config.built(option, module) is Built.NO:
            return option
    return ""
