"""From chains to services: whom a destination leads to, and with what chance.

The shape is the one of kube-proxy (kubernetes/kubernetes, pkg/proxy/iptables/proxier.go), from
1.18 on. What changed: up to 1.20 marks for masquerading stand in SERVICES and NODEPORTS; up to
1.23 an XLB chain is EXT and the chain of local endpoints in one, FW is there without source ranges
too, and what is not allowed is marked in MARK-DROP.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import AnswerNo
from nfctl.services.observed import model
from nfctl.services.observed.model import KUBE, Address, Cluster, Endpoint, Problem, Service, bare
from nfctl.services.observed.rules import said
from nfctl.services.observed.shares import shares

if TYPE_CHECKING:
    from nfctl.services.observed.rules import Dump, Rule

_SERVED = {"SVC", "SVL", "EXT", "FW", "XLB"}
_DEEPEST = 4  # how many entrances may lead to each other; kube-proxy has two: FW, EXT
_SUFFIXES = {
    " cluster IP": model.CLUSTER,
    " external IP": model.EXTERNAL,
    " loadbalancer IP": model.BALANCER,
    " has no endpoints": "",
    " has no local endpoints": "",
}
_TO = re.compile(r" --to-destination (?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})\b")


def read(dump: Dump, prefix: str) -> Cluster:
    """Turn the chains of a prefix into services, and say what does not add up."""
    from nfctl.services.observed import checks

    if any("--match-set" in rule.other for rule in dump.chains("nat").get(f"{prefix}SERVICES", [])):
        msg = "kube-proxy runs in its IPVS mode: services are not in chains"
        raise AnswerNo(msg, hint="ipvsadm -Ln lists them")
    cluster = _Assembly(dump, prefix).cluster()
    checks.check(cluster, dump)
    return cluster


def _sum(first: int | None, second: int | None) -> int | None:
    return second if first is None else first + (second or 0)


class _Sep(NamedTuple):
    """An endpoint's chain."""

    address: str
    port: int
    hairpin: bool
    packets: int | None


class _Way(NamedTuple):
    """Where the chain behind an external address leads to."""

    svc: str
    svl: str
    policy: str  # cluster, local, or "" where it leads nowhere
    masquerade: str
    ranges: tuple[str, ...]


class _Assembly:
    """Puts together the services of one dump."""

    def __init__(self, dump: Dump, prefix: str) -> None:
        self.dump, self.prefix = dump, prefix
        self.nat, self.filter = dump.chains("nat"), dump.chains("filter")
        self.found = Cluster(prefix, dump.family, dump.source)
        self.services: dict[tuple[str, str], Service] = {}
        self.mark = f"{prefix}MARK-MASQ"
        self.marked: dict[tuple[str | None, ...], Rule] = {}  # by destination, up to 1.20
        self.seps: dict[str, _Sep] = {}
        self.ways: dict[str, _Way] = {}

    def cluster(self) -> Cluster:
        """Return what there is."""
        self._destinations(self.nat.get(f"{self.prefix}SERVICES", []), "SERVICES")
        self._destinations(self.nat.get(f"{self.prefix}NODEPORTS", []), "NODEPORTS")
        for service in self.services.values():
            self._endpoints(service)
        for chain in ("SERVICES", "EXTERNAL-SERVICES"):
            self._refused(chain)
        for service in self.services.values():
            self._finish(service)
        self.found.services = sorted(self.services.values(), key=lambda s: (s.name, s.protocol))
        self.found.counted = any(
            rule.packets is not None for rules in self.nat.values() for rule in rules[:1]
        )
        return self.found

    def problem(
        self, kind: str, message: str, chain: str, number: int, service: Service | None = None
    ) -> None:
        """Note what does not add up about a rule of nat, or (number 0) a chain of it."""
        text = self.dump.text(self.nat[chain][number - 1]) if number else ""
        name, protocol = (service.name, service.protocol) if service else ("", "")
        problem = Problem(kind, message, "nat", chain, number, text, name, protocol)
        self.found.problems.append(problem)

    # --- addresses ------------------------------------------------------------------------------

    def _service(self, name: str, protocol: str) -> Service:
        service = self.services.get((name, protocol))
        if service is None:
            service = Service(name, protocol, self.dump.family)
            self.services[name, protocol] = service
        return service

    def _destinations(self, rules: list[Rule], which: str) -> None:
        """Read the rules that lead by the destination to a service."""
        owners: dict[tuple[str, str, str], tuple[Service, bool]] = {}
        chain, start = self.prefix + which, len(self.prefix)
        nodes: list[str] = []
        for number, rule in enumerate(rules, 1):
            target = rule.target
            if target == self.mark:
                self.marked[rule.destination, rule.protocol, rule.port] = rule
                continue
            if target == f"{self.prefix}NODEPORTS":
                if not rule.not_destination and rule.destination:
                    nodes.append(bare(rule.destination))
                continue
            if target is None or target[start:].partition("-")[0] not in _SERVED:
                self.problem("foreign", "this is no rule of services", chain, number)
                continue
            if target not in self.nat or rule.port is None or rule.protocol is None:
                if rule.port is None or rule.protocol is None:
                    self.problem("foreign", "this jump has no port", chain, number)
                continue
            name, kind = self._named(rule, target, which)
            service = self._service(name, rule.protocol)
            address = "" if which == "NODEPORTS" else bare(rule.destination or "")
            key = (rule.destination or "", rule.protocol, rule.port)
            before, whole = owners.setdefault(key, (service, not (rule.local or rule.other)))
            if before is not service and whole:
                place = model.at(address or "node port", int(rule.port))
                message = f"{place}/{rule.protocol} is {before.name}'s already, by a rule before"
                self.problem("conflict", message, chain, number, service)
            self._address(service, Address(kind, address, int(rule.port), target))
        self.found.node_addresses += tuple(nodes)

    def _named(self, rule: Rule, target: str, which: str) -> tuple[str, str]:
        """Return the service's name and the kind of the address, by the comment."""
        comment = said(rule)
        short = target[len(self.prefix) : len(self.prefix) + 3]
        kind = model.CLUSTER if short in {"SVC", "SVL"} else model.EXTERNAL
        if which == "NODEPORTS":
            kind = model.NODE
        else:
            for suffix, meant in _SUFFIXES.items():
                if comment.endswith(suffix):
                    comment = comment[: -len(suffix)]
                    kind = meant or kind
                    break
        name = comment.removesuffix(":") or target[len(self.prefix) :].partition("-")[2]
        return name, kind

    def _address(self, service: Service, address: Address) -> None:
        """Add an address, or what this rule says beside a former one of the same."""
        for place, known in enumerate(service.addresses):
            if known[1:3] == address[1:3] and (known.kind == model.NODE) == (
                address.kind == model.NODE
            ):
                service.addresses[place] = known._replace(
                    chain=known.chain or address.chain, refused=known.refused or address.refused
                )
                return
        service.addresses.append(address)

    def _refused(self, which: str) -> None:
        """Read the rules of filter that refuse what has no endpoints."""
        for rule in self.filter.get(self.prefix + which, []):
            if rule.target not in {"REJECT", "DROP"} or rule.port is None or not rule.protocol:
                continue
            name = said(rule)
            for suffix in _SUFFIXES:
                name = name.removesuffix(suffix)
            name = name.removesuffix(":")
            address = "" if rule.local else bare(rule.destination or "")  # a node port's place
            kind = model.CLUSTER if which == "SERVICES" else model.EXTERNAL
            if not address:
                kind = model.NODE
            service = self._service(name or model.at(address, int(rule.port)), rule.protocol)
            self._address(service, Address(kind, address, int(rule.port), "", rule.target))

    # --- chains ---------------------------------------------------------------------------------

    def _way(self, chain: str, depth: int = 0) -> _Way:
        """Follow EXT, FW or XLB to the chains of endpoints."""
        known = self.ways.get(chain)
        if known is not None:
            return known
        self.ways[chain] = _Way("", "", "", "", ())  # a chain that leads back to itself
        svc = svl = policy = masquerade = ""
        ranges: list[str] = []
        start = len(self.prefix)
        for rule in self.nat.get(chain, []):
            target = rule.target or ""
            kind = target[start : start + 4].partition("-")[0]
            if target == self.mark:
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
                on = self._way(target, depth + 1)
                svc, svl, policy, masquerade = on.svc, on.svl, on.policy, on.masquerade
            if kind in _SERVED and chain[start : start + 3] == "FW-" and rule.source:
                ranges.append(rule.source)
                policy = policy or "cluster"
        way = self.ways[chain] = _Way(svc, svl, policy, masquerade or "never", tuple(ranges))
        return way

    def _endpoints(self, service: Service) -> None:
        """Follow the addresses to the endpoints."""
        start = len(self.prefix)
        for place, address in enumerate(service.addresses):
            kind = address.chain[start : start + 4].partition("-")[0]
            inside = address.kind == model.CLUSTER
            if kind in {"SVC", "SVL"}:
                policy = "cluster" if kind == "SVC" else "local"
                way = _Way(address.chain, "", policy, "", ())
                if kind == "SVL":
                    way = _Way("", address.chain, policy, "", ())
                if not inside:
                    mark = self.marked.get(self._key(address, service.protocol))
                    way = way._replace(masquerade="always" if mark else "never")
            else:
                way = self._way(address.chain)
                if way.ranges:
                    service.addresses[place] = address._replace(source_ranges=way.ranges)
            if inside:
                service.internal = service.internal or way.policy
            else:
                service.external = service.external or way.policy
                service.external_masquerade = service.external_masquerade or way.masquerade
            service.svc = service.svc or way.svc
            service.svl = service.svl or way.svl
        found: dict[str, Endpoint] = {}
        for chain in (service.svc, service.svl):
            if chain:
                self._balanced(service, chain, found)
        service.endpoints = list(found.values())
        if service.svc in self.nat:
            for endpoint in service.endpoints:
                if endpoint.share is None:
                    message = f"{endpoint} serves local traffic, but is not among all endpoints"
                    self.problem("left-out", message, service.svc, 0, service)

    def _key(self, address: Address, protocol: str) -> tuple[str, ...] | tuple[None, str, str]:
        if not address.address:
            return None, protocol, str(address.port)
        length = 128 if ":" in address.address else 32
        return f"{address.address}/{length}", protocol, str(address.port)

    def _balanced(self, service: Service, chain: str, found: dict[str, Endpoint]) -> None:
        """Read the chain that chooses an endpoint."""
        jumps: list[tuple[int, Rule]] = []
        checks: dict[str, int] = {}
        start, local = len(self.prefix), chain == service.svl
        for number, rule in enumerate(self.nat.get(chain, []), 1):
            target = rule.target or ""
            if target[start : start + 4] == "SEP-":
                if rule.check is not None:
                    service.affinity = int(rule.check)
                    checks[target] = number
                    if rule.seen != target:
                        message = f"it looks for clients in the list {rule.seen}, not {target}"
                        self.problem("affinity", message, chain, number, service)
                    continue
                if rule.other or rule.source or rule.local:
                    message = "it depends on more than chance"
                    self.problem("shares", message, chain, number, service)
                jumps.append((number, rule))
            elif target == self.mark:
                self._marks(service, rule)
            elif not (local and target[start : start + 4] == "SVC-") and not target.endswith(
                "MARK-DROP"
            ):
                self.problem("foreign", "this is no rule of a service", chain, number, service)
        if checks:
            self._affinity(service, chain, checks, jumps)
        if not jumps:
            return
        equal = self.prefix == KUBE
        worked_out = shares(tuple([rule.probability for _, rule in jumps]), equal)
        for flaw in worked_out.flaws:
            self.problem(flaw.kind, flaw.message, chain, jumps[flaw.place][0], service)
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
                self.problem("affinity", message, chain, number, service)
        for name, number in by_chance.items():
            if name not in checks:
                message = "clients of this endpoint do not come back to it"
                self.problem("affinity", message, chain, number, service)

    def _marks(self, service: Service, rule: Rule) -> None:
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

    def _sep(self, chain: str, jump: Rule, service: Service) -> _Sep:
        """Read the chain of one endpoint."""
        known = self.seps.get(chain)
        if known is not None:
            return known
        address, port, hairpin, packets, source, translated = "", 0, False, None, "", False
        for number, rule in enumerate(self.nat.get(chain, ()), 1):
            if rule.target == self.mark:
                hairpin, source = True, bare(rule.source or "")
            elif rule.target == "DNAT":
                translated = True
                packets = None if rule.packets is None else int(rule.packets)
                to = _TO.match(rule.argument or "")
                if to is not None:
                    address, port = to[1] or to[2], int(to[3])
                else:
                    message = "where to is not in the text: the iptables that saved it was too old"
                    self.problem("unreadable", message, chain, number, service)
                if rule.remember is not None and rule.remember != chain:
                    message = f"it remembers clients in the list {rule.remember}"
                    self.problem("affinity", message, chain, number, service)
                elif rule.remember and not service.affinity:
                    message = "clients are remembered, but no rule leads them back"
                    self.problem("affinity", message, chain, number, service)
                elif service.affinity and rule.remember is None:
                    message = "clients are not remembered: affinity does not hold"
                    self.problem("affinity", message, chain, number, service)
        if not address:
            address = source
            arrow = said(jump).rpartition(" -> ")[2]  # service -> address:port
            host, _, digits = arrow.rpartition(":")
            if host and digits.isascii() and digits.isdecimal() and len(digits) < 6:
                address, port = host.strip("[]"), int(digits)
        if not translated and chain in self.nat:
            self.problem("no-dnat", f"{chain} translates no destination", chain, 0, service)
        sep = self.seps[chain] = _Sep(address, port, hairpin, packets)
        return sep

    def _finish(self, service: Service) -> None:
        """Fill in what follows from the rest."""
        inside = [a for a in service.addresses if a.kind == model.CLUSTER]
        outside = [a for a in service.addresses if a.kind in {model.EXTERNAL, model.BALANCER}]
        service.port = next((a.port for a in (*inside, *outside)), 0)
        if not inside or not service.endpoints:
            service.masquerade, service.inside = "", ()
        elif not service.masquerade:
            service.masquerade = "never"
            mark = self.marked.get(self._key(inside[0], service.protocol))
            if mark is not None:
                self._marks(service, mark)
