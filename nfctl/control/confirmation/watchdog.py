"""The process that rolls an unconfirmed change back, and the confirmation that stops it.

:func:`arm` starts it before the change is committed and returns when it stands: its modules are
loaded, the snapshot is in its memory, and from then on it needs nobody. It is

* under systemd a transient unit ``nfctl-confirm-NUMBER`` (systemd-run(1)), so that the end of a
  login session, which logind may answer by killing all that was started in it, does not concern it;
* elsewhere a process in a session of its own, whose parent is init, with /dev/null for its
  streams: neither the terminal's hangup nor a signal to its starter's process group reaches it.

Both are a new interpreter instead of a fork: it shares neither memory, threads, locks nor command
line (``pkill -f "nfctl apply"``) with its starter, and what cannot be started or imported is known
while nothing has been changed. What it does then is in :mod:`nfctl.control.confirmation.vigil`.

Who decides is the status of the history entry, under the state's lock: the first to write
"confirmed" or "rolled back" there wins.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.journal import durable, home
from nfctl.control.journal.entries import CONFIRMED, PREPARED, ROLLED_BACK, UNCONFIRMED
from nfctl.errors import AnswerNo, NfctlError, RolledBack, Unsupported
from nfctl.kernel import lock, netns, process

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.control.journal.entries import Entry
    from nfctl.control.journal.state import State

#: What wakes a watchdog, beside its history entry.
FIFO = "wake"
WAKE, NOW, END = b"w", b"n", b"e"

_START = 60.0  # seconds that it may take to stand; an emulated machine needs ten
_ENVIRONMENT = (
    "PATH", "LANG", "LC_ALL", "NFCTL_STATE_DIR", "XTABLES_LOCKFILE", "XTABLES_LIBDIR",
    "PYTHONHOME", "LD_LIBRARY_PATH",
)  # fmt: skip


class Armed(NamedTuple):
    """A watchdog that stands. ``how`` is "systemd" or "process"."""

    how: str
    state: State
    number: int

    def disarm(self) -> None:
        """End it: nothing was committed, or all of it was put back."""
        _tell(self.state, self.number, END)


def arm(
    state: State, number: int, seconds: float, *, runtime: Path = Path("/run/systemd/system")
) -> Armed:
    """Start the watchdog of a history entry, ``seconds`` from now; return when it stands.

    The entry's own deadline counts once it has one. Raises Unsupported (exit 3) where none can
    be started; nothing may be committed then.
    """
    if not sys.executable:
        msg = "the program that Python runs in has no interpreter to start a watchdog with"
        raise Unsupported(msg, hint="apply without a confirmation, or by the command nfctl")
    words = [str(state.directory.absolute()), str(number), f"{process.since_boot() + seconds:.3f}"]
    if runtime.is_dir():
        # a container may show systemd's directory and have no systemd: then a process it is
        with contextlib.suppress(NfctlError):
            _by_systemd(state, number, words)
            return Armed("systemd", state, number)
    _by_process(words)
    return Armed("process", state, number)


def _by_process(words: list[str]) -> None:
    """Start the process; its output until it stands is "ready", or what is wrong."""
    command = [*_python(), *words, "--detach"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=dict(_environment()),
        start_new_session=True,
    ) as child:
        assert child.stdout is not None  # noqa: S101 - for the type checker
        said = _read(child.stdout.fileno(), time.monotonic() + _START)
        child.kill()  # it has left this one behind long since
    if not said.endswith("ready\n"):
        reason = said.strip().rpartition("\n")[2] or "it gave no answer"
        msg = f"the watchdog could not be started, so nothing was changed: {reason}"
        raise Unsupported(msg, hint="without --confirm none is needed")


def _read(descriptor: int, deadline: float) -> str:
    """Read to the end, a megabyte at most, until the deadline (CLOCK_MONOTONIC)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    said = b""
    while len(said) < 1 << 20:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        part = os.read(descriptor, 1 << 16)
        if not part:
            break
        said += part
    return said.decode("utf-8", "replace")


# --- systemd ------------------------------------------------------------------------------------


def _systemd_run() -> str:
    """Return the path of systemd-run(1), of PATH's first that nobody else could have written."""
    for place in os.get_exec_path():
        program = Path(place, "systemd-run")
        if place.startswith("/") and os.access(program, os.X_OK) and durable.is_ours(program):
            return str(program)
    msg = "systemd-run: PATH has none that root alone may write"
    raise Unsupported(msg)


def _by_systemd(state: State, number: int, words: list[str]) -> None:
    watchdog = [*_python(), *words, *_identities(state.directory), *_network()]
    told = systemd_command(state.directory, number, watchdog, _environment())
    command = [_systemd_run(), *told]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START + 30,
            check=False,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"systemd-run: {error}"
        raise Unsupported(msg) from None
    if done.returncode:
        msg = f"systemd-run: {done.stderr.decode('utf-8', 'replace').strip()}"
        raise Unsupported(msg)
    if not wake(state, number):
        msg = "systemd-run has ended, but nobody waits for a word"
        raise Unsupported(msg)


def unit_name(directory: Path, number: int) -> str:
    """Return the unit's name; entries of other state directories have the same numbers."""
    if directory == home.HOME:
        return f"nfctl-confirm-{number}"
    import hashlib

    tag = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:8]
    return f"nfctl-confirm-{number}-{tag}"


def systemd_command(
    directory: Path, number: int, command: list[str], environment: Iterable[tuple[str, str]]
) -> list[str]:
    """Return what systemd-run(1) is told, which ends when the watchdog has said READY=1.

    A watchdog that is killed is started again (``on-abnormal``): its deadline is a moment and no
    duration. One that stops at once because it is not where it should be stays stopped.
    """
    properties = {
        "NotifyAccess": "main",
        "TimeoutStartSec": f"{_START:g}",
        "TimeoutStopSec": "90",  # SIGTERM makes it roll back
        "Restart": "on-abnormal",
        "RestartSec": "100ms",
        "OOMScoreAdjust": "-1000",
        "UMask": "0077",
        "LimitMEMLOCK": "infinity",
        "StandardInput": "null",
    }
    return [
        "--quiet",
        "--collect",
        f"--unit={unit_name(directory, number)}",
        f"--description=nfctl: roll history entry {number} back unless it is confirmed",
        "--service-type=notify",
        *(f"--property={name}={value}" for name, value in properties.items()),
        *(f"--setenv={name}={value}" for name, value in environment),
        "--",
        *(word.replace("$", "$$") for word in command),  # it would expand variables
    ]


def _python() -> list[str]:
    return [sys.executable, "-P", "-m", "nfctl.control.confirmation.watchdog"]


def _environment() -> list[tuple[str, str]]:
    """Return what the watchdog has to know, and nothing else of the caller's environment."""
    found = [(name, os.environ[name]) for name in _ENVIRONMENT if name in os.environ]
    # what can be imported here can be imported there, in the same order
    places = [place for place in sys.path if place.startswith("/") and not _is_open(place)]
    path = os.pathsep.join(dict.fromkeys([*places, str(Path(__file__).parents[3])]))
    return [*found, ("PYTHONPATH", path)]


def _is_open(place: str) -> bool:
    """Whether others may put modules into a directory, as into /tmp, or into one to come."""
    try:
        return durable.others_write(Path(place).stat())
    except OSError:
        return True


def _identities(directory: Path) -> list[str]:
    """Say by device and inode what files have to be: a unit is in systemd's mount namespace."""
    files = (str(directory.absolute()), lock.path(), sys.executable)
    return [word for file in files for word in ("--same", f"{identity(file)}:{file}")]


def identity(file: str) -> str:
    """Return "device:inode" of a file, "-:-" if there is none."""
    try:
        status = Path(file).stat()
    except OSError:
        return "-:-"
    return f"{status.st_dev}:{status.st_ino}"


def _network() -> list[str]:
    """Name this thread's network namespace: under /run/netns, or else by this process."""
    here = f"/proc/{os.getpid()}/task/{_thread()}/ns/net"
    own = identity(here)
    if own == identity("/proc/1/ns/net"):
        return []
    named = (f"/run/netns/{name}" for name in netns.names_list())
    file = next((file for file in named if identity(file) == own), here)
    return ["--same", f"{own}:{file}", "--netns", file]


def _thread() -> int:
    import threading

    return threading.get_native_id()


# --- confirming ---------------------------------------------------------------------------------


def confirm(state: State, number: int | None = None) -> Entry:
    """Keep the change that waits for it (None), or that of an entry; return the entry.

    Raises AnswerNo (exit 1) where none waits, RolledBack (exit 5) where it is too late.
    """
    with state.locked():
        entry = _waiting(state) if number is None else state.entry(number)
        if entry.status == CONFIRMED:
            return entry
        _check_open(state, entry)
        # in this order: who is killed in between, or finds the disk full, has confirmed nothing,
        # and the rollback that follows takes the record back
        state.confirm_record(entry.policy)
        entry = state.mark(entry.number, CONFIRMED)
    wake(state, entry.number)
    return entry


def _waiting(state: State) -> Entry:
    """Return the entry that waits, or the latest one if that would have: the change was undone."""
    entry = state.pending()
    if entry is not None:
        return entry
    latest = next(iter(reversed(state.entries())), None)
    if latest is not None and latest.action == "rollback" and latest.undoes:
        with contextlib.suppress(NfctlError):  # it was pruned
            latest = state.entry(max(latest.undoes))
    if latest is not None and latest.confirm is not None and latest.status != CONFIRMED:
        return latest
    msg = "no change waits for a confirmation"
    raise AnswerNo(msg, hint="nfctl history shows what was done")


def _check_open(state: State, entry: Entry) -> None:
    name = f"history entry {entry.number}"
    if entry.status == ROLLED_BACK:
        why = f": {entry.reason}" if entry.reason else ""
        msg = f"too late: {name} was rolled back{why}"
        raise RolledBack(msg, hint="apply the policy again")
    if entry.status == PREPARED:
        msg = f"{name} was broken off before it was made, so it cannot be confirmed"
        raise AnswerNo(msg, hint="nfctl rollback undoes what may have come of it")
    if entry.status != UNCONFIRMED:
        msg = f"{name} waits for no confirmation: it is {entry.status}"
        raise AnswerNo(msg, hint=f"nfctl history show {entry.number}")
    if entry.boot_id != state.boot_id:
        msg = f"the machine was started anew since {name}: what that changed is gone"
        raise AnswerNo(msg, hint="apply the policy again")


def wake(state: State, number: int) -> bool:
    """Have the watchdog look at its entry's status; return whether there is one."""
    return _tell(state, number, WAKE)


def hurry(state: State, number: int) -> bool:
    """Have the watchdog roll back now; return whether there is one."""
    return _tell(state, number, NOW)


def _tell(state: State, number: int, word: bytes) -> bool:
    try:
        file = os.open(fifo(state, number), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENXIO: nobody reads it
        return False
    try:
        os.write(file, word)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def fifo(state: State, number: int) -> Path:
    """Return where an entry's watchdog is spoken to."""
    return state.directory / "history" / str(number) / FIFO


if __name__ == "__main__":
    from nfctl.control.confirmation import vigil

    vigil.main(sys.argv[1:])
