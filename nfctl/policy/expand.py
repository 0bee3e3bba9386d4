"""Rules of a policy file, expanded: by variables' values, and by the families that they are for.

A rule is taken apart into words before its variables are looked at, so a value never is more
than one word, whatever is in it. What a list does depends on the option in front of it:

- where the option takes a list with commas (``--dports``, ``--ctstate``), it becomes one; ports
  come in as many rules as multiport needs, which takes 15 each, a range counting two;
- behind ``--match-set`` it becomes an ipset;
- everywhere else there is one rule an element, and with several lists one for each combination.

A combination whose words are of both families is none; so is an element of the wrong family.
"""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.document import shown
from nfctl.errors import BadInput
from nfctl.policy.families import SETS, Names, Told, told
from nfctl.policy.variables import Reference, Variable, Variables, pieces, place
from nfctl.policy.wanted import WantedRule
from nfctl.ruleset.spec import option_places
from nfctl.ruleset.words import Word, join, split

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from nfctl.document import Node
    from nfctl.policy.sets import Sets

MOST_RULES: Final = 10_000  # that one line may come to
MOST_IN_ALL: Final = 1_000_000
_MULTIPORTS: Final = 15
_PORTS: Final = frozenset(
    {"--dports", "--sports", "--ports", "--destination-ports", "--source-ports"}
)
_COMMAS: Final = _PORTS | {
    "--ctstate",
    "--ctstatus",
    "--state",
    "--weekdays",
    "--monthdays",
}
_ODD: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")  # control characters but the tab
_COMMAND: Final = re.compile(
    r"-[AIDRCNXFZPELSt].*|--(?:append|insert|delete|replace|check|new-chain|delete-chain|flush"
    r"|zero|policy|rename-chain|list|list-rules|table)(?:=.*)?"
)


class _Choice(NamedTuple):
    """What may stand for a word: texts, or a set's name in each family."""

    texts: Sequence[str]
    sets: dict[int, str] | None = None
    listed: bool = False  # of a list of the file
    inverted: bool = False  # a ! stands before the option


class Expander:
    """Expands the rules of one table. ``families`` are those of the policy.

    ``chains`` are the table's; ``of_chain`` has the families of those that not all have.
    """

    def __init__(
        self,
        families: Sequence[int],
        variables: Variables,
        sets: Sets,
        chains: Collection[str],
        of_chain: Mapping[str, Sequence[int]],
    ) -> None:
        self.families = families
        self.variables = variables
        self.sets = sets
        self.names = Names(chains, of_chain, sets.names)
        self._renamed = {name for name, names in sets.names.items() if len(names) > 1}
        self.count = 0

    def rule(self, node: Node, families: Sequence[int]) -> list[tuple[int, WantedRule]]:
        """Return what a rule's text comes to, with the family of each, in order.

        One of ``families`` alone, where the policy has more, is one that the file asks for.
        """
        text = node.raw
        if _ODD.search(text):
            text = self._one_line(node)
        words = self._words(node, text)
        texts = [word.text for word in words]
        if texts and texts[0][:1] == "-" and _COMMAND.fullmatch(texts[0]):
            where = place(node, words[0].column - 1)
            hint = "write only what follows -A CHAIN"
            raise node.error("the table and chain are the mapping's", hint, where=where)
        start = place(node, words[0].column - 1 if words else 0)
        if "${" in text:
            found = self._expanded(node, text, words, families)
        else:
            found = [
                (family, text.strip(" \t") if spec is texts else join(spec))
                for family, spec in self._placed(node, text, words, texts, families)
            ]
        self.count += len(found)
        if self.count > MOST_IN_ALL:
            raise node.error("the table comes to too many rules", f"{MOST_IN_ALL} at most")
        new = tuple.__new__
        return [(family, new(WantedRule, (spec, *start, None, node))) for family, spec in found]

    def _one_line(self, node: Node) -> str:
        """Return the text with its line ends as blanks; other control characters are refused."""
        text = node.raw.replace("\n", " ")
        bad = _ODD.search(text)
        if bad is not None:
            msg = f"a rule must not hold the control character U+{ord(bad[0]):04X}"
            raise node.error(msg, where=place(node, bad.start()))
        return text

    def _words(self, node: Node, text: str) -> list[Word]:
        try:
            return split(text, source="rule")
        except BadInput as error:
            at = error.where.column - 1 if error.where else 0
            wrong = node.error(error.message, where=place(node, at))
            if not node.style and " #" in wrong.excerpt:
                wrong.hint = 'in YAML " #" begins a comment: put the rule in single quotes'
            raise wrong from None

    # --- families -----------------------------------------------------------------------------

    def _placed(
        self,
        node: Node,
        text: str,
        words: Sequence[Word],
        texts: list[str],
        families: Sequence[int],
    ) -> list[tuple[int, list[str]]]:
        """Return the families that a rule without variables goes to, with its words there."""
        signs = told(text, texts, self.names)
        if not signs:
            return [(family, self._in_family(texts, family)) for family in families]
        first = signs[0]
        other = next((sign for sign in signs if sign.family != first.family), None)
        if other is not None:
            raise self._both(node, words, texts, first, other)
        if len(families) == 1 and first.family != families[0] and len(self.families) > 1:
            where = place(node, words[first.at].column - 1)
            msg = f"{shown(texts[first.at])} is of IPv{first.family}"
            raise node.error(msg, f"and the rule of IPv{families[0]}", where=where)
        if first.family not in families:
            return []
        kept = _without_marks(texts, signs)
        return [(first.family, self._in_family(kept, first.family))]

    def _both(
        self, node: Node, words: Sequence[Word], texts: Sequence[str], one: Told, other: Told
    ) -> BadInput:
        where = place(node, words[other.at].column - 1)
        if one.at == other.at:
            msg = f"{shown(texts[one.at])} has addresses of both families"
            return node.error(
                msg, "a variable with a list of them makes a rule of each", where=where
            )
        msg = f"{shown(texts[other.at])} is of IPv{other.family}"
        hint = f"and {shown(texts[one.at])} of IPv{one.family}: no packet is both"
        return node.error(msg, hint, where=where)

    def _in_family(self, texts: list[str], family: int) -> list[str]:
        """Return the words with the names that sets have in this family."""
        if self._renamed.isdisjoint(texts):
            return texts
        made = list(texts)
        for index in option_places(texts):
            if texts[index] in SETS and index + 1 < len(texts):
                name = texts[index + 1]
                if name in self._renamed:
                    made[index + 1] = self.names.sets[name][family]
        return made

    # --- variables ----------------------------------------------------------------------------

    def _expanded(
        self, node: Node, text: str, words: Sequence[Word], families: Sequence[int]
    ) -> list[tuple[int, str]]:
        choices = self._choices(node, text, words)
        if not all(choice.texts for choice in choices):
            return []  # of an empty list
        count = math.prod(len(choice.texts) for choice in choices)
        if count > MOST_RULES:
            msg = f"this line comes to {count} rules, by the lists in it"
            hint = f"{MOST_RULES} at most; an ipset takes them all in one rule"
            raise node.error(msg, hint, where=place(node, words[0].column - 1))
        found: list[tuple[int, str]] = []
        variant = {index for index, choice in enumerate(choices) if choice.listed}
        used: dict[tuple[int, int], set[str]] = {}
        negated = [index for index, choice in enumerate(choices) if choice.inverted]
        by_set = [index for index, choice in enumerate(choices) if choice.sets is not None]
        for combination in itertools.product(*[choice.texts for choice in choices]):
            texts = list(combination)
            for family, spec in self._combined(node, words, texts, families, variant):
                if any(family not in (choices[index].sets or ()) for index in by_set):
                    continue
                own = spec
                if by_set:
                    own = list(spec)
                    for index in by_set:
                        # a mark -4 in front of it may have gone
                        at = own.index(texts[index])
                        own[at] = (choices[index].sets or {})[family]
                        self.sets.use(own[at])
                for index in negated:
                    used.setdefault((index, family), set()).add(texts[index])
                found.append((family, join(own)))
        for (index, _), values in used.items():
            if len(values) > 1:
                raise self._negated(node, words, index)
        return found

    def _combined(
        self,
        node: Node,
        words: Sequence[Word],
        texts: list[str],
        families: Sequence[int],
        variant: set[int],
    ) -> list[tuple[int, list[str]]]:
        """Return the families that one combination of values goes to; see :meth:`_placed`."""
        if not variant:
            return self._placed(node, " ".join(texts), words, texts, families)
        signs = told(" ".join(texts), texts, self.names)
        fixed = [sign for sign in signs if sign.at not in variant]
        wanted = {sign.family for sign in signs}
        other = next((sign for sign in fixed if sign.family != fixed[0].family), None)
        if other is not None:
            raise self._both(node, words, texts, fixed[0], other)
        if len(wanted) < 2 and fixed:
            return self._placed(node, " ".join(texts), words, texts, families)
        kept = _without_marks(texts, signs)
        return [
            (family, self._in_family(kept, family)) for family in families if {family} >= wanted
        ]

    def _negated(self, node: Node, words: Sequence[Word], index: int) -> BadInput:
        if words[index - 1].text in _PORTS:
            msg = f"multiport takes {_MULTIPORTS} ports, and behind ! they cannot be split"
            hint = "each of several rules would match the ports of all others"
        else:
            msg = "a list behind ! makes a rule of each element, and each matches all the others"
            hint = "use -m set ! --match-set ${list} src, which leaves all of them out at once"
        return node.error(msg, hint, where=place(node, words[index].column - 1))

    def _choices(self, node: Node, text: str, words: Sequence[Word]) -> list[_Choice]:
        """Return what may stand for each word."""
        texts = [word.text for word in words]
        places = set(option_places(texts))
        option = ""
        inverted = False
        choices = []
        for index, word in enumerate(words):
            if index in places:
                inverted = index > 0 and texts[index - 1] == "!" and index - 1 in places
                option = word.text
            if "${" not in word.text:
                choices.append(_Choice((word.text,)))
            else:
                behind = "" if index in places else option
                choices.append(self._choice(node, text, word, behind, inverted))
        return choices

    def _choice(self, node: Node, text: str, word: Word, option: str, inverted: bool) -> _Choice:
        def fail(at: int, message: str, hint: str) -> BadInput:
            # a reference in quotes, or behind some, is found in the text of the rule
            start = word.column - 3
            for _ in range(word.text.count("${", 0, at) + 1):
                start = text.find("${", start + 2) if start + 2 >= 0 else start
            start = word.column - 1 if start < 0 else start
            return node.error(message, hint, where=place(node, start))

        head = ""
        body = word.text
        if not option and body[:2] == "--" and "=" in body.split("${")[0]:
            option, equals, body = body.partition("=")
            head = option + equals
        skipped = len(head)
        parts: list[str | Reference] = pieces(body, lambda at, *rest: fail(at + skipped, *rest))
        values: list[str | Variable] = []
        for part in parts:
            if isinstance(part, str):
                values.append(part)
            else:
                at = part.at + skipped
                values.append(self.variables.find(part.name, lambda *rest, at=at: fail(at, *rest)))
        lists = [value for value in values if isinstance(value, Variable) and value.listed]
        if not lists:
            made = head + "".join(
                value if isinstance(value, str) else value.values[0] for value in values
            )
            if not option and not head and len(values) == 1 and made[:1] == "-" and " " in made:
                msg = f"a variable stands for one word, and {shown(made)} is several"
                raise fail(0, msg, "write the rule's options out; a value is never taken apart")
            return _Choice((made,))
        if not all(value.values for value in lists):
            return _Choice((), listed=True)
        if option in _COMMAS and _between_commas(values):
            joined = [
                value if isinstance(value, str) else ",".join(value.values) for value in values
            ]
            if option not in _PORTS:
                return _Choice((head + "".join(joined),))
            chunks = _chunks("".join(joined).split(","))
            texts = [head + ",".join(chunk) for chunk in chunks]
            return _Choice(texts, listed=True, inverted=inverted)
        if option == "--match-set" and len(values) == 1:
            names = self.sets.derived(lists[0], lambda *rest: fail(skipped, *rest))
            return _Choice((word.text,), names, listed=True)
        size = math.prod(len(value.values) for value in lists)
        if size > MOST_RULES:
            msg = f"this comes to {size} rules, by the lists in it"
            raise fail(0, msg, f"{MOST_RULES} at most; an ipset takes them all in one rule")
        options = [(value,) if isinstance(value, str) else value.values for value in values]
        made_of = [head + "".join(row) for row in itertools.product(*options)]
        return _Choice(made_of, listed=True, inverted=inverted)


def _without_marks(texts: list[str], signs: Iterable[Told]) -> list[str]:
    marks = {sign.at for sign in signs if sign.mark}
    return [text for index, text in enumerate(texts) if index not in marks] if marks else texts


def _between_commas(values: Sequence[str | Variable]) -> bool:
    """Whether every list in a word is a part of a list with commas."""
    for index, value in enumerate(values):
        if isinstance(value, str) or not value.listed:
            continue
        before, after = values[index - 1 : index], values[index + 1 : index + 2]
        if before and not (isinstance(before[0], str) and before[0].endswith(",")):
            return False
        if after and not (isinstance(after[0], str) and after[0].startswith(",")):
            return False
    return True


def _chunks(ports: Iterable[str]) -> Iterable[list[str]]:
    """Yield as many ports as one multiport takes; a range counts two."""
    chunk: list[str] = []
    count = 0
    for port in ports:
        size = 2 if ":" in port else 1
        if count + size > _MULTIPORTS:
            yield chunk
            chunk, count = [], 0
        chunk.append(port)
        count += size
    yield chunk
