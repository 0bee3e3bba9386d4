"""The pytest plugin: fixtures, a marker and an option. pytest loads it where nfctl is installed.

Fixtures, each made anew for every test and removed with all that runs in it:

``netns``
    One host (:class:`nfctl.lab.Host`): a network namespace with a ``/run`` of its own.
``lab``
    Makes labs: ``lab("router")``, ``lab("./topology.yaml")``, ``lab(topology)``; ``lab()`` is an
    empty one, to be connected by hand. ``lab(...)["client"]`` is a host.
``ruleset``
    Loads rules: ``ruleset(host, text)`` or ``ruleset(host, Path("rules.v6"))``. A mistake fails
    the test with file, line and column.

``@pytest.mark.needs_kernel("NETFILTER_XT_MATCH_RECENT")`` skips a test on a kernel that was
built without these options. Tests are also skipped without root, and where the kernel lacks
what they load. ``--nfctl-no-skip`` makes failures of these skips.

Every pytest of whoever has nfctl imports this file, so nothing else of nfctl is imported before
a fixture is used.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from nfctl.lab import Host, Lab
    from nfctl.lab.topology import Topology
    from nfctl.testing.labs import LabMaker, RulesetLoader

_MARKER = "needs_kernel"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--nfctl-no-skip``."""
    parser.getgroup("nfctl").addoption(
        "--nfctl-no-skip",
        action="store_true",
        help="fail tests that would be skipped for lack of a privilege or a kernel option",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(*options): skip on a kernel built without these options, CONFIG_ left out",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the kernel's configuration rules out."""
    wanted = [option for mark in item.iter_markers(_MARKER) for option in mark.args]
    if wanted:
        from nfctl.testing import needs

        missing = needs.lacking(wanted, needs.config())
        if missing:
            names = ", ".join(f"CONFIG_{name}" for name in missing)
            needs.lack(item.config, f"needs a kernel with {names}")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """End what was left in labs that a test made without the fixture, and that are gone."""
    crew = sys.modules.get("nfctl.testing.crew")
    if crew is not None:
        crew.dismiss()


@pytest.fixture
def netns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """One fresh host: a network namespace with ``lo`` up, and a private ``/run``."""
    from nfctl.testing import labs

    # A lock that the caller named would be shared with the machine.
    monkeypatch.delenv("XTABLES_LOCKFILE", raising=False)
    with labs.opened(request.config, "netns") as made:
        with labs.making(request.config):
            host = made.host("netns")
        yield host


@pytest.fixture
def lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LabMaker]:
    """Make labs: networks of hosts, from a topology or by hand."""
    from nfctl.testing import labs

    monkeypatch.delenv("XTABLES_LOCKFILE", raising=False)
    with ExitStack() as stack:

        def make(topology: str | os.PathLike[str] | Topology | None = None) -> Lab:
            __tracebackhide__ = True
            if topology is None:
                return stack.enter_context(labs.opened(request.config, "lab"))
            plan = labs.topology_of(topology)
            made = stack.enter_context(labs.opened(request.config, "lab"))
            return labs.built(made, plan, request.config)

        yield make


@pytest.fixture
def ruleset(request: pytest.FixtureRequest) -> RulesetLoader:
    """Load iptables-save text, or a file of it, in a host."""
    from nfctl.testing import labs

    return labs.Loader(request.config, request.path)
