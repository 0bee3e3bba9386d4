"""A copy of the firewall that says what becomes of first packets.

A packet comes to the copy as it would come to the host: through the interface that it would
arrive on, or from a socket of the host's own. What became of it is read from the copy's
conntrack: an entry is there when the packet has passed all hooks, and its reply tuple says how
it was translated. A packet from the host to itself has its entry before it has passed INPUT;
whether it has, a raw(7) socket tells, which gets what is delivered.

:class:`Rehearsal` is the parent's end, :class:`_Stage` lives in the child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.control import rehearsal
from nfctl.control.flush import packets
from nfctl.control.rehearsal.host import LINK, MOST_ROUTES, Host, write_sysctls
from nfctl.errors import NfctlError, Unsupported
from nfctl.kernel import flows
from nfctl.lab import fork

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from multiprocessing.connection import Connection

    from nfctl.policy.wanted import WantedSet

#: The packet passed, and conntrack was told to let it be.
UNTRACKED: Final = b"-"
#: What begins with it is no fate: why the packet cannot be sent in the copy.
UNSENT: Final = b"!"

#: What became of a packet: an entry's reply tuple and zones, None for dropped, or the above.
#: (A tuple begins with the length of its addresses' attribute, 20 or 44, which neither does.)
Fate = bytes | None

#: Entries that are in a copy at once, at most.
BATCH: Final = 4096

_TIMEOUT = 120.0  # seconds for one request
_SETTLE = 256  # packets, after which is waited until all of them are through
_PATIENCE = 2000  # milliseconds
_BUFFER = 8 << 20  # bytes
_RCVBUFFORCE = 33
_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_ETH_IP, _ETH_IPV6, _ETH_EXPERIMENT = 0x0800, 0x86DD, 0x88B5
_FAR = bytes.fromhex("02000000fffe")  # the sender's Ethernet address
_NEWLINK, _NOARP = 16, 0x80
_LOOPBACK = 1
_AFTER = (  # sysctls of the copy, whatever the host's are
    ("netfilter/nf_conntrack_checksum", "0"),
    ("ipv4/icmp_echo_ignore_all", "1"),
    ("ipv6/icmp/echo_ignore_all", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/all/log_martians", "0"),
    ("ipv4/conf/default/log_martians", "0"),
)


def batch() -> int:
    """Return how many entries may be in a copy at once: far fewer than conntrack takes."""
    try:
        most = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    except (OSError, ValueError):
        most = 0
    return max(1, min(BATCH, most // 4)) if most else BATCH  # 0: no limit


class Opening(NamedTuple):
    """A flow's beginning: where its first packet comes from, the packet, and the tuple.

    ``interface`` is an index, 0 for the host itself; ``scope`` the interface that a link-local
    destination is on; ``original`` as the kernel writes it.
    """

    interface: int
    scope: int
    original: bytes
    packet: bytes


class Rehearsal:
    """A child with a copy of the calling thread's namespace. Close it; it ends with us, too.

    ``interfaces`` and ``sets`` are names, ``want`` are sets that are to be as it says; ``zones``
    and ``untracked`` say whether the rules have such.
    Raises what :class:`nfctl.control.rehearsal.Copy` raises.
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        sets: Iterable[str],
        want: Sequence[WantedSet] = (),
        *,
        zones: bool = False,
        untracked: bool = False,
    ) -> None:
        self._pipe, theirs = Pipe()
        arguments = (list(interfaces), list(sets), list(want), zones, untracked)
        self._child = rehearsal.start(_serve, theirs, self._pipe, arguments)
        theirs.close()

    def close(self) -> None:
        """End the child, and with it the copy."""
        self._pipe.close()
        self._child.kill()

    def ask(self, what: str, *arguments: Any) -> None:
        """Ask for something that :class:`_Stage` does; :meth:`answer` gives what it returns."""
        with contextlib.suppress(BrokenPipeError):  # answer() says why
            self._pipe.send((what, arguments))

    def answer(self) -> Any:
        """Return the answer to the question before, or raise what it raised."""
        try:
            if not self._pipe.poll(_TIMEOUT):
                raise NfctlError("the copy of the firewall gave no answer in time")
            good, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._child.result(_TIMEOUT)  # raises what ended it
            raise NfctlError("the copy of the firewall has ended") from None
        if not good:
            raise value
        return value


def _serve(theirs: Connection, ours: Connection, arguments: tuple[Any, ...]) -> None:
    ours.close()
    try:
        stage = _Stage(*arguments)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        theirs.send((False, fork.portable(error)))
        return
    theirs.send((True, None))
    while True:
        try:
            what, values = theirs.recv()
        except EOFError:
            return
        try:
            answer = (True, getattr(stage, what)(*values))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = (False, fork.portable(error))
        theirs.send(answer)


class _Stage:
    """The copy, and the sockets through which packets come into it."""

    def __init__(
        self,
        interfaces: Sequence[str],
        sets: Sequence[str],
        want: Sequence[WantedSet],
        zones: bool,
        untracked: bool,
    ) -> None:
        self._copy = rehearsal.Copy(interfaces, host=_Machine(), sets=sets, together=True)
        if want:
            self._copy.want_sets(want)
        self._zones, self._untracked = zones, untracked
        self._local: dict[bytes, bool] = {}
        self._raw: dict[int, socket.socket] = {}
        self._ears: dict[tuple[int, int], socket.socket] = {}
        self._arrived: set[bytes] = set()
        self._wires: dict[int, socket.socket] = {}
        self._ethernet: dict[int, bytes] = {}
        write_sysctls(_AFTER)
        self._facts = Host()
        for link in self._copy.links.values():
            # No neighbour is asked for: there are none.
            self._copy.inside.do(
                _NEWLINK, LINK.pack(0, 0, link.ifindex, _NOARP, _NOARP), "switching ARP off"
            )
            self._ethernet[link.ifindex] = self._facts.link(link.ifindex).mac or bytes(6)
        self._tracks = flows.open_socket()
        self._bell = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_EXPERIMENT))
        self._bell.setblocking(False)
        self._strikers: dict[int, socket.socket] = {}
        self._leaving: list[socket.socket] = []
        if untracked and self._copy.outside:
            with next(iter(self._copy.outside.values())).entered():
                for kind in (_ETH_IP, _ETH_IPV6):
                    ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(kind))
                    _deafen_not(ear)
                    self._leaving.append(ear)

    # --- what the parent asks for -------------------------------------------------------------

    def load(self, texts: Mapping[int, str]) -> None:
        """Have these rules, by family."""
        self._copy.load(texts)

    def together(self, family: int, openings: Sequence[Opening]) -> list[Fate]:
        """Say what becomes of many packets, no two of them of one tuple, sent in a row.

        Flows of other packets may have taken what theirs is translated to: see :meth:`alone`.
        """
        self._listen(family, openings)
        wrong: dict[int, Fate] = {}
        for number, opening in enumerate(openings, 1):
            refused = self._send(family, opening)
            if refused is not None:
                wrong[number - 1] = refused
            if number % _SETTLE == 0:
                self._settle(openings[number - _SETTLE : number])
        self._settle(openings[-(len(openings) % _SETTLE) :])
        found = {
            entry.original: entry.reply + entry.zones
            for part in flows.listed(self._tracks, family)
            for entry in part
        }
        fates = [
            self._fate(opening, found.get(opening.original, wrong.get(number)))
            for number, opening in enumerate(openings)
        ]
        self._clear()
        return fates

    def alone(self, family: int, openings: Sequence[Opening]) -> list[Fate]:
        """Say what becomes of each packet if there is no other flow."""
        self._listen(family, openings)
        self._clear()
        fates: list[Fate] = []
        for opening in openings:
            fate = self._send(family, opening)
            entry = self._entry(family, opening)
            if entry is None or self._is_local(entry.reply):
                self._settle([opening])
                entry = entry or self._entry(family, opening)
            if entry is not None:
                fate = entry.reply + entry.zones
            fates.append(self._fate(opening, fate))
            if self._zones:
                self._clear()
            elif entry is not None:
                flows.forget(self._tracks, family, entry.name)
            self._arrived.clear()
        return fates

    # --- packets in, and what is seen of them -------------------------------------------------

    def _send(self, family: int, opening: Opening) -> Fate:
        """Send a packet; return why it cannot be sent."""
        try:
            if opening.interface:
                self._wire(opening.interface).send(self._frame(family, opening))
            else:
                self._speak(family, opening)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOBUFS}:  # EPERM: dropped by OUTPUT
                return UNSENT + os.strerror(error.errno or errno.EIO).encode()
        return None

    def _frame(self, family: int, opening: Opening) -> bytes:
        kind = _ETH_IP if family == 4 else _ETH_IPV6
        to = self._ethernet[opening.interface]
        packet = opening.packet
        if family == 4 and packet[16] >= 224:  # to a group, or to all
            to = b"\xff" * 6 if packet[16] == 255 else b"\x01\0\x5e" + packet[17:20]
        elif family == 6 and packet[24] == 0xFF:
            to = b"\x33\x33" + packet[36:40]
        return to + _FAR + kind.to_bytes(2, "big") + packet

    def _wire(self, interface: int) -> socket.socket:
        """Return a socket at the other end of an interface's cable."""
        if interface not in self._wires:
            name = self._copy.host.link(interface).name
            with self._copy.outside[name].entered():
                wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            wire.bind((name, 0))
            self._wires[interface] = wire
        return self._wires[interface]

    def _speak(self, family: int, opening: Opening) -> None:
        """Send a packet from the copy itself, header and all, as from its source address."""
        packet = opening.packet
        if family == 4:
            about = struct.pack("=i4s4s", 0, packet[12:16], bytes(4))
            where: tuple[Any, ...] = (socket.inet_ntoa(packet[16:20]), 0)
            message = (socket.IPPROTO_IP, _IP_PKTINFO, about)
        else:
            about = packet[8:24] + struct.pack("=i", opening.scope)
            where = (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0, 0, opening.scope)
            message = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, about)
        if family not in self._raw:
            kind = flows.ADDRESS_FAMILY[family]
            self._raw[family] = socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self._raw[family].setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._raw[family].sendmsg([packet], [message], 0, where)

    def _listen(self, family: int, openings: Sequence[Opening]) -> None:
        """Have a raw socket for each protocol that may be delivered to the copy itself."""
        place = 9 if family == 4 else 6
        self._arrived.clear()
        for opening in openings:
            if opening.interface and not self._untracked:
                continue
            key = family, opening.packet[place]
            if key not in self._ears:
                ear = socket.socket(flows.ADDRESS_FAMILY[family], socket.SOCK_RAW, key[1])
                _deafen_not(ear)
                if family == 6:
                    ear.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
                self._ears[key] = ear

    def _settle(self, openings: Sequence[Opening]) -> None:
        """Wait until the packets that were sent are through: what follows them has come.

        A frame of a protocol that nobody knows takes the same ways, behind them.
        """
        awaited = 0
        for interface in {opening.interface or _LOOPBACK for opening in openings}:
            if interface == _LOOPBACK:
                self._bell.sendto(bytes(12) + _ETH_EXPERIMENT.to_bytes(2, "big"), ("lo", 0))
            else:
                frame = self._ethernet[interface] + _FAR + _ETH_EXPERIMENT.to_bytes(2, "big")
                self._wire(interface).send(frame)
            awaited += 1
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        while awaited:
            if not poll.poll(_PATIENCE):
                break  # what is missing is asked for again, alone
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._bell.recv(64)
                    awaited -= 1
        self._hear()

    def _hear(self) -> None:
        """Note what has been delivered, and, where that matters, what has left."""
        for (family, protocol), ear in self._ears.items():
            with contextlib.suppress(BlockingIOError):
                while True:
                    if family == 4:
                        self._arrived.add(packets.seen(ear.recv(128)))
                        continue
                    data, about, _, sender = ear.recvmsg(128, 64)
                    source = socket.inet_pton(socket.AF_INET6, sender[0].partition("%")[0])
                    to = next((each[2][:16] for each in about if each[1] == _IPV6_PKTINFO), b"")
                    self._arrived.add(packets.mark(protocol, source + to, data))
        for ear in self._leaving:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._arrived.add(packets.seen(ear.recv(128)))

    # --- what became of them ------------------------------------------------------------------

    def _entry(self, family: int, opening: Opening) -> flows.Entry | None:
        if not self._zones:
            return flows.get(self._tracks, family, flows.name_of(opening.original))
        found = None
        for part in flows.listed(self._tracks, family):
            for entry in part:
                found = entry if entry.original == opening.original else found
        return found

    def _fate(self, opening: Opening, fate: Fate) -> Fate:
        """Correct what conntrack says of a packet by what was seen of it."""
        if fate is None and self._untracked:
            return UNTRACKED if packets.seen(opening.packet) in self._arrived else None
        if fate is None or fate[:1] == UNSENT or opening.interface or not self._is_local(fate):
            return fate
        reply = flows.parse(fate)
        there = reply._replace(
            source=reply.destination, destination=reply.source,
            sport=reply.dport, dport=reply.sport,
        )  # fmt: skip
        return fate if packets.expected(there) in self._arrived else None

    def _is_local(self, reply: bytes) -> bool:
        """Whether the flow ends in the copy itself."""
        address = flows.parse(reply).source
        if address not in self._local:
            family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
            if len(self._local) > 1 << 16:
                self._local.clear()
            self._local[address] = self._facts.is_local(socket.inet_ntop(family, address))
        return self._local[address]

    def _clear(self) -> None:
        flows.clear(self._tracks)
        with contextlib.suppress(OSError):
            while self._tracks.recv(1 << 16):
                pass


class _Machine(Host):
    """The host; without all of its routes, packets would go astray in the copy."""

    def routes(self, family: int, links: set[int]) -> list[bytes] | None:
        found = super().routes(family, links)
        if found is None:
            msg = f"IPv{family} has more than {MOST_ROUTES} routes, too many to be copied"
            raise Unsupported(msg)
        return found


def _deafen_not(ear: socket.socket) -> None:
    """Let a socket keep what a batch of packets brings it."""
    ear.setblocking(False)
    with contextlib.suppress(OSError):
        ear.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _BUFFER)
