"""iptables-save text into the kernel: what iptables-restore(8) does, and all tables or none.

1. The file is read whole; a syntax error on its last line changes nothing.
2. Under the xtables lock every rule of every table is encoded, by libxtables.
3. A table that already is what the file says is left alone: nothing is written, and its
   counters go on counting. (With ``counters`` they have to be the file's.)
4. The others are committed one by one; if the kernel refuses one, those before it are put back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.transaction import Transaction, clear
from nfctl.errors import AnswerNo, BadInput, NfctlError, Unsupported, Where, excerpt
from nfctl.kernel import lock
from nfctl.kernel.blob import Blob, BlobChain, info
from nfctl.kernel.encode import Context
from nfctl.kernel.layout import STANDARD_TARGET, layout
from nfctl.kernel.table import with_counters
from nfctl.ruleset import script
from nfctl.ruleset.names import BUILTIN_CHAINS, check_new_chain
from nfctl.ruleset.script import Append, Command, Script, Section
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.control.edit import TableEdit
    from nfctl.ruleset.words import Word


_ERROR_TARGET = 64  # struct xt_error_target, aligned: what begins a user-defined chain


class Report(NamedTuple):
    """What a restore did: the tables it wrote, those that were right already, and the rules."""

    written: list[str]
    unchanged: list[str]
    rules: int


class _Draft:
    """The wanted state of a table, where a section does nothing but declare and append."""

    def __init__(self) -> None:
        self.policies: dict[str, tuple[str, tuple[int, int]]] = {}
        self.user_chains: dict[str, None] = {}
        self.rules: dict[str, list[bytes]] = {}
        self.counters: dict[str, list[tuple[int, int]]] = {}
        self.lines: dict[str, list[int]] = {}  # of the rules, for the explanation of a refusal


def restore(
    text: str,
    *,
    family: int = 4,
    counters: bool = False,
    noflush: bool = False,
    table: str | None = None,
    test: bool = False,
    source: str = "<text>",
    wait: float = lock.DEFAULT_WAIT,
    network: str | None = None,
    resolve: bool = False,
) -> Report:
    """Put iptables-save text into the kernel.

    ``counters`` restores the packet and byte counters of the text, ``noflush`` keeps what is in
    the tables and adds to it, ``table`` takes only that table from the text, ``test`` does
    everything but the writing. ``wait`` is in seconds. Raises BadInput with file, line and
    column and the errors of :class:`nfctl.control.transaction.Transaction`.
    """
    parsed = script.parse(text, source=source, family=family, only=table)
    with Transaction(family, wait=wait, network=network, resolve=resolve) as transaction:
        report = apply(parsed, transaction, counters=counters, noflush=noflush)
        if test:
            transaction.forget()
            return report
        transaction.commit()
    return report


def apply(
    parsed: Script, transaction: Transaction, *, counters: bool = False, noflush: bool = False
) -> Report:
    """Make a script's edits in an open transaction; the caller commits."""
    unchanged: list[str] = []
    total = 0
    for section in parsed.sections:
        edit = transaction[section.table]
        loader = _Loader(edit, parsed.source, counters, noflush)
        if not noflush and _is_plain(section):
            draft = loader.draft(section)
            total += sum(map(len, draft.rules.values()))
            if not edit.edited and loader.same(draft):
                unchanged.append(edit.name)
                continue
            loader.write(draft)
        else:
            edit.locate = edit.origin  # a section before may have located rules by its lines
            if not noflush:
                clear(edit.kernel)
                edit.user_chains.clear()
                edit.zero_policies()
                edit.edited = True
            total += loader.replay(section.items)
    names = dict.fromkeys(section.table for section in parsed.sections)
    written = [name for name in names if transaction[name].edited]
    return Report(written, [name for name in names if name not in written], total)


def _is_plain(section: Section) -> bool:
    return all(isinstance(item, Append) or item.verb == ":" for item in section.items)


class _Loader:
    """Does one section to one table."""

    def __init__(self, edit: TableEdit, source: str, counters: bool, noflush: bool = False) -> None:
        self.edit = edit
        self.source = source
        self.counters = counters
        self.noflush = noflush
        self.builtin = BUILTIN_CHAINS[edit.name]

    # --- a plain section: the wanted state first, then the comparison --------------------------

    def draft(self, section: Section) -> _Draft:
        """Encode a plain section."""
        edit, draft = self.edit, _Draft()
        rules = draft.rules
        for chain in self.builtin:
            rules[chain], draft.lines[chain] = [], []
        chains = draft.user_chains
        quick = edit.encoder.quick
        name, context = "", Context(edit.name, "", chains)
        current: list[bytes] = []
        lines: list[int] = []
        keep_counters = self.counters
        for item in section.items:
            if len(item) == 6:  # an Append, of which there are very many
                chain, spec, counts, line, _, words = item
                if chain != name:
                    if chain not in rules:
                        raise self._no_chain(chain, item)
                    name, current, lines = chain, rules[chain], draft.lines[chain]
                    context = Context(edit.name, chain, chains)
                entry = quick(spec, context) if words is None else None
                if entry is not None:
                    current.append(entry)
                    lines.append(line)
                    if keep_counters:
                        draft.counters.setdefault(chain, []).append(counts or (0, 0))
                else:
                    self._append(item, context, draft)
            else:
                self._declare(item, draft)
        return draft

    def _words(self, item: Append) -> tuple[Word, ...]:
        """Return the words of an appended rule, split if they are not yet."""
        if item.words is not None:
            return item.words
        return tuple(split(item.spec, source=self.source, number=item.line, column=item.column))

    def _append(self, item: Append, context: Context, draft: _Draft) -> None:
        where = Where(self.source, item.line, item.column)
        words = self._words(item)
        encoded = self.edit.encoder.encode(list(words), context, where)
        for entry in encoded.rules:
            draft.rules[item.chain].append(entry)
            draft.lines[item.chain].append(item.line)
            counts = (item.counters if self.counters else None) or encoded.counters
            if self.counters or encoded.counters:
                known = draft.counters.setdefault(item.chain, [])
                missing = len(draft.rules[item.chain]) - 1 - len(known)
                known += [(0, 0)] * missing + [counts or (0, 0)]

    def _declare(self, item: Command, draft: _Draft) -> None:
        where = Where(self.source, item.line, item.column)
        chain, policy = item.chain, item.argument
        if chain in self.builtin:
            if policy != "-":
                self._check_nat(policy, where)
                counts = item.counters if self.counters else None
                draft.policies[chain] = (policy, counts or (0, 0))
            return
        if policy != "-":
            msg = f"chain {chain} is user-defined and has no policy"
            raise BadInput(msg, hint="write - instead", where=where)
        if chain in draft.user_chains:
            msg = f"chain {chain} is declared twice"
            raise BadInput(msg, where=where)
        self._check_name(chain, where)
        draft.user_chains[chain] = None
        draft.rules[chain], draft.lines[chain] = [], []

    def _check_nat(self, policy: str, where: Where) -> None:
        if self.edit.name == "nat" and policy == "DROP":
            msg = 'The "nat" table is not intended for filtering, the use of DROP is inhibited.'
            raise BadInput(msg, where=where)

    def _check_name(self, chain: str, where: Where) -> None:
        # iptables-restore takes any name here, targets' too; a jump to it means the chain
        try:
            check_new_chain(chain)
        except BadInput as error:
            raise error.at(where) from None

    def _no_chain(self, chain: str, item: Append) -> BadInput:
        msg = f"table {self.edit.name} has no chain {chain}"
        hint = f"a line :{chain} - [0:0] must come before"
        elsewhere = [table for table, names in BUILTIN_CHAINS.items() if chain in names]
        if elsewhere:
            hint = f"it is a chain of the tables {', '.join(elsewhere)}"
        return BadInput(msg, hint=hint, where=Where(self.source, item.line, 1))

    def same(self, draft: _Draft) -> bool:
        """Whether the kernel's table is the draft already; asks without libiptc."""
        at = layout(self.edit.family)
        standard, error = at.size + STANDARD_TARGET.size, at.size + _ERROR_TARGET
        rules = draft.rules.values()
        users, builtin = len(draft.user_chains), len(self.builtin)
        now = info(self.edit.family, self.edit.name)
        if now.entries != sum(map(len, rules)) + builtin + 2 * users + 1:
            return False
        size = sum(sum(map(len, entries)) for entries in rules)
        if now.size != size + (builtin + users) * standard + (users + 1) * error:
            return False
        blob = Blob(self.edit.family, self.edit.name)
        return all(self._same_chain(blob, chain, draft) for chain in blob.chains)

    def _same_chain(self, blob: Blob, chain: BlobChain, draft: _Draft) -> bool:
        name, policy, spans = chain
        wanted = draft.rules.get(name)
        if wanted is None or len(wanted) != len(spans):
            return False
        if policy is not None and name in draft.policies:
            verdict, counts = draft.policies[name]
            if policy.verdict != verdict or (self.counters and policy[1:] != counts):
                return False
        counts_wanted = draft.counters.get(name)
        if counts_wanted:
            counts_wanted = counts_wanted + [(0, 0)] * (len(wanted) - len(counts_wanted))
            if counts_wanted != [blob.counters(span) for span in spans]:
                return False
        canonical = self.edit.decoder.canonical
        return all(
            canonical(blob.parts([spans[index]])[0]) == wanted[index]
            for index in blob.unequal(spans, wanted)
        )

    def write(self, draft: _Draft) -> None:
        """Replace the table's content by the draft, in libiptc's memory."""
        edit, kernel = self.edit, self.edit.kernel
        clear(kernel)
        for chain in draft.user_chains:
            kernel.create_chain(chain)
        edit.user_chains.clear()
        edit.user_chains.update(draft.user_chains)
        edit.zero_policies()
        for chain, (policy, counts) in draft.policies.items():
            edit.set_policy(chain, policy, counts)
        append, family = kernel.append, kernel.family
        for chain, entries in draft.rules.items():
            name = chain.encode("utf-8", "surrogateescape")
            counts_wanted = draft.counters.get(chain)
            if not counts_wanted:
                for entry in entries:
                    append(name, entry)
            else:
                counts_wanted += [(0, 0)] * (len(entries) - len(counts_wanted))
                for entry, (packets, octets) in zip(entries, counts_wanted, strict=True):
                    append(name, with_counters(entry, family, packets, octets))
        edit.edited = True
        edit.locate = lambda chain, number: Where(self.source, draft.lines[chain][number - 1], 1)

    # --- any other section: its lines, one after the other -------------------------------------

    def replay(self, items: Iterable[Append | Command]) -> int:
        """Do what the lines say, in order; return how many rules were appended."""
        appended = 0
        for item in items:
            where = Where(self.source, item.line, item.column)
            try:
                if isinstance(item, Append):
                    counts = item.counters if self.counters else None
                    appended += self.edit.append(item.chain, self._words(item), counts, where)
                else:
                    self._command(item, where)
            except (BadInput, Unsupported) as error:
                raise error.at(where) from None
            except AnswerNo as error:
                raise BadInput(error.message, where=where) from None
        return appended

    def _command(self, item: Command, where: Where) -> None:
        edit, verb, chain = self.edit, item.verb, item.chain
        counts = item.counters if self.counters else None
        if verb == ":":
            self._redeclare(item, where)
        elif verb == "I":
            edit.insert(chain, item.words, item.number or 1, counts, where)
        elif verb == "R":
            edit.replace(chain, item.number or 1, item.words, counts, where)
        elif verb == "D":
            edit.delete(chain, item.number if item.number is not None else item.words, where)
        elif verb == "C":
            if not edit.check(chain, item.words, where):
                msg = f"chain {chain} of table {edit.name} has no such rule"
                raise BadInput(msg)
        elif verb == "N":
            edit.create_chain(chain)
        elif verb == "X":
            for name in [chain] if chain else sorted(edit.user_chains):
                edit.delete_chain(name)
        elif verb == "F":
            edit.flush(chain or None)
        elif verb == "Z":
            edit.zero(chain or None, item.number)
        elif verb == "P":
            edit.set_policy(chain, item.argument, counts)
        elif verb == "E":
            edit.rename_chain(chain, item.argument)

    def _redeclare(self, item: Command, where: Where) -> None:
        edit, chain = self.edit, item.chain
        if chain in self.builtin:
            if item.argument != "-":
                edit.set_policy(chain, item.argument, item.counters if self.counters else (0, 0))
            return
        if item.argument != "-":
            msg = f"chain {chain} is user-defined and has no policy"
            raise BadInput(msg, hint="write - instead")
        if chain in edit.user_chains and not self.noflush:
            msg = f"chain {chain} is there already"
            raise BadInput(msg)
        if chain in edit.user_chains:
            edit.flush(chain)
        else:
            self._check_name(chain, where)
            edit.kernel.create_chain(chain)
            edit.user_chains.add(chain)
            edit.edited = True


def explain_line(error: NfctlError, text: str) -> str:
    """Return the line an error is about with a caret under its column; "" if it has none."""
    return excerpt(text, error.where)
