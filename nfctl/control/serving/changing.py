"""Applying a list of services, and changing the applied one.

Under the lock of the journal the applied list is read, what must not be is refused
(:mod:`nfctl.control.serving.safety`), and the new list applied, the quick way where that can be
had. With the lock released, flows that are left behind are ended
(:mod:`nfctl.control.serving.gone`).
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control import apply as applying
from nfctl.control.journal.records import Damaged
from nfctl.control.known import NotQuick
from nfctl.control.serving import desired, gone, safety, stale
from nfctl.control.serving.quick import QuickServices
from nfctl.control.snapshot import Parts
from nfctl.errors import AnswerNo, BadInput, NfctlError
from nfctl.services import reading
from nfctl.services.difference import Difference, compare
from nfctl.services.names import PREFIX, check_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.control.apply import Options, Outcome
    from nfctl.control.change import Change
    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.serving.gone import Ended
    from nfctl.services.model import ServiceList


class Done(NamedTuple):
    """What became of it: of the chains, of the list, of the flows; ``services`` is the list now."""

    outcome: Outcome
    services: ServiceList
    difference: Difference
    ended: Ended
    notes: list[str]

    @property
    def status(self) -> str:
        """The outcome's: "unchanged", "applied" or "unconfirmed"."""
        return self.outcome.status

    @property
    def change(self) -> Change:
        """The outcome's: what was done to the chains."""
        return self.outcome.change

    @property
    def differing(self) -> ServiceList:
        """The services that come or are others now, as a list."""
        return _differing(self.services, self.difference)


def _differing(settings: ServiceList, difference: Difference) -> ServiceList:
    changed = [*difference.come, *(each.after for each in difference.differ)]
    return settings._replace(services=tuple(changed))


def apply(
    settings: ServiceList,
    *,
    state: State,
    options: Options,
    files: Sequence[tuple[str, str]] = (),
    adopt: bool = False,
    end_tcp: bool = False,
) -> Done:
    """Make the kernel hold the chains of a list.

    ``adopt`` takes over chains of its prefix that somebody else made, ``end_tcp`` has the TCP and
    SCTP flows ended to endpoints that are gone. Raises as :func:`nfctl.control.apply.apply`;
    BadInput where the chains are somebody else's, AnswerNo where the operator would be cut off.
    """
    done = _apply(lambda _: settings, settings.prefix, state, options, files, adopt, end_tcp)
    # what an apply left that was killed behind its commit
    return done._replace(ended=stale.end_stale(done.services, done.ended))


def keep(
    prefix: str,
    make: Callable[[ServiceList | None], ServiceList],
    *,
    state: State,
    options: Options,
    files: Sequence[tuple[str, str]],
    adopt: bool = False,
    end_tcp: bool = False,
) -> Done:
    """Apply the list that ``make`` makes of the applied one (or of None), under the lock.

    As :func:`apply`, for a list that depends on what others made of the last one.
    """
    return _apply(make, prefix, state, options, files, adopt, end_tcp)


def change(
    prefix: str,
    edit: Callable[[ServiceList], ServiceList],
    *,
    state: State,
    options: Options,
    end_tcp: bool = False,
) -> Done:
    """Apply the list that ``edit`` makes of the applied one, under the lock."""

    def edited(before: ServiceList | None) -> ServiceList:
        if before is None:
            raise _nothing(state, prefix)
        return edit(before)

    return _apply(edited, prefix, state, options, None, False, end_tcp)


def _apply(
    make: Callable[[ServiceList | None], ServiceList],
    prefix: str,
    state: State,
    options: Options,
    files: Sequence[tuple[str, str]] | None,
    adopt: bool,
    end_tcp: bool,
) -> Done:
    # the general guard tries whole tables; whom services cut off follows from the list
    options = replace(options, guard_ssh=False)
    edited = files is None
    with state.locked(options.wait):
        record, before = _applied(state, prefix, needed=edited)
        settings = make(before)
        if files is None:
            files = record.files if record is not None else ()
        notes = safety.check_chains(prefix, state, adopt=adopt)
        notes += safety.check_operator(before, settings, force=options.force)
        difference = compare(before, settings)
        outcome = _write(settings, state, options, files, record, difference)
    if edited:
        notes += safety.useless(_differing(settings, difference), settings)
    else:
        notes += [*safety.forwarding(settings), *safety.useless(settings, settings)]
    notes += safety.shared(difference, settings.prefix, state)
    ended = gone.end_left(difference, end_tcp=end_tcp)
    return Done(outcome, settings, difference, ended, notes)


def _write(
    settings: ServiceList,
    state: State,
    options: Options,
    files: Sequence[tuple[str, str]],
    record: Record | None,
    difference: Difference,
) -> Outcome:
    planner = None
    with contextlib.suppress(NotQuick, NfctlError, OSError):
        planner = QuickServices(settings, files, state, record, difference)
    if planner is not None:
        wanted = planner.wanted
        work = applying.Work(lambda: wanted, state, options, planner, Parts)
        with contextlib.suppress(NotQuick):  # raised before anything is written
            return applying.under_locks(work)
    work = applying.Work(lambda: desired.wanted(settings, files), state, options, kept=Parts)
    return applying.under_locks(work)


class Planned(NamedTuple):
    """What applying a list would come to."""

    change: Change
    difference: Difference
    notes: list[str]


def plan(
    settings: ServiceList,
    *,
    state: State,
    files: Sequence[tuple[str, str]] = (),
    adopt: bool = False,
) -> Planned:
    """Return what applying a list would change; nothing is written.

    What would be refused then is among the notes.
    """
    record, before = _applied(state, settings.prefix)
    difference = compare(before, settings)
    notes = []
    try:
        notes += safety.check_chains(settings.prefix, state, adopt=adopt)
        notes += safety.check_operator(before, settings, force=False)
    except NfctlError as error:
        notes.append(f"apply will refuse this: {error}")
    change = _planned(settings, state, files, record, difference)
    notes += [*safety.forwarding(settings), *safety.useless(settings, settings)]
    notes += safety.shared(difference, settings.prefix, state)
    return Planned(change, difference, notes)


def _planned(
    settings: ServiceList,
    state: State,
    files: Sequence[tuple[str, str]],
    record: Record | None,
    difference: Difference,
) -> Change:
    with contextlib.suppress(NotQuick, NfctlError, OSError):
        planner = QuickServices(settings, files, state, record, difference)
        return planner.change(planner.plan())
    return applying.plan(desired.wanted(settings, files), state=state)


# --- the applied list -----------------------------------------------------------------------------


def current(state: State, prefix: str = PREFIX) -> ServiceList:
    """Return the list that was applied last; AnswerNo (exit 1) where there is none."""
    _, found = _applied(state, prefix, needed=True)
    if found is None:
        raise _nothing(state, prefix)
    return found


def the_prefix(state: State, asked: str | None) -> str:
    """Return the prefix to act on: the one asked for, NFCTL-, or the only one that was applied."""
    if asked is not None:
        return full_prefix(asked)
    there = prefixes(state)
    return there[0] if len(there) == 1 else PREFIX


def full_prefix(asked: str) -> str:
    """Return a prefix as typed, with or without its "-"; BadInput if it is none."""
    return check_prefix(asked if asked.endswith("-") else f"{asked}-")


def prefixes(state: State) -> list[str]:
    """Return the prefixes of which services were applied."""
    return sorted(record.prefix for record in state.records() if record.prefix)


def _nothing(state: State, prefix: str) -> AnswerNo:
    there = prefixes(state)
    hint = f"there are those of {', '.join(there)}: --prefix" if there else ""
    msg = f"no services of prefix {prefix} were applied"
    return AnswerNo(msg, hint=hint or "nfctl service apply FILE")


def _applied(
    state: State, prefix: str, *, needed: bool = False
) -> tuple[Record | None, ServiceList | None]:
    """Return the record and its list; nothing for one that cannot be read, unless it is needed."""
    try:
        record = state.record(desired.policy_name(prefix))
        return record, _list_of(record) if record is not None else None
    except (Damaged, BadInput):
        if needed:
            raise
    return None, None


def _list_of(record: Record) -> ServiceList | None:
    """Return the list that a record keeps; its digest was verified."""
    if not record.services:
        return None
    try:
        return reading.recorded(json.loads(record.services))
    except (ValueError, TypeError, LookupError, AttributeError):
        msg = f"the services of prefix {record.prefix} were written by another version of nfctl"
        raise BadInput(msg, hint="apply their file again") from None
