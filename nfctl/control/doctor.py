"""Gather what `nfctl doctor` says about this machine: one function a subject.

Every function takes its sources as arguments and returns findings, so that each can be fed
in a test; :func:`gather` connects them to the real ones. Looking changes nothing: no table is
opened that was not in use, no module is loaded unless the kernel's configuration cannot be
read at all, and then in a network namespace that is thrown away.
"""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.control import holders, installed
from nfctl.control.findings import Finding, Report, State
from nfctl.errors import NfctlError, Unsupported
from nfctl.kernel.config import Built, KernelConfig, loaded_modules, read_config
from nfctl.kernel.needs import NEEDS, Need, lacking_option, table_option
from nfctl.traversal import FAMILIES, TABLES, Family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nfctl.kernel.backends import HeldTable
    from nfctl.kernel.privileges import Privileges

# Without these tables some command of nfctl does not work; security is for SELinux systems.
_NEEDED_TABLES = frozenset({"raw", "mangle", "nat", "filter"})


def gather(*, proc: Path = Path("/proc")) -> Report:
    """Look at everything; raises Unsupported if there is no /proc to look at."""
    from nfctl.kernel import lock
    from nfctl.kernel.backends import legacy_tables, probe_tables
    from nfctl.kernel.nftdump import nft_tables
    from nfctl.kernel.privileges import read_privileges

    try:
        privileges = read_privileges(proc=proc)
    except (OSError, ValueError) as error:
        message = f"nothing can be told about this system: {error}"
        raise Unsupported(message, hint="is /proc mounted?") from None
    config = read_config(proc=proc)
    loaded = loaded_modules(proc)
    legacy = {family: _look(partial(legacy_tables, family)) for family in FAMILIES}
    nft = _look(nft_tables) if nft_may_be_asked(config, loaded) else ()
    held = [table for tables in (*legacy.values(), nft) for table in tables or ()]
    # Half an answer is none: a count that lacks one family would read as if it lacked nothing.
    legacy_known = None not in legacy.values()
    findings = [*kernel_findings(config)]
    for family in FAMILIES:
        found = legacy[family]
        active = None if found is None else [table.name for table in found]
        findings.append(table_finding(family, config, active, probe_tables))
    findings += installed.library_findings()
    findings += installed.package_findings()
    findings += installed.binary_findings()
    findings += holders.holder_findings(
        [table for table in held if table.backend == "legacy"] if legacy_known else None, nft
    )
    findings += holders.writer_findings(held, complete=legacy_known and nft is not None)
    findings.append(lock_finding(Path(lock.path()), lock.holder))
    findings += privilege_findings(privileges)
    return Report(tuple(findings))


def _look(source: Callable[[], Sequence[HeldTable]]) -> Sequence[HeldTable] | None:
    """Ask a backend for its tables: None if it cannot be told, none if it is not there."""
    try:
        return source()
    except Unsupported:
        return ()
    except NfctlError:
        return None


def nft_rules_met(family: Family) -> int:
    """Count the rules of nf_tables that packets of a family meet besides the legacy tables."""
    from nfctl.kernel.nftdump import nft_tables

    if not nft_may_be_asked(read_config(), loaded_modules()):
        return 0
    families = {"inet", "ip" if family == 4 else "ip6"}
    return sum(table.rules for table in _look(nft_tables) or () if table.family in families)


def nft_may_be_asked(config: KernelConfig, loaded: frozenset[str] | None) -> bool:
    """Tell whether asking nf_tables loads nothing: it is no module, or one that is loaded.

    A module that is not loaded holds no rules, and the question itself would load it.
    """
    if config.built("NF_TABLES", "nf_tables") is not Built.MODULE:
        return True
    return loaded is None or "nf_tables" in loaded


def kernel_findings(config: KernelConfig, needs: Sequence[Need] = NEEDS) -> list[Finding]:
    """Say which kernel runs, where its options were read, and what it lacks for what."""
    data: dict[str, object] = {"release": config.release, "source": config.source}
    if not config.source:
        advice = "make /boot/config-RELEASE or /lib/modules/RELEASE readable, or /proc/config.gz"
        fact = f"Linux {config.release}; what it was built with cannot be read"
        return [Finding("kernel", "release", State.NOTE, fact, advice, data)]
    fact = f"Linux {config.release}, options from {config.source}"
    return [
        Finding("kernel", "release", State.OK, fact, data=data),
        *(_need_finding(config, need) for need in needs),
    ]


def _need_finding(config: KernelConfig, need: Need) -> Finding:
    built = {option: config.built(option, module) for option, module in need.options.items()}
    lacking = [option for option, how in built.items() if how is Built.NO]
    unknown = [option for option, how in built.items() if how is Built.UNKNOWN]
    data: dict[str, object] = {option: how.value for option, how in built.items()}
    if lacking:
        names = ", ".join(f"CONFIG_{option}" for option in lacking)
        advice = _how_to_get(config, lacking, need)
        return Finding(
            "kernel", need.name, State.WARN, f"lacks {names}: {need.without}", advice, data
        )
    fact = f"all {len(built)} options"
    if unknown:
        fact = f"no lack that can be told; unknown: {', '.join(unknown)}"
    return Finding("kernel", need.name, State.OK, fact, data=data)


def _how_to_get(config: KernelConfig, lacking: Sequence[str], need: Need) -> str:
    """Tell a kernel built without an option from one whose module is merely not installed."""
    options = config.options or {}
    modules = [need.options[option] for option in lacking if options.get(option) == "m"]
    if modules:
        return _install_modules(config, modules)
    return "use a kernel that is built with it"


def _install_modules(config: KernelConfig, modules: Sequence[str]) -> str:
    return (
        f"install the modules {', '.join(modules)} for {config.release} "
        "(kernel-modules-extra, linux-modules-extra), or restart if the kernel was upgraded"
    )


def table_finding(
    family: Family,
    config: KernelConfig,
    active: Sequence[str] | None,
    probe: Callable[[Family, Iterable[str]], dict[str, bool] | None],
) -> Finding:
    """Say which legacy tables of a family are in use here, could be, or are missing.

    ``active`` None means that it may not be known. ``probe`` is called only for tables about
    which the configuration says nothing.
    """
    built = {table: config.built(*table_option(family, table)) for table in TABLES}
    unclear = [
        table
        for table, how in built.items()
        if how is Built.UNKNOWN and table not in (active or ())
    ]
    probed = (probe(family, unclear) or {}) if unclear else {}
    states: dict[str, str] = {}
    for table in TABLES:
        if active is not None and table in active:
            states[table] = "active"
        elif built[table] is Built.UNKNOWN and table not in probed:
            states[table] = "unknown"
        else:
            there = built[table].present or probed.get(table, False)
            states[table] = "available" if there else "missing"
    words = {"active": "in use", "available": "available", "unknown": "unknown"}
    words["missing"] = "missing"
    parts = [
        f"{word}: {', '.join(t for t in TABLES if states[t] == state)}"
        for state, word in words.items()
        if state in states.values()
    ]
    missing = [table for table in TABLES if states[table] == "missing"]
    data: dict[str, object] = {
        "tables": states,
        "lacking": {table: lacking_option(config, family, table) for table in missing},
    }
    state = State.OK
    if missing:
        needed = family == 4 and not _NEEDED_TABLES.isdisjoint(missing)
        state = State.MISSING if needed else State.WARN
    elif "unknown" in states.values():
        state = State.NOTE
    fact = "; ".join(parts)
    return Finding(
        "tables", f"ipv{family}", state, fact, _table_advice(family, config, missing), data
    )


def _table_advice(family: Family, config: KernelConfig, missing: Sequence[str]) -> str:
    if not missing:
        return ""
    lacking = dict.fromkeys(filter(None, (lacking_option(config, family, t) for t in missing)))
    if not lacking:
        return "use a kernel that has the legacy tables of iptables"
    options = config.options or {}
    modules = [
        module
        for option, module in (table_option(family, t) for t in missing)
        if options.get(option) == "m"
    ]
    if modules and len(modules) == len(missing):
        return _install_modules(config, modules)
    names = ", ".join(f"CONFIG_{option}" for option in lacking)
    return f"use a kernel built with {names}"


def lock_finding(place: Path, holder: Callable[[], tuple[int, str] | None]) -> Finding:
    """Say whether the xtables lock can do its work, and who holds it at this moment."""
    data: dict[str, object] = {"path": str(place), "holder": None}
    try:
        status = place.lstat()
    except FileNotFoundError:
        if not place.parent.is_dir():
            fact = f"{place}: its directory does not exist, so iptables and nfctl cannot lock"
            return Finding("lock", "file", State.MISSING, fact, f"mkdir {place.parent}", data)
        fact = f"{place} does not exist yet; the first to lock makes it"
        return Finding("lock", "file", State.OK, fact, data=data)
    except OSError as error:
        fact = f"{place} cannot be looked at: {error.strerror}"
        return Finding("lock", "file", State.NOTE, fact, "run as root", data)
    data |= {"mode": f"{stat.S_IMODE(status.st_mode):04o}", "owner": status.st_uid}
    if not stat.S_ISREG(status.st_mode):
        fact = f"{place} is no plain file"
        advice = f"remove it; the next to lock makes {place} anew"
        return Finding("lock", "file", State.MISSING, fact, advice, data)
    held = holder()
    if held:
        data["holder"] = {"pid": held[0], "command": held[1]}
    # A holder in another PID namespace is not listed, so "free" would be too much.
    by = f"held by {held[1]} (process {held[0]})" if held else "nobody is seen holding it"
    # flock(2) asks for no more than an open file, so whoever may read it may keep all others out.
    if status.st_mode & 0o066 or status.st_uid != 0:
        fact = f"{place}, {by}; mode {data['mode']}, owner {status.st_uid}: others can block it"
        advice = f"chown root {place}; chmod 600 {place}"
        return Finding("lock", "file", State.WARN, fact, advice, data)
    advice = "changes wait until it is free" if held else ""
    return Finding("lock", "file", State.NOTE if held else State.OK, f"{place}, {by}", advice, data)


def privilege_findings(privileges: Privileges) -> list[Finding]:
    """Say what this process may do, and in which namespaces."""
    lacking = [
        name
        for name, has in (
            ("CAP_NET_ADMIN", privileges.net_admin),
            ("CAP_NET_RAW", privileges.net_raw),
        )
        if not has
    ]
    data: dict[str, object] = {
        "net_admin": privileges.net_admin,
        "net_raw": privileges.net_raw,
        "user_namespace": privileges.user_namespace,
    }
    if lacking:
        fact = f"without {' and '.join(lacking)}: tables can be neither read nor changed"
        findings = [
            Finding("privileges", "capabilities", State.MISSING, fact, "run as root (sudo)", data)
        ]
    else:
        fact = "CAP_NET_ADMIN and CAP_NET_RAW"
        if privileges.user_namespace:
            fact += ", inside a user namespace"
        findings = [Finding("privileges", "capabilities", State.OK, fact, data=data)]
    where = {True: "the machine's first", False: "not the machine's first", None: ""}
    kind = where[privileges.netns_initial]
    name = privileges.netns_name or f"net:[{privileges.netns}]"
    findings.append(
        Finding(
            "privileges",
            "netns",
            State.OK,
            f"network namespace {name}" + (f", {kind}" if kind else ""),
            data={
                "inode": privileges.netns,
                "name": privileges.netns_name or None,
                "initial": privileges.netns_initial,
            },
        )
    )
    return findings
