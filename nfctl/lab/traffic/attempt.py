"""One socket with a deadline, and what its packets met: accepted, rejected or dropped.

An ICMP error is read from the socket's error queue (ip(7), IP_RECVERR), which tells its sender,
type and code. It is also the only sure way: while connect(2) still holds the socket, which is
when the error of a neighbour on the same machine arrives, the kernel keeps it to itself.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import select
import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from nfctl.lab.traffic import icmp

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 2.0  # seconds: an answer that is expected
DROP_TIMEOUT = 0.3  # seconds: none is expected; it takes well under a millisecond

WHOAMI = b"whoami\n"  # what the lab's servers answer with whom they see

# linux/in.h, linux/in6.h: not all of them are in Python's socket module.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

# A reset that comes after the server's FIN is EPIPE, tcp_reset() in net/ipv4/tcp_input.c.
_RESETS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE}


class Verdict(StrEnum):
    """What became of a packet, as far as its sender can tell."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    ``reason`` is ``tcp-reset``, the ICMP error in iptables' words (``icmp-port-unreachable``),
    ``closed`` where the server ended a connection without an answer, or empty; ``errno`` its error
    number for the application; ``sender`` who sent the ICMP error. ``seen_as`` and
    ``seen_port`` are our address as the server saw it, ``host`` the lab host that says so.
    ``seconds`` is how long it took, and ``data`` what came back, as it came.
    """

    verdict: Verdict
    seconds: float
    reason: str = ""
    errno: int = 0
    sender: str = ""
    seen_as: str = ""
    seen_port: int = 0
    host: str = ""
    data: bytes = b""


class Attempt:
    """One socket and its deadline, ``timeout`` seconds from now."""

    def __init__(self, address: str, kind: socket.SocketKind, protocol: int, timeout: float):
        self.version = ipaddress.ip_address(address).version
        self.restart(timeout)
        #: What a stream has brought and nobody has taken; and what it has not taken yet.
        self.received = bytearray()
        self.unsent = b""
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        icmp.ask_for_errors(self.socket)

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def restart(self, timeout: float) -> None:
        """Count the time from now."""
        self.start = time.monotonic()
        self.deadline = self.start + timeout

    def bind(self, source: str) -> None:
        """Send from ``source``, whether or not it is an address of this host (ip(7))."""
        if source:
            if self.version == 4:
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            self.socket.bind((source, 0))

    def connect(self, address: str, port: int) -> Answer | None:
        """Connect a stream; an answer if it is rejected or dropped, or None."""
        number = self.socket.connect_ex((address, port))
        if number not in {0, errno.EINPROGRESS}:
            return self.refusal(number)
        return self.wait(select.POLLOUT)

    def exchange(
        self,
        request: bytes,
        enough: Callable[[bytearray], bool] = lambda _: False,
        *,
        half_close: bool = False,
    ) -> Answer | None:
        """Send on a stream and receive, both at once, until it is ``enough`` or ends.

        An answer if it is rejected or dropped meanwhile, or None. ``half_close`` closes our
        end after the request.
        """
        left = memoryview(self.unsent + request)
        try:
            while not enough(self.received):
                if left:
                    left = left[self._send(left) :]
                if half_close and not left:
                    self.socket.shutdown(socket.SHUT_WR)
                    half_close = False
                # With POLLRDHUP alone the end of the stream would be missed before its data.
                refused = self.wait(select.POLLIN | (select.POLLOUT if left else 0))
                if refused is not None:
                    return refused
                try:
                    part = self.socket.recv(1 << 16)
                except BlockingIOError:
                    continue
                if not part:
                    return None
                self.received += part
                if time.monotonic() > self.deadline:
                    return self.answer(Verdict.DROPPED)
            return None
        finally:
            self.unsent = bytes(left)

    def _send(self, data: memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def wait(self, events: int) -> Answer | None:
        """Wait for the socket; an answer if it is known to be rejected or dropped, or None."""
        poll = select.poll()
        poll.register(self.socket, events)
        ready = poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000)
        if not ready:
            return self.answer(Verdict.DROPPED)
        if ready[0][1] & select.POLLERR:
            return self.refusal()
        return None

    def refusal(self, number: int = 0) -> Answer:
        """Say who refused: from the queue of ICMP errors, or else by the socket's error."""
        error = icmp.read_error(self.socket)
        if error is not None:
            return self.answer(
                Verdict.REJECTED, reason=error.name, errno=error.errno, sender=error.sender
            )
        number = number or self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number in _RESETS:
            return self.answer(Verdict.REJECTED, reason="tcp-reset", errno=number)
        if number == errno.EPERM:  # dropped on this very host, in OUTPUT
            return self.answer(Verdict.DROPPED, errno=number)
        if number == errno.ETIMEDOUT:
            return self.answer(Verdict.DROPPED)
        raise OSError(number, errno.errorcode.get(number, "unknown error"))

    def answer(
        self,
        verdict: Verdict,
        *,
        reason: str = "",
        errno: int = 0,
        sender: str = "",
        data: bytes | None = None,
        request: bytes = b"",
    ) -> Answer:
        """Make the answer; ``data`` (what was received) tells more if it answers ``request``."""
        data = bytes(self.received) if data is None else data
        asked = request.strip() == WHOAMI.strip() or request.startswith(b"GET ")
        fields = _fields(data) if asked else {}
        return Answer(
            verdict=verdict,
            seconds=time.monotonic() - self.start,
            reason=reason,
            errno=errno,
            sender=sender,
            seen_as=str(fields.get("peer", "")),
            seen_port=port if isinstance(port := fields.get("port"), int) else 0,
            host=str(fields.get("host", "")),
            data=data,
        )


def _fields(data: bytes) -> dict[str, object]:
    """Read what a server of a lab says, in HTTP or not; nothing where it is another's."""
    try:
        fields = json.loads(data.rpartition(b"\r\n\r\n")[2])
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
