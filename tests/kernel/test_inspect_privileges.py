"""Giving up root: what a process may still do afterwards, as the kernel and /proc tell."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.errors import BadInput, NotPermitted
from nfctl.inspect import figures, privileges
from nfctl.lab import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

NOBODY = 65534
CLONE_NEWUSER = 0x10000000
ADMIN = 1 << 12  # CAP_NET_ADMIN
NETLINK_NETFILTER = 12


def status() -> dict[str, str]:
    """Return what the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: " ".join(rest.split()) for name, _, rest in (x.partition(":") for x in lines)}


def capabilities(fields: dict[str, str]) -> dict[str, int]:
    return {name: int(fields[name], 16) for name in fields if name.startswith("Cap")}


def attempt(function: Callable[[], object]) -> str:
    """Return the name of the errno a call fails with, or "" if it does not."""
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def bind(queue: int) -> socket.socket:
    """Bind a queue as libnetfilter_queue does: NFQNL_MSG_CONFIG with NFQNL_CFG_CMD_BIND."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    sock.bind((0, 0))
    attribute = struct.pack("=HHBBH", 8, 1, 1, 0, 0)
    body = struct.pack("=BB", 0, 0) + struct.pack(">H", queue) + attribute
    sock.send(struct.pack("=IHHII", 16 + len(body), 3 << 8 | 2, 5, 1, 0) + body)
    (number,) = struct.unpack_from("=i", sock.recv(4096), 16)
    if number:
        raise OSError(-number, os.strerror(-number))
    return sock


def drop_and_look(user: str) -> dict[str, Any]:
    """Give up privileges in this process; return what it is and can do then."""
    os.setgroups([0, 4])
    before = bind(100)
    with figures.Reader() as reader:
        dropped = privileges.drop(user)
        own = Path(f"/run/{os.getpid()}")
        queue = bind(7)
        found = {
            "dropped": dropped,
            "status": status(),
            "shadow": attempt(lambda: os.open("/etc/shadow", os.O_RDONLY)),
            "reopen": attempt(lambda: os.open(figures.PATH, os.O_RDONLY)),
            "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 6).close()),
            "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
            "write": attempt(lambda: os.open(own, os.O_CREAT | os.O_WRONLY)),
            "root": attempt(lambda: os.setresuid(0, 0, 0)),
            "kill": attempt(lambda: os.kill(os.getppid(), 0)),
            "unshare": attempt(lambda: syscalls.unshare(syscalls.CLONE_NEWNET)),
            "listed": sorted(reader.all()),
            "ports": {number: one.portid for number, one in reader.all().items()},
            "mine": {100: before.getsockname()[0], 7: queue.getsockname()[0]},
        }
        before.close()
        queue.close()
        found["after"] = sorted(reader.all())
    return found


@pytest.mark.parametrize("user", ["nobody", str(NOBODY), "4321"])
def test_what_is_left(netns: Namespace, user: str) -> None:
    """All ids are the user's, no group is left, and CAP_NET_ADMIN is all there is."""
    found = netns.python(drop_and_look, user)
    uid = NOBODY if user == "nobody" else int(user)
    fields = found["status"]
    assert found["dropped"] == (uid, uid, ())
    assert fields["Uid"] == fields["Gid"] == " ".join([str(uid)] * 4)
    assert fields["Groups"] == ""
    assert fields["NoNewPrivs"] == "1"
    assert capabilities(fields) == {
        "CapInh": 0, "CapPrm": ADMIN, "CapEff": ADMIN, "CapBnd": 0, "CapAmb": 0,
    }  # fmt: skip


def test_what_it_can_do(netns: Namespace) -> None:
    """No files of root's, no raw sockets, no way back; but queues, and the open figures."""
    found = netns.python(drop_and_look, "nobody")
    assert found["shadow"] == found["reopen"] == found["write"] == "EACCES"
    assert found["raw"] == found["packet"] == found["root"] == "EPERM"
    assert found["kill"] == found["unshare"] == "EPERM"
    assert found["listed"] == [7, 100]
    assert found["ports"] == found["mine"]
    assert found["after"] == []


def nothing_kept() -> tuple[dict[str, str], str]:
    privileges.drop("nobody", keep=())
    return status(), attempt(lambda: bind(7))


def test_nothing_kept(netns: Namespace) -> None:
    """Who keeps no capability has none, and nfnetlink refuses it."""
    fields, refused = netns.python(nothing_kept)
    assert set(capabilities(fields).values()) == {0}
    assert refused == "EPERM"


def what_a_program_gets() -> str:
    privileges.drop("root")
    with os.popen("cat /proc/self/status") as pipe:  # noqa: S605
        return pipe.read()


def test_a_program_gets_nothing(netns: Namespace) -> None:
    """What is executed afterwards has no capability at all, even where the user is root."""
    text = netns.python(what_a_program_gets)
    lines = [line.split() for line in text.splitlines() if line.startswith("Cap")]
    assert {int(value, 16) for _, value in lines} == {0}
    assert len(lines) == 5


def not_dumpable() -> int:
    privileges.drop("nobody")
    return Path("/proc/self/mem").stat().st_uid


def test_no_ptrace_by_its_own_user(netns: Namespace) -> None:
    """The process is not dumpable: its /proc files are root's, for others of its user too."""
    assert netns.python(not_dumpable) == 0


# --- where not all of it can be ------------------------------------------------------------------


def refused(user: str = "nobody", prepare: Callable[[], object] | None = None) -> tuple[str, str]:
    """Return the error's text and which capabilities are in effect afterwards."""
    if prepare is not None:
        prepare()
    try:
        privileges.drop(user)
    except (BadInput, NotPermitted) as error:
        return f"{type(error).__name__}: {error}", status()["CapEff"]
    return "", status()["CapEff"]


@pytest.mark.parametrize("user", ["nobody-of-that-name", "", "4294967295", "-1", "no\0body", "²"])
def test_unknown_users(netns: Namespace, user: str) -> None:
    """A user that is not there is bad input, and nothing is given up."""
    before = netns.python(status)["CapEff"]
    said, after = netns.python(refused, user)
    assert said.startswith("BadInput: there is no user")
    assert after == before


def with_a_thread() -> tuple[str, str]:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        return refused()
    finally:
        stop.set()
        thread.join()


def test_threads(netns: Namespace) -> None:
    """A process with a second thread, which would keep everything, is refused."""
    said, after = netns.python(with_a_thread)
    assert "2 threads" in said
    assert after == netns.python(status)["CapEff"]


def have_only(*numbers: int) -> None:
    privileges._capset(sum(1 << number for number in numbers))


def test_a_capability_that_is_missing(netns: Namespace) -> None:
    """Who has no CAP_NET_ADMIN cannot keep it: not permitted."""
    said, _ = netns.python(refused, "nobody", lambda: have_only(6, 7))
    assert said.startswith("NotPermitted: capability 12 is needed")


def without_setuid() -> tuple[privileges.Dropped, dict[str, str]]:
    have_only(12, 13)
    return privileges.drop("nobody"), status()


def test_no_setuid(netns: Namespace) -> None:
    """Without CAP_SETUID the user stays, which is said; the capabilities go all the same."""
    dropped, fields = netns.python(without_setuid)
    assert dropped[:2] == (0, 0)
    assert "CAP_SETPCAP is missing" in dropped.notes[0]
    assert "stays user root (0), not nobody: CAP_SETUID" in dropped.notes[1]
    found = capabilities(fields)
    assert found["CapPrm"] == found["CapEff"] == ADMIN
    assert found["CapInh"] == found["CapAmb"] == 0
    assert fields["NoNewPrivs"] == "1"


def in_a_user_namespace() -> tuple[privileges.Dropped, dict[str, str], str] | str:
    try:
        syscalls.unshare(CLONE_NEWUSER)
    except OSError as error:
        return str(error)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("0 0 1")
    Path("/proc/self/gid_map").write_text("0 0 1")
    syscalls.unshare(syscalls.CLONE_NEWNET)
    dropped = privileges.drop("nobody")
    with contextlib.closing(bind(3)):
        return dropped, status(), attempt(lambda: os.setgroups([]))


def test_a_user_namespace(netns: Namespace) -> None:
    """Where nobody is not mapped one stays who one is, with CAP_NET_ADMIN alone, and binds."""
    found = netns.python(in_a_user_namespace)
    if isinstance(found, str):
        pytest.skip(f"needs a user namespace: {found}")
    dropped, fields, groups = found
    assert len(dropped.notes) == 1
    assert "the user namespace does not allow it" in dropped.notes[0]
    assert capabilities(fields) == {
        "CapInh": 0, "CapPrm": ADMIN, "CapEff": ADMIN, "CapBnd": 0, "CapAmb": 0,
    }  # fmt: skip
    assert groups == "EPERM"


def a_kernel_that_lies(call: str) -> tuple[str, str]:
    """Have one step do nothing, and say that it did."""
    prctl = privileges._prctl

    def all_but_one(option: int, value: int) -> None:
        if option != 38:  # PR_SET_NO_NEW_PRIVS
            prctl(option, value)

    lie = all_but_one if call == "_prctl" else lambda *_: "" if call == "_become" else 0
    pytest.MonkeyPatch().setattr(privileges, call, lie)
    return refused()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("_capset", "permitted is"),
        ("_prctl", "no_new_privs is 0, not 1"),
        ("_empty_bounding_set", "bounding is"),
        ("_become", "uids is (0, 0, 0, 0), not (65534, 65534, 65534, 65534)"),
    ],
)
def test_it_is_looked_at_afterwards(netns: Namespace, call: str, said: str) -> None:
    """A step that has no effect, whatever it returns, is noticed and refused."""
    text, _ = netns.python(a_kernel_that_lies, call)
    assert text.startswith("NotPermitted: privileges could not be dropped: ")
    assert said in text
