"""The ipsets of a policy: those that it declares, and those that lists of variables become."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.document import Kind, known, shown
from nfctl.policy.families import BOTH, NAMES, address_family
from nfctl.policy.mistakes import SET_FLAGS, SET_NUMBERS, SET_TEXTS
from nfctl.policy.variables import Variable, Variables, pieces, place
from nfctl.policy.wanted import WantedSet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nfctl.document import Node
    from nfctl.errors import BadInput

MAX_NAME: Final = 31  # bytes: IPSET_MAXNAMELEN without the NUL
_NAME: Final = re.compile(r"[^\s\"'\\]+")
_MOST: Final = 1_000_000  # entries of all sets
_DEFAULT: Final = "ipv4"

#: What each type takes beside what all take; ipset(8).
_HASH: Final = ("hashsize", "maxelem", "bucketsize", "initval", "forceadd")
OPTIONS_OF: Final[dict[str, tuple[str, ...]]] = {
    "bitmap:ip": ("range", "netmask"),
    "bitmap:ip,mac": ("range",),
    "bitmap:port": ("range",),
    "hash:ip": (*_HASH, "netmask", "bitmask"),
    "hash:mac": _HASH,
    "hash:ip,mac": _HASH,
    "hash:net": _HASH,
    "hash:net,net": (*_HASH, "netmask", "bitmask"),
    "hash:ip,port": (*_HASH, "netmask", "bitmask"),
    "hash:net,port": _HASH,
    "hash:ip,port,ip": _HASH,
    "hash:ip,port,net": _HASH,
    "hash:ip,mark": (*_HASH, "markmask"),
    "hash:net,port,net": _HASH,
    "hash:net,iface": _HASH,
    "list:set": ("size",),
}
OPTIONS_OF_ALL: Final = ("timeout", "counters", "comment", "skbinfo")
_OPTIONS: Final = (*SET_NUMBERS, *SET_TEXTS, *SET_FLAGS)
#: Types of IPv4 alone, which ipset gives no family.
_OF_IPV4: Final = frozenset({"bitmap:ip", "bitmap:ip,mac"})
_WITHOUT_FAMILY: Final = _OF_IPV4 | {"bitmap:port", "hash:mac", "list:set"}
_CONTROL: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")


class _Entry(NamedTuple):
    text: str
    node: Node


class Sets:
    """All sets of a policy. ``names`` says what a declared set is called in each family."""

    def __init__(self, policy: str, families: Sequence[int], variables: Variables) -> None:
        self._sets: list[WantedSet] = []
        self._used: set[str] = set()
        self.names: dict[str, Mapping[int, str]] = {}
        self._policy = policy
        self._families = families
        self._variables = variables
        self._declared: dict[str, Node] = {}
        self._derived: dict[str, dict[int, str]] = {}
        self._count = 0

    def wanted(self) -> list[WantedSet]:
        """Return the sets to be there: all that are declared, and those made that rules use.

        Sets of sets come last: their members have to be there before them.
        """
        derived = {name for names in self._derived.values() for name in names.values()}
        used = [one for one in self._sets if one.name in self._used or one.name not in derived]
        return sorted(used, key=lambda one: one.type == "list:set")

    def use(self, name: str) -> None:
        """Note that a rule names a set that was made of a list."""
        self._used.add(name)

    # --- declared -----------------------------------------------------------------------------

    def declare(self, key: Node, node: Node) -> None:
        """Take in a set of the file; BadInput with the place of what is wrong."""
        name = _check_name(key, key.raw)
        self._once(key, name)
        fields = {name: value for name, (_, value) in node.pairs.items()}
        kind = fields["type"].raw
        if kind not in OPTIONS_OF:
            raise fields["type"].error(
                f"there is no type {shown(kind)} of sets", known(kind, OPTIONS_OF)
            )
        families = _families(fields.get("family"), kind)
        options = _options(node, fields, kind)
        names = {families[0] if families else 0: name}
        if len(families) > 1:
            names = {family: f"{name}-6" if family == 6 else name for family in families}
            _check_name(key, names[6])
            self._once(key, names[6])
            self.names[names[6]] = {6: names[6]}
        if families:
            self.names[name] = names
        elif kind in _OF_IPV4:
            self.names[name] = {4: name}
        entries: dict[int, dict[str, _Entry]] | None = None
        listed = fields.get("entries")
        if listed is not None and listed.kind is not Kind.NULL:
            entries = {family: {} for family in names}
            for element in listed.children:
                for text in self._entry_texts(element):
                    self._add(entries, text, element, kind, families or _own(kind))
        for family, own in names.items():
            if len(names) > 1 and family not in self._families:
                continue
            wanted = WantedSet(own, kind, family, dict(options), None, key.where)
            if entries is not None:
                wanted.entries = [entry.text for entry in entries[family].values()]
                wanted.origins = [entry.node for entry in entries[family].values()]
            self._sets.append(wanted)

    def _once(self, key: Node, name: str) -> None:
        before = self._declared.get(name)
        if before is not None:
            raise key.error(f"there is a set {shown(name)} already", f"at {before.where}")
        self._declared[name] = key

    def _entry_texts(self, node: Node) -> list[str]:
        """Return the entries that one element of the file comes to."""
        text = node.raw.strip()
        bad = _CONTROL.search(text)
        if bad is not None:
            where = place(node, node.raw.find(bad[0]))
            msg = f"an entry must not hold the control character U+{ord(bad[0]):04X}"
            raise node.error(msg, where=where)
        if not text:
            raise node.error("an entry is empty")
        if "${" not in text:
            return [text]

        def fail(at: int, message: str, hint: str) -> BadInput:
            return node.error(message, hint, where=place(node, at))

        made = [""]
        for part in pieces(node.raw, fail):
            values: Sequence[str] = [part] if isinstance(part, str) else ()
            if not isinstance(part, str):
                at = part.at
                values = self._variables.find(
                    part.name,
                    lambda message, hint: fail(at, message, hint),  # noqa: B023
                ).values
            if len(made) * len(values) > _MOST:
                raise node.error("this comes to too many entries", f"{_MOST} at most")
            made = [before + value for before in made for value in values]
        return [entry.strip() for entry in made]

    def _add(
        self,
        entries: dict[int, dict[str, _Entry]],
        text: str,
        node: Node,
        kind: str,
        families: Sequence[int],
    ) -> None:
        self._count += 1
        if self._count > _MOST:
            raise node.error("there are too many entries", f"{_MOST} at most, of all sets")
        element = text.split(maxsplit=1)[0] if text else ""
        if not element:
            raise node.error("an entry is empty")
        own = _element_families(element, kind)
        if len(own) > 1:
            raise node.error(f"{shown(element)} has addresses of both families")
        if own and families and own[0] not in families:
            hint = ""
            if kind not in _WITHOUT_FAMILY:
                hint = f"family: ipv{own[0]}, or [ipv4, ipv6] for a set of each"
            msg = f"{shown(element)} is of IPv{own[0]}, and the set of IPv{families[0]}"
            raise node.error(msg, hint)
        # interfaces and sets of sets are told apart by case; hexadecimal digits are not
        entry = element if kind.endswith(("iface", ":set")) else element.lower()
        for family, found in entries.items():
            if family and own and family != own[0]:
                continue
            before = found.get(entry)
            if before is not None:
                msg = f"the entry {shown(element)} is there already"
                raise node.error(msg, f"at {before.node.where}")
            found[entry] = _Entry(text, node)

    # --- made of variables --------------------------------------------------------------------

    def derived(self, variable: Variable, fail: Callable[[str, str], BadInput]) -> dict[int, str]:
        """Return the name in each family of the set (hash:net) that a list becomes.

        A family of which the list has no address has none. ``fail`` makes the error about the
        rule that names the list.
        """
        done = self._derived.get(variable.name)
        if done is not None:
            return done
        entries: dict[int, dict[str, None]] = {family: {} for family in BOTH}
        for value in variable.values:
            family = address_family(value)
            if family is None:
                hint = "a list behind --match-set becomes a set of addresses and networks"
                msg = f"{shown(value)}, of the list {shown(variable.name)}, is no address"
                raise fail(msg, hint)
            if value.endswith("/0"):
                halves = ("0.0.0.0/1", "128.0.0.0/1") if family == 4 else ("::/1", "8000::/1")
                entries[family] |= dict.fromkeys(halves)  # hash:net takes no prefix of length 0
            else:
                entries[family][value] = None
        names: dict[int, str] = {}
        for family in self._families:
            if not entries[family]:
                continue
            name = _derived_name(self._policy, variable.name, family)
            if name in self._declared:
                hint = f"declared at {self._declared[name].where}"
                raise fail(f"there is a set {shown(name)} already", hint)
            names[family] = name
            options = {"maxelem": str(len(entries[family]))} if len(entries[family]) > 65536 else {}
            self._sets.append(
                WantedSet(name, "hash:net", family, options, [*entries[family]], variable.where)
            )
        self._derived[variable.name] = names
        return names


def _own(kind: str) -> Sequence[int]:
    return (4,) if kind in _OF_IPV4 else ()


def _check_name(key: Node, name: str) -> str:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise key.error(f"{shown(name)} is no name of a set", "no blanks, quotes or backslashes")
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > MAX_NAME:
        raise key.error(f"the name {shown(name)} of a set is too long", f"{MAX_NAME} bytes at most")
    return name


def _families(node: Node | None, kind: str) -> list[int]:
    """Return the families that a set is made for, in order; none for types without."""
    if node is None or node.kind is Kind.NULL:
        return [] if kind in _WITHOUT_FAMILY else [NAMES[_DEFAULT]]
    named = {NAMES[one.raw] for one in node.one_or_many()}
    if kind in _WITHOUT_FAMILY and not (kind in _OF_IPV4 and named == {4}):
        other = "it holds addresses of IPv4" if kind in _OF_IPV4 else ""
        raise node.error(f"a set of type {kind} has no family", other)
    return [] if kind in _WITHOUT_FAMILY else sorted(named)


def _options(node: Node, fields: Mapping[str, Node], kind: str) -> dict[str, str]:
    """Return the create options as text."""
    fitting = (*OPTIONS_OF_ALL, *OPTIONS_OF[kind])
    options: dict[str, str] = {}
    for name in _OPTIONS:
        value = fields.get(name)
        if value is None or value.kind is Kind.NULL:
            continue
        if name in SET_FLAGS and not value.boolean():
            continue
        if name not in fitting:
            hint = f"it takes {', '.join(fitting)}"
            raise node.key(name).error(f"a set of type {kind} has no option {name}", hint)
        options[name] = "" if name in SET_FLAGS else _text(value, name)
    if "range" in fitting and "range" not in options:
        raise node.error(f'the key "range" is missing: a set of type {kind} needs one')
    return options


def _text(value: Node, name: str) -> str:
    text = value.raw
    if name in SET_NUMBERS:
        text = str(value.integer())
    if not re.fullmatch(r"[!-~]+", text):
        raise value.error(f"{shown(text)} is no {name}", "one word")
    return text


def _element_families(element: str, kind: str) -> list[int]:
    """Return the families of the addresses in an entry's first word."""
    parts = zip(kind.partition(":")[2].split(","), element.split(","), strict=False)
    found = {address_family(value, short=True) for part, value in parts if part in {"ip", "net"}}
    return [family for family in BOTH if family in found]


def _derived_name(policy: str, variable: str, family: int) -> str:
    """Name a set after a policy and a variable: 31 bytes at most, cut with a hash if need be."""
    name, suffix = f"nfctl-{policy}-{variable}", f"-{family}"
    if len(name) + len(suffix) > MAX_NAME:
        digest = hashlib.sha256(f"{policy} {variable}".encode()).hexdigest()[:8]
        name = f"{name[: MAX_NAME - len(suffix) - 9]}~{digest}"
    return name + suffix
