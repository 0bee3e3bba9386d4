"""A policy, resolved, as iptables-save text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import join

if TYPE_CHECKING:
    from nfctl.policy.wanted import Wanted, WantedRule, WantedTable


def save_text(wanted: Wanted) -> dict[int, str]:
    """Return the rules of each family as iptables-save text; ``saved.parse`` reads it back.

    A built-in chain whose policy is to stay as it is has ``-`` for one.
    """
    return {
        family: "".join(_section(name, table) for name, table in tables.items())
        for family, tables in wanted.tables.items()
    }


def spec_text(rule: WantedRule) -> str:
    """Return the text behind ``-A CHAIN``."""
    if rule.words is not None:
        return join([word.text for word in rule.words])
    return rule.spec


def _section(name: str, table: WantedTable) -> str:
    builtin = BUILTIN_CHAINS[name]
    lines = [f"*{name}"]
    for chain, what in table.chains.items():
        policy = (what.policy if chain in builtin else None) or "-"
        lines.append(f":{chain} {policy} [0:0]")
    for chain, what in table.chains.items():
        head = f"-A {join([chain])} "
        lines += [
            (head + (rule.spec if rule.words is None else spec_text(rule))).rstrip(" ")
            if not rule.spec
            else head + rule.spec
            for rule in what.rules
        ]
    lines.append("COMMIT\n")
    return "\n".join(lines)
