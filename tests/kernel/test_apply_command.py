"""``nfctl apply``: what it does to the tables, what it says, and what it answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.control.journal.state import State
from nfctl.lab import fork
from tests.kernel import play
from tests.kernel.confirming import Guardian, expire, find_guardian
from tests.kernel.test_lock import LOCK, holding

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.conftest import Namespace
    from tests.kernel.play import Said

pytestmark = pytest.mark.kernel

LIVE = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
[7:700] -A INPUT -i lo -j ACCEPT
[5:500] -A INPUT -j DOCKER
[3:300] -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT
[2:200] -A DOCKER -j RETURN
COMMIT
"""
POLICY = """\
version: 1
families: [ipv4]
tables:
  filter:
    INPUT:
      policy: drop
      rules:
        - -i lo -j ACCEPT
        - --protocol tcp --dport 22 -j ACCEPT
"""
AFTER = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
[7:700] -A INPUT -i lo -j ACCEPT
[5:500] -A INPUT -j DOCKER
[0:0] -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
[2:200] -A DOCKER -j RETURN
COMMIT
"""
SHOWN = """\
filter (IPv4)
@@ INPUT, policy ACCEPT -> DROP @@
  -A INPUT -i lo -j ACCEPT
~ -A INPUT -j DOCKER  # kept: Docker
- -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT  # 3 packets
+ -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
"""


class Host:
    """A namespace with rules, a policy's file, and a journal of its own."""

    def __init__(self, netns: Namespace, directory: Path) -> None:
        self.netns = netns
        self.policy = directory / "policy.yaml"
        self.policy.write_text(POLICY)
        self.directory = directory / "state"
        self.state = State(self.directory)
        assert netns.run(["iptables-legacy-restore", "-c"], LIVE).returncode == 0

    def nfctl(self, *words: str, text: str = "") -> Said:
        state = str(self.directory)
        return self.netns.python(play.nfctl, words, text, NFCTL_STATE_DIR=state)

    def apply(self, *words: str) -> Said:
        return self.nfctl("apply", str(self.policy), *words)

    def saved(self) -> str:
        return self.netns.save(4, "-c")

    def document(self, *words: str) -> dict[str, Any]:
        said = self.apply("--json", *words)
        assert (said.code, said.err) == (0, "")
        document: dict[str, Any] = json.loads(said.out)
        return document


@pytest.fixture
def host(netns: Namespace, tmp_path: Path) -> Host:
    return Host(netns, tmp_path)


# --- applying -------------------------------------------------------------------------------------


def test_it_makes_the_tables_what_the_policy_says(host: Host) -> None:
    """Rules go and come in place: what stays keeps its counters, what is Docker's stays."""
    said = host.apply()
    assert (said.code, said.err) == (0, "")
    assert host.saved() == AFTER
    assert said.out.startswith(SHOWN)
    assert said.out.endswith("\napplied: history entry 1; nfctl rollback undoes it\n")
    entry = host.state.entry(1)
    assert entry.status == "applied"
    assert entry.before_text(4) == LIVE


def test_twice_is_once(host: Host) -> None:
    """What is there already is not written again: no entry, no counter, no word but that."""
    host.apply()
    said = host.apply()
    assert said == (0, "nothing to change\n", "")
    assert host.saved() == AFTER
    assert len(host.state.entries()) == 1


def test_quiet(host: Host) -> None:
    """--quiet does it without a word."""
    assert host.apply("--quiet") == (0, "", "")
    assert host.saved() == AFTER


def test_standard_input(host: Host) -> None:
    """A policy may come by a pipe."""
    assert host.nfctl("apply", "-", text=POLICY).code == 0
    assert host.saved() == AFTER


def test_save_files(host: Host, tmp_path: Path) -> None:
    """With -4 and -6 files of iptables-save are the policy, of both families at once."""
    four, six = tmp_path / "rules.v4", tmp_path / "rules.v6"
    four.write_text("*filter\n-A INPUT -s 192.0.2.0/24 -j DROP\nCOMMIT\n")
    six.write_text("*filter\n-A INPUT -s 2001:db8::/32 -j DROP\nCOMMIT\n")
    assert host.nfctl("apply", "-4", str(four), "-6", str(six)).code == 0
    assert "-A INPUT -s 192.0.2.0/24 -j DROP\n" in host.netns.save()
    assert "-A INPUT -s 2001:db8::/32 -j DROP\n" in host.netns.save(6)


def test_exclusive(host: Host) -> None:
    """--exclusive takes the whole table: Docker's rules go, too."""
    assert host.apply("--exclusive").code == 0
    assert "DOCKER" not in host.saved()


# --- refusing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no policy"),
        (["{policy}", "--confirm", "0"], "between 1 and"),
        (["{policy}", "--confirm", "nan"], "between 1 and"),
        (["{policy}", "--confirm", "inf"], "between 1 and"),
        (["{policy}", "--confirm", "100000"], "between 1 and"),
        (["{policy}", "--guard", "tcp nonsense"], "--guard"),
        (["/nowhere/policy.yaml"], "/nowhere/policy.yaml"),
    ],
)
def test_bad_usage(host: Host, words: list[str], said: str) -> None:
    """What makes no sense is refused with exit code 2, and nothing is changed."""
    done = host.nfctl("apply", *(word.format(policy=host.policy) for word in words))
    assert done.code == 2
    assert said in done.err
    assert host.saved() == LIVE


def test_a_policy_that_is_wrong(host: Host) -> None:
    """A rule that libxtables does not take is named by file, line and column; nothing is done."""
    host.policy.write_text(POLICY + "        - -p tcp --dport http$\n")
    done = host.apply()
    assert done.code == 2
    assert f"{host.policy}:10:" in done.err
    assert host.saved() == LIVE
    assert not host.directory.exists() or host.state.entries() == []


def test_a_lock_that_is_held(host: Host) -> None:
    """While another program has the tables, the answer is exit code 4, and nothing is done."""
    with holding(host.netns):
        done = host.apply("-w", "0")
    assert done.code == 4
    assert LOCK in done.err
    assert host.saved() == LIVE


def test_a_change_that_cuts_off(host: Host) -> None:
    """A guarded flow that the new rules would drop is named (exit 1); --force does it all the same.

    The document says what became of each flow.
    """
    for words in (
        "link add eth0 type veth peer name eth1",
        "address add 192.0.2.1/24 dev eth0",
        "link set eth0 up",
        "link set eth1 up",
    ):
        assert host.netns.run(["ip", *words.split()]).returncode == 0
    flow = "tcp 192.0.2.7:40000 > 192.0.2.1:23"
    refused = host.apply("--guard", flow)
    assert refused.code == 1
    assert flow in refused.err
    assert host.saved() == LIVE
    document = host.document("--guard", flow, "--force")
    assert [(one["flow"], one["allowed"]) for one in document["guard"]] == [(flow, False)]
    assert host.saved() == AFTER


# --- a saved plan ---------------------------------------------------------------------------------


@pytest.fixture
def plan(host: Host, tmp_path: Path) -> str:
    """Give a plan that was saved; its policy is gone."""
    file = tmp_path / "the.plan"
    assert host.nfctl("plan", str(host.policy), "--out", str(file)).code == 1
    host.policy.unlink()
    return str(file)


def test_a_saved_plan(host: Host, plan: str) -> None:
    """What was planned is applied, from the plan alone."""
    said = host.nfctl("apply", plan)
    assert said.code == 0
    assert said.out.startswith(SHOWN)
    assert host.saved() == AFTER


def test_a_plan_of_other_tables(host: Host, plan: str) -> None:
    """A table that somebody edited since is refused with exit code 4, and left as it is."""
    assert host.netns.legacy("-A", "INPUT", "-s", "192.0.2.9", "-j", "DROP").returncode == 0
    edited = host.saved()
    refused = host.nfctl("apply", plan)
    assert refused.code == 4
    assert "table filter (IPv4) was changed since the plan was made" in refused.err
    assert host.saved() == edited


@pytest.mark.parametrize("words", [["-4", "{plan}"], ["--exclusive"]], ids=["-4", "--exclusive"])
def test_a_plan_says_all(host: Host, plan: str, words: list[str]) -> None:
    """A saved plan with options that say something else is bad usage."""
    refused = host.nfctl("apply", plan, *(word.format(plan=plan) for word in words))
    assert refused.code == 2
    assert host.saved() == LIVE


# --- the document ---------------------------------------------------------------------------------


def test_the_document(host: Host) -> None:
    """--json prints one document: what was done, the entry, and the change as plan prints it."""
    planned = json.loads(host.nfctl("plan", str(host.policy), "--json").out)
    done = host.document()
    for change in (planned, done["change"]):
        for table in change["tables"]:
            del table["digest"]
    assert done == {
        "status": "applied",
        "policy": "default",
        "entry": 1,
        "confirm": None,
        "change": planned,
        "guard": [],
        "flushed": None,
    }
    again = host.document()
    assert (again["status"], again["entry"]) == ("unchanged", None)


def test_the_document_of_what_waits(host: Host) -> None:
    """With --confirm it says until when; nobody is asked."""
    done = host.document("--confirm", "600")
    assert (done["status"], done["entry"]) == ("unconfirmed", 1)
    assert done["confirm"]["seconds"] == 600
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", done["confirm"]["deadline"])
    assert host.nfctl("confirm").code == 0


def test_flows(host: Host) -> None:
    """--flush-flows says how many connections it looked at."""
    document = host.document("--flush-flows")
    assert document["flushed"] == {"examined": 0, "deleted": [], "skipped": []}


# --- another namespace ----------------------------------------------------------------------------


def test_another_namespace(host: Host, tmp_path: Path) -> None:
    """--netns applies, confirms and rolls back there; the watchdog is in that namespace, too."""
    name = host.netns._machine.namespace
    settings = {"NFCTL_STATE_DIR": str(host.directory), "XTABLES_LOCKFILE": str(tmp_path / "lock")}

    def nfctl(*words: str) -> Said:
        return fork.call(lambda: play.nfctl([*words, "--netns", name], **settings))

    said = nfctl("apply", str(host.policy), "--confirm", "600")
    assert said.code == 0, said.err
    assert f"confirm with: nfctl confirm --netns {name}" in said.out
    assert host.saved() == AFTER
    with Guardian(find_guardian(host.directory)) as guardian:
        assert nfctl("confirm").code == 0
        guardian.wait()
    (tmp_path / "policy.yaml").write_text(POLICY.replace("22", "2222"))
    assert nfctl("apply", str(host.policy), "--confirm", "600").code == 0
    assert "--dport 2222" in host.saved()
    with Guardian(find_guardian(host.directory)) as guardian:
        expire(host.state, 2)
        guardian.wait()
    assert host.saved() == AFTER
