"""The little of DNS that a lab needs: a zone that answers, and what a client asks and reads.

Pure: bytes in, bytes out. RFC 1035 for the messages, RFC 6891 for EDNS, RFC 2308 for what
says that there is nothing. A zone knows the lab's names and no others, so it answers with
authority for all the world: what it does not know does not exist. Nothing may be cached (TTL 0),
as a lab's addresses may be other ones a moment later.

Names compare without regard to case (ASCII), and come back as they were asked. Any bytes at all
get an answer or none; only :func:`query` and :func:`parse_answer` raise, and only BadInput.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    Labels = tuple[bytes, ...]

UDP_LIMIT = 512  # bytes, for a client that does not say how much it takes
EDNS_LIMIT = 1232  # bytes: what we say and send at most, it fits any link of IPv6
TCP_LIMIT = 65535  # bytes, RFC 7766

_HEADER = struct.Struct("!6H")  # id, flags, and how many of each section
_QUESTION = struct.Struct("!HH")  # type, class
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_RESPONSE, _AUTHORITATIVE, _TRUNCATED, _RECURSE = 0x8000, 0x0400, 0x0200, 0x0100
_DNSSEC_OK = 0x8000  # in the flags of EDNS
_IN, _ANY_CLASS = 1, 255
_OPT = 41
_TRANSFERS = {251, 252}  # IXFR, AXFR: of the whole zone
_MAX_NAME = 255  # bytes
_MAX_LABEL = 63
_POINTER = 0xC0  # the two highest bits of a label's length: the rest is elsewhere
_THE_QUESTION = b"\xc0\x0c"  # a pointer to the name in the question
# Owner, server and mailbox of the zone are the root; serial 1, and nothing is to be kept.
_SOA = b"\0\0" + struct.pack("!5I", 1, 0, 0, 0, 0)


class Kind(IntEnum):
    """The types of records that go by a name here."""

    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    SRV = 33
    ANY = 255


class Code(IntEnum):
    """What a server says of a question."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


_KINDS = {kind.value: kind.name for kind in Kind}
_CODES = {code.value: code.name for code in Code}


class Record(NamedTuple):
    """A record of an answer; ``data`` is an address, a name, or hexadecimal digits.

    ``ttl`` is in seconds, ``kind`` a name of :class:`Kind` or ``TYPE<number>``.
    """

    name: str
    kind: str
    ttl: int
    data: str


class Reply(NamedTuple):
    """An answer: its code by name (``CODE<number>`` if unknown), its flags and its records."""

    identity: int
    code: str
    authoritative: bool
    truncated: bool
    name: str
    records: tuple[Record, ...]


class _Malformed(ValueError):
    """The bytes are no message."""


class _Edns(NamedTuple):
    """What a client says of itself: the largest answer over UDP, its version, and its flags."""

    size: int
    version: int
    flags: int


class Zone:
    """Names and their addresses, ready to answer. BadInput for what DNS cannot carry."""

    def __init__(self, names: Mapping[str, tuple[str, ...]]) -> None:
        self._records: dict[Labels, list[tuple[int, bytes]]] = {(): [(Kind.SOA, _SOA)]}
        for name, addresses in names.items():
            labels = _labels(name)
            self._records.setdefault(_lower(labels), [])
            for text in addresses:
                try:
                    address = ipaddress.ip_address(text)
                except ValueError as error:
                    raise BadInput(f"the name {name}: {error}") from None
                kind = Kind.A if address.version == 4 else Kind.AAAA
                self._add(labels, kind, address.packed)
                self._add(_reversed(address.packed), Kind.PTR, _wire(labels))
        #: Every name, and every name that another one ends in: those exist too (RFC 8020).
        self._known = {name[start:] for name in self._records for start in range(len(name) + 1)}

    def _add(self, labels: Labels, kind: Kind, data: bytes) -> None:
        records = self._records.setdefault(_lower(labels), [])
        if (kind, data) not in records:
            records.append((kind, data))

    def answer(self, query: bytes, *, limit: int = UDP_LIMIT) -> bytes | None:
        """Answer a query, or return None for what gets no answer, such as an answer.

        ``limit`` (bytes) is what the transport takes, ``UDP_LIMIT`` or ``TCP_LIMIT``; EDNS may
        raise it to ``EDNS_LIMIT``. What is longer goes out truncated, and says so.
        """
        if len(query) < _HEADER.size:
            return None
        identity, flags, *counts = _HEADER.unpack_from(query)
        if flags & _RESPONSE:
            return None
        # The answer has the question's opcode and its wish for recursion, which is not granted.
        flags = _RESPONSE | (flags & 0x7800) | (flags & _RECURSE)
        if flags & 0x7800:
            return _HEADER.pack(identity, flags | Code.NOTIMP, 0, 0, 0, 0)
        try:
            question, labels, edns = _read_query(query, counts)
        except _Malformed:
            return _HEADER.pack(identity, flags | Code.FORMERR, 0, 0, 0, 0)
        if edns is not None:
            limit = max(limit, min(edns.size, EDNS_LIMIT))
        code, records = self._look_up(labels, *_QUESTION.unpack(question[-_QUESTION.size :]))
        if edns is not None and edns.version:
            code, records = Code.BADVERS, []
        negative = not records and code in {Code.NOERROR, Code.NXDOMAIN}
        if records or negative:
            flags |= _AUTHORITATIVE
        body = b"".join(
            _THE_QUESTION + _RECORD.pack(kind, _IN, 0, len(data)) + data for kind, data in records
        )
        if negative:
            body = b"\0" + _RECORD.pack(Kind.SOA, _IN, 0, len(_SOA)) + _SOA
        tail = b"" if edns is None else _opt(EDNS_LIMIT, code >> 4, edns.flags & _DNSSEC_OK)
        numbers = [1, len(records), int(negative), int(bool(tail))]
        if _HEADER.size + len(question) + len(body) + len(tail) > limit:
            flags |= _TRUNCATED
            body, numbers[1], numbers[2] = b"", 0, 0
        return _HEADER.pack(identity, flags | (code & 0xF), *numbers) + question + body + tail

    def _look_up(
        self, labels: Labels, kind: int, of_class: int
    ) -> tuple[Code, list[tuple[int, bytes]]]:
        if of_class not in {_IN, _ANY_CLASS} or kind in _TRANSFERS:
            return Code.REFUSED, []
        if labels not in self._known:
            return Code.NXDOMAIN, []
        found = self._records.get(labels, [])
        return Code.NOERROR, [record for record in found if kind in {record[0], Kind.ANY}]


def answer(
    query: bytes, names: Mapping[str, tuple[str, ...]], *, limit: int = UDP_LIMIT
) -> bytes | None:
    """Answer one query from ``names``; see :meth:`Zone.answer`."""
    return Zone(names).answer(query, limit=limit)


def query(name: str, kind: str = "A", *, edns: int = 0, identity: int | None = None) -> bytes:
    """Return a query; for a PTR record ``name`` may be an address.

    ``edns`` is the largest answer over UDP in bytes, 0 to do without EDNS. BadInput for names
    and kinds that cannot be asked.
    """
    if kind.upper() not in Kind.__members__:
        known = ", ".join(Kind.__members__)
        raise BadInput(f'"{kind}" is no type of DNS record', hint=f"one of {known}")
    number = Kind[kind.upper()]
    labels = _labels(name)
    if number is Kind.PTR:
        with contextlib.suppress(ValueError):
            labels = _reversed(ipaddress.ip_address(name).packed)
    if identity is None:
        identity = int.from_bytes(os.urandom(2))
    header = _HEADER.pack(identity, _RECURSE, 1, 0, 0, int(edns > 0))
    question = _wire(labels) + _QUESTION.pack(number, _IN)
    return header + question + (_opt(edns, 0, 0) if edns else b"")


def parse_answer(data: bytes) -> Reply:
    """Read an answer; BadInput if the bytes are none."""
    try:
        return _parse_answer(data)
    except (_Malformed, struct.error):
        raise BadInput(f"{len(data)} bytes are no answer in DNS") from None


def _parse_answer(data: bytes) -> Reply:
    identity, flags, questions, *counts = _HEADER.unpack_from(data)
    if not flags & _RESPONSE:
        raise _Malformed
    offset = _HEADER.size
    name: Labels = ()
    for _ in range(questions):
        name, offset = _read_name(data, offset)
        _QUESTION.unpack_from(data, offset)
        offset += _QUESTION.size
    code = flags & 0xF
    records = []
    for index in range(sum(counts)):
        owner, kind, _, ttl, start, offset = _read_record(data, offset)
        if kind == _OPT:
            code |= ttl >> 24 << 4
        elif index < counts[0]:
            records.append(
                Record(
                    _text(owner),
                    _KINDS.get(kind, f"TYPE{kind}"),
                    ttl,
                    _value(data, kind, start, offset),
                )
            )
    return Reply(
        identity=identity,
        code=_CODES.get(code, f"CODE{code}"),
        authoritative=bool(flags & _AUTHORITATIVE),
        truncated=bool(flags & _TRUNCATED),
        name=_text(name),
        records=tuple(records),
    )


def _value(data: bytes, kind: int, start: int, end: int) -> str:
    """Return a record's data as text."""
    raw = data[start:end]
    if (kind, len(raw)) in {(Kind.A, 4), (Kind.AAAA, 16)}:
        return str(ipaddress.ip_address(raw))
    if kind in {Kind.NS, Kind.CNAME, Kind.PTR}:
        return _text(_read_name(data, start)[0])
    return raw.hex()


def _read_query(data: bytes, counts: list[int]) -> tuple[bytes, Labels, _Edns | None]:
    """Read the one question, as it is and its name in lower case, and what EDNS says."""
    if counts[0] != 1:
        raise _Malformed
    labels, offset = _read_name(data, _HEADER.size, compressed=False)
    offset += _QUESTION.size
    question = data[_HEADER.size : offset]
    if offset > len(data):
        raise _Malformed
    edns = None
    for _ in range(sum(counts[1:])):
        owner, kind, size, ttl, _, offset = _read_record(data, offset)
        if kind == _OPT:
            if edns is not None or owner:
                raise _Malformed  # RFC 6891, 6.1.1
            edns = _Edns(size, ttl >> 16 & 0xFF, ttl & 0xFFFF)
    return question, _lower(labels), edns


def _read_record(data: bytes, offset: int) -> tuple[Labels, int, int, int, int, int]:
    """Read a record: owner, type, class, TTL, and where its data begin and end."""
    owner, offset = _read_name(data, offset)
    start = offset + _RECORD.size
    if start > len(data):
        raise _Malformed
    kind, of_class, ttl, length = _RECORD.unpack_from(data, offset)
    if start + length > len(data):
        raise _Malformed
    return owner, kind, of_class, ttl, start, start + length


def _read_name(data: bytes, offset: int, *, compressed: bool = True) -> tuple[Labels, int]:
    """Read a name; return it and where it ends. A pointer leads only back, so it ends."""
    labels: list[bytes] = []
    end = 0  # where the name ends, once a pointer was followed
    size = 1
    start = offset
    while True:
        if offset >= len(data):
            raise _Malformed
        length = data[offset]
        if length == 0:
            return tuple(labels), end or offset + 1
        if length > _MAX_LABEL:
            target = int.from_bytes(data[offset : offset + 2]) & 0x3FFF
            if length < _POINTER or not compressed or offset + 2 > len(data) or target >= start:
                raise _Malformed
            end = end or offset + 2
            offset = start = target
            continue
        label = data[offset + 1 : offset + 1 + length]
        size += 1 + length
        if size > _MAX_NAME or len(label) < length:
            raise _Malformed
        labels.append(label)
        offset += 1 + length


def _labels(name: str) -> Labels:
    """Split a name as people write it; a dot at its end says nothing here."""
    stem = name.removesuffix(".")
    labels = tuple(label.encode(errors="replace") for label in stem.split(".")) if stem else ()
    lengths = [len(label) for label in labels]
    if not all(0 < length <= _MAX_LABEL for length in lengths) or (
        sum(lengths) + len(lengths) + 1 > _MAX_NAME
    ):
        raise BadInput(
            f'"{name}" is no DNS name',
            hint=f"1 to {_MAX_LABEL} bytes between two dots, {_MAX_NAME - 2} in all",
        )
    return labels


def _lower(labels: Labels) -> Labels:
    return tuple(label.lower() for label in labels)


def _wire(labels: Labels) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _text(labels: Labels) -> str:
    """Write a name as master files do: a dot within a label, and odd bytes, are escaped."""
    return ".".join(
        "".join(
            f"\\{byte:03d}" if not 0x21 <= byte <= 0x7E else "\\" * (byte in b".\\") + chr(byte)
            for byte in label
        )
        for label in labels
    )


def _reversed(packed: bytes) -> Labels:
    """Return the name that an address's PTR records belong to (RFC 1035, RFC 3596)."""
    if len(packed) == 4:
        return (*(b"%d" % byte for byte in reversed(packed)), b"in-addr", b"arpa")
    return (*(b"%c" % digit for digit in reversed(packed.hex().encode())), b"ip6", b"arpa")


def _opt(size: int, code: int, flags: int) -> bytes:
    """Return the record of EDNS: our size, the upper bits of the code, and the flags."""
    return b"\0" + _RECORD.pack(_OPT, min(size, 0xFFFF), code << 24 | flags, 0)
