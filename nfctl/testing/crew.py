"""One process in each host of a lab that stays there, for many short questions.

A question costs a fraction of a millisecond; a fork for each, which would have to load
everything anew, some tens of them. The hosts of a lab are found by the names of their
namespaces, so it does not matter who made the lab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from nfctl.lab import Host, namespaces
from nfctl.lab.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")


class Crew:
    """The hosts of one lab by name, and a worker in each that was asked something.

    ``prefix`` begins the names of the lab's namespaces, ``directory`` holds the hosts' own
    ``/run``.
    """

    def __init__(self, prefix: str, directory: Path) -> None:
        self.prefix = prefix
        self.directory = directory
        self._workers: dict[str, Worker] = {}

    def names(self) -> list[str]:
        """Return the names of the lab's hosts."""
        found = (name.removeprefix(self.prefix) for name in namespaces.names(self.prefix))
        return [name for name in found if (self.directory / name).is_dir()]

    def ask(self, host: str, function: Callable[..., T], *args: Any, timeout: float = 30.0) -> T:
        """Run ``function(*args)`` inside a host; see :meth:`nfctl.lab.Worker.run`."""
        worker = self._workers.get(host)
        if worker is None:
            here = Host(host, self.prefix + host, self.directory / host)
            worker = self._workers[host] = Worker(here.enter)
        try:
            return worker.run(function, *args, timeout=timeout)
        except (TimeoutError, ChildProcessError, KeyboardInterrupt):
            self._workers.pop(host).close()  # the next question finds a new one
            raise

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.popitem()[1].close()


_crews: dict[str, Crew] = {}  # by the prefix of the namespaces' names


def crew_of(host: Host) -> Crew:
    """Return the crew of a host's lab."""
    prefix = host.namespace.removesuffix(host.name)
    if prefix not in _crews:
        dismiss()
        # Whatever the workers would load is loaded once, before they are forked.
        import nfctl.control.restore
        import nfctl.control.save
        import nfctl.lab.traffic  # noqa: F401

        _crews[prefix] = Crew(prefix, host.directory.parent)
    return _crews[prefix]


def dismiss(lab: str = "") -> None:
    """End the workers of the lab with this id, and of labs that are gone."""
    gone = [
        prefix
        for prefix in _crews
        if prefix == f"{namespaces.PREFIX}{lab}-" or not namespaces.names(prefix)
    ]
    for prefix in gone:
        _crews.pop(prefix).close()
