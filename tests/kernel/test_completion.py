"""Shell completion: what bash is told when somebody presses the tabulator key."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from nfctl.kernel.extensions import installed
from tests.kernel import play
from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

TABLES = ["raw", "mangle", "nat", "filter", "security"]
FILTER = ["INPUT", "FORWARD", "OUTPUT"]
NAT = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
VERDICTS = ["ACCEPT", "DROP", "QUEUE", "RETURN"]
LIVE = play.EMPTY.replace("COMMIT", ":WEB - [0:0]\n:web-old - [0:0]\nCOMMIT")


def beginning(start: str) -> list[str]:
    return [name for name in installed(4) if name.startswith(start)]


def asked(line: str) -> dict[str, str]:
    """Return what bash's function puts into the environment when the line ends at the cursor."""
    word = len(line.split()) - (line[-1] != " ")
    return {"_NFCTL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)}


def complete(line: str) -> list[str]:
    """Return what bash is offered at the end of a line; for a forked child."""
    said = play.nfctl([], **asked(line))
    assert said.err == ""
    return said.out.split()


def with_live_chains(lines: list[str]) -> list[list[str]]:
    """Complete lines where there are user-defined chains in IPv4 filter and nat and IPv6 raw."""
    play.load(LIVE)
    play.load("*nat\n:NATTY - [0:0]\nCOMMIT\n")
    play.load("*raw\n:SIX - [0:0]\nCOMMIT\n", 6)
    return [complete(line) for line in lines]


OFFERS = {
    "nfctl r": ["rule", "restore", "rollback"],
    "nfctl rule ": ["list", "add", "insert", "replace", "delete", "check"],
    "nfctl chain re": ["rename"],
    # tables
    "nfctl rule list -t ": TABLES,
    "nfctl rule add --table s": ["security"],
    "nfctl chain create -t m": ["mangle"],
    "nfctl save -t n": ["nat"],
    "nfctl restore -t ": TABLES,
    # chains
    "nfctl rule list ": [*FILTER, "WEB", "web-old"],
    "nfctl rule list W": ["WEB"],
    "nfctl rule add -t nat ": [*NAT, "NATTY"],
    "nfctl rule insert --table nat N": ["NATTY"],
    "nfctl rule delete -6 ": FILTER,
    "nfctl rule check -6 -t raw ": ["PREROUTING", "OUTPUT", "SIX"],
    "nfctl rule replace -t mangle P": ["PREROUTING", "POSTROUTING"],
    "nfctl chain flush O": ["OUTPUT"],
    "nfctl chain zero ": [*FILTER, "WEB", "web-old"],
    "nfctl chain delete ": ["WEB", "web-old"],
    "nfctl chain rename -t nat ": ["NATTY"],
    "nfctl chain policy ": [*FILTER, "WEB", "web-old"],
    "nfctl chain policy INPUT ": ["ACCEPT", "DROP"],
    # in a rule
    "nfctl rule add INPUT -p u": ["udp", "udplite"],
    "nfctl rule add INPUT -j W": ["WEB"],
    "nfctl rule add INPUT -s 10.0.0.1 -j A": ["ACCEPT", *beginning("A")],
    "nfctl rule add INPUT -g ": ["WEB", "web-old"],
    "nfctl rule insert INPUT 3 --jump RET": ["RETURN"],
    "nfctl rule replace -t nat OUTPUT 1 -j MASQ": ["MASQUERADE"],
    "nfctl rule delete -t nat OUTPUT -j NAT": ["NATTY"],
    "nfctl rule add INPUT -m conn": beginning("conn"),
    "nfctl rule check -6 INPUT -m fra": ["frag"],
    "nfctl rule add INPUT -p tcp --dp": ["--dport"],
    "nfctl rule add INPUT -m limit --limit": ["--limit", "--limit-burst"],
    "nfctl rule add INPUT -j REJECT --rej": ["--reject-with"],
    "nfctl rule add INPUT --tab": [],
    "nfctl rule add --tab": ["--table"],
    "nfctl rule add INPUT -m nosuch --x": [],
}


def test_what_is_offered(netns: Namespace) -> None:
    """Tables after -t, chains of that table and family, extensions, options, live chains too."""
    found = netns.python(with_live_chains, list(OFFERS))
    for (line, expected), offered in zip(OFFERS.items(), found, strict=True):
        assert offered == expected, line


@pytest.mark.parametrize("family", [4, 6])
def test_extensions_after_m_and_j(netns: Namespace, family: int) -> None:
    """After -m every match installed for the family is offered, after -j every target."""
    matches, targets = netns.python(
        with_live_chains, [f"nfctl rule add -{family} INPUT {option} " for option in ("-m", "-j")]
    )
    own = ["icmp", "ttl"] if family == 4 else ["icmp6", "frag", "rt"]
    assert {"tcp", "conntrack", "limit", "comment", *own} <= set(matches)
    assert not [name for name in matches if name.isupper()]
    chains = ["WEB", "web-old"] if family == 4 else []
    assert targets[: len(chains) + 4] == [*chains, *VERDICTS]
    assert {"LOG", "REJECT", "DNAT", "MASQUERADE"} <= set(targets)
    done = netns.legacy("-p", "tcp", "-m", "tcp", "-h", family=family)
    assert done.returncode == 0


def test_interfaces_after_i(netns: Namespace) -> None:
    """After -i and -o the interfaces of the namespace are offered, and of no other."""
    made = netns.run("ip link add nfctl0 type veth peer name nfctl1".split())
    assert made.returncode == 0, made.stderr

    def offers() -> list[list[str]]:
        lines = ["INPUT -i ", "FORWARD -p tcp -o nfc", "INPUT --in-interface l"]
        return [complete(f"nfctl rule add {line}") for line in lines]

    assert netns.python(offers) == [
        ["lo", "nfctl0", "nfctl1"],
        ["nfctl0", "nfctl1"],
        ["lo"],
    ]
    assert "nfctl0" not in [name for _, name in socket.if_nameindex()]


def test_namespaces_and_what_is_in_them(netns: Namespace) -> None:
    """After --netns the names of ip netns are offered, and then that namespace's chains."""
    name = f"nfctl-test-{os.getpid()}-green"
    assert netns.run(["ip", "netns", "add", name]).returncode == 0
    try:
        assert netns.nfctl("chain", "create", "--netns", name, "THERE").returncode == 0

        def offers() -> list[list[str]]:
            lines = ["--netns nfctl-test", f"--netns {name} TH", f"--netns {name} INPUT -i "]
            return [complete(f"nfctl rule add {line}") for line in lines]

        assert netns.python(offers) == [[name], ["THERE"], ["lo"]]
    finally:
        netns.run(["ip", "netns", "del", name])


def test_looking_brings_no_table_to_life(netns: Namespace) -> None:
    """Completing chains of a table that is not in use offers the built-in ones, and leaves it."""

    def offers() -> list[list[str]]:
        return [complete("nfctl rule list "), complete("nfctl rule add -t nat PRE")]

    assert netns.python(offers) == [FILTER, ["PREROUTING"]]
    assert netns.run(["cat", "/proc/net/ip_tables_names"]).stdout == ""


def test_without_privileges(netns: Namespace) -> None:
    """Who may not look at the tables is still offered the built-in chains, and no error."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    netns.python(play.load, LIVE)
    settings = [f"{name}={value}" for name, value in asked("nfctl rule list ").items()]
    done = netns.run([*drop, "env", *settings, *NFCTL])
    assert (done.stdout.split(), done.stderr) == (FILTER, "")


def test_a_new_process_and_the_script_for_bash(netns: Namespace) -> None:
    """The protocol works with a process of its own, which is what the script for bash starts."""
    settings = [f"{name}={value}" for name, value in asked("nfctl rule list -t f").items()]
    done = netns.run(["env", *settings, *NFCTL])
    assert (done.returncode, done.stdout, done.stderr) == (0, "filter\n", "")
    source = netns.run(["env", "_NFCTL_COMPLETE=source_bash", *NFCTL])
    assert "_NFCTL_COMPLETE=complete_bash" in source.stdout
    assert netns.run(["bash", "-n"], source.stdout).returncode == 0
