"""``nfctl inspect`` as a whole: its processes, handlers, namespaces, several at once."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.inspect.capture import read
from nfctl.lab import fork
from tests.kernel.inspect_session import Session, alone, leftovers, once, saved, wait_for
from tests.kernel.inspecting import CLIENT, FAMILIES, PORT, SERVER, network, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

CAP_NET_ADMIN: Final = 1 << 12
NOBODY: Final = pwd.getpwnam("nobody")
MATCH: Final = ("--match", "-p udp --dport 4000")


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as made:
        yield made


def records(session: Session) -> list[dict[str, Any]]:
    """Return what was printed as JSON; a handler may print what it likes."""
    return [json.loads(line) for line in session.lines() if line[:1] == "{"]


def end(session: Session) -> dict[str, Any]:
    """End a run that prints JSON; return the record of its end."""
    assert session.end() == 0, session.errors()
    last = records(session)[-1]
    assert last["event"] == "end"
    return last


# --- processes ----------------------------------------------------------------------------------


def status(pid: int) -> dict[str, list[str]]:
    """Return the fields of proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def held(pid: int) -> set[str]:
    """Return the inodes of a process's sockets."""
    links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def test_the_worker_is_nobody(net: Net) -> None:
    """The worker is user nobody, with CAP_NET_ADMIN alone, and can get nothing back."""
    with Session(net.server) as session:
        session.placed()
        (worker,) = session.workers()
        found = status(worker)
        assert found["Uid"] == [str(NOBODY.pw_uid)] * 4
        assert found["Gid"] == [str(NOBODY.pw_gid)] * 4
        assert found["Groups"] == []
        for name in ("CapPrm", "CapEff"):
            assert int(found[name][0], 16) == CAP_NET_ADMIN
        for name in ("CapInh", "CapBnd", "CapAmb"):
            assert int(found[name][0], 16) == 0
        assert found["NoNewPrivs"] == ["1"]
        assert found["Threads"] == ["1"]
        assert status(session.process.pid)["Uid"] == ["0"] * 4
        assert session.end() == 0


@pytest.mark.parametrize("user", ["daemon", "54321"])
def test_another_user(net: Net, user: str) -> None:
    """--user names somebody else, also by a number without an entry in passwd(5)."""
    uid = pwd.getpwnam(user).pw_uid if user.isalpha() else int(user)
    with Session(net.server, "--user", user) as session:
        session.placed()
        (worker,) = session.workers()
        assert status(worker)["Uid"] == [str(uid)] * 4
        here, there = net.pair(4)
        here.send(b"seen")
        assert there.recv(100) == b"seen"
        session.shown(1)
        assert session.end() == 0


def test_root_reads_no_packet(net: Net) -> None:
    """The process that stays root has no netfilter socket, so that no packet gets to it."""
    with Session(net.server, "--workers", "2") as session:
        session.placed()
        rows = [line.split() for line in net.read(net.server, "netlink").splitlines()[1:]]
        # the kernel's own has port 0
        netfilter = {row[9] for row in rows if row[1] == "12" and row[2] != "0"}
        workers = session.workers()
        assert len(workers) == 2
        assert len(netfilter) == 2
        assert {frozenset(held(worker) & netfilter) for worker in workers} == {
            frozenset({inode}) for inode in netfilter
        }
        assert not held(session.process.pid) & netfilter
        ports = {net.figures(net.server, queue) for queue in (0, 1)}
        assert {figures.portid for figures in ports if figures is not None} == set(workers)
        assert session.end() == 0


def test_a_worker_keeps_no_file_of_root(net: Net) -> None:
    """A worker holds descriptors for what it needs, none by which it could write as root."""
    with Session(net.server) as session:
        session.placed()
        (worker,) = session.workers()
        files = [str(file.readlink()) for file in Path(f"/proc/{worker}/fd").iterdir()]
        own = {"/dev/null", "/proc/self/fd"}
        opened = [
            name for name in files
            if name.startswith("/") and name not in own and "(deleted)" not in name
        ]  # fmt: skip
        # the figures of the kernel's queues, which are read only
        assert [name for name in opened if not name.endswith("/nfnetlink_queue")] == []
        assert session.end() == 0


# --- workers ------------------------------------------------------------------------------------


def flows_of(file: Path) -> Counter[tuple[str, int]]:
    """Return how many packets of each source are in a capture."""
    return Counter((str(packet.source), packet.sport) for packet in read(str(file)))


def test_each_flow_has_one_worker(net: Net) -> None:
    """Three workers share the flows; all packets of a flow are one's, and all are counted.

    The kernel goes by addresses, so that each flow here has a source of its own.
    """
    there = net.udp(net.server, 4, SERVER[4], PORT)
    sources = [f"192.0.2.{number}" for number in range(100, 124)]
    for source in sources:
        net.client.call(["ip", "address", "add", f"{source}/24", "dev", "eth0"])
    senders = [net.udp(net.client, 4, source) for source in sources]
    words = ["--workers", "3", "--queue", "7", "--json", "--write", "/run/x.pcapng", *MATCH]
    with Session(net.server, *words) as session:
        session.placed(7)
        for number in range(10):
            for sender in senders:
                sender.sendto(b"%d" % number, (SERVER[4], PORT))
        assert len(receive(there)) == 240
        found = end(session)
        assert found["packets"] == 240
        assert found["verdicts"] == {"accept": 240}
        assert found["octets"] == 240 * 29
        shown = Counter(one["source"] for one in records(session)[:-1])
    assert shown == dict.fromkeys(sources, 10)
    flows = [flows_of(net.server.directory / f"x-{number}.pcapng") for number in range(3)]
    assert all(flows), "a worker was idle, of 24 flows"
    assert sum(map(len, flows)) == 24
    assert {count for of in flows for count in of.values()} == {10}


def test_each_cpu_has_one_worker(net: Net) -> None:
    """With --queue-cpu-fanout a packet's CPU decides, which is its sender's on a virtual cable."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("needs two CPUs")
    there = net.udp(net.server, 4, SERVER[4], PORT)
    senders = [net.udp(net.client, 4, CLIENT[4]) for _ in range(12)]
    words = ["--workers", str(max(cpus) + 1), "--queue-cpu-fanout", "--write", "/run/x.pcapng"]
    with Session(net.server, "--json", *words, *MATCH) as session:
        session.placed()
        for cpu in cpus:

            def burst(cpu: int = cpu) -> None:
                os.sched_setaffinity(0, {cpu})
                for sender in senders:
                    sender.sendto(b"%d" % cpu, (SERVER[4], PORT))

            fork.call(burst)
        assert len(receive(there)) == 24
        assert end(session)["packets"] == 24
    for cpu in cpus:
        file = net.server.directory / f"x-{cpu}.pcapng"
        assert {bytes(packet.payload) for packet in read(str(file))} == {b"%d" % cpu}
        assert sum(flows_of(file).values()) == 12


# --- handlers -----------------------------------------------------------------------------------

HANDLERS: Final = '''
"""What a test has root run."""

import time


def drop(packet):
    if packet.payload == b"drop":
        packet.drop()


class Counts:
    def start(self):
        self.seen = []

    def packet(self, packet):
        self.seen.append(bytes(packet.payload))
        if packet.payload == b"fail":
            raise ValueError("as it was told")
        if packet.payload == b"slow":
            time.sleep(5)
        if packet.payload == b"odd":
            return "perhaps"

    def stop(self):
        print(f"seen {len(self.seen)}: {b' '.join(self.seen).decode()}", flush=True)
'''


FAULTS: Final = {"raised": 2, "late": 1, "returned": 1}


def put(host: Host, text: str) -> str:
    """Write a module that only root may write, where the host sees it; return its name there."""
    folder = host.directory / "handlers"
    folder.mkdir(mode=0o755, exist_ok=True)
    (folder / "mine.py").write_text(textwrap.dedent(text))
    (folder / "mine.py").chmod(0o644)
    return "/run/handlers/mine.py"


def test_handlers(net: Net) -> None:
    """A function decides, a class sees what it leaves, with its start and its stop."""
    mine = put(net.server, HANDLERS)
    words = ["--handler", f"{mine}:drop", "--handler", f"{mine}:Counts", "--show", "json", *MATCH]
    with Session(net.server, *words) as session:
        session.placed()
        here, there = net.pair(4)
        for data in (b"one", b"drop", b"two"):
            here.send(data)
        assert receive(there) == [b"one", b"two"]
        lines = [json.loads(line) for line in session.shown(3)]
        assert [one["verdict"] for one in lines] == ["accept", "drop", "accept"]
        assert lines[1]["by"] == f"handler {mine}:drop"
        assert session.end() == 0
        assert session.lines()[3] == "seen 2: one two"
        found = json.loads(session.lines()[-1])
        assert found["verdicts"] == {"accept": 2, "drop": 1}
        assert found["rules"] == {"default": 2, f"handler {mine}:drop": 1}


def test_handlers_that_fail(net: Net) -> None:
    """What raises, takes too long or answers nonsense costs its packet nothing but the answer."""
    mine = put(net.server, HANDLERS)
    words = ["--handler", f"{mine}:Counts", "--deadline", "50", "--json", *MATCH]
    with Session(net.server, *words) as session:
        session.placed()
        here, there = net.pair(4)
        for data in (b"fail", b"slow", b"odd", b"fail", b"fine"):
            here.send(data)
            assert there.recv(100) == data
        found = end(session)
        notes = [one["text"] for one in records(session) if one.get("event") == "note"]
    name = f"handler {mine}:Counts"
    assert found["errors"] == {f"{name}: {kind}": n for kind, n in FAULTS.items()}
    assert found["verdicts"] == {"accept": 5}
    assert sum(f"{mine}:19: ValueError: as it was told" in text for text in notes) == 2, notes
    assert len(notes) >= 3


def test_a_handler_is_nobody(net: Net) -> None:
    """Handlers run without root's privileges, and what they load later is trusted as little."""
    mine = put(net.server, """\
        import os

        def who(packet):
            try:
                open("/etc/shadow")
                print("root", flush=True)
            except PermissionError:
                pass
            print(os.getuid(), os.geteuid(), flush=True)
        """)  # fmt: skip
    with Session(net.server, "--quiet", "--handler", f"{mine}:who", *MATCH) as session:
        session.placed()
        here, there = net.pair(4)
        here.send(b"x")
        assert there.recv(100) == b"x"
        assert session.shown(1) == [f"{NOBODY.pw_uid} {NOBODY.pw_uid}"]
        assert session.end() == 0


# --- namespaces, and others ---------------------------------------------------------------------

SENDER: Final = """
import socket
there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
there.bind(("127.0.0.1", 4000))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"inside", ("127.0.0.1", 4000))
assert there.recv(100) == b"inside"
"""


def test_another_namespace() -> None:
    """With --netns the rules, the queue and the packets are that namespace's, and only its."""
    with alone() as host:
        host.call(["ip", "netns", "add", "inner"])
        inside = ["ip", "netns", "exec", "inner"]
        host.call([*inside, "ip", "link", "set", "lo", "up"])
        with Session(host, "--netns", "inner", "--json", *MATCH) as session:
            save = [*inside, "iptables-legacy-save", "-t", "mangle"]
            wait_for(lambda: session.over or "NFCTL-INSPECT-0" in host.call(save), session.errors)
            assert leftovers(host) == []
            host.call([*inside, sys.executable, "-c", SENDER])
            host.call([sys.executable, "-c", SENDER])  # outside
            (seen,) = [json.loads(line) for line in session.shown(1)]
            assert (seen["in"], seen["length"]) == ("lo", 34)
            assert end(session)["packets"] == 1
        assert "NFCTL" not in host.call([*inside, "iptables-legacy-save"])
        assert saved(host) == ""


def test_two_at_once(net: Net) -> None:
    """Two runs with queues and mark bits of their own see and decide their own packets."""
    first = ["--json", "--match", "-p udp --dport 4000", "--rules", "-"]
    drop = "rules: [{when: {payload: {bytes: bad}}, verdict: drop}]"
    second = ["--json", "--match", "-p udp --dport 4001", "--queue", "1", "--mark-mask", "0x30000"]
    with Session(net.server, *first, text=drop) as one:
        one.placed()
        with Session(net.server, *second, "--rules", "-", text=drop) as two:
            two.placed(1)
            ends = {port: net.pair(4, port) for port in (4000, 4001)}
            for here, there in ends.values():
                here.send(b"good")
                here.send(b"bad")
                assert receive(there) == [b"good"]
            assert end(two)["verdicts"] == {"accept": 1, "drop": 1}
            assert {x["dport"] for x in records(two)[:-1]} == {4001}
            here, there = ends[4000]
            here.send(b"goes on")
            assert receive(there) == [b"goes on"]
        assert end(one)["verdicts"] == {"accept": 2, "drop": 1}
        assert {x["dport"] for x in records(one)[:-1]} == {4000}
    assert leftovers(net.server) == []


def test_two_that_exclude_each_other(net: Net) -> None:
    """The same queue, or the same bits of the mark, are refused while the first one runs."""
    with Session(net.server, "--quiet") as one:
        one.placed()
        before = leftovers(net.server)
        (worker,) = one.workers()
        name = Path(f"/proc/{worker}/comm").read_text().strip()
        code, _, said = once(net.server)
        assert code == 4
        assert f"queue 0 is taken: {name} (process {worker}) is bound to it" in said
        assert "hint: queue 1 is free" in said
        code, _, said = once(net.server, "--queue", "1")
        assert code == 4
        assert "uses bits of the same mark (0x3000)" in said
        assert "hint: mask 0x30000000 is free" in said
        assert once(net.server, "--clean")[:2] == (0, "nothing is left of earlier runs\n")
        assert leftovers(net.server) == before
        assert one.end() == 0


# --- which packets ------------------------------------------------------------------------------


def test_only_what_matches(net: Net) -> None:
    """The kernel sorts out the others: what does not match is not even counted."""
    with Session(net.server, "--json", "--match", "-p udp --dport 4000:4001 -s 192.0.2.66") as one:
        one.placed(family=4)
        assert "IPv6 is not inspected" in records(one)[0]["text"]
        there = [net.udp(net.server, 4, SERVER[4], port) for port in (4000, 4001, 4002)]
        for source in ("192.0.2.10", "192.0.2.66"):
            here = net.udp(net.client, 4, source)
            for port in (4000, 4001, 4002):
                here.sendto(source.encode(), (SERVER[4], port))
        assert [len(receive(sock)) for sock in there] == [2, 2, 2]
        found = end(one)
        assert found["packets"] == 2
        packets = [x for x in records(one) if "event" not in x]
        assert [(x["source"], x["dport"]) for x in packets] == [
            ("192.0.2.66", 4000), ("192.0.2.66", 4001),
        ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_several_chains(net: Net, family: int) -> None:
    """A packet is seen in each chain that is named: by --chain again, or after a comma."""
    words = ["--json", "-c", "PREROUTING,FORWARD", "-c", "POSTROUTING", *MATCH]
    with Session(net.router, *words) as session:
        session.placed()
        here, there = net.pair(family)
        here.send(b"through")
        assert there.recv(100) == b"through"
        seen = [json.loads(line) for line in session.shown(3)]
        assert [(x["chain"], x.get("in"), x.get("out")) for x in seen] == [
            ("PREROUTING", "wan0", None),
            ("FORWARD", "wan0", "lan0"),
            ("POSTROUTING", "wan0", "lan0"),
        ]
        assert end(session)["packets"] == 3


def test_the_help_needs_nothing() -> None:
    """--help says what there is, whoever asks."""
    argv = [sys.executable, "-m", "nfctl", "inspect", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    for word in ("--match", "--rules", "--handler", "--read", "Without root"):
        assert word in done.stdout
