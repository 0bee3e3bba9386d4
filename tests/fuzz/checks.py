"""What has to hold whatever the bytes: nothing is raised, no offset leaves the packet."""

from __future__ import annotations

from nfctl.inspect.headers import MAX_EXTENSIONS, Headers, decode
from nfctl.inspect.payloads import dns, http, icmp


def headers(packet: bytes, length: int) -> Headers:
    """Decode a packet and hold what was decoded against it."""
    head = decode(packet, length)
    assert 0 <= head.transport <= head.data <= head.end <= len(packet)
    assert head.truncated == (length > len(packet))
    assert head.length == max(length, len(packet))
    assert head.version in {0, 4, 6}
    assert len(head.src) == len(head.dst)
    assert len(head.src) in ({0, 4} if head.version == 4 else {0, 16})
    assert len(head.extensions) <= MAX_EXTENSIONS
    assert -1 <= head.proto <= 255
    assert 0 <= head.fragment <= 65528
    assert 0 <= head.sport <= 65535
    assert 0 <= head.dport <= 65535
    if not head.malformed:
        assert head.src
        assert head.data >= (20 if head.version == 4 else 40)
        assert head.proto >= 0 or head.fragment
    if head.fragment:
        assert not head.sport
        assert not head.dport
        assert head.icmp is None
        assert head.data == head.transport
    for name in Headers.__slots__:
        assert hasattr(head, name)
    icmp.inner(head.version, packet[head.transport : head.end])
    return head


def shown(text: str) -> None:
    """Text from a packet must be safe on a terminal: printable ASCII."""
    assert text.isascii()
    assert text.isprintable()


def dns_message(data: bytes) -> dns.Dns | None:
    """Read a DNS message and look at what it says."""
    found = dns.read(data)
    if found is not None:
        assert len(found.questions) <= dns.MAX_QUESTIONS
        assert len(found.answers) <= dns.MAX_ANSWERS
        for texts in (*found.questions, *found.answers, (found.rcode_name,)):
            for text in texts:
                assert text
                shown(text)
        for _name, _type, text in found.answers:
            assert len(text) <= dns.MAX_TEXT
    return found


def http_head(data: bytes) -> http.Http | None:
    """Read the head of an HTTP message and look at what it says."""
    found = http.read(data)
    if found is not None:
        assert bool(found.method) != bool(found.status)
        assert found.version or not found.complete
        for name in ("method", "target", "path", "host", "version", "reason", "user_agent"):
            text = getattr(found, name)
            shown(text)
            assert len(text) <= 4 * http.LIMIT
        assert found.host == found.host.lower()
    return found
