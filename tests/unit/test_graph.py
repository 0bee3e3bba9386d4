from __future__ import annotations

import html
import re
import shutil
import subprocess

import pytest

from nfctl.lab.topology import Shape, Topology, shipped
from nfctl.lab.topology.graph import dot, mermaid, shape_text, tree

NASTY = '"|<b>\\\\N{}`#;'
LAB = f"""\
name: lab
description: 'two words, "quoted", and a \\l'
hosts:
  end:
    forward: true
    interfaces:
      '{NASTY}': {{link: wan, addresses: [192.0.2.1/24, "2001:db8::1/64"]}}
      br0: {{link: lan, bridge: true}}
    rules: {{ipv6: "*filter\\nCOMMIT\\n"}}
    sysctls: {{net.ipv4.tcp_sack: 0}}
  b:
    interfaces: {{eth0: {{link: wan}}, eth1: {{link: lan}}, eth2: {{link: dmz}}}}
    services: {{tcp: [7, 22], dns: 53}}
    resolver: 192.0.2.1
  c:
    interfaces: {{eth0: {{link: dmz, addresses: 192.0.2.9/24}}}}
    routes: {{default: 192.0.2.1, 10.0.0.0/8: 192.0.2.2}}
  d: {{interfaces: {{eth0: {{link: dmz}}}}}}
  alone: {{}}
links: {{wan: {{delay: 10ms, jitter: 500us, loss: 0.5%, rate: 10mbit}}, lan: {{rate: 1500bit}}}}
names: {{www.test: [192.0.2.1, "2001:db8::1"]}}
"""
TREE = """\
lab: two words, "quoted", and a \\l

end  (forwards, IPv6 rules)
├─ "|<b>\\\\N{}`#;  on wan  192.0.2.1/24  2001:db8::1/64
├─ br0            bridge of lan
└─ sysctls        net.ipv4.tcp_sack=0

b
├─ eth0      on wan
├─ eth1      on lan
├─ eth2      on dmz
├─ serves    tcp 7,22  dns 53
└─ resolver  192.0.2.1

c
├─ eth0    on dmz  192.0.2.9/24
└─ routes  default via 192.0.2.1  10.0.0.0/8 via 192.0.2.2

d
└─ eth0  on dmz

alone

links
├─ wan  veth:  end:"|<b>\\\\N{}`#;  b:eth0
│       [delay 10ms, jitter 500us, loss 0.5%, rate 10mbit]
├─ lan  bridge in end:  end:br0  b:eth1  [rate 1500bit]
└─ dmz  switch:  b:eth2  c:eth0  d:eth0

names
└─ www.test  192.0.2.1  2001:db8::1
"""


@pytest.fixture
def lab() -> Topology:
    return Topology.parse(LAB, "lab.yaml")


def test_the_tree_has_all_there_is(lab: Topology) -> None:
    """Hosts with what they have, links with their ends and shapes, names: every fact once."""
    assert tree(lab) == TREE


@pytest.mark.parametrize("name", shipped())
def test_the_tree_of_what_is_shipped_fits_a_terminal(name: str) -> None:
    """Three hosts or twelve: 80 columns, and every host and address is there."""
    topology = Topology.load(name)
    text = tree(topology)
    assert max(map(len, text.split("\n"))) <= 80
    for host in topology.hosts.values():
        assert f"\n{host.name}" in text
        for plan in host.interfaces:
            assert all(address in text for address in plan.addresses)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (Shape(), ""),
        (Shape(delay=1.5), "delay 1.5s"),
        (Shape(delay=0.0025), "delay 2.5ms"),
        (Shape(delay=0.000001), "delay 1us"),
        (Shape(loss=1.0), "loss 100%"),
        (Shape(loss=0.00001), "loss 0.001%"),
        (Shape(rate=10**9), "rate 1gbit"),
        (Shape(rate=2_500_000), "rate 2500kbit"),
        (Shape(rate=1023), "rate 1023bit"),
    ],
)
def test_shapes_are_written_as_they_are_read(shape: Shape, text: str) -> None:
    """The largest unit that tells a quantity exactly, and nothing for what is not there."""
    assert shape_text(shape) == text
    if text:
        key, value = text.split(" ")
        yaml = "name: a\nhosts: {b: {interfaces: {e: {link: l}, f: {link: l}}}}\n"
        found = Topology.parse(f"{yaml}links: {{l: {{{key}: {value}}}}}\n").links["l"].shape
        assert getattr(found, key) == pytest.approx(getattr(shape, key))


# --- Graphviz ----------------------------------------------------------------------------------


def test_the_dot_graph_joins_the_ends(lab: Topology) -> None:
    """A veth pair is one edge with its interfaces at its ends; a bridge is a node of its own."""
    text = dot(lab)
    assert '"host end" -- "host b" [label="wan\\ldelay 10ms' in text
    assert '"host alone" [shape=box, label="alone"];' in text
    assert '"link lan" -- "host end" [headlabel="br0", style=bold];' in text
    assert '"link dmz" -- "host d" [headlabel="eth0"];' in text
    assert text.count(" -- ") == 1 + 2 + 3


def test_dot_strings_are_closed_and_say_what_was_there(lab: Topology) -> None:
    """Read by the rules of the language, the strings hold the names, quotes and backslashes too."""
    text = dot(lab)
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    assert re.sub(r'"(?:[^"\\]|\\.)*"', "", text).count('"') == 0
    read = [re.sub(r"\\(.)", lambda m: "\n" if m[1] == "l" else m[1], part) for part in strings]
    assert NASTY in read
    assert 'two words, "quoted", and a \\l' in read
    assert f"end (forwards, IPv6 rules)\n{NASTY}: 192.0.2.1/24, 2001:db8::1/64\nbr0\n" in read


@pytest.mark.parametrize("name", ["lab", *shipped()])
def test_graphviz_reads_the_graph(name: str, lab: Topology) -> None:
    """dot(1) takes the graph, and finds the nodes and edges that the topology has."""
    if shutil.which("dot") is None:
        pytest.skip("there is no dot(1) here: package graphviz")
    topology = lab if name == "lab" else Topology.load(name)
    done = subprocess.run(
        ["dot", "-Tplain"], input=dot(topology), text=True, capture_output=True, check=True
    )
    assert "Error" not in done.stderr
    bridges = [link for link in topology.links.values() if link.bridge is not None]
    edges = len(topology.links) - len(bridges) + sum(len(link.ends) for link in bridges)
    kinds = [line.split(" ")[0] for line in done.stdout.split("\n")]
    assert kinds.count("node") == len(topology.hosts) + len(bridges)
    assert kinds.count("edge") == edges


# --- Mermaid -----------------------------------------------------------------------------------

_NODE = re.compile(r'  (host|link)_(\w+)(?:\["([^"]*)"\]|\(\["([^"]*)"\]\))')
_EDGE = re.compile(r'  (host|link)_(\w+) (---|===)\|"([^"]*)"\| host_(\w+)')


def labels(text: str) -> list[str]:
    """Return a label's lines as Mermaid shows them."""
    return [html.unescape(re.sub(r"#(\d+);", r"&#\1;", part)) for part in text.split("<br/>")]


def test_the_mermaid_flowchart_is_made_of_nodes_and_edges(lab: Topology) -> None:
    """Every line is a node or an edge between nodes, and labels hold nothing that means more."""
    head, *lines = mermaid(lab).rstrip("\n").split("\n")
    assert head == "flowchart LR"
    nodes: dict[str, list[str]] = {}
    edges = []
    for line in lines:
        node, edge = _NODE.fullmatch(line), _EDGE.fullmatch(line)
        if node:
            nodes[f"{node[1]}_{node[2]}"] = labels(node[3] or node[4])
        else:
            assert edge, line
            assert {f"{edge[1]}_{edge[2]}", f"host_{edge[5]}"} <= nodes.keys()
            edges.append((edge[2], edge[3], labels(edge[4]), edge[5]))
    assert nodes["host_end"] == [
        "end (forwards, IPv6 rules)",
        f"{NASTY}: 192.0.2.1/24, 2001:db8::1/64",
        "br0",
    ]
    assert nodes["link_lan"] == ["lan", "rate 1500bit"]
    assert edges == [
        ("end", "---", ["wan", "delay 10ms, jitter 500us, loss 0.5%, rate 10mbit"], "b"),
        ("lan", "===", ["br0"], "end"),
        ("lan", "---", ["eth1"], "b"),
        ("dmz", "---", ["eth2"], "b"),
        ("dmz", "---", ["eth0"], "c"),
        ("dmz", "---", ["eth0"], "d"),
    ]
    texts = [part for line in lines for part in re.findall(r'"([^"]*)"', line)]
    assert not [text for text in texts if re.search(r"[`\\{}|]|<(?!br/>)", text)]
