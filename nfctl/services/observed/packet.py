"""The first packet of a connection, as far as it is known, and which rules it meets.

What cannot be known (the source is not said, or a match is none of those read here) is asked for
by raising :class:`Unknown`: the walk is done again with either answer.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.observed.rules import Dump, Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
# up to 1.23: what comes by no port of a bridge, and from elsewhere
_NO_BRIDGE = "-m physdev ! --physdev-is-in"
_ELSEWHERE = "! --src-type LOCAL"
_NEW = "-m conntrack --ctstate "
_INTERFACE = re.compile(r"(! )?-i [^ ]+")
_SOURCE = "source "  # how questions about the source begin; networks follow
_LOCAL = "local"


class Connection(NamedTuple):
    """What is asked about: the first packet of a connection."""

    host: str  # "" for any address of the node that node ports are served on
    port: int
    protocol: str
    family: int  # 4, 6; 0 for either
    source: str = ""  # "" where it is not said
    here: bool | None = None  # whether this host itself sends it; None for either
    local: bool | None = None  # whether the destination is this host's; None where not known

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host or "node"
        return f"{host}:{self.port}/{self.protocol}"


class Unknown(Exception):
    """No error but a question: the walk is done again with the answer."""

    def __init__(self, key: str) -> None:
        self.key = key


@lru_cache(maxsize=1024)
def network(text: str) -> Network | None:
    """Return an address or a network; None for what is neither."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def words(key: str, holds: bool, host: str) -> str:
    """Say a question and its answer."""
    if key.startswith(_SOURCE):
        *others, last = key.removeprefix(_SOURCE).split(", ")
        nets = f"{', '.join(others)} or {last}" if others else last
        return f"the source is {'' if holds else 'not '}in {nets}"
    if key == _LOCAL:
        return f"{host} is {'' if holds else 'not '}an address of this node"
    return key if holds else f"not {key}"


class Packet:
    """A packet at one entrance of nat, PREROUTING or OUTPUT, with the answers there are."""

    def __init__(
        self, dump: Dump, prefix: str, connection: Connection, entrance: str, known: dict[str, bool]
    ) -> None:
        self.connection, self.known = connection, known
        self.own = entrance == "OUTPUT"  # sent by this host
        self.host = network(connection.host) if connection.host else None
        self.source = network(connection.source) if connection.source else None
        self._nodeports = f"{prefix}NODEPORTS"
        self._nat = dump.chains("nat")
        self._loopback = _LOOPBACK[dump.family]
        self._port = str(connection.port)

    def ask(self, key: str) -> bool:
        """Return what is known; Unknown otherwise."""
        if key not in self.known:
            raise Unknown(key)
        return self.known[key]

    def meets(self, rule: Rule, chain: str) -> bool:
        """Whether the packet meets a rule; Unknown where that is to be asked."""
        wanted = self.connection
        if rule.port is not None and rule.port != self._port:
            return False
        if rule.protocol not in {None, wanted.protocol, "all"}:
            return False
        if rule.check is not None:
            return False  # a client that comes the first time
        if rule.destination is not None and not self._goes_to(rule):
            return False
        if rule.local == "dst" and not self._is_here(rule):
            return False
        if rule.local == "src" and not self.own:
            return False
        if rule.source is not None and not self._comes_from(rule, chain):
            return False
        if rule.mark is not None and not self._marked(rule.mark):
            return False
        return not rule.other or self._other(rule)

    def may_meet(self, rule: Rule, chain: str) -> bool:
        """Whether the packet meets a rule, or may: nothing is asked for it."""
        try:
            return self.meets(rule, chain)
        except Unknown:
            return True

    def comes_from_one(self, rules: Sequence[Rule]) -> bool:
        """Whether the source is in one of the networks that rules are for."""
        nets = [net for rule in rules if (net := network(rule.source or ""))]
        return bool(nets) and self._inside(nets)

    def at_home(self) -> bool | None:
        """Whether the destination is an address of this node; None where it is not known."""
        if self.connection.local is not None:
            return self.connection.local
        if self.host is None or self.host.is_loopback:
            return True
        return self.known.get(_LOCAL)

    def ask_at_home(self) -> bool:
        """Whether the destination is an address of this node; Unknown where it is not known."""
        found = self.at_home()
        return self.ask(_LOCAL) if found is None else found

    # --- conditions -----------------------------------------------------------------------------

    def _goes_to(self, rule: Rule) -> bool:
        there = network(rule.destination or "")
        negated = rule.not_destination is not None
        if self.host is None:  # some address of the node on which node ports are, not loopback
            loopback = rule.destination == self._loopback
            for_nodes = rule.target == self._nodeports or rule.local == "dst"
            return negated if loopback else negated or for_nodes
        inside = there is not None and self.host.overlaps(there)
        return inside is not negated

    def _is_here(self, rule: Rule) -> bool:
        found = self.at_home()
        if found is not None:
            return found
        if rule.target == self._nodeports and not any(
            r.port == self._port and r.protocol == self.connection.protocol
            for r in self._nat.get(rule.target, [])
        ):
            return False  # it would make no difference
        return self.ask(_LOCAL)

    def _comes_from(self, rule: Rule, chain: str) -> bool:
        net, negated = network(rule.source or ""), rule.not_source is not None
        if net is None:
            return negated
        if self.source is not None:
            return _within(self.source, net) is not negated
        if "SEP-" in chain:
            return False  # the endpoint itself as client is said in its End
        return self._inside([net]) is not negated

    def _inside(self, nets: Sequence[Network]) -> bool:
        """Whether the source is in one of some networks, by what is known of other networks."""
        if self.source is not None:
            return any(_within(self.source, net) for net in nets)
        left = list(nets)
        for key, holds in self.known.items():
            if not key.startswith(_SOURCE):
                continue
            others = [network(word) for word in key.removeprefix(_SOURCE).split(", ")]
            known = [net for net in others if net is not None]
            if holds and all(any(_within(one, net) for net in nets) for one in known):
                return True
            if holds and not any(_meet(one, net) for one in known for net in nets):
                return False
            if not holds:
                left = [net for net in left if not any(_within(net, one) for one in known)]
        if not left:
            return False
        return self.ask(_SOURCE + ", ".join(dict.fromkeys(map(str, left))))

    def _marked(self, mark: str) -> bool:
        """Whether another program has marked it before."""
        negated = mark.startswith("! ")
        return self.ask(f"-m mark --mark {mark.removeprefix('! ')}") is not negated

    def _other(self, rule: Rule) -> bool:
        other = rule.other.removeprefix(_NO_BRIDGE).strip()
        if not other:
            return True
        if other == _ELSEWHERE:
            return not self.own
        if other.startswith(_NEW):
            states = other[len(_NEW) :].split()
            return len(states) == 1 and "NEW" in states[0].split(",")
        interface = _INTERFACE.fullmatch(other)
        if interface is not None and self.own:
            return interface[1] is not None  # it came in by none
        return self.ask(other)


def _within(inner: Network, outer: Network) -> bool:
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def _meet(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)
