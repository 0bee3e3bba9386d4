from __future__ import annotations

import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import IP, TCP, UDP

import nfctl.inspect.rules
from nfctl.inspect.flows import Flow
from nfctl.inspect.packet import Packet
from nfctl.inspect.payloads.tls import ClientHello
from nfctl.inspect.rules import EMPTY, UNKNOWN, Facts, Rules, describe, load
from nfctl.inspect.rules.plan import _MOST_HELLOS, _MOST_PLANS
from nfctl.inspect.verdict import Action, Per

SYN = Packet(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1000, dport=443, flags="S")))
DATA = Packet(bytes(IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1000, dport=443) / b"data"))
MALFORMED = Packet(SYN.data[:30])
TCP_ONLY = Facts.of(SYN)


def rules(*lines: str, default: str = "accept") -> Rules:
    return load("\n".join([f"default: {default}", "rules:", *lines]), "f")


def documented() -> list[str]:
    """Return the YAML of the package's docstring."""
    text = nfctl.inspect.rules.__doc__ or ""
    first = text[text.index("    version: 1") : text.index("The first rule that")]
    second = text[text.index("    - when: {any:") : text.index("In Python:")]
    return [first, "rules:\n" + second]


# --- the file -------------------------------------------------------------------------------------


def test_no_rules() -> None:
    """Nothing in the file, or no file, accepts all packets."""
    for own in (EMPTY, load("", "f"), load("rules:", "f"), Rules()):
        assert own.decide(SYN, 0.0).action is Action.ACCEPT
        assert own.decide(SYN, 0.0) is own.default
        assert own.plan(TCP_ONLY, UNKNOWN).fixed is own.default
        flags = (
            own.wants_names, own.reads_payload, own.rejects, own.rewrites, own.offloads,
            own.regexes, own.stateful,
        )  # fmt: skip
        assert flags == (False,) * 7
    assert Rules(default=Action.DROP).decide(SYN, 0.0).action is Action.DROP


def test_verdicts() -> None:
    """Each verdict says what the file says."""
    own = rules(
        "- {name: a, verdict: accept, offload: flow}",
        "- {verdict: drop, for: 1h30m, per: destination, log: true}",
        "- {verdict: mark, mark: 0x10/0xff}",
        "- {verdict: mark, mark: 7}",
        "- {verdict: repeat, mark: 1/1}",
        "- {verdict: reject, for: 2.5}",
        "- {verdict: set, set: {ttl: 3}}",
    )
    one, two, three, four, five, six, seven = (rule.verdict for rule in own.rules)
    assert (one.action, one.by, one.offload) == (Action.ACCEPT, "a", True)
    assert (two.action, two.lasts, two.per, two.log) == (Action.DROP, 5400.0, Per.DESTINATION, True)
    assert (three.action, three.mark) == (Action.ACCEPT, (0x10, 0xFF))
    assert four.mark == (7, 0xFFFFFFFF)
    assert (five.action, five.mark) == (Action.REPEAT, (1, 1))
    assert (six.action, six.lasts, six.per) == (Action.REJECT, 2.5, Per.FLOW)
    assert seven.action is Action.ACCEPT
    assert seven.rewrite is not None
    assert seven.rewrite.ttl == 3
    assert [rule.name for rule in own.rules[:2]] == ["a", "rule 2"]
    assert str(own.rules[1].where) == "f:4:3"
    assert (own.rejects, own.rewrites, own.offloads, own.stateful) == (True, True, True, True)


@pytest.mark.parametrize(
    ("rule", "flags"),
    [
        ("{when: {tls.sni: x}, verdict: drop}", {"wants_names"}),
        ("{when: {not: {any: [{dns.qname: x}]}}, verdict: drop}", {"reads_payload"}),
        ("{when: {payload: {hex: ab}}, verdict: drop}", {"reads_payload"}),
        ("{when: {payload: ab}, verdict: drop}", {"reads_payload", "regexes"}),
        ("{when: {len: 5}, verdict: drop}", set()),
        ("{verdict: reject}", {"rejects"}),
        ("{verdict: drop, for: 5}", {"stateful"}),
        ("{when: {rate: 5/s}, verdict: drop}", {"stateful"}),
        ("{verdict: set, set: {ttl: 1}}", {"rewrites"}),
        (
            "{verdict: set, set: {payload: {replace: a, with: b}}}",
            {"rewrites", "regexes"},
        ),
    ],
)
def test_what_rules_need(rule: str, flags: set[str]) -> None:
    """What the rules need and answer is known before the first packet."""
    own = rules(f"- {rule}")
    known = "wants_names reads_payload rejects rewrites offloads regexes stateful".split()
    assert {name for name in known if getattr(own, name)} == flags


def test_the_documentation_is_right() -> None:
    """The files in the docstring are rules, and every condition and key is explained there."""
    from nfctl.inspect.rules.conditions import CONDITIONS
    from nfctl.inspect.rules.file import _KEYS, _VERDICTS

    for text in documented():
        assert len(load(text, "f").rules) in {1, 5}
    page = pydoc.plain(pydoc.render_doc(nfctl.inspect.rules))
    for word in (*CONDITIONS, *_VERDICTS, *_KEYS, "rate", "all", "any", "not"):
        assert f"``{word}``" in page or f"``{word}:" in page, word


def test_text_for_a_listing() -> None:
    """A rule is said in one line, without what a terminal would obey."""
    own = rules(
        "- {when: {proto: tcp, any: [{dport: [22, 80]}, {not: {src: 10.0.0.0/8}}]}, verdict: drop}",
        '- {when: {payload: "\\x1b[2]J"}, verdict: accept}',
        "- {verdict: reject}",
        "- {when: {tls.sni: [" + ", ".join(["very-long-name.example"] * 99) + "]}, verdict: drop}",
    )
    texts = [rule.text for rule in own.rules]
    assert texts[0] == ("proto tcp, any (dport 22 | 80) | (not (src 10.0.0.0/8)) -> drop")
    assert texts[1] == "payload ?[2]J -> accept"
    assert texts[2] == "every packet -> reject"
    assert len(texts[3]) < 220


# --- what decides ---------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides() -> None:
    """Rules are asked in their order, the default after the last."""
    own = rules("- {when: {dport: 80}, verdict: drop}", "- {when: {ttl: 64}, verdict: reject}",
                "- {when: {proto: tcp}, verdict: drop}")  # fmt: skip
    assert own.decide(SYN, 0.0).by == "rule 2"


def test_malformed_packets() -> None:
    """They get the default verdict; only rules that say malformed: true see them."""
    own = rules("- {verdict: accept}", default="drop")
    verdict = own.decide(MALFORMED, 0.0)
    assert (verdict.action, verdict.by) == (Action.DROP, "malformed")
    own = rules(
        "- {name: all, when: {ttl: 64}, verdict: accept}",
        "- {name: none, when: {malformed: false}, verdict: accept}",
        "- {name: other, when: {malformed: true, src: 10.0.0.9}, verdict: drop}",
        "- {name: it, when: {any: [{malformed: true}, {dport: 1}]}, verdict: reject}",
        default="drop",
    )
    assert own.decide(MALFORMED, 0.0).by == "it"
    assert own.decide(SYN, 0.0).by == "all"
    own = rules("- {name: it, when: {not: {malformed: false}}, verdict: accept}", default="drop")
    assert own.decide(MALFORMED, 0.0).by == "it"
    assert own.decide(SYN, 0.0).by == "default"
    own = rules("- {when: {malformed: true, tls.sni: x}, verdict: accept}", default="drop")
    assert own.decide(MALFORMED, 0.0).by == "malformed"


@pytest.mark.parametrize(
    ("lines", "fixed"),
    [
        (["{when: {dport: 80}, verdict: drop}"], "default"),
        (["{when: {dport: 443}, verdict: drop}"], "rule 1"),
        (["{when: {dport: 443, ttl: 1}, verdict: drop}"], None),
        (["{when: {dport: 443, not: {http.host: x}}, verdict: drop}"], None),
        (["{when: {dns.qname: x}, verdict: drop}"], "default"),
        (["{when: {fragment: true}, verdict: drop}"], "default"),
        (["{when: {fragment: false}, verdict: drop}"], "rule 1"),
        (["{when: {malformed: true}, verdict: drop}"], "default"),
        (["{when: {tls.sni: x}, verdict: drop}"], None),
        (["{when: {not: {tls.sni: x}}, verdict: drop}"], None),
        (["{when: {tls.sni: x, dport: 80}, verdict: drop}"], "default"),
        (["{when: {any: [{tls.sni: x}, {dport: 443}]}, verdict: drop}"], "rule 1"),
        (["{when: {dport: 443}, verdict: drop}", "{when: {tls.sni: x}, verdict: drop}"], "rule 1"),
        (["{when: {rate: 5/s, dport: 443}, verdict: drop}"], None),
        (["{when: {rate: 5/s, dport: 80}, verdict: drop}"], "default"),
        (["{verdict: drop, for: 5}"], None),
        (["{when: {icmp: 8}, verdict: drop}", "{verdict: reject, log: true}"], "rule 2"),
    ],
)
def test_fixed(lines: list[str], fixed: str | None) -> None:
    """A verdict is fixed if neither a packet nor the flow's ClientHello can change it."""
    found = rules(*[f"- {line}" for line in lines]).plan(TCP_ONLY, UNKNOWN).fixed
    assert (found.by if found else None) == fixed


def test_a_settled_flow_has_a_fixed_verdict() -> None:
    """Once the ClientHello is there, or cannot come, names depend on nothing more."""
    own = rules(
        "- {when: {tls.sni: x}, verdict: drop}", "- {when: {tls.alpn: h2}, verdict: reject}"
    )
    found = [
        own.plan(TCP_ONLY, h).fixed for h in (None, ClientHello("x"), ClientHello("", ("h2",)))
    ]
    assert [verdict.by for verdict in found if verdict] == ["default", "rule 1", "rule 2"]


def test_a_plan_from_before_the_client_hello() -> None:
    """A plan that was kept since the first packet knows the ClientHello when that is there."""
    own = rules("- {when: {tls.sni: x}, verdict: drop}", "- {when: {ttl: 3}, verdict: drop}")
    plan = own.plan(TCP_ONLY, UNKNOWN)
    packet = Packet(DATA.data)
    packet.flow = Flow((6, b"", b"", 0, 0), 0.0)
    assert plan.decide(packet, 0.0).by == "default"
    packet.flow.hello = ClientHello("x")
    assert plan.decide(packet, 0.0).by == "rule 1"
    assert own.decide(packet, 0.0).by == "rule 1"


def test_names_of_other_protocols_are_not_waited_for() -> None:
    """What is neither TCP nor UDP never shows a ClientHello: its verdict is fixed at once."""
    own = rules("- {when: {not: {tls.sni: x}}, verdict: drop}")
    fixed = own.plan(TCP_ONLY._replace(proto=1), UNKNOWN).fixed
    assert fixed is not None
    assert fixed.by == "rule 1"


# --- what it costs --------------------------------------------------------------------------------


def test_plans_are_shared() -> None:
    """Flows that no rule tells apart share a plan, however many addresses and ports there are."""
    own = rules(
        "- {when: {src: [10.0.0.0/8, 192.0.2.7]}, verdict: drop}",
        "- {when: {dport: [443, 8000-8100], tls.sni: x}, verdict: drop}",
    )
    plans = {
        own.plan(TCP_ONLY._replace(src=n.to_bytes(4), sport=1024 + n % 5000, dport=dport), UNKNOWN)
        for n in range(0, 1 << 32, 65537 * 16)
        for dport in (443, 8050)
    }
    assert len(plans) == 2
    one = own.plan(TCP_ONLY, ClientHello("a.x"))
    assert own.plan(TCP_ONLY, ClientHello("b.x")) is one
    assert own.plan(TCP_ONLY, ClientHello("x")) is not one or one.fixed is not None


def test_plans_are_not_shared_by_what_conditions_tell_apart() -> None:
    """No port at all is not a port, and the ports of DNS are others than those around them."""
    own = rules("- {when: {dport: 0-100}, verdict: drop}")
    for sport, dport, by in ((1, 0, "rule 1"), (0, 0, "default"), (0, 1, "rule 1")):
        fixed = own.plan(TCP_ONLY._replace(sport=sport, dport=dport), UNKNOWN).fixed
        assert fixed is not None
        assert fixed.by == by
    own = rules("- {when: {dns.qname: '*'}, verdict: drop}")
    for dport, by in ((54, "default"), (53, "rule 1"), (52, "default")):
        query = IP() / UDP(sport=1000, dport=dport) / DNS(qd=DNSQR(qname="a.example"))
        assert own.decide(Packet(bytes(query)), 0.0).by == by


def test_plans_are_bounded() -> None:
    """Neither rules that tell every address apart nor names without end fill the memory."""
    lines = [
        f"- {{when: {{src: 10.0.{n // 250}.{n % 250}, ttl: 1}}, verdict: drop}}" for n in range(80)
    ]
    own = rules(*lines, "- {when: {tls.sni: '*x'}, verdict: drop}")
    for n in range(80):
        facts = TCP_ONLY._replace(src=bytes([10, 0, 0, n]))
        for proto in range(60):
            own.plan(facts._replace(proto=proto), UNKNOWN)
    for n in range(3000):
        own.plan(TCP_ONLY, ClientHello(f"{n}.x"))
    assert 0 < len(own._plans) <= _MOST_PLANS
    assert 0 < len(own._hellos) <= _MOST_HELLOS


def test_packets_pay_for_what_may_match_only() -> None:
    """Of rules about names, nothing is left to ask of a packet that can have none."""
    lines = [
        f"- {{when: {{{key}: '*.n{n}.example'}}, verdict: drop}}"
        for key in ("dns.qname", "tls.sni", "http.host")
        for n in range(10)
    ]
    own = rules(*lines)
    empty = Packet(bytes(IP() / UDP(dport=53)))
    text = Packet(bytes(IP() / TCP(dport=53) / b"text"))
    query = Packet(bytes(IP() / UDP(dport=53) / DNS(qd=DNSQR(qname="a.n9.example"))))
    for packet, hello, left in (
        (SYN, UNKNOWN, 0),
        (DATA, UNKNOWN, 0),
        (DATA, None, 0),
        (DATA, ClientHello("n1.example"), 0),
        (empty, UNKNOWN, 0),
        (text, None, 0),
        (query, UNKNOWN, 10),
    ):
        plan = own.plan(Facts.of(packet), hello)
        plan.decide(packet, 0.0)
        made = [rows for rows, _ in filter(None, (plan._full, plan._plain, plan._bare))]
        assert len(made[0]) == left
        assert own._plans  # and so that each plan is made anew, with one list
        own._plans.clear()
    assert own.decide(query, 0.0).by == "rule 10"


# --- what is odd ----------------------------------------------------------------------------------


def test_description() -> None:
    """Rules that never match are said, with what decides before them."""
    assert describe(rules("- {when: {dport: 1}, verdict: drop}", default="drop")) == [
        "1 rule, default drop"
    ]
    assert describe(EMPTY) == ["0 rules, default accept"]
    own = rules("- {verdict: drop}", "- {name: late, when: {dport: 1}, verdict: drop}")
    assert describe(own)[1:] == [
        'f:4:3: "late" can never match: "rule 1" decides every packet before it'
    ]


@pytest.mark.parametrize(
    ("first", "second", "shadowed"),
    [
        ("{dport: 1-100}", "{dport: [5, 7-9]}", True),
        ("{dport: 1-100}", "{dport: [5, 101]}", False),
        ("{dport: 5}", "{sport: 5}", False),
        ("{dst: 10.0.0.0/8}", "{dst: 10.1.0.0/16, proto: tcp}", True),
        ("{dst: 10.0.0.0/8}", "{dst: [10.1.0.0/16, '::1']}", False),
        ("{dst: 10.0.0.0/8, proto: tcp}", "{dst: 10.1.0.0/16}", False),
        ("{tls.sni: [a, b]}", "{tls.sni: a}", True),
        ("{tls.sni: [a, b]}", "{any: [{tls.sni: a}, {tls.sni: c}]}", False),
        ("{any: [{tls.sni: a}, {ttl: 1}]}", "{all: [{ttl: 1}, {dport: 9}]}", True),
        ("{not: {dport: 5}}", "{not: {dport: 4-6}}", True),
        ("{not: {dport: 4-6}}", "{not: {dport: 5}}", False),
        ("{not: {dport: 5}}", "{dport: 6}", False),
        ("{}", "{malformed: true}", False),
        ("{malformed: true}", "{malformed: true, src: 10.0.0.1}", True),
        ("{rate: 5/s}", "{}", False),
        ("{in: eth0}", "{in: eth0, rate: 5/s}", True),
        ("{len: '> 5'}", "{len: '>= 6'}", True),
        ("{payload: a}", "{payload: {bytes: a}}", False),
    ],
)
def test_shadowed_rules(first: str, second: str, shadowed: bool) -> None:
    """A rule is said to never match only if one before it surely decides all its packets."""
    own = rules(f"- {{when: {first}, verdict: drop}}", f"- {{when: {second}, verdict: accept}}")
    assert (len(describe(own)) == 2) is shadowed


def test_the_rules_need_neither_root_nor_any_library() -> None:
    """Reading rules imports neither scapy nor anything of the kernel's room."""
    code = (
        "import sys; from nfctl.inspect.rules import load;"
        "load('rules: [{when: {tls.sni: x, dscp: ef}, verdict: drop}]', 'f');"
        "print([n for n in sys.modules if n.startswith(('scapy', 'cryptography', 'iptc',"
        " 'netfilterqueue', 'nfctl.kernel', 'ctypes'))])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert ran.stdout.strip() == "[]"
