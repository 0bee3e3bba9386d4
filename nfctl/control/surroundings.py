"""What a host is like, as far as a first policy has to know: sshd's ports, and who forwards.

Nothing here needs root; what cannot be read is taken as not there. ``root`` is where the file
system begins, for tests.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nfctl.control import guard
from nfctl.control.ownership import Ownership
from nfctl.errors import NfctlError
from nfctl.policy.starter import Surroundings
from nfctl.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_CONFIGURATION: Final = "etc/ssh/sshd_config"
_MAX_FILES: Final = 100  # that sshd's configuration may include
_LINE: Final = re.compile(r'\s*(\w+)(?:\s*=\s*|\s+)"?([^"#]*)')
_LISTEN: Final = re.compile(r"(?:\[[^\]]*\]|[^\s:]+):(\d+)")
_LEASES: Final = (
    "run/systemd/netif/leases/*",
    "var/lib/NetworkManager/*.lease",
    "var/lib/dhcp/dhclient*.leases",
    "var/lib/dhclient/*.lease*",
    "var/lib/dhcpcd/*.lease",
)
#: Programs that write chains on hosts that forward nothing.
_HOSTS_ALONE: Final = frozenset({"fail2ban", "ufw", "firewalld", "nfctl"})
_SWITCHES: Final = {
    "proc/sys/net/ipv4/ip_forward": "net.ipv4.ip_forward",
    "proc/sys/net/ipv6/conf/all/forwarding": "net.ipv6.conf.all.forwarding",
}


def look(
    ports: Iterable[int] = (),
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
) -> Surroundings:
    """Return what this host is like; ``ports`` are sshd's, if somebody says them."""
    ssh, why = list(dict.fromkeys(ports)), "The ports of sshd, as they were given."
    if not ssh:
        ssh, why = _ssh(root, environ)
    return Surroundings(
        ssh,
        why,
        [*_sysctls(root), *_interfaces(root), *_chains(root)],
        any(next(root.glob(leases), None) is not None for leases in _LEASES),
        (root / "proc/sys/net/ipv6").exists(),
    )


# --- SSH ----------------------------------------------------------------------------------------


def _ssh(root: Path, environ: Mapping[str, str] | None) -> tuple[list[int], str]:
    """Return the ports of sshd: the one that somebody came by, and those it is configured for."""
    configured = list(_configured(root / _CONFIGURATION, root, set()))
    operator = guard.operator(environ)
    if operator is not None:
        ports = list(dict.fromkeys([operator.port, *configured]))
        why = "The port of your SSH connection"
        return ports, f"{why}, and those of sshd_config." if len(ports) > 1 else f"{why}."
    if configured:
        return list(dict.fromkeys(configured)), "As /etc/ssh/sshd_config says."
    default = Surroundings()
    return default.ssh, default.ssh_why


def _configured(file: Path, root: Path, seen: set[Path]) -> Iterator[int]:
    """Yield the ports that sshd_config(5) says: Port, ListenAddress, and Include of others."""
    if file in seen or len(seen) >= _MAX_FILES:
        return
    seen.add(file)
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        found = _LINE.match(line)
        keyword, value = (found[1].lower(), found[2].strip()) if found else ("", "")
        if keyword == "match":  # up to the end: what holds for some connections only
            return
        if keyword == "include":
            for pattern in value.split():
                # relative ones are from /etc/ssh
                path = pattern.lstrip("/") if pattern[:1] == "/" else f"etc/ssh/{pattern}"
                with contextlib.suppress(ValueError, NotImplementedError):
                    for other in sorted(root.glob(path)):
                        yield from _configured(other, root, seen)
        number = value.split(" ")[0] if keyword == "port" else ""
        if keyword == "listenaddress":
            listen = _LISTEN.match(value)
            number = listen[1] if listen else ""
        if number.isdecimal() and 0 < int(number[:6]) < 1 << 16:
            yield int(number)


# --- forwarding ---------------------------------------------------------------------------------


def _sysctls(root: Path) -> Iterator[str]:
    for file, name in _SWITCHES.items():
        with contextlib.suppress(OSError, ValueError):
            if int((root / file).read_text(encoding="ascii")) > 0:
                yield f"the sysctl {name} is on"


def _interfaces(root: Path) -> Iterator[str]:
    try:
        names = sorted(os.listdir(root / "sys/class/net"))
    except OSError:
        return
    whose = Ownership()
    for name in names:
        owner = whose.owner(4, "filter", f"-i {name}")
        if owner:
            yield f"the interface {name} is {owner}'s"


def _chains(root: Path) -> Iterator[str]:
    """Yield whose chains there are in the filter tables, where that can be seen."""
    if root != Path("/"):
        return
    from nfctl.kernel.blob import Blob
    from nfctl.kernel.table import active_tables

    whose = Ownership()
    owners: dict[str, str] = {}
    for family in (4, 6):
        with contextlib.suppress(NfctlError):
            if "filter" in active_tables(family):
                for chain, _, _ in Blob(family, "filter").chains:
                    owners.setdefault(whose.chain_owner(chain), chain)
    for owner, chain in owners.items():
        if owner and owner not in _HOSTS_ALONE:
            yield f"there are chains of {owner}, such as {visible(chain)}"
