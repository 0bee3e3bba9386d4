"""Hypothesis strategies: endpoints, services, and lists of services that are in order."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from nfctl.services.model import MASQUERADE, PROTOCOLS, Endpoint, Service, ServiceList

if TYPE_CHECKING:
    from collections.abc import Sequence

ports = st.integers(1, 65535)


def address(base: str) -> st.SearchStrategy[str]:
    """Return addresses of a range."""
    net = ipaddress.ip_network(base)
    return st.integers(1, min(net.num_addresses - 2, 1 << 20)).map(lambda number: str(net[number]))


endpoint_addresses = st.one_of(address("10.0.0.0/16"), address("fd00::/64"))
endpoints = st.builds(
    Endpoint,
    endpoint_addresses,
    ports,
    st.one_of(st.just(1), st.integers(1, 65535)),
    st.sampled_from([True, True, True, False]),
    st.booleans(),
    st.sampled_from([False, False, False, True]),
)
_ranges = st.sampled_from(["192.0.2.0/24", "203.0.113.7/32", "2001:db8::/32"])


def _services(number: int) -> st.SearchStrategy[Service]:
    """Return services of a number, which has its own addresses and ports."""
    ips = st.sampled_from(
        [(f"10.96.0.{number + 1}",), (f"fd96::{number + 1:x}",), ()]
        + [(f"10.96.1.{number + 1}", f"fd96::1:{number + 1:x}")] * 2
    )
    made: st.SearchStrategy[Service] = st.builds(
        Service,
        st.sampled_from([f"web{number}", f"shop/web{number}:http", f"a_b.c-{number}"]),
        ports,
        st.sampled_from(PROTOCOLS),
        ips,
        st.sampled_from([(), (f"198.51.100.{number + 1}",), (f"2001:db8:5::{number + 1:x}",)]),
        st.sampled_from([0, 30000 + number]),
        st.lists(endpoints, max_size=6, unique_by=lambda e: e[:2]).map(tuple),
        st.sampled_from([0, 0, 10800]),
        st.lists(_ranges, max_size=2, unique=True).map(tuple),
        st.booleans(),
        st.booleans(),
        st.sampled_from(["", *MASQUERADE]),
    )
    return made.map(
        lambda s: s if s.cluster_ips or s.external_ips or s.node_port else _with_port(s, number)
    )


def _with_port(service: Service, number: int) -> Service:
    return service._replace(node_port=31000 + number)


@st.composite
def lists(draw: st.DrawFn) -> ServiceList:
    """Draw a list."""
    services = [draw(_services(number)) for number in range(draw(st.integers(0, 4)))]
    mark = draw(st.sampled_from([0x4000, 0x1, 0x80000000]))
    cluster: Sequence[str] = draw(
        st.sampled_from([(), ("10.0.0.0/9",), ("fd00::/48",), ("10.0.0.0/9", "fd00::/48")])
    )
    return ServiceList(
        tuple(services),
        draw(st.sampled_from(["NFCTL-", "LB-"])),
        tuple(cluster),
        draw(st.sampled_from(MASQUERADE)),
        mark,
        draw(st.sampled_from([mark, 0xFFFFFFFF])),
        draw(st.sampled_from([(), ("192.0.2.1/32",), ("192.0.2.0/24", "2001:db8:1::/64")])),
    )


#: Values of JSON as nobody would write them.
rubbish: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-1, 70000), st.floats(), st.text(max_size=5),
        st.sampled_from(["10.0.0.1", "tcp", "web", "10.0.0.5:80", "local", "always"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "port", "mark", "mode", "x"]), inner, max_size=3),
    ),
    max_leaves=5,
)  # fmt: skip
