"""nfctl history: what it prints of a journal, and its documents; no kernel is asked."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from nfctl import cli
from nfctl.cli.answer import run
from nfctl.control import show
from nfctl.control.change import ChainChange, Change, Line, Run, SetChange, TableChange
from nfctl.control.journal.records import Damaged
from nfctl.control.journal.remembered import change_of
from nfctl.control.journal.state import State
from tests.unit.journals import TEXT, begin, of_a_dead_one

if TYPE_CHECKING:
    from pathlib import Path

ENTRY_KEYS = (
    "number when action policy status reason who files summary confirm deadline boot_id undoes "
    "undone_by more warning left"
).split()
WHO_KEYS = "user uid login sudo_user tty ssh pid command".split()
CHANGE = Change(
    "web",
    [
        TableChange(
            4,
            "filter",
            [
                ChainChange(
                    "INPUT",
                    policy=("ACCEPT", "DROP"),
                    runs=[
                        Run("same", 0, 0, 1), Run("kept", 1, 1, 1), Run("delete", 2, 1, 1),
                        Run("add", 3, 1, 1),
                    ],
                    lines=[
                        Line("same", 1, "-i lo -j ACCEPT", (1, 2)),
                        Line("kept", 2, "-j ts-input", (0, 0), "Tailscale"),
                        Line("delete", 3, "-s 10.0.0.1/32 -j ACCEPT", (5, 300), moved=True),
                        Line("add", 3, "-s 10.0.0.1/32 -j ACCEPT", moved=True),
                    ],
                    before=3,
                    after=3,
                    note="as it is",
                ),
                ChainChange("OLD", deleted=True),
                ChainChange("NEW", created=True),
            ],
            "abc",
        ),
        TableChange(6, "nat"),
    ],
    [SetChange("swap", "bad", "hash:ip", 1, 0, ("+ 192.0.2.1",))],
    [("web.yaml", "0" * 64)],
    ["a note"],
)  # fmt: skip


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setenv("NFCTL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC")
    return State()


def call(*words: str) -> tuple[int, str]:
    said = ""

    def action() -> int:
        nonlocal said
        done = CliRunner().invoke(cli.application(["history", "rollback"]), list(words))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        said = done.output
        return done.exit_code

    return run(action), said


@pytest.fixture
def said(capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    """Run a command; return its exit code and what it wrote to both streams."""

    def nfctl(*words: str) -> tuple[int, str, str]:
        code, text = call(*words)
        out, err = capfdbinary.readouterr()
        return code, text + out.decode(), err.decode()

    return nfctl


def test_a_change_comes_back_from_its_document() -> None:
    """What the journal keeps of a change is shown as the change itself was."""
    back = change_of(json.loads(json.dumps(show.document(CHANGE))))
    assert show.text(back) == show.text(CHANGE)
    assert show.document(back) == show.document(CHANGE)


@pytest.mark.parametrize("wrong", [{}, {"policy": ""}, show.document(CHANGE) | {"tables": [1]}])
def test_a_document_of_something_else(wrong: dict[str, Any]) -> None:
    """What is no document of a change is damage, and no traceback."""
    with pytest.raises(Damaged, match="makes no sense"):
        change_of(wrong)


def test_nothing_so_far(state: State, said: Any) -> None:
    """An empty journal is said to be empty, and to look makes no directory."""
    code, out, _ = said("history")
    assert (code, out) == (0, f"nothing was changed so far: {state.directory} has no entry\n")
    code, out, _ = said("history", "--json")
    assert json.loads(out) == {"directory": str(state.directory), "entries": []}
    assert not state.directory.exists()
    code, _, err = said("history", "show", "1")
    assert code == 2
    assert "the journal has no entry 1" in err


def test_the_list(state: State, said: Any) -> None:
    """The newest comes first; each line says when, what, which policy, what became of it, who."""
    document = show.document(CHANGE)
    begin(state, change=document, summary={"add": 1, "delete": 2, "chains_created": 1, "move": 1})
    state.mark(1, "rolled back", undone_by=2)
    begin(state, action="rollback", undoes=[1], summary={"add": 2, "delete": 1})
    state.mark(2, "applied")
    begin(state, confirm=600)
    state.mark(3, "unconfirmed")
    code, out, _ = said("history")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == "NUMBER WHEN ACTION POLICY STATUS BY CHANGES".split()
    assert [line.split()[0] for line in lines[1:]] == ["3", "2", "1"]
    assert "apply     web     unconfirmed, " in lines[1]
    assert "s left" in lines[1]
    assert lines[2].endswith("+2 -1, undoes 1")
    assert "rolled back by 2" in lines[3]
    assert lines[3].endswith("+1 -2, 1 rule moved, 1 chain")
    (line,) = said("history", "-n", "1")[1].splitlines()[1:]
    assert line.split()[:5] == lines[1].split()[:5]
    assert json.loads(said("history", "-n", "0", "--json")[1])["entries"] == []


def test_the_list_on_a_narrow_terminal(
    state: State, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a line is too long for the terminal, what changed has a line of its own."""
    begin(state, summary={"add": 9, "delete": 1, "policies": 2, "chains_created": 3})
    state.mark(1, "rolled back", undone_by=2)
    wide = said("history")[1]
    assert max(map(len, wide.splitlines())) > 80
    monkeypatch.setattr("nfctl.cli.history.width", lambda: 80)
    lines = said("history")[1].splitlines()
    assert lines[0].split() == "NUMBER WHEN ACTION POLICY STATUS BY".split()
    assert "rolled back by 2" in lines[1]
    assert lines[2:] == ["        +9 -1, 2 policies, 3 chains"]
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr("nfctl.cli.history.width", lambda: 100)
    assert said("history")[1] == wide


def test_the_documents(state: State, said: Any) -> None:
    """The documents have the keys that the module promises, and the values of the journal."""
    begin(state, change=show.document(CHANGE), before={4: TEXT})
    (entry,) = json.loads(said("history", "--json")[1])["entries"]
    assert list(entry) == ENTRY_KEYS
    assert list(entry["who"]) == WHO_KEYS
    assert entry["files"] == [{"file": "rules.yaml", "sha256": "0" * 64}]
    assert (entry["number"], entry["status"], entry["left"]) == (1, "prepared", None)
    shown = json.loads(said("history", "show", "1", "--json")[1])
    assert list(shown) == [*ENTRY_KEYS, "change", "before"]
    assert shown["change"] == show.document(CHANGE)
    assert shown["before"] == {"ipv4": f"{state.entry(1).path}/before.v4", "ipv6": None}
    assert {key: shown[key] for key in ENTRY_KEYS} == entry


def test_an_entry_is_shown(state: State, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Show says who, from where, which files, where the text from before is, and the plan."""
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.1 50000 192.0.2.2 22")
    begin(state, change=show.document(CHANGE))
    state.mark(1, "failed", reason="the kernel refused it")
    code, out, _ = said("history", "show", "1")
    assert code == 0
    assert out.startswith("entry 1, apply of policy web: failed\n")
    assert "from 192.0.2.1\n" in out
    assert "  why      the kernel refused it\n" in out
    assert f"  file     rules.yaml  sha256 {'0' * 64}\n" in out
    assert f"  before   {state.entry(1).path}/before.v4\n" in out
    assert out.endswith(show.text(CHANGE))


def test_escape_sequences_are_shown_as_text(state: State, said: Any) -> None:
    """Nothing that came from a file or a command line is obeyed by the terminal."""
    begin(state, policy="\x1b[2J", files=[("\x1b[31m", "x")])
    for words in (("history",), ("history", "show", "1")):
        _, out, err = said(*words)
        assert "\x1b" not in out + err
    assert "\\x1b[2J" in said("history")[1]


def test_before_is_the_text(state: State, said: Any) -> None:
    """--before prints the text byte for byte; IPv4 unless -6 is given."""
    begin(state, before={4: TEXT, 6: TEXT.replace("lo", "eth0")})
    assert said("history", "show", "1", "--before")[:2] == (0, TEXT)
    assert said("history", "show", "1", "--before", "-4")[:2] == (0, TEXT)
    assert said("history", "show", "1", "--before", "-6")[1] == TEXT.replace("lo", "eth0")


def test_before_of_tables_that_were_not_in_use(state: State, said: Any) -> None:
    """A table that the change brought to life is an empty one in the text that undoes it."""
    begin(state, before={4: "", 6: ""}, change=show.document(CHANGE))
    empty = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    assert said("history", "show", "1", "--before")[:2] == (0, empty)
    code, out, err = said("history", "show", "1", "--before", "-6")
    assert (code, out) == (1, "")
    assert "entry 1 is not about IPv6" in err


@pytest.mark.parametrize(
    "words",
    [
        "history show 1 -6",
        "history show 1 --before --json",
        "history show 1 --before -4 -6",
        "history --json show 1",
        "history -n 3 show 1",
        "history --netns blue show 1",
        "history show 0",
        "history show",
        "history -n -1",
        "rollback x",
    ],
)
def test_bad_usage(state: State, said: Any, words: str) -> None:
    """Options that mean nothing there are refused with exit code 2."""
    begin(state)
    code, _, err = said(*words.split())
    assert code == 2, err
    assert "Traceback" not in err


def test_a_damaged_entry_is_listed(state: State, said: Any) -> None:
    """An entry that somebody edited is damaged in the list; show says which file."""
    begin(state)
    begin(state)
    file = state.entry(1).path / "entry.json"
    file.write_text("{}")
    code, out, _ = said("history")
    assert code == 0
    assert out.splitlines()[2].split() == ["1", "damaged"]
    (_, damaged) = json.loads(said("history", "--json")[1])["entries"]
    assert (damaged["status"], list(damaged)) == ("damaged", ENTRY_KEYS)
    assert f"{file} was changed by another hand" in damaged["warning"]
    code, _, err = said("history", "show", "1")
    assert code == 1
    assert "is damaged" in err
    for option in ("--json", "--before"):
        code, _, err = said("history", "show", "1", option)
        assert code == 1
        assert f"{file} was changed by another hand" in err
    (state.entry(2).path / "change.json").write_text("{}")
    code, out, _ = said("history", "show", "2")
    assert code == 0
    assert out.startswith("entry 2, apply of policy web: prepared\n")
    assert out.endswith("change.json was changed by another hand\n")
    (state.entry(2).path / "before.v4").write_text("*filter\nCOMMIT\n")
    code, out, err = said("history", "show", "2", "--before")
    assert (code, out) == (1, "")
    assert "before.v4 was changed by another hand" in err


def test_what_was_killed_is_interrupted(state: State, said: Any) -> None:
    """An entry of a process that is no more is not under way, whatever it was marked."""
    of_a_dead_one(state, begin(state))
    assert "interrupted" in said("history")[1]
    assert said("history", "show", "1")[1].startswith("entry 1, apply of policy web: interrupted")
    assert state.entry(1).status == "prepared"


def test_a_restart_is_seen_at_once(state: State, said: Any) -> None:
    """What waited for its confirmation in an earlier boot waits no more."""
    entry = begin(state, confirm=60)
    entry = replace(entry, boot_id="earlier", status="unconfirmed")
    (entry.path / "entry.json").write_bytes(entry.bytes())
    shown = json.loads(said("history", "--json")[1])["entries"][0]
    assert (shown["status"], shown["left"]) == ("rolled back", None)
    assert "restarted" in shown["reason"]

    """The list reads no plan: one of 50,000 rules would take its time."""
    begin(state, summary={"add": 3})
    (state.entry(1).path / "change.json").unlink()
    assert said("history")[1].splitlines()[1].endswith("+3 -0")
