"""The flows of a guard: how they are written and where the operator's is found; quiet rules."""

from __future__ import annotations

import pytest

from nfctl.control import guard, rehearsal
from nfctl.control.guard import Flow
from nfctl.control.rehearsal import sets as rehearsal_sets
from nfctl.errors import BadInput
from nfctl.policy.wanted import WantedSet

TCP4 = Flow("tcp", "192.0.2.7", 0, "203.0.113.1", 22)


@pytest.mark.parametrize(
    ("text", "flow"),
    [
        ("tcp 192.0.2.7 > 203.0.113.1:22", TCP4),
        ("192.0.2.7>203.0.113.1:22", TCP4),
        ("  TCP  192.0.2.7 -> 203.0.113.1:ssh ", TCP4),
        ("192.0.2.7 to 203.0.113.1:22", TCP4),
        ("192.0.2.7 203.0.113.1:22", TCP4),
        ("udp 192.0.2.7:53 > 203.0.113.1:53", Flow("udp", "192.0.2.7", 53, "203.0.113.1", 53)),
        (
            "[2001:DB8::0007]:50000 > [2001:db8::1]:22",
            Flow("tcp", "2001:db8::7", 50000, "2001:db8::1", 22),
        ),
        ("2001:db8::7 > [2001:db8::1]:22", Flow("tcp", "2001:db8::7", 0, "2001:db8::1", 22)),
        (
            "sctp [fe80::7%eth0] > [fe80::1]:22",
            Flow("sctp", "fe80::7", 0, "fe80::1", 22, interface="eth0"),
        ),
        ("::ffff:192.0.2.7 > 203.0.113.1:22", TCP4),
    ],
)
def test_a_flow_is_read(text: str, flow: Flow) -> None:
    """A flow is read as the option's help says, with any arrow; addresses take their usual form."""
    assert Flow.parse(text) == flow


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no flow"),
        ("tcp", "is no flow"),
        ("192.0.2.7 > ", "is no flow"),
        ("icmp 192.0.2.7 > 203.0.113.1:22", "is no flow"),
        ("a b c d", "is no flow"),
        ("192.0.2.7 > 203.0.113.1", "says no port"),
        ("192.0.2.7 > 2001:db8::1", "says no port"),
        ("192.0.2.7 > 203.0.113.1:0", "is no port"),
        ("192.0.2.7 > 203.0.113.1:65536", "is no port"),
        ("192.0.2.7 > 203.0.113.1:no-such-service", "is no port"),
        ("192.0.2.7 > 203.0.113.1:²", "is no port"),
        ("192.0.2.256 > 203.0.113.1:22", "is no IP address"),
        ("client.example > 203.0.113.1:22", "is no IP address"),
        ("[192.0.2.7 > 203.0.113.1:22", "is no IP address"),
        ("192.0.2.7 > [2001:db8::1]:22", "different families"),
        ("192.0.2.7 > 224.0.0.1:22", "the address of no host"),
        ("0.0.0.0 > 203.0.113.1:22", "the address of no host"),
    ],
)
def test_a_wrong_flow_is_refused(text: str, said: str) -> None:
    """What is no flow is refused with what is wrong, and how one is written."""
    with pytest.raises(BadInput, match=said) as caught:
        Flow.parse(text, "--guard 2")
    assert caught.value.message.startswith("--guard 2: ")
    assert "SOURCE[:PORT] > DESTINATION:PORT" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "tcp 192.0.2.7 > 203.0.113.1:22",
        "udp 192.0.2.7:53 > 203.0.113.1:53",
        "tcp [2001:db8::7]:50000 > [2001:db8::1]:22",
        "tcp 2001:db8::7 > [2001:db8::1]:22",
    ],
)
def test_what_a_flow_is_called_can_be_read(text: str) -> None:
    """A flow is shown as it may be written."""
    assert str(Flow.parse(text)) == text


@pytest.mark.parametrize(
    ("value", "flow"),
    [
        (
            "192.0.2.7 50000 203.0.113.1 22",
            Flow("tcp", "192.0.2.7", 50000, "203.0.113.1", 22),
        ),
        (
            "fe80::7%eth0 50000 fe80::1%eth0 22",
            Flow("tcp", "fe80::7", 50000, "fe80::1", 22, interface="eth0"),
        ),
        ("", None),
        ("192.0.2.7 50000 203.0.113.1", None),
        ("UNKNOWN 65535 UNKNOWN 65535", None),
        ("192.0.2.7 0 203.0.113.1 22", None),
        ("0.0.0.0 50000 203.0.113.1 22", None),
        ("2001:db8::7 50000 ff02::1 22", None),
        ("192.0.2.7 x 203.0.113.1 22", None),
    ],
)
def test_the_operator(value: str, flow: Flow | None) -> None:
    """The operator's connection is what sshd says; what cannot be understood is none."""
    found = guard.operator({"SSH_CONNECTION": value})
    assert found == flow
    assert found is None or not found.asked


def test_the_operator_behind_sudo(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Where sudo took SSH_CONNECTION away, it is found with a process above."""
    import os
    import subprocess
    import sys

    script = tmp_path / "shell.py"
    script.write_text(
        "import os, subprocess, sys\n"
        "kept = {key: value for key, value in os.environ.items() if key != 'SSH_CONNECTION'}\n"
        "code = 'from nfctl.control import guard; print(guard.operator())'\n"
        "subprocess.run([sys.executable, '-c', code], env=kept, check=True)\n"
    )
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 203.0.113.1 22")
    done = subprocess.run(
        [sys.executable, script], env=os.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "tcp 192.0.2.7:50000 > 203.0.113.1:22"


@pytest.mark.parametrize(
    ("rule", "quiet"),
    [
        ('-A INPUT -p tcp -j LOG --log-prefix "a -j DROP "', "-A INPUT -p tcp"),
        ("[1:2] -A INPUT -j NFLOG --nflog-group 5", "[1:2] -A INPUT"),
        ("-A INPUT -j TRACE", "-A INPUT"),
        ("-A INPUT -j NFQUEUE --queue-num 3", "-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass"),
        (
            "-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass",
            "-A INPUT -j NFQUEUE --queue-num 3 --queue-bypass",
        ),
        ("-A INPUT -j QUEUE", "-A INPUT -j NFQUEUE --queue-num 0 --queue-bypass"),
        ('-A INPUT -m comment --comment "not -j LOG" -j DROP', None),
        ("-A INPUT -j LOGDROP", None),
        ("-A INPUT -j DROP", None),
        (":LOG-AND-DROP - [0:0]", None),
    ],
)
def test_quiet_rules(rule: str, quiet: str | None) -> None:
    """Rules that would be noticed outside a copy lose their targets; no other rule changes."""
    text = f"*filter\n:INPUT DROP [0:0]\n{rule}\nCOMMIT\n"
    assert rehearsal.quiet(text) == text.replace(rule, rule if quiet is None else quiet)


def test_sets_that_rules_need() -> None:
    """The sets that a copy needs are those that rules name, the wanted ones and their members."""
    text = (
        "-A INPUT -m set ! --match-set one src,dst -j ACCEPT\n"
        '-A INPUT -m set --match-set "two words" src -j SET --add-set three src --exist\n'
        "-A INPUT -m comment --comment set -j ACCEPT\n"
    )
    wanted = [
        WantedSet("four", "hash:ip", 4, {}, ["192.0.2.1"]),
        WantedSet("five", "list:set", 0, {}, ["six timeout 3", "seven"]),
    ]
    assert rehearsal_sets.needed([text], wanted) == {
        "one", "two words", "three", "four", "five", "six", "seven",
    }  # fmt: skip
