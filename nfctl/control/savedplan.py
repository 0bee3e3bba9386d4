r"""A saved plan: what ``nfctl plan --out`` writes, and ``nfctl apply`` takes instead of a policy.

It holds the policy resolved, so that nothing else is read when it is applied, and a digest of
every table as it was: a table that was changed since is refused. One JSON document::

    {"nfctl_plan": 1, "nfctl": "0.1.0", "when": "2026-02-03T12:34:56Z",
     "name": "default", "exclusive": false, "files": [["policy.yaml", "2c26..."]],
     "text": {"4": "*filter\n:INPUT DROP [0:0]\n..."}, "whole": {"4": []},
     "sets": [{"name": "blocked", "type": "hash:ip", "family": 4, "options": {}, "entries": []}],
     "keep": [{"chain": "VPN-*", "comment": "", "interface": "", "rule": ""}],
     "digests": [[4, "filter", "9f86..."]], "change": {...}, "sha256": "ab12..."}

``text`` to ``keep`` are as in a record (:mod:`nfctl.control.journal.records`), ``change`` is what
``nfctl plan --json`` prints, and ``sha256`` is of all the others, sorted, so that a plan that was
cut off or edited is refused. Whoever may write the file says what the firewall will be: nobody
but root and its owner may.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nfctl import __version__
from nfctl.control import show
from nfctl.control.journal import durable
from nfctl.control.journal.records import Record, check_name
from nfctl.document import shown
from nfctl.errors import BadInput, NfctlError
from nfctl.policy import saved
from nfctl.policy.render import save_text
from nfctl.policy.wanted import Keep
from nfctl.ruleset.names import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.change import Change
    from nfctl.policy.wanted import Wanted

VERSION: Final = 1
MAX_SIZE: Final = 256 << 20  # bytes

_BEGIN: Final = b'{"nfctl_plan": '
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_SET: Final = {"name", "type", "family", "options", "entries"}
_HINT: Final = "make the plan again: nfctl plan --out"


@dataclass(slots=True)
class SavedPlan:
    """A plan that was saved; ``digests`` are of the tables as they were, by (family, table)."""

    wanted: Wanted
    exclusive: bool
    digests: dict[tuple[int, str], str]
    files: list[tuple[str, str]]
    when: str
    change: dict[str, Any]


# --- writing ------------------------------------------------------------------------------------


def write(path: str, change: Change, wanted: Wanted, *, exclusive: bool) -> None:
    """Write a plan, mode 0600, whole or not at all; ``change`` has to hold the digests.

    Raises BadInput where it cannot be written, or would replace what is no saved plan.
    """
    check_replaceable(path)
    record = Record.of(wanted, exclusive)
    document = {
        "nfctl_plan": VERSION,
        "nfctl": __version__,
        "when": record.when,
        "name": record.name,
        "exclusive": exclusive,
        "files": [list(file) for file in record.files],
        "text": {str(family): text for family, text in record.text.items()},
        "whole": {str(family): names for family, names in record.whole.items()},
        "sets": record.sets,
        "keep": record.keep,
        "digests": [[table.family, table.table, table.digest] for table in change.tables],
        "change": show.document(change),
    }
    document["sha256"] = _sum(document)
    data = json.dumps(document).encode() + b"\n"
    try:
        durable.write(Path(path).absolute(), data)
    except OSError as error:
        raise _cannot(path, "write", error) from None


def _sum(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_replaceable(path: str) -> None:
    """Raise BadInput where a plan cannot be saved, or would replace what is none."""
    if path in {"", "-"}:
        msg = "a plan is saved to a file, which has to have a name"
        raise BadInput(msg, hint="--json prints the change on standard output")
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _cannot(path, "write", error) from None
    if not stat.S_ISREG(status.st_mode):
        msg = f"{shown(path)} is no regular file, and is not replaced"
        raise BadInput(msg)
    if not is_plan(path):
        msg = f"{shown(path)} is there and is no saved plan: it is not replaced"
        raise BadInput(msg, hint="give --out another name")


def _cannot(path: str, verb: str, error: OSError | ValueError) -> BadInput:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return BadInput(f"cannot {verb} {shown(path)}: {reason}")


# --- reading ------------------------------------------------------------------------------------


def is_plan(path: str) -> bool:
    """Whether a file is a saved plan, by how it begins; it need not be a good one."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a FIFO would wait
            return False
        with open(path, "rb") as file:  # noqa: PTH123 - as typed
            return file.read(len(_BEGIN)) == _BEGIN
    except (OSError, ValueError):
        return False


def read(path: str) -> SavedPlan:
    """Read a plan; BadInput for one that others may write to, or that nfctl did not write so."""
    document = _document(path, _contents(path))
    try:
        return _read(document)
    except (LookupError, ValueError, TypeError, AttributeError, NfctlError):
        raise _damaged(path) from None


def _contents(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _cannot(path, "read", error) from None
    try:
        _check_file(path, os.fstat(fd))
        with open(fd, "rb", closefd=False) as file:
            return file.read(MAX_SIZE)
    except OSError as error:
        raise _cannot(path, "read", error) from None
    finally:
        os.close(fd)


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        msg = f"{shown(path)} is no regular file"
        raise BadInput(msg)
    if status.st_uid not in {0, os.geteuid()}:
        msg = f"the saved plan {shown(path)} belongs to user {status.st_uid}"
        raise BadInput(msg, hint="it says what the firewall will be: make it as root")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = f"the saved plan {shown(path)} can be written to by others"
        raise BadInput(msg, hint="look at it; then chmod go-w")
    if status.st_size > MAX_SIZE:
        msg = f"{shown(path)} is too large: a plan has {MAX_SIZE >> 20} MiB at most"
        raise BadInput(msg)


def _document(path: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        if not isinstance(document, dict):
            raise _damaged(path)
        version = document.get("nfctl_plan")
        if version != VERSION or isinstance(version, bool):
            msg = f"{shown(path)} was saved by another version of nfctl"
            raise BadInput(msg, hint=_HINT)
        if document.get("sha256") != _sum(document):
            raise _damaged(path)
    except (ValueError, TypeError, RecursionError):
        raise _damaged(path) from None
    return document


def _damaged(path: str) -> BadInput:
    return BadInput(f"the saved plan {shown(path)} is damaged, or was edited", hint=_HINT)


def _read(document: dict[str, Any]) -> SavedPlan:
    """Return the plan; any of the errors that :func:`read` knows for what is not well-formed."""
    _check(all(map(_is_text, _strings(document))))
    texts = {_family(family): _text(text) for family, text in document["text"].items()}
    whole = {_family(family): _tables(names) for family, names in document["whole"].items()}
    files = [(_text(file), _sha(sha)) for file, sha in document["files"]]
    digests = {
        (_family(str(family)), _tables([table])[0]): _sha(digest)
        for family, table, digest in document["digests"]
    }
    _check(isinstance(document["exclusive"], bool) and isinstance(document["change"], dict))
    _check(isinstance(document["sets"], list) and all(map(_is_set, document["sets"])))
    _check(isinstance(document["keep"], list) and all(map(_is_keep, document["keep"])))
    for family, text in texts.items():
        if text:
            saved.parse(text.encode("utf-8", "surrogateescape"), family=family)
    record = Record(
        check_name(_text(document["name"])),
        files,
        _text(document["when"]),
        document["exclusive"],
        texts,
        whole,
        document["sets"],
        document["keep"],
    )
    wanted = record.wanted()
    # what is read back is what is there, so nothing stands there that would be read over
    _check(save_text(wanted) == texts)
    return SavedPlan(wanted, record.exclusive, digests, files, record.when, document["change"])


def _check(well: bool) -> None:
    if not well:
        raise ValueError


def _strings(found: Any) -> Iterator[str]:
    """Yield every text in a document, also keys."""
    rest = [found]
    while rest:
        found = rest.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            rest += [*found, *found.values()]
        elif isinstance(found, list):
            rest += found


def _is_text(text: str) -> bool:
    """Whether it is the text of any bytes: UnicodeEncodeError, a ValueError, where it is not."""
    return text.isascii() or len(text.encode("utf-8", "surrogateescape")) > 0


def _family(family: str) -> int:
    _check(family in {"4", "6"})
    return int(family)


def _text(text: Any) -> str:
    _check(isinstance(text, str) and "\0" not in text)
    return str(text)


def _sha(text: Any) -> str:
    _check(_SHA.fullmatch(_text(text)) is not None)
    return str(text)


def _tables(names: Any) -> list[str]:
    _check(isinstance(names, list) and all(name in TABLES for name in names))
    return list(names)


def _is_set(one: Any) -> bool:
    entries = one["entries"]
    return (
        set(one) == _SET
        and all(isinstance(one[key], str) for key in ("name", "type"))
        and type(one["family"]) is int
        and one["family"] in {0, 4, 6}
        and all(isinstance(word, str) for pair in one["options"].items() for word in pair)
        and (entries is None or (isinstance(entries, list) and _all_texts(entries)))
    )


def _is_keep(one: Any) -> bool:
    return set(one) == set(Keep._fields) and _all_texts(one.values())


def _all_texts(found: Any) -> bool:
    return all(isinstance(text, str) for text in found)
