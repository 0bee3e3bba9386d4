from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfctl.errors import BadInput, Where
from nfctl.lab.topology import (
    HostPlan,
    InterfacePlan,
    LinkPlan,
    RulesPlan,
    ServicesPlan,
    Shape,
    Topology,
    shipped,
)
from tests.unit.strategies import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE = """\
version: 1
name: router
description: |
  a client,
  a router and a server
hosts:
  client:
    interfaces:
      eth0: {link: wan, addresses: [192.0.2.10/24, "2001:DB8:1::10/64"]}
    routes: {default: [192.0.2.1, "2001:db8:1::1"], 10.0.0.0/8: 192.0.2.1}
  router:
    forward: true
    interfaces:
      wan0: {link: wan, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}
      lan0:
        link: lan
        bridge: true
        addresses: 10.77.0.1/24
    rules:
      ipv4: |
        *filter
        :FORWARD DROP [0:0]
        COMMIT
      ipv6: {file: router.v6}
    sysctls: {net.ipv4.conf.all.rp_filter: 1, net.ipv4.tcp_rmem: 4096 87380 6291456}
  server:
    interfaces:
      eth0: {link: lan, addresses: 10.77.0.10/24}
    routes: {0.0.0.0/0: 10.77.0.1}
    services: {tcp: [7, 22], http: 80, dns: 53}
    resolver: 10.77.0.10
  printer:
    interfaces: {eth0: {link: lan}}
links:
  wan: {delay: 10ms, jitter: 500us, loss: 0.5%, rate: 10Mbit}
names:
  www.Example.test.: [10.77.0.10, "fd77:0::10"]
"""
RULES_6 = "*filter\n:INPUT DROP [0:0]\nCOMMIT\n"


@pytest.fixture
def whole(tmp_path: Path) -> Topology:
    (tmp_path / "router.v6").write_text(RULES_6)
    return Topology.parse(WHOLE, str(tmp_path / "lab.yaml"))


def test_a_whole_topology(whole: Topology, tmp_path: Path) -> None:
    """Everything that a topology can say is in the plans, addresses in their shortest form."""
    assert (whole.name, whole.description) == ("router", "a client, a router and a server")
    assert list(whole.hosts) == ["client", "router", "server", "printer"]
    assert whole.hosts["client"] == HostPlan(
        "client",
        (InterfacePlan("eth0", "wan", ("192.0.2.10/24", "2001:db8:1::10/64")),),
        (("default", "192.0.2.1"), ("default", "2001:db8:1::1"), ("10.0.0.0/8", "192.0.2.1")),
    )
    router = whole.hosts["router"]
    assert router.forward
    assert router.interfaces[1] == InterfacePlan("lan0", "lan", ("10.77.0.1/24",), bridge=True)
    assert router.sysctls == {
        "net.ipv4.conf.all.rp_filter": "1",
        "net.ipv4.tcp_rmem": "4096 87380 6291456",
    }
    inline, file = router.rules
    assert inline == RulesPlan(
        4, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n", Where(str(tmp_path / "lab.yaml"), 21, 9)
    )
    assert file == RulesPlan(6, RULES_6, Where(str(tmp_path / "router.v6"), 1, 1))
    assert (inline.inline, file.inline) == (True, False)
    server = whole.hosts["server"]
    assert server.routes == (("default", "10.77.0.1"),)
    assert server.services == ServicesPlan((7, 22), (80,), (), (53,))
    assert server.resolver == "10.77.0.10"
    assert whole.links == {
        "wan": LinkPlan(
            "wan",
            (("client", "eth0"), ("router", "wan0")),
            None,
            Shape(0.01, 0.0005, 0.005, 10_000_000),
        ),
        "lan": LinkPlan(
            "lan", (("router", "lan0"), ("server", "eth0"), ("printer", "eth0")), "router"
        ),
    }
    assert whole.names == {"www.example.test": ("10.77.0.10", "fd77::10")}


def test_the_names_of_a_lab(whole: Topology) -> None:
    """Hosts are known as HOST and HOST.lab with all their addresses, beside the names given."""
    assert whole.addresses() == {
        "client": ("192.0.2.10", "2001:db8:1::10"),
        "client.lab": ("192.0.2.10", "2001:db8:1::10"),
        "router": ("192.0.2.1", "2001:db8:1::1", "10.77.0.1"),
        "router.lab": ("192.0.2.1", "2001:db8:1::1", "10.77.0.1"),
        "server": ("10.77.0.10",),
        "server.lab": ("10.77.0.10",),
        "printer": (),
        "printer.lab": (),
        "www.example.test": ("10.77.0.10", "fd77::10"),
    }


# --- what cannot be ----------------------------------------------------------------------------

# Three hosts on a line; each test puts one wrong thing where a @ is.
BASE = """\
name: {name}
hosts:
  {host}:
    interfaces:
      {interface}: {{link: {link}, addresses: [{address}]}}
    routes: {{{route}}}
    sysctls: {{{sysctl}}}
    services: {{{services}}}
    resolver: {resolver}
    rules:
      ipv4: {rules}
  router:
    interfaces:
      wan0: {{link: wan, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}}
{end}
"""
GOOD = {
    "name": "lab",
    "host": "client",
    "interface": "eth0",
    "link": "wan",
    "address": '192.0.2.10/24, "2001:db8:1::10/64"',
    "route": "default: 192.0.2.1",
    "sysctl": "net.ipv4.tcp_sack: 0",
    "services": "tcp: 7",
    "resolver": "192.0.2.1",
    "rules": '"*filter\\nCOMMIT\\n"',
    "end": "names: {a.test: 192.0.2.1}",
}
SHAPED = "links: {{wan: {}}}".format


def failure(call: Callable[[], object]) -> BadInput:
    error = refusal(call)
    assert error is not None
    return error


def test_what_the_wrong_things_are_put_into_is_right() -> None:
    """The text that the cases below spoil is a topology as it stands."""
    assert Topology.parse(BASE.format(**GOOD)).links["wan"].bridge is None


@pytest.mark.parametrize(
    ("part", "value", "at", "message", "hint"),
    [
        # names
        ("name", "Lab", "Lab", '"Lab" is no name for a topology', "lower-case letters"),
        ("name", "80", "80", "a topology's name is expected here, not 80", 'quote it: "80"'),
        ("name", "x" * 32, "xxx", "is no name for a topology", "31 at most"),
        ("name", "a\nversion: 2", "2", "there is only version 1", ""),
        ("name", "a\nversion: x", "x", 'an integer is expected here, not "x"', ""),
        ("name", "a\nhost: {}", "host:", 'there is no key "host" here', 'did you mean "hosts"?'),
        ("name", "a\ndescription: [x]", "[", "text is expected here, not a list", ""),
        ("name", 'a\ndescription: "\\e[2J"', '"\\e', "can be printed", ""),
        ("host", "my-host", "my-host", '"my-host" is no name for a host', "lower-case letters"),
        ("host", "../x", "../x", '"../x" is no name for a host', "lower-case letters"),
        # interfaces
        ("interface", "averylongname123", "avery", "no name for an interface", "1 to 15 bytes"),
        ("interface", '"a/b"', '"a/b"', "no name for an interface", "none of /"),
        ("interface", '"a b"', '"a b"', "no name for an interface", "no blanks"),
        ("interface", '"a:b"', '"a:b"', "no name for an interface", "none of / : %"),
        ("interface", "eth%d", "eth%d", "no name for an interface", "none of / : %"),
        ("interface", '".."', '".."', "no name for an interface", ""),
        ("interface", '""', '""', "no name for an interface", ""),
        ("interface", '"äääääääü"', '"ää', "no name for an interface", "bytes"),
        ("interface", "lo", "lo:", 'an interface cannot be called "lo"', "every host has a lo"),
        ("interface", "all", "all", 'an interface cannot be called "all"', "sysctls"),
        ("link", "w-an", "w-an", '"w-an" is no name for a link', ""),
        ("link", "wan, adresses: x", "adresses", "no key", 'did you mean "addresses"'),
        ("link", "lan", "eth0", "the link lan has no other end than client:eth0", '"wan"'),
        ("link", "wan, bridge: yes", "yes", "true or false is expected", "write true"),
        # addresses
        ("address", "192.0.2.10", "192.0.2.10]", "has no prefix length", "192.0.2.10/24"),
        ("address", "192.0.2.300/24", "192.0.2.300", "is no address/length", "192.0.2.1/24"),
        ("address", "192.0.2.1/33", "192.0.2.1/33", "is no address/length", ""),
        ("address", "'fe80::1%eth0/64'", "'fe80", "names an interface", ""),
        ("address", "'::1/128'", "'::1", "the kernel gives ::1 to no interface", ""),
        ("address", "'ff02::1/64'", "'ff02", "the kernel gives ff02::1 to no interface", ""),
        ("address", "80", "80]", "an address/length is expected here, not 80", "quote it"),
        ("address", "192.0.2.9/24, 192.0.2.9/32", "192.0.2.9/32", "on the link wan already", ""),
        # routes
        ("route", "10.0.0.1/8: 192.0.2.1", "10.0.0.1/8", "behind its length", "10.0.0.0/8"),
        ("route", "lan: 192.0.2.1", "lan:", '"lan" is no prefix', '"default"'),
        ("route", "default: 192.0.2.1/24", "192.0.2.1/24}", "is no address", "without a prefix"),
        ("route", "default: router", "router}", '"router" is no address', ""),
        ("route", "default: []", "default", "the route to default has no gateway", ""),
        ("route", "default: 10.0.0.1", "10.0.0.1", "is no neighbour", "192.0.2.0/24 (eth0)"),
        ("route", "default: 192.0.2.10", "192.0.2.10}", "is this host itself", ""),
        ("route", "default: 192.0.2.255", "192.0.2.255", "is a broadcast address", ""),
        ("route", "default: 'fe80::1'", "'fe80", "is link-local", "of the link's prefix"),
        ("route", "10.0.0.0/8: '2001:db8:1::1'", "'2001", "is no IPv4 address", ""),
        ("route", "'fd00::/8': 192.0.2.1", "192.0.2.1}", "is no IPv6 address", ""),
        ("route", "default: [192.0.2.1, 192.0.2.2]", "192.0.2.2]", "in line 6", "each family"),
        ("route", "default: 192.0.2.1, 0.0.0.0/0: 192.0.2.2", "192.0.2.2}", "in line 6", ""),
        ("route", "192.0.2.0/24: 192.0.2.1", "192.0.2.0/24: 1", "is at eth0 itself", ""),
        # sysctls
        ("sysctl", "kernel.panic: 1", "kernel", "is no sysctl of the network", "net.ipv4"),
        ("sysctl", "net/ipv4/ip_forward: 1", "net/", "is no sysctl of the network", ""),
        ("sysctl", "net.../../x: 1", "net...", "is no sysctl of the network", ""),
        ("sysctl", "net.ipv4..x: 1", "net.ipv4..", "is no sysctl of the network", ""),
        ("sysctl", "net.ipv4.x: true", "true", "true is no value of a sysctl", "1 or 0"),
        ("sysctl", "net.ipv4.x: [1]", "[1]", "one value is expected here, not a list", ""),
        ("sysctl", "net.ipv4.x: ", "}\n    services", "one value is expected", ""),
        ("sysctl", 'net.ipv4.x: "1\\n2"', '"1\\n2', "is no value of a sysctl", "one line"),
        # services
        ("services", "tcp: 0", "0}", "0 is out of range", "65535 at most"),
        ("services", "tcp: 65536", "65536", "65536 is out of range", ""),
        ("services", "tcp: http", "http}", "an integer is expected here", ""),
        ("services", "tcp: [80, 80]", "80]", "tcp/80 is served already, by tcp", ""),
        ("services", "tcp: 80, http: 80", "80}", "tcp/80 is served already, by tcp", ""),
        ("services", "dns: 53, udp: [53]", "53]", "udp/53 is served already, by dns", ""),
        ("services", "sctp: 80", "sctp", 'there is no key "sctp" here', "are tcp, http, udp, dns"),
        # the rest of a host
        ("resolver", "dns.test", "dns.test", '"dns.test" is no address', ""),
        ("resolver", "192.0.2.1\n    forwards: 1", "forwards", "no key", 'mean "forward"?'),
        ("rules", "{fil: x}", "fil:", 'there is no key "fil" here', 'did you mean "file"?'),
        ("rules", "[a]", "[a]", "text is expected here, not a list", ""),
        ("rules", "{file: none.v4}", "none.v4", "cannot read", "relative to"),
        (
            "rules",
            "x\n      ipv5: y",
            "ipv5",
            'there is no key "ipv5" here',
            "known are ipv4, ipv6",
        ),
        ("rules", '"*filter\\nXYZ\\nCOMMIT"', "XYZ", "no command in this line", "-A CHAIN"),
        (
            "rules",
            "|\n        *filter\n        -A X -j Y\n        COMMIT",
            "-A X",
            "no chain X",
            ":X - [0:0]",
        ),
        (
            "rules",
            '|\n        *filter\n        -A INPUT -m x "y\n        COMMIT',
            '"y',
            "quote is opened",
            "",
        ),
        ("rules", "|\n        *filter\n        :X FOO", "FOO", "a policy is ACCEPT or DROP", ""),
        ("rules", "|\n        *nat\n        :X -", "\n  router", "COMMIT is missing", ""),
        ("rules", "|\n        *x\n        COMMIT", "x\n        C", "there is no table 'x'", ""),
        ("rules", "|\n        # nothing", "# nothing", "there is no table in this input", ""),
        # links and names
        ("end", "links: {lan: {}}", "lan:", "no interface is on the link lan", "are wan"),
        ("end", SHAPED("{delay: 10}"), "10}", "10 has no unit", "10ms"),
        ("end", SHAPED("{delay: 10m}"), "10m}", '"10m" is no time', "500us"),
        ("end", SHAPED("{delay: -1ms}"), "-1ms", '"-1ms" is no time', ""),
        ("end", SHAPED("{delay: 300s}"), "300s", "300s is too long", "274s at most"),
        ("end", SHAPED("{jitter: 1ms}"), "jitter", "jitter needs a delay to vary", ""),
        ("end", SHAPED("{loss: 0.5}"), "0.5}", "0.5 has no unit", "0.5%"),
        ("end", SHAPED("{loss: 101%}"), "101%", "is more than everything", "100% at most"),
        ("end", SHAPED("{loss: 1ms}"), "1ms", '"1ms" is no loss', "0.5%"),
        ("end", SHAPED("{rate: 10mb}"), "10mb", '"10mb" is no rate', "10mbit"),
        ("end", SHAPED("{rate: 0bit}"), "0bit", "0bit is out of range", "8bit at least"),
        ("end", SHAPED("{rate: 99999999tbit}"), "9999", "is out of range", ""),
        ("end", SHAPED("{rate: fast}"), "fast", '"fast" is no rate', ""),
        ("end", SHAPED("{speed: 1}"), "speed", "no key", "known are delay, jitter, loss, rate"),
        ("end", "names: {a_b!.test: 192.0.2.1}", "a_b!", "is no DNS name", "labels"),
        ("end", "names: {-a: 192.0.2.1}", "-a:", "is no DNS name", ""),
        ("end", f"names: {{{'a' * 64}: 192.0.2.1}}", "aaa", "is no DNS name", "63 at most"),
        ("end", "names: {a: 192.0.2.1, A.: 192.0.2.1}", "A.", "the name a is there already", ""),
        ("end", "names: {client.lab: 192.0.2.1}", "client.lab", "is a host's name", "HOST.lab"),
        ("end", "names: {a: []}", "a: []", "the name a has no address", ""),
        ("end", "names: {a: x}", "x}", '"x" is no address', ""),
    ],
)
def test_what_cannot_be_is_refused_at_its_place(
    part: str, value: str, at: str, message: str, hint: str, tmp_path: Path
) -> None:
    """Every wrong value of every field: what is wrong, what would be right, line and column."""
    text = BASE.format(**{**GOOD, part: value})
    error = failure(lambda: Topology.parse(text, str(tmp_path / "x.yaml")))
    assert message in error.message
    assert hint in error.hint
    # where the word stands, in what was put in
    before = BASE.split(f"{{{part}}}", maxsplit=1)[0].format(**GOOD)
    index = text.index(at, before.rfind("\n") + 1)
    where = error.where
    assert where is not None
    assert where.source == str(tmp_path / "x.yaml")
    expected = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    assert (where.line, where.column) == expected
    assert error.excerpt.endswith("^")


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("", "f:1:1", 'the key "name" is missing'),
        ("name: a", "f:1:1", 'the key "hosts" is missing'),
        ("name: a\nhosts: {}", "f:2:8", "one host at least"),
        ("name: a\nhosts:", "f:2:7", "one host at least"),
        ("name: a\nhosts: [b]", "f:2:8", "a mapping is expected here, not a list"),
        ("[]", "f:1:1", "a mapping is expected here, not a list"),
        ("name: a\nhosts: {b: {interfaces: {e: {}}}}", "f:2:29", 'the key "link" is missing'),
        ("name: a\nhosts: {b: {}, b: {}}", "f:2:16", 'the key "b" is there already'),
        ("name: a\n\thosts: b", "f:2:1", "tab character"),
        (
            "name: a\nhosts:\n  b: {interfaces: {e: {link: l, bridge: true}}}\n"
            "  c: {interfaces: {e: {link: l, bridge: true}}}\n",
            *("f:4:20", "the link l has its bridge already, in line 3"),
        ),
    ],
)
def test_a_text_that_is_no_topology(text: str, where: str, message: str) -> None:
    """What lacks the frame of a topology is refused as well."""
    error = failure(lambda: Topology.parse(text, "f"))
    assert str(error.where) == where
    assert message in error.message


def test_an_error_in_a_file_of_rules_is_at_its_place_there(tmp_path: Path) -> None:
    """Rules in a file of their own: the error names that file, and shows its line."""
    (tmp_path / "bad.v4").write_text("*filter\n:INPUT FOO\nCOMMIT\n")
    text = BASE.format(**{**GOOD, "rules": "{file: bad.v4}"})
    error = failure(lambda: Topology.parse(text, str(tmp_path / "x.yaml")))
    assert str(error.where) == f"{tmp_path / 'bad.v4'}:2:8"
    assert error.excerpt == "  :INPUT FOO\n         ^"


def test_a_policy_is_read_with_the_topology(tmp_path: Path) -> None:
    """A host's policy lies beside the topology; an error in it is at its place there."""
    text = "name: x\nhosts:\n  a:\n    policy: fw.yaml\n"
    source = str(tmp_path / "x.yaml")
    error = failure(lambda: Topology.parse(text, source))
    assert str(error.where) == f"{source}:4:13"
    (tmp_path / "fw.yaml").write_text("version: 1\ntables: {filter: {INPUT: {policy: no}}}\n")
    error = failure(lambda: Topology.parse(text, source))
    assert str(error.where) == f"{tmp_path / 'fw.yaml'}:2:35"
    (tmp_path / "fw.yaml").write_text("version: 1\ntables: {filter: {INPUT: {policy: drop}}}\n")
    topology = Topology.parse(text, source)
    assert topology.hosts["a"].policy == str(tmp_path / "fw.yaml")
    assert Topology.from_document(json.loads(json.dumps(topology.document()))) == topology


def test_rules_that_only_libxtables_can_judge_are_left_to_it() -> None:
    """Short options, host names and extensions are no business of a topology."""
    lines = ["-A INPUT -s10.0.0.1 -jACCEPT", "-A INPUT -c 1 2 --proto tcp", "-N X", "-A X -m what"]
    rules = "|\n" + "".join(f"        {line}\n" for line in ["*filter", *lines, "COMMIT"])
    topology = Topology.parse(BASE.format(**{**GOOD, "rules": rules}))
    assert topology.hosts["client"].rules[0].text == "\n".join(["*filter", *lines, "COMMIT", ""])


def test_rules_that_are_not_utf8_survive(tmp_path: Path) -> None:
    """A comment in Latin-1 in a file of rules is kept byte by byte, also in the document."""
    data = b"*filter\n-A INPUT -m comment --comment caf\xe9\nCOMMIT\n"
    (tmp_path / "x.v4").write_bytes(data)
    text = BASE.format(**{**GOOD, "rules": "{file: x.v4}"})
    topology = Topology.parse(text, str(tmp_path / "x.yaml"))
    assert topology.hosts["client"].rules[0].text.encode("utf-8", "surrogateescape") == data
    assert Topology.from_document(json.loads(json.dumps(topology.document()))) == topology


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("{delay: 2s}", Shape(delay=2.0)),
        ("{delay: 1.5msec, jitter: 10usecs}", Shape(delay=0.0015, jitter=0.00001)),
        ("{loss: 100%}", Shape(loss=1.0)),
        ("{loss: 0%}", Shape()),
        ("{rate: 1gbit}", Shape(rate=10**9)),
        ("{rate: 512kbit}", Shape(rate=512_000)),
        ("{rate: 1Kibit}", Shape(rate=1024)),
        ("{rate: 1mbps}", Shape(rate=8_000_000)),
        ("{rate: 2.5kibps}", Shape(rate=20480)),
        ("", Shape()),
    ],
)
def test_units_are_those_of_tc(text: str, shape: Shape) -> None:
    """Times, losses and rates as in UNITS of tc(8), whose bps is bytes a second."""
    found = Topology.parse(BASE.format(**{**GOOD, "end": SHAPED(text)})).links["wan"].shape
    assert found.rate == shape.rate
    assert (found.delay, found.jitter, found.loss) == pytest.approx(
        (shape.delay, shape.jitter, shape.loss)
    )
    assert bool(found) == bool(shape)


# --- where from --------------------------------------------------------------------------------


def test_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, standard input, or a name that comes with nfctl; anything else is BadInput."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(BASE.format(**GOOD))
    assert Topology.load("my.yaml").hosts["client"].rules[0].where.source == "my.yaml"
    assert Topology.load("./my.yaml").name == Topology.load(str(tmp_path / "my.yaml")).name
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"name: a\nhosts: [b")))
    assert str(failure(lambda: Topology.load("-")).where) == "<stdin>:2:8"
    assert Topology.load("router").name == "router"

    def refused(word: str) -> tuple[str, str]:
        error = failure(lambda: Topology.load(word))
        return error.message, error.hint

    assert refused("rooter") == (
        'there is no topology "rooter"',
        'did you mean "router"? there are node, router',
    )
    Path("mine").write_text("")
    assert refused("mine")[1] == "the file of that name is ./mine"
    assert "No such file" in refused("./none")[0]
    assert "Is a directory" in refused("/")[0]
    assert refused("") == ('there is no topology ""', "there are node, router")


@pytest.mark.parametrize("name", ["router", "node"])
def test_what_is_shipped_is_sound(name: str) -> None:
    """Each topology that comes along is called as its file, says what it is, and has no rules."""
    topology = Topology.load(name)
    assert topology.name == name
    assert shipped()[name] == topology.description != ""
    assert not any(host.rules for host in topology.hosts.values())
    first = (Path(__file__).parents[2] / f"nfctl/lab/topology/shipped/{name}.yaml").read_text()
    assert first.startswith("# ")


def test_the_shipped_router_is_the_demo_s_network() -> None:
    """The demo's addresses are those of the topology, and what it probes is served there."""
    from nfctl.lab.demo.network import ADDRESSES
    from nfctl.lab.demo.probes import PROBES

    router = Topology.load("router")
    found = router.addresses()
    for host in ("client", "router", "server"):
        assert set(ADDRESSES[host].values()) <= set(found[host])
    assert ADDRESSES["visitor"][4] in found["client"]
    served = {
        (host.name, protocol, port)
        for host in router.hosts.values()
        for protocol, ports in (
            ("tcp", host.services.tcp),
            ("http", host.services.http),
            ("udp", host.services.udp),
        )
        for port in ports
    }
    for probe in PROBES:
        if probe.protocol != "icmp":
            target = (probe.arrives or f"{probe.target}:{probe.port}").split(":")
            assert (target[0], probe.protocol, int(target[1])) in served


def test_the_shipped_node_has_ten_endpoints_behind_its_bridge() -> None:
    """Ten endpoints that answer, a bridge in the node, and routes to the service network."""
    node = Topology.load("node")
    assert node.links["pods"].bridge == "node"
    assert len(node.links["pods"].ends) == 11
    for number in range(1, 11):
        host = node.hosts[f"ep{number}"]
        assert node.addresses()[host.name] == (f"10.244.0.{number + 10}", f"fd44::{number + 10}")
        assert host.services == ServicesPlan(tcp=(8080,), http=(80,), udp=(5353,))
        assert host.routes == (("default", "10.244.0.1"), ("default", "fd44::1"))
    assert ("10.96.0.0/16", "192.0.2.1") in node.hosts["client"].routes
    assert ("fd96::/112", "2001:db8:1::1") in node.hosts["client"].routes
    assert node.hosts["node"].forward


# --- there and back ----------------------------------------------------------------------------

words = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)
PORTS = st.lists(st.integers(1, 65535), unique=True, max_size=8)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Make a topology, and only such as a file can say."""
    names = draw(st.lists(words, unique=True, min_size=2, max_size=5))
    ends: dict[str, list[tuple[str, str]]] = {}
    bridges: dict[str, str] = {}
    interfaces: dict[str, list[InterfacePlan]] = {name: [] for name in names}
    sets = draw(st.dictionaries(words, st.sets(st.sampled_from(names), min_size=2), max_size=3))
    members = {link: sorted(hosts) for link, hosts in sets.items()}
    number = 0
    for host in names:
        for link, hosts in members.items():
            if host in hosts:
                number += 1
                bridge = link not in bridges and draw(st.booleans())
                if bridge:
                    bridges[link] = host
                addresses = (
                    f"10.{list(members).index(link)}.0.{number}/16",
                    f"fd00::{number:x}/64",
                )
                plan = InterfacePlan(f"eth{number}.{link[0]}", link, addresses, bridge)
                interfaces[host].append(plan)
                ends.setdefault(link, []).append((host, plan.name))
    times = st.integers(1, 10**6).map(lambda us: us * 1e-6)
    shapes = st.builds(
        Shape,
        delay=times,
        jitter=st.just(0.0) | times,
        loss=st.integers(0, 100).map(lambda percent: percent / 100),
        rate=st.just(0) | st.integers(8, 10**12),
    )
    links = {
        link: LinkPlan(
            link,
            tuple(joined),
            bridges.get(link, "" if len(joined) > 2 else None),
            draw(st.just(Shape()) | shapes),
        )
        for link, joined in ends.items()
    }
    plans = {}
    for host in names:
        ports = draw(PORTS)
        gateways = [f"10.{list(members).index(plan.link)}.9.9" for plan in interfaces[host]]
        plans[host] = HostPlan(
            host,
            tuple(interfaces[host]),
            tuple((f"192.168.{i}.0/24" if i else "default", via) for i, via in enumerate(gateways)),
            draw(st.booleans()),
            draw(st.dictionaries(words.map("net.ipv4.{}".format), words, max_size=2)),
            (),
            ServicesPlan(*(tuple(ports[kind::4]) for kind in range(4))),
            draw(st.sampled_from(["", "192.0.2.53", "fd00::35"])),
        )
    dns = st.lists(words, min_size=1, max_size=3).map(lambda found: ".".join(["n0", *found, "x"]))
    found = st.lists(st.ip_addresses().map(str), unique=True, min_size=1, max_size=3).map(tuple)
    return Topology(
        draw(words),
        plans,
        links,
        " ".join(draw(st.lists(words, max_size=3))),
        draw(st.dictionaries(dns, found, max_size=2)),
    )


def to_yaml(topology: Topology) -> str:
    """Write a topology as a file would say it; JSON is YAML."""

    def host(plan: HostPlan) -> dict[str, object]:
        return {
            "interfaces": {
                i.name: {"link": i.link, "addresses": i.addresses, "bridge": i.bridge}
                for i in plan.interfaces
            },
            "routes": dict(plan.routes),
            "forward": plan.forward,
            "sysctls": plan.sysctls,
            "services": {
                kind: getattr(plan.services, kind) for kind in ("tcp", "http", "udp", "dns")
            },
            **({"resolver": plan.resolver} if plan.resolver else {}),
        }

    def shape(plan: Shape) -> dict[str, str]:
        return {
            "delay": f"{plan.delay:.6f}s",
            "jitter": f"{plan.jitter * 1e6:.0f}us",
            "loss": f"{plan.loss * 100:.0f}%",
            **({"rate": f"{plan.rate}bit"} if plan.rate else {}),
        }

    return json.dumps(
        {
            "name": topology.name,
            "description": topology.description,
            "hosts": {name: host(plan) for name, plan in topology.hosts.items()},
            "links": {name: shape(plan.shape) for name, plan in topology.links.items()},
            "names": topology.names,
        }
    )


@settings(deadline=None)  # a busy machine takes its time
@given(topologies())
def test_there_and_back(topology: Topology) -> None:
    """A topology written as YAML is read as the same one, and survives its JSON document."""
    found = Topology.parse(to_yaml(topology))
    assert found.hosts == topology.hosts
    assert found.names == topology.names
    assert (found.name, found.description) == (topology.name, topology.description)
    assert found.links.keys() == topology.links.keys()
    for name, link in topology.links.items():
        other = found.links[name]
        assert (other.ends, other.bridge, other.shape.rate) == (
            link.ends,
            link.bridge,
            link.shape.rate,
        )
        times = (other.shape.delay, other.shape.jitter, other.shape.loss)
        assert times == pytest.approx((link.shape.delay, link.shape.jitter, link.shape.loss))
    assert Topology.from_document(json.loads(json.dumps(found.document()))) == found


def test_the_document_keeps_everything(whole: Topology) -> None:
    """Rules with their places, shapes and bridges survive JSON; the document tells its version."""
    document = json.loads(json.dumps(whole.document()))
    assert document["version"] == 1
    assert Topology.from_document(document) == whole


@pytest.mark.parametrize(
    "document",
    [{}, {"name": "a"}, {"name": "a", "hosts": [], "links": {}, "description": "", "names": {}}],
)
def test_what_is_no_record_of_a_topology(document: dict[str, object]) -> None:
    """A record that is damaged is BadInput, not a traceback."""
    assert "no record of a topology" in failure(lambda: Topology.from_document(document)).message


@pytest.mark.parametrize("key", ["interfaces", "routes", "services", "rules"])
def test_a_damaged_host_is_no_record(whole: Topology, key: str) -> None:
    """A host's plan that lost a part, or has a wrong one, is BadInput too."""
    document = json.loads(json.dumps(whole.document()))
    document["hosts"]["router"][key] = 7
    assert "no record" in failure(lambda: Topology.from_document(document)).message
    del document["hosts"]["router"][key]
    assert "no record" in failure(lambda: Topology.from_document(document)).message
