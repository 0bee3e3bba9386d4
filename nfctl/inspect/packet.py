"""One packet, as verdict rules, handlers and displays see it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect import headers as at
from nfctl.inspect.headers import Headers, decode
from nfctl.inspect.verdict import Action, Verdict

if TYPE_CHECKING:
    from nfctl.inspect.flows import Flow
    from nfctl.inspect.payloads.dns import Dns
    from nfctl.inspect.payloads.http import Http
    from nfctl.inspect.payloads.quic import Quic
    from nfctl.inspect.payloads.tls import ClientHello

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: The longest replacement, in bytes: what a netlink attribute holds.
MOST_REPLACED: Final = 65531

_UNREAD: Final = object()
_DNS_PORTS: Final = frozenset({53, 5353, 5355})
PROTOCOLS: Final = {
    at.TCP: "tcp", at.UDP: "udp", at.ICMP: "icmp", at.ICMPV6: "icmpv6", at.SCTP: "sctp",
    at.UDPLITE: "udplite", at.DCCP: "dccp", at.ESP: "esp", at.AH: "ah", 2: "igmp", 47: "gre",
    4: "ipip", 41: "ipv6", 59: "none", 89: "ospf", 112: "vrrp",
}  # fmt: skip


class Packet:
    """A packet that the kernel has queued, or that a capture holds.

    ``data`` is the packet from its IP header on; ``length`` its length in bytes, more than
    ``len(data)`` where the queue's copy was cut (``truncated``). ``chain`` is the built-in chain
    that queued it, ``indev`` and ``outdev`` the names of its interfaces ("" where there is none),
    ``fwmark`` its mark, ``time`` seconds since 1970, ``headers`` what was decoded of it (see
    :class:`nfctl.inspect.headers.Headers`). ``checked`` is False where the checksums are not
    made yet, which the NIC, or the kernel behind us, will do.

    What it carries is decoded when it is first asked for: ``dns``, ``http``, ``hello`` (a TLS
    ClientHello, of TCP or QUIC, that this flow has shown so far), ``quic``; ``scapy`` is all
    of it as scapy dissects it, a hundred times slower.

    A handler decides by one of ``accept``, ``drop``, ``reject``, ``repeat``, and may ``mark``
    or ``replace`` the packet; if it does nothing, the next handler or the default decides.
    """

    __slots__ = (
        "_decided", "_dns", "_http", "_mark", "_offload", "_quic", "_scapy", "chain", "checked",
        "data", "flow", "fwmark", "headers", "indev", "length", "outdev", "replacement", "time",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        length: int = 0,
        *,
        chain: str = "INPUT",
        indev: str = "",
        outdev: str = "",
        fwmark: int = 0,
        time: float = 0.0,
        checked: bool = True,
    ) -> None:
        self.data = data
        self.length = length or len(data)
        self.chain = chain
        self.indev = indev
        self.outdev = outdev
        self.fwmark = fwmark
        self.time = time
        self.checked = checked
        self.headers: Headers = decode(data, self.length)
        self.flow: Flow | None = None
        self.replacement: bytes | None = None
        self._decided: Action | None = None
        self._mark: tuple[int, int] | None = None
        self._offload = False
        self._dns: Any = _UNREAD
        self._http: Any = _UNREAD
        self._quic: Any = _UNREAD
        self._scapy: Any = None

    # --- what it is ---------------------------------------------------------------------------

    @property
    def truncated(self) -> bool:
        """Whether the queue's copy is shorter than the packet; such a one is never rewritten."""
        return self.headers.truncated

    @property
    def malformed(self) -> str:
        """What is wrong with the packet, in a few words; "" if nothing is."""
        return self.headers.malformed

    @property
    def version(self) -> int:
        """4 or 6; 0 for what is no IP packet."""
        return self.headers.version

    @property
    def protocol(self) -> str:
        """The protocol's name, as iptables' ``-p`` takes it; a number without one."""
        number = self.headers.proto
        return PROTOCOLS.get(number) or str(number)

    @property
    def source(self) -> Address | None:
        """The source address."""
        return ipaddress.ip_address(self.headers.src) if self.headers.src else None

    @property
    def destination(self) -> Address | None:
        """The destination address."""
        return ipaddress.ip_address(self.headers.dst) if self.headers.dst else None

    @property
    def sport(self) -> int:
        """The source port; 0 for protocols without ports."""
        return self.headers.sport

    @property
    def dport(self) -> int:
        """The destination port; 0 for protocols without ports."""
        return self.headers.dport

    @property
    def payload(self) -> bytes:
        """What TCP or UDP carries, behind their headers; of other protocols, behind IP's."""
        return self.data[self.headers.data : self.headers.end]

    # --- what it carries ----------------------------------------------------------------------

    @property
    def dns(self) -> Dns | None:
        """A DNS message: of UDP ports 53, 5353 and 5355, and of TCP port 53."""
        if self._dns is _UNREAD:
            self._dns = self._read_dns()
        found: Dns | None = self._dns
        return found

    def _read_dns(self) -> Dns | None:
        head = self.headers
        if head.fragment or (head.sport not in _DNS_PORTS and head.dport not in _DNS_PORTS):
            return None
        from nfctl.inspect.payloads import dns

        if head.proto == at.UDP:
            return dns.read(self.payload)
        if head.proto == at.TCP and head.end - head.data > 2:
            return dns.read(self.payload[2:])
        return None

    @property
    def http(self) -> Http | None:
        """The head of an HTTP/1 request or response that begins with this packet."""
        if self._http is _UNREAD:
            self._http = None
            head = self.headers
            if head.proto == at.TCP and head.end > head.data and not head.fragment:
                from nfctl.inspect.payloads import http

                self._http = http.read(self.payload)
        found: Http | None = self._http
        return found

    @property
    def quic(self) -> Quic | None:
        """The QUIC long header of a UDP packet, with the names of its Initial."""
        if self._quic is _UNREAD:
            self._quic = None
            head = self.headers
            if head.proto == at.UDP and head.end > head.data and not head.fragment:
                from nfctl.inspect.payloads import quic

                self._quic = quic.read(self.payload)
        found: Quic | None = self._quic
        return found

    @property
    def hello(self) -> ClientHello | None:
        """The TLS ClientHello of this packet's flow, as far as it has been seen."""
        return self.flow.hello if self.flow is not None else None

    @property
    def scapy(self) -> Any:
        """The packet as scapy's ``IP`` or ``IPv6``; ``Raw`` for what is neither."""
        if self._scapy is None:
            from nfctl.inspect.dissect import dissect

            self._scapy = dissect(self.data, self.headers.version)
        return self._scapy

    # --- what a handler decides ---------------------------------------------------------------

    def accept(self) -> None:
        """Let the packet go on to the next table."""
        self._decided = Action.ACCEPT

    def drop(self) -> None:
        """Drop the packet."""
        self._decided = Action.DROP

    def reject(self) -> None:
        """Drop the packet and tell its sender: a TCP reset, or an ICMP error."""
        self._decided = Action.REJECT

    def repeat(self) -> None:
        """Send the packet through the rules of mangle again, past the inspection."""
        self._decided = Action.REPEAT

    def mark(self, value: int, mask: int = 0xFFFFFFFF) -> None:
        """Set the bits of ``mask`` in the packet's mark to those of ``value``, and accept it."""
        limit = 0xFFFFFFFF
        if not (0 <= value <= limit and 0 <= mask <= limit):
            msg = "a mark and its mask have 32 bits"
            raise ValueError(msg)
        self._mark = (value & mask, mask)
        self._decided = self._decided or Action.ACCEPT

    def replace(self, data: bytes) -> None:
        """Send ``data`` on instead of this packet: a whole IP packet, its checksums included.

        Accepts it, if nothing was decided. ValueError where this packet's copy was cut, and
        where ``data`` is no packet of the same IP version, or longer than a verdict can carry.
        """
        if self.truncated:
            msg = f"only {len(self.data)} of {self.length} bytes are known: it cannot be replaced"
            raise ValueError(msg)
        if len(data) > MOST_REPLACED:
            msg = f"{len(data)} bytes are too many: a verdict carries {MOST_REPLACED}"
            raise ValueError(msg)
        new = decode(data, len(data))
        if new.version != self.headers.version or new.malformed:
            msg = f"the replacement is no IPv{self.headers.version} packet: {new.malformed}"
            raise ValueError(msg.rstrip(": "))
        self.replacement = data
        self._decided = self._decided or Action.ACCEPT

    def offload(self) -> None:
        """Have the kernel decide the rest of this flow in the same way, without queueing it."""
        self._offload = True
        self._decided = self._decided or Action.ACCEPT

    def decision(self, by: str) -> Verdict | None:
        """Return what a handler has decided, None if nothing; ``by`` names it."""
        if self._decided is None:
            return None
        return Verdict(self._decided, by, self._mark, None, self._offload)

    def undecided(self) -> None:
        """Forget what a handler that failed had begun to decide."""
        self._decided = self._mark = self.replacement = None
        self._offload = False
