"""Capture files: pcapng with each packet's verdict, written; pcap and pcapng of any origin, read.

:class:`Files` opens them, as root; :class:`Writer` writes them, without privileges, into
descriptors it asks for; :func:`read` gives what is in one. The formats are scapy's business
(imported when needed: 0.25 s); limits, damage and link layers are looked after here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
import sys
import zlib
from typing import IO, TYPE_CHECKING, Any, Final

from nfctl.document import shown
from nfctl.errors import BadInput, NotPermitted
from nfctl.inspect import checksum, dissect
from nfctl.inspect.link import LINKS, NFLOG, cut, sent
from nfctl.inspect.packet import Packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nfctl.errors import NfctlError
    from nfctl.inspect.verdict import Verdict

SUFFIX: Final = ".pcapng"
LEAST_LIMIT: Final = 64 * 1024  # bytes of a file in a ring: at least the longest packet's
MOST_FILES: Final = 10_000

_RAW: Final = 101  # LINKTYPE_RAW: packets begin with their IP header
_COMMENT: Final = 500  # bytes
_INBOUND, _OUTBOUND = 1, 2  # pcapng's epb_flags
_LOCAL: Final = frozenset({"OUTPUT", "POSTROUTING"})
_LARGEST: Final = 256 * 1024  # bytes of one packet; those of GSO are longer than 65,535
_LARGEST_BLOCK: Final = 16 * 1024 * 1024  # bytes; Wireshark reads none that is longer
_MOST_INTERFACES: Final = 65_536
_LONGEST_NAME: Final = 64  # characters of an interface's
_PCAPNG: Final = b"\n\r\r\n"
_PCAP: Final = frozenset({
    b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"
})  # fmt: skip
_LINK: Final = 0x3FFFFFF  # the bits above say how long an Ethernet frame's checksum is


class Files:
    """The files of a capture: FILE.pcapng alone, or a ring of ``keep`` files of ``limit`` bytes.

    In a ring FILE.pcapng is followed by FILE.1.pcapng and so on, and the first is used again
    behind the last, as by tcpdump's -C and -W: there are never more than ``keep``. Each of
    several workers has its own: FILE-1.pcapng, FILE-1.1.pcapng, ...

    They are opened as root, in a directory that others may be able to write to, which is safe:
    a file is always a new one (O_EXCL, which follows no symbolic link), readable by its owner
    only. What has its name is removed first, if that is a plain file of the same owner, and is an
    error otherwise. A directory in which anybody may rename files, one without the sticky bit that
    /tmp has, is refused.
    """

    def __init__(self, path: str, keep: int = 1, limit: int = 0) -> None:
        if not 1 <= keep <= MOST_FILES:
            msg = f"{keep} capture files cannot be kept"
            raise BadInput(msg, hint=f"1 to {MOST_FILES}")
        if limit and limit < LEAST_LIMIT:
            msg = f"{limit} bytes are too few for a capture file"
            raise BadInput(msg, hint=f"{LEAST_LIMIT} at least")
        if keep > 1 and not limit:
            msg = f"{keep} capture files need a size at which the next one begins"
            raise BadInput(msg)
        folder, name = os.path.split(path)
        self.path = path
        self.keep = keep
        self.limit = limit
        self._folder = folder or "."
        self._stem = name.removesuffix(SUFFIX)
        if not self._stem or self._stem == name or "\0" in path:
            msg = f"{shown(path)} is no name for a capture"
            raise BadInput(msg, hint=f"it is written as pcapng: NAME{SUFFIX}")
        os.close(self._directory())

    def name(self, number: int, worker: int | None = None) -> str:
        """Return the path of the ``number``-th file from 0, of a worker if there are several."""
        return os.path.join(self._folder, self._name(number, worker))  # noqa: PTH118 - as typed

    def _name(self, number: int, worker: int | None) -> str:
        own = "" if worker is None else f"-{worker}"
        place = number % self.keep
        return f"{self._stem}{own}{f'.{place}' if place else ''}{SUFFIX}"

    def open(self, number: int, worker: int | None = None) -> int:
        """Open the ``number``-th file from 0, empty; return its descriptor.

        BadInput or NotPermitted where that is impossible.
        """
        name = self._name(number, worker)
        folder = self._directory()
        try:
            self._remove(folder, name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(name, flags, 0o600, dir_fd=folder)
        except OSError as error:
            raise _failed(f"cannot write {shown(self.name(number, worker))}", error) from None
        finally:
            os.close(folder)

    def _remove(self, folder: int, name: str) -> None:
        """Remove a file that is in the way, if it is one of ours."""
        try:
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            what = "belongs to somebody else" if stat.S_ISREG(found.st_mode) else "is no plain file"
            msg = f"{shown(name)} is there already and {what}"
            raise BadInput(msg, hint="remove it, or choose another name")
        os.unlink(name, dir_fd=folder)

    def _directory(self) -> int:
        """Open the directory; it is looked at each time, since it may change meanwhile."""
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(f"cannot write to {shown(self._folder)}", error) from None
        mode = os.fstat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            os.close(folder)
            msg = f"anybody may replace files in {shown(self._folder)}"
            raise BadInput(msg, hint=f"choose another directory, or: chmod o-w {self._folder}")
        return folder


def _failed(message: str, error: OSError) -> NfctlError:
    kind = NotPermitted if isinstance(error, PermissionError) else BadInput
    return kind(f"{message}: {error.strerror}")


class _Record(bytes):
    """A packet with what scapy's writer looks for: time (s), length, comment, interface."""

    time: float
    wirelen: int
    comment: bytes
    comments: list[bytes]  # from scapy 2.7 on
    sniffed_on: str | None
    direction: int


class Writer:
    """Writes packets into capture files.

    ``request`` returns a descriptor for the n-th file, open for writing, which is closed here.
    A file of ``limit`` bytes or more is followed by the next one, 0 is without limit. What is
    written is complete in the file after :meth:`flush`. A failure is an OSError, or what
    ``request`` raises; nothing more can be written then.
    """

    def __init__(self, request: Callable[[int], int], limit: int = 0) -> None:
        self._request = request
        self._limit = limit
        self.files = 0
        self.packets = 0
        self._open()

    def _open(self) -> None:
        from scapy.utils import RawPcapNgWriter

        descriptor = self._request(self.files)
        self.files += 1
        # It opens its file by open(), which takes descriptors as well: a path in /dev/fd would
        # have the file's permissions checked again.
        self._scapy: Any = RawPcapNgWriter(descriptor)
        self._scapy.linktype = _RAW
        self._scapy.write_header(None)

    def write(self, packet: Packet, verdict: Verdict) -> None:
        """Write a packet as it came, its verdict as a comment.

        A checksum that is left to the NIC is made, so that nobody takes the packet for damaged.
        """
        try:
            if self._limit and self._scapy.f.tell() >= self._limit:
                self._scapy.close()
                self._open()
            self._scapy.write(_record(packet, verdict))
        except OSError:
            self._abandon()
            raise
        self.packets += 1

    def flush(self) -> None:
        """Hand everything to the kernel."""
        try:
            self._scapy.flush()
        except OSError:
            self._abandon()
            raise

    def close(self) -> None:
        """Finish the last file."""
        self._scapy.close()

    def _abandon(self) -> None:
        """Close a file that cannot be written; what was kept for it is lost."""
        with contextlib.suppress(OSError):
            self._scapy.f.close()


def _record(packet: Packet, verdict: Verdict) -> _Record:
    local = packet.chain in _LOCAL
    record = _Record(packet.data if packet.checked else checksum.complete(packet))
    record.time = max(packet.time, 0.0) + 5e-7  # scapy cuts off what is below 1 us
    record.wirelen = packet.length
    record.comment = comment(packet, verdict)
    record.comments = [record.comment]
    record.sniffed_on = (packet.outdev if local else packet.indev) or None
    record.direction = _OUTBOUND if local else _INBOUND
    return record


def comment(packet: Packet, verdict: Verdict) -> bytes:
    """Return what a packet's comment says, in UTF-8: chain, verdict, who decided, what else."""
    text = f"{packet.chain}: {verdict.action} ({verdict.by})"
    if verdict.mark is not None:
        text += ", mark {:#x}/{:#x}".format(*verdict.mark)
    if packet.replacement is not None:
        text += ", rewritten"
    if verdict.offload:
        text += ", offload"
    return text.encode(errors="backslashreplace")[:_COMMENT].decode(errors="ignore").encode()


def read(file: str) -> Iterator[Packet]:
    """Read a capture, pcap or pcapng, also compressed by gzip; "-" is standard input.

    Packets without an IP header behind their link layer's are left out, as is padding behind
    IP's end. BadInput for a file that is none, and behind the packets that could be read, for
    one that is damaged, or has a link layer that is not known.
    """
    stream = _open(file)
    try:
        reader = _reader(stream, file)
        for number in itertools.count(1):
            stream.fresh = True
            try:
                data, about = reader._read_packet(_LARGEST)
            except Exception as error:  # noqa: BLE001 - EOFError, as a rule, and what damage causes
                if stream.ended:
                    return
                raise _bad(file, stream.reason or str(error), number) from None
            if stream.reason:
                raise _bad(file, stream.reason, number)
            kind = reader.linktype & _LINK if reader.linktype >= 0 else about.linktype
            if kind not in LINKS:
                raise _bad(file, f"link layer {kind} is not known here", number)
            packet = _packet(data, kind, reader, about)
            if packet is not None:
                yield packet
    finally:
        stream.close()


def _packet(data: bytes, kind: int, reader: Any, about: Any) -> Packet | None:
    """Make a packet of a captured one, None of what is not IP's."""
    found = cut(data, kind, reader.endian)
    if found is None:
        return None
    start, end = found
    # NFLOG's own headers are of no known length on the wire, its copy is all there is.
    length = end - start if kind == NFLOG else max(about.wirelen, len(data)) - start
    outgoing = sent(data, kind)
    name = ""
    if reader.linktype >= 0:
        time = about.sec + about.usec / (1e9 if reader.nano else 1e6)
    else:
        time = ((about.tshigh or 0) << 32 | (about.tslow or 0)) / about.tsresol
        name = (about.ifname or b"").decode(errors="replace")[:_LONGEST_NAME]
        outgoing = about.direction == _OUTBOUND if about.direction else outgoing
    data = data[start:end]
    total = _total(data)
    if total < length:  # Ethernet fills frames up to 60 bytes
        data, length = data[:total], total
    return Packet(
        data,
        length,
        chain="OUTPUT" if outgoing else "INPUT",
        indev="" if outgoing else name,
        outdev=name if outgoing else "",
        time=time,
    )


def _total(data: bytes) -> int:
    """Return the length that the IP header gives, a large number if it gives none."""
    if data[0] >> 4 == 4 and len(data) >= 20:
        return (data[2] << 8 | data[3]) or _LARGEST
    if data[0] >> 4 == 6 and len(data) >= 40:
        payload = data[4] << 8 | data[5]
        return 40 + payload if payload or data[6] else _LARGEST  # 0 may be a jumbogram
    return _LARGEST


def _bad(file: str, reason: str, number: int = 0) -> BadInput:
    what = f"{shown(file)}, packet {number}" if number else shown(file)
    return BadInput(f"cannot read {what}: {reason or 'it is damaged'}")


class _Stream:
    """A file as scapy reads it. scapy takes damage for the end; here both are told apart.

    ``fresh`` is set where the next byte begins a packet or a block: only there a file ends well,
    which is ``ended``. ``reason`` is what is wrong.
    """

    def __init__(self, source: Any, raw: IO[bytes]) -> None:
        self._source = source
        self._raw = raw
        self.fresh = False
        self.ended = False
        self.reason = ""

    def read(self, size: int) -> bytes:
        """Return so many bytes; fewer at the end."""
        if size > _LARGEST_BLOCK:
            self.reason = "it says to be longer than any"
            raise EOFError
        try:
            data: bytes = self._source.read(size)
        except (OSError, EOFError, zlib.error) as error:
            self.reason = str(error)
            raise EOFError from None
        if len(data) < size:
            self.ended = self.fresh and not data
            self.reason = "" if self.ended else "the file ends in the middle of it"
        self.fresh = False
        return data

    def close(self) -> None:
        """Close the file."""
        self._source.close()
        self._raw.close()


def _open(file: str) -> _Stream:
    import gzip

    try:
        if file == "-":
            name: str | int = os.dup(sys.stdin.fileno())
        else:
            name = file
        raw = open(name, "rb")  # noqa: SIM115, PTH123 - closed by read; a path as typed
    except (OSError, ValueError, AttributeError) as error:  # closed: there is no sys.stdin then
        raise _bad(file, getattr(error, "strerror", None) or str(error)) from None
    try:
        zipped = raw.peek(2)[:2] == b"\x1f\x8b"
    except OSError as error:
        raw.close()
        raise _bad(file, str(error.strerror)) from None
    return _Stream(gzip.GzipFile(fileobj=raw) if zipped else raw, raw)


def _reader(stream: _Stream, file: str) -> Any:
    """Return scapy's reader for a file; its ``linktype`` is -1 where each packet has its own."""
    pcap, pcapng = _readers()
    magic = b""
    stream.fresh = True
    try:
        magic = stream.read(4)
        kind = pcapng if magic == _PCAPNG else pcap
        reader = kind.__new__(kind)  # making one opens a file
        reader.__init__(file, stream, magic)
    except Exception:  # noqa: BLE001 - Scapy_Exception, as a rule
        reason = stream.reason if not magic or magic in _PCAP or magic == _PCAPNG else ""
        raise _bad(file, reason or "it is no pcap or pcapng file") from None
    return reader


@functools.cache
def _readers() -> tuple[Any, Any]:
    """Return classes that read pcap and pcapng, the latter without some faults of scapy's."""
    dissect.quiet()
    from scapy.utils import RawPcapNgReader, RawPcapReader

    class PcapNg(RawPcapNgReader):  # type: ignore[misc]
        linktype = -1

        def _read_block(self, size: int = _LARGEST) -> Any:
            self.f.fresh = True
            if len(self.interfaces) > _MOST_INTERFACES:
                self.f.reason = "there are too many interfaces"
                raise EOFError
            return super()._read_block(size)

        def _read_block_shb(self) -> None:
            self.interfaces: list[Any] = []  # each section numbers its own from 0
            super()._read_block_shb()

        def _read_block_idb(self, block: bytes, size: int) -> None:
            super()._read_block_idb(block, size)
            link, snaplen, options = self.interfaces[-1]
            if not snaplen:  # without limit; scapy would read nothing of a simple packet block
                self.interfaces[-1] = link, _LARGEST, options

        def _read_block_dsb(self, block: bytes, size: int) -> None:
            """Leave TLS secrets alone, which would go into scapy's settings."""

    return RawPcapReader, PcapNg
