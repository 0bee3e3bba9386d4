"""Labs that stand: they outlive their maker, and nothing of them outlives ``down``.

Each test has a machine of its own: a network namespace with an empty /run.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import pytest

from nfctl.errors import AnswerNo, BadInput, Locked, NfctlError, Where
from nfctl.lab import Lab, Verdict, fork, namespaces, records, standing, sweep, syscalls, traffic
from nfctl.lab.records import STANDING, Owner, Record
from nfctl.lab.standing import State
from nfctl.lab.topology import RulesPlan, ServicesPlan
from nfctl.lab.wiring import load_messages
from tests.kernel.test_lab_links import WRONG, router, switched

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
]

P = ParamSpec("P")

PATIENCE = 120  # seconds, far above what the slowest test needs
_PR_SET_CHILD_SUBREAPER = 36
# The names of the machine below are out of sight, and come and go without us.
_MACHINE = """
    ip link set lo up
    mount --make-rslave /
    while umount -l /run/netns 2>/dev/null; do :; done
    mount -t tmpfs -o mode=755 tmpfs /run
"""
SERVED = ServicesPlan(tcp=(7,), http=(80,), udp=(53,))


def left() -> list[str]:
    """Return every trace of a lab on this machine: names, mounts, files, and our children."""
    found = namespaces.names()
    with contextlib.suppress(FileNotFoundError):
        found += os.listdir(records.DIRECTORY)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if "nfctl-" in line]
    # Orphans become children of this process, see below; what was killed may take a moment.
    for child in _children():
        descriptor = os.pidfd_open(child)
        if select.select([descriptor], [], [], 2)[0]:
            os.waitpid(child, 0)
        else:
            found.append(Path(f"/proc/{child}/cmdline").read_text())
        os.close(descriptor)
    return found


def _children() -> list[int]:
    return [*map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]


def on_a_machine(test: Callable[P, None]) -> Callable[P, None]:
    """Run a test in a child that has a machine of its own, and is the parent of all orphans."""

    def inside(*args: P.args, **kwargs: P.kwargs) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
        subprocess.run(["sh", "-ec", _MACHINE], check=True)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            test(*args, **kwargs)
        finally:  # what a test that failed has left; a killed one's children become ours
            while children := _children():
                for child in children:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)

    @functools.wraps(test)
    def outside(*args: P.args, **kwargs: P.kwargs) -> None:
        fork.call(partial(inside, *args, **kwargs), timeout=PATIENCE)

    return outside


def spawn(function: Callable[[], object]) -> int:
    """Run a function in a child, which ends with 0 if it returned; return its process id."""
    with fork.fork_is_safe():
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with contextlib.suppress(NfctlError):
                function()
                code = 0
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def reaches(lab: standing.Standing) -> bool:
    answer = lab.hosts["client"].run(traffic.ping, "10.77.0.10")
    return answer.verdict is Verdict.ACCEPTED


# --- up and down ----------------------------------------------------------------------------------


@on_a_machine
def test_a_lab_outlives_its_maker() -> None:
    """What one program made another finds, uses and removes; then nothing is left."""
    assert exit_code(spawn(lambda: standing.up(router(services=SERVED)))) == 0
    lab = standing.find("router")
    assert [each.name for each in (standing.find(), *standing.labs())] == ["router", "router"]
    assert (lab.name, lab.state) == ("router", State.UP)
    assert lab.topology == router(services=SERVED)
    assert list(lab.hosts) == ["client", "router", "server"]
    assert abs(time.time() - lab.since) < 60
    assert reaches(lab)
    for probe, port in ((traffic.tcp, 7), (traffic.http, 80), (traffic.udp, 53)):
        assert lab.hosts["client"].run(probe, "10.77.0.10", port).verdict is Verdict.ACCEPTED
    assert lab.hosts["client"].call(["getent", "hosts", "server.lab"]).split()[1] == "server.lab"
    lab.hosts["client"].route("198.51.100.0/24", via="192.0.2.1")
    assert "198.51.100.0/24" in lab.hosts["client"].call(["ip", "route"])
    sweep()
    assert standing.find().state is State.UP
    standing.down("router")
    assert left() == []


@on_a_machine
def test_ip_netns_knows_the_hosts() -> None:
    """ip-netns(8) lists and enters the hosts; a switch is there, and goes with its lab."""
    standing.up(switched("one", "two", "three"), "mine")
    done = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"nfctl-mine-one", "nfctl-mine-two", "nfctl-mine-three"} < names
    assert len(names) == 4
    assert list(standing.find("mine").hosts) == ["one", "two", "three"]
    argv = ["ip", "netns", "exec", "nfctl-mine-one", "cat", "/proc/net/dev"]
    assert "eth0" in subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    standing.down("mine")
    assert left() == []


@on_a_machine
def test_questions_without_a_lab() -> None:
    """Where no lab is up the answer is no; where several are the name has to be said."""
    assert standing.labs() == []
    for question in (standing.find, lambda: standing.find("x"), lambda: standing.down("x")):
        with pytest.raises(AnswerNo):
            question()
    with pytest.raises(BadInput, match="no name for a lab"):
        standing.down("../labs")
    standing.up(switched("one", "two"), "first")
    standing.up(switched("one", "two"), "second")
    with pytest.raises(BadInput, match="which lab") as caught:
        standing.find()
    assert "first, second" in caught.value.hint
    with pytest.raises(AnswerNo, match="first, second"):
        standing.find("third")
    standing.down("first")
    assert [lab.name for lab in standing.labs()] == ["second"]
    standing.down("second")
    assert left() == []


@on_a_machine
def test_the_second_up_is_refused() -> None:
    """A lab that is up stays as it is when somebody makes one of the same name."""
    lab = standing.up(router())
    before = left()
    with pytest.raises(BadInput, match='"router" is up already') as caught:
        standing.up(router())
    assert "nfctl lab down router" in caught.value.hint
    assert "--name" in caught.value.hint
    assert left() == before
    assert reaches(lab)
    standing.up(router(), "another")
    assert reaches(standing.find("another"))
    standing.down("router")
    assert reaches(standing.find("another"))
    standing.down("another")
    assert left() == []


@on_a_machine
def test_one_of_many_ups_wins() -> None:
    """Of six programs that make the same lab at once one does, and it works."""
    load_messages()
    for _ in range(3):
        makers = [spawn(lambda: standing.up(router())) for _ in range(6)]
        assert sorted(exit_code(maker) for maker in makers) == [0, 1, 1, 1, 1, 1]
        lab = standing.find("router")
        assert lab.state is State.UP
        assert reaches(lab)
        standing.down("router")
        assert left() == []


@on_a_machine
def test_up_and_down_at_once() -> None:
    """Programs that make and remove the same lab at once never leave half of one."""
    load_messages()

    def often(function: Callable[[], object]) -> None:
        for _ in range(15):
            with contextlib.suppress(BadInput, AnswerNo, Locked):
                function()

    plan = switched("one", "two")
    makers = [spawn(lambda: often(lambda: standing.up(plan))) for _ in range(2)]
    removers = [spawn(lambda: often(lambda: standing.down("switched"))) for _ in range(2)]
    assert [exit_code(pid) for pid in makers + removers] == [0] * 4
    for lab in standing.labs():
        assert lab.state is State.UP
        assert lab.hosts["one"].run(traffic.ping, "192.0.2.2").verdict is Verdict.ACCEPTED
        standing.down(lab.name)
    assert left() == []


@pytest.mark.parametrize("case", WRONG)
@on_a_machine
def test_a_wrong_topology_leaves_nothing(case: str) -> None:
    """A lab that cannot be made is not there at all, and its name is free."""
    with pytest.raises(NfctlError):
        standing.up(WRONG[case][0], "router")
    assert left() == []


# --- killed ---------------------------------------------------------------------------------------


def moments(number: int, longest: float) -> list[float]:
    """Return moments in seconds, spread over all of what is killed, a little at random."""
    draw = random.Random(number)
    return [longest * (step + draw.random()) / number for step in range(number)]


def wait_begun(reader: int) -> None:
    assert select.select([reader], [], [], 20)[0]
    os.read(reader, 1)


def killed(function: Callable[[], object], number: signal.Signals, moment: float) -> int:
    """Run a function in a child that gets a signal after ``moment`` seconds; say how it ended."""
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"+")
        function()

    pid = spawn(child)
    try:
        wait_begun(reader)
        time.sleep(moment)  # the moment is what is tried out: there is no event
        os.kill(pid, number)
        return exit_code(pid)
    finally:
        os.close(reader)
        os.close(writer)


def duration(function: Callable[[], object]) -> float:
    started = time.monotonic()
    assert exit_code(spawn(function)) == 0
    return time.monotonic() - started


@on_a_machine
def test_down_after_sigkill() -> None:
    """SIGKILL at 30 moments of ``up``: the lab is up or broken, and ``down`` removes all of it."""
    load_messages()
    plan = router(services=SERVED)
    longest = 1.2 * duration(lambda: standing.up(plan))
    standing.down("router")
    states: set[State] = set()
    for moment in moments(30, longest):
        killed(lambda: standing.up(plan), signal.SIGKILL, moment)
        found = standing.labs()
        states.update(lab.state for lab in found)
        if found:
            standing.down("router")
        assert left() == []
    assert State.BROKEN in states


@on_a_machine
def test_the_next_lab_after_sigkill() -> None:
    """What SIGKILL left of ``up`` or of a lab in a block is gone when anybody begins the next."""
    load_messages()
    plan = switched("one", "two")

    def block() -> None:
        with Lab("victim") as lab:
            lab.build(plan)

    longest = duration(block)
    for number, moment in enumerate(moments(20, longest)):
        killed(block if number % 2 else lambda: standing.up(plan), signal.SIGKILL, moment)
        for lab in standing.labs():
            if lab.state is State.UP:
                standing.down(lab.name)
        with Lab("next"):
            assert all(name.startswith("next") for name in os.listdir(records.DIRECTORY))
        assert left() == []


@on_a_machine
def test_up_after_sigkill() -> None:
    """A broken lab is in nobody's way: the next ``up`` of that name removes it first."""
    load_messages()
    plan = router(services=SERVED)
    longest = duration(lambda: standing.up(plan))
    standing.down("router")
    for moment in moments(8, longest):
        killed(lambda: standing.up(plan), signal.SIGKILL, moment)
        if not standing.labs() or standing.find("router").state is State.BROKEN:
            standing.up(plan)
        assert reaches(standing.find("router"))
        standing.down("router")
        assert left() == []


def interrupt(_number: int, frame: FrameType | None) -> None:
    """Answer Ctrl-C as Python does, but only while a lab is made; before and after that, end."""
    while frame is not None:
        if frame.f_code is standing.up.__code__:
            raise KeyboardInterrupt
        frame = frame.f_back
    os._exit(0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@on_a_machine
def test_a_signal_ends_up(number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM or SIGHUP while a lab is made: nothing stays, unless it was up already."""
    load_messages()
    plan = router(services=SERVED)

    def up() -> None:
        signal.signal(signal.SIGINT, interrupt)
        standing.up(plan)

    longest = duration(up)
    standing.down("router")
    for moment in moments(10, longest):
        code = killed(up, number, moment)
        # Ended otherwise than by an exception: before it began, or when it was done.
        if code <= 0 and standing.labs():
            assert standing.find("router").state is State.UP
            standing.down("router")
        assert left() == []


@on_a_machine
def test_down_that_is_killed_goes_on() -> None:
    """SIGKILL in the middle of ``down``: the lab is up, broken or gone, and can be removed."""
    load_messages()
    plan = router(services=SERVED)
    standing.up(plan)
    longest = duration(lambda: standing.down("router"))
    for number, moment in enumerate(moments(10, longest)):
        standing.up(plan)
        killed(lambda: standing.down("router"), signal.SIGKILL, moment)
        sweep()
        found = standing.labs()
        assert [lab.state for lab in found] in ([], [State.UP])
        if found and number % 2:
            assert reaches(found[0])
        if found:
            standing.down("router")
        assert left() == []


# --- broken ones ----------------------------------------------------------------------------------


def note_of(lab: str) -> Path:
    return Record(lab, STANDING).path / "lab.json"


@on_a_machine
def test_a_maker_elsewhere_is_not_judged() -> None:
    """A lab whose maker lives, or lived where we cannot see, is not swept, but can be removed."""
    standing.up(router())
    note = json.loads(note_of("router").read_text())
    mine = Owner.me()
    makers = {
        mine: State.MAKING,
        mine._replace(pid_namespace=1): State.MAKING,
        mine._replace(start=1): State.BROKEN,
    }
    for maker, state in makers.items():
        Record("router", STANDING).write_note(note | {"complete": False, "maker": maker})
        assert standing.find("router").state is state
        if state is State.MAKING:
            assert sweep() == []
            with pytest.raises(BadInput, match="being made"):
                standing.up(router())
            assert len(namespaces.names()) == 3
    Record("router", STANDING).write_note(note)
    with pytest.raises(BadInput, match="up already"):
        standing.up(router())
    Record("router", STANDING).write_note(note | {"complete": False, "maker": mine})
    with pytest.raises(Locked, match="being made"):
        standing.down("router")
    elsewhere = mine._replace(pid_namespace=1)
    Record("router", STANDING).write_note(note | {"complete": False, "maker": elsewhere})
    standing.down("router")
    assert left() == []


@pytest.mark.parametrize("lost", ["record", "note", "names", "one name", "sense"])
@on_a_machine
def test_a_lab_in_pieces_is_broken(lost: str) -> None:
    """A lab of which only a part is left is shown as broken and removed by ``down``."""
    standing.up(router(services=SERVED))
    if lost == "record":
        record = Record("router", STANDING).path
        subprocess.run(["umount", *filter(Path.is_mount, record.iterdir())], check=True)
        subprocess.run(["rm", "-r", record], check=True)
    elif lost == "note":
        note_of("router").unlink()
    elif lost == "sense":
        note_of("router").write_text("[")
    else:
        for name in namespaces.names()[: 1 if lost == "one name" else None]:
            namespaces.remove([name])
    (lab,) = standing.labs()
    assert (lab.name, lab.state) == ("router", State.BROKEN)
    standing.down("router")
    assert left() == []


@on_a_machine
def test_namespaces_of_others_are_spared() -> None:
    """Namespaces that are not a lab's, or another lab's, are never touched."""
    others = ["nfctl", "nfctl-", "nfctlx-lab-one", "lab", "nfctl-lab2-one", "other"]
    for name in others:
        subprocess.run(["ip", "netns", "add", name], check=True)
    standing.up(router(), "lab")
    sweep()
    with pytest.raises(AnswerNo):
        standing.down("nfctl")
    standing.down("lab")
    with Lab("lab") as lab:
        lab.build(router())
    assert sorted(os.listdir(namespaces.DIRECTORY)) == sorted(others)


@on_a_machine
def test_a_living_process_keeps_its_lab() -> None:
    """``down`` refuses a lab that belongs to a program, and does not list it."""
    with Lab("tests") as lab:
        lab.build(router())
        assert standing.labs() == []
        with pytest.raises(BadInput, match="belongs to the process"):
            standing.down(lab.id)
        with pytest.raises(BadInput, match="belongs to the process"):
            standing.up(router(), lab.id)
        assert lab["client"].run(traffic.ping, "10.77.0.10").verdict is Verdict.ACCEPTED


# --- what is in the way of down -------------------------------------------------------------------


@on_a_machine
def test_down_kills_what_runs_inside() -> None:
    """Programs in a host end with the lab, however they were started, and while more come in."""
    lab = standing.up(router(services=SERVED))
    host = lab.hosts["router"]
    detached = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(1000)"
    assert host.popen([sys.executable, "-c", detached]).wait(timeout=20) == 0
    stubborn = "trap '' TERM INT HUP; echo ready; sleep 1000 & wait"
    process = subprocess.Popen(
        ["ip", "netns", "exec", host.namespace, "sh", "-c", stubborn], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"

    def come_in() -> None:
        while True:
            host.popen(["sleep", "1000"])

    guests = spawn(come_in)  # until there is no way in any more
    standing.down("router")
    assert exit_code(guests) == 1
    assert process.wait(timeout=10) == -signal.SIGKILL
    process.stdout.close()
    assert left() == []


@on_a_machine
def test_rules_do_not_hold_a_lab() -> None:
    """Hosts that drop everything, in every table that can, come up and down like any other."""
    chains = {
        "filter": ("INPUT", "FORWARD", "OUTPUT"),
        "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
        "raw": ("PREROUTING", "OUTPUT"),
    }
    text = "".join(
        f"*{table}\n" + "".join(f":{chain} DROP [0:0]\n" for chain in names) + "COMMIT\n"
        for table, names in chains.items()
    )
    rules = (
        RulesPlan(4, text, Where("drop.yaml", 5, 7)),
        RulesPlan(6, text, Where("drop.v6", 1, 1)),
    )

    plan = router(services=SERVED)
    silent = {name: dataclasses.replace(host, rules=rules) for name, host in plan.hosts.items()}
    lab = standing.up(dataclasses.replace(plan, hosts=silent))
    for host in lab.hosts.values():
        for save in ("iptables-legacy-save", "ip6tables-legacy-save"):
            if "6" not in save or namespaces.has_ipv6():
                assert host.call([save]).count(" DROP [") == 10
    assert not reaches(lab)
    standing.down("router")
    assert left() == []


@on_a_machine
def test_interfaces_do_not_hold_a_lab() -> None:
    """A host whose interfaces were renamed, deleted or set down goes away like any other."""
    lab = standing.up(router())
    for words in ("set eth0 down", "set eth0 name other"):
        lab.hosts["client"].call(["ip", "link", *words.split()])
    lab.hosts["server"].call(["ip", "link", "del", "eth0"])
    lab.hosts["router"].call(["ip", "link", "add", "eth0", "type", "bridge"])
    assert standing.find("router").state is State.UP
    standing.down("router")
    assert left() == []


# --- many -----------------------------------------------------------------------------------------


@on_a_machine
def test_twenty_labs_at_once() -> None:
    """Twenty programs make the same network at once; in each the traffic is its own."""
    load_messages()

    def one(number: int) -> None:
        with Lab("tests") as lab:
            lab.build(router(sysctls={"net.ipv4.ip_default_ttl": str(100 + number)}))
            service = lab["server"].serve(tcp=[80])
            for _ in range(5):
                answer = lab["client"].run(traffic.http, "10.77.0.10")
                assert answer.verdict is Verdict.ACCEPTED
            assert len(service.arrivals()) == 5
            ttl = lab["server"].call(["sysctl", "-n", "net.ipv4.ip_default_ttl"])
            assert int(ttl) == 100 + number

    programs = [spawn(partial(one, number)) for number in range(20)]
    assert [exit_code(program) for program in programs] == [0] * 20
    assert left() == []


@on_a_machine
def test_a_program_of_its_own() -> None:
    """A fresh interpreter makes a lab and ends; another one removes it without pyroute2."""
    up = """
        from nfctl.lab import standing
        from nfctl.lab.topology import Topology
        standing.up(Topology.load("router"))
    """
    down = """
        import sys
        from nfctl.lab import standing
        standing.down("router")
        heavy = {"pyroute2", "yaml", "asyncio", "multiprocessing", "nfctl.lab.topology"}
        assert not heavy.intersection(sys.modules), heavy.intersection(sys.modules)
    """
    for code in (up, down):
        argv = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left() == []
