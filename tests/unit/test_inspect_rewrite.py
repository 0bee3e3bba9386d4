"""Changed packets against scapy's: it sets the same field and makes lengths and checksums anew."""

from __future__ import annotations

import base64
import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Raw, raw

from nfctl.document import load
from nfctl.errors import BadInput
from nfctl.inspect import checksum
from nfctl.inspect.packet import MOST_REPLACED as MOST
from nfctl.inspect.packet import Packet
from nfctl.inspect.rewrite import DSCP, CannotRewrite, Rewrite
from tests.unit.test_inspect_checksum import packets, partial, words

HEAD = {4: IP(src="192.0.2.1", dst="192.0.2.2"), 6: IPv6(src="2001:db8::1", dst="2001:db8::2")}


def rewrite(text: str) -> Rewrite:
    return Rewrite.read(load(text, "rules.yaml"))


def apply(text: str, built: Any, **fields: Any) -> bytes | None:
    """Change a packet of scapy's."""
    return rewrite(text).apply(Packet(raw(built), **fields))


def rebuilt(data: bytes) -> Any:
    """Return a packet as scapy reads it, without lengths and checksums: it will make them."""
    packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    layer = packet
    while layer:
        none = layer.name == "UDP" and packet.version == 4 and layer.chksum == 0
        for name in ("len", "plen", "chksum", "cksum"):
            if name in layer.fields and not (none and name == "chksum"):
                del layer.fields[name]
        layer = layer.payload
    packet.clear_cache()  # of the bytes that each layer was read from
    return packet


def put(packet: Any, content: bytes) -> None:
    """Have scapy change what TCP or UDP carries."""
    packet.payload.remove_payload()
    packet.payload.add_payload(Raw(content))
    packet.clear_cache()


def expect(text: str, built: Any, change: Any) -> None:
    """Have scapy change the same packet; both must come out the same, to the last byte."""
    data = raw(built)
    wanted = rebuilt(data)
    change(wanted)
    wanted.clear_cache()
    wanted = raw(wanted)
    got = apply(text, built)
    assert got == (None if wanted == data else wanted)
    assert raw(rebuilt(wanted)) == wanted


class TestFields:
    """Each field alone, in packets of all kinds."""

    @given(packets(), st.integers(0, 255))
    def test_the_ttl_is_set(self, built: Any, ttl: int) -> None:
        """It is IPv4's TTL, IPv6's hop limit."""

        def change(packet: Any) -> None:
            setattr(packet, "ttl" if packet.version == 4 else "hlim", ttl)

        expect(f"ttl: {ttl}", built, change)

    @given(packets(), st.integers(1, 255), st.sampled_from("+-"), st.booleans())
    def test_the_ttl_goes_up_and_down(self, built: Any, n: int, sign: str, quoted: bool) -> None:
        """By as much as is said, but not beyond 0 and 255; quotes make no difference."""

        def change(packet: Any) -> None:
            name = "ttl" if packet.version == 4 else "hlim"
            ttl = getattr(packet, name) + (n if sign == "+" else -n)
            setattr(packet, name, min(255, max(0, ttl)))

        expect(f'ttl: "{sign}{n}"' if quoted else f"ttl: {sign}{n}", built, change)

    @given(packets(), st.integers(0, 63), st.integers(0, 3), st.integers(0, 255), st.integers(1, 3))
    def test_dscp_and_ecn_are_set(
        self, built: Any, dscp: int, ecn: int, tos: int, which: int
    ) -> None:
        """Each leaves the bits of the other alone."""
        name = "tos" if built.version == 4 else "tc"
        setattr(built, name, tos)

        def change(packet: Any) -> None:
            new = tos
            new = new & 3 | dscp << 2 if which & 1 else new
            new = new & 0xFC | ecn if which & 2 else new
            setattr(packet, name, new)

        fields = [f"dscp: {dscp}"] * (which & 1) + [f"ecn: {ecn}"] * (which >> 1)
        expect(f"{{{', '.join(fields)}}}", built, change)

    @given(packets(), st.ip_addresses(v=4), st.ip_addresses(v=6), st.sampled_from(["src", "dst"]))
    def test_addresses_are_set_in_packets_of_their_version(
        self, built: Any, four: Any, six: Any, name: str
    ) -> None:
        """Of two addresses the one that fits is taken; of one that does not, no notice."""

        def change(packet: Any) -> None:
            setattr(packet, name, str(four if packet.version == 4 else six))

        expect(f'{name}: [{four}, "{six}"]', built, change)
        other = six if built.version == 4 else four
        expect(f'{name}: "{other}"', built, lambda _: None)

    @given(packets(), st.integers(1, 0xFFFF), st.sampled_from(["sport", "dport"]))
    def test_ports_are_set(self, built: Any, port: int, name: str) -> None:
        """In TCP and UDP; other protocols have none to set."""
        if not (built.haslayer(TCP) or built.haslayer(UDP)):
            with pytest.raises(CannotRewrite, match="neither TCP nor UDP"):
                apply(f"{name}: {port}", built)
            return
        expect(f"{name}: {port}", built, lambda packet: setattr(packet.payload, name, port))

    @given(packets(), st.binary(max_size=90))
    def test_a_payload_is_set(self, built: Any, content: bytes) -> None:
        """UDP's may have any length; TCP's must keep it, and is left alone where it has none."""
        assume(built.haslayer(TCP) or built.haslayer(UDP))
        text = f'payload: {{base64: "{base64.b64encode(content).decode()}"}}'
        old = Packet(raw(built)).payload
        if built.haslayer(TCP) and old and len(old) != len(content):
            with pytest.raises(CannotRewrite, match="another length"):
                apply(text, built)
            return

        def change(packet: Any) -> None:
            if old or packet.haslayer(UDP):
                put(packet, content)

        expect(text, built, change)

    def test_all_at_once(self) -> None:
        """All fields can be set by one rule."""
        text = "{ttl: 7, dscp: af43, ecn: ce, src: 198.51.100.1, dst: 198.51.100.2, "
        text += "sport: 1, dport: 2, payload: {text: new}}"
        got = IP(apply(text, HEAD[4] / UDP(sport=8, dport=9) / b"before"))
        assert (got.ttl, got.tos, got.src, got.dst) == (7, 0x9B, "198.51.100.1", "198.51.100.2")
        assert (got.sport, got.dport, raw(got[UDP].payload)) == (1, 2, b"new")
        assert raw(rebuilt(raw(got))) == raw(got)

    @pytest.mark.parametrize(
        ("name", "number"),
        [("CS0", 0), ("cs7", 56), ("af11", 10), ("af43", 38), ("EF", 46), ("be", 0), ("le", 1)],
    )
    def test_names_of_dscp_are_those_of_the_rfcs(self, name: str, number: int) -> None:
        """RFC 2474, 2597, 3246, 8622; in upper case too."""
        assert DSCP[name.lower()] == rewrite(f"dscp: {name}").dscp == number


class TestReplacing:
    """Regular expressions on payloads."""

    @pytest.mark.parametrize(
        ("text", "old", "new"),
        [
            ("{replace: 'a+', with: 'b'}", b"aa-a", b"b-b"),
            ("{replace: 'a', with: 'b', count: 2}", b"aaa", b"bba"),
            (r"{replace: '(\w+)=(?P<v>\d+)', with: '\g<v>=\1'}", b"x=12;", b"12=x;"),
            (r"{replace: '\x00\xff', with: '\\'}", b"\0\xff.", b"\\."),
            (r"{replace: 'ü', with: 'ÿ\000\303'}", b"\xfc", b"\xff\0\xc3"),
            (r"{text: a, pad: '\000'}", b"abc", b"a\0\0"),
            ("{replace: 'abc', with: x, pad: ' '}", b"abcabc.", b"x  x  ."),
            (r"{replace: '(a)bc', with: '\1', pad: '-'}", b"abc.", b"a--."),
            ("{replace: 'abc', with: '', pad: '#'}", b"-abc-", b"-###-"),
            ("{text: hi, pad: '.'}", b"hello", b"hi..."),
            ("{hex: '00ff 10:20'}", b"", b"\0\xff\x10 "),
            ("{hex: 1234}", b"", b"\x12\x34"),
            ("{text: 'ü'}", b"", "ü".encode()),
        ],
    )
    def test_what_is_found_is_replaced(self, text: str, old: bytes, new: bytes) -> None:
        """As by re.sub() on bytes; padded to the length of each match where that is asked for."""
        for head in HEAD.values():
            expect(
                f"payload: {text}",
                head / UDP(dport=9) / old,
                lambda packet: put(packet, new),
            )

    def test_nothing_found_changes_nothing(self) -> None:
        """A packet in which the pattern is not found goes on as it is."""
        assert apply("payload: {replace: x, with: longer}", HEAD[4] / TCP() / b"abc") is None

    def test_tcp_keeps_its_length_by_padding(self) -> None:
        """A shorter text fits into a stream if it is filled up."""
        built = HEAD[6] / TCP(sport=80) / b"Server: nginx/1.25.3\r\n"
        text = r"payload: {replace: '(Server: \w+)/[\d.]+', with: '\1', pad: ' '}"
        data = apply(text, built)
        assert data is not None
        assert Packet(data).payload == b"Server: nginx       \r\n"
        assert checksum.verify(Packet(data))

    @pytest.mark.parametrize("text", ["{text: longer, pad: ' '}", "{replace: l, with: ll, pad: x}"])
    def test_nothing_is_padded_to_be_shorter(self, text: str) -> None:
        """With ``pad`` nothing may get longer, be it UDP."""
        with pytest.raises(CannotRewrite, match="longer than what it replaces"):
            apply(f"payload: {text}", HEAD[4] / UDP() / b"hello")

    def test_a_payload_does_not_grow_without_end(self) -> None:
        """A match at each byte and a long template end before they fill the memory."""
        long = "x" * 2000
        with pytest.raises(CannotRewrite, match="too long"):
            apply(f"payload: {{replace: '', with: {long}}}", HEAD[4] / UDP() / bytes(60_000))

    def test_a_payload_grows_up_to_what_the_kernel_takes(self) -> None:
        """An attribute of netlink has 65,531 bytes: that much is sent back, and no more."""
        for head, start in ((HEAD[4], 28), (HEAD[6], 48)):
            built = head / UDP() / b"-"
            data = apply(f"payload: {{text: {'x' * (MOST - start)}}}", built)
            assert data is not None
            assert len(data) == MOST == Packet(data).headers.end
            assert checksum.verify(Packet(data))
            with pytest.raises(CannotRewrite, match="too long"):
                apply(f"payload: {{text: {'x' * (MOST - start + 1)}}}", built)


class TestChecksums:
    """What is done about checksums that are not simply right."""

    @given(packets(), st.integers(0, 255))
    def test_a_checksum_left_to_the_nic_is_made(self, built: Any, ttl: int) -> None:
        """Whatever changes, it is made: nobody does so behind the queue."""
        assume(built.haslayer(TCP) or built.haslayer(UDP))
        own = built.ttl if built.version == 4 else built.hlim
        got = rewrite(f"ttl: {ttl}").apply(Packet(partial(built), checked=False))
        if ttl == own:
            assert got is None
        else:
            assert got == apply(f"ttl: {ttl}", built)

    @given(packets(), words)
    def test_a_wrong_checksum_is_not_made_right(self, built: Any, wrong: int) -> None:
        """What was damaged stays so: where it is covered it is not changed, elsewhere kept."""
        assume(built.haslayer(TCP) and (built[TCP].sport, built[TCP].dport) != (1, 2))
        built[TCP].chksum = wrong
        packet = Packet(raw(built))
        assume(checksum.state(packet) == checksum.WRONG)
        with pytest.raises(CannotRewrite, match="checksum is wrong"):
            rewrite("{sport: 1, dport: 2}").apply(packet)
        got = Packet(rewrite("{ttl: +1, dscp: 1}").apply(packet) or b"")
        start = packet.headers.transport
        assert got.data[start:] == packet.data[start:]

    @pytest.mark.parametrize("text", ["src: 198.51.100.7", "dport: 7", "payload: {text: x}"])
    def test_udp_without_a_checksum_gets_none(self, text: str) -> None:
        """0 stays 0, which over IPv4 means that there is none."""
        data = apply(text, HEAD[4] / UDP(chksum=0) / b"data")
        assert data is not None
        assert IP(data)[UDP].chksum == 0
        assert checksum.verify(Packet(data))

    @pytest.mark.parametrize("check", [None, 0])
    def test_a_tunnel_whose_content_has_no_checksum_yet_is_refused(self, check: int | None) -> None:
        """What is missing there is within what it carries, where it would be missing for ever."""
        built = HEAD[4] / UDP(dport=4789, chksum=check) / b"VXLAN"
        with pytest.raises(CannotRewrite, match="not made yet"):
            apply("ttl: 3", built, checked=False)

    def test_a_udp_checksum_of_zero_is_sent_as_ones(self) -> None:
        """A change that makes the sum 0 writes 0xffff (RFC 768)."""
        for head in HEAD.values():
            zeros = raw(head / UDP() / b"\0\0")
            own = zeros[-4:-2]
            data = apply(f"payload: {{hex: '{own.hex()}'}}", head / UDP() / b"\0\0")
            assert data is not None
            assert data[-4:-2] == b"\xff\xff"

    def test_what_is_behind_a_udp_datagram_is_kept(self) -> None:
        """IP's length may leave room behind UDP's, which its checksum does not cover."""
        inner = raw(HEAD[4] / UDP(dport=9) / b"data")
        built = IP(
            inner[:2] + struct.pack("!H", len(inner) + 6) + inner[4:10] + b"\0\0" + inner[12:]
        )
        data = raw(built)
        data = data[:10] + struct.pack("!H", checksum.ipv4(data[:20])) + data[12:] + b"behind"
        packet = Packet(data)
        assert packet.payload == b"data"
        got = rewrite("payload: {text: longer text}").apply(packet)
        assert got is not None
        new = Packet(got)
        assert (new.payload, got[new.headers.end :]) == (b"longer text", b"behind")
        assert checksum.verify(new)

    def test_extension_headers_and_options_are_passed_over(self) -> None:
        """The checksum is that of the header behind all of them."""
        six = HEAD[6] / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(dport=5) / b"data"
        text = '{dst: ["2001:db8::9", 192.0.2.9], dport: 6, payload: {text: other}}'
        four = IP(src="192.0.2.1", dst="192.0.2.2", options=[b"\x01"] * 4) / UDP(dport=5) / b"data"
        for built in (six, four):
            data = apply(text, built)
            assert data is not None
            packet = Packet(data)
            assert (packet.dport, packet.payload) == (6, b"other")
            assert str(packet.destination).endswith("9")
            assert checksum.verify(packet)
            assert raw(rebuilt(data)) == data


TRANSPORT = ["dport: 7", "payload: {text: x}"]
ADDRESSES = ['src: ["2001:db8::7", 198.51.100.7]']


class TestRefused:
    """Packets that go on as they are, and why."""

    @pytest.mark.parametrize(
        ("texts", "built", "reason"),
        [
            (
                TRANSPORT + ADDRESSES,
                HEAD[4].__class__(flags="MF") / UDP() / b"12345678",
                "fragment",
            ),
            (TRANSPORT, IP(frag=3, proto=17) / b"12345678", "fragment"),
            (TRANSPORT + ADDRESSES, HEAD[6] / IPv6ExtHdrFragment(m=1) / UDP() / b"", "fragment"),
            (TRANSPORT, HEAD[4] / ICMP(), "neither TCP nor UDP"),
            (TRANSPORT, IP(proto=132) / bytes(12), "neither TCP nor UDP"),
            (
                TRANSPORT + ADDRESSES,
                HEAD[6] / IPv6ExtHdrRouting(addresses=["2001:db8::3"]) / UDP() / b"x1",
                "routing header",
            ),
            (TRANSPORT + ADDRESSES, IPv6(nh=51) / (b"\x11\4" + bytes(22)) / UDP(), "AH"),
            (ADDRESSES, IP(proto=51) / bytes(24), "checksum is not known"),
            (ADDRESSES, IP(proto=33) / bytes(16), "checksum is not known"),
        ],
    )
    def test_what_cannot_be_changed_is_refused(
        self, texts: list[str], built: Any, reason: str
    ) -> None:
        """The reason is said; the TTL of all of them can be changed."""
        for text in texts:
            with pytest.raises(CannotRewrite, match=reason):
                apply(text, built)
        data = apply("ttl: 3", built)
        assert data is not None
        assert Packet(data).headers.ttl == 3

    @pytest.mark.parametrize("proto", [1, 2, 4, 47, 50, 132])
    def test_addresses_change_where_no_checksum_covers_them(self, proto: int) -> None:
        """Fragments of such protocols too."""
        for flags in ("", "MF"):
            old, new = (
                raw(IP(src=src, dst="192.0.2.2", proto=proto, flags=flags) / bytes(32))
                for src in ("192.0.2.1", "198.51.100.7")
            )
            assert rewrite("src: 198.51.100.7").apply(Packet(old)) == new

    def test_a_part_of_a_packet_is_never_sent_on(self) -> None:
        """Where the queue's copy is cut, or nothing makes sense, not even the TTL is set."""
        data = raw(HEAD[4] / UDP() / bytes(100))
        for packet, reason in (
            (Packet(data[:60], len(data)), "only a part"),
            (Packet(data[:-1]), "malformed"),
            (Packet(b""), "malformed"),
            (Packet(bytes(40)), "malformed"),
        ):
            with pytest.raises(CannotRewrite, match=reason):
                rewrite("ttl: 3").apply(packet)

    def test_what_the_kernel_does_not_take_back_is_refused(self) -> None:
        """A packet may have 65,535 bytes, an answer to the queue four less."""
        with pytest.raises(CannotRewrite, match="too long"):
            apply("ttl: 3", HEAD[4] / UDP() / bytes(MOST - 27))

    @given(st.binary(max_size=90), st.sampled_from([0x45, 0x46, 0x60]), st.integers(0, 255))
    def test_no_bytes_make_it_raise_anything_else(
        self, data: bytes, first: int, proto: int
    ) -> None:
        """Whatever comes is changed, left or refused; its length on paper is that of the bytes."""
        body = bytearray(data)
        if first != 0x60 and len(body) > 9:
            body[1:3] = (len(body) + 1).to_bytes(2, "big")
            body[8] = proto
        elif len(body) > 39:
            body[3:5] = (len(body) - 39).to_bytes(2, "big")
            body[5] = proto
        packet = Packet(bytes([first]) + bytes(body))
        text = '{ttl: +1, src: ["::1", 127.0.0.1], sport: 5, payload: {replace: a, with: bb}}'
        for each in (text, "ttl: +1", 'dst: ["::1", 127.0.0.1]', "dport: 1"):
            try:
                new = rewrite(each).apply(packet)
            except CannotRewrite:
                continue
            assert new is None or not Packet(new).malformed


class TestReading:
    """What can be written in ``set:``, and what is said where it cannot."""

    def test_it_is_read(self) -> None:
        """Fields become numbers and packed addresses; what is not named stays."""
        found = rewrite("{ttl: 5, ecn: ce, src: [10.0.0.1], sport: 80, payload: {text: x}}")
        assert (found.ttl, found.step, found.ecn, found.dscp, found.sport) == (5, 0, 3, None, 80)
        assert found.src == (ipaddress.ip_address("10.0.0.1").packed, b"")
        assert found.dst == (b"", b"")
        assert not found.regex
        assert rewrite("payload: {replace: a, with: b}").regex
        with pytest.raises(AttributeError):
            found.ttl = 6  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("text", "place", "message"),
        [
            ("{}", "1:1", "nothing is set here"),
            ("[ttl]", "1:1", "a mapping is expected"),
            ("tll: 5", "1:1", 'no key "tll"'),
            ("ttl: 256", "1:6", "out of range"),
            ("ttl: -0", "1:6", "no change of a TTL"),
            ("ttl: '+256'", "1:6", "no change of a TTL"),
            ("ttl: often", "1:6", "an integer is expected"),
            ("dscp: 64", "1:7", "out of range"),
            ("dscp: af44", "1:7", '"af44" is not known'),
            ("ecn: ect2", "1:6", '"ect2" is not known'),
            ("src: 10.0.0.0/8", "1:6", "is no IP address"),
            ("src: fe80::1%eth0", "1:6", "is no IP address"),
            ("src: [10.0.0.1, 10.0.0.2]", "1:17", "an IPv4 address already"),
            ("dst: []", "1:6", "an address is expected"),
            ("dst: 10", "1:6", "text is expected"),
            ("sport: 0", "1:8", "out of range"),
            ("dport: 65536", "1:8", "out of range"),
            ("payload: x", "1:10", "a mapping is expected"),
            ("payload: {}", "1:10", "set in one way"),
            ("payload: {text: a, hex: 00}", "1:10", "set in one way"),
            ("payload: {text: a, with: b}", "1:20", 'belongs to "replace"'),
            ("payload: {hex: 0}", "1:16", "not in hex"),
            ("payload: {base64: a}", "1:19", "not in base64"),
            ("payload: {replace: a}", "1:10", '"with" is missing'),
            ("payload: {replace: '(', with: b}", "1:20", "no regular expression"),
            ("payload: {replace: a, with: '\\1'}", "1:29", "cannot be put in"),
            ("payload: {replace: a, with: '\\g<x>'}", "1:29", "cannot be put in"),
            ("payload: {replace: a, with: '€'}", "1:29", "is no byte"),
            ("payload: {replace: a, with: b, count: 0}", "1:39", "out of range"),
            ("payload: {text: a, pad: ''}", "1:25", "is not one byte"),
            ("payload: {text: a, pad: '\\1'}", "1:25", "cannot be put in"),
        ],
    )
    def test_what_cannot_be_is_said_with_its_place(
        self, text: str, place: str, message: str
    ) -> None:
        """Each error points at what is wrong."""
        with pytest.raises(BadInput, match=message) as caught:
            rewrite(text)
        assert str(caught.value.where) == f"rules.yaml:{place}"
