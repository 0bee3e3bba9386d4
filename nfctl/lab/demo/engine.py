"""The router's firewall through nfctl's own API; this runs inside the router."""

from __future__ import annotations

import nfctl


def load(text: str, family: int) -> None:
    """Load iptables-save text into the kernel; the tables it names are replaced."""
    nfctl.restore(text, family=family, source="the demo's firewall")
