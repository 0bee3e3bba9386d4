"""How an endpoint is looked at: ``tcp`` (it accepts) or ``http`` (its status is 200 to 399).

``tcp``, ``tcp://:8081``, ``http``, ``http://:8080/healthz``, ``http:///healthz``,
``http://shop.example:8080/healthz``. The connection always goes to the endpoint's own address; a
name is what HTTP's Host header says. Without a port it is the endpoint's own, without a path it
is ``/``. There is no ``https``: what looks healthy without a look at the certificate may not be.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from nfctl.errors import BadInput

#: The most that is read of an answer, in bytes: its status stands in the first line.
MOST: Final = 4096

_FORM: Final = re.compile(r"([A-Za-z0-9+.-]*)(?:://([^/?#]*)([/?#].*)?)?", re.DOTALL)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::([0-9]*))?")
_PATH: Final = re.compile(
    r"/[!-\"$-~]*"
)  # what a request line may hold; "#" never reaches a server
_STATUS: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([1-5][0-9]{2})(?: [^\n]*)?\r?\n")
_HINT: Final = "tcp, tcp://:8081, http://:8080/healthz"
_LONGEST: Final = 86400.0  # seconds
_MOST_TIMES: Final = 1000


class Told(NamedTuple):
    """What an answer says: whether the endpoint is healthy, and why or why not."""

    healthy: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Check:
    """A check: ``kind`` is "tcp" or "http", ``port`` 0 for the endpoint's own.

    One begins every ``interval`` seconds and fails when there was no answer within ``timeout``
    seconds; checks of one endpoint never overlap. ``rise`` successes in a row make an endpoint
    healthy, ``fall`` failures unhealthy. ``host`` is HTTP's Host header, "" for the address.
    """

    kind: str = "tcp"
    port: int = 0
    path: str = ""
    host: str = ""
    interval: float = 5.0
    timeout: float = 2.0
    rise: int = 2
    fall: int = 3

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for what, seconds, least in (
            ("interval", self.interval, 0.05),
            ("timeout", self.timeout, 0.001),
        ):
            if not (math.isfinite(seconds) and least <= seconds <= _LONGEST):
                msg = f"{seconds:g} s is no {what} of a health check"
                raise BadInput(msg, hint=f"from {least:g} to {_LONGEST:.0f} seconds")
        for what, times in (("rise", self.rise), ("fall", self.fall)):
            if not 1 <= times <= _MOST_TIMES:
                msg = f"{times} is no number of checks to {what}"
                raise BadInput(msg, hint=f"from 1 to {_MOST_TIMES}")

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        interval: float = 5.0,
        timeout: float = 2.0,
        rise: int = 2,
        fall: int = 3,
    ) -> Check:
        """Read what to check, ``tcp`` or ``http://:8080/healthz``; BadInput for all else."""
        found = _FORM.fullmatch(text)
        kind, place, path = found.groups() if found else ("", None, None)
        kind = kind.lower()
        if kind == "https":
            hint = "certificates are not verified here: check its port with tcp://:443, or http"
            raise BadInput("there is no health check by https", hint=hint)
        if kind not in {"tcp", "http"}:
            raise BadInput(f"{text!r} is no health check", hint=f"write {_HINT}")
        host, port = _host(text, place or "")
        if kind == "tcp" and (host or path):
            what = "name" if host else "path"
            msg = f"a tcp check has a port and no {what}: {text!r}"
            raise BadInput(msg, hint="it goes to the endpoint's address: tcp://:8081")
        if kind == "http":
            path = path or "/"
            path = path if path[0] == "/" else f"/{path}"
            if not _PATH.fullmatch(path):
                msg = f"{path!r} is no path of a health check"
                raise BadInput(msg, hint="it has printable ASCII alone, no blanks and no #")
        return cls(kind, port, path or "", host, interval, timeout, rise, fall)

    def __str__(self) -> str:
        """Write it as :meth:`parse` reads it, without its options."""
        port = f":{self.port}" if self.port else ""
        place = f"{self.host}{port}"
        return f"{self.kind}://{place}{self.path}" if place or self.path else self.kind

    def request(self, address: str, port: int) -> bytes:
        """Return the bytes to send to an endpoint; none for tcp."""
        if self.kind != "http":
            return b""
        host = self.host or (f"[{address}]" if ":" in address else address)
        if port != 80:
            host += f":{port}"
        # 1.1 since some servers refuse 1.0; "close" since nothing more is to come
        lines = (
            f"GET {self.path} HTTP/1.1", f"Host: {host}", "User-Agent: nfctl-health",
            "Accept: */*", "Connection: close", "", "",
        )  # fmt: skip
        return "\r\n".join(lines).encode("ascii")

    def judge(self, answer: bytes, *, ended: bool) -> Told | None:
        """Read what came of an answer; None while more is to come. ``ended``: nothing will."""
        at = 0
        while found := _STATUS.match(answer, at):
            status = int(found[1])
            if 100 <= status < 200 and status != 101:
                # Provisional (103 Early Hints): the answer proper is behind its blank line.
                blank = re.compile(rb"\r?\n\r?\n").search(answer, found.end() - 2)
                if blank:
                    at = blank.end()
                    continue
                break
            return Told(200 <= status < 400, f"HTTP {status}")
        line = answer[at:]
        if not found and (b"\n" in line or not _begins(line)):
            return Told(False, "the answer is not HTTP")
        if ended:
            return Told(False, "closed without an answer" if not answer else "closed too early")
        if len(answer) >= MOST:
            return Told(False, f"no HTTP status in {MOST} bytes")
        return None


def _begins(line: bytes) -> bool:
    """Whether an answer, as far as it has come, may be HTTP's."""
    return line.startswith(b"HTTP/") or b"HTTP/".startswith(line)


def _host(text: str, place: str) -> tuple[str, int]:
    """Read a name and a port, 0 for none."""
    found = _HOST.fullmatch(place)
    if not found:
        raise BadInput(f"{place!r} is no port of a health check", hint=f"write {_HINT}")
    host, digits = found.groups()
    if not digits:
        if digits is not None:
            raise BadInput(f"the port is missing: {text!r}", hint=f"write {_HINT}")
        return host, 0
    port = int(digits) if len(digits) < 6 else 0
    if not 1 <= port <= 65535:
        raise BadInput(f"{digits[:20]} is no port", hint="from 1 to 65535")
    return host, port
