"""The packet counters of every rule and policy in the namespace of the calling process."""

from __future__ import annotations

from nfctl.kernel.blob import Blob
from nfctl.kernel.decode import Decoder
from nfctl.kernel.table import active_tables
from nfctl.lab.explain import ChainCount, RuleCount, Snapshot


class Reading:
    """All tables of a family (4 or 6) that are in use, as they are now: one getsockopt a table.

    The rules' texts are made only when they are asked for: libxtables takes 20 ms to load.
    """

    def __init__(self, family: int) -> None:
        self.family = family
        self._blobs = {name: Blob(family, name) for name in active_tables(family)}

    def snapshot(self) -> Snapshot:
        """Return every chain with its rules' texts and packet counters."""
        decoder = Decoder(self.family)
        found: Snapshot = {}
        for table, blob in self._blobs.items():
            chains = found[table] = {}
            for name, policy, spans in blob.chains:
                rules = zip(decoder.specs(blob.parts(spans)), spans, strict=True)
                chains[name] = ChainCount(
                    policy.verdict if policy else None,
                    policy.packets if policy else 0,
                    tuple(RuleCount(spec, blob.counters(span)[0]) for spec, span in rules),
                )
        return found


def counters(family: int) -> Snapshot:
    """Read every packet counter of every table."""
    return Reading(family).snapshot()
