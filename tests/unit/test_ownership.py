"""Whose chains and rules are."""

from __future__ import annotations

import pytest

from nfctl.control.ownership import Ownership
from nfctl.policy.wanted import Keep


@pytest.mark.parametrize(
    ("spec", "owner"),
    [
        ("-j DOCKER-USER", "Docker"),
        ("-m conntrack --ctstate NEW -m comment --comment x -j KUBE-SERVICES", "Kubernetes"),
        ("-g CNI-FORWARD", "CNI plugins"),
        ("-j LIBVIRT_INP", "libvirt"),
        ("-m comment --comment cali:x -j cali-INPUT", "Calico"),
        ("-j ts-input", "Tailscale"),
        ("-p tcp -m multiport --dports 22 -j f2b-sshd", "fail2ban"),
        ("-j NFCTL-INSPECT-0", "nfctl"),
        ("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "Docker"),
        ("-i br-0123456789ab -j ACCEPT", "Docker"),
        ("-i virbr0 -p udp -m udp --dport 53 -j ACCEPT", "libvirt"),
        ("-j ACCEPT", ""),
        ("-i br-lan -j ACCEPT", ""),
        ("-j DROP -m comment --comment docker0", ""),
        ('-m comment --comment "go -j DOCKER -i docker0" -j ACCEPT', ""),
        ("-m comment --comment -j -j ACCEPT", ""),
        ('-j LOG --log-prefix "-j DOCKER "', ""),
        ("-j docker", ""),
        ("", ""),
    ],
)
def test_known_programs(spec: str, owner: str) -> None:
    """Rules of known programs are told by jump and interface, never by a text that users write."""
    assert Ownership().owner(4, "filter", spec) == owner


@pytest.mark.parametrize(
    ("keep", "spec"),
    [
        (Keep(chain="my*"), "-j mychain"),
        (Keep(comment="managed by *"), '-m comment --comment "managed by \\"x\\"" -j DROP'),
        (Keep(comment="ansible"), "-m comment --comment ansible -j DROP"),
        (Keep(interface="wg*"), "! -i wg0 -j ACCEPT"),
        (Keep(rule="-s 10.*"), "-s 10.1.0.0/16 -j ACCEPT"),
    ],
)
def test_keep(keep: Keep, spec: str) -> None:
    """What ``keep:`` names is kept, and without it is not."""
    assert Ownership([keep]).owner(4, "filter", spec) == "keep"
    assert Ownership().owner(4, "filter", spec) == ""


def test_chains_of_other_policies() -> None:
    """A jump to another policy's chain is that policy's rule, in its table and family only."""
    ownership = Ownership()
    ownership.others[4, "filter"] = {"web": "policy web"}
    assert ownership.owner(4, "filter", "-p tcp -j web") == "policy web"
    assert ownership.owner(6, "filter", "-p tcp -j web") == ""
    assert ownership.owner(4, "nat", "-p tcp -j web") == ""
