"""One flow in a copy of the firewall, under the rules as they are and as they are to be.

In a child of ``rehearsal.start``, step by step:

1. Everybody is put in place: ``rehearsal.scene``.
2. Without any rule the connection has to work: else the copy lacks something. How long it takes
   says how long to wait for what may not come.
3. Under the rules as they are a connection is made, and stays. Where a new one is not allowed,
   it is made before they are loaded.
4. The rules that are to be are loaded: data must arrive both ways (``established``).
5. Neighbours and connections are forgotten, and one is made anew (``new``).

Who refuses is read from the counters, from a second attempt: what fails only once is by chance.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING

from nfctl.control.guard import Answer, Flow
from nfctl.control.rehearsal import conntrack
from nfctl.control.rehearsal.scene import Scene, SkippedError
from nfctl.control.rehearsal.talk import REPLY, REQUEST, Talk
from nfctl.errors import BadInput, NfctlError, Unsupported
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.traversal import Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nfctl.lab.explain import Snapshot, Step
    from nfctl.policy.wanted import WantedSet

_SETTLE = 2.0  # seconds: how long the first connection, without rules, may take
_PATIENCE = 0.25  # seconds at least: one retransmission is within it
_LONG_PATIENCE = 0.7  # where rules decide by chance or rate: two
_MOST_PATIENCE = 5.0
_MARGIN = 50  # times as long as the first connection took
_TIMES, _MANY_TIMES = 4, 12  # exchanges
_ATTEMPTS = 3  # at a new connection where rules decide by chance or rate
#: Matches that do not decide the same of every packet alike.
_CHANCY = re.compile(r" -m (?:limit|hashlimit|statistic|recent|quota2?|connlimit|rateest|nth)\b")
_TABLE = re.compile(r"^\*(\S+)", re.MULTILINE)
#: Registers connection tracking in a namespace, also where nothing jumps to it.
_TRACKING = (
    "*filter\n:NFCTL-REHEARSAL - [0:0]\n-A NFCTL-REHEARSAL -m conntrack --ctstate NEW\nCOMMIT\n"
)


def run(
    flow: Flow,
    before: Mapping[int, str],
    after: Mapping[int, str],
    sets: Sequence[WantedSet],
) -> Answer:
    """Try a flow; see the module. Raises BadInput for an option's flow that cannot be here."""
    family = flow.version
    old, new = before.get(family, ""), after.get(family, "")
    if old == new and not sets:
        return Answer(str(flow), True, "established", reason=f"no rule of IPv{family} changes")
    try:
        return _Trial(flow, old, new, sets).run()
    except SkippedError as skipped:
        if flow.asked:
            hint = "name a flow that comes to this host or through it: ip route get"
            raise BadInput(f"{flow.origin}: {flow}: {skipped}", hint=hint) from None
        return Answer(str(flow), True, "skipped", reason=str(skipped))
    except OSError as error:
        reason = f"it cannot be tried on this kernel: {error.strerror or error}"
        if flow.asked:
            hint = f"without {flow.origin} nothing is tried; --confirm is a way back, too"
            raise Unsupported(f"{flow.origin}: {flow}: {reason}", hint=hint) from None
        return Answer(str(flow), True, "skipped", reason=reason)


class _Trial:
    """What happens on the scene."""

    def __init__(self, flow: Flow, old: str, new: str, sets: Sequence[WantedSet]) -> None:
        self.flow, self.old, self.new, self.sets = flow, old, new, sets
        self.family = flow.version
        chancy = any(_CHANCY.search(text) for text in (old, new))
        self.chancy = chancy
        self.times = _MANY_TIMES if chancy else _TIMES
        self.patience = _LONG_PATIENCE if chancy else _PATIENCE
        self.static = False  # whether neighbours are known without asking
        # The operator's shell prints something when the change is made.
        self.server_first = not flow.asked
        self.elsewhere = False  # whether a new connection went to another server
        self.scene = Scene(flow, (old, new), sets)
        self.tables = {"filter", *_TABLE.findall(old), *_TABLE.findall(new)}

    # --- what happens -------------------------------------------------------------------------

    def run(self) -> Answer:
        """Try it; see the module."""
        works = self._works_without_rules()
        try:
            self._load(self.old)
        except NfctlError as error:
            return self._unknown(f"the rules as they are could not be copied: {error}")
        talk, landed = self._connect_as_is()
        judges_new = talk is not None
        if talk is None:
            talk = self._from_before()
        if talk is None:
            rules = "with the rules as they are either" if works else "without any rule"
            return self._unknown(
                f"the connection does not work in a copy of this host {rules}, so that nothing "
                "can be said of the new ones"
            )
        if self.scene.entry is not None and self.scene.entry.mark:
            conntrack.set_mark(self.scene.entry.original, self.scene.entry.mark)
        if self._exchange(talk):
            return self._unknown(
                "in a copy of this host the rules as they are do not let it pass reliably"
            )
        try:
            if self.sets:
                self.scene.copy.want_sets(self.sets)
            if self.new != self.old:
                self._load(self.new)
        except NfctlError as error:
            return self._unknown(f"the new rules could not be loaded into a copy: {error}")
        refused = self._established(talk)
        if refused is not None:
            return refused
        talk.close()
        if not judges_new:
            return self._answer(
                True, "established",
                reason="it stays; new connections are not allowed by the rules as they are either",
            )  # fmt: skip
        return self._new(landed) or self._answer(
            True, "new", reason="it stays, and can be made anew"
        )

    def _works_without_rules(self) -> bool:
        """Whether a connection is made without rules; that also says how patient to be."""
        self._unload()
        if self.scene.entry is not None:  # as on the host
            self._track()
        scene = self.scene
        start = time.monotonic()
        # Where NAT would bring it.
        client, server = scene.client_end(keep=False), scene.target_end(translated=True)
        talk = scene.servers.connect(client, server, _SETTLE)
        works = talk is not None and not talk.exchange(_SETTLE)
        if works:
            margin = _MARGIN * (time.monotonic() - start)
            self.patience = min(max(self.patience, margin), _MOST_PATIENCE)
        if talk is not None:
            talk.close()
        return works

    def _connect_as_is(self) -> tuple[Talk | None, int]:
        """Connect under the rules as they are; return the connection and where it landed."""
        for self.static in (False, True):
            self.scene.forget()
            if self.static:
                self.scene.introduce()
            talk = self._connect(keep=True)
            if talk is not None:
                return talk, talk.landed
            if not self.scene.hops:
                break
        self.static = False
        return None, 0

    def _from_before(self) -> Talk | None:
        """Connect without rules, load the rules as they are, and see whether it lives."""
        self._unload()
        self._track()
        self.scene.forget()
        talk = self._connect(keep=True)
        if talk is None:
            return None
        self._load(self.old)
        if self._exchange(talk):
            talk.close()
            return None
        return talk

    def _established(self, talk: Talk) -> Answer | None:
        """Return the refusal if data does not arrive under the new rules; else None."""
        lost = self._exchange(talk)
        if not lost:
            return None

        def again() -> bool:
            return not self._exchange(talk)

        passed, step = self._watch(again, lost)
        if passed:
            return None
        whose = "its packets" if lost == REQUEST else "the answers to it"
        reason = f"{whose} would be lost: {_named(step)}"
        return self._answer(False, "established", lost, reason, step)

    def _exchange(self, talk: Talk) -> str:
        return talk.exchange(self.patience, self.times, server_first=self.server_first)

    def _new(self, landed: int) -> Answer | None:
        """Return the refusal if a new connection cannot be made; else None."""
        if self._come_anew(landed):
            return None
        passed, step = self._watch(lambda: self._come_anew(landed), "")
        if passed:
            return None
        lost = ""
        if step is not None:
            lost = REPLY if self._is_reply(step) else REQUEST
        reason = f"a new connection could not be made, you could not come back: {_named(step)}"
        if self.elsewhere:
            reason = f"a new connection would go elsewhere: {_named(step)}"
        elif self.family == 6 and self.scene.hops and not self.static and step is not None:
            self.scene.forget()
            self.scene.introduce()
            if self._connect_to(landed):
                reason = (
                    "neighbour discovery would fail: the connection ends when neighbours ask for "
                    f"this host again, and no new one can be made: {_named(step)}"
                )
        return self._answer(False, "new", lost, reason, step)

    def _come_anew(self, landed: int) -> bool:
        for _ in range(_ATTEMPTS if self.chancy else 1):
            if self.chancy:
                # Their memory begins anew where no rule keeps it.
                self._unload()
                self._load(self.new)
            self.scene.forget()
            if self.static:
                self.scene.introduce()
            if self._connect_to(landed):
                return True
        return False

    def _connect_to(self, landed: int) -> bool:
        self.elsewhere = False
        talk = self._connect(keep=self.flow.asked)
        if talk is None:
            return False
        self.elsewhere = talk.landed != landed
        good = not self.elsewhere and not talk.exchange(self.patience)
        talk.close()
        return good

    def _connect(self, *, keep: bool) -> Talk | None:
        scene = self.scene
        return scene.servers.connect(scene.client_end(keep=keep), scene.target_end(), self.patience)

    # --- the copy -----------------------------------------------------------------------------

    def _load(self, text: str) -> None:
        self.scene.copy.load({self.family: text})

    def _unload(self) -> None:
        """Have no rules."""
        lines = []
        for table in sorted(self.tables & BUILTIN_CHAINS.keys()):
            chains = (f":{chain} ACCEPT [0:0]" for chain in BUILTIN_CHAINS[table])
            lines += [f"*{table}", *chains, "COMMIT"]
        self._load("\n".join([*lines, ""]))

    def _track(self) -> None:
        """Have connections tracked though no rule asks for it."""
        with contextlib.suppress(NfctlError):  # a kernel without it
            self._load(_TRACKING)

    # --- who decided --------------------------------------------------------------------------

    def _watch(self, attempt: Callable[[], bool], lost: str) -> tuple[bool, Step | None]:
        """Attempt something again; return whether it works now, and else which rule refused."""
        from nfctl.lab.counters import Reading

        with self.scene.copy.inside.entered():
            first = Reading(self.family)
        if attempt():
            return True, None
        with self.scene.copy.inside.entered():
            second = Reading(self.family)
        now = second.snapshot()
        steps = [] if self.chancy else self._steps(first.snapshot(), now, lost)
        # All counters were zero when the rules were loaded; a reset ends attempts to come.
        return False, _decider(steps) or _decider(self._steps(_zeroed(now), now, lost))

    def _steps(self, before: Snapshot, now: Snapshot, lost: str) -> list[Step]:
        from nfctl.lab import explain

        return [step for way in self._ways(lost) for step in explain.moved(before, now, way)]

    def _ways(self, lost: str) -> Iterator[Way]:
        """Yield the ways of the packets through the host, those that were lost first."""
        inside = bool(self.scene.client.interface), bool(self.scene.server.interface)
        ways = {
            (True, False): (Way.LOCAL_IN, Way.LOCAL_OUT),
            (False, True): (Way.LOCAL_OUT, Way.LOCAL_IN),
            (False, False): (Way.LOCAL_OUT, Way.LOCAL_IN),
            (True, True): (Way.FORWARDED,),
        }[inside]
        yield from reversed(ways) if lost == REPLY and inside[0] != inside[1] else ways
        yield from (way for way in Way if way not in ways)

    def _is_reply(self, step: Step) -> bool:
        chain = step.path[0]
        if self.scene.client.interface and not self.scene.server.interface:
            return chain in {"OUTPUT", "POSTROUTING"}
        if self.scene.server.interface and not self.scene.client.interface:
            return chain in {"INPUT", "PREROUTING"}
        return False

    def _answer(
        self,
        allowed: bool,
        how: str,
        direction: str = "",
        reason: str = "",
        step: Step | None = None,
    ) -> Answer:
        rule: dict[str, object] | None = None
        if step is not None:
            rule = {
                "family": self.family,
                "table": step.table,
                "chain": step.chain,
                "number": step.number,
                "text": step.text,
            }
        return Answer(str(self.flow), allowed, how, direction, reason, rule)

    def _unknown(self, reason: str) -> Answer:
        return self._answer(True, "unknown", reason=reason)


def _decider(steps: list[Step]) -> Step | None:
    """Return the first step that refuses, or else that translates."""
    refusals = [step for step in steps if step.refuses]
    return next(iter(refusals or [step for step in steps if step.translates]), None)


def _named(step: Step | None) -> str:
    """Return a rule as people find it: ``filter INPUT rule 3: -p tcp --dport 22 -j DROP``."""
    if step is None:
        return "no rule counted it; is an address translation or a route gone?"
    if not step.number:
        return f"{step.table} {step.chain} {step.text}"
    way = f" (from {' > '.join(step.path[:-1])})" if len(step.path) > 1 else ""
    return f"{step.table} {step.chain} rule {step.number}{way}: {step.text}"


def _zeroed(snapshot: Snapshot) -> Snapshot:
    """Return the same rules with counters of zero."""
    return {
        table: {
            name: chain._replace(
                packets=0, rules=tuple(rule._replace(packets=0) for rule in chain.rules)
            )
            for name, chain in chains.items()
        }
        for table, chains in snapshot.items()
    }
