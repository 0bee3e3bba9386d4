"""What nf_tables holds: its tables, chains and the number of rules in each.

Dumps over netlink (``include/uapi/linux/netfilter/nf_tables.h`` and ``nfnetlink.h``): GETTABLE,
GETCHAIN and GETRULE. Only names, hooks and policies are read from the answers, never the
expressions of a rule; pyroute2's decoder reads everything, and its import alone takes 0.2 s.

Rules are not dumped all at once: for each 32 KB of answer the kernel walks the dump's rules
from the first again (``nf_tables_dump_rules``), which takes 4 s for 50,000 rules and 0.1 s
when they are asked for chain by chain. A base chain need not be asked at all: nothing may
jump to it, so its ``use`` is the number of its rules.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from nfctl.errors import NfctlError, NotPermitted, Unsupported
from nfctl.kernel import netlink
from nfctl.kernel.backends import BaseChain, HeldTable

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUBSYS_NFTABLES = 10
_GETTABLE, _GETCHAIN, _GETRULE = 1, 4, 7
_F_DUMP_INTR = 0x10

_NFGEN = struct.Struct("!BBH")
_S32 = struct.Struct("!i")

_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_NF_DROP = 0

# The attributes that are read: enum nft_table_attributes, nft_chain_attributes,
# nft_hook_attributes and nft_rule_attributes.
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN = 1, 2


class _InterruptedError(Exception):
    """The ruleset changed in the middle of a dump."""


def nft_tables() -> tuple[HeldTable, ...]:
    """Read the counts of every table of nf_tables in this network namespace.

    Raises NotPermitted without CAP_NET_ADMIN, Unsupported if the kernel has no nf_tables.
    """
    try:
        for _ in range(8):
            # A socket of its own for each try: a dump that was given up leaves answers behind.
            with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETFILTER) as sock:
                sock.settimeout(5)
                try:
                    return _read(sock)
                except _InterruptedError:
                    continue
    except PermissionError:
        message = "reading nf_tables needs CAP_NET_ADMIN"
        raise NotPermitted(message) from None
    except OSError as error:
        message = f"the kernel does not show nf_tables: {error.strerror or error}"
        raise Unsupported(message) from None
    message = "nf_tables changes too quickly to be read"
    raise NfctlError(message)


def _read(sock: socket.socket) -> tuple[HeldTable, ...]:
    chains: dict[tuple[int, bytes], dict[str, int]] = {}
    base: dict[tuple[int, bytes], list[BaseChain]] = {}
    for family, table in _dump(sock, _GETTABLE):
        chains[family, table[_TABLE_NAME]] = {}
    # All chains first: a socket carries one dump at a time.
    for family, chain in tuple(_dump(sock, _GETCHAIN)):
        key = family, chain[_CHAIN_TABLE]
        name, use = _text(chain[_CHAIN_NAME]), _number(chain.get(_CHAIN_USE))
        if _CHAIN_HOOK in chain:
            base.setdefault(key, []).append(_base_chain(name, chain))
        elif use:
            wanted = netlink.attribute(_RULE_TABLE, key[1])
            wanted += netlink.attribute(_RULE_CHAIN, chain[_CHAIN_NAME])
            use = sum(1 for _ in _dump(sock, _GETRULE, family, wanted))
        chains.setdefault(key, {})[name] = use
    return tuple(
        HeldTable(
            "nft",
            _FAMILIES.get(key[0], str(key[0])),
            _text(key[1]),
            counts,
            tuple(base.get(key, ())),
        )
        for key, counts in chains.items()
    )


def _base_chain(name: str, chain: dict[int, bytes]) -> BaseChain:
    hook = netlink.values(chain[_CHAIN_HOOK])
    drops = _CHAIN_POLICY in chain and _number(chain[_CHAIN_POLICY]) == _NF_DROP
    priority = _S32.unpack(hook[_HOOK_PRIORITY])[0]
    return BaseChain(name, _number(hook[_HOOK_NUMBER]), priority, "drop" if drops else "accept")


def _dump(
    sock: socket.socket, question: int, family: int = 0, wanted: bytes = b""
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Ask one question; yield the family and the attributes of each answer.

    A rule's attributes are left unread: each answer is worth one.
    """
    kind = _SUBSYS_NFTABLES << 8 | question
    body = _NFGEN.pack(family, 0, 0) + wanted
    flags = netlink.REQUEST | netlink.DUMP
    sock.send(netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, question, 0) + body)
    interrupted = False
    while True:
        data = sock.recv(1 << 18)
        for kind, flags, _, start, end in netlink.messages(data):
            interrupted = interrupted or bool(flags & _F_DUMP_INTR)
            if kind == netlink.NLMSG_DONE:
                if interrupted:
                    raise _InterruptedError
                return
            if kind == netlink.NLMSG_ERROR:
                code = netlink.error(data, start)
                if code in (errno.EINTR, errno.ENOENT):  # a chain went away since it was named
                    raise _InterruptedError
                raise OSError(code, os.strerror(code))
            if question == _GETRULE:
                yield family, {}
            else:
                yield data[start], netlink.values(data[start + _NFGEN.size : end])


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "big")


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
