from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

from nfctl import errors
from nfctl.errors import NfctlError, Where

CODES = {
    "AnswerNo": 1,
    "BadInput": 2,
    "NotPermitted": 3,
    "Unsupported": 3,
    "Locked": 4,
    "Changed": 4,
    "RolledBack": 5,
    "HalfApplied": 5,
}


def test_every_error_has_its_exit_code() -> None:
    """1 no, 2 bad input, 3 not permitted or lacking, 4 locked or changed, 5 rolled back."""
    found = {
        name: member.exit_code
        for name, member in vars(errors).items()
        if isinstance(member, type) and issubclass(member, NfctlError) and member is not NfctlError
    }
    assert found == CODES


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (Where("rules"), "rules"),
        (Where("rules", 3), "rules:3"),
        (Where("rules", 3, 7), "rules:3:7"),
        (Where("rules", 0, 7), "rules"),
    ],
)
def test_a_place_names_what_is_known(where: Where, text: str) -> None:
    """File, line and column, from the left as far as they are known."""
    assert str(where) == text


def test_an_error_in_one_line() -> None:
    """The place comes before the message and the hint behind it, each only where there is one."""
    assert str(NfctlError("wrong")) == "wrong"
    assert str(NfctlError("wrong", hint="do this")) == "wrong (do this)"
    error = NfctlError("wrong", hint="do this", where=Where("f", 1, 2))
    assert str(error) == "f:1:2: wrong (do this)"


def test_the_first_place_stays() -> None:
    """at() fills in a place that is missing, and never moves an error to another."""
    error = NfctlError("wrong")
    assert error.at(Where("f", 1)) is error
    error.at(Where("g", 2))
    assert error.where == Where("f", 1)


@pytest.mark.parametrize("name", CODES)
def test_errors_travel_between_processes(name: str) -> None:
    """A pickled error is of the same class, with the same words."""
    error = getattr(errors, name)("wrong", hint="do this", where=Where("f", 1, 2))
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is type(error)
    assert str(back) == "f:1:2: wrong (do this)"
    assert back.exit_code == CODES[name]


def test_the_errors_import_nothing_of_the_project() -> None:
    """Everything may import nfctl.errors, so it imports only the standard library."""
    tree = ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))
    found = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert found
    assert not [name for name in found if name is None or name.startswith("nfctl")]
