"""The way of one new connection through nat: which rules it meets, and where it ends by chance.

A condition that cannot be known (the source is not said, or a match is none of those read here)
stops the walk; it is walked again with either answer. Each way through is one case.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from nfctl.services.observed.shares import number, percent

if TYPE_CHECKING:
    from nfctl.services.observed.rules import Dump, Rule

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# kube-proxy's chains jump four times at most; a text may hold a loop, which the kernel refuses
_DEEPEST = 8

#: Ways are not split any further than this.
MOST_CASES = 64

_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
_TO = re.compile(r"--to-destination (\S+)")
_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|\S+) ?')
# up to 1.23: what comes by no port of a bridge, and from elsewhere
_NO_BRIDGE = "-m physdev ! --physdev-is-in"
_ELSEWHERE = "! --src-type LOCAL"
_NEW = "-m conntrack --ctstate "


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


class Step(NamedTuple):
    """A rule that the packet meets."""

    depth: int
    table: str
    chain: str
    rule: int
    text: str  # without its comment
    note: str = ""


class End(NamedTuple):
    """Where it ends: translated to an endpoint, refused, or nothing of that."""

    kind: str  # endpoint, refused, untouched
    to: str  # address:port; REJECT or DROP and where; ""
    chance: float
    masquerade: bool = False
    hairpin: bool = False  # masqueraded if the endpoint itself is the client


class Case(NamedTuple):
    """One way: what has to hold for it, the rules met, and where it ends."""

    entrance: str  # PREROUTING, OUTPUT
    when: tuple[str, ...]
    steps: tuple[Step, ...]
    ends: tuple[End, ...]


class _Unknown(Exception):
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


def cases(dump: Dump, prefix: str, connection: Connection) -> list[Case]:
    """Return every way that the connection may go."""
    found: list[Case] = []
    entrances = {True: ("OUTPUT",), False: ("PREROUTING",), None: ("PREROUTING", "OUTPUT")}
    for entrance in entrances[connection.here]:
        open_ways: list[dict[str, bool]] = [{}]
        while open_ways and len(found) < MOST_CASES:
            known = open_ways.pop()
            walk = _Walk(dump, prefix, connection, entrance, known)
            try:
                found.append(walk.case())
            except _Unknown as question:
                open_ways += [known | {question.key: False}, known | {question.key: True}]
    return found


class _Walk:
    """One walk, with what is taken as known."""

    def __init__(
        self, dump: Dump, prefix: str, connection: Connection, entrance: str, known: dict[str, bool]
    ) -> None:
        self.dump, self.prefix, self.connection = dump, prefix, connection
        self.entrance, self.known = entrance, known
        self.nat = dump.chains("nat")
        self.host = network(connection.host) if connection.host else None
        self.source = network(connection.source) if connection.source else None
        self.port = str(connection.port)
        self.steps: list[Step] = []
        self.ends: list[End] = []
        self.table = "nat"

    def case(self) -> Case:
        """Walk from the entrance to the end."""
        left, _, dropped = self._chain(self.entrance, 1.0, False, False, 0)
        if left > 0:
            self._untranslated(left, dropped)
        elif any(end.masquerade for end in self.ends):
            self._postrouting()
        when = tuple(self._said(key, holds) for key, holds in self.known.items())
        return Case(self.entrance, when, tuple(self.steps), tuple(self.ends))

    def _said(self, key: str, holds: bool) -> str:
        if key.startswith("source "):
            return f"the source is {'' if holds else 'not '}in {key[7:]}"
        if key == "local":
            return f"{self.connection.host} is {'' if holds else 'not '}an address of this node"
        return key if holds else f"not {key}"

    # --- chains ---------------------------------------------------------------------------------

    def _chain(
        self, name: str, chance: float, marked: bool, dropped: bool, depth: int
    ) -> tuple[float, bool, bool]:
        """Go through a chain; return what chance is left behind it, and the marks."""
        for place, rule in enumerate(self.nat.get(name, []), 1):
            target = rule.target
            if target is None:
                continue
            if target in self.nat and not target.startswith(self.prefix):
                if self._may_meet(rule, name):
                    note = "another program's chain, not followed"
                    self._step(depth, name, place, rule, note)
                continue
            if not self._meets(rule, name):
                continue
            if target == "DNAT":
                self._step(depth, name, place, rule)
                to = _TO.search(rule.argument or "")
                hairpin = not marked and self._is_hairpin(name)
                self.ends.append(End("endpoint", to[1] if to else "?", chance, marked, hairpin))
                return 0.0, marked, dropped
            if target in {"ACCEPT", "REDIRECT", "NETMAP"}:
                self._step(depth, name, place, rule, "ends here")
                self.ends.append(End("untouched", target, chance, marked))
                return 0.0, marked, dropped
            if target == "RETURN":
                self._step(depth, name, place, rule)
                break
            if target == f"{self.prefix}MARK-MASQ":
                self._step(depth, name, place, rule, "to be masqueraded")
                marked = True
            elif target == f"{self.prefix}MARK-DROP":
                self._step(depth, name, place, rule, "to be dropped")
                dropped = True
            elif target not in self.nat:
                continue  # LOG, MARK and others that decide nothing
            elif depth < _DEEPEST and name != target:
                share = 1.0 if rule.probability is None else number(rule.probability)
                note = f"{percent(share)} of what is left" if share < 1 else ""
                self._step(depth, name, place, rule, note)
                left, marked_there, dropped = self._chain(
                    target, chance * share, marked, dropped, depth + 1
                )
                marked = marked_there if share == 1 else marked
                chance = chance * (1 - share) + left
                if chance <= 0 or rule.verb == "g":
                    break
        return chance, marked, dropped

    def _is_hairpin(self, chain: str) -> bool:
        """Whether this endpoint's chain marks what the endpoint itself sends."""
        mark = f"{self.prefix}MARK-MASQ"
        return self.source is None and any(r.target == mark for r in self.nat.get(chain, []))

    def _step(self, depth: int, chain: str, place: int, rule: Rule, note: str = "") -> None:
        text = _COMMENT.sub("", self.dump.text(rule))
        self.steps.append(Step(depth, self.table, chain, place, text, note))

    # --- conditions -----------------------------------------------------------------------------

    def _meets(self, rule: Rule, chain: str) -> bool:
        """Whether the packet meets a rule; raises _Unknown where that is to be asked."""
        wanted = self.connection
        if rule.port is not None and rule.port != self.port:
            return False
        if rule.protocol not in {None, wanted.protocol, "all"}:
            return False
        if rule.check is not None:
            return False  # a client that comes the first time
        if rule.destination is not None and not self._goes_to(rule):
            return False
        if rule.local == "dst" and not self._is_here(rule):
            return False
        if rule.local == "src" and self.entrance == "PREROUTING":
            return False
        if rule.source is not None and not self._comes_from(rule, chain):
            return False
        return not rule.other or self._other(rule)

    def _may_meet(self, rule: Rule, chain: str) -> bool:
        """Whether the packet meets a rule, or may: nothing is asked for it."""
        try:
            return self._meets(rule, chain)
        except _Unknown:
            return True

    def _goes_to(self, rule: Rule) -> bool:
        there = network(rule.destination or "")
        negated = rule.not_destination is not None
        if self.host is None:  # some address of the node, not loopback
            loopback = rule.destination == _LOOPBACK[self.dump.family]
            at_nodes = (rule.target or "").endswith("NODEPORTS")
            return negated if loopback else negated or at_nodes
        inside = there is not None and self.host.overlaps(there)
        return inside is not negated

    def _is_here(self, rule: Rule) -> bool:
        """Whether the destination is an address of this node."""
        if self.host is None:
            return True
        if self.connection.local is not None:
            return self.connection.local
        if self.host.is_loopback:
            return True
        if rule.target == f"{self.prefix}NODEPORTS" and not any(
            r.port == self.port and r.protocol == self.connection.protocol
            for r in self.nat.get(rule.target, [])
        ):
            return False  # it would make no difference
        return self._ask("local")

    def _comes_from(self, rule: Rule, chain: str) -> bool:
        net, negated = network(rule.source or ""), rule.not_source is not None
        if net is None:
            return negated
        if self.source is not None:
            return (net.version == self.source.version and self.source.subnet_of(net)) is not (  # type: ignore[arg-type]
                negated
            )
        if "SEP-" in chain:
            return False  # the endpoint itself as client is said in its End
        inside = self._inside(net)
        return inside is not negated

    def _inside(self, net: Network) -> bool:
        """Whether the source is in a network, by what is known of other networks."""
        for key, holds in self.known.items():
            other = network(key[7:]) if key.startswith("source ") else None
            if other is None or other.version != net.version:
                continue
            if holds and other.subnet_of(net):  # type: ignore[arg-type]
                return True
            if holds and not other.overlaps(net):
                return False
            if not holds and net.subnet_of(other):  # type: ignore[arg-type]
                return False
        return self._ask(f"source {net}")

    def _other(self, rule: Rule) -> bool:
        other = rule.other.removeprefix(_NO_BRIDGE).strip()
        if not other:
            return True
        if other == _ELSEWHERE:
            return self.entrance == "PREROUTING"
        if other.startswith(_NEW):
            words = other[len(_NEW) :].split()
            return len(words) == 1 and "NEW" in words[0].split(",")
        return self._ask(other)

    def _ask(self, key: str) -> bool:
        if key not in self.known:
            raise _Unknown(key)
        return self.known[key]

    # --- behind nat's destinations --------------------------------------------------------------

    def _untranslated(self, left: float, dropped: bool) -> None:
        """Look whether filter refuses what nat did not translate."""
        if dropped:
            to = "DROP by the mark of MARK-DROP"
            self.ends.append(End("refused", to, left))
            return
        self.table = "filter"
        chains = self.dump.chains("filter")
        here = self.host is None or self.host.is_loopback or self.known.get("local", False)
        if self.connection.local is not None:
            here = self.connection.local
        hooks = ("INPUT",) if here else ("FORWARD", "INPUT")
        if self.entrance == "OUTPUT":
            hooks = ("OUTPUT", "INPUT")
        for hook in hooks:
            for place, jump in enumerate(chains.get(hook, []), 1):
                target = jump.target or ""
                if not target.startswith(self.prefix) or target not in chains:
                    continue
                for number_there, rule in enumerate(chains[target], 1):
                    if rule.target not in {"REJECT", "DROP"} or rule.port is None:
                        continue
                    if self._meets(rule, target):
                        self._step(0, hook, place, jump)
                        self._step(1, target, number_there, rule)
                        to = f"{rule.target} in filter {target} rule {number_there}"
                        self.ends.append(End("refused", to, left))
                        return
        self.ends.append(End("untouched", "", left))

    def _postrouting(self) -> None:
        """Show the rules that masquerade what is marked."""
        chain = f"{self.prefix}POSTROUTING"
        for place, rule in enumerate(self.nat.get("POSTROUTING", []), 1):
            if rule.target == chain:
                self._step(0, "POSTROUTING", place, rule)
        for place, rule in enumerate(self.nat.get(chain, []), 1):
            if rule.target in {"MASQUERADE", "SNAT"}:
                self._step(1, chain, place, rule, "what is marked")
