"""What one rule says: a rule specification (iptables(8)) taken apart.

Taking apart needs to know which options take no value, since ``--syn -j ACCEPT`` is an option
and a jump but ``--comment -j`` is an option and its value. libxtables knows from the extensions
it loads; here, where there is no C, a list of the valueless ones serves, which a test compares
with the extensions installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Where
from nfctl.ruleset.fields import addresses, interface, protocol_number
from nfctl.ruleset.words import Word, join, split

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Extension options without a value; every other long option takes one word at least.
VALUELESS = frozenset(
    """
    accept-local ahres alarm checksum-fill clamp-mss-to-pmtu compres connlimit-daddr
    connlimit-saddr contiguous ecn ecn-tcp-remove exist fragfirst fraglast fragmore fragres
    hashlimit-rate-match icase invert ipvs kerneltz led-always-blink limit-iface-in
    limit-iface-out localtz log-ip-options log-macdecode log-tcp-options log-tcp-sequence log-uid
    loose map-mark map-prio map-queue new next notrack nowildcard persistent physdev-is-bridged
    physdev-is-in physdev-is-out queue-bypass queue-cpu-fanout random random-fully rateest-bps
    rateest-bps1 rateest-bps2 rateest-delta rateest-eq rateest-gt rateest-lt rateest-pps
    rateest-pps1 rateest-pps2 rcheck rdest reap remove restore restore-mark restore-skmark
    return-nomatch rsource rt-0-not-strict rt-0-res rttl sack-perm save save-mark set
    socket-exists soft strict suppl-groups syn timestamp transparent update update-counters
    update-subcounters utc validmark
    """.split()
)
#: Options that are valueless for the match named and take a value elsewhere.
_VALUELESS_OF = {"ecn": {"ecn-tcp-cwr", "ecn-tcp-ece"}}
_WITH_VALUE_OF = {"set": {"match-set", "set"}, "connlabel": {"label"}}

_HEADER = {
    "-s": "source",
    "--source": "source",
    "--src": "source",
    "-d": "destination",
    "--destination": "destination",
    "--dst": "destination",
    "-i": "in_interface",
    "--in-interface": "in_interface",
    "-o": "out_interface",
    "--out-interface": "out_interface",
    "-p": "protocol",
    "--protocol": "protocol",
}
_STRUCTURAL = {
    "-m": "match",
    "--match": "match",
    "-j": "jump",
    "--jump": "jump",
    "-g": "goto",
    "--goto": "goto",
}
_WITHOUT_VALUE = frozenset({"--fragment", "--fragments", "--ipv4", "--ipv6"})
_LETTERS = (
    ("source", "-s"),
    ("destination", "-d"),
    ("in_interface", "-i"),
    ("out_interface", "-o"),
    ("protocol", "-p"),
)


class Setting(NamedTuple):
    """A header option's value, and whether a ``!`` stood before it."""

    value: str
    inverted: bool = False

    def __str__(self) -> str:
        """``!10.0.0.0/8`` or ``10.0.0.0/8``."""
        return f"!{self.value}" if self.inverted else self.value


class Use(NamedTuple):
    """The use of an extension: its name and its options, word by word (a ``!`` is a word)."""

    name: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the options as they would be typed."""
        return join(self.options)


class Spec(NamedTuple):
    """A rule specification: the header's settings, the matches in order, and the target."""

    source: Setting | None = None
    destination: Setting | None = None
    in_interface: Setting | None = None
    out_interface: Setting | None = None
    protocol: Setting | None = None
    fragment: Setting | None = None
    matches: tuple[Use, ...] = ()
    target: Use | None = None
    goto: bool = False

    @classmethod
    def parse(cls, text: str, *, family: int = 4, source: str = "<rule>", line: int = 1) -> Spec:
        """Take a specification apart (the text after ``-A CHAIN``).

        Raises BadInput with the place for an unclosed quote, an option without its value, two of
        a kind, or a bad address, interface or protocol. Extensions' options are taken as they
        stand: what they mean, libxtables knows.
        """
        return cls.of(split(text, source=source, number=line), family, Where(source, line))

    @classmethod
    def of(cls, words: list[Word], family: int, where: Where) -> Spec:
        """Take a specification apart that is words already."""
        return _parse(words, family, where)

    def text(self) -> str:
        """Return the specification as iptables-save orders it."""
        words: list[str] = []
        for field, letter in _LETTERS:
            setting: Setting | None = getattr(self, field)
            if setting is not None:
                words += ["!"] * setting.inverted + [letter, setting.value]
        if self.fragment is not None:
            words += ["!"] * self.fragment.inverted + ["-f"]
        for match in self.matches:
            words += ["-m", match.name, *match.options]
        if self.target is not None:
            words += ["-g" if self.goto else "-j", self.target.name, *self.target.options]
        return join(words)


def _parse(words: list[Word], family: int, where: Where) -> Spec:
    header: dict[str, Setting] = {}
    uses: list[tuple[str, str, list[str]]] = []  # kind, name, options
    index, inverted = 0, False

    def fail(message: str, at: int) -> BadInput:
        column = words[min(at, len(words) - 1)].column
        return BadInput(message, where=where._replace(column=column))

    while index < len(words):
        word = words[index].text
        if word == "!":
            if inverted:
                raise fail("multiple consecutive ! not allowed", index)
            inverted, index = True, index + 1
            continue
        needs_value = word in _HEADER or word in _STRUCTURAL
        if needs_value and index + 1 >= len(words):
            raise fail(f'option "{word}" requires an argument', index)
        if word in _HEADER:
            field = _HEADER[word]
            if field in header:
                raise fail(f"multiple {word} flags not allowed", index)
            value = words[index + 1].text
            try:
                _check(field, value, family)
            except BadInput as error:
                raise error.at(where._replace(column=words[index + 1].column)) from None
            header[field] = Setting(value, inverted)
            index += 2
        elif word in _STRUCTURAL:
            kind = _STRUCTURAL[word]
            if inverted:
                raise fail(f"cannot have ! before {word}", index)
            if kind != "match" and any(use[0] != "match" for use in uses):
                raise fail("multiple -j flags not allowed", index)
            uses.append((kind, words[index + 1].text, []))
            index += 2
        elif word in {"-f", "--fragment", "--fragments"}:
            if family == 6:
                raise fail("`-f' is not supported in IPv6, use -m frag instead", index)
            header["fragment"] = Setting("", inverted)
            index += 1
        elif word.startswith("--") and len(word) > 2:
            if not uses:
                if "protocol" not in header:
                    raise fail(f'unknown option "{word}"', index)
                uses.append(("match", header["protocol"].value.lower(), []))
            options = uses[-1][2]
            options += ["!"] * inverted
            index = _option(words, index, uses[-1][1], options)
        else:
            raise fail(f"Bad argument `{word}'", index)
        inverted = False
    if inverted:
        raise fail("nothing appropriate following !", len(words) - 1)
    matches = tuple(Use(name, tuple(options)) for kind, name, options in uses if kind == "match")
    targets = [(kind, Use(name, tuple(options))) for kind, name, options in uses if kind != "match"]
    target = targets[0] if targets else None
    return Spec(
        **header,
        matches=matches,
        target=target[1] if target else None,
        goto=bool(target and target[0] == "goto"),
    )


def option_places(words: Sequence[str]) -> Iterator[int]:
    """Yield where options stand, as far as one can say without libxtables.

    A word that is an option's value (the last one of ``--comment -6``) is none itself.
    """
    option = extension = ""
    value = False
    for index, word in enumerate(words):
        if value:
            extension = word if option in _STRUCTURAL else extension
            value = False
        else:
            yield index
            option = word
            value = _takes_value(option, extension)


def _takes_value(option: str, extension: str) -> bool:
    """Whether the word behind this one is its value."""
    if option in _HEADER or option in _STRUCTURAL:
        return True
    if option[:2] != "--" or len(option) == 2 or "=" in option or option in _WITHOUT_VALUE:
        return False
    name = option[2:]
    if name in _VALUELESS_OF.get(extension, ()):
        return False
    return name not in VALUELESS or name in _WITH_VALUE_OF.get(extension, ())


def _option(words: list[Word], index: int, extension: str, options: list[str]) -> int:
    """Take one extension option and the words that belong to it; return the next index."""
    word = words[index].text
    options.append(word)
    index += 1
    if _takes_value(word, extension) and index < len(words):
        options.append(words[index].text)
        index += 1
    # a second word (--tcp-flags MASK COMP, --match-set NAME FLAGS) never begins with a dash
    while index < len(words) and words[index].text[:1] not in {"-", "!"}:
        options.append(words[index].text)
        index += 1
    return index


def _check(field: str, value: str, family: int) -> None:
    if field in {"source", "destination"}:
        addresses(value, family)
    elif field == "protocol":
        protocol_number(value)
    else:
        interface(value)
