"""Whether a connection that must not be lost lives through a change: the operator's, above all.

Nothing is predicted. The connection is made in a copy of the firewall (``rehearsal``), with real
sockets, under the rules as they are; then the rules that are to be are loaded, and data is sent
both ways; then it is made anew. See ``rehearsal.trial`` for how, step by step.

An :class:`Answer` refuses a change (``allowed`` is False) for two reasons, which ``how`` tells:

``established``
    the connection's next packets would not arrive: one is locked out at once.
``new``
    the connection stays, but one like it could not be made any more: one cannot come back.

Where the copy cannot tell, the change is allowed and the reason says so: ``unknown``, for a
connection that does not work in the copy under the rules as they are either (marks, sets or
programs that the copy has not got), and ``skipped``, where there is nothing to try. It could only
be refused always, then, and the rules as they are decide it in a way that cannot be seen here.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nfctl.errors import BadInput, NfctlError
from nfctl.text import at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nfctl.lab import fork
    from nfctl.policy.wanted import WantedSet

SSH = "SSH_CONNECTION"
PROTOCOLS = ("tcp", "udp", "sctp")

_HINT = (
    "[tcp|udp|sctp] SOURCE[:PORT] > DESTINATION:PORT, such as "
    '"tcp 192.0.2.7 > 203.0.113.1:22" or "[2001:db8::7]:50000 > [2001:db8::1]:22"'
)
_SEPARATOR = re.compile(r"\s*(?:->|>|\bto\b)\s*")
_ANCESTORS = 64  # looked at for SSH_CONNECTION
_MOST_AT_ONCE = 4  # trials; each is a process
_TIMEOUT = 60.0  # seconds for one; it takes 0.1


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection: who makes it, and to what. ``source_port`` 0 is any.

    ``origin`` is where it came from, ``SSH_CONNECTION`` or the place of an option; ``interface``
    that of link-local addresses.
    """

    protocol: str
    source: str
    source_port: int
    destination: str
    port: int
    origin: str = field(default="", compare=False)
    interface: str = ""

    @classmethod
    def parse(cls, text: str, where: str = "--guard") -> Flow:
        """Read ``[tcp|udp|sctp] SOURCE[:PORT] [>|->|to] DESTINATION:PORT``; BadInput.

        IPv6 addresses stand in brackets where a port follows. Without a protocol it is TCP.
        """
        words = _SEPARATOR.sub(" ", text.strip()).split()
        protocol = "tcp"
        if words and words[0].lower() in PROTOCOLS:
            protocol = words.pop(0).lower()
        if len(words) != 2:
            raise _bad(where, f"{text!r} is no flow")
        source, source_port, interface = _end(words[0], protocol, where)
        destination, port, other = _end(words[1], protocol, where)
        if not port:
            raise _bad(where, f"{words[1]!r} says no port")
        versions = {ipaddress.ip_address(address).version for address in (source, destination)}
        if len(versions) > 1:
            raise _bad(where, f"{source} and {destination} are of different families")
        return cls(protocol, source, source_port, destination, port, where, interface or other)

    @property
    def version(self) -> int:
        """4 or 6."""
        return ipaddress.ip_address(self.source).version

    @property
    def asked(self) -> bool:
        """Whether somebody asked for it, by an option."""
        return self.origin != SSH

    def __str__(self) -> str:
        """``tcp 192.0.2.7:50000 > 203.0.113.1:22``."""
        source = _shown(self.source, self.source_port)
        return f"{self.protocol} {source} > {_shown(self.destination, self.port)}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a flow; see the module for ``how``.

    ``direction`` is whose packets are lost: "request" (the client's) or "reply", or "".
    ``rule`` is the rule that decides, where one does: family, table, chain, number (0 is the
    chain's policy) and text.
    """

    flow: str
    allowed: bool
    how: str
    direction: str = ""
    reason: str = ""
    rule: dict[str, object] | None = None


def operator(environ: Mapping[str, str] | None = None) -> Flow | None:
    """Return the connection by which the operator is here, by sshd's ``SSH_CONNECTION``.

    sudo(8) takes it out of the environment, so that of the processes above is looked at, too.
    None without one, and for one that cannot be understood.
    """
    value = (os.environ if environ is None else environ).get(SSH, "")
    if not value and environ is None:
        value = _inherited()
    words = value.split()
    if len(words) != 4:
        return None
    try:
        source, zone = _address(words[0])
        destination, other = _address(words[2])
        source_port, port = int(words[1]), int(words[3])
        for address in (source, destination):
            _check_host(address)
    except ValueError:
        return None
    if not (0 < source_port < 1 << 16 and 0 < port < 1 << 16):
        return None
    return Flow("tcp", source, source_port, destination, port, SSH, zone or other)


def check(
    flows: Sequence[Flow],
    before: Mapping[int, str],
    after: Mapping[int, str],
    sets: Sequence[WantedSet] = (),
) -> list[Answer]:
    """Try what becomes of flows when the rules ``before`` become the rules ``after``.

    The rules are iptables-save text of all tables, by family; ``sets`` are the ipsets of the
    policy, which come before the rules. In the namespace of the calling process, which may hold
    the xtables lock. Raises BadInput for a flow of an option that cannot be here (no route),
    and NotPermitted or Unsupported where such a flow cannot be tried for lack of namespaces.
    """
    from nfctl.control import rehearsal
    from nfctl.control.rehearsal import trial as rehearsal_trial

    found: list[Answer] = []
    for start in range(0, len(flows), _MOST_AT_ONCE):
        group = flows[start : start + _MOST_AT_ONCE]
        children: list[fork.Child[Answer]] = []
        try:
            children += (
                rehearsal.start(rehearsal_trial.run, flow, before, after, sets) for flow in group
            )
            for flow, child in zip(group, children, strict=True):
                found.append(_answer(flow, child))
        finally:
            for child in children:
                child.kill()
    return found


def _answer(flow: Flow, child: fork.Child[Answer]) -> Answer:
    try:
        return child.result(_TIMEOUT)
    except (TimeoutError, ChildProcessError) as error:
        return Answer(str(flow), True, "unknown", reason=f"it could not be tried: {error}")
    except NfctlError as error:
        if flow.asked:
            raise
        return Answer(str(flow), True, "skipped", reason=f"it could not be tried: {error}")


def _bad(where: str, message: str) -> BadInput:
    return BadInput(f"{where}: {message}", hint=_HINT)


def _end(text: str, protocol: str, where: str) -> tuple[str, int, str]:
    """Split ``ADDRESS[:PORT]`` or ``[ADDRESS]:PORT``; return address, port and zone."""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\S+))?", text)
    if bracketed:
        address, port = bracketed[1], bracketed[2] or ""
    elif text.count(":") > 1:
        address, port = text, ""
    else:
        address, _, port = text.partition(":")
    try:
        found, zone = _address(address)
    except ValueError:
        raise _bad(where, f"{address!r} is no IP address") from None
    try:
        _check_host(found)
    except ValueError as error:
        raise _bad(where, str(error)) from None
    return found, _port(port, protocol, where) if port else 0, zone


def _check_host(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    if parsed.is_multicast or parsed.is_unspecified:
        msg = f"{address} is the address of no host"
        raise ValueError(msg)


def _port(text: str, protocol: str, where: str) -> int:
    if text.isascii() and text.isdecimal():
        number = int(text)
    else:
        try:
            number = socket.getservbyname(text, protocol)
        except OSError:
            number = 0
    if not 0 < number < 1 << 16:
        raise _bad(where, f"{text!r} is no port")
    return number


def _address(text: str) -> tuple[str, str]:
    """Return an address in its usual form, and its zone; ValueError if it is none."""
    bare, _, zone = text.partition("%")
    parsed = ipaddress.ip_address(bare)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return str(parsed), zone


def _shown(address: str, port: int) -> str:
    return at(address, port) if port else address


def _inherited() -> str:
    """Return SSH_CONNECTION of the nearest process above that has one; "" if none is to be seen."""
    pid = os.getppid()
    for _ in range(_ANCESTORS):
        if pid <= 1:
            break
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - /proc
                for variable in file.read().split(b"\0"):
                    if variable.startswith(b"SSH_CONNECTION="):
                        return os.fsdecode(variable.partition(b"=")[2])
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                # the name, in parentheses, may hold anything
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return ""
