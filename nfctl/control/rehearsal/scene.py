"""Who is where when a flow is tried in a copy of the firewall; see ``rehearsal.trial``.

The client is behind the interface by which the host reaches its address, or on the host itself;
so is the server. Where DNAT or REDIRECT may send the flow there are servers, too. The other end
of an interface has the addresses that are behind it, and the next hop's.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.control.rehearsal import Copy, conntrack
from nfctl.control.rehearsal import sets as rehearsal_sets
from nfctl.control.rehearsal.host import Host, Way
from nfctl.control.rehearsal.namespace import LOOPBACK
from nfctl.control.rehearsal.talk import End, Servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.control.guard import Flow
    from nfctl.control.rehearsal.namespace import Namespace
    from nfctl.policy.wanted import WantedSet

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_ADDRESS_AND_PORT = r"(?:\[([^\]]+)\]|([^\s:\[]+))(?::(\d+))?(?=\s|$)"
_TRANSLATED = re.compile(rf" -j DNAT\b.* --to-destination {_ADDRESS_AND_PORT}")
_REDIRECTED = re.compile(r" -j REDIRECT --to-ports (\d+)(?=\s|$)")
_MOST_LANDINGS = 8
_MOST_TRANSLATIONS = 128  # looked at


class SkippedError(Exception):
    """There is nothing to try; the text says why."""


class Side(NamedTuple):
    """Where an end of the flow is: behind an interface, "" for the host itself."""

    interface: str
    ifindex: int
    gateway: str


class Hop(NamedTuple):
    """Two neighbours: ``outside`` has the address ``next_hop``, the copy has ``ours``."""

    outside: Namespace
    ifindex: int
    next_hop: str
    ours: str


_HERE: Final = Side("", LOOPBACK, "")
_Landing = tuple[Side, str, int]


class Scene:
    """The copy with everybody in place. Raises SkippedError where there is nothing to try.

    ``entry`` is the host's own record of the flow, where it is tracked: it says what the client
    connected to before any NAT, which is ``target``.
    """

    def __init__(self, flow: Flow, texts: Sequence[str], sets: Sequence[WantedSet]) -> None:
        self.flow = flow
        self.family = flow.version
        host = Host()
        self.local = {address.text: address for address in host.addresses()}
        if not flow.asked and self._side(host, flow.destination) != _HERE:
            raise SkippedError(
                f"the operator's connection is not to this network namespace: {flow.destination} "
                "is not an address of it"
            )
        self.entry = self._tracked()
        self.client_address, self.target = flow.source, (flow.destination, flow.port)
        if self.entry is not None:
            original = self.entry.original
            self.client_address = original.source
            self.target = original.destination, original.destination_port
        self.client = self._side(host, self.client_address)
        self.server = self._side(host, flow.destination)
        landings = [(self.server, flow.destination, flow.port)]
        if self.entry is None:
            landings += self._landings(host, texts)
        self.copy = self._copy(host, landings, rehearsal_sets.needed(texts, sets))
        self.hops: list[Hop] = []
        for side in {self.client, *(side for side, _, _ in landings)} - {_HERE}:
            self._furnish(side, self._behind(side, landings))
        ends = dict.fromkeys(self._end(*landing) for landing in landings)
        self.servers = Servers(flow.protocol, list(ends))

    # --- what the trial needs -----------------------------------------------------------------

    def client_end(self, *, keep: bool) -> End:
        """Return where the client's socket is; with ``keep`` at its own port."""
        port = self.flow.source_port if keep else 0
        if keep and self.entry is not None:
            port = self.entry.original.source_port
        return self._located(self.client, self.client_address, port)

    def target_end(self, *, translated: bool = False) -> End:
        """Return what the client connects to, or what it has when NAT is done."""
        address, port = self.target
        if translated:
            address, port = self.flow.destination, self.flow.port
        at = self.client if self.client != _HERE else self.server
        return self._located(at, address, port)

    def forget(self) -> None:
        """Forget tracked connections and neighbours."""
        with self.copy.inside.entered():
            conntrack.flush(self.family)
        for hop in self.hops:
            self.copy.inside.forget_neighbour(hop.next_hop, hop.ifindex)
            if hop.ours:
                hop.outside.forget_neighbour(hop.ours, hop.ifindex)

    def introduce(self) -> None:
        """Have neighbours know each other for good."""
        for hop in self.hops:
            mine, theirs = (_mac(place, hop.ifindex) for place in (self.copy.inside, hop.outside))
            self.copy.inside.set_neighbour(hop.next_hop, hop.ifindex, theirs)
            if hop.ours:
                hop.outside.set_neighbour(hop.ours, hop.ifindex, mine)

    # --- how it is made -----------------------------------------------------------------------

    def _copy(self, host: Host, landings: Sequence[_Landing], sets: set[str]) -> Copy:
        sides = {side for side, _, _ in landings}
        if self.client != _HERE and self.client.interface in {side.interface for side in sides}:
            raise SkippedError(f"both ends are behind {self.client.interface}: that is not tried")
        sides = (sides | {self.client}) - {_HERE}
        interfaces = {side.interface for side in sides}
        # The host's own ends have to be on their interfaces, not only somewhere.
        for address in (self.client_address, self.flow.destination, self.target[0]):
            if address in self.local:
                interfaces.add(host.link(self.local[address].ifindex).name)
        near = {}
        for side in sides:
            next_hop = side.gateway or min(self._behind(side, landings))
            near[side.interface] = host.neighbour(next_hop, side.ifindex)
        return Copy(sorted(interfaces), host=host, sets=sets, near=near)

    def _behind(self, side: Side, landings: Sequence[_Landing]) -> set[str]:
        """Return the addresses that are behind an interface."""
        found = {address for at, address, _ in landings if at == side}
        return found | {self.client_address} if side == self.client else found

    def _end(self, side: Side, address: str, port: int) -> End:
        if side == _HERE and self.flow.protocol != "udp":
            # As most servers do; and REDIRECT may choose another address.
            return End(self.copy.inside, "0.0.0.0" if self.family == 4 else "::", port)  # noqa: S104
        return self._located(side, address, port)

    def _located(self, side: Side, address: str, port: int) -> End:
        scope = 0
        if _link_local(address):
            scope = self.local[address].ifindex if address in self.local else side.ifindex
        place = self.copy.outside[side.interface] if side.interface else self.copy.inside
        return End(place, address, port, scope)

    def _tracked(self) -> conntrack.Entry | None:
        flow = self.flow
        if flow.asked:  # nobody says that it is there already
            return None
        return conntrack.find(
            conntrack.Tuple(
                _PROTOCOLS[flow.protocol],
                flow.destination,
                flow.port,
                flow.source,
                flow.source_port,
            )
        )

    def _side(self, host: Host, address: str) -> Side:
        if address in self.local:
            return _HERE
        if _link_local(address) and not self.flow.interface:
            raise SkippedError(f"{address} needs its interface: {address}%INTERFACE")
        try:
            index = host.link(self.flow.interface).ifindex if _link_local(address) else 0
            way = host.way(address, interface=index)
            if way.local:
                return _HERE
            return Side(host.link(way.ifindex).name, way.ifindex, way.gateway)
        except OSError as error:
            raise SkippedError(f"there is no route to {address}: {error.strerror}") from None

    def _landings(self, host: Host, texts: Sequence[str]) -> list[_Landing]:
        """Return where DNAT rules may send the flow."""
        found: dict[_Landing, None] = {}
        for text in texts:
            for number, match in enumerate(_TRANSLATED.finditer(text)):
                if number == _MOST_TRANSLATIONS:
                    break
                with contextlib.suppress(ValueError, SkippedError):
                    address = ipaddress.ip_address(match[1] or match[2])
                    if address.version == self.family:
                        side = self._side(host, str(address))
                        found[side, str(address), int(match[3] or self.flow.port)] = None
            for number, match in enumerate(_REDIRECTED.finditer(text)):
                if number == _MOST_TRANSLATIONS:
                    break
                # To an address of the interface by which it comes.
                found[_HERE, self.flow.destination, int(match[1])] = None
        near = self.client.interface
        return [each for each in found if each[0] == _HERE or each[0].interface != near][
            :_MOST_LANDINGS
        ]

    def _furnish(self, side: Side, far: set[str]) -> None:
        """Give the other end of an interface the addresses behind it, and a way back."""
        outside, index = self.copy.outside[side.interface], side.ifindex
        if side.gateway:
            outside.add_address(side.gateway, index)
        for address in far:
            # Behind a router nobody asks for it: it is the router who does, in its own name.
            outside.add_address(address, LOOPBACK if side.gateway else index)
            if not _link_local(address):
                self.copy.reach(address, Way(False, index, side.gateway, ""))
        next_hop = side.gateway or min(far)
        here = {each.text for each in self.local.values() if each.ifindex == index}
        everything = "0.0.0.0/0" if self.family == 4 else "::/0"
        if side == self.client and self.target[0] in here:
            # The host's own address on this link is asked for itself.
            outside.add_route(everything, index)
            self.hops.append(Hop(outside, index, next_hop, self.target[0]))
        else:
            via = self._ours(side, next_hop)
            outside.add_route(everything, index, via)
            self.hops.append(Hop(outside, index, next_hop, via))

    def _ours(self, side: Side, next_hop: str) -> str:
        """Return the host's address that its neighbours on a link send to; "" if it has none."""
        neighbour = ipaddress.ip_address(next_hop)
        found = [
            each
            for each in self.local.values()
            if each.ifindex == side.ifindex and each.family == self.family
        ]
        for each in found:
            if neighbour in ipaddress.ip_network((each.raw, each.length), strict=False):
                return each.text
        return found[0].text if found else ""


def _mac(place: Namespace, index: int) -> bytes:
    with place.entered():
        host = Host()
    try:
        return host.link(index).mac
    finally:
        host.close()


def _link_local(address: str) -> bool:
    return ":" in address and ipaddress.ip_address(address).is_link_local
