from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfctl.inspect.rules import Rules, load
from tests.unit.strategies import refusal

if TYPE_CHECKING:
    from nfctl.errors import BadInput


def complaint(text: str) -> BadInput:
    error = refusal(lambda: load(text, "r.yaml"))
    assert error is not None, text
    return error


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("[1]", "1:1", "a mapping is expected here, not a list", 'under the key "rules"'),
        ("rulez: []", "1:1", 'there is no key "rulez" here', 'did you mean "rules"?'),
        ("version: 2", "1:10", "2 is out of range", ""),
        ("default: mark", "1:10", '"mark" is not possible here', "accept, drop, reject"),
        ("rules: {a: 1}", "1:8", "a list is expected here", ""),
        ("rules: [7]", "1:9", "a mapping is expected here, not 7", ""),
        ("rules: [{}]", "1:9", 'the key "verdict" is missing', ""),
        ("rules: [{verdict: deny}]", "1:19", '"deny" is not possible here', "drop"),
        ("rules: [{verdict: drop, wen: {}}]", "1:25", 'no key "wen"', 'did you mean "when"?'),
        ("rules:\n- {name: a, verdict: drop}\n- {name: a, verdict: drop}", "3:10",
         'there is a rule "a" already', "at r.yaml:2:3"),
        ("rules:\n- {name: rule 2, verdict: drop}\n- {verdict: drop}", "3:3",
         'there is a rule "rule 2" already', "at r.yaml:2:3"),
        ("rules: [{name: default, verdict: drop}]", "1:16", '"default" is what verdicts', ""),
        ("rules: [{name: handler x, verdict: drop}]", "1:16", "of other origin", ""),
        ('rules: [{name: "a\\nb", verdict: drop}]', "1:16", "is no name of a rule", ""),
    ],
)  # fmt: skip
def test_file(text: str, place: str, message: str, hint: str) -> None:
    """What is no rules file is refused at its place, with what would be right."""
    error = complaint(text)
    assert str(error.where) == f"r.yaml:{place}"
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("keys", "column", "message"),
    [
        ("verdict: accept, offload: 1", 27, "text is expected here"),
        ("verdict: mark", 1, 'the verdict "mark" needs the key "mark"'),
        ("verdict: set", 1, 'the verdict "set" needs the key "set"'),
        ("verdict: accept, mark: 1", 18, '"mark" does not go with the verdict "accept"'),
        ("verdict: drop, mark: 1", 16, '"mark" does not go with the verdict "drop"'),
        ("verdict: drop, set: {ttl: 1}", 16, '"set" does not go with the verdict "drop"'),
        ("verdict: mark, mark: 1, offload: flow", 25, '"offload" does not go with'),
        ("verdict: set, set: {ttl: 1}, offload: flow", 30, '"offload" does not go with'),
        ("verdict: repeat, offload: flow", 18, '"offload" does not go with'),
        ("verdict: reject, offload: flow", 18, '"offload" does not go with'),
        ("verdict: repeat, for: 1m", 18, '"for" does not go with the verdict "repeat"'),
        ("verdict: set, set: {ttl: 1}, for: 1m", 30, '"for" does not go with the verdict "set"'),
        ("verdict: drop, per: source", 16, "how long is missing"),
        ("verdict: drop, for: 1m, per: host", 30, '"host" is not possible here'),
        ("verdict: drop, for: soon", 21, '"soon" is no time'),
        ("verdict: drop, for: 0", 21, "0 is no time that something can last"),
        ("verdict: drop, for: -5", 21, "-5 is no time that something can last"),
        ("verdict: drop, for: .inf", 21, "is no time that something can last"),
        ("verdict: drop, for: .nan", 21, "is no time that something can last"),
        ("verdict: drop, for: 1m30", 21, '"1m30" is no time'),
        ("verdict: drop, for: 400d", 21, "400d is no time that something can last"),
        ("verdict: drop, log: 1", 21, "true or false is expected here"),
        ("verdict: mark, mark: 0x100000000", 22, "is no mark"),
        ("verdict: mark, mark: 5000000000", 22, "5000000000 is out of range"),
        ("verdict: mark, mark: 0x11/0x10", 22, "has bits that its mask has not"),
        ("verdict: set, set: {tll: 1}", 21, 'there is no key "tll" here'),
    ],
)
def test_keys_of_a_rule(keys: str, column: int, message: str) -> None:
    """Values that are none, and keys that contradict each other, are refused at their place."""
    error = complaint(f"rules: [\n{{{keys}}}]")
    assert message in error.message
    # The rule itself begins with its brace, one column before its first key.
    assert str(error.where) == f"r.yaml:2:{column if column == 1 else column + 1}"


@pytest.mark.parametrize(
    ("when", "column", "message", "hint"),
    [
        ("5", 1, "a mapping of conditions is expected here", "{proto: tcp"),
        ("{protocol: tcp}", 2, 'there is no condition "protocol"', 'did you mean "proto"?'),
        ("{tls.name: x}", 2, 'there is no condition "tls.name"', ""),
        ("{any: []}", 7, '"any" holds no conditions', ""),
        ("{all: [{}, 3]}", 12, "a mapping of conditions is expected here", ""),
        ("{not: [{dpotr: 1}]}", 9, 'there is no condition "dpotr"', 'did you mean "dport"?'),
        ("{src: []}", 7, "there is no address here", ""),
        ("{src: example.org}", 7, '"example.org" is no address', "another address tomorrow"),
        ("{src: 10.0.0.300}", 7, '"10.0.0.300" is no address', ""),
        ("{src: [10.0.0.1, 10.0.0.1/8]}", 18, "bits behind the prefix are set", "10.0.0.0/8"),
        ("{src: 10.0.0.0/33}", 7, '"33" is no prefix length', "from 0 to 32"),
        ("{src: 10.0.0.0/255.0.0.0}", 7, "is no prefix length", ""),
        ("{src: 10.0.0.9-10.0.0.1}", 7, "ends before it begins", "10.0.0.1-10.0.0.9?"),
        ("{src: '10.0.0.9-::1'}", 7, "begins with IPv4 and ends with IPv6", ""),
        ("{src: 'fe80::1%eth0'}", 7, "is no address", ""),
        ("{dst: 5}", 7, "an address is expected here", ""),
        ("{proto: tpc}", 9, '"tpc" is no protocol', 'did you mean "tcp"?'),
        ("{proto: 256}", 9, "256 is out of range", ""),
        ("{dport: ssh}", 9, '"ssh" is no port number', "write 22"),
        ("{dport: gopher}", 9, '"gopher" is no port number', "write the number"),
        ("{dport: 65536}", 9, "65536 is out of range", ""),
        ("{dport: '80:90'}", 9, '"80:90" is no port', "80-90"),
        ("{dport: 90-80}", 9, "the range 90-80 ends before it begins", "80-90?"),
        ("{dport: 1-70000}", 9, "1-70000 is out of range", ""),
        ("{dport: -1}", 9, "-1 is out of range", ""),
        ("{len: '> 4294967295'}", 7, 'no length in bytes is "> 4294967295"', ""),
        ("{ttl: '=> 5'}", 7, "is no ttl", ""),
        ("{ttl: 1.5}", 7, "is expected here, not 1.5", ""),
        ("{chain: input}", 9, '"input" is not possible here', "INPUT"),
        ("{in: eth*0}", 6, '"eth*0" is no interface', ""),
        ("{in: abcdefghijklmnop}", 6, "is no interface", "15 characters"),
        ("{family: inet6}", 10, '"inet6" is not possible here', "ipv6"),
        ("{icmp: pong}", 8, '"pong" is no type of ICMP', ""),
        ("{icmp: 256}", 8, '"256" is no type of ICMP', ""),
        ("{dscp: af15}", 8, '"af15" is no DSCP', "af1"),
        ("{tcp.flags: 'sin'}", 13, '"sin" is no flag of TCP', 'did you mean "syn"?'),
        ("{tcp.flags: 'syn/ack'}", 13, '"syn/ack" never matches', ""),
        ("{mark: red}", 8, '"red" is no mark', "0x10"),
        ("{fragment: 1}", 12, "true or false is expected here", "write true"),
        ("{dns.type: AAA}", 12, '"AAA" is no type of DNS', 'did you mean "aaaa"?'),
        ("{dns.rcode: nxdoman}", 13, "is no answer code", 'did you mean "nxdomain"?'),
        ("{dns.rcode: 16}", 13, "16 is out of range", ""),
        ("{tls.sni: bücher.example}", 11, "is not how packets write", "xn--bcher-kva.example"),
        ("{tls.sni: 'https://x/'}", 11, "is no domain name", ""),
        ("{tls.sni: [ok, ~]}", 16, "one value is expected here", ""),
        ("{http.status: 99}", 15, "99 is out of range", ""),
        ("{http.path: old}", 13, '"old" is no path', "begins with /"),
        ("{http.method: 'GE T'}", 15, '"GE T" is no method', ""),
        ("{quic.version: v3}", 16, '"v3" is no version of QUIC', ""),
        ("{payload: 'ab(c'}", 14, "missing ), unterminated subpattern", "module re"),
        ("{payload: '(?P<n>a)(?P<n>b)'}", 24, "redefinition of group", ""),
        ("{payload: 'a€'}", 11, '"€" is no byte', "as hex"),
        ("{payload: {hex: 'ab c'}}", 17, "is not hexadecimal", "pairs of digits"),
        ("{payload: {hex: ''}}", 17, "nothing is found everywhere", ""),
        ("{payload: {hex: ab, bytes: c}}", 11, 'either "hex" or "bytes"', ""),
        ("{payload: {text: ab}}", 12, 'there is no key "text" here', ""),
        ("{rate: fast}", 8, '"fast" is no rate', "100/s"),
        ("{rate: 0/s}", 8, '"0/s" is no rate', ""),
        ("{rate: {per: source}}", 8, 'the key "over" is missing', ""),
        ("{rate: {over: 5/s, per: host}}", 25, '"host" is not possible here', ""),
        ("{rate: {over: 5/s, burst: 0}}", 27, "0 is out of range", ""),
        ("{any: [{rate: 5/s}]}", 9, '"rate" stands in "when" itself', ""),
        ("{proto: icmp, dport: 80}", 15, '"dport" and "proto" contradict each other', "see any"),
        ("{proto: udp, tcp.flags: syn}", 14, '"tcp.flags" and "proto" contradict', ""),
        ("{http.host: a, quic.version: v1}", 16, "contradict each other", ""),
        ("{family: ipv6, src: 10.0.0.1}", 16, '"src" and "family" are of different IP', ""),
        ("{src: 10.0.0.1, dst: '::1'}", 17, '"dst" and "src" are of different IP versions', ""),
    ],
)
def test_conditions(when: str, column: int, message: str, hint: str) -> None:
    """What is no condition is refused at its place, with what would be right."""
    error = complaint(f"rules:\n- verdict: drop\n  when:\n    {when}")
    assert message in error.message
    assert hint in error.hint
    assert str(error.where) == f"r.yaml:4:{column + 4}"
    assert error.excerpt.split("\n")[0].strip() == when


_WORDS = st.sampled_from(
    ["rules", "when", "verdict", "drop", "all", "any", "not", "src", "10.0.0.0/8", "dport", "80",
     "payload", "(", "rate", "5/s", "tls.sni", "*.a", "for", "5m", "[", "]", "{", "}", ":", ",",
     "\n- ", "\n  ", " ", "mark", "0x1/0x2", "'", '"', "name", "len", "> 5", "tcp.flags", "syn/"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_WORDS, max_size=20).map("".join) | st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    """Whatever stands in the file, it is rules or a BadInput with its place."""
    error = refusal(lambda: load(text, "f"))
    if error is None:
        assert isinstance(load(text, "f"), Rules)
    else:
        assert error.where is not None
        assert error.where.line
