from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.kube import DATA, MODERN, read

if TYPE_CHECKING:
    from nfctl.services.observed.model import Problem

V1_22 = (DATA / "v1.22.rules").read_text()
V1_18 = (DATA / "v1.18.rules").read_text()
DNS = "KUBE-SVC-TCOU7JCQXEZGVUNU"
DNS_A, DNS_B = "KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-SEP-UKSFD7AGPMPPLUHC"
PAY = "NUKIZ6OKUXPJNT4C"
WEB = "GNZBNJ2PO5MGZ6GT"
CART = "X27LE4BHSL4DOUIK"


def without(text: str, *parts: str) -> str:
    """Leave out the lines that hold all of these; there has to be one."""
    lines = text.split("\n")
    kept = [line for line in lines if not all(part in line for part in parts)]
    assert len(kept) < len(lines)
    return "\n".join(kept)


def changed(text: str, before: str, after: str) -> str:
    assert before in text
    return text.replace(before, after, 1)


def added(text: str, after: str, line: str) -> str:
    """Put a line behind the one that begins so."""
    lines = text.split("\n")
    at = next(i for i, there in enumerate(lines) if there.startswith(after))
    return "\n".join([*lines[: at + 1], line, *lines[at + 1 :]])


def only(text: str) -> Problem:
    problems = read(text).problems
    assert len(problems) == 1, problems
    return problems[0]


# what is broken, and the one problem that it makes: kind, table, chain, number of the rule
BROKEN = {
    "the last jump is conditional": (
        changed(
            MODERN,
            f'10.244.1.2:53" -j {DNS_B}',
            f'10.244.1.2:53" -m statistic --mode random --probability 0.50000000000 -j {DNS_B}',
        ),
        ("shares", "nat", DNS, 3, "shares sum to 75 %"),
    ),
    "a jump that no packet reaches": (
        changed(MODERN, f"--probability 0.50000000000 -j {DNS_A}", f"--probability 1.0 -j {DNS_A}"),
        None,
    ),
    "a probability off by more than rounding": (
        changed(
            MODERN,
            f"--probability 0.50000000000 -j {DNS_A}",
            f"--probability 0.50000000093 -j {DNS_A}",
        ),
        ("probability", "nat", DNS, 2, "equal shares need 0.5000000000"),
    ),
    "a jump that depends on more": (
        changed(
            MODERN,
            f'10.244.1.2:53" -j {DNS_B}',
            f'10.244.1.2:53" -m time --timestart 08:00:00 -j {DNS_B}',
        ),
        ("shares", "nat", DNS, 3, "depends on more than chance"),
    ),
    "a chain that nobody jumps to": (
        changed(MODERN, "*nat\n", "*nat\n:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]\n"),
        ("unused", "nat", "KUBE-SVC-AAAAAAAAAAAAAAAA", 0, "nobody jumps"),
    ),
    "an endpoint without DNAT": (
        without(MODERN, f"-A {DNS_A}", "DNAT"),
        ("no-dnat", "nat", DNS_A, 0, "translates no destination"),
    ),
    "two services on one address": (
        changed(MODERN, "-d 10.96.0.50/32 -p tcp -m comment --comment "
                '"shop/pay:https cluster IP" -m tcp --dport 443 -j',
                "-d 10.96.0.40/32 -p tcp -m comment --comment "
                '"shop/pay:https cluster IP" -m tcp --dport 9000 -j'),
        ("conflict", "nat", "KUBE-SERVICES", 5, "10.96.0.40:9000/tcp is shop/node-agent's"),
    ),
    "two services on one node port": (
        changed(MODERN, "-m tcp --dport 30080 -j KUBE-EXT", "-m tcp --dport 30443 -j KUBE-EXT"),
        ("conflict", "nat", "KUBE-NODEPORTS", 3, "node port:30443/tcp is shop/pay:https's"),
    ),
    "PREROUTING does not jump": (
        without(MODERN, "-A PREROUTING", "KUBE-SERVICES"),
        ("entrance", "nat", "PREROUTING", 0, "does not jump to KUBE-SERVICES"),
    ),
    "OUTPUT of filter does not jump": (
        without(MODERN, "-A OUTPUT", "-j KUBE-SERVICES", "ctstate"),
        ("entrance", "filter", "OUTPUT", 0, "does not jump to KUBE-SERVICES"),
    ),
    "FORWARD of filter does not jump": (
        without(MODERN, "-A FORWARD", "-j KUBE-SERVICES"),
        ("entrance", "filter", "FORWARD", 0, "does not jump to KUBE-SERVICES"),
    ),
    "a jump that depends on a mark": (
        changed(
            MODERN,
            f'10.244.1.2:53" -j {DNS_B}',
            f'10.244.1.2:53" -m mark --mark 0x1/0x1 -j {DNS_B}',
        ),
        ("shares", "nat", DNS, 3, "depends on more than chance"),
    ),
    "nobody jumps to NODEPORTS": (
        without(MODERN, "must be the last rule"),
        ("entrance", "nat", "KUBE-SERVICES", 0, "does not jump to KUBE-NODEPORTS"),
    ),
    "POSTROUTING does not jump": (
        without(MODERN, "-A POSTROUTING", "KUBE-POSTROUTING"),
        ("postrouting", "nat", "POSTROUTING", 0, "does not jump to KUBE-POSTROUTING"),
    ),
    "nothing is masqueraded": (
        without(MODERN, "-A KUBE-POSTROUTING", "-j MASQUERADE"),
        ("postrouting", "nat", "KUBE-POSTROUTING", 0, "masquerades nothing"),
    ),
    "MARK-MASQ sets no mark": (
        without(MODERN, "-A KUBE-MARK-MASQ -j MARK"),
        ("mark", "nat", "KUBE-MARK-MASQ", 0, "sets no mark"),
    ),
    "another mark is looked for": (
        changed(MODERN, "! --mark 0x4000/0x4000 -j RETURN", "! --mark 0x8000/0x8000 -j RETURN"),
        ("mark", "nat", "KUBE-POSTROUTING", 1, "looks for the mark 0x8000/0x8000"),
    ),
    "no local endpoints, and no DROP": (
        without(MODERN, "-A KUBE-EXTERNAL-SERVICES -d 192.0.2.77/32"),
        ("no-endpoints", "nat", f"KUBE-EXT-{CART}", 0, "192.0.2.77:80/tcp has no local endpoints"),
    ),
    "source ranges, and no DROP": (
        without(MODERN, "-A KUBE-PROXY-FIREWALL"),
        ("firewall", "nat", f"KUBE-FW-{PAY}", 0, "from outside the source ranges"),
    ),
    "affinity by another list": (
        changed(
            MODERN,
            "--name KUBE-SEP-RS4RBKLTHTF2IUXJ --mask 255.255.255.255 --rsource -m tcp -j DNAT",
            "--name KUBE-SEP-X --mask 255.255.255.255 --rsource -m tcp -j DNAT",
        ),
        ("affinity", "nat", "KUBE-SEP-RS4RBKLTHTF2IUXJ", 2, "in the list KUBE-SEP-X"),
    ),
    "clients are not remembered": (
        changed(
            MODERN,
            " -m recent --set --name KUBE-SEP-RS4RBKLTHTF2IUXJ --mask 255.255.255.255 --rsource",
            "",
        ),
        ("affinity", "nat", "KUBE-SEP-RS4RBKLTHTF2IUXJ", 2, "not remembered"),
    ),
    "clients of one endpoint do not come back": (
        without(MODERN, f"-A KUBE-SVC-{WEB}", "10.244.1.4", "rcheck"),
        ("affinity", "nat", f"KUBE-SVC-{WEB}", 4, "do not come back"),
    ),
    "a rule of somebody else": (
        added(MODERN, f"-A {DNS} ! -s", f"-A {DNS} -s 192.0.2.1/32 -j ACCEPT"),
        ("foreign", "nat", DNS, 2, "no rule of a service"),
    ),
    "a rule of somebody else in SERVICES": (
        added(MODERN, "-A KUBE-SERVICES -d 10.96.0.10/32", "-A KUBE-SERVICES -s 1.1.1.1/32 -j LOG"),
        ("foreign", "nat", "KUBE-SERVICES", 2, "no rule of services"),
    ),
    "an old XLB without endpoints that drops nothing": (
        without(V1_22, "has no local endpoints"),
        ("no-endpoints", "nat", "KUBE-XLB-2IRACUALRELARSND", 0, "node port:30688/tcp"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", [name for name, (_, wanted) in BROKEN.items() if wanted])
def test_one_fault_makes_one_problem(what: str) -> None:
    """Each fault alone is found, at the table, the chain and the rule where it is."""
    text, wanted = BROKEN[what]
    assert wanted is not None
    kind, table, chain, number, words = wanted
    problem = only(text)
    assert (problem.kind, problem.table, problem.chain, problem.rule) == (
        kind,
        table,
        chain,
        number,
    )
    assert words in problem.message
    if number:
        assert f"-A {chain} {problem.text}" in text


def test_a_jump_that_no_packet_reaches() -> None:
    """Behind a jump that takes all, the next one gets nothing; both are said."""
    text, _ = BROKEN["a jump that no packet reaches"]
    found = read(text)
    assert [(p.kind, p.rule) for p in found.problems] == [("probability", 2), ("unreached", 3)]
    (dns,) = [s for s in found.services if s.name == "kube-system/kube-dns:dns"]
    assert [e.share for e in dns.endpoints] == [1.0, 0.0]


def test_jumps_to_a_chain_that_is_gone() -> None:
    """Every jump to it is named, with the service it serves."""
    text = without(without(MODERN, f":{DNS_A} "), f"-A {DNS_A} ")
    problem = only(text)
    assert (problem.kind, problem.chain, problem.rule) == ("gone", DNS, 2)
    assert (problem.service, problem.protocol) == ("kube-system/kube-dns:dns", "udp")
    svc = without(without(MODERN, f":KUBE-SVC-{PAY} "), f"-A KUBE-SVC-{PAY} ")
    found = {(p.kind, p.chain, p.rule) for p in read(svc).problems}
    assert ("gone", "KUBE-SERVICES", 5) in found
    assert ("gone", f"KUBE-EXT-{PAY}", 2) in found
    assert ("unused", "KUBE-SEP-I77PXRDZVX7PMWMN", 0) in found


def test_a_service_without_endpoints_and_without_reject() -> None:
    """An empty chain of endpoints is a fault, unless filter refuses the address."""
    text = without(MODERN, f"-A KUBE-SVC-{CART} -m comment")
    text = without(text, "-A KUBE-SEP-OYPFS5VJICHGATKP")
    text = without(text, ":KUBE-SEP-OYPFS5VJICHGATKP")
    problem = only(text)
    assert (problem.kind, problem.chain) == ("no-endpoints", f"KUBE-SVC-{CART}")
    assert "10.96.0.77:80/tcp has no endpoints" in problem.message
    reject = (
        "-A KUBE-SERVICES -d 10.96.0.77/32 -p tcp -m comment --comment "
        '"shop/cart:http has no endpoints" -m tcp --dport 80 -j REJECT'
    )
    assert read(added(text, "-A KUBE-PROXY-FIREWALL", reject)).problems == []


def test_what_younger_ones_have() -> None:
    """kube-proxy 1.18 had no jump of FORWARD for external addresses: that is no fault of it."""
    reject = (
        "-A KUBE-EXTERNAL-SERVICES -d 192.0.2.7/32 -p tcp -m comment --comment "
        '"default/gone: has no endpoints" -m tcp --dport 80 -j REJECT'
    )
    text = added(V1_18, "-A KUBE-SERVICES", reject)
    assert read(text).problems == []
    text = without(text, "-A INPUT", "KUBE-EXTERNAL-SERVICES")
    assert only(text).message == "INPUT does not jump to KUBE-EXTERNAL-SERVICES"


def test_unequal_shares_are_weights_of_others() -> None:
    """kube-proxy has no weights; with another prefix unequal shares are what somebody wants."""
    text, _ = BROKEN["a probability off by more than rounding"]
    text = text.replace("0.50000000093", "0.75000000000").replace("KUBE-", "NFCTL-")
    found = read(text)
    assert found.problems == []
    (dns,) = [s for s in found.services if s.name == "kube-system/kube-dns:dns"]
    assert [e.share for e in dns.endpoints] == [0.75, 0.25]


def test_without_any_frame() -> None:
    """Chains of services alone: entrance and postrouting are missing, and that is said."""
    kept = ("*", "COMMIT", ":KUBE-SVC-", ":KUBE-SEP-", ":KUBE-MARK", "-A KUBE-SEP-", "-A KUBE-MARK")
    nat = MODERN.partition("*nat")[2]
    lines = ["*nat", *[line for line in nat.split("\n") if line.startswith(kept)]]
    kinds = {problem.kind for problem in read("\n".join(lines)).problems}
    assert {"entrance", "postrouting", "unused"} <= kinds
