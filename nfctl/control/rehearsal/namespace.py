"""A network namespace without a name, and rtnetlink(7) in it; see ``rehearsal``."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from typing import TYPE_CHECKING, Final

from nfctl.control.rehearsal import host as host_facts
from nfctl.control.rehearsal.host import ADDRESS, FAMILIES, LINK, NEIGHBOUR, ROUTE
from nfctl.errors import NotPermitted, Unsupported
from nfctl.kernel import netlink, netns
from nfctl.lab import syscalls, sysctls
from nfctl.lab.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, Netlink, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/rtnetlink.h, linux/if_addr.h, linux/neighbour.h
LOOPBACK: Final = 1  # the index of lo in every namespace
UP: Final = 0x1  # IFF_UP
NEWLINK: Final = 16
NODAD: Final = 0x2  # IFA_F_NODAD
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
_NEWADDR, _NEWROUTE, _NEWNEIGH, _DELNEIGH = 20, 24, 28, 29
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_VIA = 1, 4, 5, 18
_NDA_DST, _NDA_LLADDR = 1, 2
_MAIN, _STATIC, _UNICAST, _SCOPE_LINK = 254, 4, 1, 253
_ONLINK = 0x4  # RTNH_F_ONLINK
_REPLACE = 0x100  # NLM_F_REPLACE
_PERMANENT = 0x80  # NUD_PERMANENT
_EEXIST = 17


class Namespace:
    """A network namespace without a name; made by the calling process, which is then in it."""

    def __init__(self) -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNET)
        except PermissionError as error:
            raise NotPermitted(
                f"no network namespace can be made to try the rules in: {error.strerror}",
                hint="CAP_SYS_ADMIN is needed: run as root",
            ) from None
        except OSError as error:
            msg = f"no network namespace can be made to try the rules in: {error.strerror}"
            raise Unsupported(msg, hint="CONFIG_NET_NS is needed") from None
        self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.netlink = Netlink()
        sysctls.prepare(sysctls.Role.HOST)
        host_facts.write_sysctls([("ipv6/mld_qrv", "1")])  # say once which groups one is in
        self.do(NEWLINK, LINK.pack(0, 0, LOOPBACK, UP, UP), "setting lo up")

    def close(self) -> None:
        """Let it go: the kernel frees it when no socket of it is left."""
        self.netlink.close()
        os.close(self.fd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it for the ``with`` block; sockets made there stay in it."""
        with netns.entered(f"/proc/self/fd/{self.fd}"):
            yield

    def do(self, kind: int, payload: bytes, doing: str, flags: int = 0) -> None:
        """Ask rtnetlink for something; raises what it answers."""
        self.netlink.do([request(kind, payload, doing, flags)])

    def add_address(self, address: str, index: int, length: int | None = None) -> None:
        """Add an address, by default without a network around it; usable at once."""
        parsed = ipaddress.ip_address(address)
        most = parsed.max_prefixlen
        if length is None:
            length = 64 if parsed.is_link_local and parsed.version == 6 else most
        flags = struct.pack("=I", NODAD)
        payload = ADDRESS.pack(FAMILIES[parsed.version], length, NODAD, 0, index)
        payload += netlink.attribute(IFA_LOCAL, parsed.packed)
        payload += netlink.attribute(IFA_ADDRESS, parsed.packed)
        payload += netlink.attribute(IFA_FLAGS, flags)
        answer = self.netlink.ask([request(_NEWADDR, payload, "", NLM_F_CREATE | NLM_F_EXCL)])[0]
        if answer.errno not in {0, _EEXIST}:
            raise OSError(answer.errno, os.strerror(answer.errno), address)

    def add_route(self, destination: str, index: int, gateway: str = "") -> None:
        """Add a route to a prefix or ``""`` (all of IPv4), on the link or through a gateway."""
        network = ipaddress.ip_network(destination)
        scope = 0 if gateway or network.version == 6 else _SCOPE_LINK
        payload = ROUTE.pack(
            FAMILIES[network.version], network.prefixlen, 0, 0,
            _MAIN, _STATIC, scope, _UNICAST, _ONLINK if gateway else 0,
        )  # fmt: skip
        if network.prefixlen:
            payload += netlink.attribute(_RTA_DST, network.network_address.packed)
        payload += netlink.attribute(_RTA_OIF, struct.pack("=I", index))
        if gateway:
            hop = ipaddress.ip_address(gateway)
            if hop.version == network.version:
                payload += netlink.attribute(_RTA_GATEWAY, hop.packed)
            else:
                family = struct.pack("=H", FAMILIES[hop.version])
                payload += netlink.attribute(_RTA_VIA, family + hop.packed)
        # whatever is there: this one is the way
        answer = self.netlink.ask([request(_NEWROUTE, payload, "", NLM_F_CREATE | _REPLACE)])[0]
        if answer.errno:
            raise OSError(answer.errno, os.strerror(answer.errno), destination)

    def set_neighbour(self, address: str, index: int, mac: bytes) -> None:
        """Know a neighbour for good, without asking."""
        parsed = ipaddress.ip_address(address)
        payload = NEIGHBOUR.pack(FAMILIES[parsed.version], index, _PERMANENT, 0, 0)
        payload += netlink.attribute(_NDA_DST, parsed.packed)
        payload += netlink.attribute(_NDA_LLADDR, mac)
        self.do(_NEWNEIGH, payload, f"setting the neighbour {address}", NLM_F_CREATE | _REPLACE)

    def forget_neighbour(self, address: str, index: int) -> None:
        """Have a neighbour asked for anew."""
        parsed = ipaddress.ip_address(address)
        payload = NEIGHBOUR.pack(FAMILIES[parsed.version], index, 0, 0, 0)
        payload += netlink.attribute(_NDA_DST, parsed.packed)
        self.netlink.ask([request(_DELNEIGH, payload, "")])


def request(kind: int, payload: bytes, doing: str, flags: int = 0) -> Request:
    """Encode a request of rtnetlink; ``doing`` is said of it in an error."""
    length = netlink.HEADER.size + len(payload)
    header = netlink.HEADER.pack(length, kind, flags | NLM_F_REQUEST | NLM_F_ACK, 0, 0)
    padding = bytes(-length % 4)
    return Request(header + payload + padding, doing)
