"""``python -m tests.fuzz.decode [-max_total_time=120] [CORPUS ...]``: libFuzzer, by atheris.

Options are libFuzzer's; without a corpus it begins with the packets of ``seeds``. The first
byte of each input chooses who reads the rest. Exits with 3 where atheris is not installed.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[bytes], object]


def main() -> int:
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 3
    with atheris.instrument_imports(include=["nfctl.inspect"]):
        readers = _readers()
    # scapy, which makes the seeds, is better not instrumented.
    from tests.fuzz import seeds

    names = list(readers)
    print("reading as:", ", ".join(names), file=sys.stderr)
    samples = {
        "headers": seeds.PACKETS,
        "dns": seeds.DNS_MESSAGES,
        "http": seeds.HTTP_HEADS,
        "tls": (seeds.CLIENT_HELLO,),
    }
    reading = list(readers.values())

    def once(data: bytes) -> None:
        if data:
            reading[data[0] % len(reading)](data[1:])

    with tempfile.TemporaryDirectory(prefix="nfctl-fuzz-") as folder:
        argv = sys.argv.copy()
        if not any(not word.startswith("-") for word in argv[1:]):
            for number, name in enumerate(names):
                for index, sample in enumerate(samples.get(name, ())):
                    Path(folder, f"{name}-{index}").write_bytes(bytes([number]) + sample)
            argv.append(folder)
        atheris.Setup(argv, once)
        atheris.Fuzz()
    return 0


def _readers() -> dict[str, Reader]:
    """Return who reads bytes from the network, as far as they are there."""
    from tests.fuzz import checks

    def whole_or_cut(data: bytes) -> None:
        # Two bytes say how much longer the packet was than its copy.
        extra = int.from_bytes(data[:2], "big") if data[:1] > b"\x7f" else 0
        packet = data[2:] if extra else data
        checks.headers(packet, len(packet) + (extra & 0x7FFF))

    readers: dict[str, Reader] = {
        "headers": whole_or_cut,
        "dns": checks.dns_message,
        "http": checks.http_head,
    }
    for module, name in (("tls", "hello"), ("quic", "read")):
        try:
            found: Any = importlib.import_module(f"nfctl.inspect.payloads.{module}")
            reader: Reader = getattr(found, name)
            reader(b"\xc3\0\0\0\x01" + bytes(1200))  # what it imports when it is first used
        except (ImportError, AttributeError) as error:
            print(f"not read as {module}: {error}", file=sys.stderr)
        else:
            readers[module] = reader
    return readers


if __name__ == "__main__":
    sys.exit(main())
