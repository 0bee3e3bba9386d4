"""Capture files: written for Wireshark's own tools, read from scapy's, and damaged in any way."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback
from scapy.packet import raw
from scapy.utils import RawPcapNgReader, RawPcapNgWriter, RawPcapWriter

from nfctl.errors import BadInput, NotPermitted
from nfctl.inspect import capture
from nfctl.inspect.capture import LEAST_LIMIT, Files, Writer, read
from nfctl.inspect.packet import Packet
from nfctl.inspect.verdict import ACCEPT, Action, Verdict
from tests.unit.test_inspect_checksum import partial

if TYPE_CHECKING:
    from collections.abc import Iterator

FOUR = IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=5, dport=7) / b"four"
SIX = IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(sport=5, dport=8) / b"six"
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")  # else scapy asks the network
TIME = 1_700_000_000.123456


def writer(path: Path, limit: int = 0) -> Writer:
    files = Files(str(path), 3 if limit else 1, limit)
    return Writer(files.open, limit)


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """Have Wireshark read a file: a row for each packet."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    names = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", *names, "-E", "separator=|",
         "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
         "-o", "ip.check_checksum:TRUE"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.split("|") for line in done.stdout.splitlines()]


class TestWriting:
    """What is written is what Wireshark shows."""

    def test_wireshark_reads_everything_that_is_written(self, tmp_path: Path) -> None:
        """Packet, lengths, time, interface, direction and verdict come back as they went in."""
        path = tmp_path / "file.pcapng"
        out = writer(path)
        out.write(
            Packet(raw(FOUR), indev="eth0", time=TIME),
            Verdict(Action.DROP, "rule ü", mark=(1, 0xFF)),
        )
        out.write(Packet(raw(SIX), outdev="eth1", chain="OUTPUT", time=TIME + 1), ACCEPT)
        out.write(Packet(raw(FOUR)[:30], 32, indev="eth0", chain="FORWARD", time=TIME + 2), ACCEPT)
        out.close()
        rows = tshark(
            path, "frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction",
            "frame.cap_len", "frame.len", "frame.comment",
        )  # fmt: skip
        assert rows == [
            ["1700000000.123456000", "eth0", "0x00000001", "32", "32",
             "INPUT: drop (rule ü), mark 0x1/0xff"],
            ["1700000001.123456000", "eth1", "0x00000002", "63", "63", "OUTPUT: accept (default)"],
            ["1700000002.123456000", "eth0", "0x00000001", "30", "32", "FORWARD: accept (default)"],
        ]  # fmt: skip

    def test_no_checksum_is_missing_in_the_file(self, tmp_path: Path) -> None:
        """One that is left to the NIC is made; Wireshark finds all of them good."""
        path = tmp_path / "file.pcapng"
        out = writer(path)
        for built in (FOUR, SIX):
            out.write(Packet(partial(built), checked=False), ACCEPT)
        out.close()
        assert tshark(path, "udp.checksum.status", "tcp.checksum.status") == [["1", ""], ["", "1"]]

    @given(
        st.lists(
            st.tuples(
                st.binary(max_size=70),
                st.integers(0, 2**32 * 10**6).map(lambda micro: micro / 1e6),
                st.sampled_from(["", "eth0", "br-lan"]),
                st.text(max_size=200),
            )
        )
    )
    @settings(max_examples=40)
    def test_scapy_reads_what_is_written(self, rows: list[tuple[bytes, float, str, str]]) -> None:
        """Any bytes, times, interfaces and names of rules; blocks are padded as they should be."""
        descriptor = os.memfd_create("capture")
        path = f"/proc/self/fd/{descriptor}"
        out = Writer(lambda _: os.dup(descriptor))
        for data, time, name, rule in rows:
            out.write(Packet(data, indev=name, time=time), Verdict(by=rule))
        out.flush()  # which is enough for a reader
        with RawPcapNgReader(path) as reader:
            found = list(reader)
        out.close()
        os.close(descriptor)
        assert len(found) == len(rows)
        for (data, time, name, rule), (got, about) in zip(rows, found, strict=True):
            assert got == data
            micro = about.tshigh << 32 | about.tslow
            assert abs(micro - time * 1e6) <= 1
            assert (about.ifname or b"").decode() == name
            comments = getattr(about, "comments", None) or [about.comment]
            text = f"INPUT: accept ({rule})".encode()
            assert comments == [text] or (len(text) > 500 and text.startswith(comments[0]))

    def test_a_long_comment_is_cut_between_characters(self) -> None:
        """A rule's name may be long; the comment stays short, and UTF-8."""
        text = capture.comment(Packet(raw(FOUR)), Verdict(by="ü" * 70_000))
        assert 490 < len(text) <= 500
        text.decode()
        broken = capture.comment(Packet(raw(FOUR)), Verdict(by="\udc80"))
        assert broken == b"INPUT: accept (\\udc80)"

    def test_a_ring_of_files_holds_the_newest_packets(self, tmp_path: Path) -> None:
        """A full file is followed by the next, the last by the first; none is much too long."""
        out = writer(tmp_path / "ring.pcapng", LEAST_LIMIT)
        for n in range(400):
            built = FOUR.copy()
            built[UDP].sport = n
            out.write(Packet(raw(built / bytes(1200)), indev="eth0", time=TIME), ACCEPT)
        out.close()
        assert out.files == 8
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["ring.1.pcapng", "ring.2.pcapng", "ring.pcapng"]
        found = []
        for name in ("ring.2.pcapng", "ring.pcapng", "ring.1.pcapng"):  # those numbered 5 to 7
            path = tmp_path / name
            assert path.stat().st_size < LEAST_LIMIT + 1500
            found += [packet.sport for packet in read(str(path))]
        assert len(found) > 100
        assert found == list(range(400 - len(found), 400))

    def test_a_file_that_cannot_be_written_is_said_once(self) -> None:
        """A full disk is an OSError, not a silence; what is then closed makes no more noise."""
        out = Writer(lambda _: os.open("/dev/full", os.O_WRONLY))
        out.write(Packet(raw(FOUR)), ACCEPT)
        with pytest.raises(OSError, match="No space left"):
            out.flush()
        del out


class TestFiles:
    """Files are opened as root where others may write as well."""

    def test_names_go_round(self, tmp_path: Path) -> None:
        """Each worker has its own; the ring is as long as it was said to be."""
        files = Files(str(tmp_path / "a.pcapng"), 3, LEAST_LIMIT)
        names = [Path(files.name(n)).name for n in range(5)]
        assert names == ["a.pcapng", "a.1.pcapng", "a.2.pcapng", "a.pcapng", "a.1.pcapng"]
        assert Path(files.name(1, 2)).name == "a-2.1.pcapng"

    def test_a_file_is_its_owners_alone(self, tmp_path: Path) -> None:
        """Mode 0600, whatever was there before; an old file's readers keep the old one."""
        path = tmp_path / "a.pcapng"
        path.write_bytes(b"old")
        path.chmod(0o666)
        with path.open("rb") as old:
            os.close(Files(str(path)).open(0))
            assert old.read() == b"old"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "pipe"])
    def test_nothing_is_written_through_what_is_no_file(self, tmp_path: Path, kind: str) -> None:
        """A link that somebody has put there is an error, and leads nowhere."""
        path, victim = tmp_path / "a.pcapng", tmp_path / "victim"
        if kind == "symlink":
            victim.write_bytes(b"precious")
        if kind in {"symlink", "dangling"}:
            path.symlink_to(victim)
        elif kind == "directory":
            path.mkdir()
        else:
            os.mkfifo(path)
        with pytest.raises(BadInput, match="is no plain file"):
            Files(str(path)).open(0)
        assert not victim.exists() or victim.read_bytes() == b"precious"

    def test_a_file_of_somebody_else_is_not_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another user's file, as in /tmp, stays."""
        path = tmp_path / "a.pcapng"
        path.write_bytes(b"theirs")
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        with pytest.raises(BadInput, match="belongs to somebody else"):
            Files(str(path)).open(0)
        assert path.read_bytes() == b"theirs"

    def test_a_directory_for_anybody_is_refused(self, tmp_path: Path) -> None:
        """Unless it is sticky, as /tmp is; also when it becomes so later."""
        tmp_path.chmod(0o1777)
        files = Files(str(tmp_path / "a.pcapng"))
        os.close(files.open(0))
        tmp_path.chmod(0o777)
        with pytest.raises(BadInput, match="anybody may replace files"):
            files.open(1)
        tmp_path.chmod(0o700)

    @pytest.mark.parametrize(
        ("name", "keep", "limit", "message"),
        [
            ("a.pcap", 1, 0, "no name for a capture"),
            ("a", 1, 0, "no name for a capture"),
            (".pcapng", 1, 0, "no name for a capture"),
            ("a\0.pcapng", 1, 0, "no name for a capture"),
            ("none/a.pcapng", 1, 0, "No such file or directory"),
            ("a.pcapng", 0, 0, "cannot be kept"),
            ("a.pcapng", 2, 0, "need a size"),
            ("a.pcapng", 2, 100, "too few"),
        ],
    )
    def test_what_cannot_be_is_said_at_once(
        self, tmp_path: Path, name: str, keep: int, limit: int, message: str
    ) -> None:
        """Before anything is queued."""
        with pytest.raises(BadInput, match=message):
            Files(str(tmp_path / name), keep, limit)

    def test_a_directory_that_may_not_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the kernel does not permit is said as such."""
        files = Files(str(tmp_path / "a.pcapng"))

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(NotPermitted, match="Permission denied"):
            files.open(0)


def pcap(path: Path, kind: int, *frames: Any, **options: Any) -> None:
    """Have scapy write a pcap file."""
    with RawPcapWriter(str(path), linktype=kind, **options) as out:
        out.linktype = kind  # 0 is taken for none
        out.write_header(None)
        for frame in frames:
            out.write_packet(raw(frame), sec=int(TIME), usec=123456)


def nflog(data: bytes) -> bytes:
    """Return what nfnetlink_log's capture has of a packet: a prefix, then the packet."""
    prefix = struct.pack("=HH", 4 + 5, 10) + b"hello" + b"\0" * 3
    return (
        b"\2\0\0\0"
        + prefix
        + struct.pack("=HH", 4 + len(data), 9)
        + data
        + b"\0" * (-len(data) % 4)
    )


def _loopback(built: Any) -> bytes:
    return bytes(raw(Loopback(type=2 if built.version == 4 else 10) / built))


LAYERS = {
    "Ethernet": (1, lambda built: raw(ETHER / built)),
    "VLAN": (1, lambda built: raw(ETHER / Dot1AD(vlan=3) / Dot1Q(vlan=2) / built)),
    "raw": (101, raw),
    "raw, 12": (12, raw),
    "raw, 14": (14, raw),
    "cooked": (113, lambda built: raw(CookedLinux() / built)),
    "cooked 2": (276, lambda built: raw(CookedLinuxV2() / built)),
    "null": (0, _loopback),
    "loop": (108, lambda built: _loopback(built)[3::-1] + raw(built)),
    "NFLOG": (239, lambda built: nflog(raw(built))),
}


class TestReading:
    """Captures of all kinds, made by scapy."""

    @pytest.mark.parametrize("layer", LAYERS)
    def test_link_layers(self, tmp_path: Path, layer: str) -> None:
        """Behind each the same packets are found; what is not IP's is left out."""
        path = tmp_path / "file"
        kind, make = LAYERS[layer]
        arp = make(ARP()) if kind in {1, 113, 276} else b"\0\0\0\0\0"
        pcap(path, kind, make(FOUR), arp, make(SIX))
        four, six = read(str(path))
        assert (four.data, four.length) == (raw(FOUR), len(FOUR))
        assert (six.data, six.length) == (raw(SIX), len(SIX))
        assert four.time == six.time == pytest.approx(TIME)
        assert (four.dport, six.dport) == (7, 8)

    @pytest.mark.parametrize(("kind", "built"), [(228, FOUR), (229, SIX)])
    def test_link_layers_of_one_version(self, tmp_path: Path, kind: int, built: Any) -> None:
        """LINKTYPE_IPV4 and LINKTYPE_IPV6."""
        pcap(tmp_path / "file", kind, built)
        (packet,) = read(str(tmp_path / "file"))
        assert packet.data == raw(built)

    def test_padding_of_frames_is_no_part_of_the_packet(self, tmp_path: Path) -> None:
        """Ethernet fills up to 60 bytes; IP's length says what is its own."""
        frame = raw(ETHER / FOUR)
        pcap(tmp_path / "file", 1, frame + b"\xaa" * (60 - len(frame)))
        (packet,) = read(str(tmp_path / "file"))
        assert packet.data == raw(FOUR)
        assert not packet.truncated
        assert not packet.malformed

    def test_a_short_copy_is_known_as_such(self, tmp_path: Path) -> None:
        """What tcpdump's -s has cut has the length it had on the wire, without its link layer."""
        frame = raw(ETHER / FOUR / bytes(400))
        with RawPcapWriter(str(tmp_path / "file"), linktype=1) as out:
            out.write_header(None)
            out.write_packet(frame[:64], wirelen=len(frame))
        (packet,) = read(str(tmp_path / "file"))
        assert packet.data == frame[14:64]
        assert packet.length == len(frame) - 14
        assert packet.truncated

    def test_the_longest_packet_is_not_cut(self, tmp_path: Path) -> None:
        """65,535 bytes of IP have more with their Ethernet header."""
        longest = IP(src="192.0.2.1", dst="192.0.2.2") / UDP() / bytes(65_535 - 28)
        pcap(tmp_path / "file", 1, ETHER / longest)
        (packet,) = read(str(tmp_path / "file"))
        assert packet.data == raw(longest)

    @pytest.mark.parametrize("options", [{"nano": True}, {"endianness": ">"}, {"gz": True}])
    def test_variants_of_pcap(self, tmp_path: Path, options: dict[str, Any]) -> None:
        """Nanoseconds, the other byte order, gzip."""
        path = tmp_path / "file"
        pcap(path, 1, ETHER / FOUR, **options)
        (packet,) = read(str(path))
        expected = int(TIME) + 123456 / (1e9 if "nano" in options else 1e6)
        assert packet.time == pytest.approx(expected, abs=1e-6)
        assert packet.data == raw(FOUR)

    def test_what_we_write_we_read(self, tmp_path: Path) -> None:
        """Interfaces, direction and lengths included."""
        path = tmp_path / "a.pcapng"
        out = writer(path)
        out.write(Packet(raw(FOUR), indev="eth0", time=TIME), ACCEPT)
        out.write(Packet(raw(SIX)[:50], 63, outdev="eth1", chain="OUTPUT", time=TIME), ACCEPT)
        out.close()
        four, six = read(str(path))
        assert (four.indev, four.outdev, four.chain, four.data) == ("eth0", "", "INPUT", raw(FOUR))
        assert (six.indev, six.outdev, six.chain, six.length) == ("", "eth1", "OUTPUT", 63)
        assert four.time == pytest.approx(TIME, abs=1e-6)

    def test_files_one_behind_the_other(self, tmp_path: Path) -> None:
        """Each section of a pcapng file numbers its own interfaces, which have their own layers."""
        path = tmp_path / "both"
        parts = []
        for kind, frame in ((1, ETHER / FOUR), (101, SIX)):
            part = RawPcapNgWriter(str(path))
            part.linktype = kind
            part.write(raw(frame))
            part.close()
            parts.append(path.read_bytes())
        path.write_bytes(b"".join(parts))
        assert [packet.data for packet in read(str(path))] == [raw(FOUR), raw(SIX)]

    def test_simple_packet_blocks_without_a_limit(self, tmp_path: Path) -> None:
        """A snapshot length of 0 is none; such packets have neither a time nor an interface."""
        data = raw(FOUR)
        path = tmp_path / "simple"
        path.write_bytes(
            struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
            + struct.pack("<IIHHII", 1, 20, 101, 0, 0, 20)
            + struct.pack("<III", 3, 16 + len(data), len(data)) + data
            + struct.pack("<I", 16 + len(data))
        )  # fmt: skip
        (packet,) = read(str(path))
        assert (packet.data, packet.time, packet.indev) == (data, 0.0, "")

    def test_standard_input_can_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is called "-", and need not be a file that one can seek in."""
        pcap(tmp_path / "file", 101, FOUR)
        receive, send = os.pipe()
        os.write(send, (tmp_path / "file").read_bytes())
        os.close(send)
        with open(receive, encoding="latin-1") as stream:  # noqa: PTH123 - a descriptor
            monkeypatch.setattr("sys.stdin", stream)
            (packet,) = read("-")
        assert packet.data == raw(FOUR)


def outcome(path: Path) -> tuple[int, str]:
    """Read a file to its end: how many packets there were, and the error behind them."""
    count = 0
    packets: Iterator[Packet] = read(str(path))
    while True:
        try:
            next(packets)
        except StopIteration:
            return count, ""
        except BadInput as error:
            return count, error.message
        count += 1


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two captures, whole.pcapng and whole.pcap."""
    folder = tmp_path_factory.mktemp("good")
    out = writer(folder / "whole.pcapng")
    for _ in range(2):
        out.write(Packet(raw(FOUR), indev="eth0", time=TIME), ACCEPT)
    out.close()
    pcap(folder / "whole.pcap", 1, ETHER / FOUR, ETHER / SIX)
    return folder


class TestDamaged:
    """Files that are none, and files that were good once."""

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "no pcap or pcapng file"),
            (b"\x0a\x0d\x0d\x0a", "the file ends in the middle"),
            (b"hello, world\n" * 9, "no pcap or pcapng file"),
            (gzip.compress(b"hello, world", mtime=0), "no pcap or pcapng file"),
            (b"\x1f\x8bnothing", "cannot read"),
            (struct.pack("=IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 9, 127) + bytes(16), "layer 127"),
        ],
    )
    def test_what_is_no_capture(self, tmp_path: Path, content: bytes, message: str) -> None:
        """It is said in one line, with the file's name."""
        path = tmp_path / "file"
        path.write_bytes(content)
        count, error = outcome(path)
        assert count == 0
        assert message in error
        assert error.startswith('cannot read "')

    def test_what_cannot_be_opened(self, tmp_path: Path) -> None:
        """A missing file, a directory, a name that cannot be one."""
        for name, message in (
            (tmp_path / "none", "No such file"),
            (tmp_path, "Is a directory"),
            ("a\0b", "null byte"),
        ):
            with pytest.raises(BadInput, match=message):
                list(read(str(name)))

    @pytest.mark.parametrize("form", ["pcap", "pcapng", "gzip"])
    def test_a_file_that_was_cut_is_read_up_to_there(self, tmp_path: Path, form: str) -> None:
        """All whole packets, then an error that says which one is not, if one is not."""
        path = tmp_path / "whole.pcapng"
        ends = set()
        if form == "pcapng":
            out = writer(path)
            ends.add(48)  # behind the description of the unnamed interface
            for n in range(3):
                out.write(Packet(raw(FOUR), indev="eth0", time=TIME), Verdict(by="x" * n))
                out.flush()
                ends.add(path.stat().st_size)
            out.close()
            ends |= {28, 48 + 32}  # behind the section's header, behind an interface
        else:
            pcap(path, 101, FOUR, SIX, FOUR)
            ends = {24, 24 + 16 + 32, 24 + 32 + 32 + 63, 24 + 48 + 64 + 63}
        content = path.read_bytes()
        cut = tmp_path / "cut"
        seen = []
        if form == "gzip":
            content = gzip.compress(content)
            ends = {len(content)}
        for size in range(1, len(content) + 1):
            cut.write_bytes(content[:size])
            count, error = outcome(cut)
            seen.append(count)
            assert (error == "") == (size in ends), (size, error)
        assert seen == sorted(seen)
        assert seen[-1] == 3

    @given(st.data())
    @settings(max_examples=150)
    def test_no_damage_makes_it_raise_anything_else(self, good: Path, data: st.DataObject) -> None:
        """Other bytes anywhere: there are packets, then an end or an error."""
        name = data.draw(st.sampled_from(["whole.pcapng", "whole.pcap"]))
        content = bytearray((good / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            some = data.draw(st.binary(min_size=1, max_size=4))
            content[at : at + len(some)] = some
        (good / "bad").write_bytes(content)
        count, _ = outcome(good / "bad")
        assert count <= 20

    def test_a_block_that_says_to_be_huge_is_not_believed(self, tmp_path: Path) -> None:
        """No memory is taken for what a length merely says."""
        path = tmp_path / "huge"
        head = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
        path.write_bytes(head + struct.pack("<II", 5, 0xFFFFFFF0) + bytes(100))
        count, error = outcome(path)
        assert count == 0
        assert error.endswith("packet 1: it says to be longer than any")

    def test_scapy_says_nothing_of_its_own(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Its warnings about a file or a packet do not reach the terminal."""
        path = tmp_path / "file"
        pcap(path, 101, FOUR, ICMP())
        path.write_bytes(path.read_bytes()[:-3])
        outcome(path)
        assert capfd.readouterr() == ("", "")
