"""A network for services: clients, a node that has the chains, ten endpoints, and a peer.

    client 192.0.2.10...59 -- wan0 node lan0 -- pods 10.0.1.11...20, which serve
                                        lan1 -- peer 10.0.2.10, of the cluster, too

All with addresses of both families. The endpoints are addresses of one host, served by one
process, which says on each connection by which address it came, and from whom, and counts.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nfctl.control.apply import Options
from nfctl.control.journal.state import State
from nfctl.control.serving import changing
from nfctl.lab import sysctls
from nfctl.services.model import Endpoint, Service, ServiceList
from tests.kernel import talking
from tests.kernel.conftest import PATIENCE
from tests.kernel.talking import WAIT, Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nfctl.lab import Host, Lab, Worker

Ask = talking.Ask
Server = talking.Server
Addresses = dict[int, str]  # by family

CLIENTS: Final = 50
ENDPOINTS: Final = 10
NODE: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
NODE_LAN: Final = {4: "10.0.1.1", 6: "fd00:0:0:1::1"}
NODE_LAN1: Final = {4: "10.0.2.1", 6: "fd00:0:0:2::1"}
PEER: Final = {4: "10.0.2.10", 6: "fd00:0:0:2::10"}
CLUSTER: Final = {4: "10.0.0.0/16", 6: "fd00::/48"}
VIP: Final = {4: "10.96.0.10", 6: "fd00:96::10"}
EXTERNAL: Final = {4: "198.51.100.7", 6: "2001:db8:100::7"}
PORT: Final = 80
SERVED: Final = talking.SERVED  # of the endpoints
NODE_PORT: Final = 30080

QUIET: Final = 0.3  # seconds of silence, of which much is in vain
REFUSED: Final = {4: "ICMP 3/3", 6: "ICMP 1/4"}  # port unreachable

STATE: Final = Path("/run/state")  # the node has a /run of its own


def client(family: int, number: int = 0) -> str:
    """Return an address of the client."""
    return f"192.0.2.{10 + number}" if family == 4 else f"2001:db8:1::{10 + number}"


def pod(family: int, number: int) -> str:
    """Return the address of an endpoint, which are numbered from 0."""
    return f"10.0.1.{11 + number}" if family == 4 else f"fd00:0:0:1::{11 + number}"


def endpoint(family: int, number: int, **more: Any) -> Endpoint:
    """Return an endpoint of a service."""
    return Endpoint(pod(family, number), SERVED, **more)


def endpoints(family: int, numbers: Iterable[int] = range(ENDPOINTS)) -> tuple[Endpoint, ...]:
    """Return endpoints of a service."""
    return tuple(endpoint(family, number) for number in numbers)


class Net:
    """The network of this module, and what goes on in it."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.pods, self.peer = (lab.host(name) for name in ("client", "pods", "peer"))
        self.node = lab.host("node", forward=True)
        lab.link(
            self.client.port("eth0", *_nets(client, CLIENTS)),
            self.node.port("wan0", *_net(NODE)),
        )
        lab.link(
            self.pods.port("eth0", *_nets(pod, ENDPOINTS)), self.node.port("lan0", *_net(NODE_LAN))
        )
        lab.link(self.peer.port("eth0", *_net(PEER)), self.node.port("lan1", *_net(NODE_LAN1)))
        for family in (4, 6):
            for host, via in ((self.client, NODE), (self.pods, NODE_LAN), (self.peer, NODE_LAN1)):
                host.route("default", via=via[family])
            # as on a real node: what is for no one goes somewhere, where nobody passes it on
            gone = ["default", "via", PEER[family], "src", NODE[family]]
            self.node.call(["ip", f"-{family}", "route", "add", *gone])
        # A connection that masquerading has come from the same port would not be let in.
        self.pods.run(sysctls.write, {"net.ipv4.tcp_max_tw_buckets": "0"}, self.pods.name)
        self.server = talking.Server(
            self.pods, [pod(f, n) for f in (4, 6) for n in range(ENDPOINTS)]
        )
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        """End the server; the lab ends the rest."""
        self.server.close()

    def worker(self, host: Host) -> Worker:
        """Return the process that acts in a host."""
        if host.name not in self._workers:
            self._workers[host.name] = host.worker()
        return self._workers[host.name]

    # --- services -----------------------------------------------------------------------------

    def apply(self, *services: Service, **settings: Any) -> str:
        """Have the node serve these, and return the status."""
        settings = {"cluster": tuple(CLUSTER.values()), **settings}
        made = ServiceList(services, **settings)
        return str(self.worker(self.node).run(_apply, made, timeout=PATIENCE))

    def change(self, name: str, endpoints: Sequence[Endpoint]) -> str:
        """Give a service other endpoints."""
        return str(self.worker(self.node).run(_change, name, tuple(endpoints), timeout=PATIENCE))

    def forget_soon(self) -> None:
        """Have conntrack forget UDP flows soon: there will be very many."""
        names = ("udp_timeout", "udp_timeout_stream")
        wanted = {f"net.netfilter.nf_conntrack_{name}": "2" for name in names}
        assert not self.node.run(sysctls.write, wanted, self.node.name)

    def rules(self, family: int, *options: str) -> str:
        """Return what the oracle, iptables-legacy-save, prints of the node."""
        return str(self.worker(self.node).run(_saved, family, *options))

    def load(self, family: int, text: str) -> None:
        """Have the oracle load text into the node, beside what is there."""
        binary = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.node.popen([binary, "--noflush"], text=True, **pipes) as process:
            _, errors = process.communicate(text)
        assert process.returncode == 0, errors

    def translated(self, family: int) -> Counter[str]:
        """Return how many packets each endpoint's DNAT rule counted, by its address."""
        found: Counter[str] = Counter()
        for packets, to in re.findall(
            r"^\[(\d+):\d+\] -A \S+ .*-j DNAT --to-destination (\S+)$",
            self.rules(family, "-c", "-t", "nat"),
            re.MULTILINE,
        ):
            found[to.rpartition(":")[0].strip("[]")] += int(packets)
        return found

    def counted(self, family: int, pattern: str) -> int:
        """Return how many packets the rules counted in which a pattern is found."""
        lines = re.findall(r"^\[(\d+):\d+\] (-A .*)$", self.rules(family, "-c"), re.MULTILINE)
        found = [int(packets) for packets, rule in lines if re.search(pattern, rule)]
        assert found, f"there is no rule with {pattern}"
        return sum(found)

    # --- traffic ------------------------------------------------------------------------------

    def ask(
        self,
        protocol: str,
        to: str,
        port: int = PORT,
        source: str = "",
        *,
        times: int = 1,
        by: Host | None = None,
        wait: float = WAIT,
    ) -> list[Answer]:
        """Connect as often, from the client or another host, and return the answers."""
        return self.all([Ask(to, port, source)] * times, protocol, by=by, wait=wait)

    def all(
        self,
        asks: Sequence[Ask],
        protocol: str = "tcp",
        *,
        by: Host | None = None,
        wait: float = WAIT,
    ) -> list[Answer]:
        """Make connections; return the answers in the same order."""
        worker = self.worker(by or self.client)
        found = worker.run(talking.connect, protocol, list(asks), wait, timeout=2 * PATIENCE)
        return [Answer(*answer) for answer in found]

    def one(
        self, protocol: str, to: str, port: int = PORT, source: str = "", **more: Any
    ) -> Answer:
        """Connect once."""
        (answer,) = self.ask(protocol, to, port, source, **more)
        return answer

    def open(self, to: str, port: int = PORT, source: str = "") -> tuple[int, Answer]:
        """Open a TCP connection from the client that stays; return its number, and the answer."""
        number, answer = self.worker(self.client).run(talking.open_one, to, port, source)
        return number, Answer(*answer)

    def say(self, number: int) -> Answer:
        """Say something on a connection that stays."""
        return Answer(*self.worker(self.client).run(talking.say, number))


def _net(addresses: Addresses) -> list[str]:
    return [f"{addresses[4]}/24", f"{addresses[6]}/64"]


def _nets(address: Callable[[int, int], str], count: int) -> list[str]:
    return [net for n in range(count) for net in _net({4: address(4, n), 6: address(6, n)})]


# --- in the node ----------------------------------------------------------------------------------


def _apply(made: ServiceList) -> str:
    return changing.apply(made, state=State(STATE), options=Options(guard_ssh=False)).status


def _saved(family: int, *options: str) -> str:
    binary = "iptables-legacy-save" if family == 4 else "ip6tables-legacy-save"
    done = subprocess.run([binary, *options], check=True, capture_output=True, text=True)
    return done.stdout


def _change(name: str, endpoints: tuple[Endpoint, ...]) -> str:
    edit = partial(_edited, name, endpoints)
    options = Options(guard_ssh=False)
    prefix = ServiceList().prefix
    return changing.change(prefix, edit, state=State(STATE), options=options).status


def _edited(name: str, endpoints: tuple[Endpoint, ...], made: ServiceList) -> ServiceList:
    services = [
        one._replace(endpoints=endpoints) if one.name == name else one for one in made.services
    ]
    return made._replace(services=tuple(services))
