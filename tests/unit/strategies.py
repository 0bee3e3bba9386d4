"""Hypothesis strategies: rules, chains and tables as a user might have them, and worse."""

from __future__ import annotations

import ipaddress
from functools import cache
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset import Chain, Counters, Rule, Ruleset, Setting, Spec, Table, Use
from nfctl.ruleset.names import BUILTIN_CHAINS, POLICIES, TABLES, VERDICTS, check_new_chain

if TYPE_CHECKING:
    from collections.abc import Callable


def refusal(call: Callable[[], object]) -> BadInput | None:
    """Return the BadInput that a call ends in; None where it ends well."""
    try:
        call()
    except BadInput as error:
        return error
    return None


counters = st.builds(Counters, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
#: Anything a line can hold; some surrogates stand for bytes that are not UTF-8.
characters = st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]) | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF
)
texts = st.text(characters, max_size=30)
interfaces = st.from_regex(r"[a-z][a-z0-9.@-]{0,13}\+?", fullmatch=True)
ports = st.integers(0, 65535).map(str)
protocols = st.sampled_from(["tcp", "udp", "icmp", "ipv6-icmp", "sctp", "47", "0x11", "all"])


@cache
def addresses(family: int) -> st.SearchStrategy[str]:
    """Addresses with and without prefix lengths and masks, and lists of them."""
    make = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    bits = 32 if family == 4 else 128
    address = st.integers(0, 2**bits - 1).map(lambda number: str(make(number)))
    one = st.one_of(
        address,
        st.tuples(address, st.integers(0, bits).map(str)).map("/".join),
        st.tuples(address, address).map("/".join),
    )
    return st.one_of(one, st.lists(one, min_size=2, max_size=3).map(",".join))


def _settings(values: st.SearchStrategy[str]) -> st.SearchStrategy[Setting | None]:
    return st.none() | st.builds(Setting, values, st.booleans())


def _use(name: str, *words: str | st.SearchStrategy[str]) -> st.SearchStrategy[Use]:
    made = [st.just(word) if isinstance(word, str) else word for word in words]
    return st.builds(Use, st.just(name), st.tuples(*made))


#: Uses of matches: options with a value, without, with two, inverted, none at all.
matches = st.one_of(
    _use("tcp", "--dport", ports),
    _use("tcp", "!", "--sport", ports, "--syn"),
    _use("tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN"),
    _use("udp"),
    _use("multiport", "--dports", st.lists(ports, min_size=1, max_size=4).map(",".join)),
    _use("comment", "--comment", texts),
    _use("set", "!", "--match-set", "bad", "src,dst"),
    _use("conntrack", "--ctstate", st.sampled_from(["NEW", "RELATED,ESTABLISHED"])),
    _use("mark", "--mark", "0x1/0xff"),
    _use("recent", "--update", "--seconds", ports, "--name", "x", "--rsource"),
    _use("string", "--string", texts, "--algo", "bm", "--icase"),
)
#: Uses of targets and verdicts.
targets = st.one_of(
    st.sampled_from(VERDICTS).map(Use),
    _use("LOG", "--log-prefix", texts, "--log-tcp-options"),
    _use("REJECT", "--reject-with", "icmp-port-unreachable"),
    _use("DNAT", "--to-destination", "192.0.2.1:80", "--random"),
    _use("SET", "--add-set", "bad", "src", "--exist"),
)


@cache
def specs(family: int) -> st.SearchStrategy[Spec]:
    """Return whole rule specifications."""
    fragments = st.none() | st.builds(Setting, st.just(""), st.booleans())
    return st.builds(
        Spec,
        source=_settings(addresses(family)),
        destination=_settings(addresses(family)),
        in_interface=_settings(interfaces),
        out_interface=_settings(interfaces),
        protocol=_settings(protocols),
        fragment=fragments if family == 4 else st.none(),
        matches=st.lists(matches, max_size=3).map(tuple),
        target=st.none() | targets,
        goto=st.just(value=False),
    )


def _may_be_called(name: str) -> bool:
    return '"' not in name and refusal(lambda: check_new_chain(name)) is None


#: Names of chains: the usual ones, and anything that fits and needs no quotes.
chain_names = st.one_of(
    st.from_regex(r"[A-Za-z][A-Za-z0-9_.:-]{0,27}", fullmatch=True),
    st.text(characters, min_size=1, max_size=14),
).filter(_may_be_called)


@st.composite
def tables(draw: st.DrawFn, family: int, name: str) -> Table:
    """Make a table with policies, chains, rules and counters."""
    table = Table.empty(name)
    for chain in table.chains.values():
        chain.policy = draw(st.sampled_from(POLICIES))
        chain.counters = draw(counters)
    builtin = BUILTIN_CHAINS[name]
    found = draw(st.lists(chain_names.filter(lambda n: n not in builtin), unique=True, max_size=3))
    users = sorted(found, key=lambda chain: chain.encode("utf-8", "surrogateescape"))
    table.chains |= {user: Chain(user) for user in users}
    for chain in table.chains.values():
        for spec, count in draw(st.lists(st.tuples(specs(family), counters), max_size=2)):
            jump = draw(st.sampled_from([None, *users]))
            if jump is not None:
                spec = spec._replace(target=Use(jump), goto=draw(st.booleans()))  # noqa: PLW2901
            chain.rules.append(Rule(spec.text(), count))
    return table


@st.composite
def rulesets(draw: st.DrawFn) -> Ruleset:
    """Make a ruleset of either family."""
    family = draw(st.sampled_from([4, 6]))
    names = draw(st.lists(st.sampled_from(TABLES), unique=True, min_size=1, max_size=2))
    return Ruleset(family, {name: draw(tables(family, name)) for name in names})
