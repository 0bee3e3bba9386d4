"""The files that a policy is read from: opened with care, bounded, and summed up by SHA-256."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
from typing import TYPE_CHECKING, Final

from nfctl.document import shown, standard_input
from nfctl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

#: Which file it is, by whatever name: (device, inode).
Identity = tuple[int, int]

STDIN: Final = "<stdin>"
MAX_SIZE: Final = 64 << 20  # bytes, of all files of a policy together
MAX_FILES: Final = 1000  # that one policy may include

_FIRST_LINE: Final = re.compile(rb"(?:[ \t\r]*+(?:#[^\n]*)?\n)*+\*")
_CHUNK: Final = 1 << 20
_WILD: Final = re.compile(r"[*?\[]")


class Files:
    """Reads files, and remembers which, with their digests, in order."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []  # (file, SHA-256 in hex)
        self._size = 0

    def typed(self, file: str) -> tuple[bytes, str, Identity | None]:
        """Return what is in a file that the user names, its name for messages, and which it is.

        "-" is standard input. Pipes are fine here: ``nfctl plan -4 <(make-rules)``.
        """
        if file == "-":
            data = standard_input()
            self._add(STDIN, data)
            return data, STDIN, None
        handle = _opened(file)
        status = os.fstat(handle)
        return self._drain(handle, file), file, (status.st_dev, status.st_ino)

    def included(self, file: str, seen: Collection[Identity] = ()) -> tuple[bytes | None, Identity]:
        """Return what is in a file that another file names, and which it is; None if seen before.

        Nothing but a regular file is read: opening a FIFO would wait for ever.
        """
        handle = _opened(file, os.O_NONBLOCK)
        status = os.fstat(handle)
        identity = status.st_dev, status.st_ino
        if identity in seen or not stat.S_ISREG(status.st_mode):
            os.close(handle)
            if identity in seen:
                return None, identity
            msg = f"{shown(file)} is no regular file"
            raise BadInput(msg)
        return self._drain(handle, file), identity

    def _drain(self, handle: int, file: str) -> bytes:
        try:
            chunks = []
            left = MAX_SIZE - self._size + 1
            while left > 0:
                chunk = os.read(handle, min(left, _CHUNK))
                if not chunk:
                    break
                chunks.append(chunk)
                left -= len(chunk)
        except OSError as error:
            raise _unreadable(file, error) from None
        finally:
            os.close(handle)
        data = b"".join(chunks)
        self._add(file, data)
        return data

    def _add(self, name: str, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_SIZE:
            msg = f"{shown(name)} is too large: a policy is {MAX_SIZE >> 20} MiB at most"
            raise BadInput(msg)
        if len(self.read) > MAX_FILES:
            msg = f"a policy is read from {MAX_FILES} files at most"
            raise BadInput(msg)
        self.read.append((name, hashlib.sha256(data).hexdigest()))


def is_saved(data: bytes) -> bool:
    """Whether this is iptables-save text: the first line that is no comment begins with "*"."""
    return _FIRST_LINE.match(data) is not None


def matching(pattern: str, directory: str, fail: Callable[[str], BadInput]) -> list[str]:
    """Return the files that an ``include`` means, sorted; ``directory`` is the including file's.

    A pattern with ``*``, ``?`` or ``[`` may match none; one without is a file.
    """
    if not pattern or "\0" in pattern:
        raise fail("the path of a file is expected here")
    if not _WILD.search(pattern):
        return [os.path.join(directory, pattern)]  # noqa: PTH118 - as typed, for messages
    found = sorted(glob.glob(os.path.join(glob.escape(directory), pattern)))  # noqa: PTH118, PTH207
    if len(found) > MAX_FILES:
        raise fail(f"{shown(pattern)} matches {len(found)} files; {MAX_FILES} are the most")
    return found


def _opened(file: str, flags: int = 0) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | flags)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: OSError | ValueError) -> BadInput:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return BadInput(f"cannot read {shown(file)}: {reason}")
