"""Entries of the journal: who changed what and when, and what was there before.

An entry is the directory ``history/NUMBER`` of the state::

    entry.json             everything that is short; rewritten when the entry's status changes
    change.json            the change, as ``nfctl plan --json`` prints it
    before.v4, before.v6   iptables-save -c text, which iptables-restore -c puts back by hand
    before.sets            ipset save text of nfctl's own sets
    policies/NAME/         the records of the policies as they were (see ``records``)

Nothing but ``entry.json`` is ever changed; it knows the SHA-256 of the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pwd
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfctl.control.journal import durable, records
from nfctl.control.journal.records import Damaged
from nfctl.kernel.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.control.journal.records import Record

PREPARED = "prepared"
APPLIED = "applied"
UNCONFIRMED = "unconfirmed"
CONFIRMED = "confirmed"
ROLLED_BACK = "rolled back"
INTERRUPTED = "interrupted"
FAILED = "failed"
DAMAGED = "damaged"  # never written: what is read of an entry that makes no sense
STATUSES = (PREPARED, APPLIED, UNCONFIRMED, CONFIRMED, ROLLED_BACK, INTERRUPTED, FAILED)
ACTIONS = ("apply", "rollback", "repair")

FILE, CHANGE, SETS, POLICIES = "entry.json", "change.json", "before.sets", "policies"
BEFORE = {4: "before.v4", 6: "before.v6"}
_NOBODY = Process(0, -1, 0)
_VERSION = 1
_UNSET = 2**32 - 1  # the login uid of who never logged in


@dataclass(frozen=True, slots=True)
class Who:
    """Who asked for a change, and from where; what is not known is "".

    ``login`` is the user that logged in, whatever sudo(8) and su(1) made of it since
    (pam_loginuid(8)); ``ssh`` is the client's address, port and ours (SSH_CONNECTION).
    """

    user: str = ""
    uid: int = -1
    login: str = ""
    sudo_user: str = ""
    tty: str = ""
    ssh: str = ""
    pid: int = 0
    command: str = ""

    @classmethod
    def me(cls) -> Who:
        """Return who runs this process."""
        uid = os.getuid()
        return cls(
            _user(uid),
            uid,
            _login(),
            os.environ.get("SUDO_USER", ""),
            _tty(),
            os.environ.get("SSH_CONNECTION") or os.environ.get("SSH_CLIENT", ""),
            os.getpid(),
            _command(),
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _login() -> str:
    try:
        uid = int(Path("/proc/self/loginuid").read_bytes())
    except (OSError, ValueError):
        return ""
    return "" if uid == _UNSET else _user(uid)


def _tty() -> str:
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd)
        except OSError:
            continue
    return ""


def _command() -> str:
    try:
        words = Path("/proc/self/cmdline").read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    return shlex.join(words.rstrip("\0").split("\0"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``confirm`` is in seconds; ``deadline`` too, of CLOCK_BOOTTIME in ``boot_id``.

    ``reason`` says why it was rolled back or failed, ``undoes`` which entries a rollback undid,
    ``undone_by`` which one undid this. ``more`` is what else was noted. ``warning`` is why the
    entry cannot be read, if it cannot: its status is "damaged" then.
    """

    number: int
    path: Path
    status: str = DAMAGED
    action: str = ""
    policy: str = ""
    when: str = ""
    who: Who = Who()
    files: tuple[tuple[str, str], ...] = ()
    confirm: float | None = None
    deadline: float | None = None
    boot_id: str = ""
    process: Process = _NOBODY
    undoes: tuple[int, ...] = ()
    undone_by: int | None = None
    reason: str = ""
    summary: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    @property
    def families(self) -> list[int]:
        """The families of which there is a text from before."""
        return [family for family, name in BEFORE.items() if name in self.digests]

    def before_text(self, family: int) -> str:
        """Return iptables-save -c text of a family's tables before; "" if nothing was kept."""
        return self._text(BEFORE[family])

    @property
    def sets(self) -> str:
        """What ipset save would have said of our sets before."""
        return self._text(SETS)

    @property
    def change(self) -> dict[str, Any]:
        """The change as a JSON document."""
        found = self._text(CHANGE)
        return json.loads(found) if found else {}

    def record_before(self, name: str | None = None) -> Record | None:
        """Return the record of a policy (this entry's) as it was; None if there was none."""
        return records.read(self.path / POLICIES / records.check_name(name or self.policy))

    def records_before(self) -> list[Record]:
        """Return the records of all policies as they were."""
        try:
            names = sorted(os.listdir(self.path / POLICIES))
        except FileNotFoundError:
            return []
        found = (records.read(self.path / POLICIES / name) for name in names)
        return [record for record in found if record is not None]

    def _text(self, name: str) -> str:
        if self.status == DAMAGED:
            raise Damaged(self.warning, hint=f"what is left of entry {self.number}: {self.path}")
        if name not in self.digests:
            return ""
        file = self.path / name
        try:
            data = durable.read(file)
        except FileNotFoundError:
            raise Damaged(f"{file} is missing") from None
        except OSError as error:
            raise Damaged(f"{file} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != self.digests[name]:
            raise Damaged(f"{file} was changed by another hand")
        return data.decode("utf-8", "surrogateescape")

    def with_(self, status: str, more: dict[str, Any]) -> Entry:
        """Return the entry with another status, and with other facts; unknown ones are noted."""
        if status not in STATUSES:
            msg = f"there is no status {status!r}"
            raise ValueError(msg)
        known = {key: more[key] for key in _CHANGEABLE & more.keys()}
        if "undoes" in known:
            known["undoes"] = tuple(known["undoes"])
        noted = {key: value for key, value in more.items() if key not in _CHANGEABLE}
        return replace(self, status=status, more=self.more | noted, **known)

    def document(self) -> dict[str, Any]:
        """Return the entry for ``--json``: see ``nfctl.cli.history`` for its keys."""
        return {
            "number": self.number,
            "when": self.when,
            "action": self.action,
            "policy": self.policy,
            "status": self.status,
            "reason": self.reason,
            "who": asdict(self.who),
            "files": [{"file": file, "sha256": sha} for file, sha in self.files],
            "summary": self.summary,
            "confirm": self.confirm,
            "deadline": self.deadline,
            "boot_id": self.boot_id,
            "undoes": list(self.undoes),
            "undone_by": self.undone_by,
            "more": self.more,
            "warning": self.warning,
        }

    def bytes(self) -> bytes:
        """Return what ``entry.json`` holds."""
        stored = {"version": _VERSION, **self.document()}
        del stored["warning"]
        stored |= {"process": list(self.process), "digests": self.digests}
        return json.dumps(stored, indent=1).encode() + b"\n"


_CHANGEABLE = {
    "action", "policy", "confirm", "deadline", "boot_id", "undoes", "undone_by", "reason",
    "summary",
}  # fmt: skip


# --- reading ------------------------------------------------------------------------------------


def read(path: Path) -> Entry:
    """Return the entry in a directory; one that makes no sense says so in its ``warning``.

    FileNotFoundError if the directory is gone.
    """
    number = int(path.name)
    file = path / FILE
    try:
        data = durable.read(file)
    except FileNotFoundError:
        path.lstat()
        return Entry(number, path, warning=f"{file} is missing")
    except OSError as error:
        return Entry(number, path, warning=f"{file}: {error.strerror}")
    try:
        return _entry(number, path, json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        return Entry(number, path, warning=f"{file} was changed by another hand{why}")


def _entry(number: int, path: Path, found: Any) -> Entry:
    take = _Taker(found)
    if take("version", int) != _VERSION:
        msg = "another version of nfctl wrote it"
        raise ValueError(msg)
    if take("number", int) != number:
        msg = "its number is another one"
        raise ValueError(msg)
    status = take("status", str)
    if status not in STATUSES:
        msg = f"no status is called {status!r}"
        raise ValueError(msg)
    about = take("who", dict)
    who = Who(**{key: _Taker(about)(key, type(value)) for key, value in asdict(Who()).items()})
    pid, start, namespace = (_is(value, int) for value in take("process", list))
    return Entry(
        number,
        path,
        status,
        take("action", str),
        take("policy", str),
        take("when", str),
        who,
        tuple((_is(one["file"], str), _is(one["sha256"], str)) for one in take("files", list)),
        take("confirm", int, float, type(None)),
        take("deadline", int, float, type(None)),
        take("boot_id", str),
        Process(pid, start, namespace),
        tuple(_is(value, int) for value in take("undoes", list)),
        take("undone_by", int, type(None)),
        take("reason", str),
        {_is(key, str): _is(value, int) for key, value in take("summary", dict).items()},
        take("more", dict),
        {_is(key, str): _is(value, str) for key, value in take("digests", dict).items()},
    )


class _Taker:
    """Takes values of known types out of a document."""

    def __init__(self, found: Any) -> None:
        self._found = _is(found, dict)

    def __call__(self, key: str, *types: type) -> Any:
        if key not in self._found:
            msg = f'"{key}" is missing'
            raise ValueError(msg)
        return _is(self._found[key], *types)


def _is(value: Any, *types: type) -> Any:
    if type(value) not in types or (type(value) is float and not math.isfinite(value)):
        msg = f"{str(value)[:40]!r} is out of place"
        raise ValueError(msg)
    return value


def digests(files: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files}
