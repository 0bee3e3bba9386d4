"""Flows: whose packet it is, and the name its ClientHello says, in whatever pieces it comes."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Raw

from nfctl.inspect import flows as module
from nfctl.inspect.flows import DATAGRAMS, ENDED, ENDED_FOR, PIECES, Flow, Flows
from nfctl.inspect.packet import Packet
from nfctl.inspect.payloads import quic
from nfctl.inspect.payloads.tls import MOST
from tests.unit.test_inspect_quic import ANSWER, DCID, RETRY, SERVER, crypto, initial
from tests.unit.test_inspect_tls import NAME, made, real, records, server_name

CLIENT, SITE = "192.0.2.1", "198.51.100.2"
ISN, SERVERS = 1000, 700_000
HELLO = real(NAME, "h2")


def packet(built: Any, *, time: float = 0.0, cut: int | None = None) -> Packet:
    data = bytes(built)
    return Packet(data[:cut], len(data), time=time)


def tcp(
    flags: str,
    seq: int = ISN + 1,
    data: bytes = b"",
    *,
    ack: int = 0,
    sport: int = 4000,
    time: float = 0.0,
    cut: int | None = None,
) -> Packet:
    """Return a segment of the client's."""
    built = IP(src=CLIENT, dst=SITE) / TCP(
        sport=sport, dport=443, flags=flags, seq=seq % 2**32, ack=ack % 2**32
    )
    return packet(built / Raw(data), time=time, cut=cut)


def back(flags: str, seq: int = SERVERS, data: bytes = b"", *, ack: int = ISN + 1) -> Packet:
    """Return a segment of the server's."""
    built = IP(src=SITE, dst=CLIENT) / TCP(
        sport=443, dport=4000, flags=flags, seq=seq % 2**32, ack=ack % 2**32
    )
    return packet(built / Raw(data))


def udp(data: bytes, *, reply: bool = False, sport: int = 4000) -> Packet:
    if reply:
        return packet(IP(src=SITE, dst=CLIENT) / UDP(sport=443, dport=sport) / Raw(data))
    return packet(IP(src=CLIENT, dst=SITE) / UDP(sport=sport, dport=443) / Raw(data))


def seen(flows: Flows, each: Packet) -> Flow:
    flow = flows.see(each)
    assert flow is not None
    assert each.flow is flow
    return flow


def opened(isn: int = ISN, **bounds: int) -> tuple[Flows, Flow]:
    """Return a table with one connection, the handshake of TCP behind it."""
    flows = Flows(**bounds)
    flow = seen(flows, tcp("S", isn))
    assert seen(flows, back("SA", SERVERS - 1, ack=isn + 1)) is flow
    assert seen(flows, tcp("A", isn + 1, ack=SERVERS)) is flow
    assert not flow.settled
    return flows, flow


def name(flow: Flow) -> str | None:
    return flow.hello.sni if flow.hello is not None else None


class TestWhose:
    """Which packets are one flow."""

    def test_both_directions(self) -> None:
        """Both directions of a connection are one flow, another port is another."""
        flows, flow = opened()
        assert flow.key[0] == 6
        assert flow.key[3:] == (4000, 443)
        other = seen(flows, tcp("S", sport=4001))
        assert other is not flow
        assert len(flows) == 2
        assert list(flows.live()) == [flow, other]

    def test_answer_first(self) -> None:
        """A flow whose first packet is the server's SYN+ACK has the client for its source."""
        flows = Flows()
        flow = seen(flows, back("SA", SERVERS - 1))
        assert flow.key[3:] == (4000, 443)
        assert seen(flows, tcp("A", data=HELLO)) is flow
        assert name(flow) == NAME

    def test_ipv6(self) -> None:
        """IPv6 addresses are as good."""
        flows = Flows()
        flow = seen(flows, packet(IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP() / b"x"))
        answer = IPv6(src="2001:db8::2", dst="2001:db8::1") / UDP() / b"y"
        assert seen(flows, packet(answer)) is flow

    def test_echo(self) -> None:
        """Echo requests and their replies are a flow for each identifier."""
        flows = Flows()
        flow = seen(flows, packet(IP(src=CLIENT, dst=SITE) / ICMP(id=7, seq=1)))
        reply = IP(src=SITE, dst=CLIENT) / ICMP(type=0, id=7, seq=1)
        assert seen(flows, packet(reply)) is flow
        assert flow.settled
        assert seen(flows, packet(IP(src=CLIENT, dst=SITE) / ICMP(id=8))) is not flow
        ask = IPv6(src="2001:db8::1", dst="2001:db8::2") / ICMPv6EchoRequest(id=7)
        six = seen(flows, packet(ask))
        answer = IPv6(src="2001:db8::2", dst="2001:db8::1") / ICMPv6EchoReply(id=7)
        assert seen(flows, packet(answer)) is six

    def test_other_protocols(self) -> None:
        """A protocol without ports has a flow for each pair of addresses, settled at once."""
        flows = Flows()
        flow = seen(flows, packet(IP(src=CLIENT, dst=SITE, proto=47) / Raw(b"abcd")))
        assert flow.settled
        assert seen(flows, packet(IP(src=SITE, dst=CLIENT, proto=47) / Raw(b"abcd"))) is flow
        assert seen(flows, packet(IP(src=SITE, dst=CLIENT, proto=50) / Raw(b"abcd"))) is not flow

    def test_none(self) -> None:
        """Fragments but the first, malformed packets and what is no IP have no flow."""
        flows = Flows()
        segment = IP(src=CLIENT, dst=SITE) / TCP() / Raw(b"x" * 64)
        first = IP(src=CLIENT, dst=SITE, flags="MF") / TCP() / Raw(b"x" * 64)
        later = IP(src=CLIENT, dst=SITE, frag=8, proto=6) / Raw(b"x" * 64)
        for data in (bytes(later), b"", b"\x55" * 60, bytes(segment)[:30]):
            assert flows.see(Packet(data)) is None
        assert len(flows) == 0
        assert flows.see(packet(first)) is not None

    def test_times(self) -> None:
        """The first and the last packet's time are kept."""
        flows = Flows()
        seen(flows, tcp("S", time=5.0))
        flow = seen(flows, tcp("A", time=9.0))
        assert (flow.first, flow.last) == (5.0, 9.0)

    def test_slots(self) -> None:
        """What others keep in a flow is there from the beginning."""
        _, flow = opened()
        assert (flow.packets, flow.octets, flow.http_host) == (0, 0, "")
        assert (flow.reported, flow.verdict) == (False, None)
        assert not hasattr(flow, "__dict__")


class TestEnds:
    """Connections that end, and ports that are used again."""

    def test_both_fins(self) -> None:
        """After both FINs the flow is forgotten; the last acknowledgement still finds it."""
        flows, flow = opened()
        seen(flows, tcp("A", data=HELLO))
        assert seen(flows, tcp("FA", ISN + 1 + len(HELLO))) is flow
        assert seen(flows, tcp("FA", ISN + 1 + len(HELLO))) is flow
        assert len(flows) == 1
        assert seen(flows, back("FA")) is flow
        assert len(flows) == 0
        assert seen(flows, tcp("A", ISN + 2 + len(HELLO))) is flow
        assert len(flows) == 0

    def test_reset(self) -> None:
        """A reset ends the flow, and settles it."""
        flows, flow = opened()
        assert seen(flows, back("R")) is flow
        assert len(flows) == 0
        assert flow.settled

    def test_data_behind_a_reset(self) -> None:
        """A reset that only we believed hides no ClientHello."""
        flows, flow = opened()
        seen(flows, tcp("R"))
        again = seen(flows, tcp("A", data=HELLO))
        assert again is not flow
        assert name(again) == NAME

    def test_ended_long_ago(self) -> None:
        """What comes a minute later is another flow; so is a SYN at any time."""
        for late in (tcp("A", time=ENDED_FOR + 1), tcp("S", time=1.0)):
            flows, flow = opened()
            seen(flows, tcp("R"))
            assert seen(flows, late) is not flow
            assert len(flows) == 1

    def test_ended_are_bounded(self) -> None:
        """No more flows that have ended are kept than the bound says."""
        flows = Flows()
        for sport in range(1, ENDED + 100):
            seen(flows, tcp("S", sport=sport))
            seen(flows, tcp("R", sport=sport))
        assert len(flows._ended) == ENDED
        assert len(flows) == 0

    def test_port_used_again(self) -> None:
        """A SYN where there was data, or a FIN, begins another flow; a repeated one does not."""
        flows, flow = opened()
        assert seen(flows, tcp("S", ISN)) is flow
        seen(flows, tcp("A", data=HELLO))
        another = seen(flows, tcp("S", 5_000_000))
        assert another is not flow
        assert len(flows) == 1
        assert not another.settled
        other = real("other.example")
        assert name(seen(flows, tcp("A", 5_000_001, other))) == "other.example"
        flows, flow = opened()
        seen(flows, tcp("FA"))
        assert seen(flows, tcp("S", 5_000_000)) is not flow

    def test_forget(self) -> None:
        """A flow that is forgotten is settled, and the next packet begins another."""
        flows, flow = opened()
        seen(flows, tcp("A", data=HELLO[:50]))
        flows.forget(flow)
        assert len(flows) == len(flows._waiting) == 0
        assert flow.settled
        again = seen(flows, tcp("A"))
        assert again is not flow
        flows.forget(flow)
        assert len(flows) == 1


class TestTls:
    """The ClientHello of a TCP connection."""

    def test_whole(self) -> None:
        """A ClientHello in one segment settles the flow at that packet."""
        flows, flow = opened()
        each = tcp("PA", data=HELLO)
        seen(flows, each)
        assert flow.settled
        assert each.hello is flow.hello
        assert each.hello is not None
        assert (each.hello.sni, each.hello.alpn) == (NAME, ("h2",))
        assert not flows._waiting

    def test_every_cut(self) -> None:
        """Cut in two at any place, in either order, it gives the name at the second segment."""
        for cut in range(1, len(HELLO)):
            pieces = [(0, HELLO[:cut]), (cut, HELLO[cut:])]
            for order in (pieces, pieces[::-1]):
                flows, flow = opened()
                for number, (offset, data) in enumerate(order):
                    seen(flows, tcp("A", ISN + 1 + offset, data))
                    assert name(flow) == (NAME if number else None), cut
                assert flow.settled

    @settings(deadline=None)
    @given(st.data())
    def test_any_segments(self, data: st.DataObject) -> None:
        """Records and segments of any size, in any order, twice, overlapping, give the name."""
        stream = records(HELLO[5:], *data.draw(st.lists(st.integers(1, 400), min_size=1)))
        cuts = data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=20))
        ends = sorted({0, *cuts, len(stream)})
        pieces = [(max(0, a - data.draw(st.integers(0, 5))), b) for a, b in pairwise(ends)]
        pieces += data.draw(st.lists(st.sampled_from(pieces), max_size=4))
        isn = data.draw(st.integers(2**32 - 600, 2**32 - 1) | st.integers(0, 2**32 - 1))
        flows, flow = opened(isn)
        for a, b in data.draw(st.permutations(pieces)):
            assert seen(flows, tcp("A", isn + 1 + a, stream[a:b])) is flow
        assert name(flow) == NAME
        assert flow.settled
        assert not flows._waiting
        assert flows.given_up == 0

    def test_first_bytes_win(self) -> None:
        """A segment that comes again with another name in it changes nothing."""
        at = HELLO.index(NAME.encode())
        flows, flow = opened()
        seen(flows, tcp("A", ISN + 1 + at, NAME.encode()))
        decoy = HELLO.replace(NAME.encode(), b"abc.decoy.example"[: len(NAME)])
        seen(flows, tcp("A", data=decoy))
        assert name(flow) == NAME

    def test_before_the_beginning(self) -> None:
        """A keep-alive, whose byte is before the first one, is no data."""
        flows, flow = opened()
        seen(flows, tcp("A", ISN, b"\0"))
        assert not flow.settled
        seen(flows, tcp("A", ISN, b"\0" + HELLO))
        assert name(flow) == NAME

    def test_fast_open(self) -> None:
        """Data in the SYN is the beginning (RFC 7413), acknowledged or sent again."""
        flows = Flows()
        flow = seen(flows, tcp("S", ISN, HELLO[:100]))
        seen(flows, back("SA", ack=ISN + 101))
        assert not flow.settled
        seen(flows, tcp("A", ISN + 101, HELLO[100:]))
        assert name(flow) == NAME
        flow = seen(flows, tcp("S", ISN, HELLO, sport=4001))
        assert name(flow) == NAME

    def test_from_the_middle(self) -> None:
        """Without a SYN the first data has to be the beginning, in whichever direction."""
        flows = Flows()
        flow = seen(flows, back("A"))
        assert not flow.settled
        seen(flows, tcp("A", 77, HELLO[:300]))
        seen(flows, tcp("A", 377, HELLO[300:]))
        assert name(flow) == NAME
        flow = seen(flows, tcp("A", 77, HELLO[100:], sport=4001))
        assert flow.settled
        assert flow.hello is None

    @pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1\0\5\2", b"\0"])
    def test_no_tls(self, data: bytes) -> None:
        """A client that sends something else first has no name."""
        flows, flow = opened()
        seen(flows, tcp("A", data=data))
        assert flow.settled
        assert flow.hello is None
        assert flows.given_up == 0
        seen(flows, tcp("A", ISN + 1 + len(data), HELLO))
        assert flow.hello is None

    def test_server_first(self) -> None:
        """Where the server speaks first, as of SSH or SMTP, there is no TLS at the start."""
        flows, flow = opened()
        seen(flows, back("A", data=b"220 mail.example ESMTP\r\n"))
        assert flow.settled
        assert flow.hello is None

    def test_server_within(self) -> None:
        """A server that answers half a ClientHello ends the waiting for the rest."""
        flows, flow = opened()
        seen(flows, tcp("A", data=HELLO[:50]))
        assert len(flows._waiting) == 1
        seen(flows, back("A", data=b"\x15\3\1\0\2\2\x32"))
        assert flow.settled
        assert not flows._waiting

    def test_another_syn(self) -> None:
        """A SYN with a false number, behind the handshake or alone, hides no ClientHello."""
        flows, flow = opened()
        seen(flows, tcp("S", 3_000_000_000))
        seen(flows, tcp("A", data=HELLO))
        assert name(flow) == NAME
        flows = Flows()
        seen(flows, tcp("S", 3_000_000_000))
        assert name(seen(flows, tcp("A", data=HELLO))) == NAME

    def test_false_answer(self) -> None:
        """Only the server says by SYN+ACK where the client's bytes begin."""
        flows, flow = opened()
        seen(flows, tcp("SA", 9, ack=3_000_000_000))
        seen(flows, tcp("A", data=HELLO))
        assert name(flow) == NAME

    def test_cut_copy(self) -> None:
        """What the queue's copy does not hold will not come again: the flow is settled."""
        flows, flow = opened()
        seen(flows, tcp("A", data=HELLO, cut=140))
        assert flow.settled
        assert flows.given_up == 1
        flows, flow = opened()
        seen(flows, tcp("A", data=HELLO + bytes(500), cut=40 + len(HELLO)))
        assert name(flow) == NAME


class TestQuic:
    """The ClientHello of a QUIC connection."""

    hello = real(NAME, "h3")[5:]

    def test_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An Initial with all of it settles the flow, and is decrypted once for all."""
        flows = Flows()
        each = udp(initial(crypto(0, self.hello)))
        flow = seen(flows, each)
        assert flow.settled
        assert name(flow) == NAME
        monkeypatch.delattr(quic, "read")
        assert each.quic is not None
        assert each.quic.hello == flow.hello

    @settings(deadline=None)
    @given(st.data())
    def test_datagrams_in_any_order(self, data: st.DataObject) -> None:
        """Over datagrams in any order, the later ones with the server's ID: the name is found."""
        message = made(server_name(NAME.encode()), b"\0\x15\x07\xd0" + bytes(2000), bare=True)
        cuts = data.draw(st.sets(st.integers(1, len(message) - 1), min_size=1, max_size=12))
        frames = [crypto(a, message[a:b]) for a, b in pairwise(sorted({0, *cuts, len(message)}))]
        frames = data.draw(st.permutations(frames))
        split = data.draw(st.integers(1, len(frames)))
        flows = Flows()
        flow = seen(flows, udp(initial(frames[0])))
        assert seen(flows, udp(bytes.fromhex(ANSWER[quic.V1]), reply=True)) is flow
        for number, frame in enumerate(frames[1:], 1):
            dcid = DCID if number < split else SERVER[:4]
            assert not flow.settled
            seen(flows, udp(initial(frame, dcid=dcid, original=DCID, number=number)))
        assert name(flow) == NAME
        assert flow.settled
        assert not flows._waiting

    def test_behind_something_else(self) -> None:
        """A datagram before a client's Initial, or another connection before it, hides no name."""
        flows = Flows()
        assert seen(flows, udp(b"something else")).settled
        first = initial(crypto(0, self.hello) + bytes(1200))
        flow = seen(flows, udp(first))
        assert name(flow) == NAME
        assert seen(flows, udp(first)) is flow
        other = initial(crypto(0, real("other.example")[5:]) + bytes(1200), dcid=SERVER)
        assert name(seen(flows, udp(other))) == "other.example"
        assert len(flows) == 1

    def test_retry(self) -> None:
        """After a Retry the keys stem from the server's ID, and the client begins again."""
        flows = Flows()
        flow = seen(flows, udp(initial(crypto(0, self.hello[:90]))))
        seen(flows, udp(bytes.fromhex(RETRY[quic.V1]), reply=True))
        other = real("other.example")[5:]
        again = initial(crypto(0, other), dcid=SERVER, token=b"token", number=1)
        assert not flow.settled
        seen(flows, udp(again))
        assert name(flow) == "other.example"

    def test_another_connection(self) -> None:
        """Frames of another connection between the same ports are not mixed with the first's."""
        flows = Flows()
        flow = seen(flows, udp(initial(crypto(0, self.hello[:90]))))
        other = real("other.example")[5:]
        seen(flows, udp(initial(crypto(0, other), dcid=b"9 letters")))
        assert name(flow) == "other.example"

    def test_negotiation(self) -> None:
        """After a version negotiation the client begins again, in another version."""
        flows = Flows()
        flow = seen(flows, udp(b"\xc0\x1a\x2a\x3a\x4a\x08" + DCID + b"\0" + bytes(1200)))
        answer = b"\xc0" + bytes(4) + b"\0\x08" + DCID + quic.V2.to_bytes(4)
        seen(flows, udp(answer, reply=True))
        assert not flow.settled
        seen(flows, udp(initial(crypto(0, self.hello), version=quic.V2, dcid=b"9 letters")))
        assert name(flow) == NAME

    @pytest.mark.parametrize("data", [b"\x12\x34\1\0\0\1\0\0\0\0\0\0", b"x", b"\x40" * 50])
    def test_no_quic(self, data: bytes) -> None:
        """A datagram that is no QUIC, or none from the start, settles the flow."""
        flow = seen(Flows(), udp(data))
        assert flow.settled
        assert flow.hello is None

    def test_handshake_is_over(self) -> None:
        """A short header says that the handshake is over, with or without a name."""
        flows = Flows()
        flow = seen(flows, udp(initial(crypto(0, self.hello[:90]))))
        assert len(flows._waiting) == 1
        seen(flows, udp(b"\x41" + bytes(40), reply=True))
        assert flow.settled
        assert not flows._waiting

    def test_without_cryptography(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nothing can be decrypted no name is waited for."""
        monkeypatch.setattr(quic, "able", lambda: False)
        flow = seen(Flows(), udp(initial(crypto(0, self.hello[:90]))))
        assert flow.settled


class TestBounds:
    """Nothing grows without end, whatever is sent."""

    def test_flows(self) -> None:
        """The flow that was not seen for longest makes room."""
        flows = Flows(limit=3)
        one, two, three = (seen(flows, tcp("S", sport=sport)) for sport in (1, 2, 3))
        seen(flows, tcp("S", sport=1))
        four = seen(flows, tcp("S", sport=4))
        assert list(flows.live()) == [three, one, four]
        assert two.settled
        assert flows.evicted == 1
        assert flows.given_up == 0

    def test_waiting(self) -> None:
        """The ClientHello that began first makes room for another."""
        flows = Flows(waiting=2)
        half = [seen(flows, tcp("A", data=HELLO[:90], sport=sport)) for sport in (1, 2, 3)]
        assert [flow.settled for flow in half] == [True, False, False]
        assert flows.given_up == 1
        seen(flows, tcp("A", ISN + 91, HELLO[90:], sport=3))
        assert name(half[2]) == NAME

    def test_waiting_flow_makes_room(self) -> None:
        """A flow that makes room with half a ClientHello is counted, and its bytes freed."""
        flows = Flows(limit=1)
        seen(flows, tcp("A", data=HELLO[:90], sport=1))
        seen(flows, tcp("S", sport=2))
        assert (len(flows._waiting), flows.given_up, flows.evicted) == (0, 1, 1)

    def test_too_long(self) -> None:
        """A ClientHello of more than the bound is given up as soon as it says so."""
        flows, flow = opened(most=1000)
        seen(flows, tcp("A", data=b"\x16\3\1\x20\0\1\0\3\xfd"))
        assert flow.settled
        assert flows.given_up == 1

    def test_too_many_segments(self) -> None:
        """A ClientHello in more segments than the bound is given up, repeated ones included."""
        flows, flow = opened()
        each = tcp("A", data=HELLO[:9])
        for _ in range(PIECES):
            assert not flow.settled
            seen(flows, each)
        assert flow.settled
        assert (flows.given_up, len(flows._waiting)) == (1, 0)

    def test_too_many_datagrams(self) -> None:
        """So is one of QUIC, where no datagram ever holds the rest."""
        for frames in (crypto(0, TestQuic.hello[:9]), b"\1"):
            flows = Flows()
            for _ in range(DATAGRAMS):
                assert not any(flow.settled for flow in flows.live())
                flow = seen(flows, udp(initial(frames)))
            assert flow.settled
            assert (flows.given_up, len(flows._waiting)) == (1, 0)

    def test_flood(self) -> None:
        """A flood of half ClientHellos keeps no more memory than the bounds allow."""
        limit, waiting, most = 500, 50, 4096
        flows = Flows(limit, waiting, most)
        start = b"\x16\3\1\x20\0\1\0\x0f\xf0" + bytes(1400)
        segments = [
            tcp("A", ISN + 1 + offset, data, sport=sport)
            for sport in range(1, 200)
            for offset, data in (
                (0, start), (1409, bytes(1400)), (3500, bytes(400)), (3000, b"x"), (3300, b"x"),
            )
        ]  # fmt: skip
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for each in segments:
            seen(flows, each)
            each.flow = None
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(flows._waiting) == waiting
        kept = [flow._reader.kept for flow in flows.live() if flow._reader is not None]
        assert len(kept) == waiting
        assert max(kept) <= most
        assert sum(kept) > waiting * 3000
        assert flows.given_up == 199 - waiting
        # A flow and its place in the table are less than 1 KiB, and a buffer has some room.
        assert after - before < waiting * most * 5 // 4 + 199 * 1024

    def test_flood_of_flows(self) -> None:
        """The table keeps to its limit, and what ended with a name keeps no bytes of it."""
        flows = Flows(limit=100)
        for sport in range(1, 400):
            flow = seen(flows, tcp("A", data=HELLO, sport=sport))
            assert name(flow) == NAME
            assert flow._reader is None
        assert len(flows) == 100
        assert flows.evicted == 299
        assert not flows._waiting

    def test_kept_by_settled(self) -> None:
        """A hostile ClientHello leaves no more than a few KiB in its flow."""
        many = b"".join(b"\x10%016d" % n for n in range(900))
        alpn = b"\0\x10" + (len(many) + 2).to_bytes(2) + len(many).to_bytes(2) + many
        message = made(server_name(b"\xff" * 900), alpn, bare=True)
        assert len(message) <= MOST
        flow = seen(Flows(), tcp("A", data=records(message, 9000)))
        assert flow.hello is not None
        texts = [flow.hello.sni, *flow.hello.alpn]
        assert sum(map(sys.getsizeof, texts)) < 2048

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["S", "SA", "A", "FA", "R", "PA", ""]),
                st.integers(-3, 40) | st.integers(0, 2**32 - 1),
                st.sampled_from([b"", HELLO[:20], HELLO[20:], b"\x16", b"\0" * 30])
                | st.binary(max_size=30),
                st.booleans(),
                st.integers(1, 4),
            ),
            max_size=40,
        )
    )
    def test_any_segments(self, steps: list[tuple[str, int, bytes, bool, int]]) -> None:
        """Whatever segments come, no error does, and the tables agree with each other."""
        flows = Flows(limit=3, waiting=2, most=600)
        for flags, offset, data, reply, sport in steps:
            if reply:
                each = back(flags, offset, data, ack=offset)
            else:
                each = tcp(flags, offset, data, sport=3999 + sport)
            flow = seen(flows, each)
            assert not (flow.settled and flow._reader is not None)
            assert len(flows) <= 3
            assert len(flows._waiting) <= 2
            live = list(flows.live())
            waiting = [each for each in live if each._reader is not None]
            assert sorted(map(id, waiting)) == sorted(map(id, flows._waiting.values()))
            assert all(flows._flows[each.key] is each for each in live)

    @given(st.lists(st.binary(max_size=120) | st.binary(min_size=40).map(lambda d: b"E" + d)))
    def test_any_packets(self, packets: list[bytes]) -> None:
        """Arbitrary bytes for packets are seen without an error."""
        flows = Flows(limit=5)
        for data in packets:
            each = Packet(data)
            assert flows.see(each) is each.flow
        assert len(flows) <= 5

    @given(st.lists(st.tuples(st.binary(max_size=60), st.booleans()), max_size=20))
    def test_any_datagrams(self, datagrams: list[tuple[bytes, bool]]) -> None:
        """Arbitrary datagrams behind half a ClientHello are seen without an error."""
        flows = Flows()
        seen(flows, udp(initial(crypto(0, TestQuic.hello[:90]))))
        for data, reply in datagrams:
            seen(flows, udp(b"\xc0" + data, reply=reply))
        assert len(flows) == 1


def test_it_is_light() -> None:
    """Importing the table imports neither scapy nor cryptography."""
    code = f"import sys, {module.__name__}; print({{'scapy', 'cryptography'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
