"""What the README shows of changing a live firewall is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.conftest import NFCTL

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

README = Path(__file__).parents[2] / "README.md"
# What the README says is there: fail2ban, telnet; and a way to the address of its --guard.
HOST = """\
ip netns add try
ip -n try link set lo up
ip -n try link add eth0 type veth peer name peer
ip -n try link set eth0 up
ip -n try link set peer up
ip -n try address add 192.0.2.1/24 dev eth0
ip -n try route add default via 192.0.2.2
ip netns exec try iptables-legacy-restore <<EOF
*filter
:f2b-sshd - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j f2b-sshd
-A INPUT -p tcp -m tcp --dport 23 -j ACCEPT
-A f2b-sshd -j RETURN
COMMIT
EOF
"""
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")


def section() -> str:
    """Return the README's text about policies."""
    return README.read_text().partition("\n## Changing a live firewall\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    """Return the blocks of the section in a language."""
    return re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)


def test_the_policy_and_the_commands(netns: Namespace, tmp_path: Path) -> None:
    """Each command of the section prints what stands below it, dates and the user apart."""
    [policy] = blocks("yaml")
    host = tmp_path / "host.yaml"
    host.write_text(policy)
    assert netns.run(["sh", "-ec", HOST]).returncode == 0
    state = tmp_path / "state"
    before = (
        f'export NFCTL_STATE_DIR={state}; cd {tmp_path}; nfctl() {{ {" ".join(NFCTL)} "$@"; }}\n'
    )

    def run(command: str) -> str:
        return netns.run(["sh", "-c", f"{before}{command} 2>&1"]).stdout

    first, second = blocks("console")
    for block in (first, second):
        if block is second:  # "Without its last rule"
            host.write_text(policy.rstrip("\n").rpartition("\n")[0] + "\n")
        for step in block.split("# nfctl ")[1:]:
            command, _, expected = step.partition("\n")
            printed = run(f"nfctl {command}")
            if command.startswith("history"):
                entries = json.loads(run("nfctl history --netns try --json"))["entries"]
                who = entries[0]["who"]
                name = who["login"] or who["sudo_user"] or who["user"]
                printed = re.sub(rf" +{re.escape(name)} +", " root ", printed)
                printed, expected = (re.sub(" +", " ", text) for text in (printed, expected))
            assert DATE.sub("DATE", printed) == DATE.sub("DATE", expected), command


def test_the_commands_of_the_text(netns: Namespace, tmp_path: Path) -> None:
    """The options that the text names are there, and -4 alone leaves IPv6 as it is."""
    helps = {
        "apply": ("--flush-flows", "--exclusive", "--guard"),
        "watch": ("--repair",),
        "persist enable": ("--fail",),
        "policy": ("new", "from-live"),
    }
    text = section()
    for command, words in helps.items():
        shown = netns.nfctl(*command.split(), "--help").stdout
        assert all(word in shown and word in text for word in words), command
    assert netns.legacy("-P", "INPUT", "DROP", family=6).returncode == 0
    rules = tmp_path / "rules.v4"
    rules.write_text("*filter\n:INPUT DROP\nCOMMIT\n")
    assert netns.nfctl("apply", "-4", str(rules)).returncode == 0
    assert "-P INPUT DROP\n" in netns.legacy("-S", family=4).stdout
    assert netns.legacy("-S", family=6).stdout.startswith("-P INPUT DROP\n")
