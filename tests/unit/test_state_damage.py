"""The state is whole whoever is killed and whatever fails; what others wrote is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from nfctl.control.journal import durable
from nfctl.control.journal.records import Damaged
from nfctl.control.journal.state import State
from nfctl.errors import NfctlError, Unsupported
from tests.unit.journals import TEXT, a_record, begin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path / "state")


# --- another hand --------------------------------------------------------------------------------

WRONG = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"version": 2}',
    b'{"version": 1, "number": 1}',
]  # fmt: skip


@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
def test_an_entry_that_was_edited(state: State, data: bytes) -> None:
    """An entry that makes no sense is listed as damaged; the others are as they were."""
    begin(state)
    begin(state)
    (state.entry(1).path / "entry.json").write_bytes(data)
    damaged, fine = state.entries()
    assert (damaged.status, fine.status) == ("damaged", "prepared")
    assert f"{damaged.path}/entry.json was changed by another hand" in damaged.warning
    for use in (
        lambda: damaged.change,
        lambda: damaged.before_text(4),
        lambda: state.mark(1, "applied"),
    ):
        with pytest.raises(Damaged):
            use()
    assert json.dumps(damaged.document())


FIELDS = ["version", "number", "status", "who", "process", "files", "confirm", "undoes", "digests"]
VALUES: list[object] = [None, "x", 7, [1], {"a": []}, True]
RIGHT = [("confirm", 7), ("confirm", None), ("undoes", [1])]
BAD_FIELDS = [(field, value) for field in FIELDS for value in VALUES if (field, value) not in RIGHT]


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS)
def test_a_field_that_was_edited(state: State, field: str, value: object) -> None:
    """Whatever stands in a field that cannot stand there, the entry is damaged: no traceback."""
    entry = begin(state)
    document = json.loads((entry.path / "entry.json").read_bytes())
    assert (type(value), value) != (type(document[field]), document[field])
    (entry.path / "entry.json").write_text(json.dumps(document | {field: value}))
    assert state.entry(1).status == "damaged"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_a_deadline_that_never_comes(state: State, number: str) -> None:
    """A number that is no number makes the entry a damaged one, and no JSON is printed of it."""
    file = begin(state, confirm=60.0).path / "entry.json"
    document = json.loads(file.read_bytes())
    file.write_text(
        json.dumps(document | {"deadline": 0}).replace('"deadline": 0', f'"deadline": {number}')
    )
    assert state.entry(1).status == "damaged"


@pytest.mark.parametrize("name", ["before.v4", "change.json", "entry.json"])
@pytest.mark.parametrize("kind", ["a directory", "a FIFO", "a link"])
def test_what_is_no_plain_file(state: State, name: str, kind: str) -> None:
    """What is no file of ours is not read, which might never end: it is damaged."""
    entry = begin(state)
    file = entry.path / name
    file.unlink()
    if kind == "a directory":
        file.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(Damaged, match=name):
        _ = (state.entry(1).before_text(4), state.entry(1).change)


def test_no_inode_for_what_comes_later(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is only written where there are files left for the statuses and records to come."""

    class Statistics:
        f_files, f_favail = 1000, 3

    state.ready()
    monkeypatch.setattr(os, "statvfs", lambda _path: Statistics)
    with pytest.raises(Unsupported, match=r"is full.*nothing was touched"):
        begin(state)
    assert os.listdir(state.directory / "history") == []
    Statistics.f_files = 0  # btrfs, which makes inodes as they are needed
    assert begin(state).number == 1


@pytest.mark.parametrize("name", ["before.v4", "change.json", "before.sets"])
@pytest.mark.parametrize("how", ["edited", "missing"])
def test_a_text_that_was_changed(state: State, name: str, how: str) -> None:
    """A text that is not what was written is refused, and the error names the file."""
    entry = begin(state, sets="create a hash:ip\n")
    file = entry.path / name
    if how == "edited":
        file.write_bytes(file.read_bytes().replace(b"e", b"f"))
    else:
        file.unlink()
    with pytest.raises(Damaged, match=f"{name} (was changed by another hand|is missing)"):
        _ = (entry.before_text(4), entry.change, entry.sets)


def test_an_entry_without_its_file(state: State) -> None:
    """A directory without entry.json is a damaged entry, and its number is taken."""
    state.ready()
    (state.directory / "history" / "7").mkdir(mode=0o700)
    (state.directory / "history" / "notes").mkdir(mode=0o700)
    assert [(entry.number, entry.status) for entry in state.entries()] == [(7, "damaged")]
    assert begin(state).number == 8


def test_settings(state: State) -> None:
    """Settings are kept; what is no JSON is refused."""
    state.set_setting("fail", "open")
    state.set_setting("unit", {"a": 1})
    state.set_setting("fail", "closed")
    assert State(state.directory).settings == {"fail": "closed", "unit": {"a": 1}}
    (state.directory / "settings.json").write_text("[]")
    with pytest.raises(Damaged, match=r"settings\.json was changed by another hand"):
        _ = state.settings


# --- killed at any moment ------------------------------------------------------------------------

#: All that changes a file system.
CALLS = ["open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "posix_fallocate"]
NEW_TEXT = TEXT.replace("lo", "eth0")


def _mark(state: State) -> None:
    state.mark(2, "applied", reason="because")


def _both(state: State) -> None:
    state.put_record(a_record("-s 10.0.0.9 -j DROP"), confirmed=True)


CHANGES: dict[str, Callable[[State], object]] = {
    "ready": lambda state: state.ready(1000),
    "begin": lambda state: begin(state, before={4: NEW_TEXT, 6: NEW_TEXT}, sets="x"),
    "mark": _mark,
    "put": _both,
    "prepare": lambda state: state.prepare_record(a_record("-s 10.0.0.9 -j DROP")),
    "confirm": lambda state: state.confirm_record("web"),
    "drop": lambda state: state.drop_record("web"),
    "prune": lambda state: state.prune(keep=1),
    "setting": lambda state: state.set_setting("fail", "open"),
}


def kill_at(number: int) -> None:
    """Have this process killed at the ``number``-th call that changes the file system.

    The killed one is not made; of a write, the first half is.
    """
    left = number

    def counting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name), name))


def all_of(state: State) -> tuple[object, ...]:
    """Return everything that can be read of a state."""
    entries = state.entries()
    for entry in entries:
        assert entry.status != "damaged", entry.warning
    return (
        [(entry.number, entry.status, entry.reason) for entry in entries],
        [(entry.before_text(4), entry.before_text(6), entry.sets) for entry in entries],
        [[record.text for record in entry.records_before()] for entry in entries],
        [record.text for record in state.records()],
        [record.text for record in state.records(confirmed=True)],
        state.settings,
    )


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_any_call(tmp_path: Path, change: str) -> None:
    """Wherever SIGKILL comes, each thing is as it was or as it is to be, and no rest stays."""
    number, died = 0, True
    seen: list[tuple[object, ...]] = []
    while died:
        number += 1
        state = State(tmp_path / f"at-{number}")
        state.put_record(a_record("-s 10.0.0.1 -j DROP"), confirmed=True)
        begin(state)
        state.put_record(a_record("-s 10.0.0.2 -j DROP"), confirmed=False)
        begin(state)
        before = all_of(state)
        child = os.fork()
        if child == 0:
            kill_at(number)
            CHANGES[change](state)
            os._exit(0)
        died = os.waitpid(child, 0)[1] == signal.SIGKILL
        after = all_of(State(state.directory))
        seen.append(after)
        with state.locked(0):
            assert [str(path) for path in state.directory.rglob(".*")] == []
        assert all_of(state) == after
        assert before[0][0] in (after[0][0], (1, "prepared", "")) or change == "prune"  # type: ignore[index]
        assert begin(state).number in {3, 4}
    last = seen[-1]
    assert number > 3
    for one in seen:
        for part, first, end in zip(one, seen[0], last, strict=True):
            # a confirmed record goes with its policy; pruning goes entry by entry
            assert part in (first, end)
    if change not in {"ready", "prepare"}:
        assert seen[0] != last


def test_a_write_that_fails_leaves_nothing(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle is an error that says so, and leaves no half entry."""
    begin(state)
    real, left = os.fsync, 3

    def full(fd: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unsupported, match=r"is full.*nothing was touched"):
        begin(state)
    monkeypatch.undo()
    assert [entry.number for entry in state.entries()] == [1]
    assert [path.name for path in (state.directory / "history").iterdir()] == ["1"]


def test_rests_of_the_dead_are_swept(state: State) -> None:
    """Temporary names of killed processes are gone after the next use under the lock."""
    state.put_record(a_record(), confirmed=False)
    begin(state)
    rests = [
        state.directory / f"{durable.NEW}settings.json",
        state.directory / "history" / f"{durable.NEW}2",
        state.directory / "history" / f"{durable.OLD}1",
        state.directory / "policies" / "web" / f"{durable.NEW}record.json",
    ]
    for rest in rests[1:3]:
        rest.mkdir()
        (rest / "before.v4").write_text("x")
    for rest in (rests[0], rests[3]):
        rest.write_text("x")
    assert [entry.number for entry in state.entries()] == [1]
    with state.locked():
        pass
    assert not any(rest.exists() for rest in rests)


def test_every_error_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file system answers to any call, the caller gets an NfctlError."""
    state = State(tmp_path / "state")
    begin(state)
    for call in CALLS[:-1]:
        for number in (5, 13, 28, 30):

            def fails(*_args: object, number: int = number, **_options: object) -> NoReturn:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(os, call, fails)
                for change in ("begin", "mark", "put", "setting"):
                    with contextlib.suppress(NfctlError):
                        CHANGES[change](state)
