"""Who holds rules: the legacy backend, nf_tables or both, and which programs write them.

iptables comes in two kinds that share a name. ``iptables-legacy`` (and nfctl) writes the
tables of ip_tables; ``iptables-nft``, nft, firewalld and others write nf_tables. The kernel
runs both: every chain hangs in the same hooks by priority, lowest first, and a packet has to
be accepted by each. Between two of the same priority the one that was registered last comes
first (``nf_hook_entries_grow`` puts a new hook before its equals; seen with a rule in each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nfctl.control.findings import Finding, State, count
from nfctl.traversal import Hook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.kernel.backends import HeldTable

SECTION = "rules"
WRITERS_SECTION = "writers"

# arp and bridge tables never see a packet on its way through the IP hooks.
_IP_FAMILIES = frozenset({"ip", "ip6", "inet", "netdev"})
_HOOKS = tuple(hook.value for hook in Hook)
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Writer:
    """A program that edits the rules by itself: how its chains and nft tables are called."""

    name: str
    prefixes: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    suffix: str = ""

    def owns(self, table: HeldTable, chain: str) -> bool:
        """Tell whether a chain's or an nft table's name gives this program away."""
        if table.backend == "nft" and table.name in self.tables:
            return True
        if self.suffix and chain.endswith(self.suffix):
            return True
        return bool(self.prefixes) and chain.startswith(self.prefixes)


WRITERS: tuple[Writer, ...] = (
    Writer("Docker", ("DOCKER",), ("docker-bridges",)),
    Writer("Kubernetes", ("KUBE-",), ("kube-proxy",)),
    Writer("CNI plugins", ("CNI-",), ("cni_hostport",)),
    Writer("Calico", ("cali-",), ("calico",)),
    Writer("Cilium", ("CILIUM_",)),
    Writer("Flannel", ("FLANNEL-",), ("flannel-ipv4", "flannel-ipv6")),
    Writer("Podman", ("NETAVARK",), ("netavark",)),
    Writer("libvirt", ("LIBVIRT_",), ("libvirt_network",)),
    Writer("Tailscale", ("ts-",)),
    Writer("fail2ban", ("f2b-",), ("f2b-table",)),
    Writer("ufw", ("ufw-", "ufw6-")),
    Writer("firewalld", (), ("firewalld",), "_ZONES"),
)


def holder_findings(
    legacy: Sequence[HeldTable] | None, nft: Sequence[HeldTable] | None
) -> list[Finding]:
    """Say which backend holds how many rules, and whether packets meet both.

    None stands for a backend that could not be looked at.
    """
    findings = [
        _backend("legacy", legacy),
        _backend("iptables-nft", _compat(nft, compat=True)),
        _backend("native-nft", _compat(nft, compat=False)),
    ]
    acting_legacy = [table for table in legacy or () if table.acts]
    acting_nft = [table for table in nft or () if table.acts and table.family in _IP_FAMILIES]
    if acting_legacy and acting_nft:
        findings.append(_both(acting_legacy, acting_nft))
    elif acting_nft and legacy is not None:
        findings.append(
            Finding(
                SECTION,
                "backends",
                State.WARN,
                "all rules are in nf_tables, which nfctl does not read or write",
                "manage them with nft or iptables-nft, or move them to the legacy tables before "
                "nfctl adds its own: iptables-nft-save shows them",
            )
        )
    return findings


def _compat(tables: Sequence[HeldTable] | None, *, compat: bool) -> list[HeldTable] | None:
    return None if tables is None else [table for table in tables if table.compat is compat]


def _backend(name: str, tables: Sequence[HeldTable] | None) -> Finding:
    if tables is None:
        return Finding(
            SECTION, name, State.NOTE, "could not be looked at", "run as root", {"tables": None}
        )
    rules = sum(table.rules for table in tables)
    data = {
        "rules": rules,
        "tables": [
            {
                "family": table.family,
                "table": table.name,
                "rules": table.rules,
                "chains": len(table.chains),
                "drop_policies": _drops(table),
            }
            for table in tables
        ],
    }
    parts = ", ".join(_table_text(table) for table in tables[:_LISTED] if table.acts)
    fact = count(rules, "rule") + (f": {parts}" if parts else "")
    if len(tables) > _LISTED:
        fact += f" in {len(tables)} tables"
    return Finding(SECTION, name, State.OK, fact, data=data)


def _drops(table: HeldTable) -> list[str]:
    return [chain.name for chain in table.base if chain.policy == "drop"]


def _table_text(table: HeldTable) -> str:
    text = f"{table.family} {table.name} {table.rules}"
    drops = _drops(table)
    return f"{text}, policy drop in {' '.join(drops)}" if drops else text


def _both(legacy: Sequence[HeldTable], nft: Sequence[HeldTable]) -> Finding:
    order = meeting_order([*legacy, *nft])
    names = [f"nft delete table {table.family} {table.name}" for table in nft[:_LISTED]]
    fact = (
        f"both backends count: legacy {count(sum(t.rules for t in legacy), 'rule')}, "
        f"nf_tables {count(sum(t.rules for t in nft), 'rule')}. A packet meets both: what one "
        "drops is gone, and what one accepts the other may still drop. Lower priority first; "
        "of two with the same, the one registered last"
    )
    advice = (
        "keep one. nfctl works in the legacy tables: take over what you need (iptables-nft-save, "
        f"nft list ruleset), stop who writes the other, then {'; '.join(names)}"
    )
    data: dict[str, object] = {
        "legacy_rules": sum(table.rules for table in legacy),
        "nft_rules": sum(table.rules for table in nft),
        "order": order,
    }
    return Finding(SECTION, "backends", State.WARN, fact, advice, data, fails=True)


def meeting_order(tables: Sequence[HeldTable]) -> dict[str, list[dict[str, object]]]:
    """List for each hook where both backends stand who comes when, lowest priority first."""
    order: dict[str, list[dict[str, object]]] = {}
    for number, hook in enumerate(_HOOKS):
        met = sorted(
            (
                (chain.priority, table, chain.name)
                for table in tables
                if table.family != "netdev"
                for chain in table.base
                if chain.hook == number
            ),
            key=lambda entry: entry[0],
        )
        if len({table.backend for _, table, _ in met}) == 2:
            order[hook] = [
                {
                    "priority": priority,
                    "backend": table.backend,
                    "family": table.family,
                    "table": table.name,
                    "chain": chain,
                }
                for priority, table, chain in met
            ]
    return order


def writer_findings(tables: Sequence[HeldTable], *, complete: bool = True) -> list[Finding]:
    """Name the programs whose chains are there, with counts for each backend.

    That there is nobody can only be said if the tables are ``complete``.
    """
    findings = []
    for writer in WRITERS:
        counts: dict[str, list[int]] = {}
        for table in tables:
            for chain, rules in table.chains.items():
                if writer.owns(table, chain):
                    pair = counts.setdefault(table.backend, [0, 0])
                    pair[0] += 1
                    pair[1] += rules
        if counts:
            findings.append(_writer(writer, counts))
    if not findings and complete:
        fact = "no chains of Docker, Kubernetes, libvirt, fail2ban, ufw, firewalld or the like"
        findings.append(Finding(WRITERS_SECTION, "none", State.OK, fact))
    return findings


def _writer(writer: Writer, counts: dict[str, list[int]]) -> Finding:
    where = {"legacy": "the legacy tables", "nft": "nf_tables"}
    parts = [
        f"{count(chains, 'chain')} with {count(rules, 'rule')} in {where[backend]}"
        for backend, (chains, rules) in sorted(counts.items())
    ]
    advice = "it rewrites its chains by itself; keep rules of your own out of them"
    state = State.NOTE
    if len(counts) == 2:
        state = State.WARN
        advice = "it has written to both backends, so one of them is stale: clear that one"
    data: dict[str, object] = {
        backend: {"chains": chains, "rules": rules} for backend, (chains, rules) in counts.items()
    }
    return Finding(WRITERS_SECTION, writer.name, state, " and ".join(parts), advice, data)
