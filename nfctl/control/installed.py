"""What is installed for nfctl to work with: C libraries, Python packages, iptables binaries.

Versions come from file names (``libxtables.so.12.7.0``), from the packages' metadata, and
from ``iptables --version``; nothing is loaded or imported to ask it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.control.findings import Finding, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECTION = "installed"

# name of the library, whether nfctl needs it, what installs it, what fails without
_LIBRARIES = (
    ("xtables", True, "libxtables12 (Debian), iptables-libs (Fedora)", ""),
    ("ip4tc", True, "libip4tc2 (Debian), iptables-legacy-libs (Fedora)", ""),
    ("ip6tc", True, "libip6tc2 (Debian), iptables-legacy-libs (Fedora)", ""),
    ("netfilter_queue", False, "libnetfilter-queue1", "no packet inspection"),
)

# distribution, module whose file must be there, whether nfctl needs it, what fails without
_PACKAGES = (
    ("python-iptables", "libxtwrapper", True, ""),
    ("pyroute2", "pyroute2", True, ""),
    ("typer", "typer", True, ""),
    ("NetfilterQueue", "netfilterqueue", False, "no packet inspection"),
    ("scapy", "scapy", False, "packets are shown without being taken apart"),
)

_BINARIES = ("iptables-legacy", "iptables-nft", "nft")
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not in the PATH of a user


def _find_library(name: str) -> str | None:
    from nfctl.kernel.libraries import find

    return find(name)


def _extension_dirs() -> Sequence[str]:
    from nfctl.kernel.libraries import extension_dirs

    return extension_dirs()


def library_findings(
    find: Callable[[str], str | None] = _find_library,
    extension_dirs: Callable[[], Sequence[str]] = _extension_dirs,
) -> list[Finding]:
    """Say which C libraries are there, in which version, and how many extensions."""
    findings = []
    for name, needed, package, without in _LIBRARIES:
        title = f"lib{name}"
        found = find(name)
        if not found:
            state = State.MISSING if needed else State.WARN
            fact = "not installed" + (f": {without}" if without else "")
            findings.append(Finding(SECTION, title, state, fact, f"install {package}"))
            continue
        file = Path(os.path.realpath(found))
        version = file.name.partition(".so.")[2]
        data = {"version": version, "path": str(file)}
        findings.append(Finding(SECTION, title, State.OK, version, data=data))
    findings.append(_extension_finding(extension_dirs()))
    return findings


def _extension_finding(directories: Sequence[str]) -> Finding:
    """Count libxtables' extensions; those of ebtables and arptables live beside them."""
    names: set[str] = set()
    for directory in directories:
        try:
            names.update(
                entry.name
                for entry in os.scandir(directory)
                if entry.name.startswith(("libxt_", "libipt_", "libip6t_"))
                and entry.name.endswith(".so")
            )
        except OSError:
            continue
    data = {"directories": list(directories), "count": len(names)}
    if not names:
        fact = "the matches and targets of libxtables are not found"
        advice = "install iptables, or set XTABLES_LIBDIR to their directory"
        return Finding(SECTION, "extensions", State.MISSING, fact, advice, data)
    fact = f"{len(names)} in {', '.join(directories)}"
    return Finding(SECTION, "extensions", State.OK, fact, data=data)


def _version_of(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def package_findings(
    version_of: Callable[[str], str | None] = _version_of,
    has_module: Callable[[str], bool] = _has_module,
) -> list[Finding]:
    """Say which Python packages are there; one without its compiled part counts as missing."""
    findings = []
    for distribution, module, needed, without in _PACKAGES:
        version = version_of(distribution)
        there = has_module(module)
        data = {"version": version, "module": there}
        if there:
            fact = version or "there, version unknown"
            findings.append(Finding(SECTION, distribution, State.OK, fact, data=data))
            continue
        state = State.MISSING if needed else State.WARN
        fact = "not installed"
        if version:
            fact = f"{version}, but its module {module} is not there"
        fact += f": {without}" if without else ""
        advice = f"pip install --force-reinstall {distribution}"
        findings.append(Finding(SECTION, distribution, state, fact, advice, data))
    return findings


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def _ask_version(path: str) -> str:
    """Run ``PATH --version`` and return the first line's words behind the program's name."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = answer.stdout.splitlines()
    return lines[0].partition(" ")[2].removeprefix("v") if lines else ""


def binary_findings(
    which: Callable[[str], str | None] = _which,
    version_of: Callable[[str], str] = _ask_version,
) -> list[Finding]:
    """Say which iptables there are, and which of them the name ``iptables`` means.

    nfctl itself calls none of them.
    """
    paths = {name: which(name) for name in _BINARIES}
    versions = {name: version_of(path) for name, path in paths.items() if path}
    known = [f"{name} {version.split(' ')[0]}" for name, version in versions.items()]
    fact = ", ".join(known) if known else "no iptables, no nft (nfctl needs neither)"
    data: dict[str, object] = {
        name: {"path": path, "version": versions.get(name)} for name, path in paths.items()
    }
    return [
        Finding(SECTION, "binaries", State.OK, fact, data=data),
        *_default_finding(which, version_of),
    ]


def _default_finding(
    which: Callable[[str], str | None], version_of: Callable[[str], str]
) -> list[Finding]:
    found = which("iptables")
    if not found:
        return []
    steps = links(Path(found))
    version = version_of(found)
    kind = "nft" if "nf_tables" in version else "legacy"
    data: dict[str, object] = {"backend": kind, "version": version, "links": steps}
    chain = " -> ".join(steps)
    if kind == "legacy":
        return [Finding(SECTION, "iptables", State.OK, f"the legacy one: {chain}", data=data)]
    fact = f"the nft one: {chain}. It neither shows nor changes the tables that nfctl manages"
    advice = "say iptables-legacy, or: update-alternatives --set iptables /usr/sbin/iptables-legacy"
    return [Finding(SECTION, "iptables", State.NOTE, fact, advice, data)]


def links(path: Path) -> list[str]:
    """Return a path and what it leads to, one symbolic link after the other."""
    steps = [str(path)]
    while path.is_symlink() and len(steps) < 10:
        path = path.parent / path.readlink()
        steps.append(str(path))
    return steps
