"""What the kernel answers about ipsets, in words (enum ipset_errno in ip_set.h)."""

from __future__ import annotations

import errno as errnos
import os
from typing import Final

from nfctl.errors import BadInput, Changed, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import ipset_types as t

PROTOCOL, FIND_TYPE, MAX_SETS, BUSY, EXIST_SETNAME2, TYPE_MISMATCH, EXIST = range(4097, 4104)
REFERENCED = 4108
_TYPE_SPECIFIC = 4352
_ANSWERS: Final = {
    PROTOCOL: "the kernel does not understand it",
    FIND_TYPE: "the kernel has no such type of set",
    MAX_SETS: "there are too many sets",
    BUSY: "it is in use by a rule or another set",
    EXIST_SETNAME2: "there is a set of the new name",
    TYPE_MISMATCH: "sets of different types do not take each other's place",
    EXIST: "it is there already, or is not there",
    4104: "the prefix length does not fit the type of the set",
    4105: "the netmask is not valid",
    4106: "the address is of the other family",
    4107: "the set was created without the option timeout",
    REFERENCED: "it is in use by a rule or another set",
    4109: "an IPv4 address is needed",
    4110: "an IPv6 address is needed",
    4111: "the set was created without the option counters",
    4112: "the set was created without the option comment",
    4113: "the markmask is not valid",
    4114: "the set was created without the option skbinfo",
    4115: "netmask and bitmask exclude each other",
    errnos.ENOENT: "there is no set of this name",
    errnos.EEXIST: "there is a set of this name",
    errnos.ENOMEM: "the kernel has no memory for it",
    errnos.ERANGE: "the range is too large: at most 2^20 addresses at once",
}
_HASH: Final = {
    4352: "the set is full: its option maxelem is the most it takes",
    4353: "the null address, and a network of prefix length 0, cannot be in such a set",
    4354: "the protocol is not valid",
    4355: "the protocol is missing",
    4356: "ranges are not supported",
    4357: "the range is not valid",
}
_BITMAP: Final = {
    4352: "it is outside of the set's range",
    4353: "the range is too large: a bitmap has at most 65536 elements",
}
_LISTS: Final = {
    4352: "there is no set of this name",
    4353: "a list of sets cannot be in a list",
    4354: "before and after need the name of a member",
    4355: "the set it is to stand before or after is no member",
    4356: "the list is full",
    4357: "the set is a member already, or is not at that place",
}
_SPECIFIC: Final = {"hash": _HASH, "bitmap": _BITMAP, "list": _LISTS}


class Refused(NfctlError):
    """The kernel refused a command about a set; ``number`` is its answer."""

    number = 0

    @classmethod
    def with_answer(cls, answer: int, message: str) -> Refused:
        """Return the error for an answer."""
        error = cls(message)
        error.number = answer
        return error


class EntryError(BadInput):
    """An entry of a set is wrong; ``index`` is its place among the entries, from 0."""

    index = 0
    entry = ""
    why = ""

    @classmethod
    def about(cls, name: str, entry: str, index: int, why: str, hint: str = "") -> EntryError:
        """Return the error about an entry of the set ``name``."""
        error = cls(f"set {name}: entry {entry!r}: {why}", hint=hint)
        error.index, error.entry, error.why = index, entry, why
        return error

    def of(self, name: str) -> EntryError:
        """Return the same error about a set of another name."""
        return self.about(name, self.entry, self.index, self.why, self.hint)


def why(answer: int, type_name: str) -> str:
    """Return the words for an answer about a set of a type."""
    specific = _SPECIFIC.get(type_name.partition(":")[0], {})
    known = specific.get(answer) or _ANSWERS.get(answer)
    if known is None and answer < _TYPE_SPECIFIC - 256:
        known = os.strerror(answer)
    return known or f"the kernel refuses it (answer {answer})"


def refused(answer: int, trouble: str, type_name: str) -> NfctlError:
    """Return the error for what the kernel answers."""
    if answer in {errnos.EPERM, errnos.EACCES}:
        msg = "ipsets cannot be used"
        return NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root")
    if answer == FIND_TYPE:
        kind = t.TYPES.get(type_name)
        module = kind.module if kind else "the type's"
        msg = f"{trouble}: the kernel has no ipset type {type_name}"
        hint = f"CONFIG_{module.upper()} is needed (module {module})" if kind else ""
        return Unsupported(msg, hint=hint)
    if answer == errnos.EBUSY:
        return Changed(f"{trouble}: another program is busy with it", hint="try again")
    return Refused.with_answer(answer, f"{trouble}: {why(answer, type_name)}")
