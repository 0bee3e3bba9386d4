"""Whose code is run: as root, only what nobody but root may have written.

A handler runs with what nfctl may do. So before any of its code runs, every directory on the way to
its file, from / on, each symbolic link followed, and the file itself must belong to root and be
writable by its owner alone; the sticky bit of /tmp does not help. The same holds for every module
that it imports, and for its packages. Directories of the module search path that others may write
to (a current directory, PYTHONPATH) are passed over; byte code in ``__pycache__`` is not read.

Not checked is the library of the running interpreter, its site-packages included, and nfctl's own
package: nfctl itself runs from there. What an ACL grants shows in the group's bits (acl(5)).
"""

from __future__ import annotations

import functools
import os
import shlex
import stat
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_MOST_LINKS: Final = 40  # as in path_resolution(7)
_ELSEWHERE: Final = "keep handlers where root alone may write, as in /etc/nfctl"


class Fault(NamedTuple):
    """Why the file at ``path`` is not trusted, and what would help."""

    path: str
    reason: str
    hint: str

    def __str__(self) -> str:
        """Return it as a sentence, fit for a terminal."""
        place = _shown(self.path)
        # It may be the file, or a directory above it, that is wrong.
        return self.reason if self.reason.startswith(f"{place} ") else f"{place}: {self.reason}"


def fault(path: str, owner: int = 0, *, libraries: bool = True) -> Fault | None:
    """Return who else could have written what is at ``path``; None if nobody could.

    What is not there is trusted if only root could put it there. ``owner`` is a user who is
    trusted as root is. Without ``libraries`` that of the interpreter is looked at, too.
    """
    try:
        # not abspath(), which takes "link/.." for nothing
        full = path if path.startswith("/") else f"{os.getcwd()}/{path}".rstrip("/")  # noqa: PTH109
        path = path or full
        if libraries and in_library(os.path.normpath(full)):
            full = os.path.realpath(full)
            if in_library(full):
                return None
        return _walk(path, full, owner)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Fault(path, f"it cannot be checked: {reason}", "")


def _walk(path: str, full: str, owner: int) -> Fault | None:
    """Look at every directory and link on the way from / to ``full``."""
    here, last, links = "/", os.lstat("/"), 0
    wrong = _writable(last, owner)
    parts = full.split("/")[::-1]
    while parts and not wrong:
        part = parts.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            here = os.path.dirname(here)  # noqa: PTH120 - of a path without links
            continue
        there = here.rstrip("/") + "/" + part
        try:
            info = os.lstat(there)
        except FileNotFoundError:
            return _elsewhere(path) if os.path.lexists(full) else None
        if stat.S_ISLNK(info.st_mode):  # trusted as the directory is that it stands in
            links += 1
            if links > _MOST_LINKS:
                return Fault(path, "too many symbolic links", "")
            target = os.readlink(there)  # noqa: PTH115
            parts += target.split("/")[::-1]
            here = "/" if target.startswith("/") else here
            continue
        here, last = there, info
        wrong = _writable(info, owner)
        if not stat.S_ISDIR(info.st_mode):  # the rest is inside of a zip file
            break
    if wrong:
        return Fault(path, f"{_shown(here)} {wrong}", _hint(here, last))
    if not parts:  # the links of /proc/PID/fd lead elsewhere than they say
        found = os.stat(full)  # noqa: PTH116
        end = os.lstat(here)
        if (found.st_dev, found.st_ino) != (end.st_dev, end.st_ino):
            return _elsewhere(path)
    return None


def _elsewhere(path: str) -> Fault:
    return Fault(path, "it is not where its links say", "name the file itself")


def _writable(info: os.stat_result, owner: int) -> str:
    if info.st_uid not in {0, owner}:
        return f"may be written by user {info.st_uid}"
    if info.st_mode & stat.S_IWOTH:
        return "may be written by anyone"
    if info.st_mode & stat.S_IWGRP:
        return f"may be written by group {info.st_gid}"
    return ""


def _hint(path: str, info: os.stat_result) -> str:
    word = shlex.quote(_shown(path))
    orders = [f"chown root {word}"] * bool(info.st_uid)
    orders += [f"chmod go-w {word}"] * bool(info.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if not stat.S_ISDIR(info.st_mode):
        return " && ".join(orders)
    # No advice that would take a home or /tmp away from those who use it.
    shared = info.st_uid or info.st_mode & stat.S_ISVTX
    return _ELSEWHERE if shared else f"{orders[0]}, or {_ELSEWHERE}"


def _shown(path: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in path)


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Return the directories that nfctl and the interpreter that runs it come from."""
    found = {os.path.dirname(os.__file__)}  # noqa: PTH120
    site = sys.modules.get("site")  # not with Python's -S; and nothing is to be imported here
    if site is not None:
        found.update(site.getsitepackages([sys.prefix, sys.base_prefix]))
    found.add(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    found.update([os.path.realpath(path) for path in found])
    return tuple(path.rstrip("/") + "/" for path in found if path.strip("/"))


def in_library(path: str) -> bool:
    """Return whether a path without links is nfctl's own, the interpreter's or site-packages'."""
    return (path + "/").startswith(_libraries())


class Loader(SourceFileLoader):
    """Compiles a source file each time: its byte code could have been written by others."""

    def get_code(self, fullname: str) -> CodeType | None:
        """Return the module's code, from its source."""
        path = self.get_filename(fullname)
        code: CodeType | None = self.source_to_code(self.get_data(path), path)
        return code


class Guard:
    """Finds modules for ``import``, in the place of all finders there were; only trusted ones.

    ``refused`` are those that were found where others may write, by name.
    """

    def __init__(self, owner: int = 0) -> None:
        self.owner = owner
        self.refused: dict[str, Fault] = {}
        self._finders: list[Any] = []

    def install(self) -> None:
        """Put this before all that is found from now on."""
        self._finders = list(sys.meta_path)
        sys.meta_path[:] = [self]

    def remove(self) -> None:
        """Put back the finders that were there; those that were added meanwhile stay."""
        if self in sys.meta_path:
            at = sys.meta_path.index(self)
            sys.meta_path[at : at + 1] = self._finders

    def trusted(self, path: Iterable[str]) -> list[str]:
        """Return those directories of a search path to which nobody else may write."""
        return [entry for entry in path if fault(entry, self.owner) is None]

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module (see importlib.abc.MetaPathFinder); none that is not trusted."""
        everywhere = [*(sys.path if path is None else path)]
        trusted = self.trusted(everywhere)
        for finder in self._finders:
            if finder is PathFinder:
                spec = PathFinder.find_spec(name, trusted, target)
            else:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find else None
            if spec is None:
                continue
            wrong = self.fault_of(spec)
            if wrong is None:
                return _uncached(spec)
            self.refused[name] = wrong
        if name not in self.refused:
            rest = [entry for entry in everywhere if entry not in trusted]
            unseen = PathFinder.find_spec(name, rest, target) if rest else None
            wrong = self.fault_of(unseen) if unseen is not None else None
            if wrong is not None:
                self.refused[name] = wrong
        return None

    def fault_of(self, spec: ModuleSpec) -> Fault | None:
        """Return who else could have written a module; a namespace has no code of its own."""
        loader: Any = spec.loader
        if loader is BuiltinImporter or loader is FrozenImporter:
            return None
        if spec.has_location and spec.origin:
            return fault(spec.origin, self.owner)
        if spec.origin is None and spec.submodule_search_locations:
            wrong = [fault(place, self.owner) for place in spec.submodule_search_locations]
            return wrong[0] if wrong and all(wrong) else None
        return None  # made by code that is there already

    def find_distributions(self, *arguments: Any) -> Iterable[Any]:
        """Find the metadata of installed packages (see importlib.metadata)."""
        for finder in self._finders:
            find = getattr(finder, "find_distributions", None)
            if find is not None:
                yield from find(*arguments)

    def invalidate_caches(self) -> None:
        """Forget what directories held (importlib.invalidate_caches)."""
        for finder in self._finders:
            forget = getattr(finder, "invalidate_caches", None)
            if forget is not None:
                forget()


def _uncached(spec: ModuleSpec) -> ModuleSpec:
    loader = spec.loader
    if type(loader) is SourceFileLoader and not in_library(os.path.realpath(loader.path)):
        spec.loader = Loader(loader.name, loader.path)
    return spec
