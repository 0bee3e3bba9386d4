"""Bytes of a rule to text: what iptables-save would print, byte for byte.

The header is printed here (:func:`nfctl.kernel.layout.header_text`); matches and targets print
themselves through libxtables to C's standard output. That output is caught once for many of
them, in memory, and what each distinct extension blob prints is remembered, so that
fifty thousand rules cost a few thousand calls.
"""

from __future__ import annotations

import ctypes as ct
import re
import struct
import sys
from typing import NamedTuple

from nfctl.errors import Unsupported
from nfctl.kernel import extensions
from nfctl.kernel.complaints import deadly
from nfctl.kernel.layout import (
    EXTENSION_HEADER,
    INV_DSTIP,
    INV_PROTO,
    INV_SRCIP,
    OFFSETS,
    address_text,
    header_text,
    layout,
    standard_target,
)
from nfctl.kernel.libraries import GUARD, libraries

_HEADER = EXTENSION_HEADER.size
_LITTLE = sys.byteorder == "little"
_PLAIN = re.compile(rb"[-_0-9A-Za-z]+")
_RANGES = struct.Struct("=4H")
_ANY_PORT = (0, 65535)
_DANGEROUS = re.compile(rb"([\"\\'])")


class Parts(NamedTuple):
    """A rule as the kernel holds it, cut at its seams."""

    header: bytes  # ipt_ip or ip6t_ip6
    matches: bytes
    target: bytes
    jump: bytes | None  # the verdict's or chain's name of a standard target


class Decoder:
    """Prints rules of one family; remembers what it has printed.

    What is remembered can depend on the network namespace (numbers of ipsets become names), so
    a decoder is made anew for each.
    """

    def __init__(self, family: int) -> None:
        self.layout = layout(family)
        self._rests: dict[bytes, tuple[str | None, dict[bytes, _Cell]]] = {}
        self._addresses: dict[bytes, str] = {}
        self._nothing = bytes(2 * self.layout.address)
        self._cells: dict[int, dict[bytes, _Cell]] = {}
        self._printing: list[tuple[extensions.Extension, bytes, bytes, _Cell]] = []
        self._canonical: dict[bytes, bytes] = {}
        self._heads: dict[bytes, tuple[bytes, int]] = {}

    # --- canonical bytes ----------------------------------------------------------------------

    def canonical(self, parts: Parts) -> bytes:
        """Return the rule's canonical bytes (see :mod:`nfctl.kernel.layout`)."""
        at = self.layout
        matches = self._canonical_matches(parts.matches)
        if parts.jump is not None:
            target = standard_target(parts.jump)
        else:
            target = self._canonical_one("target", parts.target)
        offset = at.size + len(matches)
        return b"".join(
            (
                parts.header.ljust(at.offsets_at, b"\0"),
                OFFSETS.pack(offset, offset + len(target)),
                bytes(at.size - at.offsets_at - OFFSETS.size),
                matches,
                target,
            )
        )

    def _canonical_matches(self, matches: bytes) -> bytes:
        if not matches:
            return matches
        known = self._canonical.get(matches)
        if known is None:
            known = b"".join(self._canonical_one("match", data) for data in _cut(matches))
            self._canonical[matches] = known
        return known

    def _canonical_one(self, kind: str, data: bytes) -> bytes:
        known = self._heads.get(data[:_HEADER])
        if known is None:
            name, revision = _name(data)
            extension = extensions.find_revision(kind, name, revision, self.layout)
            # The kernel copies a name to us only up to its NUL: what stands behind it is
            # whatever was in the buffer.
            head = EXTENSION_HEADER.pack(len(data), name.encode(), revision)
            end = _HEADER + extension.user_size if extension else len(data)
            known = self._heads[data[:_HEADER]] = (head, end)
        head, end = known
        if end >= len(data):
            return head + data[_HEADER:]
        return (head + data[_HEADER:end]).ljust(len(data), b"\0")

    # --- text ---------------------------------------------------------------------------------

    def specs(self, rules: list[Parts]) -> list[str]:
        """Return the rules' specifications: what stands after ``-A CHAIN``, no blank before it.

        Raises Unsupported (exit 3) for a match or target of which no extension is installed,
        as iptables-save does.
        """
        with GUARD:
            lines = self._lines(rules)
            if self._printing:
                self._print()
        # Everything is a string now, or a cell that holds one.
        return [
            "".join([part if isinstance(part, str) else part.text for part in line])[1:]
            for line in lines
        ]

    def _lines(self, rules: list[Parts]) -> list[list[str | _Cell]]:
        goto, flags_at = self.layout.goto, self.layout.flags_at
        jumps: dict[tuple[bytes, int], str] = {}
        lines: list[list[str | _Cell]] = []
        for header, match_bytes, target, jump in rules:
            text, store = self._header(header)
            line: list[str | _Cell] = [text]
            if match_bytes:
                at, end = 0, len(match_bytes)
                while at < end:
                    size = (
                        match_bytes[at] | match_bytes[at + 1] << 8
                        if _LITTLE
                        else _size(match_bytes, at)
                    )
                    data = match_bytes[at : at + size]
                    at += size or end
                    if data[2:10] == b"comment\0":
                        line.append(_comment(data))
                    else:
                        cell = store.get(data)
                        line.append(
                            cell if cell is not None else self._cell("match", data, header, store)
                        )
            if jump is None:
                cell = store.get(target)
                line.append(
                    cell if cell is not None else self._cell("target", target, header, store)
                )
            elif jump:
                way = (jump, header[flags_at] & goto)
                jump_text = jumps.get(way)
                if jump_text is None:
                    letter = "g" if way[1] else "j"
                    jump_text = jumps[way] = f" -{letter} {jump.decode('utf-8', 'surrogateescape')}"
                line.append(jump_text)
            lines.append(line)
        return lines

    def _header(self, header: bytes) -> tuple[str, dict[bytes, _Cell]]:
        """Return a header's text, and the extensions printed for its protocol.

        The addresses differ from rule to rule; what stands behind them seldom does.
        """
        width = self.layout.address
        rest = header[4 * width :]
        known = self._rests.get(rest)
        if known is None:
            at = self.layout
            proto = int.from_bytes(header[at.proto_at : at.proto_at + 2], sys.byteorder)
            inverse = header[at.invflags_at]
            key = proto | bool(inverse & INV_PROTO) << 16
            text = header_text(bytes(4 * width) + rest, at.family)
            plain = not inverse & (INV_SRCIP | INV_DSTIP)
            known = self._rests[rest] = (text if plain else None, self._cells.setdefault(key, {}))
        text_or_none, store = known
        if text_or_none is None:
            return header_text(header, self.layout.family), store
        source = header[:width] + header[2 * width : 3 * width]
        destination = header[width : 2 * width] + header[3 * width : 4 * width]
        nothing = self._nothing
        text = text_or_none
        if destination != nothing:
            text = " -d " + (self._addresses.get(destination) or self._address(destination)) + text
        if source != nothing:
            text = " -s " + (self._addresses.get(source) or self._address(source)) + text
        return text, store

    def _address(self, pair: bytes) -> str:
        width = self.layout.address
        text = address_text(pair[:width], pair[width:])
        self._addresses[pair] = text
        return text

    def _cell(self, kind: str, data: bytes, header: bytes, store: dict[bytes, _Cell]) -> _Cell:
        """Return the cell for one extension's text, to be filled when all are printed."""
        name, revision = _name(data)
        port = _port(name, revision, data) if name in {"tcp", "udp"} else ""
        if port:
            cell = store[data] = _Cell(port)
            return cell
        first = extensions.find(kind, name, self.layout)
        if first is None:
            msg = f"Can't find library for {kind} `{name}'"
            raise Unsupported(msg, hint="install the extension, or the iptables that made the rule")
        exact = extensions.find_revision(kind, name, revision, self.layout)
        letter = "m" if kind == "match" else "j"
        cell = store[data] = _Cell(f" -{letter} {(exact or first).alias(data, name)}")
        if exact is not None and exact.save is not None:
            self._printing.append((exact, header, data, cell))
        elif first.save is not None:
            cell.text += " [unsupported revision]"
        return cell

    def _print(self) -> None:
        printing, self._printing = self._printing, []
        texts = _print([(extension, header, data) for extension, header, data, _ in printing])
        for (_, _, _, cell), text in zip(printing, texts, strict=True):
            cell.text += text


class _Cell:
    """The text of one extension's bytes: its name at first, its options once it is printed."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _size(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], sys.byteorder)


def _cut(matches: bytes) -> list[bytes]:
    """Cut the bytes of an entry's matches into single ``xt_entry_match``."""
    found = []
    at = 0
    while at < len(matches):
        size = int.from_bytes(matches[at : at + 2], sys.byteorder)
        if size < _HEADER:
            break
        found.append(matches[at : at + size])
        at += size
    return found


def _name(data: bytes) -> tuple[str, int]:
    _, name, revision = EXTENSION_HEADER.unpack_from(data)
    return name.partition(b"\0")[0].decode("ascii", "replace"), revision


def _comment(data: bytes) -> str:
    """Print the one match whose bytes nearly always differ: xtables_save_string() of its text."""
    text = data[_HEADER:].partition(b"\0")[0]
    if not _PLAIN.fullmatch(text):
        text = b'"' + (_DANGEROUS.sub(rb"\\\1", text) if _DANGEROUS.search(text) else text) + b'"'
    return " -m comment --comment " + text.decode("utf-8", "surrogateescape")


def _port(name: str, revision: int, data: bytes) -> str:
    """Print a tcp or udp match of one port and nothing else; "" for any other.

    struct xt_tcp and xt_udp begin with the source and the destination range; everything behind
    those is zero here.
    """
    if revision or len(data) != _HEADER + 16 or any(data[_HEADER + 8 :]):
        return ""
    low_source, high_source, low, high = _RANGES.unpack_from(data, _HEADER)
    if (low_source, high_source) == _ANY_PORT and low == high:
        return f" -m {name} --dport {low}"
    if (low, high) == _ANY_PORT and low_source == high_source:
        return f" -m {name} --sport {low_source}"
    return ""


def _print(items: list[tuple[extensions.Extension, bytes, bytes]]) -> list[str]:
    """Let each extension print its bytes; return what each printed.

    They print to C's ``stdout``, which is a variable: it points to a stream in memory meanwhile
    (open_memstream(3)), so that what others write to file descriptor 1 is left alone. A NUL,
    which no extension prints, separates.
    """
    lib = libraries()
    text, length = ct.c_void_p(), ct.c_size_t()
    stream = lib.libc.open_memstream(ct.byref(text), ct.byref(length))
    if not stream:
        raise MemoryError
    before = lib.stdout.value
    lib.stdout.value = stream
    try:
        with deadly():
            for extension, header, data in items:
                lib.use(extension.layout.nfproto)
                assert extension.save is not None  # noqa: S101 - chosen by _cell
                extension.save(_pointer(header), _pointer(data))
                lib.libc.fputc(0, stream)
    finally:
        lib.stdout.value = before
        lib.libc.fclose(stream)
        printed = ct.string_at(text.value, length.value) if text.value else b""
        lib.libc.free(text)
    return [piece.decode("utf-8", "surrogateescape") for piece in printed.split(b"\0")[:-1]]


def _pointer(data: bytes) -> ct.c_void_p:
    return ct.cast(ct.c_char_p(data), ct.c_void_p)
