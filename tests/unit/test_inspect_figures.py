"""The figures of queues: the kernel's file taken apart, read again and again, and free numbers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import NotPermitted, Unsupported
from nfctl.inspect import figures
from nfctl.inspect.figures import Figures, Reader

NETLINK_NETFILTER = 12

# as seq_show() writes it: "%5u %6u %5u %1u %5u %5u %5u %8u %2d\n"
LINES = """\
    0   4711     3 2  3900     7     2       12  1
   17 4294967295     0 0     0     0     0 4294967295  1
"""


def test_the_columns() -> None:
    """Each column of the kernel's line becomes the figure of that name."""
    assert figures.parse(LINES) == {
        0: Figures(
            queue=0, portid=4711, waiting=3, copy_mode=2, copy_range=3900, dropped=7,
            user_dropped=2, last_id=12,
        ),
        17: Figures(17, 4294967295, 0, 0, 0, 0, 0, 4294967295),
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n", "1 2 3\n", "a b c d e f g h i\n", "1 2 3 4 5 6 7 -8 1"])
def test_lines_that_are_none(text: str) -> None:
    """What is no line of the file is left out, and is no error."""
    assert figures.parse(text) == {}


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 8), unique_by=lambda line: line[0]))
def test_any_lines(lines: list[tuple[int, ...]]) -> None:
    """Whatever numbers the kernel writes in its format, those are read."""
    form = "%5u %6u %5u %1u %5u %5u %5u %8u %2d\n"
    text = "".join(form % (*line, 1) for line in lines)
    assert [tuple(one) for one in figures.parse(text).values()] == lines


def test_reading_again(tmp_path: Path) -> None:
    """An open reader tells what the file holds now, however long it is, until it is closed."""
    path = tmp_path / "nfnetlink_queue"
    path.write_text(LINES)
    with Reader(str(path)) as reader:
        found = reader.read(17)
        assert found is not None
        assert found.last_id == 4294967295
        assert reader.read(1) is None
        many = 20_000  # more than one read(2) takes
        path.write_text("".join(f"{queue:5} 1 0 2 65531 0 0 0  1\n" for queue in range(many)))
        assert list(reader.all()) == list(range(many))
        path.write_text("")
        assert reader.all() == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.all()


def test_no_file(tmp_path: Path) -> None:
    """Without the kernel's file the error names the kernel's option."""
    with pytest.raises(Unsupported, match="NETFILTER_NETLINK_QUEUE"):
        Reader(str(tmp_path / "none"))


def test_a_file_of_root_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not open the file is told to be root."""

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(NotPermitted, match="run as root"):
        Reader()


@pytest.mark.parametrize(
    ("taken", "workers", "start", "free"),
    [
        ((), 1, 0, 0),
        ((0, 1), 1, 0, 2),
        ((0, 2, 5), 2, 0, 3),
        ((3,), 2, 3, 4),
        (range(65535), 1, 0, 65535),
        (range(65535), 2, 0, None),
        (range(65536), 1, 0, None),
    ],
)
def test_free_queues(taken: tuple[int, ...], workers: int, start: int, free: int | None) -> None:
    """The first number of so many free ones in a row, within 16 bits."""
    assert figures.free_queue(taken, workers, start) == free


def test_who_listens() -> None:
    """The holder of a netfilter socket with that port is named, or else the port."""
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as first,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as second,
    ):
        comm = Path("/proc/self/comm").read_text().strip()
        for sock in (first, second):
            sock.bind((0, 0))
            port: int = sock.getsockname()[0]
            named = figures.listener(Figures(0, port, 0, 0, 0, 0, 0, 0))
            assert named == f"{comm} (process {os.getpid()})"
    other = figures.listener(Figures(0, port, 0, 0, 0, 0, 0, 0))
    assert other == f"another program (netlink port {port})"
