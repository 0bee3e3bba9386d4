"""``nfctl inspect`` between real NICs: seen, rewritten, dropped, and left to the kernel."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import nfctl
from nfctl.lab import Verdict, traffic
from tests.vm import guard
from tests.vm.inside import wire
from tests.vm.inside.network import NAMES, PATIENCE
from tests.vm.inside.test_queue import digest, letters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.vm.inside.network import Network

QUEUE = 6
PORT = 7200
REWRITE = """\
rules:
  - name: capitals
    when: {port: 7200}
    verdict: set
    set: {payload: {replace: "[abc]", with: "X"}}
"""
DROP = """\
rules:
  - {name: closed, when: {proto: udp, dport: 53}, verdict: reject}
"""


def mangle(family: int) -> str:
    """Return the table mangle, as nfctl saves it."""
    return "".join(nfctl.save(family=family, tables=["mangle"]))


class Inspection:
    """A running ``nfctl inspect --json``; ``records`` and ``end`` are there when it is over."""

    def __init__(self, *words: str) -> None:
        guard.require()
        command = ["inspect", "--json", "--queue", str(QUEUE), "-c", "FORWARD", *words]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nfctl", *command], stdout=subprocess.PIPE, text=True
        )
        self.records: list[dict[str, Any]] = []
        self.end: dict[str, Any] = {}

    def wait(self) -> None:
        """Wait until its rules are in place, in both families."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            if all(f"--queue-num {QUEUE}" in mangle(family) for family in (4, 6)):
                return
            time.sleep(0.1)
        pytest.fail("nfctl inspect did not begin")

    def stop(self) -> None:
        """End it, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=PATIENCE)
        *self.records, self.end = [json.loads(line) for line in out.splitlines()]
        assert self._process.returncode == 0

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def inspecting(*words: str) -> Iterator[Inspection]:
    inspection = Inspection(*words)
    try:
        inspection.wait()
        yield inspection
        inspection.stop()
    finally:
        inspection.kill()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.yaml"


@pytest.mark.nic
@pytest.mark.usefixtures("offloads")
def test_a_stream_and_datagrams_are_rewritten(net: Network, version: int, rules: Path) -> None:
    """A rule rewrites each packet between the NICs, whoever makes checksums and segments."""
    rules.write_text(REWRITE)
    sent = letters(300_000)
    want = sent.translate(bytes(ord("X") if byte in b"abc" else byte for byte in range(256)))
    with inspecting("--quiet", "--rules", str(rules)) as inspection:
        with net.client.connected(net.server, version, PORT) as (client, server):
            got = wire.send_all(client, server, sent)
        with net.server.datagrams(version) as server, net.client.datagrams(version) as client:
            server.bind((NAMES[version]["server"], PORT))
            client.connect((NAMES[version]["server"], PORT))
            client.send(sent[:1399])
            datagram = server.recv(2000)
    assert (len(got), digest(got)) == (len(want), digest(want))
    assert datagram == want[:1399]
    assert inspection.end["errors"] == {}
    assert inspection.end["rewritten"] >= len(sent) / 1500


def test_a_stream_is_left_to_the_kernel(net: Network, version: int) -> None:
    """With --offload all bytes of a stream arrive, and only its first packets are queued."""
    sent = letters(1_000_000)
    with (
        inspecting("--offload") as inspection,
        net.client.connected(net.server, version, PORT) as (client, server),
    ):
        got = wire.send_all(client, server, sent)
    assert (len(got), digest(got)) == (len(sent), digest(sent))
    assert inspection.end["offloaded"] == 1
    assert inspection.end["packets"] < 200
    first = inspection.records[0]
    assert (first["in"], first["out"], first["dport"]) == ("eth1", "eth2", PORT)


def test_what_is_rejected_is_refused(net: Network, version: int, rules: Path) -> None:
    """A rule that rejects has the kernel tell the client, and nothing arrives."""
    rules.write_text(DROP)
    server = NAMES[version]["server"]
    with inspecting("--rules", str(rules)) as inspection:
        answer = net.ask("client", traffic.udp, server, 53)
    assert answer.verdict is Verdict.REJECTED
    assert inspection.end["verdicts"] == {"reject": 1}
    assert net.ask("client", traffic.udp, server, 53).verdict is Verdict.ACCEPTED


def test_killed_it_lets_traffic_pass(net: Network, version: int) -> None:
    """After SIGKILL connections go on, and --clean removes what is left."""
    with net.client.connected(net.server, version, 7300) as (client, server):
        inspection = Inspection("--quiet")
        try:
            inspection.wait()
            client.sendall(b"before")
            assert wire.receive(server, 6) == b"before"
        finally:
            inspection.kill()
        client.sendall(b"after")
        assert wire.receive(server, 5) == b"after"
    until = time.monotonic() + PATIENCE
    while "removed" not in net.device.nfctl("inspect", "--clean").stdout:
        assert time.monotonic() < until  # its worker is still on its way out
    assert "NFCTL" not in mangle(version)
