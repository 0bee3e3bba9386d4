"""The network of the tests: the device is this machine, and three hosts are beyond its NICs.

    client (eth4) - wan - eth1 |        | eth2 - lan - (eth5) server
                               | device |
                               |        | eth3 - dmz - (eth6) guest

eth4, eth5 and eth6 are put into network namespaces, the hosts of a lab, so that what one host
sends to another leaves by an emulated card and comes back through another. The device is the
first namespace of the VM: its tables are the machine's own.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import nfctl
from nfctl.kernel.table import active_tables
from nfctl.lab import Lab, Service, traffic
from nfctl.ruleset.names import BUILTIN_CHAINS
from tests.vm import guard
from tests.vm.inside import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from nfctl.lab import Answer, Arrival, Host

Done = subprocess.CompletedProcess[str]

# The far ends' addresses; the device is .1 of each network (RFC 5737, RFC 3849).
PREFIXES = {
    "wan": {4: "192.0.2.", 6: "2001:db8:1::"},
    "lan": {4: "10.77.0.", 6: "fd77::"},
    "dmz": {4: "10.88.0.", 6: "fd88::"},
}
LENGTH = {4: 24, 6: 64}
EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
DEVICE = {"wan": "eth1", "lan": "eth2", "dmz": "eth3"}
HOSTS = {"client": ("wan", "eth4"), "server": ("lan", "eth5"), "guest": ("dmz", "eth6")}
# What the servers of each host listen on; the device has its own.
TCP = (23, 25, 80, 443, 2222)
UDP = (53, 514, 5300)

_SYSCTLS = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/icmp_ratelimit": 0,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv6/icmp/ratelimit": 0,
    **{
        key.replace("*", nic): value
        for nic in DEVICE.values()
        for key, value in {
            "net/ipv4/conf/*/rp_filter": 0,
            "net/ipv4/conf/*/send_redirects": 0,
            "net/ipv6/conf/*/disable_ipv6": 0,
            "net/ipv6/conf/*/accept_dad": 0,
            "net/ipv6/conf/*/accept_ra": 0,
        }.items()
    },
}
_COMMENT = re.compile(r"--comment (\S+)")
_READY = 20.0  # seconds; an e1000 takes two to find its link
PATIENCE = 60.0  # seconds, for a command


def ip_batch(commands: Sequence[str], host: Host | None = None) -> None:
    """Have ip(8) do several commands, on the device or in a host's namespace."""
    guard.require()
    inside = ["-n", host.namespace] if host else []
    text = "\n".join([*commands, ""])
    done = subprocess.run(
        ["ip", *inside, "-batch", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{text}{done.stderr}"


class Far:
    """A host beyond a NIC of the device, with its servers."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.link, self.nic = HOSTS[name]
        self.host = lab.host(name)
        ip_batch([f"link set {self.nic} netns {self.host.namespace}"])
        commands = [f"link set {self.nic} up"]
        for version in (4, 6):
            commands.append(_address(self.link, version, 10, self.nic))
            via = f"{PREFIXES[self.link][version]}1"
            commands.append(f"route add {EVERYWHERE[version]} via {via}")
            visitor = _address(self.link, version, 66, self.nic)
            # deprecated (RFC 4862): nothing is sent from it unless it is asked for
            commands.append(f"{visitor} preferred_lft 0")
        ip_batch(commands, self.host)
        self.service = self.host.serve(tcp=TCP, udp=UDP)
        self.worker = self.host.worker()

    def ask(self, function: Callable[..., Answer], *args: object, **options: object) -> Answer:
        """Send something with a function of ``nfctl.lab.traffic``."""
        return self.worker.run(partial(function, *args, **options))

    @contextlib.contextmanager
    def connected(
        self, other: Far, version: int, port: int
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Connect to a port of another host; give both ends of the connection."""
        at = (NAMES[version][other.name], port)
        with wire.connected(self.host, other.host, version, at) as ends:
            yield ends

    def datagrams(self, version: int) -> socket.socket:
        """Make a socket for datagrams in the host."""
        return wire.open_socket(self.host, version, socket.SOCK_DGRAM)

    def counts(self) -> tuple[int, int]:
        """Return how many packets the NIC has received and sent."""
        run = partial(subprocess.run, capture_output=True, check=False)
        self.worker.run(run, ["ethtool", "-S", self.nic])
        return _counts(self.worker.run(Path.read_text, Path("/proc/net/dev")), self.nic)


class Device:
    """This machine: whatever reads or changes its tables is here."""

    def __init__(self) -> None:
        guard.require()
        self._sysctls = {key: _sysctl(key) for key in _SYSCTLS}
        self._service: Service | None = None

    def __enter__(self) -> Self:
        for key, value in _SYSCTLS.items():
            Path("/proc/sys", key).write_text(str(value))
        commands = []
        for link, nic in DEVICE.items():
            commands += [f"addr flush dev {nic} scope global", f"link set {nic} up"]
            commands += [_address(link, version, 1, nic) for version in (4, 6)]
        ip_batch(commands)
        self._service = Service(_stay, tcp=(2222, 8080), udp=(53, 5300))
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._service:
            self._service.close()
        self.clear()
        ip_batch([f"addr flush dev {nic} scope global" for nic in DEVICE.values()])
        for key, value in self._sysctls.items():
            Path("/proc/sys", key).write_text(value)

    @property
    def service(self) -> Service:
        """The servers on the device itself."""
        assert self._service
        return self._service

    # --- tables -------------------------------------------------------------------------------

    def clear(self) -> None:
        """Empty all tables of both families, and forget all connections."""
        guard.require()
        for version in (4, 6):
            lines = []
            for table in active_tables(version):
                policies = [f":{chain} ACCEPT [0:0]" for chain in BUILTIN_CHAINS[table]]
                lines += [f"*{table}", *policies, "COMMIT"]
            if lines:
                nfctl.restore("\n".join([*lines, ""]), family=version)
        subprocess.run(["conntrack", "-F"], capture_output=True, check=False)

    def load(self, text: str, version: int) -> None:
        """Load iptables-save text by nfctl's Python API, its names filled in by :func:`fill`."""
        guard.require()
        nfctl.restore(fill(text, version), family=version)

    def nfctl(self, *words: str, input: str | None = None) -> Done:  # noqa: A002
        """Run the command ``nfctl`` to its end."""
        guard.require()
        return subprocess.run(
            [sys.executable, "-m", "nfctl", *words],
            input=input,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def packets(self, version: int, *tables: str) -> dict[str, int]:
        """Return how many packets each rule that has a comment counted, and each policy."""
        found: dict[str, int] = {}
        for table in nfctl.read(family=version, tables=tables or None):
            for chain in table.chains.values():
                if chain.policy:
                    found[f"{table.name} {chain.name}"] = chain.counters.packets
                for rule in chain.rules:
                    if name := _COMMENT.search(rule.spec):
                        found[name[1]] = found.get(name[1], 0) + rule.counters.packets
        return found

    # --- the NICs -----------------------------------------------------------------------------

    def counts(self, link: str) -> tuple[int, int]:
        """Return how many packets the NIC on a link has received and sent."""
        # e1000 reads its registers every two seconds, or when ethtool asks
        nic = DEVICE[link]
        subprocess.run(["ethtool", "-S", nic], capture_output=True, check=False)
        return _counts(Path("/proc/net/dev").read_text(), nic)


class Network:
    """The device and the hosts beyond it."""

    def __init__(self, device: Device, lab: Lab) -> None:
        self.device = device
        self.client = Far(lab, "client")
        self.server = Far(lab, "server")
        self.guest = Far(lab, "guest")
        self.hosts = {"client": self.client, "server": self.server, "guest": self.guest}

    def wait_ready(self) -> None:
        """Wait until every link carries both families; it is pings that are awaited."""
        deadline = time.monotonic() + _READY
        for far in self.hosts.values():
            for version in (4, 6):
                target = f"{PREFIXES[far.link][version]}1"
                while far.ask(traffic.ping, target, timeout=0.5).verdict != "accepted":
                    assert time.monotonic() < deadline, f"{far.name} does not reach {target}"

    def ask(
        self, sender: str, function: Callable[..., Answer], *args: object, **options: object
    ) -> Answer:
        """Send something from a host, or from the device."""
        if sender == "device":
            return function(*args, **options)
        return self.hosts[sender].ask(function, *args, **options)

    def arrivals(self) -> list[tuple[str, Arrival]]:
        """Return what reached a server since the last call: the host's name and the arrival."""
        services = {"device": self.device.service}
        services |= {name: far.service for name, far in self.hosts.items()}
        return [(name, one) for name, service in services.items() for one in service.arrivals()]


@contextlib.contextmanager
def built() -> Iterator[Network]:
    """Make the network for the ``with`` block; the kernel hands the NICs back after it."""
    with Lab("nics") as lab, Device() as device:
        network = Network(device, lab)
        network.wait_ready()
        yield network


def _names(version: int) -> dict[str, str]:
    """Return all that a ruleset of the tests can name in braces."""
    names: dict[str, str] = {}
    for host, (link, _) in HOSTS.items():
        prefix = PREFIXES[link][version]
        zero = "0" if version == 4 else ""
        names |= {
            host: f"{prefix}10",
            link: f"{prefix}1",
            f"{link}_net": f"{prefix}{zero}/{LENGTH[version]}",
        }
    brackets = "{}" if version == 4 else "[{}]"
    names |= {f"{name}_": brackets.format(names[name]) for name in (*HOSTS, *DEVICE)}
    if version == 4:
        names |= {
            "icmp": "icmp",
            "echo": "icmp --icmp-type 8",
            "prohibited": "icmp-admin-prohibited",
        }
        names |= {"elsewhere_net": "198.51.100.0/24", "elsewhere": "198.51.100.10"}
    else:
        names |= {"icmp": "ipv6-icmp", "echo": "ipv6-icmp --icmpv6-type 128"}
        names |= {"prohibited": "icmp6-adm-prohibited"}
        names |= {"elsewhere_net": "2001:db8:9::/64", "elsewhere": "2001:db8:9::10"}
    return names


NAMES = {version: _names(version) for version in (4, 6)}


def fill(text: str, version: int) -> str:
    """Fill the names in braces into a ruleset: addresses, networks, and words of a family."""
    return text.format_map(NAMES[version])


def _address(link: str, version: int, number: int, nic: str) -> str:
    address = f"{PREFIXES[link][version]}{number}/{LENGTH[version]}"
    return f"addr add {address} dev {nic}{' nodad' if version == 6 else ''}"


def _sysctl(key: str) -> str:
    return Path("/proc/sys", key).read_text().strip()


def _counts(text: str, nic: str) -> tuple[int, int]:
    for line in text.splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == nic:
            fields = numbers.split()
            return int(fields[1]), int(fields[9])
    msg = f"there is no {nic} in /proc/net/dev"
    raise LookupError(msg)


def oracle(version: int, what: str = "") -> str:
    """Return the name of a binary of iptables-legacy."""
    return f"{'iptables' if version == 4 else 'ip6tables'}-legacy{what}"


def _stay() -> None:
    """Enter nothing: the device is where the tests run."""
