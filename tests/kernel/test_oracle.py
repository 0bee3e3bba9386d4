"""The corpus of rule lines against the real binaries, iptables-legacy and ip6tables-legacy.

The rules of one family and table are loaded together, so that the whole corpus takes seconds.
Where a group goes wrong its rules are tried one by one, and the message names those to blame.
"""

from __future__ import annotations

import re
from difflib import unified_diff
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import nfctl
from nfctl.control.listing import listing
from nfctl.control.transaction import Transaction
from nfctl.errors import NfctlError, Unsupported
from nfctl.kernel import extensions
from nfctl.kernel.blob import Blob
from nfctl.kernel.encode import Context, Encoder
from nfctl.kernel.layout import layout
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.spec import VALUELESS, Spec
from nfctl.ruleset.words import split
from tests.kernel import corpus
from tests.kernel.conftest import legacy, private, without_comments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.kernel.conftest import Namespace
    from tests.kernel.corpus import Case, Refusal

pytestmark = pytest.mark.kernel

# The kernel hands these back otherwise than it took them, and iptables does not find them either:
# a pinned program goes by a file descriptor of who loaded it, and of the name of a timeout policy
# 4 bytes come back (xt_CT registers the usersize of its revision 0 for all revisions).
_COMES_BACK_CHANGED: Final = ("--object-pinned", "--timeout patient")

# What the program iptables says, nfctl may say better; what libxtables says it has to say too.
_OUR_WORDS: Final = {
    "-j INPUT": "`INPUT' is a built-in chain",
    "-z": "unexpected option -z",
    "-I INPUT -j ACCEPT": "unexpected option -I",
    "-n -j ACCEPT": "unexpected option -n",
    "-x": "unexpected option -x",
    "--line-numbers": "unexpected option --line-numbers",
    "-t nat -j ACCEPT": "unexpected option -t",
    "-w -j ACCEPT": "unexpected option -w",
    "-c a 1": "packet and byte counters must be numbers",
    "-c 1 b": "packet and byte counters must be numbers",
    "-p tcp --syn -m multiport --dpor 80,81": 'option "--dpor" is ambiguous',
}


class Group(NamedTuple):
    """The cases of one family and table."""

    family: int
    table: str
    cases: tuple[Case, ...]

    def __str__(self) -> str:
        return f"ipv{self.family}-{self.table}"

    @property
    def steps(self) -> list[str]:
        """What the cases need before they can load."""
        return list(dict.fromkeys(step for case in self.cases for step in case.setup))

    @property
    def user_chains(self) -> list[str]:
        return [step.split()[1] for step in self.steps if step.startswith("chain ")]


def _groups() -> list[Group]:
    cases = sorted(corpus.cases(), key=lambda case: (case.family, case.table))
    return [
        Group(family, table, tuple(group))
        for (family, table), group in groupby(cases, lambda case: (case.family, case.table))
    ]


class Line(NamedTuple):
    """A rule as iptables-save prints it."""

    chain: str
    spec: str


@pytest.fixture(scope="module")
def lacking() -> dict[tuple[str, int], str]:
    """Extension and family: the option that this kernel has not."""
    names = {(case.extension, case.family) for case in corpus.cases()}
    with private() as netns:
        reasons = netns.python(lambda: {name: corpus.kernel_lacks(*name) for name in names})
    return {name: reason for name, reason in reasons.items() if reason}


@pytest.fixture(params=_groups(), ids=str)
def group(request: pytest.FixtureRequest, lacking: dict[tuple[str, int], str]) -> Group:
    """Give each group in turn, without what this kernel has not."""
    whole: Group = request.param
    cases = (case for case in whole.cases if (case.extension, case.family) not in lacking)
    return whole._replace(cases=tuple(cases))


# What the tests do inside


def provide(cases: Iterable[Case | Refusal]) -> None:
    """Make the sets, policies and programs that cases need."""
    for step in dict.fromkeys(step for case in cases for step in case.setup):
        kind, _, rest = step.partition(" ")
        if kind in corpus._PROVIDERS:
            corpus._PROVIDERS[kind](rest)


def text_of(cases: tuple[Case, ...]) -> str:
    """Cases of one family and table as one file, with counters before every rule."""
    table, *lines = corpus.restore_text(cases).splitlines()
    policies = [
        f":{chain} ACCEPT [{number}:{number * 60}]"
        for number, chain in enumerate(BUILTIN_CHAINS[cases[0].table], 11)
    ]
    numbered = (
        line
        if line[:3] != "-A " or re.search(r" (-c|--set-counters)\b", line)
        else f"[{number}:{number * 1500}] {line}"
        for number, line in enumerate(lines, 1)
    )
    return "\n".join((table, *policies, *numbered, ""))


def theirs(family: int, table: str, text: str, *options: str) -> str:
    """Let the oracle load a text in place of what is there, and print the table."""
    done = corpus._run(f"{legacy(family)}-restore", *options, text=text)
    assert done.returncode == 0, done.stderr
    return saved(family, table, *options)


def saved(family: int, table: str, *options: str) -> str:
    return without_comments(corpus._run(f"{legacy(family)}-save", "-t", table, *options).stdout)


def empty(family: int, table: str) -> None:
    theirs(family, table, f"*{table}\nCOMMIT\n")


def blame(group: Group, *options: str) -> list[str]:
    """Load each case alone, by the oracle and by nfctl; tell where they differ."""
    found = []
    for case in group.cases:
        text = text_of((case,))
        expected = theirs(case.family, case.table, text, *options)
        empty(case.family, case.table)
        try:
            nfctl.restore(text, family=case.family, counters="-c" in options)
        except NfctlError as error:
            found.append(f"{case}\n    refused: {error}")
            continue
        made = saved(case.family, case.table, *options)
        parts = nfctl.save(case.family, tables=[case.table], counters="-c" in options)
        for what, text in (("makes", made), ("prints", "".join(parts))):
            if text != expected:
                difference = unified_diff(expected.split("\n"), text.split("\n"), n=0, lineterm="")
                found.append("\n    ".join((f"{case}\n    {what}", *list(difference)[3:])))
    return found


def held(family: int, table: str) -> bytes:
    """Return a table as the kernel holds it, counters and all."""
    return bytes(Blob(family, table).data[:])


def words_of(case: Case | Refusal) -> list[str]:
    """Split a rule as iptables-restore does."""
    return [word.text for word in split(case.rule)]


def findable(group: Group) -> Group:
    """Leave out what the kernel hands back changed: nobody can find it, or write it again."""
    cases = (c for c in group.cases if not any(words in c.rule for words in _COMES_BACK_CHANGED))
    return group._replace(cases=tuple(cases))


def by_words(group: Group) -> Group:
    """Leave out what names its family: before nfctl's commands -4 and -6 stand elsewhere."""
    named = re.compile(r"-[46]\b|--ipv[46]\b")
    return group._replace(cases=tuple(c for c in group.cases if not named.match(c.rule)))


def show(found: Iterable[str]) -> None:
    """Fail with what was found, if anything was."""
    text = "\n".join(found)
    if text:
        pytest.fail(text, pytrace=False)


# Rules that load


def test_this_kernel_has_every_extension(lacking: dict[tuple[str, int], str]) -> None:
    """All cases are tried; the extensions that this kernel has not are named here."""
    if lacking:
        names = sorted({f"{extension} ({why})" for (extension, _), why in lacking.items()})
        pytest.skip(f"this kernel has no {', '.join(names)}")


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["plain", "counters"])
def test_restore_and_save(group: Group, options: tuple[str, ...], netns: Namespace) -> None:
    """The oracle prints the same of what nfctl put there and of what it put itself; so does nfctl.

    With -c the packet and byte counters are the same too, those of the policies included.
    """
    family, table = group.family, group.table
    text = text_of(group.cases)
    netns.python(provide, group.cases)
    expected = netns.python(theirs, family, table, text, *options)
    netns.python(empty, family, table)
    done = netns.nfctl("restore", f"-{family}", "-v", *options, input=text)
    made = netns.save(family, "-t", table, *options)
    printed = netns.nfctl("save", f"-{family}", "-t", table, *options).stdout
    if (made, printed) != (expected, expected):
        pytest.fail("\n".join((done.stderr, *netns.python(blame, group, *options))), pytrace=False)
    # libxtables may warn of a rule on the same stream
    assert done.stderr.endswith(f"table {table}: written\n")


def test_what_the_oracle_put_there_is_right_already(group: Group, netns: Namespace) -> None:
    """Restoring what iptables-restore loaded from the same file writes nothing."""
    cases = findable(group).cases
    text = text_of(cases)

    def again() -> tuple[list[str], bool]:
        provide(cases)
        theirs(group.family, group.table, text, "-c")
        before = held(group.family, group.table)
        report = nfctl.restore(text, family=group.family, counters=True)
        return report.unchanged, held(group.family, group.table) == before

    assert netns.python(again) == ([group.table], True)


def test_canonical_bytes(group: Group, netns: Namespace) -> None:
    """Encoding a case makes the canonical bytes of the rule that the oracle made of it."""
    group = by_words(findable(group))

    def compare() -> list[str]:
        provide(group.cases)
        theirs(group.family, group.table, corpus.restore_text(group.cases))
        wrong = []
        with Transaction(group.family) as tables:
            edit = tables[group.table]
            there = {
                chain: [edit.decoder.canonical(parts) for _, parts in edit.kernel.entries(chain)]
                for chain in edit.chains()
            }
            for step in group.steps:  # the rules that stand before those of the cases
                if step.startswith("rule "):
                    there[step.split()[1]].pop(0)
            for case in group.cases:
                context = Context(case.table, case.chain, edit.user_chains)
                encoded = edit.encoder.encode(split(case.rule), context).rules
                rules = [there[case.chain].pop(0) for _ in encoded]
                if rules != encoded:
                    wrong.append(f"{case}:\n    {rules}\n    {encoded}")
            assert not any(there.values())
        return wrong

    show(netns.python(compare))


def test_rules_added_by_their_words(group: Group, netns: Namespace) -> None:
    """Each case appended to its chain by words makes the rules that the oracle makes of it."""
    group = by_words(group)

    def compare() -> list[str]:
        provide(group.cases)
        expected = theirs(group.family, group.table, corpus.restore_text(group.cases), "-c")
        empty(group.family, group.table)
        with Transaction(group.family) as tables:
            edit = tables[group.table]
            for chain in group.user_chains:
                edit.kernel.create_chain(chain)  # one is called like a target
                edit.user_chains.add(chain)
            for step in group.steps:
                if step.startswith("rule "):
                    _, chain, rule = step.split(" ", 2)
                    edit.append(chain, rule)
            for case in group.cases:
                assert edit.append(case.chain, words_of(case)) == case.copies, case
        made = saved(group.family, group.table, "-c")
        return list(unified_diff(expected.split("\n"), made.split("\n"), n=0, lineterm=""))

    show(netns.python(compare))


def test_the_oracles_rules_are_found_by_specification(group: Group, netns: Namespace) -> None:
    """Of what iptables put there nfctl finds what iptables -C finds, and can delete all of it."""
    group = by_words(findable(group))

    def compare() -> list[str]:
        provide(group.cases)
        theirs(group.family, group.table, corpus.restore_text(group.cases))
        with Transaction(group.family) as tables:
            edit = tables[group.table]
            found = [edit.check(case.chain, words_of(case)) for case in group.cases]
        wrong = []
        for case, ours in zip(group.cases, found, strict=True):
            code = oracle(case, "-C")
            # 2: it takes no -c there, and mistakes a chain for the target of that name
            if ours != (code in {0, 2}):
                wrong.append(f"{case}: iptables -C ends with {code}, nfctl says {ours}")
        with Transaction(group.family) as tables:
            edit = tables[group.table]
            for case, ours in zip(group.cases, found, strict=True):
                if ours and edit.delete(case.chain, words_of(case)) != case.copies:
                    wrong.append(f"{case}: not all copies are deleted")
        return wrong + surplus(group)

    show(netns.python(compare))


def test_the_oracle_finds_nfctls_rules_by_specification(group: Group, netns: Namespace) -> None:
    """What nfctl put there, iptables -D finds and deletes."""
    group = by_words(findable(group))

    def compare() -> list[str]:
        provide(group.cases)
        nfctl.restore(corpus.restore_text(group.cases), family=group.family)
        wrong = []
        for case in group.cases:
            code = oracle(case, "-D")
            if code == 2:
                with Transaction(group.family) as tables:
                    tables[case.table].delete(case.chain, words_of(case))
            elif code:
                wrong.append(f"{case}: iptables -D ends with {code}")
        return wrong + surplus(group)

    show(netns.python(compare))


def oracle(case: Case, command: str) -> int:
    """Give a rule to a command of iptables; return its exit code."""
    program = (legacy(case.family), "-t", case.table, command, case.chain)
    return corpus._run(*program, *words_of(case)).returncode


def surplus(group: Group) -> list[str]:
    """Tell the rules that are still there when all cases are deleted."""
    steps = sum(step.startswith("rule ") for step in group.steps)
    lines = corpus.saved_rules(group.family, group.table)
    return [] if len(lines) == steps else ["left over:", *lines]


@pytest.mark.parametrize(
    ("family", "table", "chain", "rule"),
    [
        (4, "filter", "INPUT", '-p tcp --dport 22 -m comment --comment "to be \\"sure\\"" -j DROP'),
        (4, "filter", "OUTPUT", "-d 10.0.0.1,10.0.0.2 ! -o lo -m owner --uid-owner 0"),
        (4, "nat", "PREROUTING", "-p tcp -j DNAT --to-destination 10.0.0.7:8080"),
        (4, "mangle", "FORWARD", "-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu"),
        (6, "raw", "PREROUTING", "-m rpfilter --invert -j DROP"),
        (6, "filter", "INPUT", "! -s 2001:db8::/32 -p icmpv6 --icmpv6-type 128 -j ACCEPT"),
    ],
)
def test_the_command_line(family: int, table: str, chain: str, rule: str, netns: Namespace) -> None:
    """Add makes the rule that iptables -A makes; check and delete find both, and then neither."""
    words = [word.text for word in split(rule)]
    assert netns.legacy("-t", table, "-A", chain, *words, family=family).returncode == 0
    expected = netns.save(family)
    rules = [line for line in expected.splitlines() if line.startswith("-A ")]

    def command(verb: str) -> int:
        return netns.nfctl("rule", verb, f"-{family}", "-t", table, chain, *words).returncode

    assert command("check") == 0
    assert command("delete") == 0
    assert command("check") == 1
    assert command("delete") == 1
    assert command("add") == 0
    assert netns.save(family) == expected
    assert command("add") == 0
    assert netns.save(family).count("\n") == expected.count("\n") + len(rules)
    assert command("delete") == 0
    assert netns.save(family) == expected


# What iptables-save prints


def test_reading(group: Group, netns: Namespace) -> None:
    """As objects and in the document of rule list, the oracle's rules are what it prints."""

    def compare() -> None:
        provide(group.cases)
        text = theirs(group.family, group.table, text_of(group.cases), "-c")
        ruleset = nfctl.read(group.family, tables=[group.table])
        assert ruleset.render(counters=True) == text
        document = listing(group.family, group.table)
        assert [
            f"[{rule['packets']}:{rule['bytes']}] -A {chain['name']} {rule['spec']}".rstrip(" ")
            for chain in document["chains"]
            for rule in chain["rules"]
        ] == [line for line in text.splitlines() if line[0] == "["]

    netns.python(compare)


@pytest.fixture
def printed(group: Group, netns: Namespace) -> list[Line]:
    """Give the rules of a group, as the oracle prints them."""

    def load() -> list[Line]:
        provide(group.cases)
        theirs(group.family, group.table, corpus.restore_text(group.cases))
        lines = corpus.saved_rules(group.family, group.table)
        return [Line(*line[3:].partition(" ")[::2]) for line in lines]

    return netns.python(load)


def test_what_the_oracle_prints_is_accepted(
    group: Group, printed: list[Line], netns: Namespace
) -> None:
    """Nfctl takes every rule that iptables-save prints, where iptables-restore takes it."""

    def read() -> list[str]:
        wrong = []
        for line in dict.fromkeys(printed):
            case = corpus.Case(*group[:2], *line, "", tuple(group.steps))
            try:
                nfctl.restore(corpus.restore_text([case]), family=group.family, test=True)
            except NfctlError as error:
                if corpus.oracle_accepts(case):
                    wrong.append(f"{case}: {error}")
        return wrong

    show(netns.python(read))


def test_the_quick_way_is_the_whole_grammar(
    group: Group, printed: list[Line], netns: Namespace
) -> None:
    """Where Encoder.quick answers, at first sight and from memory, Encoder.encode says the same."""

    def compare() -> tuple[list[str], int]:
        wrong, answers = [], 0
        quick, whole = Encoder(group.family), Encoder(group.family)
        for line in (*printed, *printed):
            context = Context(group.table, line.chain, group.user_chains)
            answer = quick.quick(line.spec, context)
            if answer is None or _COMES_BACK_CHANGED[0] in line.spec:
                continue
            answers += 1
            rules = whole.encode(split(line.spec), context).rules
            if rules != [answer]:
                wrong.append(f"{group} -A {line.chain} {line.spec}:\n    {answer!r}\n    {rules}")
        return wrong, answers

    wrong, answers = netns.python(compare)
    show(wrong)
    with_target = sum(" -j " in f" {line.spec}" for line in printed)
    assert answers > with_target  # it is asked twice


def test_taking_a_rule_apart(group: Group, printed: list[Line]) -> None:
    """Spec.parse takes every rule of iptables-save apart, and text() puts the same together."""
    wrong = []
    for line in printed:
        if line.spec == "-i two words":  # nobody can read that again
            continue
        again = Spec.parse(line.spec, family=group.family).text()
        words = [[word.text for word in split(text)] for text in (line.spec, again)]
        if words[0] != words[1]:
            wrong.append(f"{group} {line.spec}\n    {again}")
    show(wrong)


def test_options_without_a_value(netns: Namespace, lacking: dict[tuple[str, int], str]) -> None:
    """Spec.parse knows of every option of every extension installed whether it takes a value."""

    def compare() -> tuple[list[str], set[str]]:
        wrong, bare = [], set()
        for family in (4, 6):
            for name in extensions.installed(family):
                for kind, letter in (("match", "m"), ("target", "j")):
                    try:
                        extension = extensions.find(kind, name, layout(family))
                    except Unsupported:
                        continue
                    for option in extension.options.values() if extension else ():
                        spec = Spec.parse(f"-{letter} {name} --{option.name} -p tcp", family=family)
                        if (spec.protocol is not None) != (option.argument == 0):
                            wrong.append(f"ipv{family} {name} --{option.name}: {option.argument}")
                        if option.argument == 0:
                            bare.add(option.name)
        return wrong, bare

    wrong, bare = netns.python(compare)
    show(wrong)
    unknown = tuple(extension.lower() for extension, _ in lacking)
    assert {name for name in VALUELESS - bare if not name.startswith(unknown)} == set()


# Rules that are refused

_BASE: Final = {
    "raw": "-A PREROUTING -p tcp -j ACCEPT",
    "mangle": "-A PREROUTING -p tcp -j ACCEPT",
    "nat": "-A PREROUTING -p tcp -j ACCEPT",
    "filter": ":MINE - [0:0]\n-A INPUT -j MINE\n-A MINE -m limit -j DROP",
    "security": "-A INPUT -p tcp -j ACCEPT",
}


def make_base(family: int) -> None:
    nfctl.restore(
        "".join(f"*{table}\n{lines}\nCOMMIT\n" for table, lines in _BASE.items()), family=family
    )


def state(family: int) -> dict[str, bytes]:
    return {table: held(family, table) for table in _BASE}


def refused(text: str, family: int) -> NfctlError | None:
    """Return the error with which nfctl refuses a text, which must change nothing."""
    before = state(family)
    try:
        nfctl.restore(text, family=family, source="rules")
    except NfctlError as error:
        after = state(family)
        changed = [table for table in _BASE if after[table] != before[table]]
        assert not changed, f"{text}: refused, and yet changed"
        return error
    return None


@pytest.mark.parametrize("family", [4, 6])
def test_refused_in_user_space(family: int, netns: Namespace) -> None:
    """Exit code 2, the line and the column of a word, libxtables' own words, nothing changed."""

    def ask() -> list[str]:
        wrong = []
        make_base(family)
        for refusal in corpus.REFUSED:
            if refusal.family != family:
                continue
            provide([refusal])
            text = corpus.restore_text([refusal])
            error = refused(text, family)
            if error is None:
                wrong.append(f"{refusal}: loads")
                continue
            if error.exit_code != 2:
                wrong.append(f"{refusal}: exit code {error.exit_code}: {error}")
            if words_for(refusal) not in error.message:
                wrong.append(f"{refusal}: says not {words_for(refusal)!r} but {error}")
            line = text.splitlines().index(f"-A {refusal.chain} {refusal.rule}") + 1
            columns = [word.column for word in split(text.splitlines()[line - 1])]
            if str(error.where) not in {f"rules:{line}:{column}" for column in columns}:
                wrong.append(f"{refusal}: is not at {error.where}")
        return wrong

    show(netns.python(ask))


def words_for(refusal: Refusal) -> str:
    if refusal.chain not in BUILTIN_CHAINS[refusal.table]:
        return f"has no chain {refusal.chain}"
    return _OUR_WORDS.get(refusal.rule, refusal.words)


@pytest.mark.parametrize(
    ("refusal", "column"),
    [
        ("-p tcp --dport 80 -m conntrack --ctstate BOGUS -j ACCEPT", 41),
        ("-j NOSUCH", 13),
        ('-m comment --comment "a', 31),
        ("-s 10.0.0.256", 13),
    ],
)
def test_refused_on_the_command_line(refusal: str, column: int, netns: Namespace) -> None:
    """The command ends with 2 and shows the place, the line and a caret under the column."""
    netns.python(make_base, 4)
    before = netns.python(state, 4)
    text = f"*filter\n-A INPUT -j DROP\n-A INPUT {refusal}\nCOMMIT\n"
    done = netns.nfctl("restore", input=text)
    assert done.returncode == 2
    first, line, caret, *_ = done.stderr.splitlines()
    assert first.startswith(f"nfctl: error: <stdin>:3:{column}: ")
    assert line == f"  -A INPUT {refusal}"
    assert caret == " " * (column + 1) + "^"
    assert netns.python(state, 4) == before


@pytest.mark.parametrize("family", [4, 6])
def test_refused_by_the_kernel(family: int, netns: Namespace) -> None:
    """Exit code 2, the culprit's line and number among other rules, and nothing changed."""

    def ask() -> list[str]:
        wrong = []
        make_base(family)
        for refusal in corpus.KERNEL_REFUSED:
            if refusal.family != family:
                continue
            innocent = corpus.Case(family, refusal.table, refusal.chain, "-m mark --mark 1", "")
            cases = (innocent, innocent, refusal, innocent)
            text = corpus.restore_text(cases)
            error = refused(text, family)
            if error is None:
                wrong.append(f"{refusal}: loads")
                continue
            if error.exit_code != 2:
                wrong.append(f"{refusal}: exit code {error.exit_code}: {error}")
            if f"rule 3 of {refusal.chain}" not in str(error):
                wrong.append(f"{refusal}: the rule is not named: {error}")
            line = text.splitlines().index(f"-A {refusal.chain} {refusal.rule}") + 1
            if str(error.where) != f"rules:{line}:1":
                wrong.append(f"{refusal}: is not at {error.where}")
        return wrong

    show(netns.python(ask))


@pytest.mark.parametrize("verb", ["-A", "-I"])
def test_refused_in_a_second_section(verb: str, netns: Namespace) -> None:
    """Where a file has a table twice, the culprit's line in the second section is named."""

    def ask() -> str:
        make_base(4)
        first = "*filter\n-A OUTPUT -j ACCEPT\nCOMMIT\n"
        error = refused(f"{first}*filter\n{verb} INPUT -j MASQUERADE\nCOMMIT\n", 4)
        return str(error)

    error = netns.python(ask)
    assert error.startswith("rules:5:")
    assert "because of rule 1 of INPUT: -j MASQUERADE" in error


# Lines with which not every iptables deals alike


@pytest.mark.parametrize("case", corpus.VARYING, ids=str)
def test_what_varies_between_versions(case: Case, netns: Namespace) -> None:
    """An option joined to its value is parted; else nfctl takes and refuses what iptables does."""
    apart = re.sub(r"(?<!\S)(?:(--[\w-]+)=|(-\w)(?=\w))", r"\1\2 ", case.rule)
    meant = corpus.Case(case.family, case.table, case.chain, apart, case.extension)

    def compare() -> list[str | None]:
        expected = saved(case.family, case.table) if corpus.oracle_accepts(meant) else None
        empty(case.family, case.table)
        try:
            nfctl.restore(corpus.restore_text([case]), family=case.family)
        except NfctlError:
            return [expected, None]
        return [expected, saved(case.family, case.table)]

    expected, made = netns.python(compare)
    assert made == expected


@pytest.mark.parametrize("case", corpus.IGNORED, ids=str)
def test_a_line_for_the_other_family(case: Case, netns: Namespace) -> None:
    """A line that begins with the other family's -4 or -6 makes no rule, as with the oracle."""

    def compare() -> tuple[str, str]:
        text = corpus.restore_text([case])
        expected = theirs(case.family, case.table, text)
        nfctl.restore(text, family=case.family)
        return saved(case.family, case.table), expected

    made, expected = netns.python(compare)
    assert made == expected
    assert "\n-A " not in made
