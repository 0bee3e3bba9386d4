"""The kernel's connections, as conntrack(8) lists them."""

from __future__ import annotations

import subprocess
from typing import NamedTuple


class Way(NamedTuple):
    """One direction of a connection; the ports are 0 where its protocol has none."""

    source: str
    target: str
    sport: int
    dport: int


class Flow(NamedTuple):
    """A connection: both directions, and the words and fields beside them."""

    protocol: str
    original: Way
    reply: Way
    words: frozenset[str]
    fields: dict[str, str]


def flows(version: int, *options: str) -> list[Flow]:
    """Return the connections of a family that the options choose."""
    command = ["conntrack", "-L", "-f", f"ipv{version}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [_flow(line.split()) for line in done.stdout.splitlines()]


def _flow(words: list[str]) -> Flow:
    values: dict[str, list[str]] = {}
    plain = set()
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            values.setdefault(name, []).append(value)
        else:
            plain.add(word.strip("[]"))
    ways = []
    for index in (0, 1):
        ports = [int(values[name][index]) if name in values else 0 for name in ("sport", "dport")]
        ways.append(Way(values["src"][index], values["dst"][index], *ports))
    fields = {name: found[0] for name, found in values.items() if len(found) == 1}
    return Flow(words[0], ways[0], ways[1], frozenset(plain), fields)


def forget(version: int) -> None:
    """Forget all connections of a family."""
    command = ["conntrack", "-F", "-f", f"ipv{version}"]
    subprocess.run(command, capture_output=True, check=True)
