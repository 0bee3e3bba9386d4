"""Whatever there was before: afterwards there is what the policy wants, and what is others'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nfctl.control import apply as control
from nfctl.control.undo import rollback
from nfctl.errors import BadInput
from nfctl.policy import reading
from tests.kernel import applying
from tests.kernel.applying import (
    FOREIGN,
    OPTIONS,
    chains_of,
    is_foreign,
    policies_of,
    rulesets,
    state,
    tables_of,
    with_foreign,
)
from tests.kernel.play import saved
from tests.kernel.test_properties import Drawn, examples, pool, without_counters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.kernel.conftest import Namespace
    from tests.kernel.test_properties import Pool

pytestmark = pytest.mark.kernel


@st.composite
def pairs(draw: st.DrawFn, rules: Pool) -> tuple[Drawn, Drawn]:
    """Draw what there is, others' chains woven in, and what is to be."""
    before = draw(with_foreign(draw(rulesets(rules)), rules))
    after = draw(rulesets(rules))
    if draw(st.booleans()):  # also such as differ in little
        after = Drawn(
            {
                name: without_foreign(before.tables.get(name, text))
                for name, text in after.tables.items()
            }
        )
    return before, after


def without_foreign(table: str) -> str:
    """Return a table as if nobody else had written to it."""
    lines = []
    for line in table.splitlines(keepends=True):
        words = line.split()
        if line[0] == ":" and words[0][1:] in FOREIGN:
            continue
        if line[0] == "[" and (words[2] in FOREIGN or is_foreign(" ".join(words[3:]))):
            continue
        lines.append(line)
    return "".join(lines)


def load(drawn: Drawn, family: int) -> dict[str, str]:
    """Have the oracle load tables; return all tables there are."""
    applying.wipe()
    applying.forget()
    applying.restored(drawn.text, family, "-c")
    return tables_of(saved(family))


def prove_merged(before: Mapping[str, str], wanted: Mapping[str, str], family: int,
                 *, whole: bool) -> None:  # fmt: skip
    """Assert that each table holds what is wanted, and what others had in it, in order."""
    now = tables_of(saved(family))
    assert set(now) == {*before, *wanted}
    for table, text in now.items():
        if table not in wanted:
            assert text == before[table]
            continue
        old, goal, found = (
            chains_of(before.get(table, "")),
            chains_of(wanted[table]),
            chains_of(text),
        )
        jumped = {spec.split(" ")[-1] for name in FOREIGN for spec in old.get(name, ())}
        for chain, specs in found.items():
            theirs = [spec for spec in specs if is_foreign(spec)]
            if chain in FOREIGN or (chain not in goal and not whole):
                assert specs == old[chain], chain
            else:
                assert theirs == [spec for spec in old.get(chain, ()) if is_foreign(spec)], chain
                assert [spec for spec in specs if not is_foreign(spec)] == goal.get(chain, []), (
                    chain
                )
        stay = {
            chain
            for chain, specs in old.items()
            if not whole or chain in FOREIGN or chain in jumped or any(map(is_foreign, specs))
        }
        assert set(found) == {*goal, *stay}
        policies = policies_of(text)
        assert {chain: policies[chain] for chain in goal} == policies_of(wanted[table])


def prove_settled(wanted: object, family: int, *, exclusive: bool = False) -> None:
    """Assert that there is nothing left to do, and that doing nothing writes nothing."""
    assert not control.plan(wanted, state=state(), exclusive=exclusive).changes  # type: ignore[arg-type]
    held, journal, text = applying.digests(), applying.written(), saved(family)
    options = control.Options(exclusive=exclusive, guard_ssh=False)
    outcome = control.apply(wanted, state=state(), options=options)  # type: ignore[arg-type]
    assert (outcome.status, outcome.entry) == (control.UNCHANGED, None)
    assert applying.digests() == held
    assert applying.written() == journal
    assert saved(family) == text


def prove_undone(before: Mapping[str, str], wanted: Mapping[str, str], family: int) -> None:
    """Assert that all is as it was before, with all counters that can be told apart."""
    for table, text in tables_of(saved(family)).items():
        if table not in before:  # it was not in use
            assert "-A" not in text
            continue
        old = before[table]
        assert without_counters(text) == without_counters(old)
        equal = {
            chain
            for source in (old, wanted.get(table, ""))
            for chain, specs in chains_of(source).items()
            if len(set(specs)) < len(specs)
        }
        for line, was in zip(text.splitlines(), old.splitlines(), strict=True):
            assert line == was or line.split(" ")[2] in equal
    assert not state().records()


@pytest.mark.parametrize("family", [4, 6])
def test_save_files(family: int, netns: Namespace) -> None:
    """A save file's tables are as it says, but for others' rules; a rollback is what was before."""

    def inside() -> None:
        rules = pool(family)

        @examples(80)
        @given(pairs(rules))
        def prove(drawn: tuple[Drawn, Drawn]) -> None:
            before = load(drawn[0], family)
            wanted = {family: drawn[1].text}
            outcome = applying.apply_text(wanted)
            prove_merged(before, drawn[1].tables, family, whole=True)
            prove_settled(applying.wanted_of(wanted), family)
            if outcome.entry is not None:
                rollback(state())
                prove_undone(before, drawn[1].tables, family)

        prove()

    netns.python(inside)


@pytest.mark.parametrize("family", [4, 6])
def test_yaml(family: int, netns: Namespace) -> None:
    """Chains that a YAML policy names are as it says, but for others' rules; all else stays."""

    def inside() -> None:
        rules = pool(family)

        @examples(80)
        @given(pairs(rules))
        def prove(drawn: tuple[Drawn, Drawn]) -> None:
            try:
                wanted = reading.parse(applying.yaml_of({family: drawn[1].text}))
            except BadInput:  # what YAML has no way to say: bytes that are no text
                assume(False)
            before = load(drawn[0], family)
            control.apply(wanted, state=state(), options=OPTIONS)
            prove_merged(before, drawn[1].tables, family, whole=False)
            prove_settled(wanted, family)

        prove()

    netns.python(inside)


@pytest.mark.parametrize("family", [4, 6])
def test_exclusive(family: int, netns: Namespace) -> None:
    """With --exclusive the tables are what the file says and nothing else, whoever wrote there."""

    def inside() -> None:
        rules = pool(family)

        @examples(60)
        @given(pairs(rules))
        def prove(drawn: tuple[Drawn, Drawn]) -> None:
            before = load(drawn[0], family)
            wanted = {family: drawn[1].text}
            applying.apply_text(wanted, exclusive=True)
            now = tables_of(saved(family))
            assert set(now) == {*before, *drawn[1].tables}
            for table, text in now.items():
                if table in drawn[1].tables:
                    assert without_counters(text) == without_counters(drawn[1].tables[table])
                else:
                    assert text == before[table]
            prove_settled(applying.wanted_of(wanted), family, exclusive=True)

        prove()

    netns.python(inside)
