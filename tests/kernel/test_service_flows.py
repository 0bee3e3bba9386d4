"""What ``nfctl service`` does to flows: real sockets of a client, by a node, to two endpoints."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.lab import Lab
from nfctl.text import at
from tests.kernel import play
from tests.kernel.conftest import NFCTL, PATIENCE
from tests.kernel.test_serving_ending import DNS, FAMILIES, ONE, TWO, WEB, Net

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kernel.play import Said

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(shutil.which("conntrack") is None, reason="needs conntrack"),
]


class Serving(Net):
    """The network, and nfctl on its node."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        super().__init__(lab)
        self.environment = {"NFCTL_STATE_DIR": str(directory)}

    def nfctl(self, *words: str, text: str = "") -> Said:
        return self.node.run(
            lambda: play.nfctl(["service", *words], text, **self.environment), timeout=PATIENCE
        )

    def document(self, *words: str, text: str = "") -> dict[str, Any]:
        said = self.nfctl(*words, "--json", text=text)
        assert (said.code, said.err) == (0, "")
        found: dict[str, Any] = json.loads(said.out)
        return found

    def apply(self, family: int, *endpoints: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
        """Have web (tcp) and dns (udp) with the same hosts as endpoints."""
        listed = {
            "services": [
                {
                    "name": name,
                    "protocol": protocol,
                    "port": port,
                    "cluster-ips": [address],
                    "endpoints": [at(host, port) for host in endpoints],
                }
                for name, protocol, port, address in (
                    ("web", "tcp", 80, WEB[family]),
                    ("dns", "udp", 53, DNS[family]),
                )
            ]
        }
        return self.document("apply", "-", *more, text=json.dumps(listed))

    def served(self, number: int = 0) -> list[str]:
        found = self.document("list")["services"][number]["endpoints"]
        return [at(one["address"], one["port"]) for one in found]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command, and return when it has begun to wait."""
        pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        process: subprocess.Popen[str] = self.node.popen(
            ["env", *(f"{k}={v}" for k, v in self.environment.items()), *NFCTL, "service", *words],
            text=True,
            **pipes,
        )
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], PATIENCE)[0]
        assert process.stderr.readline() == "draining; 1 connection open\n"
        return process


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Serving]:
    with Lab("tests") as lab:
        yield Serving(lab, tmp_path / "state")


# --- endpoints that go ----------------------------------------------------------------------------


@FAMILIES
def test_udp_goes_elsewhere_at_once(net: Serving, family: int) -> None:
    """A client that goes on from one port is answered by the endpoint that is there now."""
    net.apply(family, ONE[family])
    assert [net.ask(DNS[family], 53, source) for source in (40001, 40002)] == ["one", "one"]
    found = net.document("set-endpoints", "dns", at(TWO[family], 53))
    assert found["flows"] == {"udp": 2, "streams": None, "left": 0, "problem": None}
    assert [net.ask(DNS[family], 53, source) for source in (40001, 40002)] == ["two", "two"]
    assert "2 UDP flows deleted" in net.nfctl("delete", "dns").out


@FAMILIES
def test_an_apply_ends_what_was_left(net: Serving, family: int) -> None:
    """UDP flows to an endpoint that no list is known to have had are ended by an apply, too."""
    net.apply(family, ONE[family])
    assert net.ask(DNS[family], 53, 40001) == "one"
    net.environment["NFCTL_STATE_DIR"] += "-other"
    assert net.apply(family, TWO[family])["flows"]["udp"] == 1
    assert net.ask(DNS[family], 53, 40001) == "two"


@FAMILIES
def test_tcp_goes_on_unless_it_is_ended(net: Serving, family: int) -> None:
    """A connection to an endpoint that is gone is told and goes on; --end-tcp ends it."""
    net.apply(family, ONE[family])
    connection = net.open(WEB[family], 80)
    assert net.host_of(connection) == "one"
    said = net.nfctl("set-endpoints", "web", at(TWO[family], 80))
    assert "1 connection to endpoints that are gone may go on (--end-tcp ends such)" in said.out
    assert net.host_of(connection) == "one"
    other = net.open(WEB[family], 80)
    assert net.host_of(other) == "two"
    found = net.document("set-endpoints", "web", at(ONE[family], 80), "--end-tcp")
    assert found["flows"] == {"udp": 0, "streams": 1, "left": 0, "problem": None}
    flows = [line for line in net.entries().values() if "dport=80 " in line]
    assert len(flows) == 1
    assert net.host_of(connection) == "one"


@FAMILIES
def test_udp_that_came_before_the_service(net: Serving, family: int) -> None:
    """A flow that passed untranslated does not keep its client from the service."""
    net.load(family)
    assert net.ask(DNS[family], 53, 40001, 0.1) == ""
    found = net.apply(family, ONE[family])
    assert found["flows"]["udp"] == 1
    assert net.ask(DNS[family], 53, 40001) == "one"


@FAMILIES
def test_a_rollback_ends_them_too(net: Serving, family: int) -> None:
    """What a rollback takes away leaves no UDP flow behind, and the older endpoint answers."""
    net.apply(family, ONE[family])
    net.document("set-endpoints", "dns", at(TWO[family], 53))
    assert net.ask(DNS[family], 53, 40001) == "two"
    said = net.node.run(lambda: play.nfctl(["rollback"], **net.environment), timeout=PATIENCE)
    assert said.code == 0, said.err
    assert "1 UDP flow ended, to endpoints that are gone" in said.out
    assert net.ask(DNS[family], 53, 40001) == "one"


# --- draining -------------------------------------------------------------------------------------


@FAMILIES
def test_a_drain_waits_for_the_last_connection(net: Serving, family: int) -> None:
    """Nothing new comes, what is established goes on; when it ends, the endpoint is gone."""
    net.apply(family, ONE[family])
    connection = net.open(WEB[family], 80)
    assert net.host_of(connection) == "one"
    assert net.nfctl("set-endpoints", "web", "--add", at(TWO[family], 80)).code == 0
    one, two = at(ONE[family], 80), at(TWO[family], 80)
    said = net.nfctl("drain", "web", one, "--timeout", "0.1")
    assert said.code == 1
    assert f"draining still: {one}; 1 connection open; they get nothing new" in said.out
    assert net.served() == [one, two]
    news = [net.open(WEB[family], 80) for _ in range(8)]
    assert {net.host_of(new) for new in news} == {"two"}
    process = net.start("drain", "web", one)
    assert net.host_of(connection) == "one"
    assert process.poll() is None
    net.close(connection)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert out.endswith(f"drained: {one}\n")
    assert net.served() == [two]
    assert net.host_of(news[0]) == "two"


def test_a_drain_that_ends_what_is_left(net: Serving) -> None:
    """With --end-tcp the timeout is the end of the connections, and the endpoint goes."""
    net.apply(4, ONE[4], TWO[4])
    hosts: dict[str, int] = {}
    while len(hosts) < 2:
        connection = net.open(WEB[4], 80)
        hosts[net.host_of(connection)] = connection
    one = at(ONE[4], 80)
    open_ = [line for line in net.entries().values() if f"src={ONE[4]} " in line]
    found = net.document("drain", "web", one, "--timeout", "0.1", "--end-tcp", "--quiet")
    assert (found["status"], found["open"]) == ("drained", 0)
    assert found["applied"][-1]["flows"]["streams"] == len(open_)
    assert not [line for line in net.entries().values() if f"src={ONE[4]} " in line]
    assert net.served() == [at(TWO[4], 80)]
    assert net.host_of(hosts["two"]) == "two"


def test_a_drain_that_is_broken_off(net: Serving) -> None:
    """Ctrl-C leaves the endpoint draining; the same command goes on, and --undo takes it back."""
    net.apply(4, ONE[4])
    connection = net.open(WEB[4], 80)
    assert net.host_of(connection) == "one"
    one = at(ONE[4], 80)
    process = net.start("drain", "web", one)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "nfctl: interrupted; the endpoints go on draining: --undo has them serve again\n"
    assert "0/1, 1 drains" in net.nfctl("list").out
    process = net.start("drain", "web", one)
    assert "serving again" in net.nfctl("drain", "web", one, "--undo").out
    net.close(connection)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.endswith(f"serving again: {one}\n"), "it was taken back meanwhile"
    assert net.served() == [one]
    assert net.host_of(net.open(WEB[4], 80)) == "one"


def test_udp_of_a_draining_endpoint_stays(net: Serving) -> None:
    """A client of UDP keeps a draining endpoint, while another is sent elsewhere."""
    net.apply(4, ONE[4])
    assert net.ask(DNS[4], 53, 40001) == "one"
    assert net.nfctl("set-endpoints", "dns", "--add", at(TWO[4], 53)).code == 0
    found = net.document("drain", "dns", at(ONE[4], 53), "--no-wait")
    assert (found["status"], found["open"]) == ("draining", 1)
    assert net.ask(DNS[4], 53, 40001) == "one"
    assert {net.ask(DNS[4], 53, 40002 + number) for number in range(8)} == {"two"}
