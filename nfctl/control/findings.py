"""What `nfctl doctor` finds: facts with a state, and what to do about each.

A finding is data; :mod:`nfctl.cli.doctor` prints it. ``MISSING`` means that nfctl needs it
and has it not, ``WARN`` that something works less than it could or endangers the rules,
``NOTE`` that one should know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """How much a fact matters."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: ``section`` and ``name`` are stable keys, ``fact`` and ``advice`` are for people.

    ``data`` holds the fact's parts for programs. ``fails`` makes the answer of the command no
    although nothing is missing.
    """

    section: str
    name: str
    state: State
    fact: str
    advice: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    fails: bool = False

    @property
    def bad(self) -> bool:
        """Whether this finding alone makes the exit code 1."""
        return self.fails or self.state is State.MISSING

    def document(self) -> dict[str, object]:
        """Return the finding as a JSON object."""
        return {
            "section": self.section,
            "name": self.name,
            "state": self.state.value,
            "fact": self.fact,
            "advice": self.advice,
            "data": dict(self.data),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 if nfctl has what it needs and one backend at most holds rules, otherwise 1."""
        return 1 if any(finding.bad for finding in self.findings) else 0

    def document(self) -> dict[str, object]:
        """Return the report as one JSON object."""
        return {
            "ok": self.exit_code == 0,
            "findings": [finding.document() for finding in self.findings],
        }


def count(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 rule``, ``2 rules``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
