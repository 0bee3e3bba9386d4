"""The values in a rule's header: addresses and masks, interfaces, protocols.

How iptables reads and prints them, by libxtables/xtables.c (``xtables_ipparse_multiple``,
``xtables_parse_interface``, ``xtables_parse_protocol``) and iptables/xshared.c; without any C.
Addresses and masks are bytes in network order, 4 or 16 of them.
"""

from __future__ import annotations

import re
import socket
from functools import cache

from nfctl.errors import BadInput

IFNAMSIZ = 16

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
#: The name iptables-save prints for a number: the first one of the list above.
PROTOCOL_NAMES = {number: name for name, number in reversed(PROTOCOLS.items())}


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
        raise BadInput(
            msg, hint="a number, tcp, udp, icmp, ... or a name of /etc/protocols"
        ) from None


_C_INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_LONGEST = 64  # characters; far beyond every range, and Python refuses to read some thousands


def c_integer(text: str) -> int | None:
    """Read a number as ``strtoul(text, NULL, 0)`` does (0x10, 010, 8); None if it is not one."""
    if len(text) > _LONGEST or not _C_INTEGER.fullmatch(text):
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
        result.extend(
            (masked(found, mask), mask) for found in _hosts(address_text, family, resolve)
        )
    return result


def masked(address: bytes, mask: bytes) -> bytes:
    """Return the address with the bits outside the mask cleared."""
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


@cache
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
