"""From services to chains: the shape of kube-proxy's, rule by rule (pkg/proxy/iptables).

What a packet meets in ``nat``:

1. PREROUTING and OUTPUT jump to SERVICES, which jumps by destination: a cluster IP to the chain
   of its service, SVC (or SVL, of the endpoints of this node, where the traffic policy is local);
   an external IP to EXT, or to FW where source ranges are given; what is left, and is for an
   address of this node, to NODEPORTS.
2. EXT has it masqueraded and goes on to SVC; where the traffic policy is local, to SVL, but for
   what the cluster and this node itself send. FW goes on to EXT for the allowed sources alone.
3. SVC marks what is to be masqueraded, goes on to the endpoint a client was sent to before
   (affinity), or else to one by chance: SEP.
4. SEP marks what an endpoint sends to itself, and translates the destination.
5. POSTROUTING masquerades what is marked.

In ``filter`` a service without endpoints is rejected, one without endpoints on this node dropped
where it asks for such, and what FW let through unchanged is dropped. ``mangle`` has, as the others
have, a chain without rules; where it is missing, somebody flushed the tables.

A rule is written as iptables-save prints it, which is the form that is encoded quickest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.ruleset.words import join
from nfctl.services import names as chain_names
from nfctl.services.model import ALWAYS, NEVER, OFF_CLUSTER, family_of
from nfctl.services.names import Names
from nfctl.text import at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.model import Endpoint, Service, ServiceList

Key = tuple[str, str]  # table, chain
Chains = dict[Key, list[str]]

_NEW: Final = "-m conntrack --ctstate NEW "
_LOOPBACK: Final = {4: "127.0.0.0/8", 6: "::1/128"}
_TO_LOCAL: Final = "-m addrtype --dst-type LOCAL "
_NOBODY: Final = {4: "0.0.0.0/32", 6: "::/128"}
_REFUSED: Final = {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"}
_ANY_MASK: Final = {4: "255.255.255.255", 6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}

#: The built-in chains that lead to ours: table, chain, conditions, where to, why.
JUMPS: Final = (
    ("nat", "PREROUTING", "", chain_names.SERVICES, "service portals"),
    ("nat", "OUTPUT", "", chain_names.SERVICES, "service portals"),
    ("nat", "POSTROUTING", "", chain_names.POSTROUTING, "service postrouting rules"),
    ("filter", "INPUT", _NEW, chain_names.FIREWALL, "service firewall"),
    ("filter", "INPUT", _NEW, chain_names.EXTERNAL, "externally-visible service portals"),
    ("filter", "FORWARD", _NEW, chain_names.FIREWALL, "service firewall"),
    ("filter", "FORWARD", "", chain_names.FORWARD, "service forwarding rules"),
    ("filter", "FORWARD", _NEW, chain_names.SERVICES, "service portals"),
    ("filter", "FORWARD", _NEW, chain_names.EXTERNAL, "externally-visible service portals"),
    ("filter", "OUTPUT", _NEW, chain_names.FIREWALL, "service firewall"),
    ("filter", "OUTPUT", _NEW, chain_names.SERVICES, "service portals"),
)


class Fragment(NamedTuple):
    """What a service comes to in one family: chains of its own, and its rules in shared ones."""

    own: Chains
    shared: Chains


def comment(text: str) -> str:
    """Return the match that carries a comment."""
    return f"-m comment --comment {join([text])} "


class Compiler:
    """Makes the chains of one family."""

    def __init__(self, settings: ServiceList, family: int) -> None:
        self.family = family
        self._settings = settings
        self._names = Names(settings.prefix)
        self._length = 32 if family == 4 else 128
        fixed = self._names.fixed
        self._to_mark = f"-j {fixed(chain_names.MARK_MASQ)}"
        self._cluster = [net for net in settings.cluster if family_of(net) == family]

    # --- what there is one of -------------------------------------------------------------------

    def frame(self) -> tuple[Chains, Chains]:
        """Return the chains that any list has, and the jumps from the built-in ones."""
        fixed, settings = self._names.fixed, self._settings
        chains: Chains = {
            (table, fixed(name)): [] for table, found in chain_names.FIXED.items() for name in found
        }
        mark, bits = f"{settings.mark:#x}", f"{settings.mark:#x}/{settings.mask:#x}"
        chains["nat", fixed(chain_names.MARK_MASQ)] = [f"-j MARK --set-xmark {bits}"]
        chains["nat", fixed(chain_names.POSTROUTING)] = [
            f"-m mark ! --mark {bits} -j RETURN",
            # taken off, as the packet may come by again: a tunnel
            f"-j MARK --set-xmark {mark}/0x0",
            f"{comment('service traffic requiring SNAT')}-j MASQUERADE --random-fully",
        ]
        chains["filter", fixed(chain_names.FORWARD)] = [
            "-m conntrack --ctstate INVALID -j DROP",
            f"{comment('service forwarding rules')}-m mark --mark {bits} -j ACCEPT",
            f"{comment('service forwarding conntrack rule')}"
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        ]
        jumps: Chains = {}
        for table, builtin, conditions, to, why in JUMPS:
            spec = f"{conditions}{comment(why)}-j {fixed(to)}"
            jumps.setdefault((table, builtin), []).append(spec)
        return chains, jumps

    def last(self) -> Chains:
        """Return what comes behind all services: the way to the node ports."""
        fixed = self._names.fixed
        why = comment("service nodeports; NOTE: this must be the last rule in this chain")
        to = f"-j {fixed(chain_names.NODEPORTS)}"
        # local, as a range of node addresses may be the network of other hosts, too
        rules = [f"{where}{why}{_TO_LOCAL}{to}" for where in self.node_places()]
        return {("nat", fixed(chain_names.SERVICES)): rules}

    def node_places(self) -> list[str]:
        """Return the conditions on destinations that the node ports are at."""
        addresses = self._settings.node_addresses
        if not addresses:
            return [f"! -d {_LOOPBACK[self.family]} "]
        return [f"-d {self._net(net)} " for net in addresses if family_of(net) == self.family]

    # --- a service --------------------------------------------------------------------------------

    def service(self, service: Service) -> Fragment:
        """Return what a service comes to."""
        return _Service(self, service).fragment

    def names(self, service: Service) -> list[Key]:
        """Return the names of the chains that a service may have of its own."""
        return list(self.service(service).own)

    def _net(self, address: str) -> str:
        return address if "/" in address else f"{address}/{self._length}"


class _Service:
    """One service in one family."""

    def __init__(self, compiler: Compiler, service: Service) -> None:
        self._compiler, self._service = compiler, service
        self.family = family = compiler.family
        names, name, protocol = compiler._names, service.name, service.protocol
        self._own: Chains = {}
        self._shared: Chains = {}
        everyone = [e for e in service.endpoints if e.family == family and e.serves]
        local = [endpoint for endpoint in everyone if endpoint.local]
        self._port = f"-p {protocol} {{}}{{}}-m {protocol} --dport {{}} "
        self._cluster_ips = [ip for ip in service.cluster_ips if family_of(ip) == family]
        self._external_ips = [ip for ip in service.external_ips if family_of(ip) == family]
        served = family in service.families() and compiler.node_places()
        self._node_port = service.node_port if served else 0
        self._mode = service.masquerade or compiler._settings.masquerade
        self._ranges = [net for net in service.source_ranges if family_of(net) == family]
        if service.source_ranges and not self._ranges:
            self._ranges = [_NOBODY[family]]
        self._external = bool(self._external_ips or self._node_port)
        self._fixed = names.fixed
        self._chain = {
            kind: names.service(kind, name, protocol) for kind in ("SVC", "SVL", "EXT", "FW")
        }
        self._seps = {e: names.endpoint(name, protocol, str(e)) for e in everyone}
        internal = local if service.internal_local else everyone
        external = local if service.external_local else everyone
        if everyone and (self._cluster_ips or self._external):
            self._to_endpoints(everyone, local, internal, external)
        self._without(everyone, internal, external)
        self.fragment = Fragment(self._own, self._shared)

    def _match(self, port: int, why: str, conditions: str = "") -> str:
        return self._port.format(comment(why), conditions, port)

    def _share(self, table: str, chain: str, rule: str) -> None:
        self._shared.setdefault((table, self._fixed(chain)), []).append(rule)

    def _to_endpoints(
        self,
        everyone: Sequence[Endpoint],
        local: Sequence[Endpoint],
        internal: Sequence[Endpoint],
        external: Sequence[Endpoint],
    ) -> None:
        service, chain, name = self._service, self._chain, self._service.name
        inside = chain["SVL" if service.internal_local else "SVC"]
        outside = chain["SVL" if service.external_local else "SVC"]
        own, net = self._own, self._compiler._net
        for ip in self._cluster_ips if internal else ():
            rule = f"-d {net(ip)} {self._match(service.port, f'{name} cluster IP')}-j {inside}"
            self._share("nat", chain_names.SERVICES, rule)
        entrance = chain["FW" if self._ranges else "EXT"]
        for ip in self._external_ips:
            rule = f"-d {net(ip)} {self._match(service.port, f'{name} external IP')}-j {entrance}"
            self._share("nat", chain_names.SERVICES, rule)
        if self._node_port:
            rule = f"{self._match(self._node_port, name)}-j {entrance}"
            self._share("nat", chain_names.NODEPORTS, rule)
        # also where the policy is local: what this node and the cluster send goes to any endpoint
        if not service.internal_local or self._external:
            own["nat", chain["SVC"]] = self._balanced(everyone)
        inward = service.internal_local and self._cluster_ips
        if local and (inward or (service.external_local and self._external)):
            own["nat", chain["SVL"]] = self._balanced(local)
        if ("nat", inside) in own and internal:
            own["nat", inside][:0] = self._marks()
        if self._external:
            own["nat", chain["EXT"]] = self._from_outside(outside if external else "")
            if self._ranges:
                self._firewall()
        used = everyone if ("nat", chain["SVC"]) in own else local
        for endpoint in used:
            own["nat", self._seps[endpoint]] = self._endpoint(endpoint)

    def _marks(self) -> list[str]:
        """Return the rules by which what comes by the cluster IPs is masqueraded."""
        compiler, service = self._compiler, self._service
        if self._mode == NEVER or (self._mode == OFF_CLUSTER and not compiler._cluster):
            return []
        sources = [""] if self._mode == ALWAYS else [f"! -s {n} " for n in compiler._cluster]
        why = f"{service.name} cluster IP"
        return [
            f"{source}-d {compiler._net(ip)} {self._match(service.port, why)}{compiler._to_mark}"
            for ip in self._cluster_ips
            for source in sources
        ]

    def _from_outside(self, to: str) -> list[str]:
        """Return the chain that external addresses and the node port lead to."""
        compiler, name = self._compiler, self._service.name
        mark, svc = compiler._to_mark, self._chain["SVC"]
        marked = self._mode != NEVER
        rules = []
        if not self._service.external_local:
            why = comment(f"masquerade traffic for {name} external destinations")
            rules += [f"{why}{mark}"] if marked else []
        else:
            why = comment(f"pod traffic for {name} external destinations")
            rules += [f"-s {net} {why}-j {svc}" for net in compiler._cluster]
            here = "-m addrtype --src-type LOCAL "
            if marked:
                why = comment(f"masquerade LOCAL traffic for {name} external destinations")
                rules.append(f"{why}{here}{mark}")
            why = comment(f"route LOCAL traffic for {name} external destinations")
            rules.append(f"{why}{here}-j {svc}")
        return [*rules, f"-j {to}"] if to else rules

    def _firewall(self) -> None:
        """Have only some sources come in; the others are dropped, as they were not translated."""
        compiler, service, chain = self._compiler, self._service, self._chain
        why = comment(f"{service.name} external IP")
        allowed = [f"-s {net} {why}-j {chain['EXT']}" for net in self._ranges]
        firewall = self._fixed(chain_names.FIREWALL)
        # a rule without a target, for whoever reads the chain
        other = f"other traffic to {service.name} will be dropped by {firewall}"
        self._own["nat", chain["FW"]] = [*allowed, comment(other).rstrip()]
        why = f"{service.name} traffic not accepted by {chain['FW']}"
        for ip in self._external_ips:
            rule = f"-d {compiler._net(ip)} {self._match(service.port, why)}-j DROP"
            self._share("filter", chain_names.FIREWALL, rule)
        self._at_node_port(chain_names.FIREWALL, why, "-j DROP")

    def _at_node_port(self, chain: str, why: str, target: str) -> None:
        """Stop what is for the node port; elsewhere, as on loopback, others may listen on it."""
        for where in self._compiler.node_places() if self._node_port else ():
            match = self._match(self._node_port, why, _TO_LOCAL)
            self._share("filter", chain, f"{where}{match}{target}")

    def _balanced(self, endpoints: Sequence[Endpoint]) -> list[str]:
        """Return the rules that choose an endpoint: the one of before, or one by chance."""
        service, seps = self._service, self._seps
        rules = []
        if service.affinity:
            for endpoint in endpoints:
                sep = seps[endpoint]
                rules.append(
                    f"{comment(f'{service.name} -> {endpoint}')}"
                    f"-m recent --rcheck --seconds {service.affinity} --reap --name {sep} "
                    f"--mask {_ANY_MASK[self.family]} --rsource -j {sep}"
                )
        left = sum(endpoint.weight for endpoint in endpoints)
        last = len(endpoints) - 1
        for index, endpoint in enumerate(endpoints):
            chance = ""
            if index < last:
                share = endpoint.weight / left
                chance = f"-m statistic --mode random --probability {share:.10f} "
            left -= endpoint.weight
            rules.append(f"{comment(f'{service.name} -> {endpoint}')}{chance}-j {seps[endpoint]}")
        return rules

    def _endpoint(self, endpoint: Endpoint) -> list[str]:
        compiler, service = self._compiler, self._service
        name, protocol = service.name, service.protocol
        why = comment(name)
        sticks = ""
        if service.affinity:
            mask = _ANY_MASK[self.family]
            sticks = f"-m recent --set --name {self._seps[endpoint]} --mask {mask} --rsource "
        to = at(endpoint.address, endpoint.port)
        return [
            # an endpoint that comes back to itself would answer itself directly
            f"-s {compiler._net(endpoint.address)} {why}{compiler._to_mark}",
            f"-p {protocol} {why}{sticks}-m {protocol} -j DNAT --to-destination {to}",
        ]

    def _without(
        self,
        everyone: Sequence[Endpoint],
        internal: Sequence[Endpoint],
        external: Sequence[Endpoint],
    ) -> None:
        """Refuse what nobody serves: no endpoints at all, or none where the policy asks."""
        service, net = self._service, self._compiler._net
        if not everyone:
            why = f"{service.name} has no endpoints"
            target = f"-j REJECT --reject-with {_REFUSED[self.family]}"
        else:
            why, target = f"{service.name} has no local endpoints", "-j DROP"
        if not internal:
            for ip in self._cluster_ips:
                rule = f"-d {net(ip)} {self._match(service.port, why)}{target}"
                self._share("filter", chain_names.SERVICES, rule)
        if not external:
            for ip in self._external_ips:
                rule = f"-d {net(ip)} {self._match(service.port, why)}{target}"
                self._share("filter", chain_names.EXTERNAL, rule)
            self._at_node_port(chain_names.EXTERNAL, why, target)


def compiled(settings: ServiceList, family: int) -> tuple[Chains, Chains]:
    """Return all chains of a family, and the jumps from built-in chains to them."""
    compiler = Compiler(settings, family)
    chains, jumps = compiler.frame()
    for service in settings.services:
        if family in service.families():
            add(chains, compiler.service(service))
    for key, rules in compiler.last().items():
        chains[key] += rules
    return chains, jumps


def add(chains: Chains, fragment: Fragment) -> None:
    """Put a service's chains, and its rules in shared ones, behind what is there."""
    chains.update(fragment.own)
    for key, rules in fragment.shared.items():
        chains[key] += rules


def families(settings: ServiceList) -> list[int]:
    """Return the families in which there is a service."""
    return sorted({family for service in settings.services for family in service.families()})
