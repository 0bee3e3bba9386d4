"""ClientHellos as Python's own TLS library sends them, whole, cut and spoiled."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.inspect.payloads.tls import MORE, MOST, PIECE, ClientHello, Reader, handshake, hello
from tests.unit.hello import client_hello

NAME = "www.example.com"


def real(name: str = NAME, *alpn: str, newest: str = "TLSv1_3") -> bytes:
    return client_hello(name, *alpn, newest=newest)


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def server_name(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2) + name
    return extension(0, len(entry).to_bytes(2) + entry)


def made(*extensions: bytes, version: int = 0x303, bare: bool = False) -> bytes:
    """Return a ClientHello with these extensions and no others."""
    behind = b"".join(extensions)
    body = version.to_bytes(2) + bytes(32) + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    if extensions:
        body += len(behind).to_bytes(2) + behind
    message = b"\1" + len(body).to_bytes(3) + body
    return message if bare else records(message, len(message))


def records(message: bytes, *sizes: int) -> bytes:
    """Put a handshake message into records of these sizes, in turn."""
    made, turn = b"", 0
    while message:
        size = sizes[turn % len(sizes)]
        turn += 1
        part, message = message[:size], message[size:]
        made += b"\x16\3\1" + len(part).to_bytes(2) + part
    return made


def found(data: bytes) -> ClientHello:
    result = hello(data)
    assert isinstance(result, ClientHello)
    return result


class TestReal:
    """What OpenSSL sends."""

    def test_name_protocols_and_version(self) -> None:
        """All that was asked of OpenSSL is read from its ClientHello."""
        assert hello(real(NAME, "h2", "http/1.1")) == ClientHello(
            NAME, ("h2", "http/1.1"), "TLS 1.3"
        )
        assert hello(real("a.b.example", newest="TLSv1_2")) == ClientHello(
            "a.b.example", (), "TLS 1.2"
        )

    def test_without_record(self) -> None:
        """The message alone, as QUIC carries it, reads the same."""
        data = real(NAME, "h3")
        assert handshake(data[5:]) == hello(data) == ClientHello(NAME, ("h3",), "TLS 1.3")

    def test_every_beginning(self) -> None:
        """No beginning of a ClientHello is taken for all of it, nor for something else."""
        data = real()
        for end in range(len(data)):
            assert hello(data[:end]) is MORE, end
            assert handshake(data[5 : max(5, end)]) is MORE, end
        assert found(data + b"early data").sni == NAME

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 100, 300])
    def test_records(self, size: int) -> None:
        """A ClientHello in records of any size reads the same, as do its beginnings."""
        data = records(real()[5:], size)
        assert found(data).sni == NAME
        assert all(hello(data[:end]) is MORE for end in range(0, len(data), 7))

    @given(st.data())
    def test_pieces_in_any_order(self, data: st.DataObject) -> None:
        """Cut anywhere, in any order, some twice, some overlapping: the name is found."""
        stream = records(real()[5:], *data.draw(st.lists(st.integers(1, 200), min_size=1)))
        cuts = data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=30))
        ends = sorted({0, *cuts, len(stream)})
        pieces = [
            (max(0, start - data.draw(st.integers(0, 9))), stop + data.draw(st.integers(0, 9)))
            for start, stop in pairwise(ends)
        ]
        pieces += data.draw(st.lists(st.sampled_from(pieces), max_size=5))
        reader, results = Reader(), []
        for start, stop in data.draw(st.permutations(pieces)):
            results.append(reader.add(start, stream[start:stop]))
            assert reader.kept <= MOST
            if results[-1] is not MORE:
                break
        last = results[-1]
        assert isinstance(last, ClientHello)
        assert last.sni == NAME

    @given(st.data())
    def test_first_bytes_win(self, data: st.DataObject) -> None:
        """What is sent again with other bytes changes nothing of what was there before."""
        stream = real()
        cuts = data.draw(st.sets(st.integers(1, len(stream) - 2), min_size=1, max_size=10))
        ends = sorted({0, *cuts, len(stream)})
        pieces = list(pairwise(ends))
        last = data.draw(st.sampled_from(pieces))
        reader = Reader()
        for start, stop in data.draw(st.permutations([p for p in pieces if p != last])):
            assert reader.add(start, stream[start:stop]) is MORE
        start, stop = last
        spoiled = bytearray(byte ^ 0x55 for byte in stream)
        spoiled[start:stop] = stream[start:stop]
        result = reader.add(0, bytes(spoiled))
        assert isinstance(result, ClientHello)
        assert result.sni == NAME


class TestMade:
    """What no library sends, but others may."""

    def test_nothing_asked(self) -> None:
        """Without extensions there is no name; the version is the old field's."""
        assert hello(made(version=0x301)) == ClientHello("", (), "TLS 1.0")
        assert hello(made(extension(21, bytes(9)))) == ClientHello("", (), "TLS 1.2")

    @pytest.mark.parametrize(
        ("name", "sni"),
        [
            (b"WWW.Example.COM.", NAME),
            (b"good.com\0.evil.com", r"good.com\x00.evil.com"),
            (b"a\x1b[31mb c\\d", r"a\x1b[31mb\x20c\x5cd"),
            ("b\u00fccher.example".encode(), r"b\xc3\xbccher.example"),
            (b"x" * 255, "x" * 255),
            (b"x" * 256, "x" * 252 + "..."),
            (b"\0" * 9999, r"\x00" * 63 + "..."),
            (b"", ""),
        ],
    )
    def test_names(self, name: bytes, sni: str) -> None:
        """A name has nothing in it that a terminal obeys, is lower case, and not too long."""
        assert found(made(server_name(name))).sni == sni

    def test_first_host_name(self) -> None:
        """Names of other kinds are passed over, and the first host name counts."""
        one, two = server_name(b"other", 7)[6:], server_name(b"host.example")[6:]
        both = extension(0, len(one + two).to_bytes(2) + one + two)
        assert found(made(both, server_name(b"second.example"))).sni == "host.example"

    @pytest.mark.parametrize(
        ("offered", "version"),
        [
            ([0x0303, 0x0304, 0x0302], "TLS 1.3"),
            ([0xFAFA, 0x0304, 0x0303], "TLS 1.3"),
            ([0x7F1C, 0x0303], "TLS 1.3 draft 28"),
            ([0x7F1C, 0x0304], "TLS 1.3"),
            ([0x0302], "TLS 1.1"),
            ([0x0399, 0x0A0A], "TLS 1.2"),
        ],
    )
    def test_versions(self, offered: list[int], version: str) -> None:
        """The highest version that is one counts, not the made-up ones of GREASE."""
        body = b"".join(each.to_bytes(2) for each in offered)
        assert found(made(extension(43, bytes([len(body)]) + body))).version == version

    def test_encrypted(self) -> None:
        """encrypted_client_hello is seen, and the name in front of it."""
        result = found(made(extension(0xFE0D, b"\0" * 100), server_name(b"front.example")))
        assert result.ech
        assert result.sni == "front.example"
        assert not found(made(server_name(b"front.example"))).ech

    def test_protocols_are_bounded(self) -> None:
        """A thousand protocols, or long ones, are not all kept; odd bytes are escaped."""
        many = b"".join(b"\x02h%d" % (n % 10) for n in range(1000))
        assert len(found(made(extension(16, len(many).to_bytes(2) + many))).alpn) == 16
        odd = b"\x02\x0a\x0a" + b"\xff" + b"y" * 255
        alpn = found(made(extension(16, len(odd).to_bytes(2) + odd))).alpn
        assert alpn == (r"\x0a\x0a", "y" * 29 + "...")

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\r\n",
            b"SSH-2.0-OpenSSH",
            b"\x16\2\1\0\5",
            b"\x16\3\1\0\0",  # an empty record
            b"\x16\3\1\x50\0",  # a longer record than there may be
            b"\x16\3\3\0\4\2\0\0\0",  # a ServerHello
            b"\x17\3\3\0\4\1\0\0\0",
            records(made(bare=True), 20)[:25] + b"\x15\3\1\0\2\1\0",  # an alert between
            made(b"\0\0\0\x09abc"),  # an extension that goes on behind the end
            made(extension(21, b""))[:-1] + b"\7",
            records(b"\1\0\0\1\3", 5),
            b"\x80\x2e\1\3\1",  # SSL 2
        ],
    )
    def test_hopeless(self, data: bytes) -> None:
        """What can become no ClientHello is known at once."""
        assert hello(data) is None


class TestBounds:
    """Nothing a client sends is kept without end, or ends in an error."""

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        """Arbitrary bytes are read without an error, alone and behind a true beginning."""
        for read in (hello, handshake):
            read(data)
        hello(b"\x16\3\1\0\xff" + data)
        handshake(b"\1\0\0\x80\3\3" + bytes(32) + data)

    @given(st.integers(5, 500), st.binary(min_size=1, max_size=4))
    def test_spoiled(self, at: int, noise: bytes) -> None:
        """A ClientHello with some bytes changed is read, or refused, without an error."""
        data = real()
        result = hello(data[:at] + noise + data[at + len(noise) :])
        assert result is None or result is MORE or len(result.sni) <= 255

    def test_too_long(self) -> None:
        """One that says it is longer than is allowed is given up at its fourth byte."""
        reader = Reader(1000)
        assert reader.add(0, b"\x16\3\1\4\0\1\0\3") is MORE
        assert reader.add(8, b"\xff") is None
        assert reader.over
        reader = Reader(1000)
        assert reader.add(0, b"\x16\3\1\4\0\1\0\1\0") is MORE
        assert not reader.over
        assert handshake(b"\1\0\xff\xff") is None

    @given(st.lists(st.tuples(st.integers(0, 40000), st.integers(0, 3000)), max_size=60))
    def test_kept(self, pieces: list[tuple[int, int]]) -> None:
        """However pieces lie, no more is kept than is allowed; who passes that is refused."""
        reader = Reader(4000)
        reader.add(0, b"\x16\3\1\x20\0\1\0\x0e\0")
        for offset, size in pieces:
            if reader.add(offset + 9, b"z" * size) is not MORE:
                break
            assert reader.kept <= 4000
            assert not reader.over

    def test_many_gaps(self) -> None:
        """Single bytes with gaps between are given up long before there are as many as bytes."""
        reader = Reader()
        results = [reader.add(offset, b"z") for offset in range(1, 2 * MOST // PIECE, 2)]
        assert None in results
        assert reader.over

    def test_far_behind(self) -> None:
        """What follows a lost beginning does no harm, however much it is."""
        data, reader = real(), Reader()
        for offset in range(len(data), 100_000, 1400):
            assert reader.add(offset, b"z" * 1400) is MORE
        result = reader.add(0, data)
        assert isinstance(result, ClientHello)
