"""The types of ipsets: what each one's entries consist of, and its create options (ipset(8)).

Numbers and names are of linux/netfilter/ipset/ip_set.h. A value of more than one byte is in
network order, and its attribute says so (NLA_F_NET_BYTEORDER); the kernel insists on that.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import BadInput
from nfctl.kernel.netlink import attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The longest name of a set, and of an interface, in bytes.
MOST_NAME: Final = 31
MOST_INTERFACE: Final = 15

NESTED: Final = 0x8000
NET_ORDER: Final = 0x4000

# IPSET_ATTR_...: of entries and of sets to be created
IP, IP_TO, CIDR, PORT, PORT_TO, TIMEOUT, PROTO, CADT_FLAGS, LINENO, MARK, MARKMASK, BITMASK = range(
    1, 13
)
# of sets only
INITVAL, HASHSIZE, MAXELEM, NETMASK, BUCKETSIZE, RESIZE, SIZE, ELEMENTS, REFERENCES, MEMSIZE = (
    range(17, 27)
)
# of entries only
ETHER, NAME, NAMEREF, IP2, CIDR2, IP2_TO, IFACE, BYTES, PACKETS = range(17, 26)
COMMENT, SKBMARK, SKBPRIO, SKBQUEUE, PAD = range(26, 31)

# the bits of CADT_FLAGS
BEFORE, PHYSDEV, NOMATCH, WITH_COUNTERS, WITH_COMMENT, WITH_FORCEADD, WITH_SKBINFO, WILDCARD = (
    1 << bit for bit in range(8)
)

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_U32 = struct.Struct(">I")
#: The longest timeout in seconds: the kernel counts milliseconds (IPSET_MAX_TIMEOUT).
MOST_SECONDS: Final = (0xFFFFFFFF >> 1) // 1000


class SetType(NamedTuple):
    """A type: its name, the parts of an entry, the families it has, its newest known revision.

    ``options`` are its create options, in the order in which ``ipset save`` prints them.
    ``module`` is the kernel module that knows it.
    """

    name: str
    parts: tuple[str, ...]
    families: tuple[int, ...]
    revision: int
    options: tuple[str, ...]
    nomatch: bool = False

    @property
    def module(self) -> str:
        """The kernel module, or the kernel option in lower case."""
        method, _, rest = self.name.partition(":")
        return f"ip_set_{method}_{rest.replace(',', '')}"

    @property
    def features(self) -> frozenset[str]:
        """What two types have to have in common for their sets to be swapped."""
        return frozenset(_FEATURES[part] for part in self.parts) | (
            {"nomatch"} if self.nomatch else set()
        )

    @property
    def is_list(self) -> bool:
        """Whether its entries are other sets."""
        return self.name == "list:set"


_EXTENSIONS = ("timeout", "counters", "comment")
_LAST = ("forceadd", "skbinfo", "bucketsize", "initval")


def _hash(
    parts: str, revision: int, *masks: str, after: tuple[str, ...] = (), nomatch: bool = False
) -> SetType:
    kinds = tuple(parts.split())
    name = "hash:" + ",".join(_SHOWN.get(kind, kind) for kind in kinds)
    families = (4, 6) if kinds != ("mac",) else (0,)
    options = ("hashsize", "maxelem", *masks, *_EXTENSIONS, *_LAST, *after)
    return SetType(name, kinds, families, revision, options, nomatch)


# What a part of an entry is: an address or several ("ip"), one ("one", "one2"), a network
# ("net", "net2"), a protocol and port ("service"), and so on.
_SHOWN: Final = {"one": "ip", "one2": "ip", "net2": "net", "service": "port"}

_FEATURES: Final = {
    "ip": "ip",
    "one": "ip",
    "net": "ip",
    "one2": "ip2",
    "net2": "ip2",
    "service": "port",
    "port": "port",
    "iface": "iface",
    "mac": "mac",
    "mac?": "mac",
    "mark": "mark",
    "name": "name",
}

TYPES: Final[dict[str, SetType]] = {
    known.name: known
    for known in (
        _hash("ip", 6, "netmask", "bitmask"),
        _hash("net", 7, nomatch=True),
        _hash("ip service", 7, after=("netmask", "bitmask")),
        _hash("net service", 8, nomatch=True),
        _hash("ip service one2", 6),
        _hash("ip service net2", 8, nomatch=True),
        _hash("net service net2", 3, nomatch=True),
        _hash("net net2", 4, after=("netmask", "bitmask"), nomatch=True),
        _hash("net iface", 8, nomatch=True),
        _hash("ip mark", 3, "markmask"),
        _hash("one mac", 1),
        _hash("mac", 1),
        SetType("bitmap:ip", ("ip",), (4,), 3, ("range", "netmask", *_EXTENSIONS, "skbinfo")),
        SetType("bitmap:ip,mac", ("one", "mac?"), (4,), 3, ("range", *_EXTENSIONS, "skbinfo")),
        SetType("bitmap:port", ("port",), (0,), 3, ("range", *_EXTENSIONS, "skbinfo")),
        SetType("list:set", ("name",), (0,), 3, ("size", *_EXTENSIONS, "skbinfo")),
    )
}

_ALIASES: Final = {
    "iphash": "hash:ip",
    "nethash": "hash:net",
    "ipporthash": "hash:ip,port",
    "ipportiphash": "hash:ip,port,ip",
    "ipportnethash": "hash:ip,port,net",
    "ipmap": "bitmap:ip",
    "macipmap": "bitmap:ip,mac",
    "portmap": "bitmap:port",
    "setlist": "list:set",
}


def set_type(name: str) -> SetType:
    """Return a type by its name in ipset(8); BadInput for another."""
    found = TYPES.get(_ALIASES.get(name, name))
    if found is None:
        msg = f"there is no ipset type {name!r}"
        raise BadInput(msg, hint=f"there are {', '.join(TYPES)}")
    return found


def set_family(kind: SetType, family: int) -> int:
    """Return the family of a set: 4 or 6, or 0 for a type without; BadInput if it has no such."""
    if family == 0:
        return kind.families[0]
    if family in kind.families:
        return family
    if kind.families == (0,) and family in _FAMILIES:
        msg = f"{kind.name} has no family"
    else:
        msg = f"{kind.name} has no family {family}"
    raise BadInput(msg, hint=f"there is {' and '.join(map(str, kind.families))}")


def check_name(name: str) -> bytes:
    """Return the name of a set as the kernel gets it; BadInput if there can be none of it."""
    data = name.encode("utf-8", "surrogateescape")
    if not 0 < len(data) <= MOST_NAME:
        msg = f"{name!r} is no name of a set: it has 1 to {MOST_NAME} bytes"
        raise BadInput(msg)
    if re.search(r"[\s\x00-\x1f\x7f\"',]", name):
        msg = f"{name!r} is no name of a set: no blanks, quotes, commas and control characters"
        raise BadInput(msg)
    return data


# --- values ---------------------------------------------------------------------------------------


def number(text: str, most: int, what: str, least: int = 0) -> int:
    """Return a number, written as in C: 10, 0x0a or 012; BadInput if it is none or too large."""
    try:
        if text[:1] == "0" and text[1:].isdigit():
            value = int(text, 8)
        elif text.isascii() and text.isalnum():
            value = int(text, 0)
        else:
            raise ValueError
    except ValueError:
        msg = f"{what} is a number, and {text!r} is none"
        raise BadInput(msg) from None
    if not least <= value <= most:
        msg = f"{what} {text} is out of range: it is {least} to {most}"
        raise BadInput(msg)
    return value


def packed_address(text: str, family: int) -> bytes:
    """Return an address in network order; BadInput."""
    try:
        return socket.inet_pton(_FAMILIES[family], text)
    except (OSError, ValueError):
        msg = f"{text!r} is no IPv{family} address"
        hint = "names of hosts are not looked up" if re.search("[g-zG-Z]", text) else ""
        raise BadInput(msg, hint=hint) from None


def shown_address(data: bytes) -> str:
    """Return the text of an address of 4 or 16 bytes."""
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def address(kind: int, data: bytes) -> bytes:
    """Return the attribute of an address of 4 or 16 bytes."""
    inner = attribute((1 if len(data) == 4 else 2) | NET_ORDER, data)
    return attribute(kind | NESTED, inner)


def address_in(value: bytes) -> bytes:
    """Return the address in the value of such an attribute; b"" if there is none."""
    for _, start, end in attributes(value, 0, len(value)):
        return value[start:end]
    return b""


def u16(kind: int, value: int) -> bytes:
    """Return the attribute of a number of 16 bits."""
    return attribute(kind | NET_ORDER, value.to_bytes(2, "big"))


def u32(kind: int, value: int) -> bytes:
    """Return the attribute of a number of 32 bits."""
    return attribute(kind | NET_ORDER, _U32.pack(value))


def u32_in(value: bytes) -> int:
    """Return the number in the value of an attribute."""
    return int.from_bytes(value, "big")


# --- create options -------------------------------------------------------------------------------

#: The options that have no value.
FLAGS: Final = {
    "counters": WITH_COUNTERS,
    "comment": WITH_COMMENT,
    "forceadd": WITH_FORCEADD,
    "skbinfo": WITH_SKBINFO,
}
_NUMBERS: Final = {  # attribute, least, most
    "hashsize": (HASHSIZE, 0, 0xFFFFFFFF),
    "maxelem": (MAXELEM, 0, 0xFFFFFFFF),
    "timeout": (TIMEOUT, 0, MOST_SECONDS),
    "markmask": (MARKMASK, 1, 0xFFFFFFFF),
    "initval": (INITVAL, 0, 0xFFFFFFFF),
    "size": (SIZE, 0, 0xFFFFFFFF),
}
_NUMBER_NAMES: Final = {kind: name for name, (kind, _, _) in _NUMBERS.items()}
_HEXADECIMAL: Final = {"markmask", "initval"}


def encode_options(kind: SetType, family: int, options: Mapping[str, str]) -> bytes:
    """Return the attributes of create options; BadInput for one that the type does not have."""
    body, flags = b"", 0
    for name, text in options.items():
        if name not in kind.options:
            msg = f"{kind.name} has no option {name!r}"
            raise BadInput(msg, hint=f"it has {', '.join(kind.options)}")
        if name in FLAGS:
            if text:
                msg = f"option {name} has no value, and {text!r} is one"
                raise BadInput(msg)
            flags |= FLAGS[name]
        elif name in _NUMBERS:
            attr, least, most = _NUMBERS[name]
            body += u32(attr, number(text, most, f"option {name}", least))
        else:
            body += _OTHERS[name](kind, family, text)
    if "range" in kind.options and "range" not in options:
        msg = f"{kind.name} needs the option range"
        example = "0-1024" if kind.families == (0,) else "192.168.0.0/24"
        raise BadInput(msg, hint=f"such as {example}")
    if "netmask" in options and "bitmask" in options:
        msg = "a set has a netmask or a bitmask, not both"
        raise BadInput(msg)
    return body + u32(CADT_FLAGS, flags) if flags else body


def _netmask(_kind: SetType, family: int, text: str) -> bytes:
    most = 128 if family == 6 else 32
    return attribute(NETMASK, bytes([number(text.removeprefix("/"), most, "option netmask", 1)]))


def _bitmask(_kind: SetType, family: int, text: str) -> bytes:
    return address(BITMASK, packed_address(text, family))


def _bucketsize(_kind: SetType, _family: int, text: str) -> bytes:
    return attribute(BUCKETSIZE, bytes([number(text, 255, "option bucketsize", 1)]))


def _range(kind: SetType, family: int, text: str) -> bytes:
    first, dash, last = text.partition("-")
    if kind.families == (0,):
        if not dash:
            msg = f"{text!r} is no range of ports"
            raise BadInput(msg, hint="such as 0-1024")
        ends = (number(end, 0xFFFF, "a port") for end in (first, last))
        return b"".join(map(u16, (PORT, PORT_TO), ends))
    if dash:
        addresses = (packed_address(end, family) for end in (first, last))
        return b"".join(map(address, (IP, IP_TO), addresses))
    first, slash, bits = text.partition("/")
    if not slash:
        msg = f"{text!r} is no range of addresses"
        raise BadInput(msg, hint="such as 192.168.0.0/24")
    return address(IP, packed_address(first, family)) + attribute(
        CIDR, bytes([number(bits, 32, "a prefix length")])
    )


_OTHERS: Final[dict[str, Callable[[SetType, int, str], bytes]]] = {
    "netmask": _netmask,
    "bitmask": _bitmask,
    "bucketsize": _bucketsize,
    "range": _range,
}


def decode_options(kind: SetType, found: Mapping[int, bytes]) -> dict[str, str]:
    """Return the create options by their names, of a set's attributes as the kernel lists them."""
    options: dict[str, str] = {}
    flags = u32_in(found.get(CADT_FLAGS, b""))
    for name in kind.options:
        if name in FLAGS:
            if flags & FLAGS[name]:
                options[name] = ""
        elif name in _NUMBERS:
            value = found.get(_NUMBERS[name][0])
            if value is not None:
                hexadecimal = name in _HEXADECIMAL
                options[name] = f"{u32_in(value):#010x}" if hexadecimal else str(u32_in(value))
        elif name == "range":
            options[name] = _shown_range(found)
        elif name == "bitmask":
            if BITMASK in found:
                options[name] = shown_address(address_in(found[BITMASK]))
        else:
            value = found.get(NETMASK if name == "netmask" else BUCKETSIZE)
            if value is not None:
                options[name] = str(u32_in(value))
    if "bitmask" in options:  # which the kernel tells as a netmask, too, where it is one
        options.pop("netmask", None)
    return options


def _shown_range(found: Mapping[int, bytes]) -> str:
    if PORT in found:
        return f"{u32_in(found[PORT])}-{u32_in(found.get(PORT_TO, b''))}"
    ends = (address_in(found.get(attr, b"")) for attr in (IP, IP_TO))
    return "-".join(shown_address(end) if end else "?" for end in ends)
