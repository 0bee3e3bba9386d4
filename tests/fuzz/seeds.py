"""Packets and messages as they are seen on a wire, for others to break."""

from __future__ import annotations

import struct
from typing import Any

from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRROPT, DNSRRSOA, DNSRRSRV
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.sctp import SCTP
from scapy.packet import Raw, raw

FOUR = IP(src="192.0.2.1", dst="198.51.100.2")
SIX = IPv6(src="2001:db8::1", dst="2001:db8::2")
CHAIN = (
    SIX
    / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 12)])
    / IPv6ExtHdrRouting(addresses=["2001:db8::3"])
    / IPv6ExtHdrFragment(nh=51, id=7)
    / AH(nh=60, payloadlen=4, spi=1, seq=2, icv=b"i" * 12)
    / IPv6ExtHdrDestOpt()
)

DNS_MESSAGES: tuple[bytes, ...] = tuple(
    raw(message)
    for message in (
        DNS(id=1, qd=DNSQR(qname="www.example.com")),
        DNS(id=2, qd=DNSQR(qname="example.com", qtype="AAAA"), ar=DNSRROPT(rclass=1232)),
        DNS(
            id=3,
            qr=1,
            qd=DNSQR(qname="www.example.com"),
            an=[
                DNSRR(rrname="www.example.com", type="CNAME", rdata="edge.example.net"),
                DNSRR(rrname="edge.example.net", type="A", rdata="203.0.113.5"),
                DNSRR(rrname="edge.example.net", type="AAAA", rdata="2001:db8::5"),
                DNSRR(rrname="example.com", type="TXT", rdata=[b"v=spf1 -all", b"\x00two"]),
                DNSRRMX(rrname="example.com", preference=10, exchange="mail.example.com"),
                DNSRRSRV(rrname="_sip._tcp.x.com", priority=1, weight=2, port=5060, target="a.b"),
            ],
            ns=DNSRRSOA(rrname="example.com", mname="ns.example.com", rname="root.example.com"),
        ).compress(),
        DNS(id=4, qr=1, rcode=3, qd=DNSQR(qname="nowhere.test")),
        DNS(id=0, qr=1, aa=1, qd=[], an=DNSRR(rrname="p.local", type="A", rdata="192.0.2.9")),
    )
)
HTTP_HEADS: tuple[bytes, ...] = (
    b"GET /index.html?q=1 HTTP/1.1\r\nHost: www.Example.com:8080\r\nUser-Agent: curl/8\r\n\r\n",
    b"POST http://user@example.org/form HTTP/1.0\r\nHost: example.org\r\nX: a\r\n b\r\n\r\nbody",
    b"CONNECT [2001:db8::1]:443 HTTP/1.1\nHost: [2001:db8::1]:443\n\n",
    b"HTTP/1.1 404 Not Found\r\nServer: x\r\nContent-Length: 0\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
)
#: A ClientHello for example.com (RFC 8446), as TCP begins with it.
_NAME = b"example.com"
_SNI = struct.pack("!HHHBH", 0, len(_NAME) + 5, len(_NAME) + 3, 0, len(_NAME)) + _NAME
_ALPN = struct.pack("!HHH", 16, 14, 12) + b"\x02h2\x08http/1.1"
_BODY = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
_BODY += struct.pack("!H", len(_SNI + _ALPN)) + _SNI + _ALPN
CLIENT_HELLO = (
    struct.pack("!BHH", 22, 0x301, len(_BODY) + 4) + b"\x01" + len(_BODY).to_bytes(3, "big") + _BODY
)


def _packets() -> list[Any]:
    tcp = TCP(sport=40000, dport=443, flags="PA", options=[("Timestamp", (1, 2)), ("NOP", None)])
    udp = UDP(sport=40000, dport=53)
    big = UDP(sport=1, dport=2) / Raw(b"x" * 3000)
    return [
        FOUR / tcp / Raw(CLIENT_HELLO),
        SIX / tcp / Raw(HTTP_HEADS[0]),
        IP(options=b"\x94\x04\0\0\x01\x01\x01\0") / TCP(flags="S"),
        FOUR / udp / Raw(DNS_MESSAGES[0]),
        SIX / udp / Raw(DNS_MESSAGES[2]),
        CHAIN / tcp / Raw(b"data"),
        CHAIN / UDP(),
        FOUR / ICMP(type=8) / Raw(b"ping"),
        FOUR / ICMP(type=3, code=3) / FOUR / udp,
        SIX / ICMPv6EchoRequest(data=b"ping"),
        SIX / ICMPv6ND_NS(tgt="2001:db8::2"),
        SIX / ICMPv6PacketTooBig() / SIX / udp / Raw(b"1234"),
        FOUR / SCTP(sport=5, dport=6) / Raw(b"chunk"),
        FOUR / ESP(spi=1, seq=2, data=b"secret"),
        SIX / ESP(spi=1, seq=2, data=b"secret"),
        IP(proto=136) / Raw(struct.pack("!4H", 7, 8, 12, 0) + b"lite"),
        IP(proto=33) / Raw(struct.pack("!2H", 9, 10) + b"\x04\0\0\0" + bytes(8)),
        IP(proto=47) / Raw(b"\0\0\x08\0" + bytes(20)),
        SIX / IPv6ExtHdrDestOpt(nh=59),
        *fragment(FOUR / big, 1000),
        *fragment6(SIX / IPv6ExtHdrFragment(id=9) / big, 1280),
    ]


PACKETS: tuple[bytes, ...] = tuple(raw(packet) for packet in _packets())
