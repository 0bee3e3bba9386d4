"""Messages and attributes of netlink, as the kernel lays them out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nfctl.kernel import netlink

kinds = st.integers(0, netlink.TYPE)
values = st.binary(max_size=40)


@given(st.lists(st.tuples(kinds, values)))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    """What was encoded is found again, each value without its padding."""
    data = b"head" + b"".join(netlink.attribute(kind, value) for kind, value in pairs)
    found = netlink.attributes(data, 4, len(data))
    assert [(kind, data[start:end]) for kind, start, end in found] == pairs
    assert netlink.values(data, 4) == dict(pairs)


@given(st.lists(st.tuples(st.integers(0, 0xFFFF), values)))
def test_messages_come_back(pairs: list[tuple[int, bytes]]) -> None:
    """Messages that arrive together are told apart, by their lengths."""
    data = b""
    for number, (kind, body) in enumerate(pairs):
        head = netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, 0x10, number, 0)
        data += head + body + bytes(-len(body) % 4)
    found = list(netlink.messages(data))
    assert [(kind, data[start:end]) for kind, _, _, start, end in found] == pairs
    assert [sequence for _, _, sequence, _, _ in found] == list(range(len(pairs)))
    assert {flags for _, flags, _, _, _ in found} <= {0x10}


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Whatever the lengths say, the walk ends, and stays inside of the data."""
    places = [(start, end) for _, _, _, start, end in netlink.messages(data)]
    places += [(start, end) for _, start, end in netlink.attributes(data, 0, len(data))]
    assert all(0 < start <= end <= len(data) for start, end in places)
