"""The machine is the one that the other tests take it for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.vm import guard

pytestmark = pytest.mark.nic


@pytest.mark.usefixtures("net")
def test_the_nics_are_of_the_model_asked_for() -> None:
    """The device's own NICs have the driver that NFCTL_NIC names, not a driver of a veth pair."""
    model = os.environ.get("NFCTL_NIC", "virtio")
    driver = {"virtio": "virtio_net"}.get(model, model)
    for nic in guard.NICS[:3]:
        assert Path(f"/sys/class/net/{nic}/device/driver").resolve().name == driver


@pytest.mark.usefixtures("net")
def test_the_far_ends_are_not_here() -> None:
    """The far ends' NICs are gone from the first namespace: nothing can take a short cut."""
    here = guard.links()
    assert set(guard.NICS[:3]) <= here
    assert not set(guard.NICS[3:]) & here


def test_the_kernel_is_debians_own() -> None:
    """The running kernel is a package of the distribution, its modules and options with it."""
    release = os.uname().release
    found = subprocess.run(
        ["dpkg", "-S", f"/boot/vmlinuz-{release}"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(f"linux-image-{release}")
    assert Path(f"/boot/config-{release}").is_file()
    assert Path(f"/lib/modules/{release}/kernel/net/netfilter").is_dir()
