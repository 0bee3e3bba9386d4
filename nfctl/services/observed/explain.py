"""The way to an endpoint, explained.

The document of ``nfctl kube explain --json``: ``destination``; ``families``: a list of ``family``,
``service`` (its name, null for none), ``kind`` of the address (cluster, external, load-balancer,
node, null), ``affinity`` (seconds for which a client keeps its endpoint, 0 for none; the cases are
those of a client that comes the first time), ``complete`` (false if there are more cases than are
shown: the source tells) and ``cases``: each with ``entrance`` (PREROUTING or
OUTPUT), ``when``: what has to hold for it, in words; ``steps``: each with ``table``, ``chain``,
``rule`` (its number), ``depth``, ``text`` of the rule without its comment, and ``note`` (null);
``ends``: each with ``kind`` (endpoint, refused, untouched), ``to`` (the endpoint; the target and
the place that refuse; null), ``chance`` from 0 to 1, ``masquerade`` and ``hairpin`` (masqueraded if
the endpoint itself is the client).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from nfctl.errors import BadInput
from nfctl.services.observed import walk
from nfctl.services.observed.model import NODE
from nfctl.services.observed.packet import Connection
from nfctl.services.observed.shares import percent
from nfctl.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.observed.model import Cluster
    from nfctl.services.observed.rules import Dump
    from nfctl.services.observed.walk import Case

_PROTOCOLS = ("tcp", "udp", "sctp")
_NODE = "node"
_CHANCE = re.compile(r"-m statistic --mode random --probability [0-9.]+ ")
_LONGEST = 160  # characters of what has to hold for a case
_ENTRANCES = {"PREROUTING": "from the network", "OUTPUT": "from this host"}


class Answer(NamedTuple):
    """What became of a connection, in one family."""

    connection: Connection
    family: int
    service: str  # "" for none
    kind: str
    affinity: int  # seconds
    cases: list[Case]
    complete: bool  # whether these are all cases
    hint: str  # where nobody serves it: what is near

    @property
    def served(self) -> bool:
        """Whether somebody answers for the address: an endpoint, or a rule that refuses."""
        return any(end.kind != "untouched" for case in self.cases for end in case.ends)


def connection(destination: str, source: str | None) -> Connection:
    """Read the two words of the command line; raises BadInput."""
    place, slash, protocol = destination.partition("/")
    host, colon, port = place.rpartition(":")
    hint = "as 10.96.0.10:53/udp, [fd00::1]:80, node:30080/tcp; kube show NAME has a service's"
    protocol = protocol.lower() if slash else "tcp"
    if not colon or protocol not in _PROTOCOLS or not (port.isascii() and port.isdecimal()):
        msg = f"{destination!r} is no ADDRESS:PORT/PROTOCOL"
        raise BadInput(msg, hint=hint)
    if len(port) > 5 or not 0 < int(port) < 1 << 16:
        msg = f"a port is from 1 to 65535, not {port}"
        raise BadInput(msg)
    if host == _NODE:
        found = Connection("", int(port), protocol, 0)
    else:
        if ":" in host and not (host[0] == "[" and host[-1] == "]"):
            msg = f"an IPv6 address stands in brackets: [{host}]:{port}"
            raise BadInput(msg)
        address = _address(host.removeprefix("[").removesuffix("]"), hint)
        found = Connection(str(address), int(port), protocol, address.version)
    if source is None:
        return found
    if source == _NODE:
        return found._replace(here=True)
    sender = _address(source, "an address, or node for this host itself")
    if found.family not in {0, sender.version}:
        msg = f"{source} is no address of IPv{found.family}"
        raise BadInput(msg, hint="source and destination have to be of one family")
    return found._replace(source=str(sender), here=sender.is_loopback, family=sender.version)


def _address(text: str, hint: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        msg = f"{text!r} is no address"
        raise BadInput(msg, hint=hint) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        msg = f"{text!r}: rules know no zones"
        raise BadInput(msg)
    return address


def explain(dump: Dump, cluster: Cluster, wanted: Connection) -> Answer:
    """Follow a connection through the rules of one family."""
    name = kind = ""
    affinity = 0
    near: list[str] = []
    for service in cluster.services:
        for address in service.addresses:
            at_node = address.kind == NODE
            if address.address != wanted.host and not at_node:
                continue
            if (address.port, service.protocol) == (wanted.port, wanted.protocol):
                if not name or address.address == wanted.host:
                    name, kind, affinity = service.name, address.kind, service.affinity
            elif not at_node or not wanted.host:
                near.append(f"{address.port}/{service.protocol}")
    cases, complete = walk.cases(dump, cluster.prefix, wanted)
    hint = ""
    if near:
        listed = ", ".join(sorted(set(near))[:5])
        hint = f"{wanted.host or 'the node'} is served at {listed}"
    return Answer(wanted, dump.family, name, kind, affinity, cases, complete, hint)


def document(wanted: Connection, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the document of ``--json``; what it holds says the module's docstring."""
    return {
        "destination": str(wanted),
        "families": [
            {
                "family": answer.family,
                "service": answer.service or None,
                "kind": answer.kind or None,
                "affinity": answer.affinity,
                "complete": answer.complete,
                "cases": [_case(case) for case in answer.cases],
            }
            for answer in answers
        ],
    }


def _case(case: Case) -> dict[str, Any]:
    return {
        "entrance": case.entrance,
        "when": list(case.when),
        "steps": [step._asdict() | {"note": step.note or None} for step in case.steps],
        "ends": [
            end._asdict() | {"to": end.to or None, "chance": round(end.chance, 8)}
            for end in case.ends
        ],
    }


def text(answer: Answer) -> str:
    """Return the answer for people."""
    what = f" is {visible(answer.service)}" if answer.service else ""
    where = f", {answer.kind.replace('-', ' ')}" if answer.kind else ""
    where += " port" if answer.kind == NODE else " IP" if answer.kind else ""
    lines = [f"{answer.connection} (IPv{answer.family}){what}{where}"]
    if answer.affinity:
        lines.append(f"a client that comes back within {answer.affinity} s keeps its endpoint")
    for entrances, case, firsts in _alike(answer.cases):
        lines.append("")
        when = ", ".join((" or ".join(entrances), *case.when))
        lines.append(f"{when if len(when) <= _LONGEST else when[:_LONGEST] + '...'}:")
        steps = [*firsts, *(step for step in case.steps if not _is_first(step))]
        widest = max((len(_place(step)) for step in steps), default=0)
        for step in steps:
            note = f"  ({step.note})" if step.note else ""
            rule = _CHANCE.sub("", step.text) if step.note else step.text
            lines.append(f"  {_place(step).ljust(widest)}  {visible(rule)}{note}")
        lines += [f"  => {visible(_end(end))}" for end in case.ends]
    if not answer.complete:
        lines += ["", "There are more cases than these: --from says which one is meant."]
    return "\n".join(lines) + "\n"


def _alike(cases: Sequence[Case]) -> list[tuple[list[str], Case, list[walk.Step]]]:
    """Put cases together that differ in nothing but the entrance: both, and their first steps."""
    found: dict[object, tuple[list[str], Case, list[walk.Step]]] = {}
    for case in cases:
        firsts = [step for step in case.steps if _is_first(step)]
        rest = tuple(step for step in case.steps if not _is_first(step))
        key = (case.when, rest, case.ends)
        if key in found:
            found[key][0].append(_ENTRANCES[case.entrance])
            found[key][2].extend(firsts)
        else:
            found[key] = ([_ENTRANCES[case.entrance]], case, firsts)
    return list(found.values())


def _is_first(step: walk.Step) -> bool:
    return step.table == "nat" and step.chain in _ENTRANCES


def _place(step: walk.Step) -> str:
    return f"{'  ' * step.depth}{step.table} {visible(step.chain)} {step.rule}"


def _end(end: walk.End) -> str:
    if end.kind == "endpoint":
        how = "masqueraded" if end.masquerade else "not masqueraded"
        if end.hairpin:
            how += ", but for its own connections"
        return f"{percent(end.chance)}  {end.to}, {how}"
    chance = "" if end.chance == 1 else f"{percent(end.chance)}  "
    if end.kind == "refused":
        return f"{chance}refused: {end.to}"
    return f"{chance}{end.to or 'no service takes it'}"
