"""How ``nfctl inspect`` begins and ends: whatever comes, the tables are as they were."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.kernel import netns
from tests.kernel.conftest import NFCTL, SLOWNESS
from tests.kernel.inspect_session import (
    AWAITED,
    Session,
    Terminal,
    alone,
    gone,
    leftovers,
    load,
    once,
    saved,
    wait_for,
)  # fmt: skip
from tests.kernel.inspecting import PORT, SERVER, network, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.lab import Host
    from tests.kernel.inspecting import Net

pytestmark = pytest.mark.kernel

# Rules of somebody else, with counters.
FOREIGN: Final = """\
*mangle
:PREROUTING ACCEPT [1:100]
:INPUT ACCEPT [2:200]
:FORWARD ACCEPT [3:300]
:OUTPUT ACCEPT [4:400]
:POSTROUTING ACCEPT [5:500]
:WEB - [0:0]
[6:600] -A INPUT -p tcp -m tcp --dport 80 -j WEB
[7:700] -A INPUT -p sctp -m comment --comment "nfctl inspect 5" -j ACCEPT
[8:800] -A WEB -j RETURN
COMMIT
*filter
:INPUT ACCEPT [10:1000]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[11:1100] -A INPUT -s 192.0.2.77/32 -j DROP
COMMIT
"""
FOREIGN6: Final = FOREIGN.replace("192.0.2.77/32", "2001:db8::77/128")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Binds a queue as libnetfilter_queue does, and holds it until it gets a line.
LISTENER: Final = """
import netfilterqueue, sys
queue = netfilterqueue.NetfilterQueue()
queue.bind(int(sys.argv[1]), lambda packet: packet.accept())
print("bound", flush=True)
sys.stdin.readline()
"""
# Holds the xtables lock until it gets a line.
HOLDER: Final = """
import fcntl, sys
file = open("/run/xtables.lock", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def host() -> Iterator[Host]:
    """Make a host with rules of somebody else in both families."""
    with alone() as made:
        load(made, FOREIGN, "iptables-legacy-restore")
        load(made, FOREIGN6, "ip6tables-legacy-restore")
        yield made


@pytest.fixture
def net() -> Iterator[Net]:
    with network() as made:
        yield made


@contextlib.contextmanager
def helper(host: Host, script: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script that says when it is ready, for the block."""
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", script, *words]
    with host.popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.communicate("\n", timeout=AWAITED)


@contextlib.contextmanager
def local(host: Host) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Make a UDP socket that is connected to another, both at 127.0.0.1."""
    with netns.entered(host.namespace):
        here = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here, there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        there.settimeout(AWAITED)
        there.bind(("127.0.0.1", PORT))
        here.connect(("127.0.0.1", PORT))
        yield here, there


def others(host: Host) -> list[str]:
    """Return all rules and chains with their counters; not the policies, which count all."""
    return [line for line in saved(host, "-c").splitlines() if " ACCEPT [" not in line]


def report(text: str) -> dict[str, Any]:
    """Return the record that ends JSON output, which has to be the last line."""
    lines = text.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    assert [json.loads(line).get("event") for line in lines].count("end") == 1
    assert found["event"] == "end"
    return found


# --- the usual ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_it(host: Host, number: signal.Signals) -> None:
    """At each signal that asks: exit code 0, the report, no worker, all tables as they were."""
    before = others(host)
    with Session(host, "--match", "-p udp --dport 4000") as session, local(host) as (here, there):
        session.placed()
        here.send(b"seen")
        assert there.recv(100) == b"seen"
        session.shown(1)
        (worker,) = session.workers()
        assert session.end(number) == 0
        assert session.errors().startswith("nfctl: 1 packet, 32 bytes in ")
        assert session.errors().endswith(" s: 1 accepted\n")
        assert gone(worker)
        here.send(b"not seen")
        assert there.recv(100) == b"not seen"
        assert len(session.lines()) == 1
    assert others(host) == before


def test_nohup(host: Host) -> None:
    """A signal that was to be ignored is, as nohup(1) has it with SIGHUP; others end it."""
    with Session(host, "--json", before=["nohup"]) as session, local(host) as (here, there):
        session.placed()
        assert session.workers()
        os.kill(session.process.pid, signal.SIGHUP)
        here.send(b"seen")
        assert there.recv(100) == b"seen"
        session.shown(1)
        assert session.end(signal.SIGTERM) == 0
        assert report(session.output())["ended_by"] == "SIGTERM"


def test_without_traffic_not_a_counter_changes(host: Host) -> None:
    """What iptables-save -c prints before and after a run is the same to the last byte."""
    before = saved(host, "-c")
    with Session(host, "--chain", "INPUT,OUTPUT,FORWARD", "--offload") as session:
        session.placed()
        assert saved(host, "-c") != before
        assert session.end() == 0
        assert session.errors().startswith("nfctl: 0 packets in ")
    assert saved(host, "-c") == before


def test_ctrl_c_on_a_terminal(net: Net) -> None:
    """Ctrl-C, typed, ends it with its report."""
    with Terminal() as terminal, Session(net.server, **terminal.options()) as session:
        session.placed()
        here, there = net.pair(4)
        here.send(b"seen")
        assert there.recv(100) == b"seen"
        terminal.until(f"> {SERVER[4]}:{PORT}")
        terminal.type("\x03")
        assert session.wait() == 0
        assert "1 accepted" in terminal.written(0.01).splitlines()[-1]
    assert leftovers(net.server) == []


@pytest.mark.parametrize("workers", [1, 3])
def test_count(net: Net, workers: int) -> None:
    """--count shows exactly so many of the packets, however many came at once, to all workers."""
    words = ["--count", "7", "--workers", str(workers), "--match", "-p udp --dport 4000"]
    with Session(net.server, *words) as session:
        session.placed()
        there = net.udp(net.server, 4, SERVER[4], PORT)
        for burst in range(3):
            for number in range(40):
                net.udp(net.client, 4).sendto(b"%d" % (burst * 40 + number), (SERVER[4], PORT))
        assert session.wait() == 0
        assert len(session.lines()) == 7
        assert len(receive(there)) == 120
    assert leftovers(net.server) == []


def test_count_without_a_line(net: Net) -> None:
    """With --quiet, --count counts what is not shown; the JSON document says what ended it."""
    with Session(net.server, "--quiet", "--json", "--count", "2") as session:
        session.placed()
        here, there = net.pair(4)
        for _ in range(3):
            here.send(b"x")
        assert session.wait() == 0
        (line,) = session.lines()
        assert json.loads(line)["ended_by"] == "count"
        assert json.loads(line)["packets"] in {2, 3}
        assert len(receive(there)) == 3


def test_duration(host: Host) -> None:
    """--duration ends it after the time, and says so."""
    started = time.monotonic()
    code, out, _ = once(host, "--duration", "1s", "--json")
    assert time.monotonic() - started < 1 + 3 * SLOWNESS
    found = report(out)
    assert code == 0
    assert found["ended_by"] == "duration"
    assert 1 <= found["seconds"] < 1 + 2 * SLOWNESS
    assert leftovers(host) == []


READ: Final = [[], ["--json"], ["--show", "hex"], ["--top"], ["--top", "--json"]]


@pytest.mark.parametrize("words", READ, ids=str)
def test_a_reader_that_leaves(net: Net, words: list[str]) -> None:
    """When nobody reads any more (| head -1), it ends, and no packet was lost for it."""
    with Session(net.server, *words, stdout=subprocess.PIPE) as session:
        session.placed()
        here, there = net.pair(4)
        here.send(b"0")
        assert session.process.stdout is not None
        assert session.process.stdout.readline()
        session.process.stdout.close()
        sent = 1
        give_up = time.monotonic() + AWAITED
        while not session.over:
            assert time.monotonic() < give_up
            here.send(b"%d" % sent)
            sent += 1
            select.select([], [], [], 0.005)
        assert session.wait() == 0
        assert receive(there) == [b"%d" % number for number in range(sent)]
        assert "error" not in session.errors()
    assert leftovers(net.server) == []


def test_a_terminal_that_goes(net: Net) -> None:
    """A terminal that is closed (SIGHUP) ends it like a signal."""
    terminal = Terminal()
    with Session(net.server, **terminal.options()) as session:
        session.placed()
        os.close(terminal.slave)
        os.close(terminal.master)
        assert session.wait() == 0
    assert leftovers(net.server) == []


def test_a_stream_survives_the_end(net: Net) -> None:
    """Begun before, inspected, and going on behind it: not a byte of a stream is lost."""
    here, there = net.stream(4)
    data = random.Random(1).randbytes(6 << 20)
    with Session(net.server, "--quiet") as session:
        sending = Sending(here, there, data)
        sending.until(1 << 20)
        session.placed()
        sending.until(3 << 20)
        os.killpg(session.process.pid, signal.SIGINT)
        sending.until(len(data))
        assert session.wait() == 0
        assert sending.got == data
        assert "packets" in session.errors()


class Sending:
    """Data under way on a stream, step by step."""

    def __init__(self, here: socket.socket, there: socket.socket, data: bytes) -> None:
        here.setblocking(False)
        there.setblocking(False)
        self.here, self.there = here, there
        self.left, self.got = memoryview(data), bytearray()

    def until(self, size: int) -> None:
        """Go on until so many bytes have arrived."""
        __tracebackhide__ = True
        while len(self.got) < size:
            writing = [self.here] if self.left else []
            readable, writable, _ = select.select([self.there], writing, [], AWAITED)
            assert readable or writable, f"{len(self.got)} of {size} bytes arrived"
            if writable:
                self.left = self.left[self.here.send(self.left[: 1 << 18]) :]
            if readable:
                self.got += self.there.recv(1 << 18)


# --- what is killed -----------------------------------------------------------------------------


def test_killed_under_a_stream(net: Net) -> None:
    """SIGKILL while a stream runs: it goes on and loses nothing, and --clean removes the rest."""
    load(net.server, FOREIGN, "iptables-legacy-restore")
    load(net.server, FOREIGN6, "ip6tables-legacy-restore")
    before = others(net.server)
    here, there = net.stream(4)
    data = random.Random(2).randbytes(12 << 20)
    with Session(net.server, "--quiet") as session:
        session.placed()
        (worker,) = session.workers()
        sending = Sending(here, there, data)
        sending.until(3 << 20)
        figures = net.figures(net.server)
        assert figures is not None
        assert figures.last_id > 10
        session.process.kill()
        session.process.wait()
        sending.until(len(data))
        assert sending.got == data
        wait_for(lambda: gone(worker))
    assert len(leftovers(net.server)) == 2 * 7
    code, out, _ = once(net.server, "--clean")
    assert code == 0
    assert out == "".join(
        f"removed table mangle (IPv{family}): 1 rule, chain NFCTL-INSPECT-0, "
        "chain NFCTL-VERDICT-0\n"
        for family in (4, 6)
    )
    assert others(net.server) == before
    assert once(net.server, "--clean")[:2] == (0, "nothing is left of earlier runs\n")


def test_killed_under_datagrams(net: Net) -> None:
    """SIGKILL between datagrams that come all the time: not one of them is lost."""
    here, there = net.pair(4)
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    with Session(net.server, "--quiet") as session:
        session.placed()
        (worker,) = session.workers()
        sent = 0
        give_up = time.monotonic() + AWAITED
        while not gone(worker):
            assert time.monotonic() < give_up
            if sent == 2000:
                session.process.kill()
            here.send(b"%d" % sent)
            sent += 1
        assert sent > 2000
        here.send(b"%d" % sent)
        # those that waited at that moment come behind those that did not have to
        assert sorted(map(int, receive(there))) == list(range(sent + 1))
        session.process.wait()


def test_the_next_run_cleans_up(net: Net) -> None:
    """A run, even of another queue, says that it takes out what a killed one has left."""
    with Session(net.server, "--queue", "3") as session:
        session.placed(3)
        (worker,) = session.workers()
        session.process.kill()
        wait_for(lambda: gone(worker))
    assert leftovers(net.server)
    with Session(net.server, "--queue", "4") as session:
        session.placed(4)
        assert not any("-3" in line for line in leftovers(net.server))
        assert session.errors() == (
            "nfctl: what an inspection of queue 3 left behind was taken out\n"
        )
        session.end()
    assert leftovers(net.server) == []


def test_a_worker_that_is_killed(net: Net) -> None:
    """SIGKILL of the worker: the rules go, exit code 1 and why; a stream goes on."""
    here, there = net.stream(4)
    data = random.Random(3).randbytes(6 << 20)
    with Session(net.server, "--quiet") as session:
        session.placed()
        sending = Sending(here, there, data)
        sending.until(1 << 20)
        (worker,) = session.workers()
        os.kill(worker, signal.SIGKILL)
        sending.until(len(data))
        assert sending.got == data
        assert session.wait() == 1
        said = session.errors().splitlines()
        assert said[-2:] == [
            "nfctl: error: the worker of queue 0 was ended by signal 9",
            "  hint: the rules were taken out; traffic passes",
        ]
    assert leftovers(net.server) == []


def test_one_worker_of_three_is_killed(net: Net) -> None:
    """The others end in good order, and their figures are in the report."""
    with Session(net.server, "--json", "--workers", "3") as session:
        session.placed()
        there = net.udp(net.server, 4, SERVER[4], PORT)
        for _ in range(60):
            net.udp(net.client, 4).sendto(b"x", (SERVER[4], PORT))
        session.shown(60)
        workers = session.workers()
        os.kill(workers[1], signal.SIGKILL)
        assert session.wait() == 1
        assert "the worker of queue 1 was ended by signal 9" in session.errors()
        found = report(session.output())
        assert found["ended_by"] == "worker"
        assert 0 < found["packets"] <= 60
        assert all(map(gone, workers))
        assert len(receive(there)) == 60
    assert leftovers(net.server) == []


def test_stopped(net: Net) -> None:
    """Ctrl-Z stops what reports, and never what decides: traffic goes on for as long as it takes.

    A thousand reports that nobody reads are far more than fit between the two processes.
    """
    rules = "rules: [{verdict: accept, log: true}]"
    here, there = net.pair(4)
    with Session(net.server, "--quiet", "--rules", "-", text=rules) as session:
        session.placed()
        os.kill(session.process.pid, signal.SIGSTOP)
        for number in range(1000):
            here.send(b"%d" % number)
            assert there.recv(100) == b"%d" % number
        os.kill(session.process.pid, signal.SIGCONT)
        assert session.end() == 0
        assert "nfctl: decided by rule 1 1,000" in session.errors()


# --- what prevents a beginning ------------------------------------------------------------------

NO_USER = """\
nfctl: error: there is no user 'nemo'
  hint: getent passwd lists them; a number may be one as well
"""
BAD_PORT = """\
nfctl: error: match:1:8: Port "x" does not resolve to anything.
  -p udp --dport x
         ^
"""
REFUSED: Final = {
    "a match that is none": (["--match", "-p udp --dport x"], 2, BAD_PORT),
    "a target": (["--match", "-p udp -j DROP"], 2, "match:1:8: a match says which packets"),
    "an unknown user": (["--user", "nemo"], 2, NO_USER),
    "a handler that is not there": (["--handler", "no.such:thing"], 2, 'no module "no"'),
    "a handler of others": (["--handler", "/run/x.py:f"], 2, "/run/x.py may be written by anyone"),
    "a namespace that is not there": (["--netns", "nope"], 2, "no network namespace 'nope'"),
    "rules that are none": (["--rules", "-"], 2, "<stdin>:1"),
    "no directory": (["--write", "/nowhere/x.pcapng"], 2, 'cannot write to "/nowhere"'),
    "a device": (["--write", "/run/x.pcapng"], 2, '"x.pcapng" is there already and is no plain'),
    "a chain": (["--chain", "WEB"], 2, "table mangle has no built-in chain 'WEB'"),
    "a policy": (["--chain", "FORWARD"], 2, "the policy of FORWARD in table mangle (IPv6) is DROP"),
    "queues": (["--queue", "65534", "--workers", "3"], 2, "cannot be 3 queues from 65534 on"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_nothing_begins(host: Host, case: str) -> None:
    """What cannot be leaves every table as it was, and says where the fault is."""
    words, code, text = REFUSED[case]
    if case == "a policy":
        host.call(["ip6tables-legacy", "-t", "mangle", "-P", "FORWARD", "DROP"])
    (host.directory / "x.pcapng").symlink_to("/dev/full")
    (host.directory / "x.py").write_text("def f(packet): packet.drop()")
    (host.directory / "x.py").chmod(0o666)
    before = saved(host, "-c")
    found = once(host, *words, text="rules: [{verdict: perhaps}]" if "--rules" in words else "")
    assert found[:2] == (code, "")
    assert text in found[2]
    assert "Traceback" not in found[2]
    assert saved(host, "-c") == before


def test_a_queue_that_is_taken(host: Host) -> None:
    """NetfilterQueue has the queue: exit code 4, the process is named, and a queue that is free."""
    before = saved(host, "-c")
    with helper(host, LISTENER, "1") as other:
        code, _, said = once(host, "--queue", "0", "--workers", "2")
        name = Path(f"/proc/{other.pid}/comm").read_text().strip()
        assert code == 4
        assert f"queue 1 is taken: {name} (process {other.pid}) is bound to it" in said
        assert "hint: queues 2 to 3 are free" in said
        assert saved(host, "-c") == before
    with Session(host, "--queue", "1") as session:
        session.placed(1)
        assert session.end() == 0


def test_not_root(host: Host) -> None:
    """Root without CAP_NET_ADMIN, as in a container, is told what is missing: exit code 3."""
    before = saved(host, "-c")
    drop = "ctypes.CDLL(None).prctl(24, 12, 0, 0, 0)"  # PR_CAPBSET_DROP: gone after execve(2)
    script = f"import ctypes, os, sys; {drop}; os.execv(sys.argv[1], sys.argv[1:])"
    for words in ([], ["--clean"], ["--json", "--queue", "3"]):
        argv = [sys.executable, "-c", script, *NFCTL, "inspect", *words]
        pipe = subprocess.PIPE
        with host.popen(argv, stdout=pipe, stderr=pipe, text=True) as process:
            out, said = process.communicate(timeout=AWAITED)
        assert (process.returncode, out) == (3, "")
        assert "CAP_NET_ADMIN" in said
    assert saved(host, "-c") == before


def test_the_lock(host: Host) -> None:
    """Another program holds the xtables lock: exit code 4, and the tables are as they were."""
    before = saved(host, "-c")
    with helper(host, HOLDER):
        code, _, said = once(host, "--wait", "0")
        assert code == 4
        assert "xtables" in said
    assert saved(host, "-c") == before


def test_the_lock_at_the_end(host: Host) -> None:
    """The lock cannot be had at the end: exit code 4, and how to remove the rules later."""
    before = saved(host, "-c")
    with Session(host, "--wait", "0.1") as session:
        session.placed()
        with helper(host, HOLDER):
            assert session.end() == 4
            said = session.errors()
            assert said.startswith("nfctl: 0 packets in ")
            assert "the rules of the inspection are still there: the xtables lock" in said
            assert "hint: traffic passes; nfctl inspect --clean removes them" in said
            assert leftovers(host)
    assert once(host, "--clean")[0] == 0
    assert saved(host, "-c") == before


def test_a_policy_that_becomes_drop(net: Net) -> None:
    """A policy of DROP, set meanwhile, ends the run: it would let in what the policy drops."""
    with Session(net.server, "--json") as session:
        session.placed()
        net.legacy(net.server, "-t", "mangle", "-P", "INPUT", "DROP")
        assert session.wait() == 4
        assert report(session.output())["ended_by"] == "error"
        assert "the policy of INPUT in table mangle (IPv4) is DROP" in session.errors()
    assert leftovers(net.server) == []


def test_tables_that_were_not_there() -> None:
    """Where there was no table, none has a rule or chain behind a run."""
    with alone() as host:
        assert saved(host) == ""
        assert once(host, "--duration", "1s")[0] == 0
        assert {line.split()[0] for line in saved(host).splitlines()} == {
            "*mangle", "COMMIT", ":PREROUTING", ":INPUT", ":FORWARD", ":OUTPUT", ":POSTROUTING",
        }  # fmt: skip
