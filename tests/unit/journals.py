"""Journals for tests: states with a clock of the test's, entries and records to put in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nfctl.control.journal.records import Record
from nfctl.kernel.process import Process
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedTable

if TYPE_CHECKING:
    from nfctl.control.journal.entries import Entry
    from nfctl.control.journal.state import State

TEXT = "*filter\n:INPUT ACCEPT [1:2]\n[3:4] -A INPUT -i lo -j ACCEPT\nCOMMIT\n"
BOOT = "4d3e7d3a-0000-4000-8000-000000000001"
FILES = (("rules.yaml", "0" * 64),)


class Clock:
    """Seconds since the boot, set by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def begin(state: State, **more: Any) -> Entry:
    settings: dict[str, Any] = {"policy": "web", "action": "apply", "change": {"tables": []}}
    return state.begin(**settings | {"before": {4: TEXT, 6: ""}, "files": FILES} | more)


def a_record(rule: str = "-i lo -j ACCEPT", name: str = "web") -> Record:
    chain = WantedChain([WantedRule(rule)], "DROP")
    return Record.of(Wanted(name, {4: {"filter": WantedTable({"INPUT": chain})}}), False)


def dead() -> Process:
    """Return a process that has ended."""
    return Process.me()._replace(start=1)


def of_a_dead_one(state: State, entry: Entry) -> None:
    """Make an entry one of a process that was killed."""
    (entry.path / "entry.json").write_bytes(replace(entry, process=dead()).bytes())
    assert state.entry(entry.number).process == dead()
