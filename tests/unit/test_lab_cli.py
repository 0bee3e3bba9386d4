from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nfctl import cli
from nfctl.cli import complete, lab_find, lab_inside, lab_standing, quick
from nfctl.cli.answer import run
from nfctl.errors import AnswerNo, BadInput, Locked, NotPermitted
from nfctl.lab import standing, syscalls
from nfctl.lab.host import Host
from nfctl.lab.standing import Standing, State
from nfctl.lab.topology import HostPlan, InterfacePlan, ServicesPlan, Topology
from tests.unit.test_cli import start, unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROUTER = Topology(
    "router",
    {
        "client": HostPlan(
            "client", (InterfacePlan("eth0", "wan", ("192.0.2.10/24", "2001:db8:1::10/64")),)
        ),
        "router": HostPlan(
            "router",
            (
                InterfacePlan("wan0", "wan", ("192.0.2.1/24",)),
                InterfacePlan("lan0", "lan", ("10.77.0.1/24",)),
            ),
            forward=True,
        ),
        "server": HostPlan(
            "server",
            (InterfacePlan("eth0", "lan", ("10.77.0.10/24",)),),
            services=ServicesPlan(tcp=(7, 22), udp=(53,)),
        ),
    },
    {},
    "a client, a router and a server",
)


def made(
    name: str = "router", state: State = State.UP, topology: Topology = ROUTER, since: float = 1e9
) -> Standing:
    hosts = {host: Host(host, f"nfctl-{name}-{host}", Path("/nowhere")) for host in topology.hosts}
    return Standing(name, state, topology, hosts, since)


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch) -> list[Standing]:
    """Give a list of labs that then stand, to a caller who may see them."""
    up: list[Standing] = []

    def find(name: str = "") -> Standing:
        for lab in up:
            if lab.name == (name or lab.name):
                return lab
        raise AnswerNo(f'no lab is called "{name}"')

    def down(name: str) -> None:
        up.remove(find(name))

    def make(topology: Topology, name: str = "", *, services: bool = True) -> Standing:
        assert services in {True, False}
        up.append(made(name or topology.name, topology=topology))
        return up[-1]

    monkeypatch.setattr(syscalls, "has_capabilities", lambda *_: True)
    monkeypatch.setattr(standing, "labs", lambda: list(up))
    for function in (find, down):
        monkeypatch.setattr(standing, function.__name__, function)
    monkeypatch.setattr(standing, "up", make)
    monkeypatch.setattr(Topology, "load", lambda _word: ROUTER)
    return up


def invoke(words: Sequence[str]) -> int:
    """Run a line through typer; return the exit code, or raise what it raised."""
    done = CliRunner().invoke(cli.application(["lab"]), ["lab", *words], prog_name="nfctl")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    sys.stdout.write(done.output)
    return done.exit_code


def call(function: Callable[..., None], **options: object) -> int:
    """Call a function of the command line as an action."""
    function(**options)
    return 0


# --- with and without typer ----------------------------------------------------------------------

WORDS = st.sampled_from(
    "router client x - -- -n -ntest --name --name=test --name= -q --quiet --quiet=1 -qn --json -l "
    "--lab --lab=b -a --all --no-services -h --help --bogus -x ip -4 ls a=b".split()
)  # fmt: skip
VERBS = st.sampled_from("up down list exec shell graph bogus".split())
FUNCTIONS: dict[str, tuple[Any, str]] = {
    "up": (lab_standing, "up"),
    "down": (lab_standing, "down"),
    "list": (lab_standing, "list_labs"),
    "exec": (lab_inside, "execute"),
    "shell": (lab_inside, "shell"),
    "graph": (lab_standing, "graph"),
}
DEFAULTS: dict[str, dict[str, object]] = {
    "up": {"topology": "", "name": "", "services": True, "json": False, "quiet": False},
    "down": {"name": "", "every": False, "quiet": False},
    "list": {"json": False},
    "exec": {"lab": "", "command": []},
    "shell": {"lab": ""},
}
FIRST = {"up": "topology", "down": "name", "exec": "host", "shell": "host"}


@contextlib.contextmanager
def recorded() -> Iterator[list[dict[str, object]]]:
    """Record what the commands are called with, instead of doing it."""
    calls: list[dict[str, object]] = []

    def recorder(verb: str) -> Callable[..., None]:
        def record(*args: object, **options: object) -> None:
            names = [FIRST.get(verb, ""), "command"]
            calls.append({"verb": verb, **DEFAULTS.get(verb, {}), **options,
                          **dict(zip(names, args, strict=False))})  # fmt: skip

        return record

    with pytest.MonkeyPatch.context() as patch:
        for verb, (module, function) in FUNCTIONS.items():
            patch.setattr(module, function, recorder(verb))
        yield calls


@settings(max_examples=400, deadline=None)
@given(verb=VERBS, words=st.lists(WORDS, max_size=5))
def test_what_is_read_without_typer_is_what_typer_reads(verb: str, words: list[str]) -> None:
    """A line that is taken apart without typer comes to the same call as with it."""
    action = quick.plain(["lab", verb, *words])
    if action is None:
        return
    with recorded() as calls:
        assert action() == 0
        assert invoke([verb, *words]) == 0
    without, with_typer = calls
    assert with_typer == without


@pytest.mark.parametrize(
    "line",
    [
        "lab up router",
        "lab up router --quiet --no-services",
        "lab up -n test ./a.yaml",
        "lab up --name=test -",
        "lab down",
        "lab down router --quiet",
        "lab down --all",
        "lab list --json",
        "lab exec client ip -6 route",
        "lab exec -l test client sh -c exit",
        "lab shell router",
    ],
)
def test_what_scripts_type_needs_no_typer(line: str) -> None:
    """The usual lines are understood without it."""
    assert quick.plain(line.split()) is not None


@pytest.mark.parametrize(
    "line",
    "lab|lab up -h|lab up --bogus x|lab up a b|lab exec|lab exec -x client ls|lab down -qa|"
    "lab list x|lab shell|lab shell -l|lab bogus|lab up --quiet=1 x|lab graph x|--help".split("|"),
)
def test_all_else_is_for_typer(line: str) -> None:
    """Help, errors and whatever is written in another way are left to it."""
    assert quick.plain(line.split()) is None


def test_a_lab_command_loads_little() -> None:
    """Nothing that is slow to import is loaded to look for labs."""
    code = (
        "import sys; sys.argv = ['nfctl', 'lab', 'list']; import nfctl.cli as c, os; "
        "os._exit = lambda n: None; c.main(); print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = done.stdout.splitlines()[-1]
    assert "'nfctl.cli.lab_standing'" in loaded
    for name in ("typer", "rich", "yaml", "scapy", "iptc", "pyroute2", "nfctl.kernel", "asyncio"):
        assert f"'{name}" not in loaded


# --- what is printed -----------------------------------------------------------------------------


def test_up_says_what_there_is_and_what_to_do(
    labs: list[Standing], capfd: pytest.CaptureFixture[str]
) -> None:
    """Hosts, interfaces, addresses and services stand in columns, and the next steps below."""
    lab_standing.up("router")
    out = capfd.readouterr().out
    assert out == (
        "lab router is up: a client, a router and a server\n"
        "\n"
        "  HOST    INTERFACE  ADDRESSES                         SERVICES\n"
        "  client  eth0       192.0.2.10/24  2001:db8:1::10/64\n"
        "  router  wan0       192.0.2.1/24\n"
        "          lan0       10.77.0.1/24\n"
        "  server  eth0       10.77.0.10/24                     tcp 7,22  udp 53\n"
        "\n"
        "  nfctl lab exec client ip route  run a command on a host\n"
        "  nfctl lab shell server          look around in one\n"
        "  nfctl lab down                  remove all of it\n"
    )
    assert len(labs) == 1


def test_the_next_steps_name_the_lab_where_there_are_two(
    labs: list[Standing], capfd: pytest.CaptureFixture[str]
) -> None:
    """What is proposed can be typed as it is: with -l where several labs are up."""
    labs.append(made("other"))
    lab_standing.up("router", name="test", services=False)
    out = capfd.readouterr().out
    assert "nfctl lab exec -l test client ip route " in out
    assert "nfctl lab down test " in out


def test_quiet_says_nothing(labs: list[Standing], capfd: pytest.CaptureFixture[str]) -> None:
    """--quiet prints nothing at all."""
    lab_standing.up("router", quiet=True)
    lab_standing.down("router", quiet=True)
    lab_standing.down(every=True, quiet=True)
    assert capfd.readouterr() == ("", "")
    assert not labs


def test_the_document(labs: list[Standing], capfd: pytest.CaptureFixture[str]) -> None:
    """The keys of --json are a contract: those of a lab, of its hosts and of their interfaces."""
    lab_standing.up("router", json=True)
    document = json.loads(capfd.readouterr().out)
    client, router, server = document.pop("hosts")
    assert document == {
        "name": "router",
        "state": "up",
        "topology": "router",
        "description": "a client, a router and a server",
        "since": 1e9,
    }
    assert client == {
        "name": "client",
        "namespace": "nfctl-router-client",
        "forward": False,
        "interfaces": [
            {"name": "eth0", "link": "wan", "addresses": ["192.0.2.10/24", "2001:db8:1::10/64"]}
        ],
        "services": {"tcp": [], "http": [], "udp": [], "dns": []},
    }
    assert router["forward"] is True
    assert [interface["name"] for interface in router["interfaces"]] == ["wan0", "lan0"]
    assert server["services"] == {"tcp": [7, 22], "http": [], "udp": [53], "dns": []}
    labs.append(made("wreck", State.BROKEN, Topology("", {}, {}), 0))
    lab_standing.list_labs(json=True)
    first, second = json.loads(capfd.readouterr().out)["labs"]
    assert first == {**document, "hosts": [client, router, server]}
    assert (second["state"], second["topology"], second["hosts"]) == ("broken", None, [])


def test_the_list() -> None:
    """A line a lab: state, topology, age and hosts, and dashes for what nobody knows."""
    wreck = Standing("wreck", State.BROKEN, Topology("", {}, {}), {}, 0)
    assert lab_standing.table([made(since=1000), wreck], 1130) == (
        "LAB     STATE   TOPOLOGY  AGE    HOSTS\n"
        "router  up      router    2 min  client, router, server\n"
        "wreck   broken  -         -      -\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.9, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 40, "40 d")],
)
def test_ages(seconds: float, text: str) -> None:
    """An age is given in its largest unit."""
    assert lab_standing.age(seconds) == text


def test_no_lab_leaves_standard_output_empty(
    labs: list[Standing], capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a lab the list is empty, which is said on standard error, and no error."""
    lab_standing.list_labs()
    lab_standing.down(every=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("no lab is up") == 2
    lab_standing.list_labs(json=True)
    assert json.loads(capfd.readouterr().out) == {"labs": labs}


# --- what is wrong -------------------------------------------------------------------------------


def test_up_without_a_topology_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists the topologies that come with nfctl."""
    assert run(lambda: invoke(["up"])) == 2
    said = capsys.readouterr().err
    assert "which topology?" in said
    assert "\n    router  " in said


def test_wrong_names_are_answered_with_the_right_ones(
    labs: list[Standing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown lab or host is named together with those there are, and the one meant."""
    with pytest.raises(AnswerNo) as none:
        lab_find.the_lab("x")
    assert none.value.hint == "nfctl lab up makes one"
    monkeypatch.setenv("NFCTL_LAB", "router")
    monkeypatch.setenv("NFCTL_HOST", "client")
    with pytest.raises(AnswerNo) as inside:
        lab_find.the_lab("")
    assert inside.value.hint == "this is client, a host of the lab router: leave it first"
    labs[:] = [made(), made("web")]
    with pytest.raises(AnswerNo) as lab:
        lab_find.the_lab("ruoter")
    assert lab.value.hint == 'did you mean "router"? labs: router, web'
    with pytest.raises(BadInput) as host:
        lab_find.the_host("web", "sever")
    assert host.value.message == 'the lab web has no host "sever"'
    assert host.value.hint == 'did you mean "server"? hosts: client, router, server'
    with pytest.raises(BadInput) as other:
        lab_find.the_host("web", "zzz")
    assert other.value.hint == "hosts: client, router, server"


def test_all_are_removed_but_one_that_cannot_be(
    labs: list[Standing], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Down --all goes on behind a lab that somebody is making, and says so in the end."""
    labs += [made("one"), made("two"), made("zoo")]

    def down(name: str) -> None:
        if name == "two":
            msg = "the lab two is being made"
            raise Locked(msg)
        labs[:] = [lab for lab in labs if lab.name != name]

    monkeypatch.setattr(standing, "down", down)
    assert run(lambda: call(lab_standing.down, every=True)) == 4
    out, err = capfd.readouterr()
    assert [lab.name for lab in labs] == ["two"]
    assert out.count("removed lab") == 2
    assert "two is being made" in err


@pytest.mark.parametrize(
    ("state", "said"), [(State.MAKING, "is being made"), (State.BROKEN, "is broken")]
)
def test_nothing_runs_in_a_lab_that_is_not_complete(
    labs: list[Standing], state: State, said: str
) -> None:
    """Hosts that may lack links and rules are not entered."""
    labs.append(made("half", state))
    with pytest.raises(BadInput, match=said):
        lab_find.the_host("half", "client")


def test_bad_usage(labs: list[Standing], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage that cannot be meant is exit code 2 and says what is wrong."""
    labs.append(made())
    for words, said in {
        "down --all router": "exclude each other",
        "exec client": "which command is client to run?",
        "exec client --": "which command is client to run?",
        "exec --bogus client ls": "--bogus",
        "exec": "HOST",
        "shell": "HOST",
        "shell --bogus": "--bogus",
        "list x": "x",
        "up a b": "b",
        "graph -f png router": "png",
        "bogus": "bogus",
    }.items():
        code = run(lambda words=words: invoke(words.split()))  # type: ignore[misc]
        out, err = capsys.readouterr()
        assert code == 2, words
        assert said in out + err, words


@pytest.mark.parametrize(
    "words",
    ["up router", "down", "down --all", "list", "list --json", "exec client ls", "shell client",
     "graph", "probe client server icmp"],
)  # fmt: skip
def test_without_privileges(words: str) -> None:
    """Without root the exit code is 3, and the hint shows how to do without being root."""
    done = unprivileged("lab", *words.split())
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("nfctl: error: ")
    assert "unshare -Urnm" in done.stderr
    assert "Traceback" not in done.stderr


def test_drawing_a_topology_needs_no_privileges(tmp_path: Path) -> None:
    """A shipped topology, a file and standard input are drawn for everybody, in each form."""
    text = "hosts: {alice: {interfaces: {eth0: {link: lan}}}, bob: {interfaces: {e1: lan}}}\n"
    file = tmp_path / "two.yaml"
    file.write_text(
        text.replace("{e1: lan}", "{e1: {link: lan}}").replace("hosts", "name: two\nhosts")
    )
    tmp_path.chmod(0o755)
    for form, sign in (("tree", "router"), ("dot", "graph"), ("mermaid", "flowchart")):
        done = unprivileged("lab", "graph", "router", "-f", form)
        assert (done.returncode, done.stderr) == (0, "")
        assert sign in done.stdout
    done = unprivileged("lab", "graph", "-", text=file.read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert "alice" in done.stdout
    assert start("lab", "graph", str(file)).stdout == done.stdout


def test_ascii_where_standard_output_is_no_utf8() -> None:
    """An output that is not UTF-8 gets plain characters."""
    done = start("lab", "graph", "router", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "+- eth0" in done.stdout


def test_a_word_without_a_dot_that_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A topology that does not exist is bad input, and those that do are named."""
    for words in (["graph", "ruoter"], ["up", "ruoter"]):
        assert run(lambda words=words: invoke(words)) == 2  # type: ignore[misc]
        assert "router" in capsys.readouterr().err


# --- becoming another program --------------------------------------------------------------------


def become(*words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program as ``nfctl lab exec`` does, without a lab."""
    code = (
        "import os, sys; from nfctl.cli.answer import run; from nfctl.cli.lab_inside import become;"
        "settings = {**os.environ, 'NFCTL_LAB': 'test'};"
        f"settings['PATH'] = {path!r} or settings['PATH'];"
        "print('before', end=' '); leaked = open('/dev/null');"
        "os._exit(run(lambda: become(sys.argv[1:], settings)))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        input="typed",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def test_a_program_takes_the_process_over() -> None:
    """What was printed comes first; streams, exit code and environment are the program's."""
    done = become("sh", "-c", 'cat; echo " $NFCTL_LAB"; exit 7')
    assert (done.returncode, done.stdout, done.stderr) == (7, "before typed test\n", "")


def test_a_program_inherits_no_descriptor_and_no_ignored_signal() -> None:
    """Only the standard streams stay open, and a pipe that is closed kills as it should."""
    done = become("sh", "-c", "ls /proc/self/fd; grep SigIgn /proc/$$/status")
    *descriptors, _, ignored = done.stdout.removeprefix("before ").split()
    assert descriptors[:3] == ["0", "1", "2"]
    assert len(descriptors) == 4  # the directory that ls reads
    assert int(ignored, 16) & (1 << 12) == 0  # SIGPIPE is 13


def test_programs_that_do_not_start(tmp_path: Path) -> None:
    """127: there is none; 126: it cannot be run; a script without a first line is the shell's."""
    plain, script, lost = tmp_path / "plain", tmp_path / "script", tmp_path / "lost"
    plain.write_text("x")
    script.write_text("echo $1; exit 5")
    lost.write_text("#!/no/such/interpreter\n")
    for file in (script, lost):
        file.chmod(0o755)
    for words, code, said in (
        ([str(tmp_path / "none")], 127, "no such program"),
        (["no-such-program-here"], 127, "no-such-program-here: no such program"),
        ([""], 127, "no such program"),
        ([str(lost)], 127, "interpret"),
        ([str(plain)], 126, "Permission denied"),
        ([str(tmp_path)], 126, "Permission denied"),
    ):
        done = become(*words)
        assert (done.returncode, done.stdout) == (code, "before "), words
        assert done.stderr.startswith("nfctl: error: ")
        assert said in done.stderr
    for word in (str(script), "script"):
        done = become(word, "said", path=f"{tmp_path}:{os.environ['PATH']}")
        assert (done.returncode, done.stdout, done.stderr) == (5, "before said\n", "")


# --- completion ----------------------------------------------------------------------------------


def test_topologies_and_files_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipped topologies and YAML files here are offered; a path is the shell's own matter."""
    for name in ("rack.yaml", "b.yml", "readme.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert {"router", "rack.yaml", "b.yml"} <= set(complete.topologies(""))
    assert "readme.txt" not in complete.topologies("r")
    assert complete.topologies("./r") == []


def test_labs_and_hosts_are_completed(labs: list[Standing]) -> None:
    """Labs by name; the hosts of the lab that -l names, or of all."""
    labs += [made("one"), made("two", topology=Topology("x", {"web": HostPlan("web")}, {}))]

    class Context:
        params: dict[str, str] = {}  # noqa: RUF012

    assert complete.labs("t") == ["two"]
    assert complete.lab_hosts(Context, [], "") == ["client", "router", "server", "web"]
    assert complete.lab_hosts(Context, ["-l", "two"], "") == ["web"]
    Context.params["lab"] = "one"
    assert complete.lab_hosts(Context, [], "r") == ["router"]


def test_completion_without_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not see labs is offered none, without an error."""

    def refuse() -> list[Standing]:
        msg = "no"
        raise NotPermitted(msg)

    monkeypatch.setattr(standing, "labs", refuse)
    assert complete.labs("") == []


def test_programs_are_completed() -> None:
    """The first word behind a host is a program's name; the others are its own affair."""

    class Context:
        params: dict[str, list[str]] = {"command": []}  # noqa: RUF012

    assert "ls" in complete.programs(Context, "l")
    assert complete.programs(Context, "") == complete.programs(Context, "/bin/l") == []
    Context.params["command"] = ["ls"]
    assert complete.programs(Context, "l") == []
