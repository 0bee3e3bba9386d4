"""HTTP/1: the head of a request or a response (RFC 9110, RFC 9112).

Read as lenient servers read it, so that a rule sees what they see: empty lines in front, bare
line feeds, folded lines and odd spaces are taken. What hides on which host a request really is
for makes it ``ambiguous``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LIMIT = 8192  # bytes of a head that are looked at

_TOKEN = rb"[A-Za-z][-A-Za-z0-9_]{0,31}"
#: How a head begins: a method or a version. Nearly all other data fail at their first byte.
_BEGIN = re.compile(rb"[\r\n]{0,16}(?:HTTP/1\.[0-9]|" + _TOKEN + rb")[ \t]").match
_VERSION = re.compile(rb"HTTP/(1\.[0-9])").fullmatch
_STATUS = re.compile(rb"[1-5][0-9][0-9]").fullmatch
#: A request line whose end is not here: only with a method and a target that leave no doubt.
_BEGUN = re.compile(
    rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH|TRACE) +(?:/|https?://)", re.IGNORECASE
).match
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]{0,15}://([^/?#]*)", re.IGNORECASE).match
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\xff]")


@dataclass(frozen=True, slots=True)
class Http:
    r"""The head of a request (``status`` 0) or of a response (``method`` "").

    ``target`` is what the request asks for as it was written, ``path`` its path without a
    query; ``host`` the name it is for, of the target or else of the Host header, in lower case,
    without port, brackets or final dot; "" if there is none. ``version`` is "1.1" or "1.0", ""
    where the request line goes on in another packet. ``complete`` says whether the whole head
    is here, ``ambiguous`` whether it names several hosts. Bytes other than printable ASCII are
    ``\xNN``.
    """

    method: str = ""
    target: str = ""
    path: str = ""
    host: str = ""
    version: str = ""
    status: int = 0
    reason: str = ""
    user_agent: str = ""
    complete: bool = False
    ambiguous: bool = False


def read(data: bytes) -> Http | None:
    """Read the head that ``data`` begin with; None if they begin with something else."""
    begin = _BEGIN(data)
    if begin is None:
        return None
    head = data[:LIMIT].lstrip(b"\r\n")
    line, newline, rest = head.partition(b"\n")
    if not newline:
        return _begun(line)
    words = line.split()
    if len(words) > 1 and (version := _VERSION(words[0])):
        if _STATUS(words[1]) is None:
            return None
        reason = line.split(None, 2)[2].strip() if len(words) > 2 else b""
        return Http(
            version=_text(version[1]),
            status=int(words[1]),
            reason=_text(reason),
            complete=_fields(rest)[1],
        )
    if len(words) < 3 or (version := _VERSION(words[-1])) is None:
        return None
    fields, complete = _fields(rest)
    method, target = _text(words[0]), _text(b" ".join(words[1:-1]))
    hosts = [_host(value) for name, value in fields if name == b"host"]
    path, authority = _parts(method, target)
    if authority:
        hosts.insert(0, _name(authority))
    return Http(
        method=method,
        target=target,
        path=path,
        host=hosts[0] if hosts else "",
        version=_text(version[1]),
        user_agent=next((_text(value) for name, value in fields if name == b"user-agent"), ""),
        complete=complete,
        # Twice the same Host is wrong, too; the target's own may be there once more.
        ambiguous=len(hosts) > 1 + bool(authority) or len(set(hosts)) > 1,
    )


def _begun(line: bytes) -> Http | None:
    """Read a request line that goes on in another packet."""
    if _BEGUN(line) is None:
        return None
    method, target = (_text(word) for word in line.split(None, 2)[:2])
    path, authority = _parts(method, target)
    # Where the target ends is not known; a host ends where its path begins.
    host = _name(authority) if target.count("/") > 2 else ""
    return Http(method=method, target=target, path=path, host=host)


def _fields(rest: bytes) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the header fields that are whole, and whether the head's end was seen."""
    fields: list[tuple[bytes, bytes]] = []
    lines = rest.split(b"\n")
    lines.pop()  # what has no end is not whole
    for line in lines:
        bare = line.strip()
        if not bare:
            if line.strip(b"\r") == b"":
                return fields, True
            continue
        if line[:1] in {b" ", b"\t"}:  # folded: it belongs to the line before
            if fields:
                name, value = fields[-1]
                fields[-1] = name, (value + b" " + bare)
            continue
        name, colon, value = bare.partition(b":")
        if colon:
            fields.append((name.strip().lower(), value.strip()))
    return fields, False


def _parts(method: str, target: str) -> tuple[str, str]:
    """Return the path of a target, and the authority that is written in it."""
    if method == "CONNECT":
        return "", target
    authority, path = "", target
    if absolute := _ABSOLUTE(target):
        authority = absolute[1]
        path = target[absolute.end() :] or "/"
    path = path.partition("?")[0].partition("#")[0]
    return path or "/", authority


def _host(value: bytes) -> str:
    return _name(_text(value))


def _name(authority: str) -> str:
    """Return the host of ``user@host:port``."""
    host = authority.rpartition("@")[2].strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _text(value: bytes) -> str:
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", value.decode("latin-1"))
