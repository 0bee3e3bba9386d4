"""DNS messages (RFC 1035; RFC 6762 for mDNS): the questions and the answers, as text.

Any bytes come from anywhere: names point only backwards, and a message costs a bounded number
of steps, whatever it says of itself.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

MAX_QUESTIONS, MAX_ANSWERS = 16, 64
MAX_TEXT = 120  # characters of an answer's text

_HEADER = struct.Struct("!6H")
_QUESTION = struct.Struct("!HH")  # type, class
_RECORD = struct.Struct("!HHIH")  # type, class, TTL, length of the data
_MAX_NAME = 255  # bytes
_MAX_STEPS = 2048  # labels and pointers of one message
_OPT = 41
#: Internet, Chaos, Hesiod, none, any. The highest bit is mDNS' own.
_CLASSES = frozenset({1, 3, 4, 254, 255})
#: Query, inverse query, status, notify, update, stateful operations.
_OPCODES = frozenset({0, 1, 2, 4, 5, 6})
_STATEFUL = 6

TYPES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX",
    16: "TXT", 17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV",
    35: "NAPTR", 36: "KX", 37: "CERT", 39: "DNAME", 41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP",
    45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3",
    51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY",
    61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS", 99: "SPF", 108: "EUI48",
    109: "EUI64", 249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI",
    257: "CAA",
}  # fmt: skip
RCODES = (
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
    "NXRRSET", "NOTAUTH", "NOTZONE", "DSOTYPENI", "RCODE12", "RCODE13", "RCODE14", "RCODE15",
)  # fmt: skip
_A, _NS, _CNAME, _SOA, _PTR, _MX, _TXT, _AAAA, _SRV, _DNAME, _SPF = (
    1, 2, 5, 6, 12, 15, 16, 28, 33, 39, 99,
)  # fmt: skip
_SVCB, _HTTPS, _CAA = 64, 65, 257

_PLAIN = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
#: Bytes of a label, and of other text, as they are shown.
_LABEL = [chr(n) if 0x21 <= n < 0x7F else f"\\{n:03d}" for n in range(256)]
_LABEL[ord(".")], _LABEL[ord("\\")] = "\\.", "\\\\"
_SHOWN = [chr(n) if 0x20 <= n < 0x7F else f"\\{n:03d}" for n in range(256)]
_SHOWN[ord('"')], _SHOWN[ord("\\")] = '\\"', "\\\\"


@dataclass(frozen=True, slots=True)
class Dns:
    r"""A message: ``questions`` are (name, type), ``answers`` (name, type, text).

    Names are in lower case, without the final dot (the root is "."), with bytes that cannot
    be shown as ``\DDD``. A type without a name is ``TYPE123``. The text is an address, a name,
    or what else the record holds, cut off at 120 characters. ``rcode`` is without EDNS' part.
    ``truncated`` is the message's own flag; ``cut`` says that there is more than was read: the
    copy was cut, the message is broken, or it is longer than anyone wants to read.
    """

    ident: int
    response: bool
    opcode: int
    rcode: int
    truncated: bool
    questions: tuple[tuple[str, str], ...]
    answers: tuple[tuple[str, str, str], ...]
    cut: bool

    @property
    def rcode_name(self) -> str:
        """The name of ``rcode``: NOERROR, NXDOMAIN, ..."""
        return RCODES[self.rcode]


class _BadMessage(ValueError):
    """The bytes end, or are not what DNS allows."""


def read(data: bytes) -> Dns | None:
    """Read a message from its identity on; None for what is no DNS message."""
    if len(data) < 12:
        return None
    ident, flags, asked, answered, named, added = _HEADER.unpack_from(data)
    opcode = flags >> 11 & 0xF
    response = flags & 0x8000 != 0
    if opcode not in _OPCODES:
        return None
    message = _Message(data)
    questions: list[tuple[str, str]] = []
    answers: list[tuple[str, str, str]] = []
    cut = asked > MAX_QUESTIONS or answered > MAX_ANSWERS
    try:
        # What was read before a part that cannot be stays in the lists.
        questions.extend(message.question() for _ in range(min(asked, MAX_QUESTIONS)))
        if asked <= MAX_QUESTIONS:
            answers.extend(message.answer() for _ in range(min(answered, MAX_ANSWERS)))
        if not asked and not answered and (named or added):
            message.answer()  # nothing else shows whether this is DNS
    except _BadMessage:
        # One question or record has to be right: the rest may be cut off.
        if not questions and not answers:
            return None
        cut = True
    if not (asked or answered or named or added or response or opcode == _STATEFUL):
        return None
    return Dns(
        ident, response, opcode, flags & 0xF, flags & 0x0200 != 0,
        tuple(questions), tuple(answers), cut,
    )  # fmt: skip


class _Message:
    """A message that is read from its twelfth byte on; ``at`` is how far."""

    __slots__ = ("_data", "_steps", "at")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._steps = _MAX_STEPS
        self.at = 12

    def question(self) -> tuple[str, str]:
        name, at = self._name(self.at)
        if at + 4 > len(self._data):
            raise _BadMessage
        kind, of_class = _QUESTION.unpack_from(self._data, at)
        if of_class & 0x7FFF not in _CLASSES:
            raise _BadMessage
        self.at = at + 4
        return name, TYPES.get(kind) or f"TYPE{kind}"

    def answer(self) -> tuple[str, str, str]:
        name, at = self._name(self.at)
        begin = at + 10
        if begin > len(self._data):
            raise _BadMessage
        kind, of_class, _ttl, length = _RECORD.unpack_from(self._data, at)
        end = begin + length
        # EDNS has the size of the largest answer as its class.
        if end > len(self._data) or (kind != _OPT and of_class & 0x7FFF not in _CLASSES):
            raise _BadMessage
        text = self._text(kind, begin, end)
        self.at = end
        return name, TYPES.get(kind) or f"TYPE{kind}", text

    def _name(self, at: int, end: int | None = None) -> tuple[str, int]:
        """Return the name at ``at``, and where what follows it begins."""
        data = self._data
        size = len(data) if end is None else end
        labels: list[str] = []
        length = 1
        start, behind = at, -1  # where this part of the name begins; where the name ends
        while True:
            self._steps -= 1
            if at >= size or self._steps < 0:
                raise _BadMessage
            count = data[at]
            if not count:
                return ".".join(labels) or ".", at + 1 if behind < 0 else behind
            if count >= 0xC0:
                if at + 2 > size:
                    raise _BadMessage
                target = (count & 0x3F) << 8 | data[at + 1]
                if behind < 0:
                    behind = at + 2
                # Backwards only, so that it ends.
                if target >= start or target < 12:
                    raise _BadMessage
                start = at = target
                size = len(data)
                continue
            length += count + 1
            label = data[at + 1 : at + 1 + count]
            at += 1 + count
            if count > 63 or length > _MAX_NAME or at > size:
                raise _BadMessage
            label = label.lower()
            if label.translate(None, _PLAIN):
                labels.append("".join([_LABEL[byte] for byte in label]))
            else:
                labels.append(label.decode("ascii"))

    def _text(self, kind: int, at: int, end: int) -> str:
        """Return a record's data as text: as master files have it, if its type is known."""
        data = self._data[at:end]
        text = ""
        if kind == _A and len(data) == 4:
            text = socket.inet_ntop(socket.AF_INET, data)
        elif kind == _AAAA and len(data) == 16:
            text = socket.inet_ntop(socket.AF_INET6, data)
        elif kind in {_CNAME, _NS, _PTR, _DNAME}:
            text = self._name(at, end)[0]
        elif kind == _SOA:
            server, at = self._name(at, end)
            text = f"{server} {self._name(at, end)[0]}"
        elif kind == _MX and len(data) > 2:
            text = f"{int.from_bytes(data[:2], 'big')} {self._name(at + 2, end)[0]}"
        elif kind == _SRV and len(data) > 6:
            numbers = struct.unpack_from("!3H", data)
            text = " ".join([*map(str, numbers), self._name(at + 6, end)[0]])
        elif kind in {_TXT, _SPF} and data:
            text = _strings(data)
        elif kind in {_SVCB, _HTTPS} and len(data) > 2:
            text = f"{int.from_bytes(data[:2], 'big')} {self._name(at + 2, end)[0]}"
        elif kind == _CAA and len(data) > 2 and len(data) >= 2 + data[1]:
            tag, value = data[2 : 2 + data[1]], data[2 + data[1] :]
            text = f'{data[0]} {_shown(tag)} "{_shown(value)}"'
        else:  # RFC 3597
            text = f"\\# {len(data)} {data[:MAX_TEXT].hex()}".rstrip()
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def _strings(data: bytes) -> str:
    """Return character strings, each behind the byte of its length, in quotes."""
    found: list[str] = []
    at = 0
    while at < len(data) and len(found) < MAX_TEXT:
        behind = at + 1 + data[at]
        found.append(f'"{_shown(data[at + 1 : behind])}"')
        at = behind
    return " ".join(found)


def _shown(data: bytes) -> str:
    return "".join([_SHOWN[byte] for byte in data[:MAX_TEXT]])
