"""A program on the device that takes packets from an NFQUEUE and rewrites their payload.

It is made with NetfilterQueue alone. Letters change their case, so what was rewritten can be
told from what was not, and both are known byte by byte. The packet's own checksums are checked
before, and made anew after (RFC 1071).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nfctl.lab import fork
from tests.vm import guard

if TYPE_CHECKING:
    from collections.abc import Iterator

SWAP = bytes(ord(chr(n).swapcase()) if chr(n).isascii() else n for n in range(256))
_TCP, _UDP = 6, 17
_READY = 10.0  # seconds
# How many bytes of a packet are handed over. NetfilterQueue reads each message into 4,096 and
# leaves 80 for what else is in it; for a packet from a NIC the kernel needs up to 150. A message
# that does not fit is lost, and its packet never gets a verdict.
COPIED = 3900

# linux/netfilter/nfnetlink.h, nfnetlink_queue.h
_SUBSYS_QUEUE = 3
_MSG_CONFIG = 2
_NLM_F_REQUEST = 1
_CFG_MASK, _CFG_FLAGS = 4, 5
_F_GSO = 4


@dataclass
class Tally:
    """What a rewriter saw and did; ``longest`` is the longest whole packet in bytes."""

    packets: int = 0
    rewritten: int = 0
    truncated: int = 0
    wrong_checksums: int = 0
    longest: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How to rewrite.

    ``gso``: take segments together, as the NIC or the sender left them (NFQA_CFG_F_GSO), where
    the kernel else cuts them into packets. ``fix``: make the checksums anew.
    """

    queue: int
    gso: bool = False
    fix: bool = True


class Rewriter:
    """The running program; ``tally`` is there when the block of :func:`rewriting` has ended."""

    tally: Tally


@contextlib.contextmanager
def rewriting(queue: int, *, gso: bool = False, fix: bool = True) -> Iterator[Rewriter]:
    """Run the program during the ``with`` block; it listens when the block begins."""
    guard.require()
    ours, theirs = socket.socketpair()
    plan = Plan(queue, gso, fix)
    child = fork.Child(_serve, plan, theirs, ours)
    theirs.close()
    rewriter = Rewriter()
    try:
        ours.settimeout(_READY)
        if not ours.recv(1):
            child.result(_READY)  # raises what went wrong
        yield rewriter
        ours.close()
        rewriter.tally = child.result(_READY)
    finally:
        ours.close()
        child.kill()
    assert rewriter.tally.errors == []


def _serve(plan: Plan, control: socket.socket, ours: socket.socket) -> Tally:
    """Be the program: take packets until the other end of ``control`` is closed."""
    from netfilterqueue import NetfilterQueue

    ours.close()
    tally = Tally()

    def take(packet: Any) -> None:
        try:
            changed = rewrite(packet.get_payload(), plan, tally)
            if changed is not None:
                packet.set_payload(changed)
        except Exception as error:  # noqa: BLE001 - the tests' process tells
            tally.errors.append(repr(error))
        packet.accept()

    queue = NetfilterQueue()
    queue.bind(plan.queue, take, max_len=8192, range=COPIED, sock_len=1 << 23)
    try:
        if plan.gso:
            _configure(queue.get_fd(), plan.queue, _F_GSO)
        control.send(b"+")
        while control not in select.select([control, queue.get_fd()], [], [])[0]:
            queue.run(block=False)
    finally:
        queue.unbind()
    return tally


def _configure(descriptor: int, queue: int, flags: int) -> None:
    """Set flags of a queue, which NetfilterQueue has no call for."""
    head = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(queue))
    attributes = b"".join(
        struct.pack("=HH", 8, kind) + struct.pack("!I", flags) for kind in (_CFG_MASK, _CFG_FLAGS)
    )
    length = 16 + len(head) + len(attributes)
    kind = _SUBSYS_QUEUE << 8 | _MSG_CONFIG
    message = struct.pack("=IHHII", length, kind, _NLM_F_REQUEST, 0, 0) + head + attributes
    with socket.fromfd(descriptor, socket.AF_NETLINK, socket.SOCK_RAW) as sock:
        sock.sendto(message, (0, 0))


def rewrite(packet: bytes, plan: Plan, tally: Tally) -> bytes | None:
    """Return the packet with its payload rewritten, or None to leave it as it is."""
    version = packet[0] >> 4
    if version == 4:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        length = int.from_bytes(packet[2:4], "big")
        addresses = packet[12:20]
    else:
        start, protocol = 40, packet[6]
        length = 40 + int.from_bytes(packet[4:6], "big")
        addresses = packet[8:40]
    tally.packets += 1
    tally.longest = max(tally.longest, length)
    if length > len(packet):
        tally.truncated += 1  # its end is not here: to write it back would cut it off
        return None
    pseudo = addresses + struct.pack("!II", length - start, protocol)
    # With NFQA_CFG_F_GSO a checksum may be one that only the NIC would have made.
    if not plan.gso and checksum(pseudo + packet[start:]) != 0:
        tally.wrong_checksums += 1
    at = start + (16 if protocol == _TCP else 6)
    data = start + ((packet[start + 12] >> 4) * 4 if protocol == _TCP else 8)
    if data == length:
        return None
    changed = bytearray(packet)
    changed[data:] = changed[data:].translate(SWAP)
    tally.rewritten += 1
    if plan.fix:
        changed[at : at + 2] = b"\0\0"
        value = checksum(pseudo + changed[start:])
        # No checksum is 0 in UDP (RFC 768): that would mean there is none.
        changed[at : at + 2] = (value or (0xFFFF if protocol == _UDP else 0)).to_bytes(2, "big")
    return bytes(changed)


def checksum(data: bytes) -> int:
    """Return the Internet checksum; over data that includes the right one it is 0.

    Adding 16 bits at a time with the carry coming back is a sum modulo 65,535.
    """
    return -int.from_bytes(data + b"\0" * (len(data) % 2), "big") % 0xFFFF
