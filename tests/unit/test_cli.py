from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import nfctl
from nfctl import cli
from nfctl.cli.answer import run
from nfctl.control import save
from nfctl.control.transaction import Transaction
from nfctl.kernel.blob import Blob

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL = list(cli._COMMANDS)
MODULE = [sys.executable, "-m", "nfctl"]
RULES = "*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command under a group with the words that lead to it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = dict(commands(get_command(cli.application(ALL))))
every_command = pytest.mark.parametrize("path", EVERY, ids=" ".join)


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test in this process reach the tables of the machine it runs on."""

    def reached(*_args: object, **_options: object) -> None:
        pytest.fail("this would have reached the kernel")

    monkeypatch.setattr(Transaction, "__enter__", reached)
    monkeypatch.setattr(Blob, "__init__", reached)
    monkeypatch.setattr(save, "active_tables", reached)


def call(*words: str) -> int:
    """Run a command line in this process and return its exit code."""

    def action() -> int:
        done = CliRunner().invoke(cli.application(ALL), list(words), prog_name="nfctl")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        sys.stdout.write(done.output)
        return done.exit_code

    return run(action)


def start(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MODULE, *words], capture_output=True, text=True, timeout=60, check=False, **options
    )


# --- what everybody may do ---------------------------------------------------------------------


def test_the_version() -> None:
    """Both nfctl --version and python -m nfctl --version print the package's own version."""
    done = start("--version")
    assert (done.returncode, done.stdout) == (0, f"nfctl {nfctl.__version__}\n")
    (script,) = entry_points(group="console_scripts", name="nfctl")
    assert script.load() is cli.main
    assert start("-V").stdout == done.stdout


def test_every_command_is_known() -> None:
    """The commands that the issue names are all there."""
    verbs = {
        "rule": "list add insert replace delete check",
        "chain": "list create delete rename flush zero policy",
    }
    wanted = {f"{group} {verb}" for group, line in verbs.items() for verb in line.split()}
    wanted |= {"save", "restore", "map", "doctor", "demo"}
    assert wanted <= set(map(" ".join, EVERY))


@every_command
def test_help_has_an_example(path: tuple[str, ...]) -> None:
    """--help of every command ends well and shows a line one could type, of that command."""
    done = CliRunner().invoke(cli.application(ALL), [*path, "--help"], prog_name="nfctl")
    assert done.exit_code == 0
    assert f"Usage: nfctl {' '.join(path)}" in done.output
    assert "Example:" in done.output
    assert f"nfctl {' '.join(path)}" in done.output.partition("Example:")[2]


@every_command
def test_the_example_is_good_usage(path: tuple[str, ...]) -> None:
    """What the help shows as an example is taken by the command's own options and arguments."""
    text = EVERY[path].help.partition("Example:")[2].replace("[/bold]", " ")
    words = shlex.split(text)
    words = words[words.index("nfctl") :]
    ends = [i for i, word in enumerate(words) if word in {"&&", ">", "|"}] + [len(words)]
    words = words[1 : ends[0]]
    assert tuple(words[: len(path)]) == path
    EVERY[path].make_context("nfctl", words[len(path) :])


@every_command
def test_an_unknown_option_is_bad_usage(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command answers an option it does not know with exit code 2 and the option's name."""
    code = call(*path, "--no-such-option")
    said = capsys.readouterr()
    assert code == 2
    assert "--no-such-option" in said.out + said.err
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "Usage"),
        ("bogus", "bogus"),
        ("rule", "Usage"),
        ("rule bogus", "bogus"),
        ("rule add", "CHAIN"),
        ("rule list -4 -6", "exclude each other"),
        ("rule replace INPUT", "NUMBER"),
        ("rule add -4 -6 INPUT -j ACCEPT", "exclude each other"),
        ("rule add -w x INPUT -j ACCEPT", "x"),
        ("rule add -w -1 INPUT -j ACCEPT", "-1"),
        ("rule add --no-such -t nat INPUT -j ACCEPT", "--no-such"),
        ("rule add -x INPUT -j ACCEPT", "-x"),
        ("rule insert INPUT 0 -j ACCEPT", "Invalid rule number"),
        ("rule insert INPUT x -j ACCEPT", "Invalid rule number"),
        ("rule delete INPUT 08", "Invalid rule number"),
        ("rule replace INPUT -j ACCEPT", "Invalid rule number"),
        ("rule insert INPUT ٣ -j ACCEPT", "Invalid rule number"),
        ("rule list -t", "-t"),
        ("rule list INPUT OUTPUT", "OUTPUT"),
        ("rule list --netns no-such-namespace-here", "no-such-namespace-here"),
        ("chain zero INPUT x", "x"),
        ("chain zero INPUT 0", "0"),
        ("chain policy INPUT", "DROP"),
        ("chain rename WEB", "NEW"),
        ("save INPUT", "INPUT"),
        ("restore a b", "b"),
        ("restore /no/such/file", "/no/such/file: No such file or directory"),
        ("restore /", "/: Is a directory"),
        ("restore --test -t bogus /dev/null", "no table"),
    ],
)
def test_bad_usage(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is exit code 2 and says what is wrong, without a traceback."""
    code = call(*words.split())
    out, err = capsys.readouterr()
    assert code == 2
    assert said in " ".join((out + err).split())
    assert "Traceback" not in out + err


def test_a_number_of_five_thousand_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """Python refuses to read such numbers; nfctl still says what is wrong."""
    for words in (["rule", "delete", "INPUT"], ["rule", "insert", "INPUT"]):
        code = call(*words, "1" * 5000)
        assert code == 2
        assert "Invalid rule number" in capsys.readouterr().err


def test_help_is_quick() -> None:
    """Showing a command's help imports no C binding, no scapy, nothing of the kernel's."""
    code = (
        "import sys; sys.argv = ['nfctl', 'rule', '--help']; import nfctl.cli as c, os; "
        "os._exit = lambda n: None; c.main(); print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.splitlines()[-1]
    assert "'nfctl.cli.rule'" in loaded
    for name in ("scapy", "iptc", "netfilterqueue", "pyroute2", "nfctl.kernel.libraries"):
        assert f"'{name}" not in loaded


def test_the_quick_help_is_the_whole_one() -> None:
    """Help that is made without the commands' options is what typer says with them."""
    quick, whole = (
        subprocess.run([*MODULE, *words], capture_output=True, text=True, check=True, timeout=60)
        for words in (["--help"], ["--help", "--help"])
    )
    assert quick.stdout == whole.stdout


@pytest.mark.parametrize("words", ["--help", "rule list --help", "--version", "policy schema"])
def test_a_reader_that_has_gone(words: str) -> None:
    """Output that nobody reads any more ends the program quietly, as SIGPIPE would: 128 + 13."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*MODULE, *words.split()],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


# --- what only root may do ---------------------------------------------------------------------


@functools.cache
def dropping() -> list[str]:
    """Return what to put before a command so that it runs without privileges."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv (util-linux), to drop privileges")
    drop = [setpriv, "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    nobody = [*drop, "--reuid=65534", "--regid=65534", "--clear-groups"]
    # nobody may not be able to read this Python; root without capabilities always is
    able = (
        subprocess.run([*nobody, *MODULE, "-V"], capture_output=True, check=False).returncode == 0
    )
    return nobody if able else drop


def unprivileged(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run nfctl without CAP_NET_ADMIN, and as nobody where that can be."""
    return subprocess.run(
        [*dropping(), *MODULE, *words],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(nfctl.__file__).parents[1])},
    )


@pytest.mark.parametrize(
    "words",
    [
        "rule list",
        "rule list -6 -t nat -S",
        "chain list --json",
        "save",
        "save -6 -t filter",
        "rule check INPUT -j ACCEPT",
        "rule add INPUT -j ACCEPT",
        "rule delete INPUT 1",
        "chain create WEB",
        "chain policy INPUT DROP",
        "restore",
        "restore --test",
    ],
)
def test_without_privileges(words: str) -> None:
    """Reading and writing without CAP_NET_ADMIN end with exit code 3 and what to do."""
    done = unprivileged(*words.split(), text=RULES)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("nfctl: error: ")
    assert "run as root" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_said_before_missing_privileges() -> None:
    """A file that is wrong is wrong for everybody, and its place is named."""
    done = unprivileged("restore", text="*filter\n-X INPUT WEB\nCOMMIT\n")
    assert done.returncode == 2
    assert done.stderr.startswith("nfctl: error: <stdin>:2:10: ")
    assert "  -X INPUT WEB\n           ^\n" in done.stderr
