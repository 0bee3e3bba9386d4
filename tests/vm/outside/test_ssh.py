"""Administering the VM by ssh."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.outside.conftest import Guest

OPEN = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
"""
# Who is in stays in; nobody comes in anew.
CLOSED = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -i eth0 -m conntrack --ctstate ESTABLISHED -j ACCEPT
COMMIT
"""
KEEPING = CLOSED.replace("COMMIT", "-A INPUT -i eth0 -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT")
BOOT_ID = "/proc/sys/kernel/random/boot_id"
WAY_BACK = 40  # seconds until the machine opens itself again, should a test not do so


@pytest.fixture
def opened(guest: Guest) -> Iterator[None]:
    """Leave the machine open, whatever a test does to it."""
    yield
    guest.wait(f"echo '{OPEN}' | sudo nfctl restore && echo open", "open", WAY_BACK + 20)


def test_it_answers(guest: Guest) -> None:
    """The command line runs in the guest, on a kernel of its own."""
    said = guest.call("nfctl --version; systemd-detect-virt --vm; cat " + BOOT_ID).splitlines()
    assert said[0].startswith("nfctl ")
    assert said[1] != "none"
    assert said[2] != Path(BOOT_ID).read_text().strip()


def test_exit_codes_come_through(guest: Guest) -> None:
    """Success, no, bad input and not permitted are told apart through ssh and sudo."""
    rule = "INPUT -p udp -m udp --dport 9 -j DROP"
    assert guest.run(f"sudo nfctl rule check {rule}").returncode == 1
    assert guest.run("sudo nfctl rule add INPUT -p udp --dport nonsense -j DROP").returncode == 2
    denied = guest.run(f"nfctl rule add {rule}")
    assert (denied.returncode, "Traceback" in denied.stderr) == (3, False)
    assert guest.run(f"sudo nfctl rule add {rule}").returncode == 0
    assert guest.run(f"sudo nfctl rule delete {rule}").returncode == 0


def test_a_change_of_one_session_is_seen_by_another(guest: Guest) -> None:
    """A rule added in one session is in the kernel, and gone when another deletes it."""
    rule = "INPUT -i eth3 -p tcp -m tcp --dport 9 -j DROP"
    guest.call(f"sudo nfctl rule add {rule}")
    seen = guest.call("sudo iptables-legacy-save -t filter; sudo nfctl rule list -S INPUT")
    assert seen.count(rule) == 2
    left = guest.call(f"sudo nfctl rule delete {rule}; sudo iptables-legacy-save -t filter")
    assert rule not in left


@pytest.mark.usefixtures("opened")
def test_a_session_stays_through_a_restore(guest: Guest) -> None:
    """A session goes on when another restores rules that keep it, again and again."""
    with guest.popen("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin
        assert session.stdout
        loop = "for n in 1 2 3 4; do nfctl restore keeping; nfctl restore open; done"
        files = f"cat >keeping <<'E'\n{KEEPING}E\ncat >open <<'E'\n{OPEN}E"
        with guest.popen(f"cd $(mktemp -d) && {files}\nsudo sh -ec '{loop}' && echo done",
                         stdout=subprocess.PIPE) as other:  # fmt: skip
            number = 0
            while other.poll() is None:
                number += 1
                session.stdin.write(f"still here {number}\n")
                session.stdin.flush()
                assert session.stdout.readline() == f"still here {number}\n"
            assert other.stdout
            assert other.stdout.read() == "done\n"
        assert number > 8
        session.stdin.close()
        assert session.wait() == 0


@pytest.mark.usefixtures("opened")
def test_a_session_stays_where_no_new_one_comes_in(guest: Guest) -> None:
    """Rules that accept only what is established keep the session that restores them."""
    with guest.popen("sudo bash", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:

        def ask(command: str) -> str:
            assert session.stdin
            assert session.stdout
            session.stdin.write(command)
            session.stdin.flush()
            return session.stdout.readline().strip()

        way_back = f"sleep {WAY_BACK}; iptables-legacy -P INPUT ACCEPT"
        assert ask(f"setsid sh -c '{way_back}' >/dev/null 2>&1 </dev/null & echo soon\n") == "soon"
        assert ask(f"nfctl restore <<'E'; echo $?\n{CLOSED}E\n") == "0"
        assert guest.run("true", timeout=20.0).returncode == 255
        assert ask("echo still in\n") == "still in"
        assert ask(f"nfctl restore <<'E'; echo $?\n{OPEN}E\n") == "0"
        assert guest.call("echo in again") == "in again\n"
        assert session.stdin
        session.stdin.close()


def test_the_demo_succeeds(guest: Guest) -> None:
    """The demo runs in the guest, all as expected, and leaves no namespace."""
    done = guest.run("sudo nfctl demo", timeout=120.0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All as expected." in done.stdout
    assert guest.call("sudo ip netns list") == ""
