"""Notices that another program may have changed the tables; netfilter itself sends none.

There are two sources, and neither is whole, so whoever listens compares now and then as well:

* The xtables lock. Every iptables-legacy opens the lock file before it reads a table and closes
  it when it is done: see fanotify(7), which says which process it was and needs CAP_SYS_ADMIN in
  the initial user namespace, and inotify(7), which takes its place elsewhere. A program that
  takes no lock, or has a lock file of its own in its container, is not seen.
* The audit log. The kernel writes a NETFILTER_CFG record for each table that is replaced, with
  the process that did it, where it was built with CONFIG_AUDIT and audit is switched on
  (``auditctl -e 1``, which auditd does). It is read from the multicast group AUDIT_NLGRP_READLOG
  of NETLINK_AUDIT: by root in the initial network namespace only, with CAP_AUDIT_READ. Records do
  not say which network namespace they are about.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import os
import re
import select
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.kernel import lock, netlink

if TYPE_CHECKING:
    from typing import Self

# linux/inotify.h
_IN = struct.Struct("=iIII")  # watch, mask, cookie, length of the name
_IN_CLOSE, _IN_OPEN = 0x18, 0x20
_IN_CREATE, _IN_MOVED_TO, _IN_OVERFLOW = 0x100, 0x80, 0x4000
_IN_IGNORED: Final = 0x8000
_IN_ONLYDIR: Final = 0x01000000

# linux/fanotify.h
_FAN = struct.Struct("=IBBHQii")  # length, version, reserved, of metadata, mask, fd, process
_FAN_CLOSE, _FAN_OPEN, _FAN_OVERFLOW = 0x18, 0x20, 0x4000
_FAN_CLOEXEC_NONBLOCK: Final = 0x3
_FAN_MARK_ADD, _FAN_VERSION = 0x1, 3
_AT_FDCWD: Final = -100

# linux/audit.h
_NETLINK_AUDIT, _READLOG = 9, 1
_AUDIT_GET, _NETFILTER_CFG = 1000, 1325
_ADD_MEMBERSHIP: Final = 1  # NETLINK_ADD_MEMBERSHIP
_PAIR = re.compile(rb'(\w+)=("[^"]*"|\S*)')
_FAMILIES: Final = {2: 4, 10: 6}  # NFPROTO_*

_NAMED: Final = 64  # processes that are remembered from opening the lock to closing it
_READS: Final = 64  # buffers that are read in one go
_ANSWER: Final = 0.2  # seconds
_LONGEST: Final = 8970  # octets of an audit record: MAX_AUDIT_MESSAGE_LENGTH


class Actor(NamedTuple):
    """A process, as far as it could still be looked at; ``parent`` is its parent's name."""

    pid: int
    comm: str
    parent: str = ""

    def __str__(self) -> str:
        """Return the name for messages; it may hold control characters."""
        of = f", of {self.parent}" if self.parent else ""
        return f"{self.comm} (process {self.pid}{of})"


class Notice(NamedTuple):
    """Somebody closed the lock file, or replaced a table (``audit``); ``actor`` where known.

    ``family`` (4 or 6) and ``table`` are known by audit only; 0 and "" otherwise.
    """

    source: str  # "lock" or "audit"
    actor: Actor | None = None
    family: int = 0
    table: str = ""


def actor(pid: int, comm: str = "") -> Actor | None:
    """Return what /proc knows of a process, or None if it is gone and ``comm`` is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
        fields = dict(line.split(b":\t", 1) for line in lines[:8] if b":\t" in line)
        comm = comm or _text(fields[b"Name"])
        parent = _text(Path(f"/proc/{int(fields[b'PPid'])}/comm").read_bytes().strip())
    except (OSError, ValueError, KeyError):  # parent 0 has no /proc, either
        return Actor(pid, comm) if comm else None
    return Actor(pid, comm, parent)


class Notices:
    """Both sources, as far as they are to be had; a context manager.

    Open it in the initial network namespace, if possible: audit records come there only.
    ``sources`` says which there are, and ``missing`` why there is not more. ``whole`` is False
    for tests of what a process does that may not use fanotify.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self.sources: list[str] = []
        self.missing: list[str] = []
        self._lock = Path(lock.path())
        self._inotify = self._fanotify = -1
        self._audit: socket.socket | None = None
        self._of_file = self._of_directory = -1
        self._named: dict[int, Actor | None] = {}
        self._libc = ct.CDLL(None, use_errno=True)
        self._open_lock(whole)
        self._open_audit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more."""
        for fd in (self._inotify, self._fanotify):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._fanotify = -1
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    @property
    def fds(self) -> list[int]:
        """The descriptors that become readable, for poll(2)."""
        audit = -1 if self._audit is None else self._audit.fileno()
        return [fd for fd in (self._fanotify, self._inotify, audit) if fd >= 0]

    def take(self) -> list[Notice]:
        """Return what came since the last time, without waiting and without what we did."""
        found: list[Notice] = []
        if self._fanotify >= 0:
            self._take_fanotify(found)
        if self._inotify >= 0:
            self._take_inotify(found)
        if self._audit is not None:
            self._take_audit(self._audit, found)
        return found

    def forget(self) -> None:
        """Drop what this process has just caused; called after each use of the lock.

        fanotify names the process, so that nothing else is lost. inotify does not: an iptables
        that closed the lock since then goes unnoticed.
        """
        if self._fanotify < 0 and self._inotify >= 0:
            self._take_inotify([])

    # --- the lock -------------------------------------------------------------------------------

    def _open_lock(self, whole: bool) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._inotify = self._libc.inotify_init1(flags)
        if self._inotify < 0:
            self.missing.append(f"inotify: {os.strerror(ct.get_errno())}")
            return
        # the file may not exist yet, and may be made anew
        mask = _IN_CREATE | _IN_MOVED_TO | _IN_ONLYDIR
        self._of_directory = self._watch(self._lock.parent, mask)
        if self._of_directory < 0:
            self.missing.append(f"{self._lock.parent}: {os.strerror(ct.get_errno())}")
            return
        if whole:
            self._fanotify = self._libc.fanotify_init(
                ct.c_uint(_FAN_CLOEXEC_NONBLOCK), ct.c_uint(os.O_RDONLY | os.O_CLOEXEC)
            )
        if self._fanotify < 0:
            why = os.strerror(ct.get_errno()) if whole else "not asked for"
            self.missing.append(f"fanotify, which tells who it was: {why}")
        self._mark()
        self.sources.append("lock")

    def _watch(self, path: Path, mask: int) -> int:
        number: int = self._libc.inotify_add_watch(
            self._inotify, os.fsencode(path), ct.c_uint32(mask)
        )
        return number

    def _mark(self) -> None:
        """Watch the file that is there now."""
        if self._fanotify >= 0:
            done = self._libc.fanotify_mark(
                self._fanotify, ct.c_uint(_FAN_MARK_ADD), ct.c_uint64(_FAN_CLOSE | _FAN_OPEN),
                _AT_FDCWD, os.fsencode(self._lock),
            )  # fmt: skip
            if done == 0 or ct.get_errno() == 2:  # ENOENT: the directory will tell
                return
            # a filesystem that fanotify does not know
            os.close(self._fanotify)
            self._fanotify = -1
            self.missing.append(f"fanotify on {self._lock}: {os.strerror(ct.get_errno())}")
        self._of_file = self._watch(self._lock, _IN_CLOSE | _IN_OPEN)

    def _take_inotify(self, found: list[Notice]) -> None:
        for data in _reads(self._inotify, 4096):
            at = 0
            while at + _IN.size <= len(data):
                watch, mask, _, length = _IN.unpack_from(data, at)
                name = data[at + _IN.size : at + _IN.size + length].rstrip(b"\0")
                at += _IN.size + length
                if mask & _IN_OVERFLOW:
                    found.append(Notice("lock"))
                elif watch == self._of_directory:
                    if mask & (_IN_CREATE | _IN_MOVED_TO) and name == os.fsencode(self._lock.name):
                        self._mark()
                        # whoever made it may have closed it again, or else holds it
                        who = lock.holder()
                        found.append(Notice("lock", who and actor(*who)))
                elif watch == self._of_file and mask & _IN_OPEN:
                    who = lock.holder()
                    self._remember(0, who and actor(*who))
                elif watch == self._of_file and mask & _IN_CLOSE and not mask & _IN_IGNORED:
                    found.append(Notice("lock", self._named.pop(0, None)))

    def _take_fanotify(self, found: list[Notice]) -> None:
        # each event opens the file for us: no more of them at once than a process may have
        for data in _reads(self._fanotify, 32 * _FAN.size):
            at = 0
            while at + _FAN.size <= len(data):
                length, version, _, _, mask, fd, pid = _FAN.unpack_from(data, at)
                if length < _FAN.size or version != _FAN_VERSION:
                    return
                at += length
                if fd >= 0:
                    os.close(fd)
                if mask & _FAN_OVERFLOW:
                    found.append(Notice("lock"))
                elif pid == os.getpid():
                    continue
                elif mask & _FAN_CLOSE:
                    who = self._named.pop(pid, None) or actor(pid)
                    found.append(Notice("lock", who))
                elif mask & _FAN_OPEN:  # the process is still there, most likely
                    self._remember(pid, actor(pid))

    def _remember(self, pid: int, who: Actor | None) -> None:
        if who is None or who.pid == os.getpid():
            return
        while len(self._named) >= _NAMED:
            del self._named[next(iter(self._named))]
        self._named[pid] = who

    # --- audit ----------------------------------------------------------------------------------

    def _open_audit(self) -> None:
        try:
            sock = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_AUDIT
            )
        except OSError as error:
            self.missing.append(f"audit: {error.strerror}")
            return
        try:
            enabled = _enabled(sock)
            sock.setsockopt(netlink.SOL_NETLINK, _ADD_MEMBERSHIP, _READLOG)
        except OSError as error:
            sock.close()
            self.missing.append(f"audit: {error.strerror}")
            return
        self._audit = sock
        if enabled:
            self.sources.append("audit")
        else:  # it may be switched on later
            self.missing.append("audit: it is switched off")

    def _take_audit(self, sock: socket.socket, found: list[Notice]) -> None:
        for _ in range(_READS):
            try:
                data, (port, *_) = sock.recvfrom(_LONGEST + netlink.HEADER.size)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: some were lost
                found.append(Notice("audit"))
                continue
            if port == 0 and (notice := changed(data)) is not None:
                found.append(notice)


def changed(data: bytes) -> Notice | None:
    """Read a datagram of NETLINK_AUDIT; None if it is of no table here, or of our own making.

    Its length field may leave out the header, so the length of the datagram counts.
    """
    if len(data) < netlink.HEADER.size or netlink.HEADER.unpack_from(data)[1] != _NETFILTER_CFG:
        return None
    text = data[netlink.HEADER.size :].partition(b": ")[2].rstrip(b"\0\n")
    fields = dict(_PAIR.findall(text))
    try:
        family = _FAMILIES[int(fields[b"family"])]
        pid = int(fields.get(b"pid", b"0"))
    except (KeyError, ValueError):
        return None
    # nft_* are nf_tables' own, and xt_unregister comes whenever a container ends; kernels
    # before 5.8 did not say
    if fields.get(b"op", b"xt_replace") != b"xt_replace":
        return None
    if pid == os.getpid() or (pid and not _in_our_network(pid)):
        return None
    comm = _comm(fields.get(b"comm", b""))
    table = _text(fields.get(b"table", b"").partition(b":")[0])
    return Notice("audit", actor(pid, comm) if pid else None, family, table)


def _comm(value: bytes) -> str:
    """Return a name that is quoted, or in hexadecimal where it holds odd characters."""
    if value[:1] == b'"':
        return _text(value.strip(b'"'))
    with contextlib.suppress(ValueError):
        return _text(bytes.fromhex(value.decode("ascii", "replace")))
    return ""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _in_our_network(pid: int) -> bool:
    """Whether a process is in our network namespace, or may have been: it is gone."""
    try:
        theirs = Path(f"/proc/{pid}/ns/net").stat()
        ours = Path("/proc/thread-self/ns/net").stat()
    except OSError:
        return True
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _enabled(sock: socket.socket) -> bool:
    """Whether audit is switched on; True as well where the kernel does not tell us."""
    sock.send(netlink.HEADER.pack(netlink.HEADER.size, _AUDIT_GET, netlink.REQUEST, 1, 0))
    if not select.select([sock], [], [], _ANSWER)[0]:  # a thread of the kernel's own answers
        return True
    with contextlib.suppress(OSError):
        data = sock.recv(_LONGEST)
        kind = netlink.HEADER.unpack_from(data)[1]
        # struct audit_status: mask, enabled, ...
        if kind == _AUDIT_GET and len(data) >= netlink.HEADER.size + 8:
            return int(struct.unpack_from("=II", data, netlink.HEADER.size)[1]) != 0
    return True


def _reads(fd: int, size: int) -> list[bytes]:
    """Read all that is there, bounded."""
    found: list[bytes] = []
    with contextlib.suppress(OSError):  # EAGAIN, as a rule
        while len(found) < _READS:
            found.append(os.read(fd, size))
    return found
