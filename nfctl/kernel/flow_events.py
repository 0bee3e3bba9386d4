"""What conntrack says of flows as it happens (ctnetlink's multicast groups).

The kernel sends no event of a flow that began while nobody listened, as long as
``net.netfilter.nf_conntrack_events`` is 2, the default since Linux 5.19 (before, it was 1: always).
So events make a wait shorter; they are nothing to rely on, and whoever listens looks now and then
as well.
"""

from __future__ import annotations

import errno as errnos
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import NfctlError, NotPermitted
from nfctl.kernel import flows, netlink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_ADD_MEMBERSHIP: Final = 1  # NETLINK_ADD_MEMBERSHIP
_GROUPS: Final = (1, 2, 3)  # NFNLGRP_CONNTRACK_NEW, _UPDATE, _DESTROY
_SUBSYS, _NEW, _DELETE = 1, 0, 2
_PART = 1 << 16  # bytes
_BUFFER: Final = 1 << 22  # bytes
_READS: Final = 1024  # messages that are read in one go


class Event(NamedTuple):
    """A flow began or changed, or has ``ended``; a state that it has not told is -1."""

    entry: flows.Entry
    ended: bool


class Events:
    """Listens in the calling thread's network namespace, from the beginning on.

    NotPermitted without CAP_NET_ADMIN, Unsupported without nfnetlink.
    """

    def __init__(self) -> None:
        self._sock = netlink.netfilter()
        try:
            netlink.size_buffer(self._sock, _BUFFER)
            self._sock.setblocking(False)
            self._sock.bind((0, 0))  # one without a port of its own is sent nothing
            for group in _GROUPS:
                self._sock.setsockopt(netlink.SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            self.close()
            msg = f"conntrack's events cannot be listened to: {error.strerror}"
            if error.errno in {errnos.EPERM, errnos.EACCES}:
                raise NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root") from None
            raise NfctlError(msg) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        self._sock.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are events."""
        return self._sock.fileno()

    def take(self, about: Sequence[bytes] = ()) -> tuple[list[Event], bool]:
        """Return the events since the last time, and whether all are here: some may be lost.

        Of many flows those are wanted that have one of the packed addresses ``about`` somewhere;
        what has none is not taken apart. At most a thousand messages are read in one go.
        """
        found: list[Event] = []
        whole = True
        for _ in range(_READS):
            try:
                part = self._sock.recv(_PART)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errnos.ENOBUFS:
                    reason = os.strerror(error.errno or errnos.EIO)
                    raise NfctlError(f"conntrack's events cannot be read: {reason}") from None
                whole = False
                continue
            if about and not flows.has(part, about):
                continue
            for kind, _, _, start, end in netlink.messages(part):
                if kind >> 8 == _SUBSYS and part[start] in flows.FAMILIES:
                    entry = flows.entry_of(part, start, end)
                    found.append(Event(entry, kind & 0xFF == _DELETE))
        return found, whole
