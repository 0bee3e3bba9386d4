"""Live packets: ``nfctl inspect`` against what a user writes with NetfilterQueue.

Every side has a room, and in it the very rules that nfctl places there: they are taken from its
room as iptables-legacy-save prints them. What counts is neither the start of a process nor the
sending, but how long packets wait for their verdict (:mod:`tests.bench.queueing`). After each run
the counters of the rules, the receiver, and nfctl's own report have to agree on every packet.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.harness import Bound, Result, Samples, Side, Work, judge, race
from tests.bench.loads import FIRST_PORT, FLOWS, ROUND, SIZE, STREAM_PORT
from tests.bench.room import PATIENCE, Run, Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.measures import Bench
    from tests.bench.room import Room

NFCTL = "nfctl"
BARE = "bare callback"
SCAPY = "scapy callback"
NONE = "no inspection"
ONE = "one worker"
TENTH = "first tenth"

QUEUE = 5
PER = 100_000  # packets that a time is told for
PACKETS = 32 * ROUND
FEW_PACKETS = 3 * ROUND  # where each costs a hundred times as much
STREAM = 4_000_000_000  # bytes
STRANGERS = 1_000_000  # packets, each of a new flow
FILL = 2 << 16  # the same, before: twice what nfctl remembers of a kind at most
CORES = 4  # for two workers, a load, and the rest of the machine
SLOWEST = 5000  # packets per second that whatever holds the queue does at least
NAMES = ("one.example", "two.example", "three.example")

_DATAGRAMS = f"-p udp --dport {FIRST_PORT}:{FIRST_PORT + FLOWS - 1}"
_ROOT = Path(__file__).parents[2]

# With nfctl's queue length and buffer: otherwise what waits would not fit.
_PROGRAM = """\
from netfilterqueue import COPY_PACKET, NetfilterQueue
{imports}
def decide(packet):
    {look}
    packet.accept()

queue = NetfilterQueue()
queue.bind({queue}, decide, 4096, COPY_PACKET, 65531, 16 << 20)
queue.run()
"""


def verdict_rules() -> Iterator[str]:
    """Yield a hundred verdict rules, none of which is about the bench's packets."""
    yield "default: accept"
    yield "rules:"
    for number in range(40):
        yield f"  - {{when: {{src: 10.{number}.0.0/{16 + number % 13}}}, verdict: drop}}"
    for number in range(30):
        yield f"  - {{when: {{proto: udp, dport: {10_000 + number}}}, verdict: drop}}"
    for number in range(10):
        for key in ("tls.sni", "dns.qname", "http.host"):
            yield f'  - {{when: {{{key}: "*.refused-{number}.example"}}, verdict: drop}}'


def stranger_rules() -> Iterator[str]:
    """Yield rules that remember something of every packet, or of its flow, source and name."""
    yield "default: accept"
    yield "rules:"
    yield "  - {when: {rate: {over: 1000/s, per: source}}, verdict: drop}"
    yield '  - {when: {dns.qname: "*.test"}, verdict: accept, for: 1h, per: source}'
    yield "  - {when: {tls.sni: refused.example}, verdict: drop, for: 1h}"


# --- what is measured -----------------------------------------------------------------------------


def inspect(bench: Bench) -> Result:
    """Datagrams of 64 flows, a hundred verdict rules; a callback that only accepts; scapy."""
    rules = _write(bench, "verdicts.yaml", verdict_rules())
    sides = [
        _datagrams(bench, NFCTL, _nfctl(bench, _DATAGRAMS, "--rules", str(rules))),
        _datagrams(bench, BARE, _callback(bench, BARE)),
        _datagrams(
            bench, SCAPY,
            _callback(bench, SCAPY, "from scapy.layers.inet import IP", "IP(packet.get_payload())"),
            FEW_PACKETS,
        ),
    ]  # fmt: skip
    bounds = [Bound(BARE, 1 / 0.6, 1 / 0.8), Bound(SCAPY, 1 / 8)]
    return race("inspect", 0, sides, bounds, bench.rounds, Work(PER, "packets/s"))


def offload(bench: Bench) -> Result:
    """One stream whose flow is left to the kernel, in which names are still found; no queue."""
    certificate = bench.scratch / "certificate.pem"
    task = {"load": "stream", "certificate": str(certificate), "workers": 1}
    argv = _nfctl(bench, f"-p tcp --dport {STREAM_PORT}", "--offload", "-c", "INPUT")

    def prepare() -> None:
        _room(bench, NFCTL)
        new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
        files = [
            "-keyout",
            str(certificate),
            "-out",
            str(certificate),
            "-subj",
            "/CN=bench.example",
        ]
        bench.room("inspect: nfctl").run(["openssl", *new.split(), *files])

    def inspected(_turn: int) -> Run:
        found = _measure(_room(bench, NFCTL), argv, STREAM, names=NAMES, **task)
        missing = {*NAMES, "bulk.example"} - found["report"].get("names", {}).keys()
        if missing:
            raise Wrong(f"names were not reported: {', '.join(sorted(missing))}")
        if not 0 < found["octets"] < STREAM / 10:
            raise Wrong(f"{found['octets']:,} bytes were queued: that is no offloading")
        return _run(found, 1.0)

    def alone(_turn: int) -> Run:
        return _run(_measure(_room(bench, NONE), [], STREAM, names=(), **task), 1.0)

    sides = [
        Side(NFCTL, _room(bench, NFCTL), prepare=prepare, measure=inspected),
        Side(NONE, _room(bench, NONE), measure=alone),
    ]
    work = Work(STREAM * 8 / 1e9, "Gbit/s", 1)
    bounds = [Bound(NONE, 1 / 0.85, 1 / 0.95)]
    return race("inspect-offload", 0, sides, bounds, bench.rounds, work)


def workers(bench: Bench) -> Result:
    """Two workers, each with a queue, and one."""
    cores = len(os.sched_getaffinity(0))
    if cores < CORES:
        refused = Samples(refused=f"it needs {CORES} cores, and here are {cores}")
        return Result("inspect-workers", 0, {NFCTL: refused}, [])
    rules = _write(bench, "verdicts.yaml", verdict_rules())
    argv = _nfctl(bench, _DATAGRAMS, "--rules", str(rules))
    sides = [
        _datagrams(bench, NFCTL, [*argv, "--workers", "2"], workers=2),
        _datagrams(bench, ONE, argv),
    ]
    bounds = [Bound(ONE, None, 1 / 1.7)]
    return race("inspect-workers", 0, sides, bounds, bench.rounds, Work(PER, "packets/s"))


def memory(bench: Bench) -> Result:
    """Peak memory after the first tenth of many packets of ever new flows, and after all.

    More than are remembered have gone before: what is bounded has grown as large as it gets.
    """
    rules = _write(bench, "strangers.yaml", stranger_rules())
    argv = _nfctl(bench, "-d 127.0.0.1/32", "--rules", str(rules))
    amount = bench.packets // 10 * 10
    samples = {NFCTL: Samples(), TENTH: Samples()}
    try:
        found = _measure(
            _room(bench, NFCTL), argv, amount, load="strangers", fill=FILL, workers=1
        )  # fmt: skip
        _reported(found, FILL + amount)
        for name, mark, part in ((NFCTL, -1, amount), (TENTH, 0, amount // 10)):
            seconds, cpu, peak = found["marks"][mark]
            samples[name].runs.append(Run(seconds * PER / part, cpu * PER / part, peak))
    except Wrong as wrong:
        for one in samples.values():
            one.refused = str(wrong)
    verdict = judge(Bound(TENTH, 1.1, of_memory=True), samples[NFCTL], samples)
    return Result("inspect-memory", 0, samples, [verdict], Work(PER, "packets/s"))


# --- how ------------------------------------------------------------------------------------------


def _nfctl(bench: Bench, match: str, *more: str) -> list[str]:
    """Return the command of nfctl's side."""
    common = ["inspect", "--quiet", "--json", "--queue", str(QUEUE), "--match", match]
    return [bench.nfctl, *common, *more]


def _callback(bench: Bench, name: str, imports: str = "", look: str = "pass") -> list[str]:
    """Return the command of a side that is a callback of NetfilterQueue."""
    text = _PROGRAM.format(imports=imports, look=look, queue=QUEUE)
    path = _write(bench, f"{name.replace(' ', '_')}.py", text.splitlines())
    return [sys.executable, str(path)]


def _write(bench: Bench, name: str, lines: Iterator[str] | list[str]) -> Path:
    path = bench.scratch / name
    path.write_text("\n".join(lines) + "\n")
    return path


def _room(bench: Bench, name: str) -> Room:
    """Return the room of a side, whose packets meet no rules but the queue's."""
    room = bench.room(f"inspect: {name}")
    room.run(["ip", "link", "set", "lo", "up"])
    return room


def _datagrams(
    bench: Bench, name: str, argv: list[str], amount: int = PACKETS, *, workers: int = 1
) -> Side:
    """Return a side that decides datagrams; callbacks get the rules that nfctl has placed."""
    table = bench.scratch / "mangle"
    room = _room(bench, name)
    own = "inspect" in argv

    def prepare() -> None:
        if own:
            found = _measure(room, argv, ROUND, load="datagrams", workers=workers)
            table.write_text(found["table"])
        elif table.exists():
            room.run(["iptables-legacy-restore", "-T", "mangle", table])
        else:
            raise Wrong("nfctl has left no rules to try it with")

    def measure(_turn: int) -> Run:
        found = _measure(room, argv, amount, load="datagrams", workers=workers)
        if (found["packets"], found["octets"]) != (amount, amount * (28 + SIZE)):
            raise Wrong(f"{found['packets']:,} packets were queued, and {amount:,} were sent")
        if own:
            _reported(found, amount)
        return _run(found, PER / amount)

    return Side(name, room, prepare=prepare, measure=measure)


def _measure(room: Room, argv: list[str], amount: int, **task: Any) -> dict[str, Any]:
    """Do a task of tests.bench.queueing in a room."""
    text = json.dumps({"argv": argv, "amount": amount, "queue": QUEUE, **task})
    python = ["env", f"PYTHONPATH={_ROOT}", sys.executable, "-m", "tests.bench.queueing"]
    room.patience = max(PATIENCE, amount / SLOWEST)
    try:
        found: dict[str, Any] = json.loads(room.output([*python, text]))
    except Wrong as wrong:
        said = room.stderr().strip().splitlines()
        raise Wrong(said[-1] if said else str(wrong)) from wrong
    return found


def _reported(found: dict[str, Any], amount: int) -> None:
    """Raise unless nfctl's own report counts exactly the packets that were sent, all accepted."""
    report = found["report"]
    if (report.get("packets"), report.get("verdicts")) != (amount, {"accept": amount}):
        said = f"{report.get('packets')} packets, {report.get('verdicts')}"
        raise Wrong(f"its report says {said}, and {amount:,} were sent")


def _run(found: dict[str, Any], per: float) -> Run:
    return Run(found["seconds"] * per, found["cpu"] * per, found["rss_mb"])
