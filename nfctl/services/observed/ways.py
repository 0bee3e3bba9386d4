"""Where the chains behind external addresses lead to: EXT, FW, and XLB of kube-proxy up to 1.23."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from nfctl.services.observed.rules import Rule

#: The kinds of chains that addresses are served by.
SERVED = {"SVC", "SVL", "EXT", "FW", "XLB"}
_DEEPEST = 4  # how many entrances may lead to each other; kube-proxy has two: FW, EXT


class Way(NamedTuple):
    """Where the chain behind an external address leads to."""

    svc: str
    svl: str
    policy: str  # cluster, local, or "" where it leads nowhere
    masquerade: str
    ranges: tuple[str, ...]


class Ways:
    """The ways of one dump."""

    def __init__(self, nat: dict[str, list[Rule]], prefix: str) -> None:
        self._nat, self._prefix, self._mark = nat, prefix, f"{prefix}MARK-MASQ"
        self._known: dict[str, Way] = {}

    def of(self, chain: str, depth: int = 0) -> Way:
        """Follow EXT, FW or XLB to the chains of endpoints."""
        known = self._known.get(chain)
        if known is not None:
            return known
        self._known[chain] = Way("", "", "", "", ())  # a chain that leads back to itself
        svc = svl = policy = masquerade = ""
        ranges: list[str] = []
        start = len(self._prefix)
        for rule in self._nat.get(chain, []):
            target = rule.target or ""
            kind = target[start : start + 4].partition("-")[0]
            if target == self._mark:
                masquerade = "local" if rule.local else "always"
            elif kind == "SVC":
                svc = target
                if not (rule.local or rule.source or rule.other):
                    policy = policy or "cluster"
                elif rule.local == "src":
                    policy = "local"
            elif kind == "SVL":
                svl, policy = target, "local"
            elif kind == "SEP":
                svl, policy = chain, "local"  # XLB
            elif kind in {"EXT", "XLB"} and depth < _DEEPEST:
                on = self.of(target, depth + 1)
                svc, svl, policy, masquerade = on.svc, on.svl, on.policy, on.masquerade
            if kind in SERVED and chain[start : start + 3] == "FW-" and rule.source:
                ranges.append(rule.source)
                policy = policy or "cluster"
        way = self._known[chain] = Way(svc, svl, policy, masquerade or "never", tuple(ranges))
        return way
