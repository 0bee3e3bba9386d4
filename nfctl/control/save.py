"""The kernel's tables as text and as objects: what iptables-save(8) does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.kernel import netns
from nfctl.kernel.blob import Blob
from nfctl.kernel.decode import Decoder
from nfctl.kernel.table import active_tables
from nfctl.ruleset.model import Chain, Counters, Rule, Ruleset
from nfctl.ruleset.model import Table as TableModel
from nfctl.ruleset.names import check_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.kernel.blob import Policy, Span


def _names(family: int, tables: Sequence[str] | None) -> list[str]:
    if tables is None:
        # the order of /proc, which is iptables-save's
        return active_tables(family)
    return [check_table(name) for name in tables]


def save(
    family: int = 4,
    *,
    tables: Sequence[str] | None = None,
    counters: bool = False,
    network: str | None = None,
) -> Iterator[str]:
    """Yield each table as iptables-save text, without its two comment lines.

    ``tables`` None means those that are in use in the namespace (looking does not make any).
    Each table is one consistent snapshot. Raises NotPermitted, Unsupported.
    """
    decoder = Decoder(family)
    with netns.entered(network):
        names = _names(family, tables)
    for name in names:
        # a generator may be left lying; the thread must not be left in the other namespace
        with netns.entered(network):
            text = text_of(Blob(family, name), decoder, counters)
        yield text


def text_of(blob: Blob, decoder: Decoder, counters: bool) -> str:
    """Return a table that was read as iptables-save text, without its two comment lines."""
    lines = [f"*{blob.table}"]
    spans: list[Span] = []
    starts: list[str] = []
    for name, policy, rules in blob.chains:
        lines.append(declaration(name, policy))
        start = f"-A {name} "
        if counters:
            starts += [_counted(blob.counters(span), start) for span in rules]
        else:
            starts += [start] * len(rules)
        spans += rules
    specs = decoder.specs(blob.parts(spans))
    # a rule without anything is just -A CHAIN, with no blank after it
    lines += [
        start + spec if spec else start[:-1] for start, spec in zip(starts, specs, strict=True)
    ]
    lines.append("COMMIT\n")
    return "\n".join(lines)


def declaration(name: str, policy: Policy | None) -> str:
    """Return the line that declares a chain, with a built-in chain's policy and its counters."""
    if policy is None:
        return f":{name} - [0:0]"
    return f":{name} {policy.verdict} [{policy.packets}:{policy.octets}]"


def _counted(counters: tuple[int, int], start: str) -> str:
    return f"[{counters[0]}:{counters[1]}] {start}"


def read(
    family: int = 4,
    *,
    tables: Sequence[str] | None = None,
    network: str | None = None,
) -> Ruleset:
    """Read tables and their counters from the kernel: one getsockopt a table.

    ``tables`` None means those that are in use in the namespace. Raises NotPermitted,
    Unsupported.
    """
    ruleset = Ruleset(family)
    with netns.entered(network):
        decoder = Decoder(family)
        for name in _names(family, tables):
            ruleset.tables[name] = _model(Blob(family, name), decoder)
    return ruleset


def _model(blob: Blob, decoder: Decoder) -> TableModel:
    model = TableModel(blob.table)
    for name, policy, spans in blob.chains:
        chain = model.chains[name] = Chain(name)
        if policy is not None:
            chain.policy = policy.verdict
            chain.counters = Counters(policy.packets, policy.octets)
        specs = decoder.specs(blob.parts(spans))
        chain.rules = [
            Rule(spec, Counters(*blob.counters(span)))
            for spec, span in zip(specs, spans, strict=True)
        ]
    return model
