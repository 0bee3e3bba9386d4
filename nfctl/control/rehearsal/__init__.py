"""A throw-away copy of this host's firewall, in which a change can be tried before it is made.

A copy is a few network namespaces that have no name:

``inside``
    stands for the host: interfaces of the same names, indexes and Ethernet addresses, the host's
    addresses, its routes and policy rules, the sysctls that matter, its ipsets, and the rules
    that are to be tried.
``outside[interface]``
    what is at the other end of that interface's cable.

1. Everything is done by a child of its own (:func:`call`), which moves between its namespaces;
   they are gone when it ends, also by SIGKILL. It is killed when its parent ends.
2. Of the host's namespace the child only reads. It takes no lock of the host's: the parent may
   hold the xtables lock meanwhile.
3. No packet leaves: nothing connects the namespaces with the machine's.
4. Rules whose targets would be noticed on the machine (LOG, AUDIT, LED) are rules without a
   target in the copy; see :func:`quiet`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from typing import TYPE_CHECKING, Any, TypeVar

from nfctl.control.rehearsal import host as host_facts
from nfctl.control.rehearsal.host import ADDRESS, LINK, Host, Link, Way
from nfctl.control.rehearsal.namespace import (
    IFA_ADDRESS,
    IFA_FLAGS,
    IFA_LOCAL,
    LOOPBACK,
    NEWLINK,
    NODAD,
    UP,
    Namespace,
    request,
)
from nfctl.kernel import netlink
from nfctl.lab import fork, syscalls, sysctls
from nfctl.lab.netlink import NLM_F_CREATE, NLM_F_EXCL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nfctl.policy.wanted import WantedSet

T = TypeVar("T")

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
_NEWADDR, _NEWROUTE, _GETLINK, _NEWRULE, _DELRULE = 20, 24, 18, 32, 33
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE = 1, 3, 4, 16
_IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 18, 27, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_NOPREFIXROUTE = 0x200
_NOARP = 0x80
_OPER_UP = 6
_SCOPE_LINK = 253
_MOST_MTU = 65535
_MOST_ADDRESSES = 1000  # of interfaces that the copy leaves out

_TIMEOUT = 60.0  # seconds; a copy with rules takes 0.1

#: Targets that are noticed outside the namespace, or by people.
_NOTICED = frozenset({"LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "LED", "IDLETIMER"})
_REWRITTEN = re.compile(r" -[jg] (LOG|NFLOG|ULOG|TRACE|AUDIT|LED|IDLETIMER|NFQUEUE|QUEUE)\b")
_TARGET = re.compile(
    r" -j (LOG|NFLOG|ULOG|TRACE|AUDIT|LED|IDLETIMER|NFQUEUE|QUEUE)"
    r'(?: (?:[^"]|"(?:[^"\\]|\\.)*")*)?$'
)
_ANY_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


def call(function: Callable[..., T], *args: Any, timeout: float = _TIMEOUT) -> T:
    """Run ``function(*args)`` in a child that may make copies; see :func:`start`."""
    return start(function, *args).result(timeout)


def start(function: Callable[..., T], *args: Any) -> fork.Child[T]:
    """Start a child that may make copies.

    Its result raises NotPermitted or Unsupported where network namespaces cannot be made.
    """
    return fork.Child(_be_child, os.getpid(), function, args)


def _be_child(parent: int, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    syscalls.die_with_parent(parent)
    # What libxtables and restore would lock is the host's, and may be held by the parent. This
    # file is every process' own, and nobody but root and we can open it.
    os.environ["XTABLES_LOCKFILE"] = "/proc/self/environ"
    return function(*args)


class Copy:
    """A copy of the namespace that the calling process is in; for a child of :func:`start` only.

    ``interfaces`` are the names of those to have (``lo`` is always there), ``sets`` the names of
    the ipsets (:func:`nfctl.control.rehearsal.sets.named` finds those that rules name). ``near``
    are the Ethernet addresses of who is at the other ends, by interface, where they matter; with
    ``together`` all the other ends are in one namespace, which is quicker where there are many.
    When it is made, the process is ``inside``.
    """

    def __init__(
        self,
        interfaces: Iterable[str] = (),
        *,
        host: Host | None = None,
        sets: Iterable[str] = (),
        near: Mapping[str, bytes] | None = None,
        together: bool = False,
    ) -> None:
        from nfctl.control.rehearsal import sets as rehearsal_sets

        self.host = host or Host()
        self.links: dict[str, Link] = {}
        for name in interfaces:
            link = self.host.link(name)
            if link.ifindex != LOOPBACK:
                self.links[name] = link
        families = [4, 6] if sysctls.has_ipv6() else [4]
        indexes = {LOOPBACK, *(link.ifindex for link in self.links.values())}
        addresses = self.host.addresses()
        routes = {family: self.host.routes(family, indexes) for family in families}
        rules = {family: self.host.rules(family) for family in families}
        values = host_facts.sysctls(list(self.links))
        kept = rehearsal_sets.read(sets)

        self.outside: dict[str, Namespace] = {}
        shared = Namespace() if together and self.links else None
        for name in self.links:
            self.outside[name] = shared or Namespace()
        self.inside = Namespace()
        # Link-local addresses are the host's, too.
        host_facts.write_sysctls([("ipv6/conf/default/addr_gen_mode", "1")])
        self._cable(near or {})
        host_facts.write_sysctls(values)
        self._say_addresses(addresses)
        for family in families:
            self._say_rules(family, rules[family])
            self._say_routes(routes[family])
        rehearsal_sets.make(kept)
        self._wait_ready()

    def close(self) -> None:
        """Let all go; the end of the process does the same."""
        for each in {id(each): each for each in (self.inside, *self.outside.values())}.values():
            each.close()
        self.host.close()

    # --- the rules and sets -------------------------------------------------------------------

    def load(self, texts: Mapping[int, str]) -> None:
        """Have these rules: iptables-save text by family (4 or 6). Tables not named stay.

        Raises what :func:`nfctl.control.restore.restore` raises.
        """
        from nfctl.control import restore

        for family, text in texts.items():
            if not text.strip():  # a host that never had a table
                continue
            with self.inside.entered():
                restore.restore(quiet(text), family=family, source=f"<rules of IPv{family}>")

    def want_sets(self, sets: Sequence[WantedSet]) -> None:
        """Have the sets that a policy wants, with the contents that it says."""
        from nfctl.control.rehearsal import sets as rehearsal_sets

        with self.inside.entered():
            rehearsal_sets.want(sets)

    def reach(self, address: str, way: Way) -> None:
        """See to it that the copy reaches an address by the way by which the host does.

        Where the host has too many routes, none was copied.
        """
        with self.inside.entered():
            here = Host()
        try:
            found = here.way(address)
            if (found.ifindex, found.gateway) == (way.ifindex, way.gateway):
                return
        except OSError:
            pass
        finally:
            here.close()
        length = ipaddress.ip_address(address).max_prefixlen
        self.inside.add_route(f"{address}/{length}", way.ifindex, way.gateway)

    # --- how it is made -----------------------------------------------------------------------

    def _cable(self, near: Mapping[str, bytes]) -> None:
        """Make the interfaces and their other ends, all up."""
        requests = [
            request(
                NEWLINK,
                _veth(link, near.get(name, b""), self.outside[name].fd),
                f"making the interface {name} of a copy",
                NLM_F_CREATE | NLM_F_EXCL,
            )
            for name, link in self.links.items()
        ]
        self.inside.netlink.do(requests)
        for name, link in self.links.items():
            payload = LINK.pack(0, 0, link.ifindex, UP, UP)
            self.outside[name].do(NEWLINK, payload, f"setting the other end of {name} up")

    def _wait_ready(self) -> None:
        """Have the interfaces pass packets: asking for one lets the kernel note its carrier."""
        for name, link in self.links.items():
            for side in (self.inside, self.outside[name]):
                get = request(_GETLINK, LINK.pack(0, 0, link.ifindex, 0, 0), "")
                for _ in range(1000):
                    data = side.netlink.ask([get])[0].data
                    if netlink.values(data, LINK.size).get(_IFLA_OPERSTATE) == bytes([_OPER_UP]):
                        break
                    os.sched_yield()

    def _say_addresses(self, addresses: list[host_facts.Address]) -> None:
        ours = {link.ifindex for link in self.links.values()}
        requests = []
        left_out = 0
        for address in addresses:
            index, scope, length = address.ifindex, address.scope, address.length
            known = netlink.values(address.told, ADDRESS.size)
            flags = NODAD | int.from_bytes(known.get(IFA_FLAGS, b""), "little") & _NOPREFIXROUTE
            peer = known.get(IFA_ADDRESS, address.raw)
            if index != LOOPBACK and index not in ours:
                # An interface that is left out: the address is the host's all the same.
                left_out += 1
                if scope == _SCOPE_LINK or left_out > _MOST_ADDRESSES:
                    continue
                index, length, peer = LOOPBACK, len(address.raw) * 8, address.raw
                flags |= _NOPREFIXROUTE
            family = host_facts.FAMILIES[address.family]
            payload = ADDRESS.pack(family, length, flags & 0xFF, scope, index)
            payload += netlink.attribute(IFA_LOCAL, address.raw)
            payload += netlink.attribute(IFA_ADDRESS, peer)
            payload += netlink.attribute(IFA_FLAGS, struct.pack("=I", flags))
            requests.append(request(_NEWADDR, payload, "", NLM_F_CREATE | NLM_F_EXCL))
        self.inside.netlink.ask(requests)  # lo's own are there already

    def _say_routes(self, routes: list[bytes] | None) -> None:
        flags = NLM_F_CREATE | NLM_F_EXCL
        left = [request(_NEWROUTE, route, "", flags) for route in routes or ()]
        for _ in range(2):  # one may need another to be there
            answers = self.inside.netlink.ask(left)
            left = [
                request
                for request, answer in zip(left, answers, strict=True)
                if answer.errno not in {0, 17}  # EEXIST
            ]

    def _say_rules(self, family: int, wanted: list[bytes]) -> None:
        here = Host()
        has = here.rules(family)
        here.close()
        requests = [
            request(_NEWRULE, rule, "", NLM_F_CREATE | NLM_F_EXCL)
            for rule in wanted
            if rule not in has
        ]
        requests += [request(_DELRULE, rule, "") for rule in has if rule not in wanted]
        self.inside.netlink.ask(requests)


def quiet(text: str) -> str:
    """Return iptables-save text without what would be noticed outside the copy.

    LOG and the like lose their target and go on counting. What NFQUEUE hands to a program that
    the copy has not got goes on as if that had accepted it (``--queue-bypass``). No rule's
    number changes.
    """
    if _REWRITTEN.search(text) is None:
        return text
    return "\n".join(
        _quiet_rule(line) if _REWRITTEN.search(line) else line for line in text.split("\n")
    )


def _quiet_rule(line: str) -> str:
    # A comment may say anything: only what is outside the quotes counts.
    bare = _ANY_QUOTED.sub(lambda quoted: "x" * len(quoted[0]), line)
    found = _TARGET.search(bare)
    if found is None:
        return line
    if found[1] in _NOTICED:
        return line[: found.start()]
    if found[1] == "QUEUE":
        return f"{line[: found.start()]} -j NFQUEUE --queue-num 0 --queue-bypass"
    return line if "--queue-bypass" in bare else f"{line.rstrip()} --queue-bypass"


def _veth(link: Link, near: bytes, outside: int) -> bytes:
    """Return the payload that makes an interface like ``link`` and its other end."""
    flags = UP | link.flags & _NOARP
    mtu = netlink.attribute(_IFLA_MTU, struct.pack("=I", min(link.mtu or 1500, _MOST_MTU)))
    name = netlink.attribute(_IFLA_IFNAME, os.fsencode(link.name) + b"\0")
    # Where nobody asks for Ethernet addresses, the kernel sends to the interface's own.
    other = link.mac if link.flags & _NOARP else near
    peer = LINK.pack(0, 0, link.ifindex, flags & _NOARP, _NOARP) + name + mtu
    if other and (other != link.mac or link.flags & _NOARP):
        peer += netlink.attribute(_IFLA_ADDRESS, other)
    peer += netlink.attribute(_IFLA_NET_NS_FD, struct.pack("=I", outside))
    info = netlink.attribute(_INFO_KIND, b"veth")
    info += netlink.attribute(_INFO_DATA, netlink.attribute(_VETH_INFO_PEER, peer))
    payload = LINK.pack(0, 0, link.ifindex, flags, UP | _NOARP) + name + mtu
    if link.mac:
        payload += netlink.attribute(_IFLA_ADDRESS, link.mac)
    payload += netlink.attribute(_IFLA_GROUP, struct.pack("=I", link.group))
    return payload + netlink.attribute(_IFLA_LINKINFO, info)
