"""The quick way: iptables-save files of which little or nothing changed since they were applied.

After an apply the state remembers a digest of each table as the kernel lays it out
(:meth:`nfctl.kernel.blob.Blob.digest`), beside the text that it came from. If the kernel still
holds just that, then

- the same text has nothing to do, and need not even be read;
- of another text only the lines that differ have to be read and encoded; where they stand in the
  kernel's chains follows from where they stand in the text.

If the kernel holds something else in some of the chains, all lines of those are encoded.

That is taken only if everything else that decides is the same, too: this boot and namespace, the
versions, the files in which libxtables looks up names, what other policies own. In doubt
:class:`NotQuick` sends the caller the ordinary way, and so does every error, to be told from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl import __version__
from nfctl.control import printed
from nfctl.control.change import KEPT, Change
from nfctl.control.goal import ChainGoal
from nfctl.control.journal.records import sha_of
from nfctl.control.ownership import Ownership
from nfctl.control.planning import TablePlan
from nfctl.control.sets import Sets
from nfctl.errors import NfctlError
from nfctl.kernel.encode import Context
from nfctl.policy.wanted import DEFAULT_NAME, Wanted, WantedRule, WantedTable
from nfctl.ruleset import script
from nfctl.ruleset.diff import common
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.live import Live
    from nfctl.control.planner import FamilySide, Plans
    from nfctl.kernel.blob import Blob

_DIRECTORY, _FILE = "known", "policy-{}.json"
_VERSION = 4
_MOST_LINES = 5000  # that may differ
_MOST_CHAINS = 100
_MOST_KNOWN = 5000  # chains of a table
_NAMES = (
    "/etc/services", "/etc/protocols", "/etc/networks", "/etc/hosts", "/etc/passwd", "/etc/group",
    "/etc/nsswitch.conf", "/etc/iproute2", "/usr/share/iproute2", "/usr/lib/xtables",
    "/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables", "/usr/lib64/xtables",
    "/etc/ld.so.cache", "/etc/xtables", "/etc/ethertypes",
)  # fmt: skip
_APPENDED = re.compile(r'-A ([^\s"\'!-][^\s"\']*)(?: |$)')
_COUNTERS = re.compile(r" \[[0-9]+:[0-9]+\]$")  # of a chain
_KEYS = {"exclusive", "plain", "about", "text", "tables", "chains", "sets"}
_SECTION = {"*", "C", ":"}  # what begins and ends one, and what declares a chain
# groups whose meaning is outside the rule's text and the kernel's table
_OUTSIDE = ("--bytecode", "--object-pinned", "--path", "--match-set", "-set ", "--nfacct-name")


Stale = dict[str, set[str]]  # chains by table


class NotQuick(Exception):
    """The quick way cannot tell; the ordinary one can."""


class QuickPlanner:
    """Plans iptables-save files by what is known of the last apply; see ``control.planner``.

    Raises NotQuick where it cannot.
    """

    def __init__(self, files: Mapping[int, str], state: State, *, exclusive: bool) -> None:
        self.sets: Sets | None = Sets(())
        self._state = state
        self._known = {family: _read(state, family) for family in files}
        if any(known["exclusive"] != exclusive for known in self._known.values()):
            raise NotQuick
        record = state.record(DEFAULT_NAME)
        if record is None or record.sets or record.left or not set(files) <= set(record.raw):
            raise NotQuick
        for family, known in self._known.items():
            if known["text"] != sha_of(record.text[family]):  # a rollback changed the record
                raise NotQuick
        self._record = record
        self._others = False  # whether there are other policies
        self._ownership = Ownership()
        self.wanted = self._light(files, record)

    def _light(self, files: Mapping[int, str], record: Record) -> Wanted:
        """Return the policy with its text, and of its tables the names alone."""
        wanted = Wanted()
        for family, file in sorted(files.items()):
            if not os.path.isfile(file):  # noqa: PTH113 - a path as typed; a pipe is read once
                raise NotQuick
            data = Path(file).read_bytes()
            wanted.files.append((file, hashlib.sha256(data).hexdigest()))
            wanted.raw[family] = data.decode("utf-8", "surrogateescape")
            names = record.whole.get(family, [])
            wanted.tables[family] = {name: WantedTable(whole=True) for name in names}
        return wanted

    def plan(self, sides: dict[int, FamilySide]) -> Plans:
        """Compare the kernel with what is known of it, and the texts with each other."""
        from nfctl.control.planner import Plans

        now = about(self._state, DEFAULT_NAME)
        if any(known["about"] != now for known in self._known.values()):
            raise NotQuick
        self._others = bool(now["others"])
        plans = Plans(sides)
        for family, tables in self.wanted.tables.items():
            old, new = self._record.text[family], self.wanted.raw[family]
            known = self._known[family]
            stale = _stale(sides[family], tables, known)
            if known["sets"] != printed.sets_named(new):
                raise NotQuick
            if old != new or stale:
                if not known["plain"]:
                    raise NotQuick
                self._splice(plans, family, (old, new), stale)
        return plans

    def change(self, plans: Plans, *, digests: bool = False) -> Change:
        """Return the change."""
        change = plans.change(self.wanted.name, digests=digests)
        change.files = list(self.wanted.files)
        return change

    def _splice(self, plans: Plans, family: int, texts: tuple[str, str], stale: Stale) -> None:
        source = self.wanted.files[sorted(self.wanted.raw).index(family)][0]
        splice = _Splice(*texts, source, family, stale)
        side = plans.sides[family]
        for table, chains in splice.chains().items():
            live = side.live(table)
            names = set(live.user_chains)
            goals = {}
            for chain in chains:
                # what others own, the ordinary way knows how to keep
                if chain not in live.chains or self._ownership.chain_owner(chain):
                    raise NotQuick
                context = Context(table, chain, names)
                try:
                    goals[chain] = splice.goal(live, chain, context, side)
                except NfctlError:
                    raise NotQuick from None
            plans.tables.append(TablePlan.make(live, goals, [], self._owner(live, stale)))

    def _owner(self, live: Live, stale: Stale) -> Callable[[str, int], str]:
        """Return who owns a rule that is not wanted: nobody, of what nfctl itself put there."""
        strange = stale.get(live.table, ())

        def owner(chain: str, index: int) -> str:
            if chain in strange:
                spec = live.spec(chain, index)
                if self._others or self._ownership.owner(live.family, live.table, spec):
                    raise NotQuick
            return ""

        return owner


class _Splice:
    """What differs between two texts, line by line."""

    def __init__(self, old: str, new: str, source: str, family: int, stale: Stale) -> None:
        self._old, self._new = _split(old), _split(new)
        self._source = source
        self._stale = stale
        self._family = family
        self._gone, self._come = self._hunks()
        if len(self._gone) + len(self._come) > _MOST_LINES:
            raise NotQuick
        self._sections: dict[int, dict[str, _Section]] = {}

    def _hunks(self) -> tuple[list[int], list[int]]:
        """Return the lines that are in one text only; comments and blank lines apart."""
        old, new = self._old, self._new
        short = min(len(old), len(new))
        head = next((n for n in range(short) if old[n] != new[n]), short)
        tail = next((n for n in range(short - head) if old[-1 - n] != new[-1 - n]), short - head)
        ends = len(old) - tail, len(new) - tail
        gone, come = set(range(head, ends[0])), set(range(head, ends[1]))
        inner = common(old[head : ends[0]], new[head : ends[1]])
        self._blocks = [(0, 0, head)]
        for first, second, length in inner:
            self._blocks.append((head + first, head + second, length))
            gone.difference_update(range(head + first, head + first + length))
            come.difference_update(range(head + second, head + second + length))
        self._blocks.append((ends[0], ends[1], tail))
        return (
            sorted(n for n in gone if old[n] and old[n][0] != "#"),
            sorted(n for n in come if new[n] and new[n][0] != "#"),
        )

    def chains(self) -> dict[str, list[str]]:
        """Return the chains in which something differs, by table, in the order of the file."""
        found: dict[str, set[str]] = {}
        for lines, numbers in ((self._old, self._gone), (self._new, self._come)):
            sections = self._sections[id(lines)] = _sections(lines)
            for number in numbers:
                appended = _APPENDED.match(lines[number])
                if appended is None or any(word in lines[number] for word in _OUTSIDE):
                    raise NotQuick
                name = next(
                    (t for t, one in sections.items() if one.start < number < one.end), None
                )
                if name is None or sections[name].chains.get(appended[1], number) >= number:
                    raise NotQuick
                found.setdefault(name, set()).add(appended[1])
        if list(self._sections[id(self._old)]) != list(self._sections[id(self._new)]):
            raise NotQuick
        if sum(map(len, found.values())) > _MOST_CHAINS:
            raise NotQuick
        new = self._sections[id(self._new)]
        for table, strange in self._stale.items():
            if not strange <= new[table].chains.keys():
                raise NotQuick
            found.setdefault(table, set()).update(strange)
        return {
            table: [chain for chain in new[table].chains if chain in found[table]]
            for table in TABLES
            if table in found
        }

    def goal(self, live: Live, chain: str, context: Context, side: FamilySide) -> ChainGoal:
        """Return a chain as the new text has it: what stays is taken from the kernel."""
        strange = chain in self._stale.get(live.table, ())
        before = {n: k for k, n in enumerate(self._lines(self._old, live.table, chain))}
        rules = [] if strange else live.canonical(chain)
        if len(before) != len(rules) and not strange:
            raise NotQuick
        goal = ChainGoal()
        blocks = iter(self._blocks)
        first, second, length = next(blocks)
        for number in self._lines(self._new, live.table, chain):
            while number >= second + length:
                following = next(blocks, None)
                if following is None:
                    break
                first, second, length = following
            if second <= number < second + length and not strange:
                entry, column = rules[before[first + number - second]], len(chain) + 5
            else:
                entry, column = self._encode(number, context, side)
            goal.entries.append(entry)
            goal.origins.append(WantedRule("", self._source, number + 1, column))
        return goal

    def _lines(self, lines: list[str], table: str, chain: str) -> list[int]:
        start, end, _ = self._sections[id(lines)][table]
        bare = f"-A {chain}"
        head = f"{bare} "
        return [n for n in range(start, end) if lines[n].startswith(head) or lines[n] == bare]

    def _encode(self, number: int, context: Context, side: FamilySide) -> tuple[bytes, int]:
        """Return the rule of a line of the new text, and the column where it begins."""
        text = f"*{context.table}\n{self._new[number]}\nCOMMIT\n"
        items = script.parse(text, source=self._source, family=self._family).sections[0].items
        if len(items) != 1 or not isinstance(items[0], script.Append):
            raise NotQuick
        words = items[0].words or split(items[0].spec)
        entries = side.encoder.encode(list(words), context, None).rules
        if len(entries) != 1:  # the lines would not be the kernel's rules any more
            raise NotQuick
        return entries[0], items[0].column


def _split(text: str) -> list[str]:
    """Return the lines of a text, those that declare a chain without their counters."""
    return [_COUNTERS.sub("", line) if line[:1] == ":" else line for line in text.split("\n")]


class _Section(NamedTuple):
    """The lines of a table, and in which of them its chains are declared."""

    start: int
    end: int
    chains: dict[str, int]


def _sections(lines: list[str]) -> dict[str, _Section]:
    """Return the lines of each table."""
    found: dict[str, _Section] = {}
    table, start = "", 0
    chains: dict[str, int] = {}
    for number in [n for n, line in enumerate(lines) if line[:1] in _SECTION]:
        line = lines[number]
        if line[0] == "*":
            table, start = line[1:].strip(), number + 1
            chains = dict.fromkeys(BUILTIN_CHAINS.get(table, ()), number)
        elif line[0] == ":":
            chains.setdefault(line[1:].split()[0], number)
        elif line[:6] == "COMMIT":
            if table in found:
                raise NotQuick
            found[table] = _Section(start, number, chains)
    return found


# --- what is remembered -------------------------------------------------------------------------


def about(state: State, name: str) -> dict[str, Any]:
    """Return everything but files and tables that decides what a policy comes to."""
    namespace = Path("/proc/thread-self/ns/net").stat()
    files = {}
    for file in [*_NAMES, os.environ.get("XTABLES_LIBDIR", "")]:
        with contextlib.suppress(OSError):
            status = os.stat(file)  # noqa: PTH116 - many files, and quick
            files[file] = [status.st_mtime_ns, status.st_size, status.st_ino]
    return {
        "version": [_VERSION, __version__],
        "boot": state.boot_id,
        "namespace": [namespace.st_dev, namespace.st_ino],
        "files": files,
        "others": sorted(r.name + r.digest for r in state.records() if r.name != name),
    }


def digests(side: FamilySide, tables: Mapping[str, object]) -> dict[str, str]:
    """Return the digest of each table as it was read."""
    found = {}
    for name in tables:
        blob = side.live(name).blob
        if blob is not None:
            found[name] = blob.digest()
    return found


def _stale(side: FamilySide, tables: Mapping[str, object], known: Mapping[str, Any]) -> Stale:
    """Return the chains in which the kernel holds something else; NotQuick where that is much."""
    if known["tables"] == digests(side, tables):
        return {}
    found: Stale = {}
    for name in tables:
        blob = side.live(name).blob
        if blob is None or name not in known["chains"]:
            raise NotQuick
        then, now = known["chains"][name], _chains_of(blob)
        digests_then, digests_now = then["digests"], now["digests"]
        if then["policies"] != now["policies"] or digests_then.keys() != digests_now.keys():
            raise NotQuick
        strange = {c for c, digest in digests_now.items() if digests_then[c] != digest}
        if strange:
            found[name] = strange
    if sum(map(len, found.values())) > _MOST_CHAINS:
        raise NotQuick
    return found


def _chains_of(blob: Blob) -> dict[str, Any]:
    """Return what is remembered of a table's chains."""
    chains = blob.chains
    return {
        "policies": {chain.name: chain.policy.verdict for chain in chains if chain.policy},
        "digests": {chain.name: blob.chain_digest(chain) for chain in chains},
    }


def _read(state: State, family: int) -> dict[str, Any]:
    try:
        found = json.loads(_file(state, family).read_bytes())
        if found.keys() >= _KEYS:
            return dict(found)
    except (OSError, ValueError, AttributeError):
        pass
    raise NotQuick


def _file(state: State, family: int) -> Path:
    return state.directory / _DIRECTORY / _FILE.format(family)


def remember(
    state: State,
    wanted: Wanted,
    plans: Plans,
    blobs: Mapping[tuple[int, str], Blob],
    *,
    exclusive: bool,
    quick: bool,
) -> None:
    """Write down what the kernel holds now, for the next time.

    ``blobs`` are the tables that were read back after they were written; ``quick`` whether it
    was the quick way that planned.
    """
    if not wanted.raw or wanted.name != DEFAULT_NAME or wanted.sets:
        return
    plain = quick or not any(
        run.kind == KEPT
        for plan in plans.tables
        for chain in plan.chains.values()
        for run in chain.merge.runs
    )
    now = about(state, wanted.name)
    for family, names in wanted.tables.items():
        rules = 0
        tables: dict[str, str] = {}
        chains: dict[str, dict[str, Any]] = {}
        for name in names:
            blob = blobs.get((family, name)) or plans.sides[family].live(name).blob
            if blob is not None:
                tables[name] = blob.digest()
                if len(blob.chains) <= _MOST_KNOWN:
                    chains[name] = _chains_of(blob)
                rules += sum(len(chain.rules) for chain in blob.chains)
        document = {
            "exclusive": exclusive,
            "plain": plain and (quick or _is_plain(wanted, family, rules)),
            "about": now,
            "text": sha_of(wanted.raw[family]),
            "tables": tables,
            "chains": chains,
            "sets": printed.sets_named(wanted.raw[family]),
        }
        printed.write(_file(state, family), json.dumps(document).encode())


def _is_plain(wanted: Wanted, family: int, rules: int) -> bool:
    """Whether each rule in the kernel is one line ``-A CHAIN ...`` of the text."""
    text, appended = wanted.raw[family], 0
    lines: list[str] = []
    for table in wanted.tables[family].values():
        for chain in table.chains.values():
            appended += len(chain.rules)
            for rule in chain.rules:
                if rule.words is not None:  # odd, or without anything
                    lines = lines or text.split("\n")
                    if rule.words or lines[rule.line - 1][:3] != "-A ":
                        return False
    return appended == rules == text.count("\n-A ")


def forget(state: State) -> None:
    """Have nothing be known, before something is changed: who is killed leaves no half of it."""
    for family in (4, 6):
        with contextlib.suppress(OSError):
            _file(state, family).unlink(missing_ok=True)
