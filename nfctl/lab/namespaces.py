"""Named network namespaces: create, enter, list, see who is inside, remove.

A name is a bind mount of ``/proc/<pid>/ns/net`` under ``/run/netns``, as ip-netns(8) makes
it, so that ``ip netns exec`` and everybody else can use a lab's hosts. The mount point
``/run/netns`` itself is made on first use and stays, as with ``ip netns add``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import socket
import time
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from nfctl.errors import BadInput, NotPermitted, Unsupported
from nfctl.lab import fork, syscalls, sysctls
from nfctl.lab.sysctls import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nfctl.lab.netlink import Netlink

DIRECTORY = Path("/run/netns")
PREFIX = "nfctl-"

AS_ROOT = (
    "run it as root, or in a user namespace of your own: "
    "unshare -Urnm sh -c 'mount -t tmpfs tmpfs /run && exec bash'"
)

_TIMEOUT = 30.0  # seconds to make namespaces; a hundred take half a second


class Wanted(NamedTuple):
    """A namespace to be made: its name, what for, and the sysctls that its user wants."""

    name: str
    role: Role = Role.HOST
    sysctls: Mapping[str, str] = MappingProxyType({})


class Made(NamedTuple):
    """A namespace that was made: its socket, and the sysctls that do not exist yet.

    Those of an interface (``net.ipv4.conf.eth0...``) wait for it; see :func:`set_sysctls`.
    """

    netlink: Netlink
    late: dict[str, str]


def path_of(name: str) -> Path:
    """Return the file of the namespace called ``name``."""
    return DIRECTORY / name


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all (``ipv6.disable=1`` takes it away)."""
    return sysctls.has_ipv6()


def names(prefix: str = PREFIX) -> list[str]:
    """Return the names that begin with ``prefix``, sorted."""
    try:
        return sorted(path.name for path in DIRECTORY.iterdir() if path.name.startswith(prefix))
    except FileNotFoundError:
        return []


def require_privileges() -> None:
    """Raise NotPermitted unless the caller may make namespaces and mounts."""
    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        raise NotPermitted(
            "making network namespaces needs CAP_NET_ADMIN and CAP_SYS_ADMIN",
            hint=AS_ROOT,
        )


def check_word(word: str, what: str) -> str:
    """Return ``word`` if it can be a part of a namespace's name, or raise BadInput."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,30}", word):
        raise BadInput(
            f'"{word}" is no name for a {what}',
            hint="lower-case letters and digits, a letter first, 31 at most",
        )
    return word


class Making:
    """Namespaces in the making, with quiet settings: one child makes one after the other.

    One child for all is quicker than one each: a fork takes longer than a namespace. When all
    are made the child runs ``then``; the caller has time for something else meanwhile.
    """

    def __init__(self, wanted: Sequence[Wanted], then: Callable[[], object] | None = None) -> None:
        self._wanted = wanted
        self._results, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = fork.Child(_make, wanted, theirs, then, os.getpid())
        except BaseException:
            self._results.close()
            raise
        finally:
            theirs.close()

    def made(self) -> list[Made]:
        """Wait until all are made, and return them.

        Unsupported if the kernel has no network namespaces, NotPermitted if it refuses,
        BadInput if a name is taken or a sysctl is wrong. Those made before an error stay.
        """
        from nfctl.lab.netlink import Netlink

        made: list[Made] = []
        try:
            self._results.settimeout(_TIMEOUT)
            for wanted in self._wanted:
                late, descriptors, _, _ = socket.recv_fds(
                    self._results, 1 << 16, 1, socket.MSG_CMSG_CLOEXEC
                )
                if not descriptors:  # the child has ended
                    self.finish()
                    raise ChildProcessError("the child that makes namespaces has ended")
                names = filter(None, late.decode().split("\0"))
                values = {name: wanted.sysctls[name] for name in names}
                made.append(Made(Netlink(descriptors[0]), values))
        except BaseException:
            for each in made:
                each.netlink.close()
            self.abandon()
            raise
        return made

    def finish(self) -> None:
        """Wait for ``then``, and raise what it raised."""
        try:
            self._child.result(_TIMEOUT)
        except OSError as error:
            raise _refusal(error) from None
        finally:
            self._results.close()

    def abandon(self) -> None:
        """End the child at once, if it is still there."""
        self._results.close()
        self._child.kill()


def _refusal(error: OSError) -> Exception:
    """Return what it means that a namespace cannot be made."""
    if isinstance(error, FileExistsError):
        return BadInput(f"the network namespace {Path(error.filename).name} exists already")
    if isinstance(error, PermissionError):
        return NotPermitted(
            f"cannot make a network namespace: {error}",
            hint=f"{AS_ROOT}; a container must allow mount(2)",
        )
    if error.errno == errno.EROFS:
        return NotPermitted(f"cannot set up a network namespace: {error}")
    if error.errno in {errno.EINVAL, errno.ENOSYS}:
        return Unsupported(f"cannot make a network namespace: {error}")
    return error


def _make(
    wanted: Sequence[Wanted],
    results: socket.socket,
    then: Callable[[], object] | None,
    parent: int,
) -> None:
    """In a child: make one namespace after the other, and hand over a socket of each."""
    from nfctl.lab.netlink import Netlink

    syscalls.die_with_parent(parent)  # or it would go on making what somebody else removes
    _share_directory()
    for each in wanted:
        _create(each.name)
        sysctls.prepare(each.role)
        late = sysctls.write(each.sysctls, host_of(each.name))
        netlink = Netlink()
        socket.send_fds(results, ["\0".join(late).encode() or b"\0"], [netlink.fileno()])
        netlink.close()
    results.close()
    if then is not None:
        then()


def _create(name: str) -> None:
    """Make a namespace the calling process' own, and pin it under its name."""
    target = path_of(name)
    target.touch(mode=0o600, exist_ok=False)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.mount("/proc/self/ns/net", target, syscalls.MS_BIND)
    except OSError:
        target.unlink()
        raise


def _share_directory() -> None:
    """Make ``/run/netns`` a shared mount, so that names appear in all mount namespaces."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(DIRECTORY):  # as ip-netns(8) does: one mount is enough
        try:
            syscalls.mount("", DIRECTORY, syscalls.MS_SHARED | syscalls.MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: not a mount point yet
                raise
            syscalls.mount(DIRECTORY, DIRECTORY, syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.mount("", DIRECTORY, syscalls.MS_SHARED | syscalls.MS_REC)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory (flock(2)) for the block."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def set_sysctls(late: Mapping[str, Mapping[str, str]]) -> None:
    """Set the sysctls of namespaces by their names, in a child; BadInput where one is wrong."""

    def inside() -> None:
        for name, values in late.items():
            enter(name)
            for missing in sysctls.write(values, host_of(name)):
                raise BadInput(f"{host_of(name)}: there is no sysctl {missing}")

    if any(late.values()):
        fork.call(inside)


def host_of(name: str) -> str:
    """Return the host's part of a namespace's name."""
    return name.rpartition("-")[2]


def enter(name: str, *, run: Path | None = None) -> None:
    """Move the calling process, which must be a child of its own, into a namespace.

    With ``run``, also into a mount namespace where that file system is ``/run``: the xtables
    lock and every socket under ``/run`` are then private to those who share it, and so is what
    they mount there, as ``ip netns add`` does. See also :func:`hosts_file`.
    """
    syscalls.setns(path_of(name), syscalls.CLONE_NEWNET)
    if run is not None:
        own = syscalls.clone_mount(run)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", syscalls.MS_SLAVE | syscalls.MS_REC)  # nothing leaks back
        for file, target in ((hosts_file(run), "hosts"), (resolver_file(run), "resolv.conf")):
            # A machine without such a file stays without it.
            if file.parent == run.parent and file.exists():
                with contextlib.suppress(FileNotFoundError):
                    syscalls.mount(file, f"/etc/{target}", syscalls.MS_BIND)
        syscalls.attach_mount(own, Path("/run"))
        os.close(own)


def make_run(run: Path) -> None:
    """Make the directory ``run`` a file system of its own, to be a host's ``/run``.

    A directory alone would do, but for a ``mount -o remount /run`` in the host: that would be
    the machine's.
    """
    run.mkdir()
    syscalls.mount_tmpfs(run, "0755")


def hosts_file(run: Path) -> Path:
    """Return the file that the host whose ``/run`` is ``run`` sees as /etc/hosts, if it exists.

    One for all hosts of a lab; no host's directory has such a name, with a dot.
    """
    return run.with_name("etc.hosts")


def resolver_file(run: Path) -> Path:
    """Return the file that the host whose ``/run`` is ``run`` sees as /etc/resolv.conf.

    Where the machine's is a link into /run, as with systemd-resolved, it lies there.
    """
    target = os.path.realpath("/etc/resolv.conf")
    if target.startswith("/run/"):
        return run / target.removeprefix("/run/")
    return run.with_name(f"{run.name}.resolv")


def open_netlink(name: str) -> Netlink:
    """Return a socket of an existing namespace, which a child opens there."""
    from nfctl.lab.netlink import Netlink

    def inside() -> None:
        enter(name)
        netlink = Netlink()
        socket.send_fds(theirs, [b"+"], [netlink.fileno()])

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            fork.call(inside)
        except FileNotFoundError:
            raise BadInput(f"there is no network namespace {name}") from None
        return Netlink(socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1][0])


def remove(doomed: Iterable[str], timeout: float = 5.0) -> None:
    """Kill what runs in namespaces, and take their names away.

    The kernel frees a namespace in the background. What does not die in ``timeout`` seconds is
    stuck in the kernel; its namespace lives until it ends.
    """
    with contextlib.ExitStack() as stack:
        inodes = {}
        doomed = list(doomed)
        for name in doomed:
            with contextlib.suppress(OSError):  # gone already
                descriptor = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
                # While it is open, the kernel gives its inode number to no other namespace.
                stack.callback(os.close, descriptor)
                inodes[_identity(descriptor)] = name
        deadline = time.monotonic() + timeout
        _kill_inside(inodes, deadline)
        for name in doomed:
            with contextlib.suppress(OSError):  # not mounted: a half-made one
                syscalls.detach(path_of(name))
            path_of(name).unlink(missing_ok=True)
        _kill_inside(inodes, deadline)  # who came in meanwhile; now nobody can any more


def _kill_inside(inodes: Mapping[tuple[int, int], str], deadline: float) -> None:
    """Kill (SIGKILL) the processes in these namespaces until there are none."""
    while inside := dict(_processes(inodes)):
        if os.getpid() in inside:
            name = inside[os.getpid()]
            raise BadInput(f"a process inside {name} cannot take {name} away")
        poll = select.poll()
        waiting = set()
        with contextlib.ExitStack() as stack:
            for pid in inside:
                with contextlib.suppress(OSError):  # it has ended
                    descriptor = os.pidfd_open(pid)  # readable when the process has ended
                    stack.callback(os.close, descriptor)
                    if _identity(f"/proc/{pid}/ns/net") in inodes:  # still the same process
                        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                        poll.register(descriptor, select.POLLIN)
                        waiting.add(descriptor)
            while waiting:
                ended = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not ended:
                    return
                for descriptor, _ in ended:
                    poll.unregister(descriptor)
                    waiting.discard(descriptor)


def _processes(inodes: Mapping[tuple[int, int], str]) -> Iterator[tuple[int, str]]:
    """Find the processes in these namespaces: their ids, and the namespaces' names."""
    if inodes:
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                # It may end while we look; a dead one that nobody waited for has no namespace.
                with contextlib.suppress(OSError):
                    name = inodes.get(_identity(f"/proc/{entry}/ns/net"))
                    if name is not None:
                        yield int(entry), name


def _identity(file: str | int) -> tuple[int, int]:
    """Return the device and inode, which are those of no other namespace."""
    status = os.stat(file)  # noqa: PTH116 - of a descriptor, or of very many
    return status.st_dev, status.st_ino
