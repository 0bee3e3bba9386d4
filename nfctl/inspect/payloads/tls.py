"""TLS: the ClientHello (RFC 8446, RFC 6066 server_name, RFC 7301 ALPN), whole or in pieces.

A ClientHello may be spread over records, and those over segments that come in any order, twice,
or overlapping. :class:`Reader` puts one together and keeps no more than it is allowed to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from struct import Struct
from typing import Final, Literal

MOST: Final = 16384  # bytes of one ClientHello that are kept, in order or not
PIECE: Final = 128  # bytes that a piece which waits for the one before it costs besides its own

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_RECORD = 1 << 14  # bytes of data in one record at most
_SERVER_NAME, _ALPN, _VERSIONS, _ECH = 0, 16, 43, 0xFE0D
_VERSION_NAMES = {
    0x300: "SSL 3.0", 0x301: "TLS 1.0", 0x302: "TLS 1.1", 0x303: "TLS 1.2", 0x304: "TLS 1.3",
}  # fmt: skip
_LONGEST_NAME, _LONGEST_PROTOCOL, _PROTOCOLS = 255, 32, 16
_PAIR = Struct("!HH").unpack_from


class _More(Enum):
    MORE = "more"


MORE: Final = _More.MORE  # a ClientHello as far as it goes, which is not all of it


@dataclass(frozen=True, slots=True)
class ClientHello:
    r"""What a client asks for: "" and () where it did not say.

    ``sni`` is the server's name, lower case, without a trailing dot; ``alpn`` the protocols it
    offers, 16 of them at most; ``version`` the highest TLS version it offers. What is no
    printable ASCII is written as ``\xNN``, so is the space; what is too long for a name or a
    protocol ends in "...". ``ech`` is whether encrypted_client_hello is there: ``sni`` may then
    be the name of a front only, or, as browsers send the extension to everyone, the name meant.
    """

    sni: str = ""
    alpn: tuple[str, ...] = ()
    version: str = ""
    ech: bool = False


Result = ClientHello | Literal[_More.MORE] | None


def hello(data: bytes) -> Result:
    """Read the ClientHello that a TCP stream begins with.

    None where it is none, or one that no server would take; MORE where it goes on behind ``data``.
    """
    return Reader().add(0, data)


def handshake(data: bytes) -> Result:
    """Read a ClientHello that is in no record: the CRYPTO frames of QUIC, put together."""
    return Reader(bare=True).add(0, data)


class Reader:
    """A ClientHello that comes in pieces, in any order; the first bytes at a place are kept.

    ``most`` is for all that is kept, in bytes, where a piece out of order costs ``PIECE`` more
    than it is long. After a result that is not MORE nothing more is to be added; ``over`` says
    that it was None only because there was too much.
    """

    __slots__ = ("_at", "_bare", "_body", "_header", "_later", "_left", "_most", "over")

    def __init__(self, most: int = MOST, *, bare: bool = False) -> None:
        self.over = False
        self._most = most
        self._bare = bare
        self._at = 0  # the next byte of the stream, of which all before have been read
        self._later: list[tuple[int, bytes]] = []  # sorted, neither touching nor overlapping
        self._header = b""  # of a record, not all of its five bytes
        self._left = 0  # bytes of the record that are still to come
        self._body = bytearray()  # of the handshake message

    @property
    def kept(self) -> int:
        """Bytes that are kept, with what the pieces out of order cost."""
        later = sum(len(piece) + PIECE for _, piece in self._later)
        return len(self._body) + later

    def add(self, offset: int, data: bytes) -> Result:
        """Add what the stream has at ``offset``, in bytes from its start (not below 0)."""
        at = self._at
        if offset < at:
            data = data[at - offset :]
            offset = at
        if offset > at or self._later:
            # What is further behind is no part of a ClientHello that we would keep.
            room = self._most - len(self._body) - (offset - at) - PIECE
            return self._add_later(offset, data[:room]) if data and room > 0 else MORE
        self._at = at + len(data)
        return self._read(data)

    def _add_later(self, offset: int, data: bytes) -> Result:
        """Put a piece between those that wait, and read what has come into order by it."""
        start, stop = offset, offset + len(data)
        pieces: list[tuple[int, bytes]] = []
        for place, piece in self._later:
            if place < stop and start < stop:
                if start < place:
                    pieces.append((start, data[start - offset : place - offset]))
                start = max(start, place + len(piece))
            elif start < stop:
                pieces.append((start, data[start - offset :]))
                start = stop
            pieces.append((place, piece))
        if start < stop:
            pieces.append((start, data[start - offset :]))
        pieces.sort()
        self._later = _joined(pieces)
        if self._later[0][0] == self._at:
            ready = self._later.pop(0)[1]
            self._at += len(ready)
            found = self._read(ready)
            if found is not MORE:
                return found
        if self.kept > self._most:
            self.over = True
            return None
        return MORE

    def _read(self, data: bytes) -> Result:
        """Read what follows what was read before."""
        body = self._body
        if self._bare:
            body += data[: self._most + 1 - len(body)]
            return self._whole()
        at, size = 0, len(data)
        while at < size:
            if not self._left:
                header = self._header + data[at : at + 5 - len(self._header)]
                at += len(header) - len(self._header)
                if header[0] != _HANDSHAKE or header[1:2] not in {b"\3", b""}:
                    return None
                if len(header) < 5:
                    self._header = header
                    break
                self._header = b""
                self._left = header[3] << 8 | header[4]
                if not 0 < self._left <= _RECORD:
                    return None
                continue
            taken = data[at : at + self._left]
            at += len(taken)
            self._left -= len(taken)
            body += taken
            found = self._whole()
            if found is not MORE:
                return found
        return MORE

    def _whole(self) -> Result:
        """Return the ClientHello once all of it is there."""
        body = self._body
        if body and body[0] != _CLIENT_HELLO:
            return None
        if len(body) < 4:
            return MORE
        end = 4 + (body[1] << 16 | body[2] << 8 | body[3])
        if end > self._most:
            self.over = True
            return None
        return _client_hello(bytes(body[4:end])) if len(body) >= end else MORE


def _joined(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Make one of those that touch, of pieces sorted by place."""
    joined: list[tuple[int, list[bytes], int]] = []
    for place, piece in pieces:
        if joined and joined[-1][2] == place:
            start, parts, _ = joined.pop()
            parts.append(piece)
            joined.append((start, parts, place + len(piece)))
        else:
            joined.append((place, [piece], place + len(piece)))
    return [(place, parts[0] if len(parts) == 1 else b"".join(parts)) for place, parts, _ in joined]


def _client_hello(body: bytes) -> ClientHello | None:
    """Read a ClientHello behind its type and length (RFC 8446, 4.1.2); None if it is malformed."""
    end = len(body)
    # Version, 32 random bytes, then three vectors: session, cipher suites, compression methods.
    if end < 35 or body[0] != 3:
        return None
    at = 35 + body[34]
    at += 2 + int.from_bytes(body[at : at + 2])
    if at >= end:
        return None
    at += 1 + body[at]
    version = body[0] << 8 | body[1]
    if at >= end:  # TLS 1.2 and before: no extensions at all
        return ClientHello(version=_version(version)) if at == end else None
    if at + 2 + int.from_bytes(body[at : at + 2]) != end:
        return None
    at += 2
    sni, ech = "", False
    alpn: tuple[str, ...] = ()
    while at < end:
        if at + 4 > end:
            return None
        kind, size = _PAIR(body, at)
        at += 4
        if at + size > end:
            return None
        if kind == _SERVER_NAME:
            sni = sni or _name(body[at : at + size])
        elif kind == _ALPN:
            alpn = alpn or _protocols(body[at : at + size])
        elif kind == _VERSIONS:
            version = _highest(body[at : at + size]) or version
        elif kind == _ECH:
            ech = True
        at += size
    return ClientHello(sni, alpn, _version(version), ech)


def _name(data: bytes) -> str:
    """Return the first host name of a server_name extension."""
    end = min(len(data), 2 + int.from_bytes(data[:2]))
    at = 2
    while at + 3 <= end:
        stop = at + 3 + int.from_bytes(data[at + 1 : at + 3])
        if stop > end:
            return ""
        if data[at] == 0:
            return _text(data[at + 3 : stop].lower().removesuffix(b"."), _LONGEST_NAME)
        at = stop
    return ""


@lru_cache(maxsize=256)
def _protocols(data: bytes) -> tuple[str, ...]:
    """Return the names of an ALPN extension; the tuples are few, and shared by their flows."""
    names: list[str] = []
    end = min(len(data), 2 + int.from_bytes(data[:2]))
    at = 2
    while at < end and len(names) < _PROTOCOLS:
        stop = at + 1 + data[at]
        if stop > end:
            break
        names.append(_text(data[at + 1 : stop], _LONGEST_PROTOCOL))
        at = stop
    return tuple(names)


def _highest(data: bytes) -> int:
    """Return the highest version of a supported_versions extension that is known; 0 if none."""
    end = min(len(data), 1 + data[0]) if data else 0
    offered = {int.from_bytes(data[at : at + 2]) for at in range(1, end - 1, 2)}
    known = offered & _VERSION_NAMES.keys()
    if 0x304 in known:
        return 0x304
    # The drafts of TLS 1.3. All else is GREASE (RFC 8701), or not known to servers either.
    return max((each for each in offered if each >> 8 == 0x7F), default=max(known, default=0))


def _version(number: int) -> str:
    """Return the name of a version, or its number in hexadecimal."""
    if number >> 8 == 0x7F:
        return f"TLS 1.3 draft {number & 0xFF}"
    return _VERSION_NAMES.get(number) or f"0x{number:04x}"


def _text(data: bytes, longest: int) -> str:
    """Return bytes as text of printable ASCII without spaces, ``longest`` characters at most."""
    kept = data[: longest + 1]
    text = kept.decode("latin-1")
    if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
        text = "".join(chr(c) if 0x20 < c < 0x7F and c != 0x5C else f"\\x{c:02x}" for c in kept)
    return text if len(text) <= longest else text[: longest - 3] + "..."
