"""Rules as they are rehearsed: what a first packet cannot tell is taken one way, then another.

Some matches look at what conntrack does not remember (the process that sent a packet, its TTL,
its length), at the past (``limit``, ``recent``) or at chance (``statistic``). Whether they match
is not known; so the rules are rehearsed several times, in several *worlds*. In each of them such
a rule either matches whatever the rest of the rule matches, or it is not there::

    world 0        none of them match
    world 1        all of them do
    world 2 + n    in every chain, the n-th of them matches alone

So ``statistic`` rules that spread connections over servers send them to each server in some
world. A flow's present fate that is possible in one world is possible.

In all worlds alike: targets that look for nothing but change what comes later or are seen
outside (LOG, SET, RATEEST, TEE, ...) are not there, and a program behind NFQUEUE accepts.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.errors import BadInput
from nfctl.ruleset.spec import Spec, Use

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

#: Matches that a tuple alone does not decide.
UNCERTAIN: Final = frozenset(
    """
    bpf cgroup connlimit cpu dscp ecn eui64 hashlimit hl ipvs l2tp length limit mac osf owner
    physdev policy quota rateest realm recent socket statistic string tcpmss tos ttl u32
    """.split()
)
#: Matches that are true, or that the copy has nothing for: as if they were not there.
_ALWAYS: Final = frozenset({"nfacct"})
#: Targets that let the packet go on, and do nothing to it that a rule could see.
_WITHOUT_FATE: Final = frozenset(
    """
    AUDIT CHECKSUM CONNSECMARK IDLETIMER LED LOG NFLOG RATEEST SECMARK SET TEE TRACE ULOG
    """.split()
)
_QUEUES: Final = frozenset({"NFQUEUE", "QUEUE"})

_TELLING = re.compile(
    r" -m (?:{})\b| -[jg] (?:{}|CT)\b| --match-set ".format(
        "|".join(sorted(UNCERTAIN | _ALWAYS)), "|".join(sorted(_WITHOUT_FATE | _QUEUES))
    )
)
_COUNTED = re.compile(r"^\[\d+:\d+\] (?=-A )", re.MULTILINE)
_POLICY = re.compile(r"^(:\S+ \S+) \[\d+:\d+\]$", re.MULTILINE)
_COMMENT = re.compile(r"^#.*\n?", re.MULTILINE)
_ZONE = re.compile(r" --zone(?:-orig|-reply)? (\d+)")
_APPEND = re.compile(r"-A (\S+)(?: (.*))?")

#: The chain that nothing jumps to, whose rule has conntrack see the packets of a namespace.
_TRACKING = "NFCTL-REHEARSAL"


class _Line(NamedTuple):
    """A line of the text; ``without`` is it when its uncertain matches are taken to be true."""

    text: str
    table: str
    without: str | None = None


class Worlds:
    """The rules of one family, from iptables-save text.

    ``doubtful`` are names of ipsets whose contents are not known. ``count`` is the number of
    worlds, 1 where nothing is uncertain; ``reasons`` are the matches that are the cause.
    """

    def __init__(self, text: str, family: int, doubtful: Collection[str] = ()) -> None:
        self.family = family
        self.reasons: set[str] = set()
        self._doubtful = frozenset(doubtful)
        self._tracked = f"{_TRACKING}-" if f":{_TRACKING} " in text else _TRACKING
        self._chains: set[tuple[str, str]] = set()  # a chain may be called as a target is
        self._lines = list(self._read(bare(text)))
        chains = Counter(
            (line.table, line.text.split(" ", 2)[1])
            for line in self._lines
            if line.without is not None
        )
        most = max(chains.values(), default=0)
        self.count = 1 if not most else 2 if most == 1 else 2 + most

    def text(self, world: int) -> str:
        """Return the rules of one world, as iptables-save text."""
        seen: Counter[tuple[str, str]] = Counter()
        lines = []
        for line in self._lines:
            if line.without is None:
                lines.append(line.text)
                continue
            chain = line.table, line.text.split(" ", 2)[1]
            if world == 1 or world == seen[chain] + 2:
                lines.append(line.without)
            seen[chain] += 1
        return "\n".join(lines) + "\n"

    def uncertain(self, lines: Iterable[str]) -> set[str]:
        """Return the uncertain matches in some of the text's lines."""
        wanted = set(lines)
        return {
            reason
            for line in wanted
            if _TELLING.search(line) is not None
            for reason in self._taken(line, "")[1]
        }

    def _read(self, text: str) -> Iterator[_Line]:
        table = ""
        tracking = False
        for line in text.split("\n"):
            if line[:1] == "*":
                table = line[1:].strip()
            elif line == "COMMIT" and not tracking:
                # At the end of the first table: conntrack works for the namespace from now on.
                yield _Line(f":{self._tracked} - [0:0]", table)
                yield _Line(f"-A {self._tracked} -m conntrack --ctstate NEW", table)
                tracking = True
            elif line[:3] == "-A " and _TELLING.search(line) is not None:
                changed, reasons = self._taken(line, table)
                if changed is None:
                    continue
                self.reasons |= reasons
                yield _Line(changed, table, changed if reasons else None)
                continue
            elif line[:1] == ":":
                self._chains.add((table, line[1:].partition(" ")[0]))
            if line:
                yield _Line(line, table)
        if not tracking:
            yield from self._read("*filter\nCOMMIT")

    def _taken(self, line: str, table: str) -> tuple[str | None, set[str]]:
        """Return a rule without its uncertain matches, and what they are.

        None for a rule that is not there in any world.
        """
        found = _APPEND.fullmatch(line)
        if found is None:
            return line, set()
        try:
            spec = Spec.parse(found[2] or "", family=self.family)
        except BadInput:  # nothing that iptables-save prints
            return line, set()
        target = spec.target
        if target is not None and not spec.goto and (table, target.name) not in self._chains:
            if target.name in _WITHOUT_FATE:
                return None, set()
            if target.name in _QUEUES:
                target = Use("ACCEPT")
            elif target.name == "CT" and "--timeout" in target.options:
                # The copy has no such policies; how long an entry lives decides nothing.
                at = target.options.index("--timeout")
                target = Use("CT", target.options[:at] + target.options[at + 2 :])
        reasons = {match.name for match in spec.matches if self._is_uncertain(match)}
        left = tuple(
            match
            for match in spec.matches
            if match.name not in _ALWAYS and not self._is_uncertain(match)
        )
        text = spec._replace(matches=left, target=target).text()
        return f"-A {found[1]} {text}".rstrip(" "), reasons

    def _is_uncertain(self, match: Use) -> bool:
        if match.name == "set":
            at = match.options.index("--match-set") if "--match-set" in match.options else -1
            return at >= 0 and match.options[at + 1] in self._doubtful
        return match.name in UNCERTAIN


def bare(text: str) -> str:
    """Return iptables-save text without comments and counters."""
    return _POLICY.sub(r"\1 [0:0]", _COUNTED.sub("", _COMMENT.sub("", text)))


def changed_lines(before: str, after: str) -> set[str]:
    """Return the lines that one of two texts has more often than the other."""
    old, new = Counter(bare(before).split("\n")), Counter(bare(after).split("\n"))
    return set((old - new) | (new - old))


def zones(texts: Iterable[str]) -> set[int]:
    """Return the conntrack zones that rules name."""
    return {int(found[1]) for text in texts for found in _ZONE.finditer(text)}
