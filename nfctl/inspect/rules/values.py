"""The values of conditions as they are written: numbers, ports, addresses, durations, flags.

Each function takes a node of the document and raises BadInput at its place.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind, known, shown
from nfctl.inspect import headers as at
from nfctl.inspect.packet import PROTOCOLS
from nfctl.inspect.rules.sets import Addresses, Ranges, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nfctl.document import Node

_RANGE: Final = re.compile(r"([0-9]{1,10})\s*-\s*([0-9]{1,10})?")
_COMPARED: Final = re.compile(r"(<=|>=|<|>)\s*([0-9]{1,10})")
_PARTS: Final = re.compile(r"(?:[0-9]{1,9}[smhd])+")
_PART: Final = re.compile(r"([0-9]+)([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST: Final = 366 * 86400.0  # seconds that a verdict may last
_RATE: Final = re.compile(r"([0-9]{1,9}) ?/ ?(s|sec|second|m|min|minute|h|hour|d|day)")
_MARK: Final = re.compile(
    r"(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})(?:/(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10}))?"
)
_INTERFACE: Final = re.compile(r"[^\s/*+]{0,15}[*+]?")
_NAME: Final = re.compile(r"[!-~]+")
#: What people write for a port, for the hint of an error only.
_SERVICES: Final = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "dns": 53, "domain": 53, "http": 80,
    "ntp": 123, "snmp": 161, "ldap": 389, "https": 443, "quic": 443, "syslog": 514, "mysql": 3306,
    "postgresql": 5432,
}  # fmt: skip

ALIASES: Final = {"ipv6-icmp": at.ICMPV6, "icmp6": at.ICMPV6}
PROTOCOL_NUMBERS: Final = {name: number for number, name in PROTOCOLS.items()} | ALIASES
FLAGS: Final = {
    "fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128,
}  # fmt: skip
_ALL_FLAGS: Final = 0x3F  # of iptables: FIN to URG


def some(node: Node, what: str) -> Sequence[Node]:
    """Return the elements of a list or the one value; BadInput if there are none."""
    nodes = node.one_or_many()
    if not nodes:
        msg = f"there is no {what} here: this could never match"
        raise node.error(msg)
    return nodes


# --- numbers --------------------------------------------------------------------------------------


def ranges(node: Node, low: int, high: int, what: str) -> Ranges[int]:
    """Read numbers, ranges (``8000-8100``, ``1024-``) and comparisons (``"> 1000"``)."""
    return numbers(_range(part, low, high, what) for part in some(node, what))


def _range(node: Node, low: int, high: int, what: str) -> tuple[int, int]:
    if node.kind is Kind.INTEGER:
        number = node.integer(low, high)
        return number, number
    hint = f"a number from {low} to {high}, a range such as {low + 1}-{low + 8}"
    text = node.text("", what, hint).strip()
    if re.fullmatch("[0-9]{1,10}", text):
        first = last = int(text)
    elif found := _RANGE.fullmatch(text):
        first, last = int(found[1]), int(found[2]) if found[2] else high
        if first > last:
            msg = f"the range {text} ends before it begins"
            raise node.error(msg, f"{last}-{first}?")
    elif found := _COMPARED.fullmatch(text):
        number = int(found[2])
        first, last = {
            "<": (low, number - 1), "<=": (low, number), ">": (number + 1, high),
            ">=": (number, high),
        }[found[1]]  # fmt: skip
        if first > last:
            msg = f'no {what} is "{text}"'
            raise node.error(msg, f"it is from {low} to {high}")
    else:
        msg = f"{shown(text)} is no {what}"
        raise node.error(msg, f'{hint}, or a comparison such as "> {low + 8}"')
    if first < low or last > high:
        msg = f"{text} is out of range"
        raise node.error(msg, f"from {low} to {high}")
    return first, last


def ports(node: Node) -> Ranges[int]:
    """Read ports and ranges of them; names of services are refused."""
    for part in some(node, "port"):
        text = part.raw.strip()
        if part.kind is Kind.TEXT and ":" in text:
            msg = f"{shown(text)} is no port"
            raise part.error(msg, f"a range is written {text.replace(':', '-')}")
        if part.kind is Kind.TEXT and re.fullmatch("[A-Za-z][A-Za-z0-9-]*", text):
            number = _SERVICES.get(text.lower())
            msg = f"{shown(text)} is no port number"
            reason = "what a service's name means differs from machine to machine"
            raise part.error(
                msg, f"write {number}: {reason}" if number else f"{reason}: write the number"
            )
    return ranges(node, 0, 65535, "port")


def words(node: Node, names: dict[str, int], low: int, high: int, what: str) -> frozenset[int]:
    """Read numbers and names of them, one or a list."""
    found: set[int] = set()
    for part in some(node, what):
        if part.kind is Kind.INTEGER:
            found.add(part.integer(low, high))
            continue
        word = part.scalar().lower()
        if word not in names:
            msg = f"{shown(part.raw)} is no {what}"
            raise part.error(msg, known(word, names, f"a number from {low} to {high}, or one of"))
        found.add(names[word])
    return frozenset(found)


def duration(node: Node) -> float:
    """Read a time: seconds, or ``90s``, ``10m``, ``1h30m``, ``2d``."""
    seconds = 0.0
    if node.kind in {Kind.INTEGER, Kind.FLOAT}:
        seconds = float(str(node.plain()))
    else:
        text = node.text("", "time", "90s, 10m, 1h30m, 2d, or a number of seconds")
        if not _PARTS.fullmatch(text):
            msg = f"{shown(text)} is no time"
            raise node.error(msg, "90s, 10m, 1h30m, 2d, or a number of seconds")
        seconds = float(sum(int(n) * _SECONDS[unit] for n, unit in _PART.findall(text)))
    if not 0 < seconds <= _LONGEST:
        msg = f"{node.raw} is no time that something can last"
        raise node.error(msg, "more than nothing, and a year at most")
    return seconds


def rate(node: Node) -> tuple[int, float]:
    """Read how many in how long: ``100/s`` is (100, 1.0); also ``/min``, ``/h`` and ``/d``."""
    hint = "such as 100/s, 20/min, 500/h"
    text = node.text("", "rate", hint)
    found = _RATE.fullmatch(text)
    if not found or not int(found[1]):
        msg = f"{shown(text)} is no rate"
        raise node.error(msg, hint)
    return int(found[1]), float(_SECONDS[found[2][0]])


def mark(node: Node) -> tuple[int, int]:
    """Read ``value`` or ``value/mask``; value and mask are returned."""
    text = node.scalar()
    found = _MARK.fullmatch(text)
    limit = 0xFFFFFFFF
    if not found:
        msg = f"{shown(text)} is no mark"
        raise node.error(msg, "such as 0x10, 16, or 0x10/0xff: a value and the bits it is about")
    value, mask = (
        int(n, 16 if n[:2].lower() == "0x" else 10) for n in (found[1], found[2] or str(limit))
    )
    if value > limit or mask > limit:
        msg = f"{text} is out of range"
        raise node.error(msg, "a mark has 32 bits")
    if value & ~mask:
        msg = f"the value of {text} has bits that its mask has not"
        raise node.error(msg, f"{value & mask:#x}/{mask:#x}, or {value:#x}/{mask | value:#x}")
    return value, mask


# --- the network ----------------------------------------------------------------------------------


def addresses(node: Node) -> Addresses:
    """Read addresses, prefixes and ranges (``a-b``) of both families; host names are refused."""
    return Addresses(_addresses(part) for part in some(node, "address"))


def _addresses(node: Node) -> tuple[int, int, int]:
    text = node.text("", "address", "such as 192.0.2.1, 192.0.2.0/24, 2001:db8::/32").strip()
    first, dash, last = text.partition("-")
    if dash and _address(first.strip()) and _address(last.strip()):
        low, high = _address(first.strip()), _address(last.strip())
        if low.version != high.version:  # type: ignore[union-attr]
            msg = f"the range {text} begins with IPv4 and ends with IPv6, or the other way round"
            raise node.error(msg)
        if int(low) > int(high):  # type: ignore[arg-type]
            msg = f"the range {text} ends before it begins"
            raise node.error(msg, f"{last.strip()}-{first.strip()}?")
        return len(low.packed), int(low), int(high)  # type: ignore[union-attr,arg-type]
    plain, slash, bits = text.partition("/")
    address = _address(plain)
    if address is None:
        name = re.fullmatch(r"(?=.*[A-Za-z])[A-Za-z0-9_.-]+", text)
        msg = f"{shown(text)} is no address"
        hint = "192.0.2.1, 192.0.2.0/24, 192.0.2.1-192.0.2.9, or the same of IPv6"
        raise node.error(
            msg, f"a host's name may mean another address tomorrow: {hint}" if name else hint
        )
    size, most = len(address.packed), address.max_prefixlen
    if not slash:
        return size, int(address), int(address)
    if not re.fullmatch("[0-9]{1,3}", bits) or int(bits) > most:
        msg = f"{shown(bits)} is no prefix length"
        raise node.error(msg, f"behind the slash stand the bits of the prefix, from 0 to {most}")
    network = ipaddress.ip_network((address, int(bits)), strict=False)
    if network.network_address != address:
        msg = f"{text} is no network: bits behind the prefix are set"
        raise node.error(msg, f"the network is {network}, the host {address}")
    return size, int(network.network_address), int(network.broadcast_address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:  # of a link: packets do not say of which
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def interfaces(node: Node) -> frozenset[str]:
    """Read names of interfaces; a ``*`` or ``+`` at the end stands for the rest of one."""
    found = set()
    for part in some(node, "interface"):
        text = part.scalar()
        if not text or not _INTERFACE.fullmatch(text) or len(text) > 16:
            msg = f"{shown(text)} is no interface's name"
            raise part.error(msg, "at most 15 characters, no blank and no slash; eth* is all eth")
        found.add(text.replace("+", "*"))
    return frozenset(found)


def names(node: Node, what: str = "domain name") -> frozenset[str]:
    """Read domain names and globs of them; what is not ASCII is refused, as packets are."""
    found = set()
    for part in some(node, what):
        text = part.scalar().strip()
        if not text.isascii():
            msg = f"{shown(text)} is not how packets write that name"
            raise part.error(msg, f"write {_ascii(text)}")
        if not _NAME.fullmatch(text) or ("/" in text and "\\" not in text):
            msg = f"{shown(text)} is no {what}"
            raise part.error(msg, "such as example.org or *.example.org; * is any characters")
        found.add(text)
    return frozenset(found)


def _ascii(text: str) -> str:
    try:
        return ".".join(part.encode("idna").decode() or part for part in text.split("."))
    except UnicodeError:
        return "it in ASCII, as xn--..."


def flags(node: Node) -> frozenset[tuple[int, int]]:
    """Read TCP's flags, (mask, value) of each: ``syn`` or, as ``--tcp-flags``, ``syn,ack/syn``."""
    found = set()
    for part in some(node, "flag"):
        text = part.text("", "list of flags", "such as syn, or syn,ack/syn")
        mask, slash, value = text.partition("/")
        if slash:
            pair = _flags(part, mask), _flags(part, value)
        else:
            own = _flags(part, text)
            pair = _ALL_FLAGS | own, own
        if pair[1] & ~pair[0]:
            msg = f"{shown(text)} never matches: a flag that must be set is not looked at"
            raise part.error(
                msg, "in front of the slash stand the flags to look at, behind it those set"
            )
        found.add(pair)
    return frozenset(found)


def _flags(node: Node, text: str) -> int:
    bits = 0
    for word in text.lower().replace(" ", "").split(","):
        if word == "all":
            bits |= _ALL_FLAGS
        elif word in FLAGS:
            bits |= FLAGS[word]
        elif word != "none":
            msg = f"{shown(word)} is no flag of TCP"
            raise node.error(msg, known(word, [*FLAGS, "all", "none"]))
    return bits


def icmp(node: Node) -> frozenset[tuple[int, int, int]]:
    """Read types of ICMP: names, numbers, ``type/code``; (version, type, code) of each."""
    table = _icmp_names()
    found: set[tuple[int, int, int]] = set()
    for part in some(node, "type"):
        text = part.scalar().lower().replace(" ", "-")
        pair = re.fullmatch("([0-9]{1,3})(?:/([0-9]{1,3}))?", text)
        if pair and max(int(pair[1]), int(pair[2] or 0)) <= 255:
            codes: Iterable[int] = (int(pair[2]),) if pair[2] else range(256)
            found.update((version, int(pair[1]), code) for version in (4, 6) for code in codes)
        elif text in table:
            for version, kind, code in table[text]:
                every = range(256) if code is None else (code,)
                found.update((version, kind, one) for one in every)
        else:
            msg = f"{shown(part.raw)} is no type of ICMP"
            raise part.error(
                msg, known(text, table, "a number, a type/code such as 3/4, or one of")
            )
    return frozenset(found)


def _icmp_names() -> dict[str, list[tuple[int, int, int | None]]]:
    """Return the types and codes of both families by name, with hyphens as iptables has them."""
    from nfctl.inspect.payloads import icmp as table

    found: dict[str, list[tuple[int, int, int | None]]] = {}
    for version, types, codes in ((4, table._V4, table._V4_CODES), (6, table._V6, table._V6_CODES)):
        for kind, name in types.items():
            found.setdefault(_hyphens(name), []).append((version, kind, None))
        for (kind, code), name in codes.items():
            found.setdefault(_hyphens(name), []).append((version, kind, code))
    for name in [name for name in found if "neighbour" in name]:
        found[name.replace("neighbour", "neighbor")] = found[name]
    return found


def _hyphens(name: str) -> str:
    return name.lower().replace(" ", "-")


def texts(node: Node, what: str, pattern: str = "[!-~]+", hint: str = "") -> frozenset[str]:
    """Read texts of printable ASCII that match a pattern, one or a list."""
    found = set()
    for part in some(node, what):
        text = part.scalar()
        if not re.fullmatch(pattern, text):
            msg = f"{shown(text)} is no {what}"
            raise part.error(msg, hint)
        found.add(text)
    return frozenset(found)
