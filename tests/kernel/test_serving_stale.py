"""Which UDP flows nobody ended, among very many that were put into conntrack's table."""

from __future__ import annotations

import os
import random
import shutil
from typing import TYPE_CHECKING, Final

import pytest

from nfctl.control.serving import stale
from nfctl.control.serving.ending import Flows, flows_to
from nfctl.control.serving.gone import Ended
from nfctl.kernel import flow_filter, flows
from nfctl.services.model import Endpoint, Service, ServiceList
from nfctl.text import at
from tests.kernel.test_serving_ending import _insert, _some_flow

if TYPE_CHECKING:
    from tests.kernel.conftest import Namespace

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces"),
    pytest.mark.skipif(shutil.which("iptables-legacy") is None, reason="needs iptables-legacy"),
]

ONE, TWO, SIX = "10.0.1.1", "10.0.1.2", "2001:db8:2::1"
LOCAL, OTHER = "10.96.0.1", "10.96.0.2"  # of the services that flows are to
DNS: Final = Service(
    "dns", 53, "udp", (OTHER, "2001:db8:96::1"),
    endpoints=(Endpoint(ONE, 53), Endpoint(ONE, 80, draining=True), Endpoint(SIX, 53, ready=False)),
)  # fmt: skip
NODE: Final = Service("node", 9, "udp", node_port=80, endpoints=(Endpoint(TWO, 80),))
TCP: Final = Service("web", 80, "tcp", (OTHER,), endpoints=(Endpoint(ONE, 1),))
#: More ports than are worth a look each.
MANY: Final = tuple(Service(f"s{n}", n, "udp", ("10.97.0.1",)) for n in range(1000, 1010))


def _expected(protocol: str, service: str, port: int, endpoint: str, endpoint_port: int,
              *, node: bool) -> bool:  # fmt: skip
    """Say the same in the plainest words."""
    if protocol != "udp":
        return False
    untranslated = (service, port) == (endpoint, endpoint_port)
    if (service, port) == (OTHER, 53):
        return untranslated or (endpoint, endpoint_port) not in {(ONE, 53), (ONE, 80)}
    if (service, port) == ("2001:db8:96::1", 53):
        return not untranslated  # as nobody serves it
    if (service, port) == (LOCAL, 80):
        return node and (endpoint, endpoint_port) != (TWO, 80)
    return False


@pytest.mark.parametrize("more", [(), MANY], ids=["few", "many"])
@pytest.mark.parametrize("old", [False, True], ids=["filter", "old"])
@pytest.mark.parametrize(
    ("addresses", "node"), [((), True), (("10.96.0.0/30",), True), (("10.98.0.0/16",), False)]
)
def test_the_stale_ones_of_many(
    netns: Namespace,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    more: tuple[Service, ...],
    addresses: tuple[str, ...],
    node: bool,
) -> None:
    """Whatever the kernel can filter, those go that are to go, and no others; and all at once."""
    if old:  # then no flag is refused, and all is listed
        monkeypatch.setattr(flow_filter, "_NO_FLAG", 0)
    chance = random.Random(11)
    some = list({_some_flow(chance) for _ in range(600)})
    some += [("udp", "192.0.2.5", 1000, 0, "127.0.0.1", 80, "127.0.0.1", 80)]
    settings = ServiceList((DNS, NODE, TCP, *more), node_addresses=addresses)
    netns.run(["ip", "link", "set", "lo", "up"])
    netns.run(["ip", "addr", "add", f"{LOCAL}/32", "dev", "lo"])
    netns.run(["iptables-legacy", "-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])

    def inside() -> tuple[set[str], Ended, Ended]:
        _insert(some)
        every = [
            Flows(protocol, ((service, port),), (endpoint, number))
            for protocol, _, _, _, service, port, endpoint, number in some
        ]
        before = flows_to(every)
        ended, again = stale.end_stale(settings), stale.end_stale(settings, Ended(5))
        left = {entry.number for entry in flows_to(every)}
        gone = {str(flows.parse(each.original)) for each in before if each.number not in left}
        return gone, ended, again

    gone, ended, again = netns.python(inside)
    expected = {
        f"{protocol} {at(client, source)} -> {at(service, port)}"
        for protocol, client, source, _, service, port, endpoint, number in some
        if _expected(protocol, service, port, endpoint, number, node=node)
    }
    assert gone == expected
    assert len(expected) > 20
    assert (ended, again) == (Ended(len(expected)), Ended(5))


def test_without_udp_services_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no service is of UDP, conntrack is not needed."""
    monkeypatch.setattr(flows, "open_socket", None)
    assert stale.end_stale(ServiceList((TCP,))) == Ended()
