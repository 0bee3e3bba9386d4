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

Everything acts in the network namespace of the calling thread unless ``network`` names another.
Errors are the classes of :mod:`nfctl.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfctl.control.edit import TableEdit
    from nfctl.control.restore import Report, restore
    from nfctl.control.save import read, save
    from nfctl.control.transaction import Transaction as edit  # noqa: N813
    from nfctl.errors import NfctlError
    from nfctl.ruleset import Chain, Counters, Rule, Ruleset, Table

__version__ = "0.1.0"

__all__ = [
    "edit", "read", "restore", "save",
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
