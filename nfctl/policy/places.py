"""Where in a YAML policy the word of a rule stands that libxtables complains about.

It complains about a word of the rule as it was expanded: variables have other lengths than their
values, quotes and folds of YAML take room. Words, though, are as many before as after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from nfctl.errors import BadInput, NfctlError, Where
from nfctl.policy.families import MARKS
from nfctl.policy.variables import place
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from nfctl.policy.wanted import WantedRule

Error = TypeVar("Error", bound=NfctlError)


def exact(error: Error, rule: WantedRule) -> Error:
    """Return the error about a word of a rule with the word's own place, and the line there.

    The error's place is ``rule.where`` with the column that the word would have if ``rule.spec``
    stood there. Without a place, or of a rule that is of no YAML file, it stays as it is.
    """
    node, where = rule.origin, error.where
    if node is None or where is None or where[:2] != rule.where[:2]:
        return error
    error.where = _word(rule, where)
    error.excerpt = node.error("", where=error.where).excerpt
    return error


def _word(rule: WantedRule, where: Where) -> Where:
    node = rule.origin
    assert node is not None  # noqa: S101 - checked by the caller
    try:
        made = split(rule.spec, column=rule.column)
        words = split(node.raw.replace("\n", " "))
    except BadInput:
        return rule.where
    texts = [word.text for word in words]
    marks = {index for index in option_places(texts) if texts[index] in MARKS}
    if len(made) != len(words):
        words = [word for index, word in enumerate(words) if index not in marks]
    if len(made) != len(words) or not made:
        return rule.where
    index = max(sum(word.column <= where.column for word in made), 1) - 1
    found, written = made[index], words[index]
    # inside of a word that stands in the file as it is
    inside = where.column - found.column if found.text == written.text else 0
    return place(node, written.column - 1 + min(max(inside, 0), max(len(written.text) - 1, 0)))
