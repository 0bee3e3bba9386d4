"""Talking to the service manager: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Notifier:
    """Tells the manager at ``NOTIFY_SOCKET`` how the service is; says nothing if there is none.

    An abstract socket ("@...") belongs to a network namespace: open this before entering another.
    ``clock`` is CLOCK_MONOTONIC in seconds. What cannot be sent is lost, as sd_notify(3) has it.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        environment = os.environ if environment is None else environment
        self._clock = clock
        self._socket: socket.socket | None = None
        #: How often the manager wants to hear that we live, in seconds; 0: not at all.
        self.watchdog = 0.0
        address = environment.get("NOTIFY_SOCKET", "")
        if address[:1] not in {"/", "@"}:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            sock.close()
            return
        sock.setblocking(False)
        self._socket = sock
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with contextlib.suppress(ValueError):
                self.watchdog = max(0.0, int(environment.get("WATCHDOG_USEC", "0")) / 1e6)

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, **variables: str | int) -> None:
        """Send variables by their names, such as STATUS="idle"."""
        if self._socket is not None:
            lines = [f"{name}={str(value).replace(chr(10), ' ')}" for name, value in
                     variables.items()]  # fmt: skip
            with contextlib.suppress(OSError):
                self._socket.send("\n".join(lines).encode("utf-8", "backslashreplace"))

    def ready(self, status: str) -> None:
        """Say that the service has started, or has read its configuration again."""
        self.send(READY=1, STATUS=status)

    def reloading(self) -> None:
        """Say that the configuration is being read again; ``ready`` ends it."""
        self.send(RELOADING=1, MONOTONIC_USEC=int(self._clock() * 1e6))

    def alive(self) -> None:
        """Pet the manager's watchdog, if it has one."""
        if self.watchdog:
            self.send(WATCHDOG=1)
