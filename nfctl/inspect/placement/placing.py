"""Putting the rules of an inspection in, in both families or none."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nfctl.control.transaction import Transaction
from nfctl.errors import BadInput, Locked, NfctlError, Unsupported
from nfctl.inspect import figures
from nfctl.inspect.placement import plan as plans
from nfctl.inspect.placement import standing, tables
from nfctl.inspect.placement.placed import Placed
from nfctl.kernel import lock, netns
from nfctl.kernel.encode import Context
from nfctl.kernel.layout import OFFSETS, standard_target
from nfctl.ruleset.spec import option_places

if TYPE_CHECKING:
    from collections.abc import Container

    from nfctl.control.edit import TableEdit
    from nfctl.inspect.placement.plan import Plan
    from nfctl.kernel.encode import Encoded
    from nfctl.ruleset.words import Word

_TARGETS = ("--jump", "--goto")


def place(
    plan: Plan,
    *,
    wait: float = lock.DEFAULT_WAIT,
    network: str | None = None,
    listeners: Container[int] = (),
) -> Placed:
    """Put the rules of an inspection in; both families or none.

    A family that the kernel lacks, or in which the match means nothing, is left out where
    the other one takes it. Leftovers, of this queue and of other inspections without a listener,
    are taken out. ``wait`` is how many seconds to wait for the xtables lock, ``listeners`` are
    netlink ports that are the caller's own.

    Raises BadInput for a match that neither family takes (with the engine's words) and a chain
    whose policy is DROP, Locked (exit 4) where another program is bound to the queue or another
    inspection uses the mark, and what :class:`nfctl.control.transaction.Transaction` raises.
    """
    words = plans.check(plan)
    with netns.entered(network):
        bound = {
            queue: one for queue, one in figures.bound().items() if one.portid not in listeners
        }
        _refuse_bound(plan, bound)
        families, notes = _usable(plan, words)
        notes += _make_room(plan, bound, wait)
        for family in {4, 6} - set(families):
            standing.take_out(plan.queue, family, wait)
        jumps: dict[int, int] = {}
        tried: list[int] = []
        try:
            for family in families:
                tried.append(family)
                with Transaction(family, wait=wait) as transaction:
                    jumps[family] = _put_in(transaction, plan, words)
        except BaseException as error:
            _undo(plan.queue, tried, wait, error)
            raise
    return Placed(replace(plan, families=tuple(families)), words, jumps, notes, wait, network)


def check_free(plan: Plan, *, network: str | None = None) -> None:
    """Raise Locked where another program is bound to one of the queues."""
    with netns.entered(network):
        _refuse_bound(plan, figures.bound())


# --- what must not be ------------------------------------------------------------------------


def _refuse_bound(plan: Plan, bound: dict[int, figures.Figures]) -> None:
    taken = next((queue for queue in plan.queues if queue in bound), None)
    if taken is None:
        return
    free = figures.free_queue(bound, plan.workers)
    if free is None:
        hint = "no queue is free"
    elif plan.workers == 1:
        hint = f"queue {free} is free"
    else:
        hint = f"queues {free} to {free + plan.workers - 1} are free"
    msg = f"queue {taken} is taken: {figures.listener(bound[taken])} is bound to it"
    raise Locked(msg, hint=hint)


def _usable(plan: Plan, words: list[Word]) -> tuple[list[int], list[str]]:
    """Return the families that take the plan, and notes on those that do not."""
    families: list[int] = []
    notes: list[str] = []
    refused: list[NfctlError] = []
    for family in dict.fromkeys(plan.families):
        with standing.opened(family, "mangle") as edit:
            try:
                _check_match(edit, plan, words)
            except (BadInput, Unsupported) as error:
                refused.append(error)
                notes.append(f"IPv{family} is not inspected: {error.message}")
                continue
            tables.check_policies(edit, plan)
            if note := tables.mark_note(edit, plan):
                notes.append(note)
            families.append(family)
    if families:
        return families, notes
    first, other = refused[0], refused[-1]
    if other.message != first.message and not first.hint:
        first.hint = f"IPv{plan.families[-1]}: {other.message}"
    plans.add_excerpt(first, plan)
    raise first


def _check_match(edit: TableEdit, plan: Plan, words: list[Word]) -> None:
    """Have the engine read the match, alone and with what comes behind it."""
    _check_target(plan, words)
    for chain in plan.chains:
        chains = {*edit.user_chains, plans.inspect_chain(plan.queue)}
        context = Context("mangle", chain, chains)
        alone = edit.encoder.encode(words, context, plans.MATCH)
        if _decides(alone, edit):
            msg = "a match says which packets, and no more"
            raise BadInput(msg, hint="leave target and counters out", where=plans.MATCH)
        edit.encoder.encode(plans.jump(plan, words), context, plans.MATCH)


def _check_target(plan: Plan, words: list[Word]) -> None:
    """Refuse a target with its place, as far as one can tell before the engine reads it."""
    texts = [word.text for word in words]
    for index in option_places(texts):
        name = texts[index].partition("=")[0]
        abbreviated = len(name) > 2 and any(target.startswith(name) for target in _TARGETS)
        if name[:2] in {"-j", "-g"} or abbreviated:
            msg = f"a match says which packets, not what becomes of them: {name}"
            where = plans.MATCH._replace(column=words[index].column)
            error = BadInput(msg, hint="leave the target out", where=where)
            plans.add_excerpt(error, plan)
            raise error


def _decides(encoded: Encoded, edit: TableEdit) -> bool:
    """Whether a rule has a target or counters."""
    at = edit.encoder.layout.offsets_at
    nothing = standard_target(b"")
    return encoded.counters is not None or any(
        rule[OFFSETS.unpack_from(rule, at)[0] :] != nothing for rule in encoded.rules
    )


def _make_room(plan: Plan, bound: dict[int, figures.Figures], wait: float) -> list[str]:
    """Take out what others left; Locked where one that runs is in the way.

    A leftover must go, whatever its mark: its packets go on behind mangle, past the rules
    that come after it. Of two that run with the same bits, one would take the other's verdicts.
    """
    others = [other for other in standing.standing(bound) if other.queue != plan.queue]
    for other in others:
        if other.listener is None:
            continue
        who = f"the inspection of queue {other.queue}, by {figures.listener(other.listener)},"
        if shared := set(plan.queues) & set(other.queues):
            msg = f"{who} has queue {min(shared)} as well"
            raise Locked(msg)
        if other.mask & plan.mask:
            used = [one.mask for one in others if one.listener is not None]
            masks = plans.OTHER_MASKS
            free = next((mask for mask in masks if not any(mask & one for one in used)), 0)
            msg = f"{who} uses bits of the same mark ({other.mask:#x})"
            raise Locked(msg, hint=f"mask {free:#x} is free" if free else "")
    notes = []
    for other in others:
        if other.listener is None:
            standing.remove_here(other.queue, wait)
            notes.append(f"what an inspection of queue {other.queue} left behind was taken out")
    return notes


# --- putting in ------------------------------------------------------------------------------


def _put_in(transaction: Transaction, plan: Plan, words: list[Word]) -> int:
    """Put an inspection in, anew if it is there: filter first, so that no mark goes unheeded."""
    # in this order they are committed
    if plan.rejects:
        tables.put_in(transaction["filter"], plan, words)
    elif "filter" in standing.active(transaction.family):
        edit = transaction["filter"]
        if part := tables.parts(edit).get(plan.queue):
            tables.take_out(edit, part)
    tables.check_policies(transaction["mangle"], plan)
    return tables.put_in(transaction["mangle"], plan, words)


def _undo(queue: int, families: list[int], wait: float, error: BaseException) -> None:
    for family in families:
        try:
            standing.take_out(queue, family, wait)
        except NfctlError as second:
            if isinstance(error, NfctlError):
                error.message += f"; AND IPv{family}'s rules are still there: {second.message}"
                error.hint = error.hint or "nfctl inspect --clean takes them out"
