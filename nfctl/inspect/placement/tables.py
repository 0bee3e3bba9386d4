"""What inspections have in one table: finding it, taking it out, putting it in, moving it.

A rule is an inspection's if it bears the comment ``nfctl inspect N`` and jumps to a chain; a
chain by its name. A chain that was renamed is known by the jump to it and by its last rule.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, Unsupported
from nfctl.inspect.figures import MAX_QUEUE
from nfctl.inspect.placement import plan as plans
from nfctl.kernel.layout import EXTENSION_HEADER
from nfctl.kernel.table import counters_of, with_counters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nfctl.control.edit import TableEdit
    from nfctl.inspect.placement.plan import Plan
    from nfctl.kernel.decode import Parts
    from nfctl.ruleset.words import Word

_NAME = re.compile(r"NFCTL-(INSPECT|VERDICT|REJECT)-(0|[1-9][0-9]{0,4})")
# struct xt_entry_match of a comment: its name in 29 bytes, of which what is behind the NUL means
# nothing, the revision, and the text
_TAG = re.compile(rb"comment\0.{22}nfctl inspect (0|[1-9][0-9]{0,4})\0", re.DOTALL)
_TAG_TEXT = b"nfctl inspect "
_QUEUES = struct.Struct("=HH")  # struct xt_NFQ_info_v1 to _v3 begin so: first queue, how many
_BITS = re.compile(r"-m mark ! --mark 0x0/(0x[0-9a-f]+) -g ")
_SET = re.compile(r"-j (MARK|CONNMARK) --set-xmark (0x[0-9a-f]+)/(0x[0-9a-f]+)")
_COPY = re.compile(
    r"-j CONNMARK --(save|restore)-mark --nfmask (0x[0-9a-f]+) --ctmask (0x[0-9a-f]+)"
)
_NAMED = 3


class Removed(NamedTuple):
    """What was taken out of one table; ``kept`` are chains, empty now, that others jump to."""

    queue: int
    family: int
    table: str
    rules: int
    chains: tuple[str, ...]
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a line."""
        what = ["1 rule" if self.rules == 1 else f"{self.rules} rules"] if self.rules else []
        what += [f"chain {name}" for name in self.chains]
        what += [f"the rules of chain {name} (others jump to it)" for name in self.kept]
        return f"table {self.table} (IPv{self.family}): {', '.join(what)}"


@dataclass(slots=True)
class Part:
    """What a table has of one inspection, all of it or a rest.

    ``jumps`` are (chain, number) of tagged rules, ``renamed`` chains that seem to be its own,
    ``last`` the last of its queues, ``mask`` the bits of the mark it uses (0 if unknown).
    """

    queue: int
    jumps: list[tuple[str, int]] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    last: int = 0
    mask: int = 0

    @property
    def queues(self) -> range:
        """The numbers of its queues."""
        return range(self.queue, max(self.queue, self.last) + 1)


# --- finding ---------------------------------------------------------------------------------


def parts(edit: TableEdit) -> dict[int, Part]:
    """Return what the table has of each inspection, by its queue."""
    found: dict[int, Part] = {}
    suspects: list[tuple[str, int]] = []
    for chain in edit.chains():
        name = _NAME.fullmatch(chain)
        if name is not None and int(name[2]) <= MAX_QUEUE:
            _part(found, int(name[2])).chains.append(chain)
        for number, rule in _rules(edit, chain):
            queue = tagged(edit, rule)
            if queue is not None:
                _part(found, queue).jumps.append((chain, number))
                suspects.append((_jump(rule), queue))
    known = {chain for part in found.values() for chain in part.chains}
    for part in found.values():
        for chain in part.chains:
            suspects += [(target, part.queue) for target in _learn(edit, chain, part)]
    while suspects:
        chain, queue = suspects.pop()
        if chain not in known and _looks_ours(edit, chain, queue):
            known.add(chain)
            found[queue].renamed.append(chain)
            suspects += [(target, queue) for target in _learn(edit, chain, found[queue])]
    return found


def _part(found: dict[int, Part], queue: int) -> Part:
    return found.setdefault(queue, Part(queue))


def _rules(edit: TableEdit, chain: str) -> Iterator[tuple[int, Parts]]:
    for number, (_, rule) in enumerate(edit.kernel.entries(chain), 1):
        yield number, rule


def _jump(rule: Parts) -> str:
    return (rule.jump or b"").decode("utf-8", "surrogateescape")


def tagged(edit: TableEdit, rule: Parts) -> int | None:
    """Return whose inspection a rule jumps to, by its comment; None for others' rules."""
    if _TAG_TEXT not in rule.matches or not rule.jump:
        return None
    found = _TAG.search(rule.matches)
    if found is None or int(found[1]) > MAX_QUEUE or _jump(rule) not in edit.user_chains:
        return None
    return int(found[1])


def _learn(edit: TableEdit, chain: str, part: Part) -> list[str]:
    """Learn queues and mask from a chain that queues; return the chains it goes to."""
    targets = []
    for _, rule in _rules(edit, chain):
        first, count = _queues(rule)
        if first == part.queue:
            part.last = max(part.last, first + count - 1)
        elif rule.jump and _jump(rule) in edit.user_chains:
            targets.append(_jump(rule))
            if bits := _BITS.search(_text(edit, rule)):
                part.mask |= int(bits[1], 16)
    return targets


def _queues(rule: Parts) -> tuple[int, int]:
    """Return the first queue of an NFQUEUE rule and how many there are; (-1, 0) for others."""
    if not rule.target[2:].startswith(b"NFQUEUE\0"):
        return -1, 0
    revision = rule.target[EXTENSION_HEADER.size - 1]
    first, count = _QUEUES.unpack_from(rule.target, EXTENSION_HEADER.size)
    return first, count if revision else 1


def _text(edit: TableEdit, rule: Parts) -> str:
    try:
        return edit.decoder.specs([rule])[0]
    except Unsupported:  # made by an iptables that has more extensions than this one
        return ""


def _looks_ours(edit: TableEdit, chain: str, queue: int) -> bool:
    """Whether a chain ends as ours do: in NFQUEUE, MARK or REJECT."""
    rules = list(_rules(edit, chain))
    if not rules:
        return False
    _, last = rules[-1]
    ends = (b"MARK\0", b"REJECT\0")
    return _queues(last)[0] == queue or last.target[2:].startswith(ends)


def check_policies(edit: TableEdit, plan: Plan) -> None:
    """Raise BadInput for a chain whose end lets nothing through."""
    for chain in plan.chains:
        policy = edit.policy(chain)
        if policy is not None and policy.verdict != "ACCEPT":
            msg = (
                f"the policy of {chain} in table {edit.name} (IPv{edit.family}) is "
                f"{policy.verdict}: inspection would let in what reaches the end of the chain"
            )
            raise BadInput(msg, hint="inspect another chain, or have table filter drop instead")


def foreign_marks(edit: TableEdit, plan: Plan) -> list[str]:
    """Name rules of others that change bits of the mark which the inspection uses.

    A packet whose bits they set goes past the inspection; one that comes back with a verdict
    and loses it there is queued once more, and again.
    """
    found = []
    for chain in edit.chains():
        if _NAME.fullmatch(chain):
            continue
        for number, rule in _rules(edit, chain):
            if rule.target[2:].startswith((b"MARK\0", b"CONNMARK\0")):
                mark, connmark = _changed(_text(edit, rule))
                if (mark | (connmark if plan.offload else 0)) & plan.mask:
                    found.append(f"{chain} rule {number}")
    return found


def _changed(text: str) -> tuple[int, int]:
    """Return the bits that a rule changes in a packet's mark and in a connection's."""
    if found := _SET.search(text):
        bits = int(found[2], 16) | int(found[3], 16)
        return (bits, 0) if found[1] == "MARK" else (0, bits)
    if found := _COPY.search(text):
        bits = int(found[2], 16) | int(found[3], 16)
        return (bits, 0) if found[1] == "restore" else (0, bits)
    return 0, 0


def mark_note(edit: TableEdit, plan: Plan) -> str:
    """Return a warning about :func:`foreign_marks`, or ""."""
    found = foreign_marks(edit, plan)
    if not found:
        return ""
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    verb = "changes" if len(found) == 1 else "change"
    return (
        f"table {edit.name} (IPv{edit.family}): {', '.join(found[:_NAMED])}{more} {verb} bits of "
        f"the mark that carry verdicts ({plan.mask:#x}): packets may go past the inspection, or "
        "be queued again and again; --set-xmark takes a mask, and so does the inspection"
    )


# --- taking out, putting in ------------------------------------------------------------------


def take_out(edit: TableEdit, part: Part) -> Removed:
    """Take an inspection out of the table; others' rules stay as they are."""
    for chain, number in sorted(part.jumps, reverse=True):
        edit.delete(chain, number)
    for chain in part.chains:
        edit.flush(chain)
    own = list(part.chains)
    for chain in part.renamed:  # those that are jumped to first
        if not edit.kernel.references(chain):
            edit.flush(chain)
            own.append(chain)
    # a jump from one of these to another is gone by now
    gone = tuple(chain for chain in own if not edit.kernel.references(chain))
    for chain in gone:
        edit.delete_chain(chain)
    kept = tuple(chain for chain in part.chains if chain not in gone)
    return Removed(part.queue, edit.family, edit.name, len(part.jumps), gone, kept)


def put_in(edit: TableEdit, plan: Plan, words: list[Word]) -> int:
    """Put into mangle, or filter, what an inspection has there, anew where it is there already.

    Return of how many rules each jump consists: one for each pair of addresses that the match,
    ``words``, names.
    """
    if part := parts(edit).get(plan.queue):
        take_out(edit, part)
    jumps = 1
    if edit.name == "mangle":
        _fill(edit, plans.mangle_chains(plan))
        for chain in plan.chains:
            jumps = edit.append(chain, plans.jump(plan, words), where=plans.MATCH)
    else:
        _fill(edit, plans.filter_chains(plan))
        for chain in plan.reject_chains:
            edit.insert(chain, plans.reject_jump(plan))
    return jumps


def _fill(edit: TableEdit, chains: dict[str, list[str]]) -> None:
    for chain in chains:
        if edit.kernel.has_chain(chain):  # kept, because others jump to it
            edit.flush(chain)
        else:
            edit.create_chain(chain)
    for chain, rules in chains.items():
        for rule in rules:
            edit.append(chain, rule)


# --- being the last --------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Where an inspection's jumps are to be in a table, and the chains it needs there.

    ``jumps`` is of how many rules each consists: one for each pair of addresses that the match
    names. ``at_end`` tells whether they come behind all other rules or before them.
    """

    queue: int
    builtin: tuple[str, ...]
    jumps: int
    chains: dict[str, list[str]]
    at_end: bool


def whole(edit: TableEdit, wanted: Wanted) -> bool:
    """Whether all of the inspection is there, wherever it stands."""
    for chain in wanted.builtin:
        if sum(queue == wanted.queue for queue in _tags(edit, chain)) != wanted.jumps:
            return False
    has, length = edit.kernel.has_chain, edit.length
    return all(has(chain) and length(chain) == len(rules) for chain, rules in wanted.chains.items())


def displaced(edit: TableEdit, wanted: Wanted) -> list[str]:
    """Return the built-in chains in which others' rules stand where ours should."""
    return [chain for chain in wanted.builtin if not _outermost(_tags(edit, chain), wanted)]


def _tags(edit: TableEdit, chain: str) -> list[int | None]:
    return [tagged(edit, rule) for _, rule in _rules(edit, chain)]


def _outermost(tags: list[int | None], wanted: Wanted) -> bool:
    """Whether only inspections stand between ours and the chain's end (or its beginning)."""
    missing = tags.count(wanted.queue)
    for queue in reversed(tags) if wanted.at_end else tags:
        if not missing:
            break
        if queue is None:
            return False
        missing -= queue == wanted.queue
    return True


def move(edit: TableEdit, wanted: Wanted, chains: Iterable[str]) -> None:
    """Move the jumps to the ends of these chains (or to their beginnings), with their counters."""
    for chain in chains:
        ours: list[tuple[int, bytes]] = []
        for number, (raw, rule) in enumerate(edit.kernel.entries(chain), 1):
            if tagged(edit, rule) == wanted.queue:
                counters = counters_of(raw, edit.family)
                entry = with_counters(edit.decoder.canonical(rule), edit.family, *counters)
                ours.append((number, entry))
        for number, _ in reversed(ours):
            edit.delete(chain, number)
        for position, (_, entry) in enumerate(ours, 1):
            if wanted.at_end:
                edit.kernel.append(chain.encode(), entry)
            else:
                edit.kernel.insert(chain, entry, position)
