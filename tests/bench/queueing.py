"""Packets through a queue of the kernel, and what the program that holds the queue costs.

Run as a program in a room by :mod:`tests.bench.inspection`, with one JSON object as its argument:
what to send, and the command that holds the queue. It starts the command, waits for its queue and
its rules, sends, reads the rules' counters and the command's CPU time, ends it, and prints one
JSON object. It needs nothing but Python and iptables-legacy-save.

Where there are two CPUs, the load has the first and the command the others.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.bench.loads import (
    PATIENCE,
    PAUSE,
    ROUND,
    Datagrams,
    Failed,
    Strangers,
    Stream,
)

_FIGURES: Final = "/proc/thread-self/net/netfilter/nfnetlink_queue"


# --- who holds the queue --------------------------------------------------------------------------


@dataclass(slots=True)
class Holder:
    """The command that holds the queues, from its start to its end; no command is no queue."""

    argv: list[str]
    queues: list[int]
    rules: bool  # whether the command places rules, too
    cpus: set[int]
    _process: subprocess.Popen[bytes] | None = None
    _out: IO[bytes] = field(default_factory=tempfile.TemporaryFile)
    _err: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __enter__(self) -> Holder:
        if not self.argv:
            return self
        self._process = subprocess.Popen(
            self.argv, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err,
        )  # fmt: skip
        try:
            self._await()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await(self) -> None:
        """Wait until the command holds its queues, and its rules are there."""
        assert self._process
        os.sched_setaffinity(self._process.pid, self.cpus)
        until = time.monotonic() + PATIENCE
        while not self._ready():
            if self._process.poll() is not None:
                raise Failed(f"{Path(self.argv[0]).name} ended by itself: {self._last_words()}")
            if time.monotonic() > until:
                raise Failed(f"no queue and rules within {PATIENCE:.0f} s: {self._last_words()}")
            time.sleep(0.01)

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._err.close()

    def _ready(self) -> bool:
        if not set(self.queues) <= waiting().keys():
            return False
        return not self.rules or "-j NFQUEUE" in mangle()

    def end(self) -> dict[str, Any]:
        """End the command; return the last line it printed if that is JSON, else nothing."""
        if self._process is None:
            return {}
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"it does not end: {self._last_words()}") from None
        if code and self.rules:
            raise Failed(f"it ended with {code}: {self._last_words()}")
        self._out.seek(0)
        lines = self._out.read().decode(errors="replace").splitlines()
        found = json.loads(lines[-1]) if lines else {}
        return found if isinstance(found, dict) else {}

    def _last_words(self) -> str:
        self._err.seek(0)
        lines = self._err.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"

    def _processes(self) -> list[Path]:
        """Return the /proc directories of the command and of what it started."""
        found = []
        pids = [self._process.pid] if self._process is not None else []
        while pids:
            process = Path(f"/proc/{pids.pop()}")
            found.append(process)
            for children in process.glob("task/*/children"):
                pids += map(int, children.read_text().split())
        return found

    def stop(self) -> None:
        """Stop it; return when none of its processes runs any more."""
        processes = self._processes()
        for process in processes:
            os.kill(int(process.name), signal.SIGSTOP)
        for process in processes:
            while (process / "stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(PAUSE)

    def go_on(self) -> None:
        """Let it go on."""
        for process in self._processes():
            os.kill(int(process.name), signal.SIGCONT)

    def cpu(self) -> float:
        """Return the seconds that it and what it started spent on a CPU."""
        return sum(
            int((thread / "schedstat").read_text().split()[0]) / 1e9
            for process in self._processes()
            for thread in (process / "task").iterdir()
        )

    def peak(self) -> float:
        """Return the peak memory of the largest of its processes, in MB."""
        sizes = [0]
        for process in self._processes():
            match = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
            sizes.append(int(match[1]) if match else 0)
        return max(sizes) * 1024 / 1e6


def waiting() -> dict[int, int]:
    """Return how many packets wait in each queue that somebody holds."""
    try:
        lines = Path(_FIGURES).read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(words[0]): int(words[2]) for words in map(str.split, lines)}


def mangle() -> str:
    """Return the mangle table with its counters, as iptables-legacy-save prints it."""
    command = ["iptables-legacy-save", "-c", "-t", "mangle"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def counted(table: str) -> tuple[int, int]:
    """Return the packets and bytes that the rules of a table with counters have queued."""
    found = re.findall(r"^\[(\d+):(\d+)\] -A .* -j NFQUEUE ", table, re.MULTILINE)
    return sum(int(packets) for packets, _ in found), sum(int(octets) for _, octets in found)


# --- the program ----------------------------------------------------------------------------------


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task; return seconds, CPU seconds, memory, counters and the command's report."""
    cpus = sorted(os.sched_getaffinity(0))
    queues = list(range(task["queue"], task["queue"] + task["workers"]))
    if task["load"] == "datagrams":
        # Rounds last milliseconds: whatever else the machine does would show in them. A stream
        # needs the kernel's own threads, which this would keep waiting.
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    with ExitStack() as stack:
        places = task["argv"] and "inspect" in task["argv"]
        holder = Holder(task["argv"], queues, places, set(cpus[1:]) or set(cpus))
        stack.enter_context(holder)
        os.sched_setaffinity(0, {cpus[0]})
        before, used, own = counted(mangle()), holder.cpu(), sum(os.times()[:4])
        marks, stream = [], None
        if task["load"] == "datagrams":
            load = Datagrams(stack, holder.stop, holder.go_on)
            seconds = load.send(task["amount"] // ROUND)
        elif task["load"] == "strangers":
            strangers, seconds = Strangers(stack), 0.0
            strangers.send(task["fill"], still_waiting)
            used = holder.cpu()
            for _ in range(10):
                seconds += strangers.send(task["amount"] // 10, still_waiting)
                marks.append((seconds, holder.cpu() - used, holder.peak()))
        else:
            stream = Stream(stack, cpus[-1])
            seconds = stream.send(task["amount"])
            own = sum(os.times()[:4]) - own  # inspection burdens those who send and receive, too
            used -= own
        found = {"seconds": seconds, "cpu": holder.cpu() - used, "rss_mb": holder.peak()}
        if stream is not None:
            for name in task["names"]:
                stream.handshake(name, task["certificate"])
        table = mangle()
        packets, octets = counted(table)
        return {
            **found,
            "packets": packets - before[0],
            "octets": octets - before[1],
            "marks": marks,
            "table": table,
            "report": holder.end(),
        }


def still_waiting() -> bool:
    """Return whether a packet waits in any queue."""
    return any(waiting().values())


def main() -> None:
    """Do the task of the first argument."""
    try:
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
