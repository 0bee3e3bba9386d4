"""Bytes of a rule to text: what iptables-save would print, byte for byte.

The header is printed here (:func:`nfctl.kernel.layout.header_text`); matches and targets print
themselves through libxtables to C's standard output. That output is caught once for many of
them, in an anonymous file, and what each distinct extension blob prints is remembered, so that
fifty thousand rules cost a few thousand calls.
"""

from __future__ import annotations

import ctypes as ct
import os
import re
import sys
from typing import NamedTuple

from nfctl.errors import Unsupported
from nfctl.kernel import extensions
from nfctl.kernel.complaints import deadly
from nfctl.kernel.layout import (
    EXTENSION_HEADER,
    INV_PROTO,
    OFFSETS,
    STANDARD_TARGET,
    header_text,
    layout,
    standard_target,
)
from nfctl.kernel.libraries import libraries

_HEADER = EXTENSION_HEADER.size
_COMMENT_HEADER = EXTENSION_HEADER.pack(288, b"comment", 0)
_PLAIN = re.compile(rb"[-_0-9A-Za-z]+")
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
        self._headers: dict[bytes, tuple[str, int]] = {}
        self._matches: dict[tuple[int, bytes], str] = {}
        self._targets: dict[tuple[int, bytes], str] = {}
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
        self._learn(rules)
        headers, matches, targets = self._headers, self._matches, self._targets
        goto = self.layout.goto
        flags_at = self.layout.flags_at
        texts: list[str] = []
        for header, match_bytes, target, jump in rules:
            text, key = headers[header]
            if match_bytes:
                text += matches[key, match_bytes]
            if jump is None:
                text += targets[key, target]
            elif jump:
                letter = "g" if header[flags_at] & goto else "j"
                text += f" -{letter} {jump.decode('utf-8', 'surrogateescape')}"
            texts.append(text[1:])
        return texts

    def _learn(self, rules: list[Parts]) -> None:
        """Print every header, match group and target that was not printed before."""
        family, at = self.layout.family, self.layout
        printing: list[tuple[extensions.Extension, bytes, bytes]] = []
        pending: list[tuple[dict[tuple[int, bytes], str], tuple[int, bytes], list[str | int]]] = []
        for header, match_bytes, target, jump in rules:
            known = self._headers.get(header)
            if known is None:
                proto = int.from_bytes(header[at.proto_at : at.proto_at + 2], sys.byteorder)
                inverted = bool(header[at.invflags_at] & INV_PROTO)
                known = (header_text(header, family), proto | inverted << 16)
                self._headers[header] = known
            key = known[1]
            if match_bytes and (key, match_bytes) not in self._matches:
                pieces = [
                    piece
                    for data in _cut(match_bytes)
                    for piece in self._piece("match", data, header, printing)
                ]
                self._matches[key, match_bytes] = ""
                pending.append((self._matches, (key, match_bytes), pieces))
            if jump is None and (key, target) not in self._targets:
                pieces = self._piece("target", target, header, printing)
                self._targets[key, target] = ""
                pending.append((self._targets, (key, target), pieces))
        printed = _print(printing) if printing else []
        for store, store_key, pieces in pending:
            store[store_key] = "".join(
                piece if isinstance(piece, str) else printed[piece] for piece in pieces
            )

    def _piece(
        self,
        kind: str,
        data: bytes,
        header: bytes,
        printing: list[tuple[extensions.Extension, bytes, bytes]],
    ) -> list[str | int]:
        """Return the parts of one extension's text: strings, and indices into ``printing``."""
        if kind == "match" and data.startswith(_COMMENT_HEADER):
            return [" -m comment --comment " + _quoted(data[_HEADER:])]
        name, revision = _name(data)
        first = extensions.find(kind, name, self.layout)
        if first is None:
            msg = f"Can't find library for {kind} `{name}'"
            raise Unsupported(msg, hint="install the extension, or the iptables that made the rule")
        exact = extensions.find_revision(kind, name, revision, self.layout)
        shown = (exact or first).alias(data, name)
        letter = "m" if kind == "match" else "j"
        text = f" -{letter} {shown}"
        if exact is not None and exact.save is not None:
            printing.append((exact, header, data))
            return [text, len(printing) - 1]
        if first.save is not None:
            return [text, " [unsupported revision]"]
        return [text]


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


def _quoted(text: bytes) -> str:
    """xtables_save_string() for the one match whose bytes are nearly always different."""
    text = text.partition(b"\0")[0]
    if not _PLAIN.fullmatch(text):
        text = b'"' + _DANGEROUS.sub(rb"\\\1", text) + b'"'
    return text.decode("utf-8", "surrogateescape")


def _print(items: list[tuple[extensions.Extension, bytes, bytes]]) -> list[str]:
    """Let each extension print its bytes; return what each printed.

    C's standard output is file descriptor 1 whatever Python's is, so that descriptor points to
    an anonymous file meanwhile. A NUL, which no extension prints, separates.
    """
    libc = libraries().libc
    libc.fflush(None)
    try:
        saved = os.dup(1)
    except OSError:  # standard output is closed
        saved = -1
    store = os.memfd_create("nfctl-print", os.MFD_CLOEXEC)
    try:
        os.dup2(store, 1)
        with deadly():
            nfproto = None
            for extension, header, data in items:
                if extension.layout.nfproto != nfproto:
                    nfproto = extension.layout.nfproto
                    libraries().set_nfproto(nfproto)
                assert extension.save is not None  # noqa: S101 - chosen by _piece
                extension.save(_pointer(header), _pointer(data))
                libc.putchar(0)
            libc.fflush(None)
    finally:
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)
        else:
            os.close(1)
        with os.fdopen(store, "rb") as file:
            file.seek(0)
            text = file.read()
    return [piece.decode("utf-8", "surrogateescape") for piece in text.split(b"\0")[:-1]]


def _pointer(data: bytes) -> ct.c_void_p:
    return ct.cast(ct.c_char_p(data), ct.c_void_p)


def standard_verdict(target: bytes) -> int | None:
    """Return the verdict of a kernel-held standard target; None if it is another target."""
    if target[2]:
        return None
    verdict: int = STANDARD_TARGET.unpack_from(target)[3]
    return verdict
