"""How the chains of services begin: ``KUBE-``, or what ``nfctl service --prefix`` was given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.errors import AnswerNo, BadInput
from nfctl.services.observed.rules import hashed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.services.observed.rules import Dump


_KINDS = {"-SVC-", "-SVL-", "-SEP-", "-EXT-", "-XLB-"}
_COMPANIONS = ("NODEPORTS", "MARK-MASQ", "POSTROUTING", "EXTERNAL-SERVICES")


def prefixes(dumps: Iterable[Dump]) -> list[str]:
    """Return the prefixes of chains that are of this shape: "KUBE-", "NFCTL-".

    One has a chain SERVICES, and another that belongs to it; or, in what is left of rules, chains
    of services or endpoints.
    """
    entrances: set[str] = set()
    hashes: set[str] = set()
    found: set[str] = set()
    for dump in dumps:
        for table in ("nat", "filter"):
            chains = dump.chains(table)
            for chain in chains:
                if chain[-8:] == "SERVICES":
                    prefix = chain[:-8]
                    if prefix.count("-") == 1 and prefix[-1] == "-":
                        entrances.add(prefix)
                        if any(f"{prefix}{name}" in chains for name in _COMPANIONS):
                            found.add(prefix)
                elif chain[-21:-16] in _KINDS and chain[:-20] not in hashes:
                    hashes |= {parts[0] for parts in [hashed(chain)] if parts}
    return sorted(found | (entrances & hashes) or hashes)


def the_prefix(dumps: Iterable[Dump], wanted: str | None) -> str:
    """Return the prefix to read; AnswerNo without one, BadInput where several could be meant."""
    found = prefixes(dumps)
    if wanted is not None:
        prefix = wanted if wanted.endswith("-") else f"{wanted}-"
        if prefix in found:
            return prefix
        others = f"there are chains of {', '.join(found)}" if found else ""
        msg = f"there are no chains of services that begin with {prefix}"
        raise AnswerNo(msg, hint=others)
    if not found:
        msg = "there are no chains of services"
        raise AnswerNo(msg, hint="kube-proxy in its iptables mode makes KUBE-SERVICES")
    if len(found) > 1:
        msg = f"there are chains of several: {', '.join(found)}"
        raise BadInput(msg, hint=f"say which: --prefix {found[0]}")
    return found[0]
