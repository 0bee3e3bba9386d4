"""The rules of an inspection: put in, kept at the end, taken out; iptables-save is the oracle."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from nfctl.errors import BadInput, Changed, Locked, NfctlError, Unsupported
from nfctl.inspect import placement
from nfctl.inspect.placement import Plan
from nfctl.kernel.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

FAMILIES: Final = (4, 6)
# Rules of somebody else, with counters: some stand where ours will, one has the looks of ours.
FOREIGN: Final = """\
*mangle
:PREROUTING ACCEPT [1:100]
:INPUT ACCEPT [2:200]
:FORWARD ACCEPT [3:300]
:OUTPUT ACCEPT [4:400]
:POSTROUTING ACCEPT [5:500]
:NFCTL-INSPECTOR - [0:0]
:WEB - [0:0]
[6:600] -A INPUT -p tcp -m tcp --dport 80 -j WEB
[7:700] -A INPUT -p tcp -m comment --comment "nfctl inspect 5" -j ACCEPT
[8:800] -A WEB -m comment --comment "nfctl inspect 05" -j NFCTL-INSPECTOR
[9:900] -A WEB -j NFQUEUE --queue-num 5 --queue-bypass
COMMIT
*filter
:INPUT DROP [10:1000]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[11:1100] -A INPUT -i lo -j ACCEPT
[12:1200] -A FORWARD -j DROP
COMMIT
"""
MANGLE: Final = """\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
"""
# Binds a queue as libnetfilter_queue does, says so, and holds it until it gets a line.
LISTENER: Final = """
import socket, struct, sys
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
body = struct.pack("=BB", 0, 0) + struct.pack(">H", int(sys.argv[1]))
body += struct.pack("=HHBBH", 8, 1, 1, 0, 0)
sock.send(struct.pack("=IHHII", 16 + len(body), 3 << 8 | 2, 5, 1, 0) + body)
assert struct.unpack_from("=i", sock.recv(4096), 16) == (0,)
print(sock.getsockname()[0], flush=True)
sys.stdin.readline()
"""
# Decides every packet of queue 5 alike: a mark, and accept or repeat. Prints a dot for each.
DECIDER: Final = """
import sys, netfilterqueue
def decide(packet):
    packet.set_mark(int(sys.argv[1]))
    getattr(packet, sys.argv[2])()
    print(".", end="", flush=True)
queue = netfilterqueue.NetfilterQueue()
queue.bind(5, decide)
print("bound", flush=True)
queue.run()
"""


@pytest.fixture
def listen(netns: Namespace) -> Iterator[Callable[[int], int]]:
    """Give a function that has a program bind a queue, and returns its process id."""
    processes: list[subprocess.Popen[str]] = []

    def start(queue: int) -> int:
        argv = [sys.executable, "-c", LISTENER, str(queue)]
        pipe = subprocess.PIPE
        process = netns.popen(argv, stdin=pipe, stdout=pipe, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        return process.pid

    yield start
    for process in processes:
        process.communicate("\n", timeout=30)


def load(netns: Namespace, text: str = FOREIGN) -> None:
    for family in FAMILIES:
        name = "iptables" if family == 4 else "ip6tables"
        done = netns.run([f"{name}-legacy-restore", "-c"], text)
        assert done.returncode == 0, done.stderr


def saved(netns: Namespace, *options: str) -> dict[int, str]:
    return {family: netns.save(family, *options) for family in FAMILIES}


def rules(netns: Namespace, table: str, family: int = 4) -> list[str]:
    return [line for line in netns.save(family, "-t", table).splitlines() if line[:2] == "-A"]


def place(plan: Plan) -> tuple[tuple[int, ...], list[str]]:
    placed = placement.place(plan)
    assert placed.last()
    return placed.families, placed.notes


def refused(plan: Plan, prepare: Callable[[], object] | None = None) -> NfctlError:
    if prepare is not None:
        prepare()
    try:
        placement.place(plan)
    except NfctlError as error:
        error.args = (error.message,)
        return error
    raise AssertionError


def removed(queue: int | None = None, *, force: bool = False) -> list[str]:
    return [str(one) for one in placement.remove(queue, force=force)]


# --- what is put in ---------------------------------------------------------------------------


def test_the_rules(netns: Namespace) -> None:
    """One queue and one chain: a jump, and two chains, in mangle of both families; no filter."""
    assert netns.python(place, Plan(5)) == ((4, 6), [])
    wanted = f"""\
{MANGLE}:NFCTL-INSPECT-5 - [0:0]
:NFCTL-VERDICT-5 - [0:0]
-A INPUT -m comment --comment "nfctl inspect 5" -j NFCTL-INSPECT-5
-A NFCTL-INSPECT-5 -m mark ! --mark 0x0/0x3000 -g NFCTL-VERDICT-5
-A NFCTL-INSPECT-5 -j NFQUEUE --queue-num 5 --queue-bypass
-A NFCTL-VERDICT-5 -m mark --mark 0x2000/0x3000 -j DROP
-A NFCTL-VERDICT-5 -j MARK --set-xmark 0x0/0x3000
COMMIT
"""
    assert saved(netns) == {4: wanted, 6: wanted}


def test_all_of_it(netns: Namespace) -> None:
    """Offload, several workers, rejects, a match and a mask of one's own."""
    plan = Plan(
        65000, workers=4, chains=("FORWARD", "OUTPUT"), match="-p tcp --dport 443", offload=True,
        rejects=True, fanout=True, mask=0x30000000,
    )  # fmt: skip
    assert netns.python(place, plan) == ((4, 6), [])
    queue = "-j NFQUEUE --queue-balance 65000:65003 --queue-bypass --queue-cpu-fanout"
    comment = '-m comment --comment "nfctl inspect 65000"'
    mark = "/0x30000000"
    mangle = f"""\
{MANGLE}:NFCTL-INSPECT-65000 - [0:0]
:NFCTL-VERDICT-65000 - [0:0]
-A FORWARD -p tcp -m tcp --dport 443 {comment} -j NFCTL-INSPECT-65000
-A OUTPUT -p tcp -m tcp --dport 443 {comment} -j NFCTL-INSPECT-65000
-A NFCTL-INSPECT-65000 -m mark ! --mark 0x0{mark} -g NFCTL-VERDICT-65000
-A NFCTL-INSPECT-65000 -m connmark --mark 0x10000000{mark} -j RETURN
-A NFCTL-INSPECT-65000 -m connmark --mark 0x20000000{mark} -j DROP
-A NFCTL-INSPECT-65000 {queue}
-A NFCTL-VERDICT-65000 -m mark ! --mark 0x30000000{mark} -j CONNMARK --save-mark \
--nfmask 0x30000000 --ctmask 0x30000000
-A NFCTL-VERDICT-65000 -m mark --mark 0x20000000{mark} -j DROP
-A NFCTL-VERDICT-65000 -j MARK --set-xmark 0x0{mark}
COMMIT
"""
    for family, error in ((4, "icmp"), (6, "icmp6")):
        assert netns.save(family, "-t", "mangle") == mangle
        assert (
            netns.save(family, "-t", "filter")
            == f"""\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:NFCTL-REJECT-65000 - [0:0]
-A FORWARD -m mark --mark 0x20000000{mark} {comment} -j NFCTL-REJECT-65000
-A OUTPUT -m mark --mark 0x20000000{mark} {comment} -j NFCTL-REJECT-65000
-A NFCTL-REJECT-65000 -p tcp -j REJECT --reject-with tcp-reset
-A NFCTL-REJECT-65000 -j REJECT --reject-with {error}-port-unreachable
COMMIT
"""
        )


def test_others_keep_their_rules(netns: Namespace) -> None:
    """Others' rules, chains, policies and counters are the same with ours, and afterwards."""
    load(netns)
    before = saved(netns, "-c")
    plan = Plan(5, chains=("INPUT", "PREROUTING", "POSTROUTING"), offload=True)
    assert netns.python(place, plan)[0] == (4, 6)
    during = saved(netns, "-c")
    ours = re.compile(r".*(NFCTL-(INSPECT|VERDICT)-5\b).*\n")
    assert {family: ours.sub("", text) for family, text in during.items()} == before
    assert rules(netns, "mangle")[3].endswith("-j NFCTL-INSPECT-5")  # behind those of INPUT
    assert netns.python(removed, 5) == [
        f"table mangle (IPv{family}): 3 rules, chain NFCTL-INSPECT-5, chain NFCTL-VERDICT-5"
        for family in FAMILIES
    ]
    assert saved(netns, "-c") == before
    assert netns.python(removed, 5) == []


def test_rejects_come_first(netns: Namespace) -> None:
    """What rejects stands before the rules of filter, where PREROUTING leads to as well."""
    load(netns)
    before = saved(netns, "-c")
    netns.python(place, Plan(5, chains=("PREROUTING",), rejects=True))
    heads = [line for line in rules(netns, "filter") if "-j NFCTL-REJECT-5" in line]
    mark = '-m mark --mark 0x2000/0x3000 -m comment --comment "nfctl inspect 5"'
    assert heads == [f"-A {chain} {mark} -j NFCTL-REJECT-5" for chain in ("INPUT", "FORWARD")]
    assert rules(netns, "filter")[0] == heads[0]
    assert len(netns.python(removed)) == 4
    assert saved(netns, "-c") == before


@pytest.mark.parametrize(
    ("match", "families"),
    [
        ("-s 10.0.0.0/8", (4,)),
        ("-s 2001:db8::/32", (6,)),
        ("-p icmp -m icmp --icmp-type echo-request", (4,)),
        ("-p icmpv6 -m icmp6 --icmpv6-type echo-request", (6,)),
        ("-i eth0 -m conntrack --ctstate NEW", (4, 6)),
        ('-m comment --comment "-j ACCEPT"', (4, 6)),
    ],
)
def test_matches_of_a_family(netns: Namespace, match: str, families: tuple[int, ...]) -> None:
    """A match is put into the families whose engine takes it, and notes tell of the other."""
    found, notes = netns.python(place, Plan(5, match=match))
    assert found == families
    assert [note.partition(":")[0] for note in notes] == [
        f"IPv{family} is not inspected" for family in FAMILIES if family not in families
    ]
    for family in FAMILIES:
        assert ("NFQUEUE" in netns.save(family)) == (family in families)


def test_several_addresses(netns: Namespace) -> None:
    """A match that names several addresses is as many jumps, which are kept and moved as one."""
    plan = Plan(5, match="-s 10.0.0.1,10.0.0.2", families=(4,))

    def inside() -> tuple[bool, list[str], bool]:
        placed = placement.place(plan)
        assert placed.last()
        append("-t mangle -A INPUT -p udp")
        return placed.last(), placed.mend(), placed.last()

    last, said, mended = netns.python(inside)
    assert (last, len(said), mended) == (False, 1, True)
    assert [line.split()[:4] for line in rules(netns, "mangle")[:3]] == [
        ["-A", "INPUT", "-p", "udp"],
        ["-A", "INPUT", "-s", "10.0.0.1/32"],
        ["-A", "INPUT", "-s", "10.0.0.2/32"],
    ]
    assert netns.python(removed) == [
        "table mangle (IPv4): 2 rules, chain NFCTL-INSPECT-5, chain NFCTL-VERDICT-5"
    ]


def append(command: str, family: int = 4) -> None:
    """Have the oracle edit a table, from inside."""
    name = "iptables-legacy" if family == 4 else "ip6tables-legacy"
    subprocess.run([name, *command.split()], check=True)


def send_and_receive(family: int) -> bytes:
    host = "127.0.0.1" if family == 4 else "::1"
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as here:
        here.bind((host, 0))
        here.settimeout(10)
        here.sendto(b"passes", here.getsockname())
        return here.recv(100)


def test_without_a_listener_packets_pass(netns: Namespace) -> None:
    """Rules in place and nobody bound: packets go through the queue's rule and arrive."""
    netns.python(place, Plan(5, chains=("INPUT", "OUTPUT"), offload=True))
    for family in FAMILIES:
        assert netns.python(send_and_receive, family) == b"passes"
        assert re.search(r"\[2:\d+\] -A NFCTL-INSPECT-5 -j NFQUEUE", netns.save(family, "-c"))


# --- verdicts ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of five packets: how many were queued, and arrived; the sender's errno."""

    queued: int
    arrived: int
    error: str


def five_packets(family: int) -> tuple[int, str]:
    """Send five packets of one flow, one after the other; return how many arrived."""
    host = "127.0.0.1" if family == 4 else "::1"
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    arrived, error = 0, ""
    with socket.socket(kind, socket.SOCK_DGRAM) as there, socket.socket(kind, 2) as here:
        there.bind((host, 0))
        here.connect(there.getsockname())
        for number in range(5):
            try:
                here.send(bytes([number]))
                ready = select.select([there], [], [here], 0.2)
                arrived += bool(ready[0]) and there.recv(9) == bytes([number])
            except OSError as refused:
                error = errno.errorcode[refused.errno or 0]
    return arrived, error


def decided(netns: Namespace, plan: Plan, mark: int, verdict: str, family: int = 4) -> Outcome:
    netns.python(place, plan)
    argv = [sys.executable, "-c", DECIDER, str(mark), verdict]
    with netns.popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        arrived, error = netns.python(five_packets, family)
        process.terminate()
        return Outcome(len(process.stdout.read()), arrived, error)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("offload", "mark", "verdict", "outcome"),
    [
        (True, 0x1000, "repeat", Outcome(1, 5, "")),
        (True, 0x2000, "repeat", Outcome(1, 0, "")),
        (True, 0x3000, "repeat", Outcome(5, 5, "")),
        (True, 0, "accept", Outcome(5, 5, "")),
        (False, 0x1000, "repeat", Outcome(5, 5, "")),
        (False, 0x2000, "repeat", Outcome(5, 0, "")),
    ],
)
def test_verdicts_of_a_flow(
    netns: Namespace, family: int, offload: bool, mark: int, verdict: str, outcome: Outcome
) -> None:
    """With offload the mark of the first packet decides the flow, which is queued no more."""
    plan = Plan(5, match="-p udp", offload=offload)
    assert decided(netns, plan, mark, verdict, family) == outcome


@pytest.mark.parametrize("family", FAMILIES)
def test_the_firewall_decides_after_it(netns: Namespace, family: int) -> None:
    """What the queue accepts, for the flow or once, is still dropped by a rule of filter."""
    netns.legacy("-A", "INPUT", "-p", "udp", "-j", "DROP", family=family)
    for mark, verdict in ((0, "accept"), (0x1000, "repeat"), (0x3000, "repeat")):
        found = decided(netns, Plan(5, offload=True), mark, verdict, family)
        assert found.arrived == 0
        assert found.queued


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chain", ["PREROUTING", "INPUT", "OUTPUT"])
def test_rejected(netns: Namespace, family: int, chain: str) -> None:
    """A packet accepted with the mark of what is to be rejected is refused by the kernel."""
    netns.legacy("-A", "INPUT", "-j", "ACCEPT", family=family)
    plan = Plan(5, chains=(chain,), match="-p udp", rejects=True)
    found = decided(netns, plan, 0x2000, "accept", family)
    assert found.arrived == 0
    assert found.error in {"ECONNREFUSED", "EPERM"}  # EPERM: refused in OUTPUT
    assert found.queued


def test_no_mark_is_left(netns: Namespace) -> None:
    """A packet that came back with a verdict goes on with the mark it had, but for ours."""
    netns.legacy("-t", "mangle", "-A", "INPUT", "-j", "MARK", "--set-xmark", "0x7/0xff")
    netns.legacy("-A", "INPUT", "-p", "udp", "-m", "mark", "!", "--mark", "7", "-j", "DROP")
    plan = Plan(5, match="-p udp", offload=True)
    assert decided(netns, plan, 0x1007, "repeat") == Outcome(1, 5, "")


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(65536), "no queue 65536"),
        (Plan(-1), "no queue -1"),
        (Plan(65535, workers=2), "2 queues from 65535"),
        (Plan(0, workers=65536), "65536 queues"),
        (Plan(0, workers=0), "0 queues"),
        (Plan(5, mask=0x1000), "no mask"),
        (Plan(5, mask=0x5000), "no mask"),
        (Plan(5, mask=0), "no mask"),
        (Plan(5, mask=3 << 31), "no mask"),
        (Plan(5, chains=()), "no chain"),
        (Plan(5, chains=("INPUTS",)), "'INPUTS'"),
        (Plan(5, chains=("INPUT", "INPUT")), "twice"),
        (Plan(5, families=()), "families"),
        (Plan(5, families=(4, 5)), "families"),
        (Plan(5, chains=("POSTROUTING",), rejects=True), "POSTROUTING cannot be rejected"),
        (Plan(5, chains=("PREROUTING", "INPUT"), rejects=True), "inspected twice"),
        (Plan(5, match="-p tcp -j ACCEPT"), "match:1:8: a match says which packets"),
        (Plan(5, match="-p tcp -jACCEPT"), "match:1:8"),
        (Plan(5, match="-g WEB"), "match:1:1"),
        (Plan(5, match="-i lo --jum=ACCEPT"), "match:1:7"),
        (Plan(5, match="-A INPUT"), "unexpected option -A"),
        (Plan(5, match="-t nat"), "unexpected option -t"),
        (Plan(5, match="-c 1 2"), "leave target and counters out"),
        (Plan(5, match="-p tcp --dport"), "requires an argument"),
        (Plan(5, match="-p tcp --dport htp"), "invalid port/service `htp' specified"),
        (Plan(5, match="--dport 80"), "-p tcp must stand before it"),
        (Plan(5, match="-p tcp !"), "nothing appropriate following !"),
        (Plan(5, match="-p tcp --"), "unknown arguments"),
        (Plan(5, match='-i "lo'), "never closed"),
        (Plan(5, match="-o eth0"), "Can't use -o with INPUT"),
        (Plan(5, match="-s 10.0.0.1", families=(6,)), "not an IPv6 address"),
        (Plan(5, match="-m owner --uid-owner 0"), "the kernel refuses table mangle"),
    ],
)
def test_what_cannot_be(netns: Namespace, plan: Plan, said: str) -> None:
    """A plan that cannot be is bad input, with the engine's words, and changes nothing."""
    load(netns)
    before = saved(netns, "-c")
    error = netns.python(refused, plan)
    assert isinstance(error, BadInput)
    assert said in str(error)
    assert saved(netns, "-c") == before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_of_drop(netns: Namespace, family: int) -> None:
    """A chain whose policy is DROP, in either family, cannot be inspected; another can."""
    netns.legacy("-t", "mangle", "-P", "INPUT", "DROP", family=family)
    before = saved(netns)
    error = netns.python(refused, Plan(5))
    assert isinstance(error, BadInput)
    assert f"the policy of INPUT in table mangle (IPv{family}) is DROP" in str(error)
    after = saved(netns)
    assert after[family] == before[family]
    assert "NFCTL" not in "".join(after.values())
    assert netns.python(place, Plan(5, chains=("OUTPUT",)))[0] == (4, 6)


def test_a_queue_that_is_taken(netns: Namespace, listen: Callable[[int], int]) -> None:
    """A program bound to one of the queues is named, and so are queues that are free."""
    pid = listen(1)
    for plan, hint in ((Plan(1), "queue 0 is free"), (Plan(0, workers=3), "queues 2 to 4 are")):
        error = netns.python(refused, plan)
        assert isinstance(error, Locked)
        assert error.exit_code == 4
        assert re.search(rf"queue 1 is taken: python\S* \(process {pid}\) is bound", error.message)
        assert hint in error.hint
    assert saved(netns) == {4: "", 6: ""}
    assert netns.python(lambda: placement.place(Plan(1), listeners={pid}).last())


def refusing(family: int, error: NfctlError) -> None:
    """Have the kernel refuse the commits of one family, in this process."""
    commit = Table.commit

    def refuse(table: Table) -> None:
        if table.family == family and table.name == "mangle":
            raise error
        commit(table)

    pytest.MonkeyPatch().setattr(Table, "commit", refuse)


@pytest.mark.parametrize("rejects", [False, True])
def test_the_second_family_fails(netns: Namespace, rejects: bool) -> None:
    """Where IPv6's commit is refused, IPv4's rules are taken out again."""
    load(netns)
    before = saved(netns, "-c")
    error = Changed("as it happens")
    found = netns.python(refused, Plan(5, rejects=rejects), lambda: refusing(6, error))
    assert "as it happens" in str(found)
    assert saved(netns, "-c") == before


def lacking_ipv6() -> None:
    """Have this process think that the kernel has no IPv6 tables."""
    opening = Table._open

    def refuse(table: Table) -> int:
        if table.family == 6:
            raise Unsupported("table mangle (IPv6) cannot be opened: not there")
        return opening(table)

    pytest.MonkeyPatch().setattr(Table, "_open", refuse)


def test_a_kernel_without_ipv6(netns: Namespace) -> None:
    """A family that the kernel lacks is left out and told of; wanted alone, it is an error."""

    def inside() -> tuple[tuple[int, ...], list[str]]:
        lacking_ipv6()
        return place(Plan(5))

    families, notes = netns.python(inside)
    assert families == (4,)
    assert notes == ["IPv6 is not inspected: table mangle (IPv6) cannot be opened: not there"]
    error = netns.python(refused, Plan(5, families=(6,)), lacking_ipv6)
    assert isinstance(error, Unsupported)


@pytest.mark.parametrize(
    ("rule", "offload", "noted"),
    [
        ("-A OUTPUT -j MARK --set-mark 1", False, True),
        ("-A OUTPUT -j MARK --set-xmark 1/0xff", False, False),
        ("-A OUTPUT -j MARK --or-mark 0x2000", False, True),
        ("-A OUTPUT -j CONNMARK --restore-mark", False, True),
        ("-A OUTPUT -j CONNMARK --restore-mark --mask 0xff", True, False),
        ("-A OUTPUT -j CONNMARK --save-mark", False, False),
        ("-A OUTPUT -j CONNMARK --save-mark", True, True),
    ],
)
def test_marks_of_others(netns: Namespace, rule: str, offload: bool, noted: bool) -> None:
    """A rule of others that changes the bits which carry verdicts is pointed out."""
    assert netns.legacy("-t", "mangle", *rule.split()).returncode == 0
    _, notes = netns.python(place, Plan(5, offload=offload))
    assert [("OUTPUT rule 1 changes bits" in note) for note in notes] == [True] * noted


# --- leftovers --------------------------------------------------------------------------------


def test_killed(netns: Namespace) -> None:
    """What a run killed between the families leaves goes with the next run, or a removal."""
    load(netns)
    before = saved(netns, "-c")

    def inside() -> None:
        commit = Table.commit

        def fatal(table: Table) -> None:
            commit(table)
            if table.name == "mangle":
                os.kill(os.getpid(), signal.SIGKILL)

        pytest.MonkeyPatch().setattr(Table, "commit", fatal)
        placement.place(Plan(5, rejects=True, offload=True))

    for again in (False, True):
        with pytest.raises(pytest.fail.Exception, match="ended by SIGKILL"):
            netns.python(inside)
        assert "NFCTL-REJECT-5" in netns.save(4, "-t", "filter")
        assert "NFCTL" not in netns.save(6).replace("NFCTL-INSPECTOR", "")
        if again:
            assert netns.python(place, Plan(5, families=(6,))) == ((6,), [])
            assert "NFCTL-INSPECT-5" not in netns.save(4)
        assert netns.python(removed)
        assert saved(netns, "-c") == before


def test_place_again(netns: Namespace) -> None:
    """Placed anew with another plan, there is nothing left of the first."""
    netns.python(place, Plan(5, chains=("INPUT", "FORWARD"), rejects=True, offload=True))
    netns.python(place, Plan(5, workers=2, chains=("OUTPUT",)))
    for family in FAMILIES:
        assert "NFCTL" not in netns.save(family, "-t", "filter")
        assert [line.split()[1] for line in rules(netns, "mangle", family)] == [
            "OUTPUT", "NFCTL-INSPECT-5", "NFCTL-INSPECT-5", "NFCTL-VERDICT-5", "NFCTL-VERDICT-5",
        ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        ["-F INPUT"],
        ["-F NFCTL-INSPECT-5"],
        ["-F INPUT", "-F NFCTL-INSPECT-5", "-X NFCTL-INSPECT-5"],
        ["-F INPUT", "-F NFCTL-INSPECT-5", "-F NFCTL-VERDICT-5", "-X NFCTL-VERDICT-5"],
        ["-E NFCTL-INSPECT-5 MINE"],
        ["-E NFCTL-VERDICT-5 MINE"],
        ["-E NFCTL-INSPECT-5 MINE", "-E NFCTL-VERDICT-5 YOURS"],
        ["-D NFCTL-INSPECT-5 2", "-I NFCTL-INSPECT-5 -p udp -j WEB"],
        ["-A WEB -m comment --comment x -m comment --comment nfctl -j RETURN", "-D WEB 1"],
    ],
    ids=" ; ".join,
)
def test_half_of_it(netns: Namespace, damage: list[str]) -> None:
    """Whatever was deleted, renamed or put between by hand, the rest is found and taken out."""
    netns.legacy("-t", "mangle", "-N", "WEB")
    before = saved(netns)
    netns.python(place, Plan(5, rejects=False, offload=True, families=(4,)))
    for command in damage:
        done = netns.legacy("-t", "mangle", *command.split())
        assert done.returncode == 0, done.stderr
    assert netns.python(removed, 5)
    assert saved(netns) == before


def test_a_jump_of_others(netns: Namespace) -> None:
    """A chain of ours that somebody else jumps to is emptied and kept, and that is said."""
    netns.python(place, Plan(5, families=(4,)))
    netns.legacy("-t", "mangle", "-A", "OUTPUT", "-j", "NFCTL-INSPECT-5")
    (said,) = netns.python(removed, 5)
    assert "the rules of chain NFCTL-INSPECT-5 (others jump to it)" in said
    assert rules(netns, "mangle") == ["-A OUTPUT -j NFCTL-INSPECT-5"]
    netns.python(place, Plan(5, families=(4,)))
    assert rules(netns, "mangle")[-3].endswith("--queue-num 5 --queue-bypass")


def test_clean(netns: Namespace, listen: Callable[[int], int]) -> None:
    """A removal of all spares the inspection whose queue, or one of them, has a listener."""
    assert netns.python(removed) == []
    assert saved(netns) == {4: "", 6: ""}  # looking makes no tables
    netns.python(place, Plan(7))
    pid = listen(3)
    netns.python(lambda: placement.place(Plan(2, workers=2, mask=0xC000), listeners={pid}))
    netns.python(place, Plan(9, families=(6,), mask=0x30000))
    found = netns.python(placement.found)
    assert [(one.queue, one.queues, one.families, one.mask) for one in found] == [
        (2, range(2, 4), (4, 6), 0xC000),
        (9, range(9, 10), (6,), 0x30000),
    ]  # queue 7 had no listener when the second was placed
    assert [one.listener and one.listener.portid for one in found] == [pid, None]
    assert [said[:19] for said in netns.python(removed)] == ["table mangle (IPv6)"]
    assert [one.queue for one in netns.python(placement.found)] == [2]
    assert len(netns.python(lambda: removed(force=True))) == 2
    assert "NFCTL" not in netns.save(4) + netns.save(6)


def test_two_that_run(netns: Namespace, listen: Callable[[int], int]) -> None:
    """Beside one that runs, another needs a mask of its own; it is told one that is free."""
    pid = listen(2)
    netns.python(lambda: placement.place(Plan(2, match="-p tcp"), listeners={pid}).last())
    error = netns.python(refused, Plan(3, match="-p udp"))
    assert isinstance(error, Locked)
    assert f"process {pid}" in error.message
    assert error.hint == "mask 0x30000000 is free"

    def beside() -> tuple[list[str], bool, bool]:
        placed = placement.place(Plan(3, match="-p udp", mask=0x30000000))
        append("-t mangle -A INPUT -p tcp")
        return placed.mend(), placed.last(), placed.last()

    said, *last = netns.python(beside)
    assert (len(said), last) == (1, [True, True])
    assert "-A INPUT -p tcp" in rules(netns, "mangle")[1]


def test_a_leftover_before_ours(netns: Namespace) -> None:
    """Rules that a killed run left with another queue go: its packets would go past ours."""
    netns.python(place, Plan(2))
    assert netns.python(place, Plan(3)) == (
        (4, 6),
        ["what an inspection of queue 2 left behind was taken out"],
    )
    assert "INSPECT-2" not in netns.save()


# --- keeping them at the end ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_appended_behind(netns: Namespace, family: int) -> None:
    """A rule appended behind ours is noticed; ours go to the end again, with their counters."""
    load(netns)

    def inside() -> tuple[list[bool], list[str]]:
        placed = placement.place(Plan(5, match="-p udp"))
        seen = [placed.last(), placed.last()]
        send_and_receive(family)
        append("-t mangle -A INPUT -p udp -m udp --dport 9 -j ACCEPT", family)
        append("-t mangle -I INPUT -p udp -j ACCEPT", family)  # nothing reaches ours from here
        seen += [placed.last(), placed.last()]
        said = placed.mend()
        assert placed.mend() == []
        return [*seen, placed.last(), placed.last()], said

    seen, said = netns.python(inside)
    assert seen == [True, True, False, False, True, True]
    assert said == [
        f"table mangle (IPv{family}): other rules came behind those of the inspection in INPUT; "
        "these were moved behind them"
    ]
    lines = [line for line in netns.save(family, "-t", "mangle", "-c").splitlines() if "-A" in line]
    counted = [line for line in lines if "-A INPUT" in line]
    assert [line.split()[0] for line in counted[:3]] == ["[0:0]", "[6:600]", "[7:700]"]
    assert re.fullmatch(r"\[1:\d+\] -A INPUT -p udp -m comment .* -j NFCTL-INSPECT-5", counted[-1])
    assert "--dport 9" in counted[-2]


def test_inserted_before_what_rejects(netns: Namespace) -> None:
    """In filter it is the other way round: what rejects is moved before what was inserted."""
    load(netns)

    def inside() -> tuple[bool, list[str], bool]:
        placed = placement.place(Plan(5, rejects=True))
        assert placed.last()
        append("-I INPUT -j ACCEPT")
        return placed.last(), placed.mend(), placed.last()

    last, said, mended = netns.python(inside)
    assert (last, mended) == (False, True)
    assert said[0].startswith("table filter (IPv4): other rules came before")
    assert rules(netns, "filter")[0].endswith("-j NFCTL-REJECT-5")
    assert rules(netns, "filter")[1] == "-A INPUT -j ACCEPT"


@pytest.mark.parametrize(
    "damage",
    ["-F", "-D INPUT 1", "-F NFCTL-INSPECT-5", "-I NFCTL-VERDICT-5 -j RETURN", "restore"],
)
def test_put_back(netns: Namespace, damage: str) -> None:
    """Where another program has taken rules of ours away, they are put back as they were."""

    def inside() -> tuple[bool, list[str], bool]:
        placed = placement.place(Plan(5, rejects=True, offload=True))
        assert placed.last()
        if damage == "restore":
            subprocess.run(["iptables-legacy-restore"], input=FOREIGN.encode(), check=True)
        else:
            append(f"-t mangle {damage}")
        return placed.last(), placed.mend(), placed.last()

    netns.python(place, Plan(5, rejects=True, offload=True))
    before = saved(netns)
    last, said, mended = netns.python(inside)
    assert (last, mended) == (False, True)
    assert "table mangle (IPv4): rules of the inspection were gone; they were put back" in said
    if damage == "restore":
        assert len(said) == 2
        netns.run(["iptables-legacy-restore"], FOREIGN)
        netns.python(place, Plan(5, rejects=True, offload=True))
        assert "NFCTL-REJECT-5" in rules(netns, "filter")[0]
    else:
        assert saved(netns) == before


def test_what_leaves_the_size(netns: Namespace) -> None:
    """A change that leaves the table as large as it was is noticed within thirty calls."""

    def inside() -> list[bool]:
        placed = placement.place(Plan(5, families=(4,)))
        append("-t mangle -I INPUT 1 -i lo -m comment --comment x -j NFCTL-INSPECT-5")
        append("-t mangle -D INPUT 1")
        placed.mend()
        assert placed.last()
        append("-t mangle -P INPUT DROP")
        return [placed.last() for _ in range(31)]

    found = netns.python(inside)
    assert found[0]
    assert False in found


def test_a_policy_that_becomes_drop(netns: Namespace) -> None:
    """A chain that gets the policy DROP meanwhile cannot be mended: the inspection has to end."""

    def inside() -> tuple[str, int]:
        placed = placement.place(Plan(5))
        append("-t mangle -P INPUT DROP")
        try:
            placed.mend()
        except Changed as error:
            placed.remove()
            return str(error), error.exit_code
        return "", 0

    said, code = netns.python(inside)
    assert "is DROP" in said
    assert "has to end" in said
    assert code == 4
    assert "NFCTL" not in netns.save()


def test_last_is_quick(netns: Namespace) -> None:
    """Asked again, the kernel is asked for the table's size alone: no rule is read."""

    def inside() -> int:
        placed = placement.place(Plan(5))
        assert placed.last()
        opened = 0
        opening = Table._open

        def counted(table: Table) -> int:
            nonlocal opened
            opened += 1
            return opening(table)

        pytest.MonkeyPatch().setattr(Table, "_open", counted)
        assert all(placed.last() for _ in range(20))
        return opened

    assert netns.python(inside) == 0
