"""A table read with one getsockopt: a consistent picture of all its rules and counters.

``IPT_SO_GET_INFO`` (struct ipt_getinfo) says how large the table is and where its hooks enter,
``IPT_SO_GET_ENTRIES`` (struct ipt_get_entries) copies the entries, which the kernel holds as one
stretch: the built-in chains, each ending in its policy, then the user-defined ones, each begun by
an entry whose target is ERROR and holds the chain's name, and ending in a RETURN. Jumps are
offsets into the stretch. Sources: linux/netfilter_ipv4/ip_tables.h, libiptc/libiptc.c.

For editing there is :mod:`nfctl.kernel.table`; reading this way spares libiptc's copies of every
rule, and the comparison in restore needs not even that.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import errno as errnos
import hashlib
import mmap
import os
import socket
import struct
from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import NfctlError, NotPermitted, Unsupported
from nfctl.kernel.decode import Parts
from nfctl.kernel.layout import (
    COUNTERS,
    EXTENSION_HEADER,
    OFFSETS,
    STANDARD_TARGET,
    layout,
    standard_target,
)
from nfctl.kernel.libraries import libraries
from nfctl.ruleset.names import HOOKS, check_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_BASE_CTL and the one after it; the same for IPv6
_INFO = struct.Struct("=32sI5I5III")  # struct ipt_getinfo
_BASE = 40  # of the entries in struct ipt_get_entries: behind name[32], size and padding
_ERROR_TARGET = 64  # struct xt_error_target, aligned
_ERROR = b"ERROR\0"
_VERDICTS = {-1: b"DROP", -2: b"ACCEPT", -4: b"QUEUE", -5: b"RETURN"}  # -NF_* - 1, XT_RETURN
_VERDICT = struct.Struct("=i")
_ATTEMPTS = 20
_FEW = 20  # chains, for each of which all bytes are searched


class Info(NamedTuple):
    """What ``IPT_SO_GET_INFO`` tells about a table."""

    valid_hooks: int
    hook_entry: tuple[int, ...]
    entries: int  # number, policies and chain heads included
    size: int  # bytes


class Policy(NamedTuple):
    """What a built-in chain does with what falls through, and how much that was."""

    verdict: str
    packets: int
    octets: int


class Span(NamedTuple):
    """Where a rule stands in the blob's data: the entry, its target, its end."""

    start: int
    target: int
    end: int


class BlobChain(NamedTuple):
    """A chain in the blob; ``policy`` is None for a user-defined one."""

    name: str
    policy: Policy | None
    rules: list[Span]


class Blob:
    """A table as the kernel held it at one moment."""

    def __init__(self, family: int, table: str) -> None:
        self.layout = layout(family)
        self.family = family
        self.table = check_table(table)
        with _Socket(family, table) as source:
            self.info, self.data = source.entries()
        self._firsts: dict[int, bytes] = {}  # offset of a chain's first rule: its name
        self._seams: list[tuple[int, int]] = []  # where all entries begin, and their targets
        self._masked: bytearray | None = None
        self._digest = ""
        self.chains = self._cut()
        self._names: dict[int, bytes] = {**self._firsts, **_VERDICTS}

    def _cut(self) -> list[BlobChain]:
        data, at = self.data, self.layout
        heads = {
            _BASE + offset: name
            for hook, (offset, name) in enumerate(zip(self.info.hook_entry, HOOKS, strict=True))
            if self.info.valid_hooks >> hook & 1
        }
        new = tuple.__new__  # a NamedTuple's own constructor is slow
        unpack, offsets_at, size = OFFSETS.unpack_from, at.offsets_at, _BASE + self.info.size
        builtin: list[tuple[str, list[Span]]] = []
        user: list[tuple[str, list[Span]]] = []
        spans: list[Span] = []
        start = _BASE
        seams = self._seams
        while start < size:
            target_at, length = unpack(data, start + offsets_at)
            end, target = start + length, start + target_at
            seams.append((start, target))
            if length - target_at == _ERROR_TARGET and data[target + 2 : target + 8] == _ERROR:
                if end >= size:
                    break  # the entry that ends the table
                raw = data[target + EXTENSION_HEADER.size : end].partition(b"\0")[0]
                spans = []
                user.append((raw.decode("utf-8", "surrogateescape"), spans))
                self._firsts[end - _BASE] = raw
            else:
                if start in heads:
                    spans = []
                    builtin.append((heads[start], spans))
                spans.append(new(Span, (start, target, end)))
            start = end
        user.sort(key=lambda chain: chain[0].encode("utf-8", "surrogateescape"))
        chains = [BlobChain(name, self._policy(rules.pop()), rules) for name, rules in builtin]
        for name, rules in user:
            rules.pop()  # the RETURN at the end
            chains.append(BlobChain(name, None, rules))
        return chains

    def masked(self) -> bytearray:
        """Return the entries without counters, and with jumps by a digest of the chain's name.

        That is the same for the same rules, wherever in the table they and the chains stand.
        """
        if self._masked is None:
            masked = bytearray(self.data)
            at, nothing = self.layout.counters_at, bytes(COUNTERS.size)
            behind, width, unpack = EXTENSION_HEADER.size, COUNTERS.size, _VERDICT.unpack_from
            # there is room for eight bytes: the structure is padded
            names = {at: blake2b(raw, digest_size=8).digest() for at, raw in self._firsts.items()}
            elsewhere = b"\xff" * 8  # to the next rule, or nowhere
            for start, target in self._seams:
                masked[start + at : start + at + width] = nothing
                if not masked[target + 2]:
                    verdict = unpack(masked, target + behind)[0]
                    if verdict >= 0:
                        masked[target + behind : target + behind + 8] = names.get(
                            verdict, elsewhere
                        )
            self._masked = masked
        return self._masked

    def digest(self) -> str:
        """Return the sha256 (hex) of the table as the kernel lays it out, without counters.

        Two tables with one digest hold the same rules, as long as the kernel runs: numbers of
        ipsets are in there. The opposite need not be true.
        """
        if not self._digest:
            digest = hashlib.sha256(repr(self.info).encode())
            digest.update(self.masked())
            self._digest = digest.hexdigest()
        return self._digest

    def chain_digest(self, chain: BlobChain) -> str:
        """Return a digest of a chain's rules, without counters, wherever it stands."""
        rules = chain.rules
        data = self.masked()[rules[0].start : rules[-1].end] if rules else b""
        return hashlib.sha256(data).hexdigest()[:32]

    def same_rules(self, rules: list[Span], other: Blob, others: list[Span]) -> bool:
        """Whether neighbouring rules are, byte for byte, those of another reading of the table.

        Counters do not count.
        """
        if len(rules) != len(others):
            return False
        if not rules:
            return True
        mine = self.masked()[rules[0].start : rules[-1].end]
        return mine == other.masked()[others[0].start : others[-1].end]

    def jumps_to(self, chains: Collection[str]) -> list[tuple[str, str]]:
        """Return who jumps (or goes) to some user-defined chains: pairs of chain and target."""
        wanted = {name.encode("utf-8", "surrogateescape") for name in chains}
        offsets = {at: raw.decode("utf-8", "surrogateescape") for at, raw in self._firsts.items()
                   if raw in wanted}  # fmt: skip
        if len(offsets) > _FEW:
            verdicts, unpack = self.data, _VERDICT.unpack_from
            behind = EXTENSION_HEADER.size
            found = [
                (start, offsets[verdict])
                for start, target in self._seams
                if not verdicts[target + 2]
                and (verdict := unpack(verdicts, target + behind)[0]) in offsets
            ]
        else:
            found = [
                (start, name) for at, name in offsets.items() for start in self._entries_to(at)
            ]
        heads = sorted((chain.rules[0].start, chain.name) for chain in self.chains if chain.rules)
        return [(heads[bisect_right(heads, (start, "\uffff")) - 1][1], to) for start, to in found]

    def _entries_to(self, offset: int) -> Iterator[int]:
        """Yield where entries begin that jump to an offset: looked for as bytes, and verified."""
        needle, behind, seams = _VERDICT.pack(offset), EXTENSION_HEADER.size, self._seams
        at = self.data.find(needle, _BASE)
        while at >= 0:
            start, target = seams[bisect_right(seams, (at,)) - 1]
            if at == target + behind and not self.data[target + 2]:
                yield start
            at = self.data.find(needle, at + 1)

    def _policy(self, span: Span) -> Policy:
        verdict = STANDARD_TARGET.unpack_from(self.data, span.target)[3]
        return Policy(_VERDICTS.get(verdict, b"ACCEPT").decode(), *self.counters(span))

    def counters(self, span: Span) -> tuple[int, int]:
        """Return a rule's (packets, bytes)."""
        packets, octets = COUNTERS.unpack_from(self.data, span.start + self.layout.counters_at)
        return packets, octets

    def _jump(self, span: Span) -> bytes:
        """Return the name a standard target's verdict stands for."""
        verdict: int = _VERDICT.unpack_from(self.data, span[1] + EXTENSION_HEADER.size)[0]
        # a rule without a target "jumps" to the rule behind it
        return b"" if verdict == span[2] - _BASE else self._names.get(verdict, b"")

    def parts(self, rules: list[Span]) -> list[Parts]:
        """Return rules cut at their seams, jumps by name."""
        data, ip_size, size = self.data, self.layout.ip.size, self.layout.size
        new = tuple.__new__
        found = []
        for span in rules:
            start, target, end = span
            # the standard target has the empty name
            jump = None if data[target + 2] else self._jump(span)
            header, matches = data[start : start + ip_size], data[start + size : target]
            found.append(new(Parts, (header, matches, data[target:end], jump)))
        return found

    def unequal(self, rules: list[Span], entries: list[bytes]) -> list[int]:
        """Return the indices of rules that are not, byte for byte, the canonical entries.

        They may be the same rules yet: what the kernel hands out holds private bytes and
        leavings (see :meth:`nfctl.kernel.decode.Decoder.canonical`).
        """
        data, ip_size, size = self.data, self.layout.ip.size, self.layout.size
        found = []
        for index, (span, entry) in enumerate(zip(rules, entries, strict=True)):
            start, target, end = span
            if data[target + 2]:
                behind = data[start + size : end]
            else:
                behind = data[start + size : target] + standard_target(self._jump(span))
            if behind != entry[size:] or data[start : start + ip_size] != entry[:ip_size]:
                found.append(index)
        return found


def info(family: int, table: str) -> Info:
    """Return what the kernel says of a table, without copying its rules."""
    with _Socket(family, table) as source:
        return source.info()


def set_option(family: int, table: str, option: int, data: bytes) -> None:
    """Hand a structure about a table to the kernel (setsockopt); raises as opening one does."""
    with _Socket(family, table) as source:
        source.set(option, data)


class _Socket:
    """A raw socket, which is what the table's socket options hang on."""

    def __init__(self, family: int, table: str) -> None:
        self.layout = layout(family)
        self.table = table
        self._level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        try:
            self._socket = socket.socket(
                self.layout.address_family, socket.SOCK_RAW, socket.IPPROTO_RAW
            )
        except OSError as error:
            raise self._error(error.errno or 0) from None
        self._libc = libraries().libc

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._socket.close()

    def _get(self, option: int, buffer: ct.Array[ct.c_char]) -> int:
        length = ct.c_uint32(len(buffer))
        done = self._libc.getsockopt(
            self._socket.fileno(), self._level, option, buffer, ct.byref(length)
        )
        return 0 if done == 0 else ct.get_errno()

    def set(self, option: int, data: bytes) -> None:
        done = self._libc.setsockopt(
            self._socket.fileno(), self._level, option, data, ct.c_uint32(len(data))
        )
        if done:
            raise self._error(ct.get_errno())

    def info(self) -> Info:
        buffer = ct.create_string_buffer(_INFO.size)
        buffer.value = self.table.encode()
        number = self._get(_GET_INFO, buffer)
        if number in {errnos.ENOPROTOOPT, errnos.ENOENT}:
            libraries().use(self.layout.nfproto)
            libraries().load_modules()
            buffer.value = self.table.encode()
            number = self._get(_GET_INFO, buffer)
        if number:
            raise self._error(number)
        fields = _INFO.unpack(buffer.raw)
        return Info(fields[1], fields[2:7], fields[12], fields[13])

    def entries(self) -> tuple[Info, mmap.mmap]:
        for _ in range(_ATTEMPTS):
            found = self.info()
            # A mapping rather than bytes: its slices are bytes without a copy of all of it first,
            # and huge pages spare thousands of page faults.
            memory = mmap.mmap(-1, _BASE + found.size)
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
            struct.pack_into("=32sI", memory, 0, self.table.encode(), found.size)
            buffer = (ct.c_char * len(memory)).from_buffer(memory)
            number = self._get(_GET_ENTRIES, buffer)
            del buffer
            if number == 0:
                return found, memory
            if number != errnos.EAGAIN:  # EAGAIN: it has another size by now
                raise self._error(number)
        raise self._error(errnos.EAGAIN)

    def _error(self, number: int) -> NfctlError:
        return cannot_open(self.layout.family, self.table, number, os.strerror(number))


def cannot_open(family: int, table: str, number: int, words: str) -> NfctlError:
    """Return the error for a table that cannot be opened."""
    what = f"table {table} (IPv{family})"
    if number in {errnos.EPERM, errnos.EACCES}:
        msg = f"{what} cannot be opened: {os.strerror(number)}"
        return NotPermitted(msg, hint="CAP_NET_ADMIN and CAP_NET_RAW are needed: run as root")
    msg = f"{what} cannot be opened: {words}"
    return Unsupported(msg, hint="nfctl doctor names what the kernel lacks")
