"""The machine and the network of these tests; see ``network`` for what is where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vm import guard
from tests.vm.inside import network, offload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.inside.network import Device, Network

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if _HERE in item.path.parents]
    for item in mine:
        item.add_marker(pytest.mark.vm)
        if not guard.asked():
            item.add_marker(pytest.mark.skip(reason=guard.SKIPPED))
    # Somebody says this is the VM: a run that skips all would look like a good one.
    if mine and guard.asked() and (reason := guard.objection()):
        msg = f"NFCTL_IN_VM=1, but {reason}"
        raise pytest.UsageError(msg)


@pytest.fixture(scope="session")
def whole() -> Iterator[Network]:
    """Make the network once; the tables are as the last test left them."""
    guard.require()
    with network.built() as built:
        yield built


@pytest.fixture
def net(whole: Network) -> Network:
    """Give the network with empty tables, no connections and no arrivals."""
    whole.device.clear()
    whole.arrivals()
    return whole


@pytest.fixture
def device(net: Network) -> Device:
    """Give the machine under test, with empty tables."""
    return net.device


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request: pytest.FixtureRequest) -> int:
    """Give each family in turn."""
    return int(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["offloads", "plain"])
def offloads(request: pytest.FixtureRequest, whole: Network) -> Iterator[bool]:
    """Run a module's tests with checksums and segments left to the NICs, and without."""
    with offload.switched(whole, on=request.param):
        yield request.param
