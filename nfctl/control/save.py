"""The kernel's tables as text and as objects: what iptables-save(8) does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from nfctl.kernel import netns
from nfctl.kernel.decode import Decoder
from nfctl.kernel.layout import COUNTERS, layout
from nfctl.kernel.table import Table, active_tables
from nfctl.ruleset.model import Chain, Counters, Rule, Ruleset
from nfctl.ruleset.model import Table as TableModel
from nfctl.ruleset.names import check_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.kernel.decode import Parts


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
    with netns.entered(network):
        decoder = Decoder(family)
        for name in _names(family, tables):
            with Table(family, name) as table:
                yield _text(table, decoder, counters)


def _text(table: Table, decoder: Decoder, counters: bool) -> str:
    chains = table.chains()
    lines = [f"*{table.name}"]
    for chain in chains:
        policy = table.policy(chain)
        if policy is None:
            lines.append(f":{chain} - [0:0]")
        else:
            lines.append(f":{chain} {policy.verdict} [{policy.packets}:{policy.octets}]")
    rules: list[Parts] = []
    starts: list[str] = []
    unpack, at = COUNTERS.unpack_from, layout(table.family).counters_at
    for chain in chains:
        start = f"-A {chain} "
        for raw, parts in table.entries(chain):
            rules.append(parts)
            if counters:
                packets, octets = unpack(raw, at)
                starts.append(f"[{packets}:{octets}] {start}")
            else:
                starts.append(start)
    specs = decoder.specs(rules)
    # a rule without anything is just -A CHAIN, with no blank after it
    lines += [start + spec if spec else start[:-1] for start, spec in zip(starts, specs, strict=True)]
    lines.append("COMMIT\n")
    return "\n".join(lines)


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
    with netns.entered(network), contextlib.ExitStack() as stack:
        decoder = Decoder(family)
        for name in _names(family, tables):
            table = stack.enter_context(Table(family, name))
            ruleset.tables[name] = _model(table, decoder)
    return ruleset


def _model(table: Table, decoder: Decoder) -> TableModel:
    model = TableModel(table.name)
    unpack, at = COUNTERS.unpack_from, layout(table.family).counters_at
    for name in table.chains():
        policy = table.policy(name)
        chain = model.chains[name] = Chain(name)
        if policy is not None:
            chain.policy = policy.verdict
            chain.counters = Counters(policy.packets, policy.octets)
        found = list(table.entries(name))
        specs = decoder.specs([parts for _, parts in found])
        chain.rules = [
            Rule(spec, Counters(*unpack(raw, at)))
            for spec, (raw, _) in zip(specs, found, strict=True)
        ]
    return model
