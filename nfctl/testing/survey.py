"""Which hosts an attempt went over, told from their routing tables and counters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nfctl.lab.explain import Step, moved
from nfctl.testing import inside
from nfctl.testing.routes import route
from nfctl.testing.trail import Hop
from nfctl.traversal import Way

if TYPE_CHECKING:
    from nfctl.testing.inside import Facts, Stack
    from nfctl.testing.sending import Sending

# An address in brackets, or one that ends before a range's second; a port may follow.
_TO = re.compile(r"--to-destination (?:\[([^]]*)\]|([^\s-]*))")


def delivered(sending: Sending, names: list[str]) -> str:
    """Return which of these hosts the packet was given to, "" if it is none."""
    ask, sender = sending.crew.ask, sending.sender.name
    for name in names:
        # The sender's own stack gets answers, and errors.
        may_be = name != sender or not ask(name, route, sending.address).via
        if may_be and ask(name, inside.delivered, sending.what.transport, sending.family):
            return name
    return ""


class Survey:
    """What all hosts know of an attempt, read once, after it."""

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        crew = sending.crew
        self.facts: dict[str, Facts] = {
            name: crew.ask(name, inside.facts, sending.family) for name in crew.names()
        }

    def owner(self, address: str) -> str:
        """Return the name of the host that has an address, "" if none has."""
        # An address of lo is everybody's.
        names = [self.sending.sender.name, *self.facts]
        return next((n for n in names if address in self.facts[n].addresses), "")

    def source(self) -> str:
        """Return the address that it was sent from, "" if there was none to take."""
        sending = self.sending
        if sending.source:
            return sending.source
        try:
            return sending.crew.ask(sending.sender.name, route, sending.address).source
        except OSError:
            return ""

    def delivered(self) -> str:
        """Return the host whose own IP stack got the packet, "" if none did."""
        return delivered(self.sending, list(self.facts))

    # --- the way ------------------------------------------------------------------------------

    def hops(self) -> list[Hop]:
        """Follow the packet from host to host, and say what moved on each."""
        here = self.sending.sender.name
        address = self._behind(here, Way.LOCAL_OUT, self.sending.address)
        hops = [self._hop(here, Way.LOCAL_OUT, Way.LOCAL_IN)]
        passed = [here]
        while (following := self._next(here, address)) and (
            following == here or following not in passed
        ):
            passed.append(following)
            address = self._behind(following, Way.FORWARDED, address)
            if following == here or address in self.facts[following].addresses:
                return [*hops, self._hop(following, Way.LOCAL_IN, Way.LOCAL_OUT)]
            hops.append(self._hop(following, Way.FORWARDED, Way.FORWARDED))
            here = following
        return hops + self._others(passed)

    def _next(self, host: str, address: str) -> str:
        """Return the host that ``host`` hands the packet to: itself if it stays, "" if none."""
        try:
            via = self.sending.crew.ask(host, route, address).via
        except OSError:
            return ""
        return self.owner(via) if via else host

    def _behind(self, host: str, way: Way, address: str) -> str:
        """Return where a packet to ``address`` goes from a host, whose nat may change that."""
        # Redirected packets go to the host itself, whatever its address.
        return translated(self._moved(host, way), address) or self.facts[host].addresses[0]

    def _others(self, passed: list[str]) -> list[Hop]:
        """Return the hosts whose rules counted, though the routing tables led elsewhere."""
        found = []
        for name in self.facts:
            ways = [way for way in (Way.FORWARDED, Way.LOCAL_IN) if self._moved(name, way)]
            if ways and name not in passed:
                found.append(self._hop(name, ways[0], ways[0]))
        return found

    def _moved(self, host: str, way: Way) -> list[Step]:
        facts = self.facts[host]
        return moved(facts.before, facts.after, way)

    def _hop(self, host: str, forth: Way, back: Way) -> Hop:
        facts = self.facts[host]
        before, after = facts.stack_before, facts.stack_after
        steps = self._moved(host, forth)
        neighbours = self._moved(host, Way.LOCAL_IN) if self.sending.family == 6 else []
        chains = [chain for table in facts.after.values() for chain in table.values()]
        return Hop(
            host,
            steps,
            self._moved(host, back),
            arrived=after.received > before.received or (bool(steps) and not neighbours),
            has_rules=any(chain.rules for chain in chains),
            note="" if forth is Way.LOCAL_OUT else self._note(host, before, after),
            neighbours=neighbours,
        )

    def _note(self, host: str, before: Stack, after: Stack) -> str:
        """Say what the IP stack itself did to the packet."""
        if after.spoofed > before.spoofed:
            return "dropped by the reverse path filter (sysctl rp_filter)"
        if after.unroutable > before.unroutable:
            return f"the packet arrived, but {host} has no route for it"
        if after.astray > before.astray:
            family = "ipv6.conf.all.forwarding" if self.sending.family == 6 else "ipv4.ip_forward"
            return f"the packet arrived, but {host} does not forward (sysctl net.{family})"
        return ""


def translated(steps: list[Step], address: str) -> str:
    """Return the destination behind the rules of nat that moved; "" for the host itself."""
    for step in steps:
        if step.target == "DNAT" and (found := _TO.search(step.text)):
            bracketed, plain = found.groups()
            if bracketed or plain.count(":") > 1:
                return bracketed or plain
            return plain.partition(":")[0] or address
        if step.target == "REDIRECT":
            return ""
    return address
