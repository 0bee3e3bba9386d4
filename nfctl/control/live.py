"""A table as the kernel has it: its chains and rules as canonical bytes, as text, with counters.

One getsockopt reads it (:mod:`nfctl.kernel.blob`); everything else is worked out when it is
asked for, as most of a large table is never looked at.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.save import declaration, text_of
from nfctl.kernel.blob import Blob
from nfctl.kernel.decode import Parts
from nfctl.kernel.layout import OFFSETS, layout
from nfctl.kernel.table import active_tables
from nfctl.ruleset.names import BUILTIN_CHAINS, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from nfctl.kernel.blob import Span
    from nfctl.kernel.decode import Decoder

_ASKED = 8  # rules printed one by one, before all of a chain are printed at once
_EXTENSION_NAME = slice(2, 31)  # of struct xt_entry_target: behind its size


class LiveChain(NamedTuple):
    """A chain; ``policy`` is None for a user-defined one."""

    name: str
    policy: str | None
    spans: list[Span]


class Live:
    """A table at one moment. A table that is not in use yet is empty, and stays unused."""

    def __init__(self, family: int, table: str, decoder: Decoder) -> None:
        self.family = family
        self.table = table
        self.decoder = decoder
        self.blob = Blob(family, table) if table in active_tables(family) else None
        if self.blob is not None:
            self.chains = {
                name: LiveChain(name, policy.verdict if policy else None, spans)
                for name, policy, spans in self.blob.chains
            }
        else:
            self.chains = {name: LiveChain(name, "ACCEPT", []) for name in BUILTIN_CHAINS[table]}
        self._canonical: dict[str, list[bytes]] = {}
        self._specs: dict[str, list[str]] = {}
        self._asked = 0
        self._lines: list[str] = []  # of the rules, printed before
        self._starts: dict[str, int] = {}  # where those of each chain begin

    @property
    def user_chains(self) -> list[str]:
        """The names of the user-defined chains."""
        return [chain.name for chain in self.chains.values() if chain.policy is None]

    def spans(self, chain: str) -> list[Span]:
        """Return where the rules of a chain are; none where there is no such chain."""
        found = self.chains.get(chain)
        return found.spans if found is not None else []

    def canonical(self, chain: str) -> list[bytes]:
        """Return the rules of a chain as canonical bytes."""
        known = self._canonical.get(chain)
        if known is None:
            known = []
            if self.blob is not None:
                canonical = self.decoder.canonical
                known = [canonical(parts) for parts in self.blob.parts(self.spans(chain))]
            self._canonical[chain] = known
        return known

    def same(self, chain: str, wanted: list[bytes]) -> list[int] | None:
        """Return the indices at which a chain differs from as many rules; None if not as many."""
        spans = self.spans(chain)
        if len(spans) != len(wanted):
            return None
        if self.blob is None:
            return []
        blob, canonical = self.blob, self.decoder.canonical
        return [
            index
            for index in blob.unequal(spans, wanted)
            if canonical(blob.parts([spans[index]])[0]) != wanted[index]
        ]

    def print_as(self, text: str) -> None:
        """Take the table's text, with or without counters, from who printed it before."""
        lines = text.split("\n")[1 + len(self.chains) : -2]
        starts, count = {}, 0
        for name, _, spans in self.chains.values():
            starts[name] = count
            count += len(spans)
        if len(lines) != count:  # a comment with a line end in it
            return
        if lines and lines[0][:1] == "[":
            lines = [line.partition(" ")[2] for line in lines]
        self._lines, self._starts = lines, starts

    def lines(self, chain: str) -> list[str]:
        """Return a chain's rules as iptables-save prints them, ``-A CHAIN`` and all."""
        if not self._lines:
            return [f"-A {chain} {spec}".rstrip(" ") for spec in self.specs(chain)]
        start = self._starts[chain]
        return self._lines[start : start + len(self.chains[chain].spans)]

    def specs(self, chain: str, indices: Iterable[int] | None = None) -> list[str]:
        """Return the text of a chain's rules, or of some, as iptables-save prints them."""
        if self.blob is None:
            return []
        known = self._specs.get(chain)
        spans = self.spans(chain)
        if known is None and self._lines and spans:
            cut = len(f"-A {chain} ")
            known = self._specs[chain] = [line[cut:] for line in self.lines(chain)]
        if indices is not None:
            if known is not None:
                return [known[index] for index in indices]
            return self.decoder.specs(self.blob.parts([spans[index] for index in indices]))
        if known is None:
            known = self._specs[chain] = self.decoder.specs(self.blob.parts(spans))
        return known

    def spec(self, chain: str, index: int) -> str:
        """Return the text of one rule; whoever asks for many of a chain has all printed."""
        self._asked += 1
        if self._asked > _ASKED and chain not in self._specs:
            self.specs(chain)
        return self.specs(chain, [index])[0]

    def counters(self, chain: str, index: int) -> tuple[int, int]:
        """Return (packets, bytes) of a rule."""
        assert self.blob is not None  # noqa: S101 - it has a rule
        return self.blob.counters(self.spans(chain)[index])

    def jumps(self, chain: str) -> list[str]:
        """Return where each rule of a chain jumps or goes to; "" for what is no chain."""
        if self.blob is None:
            return []
        return [
            "" if parts.jump is None else parts.jump.decode("utf-8", "surrogateescape")
            for parts in self.blob.parts(self.spans(chain))
        ]

    def text(self, *, counters: bool = False) -> str:
        """Return the table as iptables-save prints it."""
        if self.blob is None:
            lines = [f"*{self.table}", *(f":{name} ACCEPT [0:0]" for name in self.chains)]
            return "\n".join([*lines, "COMMIT\n"])
        if not self._lines:
            return text_of(self.blob, self.decoder, counters)
        lines = [f"*{self.table}"]
        lines += [declaration(name, policy) for name, policy, _ in self.blob.chains]
        if counters:
            count = self.blob.counters
            spans = [span for chain in self.blob.chains for span in chain.rules]
            lines += [
                f"[{packets}:{octets}] {line}"
                for (packets, octets), line in zip(map(count, spans), self._lines, strict=True)
            ]
        else:
            lines += self._lines
        lines.append("COMMIT\n")
        return "\n".join(lines)

    def part(self, chains: Iterable[str]) -> str:
        """Return some chains as iptables-save -c prints them; those not there are left out."""
        names = [name for name in chains if name in self.chains]
        lines = [f"*{self.table}"]
        for name in names:
            policy = self.chains[name].policy
            counters = "0:0"
            if self.blob is not None and policy is not None:
                found = next(chain.policy for chain in self.blob.chains if chain.name == name)
                counters = f"{found.packets}:{found.octets}" if found is not None else counters
            lines.append(f":{name} {policy or '-'} [{counters}]")
        for name in names:
            for index, spec in enumerate(self.specs(name)):
                packets, octets = self.counters(name, index)
                lines.append(f"[{packets}:{octets}] -A {name} {spec}".rstrip(" "))
        return "\n".join([*lines, "COMMIT\n"])

    def digest(self) -> str:
        """Return the sha256 (hex) of the table's text without any counters."""
        lines = self.text().split("\n")
        chains = len(self.chains)
        for number in range(1, chains + 1):
            lines[number] = lines[number].rpartition(" ")[0]
        text = "\n".join(lines)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def parts_of(entries: Sequence[bytes], family: int, chains: Container[str]) -> list[Parts]:
    """Cut canonical entries at their seams; ``chains`` are what rules of the table may jump to."""
    at = layout(family)
    found = []
    for entry in entries:
        target_at, end = OFFSETS.unpack_from(entry, at.offsets_at)
        target = entry[target_at:end]
        name = target[_EXTENSION_NAME].partition(b"\0")[0]
        text = name.decode("utf-8", "surrogateescape")
        jump = name if not name or text in VERDICTS or text in chains else None
        found.append(Parts(entry[: at.ip.size], entry[at.size : target_at], target, jump))
    return found
