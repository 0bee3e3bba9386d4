"""QUIC: long headers, and what a client's Initial carries (RFC 8999, 9000, 9001, 9369).

An Initial is encrypted, by keys that stem from the connection ID in it: everyone on the way can
open it, which takes AES, and so the library ``cryptography``. Without it the version and the
connection IDs are all that can be said.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.inspect.payloads import tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.payloads.tls import ClientHello

V1: Final = 1
V2: Final = 0x6B3343CF

_LONGEST_ID = 20  # bytes
_LEAST_FIRST_ID = 8  # bytes: a client chooses none shorter for its first Initial
_PACKETS = 16  # of one datagram that are looked at
_SAMPLE, _TAG = 16, 16
_EMPTY = re.compile(rb"[\0\1]*").match  # PADDING and PING: frames of one byte
_ACK, _ACK_ECN, _CRYPTO = 2, 3, 6

_INITIAL, _RETRY = "Initial", "Retry"
_NEGOTIATION = "Version negotiation"
_KINDS = {
    V1: (_INITIAL, "0-RTT", "Handshake", _RETRY),
    V2: (_RETRY, _INITIAL, "0-RTT", "Handshake"),
}
_SALTS = {
    V1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    V2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}
_LABELS = {V1: "quic", V2: "quicv2"}


@dataclass(frozen=True, slots=True)
class Quic:
    """A datagram that begins with a long header of QUIC.

    ``version`` is 0 in a version negotiation; ``version_name`` is "v1", "v2", "draft 29", or the
    number in hexadecimal. ``kind`` is Initial, 0-RTT, Handshake, Retry or Version negotiation,
    and "" for other versions than 1 and 2, of which no more is known. ``dcid`` and ``scid`` are
    the connection IDs of destination and source. ``crypto`` are the CRYPTO frames, as offset and
    data, of all client Initials in the datagram that could be opened, ``original`` the connection
    ID that opened them (empty if none did), and ``hello`` the ClientHello, if it is all there.
    """

    version: int
    version_name: str
    kind: str
    dcid: bytes
    scid: bytes
    crypto: tuple[tuple[int, bytes], ...] = ()
    hello: ClientHello | None = None
    original: bytes = b""


def read(data: bytes, original: bytes = b"") -> Quic | None:
    """Read a UDP datagram; None if it does not begin with a long header that is known.

    ``original`` is the destination connection ID of the client's first Initial, or of the Retry
    that answered it: later Initials have another one, but the same keys.
    """
    # Of many datagrams that are no QUIC, the first byte or the version says so.
    if len(data) < 11 or data[0] < 0x80:
        return None
    version = int.from_bytes(data[1:5])
    kinds = _KINDS.get(version)
    if kinds is None:
        return _other(data, version)
    if data[0] < 0xC0:  # the fixed bit
        return None
    ids = _ids(data)
    if ids is None:
        return None
    dcid, scid, at = ids
    kind = kinds[data[0] >> 4 & 3]
    if kind == _RETRY:
        if len(data) - at <= _TAG:  # a token, and the tag that seals it
            return None
    elif len(data) - at < 4 + _SAMPLE:
        return None
    name = "v1" if version == V1 else "v2"
    key, frames = _open_all(data, dcid, original)
    if not frames:
        return Quic(version, name, kind, dcid, scid, original=key)
    reader = tls.Reader(bare=True)
    for offset, piece in frames:
        hello = reader.add(offset, piece)
        if hello is not tls.MORE:
            return Quic(version, name, kind, dcid, scid, tuple(frames), hello, key)
    return Quic(version, name, kind, dcid, scid, tuple(frames), None, key)


def able() -> bool:
    """Return whether Initials can be opened: the library ``cryptography`` is there."""
    return _ciphers() is not None


def _other(data: bytes, version: int) -> Quic | None:
    """Read the long header of another version, or a version negotiation."""
    name = ""
    if version >> 8 == 0xFF0000:
        name = f"draft {version & 0xFF}"
    # RFC 9000, 15: versions kept for tests of negotiation. Then: Google's, Facebook's mvfst,
    # picoquic, and the draft of version 2.
    elif (
        version & 0x0F0F0F0F == 0x0A0A0A0A
        or version >> 8 in {0x513034, 0x513035, 0x543035, 0xFACEB0, 0x504351}
        or version == 0x709A50C4
    ):
        name = f"0x{version:08x}"
    elif version:
        return None
    ids = _ids(data)
    if ids is None:
        return None
    dcid, scid, at = ids
    if version:
        return Quic(version, name, "", dcid, scid)
    # The versions offered, and at least one: RTP and the like fall here.
    size = len(data) - at
    if size < 4 or size & 3:
        return None
    return Quic(0, "negotiation", _NEGOTIATION, dcid, scid)


def _ids(data: bytes, start: int = 0) -> tuple[bytes, bytes, int] | None:
    """Return the connection IDs of a long header, and where it goes on."""
    size = len(data)
    at = start + 6
    if at >= size:
        return None
    length = data[at - 1]
    source = at + length
    if length > _LONGEST_ID or source >= size or data[source] > _LONGEST_ID:
        return None
    end = source + 1 + data[source]
    return (data[at:source], data[source + 1 : end], end) if end <= size else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return an integer and what is behind it (RFC 9000, 16); -1 if it is not all there."""
    if at >= len(data):
        return -1, at
    end = at + (1 << (data[at] >> 6))
    if end > len(data):
        return -1, at
    return int.from_bytes(data[at:end]) & (1 << (8 * (end - at) - 2)) - 1, end


# --- Initials ---------------------------------------------------------------------------------


def _open_all(data: bytes, dcid: bytes, original: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """Open the client's Initials of a datagram; return the ID of their keys, and their frames."""
    ids = [original] if original else []
    if len(dcid) >= _LEAST_FIRST_ID and dcid != original:
        ids.append(dcid)
    frames: list[tuple[int, bytes]] = []
    key = b""
    at = 0
    for _ in range(_PACKETS):
        start = at
        packet = _next(data, start, dcid)
        if packet is None:
            break
        kind, number, at = packet
        if kind != _INITIAL:
            continue
        version = int.from_bytes(data[start + 1 : start + 5])
        for candidate in (key,) if key else ids:
            plain = _open(data[start:at], number - start, _keys(version, candidate))
            if plain is not None:
                key = candidate
                _read_frames(plain, frames)
                break
    return key, frames


def _next(data: bytes, start: int, dcid: bytes) -> tuple[str, int, int] | None:
    """Return the kind of the packet at ``start``, where its number begins, and where it ends.

    None where there is no more to look at: packets with a short header come last.
    """
    if len(data) - start < 7 + _SAMPLE or data[start] < 0xC0:
        return None
    kinds = _KINDS.get(int.from_bytes(data[start + 1 : start + 5]))
    ids = _ids(data, start)
    # All packets of a datagram are of one connection (RFC 9000, 12.2).
    if kinds is None or ids is None or ids[0] != dcid:
        return None
    at = ids[2]
    kind = kinds[data[start] >> 4 & 3]
    if kind == _RETRY:
        return None
    if kind == _INITIAL:
        token, at = _varint(data, at)
        if token < 0:
            return None
        at += token
    length, at = _varint(data, at)
    if length < 4 + _SAMPLE or at + length > len(data):
        return None
    return kind, at, at + length


class _Keys(NamedTuple):
    """What opens one client's Initials."""

    mask: Callable[[bytes], bytes]
    aead: Any
    invalid: type[Exception]
    iv: int


def _open(packet: bytes, number: int, keys: _Keys | None) -> bytes | None:
    """Open one Initial, whose packet number is at ``number`` (RFC 9001, 5.3 and 5.4).

    None where it was not sealed with these keys.
    """
    if keys is None:
        return None
    mask = keys.mask(packet[number + 4 : number + 4 + _SAMPLE])
    first = packet[0] ^ mask[0] & 0x0F
    size = (first & 3) + 1
    # A client's Initials are few: what it sends of their number is all of it.
    counter = int.from_bytes(packet[number : number + size]) ^ int.from_bytes(mask[1 : 1 + size])
    header = bytes((first,)) + packet[1:number] + counter.to_bytes(size)
    nonce = (keys.iv ^ counter).to_bytes(12)
    try:
        plain: bytes = keys.aead.decrypt(nonce, packet[number + size :], header)
    except keys.invalid:
        return None
    return plain


def _read_frames(plain: bytes, frames: list[tuple[int, bytes]]) -> None:
    """Add the CRYPTO frames of an Initial (RFC 9000, 19) to ``frames``."""
    at = 0
    while True:
        empty = _EMPTY(plain, at)
        at = empty.end() if empty else at
        if at >= len(plain):
            return
        kind = plain[at]
        at += 1
        if kind == _CRYPTO:
            offset, at = _varint(plain, at)
            size, at = _varint(plain, at)
            if offset < 0 or size < 0 or at + size > len(plain):
                return
            if size:
                frames.append((offset, plain[at : at + size]))
            at += size
        elif kind in {_ACK, _ACK_ECN}:
            at = _behind_ack(plain, at, kind)
            if not at:
                return
        else:  # CONNECTION_CLOSE, or what an Initial must not carry
            return


def _behind_ack(plain: bytes, at: int, kind: int) -> int:
    """Return where an ACK frame ends; 0 if it is not all there."""
    _, at = _varint(plain, at)
    _, at = _varint(plain, at)
    ranges, at = _varint(plain, at)
    if not 0 <= ranges <= len(plain):
        return 0
    value = 0
    for _ in range(1 + 2 * ranges + (3 if kind == _ACK_ECN else 0)):
        value, at = _varint(plain, at)
    return at if value >= 0 else 0


@cache
def _ciphers() -> tuple[Callable[[bytes], Callable[[bytes], bytes]], Any, Any] | None:
    """Import AES: a maker of header protection, AES-GCM, and the error of a wrong key."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        return None

    def protection(key: bytes) -> Callable[[bytes], bytes]:
        # The header's mask is one block of AES by definition (RFC 9001, 5.4.3): no secret in it.
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update  # noqa: S305

    return protection, AESGCM, InvalidTag


@lru_cache(maxsize=256)
def _keys(version: int, dcid: bytes) -> _Keys | None:
    """Derive the keys of a client's Initials from its connection ID (RFC 9001, 5.2)."""
    ciphers = _ciphers()
    if ciphers is None:
        return None
    protection, aes_gcm, invalid = ciphers
    initial = hmac.digest(_SALTS[version], dcid, "sha256")
    client = _expand(initial, "client in", 32)
    label = _LABELS[version]
    return _Keys(
        protection(_expand(client, f"{label} hp", 16)),
        aes_gcm(_expand(client, f"{label} key", 16)),
        invalid,
        int.from_bytes(_expand(client, f"{label} iv", 12)),
    )


def _expand(secret: bytes, label: str, size: int) -> bytes:
    """HKDF-Expand-Label of SHA-256 (RFC 8446, 7.1), for at most 32 bytes."""
    name = b"tls13 " + label.encode()
    info = b"".join((size.to_bytes(2), bytes((len(name),)), name, b"\0\1"))
    return hmac.digest(secret, info, "sha256")[:size]
