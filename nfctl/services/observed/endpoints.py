"""The chains that choose an endpoint, and those of the endpoints themselves."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nfctl.services.observed.model import KUBE, Endpoint, bare
from nfctl.services.observed.rules import said
from nfctl.services.observed.shares import shares

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.services.observed.model import Service
    from nfctl.services.observed.rules import Rule

    #: Notes a problem: its kind, message, chain, the rule's number, the service.
    Note = Callable[[str, str, str, int, Service | None], None]

_TO = re.compile(r" --to-destination (?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})\b")


class _Sep(NamedTuple):
    """An endpoint's chain."""

    address: str
    port: int
    hairpin: bool
    packets: int | None


class Endpoints:
    """The endpoints of one dump."""

    def __init__(self, nat: dict[str, list[Rule]], prefix: str, note: Note) -> None:
        self._nat, self._prefix, self._problem = nat, prefix, note
        self._mark = f"{prefix}MARK-MASQ"
        self._seps: dict[str, _Sep] = {}

    def read(self, service: Service, chain: str, found: dict[str, Endpoint]) -> None:
        """Read the chain that chooses an endpoint."""
        jumps: list[tuple[int, Rule]] = []
        checks: dict[str, int] = {}
        start, local = len(self._prefix), chain == service.svl
        for number, rule in enumerate(self._nat.get(chain, []), 1):
            target = rule.target or ""
            if target[start : start + 4] == "SEP-":
                if rule.check is not None:
                    service.affinity = int(rule.check)
                    checks[target] = number
                    if rule.seen != target:
                        message = f"it looks for clients in the list {rule.seen}, not {target}"
                        self._problem("affinity", message, chain, number, service)
                    continue
                if rule.other or rule.source or rule.local or rule.mark or rule.destination:
                    message = "it depends on more than chance"
                    self._problem("shares", message, chain, number, service)
                jumps.append((number, rule))
            elif target == self._mark:
                marked(service, rule)
            elif not (local and target[start : start + 4] == "SVC-") and not target.endswith(
                "MARK-DROP"
            ):
                self._problem("foreign", "this is no rule of a service", chain, number, service)
        if checks:
            self._affinity(service, chain, checks, jumps)
        if not jumps:
            return
        equal = self._prefix == KUBE
        worked_out = shares(tuple([rule.probability for _, rule in jumps]), equal)
        for flaw in worked_out.flaws:
            self._problem(flaw.kind, flaw.message, chain, jumps[flaw.place][0], service)
        for (_, rule), share in zip(jumps, worked_out.shares, strict=True):
            target = rule.target or ""
            endpoint = found.get(target)
            if endpoint is None:
                sep = self._sep(target, rule, service)
                address, port, hairpin, packets = sep
                endpoint = Endpoint(address, port, target, None, None, None, None, packets, hairpin)
            counted = None if rule.packets is None else int(rule.packets)
            if local:
                found[target] = endpoint._replace(
                    local_share=(endpoint.local_share or 0) + share,
                    local_chosen=_sum(endpoint.local_chosen, counted),
                )
            else:
                found[target] = endpoint._replace(
                    share=(endpoint.share or 0) + share, chosen=_sum(endpoint.chosen, counted)
                )

    def _affinity(
        self, service: Service, chain: str, checks: dict[str, int], jumps: list[tuple[int, Rule]]
    ) -> None:
        """Compare the endpoints that clients come back to with those that chance chooses."""
        by_chance = {rule.target: number for number, rule in jumps}
        for target, number in checks.items():
            if target not in by_chance:
                message = "clients come back to an endpoint that gets no new ones"
                self._problem("affinity", message, chain, number, service)
        for name, number in by_chance.items():
            if name not in checks:
                message = "clients of this endpoint do not come back to it"
                self._problem("affinity", message, chain, number, service)

    def _sep(self, chain: str, jump: Rule, service: Service) -> _Sep:
        """Read the chain of one endpoint."""
        known = self._seps.get(chain)
        if known is not None:
            return known
        address, port, hairpin, packets, source, translated = "", 0, False, None, "", False
        for number, rule in enumerate(self._nat.get(chain, ()), 1):
            if rule.target == self._mark:
                hairpin, source = True, bare(rule.source or "")
            elif rule.target == "DNAT":
                translated = True
                packets = None if rule.packets is None else int(rule.packets)
                to = _TO.match(rule.argument or "")
                if to is not None:
                    address, port = to[1] or to[2], int(to[3])
                else:
                    message = "where to is not in the text: the iptables that saved it was too old"
                    self._problem("unreadable", message, chain, number, service)
                if rule.remember is not None and rule.remember != chain:
                    message = f"it remembers clients in the list {rule.remember}"
                    self._problem("affinity", message, chain, number, service)
                elif rule.remember and not service.affinity:
                    message = "clients are remembered, but no rule leads them back"
                    self._problem("affinity", message, chain, number, service)
                elif service.affinity and rule.remember is None:
                    message = "clients are not remembered: affinity does not hold"
                    self._problem("affinity", message, chain, number, service)
        if not address:
            address = source
            arrow = said(jump).rpartition(" -> ")[2]  # service -> address:port
            host, _, digits = arrow.rpartition(":")
            if host and digits.isascii() and digits.isdecimal() and len(digits) < 6:
                address, port = host.strip("[]"), int(digits)
        if not translated and chain in self._nat:
            self._problem("no-dnat", f"{chain} translates no destination", chain, 0, service)
        sep = self._seps[chain] = _Sep(address, port, hairpin, packets)
        return sep


def marked(service: Service, rule: Rule) -> None:
    """Read what a mark for masquerading in a service's chain asks for."""
    if rule.local:
        return  # XLB: what the node itself sends
    inside = ""
    if rule.not_source and rule.source:
        inside = rule.source
    elif rule.other.startswith("! -i "):
        inside = rule.other[2:]
    elif rule.source or rule.other:
        inside = f"other than {rule.source or rule.other}"
    if inside:
        service.masquerade = "off-cluster"
        service.inside = tuple(dict.fromkeys((*service.inside, inside)))
    elif not service.inside:
        service.masquerade = "always"


def _sum(first: int | None, second: int | None) -> int | None:
    return second if first is None else first + (second or 0)
