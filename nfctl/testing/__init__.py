"""Test firewalls with pytest: real packets between real hosts, and which rule decided.

    from nfctl.testing import expect_accepted, expect_dropped

    def test_only_the_web_is_open(lab, ruleset):
        net = lab("router")
        ruleset(net["router"], RULES)
        expect_accepted(net["client"], net["server"], "tcp/80")
        expect_dropped(net["client"], net["server"], "tcp/22")

pytest finds the fixtures by itself where nfctl is installed: ``netns`` (one host), ``lab`` (a
topology, or hosts to connect by hand) and ``ruleset``; see :mod:`nfctl.testing.plugin`, also
for ``@pytest.mark.needs_kernel`` and ``--nfctl-no-skip``. Read ``expect`` next, then ``survey``
(which hosts a packet met) and ``trail`` (what there is to tell); ``crew`` asks the hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfctl.lab.traffic import Answer, Verdict
    from nfctl.testing.expect import expect_accepted, expect_dropped, expect_rejected
    from nfctl.testing.inbox import Inbox, Message, receive
    from nfctl.testing.labs import LabMaker, RulesetLoader
    from nfctl.testing.sending import connect, send

__all__ = [
    "expect_accepted", "expect_dropped", "expect_rejected",
    "connect", "send", "receive",
    "Answer", "Verdict", "Inbox", "Message",
    "LabMaker", "RulesetLoader",
]  # fmt: skip

# Loaded at first use: the plugin is imported by every pytest where nfctl is installed.
_HOMES = {
    "expect_accepted": "nfctl.testing.expect",
    "expect_dropped": "nfctl.testing.expect",
    "expect_rejected": "nfctl.testing.expect",
    "connect": "nfctl.testing.sending",
    "send": "nfctl.testing.sending",
    "receive": "nfctl.testing.inbox",
    "Inbox": "nfctl.testing.inbox",
    "Message": "nfctl.testing.inbox",
    "Answer": "nfctl.lab.traffic",
    "Verdict": "nfctl.lab.traffic",
    "LabMaker": "nfctl.testing.labs",
    "RulesetLoader": "nfctl.testing.labs",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        msg = f"module 'nfctl.testing' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(_HOMES[name]), name)
