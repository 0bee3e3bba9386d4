"""Which backend holds how many rules: the legacy tables, and nf_tables.

Looking must change nothing. The legacy side is asked only for tables that are active in this
network namespace (``/proc/net/ip_tables_names``): IPT_SO_GET_INFO for any other would
register it here, or load its module. The answers are ``struct ipt_getinfo`` and
``struct ipt_get_entries`` (``include/uapi/linux/netfilter_ipv4/ip_tables.h``, for IPv6
``ip6_tables.h``); the blob of entries is walked for its counts only. :mod:`nfctl.kernel.blob`
reads whole tables, but needs libxtables; this has to answer where a library is missing. The
nf_tables side is in :mod:`nfctl.kernel.nftdump`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nfctl.errors import NfctlError, NotPermitted, Unsupported
from nfctl.kernel.layout import OFFSETS, layout
from nfctl.kernel.netns import CLONE_NEWNET
from nfctl.kernel.table import active_tables
from nfctl.traversal import Hook, priority

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nfctl.traversal import Family

Verdict = Literal["accept", "drop"]

_HOOKS = tuple(Hook)
_BUILTIN = frozenset(hook.value for hook in Hook)
_LEVELS: dict[Family, int] = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_FAMILY_NAMES: dict[Family, str] = {4: "ip", 6: "ip6"}
_SO_GET_INFO = 64
_SO_GET_ENTRIES = 65

# struct ipt_getinfo: name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
_INFO = struct.Struct("=32s13I")
# struct ipt_get_entries without its entries: name, size, and padding to the entries' eight.
_GET = struct.Struct("=32sI4x")
_VERDICT = struct.Struct("=i")
_NF_DROP = -1  # a verdict is kept as -NF_x - 1
_TARGET_NAME = 2
_TARGET_DATA = 32
_ERROR = b"ERROR\0"


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that packets enter by themselves: its hook, priority and policy."""

    name: str
    hook: int
    priority: int
    policy: Verdict = "accept"


@dataclass(frozen=True, slots=True)
class HeldTable:
    """One table of one backend: the number of rules in each chain, and the base chains.

    ``family`` is nft's word: ip, ip6, inet, arp, bridge or netdev.
    """

    backend: Literal["legacy", "nft"]
    family: str
    name: str
    chains: Mapping[str, int]
    base: tuple[BaseChain, ...] = ()

    @property
    def rules(self) -> int:
        """The number of rules in all chains; a policy is not a rule."""
        return sum(self.chains.values())

    @property
    def acts(self) -> bool:
        """Whether the table can change a packet's fate: it has rules, or a policy of drop."""
        return self.rules > 0 or any(chain.policy == "drop" for chain in self.base)

    @property
    def compat(self) -> bool:
        """Whether it is a table of nf_tables with the shape that iptables-nft makes."""
        return (
            self.backend == "nft"
            and self.family in ("ip", "ip6")
            and self.name in ("raw", "mangle", "nat", "filter", "security")
            and all(chain.name in _BUILTIN for chain in self.base)
        )


def legacy_tables(family: Family) -> tuple[HeldTable, ...]:
    """Read the counts of every legacy table that is active in this network namespace.

    Raises NotPermitted when that may not be known.
    """
    return tuple(read_legacy(family, name) for name in active_tables(family))


def read_legacy(family: Family, name: str) -> HeldTable:
    """Read one legacy table's counts; the kernel registers it if it was not active."""
    place = layout(family)
    try:
        with socket.socket(place.address_family, socket.SOCK_DGRAM) as sock:
            for _ in range(8):
                info = _getsockopt(sock, family, _SO_GET_INFO, _info_request(name), _INFO.size)
                size = _INFO.unpack(info)[-1]
                request = _GET.pack(name.encode(), size)
                try:
                    blob = _getsockopt(sock, family, _SO_GET_ENTRIES, request, _GET.size + size)
                except BlockingIOError:
                    continue  # the table was replaced between the two questions
                return count_entries(family, name, info, blob[_GET.size :])
    except PermissionError:
        message = f"reading the table {name} needs CAP_NET_ADMIN"
        raise NotPermitted(message) from None
    except OSError as error:
        message = f"the kernel does not show the table {name}: {error.strerror}"
        raise Unsupported(message) from None
    message = f"the table {name} changes too quickly to be read"
    raise NfctlError(message)


def count_entries(family: Family, name: str, info: bytes, entries: bytes) -> HeldTable:
    """Count the rules of each chain in a blob of entries.

    A built-in chain lies between its ``hook_entry`` and its ``underflow``, which is the
    policy. A user-defined chain opens with an entry whose target is ERROR and names it, and
    closes with a RETURN that iptables never shows. An ERROR entry ends the table.
    """
    place = layout(family)
    numbers = _INFO.unpack(info)[1:]
    valid, starts, ends = numbers[0], numbers[1:6], numbers[6:11]
    hooks = [number for number in range(5) if valid >> number & 1]
    heads = {starts[number]: number for number in hooks}
    policies = {ends[number]: number for number in hooks}
    chains: dict[str, int] = {}
    base: list[BaseChain] = []
    current = ""
    offset, size = 0, len(entries)
    while offset < size:
        to_target, to_next = OFFSETS.unpack_from(entries, offset + place.offsets_at)
        target = offset + to_target
        if entries.startswith(_ERROR, target + _TARGET_NAME):
            if offset + to_next < size:
                label = entries[target + _TARGET_DATA : offset + to_next]
                current = label.partition(b"\0")[0].decode(errors="replace")
                chains[current] = -1  # its closing RETURN brings it to 0
        else:
            if offset in heads:
                current = _HOOKS[heads[offset]].value
                chains[current] = 0
            if offset in policies:
                number = policies[offset]
                code = _VERDICT.unpack_from(entries, target + _TARGET_DATA)[0]
                policy: Verdict = "drop" if code == _NF_DROP else "accept"
                where = priority(name, _HOOKS[number])
                base.append(BaseChain(current, number, where, policy))
            else:
                chains[current] += 1
        if to_next == 0:
            break  # never from a kernel; a loop without end is worse than a short count
        offset += to_next
    return HeldTable("legacy", _FAMILY_NAMES[family], name, chains, tuple(base))


def probe_tables(family: Family, names: Iterable[str]) -> dict[str, bool] | None:
    """Try which tables the kernel can open, in a network namespace made for it and thrown away.

    The caller's namespace stays as it is, but the kernel may load a table's module. Returns
    None when no namespace may be made.
    """
    wanted = tuple(names)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"!"
        try:
            if ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0:
                answer = bytes(ord("y" if _opens(family, name) else "n") for name in wanted)
        finally:
            os.write(writer, answer)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if len(answer) != len(wanted) or answer == b"!":
        return None
    return {name: letter == ord("y") for name, letter in zip(wanted, answer, strict=True)}


def _opens(family: Family, name: str) -> bool:
    place = layout(family)
    try:
        with socket.socket(place.address_family, socket.SOCK_DGRAM) as sock:
            _getsockopt(sock, family, _SO_GET_INFO, _info_request(name), _INFO.size)
    except OSError:
        return False
    return True


def _info_request(name: str) -> bytes:
    return name.encode().ljust(_INFO.size, b"\0")


def _getsockopt(
    sock: socket.socket, family: Family, option: int, request: bytes, size: int
) -> bytes:
    """Call getsockopt(2) with a filled buffer, which Python's own wrapper cannot do."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(request, size)
    length = ctypes.c_uint32(size)
    if libc.getsockopt(sock.fileno(), _LEVELS[family], option, buffer, ctypes.byref(length)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, errno.errorcode.get(code, "") + ": " + os.strerror(code))
    return buffer.raw
