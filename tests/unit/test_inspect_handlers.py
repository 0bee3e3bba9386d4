from __future__ import annotations

import gc
import signal
import sys
import textwrap
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from nfctl.errors import BadInput
from nfctl.inspect import handlers as module
from nfctl.inspect.deadline import Deadline
from nfctl.inspect.flows import Flows
from nfctl.inspect.handlers import FAILED, Handler, Handlers, load
from nfctl.inspect.packet import Packet
from nfctl.inspect.trust import Guard
from nfctl.inspect.verdict import Action, Verdict
from tests.unit.hello import client_hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONG = 60.0  # seconds that nothing here takes


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No test leaves modules, ways to find them, or a signal handler behind."""
    modules, path = set(sys.modules), list(sys.path)
    alarm = signal.getsignal(signal.SIGALRM)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith(("nfctl_handler_", "hand_")):
            del sys.modules[name]
    sys.path[:] = path
    assert not any(isinstance(finder, Guard) for finder in sys.meta_path)
    assert signal.getsignal(signal.SIGALRM) == alarm


def segment(payload: bytes = b"", *, flags: str = "PA", seq: int = 1, sport: int = 40000) -> bytes:
    """Return a TCP segment to port 443, as scapy builds it."""
    from scapy.layers.inet import IP, TCP

    tcp = TCP(sport=sport, dport=443, flags=flags, seq=seq)
    built: bytes = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / tcp / payload)
    return built


@pytest.fixture(scope="module")
def data() -> bytes:
    return segment(b"data")


def of(
    *functions: Callable[[Packet], Any],
    seconds: float | None = None,
    report: Callable[[str], None] | None = None,
) -> Handlers:
    named = [Handler(f"h{number}", function) for number, function in enumerate(functions)]
    return Handlers(named, Deadline(seconds), report or (lambda _text: None))


def answering(answer: object) -> Callable[[Packet], object]:
    return lambda _packet: answer


def write(path: Path, text: str) -> str:
    path.write_text(textwrap.dedent(text))
    return str(path)


def wrong(name: str, **options: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load([name], trusted=False, **options)
    return caught.value


# --- the example of the documentation ----------------------------------------------------------


def test_the_example_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The handler in the module's own docstring counts bytes by server and drops one."""
    assert module.__doc__ is not None
    _, _, rest = module.__doc__.partition("/etc/nfctl/sites.py that counts")
    lines = rest[rest.index('    """') :].split("\n")
    end = next(i for i, line in enumerate(lines) if line and not line.startswith("    "))
    file = write(tmp_path / "sites.py", "\n".join(lines[:end]))
    handlers = load([f"{file}:Sites"], trusted=False, deadline=Deadline(LONG))
    flows = Flows()
    verdicts = []
    handlers.start()
    octets = {}
    for port, name in ((40001, "www.example.net"), (40002, "ads.example.net")):
        hello = client_hello(name)
        for bytes_ in (segment(flags="S", seq=9, sport=port), segment(hello, seq=10, sport=port)):
            packet = Packet(bytes_)
            packet.flow = flows.see(packet)
            verdicts.append(handlers.decide(packet))
        octets[name] = packet.length
    handlers.stop()
    by = f"handler {file}:Sites"
    assert verdicts == [None, None, None, Verdict(Action.REJECT, by)]
    printed = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert printed == {(str(count), name) for name, count in octets.items()}
    assert handlers.errors == {f"{file}:Sites": {}}


# --- what they decide --------------------------------------------------------------------------


def test_the_first_that_decides_is_the_last_that_is_asked(data: bytes) -> None:
    """Handlers run in their order until one decides, which the verdict names."""
    asked = []
    handlers = of(
        lambda _packet: asked.append(1),
        lambda packet: packet.drop(),
        lambda _packet: asked.append(3),
    )
    assert handlers.decide(Packet(data)) == Verdict(Action.DROP, "handler h1")
    assert asked == [1]
    assert of(lambda _packet: None).decide(Packet(data)) is None


def test_marks_and_offloading_are_in_the_verdict(data: bytes) -> None:
    """What a packet's own methods ask for comes out as one verdict."""

    def marking(packet: Packet) -> None:
        packet.mark(0xFF, 0x0F)
        packet.offload()

    verdict = of(marking).decide(Packet(data))
    assert verdict == Verdict(Action.ACCEPT, "handler h0", (0x0F, 0x0F), None, True)


@pytest.mark.parametrize("action", list(Action))
def test_an_action_may_be_returned(action: Action, data: bytes) -> None:
    """An Action, its name and a Verdict decide as the packet's methods do."""
    wanted = Verdict(action, "handler h0")
    for answer in (action, str(action), Verdict(action, "someone")):
        assert of(answering(answer)).decide(Packet(data)) == wanted


@pytest.mark.parametrize("answer", [True, False, 0, 1, "DROP", "", b"drop", (), object()])
def test_anything_else_that_is_returned_is_an_error(answer: object, data: bytes) -> None:
    """A value that is no decision costs the packet the default verdict."""
    told: list[str] = []
    handlers = of(answering(answer), lambda packet: packet.accept(), report=told.append)
    assert handlers.decide(Packet(data)) is FAILED
    assert handlers.errors["h0"] == {"returned": 1}
    assert len(told) == 1
    assert told[0].startswith("handler h0: returned ")


# --- what goes wrong ---------------------------------------------------------------------------


def exits(_packet: Packet) -> None:
    sys.exit(3)


def interrupts(_packet: Packet) -> None:
    raise KeyboardInterrupt


def recurses(packet: Packet) -> None:
    recurses(packet)


def divides(_packet: Packet) -> None:
    1 / 0  # noqa: B018


def closes(_packet: Packet) -> None:
    raise GeneratorExit


@pytest.mark.parametrize("function", [exits, interrupts, recurses, divides, closes])
def test_whatever_a_handler_raises_ends_nothing(
    function: Callable[[Packet], None], data: bytes
) -> None:
    """An exception costs that packet its decisions, and no other handler sees it."""
    told: list[str] = []
    asked: list[Packet] = []

    def failing(packet: Packet) -> None:
        packet.mark(7)
        packet.replace(packet.data)
        packet.drop()
        function(packet)

    handlers = of(failing, asked.append, report=told.append)
    packet = Packet(data)
    assert handlers.decide(packet) is FAILED
    assert packet.decision("x") is None
    assert packet.replacement is None
    assert not asked
    assert handlers.errors == {"h0": {"raised": 1}, "h1": {}}
    assert len(told) == 1
    assert "\n" not in told[0]


def test_what_is_late_costs_the_default(data: bytes) -> None:
    """A handler that takes too long, and one that only C code ends, decide nothing."""
    told: list[str] = []

    def looping(packet: Packet) -> None:
        packet.accept()
        while True:
            pass

    def counting(packet: Packet) -> None:
        packet.accept()
        sum(range(1_000_000))

    for function in (looping, counting):
        handlers = of(function, seconds=0.002, report=told.append)
        handlers.start()
        packet = Packet(data)
        assert handlers.decide(packet) is FAILED
        assert packet.decision("x") is None
        handlers.stop()
        assert handlers.errors == {"h0": {"late": 1}}
    line = looping.__code__.co_firstlineno
    assert told[0].startswith(f"handler h0: took longer than 2 ms ({__file__}:")
    assert int(told[0].split(":")[2].split(")")[0]) in range(line + 2, line + 4)


def test_a_report_says_where_and_what(tmp_path: Path, data: bytes) -> None:
    """The handler's own line is named, not the library's; hostile text cannot reach a terminal."""
    file = write(
        tmp_path / "evil.py",
        r"""
        import json

        class Worse(Exception):
            def __str__(self):
                raise RuntimeError

        class Endless(Exception):
            def __str__(self):
                while True:
                    pass

        def hostile(packet):
            raise ValueError("\x1b[2Jclear\nnfctl: all is well" + "x" * 5000)

        def library(packet):
            json.loads("{")

        def worse(packet):
            raise Worse

        def endless(packet):
            raise Endless

        def misused(packet):
            packet.mark(-1)
        """,
    )
    told: dict[str, str] = {}
    texts: list[str] = []
    for name in ("hostile", "library", "worse", "endless", "misused"):
        handlers = load(
            [f"{file}:{name}"],
            trusted=False,
            deadline=Deadline(0.05),
            report=texts.append,
        )
        handlers.start()
        assert handlers.decide(Packet(data)) is FAILED
        handlers.stop()
        (told[name],) = texts
        texts.clear()
    end = "; the packet gets the default verdict"
    start = f"handler {file}:"
    assert told["hostile"].startswith(f"{start}hostile: {file}:14: ValueError: \\x1b[2Jclear\\x0a")
    assert len(told["hostile"]) < 2 * len(file) + 300
    assert told["library"].startswith(f"{start}library: {file}:17: JSONDecodeError: Expecting")
    assert told["worse"] == f"{start}worse: {file}:20: Worse{end}"
    assert told["endless"] == f"{start}endless: {file}:23: Endless{end}"
    assert told["misused"].startswith(f"{start}misused: {file}:26: ValueError: a mark")


def test_reports_are_rare(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Ten errors are told one by one, then one per second tells how many there were."""
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])  # type: ignore[attr-defined]
    told: list[str] = []
    handlers = of(divides, report=told.append)
    for _ in range(10):
        handlers.decide(Packet(data))
    assert len(told) == 10
    del told[:]
    for _ in range(500):
        clock[0] += 0.01
        handlers.decide(Packet(data))
    assert len(told) == 5
    handlers.stop()
    assert len(told) == 6
    assert told[0].startswith("handler h0: 1 more packet got the default verdict (1 raised); the ")
    assert sum(int(text.split()[2]) for text in told) == 500
    handlers.stop()
    assert len(told) == 6


def test_an_error_keeps_no_packet(data: bytes) -> None:
    """What failed leaves no reference: a run of days does not grow by its errors."""

    class Marked(Packet):
        __slots__ = ("__weakref__",)

    handlers = of(divides)
    gc.disable()
    try:
        packet = Marked(data)
        kept = weakref.ref(packet)
        handlers.decide(packet)
        del packet
        assert kept() is None
    finally:
        gc.enable()


def test_interrupting_a_handler_interrupts_nfctl(data: bytes) -> None:
    """^C while a handler runs is the user's, where SIGINT has its usual handler."""

    def slow(packet: Packet) -> None:
        packet.drop()
        signal.raise_signal(signal.SIGINT)
        for _ in range(10):
            pass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        handlers = of(slow)
        packet = Packet(data)
        with pytest.raises(KeyboardInterrupt):
            handlers.decide(packet)
        assert packet.decision("x") is None
        assert handlers.errors == {"h0": {}}
    finally:
        signal.signal(signal.SIGINT, before)


# --- start and stop ----------------------------------------------------------------------------


class Ended:
    def __init__(self, log: list[str], name: str, fails: str = "") -> None:
        self.log, self.name, self.fails = log, name, fails

    def handler(self) -> Handler:
        return Handler(self.name, self.packet, self.start, self.stop)

    def _do(self, what: str) -> None:
        self.log.append(f"{what} {self.name}")
        if what == self.fails:
            msg = "no disk"
            raise OSError(msg)

    def start(self) -> None:
        self._do("start")

    def packet(self, packet: Packet) -> None:
        pass

    def stop(self) -> None:
        self._do("stop")


def test_all_that_started_are_stopped() -> None:
    """Stop comes once, last first, and goes on behind one that fails, which is reported."""
    log: list[str] = []
    told: list[str] = []
    kinds = [Ended(log, "a"), Ended(log, "b", "stop"), Ended(log, "c")]
    handlers = Handlers([kind.handler() for kind in kinds], None, told.append)
    handlers.start()
    handlers.stop()
    handlers.stop()
    assert log == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert len(told) == 1
    assert told[0].startswith("handler b does not stop: ")
    assert told[0].endswith("OSError: no disk")


def test_one_that_does_not_start_stops_those_before_it() -> None:
    """A start that fails is an error of the whole, and what had started is stopped again."""
    log: list[str] = []
    kinds = [Ended(log, "a"), Ended(log, "b", "start"), Ended(log, "c")]
    handlers = Handlers([kind.handler() for kind in kinds], Deadline(1.0), lambda _text: None)
    with pytest.raises(BadInput, match=r"handler b does not start: .*OSError: no disk"):
        handlers.start()
    assert log == ["start a", "start b", "stop a"]


def test_a_stop_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop has a time of its own; what takes longer is reported, and the next is stopped."""
    monkeypatch.setattr(module, "_STOP", 0.05)
    log: list[str] = []
    told: list[str] = []
    endless = Handler("endless", lambda _packet: None, None, lambda: time.sleep(LONG))
    handlers = Handlers([Ended(log, "a").handler(), endless], Deadline(0.0001), told.append)
    handlers.start()
    handlers.stop()
    assert log == ["start a", "stop a"]
    assert told == [
        f"handler endless does not stop: it takes too long ({__file__}:{line_of_sleep()})"
    ]


def line_of_sleep() -> int:
    code = test_a_stop_that_never_ends_is_left.__code__
    (sleeper,) = [const for const in code.co_consts if getattr(const, "co_name", "") == "<lambda>"][
        1:
    ]
    return int(sleeper.co_firstlineno)


# --- names -------------------------------------------------------------------------------------


FORMS = """
    class Made:
        def packet(self, packet):
            packet.drop()

    class Called:
        def __call__(self, packet):
            packet.drop()

    def function(packet):
        packet.drop()

    made = Made()
    called = Called()
    partial = __import__("functools").partial(lambda word, packet: getattr(packet, word)(), "drop")
"""


@pytest.mark.parametrize(
    "attribute", ["Made", "Called", "function", "made", "called", "partial", "made.packet"]
)
def test_forms_of_handlers(attribute: str, tmp_path: Path, data: bytes) -> None:
    """Functions, classes and objects, by attribute, all decide."""
    file = write(tmp_path / "forms-1.py", FORMS)
    handlers = load([f"{file}:{attribute}"], trusted=False)
    verdict = handlers.decide(Packet(data))
    assert verdict is not None
    assert verdict.action is Action.DROP
    assert handlers.names == (f"{file}:{attribute}",)


def test_a_file_is_run_once(tmp_path: Path) -> None:
    """Two handlers of one file share its module; files of the same name do not."""
    (tmp_path / "sub").mkdir()
    text = "box = []\ndef one(p): box.append(1)\ndef two(p): return str(len(box))\n"
    first, second = write(tmp_path / "same.py", text), write(tmp_path / "sub" / "same.py", text)
    names = [f"{first}:one", f"{first}:two", f"{second}:two"]
    one, two, other = load(names, trusted=False).handlers
    packet = Packet(b"")
    one.call(packet)
    assert (two.call(packet), other.call(packet)) == ("1", "0")
    assert not list(tmp_path.rglob("*.pyc"))


def test_a_module_of_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    """A dotted module is imported, from the current directory too."""
    (tmp_path / "hand_package").mkdir()
    write(tmp_path / "hand_package" / "__init__.py", "")
    write(tmp_path / "hand_package" / "inner.py", FORMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    handlers = load(["hand_package.inner:function"], trusted=False)
    verdict = handlers.decide(Packet(data))
    assert verdict == Verdict(Action.DROP, "handler hand_package.inner:function")


def test_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """A bare name is an entry point of an installed package; an unknown one lists them."""
    info = tmp_path / "hand_sites-1.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: hand_sites\nVersion: 1\n")
    write(info / "entry_points.txt", "[nfctl.handlers]\nsites = hand_sites:function [x]\n")
    write(tmp_path / "hand_sites.py", FORMS)
    monkeypatch.syspath_prepend(tmp_path)
    verdict = load(["sites"], trusted=False).decide(Packet(data))
    assert verdict == Verdict(Action.DROP, "handler sites")
    error = wrong("site")
    assert error.message == 'there is no handler "site"'
    assert error.hint.startswith('did you mean "sites"? the entry points in the group')


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("FILE", "names a file, and no function in it", "FUNCTION"),
        ("FILE:", "names no handler", "a handler is named"),
        ("FILE:a b", "names no handler", "a handler is named"),
        (":f", "names no handler", "a handler is named"),
        ("..x:f", "names no handler", "a handler is named"),
        ("no such:f", "names no handler", "a handler is named"),
        ("", 'there is no handler ""', ""),
        ("FILE:functions", 'there is no "functions" in', 'did you mean "function"?'),
        ("FILE:function.x", 'there is no "x" in', ""),
        ("FILE:number", "is an object of class int", "a handler is named"),
        ("FILE:two", "has to take the packet, and nothing else; it takes (a, b)", ""),
        ("FILE:none", "has to take the packet, and nothing else; it takes ()", ""),
        ("FILE:waits", "is a coroutine", "plain function"),
        ("FILE:yields", "is a coroutine or a generator", "plain function"),
        ("FILE:Needs", "has to take no arguments; it takes (word)", ""),
        ("FILE:BadStop", "has to take no arguments; it takes (now)", ""),
        ("FILE:OddStart", "is an object of class int, no function", ""),
        ("FILE:Empty", "is an object of class Empty", ""),
        ("/nowhere/x.py:f", "is not there", ""),
        ("/etc/:f", "is no file", ""),
        ("hand_nowhere:f", 'there is no module "hand_nowhere"', "a handler is named"),
        ("os.nowhere:f", 'there is no module "os', "a handler is named"),
        ("nfctl.nowhere:f", 'there is no module "nfctl.nowhere"', "a handler is named"),
    ],
)
def test_names_of_what_is_no_handler(name: str, message: str, hint: str, tmp_path: Path) -> None:
    """What cannot be a handler is refused before any packet, and says why."""
    file = write(
        tmp_path / "bad.py",
        """
        def function(packet): pass
        def two(a, b): pass
        def none(): pass
        async def waits(packet): pass
        def yields(packet): yield
        number = 7
        class Needs:
            def __init__(self, word): pass
        class BadStop:
            def packet(self, packet): pass
            def stop(self, now): pass
        class OddStart:
            start = 5
            def packet(self, packet): pass
        class Empty: pass
        """,
    )
    error = wrong(name.replace("FILE", file))
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("import os\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit('no')\n", 2, "SystemExit: no"),
        ("import hand_missing\n", 1, "ModuleNotFoundError: No module named 'hand_missing'"),
        ("import json\njson.loads('x')\n", 2, "JSONDecodeError: Expecting value"),
        ("class f:\n    def __init__(self):\n        {}['k']\n", 3, "KeyError: 'k'"),
        ("def f(:\n    pass\n", 1, "is not Python: invalid syntax"),
        ("x = '\\ud800'\nraise ValueError(x)\n", 2, "ValueError: \\ud800"),
        ("def __getattr__(name):\n    raise OSError(name)\n", 2, "OSError: f"),
    ],
)
@pytest.mark.parametrize("form", ["file", "module"])
def test_errors_while_loading_name_the_line(
    form: str,
    text: str,
    line: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a handler's module does wrong is an error at its own line, without a traceback."""
    file = write(tmp_path / "hand_wrong.py", text)
    monkeypatch.syspath_prepend(tmp_path)
    if form == "module" and sys.dont_write_bytecode is False:
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    error = wrong(f"{file}:f" if form == "file" else "hand_wrong:f")
    assert message in error.message
    assert error.where is not None
    assert (error.where.source, error.where.line) == (file, line)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_a_syntax_error_is_shown(tmp_path: Path) -> None:
    """The wrong line is there, with a caret."""
    error = wrong(write(tmp_path / "x.py", "a = 1\nb = )\n") + ":f")
    assert error.excerpt == "  b = )\n      ^"


def test_a_name_given_twice(tmp_path: Path) -> None:
    """Two handlers of the same name could not be told apart in the counts."""
    file = write(tmp_path / "x.py", FORMS)
    with pytest.raises(BadInput, match="named twice"):
        load([f"{file}:made", f"{file}:made"], trusted=False)
