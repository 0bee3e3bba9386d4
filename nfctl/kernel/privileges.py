"""What the calling process may do, and where it stands: capabilities and namespaces.

See proc_pid_status(5) for ``CapEff``, capabilities(7) for the numbers, user_namespaces(7)
for ``uid_map`` and network_namespaces(7). libiptc needs CAP_NET_ADMIN in the user namespace
that owns the network namespace, and CAP_NET_RAW because it opens a raw socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RUN_NETNS = Path("/run/netns")

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13

# A user namespace that maps every id to itself is the initial one, or as good as it.
_ALL_IDS = ["0", "0", "4294967295"]


@dataclass(frozen=True, slots=True)
class Privileges:
    """The answers; ``netns_initial`` is None when init's namespace cannot be looked at."""

    net_admin: bool
    net_raw: bool
    user_namespace: bool
    netns: int
    netns_name: str
    netns_initial: bool | None


def read_privileges(*, proc: Path = PROC, run_netns: Path = RUN_NETNS) -> Privileges:
    """Look at the calling thread; OSError or ValueError if ``/proc`` does not answer."""
    effective = _effective((proc / "self/status").read_text())
    inode = (proc / "thread-self/ns/net").stat().st_ino
    return Privileges(
        net_admin=bool(effective >> CAP_NET_ADMIN & 1),
        net_raw=bool(effective >> CAP_NET_RAW & 1),
        user_namespace=in_user_namespace(proc=proc),
        netns=inode,
        netns_name=_netns_name(run_netns, inode),
        netns_initial=_same_as_init(proc, inode),
    )


def in_user_namespace(*, proc: Path = PROC) -> bool:
    """Whether the process is in another user namespace than the initial one; OSError."""
    return (proc / "self/uid_map").read_text().split() != _ALL_IDS


def _effective(status: str) -> int:
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    message = "no CapEff line in /proc/self/status"
    raise ValueError(message)


def _netns_name(run_netns: Path, inode: int) -> str:
    """Find the name that ``ip netns`` gave a namespace: a bind mount with its inode."""
    try:
        for entry in sorted(run_netns.iterdir()):
            if entry.stat().st_ino == inode:
                return entry.name
    except OSError:
        pass
    return ""


def _same_as_init(proc: Path, inode: int) -> bool | None:
    try:
        return (proc / "1/ns/net").stat().st_ino == inode
    except OSError:
        return None
