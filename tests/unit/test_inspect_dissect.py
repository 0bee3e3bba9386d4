"""Dissection by scapy of what no scapy would have made."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw, raw

from nfctl.inspect import dissect
from nfctl.inspect.packet import Packet


@pytest.mark.parametrize("head", [IP(), IPv6()])
def test_a_packet_becomes_scapys(head: Any) -> None:
    """With all layers, and the same bytes again."""
    data = raw(head / UDP(dport=53) / DNS(qd=[DNSQR(qname="example.test")]))
    found = Packet(data).scapy
    assert type(found) is type(head)
    assert found[DNSQR].qname == b"example.test."
    assert raw(found) == data


@given(st.binary(max_size=120), st.sampled_from([0, 4, 6]))
def test_no_bytes_make_it_raise(data: bytes, version: int) -> None:
    """What is no packet is Raw; the text has no control characters, whatever is in it."""
    assert raw(dissect.dissect(data, version)) is not None
    text = dissect.show(Packet(data))
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_what_is_no_packet_is_raw() -> None:
    """Too few bytes for a header are shown as such."""
    assert isinstance(dissect.dissect(b"E", 4), Raw)
    assert "load" in dissect.show(Packet(b"\0\1\2\3"))


def test_all_fields_are_shown_by_name() -> None:
    """As scapy's show() has them."""
    text = dissect.show(Packet(raw(IP(ttl=7) / TCP(flags="SA") / b"\x1b[31m")))
    assert "###[ TCP ]###" in text
    assert "flags     = SA" in text
    assert "ttl       = 7" in text
    assert "\x1b" not in text


def test_packets_in_packets_end_somewhere() -> None:
    """Three thousand headers in one another are shown as far as is sensible."""
    count = 3000
    data = b"".join(
        struct.pack("!BBHHHBBH8s", 0x45, 0, 20 * (count - n), 1, 0, 64, 4, 0, bytes(8))
        for n in range(count)
    )
    assert 1000 < len(dissect.show(Packet(data))) <= 70_000


def test_scapy_is_imported_late_and_in_silence() -> None:
    """Neither the module nor the package loads it; loading it reads no route and prints nothing."""
    code = (
        "import sys, socket, nfctl.inspect.dissect as d, nfctl.inspect.capture, "
        "nfctl.inspect.rewrite\n"
        "assert not any(m.startswith('scapy') for m in sys.modules), 'early'\n"
        "d.load()\n"
        "from scapy.config import conf\n"
        "assert not conf.route.routes and not conf.route6.routes\n"
        "d.dissect(b'E', 4)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
