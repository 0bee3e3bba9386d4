"""How a topology's file is read: from a document to the plans of ``topology``, all of it checked.

Whatever the kernel would refuse later, and can be known without it, is refused here with its
place: names, addresses, routes through a gateway that is nobody's neighbour, a port served
twice, a link with one end.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from nfctl import document
from nfctl.document import Node, known, shown
from nfctl.errors import BadInput, Where, excerpt
from nfctl.lab.namespaces import check_word
from nfctl.lab.topology import (
    HostPlan,
    InterfacePlan,
    LinkPlan,
    RulesPlan,
    ServicesPlan,
    Shape,
    Topology,
)
from nfctl.lab.topology.shape import read_shape
from nfctl.ruleset import script
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import split

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

    Address = IPv4Address | IPv6Address
    Interface = IPv4Interface | IPv6Interface

_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_SYSCTL: Final = r"net(\.[A-Za-z0-9_][A-Za-z0-9_-]*)+"
_FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
_SERVICES: Final = {"tcp": ("tcp",), "http": ("tcp",), "udp": ("udp",), "dns": ("tcp", "udp")}


def read(text: str | bytes, source: str) -> Topology:
    """Read a topology; BadInput with the place of what cannot be."""
    root = document.load(text, source)
    fields = root.mapping(required=("name", "hosts"), optional=_OPTIONAL)
    if "version" in fields and fields["version"].integer() != 1:
        raise fields["version"].error("there is only version 1")
    name = _word(fields["name"], "topology")
    reader = _Reader(source)
    hosts = reader.hosts(fields["hosts"])
    links = reader.links(fields.get("links"))
    names = reader.names(fields.get("names"))
    description = _description(fields["description"]) if "description" in fields else ""
    return Topology(name, hosts, links, description, names)


_OPTIONAL: Final = ("version", "description", "links", "names")


class _Reader:
    """What is known of the topology so far, for what has to fit together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.plans: dict[str, HostPlan] = {}
        self.ends: dict[str, list[tuple[str, InterfacePlan, Node]]] = {}  # by link
        self.addresses: dict[tuple[str, Address], Node] = {}  # by link

    # --- hosts ----------------------------------------------------------------------------------

    def hosts(self, node: Node) -> dict[str, HostPlan]:
        for key, value in node.items():
            name = _word(key, "host")
            self.plans[name] = self._host(name, value)
        if not self.plans:
            raise node.error("a topology has one host at least")
        return self.plans

    def _host(self, name: str, node: Node) -> HostPlan:
        fields = node.mapping(
            optional=(
                *("interfaces", "routes", "forward", "sysctls", "rules", "services", "resolver"),
                "policy",
            )
        )
        interfaces: list[InterfacePlan] = []
        near: list[tuple[str, Interface]] = []
        if "interfaces" in fields:
            for key, value in fields["interfaces"].items():
                plan, addresses = self._interface(name, key, value)
                interfaces.append(plan)
                near += [(plan.name, address) for address in addresses]
        resolver = fields.get("resolver")
        return HostPlan(
            name,
            tuple(interfaces),
            tuple(_routes(fields["routes"], near)) if "routes" in fields else (),
            fields["forward"].boolean() if "forward" in fields else False,
            _sysctls(fields["sysctls"]) if "sysctls" in fields else {},
            tuple(self._rules(fields["rules"])) if "rules" in fields else (),
            _services(fields["services"]) if "services" in fields else ServicesPlan(),
            str(_address(resolver)) if resolver else "",
            self._policy(fields["policy"]) if "policy" in fields else "",
        )

    def _interface(self, host: str, key: Node, node: Node) -> tuple[InterfacePlan, list[Interface]]:
        name = _interface_name(key)
        fields = node.mapping(required=("link",), optional=("addresses", "bridge"))
        link = _word(fields["link"], "link")
        addresses = []
        for child in fields["addresses"].one_or_many() if "addresses" in fields else ():
            address = _interface_address(child)
            before = self.addresses.setdefault((link, address.ip), child)
            if before is not child:
                msg = f"{address.ip} is on the link {link} already, in line {before.where.line}"
                raise child.error(msg)
            addresses.append(address)
        bridge = fields["bridge"].boolean() if "bridge" in fields else False
        plan = InterfacePlan(name, link, tuple(str(a.with_prefixlen) for a in addresses), bridge)
        self.ends.setdefault(link, []).append((host, plan, key))
        return plan, addresses

    def _rules(self, node: Node) -> list[RulesPlan]:
        plans = []
        for name, value in node.mapping(optional=_FAMILIES).items():
            family = _FAMILIES[name]
            if value.pairs:
                file = value.mapping(required=("file",))["file"]
                plans.append(self._rules_file(family, file))
            else:
                text = value.text()
                try:
                    _check_rules(text, "rules", family)
                except BadInput as error:
                    where = error.where or Where("rules", 1, 1)
                    place = value.inner(max(1, where.line), max(1, where.column))
                    raise value.error(error.message, error.hint, where=place) from None
                plans.append(RulesPlan(family, text, value.inner(1, 1), value.style == "|"))
        return plans

    def _rules_file(self, family: int, node: Node) -> RulesPlan:
        """Read a file of rules; its path is relative to the topology's file."""
        path = str(PurePath(self.source).parent / node.text())
        try:
            data = document.contents(path)
        except BadInput as error:
            raise node.error(error.message, "relative to the file of the topology") from None
        text = data.decode("utf-8", "surrogateescape")
        try:
            _check_rules(text, path, family)
        except BadInput as error:
            error.excerpt = excerpt(text, error.where)
            raise
        return RulesPlan(family, text, Where(path, 1, 1))

    def _policy(self, node: Node) -> str:
        """Read a policy file, to see that it can be; its path is relative to the topology's."""
        from nfctl.policy.reading import read

        path = str(PurePath(self.source).parent / node.text())
        try:
            read(path)
        except BadInput as error:
            if error.where is None:
                raise node.error(error.message, "relative to the file of the topology") from None
            raise
        return path

    # --- what joins them ------------------------------------------------------------------------

    def links(self, node: Node | None) -> dict[str, LinkPlan]:
        """Return the links, in the order in which interfaces name them."""
        shapes: dict[str, Shape] = {}
        for key, value in node.items() if node else ():
            name = _word(key, "link")
            if name not in self.ends:
                msg = f"no interface is on the link {name}"
                raise key.error(msg, known(name, self.ends, "links with interfaces are"))
            shapes[name] = read_shape(value)
        return {name: self._link(name, shapes.get(name, Shape())) for name in self.ends}

    def _link(self, name: str, shape: Shape) -> LinkPlan:
        ends = self.ends[name]
        if len(ends) < 2:
            host, plan, key = ends[0]
            others = [link for link in self.ends if link != name]
            msg = f"the link {name} has no other end than {host}:{plan.name}"
            raise key.error(msg, known(name, others, "other links are"))
        bridges = [(host, key) for host, plan, key in ends if plan.bridge]
        if len(bridges) > 1:
            line = bridges[0][1].where.line
            raise bridges[1][1].error(f"the link {name} has its bridge already, in line {line}")
        bridge = bridges[0][0] if bridges else "" if len(ends) > 2 else None
        return LinkPlan(name, tuple((host, plan.name) for host, plan, _ in ends), bridge, shape)

    def names(self, node: Node | None) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for key, value in node.items() if node else ():
            name = key.text().lower().removesuffix(".")
            if len(name) > 253 or not _DNS_NAME.fullmatch(name):
                hint = "labels of letters, digits and -, 63 at most, with dots between them"
                raise key.error(f"{shown(key.raw)} is no DNS name", hint)
            if name in found:
                raise key.error(f"the name {name} is there already")
            if name.removesuffix(".lab") in self.plans:
                raise key.error(f"{name} is a host's name", "a host is known as HOST and HOST.lab")
            found[name] = tuple(dict.fromkeys(str(_address(n)) for n in value.one_or_many()))
            if not found[name]:
                raise key.error(f"the name {name} has no address")
        return found


# --- a value each ---------------------------------------------------------------------------------


def _description(node: Node) -> str:
    """Read a text for people, and make one line of it."""
    text = " ".join(node.text().split())
    if not text.isprintable():
        raise node.error("a description is text that can be printed")
    return text


def _word(node: Node, what: str) -> str:
    """Read a name that can be a part of a namespace's."""
    word = node.text(what=f"{what}'s name")
    try:
        return check_word(word, what)
    except BadInput as error:
        raise node.error(f"{shown(word)} is no name for a {what}", error.hint) from None


def _interface_name(node: Node) -> str:
    """Read an interface's name, by ``dev_valid_name()`` in the kernel's net/core/dev.c."""
    name = node.text()
    hint = "1 to 15 bytes, no blanks, none of / : %"
    if not 0 < len(name.encode()) < 16 or name in {".", ".."}:
        raise node.error(f"{shown(name)} is no name for an interface", hint)
    if any(char.isspace() or char in "/:%" or not char.isprintable() for char in name):
        raise node.error(f"{shown(name)} is no name for an interface", hint)
    if name in {"lo", "all", "default"}:
        msg = f'an interface cannot be called "{name}"'
        raise node.error(msg, "every host has a lo" if name == "lo" else "sysctls use that word")
    return name


def _address(node: Node) -> Address:
    text = node.text(what="address")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        hint = "without a prefix length" if "/" in text else ""
        raise node.error(f"{shown(text)} is no address", hint) from None
    if "%" in text:
        raise node.error(f"{shown(text)} names an interface", "an address only")
    return address


def _interface_address(node: Node) -> Interface:
    """Read ``address/length``; what the kernel does not give an interface is refused."""
    text = node.text(what="address/length")
    try:
        found = ipaddress.ip_interface(text)
    except ValueError:
        raise node.error(f"{shown(text)} is no address/length", "such as 192.0.2.1/24") from None
    if "/" not in text:
        hint = (
            f"{text}/{24 if found.version == 4 else 64}, or /{found.max_prefixlen} if it is alone"
        )
        raise node.error(f"{shown(text)} has no prefix length", hint)
    if "%" in text:
        raise node.error(f"{shown(text)} names an interface", "an address only")
    if found.version == 6 and (found.is_unspecified or found.is_loopback or found.is_multicast):
        raise node.error(f"the kernel gives {found.ip} to no interface")
    return found


def _routes(node: Node, near: list[tuple[str, Interface]]) -> list[tuple[str, str]]:
    """Read the routes of a host whose interfaces have the addresses ``near``."""
    routes: list[tuple[str, str]] = []
    found: dict[tuple[int, str], Node] = {}
    for key, value in node.items():
        destination, family = _destination(key, near)
        gateways = value.one_or_many()
        if not gateways:
            raise key.error(f"the route to {destination} has no gateway")
        for child in gateways:
            gateway = _address(child)
            if family and gateway.version != family:
                msg = f"{gateway} is no IPv{family} address, and {destination} is IPv{family}"
                raise child.error(msg)
            before = found.setdefault((gateway.version, destination), child)
            if before is not child:
                line = before.where.line
                msg = f"there is a route to {destination} (IPv{gateway.version}) in line {line}"
                raise child.error(msg, "one gateway for each family")
            _check_gateway(child, gateway, near)
            routes.append((destination, str(gateway)))
    return routes


def _destination(key: Node, near: list[tuple[str, Interface]]) -> tuple[str, int]:
    """Return a prefix and its family; that of "default" is 0, for it is of both."""
    text = key.text()
    if text == "default":
        return text, 0
    try:
        found = ipaddress.ip_interface(text)
    except ValueError:
        raise key.error(f"{shown(text)} is no prefix", 'such as 10.0.0.0/8, or "default"') from None
    network = found.network
    if found.ip != network.network_address:
        raise key.error(f"{shown(text)} has bits behind its length", f"the prefix is {network}")
    if not network.prefixlen:
        return "default", network.version
    for name, address in near:
        if address.network == network:
            raise key.error(f"{network} is at {name} itself and needs no route")
    return str(network), network.version


def _check_gateway(node: Node, gateway: Address, near: list[tuple[str, Interface]]) -> None:
    """Raise BadInput for a gateway that the kernel would refuse, or that leads nowhere."""
    if gateway.version == 6 and gateway.is_link_local:
        msg = f"the gateway {gateway} is link-local, which says nothing without an interface"
        raise node.error(msg, "give the router an address of the link's prefix")
    same = [(name, address) for name, address in near if address.version == gateway.version]
    if any(address.ip == gateway for _, address in same):
        raise node.error(f"the gateway {gateway} is this host itself")
    around = [address.network for _, address in same if gateway in address.network]
    if not around:
        networks = ", ".join(f"{address.network} ({name})" for name, address in same)
        hint = f"it is in {networks}" if networks else f"it has no IPv{gateway.version} address"
        raise node.error(f"the gateway {gateway} is no neighbour of this host", hint)
    if all(net.prefixlen < 31 and gateway == net.broadcast_address for net in around) and (
        gateway.version == 4
    ):
        raise node.error(f"the gateway {gateway} is a broadcast address")


def _sysctls(node: Node) -> dict[str, str]:
    found = {}
    for key, value in node.items():
        name = key.text(_SYSCTL, "sysctl of the network", "such as net.ipv4.conf.all.rp_filter")
        text = value.scalar()
        if value.kind is document.Kind.BOOLEAN:
            raise value.error(f"{text} is no value of a sysctl", "1 or 0")
        if not text.strip() or not text.isprintable():
            raise value.error(f"{shown(text)} is no value of a sysctl", "one line of text")
        found[name] = text
    return found


def _services(node: Node) -> ServicesPlan:
    ports: dict[str, tuple[int, ...]] = {}
    taken: dict[tuple[str, int], str] = {}
    for kind, value in node.mapping(optional=_SERVICES).items():
        for child in value.one_or_many():
            port = child.integer(1, 65535)
            for protocol in _SERVICES[kind]:
                by = taken.setdefault((protocol, port), kind)
                if by != kind or port in ports.get(kind, ()):
                    raise child.error(f"{protocol}/{port} is served already, by {by}")
            ports[kind] = (*ports.get(kind, ()), port)
    return ServicesPlan(**ports)


def _check_rules(text: str, source: str, family: int) -> None:
    """Read iptables-save text as far as that goes without libxtables; BadInput with the place.

    Options of rules are left to libxtables, which knows them all.
    """
    for section in script.parse(text, source=source, family=family).sections:
        chains = set(BUILTIN_CHAINS[section.table])
        for item in section.items:
            if isinstance(item, script.Command):
                if item.verb in ":N":
                    chains.add(item.chain)
                elif item.verb == "E":
                    chains.add(item.argument)
            elif item.chain not in chains:
                msg = f"table {section.table} has no chain {item.chain}"
                hint = f"a line :{item.chain} - [0:0] must come before"
                raise BadInput(msg, hint=hint, where=Where(source, item.line, 1))
            elif item.words is None:  # not split yet: a quote may be open
                split(item.spec, source=source, number=item.line, column=item.column)
