"""The live view of ``nfctl inspect --top``: rates, verdicts, the queue, and the busiest flows.

On a terminal it is a screen that is drawn anew each second, and obeys three keys; elsewhere
each second is a few plain lines, or one JSON record. As the rules that queue packets are in
place meanwhile, it never waits for its terminal, and Ctrl-Z does not stop it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any, Final

from nfctl.cli.inspect_rates import ORDERS, Flow, Queue, Rates
from nfctl.inspect.show import Output
from nfctl.inspect.text import cells, cut, safe
from nfctl.text import human

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from rich.console import Console
    from rich.text import Text

_ENTER, _LEAVE = b"\033[?1049h\033[?25l\033[2J", b"\033[?25h\033[?1049l"
_ESCAPES: Final = re.compile(rb"\033(?:\[[0-9;?]*[ -/]*[@-~]|O.)?")
_ACTIONS: Final = {"accept": "green", "drop": "red", "reject": "yellow", "repeat": "cyan"}
_LISTED: Final = 10
"""Flows of one plain snapshot."""
_NARROWEST, _LOWEST = 20, 4
_WIDEST: Final = 400
_SAID: Final = 8.0
"""Seconds that an event stays in the last line."""


class Top:
    """The live view; use it in a ``with`` block, which gives the terminal back at its end.

    :meth:`feed` takes the documents of the workers once a second, and draws. Where
    ``interactive`` is true, :meth:`key` is to be called when the descriptor ``keys`` can be
    read. ``stream`` is where it is drawn. Raises BrokenPipeError when nobody reads.
    """

    def __init__(
        self,
        *,
        json: bool = False,
        stream: int = 1,
        keys: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.json = json
        self.rates = Rates(clock)
        self.order = ORDERS[0]
        self.screen = not json and os.isatty(stream) and os.environ.get("TERM") not in _NO_SCREEN
        self.interactive = self.screen and os.isatty(keys) and _foreground(keys)
        self._stream = stream
        self._keys = keys
        self._clock = clock
        self._out = Output(stream)
        self._before: list[Any] | None = None
        self._resize: Any = None
        self._said = ("", 0.0)
        self._held: Rates | None = None  # what is shown while paused
        self._drawing = False
        self._console: Console | None = None

    def __enter__(self) -> Top:
        """Take the terminal: a screen of its own, keys without echo."""
        if self.interactive:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSANOW)
            mode = termios.tcgetattr(self._keys)
            # stopped by Ctrl-Z, nobody would decide the packets that are queued
            mode[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(self._keys, termios.TCSANOW, mode)
        if self.screen:
            self._out.write(_ENTER)
            self._resize = signal.signal(signal.SIGWINCH, self._resized)
            self.draw()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Give the terminal back as it was."""
        try:
            if self.screen:
                signal.signal(signal.SIGWINCH, self._resize)
                self._drawing = True
                self._out.write(_LEAVE)
            self._out.close()
        except OSError:  # nobody reads, or the terminal is gone
            pass
        finally:
            if self._before is not None:
                with contextlib.suppress(termios.error, OSError):
                    termios.tcsetattr(self._keys, termios.TCSANOW, self._before)

    @property
    def paused(self) -> bool:
        """Whether the screen stands still."""
        return self._held is not None

    # --- what comes in ------------------------------------------------------------------------

    def feed(self, documents: list[dict[str, Any]]) -> None:
        """Take the workers' documents, a second after those before, and show them."""
        self.rates.hear(documents)
        if self.screen:
            self.draw()
        elif self.json:
            record = json.dumps(self.rates.document(self.order), separators=(",", ":"))
            self._out.write(record.encode() + b"\n")
        else:
            self._out.write(plain(self.rates, self.order).encode("utf-8", "backslashreplace"))

    def key(self) -> bool:
        """Read the keys that were pressed; True if the run is to end."""
        try:
            pressed = os.read(self._keys, 64)
        except OSError:
            return True
        if not pressed:  # the terminal is gone
            return True
        for char in _ESCAPES.sub(b"", pressed).decode("ascii", "replace").lower():
            if char == "q":
                return True
            if char == "s":
                self.order = ORDERS[(ORDERS.index(self.order) + 1) % len(ORDERS)]
            elif char == "p":
                self._held = None if self.paused else copy.deepcopy(self.rates)
        self.draw()
        return False

    def event(self, text: str) -> None:
        """Say what happened: in the last line for a while; elsewhere as ``Show.event`` does."""
        if self.screen:
            self._said = (safe(text, _WIDEST), self._clock() + _SAID)
            self.draw()
        elif self.json:
            record = {"event": "note", "time": round(time.time(), 3), "text": text}
            self._out.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        else:
            with contextlib.suppress(OSError):
                print(f"nfctl: {safe(text, 1000)}", file=sys.stderr, flush=True)

    def _resized(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):  # whoever draws next will meet it, too
            self.draw()

    # --- the screen ---------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw the screen, unless the terminal has not even taken the one before."""
        if self._drawing or not self.screen or not self._out.flush():
            return
        self._drawing = True
        try:
            size = os.get_terminal_size(self._stream)
            width, height = size.columns or 80, size.lines or 24
            said, until = self._said
            rates = self._held or self.rates
            lines = [
                *screen(rates, width, height - 1, self.order),
                _last_line(width, self.order, self.paused, said, self._clock() < until),
            ]
            frame = self._rendered(lines[:height], width)
            self._out.write(("\033[H" + "\033[K\n".join(frame) + "\033[K\033[J").encode())
        finally:
            self._drawing = False

    def _rendered(self, lines: list[Text], width: int) -> list[str]:
        from rich.console import Console

        if self._console is None:
            self._console = Console(force_terminal=True, highlight=False)
        console = self._console
        console.size = (width, 100)
        with console.capture() as captured:
            for line in lines:
                console.print(line, no_wrap=True, overflow="crop", crop=True)
        return captured.get().rstrip("\n").split("\n")


_NO_SCREEN: Final = frozenset({None, "", "dumb", "unknown"})


def _foreground(terminal: int) -> bool:
    """Whether we may read the terminal: in the background that would stop us."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


# --- what the screen says -----------------------------------------------------------------------


def screen(rates: Rates, width: int, height: int, order: str = "rate") -> list[Text]:
    """Return the lines of a screen, without the last one: at most ``height``, ``width`` wide."""
    width = max(_NARROWEST, min(width, _WIDEST))
    lines = [*_heading(rates, width), *_queues(rates.queues, width, max(0, height // 4))]
    room = height - len(lines) - 2
    flows = rates.flows(order)
    if room > 0:
        lines += [_text(""), *_flows(flows, width, room, order)]
    return lines[: max(height, 0)]


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True)


def _heading(rates: Rates, width: int) -> list[Text]:
    count = len(rates.queues)
    left = "nfctl inspect" if count <= 1 else f"nfctl inspect, {count} queues"
    title = _text(left, "bold")
    clock = _duration(rates.seconds)
    title.append(clock.rjust(max(0, width - len(left))), "dim")
    speed = _text("")
    speed.append(f"{human(round(rates.packet_rate))} packets/s", "bold")
    speed.append(f"  {human(round(rates.bit_rate))}bit/s", "bold")
    speed.append(f"  in all {human(rates.packets)} packets, {human(rates.octets)}B", "dim")
    lines = [title, speed]
    verdicts = rates.counts("verdicts")
    lines.append(_counts("verdicts", verdicts, width, lambda name: _ACTIONS.get(name, "")))
    rules = {name: hits for name, hits in rates.counts("rules").items() if name != "default"}
    if rules:
        lines.append(_counts("rules", rules, width, lambda _name: "magenta"))
    lines.append(_kernel(rates))
    errors = rates.counts("errors")
    if errors:
        lines.append(_counts("errors", errors, width, lambda _name: "bold red"))
    return [_cropped(line, width) for line in lines]


def _cropped(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _counts(title: str, numbers: dict[str, int], width: int, style: Callable[[str], str]) -> Text:
    """Return names and numbers in one line; how many more there are, if not all of them fit."""
    line = _text(f"{title:<9}", "dim")
    used, left = 9, len(numbers)
    for name, count in numbers.items():
        shown, amount = safe(name, 40) or "-", human(count)
        used += cells(shown) + len(amount) + 3
        if used > width - (8 if left > 1 else 0):
            line.append(f"+{left}", "dim not bold")
            break
        line.append(shown, f"not dim {style(name)}".strip())
        line.append(f" {amount}  ", "not dim")
        left -= 1
    if not numbers:
        line.append("none yet")
    return line


def _kernel(rates: Rates) -> Text:
    line = _text(f"{'queue':<9}", "dim")
    losing = rates.losing
    line.append(f"waiting {human(rates.figure('waiting'))}  ", "not dim")
    for name, title in (("dropped", "full"), ("user_dropped", "buffer full")):
        count = rates.figure(name)
        style = "not dim bold red" if count and losing else "not dim red" if count else "not dim"
        line.append(f"{title} {human(count)}", style)
        line.append("  ")
    if losing:
        line.append(f"losing {human(losing)}/s", "not dim bold white on red")
    return line


def _queues(queues: list[Queue], width: int, most: int) -> list[Text]:
    """Return a row for each queue, where there are several."""
    if len(queues) < 2 or most < 2:
        return []
    row = "{:>6} {:>10} {:>10} {:>9} {:>8} {:>8}".format
    lines = [_text(row("queue", "packets/s", "bit/s", "waiting", "full", "buffer"), "dim")]
    shown = queues if len(queues) < most else queues[: most - 2]
    for queue in shown:
        figures = queue.figures
        text = row(
            queue.number, human(round(queue.packet_rate)), human(round(queue.bit_rate)),
            human(figures["waiting"]), human(figures["dropped"]), human(figures["user_dropped"]),
        )  # fmt: skip
        lines.append(_text(text, "bold red" if queue.losing else "red" if queue.lost else ""))
    if len(shown) < len(queues):
        lines.append(_text(f"{'':>6} and {len(queues) - len(shown)} more queues", "dim"))
    return [_cropped(line, width) for line in lines]


def _flows(flows: list[Flow], width: int, room: int, order: str) -> list[Text]:
    """Return a heading and the flows that there is room for."""
    shown = flows[: max(0, room - 1)]
    named = max((cells(safe(flow.name, 60)) for flow in shown), default=0) if width >= 60 else 0
    numbers = [("BIT/S", "rate"), ("BYTES", "bytes"), ("PACKETS", "packets")]
    if width < 90:  # what is sorted by is never left out
        numbers = [column for column in numbers if column[1] in {"rate", order}]
        if len(numbers) == 1 and width >= 60 and not named:
            numbers.append(("BYTES", "bytes"))
    protocol = max([6, *(cells(safe(flow.protocol, 7)) + 1 for flow in shown)])
    verdict = 7 if width >= 50 else 0
    free = width - protocol - verdict - 8 * len(numbers)
    # whole addresses matter more than whole names
    name = min(named + 1, max(13, free // 4)) if named else 0
    ends = free - name
    if named:
        longest = max(cells(_ends(flow)) for flow in shown) + 1
        ends = max(8, min(ends, longest))
        name = min(free - ends, named + 1)
        ends = free - name
    heading = f"{'PROTO':<{protocol}}{cut('FLOW', ends):<{ends}}" + (
        f"{'NAME':<{name}}" if name else ""
    )
    heading += f"{'VERDICT':<{verdict}}" if verdict else ""
    line = _text(heading, "dim")
    for title, key in numbers:
        line.append(f"{title:>8}", "not dim bold underline" if key == order else "")
    lines = [_cropped(line, width)]
    for flow in shown:
        style = _ACTIONS.get(flow.verdict, "")
        line = _text(_fill(safe(flow.protocol, 7), protocol), "cyan")
        idle = "not cyan dim" if not flow.bits else "default"
        line.append(_fill(_ends(flow, ends - 1), ends), idle)
        if name:
            line.append(_fill(_end(safe(flow.name, 253), name - 1), name), "default bold")
        if verdict:
            plain_accept = style in {"", "green"}
            line.append(_fill(safe(flow.verdict, 7), verdict), "default" if plain_accept else style)
        for _, key in numbers:
            value = {"rate": round(flow.bits), "bytes": flow.octets, "packets": flow.packets}[key]
            line.append(f"{human(value):>8}", "default")
        lines.append(_cropped(line, width))
    if not shown and room > 1:
        lines.append(_text("no flows yet", "dim"))
    return lines


def _fill(text: str, width: int) -> str:
    """Return text in exactly so many columns, the last of them blank."""
    text = cut(text, width - 1)
    return text + " " * (width - cells(text))


def _end(text: str, width: int) -> str:
    """Return the end of a name, which says whose it is: www.bank.example.evil.example."""
    return text if cells(text) <= width else "…" + cut(text[::-1], width)[-2::-1]


def _ends(flow: Flow, width: int = _WIDEST) -> str:
    """Return ``source > destination`` in at most ``width`` columns; addresses lose their middle."""
    ports = flow.ports
    ends = [(safe(flow.source, 64), flow.sport), (safe(flow.destination, 64), flow.dport)]
    tails = [f":{port}" if ports else "" for _, port in ends]
    names = [f"[{name}]" if ports and ":" in name else name for name, _ in ends]
    room = width - 3 - sum(map(len, tails))
    if sum(map(cells, names)) > room:
        half = max(4, room // 2)
        shorter = min(map(cells, names))
        names = [_middle(name, max(half, room - shorter)) for name in names]
    return f"{names[0]}{tails[0]} > {names[1]}{tails[1]}"


def _middle(text: str, width: int) -> str:
    if cells(text) <= width:
        return text
    keep = max(0, width - 1)
    return text[: keep - keep // 2] + "…" + (text[-(keep // 2) :] if keep // 2 else "")


def _last_line(width: int, order: str, paused: bool, said: str, fresh: bool) -> Text:
    line = _text("")
    for key, what in (
        ("q", "quit"),
        ("s", f"sort: {order}"),
        ("p", "go on" if paused else "pause"),
    ):
        line.append(key, "bold")
        line.append(f" {what}  ")
    if paused:
        line.append("PAUSED", "bold black on yellow")
        line.append("  ")
    if said and fresh:
        line.append(said, "yellow")
    return _cropped(line, width)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


# --- without a terminal -------------------------------------------------------------------------


def plain(rates: Rates, order: str = "rate") -> str:
    """Return the figures of one second as lines of text: the sums, and the busiest flows."""
    verdicts = ", ".join(
        f"{safe(name)} {count}" for name, count in rates.counts("verdicts").items()
    )
    lines = [
        f"{time.strftime('%H:%M:%S')} {human(round(rates.packet_rate))} packets/s "
        f"{human(round(rates.bit_rate))}bit/s, {rates.packets} packets {rates.octets} bytes"
        f"{': ' + verdicts if verdicts else ''}; waiting {rates.figure('waiting')}, "
        f"full {rates.figure('dropped')}, buffer full {rates.figure('user_dropped')}"
    ]
    for title in ("rules", "errors"):
        counts = {name: n for name, n in rates.counts(title).items() if name != "default"}
        if counts:
            lines.append(f"  {title}: " + ", ".join(f"{safe(k)} {n}" for k, n in counts.items()))
    for flow in rates.flows(order)[:_LISTED]:
        words = [safe(flow.protocol), _ends(flow), safe(flow.name, 100), safe(flow.verdict)]
        words.append(f"{flow.packets} packets {flow.octets} bytes {human(round(flow.bits))}bit/s")
        lines.append("  " + " ".join(filter(None, words)))
    return "\n".join(lines) + "\n"
