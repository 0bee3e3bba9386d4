"""The unit that restores at boot, and the systemd that runs it: ``persist enable``, ``disable``.

The unit runs before ``network-pre.target``, which every manager of interfaces waits for
(systemd.special(7)), and is wanted by ``sysinit.target``, so also by the rescue shell. It starts
the interpreter that nfctl runs in now, by its absolute path. As it runs as root at every boot,
nobody but root may be able to change that interpreter, the modules it finds, or a directory above.

Where it fails closed there is a last resort for what Python cannot see to: an interpreter that is
gone after an upgrade, a process that is killed. ``ExecStopPost=`` closes by iptables-legacy then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nfctl.control.journal import durable
from nfctl.control.persist import CLOSED
from nfctl.control.persist import closed as persist_closed
from nfctl.errors import AnswerNo, BadInput, NfctlError, NotPermitted, Unsupported
from nfctl.inspect import trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Done = subprocess.CompletedProcess[str]
    Run = Callable[[Sequence[str]], Done]

UNIT = "nfctl-restore.service"
UNITS = Path("/etc/systemd/system")
_RUNTIME = Path("/run/systemd/system")  # sd_booted(3)
_SYSTEMCTL = ("/usr/bin/systemctl", "/bin/systemctl")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_HOMES = ("/home/", "/root/", "/run/user/")
_CLOSERS = ("iptables-legacy", "ip6tables-legacy")
_PATIENCE = 120.0  # seconds, for systemctl and the interpreter
_START = 300  # seconds: 50,000 rules on a slow machine, and a minute for each lock
WAIT = 60.0  # seconds, for a lock
_ELSEWHERE = "install nfctl where only root may write: sudo bash vagrant/provision.sh install"
_ASK = "systemctl is-system-running, and journalctl -b, say more"
_HANDED_ON = ("XTABLES_LOCKFILE", "XTABLES_LIBDIR")
_PROBE = (
    "import json, sys, nfctl, nfctl.control.persist, nfctl.cli.persist as cli; "
    "print(json.dumps([p for p in sys.path if p] + [cli.__file__]))"
)


class Setup(NamedTuple):
    """What the unit needs: programs by absolute path, and where it finds what it reads."""

    interpreter: str
    places: tuple[str, ...]  # from which code is read
    state: str
    environment: tuple[tuple[str, str], ...] = ()
    closers: tuple[str, ...] = ()


def run(words: Sequence[str]) -> Done:
    """Run a command to its end, without a terminal."""
    environment = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"}
    try:
        return subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
            cwd="/",
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{words[0]} cannot be run: {error}"
        raise Unsupported(msg, hint="run it by hand, as root, to see why") from None


# --- the unit -------------------------------------------------------------------------------------


def text(setup: Setup, fail: str) -> str:
    """Return the unit."""
    words = (setup.interpreter, "-P", "-m", "nfctl", "persist", "restore", "--fail", fail)
    mounts = dict.fromkeys((setup.state, setup.interpreter, *setup.places))
    environment = [("NFCTL_STATE_DIR", setup.state), *setup.environment]
    lines = [
        "# Written by nfctl persist enable, which overwrites it; to add to it: systemctl edit",
        "[Unit]",
        "Description=nfctl: restore the firewall as it was confirmed last",
        "DefaultDependencies=no",
        f"RequiresMountsFor={' '.join(map(_word, mounts))}",
        "After=local-fs.target systemd-modules-load.service",
        "Wants=network-pre.target",
        "Before=network-pre.target shutdown.target",
        "Conflicts=shutdown.target",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        *(f"Environment={_word(f'{name}={value}')}" for name, value in environment),
        f"ExecStart={' '.join(_word(word, exec_line=True) for word in words)} --wait {WAIT:g}",
    ]
    if fail == CLOSED and setup.closers:
        script = _word(_closing(setup.closers), exec_line=True)
        lines.append(f"ExecStopPost=/bin/sh -c {script}")
    lines += [
        f"TimeoutStartSec={_START}",
        "StandardInput=null",
        "SyslogIdentifier=nfctl",
        "UMask=0077",
        # ipsets are compared in a network namespace that is thrown away: CAP_SYS_ADMIN
        "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_ADMIN CAP_SYS_MODULE",
        "NoNewPrivileges=yes",
        "ProtectSystem=full",
    ]
    if not any(os.path.realpath(place).startswith(_HOMES) for place in mounts):
        lines.append("ProtectHome=yes")
    lines += ["", "[Install]", "WantedBy=sysinit.target"]
    return "".join(f"{line}\n" for line in lines)


def _word(word: str, *, exec_line: bool = False) -> str:
    """Write a word so that systemd reads it as it is: systemd.syntax(7), systemd.service(5)."""
    word = word.replace("%", "%%")
    if exec_line:
        word = word.replace("$", "$$")
    if re.fullmatch(r"[\w@%$+=:,./-]+", word, re.ASCII):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _closing(tools: Sequence[str]) -> str:
    """Return the shell's words that close, unless all went well or nfctl has closed already.

    Exit code 4: another change waits for its confirmation, nothing was restored over it.
    """

    def feed(established: bool) -> str:
        lines = persist_closed.text(established=established).splitlines()
        words = " ".join(shlex.quote(line) for line in lines)
        return f'printf "%s\\n" {words} | "$tool-restore" -w {WAIT:g} -n'

    return (
        "case $SERVICE_RESULT:$EXIT_STATUS in success:*|exit-code:4) exit 0 ;; esac; "
        f"for tool in {' '.join(map(shlex.quote, tools))}; do "
        f'"$tool" -w {WAIT:g} -n -L {persist_closed.CHAIN} >/dev/null 2>&1 || '
        f"{feed(True)} || {feed(False)}; done"
    )


# --- what it starts -------------------------------------------------------------------------------


def setup(state: Path, *, interpreter: str = sys.executable, run: Run = run) -> Setup:
    """Return what the unit needs of this installation of nfctl.

    Raises NotPermitted (exit 3) where others than root could change what it starts, Unsupported
    where the interpreter does not find nfctl by itself.
    """
    if not interpreter.startswith("/"):
        msg = "the interpreter that nfctl runs in has no path"
        raise Unsupported(msg, hint=_ELSEWHERE)
    check_trusted([interpreter])
    done = run([interpreter, "-P", "-c", _PROBE])
    try:
        found = [str(place) for place in json.loads(done.stdout.strip().rpartition("\n")[2])]
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        msg = f"{interpreter} does not find nfctl when systemd starts it: {last}"
        raise Unsupported(msg, hint=_ELSEWHERE) from None
    places = [place for place in dict.fromkeys(found[:-1]) if Path(place).exists()]
    environment = [(name, os.environ[name]) for name in _HANDED_ON if os.environ.get(name)]
    named = [value for name, value in environment if name == "XTABLES_LIBDIR"]
    closers = [path for name in _CLOSERS if (path := _which(name)) and _which(f"{name}-restore")]
    check_trusted([*found, *closers, *(part for value in named for part in value.split(":"))])
    # what is below another one needs no mention
    tops = [p for p in places if not any(p != q and f"{p}/".startswith(f"{q}/") for q in places)]
    return Setup(interpreter, tuple(tops), str(state), tuple(environment), tuple(closers))


def check_namespace() -> None:
    """Raise BadInput outside the network namespace of the init process, where the unit will run."""
    try:
        here, there = (Path(f"/proc/{one}/ns/net").stat().st_ino for one in ("self", "1"))
    except OSError:
        return
    if here != there:
        msg = "systemd restores the rules of its own network namespace, which this is not"
        hint = "what makes this namespace can run nfctl persist restore --netns NAME"
        raise BadInput(msg, hint=hint)


def _which(name: str) -> str:
    paths = (f"{directory}/{name}" for directory in _PATH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def check_trusted(places: Sequence[str]) -> None:
    """Raise NotPermitted if others than root may write one of these, what is in it or above it."""
    seen: set[tuple[int, int]] = set()
    for place in places:
        for path in _tree(place, seen):
            fault = trust.fault(path, libraries=False)
            if fault is not None:
                msg = f"nfctl cannot be started as root at boot: {fault}"
                raise NotPermitted(msg, hint=_ELSEWHERE)


def _tree(place: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield what has to be looked at: the path itself, and what in it is no plain file of root."""
    yield place
    todo = [os.path.realpath(place)]
    while todo:
        directory = todo.pop()
        try:
            status = os.stat(directory)  # noqa: PTH116 - text, for speed
            if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                found = list(entries)
        except OSError:
            yield directory
            continue
        for entry in found:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                yield entry.path
                todo.append(os.path.realpath(entry.path))
                continue
            if info.st_uid or info.st_mode & 0o022:
                yield entry.path
            if stat.S_ISDIR(info.st_mode):
                todo.append(entry.path)


# --- systemd --------------------------------------------------------------------------------------


class Systemd:
    """The system's manager. ``run`` runs a command; tests give their own, and directories."""

    def __init__(self, *, run: Run = run, units: Path = UNITS, runtime: Path = _RUNTIME) -> None:
        self.file = units / UNIT
        self._run = run
        self._runtime = runtime
        self._program = next((path for path in _SYSTEMCTL if Path(path).exists()), "")

    @property
    def is_there(self) -> bool:
        """Whether systemd is the init process of this system."""
        return self._runtime.is_dir() and bool(self._program)

    def systemctl(self, *words: str) -> Done:
        """Run the command, whatever it answers."""
        if not self.is_there:
            msg = "systemd does not run here, and nothing else starts nfctl at boot"
            hint = "have your init run nfctl persist restore before it brings up the network"
            raise Unsupported(msg, hint=hint)
        return self._run([self._program, "--no-pager", "--no-ask-password", *words])

    def _do(self, *words: str) -> None:
        done = self.systemctl(*words)
        if done.returncode:
            msg = f"systemctl {' '.join(words)}: {_said(done)}"
            raise Unsupported(msg, hint=_ASK)

    def show(self, *units: str) -> list[dict[str, str]]:
        """Return what systemd knows of each unit."""
        names = ("Id", "LoadState", "UnitFileState", "ActiveState", "SubState", "Result",
                 "NeedDaemonReload", "ActiveEnterTimestamp", "FragmentPath")  # fmt: skip
        done = self.systemctl("show", f"--property={','.join(names)}", "--", *units)
        if done.returncode and not done.stdout.strip():
            msg = f"systemd does not answer: {_said(done)}"
            raise Unsupported(msg, hint=_ASK)
        found = []
        for block in done.stdout.strip().split("\n\n"):
            pairs = (line.partition("=") for line in block.splitlines())
            found.append({name: value for name, _, value in pairs})
        return found

    def enable(self, unit: str) -> None:
        """Install the unit, this text, for every boot; on an error it is as it was."""
        if self.file.is_symlink():
            msg = f"{UNIT} is masked: {self.file} is a link to {os.readlink(self.file)}"  # noqa: PTH115
            raise AnswerNo(msg, hint=f"systemctl unmask {UNIT}")
        self.systemctl("--version")
        before = self.file.read_bytes() if self.file.exists() else None
        self._write(unit.encode("utf-8", "surrogateescape"))
        try:
            self._do("daemon-reload")
            self._do("enable", UNIT)
            (state,) = self.show(UNIT)
            if (state.get("LoadState"), state.get("UnitFileState")) != ("loaded", "enabled"):
                msg = (
                    f"systemd does not take {self.file}: {state.get('LoadState')}, "
                    f"{state.get('UnitFileState')}"
                )
                raise Unsupported(msg, hint=f"systemd-analyze verify {self.file}")
        except BaseException:
            if before is None:
                with contextlib.suppress(NfctlError):
                    self.disable()
            else:
                self._write(before)
                with contextlib.suppress(NfctlError):
                    self.systemctl("daemon-reload")
            raise

    def disable(self) -> bool:
        """Take the unit away; return whether there was one. The rules stay as they are."""
        if not self.file.exists() and not self.file.is_symlink():
            return False
        if self.is_there:
            # --now: it would stay "active" without a file; stopping it does nothing
            self.systemctl("disable", "--now", UNIT)
        try:
            for link in sorted(self.file.parent.glob(f"*.wants/{UNIT}")):
                link.unlink()
            self.file.unlink()
            durable.sync_directory(self.file.parent)
        except OSError as error:
            raise _refused(error) from None
        if self.is_there:
            self._do("daemon-reload")
            self.systemctl("reset-failed", UNIT)
        return True

    def _write(self, data: bytes) -> None:
        new = self.file.with_name(f"{durable.NEW}{self.file.name}")
        try:
            new.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(new, flags, 0o644)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            new.rename(self.file)
            durable.sync_directory(self.file.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            raise _refused(error) from None


def _said(done: Done) -> str:
    """Return why a command failed, on one line."""
    return " ".join(done.stderr.split()) or f"exit code {done.returncode}"


def _refused(error: OSError) -> NfctlError:
    msg = f"{error.filename}: {error.strerror}"
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return NotPermitted(msg, hint="run as root")
    return Unsupported(msg, hint="the unit's directory cannot be written")
