"""The sysctls of a new namespace, and those that a topology asks for: net.* of ip-sysctl.rst.

All are written by a process inside the namespace: /proc/sys/net is that of who opens it.
"""

from __future__ import annotations

import contextlib
import os
from enum import Enum
from typing import TYPE_CHECKING

from nfctl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT = "/proc/sys/net"

# Written into every new namespace, before it has a link. New namespaces copy the IPv4 settings
# of the first one (net.core.devconf_inherit_init_net), so nothing may be left to chance. See
# ip-sysctl.rst in the kernel's documentation.
# Older kernels lack some of these keys; a missing family lacks all of its own.
_QUIET = {
    "ipv4/conf/all/rp_filter": "0",  # spoofed packets are for the firewall to drop
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/log_martians": "0",
    "ipv4/conf/default/log_martians": "0",
    "ipv4/icmp_ratelimit": "0",  # every REJECT is answered, also the second within a second
    "ipv6/conf/all/accept_dad": "0",  # addresses are usable at once
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/all/router_solicitations": "0",  # a quiet link: only what a test sends
    "ipv6/conf/default/router_solicitations": "0",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/icmp/ratelimit": "0",
}
_FORWARDING = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
}
# A switch passes frames on and says nothing itself; br_netfilter would show them to iptables.
_SWITCH = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-ip6tables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}


class Role(Enum):
    """What a namespace is to be."""

    HOST = "host"
    ROUTER = "router"
    SWITCH = "switch"


_SETTINGS = {
    Role.HOST: _QUIET,
    Role.ROUTER: _QUIET | _FORWARDING,
    Role.SWITCH: _QUIET | _SWITCH,
}


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all (``ipv6.disable=1`` takes it away)."""
    return os.path.isdir(f"{_ROOT}/ipv6")  # noqa: PTH112 - no path to compute with


def prepare(role: Role) -> None:
    """Give the calling process' new namespace the settings of what it is to be."""
    for key, value in _SETTINGS[role].items():
        with contextlib.suppress(FileNotFoundError):
            _write(key, value)


def write(values: Mapping[str, str], host: str) -> list[str]:
    """Set sysctls of the calling process' namespace; return the names that do not exist.

    Those of IPv6 are left out where the kernel has no IPv6. BadInput, which names the ``host``,
    for a value that the kernel does not take, or a name that is not a namespace's own.
    """
    missing = []
    for name, value in values.items():
        key = _key(name)
        try:
            if not key.startswith("ipv6/") or has_ipv6():
                _write(key, value)
        except FileNotFoundError:
            missing.append(name)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            msg = f'{host}: the kernel does not take "{value}" for the sysctl {name}: {reason}'
            raise BadInput(msg) from None
    return missing


def _key(name: str) -> str:
    """Return the path below /proc/sys/net of a name with dots or slashes (sysctl(8))."""
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})  # conf.eth0/100 is of eth0.100
    first, *parts = name.split("/")
    # All others belong to the machine.
    if first != "net" or not parts or any(part in {"", ".", ".."} for part in parts):
        msg = f"{name.replace('/', '.')} is no sysctl of a host"
        raise BadInput(msg, hint="those are all net.*")
    return "/".join(parts)


def _write(key: str, value: str) -> None:
    descriptor = os.open(f"{_ROOT}/{key}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)
