"""What the helpers ask inside a host: every function here runs in the host's own process.

Besides the rules' counters stand those of the IP stack, one set a namespace: proc_net(5), and
snmp_counter.rst in the kernel's documentation. They tell what no rule saw.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nfctl.lab.counters import Reading
from nfctl.testing.routes import addresses

if TYPE_CHECKING:
    from nfctl.lab.explain import Snapshot

_NET = Path("/proc/thread-self/net")
_SYN_RECV, _LISTEN, _UDP_BOUND = "03", "0A", "07"  # include/net/tcp_states.h


class Stack(NamedTuple):
    """What a host's IP stack has counted of one family, in packets.

    ``received`` came in, multicast and neighbour discovery left out. ``spoofed`` fell to the
    reverse path filter, ``astray`` were for others on a host that does not forward,
    ``unroutable`` had no route on from here. ``segments``, ``datagrams`` and ``echoes`` were for
    this host itself (of TCP in both families); ``opened`` are the connections that segments
    made, and the resets sent for those that belonged to none.
    """

    received: int
    spoofed: int
    astray: int
    unroutable: int
    segments: int
    opened: int
    datagrams: int
    echoes: int


class Facts(NamedTuple):
    """What a host knows of one attempt: two readings of its counters, and its addresses."""

    before: Snapshot
    after: Snapshot
    stack_before: Stack
    stack_after: Stack
    addresses: tuple[str, ...]


_marks: dict[int, tuple[Reading, Stack]] = {}  # by family; one process a host


def mark(family: int) -> None:
    """Remember the counters as they are now."""
    _marks[family] = (Reading(family), stack(family))


def delivered(transport: str, family: int) -> bool:
    """Whether this host's own TCP, UDP or ICMP was given something new since the mark.

    The last segments of a connection before may still come in; a new one opens something.
    """
    before, after = _marks[family][1], stack(family)
    if transport == "udp":
        return after.datagrams > before.datagrams
    if transport == "icmp":
        return after.echoes > before.echoes
    if after.segments == before.segments:
        return False
    return after.opened > before.opened or bool(_sockets(_SYN_RECV, "tcp", "tcp6"))


def facts(family: int) -> Facts:
    """Return what happened since the mark."""
    now, stack_now = Reading(family), stack(family)
    reading, stack_then = _marks[family]
    known = tuple(address.text for address in addresses(family))
    return Facts(reading.snapshot(), now.snapshot(), stack_then, stack_now, known)


def stack(family: int) -> Stack:
    """Read the counters of the IP stack."""
    counts = _pairs("snmp") | _pairs("netstat")
    if family == 6:
        lines = (line.split() for line in (_NET / "snmp6").read_text().splitlines())
        counts |= {name: int(value) for name, value in lines}
    get = counts.get
    if family == 4:
        ip, udp, icmp = "Ip", "Udp", "Icmp"
        noise = get("IpExtInMcastPkts", 0) + get("IpExtInBcastPkts", 0)
        unroutable = get("IpExtInNoRoutes", 0)
    else:
        ip, udp, icmp = "Ip6", "Udp6", "Icmp6"
        # Solicitations are multicast as a rule, and counted by that.
        noise = get("Ip6InMcastPkts", 0) + get("Icmp6InNeighborAdvertisements", 0)
        unroutable = get("Ip6InNoRoutes", 0)
    return Stack(
        received=get(f"{ip}InReceives", 0) - noise,
        spoofed=get("TcpExtIPReversePathFilter", 0) if family == 4 else 0,
        astray=get(f"{ip}InAddrErrors", 0),
        unroutable=unroutable,
        segments=get("TcpInSegs", 0),
        opened=get("TcpPassiveOpens", 0) + get("TcpOutRsts", 0),
        datagrams=sum(get(udp + name, 0) for name in ("InDatagrams", "NoPorts", "InErrors")),
        echoes=get(f"{icmp}InEchos", 0),
    )


def _pairs(name: str) -> dict[str, int]:
    """Read a file of two lines a protocol: the names, and the numbers under them."""
    lines = (_NET / name).read_text().splitlines()
    found: dict[str, int] = {}
    for names, numbers in zip(lines[::2], lines[1::2], strict=True):
        kind, *words = names.split()
        values = map(int, numbers.split()[1:])
        found |= {kind[:-1] + word: value for word, value in zip(words, values, strict=True)}
    return found


def _sockets(state: str, *names: str) -> list[str]:
    """Return the local ``address:port`` of the sockets in a state: 4 ms a file."""
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # a kernel without that family
            lines = (_NET / name).read_text().splitlines()[1:]
            fields = (line.split() for line in lines)
            found += [field[1] for field in fields if field[3] == state]
    return found


def listens(protocol: str, port: int, family: int) -> bool:
    """Whether a socket waits for what comes to a TCP or UDP port."""
    state = _LISTEN if protocol == "tcp" else _UDP_BOUND
    # A socket of IPv6 may take what comes over IPv4 too.
    names = [f"{protocol}6"] + [protocol] * (family == 4)
    ports = (int(local.rpartition(":")[2], 16) for local in _sockets(state, *names))
    return port in ports
