"""Applying policies in a forked child: rulesets to draw, a state of one's own, what was written.

The functions are for :meth:`tests.kernel.conftest.Namespace.python`, whose child is inside the
namespace already. The journal is on the namespace's own /run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st

from nfctl.control import apply as applying
from nfctl.control.apply import Options, Outcome
from nfctl.control.journal.state import State
from nfctl.kernel.blob import Blob
from nfctl.kernel.table import active_tables
from nfctl.policy import saved
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES
from tests.kernel.play import oracle
from tests.kernel.test_properties import Drawn, Pool, chain_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nfctl.control.change import Change
    from nfctl.policy.wanted import Wanted

PLACE: Final = Path("/run/state")  # the namespace has a /run of its own
OPTIONS: Final = Options(guard_ssh=False)


# --- applying ---------------------------------------------------------------------------------


def state() -> State:
    """Return the state in the namespace."""
    return State(PLACE)


def forget() -> None:
    """Have a state anew."""
    shutil.rmtree(PLACE, ignore_errors=True)


def wanted_of(texts: Mapping[int, str], name: str = "default") -> Wanted:
    """Return a policy of iptables-save text by family; as if it came from files."""
    files = files_of(texts, name)
    wanted = saved.read(files.get(4), files.get(6))
    wanted.name = name
    return wanted


def files_of(texts: Mapping[int, str], name: str = "default") -> dict[int, str]:
    """Write text to files, one a family; return their names."""
    found = {}
    for family, text in texts.items():
        path = Path(f"/run/{name}.v{family}")
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        found[family] = str(path)
    return found


def apply_text(
    texts: Mapping[int, str] | str,
    *,
    name: str = "default",
    exclusive: bool = False,
    confirm: float | None = None,
) -> Outcome:
    """Apply iptables-save text by family (of IPv4, if it is just text), the ordinary way."""
    texts = {4: texts} if isinstance(texts, str) else texts
    options = Options(exclusive=exclusive, guard_ssh=False, confirm=confirm)
    return applying.apply(wanted_of(texts, name), state=state(), options=options)


def apply_files(texts: Mapping[int, str] | str, *, exclusive: bool = False) -> Outcome:
    """Apply iptables-save text as ``nfctl apply -4 -6`` does: the quick way, if there is one."""
    texts = {4: texts} if isinstance(texts, str) else texts
    files = files_of(texts)
    options = Options(exclusive=exclusive, guard_ssh=False)
    return applying.apply_files(files.get(4), files.get(6), state=state(), options=options)


def plan_text(
    texts: Mapping[int, str] | str, *, name: str = "default", exclusive: bool = False
) -> Change:
    """Return the plan of iptables-save text."""
    texts = {4: texts} if isinstance(texts, str) else texts
    return applying.plan(wanted_of(texts, name), state=state(), exclusive=exclusive)


# --- what is there ----------------------------------------------------------------------------


def digests() -> dict[tuple[int, str], str]:
    """Return a digest of each table as the kernel holds it, without counters."""
    return {
        (family, table): Blob(family, table).digest()
        for family in (4, 6)
        for table in active_tables(family)
    }


def written() -> dict[str, str]:
    """Return what is written in the state: a digest of each file, but for what only helps."""
    found = {}
    for path, _, names in os.walk(PLACE):
        for name in names:
            file = Path(path, name)
            if "known" not in file.relative_to(PLACE).parts:
                found[str(file)] = (
                    f"{file.lstat().st_ino} {hashlib.sha256(file.read_bytes()).hexdigest()}"
                )
    return found


def tables_of(text: str) -> dict[str, str]:
    """Cut iptables-save text into its tables."""
    parts = text.split("\nCOMMIT\n")
    assert not parts.pop()
    return {part[1:].partition("\n")[0]: f"{part}\nCOMMIT\n" for part in parts}


def chains_of(table: str) -> dict[str, list[str]]:
    """Return the rules of each chain in a table's text, counters apart."""
    chains: dict[str, list[str]] = {}
    for line in table.splitlines():
        if line[:1] == ":":
            chains[line[1:].split(" ")[0]] = []
        elif line[:1] in {"-", "["}:
            _, chain, *spec = line[line.index("-A ") :].split(" ", 2)
            chains[chain].append("".join(spec))
    return chains


def policies_of(table: str) -> dict[str, str]:
    """Return the policy of each chain in a table's text; "-" of user-defined ones."""
    lines = [line[1:].split(" ") for line in table.splitlines() if line[:1] == ":"]
    return {words[0]: words[1] for words in lines}


def restored(text: str, family: int = 4, *options: str) -> None:
    """Have the oracle load text; with -c its counters, too."""
    program = "iptables-legacy-restore" if family == 4 else "ip6tables-legacy-restore"
    done = oracle([program, *options], text)
    assert done.code == 0, (done.err, text)


def wipe() -> None:
    """Empty the tables that are in use, with all counters at zero."""
    for family in (4, 6):
        for table in active_tables(family):
            heads = [f":{name} ACCEPT [0:0]" for name in BUILTIN_CHAINS[table]]
            restored("\n".join((f"*{table}", *heads, "COMMIT\n")), family, "-c")


# --- drawing ----------------------------------------------------------------------------------

#: Chains of other programs; the oracle takes these names in any table.
FOREIGN: Final = (
    "DOCKER",
    "DOCKER-USER",
    "KUBE-SERVICES",
    "KUBE-SVC-NPX46M4PTMTKRN6Y",
    "CNI-FORWARD",
    "LIBVIRT_INP",
    "cali-INPUT",
    "ts-input",
    "f2b-sshd",
    "FWDI_public_ZONES",
)
_COMMON: Final = ("WEB", "SSH", "log-drop", "a", "z.z", "Chain_with_28_letters_aaaaaa")
_WAYS: Final = ("", "-p udp ", "-m mark --mark 0x1 ", "-p tcp -m tcp --dport 22 ")
_DOCKERS: Final = {"-i": ("docker0", "br-0123456789ab"), "-o": ("docker_gwbridge", "virbr0")}


def home_of(chain: str, table: str) -> str:
    """Return the built-in chain that a user-defined one belongs to: the same for each drawing."""
    builtin = BUILTIN_CHAINS[table]
    return builtin[zlib.crc32(chain.encode("utf-8", "surrogateescape")) % len(builtin)]


def _order(chain: str) -> tuple[int, str]:
    return zlib.crc32(chain.encode("utf-8", "surrogateescape")) // 7, chain


def _is_ours(name: str) -> bool:
    # what the ownership of known programs would take for theirs, and what it may
    heads = ("DOCKER", "KUBE-", "CNI-", "LIBVIRT_", "cali-", "ts-", "f2b-", "ufw", "NFCTL-")
    return not name.startswith((*heads, "CILIUM", "FLANNEL", "NETAVARK")) and "ZONES" not in name


@st.composite
def a_table(draw: st.DrawFn, table: str, rules: Pool) -> str:
    """Draw a table whose chains are partly those of other drawings; jumps make no loops."""
    builtin = BUILTIN_CHAINS[table]
    names_of = st.sampled_from(_COMMON) | chain_names(table).filter(_is_ours)
    names = sorted(draw(st.lists(names_of, max_size=5, unique=True)), key=_order)
    policies = st.sampled_from(["ACCEPT", "DROP"] if table != "nat" else ["ACCEPT"])
    counter = st.integers(0, 2**64 - 1) | st.integers(0, 9)
    lines = [f"*{table}"]
    lines += [f":{name} {draw(policies)} [{draw(counter)}:{draw(counter)}]" for name in builtin]
    lines += [f":{name} - [0:0]" for name in sorted(names, key=_bytes)]
    bodies: dict[str, list[str]] = {}
    for position, name in enumerate((*builtin, *names), -len(builtin)):
        home = name if position < 0 else home_of(name, table)
        kinds = [st.just(spec) for chain, spec in rules[table] if chain == home]
        later = [one for one in names[max(0, position + 1) :] if home_of(one, table) == home]
        if later:
            jumps = st.sampled_from(
                [f"{w}-{go} {one}" for one in later for w in _WAYS for go in "jg"]
            )
            kinds += [jumps] * 5
        bodies[name] = draw(st.lists(st.one_of(kinds), max_size=8)) if kinds else []
    for name in (*builtin, *sorted(names, key=_bytes)):
        lines += [
            f"[{draw(counter)}:{draw(counter)}] -A {name} {spec}".rstrip(" ")
            for spec in bodies[name]
        ]
    return "\n".join((*lines, "COMMIT\n"))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@st.composite
def rulesets(draw: st.DrawFn, rules: Pool) -> Drawn:
    """Draw some tables, as iptables-save -c prints them."""
    names = draw(st.lists(st.sampled_from(TABLES), min_size=1, max_size=3, unique=True))
    return Drawn({name: draw(a_table(name, rules)) for name in names})


@st.composite
def with_foreign(draw: st.DrawFn, drawn: Drawn, rules: Pool) -> Drawn:
    """Weave chains of other programs, jumps to them and rules about their bridges into tables."""
    return Drawn({name: draw(_woven(name, text, rules)) for name, text in drawn.tables.items()})


@st.composite
def _woven(draw: st.DrawFn, table: str, text: str, rules: Pool) -> str:
    builtin = BUILTIN_CHAINS[table]
    lines = text.splitlines()[1:-1]
    heads = [line for line in lines if line[0] == ":"]
    bodies: dict[str, list[str]] = {line[1:].split(" ")[0]: [] for line in heads}
    for line in lines[len(heads) :]:
        bodies[line.split(" ")[2]].append(line)
    names = draw(st.lists(st.sampled_from(FOREIGN), max_size=3, unique=True))
    own = [name for name in bodies if name not in builtin]
    for name in sorted(names, key=_order):
        home = home_of(name, table)
        kinds = [spec for chain, spec in rules[table] if chain == home]
        kinds += [f"-j {one}" for one in names if _order(one) > _order(name)
                  and home_of(one, table) == home]  # fmt: skip
        if draw(st.integers(0, 4)) == 0:  # a foreign chain that jumps to one of the ruleset
            kinds += [f"-g {one}" for one in own if home_of(one, table) == home] * 9
        specs = draw(st.lists(st.sampled_from(kinds), max_size=4)) if kinds else []
        bodies[name] = [f"[{number}:7] -A {name} {spec}".rstrip(" ")
                        for number, spec in enumerate(specs)]  # fmt: skip
    for chain in [name for name in bodies if name not in names]:
        home = chain if chain in builtin else home_of(chain, table)
        woven = [f"{way}-{go} {name}" for name in names if home_of(name, table) == home
                 for way in _WAYS for go in "jg"]  # fmt: skip
        if own and any(
            f"-g {one}" in line for name in names for line in bodies[name] for one in own
        ):
            woven = [spec for spec in woven if chain in builtin]  # or there could be a loop
        for option, bridges in _DOCKERS.items():
            if home not in {"-i": ("OUTPUT", "POSTROUTING"), "-o": ("INPUT", "PREROUTING")}[option]:
                woven += [f"{option} {bridge} -m mark --mark 0x7" for bridge in bridges]
        for _ in range(draw(st.integers(0, 3)) if woven else 0):
            at = draw(st.integers(0, len(bodies[chain])))
            bodies[chain].insert(at, f"[3:4] -A {chain} {draw(st.sampled_from(woven))}")
    ordered = [*builtin, *sorted((name for name in bodies if name not in builtin), key=_bytes)]
    known = {line[1:].split(" ")[0]: line for line in heads}
    made = [f"*{table}", *(known.get(name, f":{name} - [0:0]") for name in ordered)]
    made += [line for name in ordered for line in bodies[name]]
    return "\n".join((*made, "COMMIT\n"))


def is_foreign(spec: str) -> bool:
    """Whether a rule is one of those that were woven in."""
    words = spec.split(" ")
    return words[-1] in FOREIGN or any(
        word in bridges for bridges in _DOCKERS.values() for word in words[:2]
    )


def yaml_of(texts: Mapping[int, str], name: str = "default") -> bytes:
    """Return a YAML policy (JSON is YAML) of the tables of one family."""
    [(family, text)] = texts.items()
    tables: dict[str, dict[str, object]] = {}
    for table, part in tables_of(text).items():
        policies = policies_of(part)
        chains = tables[table] = {}
        for chain, specs in chains_of(part).items():
            body: dict[str, object] = {"rules": [spec.replace("${", "$${") for spec in specs]}
            if policies[chain] != "-":
                body["policy"] = policies[chain].lower()
            chains[chain] = body
    families = ["ipv4" if family == 4 else "ipv6"]
    document = {"version": 1, "name": name, "families": families, "tables": tables}
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogateescape")


def each(function: Callable[[int], object], numbers: Iterable[int]) -> None:
    """Call a function for each number; say of which it was if one fails."""
    for number in numbers:
        try:
            function(number)
        except BaseException as error:
            error.add_note(f"at number {number}")
            raise
