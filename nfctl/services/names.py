"""The names of a service's chains: kube-proxy's, with another prefix.

A service and an endpoint are told apart by a hash, as names of chains are short (28 characters):
the first 16 characters of the base32 text of a SHA-256 over the service's name, its protocol and,
for an endpoint, ``address:port`` (kubernetes/kubernetes, pkg/proxy/iptables/proxier.go).
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from typing import Final

from nfctl.errors import BadInput
from nfctl.ruleset.names import MAX_NAME

PREFIX: Final = "NFCTL-"

SERVICES: Final = "SERVICES"
NODEPORTS: Final = "NODEPORTS"
POSTROUTING: Final = "POSTROUTING"
MARK_MASQ: Final = "MARK-MASQ"
EXTERNAL: Final = "EXTERNAL-SERVICES"
FORWARD: Final = "FORWARD"
FIREWALL: Final = "PROXY-FIREWALL"
CANARY: Final = "PROXY-CANARY"
#: The chains that there is one of, by table.
FIXED: Final = {
    "nat": (SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ, CANARY),
    "filter": (SERVICES, EXTERNAL, FORWARD, FIREWALL, CANARY),
    "mangle": (CANARY,),
}
KINDS: Final = ("SVC", "SVL", "EXT", "FW", "SEP")

_LONGEST: Final = max(len(name) for names in FIXED.values() for name in names)
_LONGEST_KIND: Final = len("SVC-") + 16
_PREFIX: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*-")


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if chains may begin so; BadInput otherwise."""
    longest = MAX_NAME - max(_LONGEST, _LONGEST_KIND)
    if _PREFIX.fullmatch(prefix) is None or len(prefix) > longest:
        msg = f"{prefix!r} is no prefix of chains"
        hint = f"a word of letters and digits with - behind it, {longest} characters at most: LB-"
        raise BadInput(msg, hint=hint)
    return prefix


def digest(text: str) -> str:
    """Return 16 characters that stand for a service or an endpoint."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest())[:16].decode()


class Names:
    """The names of chains with one prefix."""

    def __init__(self, prefix: str = PREFIX) -> None:
        self.prefix = prefix

    def fixed(self, name: str) -> str:
        """Return the name of a chain that there is one of."""
        return self.prefix + name

    def service(self, kind: str, name: str, protocol: str) -> str:
        """Return the name of a service's chain: SVC, SVL (local endpoints), EXT, FW."""
        return f"{self.prefix}{kind}-{digest(name + protocol)}"

    def endpoint(self, name: str, protocol: str, endpoint: str) -> str:
        """Return the name of an endpoint's chain; ``endpoint`` as ``nfctl.text.at`` writes it."""
        return f"{self.prefix}SEP-{digest(name + protocol + endpoint)}"

    def is_own(self, chain: str) -> bool:
        """Whether a chain is, by its name, one of these."""
        return chain.startswith(self.prefix) and _pattern(self.prefix).fullmatch(chain) is not None


@lru_cache(maxsize=8)
def _pattern(prefix: str) -> re.Pattern[str]:
    fixed = sorted({name for names in FIXED.values() for name in names})
    kinds = "|".join(KINDS)
    return re.compile(f"{re.escape(prefix)}(?:{'|'.join(fixed)}|(?:{kinds})-[A-Z2-7]{{16}})")
