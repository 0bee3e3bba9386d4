"""Edits to the tables of one family, committed together.

:class:`Transaction` holds the xtables lock from before the first table is read until after the
last one is written. Its :class:`TableEdit` objects collect edits in libiptc's memory, where no
packet sees them. Leaving the ``with`` block commits every edited table; if the kernel refuses
one, those committed before it are put back and the error says so. Leaving by an exception
commits nothing.

One transaction belongs to one thread, and to the network namespace it was opened in.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.edit import TableEdit
from nfctl.errors import NfctlError, RolledBack
from nfctl.kernel import lock, netns
from nfctl.kernel.blob import Blob
from nfctl.kernel.decode import Decoder
from nfctl.kernel.encode import Encoder
from nfctl.kernel.layout import layout
from nfctl.kernel.table import Refusal, Table, with_counters
from nfctl.ruleset.names import check_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.live import Live


class Transaction:
    """The tables of one family, open for editing.

    ``wait`` is how many seconds to wait for the lock, ``network`` a network namespace's name,
    ``resolve`` whether host names in rules are looked up.
    """

    def __init__(
        self,
        family: int = 4,
        *,
        wait: float = lock.DEFAULT_WAIT,
        network: str | None = None,
        resolve: bool = False,
    ) -> None:
        self.family = layout(family).family
        self._wait = wait
        self._network = network
        self._resolve = resolve
        self._stack = contextlib.ExitStack()
        self._tables: dict[str, TableEdit] = {}
        self._begun = False

    def __enter__(self) -> Transaction:
        with contextlib.ExitStack() as stack:
            stack.enter_context(netns.entered(self._network))
            stack.enter_context(lock.held(self._wait))
            self.encoder = Encoder(self.family, resolve=self._resolve)
            self.decoder = Decoder(self.family)
            self._stack = stack.pop_all()
            self._begun = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.forget()
            self._begun = False
            self._stack.close()

    def __getitem__(self, name: str) -> TableEdit:
        """Return a table for reading and editing; opening it makes it exist, as iptables does."""
        if not self._begun:
            msg = "the transaction is not open: use it in a with block"
            raise RuntimeError(msg)
        if name not in self._tables:
            check_table(name)
            self._tables[name] = TableEdit(self.family, name, self.encoder, self.decoder)
        return self._tables[name]

    def commit(self) -> list[str]:
        """Write every edited table; return their names. Nothing is written where nothing changed.

        A table that was written has to be taken from the transaction anew to be edited further.
        Raises what :meth:`nfctl.kernel.table.Table.commit` raises if the first table is refused
        (nothing changed then), RolledBack (exit 5) if a later one is.
        """
        edited = [table for table in self._tables.values() if table.edited]
        refused = self._commit(edited)
        if refused is not None:
            raise refused.error() from None
        for table in edited:
            # libiptc's handle is of the table as it was before
            del self._tables[table.name]
            table.close()
        return [table.name for table in edited]

    def forget(self) -> None:
        """Drop all edits; the tables are as the kernel holds them again."""
        for table in self._tables.values():
            table.close()
        self._tables.clear()

    def _commit(self, edited: list[TableEdit]) -> _Refused | None:
        """Commit the tables in turn; at the first that is refused, put back the ones before."""
        with undisturbed():
            before = [Before(table.family, table.name) for table in edited[:-1]]
            for position, table in enumerate(edited):
                try:
                    table.keep_policy_counters()
                    table.kernel.commit()
                except NfctlError as error:
                    done = before[:position]
                    failures = [text for old in reversed(done) if (text := old.put_back())]
                    names = [other.name for other in edited[:position]]
                    return _Refused(table, error, names, failures)
        return None


class _Refused(NamedTuple):
    """A table that the kernel refused, and what became of the tables committed before it."""

    table: TableEdit
    cause: NfctlError
    put_back: list[str]
    failures: list[str]

    def error(self) -> NfctlError:
        """Return the error to raise. Finding out why takes a while: everything is put back."""
        error = explained(self.table, self.cause)
        if not self.put_back:
            return error
        if self.failures:
            msg = f"{error.message}; AND NOT PUT BACK: {'; '.join(self.failures)}"
        else:
            names = ", ".join(self.put_back)
            msg = f"{error.message}; what was committed before it was put back: table {names}"
        return RolledBack(msg, hint=error.hint, where=error.where)


def explained(table: TableEdit, error: NfctlError) -> NfctlError:
    """Return the kernel's refusal of a table with the rule that it refuses, if that is found."""
    from nfctl.control import refusals

    if isinstance(error, Refusal):
        return refusals.explain(table, error)
    return error


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from coming between two tables' commits; they come after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stops = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Before:
    """A table as the kernel held it at one moment, able to be put back whole, with counters."""

    def __init__(self, family: int, table: str, blob: Blob | None = None) -> None:
        self.family = family
        self.table = table
        self._blob = blob or Blob(family, table)

    @classmethod
    def of(cls, live: Live) -> Before:
        """Return the table that was read already; one that was not in use is read now."""
        return cls(live.family, live.table, live.blob)

    def put_back(self) -> str:
        """Replace what the kernel holds now by what it held then; return why not, or ""."""
        try:
            with Table(self.family, self.table) as now:
                self._copy_to(now)
                now.commit()
        except NfctlError as error:
            return f"table {self.table}: {error}"
        return ""

    def _copy_to(self, now: Table) -> None:
        clear(now)
        blob, decoder = self._blob, Decoder(self.family)
        for chain, policy, _ in blob.chains:
            if policy is None:
                now.create_chain(chain)
        for chain, policy, spans in blob.chains:
            if policy is not None:
                now.set_policy(chain, policy.verdict, (policy.packets, policy.octets))
            name = chain.encode("utf-8", "surrogateescape")
            for span, parts in zip(spans, blob.parts(spans), strict=True):
                entry = decoder.canonical(parts)
                now.append(name, with_counters(entry, self.family, *blob.counters(span)))


def clear(table: Table) -> None:
    """Flush all chains and delete the user-defined ones; policies stay."""
    chains = table.chains()
    for chain in chains:
        table.flush(chain)
    for chain in chains:
        if not table.is_builtin(chain):
            table.delete_chain(chain)
