"""The shared libraries: libxtables, libip4tc, libip6tc, libc, bound through python-iptables.

python-iptables brings what ctypes cannot do alone: ``libxtwrapper``, whose ``wrap_*`` functions
call into libxtables behind a ``setjmp`` and whose ``throw_exception`` is the ``longjmp`` that
libxtables' ``exit_err`` needs, since it must not return. Two things about the binding are worked
around here:

* importing it as it is costs 0.3 s (it runs ldconfig, a compiler and modprobe to find its
  libraries), so the package is entered by the side door, with the libraries already resolved;
* its ``exit_err`` is a Python callback that longjmps out of the interpreter, which leaks a
  recursion level an error and ends the interpreter after a thousand of them. Here ``exit_err``
  is the C function itself.
"""

from __future__ import annotations

import ctypes as ct
import importlib
import importlib.util
import os
import sys
import sysconfig
import threading
import types
from functools import cache
from pathlib import Path
from typing import Any

from nfctl.errors import Unsupported

#: Where distributions keep libraries; asked before ldconfig, which costs a process.
_LIBRARY_DIRS = (
    f"/usr/lib/{sysconfig.get_config_var('MULTIARCH') or 'x86_64-linux-gnu'}",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/lib",
    "/usr/local/lib",
)

#: The module of each NFPROTO_*.
_ENGINES = {2: b"ip_tables", 10: b"ip6_tables"}

_PACKAGES = "Debian: apt install iptables libip4tc2 libip6tc2 libxtables12"


@cache
def find(name: str) -> str | None:
    """Return the path of the library ``lib<name>.so*`` (highest version), or None."""
    for directory in _LIBRARY_DIRS:
        if not Path(directory).is_dir():
            continue
        found = [
            entry.path
            for entry in os.scandir(directory)
            if entry.name.startswith(f"lib{name}.so.") and entry.is_file()
        ]
        if found:
            return max(found, key=lambda path: [int(n) for n in _numbers(path)])
    from ctypes.util import find_library  # costs a process; only where the directories had none

    return find_library(name)


def _numbers(path: str) -> list[str]:
    return [part for part in path.rpartition(".so.")[2].split(".") if part.isdigit()]


@cache
def extension_dirs() -> tuple[str, ...]:
    """Return the directories that hold libxtables' extensions, best first.

    ``XTABLES_LIBDIR`` (a colon-separated list) wins, as in libxtables(8)'s own loader.
    """
    configured = os.environ.get("XTABLES_LIBDIR")
    if configured:
        return tuple(configured.split(":"))
    candidates = [f"{directory}/xtables" for directory in _LIBRARY_DIRS]
    return tuple(path for path in candidates if Path(path).is_dir())


@cache
def _bindings() -> dict[str, Any]:
    """Import the binding's modules with ``iptc.util``'s searches answered beforehand."""
    names = ("xtables", "ip4tc", "ip6tc")
    if "iptc" in sys.modules:
        return {name: importlib.import_module(f"iptc.{name}") for name in names}
    spec = importlib.util.find_spec("iptc")
    if spec is None:
        msg = "the Python package python-iptables is not installed"
        raise Unsupported(msg, hint="pip install python-iptables")
    if not os.environ.get("XTABLES_LIBDIR"):
        os.environ["XTABLES_LIBDIR"] = ":".join(extension_dirs())
    package = importlib.util.module_from_spec(spec)

    def find_library(*names: str) -> tuple[Any, int]:
        for name in names:
            path = _wrapper_path() if name == "xtwrapper" else find(name)
            if path:
                numbers = _numbers(path)
                version = int(numbers[0]) if numbers else 0
                return ct.CDLL(path, mode=ct.RTLD_GLOBAL), version
        return None, 0

    util: Any = types.ModuleType("iptc.util")
    util.find_library = find_library
    util.find_libc = lambda: ct.CDLL(None)
    util.load_kernel = lambda *_args, **_kwargs: None
    sys.modules["iptc"] = package
    sys.modules["iptc.util"] = util
    try:
        return {name: importlib.import_module(f"iptc.{name}") for name in names}
    finally:
        # Whoever imports iptc after us gets the real package around the modules bound here.
        del sys.modules["iptc.util"], sys.modules["iptc"]


def _wrapper_path() -> str | None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    for directory in dict.fromkeys([sysconfig.get_path("platlib"), *filter(None, sys.path)]):
        path = Path(directory) / f"libxtwrapper{suffix}"
        if path.is_file():
            return str(path)
    return None


#: libxtables keeps its state in global variables: one thread at a time.
GUARD = threading.RLock()


class Libraries:
    """The bound functions. One instance a process: libxtables keeps global state."""

    def __init__(self) -> None:
        missing = [name for name in ("xtables", "ip4tc", "ip6tc") if find(name) is None]
        if missing:
            names = ", ".join(f"lib{name}" for name in missing)
            msg = f"a shared library is missing: {names}"
            raise Unsupported(msg, hint=_PACKAGES)
        try:
            self.binding: Any = _bindings()["xtables"]
        except (ImportError, AttributeError, OSError) as error:
            msg = f"python-iptables cannot be loaded: {error}"
            raise Unsupported(msg, hint=_PACKAGES) from error
        self.libc = ct.CDLL(None, use_errno=True)
        self.libc.calloc.restype = ct.c_void_p
        self.libc.calloc.argtypes = [ct.c_size_t, ct.c_size_t]
        self.libc.free.restype = None
        self.libc.open_memstream.restype = ct.c_void_p
        self.libc.fputc.argtypes = [ct.c_int, ct.c_void_p]
        self.libc.fclose.argtypes = [ct.c_void_p]
        self.stdout = ct.c_void_p.in_dll(self.libc, "stdout")
        self.libc.free.argtypes = [ct.c_void_p]
        self._bind_xtables()

    def _bind_xtables(self) -> None:
        binding = self.binding
        version = binding.xtables_version
        try:
            self.match_struct = getattr(binding, f"_xtables_match_v{version}")
            self.target_struct = getattr(binding, f"_xtables_target_v{version}")
        except AttributeError:
            msg = f"libxtables.so.{version} is not one python-iptables knows"
            raise Unsupported(msg, hint="pip install -U python-iptables") from None
        path = binding._lib_xtables._name
        self.xtables = ct.CDLL(path, mode=ct.RTLD_GLOBAL, use_errno=True)
        wrapper = ct.CDLL(binding._lib_xtwrapper._name, use_errno=True)
        xt = self.xtables
        self._set_nfproto = _prototype(xt.xtables_set_nfproto, None, ct.c_uint8)
        self._nfproto = 0
        self.find_match = _prototype(
            xt.xtables_find_match, ct.c_void_p, ct.c_char_p, ct.c_int, ct.c_void_p
        )
        self.find_target = _prototype(xt.xtables_find_target, ct.c_void_p, ct.c_char_p, ct.c_int)
        self.find_match_revision = _prototype(
            xt.xtables_find_match_revision,
            ct.c_void_p,
            ct.c_char_p,
            ct.c_int,
            ct.c_void_p,
            ct.c_int,
        )
        self.find_target_revision = _prototype(
            xt.xtables_find_target_revision,
            ct.c_void_p,
            ct.c_char_p,
            ct.c_int,
            ct.c_void_p,
            ct.c_int,
        )
        self.options_xfrm = _prototype(
            xt.xtables_options_xfrm,
            ct.c_void_p,
            ct.c_void_p,
            ct.c_void_p,
            ct.c_void_p,
            ct.c_void_p,
        )
        # wrap_parse calls fn(int, char **, int, unsigned *, void *, void **) behind a setjmp;
        # xtables_option_mpcall takes the first five of these in the same registers.
        self.guarded_parse = wrapper["wrap_parse"]
        self.guarded_parse.restype = ct.c_int
        self.guarded_parse.argtypes = [
            ct.c_void_p,
            ct.c_int,
            ct.c_void_p,
            ct.c_int,
            ct.c_void_p,
            ct.c_void_p,
            ct.c_void_p,
        ]
        self.guarded_call = wrapper["wrap_x6fn"]
        self.guarded_call.restype = ct.c_int
        self.guarded_call.argtypes = [ct.c_void_p, ct.c_void_p]
        self.option_match = ct.cast(xt.xtables_option_mpcall, ct.c_void_p)
        self.option_target = ct.cast(xt.xtables_option_tpcall, ct.c_void_p)
        self.check_match = ct.cast(xt.xtables_option_mfcall, ct.c_void_p)
        self.check_target = ct.cast(xt.xtables_option_tfcall, ct.c_void_p)
        self.throw = ct.cast(wrapper["throw_exception"], ct.c_void_p)
        self.params: Any = binding._xt_globals
        self.params.program_name = b"nfctl"
        # The field's type in the binding is a Python callback; the pointer itself is stored.
        self._exit_err = ct.c_void_p.from_address(
            ct.addressof(self.params) + type(self.params).exit_err.offset
        )
        self._exit_err.value = self.throw.value
        self.optarg = ct.c_void_p.in_dll(self.libc, "optarg")
        self.optind = ct.c_int.in_dll(self.libc, "optind")

    def use(self, nfproto: int) -> None:
        """Set the protocol family that libxtables works for."""
        if nfproto != self._nfproto:
            self._set_nfproto(nfproto)
            self._nfproto = nfproto

    def set_exit_err(self, function: int | None) -> None:
        """Point libxtables' ``exit_err`` at a C function; None for the guarded throw."""
        self._exit_err.value = function or self.throw.value

    def load_modules(self) -> None:
        """Ask modprobe for ip_tables or ip6_tables, whichever protocol is set, as iptables does.

        libxtables' own ``xtables_load_ko`` does it for the first protocol of a process only.
        """
        load = self.xtables.xtables_insmod
        load.argtypes = [ct.c_char_p, ct.c_char_p, ct.c_bool]
        load(_ENGINES[self._nfproto], None, True)


def _prototype(function: Any, restype: Any, *argtypes: Any) -> Any:
    function.restype = restype
    function.argtypes = list(argtypes)
    return function


@cache
def libraries() -> Libraries:
    """Return the process's libraries, loading them at the first call.

    Raises Unsupported (exit 3) with the packages to install where one is missing.
    """
    return Libraries()


@cache
def libiptc(family: int) -> _Functions:
    """Return libip4tc (family 4) or libip6tc (family 6) as a ctypes library with errno kept.

    The functions are those of libiptc.h: ``iptc_*`` and ``ip6tc_*``; the binding's own handles
    carry no argument types, so they are declared here.
    """
    libraries()
    raw = _bindings()["ip4tc" if family == 4 else "ip6tc"]._libiptc
    library = ct.CDLL(raw._name, use_errno=True)
    prefix = "iptc_" if family == 4 else "ip6tc_"
    text, handle, number, counters = ct.c_char_p, ct.c_void_p, ct.c_uint, ct.c_void_p
    prototypes: dict[str, tuple[Any, list[Any]]] = {
        "init": (ct.c_void_p, [text]),
        "free": (None, [handle]),
        "commit": (ct.c_int, [handle]),
        "strerror": (text, [ct.c_int]),
        "builtin": (ct.c_int, [text, handle]),
        "is_chain": (ct.c_int, [text, handle]),
        "first_chain": (text, [handle]),
        "next_chain": (text, [handle]),
        "create_chain": (ct.c_int, [text, handle]),
        "delete_chain": (ct.c_int, [text, handle]),
        "rename_chain": (ct.c_int, [text, text, handle]),
        "flush_entries": (ct.c_int, [text, handle]),
        "zero_entries": (ct.c_int, [text, handle]),
        "get_policy": (text, [text, counters, handle]),
        "set_policy": (ct.c_int, [text, text, counters, handle]),
        "first_rule": (ct.c_void_p, [text, handle]),
        "next_rule": (ct.c_void_p, [ct.c_void_p, handle]),
        "get_target": (text, [ct.c_void_p, handle]),
        "append_entry": (ct.c_int, [text, text, handle]),
        "insert_entry": (ct.c_int, [text, text, number, handle]),
        "replace_entry": (ct.c_int, [text, text, number, handle]),
        "delete_num_entry": (ct.c_int, [text, number, handle]),
        "get_references": (ct.c_int, [ct.POINTER(ct.c_uint), text, handle]),
        "zero_counter": (ct.c_int, [text, number, handle]),
        "set_counter": (ct.c_int, [text, number, counters, handle]),
    }
    return _Functions(library, prefix, prototypes)


class _Functions:
    """libiptc's functions of one family under their names without the prefix."""

    def __init__(
        self, library: Any, prefix: str, prototypes: dict[str, tuple[Any, list[Any]]]
    ) -> None:
        for name, (restype, argtypes) in prototypes.items():
            setattr(self, name, _prototype(library[prefix + name], restype, *argtypes))

    def __getattr__(self, name: str) -> Any:  # pragma: no cover - for the type checker
        raise AttributeError(name)
