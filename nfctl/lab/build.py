"""From a topology to a lab: hosts, links, routes, rules, services, in that order.

Making the namespaces, loading rules and starting servers is the work of children. The lab's
process wires the hosts meanwhile: nothing of it needs the rules or the servers.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.errors import NfctlError, Where, excerpt
from nfctl.lab import fork, namespaces, syscalls
from nfctl.lab.sysctls import Role
from nfctl.lab.wiring import End, Site, Wiring, add_routes, load_messages, set_up_loopbacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nfctl.lab.host import Host
    from nfctl.lab.lab import Lab
    from nfctl.lab.topology import LinkPlan, RulesPlan, Topology

_SWITCH = "_switch"  # no host has such a name
_LONGEST_NAME = 15  # bytes of an interface's name
_TIMEOUT = 60.0  # seconds to load a host's rules
_NO_PORTS = {"lo", "all", "default"}  # names that interfaces cannot have, or that are taken


def build(lab: Lab, topology: Topology, *, services: bool = True) -> None:
    """Make in ``lab`` what ``topology`` says; if something fails ``lab`` is closed."""
    try:
        _build(lab, topology, services)
    except BaseException:
        lab.close()
        raise


def _build(lab: Lab, topology: Topology, services: bool) -> None:
    plans = topology.hosts
    hosts = lab.add(plans)
    names = topology.addresses()
    _write_files(lab, topology, names)
    switch = f"{namespaces.PREFIX}{lab.id}-{_SWITCH}"
    wanted = [
        namespaces.Wanted(
            host.namespace,
            Role.ROUTER if plans[host.name].forward else Role.HOST,
            plans[host.name].sysctls,
        )
        for host in hosts
    ]
    if any(link.bridge == "" for link in topology.links.values()):
        wanted.append(namespaces.Wanted(switch, Role.SWITCH))
    making = namespaces.Making(wanted, partial(_populate, hosts, topology, names, services))
    try:
        load_messages()
        made = making.made()
        for host, each in zip(hosts, made, strict=False):
            host.connect(each.netlink)
        with contextlib.ExitStack() as stack:
            sites = {host.name: host.site for host in hosts}
            for each in made[len(hosts) :]:
                stack.callback(each.netlink.close)
                sites[""] = Site("switch", switch, each.netlink)
            set_up_loopbacks(sites.values())
            _Plugging(lab, topology, sites).run()
        for host in hosts:
            add_routes(host.site, plans[host.name].routes)
        namespaces.set_sysctls(
            {want.name: each.late for want, each in zip(wanted, made, strict=True)}
        )
        making.finish()
    finally:
        making.abandon()


class _Plugging:
    """Gives every link of a topology its interfaces, and every interface its index."""

    def __init__(self, lab: Lab, topology: Topology, sites: Mapping[str, Site]) -> None:
        self._lab = lab
        self._topology = topology
        self._sites = sites
        self._wiring = Wiring()
        self._taken = {name: set(_NO_PORTS) for name in sites}
        for name, plan in topology.hosts.items():
            self._taken[name].update(interface.name for interface in plan.interfaces)

    def run(self) -> None:
        """Make them all."""
        for link in self._topology.links.values():
            self._link(link)
        self._wiring.run()

    def _link(self, link: LinkPlan) -> None:
        plans = {
            (host.name, interface.name): interface
            for host in self._topology.hosts.values()
            for interface in host.interfaces
        }
        ends = {
            (host, name): self._end(host, name, plans[host, name].addresses)
            for host, name in link.ends
        }
        for end in ends.values():
            self._wiring.shape(end, link.shape)
        if link.bridge is None:
            self._wiring.cable(*ends.values())
            return
        if link.bridge:
            bridge = ends.pop(next(at for at in ends if at[0] == link.bridge and plans[at].bridge))
        else:
            bridge = self._end("", self._name("", link.name))
        self._wiring.bridge(bridge, ports=len(ends))
        for (host, _), end in ends.items():
            port = self._end(link.bridge, self._name(link.bridge, host))
            self._wiring.cable(port, end, bridge=bridge)

    def _end(self, host: str, name: str, addresses: tuple[str, ...] = ()) -> End:
        return End(self._sites[host], name, self._lab.index(), addresses)

    def _name(self, host: str, wanted: str) -> str:
        """Return a name for a port, which no interface of the host has."""
        name, number = wanted[:_LONGEST_NAME], 0
        while name in self._taken[host]:
            number += 1
            name = f"{wanted[: _LONGEST_NAME - len(str(number))]}{number}"
        self._taken[host].add(name)
        return name


# --- in children ----------------------------------------------------------------------------------


def _populate(
    hosts: Sequence[Host],
    topology: Topology,
    names: Mapping[str, tuple[str, ...]],
    services: bool,
) -> None:
    """Load the hosts' rules, and start their servers meanwhile."""
    plans = topology.hosts
    with contextlib.ExitStack() as stack:
        loaders = []
        for host in hosts:
            plan = plans[host.name]
            if plan.rules or plan.policy:
                loader = fork.Child(_load, host, plan.rules, plan.policy, os.getpid())
                stack.callback(loader.kill)
                loaders.append(loader)
        for host in hosts:
            if services and plans[host.name].services:
                from nfctl.lab.services import stand

                stand(host.enter, plans[host.name].services, names, name=host.name)
        for loader in loaders:
            loader.result(_TIMEOUT)


def _load(host: Host, rules: Sequence[RulesPlan], policy: str, parent: int) -> None:
    """Load rules in a child of their host, under its own xtables lock; then apply its policy."""
    import nfctl

    syscalls.die_with_parent(parent)
    host.enter()
    for plan in rules:
        if plan.family == 6 and not namespaces.has_ipv6():
            continue
        try:
            nfctl.restore(plan.text, family=plan.family, source=plan.where.source)
        except NfctlError as error:
            raise _placed(error, plan) from None
    if policy:
        from nfctl.control.apply import Options, apply
        from nfctl.control.journal.state import State
        from nfctl.policy.reading import read

        apply(read(policy), state=State(), options=Options(guard_ssh=False))


def _placed(error: NfctlError, plan: RulesPlan) -> NfctlError:
    """Give an error its place in the file of the topology, if the rules stand in that."""
    if error.where is None or not error.where.line:
        error.where = plan.where
        return error
    error.excerpt = excerpt(plan.text, error.where)
    if not plan.by_line:
        error.where = plan.where
    elif plan.inline:
        _, line, column = error.where
        column += plan.where.column - 1 if column else 0
        error.where = Where(plan.where.source, line + plan.where.line - 1, column)
    return error


# --- files ----------------------------------------------------------------------------------------


def _write_files(lab: Lab, topology: Topology, names: Mapping[str, tuple[str, ...]]) -> None:
    """Write what the hosts see as /etc/hosts, and as /etc/resolv.conf if they have a resolver."""
    lines = [*_local_lines(), *(f"{address} {name}" for address, name in _pairs(names))]
    for name, plan in topology.hosts.items():
        run = lab[name].directory
        hosts = namespaces.hosts_file(run)
        if not hosts.exists():  # one for all
            _write(hosts, "".join(f"{line}\n" for line in lines))
        if plan.resolver:
            _write(namespaces.resolver_file(run), f"nameserver {plan.resolver}\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o644)  # whatever the umask: not only root resolves names


def _pairs(names: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    for name, addresses in names.items():
        for address in addresses:
            if ":" not in address or namespaces.has_ipv6():
                yield address, name


def _local_lines() -> list[str]:
    """Return the lines of the machine's /etc/hosts that are about the machine itself."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/etc/hosts").read_text(errors="replace").splitlines():
            words = line.partition("#")[0].split()
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(words[0]) if words else None
                if address is not None and (address.is_loopback or address.is_multicast):
                    found.append(line)
    if not any("localhost" in line.split() for line in found):
        found = ["127.0.0.1 localhost", "::1 localhost", *found]
    return found
