"""A queue's own counters, as the kernel shows them in /proc/net/netfilter/nfnetlink_queue.

One line a queue that a program is bound to; the columns are those of ``seq_show()`` in
net/netfilter/nfnetlink_queue.c. The file is the network namespace's and root's alone (mode
0440), but it is asked for only when it is opened: a :class:`Reader` made as root goes on
reading after privileges were dropped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import NotPermitted, Unsupported

if TYPE_CHECKING:
    from collections.abc import Container

#: Of the calling thread's namespace; /proc/net is that of the process's first thread.
PATH = "/proc/thread-self/net/netfilter/nfnetlink_queue"

#: Queues have numbers of 16 bits.
MAX_QUEUE = 65535

_COLUMNS = 8  # and a ninth that is always 1
_NETFILTER = "12"  # NETLINK_NETFILTER
_PIECE = 1 << 16
_LIMIT = 1 << 23  # bytes: more than 65,536 lines of the widest columns


class Figures(NamedTuple):
    """What the kernel tells of one queue.

    ``portid`` is the netlink port that is bound to it: of the first netlink socket of a process
    it is the process id. ``waiting`` is how many packets wait for a verdict. ``copy_mode`` is 0
    (nothing), 1 (metadata) or 2 (packets), of which ``copy_range`` bytes at most are copied.
    ``dropped`` packets found the queue full (its length), ``user_dropped`` ones the socket (its
    receive buffer); with fail-open both were let go on, and are not counted. ``last_id`` is the
    number of the last packet, from 1: how many were queued in all, modulo 2**32.
    """

    queue: int
    portid: int
    waiting: int
    copy_mode: int
    copy_range: int
    dropped: int
    user_dropped: int
    last_id: int


class Reader:
    """The open file. Use it in a ``with`` block, or close it.

    Raises NotPermitted where it may not be opened, Unsupported where the kernel has no
    nfnetlink_queue (or its module is not loaded yet: binding a queue loads it).
    """

    def __init__(self, path: str = PATH) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            raise NotPermitted(msg, hint="run as root") from None
        except OSError as error:
            msg = f"{path} cannot be read: {error.strerror}"
            hint = "the kernel needs NETFILTER_NETLINK_QUEUE (module nfnetlink_queue)"
            raise Unsupported(msg, hint=hint) from None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def all(self) -> dict[int, Figures]:
        """Return the figures of all bound queues, by their numbers."""
        # pread: a worker that inherited the file must not move our place in it
        text, size = bytearray(), 0
        while size < _LIMIT and (piece := os.pread(self._file, _PIECE, size)):
            text += piece
            size += len(piece)
        return parse(text.decode("ascii", "replace"))

    def read(self, queue: int) -> Figures | None:
        """Return the figures of one queue; None if no program is bound to it."""
        return self.all().get(queue)


def parse(text: str) -> dict[int, Figures]:
    """Take the file's lines apart; a line that is none is left out."""
    found: dict[int, Figures] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= _COLUMNS and all(map(str.isdecimal, fields[:_COLUMNS])):
            figures = Figures._make(map(int, fields[:_COLUMNS]))
            found[figures.queue] = figures
    return found


def bound() -> dict[int, Figures]:
    """Return the figures of all bound queues of this namespace; none where there is no file."""
    try:
        with Reader() as reader:
            return reader.all()
    except Unsupported:
        return {}


def free_queue(taken: Container[int], workers: int = 1, start: int = 0) -> int | None:
    """Return the lowest number from ``start`` on of so many free queues in a row, or None."""
    first = start
    for queue in range(start, MAX_QUEUE + 1):
        if queue in taken:
            first = queue + 1
        elif queue - first + 1 >= workers:
            return first
    return None


def listener(figures: Figures) -> str:
    """Name the program bound to a queue, as far as /proc tells."""
    process = _process(figures.portid)
    if process is None:  # of another PID namespace
        return f"another program (netlink port {figures.portid})"
    try:
        comm = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it has ended meanwhile
        comm = "a program"
    name = "".join(char if char.isprintable() else "?" for char in comm)
    return f"{name} (process {process.name})"


def _process(portid: int) -> Path | None:
    """Return the /proc directory of the process whose nfnetlink socket has this port.

    A port is often its process's id, but need not be: only a process's first socket gets that.
    """
    try:
        lines = Path("/proc/thread-self/net/netlink").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    # sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode: netlink_seq_show()
    sockets = (line.split() for line in lines[1:])
    wanted = [_NETFILTER, str(portid)]
    links = {f"socket:[{fields[9]}]" for fields in sockets if fields[1:3] == wanted}
    processes = sorted(Path("/proc").glob("[0-9]*"), key=lambda path: path.name != str(portid))
    return next((path for path in processes if links and _holds(path, links)), None)


def _holds(process: Path, links: set[str]) -> bool:
    try:
        files = list((process / "fd").iterdir())
    except OSError:
        return False
    for file in files:
        try:
            if str(file.readlink()) in links:
                return True
        except OSError:
            continue
    return False
