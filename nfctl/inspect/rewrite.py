r"""Changes to a packet: the ``set:`` of a verdict rule. Lengths and checksums are made right again.

    set:
      ttl: 64               # 0-255, or +1, -1, ... ; IPv6's hop limit
      dscp: ef              # 0-63, cs0-cs7, af11-af43, ef, be, le, va
      ecn: not-ect          # 0-3, not-ect, ect1, ect0, ce
      src: 192.0.2.1        # an address, or a list of one of IPv4 and one of IPv6
      dst: [192.0.2.2, "2001:db8::2"]   # only changes packets of its own version of IP
      sport: 5353           # 1-65535, of TCP and UDP
      dport: 53
      payload: {text: hello}            # or {hex: 68 65 6c}, {base64: aGVs}

What TCP or UDP carries can also be changed in part:

      payload:
        replace: 'Server: (\w+)/[\d.]+'   # a regular expression on bytes, as of Python's re
        with: 'Server: \1'                # \1, \g<name>: what it has found
        count: 1                          # how often; every time if it is not said
        pad: " "                          # fills up what got shorter

``text`` is sent as UTF-8. In ``replace``, ``with`` and ``pad`` a character stands for the byte of
its number (latin-1), and so does that number in three octal digits: \000 to \377. With ``pad``
nothing changes its length: whatever is put in is filled up to the length of what was there. TCP
needs that, or text of the same length: its peers count bytes.

Some packets cannot be changed so (:class:`CannotRewrite`), and go on as they are: those of which
the queue's copy is cut or that are malformed, whose checksum is wrong, that are too long for the
kernel to take back; for ports, payloads and most addresses also fragments, packets protected by AH,
and those with a routing header. Neither connection tracking nor NAT hears of new addresses and
ports: answers come back to them as they were changed. Use NAT for connections.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind, known, shown
from nfctl.inspect import checksum
from nfctl.inspect import headers as at
from nfctl.inspect.packet import MOST_REPLACED

if TYPE_CHECKING:
    from nfctl.document import Node
    from nfctl.inspect.headers import Headers
    from nfctl.inspect.packet import Packet

DSCP: Final = {
    **{f"cs{n}": n * 8 for n in range(8)},
    **{f"af{n}{m}": n * 8 + m * 2 for n in range(1, 5) for m in range(1, 4)},
    "ef": 46, "be": 0, "le": 1, "va": 44,
}  # fmt: skip
ECN: Final = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}

_ROUTING: Final = 43
_COVERED: Final = frozenset({at.TCP, at.UDP, at.ICMPV6})  # their checksum covers the addresses
#: Protocols whose checksums, if any, do not: ICMP, IGMP, IP in IP, GRE, ESP, SCTP, no next header.
_FREE: Final = frozenset({at.ICMP, 2, 4, 41, 47, at.ESP, at.SCTP, 59})


class CannotRewrite(Exception):
    """A packet cannot be changed; the reason is one of a few, so that they can be counted."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What becomes of a payload: all of it ``whole``, or what ``pattern`` finds a ``template``.

    ``count`` is how often, 0 for always; ``pad`` the byte that fills up, if any.
    """

    whole: bytes = b""
    pattern: re.Pattern[bytes] | None = None
    template: bytes = b""
    count: int = 0
    pad: bytes = b""

    def of(self, old: bytes) -> bytes:
        """Return the new payload."""
        if self.pattern is None:
            return self._fill(self.whole, len(old))
        room = MOST_REPLACED
        template = self.template
        plain = b"\\" not in template

        def put(match: re.Match[bytes]) -> bytes:
            nonlocal room
            start, end = match.span()
            new = self._fill(template if plain else match.expand(template), end - start)
            room -= len(new)
            if room < 0:  # an empty match at each byte, a long template
                reason = "too long"
                raise CannotRewrite(reason)
            return new

        return self.pattern.sub(put, old, self.count)

    def _fill(self, new: bytes, size: int) -> bytes:
        if not self.pad:
            return new
        if len(new) > size:
            reason = "longer than what it replaces"
            raise CannotRewrite(reason)
        return new.ljust(size, self.pad)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Fields to set; None, or empty, for those that stay. See the module for their meaning.

    ``step`` is added to the TTL, which stays in 0-255. ``src`` and ``dst`` are packed addresses
    of IPv4 and IPv6.
    """

    ttl: int | None = None
    step: int = 0
    dscp: int | None = None
    ecn: int | None = None
    src: tuple[bytes, bytes] = (b"", b"")
    dst: tuple[bytes, bytes] = (b"", b"")
    sport: int | None = None
    dport: int | None = None
    payload: Payload | None = None

    @classmethod
    def read(cls, node: Node) -> Rewrite:
        """Read the ``set:`` of a verdict rule; BadInput with its place for what cannot be."""
        return _read(node)

    @property
    def regex(self) -> bool:
        """Whether a regular expression is run, which may take its time: give it a deadline."""
        return self.payload is not None and self.payload.pattern is not None

    def apply(self, packet: Packet) -> bytes | None:
        """Return the packet as changed, None if nothing changes; CannotRewrite if it cannot be.

        All checksums in it are whole then: the kernel makes none for what comes back from a queue.
        """
        head, data = packet.headers, packet.data
        if head.malformed or head.truncated or len(data) > MOST_REPLACED:
            raise CannotRewrite(_why(head))
        six = head.version == 6
        size = 40 + (data[4] << 8 | data[5]) if six else data[2] << 8 | data[3]
        new = bytearray(data[:size])
        end = head.end
        covered = self._addresses(new, head, six)
        if self.sport is not None or self.dport is not None:
            covered |= self._ports(new, head)
        if self.payload is not None:
            longer = self._payload(new, head, self.payload)
            if longer is not None:
                covered = True
                end += longer
        self._fields(new, head, six)
        if new == data[:size]:
            return None
        if covered or not packet.checked:
            _checksum(new, packet, end)
        if not six:
            header = (data[0] & 15) << 2
            new[10:12] = checksum.ipv4(new[:header]).to_bytes(2, "big")
        return bytes(new)

    def _fields(self, new: bytearray, head: Headers, six: bool) -> None:
        """Set the fields of the IP header that no other header depends on."""
        if self.ttl is not None or self.step:
            ttl = head.ttl if self.ttl is None else self.ttl
            new[7 if six else 8] = min(max(ttl + self.step, 0), 255)
        if self.dscp is not None or self.ecn is not None:
            tos = head.tos
            if self.dscp is not None:
                tos = tos & 3 | self.dscp << 2
            if self.ecn is not None:
                tos = tos & 0xFC | self.ecn
            if six:
                new[0] = 0x60 | tos >> 4
                new[1] = (tos & 15) << 4 | new[1] & 15
            else:
                new[1] = tos

    def _addresses(self, new: bytearray, head: Headers, six: bool) -> bool:
        """Set addresses; whether a transport header's checksum covers them."""
        src, dst = self.src[six] or head.src, self.dst[six] or head.dst
        if src == head.src and dst == head.dst:
            return False
        if head.proto not in _FREE or _ROUTING in head.extensions or at.AH in head.extensions:
            _check_transport(head)
            if head.proto not in _COVERED or (head.proto == at.ICMPV6 and not six):
                reason = "a protocol whose checksum is not known"
                raise CannotRewrite(reason)
        start = 8 if six else 12
        new[start : start + 2 * len(src)] = src + dst
        return head.proto in _COVERED

    def _ports(self, new: bytearray, head: Headers) -> bool:
        """Set ports; whether one changes."""
        sport = head.sport if self.sport is None else self.sport
        dport = head.dport if self.dport is None else self.dport
        _check_transport(head, ports=True)
        if sport == head.sport and dport == head.dport:
            return False
        new[head.transport : head.transport + 4] = (sport << 16 | dport).to_bytes(4, "big")
        return True

    @staticmethod
    def _payload(new: bytearray, head: Headers, payload: Payload) -> int | None:
        """Change the payload; return by how much it gets longer, None if nothing changes."""
        _check_transport(head, ports=True)
        old = bytes(new[head.data : head.end])
        if head.proto == at.TCP and not old:
            return None
        content = payload.of(old)
        if content == old:
            return None
        longer = len(content) - len(old)
        if longer and head.proto == at.TCP:
            reason = "a TCP payload of another length"
            raise CannotRewrite(reason)
        size = len(new) + longer
        if size > MOST_REPLACED:
            reason = "too long"
            raise CannotRewrite(reason)
        new[head.data : head.end] = content
        if longer:
            udp = head.transport + 4
            new[udp : udp + 2] = (head.end - head.transport + longer).to_bytes(2, "big")
            if head.version == 6:
                new[4:6] = (size - 40).to_bytes(2, "big")
            else:
                new[2:4] = size.to_bytes(2, "big")
        return longer


def _why(head: Headers) -> str:
    if head.truncated:
        return "only a part of it is known"
    return "malformed" if head.malformed else "too long"


def _check_transport(head: Headers, *, ports: bool = False) -> None:
    """Raise CannotRewrite where what a transport header covers cannot be changed."""
    if head.fragment or head.more:
        reason = "a fragment"
    elif ports and head.proto not in {at.TCP, at.UDP}:
        reason = "neither TCP nor UDP"
    elif _ROUTING in head.extensions:
        reason = "a routing header"
    elif at.AH in head.extensions:
        reason = "protected by AH"
    else:
        return
    raise CannotRewrite(reason)


def _checksum(new: bytearray, packet: Packet, end: int) -> None:
    """Make the checksum of a changed packet's TCP, UDP or ICMPv6 header, which ends at ``end``.

    A wrong one is not made right: the packet was damaged, or its addresses are not those that
    its checksum was made with, as with IPv4's source routes. One that is not made yet and is not
    this header's belongs to what it carries: to TCP in a tunnel, which could not be made whole.
    """
    state = checksum.state(packet)
    if state == checksum.WRONG:
        reason = "its checksum is wrong"
        raise CannotRewrite(reason)
    if not packet.checked and state != checksum.PARTIAL:
        reason = "the checksum of what it carries is not made yet"
        raise CannotRewrite(reason)
    if state != checksum.NONE:
        checksum.fill(new, packet.headers, end)


# --- reading ----------------------------------------------------------------------------------


def _read(node: Node) -> Rewrite:
    names = ("ttl", "dscp", "ecn", "src", "dst", "sport", "dport", "payload")
    fields = node.mapping(optional=names)
    if not fields:
        raise node.error("nothing is set here", f"it can be {', '.join(names)}")
    ttl, step = _ttl(fields["ttl"]) if "ttl" in fields else (None, 0)
    nothing = (b"", b"")
    return Rewrite(
        ttl=ttl,
        step=step,
        dscp=_named(fields["dscp"], DSCP, 63) if "dscp" in fields else None,
        ecn=_named(fields["ecn"], ECN, 3) if "ecn" in fields else None,
        src=_pair(fields["src"]) if "src" in fields else nothing,
        dst=_pair(fields["dst"]) if "dst" in fields else nothing,
        sport=fields["sport"].integer(1, 65535) if "sport" in fields else None,
        dport=fields["dport"].integer(1, 65535) if "dport" in fields else None,
        payload=_contents(fields["payload"]) if "payload" in fields else None,
    )


def _ttl(node: Node) -> tuple[int | None, int]:
    """Return a TTL, or what is added to the packet's: +1 and -1, in quotes or not."""
    if node.kind in {Kind.INTEGER, Kind.TEXT} and node.raw[:1] in {"+", "-"}:
        if not re.fullmatch(r"[+-][0-9]{1,3}", node.raw) or not 0 < abs(int(node.raw)) <= 255:
            raise node.error(f"{shown(node.raw)} is no change of a TTL", "from +1 to +255, or -1")
        return None, int(node.raw)
    return node.integer(0, 255), 0


def _named(node: Node, names: dict[str, int], most: int) -> int:
    if node.kind is not Kind.TEXT:
        return node.integer(0, most)
    number = names.get(node.raw.lower())
    if number is None:
        hint = f"a number up to {most}; {known(node.raw, names)}"
        raise node.error(f"{shown(node.raw)} is not known", hint)
    return number


def _pair(node: Node) -> tuple[bytes, bytes]:
    """Return a packed address of IPv4 and one of IPv6, empty where there is none."""
    found = [b"", b""]
    for each in node.one_or_many():
        try:
            address = ipaddress.ip_address(each.text())
            packed = address.packed
        except ValueError:
            packed = b""
        if not packed or "%" in each.raw:
            raise each.error(f"{shown(each.raw)} is no IP address", "one without a prefix length")
        six = len(packed) == 16
        if found[six]:
            raise each.error(f"there is an IPv{address.version} address already")
        found[six] = packed
    if not any(found):
        raise node.error("an address is expected here")
    return found[0], found[1]


def _contents(node: Node) -> Payload:
    """Read what becomes of a payload."""
    ways = ("text", "hex", "base64", "replace")
    fields = node.mapping(optional=(*ways, "with", "count", "pad"))
    chosen = [name for name in ways if name in fields]
    if len(chosen) != 1:
        raise node.error("a payload is set in one way", f"one of {', '.join(ways)}")
    pad = b""
    if "pad" in fields:
        pad = re.sub(b"^", _template(fields["pad"], re.compile(b"")), b"")
        if len(pad) != 1:
            raise fields["pad"].error(f"{shown(fields['pad'].raw)} is not one byte")
    way = chosen[0]
    if way != "replace":
        for name in ("with", "count"):
            if name in fields:
                raise node.key(name).error(f'"{name}" belongs to "replace"')
        return Payload(_bytes(fields[way], way), pad=pad)
    if "with" not in fields:
        raise node.error('the key "with" is missing', 'with: "" takes out what is found')
    try:
        pattern = re.compile(_latin(fields["replace"]))
    except (re.error, OverflowError, RecursionError) as error:
        message = f"{shown(fields['replace'].raw)} is no regular expression: {error}"
        raise fields["replace"].error(message) from None
    template = _template(fields["with"], pattern)
    count = fields["count"].integer(1, 65535) if "count" in fields else 0
    return Payload(pattern=pattern, template=template, count=count, pad=pad)


def _template(node: Node, pattern: re.Pattern[bytes]) -> bytes:
    """Return what is put in for a pattern, as re.sub() takes it."""
    template = _latin(node)
    try:
        pattern.sub(template, b"")
    except (re.error, IndexError) as error:
        message = f"{shown(node.raw)} cannot be put in: {error}"
        raise node.error(message) from None
    return template


def _bytes(node: Node, way: str) -> bytes:
    if way == "text":
        try:
            content = node.text().encode()
        except UnicodeEncodeError:
            raise node.error(f"{shown(node.raw)} is no text") from None
    else:
        raw = node.scalar()  # 1234 is a number in YAML, and all the same hexadecimal
        try:
            content = (
                bytes.fromhex(raw.replace(":", " "))
                if way == "hex"
                else base64.b64decode("".join(raw.split()), validate=True)
            )
        except (ValueError, binascii.Error):
            raise node.error(f"{shown(raw)} is not in {way}") from None
    if len(content) > MOST_REPLACED:
        raise node.error("this is more than a packet carries", f"{MOST_REPLACED} bytes at most")
    return content


def _latin(node: Node) -> bytes:
    """Return a text whose characters stand for bytes."""
    text = node.text()
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        char = text[error.start]
        written = "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "replace"))
        hint = f"a character stands for a byte here; as UTF-8 it is {written}"
        raise node.error(f"{shown(char)} is no byte", hint) from None
