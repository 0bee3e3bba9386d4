"""The journal on real file systems and over real tables: full, read-only, put back by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.control.apply import Options, Outcome, apply
from nfctl.control.journal.state import State
from nfctl.errors import NfctlError
from nfctl.kernel import netns as namespaces
from nfctl.policy import saved
from tests.kernel import play
from tests.kernel.conftest import legacy

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

PLACE = Path("/run/state")  # the namespace has a /run of its own
RULES = (
    "*filter\n:INPUT ACCEPT [0:0]\n:OLD - [0:0]\n-A INPUT -i lo -j OLD\n-A OLD -j RETURN\nCOMMIT\n"
)
BEFORE = "-s 10.0.0.1/32 -j DROP"


def applied(text: str, name: str = "web", family: int = 4) -> str:
    """Apply iptables-save text in this namespace; return the status."""
    file = Path(f"/run/{name}.rules")
    file.write_text(text)
    files = (str(file), None) if family == 4 else (None, str(file))
    wanted = saved.read(*files)
    wanted.name = name
    outcome: Outcome = apply(wanted, state=State(), options=Options())
    return outcome.status


def refusal(text: str, directory: Path = PLACE) -> tuple[int, str]:
    """Apply text whose journal is elsewhere; return the exit code and the message."""
    os.environ["NFCTL_STATE_DIR"] = str(directory)
    try:
        applied(text)
    except NfctlError as error:
        return error.exit_code, error.message
    return 0, ""


def mount(netns: Namespace, *words: str) -> None:
    done = netns.run(["mount", *words])
    assert done.returncode == 0, done.stderr


def directory_of(netns: Namespace) -> Path:
    return netns.python(lambda: State().directory)


# --- what refuses the apply ----------------------------------------------------------------------


def fill(left: int) -> None:
    """Fill the file system but for so many bytes."""
    State(PLACE).ready()
    free = os.statvfs(PLACE)
    with (PLACE / "filler").open("wb") as file:
        file.write(bytes(free.f_bavail * free.f_bsize - left))


@pytest.mark.parametrize("left", [0, 4096, 8192])
def test_a_full_disk_refuses_the_apply(netns: Namespace, left: int) -> None:
    """Without room for the journal nothing is touched: exit code 3, the tables are as before."""
    netns.legacy("-A", "INPUT", *BEFORE.split())
    before = netns.save(4, "-c")
    netns.run(["mkdir", "-m", "0700", str(PLACE)])
    mount(netns, "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(PLACE))
    netns.python(fill, left)
    code, message = netns.python(refusal, RULES)
    assert code == 3
    assert f"the disk of {PLACE} is full" in message
    assert "nothing was touched" in message
    assert netns.save(4, "-c") == before
    assert netns.python(lambda: State(PLACE).entries()) == []
    assert netns.python(lambda: sorted(os.listdir(PLACE / "history"))) == []


def test_too_little_room_is_found_before(netns: Namespace) -> None:
    """ready() asks for as many bytes as it is told, and leaves nothing behind."""
    netns.run(["mkdir", "-m", "0700", str(PLACE)])
    mount(netns, "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(PLACE))

    def asked(size: int) -> str:
        try:
            State(PLACE).ready(size)
        except NfctlError as error:
            return error.message
        return ""

    assert netns.python(asked, 500_000) == ""
    assert "is full" in netns.python(asked, 2_000_000)
    assert netns.python(asked, 500_000) == ""
    assert netns.python(lambda: sorted(os.listdir(PLACE / "history"))) == []


def test_no_inode_is_left(netns: Namespace) -> None:
    """A file system without a free inode refuses the apply as a full one does."""
    netns.run(["mkdir", "-m", "0700", str(PLACE)])
    mount(netns, "-t", "tmpfs", "-o", "size=4m,nr_inodes=8,mode=0700", "none", str(PLACE))
    before = netns.save()
    code, message = netns.python(refusal, RULES)
    assert code == 3
    assert "is full" in message
    assert "nothing was touched" in message
    assert netns.save() == before


@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_disk_refuses_the_apply(netns: Namespace, there: bool) -> None:
    """A read-only file system is said to be one, with or without a journal on it."""
    netns.run(["mkdir", "-m", "0700", str(PLACE)])
    mount(netns, "-t", "tmpfs", "-o", "mode=0700", "none", str(PLACE))
    directory = PLACE / "nfctl"
    if there:
        netns.python(lambda: State(directory).ready())
    mount(netns, "-o", "remount,ro", str(PLACE))
    before = netns.save()
    code, message = netns.python(refusal, RULES, directory)
    assert code == 3
    assert "read-only file system" in message
    assert "nothing was touched" in message
    assert netns.save() == before
    assert netns.python(lambda: State(directory).entries()) == []


# --- by hand, and by rollback --------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_what_was_before_is_restored_by_hand(netns: Namespace, family: int) -> None:
    """History show --before is what the oracle's restore puts back, counters included."""
    spec = BEFORE if family == 4 else BEFORE.replace("10.0.0.1/32", "2001:db8::1/128")
    netns.legacy("-A", "INPUT", "-c", "7", "900", *spec.split(), family=family)
    netns.legacy("-N", "OLD", family=family)
    before = netns.save(family, "-c")
    assert netns.python(applied, RULES, "web", family) == "applied"
    assert netns.save(family, "-c") != before
    words = ["history", "show", "1", "--before", f"-{family}"]
    said = netns.python(play.nfctl, words)
    assert said.code == 0, said.err
    done = netns.run([f"{legacy(family)}-restore", "-c"], said.out)
    assert done.returncode == 0, done.stderr
    assert netns.save(family, "-c") == before


def test_tables_brought_to_life_are_emptied_by_hand(netns: Namespace) -> None:
    """What --before prints undoes a change of tables that nobody had used before."""
    assert netns.python(applied, RULES) == "applied"
    said = netns.python(play.nfctl, ["history", "show", "1", "--before"])
    assert netns.run(["iptables-legacy-restore", "-c"], said.out).returncode == 0
    assert netns.save() == play.EMPTY


def test_rollback(netns: Namespace) -> None:
    """Rollback undoes the latest change, says which, and leaves an entry; then there is none."""
    netns.legacy("-A", "INPUT", *BEFORE.split())
    before = netns.save()
    assert netns.python(applied, RULES) == "applied"
    said = netns.python(play.nfctl, ["rollback"])
    assert said.code == 0, said.err
    assert "undone: entry 1, apply of policy web" in said.out
    assert f"+ -A INPUT {BEFORE}" in said.out
    assert netns.save() == before
    listed = json.loads(netns.python(play.nfctl, ["history", "--json"]).out)["entries"]
    assert [(one["number"], one["action"], one["status"]) for one in listed] == [
        (2, "rollback", "applied"),
        (1, "apply", "rolled back"),
    ]
    assert (listed[0]["undoes"], listed[1]["undone_by"]) == ([1], 2)
    assert listed[1]["reason"] == "nfctl rollback"
    assert listed[0]["who"]["uid"] == 0
    said = netns.python(play.nfctl, ["rollback"])
    assert said.code == 1
    assert "nothing to undo" in said.err
    assert netns.save() == before


def test_rollback_to_a_number(netns: Namespace) -> None:
    """Rollback N undoes all that came after N, too, in one change; --json says what was done."""
    assert netns.python(applied, RULES) == "applied"
    first = netns.save()
    for address in ("10.0.0.2", "10.0.0.3"):
        text = RULES.replace("-i lo", f"-s {address}/32")
        assert netns.python(applied, text) == "applied"
    said = netns.python(play.nfctl, ["rollback", "2", "--json"])
    document = json.loads(said.out)
    assert (said.code, document["status"]) == (0, "applied")
    assert document["entry"]["undoes"] == [3, 2]
    assert document["change"]["changes"] is True
    assert netns.save() == first
    assert netns.python(play.nfctl, ["rollback", "9"]).code == 2


def test_a_record_goes_back_with_its_entry(netns: Namespace) -> None:
    """After a rollback the policy owns what it owned before."""

    def record() -> str:
        found = State().record("web")
        return found.text[4] if found else ""

    assert netns.python(applied, RULES) == "applied"
    first = netns.python(record)
    assert netns.python(applied, RULES.replace("OLD", "NEW")) == "applied"
    assert netns.python(record) != first
    for expected in (first, ""):
        assert netns.python(play.nfctl, ["rollback"]).code == 0
        assert netns.python(record) == expected


def test_a_damaged_entry_is_not_rolled_back(netns: Namespace) -> None:
    """A snapshot that somebody edited is not put into the kernel."""
    netns.legacy("-A", "INPUT", *BEFORE.split())
    assert netns.python(applied, RULES) == "applied"
    after = netns.save()

    def edit() -> None:
        file = State().entry(1).path / "before.v4"
        file.write_text(file.read_text().replace("DROP", "ACCEPT"))

    netns.python(edit)
    said = netns.python(play.nfctl, ["rollback"])
    assert said.code == 1
    assert "before.v4 was changed by another hand" in said.err
    assert netns.save() == after


# --- whose journal -------------------------------------------------------------------------------


def test_a_namespace_has_its_own_journal(netns: Namespace) -> None:
    """A nameless namespace does not write into the machine's journal, nor into another's."""
    directory = directory_of(netns)
    assert directory.parent == Path("/run/nfctl/netns")
    assert netns.python(applied, RULES) == "applied"
    done = netns.run(["unshare", "-n", *the_directory()])
    other = Path(done.stdout.strip())
    assert other.parent == directory.parent
    assert other != directory


def the_directory() -> list[str]:
    """Return the command that prints where the journal is."""
    code = "from nfctl.control.journal.state import State; print(State().directory)"
    return [sys.executable, "-c", code]


def test_a_named_namespace_has_its_own_journal(netns: Namespace) -> None:
    """--netns NAME has the journal of that name, whoever asks from where."""
    assert netns.run(["ip", "netns", "add", "blue"]).returncode == 0
    try:

        def inside() -> Path:
            with namespaces.entered("blue"):
                return State().directory

        assert netns.python(inside) == Path("/var/lib/nfctl/netns/blue")
        done = netns.run(["ip", "netns", "exec", "blue", *the_directory()])
        assert done.stdout.strip() == "/var/lib/nfctl/netns/blue"
    finally:
        netns.run(["ip", "netns", "delete", "blue"])
    assert netns.python(lambda: State().directory).parent == Path("/run/nfctl/netns")
