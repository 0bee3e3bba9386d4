"""What a copy has to know of the host: links, addresses, routes, sysctls; see ``rehearsal``.

Addresses, routes and policy rules are kept as the kernel told them (rtnetlink(7)): a copy says
the same to its own namespace, as ``ip route restore`` does. Everything here only reads, in the
network namespace of the calling process.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from nfctl.kernel import netlink

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/fib_rules.h
_GETLINK, _GETADDR, _GETROUTE, _GETNEIGH, _GETRULE = 18, 22, 26, 30, 34
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_GROUP = 1, 3, 4, 27
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MULTIPATH = 1, 4, 5, 7, 9
_RTA_VIA, _RTA_TABLE = 18, 15
_NDA_DST, _NDA_LLADDR = 1, 2
LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg: family, prefix length, flags, scope, index
ROUTE = struct.Struct("=8BI")  # struct rtmsg
RULE = struct.Struct("=8BI")  # struct fib_rule_hdr
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # struct ndmsg
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop
_RTN_LOCAL = 2
_DEAD_ENDS = frozenset({6, 7, 8})  # RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT
_CLONED = 0x200  # RTM_F_CLONED
_LOCAL_TABLE, _BY_KERNEL = 255, 2
#: What is not said again of a route: its cache's figures, its age, its next hop's number, what
#: a tunnel wraps around packets, RTA_TTL_PROPAGATE.
_NOT_AGAIN = frozenset({12, 21, 22, 23, 26, 30})
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

#: More routes than these are not copied; the way to each address that matters is looked up.
MOST_ROUTES = 5000

#: The sysctls that decide what becomes of packets; {} is an interface. First the one that
#: writes others when it is written.
_SYSCTLS = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/{}/forwarding",
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/src_valid_mark",
    "ipv4/conf/{}/accept_local",
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/accept_source_route",
    "ipv4/conf/{}/disable_policy",
    "ipv4/fwmark_reflect",
    "ipv4/tcp_fwmark_accept",
    "ipv6/conf/{}/forwarding",
    "ipv6/conf/{}/disable_ipv6",
    "ipv6/fwmark_reflect",
    "netfilter/nf_conntrack_acct",
    "netfilter/nf_conntrack_checksum",
    "netfilter/nf_conntrack_helper",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_ignore_invalid_rst",
    "netfilter/nf_conntrack_tcp_loose",
)


class Link(NamedTuple):
    """A network interface; ``mac`` is empty where it has no Ethernet address."""

    ifindex: int
    name: str
    flags: int
    mac: bytes
    mtu: int
    group: int


class Address(NamedTuple):
    """An address of this host; ``told`` is the message that told of it."""

    ifindex: int
    family: int
    raw: bytes
    length: int
    scope: int
    told: bytes

    @property
    def text(self) -> str:
        """The address as people write it."""
        return str(ipaddress.ip_address(self.raw))


class Way(NamedTuple):
    """How a packet gets to an address: through the interface ``index``, to ``gateway``.

    ``gateway`` is "" where the address is on the link, or local.
    """

    local: bool
    ifindex: int
    gateway: str
    source: str


class Host:
    """The namespace of the calling process, asked by rtnetlink."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        netlink.size_buffer(self._socket, 1 << 20)
        self._addresses: list[Address] | None = None
        self._links: dict[int, Link] = {}

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def link(self, which: int | str) -> Link:
        """Return an interface by index or name; OSError (ENODEV) if there is none."""
        if isinstance(which, int) and which in self._links:
            return self._links[which]
        index = which if isinstance(which, int) else 0
        request = LINK.pack(0, 0, index, 0, 0)
        if isinstance(which, str):
            request += netlink.attribute(_IFLA_IFNAME, os.fsencode(which) + b"\0")
        (payload,) = self._ask(_GETLINK, request)
        _, _, index, flags, _ = LINK.unpack_from(payload)
        known = netlink.values(payload, LINK.size)
        mac = known.get(_IFLA_ADDRESS, b"")
        found = Link(
            index,
            os.fsdecode(known[_IFLA_IFNAME].rstrip(b"\0")),
            flags,
            mac if len(mac) == 6 and any(mac) and not mac[0] & 1 else b"",
            _number(known.get(_IFLA_MTU)),
            _number(known.get(_IFLA_GROUP)),
        )
        return self._links.setdefault(index, found)

    def addresses(self) -> list[Address]:
        """Return the addresses of all interfaces and both families."""
        if self._addresses is None:
            self._addresses = []
            for payload in self._ask(_GETADDR, ADDRESS.pack(0, 0, 0, 0, 0), dump=True):
                family, length, _, scope, index = ADDRESS.unpack_from(payload)
                known = netlink.values(payload, ADDRESS.size)
                raw = known.get(_IFA_LOCAL) or known.get(_IFA_ADDRESS, b"")
                if family in {socket.AF_INET, socket.AF_INET6} and raw:
                    told = Address(
                        index, 4 if family == socket.AF_INET else 6, raw, length, scope, payload
                    )
                    self._addresses.append(told)
        return self._addresses

    def is_local(self, address: str) -> bool:
        """Whether what is sent to an address stays here; not so without a way to it."""
        try:
            return self.way(address).local
        except OSError:
            return False

    def way(self, address: str, *, source: str = "", interface: int = 0) -> Way:
        """Look the way to an address up in the routing tables; OSError if there is none."""
        parsed = ipaddress.ip_address(address)
        begin = ipaddress.ip_address(source).packed if source else b""
        lengths = len(parsed.packed) * 8, len(begin) * 8
        request = ROUTE.pack(FAMILIES[parsed.version], *lengths, 0, 0, 0, 0, 0, 0)
        request += netlink.attribute(_RTA_DST, parsed.packed)
        if begin:
            request += netlink.attribute(2, begin)  # RTA_SRC
        if interface:
            request += netlink.attribute(_RTA_OIF, struct.pack("=I", interface))
        (payload,) = self._ask(_GETROUTE, request)
        kind = ROUTE.unpack_from(payload)[7]
        if kind in _DEAD_ENDS:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        known = netlink.values(payload, ROUTE.size)
        gateway = known.get(_RTA_GATEWAY, b"") or known.get(_RTA_VIA, b"")[2:]
        return Way(
            kind == _RTN_LOCAL,
            _number(known.get(_RTA_OIF)),
            str(ipaddress.ip_address(gateway)) if gateway else "",
            str(ipaddress.ip_address(known[_RTA_PREFSRC])) if _RTA_PREFSRC in known else "",
        )

    def neighbour(self, address: str, index: int) -> bytes:
        """Return the Ethernet address of a neighbour as far as the host knows it, or nothing."""
        parsed = ipaddress.ip_address(address)
        request = NEIGHBOUR.pack(FAMILIES[parsed.version], index, 0, 0, 0)
        request += netlink.attribute(_NDA_DST, parsed.packed)
        try:
            (payload,) = self._ask(_GETNEIGH, request)
        except OSError:  # not known, or a kernel before 5.0
            return b""
        mac = netlink.values(payload, NEIGHBOUR.size).get(_NDA_LLADDR, b"")
        return mac if len(mac) == 6 and any(mac) and not mac[0] & 1 else b""

    def routes(self, family: int, links: set[int]) -> list[bytes] | None:
        """Return the routes through these interfaces, to be said again, in a good order.

        Those that the kernel makes by itself are left out. None if there are too many.
        """
        direct: list[bytes] = []
        through: list[bytes] = []
        request = ROUTE.pack(FAMILIES[family], 0, 0, 0, 0, 0, 0, 0, 0)
        asked = netlink.ask(self._socket, _GETROUTE, request, dump=True)
        for number, payload in enumerate(asked):
            if number >= MOST_ROUTES:
                self._start_anew()
                return None
            fields = list(ROUTE.unpack_from(payload))
            known = netlink.values(payload, ROUTE.size)
            table = _number(known.get(_RTA_TABLE)) or fields[4]
            if fields[8] & _CLONED or (table == _LOCAL_TABLE and fields[5] == _BY_KERNEL):
                continue
            through_ours = all(index in links for index in _interfaces(known))
            if through_ours:
                fields[8] = 0  # linux/rtnetlink.h: RTNH_F_DEAD and such are the kernel's to say
                parts = [
                    netlink.attribute(kind, payload[start:end])
                    for kind, start, end in netlink.attributes(payload, ROUTE.size, len(payload))
                    if kind not in _NOT_AGAIN
                ]
                said = ROUTE.pack(*fields) + b"".join(parts)
                gateways = known.keys() & {_RTA_GATEWAY, _RTA_VIA, _RTA_MULTIPATH}
                (through if gateways else direct).append(said)
        return direct + through

    def rules(self, family: int) -> list[bytes]:
        """Return the rules of policy routing (ip-rule(8)), to be said again."""
        found = []
        for payload in self._ask(_GETRULE, RULE.pack(FAMILIES[family], *[0] * 8), dump=True):
            *fields, flags = RULE.unpack_from(payload)
            # FIB_RULE_INVERT; the others are the kernel's to say
            found.append(RULE.pack(*fields, flags & 0x2) + payload[RULE.size :])
        return found

    def _ask(self, kind: int, request: bytes, *, dump: bool = False) -> list[bytes]:
        return list(netlink.ask(self._socket, kind, request, dump=dump))

    def _start_anew(self) -> None:
        """Leave a dump that is not read to its end."""
        self._socket.close()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)


def _number(value: bytes | None) -> int:
    """Return an attribute of four bytes, or 0."""
    return int.from_bytes(value, "little" if _LITTLE else "big") if value else 0


_LITTLE = struct.pack("=H", 1) == b"\1\0"


def _interfaces(known: dict[int, bytes]) -> Iterator[int]:
    """Yield the interfaces that a route goes through; -1 for what cannot be told."""
    if _RTA_OIF in known:
        yield _number(known[_RTA_OIF])
    hops = known.get(_RTA_MULTIPATH, b"")
    at = 0
    while at + _NEXT_HOP.size <= len(hops):
        length, _, _, index = _NEXT_HOP.unpack_from(hops, at)
        yield index
        if length < _NEXT_HOP.size:
            return
        at += length + 3 & ~3


def sysctls(interfaces: Sequence[str]) -> list[tuple[str, str]]:
    """Read the sysctls that decide what becomes of packets, to be written in this order."""
    found = []
    for name in _SYSCTLS:
        wheres: Iterable[str] = ("all", "default", *interfaces) if "{}" in name else ("",)
        for where in wheres:
            key = name.format(where)
            with contextlib.suppress(OSError), open(f"/proc/sys/net/{key}") as file:  # noqa: PTH123
                found.append((key, file.read().strip()))
    return found


def write_sysctls(values: Iterable[tuple[str, str]]) -> None:
    """Write sysctls of the calling process' namespace that differ and can be written."""
    for key, value in values:
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/sys/net/{key}", os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.read(descriptor, 256).decode().strip() != value:
                    os.pwrite(descriptor, value.encode(), 0)
            finally:
                os.close(descriptor)
