"""A room: network and mount namespaces of its own, in which commands are run and measured.

A room is nothing but the process that lives in it (:mod:`tests.bench.room_server`) and what
that one started: when they are gone, the kernel removes the namespaces with their tables,
sets and mounts. Nothing has a name, so nothing can be left behind, however the bench ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

# Far above what the slowest side needs for the largest size: this is for what hangs.
PATIENCE = 300.0
_SERVER = Path(__file__).with_name("room_server.py")
# Variables that would make programs slower, chattier or point them out of the room.
_UNSET = ("PYTHONDONTWRITEBYTECODE", "PYTHONDEVMODE", "XTABLES_LOCKFILE", "FORCE_COLOR")


class Wrong(Exception):
    """A command failed, or what it left behind is not what it should be."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one process cost, from its start to its end."""

    wall: float
    cpu: float
    rss_mb: float


class Room:
    """Private namespaces, and the process in them that runs commands."""

    def __init__(self, name: str, scratch: Path) -> None:
        self.name = name
        #: Seconds until a command is taken for hanging.
        self.patience = PATIENCE
        self._out = scratch / f"{name}.out"
        self._err = scratch / f"{name}.err"
        env = {key: value for key, value in os.environ.items() if key not in _UNSET}
        command = ["unshare", "--net", "--mount", "--propagation", "private"]
        command += [sys.executable, "-I", "-S", str(_SERVER)]
        # A process group of its own: Ctrl-C reaches the bench, and the bench ends the room.
        self._server = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            process_group=0, cwd="/",
        )  # fmt: skip
        try:
            if self._answer(PATIENCE) != b"ready\n":
                raise Wrong(f"cannot make private namespaces for {name}: are you root?")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the room, and with them the room."""
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe:
                pipe.close()

    def run(self, argv: Sequence[str | Path], *, stdin: Path | None = None) -> Run:
        """Run a command and measure it; raise :class:`Wrong` when it fails."""
        words = [str(word) for word in argv]
        request = {"argv": words, "stdout": str(self._out), "stderr": str(self._err)}
        if stdin:
            request["stdin"] = str(stdin)
        # A file of an earlier command would be truncated within the measured time.
        self._out.unlink(missing_ok=True)
        self._err.unlink(missing_ok=True)
        if self._server.poll() is not None:
            raise Wrong(f"the room of {self.name} is gone")
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        line = self._answer(self.patience)
        if not line:
            self.close()
            raise Wrong(f"`{_short(words)}` did not end within {self.patience:.0f} s")
        answer = json.loads(line)
        if "errno" in answer:
            raise Wrong(f"cannot run {words[0]}: {os.strerror(answer['errno'])}")
        if answer["code"]:
            said = self.stderr().strip().splitlines()
            because = f": {said[-1].strip()}" if said else ""
            raise Wrong(f"`{_short(words)}` exited with {answer['code']}{because}")
        return Run(answer["wall"], answer["cpu"], answer["rss_kib"] * 1024 / 1e6)

    def output(self, argv: Sequence[str | Path]) -> str:
        """Run a command and return what it printed."""
        self.run(argv)
        return self.stdout()

    def stdout(self) -> str:
        """Return what the last command printed."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    def stderr(self) -> str:
        """Return what the last command complained about."""
        try:
            return self._err.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _answer(self, patience: float) -> bytes:
        """One line from the room, or nothing when it is gone or silent for too long."""
        pipe = self._server.stdout
        assert pipe
        if not select.select([pipe], [], [], patience)[0]:
            return b""
        line = pipe.readline()
        assert isinstance(line, bytes)
        return line


def _short(words: list[str]) -> str:
    return " ".join([Path(words[0]).name, *(Path(word).name for word in words[1:])])
