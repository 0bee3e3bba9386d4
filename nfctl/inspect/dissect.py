"""A packet as scapy dissects it, for handlers that ask for it and for people who want all of it.

scapy is imported when first needed, which takes 0.2 s; :func:`load` does that early, as a
process must that is about to give up its privileges. It forks nothing and needs no root. It is
kept from reading the machine's routes, which may be many: a handler that sends packets with scapy
calls ``conf.route.resync()`` (``conf.route6`` for IPv6) first. Its warnings are silenced, since
any packet may cause them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.inspect.packet import Packet

_LONGEST_SHOWN: Final = 64 * 1024  # characters


def quiet() -> None:
    """Silence scapy's loggers; before it is imported, its complaints at import as well."""
    logging.getLogger("scapy").setLevel(logging.CRITICAL)


@cache
def load() -> tuple[Callable[[bytes], Any], Callable[[bytes], Any], Callable[[bytes], Any]]:
    """Import the parts of scapy that are needed; return its ``Raw``, ``IP`` and ``IPv6``."""
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "scapy.route" not in sys.modules:
            from scapy.config import conf

            conf.route_autoload = conf.route6_autoload = False
        import scapy.layers.dns  # noqa: F401 - binds itself to the ports of DNS
        from scapy.layers.inet import IP
        from scapy.layers.inet6 import IPv6
        from scapy.packet import Raw
    return Raw, IP, IPv6


def dissect(data: bytes, version: int) -> Any:
    """Return a packet as scapy's ``IP`` or ``IPv6``, or ``Raw`` if it is neither. Never raises."""
    raw, four, six = load()
    kind = four if version == 4 else six if version == 6 else raw
    try:
        return kind(data)
    except Exception:  # noqa: BLE001 - scapy raises whatever comes to it for what it cannot read
        return raw(data)


def show(packet: Packet) -> str:
    """Return all fields of a packet, layer by layer, as scapy's ``show`` prints them.

    Plain text without colour or control characters, cut where it gets very long. Never raises.
    """
    try:
        text: str = packet.scapy.show(dump=True)
    except Exception:  # noqa: BLE001 - too many layers in one another, for one
        raw, _, _ = load()
        text = raw(packet.data).show(dump=True)
    if len(text) > _LONGEST_SHOWN:
        text = text[:_LONGEST_SHOWN] + "\n..."
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
