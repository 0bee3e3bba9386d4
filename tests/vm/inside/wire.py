"""Sockets that belong to a host and are used from here: connections that stay, bulk transfers.

A socket acts in the namespace in which it was made, whoever uses it (socket(2), and
SCM_RIGHTS in unix(7)). So one process can hold both ends of a connection across the device.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host

TIMEOUT = 30.0  # seconds
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_CHUNK = 1 << 16


def open_socket(host: Host, version: int, kind: socket.SocketKind) -> socket.socket:
    """Make a socket in a host and bring it here."""
    ours, theirs = socket.socketpair()

    def make() -> None:
        with socket.socket(_FAMILIES[version], kind) as made:
            socket.send_fds(theirs, [b"+"], [made.fileno()])

    with ours, theirs:
        host.run(make)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    sock = socket.socket(fileno=descriptors[0])
    sock.settimeout(TIMEOUT)
    return sock


@contextlib.contextmanager
def listening(host: Host, version: int, address: str, port: int) -> Iterator[socket.socket]:
    """Listen on a port of a host."""
    with open_socket(host, version, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen()
        yield sock


@contextlib.contextmanager
def connected(
    one: Host, other: Host, version: int, at: tuple[str, int], to: tuple[str, int] | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two hosts and give both ends.

    The other listens ``at`` an address and port, and the one connects ``to`` those, or to others
    that NAT is to change.
    """
    with (
        listening(other, version, *at) as server,
        open_socket(one, version, socket.SOCK_STREAM) as sock,
    ):
        sock.connect(to or at)
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(TIMEOUT)
            yield sock, accepted


def send_all(sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
    """Send bytes from one end of a connection to the other and return what arrived."""
    parts = []

    def receive() -> None:
        with contextlib.suppress(TimeoutError):
            while part := receiver.recv(_CHUNK):
                parts.append(part)

    thread = threading.Thread(target=receive)
    thread.start()
    try:
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
    finally:
        thread.join()
    return b"".join(parts)


def receive(sock: socket.socket, length: int) -> bytes:
    """Receive so many bytes, or what there is before the end of the connection."""
    data = b""
    while len(data) < length and (part := sock.recv(length - len(data))):
        data += part
    return data
