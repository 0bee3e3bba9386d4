"""What a failed restore leaves where it fails closed: nothing comes in, nothing is forwarded.

In the table filter of both families the policies of INPUT and FORWARD become DROP, and both begin
with a jump to a chain that accepts what comes from this machine itself (lo) and what belongs to
connections that it opened, and drops the rest, whatever rules of others come behind it. Nothing
else is opened: neither SSH nor the neighbour discovery that IPv6 needs. OUTPUT stays as it is.

The chain's name says what happened to whoever lists the rules. It is nobody's, so that an apply
of a policy that names INPUT takes the jump away; a restore that succeeds takes away the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nfctl.control.live import Live
from nfctl.control.restore import restore
from nfctl.control.transaction import Transaction
from nfctl.errors import Locked, NfctlError, NotPermitted, Unsupported
from nfctl.kernel import lock
from nfctl.kernel.decode import Decoder
from nfctl.kernel.table import active_tables

if TYPE_CHECKING:
    from collections.abc import Collection

CHAIN = "RESTORE-FAILED"
CHAINS = ("INPUT", "FORWARD")
_FAMILIES = (4, 6)
_IPV6 = Path("/proc/net/if_inet6")  # there where the kernel speaks IPv6
_JUMP = f"-j {CHAIN}"
_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


def text(*, established: bool = True, jumps: Collection[str] = CHAINS) -> str:
    """Return what closes a family, for iptables-restore --noflush.

    Without ``established`` it needs nothing of the kernel but the table; ``jumps`` are the
    chains that have no jump yet.
    """
    rules = ["-i lo -j ACCEPT", *([_ESTABLISHED] if established else []), "-j DROP"]
    lines = ["*filter", *(f":{chain} DROP [0:0]" for chain in CHAINS), f":{CHAIN} - [0:0]"]
    lines += [f"-A {CHAIN} {rule}" for rule in rules]
    lines += [f"-I {chain} 1 {_JUMP}" for chain in jumps]
    return "".join(f"{line}\n" for line in [*lines, "COMMIT"])


def close(wait: float = lock.DEFAULT_WAIT) -> list[str]:
    """Close both families, each as well as it can be; return what went wrong.

    A family that the kernel does not have needs no closing.
    """
    problems = []
    for family in _FAMILIES:
        try:
            _close(family, wait)
        except NfctlError as error:
            if family == 4 or not isinstance(error, Unsupported) or _IPV6.exists():
                problems.append(f"IPv{family}: {error.message}")
    return problems


def _close(family: int, wait: float) -> None:
    table = _table(family) if "filter" in active_tables(family) else None
    jumps = [chain for chain in CHAINS if table is None or not _begins_with_jump(table, chain)]
    for established in (True, False):
        try:
            restore(
                text(established=established, jumps=jumps),
                family=family,
                noflush=True,
                source="nfctl persist",
                wait=wait,
            )
        except (Locked, NotPermitted):
            raise
        except NfctlError:  # without connection tracking, perhaps
            if not established:
                raise
        else:
            return


def _table(family: int) -> Live:
    return Live(family, "filter", Decoder(family))


def _begins_with_jump(table: Live, chain: str) -> bool:
    return bool(table.spans(chain)) and table.spec(chain, 0) == _JUMP


def marked() -> list[int]:
    """Return the families that have the chain, whether or not anything leads there still."""
    active = [family for family in _FAMILIES if "filter" in active_tables(family)]
    return [family for family in active if CHAIN in _table(family).user_chains]


def closed() -> list[int]:
    """Return the families that a failed restore left closed."""
    tables = {family: _table(family) for family in marked()}
    return [
        family
        for family, table in tables.items()
        if any(_begins_with_jump(table, chain) for chain in CHAINS)
    ]


def reopen(
    families: Collection[int],
    policies: Collection[tuple[int, str]],
    wait: float = lock.DEFAULT_WAIT,
) -> None:
    """Take away what :func:`close` did to these families.

    Policies become ACCEPT but those in ``policies`` (family, chain): somebody else sets them.
    """
    for family in families:
        if "filter" not in active_tables(family):
            continue
        with Transaction(family, wait=wait) as tables:
            table = tables["filter"]
            for chain in CHAINS:
                policy = table.policy(chain)
                dropping = policy is not None and policy.verdict == "DROP"
                if dropping and (family, chain) not in policies:
                    table.set_policy(chain, "ACCEPT")
            if CHAIN not in table.chains():
                continue
            for chain in CHAINS:
                for number in reversed(table.find(chain, _JUMP)):
                    table.delete(chain, number)
            if not table.kernel.references(CHAIN):
                table.flush(CHAIN)
                table.delete_chain(CHAIN)
