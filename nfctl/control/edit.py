"""One table of a transaction, edited by the words of iptables(8)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nfctl.errors import AnswerNo, BadInput, NfctlError, Where
from nfctl.kernel import extensions
from nfctl.kernel.encode import Context, Encoder
from nfctl.kernel.layout import layout
from nfctl.kernel.table import Table, with_counters
from nfctl.ruleset.names import BUILTIN_CHAINS, check_new_chain, check_policy
from nfctl.ruleset.words import Word, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.kernel.blob import Policy
    from nfctl.kernel.decode import Decoder
    from nfctl.kernel.encode import Encoded


class TableEdit:
    """One table in a transaction: what iptables(8) can do to it, by the same words.

    A rule specification is text as after ``-A CHAIN`` in iptables-save, or its words. Rule
    numbers begin at 1. Every method that changes something raises BadInput, and changes
    nothing, where it cannot.
    """

    def __init__(self, family: int, name: str, encoder: Encoder, decoder: Decoder) -> None:
        self.name = name
        self.family = family
        self._kernel: Table | None = None
        self.encoder = encoder
        self.decoder = decoder
        self.edited = False
        self._user_chains: set[str] = set()
        self._policies_set: set[str] = set()
        self._origins: dict[tuple[str, bytes], Where] = {}
        #: Where rule N of a chain came from, asked when the kernel refuses it.
        self.locate: Callable[[str, int], Where | None] = self.origin

    @property
    def kernel(self) -> Table:
        """The table through libiptc; read at the first look at it."""
        if self._kernel is None:
            self._kernel = Table(self.family, self.name)
            builtin = BUILTIN_CHAINS[self.name]
            self._user_chains.update(c for c in self._kernel.chains() if c not in builtin)
        return self._kernel

    @property
    def user_chains(self) -> set[str]:
        """The names of the user-defined chains, kept up with the edits."""
        if self._kernel is None:
            self.kernel.chains()  # opening it fills them in
        return self._user_chains

    def close(self) -> None:
        """Forget the table and the edits that were not committed."""
        if self._kernel is not None:
            self._kernel.close()

    def origin(self, chain: str, number: int) -> Where | None:
        """Return where a rule that was added one by one came from, as far as it is known."""
        for position, (_, parts) in enumerate(self.kernel.entries(chain), 1):
            if position == number:
                return self._origins.get((chain, self.decoder.canonical(parts)))
        return None

    def zero_policies(self) -> None:
        """Begin the counters of all policies at zero."""
        for chain in BUILTIN_CHAINS[self.name]:
            policy = self.kernel.policy(chain)
            if policy is not None:
                self.kernel.set_policy(chain, policy.verdict, (0, 0))
                self._policies_set.add(chain)
        self.edited = True

    def keep_policy_counters(self) -> None:
        """Have the commit keep the counters of policies that nobody set.

        libiptc would begin them at zero with every commit (it maps them as zeroed), so the
        iptables command resets them with each rule it adds.
        """
        for chain in BUILTIN_CHAINS[self.name]:
            if chain not in self._policies_set:
                policy = self.kernel.policy(chain)
                if policy is not None and (policy.packets or policy.octets):
                    counters = (policy.packets, policy.octets)
                    self.kernel.set_policy(chain, policy.verdict, counters)

    # --- looking ------------------------------------------------------------------------------

    def chains(self) -> list[str]:
        """Return the chains' names, the built-in ones first."""
        return self.kernel.chains()

    def policy(self, chain: str) -> Policy | None:
        """Return a built-in chain's policy with its counters; None for a user-defined chain."""
        return self.kernel.policy(self.chain(chain))

    def rules(self, chain: str) -> list[str]:
        """Return the specifications of a chain's rules, as iptables-save prints them."""
        return self.decoder.specs([parts for _, parts in self.kernel.entries(self.chain(chain))])

    def chain(self, name: str) -> str:
        """Return ``name`` if there is such a chain; BadInput otherwise."""
        if self.kernel.has_chain(name):
            return name
        import difflib

        msg = f"table {self.name} has no chain {name}"
        close = difflib.get_close_matches(name, self.chains(), n=3, cutoff=0.5)
        upper = name.upper()
        elsewhere = [table for table, names in BUILTIN_CHAINS.items() if name in names]
        hint = ""
        if elsewhere:
            hint = f"it is a chain of the tables {', '.join(elsewhere)}: use -t"
        elif upper != name and upper in self.chains():
            hint = f"did you mean {upper}?"
        elif close:
            hint = f"did you mean {' or '.join(close)}?"
        raise BadInput(msg, hint=hint)

    def find(
        self,
        chain: str,
        spec: str | Sequence[str] | Sequence[Word],
        where: Where | None = None,
    ) -> list[int]:
        """Return the numbers of the rules that are this specification, byte for byte."""
        wanted = set(self._encode(chain, spec, where).rules)
        canonical = self.decoder.canonical
        return [
            number
            for number, (_, parts) in enumerate(self.kernel.entries(chain), 1)
            if canonical(parts) in wanted
        ]

    def check(
        self,
        chain: str,
        spec: str | Sequence[str] | Sequence[Word],
        where: Where | None = None,
    ) -> bool:
        """Whether the chain has every rule the specification stands for (``iptables -C``)."""
        wanted = set(self._encode(chain, spec, where).rules)
        canonical = self.decoder.canonical
        for _, parts in self.kernel.entries(chain):
            wanted.discard(canonical(parts))
            if not wanted:
                return True
        return False

    def length(self, chain: str) -> int:
        """Return how many rules a chain has."""
        return sum(1 for _ in self.kernel.entries(self.chain(chain)))

    # --- rules --------------------------------------------------------------------------------

    def _encode(
        self, chain: str, spec: str | Sequence[str] | Sequence[Word], where: Where | None = None
    ) -> Encoded:
        if isinstance(spec, str):
            words = split(spec)
        else:
            words = [word if isinstance(word, Word) else Word(word) for word in spec]
        context = Context(self.name, self.chain(chain), self.user_chains)
        return self.encoder.encode(words, context, where)

    def append(
        self,
        chain: str,
        spec: str | Sequence[str] | Sequence[Word],
        counters: tuple[int, int] | None = None,
        where: Where | None = None,
    ) -> int:
        """Append the rule (the rules, where it names several addresses); return how many."""
        encoded = self._encode(chain, spec, where)
        name = chain.encode("utf-8", "surrogateescape")
        for entry in encoded.rules:
            self.kernel.append(name, self._counted(entry, encoded.counters or counters))
            self._remember(chain, entry, where)
        self.edited = True
        return len(encoded.rules)

    def insert(
        self,
        chain: str,
        spec: str | Sequence[str] | Sequence[Word],
        number: int = 1,
        counters: tuple[int, int] | None = None,
        where: Where | None = None,
    ) -> int:
        """Insert the rule so that it becomes number ``number``; return how many were inserted."""
        encoded = self._encode(chain, spec, where)
        self._number(chain, number, insert=True)
        # like iptables: several addresses are inserted one after the other at the same place
        for entry in encoded.rules:
            self.kernel.insert(chain, self._counted(entry, encoded.counters or counters), number)
            self._remember(chain, entry, where)
        self.edited = True
        return len(encoded.rules)

    def replace(
        self,
        chain: str,
        number: int,
        spec: str | Sequence[str] | Sequence[Word],
        counters: tuple[int, int] | None = None,
        where: Where | None = None,
    ) -> None:
        """Replace rule ``number``; its counters begin anew, as with iptables -R."""
        encoded = self._encode(chain, spec, where)
        if len(encoded.rules) != 1:
            msg = "Replacement rule does not specify a unique address"
            raise BadInput(msg, where=where)
        self._number(chain, number)
        entry = self._counted(encoded.rules[0], encoded.counters or counters)
        self.kernel.replace(chain, entry, number)
        self._remember(chain, encoded.rules[0], where)
        self.edited = True

    def delete(
        self,
        chain: str,
        rule: int | str | Sequence[str] | Sequence[Word],
        where: Where | None = None,
    ) -> int:
        """Delete a rule by number, or the first that is this specification; return how many.

        Raises AnswerNo (exit 1) where there is no such rule.
        """
        if isinstance(rule, int):
            self._number(chain, rule)
            self.kernel.delete(chain, rule)
            self.edited = True
            return 1
        numbers = []
        for entry in self._encode(chain, rule, where).rules:
            canonical = self.decoder.canonical
            found = next(
                (
                    number
                    for number, (_, parts) in enumerate(self.kernel.entries(chain), 1)
                    if number not in numbers and canonical(parts) == entry
                ),
                None,
            )
            if found is None:
                msg = f"chain {chain} of table {self.name} has no such rule"
                raise AnswerNo(msg, hint="nfctl rule list -S shows the rules there are")
            numbers.append(found)
        for number in sorted(numbers, reverse=True):
            self.kernel.delete(chain, number)
        self.edited = True
        return len(numbers)

    def zero(self, chain: str | None = None, number: int | None = None) -> None:
        """Zero the counters of a rule, of a chain and its policy, or of all chains."""
        if chain is not None and number is not None:
            self._number(chain, number)
            self.kernel.zero_rule(chain, number)
        else:
            names = [self.chain(chain)] if chain else self.chains()
            for name in names:
                self.kernel.zero(name)
            self._policies_set.update(names)
        self.edited = True

    def _counted(self, entry: bytes, counters: tuple[int, int] | None) -> bytes:
        if not counters or counters == (0, 0):
            return entry
        return with_counters(entry, self.family, *counters)

    def _remember(self, chain: str, entry: bytes, where: Where | None) -> None:
        if where is not None:
            self._origins[chain, entry] = where

    def _number(self, chain: str, number: int, *, insert: bool = False) -> None:
        rules = self.length(chain)
        last = rules + 1 if insert else rules
        if not 1 <= number <= last:
            has = _count(rules, "rule")
            msg = f"chain {chain} of table {self.name} has {has}, there is no number {number}"
            raise BadInput(msg)

    # --- chains -------------------------------------------------------------------------------

    def create_chain(self, name: str) -> None:
        """Create a user-defined chain."""
        self.check_chain_name(name)
        self.kernel.create_chain(name)
        self.user_chains.add(name)
        self.edited = True

    def check_chain_name(self, name: str) -> None:
        """Raise BadInput unless a new chain may be called ``name``."""
        check_new_chain(name)
        if self.kernel.has_chain(name):
            msg = f"table {self.name} has a chain {name} already"
            raise BadInput(msg)
        with contextlib.suppress(NfctlError):
            if extensions.find("target", name, layout(self.family)) is None:
                return
        msg = f"chain name {name} is that of a target extension"
        raise BadInput(msg, hint="a jump to it would be ambiguous")

    def delete_chain(self, name: str) -> None:
        """Delete a user-defined chain that is empty and that no rule jumps to."""
        self._user_chain(name, "deleted")
        if references := self.kernel.references(name):
            msg = f"chain {name} of table {self.name} is in use: {_count(references, 'jump')} to it"
            raise BadInput(msg, hint=self._users(name))
        if rules := self.length(name):
            msg = f"chain {name} of table {self.name} is not empty: it has {_count(rules, 'rule')}"
            raise BadInput(msg, hint=f"nfctl chain flush {name} first, or delete with --flush")
        self.kernel.delete_chain(name)
        self.user_chains.discard(name)
        self.edited = True

    def _users(self, name: str) -> str:
        jump = name.encode("utf-8", "surrogateescape")
        users = [
            f"{chain} rule {number}"
            for chain in self.chains()
            for number, (_, parts) in enumerate(self.kernel.entries(chain), 1)
            if parts.jump == jump
        ]
        more = f" and {len(users) - 5} more" if len(users) > 5 else ""
        return f"the jumps: {', '.join(users[:5])}{more}"

    def rename_chain(self, name: str, new: str) -> None:
        """Rename a user-defined chain; the jumps to it follow."""
        self._user_chain(name, "renamed")
        self.check_chain_name(new)
        self.kernel.rename_chain(name, new)
        self.user_chains.discard(name)
        self.user_chains.add(new)
        self.edited = True

    def flush(self, name: str | None = None) -> None:
        """Delete all rules of a chain, or of all chains."""
        for chain in [self.chain(name)] if name else self.chains():
            self.kernel.flush(chain)
            self.edited = True

    def set_policy(self, chain: str, policy: str, counters: tuple[int, int] | None = None) -> None:
        """Set a built-in chain's policy: ACCEPT or DROP (in nat, ACCEPT only).

        Its counters become ``counters``; None begins at zero, as iptables -P does.
        """
        check_policy(policy)
        if not self.kernel.is_builtin(self.chain(chain)):
            msg = f"chain {chain} is user-defined; only built-in chains have a policy"
            raise BadInput(msg)
        if self.name == "nat" and policy == "DROP":
            msg = 'The "nat" table is not intended for filtering, the use of DROP is inhibited.'
            raise BadInput(msg, hint="drop in table filter or raw")
        self.kernel.set_policy(chain, policy, counters)
        self._policies_set.add(chain)
        self.edited = True

    def _user_chain(self, name: str, verb: str) -> None:
        if self.kernel.is_builtin(self.chain(name)):
            msg = f"chain {name} is built-in and cannot be {verb}"
            raise BadInput(msg)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
