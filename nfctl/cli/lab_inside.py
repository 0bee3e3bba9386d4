"""What ``nfctl lab exec`` and ``nfctl lab shell`` do: become another program inside a host.

The program takes this process's place, so its streams, its terminal, its signals, its exit code
and even its process id are those that the caller sees.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from nfctl.cli.lab_find import the_host
from nfctl.errors import BadInput, NfctlError, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nfctl.lab.host import Host
    from nfctl.lab.standing import Standing

# For bash's --rcfile: what an interactive bash reads anyhow, then the prompt.
_BASHRC = """\
for file in /etc/bash.bashrc ~/.bashrc; do [ -r "$file" ] && . "$file"; done; unset file
PS1="($NFCTL_LAB/$NFCTL_HOST) ${PS1:-\\w \\$ }"
"""
_SHELLS = ("/bin/bash", "/bin/sh")
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


class NotFound(NfctlError):
    """There is no such program: the exit code is the one shells give (127)."""

    exit_code = 127


class NotExecutable(NfctlError):
    """The program is there and cannot be run: the exit code is the one shells give (126)."""

    exit_code = 126


def execute(host: str, command: Sequence[str], *, lab: str = "") -> NoReturn:
    """Become a command inside a host."""
    standing, inside = the_host(lab, host)
    words = list(command)
    if words[:1] == ["--"]:  # as other programs with an exec want it; no command is called so
        del words[0]
    if not words:
        named = f"-l {lab} " if lab else ""
        msg = f"which command is {host} to run?"
        raise BadInput(msg, hint=f"nfctl lab shell {named}{host} gives you a shell there")
    _enter(standing, inside)
    become(words, environment(standing, inside))


def shell(host: str, *, lab: str = "") -> NoReturn:
    """Become the caller's shell inside a host, with a prompt that says where one is."""
    standing, inside = the_host(lab, host)
    _enter(standing, inside)
    settings = environment(standing, inside)
    program = next(
        (path for path in (settings.get("SHELL", ""), *_SHELLS) if os.access(path, os.X_OK)),
        _SHELLS[-1],
    )
    settings["SHELL"] = program
    words = [program]
    if os.path.basename(program) == "bash":  # noqa: PTH119 - pathlib is slow to import
        words += ["--rcfile", _file_of(_BASHRC)]
    else:
        mark = "#" if os.geteuid() == 0 else "$"
        settings["PS1"] = settings["PROMPT"] = f"({standing.name}/{inside.name}) {mark} "
    become(words, settings)


def environment(lab: Standing, host: Host) -> dict[str, str]:
    """Return the caller's environment, and where one is."""
    return {**os.environ, "NFCTL_LAB": lab.name, "NFCTL_HOST": host.name}


def become(words: list[str], settings: Mapping[str, str]) -> NoReturn:
    """Replace this process by a program; NotFound or NotExecutable where that fails.

    Nothing of Python stays: its descriptors close, its unwritten output is written, and SIGPIPE,
    which Python ignores, kills again.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _IGNORED_BY_PYTHON}
    error = _execute(words, settings)
    for number, handler in before.items():
        signal.signal(number, handler)  # there is an error to be shown
    raise error


def _execute(words: list[str], settings: Mapping[str, str]) -> NfctlError:
    """Look for a program as execvp(3) does, and become it; return why that cannot be.

    (``os.execvpe`` passes over a script without a first line, which is for sh to read.)
    """
    name = words[0]
    folders = settings.get("PATH", os.defpath).split(":") if "/" not in name else []
    paths = [f"{folder or '.'}/{name}" for folder in folders] or [name]
    refusals: list[NfctlError] = []
    for path in paths if name else []:
        try:
            try:
                os.execve(path, words, settings)  # noqa: S606 - that is what it is for
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                os.execve("/bin/sh", ["sh", path, *words[1:]], settings)  # noqa: S606
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR}:
                reason = os.strerror(error.errno or 0)
                refusals.append(NotExecutable(f"{name}: {reason}"))
            elif os.access(path, os.X_OK):
                refusals.append(NotFound(f"{name}: the program that is to interpret it is missing"))
    return refusals[0] if refusals else NotFound(f"{name}: no such program")


def _enter(lab: Standing, host: Host) -> None:
    try:
        host.enter()
    except FileNotFoundError:
        msg = f"{host.name} of the lab {lab.name} is gone"
        raise BadInput(msg, hint=f"nfctl lab down {lab.name} removes what is left") from None
    except PermissionError as error:
        raise NotPermitted(f"cannot enter {host.name}: {error.strerror}") from None


def _file_of(text: str) -> str:
    """Return the name under which a program started by exec can read a text."""
    descriptor = os.memfd_create("nfctl-prompt", 0)  # without MFD_CLOEXEC: it is to be inherited
    name = f"/proc/self/fd/{descriptor}"
    os.write(descriptor, f"{text}exec {descriptor}<&-\n".encode())
    return name
