"""One table of one family in the kernel, through libiptc.

libiptc reads the whole table with one getsockopt (``IPT_SO_GET_ENTRIES``), keeps the edits in
its own memory, and hands the whole table back with one setsockopt (``IPT_SO_SET_REPLACE``);
the kernel swaps it in as one and gives back the old counters, which libiptc then adds to the
rules that stayed (``IPT_SO_SET_ADD_COUNTERS``). So nothing here is visible to packets before
:meth:`Table.commit`, and counters of untouched rules survive it exactly.

libiptc takes no lock: hold :func:`nfctl.kernel.lock.held` from before a Table is opened until
after its commit.
"""

from __future__ import annotations

import ctypes as ct
import errno as errnos
import os
import struct
from typing import TYPE_CHECKING, Any, NoReturn

from nfctl.errors import BadInput, Changed, NotPermitted, Unsupported
from nfctl.kernel.blob import Policy, cannot_open
from nfctl.kernel.decode import Parts
from nfctl.kernel.layout import COUNTERS, EXTENSION_HEADER, OFFSETS, layout
from nfctl.kernel.libraries import libiptc, libraries
from nfctl.ruleset.names import check_table

if TYPE_CHECKING:
    from collections.abc import Iterator

_INT = ct.c_int32
_SET_ADD_COUNTERS = 65  # IPT_BASE_CTL + 1; the same for IPv6
_COUNTERS_INFO = struct.Struct("=32sI4x")  # struct xt_counters_info: name, num_counters


class Table:
    """An open table. Use it in a ``with`` block; nothing is written without :meth:`commit`."""

    def __init__(self, family: int, name: str) -> None:
        check_table(name)
        self.layout = layout(family)
        self.family = family
        self.name = name
        self._lib: Any = libiptc(family)
        self._jumps: dict[int, bytes] = {}
        self._handle = self._open()

    def _open(self) -> int:
        name = self.name.encode()
        libraries().use(self.layout.nfproto)
        handle = self._lib.init(name)
        if not handle and ct.get_errno() not in {errnos.EPERM, errnos.EACCES}:
            libraries().load_modules()
            handle = self._lib.init(name)
        if not handle:
            number = ct.get_errno()
            raise cannot_open(self.family, self.name, number, self._words(number))
        return int(handle)

    def _words(self, number: int) -> str:
        text = self._lib.strerror(number)
        return text.decode() if text else os.strerror(number)

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget the table and all edits that were not committed."""
        if self._handle:
            self._lib.free(self._handle)
        self._handle, self._lib = 0, _Closed()

    # --- reading ------------------------------------------------------------------------------

    def chains(self) -> list[str]:
        """Return the names of all chains: the built-in ones first, as iptables-save has them."""
        found: list[str] = []
        name = self._lib.first_chain(self._handle)
        while name is not None:
            found.append(_text(name))
            name = self._lib.next_chain(self._handle)
        return found

    def has_chain(self, chain: str) -> bool:
        """Whether a chain of that name exists, built-in or user-defined."""
        return bool(self._lib.is_chain(_bytes(chain), self._handle))

    def is_builtin(self, chain: str) -> bool:
        """Whether the chain is one of the kernel's own."""
        return bool(self._lib.builtin(_bytes(chain), self._handle))

    def policy(self, chain: str) -> Policy | None:
        """Return a built-in chain's policy and its counters; None for a user-defined chain."""
        counters = ct.create_string_buffer(COUNTERS.size)
        verdict = self._lib.get_policy(_bytes(chain), counters, self._handle)
        if verdict is None:
            return None
        return Policy(_text(verdict), *COUNTERS.unpack(counters.raw))

    def references(self, chain: str) -> int:
        """Return how many rules jump or go to a user-defined chain."""
        number = ct.c_uint()
        self._lib.get_references(ct.byref(number), _bytes(chain), self._handle)
        return number.value

    def entries(self, chain: str) -> Iterator[tuple[bytes, Parts]]:
        """Yield each rule of a chain: the raw entry (for its counters) and its parts."""
        at = self.layout
        handle, next_rule, string_at = self._handle, self._lib.next_rule, ct.string_at
        ip_size, size, offsets_at = at.ip.size, at.size, at.offsets_at
        unpack, header_size = OFFSETS.unpack_from, EXTENSION_HEADER.size
        jumps = self._jumps
        pointer = self._lib.first_rule(_bytes(chain), handle)
        while pointer:
            head = string_at(pointer, size)
            target_at, end = unpack(head, offsets_at)
            rest = string_at(pointer + size, end - size)
            split = target_at - size
            target = rest[split:]
            jump: bytes | None = None
            if not target[2]:  # the standard target has the empty name
                verdict = _INT.from_buffer_copy(target, header_size).value
                jump = jumps.get(verdict)
                if jump is None:
                    jump = self._jump(pointer, verdict)
            yield head, Parts(head[:ip_size], rest[:split], target, jump)
            pointer = next_rule(pointer, handle)

    def pointers(self, chain: str) -> Iterator[int]:
        """Yield the address of each rule of a chain in libiptc's memory."""
        pointer = self._lib.first_rule(_bytes(chain), self._handle)
        while pointer:
            yield pointer
            pointer = self._lib.next_rule(pointer, self._handle)

    def _jump(self, pointer: int, verdict: int) -> bytes:
        name: bytes = self._lib.get_target(pointer, self._handle) or b""
        # Offsets are the kernel's for rules that were read and nothing yet for rules added
        # since; and a rule without target holds the offset of the rule after it.
        if verdict < 0 or (verdict > 0 and name):
            self._jumps[verdict] = name
        return name

    # --- editing, in libiptc's memory ---------------------------------------------------------

    def create_chain(self, chain: str) -> None:
        """Create a user-defined chain."""
        self._do("create", chain, self._lib.create_chain(_bytes(chain), self._handle))

    def delete_chain(self, chain: str) -> None:
        """Delete an empty user-defined chain that no rule jumps to."""
        self._do("delete", chain, self._lib.delete_chain(_bytes(chain), self._handle))

    def rename_chain(self, chain: str, new: str) -> None:
        """Rename a user-defined chain; jumps to it follow."""
        done = self._lib.rename_chain(_bytes(chain), _bytes(new), self._handle)
        self._do("rename", chain, done)
        self._jumps.clear()

    def flush(self, chain: str) -> None:
        """Delete all rules of a chain."""
        self._do("flush", chain, self._lib.flush_entries(_bytes(chain), self._handle))

    def zero(self, chain: str) -> None:
        """Zero the counters of a chain's rules and its policy."""
        self._do("zero", chain, self._lib.zero_entries(_bytes(chain), self._handle))

    def zero_rule(self, chain: str, number: int) -> None:
        """Zero the counters of rule ``number`` (from 1)."""
        self._do("zero", chain, self._lib.zero_counter(_bytes(chain), number, self._handle))

    def set_policy(self, chain: str, verdict: str, counters: tuple[int, int] | None) -> None:
        """Set a built-in chain's policy; ``counters`` None keeps the ones it has."""
        packed = COUNTERS.pack(*counters) if counters is not None else None
        done = self._lib.set_policy(_bytes(chain), verdict.encode(), packed, self._handle)
        self._do("set the policy of", chain, done)

    def append(self, chain: bytes, entry: bytes) -> None:
        """Append an entry (canonical bytes, counters allowed) to a chain."""
        if not self._lib.append_entry(chain, entry, self._handle):
            self._do("append to", _text(chain), 0)

    def insert(self, chain: str, entry: bytes, number: int) -> None:
        """Insert an entry so that it becomes rule ``number`` (from 1)."""
        done = self._lib.insert_entry(_bytes(chain), entry, number - 1, self._handle)
        self._do("insert into", chain, done)

    def replace(self, chain: str, entry: bytes, number: int) -> None:
        """Replace rule ``number`` (from 1)."""
        done = self._lib.replace_entry(_bytes(chain), entry, number - 1, self._handle)
        self._do("replace in", chain, done)

    def delete(self, chain: str, number: int) -> None:
        """Delete rule ``number`` (from 1)."""
        done = self._lib.delete_num_entry(_bytes(chain), number - 1, self._handle)
        self._do("delete from", chain, done)

    def _do(self, verb: str, chain: str, done: int) -> None:
        if done:
            return
        number = ct.get_errno()
        msg = f"cannot {verb} chain {chain} of table {self.name}: {self._words(number)}"
        raise BadInput(msg)

    # --- writing ------------------------------------------------------------------------------

    def commit(self) -> None:
        """Hand the edited table to the kernel, which takes it whole or not at all.

        Raises BadInput where the kernel refuses what was asked (EINVAL, ELOOP, ENOENT),
        Changed (exit 4) where the table changed under us (EAGAIN), NotPermitted, Unsupported.
        """
        self._jumps.clear()  # compiling the table gives its chains new offsets, come what may
        if self._lib.commit(self._handle):
            return
        number = ct.get_errno()
        what = f"the kernel refuses table {self.name} (IPv{self.family})"
        if number == errnos.EAGAIN:
            msg = f"table {self.name} was changed by another program meanwhile"
            raise Changed(msg, hint="it did not take the xtables lock; try again")
        if number in {errnos.EPERM, errnos.EACCES}:
            msg = f"{what}: {os.strerror(number)}"
            raise NotPermitted(msg, hint="CAP_NET_ADMIN is needed: run as root")
        if number in {errnos.ENOMEM, errnos.ENOPROTOOPT}:
            msg = f"{what}: {os.strerror(number)}"
            raise Unsupported(msg)
        raise Refusal(f"{what}: {self._words(number)}", number)


class _Closed:
    """Stands in for libiptc once a table is closed: C must not be called with that handle."""

    def __getattr__(self, name: str) -> NoReturn:
        msg = f"{name}: the table is closed; open it again to see what the kernel holds now"
        raise RuntimeError(msg)


class Refusal(BadInput):
    """The kernel's checks refused a table; ``number`` is the errno, for who can explain it."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def with_counters(entry: bytes, family: int, packets: int, octets: int) -> bytes:
    """Return an entry with its counters set."""
    at = layout(family).counters_at
    return entry[:at] + COUNTERS.pack(packets, octets) + entry[at + COUNTERS.size :]


def counters_of(raw: bytes, family: int) -> tuple[int, int]:
    """Return (packets, bytes) of a raw entry."""
    packets, octets = COUNTERS.unpack_from(raw, layout(family).counters_at)
    return packets, octets


def active_tables(family: int) -> list[str]:
    """Return the tables that exist in this network namespace, as the kernel names them.

    Opening a table makes it exist; asking here does not.
    """
    try:
        with open(layout(family).names_file, encoding="ascii") as file:  # noqa: PTH123 - /proc
            return file.read().split()
    except FileNotFoundError:
        return []
    except PermissionError as error:
        msg = f"{layout(family).names_file} cannot be read: {error.strerror}"
        raise NotPermitted(msg, hint="run as root") from None


def _bytes(name: str) -> bytes:
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:  # C would take the name to there
        msg = f"{name!r} is no name"
        raise BadInput(msg)
    return encoded


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def add_counters(
    family: int, table: str, entries: int, additions: dict[int, tuple[int, int]]
) -> None:
    """Add (packets, bytes) to entries of a table by their index (``IPT_SO_SET_ADD_COUNTERS``).

    ``entries`` is how many the table has, policies and chain heads included: the kernel takes
    a ``struct xt_counters_info`` of just as many, and adds them between two packets.
    """
    from nfctl.kernel.blob import set_option

    data = bytearray(_COUNTERS_INFO.pack(table.encode(), entries))
    data += bytes(entries * COUNTERS.size)
    for index, counters in additions.items():
        COUNTERS.pack_into(data, _COUNTERS_INFO.size + index * COUNTERS.size, *counters)
    set_option(family, table, _SET_ADD_COUNTERS, bytes(data))
