"""Named network namespaces: create, enter, list, see who is inside, remove.

A name is a bind mount of ``/proc/<pid>/ns/net`` under ``/run/netns``, as ip-netns(8) makes
it, so that ``ip netns exec`` and everybody else can use a lab's hosts. The mount point
``/run/netns`` itself is made on first use and stays, as with ``ip netns add``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from pathlib import Path

from nfctl.errors import BadInput, NotPermitted, Unsupported
from nfctl.lab import fork, syscalls

DIRECTORY = Path("/run/netns")
PREFIX = "nfctl-"

AS_ROOT = (
    "run it as root, or in a user namespace of your own: "
    "unshare -Urnm sh -c 'mount -t tmpfs tmpfs /run && exec bash'"
)

_IPV4 = Path("/proc/sys/net/ipv4")
_IPV6 = Path("/proc/sys/net/ipv6")

# Written into every new namespace, before it has a link. New namespaces copy the IPv4 settings
# of the first one (net.core.devconf_inherit_init_net), so nothing may be left to chance. See
# ip-sysctl.rst in the kernel's documentation.
_SYSCTLS = {
    _IPV4: {
        "conf/all/rp_filter": 0,  # spoofed packets are for the firewall to drop
        "conf/default/rp_filter": 0,
        "conf/all/log_martians": 0,
        "conf/default/log_martians": 0,
        "icmp_ratelimit": 0,  # every REJECT is answered, also the second within a second
    },
    _IPV6: {
        "conf/all/accept_dad": 0,  # addresses are usable at once
        "conf/default/accept_dad": 0,
        "conf/all/router_solicitations": 0,  # a quiet link: only what a test sends
        "conf/default/router_solicitations": 0,
        "conf/all/accept_ra": 0,
        "conf/default/accept_ra": 0,
        "icmp/ratelimit": 0,
    },
}
_FORWARDING = {
    _IPV4: {"ip_forward": 1},
    _IPV6: {"conf/all/forwarding": 1, "conf/default/forwarding": 1},
}


def path_of(name: str) -> Path:
    """Return the file of the namespace called ``name``."""
    return DIRECTORY / name


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all (``ipv6.disable=1`` takes it away)."""
    return _IPV6.is_dir()


def names(prefix: str = PREFIX) -> list[str]:
    """Return the names that begin with ``prefix``, sorted."""
    try:
        return sorted(path.name for path in DIRECTORY.iterdir() if path.name.startswith(prefix))
    except FileNotFoundError:
        return []


def require_privileges() -> None:
    """Raise NotPermitted unless the caller may make namespaces and mounts."""
    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        raise NotPermitted(
            "making network namespaces needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
            hint=AS_ROOT,
        )


def check_word(word: str, what: str) -> str:
    """Return ``word`` if it can be a part of a namespace's name, or raise BadInput."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,30}", word):
        raise BadInput(
            f'"{word}" is no name for a {what}',
            hint="lower-case letters and digits, a letter first, 31 at most",
        )
    return word


def create(name: str, *, forward: bool) -> None:
    """Make a namespace with ``lo`` up and quiet settings; ``forward`` makes it a router.

    Unsupported if the kernel has no network namespaces, NotPermitted if it refuses,
    BadInput if the name is taken.
    """
    try:
        fork.call(_create, name, forward)
    except FileExistsError:
        raise BadInput(f"the network namespace {name} exists already") from None
    except PermissionError as error:
        raise NotPermitted(
            f"cannot make a network namespace: {error}",
            hint=f"{AS_ROOT}; a container must allow mount(2)",
        ) from None
    except OSError as error:
        if error.errno == errno.EROFS:
            raise NotPermitted(f"cannot set up a network namespace: {error}") from None
        if error.errno in {errno.EINVAL, errno.ENOSYS}:
            raise Unsupported(f"cannot make a network namespace: {error}") from None
        raise


def _create(name: str, forward: bool) -> None:
    """In a child: make the namespace its own, then pin it under its name."""
    _share_directory()
    target = path_of(name)
    target.touch(mode=0o600, exist_ok=False)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.mount("/proc/self/ns/net", target, syscalls.MS_BIND)
    except OSError:
        target.unlink()
        raise
    for settings in (_SYSCTLS, _FORWARDING) if forward else (_SYSCTLS,):
        for root, values in settings.items():
            for key, value in values.items():
                # Older kernels lack some of these keys; a missing family lacks all.
                with contextlib.suppress(FileNotFoundError):
                    (root / key).write_text(str(value))
    from nfctl.lab import wiring

    wiring.loopback_up()


def _share_directory() -> None:
    """Make ``/run/netns`` a shared mount, so that names appear in all mount namespaces."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        syscalls.mount("", DIRECTORY, syscalls.MS_SHARED | syscalls.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
            raise
        syscalls.mount(DIRECTORY, DIRECTORY, syscalls.MS_BIND | syscalls.MS_REC)
        syscalls.mount("", DIRECTORY, syscalls.MS_SHARED | syscalls.MS_REC)


def enter(name: str, *, run: Path | None = None) -> None:
    """Move the calling process, which must be a child of its own, into a namespace.

    With ``run``, also into a mount namespace where that directory is ``/run``: the xtables
    lock and every socket under ``/run`` are then private to those who share the directory.
    """
    syscalls.setns(path_of(name), syscalls.CLONE_NEWNET)
    if run is not None:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", syscalls.MS_SLAVE | syscalls.MS_REC)  # nothing leaks back
        syscalls.mount(run, "/run", syscalls.MS_BIND)


def processes(name: str) -> list[int]:
    """Return the ids of the processes in a namespace; none if it does not exist."""
    try:
        wanted = path_of(name).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It may end while we look; a dead one that nobody waited for has no namespace.
            with contextlib.suppress(OSError):
                status = (entry / "ns/net").stat()
                if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.append(int(entry.name))
    return found


def kill_processes(name: str, timeout: float = 5.0) -> None:
    """Kill (SIGKILL) what runs in a namespace and wait until it is gone, ``timeout`` s at most."""
    deadline = time.monotonic() + timeout
    while inside := processes(name):
        if os.getpid() in inside:
            raise BadInput(f"a process inside {name} cannot take {name} away")
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                _kill_and_wait(pid, deadline)
        if time.monotonic() > deadline:
            return  # stuck in the kernel; the namespace lives until they end


def _kill_and_wait(pid: int, deadline: float) -> None:
    descriptor = os.pidfd_open(pid)  # readable when the process has ended
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(descriptor)


def remove(name: str) -> None:
    """Take a name away; the kernel frees the namespace once nobody is inside it."""
    with contextlib.suppress(OSError):  # not mounted: a half-made one
        syscalls.detach(path_of(name))
    with contextlib.suppress(FileNotFoundError):
        path_of(name).unlink()
