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
import socket
import struct
from functools import cache
from typing import NamedTuple

from nfctl.errors import BadInput
from nfctl.ruleset.fields import PROTOCOL_NAMES, interface_text, mask_text

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
MAX_ENTRY = 0xFFFF  # bytes: next_offset has no more


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


# --- protocols' names ----------------------------------------------------------------------


@cache
def protocol_name(number: int) -> str | None:
    """Return the name iptables-save prints for a protocol, or None where it prints the number."""
    if number in PROTOCOL_NAMES:
        return PROTOCOL_NAMES[number]
    lookup = ct.CDLL(None).getprotobynumber  # Python's socket module only goes the other way
    lookup.restype = ct.POINTER(ct.c_char_p)
    entry = lookup(number)
    if not entry or entry[0] is None:
        return None
    name: bytes = entry[0]
    return name.decode("ascii", "replace")


# --- the header as text ----------------------------------------------------------------------


def address_text(address: bytes, mask: bytes) -> str:
    """Return ``ADDRESS/PREFIX``, or ``ADDRESS/MASK`` where the mask is no prefix."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, address)}/{mask_text(mask)}"


def header_text(header: bytes, family: int) -> str:
    """Return what iptables-save prints for an ``ipt_ip``/``ip6t_ip6``, with a leading blank.

    The order is that of print_rule4() and save_rule_details(): -s -d -i -o -p -f.
    """
    at = layout(family)
    src, dst, smsk, dmsk, inif, outif, inmask, outmask, proto, flags, inv = at.ip.unpack(header)
    parts: list[str] = []
    for letter, address, mask, bit in (("s", src, smsk, INV_SRCIP), ("d", dst, dmsk, INV_DSTIP)):
        if inv & bit or any(mask) or (family == 4 and any(address)):
            parts.append(f"{' !' if inv & bit else ''} -{letter} {address_text(address, mask)}")
    for letter, name, mask, bit in (
        ("i", inif, inmask, INV_VIA_IN),
        ("o", outif, outmask, INV_VIA_OUT),
    ):
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
