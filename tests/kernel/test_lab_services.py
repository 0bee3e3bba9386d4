"""The lab's servers, asked over real sockets: echo, HTTP, DNS, and those that stand alone."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.errors import BadInput
from nfctl.lab import Host, Lab, Verdict, dns, traffic
from nfctl.lab.services import Service, stand
from nfctl.lab.topology import ServicesPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
]

CLIENT = {4: "192.0.2.1", 6: "2001:db8::1"}
SERVER = {4: "192.0.2.2", 6: "2001:db8::2"}
SECOND = {4: "192.0.2.22", 6: "2001:db8::22"}
NAMES = {
    "www.example.test": (SERVER[4], SERVER[6]),
    "big.example.test": tuple(f"10.0.0.{number}" for number in range(1, 121)),
}
PLAN = ServicesPlan(tcp=(7,), udp=(7,), http=(80,), dns=(53,))
MIB = 1 << 20


def pair(lab: Lab) -> tuple[Host, Host]:
    """Make two hosts with a link between them, the second with two addresses of each family."""
    one, two = lab.host("one"), lab.host("two")
    lab.link(
        one.port("eth0", "192.0.2.1/24", "2001:db8::1/64"),
        two.port("eth0", "192.0.2.2/24", "192.0.2.22/24", "2001:db8::2/64", "2001:db8::22/64"),
    )
    return one, two


def start(host: Host, plan: ServicesPlan) -> Service:
    """Start what ``Host.serve`` starts."""
    return Service(
        host.enter,
        plan.tcp,
        plan.udp,
        http=plan.http,
        dns=plan.dns,
        names=NAMES,
        name=host.name,
    )


@contextmanager
def serving(host: Host, plan: ServicesPlan) -> Iterator[Service]:
    service = start(host, plan)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with Lab("tests") as lab:
        yield pair(lab)


@pytest.fixture(scope="module")
def service(hosts: tuple[Host, Host]) -> Iterator[Service]:
    with serving(hosts[1], PLAN) as service:
        yield service


@pytest.fixture
def client(hosts: tuple[Host, Host], service: Service) -> Host:
    assert service.plan
    return hosts[0]


def processes(host: Host) -> set[int]:
    """Return the processes in a host's network namespace."""
    wanted = Path("/run/netns", host.namespace).stat().st_ino
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it may end while we look
                if (entry / "ns/net").stat().st_ino == wanted:
                    found.add(int(entry.name))
    return found


@pytest.mark.parametrize("version", [4, 6])
class TestEcho:
    """TCP and UDP come back as they are."""

    def test_big(self, client: Host, version: int) -> None:
        """20 MB come back through the link unchanged, sent and received at once."""
        sent = random.Random(version).randbytes(20_000_000)

        def send() -> tuple[Verdict, int, str]:
            answer = traffic.tcp(SERVER[version], 7, request=sent, timeout=30)
            return answer.verdict, len(answer.data), hashlib.sha256(answer.data).hexdigest()

        expected = (Verdict.ACCEPTED, len(sent), hashlib.sha256(sent).hexdigest())
        assert client.run(send, timeout=60) == expected

    @pytest.mark.parametrize(
        "data", [b"w", b"whoam", b"whoami", b"whoamix\n", b"GE", b"GOT \n", b"", b"x\nwhoami\n"]
    )
    def test_half_close(self, client: Host, version: int, data: bytes) -> None:
        """All is echoed after the client's FIN, also what might have become a question."""
        answer = client.run(partial(traffic.tcp, SERVER[version], 7, request=data))
        assert (answer.verdict, answer.data) == (Verdict.ACCEPTED, data)
        assert (answer.seen_as, answer.host) == ("", "")

    def test_whoami(self, client: Host, version: int) -> None:
        """A line ``whoami`` is answered each time, until something else makes it an echo."""

        def talk() -> list[traffic.Answer]:
            with traffic.hold(SERVER[version], 7) as held:
                said = [b"whoami\n", b"whoami\r\n", b"hello\n", b"whoami\n"]
                return [held.say(data) for data in said] + [traffic.udp(SERVER[version], 7)]

        first, second, third, fourth, datagram = client.run(talk)
        assert (first.seen_as, first.host) == (CLIENT[version], "two")
        assert (second.seen_as, second.seen_port) == (first.seen_as, first.seen_port)
        assert set(json.loads(second.data)) == {"peer", "port", "host"}
        assert (third.data, fourth.data) == (b"hello\n", b"whoami\n")
        assert (datagram.seen_as, datagram.host) == (CLIENT[version], "two")

    @pytest.mark.parametrize("size", [0, 1, 1400, 60_000])
    def test_datagrams(self, client: Host, version: int, size: int) -> None:
        """A datagram of any size comes back as it was."""
        data = os.urandom(size)
        answer = client.run(partial(traffic.udp, SERVER[version], 7, request=data))
        assert (answer.verdict, answer.data) == (Verdict.ACCEPTED, data)

    def test_slow_reader(self, hosts: tuple[Host, Host], version: int) -> None:
        """A client that sends and never reads is stopped, costs nothing, and stops nobody else."""
        one, two = hosts

        def clog() -> tuple[int, bool, Verdict]:
            with socket.create_connection((SERVER[version], 9)) as slow:
                slow.setblocking(False)
                sent, digest = 0, hashlib.sha256()
                while select.select([], [slow], [], 0.3)[1]:
                    block = sent.to_bytes(8) * 8192
                    size = slow.send(block)
                    digest.update(block[:size])
                    sent += size
                    assert sent < 256 * MIB
                other = traffic.tcp(SERVER[version], 9).verdict
                slow.setblocking(True)
                slow.shutdown(socket.SHUT_WR)
                back = hashlib.sha256()
                while data := slow.recv(MIB):
                    back.update(data)
                return sent, back.digest() == digest.digest(), other

        before = processes(two)
        with serving(two, ServicesPlan(tcp=(9,))):
            [server] = processes(two) - before
            resident = memory(server)
            sent, same, other = one.run(clog, timeout=60)
            assert sent > MIB
            assert (same, other) == (True, Verdict.ACCEPTED)
            assert memory(server) - resident < 2 * MIB


def memory(pid: int) -> int:
    """Return the most bytes a process has had in memory (proc_pid_status(5), VmHWM)."""
    [line] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) << 10


def cpu_time(pid: int) -> float:
    """Return the seconds that a process has computed (proc_pid_stat(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestMany:
    """Many connections at once."""

    def test_held(self, client: Host) -> None:
        """500 connections are open at once, and each gets back what it said itself."""

        def talk() -> int:
            with ExitStack() as stack:
                held = [stack.enter_context(traffic.hold(SERVER[4], 7)) for _ in range(500)]
                said = {one.local[1]: one.say(b"%d\n" % one.local[1]).data for one in held}
                return sum(data == b"%d\n" % port for port, data in said.items())

        assert client.run(talk) == 500

    @pytest.mark.parametrize("port", [7, 80])
    def test_many(self, client: Host, service: Service, port: int) -> None:
        """3,000 connections, 1,000 at a time, are all answered, and all are reported."""
        service.arrivals()
        tally = client.run(traffic.many, SERVER[4], port, 3000, 1000)
        assert tally.verdicts == {Verdict.ACCEPTED: 3000}
        assert tally.hosts == {"two": 3000}
        assert not tally.reasons
        arrivals = service.arrivals()
        assert len({(one.peer, one.peer_port) for one in arrivals if one.port == port}) == 3000

    def test_no_files_left(self, hosts: tuple[Host, Host]) -> None:
        """With no file left to open, connections wait their turn until others end."""
        one, two = hosts

        def talk() -> list[Verdict]:
            with ExitStack() as stack:
                held = [stack.enter_context(traffic.hold(SERVER[4], 9)) for _ in range(60)]
                verdicts = [held[0].say(b"a").verdict, held[-1].say(b"b", timeout=1).verdict]
                for connection in held[:40]:
                    connection.close()
                return [*verdicts, held[-1].say(b"c").verdict]

        before = processes(two)
        with serving(two, ServicesPlan(tcp=(9,))):
            [server] = processes(two) - before
            resource.prlimit(server, resource.RLIMIT_NOFILE, (40, 40))
            expected = [Verdict.ACCEPTED, Verdict.DROPPED, Verdict.ACCEPTED]
            spent = cpu_time(server)
            assert one.run(talk) == expected
            assert cpu_time(server) - spent < 0.3, "it waits by trying again and again"


@pytest.mark.parametrize("version", [4, 6])
class TestHttp:
    """HTTP, by Python's client and by curl."""

    def test_keep_alive(self, client: Host, version: int) -> None:
        """Requests of all kinds go over one connection, and are answered as they should."""

        def talk() -> list[tuple[int, Any]]:
            connection = http.client.HTTPConnection(SERVER[version], 80, timeout=5)
            found: list[tuple[int, Any]] = []
            for method, path, body in (
                ("GET", "/hello?a=b", None),
                ("HEAD", "/", None),
                ("POST", "/", b"x" * 1_000_000),
                ("PUT", "/", iter([b"one", b"three"])),  # chunked
                ("GET", "/status/404", None),
                ("GET", "/bytes/3000000", None),
                ("DELETE", "/", None),
            ):
                connection.request(method, path, body)
                response = connection.getresponse()
                data = response.read()
                found.append((response.status, json.loads(data) if data[:1] == b"{" else data))
            connection.close()
            return found

        get, head, post, put, missing, large, delete = client.run(talk)
        assert get[0] == 200
        assert (get[1]["method"], get[1]["path"]) == ("GET", "/hello?a=b")
        assert (get[1]["peer"], get[1]["host"]) == (CLIENT[version], "two")
        assert head == (200, b"")
        assert (post[1]["length"], put[1]["length"]) == (1_000_000, 8)
        assert missing[0] == 404
        assert large == (200, bytes(index % 256 for index in range(3_000_000)))
        ports = {found[1]["port"] for found in (get, post, put, missing, delete)}
        assert ports == {get[1]["port"]}

    def test_refused_while_sending(self, client: Host, version: int) -> None:
        """Who is refused before all is sent still gets to read why: no reset overtakes it."""

        def talk() -> bytes:
            with socket.create_connection((SERVER[version], 80), timeout=5) as sock:
                sock.sendall(b"nonsense\r\n" + b"x" * 500_000)
                data = b""
                while part := sock.recv(MIB):
                    data += part
                return data

        assert client.run(talk).startswith(b"HTTP/1.1 400 ")

    def test_on_a_plain_port(self, client: Host, version: int) -> None:
        """A port that echoes answers a GET as well, and the FIN behind it ends it in order."""
        request = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"

        def talk() -> bytes:
            with socket.create_connection((SERVER[version], 7), timeout=5) as sock:
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
                data = b""
                while part := sock.recv(MIB):
                    data += part
                return data

        assert client.run(talk).startswith(b"HTTP/1.1 200 ")
        answer = client.run(traffic.http, SERVER[version], 7)
        assert (answer.seen_as, answer.host) == (CLIENT[version], "two")

    @pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, to ask with")
    def test_curl(self, client: Host, version: int, tmp_path: Path) -> None:
        """With curl: one connection for two answers, a body after a wait, a head, and 1 GiB."""
        address = SERVER[version] if version == 4 else f"[{SERVER[version]}]"
        curl = ["curl", "--silent", "--show-error", "--globoff", "--noproxy", "*"]
        out = client.call([*curl, f"http://{address}/a", f"http://{address}/b"])
        one, two = map(json.loads, out.splitlines())
        assert (one["path"], two["path"], one["port"]) == ("/a", "/b", two["port"])
        (tmp_path / "body").write_bytes(bytes(3_000_000))
        wait = ["--header", "Expect: 100-continue", "--upload-file", str(tmp_path / "body")]
        posted = json.loads(client.call([*curl, *wait, f"http://{address}/"]))
        assert (posted["method"], posted["length"]) == ("PUT", 3_000_000)
        assert "HTTP/1.1 200" in client.call([*curl, "--head", f"http://{address}"])
        count = ["--output", "/dev/null", "--write-out", "%{size_download}"]
        assert client.call([*curl, *count, f"http://{address}/bytes/{1 << 30}"]) == str(1 << 30)


@pytest.mark.parametrize("version", [4, 6])
class TestDns:
    """DNS, by our own client and by the C library."""

    @pytest.mark.skipif(shutil.which("getent") is None, reason="needs getent, to ask with")
    def test_getaddrinfo(self, client: Host, version: int, tmp_path: Path) -> None:
        """getaddrinfo(3) and getnameinfo(3) find the lab's names where resolv.conf says so."""
        (tmp_path / "resolv.conf").write_text(f"nameserver {SERVER[version]}\n")
        (tmp_path / "nsswitch.conf").write_text("hosts: dns\n")
        mounts = " && ".join(
            f"mount --bind {tmp_path}/{name} /etc/{name}"
            for name in ("resolv.conf", "nsswitch.conf")
        )

        def getent(*words: str) -> str:
            return client.call(["sh", "-c", f"{mounts} && getent {' '.join(words)}"])

        found = getent("ahosts", "www.example.test")
        assert {line.split()[0] for line in found.splitlines()} == {SERVER[4], SERVER[6]}
        assert getent("hosts", SERVER[version]).split()[1] == "www.example.test"
        with pytest.raises(BadInput, match="ended with 2"):
            getent("ahosts", "nowhere.example.test")
        # Too long for a datagram: the C library asks again over TCP.
        found = getent("ahostsv4", "big.example.test")
        assert {line.split()[0] for line in found.splitlines()} == set(NAMES["big.example.test"])

    @pytest.mark.parametrize("tcp", [False, True])
    def test_client(self, client: Host, version: int, tcp: bool) -> None:
        """Our own client is answered over UDP and TCP, and says whose port is closed."""
        ask = partial(traffic.dns, SERVER[version], tcp=tcp)
        answer = client.run(partial(ask, "WWW.example.test", "AAAA"))
        assert answer.verdict is Verdict.ACCEPTED
        reply = dns.parse_answer(answer.data)
        assert (reply.code, reply.name) == ("NOERROR", "WWW.example.test")
        assert [record.data for record in reply.records] == [SERVER[6]]
        none = dns.parse_answer(client.run(partial(ask, "nowhere")).data)
        assert (none.code, none.records) == ("NXDOMAIN", ())
        big = dns.parse_answer(client.run(partial(ask, "big.example.test")).data)
        assert (big.truncated, len(big.records)) == ((False, 120) if tcp else (True, 0))
        refused = client.run(partial(ask, "www.example.test", port=54))
        assert refused.verdict is Verdict.REJECTED

    def test_many_over_one_connection(self, client: Host, version: int) -> None:
        """Queries in one go are answered in their order; what is no query ends the connection."""
        queries = [dns.query("big.example.test", identity=number) for number in range(300)]

        def talk() -> list[int]:
            with socket.create_connection((SERVER[version], 53), timeout=5) as sock:
                sock.sendall(b"".join(len(one).to_bytes(2) + one for one in queries) + b"\0\1x")
                with sock.makefile("rb") as file:
                    found = []
                    while size := file.read(2):
                        found.append(dns.parse_answer(file.read(int.from_bytes(size))).identity)
                    return found

        assert client.run(talk) == list(range(300))


@pytest.mark.parametrize("version", [4, 6])
def test_answers_come_from_the_address_that_was_asked(client: Host, version: int) -> None:
    """A datagram to a host's second address is answered from that one."""
    answer = client.run(traffic.udp, SECOND[version], 7)
    assert (answer.verdict, answer.seen_as) == (Verdict.ACCEPTED, CLIENT[version])
    assert client.run(traffic.dns, SECOND[version], "www.example.test").verdict is Verdict.ACCEPTED


def test_link_local_addresses(client: Host) -> None:
    """A datagram to a link-local address is answered from it, on its link."""

    def talk() -> tuple[bytes, str]:
        index = socket.if_nametoindex("eth0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"hello", ("ff02::1", 7, 0, index))
            data, found = sock.recvfrom(100)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(found)  # what comes from elsewhere is not for it
            sock.send(b"again")
            return data + sock.recv(100), found[0]

    data, address = client.run(talk)
    assert data == b"helloagain"
    assert address.startswith("fe80::")


@pytest.mark.parametrize("kind", ["tcp", "udp", "http", "dns"])
def test_ports_that_are_taken(hosts: tuple[Host, Host], service: Service, kind: str) -> None:
    """A port that another server has, of any kind, is refused in words; so is one that is none."""
    assert service.plan
    for make in (start, stand_with):
        before = processes(hosts[1])
        ports = getattr(PLAN, kind)
        with pytest.raises(BadInput, match=f"cannot serve port {ports[0]} "):
            make(hosts[1], ServicesPlan(**{kind: ports}))
        with pytest.raises(BadInput, match="cannot serve port 65536"):
            make(hosts[1], ServicesPlan(**{kind: (65536,)}))
        assert processes(hosts[1]) == before


def stand_with(host: Host, plan: ServicesPlan) -> None:
    stand(host.enter, plan, NAMES, name=host.name)


@contextmanager
def standing(host: Host, plan: ServicesPlan) -> Iterator[int]:
    """Have a server stand alone; yield its process id."""
    before = processes(host)
    stand_with(host, plan)
    [pid] = processes(host) - before
    try:
        yield pid
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)
            gone(pid)


def runs(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)


class TestStand:
    """A server on its own."""

    def test_answers(self, hosts: tuple[Host, Host]) -> None:
        """It answers as soon as it was made, on all its ports."""
        one, two = hosts
        with standing(two, ServicesPlan(tcp=(1007,), udp=(1007,), http=(1080,), dns=(1053,))):
            for version in (4, 6):
                server = SERVER[version]
                for send in (
                    partial(traffic.tcp, server, 1007),
                    partial(traffic.udp, server, 1007),
                    partial(traffic.http, server, 1080),
                ):
                    answer = one.run(send)
                    assert (answer.seen_as, answer.host) == (CLIENT[version], "two")
                asked = one.run(partial(traffic.dns, server, "www.example.test", port=1053))
                assert dns.parse_answer(asked.data).code == "NOERROR"

    def test_is_detached(self, hosts: tuple[Host, Host]) -> None:
        """It is nobody's child, leads its session, has its name, and no file but its sockets."""
        read, write = os.pipe()
        os.set_inheritable(write, True)
        plan = ServicesPlan(tcp=(1007,), http=(1080,), dns=(1053,))
        with standing(hosts[1], plan) as pid:
            os.close(write)
            assert os.read(read, 1) == b"", "it has our pipe open"
            os.close(read)
            stat = Path(f"/proc/{pid}/stat").read_text()
            assert stat[stat.index("(") : stat.index(")") + 1] == "(nfctl-service)"
            parent, _, session, terminal = map(int, stat.rpartition(")")[2].split()[1:5])
            assert parent != os.getpid()
            assert (session, terminal) == (pid, 0)
            files = {int(p.name): os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115 - "socket:[1]" is no path
            assert [files.pop(number) for number in (0, 1, 2)] == ["/dev/null"] * 3
            kinds = sorted(name.partition("[")[0] for name in files.values())
            assert [kind for kind in kinds if kind == "socket:"] == ["socket:"] * 8
            assert {kind for kind in kinds if kind != "socket:"} <= {"anon_inode:", "/dev/null"}
            assert os.readlink(f"/proc/{pid}/cwd") == "/"  # noqa: PTH115

    @pytest.mark.parametrize("closed", [False, True])
    def test_outlives_its_maker(self, hosts: tuple[Host, Host], closed: bool) -> None:
        """A pipe from the program that made it ends with that program, and the server does not.

        Nor does it matter if that had no standard streams, so that sockets get low numbers.
        """
        one, two = hosts
        code = f"""
            import os
            from pathlib import Path
            from nfctl.lab import namespaces
            from nfctl.lab.services import stand
            from nfctl.lab.topology import ServicesPlan
            def enter():
                namespaces.enter({two.namespace!r}, run=Path({str(two.directory)!r}))
            if {closed}:
                os.closerange(0, 3)
            stand(enter, ServicesPlan(tcp=(1007,)), {{}}, name="alone")
            os._exit(0)
        """
        before = processes(two)
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "")
        [pid] = processes(two) - before
        for version in (4, 6):
            assert one.run(traffic.tcp, SERVER[version], 1007).host == "alone"
        os.kill(pid, signal.SIGKILL)
        gone(pid)

    def test_signals(self, hosts: tuple[Host, Host]) -> None:
        """A terminal's signals do nothing to it; SIGTERM ends it."""
        one, two = hosts
        with standing(two, ServicesPlan(tcp=(1007,))) as pid:
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
                assert one.run(traffic.tcp, SERVER[4], 1007).verdict is Verdict.ACCEPTED
            os.kill(pid, signal.SIGTERM)
            gone(pid)
            assert one.run(traffic.tcp, SERVER[4], 1007).reason == "tcp-reset"

    def test_ends_with_its_namespace(self) -> None:
        """Removing the lab ends it."""
        with Lab("tests") as lab:
            _, two = pair(lab)
            stand_with(two, ServicesPlan(tcp=(7,)))
            [pid] = processes(two)
            assert runs(pid)
        assert not runs(pid)

    def test_nothing_to_serve(self, hosts: tuple[Host, Host]) -> None:
        """A plan without ports needs no process."""
        before = processes(hosts[1])
        stand_with(hosts[1], ServicesPlan())
        assert processes(hosts[1]) == before
