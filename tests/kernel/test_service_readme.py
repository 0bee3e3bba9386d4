"""What the README shows of virtual services is what happens."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kernel.conftest import NFCTL, PATIENCE

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

README = Path(__file__).parents[2] / "README.md"
# A router, as the README's reader has one: what forwards says nothing of forwarding.
HOST = """\
ip link set lo up
ip link add eth0 type veth peer name peer
ip link set eth0 up
ip link set peer up
ip address add 10.0.0.1/24 dev eth0
ip -6 address add fd00::1/64 dev eth0 nodad
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
"""


def section() -> str:
    """Return the README's text about services."""
    return README.read_text().partition("\n## Virtual services\n")[2].partition("\n## ")[0]


def blocks(language: str) -> list[str]:
    """Return the blocks of the section in a language."""
    return re.findall(rf"```{language}\n(.*?)```", section(), re.DOTALL)


class Reader:
    """Who has the list of the README in a file, and types its commands."""

    def __init__(self, netns: Namespace, directory: Path) -> None:
        [listed] = blocks("yaml")
        (directory / "services.yaml").write_text(listed)
        self._netns = netns
        self._before = (
            f"export NFCTL_STATE_DIR={directory / 'state'}; cd {directory}; "
            f'nfctl() {{ {" ".join(NFCTL)} "$@"; }}\n'
        )
        done = netns.run(["sh", "-ec", HOST])
        assert done.returncode == 0, done.stderr

    def types(self, command: str) -> str:
        """Return what a command prints."""
        return self._netns.run(["sh", "-c", f"{self._before}{command} 2>&1"]).stdout

    def watches(self, command: str) -> str:
        """Return what a command prints that goes on until it is interrupted: its first line."""
        script = f"{self._before}{command} 2>&1".replace("nfctl() {", "nfctl() { exec")
        process = self._netns.popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, _ = process.communicate(timeout=PATIENCE)
        return line


@pytest.fixture
def reader(netns: Namespace, tmp_path: Path) -> Reader:
    return Reader(netns, tmp_path)


def test_the_list_and_the_commands(reader: Reader) -> None:
    """Each command of the section prints what stands below it, to the letter."""
    [console] = blocks("console")
    steps = console.split("# nfctl ")[1:]
    assert len(steps) >= 4
    for step in steps:
        command, _, expected = step.partition("\n")
        assert reader.types(f"nfctl {command}") == expected, command


def test_the_commands_of_the_text(reader: Reader) -> None:
    """What the text names can be typed: a drain, a watch that checks, graphs, the page of keys."""
    reader.types("nfctl service apply services.yaml")
    words = re.findall(r"`(nfctl [a-z][^`]*|[^`]*pydoc [^`]*)`", section().replace("\n  ", " "))
    assert {"nfctl kube show", "nfctl graph"} < set(words)
    said = {
        word: reader.watches(word) if " watch " in word else reader.types(_ours(word))
        for word in words
    }
    [watched] = (text for word, text in said.items() if " watch " in word)
    assert "keeping 2 services" in watched
    drained = next(text for word, text in said.items() if "service drain" in word)
    assert drained.endswith("drained: 10.0.0.5:8080\n")
    assert "10.96.0.10:80 +1" in said["nfctl kube show"]
    assert "NFCTL-SERVICES" in said["nfctl graph"]
    (keys,) = (text for word, text in said.items() if "pydoc" in word)
    assert "source-ranges" in keys
    for option in ("--dot", "--mermaid", "--svg"):
        assert option in section()
        assert option in reader.types("nfctl graph --help")
    assert "--end-tcp" in reader.types("nfctl service set-endpoints --help")


def _ours(word: str) -> str:
    """Return a command with our Python in the place of the installed one."""
    return re.sub(r"^\S*/bin/python", NFCTL[0], word)
