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

A lab belongs to the process and thread that made it.
"""

from __future__ import annotations

import atexit
import ipaddress
import os
import secrets
import signal
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl.errors import BadInput
from nfctl.lab import fork, namespaces, records, wiring
from nfctl.lab.host import Host, Port

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self


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
        self.id = f"{name}{secrets.token_hex(3)}"
        self.hosts: dict[str, Host] = {}
        self._record: records.Record | None = None
        self._handlers: _Handlers | None = None

    def __enter__(self) -> Self:
        """Sweep what killed labs left behind, and begin."""
        namespaces.require_privileges()
        wiring.preload()
        records.sweep()
        with fork.signals_blocked():
            self._handlers = _Handlers.install()
            self._record = records.Record(self.id, records.Owner.me())
            # For a signal that arrives after this method and before the first line of the block.
            atexit.register(self.close)
            try:
                self._record.create()
            except BaseException:
                self.close()
                raise
        return self

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
        if self._record is None or self._record.owner.pid != os.getpid():
            return
        with fork.signals_blocked():  # a second Ctrl-C waits until all is gone
            self._record.remove()
            for host in self.hosts.values():
                host.forget()
            self._record = None
            if self._handlers is not None:
                self._handlers.restore()
            atexit.unregister(self.close)

    def host(self, name: str, *, forward: bool = False) -> Host:
        """Add a host; ``forward`` makes it a router for both families. BadInput if it exists."""
        if self._record is None:
            raise BadInput(f'the lab "{self.name}" is not up')
        namespaces.check_word(name, "host")
        if name in self.hosts:
            raise BadInput(f'the lab "{self.name}" has a host "{name}" already')
        run = self._record.path / name
        run.mkdir(mode=0o755)
        host = Host(name, f"{namespaces.PREFIX}{self.id}-{name}", run)
        namespaces.create(host.namespace, forward=forward)
        self.hosts[name] = host
        return host

    def link(self, one: Port, other: Port) -> None:
        """Connect two hosts by a cable (a veth pair) and configure both ends.

        When it returns both ends carry packets, and their addresses of both families are
        usable. BadInput for interface names or addresses that the kernel does not take.
        """
        ends = [(port, _parse(port)) for port in (one, other)]
        path = namespaces.path_of(other.host.namespace)
        one.host.wire(wiring.add_veth, one.name, other.name, path)
        for port, addresses in reversed(ends):
            port.host.wire(wiring.configure, port.name, addresses)
        for port, _ in ends:
            port.host.wire(wiring.wait_ready, port.name)


def _parse(port: Port) -> list[tuple[str, int]]:
    """Split the addresses; those of a family that the kernel lacks are left out."""
    addresses = []
    for text in port.addresses:
        try:
            interface = ipaddress.ip_interface(text)
        except ValueError as error:
            raise BadInput(f"{port.host.name}:{port.name}: {error}") from None
        if interface.version == 4 or namespaces.has_ipv6():
            addresses.append((str(interface.ip), interface.network.prefixlen))
    return addresses
