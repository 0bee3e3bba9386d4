"""What the README shows of live packets is what nfctl takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP

from nfctl.inspect.packet import Packet
from nfctl.inspect.rules import describe, load
from nfctl.inspect.verdict import Action

README = Path(__file__).parents[2] / "README.md"


def block(language: str, holds: str) -> str:
    """Return the block of the README in a language that holds some words."""
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    (text,) = (text for text in found if holds in text)
    return str(text)


def test_the_verdict_rules() -> None:
    """The file of verdict rules is right, each of its rules can match, and telnet is rejected."""
    rules = load(block("yaml", "no-telnet"), "README.md")
    assert describe(rules) == ["4 rules, default accept"]
    packet = Packet(bytes(IP(dst="192.0.2.1") / TCP(dport=23)))
    verdict = rules.decide(packet, 0.0)
    assert (verdict.by, verdict.action) == ("no-telnet", Action.REJECT)


def test_the_handler() -> None:
    """The handler is Python, and decides nothing for a packet without a name."""
    space: dict[str, Any] = {}
    exec(block("python", "def watch"), space)  # noqa: S102 - our own README
    packet = Packet(bytes(IP(dst="192.0.2.1") / TCP(dport=23)))
    space["watch"](packet)
    assert packet.decision("watch") is None
