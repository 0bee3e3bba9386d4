"""The lab's DNS against scapy's reading of RFC 1035, and against any bytes at all."""

from __future__ import annotations

import socket
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRROPT
from scapy.packet import raw

from nfctl.errors import BadInput
from nfctl.lab import dns

NAMES = {
    "client": ("192.0.2.10", "2001:db8:1::10"),
    "client.lab": ("192.0.2.10", "2001:db8:1::10"),
    "www.Example.test": ("10.77.0.10", "10.77.0.11", "fd77::10"),
    "four.example.test": ("10.77.0.4",),
    "nothing.example.test": (),
    "big.lab": tuple(f"10.9.0.{n + 1}" for n in range(90)),
}
A, PTR, MX, AAAA, ANY, AXFR = 1, 12, 15, 28, 255, 252


def ask(name: str, kind: int = A, *, limit: int = 512, **fields: Any) -> Any:
    """Have scapy write a query, and read our answer to it."""
    query = DNS(id=0x1234, rd=1, qd=DNSQR(qname=name, qtype=kind), **fields)
    answer = dns.answer(raw(query), NAMES, limit=limit)
    assert answer is not None
    assert len(answer) <= max(limit, 1232)
    read = DNS(answer)
    assert (read.id, read.qr, read.rd, read.ra) == (0x1234, 1, 1, 0)
    return read


def data(answer: Any) -> list[str]:
    """Return the data of the answer's records, after a look at what they all have in common."""
    found = []
    for record in answer.an:
        assert (record.rclass, record.ttl) == (1, 0)
        assert record.rrname == answer.qd[0].qname
        rdata = record.rdata
        found.append(rdata.decode() if isinstance(rdata, bytes) else rdata)
    return found


class TestZone:
    """What is asked in scapy's bytes is answered in bytes that scapy reads."""

    @pytest.mark.parametrize(
        ("name", "kind", "expected"),
        [
            ("client", A, ["192.0.2.10"]),
            ("client.lab.", AAAA, ["2001:db8:1::10"]),
            ("www.example.test", A, ["10.77.0.10", "10.77.0.11"]),
            ("www.example.test", ANY, ["10.77.0.10", "10.77.0.11", "fd77::10"]),
            ("10.2.0.192.in-addr.arpa", PTR, ["client.", "client.lab."]),
            ("11.0.77.10.in-addr.arpa", ANY, ["www.Example.test."]),
            ("0.1" + ".0" * 26 + ".7.7.d.f.ip6.arpa", PTR, ["www.Example.test."]),
        ],
    )
    def test_records(self, name: str, kind: int, expected: list[str]) -> None:
        """Addresses of both families, names of both, and both at once come back."""
        answer = ask(name, kind)
        assert (answer.rcode, answer.aa, answer.tc) == (0, 1, 0)
        assert data(answer) == expected

    @pytest.mark.parametrize(
        ("name", "kind", "code"),
        [
            ("nowhere.test", A, 3),
            ("client.nowhere", A, 3),
            ("x.client.lab", A, 3),
            ("four.example.test", AAAA, 0),  # the name exists
            ("nothing.example.test", A, 0),  # and has no address
            ("client", MX, 0),
            ("lab", A, 0),  # something is below it (RFC 8020)
            ("example.test", A, 0),
            ("in-addr.arpa", PTR, 0),
        ],
    )
    def test_nothing(self, name: str, kind: int, code: int) -> None:
        """A name that is not there is told from one without such a record; both bring the SOA."""
        answer = ask(name, kind)
        assert (answer.rcode, answer.aa, answer.ancount, answer.nscount) == (code, 1, 0, 1)
        assert (answer.ns[0].type, answer.ns[0].rrname) == (6, b".")

    def test_case(self) -> None:
        """Case does not matter, and comes back as it was asked (also what 0x20 hides there)."""
        answer = ask("wWw.eXample.TEST")
        assert answer.qd[0].qname == b"wWw.eXample.TEST."
        assert data(answer) == ["10.77.0.10", "10.77.0.11"]

    def test_a_dot_within_a_label(self) -> None:
        """A label that holds a dot is not two labels."""
        query = dns.query("xx-yy.lab").replace(b"\x05xx-yy\x03lab", b"\x0aclient.lab")
        answer = DNS(dns.answer(query, NAMES))
        assert answer.rcode == 3

    def test_truncation(self) -> None:
        """What is too long for UDP is truncated and says so; EDNS allows more, and TCP all."""
        short = ask("big.lab")
        assert (short.tc, short.ancount) == (1, 0)
        assert short.qd[0].qname == b"big.lab."
        assert ask("big.lab", ar=[DNSRROPT(rclass=65000)]).tc == 1
        full = ask("big.lab", limit=65535)
        assert (full.tc, full.ancount) == (0, 90)
        assert data(full) == list(NAMES["big.lab"])

    @pytest.mark.parametrize(("size", "truncated"), [(0, 1), (512, 1), (1231, 0), (9999, 0)])
    def test_edns_size(self, size: int, truncated: int) -> None:
        """The size that the client takes counts, but never as less than 512 bytes."""
        names = {"some.lab": tuple(f"10.0.0.{n}" for n in range(1, 60))}
        query = DNS(id=1, qd=DNSQR(qname="some.lab"), ar=[DNSRROPT(rclass=size)])
        answer = dns.answer(raw(query), names)
        assert answer is not None
        read = DNS(answer)
        assert (read.tc, read.arcount) == (truncated, 1)
        assert (read.ar[0].type, read.ar[0].rclass) == (41, 1232)

    def test_edns(self) -> None:
        """EDNS is answered with EDNS, its DO flag kept; a version to come gets BADVERS."""
        answer = ask("client", ar=[DNSRROPT(z=0x8000)])
        assert (answer.ar[0].type, answer.ar[0].z, answer.ar[0].extrcode) == (41, 0x8000, 0)
        assert data(answer) == ["192.0.2.10"]
        assert ask("client").arcount == 0
        late = ask("client", ar=[DNSRROPT(version=1)])
        assert (late.rcode, late.ar[0].extrcode, late.ar[0].version) == (0, 1, 0)
        assert late.ancount == 0

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"opcode": 2}, 4),
            ({"opcode": 5}, 4),
            ({"qd": []}, 1),
            ({"qd": [DNSQR(qname="client"), DNSQR(qname="client")]}, 1),
            ({"qd": [DNSQR(qname="client", qclass=3)]}, 5),
            ({"qd": [DNSQR(qname="client", qtype=AXFR)]}, 5),
            ({"ar": [DNSRROPT(), DNSRROPT()]}, 1),
            ({"arcount": 1}, 1),
        ],
    )
    def test_refusals(self, fields: dict[str, Any], code: int) -> None:
        """What is not served, not known or not well-formed gets the code that says so."""
        query = DNS(**({"id": 7, "qd": DNSQR(qname="client")} | fields))
        answer = dns.answer(raw(query), NAMES)
        assert answer is not None
        read = DNS(answer)
        assert (read.id, read.qr, read.rcode, read.ancount) == (7, 1, code, 0)
        assert read.opcode == fields.get("opcode", 0)

    def test_no_answer(self) -> None:
        """An answer is never answered, nor is what has no header: two servers never quarrel."""
        answer = dns.answer(dns.query("client"), NAMES)
        assert answer is not None
        assert dns.answer(answer, NAMES) is None
        for length in range(12):
            assert dns.answer(dns.query("client")[:length], NAMES) is None

    @pytest.mark.parametrize("name", ["a..b", ".a", "x" * 64, ".".join(["x" * 50] * 6)])
    def test_names_that_cannot_be(self, name: str) -> None:
        """A name that no message can hold is refused when the zone is made."""
        with pytest.raises(BadInput, match="no DNS name"):
            dns.Zone({name: ()})

    def test_addresses_that_cannot_be(self) -> None:
        """So is what is no address."""
        with pytest.raises(BadInput, match=r"the name client: '192\.0\.2\.300'"):
            dns.Zone({"client": ("192.0.2.300",)})


class TestClient:
    """Our queries are read by scapy, and scapy's answers by us."""

    @pytest.mark.parametrize("kind", ["A", "aaaa", "MX", "ANY"])
    def test_query(self, kind: str) -> None:
        """Scapy reads in a query what was to be asked."""
        read = DNS(dns.query("www.Example.test.", kind, edns=1232, identity=77))
        assert (read.id, read.qr, read.rd, read.qdcount) == (77, 0, 1, 1)
        assert read.qd[0].qname == b"www.Example.test."
        assert read.qd[0].qtype == dns.Kind[kind.upper()]
        assert read.ar[0].rclass == 1232

    @pytest.mark.parametrize("address", ["192.0.2.10", "2001:db8:1::10"])
    def test_query_for_an_address(self, address: str) -> None:
        """The PTR record of an address is asked for by the address."""
        reply = dns.parse_answer(dns.answer(dns.query(address, "PTR"), NAMES) or b"")
        assert [record.data for record in reply.records] == ["client", "client.lab"]
        assert {record.name for record in reply.records} == {reply.name}

    def test_query_that_cannot_be(self) -> None:
        """Names and types that cannot be asked are refused in words."""
        with pytest.raises(BadInput, match="no DNS name"):
            dns.query("a..b")
        with pytest.raises(BadInput, match='"AX" is no type of DNS record'):
            dns.query("a", "AX")

    def test_parse_answer(self) -> None:
        """Answers of scapy's, compressed, with other types and codes, are read."""
        from scapy.layers.dns import DNSRR, dns_compress

        packet = DNS(
            id=5, qr=1, aa=1, tc=1, rcode=2, qd=DNSQR(qname="a.example.test"),
            an=[
                DNSRR(rrname="a.example.test", type="CNAME", rdata="b.example.test", ttl=60),
                DNSRR(rrname="b.example.test", type="A", rdata="10.0.0.1", ttl=7),
                DNSRR(rrname="b.example.test", type="AAAA", rdata="fd00::1", ttl=7),
                DNSRR(rrname="b.example.test", type=99, rdata=b"\x01\x02", ttl=7),
            ],
        )  # fmt: skip
        compressed = dns_compress(packet)
        assert len(raw(compressed)) < len(raw(packet))
        for each in (packet, compressed):
            reply = dns.parse_answer(raw(each))
            assert reply[:5] == (5, "SERVFAIL", True, True, "a.example.test")
            assert reply.records == (
                ("a.example.test", "CNAME", 60, "b.example.test"),
                ("b.example.test", "A", 7, "10.0.0.1"),
                ("b.example.test", "AAAA", 7, "fd00::1"),
                ("b.example.test", "TYPE99", 7, "0102"),
            )

    def test_codes(self) -> None:
        """A code by EDNS is read whole, and one without a name by its number."""
        late = dns.answer(raw(DNS(qd=DNSQR(qname="client"), ar=[DNSRROPT(version=1)])), NAMES)
        assert dns.parse_answer(late or b"").code == "BADVERS"
        assert dns.parse_answer(raw(DNS(qr=1, rcode=9, qd=[]))).code == "CODE9"

    def test_pointers_that_never_end(self) -> None:
        """A name that points to itself, or forward, is refused."""
        header = bytes.fromhex("0001 8000 0001 0000 0000 0000")
        for name in (b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\x0e\0", b"\x80a\0"):
            with pytest.raises(BadInput, match="no answer in DNS"):
                dns.parse_answer(header + name + b"\0\1\0\1")


# Any bytes, and queries that are nearly right.
FIELDS = st.lists(st.sampled_from([0, 1, 2, 41, 255, 0x100, 0x8000, 0xC00C, 0xFFFF]), max_size=20)
NEARLY = st.builds(
    lambda fields, tail: b"".join(field.to_bytes(2) for field in fields) + tail,
    FIELDS,
    st.binary(max_size=64),
)
CUT = st.builds(
    lambda at, size, filling: (
        (query := dns.query("www.example.test", edns=1232))[:at] + filling + query[at + size :]
    ),
    st.integers(0, 45),
    st.integers(0, 6),
    st.binary(max_size=6),
)
LABEL = st.text(string.ascii_letters + string.digits + "-_é", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


class TestAnyBytes:
    """Parsing is total."""

    zone = dns.Zone(NAMES)

    @given(st.one_of(st.binary(max_size=600), NEARLY, CUT))
    def test_server(self, query: bytes) -> None:
        """Any bytes get an answer that is within bounds and well-formed, or none."""
        answer = self.zone.answer(query)
        if answer is not None:
            assert len(answer) <= 1232
            assert answer[:2] == query[:2]
            assert dns.parse_answer(answer).identity == int.from_bytes(query[:2])

    @given(st.one_of(st.binary(max_size=600), NEARLY, CUT))
    def test_client(self, answer: bytes) -> None:
        """Any bytes are an answer, or BadInput."""
        for data in (answer, answer[:2] + b"\x80" + answer[3:]):
            try:
                reply = dns.parse_answer(data)
            except BadInput:
                continue
            assert reply.identity == int.from_bytes(data[:2])

    @given(st.dictionaries(NAME, st.lists(st.ip_addresses(), max_size=3), max_size=5))
    def test_round_trip(self, names: dict[str, list[Any]]) -> None:
        """Whatever the names are, each is found, and so is the way back from each address."""
        zone = dns.Zone({name: tuple(map(str, found)) for name, found in names.items()})
        for name, found in names.items():
            for kind, version in (("A", 4), ("AAAA", 6)):
                query = dns.query(name, kind)
                reply = dns.parse_answer(zone.answer(query, limit=dns.TCP_LIMIT) or b"")
                expected = {str(address) for address in found if address.version == version}
                assert {record.data for record in reply.records} >= expected
                assert reply.code == "NOERROR"
            for address in found:
                reply = dns.parse_answer(zone.answer(dns.query(str(address), "PTR")) or b"")
                back = dns.parse_answer(zone.answer(dns.query(name)) or b"").name
                assert back in {record.data for record in reply.records}


def test_addresses_are_the_kernel_s() -> None:
    """What is sent is the address as the sockets write it."""
    answer = dns.answer(dns.query("client", "AAAA"), NAMES)
    assert answer is not None
    assert answer.endswith(socket.inet_pton(socket.AF_INET6, "2001:db8:1::10"))
