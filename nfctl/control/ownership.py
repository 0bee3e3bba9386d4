"""Whose a chain or a rule is: the policy's, or another program's, which has to survive.

Docker, Kubernetes, libvirt and others write chains of their own, known by their names, and jump
to them from the built-in ones; libvirt and Docker also write rules about the bridges they make. A
policy adds by ``keep:`` what else is not its own, and the rules and chains of other policies on
this host are theirs (:mod:`nfctl.control.journal.records`).
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from nfctl.control.holders import WRITERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.policy.wanted import Keep
    from nfctl.services.names import Names

#: Chains that nfctl makes by itself: inspection, virtual services.
OWN_PREFIX = "NFCTL-"
_OWN = "nfctl"
_KEEP = "keep"

# What a program writes about the interfaces it makes.
_BRIDGES = (
    (re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}"), "Docker"),
    (re.compile(r"virbr[0-9]+"), "libvirt"),
    (re.compile(r"cni[0-9]+|podman[0-9]+"), "CNI plugins"),
)
# Docker's masquerading of a container that calls itself by a published port.
_HAIRPIN = re.compile(r"-s (\S+) -d \1 .*-j MASQUERADE")
# Texts of users, in which anything may stand; iptables-save leaves plain words unquoted.
_TEXTS = re.compile(
    r' --(?:comment|log-prefix|nflog-prefix|string|hex-string) (?:"(?:\\.|[^"\\])*"|\S+)'
)
_COMMENT = re.compile(r' --comment (?:"((?:\\.|[^"\\])*)"|(\S+))')
_JUMP = re.compile(r" -[jg] (\S+)")
_INTERFACE = re.compile(r" -[io] (\S+)")


class Ownership:
    """Decides whose a chain or rule is, by names and by what a policy's ``keep:`` says."""

    def __init__(self, keep: Sequence[Keep] = ()) -> None:
        self._chains = [each.chain for each in keep if each.chain]
        self._comments = [each.comment for each in keep if each.comment]
        self._interfaces = [each.interface for each in keep if each.interface]
        self._rules = [each.rule for each in keep if each.rule]
        self._known: dict[str, str] = {}
        #: Chains whose names say that they are of some services, and whose those are.
        self.services: list[tuple[Names, str]] = []
        #: Chains of other policies, by (family, table): chain to owner.
        self.others: dict[tuple[int, str], dict[str, str]] = {}

    def chain_owner(self, chain: str) -> str:
        """Return whose a user-defined chain is by its name; "" if nobody's in particular."""
        owner = self._known.get(chain)
        if owner is None:
            owner = self._known[chain] = self._of_name(chain)
        return owner

    def is_foreign(self, chain: str) -> bool:
        """Whether a chain has another program's name, and is not one that ``keep:`` names."""
        return self.chain_owner(chain) not in {"", _KEEP}

    def _of_name(self, chain: str) -> str:
        if any(fnmatchcase(chain, glob) for glob in self._chains):
            return _KEEP
        for names, owner in self.services:
            if names.is_own(chain):
                return owner
        if chain.startswith(OWN_PREFIX):
            return _OWN
        for writer in WRITERS:
            if (writer.prefixes and chain.startswith(writer.prefixes)) or (
                writer.suffix and chain.endswith(writer.suffix)
            ):
                return writer.name
        return ""

    def owner(self, family: int, table: str, spec: str) -> str:
        """Return whose a rule is, by its text as iptables-save prints it; "" if nobody's."""
        text = f" {spec}"
        plain = _TEXTS.sub("", text) if "--" in text else text
        jump = _JUMP.search(plain)
        if jump is not None:
            owner = self.chain_owner(jump[1])
            owner = owner or self.others.get((family, table), {}).get(jump[1], "")
            if owner:
                return owner
        for name in _INTERFACE.findall(plain):
            owner = self._of_interface(name)
            if owner:
                return owner
        if table == "nat" and _HAIRPIN.fullmatch(plain, 1):
            return "Docker"
        return self._kept(text)

    def _of_interface(self, name: str) -> str:
        if any(fnmatchcase(name, glob) for glob in self._interfaces):
            return _KEEP
        return next((owner for pattern, owner in _BRIDGES if pattern.fullmatch(name)), "")

    def _kept(self, text: str) -> str:
        if self._rules and any(fnmatchcase(text[1:], glob) for glob in self._rules):
            return _KEEP
        if self._comments:
            found = _COMMENT.search(text)
            if found is not None:
                comment = found[2] or re.sub(r"\\(.)", r"\1", found[1] or "")
                if any(fnmatchcase(comment, glob) for glob in self._comments):
                    return _KEEP
        return ""


def nobody(_index: int) -> str:
    """Say that a rule is nobody's: the ownership of ``--exclusive``."""
    return ""


def mine_alone(mine: Callable[[int], bool]) -> Callable[[int], str]:
    """Return an ownership in which all rules but ``mine`` are others'."""
    return lambda index: "" if mine(index) else "another program"
