"""From chains to services: whom a destination leads to, and with what chance.

The shape is the one of kube-proxy (kubernetes/kubernetes, pkg/proxy/iptables/proxier.go), from
1.9 on. What changed: up to 1.9 all that has no endpoints is refused in SERVICES; up to 1.20 marks
for masquerading stand in SERVICES and NODEPORTS; up to 1.23 an XLB chain is EXT and the chain of
local endpoints in one, FW is there without source ranges too, and what is not allowed is marked in
MARK-DROP. ``ways`` follows the chains behind external addresses, ``endpoints`` those that choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.errors import AnswerNo
from nfctl.services.observed import model
from nfctl.services.observed.endpoints import Endpoints, marked
from nfctl.services.observed.model import Address, Cluster, Problem, Service, bare
from nfctl.services.observed.rules import said
from nfctl.services.observed.ways import SERVED, Way, Ways

if TYPE_CHECKING:
    from nfctl.services.observed.model import Endpoint
    from nfctl.services.observed.rules import Dump, Rule

_SUFFIXES = {
    " cluster IP": model.CLUSTER,
    " external IP": model.EXTERNAL,
    " loadbalancer IP": model.BALANCER,
    " has no endpoints": "",
    " has no local endpoints": "",
}


def read(dump: Dump, prefix: str) -> Cluster:
    """Turn the chains of a prefix into services, and say what does not add up."""
    from nfctl.services.observed import checks

    if any("--match-set" in rule.other for rule in dump.chains("nat").get(f"{prefix}SERVICES", [])):
        msg = "kube-proxy runs in its IPVS mode: services are not in chains"
        raise AnswerNo(msg, hint="ipvsadm -Ln lists them")
    cluster = _Assembly(dump, prefix).cluster()
    checks.check(cluster, dump)
    return cluster


class _Assembly:
    """Puts together the services of one dump."""

    def __init__(self, dump: Dump, prefix: str) -> None:
        self.dump, self.prefix = dump, prefix
        self.nat, self.filter = dump.chains("nat"), dump.chains("filter")
        self.found = Cluster(prefix, dump.family, dump.source)
        self.services: dict[tuple[str, str], Service] = {}
        self.mark = f"{prefix}MARK-MASQ"
        self.marked: dict[tuple[str | None, ...], Rule] = {}  # by destination, up to 1.20
        self.ways = Ways(self.nat, prefix)
        self.endpoints = Endpoints(self.nat, prefix, self.problem)

    def cluster(self) -> Cluster:
        """Return what there is."""
        self._destinations(self.nat.get(f"{self.prefix}SERVICES", []), "SERVICES")
        self._destinations(self.nat.get(f"{self.prefix}NODEPORTS", []), "NODEPORTS")
        for service in self.services.values():
            self._follow(service)
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
            if target is None or target[start:].partition("-")[0] not in SERVED:
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

    def _follow(self, service: Service) -> None:
        """Follow the addresses to the endpoints."""
        start = len(self.prefix)
        for place, address in enumerate(service.addresses):
            kind = address.chain[start : start + 4].partition("-")[0]
            inside = address.kind == model.CLUSTER
            if kind in {"SVC", "SVL"}:
                policy = "cluster" if kind == "SVC" else "local"
                way = Way(address.chain, "", policy, "", ())
                if kind == "SVL":
                    way = Way("", address.chain, policy, "", ())
                if not inside:
                    mark = self.marked.get(self._key(address, service.protocol))
                    way = way._replace(masquerade="always" if mark else "never")
            else:
                way = self.ways.of(address.chain)
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
                self.endpoints.read(service, chain, found)
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
                marked(service, mark)
