"""The addresses of the calling process's host, and its ways to others: rtnetlink(7)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import NamedTuple

from nfctl.kernel import netlink

# linux/rtnetlink.h, linux/if_addr.h
_RTM_GETADDR, _RTM_GETROUTE = 22, 26
_RTN_LOCAL, _SCOPE_LINK = 2, 253
_DEAD_ENDS = frozenset({6, 7, 8})  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_GATEWAY, _RTA_PREFSRC = 1, 5, 7
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=8BI")  # struct rtmsg; its eighth field is the type
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Address(NamedTuple):
    """An address of this host, and the length of its prefix."""

    text: str
    length: int

    @property
    def interface(self) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
        """The address and its network."""
        return ipaddress.ip_interface(f"{self.text}/{self.length}")


class Route(NamedTuple):
    """Where a packet goes from here: ``via`` is the next hop, empty if it stays on this host."""

    via: str
    source: str


def addresses(family: int) -> list[Address]:
    """Return this host's addresses, the loopback's first, without link-local ones."""
    request = _ADDRESS.pack(_FAMILIES[family], 0, 0, 0, 0)
    found = []
    for payload in _ask(_RTM_GETADDR, request, dump=True):
        _, length, _, scope, _ = _ADDRESS.unpack_from(payload)
        known = netlink.values(payload, _ADDRESS.size)
        if scope != _SCOPE_LINK:
            raw = known.get(_IFA_LOCAL) or known[_IFA_ADDRESS]
            found.append(Address(str(ipaddress.ip_address(raw)), length))
    return found


def route(address: str) -> Route:
    """Ask the routing table for the way to an address; OSError if there is none."""
    parsed = ipaddress.ip_address(address)
    raw = parsed.packed
    request = _ROUTE.pack(_FAMILIES[parsed.version], len(raw) * 8, 0, 0, 0, 0, 0, 0, 0)
    request += netlink.attribute(_RTA_DST, raw)
    (payload,) = _ask(_RTM_GETROUTE, request)
    kind = _ROUTE.unpack_from(payload)[7]
    if kind in _DEAD_ENDS:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
    known = netlink.values(payload, _ROUTE.size)
    source, gateway = known.get(_RTA_PREFSRC, b""), known.get(_RTA_GATEWAY, raw)
    return Route(
        "" if kind == _RTN_LOCAL else str(ipaddress.ip_address(gateway)),
        str(ipaddress.ip_address(source)) if source else "",
    )


def _ask(kind: int, request: bytes, *, dump: bool = False) -> list[bytes]:
    """Send one request and return the payloads of all the answers to it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        return list(netlink.ask(sock, kind, request, dump=dump))
