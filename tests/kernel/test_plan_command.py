"""``nfctl plan``: what it shows, what it answers, and that it changes nothing."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

import pytest

from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

LIVE = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:OLD - [0:0]
[0:0] -A INPUT -i lo -j ACCEPT
[7:420] -A INPUT -j DOCKER
[1234:98765] -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT
[5:300] -A OLD -j ACCEPT
COMMIT
"""
POLICY = """\
version: 1
name: web
families: [ipv4]
tables:
  filter:
    INPUT:
      policy: drop
      rules:
        - -i lo -j ACCEPT
        - --protocol tcp --dport 22 -j ACCEPT
    WEB:
      - -j ACCEPT
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """Give the name of a policy's file."""
    file = tmp_path / "web.yaml"
    file.write_text(POLICY)
    return str(file)


@pytest.fixture
def live(netns: Namespace) -> Namespace:
    """Give a namespace with rules, of which some have counted."""
    assert netns.run(["iptables-legacy-restore", "-c"], LIVE).returncode == 0
    return netns


def test_it_shows_what_would_change_and_changes_nothing(live: Namespace, policy: str) -> None:
    """Rules that go, come and are kept are shown by chain; the kernel's tables stay as they are."""
    before = live.save(4, "-c")
    done = live.nfctl("plan", policy)
    assert done.stderr == ""
    assert done.returncode == 1
    assert (
        done.stdout
        == """\
filter (IPv4)
@@ INPUT, policy ACCEPT -> DROP @@
  -A INPUT -i lo -j ACCEPT
~ -A INPUT -j DOCKER  # kept: Docker
- -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT  # 1.2k packets
+ -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
@@ WEB, created @@
+ -A WEB -j ACCEPT

2 rules to add, 1 to delete, 1 kept of Docker; 1 policy to change; 1 chain to create
"""
    )
    assert live.save(4, "-c") == before


def test_tables_that_nobody_uses_are_not_brought_to_life(netns: Namespace, policy: str) -> None:
    """Looking at a table that is not in use leaves it so."""
    assert netns.nfctl("plan", policy).returncode == 1
    assert netns.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""


def test_exclusive_takes_what_is_of_others(live: Namespace, policy: str) -> None:
    """With --exclusive Docker's jump, its chain and a chain that nobody names go."""
    done = live.nfctl("plan", "--exclusive", policy)
    assert "- -A INPUT -j DOCKER  # 7 packets\n" in done.stdout
    assert "@@ DOCKER, deleted @@\n" in done.stdout
    assert "@@ OLD, deleted @@\n- -A OLD -j ACCEPT  # 5 packets\n" in done.stdout
    assert done.stdout.endswith("; 1 chain to create; 2 chains to delete\n")


def test_nothing_to_change(live: Namespace, policy: str) -> None:
    """After apply the plan is empty, and the exit code is 0."""
    assert live.nfctl("apply", policy).returncode == 0
    done = live.nfctl("plan", policy)
    assert (done.returncode, done.stdout) == (0, "nothing to change (1 rule kept of Docker)\n")
    full = live.nfctl("plan", "--full", policy).stdout
    assert "~ -A INPUT -j DOCKER  # kept: Docker\n" in full


def test_rules_are_compared_as_the_kernel_holds_them(netns: Namespace) -> None:
    """Another spelling of the same rule is no change."""
    rules = "*filter\n-A INPUT -s 10.1.2.3 -p 6 -m tcp --dport ssh -j ACCEPT\nCOMMIT\n"
    assert netns.run(["iptables-legacy-restore"], rules).returncode == 0
    other = rules.replace("10.1.2.3", "10.1.2.3/255.255.255.255").replace(
        "-m tcp --dport ssh", "--destination-port 22"
    )
    done = netns.nfctl("plan", "-4", "-", input=other)
    assert (done.returncode, done.stdout) == (0, "nothing to change\n")


def test_save_files_of_both_families(netns: Namespace, tmp_path: Path) -> None:
    """-4 and -6 are planned as one change, table by table."""
    for family in (4, 6):
        (tmp_path / f"rules.v{family}").write_text("*filter\n:FORWARD DROP\nCOMMIT\n")
    done = netns.nfctl(
        "plan", "-4", str(tmp_path / "rules.v4"), "-6", str(tmp_path / "rules.v6"), "--json"
    )
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert [(t["family"], t["table"]) for t in document["tables"]] == [(4, "filter"), (6, "filter")]
    assert document["summary"]["policies"] == 2
    assert [file["file"] for file in document["files"]] == [
        str(tmp_path / "rules.v4"), str(tmp_path / "rules.v6"),
    ]  # fmt: skip


def test_the_document(live: Namespace, policy: str) -> None:
    """--json says the same as the text, with places and exact counters."""
    document = json.loads(live.nfctl("plan", "--json", policy).stdout)
    assert document["changes"] is True
    assert document["policy"] == "web"
    chain = document["tables"][0]["chains"][0]
    assert [line["op"] for line in chain["lines"]] == ["same", "kept", "delete", "add"]
    deleted, added = chain["lines"][2:]
    assert (deleted["packets"], deleted["bytes"]) == (1234, 98765)
    assert added["where"] == f"{policy}:10:11"
    assert len(document["tables"][0]["digest"]) == 64


@pytest.mark.parametrize(
    ("right", "wrong", "place"),
    [
        ("--dport 22", "--dport ssh-port", "10:26"),
        ("22 -j ACCEPT", "22 -j NOWHERE", "10:40"),
        ("version: 1", "versoin: 1", "1:1"),
        ("policy: drop", "policy: dorp", "7:15"),
    ],
)
def test_a_wrong_policy_is_exit_code_2(
    live: Namespace, tmp_path: Path, right: str, wrong: str, place: str
) -> None:
    """What libxtables refuses, and what is no policy, is said with its place; nothing is shown."""
    file = tmp_path / "bad.yaml"
    file.write_text(POLICY.replace(right, wrong, 1))
    done = live.nfctl("plan", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {file}:{place}: " in done.stderr
    assert wrong in done.stderr  # the line, with a caret
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("rules", "circle"),
    [
        (["-A INPUT -j A", "-A A -f", "-A A -j B", "-A B -g A"], "A -> B -> A"),
        (["-A INPUT -p tcp -j A", "-A INPUT -j B", "-A A -j B", "-A B -j B"], "B -> B"),
        (["-A INPUT -j A", "-A INPUT -j B", "-A A -j B", "-A A -j B", "-A B -f"], ""),
        (["-A INPUT -f", "-A A -j B", "-A B -j A"], ""),
    ],
)
def test_a_circle_of_jumps(netns: Namespace, tmp_path: Path, rules: list[str], circle: str) -> None:
    """What the kernel refuses as a loop is refused before, at the rule that closes it."""
    text = "\n".join(["*filter", ":A - [0:0]", ":B - [0:0]", *rules, "COMMIT", ""])
    file = tmp_path / "rules.v4"
    file.write_text(text)
    done = netns.nfctl("plan", "-4", str(file))
    assert bool(circle) is bool(netns.run(["iptables-legacy-restore"], text).returncode)
    assert done.returncode == (2 if circle else 1)
    if circle:
        assert f"error: {file}:{3 + len(rules)}:" in done.stderr
        assert f"go round in a circle: {circle}\n" in done.stderr


def test_a_chain_that_is_nearly_a_built_in_one_is_said(netns: Namespace) -> None:
    """No packet meets a chain "input": the plan says so; one that runs already is nothing new."""
    text = "version: 1\nfamilies: [ipv4]\ntables: {filter: {input: [-j DROP]}}\n"
    note = "# chain input of table filter is a new one: the built-in one is INPUT\n"
    assert note in netns.nfctl("plan", "-", input=text).stdout
    assert netns.legacy("-N", "input").returncode == 0
    assert note not in netns.nfctl("plan", "-", input=text).stdout


def test_an_entry_of_a_set_has_its_place(netns: Namespace, tmp_path: Path) -> None:
    """An entry that ipset refuses is pointed at, in the list that has it, in either family."""
    file = tmp_path / "sets.yaml"
    file.write_text(
        "version: 1\nsets:\n  bad:\n    type: hash:net\n    family: [ipv4, ipv6]\n    entries:\n"
        '      - 192.0.2.1\n      - "2001:db8::1"\n      - "2001:db8::10000"\n'
    )
    done = netns.nfctl("plan", str(file))
    if done.returncode == 3:
        pytest.skip(f"needs ipset in the kernel: {done.stderr.strip()}")
    assert done.returncode == 2
    assert f"error: {file}:9:9: set bad-6: entry '2001:db8::10000'" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("/no/such/file",),
        ("-",),
        ("--out", "/no/such/directory/plan", "-"),
        ("--out", "-", "-"),
        ("--out", "/dev/null", "-"),
        ("-4", "/no/such/file"),
    ],
)
def test_wrong_words(netns: Namespace, words: tuple[str, ...]) -> None:
    """Whatever is typed wrongly is exit code 2 and a sentence."""
    done = netns.nfctl("plan", *words, input="tables: [")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nfctl: error: ")
    assert "Traceback" not in done.stderr


# --- saved plans -------------------------------------------------------------------------------


def test_a_saved_plan_is_applied(live: Namespace, policy: str, tmp_path: Path) -> None:
    """What was planned is done, even if the policy's file says something else by now."""
    plan = tmp_path / "web.plan"
    done = live.nfctl("plan", policy, "--out", str(plan))
    assert done.returncode == 1
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    (tmp_path / "web.yaml").write_text("version: 1\n")
    applied = live.nfctl("apply", str(plan))
    assert applied.returncode == 0, applied.stderr
    assert "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n" in live.save()
    assert "-A INPUT -j DOCKER\n" in live.save()


def test_a_saved_plan_of_other_tables_is_refused(
    live: Namespace, policy: str, tmp_path: Path
) -> None:
    """If somebody edits the table in between, apply is refused with exit code 4."""
    plan = str(tmp_path / "web.plan")
    assert live.nfctl("plan", policy, "--out", plan).returncode == 1
    assert live.legacy("-A", "OUTPUT", "-j", "ACCEPT").returncode == 0
    before = live.save(4, "-c")
    shown = live.nfctl("plan", plan)
    assert "# table filter (IPv4) was changed since the plan was saved" in shown.stdout
    refused = live.nfctl("apply", plan)
    assert refused.returncode == 4
    assert "was changed since" in refused.stderr
    assert live.save(4, "-c") == before


def test_packets_do_not_make_a_saved_plan_old(live: Namespace, policy: str, tmp_path: Path) -> None:
    """Counters that went on between plan and apply are no edit."""
    plan = str(tmp_path / "web.plan")
    assert live.nfctl("plan", policy, "--out", plan).returncode == 1
    counted = LIVE.replace("[7:420]", "[8:480]").replace(
        ":INPUT ACCEPT [0:0]", ":INPUT ACCEPT [3:4]"
    )
    assert live.run(["iptables-legacy-restore", "-c"], counted).returncode == 0
    assert live.nfctl("apply", plan).returncode == 0
    assert "[8:480] -A INPUT -j DOCKER\n" in live.save(4, "-c")


def test_a_policy_is_not_overwritten_by_its_plan(live: Namespace, policy: str) -> None:
    """--out with the policy's own name is refused before anything is done."""
    done = live.nfctl("plan", policy, "--out", policy)
    assert done.returncode == 2
    assert "no saved plan" in done.stderr
    with open(policy, encoding="utf-8") as file:  # noqa: PTH123 - a name
        assert file.read() == POLICY


def test_a_closed_pipe_is_no_traceback(live: Namespace, policy: str) -> None:
    """Whoever reads the first line only is not told of Python's troubles."""
    script = f"{' '.join(NFCTL)} plan {policy} | head -n 1"
    done = live.run(["sh", "-c", script])
    assert done.stdout == "filter (IPv4)\n"
    assert "Traceback" not in done.stderr


def test_another_namespace(netns: Namespace, policy: str) -> None:
    """With --netns the tables of that namespace are compared, and no others."""
    inner = ["ip", "netns", "exec", "inner"]
    assert netns.run(["ip", "netns", "add", "inner"]).returncode == 0
    assert netns.run([*inner, "iptables-legacy", "-A", "OUTPUT", "-j", "DROP"]).returncode == 0
    there = netns.nfctl("policy", "from-live", "--netns", "inner").stdout
    assert "- -j DROP\n" in there
    assert netns.nfctl("plan", "-", "--netns", "inner", input=there).returncode == 0
    assert netns.nfctl("plan", "-", input=there).returncode == 1
    unknown = netns.nfctl("plan", policy, "--netns", "nowhere")
    assert unknown.returncode == 2
    assert "there is no network namespace 'nowhere'" in unknown.stderr
