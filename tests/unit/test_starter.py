from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control.surroundings import look
from nfctl.document import load
from nfctl.errors import BadInput
from nfctl.policy import reading
from nfctl.policy.starter import Surroundings, starter
from nfctl.policy.yamltext import key, quoted, scalar

if TYPE_CHECKING:
    from pathlib import Path

    from nfctl.policy.wanted import Wanted

SSH = "192.0.2.7 50000 192.0.2.1 2222"


def read(host: Surroundings) -> Wanted:
    return reading.parse(starter(host).encode(), "starter.yaml")


def rules(wanted: Wanted, family: int, chain: str = "INPUT") -> list[str]:
    return [rule.spec for rule in wanted.tables[family]["filter"].chains[chain].rules]


def test_the_starter_is_a_policy() -> None:
    """It reads without complaint, and drops what it does not name, in both families."""
    wanted = read(Surroundings())
    for family in (4, 6):
        chains = wanted.tables[family]["filter"].chains
        assert {name: chain.policy for name, chain in chains.items()} == {
            "INPUT": "DROP",
            "FORWARD": "DROP",
            "OUTPUT": "ACCEPT",
        }
        assert rules(wanted, family)[0] == "-i lo -j ACCEPT"
        assert "-p tcp -m tcp --dport 22 -j ACCEPT" in rules(wanted, family)


def test_messages_of_ipv6_come_before_what_is_invalid() -> None:
    """ICMPv6 that connection tracking does not know is not dropped as invalid; RFC 4890."""
    found = rules(read(Surroundings()), 6)
    invalid = found.index("-m conntrack --ctstate INVALID -j DROP")
    kinds = [rule.partition("--icmpv6-type ")[2].split()[0] for rule in found[:invalid]
             if "--icmpv6-type" in rule]  # fmt: skip
    assert {"neighbour-solicitation", "neighbour-advertisement", "router-advertisement",
            "packet-too-big", "143"} <= set(kinds)  # fmt: skip
    for kind in ("neighbour-solicitation", "neighbour-advertisement", "router-advertisement"):
        (rule,) = [rule for rule in found if kind in rule]
        assert "--hl-eq 255" in rule
    assert not any("icmpv6" in rule for rule in rules(read(Surroundings()), 4))


def test_forwarding_is_left_alone_where_it_is_seen() -> None:
    """With reasons to think that the host forwards, FORWARD is not named, and they are."""
    reason = "the interface docker0 is Docker's"
    text = starter(Surroundings(forwarding=[reason]))
    assert f"    # - {reason}\n" in text
    wanted = reading.parse(text.encode(), "starter.yaml")
    assert "FORWARD" not in wanted.tables[4]["filter"].chains


def test_a_kernel_without_ipv6() -> None:
    """The policy is of IPv4 alone then, without a word of IPv6."""
    wanted = read(Surroundings(ipv6=False))
    assert [*wanted.tables] == [4]
    assert "icmp6" not in starter(Surroundings(ipv6=False))


def test_several_ports_and_dhcp() -> None:
    """Each port has its rule; a DHCP client gets its answers."""
    found = rules(read(Surroundings(ssh=[22, 2222], dhcp=True)), 4)
    assert "-p tcp -m tcp --dport 22 -j ACCEPT" in found
    assert "-p tcp -m tcp --dport 2222 -j ACCEPT" in found
    assert "-p udp -m udp --sport 67 --dport 68 -j ACCEPT" in found
    assert not any("--dport 68" in rule for rule in rules(read(Surroundings()), 4))


# --- what a host is like -------------------------------------------------------------------------


def config(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def ports(root: Path, connection: str = "") -> list[int]:
    return look(root=root, environ={"SSH_CONNECTION": connection}).ssh


def test_an_empty_host(tmp_path: Path) -> None:
    """Where nothing is to be seen, sshd has its own port, and nothing is forwarded."""
    found = look(root=tmp_path, environ={})
    assert (found.ssh, found.forwarding, found.dhcp, found.ipv6) == ([22], [], False, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Port 2222\n", [2222]),
        ("port=2222 # not 22\nPort 22\nPort 22\n", [2222, 22]),
        ('Port "2200"\n', [2200]),
        ("#Port 2222\n", [22]),
        ("Port x\nPort 0\nPort 70000\nPort 99999999999999999999\nPort\n", [22]),
        ("ListenAddress 192.0.2.1:2022\nListenAddress [::1]:2023\n", [2022, 2023]),
        ("ListenAddress ::1\nListenAddress 192.0.2.1\n", [22]),
        ("Match User x\nPort 2222\n", [22]),
        ("Include /etc/ssh/extra\nPort 1\n", [7, 1]),
        ("Include sshd_config.d/*.conf nothing/*\n", [8, 9]),
        ("Include /etc/ssh/sshd_config\nInclude ../../**\n\0\n", [22]),
    ],
)
def test_ports_of_sshd_config(tmp_path: Path, text: str, expected: list[int]) -> None:
    """Port and ListenAddress count, also of included files, but for what is in a Match block."""
    config(
        tmp_path,
        etc__ssh__sshd_config=text,
        etc__ssh__extra="Port 7\n",
    )
    config(tmp_path / "etc/ssh/sshd_config.d", **{"b.conf": "Port 9", "a.conf": "Port 8"})
    if "**" in text:  # all there is would be included
        (tmp_path / "etc/ssh/extra").unlink()
        for file in (tmp_path / "etc/ssh/sshd_config.d").iterdir():
            file.unlink()
    assert ports(tmp_path) == expected


def test_the_port_one_came_by_is_kept_open(tmp_path: Path) -> None:
    """The port of the operator's own connection is the first, whatever sshd_config says."""
    assert ports(tmp_path, SSH) == [2222]
    config(tmp_path, etc__ssh__sshd_config="Port 22\n")
    assert ports(tmp_path, SSH) == [2222, 22]
    assert ports(tmp_path, "nonsense") == [22]
    assert look([5, 6, 5], root=tmp_path, environ={"SSH_CONNECTION": SSH}).ssh == [5, 6]


def test_signs_of_forwarding_and_dhcp(tmp_path: Path) -> None:
    """Sysctls, the bridges of Docker and libvirt, and leases are seen."""
    config(
        tmp_path,
        proc__sys__net__ipv4__ip_forward="1\n",
        proc__sys__net__ipv6__conf__all__forwarding="0\n",
        sys__class__net__docker0__x="",
        sys__class__net__virbr0__x="",
        sys__class__net__eth0__x="",
        run__systemd__netif__leases__2="",
    )
    found = look(root=tmp_path, environ={})
    assert found.forwarding == [
        "the sysctl net.ipv4.ip_forward is on",
        "the interface docker0 is Docker's",
        "the interface virbr0 is libvirt's",
    ]
    assert found.dhcp
    assert found.ipv6


# --- YAML ----------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_any_text_is_written_so_that_it_reads_as_itself(text: str) -> None:
    """As an item, as a key, and in a flow mapping, a text comes back as it was, and as text."""
    item, mapping = load(f"- {scalar(text)}\n- {{a: {quoted(text)}}}\n", "x").children
    assert item.raw == text
    assert mapping.plain() == {"a": text}
    assert load(f"{key(text)}: 1\n", "x").plain() == {text: 1}


@pytest.mark.parametrize(
    "text",
    ["-i lo -j ACCEPT", "--syn -j DROP", "10.0.0.0/8", "2001:db8::/32", "10.0.0.1,tcp:80", "80"],
)
def test_what_is_plain_stays_plain(text: str) -> None:
    """Rules and entries as they mostly are have no quotes around them."""
    assert scalar(text) == text
    assert load(f"- {text}", "x").children[0].raw == text


@pytest.mark.parametrize(
    "text",
    ["", "! -i lo", "-5", "-.inf", "1.5", "007", "a: b", "a #b", "on", "{a", "1:", "a\tb", "- x"],
)
def test_what_means_something_is_quoted(text: str) -> None:
    """What YAML would take for something else, or apart, is in quotes."""
    assert scalar(text) == quoted(text)
    assert load(f"- {scalar(text)}", "x").plain() == [text]


def test_the_schema_is_json() -> None:
    """The schema that editors get can be written as JSON, and names itself."""
    assert json.loads(json.dumps(reading.schema()))["title"] == "nfctl policy"


def test_a_policy_for_each_family() -> None:
    """A chain's policy may be a mapping; what it does not name stays, and a word is refused."""
    text = "version: 1\ntables: {{filter: {{INPUT: {{policy: {}}}}}}}\n"
    wanted = reading.parse(text.format("{ipv4: drop, ipv6: accept}").encode())
    assert [wanted.tables[f]["filter"].chains["INPUT"].policy for f in (4, 6)] == ["DROP", "ACCEPT"]
    wanted = reading.parse(text.format("{ipv6: DROP}").encode())
    assert [wanted.tables[f]["filter"].chains["INPUT"].policy for f in (4, 6)] == [None, "DROP"]
    for bad, words in (("{ipv5: drop}", '"ipv5"'), ("{ipv4: dorp}", "dorp"), ("[drop]", "a list")):
        with pytest.raises(BadInput, match=words) as caught:
            reading.parse(text.format(bad).encode())
        assert caught.value.where is not None
        assert caught.value.where.line == 2
