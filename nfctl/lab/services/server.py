"""All servers of one host in one process: their sockets, and the loop that answers on them.

    tcp     an echo; a line ``whoami`` and ``GET `` are answered (see ``talks.Greeting``)
    http    HTTP/1.1 (see ``httpd``)
    udp     an echo; the datagram ``whoami`` is answered by the same line of JSON
    dns     over UDP and TCP, with the lab's names (see ``dns``)

Each is served in both families, each family by sockets of its own. A datagram is answered from
the address that it was sent to, whichever that is (ip(7) and ipv6(7), IP_PKTINFO).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import resource
import selectors
import socket
import struct
from typing import TYPE_CHECKING

from nfctl.errors import BadInput
from nfctl.lab import dns, namespaces
from nfctl.lab.services import talks
from nfctl.lab.services.httpd import Http
from nfctl.lab.services.streams import Stream, Talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nfctl.lab.topology import ServicesPlan

    Report = Callable[[str, int, tuple[str, int]], None]

_BACKLOG = 65535  # connections; the kernel makes it net.core.somaxconn
_RECEIVE_BUFFER = 1 << 22  # bytes of datagrams that may come at once
_AT_ONCE = 64  # connections or datagrams, before others have their turn
_MAX_DATAGRAM = 65535  # bytes
_IP_PKTINFO = 8  # linux/in.h: not in Python's socket module
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h: the same
_PKTINFO4 = struct.Struct("=I4s4s")  # interface, source to use, destination that it had
_PKTINFO6 = struct.Struct("=16sI")  # address, interface


class Server:
    """Listening from the start; :meth:`run` answers. BadInput if a port is taken.

    ``name`` is the lab host's, for the answers; ``report`` is called for each arrival with the
    protocol, our port and the client.
    """

    def __init__(
        self,
        plan: ServicesPlan,
        names: Mapping[str, tuple[str, ...]],
        *,
        name: str = "",
        report: Report | None = None,
    ) -> None:
        self._name = name
        self._report = report
        self._selector: selectors.BaseSelector
        self._waiting: list[socket.socket] = []  # listeners, while there is no file left to open
        self._zone = zone = dns.Zone(names)
        #: What each socket is for: the talk of a listener, or who answers a datagram.
        self._listeners: dict[socket.socket, Callable[[Stream], Talk]] = {}
        self._datagrams: dict[socket.socket, Callable[[bytes, tuple[str, int]], bytes | None]] = {}
        try:
            for family in _families():
                for ports, talk in (
                    (plan.tcp, talks.Greeting),
                    (plan.http, Http),
                    (plan.dns, lambda stream: talks.Queries(stream, zone)),
                ):
                    for port in ports:
                        self._listeners[_listen(family, port)] = talk
                for port in plan.udp:
                    self._datagrams[_receive(family, port)] = self._echo
                for port in plan.dns:
                    self._datagrams[_receive(family, port)] = self._resolve
        except BaseException:
            for sock in self.sockets():
                sock.close()
            raise

    def sockets(self) -> list[socket.socket]:
        """Return the sockets that it listens on."""
        return [*self._listeners, *self._datagrams]

    def run(self, until: socket.socket | None = None) -> None:
        """Answer until the other end of ``until`` closes."""
        _allow_files()
        with selectors.DefaultSelector() as self._selector:
            for sock in self._listeners:
                self._selector.register(sock, selectors.EVENT_READ, self._accept)
            for sock in self._datagrams:
                self._selector.register(sock, selectors.EVENT_READ, self._datagram)
            if until is not None:
                self._selector.register(until, selectors.EVENT_READ)
            while True:
                for key, events in self._selector.select():
                    if key.data is None:
                        return
                    if isinstance(key.data, Stream):
                        self._go_on(key.data, events, key.events)
                    else:
                        key.data(key.fileobj)

    # --- connections --------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, peer = listener.accept()
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE}:
                    # The connection stays in the backlog, and is ready all the time.
                    self._selector.unregister(listener)
                    self._waiting.append(listener)
                return  # also where the client has gone away already
            if self._report is not None:
                self._report("tcp", listener.getsockname()[1], peer[:2])
            stream = Stream(sock, peer[:2], self._name)
            stream.talk = self._listeners[listener](stream)
            self._selector.register(sock, stream.events, stream)

    def _go_on(self, stream: Stream, events: int, watched: int) -> None:
        wanted = 0
        with contextlib.suppress(OSError):  # a client may go away at any moment
            stream.ready(events)
            wanted = stream.events
        if wanted == 0:
            self._selector.unregister(stream.socket)
            stream.socket.close()
            while self._waiting:
                self._selector.register(self._waiting.pop(), selectors.EVENT_READ, self._accept)
        elif wanted != watched:
            self._selector.modify(stream.socket, wanted, stream)

    # --- datagrams ----------------------------------------------------------------------------

    def _datagram(self, sock: socket.socket) -> None:
        answer = self._datagrams[sock]
        for _ in range(_AT_ONCE):
            try:
                data, messages, _, peer = sock.recvmsg(_MAX_DATAGRAM, socket.CMSG_SPACE(64))
            except OSError:
                return
            if self._report is not None:
                self._report("udp", sock.getsockname()[1], peer[:2])
            reply = answer(data, peer[:2])
            if reply is not None:
                # It may not be sent, as by a rule of OUTPUT: then it is lost, as datagrams are.
                with contextlib.suppress(OSError):
                    sock.sendmsg([reply], list(_answer_from(messages)), 0, peer)

    def _echo(self, data: bytes, peer: tuple[str, int]) -> bytes:
        if data == b"whoami" or talks.WHOAMI.fullmatch(data):
            return talks.whoami(peer, self._name)
        return data

    def _resolve(self, data: bytes, _peer: tuple[str, int]) -> bytes | None:
        return self._zone.answer(data, limit=dns.UDP_LIMIT)


def _answer_from(messages: list[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, bytes]]:
    """Turn where a datagram was sent to into where its answer comes from."""
    for level, kind, data in messages:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, source, _ = _PKTINFO4.unpack(data)
            yield level, kind, _PKTINFO4.pack(0, source, bytes(4))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            packed, interface = _PKTINFO6.unpack(data)
            address = ipaddress.IPv6Address(packed)
            if not address.is_multicast:  # nobody's own: the kernel chooses
                # The way back is for the routes to say, but for an address of one link only.
                interface = interface if address.is_link_local else 0
                yield level, kind, _PKTINFO6.pack(packed, interface)


def _families() -> list[socket.AddressFamily]:
    if namespaces.has_ipv6():
        return [socket.AF_INET, socket.AF_INET6]
    return [socket.AF_INET]


def _listen(family: socket.AddressFamily, port: int) -> socket.socket:
    with _socket(family, socket.SOCK_STREAM, port) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The connections inherit these: small answers at once, and clients that vanished end.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind(("", port))
        sock.listen(_BACKLOG)
    return sock


def _receive(family: socket.AddressFamily, port: int) -> socket.socket:
    # Not with SO_REUSEADDR: a second server would take a UDP port over from the first one.
    with _socket(family, socket.SOCK_DGRAM, port) as sock:
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        with contextlib.suppress(OSError):  # it needs CAP_NET_ADMIN, and goes without, too
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sock.bind(("", port))
    return sock


@contextlib.contextmanager
def _socket(
    family: socket.AddressFamily, kind: socket.SocketKind, port: int
) -> Iterator[socket.socket]:
    """Make a socket, keep it if the block goes well, and say in words why it did not."""
    sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not 0 < port < 65536:
            raise BadInput(f"cannot serve port {port}", hint="ports go from 1 to 65535")
        yield sock
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        what = "tcp" if kind == socket.SOCK_STREAM else "udp"
        raise BadInput(f"cannot serve port {port} ({what}): {error}") from None
    except BaseException:
        sock.close()
        raise


def _allow_files() -> None:
    """Allow as many open files, and so connections, as this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
