"""ICMP: names of messages, and the flows that errors are about."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw, raw

from nfctl.inspect.headers import decode
from nfctl.inspect.payloads import icmp
from tests.fuzz.seeds import FOUR, SIX


@pytest.mark.parametrize(
    ("version", "kind", "code", "expected"),
    [
        (4, 8, 0, "echo request"),
        (4, 0, 0, "echo reply"),
        (4, 3, 3, "port unreachable"),
        (4, 3, 4, "fragmentation needed"),
        (4, 3, 99, "destination unreachable code 99"),
        (4, 11, 0, "TTL exceeded in transit"),
        (4, 200, 3, "type 200 code 3"),
        (6, 128, 0, "echo request"),
        (6, 1, 4, "port unreachable"),
        (6, 2, 0, "packet too big"),
        (6, 135, 0, "neighbour solicitation"),
        (6, 8, 0, "type 8 code 0"),
    ],
)
def test_names(version: int, kind: int, code: int, expected: str) -> None:
    """Codes with names have those, others their number."""
    assert icmp.name(version, kind, code) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            FOUR / ICMP(type=3, code=3) / FOUR / UDP(sport=5, dport=6),
            "udp 192.0.2.1:5 > 198.51.100.2:6",
        ),
        (  # 8 bytes of the packet, as RFC 792 has it
            FOUR / ICMP(type=11) / Raw(raw(FOUR / TCP(sport=5, dport=6) / Raw(b"d"))[:28]),
            "tcp 192.0.2.1:5 > 198.51.100.2:6",
        ),
        (
            FOUR / ICMP(type=3, code=1) / FOUR / ICMP(type=8),
            "echo request 192.0.2.1 > 198.51.100.2",
        ),
        (
            FOUR / ICMP(type=3) / IP(src="1.2.3.4", dst="5.6.7.8", proto=47) / Raw(b"x" * 8),
            "protocol 47 1.2.3.4 > 5.6.7.8",
        ),
        (FOUR / ICMP(type=8) / FOUR / UDP(), ""),
        (FOUR / ICMP(type=3), ""),
        (FOUR / ICMP(type=3) / SIX / UDP(), ""),
    ],
)
def test_inner(error: Any, expected: str) -> None:
    """An error names the flow of the packet it quotes, even of 8 bytes; others name none."""
    packet = raw(error)
    head = decode(packet, len(packet))
    assert icmp.inner(4, packet[head.transport : head.end]) == expected
