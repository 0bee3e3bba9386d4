"""The quick way of an apply: it comes to just what the ordinary way comes to, or is not taken."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control import known, show
from nfctl.control.undo import rollback
from nfctl.errors import NfctlError
from nfctl.kernel.encode import Encoder
from nfctl.kernel.table import Table
from nfctl.lab.fork import Child
from tests.kernel import applying, play
from tests.kernel.applying import apply_files, rulesets, state
from tests.kernel.conftest import legacy
from tests.kernel.test_properties import examples, pool, without_counters

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace
    from tests.kernel.test_properties import Drawn, Pool

pytestmark = pytest.mark.kernel

KNOWN: Final = applying.PLACE / "known"
COPY: Final = Path("/run/copy")

# --- any edit of any file -----------------------------------------------------------------------

_ODD: Final = (
    "-A {chain} -s 10.0.0.1,10.0.0.2 -j ACCEPT",
    "-A {chain} -s 2001:db8::1,2001:db8::2 -j ACCEPT",
    "-A {chain} -4 -j ACCEPT",
    "-A {chain} -6 -j ACCEPT",
    '-A {chain} -m comment --comment "-6 and -A INPUT" -j ACCEPT',
    "-A {chain} -m comment --comment COMMIT",
    "[1:2] -A {chain} -j ACCEPT",
    "--append {chain} -j ACCEPT",
    " -A {chain} -j ACCEPT",
    "-A {chain}",
    "-A {chain}  -p tcp",
    "-A {chain} -p tcp ",
    "-A {chain}\t-p tcp",
    '-A "{chain}" -p tcp',
    "-A {chain} -p tcp -m tcp --dport no-such-port",
    "-A {chain} -j NO-SUCH-CHAIN",
    "-A {chain} -j EMPTY",
    "-A EMPTY -j ACCEPT",
    "-A NO-SUCH-CHAIN -j ACCEPT",
    "-A {chain} -j ACCEPT\r",
    "-I {chain} -j ACCEPT",
    "-P INPUT DROP",
    ":NEW - [0:0]",
    ":{chain} - [0:0]",
    ":OUTPUT DROP [nonsense]",
    ":OUTPUT ACCEPT [5:6]",
    "# a comment",
    "",
    "COMMIT",
    "*filter",
    "*nat",
    "nonsense",
)


@st.composite
def edits(draw: st.DrawFn, lines: list[str], rules: Pool) -> list[str]:
    """Draw another version of a file: lines that come, go, move, and are changed."""
    lines = list(lines)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines)))
        table = next((line[1:] for line in lines[at::-1] if line[:1] == "*"), "filter")
        chains = [line[1:].split(" ")[0] for line in lines if line[:1] == ":"]
        match draw(st.integers(0, 7)):
            case 0:
                del lines[at : at + draw(st.integers(1, 3))]
            case 1:
                lines[at:at] = lines[at : at + 1]
            case 2 if at < len(lines):
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case 3:
                lines[at : at + 1] = [draw(st.sampled_from(_ODD)).format(
                    chain=draw(st.sampled_from(chains or ["INPUT"])))]  # fmt: skip
            case 4:
                lines.insert(at, draw(st.sampled_from(_ODD)).format(
                    chain=draw(st.sampled_from(chains or ["INPUT"]))))  # fmt: skip
            case _:
                chain, spec = draw(
                    st.sampled_from(rules[table] if table in rules else rules["raw"])
                )
                lines.insert(at, f"-A {chain} {spec}")
    return lines


@st.composite
def versions(draw: st.DrawFn, drawn: Drawn, rules: Pool) -> list[str]:
    """Draw a file and what becomes of it."""
    text = drawn.text if draw(st.integers(0, 5)) == 0 else without_counters(drawn.text)
    lines = text.split("\n")
    if draw(st.integers(0, 3)) == 0:
        lines = draw(edits(lines, rules))
    found = ["\n".join(lines)]
    for _ in range(draw(st.integers(1, 3))):
        lines = draw(edits(lines, rules))
        found.append("\n".join(lines))
    return found


@st.composite
def files(draw: st.DrawFn, rules: Pool) -> tuple[list[str], bool, random.Random]:
    texts = draw(versions(draw(rulesets(rules)), rules))
    return texts, draw(st.integers(0, 4)) == 0, random.Random(draw(st.integers(0, 1 << 30)))


def disturb(family: int, rng: random.Random) -> None:
    """Have another program edit a chain; what iptables refuses is none."""
    chains = [
        (table, chain)
        for table, found in applying.tables_of(play.saved(family)).items()
        for chain in applying.chains_of(found)
    ]
    if not chains:
        return
    table, chain = rng.choice(chains)
    edit = rng.choice((
        f"-I {chain} -j RETURN",
        f"-A {chain} -s 192.0.2.9" if family == 4 else f"-A {chain} -s 2001:db8::9",
        f"-D {chain} 1",
        f"-D {chain} 1",
        f"-R {chain} 1 -p udp",
        f"-A {chain} -i docker0",
        f"-A {chain} -m comment --comment by-hand",
        f"-P {chain} DROP",
        "-N docker-like",
    ))  # fmt: skip
    play.oracle([legacy(family), "-t", table, *edit.split()])


def outcome(text: str, family: int, *, exclusive: bool) -> dict[str, Any]:
    """Apply a file; return all that this comes to."""
    found: dict[str, Any] = {}
    try:
        done = apply_files({family: text}, exclusive=exclusive)
        change = show.document(done.change)
        change["tables"] = [table for table in change["tables"] if table["chains"]]
        if done.status == "unchanged":  # the quick way does not look whose the rest is
            change["tables"] = change["summary"] = None
        found = {"status": done.status, "change": change}
        if done.entry is not None:
            found["before"] = done.entry.before_text(family)
    except NfctlError as error:
        found = {"error": (type(error), error.message, error.hint, str(error.where))}
    found["tables"] = play.saved(family)
    found["record"] = [(one.text, one.whole, one.raw) for one in state().records()]
    return found


def difference(one: Any, other: Any, at: str = "") -> str:
    """Say where two documents differ first, and in what; "" if nowhere."""
    if type(one) is type(other) and isinstance(one, dict) and one.keys() == other.keys():
        return next(filter(None, (difference(one[k], other[k], f"{at}.{k}") for k in one)), "")
    if type(one) is type(other) and isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return next(filter(None, (difference(*pair, f"{at}.{n}") for n, pair in pairs)), "")
    return "" if one == other else f"{at}: {one!r} and {other!r}"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often the quick way was taken, and how often it was tried."""
    return watched(monkeypatch)


def watched(patch: pytest.MonkeyPatch) -> Counter[str]:
    count: Counter[str] = Counter()
    plan = known.QuickPlanner.plan

    def counted(self: known.QuickPlanner, sides: Any) -> Any:
        count["tried"] += 1
        plans = plan(self, sides)
        count["taken"] += 1
        count["spliced"] += bool(plans.tables)
        return plans

    patch.setattr(known.QuickPlanner, "plan", counted)
    return count


@pytest.mark.parametrize("family", [4, 6])
def test_both_ways_come_to_the_same(family: int, netns: Namespace, ways: Counter[str]) -> None:
    """Whatever is done to a file: kernel, plan, journal, record and error are the ordinary ones."""

    def inside() -> dict[str, int]:
        rules = pool(family)

        @examples(120)
        @given(files(rules))
        def prove(drawn: tuple[list[str], bool, random.Random]) -> None:
            texts, exclusive, rng = drawn
            applying.wipe()
            applying.forget()
            applying.restored("*filter\n:EMPTY - [0:0]\nCOMMIT\n", family, "--noflush")
            outcome(texts[0], family, exclusive=exclusive)
            for text in texts[1:]:
                if rng.random() < 0.4:
                    disturb(family, rng)
                before = play.saved(family)
                shutil.rmtree(COPY, ignore_errors=True)
                shutil.copytree(applying.PLACE, COPY, symlinks=True)
                quick = outcome(text, family, exclusive=exclusive)
                after = shutil.copytree(applying.PLACE, COPY / "after", symlinks=True)
                applying.restored(before, family, "-c")
                put(COPY)
                shutil.rmtree(KNOWN, ignore_errors=True)
                ordinary = outcome(text, family, exclusive=exclusive)
                unlike = difference(quick, ordinary)
                assert not unlike, unlike
                put(after)  # which goes on the quick way

        prove()
        return dict(ways)

    found = netns.python(inside)
    assert found["taken"] > found["tried"] // 10, found
    assert found["spliced"] > 5, found


def put(copy: Path) -> None:
    """Have the state be what it was."""
    applying.forget()
    shutil.copytree(copy, applying.PLACE, symlinks=True, ignore=shutil.ignore_patterns("after"))
    for path, _, names in os.walk(applying.PLACE):
        Path(path).chmod(0o700)
        for name in names:
            Path(path, name).chmod(0o600)


# --- when it is taken, and when not -------------------------------------------------------------

_RULES: Final = "".join(f"-A INPUT -s 10.0.0.{number} -p tcp --dport 22\n" for number in range(50))
TEXT: Final = f"*filter\n:INPUT ACCEPT [0:0]\n:WEB - [0:0]\n{_RULES}-A WEB -j DROP\nCOMMIT\n"
CHANGED: Final = TEXT.replace("10.0.0.7 ", "10.9.9.9 ")


def counted(texts: dict[int, str] | str, **options: bool) -> tuple[str, int]:
    """Apply files; return what became of it, and how many rules were encoded for it."""
    calls = 0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("quick", "encode"):
            encode = getattr(Encoder, name)

            def counting(self: Encoder, *args: Any, encode: Any = encode) -> Any:
                nonlocal calls
                calls += 1
                return encode(self, *args)

            patch.setattr(Encoder, name, counting)
        return apply_files(texts, **options).status, calls


def both_counted(texts: list[str]) -> list[tuple[str, int]]:
    return [counted(text) for text in texts]


def test_only_what_differs_is_encoded(netns: Namespace) -> None:
    """An unchanged file costs no encoding, a changed line that of this line."""
    twice = TEXT.replace("10.0.0.7 ", "10.9.9.9 ").replace("10.0.0.8 ", "10.9.9.8 ")
    texts = [TEXT, TEXT, CHANGED, CHANGED, TEXT, f"# remark\n{TEXT}", twice]
    found = netns.python(both_counted, texts)
    assert [status for status, _ in found] == [
        "applied", "unchanged", "applied", "unchanged", "applied", "unchanged", "applied",
    ]  # fmt: skip
    assert [calls for _, calls in found][1:] == [0, 1, 0, 1, 0, 2]
    assert found[0][1] >= 51


def edited(*words: str) -> tuple[str, int, str]:
    """Apply a file; edit the tables by hand; return what another version of it comes to."""
    text = TEXT.replace(":WEB", ":BIG - [0:0]\n:WEB").replace("COMMIT", "-A BIG -j WEB\nCOMMIT")
    apply_files(text)
    assert play.oracle(["iptables-legacy", *words]).code == 0
    status, calls = counted(text.replace("-A BIG -j WEB", "-A BIG -p udp -j WEB"))
    return status, calls, play.saved(4)


@pytest.mark.parametrize(
    ("words", "calls"),
    [("-I WEB -j ACCEPT", 2), ("-R BIG 1 -j DROP", 1), ("-D INPUT 7", 51), ("-F", 52)],
)
def test_what_others_edited_is_encoded_anew(words: str, calls: int, netns: Namespace) -> None:
    """Of a table that others edited, only the chains that differ are encoded, and put right."""
    status, counted_calls, text = netns.python(edited, *words.split())
    assert (status, counted_calls) == ("applied", calls)
    rules = [f"-A INPUT -s 10.0.0.{n}/32 -p tcp -m tcp --dport 22" for n in range(50)]
    expected = [*rules, "-A BIG -p udp -j WEB", "-A WEB -j DROP"]
    found = [line.partition("] ")[2] for line in text.splitlines() if "] -A " in line]
    assert found == expected


def changing(what: str) -> tuple[str, int]:
    """Apply a file; change something that decides; return what the same file comes to."""
    apply_files(TEXT)
    assert counted(TEXT) == ("unchanged", 0)
    options = {}
    match what:
        case "another policy":
            applying.apply_text("*raw\n:MINE - [0:0]\nCOMMIT\n", name="other")
        case "iptables":
            assert play.oracle(["iptables-legacy", "-N", "MINE"]).code == 0
        case "a policy by iptables":
            assert play.oracle(["iptables-legacy", "-P", "INPUT", "DROP"]).code == 0
        case "exclusive":
            options = {"exclusive": True}
        case "names":
            services = Path("/run/services")
            services.write_bytes(Path("/etc/services").read_bytes())
            assert play.oracle(["mount", "--bind", str(services), "/etc/services"]).code == 0
        case "boot":
            known_files = list(KNOWN.glob("policy-*"))
            assert known_files
            for file in known_files:
                text = file.read_text()
                assert state().boot_id in text
                file.write_text(text.replace(state().boot_id, "another-boot"))
        case "version":
            pytest.MonkeyPatch().setattr(known, "__version__", "0.0.0")
        case "damage":
            for file in KNOWN.iterdir():
                file.write_bytes(file.read_bytes()[:-9])
        case "the record":
            state().drop_record("default")
        case "rollback":
            apply_files(CHANGED)
            rollback(state())
            assert counted(TEXT)[1] >= 51
            # the kernel is what was remembered, and the record is not
            apply_files(CHANGED)
            rollback(state())
            assert play.oracle(["iptables-legacy-restore"], CHANGED).code == 0
    return counted(TEXT, **options)


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("another policy", "unchanged"),
        ("iptables", "applied"),
        ("a policy by iptables", "applied"),
        ("exclusive", "unchanged"),
        ("names", "unchanged"),
        ("boot", "unchanged"),
        ("version", "unchanged"),
        ("damage", "unchanged"),
        ("the record", "unchanged"),
        ("rollback", "applied"),
    ],
)
def test_in_doubt_it_is_not_taken(what: str, status: str, netns: Namespace) -> None:
    """Whatever else decides has changed: then everything is encoded and compared."""
    done, calls = netns.python(changing, what)
    assert done == status
    assert calls >= 51
    if what != "exclusive":
        wanted = [line for line in TEXT.splitlines() if line.startswith("-A")]
        assert netns.save().count("\n-A ") == len(wanted)


def test_another_set_of_the_same_number(netns: Namespace) -> None:
    """A rule holds the number of an ipset: where another set has got it, that is noticed."""
    text = TEXT.replace("-A WEB -j DROP", "-A WEB -m set --match-set one src -j DROP")
    rule = "-m set --match-set {} src -j DROP"

    def inside() -> tuple[bool, str]:
        assert play.oracle(["ipset", "create", "one", "hash:ip"]).code == 0
        apply_files(text)
        assert counted(text) == ("unchanged", 0)
        held = applying.digests()
        for command in (
            f"iptables-legacy -D WEB {rule.format('one')}",
            "ipset destroy one",
            "ipset create two hash:ip",
            f"iptables-legacy -A WEB {rule.format('two')}",
        ):
            assert play.oracle(command.split()).code == 0
        same = applying.digests() == held
        with pytest.raises(NfctlError) as caught:
            apply_files(text)
        return same, caught.value.message

    same, message = netns.python(inside)
    assert same  # or this proves nothing
    assert "one" in message


def test_others_rules_in_the_table(netns: Namespace) -> None:
    """Beside rules of Docker an unchanged file is quick; a changed one finds its place around."""

    def inside() -> list[tuple[str, int]]:
        applying.restored(
            "*filter\n:DOCKER - [0:0]\n-A INPUT -j DOCKER\n-A DOCKER -j RETURN\nCOMMIT\n"
        )
        return [counted(text) for text in (TEXT, TEXT, CHANGED)]

    found = netns.python(inside)
    assert found[1] == ("unchanged", 0)
    assert found[2][0] == "applied"
    rules = [line for line in netns.save().splitlines() if line.startswith("-A INPUT")]
    assert rules[0] == "-A INPUT -j DOCKER"
    assert "-A INPUT -s 10.9.9.9/32 -p tcp -m tcp --dport 22" in rules
    assert len(rules) == 51


def test_an_apply_that_was_killed(netns: Namespace) -> None:
    """Killed between the record and the commit: the same file is not taken for applied."""

    def doomed() -> None:
        pytest.MonkeyPatch().setattr(Table, "commit", lambda _: os.kill(os.getpid(), SIGKILL))
        apply_files(CHANGED)

    def inside() -> tuple[str, int]:
        apply_files(TEXT)
        with pytest.raises(ChildProcessError):
            Child(doomed).result(60)
        return counted(CHANGED)

    assert netns.python(inside)[0] == "applied"
    assert "10.9.9.9" in netns.save()


def test_both_families(netns: Namespace) -> None:
    """A line that changes in one family's file is encoded alone; the other family's is not read."""
    six = TEXT.replace("10.0.0.", "2001:db8::")

    def inside() -> list[tuple[str, int]]:
        return [
            counted(texts)
            for texts in (
                {4: TEXT, 6: six},
                {4: CHANGED, 6: six},
                {4: CHANGED, 6: six.replace("::7 ", "::77 ")},
                {4: CHANGED},
                {6: six.replace("::7 ", "::77 ")},
            )
        ]

    assert netns.python(inside)[1:] == [
        ("applied", 1),
        ("applied", 1),
        ("unchanged", 0),
        ("unchanged", 0),
    ]
    assert "2001:db8::77/128" in netns.save(6)
