"""The names netfilter knows: tables, built-in chains, policies, and what a chain may be called.

Sources: iptables(8) for tables and chains, ``XT_EXTENSION_MAXNAMELEN`` (29 bytes, the NUL
included) in linux/netfilter/x_tables.h for the lengths.
"""

from __future__ import annotations

from nfctl.errors import BadInput

#: Every table, in the order in which iptables(8) describes them; ``filter`` is the default.
TABLES = ("raw", "mangle", "nat", "filter", "security")

#: The built-in chains of each table, in hook order, which is the kernel's order too.
BUILTIN_CHAINS: dict[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

#: The chain of each hook, by its number (enum nf_inet_hooks); mangle has them all.
HOOKS = BUILTIN_CHAINS["mangle"]

#: The verdicts of the standard target; ``QUEUE`` is the old form of NFQUEUE 0.
VERDICTS = ("ACCEPT", "DROP", "QUEUE", "RETURN")

#: What a built-in chain does with a packet that no rule decided.
POLICIES = ("ACCEPT", "DROP")

#: The longest name of a chain, in bytes.
MAX_NAME = 28

#: The longest word of a rule, in characters: ``struct xt_param_buf`` in iptables/xshared.c.
MAX_WORD = 1023


def check_table(name: str) -> str:
    """Return ``name`` if it is a table's; BadInput otherwise."""
    if name not in BUILTIN_CHAINS:
        msg = f"there is no table {name!r}"
        raise BadInput(msg, hint=f"the tables are {', '.join(TABLES)}")
    return name


def check_new_chain(name: str) -> str:
    """Return ``name`` if a user-defined chain may be called so; BadInput otherwise.

    The rules are those of ``assert_valid_chain_name()`` in iptables/xshared.c, except for the
    clash with a target extension's name, which only the kernel room can know.
    """
    if not name:
        msg = "a chain needs a name"
        raise BadInput(msg)
    try:
        length = len(name.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        msg = f"{name!r} is no name"
        raise BadInput(msg) from None
    if length > MAX_NAME:
        msg = f"chain name {name!r} is too long"
        raise BadInput(msg, hint=f"{MAX_NAME} bytes at most")
    if name[0] in "-!":
        msg = f"chain name {name!r} must not begin with {name[0]!r}"
        raise BadInput(msg)
    if any(char.isspace() or char == "\0" for char in name):
        msg = f"chain name {name!r} must not contain white space"
        raise BadInput(msg)
    if name in VERDICTS:
        msg = f"chain name {name!r} is a verdict's"
        raise BadInput(msg)
    return name


def check_policy(policy: str) -> str:
    """Return ``policy`` if a built-in chain may have it; BadInput otherwise."""
    if policy not in POLICIES:
        msg = f"a policy is ACCEPT or DROP, not {policy!r}"
        raise BadInput(msg)
    return policy
