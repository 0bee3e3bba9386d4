"""Servers inside a host: for as long as the lab's process lives, or on their own.

What they answer is told in ``server``. A :class:`Service` also reports each arrival to the
lab's process, so that a packet which got through is noticed even when its answer does not come
back. :func:`stand` makes a server that outlives its maker and ends with its namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from nfctl.lab import fork
from nfctl.lab.services.server import Server
from nfctl.lab.topology import ServicesPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_READY_TIMEOUT = 10.0  # seconds
_REPORTS_BUFFER = 1 << 23  # bytes: ten thousand arrivals that nobody has read yet
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h: not in Python's socket module
_PR_SET_NAME = 15  # linux/prctl.h
_COMM = b"nfctl-service"


class Arrival(NamedTuple):
    """A connection or datagram that reached the server: on which port, and from where."""

    protocol: str
    port: int
    peer: str
    peer_port: int


class Service:
    """A running server; made by :meth:`nfctl.lab.Host.serve`, ends with the lab.

    ``name`` is the host's, for the answers, and ``names`` are those that DNS knows.
    """

    def __init__(
        self,
        enter: Callable[[], None],
        tcp: tuple[int, ...] = (),
        udp: tuple[int, ...] = (),
        *,
        http: tuple[int, ...] = (),
        dns: tuple[int, ...] = (),
        names: Mapping[str, tuple[str, ...]] | None = None,
        name: str = "",
    ) -> None:
        self.plan = ServicesPlan(tcp=tcp, http=http, udp=udp, dns=dns)
        # Messages in one direction; and when this end closes, also by SIGKILL, the server ends.
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            serve = (self.plan, names or {}, name, theirs, self._reports)
            self._child = fork.Child(_serve, enter, *serve)
        except BaseException:
            self._reports.close()
            raise
        finally:
            theirs.close()
        self._reports.settimeout(_READY_TIMEOUT)
        try:
            ready = self._reports.recv(1)
            if not ready:
                self._child.result(_READY_TIMEOUT)  # raises what went wrong
        except BaseException:
            self.close()
            raise
        self._reports.setblocking(False)

    def arrivals(self) -> list[Arrival]:
        """Return what has arrived since the last call, oldest first; never waits."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while report := self._reports.recv(1024):
                found.append(Arrival(*json.loads(report)))
        return found

    def close(self) -> None:
        """End the server."""
        self._reports.close()
        self._child.kill()


def _serve(
    enter: Callable[[], None],
    plan: ServicesPlan,
    names: Mapping[str, tuple[str, ...]],
    name: str,
    reports: socket.socket,
    theirs: socket.socket,
) -> None:
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab to answer
    enter()

    def report(protocol: str, port: int, peer: tuple[str, int]) -> None:
        with contextlib.suppress(BlockingIOError):  # nobody reads them: never wait for that
            reports.send(json.dumps([protocol, port, *peer]).encode())

    server = Server(plan, names, name=name, report=report)
    with contextlib.suppress(PermissionError):
        reports.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _REPORTS_BUFFER)
    reports.send(b"+")
    reports.setblocking(False)
    server.run(until=reports)


def stand(
    enter: Callable[[], None],
    plan: ServicesPlan,
    names: Mapping[str, tuple[str, ...]],
    *,
    name: str = "",
) -> None:
    """Start a server that nobody has to wait for: it listens on return, and stays until killed.

    BadInput if a port is taken. It is in a session of its own, a child of init (or of whoever
    collects orphans), called ``nfctl-service``, and holds no file of the caller's. SIGTERM ends
    it; SIGINT and SIGHUP, which are meant for terminals, do not.
    """
    if plan:
        # What comes back comes through a pipe that the server inherits, too, until it has let
        # go of everything: on return it has.
        fork.call(_stand, enter, plan, names, name)


def _stand(
    enter: Callable[[], None],
    plan: ServicesPlan,
    names: Mapping[str, tuple[str, ...]],
    name: str,
) -> None:
    """In a child, which ends at once: open the ports, and leave them to a child of its own."""
    enter()
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass  # standard streams that the caller closed: no socket may get their numbers
    server = Server(plan, names, name=name)
    with fork.signals_blocked(), fork.fork_is_safe():
        if os.fork():
            return
        try:
            _detach([sock.fileno() for sock in server.sockets()])
            server.run()
        finally:
            os._exit(1)


def _detach(keep: list[int]) -> None:
    """Let go of all that came from the caller but the files in ``keep``."""
    os.setsid()
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, fork.ENDING)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, _COMM, 0, 0, 0)
    # Objects of the caller's hold numbers of files that will be others' here: none may be freed.
    gc.freeze()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    first = 3
    for number in sorted(keep):
        os.closerange(first, number)
        first = number + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
