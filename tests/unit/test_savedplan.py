from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nfctl.control import savedplan
from nfctl.control.change import Change, TableChange
from nfctl.errors import BadInput, NfctlError
from nfctl.policy.render import save_text
from nfctl.policy.wanted import Keep, Wanted, WantedChain, WantedRule, WantedSet, WantedTable

if TYPE_CHECKING:
    from pathlib import Path

SHA = "0123456789abcdef" * 4
WANTED = Wanted(
    "web",
    {
        4: {
            "filter": WantedTable(
                {
                    "INPUT": WantedChain(
                        [WantedRule('-m comment --comment "a b"'), WantedRule("")], "DROP"
                    ),
                    "WEB\udcff": WantedChain([WantedRule("-j ACCEPT")]),
                }
            ),
            "nat": WantedTable({"OUTPUT": WantedChain()}, whole=True),
        },
        6: {},
    },
    [WantedSet("bad", "hash:ip", 4, {"timeout": "300"}, ["192.0.2.1"]), WantedSet("x", "list:set")],
    [Keep(chain="VPN-*"), Keep(comment="by hand")],
    [("web.yaml", SHA)],
)
CHANGE = Change("web", [TableChange(4, "filter", digest=SHA), TableChange(4, "nat", digest=SHA)])


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Give the file of a saved plan."""
    file = tmp_path / "web.plan"
    savedplan.write(str(file), CHANGE, WANTED, exclusive=True)
    return file


def forge(file: Path, **changed: Any) -> None:
    """Change a plan, and make its sum right again."""
    document = {**json.loads(file.read_bytes()), **changed}
    document["sha256"] = savedplan._sum(document)
    file.write_text(json.dumps(document))


def test_a_plan_comes_back(plan: Path) -> None:
    """The policy, the digests and the change are read as they were written."""
    found = savedplan.read(str(plan))
    assert found.exclusive is True
    assert found.files == WANTED.files
    assert found.digests == {(4, "filter"): SHA, (4, "nat"): SHA}
    assert found.change["policy"] == "web"
    assert found.wanted.name == "web"
    assert save_text(found.wanted) == save_text(WANTED)
    assert found.wanted.keep == WANTED.keep
    assert found.wanted.sets == WANTED.sets
    assert found.wanted.tables[4]["nat"].whole
    assert found.wanted.tables[4]["filter"].chains["INPUT"].policy == "DROP"


def test_nobody_else_may_read_it(plan: Path) -> None:
    """The file has mode 0600, and no other is left beside it."""
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    assert os.listdir(plan.parent) == [plan.name]


def test_a_plan_replaces_a_plan_and_nothing_else(plan: Path) -> None:
    """A policy named by mistake, a link or a device is not replaced."""
    savedplan.write(str(plan), CHANGE, WANTED, exclusive=False)
    assert savedplan.read(str(plan)).exclusive is False
    policy = plan.with_name("policy.yaml")
    policy.write_text("version: 1\n")
    link = plan.with_name("link")
    link.symlink_to(plan)
    for file, words in ((policy, "no saved plan"), (link, "regular"), (plan.parent, "regular")):
        with pytest.raises(BadInput, match=words):
            savedplan.write(str(file), CHANGE, WANTED, exclusive=False)
    assert policy.read_text() == "version: 1\n"
    assert link.is_symlink()


@pytest.mark.parametrize("path", ["", "-", "no/such/directory/plan", "a\0b"])
def test_a_place_where_nothing_can_be_written(path: str) -> None:
    """It is an error with words, and nothing is raised that is none of ours."""
    with pytest.raises(BadInput):
        savedplan.write(path, CHANGE, WANTED, exclusive=False)


def test_what_is_a_plan(plan: Path) -> None:
    """Only a regular file that begins as one is; a FIFO is not opened."""
    assert savedplan.is_plan(str(plan))
    other = plan.with_name("other")
    other.write_text("version: 1\n")
    fifo = plan.with_name("fifo")
    os.mkfifo(fifo)
    for path in (str(other), str(fifo), str(plan.parent), "/no/such/file", "-", "a\0b"):
        assert not savedplan.is_plan(path)
    for path in (str(fifo), str(plan.parent), "/no/such/file", "a\0b"):
        with pytest.raises(BadInput):
            savedplan.read(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_plan_that_others_may_write_is_refused(plan: Path, mode: int) -> None:
    """Whoever may write it would say what the firewall is to be."""
    plan.chmod(mode)
    with pytest.raises(BadInput, match="written to by others"):
        savedplan.read(str(plan))
    plan.chmod(0o644)
    savedplan.read(str(plan))


def test_a_plan_of_somebody_else_is_refused(plan: Path) -> None:
    """Root takes no plan that another user can exchange."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(plan, 65534, 65534)
    with pytest.raises(BadInput, match="belongs to user 65534"):
        savedplan.read(str(plan))


def test_an_edited_plan_is_refused(plan: Path) -> None:
    """A letter changed, and an end cut off, are noticed."""
    data = plan.read_bytes()
    plan.write_bytes(data.replace(b"192.0.2.1", b"192.0.2.2"))
    with pytest.raises(BadInput, match="damaged, or was edited"):
        savedplan.read(str(plan))
    for length in (20, len(data) // 2, len(data) - 2):
        plan.write_bytes(data[:length])
        with pytest.raises(BadInput, match="damaged"):
            savedplan.read(str(plan))


FILTER = "*filter\n:INPUT DROP [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n"
BAD = [
    {"text": {"5": FILTER}},
    {"text": {"4": FILTER + "-A INPUT -j DROP\n"}},
    {"text": {"4": FILTER.replace("*filter", "*fitler")}},
    {"text": {"4": FILTER.replace("-A INPUT", "-A  INPUT")}},
    {"text": {"4": FILTER.replace("-A INPUT", "-A OUTPUT")}},
    {"text": {"4": FILTER.replace("-A INPUT", "-D INPUT")}},
    {"text": {"4": FILTER.replace(":INPUT DROP [0:0]", ":INPUT RETURN [0:0]")}},
    {"text": {"4": FILTER.replace("DROP [0:0]", "DROP [5:5]")}},
    {"text": {"4": "# nothing\n" + FILTER}},
    {"text": {"4": FILTER.replace("ACCEPT", "\ud800")}},
    {"text": {"4": FILTER.replace("ACCEPT", "\0")}},
    {"text": {"4": None}},
    {"text": []},
    {"whole": {"4": ["fitler"]}},
    {"whole": {"4": "filter"}},
    {"name": "../../etc"},
    {"name": None},
    {"exclusive": 1},
    {"files": [["a", "b"]]},
    {"files": [["a", SHA, "b"]]},
    {"sets": [{}]},
    {"sets": [{"name": "a", "type": "b", "family": 4, "options": [], "entries": []}]},
    {"sets": [{"name": "a", "type": "b", "family": "4", "options": {}, "entries": []}]},
    {"sets": [{"name": "a", "type": "b", "family": 4, "options": {}, "entries": "xy"}]},
    {"sets": [{"name": "a", "type": "b", "family": 4, "options": {"a": 1}, "entries": []}]},
    {"keep": [{"chain": "a"}]},
    {"keep": [{"chain": "a", "comment": "", "interface": "", "rule": 0}]},
    {"digests": [[4, "filter"]]},
    {"digests": [[4, "filter", ""]]},
    {"digests": [[5, "filter", SHA]]},
    {"digests": {"a": 1}},
    {"change": []},
    {"nfctl_plan": 2},
    {"nfctl_plan": True},
]


@pytest.mark.parametrize("changed", BAD, ids=repr)
def test_a_forged_plan_is_refused(plan: Path, changed: dict[str, Any]) -> None:
    """With a right sum, too, everything in it has to be what nfctl writes."""
    forge(plan, **changed)
    with pytest.raises(BadInput):
        savedplan.read(str(plan))


@pytest.mark.parametrize("key", ["text", "whole", "name", "exclusive", "files", "sets", "keep",
                                 "digests", "change", "when", "sha256", "nfctl_plan"])  # fmt: skip
def test_a_plan_without_one_of_its_keys_is_refused(plan: Path, key: str) -> None:
    """Nothing is taken for granted."""
    document = json.loads(plan.read_bytes())
    del document[key]
    if key != "sha256":
        document["sha256"] = savedplan._sum(document)
    plan.write_text(json.dumps(document))
    with pytest.raises(BadInput):
        savedplan.read(str(plan))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["text", "whole", "name", "files", "sets", "keep", "digests", "change"]),
    json_values,
)
def test_anything_in_a_plan_is_taken_or_refused(plan: Path, key: str, value: object) -> None:
    """Whatever stands in it: a plan, or an error of ours."""
    forge(plan, **{key: value})
    try:
        found = savedplan.read(str(plan))
    except NfctlError:
        return
    assert isinstance(found.wanted, Wanted)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
@example(b'{"nfctl_plan": ' + b"[" * 100_000)
@example(b'{"nfctl_plan": 1' + b"0" * 10_000)
@example(b"")
def test_any_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    """A file of anything is refused with an error of ours."""
    file = tmp_path / "plan"
    file.write_bytes(data)
    file.chmod(0o600)
    with pytest.raises(BadInput):
        savedplan.read(str(file))
