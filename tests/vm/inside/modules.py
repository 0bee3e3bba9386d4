"""The kernel's modules: which of netfilter's are loaded, and how to be rid of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.vm import guard

# ip_tables and ip6_tables are the engines, iptable_filter and so on the tables; below the line,
# what holds modules of netfilter and is of no use without them
_NETFILTER = re.compile(
    r"ip6?_tables|ip6?table_\w+|x_tables|(?:xt|ipt|ip6t|nf|nft|nfnetlink)_\w+|nfnetlink"
    r"|(?:ip_set|ip_vs|ebt|arpt|arp_t)\w*|br_netfilter"
)


def loaded() -> set[str]:
    """Return the loaded modules of netfilter, as lsmod(8) names them."""
    return {name for name in _users() if _NETFILTER.fullmatch(name)}


def unload() -> None:
    """Take away every module of netfilter; the tables have to be empty."""
    guard.require()
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    while unused := [name for name in loaded() if not _users().get(name, 1)]:
        done = subprocess.run(["rmmod", *unused], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    left = loaded()
    assert not left, f"in use: {left}"


def _users() -> dict[str, int]:
    """Return each module and how many things use it (proc(5), /proc/modules)."""
    lines = Path("/proc/modules").read_text().splitlines()
    return {fields[0]: int(fields[2]) for fields in map(str.split, lines)}
