"""Keeping services at a list, with a clock, a file, checks and a kernel that tests drive."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.cli.service_watch import ServiceTeller, watch
from nfctl.control.journal.records import Damaged
from nfctl.control.journal.state import State
from nfctl.control.serving import changing
from nfctl.control.serving.gone import Ended
from nfctl.control.serving.intent import Intent
from nfctl.control.serving.keeping import Applied, Host, ListFile, Read
from nfctl.control.serving.watch import Options, ServiceWatch
from nfctl.control.watching import waiting
from nfctl.control.watching.drift import Drift, Place
from nfctl.control.watching.watch import Woken
from nfctl.errors import AnswerNo, BadInput, Changed, Locked, NfctlError, RolledBack, Unsupported
from nfctl.kernel.notices import Actor, Notice
from nfctl.kernel.sdnotify import Notifier
from nfctl.services import difference
from nfctl.services.checks import Check
from nfctl.services.health import Change
from nfctl.services.model import Endpoint, Service, ServiceList
from tests.unit.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nfctl.control.apply import Options as ApplyOptions
    from nfctl.control.serving.kept import Make


ONE, TWO, THREE = (Endpoint(f"10.0.0.{n}", 80) for n in (1, 2, 3))
A, B = ONE[:2], TWO[:2]
NOTICE = Notice("lock", Actor(77, "iptables-legacy", "sh"))
CHAIN = Place(4, "nat", "NFCTL-SERVICES")
DRIFT = {CHAIN: Drift(CHAIN, ("1 rule missing",), 1, missing=1)}


def web(*endpoints: Endpoint, **more: Any) -> Service:
    return Service("web", 80, cluster_ips=("10.96.0.10",), endpoints=endpoints, **more)


def dns(*endpoints: Endpoint) -> Service:
    return Service("dns", 80, "udp", ("10.96.0.53",), endpoints=endpoints)


def listed(*services: Service) -> ServiceList:
    return ServiceList(services)


def out(one: Endpoint, *, ready: bool = False) -> Endpoint:
    return one._replace(ready=ready)


class World(Scripted):
    """A host with services: its file, its kernel, its endpoints; and what the watch says."""

    def __init__(self, *services: Service, check: Check | None = None, **options: Any) -> None:
        super().__init__()
        options = {"interval": 3600.0, **options}
        self.options = Options(check=check or Check(), **options)
        self.checked = True
        self.file: ServiceList | NfctlError = listed(*services)
        self.version = 1  # of the file
        self.record: ServiceList | None = None
        self.wrong: dict[Place, Drift] = {}
        self.applies: list[tuple[float, ServiceList, bool]] = []  # when, what, whether a repair
        self.errors: list[Exception] = []  # of the next applies
        self.read_errors: list[NfctlError] = []  # of the next looks at the record
        self.keeps: set[tuple[str, int]] = set()
        self.under_lock: list[Callable[[], None]] = []
        self.after_apply: Callable[[], None] = lambda: None
        self.stale = Ended()  # what was ended of it
        self.ended_stale: list[float] = []  # when
        self.cost = 0.0  # seconds that an apply takes
        self._changes: list[Change] = []

    # --- what tests say ---

    def writes(self, seconds: float, what: ServiceList | NfctlError) -> None:
        def step() -> None:
            self.file = what
            self.version += 1

        self.at(seconds, step)

    def health(self, seconds: float, endpoint: tuple[str, int], healthy: bool) -> None:
        def step() -> Woken:
            self._changes.append(Change(endpoint, healthy, "as the test says"))
            return Woken()

        self.at(seconds, step)

    def breaks(self, seconds: float, *, notice: bool = True) -> None:
        def step() -> Woken | None:
            self.wrong = DRIFT
            return Woken([NOTICE]) if notice else None

        self.at(seconds, step)

    def records(self, seconds: float, what: ServiceList | None) -> None:
        """Have another nfctl apply something."""

        def step() -> Woken:
            self.record = what
            return Woken([NOTICE])

        self.at(seconds, step)

    def run(self, until: float, notifier: Notifier | None = None) -> list[str]:
        """Watch until then; return the kinds of what was told, without the first and the last."""
        self.signals(until, signal.SIGTERM)
        ServiceWatch(
            self.read(),
            self.options,
            read=self.read,
            stamp=lambda: self.version,
            host=self,
            prober=self if self.checked else None,
            wait=self.wait,
            tell=self.tell,
            notifier=notifier,
            clock=lambda: self.now,
            wall=lambda: self.now,
        ).run(["lock"])
        return self.kinds()

    def applied(self) -> list[tuple[float, ServiceList]]:
        return [(at, what) for at, what, _ in self.applies]

    def text(self) -> str:
        """Return all that was told as people read it."""
        teller = ServiceTeller(json=False)
        return "\n".join(line for _, event in self.told for line in teller.text(event))

    # --- the file ---

    def read(self) -> Read:
        if isinstance(self.file, NfctlError):
            raise self.file
        return Read(self.file, [("services.yaml", f"{self.version}")], self.version)

    # --- the host ---

    def recorded(self) -> ServiceList | None:
        if self.read_errors:
            raise self.read_errors.pop(0)
        return self.record

    def apply(self, make: Make, files: Sequence[tuple[str, str]], *, repair: bool) -> Applied:
        assert files
        if self.under_lock:
            self.under_lock.pop(0)()
        before, made = self.record, make(self.record)
        self.applies.append((round(self.now - 1000.0, 3), made, repair))
        self.now += self.cost
        if self.errors:
            raise self.errors.pop(0)
        changed = made != before or bool(self.wrong)
        self.record, self.wrong = made, {}
        entry = len(self.applies) if changed else None
        self.after_apply()
        return Applied(changed, difference.compare(before, made), entry, (1, 2), 3, ["a note"])

    def end_stale(self, held: ServiceList) -> Ended:
        assert held == self.record, "what is stale is told by what holds"
        self.ended_stale.append(round(self.now - 1000.0, 3))
        return self.stale

    def drifts(self, held: ServiceList) -> dict[Place, Drift]:
        assert held == self.record, "the kernel is compared with what is recorded"
        return dict(self.wrong)

    # --- the prober ---

    def keep(self, endpoints: Iterable[tuple[str, int]]) -> None:
        self.keeps = set(endpoints)

    def step(self) -> list[Change]:
        found, self._changes = self._changes, []
        return [change for change in found if change.endpoint in self.keeps]

    def timeout(self) -> float:
        return 60.0


# --- the file -----------------------------------------------------------------------------------


def test_the_start() -> None:
    """The list is applied at the start, as an apply, and told with what it comes to."""
    world = World(web(ONE, TWO))
    assert world.run(10) == ["applied", "note"]
    assert world.applies == [(0, listed(web(ONE, TWO)), False)]
    (start,) = world.facts("start")
    assert start == {
        "prefix": "NFCTL-", "services": 1, "endpoints": 2, "unhealthy": 0, "check": "tcp",
        "interval": 3600.0, "notices": ["lock"], "missing": [],
    }  # fmt: skip
    (applied,) = world.facts("applied")
    assert applied == {
        "why": ["start"], "entry": 1, "rules": [1, 2], "ended": 3, "seconds": 0.0,
        "text": ["+ web (tcp): 10.96.0.10:80; 2 endpoints"],
    }  # fmt: skip
    assert world.facts("end") == [{"ended_by": "SIGTERM", "seconds": 10.0, "applied": 1}]


def test_what_the_kernel_has_already() -> None:
    """Nothing is told of an apply that changes nothing."""
    world = World(web(ONE))
    world.record = listed(web(ONE))
    assert world.run(10) == ["note"]
    assert world.facts("end")[0]["applied"] == 0


def test_stale_flows_at_the_start() -> None:
    """UDP flows that nobody ended are ended once, also where the chains are as they should be."""
    world = World(web(ONE))
    world.record = listed(web(ONE))
    world.stale = Ended(3)
    world.writes(5.5, listed(web(TWO)))
    assert world.run(10) == ["note", "stale", "reloaded", "applied"]
    assert world.facts("stale") == [{"ended": 3}]
    assert world.ended_stale == [0]
    assert "3 UDP flows ended, left by who was there before\n" in world.text()


def test_stale_flows_after_the_first_apply() -> None:
    """Where the first apply has to wait they do, too; what cannot be ended is told."""
    world = World(web(ONE))
    world.errors = [Locked("held")] * 2
    world.stale = Ended(problem="this kernel does not list connections")
    assert world.run(10) == ["apply-failed", "apply-failed", "applied", "note", "note"]
    assert world.ended_stale == [3]
    assert world.facts("note")[-1] == {"text": "this kernel does not list connections"}


def test_a_new_file_is_taken_when_two_looks_agree() -> None:
    """A file that is being written is not read before it is a second old."""
    world = World(web(ONE))
    world.writes(5.5, listed(web(TWO)))
    world.writes(6.5, listed(web(THREE)))
    world.run(20)
    assert world.times("reloaded") == [8.0]  # seen at 6, again at 7, the same at 8
    assert world.applied()[1:] == [(8.0, listed(web(THREE)))]
    assert world.facts("applied")[1]["why"] == ["file"]
    assert world.applies[1][2] is False


def test_sighup_reads_at_once_and_once() -> None:
    """SIGHUP takes the file at once; the look after it has nothing more to do."""
    world = World(web(ONE))
    world.writes(5.5, listed(web(TWO)))
    world.signals(5.6, signal.SIGHUP)
    world.run(20)
    assert world.times("reloaded") == [5.6]
    assert world.applied()[1:] == [(5.6, listed(web(TWO)))]


@pytest.mark.parametrize(
    "wrong",
    [BadInput("it is no list"), ServiceList((web(ONE),), prefix="OTHER-")],
    ids=["broken", "prefix"],
)
def test_a_wrong_file(wrong: Any) -> None:
    """A wrong file is told once, the old one stays and its health is heeded; a right one is taken.

    A list of another prefix is wrong, too.
    """
    world = World(web(ONE, TWO))
    world.writes(5.5, wrong)
    world.health(10, A, healthy=False)
    world.writes(20.5, listed(web(TWO)))
    assert world.run(40) == ["applied", "note", "reload-failed", "health", "applied", "reloaded",
                             "applied"]  # fmt: skip
    (failed,) = world.facts("reload-failed")
    assert (failed["code"], failed["retry"]) == (2, None)
    assert [what for _, what in world.applied()[1:]] == [
        listed(web(out(ONE), TWO)), listed(web(TWO))
    ]  # fmt: skip


def test_a_file_that_is_refused() -> None:
    """A list that cannot be applied is told and not tried again; the old one's health is heeded."""
    world = World(web(ONE, TWO))
    world.at(5, lambda: world.errors.append(AnswerNo("this would cut you off")))
    world.writes(5.5, listed(web(THREE)))
    world.health(10, A, healthy=False)
    assert world.run(300)[2:] == ["reloaded", "reload-failed", "health", "applied"]
    assert world.facts("reload-failed")[0]["code"] == 1
    assert world.applied()[2:] == [(10.2, listed(web(out(ONE), TWO)))]
    assert world.keeps == {A, B}


def test_a_file_that_fails_is_tried_again() -> None:
    """What may go away by itself is tried after 1, 2 and 4 seconds; the old list is kept meanwhile.

    A drain that began meanwhile goes on.
    """
    world = World(web(ONE, TWO))
    errors = [Unsupported("no room"), RolledBack("it failed"), OSError(12, "no memory")]
    world.at(5, lambda: world.errors.extend(errors))
    world.writes(5.5, listed(web(ONE, THREE)))
    world.records(8, listed(web(ONE._replace(draining=True), TWO)))
    world.run(300)
    assert [facts["retry"] for facts in world.facts("reload-failed")] == [1, 2, 4]
    assert [at for at, _ in world.applied()] == [0, 7, 8, 10, 14]
    assert world.record == listed(web(ONE._replace(draining=True), THREE))
    assert len(world.facts("reloaded")) == 1


# --- health -------------------------------------------------------------------------------------


def test_an_endpoint_goes_and_comes() -> None:
    """An unhealthy endpoint is not ready a fifth of a second later, and so it comes back."""
    world = World(web(ONE, TWO), dns(ONE))
    world.health(10, A, healthy=False)
    world.health(100, A, healthy=True)
    world.run(200)
    assert world.applied()[1:] == [
        (10.2, listed(web(out(ONE), TWO), dns(out(ONE)))),
        (100.2, listed(web(ONE, TWO), dns(ONE))),
    ]
    assert [facts["why"] for facts in world.facts("applied")[1:]] == [["health"]] * 2
    assert [repair for _, _, repair in world.applies] == [False, True, True]
    assert world.facts("health")[0] == {
        "endpoint": "10.0.0.1:80", "healthy": False, "reason": "as the test says",
        "services": ["web", "dns"], "out": 0.0, "flaps": 0,
    }  # fmt: skip
    # dns had that endpoint alone
    assert [facts["services"][0]["name"] for facts in world.facts("unserved")] == ["dns"]
    assert world.times("served") == [100.2]


def test_a_healthy_endpoint_is_no_change() -> None:
    """Before its first checks an endpoint is taken for healthy: being so changes nothing."""
    world = World(web(ONE))
    world.health(1, A, healthy=True)
    world.run(10)
    assert len(world.applies) == 1


def test_what_comes_together_is_one_change() -> None:
    """Endpoints that go within a fifth of a second are one apply."""
    world = World(web(ONE, TWO, THREE))
    world.health(10, A, healthy=False)
    world.health(10.15, B, healthy=False)
    world.run(20)
    assert world.applied()[1:] == [(10.2, listed(web(out(ONE), out(TWO), THREE)))]


def test_unhealthy_for_a_moment() -> None:
    """One that goes and comes within a fifth of a second changes nothing."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.health(10.1, A, healthy=True)
    world.run(60)
    assert len(world.applies) == 1


def test_applies_take_half_of_the_time_at_most() -> None:
    """Where an apply takes long, the next one for health waits as long as that took."""
    world = World(web(ONE, TWO))
    world.cost = 8.0
    world.health(10, A, healthy=False)
    world.health(20, B, healthy=False)  # seen at 24, when the apply is done
    world.run(60)
    assert [at for at, _ in world.applied()] == [0, 16, 32]


def test_the_last_endpoint() -> None:
    """A service of which no endpoint is healthy rejects and says so, and when that is over."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.health(20, B, healthy=False)
    world.health(100, B, healthy=True)
    world.run(200)
    assert world.record == listed(web(out(ONE), TWO))
    (unserved,) = world.facts("unserved")
    assert unserved["services"] == [
        {"name": "web", "protocol": "tcp",
         "what": "has no endpoint that serves: connections are rejected"}
    ]  # fmt: skip
    assert (world.times("unserved"), world.times("served")) == ([20.2], [100.2])
    assert "web (tcp) has no endpoint that serves: connections are rejected\n" in world.text()


def test_a_flapping_endpoint_comes_back_later_and_later() -> None:
    """After 1, 2, 4 seconds; after quiet at once, as the first time."""
    world = World(web(ONE, TWO))
    for at in (10, 30, 50, 70):
        world.health(at, A, healthy=False)
        world.health(at + 10, A, healthy=True)
    world.health(300, A, healthy=False)
    world.health(310, A, healthy=True)
    world.run(400)
    back = [at for at, what in world.applied() if what == listed(web(ONE, TWO))]
    assert back == [0, 20.2, 41.2, 62.2, 84.2, 310.2]
    told = [(facts["out"], facts["flaps"]) for facts in world.facts("health") if facts["healthy"]]
    assert told == [(0, 0), (1, 1), (2, 2), (4, 3), (0, 0)]
    assert "as it flaps, it stays out for 4 s" in world.text()


def test_a_flapping_endpoint_that_goes_again_never_came() -> None:
    """One that is unhealthy again before it was let in gets nothing in between."""
    world = World(web(ONE, TWO))
    for at in (10, 30, 50, 70, 90):
        world.health(at, A, healthy=False)
        world.health(at + 10, A, healthy=True)
    world.health(105, A, healthy=False)  # it was to come back at 108
    world.run(120)
    assert [at for at, what in world.applied() if what == listed(web(ONE, TWO))][-1] == 84.2
    assert world.record == listed(web(out(ONE), TWO))


def test_a_flapping_endpoint_serves_where_nobody_else_does() -> None:
    """One that is healthy and kept out is better than none; of its own family, that is."""
    six = Endpoint("fd00::2", 80)
    world = World(web(ONE, six))
    for at in (10, 30):
        world.health(at, A, healthy=False)
        world.health(at + 10, A, healthy=True)
    world.run(40.9)  # it is kept out until 41
    assert world.record == listed(web(ONE, six))
    assert world.applied()[-1][0] == 40.2


def test_what_the_last_watch_left_unhealthy() -> None:
    """It stays out after a restart until its checks say otherwise; without checks it comes."""
    world = World(web(ONE, TWO))
    world.record = listed(web(out(ONE), TWO))
    world.health(5, A, healthy=True)
    world.run(10)
    assert world.applied() == [(0, listed(web(out(ONE), TWO))), (5.2, listed(web(ONE, TWO)))]
    assert world.facts("start")[0]["unhealthy"] == 1
    world = World(web(ONE, TWO))
    world.checked = False
    world.record = listed(web(out(ONE), TWO))
    world.run(10)
    assert world.applied() == [(0, listed(web(ONE, TWO)))]


def test_which_endpoints_are_checked() -> None:
    """Those that serve, of TCP; of UDP where TCP has the same, or the check names a port."""
    log = Service("log", 514, "udp", ("10.96.0.51",), endpoints=(THREE,))
    off = (out(THREE), TWO._replace(draining=True))
    world = World(web(ONE, *off), dns(ONE), log)
    assert world.run(5) == ["note", "applied", "note"]
    assert world.keeps == {A}
    assert "log: they are not of TCP" in world.facts("note")[0]["text"]
    world = World(web(ONE, *off), dns(ONE), log, check=Check.parse("tcp://:81"))
    world.run(5)
    assert world.keeps == {A, THREE[:2]}


def test_an_endpoint_that_the_file_brings_anew() -> None:
    """What is known of an endpoint ends when it leaves the file."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.writes(20.5, listed(web(TWO)))
    world.writes(30.5, listed(web(ONE, TWO)))
    world.run(40)
    assert world.record == listed(web(ONE, TWO))


# --- drift --------------------------------------------------------------------------------------


def test_drift_is_repaired() -> None:
    """A second after the notice it is told with who may have done it, and put back."""
    world = World(web(ONE))
    world.breaks(10)
    assert world.run(20)[2:] == ["drift", "applied"]
    assert (world.times("drift"), world.times("applied")[1:]) == ([11.0], [11.2])
    assert world.facts("drift")[0]["who"][0]["comm"] == "iptables-legacy"
    assert world.facts("applied")[1]["why"] == ["drift"]
    assert world.applies[-1][2] is True
    assert "drift: IPv4 nat NFCTL-SERVICES: 1 rule missing; iptables-legacy (process 77, of sh) " \
        "had the lock" in world.text()  # fmt: skip


def test_drift_without_a_notice() -> None:
    """It is found when the interval is over."""
    world = World(web(ONE), interval=30.0)
    world.breaks(10, notice=False)
    world.run(40)
    assert world.times("drift") == [30.0]
    assert not world.wrong


def test_somebody_fights() -> None:
    """Repairs that do not last wait 1, 2, 4 seconds and so on, 300 at most."""
    world = World(web(ONE))
    world.breaks(0.5)
    world.after_apply = lambda: world.breaks(world.now - 1000.0 + 1)
    world.run(3000)
    waits = [facts["repair"] for facts in world.facts("drift")]
    assert waits[:12] == [0.2, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert "the repair is in 300 s" in world.text()


def test_health_does_not_wait_for_a_repair() -> None:
    """Where somebody fights and a repair waits, an endpoint that goes is taken out at once."""
    world = World(web(ONE, TWO))
    world.breaks(0.5)
    fights = 0

    def fight() -> None:
        nonlocal fights
        fights += 1
        if fights < 8:
            world.breaks(world.now - 1000.0 + 1)

    world.after_apply = fight
    world.health(60, A, healthy=False)  # the repair waits until about 66
    world.run(63)
    assert world.applied()[-1] == (60.2, listed(web(out(ONE), TWO)))


def test_drift_that_goes_away() -> None:
    """It is told, and nothing is applied for it."""
    world = World(web(ONE))
    world.breaks(10)
    world.breaks(20)
    world.breaks(30)  # repaired after 1 and 2 seconds

    def mends() -> Woken:
        world.wrong = {}
        return Woken([NOTICE])

    world.at(31.5, mends)
    assert world.run(60)[-2:] == ["drift", "gone"]
    assert len(world.applies) == 3


def test_what_cannot_be_compared() -> None:
    """It is told once and compared again within five seconds."""
    world = World(web(ONE))
    world.at(5, lambda: world.read_errors.extend([Locked("held")] * 3))
    world.breaks(10)
    assert world.run(60)[2:] == ["note", "drift", "applied"]
    assert world.times("drift") == [26.0]


def test_a_damaged_record_is_written_anew() -> None:
    """It says nothing of what is to hold; the list does."""
    world = World(web(ONE))
    world.at(5, lambda: world.read_errors.extend([Damaged("record.json was changed")] * 2))
    world.breaks(10)
    assert world.run(60)[2:] == ["note", "applied"]
    assert world.record == listed(web(ONE))
    world = World(web(ONE))
    world.read_errors = [Damaged("record.json was changed")] * 2
    assert world.run(60) == ["applied", "note"]


# --- other nfctls -------------------------------------------------------------------------------


def test_set_endpoints_holds_until_the_file_changes() -> None:
    """What nfctl service set-endpoints made is taken with its health, until the file says more."""
    world = World(web(ONE))
    world.records(10, listed(web(ONE, TWO)))
    world.health(20, B, healthy=False)
    world.health(100, B, healthy=True)
    world.writes(200.5, listed(web(THREE)))
    assert world.run(300)[2:] == ["taken", "health", "applied", "health", "applied", "reloaded",
                                  "applied"]  # fmt: skip
    assert world.facts("taken")[0] == {
        "text": ["* web (tcp): + 10.0.0.2:80"], "services": 1, "endpoints": 2
    }  # fmt: skip
    assert [what for _, what in world.applied()[1:]] == [
        listed(web(ONE, out(TWO))), listed(web(ONE, TWO)), listed(web(THREE))
    ]  # fmt: skip


def test_sighup_takes_the_file_again() -> None:
    """Whatever nfctl made of the list."""
    world = World(web(ONE))
    world.records(10, listed(web(TWO)))
    world.signals(20, signal.SIGHUP)
    world.run(30)
    assert world.applied()[1:] == [(20.0, listed(web(ONE)))]


def test_health_is_not_mistaken_for_what_was_asked_for() -> None:
    """set-endpoints keeps what is not ready for its health; it comes back when it is healthy."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.records(20, listed(web(out(ONE), TWO, THREE)))
    world.health(100, A, healthy=True)
    world.run(200)
    assert world.record == listed(web(ONE, TWO, THREE))


def test_apply_by_hand_does_not_heal() -> None:
    """An apply of the file by hand brings an unhealthy endpoint for a moment only."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.records(20, listed(web(ONE, TWO)))
    world.run(30)
    assert world.applied()[-1] == (21.2, listed(web(out(ONE), TWO)))
    assert world.facts("applied")[-1]["why"] == ["taken"]


def test_a_rollback_stands() -> None:
    """What nfctl rollback brought back is not undone, nor is that nothing is left."""
    world = World(web(ONE, THREE))
    world.health(1, A, healthy=False)
    world.writes(5.5, listed(web(TWO)))
    world.records(10, listed(web(out(ONE), THREE)))  # of that time
    world.health(20, A, healthy=True)
    world.run(100)
    assert world.record == listed(web(ONE, THREE))
    world = World(web(ONE))
    world.records(10, None)
    world.signals(500, signal.SIGHUP)
    assert world.run(1000)[2:] == ["taken", "reloaded", "applied"]
    assert world.facts("taken")[0]["text"] == ["- all services"]
    assert world.applied()[1:] == [(500, listed(web(ONE)))]


def test_nobody_comes_between() -> None:
    """What another nfctl did just before the lock was ours is taken, too."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)

    def other() -> None:
        world.record = listed(web(ONE, TWO, THREE))

    world.at(10.1, lambda: world.under_lock.append(other))
    world.run(20)
    assert world.record == listed(web(out(ONE), TWO, THREE))


def test_a_drain_goes_on() -> None:
    """What nfctl service drain drains goes on draining when the file changes, until --undo."""
    draining = ONE._replace(draining=True)
    world = World(web(ONE, TWO))
    world.records(10, listed(web(draining, TWO)))
    world.writes(20.5, listed(web(ONE, TWO, THREE)))
    world.records(40, listed(web(ONE, TWO, THREE)))
    world.writes(50.5, listed(web(ONE, THREE)))
    world.run(100)
    assert [what for _, what in world.applied()[1:]] == [
        listed(web(draining, TWO, THREE)), listed(web(ONE, THREE))
    ]  # fmt: skip
    assert world.facts("note")[-1]["text"] == (
        "10.0.0.1:80 of web (tcp) goes on draining: "
        "nfctl service drain web 10.0.0.1:80 --undo ends that"
    )
    assert A in world.keeps


def test_how_to_end_a_drain_of_another_prefix() -> None:
    """The command that ends a drain says the prefix, where it is not the usual one."""
    file = ServiceList((web(ONE, TWO),), prefix="MINE-")
    draining = file._replace(services=(web(ONE._replace(draining=True), TWO),))
    assert Intent(file, draining, checked=False).reminders() == [
        "10.0.0.1:80 of web (tcp) goes on draining: "
        "nfctl service drain web 10.0.0.1:80 --undo --prefix MINE- ends that"
    ]


def test_a_drain_outlives_a_restart() -> None:
    """An endpoint that drained before the start drains after it."""
    draining = ONE._replace(draining=True)
    world = World(web(ONE, TWO))
    world.record = listed(web(draining, TWO))
    world.run(10)
    assert world.record == listed(web(draining, TWO))
    assert world.keeps == {B}


def test_draining_by_the_file_is_the_files() -> None:
    """What the file drains serves again when the file says so."""
    draining = ONE._replace(draining=True)
    world = World(web(draining, TWO))
    world.writes(10.5, listed(web(ONE, TWO)))
    world.run(20)
    assert world.record == listed(web(ONE, TWO))


def test_a_list_that_is_what_was_applied_is_not_taken() -> None:
    """The record says what was applied, and that is nobody else's."""
    intent = Intent(listed(web(ONE)), listed(web(ONE)), checked=True)
    assert not intent.heed(listed(web(ONE)))
    assert intent.effective(set()) is intent.file


# --- what fails ---------------------------------------------------------------------------------


def test_the_first_apply_fails() -> None:
    """What does not go away by itself ends it at the start."""
    world = World(web(ONE))
    world.errors = [BadInput("somebody else's chains")]
    with pytest.raises(BadInput):
        world.run(10)


@pytest.mark.parametrize("error", [Locked("held"), Changed("it waits for its confirmation")])
def test_the_first_apply_waits(error: NfctlError) -> None:
    """A lock, or a confirmation that another nfctl waits for, is waited for: 5 seconds at most."""
    world = World(web(ONE))
    world.errors = [error] * 6
    world.run(60)
    assert [at for at, _ in world.applied()] == [0, 1, 3, 7, 12, 17, 22]
    assert world.record == listed(web(ONE))


def test_what_fails_is_tried_again() -> None:
    """After 1, 2, 4 and so on up to 60 seconds; nothing that comes meanwhile hurries that."""
    world = World(web(ONE, TWO))
    world.at(5, lambda: world.errors.extend([RolledBack("it failed")] * 8))
    world.health(10, A, healthy=False)
    world.health(15, B, healthy=False)
    world.run(400)
    assert [facts["retry"] for facts in world.facts("apply-failed")] == [
        1, 2, 4, 8, 16, 32, 60, 60
    ]  # fmt: skip
    assert world.record == listed(web(out(ONE), out(TWO)))


def test_a_new_file_ends_the_waiting() -> None:
    """Who writes another file need not wait for the next try."""
    world = World(web(ONE, TWO))
    world.at(5, lambda: world.errors.extend([RolledBack("it failed")] * 7))
    world.health(10, A, healthy=False)
    world.writes(100.5, listed(web(TWO)))
    world.run(110)
    assert world.applied()[-1] == (102.0, listed(web(TWO)))


# --- telling ------------------------------------------------------------------------------------


def test_the_manager_is_told(tmp_path: Path) -> None:
    """READY, RELOADING with its time, the watchdog's WATCHDOG, and STOPPING; and how it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000",
            "WATCHDOG_PID": str(os.getpid()),
        }  # fmt: skip
        notifier = Notifier(environment, clock=lambda: 77.0)
        world = World(web(ONE, TWO), look=3600.0)
        world.health(5, A, healthy=False)
        world.signals(15, signal.SIGHUP)
        world.run(40, notifier)
        notifier.close()
        said = []
        while True:
            try:
                said.append(manager.recv(4096).decode())
            except BlockingIOError:
                break
    assert said[0] == "READY=1\nSTATUS=1 services, 2 endpoints"
    assert "STATUS=1 services, 2 endpoints, 1 unhealthy" in said
    assert "RELOADING=1\nMONOTONIC_USEC=77000000" in said
    assert said.count("WATCHDOG=1") >= 4
    assert said[-1] == "STOPPING=1\nSTATUS=ended by SIGTERM"


def test_json_has_what_the_docstring_says(capfd: pytest.CaptureFixture[str]) -> None:
    """Every event is a document on a line, with the keys that are documented."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.breaks(20)
    world.writes(30.5, BadInput("no"))
    world.run(40)
    teller = ServiceTeller(json=True)
    for _, event in world.told:
        teller(event)
    documents = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [one["event"] for one in documents] == [event.kind for _, event in world.told]
    assert documents[0]["time"] == "1970-01-01T00:16:40.000Z"
    from nfctl.control.serving import watch as module

    assert module.__doc__
    for one in documents:
        for key in one.keys() - {"event", "time"}:
            assert f"``{key}``" in module.__doc__, f"{key} of {one['event']}"


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """-q leaves health and what goes wrong."""
    world = World(web(ONE, TWO))
    world.health(10, A, healthy=False)
    world.run(20)
    teller = ServiceTeller(json=False, quiet=True)
    for _, event in world.told:
        teller(event)
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(" ", 1)[-1] for line in lines] == [
        "a note", "UNHEALTHY: 10.0.0.1:80 of web: as the test says"
    ]  # fmt: skip


# --- around it ----------------------------------------------------------------------------------


def test_the_waiter_polls_the_prober_too() -> None:
    """A descriptor besides notices and signals ends the wait, and is left to its owner."""

    class NoNotices:
        fds: tuple[int, ...] = ()

        def take(self) -> list[Notice]:
            raise AssertionError("nothing has come from there")

    ours, theirs = socket.socketpair()
    with ours, theirs, waiting.Waiter(NoNotices(), ours) as waiter:  # type: ignore[arg-type]
        theirs.send(b"x")
        assert waiter(60.0) == Woken([], [])
        assert ours.recv(1) == b"x"
        os.kill(os.getpid(), signal.SIGHUP)
        assert waiter(60.0) == Woken([], [signal.SIGHUP])


def test_the_stamp_of_a_file(tmp_path: Path) -> None:
    """It differs after each rename and write, and stays otherwise; a file that is gone has none."""
    file = tmp_path / "services.yaml"
    source = ListFile(str(file), "MINE")
    assert source.stamp() is None
    file.write_text("services: []\n", encoding="utf-8")
    stamps = [source.stamp()]
    assert source.read() == Read(ServiceList(prefix="MINE-"), source.read().files, stamps[0])
    for name in ("one", "two"):  # of the same size and time, put in its place
        other = tmp_path / name
        other.write_text("services: []\n", encoding="utf-8")
        os.utime(other, ns=(0, 0))
        other.rename(file)
        stamps.append(source.stamp())
    assert len(set(stamps)) == 3
    assert source.stamp() == stamps[-1]


def test_a_file_that_cannot_be_read_again(tmp_path: Path) -> None:
    """A FIFO is refused, which nobody may ever write to: whoever opens it waits."""
    fifo = tmp_path / "services.yaml"
    os.mkfifo(fifo)
    with pytest.raises(BadInput, match="not a file that can be read again"):
        ListFile(str(fifo)).read()


@pytest.mark.parametrize(
    ("prefix", "error", "says", "hint"),
    [
        ("NFCTL-", Locked("it is held", hint="-w SECONDS waits longer"), "it is held", ""),
        ("MINE-", AnswerNo("it would cut you off", hint="--force"), "it would cut you off",
         "nothing was changed; nfctl service apply 'my services' --force --prefix MINE- does it "
         "all the same"),
    ],
)  # fmt: skip
def test_what_a_watch_says_of_a_refusal(
    monkeypatch: pytest.MonkeyPatch, prefix: str, error: NfctlError, says: str, hint: str
) -> None:
    """It has no --force, and tries again by itself; for a lock it waits 10 seconds at most."""
    waits: list[float] = []

    def keep(*_: Any, options: ApplyOptions, **_more: Any) -> None:
        waits.append(options.wait)
        raise error

    monkeypatch.setattr(changing, "keep", keep)
    host = Host(prefix, State(Path("/nowhere")), wait=3600)
    with pytest.raises(type(error)) as raised:
        host.apply(lambda _: listed(), [("my services", "")], repair=False)
    assert (raised.value.message, raised.value.hint) == (says, hint)
    assert waits == [10.0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"file": "-"}, "standard input cannot be read again"),
        ({"interval": 0.0}, "--interval 0: it is 0.1 seconds at least"),
        ({"interval": float("nan")}, "--interval nan"),
        ({"rise": 3}, "--rise says how to check, and nothing is checked"),
        ({"check_timeout": 3.0}, "--check-timeout says how to check"),
        ({"check_health": "ftp"}, "'ftp' is no health check"),
        ({"check_health": "tcp", "fall": 0}, "0 is no number of checks to fall"),
        ({"check_health": "tcp", "check_interval": 0.0}, "0 s is no interval"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    """They are refused before anything is read or written."""
    with pytest.raises(BadInput, match=says):
        watch(**{"file": "/nowhere", **options})
