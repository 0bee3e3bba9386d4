"""Links, addresses and routes inside one namespace, by rtnetlink(7) through pyroute2.

Every function acts in the namespace of the calling process, which is a forked child that
has entered it (see ``namespaces.enter``). BadInput says what the kernel did not want.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from nfctl.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_RTMGRP_LINK = 1  # linux/rtnetlink.h
_READY_TIMEOUT = 5.0  # seconds; it takes about one millisecond


def preload() -> None:
    """Import pyroute2 before the first fork: it takes 0.2 s, which each child would spend."""
    import pyroute2  # noqa: F401


@contextlib.contextmanager
def _netlink(doing: str) -> Iterator[Any]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise Unsupported(f"{doing}: the kernel cannot do that") from None
        raise BadInput(f"{doing}: {error.args[-1]}") from None


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise BadInput(f"there is no interface {name}")
    return int(found[0])


def loopback_up() -> None:
    """Set ``lo`` up."""
    with _netlink("setting lo up") as ip:
        ip.link("set", index=1, state="up")  # lo is 1 in every namespace


def add_veth(name: str, peer: str, peer_namespace: Path) -> None:
    """Make a veth(4) pair: ``name`` here, ``peer`` directly in the other namespace."""
    with _netlink(f"making the link {name} - {peer}") as ip, peer_namespace.open("rb") as there:
        ip.link(
            "add",
            ifname=name,
            kind="veth",
            peer={"ifname": peer, "net_ns_fd": there.fileno()},
        )
        ip.link("set", index=_index(ip, name), state="up")


def configure(name: str, addresses: Sequence[tuple[str, int]]) -> None:
    """Set an interface up, wait until it carries packets, and give it its addresses."""
    with _netlink(f"configuring {name}") as ip:
        index = _index(ip, name)
        ip.link("set", index=index, state="up")
        for address, length in addresses:
            ip.addr("add", index=index, address=address, prefixlen=length)


def wait_ready(name: str) -> None:
    """Wait until an interface has its carrier and its queue; packets before that are lost.

    The kernel does this in a worker of its own some time after both ends were set up.
    """
    deadline = time.monotonic() + _READY_TIMEOUT
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as events,
        _netlink(f"waiting for {name}") as ip,
    ):
        events.bind((0, _RTMGRP_LINK))
        index = _index(ip, name)
        while True:
            link = ip.link("get", index=index)[0]
            if link.get("operstate") == "UP" and link.get("qdisc") != "noop":
                return
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([events], [], [], left)[0]:
                raise Unsupported(f"the link {name} did not come up")
            with contextlib.suppress(OSError):
                events.recv(1 << 16)


def add_route(destination: str, via: str) -> None:
    """Add a route to ``destination`` (a prefix, or "default") through the neighbour ``via``."""
    family = socket.AF_INET6 if ":" in via else socket.AF_INET
    with _netlink(f"adding the route to {destination} via {via}") as ip:
        ip.route("add", dst=destination, gateway=via, family=family)
