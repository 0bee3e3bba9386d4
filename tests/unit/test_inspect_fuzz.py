"""Any bytes, and real packets that were broken: nothing is raised, no offset leaves the packet."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP

from tests.fuzz import checks, seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

SECONDS = 4  # of libFuzzer
# The target is a module of the tests, which need not be in the directory that Python begins in.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def broken(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Real ones with some bytes changed, cut off, doubled or added."""

    def break_(sample: bytes, changes: list[tuple[int, int]], cut: int, tail: bytes) -> bytes:
        data = bytearray(sample)
        for at, value in changes:
            data[at % len(data)] ^= value
        return bytes(data[: cut % (len(data) + 1)] if cut else data) + tail

    return st.builds(
        break_,
        st.sampled_from(samples),
        # Most of what is read is said in the first bytes.
        st.lists(
            st.tuples(st.integers(0, 60) | st.integers(0, 4000), st.integers(1, 255)), max_size=4
        ),
        st.just(0) | st.integers(0, 4000),
        st.just(b"") | st.binary(max_size=40),
    )


packets = st.binary(max_size=200) | broken(seeds.PACKETS)
more = st.just(0) | st.integers(-100, 100) | st.integers(0, 200_000)


@given(packets, more)
@example(b"", 0)
@example(b"", 1)
@settings(deadline=None, max_examples=1500)
def test_headers(packet: bytes, extra: int) -> None:
    """Whatever the bytes and the length, every field is there and every offset inside."""
    checks.headers(packet, len(packet) + extra)


@given(broken([packet for packet in seeds.PACKETS if packet[0] >> 4 == 4]))
@settings(deadline=None, max_examples=300)
def test_what_is_in_order_is_what_scapy_reads(packet: bytes) -> None:
    """A broken packet that is still well formed has the ports that scapy sees in it."""
    head = checks.headers(packet, len(packet))
    if head.malformed or head.version != 4 or head.fragment:
        return
    read = IP(packet)
    kind = {6: TCP, 17: UDP}.get(head.proto)
    if kind is None:
        return
    layer = read.payload
    assert isinstance(layer, kind)
    assert (head.sport, head.dport) == (layer.sport, layer.dport)


@given(st.binary(max_size=300) | broken(seeds.DNS_MESSAGES))
@settings(deadline=None, max_examples=1500)
def test_dns(data: bytes) -> None:
    """A DNS message, or what may be one, is read or is none; its text is safe to print."""
    checks.dns_message(data)


@given(st.binary(max_size=300) | broken(seeds.HTTP_HEADS))
@settings(deadline=None, max_examples=1500)
def test_http(data: bytes) -> None:
    """A head of HTTP, or what may be one, is read or is none; its text is safe to print."""
    checks.http_head(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_libfuzzer_finds_nothing_in_a_few_seconds(tmp_path: Path) -> None:
    """The fuzz target runs: libFuzzer's own changes to the seeds break nothing at once."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fuzz.decode", f"-max_total_time={SECONDS}",
            f"-artifact_prefix={tmp_path}/",
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_atheris_the_target_says_so() -> None:
    """Where atheris is missing, the fuzz target names it and exits with 3, without a traceback."""
    blocked = "import sys; sys.modules['atheris'] = None; from tests.fuzz import decode; "
    done = subprocess.run(
        [sys.executable, "-c", blocked + "sys.exit(decode.main())"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr == "atheris is not installed: pip install atheris\n"
