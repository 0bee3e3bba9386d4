"""The whole grammar of a rule specification: do_parse() of iptables/xshared.c for one rule.

Word by word, as getopt_long reads them: abbreviations, ``--opt=value``, options of a match after
a later ``-m``, protocol matches loaded implicitly, several addresses. libxtables parses the
extensions' options as they come by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from nfctl.errors import BadInput, Unsupported, Where
from nfctl.kernel import extensions
from nfctl.kernel.extensions import Extension, Instance, Option, Words
from nfctl.kernel.header import Entry, Header
from nfctl.kernel.layout import MAX_ENTRY, OFFSETS, Layout, protocol_name, standard_target
from nfctl.ruleset.fields import c_integer
from nfctl.ruleset.names import BUILTIN_CHAINS, MAX_NAME, MAX_WORD, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Container

    from nfctl.ruleset.words import Word

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

_U64 = (1 << 64) - 1
_OWN_OPTIONS = {
    name: Option(name, ord(letter), int(letter in _TAKES_VALUE))
    for name, letter in LONG_OPTIONS.items()
}


class Encoded(NamedTuple):
    """What a rule specification came to: one rule for each pair of addresses, and ``-c``."""

    rules: list[bytes]
    counters: tuple[int, int] | None


class Context(NamedTuple):
    """Where a rule is to stand: it decides what a target's name means and what is allowed."""

    table: str
    chain: str
    chains: Container[str]  # the user-defined chains of the table


class Parser:
    """One reading of one rule specification: do_parse() of iptables/xshared.c for a rule."""

    def __init__(
        self,
        entry: Entry,
        words: list[Word],
        context: Context,
        where: Where | None,
        *,
        resolve: bool = False,
    ) -> None:
        self.layout: Layout = entry.layout
        self._entry = entry
        self.words = words
        self.context = context
        self.where = where
        self.header = Header(entry.layout.family, resolve)
        self.matches: list[Instance] = []
        self._loaded: list[Instance] = []  # in the order of their coming
        self._places: dict[int, int] = {}
        self.target: Instance | None = None
        self.target_name: str | None = None
        self.target_at = 0
        self.goto = False
        self.counters: tuple[int, int] | None = None
        self.option_at = 0
        self._implied = False
        self._array = Words([word.text for word in words])

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
        for place, word in enumerate(words):
            if len(word.text) > MAX_WORD:
                # libxtables would cut it to what fits, and say nothing
                self.option_at = place
                self._fail(
                    f"a word of {len(word.text)} characters is too long", f"{MAX_WORD} at most"
                )
        while index < len(words):
            text = words[index].text
            self.option_at = index
            if text == "!":
                if invert:
                    self._fail("multiple consecutive ! not allowed")
                index, invert = index + 1, True
                continue
            if text == "--":  # the end of the options, as getopt_long has it
                if index + 1 < len(words):
                    self._fail("unknown arguments found on commandline")
                break
            if text[:1] != "-" or text == "-":
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
        self._check_in_rule(letter)
        if letter in _TAKES_VALUE:
            if len(text) > 2:
                return self._structural(letter, text[2:], index + 1, invert)
            value = self._value(index)
            self.option_at = index + 1
            return self._structural(letter, value, index + 2, invert)
        if len(text) > 2:
            self._fail(f'unknown option "{text}"')
        return self._structural(letter, "", index + 1, invert)

    def _check_in_rule(self, letter: str) -> None:
        if letter not in _IN_RULE:
            hint = "it is no part of a rule specification"
            if letter in "tw46":
                hint = f"give -{letter} before the chain"
            self._fail(f"unexpected option {self.words[self.option_at].text}", hint)

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
            self._check_in_rule(letter)
            after = index + 1
            if option.argument and not equals:
                value = self._value(index)
                self.option_at, after = index + 1, index + 2
            return self._structural(letter, value, after, invert)
        array, at = self._array, index
        if equals:
            # libxtables reads on from optind; the value is given a place of its own
            array = Words([value, *(word.text for word in self.words[index + 1 :])])
            at = 0
        elif option.argument == 1:
            self._value(index)
            at = index + 1
        has_value = bool(equals) or option.argument == 1
        entry = self._entry.show(self.header.key)
        taken = instance.parse(option, array, at, has_value, invert, entry)
        return (index if equals else at) + 1 + taken

    def _lookup(self, name: str) -> tuple[Instance | None, Option] | None:
        """Find an option the way getopt_long does: exactly, or by an unambiguous beginning."""
        tables: list[tuple[Instance | None, dict[str, Option]]] = [(None, _OWN_OPTIONS)]
        latest: dict[int, Instance] = {}
        for instance in self._loaded:
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
            for protocol in (
                "tcp",
                "udp",
                "sctp",
                "dccp",
                "icmp" if self.layout.family == 4 else "icmp6",
            )
            if (found := extensions.find("match", protocol, self.layout)) and name in found.options
        ]
        if protocols and self.header.protocol is None:
            return f"-p {protocols[0]} must stand before it"
        return ""

    def _structural(self, letter: str, value: str, after: int, invert: bool) -> int:
        if invert and letter not in "sdpiof":
            self._fail(
                "unexpected ! flag before --match"
                if letter == "m"
                else f"cannot have ! before -{letter}"
            )
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
        self._loaded.append(instance)

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
            self._fail(
                f"goto '{name}' is not a chain",
                f"chain {name} does not exist in table {context.table}",
            )
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
        self._loaded.append(self.target)

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
        if total > MAX_ENTRY:
            self._fail(f"the rule needs {total} bytes; the kernel takes {MAX_ENTRY}")
        tail = (
            OFFSETS.pack(offset, total)
            + bytes(at.size - at.offsets_at - OFFSETS.size)
            + body
            + target
        )
        return Encoded(
            [
                header.ljust(at.offsets_at, b"\0") + tail
                for header in self.header.headers(goto=self.goto)
            ],
            self.counters,
        )
