"""The pytest plugin, as far as that goes without root: imports, markers, words and messages."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import nfctl.testing
from nfctl.errors import BadInput
from nfctl.kernel.config import Built, KernelConfig
from nfctl.lab.explain import Step
from nfctl.lab.traffic import Verdict
from nfctl.testing import needs
from nfctl.testing.sending import What
from nfctl.testing.survey import translated
from nfctl.testing.trail import Hop, decide, tell

if TYPE_CHECKING:
    from collections.abc import Callable

pytest_plugins = ["pytester"]

ACCEPTED, REJECTED, DROPPED = Verdict.ACCEPTED, Verdict.REJECTED, Verdict.DROPPED


# --- the plugin --------------------------------------------------------------------------------


def test_the_plugin_imports_next_to_nothing() -> None:
    """Whoever has nfctl loads the plugin with every pytest: it brings in two modules of nfctl."""
    code = (
        "import pytest, sys; before = set(sys.modules); import nfctl.testing.plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nfctl", "nfctl.testing", "nfctl.testing.plugin"]


def test_pytest_loads_the_plugin(pytester: pytest.Pytester) -> None:
    """The installed package registers itself: its option, marker and fixtures are there."""
    shown = pytester.runpytest_inprocess("--help")
    shown.stdout.fnmatch_lines(["*--nfctl-no-skip*"])
    markers = pytester.runpytest_inprocess("--markers")
    markers.stdout.fnmatch_lines(["@pytest.mark.needs_kernel(*options): skip on a kernel*"])
    fixtures = pytester.runpytest_inprocess("--fixtures")
    for name in ("lab", "netns", "ruleset"):
        fixtures.stdout.fnmatch_lines([f"{name} -- *plugin.py*"])


def test_all_names_of_the_facade_can_be_had() -> None:
    """Everything in __all__ is found, and nothing else."""
    assert all(callable(getattr(nfctl.testing, name)) for name in nfctl.testing.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nfctl.testing.nothing  # noqa: B018


# --- needs -------------------------------------------------------------------------------------

NEEDS = """
    import pytest

    @pytest.mark.needs_kernel("NETFILTER_XT_MATCH_RECENT", "IP_SET")
    def test_two():
        pass

    @pytest.mark.needs_kernel("CONFIG_IP_SET")
    def test_one():
        pass
"""


@pytest.fixture
def small_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to run on a kernel that has ip_set and nothing else."""
    kernel = KernelConfig("6.18", "/proc/config.gz", {"IP_SET": "y"})
    monkeypatch.setattr(needs, "config", lambda: kernel)


@pytest.mark.usefixtures("small_kernel")
def test_a_lacking_option_skips_and_is_named(pytester: pytest.Pytester) -> None:
    """The marker skips on a kernel without the option, and says which; strict markers know it."""
    pytester.makepyfile(NEEDS)
    done = pytester.runpytest_inprocess("--strict-markers", "-rs")
    done.assert_outcomes(passed=1, skipped=1)
    done.stdout.fnmatch_lines(["SKIPPED*: needs a kernel with CONFIG_NETFILTER_XT_MATCH_RECENT"])


@pytest.mark.usefixtures("small_kernel")
def test_no_skip_makes_failures_of_skips(pytester: pytest.Pytester) -> None:
    """With --nfctl-no-skip what would be skipped fails, with the same words."""
    pytester.makepyfile(NEEDS)
    done = pytester.runpytest_inprocess("--nfctl-no-skip")
    done.assert_outcomes(passed=1, errors=1)
    done.stdout.fnmatch_lines(
        ["needs a kernel with CONFIG_NETFILTER_XT_MATCH_RECENT (and --nfctl-no-skip was given)"]
    )


def test_options_are_known_by_their_modules() -> None:
    """Where no configuration can be read modules tell; what they do not tell is not lacking."""
    kernel = KernelConfig("6.1", "modules.builtin", None, {"xt_recent": Built.MODULE})
    options = ["NETFILTER_XT_MATCH_RECENT", "CONFIG_NETFILTER_XT_MATCH_LIMIT", "NO_SUCH_OPTION"]
    assert needs.lacking(options, kernel) == ["NETFILTER_XT_MATCH_LIMIT"]
    assert needs.lacking(options, KernelConfig("6.1", "")) == []


# --- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "protocol", "port", "transport"),
    [
        ("tcp/22", "tcp", 22, "tcp"),
        ("udp/514", "udp", 514, "udp"),
        ("http", "http", 80, "tcp"),
        ("http/8080", "http", 8080, "tcp"),
        ("dns", "dns", 53, "udp"),
        ("icmp", "icmp", 0, "icmp"),
    ],
)
def test_what_can_be_sent(text: str, protocol: str, port: int, transport: str) -> None:
    """A protocol and a port are read; http and dns know theirs."""
    what = What.parse(text)
    assert (what.protocol, what.port, what.transport) == (protocol, port, transport)


@pytest.mark.parametrize(
    "text", ["", "tcp", "tcp/", "tcp/0", "tcp/65536", "tcp/x", "tcp/-1", "icmp/8", "sctp/1", "22"]
)
def test_what_cannot_be_sent(text: str) -> None:
    """Anything else is refused with an example of what can be."""
    with pytest.raises(BadInput, match="nothing that can be sent") as error:
        What.parse(text)
    assert "tcp/22" in error.value.hint


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("-p tcp -j DNAT --to-destination 10.77.0.10:80", "10.77.0.10"),
        ("-j DNAT --to-destination 10.77.0.10", "10.77.0.10"),
        ("-j DNAT --to-destination 10.77.0.10-10.77.0.20", "10.77.0.10"),
        ("-p tcp -j DNAT --to-destination 10.77.0.10:80-90 --random", "10.77.0.10"),
        ("-p tcp -j DNAT --to-destination :8080", "192.0.2.1"),
        ("-p tcp -j DNAT --to-destination [fd77::10]:80", "fd77::10"),
        ("-j DNAT --to-destination fd77::10", "fd77::10"),
        ("-p tcp -j REDIRECT --to-ports 80", ""),
        ("-j MASQUERADE", "192.0.2.1"),
    ],
)
def test_where_nat_sends_a_packet(rule: str, address: str, step: Callable[..., Step]) -> None:
    """The new destination is read from the rule that counted; a redirection stays on the host."""
    assert translated([step(rule, table="nat", chain="PREROUTING")], "192.0.2.1") == address


# --- what there is to tell ---------------------------------------------------------------------


@pytest.fixture
def step() -> Callable[..., Step]:
    """Make a step from a rule's text, as nfctl.lab.explain would."""

    def make(text: str, table: str = "filter", chain: str = "FORWARD", number: int = 1) -> Step:
        words = text.split()
        target = words[words.index("-j") + 1] if "-j" in words else words[-1]
        return Step(table, chain, number, text, target, 1, (chain,))

    return make


def margins(verdict: Verdict, hops: list[Hop], *, delivered: bool) -> list[tuple[str, str]]:
    found = decide(verdict, hops, delivered=delivered)
    return [(hops[decision.hop].host, decision.word) for decision in found]


def test_the_first_refusal_decides(step: Callable[..., Step]) -> None:
    """Of a packet that did not arrive, the first host that refused something refused it."""
    client, router = Hop("client", [], []), Hop("router", [step("-j DROP")], [])
    server = Hop("server", [step("policy DROP", chain="INPUT", number=0)], [])
    hops = [client, router, server]
    assert margins(DROPPED, hops, delivered=False) == [("router", "decided")]


def test_behind_a_packet_that_arrived_its_answer_was_refused(step: Callable[..., Step]) -> None:
    """What refused something though the packet arrived met the answer, nearest to it first."""
    drop = [step("-j DROP")]
    hops = [Hop("client", [], drop), Hop("router", drop, drop), Hop("server", [], [])]
    assert margins(DROPPED, hops, delivered=True) == [("router", "dropped the answer")]


def test_a_rejection_may_be_lost(step: Callable[..., Step]) -> None:
    """Where a REJECT was met and nothing came back, what dropped the rejection is told too."""
    client = Hop("client", [], [step("-j DROP", chain="INPUT")])
    hops = [client, Hop("router", [step("-j REJECT")], []), Hop("server", [], [])]
    assert margins(DROPPED, hops, delivered=False) == [
        ("router", "decided"),
        ("client", "dropped the answer"),
    ]


def test_a_queue_that_nobody_serves(step: Callable[..., Step]) -> None:
    """A packet that went into a queue and never came out of it is told as such."""
    queue = step("-j NFQUEUE --queue-num 1", table="mangle")
    hops = [Hop("client", [], []), Hop("router", [queue], []), Hop("server", [], [], arrived=False)]
    found = decide(DROPPED, hops, delivered=False)
    assert tell(hops, found) == [
        "  router: mangle:FORWARD rule 1: -j NFQUEUE --queue-num 1   (+1 packet)"
        "   <- queued, and no program let it go on",
        "  server: the packet did not arrive",
    ]


def test_only_a_reject_rejects(step: Callable[..., Step]) -> None:
    """Who was rejected met a REJECT, whatever else dropped something meanwhile."""
    router = Hop("router", [step("-j DROP"), step("-j REJECT", number=2)], [])
    (decision,) = decide(REJECTED, [Hop("client", [], []), router], delivered=False)
    assert decision.step.number == 2


def test_each_host_accepts_for_itself(step: Callable[..., Step]) -> None:
    """Of an accepted packet every host's own decision is marked, not the rule for replies."""
    replies = step("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    router = Hop("router", [replies, step("-p tcp -j ACCEPT", number=2)], [])
    server = Hop("server", [step("policy ACCEPT", chain="INPUT", number=0)], [])
    found = decide(ACCEPTED, [Hop("client", [], []), router, server], delivered=True)
    assert [(decision.hop, decision.step.number) for decision in found] == [(1, 2), (2, 0)]


def test_a_jump_is_told_by_the_path(step: Callable[..., Step]) -> None:
    """A jump has no line of its own where a rule behind it was met; else it has one."""
    jump = step("-i wan0 -j OUTSIDE", number=2)
    inner = Step("filter", "OUTSIDE", 1, "-j DROP", "DROP", 2, ("FORWARD", "OUTSIDE"))
    policy = step("policy DROP", number=0)
    client = Hop("client", [], [])
    told = tell([client, Hop("router", [jump, inner], [])], [])
    assert told == ["  router: filter:FORWARD -> OUTSIDE rule 1: -j DROP   (+2 packets)"]
    told = tell([client, Hop("router", [jump, policy], [])], [])
    assert told == [
        "  router: filter:FORWARD rule 2: -i wan0 -j OUTSIDE   (+1 packet)",
        "          filter:FORWARD policy DROP   (+1 packet)",
    ]
