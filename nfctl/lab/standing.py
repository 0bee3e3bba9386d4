"""Labs that stay up after the program that made them: ``nfctl lab up`` and ``down``.

A standing lab is known by its name alone. Its record's owner is ``0.0.0`` (see ``records``), so
no sweep takes it for a dead one's; inside, ``lab.json`` says who makes or made it, from which
topology, and whether it is complete. mkdir(2) of the record is the claim to the name.
"""

from __future__ import annotations

import re
import time
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from nfctl.errors import AnswerNo, BadInput, Locked
from nfctl.lab import fork, namespaces, records
from nfctl.lab.host import Host
from nfctl.lab.records import STANDING, Owner, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nfctl.lab.topology import Topology


class State(StrEnum):
    """``up``; ``making`` while its maker lives; ``broken`` if that died before it was done.

    One that somebody removes just now is ``making``, too, and ``broken`` is also one of which a
    namespace is missing.
    """

    UP = "up"
    MAKING = "making"
    BROKEN = "broken"


class Standing:
    """A lab that stands: its name, state, topology, the hosts by name, and since when (epoch).

    What is not known of a broken one is empty, or 0.
    """

    def __init__(
        self,
        name: str,
        state: State,
        topology: Topology | Callable[[], Topology],
        hosts: dict[str, Host],
        since: float,
    ) -> None:
        self.name = name
        self.state = state
        self.hosts = hosts
        self.since = since
        self._topology = topology

    @property
    def topology(self) -> Topology:
        """What the lab was made from; read from its record at first use."""
        if callable(self._topology):
            self._topology = self._topology()
        return self._topology


def up(topology: Topology, name: str = "", *, services: bool = True) -> Standing:
    """Make a lab that stays; its name is the topology's unless given.

    BadInput if a lab of that name is up already (one that is broken is removed first). Whatever
    fails, also by a signal, nothing stays behind.
    """
    from nfctl.lab.lab import Lab

    if not services:  # what is kept of it tells what there is
        topology = topology.without_services()
    lab = Lab(name or topology.name)
    lab.id = lab.name
    namespaces.require_privileges()
    records.sweep()
    since = time.time()
    note = {
        "version": 1,
        "topology": topology.document(),
        "maker": Owner.me(),
        "hosts": list(topology.hosts),
        "complete": False,
        "since": since,
    }
    record = Record(lab.id, STANDING)
    left = False
    try:
        lab.begin(partial(_claim, record, note))
        lab.build(topology)
        note["complete"] = True
        standing = Standing(lab.id, State.UP, topology, _hosts(record, lab.hosts), since)
        with fork.signals_blocked():
            record.write_note(note)
            lab.leave()
            left = True
    except BaseException:  # also a signal that was held back until all was done
        if left:
            record.remove()
        lab.close()
        raise
    return standing


def _claim(record: Record, note: dict[str, Any]) -> Record:
    """Take the name, if nobody has it; remove what is broken of it."""
    with records.locked():
        for other in _of(record.lab):
            if other.owner != STANDING:
                wanted = not other.is_abandoned()
            else:
                wanted = _state(other, other.note()) is not State.BROKEN
            if wanted:
                raise _refusal(other)
            other.erase()
        record.erase()  # there may be namespaces without a record
        record.create()
        try:
            record.write_note(note)
        except BaseException:
            record.erase()
            raise
    return record


def _refusal(other: Record) -> BadInput:
    name = other.lab
    if other.owner != STANDING:
        return BadInput(f'a lab "{name}" belongs to the process {other.owner.pid}')
    note = other.note()
    state = "up already"
    if _state(other, note) is State.MAKING:
        state = f"being made or removed by the process {records.maker(note).pid}"
    return BadInput(
        f'a lab "{name}" is {state}',
        hint=f"nfctl lab down {name} removes it; --name gives this one another name",
    )


def down(name: str) -> None:
    """Remove a lab entirely: processes, namespaces, files; also one that is half made.

    AnswerNo if nothing of that name is left; Locked while somebody makes it, BadInput if it
    belongs to a process and goes with that.
    """
    namespaces.check_word(name, "lab")
    namespaces.require_privileges()
    with records.locked(), fork.signals_blocked():
        found = _of(name)
        for record in found:
            if record.owner != STANDING:
                if not record.is_abandoned():
                    raise _refusal(record)
                continue
            note = record.note()
            if not note.get("complete") and records.maker(note).is_alive():
                raise Locked(
                    f'the lab "{name}" is being made by the process {records.maker(note).pid}',
                    hint="it is removed if you end that",
                )
            # If we are killed before all is gone, the next sweep goes on.
            if note:
                record.write_note(note | {"complete": False, "maker": Owner.me()})
        if not found and not _namespaces(name):
            raise _none(name)
        for record in found or [Record(name, STANDING)]:
            record.erase()


def labs() -> list[Standing]:
    """Return all labs that stand, sorted by name; also those found by their namespaces only."""
    orphans = _named()
    found = records.records()
    orphans -= {record.lab for record in found}
    orphans &= _named() if orphans else orphans  # one that was removed meanwhile is none
    standing = [_standing(record) for record in found if record.owner == STANDING]
    standing += [_standing(Record(name, STANDING)) for name in orphans]
    return sorted(standing, key=lambda lab: lab.name)


def find(name: str = "") -> Standing:
    """Return the lab called ``name``, or the only one; AnswerNo where there is none.

    BadInput if no name is given and several are up, with their names.
    """
    if name:
        record = Record(name, STANDING)
        if record in records.records():
            return _standing(record)
    found = [lab for lab in labs() if name in {"", lab.name}]
    if not found:
        raise _none(name)
    if len(found) > 1:
        names = ", ".join(lab.name for lab in found)
        raise BadInput("which lab?", hint=f"several are up: {names}")
    return found[0]


def _none(name: str) -> AnswerNo:
    known = ", ".join(lab.name for lab in labs())
    return AnswerNo(
        f'there is no lab "{name}"' if name else "no lab is up",
        hint=f"up are: {known}" if known else "nfctl lab up makes one",
    )


def _of(name: str) -> list[Record]:
    return [record for record in records.records() if record.lab == name]


def _prefix(name: str) -> str:
    return f"{namespaces.PREFIX}{name}-"


def _named() -> set[str]:
    """Return the labs that there are namespaces of."""
    found = (
        re.fullmatch(rf"{namespaces.PREFIX}([a-z][a-z0-9]*)-[a-z0-9_]+", namespace)
        for namespace in namespaces.names()
    )
    return {match[1] for match in found if match}


def _state(record: Record, note: dict[str, Any]) -> State:
    if not note.get("complete"):
        return State.BROKEN if records.maker(note).is_alive() is False else State.MAKING
    there = set(_namespaces(record.lab))
    wanted = {_prefix(record.lab) + name for name in note["hosts"]}
    return State.UP if wanted <= there else State.BROKEN


def _standing(record: Record) -> Standing:
    note = record.note()
    names = note.get("hosts")
    if names is None:
        found = (name.removeprefix(_prefix(record.lab)) for name in _namespaces(record.lab))
        names = [name for name in found if name.isalnum()]  # the switch is no host
    hosts = _hosts(record, names)
    topology = partial(_topology, note)
    return Standing(record.lab, _state(record, note), topology, hosts, note.get("since", 0.0))


def _topology(note: dict[str, Any]) -> Topology:
    from nfctl.lab.topology import Topology

    return Topology.from_document(note["topology"]) if note else Topology("", {}, {})


def _hosts(record: Record, names: Iterable[str]) -> dict[str, Host]:
    prefix = _prefix(record.lab)
    return {name: Host(name, prefix + name, record.path / name) for name in names}


def _namespaces(lab: str) -> list[str]:
    return namespaces.names(_prefix(lab))
