"""The conditions of a rule as a tree, and what is left of it once some facts are known.

A condition is true, false, or undecided: while a flow may still show its ClientHello, nobody
knows what a condition about that will be. A rule decides only where its tree is surely true, be
there a ``not`` in it or none; so ``not: {tls.sni: ...}`` never hits the handshake of TCP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.inspect.packet import Packet
    from nfctl.inspect.payloads.tls import ClientHello

    Test = Callable[[Packet], bool]


class Unknown:
    """The ClientHello of a flow that may still show one."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return its name."""
        return "UNKNOWN"


UNKNOWN: Final = Unknown()


class Facts(NamedTuple):
    """What is the same for all packets of one direction of a flow.

    ``chain`` is the built-in chain, ``indev`` and ``outdev`` names of interfaces ("" if none),
    ``version`` 4 or 6, ``src`` and ``dst`` packed addresses, ``proto`` the protocol's number,
    ``sport`` and ``dport`` the ports, both 0 where a packet has none.
    """

    chain: str
    indev: str
    outdev: str
    version: int
    src: bytes
    dst: bytes
    proto: int
    sport: int
    dport: int

    @classmethod
    def of(cls, packet: Packet) -> Facts:
        """Return those of a packet."""
        head = packet.headers
        return cls(
            packet.chain, packet.indev, packet.outdev, head.version, head.src, head.dst,
            head.proto, head.sport, head.dport,
        )  # fmt: skip


class Known(NamedTuple):
    """What is known while a tree is simplified.

    ``unknown`` stands in for all that is undecided: False asks what is surely true, True what
    may become so. ``fragment`` and ``payload`` are None where either is possible: whether the
    packet is a fragment, and whether it carries anything. ``plain`` says that it carries none of
    DNS, HTTP and QUIC.
    """

    facts: Facts
    hello: ClientHello | Unknown | None
    malformed: bool = False
    unknown: bool = False
    fragment: bool | None = None
    payload: bool | None = None
    plain: bool = False


class Leaf:
    """One condition.

    ``key`` is its name in the file. ``values`` is what it was given, so far as that can be
    compared: a set with ``covers``, or a frozenset. ``cost`` orders the conditions of a rule,
    the cheap ones first.
    """

    __slots__ = ("cost", "key", "test", "values")

    def __init__(self, key: str, values: Any, test: Test | None = None, cost: int = 0) -> None:
        self.key = key
        self.values = values
        self.test = test
        self.cost = cost

    def value(self, known: Known) -> bool | Unknown | None:
        """Return true or false, UNKNOWN if undecided, None if only the packet tells."""
        raise NotImplementedError

    def covers(self, other: Leaf) -> bool:
        """Whether this is true wherever another is, so far as is easily seen."""
        if self.key != other.key:
            return False
        if isinstance(self.values, frozenset):
            return isinstance(other.values, frozenset) and self.values >= other.values
        return type(self.values) is type(other.values) and bool(self.values.covers(other.values))


class OfFacts(Leaf):
    """A condition about what is the same for all packets of a direction; ``of`` asks it.

    ``fields`` names the fields of :class:`Facts` of which it asks for ranges, the ranges in
    ``values``: ``src``, ``dst``, ``sport``, ``dport``.
    """

    __slots__ = ("fields", "of")

    def __init__(
        self, key: str, values: Any, of: Callable[[Facts], bool], fields: Sequence[str] = ()
    ) -> None:
        super().__init__(key, values)
        self.of = of
        self.fields = fields

    def value(self, known: Known) -> bool:
        """Ask the facts."""
        return self.of(known.facts)


class OfHello(Leaf):
    """A condition about the ClientHello of the flow; ``of`` asks it."""

    __slots__ = ("of",)

    def __init__(self, key: str, values: Any, of: Callable[[ClientHello], bool]) -> None:
        super().__init__(key, values)
        self.of = of

    def value(self, known: Known) -> bool | Unknown:
        """Ask the ClientHello; a flow that is known to have none does not fulfil it."""
        hello = known.hello
        if isinstance(hello, Unknown):
            return hello
        return hello is not None and self.of(hello)


class OfPacket(Leaf):
    """A condition about the headers of the packet itself; ``possible`` says where it is in vain."""

    __slots__ = ("possible",)

    def __init__(
        self,
        key: str,
        values: Any,
        test: Test,
        possible: Callable[[Facts], bool] | None = None,
        cost: int = 1,
    ) -> None:
        super().__init__(key, values, test, cost)
        self.possible = possible

    def value(self, known: Known) -> bool | None:
        """Leave it to the packet, unless the protocol rules it out."""
        if self.possible is not None and not self.possible(known.facts):
            return False
        return None


class OfPayload(OfPacket):
    """A condition about what the packet carries: false where it carries nothing.

    It asks an attribute of the packet, ``dns``, ``http`` or ``quic``, or the bytes themselves.
    """

    __slots__ = ()

    @property
    def carried(self) -> str:
        """The name of that attribute, with which the key begins; "" for the bytes."""
        return self.key.rpartition(".")[0]

    def value(self, known: Known) -> bool | None:
        """Leave it to the packet, unless that is empty or the protocol rules it out."""
        if known.payload is False or (known.plain and self.carried):
            return False
        return super().value(known)


class OfShape(Leaf):
    """``fragment`` and ``malformed``; the values are the field of :class:`Known` and its value."""

    __slots__ = ("wanted",)

    def __init__(self, key: str, wanted: bool, test: Test) -> None:
        super().__init__(key, frozenset({wanted}), test, 1)
        self.wanted = wanted

    def value(self, known: Known) -> bool | None:
        """Answer where it is known already."""
        is_so: bool | None = getattr(known, self.key)
        return None if is_so is None else is_so == self.wanted


class Not:
    """The opposite of what it holds."""

    __slots__ = ("part",)

    def __init__(self, part: Tree) -> None:
        self.part = part

    @property
    def cost(self) -> int:
        """That of what it holds."""
        return self.part.cost


class All:
    """True if all parts are; so it is without any."""

    __slots__ = ("cost", "parts")

    def __init__(self, parts: Sequence[Tree]) -> None:
        self.parts = tuple(sorted(parts, key=lambda part: part.cost))
        self.cost: int = max((part.cost for part in parts), default=0)


class Any_(All):  # noqa: N801 - typing has the other name
    """True if one of the parts is."""

    __slots__ = ()


Tree = Leaf | Not | All


def leaves(tree: Tree, positive: bool = True) -> list[tuple[Leaf, bool]]:
    """Return all conditions of a tree, and of each whether it stands behind no ``not``."""
    if isinstance(tree, Leaf):
        return [(tree, positive)]
    if isinstance(tree, Not):
        return leaves(tree.part, not positive)
    return [found for part in tree.parts for found in leaves(part, positive)]


def simplify(tree: Tree, known: Known, wanted: bool = True) -> bool | Test:
    """Return whether a tree is ``wanted``, or the test of a packet that is left to do."""
    if isinstance(tree, Leaf):
        value = tree.value(known)
        if value is None:
            test = tree.test
            assert test is not None  # noqa: S101 - only conditions with a test leave it to that
            return test if wanted else _opposite(test)
        return known.unknown if isinstance(value, Unknown) else value is wanted
    if isinstance(tree, Not):
        return simplify(tree.part, known, not wanted)
    both = isinstance(tree, Any_) is not wanted  # all must hold; else one is enough
    tests: list[Test] = []
    for part in tree.parts:
        left = simplify(part, known, wanted)
        if left is (not both):
            return left
        if left is not both:
            tests.append(left)  # type: ignore[arg-type]
    if not tests:
        return both
    if len(tests) == 1:
        return tests[0]
    return _all(tuple(tests)) if both else _any(tuple(tests))


def _opposite(test: Test) -> Test:
    return lambda packet: not test(packet)


def _all(tests: tuple[Test, ...]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda packet: first(packet) and second(packet)

    def holds(packet: Packet) -> bool:
        for test in tests:  # noqa: SIM110 - twice as quick as all() of a generator
            if not test(packet):
                return False
        return True

    return holds


def _any(tests: tuple[Test, ...]) -> Test:
    def holds(packet: Packet) -> bool:
        for test in tests:  # noqa: SIM110 - twice as quick as any() of a generator
            if test(packet):
                return True
        return False

    return holds
