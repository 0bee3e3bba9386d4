"""What is to be inspected, and the text of the rules that queue it.

In table mangle a jump stands at the end of each built-in chain; for queue 5, with offload::

    -A INPUT [match] -m comment --comment "nfctl inspect 5" -j NFCTL-INSPECT-5

    -A NFCTL-INSPECT-5 -m mark ! --mark 0x0/0x3000 -g NFCTL-VERDICT-5
    -A NFCTL-INSPECT-5 -m connmark --mark 0x1000/0x3000 -j RETURN    the flow is decided
    -A NFCTL-INSPECT-5 -m connmark --mark 0x2000/0x3000 -j DROP
    -A NFCTL-INSPECT-5 -j NFQUEUE --queue-num 5 --queue-bypass

    -A NFCTL-VERDICT-5 -m mark ! --mark 0x3000/0x3000 -j CONNMARK --save-mark ...
    -A NFCTL-VERDICT-5 -m mark --mark 0x2000/0x3000 -j DROP
    -A NFCTL-VERDICT-5 -j MARK --set-xmark 0x0/0x3000

A packet that comes back with a verdict (NF_REPEAT) carries it in two bits of its mark, see
:class:`Marks`; they are taken off it even where its flow is decided by then. One that is to be
rejected is accepted with the mark ``dropped``, and the first rule of table filter has the kernel
refuse it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfctl.errors import BadInput, NfctlError, Where, excerpt
from nfctl.inspect.figures import MAX_QUEUE
from nfctl.inspect.marks import DEFAULT_MASK, Marks, is_mask
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import Word, split

#: What to take instead where another inspection has them.
OTHER_MASKS = (DEFAULT_MASK, 0x30000000, 0x0C000000, 0x03000000)

#: Which chains of filter a packet still meets after a chain of mangle.
_FILTER = {
    "PREROUTING": ("INPUT", "FORWARD"),
    "INPUT": ("INPUT",),
    "FORWARD": ("FORWARD",),
    "OUTPUT": ("OUTPUT",),
}

#: What the kernel itself answers to a packet whose connection is not confirmed yet.
_ANSWERS = "-m conntrack --ctstate RELATED --ctdir REPLY ! --ctstatus CONFIRMED -j RETURN"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is inspected, and how.

    ``queue`` is the first of ``workers`` queues; the kernel keeps each flow in one of them, or,
    with ``fanout``, takes the one of the CPU. ``chains`` are built-in chains of table mangle,
    ``match`` what a rule says of a packet, as iptables takes it, without a target ("" for
    everything). ``offload`` lets a verdict stay with the flow, ``rejects`` tells that a verdict
    may reject. ``mask`` are the two adjacent bits of the mark that carry verdicts. ``tracked``
    is whether connections are tracked: then what REJECT answers to a connection's first packet
    is not queued, since the kernel drops what shares an unconfirmed connection instead.
    """

    queue: int
    workers: int = 1
    chains: tuple[str, ...] = ("INPUT",)
    match: str = ""
    families: tuple[int, ...] = (4, 6)
    offload: bool = False
    rejects: bool = False
    fanout: bool = False
    mask: int = DEFAULT_MASK
    tracked: bool = False

    @property
    def queues(self) -> range:
        """The numbers of its queues."""
        return range(self.queue, self.queue + self.workers)

    @property
    def marks(self) -> Marks:
        """What its marks mean."""
        return Marks.of(self.mask)

    @property
    def reject_chains(self) -> tuple[str, ...]:
        """The chains of table filter that refuse what is to be rejected; () without rejects."""
        if not self.rejects:
            return ()
        needed = {name for chain in self.chains for name in _FILTER.get(chain, ())}
        return tuple(chain for chain in BUILTIN_CHAINS["filter"] if chain in needed)


def check(plan: Plan) -> list[Word]:
    """Raise BadInput for a plan that cannot be; return the match's words.

    What the match says is not looked at here: the engine does that.
    """
    if not 0 <= plan.queue <= MAX_QUEUE:
        msg = f"there is no queue {plan.queue}"
        raise BadInput(msg, hint=f"queues are numbered from 0 to {MAX_QUEUE}")
    # the kernel counts them in 16 bits, too
    if not 1 <= plan.workers <= min(MAX_QUEUE, MAX_QUEUE + 1 - plan.queue):
        msg = f"there cannot be {plan.workers} queues from {plan.queue} on"
        raise BadInput(msg, hint=f"queues are numbered from 0 to {MAX_QUEUE}")
    if not plan.families or not set(plan.families) <= {4, 6}:
        msg = f"there are no address families {plan.families!r}"
        raise BadInput(msg, hint="4 and 6")
    if not is_mask(plan.mask):
        msg = f"{plan.mask:#x} is no mask of two adjacent bits"
        raise BadInput(msg, hint=f"such as {DEFAULT_MASK:#x}; a mark has 32 bits")
    _check_chains(plan)
    try:
        return split(plan.match, source="match", number=1)
    except BadInput as error:
        add_excerpt(error, plan)
        raise


def _check_chains(plan: Plan) -> None:
    known = BUILTIN_CHAINS["mangle"]
    if not plan.chains:
        msg = "no chain is to be inspected"
        raise BadInput(msg, hint=f"table mangle has {', '.join(known)}")
    for chain in plan.chains:
        if chain not in known:
            msg = f"table mangle has no built-in chain {chain!r}"
            raise BadInput(msg, hint=f"it has {', '.join(known)}")
        if plan.chains.count(chain) > 1:
            msg = f"chain {chain} is named twice"
            raise BadInput(msg)
    if not plan.rejects:
        return
    if "POSTROUTING" in plan.chains:
        msg = "a packet in POSTROUTING cannot be rejected: no chain of table filter is behind it"
        raise BadInput(msg, hint="inspect FORWARD or OUTPUT, or let the rule drop")
    if "PREROUTING" in plan.chains and {"INPUT", "FORWARD"} & set(plan.chains):
        # the mark that has filter reject a packet would have the second chain drop it
        msg = "with a rule that rejects, a packet must not be inspected twice"
        raise BadInput(msg, hint="inspect PREROUTING, or INPUT and FORWARD")


def add_excerpt(error: NfctlError, plan: Plan) -> None:
    """Show where in the match an error is."""
    if not error.excerpt and error.where is not None and error.where.source == "match":
        error.excerpt = excerpt(plan.match, error.where)


# --- names -----------------------------------------------------------------------------------


def tag(queue: int) -> str:
    """Return the comment on every jump to an inspection."""
    return f"nfctl inspect {queue}"


def inspect_chain(queue: int) -> str:
    """Return the name of the chain that queues."""
    return f"NFCTL-INSPECT-{queue}"


def verdict_chain(queue: int) -> str:
    """Return the name of the chain in which verdicts take effect."""
    return f"NFCTL-VERDICT-{queue}"


def reject_chain(queue: int) -> str:
    """Return the name of the chain, of table filter, that rejects."""
    return f"NFCTL-REJECT-{queue}"


MATCH = Where("match", 1)


# --- rules -----------------------------------------------------------------------------------


def jump(plan: Plan, words: list[Word]) -> list[Word]:
    """Return the rule at the end of a built-in chain; ``words`` are the match's."""
    comment = ["-m", "comment", "--comment", tag(plan.queue), "-j", inspect_chain(plan.queue)]
    return [*words, *map(Word, comment)]


def mangle_chains(plan: Plan) -> dict[str, list[str]]:
    """Return the chains of table mangle with their rules, the one that is jumped to last."""
    marks = plan.marks
    mask = f"{plan.mask:#x}"
    accepted, dropped, seen = (f"{value:#x}/{mask}" for value in marks[1:])
    verdict = [f"-m mark --mark {dropped} -j DROP", f"-j MARK --set-xmark 0x0/{mask}"]
    inspect = [f"-m mark ! --mark 0x0/{mask} -g {verdict_chain(plan.queue)}"]
    if plan.offload:
        save = f"-j CONNMARK --save-mark --nfmask {mask} --ctmask {mask}"
        verdict.insert(0, f"-m mark ! --mark {seen} {save}")
        inspect += [
            f"-m connmark --mark {accepted} -j RETURN",
            f"-m connmark --mark {dropped} -j DROP",
        ]
    if plan.tracked and {"OUTPUT", "POSTROUTING"} & set(plan.chains):
        inspect.append(_ANSWERS)
    inspect.append(_queue(plan))
    return {verdict_chain(plan.queue): verdict, inspect_chain(plan.queue): inspect}


def _queue(plan: Plan) -> str:
    if plan.workers == 1:
        return f"-j NFQUEUE --queue-num {plan.queue} --queue-bypass"
    fanout = " --queue-cpu-fanout" if plan.fanout else ""
    return f"-j NFQUEUE --queue-balance {plan.queue}:{plan.queues[-1]} --queue-bypass{fanout}"


def filter_chains(plan: Plan) -> dict[str, list[str]]:
    """Return the chains of table filter with their rules; none where nothing is rejected."""
    if not plan.rejects:
        return {}
    return {reject_chain(plan.queue): ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT"]}


def reject_jump(plan: Plan) -> list[Word]:
    """Return the first rule of a built-in chain of table filter."""
    mark = ["-m", "mark", "--mark", f"{plan.marks.dropped:#x}/{plan.mask:#x}"]
    comment = ["-m", "comment", "--comment", tag(plan.queue), "-j", reject_chain(plan.queue)]
    return list(map(Word, [*mark, *comment]))
