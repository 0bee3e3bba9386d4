"""Rulesets as real ones look, made from a seed: iptables-save text of any size.

The text is canonical: what ``iptables-legacy-save`` prints after ``iptables-legacy-restore``
of it, byte for byte, apart from the lines that start with ``#`` (and, with ``spread``, the
order of the tables, which the kernel lists latest first). So a test can compare text.

The built-in chains dispatch into chains of about a hundred rules, two fifths of the rules
carry a comment that no other rule has, and the mix of matches is that of a gateway that is
kept by tools: ports, addresses, states, sets, limits, logs and marks. The sets have to be
there before the rules: ``ipset restore`` takes :func:`ipsets`.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHAIN_RULES = 100
"""About how many rules a user-defined chain gets."""

# One more octet for each variant, so that two variants share no address.
_NETS = (10, 11, 21, 25, 26, 29, 30, 33, 55, 100)
_SERVICES = ("web", "db", "mail", "dns", "cache", "queue", "auth", "metrics", "git", "vpn")
_TEAMS = ("ops", "payments", "search", "platform", "support", "research", "billing", "edge")
_PORTS = (22, 25, 53, 80, 110, 123, 143, 389, 443, 465, 514, 587, 636, 993, 3306, 5432, 6379, 8080)
_LINKS = ("eth0", "eth1", "bond0", "br-lan", "wg0", "vlan100", "vlan200", "tun+")
_LIMITS = ("5/min", "10/min", "1/sec", "10/sec", "50/sec", "6/hour")
_REJECTS = ("icmp-port-unreachable", "icmp-host-prohibited", "icmp-admin-prohibited")
_HASH_SETS = ("allowed-hosts", "blocked-hosts", "office-nets", "cloud-nets")
_PAIR_SET = "served-ports"
_LOG_DROP = "log-drop"
_BUILTIN = {
    "raw": (("PREROUTING", "ACCEPT"), ("OUTPUT", "ACCEPT")),
    "mangle": (
        ("PREROUTING", "ACCEPT"),
        ("INPUT", "ACCEPT"),
        ("FORWARD", "ACCEPT"),
        ("OUTPUT", "ACCEPT"),
        ("POSTROUTING", "ACCEPT"),
    ),
    "nat": (
        ("PREROUTING", "ACCEPT"),
        ("INPUT", "ACCEPT"),
        ("OUTPUT", "ACCEPT"),
        ("POSTROUTING", "ACCEPT"),
    ),
    "filter": (("INPUT", "DROP"), ("FORWARD", "DROP"), ("OUTPUT", "ACCEPT")),
}
_SHARES = {"raw": 0.05, "mangle": 0.10, "nat": 0.15}


def ipsets() -> str:
    """Return the sets that the rules name, as input for ``ipset restore``."""
    lines = []
    for name in _HASH_SETS:
        kind = "hash:net" if name.endswith("nets") else "hash:ip"
        lines.append(f"create {name} {kind} family inet")
    lines.append(f"create {_PAIR_SET} hash:ip,port family inet")
    lines += [
        "add allowed-hosts 192.0.2.10",
        "add blocked-hosts 198.51.100.7",
        "add office-nets 203.0.113.0/24",
        "add cloud-nets 198.18.0.0/15",
        f"add {_PAIR_SET} 192.0.2.10,tcp:443",
    ]
    return "\n".join(lines) + "\n"


def ruleset(rules: int, *, variant: str = "a", seed: int = 1, spread: bool = False) -> str:
    """Return a ruleset with exactly ``rules`` rules; another ``variant`` shares next to none.

    All rules are in the filter table, unless ``spread`` puts three tenths of them into raw,
    mangle and nat.
    """
    text = []
    left = rules
    if spread:
        for table, share in _SHARES.items():
            count = int(rules * share)
            left -= count
            text.append(_Table(table, count, variant, seed).text())
    text.append(_Table("filter", left, variant, seed).text())
    return "".join(text)


def with_counters(text: str, *, seed: int = 1) -> str:
    """Return the ruleset with counters on its policies and rules, as ``iptables-save -c``."""
    rng = random.Random(f"counters {seed}")
    lines = []
    for line in text.splitlines():
        if line.startswith("-A "):
            lines.append(f"[{rng.randrange(1, 1 << 30)}:{rng.randrange(1, 1 << 40)}] {line}")
        elif line.startswith(":") and not line.endswith(" - [0:0]"):
            head = line.removesuffix("[0:0]")
            lines.append(f"{head}[{rng.randrange(1, 1 << 30)}:{rng.randrange(1, 1 << 40)}]")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def user_chains(text: str) -> list[str]:
    """Return the names of the user-defined chains of a ruleset, in its order."""
    lines = (line for line in text.splitlines() if line.startswith(":"))
    return [line[1:].split(" ", 1)[0] for line in lines if line.endswith(" - [0:0]")]


def rule_count(text: str) -> int:
    """How many rules a ruleset has."""
    return sum(line.startswith(("-A ", "[")) for line in text.splitlines())


class _Table:
    """One table in the making: names, numbers and rules from one stream of random numbers."""

    def __init__(self, table: str, rules: int, variant: str, seed: int) -> None:
        self.table = table
        self.rules = rules
        self.variant = variant
        self.rng = random.Random(f"{seed} {variant} {table} {rules}")
        self.net = _NETS[(sum(variant.encode()) - ord("a")) % len(_NETS)]
        self.serial = 0
        self.shared = False
        self.kinds, self.weights = self._mix()

    def text(self) -> str:
        builtin = _BUILTIN[self.table]
        bodies: dict[str, list[str]] = {name: [] for name, _ in builtin}
        if self.table == "filter":
            for name in ("INPUT", "FORWARD"):
                bodies[name] = self._preamble(name)[: max(0, self.rules // 8)]
        self.shared = self.table == "filter" and self.rules >= CHAIN_RULES
        if self.shared:
            bodies[_LOG_DROP] = [
                '-m limit --limit 10/min -j LOG --log-prefix "dropped: " --log-tcp-options',
                "-j DROP",
            ]
        room = self.rules - sum(map(len, bodies.values()))
        # Every chain costs the rule that jumps to it.
        count = max(1, round(room / (CHAIN_RULES + 1))) if room > 1 else 0
        names = self._chain_names(count)
        sizes = self._chain_sizes(count, room - count)
        fill = [name for name, _ in builtin if name != "INPUT" or self.table == "filter"]
        for i, (name, size) in enumerate(zip(names, sizes, strict=True)):
            hook = fill[i % len(fill)]
            bodies[hook].append(f"{self._dispatch(hook)} -j {name}")
            bodies[name] = self._chain(name, hook, size)
        if not count:
            bodies[fill[0]] += [self._rule(fill[0], fill[0]) for _ in range(room)]
        # The kernel's tools keep user-defined chains in the order of their names.
        order = [name for name, _ in builtin]
        order += sorted(bodies.keys() - set(order))
        lines = [f"*{self.table}"]
        lines += [f":{name} {policy} [0:0]" for name, policy in builtin]
        lines += [f":{name} - [0:0]" for name in order[len(builtin) :]]
        for name in order:
            lines += [f"-A {name} {body}" for body in bodies[name]]
        lines.append("COMMIT")
        return "\n".join(lines) + "\n"

    def _preamble(self, chain: str) -> list[str]:
        body = [
            "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-m conntrack --ctstate INVALID -j DROP",
            "-m set --match-set blocked-hosts src -j DROP",
        ]
        if chain == "INPUT":
            body[:0] = ["-i lo -j ACCEPT"]
            body.append("-p icmp -m icmp --icmp-type 8 -m limit --limit 10/sec -j ACCEPT")
        return body

    def _chain_names(self, count: int) -> list[str]:
        word = {"filter": "fw", "nat": "nat", "mangle": "mark", "raw": "raw"}[self.table]
        return [
            f"{word}-{self.rng.choice(_SERVICES)}-{self.variant}{i:04d}"[:28] for i in range(count)
        ]

    def _chain_sizes(self, count: int, rules: int) -> list[int]:
        """Share the rules out: chains differ by up to a third, and the sum is exact."""
        weights = [self.rng.uniform(0.8, 1.25) for _ in range(count)]
        total = sum(weights)
        cuts = [0]
        run = 0.0
        for weight in weights:
            run += weight
            cuts.append(round(rules * run / total) if total else 0)
        return [end - start for start, end in pairwise(cuts)]

    def _dispatch(self, hook: str) -> str:
        """Say which packets go to a chain: those of a prefix, and of a direction or a link."""
        way = "-s" if hook in ("INPUT", "PREROUTING") else "-d"
        link = self.rng.choice(_LINKS)
        words = [f"{way} {self._prefix(24)}"]
        if self.rng.random() < 0.5:
            words.append(f"-i {link}" if self._has_input(hook) else f"-o {link}")
        return " ".join(words)

    def _chain(self, name: str, hook: str, size: int) -> list[str]:
        """Rules, and at the chain's end what becomes of the packets that none of them took."""
        body = [self._rule(name, hook) for _ in range(size)]
        if size > 2 and self.table == "filter":
            body[-2] = f'-m limit --limit 5/min -j LOG --log-prefix "{name[:26]}: "'
            ends = ("-j DROP", "-j RETURN", f"-g {_LOG_DROP}" if self.shared else "-j DROP")
            body[-1] = self.rng.choice(ends)
        return body

    def _rule(self, chain: str, hook: str) -> str:
        self.serial += 1
        (kind,) = self.rng.choices(self.kinds, self.weights)
        return kind(chain, hook)

    def _mix(self) -> tuple[list[Callable[[str, str], str]], list[int]]:
        mixes: dict[str, dict[Callable[[str, str], str], int]] = {
            "filter": {
                self._port: 30,
                self._host: 12,
                self._multiport: 14,
                self._flow: 12,
                self._set: 9,
                self._link: 6,
                self._log: 4,
                self._reject: 5,
                self._mark: 4,
                self._ping: 2,
                self._syn: 2,
            },
            "nat": {self._translate: 1},
            "mangle": {self._mark: 3, self._clamp: 1},
            "raw": {self._notrack: 1},
        }
        mix = mixes[self.table]
        return list(mix), list(mix.values())

    # What a rule is about, as the words after "-A chain".

    def _port(self, chain: str, _hook: str) -> str:
        proto = "tcp" if self.rng.random() < 0.8 else "udp"
        where = self._end()
        return (
            f"{where} -p {proto} -m {proto} --dport {self._one_port()}"
            f"{self._comment(chain, 0.45)} -j ACCEPT"
        )

    def _host(self, chain: str, _hook: str) -> str:
        way = "-s" if self.rng.random() < 0.7 else "-d"
        target = self.rng.choice(("DROP", "DROP", "ACCEPT", "RETURN"))
        return f"{way} {self._where()}{self._comment(chain, 0.5)} -j {target}"

    def _multiport(self, chain: str, _hook: str) -> str:
        ports = sorted(self.rng.sample(_PORTS, self.rng.randrange(2, 6)))
        words = [str(port) for port in ports]
        if self.rng.random() < 0.3:
            low = self.rng.randrange(20000, 50000)
            words.append(f"{low}:{low + self.rng.randrange(10, 2000)}")
        return (
            f"{self._end()} -p tcp -m multiport --dports {','.join(words)}"
            f"{self._comment(chain, 0.5)} -j ACCEPT"
        )

    def _flow(self, chain: str, _hook: str) -> str:
        state = self.rng.choice(("NEW", "NEW", "NEW,ESTABLISHED", "RELATED,ESTABLISHED"))
        return (
            f"{self._end()} -p tcp -m conntrack --ctstate {state} -m tcp"
            f" --dport {self._one_port()}{self._comment(chain, 0.5)} -j ACCEPT"
        )

    def _set(self, chain: str, _hook: str) -> str:
        if self.rng.random() < 0.25:
            match = f"-p tcp -m set --match-set {_PAIR_SET} dst,dst"
        else:
            way = self.rng.choice(("src", "dst"))
            no = "! " if self.rng.random() < 0.2 else ""
            match = f"-p tcp -m set {no}--match-set {self.rng.choice(_HASH_SETS)} {way}"
            match += f" -m tcp --dport {self._one_port()}"
        target = self.rng.choice(("ACCEPT", "DROP"))
        return f"-d {self._where()} {match}{self._comment(chain, 0.4)} -j {target}"

    def _link(self, chain: str, hook: str) -> str:
        no = "! " if self.rng.random() < 0.3 else ""
        link = self.rng.choice(_LINKS)
        way = "-i" if self._has_input(hook) else "-o"
        rest = self._comment(chain, 0.3)
        return f"-s {self._prefix()} {no}{way} {link}{rest} -j {self._verdict()}"

    def _log(self, _chain: str, _hook: str) -> str:
        burst = self.rng.choice(("", " --limit-burst 20"))
        return (
            f"{self._end()} -p tcp -m tcp --dport {self._one_port()}"
            f" -m limit --limit {self.rng.choice(_LIMITS)}{burst}"
            f' -j LOG --log-prefix "{self.variant}{self.serial}: " --log-level 6'
        )

    def _reject(self, chain: str, _hook: str) -> str:
        if self.rng.random() < 0.5:
            rest = f"-p tcp -m tcp --dport {self._one_port()}{self._comment(chain, 0.4)}"
            return f"{self._end()} {rest} -j REJECT --reject-with tcp-reset"
        rest = f"{self._comment(chain, 0.4)} -j REJECT --reject-with {self.rng.choice(_REJECTS)}"
        return f"{self._end()}{rest}"

    def _mark(self, chain: str, _hook: str) -> str:
        mark = f"{self.rng.randrange(1, 256):#x}"
        if self.table == "filter" and self.rng.random() < 0.6:
            return f"-m mark --mark {mark}/0xff{self._comment(chain, 0.4)} -j {self._verdict()}"
        return (
            f"{self._end()} -p tcp -m tcp --dport {self._one_port()}"
            f"{self._comment(chain, 0.4)} -j MARK --set-xmark {mark}/0xffffffff"
        )

    def _ping(self, chain: str, _hook: str) -> str:
        kind = self.rng.choice((3, 8, 11))
        rest = f"-p icmp -m icmp --icmp-type {kind}{self._comment(chain, 0.3)}"
        return f"{self._end()} {rest} -j ACCEPT"

    def _syn(self, chain: str, _hook: str) -> str:
        return (
            f"{self._end()} -p tcp -m tcp --dport {self._one_port()}"
            f" --tcp-flags FIN,SYN,RST,ACK SYN -m limit --limit {self.rng.choice(_LIMITS)}"
            f"{self._comment(chain, 0.4)} -j ACCEPT"
        )

    def _translate(self, chain: str, hook: str) -> str:
        note = self._comment(chain, 0.5)
        if hook in ("PREROUTING", "OUTPUT"):
            port = self._one_port()
            head = f"-d {self._where()} -p tcp -m tcp --dport {port}{note}"
            return f"{head} -j DNAT --to-destination {self._host_address()}:{self._one_port()}"
        if self.rng.random() < 0.5:
            return f"-s {self._prefix()} -o {self.rng.choice(_LINKS)}{note} -j MASQUERADE"
        return f"-s {self._prefix()}{note} -j SNAT --to-source {self._host_address()}"

    def _clamp(self, chain: str, _hook: str) -> str:
        return (
            f"-d {self._prefix()} -p tcp -m tcp --tcp-flags SYN,RST SYN"
            f"{self._comment(chain, 0.4)} -j TCPMSS --set-mss {self.rng.randrange(1200, 1460)}"
        )

    def _notrack(self, chain: str, _hook: str) -> str:
        rest = f"-p udp -m udp --dport {self._one_port()}{self._comment(chain, 0.4)}"
        return f"{self._end()} {rest} -j CT --notrack"

    # Its parts.

    def _comment(self, chain: str, share: float) -> str:
        if self.rng.random() >= share:
            return ""
        team = self.rng.choice(_TEAMS)
        number = f"{self.variant.upper()}-{self.serial}"
        text = self.rng.choice(
            (
                f'"{team}: {chain}, ticket {number}"',
                f'"{number} {team} until 20{self.rng.randrange(26, 36)}-01"',
                f"{team}-{number}",
            )
        )
        return f" -m comment --comment {text}"

    def _end(self) -> str:
        """Say whose packets: an address or a prefix, as a source or a destination, or both."""
        chance = self.rng.random()
        if chance < 0.45:
            return f"-s {self._where()}"
        if chance < 0.85:
            return f"-d {self._where()}"
        return f"-s {self._prefix()} -d {self._host_address()}/32"

    def _where(self) -> str:
        return f"{self._host_address()}/32" if self.rng.random() < 0.65 else self._prefix()

    def _host_address(self) -> str:
        rng = self.rng
        return f"{self.net}.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"

    def _prefix(self, bits: int = 0) -> str:
        bits = bits or self.rng.choice((12, 16, 20, 22, 24, 24, 24, 28))
        host = self.rng.getrandbits(24) & (0xFFFFFF << (32 - bits) & 0xFFFFFF)
        return f"{self.net}.{host >> 16}.{host >> 8 & 255}.{host & 255}/{bits}"

    def _one_port(self) -> int:
        if self.rng.random() < 0.6:
            return self.rng.choice(_PORTS)
        return self.rng.randrange(1024, 60000)

    def _verdict(self) -> str:
        return self.rng.choice(("ACCEPT", "ACCEPT", "DROP", "RETURN"))

    def _has_input(self, hook: str) -> bool:
        """Tell whether the hook knows the interface a packet came in by."""
        return hook in ("PREROUTING", "INPUT", "FORWARD")
