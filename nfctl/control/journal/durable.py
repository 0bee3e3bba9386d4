"""Files that are there whole or not at all, whenever the machine stops; and safe directories.

A file is written under a name that begins with ``.new-``, fsynced, renamed, and its directory
fsynced (rename(2), fsync(2)). What a killed process leaves has such a name, and is swept by
the next who holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.errors import NfctlError, NotPermitted, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEW, OLD = ".new-", ".old-"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL}  # a link, a directory, a device
_LINKS = 40  # as many as the kernel follows
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def explained(directory: Path, assurance: str = "") -> Iterator[None]:
    """Turn what the file system refuses into an error that names the directory.

    ``assurance`` is what the user wants to know then: that nothing was touched.
    """
    try:
        yield
    except OSError as error:
        raise _explain(error, directory, assurance) from None


def _explain(error: OSError, directory: Path, assurance: str) -> NfctlError:
    end = f"; {assurance}" if assurance else ""
    if error.errno in _FULL:
        msg = f"the disk of {directory} is full: the journal cannot be written{end}"
        return Unsupported(msg, hint="NFCTL_STATE_DIR names another directory")
    if error.errno == errno.EROFS:
        msg = f"{directory} is on a read-only file system: the journal cannot be written{end}"
        return Unsupported(msg, hint="NFCTL_STATE_DIR names another directory")
    reason = error.strerror or str(error)
    if error.errno in _NO_FILE:
        msg = f"{error.filename or directory} is not what nfctl made: {reason}{end}"
        return Unsupported(msg, hint="move it away")
    if isinstance(error, PermissionError):
        msg = f"{directory} cannot be used: {reason}{end}"
        return NotPermitted(msg, hint="" if os.geteuid() == 0 else "run as root")
    msg = f"{error.filename or directory}: {reason}{end}"
    return Unsupported(msg, hint="NFCTL_STATE_DIR names another directory")


# --- directories --------------------------------------------------------------------------------


def check_directory(directory: Path) -> bool:
    """Whether the directory is there; raises where others could change what is in it.

    It has to be ours, without write bits for others, and no symbolic link. Whoever may rename
    one of the directories above has to be root or us, too.
    """
    directory = Path(os.path.normpath(directory.absolute()))
    _check_above(directory)
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode):
        raise _unsafe(directory, "is a symbolic link", "name the directory itself")
    if not stat.S_ISDIR(status.st_mode):
        raise _unsafe(directory, "is no directory")
    if status.st_uid != os.geteuid():
        if os.geteuid() != 0:
            msg = f"{directory} belongs to user {status.st_uid}"
            raise NotPermitted(msg, hint="run as root")
        raise _unsafe(directory, f"belongs to user {status.st_uid}", f"chown root {directory}")
    if status.st_mode & 0o022:
        raise _unsafe(directory, "can be written to by others", f"chmod 0700 {directory}")
    return True


def _check_above(directory: Path) -> None:
    """Look at every directory on the way, also behind symbolic links."""
    trusted = {0, os.geteuid()}
    at, rest, links = Path("/"), list(directory.parts[1:-1]), 0
    while True:
        status = at.lstat()
        if status.st_uid not in trusted:
            raise _unsafe(directory, f"is in {at}, which belongs to user {status.st_uid}")
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                raise _unsafe(directory, "has too many symbolic links above it")
            target = at.readlink()
            rest = [*target.parts[target.is_absolute() :], *rest]
            at = Path("/") if target.is_absolute() else at.parent
        elif not stat.S_ISDIR(status.st_mode):
            raise _unsafe(directory, f"is in {at}, which is no directory")
        elif _is_open(status):
            hint = f"chmod o-w,g-w {at}, or NFCTL_STATE_DIR names another directory"
            raise _unsafe(directory, f"is in {at}, which others can write to", hint)
        if not rest:
            return
        part = rest.pop(0)
        at = at.parent if part == ".." else at / part
        if not at.is_symlink() and not at.exists():
            return


def is_ours(file: Path) -> bool:
    """Whether nobody but root and us may change a file, or what is found by its name."""
    try:
        for each in (file, Path(os.path.realpath(file))):
            _check_above(each)
        status = file.stat()
    except (OSError, NfctlError):
        return False
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022


def _is_open(status: os.stat_result) -> bool:
    """Whether others than root and us may rename what is in a directory."""
    return not status.st_mode & stat.S_ISVTX and others_write(status)


def others_write(status: os.stat_result) -> bool:
    """Whether others than the owner, root's group and ours have write bits."""
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid not in {0, os.getegid()}
    return bool(status.st_mode & stat.S_IWOTH or by_group)


def _unsafe(directory: Path, why: str, hint: str = "") -> Unsupported:
    hint = hint or "NFCTL_STATE_DIR names another directory"
    return Unsupported(f"{directory} {why}: the journal is not kept there", hint=hint)


def make_directory(directory: Path) -> None:
    """Make a directory of mode 0700 where there is none, with those above it; check it."""
    if check_directory(directory):
        return
    for parent in (*reversed(directory.parents), directory):
        if not parent.exists():
            # others may not see what is in our own; what is above it is no secret
            with contextlib.suppress(FileExistsError):
                parent.mkdir(mode=0o700 if parent == directory else 0o755)
                sync_directory(parent.parent)
    check_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make sure that the names in a directory survive."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- files --------------------------------------------------------------------------------------


def write_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a directory that nobody knows yet, and sync them; not the directory."""
    open_files: list[int] = []
    try:
        for name, data in files.items():
            fd = os.open(
                directory / name,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            open_files.append(fd)
            _write(fd, data)
        # all at last: the first that is synced takes most of the others along
        for fd in open_files:
            os.fsync(fd)
    finally:
        for fd in open_files:
            os.close(fd)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read(file: Path) -> bytes:
    """Return what a plain file holds; OSError for a link, a FIFO, a device: they may never end."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(file))
        with os.fdopen(fd, "rb", closefd=False) as opened:
            return opened.read()
    finally:
        os.close(fd)


def write(file: Path, data: bytes) -> None:
    """Replace a file, or make it."""
    new = file.with_name(f"{NEW}{file.name}")
    new.unlink(missing_ok=True)
    try:
        write_all(file.parent, {new.name: data})
        os.rename(new, file)  # noqa: PTH104 - like the other calls around it
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    sync_directory(file.parent)


def link(old: Path, new: Path) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        write_all(new.parent, {new.name: old.read_bytes()})


def remove(directory: Path) -> None:
    """Remove a directory: at once for whoever looks, and then in peace."""
    old = directory.with_name(f"{OLD}{directory.name}")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(directory, old)  # noqa: PTH104 - like the other calls around it
    sync_directory(old.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove what killed processes left in a directory; only for who holds the lock."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.startswith((NEW, OLD)):
            path = directory / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def check_files(directory: Path, files: int) -> None:
    """Find out whether the disk has inodes for so many files; OSError if not."""
    status = os.statvfs(directory)
    if status.f_files and status.f_favail < files:  # no numbers where inodes are made as needed
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def probe(directory: Path, size: int) -> None:
    """Find out whether ``size`` bytes can be written and synced; OSError if not."""
    file = directory / f"{NEW}probe-{os.getpid()}"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        file.unlink(missing_ok=True)  # it has no name any more, so nobody has to remove it
        if size > 0:
            os.posix_fallocate(fd, 0, size)
        os.write(fd, b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)


class Spare:
    """Some room on the disk, held until it is released: for what has to be written later."""

    def __init__(self, directory: Path, size: int) -> None:
        file = directory / f"{NEW}spare-{os.getpid()}"
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            file.unlink(missing_ok=True)  # as with probe()
            os.posix_fallocate(self._fd, 0, size)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> Spare:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the room back; once more does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
