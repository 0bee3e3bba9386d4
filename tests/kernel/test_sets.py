"""A policy's ipsets come and go around a commit, all or nothing; ``ipset`` is the oracle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control.change import SetChange
from nfctl.control.sets import Sets, make_shells, of_saved, put_back, saved
from nfctl.control.sets_compare import TEMPORARY
from nfctl.errors import BadInput, Changed, NfctlError, NotPermitted, Where
from nfctl.kernel.ipset import Header, Ipset
from nfctl.kernel.ipset_answers import EntryError
from nfctl.policy.wanted import WantedSet
from tests.kernel.test_ipset import comparable, missing_type, oracle
from tests.kernel.test_properties import examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("ipset") is None, reason="needs ipset"),
]

WEB: Final = WantedSet("web", "hash:ip", 4, {}, ["10.0.0.1", "10.0.0.2"], Where("policy", 3, 5))
NETS: Final = WantedSet("nets", "hash:net", 6, {"comment": ""}, ['2001:db8::/32 comment "a b"'])
ALL: Final = WantedSet("all", "list:set", 0, {}, ["web", "other"])
OTHER: Final = WantedSet("other", "bitmap:port", 0, {"range": "0-99"}, ["80-82"])
FILLED: Final = WantedSet("filled", "hash:ip", 4, {"timeout": "60"}, None)


_COMPARED: Final = {"netmask", "range", "timeout"}


def change(wanted: list[WantedSet], owned: tuple[str, ...] = ()) -> list[SetChange]:
    """Change the sets, and return what happened and what was left."""
    sets = Sets(wanted, owned)
    sets.prepare()
    return [*sets.changes, *sets.finish()]


def everything(*names: str) -> list[list[str]]:
    """Return what ipset lists of each set, or of all of them, without what changes by itself."""
    listed = names or tuple(sorted(oracle("list", "-n").split()))
    return [comparable(oracle("save", name)) for name in listed]


def lines(*names: str) -> list[str]:
    """Return the entries that ipset lists."""
    return [line for one in everything(*names) for line in one if line.startswith("add ")]


def actions(changes: list[SetChange]) -> list[tuple[str, str, int, int]]:
    return [(one.action, one.name, one.added, one.removed) for one in changes]


# --- coming, changing, going ----------------------------------------------------------------------


def test_sets_come(netns: Namespace) -> None:
    """Sets that are not there are made with all they hold, whatever the order they stand in."""

    def act() -> tuple[set[str], list[SetChange], list[str], list[SetChange]]:
        wanted = [ALL, WEB, NETS, OTHER, FILLED]
        missing = Sets(wanted).missing
        return missing, change(wanted), lines(), Sets(wanted).changes

    missing, changes, there, again = netns.python(act)
    assert missing == {"all", "web", "nets", "other", "filled"}
    assert actions(changes) == [
        ("create", "all", 2, 0),
        ("create", "web", 2, 0),
        ("create", "nets", 1, 0),
        ("create", "other", 3, 0),
        ("create", "filled", 0, 0),
    ]
    assert changes[0].entries == ("+ web", "+ other")
    assert changes[2].entries == ('+ 2001:db8::/32 comment "a b"',)
    assert there == [
        "add all web",
        "add all other",
        'add nets 2001:db8::/32 comment "a b"',
        "add other 80",
        "add other 81",
        "add other 82",
        "add web 10.0.0.1",
        "add web 10.0.0.2",
    ]
    assert [one.action for one in again] == ["same"] * 4 + ["kept"]


def test_comparing_changes_nothing(netns: Namespace) -> None:
    """Sets() alone leaves the kernel as it was: no set comes, also none for a moment's use."""

    def act() -> tuple[str, str, list[SetChange]]:
        oracle("restore", text="create web hash:ip\nadd web 10.0.0.9\ncreate old hash:ip\n")
        before = oracle("save")
        changes = Sets([WEB, NETS, ALL, OTHER], ["old"]).changes
        return before, oracle("save"), changes

    before, after, changes = netns.python(act)
    assert after == before
    assert actions(changes) == [
        ("swap", "web", 2, 1),
        ("create", "nets", 1, 0),
        ("create", "all", 2, 0),
        ("create", "other", 3, 0),
        ("destroy", "old", 0, 0),
    ]
    assert changes[0].entries == ("- 10.0.0.9", "+ 10.0.0.1", "+ 10.0.0.2")


@pytest.mark.parametrize(
    ("create", "added", "wanted"),
    [
        ("hash:ip", "10.0.0.0/28", [f"10.0.0.{n}" for n in reversed(range(16))]),
        ("hash:net", "10.0.0.77/24", ["10.0.0.0/24", "10.0.0.255/24"]),
        ("hash:net", "10.0.0.0/24", ["10.0.0.0-10.0.0.255"]),
        ("hash:ip netmask 24", "10.0.0.7", ["10.0.0.200"]),
        ("hash:ip hashsize 4096 initval 0x5", "10.0.0.7", ["10.0.0.7"]),
        ("hash:net family inet6", "2001:DB8::ff/32", ["2001:db8::/32"]),
        ("hash:ip,port", "10.0.0.1,http", ["10.0.0.1,tcp:80"]),
        ("hash:ip,port", "10.0.0.1,icmp:ping", ["10.0.0.1,icmp:8/0"]),
        ("hash:ip timeout 100 counters", "10.0.0.1 timeout 7 packets 9", ["10.0.0.1 timeout 90"]),
        ("bitmap:ip range 10.0.0.0/24", "10.0.0.8/30", ["10.0.0.8-10.0.0.11"]),
    ],
)
def test_the_same_in_other_words(
    netns: Namespace, create: str, added: str, wanted: list[str]
) -> None:
    """Sets are compared by what the kernel holds, not by the words of their entries."""

    def act() -> SetChange:
        oracle("create", "set", *create.split())
        oracle("add", "set", *added.split())
        kind, *words = create.split()
        known = {name: value for name, value in pairwise(words) if name in _COMPARED}
        known |= {"counters": ""} if "counters" in words else {}
        family = 6 if "inet6" in words else 0
        return Sets([WantedSet("set", kind, family, known, wanted)]).changes[0]

    assert netns.python(act) == SetChange("same", "set", create.split(maxsplit=1)[0])


@pytest.mark.parametrize(
    ("create", "options", "note"),
    [
        ("hash:ip", {"maxelem": "9"}, "maxelem 65536 -> maxelem 9"),
        ("hash:ip comment", {}, "comment -> no comment"),
        ("hash:ip", {"timeout": "5"}, "no timeout -> timeout 5"),
        ("hash:ip timeout 9", {"timeout": "5"}, "timeout 9 -> timeout 5"),
        ("hash:ip", {"forceadd": "", "counters": ""}, "no counters -> counters"),
    ],
)
def test_other_options(netns: Namespace, create: str, options: dict[str, str], note: str) -> None:
    """A set whose options differ is swapped for one that has them; a note says which."""

    def act() -> tuple[SetChange, SetChange]:
        oracle("create", "set", *create.split())
        wanted = [WantedSet("set", "hash:ip", 4, options, [])]
        return change(wanted)[0], Sets(wanted).changes[0]

    first, second = netns.python(act)
    assert first.action == "swap"
    assert first.note.startswith(note)
    assert second.action == "same"


def test_a_comment_and_no_end_are_differences(netns: Namespace) -> None:
    """An entry with another comment, or that is to stay for ever, is another entry."""

    def act() -> list[tuple[str, ...]]:
        set_up = "create set hash:ip timeout 60 comment\nadd set 10.0.0.1 comment old\n"
        oracle("restore", text=set_up)
        found = []
        for entry in ('10.0.0.1 comment "new"', "10.0.0.1 comment old timeout 0"):
            options = {"timeout": "60", "comment": ""}
            found.append(
                Sets([WantedSet("set", "hash:ip", 4, options, [entry])]).changes[0].entries
            )
        return found

    assert netns.python(act) == [
        ('- 10.0.0.1 comment "old"', '+ 10.0.0.1 comment "new"'),
        ('- 10.0.0.1 comment "old"', '+ 10.0.0.1 timeout 0 comment "old"'),
    ]


def test_the_order_of_a_list(netns: Namespace) -> None:
    """Members of a list stand in an order, and another one is a change."""

    def act() -> tuple[list[SetChange], list[str]]:
        change([ALL, WEB, OTHER])
        turned = WantedSet("all", "list:set", 0, {}, ["other", "web"])
        return change([turned, WEB, OTHER]), lines("all")

    changes, there = netns.python(act)
    assert changes[0] == SetChange("swap", "all", "list:set", note="another order")
    assert there == ["add all other", "add all web"]


def test_many_differences_are_counted(netns: Namespace) -> None:
    """Of many entries that come and go the change tells some of both, and how many there are."""

    def act() -> SetChange:
        change([WantedSet("set", "hash:ip", 4, {}, ["10.0.0.0/24"])])
        return Sets([WantedSet("set", "hash:ip", 4, {}, ["10.1.0.0/24"])]).changes[0]

    found = netns.python(act)
    assert (found.added, found.removed) == (256, 256)
    assert found.entries == (
        *(f"- 10.0.0.{n}" for n in range(10)),
        *(f"+ 10.1.0.{n}" for n in range(10)),
    )


def test_rules_see_the_swap_at_once(netns: Namespace) -> None:
    """A rule that uses a set goes on with its new contents, and the old are gone."""

    def act() -> tuple[list[SetChange], list[str], list[str], int]:
        change([WEB])
        rule = ["-A", "OUTPUT", "-m", "set", "--match-set", "web", "dst", "-j", "DROP"]
        subprocess.run(["iptables-legacy", *rule], check=True)
        changes = change([WantedSet("web", "hash:ip", 4, {}, ["10.0.0.3"])], ("web",))
        with Ipset() as kernel:
            header = kernel.header("web")
            assert header is not None
            return changes, lines(), oracle("list", "-n").split(), header.references

    changes, there, names, references = netns.python(act)
    assert actions(changes) == [("swap", "web", 1, 2)]
    assert there == ["add web 10.0.0.3"]
    assert names == ["web"]
    assert references == 1
    assert "--match-set web dst -j DROP" in netns.save()


def test_sets_go_after_their_lists(netns: Namespace) -> None:
    """What is not wanted any more goes, members of a list in the same step as the list."""

    def act() -> tuple[list[SetChange], str]:
        change([WEB, ALL, OTHER, NETS])
        return change([], ("web", "all", "other", "nets", "never")), oracle("save")

    changes, left = netns.python(act)
    assert actions(changes) == [
        ("destroy", "all", 0, 2),
        ("destroy", "nets", 0, 1),
        ("destroy", "other", 0, 3),
        ("destroy", "web", 0, 2),
    ]
    assert left == ""


def test_what_is_in_use_is_left(netns: Namespace) -> None:
    """A set that another's list or rule still uses is not destroyed, and finish() says so."""

    def act() -> tuple[list[SetChange], list[str]]:
        change([WEB, NETS])
        oracle("restore", text="create theirs list:set\nadd theirs web\n")
        sets = Sets([], ["web", "nets"])
        sets.prepare()
        return sets.finish(), oracle("list", "-n").split()

    left, names = netns.python(act)
    assert left == [SetChange("kept", "web", "hash:ip", note="still in use by rules or lists (1)")]
    assert names == ["web", "theirs"]


def test_sets_that_others_fill(netns: Namespace) -> None:
    """What others put into such a set stays; of another type, it is an error that has a place."""

    def act() -> tuple[list[SetChange], list[str], NfctlError]:
        change([FILLED])
        oracle("add", "filled", "10.9.9.9")
        changes = change([FILLED], ("filled",))
        there = lines()
        where = Where("policy", 7, 3)
        try:
            Sets([WantedSet("filled", "hash:net", 4, {}, None, where)])
        except BadInput as error:
            return changes, there, error
        raise AssertionError

    changes, there, error = netns.python(act)
    assert changes == [SetChange("kept", "filled", "hash:ip", note="others fill it")]
    assert there == ["add filled 10.9.9.9 timeout N"]
    assert error.message == "set filled is of hash:ip (IPv4), and not of hash:net (IPv4)"
    assert error.where == Where("policy", 7, 3)


# --- other types ----------------------------------------------------------------------------------


def test_another_type(netns: Namespace) -> None:
    """A set that nothing uses is replaced by one of another type, and comes back by revert()."""

    def act() -> tuple[list[list[str]], list[list[str]], list[SetChange], list[list[str]]]:
        change([WEB])
        before = everything()
        wanted = [WantedSet("web", "hash:net", 4, {}, ["10.0.0.0/8"])]
        sets = Sets(wanted)
        sets.prepare()
        sets.revert()
        reverted = everything()
        return before, reverted, change(wanted), everything()

    before, reverted, changes, after = netns.python(act)
    assert reverted == before
    assert actions(changes) == [("swap", "web", 1, 2)]
    assert changes[0].note == "hash:ip (IPv4) -> hash:net (IPv4)"
    assert len(after) == 1
    assert after[0][0].startswith("create web hash:net ")
    assert after[0][1:] == ["add web 10.0.0.0/8"]


def test_another_type_in_use(netns: Namespace) -> None:
    """While something uses a set, none of another type takes its place; nothing is changed."""

    def act() -> tuple[bool, NfctlError, NfctlError | None]:
        change([WEB, ALL, OTHER])
        before = everything()
        where = Where("policy", 9)
        wanted = [NETS, WantedSet("web", "hash:net", 4, {}, ["10.0.0.0/8"], where)]
        sets = Sets(wanted, ["web", "all", "other"])
        try:
            sets.prepare()
        except BadInput as error:
            return everything() == before, error, sets.obstacle
        raise AssertionError

    same, error, obstacle = netns.python(act)
    assert same
    assert error.message == (
        "set web is of hash:ip (IPv4), and a rule or list uses it, among them the list all: "
        "one of hash:net (IPv4) cannot take its place"
    )
    assert error.where == Where("policy", 9)
    assert str(obstacle) == str(error)


def test_types_that_swap(netns: Namespace) -> None:
    """hash:ip and bitmap:ip hold the same things, and are swapped even while they are used."""

    def act() -> tuple[list[SetChange], list[str]]:
        change([WEB, ALL, OTHER])
        wanted = [WantedSet("web", "bitmap:ip", 4, {"range": "10.0.0.0/24"}, ["10.0.0.9"])]
        return change([*wanted, ALL, OTHER]), everything("web")[0]

    changes, there = netns.python(act)
    assert changes[0].note == "hash:ip (IPv4) -> bitmap:ip (IPv4)"
    assert there == ["create web bitmap:ip range 10.0.0.0-10.0.0.255", "add web 10.0.0.9"]


# --- all or nothing -------------------------------------------------------------------------------


def interfere(step: str) -> tuple[bool, NfctlError]:
    """Have another program come between the comparison and prepare()."""
    change([WEB, NETS])
    new_nets = WantedSet("nets", "hash:net", 6, {}, ["2001:db8:1::/48"])
    wanted = [WantedSet("web", "hash:ip", 4, {}, ["10.0.0.7"]), new_nets, OTHER]
    if step == "a member goes":
        oracle("create", "guest", "hash:ip")
        wanted.append(WantedSet("all", "list:set", 0, {}, ["web", "guest"]))
    sets = Sets(wanted)
    if step == "a set goes":
        oracle("destroy", "nets")
    elif step == "a set comes":
        oracle("create", "other", "hash:ip")
    else:
        oracle("destroy", "guest")
    before = everything()
    try:
        sets.prepare()
    except NfctlError as error:
        sets.revert()
        return everything() == before, error
    raise AssertionError


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        ("a set goes", Changed, "set nets was changed by another program meanwhile: "),
        ("a set comes", Changed, "set other was changed by another program meanwhile: "),
        ("a member goes", EntryError, "set all: entry 'guest': there is no set of this name"),
    ],
)
def test_all_or_nothing(netns: Namespace, step: str, kind: type[NfctlError], message: str) -> None:
    """Where one set cannot be had, those that were changed before it are as they were."""
    same, error = netns.python(interfere, step)
    assert type(error) is kind
    assert error.message.startswith(message)
    assert same


def test_a_hash_that_is_too_large(netns: Namespace) -> None:
    """What the kernel has no memory for is refused under its own name, and nothing is left."""

    def act() -> tuple[str, str]:
        try:
            change([WantedSet("huge", "hash:ip", 4, {"hashsize": "4294967295"}, [])])
        except NfctlError as error:
            return error.message, oracle("list", "-n")
        raise AssertionError

    message = "set huge cannot be created: the kernel has no memory for it"
    assert netns.python(act) == (message, "")


def test_revert(netns: Namespace) -> None:
    """revert() brings back what was there, counters and all, and takes away what came."""

    def act() -> tuple[list[str], list[list[str]], list[list[str]]]:
        oracle("restore", text="create web hash:ip counters\nadd web 10.0.0.5 packets 7 bytes 9\n")
        oracle("restore", text="create all list:set\nadd all web\n")
        before = everything()
        sets = Sets([ALL, WEB, NETS, OTHER])
        touched = [*sets.touched, "|", *sets.created]
        sets.prepare()
        assert everything() != before
        sets.revert()
        after = everything()
        sets.revert()
        assert sets.finish() == []
        return touched, before, after

    touched, before, after = netns.python(act)
    assert touched == ["all", "web", "|", "nets", "other"]
    assert after == before


def test_revert_says_what_it_cannot(netns: Namespace) -> None:
    """A set that somebody uses by now stays, the others go, and the error names it."""

    def act() -> tuple[NfctlError, list[str]]:
        sets = Sets([WEB, NETS])
        sets.prepare()
        oracle("restore", text="create theirs list:set\nadd theirs web\n")
        try:
            sets.revert()
        except NfctlError as error:
            return error, sorted(oracle("list", "-n").split())
        raise AssertionError

    error, names = netns.python(act)
    assert error.message.startswith("ipsets could NOT be put back: set web cannot be renamed to ")
    assert names == ["theirs", "web"]


def test_what_a_crash_left(netns: Namespace) -> None:
    """Sets with temporary names go with the next change, but for what somebody uses."""

    def act() -> list[str]:
        for wanted in ([WEB, NETS], [WantedSet("web", "hash:ip", 4, {}, []), NETS, OTHER]):
            Sets(wanted).prepare()  # and never finish()
        leftover = next(name for name in oracle("list", "-n").split() if "tmp" in name)
        assert leftover.startswith(TEMPORARY)
        oracle("create", "nfctl-tmp-list", "list:set")
        oracle("add", "nfctl-tmp-list", leftover)
        oracle("create", "nfctl-tmp-used", "hash:ip")
        oracle("create", "theirs", "list:set")
        oracle("add", "theirs", "nfctl-tmp-used")
        change([WEB, NETS, OTHER])
        return sorted(oracle("list", "-n").split())

    assert netns.python(act) == ["nets", "nfctl-tmp-used", "other", "theirs", "web"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (WantedSet("web", "hash:ip", 4, {}, ["10.0.0.1", "10.0.0.x"]), "entry '10.0.0.x': "),
        (WantedSet("web", "hash:ip", 4, {}, ["10.0.0.1", "0.0.0.0/32"]), "entry '0.0.0.0/32': "),
        (WantedSet("web", "list:set", 0, {}, ["nosuch"]), "entry 'nosuch': there is no set"),
        (WantedSet("web", "hash:ip", 4, {"maxelem": "x"}, None), "option maxelem is a number"),
        (WantedSet("nfctl-tmp-1", "hash:ip", 4, {}, None), "are for nfctl's own use"),
        (WantedSet("nets", "hash:ip", 4, {}, None), "set nets is there twice"),
    ],
)
def test_wrong_sets(netns: Namespace, wanted: WantedSet, message: str) -> None:
    """What cannot be a set is found before anything changes, and has its place."""
    wanted = WantedSet(
        wanted.name, wanted.type, wanted.family, wanted.options, wanted.entries, Where("p", 4, 2)
    )
    with pytest.raises(BadInput) as caught:
        netns.python(Sets, [NETS, wanted], ["old"])
    assert message in caught.value.message
    assert caught.value.where == Where("p", 4, 2)
    assert netns.run(["ipset", "save"]).stdout == ""


def test_a_kernel_that_lacks_the_type(netns: Namespace) -> None:
    """Exit code 3 and the place of the set."""
    name = netns.python(missing_type)
    if not name:
        pytest.skip("needs a kernel without one of the types")
    with pytest.raises(NfctlError) as caught:
        netns.python(Sets, [WantedSet("set", name, 0, {}, [], Where("p", 4))])
    assert caught.value.exit_code == 3
    assert caught.value.where == Where("p", 4)


@pytest.mark.parametrize("kept", ["", "+net_admin"])
def test_without_privileges(netns: Namespace, kept: str) -> None:
    """NotPermitted, exit code 3, without CAP_NET_ADMIN, and without CAP_SYS_ADMIN."""
    code = """
from nfctl.control.sets import Sets
from nfctl.errors import NfctlError
from nfctl.policy.wanted import WantedSet
Sets([])
try:
    Sets([WantedSet("set", "hash:ip", 4, {}, [])])
except NfctlError as error:
    print(type(error).__name__, error.exit_code)
"""
    bounding = f"-all,{kept}".rstrip(",")
    done = netns.run(
        ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", sys.executable, "-c", code]
    )
    assert done.stdout == f"NotPermitted {NotPermitted.exit_code}\n", done.stderr


# --- snapshots ------------------------------------------------------------------------------------


def test_shells(netns: Namespace) -> None:
    """The sets of a policy can be had empty; what is there already may stay."""

    def act() -> list[list[str]]:
        make_shells([ALL, WEB])
        make_shells([ALL, WEB, NETS])
        return everything()

    found = netns.python(act)
    assert [one[0].split()[1:3] for one in found] == [
        ["all", "list:set"],
        ["nets", "hash:net"],
        ["web", "hash:ip"],
    ]
    assert [len(one) for one in found] == [1, 1, 1]


def test_saved_is_what_ipset_saves(netns: Namespace) -> None:
    """The snapshot is what ``ipset save`` prints of the sets, lists last, missing ones left out."""

    def act() -> tuple[str, str]:
        change([ALL, WEB, NETS, OTHER])
        text = saved(["all", "missing", "web", "other", "web"])
        return text, "".join(oracle("save", name) for name in ("web", "other", "all"))

    ours, theirs = netns.python(act)
    assert ours == theirs


def test_put_back(netns: Namespace) -> None:
    """What was saved becomes so again, what came goes; what is as it was is not touched."""

    def act() -> tuple[list[list[str]], list[list[str]], list[SetChange]]:
        change([ALL, WEB, OTHER, NETS])
        before = everything()
        sets = Sets([WantedSet("web", "hash:ip", 4, {}, []), NETS, FILLED], ["all", "web", "other"])
        text = saved(sets.touched)
        sets.prepare()
        sets.finish()
        changes = of_saved(text, sets.created).changes
        assert put_back(text, sets.created) == []
        return before, everything(), changes

    before, after, changes = netns.python(act)
    assert after == before
    assert actions(changes) == [
        ("swap", "web", 2, 0),
        ("create", "other", 3, 0),
        ("create", "all", 2, 0),
        ("destroy", "filled", 0, 0),
    ]


# --- any sets -------------------------------------------------------------------------------------

MEMBERS: Final = ("a", "b", "c")
numbers = st.integers(1, 6)


def drawn_set(name: str) -> st.SearchStrategy[WantedSet]:
    hosts = st.lists(numbers.map("10.0.0.{}".format), max_size=4)
    nets = st.lists(st.builds("10.{}.0.0/{}".format, numbers, st.integers(14, 16)), max_size=4)
    services = st.lists(st.builds("10.0.0.{},udp:{}".format, numbers, numbers), max_size=4)
    options = st.sampled_from([{}, {"counters": ""}, {"maxelem": "100"}, {"comment": ""}])
    return st.one_of(
        st.builds(WantedSet, st.just(name), st.just("hash:ip"), st.just(4), options, hosts),
        st.builds(WantedSet, st.just(name), st.just("hash:net"), st.just(4), options, nets),
        st.builds(WantedSet, st.just(name), st.just("hash:ip,port"), st.just(4), options, services),
    )


@st.composite
def drawn_sets(draw: Callable[[st.SearchStrategy[object]], object]) -> list[WantedSet]:
    names = draw(st.lists(st.sampled_from(MEMBERS), unique=True, max_size=3))
    assert isinstance(names, list)
    found = [draw(drawn_set(name)) for name in names]
    if names and draw(st.booleans()):
        members = draw(st.lists(st.sampled_from(names), unique=True))
        found.insert(0, WantedSet("list", "list:set", 0, {}, members))  # type: ignore[arg-type]
    return found  # type: ignore[return-value]


def restored(wanted: list[WantedSet]) -> list[list[str]]:
    """Return the sets that ipset itself makes."""
    text = ""
    for one in sorted(wanted, key=lambda one: one.type == "list:set"):
        options = " ".join(f"{name} {value}" for name, value in one.options.items())
        text += f"create {one.name} {one.type} {options}\n"
        text += "".join(f"add {one.name} {entry}\n" for entry in one.entries or ())
    oracle("-exist", "restore", text=text)
    return everything()


def without_seeds(found: list[list[str]]) -> list[list[str]]:
    return [[one[0].partition(" initval")[0], *one[1:]] for one in found]


def clear() -> None:
    with Ipset() as kernel:
        for name, header in sorted(
            kernel.headers().items(), key=lambda one: one[1].type != "list:set"
        ):
            assert isinstance(header, Header)
            kernel.destroy(name)


def check_random() -> None:
    @examples(60)
    @given(drawn_sets(), drawn_sets())
    def check(first: list[WantedSet], second: list[WantedSet]) -> None:
        clear()
        theirs = restored(second)
        clear()
        change(first)
        before = everything()
        sets = Sets(second, [one.name for one in first])
        text, created = saved(sets.touched), sets.created
        if sets.obstacle is not None:
            with pytest.raises(BadInput):
                sets.prepare()
            assert everything() == before
            return
        sets.prepare()
        sets.revert()
        assert everything() == before
        again = Sets(second, [one.name for one in first])
        again.prepare()
        assert again.finish() == []
        assert without_seeds(everything()) == without_seeds(theirs)
        assert {one.action for one in Sets(second).changes} <= {"same"}
        back = of_saved(text, created)
        if back.obstacle is None:
            back.prepare()
            assert back.finish() == []
            assert everything() == before

    check()


def test_any_sets_over_any(netns: Namespace) -> None:
    """Random sets over random ones: what ipset makes of them; revert and put_back give the old."""
    netns.python(check_random)
