"""Records: what a policy owns comes back as it was put, or is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.control.journal.records import Damaged, Record
from nfctl.control.journal.state import State
from nfctl.errors import BadInput
from nfctl.policy.wanted import Keep, Wanted, WantedChain, WantedRule, WantedSet, WantedTable
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import Word
from tests.unit.journals import a_record, begin
from tests.unit.strategies import chain_names, characters

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


def test_the_confirmed_record_is_another_one(state: State) -> None:
    """What is confirmed stays while another record is tried, until that is confirmed."""
    first, second = a_record("-s 10.0.0.1 -j DROP"), a_record("-s 10.0.0.2 -j DROP")
    state.put_record(first, confirmed=True)
    state.put_record(second, confirmed=False)
    assert (state.record("web"), state.record("web", confirmed=True)) == (second, first)
    state.confirm_record("web")
    assert state.record("web", confirmed=True) == second
    assert len(list((state.directory / "policies" / "web").glob("*.v4"))) == 1


def test_records_are_listed_and_dropped(state: State) -> None:
    """All policies' records come sorted by name; one that is dropped is gone."""
    state.put_record(a_record(name="web"), confirmed=False)
    state.put_record(a_record(name="db"), confirmed=True)
    assert [record.name for record in state.records()] == ["db", "web"]
    assert [record.name for record in state.records(confirmed=True)] == ["db"]
    state.drop_record("db")
    state.drop_record("db")
    assert [record.name for record in state.records()] == ["web"]


def test_an_entry_keeps_the_records(state: State) -> None:
    """An entry has the records of all policies as they were, whatever is applied afterwards."""
    begin(state)
    first, other = a_record("-s 10.0.0.1 -j DROP"), a_record(name="db")
    state.put_record(first, confirmed=False)
    state.put_record(other, confirmed=True)
    begin(state)
    state.put_record(a_record("-s 10.0.0.2 -j DROP"), confirmed=True)
    state.drop_record("db")
    assert state.entry(1).record_before() is None
    assert state.entry(1).records_before() == []
    assert state.entry(2).record_before() == first
    assert state.entry(2).record_before("db") == other
    assert state.entry(2).records_before() == [other, first]
    assert state.record("web") != first


def test_a_record_is_kept_by_links(state: State) -> None:
    """The rules of a record in an entry take no more room."""
    state.put_record(a_record(), confirmed=True)
    entry = begin(state)
    (file,) = (entry.path / "policies" / "web").glob("*.v4")
    assert file.stat().st_nlink == 2


def test_where_there_are_no_links(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links gets copies."""

    def refused(*_args: object, **_options: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    state.put_record(a_record(), confirmed=True)
    begin(state)
    assert state.entry(1).record_before() == a_record_like(state.entry(1).record_before())


def a_record_like(record: Record | None) -> Record:
    """Return the record of this file, at another's time."""
    assert record is not None
    return replace(a_record(), when=record.when)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".new-x", "-x", "a b", "x" * 65, "a\n"])
def test_names_that_no_policy_has(state: State, name: str) -> None:
    """A name that is no plain name of a directory is refused."""
    for use in (state.record, state.drop_record, state.confirm_record):
        with pytest.raises(BadInput, match="no name for a policy"):
            use(name)


def test_what_others_put_beside_records(state: State) -> None:
    """What is no record by its name is passed over; a record that is no directory is damaged."""
    state.put_record(a_record(), confirmed=True)
    policies = state.directory / "policies"
    (policies / "a b").mkdir()
    assert [record.name for record in state.records()] == state.policies() == ["web"]
    assert begin(state).record_before() is not None
    (policies / "plain").touch()
    with pytest.raises(Damaged, match="plain"):
        state.records()


def test_what_was_prepared_is_not_written_again(state: State) -> None:
    """The rules that were prepared are there; only what is short is left to be written."""
    record = a_record()
    state.prepare_record(record)
    assert state.record("web") is None
    (file,) = (state.directory / "policies" / "web").iterdir()
    inode = file.stat().st_ino
    state.put_record(record, confirmed=False)
    assert state.record("web") == record
    assert file.stat().st_ino == inode


def test_a_rule_of_two_lines(state: State) -> None:
    """A rule with a line break in it would become two: there is no record of that."""
    with pytest.raises(BadInput, match="line break"):
        a_record("-j ACCEPT\n-A INPUT -j DROP")
    assert not state.directory.exists()


words = st.text(characters, min_size=1, max_size=8)
rules = st.one_of(
    st.builds(WantedRule, st.lists(words, max_size=4).map(" ".join)),
    st.builds(WantedRule, st.just("-i lo -j ACCEPT")),
)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, WantedTable]:
    names = draw(st.lists(st.sampled_from(sorted(BUILTIN_CHAINS)), unique=True, max_size=3))
    made = {}
    for name in names:
        builtin = st.sampled_from(BUILTIN_CHAINS[name])
        chains = draw(st.lists(builtin | chain_names, unique=True, max_size=4))
        made[name] = WantedTable(
            {
                chain: WantedChain(
                    draw(st.lists(rules, max_size=4)),
                    draw(st.sampled_from([None, "ACCEPT", "DROP"]))
                    if chain in BUILTIN_CHAINS[name]
                    else None,
                )
                for chain in chains
            },
            draw(st.booleans()),
        )
    return made


wanted_sets = st.builds(
    WantedSet,
    words,
    words,
    st.sampled_from([0, 4, 6]),
    st.dictionaries(words, words, max_size=2),
    st.none() | st.lists(words, max_size=3),
)
keeps = st.builds(Keep, words) | st.builds(lambda text: Keep(comment=text), words)
policies = st.builds(
    Wanted,
    st.just("web"),
    st.dictionaries(st.sampled_from([4, 6]), tables()),
    st.lists(wanted_sets, max_size=2),
    st.lists(keeps, max_size=2),
    st.lists(st.tuples(words, words), max_size=2),
)


def plain(wanted: Wanted) -> Wanted:
    """Drop the places of rules."""
    for family in wanted.tables.values():
        for table in family.values():
            for chain in table.chains.values():
                chain.rules = [WantedRule(rule.spec) for rule in chain.rules]
    return wanted


@given(policies, st.booleans())
def test_a_record_is_the_whole_policy(
    tmp_path_factory: pytest.TempPathFactory, wanted: Wanted, exclusive: bool
) -> None:
    """Whatever a policy wants comes back from its record, from disk, too."""
    record = Record.of(wanted, exclusive)
    assert plain(record.wanted()) == wanted
    state = State(tmp_path_factory.mktemp("state"))
    state.put_record(record, confirmed=False)
    read = state.record("web")
    assert read == record
    assert read.digest == record.digest
    assert plain(read.wanted()) == wanted


def test_rules_that_are_words_come_back_as_text() -> None:
    """A rule that iptables-restore had split is one line of text in the record."""
    rule = WantedRule("", words=(Word("-m"), Word("comment"), Word("--comment"), Word("a b")))
    chain = WantedChain([rule])
    wanted = Wanted("web", {4: {"filter": WantedTable({"INPUT": chain})}})
    (back,) = Record.of(wanted, False).wanted().tables[4]["filter"].chains["INPUT"].rules
    assert back.spec == '-m comment --comment "a b"'
    assert str(back.where) == "record of policy web:3:10"


def test_a_record_that_was_edited(state: State) -> None:
    """A record is what was written, to the last bit, or it is refused."""
    state.put_record(a_record(), confirmed=False)
    for file in (state.directory / "policies" / "web").iterdir():
        whole = file.read_bytes()
        for old, new in ((b"DROP", b"DROQ"), (b"false", b"true"), (b'"text": {', b'"text": {,')):
            if old in whole:
                file.write_bytes(whole.replace(old, new))
                with pytest.raises(Damaged, match="was changed by another hand"):
                    state.record("web")
                file.write_bytes(whole)
    assert state.record("web") is not None
    for file in (state.directory / "policies" / "web").glob("*.v4"):
        file.unlink()
    with pytest.raises(Damaged, match=r"\.v4 is missing"):
        state.records()
    state.put_record(a_record(), confirmed=False)
    assert state.record("web") is not None
