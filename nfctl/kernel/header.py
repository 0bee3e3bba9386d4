"""The header options of a rule (-s -d -i -o -p -f), collected and encoded."""

from __future__ import annotations

import ctypes as ct
import sys
from typing import ClassVar

from nfctl.errors import BadInput
from nfctl.kernel.layout import (
    INV_DSTIP,
    INV_FRAG,
    INV_PROTO,
    INV_SRCIP,
    INV_VIA_IN,
    INV_VIA_OUT,
    IP6T_F_PROTO,
    IPT_F_FRAG,
    Layout,
    layout,
)
from nfctl.ruleset.fields import addresses, interface, protocol_number


class Header:
    """The header options of one rule, collected and encoded to ``ipt_ip`` or ``ip6t_ip6``."""

    _INVERSE: ClassVar = {"s": INV_SRCIP, "d": INV_DSTIP, "p": INV_PROTO, "i": INV_VIA_IN}
    _INVERSE |= {"o": INV_VIA_OUT, "f": INV_FRAG}

    def __init__(self, family: int, resolve: bool) -> None:
        self.layout = layout(family)
        self.resolve = resolve
        self.seen: set[str] = set()
        self.protocol: str | None = None
        self.proto = 0
        self.flags = 0
        self.inverse = 0
        width = self.layout.address
        any_address = [(bytes(width), bytes(width))]
        self.sources, self.destinations = any_address, any_address
        nothing = (bytes(16), bytes(16))
        self.interface_in, self.interface_out = nothing, nothing

    @property
    def key(self) -> int:
        """The protocol, with bit 16 set where it is inverted."""
        return self.proto | (bool(self.inverse & INV_PROTO) << 16)

    def set(self, letter: str, value: str, invert: bool) -> None:
        """Take one header option; BadInput for a bad value or a second one of the kind."""
        if letter in self.seen:
            msg = f"multiple -{letter} flags not allowed"
            raise BadInput(msg)
        self.seen.add(letter)
        if invert:
            self.inverse |= self._INVERSE[letter]
        family = self.layout.family
        if letter == "s":
            self.sources = addresses(value, family, resolve=self.resolve)
        elif letter == "d":
            self.destinations = addresses(value, family, resolve=self.resolve)
        elif letter == "i":
            self.interface_in = interface(value)
        elif letter == "o":
            self.interface_out = interface(value)
        elif letter == "p":
            self.protocol = value.lower()
            self.proto = protocol_number(self.protocol)
            if self.proto == 0 and invert:
                msg = "rule would never match protocol"
                raise BadInput(msg)
            if family == 6:
                self.flags |= IP6T_F_PROTO
        elif family == 6:
            msg = "`-f' is not supported in IPv6, use -m frag instead"
            raise BadInput(msg)
        else:
            self.flags |= IPT_F_FRAG

    def headers(self, *, goto: bool) -> list[bytes]:
        """Return the encoded header for each pair of a source and a destination."""
        many = len(self.sources) > 1 or len(self.destinations) > 1
        if many and self.inverse & (INV_SRCIP | INV_DSTIP):
            msg = "! not allowed with multiple source or destination IP addresses"
            raise BadInput(msg)
        flags = self.flags | (self.layout.goto if goto else 0)
        (name_in, mask_in), (name_out, mask_out) = self.interface_in, self.interface_out
        return [
            self.layout.ip.pack(
                src, dst, smask, dmask, name_in, name_out, mask_in, mask_out,
                self.proto, flags, self.inverse,
            )
            for src, smask in self.sources
            for dst, dmask in self.destinations
        ]  # fmt: skip


class Entry:
    """The entry that extensions look at while they parse: of it, they read the protocol."""

    def __init__(self, at: Layout) -> None:
        self.layout = at
        self._key = -1
        self.buffer = (ct.c_ubyte * at.size)()

    def show(self, key: int) -> ct.Array[ct.c_ubyte]:
        """Return the entry of a rule with this protocol (see :attr:`Header.key`)."""
        if key != self._key:
            self._key = key
            at = self.layout
            ct.memset(self.buffer, 0, at.size)
            number, inverted = key & 0xFFFF, key >> 16
            low, high = number.to_bytes(2, sys.byteorder)
            self.buffer[at.proto_at], self.buffer[at.proto_at + 1] = low, high
            self.buffer[at.invflags_at] = INV_PROTO if inverted else 0
            if at.family == 6 and number:
                self.buffer[at.flags_at] = IP6T_F_PROTO
        return self.buffer
