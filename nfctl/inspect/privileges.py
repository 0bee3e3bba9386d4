"""Giving up root: another user, and of all capabilities only the few that are needed.

A worker reads what anybody on the network sends, so it runs as a user that owns nothing, with
CAP_NET_ADMIN alone, without which nfnetlink takes no message. See capabilities(7), capset(2),
prctl(2), credentials(7) and, for what is read back, proc_pid_status(5).
"""

from __future__ import annotations

import ctypes as ct
import errno as errnos
import os
import pwd
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, NotPermitted
from nfctl.kernel.privileges import CAP_NET_ADMIN, in_user_namespace

if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/capability.h
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
_CAPABILITY_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")  # struct __user_cap_header_struct: version, process id
_DATA = struct.Struct("=6I")  # two __user_cap_data_struct: effective, permitted, inheritable

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_MAX_CAPABILITIES = 64
_MAX_ID = 0xFFFFFFFE  # the one above means "no change" to setresuid(2)
_STATUS = Path("/proc/self/status")
_libc = ct.CDLL(None, use_errno=True)


class Account(NamedTuple):
    """A user to become: ``name`` as it was asked for."""

    name: str
    uid: int
    gid: int


class Dropped(NamedTuple):
    """Who the process is now, and in ``notes`` what could not be given up."""

    uid: int
    gid: int
    notes: tuple[str, ...] = ()


def account(user: str) -> Account:
    """Return the user of that name, or of that number; BadInput if there is none.

    A number needs no entry in passwd(5): its group is the same number then.
    """
    try:
        if user.isascii() and user.isdecimal():
            if (uid := int(user)) > _MAX_ID:
                raise KeyError
            try:
                return Account(user, uid, pwd.getpwuid(uid).pw_gid)
            except KeyError:
                return Account(user, uid, uid)
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a NUL, or no text at all
        msg = f"there is no user {user!r}"
        raise BadInput(msg, hint="getent passwd lists them; a number may be one as well") from None
    return Account(user, entry.pw_uid, entry.pw_gid)


def drop(user: str | Account, keep: Iterable[int] = (CAP_NET_ADMIN,)) -> Dropped:
    """Become ``user`` with only the capabilities ``keep``, for good; nothing gets them back.

    No supplementary groups; the capabilities permitted and effective, not inheritable nor
    ambient; an empty bounding set; PR_SET_NO_NEW_PRIVS; no core dumps, no ptrace by others of
    that user. Without CAP_SETUID and CAP_SETGID, or in a user namespace that does not map the
    user, one stays who one is and ``notes`` say so. What /proc says afterwards is compared.

    Raises BadInput for an unknown user; NotPermitted where a capability to keep is not there,
    where the process has several threads (each has its own capabilities), and where it is not so
    afterwards: end the process then.
    """
    who = user if isinstance(user, Account) else account(user)
    wanted = _mask(keep)
    before = _Status.read()
    if before.threads != 1:
        msg = f"privileges cannot be dropped in a process with {before.threads} threads"
        raise NotPermitted(msg, hint="drop them before the first thread is started")
    if missing := wanted & ~before.permitted:
        msg = f"capability {', '.join(map(str, _numbers(missing)))} is needed and not there"
        raise NotPermitted(msg, hint="run as root (12 is CAP_NET_ADMIN)")
    notes: list[str] = []
    bounding = _empty_bounding_set(before)
    if bounding:
        notes.append("the bounding set of capabilities stays: CAP_SETPCAP is missing")
    if why := _become(who, before):
        name = _name(os.geteuid())
        notes.append(f"the process stays user {name}, not {who.name}: {why}")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _capset(wanted)
    _prctl(_PR_SET_KEEPCAPS, 0)
    # the last: a process that is not dumpable owns less of its own /proc
    after = _Status.read()
    _prctl(_PR_SET_DUMPABLE, 0)
    stays = before if why else before._replace(uids=(who.uid,) * 4, gids=(who.gid,) * 4, groups=())
    expected = stays._replace(
        inheritable=0, permitted=wanted, effective=wanted, bounding=bounding, ambient=0,
        no_new_privs=1,
    )  # fmt: skip
    if differing := after.differences(expected):
        msg = f"privileges could not be dropped: {'; '.join(differing)}"
        raise NotPermitted(msg)
    return Dropped(after.uids[1], after.gids[1], tuple(notes))


class _Status(NamedTuple):
    """What proc_pid_status(5) says of privileges; capabilities as bit masks."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    threads: int
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: int

    @classmethod
    def read(cls) -> _Status:
        try:
            lines = _STATUS.read_text(encoding="utf-8", errors="replace").splitlines()
            fields = {name: value.split() for name, _, value in (x.partition(":") for x in lines)}
            uids, gids, groups = (tuple(map(int, fields[x])) for x in ("Uid", "Gid", "Groups"))
            threads, no_new_privs = (int(fields[name][0]) for name in ("Threads", "NoNewPrivs"))
            names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
            inh, prm, eff, bnd, amb = (int(fields[name][0], 16) for name in names)
        except (OSError, KeyError, ValueError, IndexError) as error:
            msg = f"{_STATUS} does not say which privileges there are: {error}"
            raise NotPermitted(msg, hint="is /proc mounted?") from None
        return cls(uids, gids, groups, threads, inh, prm, eff, bnd, amb, no_new_privs)

    def differences(self, expected: _Status) -> list[str]:
        return [
            f"{name} is {_shown(name, now)}, not {_shown(name, then)}"
            for name, now, then in zip(self._fields, self, expected, strict=True)
            if now != then
        ]


def _shown(name: str, value: object) -> str:
    masks = {"inheritable", "permitted", "effective", "bounding", "ambient"}
    return f"{value:#x}" if name in masks else str(value)


def _become(who: Account, before: _Status) -> str:
    """Become a user; return why not where that is no reason to go no further, else ""."""
    needed = 1 << CAP_SETUID | 1 << CAP_SETGID
    if before.effective & needed != needed:
        if before.uids == (who.uid,) * 4 and before.gids == (who.gid,) * 4 and not before.groups:
            return ""
        return "CAP_SETUID and CAP_SETGID are missing"
    _prctl(_PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups([])
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    except OSError as error:
        # setgroups is refused in a user namespace made by a user (EPERM), and what that does
        # not map is no id there (EINVAL)
        if error.errno in {errnos.EPERM, errnos.EINVAL} and _in_user_namespace():
            _back(before)
            return "the user namespace does not allow it"
        msg = f"the process cannot become user {who.name}: {error.strerror}"
        raise NotPermitted(msg) from None
    return ""


def _back(before: _Status) -> None:
    """Undo the first half of becoming someone, so that what is verified is what was."""
    try:
        if set(os.getgroups()) != set(before.groups):
            os.setgroups(before.groups)
        os.setresgid(*before.gids[:3])
    except OSError as error:
        msg = f"the process is neither who it was nor who it should be: {error.strerror}"
        raise NotPermitted(msg) from None


def _in_user_namespace() -> bool:
    try:
        return in_user_namespace()
    except OSError:
        return False


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return str(uid)


def _empty_bounding_set(before: _Status) -> int:
    """Drop what a program executed later could get; return what is left."""
    if not before.effective >> CAP_SETPCAP & 1:
        return before.bounding
    for number in range(_MAX_CAPABILITIES):
        if _call_prctl(_PR_CAPBSET_READ, number) < 0:
            break  # EINVAL: the kernel knows no more
        _prctl(_PR_CAPBSET_DROP, number)
    return 0


def _mask(numbers: Iterable[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def _numbers(mask: int) -> list[int]:
    return [number for number in range(_MAX_CAPABILITIES) if mask >> number & 1]


def _call_prctl(option: int, value: int) -> int:
    zero = ct.c_ulong(0)
    return int(_libc.prctl(ct.c_int(option), ct.c_ulong(value), zero, zero, zero))


def _prctl(option: int, value: int) -> None:
    if _call_prctl(option, value) != 0:
        number = ct.get_errno()
        msg = f"privileges could not be dropped: prctl({option}): {os.strerror(number)}"
        raise NotPermitted(msg)


def _capset(mask: int) -> None:
    """Have these capabilities permitted and effective, none inheritable."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ct.create_string_buffer(_HEADER.pack(_CAPABILITY_VERSION_3, 0), _HEADER.size)
    data = ct.create_string_buffer(_DATA.pack(low, low, 0, high, high, 0), _DATA.size)
    if _libc.capset(header, data) != 0:
        number = ct.get_errno()
        msg = f"privileges could not be dropped: capset: {os.strerror(number)}"
        raise NotPermitted(msg)
