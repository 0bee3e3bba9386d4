"""``nfctl service watch`` on the real kernel: real servers, real clients, iptables-legacy.

An endpoint is a server of its own, which ends and is started again. The interval of compares is an
hour, so that only notices, health and the file can tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nfctl.control.apply import Options
from nfctl.control.journal.state import State
from nfctl.control.serving import changing, gone
from nfctl.kernel import flows
from nfctl.lab import Lab
from nfctl.services.model import Endpoint, Service, ServiceList
from tests.kernel.conftest import NFCTL, without_comments
from tests.kernel.serving import (
    CLUSTER,
    NODE,
    NODE_PORT,
    REFUSED,
    SERVED,
    STATE,
    VIP,
    Ask,
    Net,
    Server,
    client,
    endpoint,
    pod,
)
from tests.kernel.talking import SILENCE
from tests.kernel.test_watch import AWAITED, Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kernel.conftest import Namespace

_NEEDED: Final = ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-legacy-restore")

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    *(pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}") for name in _NEEDED),
]

FAMILIES: Final = pytest.mark.parametrize("family", [4, 6])
CHECK: Final = ("--check-health", "tcp", "--check-interval", "0.1", "--check-timeout", "20",
                "--rise", "2", "--fall", "2")  # fmt: skip
TIMES: Final = 120  # connections: that one of three endpoints gets none by chance has 1e-21


class Endpoints:
    """The servers, which can be stopped and started one by one."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._servers: dict[tuple[int, int], Server] = {}

    def start(self, family: int, *numbers: int) -> None:
        for number in numbers:
            server = Server(self._net.pods, [pod(family, number)])
            self._servers[family, number] = server

    def stop(self, family: int, *numbers: int) -> None:
        for number in numbers:
            self._servers.pop((family, number)).close()

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@pytest.fixture(scope="module")
def module_net() -> Iterator[Net]:
    with Lab("tests") as lab:
        net = Net(lab)
        net.server.close()  # ours stop one by one
        yield net


@pytest.fixture
def net(module_net: Net) -> Iterator[Net]:
    yield module_net
    flush = "\n".join(f"*{table}\nCOMMIT" for table in ("nat", "filter", "mangle"))
    for binary in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
        with module_net.node.popen([binary], stdin=subprocess.PIPE, text=True) as process:
            process.communicate(f"{flush}\n")
        assert process.returncode == 0
    module_net.node.run(shutil.rmtree, STATE, True)
    module_net.node.run(_forget_flows)  # UDP's outlive the test, and would be ended by the next


def _killed(made: ServiceList) -> None:
    """Apply a list, and die when the chains are written and no flow was ended yet."""
    gone.end_left = lambda *_args, **_more: os._exit(9)
    changing.apply(made, state=State(STATE), options=Options(guard_ssh=False))


def _forget_flows() -> None:
    with flows.open_socket() as sock:
        flows.clear(sock)


@pytest.fixture
def endpoints(net: Net) -> Iterator[Endpoints]:
    found = Endpoints(net)
    yield found
    found.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "services.json"


def web(family: int, *numbers: int, protocol: str = "tcp") -> Service:
    made = tuple(endpoint(family, number) for number in numbers)
    return Service("web", 80, protocol, (VIP[family],), endpoints=made)


def put(file: Path, *services: Service) -> None:
    """Put a list in the place of another one, at once."""
    made = ServiceList(services, cluster=tuple(CLUSTER.values()))
    new = file.with_suffix(".new")
    new.write_text(json.dumps(made.document()), encoding="utf-8")
    new.rename(file)


class Watch(Session):
    """A watch that runs, and what it tells."""

    def until(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Return the next event of a kind, with these facts."""
        while True:
            event = self.next()
            if event["event"] == kind and all(event[key] == wanted[key] for key in wanted):
                return event


@contextlib.contextmanager
def watching(net: Net, file: Path, *options: str, **environment: str) -> Iterator[Watch]:
    """Run ``nfctl service watch`` in the node for the block, past its first apply."""
    address = file.with_name("notify")
    environment |= {"NFCTL_STATE_DIR": str(STATE), "NOTIFY_SOCKET": str(address)}
    settings = [f"{name}={value}" for name, value in environment.items()]
    words = ["service", "watch", str(file), "--json", "--interval", "3600", *options]
    argv = ["env", *settings, *NFCTL, *words]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(AWAITED)
        pipe = subprocess.PIPE
        with net.node.popen(argv, stdout=pipe, stderr=pipe) as process:
            try:
                watch = Watch(process, manager)
                watch.expect("start")
                watch.heard("READY")
                yield watch
            finally:
                process.kill()
    address.unlink()


def nfctl(net: Net, *words: str, **environment: str) -> str:
    settings = [f"{name}={value}" for name, value in environment.items()]
    argv = ["env", f"NFCTL_STATE_DIR={STATE}", *settings, *NFCTL, *words]
    return net.node.call(argv, timeout=AWAITED)


def rules(net: Net, family: int = 4) -> str:
    return without_comments(net.rules(family))


def servers(net: Net, family: int) -> Counter[str]:
    """Return who served how many of many connections."""
    answers = net.ask("tcp", VIP[family], times=TIMES)
    return Counter(answer.server or answer.failure for answer in answers)


def by_udp(net: Net, family: int, port: int) -> str:
    """Ask by UDP from a port who answers: conntrack has that go where it went before."""
    (answer,) = net.all([Ask(VIP[family], 80, client(family), port)], "udp", wait=AWAITED)
    return answer.server or answer.failure


# --- health -------------------------------------------------------------------------------------


@FAMILIES
def test_a_server_stops_and_starts(net: Net, endpoints: Endpoints, file: Path, family: int) -> None:
    """Nothing new goes to an endpoint whose server stopped, and nothing fails; then it is back."""
    endpoints.start(family, 0, 1, 2)
    put(file, web(family, 0, 1, 2))
    with watching(net, file, *CHECK) as watch:
        applied = watch.until("applied", why=["start"])
        assert servers(net, family).keys() == {pod(family, number) for number in (0, 1, 2)}
        while True:
            number, answer = net.open(VIP[family])
            if answer.server == pod(family, 1):
                break
        endpoints.stop(family, 0)
        told = watch.until("health", healthy=False)
        assert (told["endpoint"], told["reason"]) == (
            str(Endpoint(pod(family, 0), SERVED)), "connection refused"
        )  # fmt: skip
        assert told["services"] == ["web"]
        applied = watch.until("applied")
        assert applied["why"] == ["health"]
        assert servers(net, family).keys() == {pod(family, 1), pod(family, 2)}
        endpoints.start(family, 0)
        watch.until("health", healthy=True, endpoint=told["endpoint"])
        watch.until("applied", why=["health"])
        assert servers(net, family).keys() == {pod(family, number) for number in (0, 1, 2)}
        assert net.say(number).server == pod(family, 1), "an established one was to go on"
        watch.end()
    entry = json.loads(nfctl(net, "history", "show", str(applied["entry"]), "--json"))
    assert entry["action"] == "repair"


@FAMILIES
def test_udp_flows_of_an_unhealthy_endpoint(
    net: Net, endpoints: Endpoints, file: Path, family: int
) -> None:
    """A client that asks from one port goes to another endpoint when its own is gone."""
    endpoints.start(family, 0, 1)
    put(file, web(family, 0, 1), web(family, 0, 1, protocol="udp"))
    port = 40001
    with watching(net, file, *CHECK) as watch:
        watch.until("applied", why=["start"])
        first = by_udp(net, family, port)
        gone = 0 if first == pod(family, 0) else 1
        assert {by_udp(net, family, port) for _ in range(10)} == {first}
        endpoints.stop(family, gone)
        assert watch.until("applied")["ended"] == 1
        assert by_udp(net, family, port) == pod(family, 1 - gone)
        watch.end()


def test_nobody_is_healthy(net: Net, endpoints: Endpoints, file: Path) -> None:
    """Where no endpoint's HTTP answers the service rejects, and says so, until one does."""
    endpoints.start(4, 0, 1)
    put(file, web(4, 0, 1))
    health = net.pods.serve(http=[9000])
    check = ("--check-health", "http://:9000/", *CHECK[2:])
    with watching(net, file, *check) as watch:
        watch.until("applied", why=["start"])
        for _ in range(2):
            assert watch.until("health")["reason"] == "HTTP 200"
        health.close()
        assert watch.until("unserved")["services"] == [
            {"name": "web", "protocol": "tcp",
             "what": "has no endpoint that serves: connections are rejected"}
        ]  # fmt: skip
        assert servers(net, 4) == {REFUSED[4]: TIMES}
        net.pods.serve(http=[9000])
        watch.until("served")
        assert servers(net, 4).keys() == {pod(4, 0), pod(4, 1)}
        watch.end()


def test_a_restart_does_not_bring_back_who_is_gone(
    net: Net, endpoints: Endpoints, file: Path
) -> None:
    """A watch that is started again goes on with what the last one knew."""
    endpoints.start(4, 1)
    put(file, web(4, 0, 1))
    with watching(net, file, *CHECK) as watch:
        watch.until("applied", why=["health"])
        watch.end()
    before = rules(net)
    slow = ("--check-health", "tcp", "--check-interval", "3600")
    with watching(net, file, *slow) as watch:
        assert watch.end()["applied"] == 0
    assert watch.told[0]["unhealthy"] == 1
    assert rules(net) == before
    assert servers(net, 4).keys() == {pod(4, 1)}


# --- flows that nobody ended --------------------------------------------------------------------


@FAMILIES
def test_stale_flows_are_ended_at_the_start(
    net: Net, endpoints: Endpoints, file: Path, family: int
) -> None:
    """UDP flows that a killed apply left go to endpoints that are there; no others are touched.

    Others are those of services that are not in the list, of draining endpoints, and TCP.
    """
    endpoints.start(family, 0, 1)
    vip, node = VIP[family], NODE[family]
    one, two = pod(family, 0), pod(family, 1)

    def udp(name: str, port: int, *numbers: int, **more: Any) -> Service:
        return web(family, *numbers, protocol="udp")._replace(name=name, port=port, **more)

    def asked(port: int, to: str, to_port: int) -> str:
        (answer,) = net.all([Ask(to, to_port, client(family), port)], "udp", wait=1.0)
        return answer.server or answer.failure

    node_port = {"cluster_ips": (), "node_port": NODE_PORT}
    drains = (endpoint(family, 1, draining=True), endpoint(family, 0))
    before = (
        web(family, 0), udp("dns", 80, 0), udp("np", 9, 0, **node_port), udp("drains", 53, 1),
        udp("other", 54, 0),
    )  # fmt: skip
    after = (
        web(family, 1), udp("dns", 80, 1), udp("np", 9, 1, **node_port),
        udp("drains", 53)._replace(endpoints=drains), udp("new", 55, 1),
    )  # fmt: skip
    net.apply(*before)
    number, answer = net.open(vip)
    assert answer.server == one
    left = [(40002, vip, 80), (40003, node, NODE_PORT), (40004, vip, 53), (40005, vip, 54)]
    assert [asked(*each) for each in left] == [one, one, two, one]
    assert asked(40006, vip, 55) == SILENCE
    with pytest.raises(ChildProcessError):
        net.node.run(_killed, ServiceList(after, cluster=tuple(CLUSTER.values())))
    assert [asked(*each) for each in left] == [one, one, two, one]
    put(file, *after)
    with watching(net, file) as watch:
        assert watch.expect("stale")["ended"] == 3
        assert [asked(*each) for each in left] == [two, two, two, one]
        assert asked(40006, vip, 55) == two
        assert net.say(number).server == one
        assert watch.end()["applied"] == 0
    with watching(net, file) as watch:
        watch.end()
    assert "stale" not in {event["event"] for event in watch.told}


def test_the_flows_of_very_many_services(net: Net, endpoints: Endpoints, file: Path) -> None:
    """Where there are more ports than the kernel is asked for one by one, all is as well."""
    endpoints.start(4, 0, 1)
    services = [web(4, 1, protocol="udp")._replace(name=f"s{n}", port=n) for n in range(80, 100)]
    net.apply(web(4, 0, protocol="udp"))
    assert by_udp(net, 4, 40002) == pod(4, 0)
    with pytest.raises(ChildProcessError):
        net.node.run(_killed, ServiceList(tuple(services), cluster=tuple(CLUSTER.values())))
    put(file, *services)
    with watching(net, file) as watch:
        assert watch.expect("stale")["ended"] == 1
        assert by_udp(net, 4, 40002) == pod(4, 1)
        watch.end()


# --- the file -----------------------------------------------------------------------------------


@FAMILIES
def test_the_file_is_replaced(net: Net, endpoints: Endpoints, file: Path, family: int) -> None:
    """A file that is renamed into place is taken: chains follow, and UDP flows of who is gone."""
    endpoints.start(family, 0, 1)
    put(file, web(family, 0), web(family, 0, protocol="udp"))
    port = 40002
    with watching(net, file) as watch:
        assert by_udp(net, family, port) == pod(family, 0)
        put(file, web(family, 1), web(family, 1, protocol="udp"))
        watch.until("reloaded")
        applied = watch.expect("applied")
        assert (applied["why"], applied["ended"]) == (["file"], 1)
        assert servers(net, family) == {pod(family, 1): TIMES}
        assert by_udp(net, family, port) == pod(family, 1)
        put(file)
        watch.until("applied")
        assert "NFCTL-" not in net.rules(family)
        watch.end()


def test_a_broken_file(net: Net, endpoints: Endpoints, file: Path) -> None:
    """It is told with its place, and the old list stays; so it is with a file that is gone."""
    endpoints.start(4, 0)
    put(file, web(4, 0))
    with watching(net, file) as watch:
        before = rules(net)
        file.write_text("services: [{name: web, port: 80000}]\n", encoding="utf-8")
        failed = watch.until("reload-failed")
        assert failed["code"] == 2
        assert failed["error"].startswith(f"{file}:1:30: ")
        file.unlink()
        watch.process.send_signal(signal.SIGHUP)
        assert "No such file" in watch.expect("reload-failed")["error"]
        assert rules(net) == before
        assert servers(net, 4) == {pod(4, 0): TIMES}
        put(file, web(4, 1))
        watch.until("reloaded")
        watch.expect("applied")
        watch.end()


# --- others -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "missing"),
    [("-F", True), ("-D PREROUTING 1", True), ("-I NFCTL-SERVICES -j RETURN", False)],
    ids=["flush", "jump", "insert"],
)
def test_what_others_change_is_put_back(
    net: Net, endpoints: Endpoints, file: Path, line: str, missing: bool
) -> None:
    """Whoever flushes the table, or edits it, is named, and what there was is put back."""
    endpoints.start(4, 0)
    put(file, web(4, 0))
    with watching(net, file) as watch:
        before = rules(net)
        argv = ["iptables-legacy-restore", "--noflush"]
        with net.node.popen(argv, stdin=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write(f"*nat\n{line}\nCOMMIT\n")
            process.stdin.flush()  # it is named as long as it is there
            drift = watch.until("drift")
        assert process.returncode == 0
        assert [(who["pid"], who["comm"]) for who in drift["who"]] == [
            (process.pid, "iptables-legacy")  # 15 characters
        ]
        assert any(place["missing" if missing else "extra"] for place in drift["places"])
        assert watch.expect("applied")["why"] == ["drift"]
        assert rules(net) == before
        assert servers(net, 4) == {pod(4, 0): TIMES}
        end = watch.end()
    assert end["applied"] == 2  # its own repair is no drift


def test_what_is_beside_stays(net: Net, endpoints: Endpoints, file: Path) -> None:
    """Rules of others that come while it watches are no drift, and stay."""
    endpoints.start(4, 0)
    put(file, web(4, 0))
    rule = ["-s", "192.0.2.99/32", "-j", "ACCEPT"]
    with watching(net, file) as watch:
        net.node.call(["iptables-legacy", "-t", "nat", "-A", "PREROUTING", *rule])
        net.node.call(["iptables-legacy", "-t", "nat", "-N", "OTHER"])
        put(file, web(4, 0, 1))
        watch.until("applied", why=["file"])
        net.node.call(["iptables-legacy", "-t", "nat", "-F", "NFCTL-SERVICES"])
        drift = watch.until("drift")
        assert [place["chain"] for place in drift["places"]] == ["NFCTL-SERVICES"]
        watch.until("applied", why=["drift"])
        watch.end()
    assert f"-A PREROUTING {' '.join(rule)}\n" in rules(net)
    assert ":OTHER - [0:0]\n" in rules(net)


def test_what_nfctl_makes_of_the_list(net: Net, endpoints: Endpoints, file: Path) -> None:
    """An endpoint that is set or drained by hand stays that; SIGHUP takes the file, but drains."""
    endpoints.start(4, 0, 1, 2)
    put(file, web(4, 0, 1))
    with watching(net, file) as watch:
        watch.until("applied", why=["start"])
        nfctl(net, "service", "set-endpoints", "web", "--add", f"{pod(4, 2)}:{SERVED}")
        assert watch.until("taken")["text"] == [f"* web (tcp): + {pod(4, 2)}:{SERVED}"]
        assert servers(net, 4).keys() == {pod(4, number) for number in (0, 1, 2)}
        nfctl(net, "service", "drain", "web", f"{pod(4, 0)}:{SERVED}", "--no-wait")
        watch.until("taken")
        assert servers(net, 4).keys() == {pod(4, 1), pod(4, 2)}
        watch.process.send_signal(signal.SIGHUP)
        watch.until("applied", why=["file"])
        assert servers(net, 4).keys() == {pod(4, 1)}
        nfctl(net, "service", "drain", "web", f"{pod(4, 0)}:{SERVED}", "--undo")
        watch.until("taken")
        assert servers(net, 4).keys() == {pod(4, 0), pod(4, 1)}
        nfctl(net, "rollback", "1")
        assert watch.until("taken")["services"] == 0
        assert "NFCTL-" not in net.rules(4)
        watch.end()


def test_who_would_be_cut_off(net: Net, file: Path) -> None:
    """A list that takes the operator's SSH is refused; what the hint says does it all the same."""
    put(file, web(4, 0))
    ssh = f"{client(4)} 40000 {NODE[4]} 22"
    cut = Service("ssh", 22, "tcp", (), (NODE[4],), endpoints=(endpoint(4, 0),))
    with watching(net, file, SSH_CONNECTION=ssh) as watch:
        put(file, web(4, 0), cut)
        failed = watch.until("reload-failed")
        assert failed["code"] == 1
        said = failed["error"]
        assert "this would cut off tcp" in said
        assert f"-d {NODE[4]}/32" not in net.rules(4)
        words = re.findall(r"nfctl (service apply \S+ --force) ", said)[0].split()
        nfctl(net, *words, SSH_CONNECTION=ssh)
        assert watch.until("taken")["services"] == 2
        assert f"-d {NODE[4]}/32" in net.rules(4)
        watch.process.send_signal(signal.SIGHUP)
        watch.until("reloaded")
        watch.end()
    assert [event["event"] for event in watch.told].count("reload-failed") == 1
    assert f"-d {NODE[4]}/32" in net.rules(4)


def test_one_watch_alone(net: Net, file: Path) -> None:
    """A second watch over the same services ends with 4, and says which process is the first."""
    put(file, web(4, 0))
    with watching(net, file) as watch:
        argv = ["env", f"NFCTL_STATE_DIR={STATE}", *NFCTL, "service", "watch", str(file)]
        with net.node.popen(argv, stderr=subprocess.PIPE, text=True) as second:
            _, errors = second.communicate(timeout=AWAITED)
        assert second.returncode == 4
        assert f"(process {watch.process.pid})" in errors
        watch.end()


# --- its end ------------------------------------------------------------------------------------


def test_its_life_as_a_service(net: Net, endpoints: Endpoints, file: Path) -> None:
    """The manager hears READY, RELOADING and STOPPING; at SIGTERM all chains stay, exit code 0."""
    endpoints.start(4, 0)
    put(file, web(4, 0))
    with watching(net, file, *CHECK) as watch:
        watch.until("health")
        before = rules(net)
        watch.process.send_signal(signal.SIGHUP)
        assert int(watch.heard("RELOADING")["MONOTONIC_USEC"]) > 0
        assert watch.heard("READY")["STATUS"] == "1 services, 1 endpoints"
        end = watch.end()
        assert watch.heard("STOPPING")["STATUS"] == "ended by SIGTERM"
    assert (end["ended_by"], end["applied"]) == ("SIGTERM", 1)
    assert rules(net) == before
    assert servers(net, 4) == {pod(4, 0): TIMES}


def _open_files(pid: int) -> Counter[str]:
    """Return what a process has open at this moment."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it goes on meanwhile
            found[re.sub(r":\[\d+\]$", "", str(link.readlink()))] += 1
    return found


def test_nothing_is_left_open(net: Net, file: Path) -> None:
    """Forty applies and their checks leave no descriptor behind."""
    put(file, web(4, 0, 1))
    slow = ("--check-health", "tcp", "--check-interval", "3600", "--check-timeout", "0.1")
    with watching(net, file, *slow) as watch:
        before = _open_files(watch.process.pid)
        for number in range(40):
            put(file, web(4, 0, 1 + number % 2))
            watch.process.send_signal(signal.SIGHUP)
            watch.until("reloaded")
            if number:
                watch.until("applied", why=["file"])
        # What it has open for a check, a look at the record, or an apply is closed before long;
        # what was forgotten never is.
        until = time.monotonic() + AWAITED
        while (left := _open_files(watch.process.pid) - before) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left
        watch.end()


def test_in_a_namespace_with_a_name(netns: Namespace, file: Path, tmp_path: Path) -> None:
    """--netns keeps another namespace, checks there and notices there; ours stays as it is."""
    if netns.run(["ip", "netns", "add", "other"]).returncode:
        pytest.skip("needs ip netns add")
    inside = ["ip", "netns", "exec", "other"]
    netns.run([*inside, "ip", "link", "set", "lo", "up"])
    one = Endpoint("127.0.0.1", 8080, local=True)
    put(file, Service("web", 80, "tcp", ("10.96.0.10",), endpoints=(one,)))
    serve = """
import socket
with socket.create_server(("127.0.0.1", 8080)) as server:
    while True:
        server.accept()[0].close()
"""
    options = ("--netns", "other", "--json", *CHECK)
    argv = ["env", f"NFCTL_STATE_DIR={tmp_path / 'state'}", *NFCTL, "service", "watch", str(file)]
    pipe = subprocess.PIPE
    with (
        netns.popen([*argv, *options], stdout=pipe, stderr=pipe) as process,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        try:
            watch = Watch(process, manager)  # type: ignore[arg-type]
            watch.until("unserved")
            with netns.popen([*inside, sys.executable, "-c", serve]) as server:
                try:
                    watch.until("served")
                finally:
                    server.kill()
            watch.until("unserved")
            netns.run([*inside, "iptables-legacy", "-t", "nat", "-F"])
            watch.until("drift")
            watch.until("applied", why=["drift"])
            watch.end()
        finally:
            process.kill()
    assert netns.save() == ""
    assert "NFCTL-SERVICES" in netns.run([*inside, "iptables-legacy-save"]).stdout


def test_without_root(net: Net, file: Path) -> None:
    """It says what is missing, and ends with 3."""
    put(file, web(4, 0))
    argv = ["unshare", "--user", "env", f"NFCTL_STATE_DIR={STATE}", *NFCTL, "service", "watch"]
    with net.node.popen([*argv, str(file)], stderr=subprocess.PIPE, text=True) as process:
        _, errors = process.communicate(timeout=AWAITED)
    assert process.returncode == 3, errors
    assert "nfctl: error: " in errors
