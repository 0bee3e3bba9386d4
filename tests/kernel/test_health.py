"""Health checks where a namespace of one's own is needed: no route, and ports of this host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from nfctl.services.checks import Check
from nfctl.services.health import Change, Prober

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = pytest.mark.kernel

ONCE: Final = Check(rise=1, fall=1, interval=0.05, timeout=5)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_nobody_behind_a_port_of_this_host(netns: Namespace, address: str) -> None:
    """A connection that the kernel makes with itself, for want of another port, is refused."""
    netns.run(["ip", "link", "set", "lo", "up"])
    # the only port that it can connect from is the one that it connects to
    netns.run(["sysctl", "-qw", "net.ipv4.ip_local_port_range=40001 40001"])

    def inside() -> list[Change]:
        import socket
        import struct

        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.connect((address, 40001))
            assert sock.getpeername() == sock.getsockname(), "the kernel was to do that"
        with Prober(ONCE) as prober:
            prober.add((address, 40001))
            return prober.wait(30)

    assert netns.python(inside) == [((address, 40001), False, "connection refused")]


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_no_route(netns: Namespace, address: str) -> None:
    """Where no route leads the reason says so, at once."""

    def inside() -> list[Change]:
        with Prober(ONCE) as prober:
            prober.add((address, 80))
            return prober.wait(30)

    assert netns.python(inside) == [((address, 80), False, "no route to the network")]
