"""From a handler's name to the handler: its module is found, imported, and looked through.

What can be wrong with it is a BadInput that points at the line of the handler's own code; what
may be run at all is up to ``trust``.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from nfctl.document import known, shown
from nfctl.errors import BadInput, Where, excerpt
from nfctl.inspect.handlers import GROUP, Handler, blamed
from nfctl.inspect.text import safe
from nfctl.inspect.trust import Loader, fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

    from nfctl.inspect.trust import Fault, Guard

_FORMS = "a handler is named package.module:function, /path/file.py:function, or by an entry point"
_LONGEST = 300  # characters of an exception's text


class Loading:
    """Makes handlers of names; with a guard, only of code that it trusts."""

    def __init__(self, guard: Guard | None) -> None:
        self._guard = guard
        self._files: dict[str, ModuleType] = {}
        self._seen: set[str] = set()

    def handler(self, name: str) -> Handler:
        """Return the handler of this name. BadInput if there is none, or it is no handler."""
        if name in self._seen:
            msg = f"the handler {shown(name)} is named twice"
            raise BadInput(msg)
        self._seen.add(name)
        place, attribute = self._parts(name)
        if _is_file(place):
            module = self._file(place)
        else:
            module = self._module(place)
        home = module.__name__.partition(".")[0]
        found = self._attribute(module, attribute, place, home)
        return self._made(name, found, home)

    # --- names --------------------------------------------------------------------------------

    def _parts(self, name: str) -> tuple[str, str]:
        """Return module or file, and attribute."""
        place, colon, attribute = name.rpartition(":")
        if not colon:
            if _is_file(name):
                msg = f"{shown(name)} names a file, and no function in it"
                raise BadInput(msg, hint=f"{name}:FUNCTION")
            place, attribute = self._entry_point(name)
        words = attribute.split(".")
        if not _is_file(place):
            words += place.split(".")
        if not all(word.isidentifier() for word in words):
            msg = f"{shown(name)} names no handler"
            raise BadInput(msg, hint=_FORMS)
        return place, attribute

    def _entry_point(self, name: str) -> tuple[str, str]:
        values: dict[str, str] = {}
        for entry, value in self._entry_points():
            values.setdefault(entry, value)
        if name not in values:
            msg = f"there is no handler {shown(name)}"
            what = f"the entry points in the group {GROUP} are"
            raise BadInput(msg, hint=known(name, sorted(values), what) or _FORMS)
        place, _, attribute = values[name].partition(":")
        return place.strip(), attribute.partition("[")[0].strip()

    def _entry_points(self) -> Iterator[tuple[str, str]]:
        """Yield names and values from the metadata of installed packages that are trusted."""
        from importlib import metadata

        for distribution in metadata.distributions():
            path = getattr(distribution, "_path", None)
            if path is not None and self._fault(str(path / "entry_points.txt")) is not None:
                continue
            for entry in distribution.entry_points:
                if entry.group == GROUP:
                    yield entry.name, entry.value

    # --- modules ------------------------------------------------------------------------------

    def _fault(self, path: str) -> Fault | None:
        return None if self._guard is None else fault(path, self._guard.owner)

    def _trust(self, wrong: Fault | None) -> None:
        if wrong is not None:
            msg = f"a handler's code is not trusted: {wrong}"
            raise BadInput(msg, hint=wrong.hint)

    def _file(self, path: str) -> ModuleType:
        """Run a file as a module of its own, once; its directory is not searched for others."""
        self._trust(self._fault(path))
        full = os.path.realpath(path)
        if full in self._files:
            return self._files[full]
        if not os.path.isfile(full):  # noqa: PTH113
            wrong = "is no file" if os.path.exists(full) else "is not there"  # noqa: PTH110
            msg = f"the handler's file {shown(path)} {wrong}"
            raise BadInput(msg)
        stem = re.sub(r"\W", "_", os.path.basename(full).removesuffix(".py"))  # noqa: PTH119
        name = f"nfctl_handler_{stem}"
        while name in sys.modules:
            name += "_"
        loader = Loader(name, full)
        spec = importlib.util.spec_from_file_location(name, full, loader=loader)
        assert spec is not None  # noqa: S101 - as its loader is given
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            _guarded(lambda: loader.exec_module(module), path, name, self._guard)
        except BaseException:
            del sys.modules[name]
            raise
        self._files[full] = module
        return module

    def _module(self, name: str) -> ModuleType:
        """Import a module, which may be in the current directory too if that is trusted."""
        unsearched = None
        # where Python's -P, or a console script, has taken it out
        if not {"", os.curdir}.intersection(sys.path):
            unsearched = self._fault("")
            here = _here()
            if unsearched is None and here and here not in sys.path:
                sys.path.append(here)
        parents = [name[: dot.start()] for dot in re.finditer(r"\.", name)] + [name]
        if self._guard is not None:
            for parent in parents:
                spec = getattr(sys.modules.get(parent), "__spec__", None)
                self._trust(self._guard.fault_of(spec) if spec is not None else None)
        home = parents[0]
        try:
            module: ModuleType = _guarded(
                lambda: importlib.import_module(name), name, home, self._guard
            )
        except _NoModule as error:
            missing = error.name
            if self._guard is not None:
                self._trust(self._guard.refused.get(missing))
            msg = f"there is no module {shown(missing)}"
            hint = _FORMS
            if unsearched is not None:
                hint = f"the current directory is not searched: {unsearched}"
            raise BadInput(msg, hint=hint) from None
        return module

    # --- what is in them ----------------------------------------------------------------------

    def _attribute(self, module: ModuleType, attribute: str, place: str, home: str) -> Any:
        found: Any = module
        for word in attribute.split("."):
            holder = found
            found = _guarded(
                lambda holder=holder, word=word: getattr(holder, word, _MISSING),  # type: ignore[misc]
                place, home, self._guard,
            )  # fmt: skip
            if found is _MISSING:
                msg = f"there is no {shown(word)} in {shown(place)}"
                raise BadInput(msg, hint=known(word, _callables(holder), "there are"))
        return found

    def _made(self, name: str, found: Any, home: str) -> Handler:
        """Return the handler that a function, a class or an object is."""
        homes = {home}
        module = getattr(found, "__module__", None)
        if isinstance(module, str):
            homes.add(module.partition(".")[0])
        if inspect.isclass(found):
            _takes(found, name, 0)
            found = _guarded(found, name, home, self._guard)
        if inspect.isroutine(found):
            _takes(found, name, 1)
            return Handler(name, found, None, None, homes)
        call = getattr(found, "packet", None)
        if not callable(call):
            call = found.__call__ if callable(found) else None
        if call is None:
            msg = f"{shown(name)} is {_kind(found)}: no function, and without a method packet()"
            raise BadInput(msg, hint=_FORMS)
        _takes(call, name, 1)
        ends: list[Any] = []
        for word in ("start", "stop"):
            end = getattr(found, word, None)
            if end is not None:
                if not callable(end):
                    msg = f"{word} of {shown(name)} is {_kind(end)}, no function"
                    raise BadInput(msg)
                _takes(end, f"{name}.{word}", 0)
            ends.append(end)
        return Handler(name, call, ends[0], ends[1], homes)


class _NoModule(Exception):
    """The module that was asked for, or a parent of it, is not there."""

    def __init__(self, name: str) -> None:
        self.name = name


_MISSING = object()


def _is_file(place: str) -> bool:
    return "/" in place or place.endswith(".py")


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it was removed
        return ""


def _guarded(call: Callable[[], Any], what: str, home: str, guard: Guard | None) -> Any:
    """Run code of a handler's; BadInput, with its place, for whatever it raises but ^C."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        place = Where(error.filename or what, error.lineno or 0, error.offset or 0)
        msg = f"{shown(what)} is not Python: {safe(error.msg, _LONGEST)}"
        bad = BadInput(msg, where=place)
        if error.text:
            line = error.text.rstrip("\n")
            bad.excerpt = excerpt(line, Where(place.source, 1, place.column))
        raise bad from None
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it is the handler's, not ours
        file, number = blamed(error.__traceback__, {home})
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not file and (what + ".").startswith(missing + "."):
            raise _NoModule(missing) from None
        try:
            text = safe(str(error), _LONGEST)
        except Exception:  # noqa: BLE001 - its own __str__
            text = ""
        kind = type(error).__name__
        msg = f"{shown(what)} cannot be loaded: {kind}" + (f": {text}" if text else "")
        refused = guard.refused.get(missing) if guard is not None and missing else None
        hint = f"not trusted: {refused}" if refused else ""
        raise BadInput(msg, hint=hint, where=Where(file, number) if file else None) from None


def _takes(function: Any, name: str, count: int) -> None:
    """Check that a function can be called with so many arguments, and then is done."""
    if (
        inspect.iscoroutinefunction(function)
        or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):
        msg = f"{shown(name)} is a coroutine or a generator: calling it does nothing"
        raise BadInput(msg, hint="a handler is a plain function")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are written in C
        return
    try:
        signature.bind(*[None] * count)
    except TypeError:
        wanted = "the packet, and nothing else" if count else "no arguments"
        msg = f"{shown(name)} has to take {wanted}; it takes {safe(str(signature), _LONGEST)}"
        raise BadInput(msg) from None


def _callables(holder: Any) -> Iterable[str]:
    """Return the names of what could be meant in a module: its own before what it imports."""
    names = vars(holder).items() if hasattr(holder, "__dict__") else []
    found = sorted(name for name, what in names if callable(what) and not name.startswith("_"))
    own = getattr(holder, "__name__", None)
    mine = [name for name in found if getattr(vars(holder)[name], "__module__", own) == own]
    return (mine or found)[:20]


def _kind(what: object) -> str:
    return f"an object of class {safe(type(what).__name__)}"
