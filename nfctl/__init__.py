"""A userspace controller for the netfilter of a real Linux kernel.

The Python API, which the commands themselves use::

    import nfctl

    with nfctl.edit(family=4) as tables:            # takes the xtables lock
        tables["filter"].append("INPUT", "-p tcp --dport 22 -j ACCEPT")
        tables["nat"].append("POSTROUTING", "-o eth0 -j MASQUERADE")
    # committed here, both or neither; an exception in the block commits nothing

    ruleset = nfctl.read(family=4)                  # one getsockopt a table
    for rule in ruleset.tables["filter"].chains["INPUT"].rules:
        print(rule.counters.packets, rule.spec)

    nfctl.restore(text, family=6)                   # iptables-save text, all tables or none

    policy = nfctl.read_policy("host.yaml")         # or iptables-save files: v4=..., v6=...
    print(nfctl.plan(policy).changes)               # nothing is written
    nfctl.apply(policy)                             # with a journal: nfctl.rollback() undoes it

Everything acts in the network namespace of the calling thread unless ``network`` names another.
Errors are the classes of :mod:`nfctl.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfctl.control.apply import Options as ApplyOptions
    from nfctl.control.apply import Outcome, apply, plan
    from nfctl.control.change import Change
    from nfctl.control.edit import TableEdit
    from nfctl.control.restore import Report, restore
    from nfctl.control.save import read, save
    from nfctl.control.transaction import Transaction as edit  # noqa: N813
    from nfctl.control.undo import rollback
    from nfctl.errors import NfctlError
    from nfctl.policy.reading import read as read_policy
    from nfctl.policy.wanted import Wanted
    from nfctl.ruleset import Chain, Counters, Rule, Ruleset, Table

__version__ = "0.1.0"

__all__ = [
    "edit", "read", "restore", "save",
    "read_policy", "plan", "apply", "rollback",
    "ApplyOptions", "Change", "Outcome", "Wanted",
    "Chain", "Counters", "Report", "Rule", "Ruleset", "Table", "TableEdit",
    "NfctlError",
    "__version__",
]  # fmt: skip

# Loaded at first use: importing nfctl must not load C libraries.
_HOMES = {
    "edit": ("nfctl.control.transaction", "Transaction"),
    "TableEdit": ("nfctl.control.edit", "TableEdit"),
    "restore": ("nfctl.control.restore", "restore"),
    "Report": ("nfctl.control.restore", "Report"),
    "read": ("nfctl.control.save", "read"),
    "save": ("nfctl.control.save", "save"),
    "read_policy": ("nfctl.policy.reading", "read"),
    "plan": ("nfctl.control.apply", "plan"),
    "apply": ("nfctl.control.apply", "apply"),
    "rollback": ("nfctl.control.undo", "rollback"),
    "ApplyOptions": ("nfctl.control.apply", "Options"),
    "Outcome": ("nfctl.control.apply", "Outcome"),
    "Change": ("nfctl.control.change", "Change"),
    "Wanted": ("nfctl.policy.wanted", "Wanted"),
    "NfctlError": ("nfctl.errors", "NfctlError"),
    **{name: ("nfctl.ruleset", name) for name in ("Chain", "Counters", "Rule", "Ruleset", "Table")},
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        msg = f"module 'nfctl' has no attribute {name!r}"
        raise AttributeError(msg) from None
    import importlib

    return getattr(importlib.import_module(module), attribute)
