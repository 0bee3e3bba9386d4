"""A lab: a disposable network of hosts, each a network namespace, gone when the block ends.

    with Lab("demo") as lab:
        client, router = lab.host("client"), lab.host("router", forward=True)
        lab.link(
            client.port("eth0", "192.0.2.10/24", "2001:db8:1::10/64"),
            router.port("wan0", "192.0.2.1/24", "2001:db8:1::1/64"),
        )
        client.route("default", via="192.0.2.1")
        answer = client.run(traffic.ping, "192.0.2.1")

The goals, and how each is met:
1. Nothing of the machine's own network is touched. Links are made inside the hosts'
   namespaces; whatever runs in a host runs in a child process of its own.
2. Many labs at once. Every lab has a random id in the names of its namespaces, and every
   host its own ``/run``, so that two firewalls never wait for one xtables lock.
3. Nothing stays behind: not after an exception, Ctrl-C, SIGTERM or SIGHUP (the block ends
   by an exception, then), nor a second Ctrl-C while it is being removed. What SIGKILL leaves
   is found by name and removed by the next lab, or by :func:`nfctl.lab.sweep`.

A lab belongs to the process and thread that made it. (One that outlives it: ``standing``.)
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl.errors import BadInput
from nfctl.lab import fork, namespaces, records
from nfctl.lab.host import Host, Port
from nfctl.lab.sysctls import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import FrameType, TracebackType
    from typing import Self

    from nfctl.lab.topology import Shape, Topology

# The first index that a lab gives an interface; no two in a lab have the same. The kernel takes
# its time, up to a second, to see the carrier of a veth whose peer has the same index
# (linkwatch_urgent_event). And the kernel gives none of these to an interface by itself.
_FIRST_INDEX = 101


class _Handlers(NamedTuple):
    """The signal handlers that a lab replaced, to be put back."""

    saved: dict[signal.Signals, Any]

    @classmethod
    def install(cls) -> _Handlers:
        """Let SIGTERM and SIGHUP end the program by an exception, where they would kill it."""
        saved = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    saved[number] = signal.signal(number, _leave)
        return cls(saved)

    def restore(self) -> None:
        for number, handler in self.saved.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class Lab:
    """A network of namespaces, as a context manager; see this module's own description.

    ``name`` is a word that people recognise; ``id`` is unique. NotPermitted without root.
    """

    def __init__(self, name: str = "lab") -> None:
        self.name = namespaces.check_word(name, "lab")
        self.id = f"{name}{os.urandom(3).hex()}"
        self.hosts: dict[str, Host] = {}
        self._record: records.Record | None = None
        self._maker = 0
        self._indices = itertools.count(_FIRST_INDEX)
        self._handlers: _Handlers | None = None

    def __getitem__(self, name: str) -> Host:
        """Return the host called ``name``, or raise BadInput."""
        if name not in self.hosts:
            there = f"there are {', '.join(self.hosts)}" if self.hosts else "it has no hosts"
            raise BadInput(f'the lab "{self.name}" has no host "{name}"', hint=there)
        return self.hosts[name]

    def __enter__(self) -> Self:
        """Sweep what killed labs left behind, and begin."""
        namespaces.require_privileges()
        records.sweep()

        def create() -> records.Record:
            record = records.Record(self.id, records.Owner.me())
            record.create()
            return record

        self.begin(create)
        return self

    def begin(self, claim: Callable[[], records.Record]) -> None:
        """Take possession of what ``claim`` makes; if that fails there is no lab."""
        with fork.signals_blocked():
            self._record = claim()
            self._maker = os.getpid()
            self._handlers = _Handlers.install()
            # For a signal that arrives after this method and before the first line of the block.
            atexit.register(self.close)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Remove everything."""
        self.close()

    def close(self) -> None:
        """Kill what runs in the hosts and remove them all; harmless when done before."""
        if self._record is None or self._maker != os.getpid():
            return
        with fork.signals_blocked():  # a second Ctrl-C waits until all is gone
            for host in self.hosts.values():
                host.disconnect()
            self._record.remove()
            for host in self.hosts.values():
                host.forget()
            self._end()

    def leave(self) -> None:
        """Let it stand: it belongs to nobody from now on."""
        with fork.signals_blocked():
            for host in self.hosts.values():
                host.disconnect()
            self._end()

    def _end(self) -> None:
        self._record = None
        if self._handlers is not None:
            self._handlers.restore()
        atexit.unregister(self.close)

    @property
    def directory(self) -> Path:
        """The lab's record, which holds the hosts' directories; BadInput if it is not up."""
        if self._record is None:
            raise BadInput(f'the lab "{self.name}" is not up')
        return self._record.path

    def host(self, name: str, *, forward: bool = False) -> Host:
        """Add a host; ``forward`` makes it a router for both families. BadInput if it exists."""
        from nfctl.lab.wiring import set_up_loopbacks

        (host,) = self.add([name])
        role = Role.ROUTER if forward else Role.HOST
        making = namespaces.Making([namespaces.Wanted(host.namespace, role)])
        try:
            (made,) = making.made()
            host.connect(made.netlink)
            making.finish()
            set_up_loopbacks([host.site])
        except BaseException:
            making.abandon()
            del self.hosts[name]
            raise
        return host

    def add(self, names: Iterable[str]) -> list[Host]:
        """Add hosts without their namespaces: their directories, and their places in ``hosts``."""
        added = []
        for name in names:
            directory = self.directory
            namespaces.check_word(name, "host")
            if name in self.hosts:
                raise BadInput(f'the lab "{self.name}" has a host "{name}" already')
            run = directory / name
            namespaces.make_run(run)
            host = Host(name, f"{namespaces.PREFIX}{self.id}-{name}", run)
            self.hosts[name] = host
            added.append(host)
        return added

    def build(self, topology: Topology, *, services: bool = True) -> None:
        """Make all that a topology says: see ``nfctl.lab.build``.

        If something fails the whole lab is closed.
        """
        from nfctl.lab.build import build

        build(self, topology, services=services)

    def link(self, one: Port, other: Port, shape: Shape | None = None) -> None:
        """Connect two hosts by a cable (a veth pair) and configure both ends.

        When it returns both ends carry packets, and their addresses of both families are
        usable. BadInput for interface names or addresses that the kernel does not take;
        Unsupported for a shape that it cannot do. There is no link then.
        """
        from nfctl.lab.wiring import End, Wiring

        wiring = Wiring()
        ends = [
            End(port.host.site, port.name, self.index(), port.addresses) for port in (one, other)
        ]
        wiring.cable(*ends)
        for end in ends:
            if shape:
                wiring.shape(end, shape)
        wiring.run()

    def index(self) -> int:
        """Return an index for the next interface."""
        return next(self._indices)
