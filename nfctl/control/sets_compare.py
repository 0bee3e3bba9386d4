"""Wanted ipsets beside those that are there, by what the kernel makes of both.

What a policy says of a set and what the kernel lists are different texts: the kernel expands
ranges, masks networks, and fills in options. So the wanted sets are made in a network namespace
that nobody sees (``ipset.scratch``) and listed there. How long entries have left, and what they
counted, is no difference; that one has no end, and its comment, is.
"""

from __future__ import annotations

import contextlib
import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nfctl.control.change import SetChange
from nfctl.errors import BadInput, NfctlError
from nfctl.kernel import ipset, ipset_types
from nfctl.kernel.ipset import Header, Ipset, Packed
from nfctl.kernel.ipset_answers import EntryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.policy.wanted import WantedSet

#: What the names of sets begin with that are there only while a change happens.
TEMPORARY: Final = "nfctl-tmp-"
#: How many entries a change tells.
TOLD: Final = 20
# How large a hash is changes by itself; what it is seeded with is a random number.
_IGNORED: Final = {"hashsize", "initval"}


@dataclass(slots=True)
class Item:
    """A wanted set, the one that is there, and what is to be done.

    ``replaces``: the one that is there is of a type with which it cannot be swapped.
    """

    wanted: WantedSet
    kind: ipset_types.SetType
    family: int
    live: Header | None
    packed: Packed | None = None
    replaces: bool = False
    change: SetChange = field(init=False)

    @property
    def name(self) -> str:
        """The set's name."""
        return self.wanted.name

    @property
    def header(self) -> Header:
        """What the set's entries are encoded for."""
        return Header(self.name, self.kind.name, self.family, 0)

    @property
    def small_options(self) -> dict[str, str]:
        """The options for a set that stays empty: a large hash takes long to make."""
        return {name: value for name, value in self.wanted.options.items() if name != "hashsize"}


def items(wanted: Sequence[WantedSet], there: dict[str, Header]) -> list[Item]:
    """Return the wanted sets beside those that are there; BadInput for what cannot be a set."""
    found: dict[str, Item] = {}
    for one in wanted:
        with placed(one):
            if one.name in found:
                msg = f"set {one.name} is there twice"
                raise BadInput(msg)
            found[one.name] = _item(one, there.get(one.name))
    return list(found.values())


def _item(wanted: WantedSet, live: Header | None) -> Item:
    ipset_types.check_name(wanted.name)
    if wanted.name.startswith(TEMPORARY):
        msg = f"a set cannot have the name {wanted.name}: {TEMPORARY}* are for nfctl's own use"
        raise BadInput(msg)
    kind = ipset_types.set_type(wanted.type)
    return Item(wanted, kind, ipset_types.set_family(kind, wanted.family), live)


@contextlib.contextmanager
def placed(wanted: WantedSet) -> Iterator[None]:
    """Give errors in the block the place of a wanted set, or of the entry they are about."""
    try:
        yield
    except EntryError as error:
        where = wanted.where
        if error.index < len(wanted.origins):
            where = wanted.origins[error.index].where
        if where is not None:
            error.at(where)
        raise
    except NfctlError as error:
        if wanted.where is not None:
            error.at(wanted.where)
        raise


def lists_last(some: list[Item]) -> list[Item]:
    """Return sets in an order in which they can be made: members before lists."""
    return sorted(some, key=lambda item: item.kind.is_list)


def compare(some: list[Item], kernel: Ipset, there: dict[str, Header]) -> None:
    """Say of each set what is to be done, and keep its entries as the kernel takes them."""
    if not some:
        return
    with ipset.scratch() as scratch:
        for item in lists_last(some):
            with placed(item.wanted):
                _make(item, scratch, there)
        for item in some:
            if item.wanted.entries is None:
                item.change = _kept(item)
            else:
                item.change = _compared(item, scratch, kernel)


def _make(item: Item, scratch: Ipset, there: dict[str, Header]) -> None:
    """Make a wanted set where nobody sees it, with what it refers to."""
    entries = item.wanted.entries
    options = item.small_options
    if entries and "hashsize" in item.kind.options:  # so that it need not grow
        options["hashsize"] = str(min(max(64, len(entries) // 4), 1 << 20))
    scratch.create(item.name, item.kind.name, item.family, options)
    if entries is None:
        return
    if item.kind.is_list:
        # Sets that the policy does not have: the kernel asks only whether they are lists.
        for name in {word for entry in entries for word in entry.split()}:
            if name in there and not scratch.exists(name):
                is_list = there[name].type == "list:set"
                scratch.create(name, "list:set" if is_list else "hash:ip")
    item.packed = ipset.pack(item.header, entries)
    scratch.add_packed(item.name, item.kind.name, item.packed)


def _kept(item: Item) -> SetChange:
    """Decide about a set that others fill."""
    if item.live is None:
        note = "empty: others fill it"
        return SetChange("create", item.name, item.kind.name, note=note)
    if not _same_kind(item):
        msg = f"set {item.name} is of {shown(item.live)}, and not of {shown(item.header)}"
        hint = "the policy gives no entries: others fill the set, and nfctl leaves it as it is"
        raise BadInput(msg, hint=hint, where=item.wanted.where)
    return SetChange("kept", item.name, item.kind.name, note="others fill it")


def _compared(item: Item, scratch: Ipset, kernel: Ipset) -> SetChange:
    name, kind = item.name, item.kind.name
    header, entries = scratch.read(name) or (item.header, [])
    before = None if item.live is None else kernel.read(name)
    if before is None:
        item.live = None
        told = _told(header, _identities(header, entries), item.header, [])
        return SetChange("create", name, kind, len(entries), entries=told)
    item.live, listed = before
    known = ipset_types.TYPES.get(item.live.type)
    item.replaces = (
        known is None or known.features != item.kind.features or item.live.family != item.family
    )
    permanence = "timeout" in header.options.keys() & item.live.options.keys()
    new = _identities(header, entries, permanence=permanence)
    old = _identities(item.live, listed, permanence=permanence)
    if _same_kind(item):
        notes = list(_differing_options(item.live, header))
        added, removed = _beyond(new, old)
        if item.kind.is_list and new != old and not (added or removed):
            notes.append("another order")
    else:
        notes = [f"{shown(item.live)} -> {shown(item.header)}"]
        added, removed = new, old
    if not (added or removed or notes):
        return SetChange("same", name, kind)
    told = _told(header, added, item.live, removed)
    return SetChange("swap", name, kind, len(added), len(removed), told, ", ".join(notes))


def _same_kind(item: Item) -> bool:
    live = item.live
    return live is not None and (live.type, live.family) == (item.kind.name, item.family)


def _identities(header: Header, entries: list[bytes], *, permanence: bool = False) -> list[bytes]:
    if not header.options.keys() & {"timeout", "counters"}:
        return entries
    identity = header.codec.identity
    return [identity(entry, permanence=permanence) for entry in entries]


def _beyond(some: list[bytes], others: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return those that are only in ``some``, and those that are only in ``others``."""
    ours, theirs = set(some), set(others)
    if ours == theirs:
        return [], []
    return [one for one in some if one not in theirs], [one for one in others if one not in ours]


def _told(new: Header, added: list[bytes], old: Header, removed: list[bytes]) -> tuple[str, ...]:
    """Return the text of the first entries that go and come, some of either."""
    goes = min(len(removed), max(TOLD // 2, TOLD - len(added)))
    chosen = [("-", old, entry) for entry in _first(old, removed, goes)]
    chosen += [("+", new, entry) for entry in _first(new, added, TOLD - goes)]
    return tuple(f"{sign} {header.codec.text(entry)}" for sign, header, entry in chosen)


def _first(header: Header, entries: list[bytes], count: int) -> list[bytes]:
    return entries[:count] if header.type == "list:set" else heapq.nsmallest(count, entries)


def _differing_options(live: Header, new: Header) -> Iterator[str]:
    for name in dict.fromkeys((*live.options, *new.options)):
        old, wanted = live.options.get(name), new.options.get(name)
        if name in _IGNORED or (name == "bucketsize" and None in {old, wanted}):
            continue  # a program that does not know buckets' sizes made one of the two
        if old != wanted:
            yield " -> ".join(_shown_option(name, value) for value in (old, wanted))


def _shown_option(name: str, value: str | None) -> str:
    if value is None:
        return f"no {name}"
    return f"{name} {value}" if value else name


def shown(header: Header) -> str:
    """Return a set's type and family."""
    return f"{header.type} (IPv{header.family})" if header.family else header.type
