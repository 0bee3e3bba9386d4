"""Sets of numbers, addresses and names that are as quick to ask with 10,000 members as with one."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Value = TypeVar("Value", int, bytes)

_SMALL: Final = 0x10000  # numbers that are kept one by one


class Ranges(Generic[Value]):
    """Numbers, or packed addresses of one length, as ranges that do not touch; both ends belong."""

    __slots__ = ("highs", "lows")

    def __init__(self, lows: Sequence[Value], highs: Sequence[Value]) -> None:
        self.lows: Sequence[Value] = lows
        self.highs: Sequence[Value] = highs

    def __contains__(self, value: Value) -> bool:
        """Whether the value is in one of the ranges."""
        index = bisect_right(self.lows, value) - 1
        return index >= 0 and value <= self.highs[index]

    def __bool__(self) -> bool:
        """Whether there is a range."""
        return bool(self.lows)

    def covers(self, other: Ranges[Value]) -> bool:
        """Whether all values of another are here too."""
        for low, high in zip(other.lows, other.highs, strict=True):
            index = bisect_right(self.lows, low) - 1
            if index < 0 or high > self.highs[index]:
                return False
        return True


def merged(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Put ranges that overlap or touch together, in order."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if result and low <= result[-1][1] + 1:
            if high > result[-1][1]:
                result[-1] = (result[-1][0], high)
        else:
            result.append((low, high))
    return result


def numbers(pairs: Iterable[tuple[int, int]]) -> Ranges[int]:
    """Return a set of the numbers in ranges."""
    ranges = merged(pairs)
    return Ranges([low for low, _ in ranges], [high for _, high in ranges])


def quick(ranges: Ranges[int]) -> frozenset[int] | Ranges[int]:
    """Return what answers ``in`` soonest: the numbers themselves, if they are not too many."""
    pairs = list(zip(ranges.lows, ranges.highs, strict=True))
    if sum(high - low + 1 for low, high in pairs) > _SMALL:
        return ranges
    return frozenset(number for low, high in pairs for number in range(low, high + 1))


class Addresses:
    """IPv4 and IPv6 addresses, as they are in packets: 4 or 16 bytes."""

    __slots__ = ("families",)

    def __init__(self, pairs: Iterable[tuple[int, int, int]]) -> None:
        """Make a set of ranges: the length in bytes, the first and the last address."""
        self.families: dict[int, Ranges[bytes]] = {}
        listed = list(pairs)
        for length in (4, 16):
            own = merged((low, high) for size, low, high in listed if size == length)
            if own:
                self.families[length] = Ranges(
                    [low.to_bytes(length) for low, _ in own],
                    [high.to_bytes(length) for _, high in own],
                )

    def __contains__(self, address: bytes) -> bool:
        """Whether a packed address is in one of the ranges; one of another length is not."""
        ranges = self.families.get(len(address))
        return ranges is not None and address in ranges

    def covers(self, other: Addresses) -> bool:
        """Whether all addresses of another are here too."""
        return all(
            length in self.families and self.families[length].covers(ranges)
            for length, ranges in other.families.items()
        )


class Names:
    """Domain names, exact ones and globs; without regard to case and to a dot at the end.

    ``*`` stands for any characters. Names in packets come in lower case and without that dot, as
    their readers give them. Of such a name what stands behind its last dots is looked up, never
    more dots than the deepest of the globs ``*.example.com`` has: its length costs nothing.
    """

    __slots__ = ("_depth", "_exact", "_globs", "_suffixes", "words")

    def __init__(self, words: Iterable[str]) -> None:
        self.words = frozenset(word.lower().removesuffix(".") or "." for word in words)
        below = {w for w in self.words if w.startswith("*.") and "*" not in w[1:] and len(w) > 2}
        self._exact = frozenset(word for word in self.words if "*" not in word)
        self._suffixes = frozenset(word[2:] for word in below)
        self._depth = max((word.count(".") + 1 for word in self._suffixes), default=0)
        self._globs = globs(self.words - below - self._exact)

    def __contains__(self, name: str) -> bool:
        """Whether a name is one of these; "" never is."""
        if name in self._exact:
            return True
        if not name:
            return False
        dot = len(name)
        for _ in range(self._depth):
            dot = name.rfind(".", 0, dot)
            if dot < 0:
                break
            if name[dot + 1 :] in self._suffixes:
                return True
        return bool(self._globs) and any(glob.fits(name) for glob in self._globs)


class Texts:
    """Texts that are told apart by case, exact ones and globs: paths of HTTP, names of ALPN."""

    __slots__ = ("_exact", "_globs", "_prefixes", "words")

    def __init__(self, words: Iterable[str]) -> None:
        self.words = frozenset(words)
        begins = {word for word in self.words if word.find("*") == len(word) - 1}
        self._exact = frozenset(word for word in self.words if "*" not in word)
        self._prefixes = tuple(word[:-1] for word in sorted(begins))
        self._globs = globs(self.words - begins - self._exact)

    def __contains__(self, text: str) -> bool:
        """Whether a text is one of these; "" never is."""
        if not text:
            return False
        if text in self._exact or (self._prefixes and text.startswith(self._prefixes)):
            return True
        return bool(self._globs) and any(glob.fits(text) for glob in self._globs)


class Glob:
    """A text in which ``*`` stands for any characters.

    The pieces between the stars are searched from left to right, each once: no text that a
    packet brings takes longer than its length times the number of pieces.
    """

    __slots__ = ("_first", "_last", "_middle", "_shortest")

    def __init__(self, word: str) -> None:
        self._first, *middle, self._last = word.split("*")
        self._middle = [piece for piece in middle if piece]
        self._shortest = len(word) - word.count("*")

    def fits(self, text: str) -> bool:
        """Whether the whole text fits."""
        if len(text) < self._shortest or not text.startswith(self._first):
            return False
        end = len(text) - len(self._last)
        if not text.endswith(self._last):
            return False
        at = len(self._first)
        for piece in self._middle:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


def globs(words: Iterable[str]) -> tuple[Glob, ...]:
    """Return the globs of words that all have a star."""
    return tuple(Glob(word) for word in sorted(words))
