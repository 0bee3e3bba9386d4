from __future__ import annotations

from typing import Any

from scapy.layers.inet import IP, TCP, UDP

from nfctl.inspect.deadline import Deadline
from nfctl.inspect.handlers import Handler, Handlers
from nfctl.inspect.packet import Packet
from nfctl.inspect.replay import Replay, replay
from nfctl.inspect.rules import EMPTY, Rules, load
from nfctl.inspect.verdict import Action
from tests.unit.hello import client_hello


def connection(name: str, sport: int = 4000) -> list[Packet]:
    """Return a connection whose ClientHello comes in two segments, and data behind it."""
    hello = client_hello(name)
    sent = [("S", 100, b""), ("A", 101, hello[:50]), ("A", 151, hello[50:]),
            ("A", 101 + len(hello), b"data")]  # fmt: skip
    there = IP(src="10.0.0.1", dst="10.0.0.2")
    return [
        packet(there / TCP(sport=sport, dport=443, flags=flags, seq=seq) / data)
        for flags, seq, data in sent
    ]


def packet(built: Any, time: float = 0.0) -> Packet:
    return Packet(bytes(built), time=time)


def datagram(data: bytes = b"x", time: float = 0.0) -> Packet:
    return packet(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / data, time)


def rules(*lines: str) -> Rules:
    return load("\n".join(["rules:", *lines]), "f")


def by(own: Rules, packets: list[Packet], handlers: Handlers | None = None) -> list[str]:
    return [verdict.by for _, verdict in replay(packets, own, handlers)]


def test_a_flow_is_decided_by_its_name() -> None:
    """From the ClientHello's last segment on, a flow's packets are decided by its name."""
    own = rules("- {name: no, when: {tls.sni: '*.example'}, verdict: drop}")
    run = Replay(own)
    found = [
        (verdict.by, hello)
        for one in (connection("www.example"), connection("example.org", 4001))
        for _, verdict, hello in run.run(one)
    ]
    assert found == [
        ("default", False), ("default", False), ("no", True), ("no", False),
        ("default", False), ("default", False), ("default", True), ("default", False),
    ]  # fmt: skip
    assert run.figures() == {
        "packets": 8,
        "octets": sum(p.length for p in (*connection("www.example"), *connection("example.org"))),
        "verdicts": {"accept": 6, "drop": 2},
        "rules": {"default": 6, "no": 2},
        "errors": {},
        "names": {"www.example": 1, "example.org": 1},
        "offloaded": 0,
        "rewritten": 0,
    }


def test_names_can_be_allowed() -> None:
    """Rules that drop all names but some let the handshake pass, and drop what shows another."""
    own = rules("- {name: others, when: {dport: 443, not: {tls.sni: ok.example}}, verdict: drop}")
    assert by(own, connection("ok.example")) == ["default"] * 4
    assert by(own, connection("x.example")) == ["default", "default", "others", "others"]


def test_the_clock_is_that_of_the_packets() -> None:
    """Rates and verdicts that last go by the capture's times."""
    own = rules(
        "- {name: slow, when: {payload: slow, rate: 1/s}, verdict: drop}",
        "- {name: ban, when: {payload: ban}, verdict: drop, for: 10, per: source}",
    )
    asked = [datagram(b"slow", 1e9 + at) for at in (0.0, 0.5, 1.0, 1.1)]
    asked += [datagram(data, 1e9 + at) for data, at in ((b"ban", 20), (b"x", 29), (b"x", 31))]
    assert by(own, asked) == ["default", "slow", "default", "slow", "ban", "ban", "default"]


def test_what_is_left_to_the_kernel() -> None:
    """The rest of an offloaded flow gets its verdict, whatever the rules would say to it."""
    own = rules(
        "- {name: go, when: {payload: go}, verdict: accept, offload: flow}",
        "- {name: no, verdict: drop}",
    )
    run = Replay(own)
    asked = [datagram(b"a"), datagram(b"go"), datagram(b"a")]
    assert [verdict.by for _, verdict, _ in run.run(asked)] == ["no", "go", "go"]
    assert run.figures()["offloaded"] == 1


def test_packets_are_rewritten() -> None:
    """A changed packet has its new bytes; one that cannot be changed is counted and goes on."""
    own = rules("- {verdict: set, set: {dport: 9}}")
    fragment = packet(IP(src="10.0.0.1", dst="10.0.0.2", proto=17, frag=5) / (b"x" * 20))
    run = Replay(own)
    changed, same = [one for one, _, _ in run.run([datagram(), fragment])]
    assert changed.replacement is not None
    assert Packet(changed.replacement).dport == 9
    assert same.replacement is None
    figures = run.figures()
    assert (figures["rewritten"], figures["errors"]) == (1, {"cannot rewrite: a fragment": 1})


def test_handlers_decide_what_the_default_would() -> None:
    """Handlers are asked behind the rules; they are started at first, and stopped at the end."""
    told: list[str] = []

    def decide(asked: Packet) -> None:
        told.append(asked.payload.decode())
        if asked.payload == b"raise":
            raise ValueError
        if asked.payload == b"drop":
            asked.drop()

    handler = Handler(
        "h", decide, lambda: told.append("start"), lambda: told.append("stop"), ["tests"]
    )
    handlers = Handlers([handler], report=lambda _text: None)
    own = rules("- {name: rule, when: {payload: mine}, verdict: reject}")
    run = Replay(own, handlers)
    asked = [datagram(data) for data in (b"mine", b"drop", b"raise", b"other")]
    found = [verdict.by for _, verdict, _ in run.run(asked)]
    assert found == ["rule", "handler h", "default", "default"]
    assert told == ["start", "drop", "raise", "other", "stop"]
    assert run.figures()["errors"] == {"handler h: raised": 1}


def test_a_limit_ends_the_run() -> None:
    """Of a capture without end, so many packets are read as were asked for."""

    def endless() -> Any:
        while True:
            yield datagram()

    run = Replay(EMPTY)
    assert len(list(run.run(endless(), limit=5))) == 5
    assert run.packets == 5


def test_an_expression_that_takes_too_long() -> None:
    """A packet on which a regular expression takes too long gets the default verdict."""
    own = rules("- {when: {payload: '(a+)+b'}, verdict: drop}")
    run = Replay(own, deadline=Deadline(0.05))
    asked = [datagram(b"a" * 60), datagram(b"ab")]
    found = [verdict.action for _, verdict, _ in run.run(asked)]
    assert found == [Action.ACCEPT, Action.DROP]
    assert run.figures()["errors"] == {"a regular expression took too long": 1}
