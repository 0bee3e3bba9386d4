"""Labs: the ``router`` topology up and down, against a shell script of ip(8) commands.

The script is made from the same topology, and what both leave is compared before any timing:
addresses, routes and settings of each host as ip(8) and sysctl(8) print them. Services are left
out on both sides (``--no-services``), since ``ip`` starts none.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from nfctl.lab.topology import Topology
from tests.bench.harness import Bound, Result, Side, race
from tests.bench.room import Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nfctl.lab.topology import HostPlan
    from tests.bench.measures import Bench
    from tests.bench.room import Room

SCRIPT = "ip script"
FLOOR = 3.0
LABS = 10  # made one after the other by one program, as a test suite does

# What a host of a lab is set to: see nfctl/lab/sysctls.py.
_SETTINGS = (
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.all.log_martians=0",
    "net.ipv4.conf.default.log_martians=0",
    "net.ipv4.icmp_ratelimit=0",
    "net.ipv6.conf.all.accept_dad=0",
    "net.ipv6.conf.default.accept_dad=0",
    "net.ipv6.conf.all.router_solicitations=0",
    "net.ipv6.conf.default.router_solicitations=0",
    "net.ipv6.conf.all.accept_ra=0",
    "net.ipv6.conf.default.accept_ra=0",
    "net.ipv6.icmp.ratelimit=0",
)
_FORWARDING = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.ipv6.conf.default.forwarding=1",
)

_PROGRAM = """\
import sys
from nfctl.lab import Lab
from nfctl.lab.topology import Topology
topology = Topology.load("router")
for _ in range(int(sys.argv[1])):
    with Lab("router") as lab:
        lab.build(topology, services=False)
"""


def up_script(topology: Topology) -> Iterator[str]:
    """Yield the shell lines that make a topology of veth pairs, and wait until it carries."""
    yield "set -e"
    for host in topology.hosts.values():
        name = _namespace(host)
        yield f"ip netns add {name}"
        yield f"mkdir -p -m 755 /run/lab/{host.name}"
        settings = (*_SETTINGS, *(_FORWARDING if host.forward else ()))
        yield f"ip netns exec {name} sysctl -qw {' '.join(settings)}"
        yield f"ip -n {name} link set lo up"
    for link in topology.links.values():
        (one, here), (other, there) = link.ends
        yield f"ip link add {here} netns x-{one} type veth peer name {there} netns x-{other}"
    for host in topology.hosts.values():
        name = _namespace(host)
        for interface in host.interfaces:
            yield f"ip -n {name} link set {interface.name} up"
            for address in interface.addresses:
                yield f"ip -n {name} addr add {address} dev {interface.name}"
    for host in topology.hosts.values():
        for destination, gateway in host.routes:
            family = "-6" if ":" in gateway else "-4"
            yield f"ip {family} -n {_namespace(host)} route add {destination} via {gateway}"
    for host in topology.hosts.values():
        for interface in host.interfaces:
            show = f"ip -n {_namespace(host)} link show {interface.name}"
            yield f'until {show} | grep -q "state UP"; do :; done'


def down_script(topology: Topology) -> Iterator[str]:
    """Yield the shell lines that remove it."""
    for host in topology.hosts.values():
        yield f"ip netns del {_namespace(host)}"
    yield "rm -r /run/lab"


def _namespace(host: HostPlan) -> str:
    return f"x-{host.name}"


def lab(bench: Bench) -> Result:
    """One lab, whole processes: ``nfctl lab up`` and ``down``; one script that does both."""
    topology = Topology.load("router")
    down = f"{bench.nfctl} lab down router --quiet"
    ours = _shell(
        bench, "lab-ours", [f"{bench.nfctl} lab up router --quiet --no-services && {down}"]
    )
    script = _shell(bench, "lab-script", [*up_script(topology), *down_script(topology)])
    sides = [
        Side(
            "nfctl",
            bench.room("nfctl"),
            lambda _: ["sh", ours],
            prove=lambda: _prove(bench, topology),
            still=lambda: _nothing_left(bench.room("nfctl")),
        ),
        Side(
            SCRIPT,
            bench.room(SCRIPT),
            lambda _: ["sh", script],
            still=lambda: _nothing_left(bench.room(SCRIPT)),
        ),
    ]
    return race("lab", 0, sides, [Bound(SCRIPT, FLOOR)], bench.rounds)


def lab_python(bench: Bench) -> Result:
    """Labs as a test suite makes them, one after the other in one program; the script as often."""
    topology = Topology.load("router")
    program = bench.scratch / "labs.py"
    program.write_text(_PROGRAM)
    lines = [f"for i in $(seq {LABS}); do"]
    lines += [*up_script(topology), *down_script(topology), "done"]
    script = _shell(bench, "labs-script", lines)
    sides = [
        Side(
            "nfctl",
            bench.room("nfctl"),
            lambda _: [sys.executable, program, str(LABS)],
            still=lambda: _nothing_left(bench.room("nfctl")),
        ),
        Side(
            SCRIPT,
            bench.room(SCRIPT),
            lambda _: ["sh", script],
            still=lambda: _nothing_left(bench.room(SCRIPT)),
        ),
    ]
    return race("labs", 0, sides, [Bound(SCRIPT, FLOOR)], bench.rounds)


def _shell(bench: Bench, name: str, lines: list[str]) -> Path:
    path = bench.scratch / f"{name}.sh"
    path.write_text("\n".join(lines) + "\n")
    return path


def _prove(bench: Bench, topology: Topology) -> None:
    """Raise unless both sides make the same hosts."""
    script = _shell(bench, "lab-up", [*up_script(topology)])
    gone = _shell(bench, "lab-down", [*down_script(topology)])
    theirs, ours = bench.room(SCRIPT), bench.room("nfctl")
    theirs.run(["sh", script])
    ours.run([bench.nfctl, "lab", "up", "router", "--quiet", "--no-services"])
    for host in topology.hosts.values():
        got = _seen(ours, f"nfctl-router-{host.name}")
        want = _seen(theirs, _namespace(host))
        for what, value in want.items():
            if got[what] != value:
                raise Wrong(f"{host.name}: {what}: {got[what]} instead of {value}")
    theirs.run(["sh", gone])
    ours.run([bench.nfctl, "lab", "down", "router", "--quiet"])


def _seen(room: Room, name: str) -> dict[str, Any]:
    """Return what ip(8) and sysctl(8) say of a namespace, without what is random in it."""
    addresses = json.loads(room.output(["ip", "-n", name, "-j", "addr"]))
    routes = [
        sorted(
            (route["dst"], route.get("gateway", ""), route["dev"])
            for route in json.loads(room.output(["ip", family, "-n", name, "-j", "route"]))
        )
        for family in ("-4", "-6")
    ]
    keys = [setting.partition("=")[0] for setting in (*_SETTINGS, *_FORWARDING)]
    return {
        "addresses": {
            link["ifname"]: (
                link["operstate"],
                [
                    (one["local"], one["prefixlen"])
                    for one in link["addr_info"]
                    if one["scope"] != "link"
                ],
            )
            for link in addresses
            # what every kernel adds by itself to a new namespace
            if link["ifname"] in {"lo", "eth0", "wan0", "lan0"}
        },
        "routes": routes,
        "settings": room.output(["ip", "netns", "exec", name, "sysctl", *keys]),
    }


def _nothing_left(room: Room) -> None:
    left = room.output(["ip", "netns", "list"]).strip()
    if left:
        raise Wrong(f"left behind: {left}")
