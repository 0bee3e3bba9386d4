"""What ``nfctl inspect`` says when it ends: how many packets, what became of them, what went."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect.text import safe

if TYPE_CHECKING:
    from collections.abc import Iterator

_DONE = {"accept": "accepted", "drop": "dropped", "reject": "rejected", "repeat": "repeated"}
_MOST = 10  # rules and names that are listed
_LONGEST: Final = 1000  # characters of an event
_DAY: Final = 86400.0  # seconds: whoever reads may take their time


class Teller:
    """Says what happens beside the packets: on standard error, or as records of JSON's output.

    Never waits for its reader before the end, since rules that queue packets are in place. What
    nobody reads any more is said to nobody.
    """

    def __init__(self, *, json: bool = False) -> None:
        from nfctl.inspect.show import Output

        self.json = json
        self._out = Output(1 if json else 2)

    def __call__(self, text: str) -> None:
        """Say it now."""
        if self.json:
            self._write(json.dumps({"event": "note", "time": round(time.time(), 6), "text": text}))
        else:
            self._write(f"nfctl: {safe(text, _LONGEST)}")

    def finish(self, document: dict[str, Any]) -> None:
        """Give the report, and wait until it was read."""
        if self.json:
            self._write(json.dumps(document))
        else:
            self._write(*(f"nfctl: {text}" for text in lines(document)))
        with contextlib.suppress(OSError):
            self._out.flush(_DAY)
            self._out.close()

    def _write(self, *texts: str) -> None:
        with contextlib.suppress(OSError):
            self._out.write(*(f"{text}\n".encode("utf-8", "backslashreplace") for text in texts))


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines for people; ``report`` is the document that ends ``--json``."""
    packets = report["packets"]
    seconds = report.get("seconds")
    text = _count(packets, "packet")
    if packets:
        text += f", {_bytes(report['octets'])}"
    if seconds is not None:
        text += f" in {seconds:.1f} s"
    verdicts = report["verdicts"]
    if verdicts:
        text += ": " + ", ".join(f"{n:,} {_DONE.get(v, v)}" for v, n in verdicts.items())
    yield text
    rules = {by: n for by, n in report["rules"].items() if by != "default"}
    if rules:
        yield "decided by " + _list(rules)
    if report.get("names"):
        yield "server names: " + _list(report["names"], "flow")
    if report.get("offloaded"):
        yield f"{_count(report['offloaded'], 'flow')} left to the kernel"
    if report.get("uninspected"):
        yield f"{_count(report['uninspected'], 'packet')} went by uninspected: the queue was full"
    queue = report.get("queue", {})
    lost = queue.get("dropped", 0) + queue.get("user_dropped", 0)
    if lost:
        yield (
            f"lost by the queue: {queue.get('dropped', 0):,} (it was full), "
            f"{queue.get('user_dropped', 0):,} (the socket's buffer was, ENOBUFS)"
        )
    if report["errors"]:
        yield "errors: " + _list(report["errors"])


def _list(counts: dict[str, int], unit: str = "") -> str:
    shown = [
        f"{safe(name, 80) or '(none)'} {_count(n, unit) if unit else f'{n:,}'}"
        for name, n in list(counts.items())[:_MOST]
    ]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _bytes(number: float) -> str:
    if number < 1024:
        return _count(int(number), "byte")
    for unit in ("KiB", "MiB"):
        number /= 1024
        if number < 1024:
            return f"{number:,.1f} {unit}"
    return f"{number / 1024:,.1f} GiB"
