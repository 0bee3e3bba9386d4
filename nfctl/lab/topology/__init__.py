"""A topology: what a lab is to be made of, as data, read from YAML. Pure: no I/O but the file.

    name: router
    description: a client, a router and a server
    hosts:
      client:
        interfaces:
          eth0: {link: wan, addresses: [192.0.2.10/24, "2001:db8:1::10/64"]}
        routes: {default: [192.0.2.1, "2001:db8:1::1"]}
      router:
        forward: true
        interfaces:
          wan0: {link: wan, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}
          lan0: {link: lan, addresses: [10.77.0.1/24, "fd77::1/64"]}
        rules:
          ipv4: |
            *filter
            :FORWARD DROP [0:0]
            COMMIT
          ipv6: {file: router.v6}
        policy: firewall.yaml
        sysctls: {net.ipv4.conf.all.rp_filter: 1}
      server:
        interfaces:
          eth0: {link: lan, addresses: [10.77.0.10/24, "fd77::10/64"]}
        routes: {default: [10.77.0.1, "fd77::1"]}
        services: {tcp: [7, 22], http: 80, udp: 53}
        resolver: 10.77.0.10
    links:
      wan: {delay: 10ms, jitter: 1ms, loss: 0.5%, rate: 10mbit}
    names:
      www.example.test: [10.77.0.10, "fd77::10"]

Files of rules and policies are looked for beside the topology. A ``policy`` is applied as
``nfctl apply`` does, after the ``rules``; what it was is in ``nfctl history`` on that host.

A link joins the interfaces that name it. Two make a veth(4) pair. More, or one that says
``bridge: true``, make a bridge: that interface is then the bridge itself, in its host, with the
other ends plugged into it; without one the bridge is a switch in a namespace of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nfctl.errors import BadInput, Where

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHIPPED: Final = Path(__file__).parent / "shipped"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link does to what is sent into it, at each end: tc-netem(8).

    ``delay`` and ``jitter`` are in seconds, ``loss`` a fraction from 0 to 1, ``rate`` in bits
    a second; 0 is none.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: int = 0

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return bool(self.delay or self.jitter or self.loss or self.rate)


@dataclass(frozen=True, slots=True)
class InterfacePlan:
    """One end of a link; ``addresses`` are ``address/length``, of both families."""

    name: str
    link: str
    addresses: tuple[str, ...] = ()
    bridge: bool = False


@dataclass(frozen=True, slots=True)
class RulesPlan:
    """iptables-save text for one family (4 or 6), and the place of its first character.

    ``by_line`` tells whether its lines are lines there, as in a file or in a ``|`` block.
    """

    family: int
    text: str
    where: Where
    by_line: bool = True

    @property
    def inline(self) -> bool:
        """Whether the text stands in the topology itself, and not in a file of its own."""
        return self.where.column > 1  # a file's text begins in column 1


@dataclass(frozen=True, slots=True)
class ServicesPlan:
    """Ports to serve, by kind: see ``nfctl.lab.services`` for what each answers."""

    tcp: tuple[int, ...] = ()
    http: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    dns: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.tcp or self.http or self.udp or self.dns)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A host. ``routes`` are (destination prefix or "default", gateway), ``sysctls`` by name.

    ``policy`` is the path of a policy file, or "".
    """

    name: str
    interfaces: tuple[InterfacePlan, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    forward: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[RulesPlan, ...] = ()
    services: ServicesPlan = ServicesPlan()
    resolver: str = ""
    policy: str = ""


@dataclass(frozen=True, slots=True)
class LinkPlan:
    """A link and the (host, interface) ends that it joins, in the order of the file.

    ``bridge`` is the host whose interface is the bridge, None if it is a veth pair, and ""
    if the bridge stands alone.
    """

    name: str
    ends: tuple[tuple[str, str], ...]
    bridge: str | None = None
    shape: Shape = Shape()


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole topology. ``names`` are DNS names and their addresses beside the hosts' own."""

    name: str
    hosts: Mapping[str, HostPlan]
    links: Mapping[str, LinkPlan]
    description: str = ""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str | bytes, source: str = "") -> Topology:
        """Read YAML; BadInput with file, line and column for anything that cannot be.

        Files of rules are looked for beside ``source``.
        """
        from nfctl.lab.topology.file import read

        return read(text, source)

    @classmethod
    def load(cls, word: str) -> Topology:
        """Read a file, ``-`` for standard input, or one of :func:`shipped` by its name.

        A word with a ``/`` or a ``.`` is a file's name.
        """
        from nfctl.document import contents, known, shown, standard_input

        if word == "-":
            return cls.parse(standard_input(), "<stdin>")
        if "/" in word or "." in word:
            return cls.parse(contents(word), word)
        if word not in _shipped_files():
            hint = known(word, _shipped_files(), "there are")
            if Path(word).is_file():
                hint = f"the file of that name is ./{word}"
            raise BadInput(f"there is no topology {shown(word)}", hint=hint)
        path = str(_shipped_files()[word])
        return cls.parse(contents(path), path)

    def without_services(self) -> Topology:
        """Return the same without servers."""
        hosts = {name: replace(host, services=ServicesPlan()) for name, host in self.hosts.items()}
        return replace(self, hosts=hosts)

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Return every name of the lab and its addresses: the hosts' and ``names``.

        A host is known as ``HOST`` and ``HOST.lab``.
        """
        found: dict[str, tuple[str, ...]] = {}
        for host in self.hosts.values():
            own = (
                address.partition("/")[0]
                for interface in host.interfaces
                for address in interface.addresses
            )
            found[host.name] = found[f"{host.name}.lab"] = tuple(dict.fromkeys(own))
        return found | dict(self.names)

    def document(self) -> dict[str, Any]:
        """Return it all as what JSON can hold, for :meth:`from_document`."""
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Topology:
        """Return the topology that :meth:`document` came from; BadInput if it is of no such one."""
        try:
            return cls(
                name=document["name"],
                hosts={name: _host(host) for name, host in document["hosts"].items()},
                links={name: _link(link) for name, link in document["links"].items()},
                description=document["description"],
                names={name: tuple(found) for name, found in document["names"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"this is no record of a topology: {error!r}"
            raise BadInput(msg) from None


def shipped() -> dict[str, str]:
    """Return the topologies that come with nfctl: name and description."""
    return {name: Topology.load(name).description for name in _shipped_files()}


def _shipped_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(_SHIPPED.glob("*.yaml"))}


def _host(found: Mapping[str, Any]) -> HostPlan:
    interfaces = (
        InterfacePlan(**{**plan, "addresses": tuple(plan["addresses"])})
        for plan in found["interfaces"]
    )
    rules = (RulesPlan(**{**plan, "where": Where(*plan["where"])}) for plan in found["rules"])
    services = {kind: tuple(ports) for kind, ports in found["services"].items()}
    rebuilt = {
        "interfaces": tuple(interfaces),
        "routes": tuple((destination, gateway) for destination, gateway in found["routes"]),
        "sysctls": dict(found["sysctls"]),
        "rules": tuple(rules),
        "services": ServicesPlan(**services),
    }
    return HostPlan(**{**found, **rebuilt})


def _link(found: Mapping[str, Any]) -> LinkPlan:
    ends = tuple((host, interface) for host, interface in found["ends"])
    return LinkPlan(**{**found, "ends": ends, "shape": Shape(**found["shape"])})
