"""What a policy wants, with everything expanded: families, tables, chains, rules, sets.

This is what YAML policies and iptables-save files both come to, and all that the layers below
know of them. Nothing in here was checked by libxtables yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.document import Node
    from nfctl.ruleset.words import Word
    from nfctl.services.model import Listed

#: The name of a policy whose file gives it none.
DEFAULT_NAME = "default"


class WantedRule(NamedTuple):
    """A rule: the text after ``-A CHAIN``, and where it came from."""

    spec: str
    source: str = ""
    line: int = 0
    column: int = 0
    words: tuple[Word, ...] | None = None  # instead of spec, where iptables-restore split it
    origin: Node | None = None  # the text in a YAML policy; see ``policy.places``

    @property
    def where(self) -> Where:
        """The place of the rule's first word."""
        return Where(self.source, self.line, self.column)


@dataclass(slots=True)
class WantedChain:
    """A chain. ``policy`` is ACCEPT or DROP, or None: left as it is, or no built-in chain.

    ``shared``: only the rules that this policy itself put there are its own, and new ones come
    before those of others.
    """

    rules: list[WantedRule] = field(default_factory=list)
    policy: str | None = None
    where: Where | None = None
    shared: bool = False


@dataclass(slots=True)
class WantedTable:
    """The chains of a table that the policy names.

    ``whole``: chains that it does not name are to go, too, unless they are another program's
    (what iptables-save files mean); otherwise such chains are left alone.
    """

    chains: dict[str, WantedChain] = field(default_factory=dict)
    whole: bool = False
    where: Where | None = None


@dataclass(slots=True)
class WantedSet:
    """An ipset (ipset(8)). ``entries`` None: others fill it; nfctl only sees that it exists.

    ``options`` are create options by their names in ipset(8), as text ("timeout": "300");
    a flag's value is "". ``type`` is as in ipset(8): ``hash:ip``. ``family`` is 4 or 6, or 0
    for types that have none. ``origins`` are the entries' places in a YAML policy, one each.
    """

    name: str
    type: str
    family: int = 0
    options: dict[str, str] = field(default_factory=dict)
    entries: list[str] | None = None
    where: Where | None = None
    origins: Sequence[Node] = field(default=(), compare=False, repr=False)


class Keep(NamedTuple):
    """What else is another's: rules or chains that match. Exactly one of these is not "".

    ``chain`` is a glob (fnmatch) of chains' names, ``comment`` and ``interface`` are globs of
    a rule's comment and of interfaces it names, ``rule`` a glob of its text in iptables-save.
    """

    chain: str = ""
    comment: str = ""
    interface: str = ""
    rule: str = ""


@dataclass(slots=True)
class Wanted:
    """A whole policy. ``files`` are the files it was read from, each with its sha256 (hex).

    ``raw`` is the text of an iptables-save file by family, where it was one: nothing else has to
    be remembered of such a policy. ``services`` is the list that the chains were made from; then
    all chains are the policy's that have names as ``services.names`` makes them.
    """

    name: str = DEFAULT_NAME
    tables: dict[int, dict[str, WantedTable]] = field(default_factory=dict)  # by family, by name
    sets: list[WantedSet] = field(default_factory=list)
    keep: list[Keep] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    raw: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    services: Listed | None = field(default=None, repr=False)

    @property
    def rules(self) -> int:
        """How many rules there are in all families and tables."""
        return sum(
            len(chain.rules)
            for tables in self.tables.values()
            for table in tables.values()
            for chain in table.chains.values()
        )
