"""Services whose endpoints are beyond real NICs, on the machine's own tables."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.control.persist.unit import UNIT
from nfctl.lab import Verdict, traffic
from nfctl.lab.traffic.attempt import WHOAMI
from tests.vm import guard
from tests.vm.inside.network import NAMES, oracle
from tests.vm.inside.test_persist import systemctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.network import Network

STATE = Path("/var/lib/nfctl-services-test")
VIP = {4: "10.96.0.10", 6: "fd00:96::10"}
CONNECTIONS = 30
BOTH = ("server", "guest")


@pytest.fixture
def served(net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    """Serve web (tcp) and dns (udp) by the hosts of lan and dmz, in both families."""
    guard.require()
    monkeypatch.setenv("NFCTL_STATE_DIR", str(STATE))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    services = [
        {
            "name": name,
            "port": port,
            "protocol": protocol,
            "cluster-ips": list(VIP.values()),
            "endpoints": [endpoint(version, host, port) for version in (4, 6) for host in BOTH],
        }
        for name, port, protocol in (("web", 80, "tcp"), ("dns", 53, "udp"))
    ]
    file = tmp_path / "services.json"
    file.write_text(json.dumps({"version": 1, "services": services}))
    try:
        done = net.device.nfctl("service", "apply", "--quiet", str(file))
        assert (done.returncode, done.stderr) == (0, "")
        yield net
    finally:
        net.device.nfctl("persist", "disable")
        shutil.rmtree(STATE, ignore_errors=True)
        net.device.clear()


def endpoint(version: int, host: str, port: int) -> str:
    """Return an endpoint as it is written: a host's address and a port."""
    return f"{NAMES[version][f'{host}_']}:{port}"


def answers(net: Network, version: int, number: int = CONNECTIONS) -> Counter[str]:
    """Connect to the service web from the client; return how often each host answered."""
    found: Counter[str] = Counter()
    for _ in range(number):
        answer = net.ask("client", traffic.tcp, VIP[version], 80)
        assert answer.verdict is Verdict.ACCEPTED
        assert answer.seen_as == NAMES[version]["client"]
        found[answer.host] += 1
    return found


def test_connections_spread_over_the_cards(served: Network, version: int) -> None:
    """Both endpoints get connections; without the one the other gets all, without both none."""
    found = answers(served, version)
    assert set(found) == set(BOTH)  # by chance not so once in 500 million runs
    rest = endpoint(version, "guest", 80)
    done = served.device.nfctl("service", "set-endpoints", "-q", "web", rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert answers(served, version, 10) == {"guest": 10}
    done = served.device.nfctl("service", "set-endpoints", "-q", "web", "--none")
    assert done.returncode == 0
    answer = served.ask("client", traffic.tcp, VIP[version], 80)
    assert answer.verdict is Verdict.REJECTED


def test_datagrams_leave_an_endpoint_that_is_gone(served: Network, version: int) -> None:
    """A client that goes on asking from one port is answered by the endpoint that is left."""
    with served.client.datagrams(version) as sock:
        sock.connect((VIP[version], 53))

        def ask() -> str:
            sock.send(WHOAMI.strip())
            assert sock.recv(512)
            (at, _), *more = [(host, one) for host, one in served.arrivals() if one.port == 53]
            assert not more
            return at

        first = ask()
        assert [ask() for _ in range(3)] == [first] * 3
        (other,) = set(BOTH) - {first}
        gone = endpoint(version, first, 53)
        done = served.device.nfctl("service", "set-endpoints", "-q", "dns", "--remove", gone)
        assert (done.returncode, done.stderr) == (0, "")
        assert [ask() for _ in range(3)] == [other] * 3


def test_services_are_restored_by_the_unit(served: Network, version: int) -> None:
    """What systemd restores into empty tables is what was there, and serves as before."""
    before = rules(version)
    assert any(VIP[version] in line for line in before)
    done = served.device.nfctl("persist", "enable")
    assert (done.returncode, done.stderr) == (0, "")
    served.device.clear()
    assert systemctl("start", UNIT) == 0
    assert rules(version) == before
    assert set(answers(served, version)) == set(BOTH)


def rules(version: int) -> list[str]:
    """Return all chains and rules, without counters."""
    words = [oracle(version, "-save")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.partition(" [")[0] for line in done.stdout.splitlines() if line[0] != "#"]
