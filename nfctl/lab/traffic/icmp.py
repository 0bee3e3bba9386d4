"""The little of ICMP and ICMPv6 that a lab needs: echo, and errors from the error queue.

RFC 792 and RFC 4443 for the packets, ``struct sock_extended_err`` (linux/errqueue.h, ip(7))
for the errors.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

_IP_RECVERR = 11  # linux/in.h; also the type of the control message
_IPV6_RECVERR = 25  # linux/in6.h
_ORIGIN_ICMP = 2  # linux/errqueue.h
_ORIGIN_ICMP6 = 3
_EXTENDED = struct.Struct("=IBBBxII")  # errno, origin, type, code, pad, info, data

# The names that iptables gives them in `-j REJECT --reject-with`, where it has one.
_NAMES = {
    (4, 3, 0): "icmp-net-unreachable",
    (4, 3, 1): "icmp-host-unreachable",
    (4, 3, 2): "icmp-proto-unreachable",
    (4, 3, 3): "icmp-port-unreachable",
    (4, 3, 9): "icmp-net-prohibited",
    (4, 3, 10): "icmp-host-prohibited",
    (4, 3, 13): "icmp-admin-prohibited",
    (4, 11, 0): "ttl-exceeded",
    (6, 1, 0): "icmp6-no-route",
    (6, 1, 1): "icmp6-adm-prohibited",
    (6, 1, 3): "icmp6-addr-unreachable",
    (6, 1, 4): "icmp6-port-unreachable",
    (6, 1, 5): "icmp6-policy-fail",
    (6, 1, 6): "icmp6-reject-route",
    (6, 3, 0): "ttl-exceeded",
}

_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply


class IcmpError(NamedTuple):
    """An ICMP error: what it is called, the errno it stands for, and who sent it."""

    name: str
    errno: int
    sender: str


def ask_for_errors(sock: socket.socket) -> None:
    """Have ICMP errors about this socket's packets put into its error queue."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


def read_error(sock: socket.socket) -> IcmpError | None:
    """Take the oldest ICMP error from the queue of a socket, or None; never waits."""
    try:
        _, messages, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return None
    for level, kind, data in messages:
        wanted = {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
        if (level, kind) in wanted:
            number, origin, icmp_type, code, _, _ = _EXTENDED.unpack_from(data)
            if origin in {_ORIGIN_ICMP, _ORIGIN_ICMP6}:
                version = 4 if origin == _ORIGIN_ICMP else 6
                name = _NAMES.get((version, icmp_type, code), f"icmp-{icmp_type}/{code}")
                return IcmpError(name, number, _address(version, data[_EXTENDED.size :]))
    return None


def _address(version: int, sockaddr: bytes) -> str:
    """Read ``struct sockaddr_in`` or ``sockaddr_in6``: the address of who sent the error."""
    if version == 4:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])


def new_identity() -> bytes:
    """Return four random bytes: an echo request's identifier and sequence number."""
    return os.urandom(4)


def echo_request(version: int, identity: bytes) -> bytes:
    """Return an echo request; for IPv6 the kernel fills in the checksum."""
    kind = _ECHO[version][0]
    packet = struct.pack("!BBH", kind, 0, 0) + identity + b"nfctl lab"
    if version == 4:
        packet = struct.pack("!BBH", kind, 0, _checksum(packet)) + packet[4:]
    return packet


def is_echo_reply(version: int, packet: bytes, identity: bytes) -> bool:
    """Whether a received packet answers our request; IPv4 raw sockets give the IP header too."""
    if version == 4:
        packet = packet[(packet[0] & 0xF) * 4 :]
    return packet[:1] == bytes([_ECHO[version][1]]) and packet[4:8] == identity


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
