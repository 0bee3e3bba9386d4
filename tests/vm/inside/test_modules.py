"""A stock kernel: what it loads on demand, and the two backends beside each other."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.vm.inside import modules
from tests.vm.inside.network import fill, oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.network import Device

NFT = {4: "iptables-nft", 6: "ip6tables-nft"}
THEIRS = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:THEIRS - [0:0]
-A FORWARD -i eth3 -j THEIRS
-A THEIRS -p tcp -m tcp --dport 9 -j DROP
-A THEIRS -p udp -m comment --comment "not ours" -j ACCEPT
COMMIT
"""


@pytest.fixture
def bare(device: Device) -> Device:
    """Give the machine as it is after a boot: without a module of netfilter."""
    modules.unload()
    return device


@pytest.fixture
def theirs(device: Device, version: int) -> Iterator[str]:
    """Give rules of iptables-nft, as iptables-nft-save prints them."""
    restore = [f"{NFT[version]}-restore"]
    subprocess.run(restore, input=THEIRS, text=True, check=True)
    yield saved(f"{NFT[version]}-save")
    device.clear()
    subprocess.run(["nft", "flush", "ruleset"], check=True)


def saved(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "".join(line for line in done.stdout.splitlines(True) if line[:1] != "#")


def doctor(device: Device) -> tuple[int, dict[tuple[str, str], dict[str, Any]]]:
    """Run nfctl doctor --json; return its exit code and the findings by section and name."""
    done = device.nfctl("doctor", "--json")
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["findings"]
    return done.returncode, {(one["section"], one["name"]): one for one in found}


def test_looking_loads_no_table(bare: Device) -> None:
    """Where nobody has used a table, save prints nothing, and no table's module is loaded."""
    for family in ("-4", "-6"):
        done = bare.nfctl("save", family)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [name for name in modules.loaded() if "table_" in name]


def test_a_rule_loads_what_it_needs(bare: Device, version: int) -> None:
    """One rule with extensions brings its table, its matches and its target."""
    words = "FORWARD -p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j REJECT"
    done = bare.nfctl("rule", "add", f"-{version}", *words.split())
    assert (done.returncode, done.stderr) == (0, "")
    family = {4: {"iptable_filter", "ipt_REJECT"}, 6: {"ip6table_filter", "ip6t_REJECT"}}[version]
    assert family | {"xt_multiport", "xt_conntrack", "nf_conntrack"} <= modules.loaded()
    assert words.removeprefix("FORWARD ") in saved(oracle(version, "-save"))


def test_a_ruleset_loads_what_it_needs(bare: Device, version: int) -> None:
    """A ruleset of all five tables loads from nothing, and is what the oracle then prints."""
    rules = """\
*raw
-A PREROUTING -p udp -m udp --dport 514 -j CT --notrack
COMMIT
*mangle
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A PREROUTING -m mark --mark 0x1 -j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A FORWARD -p udp -m udp --dport 9 -j NFQUEUE --queue-num 1 --queue-bypass
COMMIT
*nat
-A PREROUTING -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 80
-A POSTROUTING -s {lan_net} -o eth1 -j MASQUERADE
COMMIT
*filter
-A FORWARD -m limit --limit 5/min -j LOG --log-prefix "forward "
-A FORWARD -m state --state INVALID -j DROP
-A OUTPUT -o lo -m owner --uid-owner 0 -j ACCEPT
COMMIT
*security
-A FORWARD -m statistic --mode nth --every 2 --packet 0 -j ACCEPT
COMMIT
"""
    rules = fill(rules, version)
    done = bare.nfctl("restore", f"-{version}", input=rules)
    assert (done.returncode, done.stderr) == (0, "")
    prefix = {4: "iptable_", 6: "ip6table_"}[version]
    wanted = {f"{prefix}{table}" for table in ("raw", "mangle", "nat", "filter", "security")}
    wanted |= {f"xt_{name}" for name in ("CT", "TCPMSS", "connmark", "NFQUEUE", "LOG", "owner")}
    wanted |= {f"xt_{name}" for name in ("REDIRECT", "MASQUERADE", "limit", "statistic", "mark")}
    assert wanted <= modules.loaded()
    ours = saved(oracle(version, "-save"))
    subprocess.run([oracle(version, "-restore")], input=rules, text=True, check=True)
    assert [line for line in ours.splitlines() if line[:2] == "-A"] == [
        line for line in saved(oracle(version, "-save")).splitlines() if line[:2] == "-A"
    ]
    assert ours.count("\n-A ") == rules.count("\n-A ")


@pytest.mark.usefixtures("bare")
def test_one_process_loads_both_families(version: int) -> None:
    """A program that uses both families, in either order, gets both engines loaded."""
    rule = "-A FORWARD -m conntrack --ctstate NEW -j DROP\n"
    text = f"*filter\n{rule}COMMIT\n"
    order = (version, 10 - version)
    code = f"import nfctl\nfor family in {order}: nfctl.restore({text!r}, family=family)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for family in order:
        assert rule in saved(oracle(family, "-save"))


def test_a_refused_rule_changes_nothing(bare: Device) -> None:
    """A rule whose extension does not exist is exit code 2, and there is no rule after it."""
    for version in (4, 6):
        words = ("FORWARD", "-m", "nosuchmatch", "-j", "DROP")
        done = bare.nfctl("rule", "add", f"-{version}", *words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "-A" not in saved(oracle(version, "-save"))


def test_doctor_knows_a_stock_kernel(bare: Device) -> None:
    """Doctor reads the options of /boot, finds nothing missing, and names nft as the default."""
    code, found = doctor(bare)
    assert code == 0
    release = platform.release()
    assert found["kernel", "release"]["data"] == {
        "release": release,
        "source": f"/boot/config-{release}",
    }
    assert {one["state"] for (section, _), one in found.items() if section == "kernel"} == {"ok"}
    for family in ("ipv4", "ipv6"):
        tables = found["tables", family]["data"]["tables"]
        assert tables == dict.fromkeys(("raw", "mangle", "nat", "filter", "security"), "available")
    default = found["installed", "iptables"]["data"]
    assert default["backend"] == "nft"
    assert Path(default["links"][-1]) == Path("/usr/sbin/iptables").resolve()
    assert found["privileges", "netns"]["data"]["initial"] is True


def test_rules_of_both_backends_are_told(device: Device) -> None:
    """Rules of nfctl are in the legacy tables, those of plain iptables in nf_tables: exit 1."""
    for version in (4, 6):
        device.load("*filter\n-A FORWARD -i eth1 -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", version)
        subprocess.run([f"{NFT[version]}-restore"], input=THEIRS, text=True, check=True)
    code, found = doctor(device)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert code == 1
    assert found["rules", "legacy"]["data"]["rules"] == 4
    assert found["rules", "iptables-nft"]["data"]["rules"] == 6
    both = found["rules", "backends"]
    assert (both["data"]["legacy_rules"], both["data"]["nft_rules"]) == (4, 6)


def test_rules_of_iptables_nft_stay(device: Device, version: int, theirs: str) -> None:
    """Rules of iptables-nft stay as they are whatever nfctl writes, and it does not show them."""
    assert theirs.count("\n-A ") == 3
    family = f"-{version}"
    done = device.nfctl("rule", "add", family, "FORWARD", "-p", "tcp", "-j", "ACCEPT")
    assert (done.returncode, done.stderr) == (0, "")
    shown = device.nfctl("save", family).stdout
    assert "-A FORWARD -p tcp -j ACCEPT" in shown
    assert "THEIRS" not in shown
    done = device.nfctl("chain", "flush", family)
    assert (done.returncode, done.stderr) == (0, "")
    device.load("*filter\n:INPUT DROP [0:0]\n-A INPUT -i eth0 -j ACCEPT\nCOMMIT\n", version)
    device.clear()
    assert saved(f"{NFT[version]}-save") == theirs


def test_the_default_iptables_does_not_touch_ours(device: Device, version: int) -> None:
    """Plain iptables, which is the nft one here, leaves the rules of nfctl alone, also by -F."""
    device.load("*filter\n-A FORWARD -i eth1 -p udp -j DROP\nCOMMIT\n", version)
    before = saved(oracle(version, "-save"))
    tool = "iptables" if version == 4 else "ip6tables"
    assert (
        "nf_tables"
        in subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    )
    subprocess.run([tool, "-F"], check=True)
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert saved(oracle(version, "-save")) == before
    assert "-A FORWARD -i eth1 -p udp -j DROP" in before
