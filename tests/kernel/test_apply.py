"""Applying policies to real tables: whose is what, what fails is put back, sets, saved plans."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.control import apply as control
from nfctl.control.planning import TablePlan
from nfctl.errors import BadInput, HalfApplied, NfctlError, RolledBack
from nfctl.kernel.table import Table
from nfctl.policy import reading
from tests.kernel import applying, play
from tests.kernel.applying import OPTIONS, chains_of, policies_of, state, tables_of
from tests.kernel.test_apply_counters import Flood

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.control.apply import Outcome
    from nfctl.control.change import Change
    from nfctl.policy.wanted import Wanted
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

# As Docker 24 writes it, with a container whose port 80 is published as 8080.
DOCKER: Final = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""


def policy(text: str, name: str = "web", families: str = "ipv4") -> Wanted:
    """Return a policy of YAML text: what stands under ``tables:``, or with it."""
    head = "" if "tables" in text else "tables:\n"
    body = f"version: 1\nname: {name}\nfamilies: [{families}]\n{head}{text}"
    return reading.parse(body.encode(), f"{name}.yaml")


def applied(text: str, name: str = "web", families: str = "ipv4", **options: Any) -> Outcome:
    options = {"guard_ssh": False, **options}
    wanted = policy(text, name, families)
    return control.apply(wanted, state=state(), options=control.Options(**options))


def planned(text: str, name: str = "web", families: str = "ipv4") -> Change:
    return control.plan(policy(text, name, families), state=state())


def chains(table: str = "filter", family: int = 4) -> dict[str, list[str]]:
    """Return the rules of each chain, as the oracle prints them."""
    return chains_of(tables_of(play.saved(family))[table])


def sets() -> list[str]:
    return sorted(play.oracle(["ipset", "list", "-n"]).out.split())


def by_hand(*commands: str) -> None:
    for command in commands:
        done = play.oracle(command.split())
        assert done.code == 0, done.err


# --- whose is what ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["yaml", "save"])
def test_docker_goes_on(kind: str, netns: Namespace) -> None:
    """A policy of the chains that Docker writes to leaves each of its rules there, in order."""
    mine = {
        "INPUT": ["-i lo -j ACCEPT"],
        "FORWARD": ["-s 192.0.2.0/24 -j ACCEPT", "-j LOG"],
        "web": ["-p tcp -m tcp --dport 80 -j ACCEPT"],
    }
    snat = "-s 10.0.0.0/8 -o eth0 -j MASQUERADE"

    def inside() -> None:
        applying.restored(DOCKER)
        before = tables_of(play.saved())
        if kind == "yaml":
            tables = {"filter": mine, "nat": {"POSTROUTING": [snat]}}
            control.apply(
                policy(json.dumps({"tables": tables})[1:-1]), state=state(), options=OPTIONS
            )
        else:
            lines = ["*nat", f"-A POSTROUTING {snat}", "COMMIT", "*filter", ":web - [0:0]"]
            lines += [f"-A {chain} {spec}" for chain, specs in mine.items() for spec in specs]
            applying.apply_text("\n".join((*lines, "COMMIT\n")))
        after = tables_of(play.saved())
        for table, ours in (("filter", mine), ("nat", {"POSTROUTING": [snat]})):
            found, theirs = chains_of(after[table]), chains_of(before[table])
            for chain, specs in found.items():
                own = ours.get(chain, [])
                assert [spec for spec in specs if spec not in own] == theirs.get(chain, []), chain
                assert [spec for spec in specs if spec in own] == own
            assert found.keys() == {*theirs, *ours}
        # Docker's own first rule is the first yet
        assert chains_of(after["filter"])["FORWARD"][0] == "-j DOCKER-USER"
        assert policies_of(after["filter"])["FORWARD"] == "DROP"

    netns.python(inside)


def test_a_chain_of_others_that_is_named_is_ones_own(netns: Namespace) -> None:
    """DOCKER-USER is for users: a policy that names it fills it, and takes its rules out again."""
    mine = "-s 198.51.100.0/24 -j DROP"

    def inside() -> None:
        applying.restored(DOCKER)
        before = play.saved()
        applied(f"  filter: {{DOCKER-USER: ['{mine}', '-j RETURN'], web: ['-j ACCEPT']}}")
        assert chains()["DOCKER-USER"] == [mine, "-j RETURN"]
        assert chains()["FORWARD"] == chains_of(tables_of(before)["filter"])["FORWARD"]
        by_hand("iptables-legacy -A DOCKER-USER -s 203.0.113.9 -j DROP")
        applied("  filter: {web: ['-j ACCEPT']}")
        assert chains()["DOCKER-USER"] == ["-s 203.0.113.9/32 -j DROP"]
        assert chains()["FORWARD"][0] == "-j DOCKER-USER"

    netns.python(inside)


WEB: Final = """\
  filter:
    INPUT: {policy: drop, rules: [-i lo -j ACCEPT, -p tcp --dport 80 -j web]}
    web: [-j ACCEPT]
"""
DNS: Final = (
    "  filter: {INPUT: ['-i lo -j ACCEPT', '-p udp --dport 53 -j dns'], dns: ['-j ACCEPT']}"
)


def test_two_policies_share_a_chain(netns: Namespace) -> None:
    """Each has its rules in INPUT and does not see the other's as a difference."""
    lo, http, domain = (
        "-i lo -j ACCEPT",
        "-p tcp -m tcp --dport 80 -j web",
        "-p udp -m udp --dport 53 -j dns",
    )

    def inside() -> None:
        applied(WEB)
        applied(DNS, "dns")
        assert sorted(chains()["INPUT"]) == sorted([lo, http, domain])
        assert not planned(WEB).changes
        assert not planned(DNS, "dns").changes
        # what one drops goes, unless the other has it, too
        applied("  filter: {INPUT: {policy: drop, rules: []}}")
        assert chains()["INPUT"] == [lo, domain]
        assert "web" not in chains()
        assert not planned(DNS, "dns").changes
        applied("  filter: {INPUT: []}", "dns")
        assert chains() == {"INPUT": [], "FORWARD": [], "OUTPUT": []}
        assert policies_of(play.saved())["INPUT"] == "DROP"

    netns.python(inside)


def test_what_another_policy_keeps(netns: Namespace) -> None:
    """What one policy keeps the other does not delete, but for rules that it put there itself."""
    keep = "keep: [{chain: 'vpn*'}, {comment: ours*}]\ntables:\n"
    theirs = ["-j vpn", '-m comment --comment "ours too" -j ACCEPT']
    mine = '-m comment --comment "ours, of dns" -j ACCEPT'

    def inside() -> None:
        by_hand("iptables-legacy -N vpn", "iptables-legacy -A INPUT -j vpn")
        comment = ["-m", "comment", "--comment", "ours too", "-j", "ACCEPT"]
        assert play.oracle(["iptables-legacy", "-A", "INPUT", *comment]).code == 0
        applied(keep + WEB)
        before = chains()["INPUT"]
        assert before[:2] == theirs
        applied(f"  filter: {{INPUT: ['{mine}']}}", "dns")
        assert sorted(chains()["INPUT"]) == sorted([*before, mine])
        applied("  filter: {INPUT: []}", "dns")
        assert chains()["INPUT"] == before
        assert "vpn" in chains()

    netns.python(inside)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  filter: {INPUT: {policy: accept, rules: []}}", "set by policy web"),
        ("  filter: {web: ['-j DROP']}", "chain web of table filter belongs to policy web"),
    ],
)
def test_what_two_policies_do_not_share(text: str, said: str, netns: Namespace) -> None:
    """A built-in chain's policy and a user-defined chain have one owner; the place is named."""

    def inside() -> tuple[str, int, str, bool]:
        applied(WEB)
        before = play.saved()
        with pytest.raises(BadInput) as caught:
            applied(text, "dns")
        error = caught.value
        return error.message, error.exit_code, str(error.where), play.saved() == before

    message, code, where, same = netns.python(inside)
    assert said in message
    assert code == 2
    assert where.startswith("dns.yaml:5:")
    assert same


def test_exclusive_beside_another_policy(netns: Namespace) -> None:
    """A table in which another policy has something is not taken whole."""

    def inside() -> str:
        applied(WEB)
        with pytest.raises(BadInput) as caught:
            applied(DNS, "dns", exclusive=True)
        return caught.value.message

    assert "also belongs to policy web" in netns.python(inside)


def test_a_renamed_chain(netns: Namespace) -> None:
    """A chain under another name: the new one comes, the old one goes, the jump leads there."""

    def inside() -> None:
        applied(WEB)
        applied(WEB.replace("web", "http"))
        assert chains()["http"] == ["-j ACCEPT"]
        assert "web" not in chains()
        assert chains()["INPUT"][1].endswith("-j http")

    netns.python(inside)


def test_only_ones_own_chains_go(netns: Namespace) -> None:
    """A chain that is in no file any more goes if the policy made it, and if nobody else did."""

    def inside() -> None:
        by_hand("iptables-legacy -N byhand", "iptables-legacy -A byhand -j DROP")
        applied(WEB)
        applied("  filter: {INPUT: []}")
        assert chains() == {"INPUT": [], "FORWARD": [], "OUTPUT": [], "byhand": ["-j DROP"]}

    netns.python(inside)


def test_a_chain_that_others_jump_to(netns: Namespace) -> None:
    """Somebody's rule leads to a chain that is to go: it stays, empty, and that is said."""

    def inside() -> tuple[str, dict[str, list[str]]]:
        applied(WEB)
        by_hand("iptables-legacy -A OUTPUT -p tcp -j web")
        outcome = applied("  filter: {INPUT: []}")
        notes = {chain.name: chain.note for _, chain in outcome.change.chains()}
        found = chains()
        by_hand("iptables-legacy -F OUTPUT")
        return notes["web"], found

    note, found = netns.python(inside)
    assert note == "chain OUTPUT jumps to it, so it stays, empty"
    assert found["web"] == []
    assert found["OUTPUT"] == ["-p tcp -j web"]


def test_a_built_in_chain_that_is_let_go(netns: Namespace) -> None:
    """Of a built-in chain that the file names no more the policy's rules go, and no others."""

    def inside() -> None:
        applied("  filter: {OUTPUT: ['-p tcp --dport 25 -j DROP', '-d 192.0.2.1 -j DROP']}")
        by_hand("iptables-legacy -I OUTPUT 2 -p tcp --dport 465 -j DROP")
        applied("  filter: {INPUT: ['-i lo -j ACCEPT']}")
        assert chains()["OUTPUT"] == ["-p tcp -m tcp --dport 465 -j DROP"]
        assert chains()["INPUT"] == ["-i lo -j ACCEPT"]

    netns.python(inside)


def test_what_keep_names(netns: Namespace) -> None:
    """Rules and chains that ``keep:`` names stay, where the rules before them are."""
    keep = "keep: [VPN-*, comment: 'by hand*', interface: wg*, rule: '-s 192.0.2.*']\n"

    def inside() -> None:
        by_hand(
            "iptables-legacy -N VPN-IN",
            "iptables-legacy -A INPUT -s 10.0.0.1 -j ACCEPT",
            "iptables-legacy -A INPUT -j VPN-IN",
            "iptables-legacy -A INPUT -i wg0 -j ACCEPT",
            "iptables-legacy -A INPUT -p tcp -j DROP",
            "iptables-legacy -A INPUT -s 192.0.2.7 -j DROP",
            "iptables-legacy -A INPUT -m comment --comment by-hand -j DROP",
            "iptables-legacy -A INPUT -m comment --comment mine -j DROP",
        )
        text = "tables: {filter: {INPUT: ['-s 10.0.0.1 -j ACCEPT', '-p udp -j DROP']}}"
        applied(keep.replace("by hand", "by-hand") + text)
        assert chains()["INPUT"] == [
            "-s 10.0.0.1/32 -j ACCEPT",
            "-j VPN-IN",
            "-i wg0 -j ACCEPT",
            "-p udp -j DROP",
            "-s 192.0.2.7/32 -j DROP",
            "-m comment --comment by-hand -j DROP",
        ]
        applied(text)
        assert chains()["INPUT"] == ["-s 10.0.0.1/32 -j ACCEPT", "-p udp -j DROP"]
        assert "VPN-IN" in chains()

    netns.python(inside)


# --- what fails ---------------------------------------------------------------------------------

# The kernel takes it in OUTPUT and POSTROUTING only; libxtables does not know that.
BAD: Final = "-m owner --uid-owner 0 -j ACCEPT"
THERE: Final = """\
*raw
:PREROUTING ACCEPT [8:800]
:OUTPUT DROP [9:900]
:MINE - [0:0]
[3:300] -A PREROUTING -p tcp -j MINE
[4:400] -A PREROUTING -p udp -j MINE
[5:500] -A MINE -j ACCEPT
COMMIT
*filter
:INPUT ACCEPT [1:100]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[7:700] -A INPUT -p tcp -j ACCEPT
COMMIT
"""
GOOD: Final = """\
  raw:
    PREROUTING: ["-p udp -j MINE", "-p icmp -j ACCEPT"]
    MINE: ["-p tcp -j DROP"]
    OUTPUT: {policy: accept, rules: []}
"""
NAT: Final = "  nat: {POSTROUTING: ['-m set --match-set listed src -j RETURN']}\n"
SETS: Final = "sets: {listed: {type: 'hash:ip', entries: [192.0.2.1]}}\ntables:\n"


def everything() -> tuple[str, str, str, list[Any]]:
    """Return all that a failed apply has to leave as it was."""
    records = [(one.name, one.text) for one in state().records()]
    return play.saved(4), play.saved(6), play.oracle(["ipset", "save"]).out, records


def failing(text: str, families: str, *, had: bool = False) -> tuple[NfctlError, str, bool]:
    """Apply what the kernel will refuse over what is there; return the error and what it left."""
    if had:
        applied(f"{SETS}{NAT}")
    applying.restored(THERE, 4, "-c", "--noflush")
    applying.restored(THERE.replace("icmp", "ipv6-icmp"), 6, "-c", "--noflush")
    before = everything()
    with pytest.raises(NfctlError) as caught:
        applied(text, families=families)
    return caught.value, state().entries()[-1].status, everything() == before


@pytest.mark.parametrize("had", [False, True], ids=["first apply", "with a record"])
@pytest.mark.parametrize(
    ("text", "families"),
    [
        (f"{SETS}{GOOD}  filter:\n    INPUT: ['-p udp -j ACCEPT', '{BAD}']\n", "ipv4"),
        (
            f"{SETS.replace('1]', '2, 192.0.2.3]')}{GOOD}"
            f"  filter:\n    INPUT: ['-p tcp -j ACCEPT', {{family: ipv6, rule: '{BAD}'}}]\n",
            "ipv4, ipv6",
        ),
    ],
    ids=["second table", "second family"],
)
def test_what_was_committed_is_put_back(
    text: str, families: str, had: bool, netns: Namespace
) -> None:
    """A later table is refused: exit code 5, and all is as before, with counters, sets, records."""
    error, status, same = netns.python(partial(failing, text, families, had=had))
    assert isinstance(error, RolledBack)
    assert error.exit_code == 5
    assert "what was committed was put back: raw (IPv4)" in error.message
    assert "owner" in error.message
    line = text[: text.index(BAD)].count("\n") + (5 if text.startswith("sets") else 4)
    assert str(error.where).startswith(f"web.yaml:{line - 1}:")
    assert status == "failed"
    assert same


@pytest.mark.parametrize("had", [False, True], ids=["first apply", "with a record"])
def test_the_first_table_is_refused(had: bool, netns: Namespace) -> None:
    """Exit code 2 with the place of the rule; nothing was changed, sets neither."""
    text = f"{SETS.replace('1]', '2]')}{NAT if had else ''}  filter:\n    INPUT:\n      - {BAD}\n"
    error, status, same = netns.python(partial(failing, text, "ipv4", had=had))
    assert not isinstance(error, RolledBack)
    assert error.exit_code == 2
    assert str(error.where) == f"web.yaml:{9 if had else 8}:9"
    assert "owner" in f"{error.message} {error.hint}"
    assert status == "failed"
    assert same


def test_a_good_policy_after_a_bad_one(netns: Namespace) -> None:
    """A failed apply leaves nothing behind that keeps the next from working."""

    def inside() -> None:
        failing(f"{SETS}{GOOD}  filter: {{INPUT: ['{BAD}']}}", "ipv4")
        applied(f"{SETS}{GOOD}  filter: {{INPUT: ['-m set --match-set listed src -j DROP']}}")
        assert chains("raw")["MINE"] == ["-p tcp -j DROP"]
        assert chains()["INPUT"] == ["-m set --match-set listed src -j DROP"]
        assert sets() == ["listed"]

    netns.python(inside)


def test_somebody_takes_no_lock(netns: Namespace) -> None:
    """What is read back is not what was written: all is put back, and said to be."""

    def inside() -> tuple[NfctlError, bool]:
        applying.restored(THERE, 4, "-c")
        before = play.saved()
        commit = Table.commit

        def disturbed(table: Table) -> None:
            commit(table)
            if table.name == "filter" and not done:
                done.append(True)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("XTABLES_LOCKFILE", "/run/another.lock")
                    by_hand("iptables-legacy -A INPUT -s 192.0.2.66 -j DROP")

        done: list[bool] = []
        pytest.MonkeyPatch().setattr(Table, "commit", disturbed)
        with pytest.raises(RolledBack) as caught:
            applied(f"{GOOD}  filter: {{INPUT: ['-j ACCEPT']}}")
        return caught.value, play.saved() == before

    error, same = netns.python(inside)
    assert "table filter (IPv4) is not what it should be" in error.message
    assert same


def test_a_ruined_put_back(netns: Namespace) -> None:
    """Where even putting back fails, that is what the error says first of all."""

    def inside() -> NfctlError:
        applying.restored(THERE, 4, "-c")
        commit = Table.commit
        calls: list[str] = []

        def fatal(table: Table) -> None:
            calls.append(table.name)
            if len(calls) > 2:
                msg = "no more"
                raise BadInput(msg)
            commit(table)

        patch = pytest.MonkeyPatch()
        patch.setattr(Table, "commit", fatal)
        patch.setattr(TablePlan, "difference", lambda *_: "spoiled" if len(calls) > 1 else "")
        with pytest.raises(NfctlError) as caught:
            applied(f"{GOOD}  filter: {{INPUT: ['-j ACCEPT']}}")
        return caught.value

    error = netns.python(inside)
    assert error.exit_code == 5
    assert "NOT PUT BACK" in error.message


def test_on_the_command_line(netns: Namespace, tmp_path: Path) -> None:
    """Exit codes 5 and 2 with file, line and column, and what is in the history of it."""
    file = tmp_path / "policy.yaml"
    head = "version: 1\nfamilies: ipv4\ntables:\n"
    file.write_text(f"{head}{GOOD}  filter:\n    INPUT:\n      - {BAD}\n")
    line = file.read_text().splitlines().index(f"      - {BAD}") + 1
    netns.python(applying.restored, THERE, 4, "-c")
    before = netns.save(4, "-c")
    said = netns.python(play.nfctl, ["apply", str(file)])
    assert said.code == 5
    assert f"{file}:{line}:9" in said.err
    assert "put back" in said.err
    file.write_text(f"{head}  filter:\n    INPUT:\n      - {BAD}\n")
    said = netns.python(play.nfctl, ["apply", str(file)])
    assert said.code == 2
    assert f"{file}:6:9" in said.err
    assert netns.save(4, "-c") == before
    listed = json.loads(netns.python(play.nfctl, ["history", "--json"]).out)["entries"]
    assert [one["status"] for one in listed] == ["failed", "failed"]
    assert "owner" in listed[0]["reason"]
    assert netns.python(play.nfctl, ["rollback"]).code == 1


# --- sets ---------------------------------------------------------------------------------------

SWAPS: Final = 100
SWAPPED: Final = """
sets:
  good:
    type: hash:ip
    family: [ipv4, ipv6]
    entries: [127.0.0.1, "::1", {more}]
tables:
  filter:
    INPUT:
      - -p udp --dport 9 -m set --match-set good src -m comment --comment found
      - -p udp --dport 9 -m set ! --match-set good src -m comment --comment missed
"""


def packets(comment: str, family: int) -> int:
    lines = [line for line in play.saved(family).splitlines() if f"--comment {comment}" in line]
    assert len(lines) == 1
    return int(lines[0][1:].partition(":")[0])


def test_a_set_is_swapped_at_once(netns: Namespace) -> None:
    """In 100 applies of other entries no packet of a flood finds the set empty or missing."""

    def text(number: int) -> str:
        more = ", ".join(
            f'192.0.2.{(number + n) % 256}, "2001:db8::{number + n:x}"' for n in range(9)
        )
        return SWAPPED.format(more=more)

    def inside() -> None:
        by_hand("ip link set lo up")
        applied(text(0), families="ipv4, ipv6")
        with Flood() as flood:
            for number in range(1, SWAPS):
                outcome = applied(text(number), families="ipv4, ipv6")
                assert {change.action for change in outcome.change.sets} == {"swap"}
                assert sets() == ["good", "good-6"]
        for family, sent in flood.sent.items():
            assert sent > 1000
            assert (packets("found", family), packets("missed", family)) == (sent, 0)
        # the last rule goes, and with it the sets
        applied("tables: {filter: {INPUT: []}}", families="ipv4, ipv6")
        assert sets() == []

    netns.python(inside)


def test_a_rollback_brings_sets_back(netns: Namespace) -> None:
    """Sets that went come back with their entries, as do the rules; new ones go."""
    from nfctl.control.undo import rollback

    one = f"{SETS}  filter: {{INPUT: ['-m set --match-set listed src -j DROP']}}"
    other = one.replace("listed", "other").replace("192.0.2.1", "192.0.2.2")
    more = one.replace("192.0.2.1", "192.0.2.1, 192.0.2.9")

    def inside() -> None:
        applied(one)
        first = everything()
        for text in (other, more, "tables: {filter: {INPUT: []}}"):
            applied(text)
            assert everything() != first
            rollback(state())
            assert everything() == first
        rollback(state())
        assert sets() == []
        assert chains()["INPUT"] == []

    netns.python(inside)


def test_the_snapshot_of_a_large_table(netns: Namespace) -> None:
    """Its text, which is remembered, is the oracle's, also if a comment holds a line end."""

    def inside() -> None:
        many = "-A INPUT -s 192.0.2.1/32 -j DROP\n" * 3000
        applying.restored(f"*filter\n{many}COMMIT\n")
        comment = ["-m", "comment", "--comment", "two\nlines", "-j", "ACCEPT"]
        assert play.oracle(["iptables-legacy", "-I", "INPUT", *comment]).code == 0
        for rule in ("-j ACCEPT", "-j DROP", "-j RETURN"):
            before = play.saved()
            applied(f"  filter: {{web: ['{rule}']}}")
            assert state().entries()[-1].before_text(4) == before

    netns.python(inside)


@pytest.mark.parametrize("used", [False, True])
def test_a_set_of_another_type(used: bool, netns: Namespace) -> None:
    """Rules get the set that takes the place of one of another type; a rollback brings that back.

    What somebody uses by then cannot be replaced: the rules are put back all the same.
    """
    from nfctl.control.undo import rollback

    ports = "sets: {listed: {type: 'hash:net,port', entries: ['192.0.2.0/24,tcp:80']}}\ntables:\n"

    def inside() -> None:
        by_hand("ipset create listed hash:ip comment")
        told = "one\x85two\u2028three"
        assert play.oracle(["ipset", "add", "listed", "192.0.2.1", "comment", told]).code == 0
        before = play.oracle(["ipset", "save"]).out
        applied(f"{ports}  filter: {{INPUT: ['-m set --match-set listed src,dst -j DROP']}}")
        assert chains()["INPUT"] == ["-m set --match-set listed src,dst -j DROP"]
        assert "192.0.2.0/24,tcp:80" in play.oracle(["ipset", "save"]).out
        assert sets() == ["listed"]
        refused = planned(f"{SETS}{NAT}")
        assert any("apply will refuse this: set listed is of" in note for note in refused.notes)
        if used:
            by_hand("iptables-legacy -A OUTPUT -m set --match-set listed src,dst")
        outcome = rollback(state())
        assert chains()["INPUT"] == []
        after = play.oracle(["ipset", "save"]).out
        if used:
            assert "hash:net,port" in after
            assert any("the sets stay as they are" in note for note in outcome.change.notes)
        else:
            assert after.partition(" bucketsize")[0] == before.partition(" bucketsize")[0]
            assert after.partition("\n")[2] == before.partition("\n")[2]

    netns.python(inside)


def test_a_set_goes_after_its_last_rule(netns: Namespace) -> None:
    """A set that another's rule still uses stays, and goes with the first apply after that rule."""
    name = "sets: {listed: {type: 'hash:ip', entries: [192.0.2.1]}}\n"
    rule = "-m set --match-set listed src -j DROP"

    def inside() -> None:
        applied(f"{name}tables: {{filter: {{INPUT: ['{rule}']}}}}")
        by_hand(f"iptables-legacy -A OUTPUT {rule}")
        gone = applied("tables: {filter: {INPUT: []}}")
        assert gone.change.notes == ["set listed stays: still in use by rules or lists (1)"]
        assert applied("tables: {filter: {INPUT: []}}").status == "unchanged"
        assert sets() == ["listed"]
        by_hand(f"iptables-legacy -D OUTPUT {rule}")
        assert [(s.action, s.name) for s in planned("tables: {filter: {INPUT: []}}").sets] == [
            ("destroy", "listed")
        ]
        applied("tables: {filter: {INPUT: []}}")
        assert sets() == []
        by_hand("ipset create listed hash:ip")  # another's by now
        applied("tables: {filter: {INPUT: ['-j ACCEPT']}}")
        assert sets() == ["listed"]

    netns.python(inside)


def test_sets_that_do_not_go_back(netns: Namespace) -> None:
    """Where the tables are put back and the sets cannot be, exit code 5 says both."""
    from nfctl.control.sets import Sets

    def inside() -> tuple[type, str]:
        def stuck(_self: object) -> None:
            msg = "ipsets could NOT be put back: busy"
            raise NfctlError(msg)

        patch = pytest.MonkeyPatch()
        patch.setattr(Sets, "revert", stuck)
        patch.setattr(TablePlan, "difference", lambda *_: "spoiled")
        with pytest.raises(NfctlError) as caught:
            applied(SETS + NAT)
        assert "POSTROUTING -m set" not in play.saved()
        return type(caught.value), caught.value.message

    kind, message = netns.python(inside)
    assert kind is HalfApplied
    assert "spoiled" in message
    assert message.endswith("AND ipsets could NOT be put back: busy")


# --- saved plans --------------------------------------------------------------------------------


def test_a_saved_plan(netns: Namespace, tmp_path: Path) -> None:
    """A saved plan is applied as it was made; with the table edited since then, exit code 4."""
    file, plan = tmp_path / "policy.yaml", tmp_path / "plan"
    file.write_text(
        f"version: 1\nfamilies: ipv4\ntables:\n{GOOD}  filter: {{INPUT: ['-j ACCEPT']}}\n"
    )
    make, use = ["plan", str(file), "--out", str(plan)], ["apply", str(plan)]
    netns.python(applying.restored, THERE, 4, "-c")
    assert netns.python(play.nfctl, make).code == 1
    assert netns.legacy("-A", "FORWARD", "-j", "DROP").returncode == 0
    before = netns.save(4, "-c")
    said = netns.python(play.nfctl, use)
    assert said.code == 4
    assert "table filter (IPv4) was changed since the plan was made" in said.err
    assert "plan --out" in said.err
    assert netns.save(4, "-c") == before
    assert json.loads(netns.python(play.nfctl, ["history", "--json"]).out)["entries"] == []
    plan.unlink()
    assert netns.python(play.nfctl, make).code == 1
    # counters count on
    assert netns.run(["iptables-legacy", "-Z"]).returncode == 0
    file.unlink()  # all is in the plan
    assert netns.python(play.nfctl, use).code == 0
    assert "-A MINE -p tcp -j DROP" in netns.save()
    assert netns.python(play.nfctl, use).code == 0
    assert len(json.loads(netns.python(play.nfctl, ["history", "--json"]).out)["entries"]) == 1


def test_a_saved_plan_of_a_policy_that_grew(netns: Namespace) -> None:
    """A plan made before another table became the policy's does not say what goes there: exit 4."""

    def inside() -> tuple[int, str]:
        for name, table in (("one", "filter"), ("two", "mangle")):
            text = f"version: 1\nfamilies: ipv4\ntables: {{{table}: {{INPUT: ['-j LOG']}}}}\n"
            Path(f"/run/{name}.yaml").write_text(text)
        assert play.nfctl(["plan", "/run/one.yaml", "--out", "/run/plan"]).code == 1
        assert play.nfctl(["apply", "/run/two.yaml"]).code == 0
        before = play.saved()
        said = play.nfctl(["apply", "/run/plan"])
        assert play.saved() == before
        return said.code, said.err

    code, error = netns.python(inside)
    assert code == 4
    assert "table mangle (IPv4) was changed since the plan was made" in error


@pytest.mark.parametrize(
    "before", ["", "iptables-legacy -N THEIRS", "iptables-legacy -P INPUT DROP"]
)
def test_a_saved_plan_of_unused_tables(before: str, netns: Namespace) -> None:
    """A table that nobody had used when the plan was made is another one if it is used now."""

    def inside() -> int:
        Path("/run/policy.yaml").write_text(f"version: 1\nfamilies: ipv4\ntables:\n{WEB}\n")
        play.nfctl(["plan", "/run/policy.yaml", "--out", "/run/plan"])
        if before:
            by_hand(before)
        return play.nfctl(["apply", "/run/plan"]).code

    assert netns.python(inside) == (4 if before else 0)


# --- records ------------------------------------------------------------------------------------


def damage(names: Iterable[str]) -> None:
    for name in names:
        file = applying.PLACE / "policies" / name / "record.json"
        file.write_bytes(file.read_bytes().replace(b'"when"', b'"wenn"'))


def test_a_damaged_record(netns: Namespace) -> None:
    """A policy's own damaged record is written anew; that of another policy refuses the apply."""

    def inside() -> tuple[int, str]:
        applied(WEB)
        applied(DNS, "dns")
        damage(["web"])
        applied(WEB.replace("80", "8080"))
        assert "-p tcp -m tcp --dport 8080 -j web" in chains()["INPUT"]
        assert {one.name for one in state().records()} == {"web", "dns"}
        damage(["dns"])
        with pytest.raises(NfctlError) as caught:
            applied(WEB)
        return caught.value.exit_code, caught.value.message

    code, message = netns.python(inside)
    assert code == 1
    assert "dns" in message
