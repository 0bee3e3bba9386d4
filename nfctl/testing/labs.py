"""What the fixtures give: labs, and loaded rules. Imported when the first of them is used."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import pytest

import nfctl
from nfctl.errors import BadInput, NfctlError, NotPermitted, Unsupported, Where, excerpt
from nfctl.lab import Host, Lab, syscalls
from nfctl.testing import needs
from nfctl.testing.crew import crew_of, dismiss

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Literal

    from nfctl.lab.topology import Topology
    from nfctl.ruleset import Ruleset

_AS_ROOT = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run as root"


class LabMaker(Protocol):
    """The ``lab`` fixture: makes a lab that is removed when the test ends."""

    def __call__(self, topology: str | os.PathLike[str] | Topology | None = None) -> Lab:
        """Make the hosts of a topology: one of nfctl's own, a file's, an object; or none yet."""
        ...


class RulesetLoader(Protocol):
    """The ``ruleset`` fixture: loads iptables-save text in a host."""

    def __call__(
        self, host: Host, rules: str | Path, family: Literal[4, 6] | None = None
    ) -> Ruleset:
        """Load the text or the file; all its tables or none. Return what the kernel has then.

        Without ``family`` a file whose name ends in ``v6`` is for IPv6, all else for IPv4.
        """
        ...


@contextlib.contextmanager
def making(config: pytest.Config) -> Iterator[None]:
    """Skip or fail the test, in words, where the block cannot do what it is for."""
    __tracebackhide__ = True
    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        needs.lack(config, _AS_ROOT)
    try:
        yield
    except NfctlError as error:
        caught = error  # what follows is no error within an error
    else:
        return
    if isinstance(caught, NotPermitted | Unsupported):
        needs.lack(config, f"cannot make a lab here: {caught}")
    fail(caught)


def fail(error: NfctlError, text: str = "", where: Where | None = None) -> NoReturn:
    """Fail the test with an error; with the line of ``text`` that it is about, and a caret."""
    __tracebackhide__ = True
    shown = excerpt(text, where)
    pytest.fail(f"{error}\n{shown}" if shown else str(error))


@contextlib.contextmanager
def opened(config: pytest.Config, name: str) -> Iterator[Lab]:
    """Make an empty lab for the block."""
    __tracebackhide__ = True
    with contextlib.ExitStack() as stack:
        with making(config):
            made = stack.enter_context(Lab(name))
        stack.callback(dismiss, made.id)
        yield made


def built(made: Lab, topology: Topology, config: pytest.Config) -> Lab:
    """Make a topology's hosts in a lab, with their rules and services."""
    __tracebackhide__ = True
    with making(config):
        made.build(topology)
    return made


def topology_of(word: str | os.PathLike[str] | Topology) -> Topology:
    """Return the topology that a test named; its mistakes fail the test."""
    __tracebackhide__ = True
    from nfctl.lab.topology import Topology

    if isinstance(word, Topology):
        return word
    name = word if isinstance(word, str) else str(Path(word).absolute())
    try:
        return Topology.load(name)
    except NfctlError as error:
        caught = error
    fail(caught)


class Loader:
    """Loads rules; ``module`` is the test's own file, which may hold their text."""

    def __init__(self, config: pytest.Config, module: Path) -> None:
        self.config = config
        self.module = module

    def __call__(
        self, host: Host, rules: str | Path, family: Literal[4, 6] | None = None
    ) -> Ruleset:
        """Load the text or the file."""
        __tracebackhide__ = True
        text, source = self._text(rules)
        version = family or (6 if source.endswith("v6") else 4)
        try:
            return crew_of(host).ask(host.name, _load, text, version, source)
        except NfctlError as error:
            caught = error
        if isinstance(caught, Unsupported):
            reason = _lacking(text, version) or f"needs more of the kernel: {caught}"
            needs.lack(self.config, reason)
        where = caught.where
        if isinstance(rules, str):
            caught.where = self._in_module(text, where)
        fail(caught, text, where)

    def _text(self, rules: str | Path) -> tuple[str, str]:
        """Return the text and what to call it."""
        __tracebackhide__ = True
        if isinstance(rules, str):
            return rules, "<rules>"
        try:
            return rules.read_text(encoding="utf-8", errors="surrogateescape"), str(rules)
        except OSError as error:
            caught = BadInput(f"{rules} cannot be read: {error.strerror}")
        fail(caught)

    def _in_module(self, text: str, where: Where | None) -> Where | None:
        """Return the place in the test's own file, if the text stands in it as it is."""
        if where is None or not where.line:
            return where
        try:
            before, found, _ = self.module.read_text(encoding="utf-8").partition(text)
        except (OSError, UnicodeDecodeError):
            return where
        if not found or not text:
            return where
        column = where.column
        if where.line == 1 and column:
            column += len(before) - before.rfind("\n") - 1
        return Where(self.module.name, where.line + before.count("\n"), column)


def _load(text: str, family: int, source: str) -> Ruleset:
    nfctl.restore(text, family=family, source=source)
    return nfctl.read(family=family)


def _lacking(text: str, family: int) -> str:
    """Name the option without which the kernel lacks a table of the text; "" if it is not that."""
    from nfctl.kernel.needs import lacking_option

    tables: list[Any] = re.findall(r"^\*(\w+)", text, re.MULTILINE)
    options = (lacking_option(needs.config(), 4 if family == 4 else 6, table) for table in tables)
    return next((f"needs CONFIG_{option}" for option in options if option), "")
