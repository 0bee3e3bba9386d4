"""Services as chains: kube-proxy's names and shape, and what holds for any list."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset.names import BUILTIN_CHAINS, MAX_NAME
from nfctl.ruleset.words import split
from nfctl.services import chains
from nfctl.services.model import Endpoint, Service, ServiceList
from nfctl.services.names import FIXED, Names, check_prefix
from tests.unit import serving

if TYPE_CHECKING:
    from nfctl.services.chains import Chains

KUBE = Names("KUBE-")
TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "DNAT", "MASQUERADE"}

# Names that kube-proxy's own tests expect (pkg/proxy/iptables/proxier_test.go and cleanup_test.go)
SERVICES = {
    "ns1/svc1:p80": "XPGD46QRK7WJZT7O",
    "ns2/svc2:p80": "GNZBNJ2PO5MGZ6GT",
    "ns3/svc3:p80": "X27LE4BHSL4DOUIK",
    "ns4/svc4:p80": "4SW47YFZTEDKD3PK",
    "ns5/svc5:p80": "NUKIZ6OKUXPJNT4C",
}
ENDPOINTS = {
    ("ns1/svc1:p80", "10.180.0.1:80"): "SXIVWICOYRO3J4NJ",
    ("ns2/svc2:p80", "10.180.0.2:80"): "RS4RBKLTHTF2IUXJ",
    ("ns3/svc3:p80", "10.180.0.3:80"): "OYPFS5VJICHGATKP",
    ("ns4/svc4:p80", "10.180.0.4:80"): "UKSFD7AGPMPPLUHC",
    ("ns4/svc4:p80", "10.180.0.5:80"): "C6EBXVWJJZMIWKLZ",
    ("ns5/svc5:p80", "10.180.0.3:80"): "I77PXRDZVX7PMWMN",
}
# The services of those tests; what goes to 1.2.3.4 and 5.6.7.8 is a load balancer's there.
LIST = ServiceList(
    (
        Service(
            "ns1/svc1:p80", 80, "tcp", ("172.30.0.41",), endpoints=(Endpoint("10.180.0.1", 80),)
        ),
        Service(
            "ns2/svc2:p80", 80, "tcp", ("172.30.0.42",), ("192.168.99.22", "1.2.3.4"), 3001,
            (Endpoint("10.180.0.2", 80),), external_local=True,
        ),
        Service(
            "ns3/svc3:p80", 80, "tcp", ("172.30.0.43",), (), 3003, (Endpoint("10.180.0.3", 80),)
        ),
        Service(
            "ns4/svc4:p80", 80, "tcp", ("172.30.0.44",), ("192.168.99.33",), 0,
            (Endpoint("10.180.0.4", 80), Endpoint("10.180.0.5", 80)),
        ),
        Service(
            "ns5/svc5:p80", 80, "tcp", ("172.30.0.45",), ("5.6.7.8",), 3002,
            (Endpoint("10.180.0.3", 80),), source_ranges=("203.0.113.0/25",),
        ),
        Service("ns6/svc6:p80", 80, "tcp", ("172.30.0.46",)),
    ),
    prefix="KUBE-", cluster=("10.0.0.0/8",),
)  # fmt: skip


def made(settings: ServiceList, family: int = 4) -> Chains:
    """Return all chains, without the part of their names that they share."""
    found, _ = chains.compiled(settings, family)
    cut = settings.prefix
    return {
        (table, chain.removeprefix(cut)): [rule.replace(f" {cut}", " ") for rule in rules]
        for (table, chain), rules in found.items()
    }


def nat(service: Service, family: int = 4, **settings: object) -> dict[str, list[str]]:
    """Return the chains of nat of one service, their hashes cut off."""
    listed = ServiceList((service,), **settings)  # type: ignore[arg-type]
    return {
        re.sub(r"-[A-Z2-7]{16}$", "", chain): [re.sub(r"-[A-Z2-7]{16}", "", r) for r in rules]
        for (table, chain), rules in made(listed, family).items()
        if table == "nat"
    }


def targets(rules: list[str]) -> list[str]:
    """Return where rules lead to."""
    return [rule.partition("-j ")[2].partition(" ")[0] for rule in rules]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "digest"), SERVICES.items())
@pytest.mark.parametrize("kind", ["SVC", "SVL", "EXT", "FW"])
def test_a_services_chains_are_called_as_kube_proxy_calls_them(
    name: str, digest: str, kind: str
) -> None:
    """The names of kube-proxy's own tests come out."""
    assert KUBE.service(kind, name, "tcp") == f"KUBE-{kind}-{digest}"


@pytest.mark.parametrize(("which", "digest"), ENDPOINTS.items())
def test_an_endpoints_chain_is_called_as_kube_proxy_calls_it(
    which: tuple[str, str], digest: str
) -> None:
    """The names of kube-proxy's own tests come out for endpoints, too."""
    name, endpoint = which
    assert KUBE.endpoint(name, "tcp", endpoint) == f"KUBE-SEP-{digest}"


def test_the_protocol_is_part_of_the_name() -> None:
    """A service with two protocols has chains of its own for each."""
    assert KUBE.service("SVC", "dns", "tcp") != KUBE.service("SVC", "dns", "udp")


@pytest.mark.parametrize(
    ("chain", "own"),
    [
        ("NFCTL-SVC-XPGD46QRK7WJZT7O", True),
        ("NFCTL-SEP-XPGD46QRK7WJZT7O", True),
        ("NFCTL-SERVICES", True),
        ("NFCTL-PROXY-FIREWALL", True),
        ("NFCTL-SVC-XPGD46QRK7WJZT7", False),
        ("NFCTL-SVC-xpgd46qrk7wjzt7o", False),
        ("NFCTL-INSPECT", False),
        ("NFCTL-SERVICES2", False),
        ("KUBE-SERVICES", False),
        ("XNFCTL-SERVICES", False),
    ],
)
def test_what_is_one_of_the_chains_by_its_name(chain: str, own: bool) -> None:
    """A chain is ours by the whole of its name: other chains that begin so are not."""
    assert Names("NFCTL-").is_own(chain) is own


@pytest.mark.parametrize("prefix", ["NFCTL-", "LB-", "a-", "A.b_c-", "ABCDEFG-"])
def test_a_prefix_leaves_room_for_every_name(prefix: str) -> None:
    """With a prefix that is taken, the longest name is one that iptables takes."""
    assert check_prefix(prefix) == prefix
    names = Names(prefix)
    longest = [names.fixed(name) for found in FIXED.values() for name in found]
    longest += [names.service("SVC", "x", "tcp"), names.endpoint("x", "tcp", "10.0.0.1:1")]
    assert max(map(len, longest)) <= MAX_NAME
    assert all(map(names.is_own, longest))


@pytest.mark.parametrize("prefix", ["", "-", "LB", "L B-", "-LB-", "LB--", "ABCDEFGH-", "é-", "!-"])
def test_what_is_no_prefix(prefix: str) -> None:
    """What chains cannot begin with is refused."""
    with pytest.raises(BadInput, match="no prefix"):
        check_prefix(prefix)


# --- kube-proxy's shape ---------------------------------------------------------------------------


def test_the_chains_of_kube_proxys_own_test() -> None:
    """Its services come to its chains, each with its jumps in its order."""
    found = made(LIST)
    jumps = {chain: targets(rules) for (table, chain), rules in found.items() if table == "nat"}
    expected = {
        "SERVICES": [
            "SVC-XPGD46QRK7WJZT7O", "SVC-GNZBNJ2PO5MGZ6GT", "EXT-GNZBNJ2PO5MGZ6GT",
            "EXT-GNZBNJ2PO5MGZ6GT", "SVC-X27LE4BHSL4DOUIK", "SVC-4SW47YFZTEDKD3PK",
            "EXT-4SW47YFZTEDKD3PK", "SVC-NUKIZ6OKUXPJNT4C", "FW-NUKIZ6OKUXPJNT4C", "NODEPORTS",
        ],
        "NODEPORTS": ["EXT-GNZBNJ2PO5MGZ6GT", "EXT-X27LE4BHSL4DOUIK", "FW-NUKIZ6OKUXPJNT4C"],
        "POSTROUTING": ["RETURN", "MARK", "MASQUERADE"],
        "MARK-MASQ": ["MARK"],
        "PROXY-CANARY": [],
        "EXT-GNZBNJ2PO5MGZ6GT": ["SVC-GNZBNJ2PO5MGZ6GT", "MARK-MASQ", "SVC-GNZBNJ2PO5MGZ6GT"],
        "EXT-X27LE4BHSL4DOUIK": ["MARK-MASQ", "SVC-X27LE4BHSL4DOUIK"],
        "EXT-4SW47YFZTEDKD3PK": ["MARK-MASQ", "SVC-4SW47YFZTEDKD3PK"],
        "EXT-NUKIZ6OKUXPJNT4C": ["MARK-MASQ", "SVC-NUKIZ6OKUXPJNT4C"],
        "FW-NUKIZ6OKUXPJNT4C": ["EXT-NUKIZ6OKUXPJNT4C", ""],
        "SVC-XPGD46QRK7WJZT7O": ["MARK-MASQ", "SEP-SXIVWICOYRO3J4NJ"],
        "SVC-GNZBNJ2PO5MGZ6GT": ["MARK-MASQ", "SEP-RS4RBKLTHTF2IUXJ"],
        "SVC-X27LE4BHSL4DOUIK": ["MARK-MASQ", "SEP-OYPFS5VJICHGATKP"],
        "SVC-4SW47YFZTEDKD3PK": ["MARK-MASQ", "SEP-UKSFD7AGPMPPLUHC", "SEP-C6EBXVWJJZMIWKLZ"],
        "SVC-NUKIZ6OKUXPJNT4C": ["MARK-MASQ", "SEP-I77PXRDZVX7PMWMN"],
        **{f"SEP-{digest}": ["MARK-MASQ", "DNAT"] for digest in ENDPOINTS.values()},
    }  # fmt: skip
    assert jumps == expected


def test_the_filter_of_kube_proxys_own_test() -> None:
    """What has no endpoints, or no local ones, or is not let in, is refused where it refuses it."""
    found = made(LIST)
    refused = [
        (chain, re.search(r"-d (\S+)/32", rule), rule.partition("-j ")[2].partition(" ")[0])
        for (table, chain), rules in found.items()
        if table == "filter" and chain != "FORWARD"
        for rule in rules
    ]
    assert {(chain, place[1] if place else "", target) for chain, place, target in refused} == {
        ("SERVICES", "172.30.0.46", "REJECT"),
        ("EXTERNAL-SERVICES", "192.168.99.22", "DROP"),
        ("EXTERNAL-SERVICES", "1.2.3.4", "DROP"),
        ("EXTERNAL-SERVICES", "", "DROP"),
        ("PROXY-FIREWALL", "5.6.7.8", "DROP"),
        ("PROXY-FIREWALL", "", "DROP"),
    }


def test_the_way_in_and_out() -> None:
    """The built-in chains lead to ours; nat's where a destination may be translated."""
    _, jumps = chains.compiled(LIST, 4)
    assert {key: targets(rules) for key, rules in jumps.items()} == {
        ("nat", "PREROUTING"): ["KUBE-SERVICES"],
        ("nat", "OUTPUT"): ["KUBE-SERVICES"],
        ("nat", "POSTROUTING"): ["KUBE-POSTROUTING"],
        ("filter", "INPUT"): ["KUBE-PROXY-FIREWALL", "KUBE-EXTERNAL-SERVICES"],
        ("filter", "FORWARD"): [
            "KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES",
        ],
        ("filter", "OUTPUT"): ["KUBE-PROXY-FIREWALL", "KUBE-SERVICES"],
    }  # fmt: skip


# --- shares ---------------------------------------------------------------------------------------


def shares(rules: list[str]) -> list[float]:
    """Return the share of each endpoint, worked out from the chances as the kernel would."""
    left, found = 1.0, []
    for rule in rules:
        chance = re.search(r"--probability (\S+)", rule)
        found.append(left * (float(chance[1]) if chance else 1.0))
        left -= found[-1]
    return found


@pytest.mark.parametrize("number", [1, 2, 3, 5, 100])
def test_alike_endpoints_have_like_shares(number: int) -> None:
    """Of n endpoints the first has 1/n, the next 1/(n-1) of the rest, the last all that is left."""
    endpoints = tuple(Endpoint(f"10.0.{i // 250}.{i % 250 + 1}", 80) for i in range(number))
    rules = nat(Service("web", 80, "tcp", ("10.96.0.1",), endpoints=endpoints))["SVC"]
    chances = [re.search(r"--probability (\S+)", rule) for rule in rules]
    assert [float(c[1]) if c else None for c in chances[:-1]] == pytest.approx(
        [1 / (number - i) for i in range(number - 1)], abs=1e-9
    )
    assert chances[-1] is None
    assert shares(rules) == pytest.approx([1 / number] * number, abs=1e-8)


@given(serving.lists())
def test_shares_are_the_weights(settings: ServiceList) -> None:
    """What the chances come to is each endpoint's weight among those that serve it, in order."""
    for family in (4, 6):
        compiler = chains.Compiler(settings, family)
        names = Names(settings.prefix)
        for service in settings.services:
            own = compiler.service(service).own
            for kind, only_local in (("SVC", False), ("SVL", True)):
                rules = own.get(("nat", names.service(kind, service.name, service.protocol)), [])
                chosen = [r for r in rules if " -> " in r and "--rcheck" not in r]
                serving_ = [
                    e
                    for e in service.endpoints
                    if e.serves and e.family == family and (e.local or not only_local)
                ]
                if not rules:
                    continue
                weights = [endpoint.weight for endpoint in serving_]
                expected = [weight / sum(weights) for weight in weights]
                assert shares(chosen) == pytest.approx(expected, abs=1e-6)
                assert [rule.split('"')[1].split(" -> ")[1] for rule in chosen] == [
                    str(endpoint) for endpoint in serving_
                ]


# --- one service ----------------------------------------------------------------------------------

TWO = (Endpoint("10.0.0.5", 8080), Endpoint("10.0.0.6", 8080, local=True))
WEB = Service("web", 80, "tcp", ("10.96.0.1",), endpoints=TWO)


def test_affinity_comes_before_chance() -> None:
    """Every endpoint is asked whether it had this client lately, and remembers whom it gets."""
    found = nat(WEB._replace(affinity=10800))
    kept = ["--rcheck --seconds 10800 --reap" in rule for rule in found["SVC"]]
    assert kept == [True, True, False, False]
    assert ["recent --set" in rule for rule in found["SEP"]] == [False, True]


@pytest.mark.parametrize("away", [{"ready": False}, {"draining": True}])
def test_who_does_not_serve_gets_nothing(away: dict[str, bool]) -> None:
    """An endpoint that is not ready, or draining, has no chain; the others get its share."""
    endpoints = (TWO[0]._replace(**away), TWO[1])  # type: ignore[arg-type]
    found = nat(WEB._replace(endpoints=endpoints))
    assert found["SVC"] == ['-m comment --comment "web -> 10.0.0.6:8080" -j SEP']
    there = made(ServiceList((WEB._replace(endpoints=endpoints),)))
    assert sum(chain[:4] == "SEP-" for _, chain in there) == 1
    assert "10.0.0.5" not in str(found)


@pytest.mark.parametrize(
    ("family", "ip", "how"),
    [(4, "10.96.0.1", "icmp-port-unreachable"), (6, "fd00::1", "icmp6-port-unreachable")],
)
def test_without_endpoints_it_is_rejected(family: int, ip: str, how: str) -> None:
    """A service that nobody serves is rejected at each of its addresses, and leads nowhere."""
    service = Service("web", 80, "udp", (ip,), (), 30080)
    found = made(ServiceList((service,)), family)
    length = 32 if family == 4 else 128
    loopback = "127.0.0.0/8" if family == 4 else "::1/128"
    assert found["filter", "SERVICES"] == [
        f'-d {ip}/{length} -p udp -m comment --comment "web has no endpoints" -m udp --dport 80 '
        f"-j REJECT --reject-with {how}"
    ]
    assert found["filter", "EXTERNAL-SERVICES"] == [
        f'! -d {loopback} -p udp -m comment --comment "web has no endpoints" '
        f"-m addrtype --dst-type LOCAL -m udp --dport 30080 -j REJECT --reject-with {how}"
    ]
    assert targets(found["nat", "SERVICES"]) == ["NODEPORTS"]
    assert not found["nat", "NODEPORTS"]


def test_internal_traffic_of_this_node() -> None:
    """What comes by a cluster IP goes to local endpoints alone; without one it is dropped."""
    found = nat(WEB._replace(internal_local=True))
    assert targets(found["SERVICES"])[0] == "SVL"
    assert "SVC" not in found
    assert found["SVL"] == ['-m comment --comment "web -> 10.0.0.6:8080" -j SEP']
    nobody = made(ServiceList((WEB._replace(internal_local=True, endpoints=TWO[:1]),)))
    assert targets(nobody["filter", "SERVICES"]) == ["DROP"]
    assert not [chain for _, chain in nobody if chain[:3] in {"SVC", "SVL", "SEP"}]


def test_external_traffic_of_this_node() -> None:
    """What comes from outside goes to local endpoints unmasqueraded; what is inside, to all."""
    service = WEB._replace(external_local=True, external_ips=("198.51.100.7",))
    found = nat(service, cluster=("10.0.0.0/9",))
    assert targets(found["EXT"]) == ["SVC", "MARK-MASQ", "SVC", "SVL"]
    assert found["EXT"][0].startswith("-s 10.0.0.0/9 ")
    assert ["--src-type LOCAL" in rule for rule in found["EXT"]] == [False, True, True, False]
    assert len(found["SVC"]) == 3
    assert len(found["SVL"]) == 1


@pytest.mark.parametrize(
    ("mode", "cluster", "inside", "outside"),
    [
        ("off-cluster", ("10.0.0.0/9",), ["! -s 10.0.0.0/9 -d 10.96.0.1/32"], 1),
        ("off-cluster", (), [], 1),
        ("always", ("10.0.0.0/9",), ["-d 10.96.0.1/32"], 1),
        ("never", ("10.0.0.0/9",), [], 0),
    ],
)
def test_masquerading(mode: str, cluster: tuple[str, ...], inside: list[str], outside: int) -> None:
    """Whom endpoints see as the sender: by cluster IPs as it is said, by external ones the node."""
    service = WEB._replace(external_ips=("198.51.100.7",))
    for listed, own in ((mode, ""), ("always" if mode == "never" else "never", mode)):
        found = nat(service._replace(masquerade=own), cluster=cluster, masquerade=listed)
        marks = [rule for rule in found["SVC"] if rule.endswith("MARK-MASQ")]
        assert [mark.partition(" -p ")[0] for mark in marks] == inside
        assert targets(found["EXT"]).count("MARK-MASQ") == outside
        # an endpoint that comes back to itself has to be in any case
        assert found["SEP"][0] == "-s 10.0.0.6/32 -m comment --comment web -j MARK-MASQ"


def test_source_ranges_of_the_other_family_let_nobody_in() -> None:
    """Where the ranges are of one family alone, nobody comes in by the other."""
    service = Service(
        "web", 80, "tcp", (), ("2001:db8::7",), 0, (Endpoint("fd00::5", 80),), 0, ("192.0.2.0/24",)
    )
    found = nat(service, 6)
    assert found["FW"][0].startswith("-s ::/128 ")
    assert targets(found["FW"]) == ["EXT", ""]
    refused = made(ServiceList((service,)), 6)["filter", "PROXY-FIREWALL"]
    assert targets(refused) == ["DROP"]


def test_the_mark_is_one_of_its_mask() -> None:
    """Another mark is set, looked for and taken off with its mask."""
    found = made(ServiceList((WEB,), mark=0x8, mask=0xFF))
    assert found["nat", "MARK-MASQ"] == ["-j MARK --set-xmark 0x8/0xff"]
    assert found["nat", "POSTROUTING"][0] == "-m mark ! --mark 0x8/0xff -j RETURN"


def marked(rule: str, packet: int) -> int:
    """Return a packet's mark behind a rule ``-j MARK --set-xmark``, as iptables-extensions(8)."""
    found = re.fullmatch(r"-j MARK --set-xmark (0x[0-9a-f]+)/(0x[0-9a-f]+)", rule)
    assert found, rule
    value, mask = (int(text, 16) for text in found.groups())
    return (packet & ~mask) ^ value


_BITS = st.integers(0, 0xFFFFFFFF)


@given(mask=_BITS, part=_BITS, packet=_BITS, family=st.sampled_from([4, 6]))
def test_the_mark_is_taken_off_before_masquerading(
    mask: int, part: int, packet: int, family: int
) -> None:
    """Whatever mark and mask: what was marked leaves without it, all other bits as they were."""
    mark = (mask & part) or mask or 1
    mask = mask or 1
    found = made(ServiceList((WEB,), mark=mark, mask=mask), family)
    (mark_it,) = found["nat", "MARK-MASQ"]
    passed, take_off, masquerade = found["nat", "POSTROUTING"]
    assert passed == f"-m mark ! --mark {mark:#x}/{mask:#x} -j RETURN"
    assert masquerade.endswith("-j MASQUERADE --random-fully")
    asked = marked(mark_it, packet)
    assert asked & mask == mark, "it has to get past the first rule"
    assert marked(take_off, asked) == packet & ~mask


@pytest.mark.parametrize(
    ("family", "nodes"), [(4, ("2001:db8::/64",)), (6, ("192.0.2.0/24", "198.51.100.0/24"))]
)
def test_node_ports_of_a_family_without_node_addresses(family: int, nodes: tuple[str, ...]) -> None:
    """Ranges of the other family alone: nothing is made that nobody would get to."""
    endpoints = (Endpoint("10.0.0.5", 80), Endpoint("fd00::5", 80))
    for here in (endpoints, ()):
        service = Service("web", 80, "tcp", node_port=30080, endpoints=here)
        settings = ServiceList((service,), node_addresses=nodes)
        found = made(settings, family)
        bare = made(settings._replace(services=()), family)
        assert found == bare
        other = made(settings, 10 - family)
        assert ("nat" if here else "filter") in {
            t for (t, _), r in other.items() if "30080" in str(r)
        }


def test_node_ports_on_some_addresses() -> None:
    """Node ports are looked at on the node's addresses that the list names, and come last."""
    service = WEB._replace(node_port=30080)
    nodes = ("192.0.2.1/32", "2001:db8::/64", "198.51.100.0/24")
    rules = nat(service, node_addresses=nodes)["SERVICES"]
    assert targets(rules) == ["SVC", "NODEPORTS", "NODEPORTS"]
    assert [rule.split(" ")[1] for rule in rules[1:]] == ["192.0.2.1/32", "198.51.100.0/24"]
    (last,) = nat(service)["SERVICES"][1:]
    assert last.startswith("! -d 127.0.0.0/8 ")
    assert "--dst-type LOCAL" in last


def test_the_longest_name_fits_into_its_comments() -> None:
    """xt_comment takes 255 characters: what is said of a service of 180 is shorter."""
    service = WEB._replace(
        name="a" * 180, external_ips=("198.51.100.7",), node_port=1, external_local=True,
        source_ranges=("192.0.2.0/24",),
    )  # fmt: skip
    for rules in made(ServiceList((service,), cluster=("10.0.0.0/9",))).values():
        for rule in rules:
            words = [word.text for word in split(rule)]
            for option, text in pairwise(words):
                assert option != "--comment" or len(text) <= 255


# --- any list -------------------------------------------------------------------------------------


@given(serving.lists())
def test_every_jump_leads_to_a_chain_and_every_chain_is_led_to(settings: ServiceList) -> None:
    """No rule jumps where nothing is, and no chain of a service is there for nothing."""
    for family in chains.families(settings):
        found, jumps = chains.compiled(settings, family)
        known = {table: {chain for t, chain in found if t == table} for table, _ in found}
        led = {
            (table, target)
            for (table, _), rules in [*found.items(), *jumps.items()]
            for target in targets(rules)
            if target
        }
        assert all(target in known[table] or target in TARGETS for table, target in led)
        unused = {key for key in found if key not in led}
        fixed = {chain.removeprefix(settings.prefix) for _, chain in unused}
        assert fixed <= {"PROXY-CANARY", "MARK-MASQ", "NODEPORTS"}


@given(serving.lists())
def test_nothing_of_the_other_family_is_in_a_rule(settings: ServiceList) -> None:
    """An address in a rule is of the rule's family, and every chain is one of ours by its name."""
    names = Names(settings.prefix)
    for family in (4, 6):
        found, jumps = chains.compiled(settings, family)
        assert all(names.is_own(chain) for _, chain in found)
        assert all(chain in BUILTIN_CHAINS[table] for table, chain in jumps)
        for rule in [rule for rules in found.values() for rule in rules]:
            words = [word.text for word in split(rule)]
            for option, value in pairwise(words):
                if option in {"-s", "-d", "--to-destination"}:
                    assert (value.count(":") > 1) == (family == 6)


@given(serving.lists())
def test_each_fragment_is_what_the_whole_is_made_of(settings: ServiceList) -> None:
    """The chains of services, one after the other between frame and end, are those of the list."""
    for family in (4, 6):
        compiler = chains.Compiler(settings, family)
        found, jumps = compiler.frame()
        for service in settings.services:
            if family in service.families():
                fragment = compiler.service(service)
                assert not fragment.own.keys() & found.keys()
                chains.add(found, fragment)
        for key, rules in compiler.last().items():
            found[key] += rules
        assert (found, jumps) == chains.compiled(settings, family)
