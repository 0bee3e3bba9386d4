"""Network namespaces: entering one by the name that ``ip netns`` gives it.

Sockets belong to the namespace in which they were made, for good: enter before the first
libiptc or netlink call. See network_namespaces(7), setns(2), ip-netns(8).
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
from typing import TYPE_CHECKING

from nfctl.errors import BadInput, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_RUN = "/run/netns"


def enter(name: str) -> None:
    """Move this thread into the namespace ``name`` (of ``ip netns list``, or a path).

    Raises BadInput where there is none of that name, NotPermitted without CAP_SYS_ADMIN.
    """
    fd = _open(name)
    try:
        _setns(fd, name)
    finally:
        os.close(fd)


@contextlib.contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Be in the namespace ``name`` for the ``with`` block; None stays where one is."""
    if name is None:
        yield
        return
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _setns(here, "the one before")
    finally:
        os.close(here)


def _open(name: str) -> int:
    file = name if "/" in name else f"{_RUN}/{name}"
    try:
        return os.open(file if name else "", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        msg = f"network namespace {name} cannot be opened"
        raise NotPermitted(msg, hint="run as root") from None
    except (OSError, ValueError):
        msg = f"there is no network namespace {name!r}"
        raise BadInput(msg, hint=_known()) from None


def _known() -> str:
    names = names_list()
    return f"there are {', '.join(names[:8])}" if names else "ip netns list shows none"


def names_list() -> list[str]:
    """Return the names of the network namespaces, as ``ip netns list`` does."""
    try:
        return sorted(os.listdir(_RUN))
    except OSError:
        return []


def _setns(fd: int, name: str) -> None:
    # os.setns() came with Python 3.12
    libc = ct.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) == 0:
        return
    number = ct.get_errno()
    if number == 22:  # EINVAL: the file is no namespace
        msg = f"{name} is no network namespace"
        raise BadInput(msg)
    msg = f"network namespace {name} cannot be entered: {os.strerror(number)}"
    raise NotPermitted(msg, hint="CAP_SYS_ADMIN is needed: run as root")
