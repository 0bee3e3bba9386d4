from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nfctl.services import chains, names
from nfctl.services.model import Endpoint, Service, ServiceList, family_of
from nfctl.services.observed import cluster, document, rules
from nfctl.services.observed.prefix import the_prefix

CLUSTERS = ("10.244.0.0/16", "fd00:10::/48")
RANGES = {4: ("203.0.113.0/24", "198.51.100.7/32"), 6: ("2001:db8::/32",)}


def saved(settings: ServiceList, family: int) -> str:
    """Return the chains of a list as iptables-save would print them."""
    made, jumps = chains.compiled(settings, family)
    lines = []
    for table in ("mangle", "filter", "nat"):
        lines.append(f"*{table}")
        lines += [f":{chain} ACCEPT [0:0]" for there, chain in jumps if there == table]
        lines += [f":{chain} - [0:0]" for there, chain in made if there == table]
        for (there, chain), specs in (*jumps.items(), *made.items()):
            lines += [f"-A {chain} {spec}" for spec in specs if there == table]
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


@st.composite
def lists(draw: st.DrawFn) -> ServiceList:
    """Draw a list of services of both families, as a file may have them."""
    found = []
    for index in range(draw(st.integers(1, 5))):
        family = draw(st.sampled_from([4, 6]))
        address = "10.{}.0.{}" if family == 4 else "fd00:{}::{}"
        endpoints = [
            Endpoint(
                address.format(244, index * 10 + n + 1),
                draw(st.integers(1, 65535)),
                weight=draw(st.sampled_from([1, 1, 1, 2, 5, 30])),
                ready=draw(st.sampled_from([True, True, False])),
                local=draw(st.booleans()),
            )
            for n in range(draw(st.integers(0, 5)))
        ]
        external = (address.format(97, index + 1),) * draw(st.integers(0, 1))
        node_port = draw(st.sampled_from([0, 30000 + index]))
        reached = bool(external or node_port)
        some = st.lists(st.sampled_from(RANGES[family]), unique=True).map(tuple)
        found.append(
            Service(
                name=f"web-{index}",
                port=draw(st.integers(1, 65535)),
                protocol=draw(st.sampled_from(["tcp", "udp", "sctp"])),
                cluster_ips=(address.format(96, index + 1),),
                external_ips=external,
                node_port=node_port,
                endpoints=tuple(endpoints),
                affinity=draw(st.sampled_from([0, 0, 600])),
                source_ranges=draw(some) if reached else (),
                internal_local=draw(st.booleans()),
                external_local=draw(st.booleans()),
                masquerade=draw(st.sampled_from(["", "", "always", "never"])),
            )
        )
    mark = draw(st.sampled_from([0x4000, 0x8]))
    nodes = draw(st.sampled_from([(), ("192.168.1.1", "fd00::1")]))
    return ServiceList(tuple(found), "LB-", CLUSTERS, mark=mark, mask=mark, node_addresses=nodes)


def check(wanted: Service, found: dict[str, Any]) -> None:
    """Compare a service with what its chains tell of it."""
    serving = [e for e in wanted.endpoints if e.serves]
    local = [e for e in serving if e.local]
    reached = bool(wanted.external_ips or wanted.node_port)
    assert (found["name"], found["protocol"]) == (wanted.name, wanted.protocol)
    places = {
        (None if a["kind"] == "node" else a["address"], a["port"]): a for a in found["addresses"]
    }
    ips = {
        (ip, wanted.port)
        for ip in (*wanted.cluster_ips, *wanted.external_ips)
        if family_of(ip) == found["family"]
    }
    assert found["port"] == (wanted.port if ips else None)
    assert set(places) == ips | ({(None, wanted.node_port)} if wanted.node_port else set())
    everyone = serving if reached or not wanted.internal_local else local
    assert {(e["address"], e["port"]) for e in found["endpoints"]} == {e[:2] for e in everyone}
    total = sum(e.weight for e in everyone)
    for endpoint in found["endpoints"]:
        weight = next(e.weight for e in everyone if e.address == endpoint["address"])
        share = endpoint["share"] if everyone is serving else endpoint["local_share"]
        if share is not None:
            assert abs(share - weight / total) < 1e-7
    if everyone:
        assert found["affinity"] == wanted.affinity
    inside = local if wanted.internal_local else serving
    if inside:
        assert found["internal_policy"] == ("local" if wanted.internal_local else "cluster")
        assert found["masquerade"]["cluster"] == (wanted.masquerade or "off-cluster")
    if serving and reached:
        assert found["external_policy"] == ("local" if wanted.external_local else "cluster")
        for (address, _port), place in places.items():
            ranges = () if address in wanted.cluster_ips else wanted.source_ranges
            assert tuple(place["source_ranges"]) == ranges


@given(lists())
def test_what_nfctl_makes_is_read_back(wanted: ServiceList) -> None:
    """The chains that nfctl makes of a list give the same list, and all of it adds up."""
    for family in chains.families(wanted):
        dumps = rules.parse(saved(wanted, family))
        found = cluster.read(dumps[0], the_prefix(dumps, None))
        assert found.problems == []
        assert (found.prefix, found.family) == (wanted.prefix, family)
        assert (found.mark, found.mask) == (wanted.mark, wanted.mask)
        assert found.node_addresses == tuple(
            address for address in wanted.node_addresses if family_of(address) == family
        )
        made = document.document([found], found.services, found.problems)
        services = [s for s in wanted.services if family in s.families()]
        assert len(made["services"]) == len(services)
        for service, back in zip(services, made["services"], strict=True):
            check(service, back)


def test_the_names_are_the_same() -> None:
    """The chains that are read are called as those that are made."""
    made = names.Names("LB-")
    for kind in names.KINDS:
        chain = made.service(kind, "web", "tcp")
        assert rules.hashed(chain) == ("LB-", kind, chain[-16:])
