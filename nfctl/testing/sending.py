"""What is sent, from where to where; and sending it, without saying what has to come of it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput
from nfctl.lab import traffic
from nfctl.lab.host import Host
from nfctl.testing.crew import Crew, crew_of
from nfctl.testing.routes import addresses

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from nfctl.lab.traffic import Answer

_PORTS = {"tcp": 0, "udp": 0, "http": 80, "dns": 53, "icmp": -1}  # where none is said
_HINT = "tcp/22, udp/514, http, http/8080, dns, or icmp"


class What(NamedTuple):
    """A protocol and its port (0 for ICMP)."""

    protocol: str
    port: int

    @classmethod
    def parse(cls, text: str) -> What:
        """Read ``tcp/22``; BadInput for what cannot be sent."""
        protocol, slash, number = text.partition("/")
        usual = _PORTS.get(protocol, 0)
        if not slash and usual:
            return cls(protocol, max(usual, 0))
        if protocol in _PORTS and usual >= 0 and number.isascii() and number.isdigit():
            port = int(number)
            if 0 < port < 1 << 16:
                return cls(protocol, port)
        raise BadInput(f'"{text}" is nothing that can be sent', hint=_HINT)

    @property
    def transport(self) -> str:
        """``tcp``, ``udp`` or ``icmp``: what carries it."""
        return {"http": "tcp", "dns": "udp"}.get(self.protocol, self.protocol)


@dataclass(frozen=True, slots=True)
class Sending:
    """One thing to send. ``timeout`` is in seconds; ``source`` empty is what the route says."""

    sender: Host
    crew: Crew
    address: str
    family: int
    text: str
    what: What
    source: str
    timeout: float

    def send(self) -> Answer:
        """Send it and return the answer; OSError if it could not be sent."""
        call: Callable[..., Answer]
        if self.what.protocol == "icmp":
            call = partial(traffic.ping, self.address)
        elif self.what.protocol == "dns":  # whatever it says of a name, it has answered
            call = partial(traffic.dns, self.address, "localhost", port=self.what.port)
        else:
            call = getattr(traffic, self.what.protocol)
            call = partial(call, self.address, self.what.port)
        whole = partial(call, source=self.source, timeout=self.timeout)
        return self.crew.ask(self.sender.name, whole, timeout=self.timeout + 10)


def plan(
    sender: Host,
    to: Host | str,
    what: str,
    *,
    family: Literal[4, 6] | None,
    source: str,
    timeout: float,
) -> Sending:
    """Check everything that can be checked before anything is sent; BadInput says what is wrong."""
    wanted = What.parse(what)
    if family not in {None, 4, 6}:
        raise BadInput(f"family is 4 or 6, not {family!r}")
    crew = crew_of(sender)
    if isinstance(to, Host):
        address = _address_of(crew, sender, to, family)
    else:
        address = _check(to)
    version = ipaddress.ip_address(address).version
    if family not in {None, version}:
        raise BadInput(f"{address} is no address of IPv{family}")
    if source and ipaddress.ip_address(_check(source)).version != version:
        raise BadInput(f"the source {source} and {address} are not of one family")
    return Sending(sender, crew, address, version, what, wanted, source, timeout)


def _check(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise BadInput(f'"{address}" is no address', hint="or give the host itself") from None


def _address_of(crew: Crew, sender: Host, to: Host, family: int | None) -> str:
    """Choose the address by which a host is reached: the sender's own network first."""
    for version in (family,) if family else (4, 6):
        known = crew_of(to).ask(to.name, addresses, version)
        if to.namespace == sender.namespace:
            known = [one for one in known if one.interface.is_loopback]
        else:
            known = [one for one in known if not one.interface.is_loopback]
        if len(known) > 1:
            near = [one.interface.network for one in crew.ask(sender.name, addresses, version)]
            known.sort(key=lambda one: one.interface.network not in near)
        if known:
            return known[0].text
    raise BadInput(f"{to.name} has no address" + (f" of IPv{family}" if family else ""))


def reason(error: OSError, address: str) -> str:
    """Say why something could not be sent."""
    name = errno.errorcode.get(error.errno or 0, "")
    if error.errno == errno.ENETUNREACH:
        return f"there is no route to {address} ({name})"
    return f"{os.strerror(error.errno or 0)} ({name})"


def connect(
    sender: Host,
    to: Host | str,
    what: str,
    *,
    family: Literal[4, 6] | None = None,
    source: str = "",
    timeout: float = traffic.TIMEOUT,
) -> Answer:
    """Send ``what`` (``tcp/22``, ``http``, ``udp/53``, ``icmp``) and return what came of it.

    ``to`` is an address, or a host: then its address of ``family`` (IPv4 before IPv6) is taken,
    one in a network of the sender's if it has several. ``source`` is another source address,
    the host's own or not; ``timeout`` is in seconds. BadInput if it cannot be sent at all.
    """
    sending = plan(sender, to, what, family=family, source=source, timeout=timeout)
    try:
        return sending.send()
    except OSError as error:
        why = reason(error, sending.address)
        raise BadInput(f"{sender.name} cannot send {what}: {why}") from None


def send(
    sender: Host,
    to: Host | str,
    what: str,
    payload: bytes = b"hello",
    *,
    family: Literal[4, 6] | None = None,
    source: str = "",
    timeout: float = traffic.TIMEOUT,
) -> None:
    """Send ``payload`` to ``udp/PORT`` or ``tcp/PORT`` and wait for no answer to it.

    One datagram; or a connection that is closed behind the payload. Whether it arrives is for
    :func:`receive` to tell: BadInput only if it cannot even be sent.
    """
    sending = plan(sender, to, what, family=family, source=source, timeout=timeout)
    if sending.what.protocol not in {"tcp", "udp"}:
        raise BadInput(f"{what} carries no payload", hint="udp/514 or tcp/22")
    call = partial(_put, sending.address, sending.what, payload, source, timeout)
    try:
        sending.crew.ask(sender.name, call, timeout=timeout + 10)
    except OSError as error:
        why = reason(error, sending.address)
        raise BadInput(f"{sender.name} cannot send {what}: {why}") from None


def _put(address: str, what: What, payload: bytes, source: str, timeout: float) -> None:
    kind = socket.SOCK_STREAM if what.protocol == "tcp" else socket.SOCK_DGRAM
    with traffic.Attempt(address, kind, 0, timeout) as attempt:
        attempt.bind(source)
        attempt.socket.settimeout(timeout)
        try:
            attempt.socket.connect((address, what.port))
            attempt.socket.sendall(payload)
        except TimeoutError:
            return  # dropped
        except OSError as error:
            attempt.refusal(error.errno or 0)  # raises what no packet caused
