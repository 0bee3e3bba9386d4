"""The bytes of a rule: ``struct ipt_entry`` and ``struct ip6t_entry``, and their header part.

A rule in the kernel is a header (addresses, interfaces, protocol: ``struct ipt_ip`` or
``struct ip6t_ip6``), bookkeeping (``nfcache``, ``target_offset``, ``next_offset``,
``comefrom``), two counters, any number of ``struct xt_entry_match`` and one
``struct xt_entry_target``. Sources: linux/netfilter_ipv4/ip_tables.h,
linux/netfilter_ipv6/ip6_tables.h, linux/netfilter/x_tables.h. Everything is in native byte
order, addresses and ports in network order.

The *canonical* bytes of a rule, as used throughout the kernel room, are the entry with
``nfcache``, ``comefrom`` and the counters zero, with the kernel-private tail of each extension
zero, and with a jump naming its chain (the form in which libiptc takes it) instead of holding
an offset. Two rules are the same rule exactly when their canonical bytes are equal.
"""

from __future__ import annotations

import ctypes as ct
import re
import socket
import struct
from functools import cache
from typing import NamedTuple

from nfctl.errors import BadInput

IFNAMSIZ = 16

# ip.flags: the same bit means different things in the two families
IPT_F_FRAG, IPT_F_GOTO = 0x01, 0x02
IP6T_F_PROTO, IP6T_F_GOTO = 0x01, 0x04

INV_VIA_IN, INV_VIA_OUT, INV_SRCIP, INV_DSTIP, INV_FRAG, INV_PROTO = (
    0x01,
    0x02,
    0x08,
    0x10,
    0x20,
    0x40,
)

EXTENSION_HEADER = struct.Struct("=H29sB")  # xt_entry_match / xt_entry_target: size, name, revision
STANDARD_TARGET = struct.Struct("=H29sBi4x")  # xt_standard_target: the same and a verdict
COUNTERS = struct.Struct("=QQ")
OFFSETS = struct.Struct("=HH")  # target_offset, next_offset


class Layout(NamedTuple):
    """Where things stand in an entry of one family; sizes and offsets in bytes."""

    family: int
    nfproto: int
    address_family: int
    address: int  # length of an address
    ip: struct.Struct  # ipt_ip / ip6t_ip6
    offsets_at: int  # of target_offset and next_offset
    counters_at: int
    size: int  # of the entry without matches and target
    proto_at: int
    flags_at: int
    invflags_at: int
    goto: int  # the flag's value
    kernel_module: str
    names_file: str


IPV4 = Layout(
    family=4,
    nfproto=2,
    address_family=socket.AF_INET,
    address=4,
    ip=struct.Struct("=4s4s4s4s16s16s16s16sHBB"),
    offsets_at=88,
    counters_at=96,
    size=112,
    proto_at=80,
    flags_at=82,
    invflags_at=83,
    goto=IPT_F_GOTO,
    kernel_module="ip_tables",
    names_file="/proc/net/ip_tables_names",
)
IPV6 = Layout(
    family=6,
    nfproto=10,
    address_family=socket.AF_INET6,
    address=16,
    # the tos byte between proto and flags is a leftover that nothing sets
    ip=struct.Struct("=16s16s16s16s16s16s16s16sHxBB3x"),
    offsets_at=140,
    counters_at=152,
    size=168,
    proto_at=128,
    flags_at=131,
    invflags_at=132,
    goto=IP6T_F_GOTO,
    kernel_module="ip6_tables",
    names_file="/proc/net/ip6_tables_names",
)


def layout(family: int) -> Layout:
    """Return the layout of family 4 or 6; BadInput for another number."""
    if family == 4:
        return IPV4
    if family == 6:
        return IPV6
    msg = f"there is no address family {family!r}"
    raise BadInput(msg, hint="4 or 6")


# --- protocols -------------------------------------------------------------------------------

#: The names that need no /etc/protocols; xtables_chain_protos[] in libxtables/xtables.c.
PROTOCOLS = {
    "tcp": 6,
    "sctp": 132,
    "udp": 17,
    "udplite": 136,
    "icmp": 1,
    "ipv6-icmp": 58,
    "icmpv6": 58,
    "esp": 50,
    "ah": 51,
    "mobility-header": 135,
    "ipv6-mh": 135,
    "mh": 135,
    "all": 0,
}
_PROTOCOL_NAMES = {number: name for name, number in reversed(PROTOCOLS.items())}


def protocol_number(text: str) -> int:
    """Return the protocol's number, by number (any C base) or name; BadInput if unknown."""
    number = c_integer(text)
    if number is not None and number <= 255:
        return number
    name = text.lower()
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    try:
        return socket.getprotobyname(name)
    except (OSError, ValueError):
        msg = f'unknown protocol "{text}" specified'
        raise BadInput(msg, hint="a number, tcp, udp, icmp, ... or a name of /etc/protocols") from None


@cache
def protocol_name(number: int) -> str | None:
    """Return the name iptables-save prints for a protocol, or None where it prints the number."""
    if number in _PROTOCOL_NAMES:
        return _PROTOCOL_NAMES[number]
    lookup = ct.CDLL(None).getprotobynumber  # Python's socket module only goes the other way
    lookup.restype = ct.POINTER(ct.c_char_p)
    entry = lookup(number)
    if not entry or entry[0] is None:
        return None
    name: bytes = entry[0]
    return name.decode("ascii", "replace")


_C_INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")


def c_integer(text: str) -> int | None:
    """Read a number as ``strtoul(text, NULL, 0)`` does (0x10, 010, 8); None if it is not one."""
    if not _C_INTEGER.fullmatch(text):
        return None
    if text[:2] in {"0x", "0X"}:
        return int(text, 16)
    return int(text, 8) if text[0] == "0" else int(text)


# --- addresses -------------------------------------------------------------------------------


def addresses(text: str, family: int, *, resolve: bool = False) -> list[tuple[bytes, bytes]]:
    """Return the (address, mask) pairs of ``ADDR[/MASK][,...]``, addresses masked.

    As in iptables(8): an IPv4 address may be cut short (``10/8``), a mask is a prefix length or
    written out, with mask 0 the address does not matter. Names are looked up only where
    ``resolve`` is set (a firewall must not depend on a name server by accident).
    """
    result: list[tuple[bytes, bytes]] = []
    for part in text.split(","):
        stripped = part.lstrip(" \t")
        address_text, slash, mask_text = stripped.rpartition("/")
        if not slash:
            address_text, mask = stripped, b"\xff" * (4 if family == 4 else 16)
        else:
            mask = _mask(mask_text, family)
        if not any(mask):
            result.append((mask, mask))
            continue
        result.extend((_masked(found, mask), mask) for found in _hosts(address_text, family, resolve))
    return result


def _masked(address: bytes, mask: bytes) -> bytes:
    width = len(mask)
    value = int.from_bytes(address, "big") & int.from_bytes(mask, "big")
    return value.to_bytes(width, "big")


def _hosts(text: str, family: int, resolve: bool) -> list[bytes]:
    number = _address(text, family)
    if number is not None:
        return [number]
    if not resolve:
        wanted = "an IPv4 address" if family == 4 else "an IPv6 address"
        msg = f"host/network `{text}' not found: it is not {wanted}"
        other = 6 if family == 4 else 4
        if _address(text, other) is not None:
            hint = f"it is one of IPv{other}: use -{other}"
        else:
            hint = "names are looked up only with --resolve"
        raise BadInput(msg, hint=hint)
    address_family = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        answers = socket.getaddrinfo(text, None, address_family, socket.SOCK_RAW)
    except (OSError, UnicodeError):
        msg = f"host/network `{text}' not found"
        raise BadInput(msg) from None
    found = [socket.inet_pton(address_family, str(answer[4][0])) for answer in answers]
    return list(dict.fromkeys(found))


def _address(text: str, family: int) -> bytes | None:
    try:
        return socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, text)
    except (OSError, ValueError, UnicodeError):
        pass
    if family != 4:
        return None
    octets = [c_integer(part) for part in text.split(".")]
    if len(octets) > 4 or any(octet is None or octet > 255 for octet in octets):
        return None
    numbers = [octet for octet in octets if octet is not None]
    return bytes(numbers + [0] * (4 - len(numbers)))


def _mask(text: str, family: int) -> bytes:
    width = 4 if family == 4 else 16
    written_out = _address(text, family)
    if written_out is not None and (family == 6 or text.count(".") == 3):
        return written_out
    length = c_integer(text)
    if length is None or length > width * 8:
        msg = f"invalid mask `{text}' specified"
        raise BadInput(msg, hint=f"a prefix length from 0 to {width * 8}, or a mask written out")
    return prefix_mask(length, width)


@cache
def prefix_mask(length: int, width: int) -> bytes:
    """Return the mask of a prefix: ``prefix_mask(24, 4)`` is ff ff ff 00."""
    bits = width * 8
    return (((1 << length) - 1) << (bits - length)).to_bytes(width, "big")


@cache
def mask_text(mask: bytes) -> str:
    """Return a mask as iptables-save prints it: a prefix length if it is one."""
    bits = len(mask) * 8
    value = int.from_bytes(mask, "big")
    length = value.bit_count()
    if mask == prefix_mask(length, len(mask)):
        return str(length)
    return socket.inet_ntop(socket.AF_INET if bits == 32 else socket.AF_INET6, mask)


# --- interfaces ------------------------------------------------------------------------------


def interface(name: str) -> tuple[bytes, bytes]:
    """Return (name, mask) of ``eth0`` or ``eth+``, 16 bytes each; xtables_parse_interface()."""
    encoded = name.encode("utf-8", "surrogateescape")
    if not encoded:
        msg = "Empty interface is likely to be undesired"
        raise BadInput(msg, hint="leave -i or -o out to match any interface")
    if len(encoded) >= IFNAMSIZ:
        msg = f"interface name `{name}' must be shorter than IFNAMSIZ ({IFNAMSIZ - 1})"
        raise BadInput(msg)
    # a trailing + is kept in the name; without one the NUL that ends the name is compared too
    compared = len(encoded) - 1 if encoded.endswith(b"+") else len(encoded) + 1
    return encoded.ljust(IFNAMSIZ, b"\0"), (b"\xff" * compared).ljust(IFNAMSIZ, b"\0")


def interface_text(name: bytes, mask: bytes) -> str:
    """Return an interface as iptables-save prints it; the inverse of :func:`interface`."""
    compared = len(mask.rstrip(b"\0"))
    shown = name[:compared].replace(b"\0", b"").decode("utf-8", "surrogateescape")
    if compared < IFNAMSIZ and name[compared - 1] != 0:
        shown += "+"
    return shown


# --- the header as text ----------------------------------------------------------------------


def header_text(header: bytes, family: int) -> str:
    """Return what iptables-save prints for an ``ipt_ip``/``ip6t_ip6``, with a leading blank.

    The order is that of print_rule4() and save_rule_details(): -s -d -i -o -p -f.
    """
    at = layout(family)
    src, dst, smsk, dmsk, inif, outif, inmask, outmask, proto, flags, inv = at.ip.unpack(header)
    parts: list[str] = []
    for letter, address, mask, bit in (("s", src, smsk, INV_SRCIP), ("d", dst, dmsk, INV_DSTIP)):
        if inv & bit or any(mask) or (family == 4 and any(address)):
            text = socket.inet_ntop(at.address_family, address)
            parts.append(f"{' !' if inv & bit else ''} -{letter} {text}/{mask_text(mask)}")
    for letter, name, mask, bit in (("i", inif, inmask, INV_VIA_IN), ("o", outif, outmask, INV_VIA_OUT)):
        if mask[0]:
            parts.append(f"{' !' if inv & bit else ''} -{letter} {interface_text(name, mask)}")
    if proto:
        shown = protocol_name(proto) or str(proto)
        parts.append(f"{' !' if inv & INV_PROTO else ''} -p {shown}")
    if family == 4 and flags & IPT_F_FRAG:
        parts.append(f"{' !' if inv & INV_FRAG else ''} -f")
    return "".join(parts)


@cache
def standard_target(name: bytes) -> bytes:
    """Return the canonical standard target: a verdict, a chain to jump to, or b"" (no target)."""
    return STANDARD_TARGET.pack(STANDARD_TARGET.size, name, 0, 0)
