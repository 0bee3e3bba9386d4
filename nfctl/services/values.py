"""One value of a list of services, as it is typed: an endpoint, an address, a range, a time.

``address``, ``net``, ``within`` and ``seconds`` raise ValueError, and say nothing of it: they are
for lists that nfctl wrote itself. The others raise BadInput, and say what would be right.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from typing import Final

from nfctl.document import shown
from nfctl.errors import BadInput
from nfctl.services.model import Endpoint

#: The name of a service, which is a part of comments that have 255 characters at most.
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,179}"
MAX_PORT: Final = 65535
MAX_WEIGHT: Final = 65535
MAX_AFFINITY: Final = 86400  # seconds

_UNIT: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM: Final = "address:port, with IPv6 [address]:port: 10.0.0.5:8080; a weight behind: *2"
_ENDPOINT: Final = re.compile(r"(?:\[([^]]*)\]|([^:]*)):([^:*]*)(?:\*(.*))?", re.DOTALL)


def address(text: str) -> str:
    """Return an address of a host in the kernel's spelling; ValueError."""
    found = ipaddress.ip_address(text)
    mapped = found.version == 6 and found.ipv4_mapped is not None
    if found.is_unspecified or found.is_multicast or "%" in text or mapped:
        raise ValueError(text)
    return str(found)


def net(text: str) -> str:
    """Return a range of addresses, of which no bit is set behind its length; ValueError."""
    if "%" in text:
        raise ValueError(text)
    return str(ipaddress.ip_network(text))


def within(number: int, low: int, high: int) -> int:
    """Return a number that is in a range; ValueError."""
    if not low <= number <= high:
        raise ValueError(number)
    return number


def seconds(text: str) -> int:
    """Return a time in seconds: ``90``, ``30m``, ``3h``; ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if found is None:
        raise ValueError(text)
    return within(int(found[1]) * _UNIT[found[2]], 0, MAX_AFFINITY)


# --- with what is wrong ---------------------------------------------------------------------------


def endpoint(text: str) -> Endpoint:
    """Read ``10.0.0.5:80`` or ``[fd00::5]:80``, as typed; ``*3`` behind it is its weight."""
    found = _ENDPOINT.fullmatch(text)
    if found is None or not ((found[1] or found[2]) and found[3]):
        more = "; one by one, with blanks between" if "," in text else ""
        raise BadInput(f"{shown(text)} is no endpoint", hint=f"{_FORM}{more}")
    try:
        host = address(found[1] or found[2])
    except ValueError:
        msg = f"{shown(text)} is no endpoint: {shown(found[1] or found[2])} is no address of a host"
        name = re.search(r"[g-zG-Z]", found[2] or "")
        hint = "endpoints are addresses: names are not looked up" if name else _FORM
        raise BadInput(msg, hint=hint) from None
    weight = 1 if found[4] is None else _number(text, found[4], "weight", MAX_WEIGHT)
    return Endpoint(host, _number(text, found[3], "port", MAX_PORT), weight)


def _number(text: str, digits: str, what: str, most: int) -> int:
    number = int(digits) if re.fullmatch(r"[0-9]{1,9}", digits) else 0
    if not 1 <= number <= most:
        msg = f"{shown(text)} is no endpoint: {shown(digits)} is no {what}"
        raise BadInput(msg, hint=f"1 at least, {most} at most")
    return number


def host(text: str) -> str:
    """Read an address of a host."""
    try:
        return address(text)
    except ValueError:
        msg = f"{shown(text)} is no address of a host"
        raise BadInput(msg, hint="such as 10.96.0.10 or fd00::10") from None


def source(text: str) -> str:
    """Read a range of addresses."""
    try:
        return net(text)
    except ValueError:
        hint = "such as 10.0.0.0/8 or fd00::/64"
    with contextlib.suppress(ValueError):
        whole = ipaddress.ip_network(text, strict=False)
        hint = f"no bits are set behind its length: {whole}"
    raise BadInput(f"{shown(text)} is no range of addresses", hint=hint)


def time(text: str) -> int:
    """Read a time in seconds."""
    try:
        return seconds(text)
    except ValueError:
        msg = f"{shown(text)} is no time for an affinity"
        raise BadInput(msg, hint="seconds, or such as 30m or 3h; a day at most") from None
