"""What a restore that is killed leaves behind: every table as it was, or as it was to be."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final

import pytest

import nfctl
from nfctl.kernel.table import Table
from tests.bench import generate
from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

# In the order in which the rulesets have them, and in which they are committed.
TABLES: Final = ("raw", "mangle", "nat", "filter")
KILLS: Final = 60


def ruleset(rules: int, variant: str) -> str:
    return generate.ruleset(rules, variant=variant, spread=True)


def tables_of(saved: str) -> dict[str, str]:
    """Cut what iptables-save prints into its tables."""
    parts = (part for part in saved.split("*") if part)
    return {part.partition("\n")[0]: part for part in parts}


def load(netns: Namespace, text: str) -> dict[str, str]:
    """Let the oracle load a ruleset; return each table as it prints it."""
    done = netns.run(["iptables-legacy-restore"], text)
    assert done.returncode == 0, done.stderr
    return tables_of(netns.save())


def spread(rng: random.Random, number: int, begin: float, end: float) -> list[float]:
    """Draw one moment in each of so many equal parts of a stretch."""
    return [begin + (part + rng.random()) / number * (end - begin) for part in range(number)]


def test_killed_at_any_moment(netns: Namespace, tmp_path: Path) -> None:
    """Whenever SIGKILL comes, each of four tables is whole: the old one or the new one."""
    assert netns.run(["ipset", "restore"], generate.ipsets()).returncode == 0
    files, wanted, seconds = [], [], []
    for variant in "ab":
        text = ruleset(3000, variant)
        files.append(tmp_path / variant)
        files[-1].write_text(text)
        wanted.append(load(netns, text))
    now = wanted[1]
    for file in files:  # the last one is what is there afterwards
        start = time.monotonic()
        assert netns.nfctl("restore", str(file)).returncode == 0
        seconds.append(time.monotonic() - start)
    rng = random.Random(1)
    moments = [*spread(rng, KILLS // 3, 0.0, 0.8), *spread(rng, KILLS - KILLS // 3, 0.8, 1.2)]
    rng.shuffle(moments)
    outcomes = []
    for moment in (part * max(seconds) for part in (*moments, 3.0)):
        number = int(now == wanted[0])
        new = wanted[number]
        command = [*NFCTL, "restore", str(files[number])]
        process = netns.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        process.kill()
        process.wait()
        old, now = now, tables_of(netns.save())
        torn = [table for table in TABLES if now[table] not in (old[table], new[table])]
        assert not torn, f"killed after {moment:.3f} s: neither the old nor the new {torn}"
        outcomes.append(now == new)
    assert len(set(outcomes)) == 2, f"{sum(outcomes)} of {len(outcomes)} came to their end"
    assert netns.nfctl("restore", "--wait", "0", str(files[0])).returncode == 0
    assert tables_of(netns.save()) == wanted[0]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("position", range(len(TABLES)), ids=TABLES)
def test_killed_between_two_tables(position: int, after: bool, netns: Namespace) -> None:
    """Killed at the commit of a table, those before it are new and those behind it are old."""
    assert netns.run(["ipset", "restore"], generate.ipsets()).returncode == 0
    new = load(netns, ruleset(100, "b"))
    old = load(netns, ruleset(100, "a"))
    commit = Table.commit

    def fatal(table: Table) -> None:
        if table.name == TABLES[position] and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(table)
        if table.name == TABLES[position]:
            os.kill(os.getpid(), signal.SIGKILL)

    def inside() -> None:
        pytest.MonkeyPatch().setattr(Table, "commit", fatal)
        nfctl.restore(ruleset(100, "b"))

    with pytest.raises(pytest.fail.Exception, match="ended by SIGKILL"):
        netns.python(inside)
    done = TABLES[: position + after]
    assert tables_of(netns.save()) == {
        table: new[table] if table in done else old[table] for table in TABLES
    }
    # the lock went with the process
    assert netns.nfctl("restore", "--wait", "0", input=ruleset(100, "b")).returncode == 0
    assert tables_of(netns.save()) == new
