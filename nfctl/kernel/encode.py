"""Rule text to canonical bytes: iptables' rule specification, understood by libxtables.

Two ways lead there. :meth:`Encoder.encode` is the whole grammar, word by word, as getopt_long
and iptables/xshared.c read it: abbreviations, ``--opt=value``, options of a match after a later
``-m``, protocol matches loaded implicitly, several addresses. :meth:`Encoder.quick` knows only
the form that iptables-save writes (header options, ``-m`` groups, ``-j``), remembers the bytes of
every group it has met, and answers None to anything else. Where both answer, they answer the
same; a property test says so.
"""

from __future__ import annotations

import ctypes as ct
import re
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from nfctl.errors import BadInput, NfctlError, Unsupported, Where
from nfctl.kernel import extensions
from nfctl.kernel.complaints import explain
from nfctl.kernel.extensions import Extension, Instance, Option, Refused
from nfctl.kernel.layout import (
    EXTENSION_HEADER,
    INV_DSTIP,
    INV_FRAG,
    INV_PROTO,
    INV_SRCIP,
    INV_VIA_IN,
    INV_VIA_OUT,
    IP6T_F_PROTO,
    IPT_F_FRAG,
    OFFSETS,
    layout,
    protocol_name,
    standard_target,
)
from nfctl.kernel.libraries import libraries
from nfctl.ruleset.fields import addresses, c_integer, interface, protocol_number
from nfctl.ruleset.names import BUILTIN_CHAINS, MAX_NAME, VERDICTS
from nfctl.ruleset.words import Word, split

if TYPE_CHECKING:
    from collections.abc import Container

#: iptables' own options: long names and what short letter they stand for.
LONG_OPTIONS = {
    "source": "s",
    "src": "s",
    "destination": "d",
    "dst": "d",
    "protocol": "p",
    "in-interface": "i",
    "out-interface": "o",
    "jump": "j",
    "goto": "g",
    "match": "m",
    "fragments": "f",
    "set-counters": "c",
    # of no use inside a rule, but they take part in the matching of abbreviations
    "append": "A",
    "delete": "D",
    "check": "C",
    "insert": "I",
    "replace": "R",
    "list": "L",
    "list-rules": "S",
    "flush": "F",
    "zero": "Z",
    "new-chain": "N",
    "delete-chain": "X",
    "rename-chain": "E",
    "policy": "P",
    "table": "t",
    "numeric": "n",
    "verbose": "v",
    "wait": "w",
    "wait-interval": "W",
    "exact": "x",
    "version": "V",
    "help": "h",
    "line-numbers": "0",
    "modprobe": "M",
    "ipv4": "4",
    "ipv6": "6",
}
_TAKES_VALUE = set("sdpiojgmctM")
_IN_RULE = set("sdpiojgmfc")
_HEADER_WORDS = {
    "-s": "s",
    "-d": "d",
    "-i": "i",
    "-o": "o",
    "-p": "p",
    **{f"--{name}": letter for name, letter in LONG_OPTIONS.items() if letter in "sdiop"},
}
_COMMENT = re.compile(r'comment --comment (?:"([^"\\]*)"|([^\s"]+))')
_PORT = re.compile(r"(tcp|udp) --([sd])port (0|[1-9][0-9]{0,4})")
_COMMENT_SIZE = 256
_NO_ENTRY = b""


class Encoded(NamedTuple):
    """What a rule specification came to: one rule for each pair of addresses, and ``-c``."""

    rules: list[bytes]
    counters: tuple[int, int] | None


class _Head(NamedTuple):
    """The header options of a rule, encoded."""

    prefix: bytes  # the entry up to target_offset
    key: int  # protocol and its inversion: all that extensions look at
    has_in: bool
    has_out: bool
    protocol: str | None


class Context(NamedTuple):
    """Where a rule is to stand: it decides what a target's name means and what is allowed."""

    table: str
    chain: str
    chains: Container[str]  # the user-defined chains of the table


class Encoder:
    """Encodes rules of one family; remembers what it has seen.

    What is remembered can depend on the network namespace (ipset names become numbers), so an
    encoder is made anew for each.
    """

    def __init__(self, family: int, *, resolve: bool = False) -> None:
        self.layout = layout(family)
        self.resolve = resolve
        self._heads: dict[str, _Head | None] = {}
        self._groups: dict[int, dict[str, bytes | None]] = {}
        self._targets: dict[int, dict[str, bytes | None]] = {}
        at = self.layout
        self._gap = bytes(at.size - at.offsets_at - OFFSETS.size)
        self._entry = ct.create_string_buffer(at.size)
        self._native = {6: self._protocol_revision("tcp"), 17: self._protocol_revision("udp")}

    def _protocol_revision(self, name: str) -> bytes:
        """Return the match header of tcp or udp if it has the layout known here, else b""."""
        try:
            found = extensions.find("match", name, self.layout)
        except Unsupported:
            return _NO_ENTRY
        size = {"tcp": 16, "udp": 16}[name]
        if found is None or found.size != size or found.revision != 0:
            return _NO_ENTRY
        return EXTENSION_HEADER.pack(found.total, name.encode(), 0)

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
        try:
            head = self._heads[head_text]
        except KeyError:
            head = self._heads[head_text] = self._quick_head(head_text)
        if head is None:
            return None
        prefix, key, has_in, has_out, _ = head
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
            for group in groups_text.split(" -m "):
                data = known.get(group)
                if data is None:
                    data = self._quick_group(group, key, known)
                    if data is None:
                        return None
                body += data
        if target_text in context.chains:
            target = standard_target(target_text.encode("utf-8", "surrogateescape"))
        elif target_text in VERDICTS:
            if target_text == "DROP" and context.table == "nat":
                return None
            target = standard_target(target_text.encode())
        else:
            found = self._quick_target(target_text, key, context)
            if found is None:
                return None
            target = found
        offset = self.layout.size + len(body)
        return prefix + OFFSETS.pack(offset, offset + len(target)) + self._gap + body + target

    def _quick_head(self, text: str) -> _Head | None:
        if '"' in text:
            return None
        fields = _Header(self.layout.family, self.resolve)
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
            fields.protocol,
        )

    def _quick_group(self, group: str, key: int, known: dict[str, bytes | None]) -> bytes | None:
        comment = _COMMENT.fullmatch(group)
        if comment is not None:
            text = comment[1] if comment[1] is not None else comment[2]
            encoded = text.encode("utf-8", "surrogateescape")
            if len(encoded) >= _COMMENT_SIZE:
                return None
            # struct xt_comment_info is the text in 256 bytes; not remembered, since a comment
            # seldom occurs twice
            return EXTENSION_HEADER.pack(288, b"comment", 0) + encoded.ljust(256, b"\0")
        if group in known:
            return None
        data = self._quick_port(group, key)
        if data is None:
            data = self._extension_bytes("match", group, key)
        known[group] = data
        return data

    def _quick_port(self, group: str, key: int) -> bytes | None:
        """Encode ``tcp --dport N``: struct xt_tcp and xt_udp begin with the two port ranges."""
        port = _PORT.fullmatch(group)
        if port is None:
            return None
        number = int(port[3])
        header = self._native.get(key, _NO_ENTRY)
        if number > 65535 or not header or port[1] != ("tcp" if key == 6 else "udp"):
            return None
        one, every = number.to_bytes(2, _ORDER) * 2, b"\0\0\xff\xff"
        ranges = one + every if port[2] == "s" else every + one
        return header + ranges + bytes(8)

    def _quick_target(self, text: str, key: int, context: Context) -> bytes | None:
        known = self._targets.setdefault(key, {})
        name = text.partition(" ")[0]
        if name in context.chains or name in VERDICTS:
            return None
        if text not in known:
            known[text] = self._extension_bytes("target", text, key)
        return known[text]

    def _extension_bytes(self, kind: str, text: str, key: int) -> bytes | None:
        """Parse ``NAME --option value ...`` on its own; None if there is anything else in it."""
        if text.count('"') % 2 or "\\" in text:
            return None
        try:
            words = [word.text for word in split(text)]
            extension = extensions.find(kind, words[0], self.layout) if words else None
        except NfctlError:
            return None
        if extension is None:
            return None
        array = _array(words)
        self._set_entry(key)
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
                    taken = instance.parse(
                        option, array, value, option.argument == 1, invert, self._entry
                    )
                    index, invert = value + 1 + taken, False
                if invert:
                    return None
                return extension.canonical(instance.finish())
        except Refused:
            return None

    def _set_entry(self, key: int) -> None:
        """Fill in the part of the entry that extensions look at: the protocol."""
        at = self.layout
        ct.memset(self._entry, 0, at.size)
        number, inverted = key & 0xFFFF, key >> 16
        ct.memmove(ct.addressof(self._entry) + at.proto_at, number.to_bytes(2, _ORDER), 2)
        self._entry[at.invflags_at] = INV_PROTO if inverted else 0
        if at.family == 6 and number:
            self._entry[at.flags_at] = IP6T_F_PROTO

    # --- the whole grammar -------------------------------------------------------------------

    def encode(self, words: list[Word], context: Context, where: Where | None = None) -> Encoded:
        """Encode the words of a rule specification.

        Raises BadInput with libxtables' own words and the place of the option they are about,
        Unsupported where the kernel lacks an extension.
        """
        parser = _Parser(self, words, context, where)
        try:
            return parser.run()
        except Refused:
            again = _Parser(self, words, context, where)
            text = explain(again.run) or "libxtables refuses the rule"
            raise parser.error(text, parser.option_at) from None


_ORDER: Any = "little" if bytes(ct.c_uint16(1))[0] == 1 else "big"


def _array(words: list[str]) -> Any:
    encoded = [word.encode("utf-8", "surrogateescape") for word in words]
    return (ct.c_char_p * (len(words) + 1))(*encoded, None)


class _Header:
    """The header options of one rule, collected and encoded to ``ipt_ip`` or ``ip6t_ip6``."""

    _INVERSE = {"s": INV_SRCIP, "d": INV_DSTIP, "p": INV_PROTO, "i": INV_VIA_IN}
    _INVERSE |= {"o": INV_VIA_OUT, "f": INV_FRAG}

    def __init__(self, family: int, resolve: bool) -> None:
        self.layout = layout(family)
        self.resolve = resolve
        self.seen: set[str] = set()
        self.protocol: str | None = None
        self.proto = 0
        self.flags = 0
        self.inverse = 0
        width = self.layout.address
        any_address = [(bytes(width), bytes(width))]
        self.sources, self.destinations = any_address, any_address
        nothing = (bytes(16), bytes(16))
        self.interface_in, self.interface_out = nothing, nothing

    @property
    def key(self) -> int:
        """The protocol, with bit 16 set where it is inverted."""
        return self.proto | (bool(self.inverse & INV_PROTO) << 16)

    def set(self, letter: str, value: str, invert: bool) -> None:
        """Take one header option; BadInput for a bad value or a second one of the kind."""
        if letter in self.seen:
            msg = f"multiple -{letter} flags not allowed"
            raise BadInput(msg)
        self.seen.add(letter)
        if invert:
            self.inverse |= self._INVERSE[letter]
        family = self.layout.family
        if letter == "s":
            self.sources = addresses(value, family, resolve=self.resolve)
        elif letter == "d":
            self.destinations = addresses(value, family, resolve=self.resolve)
        elif letter == "i":
            self.interface_in = interface(value)
        elif letter == "o":
            self.interface_out = interface(value)
        elif letter == "p":
            self.protocol = value.lower()
            self.proto = protocol_number(self.protocol)
            if self.proto == 0 and invert:
                msg = "rule would never match protocol"
                raise BadInput(msg)
            if family == 6:
                self.flags |= IP6T_F_PROTO
        elif family == 6:
            msg = "`-f' is not supported in IPv6, use -m frag instead"
            raise BadInput(msg)
        else:
            self.flags |= IPT_F_FRAG

    def headers(self, *, goto: bool) -> list[bytes]:
        """Return the encoded header for each pair of a source and a destination."""
        many = len(self.sources) > 1 or len(self.destinations) > 1
        if many and self.inverse & (INV_SRCIP | INV_DSTIP):
            msg = "! not allowed with multiple source or destination IP addresses"
            raise BadInput(msg)
        flags = self.flags | (self.layout.goto if goto else 0)
        (name_in, mask_in), (name_out, mask_out) = self.interface_in, self.interface_out
        return [
            self.layout.ip.pack(
                src, dst, smask, dmask, name_in, name_out, mask_in, mask_out,
                self.proto, flags, self.inverse,
            )
            for src, smask in self.sources
            for dst, dmask in self.destinations
        ]  # fmt: skip


class _Parser:
    """One reading of one rule specification: do_parse() of iptables/xshared.c for a rule."""

    def __init__(
        self, encoder: Encoder, words: list[Word], context: Context, where: Where | None
    ) -> None:
        self.encoder = encoder
        self.layout = encoder.layout
        self.words = words
        self.context = context
        self.where = where
        self.header = _Header(encoder.layout.family, encoder.resolve)
        self.matches: list[Instance] = []
        self._places: dict[int, int] = {}
        self.target: Instance | None = None
        self.target_name: str | None = None
        self.target_at = 0
        self.goto = False
        self.counters: tuple[int, int] | None = None
        self.option_at = 0
        self._implied = False
        self._array = _array([word.text for word in words])

    def error(self, message: str, at: int, hint: str = "") -> BadInput:
        """Return a BadInput placed at word number ``at``."""
        return BadInput(message, hint=hint, where=self._place(at))

    def _place(self, at: int) -> Where | None:
        if self.where is None or not self.words:
            return self.where
        column = self.words[min(at, len(self.words) - 1)].column
        return self.where._replace(column=column)

    def run(self) -> Encoded:
        """Parse all words and encode the rule."""
        try:
            return self._run()
        except (BadInput, Unsupported) as error:
            place = self._place(self.option_at)
            raise error.at(place) if place else error from None
        finally:
            for instance in self.matches:
                instance.free()
            if self.target is not None:
                self.target.free()

    def _run(self) -> Encoded:
        index, invert = 0, False
        words = self.words
        while index < len(words):
            text = words[index].text
            self.option_at = index
            if text == "!":
                if invert:
                    self._fail("multiple consecutive ! not allowed")
                index, invert = index + 1, True
                continue
            if text == "--" or text[:1] != "-" or text == "-":
                self._fail(f"Bad argument `{text}'")
            if text.startswith("--"):
                index = self._long(index, invert)
            else:
                index = self._short(index, invert)
            invert = False
        if invert:
            self._fail("nothing appropriate following !")
        return self._encoded()

    def _fail(self, message: str, hint: str = "") -> NoReturn:
        raise self.error(message, self.option_at, hint)

    # --- options ------------------------------------------------------------------------------

    def _short(self, index: int, invert: bool) -> int:
        text = self.words[index].text
        letter = text[1]
        if letter in _TAKES_VALUE:
            if len(text) > 2:
                return self._structural(letter, text[2:], index + 1, invert)
            return self._structural(letter, self._value(index), index + 2, invert)
        if len(text) > 2:
            self._fail(f'unknown option "{text}"')
        return self._structural(letter, "", index + 1, invert)

    def _value(self, index: int) -> str:
        if index + 1 >= len(self.words):
            self._fail(f'option "{self.words[index].text}" requires an argument')
        return self.words[index + 1].text

    def _long(self, index: int, invert: bool) -> int:
        name, equals, value = self.words[index].text[2:].partition("=")
        found = self._lookup(name)
        if found is None and self._load_protocol():
            found = self._lookup(name)
        if found is None:
            self._fail(f'unknown option "{self.words[index].text}"', self._who_knows(name))
        instance, option = found
        if option.argument == 0 and equals:
            self._fail(f'option "--{option.name}" doesn\'t allow an argument')
        if instance is None:
            letter = LONG_OPTIONS[option.name]
            if option.argument and not equals:
                return self._structural(letter, self._value(index), index + 2, invert)
            return self._structural(letter, value, index + 1, invert)
        array, at = self._array, index
        if equals:
            # libxtables reads on from optind; the value is given a place of its own
            array = _array([value, *(word.text for word in self.words[index + 1 :])])
            at = 0
        elif option.argument == 1:
            self._value(index)
            at = index + 1
        self.encoder._set_entry(self.header.key)  # noqa: SLF001 - the parser is a part of it
        has_value = bool(equals) or option.argument == 1
        entry = self.encoder._entry  # noqa: SLF001
        taken = instance.parse(option, array, at, has_value, invert, entry)
        return (index if equals else at) + 1 + taken

    def _lookup(self, name: str) -> tuple[Instance | None, Option] | None:
        """Find an option the way getopt_long does: exactly, or by an unambiguous beginning."""
        tables: list[tuple[Instance | None, dict[str, Option]]] = [(None, _OWN_OPTIONS)]
        latest: dict[int, Instance] = {}
        for instance in self._instances():
            latest[id(instance.extension)] = instance
        tables += [(item, item.extension.options) for item in reversed(list(latest.values()))]
        for instance_or_none, options in tables:
            if name in options:
                return instance_or_none, options[name]
        candidates = [
            (instance_or_none, option)
            for instance_or_none, options in tables
            for option in options.values()
            if name and option.name.startswith(name)
        ]
        if not candidates:
            return None
        first = candidates[0]
        if any(
            owner is not first[0] or (option.value, option.argument) != first[1][1:]
            for owner, option in candidates[1:]
        ):
            names = ", ".join(f"--{option.name}" for _, option in candidates)
            self._fail(f'option "--{name}" is ambiguous', f"it may be {names}")
        return first

    def _instances(self) -> list[Instance]:
        return [*self.matches, *([self.target] if self.target else [])]

    def _load_protocol(self) -> bool:
        """Load the protocol's match for an option nobody else knows (``-p tcp --dport 80``)."""
        if self.header.protocol is None or self._implied:
            return False
        self._implied = True
        number = c_integer(self.header.protocol)
        name = protocol_name(number) if number is not None else self.header.protocol
        extension = extensions.find("match", name, self.layout) if name else None
        if extension is None:
            return False
        self._add_match(extension)
        return True

    def _who_knows(self, name: str) -> str:
        protocols = [
            protocol
            for protocol in ("tcp", "udp", "sctp", "dccp", "icmp" if self.layout.family == 4 else "icmp6")
            if (found := extensions.find("match", protocol, self.layout)) and name in found.options
        ]
        if protocols and self.header.protocol is None:
            return f"-p {protocols[0]} must stand before it"
        return ""

    def _structural(self, letter: str, value: str, after: int, invert: bool) -> int:
        if letter not in _IN_RULE:
            hint = "it is no part of a rule specification"
            if letter in "tw46":
                hint = f"give -{letter} before the chain"
            self._fail(f"unexpected option -{letter}", hint)
        if invert and letter not in "sdpiof":
            self._fail("unexpected ! flag before --match" if letter == "m" else f"cannot have ! before -{letter}")
        if letter == "m":
            self._begin_match(value)
        elif letter in "jg":
            self._begin_target(letter, value)
        elif letter == "c":
            return self._set_counters(value, after)
        else:
            self.header.set(letter, value, invert)
        return after

    def _set_counters(self, value: str, after: int) -> int:
        if self.counters is not None:
            self._fail("multiple -c flags not allowed")
        packets, comma, octets = value.partition(",")
        if not comma:
            if after >= len(self.words) or self.words[after].text[:1] in {"-", "!"}:
                self._fail("-c requires packet and byte counter")
            octets = self.words[after].text
            after += 1
        if not (packets.isdecimal() and octets.isdecimal()):
            self._fail("-c packet and byte counters must be numbers")
        self.counters = (int(packets) & _U64, int(octets) & _U64)
        return after

    def _begin_match(self, name: str) -> None:
        extension = extensions.match(name, self.layout)
        self._add_match(extension)

    def _add_match(self, extension: Extension) -> None:
        instance = Instance(extension)
        self._places[id(instance)] = self.option_at
        self.matches.append(instance)

    def _begin_target(self, letter: str, name: str) -> None:
        if self.target_name is not None:
            self._fail("multiple -j flags not allowed")
        if not name:
            self._fail("Invalid target name (too short)")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
            self._fail(f"Invalid target name `{name}' ({MAX_NAME} chars max)")
        if any(char.isspace() for char in name):
            self._fail(f"Invalid target name `{name}'")
        context = self.context
        self.target_name, self.target_at, self.goto = name, self.option_at, letter == "g"
        if name in BUILTIN_CHAINS.get(context.table, ()):
            self._fail(f"`{name}' is a built-in chain, which no rule can jump to")
        if name in context.chains:
            return
        if letter == "g":
            self._fail(f"goto '{name}' is not a chain", f"chain {name} does not exist in table {context.table}")
        if name in VERDICTS:
            if name == "DROP" and context.table == "nat":
                self._fail(
                    'The "nat" table is not intended for filtering, the use of DROP is '
                    "therefore inhibited."
                )
            return
        extension = extensions.find("target", name, self.layout)
        if extension is None:
            self._fail(
                f"Couldn't load target `{name}': table {context.table} has no chain of that name, "
                "and there is no target extension of that name",
                extensions.similar(name, self.layout),
            )
        self.target = Instance(extension)

    # --- the result ---------------------------------------------------------------------------

    def _encoded(self) -> Encoded:
        chain, seen = self.context.chain, self.header.seen
        if "o" in seen and chain in {"INPUT", "PREROUTING"}:
            self._fail(f"Can't use -o with {chain}")
        if "i" in seen and chain in {"OUTPUT", "POSTROUTING"}:
            self._fail(f"Can't use -i with {chain}")
        body = b""
        for item in self.matches:
            self.option_at = self._places[id(item)]
            body += item.extension.canonical(item.finish())
        if self.target is not None:
            self.option_at = self.target_at
            target = self.target.extension.canonical(self.target.finish())
        else:
            name = (self.target_name or "").encode("utf-8", "surrogateescape")
            target = standard_target(name)
        at = self.layout
        offset = at.size + len(body)
        total = offset + len(target)
        if total > 0xFFFF:
            self._fail(f"the rule needs {total} bytes; the kernel takes 65535")
        tail = OFFSETS.pack(offset, total) + bytes(at.size - at.offsets_at - OFFSETS.size) + body + target
        return Encoded(
            [header.ljust(at.offsets_at, b"\0") + tail for header in self.header.headers(goto=self.goto)],
            self.counters,
        )


_U64 = (1 << 64) - 1
_OWN_OPTIONS = {
    name: Option(name, ord(letter), int(letter in _TAKES_VALUE)) for name, letter in LONG_OPTIONS.items()
}


def print_help(words: list[str], family: int) -> bool:
    """Let the extensions named in a rule print their help to C's standard output.

    Return whether there was any.
    """
    found = False
    kinds = {"-m": "match", "--match": "match", "-p": "match", "-j": "target", "--jump": "target"}
    for option, name in zip(words, words[1:], strict=False):
        if option in kinds:
            extension = extensions.find(kinds[option], name, layout(family))
            if extension is not None:
                extension.print_help()
                found = True
    libraries().libc.fflush(None)
    return found
