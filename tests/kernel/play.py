"""nfctl's command line in a forked child: what a new process does, in a tenth of its time.

The functions are for :meth:`tests.kernel.conftest.Namespace.python`, whose child is inside the
namespace already. For what concerns the process itself (signals, terminals, imports) there is
``Namespace.nfctl``, which starts one.
"""

from __future__ import annotations

import ctypes
import io
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

from nfctl import cli
from nfctl.cli.answer import run
from tests.kernel.conftest import legacy, without_comments

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.kernel.conftest import Namespace

_CLONE_NEWNET = 0x40000000
EMPTY = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


class Said(NamedTuple):
    """What a command line came to."""

    code: int
    out: str
    err: str


def nfctl(words: Sequence[str], text: str = "", **environment: str) -> Said:
    """Run nfctl in this process, which has to be a forked child: its three streams are lost."""
    store = [os.memfd_create("nfctl-test") for _ in range(3)]
    os.write(store[0], text.encode("utf-8", "surrogateescape"))
    os.lseek(store[0], 0, os.SEEK_SET)
    for number, file in enumerate(store):
        os.dup2(file, number)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8")
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(number, "w", closefd=False)), "utf-8", line_buffering=True
        )
        for number in (1, 2)
    )
    sys.argv = ["nfctl", *words]
    os.environ.update(environment)
    names = [words[0]] if words and words[0] in cli._COMMANDS else list(cli._COMMANDS)
    code = run(lambda: cli._run(cli.application(names)))
    sys.stdout.flush()
    sys.stderr.flush()
    said = []
    for file in store[1:]:
        os.lseek(file, 0, os.SEEK_SET)
        said.append(os.read(file, 1 << 24).decode("utf-8", "surrogateescape"))
    for file in store:
        os.close(file)
    return Said(code, *said)


def oracle(words: Iterable[str], text: str = "") -> Said:
    """Run a program of iptables."""
    done = subprocess.run(
        list(words), input=text.encode("utf-8", "surrogateescape"), capture_output=True, check=False
    )
    out, err = (part.decode("utf-8", "surrogateescape") for part in (done.stdout, done.stderr))
    return Said(done.returncode, out, err)


def saved(family: int = 4) -> str:
    """Return all tables with their counters, as the oracle sees them."""
    done = oracle([f"{legacy(family)}-save", "-c"])
    assert done.code == 0, done.err
    return without_comments(done.out)


def load(text: str, family: int = 4) -> None:
    """Put tables into the kernel with the oracle, counters included."""
    done = oracle([f"{legacy(family)}-restore", "-c"], text)
    assert done.code == 0, done.err


class Step(NamedTuple):
    """A command line, and what there was in the kernel after it."""

    said: Said
    saved: str
    other: str  # what there was in the other family


def fresh() -> None:
    """Go into a network namespace without any table yet."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def by_nfctl(lines: list[str], before: str = EMPTY, family: int = 4) -> list[Step]:
    """Run lines of nfctl one after the other, from the tables given, in a namespace anew."""
    fresh()
    load(before, family)
    return [Step(nfctl(shlex.split(line)), saved(family), saved(10 - family)) for line in lines]


def by_oracle(lines: list[str], before: str = EMPTY, family: int = 4) -> list[Step]:
    """Run lines of iptables one after the other, from the tables given, in a namespace anew."""
    fresh()
    load(before, family)
    return [
        Step(oracle([legacy(family), *shlex.split(line)]), saved(family), saved(10 - family))
        for line in lines
    ]


def restores(
    program: str, texts: list[str], options: list[str], before: str, family: int = 4
) -> list[Step]:
    """Restore each text with a program, each time from the tables given in a namespace anew."""
    steps = []
    for text in texts:
        fresh()
        load(before, family)
        if program == "nfctl":
            said = nfctl(["restore", f"-{family}", *options], text)
        else:
            said = oracle([f"{legacy(family)}-restore", *options], text)
        steps.append(Step(said, saved(family), saved(10 - family)))
    return steps


def compare(
    netns: Namespace, pairs: list[tuple[str, str]], before: str = EMPTY, family: int = 4
) -> list[Said]:
    """Run pairs of command lines, nfctl's and iptables'; both have to leave the same each time.

    Return what nfctl said. Counters of policies are nfctl's to keep, so they are not compared.
    """
    ours = netns.python(by_nfctl, [line for line, _ in pairs], before, family)
    theirs = netns.python(by_oracle, [line for _, line in pairs], before, family)
    for (line, other), mine, his in zip(pairs, ours, theirs, strict=True):
        assert bool(mine.said.code) == bool(his.said.code), (line, mine.said, other, his.said)
        assert policies_zeroed(mine.saved) == policies_zeroed(his.saved), (line, mine.said.err)
        assert (mine.other, his.other) == ("", ""), line
        assert "Traceback" not in mine.said.err
    return [step.said for step in ours]


def policies_zeroed(text: str) -> str:
    """Return iptables-save text with the counters of its policies at zero."""
    return "".join(
        f"{line.partition(' [')[0]} [0:0]\n" if line[:1] == ":" else line
        for line in text.splitlines(keepends=True)
    )
