"""What a watchdog has with it from before the change: the snapshot, and all it needs to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.control import sets
from nfctl.control.restore import restore
from nfctl.errors import NfctlError
from nfctl.kernel.table import active_tables
from nfctl.ruleset.names import BUILTIN_CHAINS

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.journal.entries import Entry

_WAIT = 10.0  # seconds, for the xtables lock


class LastResort:
    """The tables as they were before the change, in memory; made before the change."""

    def __init__(self, entry: Entry, log: Callable[[str], None]) -> None:
        self.texts = {family: entry.before_text(family) for family in entry.families}
        self.sets = entry.sets
        self._log = log
        self._active = {family: set(active_tables(family)) for family in self.texts}

    def restore(self) -> None:
        """Put all of it back, counters too, as far as that can be done.

        Tables that were brought to life since are emptied. Raises the last error that
        :func:`nfctl.control.restore.restore` raised.
        """
        problem: Exception | None = None
        if self.sets:
            try:
                sets.put_back(self.sets)
            except Exception as error:  # noqa: BLE001 - the tables may be put back all the same
                self._log(f"the sets are not restored: {type(error).__name__}: {error}")
        for family, text in self.texts.items():
            try:
                whole = text + self._empty(family)
                if whole:
                    restore(whole, family=family, counters=True, source="the snapshot", wait=_WAIT)
            except Exception as error:  # noqa: BLE001 - so may those of the other family
                problem = error
        if problem is not None:
            raise problem

    def _empty(self, family: int) -> str:
        """Return empty tables for those that were not in use then, and are now."""
        new = [table for table in active_tables(family) if table not in self._active[family]]
        lines: list[str] = []
        for table in new:
            lines += [f"*{table}", *(f":{name} ACCEPT [0:0]" for name in BUILTIN_CHAINS[table])]
            lines.append("COMMIT")
        return "".join(f"{line}\n" for line in lines)


def preload(log: Callable[[str], None]) -> None:
    """Load what the undoing needs: modules, libraries, the extensions of the rules there are.

    Once it stands a watchdog should not depend on files: the disk may be gone by then.
    """
    import importlib
    import pkgutil

    import nfctl.control
    import nfctl.kernel
    import nfctl.ruleset
    from nfctl.control.save import save

    for package in (nfctl.ruleset, nfctl.kernel, nfctl.control):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                log(f"{module.name}: {error}")
    for family in (4, 6):
        try:
            for _text in save(family):
                pass
        except (NfctlError, OSError) as error:
            log(f"IPv{family}: {error}")
