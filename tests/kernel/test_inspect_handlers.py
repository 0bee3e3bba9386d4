"""Whose handlers root runs: files of root and others, in a directory that root alone may write."""

from __future__ import annotations

import importlib
import itertools
import json
import marshal
import os
import shutil
import sys
import tempfile
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nfctl.errors import BadInput
from nfctl.inspect.handlers import Handlers, load
from nfctl.inspect.packet import Packet
from nfctl.inspect.trust import Guard, fault
from nfctl.inspect.verdict import Action

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kernel

USER = 1000
OTHER = 65533
DROP = "def f(packet): packet.drop()\n"
_NUMBER = itertools.count()


@pytest.fixture
def rooted() -> Iterator[Path]:
    """Make a directory that only root may write, from / on; pytest's own is below /tmp."""
    where = Path(tempfile.mkdtemp(prefix="nfctl-trust-", dir="/run"))
    where.chmod(0o755)
    assert fault(str(where)) is None, "the way to /run is writable here"
    yield where
    shutil.rmtree(where)


@pytest.fixture(autouse=True)
def as_before(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a module, a directory to search, or a guard behind."""
    monkeypatch.chdir(rooted)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("hand_", "nfctl_handler_")):
            del sys.modules[name]
    importlib.invalidate_caches()
    assert not any(isinstance(finder, Guard) for finder in sys.meta_path)


def fresh() -> str:
    """Return a module's name that no test has had."""
    return f"hand_{next(_NUMBER)}"


def write(path: Path, text: str = DROP, *, user: int = 0, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    os.chown(path, user, user)
    path.chmod(mode)
    return path


def evidence(path: Path) -> str:
    """Return code that leaves a file when it is run."""
    return f"open({str(path)!r}, 'w').close()\n{DROP}"


def drops(handlers: Handlers) -> bool:
    try:
        verdict = handlers.decide(Packet(b""))
        return verdict is not None and verdict.action is Action.DROP and "handler" in verdict.by
    finally:
        handlers.stop()


def wrong(name: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load([name], trusted=True)
    return caught.value


# --- one file ----------------------------------------------------------------------------------


def test_what_only_root_may_write_is_run(rooted: Path) -> None:
    """A file of root in directories of root is a handler, also by a link beside it."""
    file = write(rooted / "h.py")
    assert drops(load([f"{file}:f"], trusted=True))
    (rooted / "link.py").symlink_to("h.py")
    assert drops(load(["./link.py:f"], trusted=True))


@pytest.mark.parametrize(
    ("user", "mode", "reason", "hint"),
    [
        (USER, 0o644, f"may be written by user {USER}", "chown root {}"),
        (USER, 0o444, f"may be written by user {USER}", "chown root {}"),
        (0, 0o664, "may be written by group 0", "chmod go-w {}"),
        (0, 0o646, "may be written by anyone", "chmod go-w {}"),
        (USER, 0o666, f"may be written by user {USER}", "chown root {0} && chmod go-w {0}"),
    ],
)
def test_a_file_of_others_is_not_run(
    rooted: Path, user: int, mode: int, reason: str, hint: str
) -> None:
    """A file that others may write, or whose owner may let himself, is refused and named."""
    proof = rooted / "proof"
    file = write(rooted / "h.py", evidence(proof), user=user, mode=mode)
    error = wrong(f"{file}:f")
    assert error.message == f"a handler's code is not trusted: {file} {reason}"
    assert error.hint == hint.format(file)
    assert not proof.exists()
    assert drops(load([f"{file}:f"], trusted=False))
    assert proof.exists()


@pytest.mark.parametrize(
    ("user", "mode", "reason"),
    [
        (USER, 0o755, f"may be written by user {USER}"),
        (0, 0o775, "may be written by group 0"),
        (0, 0o757, "may be written by anyone"),
        (0, 0o1777, "may be written by anyone"),
    ],
)
def test_a_directory_of_others_on_the_way(rooted: Path, user: int, mode: int, reason: str) -> None:
    """Any directory above the file that others may write is as bad; the sticky bit is no help."""
    file = write(rooted / "a" / "b" / "h.py")
    os.chown(rooted / "a", user, 0)
    (rooted / "a").chmod(mode)
    error = wrong(f"{file}:f")
    assert error.message == f"a handler's code is not trusted: {file}: {rooted}/a {reason}"
    assert "as in /etc/nfctl" in error.hint
    assert ("chmod" in error.hint) == (user == 0 and not mode & 0o1000)


def test_links_are_followed_as_the_kernel_does(rooted: Path) -> None:
    """Where a link stands, where it leads, and what "link/.." is: all have to be trusted."""
    (rooted / "bad").mkdir()
    good, bad = write(rooted / "good" / "h.py"), write(rooted / "bad" / "h.py", user=USER)
    os.chown(rooted / "bad", USER, USER)
    (rooted / "bad" / "to_good.py").symlink_to(good)
    (rooted / "good" / "to_bad.py").symlink_to("../bad/h.py")
    (rooted / "good" / "around.py").symlink_to("../bad/../good/h.py")
    (rooted / "dir").symlink_to("bad")
    (rooted / "good" / "loop.py").symlink_to("loop.py")
    assert bad.exists()
    for name in ("bad/to_good.py", "good/to_bad.py", "good/around.py", "dir/../good/h.py"):
        assert f"{rooted}/bad may be written by user {USER}" in str(fault(str(rooted / name)))
    assert fault("dir/../good/h.py") is not None
    assert "symbolic links" in str(fault(str(rooted / "good" / "loop.py")))
    assert fault(str(good)) is None


def test_magic_links_are_not_believed(rooted: Path) -> None:
    """What /proc/self/fd leads to is not what its links say (proc_pid_fd(5))."""
    one, other = os.pipe()
    number = os.open(write(rooted / "h.py"), os.O_RDONLY)
    (rooted / "h.py").unlink()
    try:
        assert fault(f"/dev/fd/{one}") is not None
        assert fault(f"/proc/self/fd/{number}") is not None
        write(rooted / "h.py (deleted)")  # what that link says, and does not lead to
        assert fault(f"/proc/self/fd/{number}") is not None
    finally:
        for descriptor in (one, other, number):
            os.close(descriptor)


def test_the_user_who_runs_it_may_be_trusted(rooted: Path) -> None:
    """Without root, one's own files are as good as root's; nobody else's are."""
    file = write(rooted / "own" / "h.py", user=USER)
    os.chown(file.parent, USER, USER)
    assert drops(load([f"{file}:f"], trusted=True, owner_ok=USER))
    with pytest.raises(BadInput, match=f"may be written by user {USER}"):
        load([f"{file}:f"], trusted=True, owner_ok=OTHER)


def attempts(paths: list[Path], user: int) -> list[str]:
    """Return which of the paths a user can write, or make writable, as a process of his."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        found = []
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            for path in paths:
                try:
                    os.chmod(path, os.stat(path).st_mode)  # noqa: PTH101, PTH116
                    found.append(str(path))
                except OSError:
                    found += [str(path)] * os.access(path, os.W_OK)
            os.write(writer, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer: list[str] = json.load(stream)
    os.waitpid(child, 0)
    return answer


def test_what_is_trusted_no_user_can_change(rooted: Path) -> None:
    """The kernel agrees: a process of another user can change a file only if it is refused."""
    file = write(rooted / "a" / "h.py")
    paths = [rooted, rooted / "a", file]
    seen = {True: 0, False: 0}
    owners = [(0, 0), (0, USER), (USER, 0)]
    bits = (0o755, 0o775, 0o757, 0o1777, 0o555)
    for (user, group), place, mode in itertools.product(owners, (1, 2), bits):
        for path in paths[1:]:
            os.chown(path, 0, 0)
            path.chmod(0o755)
        os.chown(paths[place], user, group)
        paths[place].chmod(mode)
        can = [path for who in (USER, OTHER) for path in attempts(paths, who)]
        refused = fault(str(file)) is not None
        seen[refused] += 1
        if can:
            assert refused, (user, group, place, oct(mode), can)
        if refused and not can:
            assert mode & 0o020, "refused for a group without members alone"
    assert all(seen.values())


# --- modules -----------------------------------------------------------------------------------


def test_packages_are_checked_before_their_code_runs(
    rooted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that others may write is not run for the sake of a good module inside."""
    name, proof = fresh(), rooted / "proof"
    outer = write(rooted / name / "__init__.py", evidence(proof), mode=0o666)
    write(rooted / name / "inner.py")
    monkeypatch.syspath_prepend(rooted)
    error = wrong(f"{name}.inner:f")
    assert f"not trusted: {outer} may be written by anyone" in error.message
    assert not proof.exists()
    outer.chmod(0o644)
    assert drops(load([f"{name}.inner:f"], trusted=True))
    assert proof.exists()


def test_a_directory_inside_a_package(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subpackage's own directory counts, in a namespace package too."""
    name = fresh()
    write(rooted / name / "sub" / "h.py")
    (rooted / name / "sub").chmod(0o777)
    monkeypatch.syspath_prepend(rooted)
    assert f"{rooted / name / 'sub'} may be written by anyone" in wrong(f"{name}.sub.h:f").message
    (rooted / name / "sub").chmod(0o755)
    assert drops(load([f"{name}.sub.h:f"], trusted=True))


def test_what_a_handler_imports_is_checked_too(
    rooted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of others that a handler imports is not run; an optional one is as if missing."""
    name, proof = fresh(), rooted / "proof"
    library = write(rooted / "lib" / f"{name}.py", evidence(proof), user=USER)
    monkeypatch.syspath_prepend(rooted / "lib")
    file = write(rooted / "h.py", f"import json\nimport {name}\n{DROP}")
    error = wrong(f"{file}:f")
    assert (error.where.source, error.where.line) == (str(file), 2) if error.where else False
    assert "ModuleNotFoundError" in error.message
    assert f"{library} may be written by user {USER}" in error.hint
    optional = f"try:\n    import {name}\nexcept ImportError:\n    pass\n{DROP}"
    spec = f"import importlib.util as u\nassert u.find_spec({name!r}) is None\n{DROP}"
    for text in (optional, spec):
        assert drops(load([f"{write(file, text)}:f"], trusted=True))
    assert not proof.exists()
    os.chown(library, 0, 0)
    assert drops(load([f"{write(file, optional)}:f"], trusted=True))
    assert proof.exists()


def test_what_a_handler_imports_later_is_checked_too(
    rooted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import inside a handler's function is no way around; it ends with the handlers."""
    name, proof = fresh(), rooted / "proof"
    write(rooted / "lib" / f"{name}.py", evidence(proof), user=USER)
    monkeypatch.syspath_prepend(rooted / "lib")
    file = write(rooted / "h.py", f"def f(packet):\n    import {name}\n")
    told: list[str] = []
    handlers = load([f"{file}:f"], trusted=True, report=told.append)
    handlers.decide(Packet(b""))
    assert "ModuleNotFoundError" in told[0]
    assert not proof.exists()
    handlers.stop()
    importlib.import_module(name)
    assert proof.exists()


def test_a_module_that_is_there_already(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was imported before, from where others may write, is no handler."""
    name = fresh()
    file = write(rooted / "lib" / f"{name}.py", user=USER)
    monkeypatch.syspath_prepend(rooted / "lib")
    importlib.import_module(name)
    assert f"{file} may be written by user {USER}" in wrong(f"{name}:f").message


def test_byte_code_of_others_is_not_read(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``__pycache__`` with other code than the source's is ignored, and none is written."""
    name, proof = fresh(), rooted / "proof"
    source = write(rooted / f"{name}.py")
    cache = Path(importlib.util.cache_from_source(str(source)))
    code = compile(evidence(proof), str(source), "exec")
    # "unchecked": Python believes it without a look at the source (PEP 552)
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    cache.parent.mkdir()
    cache.write_bytes(head + marshal.dumps(code))
    os.chown(cache.parent, USER, USER)
    before = cache.read_bytes()
    monkeypatch.syspath_prepend(rooted)
    assert drops(load([f"{name}:f", f"{source}:f"], trusted=True))
    assert not proof.exists()
    assert cache.read_bytes() == before
    del sys.modules[name]
    importlib.import_module(name)
    assert proof.exists()


def test_a_zip_file_is_a_file(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module inside of a zip file is as good as the zip file."""
    name = fresh()
    archive = rooted / "lib.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{name}.py", DROP)
    monkeypatch.syspath_prepend(archive)
    archive.chmod(0o666)
    assert f"{archive} may be written by anyone" in wrong(f"{name}:f").message
    archive.chmod(0o644)
    assert drops(load([f"{name}:f"], trusted=True))


def test_the_library_is_trusted_as_nfctl_is() -> None:
    """The interpreter's own modules, and what is installed beside nfctl, need no other check."""
    for name in ("json:dumps", "scapy.utils:hexdump", "yaml:safe_load"):
        load([name], trusted=True).stop()


# --- where modules are searched ----------------------------------------------------------------


@pytest.mark.parametrize("entry", ["", ".", "HERE"])
def test_the_current_directory_must_be_trusted(rooted: Path, entry: str) -> None:
    """A module in a current directory of others is not found, however that came to be searched."""
    name, proof = fresh(), rooted / "proof"
    write(rooted / "cwd" / f"{name}.py", evidence(proof))
    os.chdir(rooted / "cwd")
    sys.path.insert(0, entry.replace("HERE", str(rooted / "cwd")))
    os.chown(rooted / "cwd", USER, USER)
    error = wrong(f"{name}:f")
    assert f"{rooted}/cwd may be written by user {USER}" in error.message
    assert not proof.exists()
    os.chown(rooted / "cwd", 0, 0)
    assert drops(load([f"{name}:f"], trusted=True))


def test_the_current_directory_is_searched_last(rooted: Path) -> None:
    """Without an entry of its own it is searched if it is trusted; else the hint says why not."""
    name = fresh()
    write(rooted / "cwd" / f"{name}.py")
    write(rooted / "cwd" / "textwrap.py", "1 / 0")
    os.chdir(rooted / "cwd")
    (rooted / "cwd").chmod(0o777)
    hint = f"the current directory is not searched: {rooted}/cwd may be written by anyone"
    assert wrong(f"{name}:f").hint == hint
    assert str(rooted / "cwd") not in sys.path
    (rooted / "cwd").chmod(0o755)
    assert drops(load([f"{name}:f"], trusted=True))
    assert sys.path[-1] == str(rooted / "cwd")


def test_a_directory_of_others_does_not_shadow(
    rooted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH with a directory of others first: what root has further behind is found."""
    name, proof = fresh(), rooted / "proof"
    write(rooted / "bad" / f"{name}.py", evidence(proof))
    write(rooted / "bad" / "statistics.py", evidence(proof))
    write(rooted / "good" / f"{name}.py")
    (rooted / "bad").chmod(0o777)
    monkeypatch.syspath_prepend(rooted / "good")
    monkeypatch.syspath_prepend(rooted / "bad")
    monkeypatch.delitem(sys.modules, "statistics", raising=False)
    file = write(rooted / "h.py", f"import statistics\n{DROP}")
    assert drops(load([f"{name}:f", f"{file}:f"], trusted=True))
    assert not proof.exists()


def test_entry_points_of_others_are_not_read(rooted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that others may write names no handlers."""
    name = fresh()
    info = rooted / "lib" / f"{name}-1.dist-info"
    write(rooted / "lib" / f"{name}.py")
    write(info / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    points = write(info / "entry_points.txt", f"[nfctl.handlers]\n{name}_ep = {name}:f\n")
    monkeypatch.syspath_prepend(rooted / "lib")
    for path in (rooted / "lib", info, points):
        mode = path.stat().st_mode & 0o777
        path.chmod(0o777)
        assert wrong(f"{name}_ep").message == f'there is no handler "{name}_ep"'
        path.chmod(mode)
    assert drops(load([f"{name}_ep"], trusted=True))


def test_a_current_directory_that_is_gone(rooted: Path) -> None:
    """Where the current directory was removed, absolute names still work."""
    file = write(rooted / "h.py")
    (rooted / "gone").mkdir()
    os.chdir(rooted / "gone")
    (rooted / "gone").rmdir()
    assert drops(load([f"{file}:f"], trusted=True))
    assert "cannot be checked" in wrong("h.py:f").message
    assert "there is no module" in wrong(f"{fresh()}:f").message
