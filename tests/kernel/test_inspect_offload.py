"""Flows that are left to the kernel: few packets are seen, and the verdict stays what it was.

The oracle are the bytes that arrive, the counters of iptables-save and real TLS of OpenSSL.
"""

from __future__ import annotations

import itertools
import random
import select
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

from tests.kernel import inspecting
from tests.kernel.inspecting import CLIENT, FAMILIES, SERVER, receive, transfer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

MEGABYTE: Final = 1 << 20
LEFT: Final = pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["shown", "quiet"])


@pytest.fixture
def net() -> Iterator[Net]:
    """Give the hosts, with nothing in their tables."""
    with inspecting.network() as made:
        yield made


# --- accepted -------------------------------------------------------------------------------------


@LEFT
@pytest.mark.parametrize("chain", ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"])
def test_a_download(chain: str, quiet: tuple[str, ...], net: Net) -> None:
    """Of 50 MB hardly a packet is seen, and every byte of it arrives."""
    host = {"INPUT": net.server, "OUTPUT": net.client}.get(chain, net.router)
    data = random.randbytes(MEGABYTE) * 25
    with net.inspect(host, "--offload", *quiet, chains=chain) as inspection:
        for family in FAMILIES:
            here, there = net.stream(family)
            assert transfer(here, there, data) == data
        end = inspection.end()
    assert end["offloaded"] >= 2  # neighbour discovery is left to the kernel, too
    assert 2 <= end["packets"] < 100, end
    assert end["octets"] < len(data) / 10


def test_a_rule_that_leaves_its_flows(net: Net) -> None:
    """A rule with ``offload`` leaves its own flows to the kernel and no others."""
    rules = "rules: [{name: bulk, when: {port: 4000}, verdict: accept, offload: flow}]"
    data = random.randbytes(MEGABYTE)
    with net.inspect(net.router, "--quiet", rules=rules) as inspection:
        for family in FAMILIES:
            for port in (4000, 4001):
                here, there = net.stream(family, port)
                assert transfer(here, there, data * 2) == data * 2
        end = inspection.end()
    assert end["offloaded"] == 2
    assert end["rules"]["bulk"] < 100 < end["rules"]["default"]


def test_marks_of_others(net: Net) -> None:
    """What others keep in the marks of connections and packets stays there, beside ours."""
    net.rules(net.router, """\
*mangle
-A PREROUTING -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0xab0c0dff/0xffffcfff
-A PREROUTING -j MARK --set-xmark 0x1234c678/0xffffcfff
COMMIT
*filter
-A FORWARD -p tcp -m connmark ! --mark 0xab0c0dff/0xffffcfff
-A FORWARD -p tcp -m mark ! --mark 0x1234c678
-A FORWARD -p tcp
COMMIT
""")  # fmt: skip
    data = random.randbytes(MEGABYTE)
    with net.inspect(net.router, "--offload") as inspection:
        for family in FAMILIES:
            here, there = net.stream(family)
            assert transfer(here, there, data) == data
            *wrong, every = (count for count, _ in net.counters(net.router, "filter", family))
            assert wrong == [0, 0]
            assert every > 20
        assert inspection.end()["packets"] < 100


@LEFT
def test_a_flow_that_is_dropped(quiet: tuple[str, ...], net: Net) -> None:
    """From the packet on that decides nothing of a flow arrives, and the kernel counts the rest."""
    rules = "rules: [{name: no, when: {payload: {bytes: bad}}, verdict: drop, offload: flow}]"
    with net.inspect(net.router, *quiet, rules=rules) as inspection:
        for family in FAMILIES:
            here, there = net.pair(family)
            here.send(b"good")
            _, back = there.recvfrom(100)
            here.send(b"bad")
            assert receive(there) == []
            for _ in range(50):
                here.send(b"good")
            there.sendto(b"an answer", back)
            assert receive(there) == receive(here, 0) == []
            (dropped,) = (
                count for count, rule in net.counters(net.router, "mangle", family)
                if "-m connmark --mark 0x2000/0x3000 -j DROP" in rule
            )  # fmt: skip
            assert dropped == 51
            here, there = net.pair(family, 4001)
            here.send(b"another flow")
            assert there.recv(100) == b"another flow"
        end = inspection.end()
    assert end["rules"]["no"] == 2
    assert end["offloaded"] == 2


def test_a_flow_that_is_dropped_before_it_began(net: Net) -> None:
    """A flow none of whose packets may pass is dropped, although no entry can remember that."""
    rules = "rules: [{when: {dport: 4001}, verdict: drop, offload: flow}]"
    with net.inspect(net.router, rules=rules):
        for family in FAMILIES:
            here, there = net.pair(family, 4001)
            for _ in range(10):
                here.send(b"x")
            assert receive(there) == []


@pytest.mark.parametrize("way", ["a signal", "SIGKILL"])
def test_a_verdict_ends_with_its_run(way: str, net: Net) -> None:
    """What one run has left to the kernel binds no other, with other rules, however it ended."""
    flows = {}
    rules = "rules: [{when: {dport: 4000}, verdict: accept, offload: flow}]"
    first = net.inspect(net.router, rules=rules)
    for family in FAMILIES:
        here, there = flows[family] = net.pair(family)
        for _ in range(3):
            here.send(b"good")
            assert there.recv(100) == b"good"
    if way == "SIGKILL":
        first.process.kill()
        first.process.wait()
        while net.figures(net.router) is not None:
            select.select([], [], [], 0.002)
    else:
        assert first.end()["offloaded"] == 2
    rules = "rules: [{name: no, when: {dport: [4000, 4009]}, verdict: drop, offload: flow}]"
    second = net.inspect(net.router, rules=rules, leftover=way == "SIGKILL")
    for here, there in flows.values():
        here.send(b"no more")
        assert receive(there) == []
    second.end()
    for here, there in flows.values():
        here.send(b"again")
        assert there.recv(100) == b"again"


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have OpenSSL make a key and a certificate that it has signed itself."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=any.example -keyout {path}.key -out {path}.crt"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    halves = [path.with_name(path.name + end) for end in (".key", ".crt")]
    path.write_bytes(b"".join(half.read_bytes() for half in halves))
    return path


class Tls:
    """A TLS client and its server, which both run here, over two sockets of two hosts."""

    def __init__(self, certificate: Path, name: str) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate)
        self._buffers = [ssl.MemoryBIO() for _ in range(4)]
        one, two, three, four = self._buffers
        self.client = client.wrap_bio(one, two, server_hostname=name)
        self.server = server.wrap_bio(three, four, server_side=True)

    def hello(self) -> bytes:
        """Return the client's first message."""
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        return self._buffers[1].read()

    def shake_hands(self, here: socket.socket, there: socket.socket, seconds: float = 0.2) -> bool:
        """Go on until both are done, or nothing comes any more; return whether they are."""
        from_client, to_client, from_server, to_server = (
            self._buffers[1], self._buffers[0], self._buffers[3], self._buffers[2],
        )  # fmt: skip
        done = [False, False]
        while not all(done):
            for number, end in enumerate((self.client, self.server)):
                try:
                    end.do_handshake()
                    done[number] = True
                except ssl.SSLWantReadError:
                    continue
            here.sendall(from_client.read())
            there.sendall(from_server.read())
            ready, _, _ = select.select([here, there], [], [], 0 if all(done) else seconds)
            if not ready and not all(done):
                return False
            for sock in ready:
                (to_client if sock is here else to_server).write(sock.recv(1 << 16))
        return True


def connected(net: Net, certificate: Path, family: int, name: str) -> bool:
    """Whether client and server can agree on keys for a server of that name, and talk."""
    here, there = net.stream(family, 4430)
    return Tls(certificate, name).shake_hands(here, there)


def test_the_name_is_waited_for(certificate: Path, net: Net) -> None:
    """A TLS flow is left to the kernel with its ClientHello, and not before; its name is known."""
    data = random.randbytes(MEGABYTE)
    with net.inspect(net.router, "--offload") as inspection:
        for family in FAMILIES:
            here, there = net.stream(family, 4430)
            assert Tls(certificate, f"v{family}.example").shake_hands(here, there)
            assert transfer(here, there, data) == data
        end = inspection.end()
    assert end["names"] == {"v4.example": 1, "v6.example": 1}
    assert end["offloaded"] == 2
    assert end["packets"] < 60
    named = [one["tls"]["sni"] for one in inspection.records if "tls" in one]
    assert named == ["v4.example", "v6.example"]


@LEFT
@pytest.mark.parametrize("chain", ["INPUT", "FORWARD", "OUTPUT"])
def test_a_name_that_is_refused(
    chain: str, quiet: tuple[str, ...], certificate: Path, net: Net
) -> None:
    """Only the server of that name cannot be reached, with and without leaving flows alone."""
    host = {"INPUT": net.server, "OUTPUT": net.client}.get(chain, net.router)
    when = 'when: {tls.sni: "*.refused.example"}'
    rules = f"rules: [{{name: no, {when}, verdict: drop, offload: flow}}]"
    with net.inspect(host, "--offload", *quiet, rules=rules, chains=chain) as inspection:
        for family in FAMILIES:
            assert connected(net, certificate, family, "fine.example")
            assert not connected(net, certificate, family, "a.refused.example")
            assert connected(net, certificate, family, "refused.example")
        end = inspection.end()
    assert end["names"] == {"fine.example": 2, "a.refused.example": 2, "refused.example": 2}
    assert end["rules"]["no"] >= 2


def test_all_names_but_one_are_refused(certificate: Path, net: Net) -> None:
    """A list of names that are allowed lets the handshake of others begin, and no further."""
    rules = "rules: [{when: {dport: 4430, not: {tls.sni: fine.example}}, verdict: reject}]"
    with net.inspect(net.router, "--offload", rules=rules):
        for family in FAMILIES:
            assert connected(net, certificate, family, "fine.example")
            with pytest.raises(ConnectionError):
                connected(net, certificate, family, "other.example")


def test_a_hello_in_small_pieces(certificate: Path, net: Net) -> None:
    """A name that is cut into segments of a few bytes is found, and refused."""
    rules = "rules: [{name: no, when: {tls.sni: refused.example}, verdict: drop}]"
    with net.inspect(net.router, "--offload", rules=rules) as inspection:
        for family, size in itertools.product(FAMILIES, (1, 7, 100)):
            here, there = net.stream(family, 4430)
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = Tls(certificate, "refused.example").hello()
            for at in range(0, len(hello), size):
                here.send(hello[at : at + size])
            got = b"".join(receive(there))
            assert hello.startswith(got)
            assert len(got) < len(hello)
            here.close()
            there.close()
        assert inspection.end()["names"] == {"refused.example": 6}


def test_a_hello_out_of_order(certificate: Path, net: Net) -> None:
    """Segments that overtake each other do not hide the name: raw packets, the last one first."""
    # nobody listens there, and nobody says so
    net.rules(net.server, "*filter\n-A OUTPUT -p tcp --tcp-flags RST RST -j DROP\nCOMMIT\n")
    rules = "rules: [{name: no, when: {tls.sni: refused.example}, verdict: drop}]"
    with net.inspect(net.router, "--offload", rules=rules) as inspection:
        captured = net.capture(net.server, "eth0")
        hellos = []
        for number, family in enumerate(FAMILIES):
            hellos.append(hello := Tls(certificate, "refused.example").hello())
            pieces = [(at, hello[at : at + 100]) for at in range(0, len(hello), 100)]
            first, rest = pieces[0], pieces[1:]
            send_segments(net, family, 1000, 7000 + number, [(-1, b"")])
            for order in (rest[::-1], [rest[0], first]):
                send_segments(net, family, 1000, 7000 + number, order)
        end = inspection.end()
    arrived = [one[-100:] for one in inspecting.frames(captured)]
    for hello in hellos:
        texts = {hello[at : at + 100] for at in range(0, len(hello), 100)}
        assert {text for text in texts if text in arrived} < texts
    assert end["names"] == {"refused.example": 2}
    assert end["rules"]["no"] >= 2


def send_segments(
    net: Net, family: int, base: int, sport: int, pieces: list[tuple[int, bytes]]
) -> None:
    """Send TCP segments of a flow by a raw socket; that at place -1 is the SYN."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6

    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    raw = net.socket(net.client, kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for place, data in pieces:
        ip = (IP if family == 4 else IPv6)(src=CLIENT[family], dst=SERVER[family])
        tcp = TCP(sport=sport, dport=4430, seq=base + 1 + place, flags="S" if place < 0 else "A")
        raw.sendto(bytes(ip / tcp / data), (SERVER[family], 0))
