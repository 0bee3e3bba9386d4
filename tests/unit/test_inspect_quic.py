"""QUIC datagrams: the packets that the RFCs print, and others sealed by another library's HKDF."""

from __future__ import annotations

import hmac
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from nfctl.inspect.payloads import quic
from nfctl.inspect.payloads.quic import V1, V2, Quic, read
from nfctl.inspect.payloads.tls import ClientHello
from tests.unit.test_inspect_tls import NAME, made, real, server_name

#: The connection ID of the appendices A of RFC 9001 and RFC 9369, and the server's.
DCID, SERVER = bytes.fromhex("8394c8f03e515708"), bytes.fromhex("f067a5502a4262b5")
#: A.2 of both: the CRYPTO frame of the client's first Initial, 917 bytes of padding follow.
FRAME = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c00000413"
    "011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d001700180010"
    "0007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171"
    "fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e0403050306030203080408050806002d000201"
    "01001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075300901100f"
    "088394c8f03e51570806048000ffff"
)
#: A.1 and A.2: key, IV and header protection of the client; the packet's first and last bytes.
CLIENT = {
    V1: (
        "1f369613dd76d5467730efcbe3b1a22d", "fa044b2f42a3fd3b46fb255c",
        "9f50449e04a0e810283a1e9933adedd2", "c300000001088394c8f03e5157080000449e00000002",
        "c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11d242b123dc9bd8bab936b4",
        "7e78bfe706ca4cf5e9c5453e9f7cfd2b8b4c8d169a44e55c88d4a9a7f9474241e221af44860018ab0856972e"
        "194cd934",
    ),
    V2: (
        "8b1a0bc121284290a29e0971b5cd045d", "91f73e2351d8fa91660e909f",
        "45b95e15235d6f45a6b19cbcb0294ba9", "d36b3343cf088394c8f03e5157080000449e00000002",
        "d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485dd04de806071bf03dceebf",
        "9a37ddec600545473cfb5a05e08d0b209973b2172b4d21fb69745a262ccde96ba18b2faa745b6fe189cf772a"
        "9f84cbfc",
    ),
}  # fmt: skip
#: A.3: the server's answer. A.4: its Retry.
ANSWER = {
    V1: "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554"
    "780bb38cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562b"
    "fb19fb84022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee",
    V2: "dc6b3343cf0008f067a5502a4262b5004075d92faaf16f05d8a4398c47089698baeea26b91eb761d9b89237bbf"
    "87263017915358230035f7fd3945d88965cf17f9af6e16886c61bfc703106fbaf3cb4cfa52382dd16a393e42757507"
    "698075b2c984c707f0a0812d8cd5a6881eaf21ceda98f4bd23f6fe1a3e2c43edd9ce7ca84bed8521e2e140",
}
RETRY = {
    V1: "ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba",
    V2: "cf6b3343cf0008f067a5502a4262b5746f6b656ec8646ce8bfe33952d955543665dcc7b6",
}
SALTS = {
    V1: "38762cf7f55934b34d179ae6a4c80cadccbb7f0a",
    V2: "0dede3def700a6db819381be6e269dcbf9bd2ed9",
}
KINDS = {
    V1: {"Initial": 0, "0-RTT": 1, "Handshake": 2},
    V2: {"Initial": 1, "0-RTT": 2, "Handshake": 3},
}


def protect(key: bytes, iv: bytes, hp: bytes, header: bytes, plain: bytes) -> bytes:
    """Seal a packet; its number is the end of ``header`` (RFC 9001, 5.3 and 5.4)."""
    size = (header[0] & 3) + 1
    number = int.from_bytes(header[-size:])
    nonce = (int.from_bytes(iv) ^ number).to_bytes(12)
    sealed = AESGCM(key).encrypt(nonce, plain, header)
    sample = sealed[4 - size : 20 - size]
    mask = Cipher(algorithms.AES(hp), modes.ECB()).encryptor().update(sample)  # noqa: S305 # RFC 9001
    tail = bytes(a ^ b for a, b in zip(header[-size:], mask[1:], strict=False))
    return bytes([header[0] ^ mask[0] & 15]) + header[1:-size] + tail + sealed


def expand(secret: bytes, label: str, size: int) -> bytes:
    name = b"tls13 " + label.encode()
    info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0"
    return HKDFExpand(hashes.SHA256(), size, info).derive(secret)


def keys(version: int, dcid: bytes) -> tuple[bytes, bytes, bytes]:
    initial = hmac.digest(bytes.fromhex(SALTS[version]), dcid, "sha256")
    secret = expand(initial, "client in", 32)
    word = "quicv2" if version == V2 else "quic"
    sizes = {"key": 16, "iv": 12, "hp": 16}
    key, iv, hp = (expand(secret, f"{word} {each}", size) for each, size in sizes.items())
    return key, iv, hp


def varint(value: int) -> bytes:
    return (value | 3 << 62).to_bytes(8)


def initial(
    plain: bytes,
    *,
    version: int = V1,
    dcid: bytes = DCID,
    scid: bytes = b"",
    number: int = 0,
    size: int = 2,
    original: bytes = b"",
    token: bytes = b"",
    kind: str = "Initial",
) -> bytes:
    """Return a client's Initial of these frames."""
    plain += bytes(max(0, 4 - len(plain)))
    first = 0xC0 | KINDS[version][kind] << 4 | size - 1
    header = bytes([first]) + version.to_bytes(4)
    header += bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid
    if kind == "Initial":
        header += varint(len(token)) + token
    header += varint(size + len(plain) + 16) + number.to_bytes(size)
    return protect(*keys(version, original or dcid), header, plain)


def crypto(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def found(data: bytes, original: bytes = b"") -> Quic:
    result = read(data, original)
    assert result is not None
    return result


@pytest.mark.parametrize("version", [V1, V2])
class TestVectors:
    """The packets that RFC 9001 and RFC 9369 print in their appendices."""

    def packet(self, version: int) -> bytes:
        """Return A.2's packet; that its tag is as printed says that all of it is."""
        key, iv, hp, header, start, end = map(bytes.fromhex, CLIENT[version])
        packet = protect(key, iv, hp, header, FRAME + bytes(917))
        assert packet.startswith(start)
        assert packet.endswith(end)
        assert len(packet) == 1200
        return packet

    def test_client(self, version: int) -> None:
        """The client's first Initial is opened, and its name read."""
        result = found(self.packet(version))
        assert result == Quic(
            version,
            f"v{1 if version == V1 else 2}",
            "Initial",
            DCID,
            b"",
            ((0, FRAME[4:]),),
            ClientHello("example.com", ("alpn",), "TLS 1.3"),
            DCID,
        )

    def test_keys(self, version: int) -> None:
        """The tests' own derivation of keys gives the keys printed."""
        assert [each.hex() for each in keys(version, DCID)] == list(CLIENT[version][:3])

    @pytest.mark.parametrize("original", [b"", DCID])
    def test_server(self, version: int, original: bytes) -> None:
        """The server's Initial is told, but is none of the client's."""
        result = found(bytes.fromhex(ANSWER[version]), original)
        assert (result.kind, result.dcid, result.scid) == ("Initial", b"", SERVER)
        assert result.crypto == ()
        assert result.hello is None

    def test_retry(self, version: int) -> None:
        """A Retry is told by the type it has in its version."""
        result = found(bytes.fromhex(RETRY[version]))
        assert (result.kind, result.dcid, result.scid) == ("Retry", b"", SERVER)

    def test_one_bit(self, version: int) -> None:
        """With any bit of the header or the tag changed nothing is taken for a ClientHello."""
        packet = self.packet(version)
        for at in [*range(6, 30), *range(1184, 1200)]:
            spoiled = packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :]
            result = read(spoiled)
            assert result is None or result.hello is None, at

    def test_cut(self, version: int) -> None:
        """Of a datagram that was cut, the IDs are still told."""
        packet = self.packet(version)
        for end in range(1200):
            result = read(packet[:end])
            assert (result is None) == (end < 35), end
            assert result is None or (result.dcid == DCID and result.crypto == ())


class TestDatagrams:
    """Other datagrams than the RFCs print."""

    hello = real(NAME, "h3")[5:]

    @pytest.mark.parametrize("version", [V1, V2])
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_number(self, version: int, size: int) -> None:
        """Packet numbers of one to four bytes are read."""
        number = (1 << 8 * size) - 2
        packet = initial(crypto(0, self.hello), version=version, size=size, number=number)
        assert found(packet).hello == ClientHello(NAME, ("h3",), "TLS 1.3")

    def test_token(self) -> None:
        """A token, as after a Retry, stands before the length."""
        assert found(initial(crypto(0, self.hello), token=b"t" * 100)).hello

    @given(st.data())
    def test_frames_in_any_order(self, data: st.DataObject) -> None:
        """CRYPTO frames in any order, with padding, pings and ACKs between, give the name."""
        cuts = data.draw(st.sets(st.integers(1, len(self.hello) - 1), max_size=20))
        ends = sorted({0, *cuts, len(self.hello)})
        frames = [crypto(a, self.hello[a:b]) for a, b in pairwise(ends)]
        ack = b"\2" + varint(3) + varint(9) + varint(1) + varint(0) + varint(1) + varint(0)
        counted = b"\3" + ack[1:] + varint(7) * 3
        others = [b"\0", b"\1", bytes(50), ack, counted, b"\1\0\1"]
        frames += data.draw(st.lists(st.sampled_from(others), max_size=10))
        plain = b"".join(data.draw(st.permutations(frames)))
        result = found(initial(plain))
        assert len(result.crypto) == len(ends) - 1
        assert result.hello == ClientHello(NAME, ("h3",), "TLS 1.3")

    def test_half(self) -> None:
        """Half a ClientHello is handed out as the frame it is."""
        result = found(initial(crypto(200, self.hello[200:])))
        assert result.crypto == ((200, self.hello[200:]),)
        assert result.hello is None

    def test_coalesced(self) -> None:
        """An Initial behind 0-RTT, and a second one behind the first, are found."""
        one, two = crypto(0, self.hello[:99]), crypto(99, self.hello[99:])
        early = initial(bytes(50), kind="0-RTT")
        result = found(early + initial(two) + initial(one, number=1) + b"\x40short")
        assert result.kind == "0-RTT"
        assert [offset for offset, _ in result.crypto] == [99, 0]
        assert result.hello is not None

    def test_another_connection(self) -> None:
        """What stands behind the first packet with another connection ID is not looked at."""
        other = initial(crypto(0, self.hello), dcid=bytes(8))
        sealed = initial(crypto(0, self.hello), dcid=bytes(8), original=DCID)
        for second in (other, sealed):
            assert found(initial(b"\1") + second).hello is None

    def test_original(self) -> None:
        """The client's later Initials need the connection ID of the first."""
        packet = initial(crypto(0, self.hello), dcid=b"short", original=DCID)
        assert found(packet).hello is None
        result = found(packet, DCID)
        assert result.hello is not None
        assert (result.dcid, result.original) == (b"short", DCID)
        # After a Retry, or a new beginning, it is the packet's own again.
        again = found(initial(crypto(0, self.hello)), bytes(9))
        assert again.original == DCID

    def test_versions(self) -> None:
        """Other versions are told by number, what they carry is not guessed."""
        body = b"\x08" + DCID + b"\x04abcd" + bytes(1200)
        for number, name in [
            (0xFF00001D, "draft 29"), (0x1A2A3A4A, "0x1a2a3a4a"), (0x51303530, "0x51303530"),
            (0xFACEB002, "0xfaceb002"),
        ]:  # fmt: skip
            result = read(b"\xc3" + number.to_bytes(4) + body)
            assert result == Quic(number, name, "", DCID, b"abcd")
        negotiation = b"\x80" + bytes(4) + body[:14] + V1.to_bytes(4) + V2.to_bytes(4)
        assert found(negotiation).kind == "Version negotiation"
        assert read(negotiation[:-8]) is None
        assert read(negotiation[:-1]) is None

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            bytes(1200),
            b"\xff" * 1200,
            b"\x40" + bytes(100),  # a short header
            b"\x80\x60\x12\x34\0\1\2\3" + bytes(160),  # RTP
            b"\xab\xcd\x81\x80\0\1\0\1\0\0\0\0\3www\7example\3com\0",  # DNS
            b"\x83" + V1.to_bytes(4) + b"\x08" + DCID + bytes(1200),  # the fixed bit is not set
            b"\xc3" + V1.to_bytes(4) + b"\x15" + bytes(1200),  # 21 bytes of ID
            b"\xc3" + V1.to_bytes(4) + b"\x08" + DCID + b"\x15" + bytes(1200),
        ],
    )
    def test_no_quic(self, data: bytes) -> None:
        """What is no long header of QUIC is nothing."""
        assert read(data) is None

    @given(st.sampled_from([V1, V2, 0, 0xFF00001D]), st.integers(0x80, 0xFF), st.binary())
    def test_any_bytes(self, version: int, first: int, data: bytes) -> None:
        """Arbitrary bytes are read without an error, alone and behind a true beginning."""
        read(data)
        read(bytes([first]) + version.to_bytes(4) + data, data[:9])
        read(bytes([first]) + version.to_bytes(4) + b"\x08" + DCID + b"\0" + data)

    @given(st.binary(max_size=200))
    def test_any_frames(self, plain: bytes) -> None:
        """Arbitrary frames in a well sealed Initial are read without an error."""
        result = found(initial(plain + bytes(4)))
        assert sum(len(data) for _, data in result.crypto) <= len(plain) + 4

    def test_endless_ack(self) -> None:
        """An ACK that says it has 2^60 ranges is not believed; one of 300 is."""
        ack = b"\2" + varint(3) + varint(9)
        endless = found(initial(ack + varint(1 << 60) + bytes(50) + crypto(0, self.hello)))
        assert endless.crypto == ()
        long = found(initial(ack + varint(300) + bytes(601) + crypto(0, self.hello)))
        assert long.hello is not None

    def test_hostile_hello(self) -> None:
        """A name that a terminal would obey is as harmless as in TLS over TCP."""
        message = made(server_name(b"\x1b[2Jevil"), bare=True)
        result = found(initial(crypto(0, message)))
        assert result.hello == ClientHello(r"\x1b[2jevil", (), "TLS 1.2")

    def test_many_initials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A datagram of nothing but small Initials costs a bounded number of decryptions."""
        opened: list[Any] = []
        monkeypatch.setattr(quic, "_open", lambda *args: opened.append(args))
        found(initial(b"\1") * 500)
        assert len(opened) == 16


def test_without_cryptography() -> None:
    """Where the library is missing, version and IDs are told and importing does no harm."""
    packet = initial(crypto(0, TestDatagrams.hello))
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from nfctl.inspect.payloads import quic\n"
        f"found = quic.read(bytes.fromhex({packet.hex()!r}))\n"
        "print(quic.able(), found.version_name, found.kind, found.dcid.hex(), found.crypto)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"False v1 Initial {DCID.hex()} ()\n"


def test_nothing_heavy_is_imported() -> None:
    """Reading a datagram that is no QUIC imports no cryptography."""
    code = (
        "import sys; from nfctl.inspect.payloads import quic; quic.read(bytes(99))\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
