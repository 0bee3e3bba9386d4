"""ipsets in the kernel, through nfnetlink (linux/netfilter/ipset/ip_set.h, NFNL_SUBSYS_IPSET).

An :class:`Ipset` is a socket in the network namespace that the thread was in when it was opened.
Entries go to the kernel some thousand a message (IPSET_ATTR_ADT), as ``ipset restore`` sends
them, and come back as the bytes that the kernel lists: ``ipset_entry`` makes text of them.

Types and their options are in ``ipset_types``. A swap exchanges the contents of two names at
once, for rules and for lists of sets that refer to them.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import errno as errnos
import os
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nfctl.errors import BadInput, NotPermitted, Unsupported
from nfctl.kernel import ipset_types as t
from nfctl.kernel import netlink, netns
from nfctl.kernel.ipset_answers import (
    BUSY,
    EXIST_SETNAME2,
    REFERENCED,
    EntryError,
    Refused,
    refused,
    why,
)
from nfctl.kernel.ipset_entry import Entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_SUBSYS = 6 << 8  # NFNL_SUBSYS_IPSET
_PROTOCOL, _CREATE, _DESTROY, _FLUSH, _RENAME, _SWAP, _LIST = range(1, 8)
_ADD, _DEL, _TYPE = 9, 10, 13
# attributes of a command
_A_PROTOCOL, _A_SETNAME, _A_TYPENAME, _A_REVISION, _A_FAMILY, _A_FLAGS = range(1, 7)
_A_DATA, _A_ADT, _A_LINENO, _A_REVISION_MIN = 7, 8, 9, 10
_A_SETNAME2 = _A_TYPENAME
_VERSION = 6  # of the protocol: what every kernel since 2.6.39 speaks
_LIST_SETNAME, _LIST_HEADER = 1 << 1, 1 << 2

_EXCL = 0x200  # NLM_F_EXCL: creating what is there, or adding it, is an error
_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr and nfgenmsg
_SIZE = struct.Struct("=H")
_NFGEN = 4  # bytes of the latter
_BUFFER: Final = 1 << 20  # bytes
_PART: Final = 1 << 17  # bytes; the kernel's parts and its errors are smaller
_MOST_ADT: Final = 60000  # bytes of entries in a message
_TRIES = 200  # of what is refused while somebody lists the set
_PAUSE = 0.01  # seconds between them

_NFPROTO: Final = {0: 0, 4: 2, 6: 10}
_FAMILY: Final = {number: family for family, number in _NFPROTO.items()}


@dataclass(slots=True)
class Header:
    """What the kernel knows of a set: ``family`` is 4, 6 or 0, ``options`` as in ipset(8).

    ``entries`` is how many there are, None where the kernel does not tell; ``references`` how
    many rules and lists use it.
    """

    name: str
    type: str
    family: int
    revision: int
    options: dict[str, str] = field(default_factory=dict)
    references: int = 0
    entries: int | None = None

    @property
    def spec(self) -> str:
        """What stands behind the name in a ``create`` line of ``ipset save``."""
        words = [self.type]
        if self.type.startswith("hash:") and self.family:
            words += ["family", "inet" if self.family == 4 else "inet6"]
        for name, value in self.options.items():
            words += [name, value] if value else [name]
        return " ".join(words)

    @property
    def codec(self) -> Entries:
        """What makes text of the set's entries; Unsupported for an unknown type."""
        kind = t.TYPES.get(self.type)
        if kind is None:
            msg = f"set {self.name} is of an unknown type, {self.type}"
            raise Unsupported(msg)
        return Entries(kind, self.family)


class Ipset:
    """A connection to the kernel's ipsets; use it in a ``with`` block, in one thread.

    ``pause`` waits so many seconds; it is called where the kernel is busy with a set.
    Raises NotPermitted without CAP_NET_ADMIN, Unsupported where the kernel has no ipsets.
    """

    def __init__(self, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._pause = pause
        self._sequence = 0
        self._revisions: dict[tuple[str, int], int] = {}
        self._socket = netlink.netfilter()
        try:
            self._socket.setsockopt(netlink.SOL_NETLINK, netlink.CAP_ACK, 1)
            netlink.size_buffer(self._socket, _BUFFER)
            # The kernel has answered when send(2) returns, and made the next part at recv(2).
            self._socket.setblocking(False)
            self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Ipset:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    # --- sets ---------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        type_name: str,
        family: int = 0,
        options: Mapping[str, str] | None = None,
        *,
        exist: bool = False,
    ) -> None:
        """Create a set. With ``exist`` one of the same type and options may be there already.

        Raises BadInput for a wrong name, type or option, Unsupported where the kernel lacks the
        type, Refused (EEXIST) where there is another.
        """
        kind = t.set_type(type_name)
        family = t.set_family(kind, family)
        body = t.encode_options(kind, family, options or {})
        attrs = (
            _name(_A_SETNAME, t.check_name(name)),
            _name(_A_TYPENAME, kind.name.encode()),
            netlink.attribute(_A_REVISION, bytes([self.revision(kind, family)])),
            netlink.attribute(_A_FAMILY, bytes([_NFPROTO[family]])),
            netlink.attribute(_A_DATA | t.NESTED, body),
        )
        flags = netlink.REQUEST | netlink.ACK | (0 if exist else _EXCL)
        answer, _ = self._ask(_CREATE, b"".join(attrs), flags)
        if answer:
            raise refused(answer, f"set {name} cannot be created", kind.name)

    def destroy(self, name: str) -> None:
        """Destroy a set; Refused (BUSY) while a rule or a list uses it."""
        self._patiently(_DESTROY, name, _setname(name), f"set {name} cannot be destroyed")

    def flush(self, name: str) -> None:
        """Remove all entries of a set."""
        self._do(_FLUSH, _setname(name), f"set {name} cannot be emptied")

    def rename(self, name: str, new: str) -> None:
        """Give a set another name; Refused (REFERENCED) while a rule or a list uses it."""
        body = _setname(name) + _name(_A_SETNAME2, t.check_name(new))
        self._patiently(_RENAME, name, body, f"set {name} cannot be renamed to {new}")

    def swap(self, name: str, other: str) -> None:
        """Exchange two sets, at once for all that refer to them.

        Refused (TYPE_MISMATCH) unless what their entries consist of and their family agree.
        """
        body = _setname(name) + _name(_A_SETNAME2, t.check_name(other))
        trouble = f"sets {name} and {other} cannot be swapped"
        try:
            self._patiently(_SWAP, name, body, trouble)
        except Refused as error:
            if error.number == EXIST_SETNAME2:  # here it means that there is none
                raise refused(errnos.ENOENT, f"{trouble}: {other}", "") from None
            raise

    def revision(self, kind: t.SetType, family: int) -> int:
        """Return the newest revision of a type that the kernel and this module both know."""
        key = kind.name, family
        if key not in self._revisions:
            body = _name(_A_TYPENAME, kind.name.encode()) + netlink.attribute(
                _A_FAMILY, bytes([_NFPROTO[family]])
            )
            answer, found = self._ask(_TYPE, body)
            if answer:
                raise refused(answer, f"sets of {kind.name} cannot be had", kind.name)
            newest = found.get(_A_REVISION, b"\0")[0]
            oldest = found.get(_A_REVISION_MIN, b"\0")[0]
            self._revisions[key] = max(oldest, min(newest, kind.revision))
        return self._revisions[key]

    # --- entries ------------------------------------------------------------------------------

    def add(self, header: Header, entries: Iterable[str]) -> None:
        """Add entries, given as in ipset(8), to a set that is there. Twice the same is fine.

        ``header`` says name, type and family. Raises EntryError for one that cannot be parsed
        or is refused; those before it may have been added.
        """
        self.add_packed(header.name, header.type, pack(header, entries))

    def add_packed(self, name: str, type_name: str, packed: Packed) -> None:
        """Add entries that were packed before, for whichever set of the type."""
        self._entries(_ADD, name, type_name, packed)

    def delete(self, header: Header, entries: Iterable[str]) -> None:
        """Delete entries. One that is not there is fine."""
        self._entries(_DEL, header.name, header.type, pack(header, entries))

    def _entries(self, command: int, name: str, type_name: str, packed: Packed) -> None:
        start = _setname(name) + netlink.attribute(_A_LINENO, bytes(4))
        for data in packed.parts:
            answer, line = self._ask_line(command, start + data)
            if answer:
                self._blame(answer, line, name, type_name, packed)

    def _blame(self, answer: int, line: int, name: str, type_name: str, packed: Packed) -> None:
        if answer in {errnos.EPERM, errnos.ENOENT, errnos.ENOMEM, errnos.EBUSY} or not line:
            raise refused(answer, f"the entries of set {name} cannot be changed", type_name)
        entry = packed.entries[line - 1]
        raise EntryError.about(name, entry, line - 1, why(answer, type_name))

    # --- listing ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all sets."""
        return [header.name for header, _ in self._dump("", _LIST_SETNAME)]

    def headers(self) -> dict[str, Header]:
        """Return what is known of each set, by their names, without entries."""
        return {header.name: header for header, _ in self._dump("", _LIST_HEADER)}

    def header(self, name: str) -> Header | None:
        """Return what is known of a set; None where there is none of this name."""
        for header, _ in self._dump(name, _LIST_HEADER):
            return header
        return None

    def exists(self, name: str) -> bool:
        """Whether there is a set of this name."""
        return self.header(name) is not None

    def read(self, name: str) -> tuple[Header, list[bytes]] | None:
        """Return a set and its entries, as the kernel lists them; None where there is none."""
        for header, entries in self._dump(name, 0):
            return header, entries
        return None

    def entries(self, name: str) -> list[str]:
        """Return the entries of a set as text; Refused (ENOENT) where there is none."""
        found = self.read(name)
        if found is None:
            raise refused(errnos.ENOENT, f"set {name} cannot be listed", "")
        return list(map(found[0].codec.text, found[1]))

    def save(self, name: str) -> str:
        """Return what ``ipset save`` prints of a set; "" where there is none."""
        found = self.read(name)
        if found is None:
            return ""
        header, entries = found
        text, start = header.codec.text, f"add {name} "
        lines = [start + text(entry) for entry in entries]
        return "\n".join([f"create {name} {header.spec}", *lines, ""])

    def _dump(self, name: str, flags: int) -> list[tuple[Header, list[bytes]]]:
        body = _setname(name) if name else b""
        if flags:
            body += t.u32(_A_FLAGS, flags)
        found: list[tuple[Header, list[bytes]]] = []
        for data, start, end in self._parts(_LIST, body, name):
            attrs: dict[int, tuple[int, int]] = {
                kind: (at, stop) for kind, at, stop in netlink.attributes(data, start, end)
            }
            if _A_SETNAME not in attrs:
                continue
            shown = _string(data, attrs[_A_SETNAME])
            if not found or found[-1][0].name != shown:
                found.append((Header(shown, "", 0, 0), []))
            header, entries = found[-1]
            if _A_TYPENAME in attrs:
                _fill(header, data, attrs)
            if _A_ADT in attrs:
                _collect(entries, data, *attrs[_A_ADT])
        return found

    # --- messages -----------------------------------------------------------------------------

    def _greet(self) -> None:
        """See that there are ipsets, and that we may use them."""
        answer, _ = self._ask(_PROTOCOL, b"")
        if answer in {errnos.EPERM, errnos.EACCES}:
            raise refused(answer, "ipsets cannot be used", "")
        if answer:
            msg = "the kernel has no ipsets"
            raise Unsupported(msg, hint="CONFIG_IP_SET is needed (module ip_set)")

    def _do(self, command: int, body: bytes, trouble: str) -> None:
        answer, _ = self._ask(command, body)
        if answer:
            raise refused(answer, trouble, "")

    def _patiently(self, command: int, name: str, body: bytes, trouble: str) -> None:
        """Do what the kernel refuses while somebody lists the set; try again for a while."""
        answer = 0
        for _ in range(_TRIES):
            # with NLM_F_EXCL what is not there cannot be destroyed
            answer, _ = self._ask(command, body, netlink.REQUEST | netlink.ACK | _EXCL)
            if answer in {BUSY, REFERENCED}:  # by rules and lists, or by such a listing
                header = self.header(name)
                if header is None or header.references:
                    break
                answer = errnos.EBUSY
            if answer != errnos.EBUSY:
                break
            self._pause(_PAUSE)
        if answer:
            raise refused(answer, trouble, "")

    def _ask(
        self, command: int, body: bytes, flags: int = netlink.REQUEST | netlink.ACK
    ) -> tuple[int, dict[int, bytes]]:
        """Send a command; return its error, 0 for none, and the attributes of an answer."""
        self._send(command, flags, body)
        found: dict[int, bytes] = {}
        for data, kind, start, end in self._answers():
            if kind == netlink.NLMSG_ERROR:
                return netlink.error(data, start), found
            found = netlink.values(data[start + _NFGEN : end])
        raise AssertionError

    def _ask_line(self, command: int, body: bytes) -> tuple[int, int]:
        """Send entries; return the error and the line of the entry it is about, 0 if unknown."""
        self._send(command, netlink.REQUEST | netlink.ACK, body)
        for data, kind, start, end in self._answers():
            if kind == netlink.NLMSG_ERROR:
                answer = netlink.error(data, start)
                # the request comes back, and our attribute of the line is filled in
                at = start + netlink.ERRNO.size + netlink.HEADER.size + _NFGEN
                for attr, value, stop in netlink.attributes(data, at, end):
                    if attr == _A_LINENO and stop - value == 4:
                        return answer, int(struct.unpack_from("=I", data, value)[0])
                return answer, 0
        raise AssertionError

    def _parts(self, command: int, body: bytes, name: str) -> Iterator[tuple[bytes, int, int]]:
        """Yield the attributes of each message of a list: the data, where they start and end."""
        self._send(command, netlink.REQUEST | netlink.ACK | netlink.DUMP, body)
        for data, kind, start, end in self._answers():
            if kind in {netlink.NLMSG_ERROR, netlink.NLMSG_DONE}:
                answer = netlink.error(data, start)
                if answer and not (answer == errnos.ENOENT and name):
                    trouble = f"set {name} cannot be listed" if name else "ipsets cannot be listed"
                    raise refused(answer, trouble, "")
                return
            yield data, start + _NFGEN, end

    def _send(self, command: int, flags: int, body: bytes) -> None:
        body = _START + body
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        head = _HEADER.pack(
            20 + len(body), _SUBSYS | command, flags, self._sequence, 0, _NFPROTO[4], 0, 0
        )
        try:
            self._socket.send(head + body)
        except OSError as error:
            raise refused(error.errno or errnos.EIO, "ipsets cannot be reached", "") from None

    def _answers(self) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield the answers to what was sent last: the data, type, start and end of each.

        Of a list that cannot be, some kernels say so twice; the second time is left for later.
        """
        while True:
            try:
                data = self._socket.recv(_PART)
            except OSError as error:
                trouble = "the kernel gives no answer about ipsets"
                raise refused(error.errno or errnos.EIO, trouble, "") from None
            for kind, _, sequence, start, end in netlink.messages(data):
                if sequence == self._sequence:
                    yield data, kind, start, end


@dataclass(slots=True)
class Packed:
    """Entries as they go to the kernel, some thousand in each part."""

    entries: list[str]
    parts: list[bytes]


def pack(header: Header, entries: Iterable[str]) -> Packed:
    """Encode entries of a set of a type and family; EntryError. Nothing is asked of the kernel."""
    encode = header.codec.encode
    given = list(entries)
    parts: list[bytes] = []
    bodies: list[bytes] = []
    size = 0
    for line, entry in enumerate(given, 1):
        try:
            body = encode(entry, line)
        except BadInput as error:
            wrong = EntryError.about(header.name, entry, line - 1, error.message, error.hint)
            raise wrong from None
        if size + len(body) > _MOST_ADT:
            parts.append(netlink.attribute(_A_ADT | t.NESTED, b"".join(bodies)))
            bodies, size = [], 0
        bodies.append(body)
        size += len(body)
    if bodies:
        parts.append(netlink.attribute(_A_ADT | t.NESTED, b"".join(bodies)))
    return Packed(given, parts)


def check(
    name: str, type_name: str, family: int, options: Mapping[str, str], entries: Iterable[str]
) -> None:
    """See whether a set could be, as far as that shows without a kernel; BadInput, EntryError."""
    t.check_name(name)
    kind = t.set_type(type_name)
    family = t.set_family(kind, family)
    t.encode_options(kind, family, options)
    pack(Header(name, kind.name, family, 0), entries)


@contextlib.contextmanager
def scratch() -> Iterator[Ipset]:
    """Give ipsets of a network namespace that nobody else sees and that goes with the block.

    The thread is in that namespace only while the socket is made. NotPermitted without
    CAP_SYS_ADMIN.
    """
    with contextlib.ExitStack() as stack:
        with _elsewhere():
            opened = stack.enter_context(Ipset())
        yield opened


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ct.CDLL(None, use_errno=True)
        if libc.unshare(netns.CLONE_NEWNET):  # os.unshare() came with Python 3.12
            msg = f"no network namespace can be made: {os.strerror(ct.get_errno())}"
            raise NotPermitted(msg, hint="CAP_SYS_ADMIN is needed: run as root")
        try:
            yield
        finally:
            netns._setns(here, "the one before")
    finally:
        os.close(here)


# --- attributes -----------------------------------------------------------------------------------

_START: Final = netlink.attribute(_A_PROTOCOL, bytes([_VERSION]))


def _name(kind: int, data: bytes) -> bytes:
    return netlink.attribute(kind, data + b"\0")


def _setname(name: str) -> bytes:
    # whatever is there may be named, also what check_name() would not have
    return _name(_A_SETNAME, name.encode("utf-8", "surrogateescape"))


def _string(data: bytes, place: tuple[int, int]) -> str:
    value = data[place[0] : place[1]]
    return value.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _fill(header: Header, data: bytes, attrs: dict[int, tuple[int, int]]) -> None:
    header.type = _string(data, attrs[_A_TYPENAME])
    if _A_FAMILY in attrs:
        header.family = _FAMILY.get(data[attrs[_A_FAMILY][0]], 0)
    if _A_REVISION in attrs:
        header.revision = data[attrs[_A_REVISION][0]]
    if _A_DATA not in attrs:
        return
    start, end = attrs[_A_DATA]
    found = netlink.values(data[start:end])
    kind = t.TYPES.get(header.type)
    if kind is not None:
        header.options = t.decode_options(kind, found)
    header.references = t.u32_in(found.get(t.REFERENCES, b""))
    if t.ELEMENTS in found:
        header.entries = t.u32_in(found[t.ELEMENTS])


def _collect(entries: list[bytes], data: bytes, at: int, end: int) -> None:
    """Append the attributes of each entry in an ADT attribute."""
    if at + 4 > end:
        return
    (length,) = _SIZE.unpack_from(data, at)
    step = length + 3 & ~3
    if length >= 4 and (end - at) % step == 0:  # mostly all are of one length
        rows = struct.Struct(f"=H2x{length - 4}s{step - length}x").iter_unpack(data[at:end])
        lengths, found = zip(*rows, strict=True)
        if lengths.count(length) == len(lengths):
            entries += found
            return
    entries += [data[start:stop] for _, start, stop in netlink.attributes(data, at, end)]
