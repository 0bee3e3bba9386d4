r"""Rule lines for every match and target extension, and what iptables says of bad ones.

The oracle is iptables-legacy: CASES load and print back, REFUSED fail in user space with the
words given, KERNEL_REFUSED parse but the kernel does not take them, IGNORED load and make no rule.

A rule is the text behind `-A CHAIN `, as an iptables-restore file has it. The blocks below hold one
rule a line, a `#` begins a comment, a backslash at the end of a line joins the next one. A place
is "table CHAIN"; "46" means: once for IPv4 and once for IPv6.

What a rule needs before it can load stands in its setup:
    chain NAME              a chain of the same table
    rule CHAIN TEXT         a rule of the same table, loaded before
    ipset create NAME ...   the arguments of ipset
    nfacct NAME             an accounting object
    cttimeout NAME          a connection tracking timeout policy, for TCP over IPv4 or IPv6
    bpf PATH                a socket filter program, pinned there
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

# --- What a case is ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A rule that iptables loads, where the kernel has the extension."""

    family: int
    table: str
    chain: str
    rule: str
    extension: str
    setup: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        """How many rules this one makes: each of several -s goes with each of several -d."""
        return _product(len(words.split(",")) for words in _ADDRESSES.findall(self.rule))

    def __str__(self) -> str:
        return f"ipv{self.family}-{self.table}-{self.chain} {self.rule}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that iptables refuses; words are a part of what it says."""

    family: int
    table: str
    chain: str
    rule: str
    words: str
    setup: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"ipv{self.family}-{self.table}-{self.chain} {self.rule}"


_ADDRESSES: Final = re.compile(r"(?:^|\s)(?:-[sd]|--sour?c?e?|--src|--dst|--dest\w*)[ =]?([\w.:/,]+)")

_CASES: Final[list[Case]] = []
REFUSED: Final[list[Refusal]] = []
KERNEL_REFUSED: Final[list[Refusal]] = []
IGNORED: Final[list[Case]] = []


def cases() -> list[Case]:
    """All rules that load where the kernel has their extension."""
    return list(_CASES)


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    stripped = (re.sub(r"\s+#\s.*$|^#.*$", "", line.strip()) for line in joined.splitlines())
    return [line for line in stripped if line]
