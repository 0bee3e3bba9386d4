"""A change, shown: as text that reads like ``git diff``, and as one plain document.

The text names tables, in them chains, and in them rules as iptables-save prints them::

    filter (IPv4)
    @@ INPUT, policy ACCEPT -> DROP @@
      -A INPUT -i lo -j ACCEPT
    ~ -A INPUT -j ts-input  # kept: Tailscale
    - -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT  # 1.2k packets
    + -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT

    1 rule to add, 1 to delete, 1 kept of Tailscale; 1 policy to change

``-`` goes (and what it counted), ``+`` comes, ``~`` is another program's and stays. Sets come
before the tables, with their entries in the same way.

The document (:func:`document`) is a contract; keys are only ever added. It is what
``nfctl plan --json`` prints and what the journal keeps, to undo the change by: the runs and the
added lines make the sequence after from the sequence before::

    {"changes": true, "policy": "default",
     "files": [{"file": "policy.yaml", "sha256": "2c26..."}],
     "tables": [
       {"family": 4, "table": "filter", "digest": "9f86...", "chains": [
         {"name": "INPUT", "created": false, "deleted": false,
          "policy": {"before": "ACCEPT", "after": "DROP"},
          "rules": {"before": 3, "after": 3, "same": 1, "kept": 1, "add": 1, "delete": 1},
          "lines": [
            {"op": "delete", "number": 3, "rule": "-p tcp -m tcp --dport 23 -j ACCEPT",
             "packets": 1234, "bytes": 56789, "owner": null, "where": null, "moved": false}],
          "runs": [["same", 0, 0, 1], ["kept", 1, 1, 1], ["delete", 2, 1, 1], ["add", 3, 1, 1]],
          "note": null}]}],
     "sets": [{"action": "swap", "name": "blocked", "type": "hash:ip", "added": 2, "removed": 1,
               "entries": ["+ 192.0.2.1", "- 192.0.2.9"], "note": null}],
     "notes": [],
     "summary": {"add": 1, "delete": 1, "move": 0, "kept": 1, "kept_of": {"Tailscale": 1},
                 "policies": 1, "chains_created": 0, "chains_deleted": 0,
                 "sets_created": 0, "sets_swapped": 1, "sets_destroyed": 0}}

``tables`` holds every table that was looked at; ``digest`` is the SHA-256 of what the kernel has
in it, counters apart ("" where that was not asked for). ``chains`` holds those that change, keep
rules of others, or have a note; ``policy`` is null where it stays. ``lines`` holds every rule
that is no "same", and of those a few around; ``op`` is "same", "kept", "delete" or "add";
``number`` counts from 1, before the change for "delete" and after it for the others; ``packets``
and ``bytes`` are null for a rule that the kernel does not have; ``owner`` is whose a kept rule
is, "keep" where the policy's ``keep:`` names it; ``where`` is FILE:LINE:COLUMN of an added one;
both ends of a move are ``moved``. ``runs`` are in the order of the result, each with its kind,
where it begins among the rules before, and among the wanted ones (both from 0), and its length.
``action`` is "create", "swap", "destroy", "same" or "kept"; ``entries`` are the first of a set's.
In ``summary`` a moved rule counts as "move" alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from nfctl.control.change import ADD, DELETE, KEPT, SAME
from nfctl.text import human, several, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.change import ChainChange, Change, Line, SetChange, TableChange

_MARKS: Final = {SAME: " ", KEPT: "~", DELETE: "-", ADD: "+"}
_COLOURS: Final = {SAME: "", KEPT: "33", DELETE: "31", ADD: "32"}
_TITLE, _HUNK, _DIM, _NOTE = "1", "36", "2", "33"
_SETS: Final = {"create": "created", "swap": "swapped", "destroy": "destroyed",
                "same": "unchanged", "kept": "kept"}  # fmt: skip
_INDENT: Final = "      "  # of the rest of a rule that is longer than the terminal is wide
_NARROW: Final = 40  # a terminal that is narrower wraps by itself

#: The owner of what a policy's ``keep:`` names.
_KEEP: Final = "keep"


# --- the document -------------------------------------------------------------------------------


def document(change: Change) -> dict[str, Any]:
    """Return a change as one document; this module's docstring says what is in it."""
    return {
        "changes": change.changes,
        "policy": change.policy,
        "files": [{"file": file, "sha256": sha256} for file, sha256 in change.files],
        "tables": [_table_document(table) for table in change.tables],
        "sets": [
            {**one._asdict(), "entries": list(one.entries), "note": one.note or None}
            for one in change.sets
        ],
        "notes": list(change.notes),
        "summary": counts(change),
    }


def _table_document(table: TableChange) -> dict[str, Any]:
    return {
        "family": table.family,
        "table": table.table,
        "digest": table.digest,
        "chains": [
            _chain_document(chain)
            for chain in table.chains
            if chain.changes or chain.note or chain.count(KEPT)
        ],
    }


def _chain_document(chain: ChainChange) -> dict[str, Any]:
    before, after = chain.policy or ("", "")
    return {
        "name": chain.name,
        "created": chain.created,
        "deleted": chain.deleted,
        "policy": {"before": before, "after": after} if chain.policy else None,
        "rules": {
            "before": chain.before,
            "after": chain.after,
            **{kind: chain.count(kind) for kind in (SAME, KEPT, ADD, DELETE)},
        },
        "lines": [_line_document(line) for line in chain.lines],
        "runs": [list(run) for run in chain.runs],
        "note": chain.note or None,
    }


def _line_document(line: Line) -> dict[str, Any]:
    packets, octets = line.counters or (None, None)
    return {
        "op": line.kind,
        "number": line.number,
        "rule": line.spec,
        "packets": packets,
        "bytes": octets,
        "owner": line.owner or None,
        "where": str(line.where) if line.where else None,
        "moved": line.moved,
    }


def counts(change: Change) -> dict[str, Any]:
    """Return the summary: how much of each kind there is."""
    owners: Counter[str] = Counter()
    moves = policies = created = deleted = 0
    for _, chain in change.chains():
        owners.update(line.owner or "others" for line in chain.lines if line.kind == KEPT)
        moves += sum(line.moved for line in chain.lines if line.kind == ADD)
        policies += chain.policy is not None
        created += chain.created
        deleted += chain.deleted
    sets = Counter(one.action for one in change.sets)
    return {
        "add": change.count(ADD) - moves,
        "delete": change.count(DELETE) - moves,
        "move": moves,
        "kept": change.count(KEPT),
        "kept_of": dict(sorted(owners.items())),
        "policies": policies,
        "chains_created": created,
        "chains_deleted": deleted,
        "sets_created": sets["create"],
        "sets_swapped": sets["swap"],
        "sets_destroyed": sets["destroy"],
    }


# --- text ---------------------------------------------------------------------------------------


def text(change: Change, colour: bool = False, width: int = 0, *, full: bool = False) -> str:
    """Return a change as text, with a line end.

    ``colour`` uses escape sequences of terminals; whatever else a terminal would obey is spelled
    out. ``width`` breaks rules that are longer, with 0 none. ``full`` shows also chains and sets
    in which nothing changes, where added rules come from, and exact counters.
    """
    shown = _Text(colour, width if width >= _NARROW else 0, full)
    shown.all(change)
    return "\n".join(shown.lines) + "\n"


def summary(change: Change) -> str:
    """Return what a change comes to, in one line without its end."""
    found = counts(change)
    kept = [(number, _kept(owner, " of ")) for owner, number in found["kept_of"].items()]
    if not change.changes:
        return f"nothing to change ({_rules(kept)})" if kept else "nothing to change"
    edits = [(found[key], f"to {key}") for key in ("add", "delete", "move") if found[key]]
    things = (
        ("policies", "policy", "policies", "to change"),
        ("chains_created", "chain", "chains", "to create"),
        ("chains_deleted", "chain", "chains", "to delete"),
        ("sets_created", "set", "sets", "to create"),
        ("sets_swapped", "set", "sets", "swapped"),
        ("sets_destroyed", "set", "sets", "to destroy"),
    )
    parts = [_rules([*edits, *kept])] if edits or kept else []
    parts += [
        f"{several(found[key], noun, plural)} {verb}"
        for key, noun, plural, verb in things
        if found[key]
    ]
    return "; ".join(parts)


def _rules(items: list[tuple[int, str]]) -> str:
    """Return "3 rules to add, 1 to delete": the first says what is counted."""
    (number, what), *rest = items
    return ", ".join([f"{several(number, 'rule')} {what}", *(f"{n} {what}" for n, what in rest)])


def _kept(owner: str, of: str) -> str:
    return "kept by keep:" if owner == _KEEP else f"kept{of}{visible(owner)}"


class _Text:
    def __init__(self, colour: bool, width: int, full: bool) -> None:
        self.lines: list[str] = []
        self._colour = colour
        self._width = width
        self._full = full
        self._count = str if full else human

    def all(self, change: Change) -> None:
        sets = [one for one in change.sets if self._full or _happens(one)]
        if sets:
            self._title("sets")
            for one in sets:
                self._set(one)
        for table in change.tables:
            chains = [chain for chain in table.chains if self._is_shown(chain)]
            if chains:
                self._title(f"{table.table} (IPv{table.family})")
                for chain in chains:
                    self._chain(chain)
        if self.lines:
            self.lines.append("")
        for note in change.notes:
            self._note(note)
        self.lines.append(summary(change))

    def _is_shown(self, chain: ChainChange) -> bool:
        return chain.changes or bool(chain.note) or (self._full and bool(chain.lines))

    # --- parts --------------------------------------------------------------------------------

    def _title(self, title: str) -> None:
        if self.lines:
            self.lines.append("")
        self.lines.append(self._paint(title, _TITLE))

    def _hunk(self, name: str, *what: str) -> None:
        self.lines.append(self._paint(f"@@ {', '.join([visible(name), *what])} @@", _HUNK))

    def _note(self, note: str) -> None:
        self._row("#", visible(note), _NOTE)

    def _set(self, change: SetChange) -> None:
        what = [visible(change.type), _SETS.get(change.action, change.action)]
        if change.added or change.removed:
            what.append(f"{change.added} in, {change.removed} out")
        self._hunk(change.name, *what)
        if change.note:
            self._note(change.note)
        for entry in change.entries:
            self._row(entry[:1], visible(entry[2:]), _COLOURS[DELETE if entry[:1] == "-" else ADD])
        missing = change.added + change.removed - len(change.entries)
        if change.entries and missing > 0:
            self._row(" ", f"... and {several(missing, 'more entry', 'more entries')}", _DIM)

    def _chain(self, chain: ChainChange) -> None:
        what = []
        if chain.created:
            what.append("created")
        if chain.deleted:
            what.append("deleted")
        if chain.policy:
            what.append(f"policy {chain.policy[0]} -> {chain.policy[1]}")
        hunks = list(_hunks(chain.lines))
        first = hunks[0][0] if hunks else None
        if first is not None and first.number > 1 and first.kind != DELETE:
            what.append(f"from rule {first.number}")
        self._hunk(chain.name, *what)
        if chain.note:
            self._note(chain.note)
        for position, hunk in enumerate(hunks):
            if position:
                self._hunk(chain.name, f"from rule {hunk[0].number}")
            for line in hunk:
                self._line(chain.name, line)

    def _line(self, chain: str, line: Line) -> None:
        rule = f"-A {visible(chain)} {visible(line.spec)}".rstrip(" ")
        remark = self._remark(line)
        self._row(_MARKS[line.kind], rule, _COLOURS[line.kind], remark)

    def _remark(self, line: Line) -> str:
        remarks = []
        if line.kind == KEPT:
            remarks.append(_kept(line.owner or "others", ": "))
        if line.moved:
            remarks.append("moved")
        elif line.kind == DELETE and line.counters and any(line.counters):
            packets, octets = line.counters
            remark = several(packets, "packet").replace(str(packets), self._count(packets), 1)
            remarks.append(f"{remark}, {octets} bytes" if self._full else remark)
        if self._full and line.where is not None and line.where.source:
            remarks.append(visible(str(line.where)))
        return ", ".join(remarks)

    # --- lines --------------------------------------------------------------------------------

    def _row(self, mark: str, row: str, colour: str, remark: str = "") -> None:
        """Add a line, or several; the remark is grey."""
        whole = f"{mark} {row}" + (f"  # {remark}" if remark else "")
        pieces = list(_broken(whole, self._width)) if self._width else [whole]
        at = len(whole) - (len(remark) + 4 if remark else 0)
        for piece in pieces:
            bare = piece.removeprefix(_INDENT) if piece is not pieces[0] else piece
            indent = piece[: len(piece) - len(bare)]
            cut = max(0, min(at, len(bare)))
            self.lines.append(
                indent + self._paint(bare[:cut], colour) + self._paint(bare[cut:], _DIM)
            )
            at -= len(bare) + 1  # the blank at which it was broken

    def _paint(self, piece: str, code: str) -> str:
        return f"\033[{code}m{piece}\033[0m" if self._colour and code and piece.strip() else piece


def _happens(change: SetChange) -> bool:
    return change.action in {"create", "swap", "destroy"}


def _hunks(lines: list[Line]) -> Iterator[list[Line]]:
    """Yield the lines in stretches without a gap, where rules that stay are left out."""
    hunk: list[Line] = []
    added = deleted = 0
    due = -1  # the place that the next line has if nothing is left out, in all lines there are
    for line in lines:
        # before a deleted line there are the added ones besides, before others the deleted ones
        place = line.number - 1 + (added if line.kind == DELETE else deleted)
        if hunk and place != due:
            yield hunk
            hunk = []
        hunk.append(line)
        added += line.kind == ADD
        deleted += line.kind == DELETE
        due = place + 1
    if hunk:
        yield hunk


def _broken(row: str, width: int) -> Iterator[str]:
    """Yield a line in pieces that fit, broken at blanks where there are any."""
    indent = ""
    while len(indent) + len(row) > width:
        room = width - len(indent)
        cut = row.rfind(" ", 1 if indent else 3, room + 1)
        if cut <= 0:
            yield indent + row[:room]
            row = row[room:]
        else:
            yield indent + row[:cut]
            row = row[cut + 1 :]
        indent = _INDENT
    yield indent + row
