from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP

from nfctl.inspect.flows import Flows
from nfctl.inspect.packet import Packet
from nfctl.inspect.rules import load
from nfctl.inspect.rules.rate import Rate
from nfctl.inspect.rules.remembered import Remembered
from nfctl.inspect.verdict import Action, Per, Verdict

ONE = Packet(bytes(IP(src="10.0.0.1", dst="10.9.0.1") / UDP(sport=1, dport=2)))
TWO = Packet(bytes(IP(src="10.0.0.2", dst="10.9.0.1") / UDP(sport=1, dport=2)))
BACK = Packet(bytes(IP(src="10.9.0.1", dst="10.0.0.1") / UDP(sport=2, dport=1)))
MALFORMED = Packet(ONE.data[:24])
BAN = Verdict(Action.DROP, "ban", lasts=10.0, per=Per.SOURCE)


def numbered(number: int) -> Packet:
    return Packet(ONE.data[:12] + (0x0B000000 + number).to_bytes(4) + ONE.data[16:])


# --- rates ----------------------------------------------------------------------------------------


def test_burst_then_rate() -> None:
    """So many at once as the burst says, then one for each interval; what is over takes none."""
    rate = Rate(10, 1.0, 3, Per.SOURCE)
    assert [rate.over(ONE, 0.0) for _ in range(5)] == [False, False, False, True, True]
    assert not rate.over(ONE, 0.1)
    assert rate.over(ONE, 0.1)
    assert rate.over(ONE, 0.199)
    assert not rate.over(ONE, 0.2)
    assert [rate.over(ONE, 60.0) for _ in range(4)] == [False, False, False, True]


def test_rate_is_per_source_destination_or_flow() -> None:
    """Each source, destination or flow (both directions) has its own."""
    assert [Rate(1, 1.0, 1, Per.SOURCE).over(p, 0.0) for p in (ONE, TWO)] == [False, False]
    for per, asked, over in [
        (Per.SOURCE, (ONE, TWO, ONE, BACK), [False, False, True, False]),
        (Per.DESTINATION, (ONE, TWO, BACK), [False, True, False]),
        (Per.FLOW, (ONE, TWO, BACK), [False, False, True]),
    ]:
        rate = Rate(1, 1.0, 1, per)
        assert [rate.over(packet, 0.0) for packet in asked] == over


def test_echo_of_another_program_is_another_flow() -> None:
    """Of ICMP's echo, the identifier stands for the ports."""
    rate = Rate(1, 1.0, 1, Per.FLOW)
    flows = Flows()
    overs = []
    for ident, kind in ((1, 8), (2, 8), (1, 0)):
        ends = ("10.0.0.1", "10.0.0.2") if kind == 8 else ("10.0.0.2", "10.0.0.1")
        packet = Packet(bytes(IP(src=ends[0], dst=ends[1]) / ICMP(type=kind, id=ident)))
        flows.see(packet)
        overs.append(rate.over(packet, 0.0))
    assert overs == [False, False, True]


def test_clock_that_is_set_back() -> None:
    """A clock that goes back a day does not shut a source out for a day."""
    rate = Rate(1, 1.0, 2, Per.SOURCE)
    assert [rate.over(ONE, 1e9) for _ in range(3)] == [False, False, True]
    assert [rate.over(ONE, 1e9 - 86400) for _ in range(3)] == [False, False, True]


def test_buckets_are_bounded() -> None:
    """Sources without end fill no memory; the one that was asked for longest ago goes."""
    rate = Rate(1, 1.0, 1, Per.SOURCE, most=3)
    for number in (1, 2, 3, 1, 4):
        rate.over(numbered(number), 0.0)
    assert len(rate) == 3
    assert rate.over(numbered(1), 0.0)
    assert not rate.over(numbered(2), 0.0)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.lists(st.floats(0, 0.5, allow_nan=False), min_size=1, max_size=60),
)
def test_rate_is_a_token_bucket(number: int, burst: int, gaps: list[float]) -> None:
    """It lets through what a bucket of tokens, kept as such, lets through."""
    rate = Rate(number, 1.0, burst, Per.SOURCE)
    tokens, last = float(burst), 0.0
    for now in itertools.accumulate(gaps):
        tokens = min(burst, tokens + (now - last) * number)
        last = now
        over = rate.over(ONE, now)
        if abs(tokens - 1) > 1e-6:  # else the last bit of a float decides
            assert over is (tokens < 1)
        tokens -= not over


def test_only_what_fulfils_all_other_conditions_counts() -> None:
    """A rate is asked last, wherever it stands, and only where no rule before it decided."""
    rules = load(
        """
        rules:
        - {when: {src: 10.0.0.2}, verdict: accept}
        - {name: fast, when: {rate: {over: 2/min, per: destination}, len: 28}, verdict: drop}
        """,
        "f",
    )
    long = Packet(bytes(IP(src="10.0.0.1", dst="10.9.0.1") / UDP() / b"x"))
    for packet in (TWO, TWO, TWO, long, long, long):
        rules.decide(packet, 0.0)
    assert [rules.decide(ONE, 0.0).by for _ in range(3)] == ["default", "default", "fast"]
    assert rules.decide(long, 0.0).by == "default"
    assert rules.decide(ONE, 30.0).by == "default"
    assert rules.decide(ONE, 30.0).by == "fast"
    assert rules.stateful


def test_rules_behind_a_rate() -> None:
    """What is not over a rate is decided by the rules behind it, whatever else is asked."""
    rules = load("rules: [{when: {rate: 1/s}, verdict: drop}, {verdict: reject}]", "f")
    assert [rules.decide(ONE, 0.0).action for _ in range(2)] == [Action.REJECT, Action.DROP]


def test_rate_as_one_word() -> None:
    """Without more said it is per source, and its burst is its number."""
    rules = load("rules: [{when: {rate: 3/h}, verdict: drop}]", "f")
    rate = rules.rules[0].rate
    assert rate is not None
    assert (rate.number, rate.seconds, rate.burst, rate.per) == (3, 3600.0, 3, Per.SOURCE)
    assert str(rate) == "over 3/h per source, burst 3"


# --- what lasts -----------------------------------------------------------------------------------


def test_verdict_that_lasts() -> None:
    """It is everybody's own for its time, which does not begin anew, and then over."""
    rules = load(
        """
        rules:
        - {name: knock, when: {dport: 7}, verdict: drop, for: 1m30s, per: source}
        """,
        "f",
    )
    knock = Packet(bytes(IP(src="10.0.0.1", dst="10.9.0.9") / TCP(dport=7)))
    assert not rules.remembered
    assert rules.decide(ONE, 0.0).action is Action.ACCEPT
    assert rules.decide(knock, 0.0).by == "knock"
    assert rules.remembered
    assert rules.remembers(ONE)
    assert not rules.remembers(TWO)
    assert rules.decide(ONE, 60.0) is rules.rules[0].verdict
    assert rules.decide(TWO, 60.0) is rules.default
    assert rules.decide(BACK, 60.0) is rules.default
    assert rules.decide(ONE, 89.9).by == "knock"
    assert rules.decide(ONE, 90.0) is rules.default
    assert not rules.remembered


@pytest.mark.parametrize(
    ("per", "hit", "missed"),
    [("source", ONE, BACK), ("destination", TWO, BACK), ("flow", BACK, TWO)],
)
def test_whose_verdict_lasts(per: str, hit: Packet, missed: Packet) -> None:
    """Per flow is for both directions, per source and destination for one address."""
    rules = load(
        "rules: [{name: r, when: {ttl: 64, src: 10.0.0.1}, verdict: drop, for: 5,"
        f" per: {per}}}]",
        "f",
    )
    assert rules.decide(ONE, 0.0).by == "r"
    assert rules.decide(hit, 1.0).by == "r"
    assert rules.decide(missed, 1.0).by == "default"


def test_a_fixed_plan_is_not_fixed_where_it_is_remembered() -> None:
    """A rule whose verdict lasts leaves something behind with each packet that it decides."""
    from nfctl.inspect.rules import UNKNOWN, Facts

    rules = load("rules: [{verdict: drop, for: 5}]", "f")
    assert rules.plan(Facts.of(ONE), UNKNOWN).fixed is None


def test_a_malformed_packet_is_never_let_in_by_what_is_remembered() -> None:
    """What a malformed packet says of its source may get it dropped, and not accepted."""
    for action, by in ((Action.DROP, "ban"), (Action.ACCEPT, None)):
        remembered = Remembered()
        remembered.add(ONE, Verdict(action, "ban", lasts=10.0, per=Per.SOURCE), 0.0)
        found = remembered.find(MALFORMED, 1.0)
        assert (found.by if found else None) == by


def test_what_has_no_address_is_not_remembered() -> None:
    """Bytes that are no IP have no source to remember."""
    remembered = Remembered()
    nothing = Packet(b"\x00" * 20)
    for per in Per:
        remembered.add(nothing, Verdict(Action.DROP, "x", lasts=10.0, per=per), 0.0)
    assert not remembered
    assert remembered.find(nothing, 1.0) is None


def test_memory_is_bounded() -> None:
    """Sources without end fill no memory; the one that was asked for longest ago goes."""
    remembered = Remembered(most=3)
    for number in (1, 2, 3):
        remembered.add(numbered(number), BAN, 0.0)
    assert remembered.find(numbered(1), 1.0) is BAN
    remembered.add(numbered(4), BAN, 1.0)
    remembered.add(numbered(4), BAN, 2.0)
    assert len(remembered) == 3
    assert remembered.find(numbered(2), 2.0) is None
    assert all(remembered.find(numbered(n), 2.0) is BAN for n in (1, 3, 4))
    assert remembered.changes == 5


def test_what_has_ended_is_forgotten() -> None:
    """Packets of others are enough to find out that verdicts have ended."""
    remembered = Remembered()
    for number in range(100):
        remembered.add(numbered(number), BAN, number / 10)
    assert remembered.find(ONE, 12.0) is None
    assert len(remembered) == 79
    assert remembered.find(ONE, 12.5) is None  # not again so soon
    assert len(remembered) == 79
    assert remembered.find(numbered(25), 12.5) is None  # and yet what has ended is not found
    assert remembered.find(numbered(26), 12.5) is BAN
    assert remembered.find(ONE, 100.0) is None
    assert not remembered
    assert len(remembered) == 0


def test_the_flow_is_asked_before_the_source() -> None:
    """Of several that are remembered, that of the flow decides, whichever came first."""
    remembered = Remembered()
    allow = Verdict(Action.ACCEPT, "allow", lasts=10.0)
    remembered.add(ONE, BAN, 0.0)
    remembered.add(ONE, allow, 0.0)
    assert remembered.find(ONE, 1.0) is allow
    assert remembered.find(ONE, 10.0) is None
