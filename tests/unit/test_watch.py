"""Keeping a host at its policy, with a clock, a kernel and a journal that tests drive."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.cli.watch import Teller, lines
from nfctl.control.change import ADD, DELETE, ChainChange, Change, Line, Run, SetChange, TableChange
from nfctl.control.journal.entries import Entry, Who
from nfctl.control.watching import drift
from nfctl.control.watching.drift import Place
from nfctl.control.watching.suspects import Suspects
from nfctl.control.watching.watch import Event, Options, Watch, Woken
from nfctl.errors import BadInput, Locked, NfctlError, NotPermitted, RolledBack
from nfctl.kernel import notices
from nfctl.kernel.notices import Actor, Notice
from nfctl.kernel.sdnotify import Notifier
from nfctl.policy.wanted import Wanted
from tests.unit.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INPUT = Place(4, "filter", "INPUT")
NAT = Place(4, "nat", "PREROUTING")
BLOCKLIST = Place(0, "", "blocklist")
NOTICE = Notice("lock", Actor(77, "iptables-legacy", "sh"))
LONG = 3600.0


def chain(place: Place, missing: int, extra: int) -> ChainChange:
    lines = [Line(ADD, number + 1, f"-s 10.0.0.{number}") for number in range(missing)]
    lines += [Line(DELETE, number + 1, f"-s 10.9.0.{number}") for number in range(extra)]
    return ChainChange(place.name, runs=[Run(ADD, 0, 0, missing), Run(DELETE, 0, 0, extra)],
                       lines=lines)  # fmt: skip


@dataclass
class Outcome:
    change: Change
    status: str
    entry: Entry | None


class World(Scripted):
    """A host: what is wrong in it, who does what and when, and what the watch says of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = Options(**{"interval": LONG, **options})
        self.wrong: dict[Place, tuple[int, int]] = {}
        self.journal: list[Entry] = []
        self.waiting: Entry | None = None
        self.errors: list[NfctlError] = []  # of the next applies
        self.plan_errors: list[NfctlError] = []
        self.plans = 0
        self.applies: list[float] = []
        self.policies: list[Wanted | NfctlError] = []
        self.after_apply: Callable[[], None] = lambda: None
        self._locked = False

    # --- what tests say ---

    def breaks(self, seconds: float, *places: Place, missing: int = 1, notice: bool = True) -> None:
        def step() -> Woken | None:
            self.wrong |= dict.fromkeys(places, (missing, 0))
            return Woken([NOTICE]) if notice else None

        self.at(seconds, step)

    def mends(self, seconds: float) -> None:
        def step() -> Woken:
            self.wrong.clear()
            return Woken([NOTICE])

        self.at(seconds, step)

    def entry(self, **more: Any) -> Entry:
        number = len(self.journal) + 1
        facts = {"status": "applied", "action": "apply", "policy": "default"} | more
        self.journal.append(Entry(number, Path("/nowhere"), who=Who(user="ada"), **facts))
        return self.journal[-1]

    def run(self, until: float, notifier: Notifier | None = None) -> list[str]:
        """Watch until then; return the kinds of what was told, without the first and the last."""
        self.signals(until, signal.SIGTERM)
        Watch(
            Wanted(),
            self.options,
            read=self._read,
            plan=self._plan,
            apply=self._apply,
            journal=self,
            wait=self.wait,
            tell=self.tell,
            notifier=notifier,
            clock=lambda: self.now,
            wall=lambda: self.now,
        ).run(["lock"])
        return self.kinds()

    # --- what the watch sees ---

    def pending(self) -> Entry | None:
        return self.waiting

    def entries(self) -> list[Entry]:
        return self.journal

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self._locked = True
        yield
        self._locked = False

    def _read(self) -> Wanted:
        policy = self.policies.pop(0)
        if isinstance(policy, NfctlError):
            raise policy
        return policy

    def _change(self) -> Change:
        tables = [
            TableChange(place.family, place.table, [chain(place, *counts)])
            for place, counts in self.wrong.items()
            if place.table
        ]
        sets = [SetChange("swap", place.name, "hash:ip", added=1) for place in self.wrong
                if not place.table]  # fmt: skip
        return Change("default", tables, sets)

    def _plan(self, _wanted: Wanted) -> Change:
        self.plans += 1
        assert self.plans < 10_000, "it never waits"
        if self.plan_errors:
            raise self.plan_errors.pop(0)
        return self._change()

    def _apply(self, _wanted: Wanted) -> Outcome:
        assert self._locked, "another nfctl could come between"
        self.applies.append(self.now - 1000.0)
        if self.errors:
            raise self.errors.pop(0)
        change = self._change()
        self.wrong.clear()
        if not change.changes:
            return Outcome(change, "unchanged", None)
        outcome = Outcome(change, "applied", self.entry(action="repair"))
        self.after_apply()
        return outcome


# --- telling ------------------------------------------------------------------------------------


def test_a_host_at_its_policy_is_left_in_peace() -> None:
    """Without a drift nothing is told but the start and the end."""
    world = World(interval=30)
    assert world.run(100) == []
    assert world.plans == 4  # at 0, 30, 60 and 90
    assert world.facts("end") == [
        {"ended_by": "SIGTERM", "seconds": 100.0, "compares": 4, "drifts": 0, "repairs": 0,
         "failures": 0}
    ]  # fmt: skip


def test_a_drift_is_told_once_and_its_end_once() -> None:
    """However often it is compared, a drift that stays is one, and so is its end."""
    world = World(interval=30)
    world.breaks(10, INPUT)
    world.mends(200)
    assert world.run(400) == ["drift", "gone"]
    assert world.times("drift") == [11.0]  # the notice and a second of quiet
    assert world.times("gone") == [201.0]
    (found,) = world.facts("drift")
    (place,) = found["places"]
    assert place == {"family": 4, "table": "filter", "chain": "INPUT", "missing": 1, "extra": 0,
                     "text": "1 rule missing"}  # fmt: skip
    assert found["found_by"] == "notice"
    assert [(one["comm"], one["parent"], one["by"]) for one in found["who"]] == [
        ("iptables-legacy", "sh", "lock")
    ]


def test_a_drift_without_a_notice_is_found_by_comparing() -> None:
    """What no notice comes for is found when the interval is over, and nobody is named."""
    world = World(interval=30)
    world.breaks(10, INPUT, notice=False)
    world.run(40)
    (found,) = world.facts("drift")
    assert (found["found_by"], found["who"], world.times("drift")) == ("interval", [], [30.0])


def test_a_drift_that_grows_is_told_again() -> None:
    """Another drift in the same chain is told; the chain that drifted before is not repeated."""
    world = World()
    world.breaks(10, INPUT)
    world.breaks(20, NAT, BLOCKLIST)
    world.breaks(30, INPUT, missing=3)
    assert world.run(40) == ["drift"] * 3
    told = [[place.get("chain", place.get("set")) for place in facts["places"]]
            for facts in world.facts("drift")]  # fmt: skip
    assert told == [["INPUT"], ["PREROUTING", "blocklist"], ["INPUT"]]
    changes = [event.change for _, event in world.told if event.kind == "drift"]
    assert [set(drift.find(change)) for change in changes if change] == [
        {INPUT}, {NAT, BLOCKLIST}, {INPUT}
    ]  # fmt: skip


def test_ten_edits_are_one_drift() -> None:
    """A program that writes a rule each half second is waited for; then it is one drift."""
    world = World()
    for number in range(10):
        world.breaks(10 + number / 2, INPUT, missing=number + 1)
    assert world.run(40) == ["drift"]
    assert world.times("drift") == [15.5]
    assert world.facts("drift")[0]["places"][0]["missing"] == 10
    assert world.facts("drift")[0]["who"][0]["times"] == 10
    assert world.plans == 2


def test_the_wait_for_quiet_is_bounded() -> None:
    """A program that never stops writing is compared with every ten seconds all the same."""
    world = World()
    for number in range(200):
        world.breaks(10 + number / 4, INPUT, missing=number + 1)
    world.run(80)
    assert world.times("drift") == [20.0, 30.25, 40.5, 50.75, 60.75]


def test_the_lock_does_not_end_it() -> None:
    """Tables that cannot be compared are told once, and compared again within five seconds."""
    world = World()
    world.plan_errors = [Locked("the xtables lock is held")] * 3
    world.breaks(1, INPUT, notice=False)
    assert world.run(100) == ["note", "drift"]
    assert world.times("drift") == [15.0]


def test_what_does_not_go_away_ends_it_at_the_start() -> None:
    """Without permission the first compare raises; there is nothing to wait for."""
    world = World()
    world.plan_errors = [NotPermitted("run as root")]
    with pytest.raises(NotPermitted):
        world.run(10)


# --- repairing ----------------------------------------------------------------------------------


def test_a_drift_is_repaired_at_once() -> None:
    """With --repair the first repair waits for nothing, and is told with its journal entry."""
    world = World(repair=True)
    world.breaks(10, INPUT, BLOCKLIST)
    assert world.run(60) == ["drift", "repaired"]
    assert world.times("repaired") == [11.0]
    (facts,) = world.facts("repaired")
    assert facts["entry"] == 1
    assert [place.get("chain", place.get("set")) for place in facts["places"]] == [
        "INPUT", "blocklist"
    ]  # fmt: skip
    assert not world.wrong


def test_without_repair_nothing_is_written() -> None:
    """A watch that only watches never applies."""
    world = World()
    world.breaks(10, INPUT)
    world.run(10_000)
    assert world.applies == []


def fighter(world: World, after: float = 1.0) -> None:
    """Have another program undo each repair, some seconds after it."""

    def again() -> None:
        world.breaks(world.now - 1000.0 + after, INPUT)

    world.after_apply = again


def test_backing_off_where_somebody_fights() -> None:
    """Repairs that do not last wait 1, 2, 4 s and so on, 300 at most, and it says who fights."""
    world = World(repair=True)
    world.breaks(0.5, INPUT)
    fighter(world)
    world.run(2500)
    waits = [facts["seconds"] for facts in world.facts("backing-off")]
    assert waits[:11] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert [facts["times"] for facts in world.facts("backing-off")][:3] == [1, 2, 3]
    assert world.facts("backing-off")[0]["who"][0]["comm"] == "iptables-legacy"
    # a repair, a second to the next deed, a second of quiet, and the wait
    gaps = [
        round(later - at, 3)
        for at, later in zip(world.applies, world.applies[1:], strict=False)
    ]  # fmt: skip
    assert gaps[:10] == [2 + wait for wait in waits[:10]]


def test_quiet_ends_the_fight() -> None:
    """A drift that comes after a minute without one is repaired at once again."""
    world = World(repair=True)
    for seconds in (10, 20, 40):
        world.breaks(seconds, INPUT)
    world.breaks(200, INPUT)
    world.run(300)
    assert world.applies == [11, 22, 43, 201]


def test_a_fight_in_one_chain_does_not_delay_another() -> None:
    """While the repair of a chain waits, a drift elsewhere is repaired at once."""
    world = World(repair=True)
    for seconds in (10, 15, 20, 30, 50):
        world.breaks(seconds, INPUT)
    world.breaks(52, NAT)
    world.run(54)
    assert world.applies == [11, 17, 23, 35, 53]


def test_a_repair_at_once_is_no_backing_off() -> None:
    """Where a new drift takes the repair of a fought one along, nobody is told of a wait."""
    world = World(repair=True)
    world.breaks(10, INPUT)
    world.breaks(15, INPUT, NAT)
    world.run(20)
    assert world.applies == [11, 16]
    assert world.facts("backing-off") == []


def test_a_failed_repair_is_tried_again() -> None:
    """What the lock, or the kernel, prevents is told each time, and tried later and later."""
    world = World(repair=True)
    world.errors = [Locked("held"), Locked("held"), RolledBack("put back")]
    world.breaks(10, INPUT)
    assert world.run(60) == ["drift", *["repair-failed"] * 3, "repaired"]
    assert world.applies == [11, 12, 14, 18]
    assert [(facts["code"], facts["retry"]) for facts in world.facts("repair-failed")] == [
        (4, 1), (4, 2), (5, 4)
    ]  # fmt: skip
    assert world.facts("end")[0]["failures"] == 3


def test_a_drift_that_went_by_itself_is_not_called_repaired() -> None:
    """If there is nothing left to repair, the drift is gone, and no repair is counted."""
    world = World(repair=True)
    world.errors = [Locked("held")]
    world.breaks(10, INPUT)

    def mend() -> None:
        world.wrong.clear()

    world.at(11.5, mend)
    assert world.run(60) == ["drift", "repair-failed", "gone"]
    assert world.facts("end")[0]["repairs"] == 0


def test_an_unconfirmed_change_is_left_alone() -> None:
    """While an apply waits for its confirmation nothing is repaired, and that is said once."""
    world = World(repair=True)
    world.waiting = world.entry(status="unconfirmed", confirm=60.0)
    world.breaks(10, INPUT)

    def rolled_back() -> None:
        world.waiting = None
        world.journal[0] = replace(world.journal[0], status="rolled back")

    world.at(70, rolled_back)
    assert world.run(100) == ["drift", "note", "repaired"]
    assert world.facts("note")[0]["entry"] == 1
    assert world.applies == [71]  # asked every five seconds


def overtaken(action: str, **more: Any) -> World:
    """Have somebody change the policy by nfctl itself, and SIGHUP later."""
    world = World(repair=True)
    world.entry()

    def done() -> Woken:
        world.entry(action=action, **more)
        world.wrong[INPUT] = (1, 0)
        return Woken([NOTICE])

    world.at(10, done)
    world.signals(500, signal.SIGHUP)
    world.policies = [Wanted(files=[("policy.yaml", "00")])]
    return world


@pytest.mark.parametrize(
    ("action", "more"), [("apply", {}), ("rollback", {"undoes": (1,)})], ids=["apply", "rollback"]
)
def test_what_nfctl_did_is_not_undone(action: str, more: dict[str, Any]) -> None:
    """An apply or a rollback of the same policy stands until SIGHUP takes the files again."""
    world = overtaken(action, **more)
    assert world.run(600) == ["drift", "note", "reloaded", "drift", "repaired"]
    assert world.facts("note")[0]["entry"] == 2
    assert "by ada" in world.facts("note")[0]["text"]
    assert world.applies == [500]
    assert world.facts("drift")[1]["found_by"] == "reload"


@pytest.mark.parametrize(
    ("action", "more"),
    [
        ("apply", {"policy": "another"}),
        ("apply", {"status": "failed"}),
        ("repair", {}),
        ("rollback", {"undoes": (2,), "policy": "another"}),
    ],
)
def test_what_is_no_change_of_this_policy_does_not_count(action: str, more: dict[str, Any]) -> None:
    """Entries of other policies, failed ones and repairs are no reason to leave a drift."""
    world = overtaken(action, **more)
    world.run(400)
    assert world.applies == [11]


# --- signals ------------------------------------------------------------------------------------


def test_a_wrong_policy_keeps_the_old_one() -> None:
    """SIGHUP with a policy that is wrong is told; the one after that takes the right one."""
    world = World()
    world.policies = [BadInput("no such key"), Wanted(name="second")]
    world.signals(10, signal.SIGHUP)
    world.signals(20, signal.SIGHUP)
    assert world.run(30) == ["reload-failed", "reloaded"]
    assert world.facts("reload-failed") == [{"error": "no such key", "code": 2, "retry": None}]
    assert world.facts("reloaded")[0]["policy"] == "second"


def test_a_policy_that_the_kernel_refuses_is_not_taken() -> None:
    """A policy whose rules cannot be encoded is refused at once, not at the next repair."""
    world = World()
    world.policies = [Wanted(name="second")]
    world.signals(10, signal.SIGHUP)
    world.at(10, lambda: world.plan_errors.append(BadInput("unknown option --dprot")))
    world._script.reverse()
    assert world.run(30) == ["reload-failed"]


def test_reloading_waits_for_the_lock() -> None:
    """A reload that the lock prevents is not forgotten."""
    world = World()
    world.policies = [Wanted(name="second"), Wanted(name="second")]
    world.at(9, lambda: world.plan_errors.append(Locked("held")))
    world.signals(10, signal.SIGHUP)
    assert world.run(30) == ["reload-failed", "reloaded"]
    assert world.times("reloaded") == [15.0]


def test_sigint_ends_it_as_well() -> None:
    """Ctrl-C is an end like another."""
    world = World()
    world.signals(5, signal.SIGINT)
    world.run(10)
    assert world.facts("end")[0]["ended_by"] == "SIGINT"


# --- the service manager ------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, str]]:
    """Give the socket of a service manager, and its NOTIFY_SOCKET."""
    with (
        tempfile.TemporaryDirectory() as short,  # a socket's path has 107 bytes at most
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        name = f"{short}/notify" if request.param == "path" else f"@nfctl-test-{os.getpid()}"
        sock.bind("\0" + name[1:] if name[0] == "@" else name)
        sock.setblocking(False)
        yield sock, name


def heard(sock: socket.socket) -> list[dict[str, str]]:
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            text = sock.recv(4096).decode()
            found.append(dict(line.split("=", 1) for line in text.splitlines()))
    return found


def test_the_manager_hears_of_it(manager: tuple[socket.socket, str]) -> None:
    """READY, RELOADING with the time, READY again, the state in words, and STOPPING."""
    sock, name = manager
    world = World()
    world.policies = [Wanted()]
    world.signals(10, signal.SIGHUP)
    world.breaks(20, INPUT)
    notifier = Notifier({"NOTIFY_SOCKET": name}, clock=lambda: world.now)
    world.run(30, notifier)
    notifier.close()
    said = heard(sock)
    keys = [key for one in said for key in one if key not in {"STATUS", "MONOTONIC_USEC"}]
    assert keys == ["READY", "RELOADING", "READY", "STOPPING"]
    assert [one["MONOTONIC_USEC"] for one in said if "RELOADING" in one] == ["1010000000"]
    assert "drift: IPv4 filter INPUT: 1 rule missing" in [one.get("STATUS") for one in said]
    assert {len(one.get("STATUS", "").splitlines()) for one in said} <= {0, 1}


def test_the_manager_s_watchdog_is_petted(manager: tuple[socket.socket, str]) -> None:
    """With WATCHDOG_USEC it is told twice as often as asked; not if another process is meant."""
    sock, name = manager
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "10000000"}
    notifier = Notifier(environment | {"WATCHDOG_PID": str(os.getpid())})
    World().run(41, notifier)  # a socket holds ten messages
    notifier.close()
    assert sum("WATCHDOG" in one for one in heard(sock)) == 8
    notifier = Notifier(environment | {"WATCHDOG_PID": "1"})
    World().run(41, notifier)
    notifier.close()
    assert sum("WATCHDOG" in one for one in heard(sock)) == 0


@pytest.mark.parametrize("name", ["", "vsock:1:2", "/nowhere/at/all", "@nfctl-nobody"])
def test_without_a_manager_it_works(name: str) -> None:
    """A socket that is missing, unknown or closed is none."""
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "nonsense"})
    assert World().run(10, notifier) == []


# --- what is said -------------------------------------------------------------------------------


def test_text_for_people() -> None:
    """Each kind of event has a line, which names places, who it was and when it goes on."""
    world = World(repair=True)
    world.breaks(10, INPUT)
    world.breaks(20, INPUT, NAT, missing=2)
    world.breaks(30, INPUT)
    world.errors = []
    world.run(60)
    assert [lines(event) for _, event in world.told] == [
        ["keeping the host at the policy default (0 rules); notices by the xtables lock"],
        ["drift: IPv4 filter INPUT: 1 rule missing; "
         "iptables-legacy (process 77, of sh) had the lock"],
        ["repaired: IPv4 filter INPUT (entry 1)"],
        ["drift in 2 places; iptables-legacy (process 77, of sh) had the lock",
         "IPv4 filter INPUT: 2 rules missing", "IPv4 nat PREROUTING: 2 rules missing"],
        ["repaired: IPv4 filter INPUT, IPv4 nat PREROUTING (entry 2)"],
        ["drift: IPv4 filter INPUT: 1 rule missing; "
         "iptables-legacy (process 77, of sh) had the lock"],
        ["backing off: IPv4 filter INPUT changed again after each of 2 repairs; "
         "iptables-legacy (process 77, of sh) had the lock; the next repair is in 2 s"],
        ["repaired: IPv4 filter INPUT (entry 3)"],
        ["ended by SIGTERM: 3 drifts, 3 repairs, 0 failures"],
    ]  # fmt: skip


def test_json_is_a_document_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    """--json prints each event with its time and, for a drift, the change."""
    world = World(repair=True)
    world.breaks(10, INPUT)
    world.run(60)
    tell = Teller(json=True)
    for _, event in world.told:
        tell(event)
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [one["event"] for one in said] == ["start", "drift", "repaired", "end"]
    assert said[1]["time"] == "1970-01-01T00:16:51.000Z"
    assert said[1]["change"]["changes"] is True
    assert said[0]["notices"] == ["lock"]


def test_quiet_leaves_out_what_is_well(capfd: pytest.CaptureFixture[str]) -> None:
    """--quiet prints drifts and failures only, in a line each."""
    world = World(repair=True)
    world.errors = [Locked("held")]
    world.breaks(10, INPUT)
    world.run(60)
    tell = Teller(json=False, quiet=True)
    for _, event in world.told:
        tell(event)
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 2
    assert "drift: IPv4 filter INPUT" in said[0]
    assert "the repair failed, next in 1 s: held" in said[1]


def test_names_of_programs_cannot_paint_the_terminal() -> None:
    """A program may call itself anything; escape sequences are spelled out."""
    facts = {"places": [{"set": "s", "text": "is missing"}],
             "who": [{"comm": "\x1b[2J", "pid": 1, "parent": "", "by": "audit"}]}  # fmt: skip
    assert lines(Event("drift", 0.0, facts)) == [
        "drift: set s: is missing; by \\x1b[2J (process 1)"
    ]


def test_words_for_every_change() -> None:
    """A drift says what is missing, too many or elsewhere, and what a policy is."""
    lines = [Line(ADD, 1, "-j A", moved=True), Line(DELETE, 2, "-j A", moved=True)]
    change = Change(
        tables=[
            TableChange(6, "filter", [
                ChainChange("INPUT", policy=("ACCEPT", "DROP"),
                            runs=[Run(ADD, 0, 0, 3), Run(DELETE, 0, 0, 2)], lines=lines),
                ChainChange("NEW", created=True, runs=[Run(ADD, 0, 0, 1)]),
                ChainChange("OLD", deleted=True),
                ChainChange("SAME", runs=[Run("same", 0, 0, 9), Run("kept", 9, 9, 2)]),
            ]),
        ],
        sets=[SetChange("create", "a", "hash:ip"), SetChange("destroy", "b", "hash:ip"),
              SetChange("same", "c", "hash:ip"), SetChange("swap", "d", "hash:ip", 1, 0),
              SetChange("swap", "e", "hash:ip", note="maxelem 3 -> maxelem 10"),
              SetChange("swap", "f", "hash:ip", 1, 2, note="hash:net -> hash:ip")],
    )  # fmt: skip
    assert [str(one) for one in drift.find(change).values()] == [
        "IPv6 filter INPUT: its policy is ACCEPT and not DROP, 1 rule at another place, "
        "2 rules missing, 1 rule too many",
        "IPv6 filter NEW: the chain is missing, 1 rule missing",
        "IPv6 filter OLD: the chain is there, and is wanted no more",
        "set a: is missing",
        "set b: is there, and is wanted no more",
        "set d: has other entries",
        "set e: is not as wanted (maxelem 3 -> maxelem 10)",
        "set f: has other entries, is not as wanted (hash:net -> hash:ip)",
    ]


# --- who it was ---------------------------------------------------------------------------------


def test_audit_is_believed_before_the_lock() -> None:
    """Who wrote the table, by audit, is named alone; of another table it is nobody's deed."""
    suspects = Suspects()
    suspects.add([NOTICE, Notice("audit", Actor(5, "dockerd"), 4, "nat"), Notice("lock")])
    assert [one["comm"] for one in suspects.of([NAT])] == ["dockerd"]
    assert [one["comm"] for one in suspects.of([INPUT])] == ["iptables-legacy"]
    suspects.clear()
    assert suspects.of([INPUT]) == []


def test_no_more_suspects_than_can_be_read() -> None:
    """However many programs there are, the last eight are remembered."""
    suspects = Suspects()
    suspects.add([Notice("lock", Actor(pid, f"program{pid}")) for pid in range(1000)])
    assert [one["pid"] for one in suspects.of([INPUT])] == list(range(992, 1000))


def record(text: str, kind: int = 1325) -> bytes:
    """Return a datagram as the kernel sends it: its length is that of the text alone."""
    data = f"audit(1700000000.123:45): {text}".encode()
    return (len(data).to_bytes(4, "little") + kind.to_bytes(2, "little") + bytes(10)) + data


GONE = 2**22 + 5  # no process has that id: PID_MAX_LIMIT is 2**22


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            f"table=filter family=2 entries=5 op=xt_replace pid={GONE} subj=unconfined "
            'comm="iptables-legacy"',
            Notice("audit", Actor(GONE, "iptables-legacy"), 4, "filter"),
        ),
        (
            f"table=nat family=10 entries=5 op=xt_replace pid={GONE} comm=6120620A",
            Notice("audit", Actor(GONE, "a b\n"), 6, "nat"),
        ),
        # kernels before 5.8 tell no more than this
        ("table=filter family=2 entries=4", Notice("audit", None, 4, "filter")),
    ],
)
def test_audit_records_of_tables(text: str, found: Notice) -> None:
    """A NETFILTER_CFG record names the family, the table and the program that replaced it."""
    assert notices.changed(record(text)) == found


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        record(""),
        record("table=filter family=2 entries=5 op=xt_replace", kind=1300),
        record("table=filter:12 family=2 entries=5 op=nft_register_rule pid=1 comm=nft"),
        record("table=filter family=2 entries=0 op=xt_unregister pid=153 comm=6B"),
        record("table=filter family=7 entries=5 op=xt_replace pid=1"),  # ebtables
        pytest.param(
            record(f"table=filter family=2 entries=5 op=xt_replace pid={os.getpid()}"), id="our-own"
        ),
        record("table=filter family=two op=xt_replace"),
        record('family=2 op=xt_replace pid=x comm="'),
    ],
)
def test_records_of_something_else(data: bytes) -> None:
    """What is no change of a table here, or our own, or makes no sense, is no notice."""
    assert notices.changed(data) is None
