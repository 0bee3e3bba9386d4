"""Send something and say what came of it: accepted, rejected or dropped.

Every function acts in the namespace of the calling process, so run it by ``Host.run``:

    client.run(traffic.tcp, "10.0.0.10", 22)

Each is bounded by ``timeout`` (seconds) and returns an :class:`Answer`. The servers are those
of ``Host.serve``, which say whose packets they saw. An error that no packet caused, such as a
missing route, is no answer: it is raised as OSError.

``held`` has connections that stay open between two questions, ``load`` sends many at once;
both can be called by their names here.
"""

from __future__ import annotations

import ipaddress
import select
import socket

from nfctl.errors import BadInput
from nfctl.lab import dns as messages
from nfctl.lab.traffic import icmp
from nfctl.lab.traffic.attempt import DROP_TIMEOUT, TIMEOUT, WHOAMI, Answer, Attempt, Verdict
from nfctl.lab.traffic.held import Held, close, hold, open, say  # noqa: A004 - traffic.open(...)
from nfctl.lab.traffic.load import Tally, many

__all__ = [
    "tcp", "http", "udp", "dns", "ping",
    "hold", "open", "say", "close", "Held",
    "many", "Tally",
    "Answer", "Verdict", "Attempt", "TIMEOUT", "DROP_TIMEOUT",
]  # fmt: skip


def tcp(
    address: str,
    port: int,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    request: bytes = WHOAMI,
) -> Answer:
    """Connect, send a request of any size, read all that comes back, close in good order."""
    with Attempt(address, socket.SOCK_STREAM, 0, timeout) as attempt:
        attempt.bind(source)
        try:
            # A server of HTTP/1.0 closes first, and may take our end for the client's leaving.
            half_close = not request.startswith(b"GET ")
            return (
                attempt.connect(address, port)
                or attempt.exchange(request, half_close=half_close)
                or attempt.answer(Verdict.ACCEPTED, request=request)
            )
        except OSError as error:
            return attempt.refusal(error.errno or 0)


def http(
    address: str,
    port: int = 80,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    path: str = "/",
) -> Answer:
    """Ask for ``path`` in HTTP/1.0; ``data`` has the headers, too."""
    host = f"[{address}]" if ":" in address else address
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode()
    return tcp(address, port, source=source, timeout=timeout, request=request)


def udp(
    address: str,
    port: int,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    request: bytes = WHOAMI.strip(),
) -> Answer:
    """Send one datagram and wait for the answer to it."""
    with Attempt(address, socket.SOCK_DGRAM, 0, timeout) as attempt:
        attempt.bind(source)
        try:
            attempt.socket.connect((address, port))
            attempt.socket.send(request)
            refused = attempt.wait(select.POLLIN)
            if refused is not None:
                return refused
            data = attempt.socket.recv(1 << 16)
            return attempt.answer(Verdict.ACCEPTED, data=data, request=request)
        except OSError as error:
            return attempt.refusal(error.errno or 0)


def dns(
    server: str,
    name: str,
    kind: str = "A",
    port: int = 53,
    *,
    source: str = "",
    timeout: float = TIMEOUT,
    tcp: bool = False,
) -> Answer:
    """Ask a DNS server; ``dns.parse_answer`` reads ``data``, also where it says that it has none.

    A truncated answer is not asked for again over TCP. BadInput if it cannot be asked.
    """
    query = messages.query(name, kind, edns=messages.EDNS_LIMIT)
    protocol = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
    with Attempt(server, protocol, 0, timeout) as attempt:
        attempt.bind(source)
        try:
            if tcp:
                framed = len(query).to_bytes(2) + query
                refused = attempt.connect(server, port) or attempt.exchange(framed, _is_message)
                if refused is not None:
                    return refused
                if not _is_message(attempt.received):
                    return attempt.answer(Verdict.REJECTED, reason="closed")
                return attempt.answer(Verdict.ACCEPTED, data=bytes(attempt.received[2:]))
            attempt.socket.connect((server, port))
            attempt.socket.send(query)
            while True:
                refused = attempt.wait(select.POLLIN)
                if refused is not None:
                    return refused
                data = attempt.socket.recv(1 << 16)
                if _answers(data, query):
                    return attempt.answer(Verdict.ACCEPTED, data=data)
        except OSError as error:
            return attempt.refusal(error.errno or 0)


def _is_message(received: bytearray) -> bool:
    return len(received) >= 2 and len(received) >= 2 + int.from_bytes(received[:2])


def _answers(data: bytes, query: bytes) -> bool:
    try:
        return messages.parse_answer(data).identity == int.from_bytes(query[:2])
    except BadInput:
        return False


def ping(address: str, *, source: str = "", timeout: float = TIMEOUT) -> Answer:
    """Send one ICMP or ICMPv6 echo request from a raw socket and wait for its reply."""
    version = ipaddress.ip_address(address).version
    protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
    with Attempt(address, socket.SOCK_RAW, protocol, timeout) as attempt:
        attempt.bind(source)
        identity = icmp.new_identity()
        try:
            attempt.socket.connect((address, 0))
            attempt.socket.send(icmp.echo_request(version, identity))
            while True:
                refused = attempt.wait(select.POLLIN)
                if refused is not None:
                    return refused
                data = attempt.socket.recv(1 << 16)
                if icmp.is_echo_reply(version, data, identity):
                    return attempt.answer(Verdict.ACCEPTED, data=data)
        except OSError as error:
            return attempt.refusal(error.errno or 0)
