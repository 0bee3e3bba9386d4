"""What holds for any ruleset, and for anything at all that is given to nfctl as one.

Hypothesis runs inside the namespace, in a forked child: restoring costs a millisecond there. Its
choices are the same in every run.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import nfctl
from nfctl.control.restore import explain_line
from nfctl.control.transaction import Transaction
from nfctl.errors import BadInput, NfctlError, RolledBack, Unsupported
from nfctl.kernel.blob import Blob
from nfctl.ruleset.names import BUILTIN_CHAINS, TABLES, VERDICTS
from nfctl.ruleset.script import decode
from nfctl.ruleset.words import join, split
from tests.bench import generate
from tests.kernel import corpus
from tests.kernel.conftest import SLOWNESS, legacy, without_comments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from nfctl.control.edit import TableEdit
    from tests.kernel.conftest import Namespace
    from tests.kernel.corpus import Case, Refusal

pytestmark = pytest.mark.kernel

# Chain and specification of rules, by table.
Pool = dict[str, list[tuple[str, str]]]


def examples(number: int) -> settings:
    return settings(
        max_examples=max(number // SLOWNESS, 10),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


_HUGE: Final = 100_000
_JUMPS: Final = ("", "-p udp ", "-s 10.0.0.0/8 -i eth+ ", "-m mark --mark 0x1 ")
_NAME_LETTERS: Final = "abcXYZ0189-_.:+@%=/[]{}()!,;~^'`*?#$&|<>\\éΩ"


class Drawn(NamedTuple):
    """A ruleset as iptables-save -c prints it: the text of each table."""

    tables: Mapping[str, str]

    @property
    def text(self) -> str:
        return "".join(self.tables.values())


# Rulesets


def pool(family: int) -> Pool:
    """Return the rules of the corpus that need nothing, as the oracle prints them."""
    found: Pool = {}
    for table in TABLES:
        cases = [
            case
            for case in corpus.cases()
            if (case.family, case.table, case.setup) == (family, table, ())
            and case.chain in BUILTIN_CHAINS[table]
            and case.rule != '-i "two words"'  # which nobody can read again as it is printed
            and not corpus.kernel_lacks(case.extension, family)
        ]
        assert corpus.restore(cases).returncode == 0
        lines = [line[3:].partition(" ") for line in corpus.saved_rules(family, table)]
        found[table] = [(chain, spec) for chain, _, spec in lines]
    return found


def chain_names(table: str) -> st.SearchStrategy[str]:
    taken = {*VERDICTS, *BUILTIN_CHAINS[table]}
    plain = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,27}", fullmatch=True)
    odd = st.text(_NAME_LETTERS, min_size=1, max_size=28).filter(
        lambda name: name[0] not in "-!#" and len(name.encode()) <= 28
    )
    return (plain | odd).filter(lambda name: name not in taken)


@st.composite
def a_table(draw: st.DrawFn, table: str, rules: Pool, family: int) -> str:
    """Draw a table: chains that belong to one built-in chain each, and jumps forward only."""
    builtin = BUILTIN_CHAINS[table]
    names = draw(st.lists(chain_names(table), max_size=6, unique=True))
    homes = [draw(st.sampled_from(builtin)) for _ in names]
    counter = st.integers(0, 2**64 - 1) | st.integers(0, 9)
    policies = st.sampled_from(["ACCEPT", "DROP"] if table != "nat" else ["ACCEPT"])
    lines = [f"*{table}"]
    lines += [f":{name} {draw(policies)} [{draw(counter)}:{draw(counter)}]" for name in builtin]
    lines += [f":{name} - [0:0]" for name in sorted(names, key=str.encode)]
    bodies: dict[str, list[str]] = {}
    for position, name in enumerate((*builtin, *names)):
        home = name if position < len(builtin) else homes[position - len(builtin)]
        kinds = [st.just(spec) for chain, spec in rules[table] if chain == home]
        for later, later_home in list(zip(names, homes, strict=True))[
            max(0, position - len(builtin) + 1) :
        ]:
            if later_home == home:
                ways = [way for way in _JUMPS if _fits(way, home, family)]
                jumps = st.sampled_from([f"{way}-{go} {later}" for way in ways for go in "jg"])
                kinds += [jumps] * 5
        bodies[name] = draw(st.lists(st.one_of(kinds), max_size=8)) if kinds else []
    for name in (*builtin, *sorted(names, key=str.encode)):
        lines += [
            f"[{draw(counter)}:{draw(counter)}] -A {name} {spec}".rstrip(" ")
            for spec in bodies[name]
        ]
    return "\n".join((*lines, "COMMIT\n"))


def _fits(way: str, home: str, family: int) -> bool:
    return not ("-s" in way and (family == 6 or home in {"OUTPUT", "POSTROUTING"}))


@st.composite
def rulesets(draw: st.DrawFn, rules: Pool, family: int) -> Drawn:
    """Draw some tables, in any order."""
    names = draw(st.lists(st.sampled_from(TABLES), min_size=1, max_size=3, unique=True))
    return Drawn({name: draw(a_table(name, rules, family)) for name in names})


def without_counters(text: str) -> str:
    """Zero the counters of policies and drop those of rules, as a restore without -c does."""
    lines = []
    for line in text.splitlines(keepends=True):
        if line[0] == "[":
            lines.append(line.partition("] ")[2])
        elif line[0] == ":":
            lines.append(f"{line.rpartition(' ')[0]} [0:0]\n")
        else:
            lines.append(line)
    return "".join(lines)


def oracle(family: int, program: str, *options: str, text: str = "") -> str | None:
    """Run iptables-save or iptables-restore; return what it prints, None where it refuses."""
    command = [f"{legacy(family)}-{program}", *options]
    data = text.encode("utf-8", "surrogateescape")
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return None if done.returncode else done.stdout.decode("utf-8", "surrogateescape")


def saved(family: int, table: str, *options: str) -> str:
    text = oracle(family, "save", "-t", table, *options)
    assert text is not None
    return without_comments(text)


def wipe(family: int, tables: Iterable[str]) -> None:
    """Empty tables, and begin their counters anew."""
    text = "".join(
        "\n".join((f"*{table}", *(f":{name} ACCEPT" for name in BUILTIN_CHAINS[table]), "COMMIT\n"))
        for table in tables
    )
    assert oracle(family, "restore", text=text) is not None


def held(family: int) -> dict[str, bytes]:
    """Return all tables as the kernel holds them."""
    return {table: bytes(Blob(family, table).data[:]) for table in TABLES}


@pytest.mark.parametrize("family", [4, 6])
def test_a_ruleset_goes_in_and_comes_out(family: int, netns: Namespace) -> None:
    """Restore and save are inverse: for iptables-save, for nfctl save, and once more for -c."""

    def inside() -> None:
        rules = pool(family)

        @examples(60)
        @given(rulesets(rules, family), st.booleans())
        def prove(drawn: Drawn, counters: bool) -> None:
            wipe(family, drawn.tables)
            nfctl.restore(drawn.text, family=family, counters=counters)
            for table, text in drawn.tables.items():
                plain = without_counters(text)
                assert saved(family, table, "-c") == (text if counters else zeroed(text))
                if not counters:
                    assert saved(family, table) == plain
            names = list(drawn.tables)
            whole = "".join(nfctl.save(family, tables=names, counters=True))
            assert whole == "".join(saved(family, table, "-c") for table in names)
            before = held(family)
            again = nfctl.restore(whole, family=family, counters=True)
            assert (again.written, again.unchanged) == ([], names)
            again = nfctl.restore("".join(nfctl.save(family, tables=names)), family=family)
            assert (again.written, again.unchanged) == ([], names)
            assert held(family) == before

        prove()

    netns.python(inside)


def zeroed(text: str) -> str:
    """Return what iptables-save -c prints where nothing was counted yet."""
    lines = without_counters(text).splitlines(keepends=True)
    return "".join(f"[0:0] {line}" if line.startswith("-A ") else line for line in lines)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_ruleset_as_real_ones_look(seed: int, netns: Namespace) -> None:
    """Three hundred rules in four tables are restored as written, and restored again unwritten."""
    assert netns.run(["ipset", "restore"], generate.ipsets()).returncode == 0
    text = generate.with_counters(generate.ruleset(300, seed=seed, spread=True), seed=seed)
    tables = ["raw", "mangle", "nat", "filter"]
    first = netns.nfctl("restore", "-c", "-v", input=text)
    assert first.stderr.splitlines() == [f"table {table}: written" for table in tables]
    assert "".join(netns.save(4, "-c", "-t", table) for table in tables) == text
    again = netns.nfctl("restore", "-c", "-v", input=netns.nfctl("save", "-c").stdout)
    assert sorted(again.stderr.splitlines()) == sorted(
        f"table {name}: unchanged" for name in tables
    )
    assert "".join(netns.save(4, "-c", "-t", table) for table in tables) == text


# Anything at all


def vocabulary(family: int) -> list[list[str]]:
    """Return the words of every rule of the corpus, the bad ones too."""
    everything: tuple[Case | Refusal, ...] = (
        *corpus.cases(),
        *corpus.REFUSED,
        *corpus.KERNEL_REFUSED,
        *corpus.VARYING,
    )
    return [
        [word.text for word in split(case.rule)]
        for case in everything
        if case.family == family and not case.setup
    ]


def junk() -> st.SearchStrategy[str]:
    """Draw what nobody would write: control characters, no UTF-8, very long words."""
    letters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    broken = st.binary(max_size=6).map(
        lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    )
    numbers = st.integers(-(2**70), 2**70).map(str)
    huge = st.sampled_from(["x", "1", "1,", "a:", "-", "!", "%s", "/"]).map(
        lambda part: (part * _HUGE)[:_HUGE]
    )
    return st.one_of(letters, broken, numbers, letters, broken, numbers, huge)


@st.composite
def mangled(draw: st.DrawFn, rules: list[list[str]]) -> list[str]:
    """Draw the words of a rule, and drop, double, swap, change and add some."""
    words = list(draw(st.sampled_from(rules)))
    vocabulary_word = st.sampled_from(rules).flatmap(lambda rule: st.sampled_from(rule or [""]))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(words)))
        match draw(st.integers(0, 6)):
            case 0:
                del words[at : at + 1]
            case 1:
                words[at:at] = words[at : at + 1]
            case 2:
                words[at : at + 2] = words[at : at + 2][::-1]
            case 3:
                words[at : at + 1] = [draw(junk())]
            case 4:
                words[at:at] = [draw(vocabulary_word)]
            case 5:
                words[at : at + 1] = [draw(vocabulary_word)]
            case _:
                words[at:] = draw(st.sampled_from(rules))
    return words


# What a file may tell to do; appending mostly.
_LINES: Final = (
    *["-A {chain} {rule}"] * 8,
    "[12:3456] -A {chain} {rule}",
    "-I {chain} {rule}",
    "-I {chain} 1 {rule}",
    "-R {chain} 1 {rule}",
    "-D {chain} 1",
    "-D {chain} {rule}",
    "-C {chain} {rule}",
    "-N {chain}",
    "-N NEW",
    "-X NEW",
    "-E MINE NEW",
    "-F {chain}",
    "-Z {chain}",
    "-P {chain} ACCEPT",
    ":{chain} DROP [1:2]",
)


@st.composite
def spoiled(draw: st.DrawFn, rules: list[list[str]]) -> bytes:
    """Draw a file of a few rules, and bytes of it cut out, doubled, changed and added."""
    lines = []
    for table in draw(st.lists(st.sampled_from(TABLES), min_size=1, max_size=3)):
        lines += [f"*{table}", ":MINE - [0:0]"]
        for _ in range(draw(st.integers(0, 4))):
            chain = draw(st.sampled_from([*BUILTIN_CHAINS[table], "MINE"]))
            words = draw(mangled(rules)) if draw(st.booleans()) else draw(st.sampled_from(rules))
            line = draw(st.sampled_from(_LINES))
            lines.append(line.format(chain=chain, rule=" ".join(words)))
        lines.append("COMMIT")
    data = bytearray("\n".join((*lines, "")).encode("utf-8", "surrogateescape"))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 12))
        match draw(st.integers(0, 5)):
            case 0:
                del data[at : at + length]
            case 1:
                data[at:at] = data[at : at + length]
            case 2:
                data[at : at + length] = draw(st.binary(max_size=8))
            case 3:
                data[at:at] = draw(st.sampled_from([b"\n", b" ", b'"', b"\\", b"\t", b"\r", b"\0"]))
            case 4:
                del data[at:]
            case _:
                data[at:at] = draw(st.sampled_from([b"x", b"1", b" ", b"\n", b'"', b"-"])) * _HUGE
    return bytes(data)


_BEFORE: Final = "".join(
    f"*{table}\n:MINE - [0:0]\n-A OUTPUT -j MINE\n-A MINE -p tcp -j RETURN\nCOMMIT\n"
    for table in TABLES
)


def survive(family: int, last: Path, data: bytes, act: Callable[[], object]) -> None:
    """Do something that may be refused, but then has to leave the kernel's tables alone."""
    last.write_bytes(data)
    nfctl.restore(_BEFORE, family=family)
    before = held(family)
    refusal: NfctlError | None = None
    try:
        act()
    except NfctlError as error:
        refusal = error
    if refusal is not None:
        # 2, but where the kernel lacks an extension, and where one of several tables was put back
        assert refusal.exit_code == 2 or isinstance(refusal, (Unsupported, RolledBack)), refusal
        assert str(refusal)
        assert held(family) == before, f"{refusal}, and yet something changed"


def run_inside(netns: Namespace, last: Path, inside: Callable[[], None]) -> None:
    """Run hypothesis inside; where the child dies, say of what."""
    __tracebackhide__ = True
    try:
        netns.python(inside)
    except pytest.fail.Exception as error:
        pytest.fail(f"{error}, of {last.read_bytes()!r}")


@pytest.mark.parametrize("family", [4, 6])
def test_any_file(family: int, netns: Namespace, tmp_path: Path) -> None:
    """Spoiled files and random bytes are restored, or refused with code 2 and without a trace."""
    rules, last = vocabulary(family), tmp_path / "last"

    def inside() -> None:
        @examples(300)
        @given(st.one_of(spoiled(rules), spoiled(rules), st.binary()), st.booleans())
        def prove(data: bytes, noflush: bool) -> None:
            def act() -> None:
                text = decode(data, "<stdin>")
                try:
                    nfctl.restore(text, family=family, noflush=noflush, source="<stdin>")
                except NfctlError as error:
                    error.excerpt = explain_line(error, text)  # as the command does
                    raise

            survive(family, last, data, act)

        prove()

    run_inside(netns, last, inside)


@pytest.mark.parametrize("family", [4, 6])
def test_any_words(family: int, netns: Namespace, tmp_path: Path) -> None:
    """Mangled rules by their words are added, found and deleted, or refused without a trace."""
    places = [(table, chain) for table in TABLES for chain in BUILTIN_CHAINS[table]]
    rules, last = vocabulary(family), tmp_path / "last"

    def inside() -> None:
        @examples(300)
        @given(mangled(rules), st.sampled_from(places))
        @example(["-j", "\udc80"], ("filter", "INPUT"))
        def prove(words: list[str], place: tuple[str, str]) -> None:
            table, chain = place

            def act() -> None:
                with Transaction(family) as tables:
                    tables[table].append(chain, words)
                with Transaction(family) as tables:
                    assert tables[table].check(chain, words)
                    tables[table].delete(chain, words)

            written = " ".join((table, chain, *words)).encode("utf-8", "surrogateescape")
            survive(family, last, written, act)

        prove()

    run_inside(netns, last, inside)


# iptables up to 1.8.9 parts no joined options, reads numbers up to what is none, and the rest of a
# line no further than to the other family's -4 or -6.
_DEALT_WITH_OTHERWISE: Final = re.compile(
    r"-[cjpisod]\S|--(jump|protocol|in-interface|src|dst)=|-c$|--set-c|-[46]|--ipv[46]"
)


@pytest.mark.parametrize("family", [4, 6])
def test_the_oracles_verdict(family: int, netns: Namespace, tmp_path: Path) -> None:
    """Of mangled rules nfctl takes those that iptables-restore takes, and makes the same."""
    rules, last = vocabulary(family), tmp_path / "last"

    def inside() -> None:
        empty = "*filter\n:MINE - [0:0]\nCOMMIT\n"

        @examples(250)
        @given(mangled(rules), st.sampled_from([*BUILTIN_CHAINS["filter"], "MINE"]))
        def prove(words: list[str], chain: str) -> None:
            assume(not any(_DEALT_WITH_OTHERWISE.match(word) or "\n" in word for word in words))
            text = f"*filter\n:MINE - [0:0]\n-A {chain} {join(words)}\nCOMMIT\n"
            last.write_bytes(text.encode("utf-8", "surrogateescape"))
            taken = oracle(family, "restore", text=text) is not None
            expected = saved(family, "filter") if taken else None
            nfctl.restore(empty, family=family)
            made = None
            try:
                nfctl.restore(text, family=family)
                made = saved(family, "filter")
            except NfctlError as error:
                if expected is not None:
                    raise AssertionError(f"only nfctl refuses {text}: {error}") from error
            assert made == expected, text

        prove()

    run_inside(netns, last, inside)


@pytest.mark.parametrize("text", ["INPUT\0x", "\0", "\ud800"])
def test_what_is_no_text(text: str, netns: Namespace) -> None:
    """A NUL byte, and what is no bytes at all, is refused wherever Python code can put it."""
    spec = f"-m comment --comment {text} -j DROP"

    def inside() -> list[str]:
        nfctl.restore(_BEFORE)
        before = held(4)
        ways: dict[str, Callable[[TableEdit], object]] = {
            "words": lambda table: table.append("INPUT", ["-i", text]),
            "specification": lambda table: table.append("INPUT", spec),
            "chain": lambda table: table.append(text, "-j DROP"),
            "new chain": lambda table: table.create_chain(text),
            "policy": lambda table: table.set_policy(text, "DROP"),
        }
        wrong = []
        for what, act in ways.items():
            try:
                with Transaction(4) as tables:
                    act(tables["filter"])
                wrong.append(f"{what}: taken")
            except NfctlError:
                pass
            except Exception as error:  # noqa: BLE001 - that there is any is what is wrong
                wrong.append(f"{what}: {error!r}")
        for line in (f"-A INPUT {spec}", f":{text} - [0:0]", f"-A {text} -j DROP"):
            with pytest.raises(BadInput):
                nfctl.restore(f"*filter\n{line}\nCOMMIT\n")
        assert held(4) == before
        return wrong

    assert netns.python(inside) == []
