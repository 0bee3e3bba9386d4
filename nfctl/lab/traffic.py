"""Send something and say what came of it: accepted, rejected or dropped.

Every function acts in the namespace of the calling process, so run it by ``Host.run``:

    client.run(traffic.tcp, "10.0.0.10", 22)

Each is bounded by ``timeout`` (seconds) and returns an :class:`Answer`. The servers are those
of ``Host.serve``, which say whose packets they saw. An error that no packet caused, such as a
missing route, is no answer: it is raised as OSError.

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

from nfctl.lab import icmp

TIMEOUT = 2.0  # seconds: an answer that is expected
DROP_TIMEOUT = 0.3  # seconds: none is expected; it takes well under a millisecond

# linux/in.h, linux/in6.h: not all of them are in Python's socket module.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

_REFUSALS = {errno.ECONNREFUSED: "tcp-reset", errno.ECONNRESET: "tcp-reset"}


class Verdict(StrEnum):
    """What became of a packet, as far as its sender can tell."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt.

    ``reason`` is ``tcp-reset``, the ICMP error in iptables' words (``icmp-port-unreachable``),
    or empty; ``errno`` its error number for the application; ``sender`` who sent the ICMP
    error. ``seen_as`` and ``seen_port`` are our address as the server saw it. ``seconds`` is
    how long it took.
    """

    verdict: Verdict
    seconds: float
    reason: str = ""
    errno: int = 0
    sender: str = ""
    seen_as: str = ""
    seen_port: int = 0


class _Attempt:
    """One socket and its deadline."""

    def __init__(self, address: str, kind: socket.SocketKind, protocol: int, timeout: float):
        self.version = ipaddress.ip_address(address).version
        self.start = time.monotonic()
        self.deadline = self.start + timeout
        family = socket.AF_INET if self.version == 4 else socket.AF_INET6
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        icmp.ask_for_errors(self.socket)

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def bind(self, source: str) -> None:
        """Send from ``source``, whether or not it is an address of this host (ip(7))."""
        if source:
            if self.version == 4:
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            self.socket.bind((source, 0))

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
        if number in _REFUSALS:
            return self.answer(Verdict.REJECTED, reason=_REFUSALS[number], errno=number)
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
        seen: bytes = b"",
    ) -> Answer:
        """Make the answer; ``seen`` is the line that a Service sent."""
        fields = json.loads(seen) if seen else {}
        return Answer(
            verdict=verdict,
            seconds=time.monotonic() - self.start,
            reason=reason,
            errno=errno,
            sender=sender,
            seen_as=fields.get("peer", ""),
            seen_port=fields.get("port", 0),
        )


def tcp(
    address: str,
    port: int,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    request: bytes = b"hello\n",
) -> Answer:
    """Connect, send a request, read the answer until its end, and close in good order."""
    with _Attempt(address, socket.SOCK_STREAM, 0, timeout) as attempt:
        attempt.bind(source)
        try:
            return _converse(attempt, address, port, request)
        except OSError as error:
            return attempt.refusal(error.errno or 0)


def _converse(attempt: _Attempt, address: str, port: int, request: bytes) -> Answer:
    number = attempt.socket.connect_ex((address, port))
    if number not in {0, errno.EINPROGRESS}:
        return attempt.refusal(number)
    refused = attempt.wait(select.POLLOUT)
    if refused is not None:
        return refused
    attempt.socket.send(request)
    data = b""
    closing = False
    while True:
        # With POLLRDHUP alone the end of the stream would be missed before its data.
        refused = attempt.wait(select.POLLIN)
        if refused is not None:
            return refused
        part = attempt.socket.recv(1 << 16)
        if not part:
            return attempt.answer(Verdict.ACCEPTED, seen=data.rpartition(b"\r\n\r\n")[2])
        data += part
        if not closing and not request.startswith(b"GET "):
            attempt.socket.shutdown(socket.SHUT_WR)
            closing = True


def http(
    address: str,
    port: int = 80,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    path: str = "/",
) -> Answer:
    """Ask for ``path`` in HTTP/1.0."""
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    return tcp(address, port, source=source, timeout=timeout, request=request)


def udp(
    address: str,
    port: int,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    request: bytes = b"hello",
) -> Answer:
    """Send one datagram and wait for the answer to it."""
    with _Attempt(address, socket.SOCK_DGRAM, 0, timeout) as attempt:
        attempt.bind(source)
        try:
            attempt.socket.connect((address, port))
            attempt.socket.send(request)
            refused = attempt.wait(select.POLLIN)
            if refused is not None:
                return refused
            return attempt.answer(Verdict.ACCEPTED, seen=attempt.socket.recv(1 << 16))
        except OSError as error:
            return attempt.refusal(error.errno or 0)


def ping(address: str, *, source: str = "", timeout: float = TIMEOUT) -> Answer:
    """Send one ICMP or ICMPv6 echo request from a raw socket and wait for its reply."""
    version = ipaddress.ip_address(address).version
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with _Attempt(address, socket.SOCK_RAW, protocol, timeout) as attempt:
        attempt.bind(source)
        identity = icmp.new_identity()
        try:
            attempt.socket.connect((address, 0))
            attempt.socket.send(icmp.echo_request(version, identity))
            while True:
                refused = attempt.wait(select.POLLIN)
                if refused is not None:
                    return refused
                if icmp.is_echo_reply(version, attempt.socket.recv(1 << 16), identity):
                    return attempt.answer(Verdict.ACCEPTED)
        except OSError as error:
            return attempt.refusal(error.errno or 0)
