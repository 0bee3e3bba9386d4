"""Why the kernel refused a table.

The kernel answers a whole table with one number. ELOOP is a loop of jumps, which can be found by
following them. EINVAL and its kin are about one rule as a rule, and which one can be asked of the
kernel itself: a child process in a network namespace of its own loads ever fewer of the rules
until the one that makes the difference is known. That happens on the error path only.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import warnings
from typing import TYPE_CHECKING

from nfctl.errors import BadInput, NfctlError
from nfctl.kernel.layout import EXTENSION_HEADER, layout
from nfctl.kernel.libraries import libraries
from nfctl.kernel.netns import CLONE_NEWNET
from nfctl.kernel.table import Refusal, Table
from nfctl.ruleset import circles

if TYPE_CHECKING:
    from nfctl.control.edit import TableEdit

#: What the kernel modules' checkentry and xt_check_target demand, for the ones people trip over.
_DEMANDS = {
    "DNAT": "it works in table nat, chains PREROUTING and OUTPUT",
    "REDIRECT": "it works in table nat, chains PREROUTING and OUTPUT",
    "SNAT": "it works in table nat, chains POSTROUTING and INPUT",
    "MASQUERADE": "it works in table nat, chain POSTROUTING",
    "NETMAP": "it works in table nat",
    "REJECT": "it works in table filter, and tcp-reset needs -p tcp",
    "TPROXY": "it works in table mangle, chain PREROUTING, with -p tcp or -p udp",
    "CT": "it works in table raw",
    "NOTRACK": "it works in table raw",
    "CHECKSUM": "it works in table mangle",
    "CLASSIFY": "it works in table mangle, chains FORWARD, OUTPUT and POSTROUTING",
    "DSCP": "it works in table mangle",
    "ECN": "it works in table mangle, --ecn-tcp-remove with -p tcp",
    "HL": "it works in table mangle",
    "TTL": "it works in table mangle",
    "TOS": "it works in table mangle",
    "TCPMSS": "it needs -p tcp --syn; clamping works in FORWARD, OUTPUT and POSTROUTING",
    "TCPOPTSTRIP": "it works in table mangle with -p tcp",
    "SYNPROXY": "it needs -p tcp, and chain INPUT or FORWARD",
    "SECMARK": "it works in the tables mangle and security",
    "CONNSECMARK": "it works in the tables mangle and security",
    "tcp": "it needs -p tcp",
    "udp": "it needs -p udp",
    "icmp": "it needs -p icmp",
    "icmp6": "it needs -p ipv6-icmp",
    "sctp": "it needs -p sctp",
    "dccp": "it needs -p dccp",
    "multiport": "it needs -p tcp, udp, udplite, sctp or dccp",
    "owner": "it works in the chains OUTPUT and POSTROUTING",
    "physdev": "--physdev-out works for bridged packets only, in FORWARD and POSTROUTING",
    "rpfilter": "it works in the tables raw and mangle, chain PREROUTING",
    "socket": "it works in the chains PREROUTING and INPUT",
}


def explain(table: TableEdit, error: Refusal) -> NfctlError:
    """Return the error with the chains or the rule that it is about, if they can be found."""
    if error.number == errno.ELOOP:
        loop = _find_loop(table)
        if loop:
            path = " -> ".join([*(chain for chain, _ in loop), loop[0][0]])
            chain, number = loop[-1]
            msg = f"the chains of table {table.name} jump in a loop: {path}"
            where = table.locate(chain, number)
            return BadInput(msg, hint=f"rule {number} of {chain} closes it", where=where)
    culprit = _find_refused(table, error.number)
    if culprit is None:
        return error
    chain, number, entry = culprit
    spec = table.rules(chain)[number - 1]
    msg = f"{error.message}, because of rule {number} of {chain}: {spec}"
    return BadInput(msg, hint=_demand(table, entry), where=table.locate(chain, number))


def _find_loop(table: TableEdit) -> list[tuple[str, int]]:
    """Return a loop of jumps reachable from a built-in chain, as circles.circle() does."""
    own = set(table.user_chains)

    def leads(chain: str) -> list[tuple[str, int]]:
        found = []
        for number, (_, parts) in enumerate(table.kernel.entries(chain), 1):
            name = (parts.jump or b"").decode("utf-8", "surrogateescape")
            if name in own:
                found.append((name, number))
        return found

    return circles.circle((chain for chain in table.chains() if chain not in own), leads)


def _demand(table: TableEdit, entry: bytes) -> str:
    for name in reversed(_extension_names(entry, table.family)):
        if name in _DEMANDS:
            return f"{name}: {_DEMANDS[name]}"
    return "the kernel's log may say more: dmesg"


def _extension_names(entry: bytes, family: int) -> list[str]:
    at = layout(family)
    target_at, end = struct.unpack_from("=HH", entry, at.offsets_at)
    position, names = at.size, []
    while position < end:
        size, name, _ = EXTENSION_HEADER.unpack_from(entry, position)
        names.append(name.partition(b"\0")[0].decode("ascii", "replace"))
        position += size if position < target_at else end
    return names


def _find_refused(table: TableEdit, number: int) -> tuple[str, int, bytes] | None:
    """Ask the kernel, in a namespace of our own, which rule it is that it refuses."""
    rules: list[tuple[str, int, bytes]] = []
    for chain in table.chains():
        for position, (_, parts) in enumerate(table.kernel.entries(chain), 1):
            entry = table.decoder.canonical(parts)
            # An ipset is known by its number in its own namespace only, so these cannot be tried.
            if "set" not in map(str.lower, _extension_names(entry, table.family)):
                rules.append((chain, position, entry))
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: it only tries
        child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            if libraries().libc.unshare(CLONE_NEWNET) == 0:
                found = _bisect(table.family, table.name, sorted(table.user_chains), rules, number)
                if found is not None:
                    os.write(write_end, struct.pack("=q", found))
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if len(answer) != 8:
        return None
    return rules[int.from_bytes(answer, sys.byteorder)]


def _bisect(
    family: int, name: str, chains: list[str], rules: list[tuple[str, int, bytes]], number: int
) -> int | None:
    """Return the index of the first rule with which the kernel refuses those before it."""
    if not _refused(family, name, chains, rules, number):
        return None
    low, high = 0, len(rules)  # the first `low` rules are taken, the first `high` are refused
    while high - low > 1:
        middle = (low + high) // 2
        if _refused(family, name, chains, rules[:middle], number):
            high = middle
        else:
            low = middle
    return high - 1


def _refused(
    family: int, name: str, chains: list[str], rules: list[tuple[str, int, bytes]], number: int
) -> bool:
    with Table(family, name) as trial:
        for chain in trial.chains():
            trial.flush(chain)
        for chain in chains:
            if not trial.has_chain(chain):
                trial.create_chain(chain)
        for chain, _, entry in rules:
            trial.append(chain.encode("utf-8", "surrogateescape"), entry)
        try:
            trial.commit()
        except Refusal as error:
            return error.number == number
        except NfctlError:
            return False
        return False
