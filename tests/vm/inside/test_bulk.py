"""Bulk transfers through translations, with and without the NICs' offloads."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from tests.vm.inside import wire
from tests.vm.inside.network import NAMES

if TYPE_CHECKING:
    from tests.vm.inside.network import Network

RULES = """\
*nat
-A PREROUTING -d {wan} -p tcp -m tcp --dport 7300 -j DNAT --to-destination {server_}:7200
-A POSTROUTING -s {lan_net} -o eth1 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED -m comment --comment bulk -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -j ACCEPT
COMMIT
"""
SIZE = 4_000_000  # bytes


@pytest.mark.nic
@pytest.mark.usefixtures("offloads")
@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_bulk_transfer_arrives_whole(net: Network, version: int, direction: str) -> None:
    """Four million bytes have the same sha256 behind DNAT, and behind MASQUERADE."""
    net.device.load(RULES, version)
    data = random.Random(version).randbytes(SIZE)
    names = NAMES[version]
    client, server = net.client.host, net.server.host
    if direction == "in":
        at, to = (names["server"], 7200), (names["wan"], 7300)
        ends = wire.connected(client, server, version, at, to)
    else:
        ends = net.server.connected(net.client, version, 7200)
    with ends as (sender, receiver):
        got = wire.send_all(sender, receiver, data)
    assert len(got) == SIZE
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    # all of it went through the rules: one packet is 64 KiB at most
    assert net.device.packets(version)["bulk"] >= SIZE >> 16
