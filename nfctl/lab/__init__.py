"""Disposable networks out of network namespaces, and traffic between their hosts.

Read ``lab`` first (what a lab promises, with an example), then ``host`` (how to run things
inside one), ``topology`` (labs described in YAML) and ``standing`` (labs that stay up).
``traffic`` is what a packet's sender can tell. Below them: ``build`` makes a topology,
``namespaces`` and ``wiring`` (over ``netlink``) what a lab is made of, ``records`` knows who owns
it, ``fork`` runs the children. ``demo`` is the first user. To look into a lab: ``ip netns``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfctl.lab.host import Host, Port
    from nfctl.lab.lab import Lab
    from nfctl.lab.records import sweep
    from nfctl.lab.services import Arrival, Service
    from nfctl.lab.standing import Standing
    from nfctl.lab.topology import Topology
    from nfctl.lab.traffic import Answer, Verdict
    from nfctl.lab.worker import Worker

__all__ = [
    "Lab", "Host", "Port", "Topology", "Standing", "Service", "Worker", "Arrival", "Answer",
    "Verdict", "sweep",
]  # fmt: skip

# Loaded at first use: ``nfctl lab down`` needs hardly any of it.
_HOMES = {
    "Lab": "lab",
    "Host": "host",
    "Port": "host",
    "Topology": "topology",
    "Standing": "standing",
    "Service": "services",
    "Worker": "worker",
    "Arrival": "services",
    "Answer": "traffic",
    "Verdict": "traffic",
    "sweep": "records",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"nfctl.lab.{_HOMES[name]}"), name)
    return value
