"""Prove the corpus by the real binaries: python -m tests.kernel.check_corpus (as root).

It goes into private namespaces by itself, and ends with status 1 where the corpus is wrong.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.kernel import corpus

_INSIDE: Final = "mount -t tmpfs tmpfs /run && ip link set lo up && exec " + '"$@"'
_PREFIXES: Final = {4: ("libxt_", "libipt_"), 6: ("libxt_", "libip6t_")}


class _Table(ctypes.Structure):
    """An entry of a table of options, either kind: the name is what comes first."""

    _fields_ = (("name", ctypes.c_char_p),)


class _Extension(ctypes.Structure):
    """What struct xtables_match and struct xtables_target begin with, up to the options."""

    _fields_ = (
        ("version", ctypes.c_char_p),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("real_name", ctypes.c_char_p),
        ("revision", ctypes.c_uint8),
        ("ext_flags", ctypes.c_uint8),
        ("family", ctypes.c_uint16),
        ("size", ctypes.c_size_t),
        ("userspacesize", ctypes.c_size_t),
        ("functions_before", ctypes.c_void_p * 7),
        ("extra_opts", ctypes.c_void_p),
        ("x6_parse", ctypes.c_void_p),
        ("x6_fcheck", ctypes.c_void_p),
        ("x6_options", ctypes.c_void_p),
    )


class _Globals(ctypes.Structure):
    """What libxtables wants to be told before it loads anything."""

    _fields_ = (
        ("option_offset", ctypes.c_uint),
        ("program_name", ctypes.c_char_p),
        ("program_version", ctypes.c_char_p),
        ("orig_opts", ctypes.c_void_p),
        ("opts", ctypes.c_void_p),
        ("exit_err", ctypes.c_void_p),
        ("compat_rev", ctypes.c_void_p),
    )


def _installed(family: int) -> list[str]:
    """Names of the match and target extensions that have a file, for one family."""
    directory = next(Path("/usr/lib").glob("*/xtables"))
    names = {
        path.stem.removeprefix(prefix)
        for prefix in _PREFIXES[family]
        for path in directory.glob(f"{prefix}*.so")
    }
    return sorted(names - set(corpus.NO_EXTENSION))


def _registered_options(family: int) -> dict[str, list[str]]:
    """Ask libxtables for the options of each extension, in the revision that fits this kernel."""
    library = ctypes.CDLL("libxtables.so.12")
    for function in (library.xtables_find_target, library.xtables_find_match):
        function.restype = ctypes.POINTER(_Extension)
    compatible = ctypes.cast(library.xtables_compatible_revision, ctypes.c_void_p)
    program = _Globals(0, b"corpus", b"0", None, None, None, compatible)
    library.xtables_init_all(ctypes.byref(program), 2 if family == 4 else 10)
    options = {}
    for name in _installed(family):
        is_target = name.isupper() or name == "standard"
        find = library.xtables_find_target if is_target else library.xtables_find_match
        # 2: try to load it. What does not know this family is not found.
        if found := find(name.encode(), 2, None):
            options[name] = _names(found.contents)
    return options


def _names(extension: _Extension) -> list[str]:
    # sizeof: struct xt_option_entry is 48 bytes, struct option of getopt is 32.
    table, size = (extension.x6_options, 48) if extension.x6_options else (extension.extra_opts, 32)
    names: list[str] = []
    while table and (name := _Table.from_address(table + size * len(names)).name):
        names.append(name.decode())
    return names


def _check_coverage(family: int) -> list[str]:
    """Name each extension that no case of this family uses, and each option that none uses."""
    rules: dict[str, str] = {}
    for case in corpus.cases():
        rules[case.extension] = f"{rules.get(case.extension, '')}{case.rule} "
    here = {case.extension for case in corpus.cases() if case.family == family}
    registered = _registered_options(family)
    count = sum(map(len, registered.values()))
    print(f"IPv{family}: {len(registered)} extensions with {count} options")
    return [
        *(f"no IPv{family} case for {extension}" for extension in registered.keys() - here),
        *(
            f"no case for {extension} --{option}"
            for extension, options in registered.items()
            for option in options
            if not re.search(rf"--{re.escape(option)}[ =]", rules.get(extension, ""))
        ),
    ]


def _check_cases() -> tuple[list[str], dict[str, str]]:
    """Load all cases, a table at a time, and count what is printed back."""
    wrong = []
    lacking: dict[str, str] = {}
    by_table = sorted(corpus.cases(), key=lambda case: (case.family, case.table))
    for (family, table), grouped in groupby(by_table, key=lambda case: (case.family, case.table)):
        everything = list(grouped)
        absent = {
            extension: reason
            for extension in {case.extension for case in everything}
            if (reason := corpus.kernel_lacks(extension, family))
        }
        lacking |= absent
        group = [case for case in everything if case.extension not in absent]
        result = corpus.restore(group)
        if result.returncode:
            alone = [case for case in group if not corpus.oracle_accepts(case)]
            wrong += [f"does not load: {case}" for case in alone]
            wrong += [] if alone else [f"ipv{family} {table}: load only apart: {result.stderr}"]
            continue
        made = Counter(line.split()[1] for line in corpus.saved_rules(family, table))
        steps = {step for case in group for step in case.setup}
        meant = Counter(step.split()[1] for step in steps if step.startswith("rule "))
        for case in group:
            meant[case.chain] += case.copies
        if made != meant:
            wrong.append(f"ipv{family} {table}: prints {made} rules instead of {meant}")
    return wrong, lacking


def _check_refusals() -> list[str]:
    """Let each bad rule fail, in the layer and with the words that the corpus says."""
    wrong = []
    for refusal in (*corpus.REFUSED, *corpus.KERNEL_REFUSED):
        result = corpus.restore([refusal])
        parsed = corpus.restore([refusal], "--test").returncode == 0
        if result.returncode == 0:
            wrong.append(f"loads: {refusal}")
        elif refusal.words not in result.stderr:
            wrong.append(f"{refusal}: says not {refusal.words!r} but {result.stderr!r}")
        elif parsed != (refusal in corpus.KERNEL_REFUSED):
            wrong.append(f"fails in the other layer: {refusal}")
    wrong.extend(
        f"is not ignored: {case}"
        for case in corpus.IGNORED
        if not corpus.oracle_accepts(case) or corpus.saved_rules(case.family, case.table)
    )
    return wrong


def _check() -> int:
    begin = time.monotonic()
    wrong, lacking = _check_cases()
    print(f"{len(corpus.cases())} cases, {time.monotonic() - begin:.1f} s")
    for extension, reason in sorted(lacking.items()):
        print(f"  this kernel has no {extension}: {reason}")
    wrong += _check_refusals()
    print(f"{len(corpus.REFUSED)} refused, {len(corpus.KERNEL_REFUSED)} refused by the kernel")
    taken = ", ".join(case.rule for case in corpus.VARYING if corpus.oracle_accepts(case))
    print(f"{len(corpus.VARYING)} vary, of which this iptables takes: {taken}")
    for family in (4, 6):
        # One process a family: libxtables keeps the one that it began with.
        sys.stdout.flush()
        if child := os.fork():
            if os.waitpid(child, 0)[1]:
                wrong.append(f"the coverage of IPv{family} has gaps")
            continue
        missing = _check_coverage(family)
        print(*missing, sep="\n", end="\n" if missing else "", flush=True)
        os._exit(bool(missing))
    print("\n".join(wrong) or "all of it is so")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:] == ["inside"]:
        sys.exit(_check())
    inside = [sys.executable, "-m", "tests.kernel.check_corpus", "inside"]
    command = ["unshare", "--net", "--mount", "sh", "-c", _INSIDE, "sh", *inside]
    sys.exit(subprocess.run(command, check=False).returncode)
