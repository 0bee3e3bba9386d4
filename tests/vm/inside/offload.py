"""Checksum and segmentation offload of the six NICs, by ethtool(8)."""

from __future__ import annotations

import contextlib
import subprocess
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.vm import guard
from tests.vm.inside.network import DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.vm.inside.network import Network

    Run = Callable[..., subprocess.CompletedProcess[str]]

# What ethtool -K calls a feature, and what ethtool -k does. In this order they can be set.
FEATURES = {
    "rx": "rx-checksumming",
    "tx": "tx-checksumming",
    "tso": "tcp-segmentation-offload",
    "gso": "generic-segmentation-offload",
    "gro": "generic-receive-offload",
}


class _Nic(NamedTuple):
    name: str
    run: Run

    def features(self) -> dict[str, bool]:
        """Return for each feature whether it is on."""
        lines = self.run(["ethtool", "-k", self.name]).stdout.splitlines()
        found = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
        return {short: found[name].startswith("on") for short, name in FEATURES.items()}

    def set(self, wanted: dict[str, bool]) -> None:
        """Set features; one that cannot be set is left as it is."""
        words = [word for name, on in wanted.items() for word in (name, "on" if on else "off")]
        self.run(["ethtool", "-K", self.name, *words])


def _nics(network: Network) -> list[_Nic]:
    here: Run = partial(subprocess.run, capture_output=True, text=True, check=False)
    fars = network.hosts.values()
    return [
        *(_Nic(nic, here) for nic in DEVICE.values()),
        *(_Nic(far.nic, partial(far.worker.run, here)) for far in fars),
    ]


@contextlib.contextmanager
def switched(network: Network, *, on: bool) -> Iterator[None]:
    """Switch all of it on, or off, for the ``with`` block, on every NIC that lets itself."""
    guard.require()
    nics = _nics(network)
    before = [nic.features() for nic in nics]
    for nic in nics:
        nic.set(dict.fromkeys(FEATURES, on))
        # These are the kernel's own, on every NIC: where even they stay, nothing was switched.
        now = nic.features()
        assert (now["gso"], now["gro"]) == (on, on), f"{nic.name}: {now}"
    try:
        yield
    finally:
        for nic, values in zip(nics, before, strict=True):
            nic.set(values)
