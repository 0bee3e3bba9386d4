"""Whether this is the disposable machine whose tables the tests may change, and if not why.

What ``vagrant/provision.sh vmtest`` runs in has NFCTL_IN_VM=1. Where that is not set, the tests
are skipped. Where it is set and the machine is another all the same, nothing may run at all.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import time

SKIPPED = "runs inside the VM: vagrant/vm test"
# eth0 is how ssh comes in; the device's own three, and the far end of each.
NICS = ("eth1", "eth2", "eth3", "eth4", "eth5", "eth6")
_PATIENCE = 10.0  # seconds; NICs come back some time after the namespace that held them ended


def asked() -> bool:
    """Whether somebody says that this is the virtual machine."""
    return os.environ.get("NFCTL_IN_VM") == "1"


@functools.cache
def objection() -> str:
    """Return why the tests must not run here, or nothing."""
    if not asked():
        return "NFCTL_IN_VM is not 1"
    if os.geteuid() != 0:
        return "needs root"
    try:
        found = subprocess.run(["systemd-detect-virt", "--vm"], capture_output=True, check=False)
    except FileNotFoundError:
        return "needs systemd-detect-virt, to know that this is a virtual machine"
    if found.returncode:
        return "systemd-detect-virt does not say that this is a virtual machine"
    deadline = time.monotonic() + _PATIENCE
    while missing := [nic for nic in NICS if nic not in links()]:
        if time.monotonic() > deadline:
            return f"this machine has no {', '.join(missing)}"
        time.sleep(0.05)
    return ""


def require() -> None:
    """Refuse to go on where the tests must not run: called before whatever touches tables."""
    if reason := objection():
        msg = f"this is not the disposable VM: {reason}"
        raise RuntimeError(msg)


def links() -> set[str]:
    """Return the names of the interfaces of this namespace."""
    return {name for _, name in socket.if_nameindex()}
