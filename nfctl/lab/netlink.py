"""rtnetlink(7): requests in pyroute2's words, over a plain socket, many at a time.

A netlink socket keeps the network namespace it was made in, whoever holds it. So a lab's process
has one for each host, handed over by the child that was in the namespace (see ``namespaces``),
and configures all of them without ever leaving its own namespace, and without a fork.

The messages are encoded by pyroute2's message classes. Two things about it are worked around:

* importing the package as it is takes 0.18 s, most of it for sockets, databases and protocols
  that nothing here needs. So only the modules with the messages are imported, by the side door:
  see :func:`messages`. Whoever imports pyroute2 after us still gets all of it;
* its sockets send one request and read one answer, 0.3 ms each. Here all requests for a
  namespace go in one send(2), and the answers are read together.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import socket
import struct
import sys
import types
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl.errors import BadInput, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import netlink
from nfctl.lab import fork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK = netlink.REQUEST, netlink.ACK
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
_ACK_TLVS, _ACK_CAPPED = 0x200, 0x100  # flags of an answer: it has attributes; no request's copy
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _EXT_ACK = 1, 2, 11
_LINK_EVENTS = 1  # RTNLGRP_LINK

_AT_ONCE = 32  # requests in one send; their answers have to fit the receive buffer
_BUFFER = 1 << 20  # bytes


class Request(NamedTuple):
    """An encoded message, and what it does, in the words of an error ("making the link ...")."""

    data: bytes
    doing: str


class Answer(NamedTuple):
    """The kernel's answer: an error number or 0, its words, and what it was asked for."""

    errno: int
    text: str
    data: bytes


class Netlink:
    """A socket of one namespace; made in that namespace, or from a descriptor made there."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=descriptor
        )
        self._sequence = 0
        if descriptor is None:
            for option in (netlink.CAP_ACK, _EXT_ACK):
                self._socket.setsockopt(netlink.SOL_NETLINK, option, 1)
            netlink.size_buffer(self._socket, _BUFFER)
        self._socket.setblocking(False)  # the kernel has answered when send(2) returns
        fork.close_in_children(self)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket, which keeps its namespace alive."""
        self._socket.close()

    def do(self, requests: Sequence[Request]) -> None:
        """Send requests and raise what the kernel says to the first that it refuses.

        Those after it are tried all the same. BadInput, with the request's ``doing`` and the
        kernel's words; Unsupported for what the kernel lacks.
        """
        for request, answer in zip(requests, self.ask(requests), strict=True):
            if answer.errno:
                raise refusal(request.doing, answer)

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """Send requests and return their answers, in the same order."""
        answers: list[Answer] = []
        for start in range(0, len(requests), _AT_ONCE):
            answers += self._exchange(requests[start : start + _AT_ONCE])
        return answers

    def _exchange(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(requests)
        message = bytearray()
        for number, request in enumerate(requests, first):
            start = len(message)
            message += request.data
            struct.pack_into("=I", message, start + 8, number)
        self._socket.send(message)
        found: dict[int, Answer] = {}
        data: dict[int, bytes] = {}
        while len(found) < len(requests):
            received = self._receive()
            for kind, flags, sequence, start, end in netlink.messages(received):
                if not first <= sequence <= self._sequence:
                    continue  # an event
                payload = received[start:end]
                if kind == netlink.NLMSG_ERROR:
                    number = netlink.error(payload, 0)
                    text = _words(payload, flags) if number else ""
                    found[sequence] = Answer(number, text, data.get(sequence, b""))
                else:
                    data[sequence] = payload
        return [found[number] for number in range(first, self._sequence + 1)]

    def subscribe(self) -> None:
        """Have the socket become readable whenever a link of the namespace changes."""
        self._socket.setsockopt(netlink.SOL_NETLINK, _ADD_MEMBERSHIP, _LINK_EVENTS)

    def unsubscribe(self) -> None:
        """Take back :meth:`subscribe`, and forget what was not read."""
        self._socket.setsockopt(netlink.SOL_NETLINK, _DROP_MEMBERSHIP, _LINK_EVENTS)
        self.drain()

    def drain(self) -> None:
        """Forget the events that have arrived; never waits."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._receive()

    def _receive(self) -> bytes:
        while True:
            try:
                return self._socket.recv(1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # events were lost; they say no more than "look"
                    raise


def _words(payload: bytes, flags: int) -> str:
    """Return what the kernel says of an error (NETLINK_EXT_ACK); "" if nothing."""
    if not flags & _ACK_TLVS:
        return ""
    start = netlink.ERRNO.size + netlink.HEADER.size
    if not flags & _ACK_CAPPED:
        start += int(netlink.HEADER.unpack_from(payload, netlink.ERRNO.size)[0])
        start -= netlink.HEADER.size
    text = netlink.values(payload, start).get(_ERROR_TEXT, b"")
    return text.rstrip(b"\0").decode(errors="replace")


def refusal(doing: str, answer: Answer) -> NfctlError:
    """Return the error for a request that the kernel refused."""
    text = answer.text or os.strerror(answer.errno)
    if answer.errno in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT}:
        return Unsupported(f"{doing}: the kernel cannot do that ({text})")
    if answer.errno in {errno.EPERM, errno.EACCES}:
        return NotPermitted(f"{doing}: {text}")
    return BadInput(f"{doing}: {text}")


# --- pyroute2's messages --------------------------------------------------------------------------


_private: dict[str, types.ModuleType] = {}


@cache
def messages(name: str) -> Any:
    """Import a module of ``pyroute2.netlink.rtnl``: ``ifinfmsg``, ``ifaddrmsg`` and so on.

    Unsupported where pyroute2 is not installed.
    """
    module = f"pyroute2.netlink.rtnl.{name}"
    if "pyroute2" in sys.modules:  # the caller has paid for it already
        return importlib.import_module(module)
    from importlib.util import find_spec

    spec = find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        raise Unsupported(
            "the Python package pyroute2 is not installed", hint="pip install pyroute2"
        )
    # The package without what its __init__ imports, but with all its submodules.
    door = types.ModuleType("pyroute2")
    door.__path__ = spec.submodule_search_locations
    sys.modules.update({"pyroute2": door} | _private)
    try:
        return importlib.import_module(module)
    finally:
        # They stay ours. Whoever imports pyroute2 after us gets all of it, and knows of nothing:
        # its modules import each other in a circle, which the first import must not enter twice.
        for known in [key for key in sys.modules if key.partition(".")[0] == "pyroute2"]:
            _private[known] = sys.modules.pop(known)


def encode(
    module: str,
    kind: int,
    flags: int,
    fields: Mapping[str, object],
    attrs: Sequence[tuple[str, object]] = (),
) -> bytes:
    """Encode one of pyroute2's messages: the module's and class's name, type, and content."""
    message = getattr(messages(module), module)()
    for key, value in fields.items():
        message[key] = value
    message["attrs"] = attrs
    message["header"] = {
        "type": kind,
        "flags": flags | NLM_F_REQUEST | NLM_F_ACK,
        "sequence_number": 0,  # Netlink fills it in
        "pid": 0,
    }
    message.encode()
    return bytes(message.data)
