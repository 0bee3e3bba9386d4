"""What ``nfctl inspect`` shows of real traffic: lines, JSON, captures, the live view."""

from __future__ import annotations

import json
import re
import select
import shutil
import socket
import ssl
import stat
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import PcapNgReader, PcapWriter, RawPcapNgReader

from nfctl.lab import traffic
from tests.kernel.conftest import SLOWNESS
from tests.kernel.inspect_session import AWAITED, Session, Terminal, once
from tests.kernel.inspecting import CLIENT, FAMILIES, PORT, SERVER, network, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

NAMES: Final = {"www.example.test": (SERVER[4], SERVER[6]), "alone.example.test": ("192.0.2.9",)}
COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
CLOCK: Final = r"\d\d:\d\d:\d\d\.\d{3}"
END: Final = {
    "event", "seconds", "ended_by", "packets", "octets", "verdicts", "rules", "errors", "names",
    "offloaded", "rewritten", "uninspected", "queue",
}  # fmt: skip


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as made:
        yield made


def records(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in session.lines()]


def packets(session: Session, count: int) -> list[dict[str, Any]]:
    """Wait for so many packets, and return the records of all that were shown."""
    session.shown(count)
    return [one for one in records(session) if "event" not in one]


def shape(address: str, port: int) -> str:
    return re.escape(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


# --- lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection(net: Net, family: int) -> None:
    """The packets of a TCP connection, line by line: handshake, data, and the end."""
    words = ["--chain", "INPUT,OUTPUT", "--match", "-p tcp"]
    with Session(net.server, *words) as session:
        session.placed()
        here, there = net.stream(family)
        client, server = (shape(*end[:2]) for end in (here.getsockname(), here.getpeername()))
        here.sendall(b"question")
        assert there.recv(100) == b"question"
        session.shown(5)
        there.close()
        assert here.recv(100) == b""
        here.close()
        session.shown(8)
        assert session.end() == 0
        lines = session.lines()
    shown: dict[str, list[str]] = {"in": [], "out": []}
    for line in lines:
        found = re.fullmatch(
            rf"{CLOCK} (?:eth0> {client} > {server}|(>eth0) {server} > {client}) tcp \d+B \[(.+)\]",
            line,
        )
        assert found, line
        shown["out" if found[1] else "in"].append(found[2])
    if len(lines) == 9:  # the client has acknowledged the FIN before it closed
        assert shown["in"].pop(-2) == "ACK"
    assert shown == {
        "in": ["SYN", "ACK", "PSH ACK", "FIN ACK"],
        "out": ["SYN ACK", "ACK", "FIN ACK", "ACK"],
    }


def exchange(net: Net, session: Session, family: int) -> None:
    """Ask the server's DNS and HTTP, and ping it."""
    server = SERVER[family]
    for name, kind in (("www.example.test", "A"), ("no.example.test", "AAAA")):
        answer = net.client.run(traffic.dns, server, name, kind)
        assert answer.verdict is traffic.Verdict.ACCEPTED
    answer = net.client.run(lambda: traffic.http(server, path="/some/where?q=1"))
    assert answer.verdict is traffic.Verdict.ACCEPTED
    assert net.client.run(traffic.ping, server).verdict is traffic.Verdict.ACCEPTED
    assert session.end() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_dns_http_and_echo(net: Net, family: int) -> None:
    """Real questions and answers of DNS, a request of HTTP and its response, an echo: in words."""
    net.server.serve(dns=[53], http=[80], names=NAMES)
    with Session(net.server, "--chain", "INPUT,OUTPUT") as session:
        session.placed()
        exchange(net, session, family)
        text = session.output()
    server = SERVER[family]
    for wanted in (
        rf"eth0> .+ > {shape(server, 53)} udp \d+B DNS query A www\.example\.test",
        rf">eth0 {shape(server, 53)} > .+ udp \d+B DNS answer A www\.example\.test: {SERVER[4]}",
        r"eth0> .+ udp \d+B DNS query AAAA no\.example\.test",
        r">eth0 .+ udp \d+B DNS answer AAAA no\.example\.test: NXDOMAIN",
        rf"eth0> .+ tcp \d+B HTTP GET /some/where\?q=1 {server}",
        rf">eth0 {shape(server, 80)} > .+ tcp \d+B (?:\[.*\] )?HTTP 200 OK",
        rf"eth0> \S+ > {server} icmp(?:v6)? \d+B echo request id \d+ seq \d+$",
        rf">eth0 {server} > \S+ icmp(?:v6)? \d+B echo reply id \d+ seq \d+$",
    ):
        assert re.search(f"^{CLOCK} {wanted}", text, re.MULTILINE), f"{wanted}\n{text}"


@pytest.mark.parametrize("family", FAMILIES)
def test_dns_http_and_echo_in_json(net: Net, family: int) -> None:
    """The same as records, one document a line, and behind them the one of the end."""
    net.server.serve(dns=[53], http=[80], names=NAMES)
    with Session(net.server, "--chain", "INPUT,OUTPUT", "--json") as session:
        session.placed()
        exchange(net, session, family)
        found = records(session)
    *seen, end = found
    assert set(end) == END
    assert (end["event"], end["ended_by"]) == ("end", "SIGINT")
    assert end["packets"] == len(seen) == sum(end["verdicts"].values())
    assert end["octets"] == sum(one["length"] for one in seen)
    assert all(one["family"] == family for one in seen if one["protocol"] != "icmpv6")
    dns = [one["dns"] for one in seen if "dns" in one]
    asked = [{"name": "www.example.test", "type": "A"}]
    answer = {"name": "www.example.test", "type": "A", "data": SERVER[4]}
    none = [{"name": "no.example.test", "type": "AAAA"}]
    assert dns == [
        {"kind": "query", "questions": asked},
        {"kind": "answer", "rcode": "NOERROR", "questions": asked, "answers": [answer]},
        {"kind": "query", "questions": none},
        {"kind": "answer", "rcode": "NXDOMAIN", "questions": none, "answers": []},
    ]
    request, response = (one["http"] for one in seen if "http" in one)
    assert request == {
        "method": "GET", "target": "/some/where?q=1", "path": "/some/where",
        "host": SERVER[family], "version": "1.0",
    }  # fmt: skip
    assert (response["status"], response["reason"]) == (200, "OK")
    echoes = [one["icmp"]["name"] for one in seen if "echo" in one.get("icmp", {}).get("name", "")]
    assert echoes == ["echo request", "echo reply"]


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have OpenSSL make a key and a certificate that it has signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=any.example -keyout - -out -"
    )
    done = subprocess.run(command.split(), check=True, capture_output=True)
    file.write_bytes(done.stdout)
    return file


def shake_hands(
    net: Net, certificate: Path, family: int, name: str | None, *, newest: bool = True
) -> str | None:
    """Connect by TLS and talk; return the protocol that both agreed on."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    ours.maximum_version = ssl.TLSVersion.TLSv1_3 if newest else ssl.TLSVersion.TLSv1_2
    ours.set_alpn_protocols(["h2", "http/1.1"])
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate)
    theirs.set_alpn_protocols(["http/1.1"])
    here, there = net.stream(family, 443)
    here.setblocking(False)
    there.setblocking(False)
    lazily: dict[str, Any] = {"do_handshake_on_connect": False}
    with (
        ours.wrap_socket(here, server_hostname=name, **lazily) as client,
        theirs.wrap_socket(there, server_side=True, **lazily) as server,
    ):
        todo = [client, server]
        give_up = time.monotonic() + AWAITED
        while todo:
            assert time.monotonic() < give_up
            for end in list(todo):
                try:
                    end.do_handshake()
                    todo.remove(end)
                except ssl.SSLWantReadError:
                    select.select([end], [], [], 0.01)
        client.sendall(b"secret")
        server.settimeout(AWAITED)
        assert server.recv(100) == b"secret"
        return client.selected_alpn_protocol()


@pytest.mark.parametrize("newest", [True, False], ids=["TLS 1.3", "TLS 1.2"])
def test_tls(net: Net, certificate: Path, newest: bool) -> None:
    """The server's name and the protocols are shown once, of both IP versions' handshakes."""
    words = ["--chain", "INPUT,OUTPUT", "--match", "-p tcp"]
    with Session(net.server, *words) as session:
        session.placed()
        for family in FAMILIES:
            name = f"v{family}.example.test"
            assert shake_hands(net, certificate, family, name, newest=newest) == "http/1.1"
        assert session.end() == 0
        named = [line for line in session.lines() if "ClientHello" in line]
        assert session.errors().splitlines()[1:] == [
            "nfctl: server names: v4.example.test 1 flow, v6.example.test 1 flow"
        ]
    assert len(named) == 2
    for line, family in zip(named, FAMILIES, strict=True):
        wanted = rf"{CLOCK} eth0> \S+ > {shape(SERVER[family], 443)} tcp \d+B "
        wanted += rf"TLS ClientHello v{family}\.example\.test h2,http/1\.1"
        assert re.fullmatch(wanted, line), line


def test_tls_in_json(net: Net, certificate: Path) -> None:
    """One record of each connection has the ClientHello, and the end counts names by flows."""
    with Session(net.server, "--json", "--match", "-p tcp") as session:
        session.placed()
        for name in ("www.example.test", "www.example.test", None):
            shake_hands(net, certificate, 4, name)
        assert session.end() == 0
        *seen, end = records(session)
    told = [one["tls"] for one in seen if "tls" in one]
    named = {"sni": "www.example.test", "alpn": ["h2", "http/1.1"], "version": "TLS 1.3"}
    assert told == [named, named, {"alpn": ["h2", "http/1.1"], "version": "TLS 1.3"}]
    assert end["names"] == {"www.example.test": 2, "": 1}


def test_flows(net: Net, certificate: Path) -> None:
    """--show flows: a line for each connection that names its server, and no others."""
    net.server.serve(http=[80], dns=[53], names=NAMES)
    with Session(net.server, "--show", "flows", "--chain", "INPUT,OUTPUT") as session:
        session.placed()
        shake_hands(net, certificate, 4, "www.example.test")
        net.client.run(traffic.http, SERVER[4])
        net.client.run(traffic.dns, SERVER[4], "www.example.test")
        lines = session.shown(2)
        assert session.end() == 0
        lines = session.lines()
    assert len(lines) == 2
    assert "TLS ClientHello www.example.test" in lines[0]
    assert f"HTTP GET / {SERVER[4]}" in lines[1]


# --- records beside another's eyes --------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_records_are_what_scapy_sees(net: Net, family: int) -> None:
    """Headers in JSON are those that scapy finds in the same packets, caught by packet(7)."""
    caught = net.capture(net.server, "eth0")
    with Session(net.server, "--json", "--match", "-p tcp") as session:
        session.placed()
        here, there = net.stream(family)
        here.sendall(b"some data")
        there.recv(100)
        there.sendall(b"answer")
        here.recv(100)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        here.close()  # by RST
        with pytest.raises(ConnectionResetError):
            there.recv(100)
        assert session.end() == 0
        *seen, _ = records(session)
    wanted = []
    while True:
        try:
            data, (_, _, kind, *_) = caught.recvfrom(1 << 16)
        except BlockingIOError:
            break
        packet = Ether(data)
        if kind == socket.PACKET_OUTGOING or TCP not in packet:
            continue
        layer, tcp = packet[IP if family == 4 else IPv6], packet[TCP]
        wanted.append({
            "source": layer.src, "destination": layer.dst, "sport": tcp.sport, "dport": tcp.dport,
            "length": layer.len if family == 4 else layer.plen + 40,
            "ttl": layer.ttl if family == 4 else layer.hlim,
            "seq": tcp.seq, "ack": tcp.ack, "window": tcp.window,
            "flags": {LETTERS[letter] for letter in str(tcp.flags)},
        })  # fmt: skip
    found = []
    for one in seen:
        keys = ("source", "destination", "sport", "dport", "length", "ttl")
        flat = {key: one[key] for key in keys} | one["tcp"]
        found.append(flat | {"flags": set(flat["flags"])})
        assert (one["family"], one["protocol"], one["in"]) == (family, "tcp", "eth0")
        assert (one["chain"], one["verdict"], one["by"]) == ("INPUT", "accept", "default")
        assert abs(one["time"] - time.time()) < 60
    assert len(found) >= 5
    assert found == wanted


LETTERS: Final = {
    "F": "FIN", "S": "SYN", "R": "RST", "P": "PSH", "A": "ACK", "U": "URG", "E": "ECE", "C": "CWR",
}  # fmt: skip


def test_hex(net: Net) -> None:
    """--show hex: behind its line all bytes of a packet, which can be read back."""
    with Session(net.server, "--show", "hex", "--match", "-p udp --dport 4000") as session:
        session.placed()
        here, there = net.pair(4)
        sent = bytes(range(256)) * 3
        here.send(sent)
        assert there.recv(1000) == sent
        line, *rows = session.shown(1 + (28 + len(sent)) // 16 + 1)
        assert session.end() == 0
    assert " udp 796B" in line
    data = b"".join(bytes.fromhex(row[8:57].strip()) for row in rows)
    assert data[28:] == sent
    packet = IP(data)
    assert (packet.src, packet.dst, packet.dport) == (CLIENT[4], SERVER[4], PORT)


def test_detail(net: Net) -> None:
    """--show detail: behind its line what scapy knows of the packet, layer by layer."""
    net.server.serve(dns=[53], names=NAMES)
    with Session(net.server, "--show", "detail", "--count", "1") as session:
        session.placed()
        net.client.run(traffic.dns, SERVER[4], "www.example.test")
        assert session.wait() == 0
        text = session.output()
    assert "DNS query A www.example.test\n" in text
    layers = re.findall(r"^ *#*\[ (.+?) \]#*$", text.replace("###", "#"), re.MULTILINE)
    assert layers[:3] == ["IP", "UDP", "DNS"]
    assert re.search(r"qname\s+= b?'www\.example\.test\.'", text)


def test_quiet(net: Net) -> None:
    """--quiet: no packet is shown, all are decided and counted."""
    with Session(net.server, "--quiet", "--match", "-p udp --dport 4000") as session:
        session.placed()
        here, there = net.pair(4)
        for _ in range(10):
            here.send(b"x")
        assert len(receive(there)) == 10
        assert session.end() == 0
        assert session.output() == ""
        assert re.fullmatch(
            r"nfctl: 10 packets, 290 bytes in \d+\.\d s: 10 accepted\n", session.errors()
        )


@pytest.mark.parametrize("colours", [True, False])
def test_colours(net: Net, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets colours, unless NO_COLOR is set; what is read is the same without."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colours:
        monkeypatch.setenv("NO_COLOR", "1")
    with Terminal() as terminal, Session(net.server, "--count", "1", **terminal.options()) as one:
        one.placed()
        here, _ = net.pair(4)
        here.send(b"x")
        assert one.wait() == 0
        text = terminal.written(0.01)
    assert bool(COLOUR.search(text)) == colours
    begun, *plain = COLOUR.sub("", text).splitlines()
    assert begun == "nfctl: inspecting INPUT (IPv4 and IPv6) by queue 0; Ctrl-C ends it"
    assert re.fullmatch(rf"{CLOCK} eth0> .+ > {shape(SERVER[4], PORT)} udp 29B", plain[0]), plain


# --- captures -----------------------------------------------------------------------------------

RULES: Final = """\
rules:
- {name: bad, when: {payload: {bytes: bad}}, verdict: drop}
- {name: tagged, when: {payload: {bytes: tag}}, verdict: mark, mark: 0x7/0xf}
"""


def test_a_capture(net: Net) -> None:
    """--write: root's alone, each packet as it came, with its verdict; scapy and tshark read it."""
    words = ["--write", "/run/x.pcapng", "--quiet", "--match", "-p udp", "--rules", "-"]
    sent = [b"good", b"bad", b"tag", bytes(1400)]
    with Session(net.server, *words, text=RULES) as session:
        session.placed()
        before = time.time()
        for family in FAMILIES:
            here, there = net.pair(family)
            for data in sent:
                here.send(data)
            assert receive(there) == [b"good", b"tag", bytes(1400)]
        assert session.end() == 0
        assert session.output() == ""
    file = net.server.directory / "x.pcapng"
    about = file.stat()
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, 0)
    with PcapNgReader(str(file)) as reader:
        read = list(reader)
    assert [bytes(packet[UDP].payload) for packet in read] == sent * 2
    assert [packet[0].version for packet in read] == [4] * 4 + [6] * 4
    comments = ["accept (default)", "drop (bad)", "accept (tagged), mark 0x7/0xf"]
    comments.append(comments[0])
    assert [packet.comment.decode() for packet in read] == [f"INPUT: {x}" for x in comments] * 2
    assert all(before - 1 < float(packet.time) < time.time() for packet in read)
    assert {packet.sniffed_on for packet in read} == {"eth0"}
    for packet in read:  # checksums are complete, although a virtual cable carries none
        layer = packet.copy()
        del layer[UDP].chksum
        assert type(layer)(bytes(layer))[UDP].chksum == packet[UDP].chksum
    if shutil.which("tshark") is None:
        pytest.skip("the capture was read by scapy; tshark is missing")
    fields = ["-e", "frame.comment", "-e", "udp.length", "-e", "udp.checksum.status"]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-o", "udp.check_checksum:TRUE", "-T", "fields", *fields],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"INPUT: {comment}\t{len(data) + 8}\t1"
        for comment, data in zip(comments * 2, sent * 2, strict=True)
    ]


def test_a_ring_of_captures(net: Net) -> None:
    """--rotate and --keep: so many files at most, none much longer, with the last packets."""
    words = ["--rotate", "64K", "--keep", "3", "--write", "/run/x.pcapng", "--quiet"]
    with Session(net.server, *words, "--match", "-p udp --dport 4000") as session:
        session.placed()
        here, there = net.pair(4)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        for number in range(400):
            here.send(b"%04d" % number + bytes(1000))
        assert len(receive(there)) == 400
        assert session.end() == 0
    files = sorted(net.server.directory.glob("*.pcapng"))
    assert [file.name for file in files] == ["x.1.pcapng", "x.2.pcapng", "x.pcapng"]
    numbers = []
    for file in files:
        assert file.stat().st_size < 64 * 1024 + 2000
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with RawPcapNgReader(str(file)) as reader:
            numbers += [int(data[28:32]) for data, _ in reader]
    assert sorted(numbers) == list(range(400 - len(numbers), 400))
    assert 100 < len(numbers) < 200


def test_a_capture_that_cannot_go_on(net: Net) -> None:
    """No further file can be opened: that is said, the capture ends there, and traffic goes on."""
    words = ["--rotate", "64K", "--write", "/run/x/y.pcapng", "--quiet"]
    folder = net.server.directory / "x"
    folder.mkdir()
    with Session(net.server, *words, "--match", "-p udp --dport 4000") as session:
        session.placed()
        (folder / "y.1.pcapng").mkdir()
        here, there = net.pair(4)
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        started = time.monotonic()
        for number in range(200):
            here.send(b"%04d" % number + bytes(1000))
        assert len(receive(there)) == 200
        assert time.monotonic() - started < 3 * SLOWNESS
        assert session.end() == 0
        assert 'no capture file: "y.1.pcapng" is there already and is no plain' in session.errors()
        assert "the capture ends here" in session.errors()
        assert "200 accepted" in session.errors()


# --- the same by replay and live ----------------------------------------------------------------

DECIDING: Final = r"""
default: accept
rules:
- {name: strange, when: {malformed: true}, verdict: drop}
- {name: telnet, when: {proto: tcp, dport: 23}, verdict: drop}
- {name: ads, when: {tls.sni: "*.ads.example"}, verdict: drop}
- {name: names, when: {dns.qname: "*.bad.example"}, verdict: drop}
- {name: admin, when: {http.path: "/admin/*"}, verdict: drop}
- {name: host, when: {http.host: old.example}, verdict: drop}
- {name: odd, when: {tcp.flags: "fin,psh,urg"}, verdict: drop}
- {name: pieces, when: {fragment: true}, verdict: drop}
- {name: large, when: {len: "> 1200"}, verdict: mark, mark: 0x7/0xf}
- {name: echo, when: {icmp: echo-request}, verdict: accept}
- {name: word, when: {payload: "s[ae]cret"}, verdict: drop, for: 10m, per: flow}
"""


def hello(name: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    return sent.read()


def traffic_of_all_kinds(family: int) -> list[bytes]:
    """Return packets from the client to the server, which need no answers."""
    if family == 4:
        base: Any = IP(src=CLIENT[4], dst=SERVER[4])
    else:
        base = IPv6(src=CLIENT[6], dst=SERVER[6])
    built: list[Any] = []

    def connection(sport: int, dport: int, *segments: bytes) -> None:
        seq = 1000
        built.append(base / TCP(sport=sport, dport=dport, seq=seq, flags="S"))
        for data in segments:
            tcp = TCP(sport=sport, dport=dport, seq=seq + 1, ack=1, flags="PA")
            built.append(base / tcp / Raw(data))
            seq += len(data)

    first, second = hello("x.ads.example"), hello("fine.example")
    connection(1001, 443, first, b"\x17\x03\x03\0\1x")
    connection(1002, 443, second, b"\x17\x03\x03\0\1x")
    connection(1003, 443, first[:90], first[90:], b"\x17\x03\x03\0\1x")  # in two segments
    connection(1004, 80, b"GET /admin/x HTTP/1.1\r\nHost: new.example\r\n\r\n")
    connection(1005, 80, b"GET / HTTP/1.1\r\nHost: old.example\r\n\r\n")
    connection(1006, 80, b"GET / HTTP/1.1\r\nHost: new.example\r\n\r\n", b"more", b"my secret")
    connection(1007, 23, b"login: ")
    asking = base / UDP(sport=1008, dport=53)
    names = "www.bad.example", "www.good.example"
    built += [asking / DNS(rd=1, qd=DNSQR(qname=name)) for name in names]
    built.append(base / TCP(sport=1009, dport=9, flags="FPU"))
    built.append(base / UDP(sport=1010, dport=9) / Raw(bytes(1300)))
    words = b"plain", b"the sacret word", b"and behind it"
    built += [base / UDP(sport=1011, dport=9) / Raw(data) for data in words]
    if family == 4:
        built.append(base / ICMP(id=7, seq=1) / Raw(b"ping"))
        datagram = bytes(UDP(sport=1012, dport=9, len=408) / Raw(bytes(400)))
        for offset, more in ((0, 1), (200, 0)):
            piece = base.copy()
            piece.id, piece.frag, piece.flags, piece.proto = 99, offset // 8, more, 17
            built.append(piece / Raw(datagram[offset : offset + (200 if more else 300)]))
    else:
        built.append(base / ICMPv6EchoRequest(id=7, seq=1, data=b"ping"))
        for offset, more in ((0, 1), (5, 0)):
            piece = IPv6ExtHdrFragment(id=99, m=more, offset=offset, nh=17)
            built.append(base / piece / Raw(bytes(40)))
    short = bytes(base / UDP(sport=1013, dport=9, len=4000) / Raw(b"short"))
    built.append(type(base)(short))
    return [bytes(packet) for packet in built]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_capture_is_decided_as_it_was_live(net: Net, tmp_path: Path, family: int) -> None:
    """The same packets, out of a file and over a cable, get the same verdicts of the same rules."""
    sent = traffic_of_all_kinds(family)
    file, rules = tmp_path / "all.pcap", tmp_path / "rules.yaml"
    rules.write_text(DECIDING)
    with PcapWriter(str(file), linktype=101) as writer:
        for data in sent:
            writer.write(IP(data) if family == 4 else IPv6(data))
    cable = net.capture(net.client, "eth0")
    out = net.socket(net.client, socket.AF_PACKET, socket.SOCK_RAW)
    out.bind(("eth0", 0))
    # a real packet shows the two addresses of the cable
    here, _ = net.pair(family)
    here.send(b"x")
    while True:
        assert select.select([cable], [], [], AWAITED)[0]
        frame, (_, _, kind, *_) = cable.recvfrom(1 << 16)
        if kind == socket.PACKET_OUTGOING and frame[-1:] == b"x":
            break
    words = ["--json", "--rules", str(rules), "--chain", "FORWARD"]
    with Session(net.router, *words, "--match", "-i wan0") as session:
        session.placed(family=family)
        for data in sent:
            out.send(frame[:14] + data)
        live = packets(session, len(sent))
        assert session.end() == 0
        end = records(session)[-1]
    code, text, said = once(net.client, "--json", "--read", str(file), "--rules", str(rules))
    assert code == 0, said
    *replayed, finish = [json.loads(line) for line in text.splitlines()]
    different = {"time", "chain", "in", "out", "ttl"}  # a router has counted the TTL down

    def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: one[key] for key in one if key not in different} for one in found]

    assert compared(live) == compared(replayed)
    for key in ("packets", "octets", "verdicts", "rules", "names", "errors"):
        assert end[key] == finish[key], key
    by = {one["by"] for one in live}
    assert {"ads", "telnet", "names", "admin", "host", "odd", "pieces", "large", "word"} <= by


# --- the live view ------------------------------------------------------------------------------

SCREEN, LEFT = "\x1b[?1049h", "\x1b[?1049l"


@pytest.mark.parametrize("keys", ["q", "Q", "spsp\x1b[Aq", "\x03"], ids=repr)
def test_top(net: Net, keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--top shows flows on a screen of its own; q or Ctrl-C ends it, the terminal is as before."""
    monkeypatch.setenv("TERM", "xterm-256color")
    words = ["--top", "--match", "-p udp --dport 4000"]
    with Terminal() as terminal, Session(net.server, *words, **terminal.options()) as session:
        session.placed()
        here, there = net.pair(4)
        for _ in range(20):
            here.send(b"x")
        assert len(receive(there)) == 20
        flow = f"{CLIENT[4]}:{here.getsockname()[1]} > {SERVER[4]}:{PORT}"
        text = terminal.until(flow)
        assert SCREEN in text
        assert LEFT not in text
        assert terminal.mode != terminal.before
        assert "accept 20" in COLOUR.sub("", text)
        terminal.type(keys)
        assert session.wait() == 0
        text = terminal.written(0.01)
        assert terminal.mode == terminal.before
    behind = text.rpartition(LEFT)[2]
    assert re.search(r"nfctl: 20 packets, 580 bytes in \d+\.\d s: 20 accepted", behind), behind
    assert "\x1b[?25h" in text.rpartition(SCREEN)[2]


def test_top_in_json(net: Net) -> None:
    """--top --json: a record each second with rates and flows, and the one of the end."""
    with Session(net.server, "--top", "--json", "--match", "-p udp --dport 4000") as session:
        session.placed()
        here, there = net.pair(4)
        for _ in range(20):
            here.send(b"x")
        assert len(receive(there)) == 20
        give_up = time.monotonic() + AWAITED
        while not any(one.get("flows") for one in records(session)):
            assert time.monotonic() < give_up
            select.select([], [], [], 0.01)
        assert session.end() == 0
        *shown, end = records(session)
    (flow,) = shown[-1]["flows"]
    assert (flow["source"], flow["dport"], flow["packets"]) == (CLIENT[4], PORT, 20)
    assert flow["octets"] == 20 * 29
    assert set(end) == END
    assert end["packets"] == 20
