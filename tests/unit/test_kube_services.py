from __future__ import annotations

import json
import pydoc

import pytest

from nfctl.errors import AnswerNo
from nfctl.services.observed import document, show
from tests.unit.kube import DATA, MODERN, read, service

V1_22 = (DATA / "v1.22.rules").read_text()
V1_18 = (DATA / "v1.18.rules").read_text()
V1_9 = (DATA / "v1.9.rules").read_text()


def plain(text: str, code: str) -> str:  # noqa: ARG001
    return text


def shown(text: str) -> dict[str, dict[str, object]]:
    found = read(text)
    made = document.document([found], found.services, found.problems)
    assert json.loads(json.dumps(made)) == made
    assert made["problems"] == []
    return {entry["name"]: entry for entry in made["services"]}


def test_a_service_with_everything() -> None:
    """The document of a service in all its fields, which other programs rely on."""
    assert shown(MODERN)["shop/web:http"] == {
        "name": "shop/web:http",
        "family": 4,
        "protocol": "tcp",
        "port": 80,
        "addresses": [
            {
                "kind": kind,
                "address": address,
                "port": port,
                "chain": f"KUBE-{chain}-GNZBNJ2PO5MGZ6GT",
                "refused": None,
                "source_ranges": [],
            }
            for kind, address, port, chain in [
                ("cluster", "10.96.0.80", 80, "SVC"),
                ("external", "192.0.2.80", 80, "EXT"),
                ("node", None, 30080, "EXT"),
            ]
        ],
        "endpoints": [
            {
                "address": address,
                "port": 8080,
                "chain": f"KUBE-SEP-{chain}",
                "share": 0.5,
                "local_share": local,
                "weight": 1,
                "hairpin": True,
                "connections": None,
                "chosen": None,
                "local_chosen": None,
            }
            for address, chain, local in [
                ("10.244.0.3", "RS4RBKLTHTF2IUXJ", 1.0),
                ("10.244.1.4", "C6EBXVWJJZMIWKLZ", None),
            ]
        ],
        "affinity": 10800,
        "internal_policy": "cluster",
        "external_policy": "local",
        "masquerade": {"cluster": "off-cluster", "inside": ["10.244.0.0/16"], "external": "local"},
        "refused": False,
        "spread": None,
        "local_spread": None,
    }


def test_the_documents_frame() -> None:
    """Beside the services: the prefix, the mark of each family, and problems with their place."""
    found = read(MODERN.replace("--probability 0.50000000000", "--probability 0.40000000000", 1))
    made = document.document([found], [], found.problems)
    assert made == {
        "prefix": "KUBE-",
        "families": [
            {
                "family": 4,
                "mark": 0x4000,
                "mask": 0x4000,
                "node_addresses": [],
                "counters": False,
            }
        ],
        "services": [],
        "problems": [
            {
                "kind": "probability",
                "message": "the probability is 0.40000000000, equal shares need 0.5000000000",
                "family": 4,
                "table": "nat",
                "chain": "KUBE-SVC-GNZBNJ2PO5MGZ6GT",
                "rule": 4,
                "text": '-m comment --comment "shop/web:http -> 10.244.0.3:8080" -m statistic '
                "--mode random --probability 0.40000000000 -j KUBE-SEP-RS4RBKLTHTF2IUXJ",
                "service": "shop/web:http",
                "protocol": "tcp",
            }
        ],
    }


def test_every_field_is_described() -> None:
    """The docstring that --help names tells every field and every kind of problem."""
    text = pydoc.render_doc(document)
    found = read(MODERN)
    made = document.document([found], found.services, found.problems)
    (web,) = [entry for entry in made["services"] if entry["name"] == "shop/web:http"]
    fields = {*made, *made["families"][0], *web, *web["addresses"][0], *web["endpoints"][0]}
    assert [field for field in sorted(fields) if f"``{field}``" not in text] == []


def test_no_endpoints() -> None:
    """A service that filter rejects has its addresses, and says what refuses them."""
    empty = service(MODERN, "shop/empty:http")
    assert empty.refused
    assert empty.endpoints == []
    assert [(a.kind, a.port, a.chain, a.refused) for a in empty.addresses] == [
        ("cluster", 80, "", "REJECT"),
        ("node", 30066, "", "REJECT"),
    ]


def test_no_local_endpoints() -> None:
    """What is dropped for want of local endpoints is served for others all the same."""
    cart = service(MODERN, "shop/cart:http")
    assert not cart.refused
    assert cart.external == "local"
    assert [(a.kind, bool(a.chain), a.refused) for a in cart.addresses] == [
        ("cluster", True, ""),
        ("external", True, "DROP"),
        ("node", True, "DROP"),
    ]


def test_source_ranges_and_policies() -> None:
    """Source ranges are the load balancer's; an internal policy of local is told by SVL."""
    pay = service(MODERN, "shop/pay:https")
    assert pay.source_ranges == ("203.0.113.0/25", "198.51.100.7/32")
    assert [a.kind for a in pay.addresses if a.source_ranges] == ["load-balancer"]
    assert (pay.internal, pay.external, pay.external_masquerade) == ("cluster", "cluster", "always")
    agent = service(MODERN, "shop/node-agent")
    assert (agent.internal, agent.external) == ("local", "")
    assert [(str(e), e.share, e.local_share) for e in agent.endpoints] == [
        ("10.244.0.8:9000", None, 1.0)
    ]


def test_kube_proxy_1_22() -> None:
    """XLB chains are both the entrance and the local endpoints; FW without ranges is open."""
    found = {s.name: s for s in read(V1_22).services}
    assert read(V1_22).problems == []
    local = found["web/local"]
    assert (local.internal, local.external, local.external_masquerade) == (
        "cluster",
        "local",
        "local",
    )
    assert [e.local_share for e in local.endpoints] == [0.5, 0.5, None]
    assert [round(e.share or 0, 6) for e in local.endpoints] == [0.333333] * 3
    assert found["web/away"].external == "local"
    assert found["web/open"].source_ranges == ()
    assert found["web/open"].external == "cluster"
    assert found["web/ranges"].source_ranges == ("203.0.113.0/24",)


def test_kube_proxy_1_18() -> None:
    """Marks in SERVICES, five digits of a probability, and names that end with a colon."""
    found = {s.name: s for s in read(V1_18).services}
    assert read(V1_18).problems == []
    hello = found["default/hello-world"]
    assert [(a.kind, a.address, a.port) for a in hello.addresses] == [
        ("cluster", "10.43.99.121", 80),
        ("external", "192.0.2.9", 80),
        ("node", "", 30610),
    ]
    assert (hello.masquerade, hello.inside) == ("off-cluster", ("10.42.0.0/16",))
    assert hello.external_masquerade == "always"
    assert sum(e.share or 0 for e in hello.endpoints) == pytest.approx(1)
    assert found["default/gone"].refused


def test_ways_to_masquerade() -> None:
    """All traffic, none, or what does not come in by the bridge of the pods."""
    line = next(x for x in MODERN.split("\n") if "! -s" in x and "10.96.0.10/32" in x)
    always = MODERN.replace(line, line.replace("! -s 10.244.0.0/16 ", ""))
    never = MODERN.replace(line + "\n", "")
    bridge = MODERN.replace(line, line.replace("! -s 10.244.0.0/16 ", "! -i cni+ "))
    names = [service(text, "kube-system/kube-dns:dns") for text in (always, never, bridge)]
    assert [(s.masquerade, s.inside) for s in names] == [
        ("always", ()),
        ("never", ()),
        ("off-cluster", ("-i cni+",)),
    ]


def test_a_dump_of_an_iptables_that_was_too_old() -> None:
    """Where the saved rule does not say where to, comments and sources tell; and it is said."""
    cut = "-j DNAT --to-destination 10.244.0.5:8443"
    for instead in ("-j DNAT [unsupported revision]", "-j DNAT --to-destination :0 --persistent"):
        text = MODERN.replace(cut, instead)
        found = service(text, "shop/pay:https")
        assert [str(e) for e in found.endpoints] == ["10.244.0.5:8443"]
        assert [p.kind for p in read(text).problems] == ["unreadable"]


def test_ipvs_is_told() -> None:
    """In its IPVS mode kube-proxy has no chains of services, and that is said."""
    text = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A KUBE-SERVICES ! -s 10.0.0.0/8 -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
COMMIT
"""
    with pytest.raises(AnswerNo, match="IPVS mode"):
        read(text)


def test_a_dump_without_filter() -> None:
    """Rules of nat alone are read; that nothing is refused in filter cannot be said."""
    nat = "*nat\n" + MODERN.partition("*nat\n")[2]
    assert read(nat).problems == []
    assert len(read(nat).services) == len(read(MODERN).services) - 1


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("shop/web:http", ["shop/web:http"]),
        ("shop/web", ["shop/web:http"]),
        ("kube-dns", ["kube-system/kube-dns:dns"]),
        ("kube-dns/udp", ["kube-system/kube-dns:dns"]),
        ("kube-dns/tcp", []),
        ("10.96.0.10", ["kube-system/kube-dns:dns"]),
        ("192.0.2.50:443", ["shop/pay:https"]),
        ("shop/c*", ["shop/cart:http"]),
        ("*/udp", ["kube-system/kube-dns:dns"]),
        ("shop/c*/udp", []),
        ("agent", ["shop/node-agent"]),
        ("nothing", []),
    ],
)
def test_choosing_services(words: str, names: list[str]) -> None:
    """A name, whole or in part, a pattern, an address and a protocol choose services."""
    assert [s.name for s in show.chosen(read(MODERN), words)] == names


def test_a_service_that_is_called_like_a_protocol() -> None:
    """A whole name counts before a protocol at its end does."""
    text = MODERN.replace("kube-system/kube-dns:dns", "kube-system/tcp")
    assert [s.name for s in show.chosen(read(text), "kube-system/tcp")] == ["kube-system/tcp"]


def test_the_table_fits() -> None:
    """On a terminal no line is wider than it, and every service has one line."""
    found = read(MODERN)
    for width in (80, 60):
        lines = show.table([found], found.services, width, plain).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == len(found.services) + 1
    wide = show.table([found], found.services, 0, plain).splitlines()
    assert wide[4].split() == ["shop/node-agent/tcp", "10.96.0.40:9000", "1", "internal", "local"]
    assert "none: REJECT" in wide[3]
    assert "affinity 10800 s, external local" in wide[6]


def test_the_tree() -> None:
    """The tree has every address and every endpoint with its share, also in plain ASCII."""
    (web,) = [s for s in read(MODERN).services if s.name == "shop/web:http"]
    lines = show.tree([web], plain, ascii_only=True).splitlines()
    assert lines[0] == "shop/web:http/tcp IPv4"
    assert "|- external IP 192.0.2.80:80 -> KUBE-EXT-GNZBNJ2PO5MGZ6GT" in lines
    assert "|- affinity: a client keeps its endpoint for 10800 s" in lines
    assert lines[-2:] == [
        "|- 10.244.0.3:8080  50 %, 100 % of local",
        "`- 10.244.1.4:8080  50 %, not local",
    ]


def test_names_that_a_terminal_would_obey() -> None:
    """Control characters in a comment do not reach the terminal."""
    found = read(MODERN.replace("shop/web:http", "shop/\x1b[31mweb:http"))
    for text in (
        show.table([found], found.services, 80, plain),
        show.tree(found.services, plain),
    ):
        assert "\x1b" not in text
        assert "\\x1b[31mweb" in text


def test_kube_proxy_1_9_among_others() -> None:
    """The oldest shape, and the chains of five other programs: services, and nothing amiss."""
    found = read(V1_9)
    assert found.problems == []
    dns, front, gone = found.services
    assert [(a.kind, a.address, a.port) for a in dns.addresses] == [
        ("cluster", "10.96.0.11", 53),
        ("external", "198.51.100.9", 53),
        ("load-balancer", "192.0.2.6", 53),
        ("node", "", 30053),
    ]
    assert dns.source_ranges == ("203.0.113.0/24", "192.0.2.6/32")
    assert (dns.masquerade, dns.external_masquerade) == ("off-cluster", "always")
    assert (front.affinity, front.internal, front.external) == (10800, "cluster", "local")
    assert [(e.address, e.local_share) for e in front.endpoints] == [
        ("10.244.1.2", None),
        ("10.244.1.3", 1.0),
        ("10.244.1.4", None),
    ]
    assert gone.refused
    assert [a.refused for a in gone.addresses] == ["REJECT", "REJECT"]
