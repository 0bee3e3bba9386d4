"""``nfctl demo``: it tells the truth, in time, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.lab import Host, Lab, explain, namespaces
from nfctl.lab.demo import firewall, run
from nfctl.lab.demo.probes import PROBES
from nfctl.traversal import Way
from tests.kernel.conftest import SLOWNESS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
]

needs_oracle = pytest.mark.skipif(
    shutil.which("iptables-legacy-save") is None, reason="needs iptables-legacy, to look at rules"
)

DEMO = [sys.executable, "-m", "nfctl", "demo"]

SENTINEL = """\
*raw
-A PREROUTING -s 203.0.113.0/24 -j DROP
COMMIT
*filter
:INPUT ACCEPT [5:500]
[7:700] -A INPUT -p tcp --dport 22 -j ACCEPT
COMMIT
"""


def finish(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Run the demo once on this machine and return what it printed."""
    started = time.monotonic()
    done = finish([*DEMO, "--json"])
    assert (done.returncode, done.stderr) == (0, "")
    loaded: dict[str, Any] = json.loads(done.stdout)
    loaded["wall"] = time.monotonic() - started
    return loaded


@pytest.fixture
def machine() -> Iterator[Host]:
    """Make a machine of its own for a demo: a lab's host, with rules that must stay."""
    with Lab("machine") as lab:
        host = lab.host("host")
        host.run(restore, "iptables-legacy-restore", SENTINEL)
        host.run(
            restore, "ip6tables-legacy-restore", SENTINEL.replace("203.0.113.0/24", "fd00::/8")
        )
        yield host


def restore(tool: str, text: str) -> None:
    subprocess.run([tool, "-c"], input=text, text=True, check=True)


def state(machine: Host) -> list[str]:
    """Return what a demo must not change: rules, counters, links and namespaces."""
    saved = [
        line
        for tool in ("iptables-legacy-save", "ip6tables-legacy-save")
        for line in machine.call([tool, "-c"]).splitlines()
        if not line.startswith("#")
    ]
    links = [name for _, name in machine.run(socket.if_nameindex)]
    made = machine.directory
    names = [str(path) for room in ("netns", "nfctl/labs") for path in (made / room).glob("*")]
    return [*saved, *links, *names]


def of(document: dict[str, Any], title: str, family: int = 4) -> dict[str, Any]:
    """Return the probe with a title."""
    found = [one for one in document["probes"] if (one["title"], one["family"]) == (title, family)]
    assert len(found) == 1
    probe: dict[str, Any] = found[0]
    return probe


def test_it_is_done_in_time(document: dict[str, Any]) -> None:
    """The whole demo, with the start of Python, takes less than ten seconds."""
    assert document["ok"] is True
    assert document["seconds"] < document["wall"] < 10 * SLOWNESS


def test_every_probe_came_as_expected(document: dict[str, Any]) -> None:
    """Each probe was sent, and its outcome and the chain that decided are the expected ones."""
    security = "security" in document["rules"]["ipv4"]
    wanted = [
        (probe.title, probe.family, probe.expected.value, probe.decided_by)
        for probe in PROBES
        if (security or not probe.table) and (probe.family == 4 or "ipv6" in document["rules"])
    ]
    found = [
        (
            probe["title"],
            probe["family"],
            probe["outcome"],
            f"{probe['decided_by']['table']}:{probe['decided_by']['chain']}",
        )
        for probe in document["probes"]
    ]
    assert found == wanted
    assert not any(probe["problems"] for probe in document["probes"])


def test_tables_are_all_in_use(document: dict[str, Any]) -> None:
    """Rules are in raw, mangle, nat and filter for both families, and their number is right."""
    for family, text in (("ipv4", firewall.IPV4), ("ipv6", firewall.IPV6)):
        counts = document["rules"][family]
        assert {"raw", "mangle", "nat", "filter"} <= counts.keys()
        plain = sum(
            number for table, number in counts.items() if table not in {"security", "total"}
        )
        assert plain == sum(line.startswith("-A") for line in text.splitlines())


def test_the_rule_is_named(document: dict[str, Any]) -> None:
    """The rule whose counter moved is told with table, path, number, text and packets."""
    assert of(document, "ssh")["decided_by"] == {
        "table": "filter",
        "chain": "SSH",
        "path": ["FORWARD", "OUTSIDE", "SSH"],
        "rule": 2,
        "text": "-j ACCEPT",
        "target": "ACCEPT",
        "packets": 1,
    }
    assert of(document, "web without a rule")["decided_by"]["text"] == "policy DROP"
    assert of(document, "dns, forged source")["decided_by"]["table"] == "raw"
    back = [step for step in of(document, "ssh for a visitor")["steps"] if step["chain"] == "SSH"]
    assert [(step["target"], step["rule"]) for step in back] == [("RETURN", 1)]
    marked = [step["target"] for step in of(document, "telnet, marked")["steps"]]
    assert "MARK" in marked


@pytest.mark.parametrize(("family", "router"), [(4, "192.0.2.1"), (6, "2001:db8:1::1")])
def test_translations_are_seen(document: dict[str, Any], family: int, router: str) -> None:
    """The port forward arrives at the server, the masqueraded source is the router's."""
    forward = of(document, "port forward", family)
    assert forward["arrived"] == "server:80"
    assert [step["target"] for step in forward["translated_by"]] == ["DNAT"]
    masquerade = of(document, "masquerade", family)
    assert masquerade["seen_as"] == router
    assert [step["target"] for step in masquerade["translated_by"]] == ["MASQUERADE"]


def test_refusals_are_told_apart(document: dict[str, Any]) -> None:
    """A reset, an ICMP error with its sender, and silence are three different outcomes."""
    assert of(document, "telnet, marked")["reason"] == "tcp-reset"
    mail = of(document, "mail")
    assert (mail["reason"], mail["rejected_by"]) == ("icmp-admin-prohibited", "192.0.2.1")
    assert of(document, "ssh to the router")["reason"] is None
    assert of(document, "dns", 6)["reason"] == "icmp6-adm-prohibited"


@needs_oracle
def test_the_machine_is_not_touched(machine: Host) -> None:
    """Rules, counters, links and namespaces of the machine are the same after the demo."""
    before = state(machine)
    assert any("[7:700]" in line for line in before)
    out = machine.call(DEMO, timeout=60)
    assert "All as expected." in out
    assert state(machine) == before


@needs_oracle
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", ["ssh", "dns, forged source", "IPv6", "masquerade"])
def test_a_signal_leaves_nothing(machine: Host, number: signal.Signals, line: str) -> None:
    """Ctrl-C or SIGTERM in the middle ends it without a traceback and without a trace."""
    before = state(machine)
    process = machine.popen(
        DEMO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    while line not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number)  # the whole group gets it, as from a terminal
    _, complaint = process.communicate(timeout=20)
    assert process.returncode not in {0, 3}
    assert "Traceback" not in complaint
    assert state(machine) == before
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_without_privileges() -> None:
    """Without capabilities it exits 3, says what is needed, and prints nothing else."""
    drop = shutil.which("setpriv")
    if drop is None:
        pytest.skip("needs setpriv (util-linux), to drop capabilities")
    done = finish([drop, "--bounding-set=-all", "--inh-caps=-all", *DEMO])
    assert (done.returncode, done.stdout) == (3, "")
    assert "CAP_NET_ADMIN" in done.stderr
    assert "hint: run it as root" in done.stderr


def test_a_hole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rule missing the demo says what got through, where, and is not ok."""
    hole = firewall.IPV4.replace("-A PREROUTING -s 10.77.0.0/24 -i wan0 -j DROP\n", "")
    monkeypatch.setattr(firewall, "IPV4", hole)
    report = run()
    assert not report.ok
    wrong = [outcome for outcome in report.outcomes if outcome.problems]
    assert [outcome.probe.title for outcome in wrong] == ["dns, forged source"]
    assert wrong[0].problems == [
        "it arrived at server:53, from 10.77.0.66",
        "expected raw:PREROUTING to decide, but filter:OUTSIDE did",
    ]
    assert namespaces.names(f"nfctl-{report.lab}-") == []


def test_a_hole_is_exit_code_one() -> None:
    """The command line says UNEXPECTED and exits 1 when a probe came otherwise."""
    code = """
        import sys
        from nfctl.lab.demo import firewall
        firewall.IPV4 = firewall.IPV4.replace("--dport 53 -j ACCEPT", "--dport 53 -j DROP")
        sys.argv = ["nfctl", "demo"]
        from nfctl.cli import main
        main()
    """
    script = "\n".join(line.strip() for line in code.splitlines())
    done = finish([sys.executable, "-c", script])
    assert done.returncode == 1
    assert "UNEXPECTED: expected accepted, got dropped" in done.stdout
    assert "1 of them not as expected." in done.stdout


def test_a_refusal_ends_the_story() -> None:
    """What counts behind a refusal is not the packet's: a RST that REJECT sends meets nat too."""
    rules = {
        "filter": ("FORWARD", "DROP", ["-p tcp -j REJECT --reject-with tcp-reset"]),
        "nat": ("POSTROUTING", "ACCEPT", ["-o wan0 -j MASQUERADE"]),
    }

    def counted(packets: int) -> explain.Snapshot:
        chains = {
            table: {
                chain: explain.ChainCount(None, 0, ())
                for chain in ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
            }
            for table in rules
        }
        for table, (chain, policy, texts) in rules.items():
            counts = tuple(explain.RuleCount(text, packets) for text in texts)
            chains[table][chain] = explain.ChainCount(policy, 0, counts)
        return chains

    steps = explain.explain(counted(0), counted(1), Way.FORWARDED)
    assert [(step.place, step.target) for step in steps] == [("filter:FORWARD", "REJECT")]
