"""What can be said of rules without a packet: how many there are, and which never match."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nfctl.inspect.rules.expression import All, Any_, Leaf, Not

if TYPE_CHECKING:
    from nfctl.inspect.rules.expression import Tree
    from nfctl.inspect.rules.plan import Rule, Rules

_MOST_COMPARED: Final = 500  # rules, each with each; of more, only with rules for every packet


def describe(rules: Rules) -> list[str]:
    """Return a line with their number and default, and one for each rule that never matches."""
    number = len(rules.rules)
    lines = [f"{number} rule{'' if number == 1 else 's'}, default {rules.default.action}"]
    deciding: list[Rule] = []  # what may be before a rule and decide all of its packets
    for rule in rules.rules:
        before = next((other for other in deciding if _decides(other, rule)), None)
        if before is not None:
            what = "every packet" if _is_empty(before.when) else "all its packets"
            place = f"{rule.where}: " if rule.where else ""
            lines.append(
                f'{place}"{rule.name}" can never match: "{before.name}" decides {what} before it'
            )
        elif rule.rate is None and (_is_empty(rule.when) or number <= _MOST_COMPARED):
            deciding.append(rule)
    return lines


def _decides(first: Rule, second: Rule) -> bool:
    """Whether a rule surely matches wherever another does."""
    if second.malformed and not first.malformed:
        return False
    return _covers(first.when, second.when)


def _covers(first: Tree, second: Tree) -> bool:
    """Whether one tree is surely true wherever another is."""
    if isinstance(second, Any_):
        return all(_covers(first, part) for part in second.parts)
    if isinstance(first, Any_):
        return any(_covers(part, second) for part in first.parts)
    if isinstance(first, All):
        return all(_covers(part, second) for part in first.parts)
    if isinstance(second, All):
        return any(_covers(first, part) for part in second.parts)
    if isinstance(first, Not):
        return isinstance(second, Not) and _covers(second.part, first.part)
    return isinstance(second, Leaf) and first.covers(second)


def _is_empty(tree: Tree) -> bool:
    return isinstance(tree, All) and not isinstance(tree, Any_) and not tree.parts
