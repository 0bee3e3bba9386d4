"""``nfctl inspect`` in a lab, and real sockets around it: what the tests of live packets share.

    client 192.0.2.10 ---- router ---- server 10.77.0.10
    2001:db8:1::10                            fd77::10

All sockets of a test belong to its own process: each is made inside a host, where it stays, so that
a test can send on one and read another without anybody waiting for anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from nfctl.inspect.figures import Figures, parse
from nfctl.kernel import netns
from tests.kernel.conftest import NFCTL, PATIENCE, SLOWNESS, legacy
from tests.kernel.inspect_session import AWAITED, a_lab, children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nfctl.lab import Host, Lab

Sock = socket.socket

FAMILIES: Final = (4, 6)
CLIENT: Final = {4: "192.0.2.10", 6: "2001:db8:1::10"}
OTHER: Final = {4: "192.0.2.66", 6: "2001:db8:1::66"}  # the client's second address
SERVER: Final = {4: "10.77.0.10", 6: "fd77::10"}
ROUTER: Final = {4: "192.0.2.1", 6: "2001:db8:1::1"}
PORT: Final = 4000
SHORT: Final = 0.1 * SLOWNESS  # seconds for what is not to come; an answer takes a millisecond

_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_SET: Final = {"rx": 0x15, "tx": 0x17, "tso": 0x1F, "gso": 0x24, "gro": 0x2C}
# what Ethernet says it carries, and what IPv4 or IPv6 then says
_CARRIED: Final = {(kind, proto) for kind in (b"\x08\0", b"\x86\xdd") for proto in (b"\6", b"\x11")}
_RECVERR: Final = {4: 11, 6: 25}  # IP_RECVERR, ip(7)
_TRANSPARENT: Final = {4: 19, 6: 75}


class Net:
    """The three hosts, and every socket that was made in them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = lab.host("client")
        self.router = lab.host("router", forward=True)
        self.server = lab.host("server")
        client, router, server = self.client, self.router, self.server
        lab.link(
            client.port(
                "eth0", "192.0.2.10/24", "192.0.2.66/24", "2001:db8:1::10/64", "2001:db8:1::66/64"
            ),
            router.port("wan0", "192.0.2.1/24", "2001:db8:1::1/64"),
        )
        lab.link(
            router.port("lan0", "10.77.0.1/24", "fd77::1/64"),
            server.port("eth0", "10.77.0.10/24", "fd77::10/64"),
        )
        for family in FAMILIES:
            client.route("default", via=ROUTER[family])
        server.route("default", via="10.77.0.1")
        server.route("default", via="fd77::1")
        self.open = contextlib.ExitStack()
        # a burst of rejections is answered in full
        self.write(router, "ipv4/icmp_msgs_per_sec", "1000000")
        self.write(router, "ipv4/icmp_msgs_burst", "1000000")

    def close(self) -> None:
        """Close all sockets: an open one keeps its namespace."""
        self.open.close()

    # --- sockets ------------------------------------------------------------------------------

    def socket(
        self, host: Host, family: int, kind: int = socket.SOCK_DGRAM, protocol: int = 0
    ) -> Sock:
        """Make a socket inside a host; whatever it waits for comes soon, or TimeoutError."""
        with netns.entered(host.namespace):
            made = socket.socket(family, kind, protocol)
        self.open.callback(made.close)
        made.settimeout(AWAITED)
        return made

    def udp(self, host: Host, family: int, address: str = "", port: int = 0) -> Sock:
        """Make a UDP socket that hears of ICMP errors, bound to any address that is said."""
        made = self.socket(host, _FAMILY[family])
        level = socket.IPPROTO_IP if family == 4 else socket.IPPROTO_IPV6
        for option in (_RECVERR, _TRANSPARENT):
            made.setsockopt(level, option[family], 1)
        _only(made, family)
        made.bind((address, port))
        return made

    def pair(self, family: int, port: int = PORT) -> tuple[Sock, Sock]:
        """Make a UDP socket of the client that is connected to one of the server."""
        there = self.udp(self.server, family, SERVER[family], port)
        here = self.udp(self.client, family, CLIENT[family])
        here.connect((SERVER[family], port))
        return here, there

    def listen(self, host: Host, family: int, port: int = PORT) -> Sock:
        """Make a TCP socket that listens on all addresses of a host."""
        made = self.socket(host, _FAMILY[family], socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _only(made, family)
        made.bind(("", port))
        made.listen()
        return made

    def stream(self, family: int, port: int = PORT) -> tuple[Sock, Sock]:
        """Return both ends of a TCP connection from the client to the server."""
        listening = self.listen(self.server, family, port)
        here = self.socket(self.client, _FAMILY[family], socket.SOCK_STREAM)
        here.connect((SERVER[family], port))
        there, _ = listening.accept()
        self.open.callback(there.close)
        there.settimeout(AWAITED)
        listening.close()
        return here, there

    def capture(self, host: Host, interface: str) -> Sock:
        """Make a packet(7) socket that sees what an interface receives and sends."""
        made = self.socket(host, socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        made.bind((interface, 3))  # ETH_P_ALL
        made.setblocking(False)
        return made

    # --- rules --------------------------------------------------------------------------------

    def rules(self, host: Host, text: str, families: Sequence[int] = FAMILIES) -> None:
        """Load iptables-save text by the oracle's own binary."""
        for family in families:
            with host.popen(
                [f"{legacy(family)}-restore"], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
            ) as process:  # fmt: skip
                _, said = process.communicate(text, timeout=PATIENCE)
            assert process.returncode == 0, f"{said}\n{text}"

    def legacy(self, host: Host, *words: str, family: int = 4) -> str:
        """Run iptables-legacy, or ip6tables-legacy."""
        return host.call([legacy(family), *words])

    def counters(self, host: Host, table: str, family: int = 4) -> list[tuple[int, str]]:
        """Return the packets of each rule that iptables-save prints, and the rule."""
        found = []
        saved = host.call([f"{legacy(family)}-save", "-c", "-t", table])
        for line in saved.splitlines():
            if line.startswith("["):
                count, _, rule = line.partition("] ")
                found.append((int(count[1:].partition(":")[0]), rule))
        return found

    # --- /proc --------------------------------------------------------------------------------

    def read(self, host: Host, path: str) -> str:
        """Read a file below /proc/net as a host sees it."""
        with netns.entered(host.namespace), open(f"/proc/thread-self/net/{path}") as file:  # noqa: PTH123
            return file.read()

    def write(self, host: Host, sysctl: str, value: str) -> None:
        """Set a sysctl of net in a host."""
        with netns.entered(host.namespace):
            Path(f"/proc/sys/net/{sysctl}").write_text(value, encoding="ascii")

    def checksum_errors(self, host: Host) -> int:
        """Return how many packets with a wrong checksum a host has received so far."""
        wrong = 0
        rows = [line.split() for line in self.read(host, "snmp").splitlines()]
        for names, values in zip(rows[::2], rows[1::2], strict=True):
            wrong += sum(
                int(value)
                for name, value in zip(names, values, strict=True)
                if name in {"InCsumErrors", "InHdrErrors"}
            )
        for line in self.read(host, "snmp6").splitlines():
            name, value = line.split()
            wrong += int(value) * name.endswith(("InCsumErrors", "Ip6InHdrErrors"))
        return wrong

    def figures(self, host: Host, queue: int = 0) -> Figures | None:
        """Return what the kernel says of a queue; None if no program is bound to it."""
        return parse(self.read(host, "netfilter/nfnetlink_queue")).get(queue)

    # --- NICs ---------------------------------------------------------------------------------

    def offload(self, *, on: bool, checksums: bool | None = None) -> None:
        """Switch the offloads of all ends of the cables on or off, by ethtool's ioctl(2)."""
        for host, name in (
            (self.client, "eth0"), (self.router, "wan0"), (self.router, "lan0"),
            (self.server, "eth0"),
        ):  # fmt: skip
            asked = self.socket(host, socket.AF_INET)
            for feature, command in _ETHTOOL_SET.items():
                value = checksums if checksums is not None and feature in {"rx", "tx"} else on
                ethtool(asked, name, command, int(value))
            asked.close()

    # --- commands -----------------------------------------------------------------------------

    def inspect(self, host: Host, *words: str, **options: Any) -> Inspection:
        """Start ``nfctl inspect`` in a host and wait until its rules are in place."""
        return Inspection(self, host, words, **options)


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile("w+b")


def _only(sock: socket.socket, family: int) -> None:
    """Leave the port to IPv4's sockets, too."""
    if family == 6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def ethtool(asked: socket.socket, interface: str, command: int, value: int) -> None:
    """Set one feature of a NIC (struct ethtool_value, linux/ethtool.h)."""
    import ctypes as ct

    data = ct.create_string_buffer(struct.pack("=II", command, value))
    request = struct.pack("@16sP", interface.encode(), ct.addressof(data)).ljust(40, b"\0")
    fcntl.ioctl(asked.fileno(), _SIOCETHTOOL, request)


class Inspection:
    """A running ``nfctl inspect --json``; use it in a ``with`` block, or :meth:`end` it.

    ``rules`` is the text of a rules file, ``handler`` of a module with the handler of that name,
    ``families`` where its rules are waited for; ``leftover`` tells that such rules are there, which
    have seen packets.
    After :meth:`end` ``records`` are its packets, ``notes`` what it said, and the JSON document
    with which it ended is what ``end`` returns.
    """

    def __init__(
        self,
        net: Net,
        host: Host,
        words: Sequence[str],
        *,
        rules: str = "",
        handler: str = "",
        chains: str = "FORWARD",
        families: Sequence[int] = FAMILIES,
        queue: int = 0,
        leftover: bool = False,
    ) -> None:
        self.net = net
        self.host = host
        self.queue = queue
        self.records: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._document: dict[str, Any] | None = None
        argv = [*NFCTL, "inspect", "--json", "--chain", chains, *words]
        # A file never makes the inspection wait.
        self._out, self._err = (net.open.enter_context(_temporary()) for _ in range(2))
        options: dict[str, Any] = {"stdout": self._out, "stderr": self._err}
        if handler:  # only root may write to a host's /run
            (host.directory / "handler.py").write_text(handler)
            argv += ["--handler", "/run/handler.py:handler"]
        if rules:
            argv += ["--rules", "-"]
            options["stdin"] = subprocess.PIPE
        self.process = host.popen(argv, **options)
        if rules:
            assert self.process.stdin is not None
            with self.process.stdin as standard_input:
                standard_input.write(rules.encode())
        for family in families:
            self.until(partial(self._placed, family, leftover=leftover))

    def __enter__(self) -> Inspection:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.process.kill()
        elif self._document is None:
            self.end()

    def _placed(self, family: int, *, leftover: bool) -> bool:
        """Whether its rules are there, and no other's."""
        jump = f"-j NFCTL-INSPECT-{self.queue}"
        if not leftover:
            return jump in self.net.legacy(self.host, "-t", "mangle", "-S", family=family)
        counters = self.net.counters(self.host, "mangle", family)
        return [count for count, rule in counters if rule.endswith(jump)] == [0]

    def until(self, true: Callable[[], object]) -> None:
        """Wait until something is so; fail if the inspection ends before."""
        __tracebackhide__ = True
        give_up = time.monotonic() + AWAITED
        while not true():
            assert self.process.poll() is None, f"it ended: {self.said()}"
            assert time.monotonic() < give_up, f"it is not so: {self.said()}"
            # there is nothing to wait for but the look itself
            select.select([], [], [], 0.002)

    def said(self) -> str:
        """Return what was written to standard error so far."""
        self._err.seek(0)
        return self._err.read().decode()

    def seen(self) -> list[dict[str, Any]]:
        """Return what was written so far: packets and notes."""
        data = os.pread(self._out.fileno(), 1 << 28, 0)
        return [json.loads(line) for line in data.splitlines(keepends=True) if line[-1:] == b"\n"]

    def end(self, number: signal.Signals = signal.SIGTERM, code: int = 0) -> Any:
        """Send a signal, wait for the end and return the document of the end."""
        __tracebackhide__ = True
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(code)

    def wait(self, code: int = 0) -> Any:
        """Wait for the end and return the document of the end."""
        __tracebackhide__ = True
        assert self.process.wait(timeout=PATIENCE) == code, self.said()
        assert bool(self.said()) == bool(code), self.said()
        found = self.seen()
        self.records = [one for one in found if "event" not in one]
        self.notes = [one["text"] for one in found if one.get("event") == "note"]
        ends = [one for one in found if one.get("event") == "end"]
        assert len(ends) == 1, found
        self._document = ends[0]
        return self._document

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        return children(self.process.pid)


@contextlib.contextmanager
def network() -> Iterator[Net]:
    """Make the three hosts for the block; skip the test where that is not possible."""
    with a_lab() as lab:
        net = Net(lab)
        try:
            yield net
        finally:
            net.close()


def receive(sock: socket.socket, seconds: float = SHORT) -> list[bytes]:
    """Return the datagrams that wait, or come until none came for so long."""
    found = []
    while select.select([sock], [], [], seconds)[0]:
        try:
            found.append(sock.recv(1 << 16, socket.MSG_DONTWAIT))
        except ConnectionRefusedError:
            found.append(b"refused")
        except BlockingIOError:  # its checksum was wrong
            continue
    return found


def transfer(here: socket.socket, there: socket.socket, data: bytes) -> bytes:
    """Send on one end of a stream and read the other, both at once; return what arrived."""
    here.setblocking(False)
    there.setblocking(False)
    left, got = memoryview(data), bytearray()
    give_up = time.monotonic() + AWAITED
    while len(got) < len(data):
        readable, writable, _ = select.select([there], [here] if left else [], [], AWAITED)
        assert readable or writable, f"{len(got)} of {len(data)} bytes arrived"
        assert time.monotonic() < give_up, f"{len(got)} of {len(data)} bytes arrived"
        if writable:
            left = left[here.send(left[: 1 << 20]) :]
        if readable:
            part = there.recv(1 << 20)
            if not part:
                break
            got += part
    return bytes(got)


def frames(captured: socket.socket) -> list[bytes]:
    """Return the packets of TCP and UDP, from their IP header on, that a packet(7) socket saw."""
    found = []
    while select.select([captured], [], [], 0)[0]:
        frame = captured.recv(1 << 17)
        packet, kind = frame[14:], frame[12:14]
        if (kind, packet[6:7]) in _CARRIED or (kind, packet[9:10]) in _CARRIED:
            found.append(packet)
    return found


def sound(packet: bytes) -> bool:
    """Whether all lengths and checksums of a packet are those that scapy makes."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.inet6 import IPv6

    made = IPv6(packet) if packet[0] >> 4 == 6 else IP(packet)
    for layer in (IP, TCP, UDP):
        if layer in made:
            del made[layer].chksum
    for layer in (IP, UDP):
        if layer in made:
            del made[layer].len
    if IPv6 in made:
        del made[IPv6].plen
    return bytes(made) == packet
