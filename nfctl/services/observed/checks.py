"""What does not add up among the chains of services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.services.observed import model
from nfctl.services.observed.model import KUBE, Problem
from nfctl.services.observed.rules import hashed, said

if TYPE_CHECKING:
    from nfctl.services.observed.model import Address, Cluster, Service
    from nfctl.services.observed.rules import Dump, Rule

# what the frame consists of: table, chain, the built-in chains that have to lead there
_FRAME = (
    ("nat", "SERVICES", ("PREROUTING", "OUTPUT")),
    ("nat", "POSTROUTING", ("POSTROUTING",)),
    ("filter", "SERVICES", ("FORWARD", "OUTPUT")),
    ("filter", "EXTERNAL-SERVICES", ("INPUT", "FORWARD")),
    ("filter", "PROXY-FIREWALL", ("INPUT", "FORWARD")),
    ("filter", "FORWARD", ("FORWARD",)),
)
# what not every kube-proxy up to 1.20 has: it refused only what came in by INPUT and OUTPUT
_YOUNGER = {("filter", "SERVICES", "FORWARD"), ("filter", "EXTERNAL-SERVICES", "FORWARD")}


def check(cluster: Cluster, dump: Dump) -> None:
    """Add to the problems of a cluster those that its chains as a whole have."""
    _Checks(cluster, dump).run()


def mark_of(rule: Rule) -> tuple[int, int] | None:
    """Return the value and the mask that a MARK rule sets; None for one that sets none."""
    words = (rule.argument or "").split()
    if rule.target != "MARK" or len(words) != 2:
        return None
    option, word = words
    found = _bits(word)
    if found is not None and option == "--or-mark":
        return found[0], found[0]
    return found if option in {"--set-xmark", "--set-mark"} else None


def _bits(word: str) -> tuple[int, int] | None:
    """Read ``value/mask``; None where it is none."""
    value, _, mask = word.partition("/")
    try:
        return int(value[:20], 0), int(mask[:20], 0) if mask else 0xFFFFFFFF
    except ValueError:
        return None


class _Checks:
    def __init__(self, cluster: Cluster, dump: Dump) -> None:
        self.cluster, self.dump = cluster, dump
        self.prefix = cluster.prefix
        self.kube = cluster.prefix == KUBE
        self.used: dict[str, set[str]] = {}

    def run(self) -> None:
        """Run all checks."""
        for table in self.dump.tables:
            self._jumps(table)
        self._frame()
        self._masquerade()
        for service in self.cluster.services:
            self._served(service)

    def add(self, kind: str, message: str, table: str, chain: str, number: int = 0) -> None:
        """Note a problem."""
        text = self.dump.text(self.dump.chains(table)[chain][number - 1]) if number else ""
        problem = Problem(kind, message, table, chain, number, text)
        self.cluster.problems.append(problem)

    # --- jumps ----------------------------------------------------------------------------------

    def _jumps(self, table: str) -> None:
        """Look for jumps to chains that are gone, and chains that nobody jumps to."""
        chains = self.dump.chains(table)
        used = self.used[table] = {
            rule.target for rules in chains.values() for rule in rules if rule.target
        }
        gone = {name for name in used if name.startswith(self.prefix) and name not in chains}
        if gone:
            for chain, rules in chains.items():
                for number, rule in enumerate(rules, 1):
                    if rule.target in gone:
                        self._gone(table, chain, number, rule)
        # with more than 1,000 endpoints it removes them once in a sync period only
        later = "; kube-proxy of a large cluster removes such ones later" if self.kube else ""
        for chain in chains:
            if chain not in used and chain.startswith(self.prefix) and hashed(chain):
                self.add("unused", f"nobody jumps to this chain{later}", table, chain)

    def _gone(self, table: str, chain: str, number: int, rule: Rule) -> None:
        message = f"it jumps to {rule.target}, which is gone"
        text = self.dump.text(rule)
        name = said(rule)
        for suffix in (" cluster IP", " external IP", " loadbalancer IP"):
            name = name.removesuffix(suffix)
        name = name.partition(" -> ")[0].removesuffix(":")
        known = {(service.name, service.protocol): None for service in self.cluster.services}
        same = [key for key in known if key[0] == name]
        service, protocol = same[0] if same else ("", "")
        self.cluster.problems.append(
            Problem("gone", message, table, chain, number, text, service, protocol)
        )

    # --- the frame ------------------------------------------------------------------------------

    def _frame(self) -> None:
        lacking = _YOUNGER if self._is_old() else set()
        for table, name, builtins in _FRAME:
            if table not in self.dump.tables:
                continue
            chains, chain = self.dump.chains(table), self.prefix + name
            if chain not in chains:
                if table == "nat" and not (name == "POSTROUTING" and not self._marks()):
                    message = "postrouting" if name == "POSTROUTING" else "entrance"
                    self.add(message, f"there is no chain {chain}", table, "")
                continue
            if not chains[chain]:
                continue
            for builtin in builtins:
                if (table, name, builtin) in lacking:
                    continue
                if not any(rule.target == chain for rule in chains.get(builtin, [])):
                    kind = "postrouting" if name == "POSTROUTING" else "entrance"
                    self.add(kind, f"{builtin} does not jump to {chain}", table, builtin)
        nat, ports = self.dump.chains("nat"), f"{self.prefix}NODEPORTS"
        if nat.get(ports) and not any(
            rule.target == ports for rule in nat.get(f"{self.prefix}SERVICES", [])
        ):
            message = f"{self.prefix}SERVICES does not jump to {ports}"
            self.add("entrance", message, "nat", f"{self.prefix}SERVICES")

    def _is_old(self) -> bool:
        """Whether kube-proxy is of 1.20 or before, by the marks beside the jumps to services."""
        nat, mark = self.dump.chains("nat"), f"{self.prefix}MARK-MASQ"
        return any(
            rule.target == mark
            for name in ("SERVICES", "NODEPORTS")
            for rule in nat.get(self.prefix + name, [])
        )

    def _marks(self) -> bool:
        return f"{self.prefix}MARK-MASQ" in self.used.get("nat", ())

    def _masquerade(self) -> None:
        """Find the mark that asks for masquerading, and who masquerades what is marked."""
        nat, chain = self.dump.chains("nat"), f"{self.prefix}MARK-MASQ"
        marks = [mark for rule in nat.get(chain, []) if (mark := mark_of(rule))]
        if marks:
            self.cluster.mark, self.cluster.mask = marks[0]
        elif self._marks():
            if chain in nat:
                self.add("mark", f"{chain} sets no mark: nothing is masqueraded", "nat", chain)
            return
        chain = f"{self.prefix}POSTROUTING"
        rules = nat.get(chain)
        if rules is None:
            return
        masquerades = [rule for rule in rules if rule.target in {"MASQUERADE", "SNAT"}]
        if not masquerades:
            self.add("postrouting", f"{chain} masquerades nothing", "nat", chain)
            return
        for number, rule in enumerate(rules, 1):
            if rule.mark is None or not marks:
                continue
            asked = _bits(rule.mark.removeprefix("! "))
            if asked is not None and asked != marks[0]:
                message = (
                    f"it looks for the mark {asked[0]:#x}/{asked[1]:#x}, "
                    f"{self.prefix}MARK-MASQ sets {marks[0][0]:#x}/{marks[0][1]:#x}"
                )
                self.add("mark", message, "nat", chain, number)

    # --- services -------------------------------------------------------------------------------

    def _served(self, service: Service) -> None:
        """Look for addresses that lead nowhere and are not refused."""
        for address in service.addresses:
            if not address.chain:
                continue
            outside = address.kind != model.CLUSTER
            local = (service.external if outside else service.internal) == "local"
            served = any(
                (e.local_share if local else e.share) is not None for e in service.endpoints
            )
            where = "node port" if not address.address else address.address
            place = f"{model.at(where, address.port)}/{service.protocol}"
            if not served and "filter" in self.dump.tables and not self._is_refused(address):
                which = "local endpoints" if local and service.endpoints else "endpoints"
                message = f"{place} has no {which}, and filter does not refuse it"
                self._of(service, "no-endpoints", message, address.chain)
            if address.source_ranges and "filter" in self.dump.tables:
                self._firewall(service, address, place)

    def _is_refused(self, address: Address) -> bool:
        if address.refused:
            return True
        rules = self.dump.chains("nat").get(address.chain, [])
        return any((rule.target or "").endswith("MARK-DROP") for rule in rules)

    def _of(self, service: Service, kind: str, message: str, chain: str) -> None:
        problem = Problem(kind, message, "nat", chain, 0, "", service.name, service.protocol)
        self.cluster.problems.append(problem)

    def _firewall(self, service: Service, address: Address, place: str) -> None:
        """Look whether filter drops what the source ranges leave out."""
        rules = self.dump.chains("nat").get(address.chain, [])
        if any((rule.target or "").endswith("MARK-DROP") for rule in rules):
            return
        for rule in self.dump.chains("filter").get(f"{self.prefix}PROXY-FIREWALL", []):
            if (
                rule.target in {"DROP", "REJECT"}
                and rule.port == str(address.port)
                and rule.protocol == service.protocol
                and (
                    model.bare(rule.destination or "") == address.address
                    or (not address.address and rule.local == "dst")
                )
            ):
                return
        message = f"nothing drops what comes to {place} from outside the source ranges"
        self._of(service, "firewall", message, address.chain)
