from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.cli import doctor as printed
from nfctl.control import doctor, holders, installed
from nfctl.control.findings import Finding, Report, State, count
from nfctl.kernel.backends import BaseChain, HeldTable, count_entries
from nfctl.kernel.config import Built, KernelConfig, loaded_modules, parse_options, read_config
from nfctl.kernel.needs import NEEDS, lacking_option, table_option
from nfctl.kernel.privileges import Privileges, read_privileges
from nfctl.traversal import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIG = """\
# Automatically generated file; DO NOT EDIT.
CONFIG_NETFILTER=y
CONFIG_NETFILTER_XTABLES=m
CONFIG_IP_NF_RAW=m
# CONFIG_IP_NF_SECURITY is not set
CONFIG_IP_SET_MAX=256
"""
RELEASE = "6.18.1-test"


def options(*lacking: str, release: str = RELEASE) -> KernelConfig:
    """Return a kernel with everything that any finding asks for, except ``lacking``."""
    names = {option for need in NEEDS for option in need.options}
    names |= {table_option(family, table)[0] for family in (4, 6) for table in TABLES}
    names |= {"NETFILTER", "NETFILTER_XTABLES", "NETFILTER_XTABLES_LEGACY", "IPV6"}
    names |= {"IP_NF_IPTABLES_LEGACY", "IP6_NF_IPTABLES_LEGACY"}
    return KernelConfig(release, "test", dict.fromkeys(names - set(lacking), "y"))


def held(
    backend: str = "legacy", family: str = "ip", name: str = "filter", **chains: int
) -> HeldTable:
    base = tuple(
        BaseChain(chain, hook, 0)
        for hook, chain in ((1, "INPUT"), (2, "FORWARD"), (3, "OUTPUT"))
        if chain in chains
    )
    assert backend in ("legacy", "nft")
    return HeldTable("nft" if backend == "nft" else "legacy", family, name, chains, base)


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


# --- the kernel ---------------------------------------------------------------------------


def test_a_configuration_is_parsed() -> None:
    """Set options keep their value, options named as not set are n."""
    found = parse_options(CONFIG)
    assert found["IP_NF_RAW"] == "m"
    assert found["IP_NF_SECURITY"] == "n"
    assert found["IP_SET_MAX"] == "256"


def test_proc_config_comes_before_boot(tmp_path: Path) -> None:
    """The running kernel's own answer wins over a file that a package left."""
    (tmp_path / "config.gz").write_bytes(gzip.compress(b"CONFIG_NETFILTER=y\n"))
    (tmp_path / f"config-{RELEASE}").write_text("# CONFIG_NETFILTER is not set\n")
    config = read_config(RELEASE, proc=tmp_path, boot=tmp_path, modules=tmp_path)
    assert config.built("NETFILTER") is Built.BUILTIN
    assert config.source.endswith("config.gz")


def test_a_broken_config_gz_is_passed_over(tmp_path: Path) -> None:
    """A file that cannot be unpacked counts as none, and /boot is read."""
    (tmp_path / "config.gz").write_bytes(b"nonsense")
    (tmp_path / f"config-{RELEASE}").write_text(CONFIG)
    config = read_config(RELEASE, proc=tmp_path, boot=tmp_path, modules=tmp_path)
    assert config.source.endswith(f"config-{RELEASE}")
    assert config.built("IP_NF_RAW", "iptable_raw") is Built.MODULE


def test_without_a_configuration_the_module_lists_answer(tmp_path: Path) -> None:
    """Names in modules.builtin are built in, in modules.dep loadable, in neither absent."""
    directory = tmp_path / RELEASE
    directory.mkdir()
    (directory / "modules.builtin").write_text("kernel/net/netfilter/x_tables.ko\n")
    (directory / "modules.dep").write_text(
        "kernel/net/ipv4/netfilter/iptable_raw.ko.zst: kernel/net/x.ko.zst\n"
        "kernel/net/netfilter/xt-comment.ko.xz:\n"
    )
    config = read_config(RELEASE, proc=tmp_path, boot=tmp_path, modules=tmp_path)
    assert config.built("NETFILTER_XTABLES", "x_tables") is Built.BUILTIN
    assert config.built("IP_NF_RAW", "iptable_raw") is Built.MODULE
    assert config.built("NETFILTER_XT_MATCH_COMMENT", "xt_comment") is Built.MODULE
    assert config.built("IP_NF_NAT", "iptable_nat") is Built.NO
    assert config.built("NET_NS") is Built.UNKNOWN


def test_where_nothing_can_be_read_everything_is_unknown(tmp_path: Path) -> None:
    """No configuration and no module lists: nothing is called missing."""
    config = read_config(RELEASE, proc=tmp_path, boot=tmp_path, modules=tmp_path)
    assert config.built("IP_NF_RAW", "iptable_raw") is Built.UNKNOWN
    (finding,) = doctor.kernel_findings(config)
    assert finding.state is State.NOTE


def test_a_module_that_is_not_installed_is_not_there() -> None:
    """An option that is a module counts as absent when the release's modules lack its file."""
    config = KernelConfig(RELEASE, "test", {"IP_SET": "m"}, {"x_tables": Built.MODULE})
    assert config.built("IP_SET", "ip_set") is Built.NO
    assert KernelConfig(RELEASE, "test", {"IP_SET": "m"}).built("IP_SET", "ip_set").present


def test_loaded_modules(tmp_path: Path) -> None:
    """The first word of each line of /proc/modules; None where there is no such file."""
    assert loaded_modules(tmp_path) is None
    (tmp_path / "modules").write_text("nf_tables 1 0 - Live 0x0\nx_tables 2 1 - Live 0x0\n")
    assert loaded_modules(tmp_path) == frozenset({"nf_tables", "x_tables"})


def test_a_lacking_option_is_named_with_what_it_costs() -> None:
    """A kernel without xt_NFQUEUE gets a warning that names the option and the loss."""
    found = by_name(doctor.kernel_findings(options("NETFILTER_XT_TARGET_NFQUEUE")))
    assert found["queue"].state is State.WARN
    assert "CONFIG_NETFILTER_XT_TARGET_NFQUEUE" in found["queue"].fact
    assert found["log"].state is State.OK


def test_a_module_package_is_advised_where_only_the_file_is_missing() -> None:
    """If the kernel was built with it as a module, the advice is to install modules."""
    found = KernelConfig(
        RELEASE,
        "test",
        {o: "m" for need in NEEDS for o in need.options},
        {m: Built.MODULE for need in NEEDS for m in need.options.values() if m != "ip_set"},
    )
    finding = by_name(doctor.kernel_findings(found))["ipset"]
    assert finding.state is State.WARN
    assert "ip_set" in finding.advice
    assert "install" in finding.advice


# --- the tables ---------------------------------------------------------------------------


def no_probe(_family: int, names: Iterable[str]) -> dict[str, bool] | None:
    raise AssertionError(f"probed {list(names)} although the configuration says it all")


def test_tables_in_use_and_available_are_told_apart_without_a_probe() -> None:
    """Active tables come from the kernel's list, the others from its configuration."""
    finding = doctor.table_finding(4, options(), ["filter"], no_probe)
    assert finding.state is State.OK
    assert finding.data["tables"] == {
        "raw": "available",
        "mangle": "available",
        "nat": "available",
        "filter": "active",
        "security": "available",
    }


def test_a_missing_ipv4_table_fails_and_names_its_option() -> None:
    """Without IP_NF_RAW the answer is no; the option is in the advice and the data."""
    finding = doctor.table_finding(4, options("IP_NF_RAW"), [], no_probe)
    assert finding.state is State.MISSING
    assert "CONFIG_IP_NF_RAW" in finding.advice
    assert finding.data["lacking"] == {"raw": "IP_NF_RAW"}


def test_a_missing_security_or_ipv6_table_only_warns() -> None:
    """Nfctl works without the security table, and without IPv6."""
    assert doctor.table_finding(4, options("IP_NF_SECURITY"), [], no_probe).state is State.WARN
    assert doctor.table_finding(6, options("IP6_NF_RAW"), [], no_probe).state is State.WARN


@pytest.mark.parametrize(
    ("release", "option"),
    [("6.17.0", "NETFILTER_XTABLES_LEGACY"), ("6.12.3", "IP_NF_FILTER")],
)
def test_the_legacy_option_is_blamed_from_6_17_on(release: str, option: str) -> None:
    """The root of Kconfig's tree that is missing is named, as far as that kernel has it."""
    config = options("NETFILTER_XTABLES_LEGACY", "IP_NF_FILTER", release=release)
    assert lacking_option(config, 4, "filter") == option


def test_tables_are_probed_where_the_configuration_is_silent() -> None:
    """Only tables that are not active are tried, and the answers are taken over."""
    asked: list[str] = []

    def probe(_family: int, names: Iterable[str]) -> dict[str, bool]:
        asked.extend(names)
        return {name: name != "security" for name in asked}

    finding = doctor.table_finding(4, KernelConfig(RELEASE, ""), ["filter"], probe)
    assert asked == ["raw", "mangle", "nat", "security"]
    assert finding.data["tables"]["security"] == "missing"  # type: ignore[index]
    assert finding.state is State.WARN


def test_what_cannot_be_probed_is_unknown() -> None:
    """Without privileges and without a configuration nothing is called missing."""
    finding = doctor.table_finding(4, KernelConfig(RELEASE, ""), None, lambda _f, _n: None)
    assert finding.state is State.NOTE
    assert set(finding.data["tables"].values()) == {"unknown"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "loaded", "asked"),
    [
        ("y", frozenset[str](), True),
        ("m", frozenset[str](), False),
        ("m", frozenset({"nf_tables"}), True),
        ("m", None, True),
        ("n", None, True),
    ],
)
def test_asking_nf_tables_must_not_load_it(
    value: str, loaded: frozenset[str] | None, asked: bool
) -> None:
    """A module that is not loaded holds no rules, and is not loaded by the question."""
    config = KernelConfig(RELEASE, "test", {"NF_TABLES": value})
    assert doctor.nft_may_be_asked(config, loaded) is asked


# --- what is installed --------------------------------------------------------------------


def test_library_versions_come_from_the_file_behind_the_links(tmp_path: Path) -> None:
    """libxtables.so.12 leads to libxtables.so.12.7.0, which is the version."""
    (tmp_path / "libxtables.so.12.7.0").touch()
    (tmp_path / "libxtables.so.12").symlink_to("libxtables.so.12.7.0")
    where = {"xtables": str(tmp_path / "libxtables.so.12")}
    found = by_name(installed.library_findings(where.get, list))
    assert found["libxtables"].data["version"] == "12.7.0"
    assert found["libip4tc"].state is State.MISSING
    assert found["libnetfilter_queue"].state is State.WARN
    assert found["extensions"].state is State.MISSING


def test_only_extensions_of_iptables_are_counted(tmp_path: Path) -> None:
    """Extensions of ebtables and arptables are none that nfctl can use."""
    for name in ("libxt_tcp.so", "libipt_ah.so", "libip6t_rt.so", "libebt_ip.so", "README"):
        (tmp_path / name).touch()
    found = by_name(installed.library_findings(lambda _: None, lambda: [str(tmp_path), "/none"]))
    assert found["extensions"].data["count"] == 3


def test_a_package_without_its_compiled_module_is_missing() -> None:
    """Metadata alone do not make a package usable."""
    found = by_name(installed.package_findings(lambda _: "1.0", lambda m: m != "libxtwrapper"))
    assert found["python-iptables"].state is State.MISSING
    assert found["pyroute2"].state is State.OK


def test_a_missing_optional_package_warns() -> None:
    """Without NetfilterQueue and scapy nfctl works, but inspects less."""
    found = by_name(installed.package_findings(lambda _: None, lambda m: m == "typer"))
    assert found["scapy"].state is State.WARN
    assert found["NetfilterQueue"].state is State.WARN
    assert found["pyroute2"].state is State.MISSING


def test_which_backend_the_name_iptables_means(tmp_path: Path) -> None:
    """The links are followed and shown; the nft variant is noted, with what to do."""
    (tmp_path / "xtables-nft-multi").touch()
    (tmp_path / "iptables-nft").symlink_to("xtables-nft-multi")
    (tmp_path / "iptables").symlink_to(tmp_path / "iptables-nft")
    assert installed.links(tmp_path / "iptables") == [
        str(tmp_path / name) for name in ("iptables", "iptables-nft", "xtables-nft-multi")
    ]
    where = {"iptables": str(tmp_path / "iptables")}
    found = by_name(installed.binary_findings(where.get, lambda _: "1.8.9 (nf_tables)"))
    assert found["iptables"].state is State.NOTE
    assert found["iptables"].data["backend"] == "nft"
    legacy = by_name(installed.binary_findings(where.get, lambda _: "1.8.9 (legacy)"))
    assert legacy["iptables"].state is State.OK


def test_no_binaries_at_all_are_no_problem() -> None:
    """Nfctl calls no iptables binary, so their absence is in order."""
    (finding,) = installed.binary_findings(lambda _: None, lambda _: "")
    assert finding.state is State.OK


# --- who holds rules ----------------------------------------------------------------------


def entry(family: int, size_before: int, target: bytes) -> bytes:
    """Return an entry without matches: the place where its offsets stand, and a target."""
    start = {4: 112, 6: 168}[family]
    body = bytearray(start)
    struct.pack_into("=HH", body, size_before, start, start + len(target))
    return bytes(body) + target


def standard(family: int, offsets: int, verdict: int) -> bytes:
    return entry(family, offsets, struct.pack("=H29sBi4x", 40, b"", 0, verdict))


def error(family: int, offsets: int, name: bytes) -> bytes:
    return entry(family, offsets, struct.pack("=H29sB30s2x", 64, b"ERROR", 0, name))


@pytest.mark.parametrize(("family", "offsets"), [(4, 88), (6, 140)])
def test_rules_are_counted_from_the_kernels_bytes(family: int, offsets: int) -> None:
    """Policies, chain heads, closing RETURNs and the end are no rules; a DROP policy is seen."""
    rule = standard(family, offsets, -2)
    parts = [rule, rule, standard(family, offsets, -1), standard(family, offsets, -2)]
    parts += [error(family, offsets, b"MINE"), rule, standard(family, offsets, -5)]
    parts += [error(family, offsets, b"ERROR")]
    size = len(rule)
    starts = [0, 0, 3 * size, 0, 0]
    ends = [0, 2 * size, 3 * size, 0, 0]
    blob = b"".join(parts)
    info = struct.pack("=32s13I", b"filter", 0b00110, *starts, *ends, len(parts), len(blob))
    table = count_entries(4 if family == 4 else 6, "filter", info, blob)
    assert table.chains == {"INPUT": 2, "FORWARD": 0, "MINE": 1}
    assert [(chain.name, chain.policy) for chain in table.base] == [
        ("INPUT", "drop"),
        ("FORWARD", "accept"),
    ]
    assert table.rules == 3


def test_one_backend_alone_is_in_order() -> None:
    """Rules in the legacy tables only, and empty nft tables, make no warning."""
    findings = holders.holder_findings([held(INPUT=2)], [held("nft", INPUT=0)])
    assert Report(tuple(findings)).exit_code == 0
    assert {finding.state for finding in findings} == {State.OK}


def test_rules_in_both_backends_fail_with_the_order_of_meeting() -> None:
    """Both counts, the order by priority and the way out are said, and the answer is no."""
    native = HeldTable("nft", "inet", "fw", {"in": 3}, (BaseChain("in", 1, 10),))
    early = HeldTable("nft", "ip", "x", {"pre": 1}, (BaseChain("pre", 1, -300),))
    findings = holders.holder_findings([held(INPUT=2)], [native, early])
    conflict = by_name(findings)["backends"]
    assert Report(tuple(findings)).exit_code == 1
    assert (conflict.data["legacy_rules"], conflict.data["nft_rules"]) == (2, 4)
    order = conflict.data["order"]["INPUT"]  # type: ignore[index]
    assert [(met["priority"], met["backend"]) for met in order] == [
        (-300, "nft"),
        (0, "legacy"),
        (10, "nft"),
    ]
    assert "nft delete table inet fw" in conflict.advice


def test_a_policy_of_drop_counts_like_rules() -> None:
    """A table without rules whose policy drops is met as well."""
    dropping = HeldTable("nft", "ip", "filter", {"INPUT": 0}, (BaseChain("INPUT", 1, 0, "drop"),))
    findings = holders.holder_findings([held(INPUT=1)], [dropping])
    assert "backends" in by_name(findings)


def test_arp_tables_do_not_make_a_conflict() -> None:
    """Rules for ARP never meet a packet in the IP hooks."""
    findings = holders.holder_findings([held(INPUT=1)], [held("nft", "arp", INPUT=5)])
    assert "backends" not in by_name(findings)


def test_rules_in_nf_tables_only_are_a_warning() -> None:
    """Nfctl does not see them, which one should know before it writes beside them."""
    findings = holders.holder_findings([held(INPUT=0)], [held("nft", INPUT=1)])
    assert by_name(findings)["backends"].state is State.WARN
    assert Report(tuple(findings)).exit_code == 0


def test_tables_of_iptables_nft_are_told_from_native_ones() -> None:
    """Compat tables bear the legacy names and chains; other tables are native."""
    assert held("nft", INPUT=0).compat
    assert not held("nft", "inet", INPUT=0).compat
    assert not HeldTable("nft", "ip", "filter", {"in": 0}, (BaseChain("in", 1, 0),)).compat
    assert not held("legacy", INPUT=0).compat


def test_what_could_not_be_looked_at_is_said() -> None:
    """None is not zero: without root the counts are unknown, and no conflict is claimed."""
    findings = by_name(holders.holder_findings(None, None))
    assert findings["legacy"].state is State.NOTE
    assert findings["native-nft"].data["tables"] is None
    assert "backends" not in findings


@pytest.mark.parametrize(
    ("chain", "writer"),
    [
        ("DOCKER-USER", "Docker"),
        ("KUBE-SVC-ABC", "Kubernetes"),
        ("CNI-HOSTPORT-DNAT", "CNI plugins"),
        ("LIBVIRT_INP", "libvirt"),
        ("cali-INPUT", "Calico"),
        ("ts-forward", "Tailscale"),
        ("f2b-sshd", "fail2ban"),
        ("ufw-before-input", "ufw"),
        ("ufw6-user-input", "ufw"),
        ("INPUT_ZONES", "firewalld"),
    ],
)
def test_writers_are_known_by_their_chains(chain: str, writer: str) -> None:
    """A chain's name gives its writer away, with the number of chains and rules."""
    (finding,) = holders.writer_findings([HeldTable("legacy", "ip", "nat", {chain: 3, "A": 1})])
    assert finding.name == writer
    assert finding.data == {"legacy": {"chains": 1, "rules": 3}}
    assert finding.state is State.NOTE


def test_a_writer_in_both_backends_is_a_warning() -> None:
    """One of the two sets of chains is stale, which nobody notices otherwise."""
    (finding,) = holders.writer_findings([held(DOCKER=1), held("nft", DOCKER=2)])
    assert finding.state is State.WARN
    assert finding.data["nft"] == {"chains": 1, "rules": 2}


def test_firewalld_is_known_by_its_nft_table() -> None:
    """All chains of a table called firewalld are firewalld's; legacy tables have no such name."""
    (finding,) = holders.writer_findings([held("nft", "inet", "firewalld", filter_INPUT=4)])
    assert finding.name == "firewalld"


def test_nobody_else_writes() -> None:
    """A table of one's own chains names no writer."""
    (finding,) = holders.writer_findings([held(INPUT=1, MINE=2)])
    assert finding.state is State.OK
    assert holders.writer_findings([held(INPUT=1)], complete=False) == []


# --- the lock -----------------------------------------------------------------------------


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a lock file that looks as if root had made it."""
    place = tmp_path / "xtables.lock"
    place.touch(mode=0o600)
    real = Path.lstat

    def as_root(path: Path) -> os.stat_result:
        values = list(real(path))
        values[4] = 0
        return os.stat_result(values)

    monkeypatch.setattr(Path, "lstat", as_root)
    return place


def test_a_lock_of_root_is_in_order(lock_file: Path) -> None:
    """Mode 600, owner root, not held: nothing to say."""
    assert doctor.lock_finding(lock_file, lambda: None).state is State.OK


def test_the_holder_of_the_lock_is_named(lock_file: Path) -> None:
    """Who holds the lock right now is said with process and name."""
    finding = doctor.lock_finding(lock_file, lambda: (42, "iptables"))
    assert "held by iptables (process 42)" in finding.fact
    assert finding.data["holder"] == {"pid": 42, "command": "iptables"}


def test_a_lock_that_others_can_open_is_a_warning(lock_file: Path) -> None:
    """Whoever can open the file can hold the lock for ever."""
    lock_file.chmod(0o644)
    finding = doctor.lock_finding(lock_file, lambda: None)
    assert finding.state is State.WARN
    assert "0644" in finding.fact


def test_a_lock_that_is_no_file_is_missing(tmp_path: Path) -> None:
    """A directory or a link in its place cannot be locked as iptables does."""
    assert doctor.lock_finding(tmp_path, lambda: None).state is State.MISSING


def test_a_lock_that_does_not_exist_yet(tmp_path: Path) -> None:
    """The first to lock makes the file, but not its directory."""
    assert doctor.lock_finding(tmp_path / "lock", lambda: None).state is State.OK
    gone = doctor.lock_finding(tmp_path / "none" / "lock", lambda: None)
    assert gone.state is State.MISSING


# --- privileges ---------------------------------------------------------------------------


def fake_proc(root: Path, capabilities: int, uid_map: str) -> Path:
    for directory in ("self", "thread-self/ns", "1/ns", "netns"):
        (root / directory).mkdir(parents=True)
    (root / "self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")
    (root / "self/uid_map").write_text(uid_map)
    (root / "thread-self/ns/net").touch()
    (root / "netns/blue").hardlink_to(root / "thread-self/ns/net")
    (root / "1/ns/net").touch()
    return root


def test_privileges_are_read(tmp_path: Path) -> None:
    """Capabilities, the user namespace and the name of the network namespace come from /proc."""
    proc = fake_proc(tmp_path, 1 << 12, "         0       1000          1\n")
    found = read_privileges(proc=proc, run_netns=proc / "netns")
    assert (found.net_admin, found.net_raw) == (True, False)
    assert found.user_namespace
    assert found.netns_name == "blue"
    assert found.netns_initial is False


def test_the_initial_user_namespace_is_none(tmp_path: Path) -> None:
    """A map of all ids to themselves is not called a user namespace."""
    proc = fake_proc(tmp_path, (1 << 41) - 1, "         0          0 4294967295\n")
    (proc / "1/ns/net").unlink()
    found = read_privileges(proc=proc, run_netns=proc / "nothing")
    assert not found.user_namespace
    assert (found.netns_name, found.netns_initial) == ("", None)


def test_a_missing_capability_fails() -> None:
    """Without CAP_NET_ADMIN nfctl can do nothing with tables, and says so."""
    findings = doctor.privilege_findings(Privileges(False, True, False, 1, "", True))
    assert findings[0].state is State.MISSING
    assert "CAP_NET_ADMIN" in findings[0].fact
    assert "CAP_NET_RAW" not in findings[0].fact


# --- printing -----------------------------------------------------------------------------


def test_the_report_is_wrapped_under_its_column() -> None:
    """On a terminal every line fits, and what is wrapped stands under the fact."""
    report = Report((Finding("lock", "file", State.WARN, "word " * 40, "advice " * 20),))
    shown = ["".join(text for text, _ in line) for line in printed.lines(report, 70)]
    assert shown[0] == "the xtables lock"
    assert max(len(line) for line in shown) <= 70
    assert shown[2].startswith(" " * 17 + "word")


def test_the_order_of_meeting_shows_ties_together() -> None:
    """Chains of one priority are joined by and, the others by then."""
    findings = holders.holder_findings([held(INPUT=1)], [held("nft", INPUT=1)])
    shown = ["".join(text for text, _ in line) for line in printed.lines(Report(tuple(findings)))]
    assert any("INPUT: legacy filter (0) and nft ip filter INPUT (0)" in line for line in shown)


def test_the_document_has_the_exit_codes_reason() -> None:
    """The JSON document says ok or not, and each finding with its stable keys."""
    report = Report((Finding("rules", "backends", State.WARN, "x", fails=True),))
    document = report.document()
    assert document["ok"] is False
    assert document["findings"] == [
        {
            "section": "rules",
            "name": "backends",
            "state": "warn",
            "fact": "x",
            "advice": "",
            "data": {},
        }
    ]


def test_nouns_are_counted() -> None:
    """One rule, two rules."""
    assert [count(number, "rule") for number in (0, 1, 2)] == ["0 rules", "1 rule", "2 rules"]
