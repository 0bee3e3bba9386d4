"""Links, addresses and routes of a lab, by rtnetlink(7), several namespaces at a time.

A :class:`Wiring` gathers what is to be made; :meth:`Wiring.run` sends it, for each step all that
one namespace needs in one go, and then waits once for all interfaces. BadInput says what the
kernel did not want; the links that were made before are gone then.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, NfctlError, Unsupported
from nfctl.kernel.netlink import values
from nfctl.lab import namespaces
from nfctl.lab.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Answer,
    Netlink,
    Request,
    encode,
    messages,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nfctl.lab.topology import Shape

# linux/rtnetlink.h, linux/if.h, linux/pkt_sched.h
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _NEWROUTE, _NEWQDISC = 20, 24, 36
_NEW = NLM_F_CREATE | NLM_F_EXCL
_NODAD = 2  # IFA_F_NODAD of linux/if_addr.h
_UP = {"flags": 1, "change": 1}
_LINK_HEADER = 16  # bytes, struct ifinfomsg
_QDISC, _OPERSTATE = 6, 16  # IFLA_QDISC, IFLA_OPERSTATE
_OPERSTATE_UP = b"\x06"
_SKIP_STATISTICS = 8
_MAIN_TABLE, _STATIC, _UNICAST = 254, 4, 1
_ROOT = 0xFFFFFFFF
_TICK = 64e-9  # seconds, psched_tick_per_second(): the unit of times in qdiscs
_FULL = 0xFFFFFFFF

_READY_TIMEOUT = 5.0  # seconds; it takes about one millisecond
_FRAME = 1514  # bytes
_QUEUE = 0.1  # seconds that packets wait at most for a link with a rate
_NETEM_LIMIT = 10_000  # packets on their way where there is no rate


class Site(NamedTuple):
    """A namespace, for wiring: the host's name, the namespace's, and a socket of it."""

    name: str
    namespace: str
    netlink: Netlink


class End(NamedTuple):
    """An interface to be made: where, its name, its index, and its ``address/length``s."""

    site: Site
    name: str
    ifindex: int
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        """``host:interface``."""
        return f"{self.site.name}:{self.name}"


def load_messages() -> None:
    """Import what encodes messages: that takes 30 ms, which others may use meanwhile."""
    for name in ("ifinfmsg", "ifaddrmsg", "rtmsg"):
        messages(name)


def set_up_loopbacks(sites: Iterable[Site]) -> None:
    """Set ``lo`` up, which is interface 1 in every namespace."""
    request = Request(encode("ifinfmsg", _NEWLINK, 0, _UP | {"index": 1}), "setting lo up")
    for site in sites:
        site.netlink.do([request])


class Wiring:
    """Links in the making: say which, then :meth:`run`."""

    def __init__(self) -> None:
        self._bridges: list[tuple[End, bool]] = []
        self._links: list[tuple[End, End, End | None]] = []
        self._shapes: list[tuple[End, Shape]] = []

    def cable(self, one: End, other: End, *, bridge: End | None = None) -> None:
        """Make a cable, a pair of veth(4), whose end ``one`` may be a port of a bridge."""
        self._links.append((one, other, bridge))

    def bridge(self, end: End, *, ports: int) -> None:
        """Make a bridge that passes all packets from the first moment on."""
        self._bridges.append((end, ports > 0))

    def shape(self, end: End, shape: Shape) -> None:
        """Delay, lose or slow down what ``end`` sends."""
        if shape:
            self._shapes.append((end, shape))

    def run(self) -> None:
        """Make it all; when it returns, every interface carries packets."""
        links = [end for one, other, _ in self._links for end in (one, other)]
        bridges = [end for end, _ in self._bridges]
        sites = {end.site.namespace: end.site for end in (*bridges, *links)}
        made: list[End] = []
        with contextlib.ExitStack() as stack:
            descriptors = {}
            for name in sites:
                descriptor = os.open(namespaces.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                descriptors[name] = descriptor
            # All is encoded before the first of it is sent.
            devices = [
                *((end, _bridge(end)) for end in bridges),
                *(
                    (one, _veth(one, other, bridge, descriptors[other.site.namespace]))
                    for one, other, bridge in self._links
                ),
            ]
            # veth's own open refuses while it has no peer, so the other ends come up after that.
            others = [(end, _set_up(end)) for _, end, _ in self._links]
            addresses = [(end, each) for end in (*bridges, *links) for each in _addresses(end)]
            for site in sites.values():
                site.netlink.subscribe()
                stack.callback(site.netlink.unsubscribe)
            try:
                _make(devices, made)
                _do(others)
                _do(addresses)
                for end, shape in self._shapes:
                    _shape(end, shape)
                # A bridge has no carrier while it has no ports.
                _wait_ready([*links, *(end for end, ports in self._bridges if ports)])
            except BaseException:
                for end in made:
                    data = encode("ifinfmsg", _DELLINK, 0, {"index": end.ifindex})
                    end.site.netlink.ask([Request(data, f"removing {end}")])
                raise


def _by_site(requests: Sequence[tuple[End, Request]]) -> Iterator[list[tuple[End, Request]]]:
    """Group requests by the namespace that they are for."""
    groups: dict[str, list[tuple[End, Request]]] = {}
    for end, request in requests:
        groups.setdefault(end.site.namespace, []).append((end, request))
    return iter(groups.values())


def _do(requests: Sequence[tuple[End, Request]]) -> None:
    for group in _by_site(requests):
        group[0][0].site.netlink.do([request for _, request in group])


def _make(requests: Sequence[tuple[End, Request]], made: list[End]) -> None:
    """Make devices; ``made`` gets those that were made, also if others could not be."""
    for group in _by_site(requests):
        error: NfctlError | None = None
        answers = group[0][0].site.netlink.ask([request for _, request in group])
        for (end, request), answer in zip(group, answers, strict=True):
            if not answer.errno:
                made.append(end)
            elif error is None:
                error = refusal(request.doing, answer)
        if error is not None:
            raise error


def _bridge(end: End) -> Request:
    settings: list[tuple[str, object]] = [
        ("IFLA_BR_STP_STATE", 0),
        ("IFLA_BR_FORWARD_DELAY", 0),
        ("IFLA_BR_MCAST_SNOOPING", 0),  # it would hold back neighbour discovery
    ]
    attrs = [("IFLA_IFNAME", end.name), ("IFLA_LINKINFO", _kind("bridge", settings))]
    data = encode("ifinfmsg", _NEWLINK, _NEW, _UP | {"index": end.ifindex}, attrs)
    return Request(data, f"making the bridge {end}")


def _veth(one: End, other: End, bridge: End | None, namespace: int) -> Request:
    peer = {
        "index": other.ifindex,
        "attrs": [("IFLA_IFNAME", other.name), ("IFLA_NET_NS_FD", namespace)],
    }
    attrs: list[tuple[str, object]] = [
        ("IFLA_IFNAME", one.name),
        ("IFLA_LINKINFO", _kind("veth", [("VETH_INFO_PEER", peer)])),
    ]
    if bridge is not None:
        attrs.append(("IFLA_MASTER", bridge.ifindex))
    data = encode("ifinfmsg", _NEWLINK, _NEW, _UP | {"index": one.ifindex}, attrs)
    return Request(data, f"making the link {one} - {other}")


def _set_up(end: End) -> Request:
    data = encode("ifinfmsg", _NEWLINK, 0, _UP | {"index": end.ifindex})
    return Request(data, f"setting {end} up")


def _addresses(end: End) -> Iterator[Request]:
    for text in end.addresses:
        request = _address(end, text)
        if request is not None:
            yield request


def add_routes(site: Site, routes: Iterable[tuple[str, str]]) -> None:
    """Add routes to a prefix or "default", each through a gateway.

    Those of a family that the kernel lacks are left out.
    """
    requests = [_route(site, *route) for route in routes]
    site.netlink.do([request for request in requests if request is not None])


def _kind(kind: str, data: list[tuple[str, object]]) -> dict[str, object]:
    return {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": data})]}


def _address(end: End, text: str) -> Request | None:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise BadInput(f"{end}: {error}") from None
    family = _family(interface.version)
    if family is None:
        return None
    address = str(interface.ip)
    # Without IFA_F_NODAD it is tentative until the kernel finds time, also with accept_dad=0.
    flags = _NODAD if interface.version == 6 else 0
    length = interface.network.prefixlen
    data = encode(
        "ifaddrmsg",
        _NEWADDR,
        _NEW,
        {"family": family, "prefixlen": length, "flags": flags, "index": end.ifindex},
        [("IFA_LOCAL", address), ("IFA_ADDRESS", address)],
    )
    return Request(data, f"{end}: adding the address {text}")


def _route(site: Site, destination: str, via: str) -> Request | None:
    doing = f"{site.name}: adding the route to {destination} via {via}"
    attrs: list[tuple[str, object]] = []
    length = 0
    try:
        gateway = ipaddress.ip_address(via)
        if destination != "default":
            network = ipaddress.ip_network(destination)
            length = network.prefixlen
            if network.version != gateway.version:
                raise ValueError("they are of different families")
            attrs.append(("RTA_DST", str(network.network_address)))
    except ValueError as error:
        raise BadInput(f"{doing}: {error}") from None
    family = _family(gateway.version)
    if family is None:
        return None
    fields = {
        "family": family,
        "dst_len": length,
        "table": _MAIN_TABLE,
        "proto": _STATIC,
        "type": _UNICAST,
    }
    attrs.append(("RTA_GATEWAY", str(gateway)))
    return Request(encode("rtmsg", _NEWROUTE, _NEW, fields, attrs), doing)


def _family(version: int) -> int | None:
    """Return the address family, or None for one that the kernel lacks."""
    if version == 4:
        return socket.AF_INET
    return socket.AF_INET6 if namespaces.has_ipv6() else None


def _wait_ready(ends: Sequence[End]) -> None:
    """Wait until interfaces have their carrier and their queue; packets before that are lost.

    The kernel does this in a worker of its own some time after both ends were set up. Their
    sockets are subscribed already, so nothing is missed between looking and waiting.
    """
    deadline = time.monotonic() + _READY_TIMEOUT
    pending = {end: Request(_get(end.ifindex), f"waiting for {end}") for end in ends}
    poll = select.poll()
    while True:
        by_socket: dict[Netlink, list[End]] = {}
        for end in pending:
            by_socket.setdefault(end.site.netlink, []).append(end)
        for netlink, waiting in by_socket.items():
            netlink.drain()
            for end, answer in zip(
                waiting, netlink.ask([pending[end] for end in waiting]), strict=True
            ):
                if answer.errno:
                    raise refusal(pending[end].doing, answer)
                found = values(answer.data, _LINK_HEADER)
                if found.get(_OPERSTATE) == _OPERSTATE_UP and found.get(_QDISC) != b"noop\0":
                    del pending[end]
        if not pending:
            return
        for netlink in by_socket:
            poll.register(netlink, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unsupported(f"the link {next(iter(pending))} did not come up")


def _get(index: int) -> bytes:
    mask = [("IFLA_EXT_MASK", _SKIP_STATISTICS)]
    return encode("ifinfmsg", _GETLINK, 0, {"index": index}, mask)


# --- shapes ---------------------------------------------------------------------------------------


def _shape(end: End, shape: Shape) -> None:
    """Give an interface a queue that does it: netem, or TBF if that will do."""
    doing = f"shaping what {end} sends"
    try:
        answer = _add_qdisc(end, "netem", _netem(shape))
        if answer.errno == errno.ENOENT:
            if shape.delay or shape.jitter or shape.loss:
                raise Unsupported(
                    f"{doing}: the kernel has no netem, for delay, jitter and loss",
                    hint="it is the module sch_netem, CONFIG_NET_SCH_NETEM",
                )
            answer = _add_qdisc(end, "tbf", _tbf(shape.rate / 8))
            if answer.errno == errno.ENOENT:
                raise Unsupported(
                    f"{doing}: the kernel has neither netem nor TBF, for a rate",
                    hint="modules sch_netem or sch_tbf, CONFIG_NET_SCH_NETEM or CONFIG_NET_SCH_TBF",
                )
    except struct.error:
        raise BadInput(f"{doing}: too much or too little of it for the kernel") from None
    if answer.errno:
        raise refusal(doing, answer)


def _add_qdisc(end: End, kind: str, options: dict[str, object]) -> Answer:
    fields = {"index": end.ifindex, "parent": _ROOT, "handle": 0x10000}
    attrs = [("TCA_KIND", kind), ("TCA_OPTIONS", options)]
    request = Request(encode("tcmsg", _NEWQDISC, _NEW, fields, attrs), "")
    return end.site.netlink.ask([request])[0]


def _netem(shape: Shape) -> dict[str, object]:
    octets = min(shape.rate // 8, _FULL)
    seconds = shape.delay + shape.jitter + _QUEUE
    limit = max(20, int(octets * seconds / _FRAME)) if octets else _NETEM_LIMIT
    rate = {"rate": octets, "packet_overhead": 0, "cell_size": 0, "cell_overhead": 0}
    return {
        "delay": round(shape.delay / _TICK),
        "jitter": round(shape.jitter / _TICK),
        "loss": round(shape.loss * _FULL),
        "limit": limit,
        "gap": 0,
        "duplicate": 0,
        "attrs": [("TCA_NETEM_RATE", rate)] if octets else [],
    }


def _tbf(octets: float) -> dict[str, object]:
    burst = max(octets * 0.01, 4 * _FRAME)  # bytes that may be sent at once
    parameters = {
        "rate": min(round(octets), _FULL),
        "mtu": 0,
        "buffer": min(round(burst / octets / _TICK), _FULL),
        "limit": min(round(octets * _QUEUE + burst), _FULL),
    }
    return {"attrs": [("TCA_TBF_PARMS", parameters), ("TCA_TBF_RTAB", True)]}
