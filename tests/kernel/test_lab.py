"""The lab: nothing stays behind, and nobody is disturbed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.errors import BadInput
from nfctl.lab import Host, Lab, fork, namespaces, records, sweep, traffic

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
]

# A program that runs a lab, says its id and a process inside, and waits for what comes.
OWNER = """
    import os, signal, sys
    from nfctl.lab import Lab
    with Lab("victim") as lab:
        one, two = lab.host("one"), lab.host("two")
        lab.link(one.port("eth0", "192.0.2.1/24"), two.port("eth0", "192.0.2.2/24"))
        two.serve(tcp=[80])
        print(lab.id, one.popen(["sleep", "1000"]).pid, flush=True)
        signal.pause()
"""


def start_owner(code: str = OWNER) -> tuple[subprocess.Popen[str], str, int]:
    """Start a program that owns a lab; return it, the lab's id and a process in the lab."""
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    lab, pid = owner.stdout.readline().split()
    return owner, lab, int(pid)


def end(owner: subprocess.Popen[str], number: signal.Signals) -> int:
    owner.send_signal(number)
    code = owner.wait(timeout=20)
    assert owner.stdout is not None
    owner.stdout.close()
    return code


def left_of(lab: str) -> list[str]:
    """Return every trace of a lab: namespaces and files."""
    found = namespaces.names(f"nfctl-{lab}-")
    if records.DIRECTORY.exists():
        found += [path.name for path in records.DIRECTORY.iterdir() if path.name.startswith(lab)]
    return found


def runs(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pair(lab: Lab) -> tuple[Host, Host]:
    """Make two hosts with a link between them."""
    one, two = lab.host("one"), lab.host("two")
    lab.link(
        one.port("eth0", "192.0.2.1/24", "2001:db8::1/64"),
        two.port("eth0", "192.0.2.2/24", "2001:db8::2/64"),
    )
    return one, two


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with Lab("tests") as lab:
        yield pair(lab)


# What stays behind


def test_a_lab_leaves_nothing() -> None:
    """After the block namespaces, files and processes are gone, and the links are as before."""
    links, mounts = socket.if_nameindex(), Path("/proc/self/mounts").read_text()
    with Lab("tests") as lab:
        one, two = pair(lab)
        process = one.popen(["sleep", "1000"])
        two.serve(tcp=[80], udp=[53])
        assert len(left_of(lab.id)) == 3
        assert socket.if_nameindex() == links
    assert left_of(lab.id) == []
    assert process.returncode == -signal.SIGKILL
    assert socket.if_nameindex() == links
    after = Path("/proc/self/mounts").read_text()
    # The mount point that all named namespaces share is not the lab's to remove.
    assert [line for line in after.splitlines() if line not in mounts and lab.id in line] == []


def test_labs_leak_nothing_in_this_process() -> None:
    """A program that makes one lab after the other keeps no open file and no dead child."""

    def once() -> set[str]:
        with Lab("tests") as lab:
            one, two = pair(lab)
            two.serve(tcp=[80])
            one.worker().run(os.getpid)
            one.popen(["true"], stdout=subprocess.PIPE)
            one.run(traffic.tcp, "192.0.2.2", 80)
        return {path.name for path in Path("/proc/self/fd").iterdir()}

    first = once()
    handlers = [signal.getsignal(number) for number in fork.ENDING]
    assert once() == first
    assert handlers == [signal.getsignal(number) for number in fork.ENDING]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert [child for child in children if not runs(int(child))] == []


def test_processes_hold_only_their_own_lab() -> None:
    """No process of one lab keeps another lab's namespaces alive by a socket of them."""
    with Lab("tests") as first, Lab("tests") as second:
        sockets = {os.fstat(host.site.netlink.fileno()).st_ino for host in pair(first)}
        worker = second.host("one").worker()
        assert not sockets & fork.call(_inodes)
        assert not sockets & worker.run(_inodes)
        assert sockets <= _inodes()


def _inodes() -> set[int]:
    """Return the inodes of the calling process' open files."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory itself, closed by now
            found.add(os.fstat(int(name)).st_ino)
    return found


def test_a_host_that_is_gone_is_said_to_be() -> None:
    """Wiring a host after its lab has ended is refused in words."""
    with Lab("tests") as lab:
        one, two = pair(lab)
    with pytest.raises(BadInput, match="there is no network namespace"):
        one.route("default", via="192.0.2.2")
    with pytest.raises(BadInput, match="there is no network namespace"):
        lab.link(one.port("eth1"), two.port("eth1"))


def test_a_lab_leaves_nothing_after_an_exception() -> None:
    """An exception in the block goes through, and the namespaces are gone all the same."""
    lab = Lab("tests")

    def fail() -> None:
        with lab:
            pair(lab)
            assert len(left_of(lab.id)) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert left_of(lab.id) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_lab_leaves_nothing_after_a_signal(number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a lost terminal end the program, its lab and what runs inside."""
    owner, lab, inside = start_owner()
    assert len(left_of(lab)) == 3
    code = end(owner, number)
    assert code in {128 + number, -number}
    assert left_of(lab) == []
    assert not runs(inside)


def test_signals_while_a_lab_is_made_leave_nothing() -> None:
    """A signal at any moment of a lab's making, ten of them tried, leaves nothing behind."""
    code = """
        import os, sys
        from nfctl.lab import Lab
        lab = Lab("victim")
        print(lab.id, os.getpid(), flush=True)
        sys.stderr.close()
        with lab:
            for number in range(1000):
                host = lab.host(f"h{number}")
                host.popen(["sleep", "1000"])
                host.run(os.getpid)
    """
    for number in range(10):
        owner, lab, _ = start_owner(code)
        # The moment is what is tried out here; there is no event to wait for.
        time.sleep(0.2 + 0.017 * number)
        end(owner, signal.SIGINT if number % 2 else signal.SIGTERM)
        assert left_of(lab) == []


def test_sweep_removes_what_sigkill_left() -> None:
    """After SIGKILL the lab is still there; sweep removes it with the processes inside."""
    owner, lab, inside = start_owner()
    end(owner, signal.SIGKILL)
    assert len(left_of(lab)) == 3
    assert runs(inside)
    assert sweep(lab) == [lab]
    assert left_of(lab) == []
    assert not runs(inside)
    assert sweep(lab) == []


def test_the_next_lab_sweeps() -> None:
    """What SIGKILL left is removed when anybody begins the next lab."""
    owner, lab, _ = start_owner()
    end(owner, signal.SIGKILL)
    with Lab("tests"):
        assert left_of(lab) == []


def test_sweep_spares_the_living() -> None:
    """A lab whose owner lives is not swept, neither by another process nor by itself."""
    owner, lab, inside = start_owner()
    assert sweep(lab) == []
    assert fork.call(sweep, lab) == []
    assert len(left_of(lab)) == 3
    assert runs(inside)
    end(owner, signal.SIGTERM)


def test_sweep_spares_a_reused_process_id() -> None:
    """A living process with the owner's id but another start time does not keep a lab alive."""
    me = records.Owner.me()
    assert me.is_alive() is True
    assert me._replace(start=me.start + 1).is_alive() is False
    assert me._replace(pid_namespace=1).is_alive() is None


def test_five_labs_at_once() -> None:
    """Five programs with the same names, addresses and rules at once each see only their own."""
    code = """
        from nfctl.lab import Lab, traffic
        with Lab("tests") as lab:
            one, two = lab.host("one"), lab.host("two")
            lab.link(one.port("eth0", "192.0.2.1/24"), two.port("eth0", "192.0.2.2/24"))
            print(lab.id, 0, flush=True)
            service = two.serve(tcp=[80])
            for _ in range(5):
                assert one.run(traffic.http, "192.0.2.2").verdict is traffic.Verdict.ACCEPTED
            assert len(service.arrivals()) == 5
            assert two.run(__import__("os").listdir, "/run") == []
    """
    owners = [start_owner(code) for _ in range(5)]
    assert len({lab for _, lab, _ in owners}) == 5
    for owner, lab, _ in owners:
        assert owner.wait(timeout=60) == 0
        assert owner.stdout is not None
        owner.stdout.close()
        assert left_of(lab) == []


# Running things inside


def test_run_returns_and_raises(hosts: tuple[Host, Host]) -> None:
    """A function's result comes back from the host, and so does its exception."""
    one, _ = hosts
    assert [name for _, name in one.run(socket.if_nameindex)] == ["lo", "eth0"]
    with pytest.raises(BadInput, match="no interface nowhere"):
        one.run(partial(_raise, BadInput("no interface nowhere", hint="say eth0")))
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        one.run(_raise_local)


def _raise(error: Exception) -> None:
    raise error


def _raise_local() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("cannot be pickled")


def test_run_is_bounded(hosts: tuple[Host, Host]) -> None:
    """A function that takes too long is ended, and TimeoutError raised."""
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        hosts[0].run(time.sleep, 100, timeout=0.2)
    assert time.monotonic() - started < 5


def test_a_dead_child_is_an_error(hosts: tuple[Host, Host]) -> None:
    """A function whose process dies without an answer raises ChildProcessError."""
    with pytest.raises(ChildProcessError, match="-9"):
        hosts[0].run(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_worker_keeps_its_process(hosts: tuple[Host, Host]) -> None:
    """A worker runs many functions in one process, and outlives their exceptions."""
    worker = hosts[0].worker()
    pid = worker.run(os.getpid)
    assert pid != os.getpid()
    with pytest.raises(FileNotFoundError):
        worker.run(os.listdir, "/nowhere")
    assert worker.run(os.getpid) == pid
    assert [name for _, name in worker.run(socket.if_nameindex)] == ["lo", "eth0"]
    with pytest.raises(TimeoutError):
        worker.run(time.sleep, 100, timeout=0.1)
    assert not runs(pid)


def test_programs_run_inside(hosts: tuple[Host, Host]) -> None:
    """A program sees the host's own interfaces; a failing one says why, a missing one too."""
    one, _ = hosts
    assert "eth0" in one.call(["cat", "/proc/net/dev"])
    with pytest.raises(BadInput, match=r"ended with 1: .*nowhere"):
        one.call(["cat", "/nowhere"])
    with pytest.raises(BadInput, match="cannot run nfctl-no-such-program"):
        one.call(["nfctl-no-such-program"])
    with pytest.raises(BadInput, match=r"longer than 0\.2 s"):
        one.call(["sleep", "100"], timeout=0.2)


def test_run_directories_are_private(hosts: tuple[Host, Host]) -> None:
    """A file below /run, such as the xtables lock, is seen by its host's processes only."""
    one, two = hosts
    name = f"nfctl-test-{os.getpid()}"
    one.call(["touch", f"/run/{name}"])
    assert name in one.run(os.listdir, "/run")
    assert name not in two.run(os.listdir, "/run")
    assert not Path("/run", name).exists()


def test_bad_input_is_said_so() -> None:
    """Names and addresses that cannot be are refused in words, not by a traceback."""
    with pytest.raises(BadInput, match="no name for a lab"):
        Lab("a-b")
    with Lab("tests") as lab:
        one, two = lab.host("one"), lab.host("two")
        with pytest.raises(BadInput, match="no name for a host"):
            lab.host("../x")
        with pytest.raises(BadInput, match='has a host "one" already'):
            lab.host("one")
        with pytest.raises(BadInput, match=r"one:eth0: '192.0.2.300"):
            lab.link(one.port("eth0", "192.0.2.300/24"), two.port("eth0"))
        with pytest.raises(BadInput, match="making the link"):
            lab.link(one.port("much-too-long-for-a-name"), two.port("eth0"))
        with pytest.raises(BadInput, match="adding the route"):
            one.route("default", via="203.0.113.1")
        one.serve(tcp=[80])
        with pytest.raises(BadInput, match="cannot serve port 80"):
            one.serve(tcp=[80])
    with pytest.raises(BadInput, match="not up"):
        lab.host("one")
