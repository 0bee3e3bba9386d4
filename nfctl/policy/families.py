"""Which family a rule is for, as far as its own words say so.

An address, ``-p icmp``, ``-m hl``, ``--reject-with icmp6-...`` or ``-4`` belong to one family;
most rules have nothing of the kind and fit both. Nothing is looked up: a host's name says nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.ruleset.spec import option_places

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

BOTH: Final = (4, 6)
NAMES: Final = {"ipv4": 4, "ipv6": 6}

#: Options whose value is a list of addresses with masks, of which IPv4's may be cut short.
HEADER: Final = frozenset({"-s", "--source", "--src", "-d", "--destination", "--dst"})
_ADDRESSES: Final = HEADER | {
    "--ctorigsrc",
    "--ctorigdst",
    "--ctreplsrc",
    "--ctrepldst",
    "--dst-range",
    "--gateway",
    "--mask",
    "--on-ip",
    "--src-range",
    "--to",
    "--to-destination",
    "--to-source",
    "--tunnel-dst",
    "--tunnel-src",
    "--vaddr",
}
_FIXED: Final = {
    "-f": 4,
    "--fragment": 4,
    "--fragments": 4,
    "--icmp-type": 4,
    "--icmpv6-type": 6,
}
MARKS: Final = {"-4": 4, "--ipv4": 4, "-6": 6, "--ipv6": 6}
_PROTOCOLS: Final = {
    "icmp": 4,
    "1": 4,
    "icmp6": 6,
    "icmpv6": 6,
    "ipv6-icmp": 6,
    "58": 6,
    "ipv6-mh": 6,
    "mh": 6,
    "mobility-header": 6,
}
_MATCHES: Final = {"icmp": 4, "realm": 4, "ttl": 4} | dict.fromkeys(
    """
    dst eui64 frag hbh hl icmp6 icmpv6 ipv6-icmp ipv6header mh rt srh
    """.split(),
    6,
)
_TARGETS: Final = {"CLUSTERIP": 4, "ECN": 4, "TTL": 4, "ULOG": 4, "DNPT": 6, "HL": 6, "SNPT": 6}
_REJECTS: Final = dict.fromkeys(
    "net-unreach host-unreach proto-unreach net-prohib host-prohib admin-prohib".split(), 4
) | dict.fromkeys("no-route adm-prohibited addr-unreach policy-fail reject-route".split(), 6)
_PROTOCOL: Final = frozenset({"-p", "--protocol"})
_MATCH: Final = frozenset({"-m", "--match"})
_JUMP: Final = frozenset({"-j", "--jump", "-g", "--goto"})
SETS: Final = frozenset({"--match-set", "--add-set", "--del-set", "--map-set"})
_REJECT: Final = "--reject-with"
_TELLING: Final = (
    _ADDRESSES | SETS | _PROTOCOL | _MATCH | _JUMP | _FIXED.keys() | MARKS.keys() | {_REJECT}
)
_ATTACHED: Final = re.compile(r'(?:^|[ \t])"?-(?:[sdpmjg][^ \t]|-[a-z0-9-]+=)')
_LETTERS: Final = frozenset({"-s", "-d", "-p", "-m", "-j", "-g"})

_DOTTED: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![^-:/,])")
_SHORT: Final = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}(?:/[0-9.]+)?")


class Told(NamedTuple):
    """A word that belongs to one family."""

    family: int
    at: int  # the word's index
    mark: bool = False  # -4 and its like, which are no part of the rule itself


class Names(NamedTuple):
    """The chains of a table and the sets of a policy, with the families that have them."""

    chains: Collection[str]
    of_chain: Mapping[str, Sequence[int]]  # the families of chains that not all have
    sets: Mapping[str, Mapping[int, str]]  # the set's name in each family


def address_family(text: str, *, short: bool = False) -> int | None:
    """Return 4 or 6 for an address, be it with a mask, a port, or a range; None for all else.

    ``short``: IPv4's may be cut short, as in ``10/8``.
    """
    if _DOTTED.match(text):
        return 4
    if text.count(":") > 1 or (text[:1] == "[" and ":" in text):
        return 6
    if short and text != "0/0" and _SHORT.fullmatch(text):
        return 4
    return None


def told(text: str, words: Sequence[str], names: Names) -> list[Told]:
    """Return the words of a rule that say for which family it is; ``text`` is all of it."""
    if _TELLING.isdisjoint(words) and not _ATTACHED.search(text):
        return []
    found = []
    for index in option_places(words):
        option, value = words[index], ""
        at = index + 1
        if option[:2] == "--":
            option, equals, value = option.partition("=")
            if equals:
                at = index
        elif len(option) > 2 and option[:2] in _LETTERS:
            option, value, at = option[:2], option[2:], index
        if option not in _TELLING:
            continue
        if option in MARKS:
            found.append(Told(MARKS[option], index, mark=True))
        elif option in _FIXED:
            found.append(Told(_FIXED[option], index))
        elif at == index or at < len(words):
            value = value if at == index else words[at]
            found += [Told(family, at) for family in _of_value(option, value, names)]
    return found


def _of_value(option: str, value: str, names: Names) -> Sequence[int]:
    """Return the families that a value belongs to; none if it fits both."""
    family: int | None = None
    if option in _ADDRESSES:
        short = option in HEADER
        parts = value.split(",") if short else [value]
        several = {address_family(part.strip(), short=short) for part in parts}
        return [family for family in BOTH if family in several]
    if option in _PROTOCOL:
        family = _PROTOCOLS.get(value.lower())
    elif option in _MATCH:
        family = _MATCHES.get(value)
    elif option in _JUMP:
        if value in names.chains:
            return names.of_chain.get(value, ())
        family = _TARGETS.get(value)
    elif option in SETS:
        having = [*names.sets.get(value, ())]
        return having if len(having) == 1 else ()
    elif value.startswith("icmp6-"):
        family = 6
    elif value.startswith("icmp-"):
        family = 4
    else:
        family = _REJECTS.get(value)
    return () if family is None else (family,)
