"""Rule text to canonical bytes: iptables' rule specification, understood by libxtables.

Two ways lead there. :meth:`Encoder.encode` is the whole grammar, word by word, as getopt_long
and iptables/xshared.c read it: abbreviations, ``--opt=value``, options of a match after a later
``-m``, protocol matches loaded implicitly, several addresses. :meth:`Encoder.quick` knows only
the form that iptables-save writes (header options, ``-m`` groups, ``-j``), remembers the bytes of
every group it has met, and answers None to anything else. Where both answer, they answer the
same; a property test says so.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, NfctlError, Unsupported
from nfctl.kernel import extensions
from nfctl.kernel.complaints import explain
from nfctl.kernel.extensions import Extension, Instance, Refused, Words
from nfctl.kernel.grammar import LONG_OPTIONS, Context, Encoded, Parser
from nfctl.kernel.header import Entry, Header
from nfctl.kernel.layout import MAX_ENTRY, OFFSETS, layout, standard_target
from nfctl.kernel.libraries import GUARD, libraries
from nfctl.ruleset.fields import addresses, masked, prefix_mask
from nfctl.ruleset.names import MAX_WORD, VERDICTS
from nfctl.ruleset.words import Word, split

if TYPE_CHECKING:
    from nfctl.errors import Where

__all__ = ["Context", "Encoded", "Encoder", "print_help"]

_HEADER_WORDS = {
    "-s": "s",
    "-d": "d",
    "-i": "i",
    "-o": "o",
    "-p": "p",
    **{f"--{name}": letter for name, letter in LONG_OPTIONS.items() if letter in "sdiop"},
}
_COMMENT = "comment --comment "
_PREFIXES = {str(length): length for length in range(33)}
_PORT = re.compile(r"(tcp|udp) --([sd])port (0|[1-9][0-9]{0,4})")
_MULTIPORT = re.compile(
    r"multiport (! )?--([sd])ports "
    r"((?:0|[1-9][0-9]{0,4})(?::[1-9][0-9]{0,4})?(?:,(?:0|[1-9][0-9]{0,4})(?::[1-9][0-9]{0,4})?)*)"
)
_COMMENT_SIZE = 256
_MULTIPORTS = 15
_XT_MULTIPORT_V1 = struct.Struct(f"=BB{_MULTIPORTS}H{_MULTIPORTS}sB")
#: (size, revision) of the structures that are written here without asking libxtables.
_STRUCTURES = {"comment": (256, 0), "tcp": (16, 0), "udp": (16, 0), "multiport": (48, 1)}
_PROTOCOL_OF = {"tcp": 6, "udp": 17}
_WITH_PORTS = {6, 17, 33, 132, 136}


class _Head(NamedTuple):
    """The header options of a rule, encoded."""

    prefix: bytes  # the entry up to target_offset
    key: int  # protocol and its inversion: all that extensions look at
    has_in: bool
    has_out: bool
    addressed: bool


class Encoder:
    """Encodes rules of one family; remembers what it has seen.

    What is remembered can depend on the network namespace (ipset names become numbers), so an
    encoder is made anew for each.
    """

    def __init__(self, family: int, *, resolve: bool = False) -> None:
        self.layout = layout(family)
        self.resolve = resolve
        self._heads: dict[str, _Head | None] = {}
        self._addresses: dict[str, tuple[bytes, bytes]] = {}
        self._groups: dict[int, dict[str, bytes | None]] = {}
        self._targets: dict[tuple[int, str], tuple[str, bytes]] = {}
        at = self.layout
        self._gap = bytes(at.size - at.offsets_at - OFFSETS.size)
        self._any = (bytes(at.address), bytes(at.address))
        self._entry = Entry(at)
        self._native: dict[str, bytes] = {}
        self._extensions: dict[tuple[str, str], Extension | None] = {}

    def _native_header(self, name: str) -> bytes:
        """Return the match header if the match is the structure known here, else b""."""
        known = self._native.get(name)
        if known is None:
            known = b""
            with contextlib.suppress(Unsupported):
                found = extensions.find("match", name, self.layout)
                if found is not None and (found.size, found.revision) == _STRUCTURES[name]:
                    known = found.header
            self._native[name] = known
        return known

    # --- the quick way -----------------------------------------------------------------------

    def quick(self, spec: str, context: Context) -> bytes | None:
        """Encode a rule in iptables-save's own form; None if it is not in that form.

        Never raises for bad input: what it cannot do, :meth:`encode` does or refuses.
        """
        if spec.startswith("-j "):
            rest, target_text = "", spec[3:]
        else:
            at = spec.rfind(" -j ")
            if at < 0:
                return None
            rest, target_text = spec[:at], spec[at + 4 :]
        if rest.startswith("-m "):
            head_text, groups_text = "", rest[3:]
        else:
            head_text, _, groups_text = rest.partition(" -m ")
        addressed = self._addressed(head_text)
        if addressed is None:
            return None
        prefix, (_, key, has_in, has_out, _) = addressed
        chain = context.chain
        if (has_out and chain in {"INPUT", "PREROUTING"}) or (
            has_in and chain in {"OUTPUT", "POSTROUTING"}
        ):
            return None
        body = b""
        if groups_text:
            known = self._groups.get(key)
            if known is None:
                known = self._groups[key] = {}
            groups = groups_text.split(" -m ")
            if len(groups) > 2 and _repeated(groups):
                return None
            for group in groups:
                data = known.get(group)
                if data is None:
                    data = self._quick_group(group, key, known)
                    if data is None:
                        return None
                body += data
        chains = context.chains
        found = self._targets.get((key, target_text))
        if found is not None and found[0] not in chains:
            target = found[1]
        elif target_text in chains:
            target = standard_target(target_text.encode("utf-8", "surrogateescape"))
        elif target_text in VERDICTS:
            if target_text == "DROP" and context.table == "nat":
                return None
            target = standard_target(target_text.encode())
        else:
            name = target_text.partition(" ")[0]
            if name in chains or name in VERDICTS:
                return None
            data = self._extension_bytes("target", target_text, key)
            if data is None:
                return None
            self._targets[key, target_text] = (name, data)
            target = data
        offset = self.layout.size + len(body)
        end = offset + len(target)
        if end > MAX_ENTRY:
            return None
        return b"".join((prefix, OFFSETS.pack(offset, end), self._gap, body, target))

    def _addressed(self, text: str) -> tuple[bytes, _Head] | None:
        """Encode header options: the addresses, nearly always new, apart from the rest."""
        addresses_seen = self._addresses
        source = destination = self._any
        rest = text
        try:
            if rest[:3] == "-s ":
                word, _, rest = rest[3:].partition(" ")
                source = addresses_seen.get(word) or self._address(word)
            if rest[:3] == "-d ":
                word, _, rest = rest[3:].partition(" ")
                destination = addresses_seen.get(word) or self._address(word)
        except NfctlError:
            return None
        try:
            head = self._heads[rest]
        except KeyError:
            head = self._heads[rest] = self._quick_head(rest)
        if head is None:
            return None
        if rest is text:
            return head.prefix, head
        if head.addressed:  # -s stands behind -d, or twice
            return None
        prefix = source[0] + destination[0] + source[1] + destination[1]
        return prefix + head.prefix[len(prefix) :], head

    def _address(self, word: str) -> tuple[bytes, bytes]:
        text, slash, length = word.partition("/")
        if slash and self.layout.family == 4:
            # nearly every rule brings a new address: this is addresses() for the plain case
            try:
                mask = prefix_mask(_PREFIXES[length], 4)
                address = socket.inet_pton(socket.AF_INET, text)
            except (KeyError, OSError, ValueError):
                pass
            else:
                if length != "32":
                    address = masked(address, mask)
                pair = self._addresses[word] = (address, mask)
                return pair
        found = addresses(word, self.layout.family, resolve=self.resolve)
        if len(found) != 1:
            msg = "several addresses make several rules"
            raise BadInput(msg)
        self._addresses[word] = found[0]
        return found[0]

    def _quick_head(self, text: str) -> _Head | None:
        if '"' in text:
            return None
        fields = Header(self.layout.family, self.resolve)
        words = text.split(" ") if text else []
        invert = False
        index = 0
        try:
            while index < len(words):
                word = words[index]
                if word == "!" and not invert:
                    invert = True
                    index += 1
                    continue
                if word == "-f" and self.layout.family == 4:
                    fields.set("f", "", invert)
                    index += 1
                elif word in _HEADER_WORDS and index + 1 < len(words) and words[index + 1]:
                    if "," in words[index + 1]:
                        return None
                    fields.set(_HEADER_WORDS[word], words[index + 1], invert)
                    index += 2
                else:
                    return None
                invert = False
            if invert:
                return None
            (header,) = fields.headers(goto=False)
        except NfctlError:
            return None
        return _Head(
            header + bytes(self.layout.offsets_at - len(header)),
            fields.key,
            "i" in fields.seen,
            "o" in fields.seen,
            bool(fields.seen & {"s", "d"}),
        )

    def _quick_group(self, group: str, key: int, known: dict[str, bytes | None]) -> bytes | None:
        if group.startswith(_COMMENT):
            text = group[len(_COMMENT) :]
            if text[:1] == text[-1:] == '"' and len(text) > 1:
                text = text[1:-1]
            elif " " in text or "\t" in text:
                return None
            encoded = text.encode("utf-8", "surrogateescape")
            header = self._native.get("comment") or self._native_header("comment")
            if (
                not text
                or '"' in text
                or "\\" in text
                or len(encoded) >= _COMMENT_SIZE
                or not header
            ):
                return None
            # struct xt_comment_info is the text in 256 bytes; not remembered, since a comment
            # seldom occurs twice
            return header + encoded.ljust(_COMMENT_SIZE, b"\0")
        if group in known:
            return None
        port = _PORT.fullmatch(group)
        data = self._quick_port(port, key) if port else None
        if data is None:
            ports = _MULTIPORT.fullmatch(group)
            data = self._quick_ports(ports, key) if ports else None
        if data is None:
            data = self._extension_bytes("match", group, key)
        known[group] = data
        return data

    def _quick_port(self, port: re.Match[str], key: int) -> bytes | None:
        """Encode ``tcp --dport N``: struct xt_tcp and xt_udp begin with the two port ranges."""
        header = self._native_header(port[1])
        number = int(port[3])
        if number > 65535 or not header or key != _PROTOCOL_OF[port[1]]:
            return None
        one, every = number.to_bytes(2, sys.byteorder) * 2, b"\0\0\xff\xff"
        return header + (one + every if port[2] == "s" else every + one) + bytes(8)

    def _quick_ports(self, found: re.Match[str], key: int) -> bytes | None:
        """Encode ``multiport --dports A,B,C:D``: struct xt_multiport_v1."""
        header = self._native_header("multiport")
        if not header or key not in _WITH_PORTS:
            return None
        ports, ranges = [], []
        for part in found[3].split(","):
            low, colon, high = part.partition(":")
            ports.append(int(low))
            ranges.append(bool(colon))
            if colon:
                if int(high) <= int(low):
                    return None
                ports.append(int(high))
                ranges.append(False)
        if len(ports) > _MULTIPORTS or max(ports) > 65535:
            return None
        kind = {"s": 0, "d": 1}[found[2]]
        inverted = found[1] is not None
        padded = ports + [0] * (_MULTIPORTS - len(ports))
        flags = bytes(ranges).ljust(_MULTIPORTS, b"\0")
        return header + _XT_MULTIPORT_V1.pack(kind, len(ports), *padded, flags, inverted)

    def _extension_bytes(self, kind: str, text: str, key: int) -> bytes | None:
        """Parse ``NAME --option value ...`` on its own; None if there is anything else in it."""
        if text.count('"') % 2 or "\\" in text or len(text) > MAX_WORD:
            return None
        try:
            words = [word.text for word in split(text)] if '"' in text else text.split(" ")
            extension = self._extension(kind, words[0]) if all(words) else None
        except NfctlError:
            return None
        if extension is None:
            return None
        with GUARD:
            return self._parsed(extension, words, key)

    def _parsed(self, extension: Extension, words: list[str], key: int) -> bytes | None:
        array = None if extension.new_parser else Words(words)
        entry = self._entry.show(key)
        try:
            with Instance(extension) as instance:
                index, invert = 1, False
                while index < len(words):
                    word = words[index]
                    if word == "!" and not invert:
                        index, invert = index + 1, True
                        continue
                    option = extension.options.get(word[2:]) if word.startswith("--") else None
                    if option is None or word[2:] in LONG_OPTIONS:
                        return None
                    value = index + 1 if option.argument == 1 else index
                    if value >= len(words) or option.argument == 2:
                        return None
                    taken = 0
                    if array is None:
                        instance.parse_value(option, words[value], invert, entry)
                    else:
                        takes = option.argument == 1
                        taken = instance.parse(option, array, value, takes, invert, entry)
                    index, invert = value + 1 + taken, False
                if invert:
                    return None
                return extension.canonical(instance.finish())
        except Refused:
            return None

    def _extension(self, kind: str, name: str) -> Extension | None:
        """Find an extension; libxtables' lists and our own cache are slower than one dictionary."""
        if (kind, name) not in self._extensions:
            self._extensions[kind, name] = extensions.find(kind, name, self.layout)
        return self._extensions[kind, name]

    # --- the whole grammar -------------------------------------------------------------------

    def encode(self, words: list[Word], context: Context, where: Where | None = None) -> Encoded:
        """Encode the words of a rule specification.

        Raises BadInput with libxtables' own words and the place of the option they are about,
        Unsupported where the kernel lacks an extension.
        """
        _check_words(words, where)
        parser = Parser(self._entry, words, context, where, resolve=self.resolve)
        with GUARD:
            try:
                return parser.run()
            except Refused:
                again = Parser(self._entry, words, context, where, resolve=self.resolve)
                text = explain(again.run) or "libxtables refuses the rule"
                raise parser.error(text, parser.option_at) from None


def _check_words(words: list[Word], where: Where | None) -> None:
    """Raise BadInput for a word that C would not take to its end, or that is no bytes at all."""
    for text, column in words:
        try:
            whole = b"\0" not in text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            whole = False
        if not whole:
            msg = f"this is no text: {text!r}"
            raise BadInput(msg, where=where and where._replace(column=column))


def _repeated(groups: list[str]) -> bool:
    """Whether a match is used twice: then iptables' rules on whose option it is are subtle."""
    names = [group.partition(" ")[0] for group in groups]
    return len(set(names)) != len(names)


def print_help(words: list[str], family: int) -> bool:
    """Let the extensions named in a rule print their help to C's standard output.

    Return whether there was any.
    """
    found = False
    kinds = {"-m": "match", "--match": "match", "-p": "match", "-j": "target", "--jump": "target"}
    for option, name in pairwise(words):
        if option in kinds:
            extension = extensions.find(kinds[option], name, layout(family))
            if extension is not None:
                extension.print_help()
                found = True
    libraries().libc.fflush(None)
    return found
