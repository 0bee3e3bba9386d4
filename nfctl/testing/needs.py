"""What a test needs and this machine may lack; it is skipped then, or fails where told so."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NoReturn

import pytest

from nfctl.kernel.config import Built, KernelConfig, read_config

if TYPE_CHECKING:
    from collections.abc import Iterable


@cache
def config() -> KernelConfig:
    """Return what the running kernel was built with."""
    return read_config()


def lack(configuration: pytest.Config, reason: str) -> NoReturn:
    """Skip the test, or fail it with ``--nfctl-no-skip``."""
    __tracebackhide__ = True
    if configuration.getoption("nfctl_no_skip"):
        pytest.fail(f"{reason} (and --nfctl-no-skip was given)", pytrace=False)
    pytest.skip(reason)


def lacking(options: Iterable[str], kernel: KernelConfig) -> list[str]:
    """Return the options (with or without ``CONFIG_``) that a kernel is known to lack."""
    names = [option.removeprefix("CONFIG_") for option in options]
    return [name for name in names if kernel.built(name, _module(name)) is Built.NO]


def _module(option: str) -> str:
    """Return the module that an option builds, "" if that is not known."""
    from nfctl.kernel.needs import NEEDS, table_option
    from nfctl.traversal import FAMILIES, TABLES

    known = {name: module for need in NEEDS for name, module in need.options.items()}
    known |= dict(table_option(family, table) for family in FAMILIES for table in TABLES)
    for kind in ("MATCH", "TARGET"):
        start = f"NETFILTER_XT_{kind}_"
        if option.startswith(start):
            return known.get(option, f"xt_{option.removeprefix(start).lower()}")
    return known.get(option, "")
