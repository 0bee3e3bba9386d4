"""What becomes of conntrack's flows when the endpoints of a service go, or come.

A flow keeps the endpoint that was picked for its first packet, whatever the chains say now:

* UDP has no end, and a client that goes on asking from one port goes on asking an endpoint that
  is gone. So its flows are deleted at once, after the chains were written; the next packet picks
  another endpoint. Flows of a service that had no endpoint and now has one were not translated;
  they are deleted, too (``Flows`` without an endpoint). Both is what kube-proxy does.
* TCP and SCTP end by themselves. Deleting a flow is a choice: its next packet begins a flow in
  the middle, with an endpoint that answers it with a reset. Waiting for their end is the other
  one: :func:`wait_drained`.

The kernel picks the flows to a few endpoints, or ports, out of its table; to more of them the
table is listed once, however many they are. All acts in the network namespace of the calling
thread.
"""

from __future__ import annotations

import errno as errnos
import ipaddress
import os
import select
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import BadInput, NfctlError
from nfctl.kernel import flow_filter, flows
from nfctl.kernel.flow_events import Events
from nfctl.text import several

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from nfctl.control.rehearsal.host import Host

_SCTP: Final = 132
_NUMBERS: Final = {"tcp": flows.TCP, "udp": flows.UDP, "sctp": _SCTP}
# Both ends may still have something to say: SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT of
# TCP_CONNTRACK_*; COOKIE_ECHOED, ESTABLISHED, SHUTDOWN_SENT, SHUTDOWN_RECD of SCTP_CONNTRACK_*.
_LIVE: Final = {flows.TCP: {2, 3, 4, 5}, _SCTP: {3, 4, 5, 6}}

_FEW: Final = 64  # addresses to look for before a flow is taken apart
_SHORTEST: Final = 0.2  # seconds from one look at the list to the next
_SHARE: Final = 20  # times as long as a look takes: a twentieth of a processor


class Flows(NamedTuple):
    """Which flows are meant: those of ``protocol`` (tcp, udp, sctp) to some services.

    ``services`` are the addresses and ports that clients connect to: cluster and external
    addresses, or None for a node port, which is there on every local address; ``None`` for all
    of them is whatever was translated. ``endpoint`` is where they were translated to; None
    means those that were not translated at all. ``family`` (4 or 6) is needed for a node port
    without an endpoint, if it is not to be of both.
    """

    protocol: str
    services: tuple[tuple[str | None, int], ...] | None = None
    endpoint: tuple[str, int] | None = None
    family: int = 0


def flows_to(which: Iterable[Flows]) -> list[flows.Entry]:
    """Return the flows that conntrack knows of these, each once.

    BadInput for addresses and protocols that are none, NotPermitted without CAP_NET_ADMIN,
    Unsupported without ctnetlink.
    """
    with _Matcher(which) as matcher:
        return matcher.found()


def end(which: Iterable[Flows]) -> int:
    """Delete flows, and return how many; those that ended meanwhile do not count.

    For flows that the kernel does not give up (it has handed them to a network card) an
    NfctlError is raised when all others are deleted. Otherwise it raises as :func:`flows_to`.
    """
    doomed = flows_to(which)
    if not doomed:
        return 0
    with flows.open_socket() as sock:
        answers = flows.delete(sock, doomed, many=True)
    left = [
        (entry, number)
        for entry, number in zip(doomed, answers, strict=True)
        if number not in {0, errnos.ENOENT}
    ]
    if left:
        entry, number = left[0]
        message = f"{several(len(left), 'flow')} cannot be deleted: {os.strerror(number)}"
        raise NfctlError(message, hint=f"{entry}; {answers.count(0)} were deleted")
    return answers.count(0)


def count_open(which: Iterable[Flows]) -> int:
    """Return how many flows are open, as :class:`Drain` counts them; raises as flows_to."""
    return sum(_is_open(entry) is True for entry in flows_to(which))


class Drain:
    """Watches the flows that are still open, until there are none; see :func:`wait_drained`.

    For loops of one's own: poll ``fileno`` for ``timeout`` seconds, then call ``step``. TCP and
    SCTP count while both ends may send, not while the kernel only remembers them (TIME_WAIT);
    UDP counts until conntrack forgets it.
    """

    def __init__(
        self, which: Iterable[Flows], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._open: set[bytes] = set()
        self._look_at = 0.0
        self._matcher = _Matcher(which)
        self._about = self._matcher.addresses()
        try:
            self._events = Events()  # before the first look
        except BaseException:
            self._matcher.close()
            raise
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no more."""
        self._events.close()
        self._matcher.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when flows may have ended."""
        return self._events.fileno()

    def timeout(self) -> float:
        """Return after how many seconds ``step`` is due at the latest."""
        return max(self._look_at - self._clock(), 0.0)

    def step(self) -> int:
        """Take what the kernel says, without waiting; return how many flows are open."""
        events, whole = self._events.take(self._about)
        for entry, ended in events:
            if ended:
                self._open.discard(entry.number)
            elif self._matcher.matches(entry):
                self._note(entry)
        if not whole or self._look_at <= self._clock():
            self.look()
        return len(self._open)

    def look(self) -> int:
        """Read conntrack's list, now; return how many flows are open."""
        began = self._clock()
        self._open.clear()
        for entry in self._matcher.found():
            self._note(entry)
        now = self._clock()
        self._look_at = now + max(_SHORTEST, _SHARE * (now - began))
        return len(self._open)

    def _note(self, entry: flows.Entry) -> None:
        if (is_open := _is_open(entry)) is not None:
            (self._open.add if is_open else self._open.discard)(entry.number)


def _is_open(entry: flows.Entry) -> bool | None:
    """Whether both ends may go on; None for an event that is about something else."""
    protocol = flows.parse(entry.reply).protocol
    if protocol not in _LIVE or entry.state in _LIVE[protocol]:
        return True
    return False if entry.state >= 0 else None


def wait_drained(
    which: Iterable[Flows], seconds: float, *, clock: Callable[[], float] = time.monotonic
) -> int:
    """Wait until flows have ended, so many seconds at most; return how many have not.

    The kernel's events end the wait; since there are none of flows that began while nobody
    listened (:mod:`nfctl.kernel.flow_events`), it looks at the list now and then, too: every
    0.2 seconds, or as seldom as makes it a twentieth of a processor's time. Raises as
    :func:`flows_to`.
    """
    until = clock() + seconds
    poll = select.poll()
    with Drain(which, clock=clock) as drain:
        poll.register(drain.fileno(), select.POLLIN)
        while left := drain.step():
            rest = until - clock()
            if rest <= 0:
                return drain.look()
            poll.poll(min(rest, drain.timeout()) * 1000)
    return left


# --- which flows they are -------------------------------------------------------------------------

_Place = tuple[int, bytes, int]  # protocol, packed address, port


class _Matcher:
    """Finds flows by where their replies come from, which is the endpoint."""

    def __init__(self, which: Iterable[Flows]) -> None:
        # By endpoint, what clients connect to; b"" is any local address, and 0 any port.
        self._endpoints: dict[_Place, set[tuple[bytes, int]]] = {}
        self._direct: set[_Place] = set()
        self._direct_local: set[tuple[int, int, int]] = set()  # protocol, family, port
        self._local: dict[bytes, bool] = {}
        self._host: Host | None = None
        for one in which:
            self._add(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._host is not None:
            self._host.close()
            self._host = None

    def _add(self, one: Flows) -> None:
        if one.protocol not in _NUMBERS:
            hint = f"there are {', '.join(_NUMBERS)}"
            raise BadInput(f"{one.protocol!r} is no protocol of a service", hint=hint)
        number = _NUMBERS[one.protocol]
        services = [(_packed(address), port) for address, port in one.services or ()]
        if one.endpoint is not None:
            place = (number, _packed(one.endpoint[0]), one.endpoint[1])
            wanted = self._endpoints.setdefault(place, set())
            wanted.update([(b"", 0)] if one.services is None else services)
            return
        if one.services is None:
            raise BadInput("flows are to a service, to an endpoint, or both: here is neither")
        for address, port in services:
            if address:
                self._direct.add((number, address, port))
            else:
                families = (one.family,) if one.family else (4, 6)
                self._direct_local.update((number, family, port) for family in families)

    def addresses(self) -> list[bytes]:
        """Return addresses of which every flow has one; none if there is more to look for."""
        if self._direct_local:
            return []
        return list({place[1] for place in (*self._endpoints, *self._direct)})

    def found(self) -> list[flows.Entry]:
        """Read conntrack's list."""
        about = self.addresses()
        if not about and not self._direct_local:
            return []
        entries: dict[bytes, flows.Entry] = {}  # what moves in the table may be listed twice
        for part in self._listed(about if len(about) <= _FEW else []):
            for entry in part:
                if self.matches(entry):
                    entries[entry.number + entry.name] = entry
        return list(entries.values())

    def _listed(self, about: list[bytes]) -> Iterator[list[flows.Entry]]:
        """Return all flows that may be meant: what the kernel picks, or all if that is quicker."""
        places = (*self._endpoints, *self._direct)
        filters = flow_filter.repliers(places, self._direct_local)
        families = {4 if len(address) == 4 else 6 for _, address, _ in places}
        families |= {family for _, family, _ in self._direct_local}
        return flow_filter.picked(filters, families, about)

    def matches(self, entry: flows.Entry) -> bool:
        """Whether a flow is one of those."""
        reply = flows.parse(entry.reply)
        place = (reply.protocol, reply.source, reply.sport)
        services = self._endpoints.get(place)
        local = (reply.protocol, entry.family, reply.sport) in self._direct_local
        if services is None and not local and place not in self._direct:
            return False
        original = flows.parse(entry.original)
        to = (original.destination, original.dport)
        if to == (reply.source, reply.sport):  # not translated
            return (
                (services is not None and to in services)
                or place in self._direct
                or (local and self._is_local(original.destination))
            )
        return services is not None and (
            to in services or (b"", original.dport) in services or (b"", 0) in services
        )

    def _is_local(self, address: bytes) -> bool:
        if address not in self._local:
            from nfctl.control.rehearsal.host import Host

            if self._host is None:
                self._host = Host()
            self._local[address] = self._host.is_local(str(ipaddress.ip_address(address)))
        return self._local[address]


def _packed(address: str | None) -> bytes:
    if address is None:
        return b""
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        raise BadInput(f"{address!r} is no address") from None
