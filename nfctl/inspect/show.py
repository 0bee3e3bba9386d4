"""What ``nfctl inspect`` prints of each packet: a line, a dissection, a dump, or a JSON record.

Packets have their verdict before they are shown, and showing them must not hold up the next one:
lines are gathered and written together, and where whoever reads them is too slow, or a terminal
was stopped (Ctrl-S), they are left out, counted and spoken of later.
"""

from __future__ import annotations

import errno
import json
import os
import select
import stat
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect import summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.packet import Packet
    from nfctl.inspect.verdict import Verdict

KINDS: Final = ("summary", "detail", "hex", "json", "flows")
EVERY: Final = 0.05
"""Seconds after which lines are written even if more packets keep coming."""
GATHERED: Final = 1 << 16
"""Bytes after which they are written at once."""
KEPT: Final = 1 << 20
"""Bytes that may wait for a slow reader before lines are left out."""
LAST: Final = 1.0
"""Seconds that the end of a run waits for its reader."""
_AGAIN: Final = 0.005  # seconds
_PIECE: Final = 4096  # PIPE_BUF: where poll says that there is room, there is as much

_COLOURS: Final = {"drop": "31", "reject": "33", "repeat": "36"}
_PROTOCOLS: Final = {"tcp": "36", "udp": "34", "icmp": "35", "icmpv6": "35"}
_REWRITTEN: Final = "35"


class Output:
    """A file descriptor that is written to without waiting; keeps ``KEPT`` bytes at most.

    O_NONBLOCK belongs to the open file, which a terminal or pipe shares with the shell and all
    its children. So the file is opened once more, for us alone, where it can be; else poll says
    whether there is room, and no more is written than fits. ``waits`` is for runs that nothing
    depends on: each write waits until all is written.

    What was given to one :meth:`write` as one text stays together, if it is no longer than 4,096
    bytes, where several processes write to the same pipe.
    """

    def __init__(self, fd: int, *, waits: bool = False) -> None:
        self.fd = fd
        self.waiting = 0
        """How many bytes are still to be written."""
        self._own = -1
        self._texts: deque[bytes] = deque()
        try:
            mode = os.fstat(fd).st_mode
        except OSError:  # closed: writing will say so
            mode = stat.S_IFREG
        #: Writing is not to be put off: poll says yes to files, and they wait for nobody.
        self._plain = waits or stat.S_ISREG(mode)
        if not self._plain and (stat.S_ISFIFO(mode) or os.isatty(fd)):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # no /proc, or a terminal of another user
                self._own = -1

    def write(self, *texts: bytes) -> bool:
        """Write texts, or keep what there is no room for; False if too much is kept already."""
        size = sum(map(len, texts))
        if self.waiting + size > KEPT and not self.flush():
            return False
        self._texts.extend(texts)
        self.waiting += size
        self.flush()
        return True

    def flush(self, seconds: float = 0.0) -> bool:
        """Write what there is room for, within so many seconds; return whether that was all.

        BrokenPipeError if nobody reads any more, or the terminal is gone.
        """
        until = time.monotonic() + seconds
        fd = self.fd if self._own < 0 else self._own
        while self._texts:
            if not self._plain and not _room(fd, max(0.0, until - time.monotonic())):
                return False
            piece = self._piece()
            try:
                count = os.write(fd, piece)
            except BlockingIOError:  # less room than poll means
                count = 0
                if not self._plain and time.monotonic() >= until:
                    self._texts.appendleft(piece)
                    return False
                time.sleep(_AGAIN)
            except OSError as error:
                self._texts.clear()
                self.waiting = 0
                if error.errno == errno.EIO:
                    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
                raise
            self.waiting -= count
            if count < len(piece):
                self._texts.appendleft(piece[count:])
        return True

    def _piece(self) -> bytes:
        """Take the texts that can be written at once: whole ones, or a long one by itself."""
        limit = GATHERED if self._plain else _PIECE
        texts = self._texts
        first = texts.popleft()
        if len(first) >= limit:
            if len(first) > limit:
                texts.appendleft(first[limit:])
            return first[:limit]
        pieces, size = [first], len(first)
        while texts and size + len(texts[0]) <= limit:
            size += len(texts[0])
            pieces.append(texts.popleft())
        return b"".join(pieces)

    def close(self) -> None:
        """Wait a moment for the reader, and give back the file that was opened."""
        try:
            self.flush(LAST)
        finally:
            self._texts.clear()
            if self._own >= 0:
                os.close(self._own)
                self._own = -1


def _room(fd: int, seconds: float) -> bool:
    """Wait until something can be written, or will never be; return whether that came."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def colours(fd: int) -> bool:
    """Whether what is written there may be coloured: a terminal, and NO_COLOR is not set."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR")


class Show:
    """Prints packets and events to a file descriptor.

    ``kind`` is what of a packet: ``summary`` its line; ``detail`` the line and scapy's dissection;
    ``hex`` the line and all bytes; ``flows`` the line, of packets that name their flow only: a
    ClientHello, an HTTP request; ``json`` one record a line (see
    :func:`nfctl.inspect.record.record`). ``colour`` None asks :func:`colours`. Events go to
    ``events``, standard error, for people; in JSON they are records between those of packets,
    {``event``: "note", ``time``, ``text``}, or "missed" with the number of ``packets``.
    ``waits`` is for captures: nothing is left out, whoever reads may take their time. ``width``
    cuts lines, in columns.

    Call :meth:`flush` when no packet is waiting; everything may raise BrokenPipeError, when
    nobody reads any more.
    """

    def __init__(
        self,
        kind: str = "summary",
        colour: bool | None = None,
        stream: int = 1,
        *,
        events: int = 2,
        waits: bool = False,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.colour = colours(stream) if colour is None else colour
        self.width = width
        #: Lines left out so far, and those of them that were not yet spoken of.
        self.missed = 0
        self._unsaid = 0
        self._out = Output(stream, waits=waits)
        self._events = Output(events, waits=waits) if kind != "json" else self._out
        self._clock = clock
        self._gathered: list[bytes] = []
        self._size = 0
        self._due = clock() + EVERY
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def packet(self, packet: Packet, verdict: Verdict, *, hello: bool = False) -> None:
        """Show a packet whose verdict is given; ``hello``: it completes its flow's ClientHello."""
        if self.kind == "flows" and not hello and not _names(packet):
            return
        text = self._text(packet, verdict, hello).encode("utf-8", "backslashreplace")
        self._gathered.append(text)
        self._size += len(text)
        if self._size >= GATHERED or self._clock() >= self._due:
            self.flush()

    def _text(self, packet: Packet, verdict: Verdict, hello: bool) -> str:
        if self.kind == "json":
            return self._encode(summary.record(packet, verdict, hello=hello)) + "\n"
        pieces = summary.fit(summary.parts(packet, verdict, hello=hello), self.width)
        text = _painted(pieces) if self.colour else summary.join(pieces)
        if self.kind == "hex":
            return f"{text}\n{hexdump(packet.data)}"
        if self.kind == "detail":
            return f"{text}\n{_dissected(packet)}"
        return text + "\n"

    def event(self, text: str, kind: str = "note", **more: Any) -> None:
        """Say what happened beside the packets; ``more`` are further fields of its JSON record."""
        self.flush()
        if self.kind == "json":
            record = {"event": kind, "time": round(time.time(), 6), "text": text, **more}
            self._out.write((self._encode(record) + "\n").encode())
            return
        data = f"nfctl: {summary.safe(text, 1000)}\n".encode("utf-8", "backslashreplace")
        try:
            self._events.write(data)
        except OSError:  # nobody reads standard error; the packets go on
            return

    @property
    def waiting(self) -> bool:
        """Whether something is still to be written: flush again in a moment."""
        return bool(self._gathered or self._out.waiting or self._unsaid)

    def flush(self) -> None:
        """Write what was gathered, as far as there is room."""
        self._due = self._clock() + EVERY
        if self._gathered:
            texts = self._gathered
            self._gathered, self._size = [], 0
            if not self._out.write(*texts):
                self.missed += len(texts)
                self._unsaid += len(texts)
        elif self._out.waiting:
            self._out.flush()
        if self._unsaid and not self._out.waiting:
            count, self._unsaid = self._unsaid, 0
            what = "packet was" if count == 1 else "packets were"
            text = f"{count} {what} not shown: the output is read too slowly"
            self.event(text, "missed", packets=count)

    def close(self) -> None:
        """Write the rest; wait a second for whoever reads it, and not longer."""
        try:
            self.flush()
            if not self._out.flush(LAST):
                return
            self.flush()  # says what was left out
        finally:
            self._out.close()
            if self._events is not self._out:
                self._events.close()


def _names(packet: Packet) -> bool:
    http = packet.http
    return http is not None and bool(http.method and http.host)


def _painted(pieces: summary.Parts) -> str:
    """Return a line with its colours: the protocol, the name, and what was not just accepted."""
    stamp, where, flow, protocol, size, what, name, rest, verdict = pieces
    code = _PROTOCOLS.get(protocol)
    if code:
        protocol = f"\033[{code}m{protocol}\033[0m"
    if name:
        name = f"\033[1m{name}\033[0m"
    if verdict:
        action = verdict.partition(" ")[0]
        code = _COLOURS.get(action) or (_REWRITTEN if "rewritten" in verdict else "32")
        verdict = f"\033[{code}m{verdict}\033[0m"
    return summary.join(
        summary.Parts(
            f"\033[2m{stamp}\033[0m", where, flow, protocol, size, what, name, rest, verdict
        )
    )


def hexdump(data: bytes) -> str:
    """Return bytes as lines of sixteen: the offset, the bytes, and which of them are ASCII."""
    lines = []
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"  {start:04x}  {left:<23}  {right:<23}  {shown}\n")
    return "".join(lines)


def _dissected(packet: Packet) -> str:
    from nfctl.inspect import dissect

    lines = dissect.show(packet).rstrip("\n").split("\n")
    return "".join(f"  {summary.safe(row, 400)}".rstrip() + "\n" for row in lines)
