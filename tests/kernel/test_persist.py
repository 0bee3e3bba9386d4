"""What was confirmed last is restored into the tables of a new boot; or the machine is closed.

A boot is a network namespace that nobody has used yet. The state is on /run, which stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from nfctl.control import persist
from nfctl.control.apply import Options
from nfctl.control.apply import apply as apply_policy
from nfctl.control.journal.records import Record
from nfctl.control.persist import closed as persist_closed
from nfctl.control.persist import status as persist_status
from nfctl.control.persist import unit as persist_unit
from nfctl.errors import NfctlError
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedSet, WantedTable
from tests.kernel import play
from tests.kernel.applying import (
    OPTIONS,
    PLACE,
    apply_text,
    forget,
    state,
    tables_of,
    wanted_of,
    written,
)
from tests.kernel.conftest import legacy, without_comments
from tests.kernel.test_lock import holding

if TYPE_CHECKING:
    from nfctl.control.persist import Restored
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

HOST = {
    4: """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:WEB - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,443 -j WEB
-A WEB -s 198.51.100.0/24 -m comment --comment "scanners, all of them" -j DROP
-A WEB -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o eth1 -j MASQUERADE
COMMIT
""",
    6: """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT
COMMIT
""",
}
OTHER = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 2222 -j ACCEPT\nCOMMIT\n"
CLOSED = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:RESTORE-FAILED - [0:0]
-A INPUT -j RESTORE-FAILED
-A FORWARD -j RESTORE-FAILED
-A RESTORE-FAILED -i lo -j ACCEPT
-A RESTORE-FAILED -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A RESTORE-FAILED -j DROP
COMMIT
"""
BOTH = ("iptables-legacy", "ip6tables-legacy")


def tables(family: int = 4) -> str:
    """Return all tables as the oracle prints them, sorted, without counters."""
    done = play.oracle([f"{legacy(family)}-save"])
    assert done.code == 0, done.err
    text = re.sub(r"\[\d+:\d+\]", "[0:0]", without_comments(done.out))
    # the kernel names the tables in the order in which they came into use
    return "".join(part for _, part in sorted(tables_of(text).items()))


def everything() -> tuple[str, str]:
    return tables(4), tables(6)


class Failure(NamedTuple):
    """How a restore failed."""

    code: int
    message: str


def boot(mode: str = "closed", *, needed: bool = True) -> Restored | Failure:
    """Start a machine anew: no table is in use, and then the restore."""
    play.fresh()
    return again(mode, needed=needed)


def again(mode: str = "closed", *, needed: bool = True, wait: float = 5.0) -> Restored | Failure:
    try:
        return persist.restore_or_fail(state(), mode, needed=needed, wait=wait)
    except NfctlError as error:
        return Failure(error.exit_code, error.message)


def damage() -> dict[Path, bytes]:
    """Change a rule of the records; return the files as they were."""
    before = {file: file.read_bytes() for file in (PLACE / "policies/default").glob("*.v4")}
    for file, data in before.items():
        file.write_bytes(data.replace(b"ACCEPT", b"DROP", 1))
    return before


def mend(before: dict[Path, bytes]) -> None:
    for file, data in before.items():
        file.write_bytes(data)


def confirmed(rule: str, name: str = "default", **tables: WantedTable) -> None:
    """Put a record into the state as if it had been confirmed."""
    filter_ = WantedTable({"INPUT": WantedChain([WantedRule(rule)], "DROP")})
    record = Record.of(Wanted(name, {4: {"filter": filter_, **tables}}), False)
    state().put_record(record, confirmed=True)


# --- restoring ------------------------------------------------------------------------------------


def test_what_was_applied_is_there_after_a_boot(netns: Namespace) -> None:
    """Tables, chains and policies of both families are byte for byte what they were."""

    def inside() -> tuple[object, object, bool]:
        apply_text(HOST)
        before = everything()
        assert before == (HOST[4], HOST[6])
        done = boot()
        assert not isinstance(done, Failure), done
        return before, everything(), done.change is not None and done.change.changes

    before, after, changed = netns.python(inside)
    assert after == before
    assert changed


def test_a_second_restore_writes_nothing(netns: Namespace) -> None:
    """Where all of it is there no table is replaced: counters go on; and no file is written."""

    def inside() -> None:
        apply_text(HOST)
        boot()
        play.oracle(["iptables-legacy", "-A", "OUTPUT", "-d", "127.0.0.1/32", "-j", "ACCEPT"])
        play.oracle(["iptables-legacy", "-D", "OUTPUT", "1"])
        play.load(play.saved().replace("[0:0] -A INPUT -i lo", "[7:700] -A INPUT -i lo"))
        before, files = play.saved(), written()
        assert "[7:700]" in before
        done = again()
        assert not isinstance(done, Failure)
        assert done.change is not None
        assert not done.change.changes
        assert play.saved() == before
        assert written() == files

    netns.python(inside)


def test_what_was_never_confirmed_is_not_restored(netns: Namespace) -> None:
    """A boot between apply --confirm and its confirmation comes up with the confirmed rules."""

    def inside() -> tuple[str, str, str, bool]:
        apply_text(HOST)
        before = tables()
        outcome = apply_text(OTHER, confirm=600)
        assert "2222" in tables()
        assert outcome.entry is not None
        guardian(outcome.entry.number, "earlier")
        boot()
        entry = state().entry(outcome.entry.number)
        same = state().record("default") == state().record("default", confirmed=True)
        return before, tables(), f"{entry.status}: {entry.reason}", same

    before, after, became, same = netns.python(inside)
    assert after == before
    assert became == "rolled back: the machine was restarted before the confirmation"
    assert same


def guardian(number: int, boot_id: str) -> None:
    """Have the watchdog end as a machine's restart ends it, and its entry be of another boot."""
    from nfctl.control.confirmation import watchdog

    state().mark(number, "unconfirmed", boot_id=boot_id)
    assert watchdog._tell(state(), number, watchdog.END)


def test_a_policy_that_was_never_confirmed_is_forgotten(netns: Namespace) -> None:
    """Of a first apply that was not confirmed nothing is there after a boot, no record either."""

    def inside() -> tuple[str, list[str]]:
        outcome = apply_text(OTHER, confirm=600)
        assert outcome.entry is not None
        guardian(outcome.entry.number, "earlier")
        done = boot()
        assert not isinstance(done, Failure), done
        return tables(), [record.name for record in state().records()]

    assert netns.python(inside) == ("", [])


def test_a_change_that_waits_stays(netns: Namespace) -> None:
    """While a change of this boot waits for its confirmation nothing is restored or closed."""

    def inside() -> Restored | Failure:
        apply_text(HOST)
        outcome = apply_text(OTHER, confirm=600)
        before = everything()
        done = again()
        assert everything() == before
        assert outcome.entry is not None
        guardian(outcome.entry.number, "earlier")
        return done

    done = netns.python(inside)
    assert isinstance(done, Failure)
    assert done.code == 4
    assert "waits for its confirmation" in done.message


def test_rules_of_others_stay(netns: Namespace) -> None:
    """What another program put into the tables before is still there, around ours."""
    theirs = "-A INPUT -j DOCKER-USER"

    def inside() -> str:
        apply_text(OTHER)
        play.fresh()
        for words in ("-N DOCKER-USER", theirs):
            assert play.oracle(["iptables-legacy", *words.split()]).code == 0
        again()
        return tables()

    after = netns.python(inside)
    assert theirs in after
    assert "--dport 2222" in after


# --- several policies -----------------------------------------------------------------------------

SPECS = [f"-p tcp -m tcp --dport {port} -j ACCEPT" for port in range(20, 26)] + ["-i lo -j ACCEPT"]


def policy(name: str, rules: list[str], chain: str) -> Wanted:
    """Return a policy that shares INPUT and FORWARD with others, and has a chain of its own."""
    chains = {
        "INPUT": WantedChain([WantedRule(rule) for rule in rules]),
        "FORWARD": WantedChain([WantedRule(rule) for rule in rules[::-2]]),
        chain: WantedChain([WantedRule(rule) for rule in rules[:2]]),
    }
    return Wanted(name, {4: {"filter": WantedTable(chains)}})


def test_two_policies_come_back_in_their_order(netns: Namespace) -> None:
    """However they were applied, changed and taken back: INPUT, which they share, is the same."""

    def inside(seed: int) -> tuple[str, str]:
        pick = random.Random(seed)
        forget()
        play.fresh()
        for _ in range(pick.randint(2, 6)):
            name = pick.choice(["web", "base", "vpn"])
            rules = pick.sample(SPECS, pick.randint(0, 5))
            apply_policy(policy(name, rules, name.upper()), state=state(), options=OPTIONS)
            if pick.random() < 0.2:
                from nfctl.control.undo import rollback

                with contextlib.suppress(NfctlError):
                    rollback(state())
        before = tables()
        done = boot()
        assert not isinstance(done, Failure), (seed, done)
        return before, tables()

    def all_of_them() -> list[tuple[int, str, str]]:
        found = [(seed, *inside(seed)) for seed in range(40)]
        assert any(before.count("-A INPUT") > 5 and before.count(":") > 4 for _, before, _ in found)
        return [one for one in found if one[1] != one[2]]

    assert netns.python(all_of_them) == []


def test_a_damaged_journal_costs_only_the_order(netns: Namespace) -> None:
    """Where the journal cannot be read all rules of both policies are there all the same."""

    def inside() -> tuple[list[str], list[str]]:
        for name, rules in (("web", SPECS[:2]), ("base", SPECS[2:4])):
            apply_policy(policy(name, rules, name.upper()), state=state(), options=OPTIONS)
        before = tables()
        for file in (PLACE / "history").glob("*/entry.json"):
            file.write_text("{")
        done = boot()
        assert not isinstance(done, Failure), done
        return sorted(before.splitlines()), sorted(tables().splitlines())

    before, after = netns.python(inside)
    assert after == before


# --- sets -----------------------------------------------------------------------------------------


def test_sets_come_before_the_rules_that_name_them(netns: Namespace) -> None:
    """Ipsets are there again with their entries, and the rules that look into them."""
    wanted = wanted_of_sets()

    def inside() -> tuple[list[str], list[str]]:
        apply_policy(wanted, state=state(), options=OPTIONS)
        before = listed()
        done = boot()
        assert not isinstance(done, Failure), done
        return before, listed()

    before, after = netns.python(inside)
    assert "add bad 192.0.2.7" in before
    assert "-A INPUT -m set --match-set bad src -j DROP" in before
    assert after == before


def listed() -> list[str]:
    """Return tables and sets, without what a hash is seeded with, and in no order."""
    sets = play.oracle(["ipset", "save"]).out
    return sorted(f"{tables()}{re.sub(' (initval|bucketsize) [0-9a-fx]+', '', sets)}".splitlines())


def wanted_of_sets(*rules: str) -> Wanted:
    chain = [WantedRule("-m set --match-set bad src -j DROP"), *map(WantedRule, rules)]
    sets = [
        WantedSet("bad", "hash:ip", 4, {}, ["192.0.2.7", "192.0.2.8"]),
        WantedSet("nets", "list:set", 0, {}, ["bad"]),
    ]
    return Wanted("sets", {4: {"filter": WantedTable({"INPUT": WantedChain(chain)})}}, sets)


def test_sets_go_with_rules_that_are_refused(netns: Namespace) -> None:
    """Where a rule cannot be restored its sets do not stay behind."""

    def inside() -> tuple[Restored | Failure, str, str]:
        wanted = wanted_of_sets("-m nosuchmatch -j DROP")
        state().put_record(Record.of(wanted, False), confirmed=True)
        done = boot("open")
        return done, tables(), play.oracle(["ipset", "list", "-n"]).out

    done, after, sets = netns.python(inside)
    assert isinstance(done, Failure)
    assert "nosuchmatch" in done.message
    assert (after, sets) == ("", "")


# --- failing --------------------------------------------------------------------------------------


def test_a_damaged_record_fails_closed(netns: Namespace) -> None:
    """Both families let in nothing but lo and what is established; a restore later opens again."""

    def inside() -> None:
        apply_text(HOST)
        before = everything()
        before_that = damage()
        done = boot()
        assert isinstance(done, Failure)
        assert done.code == 1
        assert "was changed by another hand" in done.message
        assert "closed" in done.message
        assert everything() == (CLOSED, CLOSED)
        assert again() == done  # nor are there more rules for it
        assert everything() == (CLOSED, CLOSED)
        assert persist_closed.closed() == [4, 6]
        mend(before_that)
        mended = again()
        assert not isinstance(mended, Failure)
        assert mended.reopened == [4, 6]
        assert everything() == before

    netns.python(inside)


def test_what_closed_means(netns: Namespace) -> None:
    """This machine reaches itself, and connections that it makes are answered; others are not."""

    def inside() -> None:
        assert subprocess.run(["ip", "link", "set", "lo", "up"], check=False).returncode == 0
        assert persist_closed.close() == []
        with socket.create_server(("127.0.0.1", 0)) as server:
            with socket.create_connection(server.getsockname(), timeout=5):
                pass
            # the same packets, as if they had come by another way than lo
            for tool in BOTH:
                number = 1
                assert play.oracle([tool, "-D", "RESTORE-FAILED", str(number)]).code == 0
            with pytest.raises(TimeoutError):
                socket.create_connection(server.getsockname(), timeout=0.3)

    netns.python(inside)


def test_a_damaged_record_fails_open(netns: Namespace) -> None:
    """Where that was asked for the tables are left empty."""

    def inside() -> None:
        apply_text(HOST)
        damage()
        done = boot("open")
        assert isinstance(done, Failure)
        assert done.code == 1
        assert "left as they were" in done.message
        assert everything() == ("", "")

    netns.python(inside)


def test_rules_of_others_do_not_open_what_is_closed(netns: Namespace) -> None:
    """What accepts more stands behind what closes, and is still there when it opens again."""
    theirs = "-A INPUT -j ACCEPT"

    def inside() -> None:
        apply_text("*mangle\n-A INPUT -p udp -j ACCEPT\nCOMMIT\n")
        before_that = damage()
        play.fresh()
        play.oracle(["iptables-legacy", *theirs.split()])
        before = tables()
        assert isinstance(again(), Failure)
        after = tables()
        assert after.index("-A INPUT -j RESTORE-FAILED") < after.index(theirs)
        mend(before_that)
        assert not isinstance(again(), Failure)
        assert before in tables()

    netns.python(inside)


def test_an_apply_mends_a_damaged_record(netns: Namespace) -> None:
    """The policy can be applied again: that opens its chains, and a restore does the rest."""

    def inside() -> None:
        apply_text(OTHER)
        before = tables()
        damage()
        assert isinstance(boot(), Failure)
        assert apply_text(OTHER).status == "applied"
        assert "-j RESTORE-FAILED" not in tables().partition("*filter")[2].partition("FORWARD")[0]
        done = again()
        assert not isinstance(done, Failure), done
        assert everything() == (before, play.EMPTY)
        assert persist_closed.marked() == []

    netns.python(inside)


@pytest.mark.parametrize("which", ["record", "settings", "state"])
def test_a_state_that_is_gone(netns: Namespace, which: str) -> None:
    """A record whose text is gone closes, and so does a state that is gone; settings do not."""

    def inside() -> None:
        apply_text(HOST)
        if which == "record":
            next((PLACE / "policies/default").glob("*.v6")).unlink()
        elif which == "settings":
            (PLACE / "settings.json").write_text("{")
            assert persist.fail_mode(state()) == "closed"
            assert not isinstance(boot(), Failure)
            assert tables() == HOST[4]
            return
        else:
            subprocess.run(["rm", "-r", str(PLACE)], check=True)
        assert isinstance(boot(), Failure)
        assert everything() == (CLOSED, CLOSED)

    netns.python(inside)


def test_a_machine_without_policies_is_left_alone(netns: Namespace) -> None:
    """By hand, where nfctl has never been used, nothing is closed and nothing written."""

    def inside() -> tuple[Restored | Failure, tuple[str, str]]:
        return boot(needed=False), everything()

    done, after = netns.python(inside)
    assert not isinstance(done, Failure)
    assert after == ("", "")


def test_one_bad_rule_restores_nothing(netns: Namespace) -> None:
    """Of two policies none is restored if one cannot be; the message names the policy."""

    def inside() -> Restored | Failure:
        confirmed("-i lo -j ACCEPT", "good")
        confirmed("-m nosuchmatch -j ACCEPT", "poor", mangle=WantedTable({"INPUT": WantedChain()}))
        record = state().record("poor", confirmed=True)
        assert record is not None
        record.text[4] = record.text[4].replace(":INPUT DROP", ":INPUT -")
        state().put_record(record, confirmed=True)
        done = boot()
        assert everything() == (CLOSED, CLOSED)
        return done

    done = netns.python(inside)
    assert isinstance(done, Failure)
    assert "nosuchmatch" in done.message


def test_what_the_kernel_refuses_is_put_back(netns: Namespace) -> None:
    """A table that the kernel refuses takes those along that were written before it."""

    def inside() -> tuple[Restored | Failure, str]:
        # libxtables takes it, the kernel does not: MASQUERADE is for POSTROUTING
        chains = {"PREROUTING": WantedChain([WantedRule("-j MASQUERADE")])}
        raw = {"PREROUTING": WantedChain([WantedRule("-p udp -m udp --dport 514 -j CT --notrack")])}
        confirmed("-i lo -j ACCEPT", raw=WantedTable(raw), nat=WantedTable(chains))
        done = boot("open")
        return done, tables()

    done, after = netns.python(inside)
    assert isinstance(done, Failure)
    assert "MASQUERADE" in done.message
    assert "-A" not in after
    assert "DROP" not in after


def test_names_are_not_looked_up(netns: Namespace) -> None:
    """A rule with a host's name is refused: there is nobody to ask before the network is up."""

    def inside() -> Restored | Failure:
        confirmed("-s localhost -j ACCEPT")
        return boot("open")

    done = netns.python(inside)
    assert isinstance(done, Failure)
    assert done.code == 2
    assert "localhost" in done.message


def test_what_is_not_as_it_should_be_is_put_back(
    netns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a look afterwards finds something else than what was confirmed, all is put back."""

    def inside() -> None:
        apply_text(HOST)
        verify = persist._verify

        def disturbed(wanted: Wanted, records: list[Record]) -> None:
            # a program that does not ask for the lock
            words = ["env", "XTABLES_LOCKFILE=/run/other", "iptables-legacy", "-D", "WEB", "1"]
            assert play.oracle(words).code == 0
            verify(wanted, records)

        monkeypatch.setattr(persist, "_verify", disturbed)
        done = boot("open")
        assert isinstance(done, Failure)
        assert "IPv4 filter WEB: 1 rule missing" in done.message
        assert [line for line in tables().splitlines() if line[:2] == "-A"] == []
        assert ":INPUT DROP" not in tables()

    netns.python(inside)


def test_a_lock_that_is_not_to_be_had(netns: Namespace) -> None:
    """While another program holds the xtables lock nothing can be closed, and that is said."""
    netns.python(apply_text, HOST)
    before = netns.save()
    with holding(netns):
        done = netns.python(again, wait=0.1)
    assert isinstance(done, Failure)
    assert done.code == 3
    assert "AND NOT CLOSED" in done.message
    assert "xtables lock" in done.message
    assert netns.save() == before


def test_a_state_that_cannot_be_written(netns: Namespace) -> None:
    """A read-only root keeps nothing from being restored."""

    def inside() -> None:
        apply_text(HOST)
        mount = ["mount", "-o", "bind", str(PLACE), str(PLACE)]
        assert subprocess.run(mount, check=False).returncode == 0
        mount = ["mount", "-o", "remount,bind,ro", str(PLACE)]
        assert subprocess.run(mount, check=False).returncode == 0
        done = boot()
        assert not isinstance(done, Failure), done
        assert everything() == (HOST[4], HOST[6])
        assert "read-only" in "".join(done.notes)

    netns.python(inside)


# --- the unit's last resort -----------------------------------------------------------------------


def last_resort(result: str, status: str) -> None:
    """Run what systemd runs after the service has stopped."""
    tools = [f"/usr/sbin/{name}" for name in BOTH]
    environment = os.environ | {"SERVICE_RESULT": result, "EXIT_STATUS": status}
    words = ["/bin/sh", "-c", persist_unit._closing(tools)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_python_that_does_not_start(netns: Namespace) -> None:
    """Where the interpreter is gone the shell closes as nfctl does, and nfctl opens it again."""

    def inside() -> None:
        apply_text(HOST)
        play.fresh()
        last_resort("exit-code", "203")
        assert everything() == (CLOSED, CLOSED)
        last_resort("timeout", "TERM")
        assert everything() == (CLOSED, CLOSED)
        assert not isinstance(again(), Failure)
        assert everything() == (HOST[4], HOST[6])

    netns.python(inside)


@pytest.mark.parametrize("how", [("success", "0"), ("exit-code", "4")])
def test_the_last_resort_knows_when_it_is_none(netns: Namespace, how: tuple[str, str]) -> None:
    """After a good restore, and while a change waits for its confirmation, it does nothing."""

    def inside() -> None:
        apply_text(HOST)
        last_resort(*how)
        assert everything() == (HOST[4], HOST[6])

    netns.python(inside)


# --- the commands ---------------------------------------------------------------------------------


def test_the_commands(netns: Namespace) -> None:
    """Restore says what it did; its option wins over the setting, and the setting decides else."""

    def nfctl(*words: str) -> play.Said:
        return play.nfctl(["persist", *words], NFCTL_STATE_DIR=str(PLACE))

    def inside() -> list[play.Said]:
        play.fresh()
        return [nfctl("restore", *words) for words in ([], [], ["--fail", "open"])]

    netns.python(apply_text, HOST)
    first, second, third = netns.python(inside)
    assert (first.code, first.err) == (0, "")
    assert re.match(r"policy default: 8 rules, of 2\S+Z\nrestored and verified\n", first.out)
    assert second.out.endswith("all of it was there: nothing written\n")
    assert third.code == 0

    def failing(*words: str, mode: str = "") -> tuple[play.Said, tuple[str, str]]:
        play.fresh()
        if mode:
            state().set_setting(persist.SETTING, mode)
        return nfctl("restore", *words), everything()

    netns.python(damage)
    said, after = netns.python(failing)
    assert (said.code, after) == (1, (CLOSED, CLOSED))
    assert said.err.startswith("nfctl: error: not restored: /run/state/policies/default/")
    assert netns.python(failing, "--fail", "open")[1] == ("", "")
    assert netns.python(failing, mode="open")[1] == ("", "")
    assert netns.python(failing, "--fail", "closed")[1] == (CLOSED, CLOSED)


def look() -> persist_status.Status:
    status = persist_status.Status(str(PLACE))
    persist_status.look_at_policies(status, state())
    return status


def test_status_of_policies(netns: Namespace) -> None:
    """It tells what is well, what differs, what waits, what is damaged and that all is closed."""

    def inside() -> None:
        apply_text(HOST)
        confirmed_at = state().record("default")
        assert confirmed_at is not None
        status = look()
        (one,) = status.policies
        assert (one.name, one.state, one.rules) == ("default", "ok", 8)
        assert (one.when, one.digest) == (confirmed_at.when, confirmed_at.digest)
        assert status.ok
        play.oracle(["iptables-legacy", "-D", "INPUT", "1"])
        status = look()
        assert [str(drift) for drift in status.differs] == ["IPv4 filter INPUT: 1 rule missing"]
        assert not status.ok
        assert json.loads(json.dumps(status.document()))["differs"][0]["chain"] == "INPUT"
        apply_text(HOST)
        outcome = apply_text(OTHER, confirm=600)
        assert outcome.entry is not None
        status = look()
        assert status.waiting == outcome.entry.number
        assert status.differs
        assert status.ok  # a boot would undo it, as it should
        guardian(outcome.entry.number, "earlier")
        damage()
        status = look()
        assert [one.state for one in status.policies] == ["damaged"]
        assert "was changed by another hand" in status.policies[0].problem
        again()
        assert look().closed == [4, 6]

    netns.python(inside)


def test_status_knows_what_cannot_be_restored(netns: Namespace) -> None:
    """A policy that was applied with --resolve is told before the boot that cannot restore it."""

    def inside() -> persist_status.Status:
        wanted = wanted_of({4: "*filter\n-A INPUT -s localhost -j ACCEPT\nCOMMIT\n"})
        options = Options(guard_ssh=False, resolve=True)
        apply_policy(wanted, state=state(), options=options)
        return look()

    status = netns.python(inside)
    assert [one.state for one in status.policies] == ["ok"]
    assert "it cannot be restored" in status.problems[0]
    assert "localhost" in status.problems[0]


def test_without_policies_status_is_no(netns: Namespace) -> None:
    """Where nothing is confirmed there is nothing to restore, and nothing is made by looking."""

    def inside() -> tuple[list[str], bool]:
        return look().problems, Path(PLACE).exists()

    problems, made = netns.python(inside)
    assert problems == ["no policy is confirmed: there is nothing to restore"]
    assert not made
