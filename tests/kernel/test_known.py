"""The quick way of an apply: it comes to just what the ordinary way comes to, or is not taken."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control import known, show
from nfctl.control.undo import rollback
from nfctl.errors import NfctlError
from nfctl.kernel.encode import Encoder
from nfctl.ruleset.names import BUILTIN_CHAINS
from tests.kernel import applying, play
from tests.kernel.applying import apply_files, apply_text, is_foreign, rulesets, state
from tests.kernel.test_properties import examples, pool, without_counters

if TYPE_CHECKING:
    from collections.abc import Iterator

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
                chain, spec = draw(st.sampled_from(rules[table] if table in rules else rules["raw"]))
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
def files(draw: st.DrawFn, rules: Pool) -> tuple[list[str], bool]:
    return draw(versions(draw(rulesets(rules)), rules)), draw(st.integers(0, 4)) == 0


def outcome(text: str, family: int, *, exclusive: bool) -> dict[str, Any]:
    """Apply a file; return all that this comes to."""
    found: dict[str, Any] = {}
    try:
        done = apply_files({family: text}, exclusive=exclusive)
        change = show.document(done.change)
        change["tables"] = [table for table in change["tables"] if table["chains"]]
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
def test_both_ways_come_to_the_same(
    family: int, netns: Namespace, ways: Counter[str]
) -> None:
    """Whatever is done to a file: kernel, plan, journal, record and error are the ordinary ones."""

    def inside() -> dict[str, int]:
        rules = pool(family)

        @examples(120)
        @given(files(rules))
        def prove(drawn: tuple[list[str], bool]) -> None:
            texts, exclusive = drawn
            applying.wipe()
            applying.forget()
            applying.restored("*filter\n:EMPTY - [0:0]\nCOMMIT\n", family, "--noflush")
            outcome(texts[0], family, exclusive=exclusive)
            for text in texts[1:]:
                before = play.saved(family)
                shutil.rmtree(COPY, ignore_errors=True)
                shutil.copytree(applying.PLACE, COPY, symlinks=True)
                quick = outcome(text, family, exclusive=exclusive)
                after = shutil.copytree(applying.PLACE, COPY / "after", symlinks=True)
                applying.restored(before, family, "-c")
                put(COPY)
                shutil.rmtree(KNOWN, ignore_errors=True)
                ordinary = outcome(text, family, exclusive=exclusive)
                assert difference(quick, ordinary) == ""
                put(after)  # which goes on the quick way

        prove()
        return dict(ways)

    found = netns.python(inside)
    assert found["taken"] > 30 * found["tried"] // 100, found
    assert found["spliced"] > 5, found


def put(copy: Path) -> None:
    """Have the state be what it was."""
    applying.forget()
    shutil.copytree(copy, applying.PLACE, symlinks=True, ignore=shutil.ignore_patterns("after"))
    for path, _, names in os.walk(applying.PLACE):
        Path(path).chmod(0o700)
        for name in names:
            Path(path, name).chmod(0o600)
