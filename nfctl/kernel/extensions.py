"""libxtables' extensions: finding them, parsing their options to bytes, printing bytes as options.

An extension is a ``struct xtables_match`` or ``struct xtables_target`` (xtables.h) that a shared
object registers. Its options are parsed by libxtables' own dispatchers
(``xtables_option_mpcall`` and the others), so that every match and target installed on the
machine works, old parser or new, and prints itself with its own ``save`` function.

What libxtables keeps in its structures between two options of one match (``m``, ``mflags``,
``udata``) is kept in an :class:`Instance` here and lent to the structure for the call; so one
rule may use the same match several times without libxtables' clones.
"""

from __future__ import annotations

import ctypes as ct
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nfctl.errors import BadInput, Unsupported
from nfctl.kernel.layout import EXTENSION_HEADER, Layout
from nfctl.kernel.libraries import GUARD, extension_dirs, libraries
from nfctl.ruleset.names import MAX_NAME

_TRY_LOAD = 2  # enum xtables_tryload
_HEADER = EXTENSION_HEADER.size
_FAMILY_PREFIX = {4: "libipt_", 6: "libip6t_"}
_ICMPV6_NAMES = {"icmpv6", "ipv6-icmp", "icmp6"}
_PRINTER = ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p)
_ALIAS = ct.CFUNCTYPE(ct.c_char_p, ct.c_void_p)
_HELP = ct.CFUNCTYPE(None)


class Refused(Exception):
    """libxtables called ``exit_err``; its words are fetched by :mod:`nfctl.kernel.complaints`."""


class Option(NamedTuple):
    """An option an extension registers: ``--name``, its getopt value and whether it takes one."""

    name: str
    value: int
    argument: int  # 0 none, 1 required, 2 optional (only in the form --name=value)


class Extension:
    """One registered match or target of one family and revision."""

    def __init__(self, kind: str, address: int, layout: Layout) -> None:
        lib = libraries()
        struct_type: Any = lib.match_struct if kind == "match" else lib.target_struct
        raw = struct_type.from_address(address)
        self.kind = kind
        self.layout = layout
        self.address = address
        self.name: str = raw.name.decode()
        self.real_name: str = raw.real_name.decode() if raw.real_name else self.name
        self.revision: int = raw.revision
        self.size: int = raw.size
        # helper and connlabel leave it out: then all is the user's
        self.user_size: int = raw.userspacesize or raw.size
        self.total = _HEADER + self.size

        def cell(field: str, kind_of_cell: Any = ct.c_void_p) -> Any:
            return kind_of_cell.from_address(address + getattr(struct_type, field).offset)

        # what an Instance lends, and the functions it calls
        self.data = cell("m" if kind == "match" else "t")
        self.flags = cell("mflags" if kind == "match" else "tflags", ct.c_uint)
        self.udata = cell("udata")
        self.holds: Instance | None = None
        self.udata_size: int = raw.udata_size
        self.new_parser = bool(raw.x6_parse)
        cell("option_offset", ct.c_uint).value = 0
        self.header = EXTENSION_HEADER.pack(self.total, self.real_name.encode(), self.revision)
        self.init: int | None = cell("init").value
        self.parse: Any = lib.option_match if kind == "match" else lib.option_target
        self.check: Any = lib.check_match if kind == "match" else lib.check_target
        save, alias, helper = cell("save").value, cell("alias").value, cell("help").value
        self.save = _PRINTER(save) if save else None
        self._alias = _ALIAS(alias) if alias else None
        self._help = _HELP(helper) if helper else None
        self.options = {option.name: option for option in _options(raw)}

    def alias(self, data: bytes, default: str) -> str:
        """Return the name this extension goes by in listings, given its bytes."""
        if self._alias is None:
            return default
        shown: bytes = self._alias(ct.cast(ct.c_char_p(data), ct.c_void_p))
        return shown.decode()

    def canonical(self, data: bytes) -> bytes:
        """Return ``data`` (header included) with the kernel-private tail zeroed."""
        end = _HEADER + self.user_size
        if len(data) <= end or not any(data[end:]):
            return data
        return data[:end].ljust(len(data), b"\0")

    def print_help(self) -> None:
        """Let the extension print its help to C's standard output."""
        if self._help is not None:
            self._help()


class Instance:
    """One use of an extension in one rule, while its options are being parsed.

    Use it in a ``with`` block: the C memory is freed at its end. The extension's structure holds
    one instance at a time; another one that comes to be parsed puts it aside.
    """

    def __init__(self, extension: Extension) -> None:
        self.extension = extension
        lib = libraries()
        self._lib = lib
        self._data: int = lib.libc.calloc(1, extension.total)
        self._udata: int | None = None
        self._flags = 0
        if extension.udata_size:
            self._udata = lib.libc.calloc(1, extension.udata_size)
        ct.memmove(self._data, extension.header, _HEADER)
        if extension.init is not None and self._lib.guarded_call(extension.init, self._lend()):
            self.free()
            raise Refused

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.free()

    def free(self) -> None:
        """Give the C memory back; harmless the second time."""
        if self.extension.holds is self:
            self._put_aside()
        self._lib.libc.free(self._data)
        self._lib.libc.free(self._udata)
        self._data, self._udata = 0, None

    def _lend(self) -> int:
        """Put this instance into the extension's structure; return where its bytes are."""
        extension = self.extension
        self._lib.use(extension.layout.nfproto)
        other = extension.holds
        if other is not self:
            if other is not None:
                other._put_aside()
            extension.data.value = self._data
            extension.flags.value = self._flags
            extension.udata.value = self._udata
            extension.holds = self
        return extension.data.value or 0

    def _put_aside(self) -> None:
        extension = self.extension
        self._data = extension.data.value or 0  # a parser may reallocate it
        self._flags = extension.flags.value
        extension.data.value = None
        extension.udata.value = None
        extension.holds = None

    def parse(
        self, option: Option, words: Words, at: int, has_value: bool, invert: bool, entry: Any
    ) -> int:
        """Parse one option; return how many words beyond its value were taken.

        ``at`` is the index of the option's value in ``words`` (of the option itself if it has
        none), ``entry`` the entry's header so far.
        """
        lib = self._lib
        extension = self.extension
        self._lend()
        lib.optarg.value = words.array[at] if has_value else None
        lib.optind.value = at + 1
        result = lib.guarded_parse(
            extension.parse, option.value, words.array, invert, extension.address, entry, None
        )
        # wrap_parse answers -1 after a longjmp; the dispatchers return nothing, and what is left
        # in the register then is never that.
        if result == -1:
            raise Refused
        return int(lib.optind.value) - (at + 1)

    def parse_value(self, option: Option, value: str, invert: bool, entry: Any) -> None:
        """Parse one option of an extension with the new parser, which sees its value alone."""
        lib = self._lib
        extension = self.extension
        self._lend()
        text = ct.create_string_buffer(value.encode("utf-8", "surrogateescape"))
        lib.optarg.value = ct.addressof(text) if option.argument else None
        result = lib.guarded_parse(
            extension.parse, option.value, None, invert, extension.address, entry, None
        )
        if result == -1:
            raise Refused

    def finish(self) -> bytes:
        """Run the extension's final check and return its bytes, header included."""
        extension = self.extension
        self._lend()
        if self._lib.guarded_call(extension.check, extension.address):
            raise Refused
        data = self._lend()
        size = extension.total
        if data != self._data:  # an old parser made it larger or smaller
            size = int.from_bytes(ct.string_at(data, 2), sys.byteorder)
        return ct.string_at(data, size)


class Words:
    """A rule's words as a C array.

    The strings are copies that may be written to: some extensions cut their argument up in place.
    """

    def __init__(self, words: list[str]) -> None:
        encoded = [word.encode("utf-8", "surrogateescape") for word in words]
        self._text = ct.create_string_buffer(b"\0".join(encoded))
        self.array = (ct.c_void_p * (len(words) + 1))()
        at = ct.addressof(self._text)
        for index, word in enumerate(encoded):
            self.array[index] = at
            at += len(word) + 1


def _options(raw: Any) -> list[Option]:
    if raw.x6_options:
        return _new_options(raw)
    return _getopt_options(raw.extra_opts) if raw.extra_opts else []


def _new_options(raw: Any) -> list[Option]:
    """Return the options of a new parser as libxtables itself makes getopt's out of them.

    Not read from ``struct xt_option_entry``: that is larger since iptables 1.8.11, and the number
    of the library's version does not tell.
    """
    lib = libraries()
    offset = ct.c_uint()
    nothing = ct.create_string_buffer(ct.sizeof(type(raw.extra_opts)._type_))  # ends at once
    entries = ct.cast(raw.x6_options, ct.c_void_p)
    array = lib.options_xfrm(nothing, None, entries, ct.byref(offset))
    try:
        found = _getopt_options(ct.cast(array, type(raw.extra_opts)))
    finally:
        lib.libc.free(array)
    return [Option(name, value - offset.value, has_arg) for name, value, has_arg in found]


def _getopt_options(array: Any) -> list[Option]:
    found: list[Option] = []
    while array[len(found)].name:
        entry = array[len(found)]
        found.append(Option(entry.name.decode(), entry.val, entry.has_arg))
    return found


# --- finding ---------------------------------------------------------------------------------

#: Shared objects that others link to, and that hold no extension of their own name.
_SHELLS = frozenset({"NAT"})
#: Shared objects by their real path, and the families under which their targets were registered.
_loaded: dict[str, set[int]] = {}
_copies: list[Any] = []


def _shared_object(name: str, family: int) -> str | None:
    for directory in extension_dirs():
        for prefix in (_FAMILY_PREFIX[family], "libxt_"):
            path = f"{directory}/{prefix}{name}.so"
            if Path(path).exists():
                return path
    return None


def _load_again(path: str, family: int) -> None:
    """Register the targets of ``path`` for a second family in one process.

    A shared object registers itself once, when it is loaded, and libxtables then keeps only the
    targets of the family that was set. Loading a copy of the file runs its constructor again;
    an anonymous file (memfd) is a copy that no one can get at.
    """
    fd = os.memfd_create("nfctl-extension", os.MFD_CLOEXEC)
    try:
        os.write(fd, Path(path).read_bytes())
        # The number comes again for the next copy, and dlopen(3) knows files by their names.
        _copies.append(ct.CDLL(f"/proc/self/fd/{'./' * len(_copies)}{fd}"))
    finally:
        os.close(fd)
    _loaded[path].add(family)


@cache
def find(kind: str, name: str, layout: Layout) -> Extension | None:
    """Return the match or target extension ``name`` in the revision this kernel has, or None.

    None means that no shared object of that name is installed; Unsupported (exit 3) is raised
    where there is one but the kernel has no such match or target.
    """
    if not name.isascii() or "/" in name or "\0" in name or not 0 < len(name) <= MAX_NAME:
        return None
    lookup = name
    if kind == "match" and name in _ICMPV6_NAMES:
        lookup = "icmp6"
    path = _shared_object(lookup, layout.family)
    if path is None or name in _SHELLS:
        return None
    with GUARD:
        return _find(kind, name, path, layout)


def _find(kind: str, name: str, path: str, layout: Layout) -> Extension | None:
    lib = libraries()
    lib.use(layout.nfproto)
    real = str(Path(path).resolve())
    families = _loaded.setdefault(real, set())
    if not families:
        families.add(layout.family)
    elif kind == "target" and layout.family not in families:
        _load_again(real, layout.family)
    if not Path(layout.names_file).exists():
        # Without its engine the kernel seems to have no revision but the oldest.
        lib.load_modules()
    if kind == "match":
        address = lib.find_match(name.encode(), _TRY_LOAD, None)
    else:
        address = lib.find_target(name.encode(), _TRY_LOAD)
    if not address:
        # By custom matches are in lower case and targets in upper case: libxt_tcp.so is found for
        # a target tcp too, but it holds none.
        if name.isupper() != (kind == "target"):
            return None
        msg = f"this kernel has no {kind} `{name}'"
        raise Unsupported(msg, hint="nfctl doctor names the kernel option that is missing")
    return Extension(kind, address, layout)


@cache
def find_revision(kind: str, name: str, revision: int, layout: Layout) -> Extension | None:
    """Return the extension in exactly ``revision``, as the kernel holds it; None if unknown."""
    first = find(kind, name, layout)
    if first is None or first.revision == revision:
        return first
    with GUARD:
        return _find_revision(first, kind, name, revision, layout)


def _find_revision(
    first: Extension, kind: str, name: str, revision: int, layout: Layout
) -> Extension | None:
    lib = libraries()
    lib.use(layout.nfproto)
    seek = lib.find_match_revision if kind == "match" else lib.find_target_revision
    address = seek(name.encode(), _TRY_LOAD, first.address, revision)
    return Extension(kind, address, layout) if address else None


def match(name: str, layout: Layout) -> Extension:
    """Return the match extension ``name``; BadInput where none is installed."""
    if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME:
        msg = f'Invalid match name "{name}" ({MAX_NAME} chars max)'
        raise BadInput(msg)
    found = find("match", name, layout)
    if found is None:
        msg = f"Couldn't load match `{name}': there is no extension of that name"
        raise BadInput(msg, hint=similar(name, layout))
    return found


def similar(name: str, layout: Layout) -> str:
    """Return a hint that names the installed extensions spelled nearly like ``name``, or ""."""
    import difflib

    close = difflib.get_close_matches(name, installed(layout.family), n=3)
    return f"did you mean {' or '.join(close)}?" if close else ""


@cache
def installed(family: int) -> tuple[str, ...]:
    """Return the names of all extensions installed for a family, sorted; loads none of them."""
    names = set()
    for directory in extension_dirs():
        if not Path(directory).is_dir():
            continue
        for path in os.listdir(directory):
            for prefix in (_FAMILY_PREFIX[family], "libxt_"):
                if path.startswith(prefix) and path.endswith(".so"):
                    names.add(path[len(prefix) : -3])
    return tuple(sorted(names - {"standard"} - _SHELLS))
