"""The system calls behind namespaces and mounts: unshare(2), setns(2), mount(2), prctl(2), ...

Python has ``os.unshare`` and ``os.setns`` from 3.12 only, and never ``mount``; so they are
called in the C library. All raise :class:`OSError` with the call's errno.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 0x2

# linux/mount.h, of Linux 5.2; the calls have the same numbers on every architecture but alpha.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_OPEN_TREE_FLAGS = 1 | os.O_CLOEXEC | 0x8000  # OPEN_TREE_CLONE, AT_RECURSIVE
_EMPTY_PATH = 0x4  # MOVE_MOUNT_F_EMPTY_PATH
_AT_FDCWD = -100

CAP_NET_ADMIN = 12  # linux/capability.h
CAP_SYS_ADMIN = 21

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str, name: str = "") -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", name or None)


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces of the kinds in ``flags``."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(path: Path, kind: int) -> None:
    """Move the calling process into the namespace that the file ``path`` refers to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns", str(path))
    finally:
        os.close(descriptor)


def mount(source: str | Path, target: str | Path, flags: int) -> None:
    """Bind a directory elsewhere, or change how a mount propagates."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None
    )
    _check(result, "mount", str(target))


def mount_tmpfs(target: Path, mode: str) -> None:
    """Mount a new tmpfs(5), whose root has this mode, as a shared mount."""
    options = f"mode={mode}".encode()
    result = _libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", ctypes.c_ulong(0), options)
    _check(result, "mount", str(target))
    mount("", target, MS_SHARED)


def clone_mount(path: Path) -> int:
    """Return a descriptor of a copy of a mount, with what is mounted on it: open_tree(2).

    A copy of a shared mount is its peer: what is mounted on one appears on the other.
    """
    descriptor = _libc.syscall(
        ctypes.c_long(_OPEN_TREE), _AT_FDCWD, os.fsencode(path), ctypes.c_uint(_OPEN_TREE_FLAGS)
    )
    _check(min(descriptor, 0), "open_tree", str(path))
    return int(descriptor)


def attach_mount(descriptor: int, target: Path) -> None:
    """Put the copy of a mount in its place: move_mount(2)."""
    result = _libc.syscall(
        ctypes.c_long(_MOVE_MOUNT), descriptor, b"", _AT_FDCWD, os.fsencode(target),
        ctypes.c_uint(_EMPTY_PATH),
    )  # fmt: skip
    _check(result, "move_mount", str(target))


def detach(target: Path) -> None:
    """Unmount ``target`` now, also where it is busy: umount2(2) with MNT_DETACH."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)), "umount2", str(target))


def die_with_parent(parent: int) -> None:
    """Have the calling process, a new child of ``parent``, killed when that ends (SIGKILL)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def has_capabilities(*numbers: int) -> bool:
    """Whether the calling process has all these capabilities in effect (proc(5), CapEff)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> number & 1 for number in numbers)
    return False
