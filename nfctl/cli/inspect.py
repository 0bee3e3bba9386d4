"""``nfctl inspect``: live packets, seen and decided."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli.answer import print_json
from nfctl.cli.common import WAIT, Netns, Wait
from nfctl.cli.inspect_report import Teller
from nfctl.errors import BadInput

if TYPE_CHECKING:
    from nfctl.inspect.capture import Files
    from nfctl.inspect.placement import Placed
    from nfctl.inspect.rules import Rules
    from nfctl.inspect.run import Options, Report
    from nfctl.inspect.worker import Job

_SEE, _DECIDE, _WHICH, _HOW = "What is shown", "What is decided", "Which packets", "How"
_LATEST = 60_000  # ms
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=more.pop("default", False),
                        **more)  # fmt: skip


def inspect(
    ctx: typer.Context,
    chain: Annotated[
        list[str] | None,
        _option(_WHICH, "--chain", "-c", metavar="CHAIN", help="A built-in chain whose packets are "
                "inspected; may be repeated. INPUT, if none is named."),
    ] = None,
    match: Annotated[
        str,
        _option(_WHICH, "--match", "-m", metavar="RULE", help="Only packets that match this, in "
                "iptables' words: '-p tcp --dport 443'. The kernel sorts out the others."),
    ] = "",
    netns: Netns = None,
    count: Annotated[
        int, _option(_WHICH, "--count", "-n", metavar="N", min=0, help="End after N packets.")
    ] = 0,
    duration: Annotated[
        str, _option(_WHICH, "--duration", metavar="TIME", help="End after a time: 30s, 10m.")
    ] = "",
    show: Annotated[
        str,
        _option(_SEE, "--show", metavar="KIND", help="How packets are shown: summary (a line), "
                "detail (dissected by scapy), hex, json, or flows (a line once the name of a flow "
                "is known).", default=True),
    ] = "summary",
    quiet: Annotated[bool, _option(_SEE, "--quiet", "-q", help="Show no packets.")] = False,
    top: Annotated[
        bool, _option(_SEE, "--top", help="A live view of flows, rates, verdicts and the queue.")
    ] = False,
    json: Annotated[
        bool, _option(_SEE, "--json", help="Print JSON, one record a line; the last says what was "
                      "seen in all.")
    ] = False,
    write_to: Annotated[
        str, _option(_SEE, "--write", metavar="FILE.pcapng", help="Write packets to a file, with "
                     "the verdict of each as its comment.")
    ] = "",
    rotate: Annotated[
        str, _option(_SEE, "--rotate", metavar="SIZE", help="Begin a new file at this size: 100M.")
    ] = "",
    keep: Annotated[
        int, _option(_SEE, "--keep", metavar="N", min=1, help="Keep so many files.", default=True)
    ] = 10,
    rules: Annotated[
        str, _option(_DECIDE, "--rules", "-r", metavar="FILE", help="Verdict rules, a YAML file: "
                     "python -m pydoc nfctl.inspect.rules")
    ] = "",
    handler: Annotated[
        list[str] | None,
        _option(_DECIDE, "--handler", metavar="MODULE:NAME", help="A function or class in Python "
                "that decides packets; may be repeated. MODULE is a module's or a file's name: "
                "python -m pydoc nfctl.inspect.handlers"),
    ] = None,
    deadline: Annotated[
        float, _option(_DECIDE, "--deadline", metavar="MS", min=0, help="How long a handler, or a "
                       "regular expression, may take for a packet.", default=True)
    ] = 100,
    offload: Annotated[
        bool, _option(_DECIDE, "--offload", help="Leave the rest of each flow to the kernel once "
                      "its verdict cannot change any more.")
    ] = False,
    on_overload: Annotated[
        str, _option(_DECIDE, "--on-overload", metavar="accept|drop", help="What becomes of "
                     "packets that find the queue full.", default=True)
    ] = "accept",
    queue: Annotated[
        int, _option(_HOW, "--queue", metavar="N", min=0, max=65535, help="The queue's number; "
                     "with several workers the first of them.", default=True)
    ] = 0,
    workers: Annotated[
        int, _option(_HOW, "--workers", metavar="N", min=1, max=64, help="How many processes "
                     "inspect, each with a queue of its own. The kernel spreads packets by "
                     "addresses and protocol (--queue-balance).", default=True)
    ] = 1,
    cpu_fanout: Annotated[
        bool, _option(_HOW, "--queue-cpu-fanout", help="Spread packets over the workers by the CPU "
                      "that they came to.")
    ] = False,
    queue_length: Annotated[
        int, _option(_HOW, "--queue-length", metavar="N", min=1, help="How many packets may wait.",
                     default=True)
    ] = 4096,
    buffer: Annotated[
        str, _option(_HOW, "--buffer", metavar="SIZE", help="The socket's buffer.", default=True)
    ] = "16M",
    copy: Annotated[
        int, _option(_HOW, "--copy", metavar="BYTES", min=0, max=65531, help="How much of each "
                     "packet is looked at; 0 is as much as is needed.", default=True)
    ] = 0,
    mark_mask: Annotated[
        str, _option(_HOW, "--mark-mask", metavar="MASK", help="Two adjacent bits of the marks of "
                     "packets and connections that nobody else uses.", default=True)
    ] = "0x3000",
    user: Annotated[
        str, _option(_HOW, "--user", metavar="NAME", help="Who the workers are, once their queue "
                     "is open: with CAP_NET_ADMIN and nothing else.", default=True)
    ] = "nobody",
    wait: Wait = WAIT,
    check: Annotated[
        str, _option("Without root", "--check", metavar="FILE", help="Check a file of verdict "
                     "rules, and end.")
    ] = "",
    read: Annotated[
        str, _option("Without root", "--read", metavar="FILE.pcap", help="Take the packets from a "
                     "capture instead of the kernel.")
    ] = "",
    clean: Annotated[
        bool, _option(_HOW, "--clean", help="Remove what interrupted runs have left, and end.")
    ] = False,
) -> None:  # fmt: skip
    """See live packets, and decide them.

    The kernel queues the packets of a chain to nfctl (NFQUEUE), which shows what they are and
    lets them pass. It asks behind every rule of mangle and before filter, so that every rule of
    the firewall still decides: inspection never lets in what would not get in without it. With
    verdict rules (--rules) or handlers in Python (--handler) packets are accepted, dropped,
    rejected, marked or rewritten. The rules that queue packets are gone when the command ends;
    should it be killed, traffic passes, and the next run cleans up.

    Verdict rules are checked (--check FILE) and tried on a capture (--read FILE.pcap) without
    root.

    [bold]Example:[/bold] sudo nfctl inspect --chain FORWARD --match '-p tcp --dport 443' --count 10
    """
    if ctx.args:
        msg = f"packets are chosen by --match, in iptables' words, and not by {ctx.args[0]!r}"
        raise BadInput(msg, hint="nfctl inspect --match '-p tcp --dport 80'")
    from nfctl.inspect.show import KINDS, colours

    if show not in KINDS:
        msg = f"--show {show}: known are {', '.join(KINDS)}"
        raise BadInput(msg)
    if json and show not in {KINDS[0], "json"}:
        msg = f"--json and --show {show} exclude each other"
        raise BadInput(msg)
    if json:
        show = "json"
    json = show == "json"
    if check:
        return _check(check, json)
    if read:
        _refuse_with_read({"--chain": chain, "--match": match, "--netns": netns, "--top": top,
                           "--duration": duration, "--clean": clean})  # fmt: skip
    if clean:
        return _clean(json, wait, netns)
    if not deadline <= _LATEST:  # nor nan
        msg = f"--deadline {deadline:g}: it is {_LATEST:,} milliseconds at most"
        raise BadInput(msg)
    if on_overload not in {"accept", "drop"}:
        msg = f"--on-overload {on_overload}: it is accept or drop"
        raise BadInput(msg)
    from nfctl.inspect.run import Options
    from nfctl.inspect.worker import Job

    verdicts = _rules(rules)
    files = _files(write_to, rotate, keep)
    shown = "" if quiet or top else show
    job = Job(
        queue=queue,
        rules=verdicts,
        network=netns,
        handlers=tuple(handler or ()),
        deadline=deadline / 1000,
        offload=offload,
        mask=_mask(mark_mask),
        fail_open=on_overload == "accept",
        length=queue_length,
        buffer=_size("--buffer", buffer),
        copy=copy,
        user=user,
        show=shown,
        colour=colours(1),
        capture=bool(write_to),
        rotate=files.limit if files is not None else 0,
        follow=top,
        limit=count,
    )
    if read:
        return _read(read, job, files, quiet=quiet, json=json)
    options = Options(
        job=job,
        chains=tuple(name for words in chain or ["INPUT"] for name in words.split(",")),
        match=match,
        workers=workers,
        fanout=cpu_fanout,
        duration=_seconds(duration),
        wait=wait,
        files=files,
    )
    report = _top(options, json) if top else _run(options, json)
    if report.failed is not None:
        raise report.failed
    return None


#: Stray words, such as tcpdump's, get an error that says more than typer's.
inspect.settings = {"allow_extra_args": True}  # type: ignore[attr-defined]


# --- the ways to run ------------------------------------------------------------------------------


def _run(options: Options, json: bool) -> Report:
    from nfctl.inspect.run import Run

    tell = Teller(json=json)
    begun = _begun if sys.stderr.isatty() and not json else None
    report = Run(options, event=tell, begun=begun).run()
    tell.finish(report.document())
    return report


def _begun(placed: Placed) -> None:
    """Tell a person that it works: on an idle host nothing else would show."""
    plan = placed.plan
    chains = ", ".join(plan.chains)
    families = " and ".join(f"IPv{family}" for family in placed.families)
    numbers = f"queue {plan.queue}"
    if plan.workers > 1:
        numbers = f"queues {plan.queue} to {plan.queue + plan.workers - 1}"
    print(f"nfctl: inspecting {chains} ({families}) by {numbers}; Ctrl-C ends it", file=sys.stderr)


def _top(options: Options, json: bool) -> Report:
    from nfctl.cli.inspect_top import Top
    from nfctl.inspect.run import Run

    with Top(json=json) as top:
        keys = top.key if top.interactive else None
        report = Run(options, event=top.event, figures=top.feed, keys=keys).run()
    Teller(json=json).finish(report.document())
    return report


def _read(file: str, job: Job, files: Files | None, *, quiet: bool, json: bool) -> None:
    from nfctl.inspect import handlers, replay
    from nfctl.inspect.capture import Writer, read
    from nfctl.inspect.deadline import Deadline
    from nfctl.inspect.show import Show

    deadline = Deadline(job.deadline)
    tell = Teller(json=json)
    loaded = None
    if job.handlers:
        trusted = os.geteuid() == 0
        loaded = handlers.load(job.handlers, trusted=trusted, deadline=deadline, report=tell)
    show = None if quiet else Show(job.show, colour=job.colour, waits=True)
    writer = Writer(files.open, files.limit) if files is not None else None
    result = replay.Replay(job.rules, loaded, deadline=deadline, offload=job.offload)
    try:
        for packet, verdict, hello in result.run(read(file), limit=job.limit):
            if show is not None:
                show.packet(packet, verdict, hello=hello)
            if writer is not None:
                writer.write(packet, verdict)
    finally:
        if show is not None:
            show.close()
        if writer is not None:
            writer.close()
    tell.finish({"event": "end", **result.figures()})


def _check(file: str, json: bool) -> None:
    from nfctl.inspect.rules import describe

    rules = _rules(file)
    if json:
        print_json({"file": file, "rules": [str(rule.name) for rule in rules.rules],
                    "default": str(rules.default.action), "remarks": describe(rules)})  # fmt: skip
        return
    for text in describe(rules):
        print(text)


def _clean(json: bool, wait: float, network: str | None) -> None:
    from nfctl.inspect import placement

    removed = [str(part) for part in placement.remove(None, wait=wait, network=network)]
    if json:
        print_json({"removed": removed})
        return
    for text in removed:
        print(f"removed {text}")
    if not removed:
        print("nothing is left of earlier runs")


# --- options --------------------------------------------------------------------------------------


def _rules(file: str) -> Rules:
    from nfctl.document import contents, standard_input
    from nfctl.inspect.rules import EMPTY, load

    if not file:
        return EMPTY
    text = standard_input() if file == "-" else contents(file)
    return load(text, "<stdin>" if file == "-" else file)


def _files(path: str, rotate: str, keep: int) -> Files | None:
    if not path:
        if rotate:
            msg = "--rotate is for the file of --write"
            raise BadInput(msg)
        return None
    from nfctl.inspect.capture import Files

    limit = _size("--rotate", rotate) if rotate else 0
    return Files(path, keep=keep if limit else 1, limit=limit)


def _refuse_with_read(given: dict[str, Any]) -> None:
    """Refuse what has no meaning for a capture, and would not be done."""
    if wrong := [option for option, value in given.items() if value]:
        msg = f"{wrong[0]} is for live packets, and does nothing with --read"
        raise BadInput(msg, hint="what is shown of a capture: --rules, --count, --show")


def _size(option: str, text: str) -> int:
    """Return bytes from ``100M``; BadInput if it is no size."""
    word = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = word[-1:] if word[-1:].isalpha() else ""
    number = word.removesuffix(unit)
    if unit in _UNITS and number.isascii() and number.isdecimal() and int(number):
        size = int(number) * _UNITS[unit]
        if size < 1 << 31:
            return size
    msg = f"{option} {text}: it is a size in bytes below 2G, as 64K or 100M"
    raise BadInput(msg)


def _seconds(text: str) -> float:
    from nfctl.document import load
    from nfctl.inspect.rules.values import duration

    return duration(load(text, "--duration")) if text else 0.0


def _mask(text: str) -> int:
    from nfctl.inspect.marks import is_mask

    try:
        mask = int(text, 0)
    except ValueError:
        mask = 0
    if not is_mask(mask):
        msg = f"--mark-mask {text}: it is two adjacent bits, as 0x3000"
        raise BadInput(msg)
    return mask
