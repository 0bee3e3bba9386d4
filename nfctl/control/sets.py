"""The ipsets of a policy: what would change, and changing them around a commit of rules.

How a change goes, and what each step leaves::

    Sets(...)   compares (``sets_compare``); nothing is changed
    prepare()   makes every new set under a temporary name, fills it, and puts it in place: by
                renaming where there was none, by swapping where there was one, which is atomic
                for the rules that refer to it. All of it happens, or nothing.
    (commit)    rules that need the new sets come, rules that need the old ones go
    finish()    destroys the old contents, and the sets that nothing wants any more
    revert()    instead of finish(), undoes prepare(): until then the old contents are there

A set that is a member of a list has to be there before the list is, and goes after it.
A crash leaves sets with temporary names; the next prepare() or finish() destroys them. ipsets have
no lock: whoever changes them holds the xtables lock from the comparison to the end.
"""

from __future__ import annotations

import errno as errnos
import secrets
import time
from typing import TYPE_CHECKING

from nfctl.control import sets_compare
from nfctl.control.change import SetChange
from nfctl.control.sets_compare import TEMPORARY, Item, placed
from nfctl.errors import BadInput, Changed, NfctlError
from nfctl.kernel import ipset_answers, ipset_save
from nfctl.kernel.ipset import Header, Ipset
from nfctl.kernel.ipset_answers import EntryError, Refused
from nfctl.policy.wanted import WantedSet

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence


class Sets:
    """A policy's sets, and the sets that it ``owned`` before, beside what the kernel has.

    ``changes`` says what happens to each; ``missing`` are wanted ones that are not there, or are
    of another type: rules hold a set's number, which the new one has yet to get. ``obstacle``
    is the error that prepare() would raise before it does anything, or None. ``left`` were to go
    before and were in use by others: they go once they are not, and are named here until then,
    as those that finish() cannot destroy. Acts in the network
    namespace of the calling thread. ``pause`` waits so many seconds, where another program is
    busy with a set.

    Raises BadInput for what cannot be a set or an entry, and for a set filled by others that is
    of another type; NotPermitted; Unsupported where the kernel lacks a type.
    """

    def __init__(
        self,
        wanted: Sequence[WantedSet],
        owned: Collection[str] = (),
        left: Collection[str] = (),
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.wanted = list(wanted)
        self.changes: list[SetChange] = []
        self.missing: set[str] = set()
        self.obstacle: NfctlError | None = None
        self.left: list[str] = []
        self._pause = pause
        self._items: list[Item] = []
        self._unwanted: list[Header] = []
        self._strays = False  # sets that a crash left
        self._undo: list[Callable[[Ipset], None]] = []
        self._old: list[tuple[str, str]] = []  # temporary names with old contents, and types
        if wanted or owned or left:  # else there need be no ipsets in the kernel
            with Ipset(pause=pause) as kernel:
                self._compare(kernel, wanted, owned, left)

    @property
    def touched(self) -> list[str]:
        """The names of sets that are there and change or go: what a snapshot has to hold."""
        return [one.name for one in self.changes if one.action in {"swap", "destroy"}]

    @property
    def going(self) -> list[str]:
        """The names of sets that are to be destroyed, now or as soon as that can be."""
        return [*self.left, *(header.name for header in self._unwanted)]

    @property
    def created(self) -> list[str]:
        """The names of sets that come."""
        return [one.name for one in self.changes if one.action == "create"]

    def _compare(
        self,
        kernel: Ipset,
        wanted: Sequence[WantedSet],
        owned: Collection[str],
        left: Collection[str],
    ) -> None:
        there = kernel.headers()
        self._strays = any(name.startswith(TEMPORARY) for name in there)
        self._items = sets_compare.items(wanted, there)
        sets_compare.compare(self._items, kernel, there)
        self.changes = [item.change for item in self._items]
        self.missing = {item.name for item in self._items if item.live is None or item.replaces}
        named = {item.name for item in self._items}
        for name in sorted({*owned, *left} - named):
            if name in there and name not in owned and there[name].references:
                self.left.append(name)
            elif name in there:
                self._unwanted.append(there[name])
                self.changes.append(_destruction(kernel, there[name]))
        self.obstacle = self._find_obstacle(kernel, there)

    def _find_obstacle(self, kernel: Ipset, there: dict[str, Header]) -> NfctlError | None:
        for item in self._items:
            if item.replaces and item.live is not None and item.live.references:
                count = item.live.references
                used = "a rule or list uses it" if count == 1 else f"{count} rules or lists use it"
                if lists := _lists_with(kernel, there, item.name):
                    used += f", among them the list {', '.join(lists)}"
                msg = (
                    f"set {item.name} is of {sets_compare.shown(item.live)}, and {used}: "
                    f"one of {sets_compare.shown(item.header)} cannot take its place"
                )
                hint = "give the new set another name, or first apply without what uses the old"
                return BadInput(msg, hint=hint, where=item.wanted.where)
        return None

    # --- changing -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make, fill and put in place what is to come; on any error all is as it was before.

        Raises Changed where another program interfered, and what the kernel refuses.
        """
        if self.obstacle is not None:
            raise self.obstacle
        todo = [item for item in self._items if item.change.action in {"create", "swap"}]
        if not todo:
            return
        with Ipset(pause=self._pause) as kernel:
            _clean(kernel)
            try:
                for lists in (False, True):
                    tier = [item for item in todo if item.kind.is_list is lists]
                    made = [(item, self._make(kernel, item)) for item in tier]
                    for item, temporary in made:
                        self._place(kernel, item, temporary)
            except BaseException:
                self._revert(kernel)
                raise

    def _make(self, kernel: Ipset, item: Item) -> str:
        temporary = _temporary()
        with placed(item.wanted):
            try:
                kernel.create(temporary, item.kind.name, item.family, item.wanted.options)
            except NfctlError as error:  # a hash that is too large for this machine
                error.message = error.message.replace(temporary, item.name)
                raise
            self._undo.append(lambda kernel: kernel.destroy(temporary))
            if item.packed is not None:
                try:
                    kernel.add_packed(temporary, item.kind.name, item.packed)
                except EntryError as error:  # a member of a list is gone
                    raise error.of(item.name) from None
        return temporary

    def _place(self, kernel: Ipset, item: Item, temporary: str) -> None:
        name = item.name
        try:
            if item.live is None:
                self._rename(kernel, temporary, name)
            elif item.replaces:
                old = _temporary()
                self._rename(kernel, name, old)
                self._rename(kernel, temporary, name)
                self._old.append((old, item.live.type))
            else:
                kernel.swap(temporary, name)
                self._undo.append(lambda kernel: kernel.swap(temporary, name))
                self._old.append((temporary, item.live.type))
        except Refused as error:
            msg = f"set {name} was changed by another program meanwhile: {error.message}"
            raise Changed(msg, hint="try again", where=item.wanted.where) from None

    def _rename(self, kernel: Ipset, name: str, new: str) -> None:
        kernel.rename(name, new)
        self._undo.append(lambda kernel: kernel.rename(new, name))

    def revert(self) -> None:
        """Undo prepare(); nothing where that did nothing, or after finish().

        Rules that use the new sets have to be gone. Everything is tried; what could not be done
        is in the NfctlError at the end.
        """
        if self._undo:
            with Ipset(pause=self._pause) as kernel:
                self._revert(kernel)

    def _revert(self, kernel: Ipset) -> None:
        failures = []
        while self._undo:
            try:
                self._undo.pop()(kernel)
            except NfctlError as error:
                failures.append(error.message)
        self._old.clear()
        if failures:
            msg = f"ipsets could NOT be put back: {'; '.join(failures)}"
            raise NfctlError(msg)

    def finish(self) -> list[SetChange]:
        """Destroy old contents and what is not wanted; return what had to be left, and why."""
        going = [*self._old, *((header.name, header.type) for header in self._unwanted)]
        self._undo.clear()
        self._old.clear()
        if not going and not self._strays:
            return []
        going.sort(key=lambda one: one[1] != "list:set")
        left = []
        with Ipset(pause=self._pause) as kernel:
            for name, kind in going:
                if why := _destroy(kernel, name):
                    left.append(SetChange("kept", name, kind, note=why))
                    if not name.startswith(TEMPORARY):
                        self.left.append(name)
            if self._strays:
                _clean(kernel)
        return left


# --- snapshots ------------------------------------------------------------------------------------


def make_shells(wanted: Sequence[WantedSet]) -> None:
    """Create the sets, empty, in this (throw-away) namespace; one that is there may stay."""
    if not wanted:
        return
    with Ipset() as kernel:
        for item in sets_compare.lists_last(sets_compare.items(wanted, {})):
            with placed(item.wanted):
                options = item.small_options
                kernel.create(item.name, item.kind.name, item.family, options, exist=True)


def saved(names: Iterable[str]) -> str:
    """Return what ``ipset save`` prints of the sets, entries and all; nothing of missing ones."""
    listed = list(names)
    if not listed:
        return ""
    with Ipset() as kernel:
        return ipset_save.save(kernel, listed)


def of_saved(text: str, gone: Iterable[str] = ()) -> Sets:
    """Return the change back to what :func:`saved` said, in which the sets ``gone`` go."""
    sets = [
        WantedSet(one.name, one.type, one.family, one.options, one.entries)
        for one in ipset_save.parse(text)
    ]
    return Sets(sets, list(gone))


def put_back(text: str, gone: Iterable[str] = ()) -> list[SetChange]:
    """Make it so again, all or nothing, and destroy the sets ``gone``; return what was left.

    Sets that are as they were, but for counters and the time their entries have left, are not
    touched.
    """
    back = of_saved(text, gone)
    back.prepare()
    return back.finish()


# --- one set --------------------------------------------------------------------------------------


def _destruction(kernel: Ipset, header: Header) -> SetChange:
    count = header.entries
    if count is None:  # an old kernel
        listed = kernel.read(header.name)
        count = len(listed[1]) if listed else 0
    return SetChange("destroy", header.name, header.type, removed=count)


def _lists_with(kernel: Ipset, there: dict[str, Header], name: str) -> list[str]:
    return [
        header.name
        for header in there.values()
        if header.type == "list:set"
        and any(entry.split()[0] == name for entry in kernel.entries(header.name))
    ]


def _temporary() -> str:
    return TEMPORARY + secrets.token_hex(8)


def _clean(kernel: Ipset) -> None:
    """Destroy what a crash left. What is in use stays."""
    left = [one for one in kernel.headers().values() if one.name.startswith(TEMPORARY)]
    for header in sorted(left, key=lambda one: one.type != "list:set"):
        _destroy(kernel, header.name)


def _destroy(kernel: Ipset, name: str) -> str:
    """Destroy a set; return why that could not be, or ""."""
    try:
        kernel.destroy(name)
    except Refused as error:
        if error.number == errnos.ENOENT:
            return ""
        header = kernel.header(name)
        if error.number == ipset_answers.BUSY and header is not None:
            return f"still in use by rules or lists ({header.references})"
        return error.message
    except Changed as error:
        return error.message
    return ""
