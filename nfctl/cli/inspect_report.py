"""What ``nfctl inspect`` says when it ends: how many packets, what became of them, what went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.inspect.text import safe

if TYPE_CHECKING:
    from collections.abc import Iterator

_DONE = {"accept": "accepted", "drop": "dropped", "reject": "rejected", "repeat": "repeated"}
_MOST = 10  # rules and names that are listed


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
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:,.0f} {unit}" if unit == "bytes" else f"{number:,.1f} {unit}"
        number /= 1024
    return ""
