"""Notices of other programs: who opens the xtables lock, and what the audit log says."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from nfctl.kernel import lock
from nfctl.kernel.notices import Notice, Notices
from tests.kernel.conftest import SLOWNESS
from tests.kernel.test_lock import HOLDER, LOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

AWAITED = 10 * SLOWNESS
CLONE_NEWUSER = 0x10000000
T = TypeVar("T")

both = pytest.mark.parametrize("whole", [True, False], ids=["fanotify", "inotify"])


def iptables(*words: str) -> None:
    subprocess.run(["iptables-legacy", *words], check=True, capture_output=True)


def await_notice(notices: Notices) -> list[Notice]:
    """Wait for notices, and return the first ones."""
    until = time.monotonic() + AWAITED
    while time.monotonic() < until:
        select.select(notices.fds, [], [], until - time.monotonic())
        if found := notices.take():
            return found
    return []


def with_notices(netns: Namespace, whole: bool, function: Callable[[Notices], T]) -> T:
    """Listen in a child in the namespace, and call a function there."""

    def run() -> T:
        with Notices(whole=whole) as notices:
            assert "lock" in notices.sources
            assert whole is not any(text.startswith("fanotify") for text in notices.missing)
            return function(notices)

    return netns.python(run)


@both
def test_iptables_is_noticed(netns: Namespace, whole: bool) -> None:
    """Each run of iptables-legacy is noticed, the first too, although it makes the lock file."""

    def run(notices: Notices) -> list[int]:
        there = Path(LOCK).exists()
        found = []
        for program in ("iptables-legacy", "iptables-legacy", "ip6tables-legacy"):
            subprocess.run([program, "-F"], check=True)
            found.append(len(await_notice(notices)))
            notices.take()
        return [there, *found, len(notices.take())]

    there, *found, rest = with_notices(netns, whole, run)
    assert not there
    assert all(found)
    assert rest == 0


@both
def test_a_lock_file_that_was_replaced(netns: Namespace, whole: bool) -> None:
    """Should somebody remove the lock file, runs of iptables with the next one are noticed."""

    def run(notices: Notices) -> list[bool]:
        found = []
        iptables("-F")
        for _ in range(3):
            Path(LOCK).unlink()
            iptables("-F")
            found.append(bool(await_notice(notices)))
            notices.take()
            iptables("-F")
            found.append(bool(await_notice(notices)))
            notices.take()
        return found

    assert with_notices(netns, whole, run) == [True] * 6


@both
def test_who_it_was(netns: Namespace, whole: bool) -> None:
    """A program that has the lock is named, with its parent, though it is gone when it is told."""

    def run(notices: Notices) -> tuple[list[Notice], int, str, str]:
        Path(LOCK).touch()
        notices.take()
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", HOLDER, LOCK]
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            before = notices.take()
            name = Path(f"/proc/{child.pid}/comm").read_text(encoding="utf-8").strip()
            child.communicate("\n", timeout=AWAITED)
        mine = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
        return before + await_notice(notices), child.pid, name, mine

    (notice,), pid, name, mine = with_notices(netns, whole, run)
    assert notice.source == "lock"
    assert notice.actor == (pid, name, mine)


@both
def test_what_we_do_is_no_notice(netns: Namespace, whole: bool) -> None:
    """Our own use of the lock wakes nobody; what iptables does after it still does."""

    def run(notices: Notices) -> tuple[list[Notice], list[Notice]]:
        Path(LOCK).touch()
        notices.take()
        for _ in range(3):
            with lock.held():
                pass
        notices.forget()
        ready, _, _ = select.select(notices.fds, [], [], 0)
        found = notices.take() if ready else []
        iptables("-F")
        return found, await_notice(notices)

    ours, theirs = with_notices(netns, whole, run)
    assert ours == []
    assert theirs


def test_fanotify_tells_us_from_others(netns: Namespace) -> None:
    """Where the kernel names the process, nothing is lost that came while we had the lock."""

    def run(notices: Notices) -> list[Notice]:
        Path(LOCK).touch()
        notices.take()
        with lock.held(), Path(LOCK).open("rb"):
            iptables_list = subprocess.Popen(["iptables-legacy", "-w", "-F"])
        iptables_list.wait(AWAITED)
        notices.forget()
        return await_notice(notices)

    (notice,) = with_notices(netns, True, run)
    assert notice.source == "lock"


@both
def test_nothing_is_left_behind(netns: Namespace, whole: bool) -> None:
    """A thousand uses of the lock by another cost no descriptor, and closing gives all back."""

    def run() -> tuple[int, int, int, int]:
        before = len(os.listdir("/proc/self/fd"))
        with Notices(whole=whole) as notices:
            Path(LOCK).touch()
            notices.take()
            during = len(os.listdir("/proc/self/fd"))
            script = f"for i in $(seq 1000); do : < {LOCK}; done"
            subprocess.run(["sh", "-c", script], check=True)
            found = 0
            while more := notices.take():
                found += len(more)
            after = len(os.listdir("/proc/self/fd"))
        return found, after - during, len(os.listdir("/proc/self/fd")) - before, during - before

    found, leaked, left, used = netns.python(run)
    assert found == 1000 or whole  # fanotify merges what one process does
    assert found
    assert (leaked, left) == (0, 0)
    assert used > 0


@both
def test_other_files_are_no_notice(netns: Namespace, whole: bool) -> None:
    """What happens beside the lock file is not told."""

    def run(notices: Notices) -> list[Notice]:
        Path("/run/xtables.lock.new").touch()
        Path("/run/another").write_text("x", encoding="ascii")
        Path("/run/another").unlink()
        return notices.take()

    assert with_notices(netns, whole, run) == []


def test_another_lock_file(netns: Namespace, tmp_path: Path) -> None:
    """XTABLES_LOCKFILE is what is watched; where its directory is missing, that is said."""

    def run() -> tuple[bool, list[str], list[str]]:
        os.environ["XTABLES_LOCKFILE"] = str(tmp_path / "lock")
        with Notices() as notices:
            iptables("-F")
            found = bool(await_notice(notices))
        os.environ["XTABLES_LOCKFILE"] = str(tmp_path / "nowhere" / "lock")
        with Notices() as notices:
            return found, notices.sources, notices.missing

    found, sources, missing = netns.python(run)
    assert found
    assert "lock" not in sources
    assert f"{tmp_path}/nowhere: No such file or directory" in missing


def test_without_the_privilege(netns: Namespace, tmp_path: Path) -> None:
    """In a user namespace, which may neither fanotify nor audit, inotify notices all the same."""

    def run() -> tuple[list[str], list[str], bool]:
        os.environ["XTABLES_LOCKFILE"] = str(tmp_path / "lock")
        (tmp_path / "lock").touch()
        (tmp_path / "lock").chmod(0o666)
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(0o755)
        if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
            return [], [], False
        with Notices() as notices:
            with (tmp_path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
            return notices.sources, notices.missing, bool(await_notice(notices))

    sources, missing, noticed = netns.python(run)
    if not sources:
        pytest.skip("needs user namespaces: the kernel refuses them")
    assert sources == ["lock"]
    assert "fanotify, which tells who it was: Operation not permitted" in missing
    assert any(text.startswith("audit: ") for text in missing)
    assert noticed


def test_audit_names_the_table(netns: Namespace) -> None:
    """With audit switched on, the record of a replaced table names it and the program."""

    def run(notices: Notices) -> list[Notice]:
        iptables("-A", "INPUT", "-s", "10.0.0.1")
        until = time.monotonic() + AWAITED
        found: list[Notice] = []
        while not found:
            assert time.monotonic() < until
            found = [notice for notice in await_notice(notices) if notice.source == "audit"]
        return found

    # records come to the initial network namespace only, where the suite runs, as a rule
    with Notices() as notices:
        if "audit" not in notices.sources:
            pytest.skip(f"needs audit, switched on: {'; '.join(notices.missing)}")
        found = netns.python(run, notices)
    assert {(notice.family, notice.table) for notice in found} == {(4, "filter")}
    assert {notice.actor.comm for notice in found if notice.actor} == {"iptables-legacy"}
