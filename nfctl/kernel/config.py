"""What a kernel was built with: its configuration, or what its modules give away.

A kernel tells its options in ``/proc/config.gz`` (CONFIG_IKCONFIG_PROC); distributions keep
the same text as ``/boot/config-RELEASE`` or ``/lib/modules/RELEASE/config``. Where none can
be read, ``modules.builtin`` and ``modules.dep`` (kmod's own lists, modules.builtin(5),
modules.dep(5)) still name what is built in and what can be loaded, by module. Options
without a module of their own stay unknown then. Nothing here loads a module.
"""

from __future__ import annotations

import gzip
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PROC = Path("/proc")
BOOT = Path("/boot")
MODULES = Path("/lib/modules")

_OPTION = re.compile(r"^(?:CONFIG_(\w+)=(\S+)|# CONFIG_(\w+) is not set)", re.MULTILINE)


class Built(Enum):
    """How a kernel has an option."""

    BUILTIN = "y"
    MODULE = "m"
    NO = "n"
    UNKNOWN = "?"

    @property
    def present(self) -> bool:
        """Whether the kernel has it, built in or as a module."""
        return self in (Built.BUILTIN, Built.MODULE)


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """The options of one kernel, and where they were read.

    ``options`` is None when no configuration could be read; ``modules`` then says for each
    module that kmod lists whether it is built in or loadable.
    """

    release: str
    source: str
    options: Mapping[str, str] | None = None
    modules: Mapping[str, Built] = field(default_factory=dict)

    def built(self, option: str, module: str = "") -> Built:
        """Tell how the kernel has an option (without ``CONFIG_``), or the option's module.

        An option that is a module whose file is not among the installed ones is not there:
        distributions put rarely used modules into packages of their own.
        """
        if self.options is not None:
            value = self.options.get(option, "n")
            if value == "m" and module and self.modules and module not in self.modules:
                return Built.NO
            return {"y": Built.BUILTIN, "m": Built.MODULE}.get(value, Built.NO)
        if not module or not self.modules:
            return Built.UNKNOWN
        return self.modules.get(module, Built.NO)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number of the release, (0, 0) if it does not say."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def read_config(
    release: str = "", *, proc: Path = PROC, boot: Path = BOOT, modules: Path = MODULES
) -> KernelConfig:
    """Read the running kernel's configuration from the first place that has it."""
    release = release or os.uname().release
    directory = modules / release
    listed = _modules(directory)
    places = (proc / "config.gz", boot / f"config-{release}", directory / "config")
    for place in places:
        text = _text(place)
        if text:
            return KernelConfig(release, str(place), parse_options(text), listed)
    if listed:
        return KernelConfig(release, str(directory / "modules.builtin"), None, listed)
    return KernelConfig(release, "")


def parse_options(text: str) -> dict[str, str]:
    """Parse a kernel configuration: option (without ``CONFIG_``) to ``y``, ``m``, ``n``, ..."""
    return {match[1] or match[3]: match[2] if match[1] else "n" for match in _OPTION.finditer(text)}


def loaded_modules(proc: Path = PROC) -> frozenset[str] | None:
    """Return the names of the loaded modules, or None where the kernel does not say.

    ``/proc/modules`` is missing from a kernel without loadable modules, and may be hidden
    in a container; in neither case may one conclude that a module is not there.
    """
    try:
        text = (proc / "modules").read_text()
    except OSError:
        return None
    return frozenset(line.split()[0] for line in text.splitlines() if line)


def _text(place: Path) -> str:
    try:
        data = place.read_bytes()
        return (gzip.decompress(data) if place.suffix == ".gz" else data).decode(errors="replace")
    except (OSError, EOFError):
        return ""


def _modules(directory: Path) -> dict[str, Built]:
    found: dict[str, Built] = {}
    found.update(dict.fromkeys(_module_names(directory / "modules.dep"), Built.MODULE))
    found.update(dict.fromkeys(_module_names(directory / "modules.builtin"), Built.BUILTIN))
    return found


def _module_names(place: Path) -> Iterable[str]:
    """Yield the module names of a kmod list: paths, in modules.dep each before a colon."""
    for line in _text(place).splitlines():
        name = Path(line.partition(":")[0]).name
        yield name.partition(".ko")[0].replace("-", "_")
