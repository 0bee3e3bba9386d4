"""The Python API: one commit at the end or none, what is read, namespaces, and no wear."""

from __future__ import annotations

import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nfctl
from nfctl.errors import AnswerNo, BadInput, Locked, NfctlError, NotPermitted, RolledBack
from nfctl.kernel.table import Table
from tests.kernel import play

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

NAT = """\
*nat
:PREROUTING ACCEPT [1:2]
:INPUT ACCEPT [3:4]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [18446744073709551615:5]
[6:7] -A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
"""
FILTER = """\
*filter
:INPUT DROP [11:1100]
:FORWARD ACCEPT [22:2200]
:OUTPUT ACCEPT [33:3300]
:B - [0:0]
:WEB - [0:0]
[1:100] -A INPUT -i lo -j ACCEPT
[2:200] -A INPUT -p tcp -m tcp --dport 22 -m comment --comment "two words" -g WEB
[0:0] -A WEB
COMMIT
"""


# --- a with block ------------------------------------------------------------------------------


def edit_and_look() -> tuple[str, int, str, int]:
    """Edit two tables; return what the kernel held before the end and after, and the commits."""
    commits = 0
    commit = Table.commit

    def counted(table: Table) -> None:
        nonlocal commits
        commits += 1
        commit(table)

    pytest.MonkeyPatch().setattr(Table, "commit", counted)  # for the rest of this child's life
    with nfctl.edit() as tables:
        for number in range(10):
            tables["filter"].append("INPUT", f"-s 10.0.0.{number} -j DROP")
        tables["nat"].append("POSTROUTING", "-o eth0 -j MASQUERADE")
        tables["mangle"].chains()
        tables["raw"].check("OUTPUT", "-j ACCEPT")
        during, early = play.saved(), commits
    return during, early, play.saved(), commits


def test_a_block_commits_once_at_its_end(netns: Namespace) -> None:
    """Nothing is seen of the edits before the end; then each edited table is written once."""
    during, early, after, commits = netns.python(edit_and_look)
    assert "-A" not in during
    assert early == 0
    assert after.count("-A INPUT") == 10
    assert after.count("-A POSTROUTING -o eth0 -j MASQUERADE") == 1
    assert commits == 2


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_commits_nothing(netns: Namespace, kind: type[BaseException]) -> None:
    """Whatever exception leaves the block, no table is written and the lock is free again."""

    def interrupted() -> str:
        play.load(FILTER)
        with pytest.raises(kind), nfctl.edit() as tables:  # noqa: PT012 - the block is the test
            tables["filter"].flush()
            tables["nat"].append("OUTPUT", "-j ACCEPT")
            raise kind
        with nfctl.edit(wait=0):
            return play.saved()

    assert FILTER in netns.python(interrupted)


def test_one_wrong_edit_leaves_the_others_to_be_committed(netns: Namespace) -> None:
    """An edit that is refused changes nothing; who catches it keeps what was edited before."""

    def careful() -> str:
        with nfctl.edit() as tables:
            edit = tables["filter"]
            edit.append("INPUT", "-s 10.0.0.1")
            for wrong in ("-s x", "-j NOWHERE", "-p tcp --dport 80x", "-m set --match-set no src"):
                with pytest.raises(BadInput):
                    edit.append("INPUT", wrong)
            with pytest.raises(BadInput):
                edit.append("INPUT", "-s 10.0.0.3 -m limit --limit 5/eon")
            edit.append("INPUT", "-s 10.0.0.2")
        return play.saved()

    saved = netns.python(careful)
    assert [line for line in saved.splitlines() if "-A" in line] == [
        "[0:0] -A INPUT -s 10.0.0.1/32",
        "[0:0] -A INPUT -s 10.0.0.2/32",
    ]


def test_all_tables_or_none(netns: Namespace) -> None:
    """If the kernel refuses the second table, the first is put back with its counters."""

    def refused() -> str:
        play.load(NAT)
        play.load(FILTER)
        with (  # noqa: PT012 - the error comes at the block's end
            pytest.raises(RolledBack, match="put back") as caught,
            nfctl.edit() as tables,
        ):
            tables["nat"].flush()
            tables["filter"].append("INPUT", "-j DNAT --to-destination 192.0.2.1")
        assert "-j DNAT" in caught.value.message
        return play.saved()

    assert netns.python(refused) == FILTER + NAT


def test_every_edit(netns: Namespace) -> None:
    """What each method of a table does is what the iptables command of that name does."""

    def ours() -> str:
        play.fresh()
        play.load(FILTER)
        with nfctl.edit() as tables:
            edit = tables["filter"]
            assert edit.chains() == ["INPUT", "FORWARD", "OUTPUT", "B", "WEB"]
            assert edit.length("INPUT") == 2
            assert edit.rules("INPUT")[0] == "-i lo -j ACCEPT"
            assert edit.policy("INPUT") == ("DROP", 11, 1100)
            assert edit.policy("WEB") is None
            assert edit.append("INPUT", "-s 10.0.0.1,10.0.0.2 -j B") == 2
            assert edit.insert("INPUT", ["-m", "comment", "--comment", "a b"], 2) == 1
            edit.replace("INPUT", 1, "-i eth0")
            assert edit.find("INPUT", "-s 10.0.0.1,10.0.0.2 -j B") == [4, 5]
            assert edit.check("INPUT", "-m comment --comment 'x") is False
            assert edit.delete("INPUT", 4) == 1
            assert edit.delete("INPUT", "-s 10.0.0.2/32 -j B") == 1
            edit.create_chain("NEW")
            edit.append("INPUT", "-g NEW")
            edit.rename_chain("NEW", "OLD")
            edit.delete_chain("B")
            edit.flush("WEB")
            edit.zero("INPUT", 3)
            edit.set_policy("FORWARD", "DROP")
            with pytest.raises(AnswerNo):
                edit.delete("INPUT", "-s 10.0.0.9")
        return play.saved()

    lines = [
        "-A INPUT -s 10.0.0.1,10.0.0.2 -j B", "-I INPUT 2 -m comment --comment 'a b'",
        "-R INPUT 1 -i eth0", "-D INPUT 4", "-D INPUT -s 10.0.0.2 -j B", "-N NEW",
        "-A INPUT -g NEW", "-E NEW OLD", "-X B", "-F WEB", "-Z INPUT 3", "-P FORWARD DROP",
    ]  # fmt: skip
    steps = netns.python(play.by_oracle, lines, FILTER)
    assert {step.said.code for step in steps} == {0}
    edited = netns.python(ours)
    assert play.policies_zeroed(edited) == play.policies_zeroed(steps[-1].saved)
    assert ":INPUT DROP [11:1100]" in edited
    assert ":FORWARD DROP [0:0]" in edited


# --- after the end -----------------------------------------------------------------------------


def used_late(what: Callable[[nfctl.edit, nfctl.TableEdit], object]) -> str:
    """Use a transaction and its table after the block; return the error."""
    with nfctl.edit() as tables:
        edit = tables["filter"]
        edit.append("INPUT", "-j ACCEPT")
    try:
        what(tables, edit)
    except (RuntimeError, NfctlError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "what",
    [
        lambda _, edit: edit.append("INPUT", "-j DROP"),
        lambda _, edit: edit.rules("INPUT"),
        lambda _, edit: edit.chains(),
        lambda _, edit: edit.flush(),
        lambda _, edit: edit.delete("INPUT", 1),
        lambda tables, _: tables["filter"].append("INPUT", "-j DROP"),
        lambda tables, _: tables["nat"].rules("OUTPUT"),
        lambda *_: nfctl.edit()["filter"].append("INPUT", "-j DROP"),
    ],
)
def test_use_after_the_end_is_an_error(
    netns: Namespace, what: Callable[[object, object], object]
) -> None:
    """A table kept past its transaction's end says so; it neither crashes nor loses edits."""
    assert "open" in netns.python(used_late, what)
    assert netns.save().count("-A INPUT") == 1


def test_editing_on_after_a_commit_in_between(netns: Namespace) -> None:
    """After commit() a table is taken anew and holds what was committed."""

    def twice() -> list[list[str]]:
        with nfctl.edit() as tables:
            tables["filter"].append("INPUT", "-s 10.0.0.1")
            first = tables.commit()
            tables["filter"].append("INPUT", "-s 10.0.0.2")
            second = tables.commit()
            return [first, second, tables.commit(), tables["filter"].rules("INPUT")]

    found = netns.python(twice)
    assert found == [["filter"], ["filter"], [], ["-s 10.0.0.1/32", "-s 10.0.0.2/32"]]


def test_a_transaction_within_another(netns: Namespace) -> None:
    """A second transaction of the same process finds the lock held, by itself."""

    def nested() -> tuple[str, int]:
        with nfctl.edit(), pytest.raises(Locked) as caught, nfctl.edit(wait=0.1):
            pass
        return str(caught.value), os.getpid()

    text, pid = netns.python(nested)
    assert f"process {pid}" in text


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_read_is_what_the_oracle_prints(netns: Namespace, family: int) -> None:
    """Every policy, counter, chain and rule of nfctl.read is the one of iptables-save -c."""

    def read() -> nfctl.Ruleset:
        play.load(NAT, family)
        play.load(FILTER, family)
        return nfctl.read(family)

    ruleset = netns.python(read)
    saved = netns.save(family, "-c")
    assert ruleset.render(counters=True) == saved
    assert ruleset.family == family
    assert list(ruleset.tables) == re.findall(r"^\*(\w+)$", saved, re.MULTILINE)
    chains = ruleset.tables["filter"].chains
    assert list(chains) == ["INPUT", "FORWARD", "OUTPUT", "B", "WEB"]
    assert (chains["INPUT"].policy, chains["INPUT"].counters) == ("DROP", (11, 1100))
    assert (chains["WEB"].policy, chains["WEB"].builtin) == (None, False)
    rule = chains["INPUT"].rules[1]
    assert rule.counters == (2, 200)
    assert rule.parsed(family).matches[1].options == ("--comment", "two words")
    assert chains["WEB"].rules == [nfctl.Rule("", nfctl.Counters())]
    nat = ruleset.tables["nat"]
    assert nat.chains["POSTROUTING"].counters.packets == 2**64 - 1
    assert (nat.rules, ruleset.tables["filter"].rules) == (1, 3)


def test_reading_makes_no_table(netns: Namespace) -> None:
    """Reading and saving what is in use brings no table to life; naming one does."""

    def look() -> list[object]:
        found: list[object] = [nfctl.read().tables, list(nfctl.save())]
        names = Path("/proc/net/ip_tables_names").read_text
        return [*found, names(), list(nfctl.read(tables=["raw"]).tables), names()]

    assert netns.python(look) == [{}, [], "", ["raw"], "raw\n"]


def test_saving(netns: Namespace) -> None:
    """nfctl.save yields each table as iptables-save prints it, those named or all in use."""

    def save() -> list[list[str]]:
        play.load(NAT)
        play.load(FILTER)
        return [
            list(nfctl.save(counters=True)),
            list(nfctl.save(tables=["nat", "filter"], counters=True)),
            list(nfctl.save(tables=["nat"])),
            list(nfctl.save(6)),
        ]

    every, named, plain, other = netns.python(save)
    assert every == [FILTER, NAT]
    assert named == [NAT, FILTER]
    assert plain == [netns.save(4, "-t", "nat")]
    assert other == []


def test_restoring_what_was_read(netns: Namespace) -> None:
    """A ruleset read from one family's tables can be restored, and says what it wrote."""

    def there_and_back() -> list[nfctl.Report]:
        play.load(FILTER)
        text = nfctl.read().render(counters=True)
        same = nfctl.restore(text, counters=True)
        changed = nfctl.restore(text.replace("-i lo", "-i eth0"), counters=True)
        tested = nfctl.restore(text, counters=True, test=True)
        return [same, changed, tested]

    same, changed, tested = netns.python(there_and_back)
    assert same == nfctl.Report([], ["filter"], 3)
    assert changed == tested == nfctl.Report(["filter"], [], 3)
    assert netns.save(4, "-c") == FILTER.replace("-i lo", "-i eth0")


# --- namespaces --------------------------------------------------------------------------------


@pytest.fixture
def blue(netns: Namespace) -> Iterator[str]:
    """Give the name of a second network namespace, known inside the first one's /run only."""
    name = f"nfctl-test-{os.getpid()}-blue"
    assert netns.run(["ip", "netns", "add", name]).returncode == 0
    try:
        yield name
    finally:
        netns.run(["ip", "netns", "del", name])
    assert not Path("/run/netns", name).exists()


def saved_in(netns: Namespace, name: str, family: int = 4) -> str:
    program = "iptables-legacy-save" if family == 4 else "ip6tables-legacy-save"
    done = netns.run(["ip", "netns", "exec", name, program, "-c"])
    assert done.returncode == 0, done.stderr
    return "".join(line for line in done.stdout.splitlines(keepends=True) if line[0] != "#")


def here() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def test_network_says_where(netns: Namespace, blue: str) -> None:
    """With network every function acts there, and the thread is back where it was afterwards."""

    def elsewhere() -> list[bool]:
        start, stayed = here(), []
        nfctl.restore(FILTER, counters=True, network=blue)
        stayed.append(here() == start)
        with nfctl.edit(network=blue) as tables:
            tables["filter"].append("INPUT", "-j DROP")
        stayed.append(here() == start)
        stayed.append(nfctl.read(network=blue).tables["filter"].rules == 4)
        stayed.append(here() == start)
        with pytest.raises(BadInput), nfctl.edit(network=blue) as tables:
            tables["filter"].append("NOWHERE", "-j DROP")
        stayed.append(here() == start)
        stayed += [here() == start for _ in nfctl.save(network=blue)]
        next(iter(nfctl.save(network=f"/run/netns/{blue}")))
        stayed.append(here() == start)
        return stayed

    assert netns.python(elsewhere) == [True] * 7
    assert netns.save() == ""
    expected = FILTER.replace("[0:0] -A WEB", "[0:0] -A INPUT -j DROP\n[0:0] -A WEB")
    assert saved_in(netns, blue) == expected


def test_netns_on_the_command_line(netns: Namespace, blue: str) -> None:
    """--netns of every command acts in the namespace that ip netns knows by that name."""
    for words, text in (
        ("restore -c", FILTER),
        ("chain create MINE", ""),
        ("chain rename MINE OURS", ""),
        ("rule add INPUT -j OURS", ""),
        ("rule insert INPUT 1 -f", ""),
        ("rule replace INPUT 1 -j OURS", ""),
        ("rule delete INPUT 1", ""),
        ("rule check INPUT -j OURS", ""),
        ("chain flush OURS", ""),
        ("chain policy OUTPUT DROP", ""),
        ("chain zero FORWARD", ""),
        ("chain delete B", ""),
        ("restore -6 -n", play.EMPTY),
    ):
        group, *rest = words.split()
        named = [group, "--netns", blue] if group == "restore" else [group, rest.pop(0), "--netns"]
        argv = [*named, *rest] if group == "restore" else [*named, blue, *rest]
        said = netns.python(play.nfctl, argv, text)
        assert (said.code, said.err) == (0, ""), words
    assert (netns.save(), netns.save(6)) == ("", "")
    saved = saved_in(netns, blue)
    assert saved == (
        FILTER.replace("OUTPUT ACCEPT [33:3300]", "OUTPUT DROP [0:0]")
        .replace("FORWARD ACCEPT [22:2200]", "FORWARD ACCEPT [0:0]")
        .replace(":B - [0:0]\n", ":OURS - [0:0]\n")
        .replace("[0:0] -A WEB", "[0:0] -A INPUT -j OURS\n[0:0] -A WEB")
    )
    assert saved_in(netns, blue, 6) == play.EMPTY
    for words in ("save -c", "rule list -S", "chain list", "rule list --json"):
        said = netns.python(play.nfctl, [*words.split(), "--netns", blue])
        assert said.code == 0
        assert "OURS" in said.out
    assert netns.nfctl("save", "-c", "--netns", blue).stdout == saved


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "there is no network namespace 'nowhere'"),
        ("../netns/../xtables.lock", "is no network namespace"),
        ("/proc/self/ns/mnt", "is no network namespace"),
        ("/run", "is no network namespace"),
        ("", "there is no network namespace"),
        ("a\nb", "there is no network namespace"),
    ],
)
def test_namespaces_that_are_none(netns: Namespace, blue: str, name: str, said: str) -> None:
    """A name that is none, or a file that is no namespace, is exit code 2 and changes nothing."""
    netns.run(["touch", "/run/xtables.lock"])
    for words in ("rule add --netns {} INPUT", "save --netns {}"):
        done = netns.python(play.nfctl, [name if w == "{}" else w for w in words.split()])
        assert done.code == 2
        assert said in done.err
        if name == "nowhere":
            assert blue in done.err
    assert netns.save() == ""


# --- one process, for long ---------------------------------------------------------------------


def test_both_families_in_one_process(netns: Namespace) -> None:
    """An extension of the same name is the right one for each family, in either order."""

    def both() -> list[str]:
        spec = {4: "--to-destination 192.0.2.1:80", 6: "--to-destination [2001:db8::1]:80"}
        for family in (4, 6, 4, 6):
            with nfctl.edit(family) as tables:
                tables["nat"].append("PREROUTING", f"-p tcp -j DNAT {spec[family]}")
                tables["filter"].append("INPUT", "-j REJECT")
                with pytest.raises(BadInput):
                    tables["nat"].append("PREROUTING", f"-p tcp -j DNAT {spec[10 - family]}")
        return ["".join(nfctl.save(family)) for family in (4, 6)]

    ours = netns.python(both)
    assert ours == [netns.save(4), netns.save(6)]
    assert ours[0].count("-j DNAT --to-destination 192.0.2.1:80") == 2
    assert ours[1].count("-j DNAT --to-destination [2001:db8::1]:80") == 2
    assert "icmp6-port-unreachable" in ours[1]


WRONG = [
    "-p tcp --dport 80x", "-m limit --limit 5/eon", "-m conntrack --ctstate BOGUS", "-j NOWHERE",
    "-m nosuch", "-s 10.0.0.256", "-p tcp --nosuch", "-j REJECT --reject-with x", "-m comment", "!",
]  # fmt: skip


def make_errors(number: int) -> tuple[set[str], int, int, str]:
    """Make errors of every kind; return their words, the files left open, and a last good save."""
    words = set()

    def wrong() -> None:
        with nfctl.edit() as tables:
            for spec in WRONG:
                with pytest.raises(NfctlError) as caught:
                    tables["filter"].append("INPUT", spec)
                words.add(caught.value.message)

    wrong()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(number // len(WRONG)):
        wrong()
    after = len(os.listdir("/proc/self/fd"))

    def deep(levels: int) -> int:
        return deep(levels - 1) + 1 if levels else 0

    assert deep(sys.getrecursionlimit() - 200) > 0
    with nfctl.edit() as tables:
        tables["filter"].append("INPUT", "-p tcp --dport 80 -j ACCEPT")
    return words, before, after, play.saved()


def test_three_thousand_errors_in_one_process(netns: Namespace) -> None:
    """Errors leak neither files nor recursion levels, and say the same from first to last."""
    words, before, after, saved = netns.python(make_errors, 3000)
    assert len(words) == len(WRONG)
    assert after == before
    assert "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT" in saved


def test_many_transactions_leave_no_files_open(netns: Namespace) -> None:
    """Sixty edits, reads and refusals later as many files are open as before."""

    def wear() -> tuple[int, int]:
        def once() -> None:
            with nfctl.edit() as tables:
                tables["filter"].insert("INPUT", "-f")
                tables["nat"].chains()
            nfctl.read()
            with pytest.raises(NfctlError), nfctl.edit() as tables:  # noqa: PT012 - as above
                tables["nat"].insert("OUTPUT", "-f")
                tables["filter"].append("INPUT", "-j MASQUERADE")

        once()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(60):
            once()
        return before, len(os.listdir("/proc/self/fd"))

    before, after = netns.python(wear)
    assert after == before


def test_threads_take_turns(netns: Namespace) -> None:
    """Transactions of several threads wait for each other as those of processes do."""

    def together() -> int:
        def add(who: int) -> None:
            for number in range(10):
                with nfctl.edit() as tables:
                    tables["filter"].append("INPUT", f"-s 10.0.{who}.{number}")

        threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return nfctl.read().tables["filter"].rules

    assert netns.python(together) == 40


def read_in_threads() -> tuple[set[str], bool]:
    """Read both families' tables in four threads; return what came, and if stdout is the same."""
    for family in (4, 6):
        with nfctl.edit(family) as tables:
            for number in range(1, 25):
                spec = f"-m limit --limit {number}/min -j LOG --log-prefix {family}x{number}"
                tables["filter"].append("INPUT", spec)
    wanted = {family: "".join(nfctl.save(family)) for family in (4, 6)}
    stdout, found = Path("/proc/self/fd/1").readlink(), set()

    def read(family: int) -> None:
        for _ in range(15):
            try:
                found.add("right" if "".join(nfctl.save(family)) == wanted[family] else "wrong")
            except Exception as error:  # noqa: BLE001 - whatever a race makes of it
                found.add(repr(error))

    threads = [threading.Thread(target=read, args=(family,)) for family in (4, 6, 4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, Path("/proc/self/fd/1").readlink() == stdout


def test_threads_read_at_once(netns: Namespace) -> None:
    """Extensions print to C's standard output; threads get their own text and leave that alone."""
    assert netns.python(read_in_threads) == ({"right"}, True)


def test_without_privileges_the_api_raises(netns: Namespace) -> None:
    """NotPermitted, exit code 3, from every function, where CAP_NET_ADMIN is missing."""
    code = """
import nfctl
def edit():
    with nfctl.edit() as tables:
        tables["filter"].flush()
for act in (lambda: nfctl.read(tables=["nat"]), lambda: list(nfctl.save(tables=["nat"])), edit,
            lambda: nfctl.restore("*filter\\n-F\\nCOMMIT\\n")):
    try:
        act()
    except nfctl.NfctlError as error:
        print(type(error).__name__, error.exit_code)
"""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = netns.run([*drop, sys.executable, "-c", code])
    assert done.stdout.splitlines() == [f"NotPermitted {NotPermitted.exit_code}"] * 4, done.stderr
