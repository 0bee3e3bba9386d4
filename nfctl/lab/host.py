"""A host of a lab: a network namespace, and how to run things inside it.

Whatever runs in a host is a process of its own that has entered the host's network
namespace, and a mount namespace in which ``/run`` is the host's own file system.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nfctl.errors import BadInput
from nfctl.lab import fork, namespaces

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from nfctl.lab.netlink import Netlink
    from nfctl.lab.services import Service
    from nfctl.lab.wiring import Site
    from nfctl.lab.worker import Worker

T = TypeVar("T")


class Port(NamedTuple):
    """One end of a link: an interface's name (15 bytes at most) and its ``address/length``s."""

    host: Host
    name: str
    addresses: tuple[str, ...]


class Host:
    """A namespace by name; made by :meth:`nfctl.lab.Lab.host`, or found in a lab that stands.

    ``namespace`` is its name under ``/run/netns`` and ``run`` the directory that its
    processes see as ``/run``.
    """

    def __init__(self, name: str, namespace: str, run: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.directory = run
        self._netlink: Netlink | None = None
        self._processes: list[subprocess.Popen[Any]] = []
        self._helpers: list[Service | Worker] = []

    def __repr__(self) -> str:
        """Say the host's name and its namespace's."""
        return f"<Host {self.name} ({self.namespace})>"

    def port(self, name: str, *addresses: str) -> Port:
        """Describe one end of a link, for :meth:`nfctl.lab.Lab.link`."""
        return Port(self, name, addresses)

    def route(self, destination: str, *, via: str) -> None:
        """Add a route to a prefix or ``"default"``; one of a family the kernel lacks is not."""
        from nfctl.lab import wiring

        wiring.add_routes(self.site, [(destination, via)])

    def enter(self) -> None:
        """Move the calling process into this host for good: for a child process only."""
        os.environ.pop("XTABLES_LOCKFILE", None)  # it would be one lock for all hosts
        namespaces.enter(self.namespace, run=self.directory)

    @property
    def site(self) -> Site:
        """What wiring has to know of the host; a netlink socket of it is opened at first use."""
        from nfctl.lab.wiring import Site

        if self._netlink is None or self._netlink.fileno() < 0:  # a child's is closed
            self._netlink = namespaces.open_netlink(self.namespace)
        return Site(self.name, self.namespace, self._netlink)

    def connect(self, netlink: Netlink) -> None:
        """Take the socket that the child opened which made the namespace."""
        self._netlink = netlink

    def disconnect(self) -> None:
        """Close the socket: it keeps the namespace alive."""
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def wire(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the network namespace alone, with the machine's own files."""

        def inside() -> T:
            namespaces.enter(self.namespace)
            return function(*args)

        return fork.call(inside)

    def run(self, function: Callable[..., T], *args: Any, timeout: float = 30.0) -> T:
        """Run ``function(*args)`` inside the host; return what it returns, raise what it raises.

        It runs in a forked child, so it changes nothing in this process. The arguments may be
        anything and the result has to pickle. After ``timeout`` seconds the child is killed and
        TimeoutError raised.
        """

        def inside() -> T:
            self.enter()
            return function(*args)

        return fork.call(inside, timeout=timeout)

    def worker(self) -> Worker:
        """Start a process inside the host that runs many functions, one after the other."""
        from nfctl.lab.worker import Worker

        worker = Worker(self.enter)
        self._helpers.append(worker)
        return worker

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside the host; ``options`` are those of :class:`subprocess.Popen`.

        BadInput if it cannot be started. The lab kills it at the latest when it ends.
        """
        import subprocess

        def prepare() -> None:
            fork.default_signals()
            self.enter()

        try:
            with fork.fork_is_safe(), fork.signals_blocked():
                process = subprocess.Popen(list(argv), preexec_fn=prepare, **options)  # noqa: PLW1509 - a lab's process is single-threaded
                self._processes.append(process)
        except (OSError, subprocess.SubprocessError) as error:
            raise BadInput(f"cannot run {argv[0]} in {self.name}: {error}") from None
        return process

    def call(self, argv: Sequence[str], *, timeout: float = 30.0) -> str:
        """Run a program inside the host and return its standard output.

        BadInput, with its standard error, if it cannot be run, fails, or takes longer than
        ``timeout`` seconds.
        """
        import subprocess

        with self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    message = f"{argv[0]} in {self.name} took longer than {timeout:g} s"
                    raise BadInput(message) from None
                raise
        if process.returncode:
            message = f"{argv[0]} in {self.name} ended with {process.returncode}: {err.strip()}"
            raise BadInput(message)
        return str(out)

    def serve(
        self,
        *,
        tcp: Sequence[int] = (),
        udp: Sequence[int] = (),
        http: Sequence[int] = (),
        dns: Sequence[int] = (),
        names: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Service:
        """Start a server that answers on these ports, in both families; it is ready on return.

        ``names`` are what ``dns`` knows, with their addresses. BadInput if a port is taken.
        """
        from nfctl.lab.services import Service

        service = Service(
            self.enter, tuple(tcp), tuple(udp),
            http=tuple(http), dns=tuple(dns), names=names, name=self.name,
        )  # fmt: skip
        self._helpers.append(service)
        return service

    def forget(self) -> None:
        """Reap the processes that the lab killed, for :meth:`nfctl.lab.Lab.close`."""
        for helper in self._helpers:
            helper.close()
        for process in self._processes:
            process.kill()  # it may have gone to another namespace
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._processes.clear()
        self._helpers.clear()
