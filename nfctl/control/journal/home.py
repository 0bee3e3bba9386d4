"""Where the state of a network namespace lies.

``NFCTL_STATE_DIR`` if that is set; else ``/var/lib/nfctl`` for the machine (or container) itself,
``/var/lib/nfctl/netns/NAME`` for a namespace with a name (ip-netns(8)). One without a name ends
with the machine's next restart at the latest, and so does its state, in ``/run/nfctl/netns``.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

HOME = Path("/var/lib/nfctl")
PASSING = Path("/run/nfctl/netns")
NAMED = Path("/run/netns")
# it is there in the machine's first namespace only: see net/core/sysctl_net_core.c
_FIRST = Path("/proc/sys/net/core/netdev_budget")
_SO_NETNS_COOKIE = 71


def directory() -> Path:
    """Return the directory for the network namespace that this thread is in."""
    asked = os.environ.get("NFCTL_STATE_DIR")
    if asked:
        return Path(asked)
    here = _namespace("/proc/thread-self/ns/net")
    if _FIRST.exists() or here == _namespace("/proc/1/ns/net"):
        return HOME
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(NAMED)):
            if here == _namespace(NAMED / name):
                return HOME / "netns" / name
    return PASSING / (_cookie() or "unknown")


def _namespace(file: Path | str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)  # noqa: PTH116 - some are text
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _cookie() -> str:
    """Return what names the namespace until the restart: inodes are used again and again.

    SO_NETNS_COOKIE came with Linux 5.14; "" before that.
    """
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe,
    ):
        return str(
            int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
        )
    return ""
