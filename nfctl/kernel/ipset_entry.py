"""Entries of ipsets: their text as in ipset(8), and their attributes as the kernel has them.

An entry's text is an element and options: ``10.0.0.0/8,tcp:80 timeout 60 comment "a web"``. To
the kernel it is a list of attributes; what it lists is another one than what was added, because
it expands ranges, masks networks and leaves out what has no value. So two sets are compared by
what the kernel lists (:meth:`Entries.identity`), never by what was written.

The common case, an address or a network without options, has ways of its own: there may be a
hundred thousand of them.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING, Final

from nfctl.errors import BadInput
from nfctl.kernel import ipset_services as services
from nfctl.kernel import ipset_types as t
from nfctl.kernel.netlink import attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DATA = 7 | t.NESTED
_MOST_COMMENT = 255  # bytes

# what the kernel lists; it does not say NLA_F_NET_BYTEORDER of addresses
_IP_V4 = struct.pack("=HHHH", 12, t.IP | t.NESTED, 8, 1)
_IP_V6 = struct.pack("=HHHH", 24, t.IP | t.NESTED, 20, 2)
_PREFIX = struct.pack("=HH", 5, t.CIDR)
_LINE = struct.Struct("=I")  # LINENO is in host order
_PASSING: Final = frozenset({t.TIMEOUT, t.BYTES, t.PACKETS, t.PAD})

_WORDS = re.compile(r'"([^"]*)"|[^\s"]+')


class Entries:
    """How the entries of one set are written: of its type and family."""

    def __init__(self, kind: t.SetType, family: int) -> None:
        self.kind = kind
        self.family = family
        self._bits = 32 if family == 4 else 128
        self._plain = kind.name in {"hash:ip", "hash:net"}
        self._quick = _quick(self._bits, kind.nomatch) if self._plain else {}
        self._af = socket.AF_INET if family == 4 else socket.AF_INET6

    # --- text to attributes -------------------------------------------------------------------

    def encode(self, text: str, line: int) -> bytes:
        """Return an entry as an attribute, IPSET_ATTR_DATA; BadInput that says what is wrong.

        ``line``, above 0, is what the kernel says of the entry that it refuses.
        """
        address, slash, bits = text.partition("/")
        ends = self._quick.get(slash + bits)
        if ends is not None:
            try:
                data = socket.inet_pton(self._af, address)
            except (OSError, ValueError):
                pass
            else:
                return ends[0] + data + ends[1] + _LINE.pack(line)
        return self._encode(text, line)

    def _encode(self, text: str, line: int) -> bytes:
        words = split_words(text)
        if not words:
            msg = "an entry is empty"
            raise BadInput(msg)
        texts = words[0].split(",")
        parts = self.kind.parts
        least = sum(not part.endswith("?") for part in parts)
        if not least <= len(texts) <= len(parts):
            msg = f"an entry of {self.kind.name} has {_counted(len(parts))}, not {len(texts)}"
            raise BadInput(msg)
        found: list[bytes] = []
        flags = 0
        for part, given in zip(parts, texts, strict=False):
            flags |= _PARTS[part](self, given, found)
        flags |= self._options(words[1:], found)
        if flags:
            found.append(t.u32(t.CADT_FLAGS, flags))
        found.append(attribute(t.LINENO, _LINE.pack(line)))
        return attribute(_DATA, b"".join(found))

    def _options(self, words: list[str], found: list[bytes]) -> int:
        flags = 0
        rest = iter(words)
        seen: set[str] = set()
        for name in rest:
            if name in seen:
                msg = f"{name} is given twice"
                raise BadInput(msg)
            seen.add(name)
            if name == "nomatch" and self.kind.nomatch:
                flags |= t.NOMATCH
            elif name == "wildcard" and "iface" in self.kind.parts:
                flags |= t.WILDCARD
            elif name in {"before", "after"} and self.kind.is_list:
                found.append(_string(t.NAMEREF, t.check_name(_value(name, rest))))
                flags |= t.BEFORE if name == "before" else 0
            elif name in _OPTIONS:
                found.append(_OPTIONS[name](_value(name, rest)))
            else:
                msg = f"{self.kind.name} has no option {name!r} of an entry"
                raise BadInput(msg)
        if {"before", "after"} <= seen:
            msg = "an entry is before another one or after it, not both"
            raise BadInput(msg)
        return flags

    # --- parts of an element ------------------------------------------------------------------

    def _addresses(self, text: str, found: list[bytes]) -> int:
        """Read ``IP``, and of IPv4 ``IP/PREFIX`` and ``FROM-TO``."""
        if self.family == 6 and "/" in text and text.partition("/")[2] != "128":
            msg = f"{text!r} is a network, and {self.kind.name} has single addresses in IPv6"
            raise BadInput(msg)
        self._some(text.removesuffix("/128") if self.family == 6 else text, found, t.IP, t.IP_TO)
        return 0

    def _one(self, text: str, found: list[bytes]) -> int:
        found.append(t.address(t.IP, self._single(text)))
        return 0

    def _one2(self, text: str, found: list[bytes]) -> int:
        found.append(t.address(t.IP2, self._single(text)))
        return 0

    def _network(self, text: str, found: list[bytes]) -> int:
        self._some(text, found, t.IP, t.IP_TO)
        return 0

    def _network2(self, text: str, found: list[bytes]) -> int:
        self._some(text, found, t.IP2, t.IP2_TO, t.CIDR2)
        return 0

    def _single(self, text: str) -> bytes:
        return t.packed_address(text, self.family)

    def _some(
        self, text: str, found: list[bytes], attr: int, attr_to: int, attr_cidr: int = t.CIDR
    ) -> None:
        first, dash, last = text.partition("-")
        if dash and self.family == 4:
            ends = (t.packed_address(one, 4) for one in (first, last))
            found += map(t.address, (attr, attr_to), ends)
            return
        if dash:
            msg = f"{text!r} is a range, which IPv6 does not have in ipsets"
            raise BadInput(msg)
        first, slash, bits = text.partition("/")
        found.append(t.address(attr, t.packed_address(first, self.family)))
        if slash:
            length = t.number(bits, self._bits, "a prefix length")
            found.append(attribute(attr_cidr, bytes([length])))

    def _service(self, text: str, found: list[bytes]) -> int:
        found += services.encode(text, self.family)
        return 0

    def _port_range(self, text: str, found: list[bytes]) -> int:
        found += services.encode_port(text)
        return 0

    def _interface(self, text: str, found: list[bytes]) -> int:
        name = text.removeprefix("physdev:")
        data = name.encode("utf-8", "surrogateescape")
        if not 0 < len(data) <= t.MOST_INTERFACE or "/" in name:
            msg = f"{name!r} is no name of an interface"
            raise BadInput(msg)
        found.append(_string(t.IFACE, data))
        return t.PHYSDEV if name != text else 0

    def _mac(self, text: str, found: list[bytes]) -> int:
        if re.fullmatch(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}", text) is None:
            msg = f"{text!r} is no MAC address"
            raise BadInput(msg, hint="such as 02:00:00:00:00:01")
        found.append(attribute(t.ETHER, bytes(int(octet, 16) for octet in text.split(":"))))
        return 0

    def _mark(self, text: str, found: list[bytes]) -> int:
        found.append(t.u32(t.MARK, t.number(text, 0xFFFFFFFF, "a mark")))
        return 0

    def _member(self, text: str, found: list[bytes]) -> int:
        found.append(_string(t.NAME, t.check_name(text)))
        return 0

    # --- attributes to text -------------------------------------------------------------------

    def identity(self, raw: bytes, *, permanence: bool = True) -> bytes:
        """Return of an entry's attributes those that do not change by themselves.

        Counters are not among them, nor is the time that is left; that there is no end is, with
        ``permanence``.
        """
        kept = b""
        for attr, start, end in attributes(raw, 0, len(raw)):
            if attr in _PASSING and not (
                permanence and attr == t.TIMEOUT and not any(raw[start:end])
            ):
                continue
            kept += raw[start - 4 : end] + bytes(-end % 4)
        return kept

    def text(self, raw: bytes) -> str:
        """Return an entry as ``ipset save`` prints it, of the attributes that the kernel lists."""
        if self._plain:
            size = len(raw)
            if self.family == 4:
                if size == 12 and raw[:8] == _IP_V4:
                    return socket.inet_ntoa(raw[8:])
                if size == 20 and raw[:8] == _IP_V4 and raw[12:16] == _PREFIX:
                    bits = raw[16]
                    shown = socket.inet_ntoa(raw[8:12])
                    return shown if bits == 32 else f"{shown}/{bits}"
            elif size == 24 and raw[:8] == _IP_V6:
                return socket.inet_ntop(socket.AF_INET6, raw[8:])
            elif size == 32 and raw[:8] == _IP_V6 and raw[24:28] == _PREFIX:
                bits = raw[28]
                shown = socket.inet_ntop(socket.AF_INET6, raw[8:24])
                return shown if bits == 128 else f"{shown}/{bits}"
        return self._text(raw)

    def _text(self, raw: bytes) -> str:
        found = {kind: raw[start:end] for kind, start, end in attributes(raw, 0, len(raw))}
        flags = t.u32_in(found.get(t.CADT_FLAGS, b""))
        element = ",".join(
            shown for part in self.kind.parts if (shown := _shown_part(part, found, flags))
        )
        return " ".join([element, *_shown_options(found, flags)])


def _quick(bits: int, networks: bool) -> dict[str, tuple[bytes, bytes]]:
    """Return what stands before an address and after it, by what follows it in the text.

    That is DATA{IP{address}, LINENO} and DATA{IP{address}, CIDR, LINENO}, up to the line.
    """
    size = bits // 8
    address = struct.pack(
        "=HHHH", size + 8, t.IP | t.NESTED, size + 4, (1 if bits == 32 else 2) | t.NET_ORDER
    )
    line = struct.pack("=HH", 8, t.LINENO)
    found = {"": (struct.pack("=HH", size + 20, _DATA) + address, line)}
    start = struct.pack("=HH", size + 28, _DATA) + address
    for length in range(bits + 1) if networks or bits == 32 else ():
        found[f"/{length}"] = (start, attribute(t.CIDR, bytes([length])) + line)
    return found


_PARTS: Final[dict[str, Callable[[Entries, str, list[bytes]], int]]] = {
    "ip": Entries._addresses,
    "one": Entries._one,
    "one2": Entries._one2,
    "net": Entries._network,
    "net2": Entries._network2,
    "service": Entries._service,
    "port": Entries._port_range,
    "iface": Entries._interface,
    "mac": Entries._mac,
    "mac?": Entries._mac,
    "mark": Entries._mark,
    "name": Entries._member,
}


def split_words(text: str) -> list[str]:
    """Split at blanks; what is in quotes is one word, without them."""
    if '"' not in text:
        return text.split()
    words, at = [], 0
    for found in _WORDS.finditer(text):
        if text[at : found.start()].strip():
            break
        quoted = found[1]
        words.append(found[0] if quoted is None else quoted)
        at = found.end()
    if text[at:].strip():
        msg = f"a quote is not closed in {text!r}"
        raise BadInput(msg)
    return words


def _counted(parts: int) -> str:
    return "one part" if parts == 1 else f"{parts} parts with commas between them"


def _string(kind: int, data: bytes) -> bytes:
    return attribute(kind, data + b"\0")


def _value(name: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        msg = f"{name} needs a value"
        raise BadInput(msg)
    return value


# --- options of an entry --------------------------------------------------------------------------


def _timeout(text: str) -> bytes:
    return t.u32(t.TIMEOUT, t.number(text, t.MOST_SECONDS, "a timeout"))


def _counter(kind: int) -> Callable[[str], bytes]:
    def encode(text: str) -> bytes:
        value = t.number(text, (1 << 64) - 2, "a counter")
        return attribute(kind | t.NET_ORDER, value.to_bytes(8, "big"))

    return encode


def _comment(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _MOST_COMMENT:
        msg = f"a comment has {_MOST_COMMENT} bytes at most, and this one has {len(data)}"
        raise BadInput(msg)
    if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
        msg = f"a comment has no control characters, and {text!r} has"
        raise BadInput(msg)
    return _string(t.COMMENT, data)


def _skbmark(text: str) -> bytes:
    found = re.fullmatch(r"(0x[0-9a-fA-F]{1,8})(?:/(0x[0-9a-fA-F]{1,8}))?", text)
    if found is None:
        msg = f"skbmark is 0xMARK or 0xMARK/0xMASK, and {text!r} is not"
        raise BadInput(msg)
    both = int(found[1], 16), int(found[2] or "0xffffffff", 16)
    return attribute(t.SKBMARK | t.NET_ORDER, struct.pack(">II", *both))


def _skbprio(text: str) -> bytes:
    found = re.fullmatch(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})", text)
    if found is None:
        msg = f"skbprio is MAJOR:MINOR in hexadecimal, and {text!r} is not"
        raise BadInput(msg)
    return t.u32(t.SKBPRIO, int(found[1], 16) << 16 | int(found[2], 16))


def _skbqueue(text: str) -> bytes:
    return t.u16(t.SKBQUEUE, t.number(text, 0xFFFF, "skbqueue"))


_OPTIONS: Final[dict[str, Callable[[str], bytes]]] = {
    "timeout": _timeout,
    "packets": _counter(t.PACKETS),
    "bytes": _counter(t.BYTES),
    "comment": _comment,
    "skbmark": _skbmark,
    "skbprio": _skbprio,
    "skbqueue": _skbqueue,
}


# --- as ipset save prints it ----------------------------------------------------------------------


def _shown_part(part: str, found: dict[int, bytes], flags: int) -> str:
    if part in {"ip", "one", "net"}:
        return _shown_network(found, t.IP, t.CIDR)
    if part in {"one2", "net2"}:
        return _shown_network(found, t.IP2, t.CIDR2)
    if part == "service":
        return services.shown(t.u32_in(found.get(t.PROTO, b"")), t.u32_in(found.get(t.PORT, b"")))
    if part == "port":
        return str(t.u32_in(found.get(t.PORT, b"")))
    if part == "iface":
        return ("physdev:" if flags & t.PHYSDEV else "") + _shown_string(found.get(t.IFACE, b""))
    if part in {"mac", "mac?"}:
        return ":".join(f"{octet:02X}" for octet in found.get(t.ETHER, b""))
    if part == "mark":
        return f"0x{t.u32_in(found.get(t.MARK, b'')):08x}"
    return _shown_string(found.get(t.NAME, b""))


def _shown_network(found: dict[int, bytes], attr: int, attr_cidr: int) -> str:
    data = t.address_in(found.get(attr, b""))
    if len(data) not in {4, 16}:
        return "?"
    bits = found.get(attr_cidr)
    shown = t.shown_address(data)
    return shown if not bits or bits[0] == len(data) * 8 else f"{shown}/{bits[0]}"


def _shown_string(data: bytes) -> str:
    text = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return re.sub(r"[\x00-\x1f\x7f]", "?", text)


def _shown_options(found: dict[int, bytes], flags: int) -> Iterator[str]:
    if t.TIMEOUT in found:
        yield f"timeout {t.u32_in(found[t.TIMEOUT])}"
    if flags & t.NOMATCH:
        yield "nomatch"
    if flags & t.WILDCARD:
        yield "wildcard"
    for attr, name in ((t.PACKETS, "packets"), (t.BYTES, "bytes")):
        if attr in found:
            yield f"{name} {t.u32_in(found[attr])}"
    if t.COMMENT in found:
        yield f'comment "{_shown_string(found[t.COMMENT])}"'
    if t.SKBMARK in found:
        mark, mask = divmod(t.u32_in(found[t.SKBMARK]), 1 << 32)
        yield f"skbmark 0x{mark:x}" + ("" if mask == 0xFFFFFFFF else f"/0x{mask:x}")
    if t.SKBPRIO in found:
        value = t.u32_in(found[t.SKBPRIO])
        yield f"skbprio {value >> 16:x}:{value & 0xFFFF:x}"
    if t.SKBQUEUE in found:
        yield f"skbqueue {t.u32_in(found[t.SKBQUEUE])}"
