"""The text of large tables, remembered: printing 50,000 rules takes as long as encoding them.

A file of the state holds a table's text as iptables-save prints it, without counters, under the
digest of the table that it is the text of. It is a help only: what is damaged or stale is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING

from nfctl.control.journal import durable
from nfctl.errors import NfctlError

if TYPE_CHECKING:
    from pathlib import Path

    from nfctl.control.journal.state import State
    from nfctl.control.live import Live
    from nfctl.kernel.blob import Blob

_DIRECTORY = "known"
#: Bytes of a table in the kernel from which its text is worth remembering.
LARGE = 300_000


def is_large(live: Live) -> bool:
    """Whether a table's text is worth remembering."""
    return live.blob is not None and live.blob.info.size > LARGE


def recall(state: State, live: Live) -> bool:
    """Give a table its text, if the one that is remembered is of just this table."""
    assert live.blob is not None  # noqa: S101 - it is large
    try:
        data = _file(state, live.family, live.table).read_bytes()
    except OSError:
        return False
    head, _, text = data.partition(b"\n")
    plain = text.decode("utf-8", "surrogateescape")
    if head.decode("ascii", "replace") != _head(live.blob, text, plain):
        return False
    live.print_as(plain)
    return True


def remember(state: State, blob: Blob, text: str) -> None:
    """Write a table's text down, if that can be done; nothing is fsynced."""
    data = text.encode("utf-8", "surrogateescape")
    head = _head(blob, data, text)
    write(_file(state, blob.family, blob.table), f"{head}\n".encode() + data)


def write(file: Path, data: bytes) -> None:
    """Replace a file that only helps: at once, but not for sure."""
    with contextlib.suppress(OSError, NfctlError):
        durable.make_directory(file.parent)
        new = file.with_name(durable.NEW + file.name)
        new.unlink(missing_ok=True)
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        new.replace(file)


def _file(state: State, family: int, table: str) -> Path:
    return state.directory / _DIRECTORY / f"{family}-{table}.txt"


def _head(blob: Blob, data: bytes, text: str) -> str:
    names = json.dumps(sets_named(text)).encode()
    return f"{blob.digest()} {_sha(data)} {_sha(names)}"


def _sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def sets_named(text: str) -> list[str]:
    """Return the names of all ipsets in the kernel's order, if rules of the text name any.

    The kernel's rules hold numbers of sets, and a number may get another name.
    """
    if "-set" not in text:
        return []
    from nfctl.kernel.ipset import Ipset

    try:
        with Ipset() as kernel:
            return kernel.names()
    except NfctlError:  # there are none in this kernel
        return []
