"""The condition ``payload``: a regular expression, or bytes, anywhere in what a packet carries."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Final

from nfctl.document import Kind, shown
from nfctl.inspect.rules.expression import OfPayload
from nfctl.inspect.rules.values import some

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.document import Node
    from nfctl.inspect.packet import Packet

BYTES, REGEX = "bytes", "regex"
_COST: Final = {BYTES: 5, REGEX: 20}


def payload(key: str, node: Node) -> OfPayload:
    """Read patterns of which one has to be found; ``values`` are (kind, bytes) of each."""
    nodes = [node] if node.kind is Kind.MAPPING else some(node, "pattern")
    searches: dict[tuple[str, bytes], Callable[[bytes], bool]] = {}
    for part in nodes:
        if part.kind is Kind.MAPPING:
            needle = _needle(part)
            searches[BYTES, needle] = _contains(needle)
        else:
            pattern = _compile(part)
            searches[REGEX, pattern.pattern] = _found(pattern)
    # Bytes are found much sooner than expressions.
    ordered = [searches[one] for one in sorted(searches)]
    cost = max(_COST[kind] for kind, _ in searches)
    values = frozenset(searches)
    if len(ordered) == 1:
        search = ordered[0]
        return OfPayload(key, values, lambda packet: search(packet.payload), None, cost)

    def test(packet: Packet) -> bool:
        data = packet.payload
        return any(search(data) for search in ordered)

    return OfPayload(key, values, test, None, cost)


def _contains(needle: bytes) -> Callable[[bytes], bool]:
    return lambda data: needle in data


def _found(pattern: re.Pattern[bytes]) -> Callable[[bytes], bool]:
    search = pattern.search
    return lambda data: search(data) is not None


def _needle(node: Node) -> bytes:
    keys = node.mapping(optional=("hex", "bytes"))
    if len(keys) != 1:
        msg = 'either "hex" or "bytes" is expected here'
        raise node.error(msg, 'such as {hex: "de ad be ef"} or {bytes: "SSH-1."}')
    ((name, value),) = keys.items()
    text = value.scalar()
    if name == "bytes":
        needle = _latin(value, text)
    else:
        try:
            needle = bytes.fromhex(text)
        except ValueError:
            msg = f"{shown(text)} is not hexadecimal"
            raise value.error(msg, 'pairs of digits, such as "de ad be ef"') from None
    if not needle:
        msg = "nothing is found everywhere"
        raise value.error(msg)
    return needle


def _compile(node: Node) -> re.Pattern[bytes]:
    hint = 'a regular expression, {hex: "de ad"} or {bytes: "..."}'
    text = node.text("", "pattern", hint)
    pattern = _latin(node, text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what may mean another thing some day
            return re.compile(pattern, re.DOTALL)
    except re.error as error:
        where = node.inner(error.lineno or 1, error.colno or 1)
        msg = f"this is no regular expression: {error.msg}"
        raise node.error(msg, "see the module re of Python", where=where) from None
    except (RecursionError, OverflowError):
        msg = "this regular expression is too large"
        raise node.error(msg) from None


def _latin(node: Node, text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        msg = f"{shown(text[error.start])} is no byte"
        raise node.error(msg, "each character is one byte; write others as hex") from None
